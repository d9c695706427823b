/** What runs a program of the kit as a job of Windows' Task Scheduler, and keeps a log of it. */
import process from 'node:process'
import { script } from '../../tasks/task.ts'

/** A program and how it is run when its time has come. */
export interface Job {
  program: string
  args: readonly string[]
  /** The file that gets a line for each that the program says, with the time. */
  log: string
  /** Its folder. @default the Task Scheduler's */
  folder?: string | undefined
  /** Seconds after which it is stopped, with all that it started. */
  limit: number
  /** Run only where the host is on this network: its name in Windows, or the SSID of a Wi-Fi. */
  network?: string | undefined
  /** Note standard output too, and when a run begins and how it ends. @default false */
  all?: boolean | undefined
  /** Stands in the script for whoever reads it again. */
  note?: string | undefined
}

/** The program that a task of Windows starts; Windows PowerShell is part of it. */
export const RUNNER = 'powershell.exe'

/** Characters of a task's arguments; a program of Windows is given 32767 in all. */
export const LONGEST = 30_000

/** A log of this many bytes becomes log.1, that one log.2, and so on, of which so many are kept. */
export const LOG_SIZE = 1024 ** 2
export const LOGS = 5

/** The exit code of a job that was stopped at its time limit, as timeout(1) has it. */
export const LATE = 124

export const NETWORKS = 'Microsoft-Windows-NetworkProfile/Operational'
export const WLAN = 'Microsoft-Windows-WLAN-AutoConfig/Operational'

/** The events of logs, by their numbers, as a trigger of the Task Scheduler waits for them. */
export function subscription(events: Record<string, readonly number[]>): string {
  const selects = Object.entries(events).map(([path, ids]) =>
    `<Select Path="${path}">*[System[${ids.map((id) => `EventID=${id}`).join(' or ')}]]</Select>`
  )
  return `<QueryList><Query Id="0">${selects.join('')}</Query></QueryList>`
}

/** The program and what it is given to run a file of the kit by what runs this one. */
export function commandOf(file: string): [string, ...string[]] {
  return [process.execPath, ...('Deno' in globalThis ? ['run', '-A'] : []), file]
}

/** What {@link RUNNER} is given to run a job. No shell stands between, so nothing is escaped for one. */
export function runnerArguments(job: Job): string {
  const encoded = Buffer.from(runner(job), 'utf16le').toString('base64')
  return '-NoProfile -NonInteractive -ExecutionPolicy Bypass -WindowStyle Hidden ' +
    `-EncodedCommand ${encoded}`
}

/** The note of a job, of the arguments that {@link runnerArguments} made; undefined for any others. */
export function noteOf(args: string): string | undefined {
  const [, encoded = ''] = / -EncodedCommand ([A-Za-z0-9+/=]+)$/.exec(args) ?? []
  const [first = ''] = Buffer.from(encoded, 'base64').toString('utf16le').split('\n', 1)
  return first.startsWith(NOTE) ? first.slice(NOTE.length) : undefined
}

/** What the script of a job with a note begins with. */
export const NOTE = '# vbox-to-hyperv '

/**
 * The script that the task runs: the program without a window and without an answer to its questions,
 * and what it says into the log. It is stopped here at its limit, as the Task Scheduler ends what it
 * started itself and may leave alone what that started (assumption). The exit code is the program's.
 */
function runner({ program, args, log, folder, limit, network, all = false, note }: Job): string {
  const head = note === undefined ? '' : `${NOTE}${note}\n`
  return head + script`
    $program = ${program}
    $arguments = ${args.map(windowsArgument).join(' ')}
    $folder = ${folder ?? ''}
    $log = ${log}
    $size = ${LOG_SIZE}
    $keep = ${LOGS}
    $limit = ${limit}
    $network = ${network ?? ''}
    $wlan = ${WLAN}
    $all = ${all}
    $late = ${LATE}
    $ErrorActionPreference = 'Stop'
    $code = 1
    $lines = New-Object Text.StringBuilder
    $control = '[' + [char]0 + '-' + [char]31 + [char]127 + ']'
    function note([string]$line) {
      $null = $lines.Append((Get-Date).ToString('yyyy-MM-dd HH:mm:ss ')).Append([regex]::Replace($line, $control, ' ')).Append([char]10)
      try {
        $null = [IO.Directory]::CreateDirectory([IO.Path]::GetDirectoryName($log))
        if ([IO.File]::Exists($log) -and (New-Object IO.FileInfo $log).Length -ge $size) {
          for ($n = $keep; $n -gt 0; $n--) {
            $from = $log
            if ($n -gt 1) { $from = "$log.$($n - 1)" }
            if ([IO.File]::Exists($from)) { [IO.File]::Delete("$log.$n"); [IO.File]::Move($from, "$log.$n") }
          }
        }
        [IO.File]::AppendAllText($log, $lines.ToString())
        $null = $lines.Clear()
      } catch { [Console]::Error.WriteLine($_.Exception.Message) } # somebody reads it: the next line brings this one along
    }
    try {
      $there = $true
      if ($network) {
        $names = @(Get-NetConnectionProfile | ForEach-Object { [string]$_.Name })
        # the Wi-Fi of an adapter that is the VMs' alone is no network of the host's
        try {
          $last = @(Get-WinEvent -LogName $wlan -FilterXPath '*[System[EventID=8001 or EventID=8003]]' -MaxEvents 1)[0]
          if ($last.Id -eq 8001) { $names += @(([xml]$last.ToXml()).Event.EventData.Data | Where-Object { $_.GetAttribute('Name') -in 'SSID', 'ProfileName' } | ForEach-Object { $_.InnerText }) }
        } catch { if ($_.FullyQualifiedErrorId -notlike 'NoMatching*') { throw } }
        $there = @($names | Where-Object { $_ -and $_.Equals($network, 'OrdinalIgnoreCase') }).Count -gt 0
      }
      if (-not $there) {
        note "Not run: the host is not on ""$network"""
        $code = 0
      } else {
        $start = New-Object Diagnostics.ProcessStartInfo $program, $arguments
        $start.UseShellExecute = $false
        $start.CreateNoWindow = $true
        if ($folder) { $start.WorkingDirectory = $folder }
        $start.RedirectStandardInput = $true
        $start.RedirectStandardOutput = $true
        $start.RedirectStandardError = $true
        $start.StandardOutputEncoding = [Text.Encoding]::UTF8
        $start.StandardErrorEncoding = [Text.Encoding]::UTF8
        if ($all) { note "Run: ""$program"" $arguments" }
        $run = [Diagnostics.Process]::Start($start)
        $run.StandardInput.Close()
        $until = [Diagnostics.Stopwatch]::StartNew()
        $readers = @($run.StandardError, $run.StandardOutput)
        $reads = @($readers | ForEach-Object { $_.ReadLineAsync() })
        $open = @(0, 1)
        $stopped = $false
        while ($true) {
          $which = -1
          if ($open.Count -gt 0) {
            $which = [Threading.Tasks.Task]::WaitAny([Threading.Tasks.Task[]]@($open | ForEach-Object { $reads[$_] }), 1000)
            # what it left running may hold its output open
            if ($which -lt 0 -and $run.HasExited) { break }
          } elseif ($run.WaitForExit(1000)) { break }
          if ($which -ge 0) {
            $which = $open[$which]
            $line = $reads[$which].Result
            if ($null -eq $line) { $open = @($open | Where-Object { $_ -ne $which }) } else {
              $reads[$which] = $readers[$which].ReadLineAsync()
              if ($line -and ($all -or $which -eq 0)) { note $line }
            }
          }
          if ($until.Elapsed.TotalSeconds -gt $limit -and -not $stopped) {
            $stopped = $true
            # absent but on Windows
            if (Get-Command taskkill.exe -ErrorAction Ignore) { $null = taskkill.exe /T /F /PID $run.Id }
            if (-not $run.HasExited) { $run.Kill() }
          }
        }
        $code = $run.ExitCode
        if ($stopped) { $code = $late; note "Stopped after $limit seconds, its time limit" }
        if ($all) { note "Exit code $code" }
      }
    } catch {
      $code = 1
      note "Cannot run ""$program"": $($_.Exception.Message)"
    }
    for ($n = 0; $n -lt 50 -and $lines.Length -gt 0; $n++) {
      Start-Sleep -Milliseconds 100
      try { [IO.File]::AppendAllText($log, $lines.ToString()); $null = $lines.Clear() } catch { [Console]::Error.WriteLine($_.Exception.Message) }
    }
    exit $code`
}

/**
 * A word of a command line as programs of Windows read it, and .NET everywhere
 * (learn.microsoft.com/cpp/c-language/parsing-c-command-line-arguments).
 */
export function windowsArgument(word: string): string {
  return `"${word.replace(/(\\*)("|$)/g, (_, bars, mark) => bars + bars + (mark && '\\"'))}"`
}
