import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { setStaticIp, undoSetStaticIp } from '../../tasks/set-static-ip.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const setStaticIpTest = suite('setStaticIp')
const test = needs(setStaticIpTest, 'pwsh')
const hostile = 'Bob’s "VM"; $(calc) 桥接'
const changing = /^(New|Set|Remove|Add|Rename|Enable|Disable)-/
const options = { switch: 'Static-NAT', hostIp: '192.168.56.1/24' }

let host: SimulatedHost
let seed: string

/** Runs a script of the test's own on the host, and forgets that it ran. */
const given: SimulatedHost['ps'] = async (pieces, ...values) => {
  const answer = await host.ps(pieces, ...values)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  return answer
}
const changes = async () =>
  (await host.calls()).map((call) => call.cmdlet).filter((c) => changing.test(c))
const addresses = async () => {
  const { stdout } = await host.ps`
    Get-NetIPAddress -AddressFamily IPv4 | ForEach-Object { $_.InterfaceAlias + ' ' + $_.IPAddress + '/' + $_.PrefixLength }`
  return stdout.split('\n')
}

setStaticIpTest.before(async () => {
  host = await simulatedHost()
  seed = await host.text()
})
setStaticIpTest.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
})
setStaticIpTest.after(() => host.close())

test('sets the address and makes the NAT', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const result = await setStaticIp({ ...options, nat: true }, host.ps)
  const { id, interfaceIndex, ...rest } = result
  assert.deepEqual(rest, {
    changed: true,
    switch: 'Static-NAT',
    hostIp: '192.168.56.1/24',
    nat: { name: 'Static-NAT', prefix: '192.168.56.0/24' },
    before: { address: false, dhcp: true, nat: null },
  })
  assert.match(String(id), /^[\da-f-]{36}$/)
  assert.equal(typeof interfaceIndex, 'number')
  assert.ok((await addresses()).includes('vEthernet (Static-NAT) 192.168.56.1/24'))
  const { stdout } = await host.ps`
    ConvertTo-Json -Compress @(Get-NetNat | ForEach-Object { $_.Name + ' ' + $_.InternalIPInterfaceAddressPrefix })`
  assert.deepEqual(JSON.parse(stdout), ['Static-NAT 192.168.56.0/24'])
})

test('does nothing when address and NAT are there', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await setStaticIp({ ...options, nat: true }, host.ps)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  const text = await host.text()
  const result = await setStaticIp({ ...options, nat: true }, host.ps)
  assert.equal(result.changed, false)
  assert.deepEqual(result.before, {
    address: true,
    dhcp: false,
    nat: { name: 'Static-NAT', prefix: '192.168.56.0/24' },
  })
  assert.deepEqual(await changes(), [])
  assert.equal(await host.text(), text)
})

test('changes nothing on a dry run', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const text = await host.text()
  const result = await setStaticIp({ ...options, nat: true, dryRun: true }, host.ps)
  assert.equal(result.changed, true)
  assert.deepEqual(result.nat, { name: 'Static-NAT', prefix: '192.168.56.0/24' })
  assert.equal(await host.text(), text)
})

test('answers a dry run before there is a switch', async () => {
  const result = await setStaticIp({ ...options, nat: true, dryRun: true }, host.ps)
  assert.deepEqual(result, {
    changed: true,
    id: null,
    switch: 'Static-NAT',
    hostIp: '192.168.56.1/24',
    interfaceIndex: null,
    nat: { name: 'Static-NAT', prefix: '192.168.56.0/24' },
    before: { address: false, dhcp: true, nat: null },
  })
  assert.equal(await host.text(), seed)
  await undoSetStaticIp(result, host.ps)
  assert.equal(await host.text(), seed)
})

test('is undone to what was there, twice', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  // Windows remembers that the network had no name
  const { profiles: _, ...before } = await host.state()
  const result = await setStaticIp({ ...options, nat: true }, host.ps)
  await undoSetStaticIp(result, host.ps)
  // a NAT whose address is gone would stay behind broken (facts: NAT, address, switch)
  const removed = (await host.calls()).map(({ cmdlet }) => cmdlet).filter((cmdlet) =>
    cmdlet.startsWith('Remove-')
  )
  assert.deepEqual(removed, ['Remove-NetNat', 'Remove-NetIPAddress'])
  const { profiles, ...after } = await host.state()
  assert.deepEqual(after, before)
  const text = await host.text()
  await undoSetStaticIp(result, host.ps)
  assert.equal(await host.text(), text)
  assert.equal(profiles.length, 2)
})

test('removes its NAT with nat false, and undo makes it again', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await setStaticIp({ ...options, nat: true }, host.ps)
  const before = await host.state()
  const result = await setStaticIp({ ...options, nat: false }, host.ps)
  assert.equal(result.changed, true)
  assert.equal(result.nat, null)
  assert.deepEqual((await host.ps`Get-NetNat`).stdout, '')
  await undoSetStaticIp(result, host.ps)
  assert.deepEqual(await host.state(), before)
})

test('gives a NAT that it removed its forwards back', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await setStaticIp({ ...options, nat: true }, host.ps)
  await given`
    $null = Add-NetNatStaticMapping -NatName Static-NAT -Protocol TCP -ExternalIPAddress 0.0.0.0 -ExternalPort 2222 -InternalIPAddress 192.168.56.191 -InternalPort 22`
  const before = await host.state()
  const result = await setStaticIp({ ...options, nat: false }, host.ps)
  assert.deepEqual((await host.state()).mappings, [])
  await undoSetStaticIp(result, host.ps)
  await undoSetStaticIp(result, host.ps)
  assert.deepEqual(await host.state(), before)
})

test('pain 19: makes the NAT again that a restart lost, and takes back that alone', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await setStaticIp({ ...options, nat: true }, host.ps)
  await host.change((state) => state.nats = [])
  const lost = await host.text()
  const again = await setStaticIp({ ...options, nat: true }, host.ps)
  assert.deepEqual([again.changed, again.before.address, again.before.nat], [true, true, null])
  assert.deepEqual(again.nat, { name: 'Static-NAT', prefix: '192.168.56.0/24' })
  await undoSetStaticIp(again, host.ps)
  assert.deepEqual(await host.state(), JSON.parse(lost))
})

test('leaves the NAT as it is when not told', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal; $null = New-NetNat -Name other -InternalIPInterfaceAddressPrefix 172.30.0.0/16`
  const result = await setStaticIp(options, host.ps)
  assert.equal(result.changed, true)
  assert.equal(result.nat, null)
  assert.deepEqual(await changes(), ['New-NetIPAddress'])
})

test('reuses a NAT for the same network, whatever its name', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal; $null = New-NetNat -Name other -InternalIPInterfaceAddressPrefix 192.168.56.0/24`
  const result = await setStaticIp({ ...options, nat: true }, host.ps)
  assert.deepEqual(result.nat, { name: 'other', prefix: '192.168.56.0/24' })
  await undoSetStaticIp(result, host.ps)
  assert.equal((await host.ps`(Get-NetNat).Name`).stdout, 'other')
})

test('clears the host bits of the NAT’s network', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const result = await setStaticIp(
    { switch: 'static-nat', hostIp: '10.77.37.9/20', nat: true },
    host.ps,
  )
  assert.deepEqual(result.nat, { name: 'Static-NAT', prefix: '10.77.32.0/20' })
})

test('waits until the host’s adapter on a new switch appears', async () => {
  await host.change((state) => state.host.adapterDelay = 3)
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  assert.equal((await setStaticIp(options, host.ps)).changed, true)
})

test('takes the address away again when another computer has it', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await host.change((state) => state.duplicates = ['192.168.56.1'])
  const { profiles: _, ...before } = await host.state()
  await assert.rejects(setStaticIp({ ...options, nat: true }, host.ps), {
    message:
      'Cannot give the host 192.168.56.1/24 on the switch "Static-NAT": another computer on ' +
      'the switch has that address. Run again with another address: --host-ip',
  })
  const { profiles: __, ...after } = await host.state()
  assert.deepEqual(after, before)
})

test('pain 19: takes the address away again when Windows refuses the NAT (87)', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const error = { id: 'Windows System Error 87', message: 'Falscher Parameter.' }
  await host.change((state) => state.faults = [{ cmdlet: 'New-NetNat', error }])
  const { profiles: _, ...before } = await host.state()
  await assert.rejects(setStaticIp({ ...options, nat: true }, host.ps), {
    message: 'Cannot make a NAT for 192.168.56.0/24: an address of the host or another NAT is in ' +
      'that network (87). Run: Get-NetIPAddress, and again with another network: --host-ip',
  })
  const { profiles: __, ...after } = await host.state()
  assert.deepEqual(after, before)
})

test('undo is harmless when the switch is gone, and still removes the NAT', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const result = await setStaticIp({ ...options, nat: true }, host.ps)
  await given`Remove-VMSwitch -Name Static-NAT -Force`
  await undoSetStaticIp(result, host.ps)
  assert.equal((await host.ps`@(Get-NetNat).Count`).stdout, '0')
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    await given`
      $name = ${name}
      $null = New-VMSwitch -Name $name -SwitchType Internal`
    const result = await setStaticIp({ ...options, switch: name, nat: true }, host.ps)
    assert.equal(result.switch, name)
    assert.equal(result.nat?.name, name)
    await undoSetStaticIp(result, host.ps)
    await assert.rejects(
      setStaticIp({ ...options, switch: '*' }, host.ps),
      /there is no such switch/,
    )
  }
})

const refusals: [
  string,
  string,
  { switch?: string; hostIp?: string; nat?: boolean },
  RegExp | string,
][] = [
  [
    'no such switch',
    '',
    { switch: 'Bob’s' },
    'Cannot give the host 192.168.56.1/24 on the switch "Bob’s": there is no such switch. ' +
    "Run: New-VMSwitch -Name 'Bob’’s' -SwitchType Internal",
  ],
  [
    'a private switch',
    'New-VMSwitch -Name Static-NAT -SwitchType Private',
    {},
    'Cannot give the host 192.168.56.1/24 on the switch "Static-NAT": it is private, and only an ' +
    'internal switch has a network of its own. Run: New-VMSwitch -Name <another name> -SwitchType Internal',
  ],
  [
    'two switches of one name',
    'New-VMSwitch -Name Static-NAT -SwitchType Internal; New-VMSwitch -Name Static-NAT -SwitchType Internal',
    {},
    /^Cannot give .*: 2 switches have that name: [\da-f-]{36}, [\da-f-]{36}\. Run: Get-VMSwitch -Id /,
  ],
  [
    'pain 20: the Default Switch',
    '',
    { switch: 'default switch' },
    'Cannot give the host 192.168.56.1/24 on the switch "default switch": it is the Default Switch, ' +
    'whose network Windows changes at every start. ' +
    'Run: New-VMSwitch -Name <another name> -SwitchType Internal',
  ],
  [
    'a second address',
    "New-VMSwitch -Name Static-NAT -SwitchType Internal; New-NetIPAddress -InterfaceAlias 'vEthernet (Static-NAT)' -IPAddress 10.9.9.1 -PrefixLength 24",
    {},
    /^Cannot give the host 192\.168\.56\.1\/24 on the switch "Static-NAT": it has 10\.9\.9\.1\/24 there, which VMs may use as their gateway\. Run: Remove-NetIPAddress -InterfaceIndex \d+ -IPAddress 10\.9\.9\.1 -Confirm:\$false$/,
  ],
  [
    'another NAT',
    'New-VMSwitch -Name Static-NAT -SwitchType Internal; New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 172.30.0.0/16',
    { nat: true },
    'Cannot make a NAT for 192.168.56.0/24: the NAT "Docker" for 172.30.0.0/16 is there, and a host ' +
    'has one. Run again with an address in its network or with --no-nat, or if nothing needs it, run: ' +
    "Get-NetNat -Name 'Docker' | Remove-NetNat",
  ],
  [
    'to remove another’s NAT',
    'New-VMSwitch -Name Static-NAT -SwitchType Internal; New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 192.168.56.0/24',
    { nat: false },
    'Cannot remove the NAT for 192.168.56.0/24: it is "Docker" for 192.168.56.0/24, which something else made. ' +
    "Run, if nothing needs it: Get-NetNat -Name 'Docker' | Remove-NetNat",
  ],
]
for (const [what, prepare, more, message] of refusals) {
  test(what.startsWith('pain') ? what.replace(': ', ': refuses ') : `refuses ${what}`, async () => {
    if (prepare) {
      await given`
        $script = ${prepare}
        $null = & ([scriptblock]::Create($script))`
    }
    const text = await host.text()
    await assert.rejects(setStaticIp({ ...options, ...more }, host.ps), { message })
    assert.equal(await host.text(), text)
  })
}

test('refuses a network that another adapter of the host is in', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const taken = (await addresses()).find((line) => !/ (127|169)\./.test(line)) ?? ''
  const [, alias, ip, length] = /^(.*) ([\d.]+)\/(\d+)$/.exec(taken) ?? []
  const inside = String(ip).replace(/\d+$/, '77')
  const text = await host.text()
  await assert.rejects(setStaticIp({ switch: 'Static-NAT', hostIp: `${inside}/16` }, host.ps), {
    message: `Cannot give the host ${inside}/16 on the switch "Static-NAT": "${alias}" has ` +
      `${ip}/${length}, and the two networks overlap. Run again with another network, for example: --host-ip 192.168.56.1/24`,
  })
  assert.equal(await host.text(), text)
})

test('takes the first free network with auto, and the same again', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const auto = { switch: 'Static-NAT', hostIp: 'auto', nat: true }
  assert.equal((await setStaticIp({ ...auto, dryRun: true }, host.ps)).hostIp, '192.168.56.1/24')
  await host.change((state) => {
    // VirtualBox's own host-only adapter, a VPN's networks, and Docker's and WSL's that do not run
    state.addresses.push({ ifIndex: 7, address: '192.168.56.1', prefix: 24, origin: 'Manual' })
    state.routes.push({ ifIndex: 7, prefix: '192.168.57.0/25', nextHop: '0.0.0.0', metric: 1 })
    state.routes.push({ ifIndex: 7, prefix: '192.168.58.9/32', nextHop: '0.0.0.0', metric: 1 })
    state.containerNetworks = [{ id: '1', name: 'nat', subnets: ['192.168.59.0/24'] }]
    state.nats = []
  })
  const result = await setStaticIp(auto, host.ps)
  assert.deepEqual([result.changed, result.hostIp, result.nat?.prefix], [
    true,
    '192.168.60.1/24',
    '192.168.60.0/24',
  ])
  const text = await host.text()
  const again = await setStaticIp(auto, host.ps)
  assert.deepEqual([again.changed, again.hostIp], [false, '192.168.60.1/24'])
  assert.equal(await host.text(), text)
})

test('takes a network in a VPN’s route to all private addresses only when no other is free', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const route = (prefix: string) => ({ ifIndex: 12, prefix, nextHop: '0.0.0.0', metric: 1 })
  await host.change((state) => state.routes.push(route('192.168.0.0/16'), route('0.0.0.0/1')))
  const auto = { switch: 'Static-NAT', hostIp: 'auto', dryRun: true }
  assert.equal((await setStaticIp(auto, host.ps)).hostIp, '10.56.0.1/24')
  await host.change((state) => state.routes.push(route('10.0.0.0/8')))
  assert.equal((await setStaticIp(auto, host.ps)).hostIp, '192.168.56.1/24')
  await setStaticIp({ ...options, dryRun: true }, host.ps)
})

test('pain 19: uses a NAT whose network holds the switch’s, and never another', async () => {
  await given`
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal
    $null = New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 172.30.0.0/16`
  await host.change((state) =>
    state.addresses.push({ ifIndex: 7, address: '172.30.0.1', prefix: 24, origin: 'Manual' })
  )
  const before = await host.state()
  const result = await setStaticIp({ switch: 'Static-NAT', hostIp: 'auto', nat: true }, host.ps)
  assert.deepEqual([result.hostIp, result.nat], [
    '172.30.1.1/24',
    { name: 'Docker', prefix: '172.30.0.0/16' },
  ])
  assert.deepEqual((await host.state()).nats, before.nats)
  await undoSetStaticIp(result, host.ps)
  assert.deepEqual((await host.state()).nats, before.nats)
})

for (
  const [what, change, whose] of [
    [
      'VirtualBox’s host-only adapter',
      { addresses: { ifIndex: 7, address: '192.168.56.1', prefix: 24, origin: 'Manual' } },
      '"Ethernet" has 192.168.56.1/24',
    ],
    [
      'a VPN’s route',
      { routes: { ifIndex: 12, prefix: '192.168.48.0/20', nextHop: '10.8.0.1', metric: 1 } },
      'a route to 192.168.48.0/20 leads to "Wi-Fi"',
    ],
    [
      'a network that Docker or WSL keeps',
      { containerNetworks: { id: '1', name: 'WSL', subnets: ['192.168.48.0/20'] } },
      'the network "WSL" of Docker or WSL is 192.168.48.0/20',
    ],
    [
      'a part that has a NAT',
      { nats: { name: 'Docker', prefix: '192.168.56.0/25' } },
      'the NAT "Docker" is for 192.168.56.0/25',
    ],
  ] as const
) {
  test(`pain 19: refuses the network of ${what}, and names one that is free`, async () => {
    await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
    await host.change((state) => {
      for (const [list, item] of Object.entries(change)) (state[list] ??= []).push(item)
    })
    const text = await host.text()
    const free = whose.includes('/20') ? '192.168.64.1' : '192.168.57.1'
    await assert.rejects(setStaticIp(options, host.ps), {
      message:
        `Cannot give the host 192.168.56.1/24 on the switch "Static-NAT": ${whose}, and the two ` +
        `networks overlap. Run again with another network, for example: --host-ip ${free}/24`,
    })
    assert.equal(await host.text(), text)
  })
}

test('goes on, and says so, where the networks of Docker and WSL cannot be read', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const error = { id: 'Unspecified', message: 'HNS failed' }
  await host.change((state) => state.faults = [{ cmdlet: 'Get-HnsNetwork', error }])
  assert.equal((await setStaticIp(options, host.ps)).changed, true)
  assert.deepEqual(host.warnings.splice(0), [
    'The networks of Docker and WSL are seen only while they run, for they cannot be read: HNS failed',
  ])
})

test('waits until Windows has made sure that no other computer has the address', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  await host.change((state) => state.host.tentative = 3)
  assert.equal((await setStaticIp(options, host.ps)).changed, true)
  assert.equal((await host.calls()).filter(({ cmdlet }) => cmdlet === 'Get-NetIPAddress').length, 5)
})

for (const [number, cmdlet] of [[5010, 'New-NetIPAddress'], [5010, 'New-NetNat']] as const) {
  test(`pain 19: says what error ${number} of ${cmdlet} means, in any language, and puts back`, async () => {
    await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
    const error = { id: `Windows System Error ${number}`, message: '对象已存在。' }
    await host.change((state) => state.faults = [{ cmdlet, error }])
    const { profiles: _, ...before } = await host.state()
    await assert.rejects(setStaticIp({ ...options, nat: true }, host.ps), {
      message: cmdlet === 'New-NetNat'
        ? 'Cannot make a NAT for 192.168.56.0/24: an address of the host or another NAT is in that ' +
          'network (5010). Run: Get-NetIPAddress, and again with another network: --host-ip'
        : 'Cannot give the host 192.168.56.1/24 on the switch "Static-NAT": Windows has that address ' +
          'already, on an adapter that is not there (5010). Run: Get-NetIPAddress -PolicyStore ' +
          'PersistentStore -IPAddress 192.168.56.1, or again with another network: --host-ip',
    })
    const { profiles: __, ...after } = await host.state()
    assert.deepEqual(after, before)
  })
}

for (
  const hostIp of [
    '192.168.56.1',
    '192.168.56.0/24',
    '192.168.56.255/24',
    '192.168.056.1/24',
    '192.168.56.1/024',
    '256.1.1.1/24',
    '10.0.0.1/7',
    '10.0.0.1/31',
    '127.0.0.1/8',
    '0.1.2.3/8',
    '224.0.0.1/8',
    'fe80::1/64',
    '192.168.56.1/24; calc',
    '',
  ]
) {
  test(`refuses the host address ${JSON.stringify(hostIp)} before it asks PowerShell`, async () => {
    await assert.rejects(setStaticIp({ switch: 'Static-NAT', hostIp }, host.ps), {
      name: 'TypeError',
      message: /^Cannot use the host address ".*": it .* Run again with for example: --host-ip /,
    })
    assert.deepEqual(await host.calls(), [])
  })
}

test('runs from the command line', async () => {
  await given`$null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  const args = ['--host-ip', '192.168.56.1/24', '--nat', '--switch']
  const done = await runTask(host, 'set-static-ip', ...args, 'Static-NAT')
  assert.deepEqual([done.code, done.stderr], [0, ''])
  assert.equal(JSON.parse(done.stdout).nat.name, 'Static-NAT')
  const answer = join(host.dir, 'answer.json')
  await fs.writeFile(answer, done.stdout)
  const undone = await runTask(host, 'set-static-ip', '--undo', answer)
  assert.deepEqual([undone.code, undone.stderr, JSON.parse(undone.stdout).undone], [0, '', true])
  assert.equal((await addresses()).includes('vEthernet (Static-NAT) 192.168.56.1/24'), false)
  const failed = await runTask(host, 'set-static-ip', ...args, hostile)
  assert.deepEqual([failed.code, failed.stdout], [1, ''])
  assert.match(failed.stderr, /^Cannot give the host .* there is no such switch\. Run: .*\n$/)
})

setStaticIpTest.run()
