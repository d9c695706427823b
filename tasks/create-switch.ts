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
  /**
   * The network adapter of an external switch: its name, its description, its interface index, or
   * `auto`, the wired one by which the host reaches everything else. Needed to make a switch. One that
   * is there moves to the adapter, and its VMs with it; with `auto` it stays where it is.
   */
  adapter?: string | undefined
  /** Whether the host uses an external switch too. @default true for a new one, else as it is */
  share?: boolean | undefined
  /** VLAN of the host's own adapter on the switch, 1 to 4094; 0 for none. @default as it is, which is none for a new one */
  vlan?: number | undefined
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
    /** Description of the network adapter that the switch was on, where that is another now; empty for one that was gone. */
    adapter: string | null
    /** The host's settings on the switch while it was on that one. */
    there: HostNetwork | null
    /** The host's VLAN, where that is at stake. */
    vlan: { mode: 'Untagged' } | { mode: 'Access'; id: number } | {
      mode: 'Trunk'
      id: number
      allowed: string
    } | null
  }
}

/** What was set by hand on an adapter of the host. */
export interface HostNetwork {
  /** IPv4 comes by DHCP; then only what was set beside it is here. */
  dhcp: boolean
  /** E.g. `192.168.1.10/24` or `fd00::10/64`. */
  addresses: string[]
  /** Routes set by hand, the default gateway among them. */
  routes: { to: string; by: string; metric: number }[]
  /** Servers of IPv4 and IPv6. */
  dns: string[]
  /** Interface metric; null is automatic. */
  metric: number | null
  /** The network that Windows knew there, where that was private. */
  profile: string | null
}

/**
 * Makes the switch, or takes the one of that name when it fits; of that one its network adapter, sharing
 * and the host's VLAN change, in place: its id stays, and so do its VMs.
 *
 * An external switch takes the network adapter over: the host's settings move to a new adapter
 * `vEthernet (...)`, or are gone while the switch is not shared. DNS servers have been lost on the
 * way (MicrosoftDocs/Virtualization-Documentation#1960), so what was set by hand is put back where
 * it did not arrive, and a private network is private again. On Wi-Fi large send offload is turned off,
 * by which uploads crawl there (microsoft/Windows-Containers#218).
 * When making the switch fails, it is removed again. An external switch is made, shared and taken from
 * the host under the guard (see guard.ts).
 */
export async function createSwitch(
  { switch: name, type, adapter, share, vlan, dryRun = false, ...guard }: CreateSwitchOptions,
  ps = powershell,
): Promise<CreateSwitchResult> {
  if (!['external', 'internal', 'private'].includes(type)) {
    throw new TypeError(
      `Cannot make a switch of type "${type}": it is external, internal or private. ` +
        'Run again with for example: --type internal',
    )
  }
  for (const text of [name, adapter ?? 'none']) {
    // deno-lint-ignore no-control-regex
    if (text.trim() === '' || /[\u0000-\u001f\u007f]/.test(text)) {
      throw new TypeError(
        `Cannot make the switch ${JSON.stringify(name)}: ` +
          'a name is not empty and has no control characters. Run again with another: ' +
          (text === name ? '--switch' : '--adapter'),
      )
    }
  }
  if (type !== 'external' && (adapter !== undefined || share !== undefined)) {
    throw new TypeError(
      `Cannot make the switch "${name}": ${adapter === undefined ? 'share' : 'adapter'} is for ` +
        `an external switch, and this one is ${type}. Run again with: --type external`,
    )
  }
  if (vlan !== undefined && (type === 'private' || share === false)) {
    throw new TypeError(
      `Cannot set the host's VLAN on the switch "${name}": the host is not on it. Run again without: --vlan`,
    )
  }
  if (vlan !== undefined && !(Number.isInteger(vlan) && vlan >= 0 && vlan <= 4094)) {
    throw new RangeError(
      `Cannot set the host's VLAN on the switch "${name}" to ${vlan}: it is 1 to 4094, or 0 for none. ` +
        'Run again with for example: --vlan 20',
    )
  }
  const wanted = { done: null, redo: false, name, type, adapter, share, vlan }
  const run = (ps: typeof powershell, dryRun: boolean) =>
    make({ ...wanted, guard: guard.guard ?? true, dryRun }, ps)
  // the others take nothing from the host
  if (type !== 'external') return await run(ps, dryRun)
  const subject = `the switch "${name}"`
  const undo = (done: CreateSwitchResult, ps: typeof powershell) =>
    back(done, { redo: false, guard: true, dryRun: false }, ps)
  return await guarded({ subject, run, undo }, guard, dryRun, ps)
}

/**
 * With `done` it takes back what that result says was done; the switch may be gone by now. With `redo`
 * too it does that again, where the guard of an undo takes it back.
 */
async function make(
  { done, redo, name, type, adapter, share, vlan, guard, dryRun }: {
    done: string | null
    redo: boolean
    name: string | null
    type: CreateSwitchOptions['type'] | null
    adapter: string | undefined
    share: boolean | undefined
    vlan: number | undefined
    guard: boolean
    dryRun: boolean
  },
  ps: typeof powershell,
): Promise<CreateSwitchResult> {
  const { stdout } = await ps`
    $done = ${done}
    $redo = ${redo}
    $name = ${name}
    $type = ${type}
    $adapter = ${adapter}
    $share = ${share}
    $vlan = ${vlan}
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
      $kept = [ordered]@{ dhcp = $null -eq $ip -or [string]$ip.Dhcp -eq 'Enabled'; addresses = @(); routes = @(); dns = @(); metric = $null; profile = $null }
      if ($ip -and [string]$ip.AutomaticMetric -eq 'Disabled') { $kept.metric = [int]$ip.InterfaceMetric }
      $kept.addresses = @(Get-NetIPAddress | Where-Object { $_.InterfaceIndex -eq $index -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object { [string]$_.IPAddress + '/' + $_.PrefixLength })
      $protocols = @('Tcpip', 'Tcpip6')
      $ways = @()
      if (-not $kept.dhcp) {
        $ways = @(ways $index)
        $kept.dns = @(Get-DnsClientServerAddress -InterfaceIndex $index -AddressFamily IPv4 | ForEach-Object { $_.ServerAddresses } | Where-Object { $_ })
        $protocols = @('Tcpip6')
      }
      # what DHCP and routers gave is in the active store alone (assumption)
      $hops = @($ways | ForEach-Object { [string]$_.NextHop })
      $stored = @(Get-NetRoute -PolicyStore PersistentStore -ErrorAction SilentlyContinue | Where-Object { $_.InterfaceIndex -eq $index -and ([string]$_.NextHop -match '[1-9].*[.]' -or ([string]$_.NextHop -like '*:*' -and [string]$_.NextHop -ne '::')) -and -not ($_.DestinationPrefix -eq '0.0.0.0/0' -and [string]$_.NextHop -in $hops) })
      $kept.routes = @($ways + $stored | ForEach-Object { [ordered]@{ to = [string]$_.DestinationPrefix; by = [string]$_.NextHop; metric = [int]$_.RouteMetric } })
      $card = Get-NetAdapter | Where-Object { $_.InterfaceIndex -eq $index }
      foreach ($protocol in $protocols) {
        # servers set by hand beside what the network gives; a host without this key has none (assumption: the key)
        try {
          $key = ('HKEY_LOCAL_MACHINE', 'SYSTEM', 'CurrentControlSet', 'Services', $protocol, 'Parameters', 'Interfaces', [string]$card.InterfaceGuid) -join [char]92
          $kept.dns += @([string]([type]'Microsoft.Win32.Registry')::GetValue($key, 'NameServer', '') -split '[, ]' | Where-Object { $_ })
        } catch { Write-Verbose $_ }
      }
      $kept.profile = Get-NetConnectionProfile | Where-Object { $_.InterfaceIndex -eq $index -and [string]$_.NetworkCategory -eq 'Private' } | Select-Object -First 1 | ForEach-Object { [string]$_.Name }
      $kept
    }
    # a host may have no route at all, for which a filter of Get-NetRoute would fail
    function ways($index) { Get-NetRoute | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' } }
    function restore($index, $kept) {
      # Windows moves settings by itself, a moment later
      for ($wait = 0; $wait -lt 20 -and @($kept.addresses | Where-Object { $_ -and $_ -notin (settings $index).addresses }).Count -gt 0; $wait++) { Start-Sleep -Milliseconds 250 }
      $there = settings $index
      foreach ($address in @($kept.addresses | Where-Object { $_ -and $_ -notin $there.addresses })) {
        $part = $address.Split('/')
        $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $part[0] -PrefixLength ([byte]$part[1])
      }
      # a journal of before has the default gateways apart, and no metric of theirs
      $hops = @(ways $index | ForEach-Object { [string]$_.NextHop })
      foreach ($gateway in @($kept.gateways | Where-Object { $_ -and $_ -notin $hops })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $gateway }
      foreach ($route in @($kept.routes | Where-Object { $_ })) {
        $known = @(Get-NetRoute | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq $route.to -and [string]$_.NextHop -eq $route.by })
        if ($known.Count -eq 0) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix $route.to -NextHop $route.by -RouteMetric ([uint16]$route.metric) }
      }
      $dns = @($kept.dns | Where-Object { $_ })
      if ($dns.Count -gt 0 -and ($dns -join ' ') -ne ($there.dns -join ' ')) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $dns }
      if ($null -ne $kept.metric -and $kept.metric -ne $there.metric) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric $kept.metric }
      if (-not $kept.profile) { return }
      # only if it is the same network again, which Windows finds out in a while
      for ($wait = 0; $wait -lt 20; $wait++) {
        $network = Get-NetConnectionProfile | Where-Object { $_.InterfaceIndex -eq $index -and $_.Name -eq $kept.profile }
        if ($network) {
          if ([string]$network.NetworkCategory -eq 'Public') { Set-NetConnectionProfile -InterfaceIndex $index -NetworkCategory Private }
          return
        }
        Start-Sleep -Milliseconds 250
      }
    }
    function appear($vSwitch) {
      for ($wait = 0; $wait -lt 120; $wait++) {
        $card = ready $vSwitch
        if ($card) { return $card }
        Start-Sleep -Milliseconds 250
      }
      throw "Cannot make the switch ""$($vSwitch.Name)"": the host's adapter on it did not appear within 30 seconds. Run: Get-NetAdapter -IncludeHidden"
    }
    # the network adapter with this description, once Windows shows it again
    function back($description) {
      for ($wait = 0; $wait -lt 120; $wait++) {
        $card = Get-NetAdapter | Where-Object { $_.InterfaceDescription -eq $description } | Select-Object -First 1
        if ($card) { return $card }
        Start-Sleep -Milliseconds 250
      }
      throw "Cannot put back the host's settings: the network adapter ""$description"" is gone. Run: Get-NetAdapter -IncludeHidden"
    }
    # back onto the adapter that it was on; where that was gone the one that it is on is the host's again, and its VMs
    # stay on it
    function onto($vSwitch, $description, $shares) {
      if ($description) { Set-VMSwitch -VMSwitch $vSwitch -NetAdapterInterfaceDescription $description -AllowManagementOS $shares; return }
      $type = 'Private'
      if ($shares) { $type = 'Internal' }
      Set-VMSwitch -VMSwitch $vSwitch -SwitchType $type
    }
    function vlanOf($port) {
      $found = Get-VMNetworkAdapterVlan -VMNetworkAdapter $port
      switch ([string]$found.OperationMode) {
        'Access' { [ordered]@{ mode = 'Access'; id = [int]$found.AccessVlanId } }
        'Trunk' { [ordered]@{ mode = 'Trunk'; id = [int]$found.NativeVlanId; allowed = [string]$found.AllowedVlanIdListString } }
        default { [ordered]@{ mode = 'Untagged' } }
      }
    }
    function setVlan($vSwitch, $wanted) {
      $port = @(ports $vSwitch)[0]
      switch ($wanted.mode) {
        'Access' { Set-VMNetworkAdapterVlan -VMNetworkAdapter $port -Access -VlanId $wanted.id }
        'Trunk' { Set-VMNetworkAdapterVlan -VMNetworkAdapter $port -Trunk -NativeVlanId $wanted.id -AllowedVlanIdList $wanted.allowed }
        'Untagged' { Set-VMNetworkAdapterVlan -VMNetworkAdapter $port -Untagged }
      }
    }
    function wireless($card) { [string]$card.PhysicalMediaType -eq 'Native 802.11' -or $card.NdisPhysicalMedium -eq 9 }
    # the adapters a switch is on: Hyper-V may number those of one make otherwise than Windows does in their
    # descriptions (dsccommunity/HyperVDsc#217), and an old one says no GUIDs (microsoft/SDN#337)
    function tops($vSwitch, $all) {
      $ids = @($vSwitch.NetAdapterInterfaceGuid | Where-Object { $_ } | ForEach-Object { '{' + [string]$_ + '}' })
      $names = @($vSwitch.NetAdapterInterfaceDescriptions) + $vSwitch.NetAdapterInterfaceDescription
      $known = @($all | Where-Object { [string]$_.InterfaceGuid -in $ids })
      if ($known.Count -eq 0) { $known = @($all | Where-Object { $_.InterfaceDescription -in $names }) }
      $known
    }
    # the network adapter of Windows under a switch; on Wi-Fi a bridge stands between, with the adapter's MAC address
    function under($vSwitch) {
      $all = @(Get-NetAdapter | Where-Object { $_.ComponentID -ne 'vms_mp' })
      $top = tops $vSwitch $all | Select-Object -First 1
      $below = $all | Where-Object { $top -and $_.HardwareInterface -and $_.MacAddress -eq $top.MacAddress } | Select-Object -First 1
      if ($below) { $below } else { $top }
    }
    # whoever came by these adapters alone would be cut off, for seconds or for good
    function keepIn($name, $hostCards, $stays) {
      if ($guard) { return }
      $touched = @($hostCards | ForEach-Object { $_.InterfaceIndex })
      $mine = @(Get-NetIPAddress | Where-Object { $_.InterfaceIndex -in $touched } | ForEach-Object { ([string]$_.IPAddress).Split('%')[0] })
      $by = @(([string]$env:SSH_CONNECTION).Split(' ')[2]) + @(Get-NetTCPConnection | Where-Object { [string]$_.State -eq 'Established' -and $_.LocalPort -in 22, 3389 } | ForEach-Object { [string]$_.LocalAddress })
      $cut = @($by | Where-Object { $_ } | ForEach-Object { $_.Split('%')[0] } | Where-Object { $_ -in $mine } | Select-Object -First 1)
      if ($cut.Count -eq 0) { return }
      $inside = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { $port = $_; @(Get-VMSwitch | Where-Object { [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }).Count -eq 0 } | ForEach-Object { [string]$_.DeviceId })
      $outside = @(Get-NetAdapter | Where-Object { [string]$_.Status -eq 'Up' -and [string]$_.DeviceID -notin $inside -and $_.InterfaceIndex -notin $touched } | ForEach-Object { $_.InterfaceIndex })
      $ways = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -in $outside -and [string]$_.IPAddress -notlike '169.254.*' -and [string]$_.AddressState -eq 'Preferred' })
      if ($ways.Count -gt 0) { return }
      $then = ''
      if ($stays) { $then = ', or under the guard: without --no-guard, or from elsewhere with --host ssh://HOST' }
      throw "Cannot change the switch ""$name"": somebody is connected to the host by its address $($cut[0]) on ""$(@($hostCards)[0].Name)"", and there is no other way in. Run it at the host itself$then"
    }
    # uploads crawl with it behind a switch on Wi-Fi
    function offload($card) {
      $lso = Get-NetAdapterLso | Where-Object { $_.Name -eq $card.Name }
      $on = [bool]($lso -and ($lso.IPv4Enabled -or $lso.IPv6Enabled))
      if ($on) { Disable-NetAdapterLso -InterfaceDescription $card.InterfaceDescription -IPv4 -IPv6 }
      $on
    }

    if ($done) {
      $result = ConvertFrom-Json $done
      $undone = $null
      if ($redo) { $undone = $result; $result = $undone.undone }
      $before = $result.before
      $all = @(Get-VMSwitch)
      # the guard began before there was an id, and when no switch had the name; one that it made again has another
      $vSwitch = $all | Where-Object { [string]$_.Id -eq $result.id } | Select-Object -First 1
      $again = "vbox-to-hyperv made it again, for $($result.id)"
      if (-not $vSwitch -and -not $before.exists) {
        $vSwitch = $all | Where-Object { if ($result.id) { $_.Notes -eq $again } else { [string]$_.SwitchType -eq $result.type -and $_.Name.Equals($result.switch, 'OrdinalIgnoreCase') } } | Select-Object -First 1
      }
      if ($redo) {
        if (-not $before.exists) {
          if (-not $vSwitch) {
            $vSwitch = New-VMSwitch -Name $result.switch -NetAdapterInterfaceDescription $result.adapter -AllowManagementOS $result.shared
            Set-VMSwitch -VMSwitch $vSwitch -Notes $again
          }
        } elseif ($null -ne $before.adapter -and [string](under $vSwitch).InterfaceDescription -ne $result.adapter) { Set-VMSwitch -VMSwitch $vSwitch -NetAdapterInterfaceDescription $result.adapter -AllowManagementOS $result.shared }
        elseif ([bool]$vSwitch.AllowManagementOS -ne $result.shared) { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $result.shared }
        if ($result.shared) {
          $hostCard = appear $vSwitch
          if ($before.network) { restore $hostCard.InterfaceIndex $before.network }
          if ($undone.vlan -and $undone.vlan.mode -ne 'Untagged') { setVlan $vSwitch $undone.vlan }
          if (wireless (under $vSwitch)) { $null = offload $hostCard }
        }
        'null'; return
      }
      $answer = [ordered]@{ changed = $false; shared = -not $before.exists -or $before.shared; notes = @(); vlan = $null; undone = $result }
      $moves = $false
      $turns = $false
      $tags = $false
      if ($vSwitch) {
        $own = @(ports $vSwitch)
        if ($own.Count -gt 0) { $answer.vlan = vlanOf $own[0] }
        $moves = [bool]($null -ne $before.adapter -and [string](under $vSwitch).InterfaceDescription -ne $before.adapter)
        $turns = [string]$vSwitch.SwitchType -eq 'External' -and [bool]$vSwitch.AllowManagementOS -ne $before.shared
        $tags = [bool]($before.vlan -and ($moves -or $turns -or (ConvertTo-Json -Compress $answer.vlan) -ne (ConvertTo-Json -Compress $before.vlan)))
        $answer.changed = -not $before.exists -or $moves -or $turns -or $tags
      }
      if ($answer.changed -and -not $before.exists) {
        $id = [string]$vSwitch.Id
        $users = @(Get-VMNetworkAdapter -All | Where-Object { [string]$_.SwitchId -eq $id -and -not $_.IsManagementOs } | ForEach-Object { '"' + $_.VMName + '"' })
        if ($users.Count -gt 0) { throw "Cannot remove the switch ""$($vSwitch.Name)"": the VM $($users -join ', ') is on it. Run: Get-VMNetworkAdapter -All | Where-Object SwitchId -eq $id | Disconnect-VMNetworkAdapter" }
      }
      if ($answer.changed -and [string]$vSwitch.SwitchType -eq 'External') {
        keepIn $vSwitch.Name (@(vEthernet $vSwitch) + @(Get-NetAdapter | Where-Object { $moves -and $_.InterfaceDescription -eq $before.adapter })) $answer.shared
      }
      if ($answer.changed -and -not $dryRun) {
        # one that is gone, as one that was unplugged, takes no settings, and no switch
        $present = @(Get-NetAdapter | ForEach-Object { [string]$_.InterfaceDescription })
        $returns = [bool]$before.network
        if ($returns -and $result.adapter -notin $present) {
          Write-Warning "The network adapter ""$($result.adapter)"" is gone, so its settings are as Windows keeps them"
          $returns = $false
        }
        if (-not $before.exists) {
          Remove-VMSwitch -VMSwitch $vSwitch -Force
          if ($returns) { restore (back $result.adapter).InterfaceIndex $before.network }
        } else {
          if ($moves) {
            $from = ''
            if ($before.adapter -in $present) { $from = $before.adapter }
            elseif ($before.adapter) { Write-Warning "The network adapter ""$($before.adapter)"" is gone, so the switch ""$($vSwitch.Name)"" is on none" }
            onto $vSwitch $from $before.shared
            if ($before.shared -and $before.there) { restore (appear $vSwitch).InterfaceIndex $before.there }
            if ($returns) { restore (back $result.adapter).InterfaceIndex $before.network }
          } elseif ($turns) {
            Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $before.shared
            if ($before.shared -and $before.network) { restore (appear $vSwitch).InterfaceIndex $before.network }
          }
          if (($moves -or $turns) -and $before.shared -and (wireless (under $vSwitch))) { $null = offload (appear $vSwitch) }
          if ($tags -and @(ports $vSwitch).Count -gt 0) { setVlan $vSwitch $before.vlan }
        }
      }
      ConvertTo-Json -Compress -Depth 8 $answer
      return
    }

    $found = @(named $name)
    if ($found.Count -gt 1) { throw "Cannot take the switch ""$name"": $($found.Count) switches have that name: $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VMSwitch -Id $($found[0].Id) | Rename-VMSwitch -NewName <another name>" }
    $vSwitch = $null
    if ($found.Count -eq 1) { $vSwitch = $found[0] }
    if ($vSwitch) {
      # the Default Switch's name is translated, its id is not
      if ([string]$vSwitch.Id -eq 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444') { throw "Cannot take the switch ""$name"": it is the Default Switch, which Windows changes by itself. Run again with another name: --switch" }
      if ([string]$vSwitch.SwitchType -ne $type) { throw "Cannot make the $type switch ""$name"": there is one of that name that is $(([string]$vSwitch.SwitchType).ToLowerInvariant()). Choose another name, or run: Get-VMSwitch -Id $($vSwitch.Id) | Rename-VMSwitch -NewName <another name>" }
    }

    $notes = @()
    $card = $null
    $cards = @()
    $bindings = @()
    $same = @()
    # with auto a switch stays where it is
    if ($null -ne $adapter -and -not ($vSwitch -and $adapter -eq 'auto')) {
      $every = @(Get-NetAdapter)
      $cards = @($every | Where-Object { $_.ComponentID -ne 'vms_mp' }) # Hyper-V's own
      $bindings = @(Get-NetAdapterBinding)
      # what a team is made of has the protocol of teams (ms_implat), and the team is a virtual adapter
      function team($one) { @($bindings | Where-Object { $_.ComponentID -eq 'ms_implat' -and $_.Enabled -and $_.InterfaceDescription -eq $one.InterfaceDescription }).Count -gt 0 }
      function real($one) { $one.HardwareInterface -or [string]$one.ComponentID -like '*ms_implat_mp' }
      if ($adapter -eq 'auto') {
        $ways = @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' } | Sort-Object { [int]$_.RouteMetric + [int]$_.InterfaceMetric })
        foreach ($way in $ways) {
          $out = $every | Where-Object { $_.InterfaceIndex -eq $way.InterfaceIndex } | Select-Object -First 1
          if ($out -and $out.ComponentID -eq 'vms_mp') {
            # the host's adapter on a switch: what is under that switch
            $port = Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.DeviceId -eq [string]$out.DeviceID } | Select-Object -First 1
            $over = Get-VMSwitch | Where-Object { $port -and [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }
            if ($over) { $out = under $over }
          }
          if ($out -and (real $out)) { $card = $out; break }
          $notes += "The host reaches everything else by ""$($way.InterfaceAlias)"", which is virtual, as a VPN is, and no switch's: VMs on the switch do not go through it"
        }
        if (-not $card) { throw "Cannot choose a network adapter for the switch ""$name"": none of the host's has a default route. Run Get-NetAdapter for their names, and again with: --adapter NAME" }
        if (wireless $card) { throw "Cannot choose a network adapter for the switch ""$name"": it would be ""$($card.Name)"", which is Wi-Fi, and there a bridge may slow down or cut off host and VM. Run again with: --adapter $(quoted $card.Name), or without the adapter: --type internal, and then set-static-ip with: --nat" }
      } else {
        $wanted = @($cards | Where-Object { $_.Name.Equals($adapter, 'OrdinalIgnoreCase') })
        if ($wanted.Count -eq 0) { $wanted = @($cards | Where-Object { $_.InterfaceDescription.Equals($adapter, 'OrdinalIgnoreCase') }) }
        if ($wanted.Count -eq 0 -and $adapter -match '^[0-9]+$') { $wanted = @($cards | Where-Object { [string]$_.InterfaceIndex -eq $adapter }) }
        if ($wanted.Count -ne 1) { throw "Cannot make the switch ""$name"" on ""$adapter"": no network adapter has that name, among $(@($cards | ForEach-Object { '""' + $_.Name + '"" (' + $_.InterfaceDescription + ')' }) -join ', '). Run: Get-NetAdapter" }
        $card = $wanted[0]
      }
      $same = @($cards | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -or ($card.MacAddress -and $_.MacAddress -eq $card.MacAddress) } | ForEach-Object { [string]$_.InterfaceDescription })
    }
    function onCard($vSwitch) { tops $vSwitch $cards | Where-Object { $_.InterfaceDescription -in $same } }
    $moves = [bool]($vSwitch -and $card -and -not (onCard $vSwitch))
    if ($moves -and $vSwitch.EmbeddedTeamingEnabled) {
      throw "Cannot move the switch ""$name"" to ""$($card.Name)"": it is on a team of adapters. Choose another name, or run: Set-VMSwitchTeam -Name $(quoted $vSwitch.Name) -NetAdapterName $(quoted $card.Name)"
    }
    if ($moves -or (-not $vSwitch -and $type -eq 'external')) {
      if (-not $card) { throw "Cannot make the external switch ""$name"": it needs a network adapter. Run Get-NetAdapter for their names, and again with: --adapter" }
      $on = "Cannot make the switch ""$name"" on ""$($card.Name)"":"
      $taker = @(Get-VMSwitch | Where-Object { onCard $_ })
      if ($taker.Count -gt 0) { throw "$on the switch ""$($taker[0].Name)"" has that adapter, and an adapter serves one switch. Run again with: --switch $(quoted $taker[0].Name)" }
      if (@($bindings | Where-Object { $_.ComponentID -eq 'vms_pp' -and $_.Enabled -and $_.InterfaceDescription -in $same }).Count -gt 0) {
        throw "$on the adapter is bound to a switch that is not there. Run: Disable-NetAdapterBinding -ComponentID vms_pp -Name $(quoted $card.Name)"
      }
      if (team $card) {
        $teams = @($cards | Where-Object { [string]$_.ComponentID -like '*ms_implat_mp' } | ForEach-Object { quoted $_.Name })
        throw "$on the adapter is in a team, which the switch goes on instead. Run again with: --adapter $($teams -join ' or ')"
      }
      if (-not (real $card)) { throw "$on the adapter is virtual, as a VPN's is, and a switch takes those of hardware and teams. Run: Get-NetAdapter -Physical" }
      if ([string]$card.Status -eq 'Disabled') { throw "$on the adapter is turned off. Run: Enable-NetAdapter -Name $(quoted $card.Name)" }
      if (wireless $card) {
        $notes += "The adapter ""$($card.Name)"" is Wi-Fi: access points take frames from one MAC address only, so Hyper-V puts a bridge in between, and some networks refuse the VM a second address. Without the adapter, run create-switch with: --type internal, and set-static-ip with: --nat"
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
    if ($null -ne $vlan -and -not $shared) { throw "Cannot set the host's VLAN on the switch ""$name"": the host is not on it. Run again with: --share" }
    $tagged = $null
    $own = @()
    if ($vSwitch) { $own = @(ports $vSwitch) }
    if ($own.Count -gt 0) { $tagged = vlanOf $own[0] }
    $tags = $null -ne $vlan -and -not ($tagged -and $tagged.mode -eq 'Access' -and $tagged.id -eq $vlan)
    if ($vlan -eq 0) { $tags = [bool]($tagged -and $tagged.mode -ne 'Untagged') }
    $turns = [bool]($vSwitch -and $type -eq 'external' -and $shared -ne $was)
    $changed = -not $vSwitch -or $turns -or $moves -or $tags
    $before = [ordered]@{ exists = $null -ne $vSwitch; shared = $was; network = $null; adapter = $null; there = $null; vlan = $null }
    if ($changed) { $before.vlan = $tagged }
    $hostCards = @()
    if ($changed -and $type -eq 'external') {
      if (($turns -or $moves) -and $was -and $own.Count -gt 1) {
        throw "Cannot stop sharing the switch ""$name"": the host has $($own.Count) adapters on it, and all would be removed. Run: Get-VMNetworkAdapter -ManagementOS, and Remove-VMNetworkAdapter for all but one"
      }
      $there = $null
      if ($vSwitch) { $there = vEthernet $vSwitch }
      if ($moves) {
        $before.adapter = [string](under $vSwitch).InterfaceDescription
        if ($there) { $before.there = settings $there.InterfaceIndex }
      }
      if (-not $vSwitch -or $moves) { $before.network = settings $card.InterfaceIndex }
      elseif ($there) { $before.network = settings $there.InterfaceIndex }
      if (-not $vSwitch -or $moves) { $hostCards += $card }
      if ($there) { $hostCards += $there }
    }
    if ($hostCards.Count -gt 0) {
      $touched = @($hostCards | ForEach-Object { $_.InterfaceIndex })
      keepIn $name $hostCards $shared
      if (-not $shared) {
        $routes = @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' })
        $others = @($routes | Where-Object { $_.InterfaceIndex -notin $touched })
        if ($routes.Count -gt 0 -and $others.Count -eq 0) { $notes += "The host is offline while the switch ""$name"" is not shared: ""$($hostCards[0].Name)"" is its only way out" }
      }
    }
    # the gateways that answer; the guard looks for itself
    $heard = 'Reachable', 'Stale', 'Delay', 'Probe', 'Permanent'
    function answering {
      foreach ($route in @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' -and $_.NextHop -ne '0.0.0.0' -and ($shared -or $_.InterfaceIndex -notin $touched) })) {
        # a router answers who has its address, whatever else it keeps to itself
        try { $null = (New-Object Net.Sockets.UdpClient).Send([byte[]]@(0), 1, $route.NextHop, 9) } catch { Write-Verbose $_ }
        Get-NetNeighbor | Where-Object { $_.IPAddress -eq $route.NextHop -and [string]$_.State -in $heard } | Select-Object -First 1 | ForEach-Object { [string]$_.IPAddress }
      }
    }

    if ($changed -and -not $dryRun) {
      $answered = @()
      if (-not $guard -and $hostCards.Count -gt 0) { $answered = @(answering) }
      try {
        if ($moves) { Set-VMSwitch -VMSwitch $vSwitch -NetAdapterInterfaceDescription $card.InterfaceDescription -AllowManagementOS $shared }
        elseif ($turns) { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $shared }
        elseif ($vSwitch) { $null = $vSwitch }
        elseif ($type -eq 'external') { $vSwitch = New-VMSwitch -Name $name -NetAdapterInterfaceDescription $card.InterfaceDescription -AllowManagementOS $shared }
        else { $vSwitch = New-VMSwitch -Name $name -SwitchType $type }
        if ($shared -and ($moves -or $turns -or -not $before.exists)) {
          $hostCard = appear $vSwitch
          if ($before.network) { restore $hostCard.InterfaceIndex $before.network }
          if ($before.vlan -and -not $tags -and $before.vlan.mode -ne 'Untagged') { setVlan $vSwitch $before.vlan }
          if ($type -eq 'external' -and (wireless (under $vSwitch)) -and (offload $hostCard)) { $notes += "Large send offload is off on ""$($hostCard.Name)"": uploads crawl with it behind a switch on Wi-Fi" }
        }
        if ($moves -and $before.adapter -and $before.there) { restore (back $before.adapter).InterfaceIndex $before.there }
        if ($tags) { setVlan $vSwitch @{ mode = $(if ($vlan) { 'Access' } else { 'Untagged' }); id = $vlan } }
      } catch {
        $failure = $_
        if (-not $before.exists) {
          named $name | ForEach-Object { Remove-VMSwitch -VMSwitch $_ -Force } # one may be left half made
          if ($before.network) { restore $card.InterfaceIndex $before.network }
        } else {
          if ($moves) {
            onto $vSwitch $before.adapter $was
            if ($before.there) { restore (appear $vSwitch).InterfaceIndex $before.there }
            restore (back $card.InterfaceDescription).InterfaceIndex $before.network
          } elseif ($turns) {
            Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $was
            # what failed may have been done all the same, and the host's adapter is a new one then
            if ($was -and $before.network) { restore (appear $vSwitch).InterfaceIndex $before.network }
          }
          if ($was -and ($moves -or $turns) -and (wireless (under $vSwitch))) { $null = offload (appear $vSwitch) }
          if ($before.vlan -and ($moves -or $turns -or $tags) -and @(ports $vSwitch).Count -gt 0) { setVlan $vSwitch $before.vlan }
        }
        if ($failure.FullyQualifiedErrorId -match '^ObjectNotFound,.*(New|Set)VMSwitch$' -or $failure.Exception.HResult -eq -2147023728) {
          throw "Cannot make the switch ""$name"" on ""$($card.Name)"": Windows could not bind the adapter to it (0x80070490), as happens with some Wi-Fi drivers. Update the driver and restart Windows, or do without the adapter. Run again with: --type internal, and then set-static-ip with: --nat"
        }
        if ($failure.FullyQualifiedErrorId -match '^ObjectInUse,.*(New|Set)VMSwitch$') {
          throw "Cannot make the switch ""$name"" on ""$($card.Name)"": the adapter serves another switch or bridge. Run: Get-VMSwitch"
        }
        throw $failure
      }
      if ($answered.Count -gt 0) {
        # Windows goes on to know a neighbour that is silent, and asks anew for one that is removed (see guard.ts)
        try {
          Get-NetNeighbor | Where-Object { $_.IPAddress -in $answered -and [string]$_.State -ne 'Permanent' } | Remove-NetNeighbor -Confirm:$false
          $heard = 'Reachable', 'Permanent'
        } catch { Write-Verbose $_ }
        for ($wait = 0; $wait -lt 60; $wait++) {
          $now = @(answering)
          $lost = @($answered | Where-Object { $_ -notin $now })
          if ($lost.Count -eq 0) { break }
          Start-Sleep -Milliseconds 250
        }
        if ($lost.Count -gt 0) { $notes += "The gateway $($lost -join ', ') answered before the change of the switch ""$name"" and does not now. Where the host has lost its network, run: Remove-VMSwitch -Name $(quoted $name)" }
      }
    }
    $answer = [ordered]@{ changed = $changed; id = $null; switch = $name; type = $type; adapter = $null; shared = $shared; notes = $notes; before = $before }
    if ($card) { $answer.adapter = [string]$card.InterfaceDescription }
    if ($vSwitch) {
      $answer.id = [string]$vSwitch.Id
      $answer.switch = [string]$vSwitch.Name
      if ($type -eq 'external' -and -not $card) { $answer.adapter = [string]$vSwitch.NetAdapterInterfaceDescription }
    }
    ConvertTo-Json -Compress -Depth 6 $answer`
  return JSON.parse(stdout) as CreateSwitchResult
}

/**
 * Removes the switch that {@link createSwitch} made, or puts its network adapter, sharing and VLAN back,
 * and gives the host the settings that it had. Refuses while a VM is on a switch that it is to remove.
 * Under the guard what cuts the host off is done again; a switch that was removed has a new id then. Without
 * it refuses what would. The notes say what is worth knowing.
 */
export async function undoCreateSwitch(
  result: CreateSwitchResult,
  ps = powershell,
  guard: GuardOptions = { guard: false },
): Promise<{ notes: string[] }> {
  if (!result.changed || result.id === null) return { notes: [] }
  const run = (ps: typeof powershell, dryRun: boolean) =>
    back(result, { redo: false, guard: guard.guard ?? true, dryRun }, ps)
  if (result.type !== 'external') return { notes: (await run(ps, false)).notes }
  const subject = `the switch "${result.switch}"`
  const undo = (undone: CreateSwitchResult, ps: typeof powershell) =>
    back(undone, { redo: true, guard: true, dryRun: false }, ps)
  const { notes } = await guarded({ subject, run, undo }, guard, false, ps)
  return { notes }
}

function back(
  result: CreateSwitchResult,
  how: { redo: boolean; guard: boolean; dryRun: boolean },
  ps: typeof powershell,
): Promise<CreateSwitchResult> {
  const nothing = { name: null, type: null, adapter: undefined, share: undefined, vlan: undefined }
  return make({ done: JSON.stringify(result), ...nothing, ...how }, ps)
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
      describe: 'Network adapter of an external switch: name, description, index, or auto',
      example: 'Wi-Fi',
    },
    share: {
      type: 'boolean',
      describe: 'The host uses an external switch too [default: true for a new one, else as it is]',
    },
    vlan: { type: 'number', describe: 'The host’s VLAN on the switch, 1 to 4094; 0 for none' },
    ...guardOptions,
    dryRun,
  },
  (options: Omit<CreateSwitchOptions, 'revertAfter'> & { revertAfter?: string }, ps) =>
    createSwitch(readGuard(options), ps),
  (answer, ps, options) => undoCreateSwitch(answer, ps, readGuard(options)),
)
