import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import {
  createSwitch,
  type CreateSwitchOptions,
  undoCreateSwitch,
} from '../../tasks/create-switch.ts'
import { ConnectionError } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const making = suite('createSwitch')
const test = needs(making, 'pwsh')
const hostile = 'Bob’s "VM"; $(calc) 桥接'
const onWifi = { switch: '桥接', type: 'external', adapter: 'Wi-Fi' } as const

let host: SimulatedHost
let seed: string
/** The Wi-Fi adapter's description. */
let wifi: string
/** Another adapter, a wired one. */
let wired: { name: string; description: string }

/** Runs a script of the test's own on the host, and forgets that it ran. */
const given: SimulatedHost['ps'] = async (pieces, ...values) => {
  const answer = await host.ps(pieces, ...values)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  return answer
}
const changes = async () =>
  (await host.calls()).map(({ cmdlet }) => cmdlet).filter((cmdlet) => !cmdlet.startsWith('Get-'))
const switches = async () => {
  const { stdout } = await host.ps`
    ConvertTo-Json -Compress @(Get-VMSwitch | ForEach-Object { "$($_.Name) $($_.SwitchType) $([bool]$_.AllowManagementOS)" })`
  return JSON.parse(stdout) as string[]
}

making.before(async () => {
  host = await simulatedHost()
  // what guards do by themselves is tested in guard.test.ts
  await host.change((state) => state.host.tasksHeld = true)
  seed = await host.text()
  const { stdout } = await host.ps`
    ConvertTo-Json -Compress @(Get-NetAdapter | ForEach-Object { @{ name = $_.Name; description = $_.InterfaceDescription } })`
  const cards: { name: string; description: string }[] = JSON.parse(stdout)
  wifi = cards.find(({ name }) => name === 'Wi-Fi')?.description ?? ''
  wired = cards.find(({ name }) => name === 'Ethernet') ?? { name: '', description: '' }
})
making.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  await fs.remove(String(host.env.ProgramData))
})
making.after(() => host.close())

test('makes an external switch that the host uses too', async () => {
  const { id, notes, before, ...rest } = await createSwitch(onWifi, host.ps)
  assert.deepEqual(rest, {
    changed: true,
    switch: '桥接',
    type: 'external',
    adapter: wifi,
    shared: true,
  })
  assert.match(String(id), /^[\da-f-]{36}$/)
  assert.equal(before.exists, false)
  assert.equal(before.network?.dhcp, true)
  assert.match(
    notes.join(),
    /^The adapter "Wi-Fi" is Wi-Fi: access points take frames from one MAC/,
  )
  assert.ok((await switches()).includes('桥接 External True'))
})

/** The host's network, in no order; Windows makes link-local addresses by itself. */
const network = async () => {
  const { adapters, interfaces, addresses, routes, switches, tasks } = await host.state()
  const sorted = (list: object[]) =>
    list.map((item) => JSON.stringify(item)).filter((text) => !text.includes('fe80')).sort()
  return [adapters, interfaces, addresses, routes, switches, tasks].map(sorted)
}

test('pain 17: takes the switch off the Wi-Fi again when the host gets no network through it', async () => {
  await host.change((state) => {
    const card = state.adapters.find(({ name }: { name: string }) => name === 'Wi-Fi')
    card.network.refusesBridge = true
  })
  const before = await network()
  await assert.rejects(createSwitch({ ...onWifi, revertAfter: 5 }, host.ps), {
    message:
      'Cannot keep the change of the switch "桥接", and took it back: after it the gateway ' +
      '10.20.0.1 does not answer, the DNS server 10.20.0.2 is not set, the DNS server 10.20.0.3 is ' +
      'not set. Mend that, or do without the test. Run again with: --no-guard',
  })
  assert.deepEqual(await network(), before)
  // who knows better has it
  const made = await createSwitch({ ...onWifi, guard: false }, host.ps)
  assert.equal(made.changed, true)
})

test('takes a switch back that was made, by its name, when nobody confirms it', async () => {
  const before = await network()
  let calls = 0
  const dying: typeof host.ps = async (pieces, ...values) => {
    if (calls++ > 0) throw new ConnectionError('PowerShell ended')
    return await host.ps(pieces, ...values)
  }
  await assert.rejects(createSwitch({ ...onWifi, switch: hostile }, dying), ConnectionError)
  assert.ok((await switches()).includes(`${hostile} External True`))
  await assert.rejects(
    createSwitch({ ...onWifi, adapter: 'none' }, host.ps),
    /Cannot make the switch "桥接" on "none": no network adapter/,
  )
  const after = await network()
  assert.deepEqual(after, before)
})

test('pain 18: without the guard it cuts off nobody who is connected by this adapter alone', async () => {
  await host.change((state) =>
    state.connections = [{ local: '10.20.30.40:22', remote: '10.20.9.9:50123' }]
  )
  const text = await host.text()
  await assert.rejects(createSwitch({ ...onWifi, guard: false }, host.ps), {
    message: 'Cannot change the switch "桥接": somebody is connected to the host by its address ' +
      '10.20.30.40 on "Wi-Fi", and there is no other way in. Run it at the host itself, or under ' +
      'the guard: without --no-guard, or from elsewhere with --host ssh://HOST',
  })
  assert.equal(await host.text(), text)
})

test('pain 18: its undo cuts off nobody either, but takes back what is to be', async () => {
  const made = await createSwitch({ ...onWifi, guard: false }, host.ps)
  await host.change((state) =>
    state.connections = [{ local: '10.20.30.40:3389', remote: '10.20.9.9:50123' }]
  )
  const text = await host.text()
  await assert.rejects(undoCreateSwitch(made, host.ps), {
    message: 'Cannot change the switch "桥接": somebody is connected to the host by its address ' +
      '10.20.30.40 on "vEthernet (桥接)", and there is no other way in. Run it at the host itself, ' +
      'or under the guard: without --no-guard, or from elsewhere with --host ssh://HOST',
  })
  assert.equal(await host.text(), text)
  await undoCreateSwitch(made, host.ps, { guard: true })
  assert.ok(!(await switches()).some((name) => name.startsWith('桥接')))
})

test('makes internal and private switches', async () => {
  for (const [type, shared] of [['internal', true], ['private', false]] as const) {
    const result = await createSwitch({ switch: type, type }, host.ps)
    assert.deepEqual([result.changed, result.shared, result.adapter], [true, shared, null])
  }
  const made = await switches()
  assert.ok(made.includes('internal Internal True'))
  assert.ok(made.includes('private Private False'))
})

test('finds the adapter by its description in any case', async () => {
  const result = await createSwitch({ ...onWifi, adapter: wifi.toUpperCase() }, host.ps)
  assert.equal(result.adapter, wifi)
})

test('does nothing when the switch is there', async () => {
  const made = await createSwitch({ ...onWifi, share: false }, host.ps)
  await createSwitch({ switch: 'Static-NAT', type: 'internal' }, host.ps)
  const text = await host.text()
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  const again: CreateSwitchOptions[] = [
    onWifi,
    { ...onWifi, share: false },
    { switch: '桥接', type: 'external' },
    { switch: 'static-nat', type: 'internal' },
  ]
  for (const options of again) {
    const result = await createSwitch(options, host.ps)
    assert.deepEqual([result.changed, result.before.exists, result.notes], [false, true, []])
    if (options.type === 'external') assert.equal(result.id, made.id)
    if (options.adapter) assert.equal(result.adapter, wifi)
    await undoCreateSwitch(result, host.ps)
  }
  assert.deepEqual(await changes(), [])
  assert.equal(await host.text(), text)
})

test('changes nothing on a dry run', async () => {
  const made = await createSwitch({ ...onWifi, dryRun: true }, host.ps)
  assert.deepEqual([made.changed, made.id, made.adapter, made.shared], [true, null, wifi, true])
  await undoCreateSwitch(made, host.ps)
  assert.equal(await host.text(), seed)
  await createSwitch(onWifi, host.ps)
  const text = await host.text()
  const off = await createSwitch({ ...onWifi, share: false, dryRun: true }, host.ps)
  assert.deepEqual([off.changed, off.shared, off.before.shared], [true, false, true])
  assert.equal(await host.text(), text)
})

test('changes only sharing of a switch that is there', async () => {
  const { id } = await createSwitch(onWifi, host.ps)
  const before = await host.text()
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  const off = await createSwitch({ ...onWifi, share: false, guard: false }, host.ps)
  assert.deepEqual([off.changed, off.id, off.shared, off.before.shared], [true, id, false, true])
  assert.deepEqual(await changes(), ['Set-VMSwitch'])
  assert.ok((await switches()).includes('桥接 External False'))
  await undoCreateSwitch(off, host.ps)
  assert.ok((await switches()).includes('桥接 External True'))
  const text = await host.text()
  await undoCreateSwitch(off, host.ps)
  assert.equal(await host.text(), text)
  assert.notEqual(before, seed)
})

test('says that the host goes offline', async () => {
  const { notes } = await createSwitch({ ...onWifi, share: false, dryRun: true }, host.ps)
  assert.ok(
    notes.includes(
      'The host is offline while the switch "桥接" is not shared: "Wi-Fi" is its only way out',
    ),
    notes.join(),
  )
})

/**
 * A state without what cannot return: order, counters, network profiles, and addresses that Windows
 * makes up (fe80, 169.254).
 */
const lasting = (whole: {
  host: Record<string, unknown>
  profiles: unknown
  addresses: { suffix: string }[]
}) => {
  const { host: { nextIfIndex: _, ...facts }, profiles: __, addresses, ...state } = whole
  const sorted = (list: unknown) =>
    Array.isArray(list)
      ? list.map((item) => JSON.stringify(item)).filter((text) => !text.includes('fe80')).sort()
      : list
  const lists = Object.entries(state).map(([key, value]) => [key, sorted(value)])
  const kept = addresses.filter(({ suffix }) => suffix !== 'Link')
  return { facts, addresses: sorted(kept), ...Object.fromEntries(lists) }
}

test('undo removes what it made, and leaves the host as it was', async () => {
  const before = lasting(await host.state())
  for (const share of [true, false]) {
    const made = await createSwitch({ ...onWifi, share }, host.ps)
    await undoCreateSwitch(made, host.ps)
    assert.deepEqual(lasting(await host.state()), before)
    const text = await host.text()
    await undoCreateSwitch(made, host.ps)
    assert.equal(await host.text(), text)
  }
})

test('keeps the settings that the adapter was given by hand, and undo gives them back', async () => {
  await given`
    $null = New-NetIPAddress -InterfaceAlias Ethernet -IPAddress 192.168.77.10 -PrefixLength 24 -DefaultGateway 192.168.77.1
    Set-DnsClientServerAddress -InterfaceAlias Ethernet -ServerAddresses 192.168.77.2, 9.9.9.9
    Set-NetIPInterface -InterfaceAlias Ethernet -AddressFamily IPv4 -InterfaceMetric 15`
  const before = lasting(await host.state())
  const made = await createSwitch({ ...onWifi, adapter: 'Ethernet' }, host.ps)
  assert.deepEqual(made.before.network, {
    dhcp: false,
    addresses: ['192.168.77.10/24'],
    routes: [{ to: '0.0.0.0/0', by: '192.168.77.1', metric: 256 }],
    dns: ['192.168.77.2', '9.9.9.9'],
    metric: 15,
    profile: null,
  })
  const { stdout } = await host.ps`
    $card = Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)'
    $ip = Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex
    ConvertTo-Json -Compress @{
      metric = [int]$ip.InterfaceMetric
      addresses = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex | ForEach-Object IPAddress)
      gateways = @(Get-NetRoute -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $card.InterfaceIndex | ForEach-Object NextHop)
      dns = @((Get-DnsClientServerAddress -InterfaceIndex $card.InterfaceIndex -AddressFamily IPv4).ServerAddresses)
    }`
  assert.deepEqual(JSON.parse(stdout), {
    metric: 15,
    addresses: ['192.168.77.10'],
    gateways: ['192.168.77.1'],
    dns: ['192.168.77.2', '9.9.9.9'],
  })
  await undoCreateSwitch(made, host.ps)
  assert.deepEqual(lasting(await host.state()), before)
})

test('keeps the metric of the default gateway, and reads a journal of before that has none', async () => {
  await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  await given`
    $null = New-NetIPAddress -InterfaceAlias 'vEthernet (桥接)' -IPAddress 192.168.77.10 -PrefixLength 24
    $null = New-NetRoute -InterfaceAlias 'vEthernet (桥接)' -DestinationPrefix 0.0.0.0/0 -NextHop 192.168.77.1 -RouteMetric 5`
  const metrics = async () =>
    (await host.state()).routes.filter(({ nextHop }: { nextHop: string }) =>
      nextHop === '192.168.77.1'
    ).map(({ metric }: { metric: number }) => metric)
  const off = await createSwitch(
    { ...onWifi, adapter: 'auto', share: false, guard: false },
    host.ps,
  )
  await undoCreateSwitch(off, host.ps)
  assert.deepEqual(await metrics(), [5])
  await createSwitch({ ...onWifi, adapter: 'auto', share: false, guard: false }, host.ps)
  assert.ok(off.before.network)
  const old = { ...off.before.network, routes: [], gateways: ['192.168.77.1'] }
  await undoCreateSwitch({ ...off, before: { ...off.before, network: old } }, host.ps)
  assert.deepEqual(await metrics(), [256])
})

test('undo is harmless where an adapter is gone, under the guard too', async () => {
  const unplug = (gone: string) =>
    host.change((state) => {
      state.adapters = state.adapters.filter(({ name }: { name: string }) => name !== gone)
    })
  const made = await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  const moved = await createSwitch({ ...onWifi, guard: false }, host.ps)
  await unplug('Ethernet')
  await undoCreateSwitch(moved, host.ps, { guard: true })
  assert.ok((await switches()).includes('桥接 Internal True'))
  await undoCreateSwitch(made, host.ps, { guard: true })
  assert.deepEqual((await switches()).filter((name) => name.startsWith('桥接')), [])
  assert.deepEqual((await host.state()).tasks, [])
  assert.deepEqual(host.warnings.splice(0), [
    `The network adapter "${wired.description}" is gone, so the switch "桥接" is on none`,
    `The network adapter "${wired.description}" is gone, so its settings are as Windows keeps them`,
  ])
})

test('pain 17: keeps DNS servers, routes and metric that were set by hand beside DHCP', async () => {
  await given`
    Set-DnsClientServerAddress -InterfaceAlias Wi-Fi -ServerAddresses 223.5.5.5, 9.9.9.9
    $null = New-NetRoute -InterfaceAlias Wi-Fi -DestinationPrefix 10.99.0.0/16 -NextHop 10.20.0.9 -RouteMetric 5
    Set-NetIPInterface -InterfaceAlias Wi-Fi -AddressFamily IPv4 -InterfaceMetric 15`
  const before = lasting(await host.state())
  const made = await createSwitch(onWifi, host.ps)
  assert.deepEqual(made.before.network, {
    dhcp: true,
    addresses: [],
    routes: [{ to: '10.99.0.0/16', by: '10.20.0.9', metric: 5 }],
    dns: ['223.5.5.5', '9.9.9.9'],
    metric: 15,
    profile: 'Office',
  })
  const { stdout } = await host.ps`
    $index = (Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)').InterfaceIndex
    $ip = Get-NetIPInterface -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index
    ConvertTo-Json -Compress @{
      dhcp = [string]$ip.Dhcp
      metric = [int]$ip.InterfaceMetric
      routes = @(Get-NetRoute -AddressFamily IPv4 | Where-Object InterfaceIndex -eq $index | ForEach-Object { "$($_.DestinationPrefix) $($_.NextHop)" })
      dns = @((Get-DnsClientServerAddress -InterfaceIndex $index -AddressFamily IPv4).ServerAddresses)
    }`
  assert.deepEqual(JSON.parse(stdout), {
    dhcp: 'Enabled',
    metric: 15,
    routes: ['0.0.0.0/0 10.20.0.1', '10.99.0.0/16 10.20.0.9'],
    dns: ['223.5.5.5', '9.9.9.9'],
  })
  await undoCreateSwitch(made, host.ps)
  assert.deepEqual(lasting(await host.state()), before)
})

test('gives the host its settings back when taking it off the switch fails half way', async () => {
  await plugIn()
  await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  const error = { id: 'OperationFailed', message: 'It is busy' }
  await host.change((state) => {
    state.faults = [{ cmdlet: 'Set-VMSwitch', nth: 1, when: 'after', error }]
  })
  await assert.rejects(createSwitch({ ...onWifi, share: false, guard: false }, host.ps), /busy/)
  assert.ok((await switches()).includes('桥接 External True'))
  const { stdout } = await host.ps`
    ConvertTo-Json -Compress @(Get-NetIPAddress | Where-Object { $_.InterfaceAlias -eq 'vEthernet (桥接)' -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object IPAddress)`
  assert.deepEqual(JSON.parse(stdout), ['192.168.77.10', 'fd00:77::10'])
})

test('moves a switch whose adapter is gone, and its undo frees the other one', async () => {
  const { id } = await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  await given`$null = New-VM -Name web -NoVHD -SwitchName 桥接`
  await host.change((state) => {
    state.adapters = state.adapters.filter(({ name }: { name: string }) => name !== 'Ethernet')
  })
  const moved = await createSwitch({ ...onWifi, revertAfter: 9 }, host.ps)
  assert.deepEqual([moved.changed, moved.id, moved.before.adapter], [true, id, ''])
  for (let times = 0; times < 2; times++) await undoCreateSwitch(moved, host.ps)
  const { stdout } = await host.ps`
    ConvertTo-Json -Compress @{
      switch = (Get-VMNetworkAdapter -VMName web).SwitchName
      type = [string](Get-VMSwitch -Name 桥接).SwitchType
      wifi = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object InterfaceAlias -eq 'Wi-Fi' | ForEach-Object IPAddress)
    }`
  assert.deepEqual(JSON.parse(stdout), { switch: '桥接', type: 'Internal', wifi: ['10.20.30.40'] })
})

test('undo refuses to remove a switch that a VM is on', async () => {
  const made = await createSwitch({ switch: 'Static-NAT', type: 'internal' }, host.ps)
  await given`$null = New-VM -Name web -NoVHD -SwitchName Static-NAT`
  await assert.rejects(undoCreateSwitch(made, host.ps), {
    message: 'Cannot remove the switch "Static-NAT": the VM "web" is on it. Run: ' +
      `Get-VMNetworkAdapter -All | Where-Object SwitchId -eq ${made.id} | Disconnect-VMNetworkAdapter`,
  })
  assert.ok((await switches()).includes('Static-NAT Internal True'))
})

test('pain 17: removes the switch again when Windows cannot bind the adapter, and says what to do', async () => {
  const error = {
    id: 'ObjectNotFound,Microsoft.HyperV.PowerShell.Commands.NewVMSwitch',
    message: '找不到元素。',
  }
  // deno-lint-ignore no-explicit-any
  const failures: ((state: any) => void)[] = [
    // the id as it was seen, in the middle of making the switch; and the code alone, before it
    (state) => state.faults = [{ cmdlet: 'New-VMSwitch', when: 'after', error }],
    (state) => state.adapters[0].switchError = 0x80070490,
  ]
  for (const fail of failures) {
    await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
    await host.change(fail)
    const before = lasting(await host.state())
    await assert.rejects(createSwitch(onWifi, host.ps), {
      message:
        'Cannot make the switch "桥接" on "Wi-Fi": Windows could not bind the adapter to it ' +
        '(0x80070490), as happens with some Wi-Fi drivers. Update the driver and restart Windows, ' +
        'or do without the adapter. Run again with: --type internal, and then set-static-ip with: --nat',
    })
    assert.deepEqual(lasting(await host.state()), before)
  }
})

test('waits until the host’s adapter on the switch appears', async () => {
  await host.change((state) => state.host.adapterDelay = 3)
  assert.equal((await createSwitch(onWifi, host.ps)).changed, true)
  const { stdout } = await host
    .ps`@(Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)').Count`
  assert.equal(stdout, '1')
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    const made = await createSwitch({ switch: name, type: 'private' }, host.ps)
    assert.equal(made.switch, name)
    assert.equal((await createSwitch({ switch: name, type: 'private' }, host.ps)).changed, false)
    assert.equal((await createSwitch({ switch: 'a', type: 'private' }, host.ps)).changed, true)
    await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  }
})

const refusals: [string, string, CreateSwitchOptions, RegExp | string][] = [
  [
    'an external switch without an adapter',
    '',
    { switch: 'x', type: 'external' },
    'Cannot make the external switch "x": it needs a network adapter. ' +
    'Run Get-NetAdapter for their names, and again with: --adapter',
  ],
  [
    'an adapter that is not there',
    '',
    { switch: 'x', type: 'external', adapter: 'WLAN*' },
    /^Cannot make the switch "x" on "WLAN\*": no network adapter has that name, among .*"Wi-Fi" \(.*\)\. Run: Get-NetAdapter$/,
  ],
  [
    'a switch of another type',
    'New-VMSwitch -Name x -SwitchType Private',
    { switch: 'X', type: 'internal' },
    /^Cannot make the internal switch "X": there is one of that name that is private\. Choose another name, or run: Get-VMSwitch -Id [\da-f-]{36} \| Rename-VMSwitch -NewName <another name>$/,
  ],
  [
    'an adapter that another switch has',
    'New-VMSwitch -Name "Bob’s" -NetAdapterName Wi-Fi -AllowManagementOS $true',
    onWifi,
    'Cannot make the switch "桥接" on "Wi-Fi": the switch "Bob’s" has that adapter, and an adapter ' +
    "serves one switch. Run again with: --switch 'Bob’’s'",
  ],
  [
    'several switches of that name',
    'New-VMSwitch -Name x -SwitchType Private; New-VMSwitch -Name x -SwitchType Private',
    { switch: 'x', type: 'private' },
    /^Cannot take the switch "x": 2 switches have that name: [\da-f-]{36}, [\da-f-]{36}\. Run: /,
  ],
  [
    'pain 20: the Default Switch',
    '',
    { switch: 'Default Switch', type: 'internal' },
    'Cannot take the switch "Default Switch": it is the Default Switch, which Windows changes by ' +
    'itself. Run again with another name: --switch',
  ],
]
for (const [what, prepare, options, message] of refusals) {
  test(what.startsWith('pain') ? what.replace(': ', ': refuses ') : `refuses ${what}`, async () => {
    if (prepare) {
      await given`
        $script = ${prepare}
        $null = & ([scriptblock]::Create($script))`
    }
    const text = await host.text()
    await assert.rejects(createSwitch(options, host.ps), { message })
    assert.equal(await host.text(), text)
  })
}

/** The wired adapter is connected, with an address by hand, and its way out is the better one. */
const plugIn = () =>
  host.change((state) => {
    const card = state.adapters.find(({ name }: { name: string }) => name === 'Ethernet')
    card.status = 'Up'
    card.network = { name: 'Lab', address: '192.168.77.10', prefix: 24, gateway: '192.168.77.1' }
    Object.assign(state.interfaces.find(({ ifIndex }: { ifIndex: number }) => ifIndex === 7), {
      dhcp: false,
      metric: 5,
      automaticMetric: false,
    })
    const ours = ({ ifIndex }: { ifIndex: number }) => ifIndex !== 7
    const by = { prefix: 24, origin: 'Manual', suffix: 'Manual' }
    state.addresses = [
      ...state.addresses.filter(ours),
      { ifIndex: 7, address: '192.168.77.10', ...by },
      { ifIndex: 7, address: 'fd00:77::10', ...by, prefix: 64 },
    ]
    const way = {
      ifIndex: 7,
      prefix: '0.0.0.0/0',
      nextHop: '192.168.77.1',
      metric: 1,
      byHand: true,
    }
    state.routes = [...state.routes.filter(ours), way]
    state.profiles = [...state.profiles.filter(ours), {
      ifIndex: 7,
      name: 'Lab',
      category: 'Private',
    }]
  })
const adapter = (more: object) =>
  host.change((state) =>
    state.adapters.push({
      ...{
        name: 'VPN',
        description: 'Wintun Userspace Tunnel',
        ifIndex: 99,
        mac: '',
        status: 'Up',
      },
      ...{ guid: '00000000-0000-4000-8000-000000000099', physicalMedia: 'Unspecified', speed: 1e9 },
      ...{ virtual: false, bound: [], bridge: null, suspended: null, delay: 0, network: null },
      ...more,
    })
  )

test('moves a switch to another adapter in place, with its VMs, and back', async () => {
  await plugIn()
  const { id } = await createSwitch({ ...onWifi, guard: false }, host.ps)
  await given`
    $null = New-VM -Name web -Generation 2 -MemoryStartupBytes 1GB -NoVHD -SwitchName 桥接`
  const before = await host.state()
  const moved = await createSwitch({ ...onWifi, adapter: 'Ethernet' }, host.ps)
  assert.deepEqual([moved.changed, moved.id, moved.adapter], [true, id, wired.description])
  assert.deepEqual([moved.before.exists, moved.before.adapter], [true, wifi])
  assert.deepEqual(moved.before.network?.addresses, ['192.168.77.10/24', 'fd00:77::10/64'])
  const { stdout } = await host.ps`
    $card = Get-NetAdapter | Where-Object Name -eq 'vEthernet (桥接)'
    ConvertTo-Json -Compress @{
      vm = (Get-VMNetworkAdapter -VMName web).SwitchName
      addresses = @(Get-NetIPAddress | Where-Object { $_.InterfaceIndex -eq $card.InterfaceIndex -and [string]$_.PrefixOrigin -eq 'Manual' } | ForEach-Object IPAddress)
      wifi = @(Get-NetIPAddress -AddressFamily IPv4 | Where-Object InterfaceAlias -eq 'Wi-Fi' | ForEach-Object IPAddress)
      category = [string](Get-NetConnectionProfile | Where-Object InterfaceIndex -eq $card.InterfaceIndex).NetworkCategory
    }`
  assert.deepEqual(JSON.parse(stdout), {
    vm: '桥接',
    addresses: ['192.168.77.10', 'fd00:77::10'],
    wifi: ['10.20.30.40'],
    category: 'Private',
  })
  assert.equal((await createSwitch({ ...onWifi, adapter: 'Ethernet' }, host.ps)).changed, false)
  await undoCreateSwitch(moved, host.ps)
  await undoCreateSwitch(moved, host.ps)
  const seen = ({ addresses, routes, switches, profiles }: typeof before) => ({
    addresses: addresses.filter(({ suffix }: { suffix: string }) => suffix !== 'Link')
      .map(({ address }: { address: string }) => address).sort(),
    routes: routes.map(({ nextHop }: { nextHop: string }) => nextHop).sort(),
    switches: switches.map(({ id, name, type }: Record<string, string>) => [id, name, type]),
    profiles: profiles.map(({ name, category }: Record<string, string>) => [name, category]).sort(),
  })
  assert.deepEqual(seen(await host.state()), seen(before))
  assert.equal((await createSwitch(onWifi, host.ps)).changed, false)
})

test('takes an undo back that cuts the host off, and undoes what it made again', async () => {
  const made = await createSwitch({ ...onWifi, vlan: 20, guard: false }, host.ps)
  const guard = { probe: ['127.0.0.1:9'], revertAfter: 5 }
  await assert.rejects(
    undoCreateSwitch(made, host.ps, guard),
    /^HostError: Cannot keep the change of the switch "桥接", and took it back: .+127\.0\.0\.1:9 does not/,
  )
  const [again] = JSON.parse(
    (await host
      .ps`ConvertTo-Json -Compress @(Get-VMSwitch -SwitchType External | Select-Object Name, AllowManagementOS)`)
      .stdout,
  )
  assert.deepEqual(again, { Name: '桥接', AllowManagementOS: true })
  const { stdout } = await host
    .ps`[string](Get-VMNetworkAdapterVlan -ManagementOS -VMNetworkAdapterName 桥接).AccessVlanId`
  assert.equal(stdout.trim(), '20')
  await undoCreateSwitch(made, host.ps, { guard: true })
  assert.ok(!(await switches()).some((name) => name.startsWith('桥接')))
})

test('undo leaves alone what somebody else made under the name since', async () => {
  for (const options of [{ ...onWifi, guard: false }, { switch: 'x', type: 'internal' }] as const) {
    const made = await createSwitch(options, host.ps)
    const { switch: name, type } = options
    await given`
      $name = ${name}
      $type = ${type}
      Get-VMSwitch -Name $name | Remove-VMSwitch -Force
      if ($type -eq 'internal') { $null = New-VMSwitch -Name $name -SwitchType Internal }
      else { $null = New-VMSwitch -Name $name -NetAdapterName Wi-Fi -AllowManagementOS $true }`
    const text = await host.text()
    await undoCreateSwitch(made, host.ps)
    assert.equal(await host.text(), text)
  }
})

test('puts a switch back that cannot be moved whole', async () => {
  await plugIn()
  await createSwitch({ ...onWifi, guard: false }, host.ps)
  const error = { id: 'Windows System Error 87', message: 'No' }
  await host.change((state) =>
    state.faults = [{ cmdlet: 'Set-NetConnectionProfile', nth: 1, error }]
  )
  await assert.rejects(createSwitch({ ...onWifi, adapter: '7', guard: false }, host.ps), /No/)
  const { stdout } = await host.ps`(Get-VMSwitch -Name 桥接).NetAdapterInterfaceDescription`
  assert.notEqual(stdout.trim(), wired.description)
  const [{ InterfaceAlias }] = JSON.parse(
    (await host
      .ps`ConvertTo-Json -Compress @(Get-NetIPAddress | Where-Object IPAddress -eq 192.168.77.10 | Select-Object InterfaceAlias)`)
      .stdout,
  )
  assert.equal(InterfaceAlias, 'Ethernet')
})

test('knows the adapter of a switch by its GUID, as Hyper-V may call it otherwise', async () => {
  const { id } = await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  await adapter({ name: 'Ethernet 2', description: `${wired.description} #2` })
  await host.change((state) => state.adapters[1].hyperVDescription = `${wired.description} #2`)
  const text = await host.text()
  const again = await createSwitch({ ...onWifi, adapter: 'Ethernet' }, host.ps)
  assert.deepEqual([again.changed, again.id], [false, id])
  const other = { ...onWifi, switch: 'other', dryRun: true }
  await assert.rejects(
    createSwitch({ ...other, adapter: 'Ethernet' }, host.ps),
    /the switch "桥接" has that adapter/,
  )
  assert.equal((await createSwitch({ ...other, adapter: 'Ethernet 2' }, host.ps)).changed, true)
  assert.equal(
    (await createSwitch({ ...onWifi, adapter: '99', dryRun: true }, host.ps)).changed,
    true,
  )
  assert.equal(await host.text(), text)
})

test('knows the adapter of a switch by its description on a Windows that says no GUID', async () => {
  await host.change((state) => state.host.noAdapterGuids = true)
  await createSwitch({ ...onWifi, guard: false }, host.ps)
  assert.equal((await createSwitch(onWifi, host.ps)).changed, false)
})

test('takes a switch on a team of adapters with any of them, and moves it to no other', async () => {
  await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  await adapter({ name: 'Ethernet 2', description: 'Another make' })
  await host.change((state) => {
    const one = state.switches.find(({ name }: { name: string }) => name === '桥接')
    one.team = [one.adapter, '00000000-0000-4000-8000-000000000099']
  })
  const text = await host.text()
  for (const name of ['Ethernet', 'Ethernet 2']) {
    assert.equal((await createSwitch({ ...onWifi, adapter: name }, host.ps)).changed, false)
  }
  await assert.rejects(createSwitch(onWifi, host.ps), {
    message:
      'Cannot move the switch "桥接" to "Wi-Fi": it is on a team of adapters. Choose another ' +
      "name, or run: Set-VMSwitchTeam -Name '桥接' -NetAdapterName 'Wi-Fi'",
  })
  assert.equal(await host.text(), text)
})

test('takes an adapter by its index', async () => {
  const made = await createSwitch({ ...onWifi, adapter: '7', dryRun: true }, host.ps)
  assert.equal(made.adapter, wired.description)
})

test('auto: takes the wired adapter that leads out, and leaves a switch where it is', async () => {
  await plugIn()
  await adapter({ kind: 'wintun' })
  await host.change((state) =>
    state.routes.push({ ifIndex: 99, prefix: '0.0.0.0/0', nextHop: '10.8.0.1', metric: 0 })
  )
  const made = await createSwitch({ ...onWifi, adapter: 'auto', guard: false }, host.ps)
  assert.equal(made.adapter, wired.description)
  assert.match(made.notes.join(), /^The host reaches everything else by "VPN", which is virtual/)
  // the way out is the switch's now
  for (const name of ['桥接', 'other']) {
    const again = createSwitch({ ...onWifi, switch: name, adapter: 'auto', dryRun: true }, host.ps)
    if (name === '桥接') assert.equal((await again).changed, false)
    else await assert.rejects(again, /the switch "桥接" has that adapter.+--switch '桥接'$/)
  }
})

test('pain 17: auto never takes Wi-Fi, and says how to take it and how to do without', async () => {
  const text = await host.text()
  await assert.rejects(createSwitch({ ...onWifi, adapter: 'auto' }, host.ps), {
    message:
      'Cannot choose a network adapter for the switch "桥接": it would be "Wi-Fi", which is ' +
      'Wi-Fi, and there a bridge may slow down or cut off host and VM. Run again with: ' +
      "--adapter 'Wi-Fi', or without the adapter: --type internal, and then set-static-ip with: --nat",
  })
  assert.equal(await host.text(), text)
})

test('makes a switch on a host without any route, of which auto finds none', async () => {
  await host.change((state) => state.routes = [])
  await assert.rejects(
    createSwitch({ ...onWifi, adapter: 'auto' }, host.ps),
    /none of the host's has a default route\. Run Get-NetAdapter/,
  )
  const made = await createSwitch({ ...onWifi, adapter: 'Ethernet', share: false }, host.ps)
  assert.equal(made.changed, true)
})

test('refuses adapters that no switch can take, and says which can', async () => {
  const refused = async (name: string) => {
    const text = await host.text()
    const { message } = await createSwitch({ ...onWifi, adapter: name }, host.ps).then(
      () => assert.fail(),
      (error) => error,
    )
    assert.equal(await host.text(), text)
    return message
  }
  await adapter({ kind: 'wintun' })
  assert.match(await refused('VPN'), /the adapter is virtual, as a VPN's is/)
  await host.change((state) => state.adapters[1].status = 'Disabled')
  assert.match(await refused('Ethernet'), /turned off\. Run: Enable-NetAdapter -Name 'Ethernet'$/)
  await host.change((state) => {
    state.adapters[1].status = 'Up'
    state.adapters[1].bound = ['ms_implat']
    Object.assign(state.adapters.at(-1), { name: 'Team 1', kind: 'team' })
  })
  assert.match(await refused('Ethernet'), /in a team, .+ Run again with: --adapter 'Team 1'$/)
  assert.equal(
    (await createSwitch({ ...onWifi, adapter: 'Team 1', dryRun: true }, host.ps)).changed,
    true,
  )
})

test('gives the host its VLAN on the switch, and takes it back', async () => {
  const vlan = async () =>
    (await host
      .ps`Get-VMNetworkAdapterVlan -ManagementOS -VMNetworkAdapterName 桥接 | ForEach-Object { "$($_.OperationMode) $($_.AccessVlanId)" }`)
      .stdout.trim()
  await createSwitch({ ...onWifi, vlan: 20, guard: false }, host.ps)
  assert.equal(await vlan(), 'Access 20')
  assert.equal((await createSwitch({ ...onWifi, vlan: 20 }, host.ps)).changed, false)
  const other = await createSwitch({ ...onWifi, vlan: 30, guard: false }, host.ps)
  assert.deepEqual(other.before.vlan, { mode: 'Access', id: 20 })
  assert.equal(await vlan(), 'Access 30')
  await undoCreateSwitch(other, host.ps)
  assert.equal(await vlan(), 'Access 20')
  const none = await createSwitch({ ...onWifi, vlan: 0, guard: false }, host.ps)
  assert.deepEqual([none.changed, await vlan()], [true, 'Untagged 0'])
  assert.equal((await createSwitch({ ...onWifi, vlan: 0 }, host.ps)).changed, false)
  await undoCreateSwitch(none, host.ps)
  // sharing off takes the adapter with it, and its undo brings both back
  const off = await createSwitch({ ...onWifi, share: false, guard: false }, host.ps)
  await undoCreateSwitch(off, host.ps)
  assert.equal(await vlan(), 'Access 20')
  await assert.rejects(createSwitch({ switch: 'x', type: 'private', vlan: 20 }, host.ps), TypeError)
  await assert.rejects(createSwitch({ ...onWifi, vlan: 4095 }, host.ps), RangeError)
})

test('pain 17: turns off on Wi-Fi what makes uploads crawl there', async () => {
  const lso = async () =>
    (await host.ps`[string](Get-NetAdapterLso -Name 'vEthernet (桥接)').IPv4Enabled`).stdout.trim()
  const made = await createSwitch({ ...onWifi, guard: false }, host.ps)
  assert.equal(await lso(), 'False')
  assert.match(made.notes.join(), /Large send offload is off on "vEthernet \(桥接\)"/)
  const off = await createSwitch({ ...onWifi, share: false, guard: false }, host.ps)
  await undoCreateSwitch(off, host.ps)
  assert.equal(await lso(), 'False')
  await undoCreateSwitch(made, host.ps)
  await createSwitch({ ...onWifi, adapter: 'Ethernet', guard: false }, host.ps)
  assert.equal(await lso(), 'True')
})

test('says without the guard too that nobody answers in another VLAN', async () => {
  const { notes } = await createSwitch({ ...onWifi, vlan: 999, guard: false }, host.ps)
  assert.match(notes.join(), /The gateway 10\.20\.0\.1 answered before the change/)
})

test('pain 17: says without the guard too that a gateway does not answer any more', async () => {
  await host.change((state) => state.adapters[0].network.refusesBridge = true)
  await given`function global:Start-Sleep { }`
  try {
    const { notes } = await createSwitch({ ...onWifi, guard: false }, host.ps)
    assert.match(
      notes.join(),
      /The gateway 10\.20\.0\.1 answered before .+ Remove-VMSwitch -Name '桥接'/,
    )
  } finally {
    await given`Remove-Item function:Start-Sleep`
  }
})

test('refuses what makes no sense before it asks PowerShell', async () => {
  const options: [CreateSwitchOptions, string][] = [
    [
      { switch: ' ', type: 'private' },
      'Cannot make the switch " ": a name is not empty and has no control characters. ' +
      'Run again with another: --switch',
    ],
    [
      { switch: 'x', type: 'internal', share: false },
      'Cannot make the switch "x": share is for an external switch, and this one is internal. ' +
      'Run again with: --type external',
    ],
    [
      { switch: 'x', type: 'private', adapter: 'Wi-Fi' },
      'Cannot make the switch "x": adapter is for an external switch, and this one is private. ' +
      'Run again with: --type external',
    ],
  ]
  for (const [option, message] of options) {
    await assert.rejects(createSwitch(option, host.ps), { name: 'TypeError', message })
  }
  assert.deepEqual(await host.calls(), [])
})

test('runs from the command line', async () => {
  const args = ['--switch', '桥接', '--type', 'external', '--no-share', '--adapter']
  const done = await runTask(host, 'create-switch', ...args, wired.name)
  assert.deepEqual([done.code, done.stderr], [0, ''])
  const { adapter, shared } = JSON.parse(done.stdout)
  assert.deepEqual([adapter, shared], [wired.description, false])
  // as Windows PowerShell writes files
  const answer = join(host.dir, 'answer.json')
  await fs.writeFile(answer, `\ufeff${done.stdout}`, 'utf16le')
  const dry = await runTask(host, 'create-switch', '--undo', answer, '--dry-run')
  assert.deepEqual([dry.code, JSON.parse(dry.stdout).undone], [0, false])
  assert.ok((await switches()).includes('桥接 External False'))
  const guard = ['--revert-after', '5', '--probe', '127.0.0.1:9']
  const kept = await runTask(host, 'create-switch', '--undo', answer, ...guard)
  assert.deepEqual([kept.code, kept.stdout], [1, ''])
  assert.match(kept.stderr, /^Cannot keep the change of the switch "桥接", and took it back/)
  const undone = await runTask(host, 'create-switch', '--undo', answer)
  assert.deepEqual([undone.code, undone.stderr], [0, ''])
  assert.equal(JSON.parse(undone.stdout).undone, true)
  assert.deepEqual((await switches()).filter((name) => name.startsWith('桥接')), [])
  await fs.writeFile(answer, '[]')
  const wrong = await runTask(host, 'create-switch', '--undo', answer)
  assert.deepEqual([wrong.code, wrong.stdout], [1, ''])
  assert.match(wrong.stderr, /^Cannot take back what ".+" says: it is not what a task answered/)
  const failed = await runTask(host, 'create-switch', ...args, 'none')
  assert.deepEqual([failed.code, failed.stdout], [1, ''])
  assert.match(failed.stderr, /^Cannot make the switch "桥接" on "none": .*\n$/)
})

making.run()
