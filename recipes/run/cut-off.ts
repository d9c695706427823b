/** What a step did that was cut off: by a crash, a lost connection, or an answer that never came. */
import { stat } from 'node:fs/promises'
import { inspectDisk } from '../../tasks/convert-disk.ts'
import type { PowerShell } from '../../tasks/task.ts'
import type { Journal } from './journal.ts'
import type { Step } from './plan.ts'
import { completed, perform, type StepResult, type TaskName, type Tools, WITHIN } from './steps.ts'

export type Begun = Journal['begun'][string]

/**
 * The answer that a step did not get to give, as far as it can be told now; undefined where it changed
 * nothing. Changes nothing itself.
 */
export async function findOut(
  step: Step,
  begun: Begun,
  tools: Tools,
): Promise<StepResult | undefined> {
  if (step.task === 'convert-disk') {
    const { to: path, format } = step.options
    if (!await isSince(path, begun)) return undefined
    const [disk] = await inspectDisk({ from: path })
    const { virtualSize, identifier } = disk as NonNullable<typeof disk>
    const { size: fileSize } = await stat(path)
    return { changed: true, path, format, virtualSize, identifier, fileSize }
  }
  if (step.task === 'send-disk') {
    const { to: path } = step.options
    const size = await sizeThere(path, tools.ps)
    return size === undefined ? undefined : { changed: true, path, size, madeFolder: null }
  }
  const { expected } = begun
  if (!expected?.changed) return undefined
  const made = step.task === 'create-vm' && expected.before === undefined
  const again = made ? { ...step, options: { ...step.options, cutOff: true } } : step
  return completed(expected, await perform(again, tools, true))
}

/** Whether a run was cut off while it made the VM, which was not there before. */
export function cutOffMaking({ plan, unfinished, begun }: Journal): boolean {
  return plan.steps.some(({ id, task }) => {
    const { expected } = begun[id] ?? {}
    return task === 'create-vm' && unfinished.includes(id) && expected?.changed === true &&
      expected.before === undefined
  })
}

/** Whether a file is there that was written after a step was begun. */
export async function isSince(path: string, { time }: Begun): Promise<boolean> {
  const file = await stat(path).catch(() => undefined)
  // some file systems count in steps of two seconds
  return file !== undefined && file.mtimeMs >= Date.parse(time) - 2000
}

/** Whether what a step may have changed goes with what the run has made. */
export function isWithin(step: Step, made: ReadonlySet<TaskName>): boolean {
  return (WITHIN[step.task] ?? []).some((name) => made.has(name))
}

/** The tasks that have made something new in a run, and not only changed something. */
export function madeIn({ done, plan }: Journal): Set<TaskName> {
  const isMade = ({ result }: Journal['done'][number]) =>
    result.changed && result.before === undefined
  return new Set(
    done.filter(isMade).flatMap(({ step }) => plan.steps.find(({ id }) => id === step)?.task ?? []),
  )
}

/** The size of a file on the host; undefined when there is none. */
export async function sizeThere(path: string, ps: PowerShell): Promise<number | undefined> {
  const { stdout } = await ps`
    $path = ${path}
    if (Test-Path -LiteralPath $path) { [string](Get-Item -LiteralPath $path -Force).Length }`
  return stdout === '' ? undefined : Number(stdout)
}
