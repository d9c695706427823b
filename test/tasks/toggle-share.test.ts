import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { suite } from 'uvu'
import { toggleShare, undoToggleShare } from '../../tasks/toggle-share.ts'
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
      addresses = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object { $_.IPAddress + '/' + $_.PrefixLength })
      gateways = @(Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -and $_.DestinationPrefix -eq '0.0.0.0/0' -and [string]$_.Protocol -ne 'Dhcp' } | ForEach-Object { [string]$_.NextHop })
    }`
  return JSON.parse(stdout)
}
const fixed = {
  dhcp: false,
  addresses: ['192.168.77.10/24'],
  gateways: ['192.168.77.1'],
  dns: ['192.168.77.2', '9.9.9.9'],
  metric: 15,
}
const setFixed = () =>
  given`
    $index = (Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)').InterfaceIndex
    Get-NetIPAddress -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index | Remove-NetIPAddress -Confirm:$false
    Get-NetRoute -AddressFamily IPv4 | Where-Object { $_.InterfaceIndex -eq $index -and $_.DestinationPrefix -eq '0.0.0.0/0' } | Remove-NetRoute -Confirm:$false
    $null = New-NetIPAddress -InterfaceIndex $index -IPAddress 192.168.77.10 -PrefixLength 24 -DefaultGateway 192.168.77.1
    Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses 192.168.77.2, 9.9.9.9
    Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -InterfaceMetric 15`

sharing.before(async () => {
  host = await simulatedHost()
  seed = await host.text()
})
sharing.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
})
sharing.after(() => host.close())

test('takes the host off the switch, and puts it back', async () => {
  await external()
  const off = await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  const { id, before, ...rest } = off
  assert.deepEqual(rest, { changed: true, switch: '桥接', shared: false })
  assert.match(id, /^[\da-f-]{36}$/)
  assert.equal(before.shared, true)
  assert.equal(before.network?.dhcp, true)
  assert.equal(await hostSide(), null)
  const on = await toggleShare({ state: 'on', switch: '桥接' }, host.ps)
  assert.deepEqual(on, {
    changed: true,
    id,
    switch: '桥接',
    shared: true,
    before: { shared: false, network: null },
  })
  assert.equal((await hostSide()).dhcp, true)
})

test('does nothing when it is so', async () => {
  await external()
  const text = await host.text()
  for (const state of ['on', 'status'] as const) {
    const result = await toggleShare({ state, switch: '桥接' }, host.ps)
    assert.equal(result.changed, false)
    assert.equal(result.shared, true)
    assert.equal(result.before.shared, true)
    await undoToggleShare(result, host.ps)
  }
  await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  const off = await host.text()
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  for (const state of ['off', 'status'] as const) {
    const result = await toggleShare({ state, switch: '桥接' }, host.ps)
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
  const result = await toggleShare({ state: 'off', switch: '桥接', dryRun: true }, host.ps)
  assert.equal(result.changed, true)
  assert.equal(result.shared, false)
  assert.equal(await host.text(), text)
})

test('undo gives the host back the settings that went with its adapter', async () => {
  await external()
  await setFixed()
  const { dns: _, ...seen } = fixed
  assert.deepEqual(await hostSide(), seen)
  const off = await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  assert.deepEqual(off.before.network, fixed)
  await undoToggleShare(off, host.ps)
  assert.deepEqual(await hostSide(), seen)
  const asked = await toggleShare({ state: 'status', switch: '桥接' }, host.ps)
  assert.deepEqual(asked.before.network, fixed)
  const text = await host.text()
  await undoToggleShare(off, host.ps)
  assert.equal(await host.text(), text)
})

test('on takes settings that an earlier run kept', async () => {
  await external()
  await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  const on = await toggleShare({ state: 'on', switch: '桥接', network: fixed }, host.ps)
  assert.equal(on.changed, true)
  const asked = await toggleShare({ state: 'status', switch: '桥接' }, host.ps)
  assert.deepEqual(asked.before.network, fixed)
  await undoToggleShare(on, host.ps)
  assert.equal(await hostSide(), null)
})

test('takes the host off again when its settings cannot be put back', async () => {
  await external()
  await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  await host.change((state) =>
    state.faults = [{
      cmdlet: 'New-NetIPAddress',
      error: { id: 'Windows System Error 87', message: 'The parameter is incorrect' },
    }]
  )
  await assert.rejects(
    toggleShare({ state: 'on', switch: '桥接', network: fixed }, host.ps),
    /Windows System Error 87/,
  )
  assert.equal(await hostSide(), null)
})

test('undo is harmless when the switch is gone', async () => {
  await external()
  const off = await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  await given`Remove-VMSwitch -Name 桥接 -Force`
  const text = await host.text()
  await undoToggleShare(off, host.ps)
  assert.equal(await host.text(), text)
})

test('waits until the host’s adapter on the switch appears', async () => {
  await external()
  await toggleShare({ state: 'off', switch: '桥接' }, host.ps)
  await host.change((state) => state.host.adapterDelay = 3)
  assert.equal((await toggleShare({ state: 'on', switch: '桥接' }, host.ps)).changed, true)
  assert.notEqual(await hostSide(), null)
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    await external(name)
    const off = await toggleShare({ state: 'off', switch: name }, host.ps)
    assert.equal(off.switch, name)
    assert.equal(off.changed, true)
    await given`Get-VMSwitch -SwitchType External | Remove-VMSwitch -Force`
  }
})

test('refuses what it cannot share, and says why', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const text = await host.text()
  await assert.rejects(toggleShare({ state: 'off', switch: '*' }, host.ps), {
    message: 'Cannot share the switch "*": 0 switches have that name. Run: Get-VMSwitch',
  })
  await assert.rejects(toggleShare({ state: 'off', switch: 'Static-NAT' }, host.ps), {
    message: 'Cannot share the switch "Static-NAT": it is Internal, and only an external switch ' +
      'has a network adapter to share. Run: Get-VMSwitch -SwitchType External',
  })
  assert.equal(await host.text(), text)
  await assert.rejects(toggleShare({ state: 'off', switch: 'a\nb' }, host.ps), {
    message:
      'Cannot share the switch "a\\nb": a name is not empty and has no control characters. ' +
      'Run: Get-VMSwitch',
  })
})

test('refuses to remove more of the host’s adapters than it can put back', async () => {
  await external()
  await given`Add-VMNetworkAdapter -ManagementOS -SwitchName 桥接 -Name Storage`
  const text = await host.text()
  await assert.rejects(toggleShare({ state: 'off', switch: '桥接' }, host.ps), {
    message:
      'Cannot stop sharing the switch "桥接": the host has 2 adapters on it, and all would ' +
      'be removed: 桥接, Storage. Run: Get-VMNetworkAdapter -ManagementOS, and ' +
      'Remove-VMNetworkAdapter for all but one',
  })
  assert.equal(await host.text(), text)
})

test('runs from the command line', async () => {
  await external()
  const done = await runTask(host, 'toggle-share', 'off', '--switch', '桥接')
  assert.deepEqual([done.code, done.stderr], [0, ''])
  assert.equal(JSON.parse(done.stdout).shared, false)
  const wrong = await runTask(host, 'toggle-share', 'maybe', '--switch', '桥接')
  assert.deepEqual([wrong.code, wrong.stdout], [1, ''])
})

sharing.run()
