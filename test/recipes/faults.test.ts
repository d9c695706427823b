/**
 * Every call of the host in a migration goes wrong in each way: it fails, it fails and has made its change,
 * it hangs until its time limit stops it, PowerShell is dead, and the answer is lost - before it has done
 * anything, and at each change that it makes there. `undo` brings the host back each time.
 */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { deepEqual, equal, ok } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { Host } from '../../recipes/run/host.ts'
import { readJournals } from '../../recipes/run/journal.ts'
import { undo } from '../../recipes/undo.ts'
import { HostError, type PowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { comparable, quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const execute = promisify(execFile)

interface Context {
  dir: string
  options: MigrateOptions
  host: SimulatedHost
  seed: string
}

const faults = suite<Context>('faults')

faults.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'faults-'))
  const { ova } = await demo('bios', context.dir)
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
  context.seed = await context.host.text()
  await fs.ensureDir(join(context.dir, 'run', 'vms'))
  context.options = {
    source: [ova],
    to: 'local',
    state: join(context.dir, 'run', 'state'),
    storage: join(context.dir, 'run', 'vms'),
    external: '桥接',
    adapter: 'Wi-Fi',
    internal: 'Static-NAT',
    hostIp: '192.168.56.1/24',
    nat: true,
    guestIp: '192.168.56.191',
    nested: true,
  }
})
faults.after.each(async ({ dir, host }) => {
  await host?.close()
  if (dir) await fs.remove(dir)
})

const test = needs(faults, 'pwsh')

const KINDS = ['error', 'half', 'hang', 'dead'] as const

test('are undone, wherever a run is cut off', async ({ dir, host, options, seed }) => {
  const run = join(dir, 'run')
  const aside = join(dir, 'aside')
  const file = join(host.dir, 'host.json.fault')
  let calls = 0
  const count = { error: 0, half: 0, hang: 0, dead: 0, lost: 0 }
  const seen = new Set<string>()
  /** Takes back what has been done by now, looks, and goes on where it was. */
  const takeBack = async (words: string) => {
    // where nothing has changed, neither there nor in the journal, undo has nothing else to do
    const journals = await Promise.all(
      (await readJournals(join(run, 'state'))).map(({ file }) => fs.readFile(file, 'utf8')),
    )
    const state = numbered(JSON.stringify([await host.text(), journals]))
    if (seen.has(state)) return
    seen.add(state)
    await fs.copy(run, aside)
    await fs.remove(join(run, 'state', 'locks')) // the run is dead to who takes it back
    const now = await snapshot(host, join(dir, 'now'))
    const tools = { screen: () => {}, host: () => through(host, (_, ps) => ps) }
    // a guard would be a PowerShell of its own each time, and has tests of its own
    await undo({ state: options.state, guard: false }, tools).catch((error: Error) => {
      // nothing was begun yet, or what was begun changes nothing
      if (!/no run is in|the runs are/.test(error.message)) {
        throw new Error(`${words}: ${error.message}`, { cause: error })
      }
    })
    const look = async () => {
      // what a guest was told is in its own disk, which is gone
      const { guests: _, ...state } = await host.state()
      const { guests: __, ...before } = JSON.parse(seed)
      deepEqual(comparable(state), comparable(before))
    }
    // a guard that sees its change confirmed, or gone, goes by itself a moment later
    for (const began = performance.now();;) {
      const failure = await look().catch((error: Error) => error)
      if (!failure) break
      if (performance.now() - began < GONE && (await host.state()).tasks.length > 0) {
        await delay(100)
      } else throw new Error(`${words}: ${failure.message}`, { cause: failure })
    }
    deepEqual(await fs.readdir(join(run, 'vms')), [], words)
    await now()
    await fs.remove(run)
    await fs.move(aside, run)
  }
  let last: Promise<unknown> = Promise.resolve()
  // one after the other, as PowerShell does, whatever is asked meanwhile
  const inTurn = (by: (step: string, using: SimulatedHost['using']) => PowerShell) =>
    through(host, (step, _, using) => (pieces, ...values) => {
      const answer = last.then(() => by(step, using)(pieces, ...values))
      last = answer.catch(() => {})
      return answer
    })
  const cut = inTurn((step, using) => async (pieces, ...values) => {
    calls++
    const before = await snapshot(host, join(dir, 'before'))
    /** How many changes the call makes, which the first way of failing finds out. */
    let changes = Infinity
    for (const kind of KINDS) {
      const ps = using({ step, ...(kind === 'hang' && { timeout: LIMIT }) })
      const last = kind === KINDS.at(-1)
      for (let change = kind === 'half' ? 1 : 0; last || change <= changes; change++) {
        await fs.writeFile(file, `${kind} ${change}`)
        const answer = await Promise.resolve(ps(pieces, ...values)).catch((error: Error) => error)
        // a machine that is busy may be late before it comes to that
        const stopped = answer instanceof HostError && answer.id === 'TimedOut'
        const came = stopped || (await fs.readFile(file, 'utf8')).endsWith(' -1')
        await fs.remove(file)
        if (came) {
          count[kind]++
          ok(kind !== 'hang' || stopped, `${step}: ${answer}`)
          await takeBack(`${kind} in call ${calls}, ${step}, at change ${change}`)
        } else if (answer instanceof Error) throw answer
        else if (last) {
          count.lost++
          await takeBack(`after call ${calls}, ${step}`)
          return answer
        } else changes = change - 1
        await before()
      }
    }
    throw new Error('the last way ends by itself')
  })
  const outcome = await migrate(options, { screen: () => {}, host: () => cut })
  equal(outcome, 'done')
  // a script that calls no cmdlet, such as one that looks for a file, has none that fails
  for (const kind of KINDS) {
    ok(kind === 'half' || count[kind] > 0.8 * calls, `${count[kind]} ${kind}`)
  }
  ok(calls > 20 && count.half > 10, `${calls} calls, ${count.half} half`)
  const all = Object.entries(count).map(([kind, number]) => `${number} ${kind}`)
  console.log(
    `\n  ${all.join(', ')} in ${calls} calls of the host, taken back from ${seen.size} states`,
  )
})

/** Seconds after which a call that hangs is stopped. */
const LIMIT = 0.5

/** Milliseconds that a guard has to go by itself: a quarter of a second, on a machine that is busy. */
const GONE = 20_000

/** A host of which each script goes through `by`, with the title of its step. */
function through(
  host: SimulatedHost,
  by: (step: string, ps: PowerShell, using: SimulatedHost['using']) => PowerShell,
): Host {
  return {
    ps: by('the host’s own', host.ps, host.using),
    using: (options) => by(options.step ?? '', host.using(options), host.using),
    close: () => Promise.resolve(),
    here: (path) => Promise.resolve(path),
  }
}

/** Keeps the host's state and the files of guards, and gives what brings them back. */
async function snapshot(host: SimulatedHost, aside: string): Promise<() => Promise<void>> {
  const text = await host.text()
  const files = join(host.dir, 'ProgramData')
  await fs.remove(aside)
  if (await fs.pathExists(files)) await fs.copy(files, aside)
  return async () => {
    // else a guard that was started goes on in another past, in which the same script makes the same files
    await endGuards(host)
    await host.change((state) => {
      for (const key of Object.keys(state)) delete state[key]
      Object.assign(state, JSON.parse(text))
    })
    await fs.remove(files)
    if (await fs.pathExists(aside)) await fs.copy(aside, files)
  }
}

/** Those too whose task is gone already, and who would clear away the files of the next one. */
async function endGuards({ dir }: SimulatedHost): Promise<void> {
  const { stdout } = await execute('ps', ['-A', '-o', 'pid=,args='])
  for (const line of stdout.split('\n')) {
    if (line.includes(join(dir, 'ProgramData')) && line.includes('guard-')) {
      end(Number.parseInt(line))
    }
  }
}

/** Without times, and with the identifiers of this once numbered as they come: who is whom stays told. */
function numbered(text: string): string {
  const names = new Map<string, string>()
  return text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z?/g, '(time)').replace(
    /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|00155D[0-9A-F]{6}/gi,
    (name) => {
      const key = name.toLowerCase()
      if (!names.has(key)) names.set(key, `(${names.size})`)
      return names.get(key) as string
    },
  )
}

function end(id: number): void {
  try {
    process.kill(id, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

faults.run()
