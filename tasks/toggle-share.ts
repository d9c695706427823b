#!/usr/bin/env zx
/** Share an external switch's network adapter with the host, or leave it to the VMs. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface ToggleShareOptions {
  /** `on`, `off`, or `status` to only ask. */
  state: 'on' | 'off' | 'status'
  /** Name of the external switch. */
  switch: string
  /** What the host's adapter on the switch gets back with `on`. @default nothing: it asks DHCP */
  network?: HostNetwork | null | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** IPv4 settings that were given to the host's adapter by hand, and that go when it goes. */
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

export interface ToggleShareResult {
  changed: boolean
  /** The switch's id, by which the undo finds it again. */
  id: string
  switch: string
  /** The host uses the switch too; on a dry run, it would afterwards. */
  shared: boolean
  before: {
    shared: boolean
    /** The host's settings on the switch, where it was shared. */
    network: HostNetwork | null
  }
}

/**
 * Turns AllowManagementOS of an external switch on or off.
 *
 * Off removes the host's adapter `vEthernet (...)` with all its settings, and on makes a new one
 * (learn.microsoft.com/powershell/module/hyper-v/set-vmswitch). So the settings are in `before`;
 * {@link undoToggleShare} puts them back, and so does `on` with `network`. Nothing else keeps them:
 * a later run of the command alone brings the adapter up with DHCP. Not kept are IPv6, routes other
 * than the default one, the network profile, and DNS servers set by hand beside DHCP.
 */
export async function toggleShare(
  { state, switch: name, network = null, dryRun = false }: ToggleShareOptions,
  ps = powershell,
): Promise<ToggleShareResult> {
  if (!['on', 'off', 'status'].includes(state)) {
    throw new TypeError(`Cannot turn sharing "${state}": it takes on, off or status`)
  }
  // deno-lint-ignore no-control-regex
  if (name.trim() === '' || /[\u0000-\u001f\u007f]/.test(name)) {
    throw new TypeError(
      `Cannot share the switch ${JSON.stringify(name)}: ` +
        'a name is not empty and has no control characters. Run: Get-VMSwitch',
    )
  }
  return await share({ id: null, name, state, network, dryRun }, ps) as ToggleShareResult
}

/** Puts back what {@link toggleShare} changed, with the settings that the host had on the switch. */
export async function undoToggleShare(
  { changed, id, switch: name, before }: ToggleShareResult,
  ps = powershell,
): Promise<void> {
  if (!changed) return
  const state = before.shared ? 'on' : 'off'
  await share({ id, name, state, network: before.network, dryRun: false }, ps)
}

/** The switch is the one of that id, which may be gone by now, or without an id the one of that name. */
async function share(
  { id, name, state, network, dryRun }: {
    id: string | null
    name: string
    state: ToggleShareOptions['state']
    network: HostNetwork | null
    dryRun: boolean
  },
  ps: typeof powershell,
): Promise<ToggleShareResult | null> {
  const { addresses = [], gateways = [], dns = [], metric = null } = network ?? {}
  const { stdout } = await ps`
    $id = ${id}
    $name = ${name}
    $state = ${state}
    $addresses = ${addresses}
    $gateways = ${gateways}
    $dns = ${dns}
    $metric = ${metric}
    $dryRun = ${dryRun}
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
      $there = settings $index
      foreach ($address in @($kept.addresses | Where-Object { $_ -and $_ -notin $there.addresses })) {
        $part = $address.Split('/')
        $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $part[0] -PrefixLength ([byte]$part[1])
      }
      foreach ($gateway in @($kept.gateways | Where-Object { $_ -and $_ -notin $there.gateways })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $gateway }
      if (@($kept.dns).Count -gt 0 -and ($kept.dns -join ' ') -ne ($there.dns -join ' ')) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $kept.dns }
      if ($null -ne $kept.metric -and $kept.metric -ne $there.metric) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric $kept.metric }
    }

    $found = @(Get-VMSwitch | Where-Object { if ($null -ne $id) { [string]$_.Id -eq $id } else { $_.Name.Equals($name, 'OrdinalIgnoreCase') } })
    if ($null -ne $id -and $found.Count -eq 0) { 'null'; return }
    if ($found.Count -ne 1) { throw "Cannot share the switch ""$name"": $($found.Count) switches have that name. Run: Get-VMSwitch" }
    $vSwitch = $found[0]
    if ([string]$vSwitch.SwitchType -ne 'External') {
      throw "Cannot share the switch ""$name"": it is $($vSwitch.SwitchType), and only an external switch has a network adapter to share. Run: Get-VMSwitch -SwitchType External"
    }
    $was = [bool]$vSwitch.AllowManagementOS
    $shared = $was
    if ($state -ne 'status') { $shared = $state -eq 'on' }
    $before = [ordered]@{ shared = $was; network = $null }
    if ($was) {
      $ports = @(ports $vSwitch)
      if (-not $shared -and $ports.Count -gt 1) {
        throw "Cannot stop sharing the switch ""$name"": the host has $($ports.Count) adapters on it, and all would be removed: $(@($ports | ForEach-Object { $_.Name }) -join ', '). Run: Get-VMNetworkAdapter -ManagementOS, and Remove-VMNetworkAdapter for all but one"
      }
      $card = vEthernet $vSwitch
      if ($card) { $before.network = settings $card.InterfaceIndex }
    }
    if ($shared -ne $was -and -not $dryRun) {
      Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $shared
      if ($shared) {
        try {
          $card = $null
          for ($wait = 0; $wait -lt 120 -and $null -eq ($card = ready $vSwitch); $wait++) { Start-Sleep -Milliseconds 250 }
          if ($null -eq $card) { throw "Cannot share the switch ""$name"": the host's adapter on it did not appear within 30 seconds. Run: Get-NetAdapter -IncludeHidden" }
          restore $card.InterfaceIndex @{ addresses = $addresses; gateways = $gateways; dns = $dns; metric = $metric }
        } catch {
          Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $false
          throw
        }
      }
    }
    ConvertTo-Json -Compress -Depth 4 ([ordered]@{
      changed = $shared -ne $was
      id = [string]$vSwitch.Id
      switch = [string]$vSwitch.Name
      shared = $shared
      before = $before
    })`
  return JSON.parse(stdout) as ToggleShareResult | null
}

await hostCommand(
  import.meta,
  'Share an external switch’s network adapter with the host (on), or leave it to the VMs (off)',
  {
    state: {
      type: 'string',
      positional: true,
      demandOption: true,
      choices: ['on', 'off', 'status'],
      describe: 'on, off, or status to only ask',
      example: 'off',
    },
    switch: { type: 'string', demandOption: true, describe: 'The switch’s name', example: '桥接' },
    dryRun,
  },
  toggleShare,
)
