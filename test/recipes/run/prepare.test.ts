import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../../recipes/migrate.ts'
import type { RunEvent } from '../../../recipes/run/screen.ts'
import { Secret } from '../../../tasks/task.ts'
import { needs } from '../../needs.ts'
import { runningVm } from '../../running-vm.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../../simulated-host.ts'

const preparing = suite<{ host: SimulatedHost; vm: string; was: NodeJS.ProcessEnv }>(
  'migrate --prepare',
)
const test = needs(preparing, 'pwsh', 'bash')

preparing.before.each(async (context) => {
  const host = context.host = await simulatedHost()
  await host.change(quickGuests)
  const { vbox } = await demo('bios', host.dir)
  const vm = context.vm = join(host.dir, 'vm')
  await fs.ensureDir(vm)
  const guest = { name: 'Demo BIOS', password: 'se"c$ret', product: 'Windows 11' }
  const env = { ...host.env, ...await runningVm(vm, guest) }
  await fs.writeFile(join(vm, 'settings'), vbox)
  const down = '${function:global:shutdown.exe} = { ' +
    "[IO.File]::WriteAllText($env:VM + '/state', 'poweroff'); $global:LASTEXITCODE = 0 }\n"
  await fs.appendFile(join(vm, 'prelude.ps1'), down)
  context.was = { ...process.env }
  Object.assign(process.env, env)
})
preparing.after.each(async ({ host, was }) => {
  for (const name of Object.keys(process.env)) if (!(name in was)) delete process.env[name]
  Object.assign(process.env, was)
  await host.close()
})

test('makes the running guest ready, shuts it down, and moves it', async ({ host, vm }) => {
  const asked: string[] = []
  const { outcome, events } = await run(host, {}, (question) => {
    asked.push(question)
    return Promise.resolve(true)
  })
  equal(outcome, 'done')
  deepEqual(asked, ['Make the guest of "Demo BIOS" ready for Hyper-V and shut it down?'])
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'poweroff')
  match(
    notes(events),
    /^guest +These drivers start with Windows now: .+\n(.+\n)*guest +The guest shuts down/m,
  )
  deepEqual((await host.state()).vms.map(({ name }: { name: string }) => name), ['Demo BIOS'])
  ok(!(await fs.readFile(join(vm, 'log'), 'utf8')).includes('se"c$ret'), 'no password in a command')
  ok(!JSON.stringify(events).includes('c$ret'))
})

test('goes on with a guest that was shut down before', async ({ host, vm }) => {
  await fs.writeFile(join(vm, 'state'), 'poweroff')
  const { outcome, events } = await run(host)
  equal(outcome, 'done')
  match(notes(events), /"Demo BIOS" is not running, so nothing is made ready in it/)
})

test('changes neither guest nor host on a dry run, when refused by a person, and when the host refuses', async ({ host, vm }) => {
  const before = await host.text()
  const dry = await run(host, { dryRun: true })
  equal(dry.outcome, 'dry-run')
  match(notes(dry.events), /^guest +These drivers would start with Windows: /m)
  equal((await run(host, {}, () => Promise.resolve(false))).outcome, 'declined')
  await rejects(
    run(host, { external: '桥接', adapter: 'no such' }),
    /there is no network adapter "no such"|"no such"/,
  )
  await rejects(run(host, { hostIp: '192.168.56.1/24' }), /Add --internal/)
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'running')
  deepEqual(await fs.readdir(join(vm, 'guest')), [])
  equal(await host.text(), before)
})

test('leaves the guest on that would not start on Hyper-V, and says why', async ({ host, vm }) => {
  await fs.appendFile(
    join(vm, 'prelude.ps1'),
    "$guest.registry.Remove('HKLM:\\SYSTEM\\CurrentControlSet\\Services\\storvsc')\n",
  )
  await rejects(run(host), {
    message:
      /^Cannot move "Demo BIOS": as it is its guest would not start on Hyper-V, so it stays on\. .*storvsc/,
  })
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'running')
  equal((await host.state()).vms.length, 0)
})

test('says without --prepare that the VM runs, and what would help', async ({ host }) => {
  await rejects(run(host, { prepare: undefined }), {
    message:
      /"Demo BIOS": it is running, .+ or again with --prepare guestcontrol --guest-user NAME/,
  })
})

test('refuses a file, which nothing runs', async ({ host }) => {
  const { ova } = await demo('bios', host.dir)
  await rejects(
    run(host, { source: [ova] }),
    /only VirtualBox can run it for that, and a file is named/,
  )
})

const disks = suite<{ host: SimulatedHost }>('migrate of a Windows that nobody made ready')
disks.before.each(async (context) => {
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
})
disks.after.each(({ host }) => host.close())

needs(disks, 'pwsh', 'mkntfs', 'wimcapture', 'wimapply')(
  'pain 1: makes it ready on its converted disk, once, and leaves the source alone',
  async ({ host }) => {
    const source = await windowsDisk(host.dir)
    const before = await fs.readFile(source)
    const disk = join(host.dir, 'disks', 'win.vhdx')
    const services = 'ControlSet001\\Services\\'
    const hive = {
      Select: { Current: '0x1', Default: '0x1', Failed: '0x0', LastKnownGood: '0x1' },
      [`${services}vmbus`]: { Start: '0x3' },
      [`${services}storvsc`]: { Start: '0x3' },
      'ControlSet001\\Control\\CrashControl': { AutoReboot: '0x0' },
    }
    await host.change((state) => state.windows = [{ disk, partition: 1, hive }])
    const options = { source: [source], prepare: undefined, name: 'win', generation: 1 as const }
    const { outcome, events } = await run(host, options)
    equal(outcome, 'done')
    const done = events.flatMap((event) =>
      event.event === 'step' ? [`${event.state} ${event.step}`] : []
    )
    ok(done.includes('done prepare-guest-1'), done.join())
    ok(done.indexOf('done prepare-guest-1') < done.indexOf('started create-vm'))
    const now = (await host.state()).windows[0].hive
    deepEqual([now[`${services}vmbus`].Start, now[`${services}storvsc`].Start], ['0x0', '0x0'])
    ok((await fs.readFile(source)).equals(before))
    const state = await host.text()
    equal((await run(host, options)).outcome, 'same')
    equal(await host.text(), state)
  },
)

preparing.run()
disks.run()

/** A disk with an MBR and one volume of NTFS, in which Windows' folders are. */
async function windowsDisk(dir: string): Promise<string> {
  // tools for file systems are the administrator's
  const PATH = [process.env.PATH, '/usr/sbin', '/sbin'].join(delimiter)
  const tool = (program: string, ...args: string[]) =>
    promisify(execFile)(program, args, { cwd: dir, env: { ...process.env, PATH } })
  const [volume, disk] = [join(dir, 'ntfs.img'), join(dir, 'win.img')]
  await fs.ensureDir(join(dir, 'c', 'Windows', 'System32'))
  await fs.writeFile(volume, '')
  await fs.truncate(volume, 8 * 1024 ** 2)
  await tool('wimcapture', 'c', 'c.wim', '--compress=none')
  await tool('mkntfs', '-q', '-F', '-c', '4096', '-p', '2048', volume)
  await tool('wimapply', 'c.wim', '1', volume)
  const start = Buffer.alloc(2048 * 512)
  start.set([0x80, 0, 0, 0, 0x07], 446)
  start.writeUInt32LE(2048, 446 + 8)
  start.writeUInt32LE(8 * 1024 ** 2 / 512, 446 + 12)
  start.writeUInt16LE(0xaa55, 510)
  await fs.writeFile(disk, Buffer.concat([start, await fs.readFile(volume)]))
  return disk
}

async function run(
  { ps, using, dir }: SimulatedHost,
  options: MigrateOptions = {},
  agreePrepare?: (question: string) => Promise<boolean>,
) {
  const events: RunEvent[] = []
  const here = (path: string) => Promise.resolve(path)
  const close = () => Promise.resolve()
  const outcome = await migrate(
    {
      source: ['Demo BIOS'],
      to: 'local',
      prepare: 'guestcontrol',
      state: join(dir, 'state'),
      storage: join(dir, 'disks'),
      ...options,
    },
    {
      screen: (event) => events.push(event),
      host: () => ({ ps, using, here, close }),
      credential: { user: 'Administrator', password: new Secret('se"c$ret') },
      ...(agreePrepare && { agreePrepare }),
    },
  )
  return { outcome, events }
}

function notes(events: RunEvent[]): string {
  return events.flatMap((event) => event.event === 'note' ? [event.text] : []).join('\n')
}
