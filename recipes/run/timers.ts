/** Schedules where the kit runs on Linux: timers of the user's systemd, or lines of the user's crontab. */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { homedir, userInfo } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import type { Schedule, ScheduleDescription, SchedulePlan } from '../schedule.ts'
import { stateFolder } from './journal.ts'
import { commandOf } from './schedule.ts'
import { type LastRun, lastRunOf, type ScheduledJob } from './scheduled.ts'

export type Timers = 'systemd' | 'cron'

export interface TimerResult {
  changed: boolean
  before: Schedule | null
  notes: string[]
}

/** What this machine has to run things by. */
export async function timersHere(): Promise<Timers> {
  if (await systemdRuns()) return 'systemd'
  const { code } = await run('crontab', ['-l'])
  if (code !== undefined) return 'cron'
  throw new Error(
    'Cannot schedule on this machine: neither systemd nor cron runs what is due. ' +
      'Run: sudo apt install cron',
  )
}

/** Makes a timer or a line of the crontab, in place of what the kit has of the same name. */
export async function addTimer(
  plan: SchedulePlan,
  by: Timers,
  dryRun: boolean,
): Promise<TimerResult> {
  const { name, command, folder, log, limit } = plan
  const file = jobFile(name)
  const schedule = { ...plan.schedule, by }
  const path = process.env.PATH ?? '/usr/bin:/bin'
  const job: ScheduledJob = { version: 1, schedule, command, folder, log, limit, path }
  const words = [...commandOf(join(import.meta.dirname as string, 'scheduled.ts')), file]
  checkWords(words, name)
  const former = await readJob(file)
  const before = former?.schedule ?? null
  const notes: string[] = []
  const same = former !== undefined && JSON.stringify({ ...former, path }) === JSON.stringify(job)
  // a name has one timer at most
  const other = before?.by !== undefined && before.by !== by ? before.by as Timers : undefined
  let changed = !same
  if (by === 'systemd') {
    const units = unitsOf(plan, words)
    const runs = await systemdRuns()
    for (const [path, text] of Object.entries(units)) {
      if (await read(path) !== text) changed = true
    }
    const timer = `${unitName(name)}.timer`
    const once = plan.trigger.kind === 'once'
    if (runs && !changed && !once && (await systemctl('is-active', timer)).code !== 0) {
      changed = true
    }
    if (changed && !dryRun) {
      if (other) await takeAway(name, other)
      await writeJob(file, job)
      for (const [path, text] of Object.entries(units)) await fs.outputFile(path, text)
      if (runs) {
        await ask('daemon-reload')
        await ask('enable', timer)
        await ask('restart', timer)
      }
    }
    if (!runs) {
      notes.push(
        'systemd does not run for this user here. Where it does, run: systemctl --user daemon-reload && ' +
          `systemctl --user enable --now '${timer}'`,
      )
    }
    if (!await fs.pathExists(join('/var/lib/systemd/linger', userInfo().username))) {
      notes.push(
        'It runs while you are signed in. To have it run always, and from the start of the machine on, ' +
          'run: loginctl enable-linger',
      )
    }
    return { changed, before, notes }
  }
  const lines = [cronLine(plan, words, file)]
  const table = await crontab()
  const next = withLines(table, name, lines)
  if (next !== table) changed = true
  if (changed && !dryRun) {
    if (other) await takeAway(name, other)
    await writeJob(file, job)
    await writeCrontab(withLines(await crontab(), name, lines))
  }
  return { changed, before, notes }
}

/** What is known of a timer or a line of the crontab. */
export type FoundTimer =
  & Pick<ScheduleDescription, 'name' | 'user' | 'state' | 'next' | 'last' | 'result'>
  & Pick<ScheduledJob, 'schedule' | 'command' | 'log'>

/** What the kit has made here, and how it went. */
export async function listTimers(): Promise<FoundTimer[]> {
  const folder = jobFolder()
  const files = await fs.pathExists(folder) ? await fs.readdir(folder) : []
  const jobs = files.filter((name) => name.endsWith('.json')).map((name) => join(folder, name))
  const found: FoundTimer[] = []
  for (const file of jobs) {
    const { schedule, command, log } = await fs.readJson(file) as ScheduledJob
    const name = schedule.name as string
    const timer = `${unitName(name)}.timer`
    const last: LastRun | undefined = await fs.pathExists(lastRunOf(file))
      ? await fs.readJson(lastRunOf(file))
      : undefined
    const bySystemd = schedule.by === 'systemd'
    const table = bySystemd ? '' : await crontab()
    const there = bySystemd
      ? await fs.pathExists(join(unitFolder(), timer))
      : withLines(table, name, []) !== table
    const running = last !== undefined && last.code === undefined && alive(last.pid)
    found.push({
      name,
      schedule,
      user: userInfo().username,
      state: !there ? 'Gone' : running ? 'Running' : 'Ready',
      command,
      log,
      next: bySystemd ? await nextOf(timer) : null,
      last: last?.began ?? null,
      // the first two as the Task Scheduler has them; what was killed before its end wrote none
      result: last === undefined ? 0x41303 : running ? 0x41301 : last.code ?? 137,
    })
  }
  return found
}

/** Takes away what {@link addTimer} made. The log stays. */
export async function removeTimer(
  name: string,
  dryRun: boolean,
): Promise<Pick<TimerResult, 'changed' | 'before'>> {
  const job = await readJob(jobFile(name))
  if (!job) return { changed: false, before: null }
  if (!dryRun) {
    await takeAway(name, job.schedule.by === 'cron' ? 'cron' : 'systemd')
    // last, so that what is cut off before is found again
    for (const file of [lastRunOf(jobFile(name)), lockOf(jobFile(name)), jobFile(name)]) {
      await fs.remove(file)
    }
  }
  return { changed: true, before: job.schedule }
}

async function takeAway(name: string, by: Timers): Promise<void> {
  if (by === 'cron') {
    const table = await crontab()
    const next = withLines(table, name, [])
    if (next !== table) await writeCrontab(next)
    return
  }
  const unit = unitName(name)
  const files = ['service', 'timer'].map((kind) => join(unitFolder(), `${unit}.${kind}`))
  const runs = await systemdRuns()
  if (runs && await fs.pathExists(files[1] as string)) {
    await ask('disable', '--now', `${unit}.timer`)
  }
  for (const file of files) await fs.remove(file)
  if (runs) await ask('daemon-reload')
}

/** The unit files, by their paths. */
function unitsOf(
  { name, trigger, schedule }: SchedulePlan,
  words: string[],
): Record<string, string> {
  const unit = join(unitFolder(), unitName(name))
  const made = '# Made by vbox-to-hyperv: npx zx recipes/schedule.ts'
  const description = `Description=vbox-to-hyperv: ${name.replaceAll('%', '%%')}`
  return {
    [`${unit}.service`]: [
      made,
      '[Unit]',
      description,
      '',
      '[Service]',
      'Type=oneshot',
      // a program itself may have neither quotation marks nor backslashes in its path
      `ExecStart=/usr/bin/env ${words.map(systemdWord).join(' ')}`,
      '',
    ].join('\n'),
    [`${unit}.timer`]: [
      made,
      '[Unit]',
      description,
      '',
      '[Timer]',
      ...timing(trigger, name, schedule.every),
      'AccuracySec=1s',
      '',
      '[Install]',
      'WantedBy=timers.target',
      '',
    ].join('\n'),
  }
}

/** When, as systemd.timer(5) has it. */
function timing(
  { kind, at, seconds = 0 }: SchedulePlan['trigger'],
  name: string,
  every = '',
): string[] {
  // a run that was missed is made up for
  const calendar = (text: string) => [`OnCalendar=${text}`, 'Persistent=true']
  if (kind === 'startup' || kind === 'logon') return ['OnStartupSec=5']
  if (kind === 'once') return calendar(`${at?.replace('T', ' ')}`)
  if (kind === 'daily') return calendar(`*-*-* ${at}:00`)
  const clock = clockOf(at, seconds, name, every, false)
  if (clock) return calendar(`*-*-* ${clock.hours}:${clock.minutes}:00`)
  return [`OnActiveSec=${seconds}`, `OnUnitActiveSec=${seconds}`]
}

/** When, as crontab(5) has it. */
function cronTiming(
  { kind, at, seconds = 0 }: SchedulePlan['trigger'],
  name: string,
  every = '',
): string {
  if (kind === 'startup') return '@reboot'
  if (kind === 'daily') return `${Number(at?.slice(3))} ${Number(at?.slice(0, 2))} * * *`
  if (kind !== 'repeat') {
    throw new Error(
      `Cannot schedule "${name}": cron knows ${
        kind === 'once' ? 'no single days' : 'nothing of logons'
      }. Run again where systemd runs: --by systemd`,
    )
  }
  const clock = clockOf(at, seconds, name, every, true)
  const numbers = (text: string) => text === '*' ? text : text.split(',').map(Number).join(',')
  return `${numbers(clock?.minutes ?? '')} ${numbers(clock?.hours ?? '')} * * *`
}

/** The hours and minutes of a day on which something is due that is due every so often. */
function clockOf(
  at: string | undefined,
  seconds: number,
  name: string,
  every: string,
  needed: boolean,
): { hours: string; minutes: string } | undefined {
  const cannot = `Cannot schedule "${name}":`
  if (at !== undefined && at.length > 5) {
    throw new Error(
      `${cannot} every ${every} from a date on is for Windows alone. Use --at 03:00 --every ${every}`,
    )
  }
  const minutes = seconds / 60
  const two = (number: number) => String(number).padStart(2, '0')
  const from = at === undefined ? 0 : Number(at.slice(0, 2)) * 60 + Number(at.slice(3))
  const steps = (first: number, step: number, end: number) =>
    Array.from({ length: end / step }, (_, n) => two(first % step + n * step)).join(',')
  if (minutes < 60 && 60 % minutes === 0) return { hours: '*', minutes: steps(from, minutes, 60) }
  if (minutes % 60 === 0 && 1440 % minutes === 0) {
    return { hours: steps(Math.floor(from / 60), minutes / 60, 24), minutes: two(from % 60) }
  }
  if (at === undefined && !needed) return undefined
  throw new Error(
    `${cannot} ${every} does not divide an hour or a day, so it is not at the same times every day. ` +
      `Use --every 15m, 1h or 1d${needed ? ', or --by systemd' : ', or leave --at out'}`,
  )
}

/**
 * A word of a command line of systemd (systemd.service(5), "Command lines"): specifiers and variables
 * are not meant.
 */
export function systemdWord(word: string): string {
  return `"${word.replace(/[\\"]/g, '\\$&').replace(/[%$]/g, '$&$&')}"`
}

/** A line of the crontab: the shell reads it, after cron, which takes a percent sign for a new line. */
function cronLine({ name, trigger, schedule }: SchedulePlan, words: string[], job: string): string {
  const shell = (word: string) => `'${word.replaceAll("'", `'\\''`)}'`
  // a run that still goes on is no failure of the next
  const command = ['flock', '-n', '-E', '0', lockOf(job), ...words].map(shell).join(' ')
  return `${cronTiming(trigger, name, schedule.every)} ${
    command.replaceAll('%', '\\%')
  } >/dev/null 2>&1`
}

/** The crontab with these lines in place of those of this name. */
function withLines(table: string, name: string, lines: string[]): string {
  const key = name.toLowerCase()
  const [begin, end] = [`# vbox-to-hyperv begin: ${key}`, `# vbox-to-hyperv end: ${key}`]
  const all = table === '' ? [] : table.replace(/\n$/, '').split('\n')
  const from = all.indexOf(begin)
  const to = all.indexOf(end, from)
  if (from >= 0 && to < 0) {
    throw new Error(
      `Cannot change the crontab: the line "${end}" is missing, so what is the kit's is not known. Run: ` +
        'crontab -e',
    )
  }
  const own = lines.length > 0 ? [begin, ...lines, end] : []
  const next = from < 0 ? [...all, ...own] : [...all.slice(0, from), ...own, ...all.slice(to + 1)]
  return next.map((line) => `${line}\n`).join('')
}

/** The user's crontab. None is empty; one that cannot be read is an error, so that nothing of it is lost. */
async function crontab(): Promise<string> {
  const { code, stdout, stderr } = await run('crontab', ['-l'])
  if (code === 0) return stdout
  if (code !== undefined && /^no crontab for /m.test(stderr)) return ''
  throw new Error(
    code === undefined
      ? 'Cannot schedule by cron: there is no program "crontab". Run: sudo apt install cron'
      : `Cannot read the crontab: ${stderr.trim() || `exit code ${code}`}. Run: crontab -l`,
  )
}

async function writeCrontab(text: string): Promise<void> {
  const { code, stderr } = await run('crontab', ['-'], text)
  if (code === 0) return
  throw new Error(
    `Cannot change the crontab: ${stderr.trim() || `exit code ${code}`}. Run: crontab -l`,
  )
}

/** Whether the user's systemd answers. */
async function systemdRuns(): Promise<boolean> {
  const { stdout } = await systemctl('is-system-running')
  return /^(initializing|starting|running|degraded|maintenance|stopping)$/.test(stdout.trim())
}

function systemctl(...args: string[]): Promise<Ran> {
  return run('systemctl', ['--user', ...args])
}

async function ask(...args: string[]): Promise<void> {
  const { code, stderr } = await systemctl(...args)
  if (code === 0) return
  const command = `systemctl --user ${args.join(' ')}`
  throw new Error(
    `Cannot schedule by systemd: ${stderr.trim() || `exit code ${code}`}. Run: ${command}`,
  )
}

/** When a timer is due: ISO 8601, UTC. */
async function nextOf(timer: string): Promise<string | null> {
  const args = ['show', timer, '--property=NextElapseUSecRealtime', '--value', '--timestamp=unix']
  const [, seconds] = /^@(\d+)/.exec((await systemctl(...args)).stdout.trim()) ?? []
  return seconds === undefined ? null : new Date(Number(seconds) * 1000).toISOString()
}

interface Ran {
  /** Undefined when there is no such program. */
  code: number | undefined
  stdout: string
  stderr: string
}

function run(program: string, args: string[], input?: string): Promise<Ran> {
  // what programs say is read, so in English
  const env = { ...process.env, LC_ALL: 'C' }
  return new Promise((resolve) => {
    const child = execFile(program, args, { env }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : undefined
      resolve({ code, stdout, stderr })
    })
    child.stdin?.on('error', () => {}) // a program that reads none says so by its exit code
    child.stdin?.end(input)
  })
}

async function read(file: string): Promise<string | undefined> {
  return await fs.pathExists(file) ? await fs.readFile(file, 'utf8') : undefined
}

async function readJob(file: string): Promise<ScheduledJob | undefined> {
  const text = await read(file)
  return text === undefined ? undefined : JSON.parse(text)
}

async function writeJob(file: string, job: ScheduledJob): Promise<void> {
  await fs.outputFile(`${file}.new`, `${JSON.stringify(job, null, 2)}\n`, { mode: 0o600 })
  await fs.rename(`${file}.new`, file)
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function jobFolder(): string {
  return join(stateFolder, 'schedules')
}

/** The file of a job. Names of schedules are names of files, in which upper and lower case are the same. */
function jobFile(name: string): string {
  return join(jobFolder(), `${name.toLowerCase()}.json`)
}

function lockOf(job: string): string {
  return job.replace(/\.json$/, '.lock')
}

function unitFolder(): string {
  return join(process.env.XDG_CONFIG_HOME || join(homedir(), '.config'), 'systemd', 'user')
}

/** A unit's name, with what none may have written as systemd-escape does. */
export function unitName(name: string): string {
  const bytes = [...Buffer.from(name.toLowerCase())]
  const text = bytes.map((byte) => {
    const letter = String.fromCharCode(byte)
    return /[a-z0-9:_.-]/.test(letter) ? letter : `\\x${byte.toString(16).padStart(2, '0')}`
  }).join('')
  if (text.length <= 200) return `vbox-to-hyperv-${text}`
  throw new RangeError(
    `Cannot take the name ${
      JSON.stringify(name)
    } for a unit of systemd: it is too long for a file. ` +
      'Run again with another: --name',
  )
}

/** Neither a unit nor a crontab has a line of two, and env(1) takes a first word with "=" for a variable. */
function checkWords(words: readonly string[], name: string): void {
  // deno-lint-ignore no-control-regex
  const control = /[\u0000-\u001f\u007f]/
  const bad = words.find((word, index) => control.test(word) || index === 0 && word.includes('='))
  if (bad === undefined) return
  throw new Error(
    `Cannot schedule "${name}": the path ${
      JSON.stringify(bad)
    } has a control character, or "=" in the name of a ` +
      'program. Move the kit, or what runs it, to a folder without',
  )
}
