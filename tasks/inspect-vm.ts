#!/usr/bin/env zx
/** Describe a VM that is to be moved: one of VirtualBox, a .vbox, an OVF or OVA, or bare disk images. */
import { XMLParser, XMLValidator } from 'fast-xml-parser'
import fs from 'fs-extra'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, extname, isAbsolute, join, resolve } from 'node:path'
import process from 'node:process'
import { $, which } from 'zx'
import { command } from './task.ts'

export interface InspectVmOptions {
  /** A VirtualBox VM by name or UUID, a `.vbox`, `.ova` or `.ovf`, or one or more disk images. */
  source: readonly string[]
}

export interface VmDescription {
  kind: 'virtualbox' | 'vbox' | 'ovf' | 'ova' | 'disks'
  name: string
  uuid?: string
  cpus: number
  /** Bytes. */
  memory: number
  /** `unknown` for bare disks. */
  firmware: 'bios' | 'efi' | 'unknown'
  secureBoot: boolean
  tpm: boolean
  /** As the source calls it, e.g. `Windows10_64`. */
  osType: string
  guest: 'windows' | 'linux' | 'other' | 'unknown'
  /** VirtualBox's own word, e.g. `poweroff`, `running`, `saved`. Absent where the source cannot know. */
  state?: string
  /** Hard disks, the one that boots first. */
  disks: DiskRef[]
  nics: Nic[]
  /** Names of its snapshots. Only the current state is described. */
  snapshots: string[]
  /** What will not come along, or needs care: a sentence each. */
  warnings: string[]
}

export interface DiskRef {
  /** Absolute; of the archive when the disk is a member of one. */
  path: string
  /** The member of an OVA. */
  member?: string
  /** Upper case, e.g. `VDI`; empty where only the disk's content can tell. */
  format: string
  /** Absent for bare disks. */
  controller?: { type: string; port: number; device: number }
  uuid?: string
  /** The images it is made of when there are snapshots, the current one first. */
  chain: string[]
  encrypted: boolean
}

export interface Nic {
  /** From 0. */
  slot: number
  /** Twelve upper-case hexadecimal digits; empty when the source has none. */
  mac: string
  attachment: 'nat' | 'bridged' | 'hostonly' | 'internal' | 'natnetwork' | 'generic' | 'none'
  /** The bridged adapter, or the network. */
  network?: string
  cableConnected: boolean
}

/**
 * Describes a VM. Reads only.
 *
 * Settings are taken from the .vbox file even for a VM that VirtualBox knows: `showvminfo` prints
 * names that its own quoting does not let one read back, and VirtualBox writes the file at each
 * change. Only the state is asked of VirtualBox, as the file does not know of a VM that runs.
 */
export async function inspectVm({ source }: InspectVmOptions): Promise<VmDescription> {
  const [first = '', ...more] = source
  const kind = extname(first).toLowerCase()
  if (more.length === 0 && await isFile(first)) {
    if (kind === '.vbox') return await readVbox(resolve(first))
    if (kind === '.ovf') return await readOvf(resolve(first))
    if (kind === '.ova') return await readOva(resolve(first))
  }
  const missing = []
  for (const path of source) if (!await isFile(path)) missing.push(path)
  if (missing.length === 0 && source.length > 0) return readDisks(source)
  if (source.length === 1 && !/[\\/]|\.(vbox|ov[af]|vdi|vmdk|vhdx?|img|raw)$/i.test(first)) {
    return await readRegistered(first)
  }
  throw new Error(`Cannot read "${missing[0] ?? ''}": there is no such file`)
}

/** The names of VirtualBox's VMs, or null when there is no VirtualBox on this machine. */
export async function listVms(): Promise<string[] | null> {
  const program = await findVBoxManage()
  if (program === undefined) return null
  const { stdout } = await vboxManage(program, 'list', 'vms')
  return [...stdout.matchAll(/^"(.*)" \{[0-9a-f-]+\}$/gm)].map(([, name]) => name as string)
}

async function readRegistered(name: string): Promise<VmDescription> {
  const program = await findVBoxManage()
  if (program === undefined) {
    throw new Error(
      `Cannot find the VM "${name}": there is no VBoxManage on this machine, and no file of that name. ` +
        'Set VBOXMANAGE to where it is, or name a .vbox or .ova file',
    )
  }
  // after `--` a name with a leading dash is no option
  const { stdout } = await vboxManage(program, 'showvminfo', '--machinereadable', '--', name)
    .catch(async () => {
      const names = await listVms()
      throw new Error(
        `Cannot find the VM "${name}": VirtualBox has ${
          names?.map((name) => `"${name}"`).join(', ') || 'none'
        }`,
      )
    })
  const value = (key: string) =>
    stdout.match(new RegExp(`^${key}="(.*)"\r?$`, 'm'))?.[1]?.replace(/\\(["\\])/g, '$1')
  const file = value('CfgFile')
  if (file === undefined) {
    throw new Error(`Cannot read the VM "${name}": VirtualBox names no settings file for it`)
  }
  const state = value('VMState')
  const vm = await readVbox(
    program.endsWith('.exe') && process.platform !== 'win32' ? await fromWindows(file) : file,
  )
  return { ...vm, kind: 'virtualbox', ...(state !== undefined && { state }) }
}

async function readVbox(file: string): Promise<VmDescription> {
  const root = parse(await fs.readFile(file, 'utf8'), file)
  const machine = child(child(root, 'VirtualBox'), 'Machine')
  if (machine === undefined) throw new Error(`Cannot read "${file}": it describes no machine`)
  const folder = dirname(file)
  const media = new Map<
    string,
    { path: string; format: string; parent?: string; encrypted: boolean }
  >()
  const register = (disk: Node, base: string, parent?: string) => {
    const uuid = attribute(disk, 'uuid') ?? ''
    const location = attribute(disk, 'location') ?? ''
    const path = isAbsolute(location) || /^[a-z]:[\\/]/i.test(location)
      ? location
      : join(base, location)
    const encrypted = list(disk, 'Property').some((one) =>
      attribute(one, 'name')?.startsWith('CRYPT/')
    )
    media.set(uuid, {
      path,
      format: (attribute(disk, 'format') ?? '').toUpperCase(),
      ...(parent !== undefined && { parent }),
      encrypted: encrypted || (parent !== undefined && media.get(parent)?.encrypted === true),
    })
    for (const next of list(disk, 'HardDisk')) register(next, base, uuid)
  }
  for (const disk of list(child(child(machine, 'MediaRegistry'), 'HardDisks'), 'HardDisk')) {
    register(disk, folder)
  }
  const disks = attachedDisks(machine).map(({ uuid, controller }): DiskRef => {
    const medium = media.get(uuid)
    if (medium === undefined) {
      throw new Error(
        `Cannot read "${file}": its disk ${uuid} is not in its media registry. ` +
          'Name the VM as VirtualBox knows it, or name the disk itself',
      )
    }
    const chain = []
    for (let next: typeof medium | undefined = medium; next; next = media.get(next.parent ?? '')) {
      chain.push(next.path)
    }
    return {
      path: medium.path,
      format: medium.format,
      controller,
      uuid: bare(uuid),
      chain,
      encrypted: medium.encrypted,
    }
  })
  const state = attribute(machine, 'stateFile') !== undefined
    ? 'saved'
    : attribute(machine, 'aborted') === 'true'
    ? 'aborted'
    : 'poweroff'
  return { ...describeMachine(machine, 'vbox'), state, disks }
}

async function readOvf(file: string): Promise<VmDescription> {
  const folder = dirname(file)
  const vm = describeOvf(await fs.readFile(file, 'utf8'), file, 'ovf')
  return {
    ...vm,
    disks: vm.disks.map(({ member, ...disk }) => ({ ...disk, path: join(folder, member ?? '') })),
  }
}

async function readOva(file: string): Promise<VmDescription> {
  const handle = await open(file, 'r')
  try {
    const text = await findOvf(handle, file)
    const vm = describeOvf(text, file, 'ova')
    return { ...vm, disks: vm.disks.map((disk) => ({ ...disk, path: file })) }
  } finally {
    await handle.close()
  }
}

/** Reads only the OVF of the archive, which comes first by the standard and elsewhere by habit. */
async function findOvf(handle: FileHandle, file: string): Promise<string> {
  const { size: end } = await handle.stat()
  const header = Buffer.alloc(512)
  for (let at = 0; at + 512 <= end;) {
    await handle.read(header, 0, 512, at)
    if (header.every((byte) => byte === 0)) break
    const name = header.toString('utf8', 0, 100).replace(/\0.*$/s, '')
    const size = (header[124] as number) & 0x80
      ? Number(header.readBigUInt64BE(128))
      : Number.parseInt(header.toString('latin1', 124, 136), 8)
    if (!Number.isSafeInteger(size) || size < 0) break
    if (extname(name).toLowerCase() === '.ovf' && size <= 16 * 1024 ** 2) {
      const text = Buffer.alloc(size)
      await handle.read(text, 0, size, at + 512)
      return text.toString('utf8')
    }
    at += 512 + Math.ceil(size / 512) * 512
  }
  throw new Error(`Cannot read "${file}": there is no OVF in the archive. Export the VM again`)
}

function describeOvf(text: string, file: string, kind: 'ovf' | 'ova'): VmDescription {
  const envelope = child(parse(text, file), 'Envelope')
  const system = child(envelope, 'VirtualSystem')
  if (envelope === undefined || system === undefined) {
    throw new Error(`Cannot read "${file}": it describes no VM`)
  }
  const files = new Map(
    list(child(envelope, 'References'), 'File').map((
      one,
    ) => [attribute(one, 'id'), attribute(one, 'href') ?? '']),
  )
  const disks = list(child(envelope, 'DiskSection'), 'Disk').map((disk) => {
    const member = files.get(attribute(disk, 'fileRef')) ?? ''
    if (!member || /^[\\/]|:|(^|[\\/])\.\.([\\/]|$)/.test(member)) {
      throw new Error(
        `Cannot read "${file}": its disk "${member}" is outside its folder. Export the VM again`,
      )
    }
    return { id: attribute(disk, 'diskId'), uuid: bare(attribute(disk, 'uuid') ?? ''), member }
  })
  const ref = (
    { member, uuid }: typeof disks[number],
    controller: DiskRef['controller'],
  ): DiskRef => ({
    path: '',
    member,
    format: 'VMDK',
    ...(controller && { controller }),
    ...(uuid && { uuid }),
    chain: [],
    encrypted: false,
  })
  const machine = child(system, 'Machine')
  if (machine !== undefined) {
    const attached = attachedDisks(machine).map(({ uuid, controller }) => {
      const disk = disks.find((disk) => disk.uuid === bare(uuid))
      if (!disk) {
        throw new Error(
          `Cannot read "${file}": its disk ${uuid} is not among its files. Export the VM again`,
        )
      }
      return ref(disk, controller)
    })
    return { ...describeMachine(machine, kind), disks: attached }
  }
  const items = list(
    child(system, 'VirtualHardwareSection'),
    'Item',
    'StorageItem',
    'EthernetPortItem',
  )
  const type = (item: Node) => Number(content(item, 'ResourceType'))
  const quantity = (wanted: number) => {
    const item = items.find((item) => type(item) === wanted)
    return item && Number(content(item, 'VirtualQuantity'))
  }
  const units = content(items.find((item) => type(item) === 4), 'AllocationUnits') ?? ''
  const power = units.match(/byte\s*\*\s*2\^(\d+)/)?.[1]
  const unit = power
    ? 2 ** Number(power)
    : /giga|gb/i.test(units)
    ? 1024 ** 3
    : /^bytes?$/i.test(units)
    ? 1
    : MB
  const controllers: Record<number, string> = { 5: 'ide', 6: 'scsi', 20: 'sata' }
  const osType = content(child(system, 'OperatingSystemSection'), 'Description') ?? 'unknown'
  const efi = list(child(system, 'VirtualHardwareSection'), 'Config')
    .some((one) => attribute(one, 'key') === 'firmware' && attribute(one, 'value') === 'efi')
  return {
    kind,
    name: content(system, 'Name') ?? attribute(system, 'id') ?? basename(file, extname(file)),
    cpus: quantity(3) || 1,
    memory: (quantity(4) || 1024) * unit,
    firmware: efi ? 'efi' : 'bios',
    secureBoot: false,
    tpm: false,
    osType,
    guest: guestOf(osType),
    disks: items.filter((item) => type(item) === 17).flatMap((item) => {
      const id = content(item, 'HostResource')?.replace(/^.*\/disk\//, '')
      const disk = disks.find((disk) => disk.id === id)
      const parent = items.find((one) => content(one, 'InstanceID') === content(item, 'Parent'))
      const controller = parent && {
        type: controllers[type(parent)] ?? 'other',
        port: Number(content(item, 'AddressOnParent') ?? 0),
        device: 0,
      }
      return disk ? [ref(disk, controller)] : []
    }),
    nics: items.filter((item) => type(item) === 10).map((item, slot) => ({
      slot,
      mac: (content(item, 'Address') ?? '').replace(/[^0-9a-f]/gi, '').toUpperCase(),
      attachment: 'bridged',
      ...(content(item, 'Connection') && { network: content(item, 'Connection') as string }),
      cableConnected: true,
    })),
    snapshots: [],
    warnings: [],
  }
}

function readDisks(source: readonly string[]): VmDescription {
  return {
    kind: 'disks',
    name: basename(source[0] as string, extname(source[0] as string)),
    // what a desktop guest needs at least; the command line says otherwise
    cpus: 2,
    memory: 2048 * MB,
    firmware: 'unknown',
    secureBoot: false,
    tpm: false,
    osType: 'unknown',
    guest: 'unknown',
    disks: source.map((path) => ({
      path: resolve(path),
      format: '',
      chain: [],
      encrypted: false,
    })),
    nics: [],
    snapshots: [],
    warnings: [],
  }
}

const MB = 1024 ** 2

/** What a `Machine` element says, in a .vbox and in the OVF of VirtualBox alike; disks excepted. */
function describeMachine(machine: Node, kind: 'vbox' | 'ovf' | 'ova'): VmDescription {
  const hardware = child(machine, 'Hardware')
  const osType = attribute(machine, 'OSType') ?? 'unknown'
  const snapshots: string[] = []
  const walk = (snapshot: Node | undefined) => {
    if (snapshot === undefined) return
    snapshots.push(attribute(snapshot, 'name') ?? '')
    for (const next of list(child(snapshot, 'Snapshots'), 'Snapshot')) walk(next)
  }
  walk(child(machine, 'Snapshot'))
  const nics = list(child(hardware, 'Network'), 'Adapter')
    .filter((adapter) => attribute(adapter, 'enabled') === 'true').map(describeNic)
  const firmware = attribute(child(hardware, 'Firmware'), 'type') ?? 'BIOS'
  const tpm = attribute(child(hardware, 'TrustedPlatformModule'), 'type') ?? 'None'
  const secureBoot = attribute(child(child(hardware, 'BIOS'), 'NVRAM'), 'secureBoot') ??
    attribute(child(child(hardware, 'Firmware'), 'SecureBoot'), 'enabled')
  const count = (names: string[], what: string, where: (Node | undefined)[]) => {
    const found = where.flatMap((node) => names.flatMap((name) => list(node, name)))
    return found.length ? [`${found.length} ${what} will not come along`] : []
  }
  const forwards = list(child(hardware, 'Network'), 'Adapter').flatMap((adapter) =>
    list(child(adapter, 'NAT'), 'Forwarding')
  )
  const serial = list(child(hardware, 'UART'), 'Port').filter((port) =>
    attribute(port, 'enabled') === 'true'
  )
  return {
    kind,
    name: attribute(machine, 'name') ?? '',
    uuid: bare(attribute(machine, 'uuid') ?? ''),
    cpus: Number(attribute(child(hardware, 'CPU'), 'count') ?? 1),
    memory: Number(attribute(child(hardware, 'Memory'), 'RAMSize') ?? 512) * MB,
    firmware: firmware.startsWith('EFI') ? 'efi' : 'bios',
    secureBoot: secureBoot === 'true',
    tpm: tpm !== 'None',
    osType,
    guest: guestOf(osType),
    disks: [],
    nics,
    snapshots,
    warnings: [
      ...(forwards.length
        ? [`${forwards.length} port forwarding(s) of its NAT will not come along`]
        : []),
      ...count(['SharedFolder'], 'shared folder(s)', [child(hardware, 'SharedFolders')]),
      ...count(['DeviceFilter'], 'USB filter(s)', [child(child(hardware, 'USB'), 'DeviceFilters')]),
      ...(serial.length ? [`${serial.length} serial port(s) will not come along`] : []),
      ...(tpm !== 'None'
        ? ['What its TPM holds will not come along. Have the BitLocker recovery key at hand']
        : []),
      ...(snapshots.length
        ? [`Only its current state comes along, not its snapshots (${snapshots.join(', ')})`]
        : []),
    ],
  }
}

function describeNic(adapter: Node): Nic {
  const modes = {
    NAT: 'nat',
    BridgedInterface: 'bridged',
    HostOnlyInterface: 'hostonly',
    HostOnlyNetwork: 'hostonly',
    InternalNetwork: 'internal',
    NATNetwork: 'natnetwork',
    GenericInterface: 'generic',
  } as const
  const mode = (Object.keys(modes) as (keyof typeof modes)[]).find((name) =>
    child(adapter, name) !== undefined
  )
  const network = mode && attribute(child(adapter, mode), 'name')
  return {
    slot: Number(attribute(adapter, 'slot') ?? 0),
    mac: (attribute(adapter, 'MACAddress') ?? '').toUpperCase(),
    attachment: mode ? modes[mode] : 'none',
    ...(network && { network }),
    cableConnected: (attribute(adapter, 'cable') ?? 'true') === 'true',
  }
}

/** The attached hard disks in the order in which the firmware tries them: by controller, port, device. */
function attachedDisks(
  machine: Node,
): { uuid: string; controller: NonNullable<DiskRef['controller']> }[] {
  const types: Record<string, string> = {
    AHCI: 'sata',
    PIIX3: 'ide',
    PIIX4: 'ide',
    ICH6: 'ide',
    NVMe: 'nvme',
    USB: 'usb',
  }
  // since VirtualBox 7 in Hardware, before that beside it
  const parents = [
    child(child(machine, 'Hardware'), 'StorageControllers'),
    child(machine, 'StorageControllers'),
  ]
  return parents.flatMap((parent) => list(parent, 'StorageController')).flatMap((controller) => {
    const type = types[attribute(controller, 'type') ?? ''] ?? 'scsi'
    return list(controller, 'AttachedDevice')
      .filter((device) =>
        attribute(device, 'type') === 'HardDisk' && child(device, 'Image') !== undefined
      )
      .map((device) => ({
        uuid: attribute(child(device, 'Image'), 'uuid') ?? '',
        controller: {
          type,
          port: Number(attribute(device, 'port') ?? 0),
          device: Number(attribute(device, 'device') ?? 0),
        },
      }))
      .sort((a, b) =>
        a.controller.port - b.controller.port || a.controller.device - b.controller.device
      )
  })
}

function guestOf(osType: string): VmDescription['guest'] {
  if (/windows|^win/i.test(osType)) return 'windows'
  if (/linux|ubuntu|debian|fedora|red ?hat|centos|suse|arch|gentoo|oracle|mint/i.test(osType)) {
    return 'linux'
  }
  return osType === 'unknown' ? 'unknown' : 'other'
}

function bare(uuid: string): string {
  return uuid.replace(/[{}]/g, '').toLowerCase()
}

interface Node {
  [name: string]: Node[] | string | undefined
}

/** Elements as lists, attributes under `@`, all of them text: the VM "007" is not 7. */
const xml = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '@',
  removeNSPrefix: true,
  parseAttributeValue: false,
  parseTagValue: false,
  trimValues: false,
  htmlEntities: true,
  alwaysCreateTextNode: true,
  isArray: (_name, _path, _leaf, isAttribute) => !isAttribute,
})

function parse(text: string, file: string): Node {
  if (/<!DOCTYPE|<!ENTITY/i.test(text)) {
    throw new Error(
      `Cannot read "${file}": it defines entities of its own, which VirtualBox never does`,
    )
  }
  const valid = XMLValidator.validate(text)
  if (valid !== true) {
    throw new Error(
      `Cannot read "${file}": it is damaged in line ${valid.err.line} (${valid.err.msg})`,
    )
  }
  return xml.parse(text) as Node
}

function list(node: Node | undefined, ...names: string[]): Node[] {
  return names.flatMap((name) => {
    const found = node?.[name]
    return Array.isArray(found) ? found : []
  })
}

function child(node: Node | undefined, name: string): Node | undefined {
  return list(node, name)[0]
}

function attribute(node: Node | undefined, name: string): string | undefined {
  const value = node?.[`@${name}`]
  return typeof value === 'string' ? value : undefined
}

function content(node: Node | undefined, name: string): string | undefined {
  const text = child(node, name)?.['#text']
  return typeof text === 'string' ? text : undefined
}

async function isFile(path: string): Promise<boolean> {
  return path !== '' && await fs.stat(path).then((stat) => stat.isFile(), () => false)
}

async function findVBoxManage(): Promise<string | undefined> {
  const windows = 'Oracle\\VirtualBox\\VBoxManage.exe'
  const places = process.platform === 'win32'
    ? [
      process.env.VBOX_MSI_INSTALL_PATH &&
      join(process.env.VBOX_MSI_INSTALL_PATH, 'VBoxManage.exe'),
      process.env.ProgramFiles && join(process.env.ProgramFiles, windows),
    ]
    : ['/mnt/c/Program Files/Oracle/VirtualBox/VBoxManage.exe']
  if (process.env.VBOXMANAGE) return process.env.VBOXMANAGE
  const found = await which('VBoxManage', { nothrow: true })
  if (found) return found
  for (const place of places) if (place && await isFile(place)) return place
  return undefined
}

function vboxManage(program: string, ...args: string[]) {
  return $({ quiet: true, quote: (arg) => `'${arg.replaceAll("'", "'\\''")}'` })`${program} ${args}`
}

/** In WSL: where a path of Windows is found. */
async function fromWindows(path: string): Promise<string> {
  return (await $({ quiet: true })`wslpath -u ${path}`).stdout.replace(/\n$/, '')
}

await command(
  import.meta,
  'Describe a VM that is to be moved',
  {
    source: {
      type: 'string',
      array: true,
      positional: true,
      demandOption: true,
      describe: 'A VirtualBox VM by name, a .vbox, .ova or .ovf, or disk images',
      example: 'Win10',
    },
  },
  inspectVm,
)
