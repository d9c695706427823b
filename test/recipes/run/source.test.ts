import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../../recipes/migrate.ts'
import { readJournals } from '../../../recipes/run/journal.ts'
import type { RunEvent } from '../../../recipes/run/screen.ts'
import { changedSince, fingerprint } from '../../../recipes/run/source.ts'
import { runs } from '../../../recipes/runs.ts'
import { undo } from '../../../recipes/undo.ts'
import { inspectVm } from '../../../tasks/inspect-vm.ts'

const MB = 1024 ** 2

const sources = suite<{ dir: string }>('the source')

sources.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'source-'))
})
sources.after.each(({ dir }) => fs.remove(dir))

sources('is the settings and each image of each disk, whatever kind it is', async ({ dir }) => {
  const { vbox, vdi, ova } = await demo('bios', dir)
  const of = async (...source: string[]) =>
    (await fingerprint(await inspectVm({ source }))).map(({ path }) => path)
  deepEqual(await of(vbox), [vbox, vdi])
  deepEqual(await of(ova), [ova])
  deepEqual(await of(vdi), [vdi])
  // a VMDK in parts, the last of which is not there
  await fs.writeFile(
    join(dir, 'parts.vmdk'),
    '# Disk DescriptorFile\nversion=1\nRW 8 FLAT "parts-f001.vmdk" 0\nRW 8 FLAT "gone.vmdk" 0\n',
  )
  await fs.writeFile(join(dir, 'parts-f001.vmdk'), Buffer.alloc(4096))
  deepEqual(
    (await of(join(dir, 'parts.vmdk'))).map((path) => relative(dir, path)),
    ['parts.vmdk', 'parts-f001.vmdk'],
  )
})

sources('is all the parts that an OVF has its disk in', async ({ dir }) => {
  const ovf = join(dir, 'x.ovf')
  const parts = ['x.vmdk.000000000', 'x.vmdk.000000001']
  for (const name of [...parts, 'x.vmdk.txt']) await fs.writeFile(join(dir, name), name)
  await fs.writeFile(ovf, '')
  const vm = await inspectVm({ source: [(await demo('bios', dir)).vdi] })
  const disk = { path: ovf, member: 'x.vmdk', packed: 'chunks' as const, chain: [ovf] }
  const disks = [{ ...vm.disks[0], format: 'VMDK', encrypted: false, ...disk }]
  const found = await fingerprint({ ...vm, kind: 'ovf', settings: ovf, disks })
  deepEqual(found.map(({ path }) => relative(dir, path)), ['x.ovf', ...parts])
})

sources('is unchanged though it was read, and tells each way to change', async ({ dir }) => {
  const small = join(dir, 'small.img')
  const large = join(dir, 'large.img')
  await fs.writeFile(small, Buffer.alloc(4096))
  await fs.writeFile(large, '')
  await fs.truncate(large, 64 * MB)
  const files = await fingerprint(await inspectVm({ source: [small, large] }))
  deepEqual(await changedSince(files), [])
  const write = async (file: string, at: number, time?: Date) => {
    const handle = await fs.open(file, 'r+')
    await fs.write(handle, Buffer.from('changed'), 0, 7, at)
    await fs.close(handle)
    if (time) await fs.utimes(file, time, time)
  }
  // read whole, its time alone says nothing
  const then = new Date('2020-02-02T02:02:02.000Z')
  await fs.utimes(small, then, then)
  deepEqual(await changedSince(files), [])
  await write(small, 2048, then)
  deepEqual(await changedSince(files), [
    `"${small}" has other contents since 2020-02-02T02:02:02.000Z`,
  ])
  await fs.appendFile(small, 'x')
  deepEqual(await changedSince(files), [`"${small}" had 4096 bytes and has 4097`])
  await fs.remove(small)
  deepEqual(await changedSince(files), [`"${small}" is gone`])
  const rest = files.slice(1)
  const old = new Date(rest[0]?.modified ?? '')
  await write(large, 30 * MB, then)
  deepEqual(await changedSince(rest), [`"${large}" was written to at 2020-02-02T02:02:02.000Z`])
  await write(large, 64 * MB - 7, old)
  match((await changedSince(rest)).join(), /" has other contents since /)
})

sources('is proven unchanged by a run, on its screen and in its journal', async ({ dir }) => {
  const { vbox, vdi } = await demo('bios', dir)
  const state = join(dir, 'state')
  const { outcome, events } = await run({ source: [vbox], to: `bundle:${join(dir, 'b')}`, state })
  equal(outcome, 'done')
  const proof = events.find((event) => event.event === 'source')
  deepEqual(proof?.changed, [])
  deepEqual(proof?.files.map(({ path }) => path), [vbox, vdi])
  const [journal] = await readJournals(state)
  deepEqual(journal?.source, proof?.files)
  deepEqual(journal?.sourceChanges, [])
  deepEqual((await runs({ state }))[0]?.sourceChanges, [])
})

sources(
  'that changes while it is read fails the run, whose settings are looked at too, and says what',
  async ({ dir }) => {
    const { vbox } = await demo('bios', dir)
    const state = join(dir, 'state')
    const options = { source: [vbox], to: `bundle:${join(dir, 'b')}`, state }
    const events: RunEvent[] = []
    const change = (event: RunEvent) => {
      events.push(event)
      if (event.event === 'step' && event.state === 'done') fs.appendFileSync(vbox, '\n')
    }
    const size = (await fs.stat(vbox)).size
    const said = `"${vbox}" had ${size} bytes and has ${size + 1}`
    const failure = await migrate(options, { screen: change }).catch((error: Error) => error)
    const [journal] = await readJournals(state)
    const name = journal?.run
    await rejects(Promise.reject(failure), {
      message: 'Cannot vouch for what was made\n' +
        `The source has changed since the run began: ${said}. ` +
        `Take the run back, and run again:\n  npx zx recipes/undo.ts ${name} --state ${state}`,
    })
    deepEqual(events.find(({ event }) => event === 'source'), {
      event: 'source',
      files: (await readJournals(state))[0]?.source,
      changed: [said],
    })
    equal((await runs({ state }))[0]?.outcome, 'failed')
    deepEqual((await runs({ state }))[0]?.sourceChanges, [said])
    // what is made is of what is no more
    await rejects(
      run(options),
      /^Error: Cannot go on with the run \S+: its source has changed since/,
    )
    await undo({ state }, { screen: () => {} })
    equal((await run(options)).outcome, 'done')
  },
)

sources('that changes between two tries of a run refuses the second', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const other = join(dir, 'other.img')
  await fs.writeFile(other, Buffer.alloc(4 * MB, 'x'))
  const state = join(dir, 'state')
  const options = { source: [vdi, other], to: `bundle:${join(dir, 'b')}`, state }
  const stop = new AbortController()
  const screen = (event: RunEvent) => {
    if (event.event === 'step' && event.state === 'done') stop.abort()
  }
  await rejects(migrate(options, { screen, signal: stop.signal }), /Stopped/)
  deepEqual((await readJournals(state))[0]?.sourceChanges, [])
  await fs.appendFile(other, Buffer.alloc(512))
  const told = new RegExp(
    'Cannot go on with the run \\S+: its source has changed since it began: ' +
      '".*other.img" had 4194304 bytes and has 4194816. ' +
      'Take it back, and run again: npx zx recipes/undo.ts \\S+',
  )
  await rejects(run(options), told)
  await rejects(run({ ...options, dryRun: true }), told)
  await fs.truncate(other, 4 * MB)
  await fs.utimes(
    other,
    new Date(),
    new Date((await readJournals(state))[0]?.source[1]?.modified ?? ''),
  )
  equal((await run(options)).outcome, 'done')
  equal((await readJournals(state)).length, 1)
})

sources.run()

async function run(options: MigrateOptions) {
  const events: RunEvent[] = []
  const outcome = await migrate(options, { screen: (event) => events.push(event) })
  return { outcome, events }
}
