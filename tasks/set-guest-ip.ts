#!/usr/bin/env zx
/** Give the guest in a Hyper-V VM a fixed address, or fix the one that it has. */
import process from 'node:process'
import { dryRun, hostCommand, type Option, powershell, Secret } from './task.ts'

export interface SetGuestIpOptions {
  /** The VM's name. */
  vm: string
  /** The switch of the adapter that gets the address. @default the VM's only connected adapter's */
  switch?: string | undefined
  /** The adapter's name, where several are on the switch. @default the only one there */
  name?: string | undefined
  /**
   * The guest's address, e.g. `192.168.56.191` or `192.168.56.191/24`; without a prefix length the
   * host's on that switch. Required without `pin`.
   */
  guestIp?: string | undefined
  /** Fix the address that the guest has now, e.g. by DHCP, with its gateway and DNS. @default false */
  pin?: boolean | undefined
  /**
   * `auto`: the host's address where a NAT is behind it and the VM is on no other switch; `none`, or
   * an address. @default auto
   */
  gateway?: string | undefined
  /** DNS servers. @default with a gateway the host's own, for a NAT answers no names; else none */
  dns?: string[] | undefined
  /**
   * `direct`: PowerShell Direct, for Windows guests, with a credential; `kvp`: the integration
   * services' key-value pair exchange, without one; `print`: only say what to type in the guest;
   * `auto`: the first of these that the guest can. @default auto
   */
  via?: 'auto' | 'direct' | 'kvp' | 'print' | undefined
  /** An administrator's account of the guest, for `direct`. */
  credential?: GuestCredential | undefined
  /** Seconds to wait for a guest that has just started, and then until it reports the address. @default 30 */
  timeout?: number | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** An account with its password, or the name of one in Windows' Credential Manager on the host. */
export type GuestCredential = { user: string; password: Secret } | { target: string }

export interface SetGuestIpResult {
  /** Whether anything was set in the guest, or would be. */
  changed: boolean
  /** Whether the guest has the address now, as far as the host can see; on a dry run, before. */
  set: boolean
  /** The VM's id. */
  id: string
  vm: string
  /** The adapter's id, by which the undo finds it again. */
  adapter: string
  name: string
  switch: string
  /** 12 hexadecimal digits. */
  mac: string
  /** E.g. `192.168.56.191/24`. */
  guestIp: string
  gateway: string | null
  dns: string[]
  /** What the guest says it is. */
  guest: 'windows' | 'linux' | 'unknown'
  /** The way that was taken, or would be; null when the guest has the address already. */
  via: 'direct' | 'kvp' | 'print' | null
  /** Who says which addresses the guest has: its integration services, or the host's ARP table by MAC address. */
  seenBy: 'integration services' | 'arp' | null
  /** IPv4 addresses that the adapter has. */
  addresses: string[]
  /** What to type in the guest, by what it is for. Empty where the guest has the address. */
  commands: { guest: string; lines: string[] }[]
  notes: string[]
  /** What the adapter had. Absent when nothing changed. */
  before?: {
    dhcp: boolean
    addresses: string[]
    masks: string[]
    gateways: string[]
    dns: string[]
  }
}

/**
 * Sets the address in the guest, waits until the guest reports it, and says who does.
 *
 * PowerShell Direct needs Windows 10 or Windows Server 2016 in the guest, and an account that has signed
 * in there (learn.microsoft.com/virtualization/hyper-v-on-windows/user-guide/powershell-direct). The
 * key-value pair exchange needs the integration services: Windows has them; on Linux hv_kvp_daemon
 * writes an ifcfg file, and since 2023 a NetworkManager keyfile, so that netplan and systemd-networkd
 * answer that it is done and do nothing. Hence what the guest reports decides, and where it has not
 * taken the address the result has the commands to type there. WinNAT hands out no addresses.
 */
export async function setGuestIp(
  options: SetGuestIpOptions,
  ps = powershell,
): Promise<SetGuestIpResult> {
  const { vm, switch: switchName, name, pin = false, gateway = 'auto', dns, via = 'auto' } = options
  const { timeout = 30, dryRun = false, credential } = options
  const { address, length } = check(options)
  const { user, password, target } = credential && 'user' in credential
    ? { ...credential, target: undefined }
    : { user: undefined, password: undefined, target: credential?.target }
  const { stdout } = await ps`
    $name = ${vm}
    $switchName = ${switchName}
    $adapterName = ${name}
    $address = ${address}
    $length = ${length}
    $pin = ${pin}
    $gateway = ${gateway}
    $dns = ${dns}
    $via = ${via}
    $user = ${user}
    $password = ${password}
    $target = ${target}
    $timeout = ${timeout}
    $dryRun = ${dryRun}
    $asked = if ($pin) { 'fix the address of the guest in' } else { "give $address to the guest in" }
    $cannot = "Cannot $asked ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))
    $namespace = 'root/virtualization/v2'
    function ipv4($addresses) { @($addresses | Where-Object { $_ -match '^[0-9]+([.][0-9]+){3}$' } | ForEach-Object { [string]$_ }) }
    function numberOf($address) {
      $bytes = ([Net.IPAddress]$address).GetAddressBytes()
      [long]$bytes[0] * 16777216 + [long]$bytes[1] * 65536 + [long]$bytes[2] * 256 + $bytes[3]
    }
    function networkOf($address, $length) {
      $number = numberOf $address
      $number - $number % [long][Math]::Pow(2, 32 - $length)
    }
    function maskOf($length) { @(0..3 | ForEach-Object { 256 - [Math]::Pow(2, 8 - [Math]::Max(0, [Math]::Min(8, $length - 8 * $_))) }) -join '.' }
    function lengthOf($mask) { (-join (([Net.IPAddress]$mask).GetAddressBytes() | ForEach-Object { [Convert]::ToString($_, 2) })).Replace('0', '').Length }

    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    $vm = $found[0]
    $connected = @(Get-VMNetworkAdapter -VM $vm | Where-Object { $_.SwitchName })
    $adapters = @($connected | Where-Object { ($null -eq $switchName -or $_.SwitchName.Equals($switchName, 'OrdinalIgnoreCase')) -and ($null -eq $adapterName -or $_.Name.Equals($adapterName, 'OrdinalIgnoreCase')) })
    if ($adapters.Count -ne 1) {
      $which = if ($adapters.Count -eq 0) { 'none' } else { "$($adapters.Count)" }
      throw "$cannot $which of its connected adapters fits, and one has to. Run again with --switch and --name of one that this shows: Get-VMNetworkAdapter -VMName '$typed'"
    }
    $adapter = $adapters[0]
    # its name is translated, its id is not
    if ([string]$adapter.SwitchId -eq 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444') { throw "$cannot it is on the Default Switch, whose network Windows changes at every start. Reach it by its computer's name there, NAME.mshome.net, or run: New-VMSwitch -SwitchType Internal, and Connect-VMNetworkAdapter" }
    $state = [string]$vm.State
    if ($state -ne 'Running' -and ($via -ne 'print' -or $pin)) { throw "$cannot it is $state, and only a guest that runs can be asked. Run: Start-VM -Name '$typed'" }
    $mac = [string]$adapter.MacAddress

    # the host's side of the switch
    $ports = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$adapter.SwitchId } | ForEach-Object { [string]$_.DeviceId })
    $cards = @(Get-NetAdapter | Where-Object { [string]$_.DeviceID -in $ports } | ForEach-Object { $_.InterfaceIndex })
    $hosts = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -in $cards -and $_.IPAddress -notlike '169.254.*' })

    # an adapter's settings in the guest, as its integration services tell them
    $part = [string]$adapter.Id -replace '^Microsoft:', ''
    function settings {
      foreach ($one in @(Get-CimInstance -Namespace $namespace -ClassName Msvm_GuestNetworkAdapterConfiguration)) {
        if (([string]$one.InstanceID).EndsWith($part, 'OrdinalIgnoreCase')) { $one }
      }
    }
    function neighbors { ipv4 @(Get-NetNeighbor | Where-Object { $_.InterfaceIndex -in $cards -and ([string]$_.LinkLayerAddress -replace '-') -eq $mac -and [string]$_.State -notin 'Unreachable', 'Incomplete' } | ForEach-Object { $_.IPAddress }) }
    # the host learns the MAC address of whom it sends something to: the address that is wanted, or all of the network
    function call {
      $sent = $false
      foreach ($own in $hosts) {
        $all = @()
        if ($address) { $all = @($address) }
        elseif ($own.PrefixLength -ge 22) {
          $start = networkOf $own.IPAddress $own.PrefixLength
          $all = @(1..([Math]::Pow(2, 32 - $own.PrefixLength) - 2) | ForEach-Object { $number = $start + $_; @(16777216, 65536, 256, 1 | ForEach-Object { [Math]::Floor($number / $_) % 256 }) -join '.' })
        }
        try { $client = New-Object Net.Sockets.UdpClient (New-Object Net.IPEndPoint ([Net.IPAddress]$own.IPAddress), 0) } catch { Write-Verbose $_; continue }
        foreach ($one in $all) { try { $null = $client.Send([byte[]]@(0), 1, $one, 9); $sent = $true } catch { Write-Verbose $_ } }
        $client.Dispose()
      }
      $sent
    }
    function look {
      $settings = settings
      $given = @(ipv4 $settings.IPAddresses)
      if ($given.Count -eq 0) { $given = @(ipv4 (Get-VMNetworkAdapter -VM $vm | Where-Object { [string]$_.Id -eq [string]$adapter.Id }).IPAddresses) }
      if ($given.Count -gt 0) { return @{ by = 'integration services'; addresses = $given; settings = $settings } }
      $heard = @(neighbors)
      if ($heard.Count -eq 0 -and $state -eq 'Running' -and (call)) {
        for ($wait = 0; $wait -lt 4 -and ($heard = @(neighbors)).Count -eq 0; $wait++) { Start-Sleep -Milliseconds 250 }
      }
      @{ by = $(if ($heard.Count -gt 0) { 'arp' }); addresses = $heard; settings = $settings }
    }
    function has($seen) { $seen.addresses -contains $address }
    $seen = @{ by = $null; addresses = @(); settings = $null }
    $kind = 'unknown'
    $speaks = $false
    # a guest that has just started tells its addresses some seconds after its heartbeat
    $clock = [Diagnostics.Stopwatch]::StartNew()
    for ($pause = 250; $state -eq 'Running'; $pause = [Math]::Min(2000, $pause * 2)) {
      $seen = look
      $exchange = Get-CimInstance -Namespace $namespace -ClassName Msvm_KvpExchangeComponent -Filter "SystemName='$([string]$vm.Id)'"
      foreach ($item in @($exchange.GuestIntrinsicExchangeItems | Where-Object { $_ })) {
        $fields = @{}
        foreach ($property in ([xml]$item).INSTANCE.PROPERTY) { $fields[[string]$property.NAME] = [string]$property.VALUE }
        $speaks = $true
        if ($fields.Name -eq 'OSName' -and $fields.Data) { $kind = if ($fields.Data -like '*Windows*') { 'windows' } else { 'linux' } }
      }
      $late = $dryRun -or $vm.Uptime.TotalSeconds -gt 120 -or $clock.Elapsed.TotalSeconds -ge $timeout
      if ($speaks -or $seen.by -or $late -or $via -eq 'print') { break }
      Start-Sleep -Milliseconds $pause
    }
    if ($pin) {
      $usable = @($seen.addresses | Where-Object { $_ -notlike '169.254.*' })
      if ($usable.Count -eq 0) { throw "$cannot nobody tells which one it has: neither its integration services (Linux: hyperv-daemons) nor the host's ARP table. Run again with an address: --guest-ip" }
      $address = $usable[0]
      $at = [Array]::IndexOf(@($seen.settings.IPAddresses), $address)
      if ($at -ge 0) {
        $length = lengthOf @($seen.settings.Subnets)[$at]
        if ($gateway -eq 'auto') { $gateway = @(@($seen.settings.DefaultGateways) | Where-Object { $_ -match '[.]' })[0]; if (-not $gateway) { $gateway = 'none' } }
        if ($null -eq $dns) { $dns = @(ipv4 $seen.settings.DNSServers) }
      }
      $cannot = "Cannot fix $address for the guest in ""$name"":"
    }
    $near = @($hosts | Where-Object { (networkOf $address $_.PrefixLength) -eq (networkOf $_.IPAddress $_.PrefixLength) })[0]
    if ($null -eq $length) {
      if (-not $near) { throw "$cannot the host has no address on ""$($adapter.SwitchName)"" in whose network that is. Run again with its prefix length: --guest-ip $address/24" }
      $length = [int]$near.PrefixLength
    }
    $place = (numberOf $address) - (networkOf $address $length)
    if ($length -lt 31 -and ($place -eq 0 -or $place -eq [Math]::Pow(2, 32 - $length) - 1)) { throw "$cannot in a network of $length bits that is the network's own or its broadcast address. Run again with another: --guest-ip" }
    if (@($hosts | Where-Object { $_.IPAddress -eq $address }).Count -gt 0) { throw "$cannot the host has that address itself. Run again with another: --guest-ip" }
    $others = @(Get-VM | Where-Object { [string]$_.Id -ne [string]$vm.Id -and [string]$_.State -eq 'Running' } | Get-VMNetworkAdapter | Where-Object { [string]$_.SwitchId -eq [string]$adapter.SwitchId })
    $owner = @($others | Where-Object { @($_.IPAddresses) -contains $address })[0]
    if ($owner) { throw "$cannot the VM ""$($owner.VMName)"" on the same switch has that address. Run again with another: --guest-ip" }
    $strange = @(Get-NetNeighbor | Where-Object { $_.InterfaceIndex -in $cards -and $_.IPAddress -eq $address -and [string]$_.LinkLayerAddress -match '[1-9A-F]' -and ([string]$_.LinkLayerAddress -replace '-') -ne $mac -and [string]$_.State -in 'Reachable', 'Permanent' })[0]
    if ($strange) { throw "$cannot a computer with the MAC address $($strange.LinkLayerAddress) answers there. Run again with another: --guest-ip" }
    if ($gateway -eq 'auto') {
      $gateway = 'none'
      if ($near -and $connected.Count -eq 1 -and (Get-Command -Name Get-NetNat -ErrorAction Ignore)) {
        foreach ($nat in @(Get-NetNat | Where-Object { $_.InternalIPInterfaceAddressPrefix })) {
          $start, $bits = $nat.InternalIPInterfaceAddressPrefix.Split('/')
          if ((networkOf $address $bits) -eq (networkOf $start $bits)) { $gateway = [string]$near.IPAddress }
        }
      }
    }
    if ($gateway -eq 'none') { $gateway = $null }
    if ($gateway -and (networkOf $gateway $length) -ne (networkOf $address $length)) { throw "$cannot the gateway $gateway is not in the network $address/$length. Run again with another: --gateway" }
    if ($null -eq $dns) {
      $dns = @()
      if ($gateway) {
        $uplinks = @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' } | Sort-Object { $_.RouteMetric + $_.InterfaceMetric } | ForEach-Object { $_.InterfaceIndex })
        if ($uplinks.Count -gt 0) { $dns = @(Get-DnsClientServerAddress | Where-Object { $_.InterfaceIndex -eq $uplinks[0] -and [string]$_.AddressFamily -in '2', 'IPv4' } | ForEach-Object { $_.ServerAddresses }) }
      }
    }
    $dns = @($dns | Select-Object -First 5)

    # fixed already? Only the integration services can tell a fixed address from DHCP's
    $fixed = (has $seen) -and ($seen.by -eq 'arp' -or $seen.settings.DHCPEnabled -eq $false)
    $service = @(Get-VMIntegrationService -VM $vm | Where-Object { [string]$_.Id -like '*2A34B1C2-FD73-4043-8A5B-DD2159BC743F' })[0]
    $exchanges = $speaks -or @(ipv4 $seen.settings.IPAddresses).Count -gt 0
    $hasAccount = ($user -and $password) -or $target
    $way = $null
    if (-not $fixed) {
      $way = $via
      if ($way -eq 'auto') { $way = if ($hasAccount -and $kind -ne 'linux') { 'direct' } elseif ($exchanges -and -not $adapter.IsLegacy) { 'kvp' } else { 'print' } }
      if ($way -eq 'direct' -and $kind -eq 'linux') { throw "$cannot PowerShell Direct reaches Windows guests only, and this is a Linux. Run again with: --via kvp" }
      if ($way -eq 'direct' -and -not $hasAccount) { throw "$cannot PowerShell Direct needs an account of the guest. Run again with: --user Administrator --credential prompt" }
      if ($way -eq 'kvp' -and $adapter.IsLegacy) { throw "$cannot its adapter ""$($adapter.Name)"" is a legacy one, which the integration services do not know. Run again with: --via print" }
      if ($way -eq 'kvp' -and -not $exchanges) {
        if ($service -and -not $service.Enabled) { throw "$cannot its key-value pair exchange is off. Run: Get-VMIntegrationService -VMName '$typed' | Where-Object Id -like '*2A34B1C2*' | Enable-VMIntegrationService" }
        throw "$cannot its integration services do not answer: the guest has not started yet, or lacks them (Linux: hyperv-daemons). Run again with: --via print"
      }
    }
    $notes = @()
    $result = [ordered]@{
      changed = $way -in 'kvp', 'direct'; set = [bool](has $seen); id = [string]$vm.Id; vm = [string]$vm.Name; adapter = [string]$adapter.Id; name = [string]$adapter.Name; switch = [string]$adapter.SwitchName; mac = $mac
      guestIp = "$address/$length"; gateway = $gateway; dns = @($dns); guest = $kind; via = $way; seenBy = $seen.by; addresses = @($seen.addresses); commands = @(); notes = @()
    }
    $before = [ordered]@{ dhcp = $true; addresses = @(); masks = @(); gateways = @(); dns = @() }
    if ($exchanges) {
      $old = $seen.settings
      $before.dhcp = [bool]$old.DHCPEnabled
      for ($n = 0; $n -lt @($old.IPAddresses).Count -and -not $old.DHCPEnabled; $n++) {
        if (@($old.IPAddresses)[$n] -match ':') { continue }
        $before.addresses += [string]@($old.IPAddresses)[$n]
        $before.masks += [string]@($old.Subnets)[$n]
      }
      if (-not $old.DHCPEnabled) { $before.gateways = @(ipv4 $old.DefaultGateways); $before.dns = @(ipv4 $old.DNSServers) }
    }

    if ($way -eq 'kvp' -and -not $dryRun) {
      # the text that embedded instances have (DSP0203): the properties of the class may be written in no other way
      function property($name, $type, $values) {
        $inner = -join @($values | Where-Object { $_ } | ForEach-Object { "<VALUE>$([Security.SecurityElement]::Escape([string]$_))</VALUE>" })
        if ($type -ne 'array') { return "<PROPERTY NAME=""$name"" TYPE=""$type"">$inner</PROPERTY>" }
        "<PROPERTY.ARRAY NAME=""$name"" TYPE=""string""><VALUE.ARRAY>$inner</VALUE.ARRAY></PROPERTY.ARRAY>"
      }
      $text = '<INSTANCE CLASSNAME="Msvm_GuestNetworkAdapterConfiguration">' + (property InstanceID string $seen.settings.InstanceID) + (property ProtocolIFType uint16 4096) + (property DHCPEnabled boolean 'FALSE') +
        (property IPAddresses array $address) + (property Subnets array (maskOf $length)) + (property DefaultGateways array $gateway) + (property DNSServers array $dns) + '</INSTANCE>'
      $system = Get-CimInstance -Namespace $namespace -ClassName Msvm_ComputerSystem -Filter "Name='$([string]$vm.Id)'"
      $manager = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemManagementService
      $answer = Invoke-CimMethod -InputObject $manager -MethodName SetGuestNetworkAdapterConfiguration -Arguments @{ ComputerSystem = $system; NetworkConfiguration = [string[]]@($text) }
      $code = [long]$answer.ReturnValue
      if ($code -eq 4096) {
        $clock = [Diagnostics.Stopwatch]::StartNew()
        for ($job = Get-CimInstance -InputObject $answer.Job; [int]$job.JobState -lt 7 -and $clock.Elapsed.TotalSeconds -lt 60; $job = Get-CimInstance -InputObject $answer.Job) { Start-Sleep -Milliseconds 100 }
        $code = if ([int]$job.JobState -eq 7) { 0 } elseif ([int]$job.ErrorCode) { [long]$job.ErrorCode } else { 32768 }
      }
      if ($code -eq 32769) { throw "$cannot Windows denies it (32769). Run again as an administrator" }
      if ($code -eq 32775) { throw "$cannot its integration services are not ready (32775). Wait until it has started, and run again" }
      if ($code -ne 0) { throw "$cannot Hyper-V refused it ($code). Run again with: --via print" }
    }
    if ($way -eq 'direct' -and -not $dryRun) {
      if ($target) {
        if (-not ('VboxToHyperV.CredentialManager' -as [type])) {
          Add-Type -TypeDefinition 'using System; using System.Net; using System.Runtime.InteropServices; using System.Security;
            namespace VboxToHyperV { public static class CredentialManager {
              [StructLayout(LayoutKind.Sequential)] struct Entry { public uint Flags, Type; public IntPtr Target, Comment; public long Written; public uint Size; public IntPtr Blob; public uint Persist, Count; public IntPtr Attributes, Alias, User; }
              [DllImport("advapi32.dll", EntryPoint = "CredReadW", CharSet = CharSet.Unicode, SetLastError = true)] static extern bool CredRead(string target, uint type, uint flags, out IntPtr entry);
              [DllImport("advapi32.dll")] static extern void CredFree(IntPtr entry);
              public static int Read(string target, out NetworkCredential found) {
                found = null;
                IntPtr at;
                if (!CredRead(target, 1, 0, out at)) return Marshal.GetLastWin32Error();
                try {
                  Entry entry = (Entry)Marshal.PtrToStructure(at, typeof(Entry));
                  found = new NetworkCredential(Marshal.PtrToStringUni(entry.User), Marshal.PtrToStringUni(entry.Blob, (int)entry.Size / 2));
                  return 0;
                } finally { CredFree(at); }
              }
            } }'
        }
        $entry = $null
        $code = [VboxToHyperV.CredentialManager]::Read($target, [ref]$entry)
        # 1168: not there; 1312: this session has no Credential Manager, as over SSH with a key
        if ($code -eq 1312) { throw "$cannot the Credential Manager is closed to this session (1312), as over SSH. Run again with: --user Administrator --credential prompt" }
        if ($code -ne 0) { throw "$cannot the Credential Manager has no generic credential ""$target"" ($code). Run, and answer its question: cmdkey /generic:""$target"" /user:Administrator /pass" }
        $user = $entry.UserName
        $password = $entry.SecurePassword
      }
      $account = New-Object Management.Automation.PSCredential $user, $password
      $inside = {
        param($mac, $address, $length, $gateway, $dns)
        $ErrorActionPreference = 'Stop'
        $ProgressPreference = 'SilentlyContinue'
        $card = @(Get-NetAdapter | Where-Object { ([string]$_.MacAddress -replace '-') -eq $mac })[0]
        if ($null -eq $card) { throw "the guest has no adapter with the MAC address $mac. Run there: Get-NetAdapter" }
        $index = $card.ifIndex
        function own { @(Get-NetIPAddress | Where-Object { $_.InterfaceIndex -eq $index -and $_.IPAddress -notmatch ':' }) }
        function gateways { @(Get-NetRoute | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' }) }
        $dhcp = [string]@(Get-NetIPInterface -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index })[0].Dhcp -eq 'Enabled'
        $old = @(own | Where-Object { [string]$_.PrefixOrigin -eq 'Manual' })
        $hops = @(gateways | ForEach-Object { [string]$_.NextHop })
        $servers = @(Get-DnsClientServerAddress | Where-Object { $_.InterfaceIndex -eq $index -and [string]$_.AddressFamily -in '2', 'IPv4' } | ForEach-Object { $_.ServerAddresses })
        function clear {
          own | Where-Object { [string]$_.PrefixOrigin -ne 'WellKnown' } | Remove-NetIPAddress -Confirm:$false
          gateways | Remove-NetRoute -Confirm:$false
        }
        try {
          if ($dhcp) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Disabled }
          clear
          $new = @{ InterfaceIndex = $index; IPAddress = $address; PrefixLength = [byte]$length }
          if ($gateway) { $new.DefaultGateway = $gateway }
          $null = New-NetIPAddress @new
          for ($wait = 0; $wait -lt 40; $wait++) {
            $set = @(own | Where-Object { $_.IPAddress -eq $address })[0]
            if ($set -and [string]$set.AddressState -ne 'Tentative') { break }
            Start-Sleep -Milliseconds 250
          }
          if ($set -and [string]$set.AddressState -eq 'Duplicate') { throw "another computer on the switch has that address. Run again with another: --guest-ip" }
          if (@($dns).Count -gt 0) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $dns } else { Set-DnsClientServerAddress -InterfaceIndex $index -ResetServerAddresses }
        } catch {
          $failure = $_
          clear
          if ($dhcp) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Enabled }
          foreach ($one in $old) { $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $one.IPAddress -PrefixLength ([byte]$one.PrefixLength) }
          foreach ($hop in @($hops | Where-Object { -not $dhcp })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $hop }
          if (-not $dhcp -and $servers.Count -gt 0) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $servers }
          # a network card of before the move that is not there any more keeps its address (assumption)
          if ($failure.FullyQualifiedErrorId -match '^Windows System Error (87|5010),New-NetIPAddress') { throw "the guest's Windows has that address on another network card, perhaps one of before the move that is gone ($($Matches[1])). Run there: Get-PnpDevice -Class Net -Status Unknown, and pnputil /remove-device for it" }
          throw $failure
        }
        $before = @{ dhcp = $dhcp; addresses = @($old | ForEach-Object { [string]$_.IPAddress }); lengths = @($old | ForEach-Object { [int]$_.PrefixLength }); gateways = $hops; dns = $servers }
        ConvertTo-Json -InputObject $before -Compress -Depth 3
      }
      try { $told = Invoke-Command -VMId $vm.Id -Credential $account -ScriptBlock $inside -ArgumentList $mac, $address, $length, $gateway, @($dns) } catch {
        $failure = $_
        $id = [string]$failure.FullyQualifiedErrorId
        if ($failure.Exception.GetType().Name -eq 'PSDirectException') { throw "$cannot the guest does not take the account ""$user"": its password is wrong or empty, or it has never signed in there. Run again with another --user, or without one: --via kvp" }
        if ($id -like '*PSSessionStateBroken*') { throw "$cannot nobody answered in the guest: its Windows has not started yet, or is older than Windows 10 and Windows Server 2016, or it is no Windows. Run again with: --via kvp" }
        # a sentence of the script inside
        if ($id -eq [string]$failure.Exception.Message) { throw "$cannot $($failure.Exception.Message)" }
        throw $failure
      }
      $told = ConvertFrom-Json ([string]@($told)[-1])
      $before.dhcp = [bool]$told.dhcp
      if (-not $told.dhcp) {
        $before.addresses = @($told.addresses)
        $before.masks = @($told.lengths | Where-Object { $_ } | ForEach-Object { maskOf $_ })
        $before.gateways = @($told.gateways)
        $before.dns = @($told.dns)
      }
    }
    if ($result.changed -and -not $dryRun) {
      $clock = [Diagnostics.Stopwatch]::StartNew()
      for ($pause = 250; $true; $pause = [Math]::Min(2000, $pause * 2)) {
        $seen = look
        $taken = (has $seen) -and ($way -eq 'direct' -or $seen.settings.DHCPEnabled -eq $false)
        if ($taken -or $clock.Elapsed.TotalSeconds -ge $timeout) { break }
        Start-Sleep -Milliseconds $pause
      }
      $result.set = [bool]$taken
      $result.seenBy = $seen.by
      $result.addresses = @($seen.addresses)
      if (-not $taken -and $way -eq 'direct') {
        $result.set = $true
        $notes += "The guest took $address, and its integration services do not report it yet."
      }
      if (-not $taken -and $way -eq 'kvp') {
        $result.changed = $false
        $notes += "The guest was told by its integration services and does not have $address after $timeout seconds: where netplan, systemd-networkd or NetworkManager owns the adapter, Linux answers that it is done and does nothing. Type in the guest what is under commands."
      }
    }
    if ($seen.by -eq 'arp' -and $result.set) { $notes += "The address was seen in the host's ARP table; the guest's integration services say nothing (Linux: install hyperv-daemons)." }
    if ($result.changed) { $result.before = $before }
    $result.notes = @($notes)

    if ($way -eq 'print' -or (-not $result.set -and -not $dryRun)) {
      $windows = '$card = Get-NetAdapter | Where-Object MacAddress -EQ ''' + ($mac -replace '(..)(?=.)', '$1-') + ''''
      $set = 'New-NetIPAddress -InterfaceIndex $card.ifIndex -IPAddress ' + $address + ' -PrefixLength ' + $length
      if ($gateway) { $set += ' -DefaultGateway ' + $gateway }
      $lines = @($windows, 'Remove-NetIPAddress -InterfaceIndex $card.ifIndex -AddressFamily IPv4 -Confirm:$false -ErrorAction Ignore', $set)
      if ($dns.Count -gt 0) { $lines += 'Set-DnsClientServerAddress -InterfaceIndex $card.ifIndex -ServerAddresses ' + ($dns -join ',') }
      $colons = ($mac -replace '(..)(?=.)', '$1:').ToLowerInvariant()
      # by MAC address: its name follows the bus, and is another one than in VirtualBox
      $managed = "sudo nmcli connection add type ethernet con-name hyper-v-$mac ifname '*' mac $colons ipv4.method manual ipv4.addresses $address/$length"
      if ($gateway) { $managed += " ipv4.gateway $gateway" }
      if ($dns.Count -gt 0) { $managed += " ipv4.dns $($dns -join ',')" }
      # in one line, which survives being copied from an indented text
      $plan = "echo '{network: {version: 2, ethernets: {hyper-v-$($mac): {match: {macaddress: ""$colons""}, dhcp4: false, addresses: [$address/$length]"
      if ($gateway) { $plan += ", routes: [{to: default, via: $gateway}]" }
      if ($dns.Count -gt 0) { $plan += ", nameservers: {addresses: [$($dns -join ', ')]}" }
      $plan += "}}}}' | sudo install -m 600 /dev/stdin /etc/netplan/60-hyper-v-$mac.yaml"
      $temporary = @(
        'card=$(ip -brief link | awk ''$3 == "' + $colons + '" { print $1 }'')'
        'sudo ip address replace ' + $address + '/' + $length + ' dev "$card"'
        if ($gateway) { 'sudo ip route replace default via ' + $gateway + ' dev "$card"' }
      )
      if ($kind -ne 'linux') { $result.commands += @{ guest = 'Windows, in an elevated PowerShell'; lines = @($lines) } }
      if ($kind -ne 'windows') {
        $result.commands += @{ guest = 'Linux with netplan (Ubuntu)'; lines = @($plan, 'sudo netplan apply') }
        $result.commands += @{ guest = 'Linux with NetworkManager'; lines = @($managed, "sudo nmcli connection up hyper-v-$mac") }
        $result.commands += @{ guest = 'any Linux, until it restarts'; lines = @($temporary) }
      }
    }
    ConvertTo-Json -InputObject $result -Compress -Depth 5`
  return JSON.parse(stdout) as SetGuestIpResult
}

/**
 * Gives the adapter back what it had before {@link setGuestIp}, through the guest's integration
 * services, which need no account. Does nothing where the guest has another address by now; warns where
 * it cannot be reached.
 */
export async function undoSetGuestIp(result: SetGuestIpResult, ps = powershell): Promise<void> {
  if (!result.changed || result.before === undefined) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $before = $result.before
    $namespace = 'root/virtualization/v2'
    $address = ([string]$result.guestIp).Split('/')[0]
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm) { return }
    $adapter = Get-VMNetworkAdapter -VM $vm | Where-Object { [string]$_.Id -eq $result.adapter }
    if ($null -eq $adapter) { return }
    $had = if ($before.dhcp) { 'DHCP' } else { @($before.addresses) -join ', ' }
    $left = "The guest in ""$($vm.Name)"" keeps $address on ""$($adapter.Name)"", where it had $($had):"
    if ([string]$vm.State -ne 'Running') { Write-Warning "$left it is $($vm.State), and only a guest that runs can be told"; return }
    $part = [string]$adapter.Id -replace '^Microsoft:', ''
    function settings {
      foreach ($one in @(Get-CimInstance -Namespace $namespace -ClassName Msvm_GuestNetworkAdapterConfiguration)) {
        if (([string]$one.InstanceID).EndsWith($part, 'OrdinalIgnoreCase')) { $one }
      }
    }
    $settings = settings
    if (@($settings.IPAddresses | Where-Object { $_ }).Count -eq 0) { Write-Warning "$left its integration services do not answer"; return }
    if (@($settings.IPAddresses) -notcontains $address -or $settings.DHCPEnabled) { return }
    function property($name, $type, $values) {
      $inner = -join @($values | Where-Object { $_ } | ForEach-Object { "<VALUE>$([Security.SecurityElement]::Escape([string]$_))</VALUE>" })
      if ($type -ne 'array') { return "<PROPERTY NAME=""$name"" TYPE=""$type"">$inner</PROPERTY>" }
      "<PROPERTY.ARRAY NAME=""$name"" TYPE=""string""><VALUE.ARRAY>$inner</VALUE.ARRAY></PROPERTY.ARRAY>"
    }
    $text = '<INSTANCE CLASSNAME="Msvm_GuestNetworkAdapterConfiguration">' + (property InstanceID string $settings.InstanceID) + (property ProtocolIFType uint16 4096) + (property DHCPEnabled boolean ([string][bool]$before.dhcp).ToUpperInvariant()) +
      (property IPAddresses array $before.addresses) + (property Subnets array $before.masks) + (property DefaultGateways array $before.gateways) + (property DNSServers array $before.dns) + '</INSTANCE>'
    $system = Get-CimInstance -Namespace $namespace -ClassName Msvm_ComputerSystem -Filter "Name='$([string]$vm.Id)'"
    $manager = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemManagementService
    $answer = Invoke-CimMethod -InputObject $manager -MethodName SetGuestNetworkAdapterConfiguration -Arguments @{ ComputerSystem = $system; NetworkConfiguration = [string[]]@($text) }
    $code = [long]$answer.ReturnValue
    if ($code -eq 4096) {
      $clock = [Diagnostics.Stopwatch]::StartNew()
      for ($job = Get-CimInstance -InputObject $answer.Job; [int]$job.JobState -lt 7 -and $clock.Elapsed.TotalSeconds -lt 60; $job = Get-CimInstance -InputObject $answer.Job) { Start-Sleep -Milliseconds 100 }
      $code = if ([int]$job.JobState -eq 7) { 0 } else { 32768 }
    }
    if ($code -ne 0) { Write-Warning "$left Hyper-V refused it ($code)" }`
}

/** Refuses what no host needs to be asked about. */
function check(options: SetGuestIpOptions): { address?: string; length?: number } {
  const { vm, switch: switchName, name, guestIp, pin = false, gateway = 'auto', dns = [] } = options
  for (const [what, text] of [['VM', vm], ['switch', switchName], ['adapter', name]] as const) {
    // deno-lint-ignore no-control-regex -- these are what is refused
    if (text === undefined || (text.trim() !== '' && !/[\u0000-\u001f\u007f]/.test(text))) continue
    throw new TypeError(
      `Cannot use ${JSON.stringify(text)} as the name of the ${what}: it is not empty and has no ` +
        'control characters. Run: Get-VMNetworkAdapter -All',
    )
  }
  const { timeout = 30 } = options
  if (!(timeout >= 0 && timeout <= 3600)) {
    throw new RangeError(
      `Cannot wait ${timeout} seconds for the guest: it is 0 to 3600. Run again with --timeout 30`,
    )
  }
  for (const address of [...(gateway === 'auto' || gateway === 'none' ? [] : [gateway]), ...dns]) {
    if (isAddress(address)) continue
    throw new TypeError(
      `Cannot use ${JSON.stringify(address)} as a gateway or DNS server: it is no IPv4 address. ` +
        'Example: --gateway 192.168.56.1',
    )
  }
  if (pin) {
    if (guestIp === undefined) return {}
    throw new TypeError(
      'Cannot fix the guest’s address and give it another. Run again with --pin or --guest-ip alone',
    )
  }
  if (guestIp === undefined) {
    throw new TypeError(
      'Cannot tell which address the guest is to have. Run again with --guest-ip 192.168.56.191, ' +
        'or --pin for the one that it has',
    )
  }
  const [address = '', bits, ...more] = guestIp.split('/')
  const length = bits === undefined ? undefined : Number(bits)
  const first = Number(address.split('.')[0])
  const whole = bits === undefined ||
    (`${length}` === bits && Number(bits) >= 8 && Number(bits) <= 30)
  if (
    !isAddress(address) || !whole || more.length || first === 0 || first === 127 || first >= 224
  ) {
    throw new TypeError(
      `Cannot use the guest’s address ${
        JSON.stringify(guestIp)
      }: it is an IPv4 address, with a prefix ` +
        'length from 8 to 30 or without. Run again with for example: --guest-ip 192.168.56.191',
    )
  }
  return { address, ...(length !== undefined && { length }) }
}

function isAddress(text: string): boolean {
  const parts = text.split('.')
  // no leading zeros: some read 010 as 8
  return parts.length === 4 &&
    parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)
}

/** Options of a command for the account of the guest. {@link readCredential} reads them. */
export const credentialOptions: Record<'user' | 'credential', Option> = {
  user: { type: 'string', describe: 'An administrator of the guest, for PowerShell Direct' },
  credential: {
    type: 'string',
    describe:
      'Where its password comes from: prompt, stdin, env:NAME, or manager:TARGET (Windows’ ' +
      'Credential Manager on the host, which has the user too) [default: prompt]',
  },
}

/** The account that a command line names. Its password is on no command line. */
export async function readCredential(
  { user, credential }: { user?: string | undefined; credential?: string | undefined },
): Promise<GuestCredential | undefined> {
  if (user === undefined && credential === undefined) return undefined
  const [, way, named] = /^(prompt|stdin|env|manager)(?::(.+))?$/s.exec(credential ?? 'prompt') ??
    []
  const takesName = way === 'env' || way === 'manager'
  if (way === undefined || takesName === (named === undefined)) {
    throw new TypeError(
      `Cannot take a password from ${
        JSON.stringify(credential)
      }: it is prompt, stdin, env:NAME or ` +
        'manager:TARGET. Example: --credential env:GUEST_PASSWORD',
    )
  }
  if (way === 'manager') {
    if (user === undefined) return { target: named as string }
    throw new TypeError(
      'Cannot use --user with a credential of the Credential Manager, which has the user. Leave out --user',
    )
  }
  if (!user) {
    throw new TypeError('Cannot sign in to the guest: no user is named. Add --user Administrator')
  }
  const password = way === 'env'
    ? fromEnvironment(named as string)
    : way === 'stdin'
    ? await fromStandardInput()
    : await ask(user)
  if (password === '') {
    throw new TypeError(
      `Cannot sign in to the guest as "${user}": the password is empty, and PowerShell Direct takes ` +
        'none that is. Give the account a password, or run again without --user',
    )
  }
  return { user, password: new Secret(password) }
}

function fromEnvironment(name: string): string {
  const value = process.env[name]
  if (value === undefined) {
    throw new Error(
      `Cannot take the password from the environment: there is no variable ${
        JSON.stringify(name)
      }. ` +
        'Set it, or run again with --credential prompt',
    )
  }
  delete process.env[name] // programs that are started from here on do not have it
  return value
}

async function fromStandardInput(): Promise<string> {
  let text = ''
  for await (const part of process.stdin.setEncoding('utf8')) text += part
  return text.replace(/\r?\n$/, '')
}

async function ask(user: string): Promise<string> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) {
    throw new Error(
      `Cannot ask for the password of "${user}": there is no terminal. ` +
        'Run again with --credential env:NAME or --credential stdin',
    )
  }
  const { password } = await import('@inquirer/prompts')
  // the answer of the command alone is on standard output
  return await password({ message: `Password of ${user} in the guest` }, { output: process.stderr })
}

await hostCommand(
  import.meta,
  'Give the guest in a VM a fixed address, or fix the one that it has',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    switch: { type: 'string', describe: 'The adapter’s switch', example: 'Static-NAT' },
    name: { type: 'string', describe: 'The adapter’s name, where several are on the switch' },
    guestIp: {
      type: 'string',
      describe: 'The address, with a prefix length or with the host’s there',
      example: '192.168.56.191',
    },
    pin: { type: 'boolean', describe: 'Fix the address that the guest has now' },
    gateway: {
      type: 'string',
      describe: 'auto, none or an address [default: auto, the host where it is the only way out]',
    },
    dns: { type: 'string', array: true, describe: 'DNS servers [default: the host’s]' },
    via: {
      choices: ['auto', 'direct', 'kvp', 'print'],
      describe: 'PowerShell Direct, the integration services, or commands to type [default: auto]',
    },
    ...credentialOptions,
    timeout: { type: 'number', describe: 'Seconds to wait for the guest [default: 30]' },
    dryRun,
  },
  async (
    { user, credential, ...options }: Omit<SetGuestIpOptions, 'credential'> & {
      user?: string
      credential?: string
    },
    ps,
  ) => {
    check(options)
    const account = await readCredential({ user, credential })
    return await setGuestIp({ ...options, ...(account && { credential: account }) }, ps)
  },
  undoSetGuestIp,
)
