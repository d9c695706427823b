/**
 * The guard of changes that could cut the host off. Copy it with the tasks that change the host's
 * network, beside task.ts.
 *
 * Before the change the host itself is told to take it back after a while, by a scheduled task; after
 * the change the network is tested; and only when the kit still reaches the host is that task
 * cancelled. So the host comes back also when the kit dies, the session drops or the host restarts.
 */
import { randomBytes } from 'node:crypto'
import { clearTimeout, setTimeout } from 'node:timers'
import { ConnectionError, type Option, type PowerShell, script } from './task.ts'

export interface GuardOptions {
  /** The host takes the change back by itself unless it was reached and tested after it. @default true */
  guard?: boolean | undefined
  /** Seconds until then, 5 to 3600. @default 60 */
  revertAfter?: number | undefined
  /**
   * What has to answer after the change, asked on the host: URLs, for which any answer of HTTP will
   * do, and `host:port`. @default none
   */
  probe?: readonly string[] | undefined
}

/** A task that could cut the host off. */
export interface Guarded<R> {
  /** What it changes, as errors name it, e.g. `the switch "x"`. */
  subject: string
  /** Runs one script, the same with and without `dryRun` but for that. */
  run: (ps: PowerShell, dryRun: boolean) => Promise<R>
  /** Runs one script that begins with `$done = ${JSON.stringify(result)}` and has the result from there. */
  undo: (result: R, ps: PowerShell) => Promise<unknown>
}

/** The options of a guarded task's command. {@link readGuard} reads them. */
export const guardOptions: Record<'guard' | 'revertAfter' | 'probe', Option> = {
  guard: {
    type: 'boolean',
    describe: 'Take the change back unless the host is reached and tested after it [default: true]',
  },
  revertAfter: {
    type: 'string',
    describe: 'When the host takes it back by itself, e.g. 90s or 2m [default: 60s]',
  },
  probe: {
    type: 'string',
    array: true,
    describe: 'What has to answer the host after the change: a URL or host:port',
  },
}

/** The command's options with the time in seconds. Throws where an address has a password in it. */
export function readGuard<
  T extends { revertAfter?: string | undefined; probe?: GuardOptions['probe'] },
>({ revertAfter, ...options }: T): Omit<T, 'revertAfter'> & { revertAfter?: number } {
  for (const target of options.probe ?? []) checkProbe(target)
  if (revertAfter === undefined) return options
  const [, number, unit] = /^(\d{1,6})(s|m)?$/.exec(revertAfter) ?? []
  if (number === undefined) {
    throw new TypeError(
      `Cannot take the change back after "${revertAfter}": it is seconds or minutes. ` +
        'Example: --revert-after 90s',
    )
  }
  return { ...options, revertAfter: Number(number) * (unit === 'm' ? 60 : 1) }
}

/**
 * Does what the task does, under the guard. Notes say what earlier guards had to take back.
 *
 * What is tested on the host, until three quarters of `revertAfter` are over at most: every default gateway
 * that answered before answers, on whichever adapter, the DNS servers are there again, and those answer that
 * did. Where the answer's `shared` says that the host gives its adapter up, this holds for the gateways of its
 * other adapters. Who is connected by SSH or Remote Desktop keeps the address, or another way in: a run at the
 * host itself would confirm its change from within. A change that fails and does not put all back itself is
 * taken back at once.
 */
export async function guarded<R extends { changed: boolean; notes: string[] }>(
  { subject, run, undo }: Guarded<R>,
  { guard = true, revertAfter = 60, probe = [] }: GuardOptions,
  dryRun: boolean,
  ps: PowerShell,
): Promise<R> {
  checkGuard({ revertAfter, probe })
  if (dryRun) return await run(ps, true)
  if (!guard) {
    // a guard of before would take back this change too, in its time
    await undoPending(ps)
    const result = await run(ps, false)
    return { ...result, notes: [...await tell(ps), ...result.notes] }
  }
  const token = randomBytes(6).toString('hex')
  const asking = await recorded((ps) => run(ps, true))
  const changing = await recorded((ps) => run(ps, false))
  // an answer that says that all was changed: what the undo is to take back it reads on the host
  const changed = { changed: true, id: '', before: {}, notes: [] } as unknown as R
  const whole = await recorded((ps) => undo(changed, ps))
  const undoing = whole.replace(/^\s*\$done = .*\n/, '')
  if (undoing === whole) throw new Error(`Cannot guard ${subject}: its undo has no $done`)
  const later = `The host takes back what was changed of ${subject} by itself, ` +
    `${revertAfter} s after it began`
  let answer: { result: R; armed: boolean; told: string[] }
  try {
    const { stdout } = await change(ps, {
      subject,
      token,
      asking,
      changing,
      undoing,
      revertAfter,
      probe,
    })
    answer = JSON.parse(stdout)
  } catch (error) {
    if (!(error instanceof ConnectionError)) throw error
    throw new ConnectionError(`${error.message}. ${later}`, { cause: error })
  }
  const { result, armed, told } = answer
  if (armed && !await within(revertAfter, confirm(ps, token), later)) {
    throw new Error(
      `Cannot keep the change of ${subject}: the host was not reached within ${revertAfter} s after ` +
        'it, and took it back. Run again with a longer time: --revert-after 5m',
    )
  }
  return { ...result, notes: [...told, ...result.notes] }
}

/**
 * Takes back now what guards of runs that were cut off would take back in their time, and removes what is
 * left of them.
 */
export async function undoPending(ps: PowerShell): Promise<void> {
  await before(UNDO_PENDING, ps)`
    $end = ${END}`
}

/** What guards had to take back and nobody was told of. */
async function tell(ps: PowerShell): Promise<string[]> {
  const { stdout } = await before(TELL, ps)``
  return JSON.parse(stdout)
}

function checkGuard({ revertAfter = 60, probe = [] }: GuardOptions): void {
  if (!Number.isInteger(revertAfter) || revertAfter < 5 || revertAfter > 3600) {
    throw new RangeError(
      `Cannot take the change back after ${revertAfter} s: it is 5 to 3600 whole seconds. ` +
        'Example: --revert-after 60s',
    )
  }
  for (const target of probe) checkProbe(target)
}

function checkProbe(target: string): void {
  if (/^\w+:\/\/[^/?#]*@/.test(target)) {
    throw new TypeError(
      'Cannot probe an address with a user or a password in it: plans, journals and logs would keep it. ' +
        'Give it without, as any answer of the server will do. Example: --probe https://intranet.lan',
    )
  }
  const [, port] = /^(?:[\p{L}\p{N}_.-]+|\[[\da-f:.]+\]):(\d{1,5})$/iu.exec(target) ?? []
  const url = /^https?:\/\/[^\s/]+/i.test(target) && URL.canParse(target)
  if (url || (port !== undefined && Number(port) > 0 && Number(port) < 65536)) return
  throw new TypeError(
    `Cannot probe ${JSON.stringify(target)}: it is a URL of http or https, or host:port. ` +
      'Example: --probe intranet.lan:443',
  )
}

/** The script that a task would run, without running it. */
function recorded(work: (ps: PowerShell) => Promise<unknown>): Promise<string> {
  return new Promise((resolve, reject) => {
    const ps: PowerShell = (pieces, ...values) => {
      resolve(script(pieces, ...values))
      return new Promise(() => {}) // the task needs no answer any more
    }
    work(ps).then(() => reject(new Error('Cannot guard a task that runs no script')), reject)
  })
}

async function within<T>(seconds: number, answer: Promise<T>, later: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new ConnectionError(`The host does not answer any more. ${later}`))
    }, seconds * 1000)
  })
  try {
    return await Promise.race([answer, late])
  } catch (error) {
    if (!(error instanceof ConnectionError) || error.message.endsWith(later)) throw error
    throw new ConnectionError(`${error.message}. ${later}`, { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

/**
 * The guard is three files in a folder that administrators and SYSTEM alone may write to, as SYSTEM
 * runs what lies there: `guard-TOKEN.ps1` takes the change back, `.armed` says that it shall, and
 * becomes `.claimed` while it does. Renaming is what only one can do: kit or guard.
 *
 * Assumed about Windows: SYSTEM is known by its SID in every language, a task's process lives on when
 * the task is removed, and Stopwatch counts from the start of Windows, the same in every process.
 */
function change(
  ps: PowerShell,
  { subject, token, asking, changing, undoing, revertAfter, probe }: {
    subject: string
    token: string
    asking: string
    changing: string
    undoing: string
    revertAfter: number
    probe: readonly string[]
  },
): PromiseLike<{ stdout: string }> {
  return before(CHANGE, ps)`
    $subject = ${subject}
    $token = ${token}
    $asking = ${asking}
    $changing = ${changing}
    $undoing = ${undoing}
    $reverting = ${REVERT}
    $end = ${END}
    $seconds = ${revertAfter}
    $probes = ${probe}`
}

/** Cancels the guard. False where it has begun to take the change back. */
async function confirm(ps: PowerShell, token: string): Promise<boolean> {
  const { stdout } = await before(CONFIRM, ps)`
    $token = ${token}`
  return stdout.trim() === 'true'
}

/** The same with a script behind, for which the template has the values. */
function before(text: string, ps: PowerShell): PowerShell {
  return (pieces, ...values) => {
    const last = pieces.length - 1
    const whole = pieces.map((piece, index) => index === last ? `${piece}\n${text}` : piece)
    return ps(Object.assign(whole, { raw: whole }), ...values)
  }
}

/** What the log in `$folder` says, in words. */
const TOLD = `
$told = @()
$log = [IO.Path]::Combine($folder, 'guard.log')
if ([IO.File]::Exists($log)) {
  foreach ($line in [IO.File]::ReadAllLines($log)) {
    $entry = ConvertFrom-Json $line
    if ($entry.failure) { $told += "At $($entry.at) the host could not take back the change of $($entry.subject): $($entry.failure)" }
    else { $told += "At $($entry.at) the host took back the change of $($entry.subject), $($entry.why)" }
  }
}`

/** Puts the log away, once it is sure to be told: what fails before tells nothing, and the next run does. */
const FORGET = `
$log = [IO.Path]::Combine($folder, 'guard.log')
if ([IO.File]::Exists($log)) {
  [IO.File]::AppendAllText([IO.Path]::Combine($folder, 'guard-told.log'), [IO.File]::ReadAllText($log))
  [IO.File]::Delete($log)
}`

const TELL = `
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')${TOLD}${FORGET}
ConvertTo-Json -Compress -InputObject @($told)`

/** Makes the change and tests the network, with the values that {@link change} gives it. */
const CHANGE = `
function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
function run($text) { [string]@(& ([ScriptBlock]::Create($text)))[-1] }
function revert($path) { & ([ScriptBlock]::Create([IO.File]::ReadAllText($path))) -Now }
# written through: after a power cut the guard has to be there, whole
function put($path, $text) {
  $bytes = (New-Object Text.UTF8Encoding $false).GetBytes($text)
  $file = [IO.File]::Create($path)
  try {
    $file.Write($bytes, 0, $bytes.Length)
    $file.Flush($true)
  } finally { $file.Dispose() }
}
# how a neighbour is known that answers, or did
$heard = 'Reachable', 'Stale', 'Delay', 'Probe', 'Permanent'
function gateways {
  foreach ($route in @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' -and $_.NextHop -ne '0.0.0.0' })) {
    # a router answers who has its address, whatever else it keeps to itself
    try { $null = (New-Object Net.Sockets.UdpClient).Send([byte[]]@(0), 1, $route.NextHop, 9) } catch { Write-Verbose $_ }
    $known = @(Get-NetNeighbor | Where-Object { $_.IPAddress -eq $route.NextHop -and $_.InterfaceIndex -eq $route.InterfaceIndex -and [string]$_.State -in $heard })
    if ($known.Count -gt 0) { [pscustomobject]@{ hop = [string]$route.NextHop; index = [int]$route.InterfaceIndex } }
  }
}
function servers { Get-DnsClientServerAddress -AddressFamily IPv4 | ForEach-Object { $_.ServerAddresses } | Where-Object { $_ } }
# the DNS servers that answer, each asked from its adapter's own address, for the servers of the root, which it
# knows or refuses to tell (assumption: every server does)
function naming {
  $query = [byte[]]@(7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1)
  $own = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { [string]$_.AddressState -eq 'Preferred' })
  $asked = @(foreach ($set in @(Get-DnsClientServerAddress -AddressFamily IPv4)) {
      $from = $own | Where-Object { $_.InterfaceIndex -eq $set.InterfaceIndex } | Select-Object -First 1
      foreach ($server in @($set.ServerAddresses | Where-Object { $_ -and $from })) {
        try {
          $client = New-Object Net.Sockets.UdpClient (New-Object Net.IPEndPoint ([Net.IPAddress]$from.IPAddress), 0)
          $null = $client.Send($query, $query.Length, $server, 53)
          @{ server = [string]$server; client = $client; answer = $client.ReceiveAsync() }
        } catch { Write-Verbose $_ }
      }
    })
  $waited = [Diagnostics.Stopwatch]::StartNew()
  foreach ($one in $asked) {
    try { if ($one.answer.Wait([Math]::Max(1, 1000 - $waited.ElapsedMilliseconds))) { $one.server } } catch { Write-Verbose $_ }
    $one.client.Dispose()
  }
}
function answers($probe) {
  try {
    if ($probe -match '^https?://') {
      $request = [Net.WebRequest]::Create($probe)
      $request.Timeout = 3000
      $request.GetResponse().Close()
      return $true
    }
    $at = $probe.LastIndexOf(':')
    $client = New-Object Net.Sockets.TcpClient
    try {
      $null = $client.ConnectAsync($probe.Substring(0, $at).Trim('[', ']'), [int]$probe.Substring($at + 1)).Wait(3000)
      return $client.Connected
    } finally { $client.Dispose() }
  } catch {
    # a page that is not there is an answer too
    $_.Exception.InnerException -is [Net.WebException] -and $null -ne $_.Exception.InnerException.Response
  }
}
# who came by an address that the host has no more, and has no other way in
function cut {
  $all = @(Get-NetIPAddress)
  $own = @($all | Where-Object { [string]$_.AddressState -in 'Preferred', 'Deprecated' } | ForEach-Object { ([string]$_.IPAddress).Split('%')[0] })
  $gone = @($sessions | Where-Object { $_ -notin $own })
  if ($gone.Count -eq 0) { return }
  # by another network adapter: not by a loopback, not by a switch that leads nowhere outside
  $externals = @(Get-VMSwitch | Where-Object { [string]$_.SwitchType -eq 'External' } | ForEach-Object { [string]$_.Id })
  $inside = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -notin $externals } | ForEach-Object { [string]$_.DeviceId })
  $outside = @(Get-NetAdapter | Where-Object { [string]$_.Status -eq 'Up' -and [string]$_.DeviceID -notin $inside } | ForEach-Object { $_.InterfaceIndex })
  $ways = @($all | Where-Object { $_.InterfaceIndex -in $outside -and [string]$_.AddressFamily -eq 'IPv4' -and [string]$_.IPAddress -notlike '169.254.*' -and [string]$_.AddressState -eq 'Preferred' })
  if ($ways.Count -gt 0) { return }
  foreach ($address in $gone) { "somebody is connected by $address, which the host has no more" }
}
# what is not as it was, in words
function lost {
  $now = @(gateways)
  foreach ($gateway in $before.gateways) {
    $gone = @(Get-NetIPInterface -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $gateway.index }).Count -eq 0
    if (-not $keeps -and $gone) { continue }
    if (@($now | Where-Object { $_.hop -eq $gateway.hop }).Count -eq 0) { "the gateway $($gateway.hop) does not answer" }
  }
  $there = @(servers)
  if ($keeps) {
    foreach ($server in @($before.servers | Where-Object { $_ -notin $there })) { "the DNS server $server is not set" }
    $named = @(if ($before.naming.Count -gt 0) { naming })
    foreach ($server in @($before.naming | Where-Object { $_ -in $there -and $_ -notin $named })) { "the DNS server $server does not answer" }
  }
  foreach ($probe in $probes) { if (-not (answers $probe)) { "$probe does not answer" } }
}

$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
$windows = [Environment]::OSVersion.Platform -eq 'Win32NT'
if (-not [IO.Directory]::Exists($folder)) {
  $null = [IO.Directory]::CreateDirectory($folder)
  if ($windows) {
    $null = icacls $folder /setowner '*S-1-5-32-544'
    $null = icacls $folder /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F'
    if ($LASTEXITCODE -ne 0) { throw "Cannot keep the folder ""$folder"" for administrators alone (icacls: exit code $LASTEXITCODE). Run: Remove-Item -Recurse -LiteralPath $(quoted $folder)" }
  }
}
# anybody may make a folder in ProgramData, so it may be another's
if ($windows -and (Get-Acl -LiteralPath $folder).GetOwner([Security.Principal.SecurityIdentifier]).Value -notin 'S-1-5-32-544', 'S-1-5-18') {
  throw "Cannot guard the change of $($subject): the folder ""$folder"" is not the administrators' own. Run: Remove-Item -Recurse -LiteralPath $(quoted $folder)"
}
$stem = [IO.Path]::Combine($folder, "guard-$token")
$task = "vbox-to-hyperv guard $token"

# a change that nobody confirmed is taken back first, so that this one starts from what was
foreach ($pending in [IO.Directory]::GetFiles($folder, 'guard-*.ps1')) {
  if ([IO.File]::ReadAllText($pending).EndsWith($end, 'Ordinal')) {
    try { revert $pending } catch { throw "Cannot change $($subject): an earlier change that nobody confirmed cannot be taken back: $($_.Exception.Message). Mend that and run again, or leave the change as it is: Remove-Item -Path $(quoted ([IO.Path]::ChangeExtension($pending, '*')))" }
    continue
  }
  # cut off while it was written, before anything was changed
  [IO.File]::Delete([IO.Path]::ChangeExtension($pending, 'armed'))
  [IO.File]::Delete($pending)
}
$answer = run $asking
$asked = ConvertFrom-Json $answer
$armed = [bool]$asked.changed
if ($armed) {
  $keeps = $null -eq $asked.shared -or $asked.shared
  $before = @{ gateways = @(gateways); servers = @(servers); naming = @(if ($keeps) { naming }) }
  # the host's addresses that somebody is connected by, whoever runs this among them
  $mine = @(Get-NetIPAddress | ForEach-Object { ([string]$_.IPAddress).Split('%')[0] })
  $by = @(([string]$env:SSH_CONNECTION).Split(' ')[2]) + @(Get-NetTCPConnection | Where-Object { [string]$_.State -eq 'Established' -and $_.LocalPort -in 22, 3389 } | ForEach-Object { [string]$_.LocalAddress })
  $sessions = @($by | Where-Object { $_ } | ForEach-Object { $_.Split('%')[0] } | Where-Object { $_ -in $mine } | Select-Object -Unique)
  $lines = @(
    'param([switch]$Now, [string]$Why = ''which nobody confirmed'')'
    '$subject = ' + (quoted $subject)
    '$token = ' + (quoted $token)
    '$seconds = ' + $seconds
    '$began = ' + [Diagnostics.Stopwatch]::GetTimestamp()
    '$undo = {'
    '$done = ' + (quoted $answer)
    # by this the undo of a bundle knows that the guard asks for it (see recipes/run/deploy.ts)
    '$theGuard = $true'
    $undoing
    '}'
    $reverting
  )
  $clock = [Diagnostics.Stopwatch]::StartNew()
  # with a mark, without which 5.1 takes a file for ANSI
  put "$stem.ps1" ([string][char]0xfeff + ($lines -join [char]10))
  put "$stem.armed" ''
  $argument = '-NoProfile -NonInteractive -ExecutionPolicy Bypass -Command "& ([ScriptBlock]::Create([IO.File]::ReadAllText(' + (quoted "$stem.ps1") + ')))"'
  try {
    $null = Register-ScheduledTask -TaskName $task -Description "Takes back the change of $subject unless it is confirmed" -Action (New-ScheduledTaskAction -Execute powershell.exe -Argument $argument) -Trigger @((New-ScheduledTaskTrigger -Once -At (Get-Date).AddSeconds($seconds)), (New-ScheduledTaskTrigger -AtStartup)) -Principal (New-ScheduledTaskPrincipal -UserId S-1-5-18 -LogonType ServiceAccount -RunLevel Highest) -Settings (New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable -MultipleInstances IgnoreNew -ExecutionTimeLimit (New-TimeSpan -Hours 2))
    # it waits by itself: the time of day may jump when the network comes and goes
    Start-ScheduledTask -TaskName $task
    $answer = run $changing
  } catch {
    $failure = $_
    # a change that failed puts back what it did; where the host is not as it was, the guard does
    $whole = $false
    try { $whole = (run $asking) -ceq $answer } catch { Write-Verbose $_ }
    if (-not $whole) {
      try { & ([ScriptBlock]::Create([IO.File]::ReadAllText("$stem.ps1"))) -Now -Why 'which failed' }
      catch { throw "Cannot finish the change of $($subject), nor take it back: $($failure.Exception.Message), and then: $($_.Exception.Message). The host tries again when it starts, or run: Start-ScheduledTask -TaskName $(quoted $task)" }
      throw $failure
    }
    [IO.File]::Delete("$stem.armed")
    Get-ScheduledTask -TaskName "$task*" | Unregister-ScheduledTask -Confirm:$false
    [IO.File]::Delete("$stem.ps1")
    throw $failure
  }
  # what was heard before, or while the change was made, is asked anew: Windows goes on to know a neighbour that is
  # silent. One that is removed it asks for at the next packet, and knows within a second (assumption)
  $hops = @($before.gateways | ForEach-Object { $_.hop })
  try {
    Get-NetNeighbor | Where-Object { $_.IPAddress -in $hops -and [string]$_.State -ne 'Permanent' } | Remove-NetNeighbor -Confirm:$false
    $heard = 'Reachable', 'Permanent'
  } catch { Write-Verbose $_ }
  $tested = [Diagnostics.Stopwatch]::StartNew()
  while ($true) {
    $cut = @(cut)
    $lost = $cut + @(lost)
    # an address that goes with sharing does not come again, but for that of an adapter that is free again
    $hopeless = $cut.Count -gt 0 -and -not $keeps -and $tested.Elapsed.TotalSeconds -gt 5
    if ($lost.Count -eq 0 -or $hopeless -or $clock.Elapsed.TotalSeconds -gt 0.75 * $seconds) { break }
    Start-Sleep -Milliseconds 250
  }
  if ($lost.Count -gt 0) {
    try { & ([ScriptBlock]::Create([IO.File]::ReadAllText("$stem.ps1"))) -Now -Why 'which was tested and failed' } catch { throw "Cannot keep the change of $($subject), nor take it back: after it $($lost -join ', '), and then: $($_.Exception.Message). The host tries again when it starts, or run: Start-ScheduledTask -TaskName $(quoted $task)" }
    $then = 'Mend that, or do without the test. Run again with: --no-guard'
    if ($cut.Count -gt 0) { $then = 'Run it at the host itself' }
    throw "Cannot keep the change of $($subject), and took it back: after it $($lost -join ', '). $then"
  }
}
${TOLD}
if (-not $armed) {${FORGET}
}
'{"result":' + $answer + ',"armed":' + (ConvertTo-Json $armed) + ',"told":' + (ConvertTo-Json -Compress -InputObject @($told)) + '}'`

/** Of the guard that `$token` names. */
const CONFIRM = `
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
$stem = [IO.Path]::Combine($folder, "guard-$token")
try { [IO.File]::Move("$stem.armed", "$stem.confirmed") } catch [IO.FileNotFoundException] { 'false'; return }
$task = "vbox-to-hyperv guard $token"
# to ask for a pattern fails where the tasks cannot be told, and not where there is none (assumption);
# the guard that sees it confirmed goes by itself, at the same moment perhaps; what is left of one whose file
# somebody removed has nothing to do any more
try {
  foreach ($one in @(Get-ScheduledTask -TaskName 'vbox-to-hyperv guard *')) {
    $name = [string]$one.TaskName
    if ($name -ne $task -and [IO.File]::Exists([IO.Path]::Combine($folder, "guard-$($name.Split(' ')[-1]).ps1"))) { continue }
    Stop-ScheduledTask -InputObject $one
    Unregister-ScheduledTask -InputObject $one -Confirm:$false
  }
} catch { if (Get-ScheduledTask -TaskName "$task*") { throw } }
[IO.File]::Delete("$stem.ps1")
[IO.File]::Delete("$stem.confirmed")${FORGET}
'true'`

const UNDO_PENDING = `
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
if (-not [IO.Directory]::Exists($folder)) { return }
# an administrator of Hyper-V alone may not look there, and may do without the guard what needs no more rights
try { $files = [IO.Directory]::GetFiles($folder, 'guard-*.ps1') } catch [UnauthorizedAccessException] { return }
foreach ($pending in $files) {
  $text = [IO.File]::ReadAllText($pending)
  # one that is not whole goes with the next change: nothing was changed under it
  if (-not $text.EndsWith($end, 'Ordinal')) { continue }
  try { & ([ScriptBlock]::Create($text)) -Now } catch {
    $left = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([IO.Path]::ChangeExtension($pending, '*'))
    throw "Cannot take back an earlier change that nobody confirmed: $($_.Exception.Message). Mend that and run again, or leave the change as it is: Remove-Item -Path '$left'"
  }
}`

/** The last line of a guard's file, by which it is known to be there whole. */
const END = '# whole'

/**
 * What the guard does, after the lines that say whose it is. It waits by a clock that only goes
 * forward and starts anew with Windows; after a start there is nobody to wait for. While Windows
 * starts, Hyper-V may not be there yet, so it tries for some minutes.
 */
const REVERT = `
$ErrorActionPreference = 'Stop'
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
$stem = [IO.Path]::Combine($folder, "guard-$token")
if (-not $Now) {
  $left = $seconds - ([Diagnostics.Stopwatch]::GetTimestamp() - $began) / [Diagnostics.Stopwatch]::Frequency
  if ($left -gt $seconds) { $left = 0 }
  $clock = [Diagnostics.Stopwatch]::StartNew()
  while ([IO.File]::Exists("$stem.armed") -and $clock.Elapsed.TotalSeconds -lt $left) { Start-Sleep -Milliseconds 250 }
}
try { [IO.File]::Move("$stem.armed", "$stem.claimed") } catch [IO.FileNotFoundException] { Write-Verbose $_ }
$hold = $null
# held open by whoever takes the change back, for as long as that one lives
for ($n = 0; [IO.File]::Exists("$stem.claimed") -and $null -eq $hold -and $n -lt 240; $n++) {
  try { $hold = [IO.File]::Open("$stem.claimed", 'Open', 'ReadWrite', 'None') } catch [IO.IOException] { Start-Sleep -Milliseconds 250 }
}
if (-not $hold -and [IO.File]::Exists("$stem.claimed")) { throw "Cannot wait longer for the change of $($subject) to be taken back: that is under way. Run the same again in some minutes" }
$failure = $null
if ($hold) {
  $tries = 30
  if ($Now) { $tries = 1 }
  try {
    # what is written in it says that whoever held it before has taken the change back
    if ($hold.Length -eq 0) {
      for ($n = 1; $n -le $tries; $n++) {
        $failure = $null
        try { $null = & $undo; break } catch { $failure = $_ }
        if ($n -lt $tries) { Start-Sleep -Seconds 10 }
      }
      $entry = [ordered]@{ at = (Get-Date).ToString('yyyy-MM-dd HH:mm:ss'); subject = $subject; why = $Why; failure = $null }
      if ($failure) { $entry.failure = [string]$failure.Exception.Message } else { $hold.WriteByte(49) }
      [IO.File]::AppendAllText([IO.Path]::Combine($folder, 'guard.log'), (ConvertTo-Json -Compress -InputObject $entry) + [char]10)
    }
  } finally { $hold.Dispose() }
  # the next start of Windows tries again
  if ($failure) { throw $failure }
}
$task = "vbox-to-hyperv guard $token"
# whoever confirms removes it too
try { Get-ScheduledTask -TaskName "$task*" | Unregister-ScheduledTask -Confirm:$false }
catch { if (Get-ScheduledTask -TaskName "$task*") { throw } }
[IO.File]::Delete("$stem.claimed")
[IO.File]::Delete("$stem.confirmed")
[IO.File]::Delete("$stem.ps1")
${END}`

/**
 * The scripts of the guard, for who writes them down to be run later: `change` and `confirm` as a guarded task
 * runs them, with the values in variables of the names that are here.
 */
export const guardScripts = {
  change: CHANGE,
  confirm: CONFIRM,
  undoPending: UNDO_PENDING,
  reverting: REVERT,
  end: END,
} as const
