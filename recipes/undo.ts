#!/usr/bin/env zx
/** Take back what a run changed, the last step first. */
import { Listr } from 'listr2'
import { join, resolve } from 'node:path'
import process from 'node:process'
import type { undoEnableHyperV } from '../tasks/enable-hyperv.ts'
import { type GuardOptions, guardOptions, readGuard, undoPending } from '../tasks/guard.ts'
import { commandLine, dryRun, type Option } from '../tasks/task.ts'
import { removeBundle } from './run/bundle.ts'
import { Stopped } from './run/ask.ts'
import { type Begun, findOut, isWithin, madeIn } from './run/cut-off.ts'
import { converse, elevate, elevateOptions, offerElevation } from './run/elevate.ts'
import { type Host, openHost } from './run/host.ts'
import {
  type Journal,
  readJournals,
  record,
  stateFolder,
  turnedOn,
  undoCommand,
} from './run/journal.ts'
import { lock, locksOf } from './run/lock.ts'
import { FEATURES, type Step, type StepResult, targetOf } from './run/plan.ts'
import {
  LEFT,
  logOption,
  RESTART,
  type Screen,
  STOPPING,
  terminal,
  UNCHANGED,
} from './run/screen.ts'
import { removeStage } from './run/send-disk.ts'
import { powershellFor, removeUnfinished, takeBack } from './run/steps.ts'

export interface UndoOptions extends GuardOptions {
  /** A run by its name, or `last`: the newest that changed something and is not taken back. @default last */
  run?: string | undefined
  /** Of the runs to `local`, `ssh://[user@]host[:port]` or `bundle:DIR` alone. @default all */
  to?: string | undefined
  /**
   * Last of all turns off what the run turned on of Windows, where Hyper-V has no VM left. Without, that
   * stays on. @default false
   */
  features?: boolean | undefined
  /** The folder for journals. @default the user's data folder */
  state?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface UndoTools {
  screen: Screen
  /** @default false */
  live?: boolean
  /** @default goes on */
  agree?: (journal: Journal) => Promise<boolean>
  /** Stops when the step that is being taken back is done. */
  signal?: AbortSignal | undefined
  /** Opens `local` or `ssh://...`. @default by the PowerShell there */
  host?: ((name: string) => Host) | undefined
}

/**
 * Takes back the steps of a run that changed something, in reverse. What was there before the run
 * stays; what was taken back is in the journal at once, so an undo that stopped goes on. What could cut
 * the host off is taken back under the guard (see tasks/guard.ts).
 */
export async function undo(
  { run = 'last', to, state = stateFolder, features = false, dryRun = false, ...guard }:
    UndoOptions,
  { screen, live = false, agree, signal, host: open = openHost }: UndoTools,
): Promise<'done' | 'same' | 'dry-run' | 'declined' | 'restart'> {
  const journals = await readJournals(state, to)
  const journal = choose(journals, run, state, to, features)
  const { plan } = journal
  const steps = toTakeBack(journal).filter(({ step }) => features || step.id !== FEATURES)
  // what is turned off in the end turns off what runs of others need as well
  const other = features && !turnedOn(journal)
    ? journals.findLast((each) => turnedOn(each) && targetOf(each.plan) === targetOf(plan))
    : undefined
  const on = other ?? (!features && turnedOn(journal) ? journal : undefined)
  const stays = on ? staysOn(on, state, other !== undefined) : []
  screen({ event: 'note', text: describe(journal, steps, stays, dryRun) })
  if (dryRun) {
    screen({ event: 'end', outcome: 'dry-run', next: [UNCHANGED] })
    return 'dry-run'
  }
  if (steps.length > 0 && agree && !await agree(journal)) {
    screen({ event: 'end', outcome: 'declined', next: [LEFT] })
    return 'declined'
  }
  if (steps.length === 0 && stays.length > 0 && other === undefined) {
    screen({ event: 'end', outcome: 'same', next: ['Nothing else is to be taken back.', ...stays] })
    return 'same'
  }
  const { target } = plan
  const asked = target.kind === 'ssh' ? target.url : target.kind === 'local' ? 'local' : undefined
  const placed = async (step: Step): Promise<Step> => {
    if (step.task !== 'convert-disk') return step
    const { to } = step.options
    const path = target.kind === 'bundle'
      ? join(resolve(target.dir), to)
      : await host?.here(to) ?? to
    return { ...step, options: { ...step.options, to: path } }
  }
  const release = await lock(state, locksOf(plan), `the undo of the run ${journal.run}`)
  const host = asked !== undefined && steps.length > 0 ? open(asked) : undefined
  let left = steps.length
  let restart = false
  const told: string[] = []
  /** VMs for which Hyper-V stays on. */
  let vms: string[] = []
  const list = new Listr<object, 'default' | 'silent'>(
    steps.map(({ step, result, begun }) => ({
      title: sentence(step),
      task: async (_, task) => {
        const { id } = step
        if (signal?.aborted) return task.skip(`${sentence(step)} (not begun)`)
        const stopping = () => {
          if (live) task.output = STOPPING
          else screen({ event: 'note', text: STOPPING })
        }
        signal?.addEventListener('abort', stopping)
        const say = (state: 'started' | 'done' | 'left' | 'failed') =>
          screen({ event: 'step', step: id, title: sentence(step), state })
        say('started')
        try {
          const ps = powershellFor(host, { ...step, title: sentence(step) })
          if (begun && step.task === 'create-switch') await undoPending(ps)
          const found = result ?? (begun && await findOut(await placed(step), begun, { ps }))
          const answer = found && await takeBack(step.task, found, { ps, guard })
          told.push(...(answer as { notes?: string[] } | undefined)?.notes ?? [])
          if (step.task === 'enable-hyperv' && answer) {
            const turned = answer as Awaited<ReturnType<typeof undoEnableHyperV>>
            restart = turned.restartNeeded
            vms = turned.vms ?? []
          }
          if (begun) await removeUnfinished(await placed(step), { ps })
        } catch (error) {
          say('failed')
          throw error
        } finally {
          signal?.removeEventListener('abort', stopping)
        }
        left--
        if (vms.length > 0) return say('left')
        await record(journal.file, { entry: 'undone', step: id })
        say('done')
      },
    })),
    {
      renderer: live ? 'default' : 'silent',
      registerSignalListeners: false,
      rendererOptions: { collapseErrors: false, showErrorMessage: false },
    },
  )
  try {
    await list.run()
    if (left > 0) throw new Stopped('Stopped. Run the same command again to go on')
    if (target.kind === 'bundle') await removeBundle(resolve(target.dir))
    if (target.kind === 'ssh') await removeStage(target.stage)
    if (vms.length === 0 || steps.length > 1) {
      await record(journal.file, { entry: 'end', outcome: 'undone' })
    }
  } finally {
    for (const text of told) screen({ event: 'note', text })
    await host?.close()
    await release()
  }
  const changed = steps.length - (vms.length > 0 ? 1 : 0)
  const outcome = restart ? 'restart' : changed ? 'done' : 'same'
  const next = [
    ...(vms.length > 0 && !changed ? [] : [`The run ${journal.run} is taken back.`]),
    ...(restart ? ['What it turned off goes when Windows restarts: shutdown /r /t 0'] : []),
    ...(vms.length > 0
      ? [
        `Hyper-V stays on: it has VMs, which would be lost to you: ${
          vms.map((name) => `"${name}"`).join(', ')
        }. Without them:`,
        `  ${undoCommand(journal.run, state, true)}`,
      ]
      : []),
    ...stays,
  ]
  screen({ event: 'end', outcome, next })
  return outcome
}

/** What says that something of Windows is left on, and how it is turned off. */
function staysOn({ run }: Journal, state: string, other: boolean): string[] {
  return [
    other
      ? `Hyper-V stays on, which the run ${run} turned on. To turn that off:`
      : 'Hyper-V stays on, which it turned on. To turn that off, too:',
    `  ${undoCommand(run, state, true)}`,
  ]
}

interface Change {
  step: Step
  /** What it answered. */
  result?: StepResult
  /** Where it was cut off before it answered. */
  begun?: Begun
}

/** What a run changed, or may have changed where it was cut off; the last first. */
function toTakeBack(journal: Journal): Change[] {
  const { plan, done, unfinished, begun } = journal
  const made = madeIn(journal)
  return plan.steps.flatMap((step): Change[] => {
    if (!step.undo) return []
    const known = done.filter((each) => each.step === step.id && each.result.changed)
    const at = begun[step.id]
    const may = unfinished.includes(step.id) && at !== undefined && !isWithin(step, made)
    const cut = may && (at.expected?.changed || isFile(step)) ? [{ step, begun: at }] : []
    return [...known.map(({ result }) => ({ step, result })), ...cut]
  }).reverse()
}

/** Whether a step writes a file, which is there whole or not at all. */
function isFile({ task }: Step): boolean {
  return task === 'convert-disk' || task === 'send-disk'
}

function choose(
  journals: Journal[],
  run: string,
  state: string,
  to: string | undefined,
  features: boolean,
): Journal {
  const found = run === 'last'
    ? journals.findLast((journal) => {
      const { done, unfinished, outcome } = journal
      if (outcome === 'undone') return features && turnedOn(journal)
      return unfinished.length > 0 || done.some(({ result }) => result.changed)
    })
    : journals.find((journal) => journal.run === run)
  if (found) return found
  const runs = journals.map(({ run, outcome }) => `${run} (${outcome ?? 'not ended'})`)
  throw new Error(
    `Cannot take back ${run === 'last' ? 'the last run' : `the run "${run}"`}: ` +
      (runs.length
        ? `the runs${to === undefined ? '' : ` to ${to}`} are ${runs.join(', ')}`
        : `no run${to === undefined ? '' : ` to ${to}`} is in "${state}"`),
  )
}

function describe(
  { run, plan, unfinished, begun }: Journal,
  steps: Change[],
  stays: string[],
  dryRun: boolean,
): string {
  return [
    `Take back the run ${run}`,
    ...steps.map(({ step, begun }, index) =>
      `${String(index + 1).padStart(2)}. ${sentence(step)}${begun ? ', which was cut off' : ''}`
    ),
    ...(steps.length || stays.length ? [] : ['It changed nothing.']),
    // a run says it in the end
    ...(dryRun ? stays : []),
    // of an older kit's run that was cut off nothing says how it was before
    ...plan.steps.filter(({ id, undo }) => undo && unfinished.includes(id) && !begun[id]).map(
      ({ title }) => `Not known to be done, look yourself: ${title}`,
    ),
    '',
  ].join('\n')
}

function sentence({ undo }: Step): string {
  return undo.charAt(0).toUpperCase() + undo.slice(1)
}

const options: Record<string, Option> = {
  run: {
    type: 'string',
    positional: true,
    default: 'last',
    describe: 'A run by its name, or last',
    example: 'last',
  },
  to: {
    type: 'string',
    describe: 'Of the runs to local, ssh://[user@]host[:port] or bundle:DIR [default: all]',
  },
  features: {
    type: 'boolean',
    describe:
      'Last of all turn off what the run turned on of Windows (Hyper-V); exit code 3010: restart',
  },
  state: { type: 'string', describe: 'Folder for the journals of runs' },
  ...guardOptions,
  ...elevateOptions,
  dryRun,
  yes: { type: 'boolean', alias: 'y', describe: 'Do not ask' },
  json: { type: 'boolean', describe: 'One JSON object a line, for programs' },
  log: logOption,
}

const given = await commandLine<
  Omit<UndoOptions, 'revertAfter'> & {
    revertAfter?: string
    yes?: boolean
    json?: boolean
    log?: string
    elevate?: boolean
    elevatedBy?: string
  }
>(
  import.meta,
  'Take back what a run changed, the last step first',
  options,
)
if (given) {
  const { yes, json, log, elevate: up, elevatedBy, ...options } = given
  let { screen } = terminal(json)
  try {
    const conversation = converse({ json, log, elevatedBy })
    const { live, person, confirm, signal } = conversation
    screen = conversation.screen
    const code = up && !elevatedBy ? await elevate({ meta: import.meta, conversation }) : undefined
    if (code !== undefined) process.exitCode = code
    else {
      const agree = () => confirm('Take it back?')
      const outcome = await undo(readGuard(options), {
        screen,
        live,
        signal: signal(),
        ...(person && !yes && { agree }),
      })
      if (outcome === 'restart') process.exitCode = RESTART
    }
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    screen({ event: 'error', message: offerElevation(message) })
    const outcome = error instanceof Stopped ? 'stopped' : 'failed'
    screen({ event: 'end', outcome, next: [] })
    process.exitCode = outcome === 'stopped' ? 130 : 1
  }
}
