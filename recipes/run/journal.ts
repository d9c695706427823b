/**
 * What a run has done, on disk after every step: a file of JSON lines that is only ever appended to,
 * so that a run which was killed leaves all but its last step behind for undo and for the next run.
 */
import envPaths from 'env-paths'
import fs from 'fs-extra'
import { dirname, join, resolve } from 'node:path'
import { FEATURES, isFeatures, type Plan, type StepResult, targetOf } from './plan.ts'
import type { SourceFile } from './source.ts'

/** One line of a journal. Times are ISO 8601, UTC. */
export type JournalEntry =
  | { entry: 'plan'; time: string; plan: Plan }
  | { entry: 'started'; time: string; step: string; expected?: StepResult }
  | { entry: 'undone'; time: string; step: string }
  | { entry: 'done'; time: string; step: string; result: StepResult }
  | { entry: 'source'; time: string; changed: string[] }
  | { entry: 'end'; time: string; outcome: 'done' | 'failed' | 'stopped' | 'undone' }

export interface Journal {
  /** The run's name: its time and its VM's. */
  run: string
  file: string
  plan: Plan
  /** The steps that were done and not undone, oldest first. */
  done: { step: string; result: StepResult }[]
  /** Steps that were begun and of which nothing more is known. */
  unfinished: string[]
  /**
   * When each of these was begun first, and what it said then that it would change: what was so before
   * is known of a step that was cut off, too.
   */
  begun: Record<string, { time: string; expected?: StepResult }>
  /** The steps that were done and then taken back. */
  undone: string[]
  /** When its first and its last entry were written: ISO 8601, UTC. */
  began: string
  last: string
  outcome: 'done' | 'failed' | 'stopped' | 'undone' | undefined
  /** The source's files as they were before the first change; none in a journal of an older kit. */
  source: SourceFile[]
  /** What of the source was not so any more when the run last ended. Undefined where it was not looked at. */
  sourceChanges: string[] | undefined
}

/** Where journals live unless `--state` says otherwise: the user's data folder for the kit. */
export const stateFolder = envPaths('vbox-to-hyperv', { suffix: '' }).data

/**
 * The command that takes a run back, whatever has run since.
 * @param features what it turned on of Windows, too
 */
export function undoCommand(run: string, state: string, features = false): string {
  const word = (text: string) => /^[\p{L}\p{N}.:\\/_-]+$/u.test(text) ? text : `"${text}"`
  const folder = resolve(state) === resolve(stateFolder) ? '' : ` --state ${word(resolve(state))}`
  return `npx zx recipes/undo.ts ${word(run)}${features ? ' --features' : ''}${folder}`
}

/** Whether a run turned a feature of Windows on, as far as is known, that is not taken back. */
export function turnedOn({ done, unfinished, begun }: Journal): boolean {
  return done.some(({ step, result }) => step === FEATURES && result.changed) ||
    unfinished.includes(FEATURES) && begun[FEATURES]?.expected?.changed === true
}

/** Whether something is changed by it, as far as is known, that can be taken back. */
export function canBeTakenBack({ plan, done, unfinished, outcome }: Journal): boolean {
  const undoable = plan.steps.filter(({ undo }) => undo).map(({ id }) => id)
  return outcome !== 'undone' &&
    (done.some(({ result }) => result.changed) || unfinished.some((id) => undoable.includes(id)))
}

/** What is said where the folder for journals refuses a run; undefined of what is no file system's error. */
export function stateRefused(folder: string, cause: unknown): Error | undefined {
  const { code = '' } = cause as NodeJS.ErrnoException
  if (!/^E[A-Z0-9]+$/.test(code)) return undefined
  const words = code === 'ENOSPC'
    ? 'its volume is full. Make room there, or name'
    : `${(cause as Error).message.split(',')[0]}. Name`
  return new Error(
    `Cannot keep a run's journal in "${folder}": ${words} another folder by --state DIR`,
    { cause },
  )
}

/** Appends an entry and returns when it is on the disk. */
export async function record(file: string, entry: Untimed<JournalEntry>): Promise<void> {
  const { entry: kind, ...rest } = entry
  const line = JSON.stringify({ entry: kind, time: new Date().toISOString(), ...rest })
  try {
    const handle = await fs.open(file, 'a')
    try {
      await fs.write(handle, `\n${line}\n`) // its own line, whatever was cut short before
      await fs.fsync(handle)
    } finally {
      await fs.close(handle)
    }
  } catch (error) {
    throw stateRefused(dirname(dirname(file)), error) ?? error
  }
}

/** Begins the journal of a run, or goes on with that of an earlier run of the same plan that did not end well. */
export async function beginJournal(state: string, plan: Plan): Promise<Journal> {
  const journals = await readJournals(state)
  const goesOn = ({ outcome }: Journal) => outcome !== 'done' && outcome !== 'undone'
  const newest = journals.findLast((journal) => journal.plan.key === plan.key)
  // what was turned on for a VM is of the run that moves it then
  const last = newest && goesOn(newest)
    ? newest
    : journals.findLast((journal) => goesOn(journal) && isBegunFor(plan, journal.plan))
  if (last) {
    await record(last.file, { entry: 'plan', plan })
    return await readJournal(last.file) as Journal
  }
  const time = new Date().toISOString().replace(/[-:]|\.\d+/g, '')
  const folder = join(state, 'runs')
  await fs.ensureDir(folder)
  // a name to be typed in a shell
  const name = `${time}-${plan.slug.replaceAll(' ', '-')}`
  let run = name
  for (let n = 2; await fs.pathExists(join(folder, `${run}.jsonl`)); n++) run = `${name}-${n}`
  const file = join(folder, `${run}.jsonl`)
  await record(file, { entry: 'plan', plan })
  return await readJournal(file) as Journal
}

/** Whether a run had come no further than to turn Hyper-V on for what this plan moves. */
function isBegunFor(plan: Plan, begun: Plan): boolean {
  const of = ({ name, source: { kind, name: from } }: Plan) => JSON.stringify([name, kind, from])
  return isFeatures(begun) && plan.steps.some(({ id }) => id === FEATURES) &&
    of(plan) === of(begun) && targetOf(plan) === targetOf(begun)
}

/**
 * All journals of a state folder, oldest first.
 * @param to only of runs that went there
 */
export async function readJournals(state: string, to?: string): Promise<Journal[]> {
  const folder = join(state, 'runs')
  const names = await fs.readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw new Error(
      `Cannot read the journals in "${folder}": ${error.message.split(',')[0]}. ` +
        'Name another folder by --state DIR',
      { cause: error },
    )
  })
  const journals = await Promise.all(
    names.filter((name) => name.endsWith('.jsonl')).map((name) => readJournal(join(folder, name))),
  )
  // names tell seconds only
  const place = (to: string) =>
    to.startsWith('bundle:') ? resolve(to.slice(7)) : to.replace(/\/$/, '')
  return journals.filter((journal) => journal !== undefined)
    .filter(({ plan }) => to === undefined || place(targetOf(plan)) === place(to))
    .sort((one, other) => one.began < other.began ? -1 : 1)
}

async function readJournal(file: string): Promise<Journal | undefined> {
  const entries = (await fs.readFile(file, 'utf8')).split('\n').flatMap((line, index, lines) => {
    if (!line) return []
    try {
      return [JSON.parse(line) as JournalEntry]
    } catch {
      // a whole entry is followed by an empty line; what a killed run was writing is not
      if (lines[index + 1] !== '') return []
      throw new Error(`Cannot read the journal "${file}": line ${index + 1} is damaged`)
    }
  })
  let journal: Journal | undefined
  for (const entry of entries) {
    if (entry.entry === 'plan') {
      const { plan } = entry
      const source = plan.origin?.files ?? []
      const nothing = { outcome: undefined, sourceChanges: undefined }
      if (journal) {
        Object.assign(journal, { plan, ...nothing })
        // Hyper-V that is turned on is made of no source
        if (!journal.done.some(({ step, result }) => step !== FEATURES && result.changed)) {
          journal.source = source
        }
      } else {
        const run = file.replace(/^.*[\\/]|\.jsonl$/g, '')
        const { time } = entry
        const steps = { done: [], unfinished: [], begun: {}, undone: [] }
        journal = { run, file, plan, source, ...steps, ...nothing, began: time, last: time }
      }
    } else if (journal === undefined) {
      throw new Error(`Cannot read the journal "${file}": it does not begin with a plan`)
    } else if (entry.entry === 'started') {
      const { step, time, expected } = entry
      journal.unfinished.push(step)
      // begun again, it sees what was changed the first time
      journal.begun[step] ??= { time, ...(expected && { expected }) }
    } else if (entry.entry === 'end') journal.outcome = entry.outcome
    else if (entry.entry === 'source') journal.sourceChanges = entry.changed
    else {
      journal.unfinished = journal.unfinished.filter((step) => step !== entry.step)
      journal.undone = journal.undone.filter((step) => step !== entry.step)
      delete journal.begun[entry.step]
      if (entry.entry === 'done') journal.done.push({ step: entry.step, result: entry.result })
      else {
        journal.done = journal.done.filter(({ step }) => step !== entry.step)
        journal.undone.push(entry.step)
      }
    }
    if (journal) journal.last = entry.time
  }
  return journal
}

type Untimed<T> = T extends unknown ? Omit<T, 'time'> : never
