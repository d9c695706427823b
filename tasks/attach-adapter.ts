#!/usr/bin/env zx
/** Give a Hyper-V VM a network adapter by name: its switch, its MAC address, its VLAN and what it may do. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface AttachAdapterOptions {
  /** The VM's name. */
  vm: string
  /**
   * The switch's name. `Default Switch` is the one that Windows makes, whatever Windows calls it.
   * @default a new adapter is not connected, one that is there stays where it is
   */
  switch?: string | undefined
  /** The adapter's name. @default the switch's, or `Network Adapter` without a switch */
  name?: string | undefined
  /**
   * Its address, e.g. `08-00-27-AA-BB-CC`, `08:00:27:aa:bb:cc`, `0800.27aa.bbcc` or `080027AABBCC`.
   * @default Hyper-V gives a new adapter one at its first start; one that is there keeps what it has
   */
  mac?: string | undefined
  /**
   * Whether frames may leave with other MAC addresses than its own, as those of VMs that run bridged
   * inside the VM do. @default as it is; off for a new one
   */
  macSpoofing?: boolean | undefined
  /** Whether a DHCP server in the guest is kept from answering others. @default as it is; off for a new one */
  dhcpGuard?: boolean | undefined
  /** Whether the guest is told the adapter's name, where its system can show it. @default as it is; off for a new one */
  deviceNaming?: boolean | undefined
  /** The VLAN that its frames are in, 1 to 4094; 0 for none. @default as it is; none for a new one */
  vlan?: number | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** What of an adapter is set besides switch and address; a field is there when it was asked for, or changed. */
interface AdapterSettings {
  macSpoofing?: boolean
  dhcpGuard?: boolean
  deviceNaming?: boolean
  /** 0: none. */
  vlan?: number
}

export interface AttachAdapterResult extends AdapterSettings {
  changed: boolean
  /** The VM's id. */
  id: string
  vm: string
  /** The adapter's id, by which the undo finds it again; null when a dry run found no such adapter. */
  adapter: string | null
  name: string
  /** The switch's name; null when not connected. */
  switch: string | null
  /** 12 hexadecimal digits; null when Hyper-V chooses. */
  mac: string | null
  /** What an adapter that was there had. Absent when it was made, or nothing changed. */
  before?: {
    switch: string | null
    /** Null when not connected. */
    switchId: string | null
    /** Null when Hyper-V chose it. */
    mac: string | null
    /** Its trunk, where it was one. */
    trunk?: { native: number; allowed: string }
  } & AdapterSettings
}

/**
 * Makes the adapter, or connects the one of that name and gives it the address.
 *
 * A MAC address changes only while the VM is off, and an adapter is added to a running VM only in
 * generation 2 (learn.microsoft.com/windows-server/virtualization/hyper-v/plan; assumptions for the
 * exact states). An address that another VM's adapter or the host has is refused, for two of them on
 * one network take each other's frames; and so is one that the source VM has while it runs: the host hears it
 * on the switch's network, or its VirtualBox bridges it, which is looked at for an external switch.
 */
export async function attachAdapter(
  options: AttachAdapterOptions,
  ps = powershell,
): Promise<AttachAdapterResult> {
  const { vm, switch: switchName, name = switchName ?? 'Network Adapter', mac } = options
  const { macSpoofing, dhcpGuard, deviceNaming, vlan, dryRun = false } = options
  refuseName('VM', vm)
  refuseName('adapter', name)
  if (switchName !== undefined) refuseName('switch', switchName)
  const address = mac === undefined ? undefined : macAddress(name, mac)
  if (vlan !== undefined && !(Number.isInteger(vlan) && vlan >= 0 && vlan <= 4094)) {
    throw new RangeError(
      `Cannot put the adapter "${name}" into the VLAN ${vlan}: it is 1 to 4094, or 0 for none. ` +
        'Run again with for example: --vlan 20',
    )
  }
  const { stdout } = await ps`
    $name = ${vm}
    $adapterName = ${name}
    $switchName = ${switchName}
    $mac = ${address}
    $macSpoofing = ${macSpoofing}
    $dhcpGuard = ${dhcpGuard}
    $deviceNaming = ${deviceNaming}
    $vlan = ${vlan}
    $dryRun = ${dryRun}
    $cannot = "Cannot attach the adapter ""$adapterName"" to ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))

    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) {
      throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM"
    }
    $vm = $found[0]
    $state = [string]$vm.State
    $switch = $null
    if ($null -ne $switchName) {
      $switches = @(Get-VMSwitch | Where-Object { $_.Name.Equals($switchName, 'OrdinalIgnoreCase') })
      # its name is translated, its id is not
      if ($switches.Count -eq 0 -and $switchName.Equals('Default Switch', 'OrdinalIgnoreCase')) {
        $switches = @(Get-VMSwitch | Where-Object { [string]$_.Id -eq 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444' })
      }
      if ($switches.Count -eq 0) { throw "$cannot there is no switch ""$switchName"". Run: Get-VMSwitch" }
      if ($switches.Count -gt 1) {
        throw "$cannot $($switches.Count) switches are named ""$switchName"", with the ids $(@($switches | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VMSwitch"
      }
      $switch = $switches[0]
    }
    $adapters = @(Get-VMNetworkAdapter -VM $vm)
    $named = @($adapters | Where-Object { $_.Name.Equals($adapterName, 'OrdinalIgnoreCase') })
    if ($named.Count -gt 1) {
      throw "$cannot it has $($named.Count) adapters of that name. Run: Get-VMNetworkAdapter -VMName '$typed' | Select-Object -First 1 | Rename-VMNetworkAdapter -NewName 'another name'"
    }
    $adapter = $named | Select-Object -First 1
    if ($null -ne $mac) {
      $twins = @(Get-VMNetworkAdapter -All | Where-Object { $_.MacAddress -eq $mac -and [string]$_.Id -ne [string]$adapter.Id })
      if ($twins.Count -gt 0) {
        $owner = if ($twins[0].IsManagementOs) { 'the host' } else { "the VM ""$($twins[0].VMName)""" }
        throw "$cannot $owner has the MAC address $mac already. Run: Get-VMNetworkAdapter -All | Where-Object MacAddress -EQ $mac"
      }
    }

    $result = [ordered]@{ changed = $true; id = [string]$vm.Id; vm = $vm.Name; adapter = $null; name = $adapterName; switch = $null; mac = $mac }
    if ($switch) { $result.switch = $switch.Name }
    $connect = $null -ne $switch
    $readdress = $null -ne $mac
    # what is asked for besides, by the names that Hyper-V has for it
    $names = @{ macSpoofing = 'MacAddressSpoofing'; dhcpGuard = 'DhcpGuard'; deviceNaming = 'DeviceNaming' }
    $wanted = [ordered]@{}
    if ($null -ne $macSpoofing) { $wanted.macSpoofing = $macSpoofing }
    if ($null -ne $dhcpGuard) { $wanted.dhcpGuard = $dhcpGuard }
    if ($null -ne $deviceNaming) { $wanted.deviceNaming = $deviceNaming }
    foreach ($key in $wanted.Keys) { $result[$key] = $wanted[$key] }
    if ($null -ne $vlan) { $result.vlan = $vlan }
    $set = [ordered]@{}
    $tag = $vlan
    $was = $null
    if ($adapter) {
      $before = [ordered]@{ switch = $null; switchId = $null; mac = $null }
      if ($adapter.SwitchName) { $before.switch = [string]$adapter.SwitchName; $before.switchId = [string]$adapter.SwitchId }
      if (-not $adapter.DynamicMacAddressEnabled) { $before.mac = [string]$adapter.MacAddress }
      $connect = $connect -and [string]$switch.Id -ne $before.switchId
      $readdress = $readdress -and $mac -ne $before.mac
      $result.adapter = [string]$adapter.Id
      $result.name = $adapter.Name
      if ($null -eq $switch) { $result.switch = $before.switch }
      if ($null -eq $mac) { $result.mac = $before.mac }
      foreach ($key in $wanted.Keys) {
        $is = [string]$adapter.($names[$key]) -eq 'On'
        if ($is -ne $wanted[$key]) { $set[$key] = $wanted[$key]; $before[$key] = $is }
      }
      if ($null -ne $vlan) {
        $was = Get-VMNetworkAdapterVlan -VMNetworkAdapter $adapter
        $mode = [string]$was.OperationMode
        if ($mode -notin 'Untagged', 'Access', 'Trunk') { throw "$cannot its VLANs are $mode, which is not undone once changed. Run: Set-VMNetworkAdapterVlan -VMName '$typed' -VMNetworkAdapterName with -Untagged" }
        $number = if ($mode -eq 'Access') { [int]$was.AccessVlanId } else { 0 }
        if ($mode -ne 'Trunk' -and $number -eq $vlan) { $tag = $null }
        elseif ($mode -eq 'Trunk') { $before.trunk = [ordered]@{ native = [int]$was.NativeVlanId; allowed = [string]$was.AllowedVlanIdListString } }
        else { $before.vlan = $number }
      }
      $result.changed = $connect -or $readdress -or $set.Count -gt 0 -or $null -ne $tag
      if ($result.changed) { $result.before = $before }
      if ($readdress -and $state -ne 'Off') {
        throw "$cannot the VM is $state, and a MAC address changes only while it is off. Run: Stop-VM -Name '$typed'"
      }
    } else {
      foreach ($key in $wanted.Keys) { if ($wanted[$key]) { $set[$key] = $true } }
      if ($tag -eq 0) { $tag = $null }
      if ($state -ne 'Off' -and -not ($state -eq 'Running' -and $vm.Generation -eq 2)) {
        throw "$cannot the VM is of generation $($vm.Generation) and $state, and takes a new adapter only while it is off. Run: Stop-VM -Name '$typed'"
      }
      if (@($adapters | Where-Object { -not $_.IsLegacy }).Count -ge 8) {
        throw "$cannot the VM has 8 adapters, and Hyper-V takes no more. Run: Get-VMNetworkAdapter -VMName '$typed', and Remove-VMNetworkAdapter for one it can spare"
      }
    }

    # the VM that this one comes from has the same address, and two of them on one network take each other's frames
    $on = if ($switch) { $switch } elseif ($adapter.SwitchName) { Get-VMSwitch | Where-Object { [string]$_.Id -eq [string]$adapter.SwitchId } }
    if ($null -ne $mac -and $on -and ($connect -or $readdress)) {
      $devices = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$on.Id } | ForEach-Object { [string]$_.DeviceId })
      $cards = @(Get-NetAdapter | Where-Object { [string]$_.DeviceID -in $devices } | ForEach-Object { $_.InterfaceIndex })
      $heard = @(Get-NetNeighbor | Where-Object { $_.InterfaceIndex -in $cards -and ([string]$_.LinkLayerAddress -replace '-') -eq $mac -and [string]$_.State -eq 'Reachable' } | ForEach-Object { [string]$_.IPAddress })
      if ($heard.Count -gt 0) { throw "$cannot a computer with the MAC address $mac answers at $($heard[0]) on the network of ""$($on.Name)"", the VM perhaps that this one comes from. Shut that down, and run again after a minute" }
      $box = ''
      if ($env:VBOX_MSI_INSTALL_PATH) { $box = [IO.Path]::Combine($env:VBOX_MSI_INSTALL_PATH, 'VBoxManage.exe') }
      if ($box -and [string]$on.SwitchType -eq 'External' -and [IO.File]::Exists($box)) {
        foreach ($line in @(& $box list runningvms)) {
          if ($line -notmatch '[{]([0-9a-f-]{36})[}] *$') { continue }
          $one = $Matches[1]
          # for programs, as other words are translated
          $told = @(& $box showvminfo $one --machinereadable)
          foreach ($slot in @($told | ForEach-Object { if ($_ -match '^macaddress([0-9]+)="([0-9A-Fa-f]{12})" *$' -and $Matches[2] -eq $mac) { $Matches[1] } })) {
            if (@($told -match "^nic$slot=.bridged").Count -gt 0) { throw "$cannot VirtualBox runs a VM with the MAC address $mac, bridged to a network. Run, and this again when it is off: VBoxManage controlvm $one acpipowerbutton" }
          }
        }
      }
    }

    function settings($adapter, $values) {
      $given = @{}
      foreach ($key in $values.Keys) { $given[$names[$key]] = if ($values[$key]) { 'On' } else { 'Off' } }
      if ($given.Count -gt 0) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter @given }
    }
    function tagged($adapter, $number) {
      if ($number -eq 0) { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Untagged } else { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Access -VlanId $number }
    }
    if ($result.changed -and -not $dryRun) {
      $made = $null
      $done = @()
      try {
        if ($null -eq $adapter) {
          $new = @{ Name = $adapterName; Passthru = $true }
          if ($readdress) { $new.StaticMacAddress = $mac }
          $made = Add-VMNetworkAdapter -VM $vm @new
          $adapter = $made
        } elseif ($readdress) {
          Set-VMNetworkAdapter -VMNetworkAdapter $adapter -StaticMacAddress $mac
        }
        # before it is connected, so that no frame leaves in another VLAN
        if ($set.Count -gt 0) { settings $adapter $set; $done += 'settings' }
        if ($null -ne $tag) { tagged $adapter $tag; $done += 'vlan' }
        if ($connect) { Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -VMSwitch $switch }
        $result.adapter = [string]$adapter.Id
      } catch {
        $failure = $_
        if ($made) { Remove-VMNetworkAdapter -VMNetworkAdapter $made }
        elseif ($readdress -and $null -eq $before.mac) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -DynamicMacAddress }
        elseif ($readdress) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -StaticMacAddress $before.mac }
        if (-not $made -and $done -contains 'vlan') {
          if ($before.trunk) { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Trunk -NativeVlanId $before.trunk.native -AllowedVlanIdList $before.trunk.allowed } else { tagged $adapter $before.vlan }
        }
        if (-not $made -and $done -contains 'settings') {
          $old = @{}
          foreach ($key in $set.Keys) { $old[$key] = $before[$key] }
          settings $adapter $old
        }
        throw $failure
      }
    }
    ConvertTo-Json -InputObject $result -Compress -Depth 5`
  return JSON.parse(stdout) as AttachAdapterResult
}

/** Removes the adapter that {@link attachAdapter} made, or gives it the switch and address it had. */
export async function undoAttachAdapter(
  result: AttachAdapterResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed || result.adapter === null) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $adapterId = $result.adapter
    $made = $null -eq $result.before
    $switchId = $result.before.switchId
    $switchName = $result.before.switch
    $mac = $result.before.mac
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm) { return }
    $adapter = Get-VMNetworkAdapter -VM $vm | Where-Object { [string]$_.Id -eq $adapterId }
    if ($null -eq $adapter) { return }
    $state = [string]$vm.State
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
    if ($made) {
      if ($state -ne 'Off' -and -not ($state -eq 'Running' -and $vm.Generation -eq 2)) {
        throw "Cannot remove the adapter ""$($adapter.Name)"" from ""$($vm.Name)"": the VM is of generation $($vm.Generation) and $state, and loses an adapter only while it is off. Run: Stop-VM -Name '$typed'"
      }
      Remove-VMNetworkAdapter -VMNetworkAdapter $adapter
      return
    }
    $has = $null
    if (-not $adapter.DynamicMacAddressEnabled) { $has = [string]$adapter.MacAddress }
    if ($has -ne $mac) {
      if ($state -ne 'Off') {
        throw "Cannot give the adapter ""$($adapter.Name)"" of ""$($vm.Name)"" its MAC address back: the VM is $state, and it changes only while the VM is off. Run: Stop-VM -Name '$typed'"
      }
      if ($null -eq $mac) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -DynamicMacAddress }
      else { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -StaticMacAddress $mac }
    }
    $given = @{}
    foreach ($pair in @('macSpoofing', 'MacAddressSpoofing'), @('dhcpGuard', 'DhcpGuard'), @('deviceNaming', 'DeviceNaming')) {
      $old = $result.before.($pair[0])
      if ($null -ne $old -and ([string]$adapter.($pair[1]) -eq 'On') -ne $old) { $given[$pair[1]] = if ($old) { 'On' } else { 'Off' } }
    }
    if ($given.Count -gt 0) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter @given }
    $trunk = $result.before.trunk
    $vlan = $result.before.vlan
    if ($trunk) { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Trunk -NativeVlanId $trunk.native -AllowedVlanIdList $trunk.allowed }
    elseif ($vlan) { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Access -VlanId $vlan }
    elseif ($null -ne $vlan) { Set-VMNetworkAdapterVlan -VMNetworkAdapter $adapter -Untagged }
    $connected = $null
    if ($adapter.SwitchName) { $connected = [string]$adapter.SwitchId }
    if ($connected -eq $switchId) { return }
    $switch = Get-VMSwitch | Where-Object { [string]$_.Id -eq $switchId }
    if ($switch) { Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -VMSwitch $switch; return }
    if ($connected) { Disconnect-VMNetworkAdapter -VMNetworkAdapter $adapter }
    if ($switchId) { Write-Warning "The switch ""$switchName"" is gone, so the adapter ""$($adapter.Name)"" of ""$($vm.Name)"" is not connected" }`
}

function refuseName(what: string, name: string): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (name.trim() !== '' && name.length <= 256 && !/[\u0000-\u001f\u007f]/.test(name)) return
  throw new TypeError(
    `Cannot use ${JSON.stringify(name)} as the name of the ${what}: ` +
      'it is 1 to 256 characters and no control characters. Run: Get-VMNetworkAdapter -All',
  )
}

/** The 12 digits of an address that an adapter can have. */
function macAddress(adapter: string, mac: string): string {
  const notations =
    /^[\da-f]{12}$|^[\da-f]{2}([:-])(?:[\da-f]{2}\1){4}[\da-f]{2}$|^(?:[\da-f]{4}\.){2}[\da-f]{4}$/i
  const cannot = `Cannot give the adapter "${adapter}" the MAC address ${JSON.stringify(mac)}:`
  if (!notations.test(mac)) {
    throw new TypeError(
      `${cannot} it is not 12 hexadecimal digits. Run again with --mac 08-00-27-AA-BB-CC`,
    )
  }
  const digits = mac.replace(/[^\da-f]/gi, '').toUpperCase()
  if (/^0+$/.test(digits)) {
    throw new RangeError(
      `${cannot} it is no address. Run again without --mac, and Hyper-V chooses one`,
    )
  }
  if (Number.parseInt(digits.slice(0, 2), 16) & 1) {
    throw new RangeError(
      `${cannot} it stands for many adapters (its first byte is odd). Run again with the address of one`,
    )
  }
  return digits
}

await hostCommand(
  import.meta,
  'Give a VM a network adapter, connect it and set its MAC address',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    switch: { type: 'string', describe: 'The switch’s name', example: 'Static-NAT' },
    name: { type: 'string', describe: 'The adapter’s name [default: the switch’s]' },
    mac: { type: 'string', describe: 'Its MAC address', example: '08-00-27-AA-BB-CC' },
    macSpoofing: { type: 'boolean', describe: 'Let VMs inside the VM be bridged through it' },
    dhcpGuard: { type: 'boolean', describe: 'Keep a DHCP server in the guest from answering' },
    deviceNaming: { type: 'boolean', describe: 'Tell the guest the adapter’s name' },
    vlan: { type: 'number', describe: 'Its VLAN, 1 to 4094; 0 for none' },
    dryRun,
  },
  attachAdapter,
  undoAttachAdapter,
)
