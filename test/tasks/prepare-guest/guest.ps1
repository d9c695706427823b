# A Windows guest, for the script that prepares one: its registry, its programs and its WMI classes, as far
# as that script may use them. Anything else throws. What it has is in $global:guest.
$global:guest = @{
  registry = @{}; hibernate = $true; denied = @(); adapters = @(); volumes = @(); devices = @()
  groups = @('"Mandatory Label\High Mandatory Level","Label","S-1-16-12288",""'); calls = @(); uninstaller = 0; static = @()
  licence = @{ LicenseStatus = 1; ProductKeyChannel = 'Retail'; PartialProductKey = '3V66T' }
}

function global:Find-Key([string]$path) { $path -replace '^Microsoft\.PowerShell\.Core\\Registry::HKEY_LOCAL_MACHINE', 'HKLM:' }

function global:Assert-Key([string]$path) {
  $key = Find-Key $path
  if (-not $guest.registry.ContainsKey($key)) { throw [Management.Automation.ItemNotFoundException]"Cannot find path '$path' because it does not exist." }
  if ($key -in $guest.denied) { throw [UnauthorizedAccessException]'Attempted to perform an unauthorized operation.' }
  $key
}

function global:Test-Path {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$LiteralPath)
  if ($LiteralPath -notlike 'HKLM:\*') { return Microsoft.PowerShell.Management\Test-Path -LiteralPath $LiteralPath }
  $guest.registry.ContainsKey($LiteralPath)
}

function global:Get-ItemProperty {
  [CmdletBinding()] param([Parameter(Mandatory, ValueFromPipeline)][string]$LiteralPath)
  process {
    $key = Find-Key $LiteralPath
    if (-not $guest.registry.ContainsKey($key)) { throw [Management.Automation.ItemNotFoundException]"Cannot find path '$LiteralPath' because it does not exist." }
    $all = [ordered]@{}
    foreach ($name in $guest.registry[$key].Keys) { $all[$name] = $guest.registry[$key][$name] }
    $all.PSPath = "Microsoft.PowerShell.Core\Registry::HKEY_LOCAL_MACHINE$($key.Substring(5))"
    [pscustomobject]$all
  }
}

function global:Set-ItemProperty {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$LiteralPath, [Parameter(Mandatory)][string]$Name, [Parameter(Mandatory)]$Value, [ValidateSet('DWord', 'String')][string]$Type)
  $guest.registry[(Assert-Key $LiteralPath)][$Name] = $Value
}

function global:Remove-ItemProperty {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$LiteralPath, [Parameter(Mandatory)][string]$Name)
  $guest.registry[(Assert-Key $LiteralPath)].Remove($Name)
}

function global:New-Item {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$Path, [switch]$Force)
  if ($Path -notlike 'HKLM:\*') { throw "simulated guest: New-Item $Path" }
  $guest.registry[$Path] = @{}
}

function global:Remove-Item {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$LiteralPath, [switch]$Recurse, [switch]$Force)
  if ($LiteralPath -notlike 'HKLM:\*') { throw "simulated guest: Remove-Item $LiteralPath" }
  $guest.registry.Remove((Assert-Key $LiteralPath))
}

function global:Get-ChildItem {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$LiteralPath)
  if ($LiteralPath -notlike 'HKLM:\*') { return Microsoft.PowerShell.Management\Get-ChildItem -LiteralPath $LiteralPath }
  foreach ($key in @($guest.registry.Keys)) {
    if ($key.StartsWith("$LiteralPath\") -and -not $key.Substring($LiteralPath.Length + 1).Contains('\')) {
      [pscustomobject]@{ PSPath = "Microsoft.PowerShell.Core\Registry::HKEY_LOCAL_MACHINE$($key.Substring(5))" }
    }
  }
}

${function:global:powercfg.exe} = {
  $guest.calls += "powercfg $args"
  $global:LASTEXITCODE = 0
  if ($guest.denied -contains 'powercfg') { $global:LASTEXITCODE = 1; return }
  if ("$args" -notin '/hibernate on', '/hibernate off') { throw "simulated guest: powercfg $args" }
  $guest.registry['HKLM:\SYSTEM\CurrentControlSet\Control\Power'].HibernateEnabled = [int]("$args" -eq '/hibernate on')
}

${function:global:shutdown.exe} = {
  if ("$args" -ne '/s /t 20') { throw "simulated guest: shutdown $args" }
  $guest.calls += "shutdown $args"
  $global:LASTEXITCODE = 0
}

${function:global:whoami.exe} = {
  if ("$args" -ne '/groups /fo csv /nh') { throw "simulated guest: whoami $args" }
  $global:LASTEXITCODE = 0
  $guest.groups
}

${function:global:pnputil.exe} = {
  $guest.calls += "pnputil $args"
  $global:LASTEXITCODE = 0
  if ($args[0] -ne '/remove-device') { throw "simulated guest: pnputil $args" }
  $id = $args[1]
  $guest.devices = @($guest.devices | Where-Object { $_.InstanceId -ne $id })
}

function global:Get-PnpDevice {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$Class)
  if ($Class -eq 'Net') { $guest.devices }
}

function global:Get-CimInstance {
  [CmdletBinding()] param([string]$Namespace = 'root/cimv2', [Parameter(Mandatory)][string]$ClassName, [string]$Filter)
  if ($ClassName -eq 'Win32_EncryptableVolume') {
    if ($Namespace -ne 'root/cimv2/Security/MicrosoftVolumeEncryption') { throw "simulated guest: no $ClassName in $Namespace" }
    if ($null -eq $guest.volumes) {
      $failure = [Management.Automation.RuntimeException]'Invalid namespace'
      throw (New-Object Management.Automation.ErrorRecord $failure, 'HRESULT 0x8004100e,Microsoft.Management.Infrastructure.CimCmdlets.GetCimInstanceCommand', 'MetadataError', $Namespace)
    }
    return $guest.volumes
  }
  if ($ClassName -eq 'SoftwareLicensingProduct' -and $Filter -eq "ApplicationID='55c92734-d682-4d71-983e-d6ec3f16059f'") {
    return [pscustomobject]@{ LicenseStatus = 0; ProductKeyChannel = $null; PartialProductKey = $null }, [pscustomobject]$guest.licence
  }
  if ($ClassName -ne 'Win32_NetworkAdapterConfiguration' -or $Filter -ne 'IPEnabled = TRUE') { throw "simulated guest: Get-CimInstance $ClassName $Filter" }
  $guest.adapters
}

function global:Invoke-CimMethod {
  [CmdletBinding()] param([Parameter(Mandatory)]$InputObject, [Parameter(Mandatory)][string]$MethodName, [hashtable]$Arguments = @{})
  $guest.calls += $MethodName
  $value = 0
  switch ($MethodName) {
    'DisableKeyProtectors' {
      if ($Arguments.DisableCount -isnot [uint32] -or $Arguments.DisableCount -ne 0) { throw 'simulated guest: DisableCount' }
      if ($guest.denied -contains 'bitlocker') { $value = [uint32]'0x80310021' } else { $InputObject.ProtectionStatus = 0 }
    }
    'EnableKeyProtectors' { $InputObject.ProtectionStatus = 1 }
    'EnableStatic' {
      if ($Arguments.IPAddress -isnot [string[]] -or $Arguments.SubnetMask -isnot [string[]] -or $Arguments.IPAddress.Count -ne $Arguments.SubnetMask.Count) { throw 'simulated guest: EnableStatic' }
      $InputObject.IPAddress = $Arguments.IPAddress
      $InputObject.IPSubnet = $Arguments.SubnetMask
      $InputObject.DHCPEnabled = $false
    }
    'SetGateways' { $InputObject.DefaultIPGateway = [string[]]$Arguments.DefaultIPGateway }
    'SetDNSServerSearchOrder' { $InputObject.DNSServerSearchOrder = [string[]]$Arguments.DNSServerSearchOrder }
    default { throw "simulated guest: $MethodName" }
  }
  [pscustomobject]@{ ReturnValue = $value }
}

function global:Start-Process {
  [CmdletBinding()] param([Parameter(Mandatory)][string]$FilePath, [string[]]$ArgumentList, [switch]$Wait, [switch]$PassThru)
  $guest.calls += "$FilePath $ArgumentList"
  if (-not $Wait) { throw 'simulated guest: Start-Process without -Wait' }
  if ($guest.uninstaller -eq 0) {
    foreach ($key in @($guest.registry.Keys)) { if ($guest.registry[$key].UninstallString -like "*$FilePath*") { $guest.registry.Remove($key) } }
  }
  [pscustomobject]@{ ExitCode = $guest.uninstaller }
}
