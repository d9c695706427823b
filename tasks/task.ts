/**
 * What every task needs and nothing else: PowerShell as a tagged template, and the command line.
 * Copy this file beside any task, install zx and yargs, and the task runs.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { relative, resolve } from 'node:path'
import process from 'node:process'
import yargs, { type Options } from 'yargs'
import { $ } from 'zx'

/** A value that a script may take. It arrives in PowerShell as this value, whatever it contains. */
export type Value = string | number | boolean | null | undefined | readonly Value[]

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
  /** FullyQualifiedErrorId, the only name of an error that no Windows translates; empty for `throw 'text'`. */
  readonly id: string
  /** HRESULT of the exception as PowerShell writes it, e.g. `0xC03A001A`. */
  readonly hresult: string

  constructor(message: string, id = '', hresult = '') {
    super(message)
    this.id = id
    this.hresult = hresult
  }
}

/** A PowerShell process that stays: `ps` runs scripts in it one after the other until `close`. */
export interface PowerShellProcess {
  ps: PowerShell
  /** Ends the process and waits for its end. A script that still runs fails. */
  close: () => Promise<void>
}

export interface PowerShellOptions {
  /** @default POWERSHELL, else powershell.exe on Windows and in WSL, else pwsh */
  program?: string | undefined
  /** @default this process's own */
  env?: NodeJS.ProcessEnv | undefined
  /** Hears each warning of a script. @default writes it to standard error */
  onWarning?: ((warning: string) => void) | undefined
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
  { program = defaultProgram(), env = process.env, onWarning = warn }: PowerShellOptions = {},
): PowerShellProcess {
  const mark = randomBytes(12).toString('hex')
  const command = Buffer.from(LOOP.replaceAll('MARK', mark), 'utf16le').toString('base64')
  const args = ['-NoLogo', '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass']
  const child = $({
    quiet: true,
    nothrow: true,
    env: forProgram(program, env),
    quote: (text) => text,
    // zx knows shells by `-c`, which would load the user's profile
    spawn: ((_shell: string, _args: string[], options: object) =>
      spawn(program, [...args, '-EncodedCommand', command], {
        ...options,
        shell: false,
        // Ctrl-C is for the kit, which then ends PowerShell in order
        detached: process.platform !== 'win32',
      })) as unknown as typeof spawn,
  })`${program}`
  // zx starts a process a moment later unless asked for it
  const running = child.run().child as ChildProcess
  const { stdin, stdout } = running
  let started = true
  running.once('error', () => started = false)
  let waiting: { resolve: (answer: Answer) => void; reject: (error: Error) => void } | undefined
  let unread = ''
  stdout?.setEncoding('latin1').on('data', (text: string) => {
    const lines = (unread + text).split('\n')
    unread = lines.pop() ?? ''
    for (const line of lines) {
      // whatever else reaches the console (a native program, [Console]::Write) is no answer
      if (!line.startsWith(mark)) continue
      waiting?.resolve(decode(line.slice(mark.length)))
      waiting = undefined
    }
  })
  stdin?.on('error', () => {}) // the end of the process says why
  const ended = child.then((output) =>
    new HostError(
      !started
        ? `Cannot start PowerShell: no program "${program}" is on PATH. ` +
          'Set POWERSHELL to the PowerShell to use, or install one: https://aka.ms/powershell'
        : `PowerShell ended in the middle of a script (${
          output.signal ?? `exit code ${output.exitCode}`
        })${output.stderr.trim() ? `: ${plain(output.stderr).slice(-500)}` : ''}`,
    )
  )
  let last: Promise<unknown> = Promise.resolve()
  const send = async (script: string) => {
    const answer = await new Promise<Answer>((resolve, reject) => {
      waiting = { resolve, reject }
      void ended.then(reject)
      stdin?.write(Buffer.from(script, 'utf16le').toString('base64') + '\n')
    })
    for (const warning of answer.warnings) onWarning(warning)
    if (answer.error === null) return { stdout: answer.stdout }
    const { message, id, hresult } = answer.error
    // a script's own `throw 'text'` has the text for its id, and is a whole sentence already
    if (id === message) throw new HostError(plain(message))
    throw new HostError(`${plain(message)} (${id})`, id, hresult)
  }
  return {
    ps: (pieces, ...values) => {
      const answer = last.then(() => send(script(pieces, ...values)))
      last = answer.catch(() => {})
      return answer
    },
    close: async () => {
      stdin?.end()
      if (waiting) running.kill()
      await ended
    },
  }
}

/**
 * The text of a script. A value that is the whole right side of an assignment is written there as a
 * literal; any other becomes a variable of its own, so that it is data inside double quotes too.
 */
export function script(pieces: readonly string[], ...values: Value[]): string {
  let head = ''
  let text = pieces[0] ?? ''
  values.forEach((value, index) => {
    const next = pieces[index + 1] ?? ''
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
  if (typeof value !== 'string') return `@(${value.map(literal).join(', ')})`
  // PowerShell ends a string at any of five quotes; controls and halves of pairs do not survive a file
  const unsafe =
    // deno-lint-ignore no-control-regex
    /([\u0000-\u001f\u007f\u0085\u2028\u2029]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/
  const parts = value.split(unsafe).map((part, index) =>
    index % 2 ? `[char]${part.charCodeAt(0)}` : `'${part.replace(/['\u2018-\u201b]/g, '$&$&')}'`
  )
  return parts.length === 1 ? `${parts[0]}` : `(${parts.join(' + ')})`
}

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
  if (given === undefined) return
  try {
    const result = await run(given)
    console.log(JSON.stringify(result))
    const restart = (result as { restartNeeded?: boolean } | undefined)?.restartNeeded
    if (restart) process.exitCode = process.platform === 'win32' ? 3010 : 1
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error))
    process.exitCode = 1
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
  const args = process.argv.slice(self + 1)
  const end = args.indexOf('--')
  // yargs counts what follows `--` as no positional at all, so a name like -x is masked until after
  if (end >= 0) {
    args.splice(
      end,
      args.length,
      ...args.slice(end + 1).map((arg) => arg.replace(/^-/, `${MASK}-`)),
    )
  }
  const parser = yargs(args)
    .locale('en') // else help and errors change with the user's language, and scripts read them
    .scriptName(`npx zx ${relative(process.cwd(), meta.filename)}`)
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

/** A character that is no one's: reserved for private use. */
const MASK = '\ue000'

function unmask(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(unmask)
  return typeof value === 'string' && value.startsWith(MASK) ? value.slice(1) : value
}

interface Answer {
  stdout: string
  warnings: string[]
  error: { message: string; id: string; hresult: string } | null
}

/**
 * Reads scripts from standard input, one a line, and answers each with one line. Base64 of UTF-16
 * both ways: no code page, quote or newline of the host can come between, and every string survives.
 * The scripts run in a runspace of their own, so that `exit` ends a script and not the loop, nothing
 * can wait for a person, and Write-Host cannot break an answer.
 */
const LOOP = `
$ErrorActionPreference = 'Stop'
$runspace = [RunspaceFactory]::CreateRunspace()
$runspace.Open()
$runspace.SessionStateProxy.SetVariable('ErrorActionPreference', 'Stop')
$runspace.SessionStateProxy.SetVariable('ProgressPreference', 'SilentlyContinue')
while ($null -ne ($line = [Console]::In.ReadLine())) {
  $answer = @{ stdout = ''; warnings = @(); error = $null }
  $shell = [PowerShell]::Create()
  $shell.Runspace = $runspace
  try {
    $text = [Text.Encoding]::Unicode.GetString([Convert]::FromBase64String($line))
    $null = $shell.AddScript('& {' + $text + [char]10 + '}; ''MARK''', $true)
    $output = @($shell.Invoke() | ForEach-Object { [string]$_ })
    if ($output[-1] -ne 'MARK') { throw 'The script left PowerShell by exit' }
    $answer.stdout = @($output | Select-Object -SkipLast 1) -join [string][char]10
  } catch {
    $record = $_
    if ($_.Exception.InnerException.ErrorRecord) { $record = $_.Exception.InnerException.ErrorRecord }
    $answer.error = @{
      message = [string]$record.Exception.Message
      id = [string]$record.FullyQualifiedErrorId
      hresult = '0x{0:X8}' -f $record.Exception.HResult
    }
  }
  $answer.warnings = @($shell.Streams.Warning | ForEach-Object { [string]$_.Message })
  $shell.Dispose()
  $json = (ConvertTo-Json -InputObject $answer -Compress).ToCharArray()
  $bytes = New-Object byte[] ($json.Length * 2)
  [Buffer]::BlockCopy($json, 0, $bytes, 0, $bytes.Length) # Encoding would replace halves of pairs
  $line = 'MARK' + [Convert]::ToBase64String($bytes)
  [Console]::Out.Write([string][char]10 + $line + [char]10)
  [Console]::Out.Flush()
}
`

function decode(answer: string): Answer {
  return JSON.parse(Buffer.from(answer, 'base64').toString('utf16le')) as Answer
}

function defaultProgram(): string {
  const windows = process.platform === 'win32' ||
    existsSync('/proc/sys/fs/binfmt_misc/WSLInterop') ||
    existsSync('/proc/sys/fs/binfmt_misc/WSLInterop-late') // systemd in WSL registers it later
  return process.env.POWERSHELL || (windows ? 'powershell.exe' : 'pwsh')
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

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

function plain(text: string): string {
  return text.trim().replace(/\s*[\r\n]+\s*/g, ' ')
}

function warn(warning: string): void {
  console.error(`PowerShell warns: ${warning}`)
}
