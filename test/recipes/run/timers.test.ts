import fs from 'fs-extra'
import assert, { rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { which } from 'zx'
import { addSchedule, type AddScheduleOptions } from '../../../recipes/schedule.ts'
import { LOG_SIZE } from '../../../recipes/run/schedule.ts'
import { systemdWord, unitName } from '../../../recipes/run/timers.ts'
import { needs } from '../../needs.ts'
import { type Run, runTask } from '../../run-task.ts'

const kit = resolve(import.meta.dirname as string, '..', '..', '..')
const say = join(kit, 'test', 'fixtures', 'say.ts')
const execute = promisify(execFile)

interface Context {
  dir: string
  /** Folders whose names are hard to write down. */
  data: string
  config: string
  env: NodeJS.ProcessEnv
  table: string
}

const timers = suite<Context>('schedule on Linux')
const test = needs(timers, 'flock', 'sh')

timers.before.each(async (context) => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'timers-'))
  const bin = join(dir, 'bin')
  const program = (name: string, lines: string[]) =>
    fs.outputFile(join(bin, name), ['#!/bin/sh', ...lines, ''].join('\n'), { mode: 0o755 })
  await program('crontab', [
    'test -e "$FAKES/deny" && { echo "you may not" >&2; exit 1; }',
    'case "$1" in',
    '-l) test -e "$FAKES/table" || { echo "no crontab for me" >&2; exit 1; }; cat "$FAKES/table" ;;',
    '-) cat >"$FAKES/table" ;;',
    'esac',
  ])
  await program('systemctl', [
    'echo "$*" >>"$FAKES/systemctl"',
    'case "$2" in',
    'is-system-running) test -e "$FAKES/running" && echo running ;;',
    'show) echo @1796000000 ;;',
    'esac',
  ])
  Object.assign(context, {
    dir,
    data: join(dir, `data 100% $HOME 'a' "b" 桥接`),
    config: join(dir, 'config'),
    table: join(dir, 'table'),
  })
  context.env = {
    ...process.env,
    FORCE_COLOR: '0',
    FAKES: dir,
    PATH: [bin, process.env.PATH].join(delimiter),
    XDG_DATA_HOME: context.data,
    XDG_CONFIG_HOME: context.config,
  }
})
timers.after.each(async ({ dir }) => {
  if (dir) await fs.remove(dir)
})

async function recipe(context: Context, ...args: string[]): Promise<Run> {
  return await runTask(context, '../recipes/schedule', ...args)
}

// deno-lint-ignore no-explicit-any -- JSON of several shapes
async function json(context: Context, ...args: string[]): Promise<any> {
  const [own, rest] = args.includes('--')
    ? [args.slice(0, args.indexOf('--')), args.slice(args.indexOf('--'))]
    : [args, []]
  const { code, stdout, stderr } = await recipe(context, ...own, '--json', ...rest)
  assert.deepEqual([stderr, code], ['', 0])
  return JSON.parse(stdout)
}

test('is a line of the crontab, whose other lines stay, and runs as it says', async (context) => {
  const others = '# mine\n*/5 * * * * echo 100\\% >/dev/null\n'
  await fs.writeFile(context.table, others)
  const log = join(context.dir, 'logs', 'say.log')
  const words = ['a"b', "it's", '%PATH%', '$HOME', 'back\\', '桥接', '-x', 'two\nlines']
  const args = ['add', say, '--every', '15m', '--name', 'Say 1', '--log', log, '--by', 'cron']
  const given = ['--', '--code=7', '--', ...words]
  await json(context, ...args, '--dry-run', ...given)
  assert.equal(await fs.readFile(context.table, 'utf8'), others)
  assert.equal(await fs.pathExists(context.data), false)
  const made = await json(context, ...args, ...given)
  assert.deepEqual([made.changed, made.when, made.by], [true, 'every 15 minutes', 'cron'])
  const table = await fs.readFile(context.table, 'utf8')
  assert.ok(table.startsWith(`${others}# vbox-to-hyperv begin: say 1\n0,15,30,45 * * * * 'flock' `))
  assert.ok(table.endsWith('\n# vbox-to-hyperv end: say 1\n'))
  assert.equal(table.split('\n').length, others.split('\n').length + 3)
  assert.equal((await json(context, ...args, ...given)).changed, false)
  assert.equal((await json(context, 'list'))[0].outcome, 'not yet run')

  // as cron does: what is after five fields, without the backslash of \%, in the user's home
  const [, command = ''] = /^0,15,30,45 \* \* \* \* (.*)$/m.exec(table) ?? []
  const asCron = () =>
    execute('sh', ['-c', command.replaceAll('\\%', '%')], {
      env: { HOME: context.dir, PATH: '/usr/bin:/bin', FAKES: context.dir },
      cwd: '/',
    }).then(() => 0, ({ code }) => code as number)
  assert.equal(await asCron(), 7)
  const text = await fs.readFile(log, 'utf8')
  const lines = text.trimEnd().split('\n').map((line) => {
    assert.match(line, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d /)
    return line.slice(20)
  })
  assert.deepEqual(JSON.parse(lines.find((line) => line.startsWith('{')) ?? '{}'), {
    words,
    code: 7,
    yes: true,
    state: join(context.data, 'vbox-to-hyperv'),
    folder: await fs.realpath(context.dir),
  })
  assert.ok(lines.includes('桥接 is said'))
  assert.equal(lines.at(-1), 'Exit code 7')
  const [one] = await json(context, 'list')
  assert.deepEqual(
    [one.name, one.state, one.result, one.outcome, one.missing],
    ['Say 1', 'Ready', 7, 'exit code 7: see its log', []],
  )
  // one that runs keeps the next from running
  const [, lock = ''] = /'flock' '-n' '-E' '0' ('(?:[^']|'\\'')*')/.exec(command) ?? []
  const unescaped = lock.slice(1, -1).replaceAll(`'\\''`, "'").replaceAll('\\%', '%')
  const holder = execFile('flock', ['-o', '-n', unescaped, 'sleep', '30'])
  await wait(300)
  assert.equal(await asCron(), 0)
  holder.kill()
  await execute('flock', ['-w', '5', unescaped, 'true']).catch(() => {})
  assert.equal(await fs.readFile(log, 'utf8'), text)

  assert.equal((await json(context, 'remove', 'say', '1')).changed, true)
  assert.equal(await fs.readFile(context.table, 'utf8'), others)
  assert.deepEqual(await json(context, 'list'), [])
  assert.equal((await json(context, 'remove', 'Say 1')).changed, false)
})

test('changes a crontab only when it could be read', async (context) => {
  const args = ['add', 'doctor', '--at', '3:05', '--by', 'cron']
  await fs.writeFile(join(context.dir, 'deny'), '')
  const failed = await recipe(context, ...args)
  assert.deepEqual([failed.code, failed.stderr + failed.stdout], [
    1,
    'Cannot read the crontab: you may not. Run: crontab -l\n',
  ])
  assert.equal(await fs.pathExists(join(context.data, 'vbox-to-hyperv', 'schedules')), false)
  await fs.remove(join(context.dir, 'deny'))
  // none yet is none to lose
  await json(context, ...args)
  assert.match(await fs.readFile(context.table, 'utf8'), /^# .*\n5 3 \* \* \* 'flock' .*\n# .*\n$/)
  await fs.writeFile(context.table, '# vbox-to-hyperv begin: doctor\n1 1 1 1 1 mine\n')
  const cut = await recipe(context, ...args)
  assert.equal(cut.code, 1)
  assert.match(
    (cut.stderr + cut.stdout).replaceAll('\n', ' '),
    /^Cannot change the crontab: the line "# vbox-to-hyperv end: doctor" is missing, /,
  )
})

test('is a timer of the user’s systemd', async (context) => {
  await fs.writeFile(join(context.dir, 'running'), '')
  const args = ['add', say, '--every', '2h', '--at', '03:30', '--name', '桥接 50%', '--', 'x']
  const made = await json(context, ...args)
  assert.deepEqual([made.changed, made.by], [true, 'systemd'])
  const folder = join(context.config, 'systemd', 'user')
  const unit = unitName('桥接 50%')
  assert.equal(unit, 'vbox-to-hyperv-\\xe6\\xa1\\xa5\\xe6\\x8e\\xa5\\x2050\\x25')
  assert.deepEqual((await fs.readdir(folder)).sort(), [`${unit}.service`, `${unit}.timer`])
  const timer = await fs.readFile(join(folder, `${unit}.timer`), 'utf8')
  assert.match(
    timer,
    /^OnCalendar=\*-\*-\* 01,03,05,07,09,11,13,15,17,19,21,23:30:00\nPersistent=true\n/m,
  )
  const calls = async () =>
    (await fs.readFile(join(context.dir, 'systemctl'), 'utf8')).split('\n')
      .filter((line) => /daemon-reload|able|restart/.test(line))
  assert.deepEqual(await calls(), [
    '--user daemon-reload',
    `--user enable ${unit}.timer`,
    `--user restart ${unit}.timer`,
  ])
  assert.equal((await json(context, ...args)).changed, false)
  const [one] = await json(context, 'list')
  assert.deepEqual([one.next, one.state], [new Date(1796000000000).toISOString(), 'Ready'])
  if (await which('systemd-analyze', { nothrow: true })) {
    const env = { ...context.env, XDG_RUNTIME_DIR: context.dir }
    const files = [`${unit}.service`, `${unit}.timer`].map((name) => join(folder, name))
    const { stderr } = await execute(
      'systemd-analyze',
      ['verify', '--man=no', '--user', ...files],
      { env },
    )
      .catch((error) => error)
    assert.deepEqual(stderr.split('\n').filter((line: string) => line.includes('vbox')), [])
    // it does find fault
    const broken = join(folder, 'broken.timer')
    await fs.writeFile(broken, timer.replace(/OnCalendar=.*/, 'OnCalendar=*-*-* 25:00'))
    const refused = await execute('systemd-analyze', ['verify', '--man=no', '--user', broken], {
      env,
    })
      .catch((error) => error)
    assert.match(refused.stderr, /Failed to parse calendar specification/)
    await fs.remove(broken)
  }
  // by cron instead: the timer goes
  const other = args.indexOf('--')
  await json(context, ...args.slice(0, other), '--by', 'cron', ...args.slice(other))
  assert.deepEqual(await fs.readdir(folder), [])
  assert.ok((await calls()).includes(`--user disable --now ${unit}.timer`))
  await json(context, 'remove', '桥接 50%')
  assert.equal(await fs.readFile(context.table, 'utf8'), '')
})

test('says what to type where systemd does not run', async (context) => {
  const made = await json(context, 'add', 'doctor', '--every', '7m', '--by', 'systemd')
  const timer = join(context.config, 'systemd', 'user', 'vbox-to-hyperv-doctor.timer')
  assert.match(await fs.readFile(timer, 'utf8'), /^OnActiveSec=420\nOnUnitActiveSec=420\n/m)
  assert.equal(
    made.notes[0],
    'systemd does not run for this user here. Where it does, run: systemctl --user daemon-reload && ' +
      "systemctl --user enable --now 'vbox-to-hyperv-doctor.timer'",
  )
  await json(context, 'remove', 'doctor')
  assert.equal(await fs.pathExists(timer), false)
  // else it is cron that is asked
  assert.equal((await json(context, 'add', 'doctor', '--at', '3:00')).by, 'cron')
})

test('refuses what systemd and cron cannot do, and says why', async () => {
  const cases: [Partial<AddScheduleOptions>, RegExp][] = [
    [
      { onNetwork: 'Office', by: 'systemd' },
      /^Cannot schedule "doctor": systemd and cron do not know which network this is\. .*NetworkManager/,
    ],
    [{ at: '2996-12-01T03:00', by: 'cron' }, /cron knows no single days\. .*--by systemd$/],
    [{ onLogon: true, by: 'cron' }, /cron knows nothing of logons\. /],
    [{ every: '7m', by: 'cron' }, /7m does not divide an hour or a day, .* or --by systemd$/],
    [{ every: '7m', at: '3:00', by: 'systemd' }, /7m does not divide .* or leave --at out$/],
    [{ every: '1h', at: '2996-12-01T03:00', by: 'systemd' }, /is for Windows alone\. /],
    [{ every: '1h', as: 'system', by: 'systemd' }, /on Linux it runs as you\. Leave --as out$/],
  ]
  for (const [options, message] of cases) {
    await rejects(addSchedule({ recipe: 'doctor', dryRun: true, ...options }), { message })
  }
})

test('stops what runs too long with all that it started, and starts another log', async (context) => {
  const log = join(context.dir, 'late.log')
  await fs.writeFile(log, 'x'.repeat(LOG_SIZE))
  const job = join(context.dir, 'late.json')
  const path = process.env.PATH
  const command = ['sh', '-c', 'echo begun; sleep 60 & wait']
  await fs.writeJson(job, { version: 1, command, folder: context.dir, log, limit: 1, path })
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const runner = join(kit, 'recipes', 'run', 'scheduled.ts')
  const { code } = await execute(process.execPath, [...runtime, runner, job]).catch((error) =>
    error
  )
  assert.equal(code, 124)
  assert.match(
    await fs.readFile(log, 'utf8'),
    /^.* Run: "sh" "-c" .*\n.* begun\n.* Stopped after 1 seconds, its time limit\n.* Exit code 124\n$/,
  )
  assert.equal((await fs.stat(`${log}.1`)).size, LOG_SIZE)
})

test('writes words as systemd reads them', () => {
  assert.equal(systemdWord('/a b/$x 5%\\"'), '"/a b/$$x 5%%\\\\\\""')
})

timers.run()
