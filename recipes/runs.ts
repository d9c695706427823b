#!/usr/bin/env zx
/** List the runs of the past, or show one: what it did, and how to go on with it or take it back. */
import { dirname } from 'node:path'
import process from 'node:process'
import { commandLine, type Option } from '../tasks/task.ts'
import { type Journal, readJournals, stateFolder, undoCommand } from './run/journal.ts'
import { FEATURES, type Step, targetOf } from './run/plan.ts'
import { textScreen } from './run/screen.ts'

export interface RunsOptions {
  /** A run by its name, or `last`. @default all */
  run?: string | undefined
  /** Only those to `local`, `ssh://[user@]host[:port]` or `bundle:DIR`. @default all */
  to?: string | undefined
  /** The folder for journals. @default the user's data folder */
  state?: string | undefined
}

/**
 * What is known of a step: it changed something, or found it so already; it was taken back; it was
 * begun, and nothing more is known; it is still to be done.
 */
export type StepOutcome = 'changed' | 'already so' | 'taken back' | 'not known' | 'to do'

export interface RunDescription {
  run: string
  /** Name of the VM on Hyper-V. */
  vm: string
  /** `local`, `ssh://...` or `bundle:DIR`. */
  to: string
  /** `not ended` is a run that goes on, or was killed. */
  outcome: 'done' | 'failed' | 'stopped' | 'undone' | 'not ended'
  /** ISO 8601, UTC. */
  began: string
  last: string
  steps: { step: string; title: string; outcome: StepOutcome }[]
  /** What of the source was not as before when it last ended: none where it was unchanged, null where nobody looked. */
  sourceChanges: string[] | null
  /** The journal. */
  file: string
}

/** The runs of a state folder, oldest first. */
export async function runs(
  { run, to, state = stateFolder }: RunsOptions = {},
): Promise<RunDescription[]> {
  const journals = await readJournals(state, to)
  if (run === undefined) return journals.map(describe)
  const found = run === 'last' ? journals.at(-1) : journals.find((journal) => journal.run === run)
  if (found) return [describe(found)]
  throw new Error(
    `Cannot show the run "${run}": ` +
      (journals.length
        ? `the runs are ${journals.map((journal) => journal.run).join(', ')}`
        : `no run${to === undefined ? '' : ` to ${to}`} is in "${state}"`),
  )
}

function describe(journal: Journal): RunDescription {
  const { run, file, plan, began, last, outcome = 'not ended' } = journal
  const outcomeOf = ({ id, already }: Step): StepOutcome => {
    const done = journal.done.filter(({ step }) => step === id)
    if (journal.undone.includes(id)) return 'taken back'
    // what the run changed when it was begun it finds so when it goes on
    if (done.some(({ result }) => result.changed)) return 'changed'
    if (done.length > 0) return 'already so'
    if (journal.unfinished.includes(id)) return 'not known'
    return already ? 'already so' : 'to do'
  }
  // what is a bundle's for its host is done there, and written down there
  const own = plan.steps.filter(({ where }) => where === 'here' || plan.target.kind !== 'bundle')
  const steps = own.map((step) => ({ step: step.id, title: step.title, outcome: outcomeOf(step) }))
  const sourceChanges = journal.sourceChanges ?? null
  return {
    run,
    vm: plan.name,
    to: targetOf(plan),
    outcome,
    began,
    last,
    steps,
    sourceChanges,
    file,
  }
}

/** `2026-11-23 10:11`, where the reader is. */
function when(time: string): string {
  const date = new Date(time)
  const two = (number: number) => String(number).padStart(2, '0')
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-')
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`
}

function line({ run, vm, to, outcome, began, steps }: RunDescription): string {
  const changed = steps.filter((step) => step.outcome === 'changed').length
  return `${when(began)}  ${outcome.padEnd(9)}  "${vm}" to ${to}, ${changed} of ` +
    `${steps.length} steps changed something\n                             ${run}`
}

function page(description: RunDescription): string {
  const { run, vm, to, outcome, began, last, steps, sourceChanges, file } = description
  const width = Math.max(...steps.map((step) => step.outcome.length))
  const changed = steps.some((step) => step.outcome === 'changed')
  const others = steps.some((step) => step.outcome === 'changed' && step.step !== FEATURES)
  const features = steps.some((step) => step.outcome === 'changed' && step.step === FEATURES)
  const state = dirname(dirname(file))
  const next = [
    ...(outcome !== 'done' && outcome !== 'undone'
      ? ['Go on with it by the same command as before.']
      : []),
    ...(changed && outcome !== 'undone'
      ? ['Take it back:', `  ${undoCommand(run, state, !others)}`]
      : []),
    ...(features && (others || outcome === 'undone')
      ? ['Turn Hyper-V off as well, which it turned on:', `  ${undoCommand(run, state, true)}`]
      : []),
  ]
  return [
    `${run}: ${outcome}`,
    `"${vm}" to ${to}, begun ${when(began)}, last heard of ${when(last)}`,
    '',
    ...steps.map((step) => ` ${step.outcome.padEnd(width)}  ${step.title}`),
    '',
    ...(sourceChanges === null
      ? []
      : sourceChanges.length > 0
      ? [`Its source had changed: ${sourceChanges.join('; ')}`]
      : ['Its source was as before.']),
    ...next,
    `Its journal is ${file}`,
  ].join('\n')
}

const options: Record<string, Option> = {
  run: {
    type: 'string',
    positional: true,
    describe: 'A run by its name, or last [default: a list of all]',
    example: 'last',
  },
  to: { type: 'string', describe: 'Only runs to local, ssh://[user@]host[:port] or bundle:DIR' },
  state: { type: 'string', describe: 'Folder for the journals of runs' },
  json: { type: 'boolean', describe: 'JSON on standard output, for programs' },
}

const given = await commandLine<RunsOptions & { json?: boolean }>(
  import.meta,
  'List the runs of the past, or show one',
  options,
)
if (given) {
  const screen = textScreen({ live: false })
  try {
    const { json, ...wanted } = given
    const found = await runs(wanted)
    if (json) console.log(JSON.stringify(found))
    else {
      const none = `No run${wanted.to === undefined ? '' : ` to ${wanted.to}`} is in "${
        wanted.state ?? stateFolder
      }" yet.`
      const text = wanted.run !== undefined ? found.map(page) : found.map(line)
      screen({ event: 'note', text: text.join('\n') || none })
    }
  } catch (error) {
    screen({ event: 'error', message: error instanceof Error ? error.message : String(error) })
    process.exitCode = 1
  }
}
