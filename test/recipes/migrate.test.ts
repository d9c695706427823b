import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { undo } from '../../recipes/undo.ts'
import { HostError } from '../../tasks/task.ts'
import { boots } from '../boot.ts'
import { needs } from '../needs.ts'
import { lent, quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const execute = promisify(execFile)
const root = join(import.meta.dirname as string, '..', '..')
const HOSTILE = 'Bob’s "VM"; $(calc) 桥接'

/** Everything the kit can be asked for at once. */
const ALL: MigrateOptions = {
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

const bundles = suite<{ dir: string; state: string }>('migrate to a bundle')

bundles.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'migrate-'))
  context.state = join(context.dir, 'state')
})
bundles.after.each(({ dir }) => fs.remove(dir))

bundles('packs the disks with their sums, the plan and one script', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  const { outcome, events } = await run({ source: [ova], to: `bundle:${join(dir, 'b')}`, state })
  equal(outcome, 'done')
  const names = (await fs.readdir(join(dir, 'b'))).sort()
  deepEqual(names, ['Deploy.ps1', 'SHA256SUMS', 'disks', 'plan.json'])
  const [disk = ''] = await fs.readdir(join(dir, 'b', 'disks'))
  match(disk, /\.vhdx$/)
  const hash = createHash('sha256').update(await fs.readFile(join(dir, 'b', 'disks', disk)))
  equal(
    await fs.readFile(join(dir, 'b', 'SHA256SUMS'), 'utf8'),
    `${hash.digest('hex')}  disks/${disk}\n`,
  )
  const plan = await fs.readJson(join(dir, 'b', 'plan.json'))
  equal(plan.version, 1)
  equal(plan.vm.generation, 1)
  ok(events.some(({ event }) => event === 'progress'))
})

bundles('chooses generation 2 for a disk that boots by UEFI', async ({ dir, state }) => {
  const { vbox } = await demo('uefi', dir)
  await run({ source: [vbox], to: `bundle:${join(dir, 'b')}`, state })
  equal((await fs.readJson(join(dir, 'b', 'plan.json'))).vm.generation, 2)
})

bundles('changes nothing the second time, and says so', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  const options = { source: [ova], to: `bundle:${join(dir, 'b')}`, state }
  await run(options)
  const before = await tree(join(dir, 'b'))
  const { outcome, events } = await run(options)
  equal(outcome, 'same')
  match(next(events), /^Nothing to do/)
  deepEqual(await tree(join(dir, 'b')), before)
})

bundles('refuses what another run is at work on, and names that', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  const options = { source: [ova], state }
  let second = ''
  const outcome = await migrate({ ...options, to: `bundle:${join(dir, 'b')}` }, {
    screen: () => {},
    agree: async () => {
      second = await failure({ ...options, to: `bundle:${join(dir, 'other')}` })
      // looking is free
      equal(
        (await run({ ...options, to: `bundle:${join(dir, 'c')}`, dryRun: true })).outcome,
        'dry-run',
      )
      return true
    },
  })
  equal(outcome, 'done')
  match(
    second,
    /^Cannot work on the VM "[^"]+": the migration of "[^"]+" has it \(process \d+, since /,
  )
  equal(await fs.pathExists(join(dir, 'other')), false)
  equal((await run({ ...options, to: `bundle:${join(dir, 'other')}` })).outcome, 'done')
})

bundles('makes a damaged bundle whole again', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  const options = { source: [ova], to: `bundle:${join(dir, 'b')}`, state }
  await run(options)
  const sums = await fs.readFile(join(dir, 'b', 'SHA256SUMS'), 'utf8')
  const disk = join(dir, 'b', sums.trim().slice(66))
  await fs.truncate(disk, 4096)
  equal((await run(options)).outcome, 'done')
  ok((await fs.stat(disk)).size > 4096)
})

bundles(
  'refuses a folder that holds something else, and leaves it alone',
  async ({ dir, state }) => {
    const { ova } = await demo('bios', dir)
    await fs.outputFile(join(dir, 'b', 'mine.txt'), 'mine')
    const to = join(dir, 'b')
    await rejects(run({ source: [ova], to: `bundle:${to}`, state }), {
      message: `Cannot write the bundle to "${to}": the folder holds something else. ` +
        'Name another by --to bundle:DIR, or remove it',
    })
    deepEqual(await fs.readdir(to), ['mine.txt'])
  },
)

bundles('changes nothing, nowhere, on a dry run', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  const before = await tree(dir)
  const { outcome, events } = await run({
    source: [ova],
    to: `bundle:${join(dir, 'b')}`,
    state,
    dryRun: true,
  })
  equal(outcome, 'dry-run')
  ok(events.some(({ event }) => event === 'plan'))
  deepEqual(await tree(dir), before)
})

bundles('says all that is in the way at once, before anything is made', async ({ dir, state }) => {
  const { vbox } = await demo('uefi', dir)
  const before = await tree(dir)
  const failed = await failure({
    source: [vbox],
    to: `bundle:${join(dir, 'b')}`,
    state,
    generation: 1,
    hostIp: '192.168.56.1/24',
    guestIp: '10.0.0.1',
  })
  match(failed, /Cannot make ".+" a VM of generation 1: its disk boots by UEFI/)
  match(failed, /Cannot use --host-ip alone/)
  match(failed, /Cannot give the guest 10\.0\.0\.1/)
  deepEqual(await tree(dir), before)
})

bundles(
  'refuses a name that Hyper-V does not take, before anything is made',
  async ({ dir, state }) => {
    const { ova } = await demo('bios', dir)
    const before = await tree(dir)
    for (const name of ['x'.repeat(101), 'a\u001b[2Jb']) {
      const to = `bundle:${join(dir, 'b')}`
      match(await failure({ source: [ova], to, state, name }), /^Cannot /)
    }
    deepEqual(await tree(dir), before)
  },
)

bundles('leaves nothing of a bundle whose disk cannot be read', async ({ dir, state }) => {
  const { vdi } = await demo('bios', dir)
  const size = (await fs.stat(vdi)).size
  await fs.truncate(vdi, size - 1024 * 1024)
  await rejects(run({ source: [vdi], to: `bundle:${join(dir, 'b')}`, generation: 1, state }))
  equal(await fs.pathExists(join(dir, 'b')), false)
})

bundles('is taken back with everything it made', async ({ dir, state }) => {
  const { ova } = await demo('bios', dir)
  await run({ source: [ova], to: `bundle:${join(dir, 'b')}`, state })
  await undo({ state }, { screen: () => {} })
  equal(await fs.pathExists(join(dir, 'b')), false)
  ok(await fs.pathExists(ova))
})

needs(bundles, 'qemu-img', 'qemu-system-x86_64')(
  'converts disks that equal their source and boot, by BIOS and by UEFI',
  async ({ dir, state }) => {
    for (const firmware of ['bios', 'uefi'] as const) {
      const { ova, vbox, vdi, line } = await demo(firmware, join(dir, firmware))
      for (const source of [ova, vbox]) {
        const to = join(dir, firmware, `out-${source === ova}`)
        await run({ source: [source], to: `bundle:${to}`, state })
        const disk = join(to, 'disks', (await fs.readdir(join(to, 'disks')))[0] as string)
        const { stdout } = await execute('qemu-img', [
          'compare',
          '-f',
          'vdi',
          '-F',
          'vhdx',
          vdi,
          disk,
        ])
        match(stdout, /Images are identical/)
        if (source === ova) match(await boots(disk, firmware, 'vhdx'), new RegExp(line))
      }
    }
    const { vdi, line } = await demo('bios', join(dir, 'bios'))
    const to = join(dir, 'vhd')
    await run({ source: [vdi], to: `bundle:${to}`, format: 'vhd', name: 'web', state })
    match(await boots(join(to, 'disks', 'web.vhd'), 'bios', 'vpc'), new RegExp(line))
  },
)

bundles.run()

const locals = suite<{ host: SimulatedHost; state: string }>('migrate to this machine')
const test = needs(locals, 'pwsh')

locals.before.each(async (context) => {
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
  context.state = join(context.host.dir, 'state')
})
locals.after.each(({ host }) => host.close())

const here = (host: SimulatedHost, state: string): MigrateOptions => ({
  to: 'local',
  storage: join(host.dir, 'disks'),
  state,
})

test('makes the VM as described', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const { outcome, events } = await run(
    { source: [ova], name: HOSTILE, ...here(host, state), ...ALL },
    host,
  )
  equal(outcome, 'done')
  const { vms: [vm], guests } = await host.state()
  equal(vm.name, HOSTILE)
  const { dhcp, addresses } = guests[HOSTILE].settings['Static-NAT']
  deepEqual([dhcp, addresses], [false, [{ address: '192.168.56.191', prefix: 24 }]])
  match(next(events), /The guest has 192\.168\.56\.191\/24, by its integration services\./)
})

test('changes nothing the second time, and says so', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const options = { source: [ova], ...here(host, state), ...ALL }
  await run(options, host)
  const before = await host.text()
  const { outcome, events } = await run(options, host)
  equal(outcome, 'same')
  match(next(events), /^Nothing to do/)
  equal(await host.text(), before)
})

test('leaves the host byte for byte as it was on a dry run', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const before = await host.text()
  const { events } = await run(
    { source: [ova], ...here(host, state), ...ALL, dryRun: true },
    host,
  )
  equal(await host.text(), before)
  equal(await fs.pathExists(state), false)
  equal(await fs.pathExists(join(host.dir, 'disks')), false)
  ok(events.some((event) => event.event === 'step' && event.state === 'would'))
})

test('asks on which adapter a switch is made that is not there, and for no other', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const asked: string[][] = []
  const ask = async (options: MigrateOptions) => {
    const events: RunEvent[] = []
    await migrate({ source: [ova], dryRun: true, ...here(host, state), ...options }, {
      screen: (event) => events.push(event),
      host: () => lent(host),
      pickAdapter: (adapters) => {
        asked.push(adapters.map(({ name, wifi }) => `${name}${wifi ? ', Wi-Fi' : ''}`))
        return Promise.resolve('Wi-Fi')
      },
    })
    return events.flatMap((event) => event.event === 'plan' ? event.plan.steps : [])
  }
  const steps = await ask({ external: '桥接' })
  deepEqual(asked, [['Wi-Fi, Wi-Fi', 'Ethernet']])
  ok(steps.some(({ title }) => title.startsWith('Make the external switch "桥接" on "Wi-Fi"')))
  await ask({ external: '桥接', adapter: 'Wi-Fi' })
  await ask({ internal: 'Static-NAT' })
  await host.ps`$null = New-VMSwitch -Name '桥接' -NetAdapterName 'Wi-Fi' -AllowManagementOS $true`
  await ask({ external: '桥接' })
  equal(asked.length, 1)
})

test('is taken back, last step first, the network under the guard', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const before = await host.state()
  await run({ source: [ova], ...here(host, state), ...ALL }, host)
  const told: string[] = []
  const screen = (event: { event: string; text?: string }) => {
    if (event.event === 'note') told.push(String(event.text))
  }
  const tools = { screen, host: () => lent(host) }
  // nothing answers there, as if the host were cut off without the switch
  await rejects(
    undo({ state, probe: ['127.0.0.1:9'], revertAfter: 5 }, tools),
    /^HostError: Cannot keep the change of the switch "桥接", and took it back: .+127\.0\.0\.1:9/,
  )
  const names = (await host.state()).switches.map(({ name }: { name: string }) => name)
  deepEqual(names.includes('桥接'), true)
  ok(!told.some((text) => /took back/.test(text)))
  await undo({ state }, tools)
  ok(told.some((text) => /^At .* took back .*, which was tested and failed$/.test(text)))
  const after = await host.state()
  deepEqual(after.vms, before.vms)
  deepEqual(after.switches, before.switches)
  deepEqual(after.nats, before.nats)
  deepEqual(await fs.readdir(join(host.dir, 'disks')).catch(() => []), [])
})

test('goes on after a step that failed, and undo takes back both runs', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const options = { source: [ova], ...here(host, state), ...ALL }
  const before = await host.state()
  await host.change((state) => {
    state.faults = [{
      cmdlet: 'New-VM',
      when: 'before',
      error: { id: 'OutOfMemory,Microsoft.HyperV.PowerShell.Commands.NewVM', message: 'no memory' },
    }]
  })
  await rejects(run(options, host), (error: Error) => {
    match(error.message, /no memory[\s\S]+Run the same command again/)
    ok(error.cause instanceof HostError && error.cause.line?.text.includes('New-VM'))
    match(error.cause.step ?? '', /^Make the VM /)
    return true
  })
  equal((await host.state()).vms.length, 0)
  await host.change((state) => delete state.faults)
  equal((await run(options, host)).outcome, 'done')
  await undo({ state }, { screen: () => {}, host: () => lent(host) })
  deepEqual((await host.state()).vms, before.vms)
  deepEqual((await host.state()).switches, before.switches)
})

test('refuses a VM of that name with other disks, before anything is written', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  await run({ source: [ova], name: 'web', ...here(host, state) }, host)
  const before = await host.text()
  const failed = await failure({
    source: [ova],
    name: 'web',
    ...here(host, state),
    storage: join(host.dir, 'other'),
  }, host)
  match(failed, /Cannot .*"web"/)
  equal(await host.text(), before)
  equal(await fs.pathExists(join(host.dir, 'other')), false)
})

test('refuses a file in the disk’s place that is not of this plan', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  await fs.outputFile(join(host.dir, 'disks', 'web.vhdx'), 'mine')
  const failed = await failure({ source: [ova], name: 'web', ...here(host, state) }, host)
  match(failed, /a file of that name is there/)
  equal(await fs.readFile(join(host.dir, 'disks', 'web.vhdx'), 'utf8'), 'mine')
})

needs(locals, 'pwsh', 'VBoxManage')(
  'migrates a VM that VirtualBox has, by its name',
  async ({ host, state }) => {
    const { vbox, name } = await demo('uefi', host.dir)
    const home = join(host.dir, 'vbox-home')
    const { VBOX_USER_HOME } = process.env
    process.env.VBOX_USER_HOME = home
    try {
      await execute('VBoxManage', ['registervm', vbox])
      await run({ source: [name], ...here(host, state) }, host)
      const [vm] = (await host.state()).vms
      equal(vm.name, name)
      equal(vm.generation, 2)
      await execute('VBoxManage', ['unregistervm', name])
    } finally {
      if (VBOX_USER_HOME === undefined) delete process.env.VBOX_USER_HOME
      else process.env.VBOX_USER_HOME = VBOX_USER_HOME
    }
  },
)

test('prints JSON lines and nothing else with --json, and tells its end by the exit code', async ({ host, state }) => {
  const { ova } = await demo('bios', host.dir)
  const args = [
    ova,
    '--to',
    'local',
    '--storage',
    join(host.dir, 'disks'),
    '--state',
    state,
    '--json',
  ]
  const done = await program(args, host.env)
  equal(done.code, 0, done.stderr)
  const events = done.stdout.trim().split('\n').map((line) => JSON.parse(line) as RunEvent)
  equal(events[0]?.event, 'plan')
  equal(events.at(-1)?.event, 'end')
  const failed = await program([join(host.dir, 'none.ova'), '--json'], host.env)
  equal(failed.code, 1)
  for (const line of failed.stdout.trim().split('\n')) JSON.parse(line)
})

locals.run()

const commands = suite<{ dir: string }>('the migrate command')

commands.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'migrate-'))
})
commands.after.each(({ dir }) => fs.remove(dir))

commands('reads options from a JSON file', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const config = join(dir, 'config.json')
  const options = {
    to: `bundle:${join(dir, 'b')}`,
    name: '007',
    cpus: 3,
    state: join(dir, 'state'),
  }
  await fs.writeFile(config, `\ufeff${JSON.stringify(options)}`)
  const { code, stderr } = await program([ova, '--config', config])
  equal(code, 0, stderr)
  const plan = await fs.readJson(join(dir, 'b', 'plan.json'))
  equal(plan.name, '007')
  equal(plan.vm.cpus, 3)
})

commands(
  'makes a bundle where there is no PowerShell with Hyper-V, and refuses local',
  async ({ dir }) => {
    const { ova } = await demo('bios', dir)
    const env = { ...process.env, POWERSHELL: 'no-such-powershell' }
    const args = [ova, '--name', 'web', '--state', join(dir, 'state')]
    const { code, stdout, stderr } = await program(args, env, dir)
    equal(code, 0, stderr)
    match(stdout, /There is no PowerShell with Hyper-V here/)
    ok(await fs.pathExists(join(dir, 'out', 'web', 'Deploy.ps1')))
    const refused = await program([...args, '--to', 'local'], env, dir)
    equal(refused.code, 1)
    match(refused.stderr, /^Cannot start PowerShell: no program "no-such-powershell" is on PATH/)
  },
)

commands('prints the plan that the README’s picture shows', async ({ dir }) => {
  const picture = await fs.readFile(join(root, 'docs', 'run.svg'), 'utf8')
  const [end = ''] = picture.match(/<g id="f\d+">(?!.*<g )[^]*$/m) ?? []
  const shown = [...end.matchAll(/<tspan[^>]*>([^<]*)<\/tspan>/g)].map(([, text]) => text).join(' ')
  const demo = join(root, 'fixtures', 'demo', 'demo-bios.ova')
  const { stdout } = await program([demo, '--to', 'bundle:out/demo', '--dry-run'], process.env, dir)
  const words = (text: string) => text.replaceAll(/\s+/g, ' ').trim()
  const [plan = ''] = stdout.split('\nwould do')
  match(plan, /^Move "Demo BIOS" to Hyper-V\n/)
  const now = words(plan).replace('out\\demo', 'out/demo') // the folder is written as the system writes it
  ok(words(shown).includes(now), 'not the plan of now. Run: npm run record')
})

commands('says what is wrong in a sentence, without a stack', async ({ dir }) => {
  const none = join(dir, 'none.vdi')
  const { code, stdout, stderr } = await program([none, '--to', `bundle:${join(dir, 'b')}`])
  equal(code, 1)
  equal(stdout, '')
  match(stderr, /none\.vdi/)
  ok(!/\n\s+at /.test(stderr), stderr)
  equal(await fs.pathExists(join(dir, 'b')), false)
})

// what sends SIGINT on Windows ends the process
const stopping = process.platform === 'win32' ? commands.skip : commands
stopping('stops at Ctrl-C, leaves no half-written disk and says how to go on', async ({ dir }) => {
  const child = await startLong(dir)
  // not child.kill: Deno then tells the signal as the end, whatever the child made of it
  const { code, stdout } = await followed(child, () => process.kill(child.pid as number, 'SIGINT'))
  equal(code, 130)
  match(stdout, /Stopped\. Run the same command again to go on, or take it back:\\n {2}npx zx /)
  const [run = ''] = await fs.readdir(join(dir, 'state', 'runs'))
  const name = run.replace('.jsonl', '')
  ok(stdout.includes(`recipes/undo.ts ${name} --state ${join(dir, 'state')}"`), stdout)
  await leavesNothingDone(join(dir, 'b'))
})

// Deno tells no program that nobody reads: it goes on to its end
if (!('Deno' in globalThis)) {
  stopping('stops likewise when nobody reads any more what it says', async ({ dir }) => {
    const child = await startLong(dir)
    const { code, stderr } = await followed(child, () => child.stdout?.destroy())
    equal(stderr, '')
    equal(code, 130)
    await leavesNothingDone(join(dir, 'b'))
    const [run = ''] = await fs.readdir(join(dir, 'state', 'runs'))
    match(await fs.readFile(join(dir, 'state', 'runs', run), 'utf8'), /"outcome":"stopped"/)
  })
}

stopping('ends at once at a second Ctrl-C, and says so', async ({ dir }) => {
  const child = await startLong(dir)
  const kill = () => {
    // a signal that waits is not sent a second time
    process.kill(child.pid as number, 'SIGTERM')
    process.kill(child.pid as number, 'SIGINT')
  }
  const { code, stderr } = await followed(child, kill)
  equal(code, 130)
  match(stderr, /^\nStopped at once, .+ Run the same command again to go on\n$/)
})

commands.run()

/** No disk is in a bundle; one that is half written has the checkpoint from which a run goes on. */
async function leavesNothingDone(bundle: string) {
  const there = await fs.pathExists(bundle)
  const files = there ? await fs.readdir(bundle, { recursive: true }) as string[] : []
  deepEqual(files.filter((name) => /\.vhdx?$/.test(name)), [])
  for (const name of files.filter((name) => name.endsWith('.partial'))) {
    ok(files.includes(name.replace(/partial$/, 'checkpoint')), `${files}`)
  }
}

/** A run of the command that has something to convert for a while. */
async function startLong(dir: string) {
  const source = join(dir, 'big.img')
  const chunk = Buffer.alloc(64 * 1024 ** 2, createHash('sha512').update('seed').digest())
  for (let n = 0; n < 8; n++) await fs.appendFile(source, chunk)
  const args = [source, '--generation', '1', '--to', `bundle:${join(dir, 'b')}`, '--json']
  const recipe = join(root, 'recipes', 'migrate.ts')
  return spawn(process.execPath, [...runtime(), recipe, ...args, '--state', join(dir, 'state')])
}

/** How a run ends that has something done to it when it has begun its first step. */
async function followed(child: ReturnType<typeof spawn>, act: () => void) {
  const code = new Promise((resolve) => child.once('exit', resolve))
  const [stdout, stderr] = ['', '']
  const said = { stdout, stderr }
  let done = false
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (data: string) => {
      said[name] += data
      if (done || !/"event":"step"[^\n]+"started"/.test(said.stdout)) return
      done = true
      act()
    })
  }
  return { code: await code, ...said }
}

async function run(options: MigrateOptions, host?: SimulatedHost) {
  const events: RunEvent[] = []
  const outcome = await migrate(options, {
    screen: (event) => events.push(event),
    ...(host && { host: () => lent(host) }),
  })
  return { outcome, events }
}

async function failure(options: MigrateOptions, host?: SimulatedHost): Promise<string> {
  let message = ''
  await rejects(run(options, host), (error: Error) => (message = error.message) !== '')
  return message
}

function next(events: RunEvent[]): string {
  const end = events.at(-1)
  return end?.event === 'end' ? end.next.join('\n') : ''
}

async function tree(dir: string): Promise<Record<string, number>> {
  const names = await fs.readdir(dir, { recursive: true }) as string[]
  const found: Record<string, number> = {}
  for (const name of names.sort()) {
    found[relative(dir, join(dir, name))] = (await fs.stat(join(dir, name))).mtimeMs
  }
  return found
}

function program(args: string[], env = process.env, cwd = root) {
  const recipe = join(root, 'recipes', 'migrate.ts')
  return output(process.execPath, [...runtime(), recipe, ...args], env, cwd)
}

function runtime(): string[] {
  return 'Deno' in globalThis ? ['run', '-A'] : []
}

function output(file: string, args: string[], env: NodeJS.ProcessEnv, cwd = root) {
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      file,
      args,
      { cwd, env: { ...env, FORCE_COLOR: '0' } },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}
