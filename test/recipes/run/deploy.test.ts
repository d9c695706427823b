/** Deploy.ps1 of a bundle, run by PowerShell on a simulated host. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../../recipes/migrate.ts'
import { needs } from '../../needs.ts'
import { comparable, quickGuests, type SimulatedHost, simulatedHost } from '../../simulated-host.ts'
import { analyze } from '../../tasks/analyze.ts'

const HOSTILE = 'Bob’s "VM"; $(calc) --no-guard 桥接'

/** Everything a bundle can be asked for at once. */
const ALL: Partial<MigrateOptions> = {
  external: '桥接',
  adapter: 'Wi-Fi',
  internal: 'Static-NAT',
  hostIp: '192.168.56.1/24',
  nat: true,
  guestIp: '192.168.56.191',
  nested: true,
  cpus: 2,
  memory: '512MB',
}

const deploys = suite<{ host: SimulatedHost; bundle: string; state: string }>('Deploy.ps1')
const deploying = needs(deploys, 'pwsh')

deploys.before.each(async (context) => {
  context.host = await simulatedHost()
  context.bundle = join(context.host.dir, 'b')
  await context.host.change(quickGuests)
  context.state = join(context.host.dir, 'state')
})
deploys.after.each(({ host }) => host.close())

deploying(
  'makes the VM as described, and changes nothing the second time',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, name: HOSTILE, state, ...ALL })
    const seed = await host.text()
    const dry = await deploy(host, bundle, '-DryRun')
    equal(dry.code, 0, dry.stderr)
    equal(await host.text(), seed)
    const first = await deploy(host, bundle)
    equal(first.code, 0, first.stderr)
    match(first.stdout, /is Running/)
    const [vm] = (await host.state()).vms
    equal(vm.name, HOSTILE)
    const after = await host.text()
    const second = await deploy(host, bundle)
    equal(second.code, 0, second.stderr)
    match(second.stdout, /Nothing to do: everything is already so/)
    equal(await host.text(), after)
  },
)

deploying('has no syntax that Windows PowerShell 5.1 lacks', async ({ host, bundle, state }) => {
  const { ova } = await demo('bios', host.dir)
  await run({ source: [ova], to: `bundle:${bundle}`, name: HOSTILE, state, ...ALL })
  deepEqual(await analyze(host.ps, bundle), [])
  // Windows PowerShell reads a script without the mark in the country's old code page
  equal((await fs.readFile(join(bundle, 'Deploy.ps1'), 'utf8')).codePointAt(0), 0xfeff)
})

deploying('refuses a disk that is not the one that was packed', async ({ host, bundle, state }) => {
  const { ova } = await demo('bios', host.dir)
  await run({ source: [ova], to: `bundle:${bundle}`, state })
  const [disk = ''] = await fs.readdir(join(bundle, 'disks'))
  await fs.appendFile(join(bundle, 'disks', disk), 'x')
  const before = await host.text()
  const { code, stderr } = await deploy(host, bundle)
  equal(code, 1)
  match(stderr, /it is not the file that was packed \(SHA-256 differs\)/)
  equal(await host.text(), before)
})

deploying(
  'says so where rights are missing, and changes nothing',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, state })
    await host.change((state) => state.denied = true)
    const before = await host.text()
    const { code, stderr } = await deploy(host, bundle)
    equal(code, 1)
    match(stderr, /Let an administrator run: Add-LocalGroupMember/)
    equal(await host.text(), before)
  },
)

deploying(
  'copies the disks to the folder that --storage names',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    const storage = join(host.dir, 'storage')
    await run({ source: [ova], to: `bundle:${bundle}`, storage, state })
    const { code, stderr } = await deploy(host, bundle)
    equal(code, 0, stderr)
    equal((await fs.readdir(storage)).length, 1)
    equal((await deploy(host, bundle)).stdout.includes('Nothing to do'), true)
  },
)

deploying(
  'takes back what it changed, the last first, and goes on after a failure',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, name: HOSTILE, state, ...ALL })
    const before = await host.state()
    equal((await deploy(host, bundle, '-Undo')).stdout.includes('Nothing to take back'), true)
    await host.change((state) => state.faults = [{ cmdlet: 'Set-VMProcessor', times: 1 }])
    const failed = await deploy(host, bundle)
    equal(failed.code, 1)
    match(failed.stderr, /Mend that and run again: .* Or take back what was done: -Undo/)
    await host.change((state) => delete state.faults)
    const done = await deploy(host, bundle)
    equal(done.code, 0, done.stderr)
    const made = await host.text()
    const dry = await deploy(host, bundle, '-Undo', '-DryRun')
    match(dry.stdout, /would undo {2}Start the VM/)
    equal(await host.text(), made)
    const undone = await deploy(host, bundle, '-Undo')
    equal(undone.code, 0, undone.stderr)
    match(undone.stdout, /undone {6}Start the VM[^]*undone {6}Make the external switch/)
    const after = await host.state()
    deepEqual(after.vms, before.vms)
    deepEqual(after.switches, before.switches)
    const log = await fs.readFile(join(bundle, 'Deploy.log'), 'utf8')
    match(log, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d undone {6}Start the VM/m)
    const again = await deploy(host, bundle)
    equal(again.code, 0, again.stderr)
  },
)

deploying(
  'takes what differs by host as parameters, whatever characters they have',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...ALL })
    const storage = join(host.dir, "it's “here” $(1)")
    const log = join(host.dir, 'other.log')
    const given = [
      '-Storage',
      storage,
      '-ExternalSwitch',
      'Bob’s $(net)',
      '-InternalSwitch',
      'in`ner',
    ]
    const { code, stdout, stderr } = await deploy(
      host,
      bundle,
      ...given,
      '-Adapter',
      'Ethernet',
      '-Log',
      log,
    )
    equal(code, 0, stderr)
    match(stdout, /Make the external switch "Bob’s \$\(net\)" on "Ethernet"/)
    const { vms: [vm], switches } = await host.state()
    const names = switches.map(({ name }: { name: string }) => name)
    ok(names.includes('Bob’s $(net)') && names.includes('in`ner') && !names.includes('桥接'))
    ok(JSON.stringify(vm).includes(JSON.stringify(storage).slice(1, -1)))
    equal((await fs.readdir(storage)).length, 1)
    match(await fs.readFile(log, 'utf8'), /done {8}Start the VM/)
    ok(!await fs.pathExists(join(bundle, 'Deploy.log')))
  },
)

const EXTERNAL: Partial<MigrateOptions> = { external: '桥接', adapter: 'Wi-Fi' }

deploying(
  'pain 18: changes the host’s network and takes that back under the guard, of which nothing is left',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...EXTERNAL })
    const before = await host.state()
    const done = await deploy(host, bundle)
    equal(done.code, 0, done.stderr)
    deepEqual(await guards(host), ['Register-ScheduledTask', 'Start-ScheduledTask', 'New-VMSwitch'])
    deepEqual(await traces(host), [])
    const undone = await deploy(host, bundle, '-Undo')
    equal(undone.code, 0, undone.stderr)
    deepEqual((await guards(host)).slice(3), [
      ...['Register-ScheduledTask', 'Start-ScheduledTask', 'Remove-VMSwitch'],
    ])
    deepEqual(await traces(host), [])
    deepEqual((await host.state()).switches, before.switches)
  },
)

deploying(
  'pain 18: is taken back by the host when it is killed before it confirms, and says so next time',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...EXTERNAL })
    const { addresses, switches } = await host.state()
    // nothing listens there, so it is still testing when it is killed
    const given = command(bundle, '-RevertAfter', '5', '-Probe', '127.0.0.1:9')
    // the guard refuses nobody, as the undo without it does
    const connections = [{ local: '10.20.30.40:3389', remote: '10.20.9.9:50123' }]
    await host.change((state) => state.connections = connections)
    const deploying = spawn(given.file, given.args, { env: host.env, stdio: 'ignore' })
    await until(async () => (await host.state()).switches.length > switches.length)
    deploying.kill('SIGKILL')
    await until(async () => (await host.state()).switches.length === switches.length)
    await until(async () => (await traces(host)).length === 0)
    deepEqual(addressesOf(await host.state()), addressesOf({ addresses }))
    await host.change((state) => state.connections = [])
    const undone = await deploy(host, bundle, '-Undo')
    match(undone.stdout, /Nothing to take back/)
    // one that a run without the guard takes back, before it does the same again
    const other = spawn(given.file, command(bundle, '-Probe', '127.0.0.1:9').args, {
      ...{ env: host.env, stdio: 'ignore' },
    })
    await until(async () => (await host.state()).switches.length > switches.length)
    other.kill('SIGKILL')
    const again = await deploy(host, bundle, '-NoGuard')
    deepEqual(await traces(host), [])
    equal(again.code, 0, again.stderr)
    const last = await deploy(host, bundle, '-Undo')
    equal(last.code, 0, last.stderr)
    match(
      last.stdout,
      /At .* the host took back the change of the switch "桥接", which nobody confirmed/,
    )
  },
)

deploying(
  'takes a change back at once after which the network is not as good, and goes on without the test',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    // the plan's own words for the guard are those of the script, until others are given
    const probe = ['127.0.0.1:9', '127.0.0.1:10']
    const guard = { revertAfter: 5, probe }
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...EXTERNAL, ...guard })
    const { switches, vms } = await host.state()
    const { code, stderr } = await deploy(host, bundle)
    equal(code, 1)
    match(
      stderr,
      /^Cannot keep the change of the switch "桥接", and took it back: after it 127\.0\.0\.1:9 does not answer, 127\.0\.0\.1:10 does not answer\. Mend that, or do without the test\. Run again with: -NoGuard/,
    )
    const after = await host.state()
    deepEqual([after.switches, after.vms, after.tasks], [switches, vms, []])
    const done = await deploy(host, bundle, '-NoGuard')
    equal(done.code, 0, done.stderr)
    equal((await guards(host)).filter((cmdlet) => cmdlet === 'Register-ScheduledTask').length, 1)
  },
)

deploying(
  'does the switch again where the undo of it is killed before it confirms',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...EXTERNAL })
    equal((await deploy(host, bundle)).code, 0)
    const { switches } = await host.state()
    const given = command(bundle, '-Undo', '-RevertAfter', '5', '-Probe', '127.0.0.1:9')
    const undoing = spawn(given.file, given.args, { env: host.env, stdio: 'ignore' })
    await until(async () => (await host.state()).switches.length < switches.length)
    undoing.kill('SIGKILL')
    await until(async () => (await host.state()).switches.length === switches.length)
    await until(async () => (await traces(host)).length === 0)
    const undone = await deploy(host, bundle, '-Undo')
    equal(undone.code, 0, undone.stderr)
    equal((await host.state()).switches.length, switches.length - 1)
  },
)

deploying(
  'takes back what a run did that was killed in the middle of a step, and goes on from there',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    const storage = join(host.dir, 'storage')
    const { guestIp: _, ...all } = ALL
    await run({ source: [ova], to: `bundle:${bundle}`, state, storage, ...all })
    const seed = await host.text()
    const fault = `${host.env.SIMULATED_HOST}.fault`
    const killed = async (change: number) => {
      await fs.writeFile(fault, `dead ${change}`)
      const { code, stderr } = await deploy(host, bundle, '-NoGuard')
      equal(code, 1)
      match(stderr, /PowerShell is dead by now/)
      await fs.remove(fault)
    }
    const look = async (words: string) => {
      const { guests: _, ...after } = await host.state()
      const { guests: __, ...before } = JSON.parse(seed)
      deepEqual(comparable(after), comparable(before), words)
    }
    // in the middle of the host’s address and of the VM
    for (const change of [4, 7]) {
      await killed(change)
      const undone = await deploy(host, bundle, '-Undo', '-NoGuard')
      equal(undone.code, 0, undone.stderr)
      await look(`change ${change}`)
    }
    await killed(5)
    const done = await deploy(host, bundle, '-NoGuard')
    equal(done.code, 0, done.stderr)
    const undone = await deploy(host, bundle, '-Undo', '-NoGuard')
    equal(undone.code, 0, undone.stderr)
    await look('gone on with')
  },
)

deploying(
  'refuses times and probes that it cannot use, before anything is changed',
  async ({ host, bundle, state }) => {
    const { ova } = await demo('bios', host.dir)
    const probe = ['https://intranet.lan/a,b', 'a:1']
    await run({ source: [ova], to: `bundle:${bundle}`, state, ...EXTERNAL, probe })
    const before = await host.text()
    const dry = await deploy(host, bundle, '-DryRun')
    equal(dry.code, 0, dry.stderr)
    for (
      const [given, reason] of [
        [['-RevertAfter', '4'], /it is 5 to 3600 seconds/],
        [['-Probe', 'a:1,intranet'], /Cannot probe "a:1,intranet": it is a URL/],
        [['-Probe', 'a:1,b:65536'], /Cannot probe "b:65536": it is a URL/],
        // the second would be the folder of the disks
        [['-Probe', 'a:1', 'b:2'], /positional parameter .*b:2/],
        [['-Probe', 'https://user:secret@a/b'], /^Cannot probe an address with a user(?!.*secret)/],
      ] as const
    ) {
      const { code, stderr } = await deploy(host, bundle, ...given)
      equal(code, 1)
      match(stderr, reason)
      equal(await host.text(), before)
    }
  },
)

deploys.run()

async function run(options: MigrateOptions): Promise<void> {
  await migrate(options, { screen: () => {} })
}

function command(bundle: string, ...args: string[]): { file: string; args: string[] } {
  const script = join(bundle, 'Deploy.ps1')
  return {
    file: process.env.POWERSHELL || 'pwsh',
    args: ['-NoProfile', '-ExecutionPolicy', 'Bypass', '-File', script, ...args],
  }
}

function deploy({ env }: SimulatedHost, bundle: string, ...given: string[]) {
  const { file, args } = command(bundle, ...given)
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      file,
      args,
      { env },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}

/** The calls that guard the host's network and that change it. */
async function guards(host: SimulatedHost): Promise<string[]> {
  const calls = (await host.calls()).map(({ cmdlet }) => cmdlet)
  return calls.filter((cmdlet) =>
    /^(Register|Start)-ScheduledTask$|^(New|Remove)-VMSwitch$/.test(cmdlet)
  )
}

/** What is there of guards. */
async function traces({ env, state }: SimulatedHost): Promise<string[]> {
  const folder = join(String(env.ProgramData), 'vbox-to-hyperv')
  const names = await fs.readdir(folder)
  return [
    ...names.filter((name) => /^guard-[\da-f]/.test(name)),
    ...(await state()).tasks.map(({ name }: { name: string }) => name),
  ]
}

const addressesOf = ({ addresses }: { addresses: { address: string }[] }) =>
  addresses.map(({ address }) => address).filter((address) => !address.startsWith('fe80')).sort()

async function until(so: () => Promise<boolean>, seconds = 60): Promise<void> {
  const end = performance.now() + seconds * 1000
  while (!await so()) {
    ok(performance.now() < end, `not within ${seconds} s: ${so}`)
    await wait(100)
  }
}
