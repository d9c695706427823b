#!/usr/bin/env zx
/** Describe a VM that is to be moved: one of VirtualBox, a .vbox, an OVF or OVA, or bare disk images. */
import { XMLParser, XMLValidator } from 'fast-xml-parser'
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { open } from 'node:fs/promises'
import { homedir } from 'node:os'
import { basename, dirname, extname, join, resolve } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { which } from 'zx/core'
import { command, fromWindows, inWsl } from './task.ts'

export interface InspectVmOptions {
  /** A VirtualBox VM by name or UUID, a `.vbox`, `.ova` or `.ovf`, or one or more disk images. */
  source: readonly string[]
}

export interface VmDescription {
  kind: 'virtualbox' | 'vbox' | 'ovf' | 'ova' | 'disks'
  name: string
  /** The file that says all this, absolute: a .vbox, .ovf, or the archive that has one. Bare disks have none. */
  settings?: string
  /** The machine's own, without braces, as all UUIDs here. */
  uuid?: string
  /**
   * The UUID of its hardware as Windows in it reads it, to which licences are bound. Of a VM that was made
   * before VirtualBox 6.1 that is not the one in its settings: see {@link readHardwareUuid}.
   */
  hardwareUuid?: string
  /** 2 for bare disks. */
  cpus: number
  /** Bytes; 2 GB for bare disks. */
  memory: number
  /** `unknown` for bare disks. */
  firmware: 'bios' | 'efi' | 'unknown'
  /** Absent where the source does not say: EFI without an .nvram file, bare disks. */
  secureBoot?: boolean
  /** What its firmware remembers to start, in its order. None of it comes along. Absent as `secureBoot` is. */
  bootEntries?: BootEntry[]
  tpm: boolean
  /** As the source calls it, e.g. `Windows10_64`. */
  osType: string
  guest: 'windows' | 'linux' | 'other' | 'unknown'
  /**
   * VirtualBox's word, e.g. `poweroff`, `running`, `saved`, `aborted`. A .vbox alone cannot tell that
   * its VM runs; an export and bare disks have no state.
   */
  state?: string
  /** Hard disks, the one that boots first. */
  disks: DiskRef[]
  /** The images in its DVD and floppy drives. */
  removable: string[]
  /** Its DVD drives, in the order of {@link disks}, empty ones too. */
  dvds: DvdDrive[]
  /** The enabled ones, COM1 first. */
  serialPorts: SerialPort[]
  /** Folders of the host that the guest has. */
  sharedFolders: SharedFolder[]
  /** The enabled ones, by slot. */
  nics: Nic[]
  /** Its clock; absent where the source does not say. */
  clock?: Clock
  /** VirtualBox starts it with its host. */
  autostart?: Autostart
  /** Names of its snapshots. Only the current state is described. */
  snapshots: string[]
  /** What does not come along, or needs care: a sentence each. */
  warnings: string[]
}

export interface DiskRef {
  /** Absolute; of the archive when the disk is a member of one. */
  path: string
  /** The member of an OVA. */
  member?: string
  /** As the source says it, in upper case: VDI, VMDK, VHD, VHDX, RAW. A bare disk's by its content. */
  format: string
  /** Bytes of the virtual disk, where the source or the image's header tells. */
  capacity?: number
  /** Absent for bare disks. */
  controller?: Controller
  uuid?: string
  /** The images it is made of, the current one first; more than itself when there are snapshots. */
  chain: string[]
  /** By VirtualBox, with a password. */
  encrypted: boolean
  /** As an OVF may have its disks: then it is read through that, which is its `path`, as its `member`. */
  packed?: 'chunks' | 'gzip'
}

export interface Controller {
  type: 'ide' | 'sata' | 'scsi' | 'sas' | 'nvme' | 'virtio' | 'usb' | 'other'
  /** From 0, as is `device`. */
  port: number
  /** Only IDE has two at a port: 0 the master, 1 the slave. */
  device: number
}

export interface Nic {
  /** From 0. */
  slot: number
  /** Twelve upper-case hexadecimal digits; empty when the source has none. */
  mac: string
  attachment:
    | 'nat'
    | 'bridged'
    | 'hostonly'
    | 'hostonlynetwork'
    | 'internal'
    | 'natnetwork'
    | 'generic'
    | 'cloud'
    | 'none'
  /** The bridged adapter, or the network. */
  network?: string
  cableConnected: boolean
  /** As the source calls it, e.g. `82540EM`, `virtio`, `VmxNet3`. */
  model: string
  /** Port forwards of its NAT. */
  forwards: Forward[]
}

export interface BootEntry {
  /** E.g. `Windows Boot Manager`, `ubuntu`. */
  name: string
  /** The loader on its EFI system partition, e.g. `\\EFI\\ubuntu\\shimx64.efi`. */
  path: string
}

export interface DvdDrive {
  /** Absolute; of the image in it. Absent when it is empty, or has a drive of the host. */
  path?: string
  /** The host's drive that it has, e.g. `/dev/sr0` or `D:`. */
  hostDrive?: string
  /** Absent where the source does not say. */
  controller?: Controller
}

export interface SerialPort {
  /** 1 for COM1, to 4. */
  port: number
  /** What it is on the host. `pipe` is a local socket where the host is not Windows. */
  mode: 'disconnected' | 'pipe' | 'device' | 'file' | 'tcp'
  /** Of the pipe, device or file; `host:port` of TCP. Absent when it is disconnected. */
  path?: string
  /** VirtualBox makes the pipe, or waits for the connection, and does not look for one. */
  server: boolean
}

export interface SharedFolder {
  name: string
  /** On VirtualBox's host, as it is written there. */
  path: string
  writable: boolean
  autoMount: boolean
}

export interface Clock {
  /** What its hardware clock shows: VirtualBox has `local` for Windows, `utc` for the others. */
  rtc: 'utc' | 'local'
  /** Whether the Guest Additions follow the host's clock, unless they are told not to. */
  follows: boolean
}

export interface Autostart {
  /** Seconds after the host. */
  delay: number
  /** What VirtualBox does with it when the host shuts down. */
  stop: 'nothing' | 'save' | 'turn-off' | 'shut-down'
}

export interface Forward {
  name: string
  protocol: 'tcp' | 'udp'
  /** Empty: all of the host's, or the guest's only one. */
  hostIp: string
  hostPort: number
  guestIp: string
  guestPort: number
}

/**
 * Describes a VM. Reads only.
 *
 * Settings come from the .vbox file even for a VM that VirtualBox knows: VirtualBox writes it at each
 * change, it alone has the snapshot chains, and `showvminfo` prints names that its own quoting does
 * not let one read back. Only the state is asked of VirtualBox, as no file says that a VM runs.
 */
export async function inspectVm({ source }: InspectVmOptions): Promise<VmDescription> {
  const [first] = source
  if (first === undefined) throw new Error('Cannot describe a VM: no source is named')
  const found = await Promise.all(source.map(isFile))
  const missing = source.find((_, index) => !found[index])
  if (source.length === 1 && missing !== undefined && !looksLikeFile(first)) {
    return await readRegistered(first)
  }
  if (missing !== undefined) {
    throw new Error(`Cannot read "${missing}": there is no such file. Name one that is there`)
  }
  const kinds = source.map((path) => SETTINGS[extname(path).toLowerCase()])
  if (source.length === 1 && kinds[0]) return await kinds[0](resolve(first))
  const settings = kinds.findIndex((kind) => kind !== undefined)
  if (settings >= 0) {
    throw new Error(
      `Cannot describe ${source.length} sources as one VM: "${
        source[settings]
      }" is a whole VM, and ` +
        'only disk images go together. Name it alone',
    )
  }
  return await readDisks(source.map((path) => resolve(path)))
}

/** The names of VirtualBox's VMs, or null when there is no VirtualBox on this machine. */
export async function listVms(): Promise<string[] | null> {
  const program = await findVBoxManage()
  return program === undefined ? null : (await listedVms(program, 'vms')).map(({ name }) => name)
}

/** The VMs that VirtualBox runs now, with their adapters; none when there is no VirtualBox on this machine. */
export async function runningVms(): Promise<
  { name: string; nics: { mac: string; attachment: string }[] }[]
> {
  const program = await findVBoxManage()
  if (program === undefined) return []
  const vms = await listedVms(program, 'runningvms')
  return await Promise.all(vms.map(async ({ name, uuid }) => {
    const { stdout } = await run(program, ['showvminfo', '--machinereadable', '--', uuid])
    const nics = [...stdout.matchAll(/^macaddress(\d+)="([\dA-F]{12})"\r?$/gmi)]
      .map(([, slot, mac = '']) => ({
        mac: mac.toUpperCase(),
        attachment: stdout.match(new RegExp(`^nic${slot}="(\\w+)"\r?$`, 'm'))?.[1] ?? 'none',
      }))
    return { name, nics }
  }))
}

const MB = 1024 ** 2
const NO_TPM = 'What its TPM holds does not come along. Have the BitLocker recovery key at hand'

/** What describes a whole VM, by its extension. */
const SETTINGS: Record<string, (file: string) => Promise<VmDescription>> = {
  '.vbox': readVbox,
  '.ovf': readOvf,
  '.ova': readOva,
}

function looksLikeFile(source: string): boolean {
  return /[\\/]|\.(vbox|ov[af]|vdi|vmdk|vhdx?|avhdx?|img|raw)$/i.test(source)
}

async function readRegistered(wanted: string): Promise<VmDescription> {
  const program = await findVBoxManage()
  if (program === undefined) {
    throw new Error(
      `Cannot find the VM "${wanted}": there is no VBoxManage on this machine, and no file of that ` +
        'name. Set VBOXMANAGE to where it is, or name a .vbox or .ova file',
    )
  }
  const vms = await listedVms(program, 'vms')
  const named = vms.filter(({ name, uuid }) => name === wanted || uuid === bare(wanted))
  if (named.length > 1) {
    throw new Error(
      `Cannot choose the VM "${wanted}": VirtualBox has ${named.length} of that name. ` +
        `Name one by its UUID: ${named.map(({ uuid }) => uuid).join(', ')}`,
    )
  }
  // a name that the code page of Windows' console cannot show is not in the list, and found all the
  // same; after `--` a leading dash is no option
  const args = ['showvminfo', '--machinereadable', '--', named[0]?.uuid ?? wanted]
  const { stdout } = await run(program, args).catch((cause) => {
    if (named.length === 1) throw cause
    const names = vms.map(({ name }) => `"${name}"`).join(', ') || 'none'
    throw new Error(`Cannot find the VM "${wanted}": VirtualBox has ${names}. Name one of these`)
  })
  // the first is VirtualBox's own: a name may hold lines that look the same, but its quotes are escaped
  const value = (key: string) => stdout.match(new RegExp(`^${key}="(.*)"\r?$`, 'm'))?.[1]
  const printed = await local(value('CfgFile')?.replace(/\\(["\\])/g, '$1') ?? '', '')
  const file = await isFile(printed)
    ? printed
    : (await registry(printed)).files.get(value('UUID') ?? '')
  if (file === undefined) {
    throw new Error(
      `Cannot read the VM "${wanted}": its settings file "${printed}" is not there. ` +
        'Bring it back, or name a .vbox, .ova or disk image',
    )
  }
  return { ...await readVbox(file), kind: 'virtualbox', state: value('VMState') ?? 'unknown' }
}

/** Names may hold quotes, which are not escaped here, and newlines. */
async function listedVms(
  program: string,
  list: 'vms' | 'runningvms',
): Promise<{ name: string; uuid: string }[]> {
  const { stdout } = await run(program, ['list', list])
  return [...stdout.matchAll(/^"(.*?)" \{([0-9a-f-]{36})\}\r?$/gms)]
    .map(([, name = '', uuid = '']) => ({ name, uuid }))
}

async function findVBoxManage(): Promise<string | undefined> {
  if (process.env.VBOXMANAGE) return process.env.VBOXMANAGE
  const found = await which('VBoxManage', { nothrow: true })
  if (found) return found
  const { VBOX_MSI_INSTALL_PATH, ProgramFiles } = process.env
  const folders = process.platform === 'win32'
    ? [VBOX_MSI_INSTALL_PATH, ProgramFiles && join(ProgramFiles, 'Oracle', 'VirtualBox')]
    : [inWsl() && await fromWindows('C:\\Program Files\\Oracle\\VirtualBox')]
  for (const folder of folders) {
    const program = folder && join(folder, 'VBoxManage.exe')
    if (program && await isFile(program)) return program
  }
  return undefined
}

async function run(program: string, args: string[]): Promise<{ stdout: string }> {
  // elsewhere than in UTF-8 a name such as 桥接 is printed as question marks
  const env = { ...process.env, LC_ALL: 'C.UTF-8' }
  try {
    return await promisify(execFile)(program, args, { env, maxBuffer: 64 * MB, windowsHide: true })
  } catch (cause) {
    const { code, stderr = '' } = cause as { code?: string | number; stderr?: string }
    const why = code === 'ENOENT'
      ? 'there is no such program. Set VBOXMANAGE to the one to use'
      : `${stderr.trim().split(/\r?\n/)[0] || `exit code ${code}`}. Run: VBoxManage ${
        args.join(' ')
      }`
    throw new Error(`Cannot run "${program}": ${why}`, { cause })
  }
}

interface Medium {
  location: string
  /** The folder that a relative location starts from. */
  folder: string
  format: string
  encrypted: boolean
  parent: Medium | undefined
}

async function readVbox(file: string): Promise<VmDescription> {
  const root = child(await readXml(file), 'VirtualBox')
  const machine = child(root, 'Machine')
  if (machine === undefined) {
    const why = child(root, 'MachineEncrypted')
      ? 'it is encrypted. Run: VBoxManage encryptvm NAME setencryption --old-password FILE'
      : 'it describes no VM. Name the .vbox of a VM'
    throw new Error(`Cannot read "${file}": ${why}`)
  }
  const vm = describeMachine(machine, file, 'vbox')
  const own = mediaOf(machine, dirname(file))
  let others: Map<string, Medium> | undefined
  for (const { uuid, controller } of attached(machine, file, 'HardDisk')) {
    let medium = own.get(uuid)
    // a linked clone's disks, and one that two VMs share, are in the other VM's file
    if (medium === undefined) medium = (others ??= (await registry(file)).media).get(uuid)
    if (medium === undefined) {
      throw new Error(
        `Cannot read "${file}": its disk ${uuid} is in no media registry here. ` +
          'Set VBOX_USER_HOME to the folder of its VirtualBox.xml, or name the disk itself',
      )
    }
    const { format, encrypted } = medium
    const chain: string[] = []
    for (let one: Medium | undefined = medium; one; one = one.parent) {
      chain.push(await local(one.location, one.folder))
    }
    const path = chain[0] as string
    const { capacity } = await lookAt(path).catch(() => {
      vm.warnings.push(`Its disk "${path}" cannot be read`)
      return { capacity: undefined }
    })
    if (encrypted) vm.warnings.push(`Its disk "${path}" is encrypted by VirtualBox`)
    vm.disks.push({
      path,
      format,
      ...(capacity !== undefined && { capacity }),
      controller,
      uuid,
      chain,
      encrypted,
    })
  }
  for (const type of ['DVD', 'Floppy']) {
    for (const { uuid, hostDrive, controller } of drives(machine, file, type)) {
      // an image that two VMs use is in one's file
      let image = own.get(uuid)
      if (image === undefined && uuid) image = (others ??= (await registry(file)).media).get(uuid)
      const path = image && await local(image.location, image.folder)
      if (path !== undefined) vm.removable.push(path)
      if (type === 'DVD') {
        vm.dvds.push({
          ...(path !== undefined && { path }),
          ...(hostDrive !== undefined && { hostDrive }),
          controller,
        })
      }
    }
  }
  for (const path of vm.removable) vm.warnings.push(`"${path}" in its drive does not come along`)
  const [saved, aborted] = [attribute(machine, 'stateFile'), isTrue(attribute(machine, 'aborted'))]
  vm.state = saved ? aborted ? 'aborted-saved' : 'saved' : aborted ? 'aborted' : 'poweroff'
  if (vm.firmware === 'efi') {
    const nvram = child(child(hardware(machine), 'BIOS'), 'NVRAM') ??
      child(child(hardware(machine), 'Firmware'), 'NVRAM') // since 7.1
    const path = attribute(nvram, 'path') ?? `${basename(file, extname(file))}.nvram`
    Object.assign(vm, await readNvram(await local(path, dirname(file))))
  }
  return vm
}

/** The media of a `Machine` or `Global` element, by UUID. */
function mediaOf(owner: Node | undefined, folder: string): Map<string, Medium> {
  const media = new Map<string, Medium>()
  const add = (node: Node, parent?: Medium) => {
    const crypt = list(node, 'Property').some((one) => attribute(one, 'name') === 'CRYPT/KeyStore')
    const medium = {
      location: attribute(node, 'location') ?? '',
      folder,
      format: (attribute(node, 'format') ?? '').toUpperCase(),
      encrypted: crypt || parent?.encrypted === true, // the password is the base's
      parent,
    }
    media.set(bare(attribute(node, 'uuid') ?? ''), medium)
    for (const next of list(node, 'HardDisk')) add(next, medium)
  }
  const registry = child(owner, 'MediaRegistry')
  for (const disk of list(child(registry, 'HardDisks'), 'HardDisk')) add(disk)
  for (const kind of ['DVDImages', 'FloppyImages']) {
    for (const image of list(child(registry, kind), 'Image')) add(image)
  }
  return media
}

/** What VirtualBox's own list knows: every VM's settings file and all their media, by UUID. */
async function registry(
  near: string,
): Promise<{ files: Map<string, string>; media: Map<string, Medium> }> {
  const files = new Map<string, string>()
  const media = new Map<string, Medium>()
  const { VBOX_USER_HOME, XDG_CONFIG_HOME = join(homedir(), '.config') } = process.env
  const homes = [join(XDG_CONFIG_HOME, 'VirtualBox'), join(homedir(), 'Library', 'VirtualBox')]
  // beside `VirtualBox VMs` in the user's folder: of Windows, from WSL too
  for (let at = dirname(near || homedir()); at !== dirname(at); at = dirname(at)) {
    homes.push(join(at, '.VirtualBox'))
  }
  homes.push(join(homedir(), '.VirtualBox'))
  for (const home of VBOX_USER_HOME ? [VBOX_USER_HOME] : homes) {
    const known = join(home, 'VirtualBox.xml')
    if (!await isFile(known)) continue
    const global = child(child(await readXml(known), 'VirtualBox'), 'Global')
    for (const [uuid, medium] of mediaOf(global, home)) media.set(uuid, medium)
    for (const entry of list(child(global, 'MachineRegistry'), 'MachineEntry')) {
      const file = await local(attribute(entry, 'src') ?? '', home)
      if (!await isFile(file)) continue
      files.set(bare(attribute(entry, 'uuid') ?? ''), file)
      // another VM's damaged file is no obstacle to this one
      const root = await readXml(file).catch(() => undefined)
      const machine = child(child(root, 'VirtualBox'), 'Machine')
      for (const [uuid, medium] of mediaOf(machine, dirname(file))) media.set(uuid, medium)
    }
  }
  return { files, media }
}

/** What a `Machine` element says but its disks, in a .vbox and in the OVF of VirtualBox alike. */
function describeMachine(machine: Node, file: string, kind: 'vbox' | 'ovf' | 'ova'): VmDescription {
  const hw = hardware(machine)
  if (hw === undefined) {
    throw new Error(`Cannot read "${file}": its VM has no hardware. Bring the file back whole`)
  }
  // since 7.1 (settings 1.20) beside the hardware
  const platform = child(machine, 'Platform')
  const osType = attribute(machine, 'OSType') ?? 'unknown'
  const uuid = bare(attribute(machine, 'uuid') ?? '')
  const snapshots: string[] = []
  const walk = (snapshot: Node) => {
    snapshots.push(attribute(snapshot, 'name') ?? '')
    list(child(snapshot, 'Snapshots'), 'Snapshot').forEach(walk)
  }
  list(machine, 'Snapshot').forEach(walk)
  const on = (node: Node) => isTrue(attribute(node, 'enabled'))
  const nics = list(child(hw, 'Network'), 'Adapter').filter(on)
    .map((adapter) => describeNic(adapter, file)).sort((a, b) => a.slot - b.slot)
  const tpm = (attribute(child(hw, 'TrustedPlatformModule'), 'type') ?? 'None') !== 'None'
  const warnings: string[] = []
  const warn = (what: string, names: (string | undefined)[]) => {
    if (names.length > 0) warnings.push(`${what} not come along: ${names.join(', ')}`)
  }
  warn('Snapshots, other than its current state, do', snapshots)
  if (attribute(machine, 'stateFile')) warnings.push('Its saved state does not come along')
  if (tpm) warnings.push(NO_TPM)
  if (attribute(platform, 'architecture')?.toLowerCase() === 'arm') {
    warnings.push('Its processor is ARM: only a Hyper-V host on ARM runs it')
  }
  const sharedFolders = list(child(hw, 'SharedFolders'), 'SharedFolder').map((one) => ({
    name: attribute(one, 'name') ?? '',
    path: attribute(one, 'hostPath') ?? '',
    writable: isTrue(attribute(one, 'writable')),
    autoMount: isTrue(attribute(one, 'autoMount')),
  }))
  warn('Shared folders do', sharedFolders.map(({ name }) => name))
  // before 5.0 (settings 1.15) the filters were in the controller
  const filters = [child(child(hw, 'USB'), 'DeviceFilters'), child(hw, 'USBController')]
  const active = filters.flatMap((parent) => list(parent, 'DeviceFilter'))
    .filter((one) => isTrue(attribute(one, 'active')))
  warn('USB devices do', active.map((one) => attribute(one, 'name')))
  const serialPorts = list(child(hw, 'UART'), 'Port').filter(on)
    .map((one) => describeSerial(one, file)).sort((a, b) => a.port - b.port)
  // Hyper-V has two
  const more = serialPorts.filter(({ port }) => port > 2)
  warn('Serial ports do', more.map(({ port }) => `COM${port}`))
  const autostart = describeAutostart(child(machine, 'Autostart'))
  const parallel = list(child(hw, 'LPT'), 'Port').filter(on)
  warn('Parallel ports do', parallel.map((one) => `LPT${Number(attribute(one, 'slot')) + 1}`))
  return {
    kind,
    name: attribute(machine, 'name') ?? '',
    settings: file,
    ...(uuid && { uuid, hardwareUuid: readHardwareUuid(hw, uuid) }),
    cpus: whole(file, child(platform, 'CPU') ?? child(hw, 'CPU'), 'count', 1),
    memory: whole(file, child(hw, 'Memory'), 'RAMSize') * MB,
    firmware: /^(EFI|2$)/.test(attribute(child(hw, 'Firmware'), 'type') ?? '') ? 'efi' : 'bios',
    tpm,
    osType,
    guest: guestOf(osType),
    disks: [],
    removable: [],
    dvds: [],
    serialPorts,
    sharedFolders,
    nics,
    clock: describeClock(machine, child(platform, 'RTC') ?? child(hw, 'RTC')),
    ...(autostart && { autostart }),
    snapshots,
    warnings,
  }
}

/** Where the settings do not say, the clock is local: VirtualBox writes what is not so by default. */
function describeClock(machine: Node, rtc: Node | undefined): Clock {
  const utc = attribute(rtc, 'localOrUTC')?.toUpperCase() === 'UTC'
  // the one way to turn it off from outside (VirtualBox's manual, 9.10.3)
  const off = list(child(machine, 'ExtraData'), 'ExtraDataItem').some((item) =>
    attribute(item, 'name') === 'VBoxInternal/Devices/VMMDev/0/Config/GetHostTimeDisabled' &&
    attribute(item, 'value') === '1'
  )
  return { rtc: utc ? 'utc' : 'local', follows: !off }
}

function describeAutostart(node: Node | undefined): Autostart | undefined {
  if (!isTrue(attribute(node, 'enabled'))) return undefined
  const stops: Record<string, Autostart['stop']> = {
    SaveState: 'save',
    PowerOff: 'turn-off',
    AcpiShutdown: 'shut-down',
  }
  const stop = stops[attribute(node, 'autostop') ?? ''] ?? 'nothing'
  return { delay: Number(attribute(node, 'delay')) || 0, stop }
}

/**
 * Before 6.1 VirtualBox gave the bytes of the UUID to SMBIOS in the order in which it is written, and keeps
 * to that for VMs of that time (SMBIOSUuidLittleEndian in its SDK). SMBIOS has the first three groups
 * the other way round (DSP0134, 7.2.1), and so does who reads it there.
 */
function readHardwareUuid(hw: Node, machine: string): string {
  const uuid = bare(attribute(hw, 'uuid') ?? machine)
  const firmware = [child(hw, 'BIOS'), child(hw, 'Firmware')] // since 7.1 in the latter
    .map((node) => child(node, 'SmbiosUuidLittleEndian'))
  if (firmware.some((node) => isTrue(attribute(node, 'enabled')))) return uuid
  return uuid.split('-').map((group, index) =>
    index < 3 ? Buffer.from(group, 'hex').reverse().toString('hex') : group
  ).join('-')
}

function describeSerial(node: Node, file: string): SerialPort {
  const modes: Record<string, SerialPort['mode']> = {
    HostPipe: 'pipe',
    HostDevice: 'device',
    RawFile: 'file',
    TCP: 'tcp', // since 5.1 (settings 1.16)
  }
  const mode = modes[attribute(node, 'hostMode') ?? ''] ?? 'disconnected'
  const path = attribute(node, 'path')
  return {
    port: whole(file, node, 'slot') + 1,
    mode,
    ...(mode !== 'disconnected' && path && { path }),
    server: isTrue(attribute(node, 'server')),
  }
}

function hardware(machine: Node): Node | undefined {
  return child(machine, 'Hardware')
}

function describeNic(adapter: Node, file: string): Nic {
  const attachments = {
    NAT: 'nat',
    BridgedInterface: 'bridged',
    HostInterface: 'bridged',
    HostOnlyInterface: 'hostonly',
    HostOnlyNetwork: 'hostonlynetwork',
    InternalNetwork: 'internal',
    NATNetwork: 'natnetwork',
    GenericInterface: 'generic',
    CloudNetwork: 'cloud',
  } as const
  // those it had before are in DisabledModes, one level down
  const mode = Object.keys(attachments).find((name) => child(adapter, name)) as
    | keyof typeof attachments
    | undefined
  const node = mode && child(adapter, mode)
  const network = attribute(node, 'name') ?? attribute(node, 'driver')
  return {
    slot: whole(file, adapter, 'slot'),
    mac: macOf(attribute(adapter, 'MACAddress')),
    attachment: mode ? attachments[mode] : 'none',
    ...(network && { network }),
    cableConnected: isTrue(attribute(adapter, 'cable') ?? 'true'),
    model: attribute(adapter, 'type') ?? 'Am79C973',
    forwards: list(node, 'Forwarding').map((rule) => ({
      name: attribute(rule, 'name') ?? '',
      protocol: attribute(rule, 'proto') === '0' ? 'udp' : 'tcp',
      hostIp: attribute(rule, 'hostip') ?? '',
      hostPort: whole(file, rule, 'hostport', 0),
      guestIp: attribute(rule, 'guestip') ?? '',
      guestPort: whole(file, rule, 'guestport', 0),
    })),
  }
}

const CONTROLLERS: Record<string, Controller['type']> = {
  PIIX3: 'ide',
  PIIX4: 'ide',
  ICH6: 'ide',
  AHCI: 'sata',
  LsiLogic: 'scsi',
  BusLogic: 'scsi',
  LsiLogicSas: 'sas',
  VirtioSCSI: 'virtio',
  NVMe: 'nvme',
  USB: 'usb',
}

interface Drive {
  /** Of the image in it; empty when there is none. */
  uuid: string
  /** The host's own drive that it stands for. */
  hostDrive: string | undefined
  controller: Controller
}

/** The drives of a type that have an image. */
function attached(machine: Node, file: string, type: string): Drive[] {
  return drives(machine, file, type).filter(({ uuid }) => uuid)
}

/**
 * The drives of a type, in the order in which VirtualBox's BIOS looks for a disk to boot: IDE, then
 * SATA, then the SCSIs (orgs.asm: _ata_init, _ahci_init, _scsi_init). EFI keeps an order of its own in
 * the .nvram, and beside that looks through the disks much the same.
 */
function drives(machine: Node, file: string, drive: string): Drive[] {
  const order = ['ide', 'sata', 'scsi', 'sas', 'virtio', 'nvme', 'usb', 'other']
  // since 5.1 (settings 1.16) in the hardware, before that beside it
  const parents = [hardware(machine), machine].map((node) => child(node, 'StorageControllers'))
  return parents.flatMap((parent) => list(parent, 'StorageController'))
    .flatMap((node) => {
      const type = CONTROLLERS[attribute(node, 'type') ?? ''] ?? 'other'
      const last = isTrue(attribute(node, 'Bootable') ?? 'true') ? 0 : order.length
      return list(node, 'AttachedDevice')
        .filter((device) => attribute(device, 'type') === drive)
        .map((device) => ({
          rank: last + order.indexOf(type),
          uuid: bare(attribute(child(device, 'Image'), 'uuid') ?? ''),
          hostDrive: attribute(child(device, 'HostDrive'), 'src'),
          controller: {
            type,
            port: whole(file, device, 'port'),
            device: whole(file, device, 'device'),
          },
        }))
    })
    .sort((a, b) =>
      a.rank - b.rank || a.controller.port - b.controller.port ||
      a.controller.device - b.controller.device
    )
    .map(({ uuid, hostDrive, controller }) => ({ uuid, hostDrive, controller }))
}

/**
 * What an .nvram file keeps: the store of UEFI variables as EDK II lays it out, alone or in a tar.
 *
 * Secure Boot is on where a platform key is enrolled, unless SecureBootEnable says that it is off: a VM
 * with keys that has never started has no such variable yet (EDK II, AuthVariableLib and SecureBootConfigDxe).
 */
async function readNvram(
  file: string,
): Promise<{ secureBoot: boolean; bootEntries: BootEntry[] } | undefined> {
  if (!await isFile(file) || (await fs.stat(file)).size > 64 * MB) return undefined
  const variables = readVariables(await fs.readFile(file))
  const order = variables.get('BootOrder') ?? Buffer.alloc(0)
  const bootEntries: BootEntry[] = []
  for (let at = 0; at + 2 <= order.length; at += 2) {
    const number = order.readUInt16LE(at).toString(16).toUpperCase().padStart(4, '0')
    const entry = readBootEntry(variables.get(`Boot${number}`) ?? Buffer.alloc(0))
    if (entry !== undefined) bootEntries.push(entry)
  }
  const enable = variables.get('SecureBootEnable')
  return { secureBoot: variables.has('PK') && enable?.[0] !== 0, bootEntries }
}

/** Begins a variable in use: 0x55AA, and the state VAR_ADDED of AUTHENTICATED_VARIABLE_HEADER. */
const VARIABLE = Buffer.of(0xaa, 0x55, 0x3f)
const VARIABLE_HEADER = 60

function readVariables(store: Buffer): Map<string, Buffer> {
  const variables = new Map<string, Buffer>()
  for (let at = store.indexOf(VARIABLE); at >= 0; at = store.indexOf(VARIABLE, at + 1)) {
    if (at + VARIABLE_HEADER > store.length) break
    const [nameSize, dataSize] = [store.readUInt32LE(at + 36), store.readUInt32LE(at + 40)]
    const data = at + VARIABLE_HEADER + nameSize
    if (nameSize < 4 || nameSize > 1024 || data + dataSize > store.length) continue
    const name = store.toString('utf16le', at + VARIABLE_HEADER, data)
    if (name.endsWith('\0')) variables.set(name.slice(0, -1), store.subarray(data, data + dataSize))
  }
  return variables
}

/** UEFI specification 2.10, 3.1.3 (EFI_LOAD_OPTION) and 10.3.5.4 (a file's path). Undefined without a file. */
function readBootEntry(option: Buffer): BootEntry | undefined {
  let at = 6
  while (at + 2 <= option.length && option.readUInt16LE(at) !== 0) at += 2
  const name = option.toString('utf16le', 6, at)
  at += 2
  while (at + 4 <= option.length) {
    const length = option.readUInt16LE(at + 2)
    if (option[at] === 4 && option[at + 1] === 4 && length > 4) {
      const path = option.toString('utf16le', at + 4, at + length).replace(/\0.*$/s, '')
      return { name, path }
    }
    if (option[at] === 0x7f || length < 4) return undefined
    at += length
  }
  return undefined
}

/** DSP0243 2.1.1, 7.1: chunks have nine digits, from zero. */
const FIRST_CHUNK = '.000000000'

async function readOvf(file: string): Promise<VmDescription> {
  const vm = describeOvf(await readXml(file), file, 'ovf')
  for (const disk of vm.disks) {
    const { member = '', packed } = disk
    if (packed !== undefined) {
      if (
        !await isFile(join(dirname(file), packed === 'gzip' ? member : `${member}${FIRST_CHUNK}`))
      ) {
        throw new Error(
          `Cannot read "${file}": its disk "${member}" is not beside it. Copy all files of the export`,
        )
      }
      Object.assign(disk, { path: file, chain: [file] })
      continue
    }
    delete disk.member
    disk.path = join(dirname(file), member)
    // an address may spell a blank as %20
    if (!await isFile(disk.path)) disk.path = join(dirname(file), inside(unquoted(member), file))
    if (!await isFile(disk.path)) {
      throw new Error(
        `Cannot read "${file}": its disk "${member}" is not beside it. Copy all files of the export`,
      )
    }
    disk.chain = [disk.path]
  }
  return vm
}

async function readOva(file: string): Promise<VmDescription> {
  const { ovf, members } = await readTar(file)
  const vm = describeOvf(parse(ovf, file), file, 'ova')
  for (const disk of vm.disks) {
    const { member = '', packed } = disk
    const suffix = packed === 'chunks' ? FIRST_CHUNK : ''
    const found = [member, unquoted(member)].find((name) => members.has(`${name}${suffix}`))
    if (found === undefined) {
      throw new Error(`Cannot read "${file}": its disk "${member}" is not in it. Export it again`)
    }
    Object.assign(disk, { path: file, member: found, chain: [file] })
  }
  return vm
}

/** The OVF of an OVA, and the names in it. The disks are passed over. */
async function readTar(file: string): Promise<{ ovf: Buffer; members: Set<string> }> {
  const damaged = (why: string) =>
    new Error(`Cannot read "${file}": ${why}. Export or copy the VM again`)
  const members = new Set<string>()
  let ovf: Buffer | undefined
  const archive = await open(file, 'r')
  try {
    const { size: end } = await archive.stat()
    const read = async (at: number, length: number) => {
      if (at + length > end) throw damaged('the archive is cut short')
      return (await archive.read(Buffer.alloc(length), 0, length, at)).buffer
    }
    let long: string | undefined
    for (let at = 0; at + 512 <= end;) {
      const header = await read(at, 512)
      if (header.every((byte) => byte === 0)) break
      const text = (from: number, to: number) =>
        header.toString('utf8', from, to).replace(/\0.*$/s, '')
      if (text(257, 262) !== 'ustar') throw damaged('it is no tar archive')
      const size = (header[124] as number) & 0x80
        ? Number(header.readBigUInt64BE(128))
        : Number(`0o${text(124, 136).trim() || '0'}`)
      if (!Number.isSafeInteger(size) || at + 512 + size > end) {
        throw damaged('the archive is cut short')
      }
      const type = text(156, 157) || '0'
      const name = long ?? [text(345, 500), text(0, 100)].filter((part) => part).join('/')
      long = undefined
      if (type === 'L') long = (await read(at + 512, Math.min(size, MB))).toString().split('\0')[0]
      else if (type === 'x') {
        const extended = (await read(at + 512, Math.min(size, MB))).toString()
        long = extended.match(/(?:^|\n)\d+ path=([^\n]*)\n/)?.[1]
      } else if (type === '1' || type === '2') {
        throw damaged(`"${name}" in it is a link, which an OVA never has`)
      } else if (type === '0') {
        members.add(inside(name, file))
        if (ovf === undefined && /\.ovf$/i.test(name)) {
          if (size > MAX_XML) throw damaged(`"${name}" in it has ${size} bytes`)
          ovf = await read(at + 512, size)
        }
      }
      at += 512 + Math.ceil(size / 512) * 512
    }
  } finally {
    await archive.close()
  }
  if (ovf === undefined) throw damaged('there is no OVF in the archive')
  return { ovf, members }
}

/** A path that stays in the folder or archive it is relative to. */
function inside(path: string, file: string): string {
  if (path && !/^[\\/]|:|(^|[\\/])\.\.([\\/]|$)|\0/.test(path)) return path
  throw new Error(
    `Cannot read "${file}": the file "${path}" that it names is outside of it. Export the VM again`,
  )
}

function unquoted(path: string): string {
  return /^(?:[^%]|%[0-7][0-9a-f])*$/i.test(path) ? decodeURIComponent(path) : path
}

/** Disks have the name of their file in `member`, and no `path` yet. */
function describeOvf(root: Node, file: string, kind: 'ovf' | 'ova'): VmDescription {
  const damaged = (why: string) =>
    new Error(`Cannot read "${file}": ${why}. Export each VM by itself`)
  const envelope = child(root, 'Envelope')
  const systems = [envelope, ...section(envelope, 'VirtualSystemCollection')]
    .flatMap((node) => section(node, 'VirtualSystem'))
  const [system] = systems
  if (system === undefined || systems.length > 1) {
    throw damaged(`it describes ${systems.length || 'no'} VMs`)
  }
  const files = new Map(
    list(child(envelope, 'References'), 'File').map((one) => [attribute(one, 'id'), one]),
  )
  const images = section(envelope, 'DiskSection').flatMap((node) => list(node, 'Disk'))
  const describe = (node: Node, controller?: Controller): DiskRef => {
    const from = files.get(attribute(node, 'fileRef')) ?? node
    const member = inside(attribute(from, 'href') ?? '', file)
    const compression = attribute(from, 'compression') || 'identity'
    if (compression !== 'identity' && compression !== 'gzip') {
      throw damaged(
        `its disk "${member}" is compressed by ${brief(compression)}, and gzip is known`,
      )
    }
    const chunks = attribute(from, 'chunkSize') !== undefined
    const uuid = bare(attribute(node, 'uuid') ?? '')
    const capacity = Number(attribute(node, 'capacity')) *
      bytesPer(attribute(node, 'capacityAllocationUnits'), 1)
    return {
      path: '',
      member,
      format: /vhd/i.test(attribute(node, 'format') ?? '') ? 'VHD' : 'VMDK',
      ...(Number.isSafeInteger(capacity) && capacity > 0 && { capacity }),
      ...(controller && { controller }),
      ...(uuid && { uuid }),
      chain: [],
      encrypted: false,
      ...((chunks || compression === 'gzip') && { packed: chunks ? 'chunks' : 'gzip' }),
    }
  }
  const machine = child(system, 'Machine')
  if (machine !== undefined) {
    const vm = describeMachine(machine, file, kind)
    vm.disks = attached(machine, file, 'HardDisk').map(({ uuid, controller }) => {
      const image = images.find((node) => bare(attribute(node, 'uuid') ?? '') === uuid)
      if (image === undefined) throw damaged(`its disk ${uuid} is not among its files`)
      return describe(image, controller)
    })
    // what is in them is exported only when VirtualBox is told to
    vm.dvds = drives(machine, file, 'DVD').map(({ controller }) => ({ controller }))
    for (const { uuid } of attached(machine, file, 'DVD')) {
      const image = images.find((node) => bare(attribute(node, 'uuid') ?? '') === uuid)
      if (image) vm.warnings.push(`"${describe(image).member}" in its drive does not come along`)
    }
    return vm
  }
  // no VirtualBox wrote it: the items of the standard, and what VMware adds
  const hardware = section(system, 'VirtualHardwareSection')
  const items = hardware.flatMap((node) =>
    ['Item', 'StorageItem', 'EthernetPortItem'].flatMap((name) => list(node, name))
  ).filter((item) => attribute(item, 'bound') === undefined)
  const id = (item: Node) => content(item, 'InstanceID') ?? content(item, 'InstanceId')
  const ofType = (...types: string[]) =>
    items.filter((item) => types.includes(content(item, 'ResourceType')?.trim() ?? ''))
  const quantity = (type: string) => Number(content(ofType(type)[0], 'VirtualQuantity'))
  const config = (...keys: string[]) =>
    hardware.flatMap((node) => list(node, 'Config', 'ExtraConfig'))
      .find((one) => keys.includes(attribute(one, 'key') ?? ''))
  const tpm = items.some((item) => /vtpm/i.test(content(item, 'ResourceSubType') ?? ''))
  const warnings = tpm ? [NO_TPM] : []
  const place = (item: Node) => {
    const parent = items.find((one) => id(one) === content(item, 'Parent'))
    return parent && controllerOf(parent, content(item, 'AddressOnParent'))
  }
  const disks = ofType('17').flatMap((item): DiskRef[] => {
    const resource = content(item, 'HostResource') ?? ''
    const key = resource.replace(/^.*\//, '')
    const image = /\/file\//.test(resource)
      ? files.get(key)
      : images.find((node) => attribute(node, 'diskId') === key)
    if (image === undefined) throw damaged(`its disk "${resource}" is not among its files`)
    if (!attribute(image, 'fileRef') && !attribute(image, 'href')) {
      warnings.push(`The empty disk "${key}" does not come along`)
      return []
    }
    return [describe(image, place(item))]
  })
  const os = section(system, 'OperatingSystemSection')[0]
  const osType = attribute(os, 'osType') ?? content(os, 'Description') ?? 'unknown'
  const [cpus, memory] = [quantity('3'), quantity('4')]
  if (!(cpus > 0 && memory > 0)) throw damaged('it does not say how much CPU and memory it has')
  const efi = attribute(config('firmware'), 'value') === 'efi'
  const secureBoot = config('bootOptions.efiSecureBootEnabled', 'uefi.secureBoot.enabled')
  return {
    kind,
    name: content(system, 'Name') ?? attribute(system, 'id') ?? basename(file, extname(file)),
    settings: file,
    cpus,
    memory: memory * bytesPer(content(ofType('4')[0], 'AllocationUnits'), MB),
    firmware: efi ? 'efi' : 'bios',
    secureBoot: efi && isTrue(attribute(secureBoot, 'value')),
    tpm,
    osType,
    guest: guestOf(osType),
    disks,
    removable: [],
    dvds: ofType('15', '16').map((item) => {
      const controller = place(item)
      return controller ? { controller } : {}
    }),
    // where each goes is the business of VMware's host, which the OVF does not tell
    serialPorts: ofType('21').map((_, index) => ({
      port: index + 1,
      mode: 'disconnected' as const,
      server: false,
    })),
    sharedFolders: [],
    nics: ofType('10').map((item, slot) => {
      const network = content(item, 'Connection')
      // VirtualBox names the kind of a network there, VMware the network that it is bridged to
      const word = network?.toLowerCase().replace('-', '') ?? 'none'
      return {
        slot,
        mac: macOf(content(item, 'Address')),
        attachment: KINDS.find((kind) => kind === word) ?? 'bridged',
        ...(network !== undefined && { network }),
        cableConnected: isTrue(content(item, 'AutomaticAllocation') ?? 'true'),
        model: content(item, 'ResourceSubType') ?? '',
        forwards: [],
      }
    }),
    snapshots: [],
    warnings,
  }
}

const KINDS = ['nat', 'hostonly', 'internal', 'natnetwork', 'none'] as const

/** Of OVF 1.0 and 2.0, or of 0.9, where every section is a `Section` and the VM is `Content`. */
function section(parent: Node | undefined, name: string): Node[] {
  const old = list(parent, 'Section', 'Content')
    .filter((node) => attribute(node, 'type')?.replace(/^.*:/, '') === `${name}_Type`)
  return [...list(parent, name), ...old]
}

function controllerOf(item: Node, address = '0'): Controller {
  const subtype = content(item, 'ResourceSubType') ?? ''
  const types: Record<string, Controller['type']> = { 5: 'ide', 6: 'scsi', 20: 'sata' }
  const type = /nvme/i.test(subtype)
    ? 'nvme'
    : types[content(item, 'ResourceType') ?? ''] ?? 'other'
  // there each of IDE's channels is a controller, with two disks
  if (type === 'ide') {
    return { type, port: Number(content(item, 'Address')) || 0, device: Number(address) || 0 }
  }
  return { type, port: Number(address) || 0, device: 0 }
}

/** `byte * 2^20`, and the words in use before it; `absent` when the unit is not given. */
function bytesPer(unit: string | undefined, absent: number): number {
  const [, base, power] = unit?.match(/^\s*byte\s*\*\s*(\d+)\^(\d+)\s*$/i) ?? []
  if (base !== undefined) return Number(base) ** Number(power)
  const words = ['byte', 'kilo', 'mega', 'giga', 'tera']
  const word = words.findIndex((word) =>
    unit?.trim().toLowerCase().startsWith(word) || unit?.trim().toUpperCase() === `${word[0]}B`
  )
  return word < 0 ? absent : 1024 ** word
}

/** Disks alone say nothing of a VM: it gets what a small desktop guest needs, and no adapter. */
async function readDisks(paths: string[]): Promise<VmDescription> {
  const disks: DiskRef[] = []
  for (const path of paths) {
    disks.push({ path, ...await lookAt(path), chain: [path], encrypted: false })
  }
  const [first = ''] = paths
  return {
    kind: 'disks',
    name: basename(first, extname(first)),
    cpus: 2,
    memory: 2048 * MB,
    firmware: 'unknown',
    tpm: false,
    osType: 'unknown',
    guest: 'unknown',
    disks,
    removable: [],
    dvds: [],
    serialPorts: [],
    sharedFolders: [],
    nics: [],
    snapshots: [],
    warnings: [],
  }
}

/** An image's format by its signature, and its size where the header has it in one place. */
async function lookAt(path: string): Promise<{ format: string; capacity?: number }> {
  const image = await open(path, 'r')
  try {
    const { size } = await image.stat()
    const read = async (at: number) =>
      (await image.read(Buffer.alloc(512), 0, 512, Math.max(0, at))).buffer
    const [head, foot] = [await read(0), await read(size - 512)]
    if (head.readUInt32LE(64) === 0xbeda107f) {
      return { format: 'VDI', capacity: Number(head.readBigUInt64LE(368)) }
    }
    if (head.toString('latin1', 0, 4) === 'KDMV') {
      return { format: 'VMDK', capacity: Number(head.readBigUInt64LE(12)) * 512 }
    }
    if (/^# Disk DescriptorFile/.test(head.toString('latin1'))) return { format: 'VMDK' }
    if (head.toString('latin1', 0, 8) === 'vhdxfile') return { format: 'VHDX' }
    if (foot.toString('latin1', 0, 8) === 'conectix') {
      return { format: 'VHD', capacity: Number(foot.readBigUInt64BE(48)) }
    }
    return { format: 'RAW', capacity: size }
  } finally {
    await image.close()
  }
}

/** The guest's family, by what VirtualBox, an OVF or VMware calls it. */
export function guestOf(osType: string): VmDescription['guest'] {
  if (/^win|windows/i.test(osType)) return 'windows'
  const linux =
    /linux|ubuntu|debian|fedora|red ?hat|rhel|cent ?os|suse|sles|gentoo|mandriva|turbo|xandros|coreos|photon/i
  if (linux.test(osType)) return 'linux'
  return /^(unknown|)$/.test(osType) ? 'unknown' : 'other'
}

function macOf(text = ''): string {
  return text.replace(/[^0-9a-f]/gi, '').toUpperCase()
}

function bare(uuid: string): string {
  return uuid.replace(/[{}]/g, '').toLowerCase()
}

function isTrue(text: string | undefined): boolean {
  return /^(true|yes|on|1)$/i.test(text ?? '')
}

async function isFile(path: string): Promise<boolean> {
  return path !== '' && await fs.stat(path).then((stat) => stat.isFile(), () => false)
}

/** A path as VirtualBox wrote it, made absolute; in WSL, where one of Windows is found. */
async function local(path: string, folder: string): Promise<string> {
  if (!/^[a-z]:[\\/]/i.test(path)) return path && resolve(folder, path)
  return await fromWindows(path) ?? path
}

/** An element: its children by name in lists, its attributes under `@name`, its text under `#text`. */
interface Node {
  [name: string]: Node[] | string | undefined
}

const MAX_XML = 64 * MB

/**
 * Everything stays text, as it is: a VM may be named "007" or " ". A prefix says nothing here that
 * the name does not. Snapshots nest, two levels each, and VirtualBox takes 250 of them.
 */
const xml = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '@',
  removeNSPrefix: true,
  parseTagValue: false,
  trimValues: false,
  alwaysCreateTextNode: true,
  jPath: false,
  maxNestedTags: 1000,
  isArray: (_name, _path, _leaf, isAttribute) => !isAttribute,
  processEntities: false,
  attributeValueProcessor: (_name, text) => decode(text),
  tagValueProcessor: (_name, text) => decode(text),
})

async function readXml(file: string): Promise<Node> {
  const { size } = await fs.stat(file)
  if (size > MAX_XML) throw new Error(`Cannot read "${file}": it has ${size} bytes. Name another`)
  return parse(await fs.readFile(file), file)
}

function parse(bytes: Buffer, file: string): Node {
  const damaged = (why: string) =>
    new Error(`Cannot read "${file}": ${why}. Bring back a whole copy, or export the VM again`)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw damaged('it is not UTF-8')
  }
  // neither VirtualBox nor VMware writes one, and what it defines could grow without end
  if (/<!DOCTYPE/i.test(text)) throw damaged('it has a DOCTYPE, which no VM has')
  const valid = XMLValidator.validate(text)
  if (valid !== true) {
    throw damaged(`it is damaged in line ${valid.err.line} (${brief(valid.err.msg)})`)
  }
  try {
    return xml.parse(text) as Node
  } catch (error) {
    throw damaged(`it is damaged (${brief((error as Error).message)})`)
  }
}

/** What a file says may be all of it. */
function brief(text: string): string {
  return text.replace(/\.$/, '').slice(0, 100)
}

function decode(text: string): string {
  const named: Record<string, string> = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" }
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|(\w{2,4}));/gi, (all, dec, hex, name) => {
    const code = dec ? Number(dec) : hex ? Number.parseInt(hex, 16) : undefined
    if (code === undefined) return named[name] ?? all
    return code <= 0x10ffff ? String.fromCodePoint(code) : all
  })
}

function list(node: Node | undefined, ...names: string[]): Node[] {
  return names.flatMap((name) => {
    const found = node && Object.hasOwn(node, name) ? node[name] : undefined
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

/** An attribute that is a whole number from 0. */
function whole(file: string, node: Node | undefined, name: string, absent?: number): number {
  const text = attribute(node, name)
  if (text === undefined && absent !== undefined) return absent
  if (/^\d{1,9}$/.test(text ?? '')) return Number(text)
  throw new Error(
    `Cannot read "${file}": its ${name} is ${
      text === undefined ? 'missing' : JSON.stringify(brief(text))
    }, not a number. ` +
      'Bring back a whole copy, or export the VM again',
  )
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
