/** What there is to say of a host and its VMs, of what was read: texts whose private parts are marked. */
import type { CheckHostResult } from '../../tasks/check-host.ts'
import type { Network } from '../../tasks/show-network.ts'
import type { HostFacts } from './doctor-host.ts'
import { conceal, cut, hide, type Private } from './doctor-private.ts'
import { count, type Plan, size } from './plan.ts'

export interface Finding {
  /** Stable, for programs: `hyper-v`, `vm-1`, ... */
  id: string
  /** What it is about. `hypervisor`: who owns the processor's virtualization. */
  group: 'host' | 'hypervisor' | 'network' | 'vms'
  /** `problem`: a migration would not go through. `note`: worth knowing. */
  level: 'ok' | 'note' | 'problem'
  /** What is so, in one sentence. */
  title: string
  /** What says so: values that were read, and where. */
  evidence: string
  /** What follows from it. */
  meaning: string
  /** What mends it or shows more. */
  command: string
}

export type Group = Finding['group']

/** What was read of a host; null where it could not be asked at all, for the reason in `silence`. */
export interface Examined {
  facts: HostFacts | null
  check: CheckHostResult | null
  network: Network | null
  silence: string
  /** The host's folder for disks that was asked for, where it is not the host's own. */
  storage: string | undefined
  /** VirtualBox or the files are on this machine, and the host is another one. */
  remote: boolean
  /** Null: there is no VirtualBox on this machine. A text: why it could not be asked. */
  vms: ExaminedVm[] | null | string
  /** VMs were named, so all of them are to go through. */
  named: boolean
}

export interface ExaminedVm {
  name: string
  /** As it was named. */
  source: string
  /** VirtualBox's word, such as `running`. */
  state: string | undefined
  /** Null where not even a plan can be made. */
  plan: Plan | null
  refusals: string[]
}

/** Whether VirtualBox is there, and is slow because of who owns the processor's virtualization. */
export function crawls({ facts, vms, remote }: Examined): boolean {
  const there = Boolean(facts?.virtualBox) || (!remote && Array.isArray(vms))
  return facts?.hypervisor === true && there
}

/** @param known the names that must not leave this machine */
export function findings(examined: Examined, known: readonly Private[]): Finding[] {
  return [
    ...ofHost(examined, known),
    ...ofHypervisor(examined),
    ...ofNetwork(examined, known),
    ...ofVms(examined, known),
  ]
}

/**
 * One of the kit's errors: what is so, why, and the command that mends it; `shows` where it names none.
 */
function ofError(
  text: string,
  known: readonly Private[],
  shows: string,
): Pick<Finding, 'title' | 'meaning' | 'command'> {
  const [words, run] = cut(conceal(text.trim(), known), /(?:[.,;] )?(?:\bor )?\b[Rr]un: /)
  const [title, why] = cut(words, /: /)
  // a command is for copying: what is to be done beside it is said before
  const [command, after] = cut(run.replace(/\.$/, ''), /, (?=then |and |or )| (?=to see )/)
  const isCommand = COMMAND.test(command)
  const also = isCommand
    ? after && `With the command: ${after.replace(/^to /, '')}`
    : run && `Run: ${run}`
  const meaning = [why, also].filter(Boolean).map((part) => `${capital(part).replace(/\.$/, '')}.`)
  return { title, meaning: meaning.join(' '), command: isCommand ? command : shows }
}

/** What a shell takes, where an error names it; some say in words what to do. */
const COMMAND =
  /^([A-Z][a-z]+-[A-Z]\w+|npx|VBoxManage|bcdedit|bcdboot|shutdown|fsutil|chkdsk|manage-bde|ssh|sudo|powercfg)\b/

function ofHost(
  { facts, check, network, silence, storage, remote }: Examined,
  known: readonly Private[],
): Finding[] {
  const group = 'host'
  // what ssh says names machines that are known to nobody here
  const said = remote ? hide('Message', silence) : conceal(silence, known)
  if (facts === null) {
    return [{
      id: 'host',
      group,
      level: 'problem',
      title: 'The host could not be asked',
      evidence: said,
      meaning:
        'Whether Hyper-V would take a VM is not known, because only PowerShell on that Windows can tell. ' +
        'What is on this machine was looked at all the same. Run this on the Windows in question, name it ' +
        'by --host, or carry a VM there as a bundle.',
      command: 'npx zx recipes/doctor.ts --host ssh://user@host',
    }]
  }
  const found: Finding[] = []
  if (check === null) {
    found.push({
      id: 'check',
      group,
      level: 'problem',
      title: 'What stands in the way of a VM could not be asked',
      evidence: said,
      meaning: 'The answer of tasks/check-host.ts is missing, so nothing is promised.',
      command: CHECK,
    })
  } else {
    const { edition, version, client, elevated, processors, memory, freeSpace, diskFolder } =
      check.host
    found.push({
      id: 'windows',
      group,
      level: client === null ? 'note' : 'ok',
      title: client === null
        ? 'This is not known to be Windows'
        : `Windows ${
          client ? (Number(version.split('.')[2]) >= 22000 ? '11' : '10') : 'Server'
        }, ${edition}`,
      evidence: `version ${version}${edition ? `, EditionID ${edition}` : ''}`,
      meaning: edition?.startsWith('Core')
        ? 'Windows Home has no Hyper-V; Pro, Enterprise, Education and Server do.'
        : client === null
        ? 'Hyper-V is Windows’ own: a PowerShell elsewhere can only be asked about this machine’s files.'
        : 'This edition has Hyper-V.',
      command: 'systeminfo',
    })
    if (elevated !== null) {
      found.push({
        id: 'rights',
        group,
        level: elevated ? 'ok' : 'note',
        title: `PowerShell runs ${elevated ? 'with' : 'without'} administrator rights`,
        evidence: `the process’s token ${elevated ? 'has' : 'does not have'} S-1-5-32-544 enabled`,
        meaning: elevated
          ? 'Everything below could be asked.'
          : 'Some of what follows could not be asked. A migration asks for the rights itself with --elevate.',
        command: elevated ? 'whoami /groups' : 'Start-Process powershell -Verb RunAs',
      })
    }
    if (check.hyperV) {
      found.push({
        id: 'hyper-v',
        group,
        level: 'ok',
        title: 'Hyper-V is on and answers',
        evidence: `Get-VMHost: ${processors ?? '?'} logical processors, ${size(memory ?? 0)}`,
        meaning: 'It can take VMs.',
        command: 'Get-VMHost',
      })
    }
    if (freeSpace !== null) {
      const path = storage ?? diskFolder
      const folder = path ? ` of ${hide('Path', path)}` : ''
      const plenty = freeSpace >= 20 * GB
      found.push({
        id: 'space',
        group,
        level: plenty ? 'ok' : 'note',
        title: `${size(freeSpace)} are free for disks`,
        evidence: `the volume${folder}${facts.fileSystem ? `, ${facts.fileSystem}` : ''}`,
        meaning: plenty
          ? 'Each VM below says what it needs.'
          : 'That is little for disks, which grow. Another folder is named by --storage.',
        command: 'Get-Volume',
      })
    }
    check.refusals.forEach((refusal, index) =>
      found.push({
        id: `refusal-${index + 1}`,
        group,
        level: 'problem',
        ...ofError(refusal, known, CHECK),
        evidence: 'tasks/check-host.ts refuses',
      })
    )
    check.notes.forEach((note, index) =>
      found.push({
        id: `note-${index + 1}`,
        group,
        level: 'note',
        title: conceal(note, known),
        evidence: 'tasks/check-host.ts notes it',
        meaning: 'It is no obstacle.',
        command: CHECK,
      })
    )
  }
  if (facts.memory) {
    const { free, total } = facts.memory
    found.push({
      id: 'memory',
      group,
      level: free < 2 * GB ? 'note' : 'ok',
      title: `${size(free)} of ${size(total)} of memory are free`,
      evidence: 'Win32_OperatingSystem',
      meaning: free < 2 * GB
        ? 'A VM that starts takes all of its memory at once, unless it has dynamic memory; close something first.'
        : 'A VM that starts takes all of its memory at once, unless it has dynamic memory.',
      command: 'Get-CimInstance Win32_OperatingSystem',
    })
  }
  for (const { part, id, message } of facts.failures) {
    found.push({
      id: `unknown-${part.toLowerCase()}`,
      group,
      level: 'note',
      title: `${PARTS[part] ?? part} could not be asked`,
      evidence: `${hide('Message', message)}${id ? ` (${conceal(id, known)})` : ''}`,
      meaning: 'Administrator rights may be needed for it; the rest was asked all the same.',
      command: 'Start-Process powershell -Verb RunAs',
    })
  }
  if (check?.hyperV && network === null) {
    found.push({
      id: 'unknown-network',
      group,
      level: 'note',
      title: 'The networks of Hyper-V could not be asked',
      evidence: said,
      meaning: 'Conflicts between networks are not known.',
      command: 'npx zx tasks/show-network.ts',
    })
  }
  return found
}

/** Who owns the processor's virtualization, which one program has at a time. */
function ofHypervisor(examined: Examined): Finding[] {
  const { facts, check } = examined
  const group = 'hypervisor'
  if (facts === null) return []
  const found: Finding[] = []
  const { hypervisor, launchType, virtualization, virtualBox, vmware, deviceGuard } = facts
  const slow = crawls(examined)
  if (hypervisor === true) {
    found.push({
      id: 'hypervisor',
      group,
      level: 'ok',
      title: 'A hypervisor runs below Windows and owns VT-x (AMD-V)',
      evidence: 'Win32_ComputerSystem.HypervisorPresent is True (it is so inside a VM, too)',
      meaning:
        'Windows itself runs on top of it, as does every VM of Hyper-V at full speed. Programs that bring ' +
        'a hypervisor of their own, such as VirtualBox and VMware, have to ask it for everything.',
      command: 'systeminfo',
    })
  } else if (hypervisor === false) {
    found.push({
      id: 'hypervisor',
      group,
      level: check?.hyperV ? 'problem' : 'note',
      title: 'No hypervisor runs below Windows: VirtualBox has VT-x (AMD-V) to itself',
      evidence: 'Win32_ComputerSystem.HypervisorPresent is False',
      meaning: check?.hyperV
        ? 'Hyper-V is installed and cannot start a VM, because its hypervisor was not started with Windows.'
        : 'VirtualBox is at full speed now, and that ends when Hyper-V, WSL 2 or Docker Desktop is turned on.',
      command: check?.hyperV
        ? 'bcdedit /set hypervisorlaunchtype auto'
        : 'npx zx tasks/enable-hyperv.ts --dry-run',
    })
  }
  if (hypervisor === null) {
    found.push({
      id: 'hypervisor',
      group,
      level: 'note',
      title: 'Whether a hypervisor runs below Windows is not known',
      evidence: 'Win32_ComputerSystem.HypervisorPresent is not there',
      meaning: 'Some computers do not say it, and no other system than Windows does.',
      command: 'systeminfo',
    })
  }
  if (virtualization === false) {
    found.push({
      id: 'firmware',
      group,
      level: 'problem',
      title: 'Virtualization is off in this computer’s firmware',
      evidence: 'Win32_Processor.VirtualizationFirmwareEnabled is False, and no hypervisor runs',
      meaning: 'No hypervisor can start, whoever’s it is. Turn on Intel VT-x or AMD SVM there.',
      command: 'shutdown /r /fw /t 0',
    })
  } else if (virtualization === true) {
    found.push({
      id: 'firmware',
      group,
      level: 'ok',
      title: 'Virtualization is on in this computer’s firmware',
      evidence: 'Win32_Processor.VirtualizationFirmwareEnabled is True',
      meaning: 'A hypervisor can start.',
      command: 'Get-CimInstance Win32_Processor',
    })
  }
  if (launchType) {
    const off = launchType.toLowerCase() === 'off'
    found.push({
      id: 'launch-type',
      group,
      level: off ? 'note' : 'ok',
      title: `Windows ${off ? 'does not start' : 'starts'} its hypervisor when it boots`,
      evidence: `bcdedit: hypervisorlaunchtype ${WORD.test(launchType) ? launchType : '?'}`,
      meaning: off
        ? 'Somebody turned it off, as is done for VirtualBox’s sake: WSL 2, Docker and Hyper-V do not work so.'
        : 'Turning it off and restarting gives VT-x back to VirtualBox, and takes it from WSL 2, Docker and ' +
          'Hyper-V. Protection by virtualization (below) starts it all the same.',
      command: off
        ? 'bcdedit /set hypervisorlaunchtype auto'
        : 'bcdedit /set hypervisorlaunchtype off',
    })
  }
  const on = facts.features ?? []
  for (const [feature, { title, meaning }] of Object.entries(FEATURES)) {
    if (!on.includes(feature)) continue
    found.push({
      id: `feature-${feature.toLowerCase()}`,
      group,
      level: 'note',
      title,
      evidence: `the optional feature ${feature} is on`,
      meaning,
      command: 'Get-CimInstance Win32_OptionalFeature | Where-Object InstallState -eq 1',
    })
  }
  const others = on.filter((name) => name.startsWith('Microsoft-Hyper-V') && !(name in FEATURES))
  if (others.length > 0 && !on.includes('Microsoft-Hyper-V')) {
    found.push({
      id: 'feature-hyper-v-parts',
      group,
      level: 'note',
      title: 'Parts of Hyper-V are on, and Hyper-V as a whole is not',
      evidence: `on: ${others.join(', ')}`,
      meaning: on.includes('Microsoft-Hyper-V-Hypervisor')
        ? 'The hypervisor among them takes VT-x from VirtualBox, and runs no VMs of yours.'
        : 'They are for managing other hosts, and take nothing from VirtualBox.',
      command: 'npx zx tasks/enable-hyperv.ts --dry-run',
    })
  }
  if (deviceGuard) {
    const { status, services } = deviceGuard
    if (status > 0) {
      found.push({
        id: 'vbs',
        group,
        level: 'note',
        title: `Virtualization-based security ${status === 2 ? 'runs' : 'is set and does not run'}`,
        evidence: `Win32_DeviceGuard.VirtualizationBasedSecurityStatus is ${status}`,
        meaning: status === 2
          ? 'Windows keeps secrets of its kernel behind the hypervisor, so the hypervisor runs even where ' +
            'Hyper-V and WSL 2 are off. It is a protection that one does not give up for a VM: the VM moves.'
          : 'It may start with the next restart, and the hypervisor with it.',
        command: 'msinfo32',
      })
    }
    for (const service of services) {
      const known = SERVICES[service]
      found.push({
        id: known?.id ?? `security-service-${service}`,
        group,
        level: 'note',
        title: `${known?.name ?? `Security service ${service}`} runs`,
        evidence: `Win32_DeviceGuard.SecurityServicesRunning has ${service}`,
        meaning: known?.meaning ?? 'It needs the hypervisor, and keeps it running.',
        command: 'msinfo32',
      })
    }
  }
  if (virtualBox) {
    const old = Number.parseInt(virtualBox) < 6
    found.push({
      id: 'virtualbox',
      group,
      level: slow ? 'note' : 'ok',
      title: slow
        ? `VirtualBox ${
          old ? 'starts no VM with 64 bits' : 'crawls'
        } here, because the hypervisor owns VT-x`
        : `VirtualBox ${version(virtualBox)} is installed`,
      evidence: `version ${version(virtualBox)} in the registry` +
        (slow ? ', and a hypervisor runs' : ''),
      meaning: !slow
        ? 'VirtualBox runs as its own hypervisor.'
        : old
        ? 'Before version 6.0 VirtualBox cannot run beside another hypervisor.'
        : 'It runs its VMs through the Windows Hypervisor Platform, one call for what was one instruction: ' +
          'that is the turtle in a VM’s status bar, and nested VT-x is greyed out. On Hyper-V the same VM is ' +
          'at full speed.',
      command: slow ? 'npx zx recipes/migrate.ts --dry-run' : 'VBoxManage --version',
    })
  }
  if (vmware) {
    found.push({
      id: 'vmware',
      group,
      level: 'note',
      title: hypervisor
        ? 'VMware Workstation is hit in the same way'
        : 'VMware Workstation is installed',
      evidence: `version ${version(vmware)} in the registry`,
      meaning: hypervisor
        ? 'From 15.5.5 on it runs its VMs through the Windows Hypervisor Platform, slower and without nested ' +
          'virtualization; before that it refuses to start them.'
        : 'It has VT-x in turns with VirtualBox, as long as no hypervisor runs below Windows.',
      command: 'npx zx recipes/doctor.ts --picture',
    })
  }
  return found
}

function ofNetwork({ facts, network }: Examined, known: readonly Private[]): Finding[] {
  const group = 'network'
  const found: Finding[] = []
  const adapters = facts?.adapters ?? []
  const real = adapters.filter((adapter) => adapter.real)
  real.forEach(({ name, description, status, wifi, addresses }, index) => {
    const up = status === 'Up'
    found.push({
      id: `adapter-${index + 1}`,
      group,
      level: wifi ? 'note' : 'ok',
      title: `"${hide('Adapter', name)}" is ${wifi ? 'Wi-Fi' : 'wired'}${
        up ? '' : ', not connected'
      }`,
      evidence: `${hide('Name', description)}, ${/^\w+( \w+)?$/.test(status) ? status : '?'}${
        addresses.map((address) => `, ${hide('Address', address)}`).join('')
      }`,
      meaning: wifi
        ? 'Access points take frames from one MAC address only, so an external switch on it bridges and ' +
          'translates, and some networks refuse the VM an address of its own. An internal switch with NAT ' +
          'works on every Wi-Fi.'
        : 'An external switch can be on it: the host then goes on as vEthernet, and loses its connection ' +
          'for a moment.',
      command: wifi
        ? 'npx zx recipes/migrate.ts NAME --internal NAT --host-ip auto --nat --dry-run'
        : 'npx zx recipes/migrate.ts NAME --external LAN --adapter auto --dry-run',
    })
  })
  if (facts?.adapters && real.length === 0) {
    found.push({
      id: 'adapters',
      group,
      level: 'note',
      title: 'No network adapter is of hardware',
      evidence: `Get-NetAdapter: ${count(adapters.length, 'adapter')}`,
      meaning: 'An external switch has nothing to be on; an internal one with NAT needs none.',
      command: 'Get-NetAdapter',
    })
  }
  for (const { name, description, addresses } of adapters) {
    if (!/virtualbox/i.test(description) || addresses.length === 0) continue
    found.push({
      id: 'host-only',
      group,
      level: 'note',
      title: 'VirtualBox’s host-only network is there',
      evidence: `"${hide('Adapter', name)}" has ${
        addresses.map((one) => hide('Address', one)).join(', ')
      }`,
      meaning:
        'An internal switch cannot have a network that overlaps it. Let a free one be chosen, or remove it in ' +
        'VirtualBox when nothing uses it any more.',
      command: 'npx zx recipes/migrate.ts NAME --internal NAT --host-ip auto --dry-run',
    })
  }
  if (network === null) return found
  const switches = network.switches.map(({ name, type, isDefault }) =>
    isDefault ? 'the Default Switch' : `"${hide('Switch', name)}" (${type})`
  )
  found.push({
    id: 'switches',
    group,
    level: 'ok',
    title: `Hyper-V has ${switches.length} ${switches.length === 1 ? 'switch' : 'switches'}`,
    evidence: switches.join(', ') || 'Get-VMSwitch: none',
    meaning:
      'A migration makes the ones that are asked for, and takes those that are there as they are.',
    command: 'npx zx tasks/show-network.ts',
  })
  for (const { name, prefix } of network.nats) {
    found.push({
      id: 'nat',
      group,
      level: 'note',
      title: 'A NAT is there already',
      evidence: `"${hide('NAT', name)}" for ${hide('Address', prefix)}`,
      meaning:
        'A host has one NAT: another network gets none, so use an address in its network, or --no-nat.',
      command: 'Get-NetNat',
    })
  }
  network.conflicts.forEach(({ text }, index) =>
    found.push({
      id: `conflict-${index + 1}`,
      group,
      level: 'note',
      ...ofError(text, known, 'npx zx tasks/show-network.ts'),
      evidence: 'tasks/show-network.ts marks it',
    })
  )
  return found
}

function ofVms({ vms, named, check, remote }: Examined, known: readonly Private[]): Finding[] {
  const group = 'vms'
  if (vms === null) {
    return [{
      id: 'vms',
      group,
      level: 'note',
      title: 'There is no VirtualBox on this machine',
      evidence: 'VBoxManage is not found',
      meaning: 'VMs come from files all the same: .vbox, .ova, .ovf, or disk images.',
      command: 'npx zx recipes/doctor.ts FILE',
    }]
  }
  if (typeof vms === 'string') {
    return [{
      id: 'vms',
      group,
      level: 'note',
      ...ofError(vms, known, 'VBoxManage list vms'),
      evidence: 'VBoxManage list vms',
    }]
  }
  if (vms.length === 0) {
    return [{
      id: 'vms',
      group,
      level: 'note',
      title: 'VirtualBox has no VM',
      evidence: 'VBoxManage list vms',
      meaning: 'There is nothing to move, but what a file has: .vbox, .ova, .ovf, or disk images.',
      command: 'npx zx recipes/doctor.ts FILE',
    }]
  }
  const said = new Set(check?.refusals)
  // of several that nobody named, one that can go is enough
  const obstacle = named || vms.every(({ refusals }) => refusals.length > 0) ? 'problem' : 'note'
  return vms.flatMap(({ name, source, state, plan, refusals }, index) => {
    const id = `vm-${index + 1}`
    const vm = `"${hide('VM', name)}"`
    const rehearse = `npx zx recipes/migrate.ts --dry-run ${
      argument(source, source === name ? 'VM' : 'Path')
    }`
    const own = refusals.filter((refusal) => !said.has(refusal))
    refusals.forEach((refusal) => said.add(refusal))
    const found: Finding[] = own.map((refusal, number) => ({
      id: `${id}-refusal-${number + 1}`,
      group,
      level: obstacle,
      ...ofError(refusal, known, rehearse),
      evidence: `recipes/migrate.ts refuses${
        state ? `; VirtualBox says ${WORD.test(state) ? state : '?'}` : ''
      }`,
    }))
    if (plan === null) return found
    const { disks, cpus, memory } = plan.source
    const data = disks.reduce((sum, { allocatedSize }) => sum + allocatedSize, 0)
    const free = check?.host.freeSpace ?? null
    const where = remote ? 'the host' : 'its place'
    found.unshift({
      id,
      group,
      level: refusals.length > 0 ? 'note' : 'ok',
      title: refusals.length > 0
        ? `${vm} cannot be moved yet`
        : `${vm} can be moved${check?.hyperV ? '' : ', as far as this machine can tell'}`,
      evidence: `generation ${plan.vm.generation}, because ${plan.vm.why}; ${count(cpus, 'CPU')}, ${
        size(memory)
      }, ${count(disks.length, 'disk')} with ${size(data)} of data${
        state ? `; VirtualBox says ${WORD.test(state) ? state : '?'}` : ''
      }`,
      meaning: refusals.length > 0 && own.length === 0
        ? 'What keeps it has been said above.'
        : free === null
        ? `It needs ${size(data)} of space, and what is free in ${where} is not known.`
        : `It needs ${size(data)} of the ${size(free)} that are free.`,
      command: rehearse,
    })
    return found
  })
}

/** A word that says nothing of anybody, as VirtualBox's states are. */
const WORD = /^[A-Za-z]{3,20}$/

/** A version, and nothing else that somebody wrote there. */
function version(text: string): string {
  return /^\d[\d.]{0,20}([_r]\w{0,10})?$/.test(text) ? text : hide('Message', text)
}

/** A name or a file as one argument of PowerShell or a shell, private in reports. */
function argument(source: string, kind: 'VM' | 'Path'): string {
  const lead = source.startsWith('-') ? '-- ' : ''
  const marked = hide(kind, source.replace(/['\u2018-\u201b]/g, '$&$&'))
  if (/^[\w.-]+$/.test(source)) return `${lead}${marked}`
  return /^[\p{L}\p{N} ._:\\/()-]+$/u.test(source)
    ? `${lead}"${hide(kind, source)}"`
    : `${lead}'${marked}'`
}

const GB = 1024 ** 3

const CHECK = 'npx zx tasks/check-host.ts'

/** Optional features that bring the hypervisor, each with what is to be known of it. */
const FEATURES: Record<string, { title: string; meaning: string }> = {
  'Microsoft-Hyper-V': {
    title: 'Hyper-V is turned on',
    meaning:
      'It starts its hypervisor with Windows and keeps VT-x, also while none of its VMs runs.',
  },
  VirtualMachinePlatform: {
    title: 'The platform of WSL 2 is turned on (Virtual Machine Platform)',
    meaning:
      'WSL 2 and Docker Desktop run in a VM of Hyper-V’s hypervisor: it is started with Windows, also when ' +
      'Hyper-V is off. WSL 1 does without.',
  },
  HypervisorPlatform: {
    title: 'The Windows Hypervisor Platform is turned on',
    meaning:
      'It lets other programs (VirtualBox from 6.0, VMware from 15.5.5, QEMU, Android’s emulator) run VMs ' +
      'on top of Hyper-V’s hypervisor: slowly, and better than not at all.',
  },
  'Containers-DisposableClientVM': {
    title: 'Windows Sandbox is turned on',
    meaning: 'Each sandbox is a VM of Hyper-V’s hypervisor, which is started with Windows for it.',
  },
}

/** Win32_DeviceGuard.SecurityServicesRunning, as Microsoft numbers them. */
const SERVICES: Record<number, { id: string; name: string; meaning: string }> = {
  1: {
    id: 'credential-guard',
    name: 'Credential Guard',
    meaning:
      'It keeps passwords’ secrets in a part of memory that only the hypervisor separates, and is on by default ' +
      'in Enterprise from Windows 11 22H2: the hypervisor stays, whatever becomes of Hyper-V.',
  },
  2: {
    id: 'memory-integrity',
    name: 'Memory integrity (HVCI)',
    meaning:
      'The hypervisor sees to it that the kernel runs signed code alone; new computers have it on. VirtualBox ' +
      'stays slow as long as it is on, and it is worth keeping.',
  },
  3: {
    id: 'secure-launch',
    name: 'System Guard Secure Launch',
    meaning: 'It measures the start of the hypervisor, which therefore runs.',
  },
  4: {
    id: 'smm-measurement',
    name: 'SMM firmware measurement',
    meaning: 'It watches the firmware from the hypervisor, which therefore runs.',
  },
  5: {
    id: 'stack-protection',
    name: 'Kernel-mode hardware-enforced stack protection',
    meaning: 'It rests on memory integrity, and so on the hypervisor.',
  },
}

const PARTS: Partial<Record<keyof HostFacts, string>> = {
  hypervisor: 'Whether a hypervisor runs',
  launchType: 'The boot configuration (bcdedit)',
  virtualization: 'The processor’s virtualization',
  features: 'Windows’ optional features',
  deviceGuard: 'Protection by virtualization (Win32_DeviceGuard)',
  memory: 'The memory that is free',
  fileSystem: 'The file system of the folder for disks',
  virtualBox: 'Whether VirtualBox is installed',
  vmware: 'Whether VMware is installed',
  adapters: 'The network adapters',
}

function capital(text: string): string {
  // a private part has a mark before it
  return text.replace(/^\p{Ll}/u, (letter) => letter.toUpperCase())
}
