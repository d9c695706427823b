#!/usr/bin/env zx
/** Give the host a fixed address on an internal switch, and its VMs a NAT to the network outside. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface SetStaticIpOptions {
  /** Name of the internal switch. */
  switch: string
  /** The host's address on it with the prefix length, e.g. `192.168.56.1/24`. */
  hostIp: string
  /**
   * Whether the switch has NAT: true makes one, false removes the one this task made.
   * @default as it is
   */
  nat?: boolean | undefined
  /** The switch need not be there on a dry run. @default false */
  dryRun?: boolean | undefined
}

export interface SetStaticIpResult {
  changed: boolean
  /** The switch's id, by which the undo finds it again. Null on a dry run before there is one. */
  id: string | null
  switch: string
  /** E.g. `192.168.56.1/24`. */
  hostIp: string
  /** The host's adapter on the switch. Null on a dry run before there is one. */
  interfaceIndex: number | null
  /** The NAT for the switch's network; on a dry run, as it would be afterwards. */
  nat: Nat | null
  before: {
    /** The host had the address. */
    address: boolean
    /** The host's adapter asked DHCP for an address. */
    dhcp: boolean
    nat: Nat | null
  }
}

export interface Nat {
  name: string
  /** E.g. `192.168.56.0/24`. */
  prefix: string
}

/**
 * Sets the address on the switch's `vEthernet (...)` adapter, and makes the NAT, which hands out no
 * addresses: VMs take theirs in the same network, with the host's as gateway
 * (learn.microsoft.com/virtualization/hyper-v-on-windows/user-guide/setup-nat-network).
 *
 * Refuses an address that overlaps with another network of the host, a second address, and a second
 * NAT, which leaves both undefined (same page). Another's NAT is never removed.
 */
export async function setStaticIp(
  { switch: name, hostIp, nat, dryRun = false }: SetStaticIpOptions,
  ps = powershell,
): Promise<SetStaticIpResult> {
  // deno-lint-ignore no-control-regex
  if (name.trim() === '' || /[\u0000-\u001f\u007f]/.test(name)) {
    throw new TypeError(
      `Cannot set an address on the switch ${JSON.stringify(name)}: ` +
        'a name is not empty and has no control characters. Run: Get-VMSwitch',
    )
  }
  const { address, length, network } = cidr(hostIp)
  const { stdout } = await ps`
    $name = ${name}
    $address = ${address}
    $length = ${length}
    $network = ${network}
    $nat = ${nat}
    $dryRun = ${dryRun}
    function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
    function networkOf($address, $length) {
      $bytes = ([Net.IPAddress]$address).GetAddressBytes()
      $number = [long]$bytes[0] * 16777216 + [long]$bytes[1] * 65536 + [long]$bytes[2] * 256 + $bytes[3]
      $number - $number % [long][Math]::Pow(2, 32 - $length)
    }
    function vEthernet($vSwitch) {
      $ports = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$vSwitch.Id })
      # the adapter that Windows makes with the switch has its name; others were added by hand
      $port = @($ports | Sort-Object { $_.Name -ne $vSwitch.Name })[0]
      Get-NetAdapter | Where-Object { $port -and [string]$_.DeviceID -eq [string]$port.DeviceId }
    }
    # a new adapter takes addresses only once IPv4 is on it
    function ready($vSwitch) {
      $card = vEthernet $vSwitch
      if ($card -and @(Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex).Count -gt 0) { $card }
    }
    $what = "Cannot give the host $address/$length on the switch ""$name"""
    $prefix = "$network/$length"

    $found = @(Get-VMSwitch | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -gt 1) { throw "$($what): $($found.Count) switches have that name: $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VMSwitch -Id $($found[0].Id) | Rename-VMSwitch -NewName <another name>" }
    $vSwitch = $null
    if ($found.Count -eq 1) { $vSwitch = $found[0] }
    elseif (-not $dryRun) { throw "$($what): there is no such switch. Run: New-VMSwitch -Name $(quoted $name) -SwitchType Internal" }
    $card = $null
    $natName = $name
    if ($vSwitch) {
      $natName = [string]$vSwitch.Name
      # the Default Switch's name is translated, its id is not
      if ([string]$vSwitch.Id -eq 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444') { throw "$($what): it is the Default Switch, whose network Windows changes at every start. Run: New-VMSwitch -Name <another name> -SwitchType Internal" }
      if ([string]$vSwitch.SwitchType -ne 'Internal') { throw "$($what): it is $(([string]$vSwitch.SwitchType).ToLowerInvariant()), and only an internal switch has a network of its own. Run: New-VMSwitch -Name <another name> -SwitchType Internal" }
      for ($wait = 0; $wait -lt 120 -and $null -eq ($card = ready $vSwitch); $wait++) { Start-Sleep -Milliseconds 250 }
      if ($null -eq $card) { throw "$($what): the host's adapter on it did not appear within 30 seconds. Run: Get-NetAdapter -IncludeHidden" }
    }

    $index = $null
    $own = @()
    $dhcp = $true
    $all = @(Get-NetIPAddress -AddressFamily IPv4)
    if ($card) {
      $index = [int]$card.InterfaceIndex
      $own = @($all | Where-Object { $_.InterfaceIndex -eq $index })
      $dhcp = [string](Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index).Dhcp -eq 'Enabled'
    }
    $there = @($own | Where-Object { $_.IPAddress -eq $address -and $_.PrefixLength -eq $length }).Count -gt 0
    $manual = @($own | Where-Object { [string]$_.PrefixOrigin -eq 'Manual' })
    if (-not $there -and $manual.Count -gt 0) {
      throw "$($what): it has $($manual[0].IPAddress)/$($manual[0].PrefixLength) there, which VMs may use as their gateway. Run: Remove-NetIPAddress -InterfaceIndex $index -IPAddress $($manual[0].IPAddress) -Confirm:$([char]36)false"
    }
    foreach ($other in @($all | Where-Object { $_.InterfaceIndex -ne $index })) {
      $least = [Math]::Min([int]$other.PrefixLength, [int]$length)
      if ((networkOf $other.IPAddress $least) -eq (networkOf $address $least)) {
        throw "$($what): ""$($other.InterfaceAlias)"" has $($other.IPAddress)/$($other.PrefixLength), and the two networks overlap. Run again with another network: --host-ip"
      }
    }
    $nats = @()
    if ($null -ne $nat) {
      if ($nat -and -not (Get-Command -Name New-NetNat -ErrorAction Ignore)) { throw "Cannot make a NAT for $($prefix): Windows has no NetNat module, which came with Windows 10 1607. Run again with: --no-nat" }
      if (Get-Command -Name Get-NetNat -ErrorAction Ignore) { $nats = @(Get-NetNat) }
    }
    $ours = @($nats | Where-Object { $_.InternalIPInterfaceAddressPrefix -eq $prefix })[0]
    $others = @($nats | Where-Object { $_.InternalIPInterfaceAddressPrefix -ne $prefix })
    if ($nat -and $others.Count -gt 0) {
      throw "Cannot make a NAT for $($prefix): the NAT ""$($others[0].Name)"" for $($others[0].InternalIPInterfaceAddressPrefix) is there, and a host has one. Run again with an address in its network or with --no-nat, or if nothing needs it, run: Get-NetNat -Name $(quoted $others[0].Name) | Remove-NetNat"
    }
    if ($nat -eq $false -and $ours -and -not $ours.Name.Equals($natName, 'OrdinalIgnoreCase')) {
      throw "Cannot remove the NAT for $($prefix): it is ""$($ours.Name)"", which something else made. Run, if nothing needs it: Get-NetNat -Name $(quoted $ours.Name) | Remove-NetNat"
    }

    $natBefore = $null
    if ($ours) { $natBefore = [ordered]@{ name = [string]$ours.Name; prefix = $prefix } }
    $natAfter = $natBefore
    if ($nat -and -not $ours) { $natAfter = [ordered]@{ name = $natName; prefix = $prefix } }
    if ($nat -eq $false) { $natAfter = $null }
    $before = [ordered]@{ address = $there; dhcp = $dhcp; nat = $natBefore }
    $changed = -not $there -or ($nat -and -not $ours) -or ($nat -eq $false -and $null -ne $ours)
    if ($changed -and -not $dryRun) {
      try {
        if (-not $there) {
          $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $address -PrefixLength ([byte]$length)
          # an address works only after Windows has asked the network whether another has it
          for ($wait = 0; $wait -lt 60; $wait++) {
            $set = Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.IPAddress -eq $address } | Select-Object -First 1
            if ($set -and [string]$set.AddressState -ne 'Tentative') { break }
            Start-Sleep -Milliseconds 250
          }
          if ($set -and [string]$set.AddressState -eq 'Duplicate') { throw "$($what): another computer on the switch has that address. Run again with another address: --host-ip" }
          if (-not $set -or [string]$set.AddressState -ne 'Preferred') { throw "$($what): Windows did not take it into use within 15 seconds. Run: Get-NetAdapter -InterfaceIndex $index" }
        }
        if ($nat -and -not $ours) { $null = New-NetNat -Name $natName -InternalIPInterfaceAddressPrefix $prefix }
        if ($nat -eq $false -and $ours) { $ours | Remove-NetNat -Confirm:$false }
      } catch {
        $failure = $_
        if (-not $there) {
          Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.IPAddress -eq $address } | Remove-NetIPAddress -Confirm:$false
          if ($dhcp) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Enabled }
        }
        if ($failure.FullyQualifiedErrorId -eq 'Windows System Error 87,New-NetNat') { throw "Cannot make a NAT for $($prefix): an address of the host or another NAT is in that network (87). Run: Get-NetIPAddress, and again with another network: --host-ip" }
        throw $failure
      }
    }
    $answer = [ordered]@{ changed = [bool]$changed; id = $null; switch = $natName; hostIp = "$address/$length"; interfaceIndex = $index; nat = $natAfter; before = $before }
    if ($vSwitch) { $answer.id = [string]$vSwitch.Id }
    ConvertTo-Json -Compress -Depth 4 $answer`
  return JSON.parse(stdout) as SetStaticIpResult
}

/** Puts back what {@link setStaticIp} changed: the NAT first, then the address. */
export async function undoSetStaticIp(
  result: SetStaticIpResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed || result.id === null) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $address = $null
    if (-not $result.before.address) { $address = $result.hostIp.Split('/')[0] }
    $dhcp = $result.before.dhcp
    $made = $null
    $removed = $null
    if ($null -eq $result.before.nat) { $made = $result.nat.name }
    elseif ($null -eq $result.nat) { $removed = $result.before.nat.name }
    $prefix = if ($null -ne $made) { $result.nat.prefix } else { $result.before.nat.prefix }
    if ($null -ne $made) { Get-NetNat | Where-Object { $_.Name.Equals($made, 'OrdinalIgnoreCase') -and $_.InternalIPInterfaceAddressPrefix -eq $prefix } | Remove-NetNat -Confirm:$false }
    if ($null -ne $address) {
      $ports = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq $id } | ForEach-Object { [string]$_.DeviceId })
      $cards = @(Get-NetAdapter | Where-Object { [string]$_.DeviceID -in $ports } | ForEach-Object { $_.InterfaceIndex })
      foreach ($set in @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -in $cards -and $_.IPAddress -eq $address })) {
        $set | Remove-NetIPAddress -Confirm:$false
        if ($dhcp) { Set-NetIPInterface -InterfaceIndex $set.InterfaceIndex -AddressFamily IPv4 -Dhcp Enabled }
      }
    }
    if ($null -ne $removed -and @(Get-NetNat).Count -eq 0) { $null = New-NetNat -Name $removed -InternalIPInterfaceAddressPrefix $prefix }`
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

await hostCommand(
  import.meta,
  'Give the host a fixed address on an internal switch, and its VMs a NAT to the network outside',
  {
    switch: {
      type: 'string',
      demandOption: true,
      describe: 'The internal switch’s name',
      example: 'Static-NAT',
    },
    hostIp: {
      type: 'string',
      demandOption: true,
      describe: 'The host’s address on it with the prefix length',
      example: '192.168.56.1/24',
    },
    nat: {
      type: 'boolean',
      describe: 'Make a NAT; --no-nat removes the one made here [default: as it is]',
    },
    dryRun,
  },
  setStaticIp,
)
