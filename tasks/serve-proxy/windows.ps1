# Serves a proxy in a Windows guest by gost and a scheduled task, as an administrator. Before it stand: $mode
# (serve, undo, upload, which reads $length bytes, prepare, which says where another way is to put them, or drop,
# which forgets them), $dryRun, $had and $ruleWas (undo: a proxy, and the firewall's rule, were there before),
# $address, $port, $subnet, $wanted (SHA-256 of the program to use, or empty for the one on PATH), $upload
# (whether it was put into the folder of uploads) and $config (a SecureString, or empty).
# Answers one line of JSON: {"state": ...} with what a person is told in serve-proxy.ts.
$windows = [Environment]::OSVersion.Platform -eq 'Win32NT'
$base = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
$folder = [IO.Path]::Combine($base, 'proxy')
$own = [IO.Path]::Combine($folder, 'gost.exe')
$file = [IO.Path]::Combine($folder, 'gost.json')
$saved = [IO.Path]::Combine($base, 'proxy.before')
$uploads = [IO.Path]::Combine($base, 'proxy.new')
$uploaded = [IO.Path]::Combine($uploads, 'gost.exe')
$path = '\vbox-to-hyperv\'
$name = 'proxy'
$rule = 'vbox-to-hyperv-proxy'
$result = @{ state = 'ok'; detail = ''; version = ''; sha256 = ''; program = ''; served = $false; changed = $false; firewall = 'Windows'; ruleWas = $false }

function task { Get-ScheduledTask -TaskPath $path -TaskName $name -ErrorAction Ignore }
function running { [string](task).State -eq 'Running' }
function stop {
  Stop-ScheduledTask -TaskPath $path -TaskName $name
  # the file of a program that runs cannot be replaced
  for ($n = 0; (running) -and $n -lt 100; $n++) { Start-Sleep -Milliseconds 100 }
}
# a folder that administrators alone may enter, with all below: what is in it runs as SYSTEM
function own {
  if (-not [IO.Directory]::Exists($base)) {
    $null = [IO.Directory]::CreateDirectory($base)
    if ($windows) {
      $null = icacls $base /setowner '*S-1-5-32-544'
      $null = icacls $base /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F'
      if ($LASTEXITCODE -ne 0) { throw "the folder ""$base"" cannot be kept for administrators alone (icacls: exit code $LASTEXITCODE)" }
    }
  }
  if ($windows -and (Get-Acl -LiteralPath $base).GetOwner([Security.Principal.SecurityIdentifier]).Value -notin 'S-1-5-32-544', 'S-1-5-18') {
    throw "the folder ""$base"" is not the administrators' own. Remove it in the guest"
  }
}
# what the rule lets in is its description, which Windows gives back as it is
function opening { $found = Get-NetFirewallRule -Name $rule -ErrorAction Ignore; if ($found -and [string]$found.Enabled -eq 'True') { [string]$found.Description } }
function admit($what) {
  Get-NetFirewallRule -Name $rule -ErrorAction Ignore | Remove-NetFirewallRule
  if (-not $what) { return }
  $to, $from = $what -split ' from '
  $at, $number = $to -split ':'
  $null = New-NetFirewallRule -Name $rule -DisplayName 'Proxy for the Hyper-V host' -Description $what -Direction Inbound -Action Allow -Profile Any -Protocol TCP -LocalAddress $at -LocalPort $number -RemoteAddress $from -Program $own
}
function register {
  $action = New-ScheduledTaskAction -Execute $own -Argument "-C ""$file"""
  # at the start of Windows, and once a minute: while it runs, another start is ignored
  $always = New-ScheduledTaskTrigger -Once -At ([DateTime]'2000-01-01') -RepetitionInterval ([TimeSpan]::FromMinutes(1))
  $principal = New-ScheduledTaskPrincipal -UserId 'S-1-5-18' -LogonType ServiceAccount -RunLevel Highest
  $settings = New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable -MultipleInstances IgnoreNew -ExecutionTimeLimit ([TimeSpan]::Zero)
  $null = Register-ScheduledTask -TaskPath $path -TaskName $name -Description 'Proxy into the network of this guest, for its Hyper-V host alone' -Action $action -Trigger @((New-ScheduledTaskTrigger -AtStartup), $always) -Principal $principal -Settings $settings -Force
}
# what was served before, or nothing
function restore {
  if (task) { stop }
  if ([IO.Directory]::Exists($saved)) {
    foreach ($item in 'gost.exe', 'gost.json') { [IO.File]::Copy([IO.Path]::Combine($saved, $item), [IO.Path]::Combine($folder, $item), $true) }
    admit ([IO.File]::ReadAllText([IO.Path]::Combine($saved, 'rule')))
    [IO.Directory]::Delete($saved, $true)
    register
    Start-ScheduledTask -TaskPath $path -TaskName $name
    return
  }
  if (task) { Unregister-ScheduledTask -TaskPath $path -TaskName $name -Confirm:$false }
  admit ''
  if ([IO.Directory]::Exists($folder)) { [IO.Directory]::Delete($folder, $true) }
}
function answer($state, $detail) {
  if ($state) { $result.state = $state }
  $result.detail = [string]$detail
  if ($mode -notin 'upload', 'prepare' -and $state -ne 'upload' -and [IO.Directory]::Exists($uploads)) { [IO.Directory]::Delete($uploads, $true) }
  ConvertTo-Json -Compress -Depth 2 -InputObject $result
}

if ($mode -eq 'drop') { answer; return }
if ($mode -in 'upload', 'prepare') {
  own
  $null = [IO.Directory]::CreateDirectory($uploads)
  if ($mode -eq 'prepare') { $result.program = $uploaded; answer; return }
  $stream = [IO.File]::Create($uploaded)
  try {
    $buffer = New-Object byte[] 1048576
    for ($left = $length; $left -gt 0; $left -= $got) {
      $got = $channel.Read($buffer, 0, [Math]::Min($left, $buffer.Length))
      if ($got -eq 0) { [Environment]::Exit(1) } # the connection is lost, which is for the other end to say
      $stream.Write($buffer, 0, $got)
    }
  } finally { $stream.Dispose() }
  answer
  return
}
$result.served = $null -ne (task)
$open = opening
$result.ruleWas = [bool]$open
if ($mode -eq 'undo') {
  $result.changed = $result.served -and (-not $had -or [IO.Directory]::Exists($saved))
  if ($result.changed -and -not $dryRun) {
    if (-not $had -and [IO.Directory]::Exists($saved)) { [IO.Directory]::Delete($saved, $true) }
    restore
  }
  answer
  return
}

# the program goes where administrators alone may write: it runs as SYSTEM
if (-not $wanted) {
  $found = @(Get-Command gost -CommandType Application -ErrorAction Ignore)
  if ($found.Count -eq 0) { answer 'no-gost'; return }
  $program = $found[0].Source
} elseif ([IO.File]::Exists($own) -and (Get-FileHash -LiteralPath $own -Algorithm SHA256).Hash -eq $wanted) { $program = $own }
elseif ($upload) { $program = $uploaded }
else { answer 'upload'; return }
$result.program = $program
$result.sha256 = (Get-FileHash -LiteralPath $program -Algorithm SHA256).Hash.ToLowerInvariant()
if ($wanted -and $result.sha256 -ne $wanted) { answer 'broken-upload'; return }
try { $result.version = [string]@(& $program -V 2>&1)[0] } catch { $result.version = $_.Exception.Message }
if ($result.version -notmatch '^gost v?3\.') { answer 'wrong-version'; return }
if (-not (Get-NetIPAddress -IPAddress $address -ErrorAction Ignore)) { answer 'no-address'; return }
$active = running
if (-not $active) {
  $holder = @(Get-NetTCPConnection -LocalPort $port -State Listen -ErrorAction Ignore | Where-Object { $_.LocalAddress -in $address, '0.0.0.0', '::' })
  if ($holder.Count -gt 0) { answer 'taken' (Get-Process -Id $holder[0].OwningProcess -ErrorAction Ignore).ProcessName; return }
}

$text = (New-Object Net.NetworkCredential '', $config).Password
$wants = "${address}:$port from $subnet"
$same = [IO.File]::Exists($file) -and [IO.File]::ReadAllText($file) -ceq $text -and [IO.File]::Exists($own) -and (Get-FileHash -LiteralPath $own -Algorithm SHA256).Hash -eq $result.sha256
$result.program = $own
if ($same -and $active -and $open -eq $wants) { answer; return }
$result.changed = $true
if ($dryRun) { answer; return }
try {
  if ([IO.Directory]::Exists($saved)) { [IO.Directory]::Delete($saved, $true) }
  if ($result.served -and [IO.File]::Exists($own) -and [IO.File]::Exists($file)) {
    stop
    [IO.Directory]::Move($folder, $saved)
    [IO.File]::WriteAllText([IO.Path]::Combine($saved, 'rule'), [string]$open)
  }
  own
  $null = [IO.Directory]::CreateDirectory($folder)
  if ($program -ne $own) { [IO.File]::Copy($program, $own, $true) }
  elseif (-not [IO.File]::Exists($own)) { [IO.File]::Copy([IO.Path]::Combine($saved, 'gost.exe'), $own) }
  [IO.File]::WriteAllText($file, $text)
  register
  admit $wants
  Start-ScheduledTask -TaskPath $path -TaskName $name
  # one that dies at once runs for a moment
  $lasted = $lost = 0
  while ($lasted -lt 4 -and $lost -lt 4) {
    Start-Sleep -Milliseconds 250
    if (running) { $lasted++ } else { $lasted = 0; $lost++ }
  }
  if ($lasted -lt 4) { throw 'it ends as soon as it starts' }
} catch {
  $why = $_.Exception.Message
  restore
  answer 'failed' $why
  return
}
answer
