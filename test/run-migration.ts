/**
 * A run of `migrate` in a process of its own, for a test that kills it. The host is in the test's
 * process: PowerShell, too, ends what it was at when the program that asked for it is killed.
 *
 *     fork('test/run-migration.ts', [], { serialization: 'advanced' })
 *
 * With a step as its argument, it is killed in the middle of that, once it goes on where one of before was
 * stopped.
 */
import type { ChildProcess } from 'node:child_process'
import process from 'node:process'
import { migrate, type MigrateOptions, type Outcome } from '../recipes/migrate.ts'
import type { Host } from '../recipes/run/host.ts'
import type { Screen } from '../recipes/run/screen.ts'
import { HostError } from '../tasks/task.ts'

type Call = { call: number; step: string; pieces: string[]; values: unknown[] }
type Answer =
  | { call: number; answer: { stdout: string } }
  | { call: number; failure: string; details: Partial<HostError> }

/** What the child says. It waits for options first, when it says that it is ready. */
export type Said =
  | { ready: true }
  | { asks: Call }
  | { outcome: Outcome }
  | { failure: string }

/** Answers a child's call of the host, as far as somebody is still there to hear it. */
export async function answer(child: ChildProcess, host: Host, asks: Call): Promise<void> {
  const { call, step, pieces, values } = asks
  const strings = Object.assign([...pieces], { raw: pieces })
  const reply: Answer = await host.using({ step })(strings, ...values as string[]).then(
    (answer) => ({ call, answer }),
    (error) => ({ call, failure: error.message, details: { ...error } }),
  )
  if (child.connected) child.send(reply, () => {})
}

/** The host as the child sees it. */
function remote(): Host {
  const calls = new Map<number, (answer: Answer) => void>()
  process.on('message', (message: Answer) => calls.get(message.call)?.(message))
  const using: Host['using'] = ({ step = '' }) => async (pieces, ...values) => {
    const call = calls.size
    const answered = new Promise<Answer>((resolve) => calls.set(call, resolve))
    tell({ asks: { call, step, pieces: [...pieces], values } })
    const answer = await answered
    if ('failure' in answer) throw new HostError(answer.failure, answer.details)
    return answer.answer
  }
  const close = () => Promise.resolve()
  return { ps: using({}), using, close, here: (path) => Promise.resolve(path) }
}

function tell(said: Said): void {
  process.send?.(said)
}

const [victim] = process.argv.slice(2)

const screen: Screen = (event) => {
  if (event.event !== 'progress' || event.step !== victim || !event.resumed) return
  process.kill(process.pid, 'SIGKILL')
}

if (process.send) {
  process.once('message', async (options: MigrateOptions) => {
    try {
      tell({ outcome: await migrate(options, { screen, host: remote }) })
    } catch (error) {
      tell({ failure: (error as Error).message })
    }
    process.disconnect()
  })
  tell({ ready: true })
}
