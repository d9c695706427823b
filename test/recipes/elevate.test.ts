import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import {
  checkElevation,
  type Conversation,
  elevate,
  type ElevateOptions,
  offerElevation,
} from '../../recipes/run/elevate.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { checkHost } from '../../tasks/check-host.ts'
import {
  openPowerShell,
  type PowerShell,
  type PowerShellProcess,
  script,
  type Value,
} from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { simulatedHost } from '../simulated-host.ts'
import { analyze } from '../tasks/analyze.ts'

const root = join(import.meta.dirname as string, '..', '..')
const recipe = join(root, 'test', 'told.ts')
const HOSTILE = [
  'Bob’s "VM"; $(calc) 桥接',
  'C:\\folder\\',
  'a "b\\"',
  '',
  'two\nlines',
  '%PATH%',
  "'",
  '-x',
  '`n',
]
const [name = ''] = HOSTILE
const runtime = 'Deno' in globalThis ? ['run', '-A'] : []

const test = suite<{ dir: string }>('elevate')

let host: PowerShellProcess | undefined

test.after(() => host?.close())
test.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'elevate ’test '))
})
test.after.each(({ dir }) => fs.remove(dir))

test('hands every argument on as it is, and the exit code back', async () => {
  const { code, events } = await run({ args: ['tell', ...HOSTILE] })
  equal(code, 42)
  const { args, cwd } = JSON.parse(notes(events)[0] as string)
  deepEqual(args.slice(2), ['tell', ...HOSTILE])
  equal(args[0], '--elevated-by')
  equal(cwd, process.cwd())
})

test('finds its arguments behind those of zx', async () => {
  const { argv } = process
  process.argv = [process.execPath, join(root, 'zx'), '--quiet', recipe, 'tell', '--', '-x']
  try {
    const { events } = await run({ args: undefined })
    deepEqual(JSON.parse(notes(events)[0] as string).args.slice(2), ['tell', '--', '-x'])
  } finally {
    process.argv = argv
  }
})

test('gives the run its user’s folders, and no other variable', async () => {
  const env = { ...process.env } // Windows starts it with an environment of its own
  process.env.TEST_TOKEN = 'secret'
  process.env.VBOX_USER_HOME = 'of this user'
  try {
    const { events } = await run({ args: ['tell'], ps: windows({ env }) })
    const { token, home } = JSON.parse(notes(events)[0] as string)
    deepEqual([token, home], [null, 'of this user'])
  } finally {
    delete process.env.TEST_TOKEN
    delete process.env.VBOX_USER_HOME
  }
})

test('shows what happens while it happens, and what went to standard error', async () => {
  let told = 0
  const seen: string[] = []
  const { code, errors } = await run({
    args: ['slow'],
    screen: (event) => {
      seen.push(event.event)
      if (event.event === 'note' && event.text === 'first') told = Date.now()
      if (event.event === 'end') ok(Date.now() - told > 300)
    },
  })
  deepEqual(seen, ['note', 'end'])
  ok(told > 0)
  equal(code, 0)
  match(errors, /^PowerShell warns: 桥接\n$/)
})

test('asks here what the run asks, yes or no and one of several', async () => {
  const asked: unknown[] = []
  const { events } = await run({
    args: ['ask', 'web', name],
    confirm: (message) => (asked.push(message), Promise.resolve(true)),
    select: (message, names) => (asked.push(message, names), Promise.resolve(names[1] as string)),
  })
  deepEqual(asked, ['Go ahead?', 'Which VM?', ['web', name]])
  deepEqual(notes(events), ['person', 'true', name])
})

test('takes a no for a no', async () => {
  const { events } = await run({
    args: ['ask', 'web', name],
    confirm: () => Promise.resolve(false),
    select: (_, names) => Promise.resolve(names[0] as string),
  })
  deepEqual(notes(events), ['person', 'false', 'web'])
})

test('tells the run that nobody is there to be asked', async () => {
  const { events } = await run({ args: ['ask'], person: false })
  deepEqual(notes(events), ['nobody'])
})

test('stops the run on Ctrl-C, and waits for its end', async () => {
  const stop = new AbortController()
  const { code, events } = await run({
    args: ['wait'],
    signal: () => stop.signal,
    screen: () => stop.abort(),
  })
  equal(code, 130)
  deepEqual(notes(events), ['waits', 'stopped in order'])
})

test('stops a run that Ctrl-C came before', async () => {
  const stop = AbortSignal.abort()
  const { events } = await run({ args: ['wait'], signal: () => stop })
  deepEqual(notes(events), ['waits', 'stopped in order'])
})

test('stops the run on Ctrl-C at a question', async () => {
  const { code, errors } = await run({
    args: ['ask', 'web', name],
    confirm: () => Promise.reject(new Error('User force closed the prompt')),
  })
  equal(code, 1)
  match(errors, /Stopped at a question: nothing was changed/)
})

test('ends a run that hears of no stop', async () => {
  const stop = new AbortController()
  const { code } = await run({
    args: ['deaf'],
    signal: () => stop.signal,
    screen: () => stop.abort(),
  })
  equal(code, 130)
})

test('says so when the run is lost, or never began', async () => {
  await rejects(
    run({ args: ['tell'], ps: windows({ instead: ['-e', 'process.exit(1)'] }) }),
    /^Error: Cannot run with administrator rights: the program ended before it read what to run/,
  )
  await rejects(
    run({ args: ['tell'], ps: windows({ instead: ['-e', TAKES_AND_DIES] }) }),
    /^Error: Cannot tell what became of the elevated run: its process ended without a result/,
  )
})

test('says so when administrators do not have the folder it is in', async ({ dir }) => {
  const cwd = join(dir, 'mapped')
  const started = (args: string[]) => {
    const file = join(args.at(-1) as string, 'run.json')
    fs.writeJsonSync(file, { ...fs.readJsonSync(file), cwd })
  }
  const { code, errors } = await run({ args: ['tell'], ps: windows({ started }) })
  equal(code, 1)
  ok(errors.startsWith(`Cannot run with administrator rights in "${cwd}": elevated programs do `))
})

test('leaves nothing behind', async () => {
  let folder = ''
  await run({ args: ['tell'], ps: windows({ started: (args) => folder = args.at(-1) as string }) })
  match(folder, /vbox-to-hyperv-elevated-/)
  ok(!await fs.pathExists(folder))
})

test('stops by itself when the process at the terminal is gone', async ({ dir }) => {
  const gone = spawn(process.execPath, ['--version'])
  await new Promise((resolve) => gone.once('close', resolve))
  await fs.writeJson(join(dir, 'first.json'), { pid: gone.pid, person: false })
  const args = [...runtime, recipe, '--elevated-by', dir, 'wait']
  const { stdout } = await promisify(execFile)(process.execPath, args).catch((error) => error)
  match(stdout, /stopped in order/)
})

test('runs a recipe, whose events are its own', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const bundle = `bundle:${join(dir, 'b')}`
  const { code, events, errors } = await run({
    recipe: join(root, 'recipes', 'migrate.ts'),
    args: [ova, '--to', bundle, '--state', join(dir, 'state'), '--name', name],
    confirm: () => Promise.resolve(true),
  })
  equal(errors, '')
  equal(code, 0)
  const plan = events.find((event) => event.event === 'plan')
  equal(plan?.plan.name, name)
  const end = events.at(-1)
  equal(end?.event === 'end' && end.outcome, 'done')
  ok(await fs.pathExists(join(dir, 'b', 'Deploy.ps1')))
})

test('runs undo, whose refusal comes out as a refusal', async ({ dir }) => {
  const undo = join(root, 'recipes', 'undo.ts')
  const args = ['last', '--state', dir]
  const { code, events } = await run({ recipe: undo, args })
  equal(code, 1)
  deepEqual(events, [
    { event: 'error', message: `Cannot take back the last run: no run is in "${dir}"` },
    { event: 'end', outcome: 'failed', next: [] },
  ])
  // the same to the letter for who reads JSON
  const direct = [...runtime, undo, ...args, '--json']
  const { stdout } = await promisify(execFile)(process.execPath, direct).catch((error) => error)
  equal(events.map((event) => `${JSON.stringify(event)}\n`).join(''), stdout)
})

test('shows plain lines in a terminal, where the list of the run cannot be', async () => {
  const log = console.log
  const lines: string[] = []
  console.log = (line: string) => lines.push(line)
  try {
    await run({ args: ['step'], live: true })
  } finally {
    console.log = log
  }
  deepEqual(lines, ['done       Make the VM'])
})

test('goes on itself where it has the rights', async () => {
  const ps = windows({ elevated: true })
  equal(await elevate({ ...options({ args: [] }), ps }), undefined)
})

test('is refused anywhere but on Windows', async () => {
  const other = { ...options({ args: [] }), platform: 'linux' as const }
  await rejects(elevate(other), { message: /^Cannot elevate on this system: / })
  const { WSL_DISTRO_NAME: before } = process.env
  process.env.WSL_DISTRO_NAME = 'Ubuntu'
  try {
    const expected = process.platform === 'linux'
      ? /^Cannot elevate a program of Linux: .* Run: powershell\.exe Start-Process wsl\.exe -Verb RunAs,/
      : /^Cannot elevate on this system: /
    await rejects(elevate(other), { message: expected })
  } finally {
    if (before === undefined) delete process.env.WSL_DISTRO_NAME
    else process.env.WSL_DISTRO_NAME = before
  }
})

test('is refused for another machine, for a bundle, and with a password', () => {
  throws(() => checkElevation({ to: 'ssh://root@host' }), {
    message: /^Cannot elevate for "ssh:\/\/root@host": /,
  })
  throws(() => checkElevation({ to: 'bundle:b' }), { message: /needs no administrator rights/ })
  for (const credential of [undefined, 'prompt', 'stdin', 'env:NAME']) {
    throws(() => checkElevation({ to: 'local', user: 'Administrator', credential }), {
      message: /^Cannot hand a password on/,
    })
  }
  checkElevation({ credential: 'manager:guest' })
})

const hosted = needs(test, 'pwsh')

hosted('starts the program by a script that PowerShell takes', async () => {
  const { code, events } = await run({ args: ['tell', ...HOSTILE], ps: real() })
  equal(code, 42)
  deepEqual(JSON.parse(notes(events)[0] as string).args.slice(2), ['tell', ...HOSTILE])
})

hosted('says so when the question of Windows is answered with no', async () => {
  let asked = ''
  const heard = (text: string) => asked = text
  const no = 'throw (New-Object ComponentModel.Win32Exception 1223)'
  await rejects(run({ args: ['tell'], ps: real({ start: no, heard }) }), {
    message:
      'Cannot run with administrator rights: the question of Windows was answered with no. ' +
      'Run again and choose Yes',
  })
  const [, folder = ''] = asked.match(/"([^"]+vbox-to-hyperv-elevated-[^"]+)"/) ?? []
  ok(folder && !await fs.pathExists(folder))
  // what .NET says where there is nobody to ask: not 1223
  const none = 'throw (New-Object ComponentModel.Win32Exception 1155)'
  await rejects(run({ args: ['tell'], ps: real({ start: none }) }), {
    message:
      /^Cannot run with administrator rights: Windows cannot ask for them here \(.+\)\. Run the same /,
  })
})

hosted('asks for administrator rights, by scripts that 5.1 reads', async ({ dir }) => {
  const scripts: string[] = []
  // as it stands: .NET on other systems knows no verb "runas"
  const ps = real({ verb: 'runas', heard: (text) => scripts.push(text) })
  if (process.platform !== 'win32') {
    await rejects(run({ args: ['tell'], ps }), { message: /Windows cannot ask for them/ })
    equal(scripts.length, 2)
  }
  await Promise.all(scripts.map((text, n) => fs.writeFile(join(dir, `${n}.ps1`), text)))
  deepEqual(await analyze((host as PowerShellProcess).ps, dir), [])
})

hosted('is offered where a host refuses for want of rights, on Windows', async () => {
  const host = await simulatedHost()
  try {
    await host.change((state) => {
      Object.assign(state, { user: { administrator: true }, denied: true })
    })
    const { refusals } = await checkHost({ storage: host.dir }, host.ps)
    const [refusal = ''] = refusals
    equal(offerElevation(refusal, 'linux'), refusal)
    equal(offerElevation(refusal, 'win32'), `${refusal}, or run the same again with --elevate`)
  } finally {
    await host.close()
  }
})

test.run()

interface Run extends Partial<Conversation> {
  recipe?: string
  args: string[] | undefined
  ps?: PowerShell
}

/** Elevates on a Windows whose question is answered with yes, unless `ps` says otherwise. */
async function run(
  wanted: Run,
): Promise<{ code: number | undefined; events: RunEvent[]; errors: string }> {
  const events: RunEvent[] = []
  let errors = ''
  const error = console.error
  console.error = () => {} // that the question is asked
  try {
    const code = await elevate({
      ...options(wanted, (event) => events.push(event)),
      onError: (text) => errors += text,
    })
    return { code, events, errors }
  } finally {
    console.error = error
  }
}

function options(
  { recipe: filename = recipe, args, ps = windows(), screen, ...others }: Run,
  hear: (event: RunEvent) => void = () => {},
): ElevateOptions {
  const never = () => Promise.reject(new Error('nothing is to be asked'))
  return {
    meta: { filename },
    args,
    platform: 'win32',
    ps,
    conversation: {
      live: false,
      person: true,
      confirm: never,
      select: never,
      signal: () => new AbortController().signal,
      ...others,
      screen: (event) => (hear(event), screen?.(event)),
    },
  }
}

function notes(events: RunEvent[]): string[] {
  return events.flatMap((event) => event.event === 'note' ? [event.text] : [])
}

/**
 * What Windows does when asked: starts the program with a command line, which the program takes apart.
 * `instead` are arguments for it that lack all that was asked for, but for its last.
 */
function windows(
  { elevated = false, env = process.env, instead, started = () => {} }: {
    elevated?: boolean
    env?: NodeJS.ProcessEnv
    instead?: string[]
    started?: (args: string[]) => void
  } = {},
): PowerShell {
  return (_, ...values) => {
    if (values.length === 0) return Promise.resolve({ stdout: elevated ? 'True' : 'False' })
    const [program, line] = values as string[]
    const args = [...(line as string).matchAll(/"((?:[^"\\]|\\+(?!")|\\\\)*)"/g)].map((found) =>
      (found[1] as string).replace(/(\\+)$/, (all) => all.slice(all.length / 2))
    )
    started(args)
    const given = instead ? [...instead, args.at(-1) as string] : args
    const child = spawn(program as string, given, { cwd: root, env, stdio: 'ignore' })
    return Promise.resolve({ stdout: JSON.stringify({ state: 'started', pid: child.pid }) })
  }
}

/**
 * The real PowerShell, on which the scripts run but for what is of Windows alone: the groups of a
 * token, and the verb.
 */
function real(
  { start = '', verb = '', heard = () => {} }: {
    start?: string
    verb?: string
    heard?: (text: string) => void
  } = {},
): PowerShell {
  // a group of processes is ended with PowerShell, where there are such groups
  host ??= openPowerShell()
  const { ps } = host
  return (pieces: TemplateStringsArray, ...values: Value[]) => {
    const text = script(pieces, ...values)
    heard(text)
    const identity = "([type]'Security.Principal.WindowsIdentity')::GetCurrent()"
    const here = text
      .replace(identity, "@{ Groups = @(@{ Value = 'S-1-5-32-545' }) }")
      .replace("'runas'", `'${verb}'`)
      .replace('$process = [Diagnostics.Process]::Start($start)', (call) => start || call)
      .replace(/(?=\$process = )/, process.platform === 'win32' ? '' : AWAY_FROM_HERE)
    return ps([here] as unknown as TemplateStringsArray)
  }
}

/** Elsewhere a program takes over the pipe on which PowerShell reads, and blocks it. */
const AWAY_FROM_HERE = `
  if (-not $start.Verb) {
    $start.Arguments = '-c "exec \\"$0\\" \\"$@\\" < /dev/null" "' + $program + '" ' + $line
    $start.FileName = '/bin/sh'
  }
  `

/** Reads what to run, as the elevated program does, and ends. */
const TAKES_AND_DIES = "require('fs').rmSync(require('path').join(process.argv.at(-1), 'run.json'))"
