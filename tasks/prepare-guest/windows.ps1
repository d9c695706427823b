# Prepares a Windows guest of VirtualBox for its first start on Hyper-V, or takes that back. Runs in
# Windows PowerShell 5.1 in the guest, as an administrator, and ends in one line of JSON. The lines
# before this one set
#   $mode              'prepare' or 'undo'
#   $dryRun            only say what would change
#   $suspendBitLocker  let the disk be read without the TPM until protection is resumed
#   $keepAdditions     leave the Guest Additions alone
#   $detached          the Guest Additions carry this script, so they are removed after it
#   $shutDown          shut the guest down after it, unless it would not start on Hyper-V
#   $bootDrivers       what Windows may start from there
#
# What was before the first change is in before.json below ProgramData\vbox-to-hyperv.
$ErrorActionPreference = 'Stop'
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
$file = [IO.Path]::Combine($folder, 'before.json')
$task = 'vbox-to-hyperv first start'
$services = 'HKLM:\SYSTEM\CurrentControlSet\Services'
$power = 'HKLM:\SYSTEM\CurrentControlSet\Control\Power'
$crash = 'HKLM:\SYSTEM\CurrentControlSet\Control\CrashControl'
$uninstall = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall'
$encryption = 'root/cimv2/Security/MicrosoftVolumeEncryption'
$later = @{ leaving = $false }
$answer = @{ guest = 'windows'; changed = $false; steps = @(); before = @(); addresses = @() }

# STATE is ok, changed, warning or refusal
function say($step, $state, $detail) {
  $answer.steps += @{ step = $step; state = $state; detail = $detail }
  if ($state -eq 'changed') { $answer.changed = $true }
}

# every character beyond ASCII is written as its number: what a guest prints has the guest's code page
function finish {
  $json = ConvertTo-Json -InputObject $answer -Compress -Depth 6
  [regex]::Replace($json, '[^\x20-\x7e]', { param($match) '\u{0:x4}' -f [int][char]$match.Value })
}

function valueOf($key, $name) {
  if (-not (Test-Path -LiteralPath $key)) { return $null }
  $all = Get-ItemProperty -LiteralPath $key
  if ($all.PSObject.Properties.Name -contains $name) { $all.$name }
}

function valuesOf($key) {
  $values = @{}
  if (Test-Path -LiteralPath $key) {
    foreach ($property in (Get-ItemProperty -LiteralPath $key).PSObject.Properties) {
      if ($property.Name -notin 'PSPath', 'PSParentPath', 'PSChildName', 'PSDrive', 'PSProvider') { $values[$property.Name] = $property.Value }
    }
  }
  $values
}

# --- what was before ---

$kept = @{}
if ([IO.File]::Exists($file)) {
  foreach ($property in (ConvertFrom-Json ([IO.File]::ReadAllText($file))).PSObject.Properties) { $kept[$property.Name] = $property.Value }
}

# a folder that administrators alone may enter: Windows runs a script there as itself
function own {
  $windows = [Environment]::OSVersion.Platform -eq 'Win32NT'
  if (-not [IO.Directory]::Exists($folder)) {
    $null = [IO.Directory]::CreateDirectory($folder)
    if ($windows) {
      $null = icacls $folder /setowner '*S-1-5-32-544'
      $null = icacls $folder /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F'
      if ($LASTEXITCODE -ne 0) { throw "the folder ""$folder"" cannot be kept for administrators alone (icacls: exit code $LASTEXITCODE)" }
    }
  }
  if ($windows -and (Get-Acl -LiteralPath $folder).GetOwner([Security.Principal.SecurityIdentifier]).Value -notin 'S-1-5-32-544', 'S-1-5-18') {
    throw "the folder ""$folder"" is not the administrators' own. Remove it in the guest"
  }
}

# aside first, so that it is there whole or not at all
function store($path, $text) {
  own
  [IO.File]::WriteAllText("$path.new", $text, (New-Object Text.UTF8Encoding $true))
  if ([IO.File]::Exists($path)) { [IO.File]::Replace("$path.new", $path, [NullString]::Value) } else { [IO.File]::Move("$path.new", $path) }
}

# kept before the change, and of the first change alone
function keep($name, $value) {
  $answer.before += @{ what = $name; was = $(if ($null -ne $value) { ConvertTo-Json -InputObject $value -Compress -Depth 4 }) }
  if ($kept.ContainsKey($name)) { return }
  $kept[$name] = $value
  store $file (ConvertTo-Json -InputObject $kept -Depth 4)
}

function first($text) { ([string]$text).Trim().Split([char]10)[0].Trim() }

# --- the steps ---

# Windows starts with the drivers that start with it, and disables those whose hardware it does not see.
function bootDrivers {
  $there = @($bootDrivers | Where-Object { Test-Path -LiteralPath "$services\$_" })
  $scsi = 'vmbus' -in $there -and 'storvsc' -in $there
  if (-not $scsi -and ('intelide' -notin $there -or 'atapi' -notin $there)) {
    say 'boot-drivers' 'refusal' 'This Windows has neither vmbus and storvsc nor intelide and atapi, and stops on Hyper-V with 0x7B (INACCESSIBLE_BOOT_DEVICE). Install the integration services in it'
    return
  }
  if (-not $scsi) { say 'boot-drivers' 'warning' 'This Windows has no vmbus and storvsc, so it starts from IDE alone, in a VM of generation 1' }
  $late = @($there | Where-Object { (valueOf "$services\$_" Start) -ne 0 -or (Test-Path -LiteralPath "$services\$_\StartOverride") })
  if ($late.Count -eq 0) {
    say 'boot-drivers' 'ok' "These drivers start with Windows: $($there -join ', ')"
    return
  }
  if ($dryRun) {
    say 'boot-drivers' 'changed' "These drivers would start with Windows: $($late -join ', ')"
    return
  }
  $done = @()
  foreach ($driver in $late) {
    try {
      $key = "$services\$driver"
      $override = "$key\StartOverride"
      $values = valuesOf $override
      keep "driver $driver" @{ start = valueOf $key Start; override = $(if (Test-Path -LiteralPath $override) { $values }) }
      Set-ItemProperty -LiteralPath $key -Name Start -Value 0 -Type DWord
      if (Test-Path -LiteralPath $override) { Remove-Item -LiteralPath $override -Recurse -Force }
      if ((valueOf $key Start) -ne 0) { throw 'the registry has not taken it' }
      $done += $driver
    } catch {
      $worst = if ($driver -in 'vmbus', 'storvsc') { 'refusal' } else { 'warning' }
      say 'boot-drivers' $worst "The driver $driver could not be made to start with Windows, without which it may stop with 0x7B (INACCESSIBLE_BOOT_DEVICE): $(first $_.Exception.Message). Run in the guest, elevated: reg add HKLM\SYSTEM\CurrentControlSet\Services\$driver /v Start /t REG_DWORD /d 0 /f"
    }
  }
  if ($done) { say 'boot-drivers' 'changed' "These drivers start with Windows now: $($done -join ', ')" }
}

function hibernates {
  $set = valueOf $power HibernateEnabled
  # of an installation that has never been asked (assumption: Windows 10 and later have it so)
  if ($null -eq $set) { $set = valueOf $power HibernateEnabledDefault }
  $set -eq 1
}

function hibernation {
  if (-not (hibernates)) {
    say 'hibernation' 'ok' 'Hibernation and Fast Startup are off'
    return
  }
  if ($dryRun) {
    say 'hibernation' 'changed' 'Hibernation and Fast Startup would be turned off'
    return
  }
  keep 'hibernation' $true
  $null = powercfg.exe /hibernate off
  if ($LASTEXITCODE -ne 0 -or (hibernates)) { throw "powercfg: exit code $LASTEXITCODE. Run in the guest, elevated: powercfg /h off" }
  say 'hibernation' 'changed' 'Hibernation and Fast Startup are off now, so that the disk is complete when Windows is shut down'
}

function autoReboot {
  $set = valueOf $crash AutoReboot
  if ($set -eq 0) {
    say 'auto-reboot' 'ok' 'Windows shows a stop screen until someone has read it'
    return
  }
  if ($dryRun) {
    say 'auto-reboot' 'changed' 'Windows would show a stop screen until someone has read it'
    return
  }
  keep 'auto-reboot' $set
  Set-ItemProperty -LiteralPath $crash -Name AutoReboot -Value 0 -Type DWord
  say 'auto-reboot' 'changed' 'Windows shows a stop screen until someone has read it, and does not restart at once'
}

# the volumes that start Windows and are protected
function protectedVolumes {
  try { $all = @(Get-CimInstance -Namespace $encryption -ClassName Win32_EncryptableVolume) } catch {
    # a Windows without BitLocker does not have the namespace
    if ($_.Exception.HResult -eq -2147217394 -or $_.FullyQualifiedErrorId -like 'HRESULT 0x8004100e*') { return }
    throw
  }
  $all | Where-Object { $_.VolumeType -eq 0 -and $_.ProtectionStatus -ne 0 }
}

function bitLocker {
  $volumes = @(protectedVolumes)
  if ($volumes.Count -eq 0) {
    say 'bitlocker' 'ok' 'BitLocker protects no volume that Windows starts from'
    return
  }
  $letters = @($volumes | ForEach-Object { [string]$_.DriveLetter })
  $mend = "manage-bde -protectors -disable $($letters[0]) -rebootcount 0"
  if (-not $suspendBitLocker) {
    say 'bitlocker' 'warning' "BitLocker protects $($letters -join ', '), and the new VM's TPM does not have its key: Windows will ask for the recovery key. Run again with --suspend-bitlocker, or have the key at hand: manage-bde -protectors -get $($letters[0])"
    return
  }
  if ($dryRun) {
    say 'bitlocker' 'changed' "BitLocker would be suspended for $($letters -join ', ')"
    return
  }
  foreach ($volume in $volumes) {
    keep "bitlocker $($volume.DriveLetter)" $true
    # 0: until it is resumed, and not for so many starts
    $result = Invoke-CimMethod -InputObject $volume -MethodName DisableKeyProtectors -Arguments @{ DisableCount = [uint32]0 }
    if ($result.ReturnValue -ne 0) {
      say 'bitlocker' 'refusal' ("BitLocker could not be suspended for {0} (0x{1:X8}), and without it Windows does not start on another TPM. Run in the guest, elevated: {2}" -f $volume.DriveLetter, $result.ReturnValue, $mend)
      return
    }
  }
  say 'bitlocker' 'changed' "BitLocker is suspended for $($letters -join ', ') until it is resumed: after the move run in the guest, elevated: manage-bde -protectors -enable $($letters[0])"
}

# The registry has an adapter's addresses by its device, and Hyper-V's adapter is another device.
function addresses {
  $answer.addresses = @(Get-CimInstance -ClassName Win32_NetworkAdapterConfiguration -Filter 'IPEnabled = TRUE' | Where-Object { $_.MACAddress } | ForEach-Object {
      $at = @(0..(@($_.IPAddress).Count - 1) | Where-Object { @($_.IPAddress).Count -gt 0 })
      $all = @($_.IPAddress)
      $masks = @($_.IPSubnet)
      $four = @($at | Where-Object { $all[$_] -match '^[0-9.]+$' })
      @{
        mac = [string]$_.MACAddress; dhcp = [bool]$_.DHCPEnabled; description = [string]$_.Description
        addresses = @($four | ForEach-Object { [string]$all[$_] }); masks = @($four | ForEach-Object { [string]$masks[$_] })
        gateways = @($_.DefaultIPGateway | Where-Object { $_ -match '^[0-9.]+$' } | ForEach-Object { [string]$_ }); dns = @($_.DNSServerSearchOrder | Where-Object { $_ } | ForEach-Object { [string]$_ })
      }
    })
  $record = [IO.Path]::Combine($folder, 'addresses.json')
  $start = [IO.Path]::Combine($folder, 'first-start.ps1')
  $text = ConvertTo-Json -InputObject @($answer.addresses | Sort-Object { $_.mac } | ForEach-Object { [ordered]@{ mac = $_.mac; dhcp = $_.dhcp; addresses = @($_.addresses); masks = @($_.masks); gateways = @($_.gateways); dns = @($_.dns) } }) -Depth 4
  $same = [IO.File]::Exists($record) -and [IO.File]::ReadAllText($record) -eq $text -and [IO.File]::Exists($start) -and [IO.File]::ReadAllText($start) -eq $firstStart
  if ($same -and (Get-ScheduledTask | Where-Object { $_.TaskName -eq $task })) {
    say 'addresses' 'ok' "The addresses are recorded in $record"
    return
  }
  $fixed = @($answer.addresses | Where-Object { -not $_.dhcp }).Count
  if ($dryRun) {
    say 'addresses' 'changed' "The addresses of $($answer.addresses.Count) adapters would be recorded, $fixed of them fixed, for the first start on Hyper-V"
    return
  }
  keep 'first-start' $null
  store $record $text
  store $start $firstStart
  $quoted = "'" + $start.Replace("'", "''") + "'"
  $argument = "-NoProfile -NonInteractive -ExecutionPolicy Bypass -Command ""& ([ScriptBlock]::Create([IO.File]::ReadAllText($quoted)))"""
  Get-ScheduledTask | Where-Object { $_.TaskName -eq $task } | Unregister-ScheduledTask -Confirm:$false
  $null = Register-ScheduledTask -TaskName $task -Description 'Gives adapters on Hyper-V the addresses that they had on VirtualBox, once' -Action (New-ScheduledTaskAction -Execute powershell.exe -Argument $argument) -Trigger @(New-ScheduledTaskTrigger -AtStartup) -Principal (New-ScheduledTaskPrincipal -UserId S-1-5-18 -LogonType ServiceAccount -RunLevel Highest) -Settings (New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -ExecutionTimeLimit (New-TimeSpan -Minutes 10))
  say 'addresses' 'changed' "The addresses are recorded in $record. At its first start on Hyper-V Windows removes the adapters that are gone, and gives those with the same MAC address their fixed addresses"
}

# Activation is by the hardware, of which the UUID comes along. The application's id is Windows' own
# (learn.microsoft.com/previous-versions/windows/desktop/sppwmi/softwarelicensingproduct).
function licence {
  $product = @(Get-CimInstance -ClassName SoftwareLicensingProduct -Filter "ApplicationID='55c92734-d682-4d71-983e-d6ec3f16059f'" | Where-Object { $_.PartialProductKey })[0]
  $key = "$($product.ProductKeyChannel), the key that ends in $($product.PartialProductKey)"
  if (-not $product -or $product.LicenseStatus -ne 1) { say 'licence' 'ok' 'Windows is not activated, so nothing of that is lost' }
  elseif ([string]$product.ProductKeyChannel -like 'OEM*') { say 'licence' 'warning' "Windows is activated ($key) for the computer that it came with, and on Hyper-V may ask for another key. What it has is shown by: slmgr /dlv" }
  else { say 'licence' 'ok' "Windows is activated ($key). The UUID that this goes by comes along, a serial number cannot. Should Windows ask all the same, run in the guest, elevated: slmgr /ato" }
}

function additions {
  if ($keepAdditions) {
    say 'guest-additions' 'ok' 'The Guest Additions are left alone'
    return
  }
  $entry = Get-ChildItem -LiteralPath $uninstall | ForEach-Object { Get-ItemProperty -LiteralPath $_.PSPath } |
    Where-Object { $_.PSObject.Properties.Name -contains 'DisplayName' -and $_.DisplayName -like 'Oracle*VirtualBox Guest Additions*' } | Select-Object -First 1
  $program = ([string]$entry.UninstallString).Trim().Trim('"')
  if (-not $entry -or -not $program) {
    say 'guest-additions' 'ok' 'There are no Guest Additions'
    return
  }
  if ($dryRun) {
    say 'guest-additions' 'changed' "The $($entry.DisplayName) would be removed, for good"
    return
  }
  # _? makes the uninstaller work itself and not by a copy, so that its end can be waited for (NSIS); it
  # is the last and has no quotes (assumption: that of the Guest Additions is one of NSIS as their setup is)
  $inner = $program -replace '[\\/][^\\/]*$'
  if (-not $detached) {
    $run = Start-Process -FilePath $program -ArgumentList '/S', "_?=$inner" -Wait -PassThru
    if ($run.ExitCode -ne 0) { throw "exit code $($run.ExitCode) of ""$program"". They do nothing on Hyper-V; remove them there in Settings, Apps" }
    say 'guest-additions' 'changed' "The $($entry.DisplayName) are removed, for good"
    return
  }
  $name = 'vbox-to-hyperv guest additions'
  # one that fails keeps no guest from shutting down
  $down = if (downAfterwards) { '; shutdown.exe /s /t 0' }
  $command = "Start-Sleep -Seconds 20; Start-Process -FilePath '$($program.Replace("'", "''"))' -ArgumentList '/S', '_?=$($inner.Replace("'", "''"))' -Wait; Unregister-ScheduledTask -TaskName '$name' -Confirm:`$false$down"
  Get-ScheduledTask | Where-Object { $_.TaskName -eq $name } | Unregister-ScheduledTask -Confirm:$false
  $null = Register-ScheduledTask -TaskName $name -Description 'Removes the Guest Additions of VirtualBox, once' -Action (New-ScheduledTaskAction -Execute powershell.exe -Argument "-NoProfile -NonInteractive -ExecutionPolicy Bypass -Command ""$command""") -Principal (New-ScheduledTaskPrincipal -UserId S-1-5-18 -LogonType ServiceAccount -RunLevel Highest) -Settings (New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries)
  Start-ScheduledTask -TaskName $name
  $later.leaving = $true
  say 'guest-additions' 'changed' "The $($entry.DisplayName), which carry this answer, are removed in 20 seconds, for good"
}

# whether nothing is known that keeps the guest from starting on Hyper-V
function downAfterwards { $shutDown -and @($answer.steps | Where-Object { $_.state -eq 'refusal' }).Count -eq 0 }

function shutDown {
  if (-not $shutDown) { return }
  if (-not (downAfterwards)) {
    say 'shut-down' 'warning' 'The guest stays on, for as it is it would not start on Hyper-V'
    return
  }
  if ($dryRun) {
    say 'shut-down' 'changed' 'The guest would be shut down'
    return
  }
  # where the Guest Additions are removed after the answer, that ends so
  if (-not $later.leaving) {
    $null = shutdown.exe /s /t 20
    if ($LASTEXITCODE -ne 0) { throw "shutdown: exit code $LASTEXITCODE. Run in the guest: shutdown /s /t 0" }
  }
  say 'shut-down' 'changed' 'The guest shuts down in 20 seconds'
}

# --- the first start on Hyper-V ---

$firstStart = @'
# Gives the adapters of Hyper-V what those of VirtualBox had, once, and removes the traces of these.
$ErrorActionPreference = 'Stop'
$folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
function note($text) {
  [IO.File]::AppendAllText([IO.Path]::Combine($folder, 'first-start.log'), [DateTime]::UtcNow.ToString('s') + 'Z ' + $text + [Environment]::NewLine)
}
$machine = Get-ItemProperty -LiteralPath HKLM:\HARDWARE\DESCRIPTION\System\BIOS
# VirtualBox still runs this guest
if ($machine.SystemManufacturer -ne 'Microsoft Corporation' -or $machine.SystemProductName -ne 'Virtual Machine') { return }
try {
  # the cards that VirtualBox has: Intel, AMD, virtio (assumption: Present is false for what is gone)
  foreach ($device in @(Get-PnpDevice -Class Net | Where-Object { -not $_.Present -and $_.InstanceId -match '^PCI\\VEN_(8086|1022|1AF4)&' })) {
    $null = pnputil.exe /remove-device $device.InstanceId
    if ($LASTEXITCODE -eq 0) { note "removed $($device.InstanceId)" } else { note "could not remove $($device.InstanceId) (pnputil: exit code $LASTEXITCODE; before Windows 10 2004 it cannot)" }
  }
} catch { note "could not remove adapters that are gone: $($_.Exception.Message)" }
$fixed = @(ConvertFrom-Json ([IO.File]::ReadAllText([IO.Path]::Combine($folder, 'addresses.json'))) | ForEach-Object { $_ } | Where-Object { -not $_.dhcp -and @($_.addresses).Count -gt 0 })
$clock = [Diagnostics.Stopwatch]::StartNew()
while ($fixed.Count -gt 0) {
  $cards = @(Get-CimInstance -ClassName Win32_NetworkAdapterConfiguration -Filter 'IPEnabled = TRUE')
  $waiting = @()
  foreach ($one in $fixed) {
    $card = $cards | Where-Object { $_.MACAddress -eq $one.mac } | Select-Object -First 1
    if (-not $card) { $waiting += $one; continue }
    # someone was faster
    if (-not $card.DHCPEnabled) { note "$($one.mac) has a fixed address already"; continue }
    $code = (Invoke-CimMethod -InputObject $card -MethodName EnableStatic -Arguments @{ IPAddress = [string[]]@($one.addresses); SubnetMask = [string[]]@($one.masks) }).ReturnValue
    if ($code -le 1 -and @($one.gateways).Count -gt 0) { $code = (Invoke-CimMethod -InputObject $card -MethodName SetGateways -Arguments @{ DefaultIPGateway = [string[]]@($one.gateways) }).ReturnValue }
    if ($code -le 1 -and @($one.dns).Count -gt 0) { $code = (Invoke-CimMethod -InputObject $card -MethodName SetDNSServerSearchOrder -Arguments @{ DNSServerSearchOrder = [string[]]@($one.dns) }).ReturnValue }
    if ($code -le 1) { note "$($one.mac) has $(@($one.addresses) -join ', ') again" } else { note "$($one.mac) could not be given $(@($one.addresses) -join ', ') (Win32_NetworkAdapterConfiguration: $code)" }
  }
  $fixed = $waiting
  if ($fixed.Count -eq 0 -or $clock.Elapsed.TotalSeconds -gt 120) { break }
  Start-Sleep -Seconds 3
}
foreach ($one in $fixed) { note "no adapter has the MAC address $($one.mac), which had $(@($one.addresses) -join ', ')" }
Unregister-ScheduledTask -TaskName 'vbox-to-hyperv first start' -Confirm:$false
'@

# --- undo ---

function undo {
  if ($kept.Count -eq 0) {
    say 'undo' 'ok' 'Nothing was changed here'
    return
  }
  $left = @{}
  foreach ($name in @($kept.Keys | Sort-Object)) {
    $value = $kept[$name]
    if ($dryRun) {
      say 'undo' 'changed' "$name would be as it was"
      continue
    }
    try {
      if ($name -like 'driver *') {
        $key = "$services\$($name.Substring(7))"
        if (Test-Path -LiteralPath $key) {
          if ($null -ne $value.start) { Set-ItemProperty -LiteralPath $key -Name Start -Value ([int]$value.start) -Type DWord }
          if ($null -ne $value.override) {
            $null = New-Item -Path "$key\StartOverride" -Force
            foreach ($property in $value.override.PSObject.Properties) { Set-ItemProperty -LiteralPath "$key\StartOverride" -Name $property.Name -Value ([int]$property.Value) -Type DWord }
          }
        }
      } elseif ($name -eq 'hibernation') {
        $null = powercfg.exe /hibernate on
        if ($LASTEXITCODE -ne 0) { throw "powercfg: exit code $LASTEXITCODE" }
      } elseif ($name -eq 'auto-reboot') {
        if ($null -eq $value) { Remove-ItemProperty -LiteralPath $crash -Name AutoReboot } else { Set-ItemProperty -LiteralPath $crash -Name AutoReboot -Value ([int]$value) -Type DWord }
      } elseif ($name -like 'bitlocker *') {
        $volume = Get-CimInstance -Namespace $encryption -ClassName Win32_EncryptableVolume | Where-Object { $_.DriveLetter -eq $name.Substring(10) }
        if ($volume) {
          $result = Invoke-CimMethod -InputObject $volume -MethodName EnableKeyProtectors
          if ($result.ReturnValue -ne 0) { throw ('0x{0:X8}' -f $result.ReturnValue) }
        }
      } elseif ($name -eq 'first-start') {
        Get-ScheduledTask | Where-Object { $_.TaskName -eq $task } | Unregister-ScheduledTask -Confirm:$false
        foreach ($one in 'first-start.ps1', 'addresses.json') { [IO.File]::Delete([IO.Path]::Combine($folder, $one)) }
      }
      say 'undo' 'changed' "$name is as it was"
    } catch {
      $left[$name] = $value
      say 'undo' 'warning' "$name could not be put back: $(first $_.Exception.Message)"
    }
  }
  if ($dryRun) { return }
  if ($left.Count -gt 0) {
    store $file (ConvertTo-Json -InputObject $left -Depth 4)
    return
  }
  [IO.File]::Delete($file)
  if ([IO.Directory]::GetFileSystemEntries($folder).Count -eq 0) { [IO.Directory]::Delete($folder) }
}

# an administrator's process that Windows has not taken the rights from (mandatory label high or system)
if (-not (@(whoami.exe /groups /fo csv /nh) -match 'S-1-16-(12288|16384)')) {
  say 'rights' 'refusal' 'The account has no administrator rights in the guest, or Windows keeps them from it (UAC)'
  return finish
}
if ($mode -eq 'undo') {
  undo
  return finish
}
foreach ($step in @{ name = 'boot-drivers'; run = { bootDrivers } }, @{ name = 'hibernation'; run = { hibernation } }, @{ name = 'auto-reboot'; run = { autoReboot } }, @{ name = 'bitlocker'; run = { bitLocker } }, @{ name = 'addresses'; run = { addresses } }, @{ name = 'licence'; run = { licence } }, @{ name = 'guest-additions'; run = { additions } }, @{ name = 'shut-down'; run = { shutDown } }) {
  try { & $step.run } catch { say $step.name 'warning' "This could not be done: $(first $_.Exception.Message)" }
}
finish
