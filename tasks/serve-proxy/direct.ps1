# Runs windows.ps1 in the guest of a VM, from its Hyper-V host by PowerShell Direct. Before it stand: $vm, the account
# of the guest ($user and $password, or $target in the Credential Manager and $source, the C# that reads it), $inside
# (windows.ps1) and what that has before it, and for the mode upload $length, the bytes of $channel, and $copy (auto,
# session or copy-vmfile). Answers as windows.ps1 does; an upload with the way that was taken as its detail.
$cannot = "Cannot serve a proxy in the guest of ""$vm"":"
$found = @(Get-VM | Where-Object { $_.Name.Equals($vm, 'OrdinalIgnoreCase') })
if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
$machine = $found[0]
$typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm))
if ([string]$machine.State -ne 'Running') { throw "$cannot it is $($machine.State), and only a guest that runs can serve. Run: Start-VM -Name '$typed'" }
if ($target) {
  $entry = $null
  try {
    if (-not ('VboxToHyperV.CredentialManager' -as [type])) { Add-Type -TypeDefinition $source }
    $code = [VboxToHyperV.CredentialManager]::Read($target, [ref]$entry)
  } catch {
    if ([Environment]::OSVersion.Platform -ne 'Win32NT') { throw "$cannot only Windows has a Credential Manager. Run again with: --guest-user Administrator --guest-credential prompt" }
    throw
  }
  # 1168: not there; 1312: this session has no Credential Manager, as over SSH with a key
  if ($code -eq 1312) { throw "$cannot the Credential Manager is closed to this session (1312), as over SSH. Run again with: --guest-user Administrator --guest-credential prompt" }
  if ($code -ne 0) { throw "$cannot the Credential Manager has no generic credential ""$target"" ($code). Run, and answer its question: cmdkey /generic:""$target"" /user:Administrator /pass" }
  $user = $entry.UserName
  $password = $entry.SecurePassword
}
$account = New-Object Management.Automation.PSCredential $user, $password
try { $session = New-PSSession -VMId $machine.Id -Credential $account } catch {
  $failure = $_
  $types = @($failure.Exception, $failure.Exception.InnerException | Where-Object { $_ } | ForEach-Object { $_.GetType().Name })
  if ($types -contains 'PSDirectException') { throw "$cannot the guest does not take the account ""$user"": its password is wrong or empty, or it has never signed in there. Run again with another --guest-user" }
  if ([string]$failure.FullyQualifiedErrorId -match 'CreateRemoteRunspaceForVMFailed|PSSessionOpenFailed|PSSessionStateBroken') { throw "$cannot nobody answered in the guest: its Windows has not started yet, or is older than Windows 10 and Windows Server 2016, or it is no Windows. Run again with: --via ssh://USER@HOST" }
  throw $failure
}
$names = 'mode', 'dryRun', 'had', 'ruleWas', 'address', 'port', 'subnet', 'wanted', 'upload', 'config'
$head = 'param($' + ($names -join ', $') + ')' + [char]10 + '$ErrorActionPreference = "Stop"; $ProgressPreference = "SilentlyContinue"' + [char]10
$script = [ScriptBlock]::Create($head + $inside)
# what is secret is encrypted on its way (PowerShell's remoting protocol, SecureString)
function tell($mode) {
  try { Invoke-Command -Session $session -ScriptBlock $script -ArgumentList $mode, $dryRun, $had, $ruleWas, $address, $port, $subnet, $wanted, $upload, $config } catch {
    # a sentence of the script inside
    if ([string]$_.FullyQualifiedErrorId -eq [string]$_.Exception.Message) { throw "$cannot $($_.Exception.Message)" }
    throw
  }
}
# by the Guest Service Interface, which is off unless it is asked for, and is put back
function service($from, $to) {
  $service = Get-VMIntegrationService -VM $machine | Where-Object { ([string]$_.Id).EndsWith('6C09BB55-D683-4DA0-8931-C9BF705F6480', 'OrdinalIgnoreCase') }
  if (-not $service) { throw 'it has no Guest Service Interface' }
  $off = -not $service.Enabled
  try {
    if ($off) { $service | Enable-VMIntegrationService }
    # the guest hears of it some seconds later
    for ($wait = 0; $off -and $wait -lt 40 -and [string](Get-VMIntegrationService -VM $machine | Where-Object { $_.Id -eq $service.Id }).PrimaryStatusDescription -ne 'OK'; $wait++) { Start-Sleep -Milliseconds 250 }
    Copy-VMFile -VM $machine -SourcePath $from -DestinationPath $to -FileSource Host -CreateFullPath -Force
  } finally {
    if ($off) { Get-VMIntegrationService -VM $machine | Where-Object { $_.Id -eq $service.Id } | Disable-VMIntegrationService }
  }
}
try {
  if ($mode -ne 'upload') { tell $mode; return }
  $file = [IO.Path]::Combine([IO.Path]::GetTempPath(), "vbox-to-hyperv-$([guid]::NewGuid()).exe")
  $failures = @()
  $way = $null
  try {
    $stream = [IO.File]::Create($file)
    try {
      $buffer = New-Object byte[] 1048576
      for ($left = $length; $left -gt 0; $left -= $got) {
        $got = $channel.Read($buffer, 0, [Math]::Min($left, $buffer.Length))
        if ($got -eq 0) { [Environment]::Exit(1) } # the connection is lost, which is for the other end to say
        $stream.Write($buffer, 0, $got)
      }
    } finally { $stream.Dispose() }
    $said = ConvertFrom-Json ([string]@(tell prepare)[-1])
    foreach ($one in @(if ($copy -eq 'auto') { 'session', 'copy-vmfile' } else { $copy })) {
      try {
        if ($one -eq 'session') { Copy-Item -LiteralPath $file -Destination $said.program -ToSession $session -Force } else { service $file $said.program }
        $way = $one
        break
      } catch { $failures += "$($one): $($_.Exception.Message.TrimEnd([char]46))" }
    }
  } finally { [IO.File]::Delete($file) }
  if (-not $way) {
    $null = tell drop
    $said.state = 'not-brought'
    $way = $failures -join '; '
  }
  $said.detail = $way
  ConvertTo-Json -InputObject $said -Compress -Depth 2
} finally { Remove-PSSession -Session $session }
