/**
 * Every call of the host in a migration is cut off once: before it has done anything, after each change
 * that it makes there, and after all, its answer lost. `undo` brings the host back each time.
 */
import fs from 'fs-extra'
import { deepEqual, equal, ok } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { Host } from '../../recipes/run/host.ts'
import { readJournals } from '../../recipes/run/journal.ts'
import { undo } from '../../recipes/undo.ts'
import type { PowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { comparable, quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'

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

test('are undone, wherever a run is cut off', async ({ dir, host, options, seed }) => {
  const run = join(dir, 'run')
  const aside = join(dir, 'aside')
  const dies = join(host.dir, 'host.json.dies')
  let calls = 0
  let cases = 0
  const seen = new Set<string>()
  /** Takes back what has been done by now, looks, and goes on where it was. */
  const takeBack = async (words: string) => {
    cases++
    // where nothing has changed, neither there nor in the journal, undo has nothing else to do
    const journals = await Promise.all(
      (await readJournals(join(run, 'state'))).map(({ file }) => fs.readFile(file, 'utf8')),
    )
    const state = JSON.stringify([await host.text(), journals])
    if (seen.has(state)) return
    seen.add(state)
    await fs.copy(run, aside)
    await fs.remove(join(run, 'state', 'locks')) // the run is dead to who takes it back
    const now = await snapshot(host, join(dir, 'now'))
    const tools = { screen: () => {}, host: () => through(host, (_, ps) => ps) }
    await undo({ state: options.state }, tools).catch((error: Error) => {
      // nothing was begun yet, or what was begun changes nothing
      if (!/no run is in|the runs are/.test(error.message)) {
        throw new Error(`${words}: ${error.message}`, { cause: error })
      }
    })
    try {
      // what a guest was told is in its own disk, which is gone
      const { guests: _, ...state } = await host.state()
      const { guests: __, ...before } = JSON.parse(seed)
      deepEqual(comparable(state), comparable(before))
    } catch (cause) {
      throw new Error(`${words}: ${(cause as Error).message}`, { cause })
    }
    deepEqual(await fs.readdir(join(run, 'vms')), [], words)
    await now()
    await fs.remove(run)
    await fs.move(aside, run)
  }
  const cut = through(host, (step, ps) => async (pieces, ...values) => {
    calls++
    const before = await snapshot(host, join(dir, 'before'))
    await takeBack(`before call ${calls}, ${step}`)
    for (let changes = 1;; changes++) {
      await fs.writeFile(dies, String(changes))
      const answer = await Promise.resolve(ps(pieces, ...values)).catch((error: Error) => error)
      const left = Number(await fs.readFile(dies, 'utf8'))
      await fs.remove(dies)
      if (!(answer instanceof Error) && left > 0) {
        if (changes > 1) await takeBack(`after call ${calls}, ${step}`)
        return answer
      }
      if (answer instanceof Error && left > 0) throw answer
      await takeBack(`in call ${calls}, ${step}, after ${changes} changes`)
      await before()
    }
  })
  const outcome = await migrate(options, { screen: () => {}, host: () => cut })
  equal(outcome, 'done')
  ok(calls > 20 && cases > 2 * calls, `${calls} calls, ${cases} cases`)
  console.log(
    `\n  ${cases} faults in ${calls} calls of the host, taken back from ${seen.size} states`,
  )
})

/** A host of which each script goes through `by`, with the title of its step. */
function through(
  host: SimulatedHost,
  by: (step: string, ps: PowerShell) => PowerShell,
): Host {
  return {
    ps: by('the host’s own', host.ps),
    using: (options) => by(options.step ?? '', host.using(options)),
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
    // else a guard that was started goes on in another past
    for (const { process: id } of (await host.state()).tasks ?? []) if (id) end(id)
    await host.change((state) => {
      for (const key of Object.keys(state)) delete state[key]
      Object.assign(state, JSON.parse(text))
    })
    await fs.remove(files)
    if (await fs.pathExists(aside)) await fs.copy(aside, files)
  }
}

function end(id: number): void {
  try {
    process.kill(id, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

faults.run()
