import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import {
  addSchedule,
  type AddScheduleOptions,
  listSchedules,
  removeSchedule,
  undoAddSchedule,
  undoRemoveSchedule,
} from '../../recipes/schedule.ts'
import { stateFolder } from '../../recipes/run/journal.ts'
import { LOG_SIZE, LOGS, runnerArguments } from '../../recipes/run/schedule.ts'
import { type PowerShell, script } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { analyze } from '../tasks/analyze.ts'

const kit = resolve(import.meta.dirname as string, '..', '..')
const hostile = 'Bob’s "VM"; $(calc) 桥接'
const CONNECTED = 'Microsoft-Windows-NetworkProfile/Operational 10000'
const WIFI = 'Microsoft-Windows-WLAN-AutoConfig/Operational 8001'

let host: SimulatedHost
const schedule = suite('schedule')
const test = needs(schedule, 'pwsh')

schedule.before(async () => {
  host = await simulatedHost()
})
schedule.before.each(async () => {
  await host.change((state) => state.tasks = [])
})
schedule.after(async () => {
  await host?.close()
})

const job: AddScheduleOptions = {
  recipe: 'intranet',
  args: ['status'],
  every: '15m',
  by: 'windows',
}
const add = (options: Partial<AddScheduleOptions> = {}) =>
  addSchedule({ ...job, ...options }, host.ps)
const tasks = async () => (await host.state()).tasks
const clean = (state: { calls?: unknown }) => ({ ...state, calls: undefined })

/** The cmdlets that were called since and change something. */
async function changes(since = 0): Promise<string[]> {
  const calls = await host.calls()
  return calls.slice(since).map(({ cmdlet }) => cmdlet).filter((name) => !/^Get-/.test(name))
}

test('makes a task of SYSTEM, once, and takes it back', async () => {
  const before = await host.text()
  const dry = await add({ dryRun: true })
  assert.equal(await host.text(), before)
  const made = await add()
  assert.deepEqual({ ...made, changed: dry.changed }, dry)
  const log = join(stateFolder, 'logs', 'intranet status.log')
  const file = join(kit, 'recipes', 'intranet.ts')
  assert.deepEqual(made, {
    changed: true,
    name: 'intranet status',
    when: 'every 15 minutes',
    user: 'SYSTEM',
    command: [process.execPath, ...('Deno' in globalThis ? ['run', '-A'] : []), file, 'status'],
    folder: process.cwd(),
    log,
    by: 'windows',
    before: null,
    notes: [],
  })
  const [task] = await tasks()
  assert.deepEqual(
    [task.path, task.name, task.principal, task.logon, task.level, task.instances],
    ['\\vbox-to-hyperv\\', 'intranet status', 'S-1-5-18', 'ServiceAccount', 'Highest', 'IgnoreNew'],
  )
  assert.deepEqual(task.settings, { batteries: true, startWhenAvailable: true })
  assert.equal(task.action.execute, 'powershell.exe')
  assert.equal(task.action.folder, process.cwd())
  const [trigger] = task.triggers
  assert.deepEqual([trigger.kind, trigger.repetition], ['Once', 'PT15M'])
  // the host's own time, on a quarter of an hour that is to come
  assert.match(trigger.at, /^\d{4}-\d\d-\d\dT\d\d:(00|15|30|45):00$/)
  assert.ok(new Date(trigger.at).getTime() > Date.now())

  const registered = await host.text()
  const calls = (await host.calls()).length
  assert.deepEqual(await add(), {
    ...made,
    changed: false,
    before: made.before ?? await scheduled(),
  })
  assert.deepEqual(await changes(calls), [])
  assert.equal(await host.text(), registered)

  await undoAddSchedule(made, host.ps)
  assert.deepEqual(clean(await host.state()), clean(JSON.parse(before)))
  await undoAddSchedule(made, host.ps)
})

/** What the kit wrote down of its only task. */
async function scheduled() {
  const [one] = await tasks()
  const encoded = one.action.argument.split(' ').at(-1)
  const [first = ''] = Buffer.from(encoded, 'base64').toString('utf16le').split('\n')
  return JSON.parse(first.replace(/^# vbox-to-hyperv /, ''))
}

test('changes what has the name, and undo brings the former back', async () => {
  await add({ name: hostile.replaceAll('"', '') })
  const former = await tasks()
  const changed = await add({
    name: hostile.replaceAll('"', ''),
    every: '2h',
    at: '03:30',
    limit: '30m',
  })
  assert.equal(changed.when, 'every 2 hours from 03:30 on')
  assert.equal(changed.before?.every, '15m')
  const [task] = await tasks()
  assert.equal(task.triggers[0].repetition, 'PT2H')
  assert.match(task.triggers[0].at, /T03:30:00$/)
  assert.equal((await tasks()).length, 1)
  assert.equal(
    (await add({ name: changed.name, every: '2h', at: '03:30', limit: '30m' })).changed,
    false,
  )
  await undoAddSchedule(changed, host.ps)
  assert.deepEqual(await tasks(), former)
  // so is one that was disabled or changed by hand
  await host.change((state) => state.tasks[0].triggers[0].repetition = 'PT1M')
  assert.equal((await add({ name: changed.name })).changed, true)
  assert.deepEqual(await tasks(), former)
})

test('runs every day, once, at logon and on a network', async () => {
  await add({ every: undefined, at: '3:00' })
  let [task] = await tasks()
  assert.equal(task.triggers[0].kind, 'Daily')
  assert.match(task.triggers[0].at, /T03:00:00$/)
  assert.equal((await add({ every: undefined, at: '3:00' })).changed, false)

  await add({ every: undefined, at: '2996-12-01T03:00' })
  ;[task] = await tasks()
  assert.deepEqual(task.triggers, [{ kind: 'Once', at: '2996-12-01T03:00:00' }])
  assert.equal((await add({ every: undefined, at: '2996-12-01T03:00' })).changed, false)

  const mine = await add({ every: undefined, onLogon: true, as: 'me' })
  const { name } = (await host.state()).host
  assert.deepEqual([mine.user, mine.when], [`${name}\\user`, 'when you sign in'])
  ;[task] = await tasks()
  assert.deepEqual(task.triggers, [{ kind: 'Logon', user: mine.user }])
  assert.deepEqual([task.principal, task.logon, task.level], [mine.user, 'Interactive', 'Highest'])
  await add({ every: undefined, onLogon: true })
  ;[task] = await tasks()
  assert.deepEqual(task.triggers, [{ kind: 'Logon', user: null }])

  await add({ every: undefined, onStartup: true })
  ;[task] = await tasks()
  assert.equal(task.triggers[0].kind, 'Startup')

  const net = await add({ every: undefined, onNetwork: 'Office' })
  assert.equal(net.when, 'when the host comes to the network "Office"')
  ;[task] = await tasks()
  assert.deepEqual(task.triggers[0].events, [CONNECTED, WIFI])
  assert.equal(task.triggers[0].delay, 'PT5S')
  assert.equal((await add({ every: undefined, onNetwork: 'Office' })).changed, false)
})

test('without administrator rights makes one’s own tasks alone', async () => {
  await add()
  await host.change((state) => state.user = { administrator: true })
  try {
    await assert.rejects(add(), {
      message:
        'Cannot schedule "intranet status": a task of SYSTEM is made by administrators, and ' +
        'PowerShell runs without their rights. Run with --as me, or: Start-Process powershell ' +
        '-Verb RunAs, and this again in the window it opens',
    })
    await add({ as: 'me', name: 'mine' })
    const task = (await tasks()).find(({ name }: { name: string }) => name === 'mine')
    assert.deepEqual([task.level, task.logon], ['Limited', 'Interactive'])
    await assert.rejects(removeSchedule({ by: 'windows', name: 'none' }, host.ps), {
      message: 'Cannot take "none" from the schedule: no such task is seen, and PowerShell runs ' +
        'without administrator rights, so those of SYSTEM are not. Run: Start-Process powershell ' +
        '-Verb RunAs, and this again in the window it opens',
    })
  } finally {
    await host.change((state) => delete state.user)
  }
})

test('is removed by its name, whichever way that is written, and undo brings it back', async () => {
  await add({ name: '[ab]' })
  await add({ name: 'a' })
  const former = await tasks()
  const text = await host.text()
  assert.equal(
    (await removeSchedule({ by: 'windows', name: '[AB]', dryRun: true }, host.ps)).changed,
    true,
  )
  assert.equal(await host.text(), text)
  const removed = await removeSchedule({ by: 'windows', name: '[AB]' }, host.ps)
  assert.deepEqual((await tasks()).map(({ name }: { name: string }) => name), ['a'])
  assert.deepEqual(await removeSchedule({ by: 'windows', name: '[AB]' }, host.ps), {
    changed: false,
    name: '[AB]',
    before: null,
  })
  await undoRemoveSchedule(removed, host.ps)
  await undoRemoveSchedule(removed, host.ps)
  assert.deepEqual((await tasks()).reverse(), former)
})

test('leaves tasks alone that are not the kit’s', async () => {
  await add({ name: 'a' })
  await host.change((state) => state.tasks[0].action.argument = '-File b.ps1')
  await assert.rejects(add({ name: 'a' }), {
    message: 'Cannot schedule "a": a task that is not the kit\'s has this name in ' +
      '"\\vbox-to-hyperv\\". Run again with another: --name',
  })
  await assert.rejects(removeSchedule({ by: 'windows', name: 'a' }, host.ps), {
    message:
      'Cannot take "a" from the schedule: the task of this name in "\\vbox-to-hyperv\\" is ' +
      "not the kit's. Remove it there. Run: taskschd.msc",
  })
  assert.deepEqual(await listSchedules({ by: 'windows' }, host.ps), [])
})

/** A task that says what it is given. */
const say = join(kit, 'test', 'fixtures', 'say.ts')

async function ended(log: string): Promise<string> {
  for (let n = 0; n < 300; n++) {
    const text = await fs.readFile(log, 'utf8').catch(() => '')
    if (/ (Exit code \d+|Not run: .*|Cannot run .*)\n$/.test(text)) return text
    await wait(100)
  }
  throw new Error(`the task noted no end: ${await fs.readFile(log, 'utf8').catch(String)}`)
}

test('runs as it is told: each word as it is, its words in the log, its exit code as the result', async () => {
  const log = join(host.dir, 'logs', `${hostile.replaceAll('"', '')}.log`)
  const args = [
    hostile,
    'a"b',
    '%PATH%',
    '^',
    'trailing\\',
    '\\"',
    '',
    '--',
    '-x',
    "'",
    '$(calc)\n2',
  ]
  const made = await addSchedule({
    recipe: say,
    by: 'windows',
    args: ['--code=7', ...args],
    every: '1h',
    name: 'say',
    log,
    folder: host.dir,
  }, host.ps)
  const [none] = await listSchedules({ by: 'windows' }, host.ps)
  assert.deepEqual([none?.outcome, none?.last, none?.result], ['not yet run', null, 0x41303])
  // the log goes to another when it is full, and the oldest goes
  await fs.outputFile(log, 'x'.repeat(LOG_SIZE))
  for (let n = 1; n <= LOGS; n++) await fs.outputFile(`${log}.${n}`, `${n}`)
  await host.fire('Once')
  const text = await ended(log)
  const lines = text.trimEnd().split('\n').map((line) => {
    assert.match(line, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d /)
    return line.slice(20)
  })
  assert.match(lines[0] ?? '', /^Run: /)
  const said = lines.find((line) => line.startsWith('{')) ?? '{}'
  assert.deepEqual(JSON.parse(said), {
    words: args.filter((arg) => arg !== '--'),
    code: 7,
    yes: true,
    state: stateFolder,
    folder: await fs.realpath(host.dir),
  })
  assert.ok(lines.includes('桥接 is said'), text)
  assert.equal(lines.at(-1), 'Exit code 7')
  await wait(500)
  const [one] = await listSchedules({ by: 'windows' }, host.ps)
  assert.deepEqual(one, {
    name: 'say',
    when: 'every hour',
    user: 'SYSTEM',
    state: 'Ready',
    command: made.command,
    log,
    next: null,
    last: one?.last,
    result: 7,
    outcome: 'exit code 7: see its log',
    missing: [],
  })
  assert.ok(Math.abs(Date.parse(one?.last ?? '') - Date.now()) < 60_000)
  assert.equal((await fs.stat(`${log}.1`)).size, LOG_SIZE)
  assert.equal(await fs.readFile(`${log}.${LOGS}`, 'utf8'), `${LOGS - 1}`)
  assert.equal(await fs.pathExists(`${log}.${LOGS + 1}`), false)
  const gone = join(host.dir, 'gone.ts')
  const note = JSON.stringify({ recipe: gone, args: [], log, at: '3:00' })
  const argument = runnerArguments({ program: 'node', args: [], log, limit: 1, note })
  await host.change((state) => state.tasks[0].action.argument = argument)
  assert.deepEqual((await listSchedules({ by: 'windows' }, host.ps))[0]?.missing, [gone])
})

test('says in words how a run ended', async () => {
  await add({ name: 'a' })
  const cases: [number, string][] = [
    [0, 'done'],
    [1, 'failed: see its log'],
    [130, 'stopped before its end: run it again to go on'],
    [3010, 'done so far: restart Windows, and it goes on'],
    [0x41306, 'stopped by a user'],
    [0x80070002, 'error 0x80070002 of Windows'],
  ]
  for (const [code, outcome] of cases) {
    await host.change((state) => {
      Object.assign(state.tasks[0], { lastResult: code, nextRun: '2996-12-01T03:00:00Z' })
    })
    const [one] = await listSchedules({ by: 'windows' }, host.ps)
    assert.deepEqual([one?.result, one?.outcome], [code, outcome])
    assert.equal(Date.parse(one?.next ?? ''), Date.parse('2996-12-01T03:00:00Z'))
  }
})

test('runs on its network alone', async () => {
  const [profile] = (await host.state()).profiles
  const logs = ['away', 'there'].map((name) => join(host.dir, `${name}.log`))
  for (const [n, onNetwork] of ['Elsewhere', profile.name.toUpperCase()].entries()) {
    const log = logs[n] as string
    const name = `network ${n}`
    const every = undefined
    await add({ recipe: say, args: ['here'], folder: host.dir, log, name, onNetwork, every })
  }
  await host.fire(CONNECTED)
  const [away = '', there = ''] = await Promise.all(logs.map(ended))
  assert.match(away, / Not run: the host is not on "Elsewhere"\n$/)
  assert.match(there, / Exit code 0\n$/)
})

test('stops what runs too long, and says when it cannot run', async () => {
  const gone = join(host.dir, 'gone.exe')
  const logs = ['late', 'gone'].map((name) => join(host.dir, `${name}.log`))
  const run = (program: string, args: string[], log = '') => {
    const line = runnerArguments({ program, args, log, limit: 1, all: true })
      .replace('-WindowStyle Hidden ', '').split(' ')
    return new Promise<number>((resolve) =>
      execFile('pwsh', line, { env: host.env }, (error) => resolve(error ? Number(error.code) : 0))
    )
  }
  const wait = ['Deno' in globalThis ? 'eval' : '-e', 'setTimeout(() => {}, 60_000)']
  const codes = await Promise.all([run(process.execPath, wait, logs[0]), run(gone, [], logs[1])])
  assert.deepEqual(codes, [124, 1])
  const [late = '', cannot = ''] = await Promise.all(logs.map(ended))
  assert.match(late, / Stopped after 1 seconds, its time limit\n.* Exit code 124\n$/)
  assert.ok(cannot.includes(` Cannot run "${gone}": `))
})

test('refuses what cannot work, before anything', async () => {
  const nothing = join(host.dir, 'nothing.ts')
  const other = join(host.dir, 'other.ts')
  await fs.writeFile(other, `await import('node:fs').then((fs) => fs.writeFileSync('ran', ''))`)
  const cases: [Partial<AddScheduleOptions>, string | RegExp][] = [
    [
      { recipe: 'nonesuch' },
      'Cannot schedule "nonesuch": the kit has no recipe and no task of this name. See the list in README.md',
    ],
    [
      { recipe: nothing },
      `Cannot schedule ${JSON.stringify(nothing)}: there is no file "${nothing}". ` +
      'Name a recipe, e.g. intranet, or its file',
    ],
    [
      { recipe: other },
      `Cannot schedule ${
        JSON.stringify(other)
      }: it is no recipe or task of this kit. Name one, e.g. intranet`,
    ],
    [
      { args: ['status', '--bogus'] },
      'Cannot schedule "intranet": it does not take these arguments: Unknown argument: bogus. ' +
      `Run: npx zx "${join(kit, 'recipes', 'intranet.ts')}" --help`,
    ],
    [{ args: [] }, /^Cannot schedule "intranet": it does not take these arguments: Not enough /],
    [{ args: ['--help'] }, /does not take these arguments: /],
    [{ args: ['sideways'] }, /does not take these arguments: Invalid values:/],
    [
      { args: ['on', '--switch', 'a', '--switch', 'b'] },
      'Cannot schedule "intranet": it takes --switch once',
    ],
    [
      { recipe: 'runs', args: ['ssh://me:secret@host'] },
      'Cannot schedule "runs": an address among its arguments has a password, which others would see. Use a ' +
      'key of SSH, or the Credential Manager: --credential manager:TARGET',
    ],
    [{ args: ['on', '--socks', 'me:pw@host:1080'] }, /an address among its arguments has a/],
    [
      { recipe: 'migrate', args: ['Win10', '--guest-credential', 'env:PW'] },
      'Cannot schedule "migrate": the variable of --guest-credential env:PW is not set when it runs. ' +
      'Store it: cmdkey /generic:TARGET /user:USER /pass, and run with --as me and ' +
      '--guest-credential manager:TARGET',
    ],
    [
      {
        recipe: 'open-tunnel',
        args: ['--to', 'db:1', '--via', 'ssh://me@jump?password=env:PW'],
      },
      'Cannot schedule "open-tunnel": the password of ssh://me@jump?password=env:PW is not there when ' +
      'it runs. Store it: cmdkey /generic:TARGET /user:USER /pass, and run with --as me and ' +
      '?password=manager:TARGET',
    ],
    [
      { recipe: 'migrate', args: ['Win10', '--guest-credential', 'hunter2'] },
      /others would see the password of --guest-credential\. Store it: /,
    ],
    [
      { recipe: 'migrate', args: ['Win10', '--guest-credential', 'prompt'] },
      /nobody answers the question of --guest-credential prompt\. Store it: /,
    ],
    [
      { recipe: 'migrate', args: ['Win10', '--guest-credential', 'manager:vm'] },
      'Cannot schedule "migrate": the Credential Manager of SYSTEM is another than yours. Run with --as me',
    ],
    [
      { recipe: 'migrate', args: ['Win10', '--elevate'] },
      'Cannot schedule "migrate": nobody answers Windows\' question. Leave --elevate out',
    ],
    [
      { every: undefined },
      'Cannot schedule "intranet": nothing says when. Use --at 03:00, --every 15m (or both), ' +
      '--on-startup, --on-logon or --on-network NAME',
    ],
    [{ every: undefined, onStartup: true, as: 'me' }, /Use --on-logon$/],
    [{ onLogon: true }, /it has more than one kind of time/],
    [
      { every: '90s' },
      'Cannot schedule "intranet": --every "90s" is no span of time. Use minutes, hours or days: ' +
      '--every 15m, --every 1h or --every 1d',
    ],
    [{ every: '0m' }, /is no span of time/],
    [
      { every: '32d' },
      'Cannot schedule "intranet": --every 32d is more than Windows takes, 31 days',
    ],
    [{ limit: 'long' }, /--limit "long" is no span of time/],
    [
      { at: '24:00' },
      'Cannot schedule "intranet": "24:00" is no time. Use --at 03:00 for every day, or ' +
      '--at 2026-12-01T03:00',
    ],
    [{ at: '2026-02-31T03:00' }, /"2026-02-31T03:00" is no time/],
    [
      { every: undefined, at: '2020-01-01T03:00' },
      /^Cannot schedule "intranet status": 2020-01-01T03:00:00 is past: the host has [-\dT:]+\. Name a time that is to come: --at \d{4}-\d\d-\d\dT03:00$/,
    ],
    [{ every: undefined, onNetwork: ' ' }, /" " is no name of a network/],
    [
      { name: 'a\\b' },
      'Cannot take the name "a\\\\b" for a schedule: it has up to 200 characters, none of \\ / : * ? " < > | ' +
      'or control characters, and no space or full stop at an end. Run again with another: --name',
    ],
    [{ args: ['on', '--only', 'x'.repeat(12_000)] }, /its arguments are too long for one task/],
  ]
  const text = await host.text()
  for (const [options, message] of cases) await assert.rejects(add(options), { message })
  assert.equal(await host.text(), text)
  assert.equal(await fs.pathExists('ran'), false)
})

test('writes paths in full, and asks nothing', async () => {
  await fs.outputFile(join(host.dir, 'disks', 'a.vmdk'), '')
  const made = await addSchedule({
    recipe: 'migrate',
    by: 'windows',
    args: [
      'disks/a.vmdk',
      '--storage',
      './VMs',
      '--to=bundle:out',
      '--name',
      'disks',
      '--external',
      '桥接/x',
    ],
    onLogon: true,
    folder: host.dir,
    dryRun: true,
  }, host.ps)
  const file = made.command.findIndex((word) => word.endsWith('migrate.ts'))
  assert.deepEqual(made.command.slice(file + 1), [
    '--yes',
    `--state=${stateFolder}`,
    join(host.dir, 'disks', 'a.vmdk'),
    '--storage',
    join(host.dir, 'VMs'),
    `--to=bundle:${join(host.dir, 'out')}`,
    '--name',
    'disks',
    '--external',
    '桥接/x',
  ])
  const remote = ['a', '--to', 'ssh://me@host:22', '--yes', '--state', 'D:\\me@home']
  const away = await addSchedule({
    recipe: 'migrate',
    by: 'windows',
    args: remote,
    onLogon: true,
    dryRun: true,
  }, host.ps)
  assert.deepEqual(away.command.slice(file + 1), remote)
  assert.equal(away.notes.length, 1)
})

test('is a command: words for people, JSON for programs', async () => {
  const recipeOf = (...args: string[]) =>
    runTask(host, '../recipes/schedule', ...args, '--by', 'windows')
  const made = await runTask(
    host,
    '../recipes/schedule',
    ...['add', 'intranet', 'auto', '--every', '1d', '--by', 'windows', '--json'],
    ...['--', '--network', hostile],
  )
  assert.deepEqual([made.stderr, made.code], ['', 0])
  assert.equal(JSON.parse(made.stdout).name, 'intranet auto')
  assert.deepEqual(JSON.parse(made.stdout).command.slice(-3), ['auto', '--network', hostile])
  const list = await recipeOf('list')
  assert.match(list.stdout + list.stderr, /^intranet auto: every day, as SYSTEM\n {2}runs {2}/m)
  const failed = await recipeOf('add')
  assert.equal(failed.code, 1)
  assert.match(failed.stderr + failed.stdout, /Cannot schedule nothing\. /)
})

test('has scripts that Windows PowerShell 5.1 can read', async () => {
  const folder = join(host.dir, 'scripts')
  let count = 0
  const keep: PowerShell = async (pieces, ...values) => {
    await fs.outputFile(join(folder, `${count++}.ps1`), `\ufeff${script(pieces, ...values)}`)
    return await host.ps(pieces, ...values)
  }
  await addSchedule(job, keep)
  const [task] = await tasks()
  const action = Buffer.from(task.action.argument.split(' ').at(-1), 'base64').toString('utf16le')
  await fs.outputFile(join(folder, 'action.ps1'), `\ufeff${action}`)
  await listSchedules({ by: 'windows' }, keep)
  await removeSchedule({ by: 'windows', name: 'intranet status' }, keep)
  assert.equal(count, 3)
  assert.deepEqual(await analyze(host.ps, folder), [])
})

schedule.run()
