/** Migrations to a machine over SSH: a real sshd on loopback, whose PowerShell has the simulated host. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { Host } from '../../recipes/run/host.ts'
import { readJournals } from '../../recipes/run/journal.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { undo } from '../../recipes/undo.ts'
import { ConnectionError, openPowerShell, type PowerShell, script } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { type SshHost, sshHost, traffic } from '../ssh-host.ts'

const root = join(import.meta.dirname as string, '..', '..')
const MB = 1024 ** 2

interface Context {
  host: SimulatedHost
  ssh: SshHost
  /** A connection for all tests that need none of their own. */
  warm: (name: string) => Host
  state: string
  options: MigrateOptions
}

const remotes = suite<Context>('migrate over SSH')
const test = needs(remotes, 'sshd', 'ssh', 'ps', process.env.POWERSHELL || 'pwsh')

let count = 0

remotes.before(async (context) => {
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
  context.ssh = await sshHost(context.host.env)
  const opened = opener(context.ssh)(context.ssh.url)
  context.warm = () => ({ ...opened, close: () => Promise.resolve() })
})
remotes.before.each((context) => {
  const folder = join(context.host.dir, `${++count}`)
  context.state = join(folder, 'state')
  context.options = {
    to: context.ssh.url,
    storage: join(folder, 'disks'),
    name: `Bob’s "VM"; $(calc) 桥接 ${count}`,
    state: context.state,
  }
})
remotes.after(async ({ host, ssh }) => {
  await ssh?.close()
  await host?.close()
})

test('makes the VM there, changes nothing the second time, and takes it back', async ({ host, warm, state, options }) => {
  const { ova } = await demo('bios', host.dir)
  const before = await host.state()
  const all = { ...options, source: [ova], internal: 'Static-NAT', hostIp: '192.168.56.1/24' }
  const dry = await run({ ...all, dryRun: true }, warm)
  equal(dry.outcome, 'dry-run')
  deepEqual(await host.state(), before)
  equal(await fs.pathExists(state), false)

  const { outcome, events } = await run(all, warm)
  equal(outcome, 'done')
  ok(events.some((event) => event.event === 'progress' && event.step === 'send-disk-1'))
  const { vms } = await host.state()
  equal(vms[0].name, options.name)
  equal(vms[0].state, 'Running')
  const [disk = '', ...others] = await fs.readdir(options.storage as string)
  deepEqual(others, [])
  ok(has(vms[0], join(options.storage as string, disk)))
  // what was converted on the way is not kept twice
  deepEqual(await fs.readdir(state), ['runs'])

  const after = await host.text()
  equal((await run(all, warm)).outcome, 'same')
  equal(await host.text(), after)

  await undo({ state }, { screen: () => {}, host: warm })
  const last = await host.state()
  deepEqual([last.vms, last.switches, last.nats], [before.vms, before.switches, before.nats])
  equal(await fs.pathExists(options.storage as string), false)
})

test('takes back what it sent of a disk when the run is not gone on with', async ({ host, ssh, warm, state, options }) => {
  const source = join(host.dir, 'big.img')
  await fs.writeFile(source, randomFillSync(Buffer.alloc(48 * MB)))
  const stop = new AbortController()
  await rejects(
    run({ ...options, source: [source], generation: 1 }, opener(ssh), (event) => {
      if (event.event === 'progress' && event.step === 'send-disk-1') stop.abort()
    }, stop.signal),
    /Stopped\. Run the same command again to go on/,
  )
  await undo({ state }, { screen: () => {}, host: warm })
  deepEqual(await fs.readdir(options.storage as string), [])
  deepEqual(await fs.readdir(state), ['runs'])
  ok((await host.state()).vms.every(({ name }: Vm) => name !== options.name))
})

test('is a command, which refuses what is no host, and goes there once and once a step', async ({ host, ssh, options, state }) => {
  const { ova } = await demo('bios', host.dir)
  const { env, count } = await traffic(ssh)
  const program = (to: string) =>
    new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
      execFile(
        process.execPath,
        [
          ...('Deno' in globalThis ? ['run', '-A'] : []),
          join(root, 'recipes', 'migrate.ts'),
          ...[ova, `--to=${to}`, '--storage', options.storage as string, '--state', state, '--yes'],
        ],
        { env, cwd: host.dir },
        (error, stdout, stderr) =>
          resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
      )
    )
  const refused = await program('ssh://-oProxyCommand=calc')
  equal(refused.code, 1)
  match(refused.stderr, /^Cannot use "ssh:\/\/-oProxyCommand=calc" as a host/)
  const done = await program(ssh.url)
  equal(done.code, 0, done.stderr)
  match(done.stdout, new RegExp(`Target +Hyper-V on ${ssh.url}`))
  match(done.stdout, /Open its window: vmconnect 127\.0\.0\.1 "Demo BIOS"/)
  ok((await host.state()).vms.some(({ name }: Vm) => name === 'Demo BIOS'))
  const [journal] = await readJournals(state)
  const steps = journal?.plan.steps.filter(({ where }) => where === 'host').length ?? 0
  const { trips, scripts, ...rest } = await count()
  deepEqual(rest, { connections: 1, starts: 1 })
  // more are what is asked before the plan is shown (4), the data of the disk, what create-vm would change
  // (nothing may be asked in the same breath as a disk that is sent), and whether all is as planned
  equal(trips, steps + 7)
  ok(scripts > trips + 3, `${scripts} scripts in ${trips} trips`)
})

test('goes on after the link broke while a disk was sent', async ({ host, ssh, state, options }) => {
  const source = join(host.dir, 'big.img')
  await fs.writeFile(source, randomFillSync(Buffer.alloc(128 * MB)))
  const all = { ...options, name: 'web', source: [source], generation: 1 as const, start: false }
  let cut: Promise<void> | undefined
  await rejects(
    run(all, opener(ssh), (event) => {
      const sending = event.event === 'progress' && event.step === 'send-disk-1'
      if (sending && event.done > 40 * MB && event.done < event.total) cut ??= ssh.cut()
    }),
    (error: Error) => {
      ok(error.cause instanceof ConnectionError)
      match(
        error.message,
        /was lost in the middle of "Send the disk to .+"[\s\S]+Run the same command again to go on/,
      )
      return true
    },
  )
  await cut
  const disk = join(options.storage as string, 'web.vhdx')
  ok(await fs.pathExists(`${disk}.partial`))
  const scripts: string[] = []
  const { events, outcome } = await run(all, opener(ssh, scripts))
  equal(outcome, 'done')
  const steps = events.flatMap((event) =>
    event.event === 'step' ? [`${event.step} ${event.state}`] : []
  )
  ok(steps.includes('convert-disk-1 same'), 'it converts again')
  // what has arrived needs no room again, of the 192 MB that are asked for
  const needed = scripts.flatMap((text) => text.match(/\$space = (\d+)/)?.[1] ?? []).map(Number)
  ok(needed.some((space) => space > 0 && space <= 176 * MB), `it asks for ${needed} bytes`)
  const [journal = ''] = await fs.readdir(join(state, 'runs'))
  const lines = (await fs.readFile(join(state, 'runs', journal), 'utf8')).split('\n').filter(
    Boolean,
  )
  const sent =
    lines.map((line) => JSON.parse(line)).find(({ entry, step }) =>
      entry === 'done' && step === 'send-disk-1'
    ).result
  ok(sent.sent < sent.size - 16 * MB, `it sends all again: ${sent.sent} of ${sent.size}`)
  ok((await host.state()).vms.some((vm: Vm) => has(vm, disk)))
  deepEqual(await fs.readdir(options.storage as string), ['web.vhdx'])
})

remotes.run()

interface Vm {
  name: string
  drives: { path: string }[]
}

function has({ drives }: Vm, disk: string): boolean {
  return drives.some(({ path }) => path === disk)
}

async function run(
  options: MigrateOptions,
  host: (name: string) => Host,
  hear: (event: RunEvent) => void = () => {},
  signal?: AbortSignal,
) {
  const events: RunEvent[] = []
  const outcome = await migrate(options, {
    screen: (event) => {
      events.push(event)
      hear(event)
    },
    host,
    signal,
  })
  return { outcome, events }
}

/** As the recipe opens a host, but with the test's own ssh. */
function opener({ env }: SshHost, scripts: string[] = []): (name: string) => Host {
  return (name) => {
    const opened = openPowerShell({ host: name, env })
    const ps: PowerShell = (pieces, ...values) => {
      scripts.push(script(pieces, ...values))
      return opened.ps(pieces, ...values)
    }
    return { ...opened, ps, here: (path) => Promise.resolve(path) }
  }
}
