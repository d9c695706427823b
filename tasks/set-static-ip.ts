#!/usr/bin/env zx
/** Give the host a fixed address on an internal switch, and its VMs a NAT to the network outside. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface SetStaticIpOptions {
  /** Name of the internal switch. */
  switch: string
  /**
   * The host's address on it with the prefix length, e.g. `192.168.56.1/24`. `auto`: the one that it
   * has there, else the first address of the first network that is free, in this order: 192.168.56.0/24,
   * which is VirtualBox's, and on to 192.168.254.0/24, then 10.56.0.0/24 to 10.56.255.0/24; with NAT on a
   * host that has one, the first that is free in the NAT's network.
   */
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
  /** The NAT that the switch's network is in; on a dry run, as it would be afterwards. */
  nat: Nat | null
  before: {
    /** The host had the address. */
    address: boolean
    /** The host's adapter asked DHCP for an address. */
    dhcp: boolean
    nat: Nat | null
    /** The ports that the NAT forwarded, where it was removed. */
    forwards?: { protocol: string; port: number; guestIp: string; guestPort: number }[]
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
 * Refuses an address whose network overlaps with another of the host, naming one that is free: addresses
 * of all adapters (VPN, VirtualBox, Docker and WSL among them), routes, NATs, and the networks that
 * Windows' container service keeps for Docker and WSL while they do not run. Refuses a second address,
 * and a second NAT, which leaves both undefined (same page); a NAT whose network holds this one is used
 * as it is. Another's NAT is never removed.
 *
 * It needs no guard (see guard.ts): it takes internal switches only, which no way out of the host goes
 * through, and refuses every network that overlaps with one that the host reaches.
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
  const { address, length } = hostIp === 'auto' ? {} : cidr(hostIp)
  const { stdout } = await ps`
    $name = ${name}
    $address = ${address}
    $length = ${length}
    $nat = ${nat}
    $dryRun = ${dryRun}
    function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
    function numberOf($address) {
      $bytes = ([Net.IPAddress]$address).GetAddressBytes()
      [long]$bytes[0] * 16777216 + [long]$bytes[1] * 65536 + [long]$bytes[2] * 256 + $bytes[3]
    }
    function dotted($number) { @(16777216, 65536, 256, 1 | ForEach-Object { [Math]::Floor($number / $_) % 256 }) -join '.' }
    # the first and last number of a network, and whose it is
    function range($address, $length, $whose) {
      $size = [long][Math]::Pow(2, 32 - $length)
      $number = numberOf $address
      @{ first = $number - $number % $size; last = $number - $number % $size + $size - 1; whose = $whose; whole = $false }
    }
    function within($range, $others) { foreach ($other in $others) { if ($range.first -ge $other.first -and $range.last -le $other.last) { $other } } }
    function overlaps($range, $others) { foreach ($other in $others) { if ($range.first -le $other.last -and $other.first -le $range.last) { $other } } }
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
    $asked = if ($address) { "$address/$length" } else { 'an address' }
    $what = "Cannot give the host $asked on the switch ""$name"""

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
    $there = $false
    $manual = @($own | Where-Object { [string]$_.PrefixOrigin -eq 'Manual' })
    if (-not $address -and $manual.Count -gt 0) { $address = [string]$manual[0].IPAddress; $length = [int]$manual[0].PrefixLength }
    if ($address) { $there = @($own | Where-Object { $_.IPAddress -eq $address -and $_.PrefixLength -eq $length }).Count -gt 0 }
    if (-not $there -and $manual.Count -gt 0) {
      throw "$($what): it has $($manual[0].IPAddress)/$($manual[0].PrefixLength) there, which VMs may use as their gateway. Run: Remove-NetIPAddress -InterfaceIndex $index -IPAddress $($manual[0].IPAddress) -Confirm:$([char]36)false"
    }
    if ($nat -and -not (Get-Command -Name New-NetNat -ErrorAction Ignore)) { throw "Cannot make a NAT: Windows has no NetNat module, which came with Windows 10 1607. Run again with: --no-nat" }
    $nats = @()
    if (Get-Command -Name Get-NetNat -ErrorAction Ignore) { $nats = @(Get-NetNat | Where-Object { $_.InternalIPInterfaceAddressPrefix }) }
    $natRanges = @($nats | ForEach-Object {
        $start, $bits = $_.InternalIPInterfaceAddressPrefix.Split('/')
        $range = range $start $bits "the NAT ""$($_.Name)"" is for $($_.InternalIPInterfaceAddressPrefix)"
        $range.nat = $_
        $range
      })
    $taken = @($all | Where-Object { $_.InterfaceIndex -ne $index } | ForEach-Object { range $_.IPAddress $_.PrefixLength """$($_.InterfaceAlias)"" has $($_.IPAddress)/$($_.PrefixLength)" })
    # an address that is there already stays, whatever leads into its network since
    if (-not $there) {
      foreach ($route in @(Get-NetRoute | Where-Object { $_.InterfaceIndex -ne $index -and $_.DestinationPrefix -notmatch ':' })) {
        $start, $bits = $route.DestinationPrefix.Split('/')
        # what leads everywhere, in one route or as a VPN does in two, and what is no network
        if ([int]$bits -le 1 -or [int]$start.Split('.')[0] -ge 224 -or $start -like '127.*') { continue }
        $range = range $start $bits "a route to $($route.DestinationPrefix) leads to ""$($route.InterfaceAlias)"""
        # all private addresses of a kind is a VPN's word for the intranet, in which a network of one's own may be
        $range.whole = $route.DestinationPrefix -in '10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16'
        $taken += $range
      }
      if (Get-Command -Name Get-HnsNetwork -ErrorAction Ignore) {
        $networks = @()
        try { $networks = @(Get-HnsNetwork) } catch { Write-Warning "The networks of Docker and WSL are seen only while they run, for they cannot be read: $($_.Exception.Message)" }
        foreach ($kept in @($networks | Where-Object { $null -eq $vSwitch -or [string]$_.Id -ne [string]$vSwitch.Id })) {
          foreach ($subnet in @($kept.Subnets | Where-Object { $_.AddressPrefix -match '^[0-9.]+/[0-9]+$' })) {
            $start, $bits = $subnet.AddressPrefix.Split('/')
            $taken += range $start $bits "the network ""$($kept.Name)"" of Docker or WSL is $($subnet.AddressPrefix)"
          }
        }
      }
    }
    # the first free one of the networks that the documentation of hostIp lists
    function free {
      $candidates = @(56..254 | ForEach-Object { "192.168.$_.0" }) + @(0..255 | ForEach-Object { "10.56.$_.0" })
      $busy = $taken + $natRanges
      if ($nat -and $nats.Count -gt 0) {
        $start, $bits = $nats[0].InternalIPInterfaceAddressPrefix.Split('/')
        $candidates = @()
        if ([int]$bits -le 24) { $candidates = @(0..([Math]::Min(255, [Math]::Pow(2, 24 - $bits) - 1)) | ForEach-Object { dotted ((numberOf $start) + 256 * $_) }) }
        $busy = $taken
      }
      foreach ($pass in 'apart from every route', 'apart from whole routes') {
        foreach ($candidate in $candidates) {
          if (@(overlaps (range $candidate 24) $busy).Count -eq 0) { return $candidate -replace '0$', '1' }
        }
        $busy = @($busy | Where-Object { -not $_.whole })
      }
    }
    function alone($prefix) { throw "Cannot make a NAT for $($prefix): the NAT ""$($nats[0].Name)"" for $($nats[0].InternalIPInterfaceAddressPrefix) is there, and a host has one. Run again with an address in its network or with --no-nat, or if nothing needs it, run: Get-NetNat -Name $(quoted $nats[0].Name) | Remove-NetNat" }
    if (-not $address) {
      $address = free
      $length = 24
      if (-not $address -and $nat -and $nats.Count -gt 0) { alone 'a network of its own' }
      if (-not $address) { throw "$($what): no network of those that are tried is free. Run: Get-NetRoute -AddressFamily IPv4, and again with a network of your own: --host-ip 172.30.56.1/24" }
    }
    $wanted = range $address $length
    $prefix = "$(dotted $wanted.first)/$length"
    $what = "Cannot give the host $address/$length on the switch ""$name"""
    function another {
      $one = free
      if ($one) { "Run again with another network, for example: --host-ip $one/24" } else { 'Run again with another network: --host-ip' }
    }
    $conflict = @(overlaps $wanted @($taken | Where-Object { -not $_.whole }))[0]
    if ($conflict) { throw "$($what): $($conflict.whose), and the two networks overlap. $(another)" }
    $ours = @(within $wanted $natRanges)[0].nat
    if ($nat -and -not $ours -and $nats.Count -gt 0) { alone $prefix }
    $conflict = @(overlaps $wanted @($natRanges | Where-Object { $null -eq $ours -or $_.nat.Name -ne $ours.Name }))[0]
    if (-not $there -and $conflict) { throw "$($what): $($conflict.whose), and the two networks overlap. $(another)" }
    if ($nat -eq $false -and $ours -and -not $ours.Name.Equals($natName, 'OrdinalIgnoreCase')) {
      throw "Cannot remove the NAT for $($prefix): it is ""$($ours.Name)"" for $($ours.InternalIPInterfaceAddressPrefix), which something else made. Run, if nothing needs it: Get-NetNat -Name $(quoted $ours.Name) | Remove-NetNat"
    }

    $natBefore = $null
    if ($ours) { $natBefore = [ordered]@{ name = [string]$ours.Name; prefix = [string]$ours.InternalIPInterfaceAddressPrefix } }
    $natAfter = $natBefore
    if ($nat -and -not $ours) { $natAfter = [ordered]@{ name = $natName; prefix = $prefix } }
    if ($nat -eq $false) { $natAfter = $null }
    $before = [ordered]@{ address = $there; dhcp = $dhcp; nat = $natBefore }
    if ($nat -eq $false -and $ours) {
      # they go with it
      $before.forwards = @(Get-NetNatStaticMapping | Where-Object { [string]$_.NatName -eq [string]$ours.Name } | ForEach-Object { [ordered]@{ protocol = [string]$_.Protocol; port = [int]$_.ExternalPort; guestIp = [string]$_.InternalIPAddress; guestPort = [int]$_.InternalPort } })
    }
    $changed = -not $there -or ($nat -and -not $ours) -or ($nat -eq $false -and $null -ne $ours)
    if ($changed -and -not $dryRun) {
      try {
        if (-not $there) {
          $set = $null
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
        $id = $failure.FullyQualifiedErrorId
        # an adapter that is gone or not plugged in keeps its address, and is not shown with it (assumption)
        if ($id -match '^Windows System Error (87|5010),New-NetIPAddress$') { throw "$($what): Windows has that address already, on an adapter that is not there ($($Matches[1])). Run: Get-NetIPAddress -PolicyStore PersistentStore -IPAddress $address, or again with another network: --host-ip" }
        if ($id -match '^Windows System Error (87|5010),New-NetNat$') { throw "Cannot make a NAT for $($prefix): an address of the host or another NAT is in that network ($($Matches[1])). Run: Get-NetIPAddress, and again with another network: --host-ip" }
        throw $failure
      }
    }
    $answer = [ordered]@{ changed = [bool]$changed; id = $null; switch = $natName; hostIp = "$address/$length"; interfaceIndex = $index; nat = $natAfter; before = $before }
    if ($vSwitch) { $answer.id = [string]$vSwitch.Id }
    ConvertTo-Json -Compress -Depth 5 $answer`
  return JSON.parse(stdout) as SetStaticIpResult
}

/** Puts back what {@link setStaticIp} changed: the NAT first, then the address; a NAT with the ports that it forwarded. */
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
    if ($null -ne $removed -and @(Get-NetNat).Count -eq 0) {
      $null = New-NetNat -Name $removed -InternalIPInterfaceAddressPrefix $prefix
      foreach ($one in @($result.before.forwards | Where-Object { $_ })) {
        $null = Add-NetNatStaticMapping -NatName $removed -Protocol $one.protocol -ExternalIPAddress '0.0.0.0' -ExternalPort ([uint16]$one.port) -InternalIPAddress $one.guestIp -InternalPort ([uint16]$one.guestPort)
      }
    }`
}

/** The parts of a host address with its prefix length. */
function cidr(text: string): { address?: string; length?: number } {
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
  return { address, length }
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
      describe: 'The host’s address on it with the prefix length, or auto for one that is free',
      example: '192.168.56.1/24',
    },
    nat: {
      type: 'boolean',
      describe: 'Make a NAT; --no-nat removes the one made here [default: as it is]',
    },
    dryRun,
  },
  setStaticIp,
  undoSetStaticIp,
)
