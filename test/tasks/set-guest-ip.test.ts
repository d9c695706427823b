import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import {
  readCredential,
  setGuestIp,
  type SetGuestIpOptions,
  undoSetGuestIp,
} from '../../tasks/set-guest-ip.ts'
import { Secret } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const it = suite('setGuestIp')
const test = needs(it, 'pwsh')
const hostile = 'Bob’s "VM"; $(calc) 桥接'
const wanted = { vm: 'web', guestIp: '192.168.56.191' }
const account = { user: 'admin', password: new Secret('correct') }

let host: SimulatedHost
let seed: string

it.before(async () => {
  host = await simulatedHost()
  await host.change((state) => {
    const heartbeat = { polls: 0 }
    const addresses = { '*': ['192.168.56.77', 'fe80::1'] }
    state.guests = { '*': { heartbeat, addresses, user: 'admin', password: 'correct' } }
  })
  await host.ps`
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal
    $null = New-VMSwitch -Name 桥接 -SwitchType Private
    $card = Get-NetAdapter -Name 'vEthernet (Static-NAT)'
    $null = New-NetIPAddress -InterfaceIndex $card.ifIndex -IPAddress 192.168.56.1 -PrefixLength 24
    $null = New-NetNat -Name Static-NAT -InternalIPInterfaceAddressPrefix 192.168.56.0/24
    $vm = New-VM -Name web -Generation 2 -NoVHD -MemoryStartupBytes 1GB -SwitchName Static-NAT
    Start-VM -VM $vm`
  seed = await host.text()
})
it.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  host.warnings.length = 0
})
it.after(() => host.close())

// deno-lint-ignore no-explicit-any -- the state has no type
const guest = async (vm = 'web'): Promise<any> => (await host.state()).guests[vm]?.settings
// deno-lint-ignore no-explicit-any
const guests = (change: (guest: any) => void) => host.change((state) => change(state.guests['*']))
const fixed = (address: string, more = {}) => ({
  'Network Adapter': {
    dhcp: false,
    addresses: [{ address, prefix: 24 }],
    gateways: ['192.168.56.1'],
    dns: ['10.20.0.2', '10.20.0.3'],
    leased: [{ address: '192.168.56.77', prefix: 24 }],
    ...more,
  },
})

test('pain 13: gives the guest its address by the integration services, and is undone', async () => {
  const { id, adapter, mac, ...result } = await setGuestIp(wanted, host.ps)
  deepEqual(result, {
    changed: true,
    set: true,
    vm: 'web',
    name: 'Network Adapter',
    switch: 'Static-NAT',
    guestIp: '192.168.56.191/24',
    gateway: '192.168.56.1',
    dns: ['10.20.0.2', '10.20.0.3'],
    guest: 'windows',
    via: 'kvp',
    seenBy: 'integration services',
    addresses: ['192.168.56.191'],
    commands: [],
    notes: [],
    before: { dhcp: true, addresses: [], masks: [], gateways: [], dns: [] },
  })
  deepEqual(await guest(), fixed('192.168.56.191'))
  for (let times = 0; times < 2; times++) {
    await undoSetGuestIp({ id, adapter, mac, ...result }, host.ps)
    const [now] = Object.values(await guest()) as { dhcp: boolean; addresses: unknown }[]
    deepEqual([now?.dhcp, now?.addresses], [true, [{ address: '192.168.56.77', prefix: 24 }]])
  }
  deepEqual(host.warnings, [])
})

test('does nothing when the guest has the address and no DHCP, and nothing on a dry run', async () => {
  const dry = await setGuestIp({ ...wanted, dryRun: true }, host.ps)
  deepEqual([dry.changed, dry.set, dry.via], [true, false, 'kvp'])
  equal(await host.text(), seed)
  const { adapter, id } = await setGuestIp(wanted, host.ps)
  const text = await host.text()
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  const again = await setGuestIp({ ...wanted, credential: account }, host.ps)
  deepEqual([again.changed, again.set, again.via, again.id, again.adapter], [
    false,
    true,
    null,
    id,
    adapter,
  ])
  equal(await host.text(), text)
  deepEqual((await host.calls()).filter(({ cmdlet }) => !cmdlet.startsWith('Get-')), [])
})

test('puts back an address that the guest had before', async () => {
  const first = await setGuestIp({ ...wanted, gateway: 'none' }, host.ps)
  equal(first.gateway, null)
  const second = await setGuestIp({ vm: 'web', guestIp: '192.168.56.192/24' }, host.ps)
  deepEqual([second.before?.dhcp, second.before?.addresses, second.before?.masks], [
    false,
    ['192.168.56.191'],
    ['255.255.255.0'],
  ])
  // the first one's undo has nothing to do any more
  await undoSetGuestIp(first, host.ps)
  deepEqual(await guest(), fixed('192.168.56.192'))
  await undoSetGuestIp(second, host.ps)
  deepEqual(await guest(), fixed('192.168.56.191', { gateways: [], dns: [] }))
})

test('fixes the address that the guest has (pin)', async () => {
  const result = await setGuestIp({ vm: 'web', pin: true }, host.ps)
  deepEqual([result.changed, result.guestIp, result.gateway, result.dns], [
    true,
    '192.168.56.77/24',
    null,
    [],
  ])
  deepEqual(await guest(), fixed('192.168.56.77', { gateways: [], dns: [] }))
  equal((await setGuestIp({ vm: 'web', pin: true }, host.ps)).changed, false)
})

test('waits for a guest that has just started', async () => {
  await guests((guest) => guest.addressesAfter = { polls: 3 })
  const result = await setGuestIp(wanted, host.ps)
  deepEqual([result.via, result.set], ['kvp', true])
})

test('takes no gateway there when the VM is on another switch too', async () => {
  await host
    .ps`Stop-VM -Name web -TurnOff; Add-VMNetworkAdapter -VMName web -Name lan -SwitchName 桥接; Start-VM -Name web`
  const two = 'Cannot give 192.168.56.191 to the guest in "web": 2 of its connected adapters fits'
  await rejects(setGuestIp(wanted, host.ps), new RegExp(two))
  const result = await setGuestIp({ ...wanted, switch: 'static-nat' }, host.ps)
  deepEqual([result.gateway, result.dns, result.set], [null, [], true])
})

test('signs in to a Windows guest by PowerShell Direct, and is undone without an account', async () => {
  const result = await setGuestIp({ ...wanted, credential: account }, host.ps)
  deepEqual([result.changed, result.set, result.via, result.seenBy], [
    true,
    true,
    'direct',
    'integration services',
  ])
  deepEqual(result.before, { dhcp: true, addresses: [], masks: [], gateways: [], dns: [] })
  deepEqual(await guest(), fixed('192.168.56.191'))
  const other = await setGuestIp(
    { vm: 'web', guestIp: '192.168.56.192', gateway: 'none', credential: account },
    host.ps,
  )
  deepEqual(other.before, {
    dhcp: false,
    addresses: ['192.168.56.191'],
    masks: ['255.255.255.0'],
    gateways: ['192.168.56.1'],
    dns: ['10.20.0.2', '10.20.0.3'],
  })
  deepEqual(await guest(), fixed('192.168.56.192', { gateways: [], dns: [] }))
  await undoSetGuestIp(other, host.ps)
  deepEqual(await guest(), fixed('192.168.56.191'))
})

test('pain 14: puts the guest back when Windows there has the address on a card that is gone', async () => {
  await guests((guest) => {
    const error = { id: 'Windows System Error 87', message: 'Falscher Parameter.' }
    guest.faults = [{ cmdlet: 'New-NetIPAddress', error }]
  })
  await rejects(setGuestIp({ ...wanted, credential: account }, host.ps), {
    message:
      'Cannot give 192.168.56.191 to the guest in "web": the guest\'s Windows has that address on ' +
      'another network card, perhaps one of before the move that is gone (87). Run there: ' +
      'Get-PnpDevice -Class Net -Status Unknown, and pnputil /remove-device for it',
  })
  equal((await guest())?.['Network Adapter'].dhcp ?? true, true)
})

test('pain 15, 16: a Linux that ignores it gets commands by MAC address', async () => {
  await guests((guest) => {
    guest.os = 'Ubuntu'
    guest.injection = { ignored: true }
  })
  const before = await host.text()
  const result = await setGuestIp({ ...wanted, timeout: 1 }, host.ps)
  deepEqual([result.changed, result.set, result.via, result.guest], [false, false, 'kvp', 'linux'])
  match(result.notes.join(), /^The guest was told by its integration services and does not have /)
  deepEqual(result.commands.map(({ guest }) => guest), [
    'Linux with netplan (Ubuntu)',
    'Linux with NetworkManager',
    'any Linux, until it restarts',
  ])
  const mac = result.mac.replace(/(..)(?=.)/g, '$1:').toLowerCase()
  const [plan, manager, ip] = result.commands.map(({ lines }) => lines.join('\n'))
  equal(
    plan,
    `echo '{network: {version: 2, ethernets: {hyper-v-${result.mac}: {match: {macaddress: "${mac}"}, ` +
      'dhcp4: false, addresses: [192.168.56.191/24], routes: [{to: default, via: 192.168.56.1}], ' +
      "nameservers: {addresses: [10.20.0.2, 10.20.0.3]}}}}}' | " +
      `sudo install -m 600 /dev/stdin /etc/netplan/60-hyper-v-${result.mac}.yaml\nsudo netplan apply`,
  )
  equal(
    manager,
    `sudo nmcli connection add type ethernet con-name hyper-v-${result.mac} ifname '*' mac ${mac} ` +
      'ipv4.method manual ipv4.addresses 192.168.56.191/24 ipv4.gateway 192.168.56.1 ' +
      `ipv4.dns 10.20.0.2,10.20.0.3\nsudo nmcli connection up hyper-v-${result.mac}`,
  )
  equal(
    ip,
    `card=$(ip -brief link | awk '$3 == "${mac}" { print $1 }')\n` +
      'sudo ip address replace 192.168.56.191/24 dev "$card"\n' +
      'sudo ip route replace default via 192.168.56.1 dev "$card"',
  )
  equal(await host.text(), before)
})

test('pain 16: prints commands when the guest says nothing, then sees it by ARP', async () => {
  await guests((guest) => guest.integration = false)
  const told = await setGuestIp({ ...wanted, timeout: 0 }, host.ps)
  deepEqual([told.changed, told.set, told.via, told.seenBy], [false, false, 'print', null])
  equal(told.commands.length, 4)
  deepEqual(told.commands[0]?.lines.slice(-2), [
    'New-NetIPAddress -InterfaceIndex $card.ifIndex -IPAddress 192.168.56.191 -PrefixLength 24 ' +
    '-DefaultGateway 192.168.56.1',
    'Set-DnsClientServerAddress -InterfaceIndex $card.ifIndex -ServerAddresses 10.20.0.2,10.20.0.3',
  ])
  await rejects(setGuestIp({ vm: 'web', pin: true, timeout: 0 }, host.ps), {
    message:
      'Cannot fix the address of the guest in "web": nobody tells which one it has: neither its ' +
      "integration services (Linux: hyperv-daemons) nor the host's ARP table. Run again with an " +
      'address: --guest-ip',
  })
  await host.change((state) => {
    const { ifIndex } = state.addresses.find((one: { address: string }) =>
      one.address === '192.168.56.1'
    )
    state.neighbors.push({ address: '192.168.56.191', ifIndex, mac: told.mac })
  })
  const seen = await setGuestIp(wanted, host.ps)
  deepEqual([seen.changed, seen.set, seen.via, seen.seenBy, seen.commands], [
    false,
    true,
    null,
    'arp',
    [],
  ])
  match(seen.notes.join(), /^The address was seen in the host's ARP table/)
  equal((await setGuestIp({ vm: 'web', pin: true }, host.ps)).guestIp, '192.168.56.191/24')
})

test('pain 16: asks the whole network for a guest that says nothing, and fixes what answers', async () => {
  await guests((guest) => guest.integration = false)
  const { ifIndex } = (await host.state()).addresses.find((one: { address: string }) =>
    one.address === '192.168.56.1'
  )
  const { mac } = (await host.state()).vms[0].nics[0]
  // sockets are not simulated: the guest hears what is sent to its address, and Windows notes its answer
  await host.ps`
    $guest = ${JSON.stringify({ address: '192.168.56.254', ifIndex, mac })}
    $global:guest = ConvertFrom-Json $guest
    function global:New-Object {
      param([Parameter(Position = 0)][string]$TypeName, [Parameter(Position = 1)][object[]]$ArgumentList)
      if ($TypeName -ne 'Net.Sockets.UdpClient') { return Microsoft.PowerShell.Utility\\New-Object $TypeName $ArgumentList }
      if ([string]$ArgumentList[0] -ne '192.168.56.1:0') { throw "No address $ArgumentList is the host's" }
      [pscustomobject]@{} | Add-Member -PassThru ScriptMethod Dispose { } | Add-Member -PassThru ScriptMethod Send {
        if ($args[2] -ne $global:guest.address) { return 1 }
        $state = [IO.File]::ReadAllText($env:SIMULATED_HOST) | ConvertFrom-Json
        $state.neighbors = @($state.neighbors | Where-Object { $_ }) + $global:guest
        [IO.File]::WriteAllText($env:SIMULATED_HOST, (ConvertTo-Json -InputObject $state -Depth 20))
        1
      }
    }`
  try {
    const seen = await setGuestIp({ vm: 'web', pin: true, timeout: 0 }, host.ps)
    deepEqual([seen.guestIp, seen.seenBy], ['192.168.56.254/24', 'arp'])
    await host.change((state) => state.neighbors = [])
    const wanted = { vm: 'web', guestIp: '192.168.56.254', timeout: 0 }
    deepEqual((await setGuestIp(wanted, host.ps)).seenBy, 'arp')
  } finally {
    await host.ps`Remove-Item Function:/New-Object`
  }
})

test('reads the account from Windows’ Credential Manager', async () => {
  // the library of Windows that holds it is not here
  await host.ps`
    Add-Type -TypeDefinition 'namespace VboxToHyperV { public static class CredentialManager {
      public static int Read(string target, out System.Net.NetworkCredential found) {
        found = new System.Net.NetworkCredential("admin", "correct");
        return target == "guest" ? 0 : target == "ssh" ? 1312 : 1168;
      } } }'`
  const read = (target: string) => setGuestIp({ ...wanted, credential: { target } }, host.ps)
  equal((await read('guest')).via, 'direct')
  deepEqual(await guest(), fixed('192.168.56.191'))
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await rejects(read('none'), {
    message: 'Cannot give 192.168.56.191 to the guest in "web": the Credential Manager has no ' +
      'generic credential "none" (1168). Run, and answer its question: ' +
      'cmdkey /generic:"none" /user:Administrator /pass',
  })
  await rejects(
    read('ssh'),
    /is closed to this session \(1312\), as over SSH\. Run again with: --user/,
  )
})

const refusals: [string, (state: State) => void, Partial<SetGuestIpOptions>, string][] = [
  ['a VM that is not there', () => {}, { vm: 'x' }, 'there is no such VM. Run: Get-VM'],
  [
    'a VM that is off',
    (state) => state.vms[0].state = 'Off',
    {},
    "it is Off, and only a guest that runs can be asked. Run: Start-VM -Name 'web'",
  ],
  [
    'the host’s own address',
    () => {},
    { guestIp: '192.168.56.1' },
    'the host has that address itself. Run again with another: --guest-ip',
  ],
  [
    'the broadcast address',
    () => {},
    { guestIp: '192.168.56.255' },
    "in a network of 24 bits that is the network's own or its broadcast address. Run again with " +
    'another: --guest-ip',
  ],
  [
    'an address without a network',
    () => {},
    { guestIp: '10.9.8.7' },
    'the host has no address on "Static-NAT" in whose network that is. Run again with its prefix ' +
    'length: --guest-ip 10.9.8.7/24',
  ],
  [
    'a gateway elsewhere',
    () => {},
    { gateway: '192.168.57.1' },
    'the gateway 192.168.57.1 is not in the network 192.168.56.191/24. Run again with another: --gateway',
  ],
  [
    'an address where another computer answers',
    (state) => {
      const { ifIndex } = state.addresses.at(-1)
      state.neighbors.push({ address: '192.168.56.191', ifIndex, mac: '0A0000000001' })
    },
    {},
    'a computer with the MAC address 0A-00-00-00-00-01 answers there. Run again with another: --guest-ip',
  ],
  [
    'pain 20: the Default Switch',
    (state) => state.vms[0].nics[0].switch = 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444',
    {},
    'it is on the Default Switch, whose network Windows changes at every start. Reach it by its ' +
    "computer's name there, NAME.mshome.net, or run: " +
    'New-VMSwitch -SwitchType Internal, and Connect-VMNetworkAdapter',
  ],
  [
    'the integration services when they are off',
    (state) => {
      for (const one of state.vms[0].services) if (one.id.startsWith('Key')) one.enabled = false
    },
    { via: 'kvp', timeout: 0 },
    "its key-value pair exchange is off. Run: Get-VMIntegrationService -VMName 'web' | " +
    "Where-Object Id -like '*2A34B1C2*' | Enable-VMIntegrationService",
  ],
  [
    'the integration services when they do not answer',
    (state) => state.guests['*'].integration = false,
    { via: 'kvp', timeout: 0 },
    'its integration services do not answer: the guest has not started yet, or lacks them ' +
    '(Linux: hyperv-daemons). Run again with: --via print',
  ],
  [
    'what Hyper-V refuses',
    (state) => state.guests['*'].injection = { fails: 32773 },
    {},
    'Hyper-V refused it (32773). Run again with: --via print',
  ],
  [
    'PowerShell Direct to Linux',
    (state) => state.guests['*'].os = 'Ubuntu',
    { via: 'direct', credential: account },
    'PowerShell Direct reaches Windows guests only, and this is a Linux. Run again with: --via kvp',
  ],
  [
    'PowerShell Direct without an account',
    () => {},
    { via: 'direct' },
    'PowerShell Direct needs an account of the guest. Run again with: --user Administrator --credential prompt',
  ],
  [
    'a wrong password',
    () => {},
    { credential: { user: 'admin', password: new Secret('wrong') } },
    'the guest does not take the account "admin": its password is wrong or empty, or it has never ' +
    'signed in there. Run again with another --user, or without one: --via kvp',
  ],
  [
    'PowerShell Direct where nobody answers',
    (state) => state.guests['*'].integration = false,
    { credential: account, timeout: 0 },
    'nobody answered in the guest: its Windows has not started yet, or is older than Windows 10 and ' +
    'Windows Server 2016, or it is no Windows. Run again with: --via kvp',
  ],
]
// deno-lint-ignore no-explicit-any -- the state has no type
type State = any

for (const [what, change, options, sentence] of refusals) {
  test(`refuses ${what}`, async () => {
    await host.change(change)
    const text = await host.text()
    const { vm, guestIp } = { ...wanted, ...options }
    await rejects(setGuestIp({ ...wanted, ...options }, host.ps), {
      message: `Cannot give ${guestIp} to the guest in "${vm}": ${sentence}`,
    })
    equal(await host.text(), text)
  })
}

test('refuses an address that another VM on the switch has', async () => {
  await host
    .ps`Start-VM -VM (New-VM -Name db -Generation 2 -NoVHD -MemoryStartupBytes 1GB -SwitchName Static-NAT)`
  await rejects(setGuestIp({ vm: 'db', guestIp: '192.168.56.77' }, host.ps), {
    message:
      'Cannot give 192.168.56.77 to the guest in "db": the VM "web" on the same switch has ' +
      'that address. Run again with another: --guest-ip',
  })
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    await host.ps`
      $name = ${name}
      Rename-VM -VM @(Get-VM)[0] -NewName $name
      Rename-VMNetworkAdapter -VMNetworkAdapter @(Get-VMNetworkAdapter -All | Where-Object VMName)[0] -NewName $name`
    const result = await setGuestIp({ vm: name, name, guestIp: '192.168.56.191' }, host.ps)
    deepEqual([result.vm, result.name, result.set], [name, name, true])
    await undoSetGuestIp(result, host.ps)
  }
})

test('warns when it cannot be taken back', async () => {
  const result = await setGuestIp(wanted, host.ps)
  await host.ps`Stop-VM -Name web -TurnOff`
  await undoSetGuestIp(result, host.ps)
  deepEqual(host.warnings, [
    'The guest in "web" keeps 192.168.56.191 on "Network Adapter", where it had DHCP: it is Off, and ' +
    'only a guest that runs can be told',
  ])
  await host.ps`Remove-VM -Name web -Force`
  await undoSetGuestIp(result, host.ps)
})

it('refuses what cannot be before the host is asked', async () => {
  const ask: SimulatedHost['ps'] = () => Promise.reject(new Error('asked'))
  for (
    const guestIp of ['', '1.2.3', '192.168.056.1', '127.0.0.1', '224.0.0.1', '10.0.0.1/31', 'a']
  ) {
    await rejects(
      setGuestIp({ vm: 'web', guestIp }, ask),
      /^TypeError: Cannot use the guest’s address/,
    )
  }
  const wrong: [Partial<SetGuestIpOptions>, RegExp][] = [
    [{ pin: true }, /^TypeError: Cannot fix the guest’s address and give it another/],
    [{ gateway: 'x' }, /^TypeError: Cannot use "x" as a gateway or DNS server/],
    [{ dns: ['::1'] }, /^TypeError: Cannot use "::1" as a gateway or DNS server/],
    [{ vm: ' ' }, /^TypeError: Cannot use " " as the name of the VM/],
    [{ name: 'a\n' }, /^TypeError: Cannot use "a\\n" as the name of the adapter/],
    [{ timeout: -1 }, /^RangeError: Cannot wait -1 seconds/],
  ]
  for (const [options, message] of wrong) {
    await rejects(setGuestIp({ ...wanted, ...options }, ask), message)
  }
  await rejects(setGuestIp({ vm: 'web' }, ask), /^TypeError: Cannot tell which address/)
})

it('reads the account of a command line, whose password is not on it', async () => {
  process.env.GUEST_PASSWORD_TEST = 'päss'
  const read = await readCredential({ user: 'me', credential: 'env:GUEST_PASSWORD_TEST' })
  ok(read && 'user' in read)
  deepEqual([read.user, read.password.reveal()], ['me', 'päss'])
  equal(process.env.GUEST_PASSWORD_TEST, undefined)
  deepEqual(await readCredential({ credential: 'manager:guest' }), { target: 'guest' })
  equal(await readCredential({}), undefined)
  const wrong: [Parameters<typeof readCredential>[0], RegExp][] = [
    [{ user: 'me', credential: 'hunter2' }, /it is prompt, stdin, env:NAME or manager:TARGET/],
    [{ user: 'me', credential: 'env' }, /it is prompt, stdin, env:NAME or manager:TARGET/],
    [{ user: 'me', credential: 'env:NO_SUCH' }, /there is no variable "NO_SUCH"/],
    [{ credential: 'prompt' }, /no user is named\. Add --user Administrator$/],
    [{ user: 'me', credential: 'manager:x' }, /Leave out --user$/],
    [{ user: 'me' }, /there is no terminal\. Run again with --credential env:NAME/],
  ]
  for (const [options, message] of wrong) {
    // whoever runs the tests may have a terminal
    if (options.credential || !process.stdin.isTTY) await rejects(readCredential(options), message)
  }
})

test('runs as a command, with the password on standard input', async () => {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const task = join(import.meta.dirname as string, '..', '..', 'tasks', 'set-guest-ip.ts')
  const words = [
    '--vm',
    'web',
    '--guest-ip',
    '192.168.56.191',
    '--user',
    'admin',
    '--credential',
    'stdin',
  ]
  const child = spawn(process.execPath, [...runtime, task, ...words], { env: host.env })
  child.stdin.end('correct\n')
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (data) => stdout += data)
  child.stderr.on('data', (data) => stderr += data)
  const code = await new Promise((resolve) => child.on('close', resolve))
  deepEqual([code, stderr], [0, ''])
  deepEqual([JSON.parse(stdout).via, JSON.parse(stdout).set], ['direct', true])
  const log = await fs.readFile(String(host.env.SIMULATED_HOST_LOG), 'utf8')
  ok(!`${stdout}${log}`.includes('correct'))
  const failed = await runTask(host, 'set-guest-ip', '--vm', hostile, '--pin')
  deepEqual([failed.code, failed.stdout], [1, ''])
  match(
    failed.stderr,
    /^Cannot fix the address of the guest in "Bob’s .* no such VM\. Run: Get-VM\n$/,
  )
})

it.run()
