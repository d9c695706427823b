#!/usr/bin/env zx
/** Say what stands in the way of a VM on this host, and what the host has. Changes nothing. */
import process from 'node:process'
import { hostCommand, powershell } from './task.ts'

export interface CheckHostOptions {
  /** The VM that is to be made. */
  vm?: string | undefined
  /** Its processors. */
  cpus?: number | undefined
  /** Its memory in bytes. */
  memory?: number | undefined
  /**
   * Its disk files as the host names them, to tell a VM that has them already from another one of
   * its name. Relative ones start at PowerShell's current location on the host.
   */
  disk?: readonly string[] | undefined
  /** Name of the external switch that is to be there. */
  external?: string | undefined
  /** The network adapter of the external switch: name, description, interface index, or `auto` (see create-switch). */
  adapter?: string | undefined
  /** Whether the host is to use an external switch too. @default true for a new one, else as it is */
  share?: boolean | undefined
  /** Name of the internal switch that is to be there. */
  internal?: string | undefined
  /** The host's address on the internal switch, e.g. `192.168.56.1/24`. */
  hostIp?: string | undefined
  /** Whether the internal switch is to have NAT. @default as it is */
  nat?: boolean | undefined
  /** MAC addresses that the VM's adapters are to keep, with or without separators. */
  mac?: readonly string[] | undefined
  /** Whether the VM is to run hypervisors of its own. @default false */
  nested?: boolean | undefined
  /** As of create-vm: what is left of a VM that was being made is none. @default false */
  cutOff?: boolean | undefined
  /** Bytes that the run writes to `storage`. */
  space?: number | undefined
  /** Folder on the host. @default the host's folder for virtual hard disks */
  storage?: string | undefined
}

export interface CheckHostResult {
  /** Nothing stands in the way. */
  ready: boolean
  /** What stands in the way, each with its cause and the command that mends it. */
  refusals: string[]
  /** What is worth knowing and no obstacle. */
  notes: string[]
  /** The Hyper-V module is there and answers. */
  hyperV: boolean
  host: {
    name: string
    /** Version of Windows, e.g. `10.0.26100.0`. */
    version: string
    /** A Windows for desktops, not for servers. Null where that cannot be known. */
    client: boolean | null
    /** Windows' edition, e.g. `Professional`. */
    edition: string | null
    /** PowerShell runs with administrator rights. Null where that cannot be known. */
    elevated: boolean | null
    /** Logical processors. */
    processors: number | null
    /** Bytes. */
    memory: number | null
    /** The host's folder for virtual hard disks. */
    diskFolder: string | null
    /** Bytes free in `storage`; null when neither `storage` nor `space` was asked for. */
    freeSpace: number | null
  }
  /** The VM of that name. */
  vm: { id: string; state: string; generation: number; disks: string[] } | null
  /** All switches. */
  switches: {
    id: string
    name: string
    type: 'External' | 'Internal' | 'Private'
    /** Description of its network adapter; empty when it has none. */
    adapter: string
    /** The host uses it too. */
    shared: boolean
  }[]
  /** All network adapters but Hyper-V's own, when an external switch was asked for. */
  adapters: {
    name: string
    description: string
    status: string
    wifi: boolean
    /** A switch has it, or a bridge to one. */
    bound: boolean
  }[]
  /** All NATs, when a NAT was asked for. */
  nats: { name: string; prefix: string }[]
  /** All IPv4 addresses of the host, when a host address was asked for. */
  addresses: { address: string; prefixLength: number; interface: string }[]
}

/**
 * Looks for everything that would make the tasks of a migration refuse, before the first of them
 * runs. Asks the host only about what the options name, and rejects only when it cannot ask at all:
 * no Hyper-V, no rights and no such adapter are answers.
 */
export async function checkHost(
  options: CheckHostOptions,
  ps = powershell,
): Promise<CheckHostResult> {
  throwIfUnusable(options)
  const { vm, cpus, memory, disk = [], external, adapter, share, internal } = options
  const { nat, mac = [], nested = false, cutOff = false, space, storage } = options
  const { address, length, network } = options.hostIp === undefined
    ? {} as Partial<ReturnType<typeof cidr>>
    : cidr(options.hostIp)
  const macs = mac.map(bareMac)
  const { stdout } = await ps`
    $name = ${vm}
    $cpus = ${cpus}
    $memory = ${memory}
    $disks = ${disk}
    $external = ${external}
    $adapter = ${adapter}
    $share = ${share}
    $internal = ${internal}
    $hostAddress = ${address}
    $length = ${length}
    $network = ${network}
    $nat = ${nat}
    $macs = ${macs}
    $nested = ${nested}
    $cutOff = ${cutOff}
    $space = ${space}
    $storage = ${storage}

    function quoted($text) {
      "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'"
    }
    function networkOf($address, $length) {
      $bytes = ([Net.IPAddress]$address).GetAddressBytes()
      $number = [long]$bytes[0] * 16777216 + [long]$bytes[1] * 65536 + [long]$bytes[2] * 256 + $bytes[3]
      $number - $number % [long][Math]::Pow(2, 32 - $length)
    }
    function gigabytes($bytes) { ($bytes / 1GB).ToString('0.#', [cultureinfo]::InvariantCulture) + ' GB' }
    function has($cmdlet) { $null -ne (Get-Command -Name $cmdlet -ErrorAction Ignore) }
    function fullPath($path) {
      try { $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($path) }
      catch [Management.Automation.DriveNotFoundException] { $path }
    }
    # classes by name, for they are Windows' alone, and a simulated host brings its own
    function rights {
      $class = [type]'Security.Principal.WindowsIdentity'
      $identity = $class::GetCurrent()
      $groups = @($identity.Groups | ForEach-Object { $_.Value })
      # UAC leaves an administrator the group for refusals alone until it is asked
      $denied = @($identity.Claims | Where-Object { $_.Type -like '*/denyonlysid' } | ForEach-Object { $_.Value })
      @{
        user = $identity.Name
        elevated = 'S-1-5-32-544' -in $groups # Administrators
        filtered = 'S-1-5-32-544' -in $denied
        manager = 'S-1-5-32-578' -in $groups # Hyper-V Administrators
      }
    }
    function edition {
      $registry = [type]'Microsoft.Win32.Registry'
      $key = ('HKEY_LOCAL_MACHINE', 'SOFTWARE', 'Microsoft', 'Windows NT', 'CurrentVersion') -join [char]92
      @{
        client = $registry::GetValue($key, 'InstallationType', '') -eq 'Client'
        edition = [string]$registry::GetValue($key, 'EditionID', '')
      }
    }
    $refusals = @()
    $notes = @()
    $hyperV = has Get-VMHost
    $off = -not $hyperV
    $cim = has Get-CimInstance
    # what only Windows has; elsewhere it stays unknown
    $rights = $null
    $windows = $null
    try {
      $rights = rights
      $windows = edition
    } catch {
      if ($_.Exception.GetBaseException() -isnot [PlatformNotSupportedException]) { throw }
    }
    $elevated = $rights.elevated
    $manager = $rights.manager
    $elevate = 'Run: Start-Process powershell -Verb RunAs, and this again in the window it opens'

    # only a 32-bit process on 64-bit Windows has it (learn.microsoft.com/windows/win32/winprog64/wow64-implementation-details)
    if ($env:PROCESSOR_ARCHITEW6432) {
      $hyperV = $false
      $off = $false
      $path = ('%SystemRoot%', 'sysnative', 'WindowsPowerShell', 'v1.0', 'powershell.exe') -join [char]92
      $refusals += "Cannot use Hyper-V from a 32-bit PowerShell: its modules are for 64-bit programs only. Set POWERSHELL to $path, or run this from a 64-bit program"
    }
    # Bypass on the command line does not outdo a policy that Windows is given
    $policy = @('MachinePolicy', 'UserPolicy' | ForEach-Object { [string](Get-ExecutionPolicy -Scope $_) } | Where-Object { $_ -in 'Restricted', 'AllSigned' })[0]
    if ($policy -eq 'Restricted') {
      $refusals += 'Cannot load the modules that this needs: by Group Policy this Windows runs no scripts, and they are scripts in part. Ask who sets "Turn on Script Execution". Run: Get-ExecutionPolicy -List'
    } elseif ($policy) {
      $notes += 'By Group Policy this Windows runs signed scripts only: nothing of this run is a script file, but a Deploy.ps1 is. See: Get-ExecutionPolicy -List'
    }
    $why = 'Windows has no Hyper-V module, so the feature is off'
    $vmHost = $null
    $refused = $false
    $switches = @()
    $vms = @()
    $nics = @()
    if ($hyperV) {
      try {
        $vmHost = Get-VMHost
        if ($vmHost.PSObject.TypeNames[0] -like 'Deserialized.*') {
          $vmHost = $null
          throw 'WinPSCompatSession'
        }
        if ($null -ne $name) { $vms = @(Get-VM) }
        $switches = @(Get-VMSwitch)
        if ($macs.Count -gt 0) { $nics = @(Get-VMNetworkAdapter -All) }
      } catch {
        $hyperV = $false
        $id = $_.FullyQualifiedErrorId
        if ($id -eq 'WinPSCompatSession') {
          # a module that PowerShell 7 cannot load runs in Windows PowerShell (about_Windows_PowerShell_Compatibility)
          $refusals += 'Cannot use Hyper-V from this PowerShell 7: it has the module run in Windows PowerShell (WinPSCompatSession), and gets copies of VMs that no cmdlet takes. Run again with the environment variable POWERSHELL set to powershell.exe'
        } elseif ($id -like 'AccessDenied,*' -or $_.Exception.HResult -eq -2147024891) { $refused = $true }
        elseif ((has Get-Service) -and -not (Get-Service -Name vmms -ErrorAction Ignore)) { $off = $true; $why = 'only its commands are installed, and the feature is off' }
        else { $refusals += "Cannot use Hyper-V on this host: it answers ""$($_.Exception.Message.Trim())"" ($id). Run: Start-Service vmms" }
      }
    }
    if ($off) {
      $enable = 'Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All -NoRestart'
      $module = 'Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V-Management-PowerShell -NoRestart'
      if ($windows -and -not $windows.client) {
        $enable = 'Install-WindowsFeature -Name Hyper-V -IncludeManagementTools'
        $module = 'Install-WindowsFeature -Name Hyper-V-PowerShell'
      }
      # of the ways to ask for features this one needs no rights (Win32_OptionalFeature: 1 is on)
      $on = @()
      if ($cim) {
        $on = @(Get-CimInstance -ClassName Win32_OptionalFeature -Property Name, InstallState | Where-Object { $_.InstallState -eq 1 } | ForEach-Object { $_.Name })
      }
      if ($windows -and $windows.edition -like 'Core*') {
        $refusals += 'Cannot use Hyper-V on this host: this is Windows Home, which has none. Change to Windows Pro, then turn Hyper-V on. Run: Start-Process ms-settings:activation'
      } elseif ('Microsoft-Hyper-V' -in $on -and 'Microsoft-Hyper-V-Management-PowerShell' -notin $on) {
        $refusals += "Cannot use Hyper-V on this host: it is on, and its PowerShell module is not. Run: $module"
      } else {
        if ('VirtualMachinePlatform' -in $on -and 'Microsoft-Hyper-V' -notin $on) { $why = 'of it only the platform of WSL 2 is on (VirtualMachinePlatform), which runs no VMs of yours' }
        $refusals += "Cannot use Hyper-V on this host: $why. Run: $enable, then restart Windows"
      }
    } elseif ($null -ne $name -and $cim) {
      # null where Windows does not say; people turn the hypervisor off for VirtualBox's sake
      if ((Get-CimInstance -ClassName Win32_ComputerSystem -Property HypervisorPresent).HypervisorPresent -eq $false) {
        $refusals += 'Cannot start a VM on this host: the hypervisor does not run. Turn virtualization on in the firmware, run: bcdedit /set hypervisorlaunchtype auto, then restart Windows'
      }
    }
    # Get-VM without rights may fail or find nothing, so ask for the rights too
    if ($refused -or ($manager -eq $false -and $elevated -eq $false)) {
      $refusals += if ($null -eq $rights) {
        "Cannot use Hyper-V on this host: this user is not in Hyper-V Administrators, and PowerShell runs without administrator rights. $elevate"
      } elseif ($rights.elevated -or $rights.manager) {
        "Cannot use Hyper-V on this host: it refuses ""$($rights.user)"", who has the rights for it (AccessDenied). Run: Get-WinEvent -LogName Microsoft-Windows-Hyper-V-VMMS-Admin -MaxEvents 5"
      } elseif ($rights.filtered) {
        "Cannot use Hyper-V on this host: PowerShell runs without the administrator rights that this user has. $elevate"
      } else {
        "Cannot use Hyper-V on this host: ""$($rights.user)"" is no administrator and not in Hyper-V Administrators. Let an administrator run: Add-LocalGroupMember -SID S-1-5-32-578 -Member $(quoted $rights.user), then sign out and in"
      }
    } elseif ($elevated -eq $false -and $null -ne $hostAddress) {
      $refusals += if ($null -eq $rights -or $rights.filtered) {
        "Cannot set the host address $hostAddress/$($length): PowerShell runs without administrator rights. $elevate"
      } else {
        "Cannot set the host address $hostAddress/$($length): ""$($rights.user)"" is no administrator, and Windows lets nobody else. Run this again as one"
      }
    }

    # the VM
    $vm = $null
    $found = @($vms | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -gt 1) {
      $refusals += "Cannot make the VM ""$name"": $($found.Count) VMs have that name: $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VM -Id $($found[0].Id) | Rename-VM -NewName <another name>"
    }
    $folder = $storage
    if ($null -eq $folder -and $null -ne $vmHost) { $folder = [string]$vmHost.VirtualHardDiskPath }
    # what is left of a run that was cut off is made anew, as create-vm knows it
    $isRest = $found.Count -eq 1 -and [string]$found[0].State -eq 'Off' -and
      ($found[0].Notes -eq 'Being made by vbox-to-hyperv' -or ($cutOff -and -not $found[0].Notes -and @(Get-VMHardDiskDrive -VM $found[0]).Count -eq 0))
    if ($found.Count -eq 1 -and -not $isRest) {
      $vm = [ordered]@{
        id = [string]$found[0].Id
        state = [string]$found[0].State
        generation = [int]$found[0].Generation
        disks = @(Get-VMHardDiskDrive -VM $found[0] | ForEach-Object { [string]$_.Path })
      }
      # as create-vm compares them; under a checkpoint the VM writes to a child of its disk
      $theirs = @($vm.disks | ForEach-Object {
        $path = $_
        while ([IO.Path]::GetExtension($path) -like '.avhd*' -and ($parent = (Get-VHD -Path $path).ParentPath)) { $path = $parent }
        fullPath $path
      })
      $missing = @($disks | ForEach-Object { fullPath $_ } | Where-Object { $_ -notin $theirs })
      if ($missing.Count -gt 0) {
        $refusals += "Cannot make the VM ""$name"": there is one of that name with other disks ($(@($vm.disks) -join ', ')). Choose another name, or run: Get-VM -Id $($vm.id) | Rename-VM -NewName <another name>"
      } elseif ($vm.state -eq 'Saved') {
        $refusals += "Cannot change the VM ""$name"": it is saved, and only a VM that is off takes changes. Run: Get-VM -Id $($vm.id) | Start-VM, and shut it down"
      } else { $notes += "The VM ""$name"" is there already ($($vm.state))" }
    }
    if ($null -ne $vmHost) {
      if ($null -ne $cpus -and $cpus -gt $vmHost.LogicalProcessorCount) {
        $refusals += "Cannot give the VM $cpus processors: the host has $($vmHost.LogicalProcessorCount). Run again with: --cpus $($vmHost.LogicalProcessorCount)"
      }
      if ($null -ne $memory -and $memory -gt $vmHost.MemoryCapacity) {
        $refusals += "Cannot give the VM $(gigabytes $memory) of memory: the host has $(gigabytes $vmHost.MemoryCapacity). Run again with less: --memory"
      }
    }
    foreach ($mac in $macs) {
      foreach ($nic in @($nics | Where-Object { $_.MacAddress -eq $mac })) {
        if ($vm -and [string]$nic.VMId -eq $vm.id) { continue }
        $owner = "the VM ""$($nic.VMName)"""
        if ($nic.IsManagementOs) { $owner = "the host on the switch ""$($nic.SwitchName)""" }
        $refusals += "Cannot give the VM the MAC address $($mac): $owner has it. Run: Get-VMNetworkAdapter -All | Where-Object MacAddress -eq $mac"
      }
    }
    $version = [Environment]::OSVersion.Version
    if ($nested -and $env:PROCESSOR_IDENTIFIER -like '*AuthenticAMD*' -and $version.Major -eq 10 -and $version.Build -lt 20348) {
      $refusals += "Cannot let the VM run hypervisors: on AMD that takes Windows 11 or Windows Server 2022, and this is build $($version.Build). Run again with: --no-nested"
    }

    # disk space
    $freeSpace = $null
    if ($null -ne $space -or $null -ne $storage) {
      $existing = $folder
      while ($existing -and -not [IO.Directory]::Exists($existing)) { $existing = [IO.Path]::GetDirectoryName($existing) }
      if ($existing -and -not $existing.StartsWith([string][char]92 + [char]92)) {
        $drive = New-Object IO.DriveInfo ([IO.Path]::GetFullPath($existing))
        $freeSpace = $drive.AvailableFreeSpace
        if ($null -ne $space -and $freeSpace -lt $space) {
          $refusals += "Cannot store the disks in ""$folder"": they need $(gigabytes $space), and $(gigabytes $freeSpace) are free there. Run again with a folder on another drive: --storage"
        }
        if ($drive.DriveFormat -in 'FAT', 'FAT32', 'exFAT') {
          $refusals += "Cannot store the disks in ""$folder"": the drive has $($drive.DriveFormat), and Hyper-V takes NTFS and ReFS (0x80070299). Run again with a folder on another drive: --storage"
        }
      } elseif ($folder) { $notes += "The free space in ""$folder"" is not known before it is used" }
    }

    # the external switch
    $adapters = @()
    $defaultSwitch = 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444' # its name is translated, its id is not
    $outer = @($switches | Where-Object { $null -ne $external -and $_.Name.Equals($external, 'OrdinalIgnoreCase') })
    $inner = @($switches | Where-Object { $null -ne $internal -and $_.Name.Equals($internal, 'OrdinalIgnoreCase') })
    foreach ($several in @($outer, $inner)) {
      if (@($several).Count -gt 1) {
        $refusals += "Cannot use the switch ""$($several[0].Name)"": $($several.Count) switches have that name: $(@($several | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VMSwitch -Id $($several[0].Id) | Rename-VMSwitch -NewName <another name>"
      }
      foreach ($one in @($several | Where-Object { $_ -and [string]$_.Id -eq $defaultSwitch })) {
        $refusals += "Cannot use the switch ""$($one.Name)"": it is the Default Switch, which Windows changes by itself at every start. Choose another name"
      }
    }
    $moves = $false
    if ($null -ne $external -and -not (has Get-NetAdapter)) {
      $refusals += "Cannot make the switch ""$external"": Windows has no NetAdapter module. Run: Get-Module -ListAvailable NetAdapter"
    } elseif ($null -ne $external) {
      $every = @(Get-NetAdapter)
      $cards = @($every | Where-Object { $_.ComponentID -ne 'vms_mp' }) # Hyper-V's own
      $bindings = @(Get-NetAdapterBinding | Where-Object { $_.Enabled })
      $bound = @($bindings | Where-Object { $_.ComponentID -eq 'vms_pp' } | ForEach-Object { [string]$_.InterfaceDescription })
      $teamed = @($bindings | Where-Object { $_.ComponentID -eq 'ms_implat' } | ForEach-Object { [string]$_.InterfaceDescription })
      $adapters = @($cards | ForEach-Object {
        $card = $_
        # on Wi-Fi a bridge stands between adapter and switch; it has the adapter's MAC address
        $same = @($cards | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -or ($card.MacAddress -and $_.MacAddress -eq $card.MacAddress) } | ForEach-Object { [string]$_.InterfaceDescription })
        [ordered]@{
          name = [string]$card.Name
          description = [string]$card.InterfaceDescription
          status = [string]$card.Status
          wifi = [string]$card.PhysicalMediaType -eq 'Native 802.11' -or $card.NdisPhysicalMedium -eq 9
          bound = @($same | Where-Object { $_ -in $bound }).Count -gt 0
          same = $same
          index = [string]$card.InterfaceIndex
          real = [bool]($card.HardwareInterface -or [string]$card.ComponentID -like '*ms_implat_mp')
        }
      })
      $list = @($adapters | ForEach-Object { '"' + $_.name + '" (' + $_.description + ', ' + $_.status + ')' }) -join ', '
      $wanted = @($adapters | Where-Object { $null -ne $adapter -and $_.name.Equals($adapter, 'OrdinalIgnoreCase') })
      if ($wanted.Count -eq 0) { $wanted = @($adapters | Where-Object { $null -ne $adapter -and $_.description.Equals($adapter, 'OrdinalIgnoreCase') }) }
      if ($wanted.Count -eq 0) { $wanted = @($adapters | Where-Object { $_.index -eq $adapter }) }
      if ($adapter -eq 'auto') {
        # a switch that is there stays where it is
        $wanted = @()
        $over = $null
        if ($outer.Count -eq 0) {
          foreach ($way in @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' } | Sort-Object { [int]$_.RouteMetric + [int]$_.InterfaceMetric })) {
            $out = $every | Where-Object { $_.InterfaceIndex -eq $way.InterfaceIndex -and $_.ComponentID -eq 'vms_mp' } | Select-Object -First 1
            $port = Get-VMNetworkAdapter -ManagementOS | Where-Object { $out -and [string]$_.DeviceId -eq [string]$out.DeviceID } | Select-Object -First 1
            $over = $switches | Where-Object { $port -and [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }
            $wanted = @($adapters | Where-Object { $_.index -eq [string]$way.InterfaceIndex -and $_.real })
            if ($over -or $wanted.Count -gt 0) { break }
          }
          if ($over) { $refusals += "Cannot make the switch ""$external"": the switch ""$($over.Name)"" has the adapter that leads out, and an adapter serves one switch. Run again with: --external $(quoted $over.Name)" }
          elseif ($wanted.Count -eq 0) { $refusals += "Cannot choose a network adapter for the switch ""$external"": none of the host's has a default route, of $list. Run again with: --adapter NAME" }
          elseif ($wanted[0].wifi) { $refusals += "Cannot choose a network adapter for the switch ""$external"": it would be ""$($wanted[0].name)"", which is Wi-Fi, and there a bridge may slow down or cut off host and VM. Run again with: --adapter $(quoted $wanted[0].name), or without --external, and with: --internal NAME --host-ip auto --nat" }
        }
      } elseif ($null -ne $adapter -and $wanted.Count -ne 1) {
        $refusals += "Cannot make the switch ""$external"" on ""$adapter"": no network adapter has that name, among $list. Run: Get-NetAdapter"
      }
      if ($null -eq $adapter -and $outer.Count -eq 0 -and $hyperV) {
        $refusals += "Cannot make the switch ""$external"": it needs a network adapter, one of $list. Run again with: --adapter"
      }
      # as Windows says them: Hyper-V may number adapters of one make otherwise (dsccommunity/HyperVDsc#217), and
      # an old one says no GUIDs (microsoft/SDN#337)
      function descriptions($vSwitch) {
        $ids = @($vSwitch.NetAdapterInterfaceGuid | Where-Object { $_ } | ForEach-Object { '{' + [string]$_ + '}' })
        $known = @($cards | Where-Object { [string]$_.InterfaceGuid -in $ids } | ForEach-Object { [string]$_.InterfaceDescription })
        if ($known.Count -eq 0) { $known = @(@($vSwitch.NetAdapterInterfaceDescriptions) + $vSwitch.NetAdapterInterfaceDescription | Where-Object { $_ }) }
        $known
      }
      if ($outer.Count -eq 1) {
        $vSwitch = $outer[0]
        if ([string]$vSwitch.SwitchType -ne 'External') {
          $refusals += "Cannot use the switch ""$external"" for the network outside: there is one of that name that is $($vSwitch.SwitchType). Choose another name, or run: Get-VMSwitch -Id $($vSwitch.Id) | Rename-VMSwitch -NewName <another name>"
        } else {
          $moves = $wanted.Count -eq 1 -and @(descriptions $vSwitch | Where-Object { $_ -in $wanted[0].same }).Count -eq 0
          if ($moves -and $vSwitch.EmbeddedTeamingEnabled) {
            $refusals += "Cannot move the switch ""$external"" to ""$($wanted[0].name)"": it is on a team of adapters. Choose another name, or run: Set-VMSwitchTeam -Name $(quoted $vSwitch.Name) -NetAdapterName $(quoted $wanted[0].name)"
            $moves = $false
          } elseif ($moves) { $notes += "The switch ""$external"" moves from the adapter ""$($vSwitch.NetAdapterInterfaceDescription)"" to ""$($wanted[0].name)"", with all VMs on it" }
          else { $notes += "The switch ""$external"" is there already" }
          if ($null -ne $share -and [bool]$vSwitch.AllowManagementOS -ne $share) { $notes += "Whether the switch ""$external"" is shared with the host changes" }
        }
      }
      if (($outer.Count -eq 0 -or $moves) -and $wanted.Count -eq 1) {
        $taker = @($switches | Where-Object { @(descriptions $_ | Where-Object { $_ -in $wanted[0].same }).Count -gt 0 })
        if ($taker.Count -gt 0) {
          $refusals += "Cannot make the switch ""$external"" on ""$($wanted[0].name)"": the switch ""$($taker[0].Name)"" has that adapter, and an adapter serves one switch. Run again with: --external $(quoted $taker[0].Name)"
        } elseif ($wanted[0].bound) {
          $refusals += "Cannot make the switch ""$external"" on ""$($wanted[0].name)"": the adapter is bound to a switch that is not there. Run: Disable-NetAdapterBinding -ComponentID vms_pp -Name $(quoted $wanted[0].name)"
        } elseif (@($wanted[0].same | Where-Object { $_ -in $teamed }).Count -gt 0) {
          $refusals += "Cannot make the switch ""$external"" on ""$($wanted[0].name)"": the adapter is in a team, which the switch goes on instead. Run again with the team's --adapter, one of $list"
        } elseif (-not $wanted[0].real) {
          $refusals += "Cannot make the switch ""$external"" on ""$($wanted[0].name)"": the adapter is virtual, as a VPN's is, and a switch takes those of hardware and teams. Run: Get-NetAdapter -Physical"
        } elseif ($wanted[0].status -eq 'Disabled') {
          $refusals += "Cannot make the switch ""$external"" on ""$($wanted[0].name)"": the adapter is turned off. Run: Enable-NetAdapter -Name $(quoted $wanted[0].name)"
        }
        if ($wanted[0].wifi) { $notes += "The adapter ""$($wanted[0].name)"" is Wi-Fi: access points take frames from one MAC address only, so Hyper-V puts a bridge in between, and some networks refuse the VM a second address" }
        if ($wanted[0].status -ne 'Up') { $notes += "The adapter ""$($wanted[0].name)"" is not connected ($($wanted[0].status))" }
        if ($share -eq $false) { $notes += "The host loses its connection by ""$($wanted[0].name)"" while the switch ""$external"" is not shared with it" }
      }
    }

    # the internal switch, its address and NAT
    $vEthernet = $null
    if ($inner.Count -eq 1) {
      $vSwitch = $inner[0]
      if ([string]$vSwitch.SwitchType -ne 'Internal') {
        $refusals += "Cannot use the switch ""$internal"" between host and VM: there is one of that name that is $($vSwitch.SwitchType). Choose another name, or run: Get-VMSwitch -Id $($vSwitch.Id) | Rename-VMSwitch -NewName <another name>"
      } else {
        $notes += "The switch ""$internal"" is there already"
        $port = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$vSwitch.Id } | Sort-Object { $_.Name -ne $vSwitch.Name })[0]
        if ($port -and (has Get-NetAdapter)) { $vEthernet = @(Get-NetAdapter | Where-Object { [string]$_.DeviceID -eq [string]$port.DeviceId })[0] }
      }
    }
    $addresses = @()
    if ($null -ne $hostAddress -and -not (has Get-NetIPAddress)) {
      $refusals += "Cannot set the host address $hostAddress/$($length): Windows has no NetTCPIP module. Run: Get-Module -ListAvailable NetTCPIP"
    } elseif ($null -ne $hostAddress) {
      $own = @()
      foreach ($one in @(Get-NetIPAddress -AddressFamily IPv4)) {
        $addresses += [ordered]@{ address = [string]$one.IPAddress; prefixLength = [int]$one.PrefixLength; interface = [string]$one.InterfaceAlias }
        $least = [Math]::Min([int]$one.PrefixLength, [int]$length)
        if ($vEthernet -and $one.InterfaceIndex -eq $vEthernet.InterfaceIndex) { $own += $one }
        elseif ((networkOf $one.IPAddress $least) -eq (networkOf $hostAddress $least)) {
          $refusals += "Cannot give the host $hostAddress/$length on the switch ""$internal"": ""$($one.InterfaceAlias)"" has $($one.IPAddress)/$($one.PrefixLength), and the two networks overlap. Run again with another network: --host-ip"
        }
      }
      $manual = @($own | Where-Object { [string]$_.PrefixOrigin -eq 'Manual' })
      if (@($own | Where-Object { $_.IPAddress -eq $hostAddress -and $_.PrefixLength -eq $length }).Count -gt 0) { $notes += "The host has $hostAddress/$length on the switch ""$internal"" already" }
      elseif ($manual.Count -gt 0) {
        $refusals += "Cannot give the host $hostAddress/$length on the switch ""$internal"": it has $($manual[0].IPAddress)/$($manual[0].PrefixLength) there. Run: Remove-NetIPAddress -InterfaceIndex $($vEthernet.InterfaceIndex) -IPAddress $($manual[0].IPAddress)"
      }
    }
    $nats = @()
    $prefix = "$network/$length"
    if ($null -eq $hostAddress) { $nat = $null }
    if ($nat -and -not (has Get-NetNat)) {
      $refusals += "Cannot make a NAT for $($prefix): Windows has no NetNat module, which came with Windows 10 1607. Run again with: --no-nat"
    } elseif ($null -ne $nat -and (has Get-NetNat)) {
      $nats = @(Get-NetNat | ForEach-Object { [ordered]@{ name = [string]$_.Name; prefix = [string]$_.InternalIPInterfaceAddressPrefix } })
      foreach ($one in $nats) {
        $remove = "Get-NetNat -Name $(quoted $one.name) | Remove-NetNat"
        if ($nat -and $one.prefix -eq $prefix) { $notes += "The NAT ""$($one.name)"" for $prefix is there already" }
        elseif ($nat) { $refusals += "Cannot make a NAT for $($prefix): the NAT ""$($one.name)"" for $($one.prefix) is there, and a host has one. Run again with an address in its network or with --no-nat, or if nothing needs it, run: $remove" }
        elseif ($one.prefix -eq $prefix -and -not $one.name.Equals($internal, 'OrdinalIgnoreCase')) { $refusals += "Cannot remove the NAT for $($prefix): it is ""$($one.name)"", which something else made. Run, if nothing needs it: $remove" }
      }
    }

    $hostFacts = [ordered]@{
      name = [Environment]::MachineName
      version = [string]$version
      client = $null
      edition = $null
      elevated = $elevated
      processors = $null
      memory = $null
      diskFolder = $null
      freeSpace = $freeSpace
    }
    if ($windows) { $hostFacts.client = $windows.client; $hostFacts.edition = $windows.edition }
    if ($vmHost) {
      $hostFacts.processors = [int]$vmHost.LogicalProcessorCount
      $hostFacts.memory = [long]$vmHost.MemoryCapacity
      $hostFacts.diskFolder = [string]$vmHost.VirtualHardDiskPath
    }
    ConvertTo-Json -Compress -Depth 4 ([ordered]@{
      ready = $refusals.Count -eq 0
      refusals = $refusals
      notes = $notes
      hyperV = $hyperV
      host = $hostFacts
      vm = $vm
      switches = @($switches | ForEach-Object {
        [ordered]@{
          id = [string]$_.Id
          name = [string]$_.Name
          type = [string]$_.SwitchType
          adapter = [string]$_.NetAdapterInterfaceDescription
          shared = [bool]$_.AllowManagementOS
        }
      })
      adapters = @($adapters | ForEach-Object { foreach ($key in 'same', 'index', 'real') { $_.Remove($key) }; $_ })
      nats = $nats
      addresses = $addresses
    })`
  return JSON.parse(stdout) as CheckHostResult
}

function throwIfUnusable(options: CheckHostOptions): void {
  for (const key of ['vm', 'external', 'adapter', 'internal', 'storage'] as const) {
    const text = options[key]
    // deno-lint-ignore no-control-regex
    if (text !== undefined && (text.trim() === '' || /[\u0000-\u001f\u007f]/.test(text))) {
      throw new TypeError(
        `Cannot check the host for ${key} ${JSON.stringify(text)}: ` +
          'a name is not empty and has no control characters',
      )
    }
  }
  for (const key of ['cpus', 'memory', 'space'] as const) {
    const number = options[key]
    if (number === undefined) continue
    if (!Number.isSafeInteger(number) || number < (key === 'space' ? 0 : 1)) {
      throw new RangeError(`Cannot check the host for ${key} ${number}: it takes a whole number`)
    }
  }
  if (options.hostIp !== undefined && options.internal === undefined) {
    throw new TypeError(
      'Cannot check the host address: no internal switch is named. Add: --internal',
    )
  }
}

/** The parts of a host address with its prefix length. */
function cidr(text: string): { address: string; length: number; network: string } {
  const [, address = '', bits = ''] = /^((?:\d+\.){3}\d+)\/(\d+)$/.exec(text) ?? []
  const parts = address.split('.').map(Number)
  const length = Number(bits)
  const written = `${parts.join('.')}/${length}` === text // no leading zeros: some read 010 as 8
  const [first = 0] = parts
  const network = parts.every((part) => part <= 255) && first > 0 && first !== 127 && first < 224
  if (!written || !network || length < 8 || length > 30) {
    throw new TypeError(
      `Cannot use the host address ${JSON.stringify(text)}: it takes an IPv4 address for a ` +
        'network of its own with a prefix length from 8 to 30. ' +
        'Run again with for example: --host-ip 192.168.56.1/24',
    )
  }
  const size = 2 ** (32 - length)
  const number = parts.reduce((sum, part) => sum * 256 + part)
  const start = number - number % size
  const dotted = (n: number) =>
    [24, 16, 8, 0].map((shift) => Math.floor(n / 2 ** shift) % 256).join('.')
  if (number === start || number === start + size - 1) {
    throw new TypeError(
      `Cannot use the host address "${text}": it is the network’s own or its broadcast address. ` +
        `Run again with for example: --host-ip ${dotted(start + 1)}/${length}`,
    )
  }
  return { address, length, network: dotted(start) }
}

function bareMac(text: string): string {
  const digits = text.replace(/[:.-]/g, '').toUpperCase()
  if (!/^[\dA-F]{12}$/.test(digits)) {
    throw new TypeError(`Cannot check the MAC address "${text}": it takes 12 hexadecimal digits`)
  }
  return digits
}

await hostCommand(
  import.meta,
  'Say what stands in the way of a VM on this host, and what the host has. Changes nothing. ' +
    'Exit code 0 ready, 1 not ready or not answered',
  {
    vm: { type: 'string', describe: 'The VM that is to be made', example: 'Win10' },
    cpus: { type: 'number', describe: 'Its processors' },
    memory: { type: 'number', describe: 'Its memory in bytes' },
    disk: { type: 'string', array: true, describe: 'Its disk files, as the host names them' },
    external: { type: 'string', describe: 'External switch that is to be there' },
    adapter: { type: 'string', describe: 'Its network adapter: name, description, index or auto' },
    share: { type: 'boolean', describe: 'The host uses the external switch too' },
    internal: { type: 'string', describe: 'Internal switch that is to be there' },
    hostIp: { type: 'string', describe: 'The host’s address on it, e.g. 192.168.56.1/24' },
    nat: { type: 'boolean', describe: 'The internal switch has NAT' },
    mac: { type: 'string', array: true, describe: 'MAC addresses that the VM keeps' },
    nested: { type: 'boolean', describe: 'The VM runs hypervisors of its own' },
    space: { type: 'number', describe: 'Bytes that are written to --storage' },
    storage: { type: 'string', describe: 'Folder on the host for the disks' },
  },
  async (options: CheckHostOptions, ps) => {
    const result = await checkHost(options, ps)
    for (const refusal of result.refusals) console.error(refusal)
    if (!result.ready) process.exitCode = 1
    return result
  },
)
