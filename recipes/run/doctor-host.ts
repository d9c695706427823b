/** What a host says of itself to who looks for the reason why something is slow, or cannot be. */
import type { PowerShell } from '../../tasks/task.ts'

/** Each is null where the host does not say, and `failures` has why where it refused to. */
export interface HostFacts {
  /** Some hypervisor runs below Windows; it is true inside a VM, too. */
  hypervisor: boolean | null
  /** `Auto`, `Off` or another word of the boot configuration; empty where that has none. */
  launchType: string | null
  /** The firmware has virtualization on. Unknown while a hypervisor runs, which hides it from Windows. */
  virtualization: boolean | null
  /** Names of the optional features that are on. */
  features: string[] | null
  /** Virtualization-based security: 0 off, 1 configured and not running, 2 running; and its services by number. */
  deviceGuard: { status: number; services: number[] } | null
  /** Bytes. */
  memory: { total: number; free: number } | null
  /** Of the folder for disks: `NTFS`, ... */
  fileSystem: string | null
  /** Version of VirtualBox that is installed there; empty when none is. */
  virtualBox: string | null
  /** Of VMware Workstation, likewise. */
  vmware: string | null
  /** Network adapters, without those that Hyper-V made. */
  adapters: HostAdapter[] | null
  /** The parts that were refused: FullyQualifiedErrorId, and the host's message. */
  failures: { part: keyof HostFacts; id: string; message: string }[]
}

export interface HostAdapter {
  name: string
  description: string
  status: string
  wifi: boolean
  /** Of hardware: no VPN's, and no other program's. */
  real: boolean
  /** IPv4 with prefix length. */
  addresses: string[]
}

/**
 * Asks a host, by one script that changes nothing and goes on after what it may not know.
 *
 * Assumptions about Windows: VirtualBox's and VMware's installers note their version in the registry, in
 * the values read here; bcdedit names elements in English in every language.
 */
export async function readHost(storage: string | undefined, ps: PowerShell): Promise<HostFacts> {
  const { stdout } = await ps`
    $storage = ${storage}
    $failures = New-Object Collections.ArrayList
    $facts = [ordered]@{}
    function has($name) { $null -ne (Get-Command -Name $name -ErrorAction Ignore) }
    # each part alone, for one that is refused says nothing of the others
    function ask($part, $what) {
      $facts[$part] = $null
      try { $facts[$part] = & $what }
      catch {
        if ($_.Exception.GetBaseException() -isnot [PlatformNotSupportedException]) {
          $null = $failures.Add([ordered]@{ part = $part; id = [string]$_.FullyQualifiedErrorId; message = [string]$_.Exception.Message })
        }
      }
    }
    # a class by its name, for it is Windows' alone
    function registered($keys, $name) {
      $value = ([type]'Microsoft.Win32.Registry')::GetValue((@('HKEY_LOCAL_MACHINE', 'SOFTWARE') + $keys) -join [char]92, $name, '')
      [string]$value
    }
    $cim = has Get-CimInstance
    ask 'hypervisor' { if ($cim) { (Get-CimInstance -ClassName Win32_ComputerSystem -Property HypervisorPresent).HypervisorPresent } }
    ask 'launchType' {
      if (has bcdedit) {
        $lines = @(bcdedit /enum '{current}')
        if ($LASTEXITCODE -ne 0) { throw "bcdedit ended with exit code $LASTEXITCODE" }
        $type = ''
        foreach ($line in $lines) { if ([string]$line -match '^hypervisorlaunchtype +([^ ]+) *$') { $type = $Matches[1] } }
        $type
      }
    }
    ask 'virtualization' {
      # once a hypervisor runs, Windows sees none of the processor's extensions (anthropics/claude-code#25034)
      if ($cim -and $facts.hypervisor -eq $false) {
        @(Get-CimInstance -ClassName Win32_Processor | Where-Object { $_.VirtualizationFirmwareEnabled -eq $false }).Count -eq 0
      }
    }
    # of the ways to ask for features this one needs no rights (Win32_OptionalFeature: 1 is on)
    ask 'features' {
      if ($cim) { , @(Get-CimInstance -ClassName Win32_OptionalFeature -Property Name, InstallState | Where-Object { $_.InstallState -eq 1 } | ForEach-Object { [string]$_.Name }) }
    }
    ask 'deviceGuard' {
      if ($cim) {
        $guard = Get-CimInstance -Namespace root/Microsoft/Windows/DeviceGuard -ClassName Win32_DeviceGuard
        @{ status = [int]$guard.VirtualizationBasedSecurityStatus; services = @($guard.SecurityServicesRunning | Where-Object { $_ } | ForEach-Object { [int]$_ }) }
      }
    }
    ask 'memory' {
      if ($cim) {
        $system = Get-CimInstance -ClassName Win32_OperatingSystem -Property TotalVisibleMemorySize, FreePhysicalMemory
        @{ total = [long]$system.TotalVisibleMemorySize * 1024; free = [long]$system.FreePhysicalMemory * 1024 }
      }
    }
    ask 'fileSystem' {
      $folder = $storage
      if ($null -eq $folder -and (has Get-VMHost)) { $folder = [string](Get-VMHost).VirtualHardDiskPath }
      while ($folder -and -not [IO.Directory]::Exists($folder)) { $folder = [IO.Path]::GetDirectoryName($folder) }
      if ($folder -and -not $folder.StartsWith([string][char]92 + [char]92)) { (New-Object IO.DriveInfo ([IO.Path]::GetFullPath($folder))).DriveFormat }
    }
    ask 'virtualBox' { registered @('Oracle', 'VirtualBox') 'Version' }
    ask 'vmware' { registered @('WOW6432Node', 'VMware, Inc.', 'VMware Workstation') 'ProductVersion' }
    ask 'adapters' {
      if ((has Get-NetAdapter) -and (has Get-NetIPAddress)) {
        $all = @(Get-NetIPAddress -AddressFamily IPv4)
        , @(Get-NetAdapter | Where-Object { $_.ComponentID -notin 'vms_mp', 'ms_bridge' } | ForEach-Object {
          $card = $_
          [ordered]@{
            name = [string]$card.Name
            description = [string]$card.InterfaceDescription
            status = [string]$card.Status
            wifi = [string]$card.PhysicalMediaType -eq 'Native 802.11' -or $card.NdisPhysicalMedium -eq 9
            real = [bool]$card.HardwareInterface
            addresses = @($all | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex } | ForEach-Object { "$($_.IPAddress)/$($_.PrefixLength)" })
          }
        })
      }
    }
    $facts.failures = @($failures)
    ConvertTo-Json -Compress -Depth 4 -InputObject $facts`
  return JSON.parse(stdout) as HostFacts
}
