import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import {
  makeShareShortcuts,
  toggleShare,
  type ToggleShareOptions,
  undoToggleShare,
} from '../../tasks/toggle-share.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const sharing = suite('toggleShare')
const test = needs(sharing, 'pwsh')
const hostile = 'Bob’s "VM"; $(calc) 桥接'

let host: SimulatedHost
let seed: string

/** Runs a script of the test's own on the host, and forgets that it ran. */
const given: SimulatedHost['ps'] = async (pieces, ...values) => {
  const answer = await host.ps(pieces, ...values)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  return answer
}
const changes = async () =>
  (await host.calls()).map(({ cmdlet }) => cmdlet).filter((cmdlet) => !cmdlet.startsWith('Get-'))

const external = (name = '桥接') =>
  given`
    $name = ${name}
    $null = New-VMSwitch -Name $name -NetAdapterName Wi-Fi -AllowManagementOS $true`

/** What the host has on the switch, as Windows says it. */
const hostSide = async () => {
  const { stdout } = await host.ps`
    $card = Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)'
    if (-not $card) { 'null'; return }
    $ip = Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex
    ConvertTo-Json -Compress -Depth 3 @{
      dhcp = [string]$ip.Dhcp -eq 'Enabled'
      metric = $(if ([string]$ip.AutomaticMetric -eq 'Disabled') { [int]$ip.InterfaceMetric } else { $null })
      addresses = @(Get-NetIPAddress | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object { $_.IPAddress + '/' + $_.PrefixLength })
      gateways = @(Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -and $_.DestinationPrefix -eq '0.0.0.0/0' -and [string]$_.Protocol -ne 'Dhcp' } | ForEach-Object { [string]$_.NextHop })
    }`
  return JSON.parse(stdout)
}
const fixed = {
  name: '桥接',
  mac: 'A4C3F0112233',
  vlan: { mode: 'Access', id: 12 },
  dhcp: false,
  leased: [],
  addresses: ['192.168.77.10/24', '192.168.78.10/24', 'fd00:77::10/64'],
  routes: [
    { to: '0.0.0.0/0', by: '192.168.77.1', metric: 256 },
    { to: '10.99.0.0/16', by: '192.168.77.9', metric: 5 },
    { to: 'fd00:99::/32', by: 'fd00:77::9', metric: 7 },
  ],
  dns: ['192.168.77.2', '9.9.9.9'],
  metric: 15,
  profile: { name: 'Office', category: 'Private' },
  offload: false,
}
const saved = async () => {
  const folder = join(String(host.env.ProgramData), 'vbox-to-hyperv')
  const [file] = (await fs.readdir(folder)).filter((name) => name.startsWith('share-'))
  return file && await fs.readJson(join(folder, file))
}
/** Without the guard, whose tests are in guard.test.ts, a script is one process's work of a moment. */
const toggle = (options: ToggleShareOptions) => toggleShare({ guard: false, ...options }, host.ps)
const setFixed = () =>
  given`
    $index = (Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)').InterfaceIndex
    Get-NetIPAddress -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index | Remove-NetIPAddress -Confirm:$false
    Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' } | Remove-NetRoute -Confirm:$false
    $null = New-NetIPAddress -InterfaceIndex $index -IPAddress 192.168.77.10 -PrefixLength 24 -DefaultGateway 192.168.77.1
    Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses 192.168.77.2, 9.9.9.9
    Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric 15
    $null = New-NetIPAddress -InterfaceIndex $index -IPAddress 192.168.78.10 -PrefixLength 24
    $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix 10.99.0.0/16 -NextHop 192.168.77.9 -RouteMetric 5
    $null = New-NetIPAddress -InterfaceIndex $index -IPAddress fd00:77::10 -PrefixLength 64
    $null = New-NetRoute -InterfaceIndex $index -DestinationPrefix fd00:99::/32 -NextHop fd00:77::9 -RouteMetric 7
    Set-NetConnectionProfile -InterfaceIndex $index -NetworkCategory Private
    Disable-NetAdapterLso -Name 'vEthernet (桥接)' -IPv4 -IPv6
    Get-VMNetworkAdapter -ManagementOS -Name 桥接 | Set-VMNetworkAdapterVlan -Access -VlanId 12`

sharing.before(async () => {
  host = await simulatedHost()
  seed = await host.text()
})
sharing.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.ProgramData))
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
})
sharing.after(() => host.close())

test('takes the host off the switch, and puts it back', async () => {
  await external()
  const off = await toggle({ state: 'off', switch: '桥接' })
  const { id, before, ...rest } = off
  assert.deepEqual(rest, {
    changed: true,
    switch: '桥接',
    shared: false,
    notes: [
      'The host is offline while the switch "桥接" is not shared: it has no other network adapter ' +
      'that is connected',
    ],
  })
  assert.match(id, /^[\da-f-]{36}$/)
  assert.equal(before.shared, true)
  assert.equal(before.network?.dhcp, true)
  assert.equal(await hostSide(), null)
  const on = await toggle({ state: 'on', switch: '桥接' })
  assert.deepEqual(on, {
    changed: true,
    id,
    switch: '桥接',
    shared: true,
    notes: [],
    before: { shared: false, network: before.network },
  })
  assert.equal((await hostSide()).dhcp, true)
})

test('shares a switch that was never off, and leaves no folder', async () => {
  await given`$null = New-VMSwitch -Name 桥接 -NetAdapterName Wi-Fi -AllowManagementOS $false`
  assert.equal((await toggle({ state: 'on' })).changed, true)
  assert.equal(await fs.pathExists(String(host.env.ProgramData)), false)
})

test('does nothing when it is so', async () => {
  await external()
  const text = await host.text()
  for (const state of ['on', 'status'] as const) {
    const result = await toggle({ state, switch: '桥接' })
    assert.equal(result.changed, false)
    assert.equal(result.shared, true)
    assert.equal(result.before.shared, true)
    await undoToggleShare(result, host.ps)
  }
  await toggle({ state: 'off', switch: '桥接' })
  const off = await host.text()
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  for (const state of ['off', 'status'] as const) {
    const result = await toggle({ state, switch: '桥接' })
    assert.equal(result.changed, false)
    assert.equal(result.shared, false)
  }
  assert.deepEqual(await changes(), [])
  assert.equal(await host.text(), off)
  assert.notEqual(off, text)
})

test('changes nothing on a dry run', async () => {
  await external()
  const text = await host.text()
  const result = await toggle({ state: 'off', switch: '桥接', dryRun: true })
  assert.equal(result.changed, true)
  assert.equal(result.shared, false)
  assert.equal(await host.text(), text)
})

/** What there is to see of `fixed`. */
const seen = {
  dhcp: false,
  metric: 15,
  addresses: fixed.addresses,
  gateways: ['192.168.77.1'],
}

test('pain 18: on gives the host back all that went with its adapter at off, time and again', async () => {
  await external()
  await setFixed()
  for (let day = 0; day < 2; day++) {
    const off = await toggle({ state: 'off', switch: '桥接' })
    assert.deepEqual(off.before.network, fixed)
    assert.deepEqual(await saved(), fixed)
    assert.deepEqual((await toggle({ state: 'status', switch: '桥接' })).before.network, fixed)
    assert.equal((await toggle({ state: 'off', switch: '桥接' })).changed, false)
    const on = await toggle({ state: 'on', switch: '桥接' })
    assert.deepEqual(on.before, { shared: false, network: fixed })
    assert.deepEqual(await hostSide(), seen)
    assert.deepEqual((await toggle({ state: 'status', switch: '桥接' })).before.network, fixed)
    assert.equal(await saved(), undefined)
  }
})

test('takes the adapter’s own MAC address back, where Windows gives another', async () => {
  await external()
  await given`
    Get-VMNetworkAdapter -ManagementOS -Name 桥接 | Remove-VMNetworkAdapter
    Add-VMNetworkAdapter -ManagementOS -SwitchName 桥接 -Name Host -StaticMacAddress 00155D0A0B0C`
  const off = await toggle({ state: 'off' })
  await toggle({ state: 'on' })
  const { before } = await toggle({ state: 'status' })
  assert.equal(before.network?.mac, '00155D0A0B0C')
  assert.deepEqual(before.network, off.before.network)
})

test('keeps what it has when somebody else shared the switch meanwhile', async () => {
  await external()
  await setFixed()
  await toggle({ state: 'off' })
  await given`Get-VMSwitch -SwitchType External | Set-VMSwitch -AllowManagementOS $true`
  const on = await toggle({ state: 'on' })
  assert.equal(on.changed, false)
  assert.match(String(on.notes), /^The settings that were kept .* are not in use/)
  await toggle({ state: 'off' })
  assert.deepEqual(await saved(), fixed)
})

test('undo puts back what was, and is harmless when it is so already', async () => {
  await external()
  await setFixed()
  const shared = await host.state()
  const off = await toggle({ state: 'off', switch: '桥接' })
  const text = await host.text()
  const on = await toggle({ state: 'on', switch: '桥接' })
  await undoToggleShare(on, host.ps)
  await undoToggleShare(on, host.ps)
  // the counter of interfaces' numbers is not the state's
  assert.equal(await host.text(), text)
  assert.deepEqual(await saved(), fixed)
  await undoToggleShare(off, host.ps)
  await undoToggleShare(off, host.ps)
  assert.equal(await saved(), undefined)
  // a new adapter has a new GUID and a new number
  const again = (state: typeof shared) =>
    JSON.stringify({ ...state, switches: state.switches.length }).replace(
      /"ifIndex":\d+|"guid":"[^"]*"/g,
      '',
    )
  assert.equal(again(await host.state()), again(shared))
})

test('refuses settings that it cannot read, before it changes anything', async () => {
  await external()
  await toggle({ state: 'off' })
  const folder = join(String(host.env.ProgramData), 'vbox-to-hyperv')
  const [file = ''] = await fs.readdir(folder)
  await fs.writeFile(join(folder, file), '{"mac":')
  const text = await host.text()
  await assert.rejects(toggle({ state: 'on' }), {
    message: 'Cannot read the host\'s settings that were kept for the switch "桥接": the file is ' +
      `damaged. Note what is in it, and run: Remove-Item -LiteralPath '${join(folder, file)}'`,
  })
  assert.equal(await host.text(), text)
})

test('takes the host off again when its settings cannot be put back, and keeps them', async () => {
  await external()
  await setFixed()
  await toggle({ state: 'off' })
  await host.change((state) =>
    state.faults = [{
      cmdlet: 'New-NetIPAddress',
      error: { id: 'Windows System Error 87', message: 'The parameter is incorrect' },
    }]
  )
  await assert.rejects(toggle({ state: 'on' }), /Windows System Error 87/)
  assert.equal(await hostSide(), null)
  assert.deepEqual(await saved(), fixed)
})

test('pain 18: without the guard it cuts off nobody who is connected by this adapter alone', async () => {
  await external()
  await host.change((state) =>
    state.connections = [{ local: '10.20.30.40:3389', remote: '10.20.9.9:50123' }]
  )
  const text = await host.text()
  await assert.rejects(toggle({ state: 'off' }), {
    message: 'Cannot stop sharing the switch "桥接": somebody is connected to the host by its ' +
      'address 10.20.30.40 on it, and there is no other way in. Run it at the host itself',
  })
  assert.equal(await host.text(), text)
  // who asks over SSH is connected too, whatever the list says
  await host.change((state) => state.connections = [])
  await given`$env:SSH_CONNECTION = '10.20.9.9 50123 10.20.30.40 22'`
  await assert.rejects(toggle({ state: 'off' }), /by its address 10\.20\.30\.40 on it/)
  await given`$env:SSH_CONNECTION = $null`
  await host.change((state) => state.connections = JSON.parse(text).connections)
  // with a cable plugged in there is another way
  await host.change((state) => {
    const cable = state.adapters.find(({ name }: { name: string }) => name === 'Ethernet')
    const own = state.addresses.find(({ ifIndex }: { ifIndex: number }) =>
      ifIndex === cable.ifIndex
    )
    cable.status = 'Up'
    own.address = '192.168.1.5'
  })
  const off = await toggle({ state: 'off' })
  assert.deepEqual([off.changed, off.notes], [true, []])
})

test('pain 18: its undo cuts off nobody either', async () => {
  await external()
  await toggle({ state: 'off' })
  const on = await toggle({ state: 'on' })
  await host.change((state) =>
    state.connections = [{ local: '10.20.30.40:3389', remote: '10.20.9.9:50123' }]
  )
  await assert.rejects(undoToggleShare(on, host.ps), /connected to the host by its address 10\.20/)
  await assert.rejects(
    undoToggleShare(on, host.ps, { revertAfter: 5 }),
    /^HostError: Cannot keep the change of the switch "桥接", and took it back: .*somebody is connected/,
  )
  assert.notEqual(await hostSide(), null)
})

test('takes the one external switch, and asks which where there are more', async () => {
  const none = { message: /^Cannot share a switch: there is no external one\. Run create-switch/ }
  await assert.rejects(toggle({ state: 'off' }), none)
  await external()
  await given`$null = New-VMSwitch -Name [a*] -NetAdapterName Ethernet -AllowManagementOS $true`
  await assert.rejects(toggle({ state: 'off' }), {
    message: 'Cannot choose the switch: there are 2 external ones, "桥接", "[a*]". ' +
      "Run again with: --switch '桥接'",
  })
})

test('pain 18: keeps DNS servers that were set by hand beside DHCP', async () => {
  await external()
  await given`Set-DnsClientServerAddress -InterfaceAlias 'vEthernet (桥接)' -ServerAddresses 223.5.5.5, 9.9.9.9`
  const off = await toggle({ state: 'off' })
  assert.deepEqual([off.before.network?.dhcp, off.before.network?.dns], [true, [
    '223.5.5.5',
    '9.9.9.9',
  ]])
  await toggle({ state: 'on' })
  assert.deepEqual((await toggle({ state: 'status' })).before.network, off.before.network)
})

test('keeps the host’s settings when taking it off the switch fails half way', async () => {
  await external()
  await setFixed()
  const error = { id: 'OperationFailed', message: 'It is busy' }
  await host.change((state) => {
    state.faults = [{ cmdlet: 'Set-VMSwitch', nth: 1, when: 'after', error }]
  })
  await assert.rejects(toggle({ state: 'off' }), /busy/)
  assert.deepEqual((await toggle({ state: 'status' })).before.network, fixed)
  assert.equal(await saved(), undefined)
})

test('undo runs under the guard, and is done again where it cuts the host off', async () => {
  await external()
  await setFixed()
  await toggle({ state: 'off' })
  const on = await toggle({ state: 'on' })
  const guard = { probe: ['127.0.0.1:9'], revertAfter: 5 }
  await assert.rejects(
    undoToggleShare(on, host.ps, guard),
    /^HostError: Cannot keep the change of the switch "桥接", and took it back: .+127\.0\.0\.1:9/,
  )
  assert.deepEqual((await toggle({ state: 'status' })).before.network, fixed)
  await undoToggleShare(on, host.ps, { guard: true })
  assert.equal(await hostSide(), null)
  assert.deepEqual(await saved(), fixed)
})

test('does without the MAC address where another switch has the name', async () => {
  await external()
  await given`
    Get-VMNetworkAdapter -ManagementOS -Name 桥接 | Remove-VMNetworkAdapter
    Add-VMNetworkAdapter -ManagementOS -SwitchName 桥接 -Name Host -StaticMacAddress 00155D0A0B0C`
  const off = await toggle({ state: 'off' })
  await given`$null = New-VMSwitch -Name 桥接 -SwitchType Private`
  await undoToggleShare(off, host.ps)
  const { network } = (await toggle({ state: 'status' })).before
  assert.deepEqual([network?.mac, network?.name], ['A4C3F0112233', 'Host'])
})

test('undo is harmless when the switch is gone', async () => {
  await external()
  const off = await toggle({ state: 'off', switch: '桥接' })
  await given`Remove-VMSwitch -Name 桥接 -Force`
  const text = await host.text()
  await undoToggleShare(off, host.ps)
  assert.equal(await host.text(), text)
})

test('waits until the host’s adapter on the switch appears', async () => {
  await external()
  await toggle({ state: 'off', switch: '桥接' })
  await host.change((state) => state.host.adapterDelay = 3)
  assert.equal((await toggle({ state: 'on', switch: '桥接' })).changed, true)
  assert.notEqual(await hostSide(), null)
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    await external(name)
    const off = await toggle({ state: 'off', switch: name })
    assert.equal(off.switch, name)
    assert.equal(off.changed, true)
    await given`Get-VMSwitch -SwitchType External | Remove-VMSwitch -Force`
  }
})

test('refuses what it cannot share, and says why', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const text = await host.text()
  await assert.rejects(toggle({ state: 'off', switch: '*' }), {
    message: 'Cannot share the switch "*": 0 switches have that name. Run: Get-VMSwitch',
  })
  await assert.rejects(toggle({ state: 'off', switch: 'Static-NAT' }), {
    message: 'Cannot share the switch "Static-NAT": it is Internal, and only an external switch ' +
      'has a network adapter to share. Run: Get-VMSwitch -SwitchType External',
  })
  assert.equal(await host.text(), text)
  await assert.rejects(toggle({ state: 'off', switch: 'a\nb' }), {
    message:
      'Cannot share the switch "a\\nb": a name is not empty and has no control characters. ' +
      'Run: Get-VMSwitch',
  })
})

test('refuses to remove more of the host’s adapters than it can put back', async () => {
  await external()
  await given`Add-VMNetworkAdapter -ManagementOS -SwitchName 桥接 -Name Storage`
  const text = await host.text()
  await assert.rejects(toggle({ state: 'off', switch: '桥接' }), {
    message:
      'Cannot stop sharing the switch "桥接": the host has 2 adapters on it, and all would ' +
      'be removed: 桥接, Storage. Run: Get-VMNetworkAdapter -ManagementOS, and ' +
      'Remove-VMNetworkAdapter for all but one',
  })
  assert.equal(await host.text(), text)
})

test('makes shortcuts that run the command as administrator', async () => {
  const desktop = join(host.dir, 'Desktop')
  await fs.ensureDir(desktop)
  // COM is Windows' own; what is asked of it goes into the file that it would write
  await given`
    $desktop = ${desktop}
    $global:desktop = $desktop
    function global:New-Object {
      param([string]$TypeName, [object[]]$ArgumentList, [string]$ComObject)
      if (-not $ComObject) { return Microsoft.PowerShell.Utility\\New-Object $TypeName $ArgumentList }
      if ($ComObject -ne 'WScript.Shell') { throw "There is no $ComObject" }
      $folders = [pscustomobject]@{} | Add-Member -PassThru ScriptMethod Item { if ($args[0] -eq 'Desktop') { $global:desktop } }
      [pscustomobject]@{ SpecialFolders = $folders } | Add-Member -PassThru ScriptMethod CreateShortcut {
        [pscustomobject]@{ Path = $args[0]; TargetPath = ''; Arguments = '' } | Add-Member -PassThru ScriptMethod Save {
          if ($this.Path + $this.TargetPath + $this.Arguments -match '[^ -~]') { throw 'Unable to save shortcut' }
          [IO.File]::WriteAllText($this.Path, ('-' * 21) + [char]1 + $this.TargetPath + ' ' + $this.Arguments)
        }
      }
    }`
  try {
    const command = [process.execPath, '-A', import.meta.filename as string]
    const name = 'Bob’s; $(calc) 桥接: 50%'
    const paths = await makeShareShortcuts({ switch: name, command }, host.ps)
    const again = await makeShareShortcuts({ switch: name, command }, host.ps)
    assert.deepEqual(again, paths)
    assert.deepEqual(
      paths,
      ['on', 'off'].map((state) =>
        join(desktop, `toggle-share ${state} Bob’s; $(calc) 桥接_ 50%.lnk`)
      ),
    )
    assert.deepEqual((await fs.readdir(desktop)).length, 2)
    const text = await fs.readFile(String(paths[1]), 'latin1')
    assert.equal(text.charCodeAt(21), 0x21)
    const [, target, base64 = ''] = /^.{22}(\S+) .* -EncodedCommand (\S+)$/s.exec(text) ?? []
    assert.equal(target, 'powershell.exe')
    assert.equal(
      Buffer.from(base64, 'base64').toString('utf16le'),
      `& '${command[0]}' '-A' '${command[2]}' off --switch 'Bob’’s; $(calc) 桥接: 50%'; ` +
        'if ($LASTEXITCODE) { pause }',
    )
    const absent = { switch: name, command: [process.execPath, 'C:\\kit\\toggle-share.ts'] }
    await assert.rejects(makeShareShortcuts(absent, host.ps), {
      message: 'Cannot make shortcuts: the file "C:\\kit\\toggle-share.ts" is not on this host. ' +
        'Run it at the host itself',
    })
  } finally {
    await given`Remove-Item Function:/New-Object`
  }
  await assert.rejects(makeShareShortcuts({ switch: 'a"b', command: ['x'] }, host.ps), {
    message: 'Cannot make shortcuts for the switch "a\\"b": Windows cannot give a program a name ' +
      'with a quotation mark. Run: Rename-VMSwitch',
  })
})

test('runs from the command line', async () => {
  await external()
  const asked = await runTask(host, 'toggle-share', 'status')
  assert.deepEqual(
    [asked.code, asked.stderr],
    [0, 'The host uses the switch "桥接" too: 10.20.30.40/16\n'],
  )
  const done = await runTask(host, 'toggle-share', 'off', '--switch', '桥接')
  assert.deepEqual([done.code, done.stderr], [0, ''])
  assert.equal(JSON.parse(done.stdout).shared, false)
  const wrong = await runTask(host, 'toggle-share', 'maybe', '--switch', '桥接')
  assert.deepEqual([wrong.code, wrong.stdout], [1, ''])
})

sharing.run()
