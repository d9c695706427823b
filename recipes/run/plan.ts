/** The plan of a migration: what it will do, as data, made before anything changes. */
import filenamify from 'filenamify'
import { createHash } from 'node:crypto'
import { basename, join } from 'node:path'
import type { CheckHostResult } from '../../tasks/check-host.ts'
import type { DiskDescription } from '../../tasks/convert-disk.ts'
import type { GuardOptions } from '../../tasks/guard.ts'
import type { Forward, VmDescription } from '../../tasks/inspect-vm.ts'
import { canPrepare, checkGuest, guestOn } from './guest.ts'
import { farFolder, joinHost } from './host.ts'
import type { SourceFile } from './source.ts'
import type { Call, StepResult } from './steps.ts'

export type { StepResult }

/** What a person asked for beside the source. Whatever is left out comes from the source. */
export interface Wishes extends GuardOptions {
  /** The VM's name on Hyper-V. */
  name?: string | undefined
  cpus?: number | undefined
  /** Bytes. */
  memory?: number | undefined
  generation?: 'auto' | 1 | 2 | undefined
  format?: 'vhdx' | 'vhd' | undefined
  /** The host's folder for the disks. @default the host's own for virtual hard disks; a bundle's `disks` */
  storage?: string | undefined
  /** The external switch, made on `adapter` when it is not there. */
  external?: string | undefined
  adapter?: string | undefined
  /** Whether the host goes on using the adapter of the external switch. @default true */
  share?: boolean | undefined
  internal?: string | undefined
  /** The host's address on the internal switch, as address/prefix length, or `auto` for a free one. */
  hostIp?: string | undefined
  nat?: boolean | undefined
  /** The address the guest is to have on the internal switch. */
  guestIp?: string | undefined
  /** Whether to fix the address that the guest has on the internal switch, else on the external one. */
  pin?: boolean | undefined
  /** How the guest gets it, as set-guest-ip takes it. @default auto */
  via?: 'auto' | 'direct' | 'kvp' | 'print' | undefined
  nested?: boolean | undefined
  start?: boolean | undefined
  /** Whether Hyper-V is turned on first where it is off. @default false */
  enableHyperv?: boolean | undefined
}

/** Where the VM goes: this machine's Hyper-V, another machine's over SSH, or a folder to carry to one. */
export type Target =
  | { kind: 'local'; /** The host's folder for the disks. */ folder: string; host: CheckHostResult }
  | {
    kind: 'ssh'
    /** `ssh://[user@]host[:port]` */
    url: string
    folder: string
    host: CheckHostResult
    /** The folder here for disks that are on their way. */
    stage: string
  }
  | { kind: 'bundle'; dir: string }

/** A step of a plan. `call` is what it does, the rest is for people and for the order. */
export type Step = Call & {
  id: string
  /** What it does, as a command. */
  title: string
  /** How it is taken back; empty for a step that changes nothing. */
  undo: string
  /** Steps that make what this one works on: in a dry run it cannot be asked before they are done. */
  needs: string[]
  /** Where it runs: `here` writes files, `host` runs a script on the Hyper-V host. */
  where: 'here' | 'host'
  /** Why there is nothing to do. */
  already?: string
  /** What it is thought to take; nothing for one that looks, or writes no file. */
  estimate: Estimate
}

/** Seconds, and bytes on the disk of where it runs: roughly, for a person who has to wait. */
export interface Estimate {
  seconds: number
  space: number
}

/** What a plan was made of, so that it can be made once more and compared. */
export interface Origin {
  /** A VM of VirtualBox by its name, or absolute paths. */
  source: string[]
  /** As `--to` takes it. */
  to: string
  /** The folder of the journals. Disks for another machine are made below it. */
  state: string
  /** What was asked for beside those. Memory is in bytes. */
  wishes: Wishes
  /** The files of the source as they were before anything was done. */
  files: SourceFile[]
  /** What the host said of each step when the plan was made, by the step's id. */
  found?: Record<string, Foreseen>
}

/**
 * What a dry run says of a step: it would change something, it is so already, or that cannot be told before
 * an earlier step is done.
 */
export type Foreseen = 'would' | 'same' | 'unknown'

export interface Plan {
  version: 1
  /** Equal for two plans that would make the same thing in the same place. */
  key: string
  /** The VM's name, fit for a file name. */
  slug: string
  name: string
  source: {
    kind: VmDescription['kind']
    name: string
    /** As the source calls it, e.g. `Windows10_64`. */
    osType: string
    cpus: number
    /** Bytes. */
    memory: number
    firmware: VmDescription['firmware']
    disks: {
      path: string
      member?: string
      format: string
      /** Bytes, as is `allocatedSize`. */
      virtualSize: number
      allocatedSize: number
      /** When the file was last written, ISO 8601: what was made of an older state is another plan's. */
      modified: string
    }[]
    nics: { mac: string; attachment: string }[]
  }
  target: { kind: 'local' } | { kind: 'ssh'; url: string; stage: string } | {
    kind: 'bundle'
    dir: string
  }
  vm: { generation: 1 | 2; why: string; cpus: number; memory: number }
  steps: Step[]
  /** What is worth knowing and no obstacle. */
  notes: string[]
  /** Plans of older kits lack it. */
  origin?: Origin
}

/** A plan's target as `--to` takes it. */
export function targetOf({ target }: Plan): string {
  if (target.kind === 'local') return 'local'
  return target.kind === 'ssh' ? target.url : `bundle:${target.dir}`
}

/** Of some options those that say what the VM is to be. */
export function wishesOf(options: Wishes): Wishes {
  return pick(options, ...Object.keys(WISHES) as (keyof Wishes)[])
}

const WISHES: Record<keyof Wishes, true> = {
  name: true,
  cpus: true,
  memory: true,
  generation: true,
  format: true,
  storage: true,
  external: true,
  adapter: true,
  share: true,
  guard: true,
  revertAfter: true,
  probe: true,
  internal: true,
  hostIp: true,
  nat: true,
  guestIp: true,
  pin: true,
  via: true,
  nested: true,
  start: true,
  enableHyperv: true,
}

/** What `inspectDisk` says of each disk of the VM, in the VM's order, and when its file was last written. */
export type Disks = (DiskDescription & { modified: string })[]

/**
 * Makes the plan, and says all that forbids it. A plan with refusals is for showing, not for running.
 */
export function makePlan(
  vm: VmDescription,
  disks: Disks,
  wishes: Wishes,
  target: Target,
): { plan: Plan; refusals: string[] } {
  const refusals: string[] = []
  const notes = [...vm.warnings]
  const name = wishes.name ?? vm.name
  const slug = fileName(name)
  const cpus = wishes.cpus ?? vm.cpus
  // Hyper-V takes whole multiples of 2 MB (assumption: New-VM refuses others); Linux can only be given
  // more while it runs by blocks of 128 MB (learn.microsoft.com, Supported Ubuntu virtual machines, note 8)
  const block = wishes.memory === undefined && guestOn(vm, disks) === 'linux' ? 128 * MB : 2 * MB
  const memory = Math.max(32 * MB, Math.ceil((wishes.memory ?? vm.memory) / block) * block)
  const { generation, why, refusal } = chooseGeneration(vm, disks, wishes)
  if (refusal) refusals.push(refusal)
  const format = wishes.format ?? 'vhdx'
  if (format === 'vhd' && generation === 2) {
    refusals.push(
      'Cannot use VHD for a VM of generation 2: Hyper-V boots it from VHDX only. Run again without --format vhd',
    )
  }
  refusals.push(...refuseSource(vm, disks), ...refuseWishes(wishes))

  const local = target.kind !== 'bundle'
  if (!local && wishes.enableHyperv) {
    refusals.push(
      'Cannot turn Hyper-V on where a bundle goes: its host is not known here. Run again without ' +
        '--enable-hyperv, and on that host: npx zx tasks/enable-hyperv.ts',
    )
  }
  const steps: Step[] = []
  const add = (step: Unestimated<Step>) => {
    const disk = disks[Number(step.id.match(/-disk-(\d+)$/)?.[1]) - 1]
    steps.push({ ...step, estimate: estimate(step.task, disk) })
    return step.id
  }
  const files = disks.map((_, index) => `${slug}${index ? `-${index + 1}` : ''}.${format}`)
  const folder = local ? target.folder : 'disks'
  const source = describeSource(vm, disks)
  // its own folder for each state of the source, so that what is found there is of this one
  const stage = target.kind === 'ssh'
    ? join(target.stage, hash([source, target.url, folder]).slice(0, 12))
    : undefined
  const converted = files.map((file) => stage ? join(stage, file) : joinHost(folder, file))
  const storage = target.kind === 'ssh' ? folder : local ? undefined : wishes.storage
  const places = storage ? files.map((file) => joinHost(farFolder(storage), file)) : converted
  const adapters = chooseAdapters(vm, wishes, target)
  const guest = checkGuest(
    vm,
    disks,
    generation,
    wishes,
    disks.some((disk) => canPrepare(disk, target)),
  )
  const ports = chooseForwards(vm, wishes)
  refusals.push(...guest.refusals)
  notes.push(...adapters.notes, ...ports.notes, ...guest.notes)

  add({
    id: 'check-host',
    task: 'check-host',
    where: 'host',
    needs: [],
    title: 'Check the host: rights, names, switches, space',
    undo: '',
    options: {
      vm: name,
      cpus,
      memory,
      disk: places,
      mac: adapters.wanted.flatMap(({ mac }) => mac ?? []),
      ...pick(wishes, 'external', 'adapter', 'share', 'internal', 'nested'),
      // a free address is looked for when it is set
      ...(wishes.hostIp !== 'auto' && pick(wishes, 'hostIp', 'nat')),
      ...(local && { storage: folder, space: spaceFor(disks) }),
    },
  })
  if (local && wishes.enableHyperv) {
    add({
      id: FEATURES,
      task: 'enable-hyperv',
      where: 'host',
      needs: [],
      title: 'Turn Hyper-V on',
      undo: 'turn off what this turned on, if --features says so and no VM is left',
      already: 'it is on',
      options: {},
    })
  }
  const made = disks.map((disk, index) => {
    const { path, member } = vm.disks[index] as VmDescription['disks'][number]
    const id = add({
      id: `convert-disk-${index + 1}`,
      task: 'convert-disk',
      where: 'here',
      needs: [],
      title: `Convert "${member ?? basename(path)}" (${disk.format.toUpperCase()}, ${
        size(disk.virtualSize)
      }) to "${converted[index]}"`,
      undo: `remove "${converted[index]}"`,
      options: {
        from: path,
        to: converted[index] as string,
        format,
        ...(member !== undefined && { disk: member }),
      },
    })
    if (target.kind === 'ssh') {
      return add({
        id: `send-disk-${index + 1}`,
        task: 'send-disk',
        where: 'here',
        needs: [],
        title: `Send the disk to "${places[index]}"`,
        undo: `remove "${places[index]}"`,
        options: { from: converted[index] as string, to: places[index] as string },
      })
    }
    if (places[index] === converted[index]) return id
    return add({
      id: `place-disk-${index + 1}`,
      task: 'place-disk',
      where: 'host',
      needs: [],
      title: `Copy the disk to "${places[index]}"`,
      undo: `remove "${places[index]}"`,
      options: { from: converted[index] as string, to: places[index] as string },
    })
  })
  const prepared = disks.flatMap((each, index) => {
    if (!canPrepare(each, target)) return []
    const disk = places[index] as string
    return add({
      id: `prepare-guest-${index + 1}`,
      task: 'prepare-guest',
      where: 'host',
      needs: made,
      title: `Prepare Windows on "${disk}": boot drivers, Fast Startup off`,
      undo: 'put its registry back',
      options: { disk, vm: name },
    })
  })
  const switches: string[] = []
  if (wishes.external !== undefined) {
    const { share = true } = wishes
    switches.push(add({
      id: 'create-external-switch',
      task: 'create-switch',
      where: 'host',
      needs: [],
      title: `Make the external switch "${wishes.external}"${
        wishes.adapter === undefined ? '' : ` on "${wishes.adapter}"`
      }, ${share ? '' : 'not '}shared with the host`,
      undo: `remove the switch "${wishes.external}" if this made it, else put it back as it was`,
      options: {
        switch: wishes.external,
        type: 'external',
        ...pick(wishes, 'adapter', 'share', 'guard', 'revertAfter', 'probe'),
      },
    }))
  }
  if (wishes.internal !== undefined) {
    const made = add({
      id: 'create-internal-switch',
      task: 'create-switch',
      where: 'host',
      needs: [],
      title: `Make the internal switch "${wishes.internal}"`,
      undo: `remove the switch "${wishes.internal}" if this made it`,
      options: { switch: wishes.internal, type: 'internal' },
    })
    switches.push(made)
    if (wishes.hostIp !== undefined) {
      const address = wishes.hostIp === 'auto' ? 'a free address' : wishes.hostIp
      add({
        id: 'set-static-ip',
        task: 'set-static-ip',
        where: 'host',
        needs: [made],
        title: `Give the host ${address} on "${wishes.internal}"${wishes.nat ? ', with NAT' : ''}`,
        undo: `remove ${address}${wishes.nat ? ' and its NAT' : ''} if this made it`,
        options: { switch: wishes.internal, hostIp: wishes.hostIp, ...pick(wishes, 'nat') },
      })
      ports.wanted.forEach(({ name, ...options }, index) => {
        const { port, protocol, guestIp, guestPort } = options
        add({
          id: `forward-port-${index + 1}`,
          task: 'forward-port',
          where: 'host',
          needs: ['set-static-ip'],
          title:
            `Forward port ${port} (${protocol}) of the host to ${guestIp}:${guestPort}, "${name}"`,
          undo: `remove that forward if this made it`,
          options,
        })
      })
    }
  }
  const secureBoot = chooseSecureBoot(vm, disks, generation)
  const vmMade = add({
    id: 'create-vm',
    task: 'create-vm',
    where: 'host',
    needs: [...made, ...prepared],
    title: `Make the VM "${name}": generation ${generation}, ${count(cpus, 'CPU')}, ${
      size(memory)
    }, Secure Boot ${secureBoot}`,
    undo: `remove the VM "${name}"; its disks stay`,
    options: {
      vm: name,
      disk: places,
      generation,
      cpus,
      memory,
      ...(generation === 2 && { secureBoot }),
    },
  })
  const hardware = chooseHardware(vm, slug, generation, wishes)
  notes.push(...hardware.notes)
  if (hardware.parts.length > 0) {
    add({
      id: 'set-hardware',
      task: 'set-hardware',
      where: 'host',
      needs: [vmMade],
      title: `Carry over ${list(hardware.parts)}`,
      undo: 'put back what the VM had',
      options: { vm: name, ...hardware.options },
    })
  }
  adapters.wanted.forEach((adapter, index) => {
    add({
      id: `attach-adapter-${index + 1}`,
      task: 'attach-adapter',
      where: 'host',
      needs: [vmMade, ...switches],
      title: `Attach adapter "${adapter.name}"${
        adapter.switch === undefined ? ', not connected' : ` to "${adapter.switch}"`
      }${adapter.mac ? `, MAC ${dashed(adapter.mac)}` : ''}${
        adapter.macSpoofing ? ', MAC spoofing for VMs in it' : ''
      }`,
      undo: `remove the adapter "${adapter.name}"`,
      options: { vm: name, ...adapter },
    })
  })
  if (wishes.nested) {
    add({
      id: 'enable-nested',
      task: 'enable-nested',
      where: 'host',
      needs: [vmMade],
      title: 'Expose the processor’s virtualization extensions to the VM',
      undo: 'hide the virtualization extensions again',
      options: { vm: name },
    })
  }
  if (wishes.start ?? true) {
    add({
      id: 'start-vm',
      task: 'start-vm',
      where: 'host',
      needs: steps.filter(({ where }) => where === 'host').map(({ id }) => id),
      title: `Start the VM and wait for its heartbeat`,
      undo: 'shut the guest down',
      options: { vm: name },
    })
  }
  const { guestIp, pin } = wishes
  const network = wishes.internal ?? wishes.external
  if ((guestIp !== undefined || pin) && network !== undefined) {
    const options = {
      vm: name,
      switch: network,
      name: network,
      ...pick(wishes, 'guestIp', 'pin', 'via'),
    }
    if (wishes.start ?? true) {
      add({
        id: 'set-guest-ip',
        task: 'set-guest-ip',
        where: 'host',
        needs: steps.filter(({ where }) => where === 'host').map(({ id }) => id),
        title: pin
          ? `Fix the guest’s address on "${network}"`
          : `Give the guest ${guestIp} on "${network}"`,
        undo: `give the guest back what it had on "${network}"`,
        options,
      })
    } else {
      notes.push(
        `The guest gets its address when it runs: npx zx tasks/set-guest-ip.ts --vm NAME ` +
          `--switch NAME ${pin ? '--pin' : `--guest-ip ${guestIp}`}`,
      )
    }
  }
  if (vm.kind === 'virtualbox' || vm.kind === 'vbox') {
    notes.push(
      'The VM in VirtualBox stays as it is. Do not run both on one network: they have the same MAC addresses.',
    )
  }
  const plan: Omit<Plan, 'key'> = {
    version: 1,
    slug,
    name,
    source,
    target: target.kind === 'local'
      ? { kind: 'local' }
      : target.kind === 'ssh'
      ? { kind: 'ssh', url: target.url, stage: stage as string }
      : target,
    vm: { generation, why, cpus, memory },
    steps,
    notes,
  }
  const known = steps.map(({ estimate: _, ...step }) => step)
  return { plan: { ...plan, key: hash([plan.source, plan.target, known]) }, refusals }
}

/** The id of the step that turns a feature of Windows on. */
export const FEATURES = 'enable-hyperv'

/**
 * Of a plan what comes before all else on a host where Hyper-V is off. The rest is planned when it is on:
 * only then the host has switches, and a folder for disks.
 */
export function featuresOf(plan: Plan): Plan {
  const steps = plan.steps.filter(({ id }) => id === FEATURES).map((step) => {
    const { already: _, ...left } = step
    return left as Step
  })
  const note =
    'Hyper-V is off on the host, so it is turned on first. The rest of the plan is made when it is on.'
  const known = steps.map(({ estimate: _, ...step }) => step)
  return { ...plan, key: hash([plan.source, plan.target, known]), steps, notes: [note] }
}

/** Whether a plan does no more than turn Hyper-V on. */
export function isFeatures({ steps }: Pick<Plan, 'steps'>): boolean {
  return steps.length > 0 && steps.every(({ id }) => id === FEATURES)
}

type Unestimated<T> = T extends unknown ? Omit<T, 'estimate'> : never

/** Bytes a second that a disk or a network of no special kind carries, and seconds that other steps take. */
const RATE = { 'convert-disk': 150e6, 'place-disk': 150e6, 'send-disk': 50e6 }
const SECONDS: Partial<Record<Step['task'], number>> = {
  'enable-hyperv': 120,
  'create-switch': 15, // a network adapter is taken over
  'prepare-guest': 15,
  'start-vm': 60,
  'set-guest-ip': 20,
}

function estimate(task: Step['task'], disk: Disks[number] | undefined): Estimate {
  if (disk === undefined || !(task in RATE)) return { seconds: SECONDS[task] ?? 3, space: 0 }
  const space = spaceFor([disk])
  return { seconds: Math.ceil(space / RATE[task as keyof typeof RATE]) + 1, space }
}

function describeSource(vm: VmDescription, disks: Disks): Plan['source'] {
  return {
    ...pick(vm, 'kind', 'name', 'osType', 'cpus', 'memory', 'firmware'),
    disks: disks.map(({ format, virtualSize, allocatedSize, modified }, index) => {
      const { path, member } = vm.disks[index] as VmDescription['disks'][number]
      return {
        path,
        ...(member !== undefined && { member }),
        format,
        virtualSize,
        allocatedSize,
        modified,
      }
    }),
    nics: vm.nics.map(({ mac, attachment }) => ({ mac, attachment })),
  }
}

function hash(data: unknown): string {
  return createHash('sha256').update(JSON.stringify(data)).digest('hex')
}

/** A size for people, in the binary units that VirtualBox, Hyper-V and Windows count in. */
export function size(bytes: number): string {
  const units = ['bytes', 'KB', 'MB', 'GB', 'TB']
  const unit = bytes < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10))
  const value = bytes / 1024 ** unit
  return `${value >= 100 ? Math.round(value) : Number(value.toFixed(1))} ${units[unit]}`
}

/** "1 CPU", "2 CPUs". */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`
}

const MB = 1024 ** 2

/** A VM's name as a file name that Windows, Linux and a person typing it in a shell can take. */
function fileName(name: string): string {
  const typable = name.normalize('NFC').replace(/[^\p{L}\p{M}\p{N} ._-]+/gu, '_').replace(
    /^[-.]+/,
    '',
  )
  return filenamify(typable, { replacement: '_', maxLength: 80 }).trim() || 'vm'
}

/**
 * The generation whose firmware can boot the first disk. The disk is believed before the settings:
 * what is on it boots or does not, whatever the VM was set to.
 */
function chooseGeneration(
  vm: VmDescription,
  disks: Disks,
  { generation = 'auto' }: Wishes,
): { generation: 1 | 2; why: string; refusal?: string } {
  const boots = disks[0]?.boots ?? 'none'
  const fits = { bios: [1], uefi: [2], both: [1, 2], none: [1, 2] }[boots]
  const shows = {
    bios: 'its disk boots by BIOS',
    uefi: 'its disk boots by UEFI',
    both: 'its disk boots by BIOS and UEFI',
    none: 'its disk shows no boot loader',
  }[boots]
  if (generation !== 'auto') {
    if (fits.includes(generation)) return { generation, why: 'as asked' }
    return {
      generation,
      why: 'as asked',
      refusal:
        `Cannot make "${vm.name}" a VM of generation ${generation}: ${shows}, and generation ${generation} is ` +
        `${generation === 1 ? 'BIOS' : 'UEFI'} only. Run again without --generation`,
    }
  }
  const firmware = { bios: 1 as const, efi: 2 as const, unknown: undefined }[vm.firmware]
  const set = vm.firmware === 'efi' ? 'EFI' : 'BIOS'
  if (fits.length === 1) {
    const fit = fits[0] as 1 | 2
    if (firmware === undefined || firmware === fit) return { generation: fit, why: shows }
    return { generation: fit, why: `${shows}, though its settings say ${set}` }
  }
  if (firmware !== undefined) {
    return { generation: firmware, why: `its firmware is ${set} and ${shows}` }
  }
  if (boots === 'both') return { generation: 2, why: shows }
  return {
    generation: 1,
    why: 'unknown',
    refusal:
      `Cannot tell the generation of "${vm.name}": ${shows}, and the source has no firmware setting. ` +
      'Run again with --generation 1 (BIOS) or --generation 2 (UEFI)',
  }
}

/** Why a VM cannot be moved as long as VirtualBox has it in this state. */
export function refuseState({ name, state }: VmDescription): string | undefined {
  const named = `"${name}"`
  if (state === undefined || ['poweroff', 'aborted'].includes(state)) return undefined
  if (state === 'saved') {
    return `Cannot move ${named}: its state is saved, and its disks lack what its memory holds. ` +
      `Run: start it, shut the guest down, then run again (or VBoxManage discardstate ${named})`
  }
  const how = `VBoxManage controlvm ${named} acpipowerbutton`
  const orPrepare = state === 'running'
    ? ', or again with --prepare guestcontrol --guest-user NAME'
    : ''
  return `Cannot move ${named}: it is ${state}, and its disks are in use. Run: ${how}${orPrepare}`
}

function refuseSource(vm: VmDescription, disks: Disks): string[] {
  const refusals = [refuseState(vm) ?? []].flat()
  vm.disks.forEach(({ path, encrypted }) => {
    if (!encrypted) return
    refusals.push(
      `Cannot read "${path}": VirtualBox encrypted it. ` +
        `Run: VBoxManage encryptmedium "${path}" --oldpassword -`,
    )
  })
  if (disks.length === 0) {
    refusals.push(
      `Cannot move "${vm.name}": it has no hard disk. Run: npx zx tasks/inspect-vm.ts to see what it has`,
    )
  }
  return refusals
}

/** What of the wishes fits together for no VM. */
export function refuseWishes(wishes: Wishes): string[] {
  const { external, adapter, share, guard, revertAfter, probe } = wishes
  const { internal, hostIp, nat, guestIp, pin, via } = wishes
  const refusals: string[] = []
  const alone = (option: string, needed: string) =>
    refusals.push(
      `Cannot use ${option} alone: it says how to make what ${needed} names. Add ${needed}`,
    )
  if (external === undefined && adapter !== undefined) alone('--adapter', '--external')
  if (external === undefined && share !== undefined) alone('--share', '--external')
  if (external === undefined && guard !== undefined) alone('--guard', '--external')
  if (external === undefined && revertAfter !== undefined) alone('--revert-after', '--external')
  if (external === undefined && probe !== undefined) alone('--probe', '--external')
  if (internal === undefined && hostIp !== undefined) alone('--host-ip', '--internal')
  if (hostIp === undefined && nat !== undefined) alone('--nat', '--host-ip')
  if (hostIp === undefined && guestIp !== undefined) alone('--guest-ip', '--host-ip')
  if (internal === undefined && external === undefined && pin) alone('--pin', '--internal')
  if (guestIp === undefined && !pin && via !== undefined) alone('--via', '--guest-ip')
  if (guestIp !== undefined && pin) {
    refusals.push(
      'Cannot fix the guest’s address and give it another. Run again with --pin or --guest-ip alone',
    )
  }
  if (guestIp !== undefined && hostIp === 'auto') {
    refusals.push(
      `Cannot give the guest ${guestIp}: the network is chosen when the host’s address is. ` +
        'Run again with the host’s address: --host-ip 192.168.56.1/24',
    )
  }
  if (external !== undefined && external.toLowerCase() === internal?.toLowerCase()) {
    refusals.push(
      `Cannot make two switches named "${external}". Give --external and --internal two names`,
    )
  }
  const host = hostIp === undefined ? undefined : parseAddress(hostIp)
  if (hostIp !== undefined && hostIp !== 'auto' && host?.prefix === undefined) {
    refusals.push(
      `Cannot use "${hostIp}" as the host's address: it is not address/prefix length. Example: 192.168.56.1/24`,
    )
  }
  if (guestIp !== undefined && host?.prefix !== undefined) {
    const guest = parseAddress(guestIp)
    const net = (address: number) => Math.floor(address / 2 ** (32 - (host.prefix ?? 0)))
    if (guest === undefined || guest.prefix !== undefined) {
      refusals.push(`Cannot use "${guestIp}" as the guest's address. Example: 192.168.56.191`)
    } else if (net(guest.address) !== net(host.address) || guest.address === host.address) {
      refusals.push(
        `Cannot give the guest ${guestIp}: the host is ${hostIp}, and the guest needs another address of that network`,
      )
    }
  }
  return refusals
}

/** The adapters that the VM gets: one for each switch asked for, then the source's others. */
function chooseAdapters(vm: VmDescription, wishes: Wishes, target: Target) {
  const left = [...vm.nics]
  const notes: string[] = []
  const wanted: { name: string; switch?: string; mac?: string; macSpoofing?: true }[] = []
  const slots = new Map<string, number>()
  const take = (...attachments: string[]) => {
    const index = left.findIndex(({ attachment }) => attachments.includes(attachment))
    return index < 0 ? undefined : left.splice(index, 1)[0]
  }
  const give = (name: string, nic: VmDescription['nics'][number] | undefined, to?: string) => {
    // bridged VMs inside it speak with addresses of their own; WSL 2 and Docker are behind its NAT
    const spoofs = wishes.nested && to !== undefined && to === wishes.external
    wanted.push({
      name,
      ...(to !== undefined && { switch: to }),
      ...(nic && { mac: nic.mac }),
      ...(spoofs && { macSpoofing: true }),
    })
    slots.set(name, nic?.slot ?? Infinity)
  }
  if (wishes.external !== undefined) {
    give(wishes.external, take('bridged') ?? take('nat', 'natnetwork'), wishes.external)
  }
  if (wishes.internal !== undefined) {
    give(wishes.internal, take('hostonly', 'hostonlynetwork', 'internal'), wishes.internal)
  }
  // a server has no Default Switch; what a bundle's host has is seen when it is deployed
  const nat = target.kind === 'bundle' ||
    target.host.switches.some(({ id }) => id.toLowerCase() === DEFAULT_SWITCH)
  for (const nic of left) {
    const name = `Adapter ${nic.slot + 1}`
    if (nat && nic.cableConnected && ['nat', 'natnetwork'].includes(nic.attachment)) {
      give(name, nic, 'Default Switch')
      continue
    }
    give(name, nic)
    if (nic.attachment === 'bridged') {
      notes.push(
        `${name} was bridged and stays unconnected. To bridge it, run again with --external NAME --adapter NIC`,
      )
    } else if (nic.attachment !== 'none' && nic.cableConnected) {
      notes.push(`${name} (${nic.attachment} in VirtualBox) stays unconnected`)
    }
  }
  // in the order that the source has them, which is the order in which a guest finds them
  wanted.sort((one, other) => {
    const [a = Infinity, b = Infinity] = [slots.get(one.name), slots.get(other.name)]
    return a === b ? 0 : a - b
  })
  return { wanted, notes }
}

/** What the port forwards of VirtualBox's NAT become: mappings of the host's NAT, where it has the guest's address. */
function chooseForwards(vm: VmDescription, { nat, guestIp }: Wishes) {
  const wanted: {
    name: string
    port: number
    protocol: Forward['protocol']
    guestIp: string
    guestPort: number
  }[] = []
  const notes: string[] = []
  for (const { slot, forwards } of vm.nics) {
    const left: string[] = []
    for (const forward of forwards) {
      const { name, protocol, hostIp, hostPort: port, guestPort } = forward
      const inside = guestIp === undefined
        ? `its address, port ${guestPort}`
        : `${guestIp}:${guestPort}`
      if (/^127\.|^::1$/.test(hostIp)) {
        notes.push(
          `The port forward "${name}" (${protocol} ${hostIp}:${port}) was for the host alone, which ` +
            `reaches the guest by ${inside} now`,
        )
      } else if (!nat || guestIp === undefined) {
        left.push(`"${name}" (${protocol} ${hostIp || '*'}:${port} to port ${guestPort})`)
      } else if (!wanted.some((other) => other.port === port && other.protocol === protocol)) {
        wanted.push({ name, port, protocol, guestIp, guestPort })
        const all = hostIp === ''
          ? ''
          : ` It was for ${hostIp}, and is for all addresses of the host now.`
        notes.push(
          `Port ${port} of the host leads others to the guest; the host itself reaches it by ${inside}.${all}`,
        )
      }
    }
    if (left.length > 0) {
      notes.push(
        `Port forwards of adapter ${slot + 1} do not come along: ${
          left.join(', ')
        }. To have them, run ` +
          'again with --internal NAME --host-ip 192.168.56.1/24 --nat --guest-ip 192.168.56.191',
      )
    }
  }
  return { wanted, notes }
}

/** The Default Switch of Windows clients, whose name is localized and whose id is not. */
const DEFAULT_SWITCH = 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444'

/** What else the guest knows its computer by. Of four serial ports Hyper-V has two. */
function chooseHardware(
  { hardwareUuid: uuid, tpm, serialPorts, dvds, clock, autostart, guest }: VmDescription,
  slug: string,
  generation: 1 | 2,
  { nested }: Wishes,
) {
  const ports = serialPorts.filter(({ port }) => port <= 2)
  const serial = Array.from(
    { length: Math.max(0, ...ports.map(({ port }) => port)) },
    (_, index) => {
      const port = ports.find(({ port }) => port === index + 1)
      if (!port) return ''
      return port.path?.startsWith('\\\\.\\pipe\\')
        ? port.path
        : `\\\\.\\pipe\\${slug}-com${port.port}`
    },
  )
  // generation 1 has a drive; images in them are named in a note
  const dvd = generation === 2 ? dvds.map(() => '') : []
  const withTpm = tpm && generation === 2
  // a VM with VMs inside cannot be saved
  const save = autostart?.stop === 'save'
  const stopAction = autostart === undefined || autostart.stop === 'nothing'
    ? undefined
    : save && nested
    ? 'shut-down' as const
    : autostart.stop
  const notes: string[] = []
  // Hyper-V has no setting for what the hardware clock shows (assumption: the host's local time)
  if (clock !== undefined && !clock.follows) {
    notes.push(
      'In VirtualBox its clock did not follow the host’s, so on Hyper-V it does not either. It starts with ' +
        'the host’s local time there, and goes on by itself',
    )
  } else if (clock?.rtc === 'utc' && guest === 'windows') {
    notes.push(
      'Windows in it takes its hardware clock for UTC, and on Hyper-V that shows the host’s local time: ' +
        'its clock is off for as long as Windows takes to start, then time synchronization sets it',
    )
  }
  return {
    notes,
    options: {
      ...(uuid !== undefined && { uuid }),
      ...(withTpm && { tpm }),
      ...(serial.length > 0 && { serial }),
      ...(dvd.length > 0 && { dvd }),
      // on by itself in a new VM, and looked at again in the end
      ...(clock !== undefined && { timeSync: clock.follows }),
      ...(autostart && { startAction: 'start' as const, startDelay: autostart.delay }),
      ...(stopAction !== undefined && { stopAction }),
    },
    parts: [
      ...(uuid === undefined ? [] : ['the BIOS UUID']),
      ...(withTpm ? ['a TPM, empty'] : []),
      ...ports.map(({ port }) => `COM${port} as ${serial[port - 1]}`),
      ...(dvd.length > 0 ? [count(dvd.length, 'DVD drive')] : []),
      ...(clock?.follows === false ? ['a clock of its own'] : []),
      ...(autostart === undefined ? [] : ['its start with the host']),
    ],
  }
}

function list(parts: string[]): string {
  return parts.length < 2 ? parts.join() : `${parts.slice(0, -1).join(', ')} and ${parts.at(-1)}`
}

function chooseSecureBoot(
  vm: VmDescription,
  disks: Disks,
  generation: 1 | 2,
): 'off' | 'windows' | 'linux' {
  if (generation === 1 || !vm.secureBoot) return 'off'
  const guest = guestOn(vm, disks)
  return guest === 'windows' || guest === 'linux' ? guest : 'off'
}

/** Bytes that the converted disks take at most: a block that holds any data is written whole. */
function spaceFor(disks: Disks): number {
  return disks.reduce(
    (sum, disk) => sum + Math.min(disk.virtualSize, Math.ceil(disk.allocatedSize * 1.1)) + 64 * MB,
    0,
  )
}

function parseAddress(text: string): { address: number; prefix: number | undefined } | undefined {
  const [, address, prefix] = text.match(/^((?:\d{1,3}\.){3}\d{1,3})(?:\/(\d{1,2}))?$/) ?? []
  const bytes = address?.split('.').map(Number)
  if (!bytes || bytes.some((byte) => byte > 255) || Number(prefix ?? 0) > 32) return undefined
  return {
    address: bytes.reduce((sum, byte) => sum * 256 + byte, 0),
    prefix: prefix === undefined ? undefined : Number(prefix),
  }
}

function dashed(mac: string): string {
  return mac.replace(/(..)(?=.)/g, '$1-')
}

function pick<T extends object, K extends keyof T>(from: T, ...keys: K[]): Pick<T, K> {
  const entries = keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]])
  return Object.fromEntries(entries) as Pick<T, K>
}
