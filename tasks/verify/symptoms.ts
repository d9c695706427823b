/** What a VM that shows no sign of life may show instead, and what mends it. docs/symptoms.md describes each. */

/** What is known of a VM that does not answer. */
export interface Known {
  /** As PowerShell takes it between quotes. */
  vm: string
  generation: 1 | 2
  guest: 'windows' | 'linux' | 'unknown'
  /** Null in generation 1, which has none. */
  secureBoot: 'Windows' | 'other' | 'off' | null
  /** Paths of its disks, the first first. */
  disks: string[]
  /** Whether the firmware starts a disk first; null where it does not say. */
  diskFirst: boolean | null
}

export interface Symptom {
  /** The section of docs/symptoms.md. */
  symptom: string
  /** What the screen shows then. */
  screen: string
  /** Why it fits this VM. */
  why: string
  /** What to try, in PowerShell on the host. */
  command: string
}

/** What fits the VM, the likeliest first. */
export function likely(known: Known): Symptom[] {
  const { vm, generation, guest, secureBoot, disks, diskFirst } = known
  const name = `'${vm}'`
  const off = `Stop-VM -Name ${name} -TurnOff`
  const disk = quoted(disks[0] ?? '')
  const windows = guest !== 'linux'
  const linux = guest !== 'windows'
  const all: (Symptom | false)[] = [
    generation === 2 && secureBoot !== 'off' && (linux || secureBoot === 'other') && {
      symptom: 'the-signed-images-hash-is-not-allowed',
      screen: 'The signed image’s hash is not allowed (DB)',
      why: `Secure Boot is on, with ${
        secureBoot === 'Windows'
          ? 'the keys for Windows alone'
          : 'keys that its loader may not have'
      }`,
      command: secureBoot === 'Windows'
        ? `${off}; Set-VMFirmware -VMName ${name} -SecureBootTemplate MicrosoftUEFICertificateAuthority`
        : `${off}; Set-VMFirmware -VMName ${name} -EnableSecureBoot Off`,
    },
    generation === 2 && diskFirst === false && {
      symptom: 'no-boot-device',
      screen: 'Start PXE over IPv4, or: No operating system was loaded',
      why: 'its firmware does not start the disk first',
      command:
        `${off}; Set-VMFirmware -VMName ${name} -FirstBootDevice (Get-VMHardDiskDrive -VMName ${name})[0]`,
    },
    windows && {
      symptom: 'stop-0x7b',
      screen: 'INACCESSIBLE_BOOT_DEVICE (0x7B)',
      why: 'Windows may not start the drivers of its new disk',
      command: `${off}; npx zx tasks/prepare-guest.ts --disk ${disk}`,
    },
    windows && {
      symptom: '0xc000000e',
      screen: '0xc000000e or 0xc0000225, A required device is not accessible',
      why: 'its boot configuration may name the disk as it was',
      command: `npx zx tasks/convert-disk.ts --from ${disk} --info`,
    },
    linux && {
      symptom: 'dracut',
      screen: 'a dracut or (initramfs) prompt, or: Unable to mount root fs',
      why: 'its initramfs may lack hv_vmbus and hv_storvsc',
      command: 'npx zx tasks/prepare-guest.ts --vm NAME --user root --credential prompt',
    },
    (diskFirst !== false) && {
      symptom: 'no-boot-device',
      screen: generation === 2
        ? 'Start PXE over IPv4, or: No operating system was loaded'
        : 'Boot failure. Reboot and select proper boot device',
      why: `the disk may boot by ${
        generation === 2 ? 'BIOS' : 'UEFI'
      }, and generation ${generation} does not`,
      command: `npx zx tasks/convert-disk.ts --from ${disk} --info`,
    },
    windows && {
      symptom: 'bitlocker',
      screen: 'BitLocker recovery: enter the recovery key',
      why: 'the key of its TPM did not come along',
      command: `vmconnect localhost ${name}`,
    },
    linux && {
      symptom: 'grub-rescue',
      screen: 'grub rescue> or grub>',
      why: 'GRUB may look for its files on the disk as it was',
      command: `vmconnect localhost ${name}`,
    },
    {
      symptom: 'it-started-and-says-nothing',
      screen: 'a login, or a desktop',
      why: linux
        ? 'it may run without integration services (Linux: hyperv-daemons)'
        : 'its integration services may be off',
      command: `Get-VMIntegrationService -VMName ${name}`,
    },
  ]
  return all.filter((one) => one !== false)
}

/** For people: what the screen may show, why, and what to try. */
export function describeLikely(all: Symptom[]): string[] {
  return all.map(({ screen, why, command, symptom }) =>
    ` - ${screen}\n   ${why} (docs/symptoms.md#${symptom})\n   ${command}`
  )
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`
}
