/** The networks of a Hyper-V host, and what of them cannot work together. */

/** The networks of a Hyper-V host. */
export interface Network {
  /** The host's name. */
  host: string
  /** Its own network adapters: without those that Hyper-V made, and without bridges. */
  adapters: HostAdapter[]
  switches: Switch[]
  /** The adapters that switches give to the host (`vEthernet (...)`) and to VMs. */
  ports: Port[]
  nats: { name: string; /** E.g. `192.168.56.0/24`. */ prefix: string }[]
  /** What cannot work as it is, or harms something else. */
  conflicts: Conflict[]
}

export interface HostAdapter {
  name: string
  description: string
  /** As Windows says it: `Up`, `Disconnected`, `Disabled`, ... */
  status: string
  wifi: boolean
  /** As Hyper-V writes it: `00155DA0B1C2`. */
  mac: string
  addresses: Address[]
  gateways: string[]
  /** The id of the external switch that has it, or null. */
  switch: string | null
  /** It is bound to Hyper-V's switch extension (vms_pp), and so carries no addresses of its own. */
  bound: boolean
}

export interface Address {
  address: string
  prefixLength: number
  dhcp: boolean
}

export interface Switch {
  id: string
  name: string
  type: 'External' | 'Internal' | 'Private'
  /** The Default Switch, which Windows makes, and changes at every start. */
  isDefault: boolean
  /** Interface descriptions of the adapters that an external switch is on. */
  adapters: string[]
  /** The host is on it too. */
  shared: boolean
}

export interface Port {
  /** Null for the host's own. */
  vm: { id: string; name: string; state: string } | null
  name: string
  /** The switch's id; null when it is not connected. */
  switch: string | null
  mac: string
  /** The VLAN of untagged traffic, or null. */
  vlan: number | null
  /** A VM's have the prefix length -1: Hyper-V does not tell it. */
  addresses: Address[]
  gateways: string[]
}

export interface Conflict {
  /** What it is, why it matters, and the command that mends it. */
  text: string
  /** The parts of the picture that it is about: their {@link keyOf keys}. */
  about: string[]
}

/** What tells the parts of a picture apart, as {@link Conflict.about} names them. */
export const keyOf = {
  adapter: ({ name }: HostAdapter): string => `adapter ${name}`,
  switch: ({ id }: Switch): string => `switch ${id}`,
  port: ({ vm, name, mac }: Port): string => `port ${vm?.id ?? ''} ${name} ${mac}`,
  nat: ({ name }: Network['nats'][number]): string => `nat ${name}`,
}

/** Finds what of a host's networks cannot work together. */
export function conflictsOf(
  { adapters, switches, ports, nats }: Omit<Network, 'conflicts'>,
): Conflict[] {
  const conflicts: Conflict[] = []
  const own = ports.filter(({ vm }) => vm === null)
  const theirs = ports.filter(({ vm }) => vm !== null)
  const holders = [
    ...adapters.map((one) => ({ ...one, key: keyOf.adapter(one) })),
    ...own.map((one) => ({ ...one, key: keyOf.port(one) })),
  ]

  // two networks of the host that have addresses in common: it sends to the wrong one
  holders.forEach((one, index) => {
    for (const other of holders.slice(index + 1)) {
      const pair = one.addresses.flatMap((a) => other.addresses.map((b) => [a, b] as const))
        .find(([a, b]) => !isLinkLocal(a.address) && overlap(a, b))
      if (!pair) continue
      conflicts.push({
        text: `"${one.name}" (${cidr(pair[0])}) and "${other.name}" (${cidr(pair[1])}) overlap: ` +
          'the host sends to one of them only. Give one another network: npx zx tasks/set-static-ip.ts --help',
        about: [one.key, other.key],
      })
    }
  })

  const inside = (prefix: string) =>
    own.filter(({ addresses }) => addresses.some((one) => covers(prefix, one.address)))
  for (const nat of nats) {
    const key = keyOf.nat(nat)
    if (inside(nat.prefix).length === 0) {
      conflicts.push({
        text:
          `The NAT "${nat.name}" serves ${nat.prefix}, and the host has no address there, so nothing ` +
          'reaches it. Give the host one (npx zx tasks/set-static-ip.ts), or run: Get-NetNat | Remove-NetNat',
        about: [key],
      })
    }
    for (const adapter of adapters) {
      const hit = adapter.addresses.find((one) => overlap(one, parse(nat.prefix)))
      if (!hit) continue
      conflicts.push({
        text:
          `The NAT "${nat.name}" (${nat.prefix}) overlaps with "${adapter.name}" (${cidr(hit)}): ` +
          'what is there cannot be reached. Choose another network for the NAT',
        about: [key, keyOf.adapter(adapter)],
      })
    }
  }
  if (nats.length > 1) {
    conflicts.push({
      text: `There are ${nats.length} NATs, and Windows serves one: ` +
        `${nats.map(({ name }) => `"${name}"`).join(', ')}. Run: Get-NetNat`,
      about: nats.map(keyOf.nat),
    })
  }

  for (const [what, list] of groups(ports, ({ mac }) => /^0*$/.test(mac) ? '' : mac)) {
    conflicts.push({
      text:
        `${
          list.map(label).join(' and ')
        } have one MAC address, ${what}: on one network only one of ` +
        'them is reached. Run: Set-VMNetworkAdapter -DynamicMacAddress for one',
      about: list.map(keyOf.port),
    })
  }
  const used = [
    ...holders.flatMap((one) =>
      one.addresses.map((at) => ({ ...at, key: one.key, name: `"${one.name}"` }))
    ),
    ...theirs.flatMap((one) =>
      one.addresses.map((at) => ({ ...at, key: keyOf.port(one), name: label(one) }))
    ),
  ]
  for (const [what, list] of groups(used, ({ address }) => isLinkLocal(address) ? '' : address)) {
    conflicts.push({
      text: `${list.map(({ name }) => name).join(' and ')} have one address, ${what}: ` +
        'only one of them is reached. Give one of them another',
      about: list.map(({ key }) => key),
    })
  }

  for (const [, list] of groups(switches, ({ name }) => name.toLowerCase())) {
    const [first] = list
    conflicts.push({
      text:
        `${list.length} switches are named "${first?.name}", so that a name does not tell them ` +
        `apart. Run: Get-VMSwitch -Id ${first?.id} | Rename-VMSwitch -NewName`,
      about: list.map(keyOf.switch),
    })
  }
  for (const one of switches) {
    const around = own.filter((port) => port.switch === one.id)
    if (one.type === 'Internal') {
      const networks = around.flatMap(({ addresses }) => addresses).filter((at) =>
        isIpv4(at.address)
      )
      for (const port of theirs.filter((port) => port.switch === one.id)) {
        const strange = port.addresses.find(({ address }) =>
          isIpv4(address) && !isLinkLocal(address) &&
          networks.length > 0 && !networks.some((at) => covers(cidr(at), address))
        )
        if (!strange) continue
        conflicts.push({
          text: `${label(port)} has ${strange.address}, and the host has ` +
            `${networks.map(cidr).join(', ')} on the switch "${one.name}": the two do not meet. ` +
            (one.isDefault
              ? 'Windows changes that network at every start, so a fixed address is for a switch of ' +
                'your own. Run: npx zx tasks/create-switch.ts --type internal --switch NAME'
              : 'Give the guest an address of that network'),
          about: [keyOf.port(port), keyOf.switch(one)],
        })
      }
    }
    if (one.type !== 'External') continue
    const card = adapters.find((adapter) => adapter.switch === one.id)
    const name = `The switch "${one.name}"`
    if (!card) {
      conflicts.push({
        text:
          `${name} is on an adapter that is not there (${one.adapters.join(', ') || 'none'}): ` +
          'its VMs reach nobody outside. Run: Set-VMSwitch -NetAdapterName, with one of Get-NetAdapter',
        about: [keyOf.switch(one)],
      })
    } else if (card.status !== 'Up') {
      conflicts.push({
        text:
          `${name} is on "${card.name}", which is ${card.status}: its VMs reach nobody outside. ` +
          'Connect that adapter, or set the switch on another: Set-VMSwitch -NetAdapterName',
        about: [keyOf.switch(one), keyOf.adapter(card)],
      })
    }
  }
  for (const adapter of adapters.filter(({ bound, switch: has }) => bound && has === null)) {
    conflicts.push({
      text: `"${adapter.name}" is bound to a switch that is not there, so it has no addresses. ` +
        'Run: Disable-NetAdapterBinding -ComponentID vms_pp, with its name',
      about: [keyOf.adapter(adapter)],
    })
  }
  if (!holders.some(({ gateways }) => gateways.length > 0)) {
    const off = switches.filter(({ type, shared }) => type === 'External' && !shared)
    const [only] = off
    conflicts.push({
      text: 'The host has no default gateway, so it reaches its own networks only. ' +
        (only
          ? `To be on "${only.name}" again, run: npx zx tasks/toggle-share.ts on --switch "${only.name}"`
          : 'Run: Get-NetIPConfiguration'),
      about: off.map(keyOf.switch),
    })
  }
  return conflicts
}

function label({ vm, name }: Port): string {
  return vm ? `"${name}" of the VM "${vm.name}"` : `"${name}"`
}

/** Those of which several have the same, by what they have; nothing counts as the same. */
function groups<T>(all: T[], of: (one: T) => string): [string, T[]][] {
  const by = new Map<string, T[]>()
  for (const one of all) {
    const key = of(one)
    if (key !== '') by.set(key, [...by.get(key) ?? [], one])
  }
  return [...by].filter(([, list]) => list.length > 1)
}

export function cidr({ address, prefixLength }: Pick<Address, 'address' | 'prefixLength'>): string {
  return `${address}/${prefixLength}`
}

function parse(prefix: string): Pick<Address, 'address' | 'prefixLength'> {
  const [address = '', length] = prefix.split('/')
  return { address, prefixLength: Number(length) }
}

function isIpv4(address: string): boolean {
  return /^\d+(\.\d+){3}$/.test(address)
}

export function isLinkLocal(address: string): boolean {
  return /^(169\.254\.|fe[89ab][\da-f]:|127\.|::1$)/i.test(address)
}

/** Whether an IPv4 address is in a network. */
export function covers(prefix: string, address: string): boolean {
  return isIpv4(address) && overlap(parse(prefix), { address, prefixLength: 32 })
}

type Range = Pick<Address, 'address' | 'prefixLength'>

/** Whether two IPv4 networks have an address in common. */
function overlap(a: Range, b: Range): boolean {
  if (!isIpv4(a.address) || !isIpv4(b.address)) return false
  const length = Math.min(a.prefixLength, b.prefixLength)
  const first = (address: string) =>
    Math.floor(
      address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0) / 2 ** (32 - length),
    )
  return first(a.address) === first(b.address)
}
