/** What a run shows: a live list in a terminal, one plain line an event elsewhere, JSON lines when asked. */
import fs from 'fs-extra'
import { dirname, isAbsolute, relative, resolve } from 'node:path'
import process from 'node:process'
import wrapAnsi from 'wrap-ansi'
import type { Option } from '../../tasks/task.ts'
import { count, type Plan, size, type Step } from './plan.ts'
import type { SourceFile } from './source.ts'
import type { Progress } from './steps.ts'

/**
 * What happens in a run. With `--json` each is one line on standard output, and with `--log` one in a
 * file, with its time. docs/events.md describes them, docs/events.schema.json for programs.
 */
export type RunEvent =
  | { event: 'note'; text: string }
  | { event: 'plan'; plan: Plan; refusals: string[] }
  | { event: 'step'; step: string; title: string; state: StepState; text?: string }
  | { event: 'progress'; step: string } & Measured
  | { event: 'source'; files: SourceFile[]; changed: string[] }
  | { event: 'end'; outcome: Ending; next: string[] }
  | { event: 'error'; message: string }

/** `declined`: a person was asked, and said no. `restart`: what was done holds when Windows has restarted. */
export type Ending = 'done' | 'same' | 'dry-run' | 'declined' | 'failed' | 'stopped' | 'restart'

/** The exit code of `restart`, as installers of Windows have it; elsewhere exit codes end at 255. */
export const RESTART = process.platform === 'win32' ? 3010 : 1

/**
 * `would` and `unknown` are a dry run's: it would change something; it cannot be asked before an
 * earlier step is done. `left`: it is a person's to do, and the end says how.
 */
export type StepState = 'started' | 'done' | 'same' | 'left' | 'would' | 'unknown' | 'failed'

export type Screen = (event: RunEvent) => void

/** One JSON object a line, and nothing else. */
const jsonScreen: Screen = (event) => console.log(JSON.stringify(event))

/** Words for people. With `live`, steps and progress are left to the list that listr2 draws. */
export function textScreen({ live }: { live: boolean }): Screen {
  let said = -1
  return (event) => {
    switch (event.event) {
      case 'note':
        return say(event.text)
      case 'plan':
        return say(describePlan(event.plan))
      case 'step':
        if (event.state === 'started') said = -1
        if (live && event.state !== 'would' && event.state !== 'unknown') return
        return say(
          `${STATES[event.state]} ${event.title}${event.text ? `: ${event.text}` : ''}`,
          11,
        )
      case 'progress': {
        if (live) return
        // a log file wants no more than a line each tenth
        const tenth = Math.floor((event.done / event.total) * 10)
        if (tenth > said) say(`           ${describeProgress(event)}`)
        said = tenth
        return
      }
      case 'source':
        // what has changed is in the error
        return event.changed.length > 0 ? undefined : say(
          `\nThe source is as it was: ${
            count(event.files.length, 'file')
          }, by size, time and SHA-256.`,
        )
      case 'end':
        // why it failed has been said
        return event.next.length > 0 ? say(`\n${event.next.join('\n')}`) : undefined
      case 'error':
        console.error(wrap(commandsApart(event.message), 0))
    }
  }
}

/** The option of a recipe's command line that {@link noted} takes. */
export const logOption: Option = {
  type: 'string',
  describe: 'A file that gets each event as a line of JSON with its time',
}

/**
 * Adds each event to a file before it is shown. A run goes on where the file cannot be written any more,
 * and says so once. Throws where it cannot be opened.
 */
export function noted(screen: Screen, file: string): Screen {
  let log: number | undefined
  try {
    fs.ensureDirSync(dirname(resolve(file)))
    log = fs.openSync(file, 'a', 0o600)
  } catch (cause) {
    const why = (cause as Error).message.split(',')[0]
    throw new Error(
      `Cannot keep a log in "${file}": ${why}. Name a file that can be written to by --log FILE`,
      { cause },
    )
  }
  return (event) => {
    if (log !== undefined) {
      try {
        fs.writeSync(log, `${JSON.stringify({ time: new Date().toISOString(), ...event })}\n`)
      } catch (cause) {
        log = undefined
        const text = `The log "${file}" ends here: ${(cause as Error).message.split(',')[0]}`
        screen({ event: 'note', text })
      }
    }
    screen(event)
  }
}

/** What a recipe shows its run on, and whether a person is there to be asked. */
export function terminal(json = false): { screen: Screen; live: boolean; person: boolean } {
  // a CI that gives programs a terminal keeps what they write, and has nobody who answers
  const { CI = '' } = process.env
  const live = Boolean(process.stdout.isTTY) && !json && /^(false|0)?$/i.test(CI)
  return {
    screen: json ? jsonScreen : textScreen({ live }),
    live,
    person: live && Boolean(process.stdin.isTTY),
  }
}

/**
 * Aborts at the first Ctrl-C or request to end, and when whoever reads the run's words is gone, as `head`
 * is after some lines. The second Ctrl-C ends the process at once.
 */
export function stopSignal(): AbortSignal {
  const stop = new AbortController()
  const ask = () => {
    if (!stop.signal.aborted) return stop.abort()
    // at once, and past a list that keeps what is written until its end
    fs.writeSync(2, `\n${AT_ONCE}\n`)
    process.exit(130)
  }
  // not once: signal-exit, below listr2, kills a process in which it finds itself alone
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, ask)
  process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
    if (code === 'EPIPE') stop.abort()
  })
  return stop.signal
}

/** What a dry run ends with. */
export const UNCHANGED = 'Nothing was changed: this was a dry run.'

/** What a run ends with that a person did not want. */
export const LEFT = 'Nothing was changed.'

/** What is said between Ctrl-C and the stop. */
export const STOPPING = 'Stops when this step is done. Ctrl-C again stops at once'

const AT_ONCE = 'Stopped at once, and the step that ran may be half done. ' +
  'Run the same command again to go on'

/** How far a step is: bytes, bytes a second, seconds. */
export interface Measured extends Progress {
  rate: number
  left: number
}

/** "42 % of 20 GB, 310 MB/s, 12 s left". */
export function describeProgress({ done, total, rate, left, resumed }: Measured): string {
  const percent = (bytes: number) => total === 0 ? 100 : Math.floor((bytes / total) * 100)
  const time = left >= 90 ? `${Math.round(left / 60)} min` : `${Math.ceil(left)} s`
  const from = resumed === undefined ? '' : ` (goes on from ${percent(resumed)} %)`
  const speed = rate > 0 ? `, ${size(rate)}/s, ${time} left` : ''
  return `${percent(done)} % of ${size(total)}${from}${speed}`
}

/** Turns what a task reports into how fast it goes (bytes a second) and how long it will take (seconds). */
export function measure(now: () => number = performance.now.bind(performance)) {
  const start = now()
  return ({ done, total, resumed }: Progress): Measured => {
    const seconds = (now() - start) / 1000
    // the first moments say nothing about the rest
    const rate = seconds < 0.5 ? 0 : (done - (resumed ?? 0)) / seconds
    const left = rate > 0 ? (total - done) / rate : 0
    return { done, total, rate, left, ...(resumed !== undefined && { resumed }) }
  }
}

const STATES: Record<StepState, string> = {
  started: 'begins    ',
  done: 'done      ',
  same: 'already so',
  left: 'left to do',
  would: 'would do  ',
  unknown: 'would do  ',
  failed: 'failed    ',
}

function describePlan(plan: Plan): string {
  const { source, target, vm } = plan
  const list = (lines: string[], mark: (index: number) => string) =>
    lines.map((line, index) => {
      const [first, ...rest] = line.split('\n')
      const hang = mark(index).length + 1
      return [`${mark(index)} ${first}`, ...rest.map((part) => ' '.repeat(hang) + part)]
        .map((part) => wrap(part, hang)).join('\n')
    }).join('\n')
  const data = source.disks.reduce((sum, { allocatedSize }) => sum + allocatedSize, 0)
  const where = target.kind === 'bundle'
    ? `bundle "${near(target.dir)}", for the host that its Deploy.ps1 is run on`
    : target.kind === 'ssh'
    ? `Hyper-V on ${target.url}`
    : 'this machine’s Hyper-V'
  const steps = (title: string, ...where: Step['where'][]) =>
    table(title, plan.steps.filter((step) => where.includes(step.where)))
  return [
    `Move "${plan.name}" to Hyper-V`,
    '',
    wrap(
      `Source  "${source.name}" (${source.kind}, ${source.osType}, ${source.firmware.toUpperCase()}): ` +
        `${count(source.cpus, 'CPU')}, ${size(source.memory)}, ${
          count(source.disks.length, 'disk')
        } with ` +
        `${size(data)} of data, ${
          count(source.nics.length, 'adapter')
        }. It is read, never written to`,
      8,
    ),
    wrap(`VM      generation ${vm.generation}, because ${vm.why}`, 8),
    wrap(`Target  ${where}`, 8),
    '',
    ...(target.kind === 'bundle'
      ? [steps('Here', 'here'), '', steps('On the host, by Deploy.ps1', 'host')]
      : [steps('Steps', 'here', 'host')]),
    ...(plan.notes.length ? ['', 'Notes', list(plan.notes, () => ' -')] : []),
    '',
  ].join('\n')
}

/** Steps in a table: about what time and space each takes, what it changes, and its undo. */
function table(heading: string, steps: Step[]): string {
  const rows = steps.map(({ title, undo, already, estimate: { seconds, space } }, index) => ({
    mark: `${index + 1}.`,
    lines: [title, already ? `(${already})` : undo ? `undo: ${undo}` : 'changes nothing'],
    ...(already ? { seconds: 0, space: 0 } : { seconds, space }),
  }))
  const sum = (of: 'seconds' | 'space') => rows.reduce((sum, row) => sum + row[of], 0)
  // numbers stand first: how wide a text is depends on its script
  const line = (time: string, space: string, mark: string, text: string) =>
    `${time.padStart(7)} ${space.padStart(8)}  ${mark.padStart(3)} `.trimEnd()
      .padEnd(text ? 22 : 0) + fold(text, columns() - 22).join(`\n${' '.repeat(22)}`)
  return [
    `${'time'.padStart(7)} ${'space'.padStart(8)}  ${heading}`,
    ...rows.flatMap(({ mark, lines: [title = '', ...rest], seconds, space }) => [
      line(about(seconds), room(space), mark, title),
      ...rest.map((text) => line('', '', '', text)),
    ]),
    line(about(sum('seconds')), room(sum('space')), '', 'in all, about'),
  ].join('\n')
}

/** A time for people: "45 s", "3 min", "2.5 h". */
function about(seconds: number): string {
  if (seconds === 0) return '-'
  if (seconds < 90) return `${Math.ceil(seconds)} s`
  return seconds < 5400
    ? `${Math.round(seconds / 60)} min`
    : `${Number((seconds / 3600).toFixed(1))} h`
}

function room(bytes: number): string {
  return bytes === 0 ? '-' : size(bytes)
}

/** A folder as it is typed from here, where that is shorter. */
export function near(dir: string): string {
  const path = relative('', dir)
  return path === '' ? '.' : path.startsWith('..') || isAbsolute(path) ? dir : path
}

function say(text: string, hang = 0): void {
  console.log(wrap(text, hang))
}

/** Sets a command that would be folded on a line of its own, as it is to be copied. */
function commandsApart(message: string): string {
  const columns = Math.min(process.stdout.columns || 100, 100)
  return message.split('\n').map((line) => {
    const [, words = '', run = ''] = /^(.*\b[Rr]un: )(.+)$/.exec(line) ?? []
    if (run === '' || wrapAnsi(line, columns).split('\n').length === 1) return line
    const [command = '', ...rest] = run.split(/(?:, (?=and |or |then )|\. (?=[A-Z]))/)
    // a list of programs' words is not one
    if (!/^[\w.-]+( |$)/.test(command)) return line
    const after = rest.join(', ')
    return [words.trimEnd(), `  ${command}`, ...(after ? [after] : [])].join('\n')
  }).join('\n')
}

/** Folds lines at the terminal's width, counting 桥 for two, and sets what follows `hang` columns in. */
function wrap(text: string, hang: number): string {
  return text.split('\n').map((line) => {
    // what is indented there is to be copied, whole
    if (hang === 0 && line.startsWith('  ')) return clean(line)
    return fold(line, columns() - hang).join(`\n${' '.repeat(hang)}`)
  }).join('\n')
}

function fold(line: string, width: number): string[] {
  const [first = '', ...rest] = wrapAnsi(clean(line), width, { trim: false }).split('\n')
  return [first.trimEnd(), ...rest.map((part) => part.trim())]
}

/** A VM's name may hold what would move the cursor. */
function clean(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, '\ufffd')
}

function columns(): number {
  return Math.min(process.stdout.columns || 100, 100)
}
