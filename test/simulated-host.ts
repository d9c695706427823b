/** A simulated Hyper-V host of a test's own: a copy of a seed, and real PowerShell on top of it. */
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { basename, delimiter, join } from 'node:path'
import process from 'node:process'
import { openPowerShell, type PowerShellProcess } from '../tasks/task.ts'

const fixtures = join(import.meta.dirname as string, '..', 'fixtures', 'hyper-v')

export interface SimulatedHost extends PowerShellProcess {
  /** A folder for the test's files, removed on close. */
  dir: string
  /** What a program needs in its environment to see this host, for tests of the command line. */
  env: NodeJS.ProcessEnv
  /** The host's whole state, as the file holds it. */
  text: () => Promise<string>
  // deno-lint-ignore no-explicit-any -- the state is the simulated host's own and has no type here
  state: () => Promise<any>
  // deno-lint-ignore no-explicit-any
  change: (change: (state: any) => void) => Promise<void>
  /** The cmdlets called so far, in order. */
  calls: () => Promise<{ cmdlet: string }[]>
  warnings: string[]
  /**
   * Does with the scheduled tasks what Windows does when their time has come, when it starts, when a
   * user signs in, or when an event is logged, e.g. `Microsoft-Windows-NetworkProfile/Operational 10000`.
   */
  fire: (when: 'Once' | 'Daily' | 'Startup' | 'Logon' | `${string} ${number}`) => Promise<void>
}

/** @param without modules that this Windows does not have */
export async function simulatedHost(
  seed: 'laptop' | 'server' = 'laptop',
  { without = [] }: { without?: string[] } = {},
): Promise<SimulatedHost> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'simulated-host-'))
  const file = join(dir, 'host.json')
  const log = join(dir, 'calls.jsonl')
  await fs.copy(join(fixtures, `${seed}.json`), file)
  let own = join(fixtures, 'modules')
  if (without.length > 0) {
    own = join(dir, 'windows', 'modules')
    const filter = (path: string) => !without.includes(basename(path))
    await fs.copy(join(fixtures, 'modules'), own, { filter })
    await fs.copy(join(fixtures, 'host'), join(dir, 'windows', 'host'))
  }
  const modules = [own, process.env.PSModulePath].filter(Boolean)
  const env = {
    ...process.env,
    // uvu asks for colours, and node warns programs whose user asks for none
    FORCE_COLOR: '0',
    PSModulePath: modules.join(delimiter),
    ProgramData: join(dir, 'ProgramData'),
    SIMULATED_HOST: file,
    SIMULATED_HOST_LOG: log,
  }
  const warnings: string[] = []
  // started when a test asks: many have a program that starts its own
  let opened: PowerShellProcess | undefined
  const open = () =>
    opened ??= openPowerShell({ env, onWarning: (warning) => warnings.push(warning) })
  return {
    ps: (pieces, ...values) => open().ps(pieces, ...values),
    using: (options) => (pieces, ...values) => open().using(options)(pieces, ...values),
    dir,
    env,
    warnings,
    text: () => fs.readFile(file, 'utf8'),
    state: () => fs.readJson(file),
    change: async (change) => {
      const state = await fs.readJson(file)
      change(state)
      await fs.writeJson(file, state)
    },
    calls: async () => {
      const lines = await fs.readFile(log, 'utf8').catch(() => '')
      return lines.split('\n').filter(Boolean).map((line) => JSON.parse(line))
    },
    fire: async (when) => {
      const restarts = when === 'Startup'
      if (restarts) await opened?.close()
      if (restarts) opened = undefined
      const { tasks = [] } = await fs.readJson(file)
      for (const task of tasks) {
        if (!restarts || !task.process) continue
        try {
          process.kill(task.process, 'SIGKILL')
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
        }
      }
      for (const { name, path, triggers } of tasks) {
        const due = ({ kind, events }: { kind: string; events?: string[] }) =>
          kind === when || events?.includes(when)
        if (!triggers.some(due)) continue
        await open().ps`
          $name = ${name}
          $path = ${path}
          Start-ScheduledTask -TaskName $name -TaskPath $path`
      }
    },
    close: async () => {
      await opened?.close()
      await fs.remove(dir)
    },
  }
}

/** The test's host, which a recipe may use but not close. */
export function lent({ ps, using }: SimulatedHost) {
  return {
    ps,
    using,
    here: (path: string) => Promise.resolve(path),
    close: () => Promise.resolve(),
  }
}

/** Guests that answer at once, on each adapter: an adapter without an address is waited for. */
export function quickGuests(state: { guests: unknown }): void {
  state.guests = { '*': { heartbeat: { polls: 0 }, addresses: { '*': ['192.168.56.191'] } } }
}

/**
 * The state without the order of its lists, which is that in which things were made, without addresses
 * that Windows makes by itself, and without the number that the next adapter gets.
 */
export function comparable(value: unknown): unknown {
  if (Array.isArray(value)) {
    const text = (one: unknown) => JSON.stringify(one)
    const kept = value.filter((one) => one?.suffix !== 'Link')
    return kept.map(comparable).sort((a, b) => text(a) < text(b) ? -1 : 1)
  }
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(
    Object.entries(value).filter(([key]) => key !== 'nextIfIndex').sort(([a], [b]) =>
      a < b ? -1 : 1
    )
      .map(([key, one]) => [key, comparable(one)]),
  )
}
