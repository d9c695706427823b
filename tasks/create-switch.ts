#!/usr/bin/env zx
/** Make a virtual switch: to the network outside, between host and VMs, or among VMs alone. */
import { guarded, type GuardOptions, guardOptions, readGuard } from './guard.ts'
import { dryRun, hostCommand, powershell } from './task.ts'

export interface CreateSwitchOptions extends GuardOptions {
  /** The switch's name. */
  switch: string
  /**
   * `external` reaches the network that a network adapter of the host is on, `internal` joins VMs
   * and host, `private` joins VMs.
   */
  type: 'external' | 'internal' | 'private'
  /** The network adapter of an external switch, by name or description. Needed to make one. */
  adapter?: string | undefined
  /** Whether the host uses an external switch too. @default true for a new one, else as it is */
  share?: boolean | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface CreateSwitchResult {
  changed: boolean
  /** The switch's id, by which the undo finds it again. Null on a dry run that would make it. */
  id: string | null
  switch: string
  type: CreateSwitchOptions['type']
  /** Description of its network adapter, for an external switch. */
  adapter: string | null
  /** The host is on the switch; on a dry run, it would be afterwards. */
  shared: boolean
  /** What is worth knowing and no obstacle. */
  notes: string[]
  before: {
    /** There was such a switch. */
    exists: boolean
    shared: boolean
    /** The host's settings on the network adapter or on the switch, where they are at stake. */
    network: HostNetwork | null
  }
}

/** IPv4 settings that were given to an adapter of the host by hand. */
export interface HostNetwork {
  /** The address comes by DHCP; then there is nothing else here but `metric`. */
  dhcp: boolean
  /** E.g. `192.168.1.10/24`. */
  addresses: string[]
  gateways: string[]
  dns: string[]
  /** Interface metric; null is automatic. */
  metric: number | null
}

/**
 * Makes the switch, or takes the one of that name when it fits; of that one only sharing changes.
 *
 * An external switch takes the network adapter over: the host's settings move to a new adapter
 * `vEthernet (...)`, or are gone while the switch is not shared. DNS servers have been lost on the
 * way (MicrosoftDocs/Virtualization-Documentation#1960), so what was set by hand is put back where
 * it did not arrive. When making the switch fails, it is removed again. An external switch is made,
 * shared and taken from the host under the guard (see guard.ts).
 */
export async function createSwitch(
  { switch: name, type, adapter, share, dryRun = false, ...guard }: CreateSwitchOptions,
  ps = powershell,
): Promise<CreateSwitchResult> {
  if (!['external', 'internal', 'private'].includes(type)) {
    throw new TypeError(
      `Cannot make a switch of type "${type}": it is external, internal or private`,
    )
  }
  for (const text of [name, adapter ?? 'none']) {
    // deno-lint-ignore no-control-regex
    if (text.trim() === '' || /[\u0000-\u001f\u007f]/.test(text)) {
      throw new TypeError(
        `Cannot make the switch ${JSON.stringify(name)}: ` +
          'a name is not empty and has no control characters',
      )
    }
  }
  if (type !== 'external' && (adapter !== undefined || share !== undefined)) {
    throw new TypeError(
      `Cannot make the switch "${name}": ${adapter === undefined ? 'share' : 'adapter'} is for ` +
        `an external switch, and this one is ${type}. Run again with: --type external`,
    )
  }
  const run = (ps: typeof powershell, dryRun: boolean) =>
    make({ name, type, adapter, share, guard: guard.guard ?? true, dryRun }, ps)
  // the others take nothing from the host
  if (type !== 'external') return await run(ps, dryRun)
  const subject = `the switch "${name}"`
  return await guarded({ subject, run, undo: undoCreateSwitch }, guard, dryRun, ps)
}

async function make(
  { name, type, adapter, share, guard, dryRun }: {
    name: string
    type: CreateSwitchOptions['type']
    adapter: string | undefined
    share: boolean | undefined
    guard: boolean
    dryRun: boolean
  },
  ps: typeof powershell,
): Promise<CreateSwitchResult> {
  const { stdout } = await ps`
    $name = ${name}
    $type = ${type}
    $adapter = ${adapter}
    $share = ${share}
    $guard = ${guard}
    $dryRun = ${dryRun}
    function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
    function named($name) { Get-VMSwitch | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') } }
    function ports($vSwitch) { Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$vSwitch.Id } }
    function vEthernet($vSwitch) {
      $devices = @(ports $vSwitch | ForEach-Object { [string]$_.DeviceId })
      Get-NetAdapter | Where-Object { [string]$_.DeviceID -in $devices } | Select-Object -First 1
    }
    # a new adapter takes addresses only once IPv4 is on it
    function ready($vSwitch) {
      $card = vEthernet $vSwitch
      if ($card -and @(Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex).Count -gt 0) { $card }
    }
    function settings($index) {
      $ip = Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index
      $kept = [ordered]@{ dhcp = $null -eq $ip -or [string]$ip.Dhcp -eq 'Enabled'; addresses = @(); gateways = @(); dns = @(); metric = $null }
      if ($ip -and [string]$ip.AutomaticMetric -eq 'Disabled') { $kept.metric = [int]$ip.InterfaceMetric }
      if (-not $kept.dhcp) {
        $kept.addresses = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object { [string]$_.IPAddress + '/' + $_.PrefixLength })
        $kept.gateways = @(Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' } | ForEach-Object { [string]$_.NextHop })
        $kept.dns = @(Get-DnsClientServerAddress -InterfaceIndex $index -AddressFamily IPv4 | ForEach-Object { $_.ServerAddresses } | Where-Object { $_ })
      }
      $kept
    }
    function restore($index, $kept) {
      # Windows moves settings by itself, a moment later
      for ($wait = 0; $wait -lt 20 -and @($kept.addresses | Where-Object { $_ -notin (settings $index).addresses }).Count -gt 0; $wait++) { Start-Sleep -Milliseconds 250 }
      $there = settings $index
      foreach ($address in @($kept.addresses | Where-Object { $_ -notin $there.addresses })) {
        $part = $address.Split('/')
        $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $part[0] -PrefixLength ([byte]$part[1])
      }
      foreach ($gateway in @($kept.gateways | Where-Object { $_ -notin $there.gateways })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $gateway }
      if ($kept.dns.Count -gt 0 -and ($kept.dns -join ' ') -ne ($there.dns -join ' ')) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $kept.dns }
      if ($null -ne $kept.metric -and $kept.metric -ne $there.metric) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric $kept.metric }
    }

    $found = @(named $name)
    if ($found.Count -gt 1) { throw "Cannot take the switch ""$name"": $($found.Count) switches have that name: $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VMSwitch -Id $($found[0].Id) | Rename-VMSwitch -NewName <another name>" }
    $vSwitch = $null
    if ($found.Count -eq 1) { $vSwitch = $found[0] }
    if ($vSwitch) {
      # the Default Switch's name is translated, its id is not
      if ([string]$vSwitch.Id -eq 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444') { throw "Cannot take the switch ""$name"": it is the Default Switch, which Windows changes by itself. Choose another name" }
      if ([string]$vSwitch.SwitchType -ne $type) { throw "Cannot make the $type switch ""$name"": there is one of that name that is $(([string]$vSwitch.SwitchType).ToLowerInvariant()). Choose another name, or run: Get-VMSwitch -Id $($vSwitch.Id) | Rename-VMSwitch -NewName <another name>" }
    }

    $notes = @()
    $card = $null
    if ($null -ne $adapter) {
      $cards = @(Get-NetAdapter | Where-Object { $_.ComponentID -ne 'vms_mp' }) # Hyper-V's own
      $wanted = @($cards | Where-Object { $_.Name.Equals($adapter, 'OrdinalIgnoreCase') })
      if ($wanted.Count -eq 0) { $wanted = @($cards | Where-Object { $_.InterfaceDescription.Equals($adapter, 'OrdinalIgnoreCase') }) }
      if ($wanted.Count -ne 1) { throw "Cannot make the switch ""$name"" on ""$adapter"": no network adapter has that name, among $(@($cards | ForEach-Object { '""' + $_.Name + '"" (' + $_.InterfaceDescription + ')' }) -join ', '). Run: Get-NetAdapter" }
      $card = $wanted[0]
      # on Wi-Fi a bridge stands between adapter and switch; it has the adapter's MAC address
      $same = @($cards | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -or ($card.MacAddress -and $_.MacAddress -eq $card.MacAddress) } | ForEach-Object { [string]$_.InterfaceDescription })
    }
    function onCard($vSwitch) { @($vSwitch.NetAdapterInterfaceDescriptions) + $vSwitch.NetAdapterInterfaceDescription | Where-Object { $_ -in $same } }
    if ($vSwitch -and $card -and -not (onCard $vSwitch)) {
      throw "Cannot move the switch ""$name"" to ""$($card.Name)"": it is on ""$($vSwitch.NetAdapterInterfaceDescription)"". Choose another name or that adapter, or run: Get-VMSwitch -Id $($vSwitch.Id) | Rename-VMSwitch -NewName <another name>"
    }
    if (-not $vSwitch -and $type -eq 'external') {
      if (-not $card) { throw "Cannot make the external switch ""$name"": it needs a network adapter. Run Get-NetAdapter for their names, and again with: --adapter" }
      $taker = @(Get-VMSwitch | Where-Object { onCard $_ })
      if ($taker.Count -gt 0) { throw "Cannot make the switch ""$name"" on ""$($card.Name)"": the switch ""$($taker[0].Name)"" has that adapter, and an adapter serves one switch. Run again with: --switch $(quoted $taker[0].Name)" }
      if (@(Get-NetAdapterBinding | Where-Object { $_.ComponentID -eq 'vms_pp' -and $_.Enabled -and $_.InterfaceDescription -in $same }).Count -gt 0) {
        throw "Cannot make the switch ""$name"" on ""$($card.Name)"": the adapter is bound to a switch that is not there. Run: Disable-NetAdapterBinding -ComponentID vms_pp -Name $(quoted $card.Name)"
      }
      if ([string]$card.PhysicalMediaType -eq 'Native 802.11' -or $card.NdisPhysicalMedium -eq 9) {
        $notes += "The adapter ""$($card.Name)"" is Wi-Fi: access points take frames from one MAC address only, so Hyper-V puts a bridge in between, and some networks refuse the VM a second address"
      }
      if ([string]$card.Status -ne 'Up') { $notes += "The adapter ""$($card.Name)"" is not connected ($($card.Status))" }
    }

    $was = [bool]($vSwitch -and $vSwitch.AllowManagementOS)
    $shared = $type -eq 'internal'
    if ($type -eq 'external') {
      $shared = $true
      if ($vSwitch) { $shared = $was }
      if ($null -ne $share) { $shared = $share }
    }
    $changed = -not $vSwitch -or ($type -eq 'external' -and $shared -ne $was)
    $before = [ordered]@{ exists = $null -ne $vSwitch; shared = $was; network = $null }
    if ($changed -and $type -eq 'external') {
      $hostCard = $card
      if ($vSwitch) { $hostCard = vEthernet $vSwitch }
      if ($was -and @(ports $vSwitch).Count -gt 1) {
        throw "Cannot stop sharing the switch ""$name"": the host has $(@(ports $vSwitch).Count) adapters on it, and all would be removed. Run: Get-VMNetworkAdapter -ManagementOS, and Remove-VMNetworkAdapter for all but one"
      }
      if ($hostCard) {
        $before.network = settings $hostCard.InterfaceIndex
        if (-not $guard) {
          # whoever came by this adapter alone would be cut off, for seconds or for good
          $own = @(Get-NetIPAddress | Where-Object InterfaceIndex -eq $hostCard.InterfaceIndex | ForEach-Object { ([string]$_.IPAddress).Split('%')[0] })
          $by = @(([string]$env:SSH_CONNECTION).Split(' ')[2]) + @(Get-NetTCPConnection | Where-Object { [string]$_.State -eq 'Established' -and $_.LocalPort -in 22, 3389 } | ForEach-Object { [string]$_.LocalAddress })
          $cut = @($by | Where-Object { $_ } | ForEach-Object { $_.Split('%')[0] } | Where-Object { $_ -in $own } | Select-Object -First 1)
          $inside = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { $port = $_; @(Get-VMSwitch | Where-Object { [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }).Count -eq 0 } | ForEach-Object { [string]$_.DeviceId })
          $outside = @(Get-NetAdapter | Where-Object { [string]$_.Status -eq 'Up' -and [string]$_.DeviceID -notin $inside -and $_.InterfaceIndex -ne $hostCard.InterfaceIndex } | ForEach-Object { $_.InterfaceIndex })
          $ways = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -in $outside -and [string]$_.IPAddress -notlike '169.254.*' -and [string]$_.AddressState -eq 'Preferred' })
          if ($cut.Count -gt 0 -and $ways.Count -eq 0) {
            throw "Cannot change the switch ""$name"": somebody is connected to the host by its address $($cut[0]) on ""$($hostCard.Name)"", and there is no other way in. Run it at the host itself, or under the guard: without --no-guard, or from elsewhere with --host ssh://HOST"
          }
        }
        if (-not $shared) {
          $routes = @(Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' })
          $others = @($routes | Where-Object { $_.InterfaceIndex -ne $hostCard.InterfaceIndex })
          if ($routes.Count -gt 0 -and $others.Count -eq 0) { $notes += "The host is offline while the switch ""$name"" is not shared: ""$($hostCard.Name)"" is its only way out" }
        }
      }
    }

    if ($changed -and -not $dryRun) {
      try {
        if ($vSwitch) { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $shared }
        elseif ($type -eq 'external') { $vSwitch = New-VMSwitch -Name $name -NetAdapterInterfaceDescription $card.InterfaceDescription -AllowManagementOS $shared }
        else { $vSwitch = New-VMSwitch -Name $name -SwitchType $type }
        if ($shared) {
          $hostCard = $null
          for ($wait = 0; $wait -lt 120 -and $null -eq ($hostCard = ready $vSwitch); $wait++) { Start-Sleep -Milliseconds 250 }
          if ($null -eq $hostCard) { throw "Cannot make the switch ""$name"": the host's adapter on it did not appear within 30 seconds. Run: Get-NetAdapter -IncludeHidden" }
          if ($before.network) { restore $hostCard.InterfaceIndex $before.network }
        }
      } catch {
        $failure = $_
        if ($before.exists) { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $was }
        else {
          named $name | ForEach-Object { Remove-VMSwitch -VMSwitch $_ -Force } # one may be left half made
          if ($before.network) { restore $card.InterfaceIndex $before.network }
        }
        if ($failure.FullyQualifiedErrorId -like 'ObjectNotFound,*NewVMSwitch' -or $failure.Exception.HResult -eq -2147023728) {
          throw "Cannot make the switch ""$name"" on ""$($card.Name)"": Windows could not bind the adapter to it (0x80070490), as happens with some Wi-Fi drivers. Update the driver and restart Windows, or do without the adapter. Run again with: --type internal, and then set-static-ip with: --nat"
        }
        if ($failure.FullyQualifiedErrorId -like 'ObjectInUse,*NewVMSwitch') {
          throw "Cannot make the switch ""$name"" on ""$($card.Name)"": the adapter serves another switch or bridge. Run: Get-VMSwitch"
        }
        throw $failure
      }
    }
    $answer = [ordered]@{ changed = $changed; id = $null; switch = $name; type = $type; adapter = $null; shared = $shared; notes = $notes; before = $before }
    if ($card) { $answer.adapter = [string]$card.InterfaceDescription }
    if ($vSwitch) {
      $answer.id = [string]$vSwitch.Id
      $answer.switch = [string]$vSwitch.Name
      if ($type -eq 'external' -and -not $card) { $answer.adapter = [string]$vSwitch.NetAdapterInterfaceDescription }
    }
    ConvertTo-Json -Compress -Depth 4 $answer`
  return JSON.parse(stdout) as CreateSwitchResult
}

/**
 * Removes the switch that {@link createSwitch} made, or puts its sharing back, and gives the host's
 * adapter the settings that it had. Refuses while a VM is on the switch.
 */
export async function undoCreateSwitch(
  result: CreateSwitchResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed || result.id === null) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $adapter = $result.adapter
    $existed = $result.before.exists
    $shared = $result.before.shared
    $network = $result.before.network
    $addresses = @($network.addresses | Where-Object { $_ })
    $gateways = @($network.gateways | Where-Object { $_ })
    $dns = @($network.dns | Where-Object { $_ })
    $metric = $network.metric
    # the guard began before there was an id, and when no switch had the name
    $vSwitch = Get-VMSwitch | Where-Object { if ($id) { [string]$_.Id -eq $id } else { -not $existed -and [string]$_.SwitchType -eq $result.type -and $_.Name.Equals($result.switch, 'OrdinalIgnoreCase') } } | Select-Object -First 1
    $id = [string]$vSwitch.Id
    if ($null -eq $vSwitch -or ($existed -and [bool]$vSwitch.AllowManagementOS -eq $shared)) { return }
    $nics = @(Get-VMNetworkAdapter -All | Where-Object { [string]$_.SwitchId -eq $id })
    if ($existed) { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $shared }
    else {
      $users = @($nics | Where-Object { -not $_.IsManagementOs } | ForEach-Object { '"' + $_.VMName + '"' })
      if ($users.Count -gt 0) { throw "Cannot remove the switch ""$($vSwitch.Name)"": the VM $($users -join ', ') is on it. Run: Get-VMNetworkAdapter -All | Where-Object SwitchId -eq $id | Disconnect-VMNetworkAdapter" }
      Remove-VMSwitch -VMSwitch $vSwitch -Force
    }
    if ($addresses.Count + $gateways.Count + $dns.Count -eq 0 -and $null -eq $metric) { return }

    # the adapter that has the settings now comes up, and gets them from Windows, a moment later
    for ($wait = 0; $wait -lt 120; $wait++) {
      $devices = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq $id } | ForEach-Object { [string]$_.DeviceId })
      $card = Get-NetAdapter | Where-Object { if ($existed) { [string]$_.DeviceID -in $devices } else { $_.InterfaceDescription -eq $adapter } } | Select-Object -First 1
      $there = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $card -and $_.InterfaceIndex -eq $card.InterfaceIndex } | ForEach-Object { [string]$_.IPAddress + '/' + $_.PrefixLength })
      $missing = @($addresses | Where-Object { $_ -notin $there })
      if ($card -and ($missing.Count -eq 0 -or $wait -ge 20)) { break }
      Start-Sleep -Milliseconds 250
    }
    if ($null -eq $card) { throw "Cannot put back the host's addresses $($addresses -join ', '): the network adapter ""$adapter"" is gone. Run: Get-NetAdapter -IncludeHidden" }
    $index = $card.InterfaceIndex
    foreach ($address in $missing) {
      $part = $address.Split('/')
      $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $part[0] -PrefixLength ([byte]$part[1])
    }
    $hops = @(Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' } | ForEach-Object { [string]$_.NextHop })
    foreach ($gateway in @($gateways | Where-Object { $_ -notin $hops })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $gateway }
    if ($dns.Count -gt 0) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $dns }
    if ($null -ne $metric) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric $metric }`
}

await hostCommand(
  import.meta,
  'Make a virtual switch: external (on a network adapter), internal (VMs and host) or private',
  {
    switch: { type: 'string', demandOption: true, describe: 'The switch’s name', example: '桥接' },
    type: {
      type: 'string',
      demandOption: true,
      choices: ['external', 'internal', 'private'],
      describe: 'What it reaches',
      example: 'external',
    },
    adapter: {
      type: 'string',
      describe: 'Network adapter of an external switch, by name or description',
      example: 'Wi-Fi',
    },
    share: {
      type: 'boolean',
      describe: 'The host uses an external switch too [default: true for a new one, else as it is]',
    },
    ...guardOptions,
    dryRun,
  },
  (options: Omit<CreateSwitchOptions, 'revertAfter'> & { revertAfter?: string }, ps) =>
    createSwitch(readGuard(options), ps),
)
