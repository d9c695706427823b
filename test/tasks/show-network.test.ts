import { XMLValidator } from 'fast-xml-parser'
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import {
  drawMermaid,
  drawSvg,
  drawText,
  type Network,
  readNetwork,
  showNetwork,
} from '../../tasks/show-network.ts'
import { conflictsOf } from '../../tasks/show-network/network.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const HOSTILE = 'Bob’s "VM"; $(calc)\u0007 <b>桥接</b> #quot; ]]>'

/** A host whose networks are in order. */
function network(): Network {
  const at = (address: string, prefixLength: number) => ({ address, prefixLength, dhcp: false })
  const port = { vlan: null, gateways: [], addresses: [] }
  return {
    host: 'LAPTOP',
    adapters: [{
      name: 'Wi-Fi',
      description: 'Intel(R) Wi-Fi 6 AX201 160MHz',
      status: 'Up',
      wifi: true,
      mac: 'A4C3F0112233',
      addresses: [],
      gateways: [],
      switch: 'outer',
      bound: true,
    }],
    switches: [
      {
        ...{ id: 'outer', name: '桥接', type: 'External', isDefault: false, shared: true },
        adapters: ['Intel(R) Wi-Fi 6 AX201 160MHz'],
      },
      {
        ...{ id: 'inner', name: 'Static-NAT', type: 'Internal', isDefault: false, shared: true },
        adapters: [],
      },
    ],
    ports: [
      {
        ...port,
        ...{ vm: null, name: 'vEthernet (桥接)', switch: 'outer', mac: 'A4C3F0112233' },
        addresses: [at('10.20.30.40', 16)],
        gateways: ['10.20.0.1'],
      },
      {
        ...port,
        ...{ vm: null, name: 'vEthernet (Static-NAT)', switch: 'inner', mac: '00155D000001' },
        addresses: [at('192.168.56.1', 24)],
      },
      {
        ...port,
        vm: { id: '1', name: 'web', state: 'Running' },
        ...{ name: 'Adapter 1', switch: 'inner', mac: '00155D000002' },
        addresses: [at('192.168.56.191', -1)],
      },
    ],
    nats: [{ name: 'Static-NAT', prefix: '192.168.56.0/24' }],
    conflicts: [],
  }
}

/** The conflicts after a change of what is in order. */
function after(change: (network: Network) => void): string[] {
  const changed = network()
  change(changed)
  return conflictsOf(changed).map(({ text }) => text)
}

/** Those of a list, which is as long as the test says. */
function only<T>(list: T[], index = 0): T {
  ok(index < list.length)
  return list[index] as T
}

const drawing = suite('show-network')

drawing('finds nothing wrong where all is in order', () => deepEqual(after(() => {}), []))

drawing('finds networks of the host that overlap', () => {
  const found = after(({ ports }) =>
    only(ports, 1).addresses = [{
      ...{ address: '10.20.99.1', prefixLength: 24, dhcp: false },
    }]
  )
  match(
    found.join('\n'),
    /^"vEthernet \(桥接\)" \(10\.20\.30\.40\/16\) and "vEthernet \(Static-NAT\)"/,
  )
})

drawing('finds a NAT that no address of the host serves, and one beside it', () => {
  const found = after(({ nats }) => nats.push({ name: 'old', prefix: '172.30.0.0/24' }))
  match(
    found.join('\n'),
    /The NAT "old" serves 172\.30\.0\.0\/24, and the host has no address there/,
  )
  match(found.join('\n'), /There are 2 NATs, and Windows serves one: "Static-NAT", "old"/)
})

drawing('finds MAC addresses and addresses that are there twice', () => {
  const found = after(({ ports }) =>
    ports.push({ ...only(ports, 2), vm: { id: '2', name: 'copy', state: 'Off' } })
  )
  match(
    found.join('\n'),
    /of the VM "web" and "Adapter 1" of the VM "copy" have one MAC address, 00155D000002/,
  )
  match(found.join('\n'), /have one address, 192\.168\.56\.191/)
})

drawing('does not take adapters without a MAC address yet for the same', () => {
  const found = after(({ ports }) => {
    for (const id of ['2', '3']) {
      const vm = { id, name: id, state: 'Off' }
      ports.push({ ...only(ports, 2), vm, mac: '000000000000', addresses: [] })
    }
  })
  deepEqual(found, [])
})

drawing('finds a guest whose address is not of its switch’s network', () => {
  const found = after(({ ports }) => only(only(ports, 2).addresses).address = '192.168.57.9')
  match(
    found.join('\n'),
    /has 192\.168\.57\.9, and the host has 192\.168\.56\.1\/24 on the switch "Static-NAT"/,
  )
})

drawing('pain 20: finds a guest that the Default Switch’s network has left behind', () => {
  const found = after((all) => {
    only(all.switches, 1).isDefault = true
    only(only(all.ports, 2).addresses).address = '192.168.57.9'
  })
  match(
    found.join('\n'),
    /has 192\.168\.57\.9, and .+ Windows changes that network at every start, .+ --type internal/,
  )
})

drawing('finds two switches of one name', () => {
  const found = after(({ switches }) => switches.push({ ...only(switches, 1), id: 'other' }))
  match(found.join('\n'), /^2 switches are named "Static-NAT", .+ Get-VMSwitch -Id inner \|/)
})

drawing('finds switches whose adapter is gone or not connected', () => {
  match(
    after(({ adapters }) => only(adapters).status = 'Disconnected').join('\n'),
    /The switch "桥接" is on "Wi-Fi", which is Disconnected/,
  )
  match(
    after(({ adapters }) => only(adapters).switch = null).join('\n'),
    /on an adapter that is not there[^]+"Wi-Fi" is bound to a switch that is not there/,
  )
})

drawing('finds a host that sharing turned off cut from its gateway', () => {
  const found = after((all) => {
    all.ports = all.ports.slice(1)
    only(all.switches).shared = false
  })
  match(found.join('\n'), /no default gateway[^]+toggle-share\.ts on --switch "桥接"/)
})

drawing('draws a tree that tells who is on which switch', () => {
  equal(
    drawText(network()),
    `LAPTOP
├─ Wi-Fi
│  │ Intel(R) Wi-Fi 6 AX201 160MHz
│  │ Wi-Fi, Up
│  └─ 桥接
│     │ external, shared with the host
│     └─ LAPTOP (the host)
│          vEthernet (桥接), 10.20.30.40/16, gateway 10.20.0.1
└─ Static-NAT
   │ internal: host and VMs
   │ NAT "Static-NAT" for 192.168.56.0/24
   ├─ LAPTOP (the host)
   │    vEthernet (Static-NAT), 192.168.56.1/24
   └─ web (Running)
        Adapter 1, 192.168.56.191, 00-15-5D-00-00-02`,
  )
})

drawing('keeps hostile names from being more than names, in each drawing', () => {
  const all = network()
  only(all.switches).name = HOSTILE
  only(all.ports, 2).vm = { id: '1', name: HOSTILE, state: 'Running' }
  only(all.adapters).status = 'Disconnected'
  all.conflicts = conflictsOf(all)
  const [text, mermaid, svg] = [drawText(all), drawMermaid(all), drawSvg(all)]
  for (const drawn of [text, mermaid, svg]) ok(!drawn.includes('\u0007'))
  equal(XMLValidator.validate(svg), true)
  ok(!svg.includes('<b>'))
  for (const line of mermaid.split('\n').filter((line) => /^ {4}n\d/.test(line))) {
    match(line, /^ {4}n\d+\["[^"[\]{}|;`\\]*(?:#\d+;[^"[\]{}|;`\\]*)*"\](?::::conflict)?$/)
  }
  match(mermaid, /:::conflict/)
  match(text, /^├─ ! Wi-Fi$/m)
  ok(
    text.split('\n').filter((line) => /^(! | {2}\S)/.test(line)).every((line) => line.length <= 80),
  )
})

drawing.run()

const hosts = suite<{ host: SimulatedHost }>('show-network on a host')
const test = needs(hosts, 'pwsh')

hosts.before(async (context) => {
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
  await context.host.ps`
    $null = New-VMSwitch -Name 桥接 -NetAdapterName Wi-Fi -AllowManagementOS $true
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal
    $card = Get-NetAdapter | Where-Object Name -eq 'vEthernet (Static-NAT)'
    $null = New-NetIPAddress -InterfaceIndex $card.InterfaceIndex -IPAddress 192.168.56.1 -PrefixLength 24
    $null = New-NetNat -Name Static-NAT -InternalIPInterfaceAddressPrefix 192.168.56.0/24
    $name = ${HOSTILE.replace('\u0007', '')}
    $vm = New-VM -Name $name -SwitchName Static-NAT
    $null = New-VM -Name alone
    Start-VM -VM $vm`
})
hosts.after(({ host }) => host?.close())

test('reads adapters, switches, who is on them, addresses and NATs', async ({ host }) => {
  const before = await host.text()
  const { adapters, switches, ports, nats, conflicts } = await readNetwork(host.ps)
  equal(await host.text(), before)
  const outer = switches.find(({ name }) => name === '桥接')
  deepEqual([outer?.type, outer?.shared, outer?.isDefault], ['External', true, false])
  equal(switches.find(({ isDefault }) => isDefault)?.name, 'Default Switch')
  const wifi = adapters.find(({ name }) => name === 'Wi-Fi')
  deepEqual([wifi?.wifi, wifi?.switch], [true, outer?.id])
  deepEqual(adapters.map(({ name }) => name), ['Wi-Fi', 'Ethernet'])
  const shared = ports.find(({ vm, switch: on }) => vm === null && on === outer?.id)
  equal(shared?.name, 'vEthernet (桥接)')
  deepEqual(shared?.addresses, [{ address: '10.20.30.40', prefixLength: 16, dhcp: true }])
  deepEqual(shared?.gateways, ['10.20.0.1'])
  const guest = ports.find(({ vm }) => vm?.state === 'Running')
  equal(guest?.vm?.name, HOSTILE.replace('\u0007', ''))
  deepEqual(guest?.addresses.map(({ address }) => address), ['192.168.56.191'])
  equal(ports.find(({ vm }) => vm?.name === 'alone')?.switch, null)
  deepEqual(nats, [{ name: 'Static-NAT', prefix: '192.168.56.0/24' }])
  deepEqual(conflicts, [])
})

test('reads a Windows without NAT', async () => {
  const old = await simulatedHost('laptop', { without: ['NetNat'] })
  try {
    deepEqual((await readNetwork(old.ps)).nats, [])
  } finally {
    await old.close()
  }
})

test('reads a host that has no way out', async ({ host }) => {
  const text = await host.text()
  await host.ps`Set-VMSwitch -Name 桥接 -AllowManagementOS $false`
  const { conflicts } = await readNetwork(host.ps)
  await host.change((state) => Object.assign(state, JSON.parse(text)))
  deepEqual(conflicts.map(({ text }) => text.slice(0, 32)), ['The host has no default gateway,'])
})

test('is a command that prints the picture or writes it to a file', async ({ host }) => {
  const to = join(host.dir, 'net.svg')
  await fs.writeFile(to, 'an older one')
  const [text, image] = await Promise.all([
    runTask(host, 'show-network'),
    runTask(host, 'show-network', '--format', 'svg', '--to', to),
  ])
  equal(text.code, 0, text.stderr)
  match(text.stdout, /├─ Wi-Fi\n│ {2}│ Intel\(R\)/)
  equal(image.code, 0, image.stderr)
  deepEqual(JSON.parse(image.stdout), { path: to, conflicts: [] })
  equal(XMLValidator.validate(await fs.readFile(to, 'utf8')), true)
})

test('leaves nothing behind where it cannot write', async ({ host }) => {
  await fs.mkdir(join(host.dir, 'folder'))
  await rejects(
    showNetwork({ to: join(host.dir, 'folder') }, host.ps),
    /Cannot write ".+folder": E/,
  )
  await rejects(showNetwork({ to: join(host.dir, 'no', 'net.svg') }, host.ps), /ENOENT/)
  deepEqual((await fs.readdir(host.dir)).filter((name) => name.includes('partial')), [])
})

hosts.run()
