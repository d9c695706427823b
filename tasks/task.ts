/**
 * What every task needs and nothing else: PowerShell as a tagged template, and the command line.
 * Copy this file beside any task, install zx and yargs, and the task runs.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream, existsSync, lstatSync, mkdirSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import process from 'node:process'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import yargs, { type Argv, type Options } from 'yargs'
import { $ } from 'zx/core'

/** A value that a script may take. It arrives in PowerShell as this value, whatever it contains. */
export type Value = string | number | boolean | null | undefined | Secret | readonly Value[]

/**
 * A text that nobody is to read, such as a password. A script has it as a SecureString, and it goes to
 * PowerShell beside the script's text: errors, journals and Windows' log of scripts do not have it.
 */
export class Secret {
  readonly #text: string

  constructor(text: string) {
    this.#text = text
  }

  /** The text itself, for the way to PowerShell alone. */
  reveal(): string {
    return this.#text
  }

  toString(): string {
    return '[secret]'
  }

  toJSON(): string {
    return '[secret]'
  }

  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return '[secret]'
  }
}

/**
 * Runs a PowerShell script. `stdout` is what it wrote to its output, a line an object.
 * Rejects with a {@link HostError} when the script fails.
 */
export type PowerShell = (
  pieces: TemplateStringsArray,
  ...values: Value[]
) => PromiseLike<{ stdout: string }>

/** A script that failed on the host: one plain sentence, and what tells the failure apart. */
export class HostError extends Error {
  override name = 'HostError'
  /**
   * FullyQualifiedErrorId, the only name of an error that no Windows translates; empty for
   * `throw 'text'`, and `TimedOut` where the script was stopped by its time limit.
   */
  readonly id: string
  /** HRESULT of the exception as PowerShell writes it, e.g. `0xC03A001A`. */
  readonly hresult: string
  /** PowerShell's class of the error, e.g. `ObjectNotFound`. */
  readonly category: string
  /** Where in the script it failed: the number of the line, from 1, and its text. */
  readonly line: { number: number; text: string } | undefined
  /** What the script was for, where {@link ScriptOptions.step} says it. */
  readonly step: string | undefined

  constructor(message: string, details: Partial<Omit<HostError, keyof Error>> = {}) {
    super(message)
    this.id = details.id ?? ''
    this.hresult = details.hresult ?? ''
    this.category = details.category ?? ''
    this.line = details.line
    this.step = details.step
  }
}

/**
 * PowerShell itself is not there, has died, or the way to it is broken. Whether the script that ran
 * did its work is not known; as every task looks first, running the same again goes on from there.
 */
export class ConnectionError extends Error {
  override name = 'ConnectionError'
}

/**
 * A PowerShell process that stays: `ps` runs scripts in it one after the other until `close`. Scripts that
 * are asked for before the answer to one is awaited go there together.
 */
export interface PowerShellProcess {
  ps: PowerShell
  /** The same process, for scripts that have a name, a time limit or a listener of their own. */
  using: (options: ScriptOptions) => PowerShell
  /** Ends the process and waits for its end. A script that still runs is stopped, and fails. */
  close: () => Promise<void>
}

export interface ScriptOptions {
  /** What the script is for, named in its errors. */
  step?: string | undefined
  /** Seconds after which the script is stopped where it runs. @default none */
  timeout?: number | undefined
  /**
   * Hears each warning of a script, and each error that the script itself let pass (`-ErrorAction
   * Continue`; any other error ends the script). @default writes it to standard error
   */
  onWarning?: ((warning: string) => void) | undefined
  /** Hears what the script says by Write-Progress, four times a second at most. @default nobody */
  onProgress?: ((progress: ScriptProgress) => void) | undefined
  /**
   * Bytes for the script, which reads them from the stream `$channel`, all of them and no more: what
   * follows is the next script's. A script that fails before ends the process.
   * @default none
   */
  feed?: AsyncIterable<Uint8Array> | undefined
}

/** A record of Write-Progress. */
export interface ScriptProgress {
  activity: string
  status: string
  /** 0 to 100; -1 where it is not known. */
  percent: number
}

export interface PowerShellOptions extends ScriptOptions {
  /**
   * `local`, or `ssh://[user@]host[:port]`, for which the system's own ssh is asked: its
   * configuration, agent and known hosts hold. `?powershell=pwsh` names another PowerShell than
   * powershell.exe there.
   * @default local
   */
  host?: string | undefined
  /** The local PowerShell. @default POWERSHELL, else powershell.exe on Windows and in WSL, else pwsh */
  program?: string | undefined
  /** @default this process's own */
  env?: NodeJS.ProcessEnv | undefined
}

/** The PowerShell of this machine, started anew for each script. */
export const powershell: PowerShell = async (pieces, ...values) => {
  const { ps, close } = openPowerShell()
  try {
    return await ps(pieces, ...values)
  } finally {
    await close()
  }
}

/** Starts PowerShell once for many scripts. Fails at the first script when the program is absent. */
export function openPowerShell(
  { host = 'local', program, env = process.env, ...common }: PowerShellOptions = {},
): PowerShellProcess {
  const way = host === 'local' ? here(program) : overSsh(parseHost(host), env)
  const mark = randomBytes(12).toString('hex')
  const loop = Buffer.from(LOOP.replaceAll('MARK', mark))
  const command = Buffer.from(BOOT.replace('LENGTH', `${loop.length}`), 'utf16le')
  const args = [...POWERSHELL_ARGS, '-EncodedCommand', command.toString('base64')]
  const child = $({
    quiet: true,
    nothrow: true,
    env: forProgram(way.program, env),
    quote: (text) => text,
    // zx knows shells by `-c`, which would load the user's profile
    spawn: ((_shell: string, _args: string[], options: object) =>
      spawn(way.program, way.args(args), {
        ...options,
        shell: false,
        // Ctrl-C is for the kit, which then ends PowerShell in order
        detached: process.platform !== 'win32',
      })) as unknown as typeof spawn,
  })`${way.program}`
  // zx starts a process a moment later unless asked for it
  const running = child.run().child as ChildProcess
  const { stdin, stdout } = running
  let stage: Stage = 'start'
  running.once('error', () => stage = 'absent')
  /** Sent and not answered, the one that runs first. */
  const sent: Job[] = []
  const receive = reader(mark, (kind, text) => {
    stage = 'script'
    sent[0]?.hear(kind, text)
  })
  stdout?.setEncoding('latin1').on('data', receive)
  stdin?.on('error', () => {}) // the end of the process says why
  stdin?.write(loop)
  const ended = child.then<End>(({ signal, exitCode, stderr }) => ({
    how: signal ?? `exit code ${exitCode}`,
    words: plain(stderr).slice(-2000),
  }))
  const kill = (signal: NodeJS.Signals = 'SIGTERM') => {
    try {
      // with what the script has started
      if (process.platform !== 'win32' && running.pid) process.kill(-running.pid, signal)
      else running.kill(signal)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
  const pour = async (feed: AsyncIterable<Uint8Array>) => {
    for await (const bytes of feed) {
      // a pipe that broke is a process that ends, which is told elsewhere
      if (stdin === null || stdin.destroyed) return
      const full = !stdin.write(bytes) && stdin.writableLength > AHEAD
      if (full) await Promise.race([once(stdin, 'drain').catch(() => {}), ended])
    }
  }
  const jobs: Job[] = []
  let draining = false
  const drain = async () => {
    draining = true
    while (jobs.length > 0) {
      await setImmediate() // whoever asks for more at once has done so then
      // what is fed is read from where the next script would be
      const ahead = jobs.findIndex(({ options }) => options.feed)
      const batch = jobs.splice(0, ahead < 0 ? jobs.length : Math.max(1, ahead))
      sent.push(...batch)
      sent[0]?.begin()
      stdin?.write(batch.map(({ line }, index) => `${batch.length - 1 - index} ${line}\n`).join(''))
      await Promise.allSettled(batch.map(({ answer }) => answer))
    }
    draining = false
  }
  const job = (text: string, options: ScriptOptions, secrets: Secret[]): Job => {
    const { step, timeout, onWarning = warn, onProgress, feed } = options
    let timer: NodeJS.Timeout | undefined
    let resolve!: (answer: { stdout: string }) => void
    let reject!: (error: unknown) => void
    const answer = new Promise<{ stdout: string }>((yes, no) => [resolve, reject] = [yes, no])
    let over = false
    const end = (settle: () => void) => {
      if (over) return
      over = true
      clearTimeout(timer)
      // who has the answer may close at once, so it is counted before that
      sent.shift()
      settle()
      sent[0]?.begin()
    }
    const fail = (error: unknown) => {
      end(() => {
        reject(error)
        if (feed) kill() // how much of it was read, nobody knows
      })
    }
    const base64 = (text: string) => Buffer.from(text, 'utf16le').toString('base64')
    const words = [text, ...secrets.map((secret) => secret.reveal())].map(base64)
    const own: Job = {
      options,
      answer,
      line: `${timeout ?? 0} ${feed ? 1 : 0} ${words.join(' ')}`,
      begin: () => {
        void ended.then((end) => fail(new ConnectionError(way.ended(stage, end as End, step))))
        if (timeout === undefined) return
        // the far side keeps the limit; this is for one that does not even do that
        timer = setTimeout(() => (fail(timedOut(options)), kill()), (timeout + GRACE) * 1000)
      },
      hear: (kind, said) => {
        if (kind === 'o') end(() => resolve({ stdout: said }))
        else if (kind === 'e') fail(hostError(JSON.parse(said) as Failure, text, step))
        else if (kind === 't') fail(timedOut(options))
        else if (kind === 'w') onWarning(said)
        else if (kind === 'p') onProgress?.(JSON.parse(said) as ScriptProgress)
        else if (kind === 's' && feed) pour(feed).catch((error) => (fail(error), kill()))
      },
    }
    return own
  }
  const using = (options: ScriptOptions): PowerShell => async (pieces, ...values) => {
    const secrets = values.filter((value) => value instanceof Secret)
    const asked = job(script(pieces, ...values), { ...common, ...options }, secrets)
    jobs.push(asked)
    if (!draining) void drain()
    return await asked.answer
  }
  return {
    ps: using({}),
    using,
    close: async () => {
      stdin?.end()
      if (jobs.length + sent.length > 0) kill()
      const timer = setTimeout(() => kill('SIGKILL'), 5000)
      await ended
      clearTimeout(timer)
    },
  }
}

/**
 * Whether this is Linux in WSL. WSL sets WSL_DISTRO_NAME in every session (it is the name by which
 * wslpath writes paths of the Linux file system); where sudo or cron dropped it, the kernel's entry
 * for programs of Windows still tells.
 */
export function inWsl(): boolean {
  if (process.platform !== 'linux') return false
  return Boolean(process.env.WSL_DISTRO_NAME) ||
    existsSync('/proc/sys/fs/binfmt_misc/WSLInterop') ||
    existsSync('/proc/sys/fs/binfmt_misc/WSLInterop-late') // systemd in WSL registers it later
}

/** Whether this machine's own PowerShell is that of Windows: on it, and in WSL. */
export function onWindows(): boolean {
  return process.platform === 'win32' || inWsl()
}

/**
 * The path by which Windows has a file of this machine. In WSL it is undefined for a file in the Linux
 * file system, which Windows reaches through WSL alone; elsewhere it is the path itself.
 */
export async function toWindows(path: string): Promise<string | undefined> {
  if (!inWsl()) return path
  const found = await wslpath('-w', resolve(path))
  return found === undefined || /^\\\\wsl(\$|\.localhost)\\/i.test(found) ? undefined : found
}

/**
 * Where a file of Windows is seen from WSL, wherever its drive is mounted; undefined where it is not.
 * Elsewhere the path itself.
 */
export async function fromWindows(path: string): Promise<string | undefined> {
  return inWsl() ? await wslpath('-u', path) : path
}

/**
 * The text of a script. A value that is the whole right side of an assignment is written there as a
 * literal; any other becomes a variable of its own, so that it is data inside double quotes too.
 */
export function script(pieces: readonly string[], ...values: Value[]): string {
  let head = ''
  let text = pieces[0] ?? ''
  let secrets = 0
  values.forEach((value, index) => {
    const next = pieces[index + 1] ?? ''
    if (value instanceof Secret) {
      // the loop has put it there
      text += `\${secret${secrets++}}${next}`
      return
    }
    if (/(^|\n)\s*\$\w+ = $/.test(text) && /^\s*(\n|$)/.test(next)) text += literal(value)
    else {
      head += `$value${index} = ${literal(value)}\n`
      text += `\${value${index}}`
    }
    text += next
  })
  return head + text
}

/** A value as PowerShell source that evaluates to it, in PowerShell 5.1 and 7, and to nothing else. */
export function literal(value: Value): string {
  if (value === null || value === undefined) return '$null'
  if (typeof value === 'boolean') return value ? '$true' : '$false'
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw new RangeError(`Cannot write ${value} in PowerShell`)
    return Number.isSafeInteger(value) ? `${value}` : `[double]'${value}'`
  }
  if (value instanceof Secret) throw new TypeError('Cannot write a secret down in PowerShell')
  if (typeof value !== 'string') {
    // @() would open a list that is the only one in it; a comma keeps it
    const comma = value.length === 1 && typeof value[0] === 'object' && value[0] ? ', ' : ''
    return `@(${comma}${value.map(literal).join(', ')})`
  }
  // PowerShell ends a string at any of five quotes; controls and halves of pairs do not survive a file
  const unsafe =
    // deno-lint-ignore no-control-regex
    /([\u0000-\u001f\u007f\u0085\u2028\u2029]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/
  const quoted = (text: string) => `'${text.replace(/['\u2018-\u201b]/g, '$&$&')}'`
  const parts = value.split(unsafe)
  if (parts.length <= MANY) {
    const words = parts.map((part, index) =>
      index % 2 ? `[char]${part.charCodeAt(0)}` : quoted(part)
    )
    return words.length === 1 ? `${words[0]}` : `(${words.join(' + ')})`
  }
  // PowerShell finds out anew for each plus what to do, some seconds for a text of a thousand lines
  const characters = [...new Set(parts.filter((_, index) => index % 2))]
  const format = parts.map((part, index) =>
    index % 2 ? `{${characters.indexOf(part)}}` : part.replace(/[{}]/g, '$&$&')
  )
  const codes = characters.map((character) => `[char]${character.charCodeAt(0)}`)
  return `(${quoted(format.join(''))} -f ${codes.join(', ')})`
}

/** Parts of a text, of which every other is a character by its code, that are put together by plus. */
const MANY = 16

/** The password that `--credential` names, and the user where the Credential Manager has one. */
export interface Credential {
  user?: string
  password: Secret
}

/**
 * Takes a password from where `way` says, which is never a command line: `prompt`, `stdin`, `env:NAME`,
 * or `manager:TARGET`, a generic credential of this user's Windows Credential Manager, as
 * `cmdkey /generic:TARGET /user:USER /pass` asks for and stores one.
 * @param question what a person is asked
 */
export async function readCredential(
  way: string,
  question: string,
  ps: PowerShell = powershell,
): Promise<Credential> {
  const [, from, name = ''] = /^(prompt|stdin|env:(?=.)|manager:(?=.))(.*)$/s.exec(way) ?? []
  if (from === 'manager:') return await fromManager(name, ps)
  if (from === 'stdin' && name === '') {
    let text = ''
    for await (const part of process.stdin.setEncoding('utf8')) text += part
    return { password: new Secret(text.replace(/\r?\n$/, '')) }
  }
  if (from === 'prompt' && name === '') {
    if (!process.stdin.isTTY || !process.stderr.isTTY) {
      throw new Error(
        `Cannot ask for the ${question}: there is no terminal. Use env:NAME, stdin or ` +
          'manager:TARGET instead of prompt',
      )
    }
    const { password } = await import('@inquirer/prompts')
    // the answer of a command alone is on standard output
    const message = question.replace(/^./, (letter) => letter.toUpperCase())
    return { password: new Secret(await password({ message }, { output: process.stderr })) }
  }
  if (from !== 'env:') {
    throw new TypeError(
      'Cannot take the password from the command line, which others see: it is prompt, stdin, ' +
        'env:NAME or manager:TARGET. Example: env:PROXY_PASSWORD',
    )
  }
  const value = process.env[name]
  if (value === undefined) {
    throw new Error(
      `Cannot take the ${question} from the environment: there is no variable ${
        JSON.stringify(name)
      }. Set it, or use prompt`,
    )
  }
  delete process.env[name] // programs that are started from here on do not have it
  return { password: new Secret(value) }
}

async function fromManager(target: string, ps: PowerShell): Promise<Credential> {
  // Windows may write down what passes between cmdlets (module logging), and this is of one use
  const pad = randomBytes(CREDENTIAL_SIZE).toString('base64')
  const { stdout } = await ps`
    $target = ${target}
    $source = ${CREDENTIAL_MANAGER}
    $pad = ${new Secret(pad)}
    $cannot = "Cannot take the password ""$target"" from the Credential Manager:"
    $entry = $null
    try {
      if (-not ('VboxToHyperV.CredentialManager' -as [type])) { Add-Type -TypeDefinition $source }
      $code = [VboxToHyperV.CredentialManager]::Read($target, [ref]$entry)
    } catch {
      if ([Environment]::OSVersion.Platform -ne 'Win32NT') { throw "$cannot only Windows has one. Use prompt or env:NAME instead" }
      throw
    }
    # 1168: not there; 1312: this session has no Credential Manager, as over SSH with a key
    if ($code -eq 1312) { throw "$cannot it is closed to this session (1312), as over SSH. Use prompt or env:NAME instead" }
    if ($code -ne 0) { throw "$cannot it has no generic credential of that name ($code). Run, and answer its question: cmdkey /generic:""$target"" /user:NAME /pass" }
    $key = [Convert]::FromBase64String((New-Object Net.NetworkCredential '', $pad).Password)
    $bytes = [Text.Encoding]::Unicode.GetBytes($entry.Password)
    if ($bytes.Length -gt $key.Length) { throw "$cannot it is too long" }
    for ($n = 0; $n -lt $bytes.Length; $n++) { $bytes[$n] = $bytes[$n] -bxor $key[$n] }
    [Convert]::ToBase64String($bytes)
    [string]$entry.UserName`
  const [answer = '', ...user] = stdout.split('\n')
  const key = Buffer.from(pad, 'base64')
  const bytes = Buffer.from(answer, 'base64').map((byte, index) => byte ^ (key[index] as number))
  const password = new Secret(Buffer.from(bytes).toString('utf16le'))
  return { ...(user.join('') && { user: user.join('') }), password }
}

/** Bytes that a generic credential has at most (wincred.h, CRED_MAX_CREDENTIAL_BLOB_SIZE). */
const CREDENTIAL_SIZE = 5 * 512

/**
 * C# for Add-Type: what PowerShell has no cmdlet for, to read a generic credential (type 1) by CredReadW
 * (learn.microsoft.com/windows/win32/api/wincred). Answers 0, or the error of Windows.
 */
export const CREDENTIAL_MANAGER = `
using System; using System.Net; using System.Runtime.InteropServices;
namespace VboxToHyperV { public static class CredentialManager {
  [StructLayout(LayoutKind.Sequential)] struct Entry { public uint Flags, Type; public IntPtr Target, Comment; public long Written; public uint Size; public IntPtr Blob; public uint Persist, Count; public IntPtr Attributes, Alias, User; }
  [DllImport("advapi32.dll", EntryPoint = "CredReadW", CharSet = CharSet.Unicode, SetLastError = true)] static extern bool CredRead(string target, uint type, uint flags, out IntPtr entry);
  [DllImport("advapi32.dll")] static extern void CredFree(IntPtr entry);
  public static int Read(string target, out NetworkCredential found) {
    found = null;
    IntPtr at;
    if (!CredRead(target, 1, 0, out at)) return Marshal.GetLastWin32Error();
    try {
      Entry entry = (Entry)Marshal.PtrToStructure(at, typeof(Entry));
      found = new NetworkCredential(Marshal.PtrToStringUni(entry.User), Marshal.PtrToStringUni(entry.Blob, (int)entry.Size / 2));
      return 0;
    } finally { CredFree(at); }
  }
} }`

/** An option of a task's command: yargs' own fields, and a value for the example in its help. */
export type Option = Options & { positional?: true; example?: string }

/** The option of every task that changes something. */
export const dryRun: Option = { type: 'boolean', describe: 'Say what would change; change nothing' }

/**
 * The command of a task, when the file is the program that runs: the result as JSON on standard
 * output, words on standard error. Exit code 0 done or already so, 1 failed, 3010 restart Windows and
 * run again (1 where exit codes end at 255).
 */
export async function command<T>(
  meta: ImportMeta,
  description: string,
  options: Record<string, Option>,
  run: (options: T) => Promise<unknown>,
): Promise<void> {
  const given = await commandLine<T>(meta, description, options)
  if (given !== undefined) await report(() => run(given))
}

/**
 * The command of a task that works on a host, which `--host` names. With `takeBack` it takes `--undo`
 * too, a file that has what an earlier run answered, and then no option of its own is required.
 */
export async function hostCommand<T extends object>(
  meta: ImportMeta,
  description: string,
  options: Record<string, Option>,
  run: (options: T, ps: PowerShell) => Promise<unknown>,
  // deno-lint-ignore no-explicit-any -- the answer comes from a file
  takeBack?: (answer: any, ps: PowerShell, options: T) => Promise<unknown>,
): Promise<void> {
  const host: Option = {
    type: 'string',
    describe: 'local, or ssh://[user@]host[:port] [default: local]',
  }
  const undo: Option = {
    type: 'string',
    describe:
      'Take back what a run answered that changed something: the file that has it, or - for standard input',
  }
  const undoes = takeBack !== undefined && process.argv.some((arg) => /^--undo(=|$)/.test(arg))
  const all = await commandLine<T & { host?: string; undo?: string; dryRun?: boolean }>(
    meta,
    description,
    {
      ...(undoes ? optional(options) : options),
      ...(takeBack && { undo }),
      host: { ...host, ...options.host },
    },
  )
  if (all === undefined) return
  const { host: named, undo: file, ...given } = all
  await report(async () => {
    let opened: PowerShellProcess | undefined
    // started when the task asks, so that it refuses what it cannot take without a host
    const ps: PowerShell = (pieces, ...values) => {
      opened ??= openPowerShell({ host: named })
      return opened.ps(pieces, ...values)
    }
    try {
      if (takeBack === undefined || file === undefined) return await run(given as T, ps)
      const answer = await readAnswer(file)
      const { changed, before = null } = answer
      const told = changed && !given.dryRun ? await takeBack(answer, ps, given as T) : undefined
      const { notes } = (told ?? {}) as { notes?: string[] }
      return {
        undone: changed && !given.dryRun,
        changed,
        before,
        ...(notes?.length && { notes }),
      }
    } finally {
      await opened?.close()
    }
  })
}

function optional(options: Record<string, Option>): Record<string, Option> {
  const free = ({ demandOption: _, ...option }: Option): Option => option
  return Object.fromEntries(Object.entries(options).map(([name, option]) => [name, free(option)]))
}

/** What a task answered, from a file as a shell writes it: Windows PowerShell's are UTF-16. */
async function readAnswer(file: string): Promise<{ changed: boolean; before?: unknown }> {
  const parts: Buffer[] = []
  try {
    for await (const part of file === '-' ? process.stdin : createReadStream(file)) parts.push(part)
  } catch (error) {
    const why = (error as NodeJS.ErrnoException).code ?? String(error)
    throw new Error(
      `Cannot read "${file}": ${why}. Name the file that has what the task answered: --undo`,
    )
  }
  const bytes = Buffer.concat(parts)
  const wide = bytes[0] === 0xff && bytes[1] === 0xfe
  const lines = bytes.toString(wide ? 'utf16le' : 'utf8').replace(/^\ufeff/, '').trim()
  try {
    const answer = JSON.parse(lines)
    if (typeof answer.changed === 'boolean') return answer
  } catch {
    // below
  }
  throw new Error(
    `Cannot take back what "${file}" says: it is not what a task answered. Keep what the task writes to ` +
      'standard output, for example: > answer.json',
  )
}

async function report(work: () => Promise<unknown>): Promise<void> {
  try {
    const result = await work()
    // a picture or a page is for people as it is
    console.log(typeof result === 'string' ? result : JSON.stringify(result))
    const restart = (result as { restartNeeded?: boolean } | undefined)?.restartNeeded
    if (restart) process.exitCode = process.platform === 'win32' ? 3010 : 1
  } catch (error) {
    // Ctrl-C at a question of @inquirer/prompts
    const stopped = error instanceof Error && error.name === 'ExitPromptError'
    if (stopped) console.error('Stopped at a question: nothing was changed')
    else console.error(error instanceof Error ? error.message : String(error))
    process.exitCode = stopped ? 130 : 1
  }
}

/**
 * What the command line of the file says, or undefined when another file is the program that runs.
 * Ends the process with its help, or with exit code 1 and a sentence when it cannot be understood.
 */
export async function commandLine<T>(
  meta: ImportMeta,
  description: string,
  options: Record<string, Option>,
): Promise<T | undefined> {
  // `npx zx task.ts` imports the task and leaves its name here; node and deno set meta.main
  const main = meta.main || (globalThis as { __filename?: string }).__filename === meta.filename
  if (!main || meta.filename === undefined) return undefined
  const self = process.argv.findIndex((arg) => resolve(arg) === meta.filename)
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      // who read it has gone, as `head` does; the work is done all the same
      if (error.code !== 'EPIPE') throw error
    })
  }
  const names = Object.keys(options)
  const args = process.argv.slice(self + 1)
  if (args[0] === DESCRIBE) {
    console.log(JSON.stringify({ description, options }))
    process.exit(0)
  }
  const parser = commandParser(
    args,
    `npx zx ${relative(process.cwd(), meta.filename)}`,
    description,
    options,
  )
    .showHelpOnFail(false, 'Run with --help to see the options.')
    .wrap(Math.min(100, process.stdout.columns || 100))
  const given: Record<string, unknown> = await parser.parseAsync()
  for (const name of names) {
    if (!Array.isArray(given[name]) || options[name]?.array) continue
    console.error(
      `Cannot take --${kebab(name)} more than once. Run with --help to see the options.`,
    )
    process.exit(1)
  }
  // yargs adds its own: `_`, `$0`, and each name with dashes once more
  const named = names.filter((name) => given[name] !== undefined)
  return Object.fromEntries(named.map((name) => [name, unmask(given[name])])) as T
}

/** What reads command lines of a task: yargs with its options, which takes no others. */
export function commandParser(
  args: readonly string[],
  name: string,
  description: string,
  options: Record<string, Option>,
): Argv {
  const names = Object.keys(options)
  const word = (name: string) => {
    const { array, demandOption } = options[name] ?? {}
    const text = `${name}${array ? '..' : ''}`
    return demandOption ? `<${text}>` : `[${text}]`
  }
  const positional = names.filter((name) => options[name]?.positional).map(word)
  const example = names.flatMap((name) => {
    const value = options[name]?.example
    if (value === undefined) return []
    return options[name]?.positional ? [value] : [`--${kebab(name)} ${value}`.trim()]
  })
  const end = args.indexOf('--')
  // yargs counts what follows `--` as no positional at all, so a name like -x is masked until after
  const masked = end < 0 ? [...args] : [
    ...args.slice(0, end),
    ...args.slice(end + 1).map((arg) => arg.replace(/^-/, `${MASK}-`)),
  ]
  return yargs(masked)
    .locale('en') // else help and errors change with the user's language, and scripts read them
    .scriptName(name)
    .command(['$0', ...positional].join(' '), description, (command) => {
      for (const name of names) {
        const { positional, example: _, ...option } = options[name] as Option
        // without requiresArg `--vm --dry-run` would be a VM named ""
        if (positional) command.positional(name, option as Parameters<typeof command.positional>[1])
        else {
          const takes = option.type === 'boolean' ? {} : { requiresArg: true }
          command.option(kebab(name), { ...takes, ...option })
        }
      }
      return command.example(['$0', ...example].join(' '), '')
    })
    .strict()
    .version(false)
}

/** What asks a command for its options as JSON, for programs that complete command lines. */
export const DESCRIBE = '--describe-options'

/** A character that is no one's: reserved for private use. */
const MASK = '\ue000'

function unmask(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(unmask)
  return typeof value === 'string' && value.startsWith(MASK) ? value.slice(1) : value
}

/** Bytes of a feed that wait here, so that neither side waits for the other. */
const AHEAD = 4 * 1024 ** 2

/** Seconds that a script has, after its time limit, to be stopped where it runs. */
const GRACE = 10

/** A script that is to run, and what waits for it. */
interface Job {
  options: ScriptOptions
  /** What is sent for it, but for how many more come with it. */
  line: string
  answer: Promise<{ stdout: string }>
  /** It is its turn. */
  begin: () => void
  hear: (kind: string, text: string) => void
}

/** How a process ended, and what it wrote to standard error. */
interface End {
  how: string
  words: string
}

/** How far a process came before it ended: its program is absent, it never answered, or it did. */
type Stage = 'absent' | 'start' | 'script'

/** The way to a PowerShell: what to start, and what it means that it ended. */
interface Way {
  program: string
  /** Arguments, for PowerShell's own. */
  args: (powershell: string[]) => string[]
  ended: (stage: Stage, end: End, step: string | undefined) => string
}

const POWERSHELL_ARGS = ['-NoLogo', '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass']

function here(program = defaultProgram()): Way {
  const ofWindows = inWsl() && /\.exe$/i.test(program)
  return {
    program,
    args: (powershell) => powershell,
    ended: (stage, { how, words }, step) =>
      stage === 'absent'
        ? `Cannot start PowerShell: no program "${program}" is on PATH. ` +
          (ofWindows
            ? `Run: export POWERSHELL=/mnt/c/Windows/System32/WindowsPowerShell/v1.0/powershell.exe`
            : 'Set POWERSHELL to the PowerShell to use, or install one: https://aka.ms/powershell')
        : limited(stage, how)
        ? `Cannot use the PowerShell "${program}": ${LIMITED}`
        : stage === 'start' && ofWindows
        ? `Cannot start PowerShell from WSL: it ended at once (${how})${words && `: ${words}`}. ` +
          'Where no program of Windows runs from WSL, run in Windows: wsl --shutdown'
        : `PowerShell ended in the middle of ${named(step)} (${how})${
          words && `: ${words}`
        }. ${AGAIN}`,
  }
}

/**
 * PowerShell at the other end of ssh. The command is one that cmd, PowerShell and POSIX shells read
 * alike, and short enough for cmd (8191 characters). ssh asks nothing (BatchMode), and what it thinks
 * of host keys is the user's configuration's and is left alone. Commands that follow soon after share
 * one connection, where ssh can.
 */
function overSsh({ name, user, port, program }: SshHost, env: NodeJS.ProcessEnv): Way {
  const options = {
    BatchMode: 'yes',
    ConnectTimeout: '30',
    // a broken link is noticed within a minute
    ServerAliveInterval: '15',
    ServerAliveCountMax: '3',
    ClearAllForwardings: 'yes',
    RemoteCommand: 'none',
    RequestTTY: 'no',
    ...sharedConnection(env),
  }
  const where = [...(port ? ['-p', port] : []), ...(user ? ['-l', user] : []), '--', name]
  const typed = [
    ...where.filter((word) => word !== '--').map((word) => /[\\ ]/.test(word) ? `"${word}"` : word),
  ].join(' ')
  return {
    program: 'ssh',
    args: (powershell) => [
      ...Object.entries(options).flatMap(([option, value]) => ['-o', `${option}=${value}`]),
      ...where,
      [program, ...powershell].join(' '),
    ],
    ended: (stage, { how, words }, step) => {
      const cannot = `Cannot connect to "${name}":`
      if (stage === 'absent') {
        return `${cannot} no program "ssh" is on PATH. Install OpenSSH's client, on Windows: ` +
          'Add-WindowsCapability -Online -Name OpenSSH.Client~~~~0.0.1.0'
      }
      if (stage === 'script') {
        return `The connection to "${name}" was lost in the middle of ${named(step)} (${how})${
          words && `: ${words}`
        }. ${AGAIN}`
      }
      if (limited(stage, how)) return `Cannot use the PowerShell of "${name}": ${LIMITED}`
      if (/IDENTIFICATION HAS CHANGED/.test(words)) {
        const known = port && port !== '22' ? `[${name}]:${port}` : name
        return `${cannot} its host key is not the one that is known, so it may be another machine that ` +
          'answers. Ask whoever runs it, compare the fingerprint with what it says itself (there: ' +
          `${FINGERPRINT}), and only then forget the old key. Run: ssh-keygen -R "${known}"`
      }
      if (/Host key verification failed/.test(words)) {
        return `${cannot} its host key is not known here. Compare the fingerprint that ssh shows with what ` +
          `the host says itself (there: ${FINGERPRINT}), and answer yes. Run: ssh ${typed} exit`
      }
      if (/Permission denied|Too many authentication failures/.test(words)) {
        return `${cannot} it takes none of the keys that ssh offers, and no password is asked for. Put your ` +
          'public key there (administrators: C:\\ProgramData\\ssh\\administrators_authorized_keys), and see that ' +
          `this works without a question. Run: ssh -o BatchMode=yes ${typed} exit`
      }
      if (
        /exit code (127|9009)/.test(how) || /CommandNotFoundException|not recognized/.test(words)
      ) {
        return `${cannot} there is no program "${program}". If PowerShell has another name there, ` +
          `write it so: ssh://${name}?powershell=pwsh`
      }
      return `${cannot} ${words || how}. See whether ssh gets there, and whether sshd runs there ` +
        `(Start-Service sshd). Run: ssh ${typed} exit`
    },
  }
}

/** The exit code with which {@link BOOT} says that it may not read. */
const LIMITED_CODE = 65

const LIMITED =
  'it runs in Constrained Language mode, as AppLocker or App Control for Business tells it ' +
  'to, and may not read what this kit sends. Ask who sets that policy to allow this user PowerShell in ' +
  'full. See it there: powershell -Command $ExecutionContext.SessionState.LanguageMode'

function limited(stage: Stage, how: string): boolean {
  return stage === 'start' && how === `exit code ${LIMITED_CODE}`
}

const AGAIN = 'Run the same again: it goes on from what is done'

const FINGERPRINT = 'ssh-keygen -lf C:\\ProgramData\\ssh\\ssh_host_ed25519_key.pub'

interface SshHost {
  name: string
  user: string | undefined
  port: string | undefined
  /** PowerShell's name there. */
  program: string
}

/** Takes `ssh://[user@]host[:port][?powershell=PROGRAM]` apart, and refuses what ssh or a shell could misread. */
export function parseHost(host: string): SshHost {
  const [, login, bare, bracketed, port, program = 'powershell.exe'] = host.match(
    /^ssh:\/\/(?:([^@/?#]*)@)?(?:([\p{L}\p{N}_.-]+)|\[([\da-f:.]+(?:%[\w.-]+)?)\])(?::(\d{1,5}))?\/?(?:\?powershell=([\w./~:\\-]+))?$/iu,
  ) ?? []
  const name = bare ?? bracketed
  let user = login
  try {
    user = login && decodeURIComponent(login)
  } catch {
    user = ''
  }
  // a user may be DOMAIN\name; ssh gives the name to the commands of its configuration
  const strange = [name, user, program].some((word) =>
    word?.startsWith('-') || word === '' || /[^\p{L}\p{N}_.%@:/~ \\-]/u.test(word ?? '')
  )
  const secret = user?.includes(':') // others would see it in ssh's command line
  if (name === undefined || strange || secret || Number(port ?? 22) > 65535 || port === '0') {
    throw new TypeError(
      `Cannot use ${
        JSON.stringify(withoutPassword(host))
      } as a host: it is local, or ssh://[user@]host[:port]. ` +
        'Example: ssh://admin@hyperv.lan',
    )
  }
  return { name, user, port, program }
}

/**
 * Options with which commands that follow within a minute use the connection that is there, through a
 * socket in a folder that only this user can enter. ssh on Windows has no such sockets, and fails where
 * its configuration asks for them (PowerShell/Win32-OpenSSH#1328).
 */
function sharedConnection(env: NodeJS.ProcessEnv): Record<string, string> {
  const user = process.getuid?.()
  if (user === undefined) return { ControlMaster: 'no', ControlPath: 'none' }
  const folder = join(env.XDG_RUNTIME_DIR || '/tmp', `vbox-to-hyperv-${user}`)
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const found = lstatSync(folder)
    const own = found.isDirectory() && found.uid === user && (found.mode & 0o077) === 0
    // a socket's path has 104 characters at most, and ssh adds 17 while it makes one
    if (!own || folder.length > 44) return {}
  } catch {
    return {} // each command then connects for itself
  }
  return { ControlMaster: 'auto', ControlPath: join(folder, '%C'), ControlPersist: '60' }
}

function named(step: string | undefined): string {
  return step === undefined ? 'a script' : `"${step}"`
}

interface Failure {
  message: string
  id: string
  hresult: string
  category: string
  line: number
}

function hostError({ line, ...failure }: Failure, script: string, step?: string): HostError {
  const text = script.split('\n')[line - 1]
  const message = plain(failure.message)
  const where = { step, line: text === undefined ? undefined : { number: line, text: text.trim() } }
  // a script's own `throw 'text'` has the text for its id, and is a whole sentence already
  const own = failure.id === failure.message
  return own
    ? new HostError(message, { ...failure, ...where, id: '', hresult: '' })
    : new HostError(`${message} (${failure.id})`, { ...failure, ...where })
}

function timedOut({ step, timeout }: ScriptOptions): HostError {
  return new HostError(
    `Cannot wait longer for ${named(step)}: it ran into its time ` +
      `limit of ${timeout} s and was stopped. See what keeps the host busy, and run the same again`,
    { id: 'TimedOut', category: 'OperationTimeout', step },
  )
}

/**
 * Finds the loop's lines in what a process writes, and puts messages of several lines together. A line
 * is the mark, the kind of message, 1 where it is the message's last, and base64 of UTF-16.
 */
function reader(mark: string, hear: (kind: string, text: string) => void) {
  let unread = ''
  let parts: Buffer[] = []
  return (data: string) => {
    const lines = (unread + data).split('\n')
    // a line of the loop is short; what goes on and on is a program's, and is nobody's to read
    unread = lines.pop()?.slice(-1_000_000) ?? ''
    for (const line of lines) {
      if (!line.startsWith(mark)) continue
      parts.push(Buffer.from(line.slice(mark.length + 2), 'base64'))
      if (line[mark.length + 1] !== '1') continue
      const text = Buffer.concat(parts).toString('utf16le')
      parts = []
      hear(line[mark.length] as string, text)
    }
  }
}

/**
 * Reads the loop, of so many bytes, and becomes it: the command lines of Windows are too short for
 * the loop itself. No variable here or there may be called input: by that name PowerShell would
 * take standard input for itself (PowerShell's ConsoleHost.cs, IsUsingDollarInput).
 */
export const BOOT = `
if ($ExecutionContext.SessionState.LanguageMode -ne 'FullLanguage') { exit ${LIMITED_CODE} }
$channel = [Console]::OpenStandardInput()
$bytes = New-Object byte[] LENGTH
$at = 0
while ($at -lt $bytes.Length) {
  $got = $channel.Read($bytes, $at, $bytes.Length - $at)
  if ($got -eq 0) { exit 1 }
  $at += $got
}
. ([ScriptBlock]::Create([Text.Encoding]::ASCII.GetString($bytes)))`

/**
 * Reads scripts from standard input, one a line after how many more come with it and its time limit, and
 * answers each. Those that come together are read before the first runs. Base64 of
 * UTF-16 both ways: no code page, quote or newline of the host can come between, and every string
 * survives. Lines are short enough for a pipe to take each in one piece (4096 bytes), so that what
 * else is written to the pipe comes between lines and not into them.
 *
 * The scripts run in a runspace of their own, so that \`exit\` ends a script and not the loop, nothing
 * can wait for a person, Write-Host cannot break an answer, and a script can be stopped.
 *
 * While a script runs nothing reads standard input: on Windows a program that the script starts would
 * hang on a pipe that is being read (assumption: GetFileType waits for the reader). That nobody waits
 * for the answer any more is seen from the other side: once a second the loop writes a line that says
 * nothing, and where that fails it stops the script and ends. sshd on Windows leaves processes of a
 * lost connection behind (PowerShell/Win32-OpenSSH#1751).
 */
export const LOOP = `
$ErrorActionPreference = 'Stop'
$out = [Console]::OpenStandardOutput()
try {
  # the stream that Console gives keeps to itself that nobody reads what it writes
  $handle = $out.GetType().GetField('_handle', 'Instance, NonPublic').GetValue($out)
  if ($handle -is [IntPtr]) { $handle = New-Object Microsoft.Win32.SafeHandles.SafeFileHandle $handle, $false }
  $out = New-Object IO.FileStream $handle, ([IO.FileAccess]::Write), 1
} catch { } # then a script whose reader has gone runs to its end or to its time limit
$shell = $null
$say = {
  param($kind, $text)
  $chars = ([string]$text).ToCharArray()
  $bytes = New-Object byte[] ($chars.Length * 2)
  [Buffer]::BlockCopy($chars, 0, $bytes, 0, $bytes.Length) # Encoding would replace halves of pairs
  $at = 0
  do {
    $size = [Math]::Min(2700, $bytes.Length - $at)
    $last = [int]($at + $size -eq $bytes.Length)
    $line = [string][char]10 + 'MARK' + $kind + $last + [Convert]::ToBase64String($bytes, $at, $size) + [char]10
    $ascii = [Text.Encoding]::ASCII.GetBytes($line)
    try {
      $out.Write($ascii, 0, $ascii.Length)
      $out.Flush()
    } catch {
      if ($shell) { $null = $shell.BeginStop($null, $null).AsyncWaitHandle.WaitOne(3000) }
      [Environment]::Exit(1)
    }
    $at += $size
  } until ($last)
}
$tell = {
  foreach ($record in $shell.Streams.Warning.ReadAll()) { & $say 'w' $record.Message }
  foreach ($record in $shell.Streams.Error.ReadAll()) {
    if ($record.FullyQualifiedErrorId) { & $say 'w' "$($record.Exception.Message) ($($record.FullyQualifiedErrorId))" }
  }
  $record = $shell.Streams.Progress.ReadAll() | Select-Object -Last 1
  if ($record) {
    $progress = @{ activity = $record.Activity; status = $record.StatusDescription; percent = $record.PercentComplete }
    & $say 'p' (ConvertTo-Json -InputObject $progress -Compress)
  }
}
$runspace = [RunspaceFactory]::CreateRunspace()
$runspace.ThreadOptions = 'ReuseThread'
$runspace.Open()
$runspace.SessionStateProxy.SetVariable('ErrorActionPreference', 'Stop')
$runspace.SessionStateProxy.SetVariable('channel', $channel)
$lines = New-Object IO.StreamReader $channel
$ahead = New-Object Collections.Queue
& $say 'h'
while ($ahead.Count -gt 0 -or $null -ne ($line = $lines.ReadLine())) {
  if ($ahead.Count -gt 0) { $line = $ahead.Dequeue() }
  else { for ($n = [int]$line.Substring(0, $line.IndexOf(' ')); $n -gt 0; $n--) { $ahead.Enqueue($lines.ReadLine()) } }
  $null, $limit, $feeds, $base64, $secrets = $line.Split(' ')
  $secrets = @($secrets | Where-Object { $_ })
  $line = $null
  $failure = $null
  $late = $false
  $shell = [PowerShell]::Create()
  $shell.Runspace = $runspace
  try {
    $text = [Text.Encoding]::Unicode.GetString([Convert]::FromBase64String($base64))
    for ($n = 0; $n -lt $secrets.Count; $n++) {
      $secret = [Text.Encoding]::Unicode.GetString([Convert]::FromBase64String($secrets[$n]))
      $runspace.SessionStateProxy.SetVariable("secret$n", (New-Object Net.NetworkCredential '', $secret).SecurePassword)
    }
    $null = $shell.AddScript('& {' + $text + [char]10 + '}; ''MARK''', $true)
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $run = $shell.BeginInvoke()
    if ($feeds -eq '1') { & $say 's' }
    for ($n = 1; -not $run.AsyncWaitHandle.WaitOne(250); $n++) {
      & $tell
      if ($n % 4 -eq 0) { & $say '.' }
      if ([double]$limit -gt 0 -and $clock.Elapsed.TotalSeconds -ge [double]$limit) {
        $late = $true
        if ($shell.BeginStop($null, $null).AsyncWaitHandle.WaitOne(3000)) { break }
        & $say 't'
        [Environment]::Exit(1)
      }
    }
    $output = @($shell.EndInvoke($run) | ForEach-Object { [string]$_ })
    if ($output.Length -eq 0 -or $output[-1] -ne 'MARK') { throw 'The script left PowerShell by exit' }
    $answer = @($output | Select-Object -SkipLast 1) -join [string][char]10
  } catch {
    $record = $_
    if ($_.Exception.InnerException.ErrorRecord) { $record = $_.Exception.InnerException.ErrorRecord }
    $number = $record.InvocationInfo.ScriptLineNumber
    if ($record.InvocationInfo.ScriptName) {
      # it failed in a module's file: the line is that of the script's call
      $frames = ([string]$record.ScriptStackTrace).Split([char]10) -notmatch '[.](psm?1|cdxml):'
      $number = if ($frames -and $frames[0] -match '([0-9]+)[^0-9]*$') { $Matches[1] } else { 0 }
    }
    $failure = @{
      message = [string]$record.Exception.Message
      id = [string]$record.FullyQualifiedErrorId
      hresult = '0x{0:X8}' -f $record.Exception.HResult
      category = [string]$record.CategoryInfo.Category
      line = [int]$number
    }
  }
  for ($n = 0; $n -lt $secrets.Count; $n++) { $runspace.SessionStateProxy.SetVariable("secret$n", $null) }
  $secret = $secrets = $null
  & $tell
  if ($late) { & $say 't' }
  elseif ($failure) { & $say 'e' (ConvertTo-Json -InputObject $failure -Compress) }
  else { & $say 'o' $answer }
  $shell.Dispose()
  $shell = $null
}
`

function defaultProgram(): string {
  return process.env.POWERSHELL || (onWindows() ? 'powershell.exe' : 'pwsh')
}

/** Undefined for a path that wslpath cannot translate. */
async function wslpath(way: '-u' | '-w', path: string): Promise<string | undefined> {
  try {
    return (await promisify(execFile)('wslpath', [way, path])).stdout.replace(/\n$/, '')
  } catch (error) {
    const { code } = error as { code?: number | string }
    if (code === 1) return undefined
    if (code !== 'ENOENT') throw error
    throw new ConnectionError(
      `Cannot translate "${path}" between Windows and WSL: no program "wslpath" is on PATH, ` +
        'which WSL has in /usr/bin. Run in Windows: wsl --update',
    )
  }
}

/**
 * Node started by PowerShell 7 inherits its PSModulePath, in which Windows PowerShell finds the
 * modules of 7 before its own and cannot load them.
 */
function forProgram(program: string, env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  if (process.platform !== 'win32' || !/(^|[\\/])powershell(\.exe)?$/i.test(program)) return env
  const name = Object.keys(env).find((key) => key.toLowerCase() === 'psmodulepath')
  if (name === undefined) return env
  const kept = env[name]?.split(';').filter((path) => !/\\powershell\\(7|modules)/i.test(path))
  return { ...env, [name]: kept?.join(';') }
}

/** A name of an option as it is on a command line: `guestIp` is `guest-ip`. */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

/** An address as it may be told: without a password in it, which may have any character, also `@`. */
export function withoutPassword(address: string): string {
  return address.replace(/:(?!\/\/)[^]*@/, ':...@')
}

/** In one line, without what would move the cursor. */
function plain(text: string): string {
  const line = text.trim().replace(/\s*[\r\n]+\s*/g, ' ')
  // deno-lint-ignore no-control-regex
  return line.replace(/[\u0000-\u001f\u007f-\u009f]/g, '\ufffd')
}

function warn(warning: string): void {
  console.error(`PowerShell warns: ${warning}`)
}
