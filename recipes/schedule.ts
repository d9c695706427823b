#!/usr/bin/env zx
/**
 * Run a recipe or a task by itself: at a time, every so often, when the host starts or someone signs in,
 * or when the host comes to a network. Lists what is so scheduled, and how it went, and takes it away again.
 */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { userInfo } from 'node:os'
import { basename, isAbsolute, join, resolve } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import {
  commandLine,
  commandParser,
  DESCRIBE,
  dryRun,
  inWsl,
  kebab,
  type Option,
  powershell,
} from '../tasks/task.ts'
import { stateFolder } from './run/journal.ts'
import {
  commandOf,
  LATE,
  LONGEST,
  NETWORKS,
  NOTE,
  noteOf,
  RUNNER,
  runnerArguments,
  subscription,
  WLAN,
} from './run/schedule.ts'
import { textScreen } from './run/screen.ts'
import { addTimer, listTimers, removeTimer, type Timers, timersHere } from './run/timers.ts'

/** When and how something is run. Times are the host's own. */
export interface Schedule {
  /** A recipe or task of the kit by its name, e.g. `intranet`, or the file of one. */
  recipe: string
  /** What it is given, each word as it is. */
  args?: readonly string[] | undefined
  /** `03:00` every day, or once at `2026-12-01T03:00`; with `every` the first time. */
  at?: string | undefined
  /** From one start to the next, 1 minute to 31 days: `15m`, `1h`, `1d`. Counted from midnight without `at`. */
  every?: string | undefined
  /** When the host starts; not as `me`. @default false */
  onStartup?: boolean | undefined
  /** When the user signs in; as SYSTEM when anyone does. @default false */
  onLogon?: boolean | undefined
  /** When the host comes to this network: its name in Windows, or the SSID of a Wi-Fi. */
  onNetwork?: string | undefined
  /** The schedule's name. @default the recipe's and its words that are no options */
  name?: string | undefined
  /**
   * `system` runs whether anyone is signed in or not, with all rights and without a profile: it has no
   * drive letters of the network, no keys of SSH and no stored passwords of yours. `me` runs while you
   * are signed in. @default system
   */
  as?: 'system' | 'me' | undefined
  /** The file that gets its words, with the time. @default logs/NAME.log in the user's data folder */
  log?: string | undefined
  /** After how long it is stopped: `30m`, `12h`, `3d`. @default 1d */
  limit?: string | undefined
  /** The folder that it runs in, from which relative paths count. @default the current one */
  folder?: string | undefined
  /**
   * Who runs it: the Task Scheduler of Windows, or where the kit runs on Linux a timer of the user's
   * systemd or a line of the user's crontab. @default what this machine has
   */
  by?: 'windows' | Timers | undefined
}

export interface AddScheduleOptions extends Schedule {
  /** @default false */
  dryRun?: boolean | undefined
}

export interface AddScheduleResult {
  changed: boolean
  name: string
  /** When it runs, in words. */
  when: string
  /** Whom it runs as. */
  user: string
  /** The program and what it is given. */
  command: string[]
  /** The folder that it runs in, from which relative paths count. */
  folder: string
  log: string
  by: 'windows' | Timers
  /** What had the name before, or null. */
  before: Schedule | null
  notes: string[]
}

/** One of {@link listSchedules}. */
export interface ScheduleDescription {
  name: string
  when: string
  user: string
  state: string
  command: string[]
  log: string
  /** ISO 8601, UTC; null when it is not known or never. */
  next: string | null
  last: string | null
  /** The exit code, or what the Task Scheduler has in its place. */
  result: number
  /** The result in words. */
  outcome: string
  /** Files that it needs and that are gone. */
  missing: string[]
}

export interface RemoveScheduleOptions extends Pick<Schedule, 'by'> {
  name: string
  /** @default false */
  dryRun?: boolean | undefined
}

export interface RemoveScheduleResult {
  changed: boolean
  name: string
  /** What was removed, or null. */
  before: Schedule | null
}

/** The folder of the Task Scheduler that is the kit's. */
const FOLDER = '\\vbox-to-hyperv\\'

/**
 * Makes a task of Windows, or changes the one of the same name; where the kit runs on Linux a timer of
 * systemd or a line of the crontab. It starts no second time while it runs, on battery too, and what was
 * missed is made up for when the host is back (not by cron). Whatever cannot work
 * without a person is refused: unknown arguments, passwords in them, questions.
 *
 * Assumed about Windows, as no test machine has it: the events' numbers (NetworkProfile 10000,
 * WLAN-AutoConfig 8001), and that a trigger's StartBoundary without a zone is the host's own time.
 */
export async function addSchedule(
  { dryRun = false, ...schedule }: AddScheduleOptions,
  ps = powershell,
): Promise<AddScheduleResult> {
  const by = await scheduler(schedule.by)
  const job = await plan({ ...schedule, by })
  const { name, as, command, folder, log, trigger, limit, notes } = job
  if (by !== 'windows') {
    const { changed, before, notes: more } = await addTimer(job, by, dryRun)
    const user = userInfo().username
    const when = words(job.schedule)
    notes.push(...more)
    return { changed, name, when, user, command, folder, log, by, before, notes }
  }
  const [program, ...args] = command
  const argument = runnerArguments({
    program,
    args,
    log,
    folder,
    limit,
    network: schedule.onNetwork,
    all: true,
    note: asciiJson(job.schedule),
  })
  if (argument.length > LONGEST) {
    throw new RangeError(
      `Cannot schedule "${name}": its arguments are too long for one task of Windows. ` +
        'Use a file of options where the recipe takes one: --config FILE',
    )
  }
  const { stdout } = await ps`
    $name = ${name}
    $path = ${FOLDER}
    $description = ${
    `vbox-to-hyperv: ${[basename(job.file), ...job.args].join(' ')}`.slice(0, 1000)
  }
    $execute = ${RUNNER}
    $argument = ${argument}
    $folder = ${folder}
    $files = ${[program, job.file]}
    $paths = ${[
    program,
    job.file,
    folder,
    log,
    ...job.args.map((arg) => arg.replace(/^--[^=]+=/, '')),
  ]}
    $system = ${as === 'system'}
    $kind = ${trigger.kind}
    $at = ${trigger.at ?? ''}
    $seconds = ${trigger.seconds ?? 0}
    $subscription = ${trigger.subscription ?? ''}
    $limit = ${limit}
    $mark = ${NOTE}
    $dryRun = ${dryRun}
    $cannot = "Cannot schedule ""$name"":"
    foreach ($file in $files) {
      if (-not [IO.File]::Exists($file)) { throw "$cannot the file ""$file"" is not on this host. Run it at the host itself, in PowerShell" }
    }
    $found = @(Get-ScheduledTask | Where-Object { ([string]$_.TaskPath).Equals($path, 'OrdinalIgnoreCase') -and ([string]$_.TaskName).Equals($name, 'OrdinalIgnoreCase') })
    # by name: the class is Windows' alone, and a simulated host brings its own
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    $elevated = 'S-1-5-32-544' -in @($identity.Groups | ForEach-Object { $_.Value })
    $user = [string]$identity.Name
    if ($system) {
      $user = 'SYSTEM'
      if (-not $elevated) { throw "$cannot a task of SYSTEM is made by administrators, and PowerShell runs without their rights. Run with --as me, or: Start-Process powershell -Verb RunAs, and this again in the window it opens" }
      foreach ($file in $paths) {
        if ($file -notmatch '^[A-Za-z]:') { continue }
        $drive = $file.Substring(0, 2)
        if ([string](New-Object IO.DriveInfo $drive).DriveType -eq 'Network') { throw "$cannot ""$drive"" is a drive of the network, which SYSTEM does not have. Name the share in full instead of ""$file"", or run with --as me" }
      }
    }
    $before = $null
    if ($found.Count -gt 0) {
      $before = [string]@($found[0].Actions)[0].Arguments
      $own = $false
      if ($before -match ' -EncodedCommand ([A-Za-z0-9+/=]+)$') { $own = [Text.Encoding]::Unicode.GetString([Convert]::FromBase64String($Matches[1])).StartsWith($mark, 'Ordinal') }
      if (-not $own) { throw "$cannot a task that is not the kit's has this name in ""$path"". Run again with another: --name" }
    }
    $now = Get-Date
    $first = [DateTime]::MinValue
    $once = $at.Length -gt 5
    if ($once) { $first = [DateTime]::ParseExact($at, 's', [Globalization.CultureInfo]::InvariantCulture) }
    elseif ($at) { $first = $now.Date + [TimeSpan]::Parse($at); if ($first -le $now) { $first = $first.AddDays(1) } }
    elseif ($kind -eq 'repeat') { $first = $now.Date.AddSeconds($seconds * [Math]::Floor(($now - $now.Date).TotalSeconds / $seconds + 1)) }
    $same = $false
    if ($before -ceq $argument -and [string]$found[0].State -ne 'Disabled' -and @($found[0].Actions).Count -eq 1 -and @($found[0].Triggers).Count -eq 1) {
      $trigger = @($found[0].Triggers)[0]
      $start = [string]$trigger.StartBoundary
      $same = [string]@($found[0].Actions)[0].Execute -eq $execute -and [string]@($found[0].Actions)[0].WorkingDirectory -eq $folder -and $trigger.Enabled -ne $false -and
        ([string]$found[0].Principal.RunLevel -eq 'Highest' -or -not $elevated) -and
        (-not $at -or $start.StartsWith($at) -or (-not $once -and $start.Length -ge 16 -and $start.Substring(11, 5) -eq $at)) -and
        ($kind -ne 'repeat' -or ($trigger.Repetition.Interval -and [Xml.XmlConvert]::ToTimeSpan($trigger.Repetition.Interval).TotalSeconds -eq $seconds)) -and
        ($kind -ne 'event' -or [string]$trigger.Subscription -eq $subscription)
    }
    if (-not $same) {
      if ($once -and $kind -ne 'repeat' -and $first -le $now) { throw "$cannot $at is past: the host has $($now.ToString('s')). Name a time that is to come: --at $($now.Date.AddDays(1).ToString('s').Substring(0, 10))T03:00" }
      if (-not $dryRun) {
        if ($kind -eq 'event') {
          $class = Get-CimClass -Namespace Root/Microsoft/Windows/TaskScheduler -ClassName MSFT_TaskEventTrigger
          # an address comes some seconds after the connection
          $trigger = New-CimInstance -CimClass $class -ClientOnly -Property @{ Enabled = $true; Subscription = $subscription; Delay = 'PT5S' }
        } elseif ($kind -eq 'startup') {
          $trigger = New-ScheduledTaskTrigger -AtStartup
        } elseif ($kind -eq 'logon') {
          if ($system) { $trigger = New-ScheduledTaskTrigger -AtLogOn } else { $trigger = New-ScheduledTaskTrigger -AtLogOn -User $user }
        } else {
          if ($kind -eq 'daily') { $trigger = New-ScheduledTaskTrigger -Daily -At $first }
          elseif ($kind -eq 'repeat') { $trigger = New-ScheduledTaskTrigger -Once -At $first -RepetitionInterval (New-TimeSpan -Seconds $seconds) }
          else { $trigger = New-ScheduledTaskTrigger -Once -At $first }
          # with a zone, as the cmdlet writes it, the hour would move when summer time begins and ends
          $trigger.StartBoundary = $first.ToString('s')
        }
        $level = 'Limited'
        if ($elevated) { $level = 'Highest' }
        if ($system) { $principal = New-ScheduledTaskPrincipal -UserId 'S-1-5-18' -LogonType ServiceAccount -RunLevel Highest } else { $principal = New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel $level }
        # the runner stops the recipe at its limit, and notes it; this is for a runner that does not
        $settings = New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable -MultipleInstances IgnoreNew -ExecutionTimeLimit (New-TimeSpan -Seconds ($limit + 300))
        try {
          $null = Register-ScheduledTask -Force -TaskPath $path -TaskName $name -Description $description -Action (New-ScheduledTaskAction -Execute $execute -Argument $argument -WorkingDirectory $folder) -Trigger $trigger -Principal $principal -Settings $settings
        } catch {
          if ($_.FullyQualifiedErrorId -notmatch '0x80070005|System Error 5,') { throw }
          throw "$cannot Windows does not let ""$user"" change it (0x80070005), as it was made with more rights. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens"
        }
      }
    }
    ConvertTo-Json -Compress -Depth 3 ([ordered]@{ changed = -not $same; user = $user; before = $before })`
  const { changed, user, before } = JSON.parse(stdout) as {
    changed: boolean
    user: string
    before: string | null
  }
  const when = words(job.schedule)
  return { changed, name, when, user, command, folder, log, by, before: scheduleOf(before), notes }
}

/** Takes back {@link addSchedule}. What was set by hand at a task of the same name is not known any more. */
export async function undoAddSchedule(
  { changed, name, by, before }: Pick<AddScheduleResult, 'changed' | 'name' | 'by' | 'before'>,
  ps = powershell,
): Promise<void> {
  if (!changed) return
  if (before) await addSchedule(before, ps)
  else await removeSchedule({ name, by }, ps)
}

/** What the kit has scheduled, by name. Without administrator rights Windows shows the user's own alone. */
export async function listSchedules(
  { by }: Pick<Schedule, 'by'> = {},
  ps = powershell,
): Promise<ScheduleDescription[]> {
  if (await scheduler(by, false) !== 'windows') {
    return (await listTimers()).map(({ schedule, ...one }) => description(schedule, one))
  }
  const { stdout } = await ps`
    $path = ${FOLDER}
    $tasks = @(foreach ($task in @(Get-ScheduledTask | Where-Object { ([string]$_.TaskPath).Equals($path, 'OrdinalIgnoreCase') })) {
      $info = Get-ScheduledTaskInfo -InputObject $task
      $next = $null
      if ($info.NextRunTime) { $next = ([DateTime]$info.NextRunTime).ToUniversalTime().ToString('o') }
      $last = $null
      # Windows has 30 November 1999 for never
      if ($info.LastRunTime -and ([DateTime]$info.LastRunTime).Year -gt 2000) { $last = ([DateTime]$info.LastRunTime).ToUniversalTime().ToString('o') }
      [ordered]@{ name = [string]$task.TaskName; user = [string]$task.Principal.UserId; state = [string]$task.State; arguments = [string]@($task.Actions)[0].Arguments; next = $next; last = $last; result = [long]$info.LastTaskResult }
    })
    ConvertTo-Json -Compress -Depth 4 ([ordered]@{ tasks = $tasks })`
  type Found =
    & { name: string; user: string; state: string; arguments: string }
    & Pick<
      ScheduleDescription,
      'next' | 'last' | 'result'
    >
  const { tasks } = JSON.parse(stdout) as { tasks: Found[] }
  return tasks.flatMap(({ arguments: given, user: id, ...task }) => {
    const schedule = scheduleOf(given)
    if (!schedule) return []
    const { recipe, args = [], log = '' } = schedule
    const command = [...commandOf(recipe), ...args]
    const user = id === 'S-1-5-18' ? 'SYSTEM' : id
    return [description(schedule, { ...task, user, command, log })]
  }).sort((a, b) => (a.name < b.name ? -1 : 1))
}

function description(
  schedule: Schedule,
  found: Omit<ScheduleDescription, 'when' | 'outcome' | 'missing'>,
): ScheduleDescription {
  const files = [found.command[0], schedule.recipe].filter((file) => file !== undefined)
  return {
    ...found,
    when: words(schedule),
    outcome: outcome(found.result),
    missing: files.filter((file) => !fs.existsSync(file)),
  }
}

/** Removes a task of the kit. One that runs goes on to its end. */
export async function removeSchedule(
  { name, by, dryRun = false }: RemoveScheduleOptions,
  ps = powershell,
): Promise<RemoveScheduleResult> {
  checkName(name)
  if (await scheduler(by, false) !== 'windows') {
    return { name, ...await removeTimer(name, dryRun) }
  }
  const { stdout } = await ps`
    $name = ${name}
    $path = ${FOLDER}
    $mark = ${NOTE}
    $dryRun = ${dryRun}
    $cannot = "Cannot take ""$name"" from the schedule:"
    $found = @(Get-ScheduledTask | Where-Object { ([string]$_.TaskPath).Equals($path, 'OrdinalIgnoreCase') -and ([string]$_.TaskName).Equals($name, 'OrdinalIgnoreCase') })
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    # without rights the task may not be seen
    if ($found.Count -eq 0 -and 'S-1-5-32-544' -notin @($identity.Groups | ForEach-Object { $_.Value })) {
      throw "$cannot no such task is seen, and PowerShell runs without administrator rights, so those of SYSTEM are not. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens"
    }
    $before = $null
    foreach ($task in $found) {
      $before = [string]@($task.Actions)[0].Arguments
      $own = $false
      if ($before -match ' -EncodedCommand ([A-Za-z0-9+/=]+)$') { $own = [Text.Encoding]::Unicode.GetString([Convert]::FromBase64String($Matches[1])).StartsWith($mark, 'Ordinal') }
      if (-not $own) { throw "$cannot the task of this name in ""$path"" is not the kit's. Remove it there. Run: taskschd.msc" }
      if ($dryRun) { continue }
      try { Unregister-ScheduledTask -InputObject $task -Confirm:$false } catch {
        if ($_.FullyQualifiedErrorId -notmatch '0x80070005|System Error 5,') { throw }
        throw "$cannot Windows does not let this user change it (0x80070005), as it was made with more rights. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens"
      }
    }
    ConvertTo-Json -Compress -Depth 3 ([ordered]@{ changed = $found.Count -gt 0; before = $before })`
  const { changed, before } = JSON.parse(stdout) as { changed: boolean; before: string | null }
  return { changed, name, before: scheduleOf(before) }
}

/** Takes back {@link removeSchedule}. */
export async function undoRemoveSchedule(
  { changed, before }: Pick<RemoveScheduleResult, 'changed' | 'before'>,
  ps = powershell,
): Promise<void> {
  if (changed && before) await addSchedule(before, ps)
}

interface Trigger {
  kind: 'daily' | 'once' | 'repeat' | 'startup' | 'logon' | 'event'
  /** `03:00`, or `2026-12-01T03:00:00`. */
  at?: string
  seconds?: number
  subscription?: string
}

/** A schedule as it is made, with nothing left to a default. */
export interface SchedulePlan {
  name: string
  as: 'system' | 'me'
  file: string
  args: string[]
  command: [string, ...string[]]
  folder: string
  log: string
  /** Seconds. */
  limit: number
  trigger: Trigger
  schedule: Schedule
  notes: string[]
}

/** All that can be known without the host, and all refusals. */
async function plan(given: Schedule): Promise<SchedulePlan> {
  const { by } = given
  const { as = by === 'windows' ? 'system' : 'me', limit: longest = '1d' } = given
  const folder = resolve(given.folder ?? '.')
  const file = await find(given.recipe, folder)
  const cannot = `Cannot schedule "${basename(file, '.ts')}":`
  if (by !== 'windows' && as === 'system') {
    throw new TypeError(`${cannot} on Linux it runs as you. Leave --as out`)
  }
  const trigger = readTrigger({ ...given, as }, cannot)
  const limit = span(longest, '--limit', cannot)
  const options = await describe(file, cannot)
  const asked = (given.args ?? []).map((arg) => absolute(arg, folder))
  const read = await readArgs(file, asked, options, cannot)
  checkSecrets(asked, read, by === 'windows' ? as : 'linux', cannot)
  const added = [
    ...(options.yes && read.yes !== true ? ['--yes'] : []),
    // SYSTEM has another data folder, where nobody looks for what was done
    ...(options.state && !options.state.positional && !options.state.choices &&
        read.state === undefined
      ? [`--state=${stateFolder}`]
      : []),
  ]
  const args = [...added, ...asked]
  const positional = Object.keys(options).filter((name) => options[name]?.positional)
    .flatMap((name) => read[name] ?? []).map(String)
  const name = given.name ?? nameOf([basename(file, '.ts'), ...positional])
  checkName(name)
  const log = resolve(folder, given.log ?? join(stateFolder, 'logs', `${name}.log`))
  const { at, every, onStartup, onLogon, onNetwork } = given
  const when = Object.fromEntries(
    Object.entries({ at, every, onStartup, onLogon, onNetwork }).filter(([, value]) =>
      value !== undefined
    ),
  )
  return {
    name,
    as,
    file,
    args,
    command: [...commandOf(file), ...args] as [string, ...string[]],
    folder,
    log,
    limit,
    trigger,
    schedule: { recipe: file, args, ...when, name, as, log, limit: longest, folder, by },
    notes: as === 'system' && args.some((arg) => arg.includes('ssh://'))
      ? [
        'SYSTEM connects with keys and known hosts of its own, not with yours. Unless it has them, run ' +
        'with --as me',
      ]
      : [],
  }
}

/** The file of a recipe or a task, by its name in the kit or its path. */
async function find(recipe: string, folder: string): Promise<string> {
  const cannot = `Cannot schedule ${JSON.stringify(recipe)}:`
  const kit = join(import.meta.dirname as string, '..')
  const named = /^[a-z][a-z-]*$/.test(recipe)
  const files = named
    ? ['recipes', 'tasks'].map((part) => join(kit, part, `${recipe}.ts`))
    : [resolve(folder, recipe)]
  const file = files.find((file) => fs.existsSync(file) && fs.statSync(file).isFile())
  if (file === undefined) {
    throw new Error(
      named
        ? `${cannot} the kit has no recipe and no task of this name. See the list in README.md`
        : `${cannot} there is no file "${files[0]}". Name a recipe, e.g. intranet, or its file`,
    )
  }
  // what is no program of the kit would do its work when it is asked for its options
  const text = await fs.readFile(file, 'utf8')
  if (!file.endsWith('.ts') || !/ from '[^']*\btask\.ts'/.test(text)) {
    throw new Error(`${cannot} it is no recipe or task of this kit. Name one, e.g. intranet`)
  }
  return fs.realpath(file)
}

/** The options of a recipe or task, as it says itself: once, for whoever schedules many. */
function describe(file: string, cannot: string): Promise<Record<string, Option>> {
  const key = `${file} ${fs.statSync(file).mtimeMs}`
  const known = described.get(key) ?? ask(file, cannot)
  described.set(key, known)
  return known
}

const described = new Map<string, Promise<Record<string, Option>>>()

async function ask(file: string, cannot: string): Promise<Record<string, Option>> {
  const [program, ...args] = commandOf(file)
  try {
    const { stdout } = await promisify(execFile)(program, [...args, DESCRIBE], { timeout: 60_000 })
    return (JSON.parse(stdout) as { options: Record<string, Option> }).options
  } catch (error) {
    const words = (error as { stderr?: string }).stderr?.trim() || (error as Error).message
    throw new Error(`${cannot} it does not say what it takes: ${words}`)
  }
}

/** The arguments as the recipe reads them. */
async function readArgs(
  file: string,
  args: readonly string[],
  options: Record<string, Option>,
  cannot: string,
): Promise<Record<string, unknown>> {
  const given = await commandParser(args, file, 'schedule', options)
    .help(false)
    .exitProcess(false)
    .showHelpOnFail(false)
    .fail((message: string | undefined, error: Error | undefined) => {
      const [why = ''] = (message ?? error?.message ?? '').split('\n')
      throw new TypeError(
        `${cannot} it does not take these arguments: ${why}. Run: npx zx "${file}" --help`,
      )
    })
    .parseAsync() as Record<string, unknown>
  for (const [name, { array }] of Object.entries(options)) {
    if (!Array.isArray(given[name]) || array) continue
    throw new TypeError(`${cannot} it takes --${kebab(name)} once`)
  }
  return given
}

/** Whoever may list tasks sees their arguments, and nobody is there to answer. */
function checkSecrets(
  args: readonly string[],
  given: Record<string, unknown>,
  as: 'system' | 'me' | 'linux',
  cannot: string,
): void {
  // deno-lint-ignore no-control-regex
  if (args.some((arg) => /\u0000/.test(arg))) {
    throw new TypeError(`${cannot} an argument has a character 0, which no program can be given`)
  }
  // ssh://me:password@host, and me:password@host
  if (args.some((arg) => /(:\/\/|^|=)[^/\\@:=\s]*:[^/\\@\s]+@[^@\s]/.test(arg))) {
    throw new TypeError(
      `${cannot} an address among its arguments has a password, which others would see. ${
        as === 'linux'
          ? KEY
          : 'Use a key of SSH, or the Credential Manager: --credential manager:TARGET'
      }`,
    )
  }
  for (const arg of args) {
    const [, way] = /[?&]password=([^&]*)/.exec(arg) ?? []
    if (way === undefined || way.startsWith('manager:') && as === 'me') continue
    throw new TypeError(
      `${cannot} the password of ${arg} is not there when it runs. ` +
        (as === 'linux'
          ? KEY
          : 'Store it: cmdkey /generic:TARGET /user:USER /pass, and run with --as me and ' +
            '?password=manager:TARGET'),
    )
  }
  for (const [name, value] of Object.entries(given)) {
    const option = `--${kebab(name)}`
    if (/^elevated?$/i.test(name) && value === true) {
      throw new TypeError(`${cannot} nobody answers Windows' question. Leave ${option} out`)
    }
    if (typeof value !== 'string') continue
    if (/pass(word|phrase)?$|secret|token/i.test(name)) {
      throw new TypeError(`${cannot} others would see what ${option} says. Leave it out`)
    }
    if (!/credential$/i.test(name)) continue
    if (value.startsWith('manager:') && as === 'me') continue
    const store = as === 'linux' ? KEY : STORE(option)
    throw new TypeError(
      /^(prompt|stdin)$/.test(value)
        ? `${cannot} nobody answers the question of ${option} ${value}. ${store}`
        : /^env:/.test(value)
        ? `${cannot} the variable of ${option} ${value} is not set when it runs. ${store}`
        : value.startsWith('manager:') && as === 'system'
        ? `${cannot} the Credential Manager of SYSTEM is another than yours. Run with --as me`
        : `${cannot} others would see the password of ${option}. ${store}`,
    )
  }
}

const KEY = 'Nobody is there to be asked, so let it do without: use a key of SSH'

const STORE = (option: string) =>
  `Store it: cmdkey /generic:TARGET /user:USER /pass, and run with --as me and ${option} manager:TARGET`

/** A word of a command line, with the path in it written in full where it is one. */
function absolute(arg: string, folder: string): string {
  const [, head = '', value = ''] = /^(--[a-z][a-z0-9-]*=(?:bundle:)?|bundle:)?(.*)$/is.exec(arg) ??
    []
  if (value === '' || isAbsolute(value) || value.startsWith('-')) return arg
  const bundle = head.endsWith('bundle:')
  const relative = /^\.{1,2}([\\/]|$)/.test(value)
  // a VM may have the name of a folder, and hardly that of a file
  const found = /[\\/.]/.test(value) && fs.existsSync(resolve(folder, value))
  return bundle || relative || found ? head + resolve(folder, value) : arg
}

function readTrigger(
  { at, every, onStartup, onLogon, onNetwork, as, by }: Schedule,
  cannot: string,
): Trigger {
  const given = [at ?? every, onStartup || undefined, onLogon || undefined, onNetwork]
    .filter((one) => one !== undefined)
  if (given.length !== 1) {
    throw new TypeError(
      `${cannot} ${
        given.length === 0 ? 'nothing says when' : 'it has more than one kind of time'
      }. Use ` +
        '--at 03:00, --every 15m (or both), --on-startup, --on-logon or --on-network NAME',
    )
  }
  if (onStartup) {
    if (as !== 'me' || by !== 'windows') return { kind: 'startup' }
    throw new TypeError(`${cannot} nobody is signed in when the host starts. Use --on-logon`)
  }
  if (onLogon) return { kind: 'logon' }
  if (onNetwork !== undefined && by !== 'windows') {
    throw new TypeError(
      `${cannot} systemd and cron do not know which network this is. Use --every 15m, or have ` +
        'NetworkManager run it by a script in /etc/NetworkManager/dispatcher.d',
    )
  }
  if (onNetwork !== undefined) {
    // deno-lint-ignore no-control-regex
    if (onNetwork.trim() === '' || /[\u0000-\u001f\u007f]/.test(onNetwork)) {
      throw new TypeError(
        `${cannot} ${
          JSON.stringify(onNetwork)
        } is no name of a network: it is not empty and has no ` +
          'control characters. Run: Get-NetConnectionProfile',
      )
    }
    return { kind: 'event', subscription: subscription({ [NETWORKS]: [10000], [WLAN]: [8001] }) }
  }
  const start = at === undefined ? {} : { at: time(at, cannot) }
  if (every === undefined) return { kind: start.at?.length === 5 ? 'daily' : 'once', ...start }
  const seconds = span(every, '--every', cannot)
  // learn.microsoft.com/windows/win32/taskschd/repetitionpattern-interval
  if (seconds > 31 * 86400) {
    throw new RangeError(`${cannot} --every ${every} is more than Windows takes, 31 days`)
  }
  return { kind: 'repeat', seconds, ...start }
}

/** `03:00`, or `2026-12-01T03:00:00`. */
function time(at: string, cannot: string): string {
  const [, hour = '', rest = ''] = /^(\d\d?)(:[0-5]\d)$/.exec(at) ?? []
  if (rest && Number(hour) < 24) return `${hour.padStart(2, '0')}${rest}`
  const [text] = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?$/.exec(at) ?? []
  const full = text === undefined ? '' : `${text.replace(' ', 'T')}:00`.slice(0, 19)
  const date = new Date(`${full}Z`)
  // 31 February would be some day of March
  if (!Number.isNaN(date.getTime()) && date.toISOString().startsWith(full)) return full
  throw new TypeError(
    `${cannot} ${
      JSON.stringify(at)
    } is no time. Use --at 03:00 for every day, or --at 2026-12-01T03:00`,
  )
}

/** Seconds. */
function span(text: string, option: string, cannot: string): number {
  const [, count = '', unit = ''] = /^(\d{1,5})\s*(m|h|d)$/.exec(text) ?? []
  const seconds = Number(count) * ({ m: 60, h: 3600, d: 86400 }[unit] ?? 0)
  if (seconds > 0) return seconds
  throw new TypeError(
    `${cannot} ${option} ${JSON.stringify(text)} is no span of time. Use minutes, hours or days: ` +
      `${option} 15m, ${option} 1h or ${option} 1d`,
  )
}

/** Who runs what is due. */
async function scheduler(by: Schedule['by'], wsl = true): Promise<'windows' | Timers> {
  if (by !== undefined) return by
  if (process.platform === 'win32') return 'windows'
  if (wsl && inWsl()) {
    throw new Error(
      'Cannot schedule in WSL: it ends when nobody uses it, and so do its jobs. Run this in Windows, in ' +
        'PowerShell',
    )
  }
  return await timersHere()
}

function nameOf(parts: readonly string[]): string {
  // deno-lint-ignore no-control-regex
  const text = parts.join(' ').replace(/[\\/:*?"<>|\u0000-\u001f\u007f]+/g, '-')
  return text.slice(0, 100).replace(/^[ .]+|[ .]+$/g, '')
}

/** Names that the Task Scheduler takes, whose tasks are files. */
function checkName(name: string): void {
  // deno-lint-ignore no-control-regex
  const taken = /[\\/:*?"<>|\u0000-\u001f\u007f]|^[ .]|[ .]$|^$/
  if (name.length <= 200 && !taken.test(name)) return
  throw new TypeError(
    `Cannot take the name ${
      JSON.stringify(name)
    } for a schedule: it has up to 200 characters, none of ` +
      '\\ / : * ? " < > | or control characters, and no space or full stop at an end. ' +
      'Run again with another: --name',
  )
}

/** JSON that survives every encoding. */
function asciiJson(value: unknown): string {
  return JSON.stringify(value)
    .replace(/[^ -~]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function scheduleOf(args: string | null): Schedule | null {
  const note = args === null ? undefined : noteOf(args)
  return note === undefined ? null : JSON.parse(note)
}

/** When, in words. */
function words({ at, every, onStartup, onLogon, onNetwork, as }: Schedule): string {
  if (onStartup) return 'when the host starts'
  if (onLogon) return as === 'me' ? 'when you sign in' : 'when anyone signs in'
  if (onNetwork !== undefined) return `when the host comes to the network "${onNetwork}"`
  const day = at?.includes('-') ? at.replace('T', ' ') : at
  if (every !== undefined) {
    const [, count = '', unit = ''] = /^(\d+)\s*(.)$/.exec(every) ?? []
    const name = { m: 'minute', h: 'hour', d: 'day' }[unit]
    const each = Number(count) === 1 ? name : `${Number(count)} ${name}s`
    return `every ${each}${day === undefined ? '' : ` from ${day} on`}`
  }
  return at?.includes('-') ? `once at ${day}` : `every day at ${day}`
}

/**
 * Last results in words: exit codes of the kit, and what the Task Scheduler has in their place
 * (learn.microsoft.com/windows/win32/taskschd/task-scheduler-error-and-success-constants).
 */
const OUTCOMES: Record<number, string> = {
  0: 'done',
  1: 'failed: see its log',
  [LATE]: 'stopped at its time limit',
  130: 'stopped before its end: run it again to go on',
  3010: 'done so far: restart Windows, and it goes on',
  0x41300: 'ready',
  0x41301: 'running',
  0x41302: 'disabled',
  0x41303: 'not yet run',
  0x41304: 'will not run any more',
  0x41305: 'has no time to run at',
  0x41306: 'stopped by a user',
  0x41307: 'has no time to run at that is enabled',
  0x41308: 'waits for an event',
  0x4131b: 'some of its times could not be set',
  0x4131c: 'may not start, as its user may not log on as a batch job',
  0x41325: 'waits for its turn',
}

function outcome(result: number): string {
  return OUTCOMES[result] ??
    (result < 256
      ? `exit code ${result}: see its log`
      : `error 0x${result.toString(16).toUpperCase().padStart(8, '0')} of Windows`)
}

type Command = Omit<Schedule, 'recipe'> & {
  action: 'add' | 'list' | 'remove'
  recipe?: string
  dryRun?: boolean
  json?: boolean
}

const options: Record<string, Option> = {
  action: {
    type: 'string',
    positional: true,
    demandOption: true,
    choices: ['add', 'list', 'remove'],
    describe: 'What to do',
    example: 'add',
  },
  recipe: {
    type: 'string',
    positional: true,
    describe: 'add: a recipe or task by its name, or its file; remove: the schedule’s name',
    example: 'intranet',
  },
  args: {
    type: 'string',
    positional: true,
    array: true,
    describe: 'What it is given; options of its own after --',
    example: 'auto',
  },
  at: { type: 'string', describe: '03:00 every day, or once: 2026-12-01T03:00' },
  every: {
    type: 'string',
    describe: 'Such as 15m, 1h, 1d, from --at on',
    example: '1h -- --network Office',
  },
  onStartup: { type: 'boolean', describe: 'When the host starts; not as me' },
  onLogon: { type: 'boolean', describe: 'When you sign in; as SYSTEM when anyone does' },
  onNetwork: { type: 'string', describe: 'When the host comes to this network' },
  name: { type: 'string', describe: 'The schedule’s name [default: the recipe’s and its words]' },
  as: {
    choices: ['system', 'me'],
    describe: 'SYSTEM runs always, with all rights; me while signed in [default: system]',
  },
  log: { type: 'string', describe: 'The file for its words [default: in the user’s data folder]' },
  limit: { type: 'string', describe: 'After how long it is stopped [default: 1d]' },
  folder: { type: 'string', describe: 'The folder that it runs in [default: the current one]' },
  by: {
    choices: ['windows', 'systemd', 'cron'],
    describe: 'Who runs it [default: what this machine has]',
  },
  dryRun,
  json: { type: 'boolean', describe: 'JSON on standard output, for programs' },
}

async function run({ action, recipe, by, dryRun = false, json: _, ...rest }: Command) {
  if (action === 'list') return await listSchedules({ by })
  if (recipe === undefined) {
    throw new TypeError(
      action === 'add'
        ? 'Cannot schedule nothing. Name a recipe or task: schedule.ts add intranet auto --every 1h'
        : 'Cannot remove nothing. Name what list shows: schedule.ts remove "intranet auto"',
    )
  }
  if (action === 'add') return await addSchedule({ ...rest, recipe, by, dryRun })
  const name = [recipe, ...rest.args ?? []].join(' ')
  return await removeSchedule({ name, by, dryRun })
}

/** What people are told. */
function say(
  result: AddScheduleResult | RemoveScheduleResult | ScheduleDescription[],
  dryRun: boolean,
): string[] {
  if (Array.isArray(result)) {
    if (result.length === 0) {
      return ['Nothing is scheduled. Without administrator rights, tasks of SYSTEM are not seen.']
    }
    return result.map((one) =>
      [
        `${one.name}: ${one.when}, as ${one.user}${one.state === 'Disabled' ? ' (disabled)' : ''}`,
        `  runs  ${
          one.command.map((word) => /^[\w:\\/.=-]+$/.test(word) ? word : `"${word}"`).join(' ')
        }`,
        `  last  ${one.last === null ? '' : `${local(one.last)}  `}${one.outcome}`,
        ...(one.next === null ? [] : [`  next  ${local(one.next)}`]),
        `  log   ${one.log}`,
        ...one.missing.map((file) => `  gone  ${file}`),
      ].join('\n')
    )
  }
  if (!('when' in result)) {
    const how = result.changed ? (dryRun ? 'would not be' : 'is no longer') : 'is not'
    return [`"${result.name}" ${how} scheduled`]
  }
  const { changed, name, when, user, log, folder, notes } = result
  const how = changed ? (dryRun ? 'would run' : 'now runs') : 'already runs'
  return [
    `"${name}" ${how} ${when}, as ${user}, in "${folder}"`,
    `What it says is in "${log}"`,
    ...notes,
  ]
}

/** `2026-11-23 10:11`, where the reader is. */
function local(iso: string): string {
  const date = new Date(iso)
  const two = (number: number) => String(number).padStart(2, '0')
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-')
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`
}

const given = await commandLine<Command>(
  import.meta,
  'Run a recipe or task by itself: at a time, every so often, at logon, or on a network',
  options,
)
if (given) {
  const screen = textScreen({ live: false })
  try {
    const result = await run(given)
    if (given.json) console.log(JSON.stringify(result))
    else screen({ event: 'note', text: say(result, given.dryRun ?? false).join('\n') })
  } catch (error) {
    screen({ event: 'error', message: error instanceof Error ? error.message : String(error) })
    process.exitCode = 1
  }
}
