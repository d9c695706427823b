import { deepEqual, equal, match } from 'node:assert/strict'
import { suite } from 'uvu'
import { checkGuest, guestOn } from '../../../recipes/run/guest.ts'
import type { Disks, Wishes } from '../../../recipes/run/plan.ts'
import type { Volume } from '../../../tasks/convert-disk/contents.ts'
import type { VmDescription } from '../../../tasks/inspect-vm.ts'

const guests = suite('checkGuest')

const ESP = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'

function check(
  volumes: Partial<Volume>[],
  {
    guest = 'unknown',
    generation = 2 as 1 | 2,
    wishes = {} as Wishes,
    controller = 'ide',
    firmware = 'unknown',
    boots = 'both',
    chain = ['/vm/x.vdi'],
    bootEntries = [] as { name: string; path: string }[],
  } = {},
) {
  const disks = [{ controller: { type: controller }, chain }]
  const vm = { name: 'web', guest, firmware, bootEntries, disks }
  const disk = {
    boots,
    partitions: volumes.map((_, index) => ({ offset: index, length: 1, type: index ? 'x' : ESP })),
    volumes: volumes.map((volume, index) => ({
      holds: 'unknown',
      length: 1,
      offset: index,
      ...volume,
    })),
  }
  const given = [vm as unknown as VmDescription, [disk] as unknown as Disks] as const
  return { guest: guestOn(...given), ...checkGuest(...given, generation, wishes) }
}

const boots: Partial<Volume> = { holds: 'fat', loaders: ['EFI/Boot/bootx64.efi'] }

guests('pain 10: lists the images that a disk is made of', () => {
  deepEqual(
    check([boots], { chain: ['/vm/Snapshots/{b}.vdi', '/vm/Snapshots/{a}.vdi', '/vm/x.vdi'] })
      .notes,
    [
      '"{b}.vdi" is a disk’s current state, and is read with what it builds on: "{a}.vdi", "x.vdi"',
    ],
  )
  deepEqual(check([boots]).notes, [])
  deepEqual(check([boots], { chain: [] }).notes, [])
})

guests('pain 11: refuses Windows that is to go on from its memory on disk', () => {
  const { refusals } = check([boots, { holds: 'ntfs', windows: true, hibernated: true }])
  equal(refusals.length, 1)
  match(
    String(refusals[0]),
    /^Cannot move "web": Windows in it is hibernated, or .+ powercfg \/h off; shutdown \/s \/t 0$/,
  )
})

guests('pain 5: refuses UEFI without the loader that a new VM starts, but not who insists', () => {
  const esp = { holds: 'fat' as const, loaders: ['EFI/ubuntu/shimx64.efi'] }
  const linux = check([esp, { holds: 'ext' }])
  equal(linux.refusals.length, 1)
  match(
    String(linux.refusals[0]),
    /^Cannot start "web" by UEFI: .+ has "EFI\/ubuntu\/shimx64\.efi"\. Run in it: sudo grub-install .+--generation 2/,
  )
  const bootEntries = [{ name: 'ubuntu', path: '\\EFI\\ubuntu\\shimx64.efi' }]
  match(
    String(check([esp, { holds: 'ext' }], { bootEntries }).refusals[0]),
    /shimx64\.efi" \(VirtualBox starts \\EFI\\ubuntu\\shimx64\.efi there, .+ as "ubuntu"\)\. Run in it/,
  )
  const windows = check([{ ...esp, loaders: [] }, { holds: 'ntfs', windows: true }])
  match(
    String(windows.refusals[0]),
    /has no loader at all\. Run in it, elevated: bcdboot C:\\Windows \/f UEFI\. Or/,
  )
  const insists = check([esp], { wishes: { generation: 2 } })
  deepEqual(insists.refusals, [])
  match(insists.notes.join(), /^Cannot start "web" by UEFI/)
  // a partition that cannot be read is no proof, and BIOS looks elsewhere
  deepEqual(check([{ holds: 'fat', damaged: true }]).refusals, [])
  deepEqual(check([esp], { generation: 1 }).refusals, [])
  deepEqual(check([boots]).refusals, [])
})

guests('pain 11: refuses Linux that is to go on from its memory on disk', () => {
  const { refusals } = check([boots, { holds: 'ext' }, { holds: 'swap', hibernated: true }])
  equal(refusals.length, 1)
  match(
    String(refusals[0]),
    /^Cannot move "web": Linux in it is hibernated, .+ sudo systemctl poweroff$/,
  )
  deepEqual(check([boots, { holds: 'swap', hibernated: false }]).refusals, [])
})

guests('pain 3: explains settings and disk that disagree on the firmware', () => {
  const disagree = (firmware: string, found: string, generation: 1 | 2) =>
    check([boots], { firmware, boots: found, generation }).notes
      .filter((note) => note.startsWith('Its settings'))
  deepEqual(disagree('bios', 'uefi', 2), [
    'Its settings say BIOS, and its first disk has what UEFI starts and nothing else. It becomes a VM of ' +
    'generation 2, as its disk needs; with its settings it would not start in VirtualBox either',
  ])
  deepEqual(disagree('efi', 'bios', 2), [
    'Its settings say UEFI, and its first disk has what BIOS starts and nothing else. ' +
    'As generation 2 it will not find anything to start there',
  ])
  for (const [firmware, found] of [['efi', 'uefi'], ['efi', 'both'], ['unknown', 'uefi']]) {
    deepEqual(disagree(firmware as string, found as string, 2), [])
  }
})

guests('says that a dynamic disk of Windows is not looked into', () => {
  match(check([boots, { holds: 'ldm' }]).notes.join(), /a dynamic disk of Windows/)
  equal(check([boots, { holds: 'lvm' }]).notes.join().includes('dynamic'), false)
})

guests('pain 12: says what an encrypted volume will ask for', () => {
  const { refusals, notes } = check([boots, { holds: 'bitlocker' }, { holds: 'luks' }])
  deepEqual(refusals, [])
  match(
    String(notes[0]),
    /^The volume at byte 1 is encrypted by BitLocker.+ Suspend-BitLocker -MountPoint C: -RebootCount 0$/,
  )
  match(String(notes[1]), /^The volume at byte 2 is encrypted by LUKS: have a passphrase/)
})

guests('says which volume was not closed properly, and which cannot be read', () => {
  const { notes } = check([boots, { holds: 'ntfs', label: 'Data', dirty: true }, {
    holds: 'ntfs',
    damaged: true,
  }])
  match(String(notes[0]), /^The volume "Data" was not closed properly/)
  match(
    String(notes[1]),
    /^The volume at byte 2 says that it is NTFS, and what is in it cannot be read$/,
  )
})

guests('knows the guest by its disk, before what its settings say', () => {
  equal(check([{ holds: 'ntfs', windows: true }], { guest: 'linux' }).guest, 'windows')
  equal(check([{ holds: 'ntfs' }], { guest: 'linux' }).guest, 'linux')
  equal(check([{ holds: 'lvm' }]).guest, 'linux')
  equal(check([{ holds: 'fat' }]).guest, 'unknown')
  // what cannot be looked into, and what starts it
  equal(check([boots, { holds: 'bitlocker' }]).guest, 'windows')
  const loaders = (...loaders: string[]) => check([{ holds: 'fat', loaders }]).guest
  equal(loaders('EFI/Boot/bootx64.efi', 'EFI/Microsoft/Boot/bootmgfw.efi'), 'windows')
  equal(loaders('EFI/BOOT/BOOTX64.EFI', 'EFI/debian/shimx64.efi'), 'linux')
  equal(loaders('EFI/BOOT/BOOTX64.EFI'), 'unknown')
})

guests('pain 1, 2: says what the guest needs for its new hardware', () => {
  const sata = { generation: 1 as const, controller: 'sata' }
  match(
    check([{ holds: 'ntfs', windows: true }], sata).notes.join(),
    /booted from SATA .+ 0x7B .+prepare-guest\.ts --vm NAME --user Administrator/,
  )
  match(
    check([{ holds: 'ntfs', windows: true }], sata).notes.join(),
    /prepare-guest\.ts --disk FILE$/,
  )
  deepEqual(check([{ holds: 'ntfs', windows: true }], { generation: 1 }).notes, [])
  match(
    check([{ holds: 'ext' }], { generation: 1 }).notes.join(),
    /hv_vmbus and hv_storvsc in its initramfs.+prepare-guest\.ts --vm NAME --user root/,
  )
})

guests.run()
