import { Ajv2020 } from 'ajv/dist/2020.js'
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../../recipes/migrate.ts'
import { type Disks, makePlan, type Plan, type Target } from '../../../recipes/run/plan.ts'
import type { RunEvent } from '../../../recipes/run/screen.ts'
import { tasks } from '../../../recipes/run/steps.ts'
import { addSchedule } from '../../../recipes/schedule.ts'
import type { CheckHostResult } from '../../../tasks/check-host.ts'
import type { VmDescription } from '../../../tasks/inspect-vm.ts'
import type { PowerShell } from '../../../tasks/task.ts'
import { needs } from '../../needs.ts'
import { type SimulatedHost, simulatedHost } from '../../simulated-host.ts'

const root = join(import.meta.dirname as string, '..', '..', '..')
const schema = await fs.readJson(join(root, 'docs', 'plan.schema.json'))

const plans = suite<{ dir: string; state: string; file: string }>('a plan in a file')

plans.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'plan-file-'))
  context.state = join(context.dir, 'state')
  context.file = join(context.dir, 'plan.json')
})
plans.after.each(({ dir }) => fs.remove(dir))

plans(
  'is written by the command and run by it, from another folder and unattended, to the end',
  async ({ dir, state, file }) => {
    const { ova } = await demo('bios', dir)
    const elsewhere = join(dir, 'elsewhere')
    await fs.ensureDir(elsewhere)
    const wrote = await program(
      ['Demo BIOS.ova', '--to', 'bundle:b', '--state', 'state', '--plan-out', 'plan.json'],
      dir,
    )
    equal(wrote.code, 0, wrote.stderr)
    match(wrote.stdout, /The plan is in "plan\.json", and nothing else was changed\. Run it:/)
    equal(await fs.pathExists(join(dir, 'b')), false)
    equal(await fs.pathExists(state), false)
    const plan = await fs.readJson(file) as Plan
    deepEqual(plan.origin?.source, [ova])
    equal(plan.origin?.to, `bundle:${join(dir, 'b')}`)
    deepEqual(plan.origin?.found, { 'convert-disk-1': 'would' })
    const run = () => program(['--plan', file, '--yes', '--json'], elsewhere)
    const { code, stdout, stderr } = await run()
    equal(code, 0, stderr)
    deepEqual(JSON.parse(stdout.trim().split('\n').at(-1) ?? '').outcome, 'done')
    const { already: _, ...made } = (await fs.readJson(join(dir, 'b', 'plan.json'))).steps[1]
    deepEqual(made, plan.steps[1])
    deepEqual(await fs.readdir(join(state, 'runs')).then(({ length }) => length), 1)
    deepEqual(await fs.readdir(elsewhere), [])
    const again = await run()
    deepEqual(JSON.parse(again.stdout.trim().split('\n').at(-1) ?? '').outcome, 'same')
  },
)

plans('is not run where its source has changed, and says what', async ({ dir, state, file }) => {
  const { vbox } = await demo('bios', dir)
  await run({ source: [vbox], to: `bundle:${join(dir, 'b')}`, state, planOut: file })
  await fs.appendFile(vbox, '\n')
  await rejects(
    run({ plan: file }),
    /its source has changed since it was made: "[^"]+\.vbox" had \d+ bytes and has \d+\. Make it anew: /,
  )
  equal(await fs.pathExists(join(dir, 'b')), false)
  equal(await fs.pathExists(state), false)
})

plans('is not run where somebody has edited it', async ({ dir, state, file }) => {
  const { ova } = await demo('bios', dir)
  await run({ source: [ova], to: `bundle:${join(dir, 'b')}`, state, planOut: file })
  const text = await fs.readFile(file, 'utf8')
  const edited = async (change: (plan: Plan) => void) => {
    const plan = JSON.parse(text) as Plan
    change(plan)
    await fs.writeJson(file, plan)
    return await failure({ plan: file })
  }
  match(
    await edited(({ steps: [, step] }) =>
      Object.assign(step?.options ?? {}, { to: '/etc/passwd' })
    ),
    /its contents do not fit its key: \/steps\/convert-disk-1\/options\/to was "\/etc\/passwd" and is /,
  )
  match(await edited(({ steps }) => steps.reverse()), /do not fit its key: \/order\/0 was /)
  match(
    await edited((plan) => plan.key = '0'.repeat(64)),
    /not what would be planned now: \/key does not fit/,
  )
  match(
    await edited(({ origin }) => Object.assign(origin?.wishes ?? {}, { memory: 2 ** 30 })),
    /not what would be planned now: \/vm\/memory was 268435456 and is 1073741824/,
  )
  // all that is wrong, not the first
  const all = await edited((plan) => {
    Object.assign(plan, { more: 1, name: 7 })
    Object.assign(plan.steps[0] ?? {}, { task: 'rm' })
    Object.assign(plan.steps[2]?.options ?? {}, { 'a/b': '' })
    Object.assign(plan.origin?.wishes ?? {}, { credential: 'secret' })
  })
  for (
    const part of [
      '/more is not known',
      '/name must be string',
      '/steps/0/task must be equal to one of the allowed values: ',
      '/steps/2/options/a~1b is not known',
      '/origin/wishes/credential is not known',
    ]
  ) ok(all.includes(part), `${part}: ${all}`)
  match(await edited((plan) => delete plan.origin), /it does not say what it was made of/)
  match(
    await edited((plan) => Object.assign(plan, { version: 2 })),
    /its version is 2, and this kit has version 1/,
  )
  equal(await fs.pathExists(join(dir, 'b')), false)
})

plans('is refused where it is none', async ({ dir, file }) => {
  const cases: [string, RegExp][] = [
    ['{"a": 1}', /it is no plan/],
    ['null', /it is no plan/],
    ['{"version": 1', /it is not JSON/],
    [' '.repeat(5 << 20), /it has 5242880 bytes, and no plan has more than 4194304/],
  ]
  for (const [text, why] of cases) {
    await fs.writeFile(file, text)
    const message = await failure({ plan: file })
    match(message, /^Cannot run the plan "/)
    match(message, why)
  }
  match(await failure({ plan: join(dir, 'none') }), /there is no such file/)
  match(await failure({ plan: dir }), /it is no file/)
})

plans('stands for all options, and for none beside', async ({ dir, state, file }) => {
  const { ova } = await demo('bios', dir)
  const to = `bundle:${join(dir, 'b')}`
  await run({ source: [ova], to, state, cpus: 3, planOut: file })
  const { code, stderr } = await program(
    ['x.ova', '--plan', file, '--host-ip', '10.0.0.1/24', '--no-start'],
    dir,
  )
  equal(code, 1)
  match(
    stderr.replaceAll('\n', ' '),
    /Cannot run the plan ".+" with a source, --host-ip, --start: it says all that is done/,
  )
  match(await failure({ plan: file, prepare: 'guestcontrol' }), /with --prepare/)
  match(
    await failure({ source: [ova], to, state, prepare: 'guestcontrol', planOut: file }),
    /Cannot write the plan down: .+ run again without --prepare/,
  )
  // what the command line gives unasked, and where the journal is to be, say nothing else
  const other = join(dir, 'other-state')
  await run({ plan: file, generation: 'auto', format: 'vhdx', start: true, state: other })
  equal((await fs.readJson(join(dir, 'b', 'plan.json'))).vm.cpus, 3)
  equal((await fs.readdir(join(other, 'runs'))).length, 1)
})

plans('replaces a plan, and nothing else', async ({ dir, state, file }) => {
  const { ova } = await demo('bios', dir)
  const options = { source: [ova], to: `bundle:${join(dir, 'b')}`, state }
  await fs.writeFile(file, '{"mine": true}')
  match(
    await failure({ ...options, nat: true, planOut: file }),
    // with all else that is in the way
    /Cannot use --nat alone[^]+Cannot write the plan to ".+": what is there is no plan\. Name another/,
  )
  equal(await fs.readFile(file, 'utf8'), '{"mine": true}')
  match(
    await failure({ ...options, planOut: join(dir, 'none', 'plan.json') }),
    /there is no folder ".+none"/,
  )
  await fs.remove(file)
  await run({ ...options, planOut: file })
  await run({ ...options, name: 'other', planOut: file })
  equal((await fs.readJson(file)).name, 'other')
  deepEqual((await fs.readdir(dir)).filter((name) => name.endsWith('.partial')), [])
})

plans('is in a bundle, too, and makes one elsewhere no more', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  await run({ source: [ova], to: `bundle:${join(dir, 'b')}`, state })
  equal(await run({ plan: join(dir, 'b', 'plan.json') }), 'same')
  await fs.move(join(dir, 'b'), join(dir, 'c'))
  equal(await run({ plan: join(dir, 'c', 'plan.json') }), 'done')
  ok(await fs.pathExists(join(dir, 'b', 'plan.json')))
})

plans('goes into a scheduled job, which asks nobody', async ({ dir, file }) => {
  await fs.writeFile(file, '{}')
  let said = ''
  const ps: PowerShell = (_, ...values) => {
    said = values.join('\n')
    return Promise.reject(new Error('nobody is asked'))
  }
  const job = { by: 'windows', recipe: 'migrate', at: '2099-01-01T03:00' } as const
  await rejects(addSchedule({ ...job, args: ['--plan', 'plan.json'], folder: dir }, ps))
  match(said, /migrate\.ts --yes --state=\S+ --plan \S+plan\.json/)
  ok(said.includes(`--plan ${file}`), said)
})

plans('has a schema that knows each task, and takes plans of all targets', () => {
  const known = Object.keys(schema.$defs.options).sort()
  deepEqual(known, Object.keys(tasks).sort(), 'docs/plan.schema.json: $defs/options')
  deepEqual(schema.$defs.step.properties.task.enum.toSorted(), known)
  deepEqual(
    schema.$defs.step.allOf.map((part: { then: unknown }) => JSON.stringify(part.then)).sort(),
    known.map((task) => JSON.stringify({ properties: { options: ref(task) } })),
  )
  const valid = new Ajv2020({ allErrors: true }).compile(schema)
  const made = new Set<string>()
  for (const target of TARGETS) {
    for (const wishes of [{}, ALL, { ...ALL, guestIp: undefined, pin: true }]) {
      for (const storage of [undefined, 'D:\\VMs']) {
        const asked = { ...wishes, storage }
        const { plan } = makePlan(VM, DISKS, asked, target)
        plan.origin = {
          source: ['web'],
          to: 'local',
          state: '/state',
          wishes: asked,
          files: [{ path: '/x', size: 1, modified: DISKS[0]?.modified ?? '', sha256: plan.key }],
        }
        const read = JSON.parse(JSON.stringify(plan))
        ok(valid(read), JSON.stringify(valid.errors, null, 2))
        for (const { task } of plan.steps) made.add(task)
      }
    }
  }
  deepEqual([...made].sort(), known)
})

needs(plans, 'pwsh')(
  'is not run where its host has changed, and goes on where it was stopped',
  async ({ dir, state, file }) => {
    const { ova } = await demo('bios', dir)
    const host = await simulatedHost()
    try {
      const wanted = { internal: 'Static-NAT', hostIp: '192.168.56.1/24', start: false }
      const to = { to: 'local', storage: join(dir, 'vms') }
      const before = await host.text()
      await run({ source: [ova], ...to, state, ...wanted, planOut: file }, host)
      equal(await host.text(), before)
      const { origin } = await fs.readJson(file) as Plan
      equal(origin?.found?.['create-internal-switch'], 'would')
      equal(origin?.found?.['set-static-ip'], 'unknown')
      // somebody makes a switch meanwhile
      await host.ps`$null = New-VMSwitch -Name 'Static-NAT' -SwitchType Internal; '{}'`
      const made = await host.text()
      match(
        await failure({ plan: file }, host),
        /its host has changed since it was made: "Make the internal switch "Static-NAT"" was to be done then, and was already so now/,
      )
      equal(await host.text(), made)
      await host.change((now) => {
        for (const key of Object.keys(now)) delete now[key]
        Object.assign(now, JSON.parse(before))
      })
      // another folder for disks, where none was asked for
      const other = join(dir, 'other.json')
      await run({ source: [ova], to: 'local', state, planOut: other }, host)
      await host.change((now) => now.host.vhdPath = join(dir, 'elsewhere'))
      match(
        await failure({ plan: other }, host),
        /not what would be planned now: \/steps\/check-host\/options\/disk\/0 was /,
      )
      // what its own run has done by now is no change
      const stop = new AbortController()
      const screen = (event: RunEvent) => {
        if (event.event !== 'step' || event.state !== 'done') return
        if (event.step === 'create-internal-switch') stop.abort()
      }
      await rejects(
        migrate({ plan: file }, { screen, signal: stop.signal, host: () => lent(host) }),
        /^Stopped: Stopped\. Run the same command again to go on/,
      )
      equal(await run({ plan: file }, host), 'done')
      equal((await host.state()).vms[0].name, 'Demo BIOS')
      equal((await fs.readdir(join(state, 'runs'))).length, 1)
      equal(await run({ plan: file }, host), 'same')
    } finally {
      await host.close()
    }
  },
)

plans.run()

const ALL = {
  enableHyperv: true,
  name: 'web',
  cpus: 2,
  memory: 2 ** 30,
  generation: 'auto' as const,
  format: 'vhdx' as const,
  external: 'x',
  adapter: 'Wi-Fi',
  share: false,
  guard: true,
  revertAfter: 90,
  probe: ['a:1'],
  internal: 'y',
  hostIp: '10.0.0.1/24',
  nat: true,
  guestIp: '10.0.0.2',
  via: 'kvp' as const,
  nested: true,
  start: true,
}
const HOST = { host: {}, switches: [], adapters: [] } as unknown as CheckHostResult
const TARGETS: Target[] = [
  { kind: 'local', folder: 'C:\\VMs', host: HOST },
  { kind: 'ssh', url: 'ssh://a@b', folder: 'C:\\VMs', host: HOST, stage: '/stage' },
  { kind: 'bundle', dir: '/b' },
]
const FORWARD = {
  name: 'web',
  protocol: 'tcp' as const,
  hostIp: '',
  hostPort: 8080,
  guestIp: '',
  guestPort: 80,
}
const NIC = { cableConnected: true, model: '82540EM', forwards: [FORWARD] }
const VM: VmDescription = {
  kind: 'virtualbox',
  name: 'web',
  settings: '/x.vbox',
  hardwareUuid: '3b7c9f52-61d8-4e0a-9c47-0d5be1a28f10',
  cpus: 2,
  memory: 2 ** 31,
  firmware: 'efi',
  secureBoot: true,
  tpm: true,
  osType: 'Windows10_64',
  guest: 'windows',
  disks: [
    { path: '/x.ova', member: 'x.vmdk', format: 'VMDK', chain: [], encrypted: false },
    { path: '/y.vdi', format: 'VDI', chain: [], encrypted: false },
  ],
  removable: [],
  dvds: [{}],
  serialPorts: [{ port: 2, mode: 'pipe', path: 'com2', server: true }],
  sharedFolders: [],
  nics: [{ slot: 0, mac: '080027000001', attachment: 'nat', ...NIC }],
  snapshots: [],
  warnings: [],
}
const WINDOWS = { windows: { version: '10.0' } }
const DISKS = [0, 1].map(() => ({
  format: 'vmdk',
  variant: 'streamOptimized',
  virtualSize: 2 ** 30,
  allocatedSize: 2 ** 20,
  partitionTable: 'gpt',
  partitions: [],
  volumes: [WINDOWS],
  boots: 'uefi',
  modified: '2026-01-01T00:00:00.000Z',
})) as unknown as Disks

function ref(task: string): { $ref: string } {
  return { $ref: `#/$defs/options/${task}` }
}

async function run(options: MigrateOptions, host?: SimulatedHost): Promise<string> {
  return await migrate(options, { screen: () => {}, ...(host && { host: () => lent(host) }) })
}

async function failure(options: MigrateOptions, host?: SimulatedHost): Promise<string> {
  let message = ''
  await rejects(run(options, host), (error: Error) => (message = error.message) !== '')
  return message
}

/** The test's host, which a recipe may use but not close. */
function lent({ ps, using }: SimulatedHost) {
  const close = () => Promise.resolve()
  return { ps, using, close, here: (path: string) => Promise.resolve(path) }
}

function program(args: string[], cwd: string) {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const all = [...runtime, join(root, 'recipes', 'migrate.ts'), ...args]
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      process.execPath,
      all,
      { cwd, env: { ...process.env, FORCE_COLOR: '0' } },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}
