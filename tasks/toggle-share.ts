#!/usr/bin/env zx
/** Share an external switch's network adapter with the host, or leave it to the VMs. */
import process from 'node:process'
import { guarded, type GuardOptions, guardOptions, readGuard } from './guard.ts'
import { dryRun, hostCommand, powershell } from './task.ts'

export interface ToggleShareOptions extends GuardOptions {
  /** `on`, `off`, or `status` to only ask. */
  state: 'on' | 'off' | 'status'
  /** Name of the external switch. @default the only one */
  switch?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** What the host's adapter on the switch was given, and what goes with the adapter. */
export interface HostNetwork {
  /** The adapter's name on the switch; Windows calls it `vEthernet (name)`. */
  name: string
  /** E.g. `A4C3F0112233`. */
  mac: string
  vlan: { mode: 'Access'; id: number } | { mode: 'Trunk'; id: number; allowed: string } | null
  /** IPv4 comes by DHCP; then only what was set by hand beside it is in the lists below. */
  dhcp: boolean
  /** IPv4 addresses that came by themselves, e.g. `10.20.30.40/16`. They are not put back. */
  leased: string[]
  /** Addresses set by hand, e.g. `192.168.1.10/24` or `fd00::10/64`. */
  addresses: string[]
  /** Routes set by hand, the default gateway among them. */
  routes: { to: string; by: string; metric: number }[]
  dns: string[]
  /** Interface metric; null is automatic. */
  metric: number | null
  /** The network that Windows knew there, and what it took it for: Public or Private. */
  profile: { name: string; category: string } | null
  /** Large send offload, which create-switch turns off on Wi-Fi. */
  offload: boolean
}

export interface ToggleShareResult {
  changed: boolean
  /** The switch's id, by which the undo finds it again. */
  id: string
  switch: string
  /** The host uses the switch too; on a dry run, it would afterwards. */
  shared: boolean
  /** What is worth knowing and no obstacle. */
  notes: string[]
  before: {
    shared: boolean
    /** The host's settings on the switch; where it was not shared, those that `on` puts back. */
    network: HostNetwork | null
  }
}

/**
 * Turns AllowManagementOS of an external switch on or off, under the guard (see guard.ts).
 *
 * Off removes the host's adapter `vEthernet (...)` with all its settings, and on makes a new one
 * (learn.microsoft.com/powershell/module/hyper-v/set-vmswitch). So off keeps the settings on the host,
 * in `%ProgramData%\vbox-to-hyperv\share-ID.json`, and on puts them back and removes the file; an off
 * that finds the host off already leaves it alone. Off also leaves it alone where somebody else turned
 * sharing on meanwhile and the adapter still is as Windows makes it. Of IPv6 it keeps what was set by
 * hand, as routers give the rest again.
 *
 * Without the guard it refuses to cut off a session over SSH or Remote Desktop that comes by this
 * adapter, while there is no other way in (Justsenger/ExHyperV#274). So does its undo.
 */
export async function toggleShare(
  { state, switch: name, dryRun = false, ...guard }: ToggleShareOptions,
  ps = powershell,
): Promise<ToggleShareResult> {
  if (!['on', 'off', 'status'].includes(state)) {
    throw new TypeError(
      `Cannot turn sharing "${state}": it takes on, off or status. Run again with: status`,
    )
  }
  checkName(name)
  const subject = name === undefined ? 'the external switch' : `the switch "${name}"`
  const run = (ps: typeof powershell, dryRun: boolean) =>
    share({ done: null, name: name ?? null, state, guard: guard.guard ?? true, dryRun }, ps)
  if (state === 'status') return await run(ps, dryRun)
  const undo = (done: ToggleShareResult, ps: typeof powershell) => back(done, true, false, ps)
  return await guarded({ subject, run, undo }, guard, dryRun, ps)
}

/**
 * Puts back what {@link toggleShare} changed, with the settings that the host had on the switch. Under the
 * guard what cuts the host off is done again. The notes say what is worth knowing.
 */
export async function undoToggleShare(
  result: ToggleShareResult,
  ps = powershell,
  guard: GuardOptions = { guard: false },
): Promise<{ notes: string[] }> {
  if (!result.changed) return { notes: [] }
  const subject = `the switch "${result.switch}"`
  const run = (ps: typeof powershell, dryRun: boolean) =>
    back(result, guard.guard ?? true, dryRun, ps)
  const undo = (undone: ToggleShareResult, ps: typeof powershell) => back(undone, true, false, ps)
  const { notes } = await guarded({ subject, run, undo }, guard, false, ps)
  return { notes }
}

function back(
  result: ToggleShareResult,
  guard: boolean,
  dryRun: boolean,
  ps: typeof powershell,
): Promise<ToggleShareResult> {
  const done = JSON.stringify(result)
  return share({ done, name: null, state: 'status', guard, dryRun }, ps)
}

function checkName(name: string | undefined): void {
  // deno-lint-ignore no-control-regex
  if (name === undefined || (name.trim() !== '' && !/[\u0000-\u001f\u007f]/.test(name))) return
  throw new TypeError(
    `Cannot share the switch ${JSON.stringify(name)}: ` +
      'a name is not empty and has no control characters. Run: Get-VMSwitch',
  )
}

/** With `done` it takes back what that result says was done; the switch may be gone by now. */
async function share(
  { done, name, state, guard, dryRun }: {
    done: string | null
    name: string | null
    state: ToggleShareOptions['state']
    guard: boolean
    dryRun: boolean
  },
  ps: typeof powershell,
): Promise<ToggleShareResult> {
  const { stdout } = await ps`
    $done = ${done}
    $name = ${name}
    $state = ${state}
    $guard = ${guard}
    $dryRun = ${dryRun}
    function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
    function ports($vSwitch) { Get-VMNetworkAdapter -ManagementOS | Where-Object { [string]$_.SwitchId -eq [string]$vSwitch.Id } }
    function vEthernet($vSwitch) {
      $devices = @(ports $vSwitch | ForEach-Object { [string]$_.DeviceId })
      Get-NetAdapter | Where-Object { [string]$_.DeviceID -in $devices } | Select-Object -First 1
    }
    # a new adapter takes addresses only once IPv4 is on it
    function ready($vSwitch) {
      for ($wait = 0; $wait -lt 120; $wait++) {
        $card = vEthernet $vSwitch
        if ($card -and @(Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex).Count -gt 0) { return $card }
        Start-Sleep -Milliseconds 250
      }
      throw "Cannot share the switch ""$($vSwitch.Name)"": the host's adapter on it did not appear within 30 seconds. Run: Get-NetAdapter -IncludeHidden"
    }
    function settings($port, $card, $ips) {
      $kept = [ordered]@{ name = [string]$port.Name; mac = [string]$port.MacAddress; vlan = $null; dhcp = $true; leased = @(); addresses = @(); routes = @(); dns = @(); metric = $null; profile = $null; offload = $true }
      $vlan = Get-VMNetworkAdapterVlan -VMNetworkAdapter $port
      if ([string]$vlan.OperationMode -eq 'Access') { $kept.vlan = [ordered]@{ mode = 'Access'; id = [int]$vlan.AccessVlanId } }
      if ([string]$vlan.OperationMode -eq 'Trunk') { $kept.vlan = [ordered]@{ mode = 'Trunk'; id = [int]$vlan.NativeVlanId; allowed = [string]$vlan.AllowedVlanIdListString } }
      $ip = Get-NetIPInterface -AddressFamily IPv4 | Where-Object { $card -and $_.InterfaceIndex -eq $card.InterfaceIndex }
      if (-not $ip) { return $kept }
      $index = $card.InterfaceIndex
      $kept.dhcp = [string]$ip.Dhcp -eq 'Enabled'
      if ([string]$ip.AutomaticMetric -eq 'Disabled') { $kept.metric = [int]$ip.InterfaceMetric }
      foreach ($address in @($ips | Where-Object { $_.InterfaceIndex -eq $index })) {
        $text = [string]$address.IPAddress + '/' + $address.PrefixLength
        if ([string]$address.PrefixOrigin -eq 'Manual') { $kept.addresses += $text }
        # what a router gives of IPv6 it gives again
        elseif ([string]$address.AddressFamily -eq 'IPv4') { $kept.leased += $text }
      }
      # what DHCP and routers gave is in the active store alone (assumption)
      $active = @()
      if (-not $kept.dhcp) { $active = @(Get-NetRoute -PolicyStore ActiveStore -ErrorAction SilentlyContinue | Where-Object { [string]$_.NextHop -match '[1-9].*[.]' }) }
      $stored = @(Get-NetRoute -PolicyStore PersistentStore -ErrorAction SilentlyContinue | Where-Object { ($kept.dhcp -and [string]$_.NextHop -match '[1-9].*[.]') -or ([string]$_.NextHop -like '*:*' -and [string]$_.NextHop -ne '::') })
      $kept.routes = @($active + $stored | Where-Object { $_.InterfaceIndex -eq $index } | ForEach-Object { [ordered]@{ to = [string]$_.DestinationPrefix; by = [string]$_.NextHop; metric = [int]$_.RouteMetric } })
      $protocols = @('Tcpip', 'Tcpip6')
      if (-not $kept.dhcp) {
        $kept.dns = @(Get-DnsClientServerAddress -InterfaceIndex $index -AddressFamily IPv4 | ForEach-Object { $_.ServerAddresses } | Where-Object { $_ })
        $protocols = @('Tcpip6')
      }
      foreach ($protocol in $protocols) {
        # servers set by hand beside what the network gives; a host without this key has none (assumption: the key)
        try {
          $key = ('HKEY_LOCAL_MACHINE', 'SYSTEM', 'CurrentControlSet', 'Services', $protocol, 'Parameters', 'Interfaces', [string]$card.InterfaceGuid) -join [char]92
          $kept.dns += @([string]([type]'Microsoft.Win32.Registry')::GetValue($key, 'NameServer', '') -split '[, ]' | Where-Object { $_ })
        } catch { Write-Verbose $_ }
      }
      $lso = Get-NetAdapterLso | Where-Object { $_.Name -eq $card.Name }
      $kept.offload = -not $lso -or $lso.IPv4Enabled -or $lso.IPv6Enabled
      $network = Get-NetConnectionProfile | Where-Object InterfaceIndex -eq $index | Select-Object -First 1
      if ($network) { $kept.profile = [ordered]@{ name = [string]$network.Name; category = [string]$network.NetworkCategory } }
      $kept
    }
    # nothing that a new adapter would not have by itself
    function plain($kept) { $kept.dhcp -and @($kept.addresses).Count + @($kept.routes).Count + @($kept.dns).Count -eq 0 -and $null -eq $kept.metric -and $null -eq $kept.vlan -and $kept.offload -ne $false }
    function restore($vSwitch, $kept) {
      $port = @(ports $vSwitch)[0]
      # by the switch's name, in no other way; where that is another's too, the host does without its MAC address
      $alone = @(Get-VMSwitch | Where-Object { $_.Name.Equals($vSwitch.Name, 'OrdinalIgnoreCase') }).Count -eq 1
      if ($kept.mac -and $port.MacAddress -ne $kept.mac -and $alone) {
        Remove-VMNetworkAdapter -VMNetworkAdapter $port
        Add-VMNetworkAdapter -ManagementOS -SwitchName $vSwitch.Name -Name $kept.name -StaticMacAddress $kept.mac
      } elseif ($kept.name -and $port.Name -ne $kept.name) { Rename-VMNetworkAdapter -VMNetworkAdapter $port -NewName $kept.name }
      $port = @(ports $vSwitch)[0]
      if ($kept.vlan.mode -eq 'Access') { Set-VMNetworkAdapterVlan -VMNetworkAdapter $port -Access -VlanId $kept.vlan.id }
      if ($kept.vlan.mode -eq 'Trunk') { Set-VMNetworkAdapterVlan -VMNetworkAdapter $port -Trunk -NativeVlanId $kept.vlan.id -AllowedVlanIdList $kept.vlan.allowed }
      $card = ready $vSwitch
      if ($kept.offload -eq $false) { Disable-NetAdapterLso -InterfaceDescription $card.InterfaceDescription -IPv4 -IPv6 }
      $index = $card.InterfaceIndex
      foreach ($address in @($kept.addresses | Where-Object { $_ })) {
        $part = $address.Split('/')
        $null = New-NetIPAddress -InterfaceIndex $index -IPAddress $part[0] -PrefixLength ([byte]$part[1])
      }
      foreach ($route in @($kept.routes | Where-Object { $_ })) { $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix $route.to -NextHop $route.by -RouteMetric ([uint16]$route.metric) }
      $dns = @($kept.dns | Where-Object { $_ })
      if ($dns.Count -gt 0) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $dns }
      if ($null -ne $kept.metric) { Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric $kept.metric }
      if ($kept.profile.category -ne 'Private') { return }
      # a new network is public; this one only if it is the same again, which Windows finds out in a while
      for ($wait = 0; $wait -lt 20; $wait++) {
        $network = Get-NetConnectionProfile | Where-Object { $_.InterfaceIndex -eq $index -and $_.Name -eq $kept.profile.name }
        if ($network) {
          if ([string]$network.NetworkCategory -eq 'Public') { Set-NetConnectionProfile -InterfaceIndex $index -NetworkCategory Private }
          return
        }
        Start-Sleep -Milliseconds 250
      }
    }
    # administrators and SYSTEM alone may write there: what is kept will be the host's settings
    function own($folder) {
      $windows = [Environment]::OSVersion.Platform -eq 'Win32NT'
      if (-not [IO.Directory]::Exists($folder)) {
        $null = [IO.Directory]::CreateDirectory($folder)
        if ($windows) {
          $null = icacls $folder /setowner '*S-1-5-32-544'
          $null = icacls $folder /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F'
          if ($LASTEXITCODE -ne 0) { throw "Cannot keep the folder ""$folder"" for administrators alone (icacls: exit code $LASTEXITCODE). Run: Remove-Item -Recurse -LiteralPath $(quoted $folder)" }
        }
      }
      if ($windows -and (Get-Acl -LiteralPath $folder).GetOwner([Security.Principal.SecurityIdentifier]).Value -notin 'S-1-5-32-544', 'S-1-5-18') {
        throw "Cannot keep the host's settings: the folder ""$folder"" is not the administrators' own. Run: Remove-Item -Recurse -LiteralPath $(quoted $folder)"
      }
    }
    function save($path, $text) {
      $bytes = (New-Object Text.UTF8Encoding $false).GetBytes($text)
      $new = [IO.File]::Create("$path.new")
      try {
        $new.Write($bytes, 0, $bytes.Length)
        # written through: a power cut would lose the host's settings
        $new.Flush($true)
      } finally { $new.Dispose() }
      if ([IO.File]::Exists($path)) { [IO.File]::Replace("$path.new", $path, [NullString]::Value) } else { [IO.File]::Move("$path.new", $path) }
    }

    $result = $null
    if ($done) {
      $result = ConvertFrom-Json $done
      $state = 'off'
      if ($result.before.shared) { $state = 'on' }
      $name = $result.switch
    }
    $all = @(Get-VMSwitch)
    if ($result) { $found = @($all | Where-Object { [string]$_.Id -eq $result.id }) }
    elseif ($null -ne $name) { $found = @($all | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') }) }
    else { $found = @($all | Where-Object { [string]$_.SwitchType -eq 'External' }) }
    if ($result -and $found.Count -eq 0) { ConvertTo-Json -Compress ([ordered]@{ changed = $false; id = [string]$result.id; switch = $name; shared = [bool]$result.before.shared; notes = @(); before = $result.before }) -Depth 6; return }
    if ($found.Count -ne 1 -and $null -eq $name) {
      if ($found.Count -eq 0) { throw "Cannot share a switch: there is no external one. Run create-switch with: --type external --adapter" }
      throw "Cannot choose the switch: there are $($found.Count) external ones, $(@($found | ForEach-Object { '""' + $_.Name + '""' }) -join ', '). Run again with: --switch $(quoted $found[0].Name)"
    }
    if ($found.Count -gt 1) { throw "Cannot share the switch ""$name"": $($found.Count) switches have that name: $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Get-VMSwitch -Id $($found[0].Id) | Rename-VMSwitch -NewName <another name>" }
    if ($found.Count -ne 1) { throw "Cannot share the switch ""$name"": $($found.Count) switches have that name. Run: Get-VMSwitch" }
    $vSwitch = $found[0]
    $name = [string]$vSwitch.Name
    if ([string]$vSwitch.SwitchType -ne 'External') {
      throw "Cannot share the switch ""$name"": it is $($vSwitch.SwitchType), and only an external switch has a network adapter to share. Run: Get-VMSwitch -SwitchType External"
    }
    $folder = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv')
    $file = [IO.Path]::Combine($folder, "share-$($vSwitch.Id).json")
    $kept = $null
    $text = $null
    if ([IO.File]::Exists($file)) {
      $text = [IO.File]::ReadAllText($file)
      # what is to be taken back has the settings itself
      try { $kept = ConvertFrom-Json $text } catch { if (-not $result) { throw "Cannot read the host's settings that were kept for the switch ""$name"": the file is damaged. Note what is in it, and run: Remove-Item -LiteralPath $(quoted $file)" } }
    }

    $was = [bool]$vSwitch.AllowManagementOS
    $shared = $was
    if ($state -ne 'status') { $shared = $state -eq 'on' }
    $notes = @()
    $before = [ordered]@{ shared = $was; network = $kept }
    if ($was) {
      $every = @(Get-VMNetworkAdapter -ManagementOS)
      $ports = @($every | Where-Object { [string]$_.SwitchId -eq [string]$vSwitch.Id })
      if (-not $shared -and $ports.Count -gt 1) {
        throw "Cannot stop sharing the switch ""$name"": the host has $($ports.Count) adapters on it, and all would be removed: $(@($ports | ForEach-Object { $_.Name }) -join ', '). Run: Get-VMNetworkAdapter -ManagementOS, and Remove-VMNetworkAdapter for all but one"
      }
      $cards = @(Get-NetAdapter)
      $card = $cards | Where-Object { [string]$_.DeviceID -eq [string]$ports[0].DeviceId } | Select-Object -First 1
      $ips = @(Get-NetIPAddress)
      $before.network = settings $ports[0] $card $ips
      if ($kept -and (plain $before.network) -and -not (plain $kept)) { $notes += "The settings that were kept when the switch ""$name"" was last taken off are not in use: it was shared again by other means. Run toggle-share off and then on to have them" }
    }
    if ($was -and -not $shared) {
      $own = @($ips | Where-Object { $card -and $_.InterfaceIndex -eq $card.InterfaceIndex } | ForEach-Object { ([string]$_.IPAddress).Split('%')[0] })
      # by another network adapter: not by a loopback, not by a switch that leads nowhere outside
      $inside = @($every | Where-Object { $port = $_; @($all | Where-Object { [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }).Count -eq 0 } | ForEach-Object { [string]$_.DeviceId })
      $outside = @($cards | Where-Object { [string]$_.Status -eq 'Up' -and [string]$_.DeviceID -notin $inside } | ForEach-Object { $_.InterfaceIndex })
      $ways = @($ips | Where-Object { $_.InterfaceIndex -in $outside -and [string]$_.AddressFamily -eq 'IPv4' -and [string]$_.IPAddress -notin $own -and [string]$_.IPAddress -notlike '169.254.*' -and [string]$_.AddressState -eq 'Preferred' })
      if ($ways.Count -eq 0) {
        $notes += "The host is offline while the switch ""$name"" is not shared: it has no other network adapter that is connected"
        $by = @()
        if (-not $guard) { $by = @(([string]$env:SSH_CONNECTION).Split(' ')[2]) + @(Get-NetTCPConnection | Where-Object { [string]$_.State -eq 'Established' -and $_.LocalPort -in 22, 3389 } | ForEach-Object { [string]$_.LocalAddress }) }
        $cut = @($by | Where-Object { $_ } | ForEach-Object { $_.Split('%')[0] } | Where-Object { $_ -in $own } | Select-Object -First 1)
        if ($cut.Count -gt 0) {
          throw "Cannot stop sharing the switch ""$name"": somebody is connected to the host by its address $($cut[0]) on it, and there is no other way in. Run it at the host itself"
        }
      }
    }

    if ($shared -ne $was -and -not $dryRun) {
      if ($shared) {
        if ($result) { $kept = $result.before.network }
        Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $true
        try {
          if ($kept) { restore $vSwitch $kept } else { $null = ready $vSwitch }
        } catch {
          Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $false
          throw
        }
        if ([IO.File]::Exists($file)) { [IO.File]::Delete($file) }
      } else {
        own $folder
        $keep = ConvertTo-Json -Compress -Depth 5 $before.network
        if ($result) { $keep = ConvertTo-Json -Compress -Depth 5 $result.before.network }
        if ($result -or -not ($kept -and (plain $before.network) -and -not (plain $kept))) { save $file $keep }
        try { Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $false } catch {
          $failure = $_
          # it may have been done all the same
          if (@(ports $vSwitch).Count -eq 0) {
            Set-VMSwitch -VMSwitch $vSwitch -AllowManagementOS $true
            restore $vSwitch $before.network
          }
          if ($null -ne $text) { save $file $text } else { [IO.File]::Delete($file) }
          throw $failure
        }
        if ($result -and $null -eq $result.before.network) { [IO.File]::Delete($file) }
      }
    }
    ConvertTo-Json -Compress -Depth 6 ([ordered]@{
      changed = $shared -ne $was
      id = [string]$vSwitch.Id
      switch = $name
      shared = $shared
      notes = $notes
      before = $before
    })`
  return JSON.parse(stdout) as ToggleShareResult
}

export interface ShareShortcutsOptions {
  /** Name of the external switch. */
  switch: string
  /** The command that toggles, without `on` or `off`. @default this file and what runs it */
  command?: readonly string[] | undefined
}

/**
 * Makes two shortcuts on the desktop, `toggle-share on NAME` and `toggle-share off NAME`, which ask
 * for administrator's rights; the window stays open where they fail. Answers with their paths.
 *
 * Assumed, as no test machine has it: WScript.Shell keeps ASCII only, so the command is base64 and
 * the file is renamed to its name; and bit 0x20 of byte 21 of a .lnk is "run as administrator".
 */
export async function makeShareShortcuts(
  { switch: name, command }: ShareShortcutsOptions,
  ps = powershell,
): Promise<string[]> {
  checkName(name)
  if (command === undefined && process.platform !== 'win32') {
    throw new Error(
      'Cannot make shortcuts: they are for the desktop of the Windows that runs this, and this is ' +
        `${process.platform}. Run it there, in PowerShell`,
    )
  }
  if (name.includes('"')) {
    throw new TypeError(
      `Cannot make shortcuts for the switch ${
        JSON.stringify(name)
      }: Windows cannot give a program ` +
        'a name with a quotation mark. Run: Rename-VMSwitch',
    )
  }
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const { stdout } = await ps`
    $name = ${name}
    $command = ${command ?? [process.execPath, ...runtime, import.meta.filename]}
    function quoted($text) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($text) + "'" }
    foreach ($file in @($command[0], $command[-1])) {
      if (-not [IO.File]::Exists($file)) { throw "Cannot make shortcuts: the file ""$file"" is not on this host. Run it at the host itself" }
    }
    $shell = New-Object -ComObject WScript.Shell
    $desktop = $shell.SpecialFolders.Item('Desktop')
    $plain = -join ($name.ToCharArray() | ForEach-Object { if ($_ -in [IO.Path]::GetInvalidFileNameChars() -or '<>:"/|?*'.IndexOf($_) -ge 0 -or [int]$_ -eq 92) { '_' } else { $_ } })
    $paths = @(foreach ($state in 'on', 'off') {
      $words = @($command | ForEach-Object { quoted $_ }) + $state + '--switch' + (quoted $name)
      $script = '& ' + ($words -join ' ') + '; if ($LASTEXITCODE) { pause }'
      $aside = [IO.Path]::Combine($desktop, "toggle-share-$PID.lnk")
      $link = $shell.CreateShortcut($aside)
      $link.TargetPath = 'powershell.exe'
      $link.Arguments = '-NoProfile -ExecutionPolicy Bypass -EncodedCommand ' + [Convert]::ToBase64String([Text.Encoding]::Unicode.GetBytes($script))
      $link.Save()
      $bytes = [IO.File]::ReadAllBytes($aside)
      $bytes[21] = $bytes[21] -bor 0x20
      [IO.File]::WriteAllBytes($aside, $bytes)
      $path = [IO.Path]::Combine($desktop, "toggle-share $state $plain.lnk")
      [IO.File]::Delete($path)
      [IO.File]::Move($aside, $path)
      $path
    })
    ConvertTo-Json -Compress -InputObject $paths`
  return JSON.parse(stdout) as string[]
}

type Command = Omit<ToggleShareOptions, 'revertAfter'> & {
  revertAfter?: string
  shortcut?: boolean
}

/** What `status` says to people. */
function say({ switch: name, shared, before: { network } }: ToggleShareResult): string {
  const has = [...network?.addresses ?? [], ...network?.leased ?? []].join(', ')
  if (shared) return `The host uses the switch "${name}" too: ${has || 'without an address'}`
  const kept = network?.addresses.length ? `; with on it is ${network.addresses.join(', ')}` : ''
  return `The switch "${name}" is the VMs' alone${kept}`
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
    switch: {
      type: 'string',
      describe: 'The switch’s name [default: the only external one]',
      example: '桥接',
    },
    shortcut: { type: 'boolean', describe: 'Make shortcuts for on and off on the desktop too' },
    ...guardOptions,
    dryRun,
  },
  async (given: Command, ps) => {
    const { shortcut, ...options } = given
    const result = await toggleShare(readGuard(options), ps)
    if (options.state === 'status') process.stderr.write(`${say(result)}\n`)
    if (!shortcut || options.dryRun) return result
    return { ...result, shortcuts: await makeShareShortcuts(result, ps) }
  },
  (answer, ps, options) => undoToggleShare(answer, ps, readGuard(options)),
)
