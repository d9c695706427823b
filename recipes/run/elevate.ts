/**
 * `--elevate`: runs a recipe once more with administrator rights, in this terminal.
 *
 * The elevated run has no window. It is asked for by the question of Windows (UAC), says what happens
 * as JSON lines, and all it has to ask is asked here, so that one terminal shows the run, `--json` and
 * pipes work as ever, and nothing vanishes with a window that closes. Both sides talk through files in
 * a folder of this user's, which administrators can write to as well, whoever of them said yes. Another
 * program of this user's can write there too, as it can to the kit itself: UAC does not part the two.
 *
 * What is assumed of Windows, where none of our tests runs: the verb runas starts a program elevated
 * with an environment and a folder of its own; a refused question is Win32 error 1223; an elevated
 * process is found by its number (EPERM) until it has ended (ESRCH).
 */
import fs from 'fs-extra'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { StringDecoder } from 'node:string_decoder'
import { setTimeout as sleep } from 'node:timers/promises'
import { inWsl, type Option, type PowerShell, powershell } from '../../tasks/task.ts'
import { AT_A_QUESTION, confirm, select, Stopped } from './ask.ts'
import {
  answerFile,
  ERR,
  EXIT,
  FIRST,
  type First,
  lives,
  OUT,
  put,
  RUN,
  type Run,
  STOP,
} from './elevated.ts'
import { noted, type RunEvent, type Screen, stopSignal, terminal, textScreen } from './screen.ts'

/** What a recipe shows its run on, asks by and is stopped by. */
export interface Conversation extends Ask {
  screen: Screen
  /** Whether the run draws its list in the terminal itself. */
  live: boolean
  /** Whether somebody is there to be asked. */
  person: boolean
  /** Aborted when the run is to stop. A recipe that does not ask for it is ended then and there. */
  signal: () => AbortSignal
}

export interface Ask {
  confirm: (message: string) => Promise<boolean>
  select: (message: string, choices: string[]) => Promise<string>
}

export interface ElevateOptions {
  /** The recipe's own file. */
  meta: { filename?: string }
  /** What follows it on the command line. @default what follows it on this process's */
  args?: string[] | undefined
  /** Who is shown the run, asked, and may stop it. */
  conversation: Conversation
  /** Hears what the run writes to standard error. @default this process's */
  onError?: ((text: string) => void) | undefined
  /** @default this machine's */
  platform?: NodeJS.Platform | undefined
  /** @default this machine's */
  ps?: PowerShell | undefined
}

/** Options of a recipe's command line. `elevatedBy` is what this file itself adds. */
export const elevateOptions: Record<'elevate' | 'elevatedBy', Option> = {
  elevate: { type: 'boolean', describe: 'Ask Windows for administrator rights first' },
  elevatedBy: { type: 'string', hidden: true },
}

/** The conversation of a recipe: with this terminal, or with the process that had it elevated. */
export function converse(
  { json, log, elevatedBy }: {
    json?: boolean | undefined
    /** A file that gets each event. */
    log?: string | undefined
    elevatedBy?: string | undefined
  },
): Conversation {
  // the other process has the log
  if (elevatedBy !== undefined) return across(elevatedBy)
  const shown = terminal(json)
  return {
    ...shown,
    screen: log === undefined ? shown.screen : noted(shown.screen, log),
    confirm,
    select,
    signal: stopSignal,
  }
}

/**
 * Runs the recipe with administrator rights and resolves to its exit code; to undefined where this
 * process has them, which then goes on itself.
 */
export async function elevate(options: ElevateOptions): Promise<number | undefined> {
  const { meta, conversation, platform = process.platform, ps = powershell } = options
  if (platform !== 'win32') throw new Error(inWsl() ? IN_WSL : ELSEWHERE)
  if (await isElevated(ps)) return undefined
  console.error(
    'Windows asks for administrator rights. Where no question is seen, it waits in the taskbar.',
  )
  // from here on Ctrl-C goes to the run
  const stopped = conversation.signal()
  const folder = await fs.mkdtemp(join(tmpdir(), 'vbox-to-hyperv-elevated-'))
  try {
    const runtime = runtimeArguments()
    const file = meta.filename as string
    const self = process.argv.findIndex((arg) => resolve(arg) === file)
    const { args = process.argv.slice(self + 1) } = options
    const run: Run = {
      program: process.execPath,
      args: [...runtime, file, '--elevated-by', folder, ...args],
      cwd: process.cwd(),
      env: Object.fromEntries(
        Object.entries(process.env).filter(([name]) => ENVIRONMENT.test(name)),
      ) as Record<string, string>,
    }
    const first: First = { pid: process.pid, person: conversation.person }
    await fs.writeJson(join(folder, RUN), run)
    await fs.writeJson(join(folder, FIRST), first)
    const launcher = [...runtime, LAUNCHER, folder]
    return await follow(
      folder,
      await startElevated(process.execPath, launcher, ps),
      stopped,
      options,
    )
  } finally {
    // a virus scanner may hold what was just written
    await rm(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 })
  }
}

/** The words of a refusal for want of rights, with what a recipe has to offer on Windows. */
export function offerElevation(message: string, platform = process.platform): string {
  if (platform !== 'win32') return message
  return message.replaceAll(BY_HAND, `${BY_HAND}, or run the same again with --elevate`)
}

/** Refuses what cannot be done in a run that Windows starts apart from this terminal. */
export function checkElevation(
  { to, user, credential }: {
    to?: string | undefined
    user?: string | undefined
    credential?: string | undefined
  },
): void {
  if (to !== undefined && to !== 'local') {
    throw new Error(
      `Cannot elevate for "${to}": --elevate is for the Hyper-V of this machine, and ` +
        (to.startsWith('ssh:')
          ? 'there the rights are those of the user who signs in. Run again without it, as an administrator of that machine'
          : 'a bundle needs no administrator rights to be made. Run again without it'),
    )
  }
  if (user !== undefined && !credential?.startsWith('manager:')) {
    throw new Error(
      'Cannot hand a password on to a run with administrator rights: Windows starts it apart from this ' +
        'terminal. Leave it to the Credential Manager (--guest-credential manager:TARGET, without ' +
        '--guest-user), or run without --elevate in an elevated PowerShell',
    )
  }
}

const BY_HAND = 'Run: Start-Process powershell -Verb RunAs, and this again in the window it opens'

const IN_WSL = 'Cannot elevate a program of Linux: administrator rights of Windows are those of ' +
  'the window that WSL runs in. Run: powershell.exe Start-Process wsl.exe -Verb RunAs, and this again ' +
  'in the window it opens, without --elevate'

const ELSEWHERE = 'Cannot elevate on this system: --elevate is for Windows alone. ' +
  'Run again without it'

/**
 * What the elevated run takes over, for Windows gives it a new environment: where programs and this
 * user's own folders are, another administrator's yes or not. The rest may hold secrets, and stays here.
 */
const ENVIRONMENT =
  /^(PATH|POWERSHELL|VBOX\w*|USERPROFILE|HOMEDRIVE|HOMEPATH|APPDATA|LOCALAPPDATA|NODE_OPTIONS|DENO_DIR|NO_COLOR)$/i

/** What the elevated run has asked at the terminal, on its standard output among the events. */
interface Question {
  event: 'question'
  id: number
  message: string
  /** Without them the answer is yes or no. */
  choices?: string[]
}

/** Milliseconds between looks at a file of the other side. */
const LOOK = 100

const LAUNCHER = join(import.meta.dirname as string, 'elevated.ts')

/** Deno names its own options nowhere. */
function runtimeArguments(): string[] {
  return 'Deno' in globalThis ? ['run', '-A'] : process.execArgv
}

async function isElevated(ps: PowerShell): Promise<boolean> {
  const { stdout } = await ps`
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    # Administrators; a token that UAC has filtered has them for refusals alone, and not here
    @($identity.Groups | Where-Object { $_.Value -eq 'S-1-5-32-544' }).Count -gt 0`
  return stdout === 'True'
}

/** Asks Windows for the program with administrator rights, and resolves to its process's number. */
async function startElevated(program: string, args: string[], ps: PowerShell): Promise<number> {
  const line = args.map(quote).join(' ')
  // Start-Process keeps the number of the error to itself, and its words are translated
  const { stdout } = await ps`
    $program = ${program}
    $line = ${line}
    $start = New-Object Diagnostics.ProcessStartInfo
    $start.FileName = $program
    $start.Arguments = $line
    $start.Verb = 'runas'
    $start.UseShellExecute = $true
    $start.WindowStyle = 'Hidden'
    # a folder that administrators have too, unlike one on a drive that this user has mapped
    $start.WorkingDirectory = [Environment]::SystemDirectory
    $result = @{ state = 'started' }
    try {
      $process = [Diagnostics.Process]::Start($start)
      $result.pid = $process.Id
    } catch {
      $reason = $_.Exception.GetBaseException()
      $result.state = 'failed'
      $result.message = $reason.Message
      if ($reason.NativeErrorCode -eq 1223) { $result.state = 'declined' } # ERROR_CANCELLED
    }
    ConvertTo-Json -InputObject $result -Compress`
  const { state, pid, message } = JSON.parse(stdout) as {
    state: 'started' | 'declined' | 'failed'
    pid?: number | null
    message?: string
  }
  if (state === 'declined') {
    throw new Error(
      'Cannot run with administrator rights: the question of Windows was answered with no. ' +
        'Run again and choose Yes',
    )
  }
  if (state === 'failed' || !pid) {
    throw new Error(
      'Cannot run with administrator rights: Windows cannot ask for them here ' +
        `(${message ?? 'no process'}). Run the same without --elevate in an elevated PowerShell`,
    )
  }
  return pid
}

/** One argument as Windows' programs read their command line. */
function quote(arg: string): string {
  return `"${arg.replace(/(\\*)"/g, '$1$1\\"').replace(/\\+$/, '$&$&')}"`
}

/** Shows the run, asks what it asks, passes a stop on, and resolves to its exit code. */
async function follow(
  folder: string,
  pid: number,
  stopped: AbortSignal,
  { conversation, onError = (text) => void process.stderr.write(text) }: ElevateOptions,
): Promise<number> {
  const { live } = conversation
  // the list is drawn by the process that runs it, and that has no terminal
  const screen = live ? textScreen({ live: false }) : conversation.screen
  const stop = () => fs.writeFileSync(join(folder, STOP), '')
  if (stopped.aborted) stop()
  stopped.addEventListener('abort', stop)
  let rest = ''
  const onOutput = async (text: string) => {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      const said = parse(line)
      if (said === undefined) console.log(line)
      else if (said.event !== 'question') screen(said)
      else {
        try {
          await put(folder, answerFile(said.id), await answer(said, conversation))
        } catch {
          stop() // Ctrl-C at a question
        }
      }
    }
  }
  const out = tail(join(folder, OUT))
  const err = tail(join(folder, ERR))
  for (let looks = 0;; looks++) {
    // asked first, so that what it wrote before its end is read after
    const dead = !lives(pid)
    const code = await fs.readFile(join(folder, EXIT), 'utf8').catch(absent)
    await onOutput(await out())
    onError(await err())
    if (code !== undefined) {
      if (rest) await onOutput('\n')
      return Number(code)
    }
    if (dead) throw new Error(await fs.pathExists(join(folder, RUN)) ? NEVER_RAN : VANISHED)
    await sleep(LOOK)
  }
}

const NEVER_RAN =
  'Cannot run with administrator rights: the program ended before it read what to run. ' +
  'Elevated programs do not have the drives that this user has mapped: put the kit on a local drive, or ' +
  'run without --elevate in an elevated PowerShell'

const VANISHED =
  'Cannot tell what became of the elevated run: its process ended without a result. Run the ' +
  'same again: it goes on from what is done'

function parse(line: string): RunEvent | Question | undefined {
  try {
    const said = JSON.parse(line)
    return typeof said?.event === 'string' ? said : undefined
  } catch {
    return undefined
  }
}

function answer({ message, choices }: Question, { confirm, select }: Ask) {
  return choices ? select(message, choices) : confirm(message)
}

/** Reads what a file has gained since the last time, never half a character. */
function tail(path: string): () => Promise<string> {
  const decoder = new StringDecoder('utf8')
  let position = 0
  return async () => {
    const handle = await fs.promises.open(path, 'r').catch(absent)
    if (handle === undefined) return ''
    try {
      let text = ''
      const buffer = Buffer.alloc(65536)
      for (;;) {
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, position)
        if (bytesRead === 0) return text
        position += bytesRead
        text += decoder.write(buffer.subarray(0, bytesRead))
      }
    } finally {
      await handle.close()
    }
  }
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error
}

/** The elevated recipe's side. It stops when it is told to, and when nobody is at the terminal any more. */
function across(folder: string): Conversation {
  const { pid, person } = fs.readJsonSync(join(folder, FIRST)) as First
  const stop = new AbortController()
  let heard = false
  const watch = setInterval(() => {
    if (!fs.existsSync(join(folder, STOP)) && lives(pid)) return
    if (!heard) process.exit(130)
    stop.abort()
    clearInterval(watch)
  }, LOOK)
  watch.unref()
  const say = (said: RunEvent | Question) => console.log(JSON.stringify(said))
  let questions = 0
  const ask = async (question: Omit<Question, 'event' | 'id'>): Promise<unknown> => {
    const id = ++questions
    const file = join(folder, answerFile(id))
    say({ event: 'question', id, ...question })
    while (!await fs.pathExists(file)) {
      if (stop.signal.aborted) throw new Stopped(AT_A_QUESTION)
      await sleep(LOOK)
    }
    return await fs.readJson(file)
  }
  return {
    screen: say,
    live: false,
    person,
    confirm: async (message) => await ask({ message }) === true,
    select: async (message, choices) => String(await ask({ message, choices })),
    signal: () => {
      heard = true
      return stop.signal
    },
  }
}
