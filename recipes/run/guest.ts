/** What the guest on the disks needs to start as a VM of Hyper-V. */
import { basename } from 'node:path'
import type { Volume } from '../../tasks/convert-disk/contents.ts'
import type { VmDescription } from '../../tasks/inspect-vm.ts'
import type { Disks, Target, Wishes } from './plan.ts'

/** The guest's family. The disks are believed before the settings, which may have been chosen by chance. */
export function guestOn(vm: VmDescription, disks: Disks): VmDescription['guest'] {
  const volumes = disks.flatMap((disk) => disk.volumes)
  if (volumes.some(({ windows }) => windows)) return 'windows'
  if (vm.guest !== 'unknown') return vm.guest
  const some = (...kinds: Volume['holds'][]) => volumes.some(({ holds }) => kinds.includes(holds))
  if (some('ext', 'xfs', 'btrfs', 'lvm', 'luks', 'md', 'swap')) return 'linux'
  // Windows' own, which cannot be looked into
  if (some('bitlocker', 'ldm', 'refs')) return 'windows'
  const found = loaders(disks) ?? []
  if (found.some((path) => /^EFI\/Microsoft\/Boot\/bootmgfw\.efi$/i.test(path))) return 'windows'
  return found.some((path) => /\/(shim|grub)\w*\.efi$/i.test(path)) ? 'linux' : 'unknown'
}

/** What would keep the guest from starting, and what its user will meet. */
export function checkGuest(
  vm: VmDescription,
  disks: Disks,
  generation: 1 | 2,
  wishes: Wishes,
  prepares = false,
): { refusals: string[]; notes: string[] } {
  const refusals: string[] = []
  const notes: string[] = []
  const volumes = disks.flatMap((disk) => disk.volumes)
  for (const { chain: [leaf = '', ...below] } of vm.disks) {
    if (below.length === 0) continue
    notes.push(
      `"${basename(leaf)}" is a disk’s current state, and is read with what it builds on: ${
        below.map((path) => `"${basename(path)}"`).join(', ')
      }`,
    )
  }
  if (volumes.some(({ hibernated, holds }) => hibernated && holds === 'swap')) {
    refusals.push(
      `Cannot move "${vm.name}": Linux in it is hibernated, and would go on from a memory that its new ` +
        'hardware does not fit. Start it in VirtualBox, and run in it: sudo systemctl poweroff',
    )
  }
  if (volumes.some(({ hibernated, holds }) => hibernated && holds !== 'swap')) {
    refusals.push(
      `Cannot move "${vm.name}": Windows in it is hibernated, or was shut down by Fast Startup, and would ` +
        'go on from a memory that its new hardware does not fit. Start it in VirtualBox, and run in it, ' +
        'elevated: powercfg /h off; shutdown /s /t 0',
    )
  }
  for (const { holds, label, offset, dirty, damaged } of volumes) {
    const volume = `the volume ${label ? `"${label}"` : `at byte ${offset}`}`
    if (dirty) {
      const who = holds === 'ntfs' ? 'Windows' : 'Linux'
      notes.push(`${capital(volume)} was not closed properly, so ${who} checks it when it starts`)
    }
    if (damaged) {
      notes.push(
        `${
          capital(volume)
        } says that it is ${holds.toUpperCase()}, and what is in it cannot be read`,
      )
    }
    if (holds === 'bitlocker') {
      notes.push(
        `${
          capital(volume)
        } is encrypted by BitLocker, and the new VM’s TPM does not have its key. Have the ` +
          'recovery key at hand (manage-bde -protectors -get C:), or run in the guest before, elevated: ' +
          'Suspend-BitLocker -MountPoint C: -RebootCount 0',
      )
    }
    if (holds === 'luks') {
      notes.push(
        `${
          capital(volume)
        } is encrypted by LUKS: have a passphrase for the VM’s console, because ` +
          'what a TPM unlocks does not come along',
      )
    }
  }
  if (volumes.some(({ holds }) => holds === 'ldm')) {
    notes.push(
      'There is a dynamic disk of Windows in it, which is not looked into: whether it can start is not ' +
        'known before it is tried. All disks of its volumes have to move together',
    )
  }
  const firmware = { bios: 1, efi: 2, unknown: undefined }[vm.firmware]
  const boots = disks[0]?.boots
  const only = boots === 'bios' ? 1 : boots === 'uefi' ? 2 : undefined
  if (firmware !== undefined && only !== undefined && firmware !== only) {
    const words = { 1: 'BIOS', 2: 'UEFI' } as const
    notes.push(
      `Its settings say ${words[firmware as 1 | 2]}, and its first disk has what ${
        words[only]
      } starts and nothing else. ` +
        (only === generation
          ? `It becomes a VM of generation ${generation}, as its disk needs; with its settings it would not start in VirtualBox either`
          : `As generation ${generation} it will not find anything to start there`),
    )
  }
  const boot = generation === 2 ? loaders(disks) : undefined
  if (boot && !boot.some((path) => path.toLowerCase() === FALLBACK.toLowerCase())) {
    const has = boot.length > 0 ? boot.map((path) => `"${path}"`).join(', ') : 'no loader at all'
    const mend = guestOn(vm, disks) === 'windows'
      ? 'Run in it, elevated: bcdboot C:\\Windows /f UEFI'
      : 'Run in it: sudo grub-install --target=x86_64-efi --removable'
    const text =
      `Cannot start "${vm.name}" by UEFI: a new VM knows of no loader but ${FALLBACK}, ` +
      `and its EFI system partition has ${has}${remembers(vm)}. ${mend}`
    // who names the generation has the last word
    if (wishes.generation === 2) notes.push(text)
    else refusals.push(`${text}. Or run again with --generation 2 to move it as it is`)
  }
  return { refusals, notes: [...notes, ...prepares ? [] : driverNotes(vm, disks, generation)] }
}

/**
 * Whether a disk has a Windows that can be made ready on its converted copy. A bundle's disk has to be the
 * one that was packed; what was not closed Windows mends when it starts; and mounting takes an administrator,
 * which Hyper-V does not.
 */
export function canPrepare({ volumes }: Disks[number], target: Target): boolean {
  const windows = volumes.filter(({ windows }) => windows)
  if (windows.length === 0 || windows.some(({ dirty, hibernated }) => dirty || hibernated)) {
    return false
  }
  return target.kind !== 'bundle' && target.host.host.elevated !== false
}

function remembers({ bootEntries: [first] = [] }: VmDescription): string {
  if (first === undefined) return ''
  return ` (VirtualBox starts ${first.path} there, which its own firmware remembers as "${first.name}")`
}

/** What firmware starts that remembers no boot entry (UEFI specification 2.10, 3.5.1.1). */
const FALLBACK = 'EFI/BOOT/BOOTX64.EFI'

/** What is on the EFI system partition of the first disk; undefined where that is not known. */
function loaders([disk]: Disks): string[] | undefined {
  const isEsp = ({ type }: { type: string }) =>
    type === 'ef' || type === 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
  const esp = disk?.partitions.find(isEsp)
  return disk?.volumes.find(({ offset }) => offset === esp?.offset)?.loaders
}

function driverNotes(vm: VmDescription, disks: Disks, generation: 1 | 2): string[] {
  const controller = vm.disks[0]?.controller?.type
  const guest = guestOn(vm, disks)
  if (
    guest === 'windows' && generation === 1 && controller !== undefined && controller !== 'ide'
  ) {
    return [
      `Windows booted from ${controller.toUpperCase()} and will boot from IDE, where it may stop with 0x7B ` +
      '(INACCESSIBLE_BOOT_DEVICE). If that is not done yet, run while VirtualBox runs it: npx zx ' +
      'tasks/prepare-guest.ts --vm NAME --user Administrator --credential prompt; or later, on the new ' +
      'disk: npx zx tasks/prepare-guest.ts --disk FILE',
    ]
  }
  if (guest === 'linux') {
    return [
      'A Linux guest needs hv_vmbus and hv_storvsc in its initramfs, or it stops without a root device. If that is ' +
      'not done yet, run while VirtualBox runs it: npx zx tasks/prepare-guest.ts --vm NAME --user root ' +
      '--credential prompt',
    ]
  }
  return []
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
