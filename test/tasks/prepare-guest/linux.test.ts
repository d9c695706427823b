/** The script for Linux guests, in real root file systems with the real initramfs-tools and dracut. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { type GuestRoot, guestRoot, HYPER_V, programs } from '../../guest-root.ts'
import { needs } from '../../needs.ts'

const execute = promisify(execFile)
const SCRIPT = join(import.meta.dirname as string, '..', '..', '..', 'tasks/prepare-guest/linux.sh')
const NEW = '6.10.0-1-amd64'
const OLD = '6.9.0-1-amd64'

interface Answer {
  guest: string
  changed: boolean
  steps: { step: string; state: string; detail: string }[]
  before: { what: string; was: string | null }[]
}

const linux = suite<{ root?: GuestRoot }>('the script for Linux guests')
const test = needs(linux, ...programs)

linux.after.each(async (context) => {
  await context.root?.close()
  delete context.root
})

async function tell(
  root: GuestRoot,
  { mode = 'prepare', dry = 0, keep = 0, detached = 0, down = 0, enhanced = 0 } = {},
): Promise<Answer> {
  const script = await fs.readFile(SCRIPT, 'utf8')
  const head =
    `mode=${mode} dry=${dry} keep_additions=${keep} detached=${detached} shut_down=${down}\n` +
    `enhanced=${enhanced}\n`
  await root.write('tmp/script', head + script)
  const { stdout, stderr } = await execute('chroot', [root.path, '/bin/sh', '/tmp/script'])
  equal(stderr, '')
  await fs.remove(join(root.path, 'tmp/script'))
  deepEqual(await fs.readdir(join(root.path, 'tmp')), [], 'what it had in /tmp is gone')
  equal(stdout.trimEnd().split('\n').length, 1)
  return JSON.parse(stdout) as Answer
}

/** What an answer says of one step, as `state: detail`. */
function said(answer: Answer, step: string): string[] {
  return answer.steps.filter((one) => one.step === step).map((one) => `${one.state}: ${one.detail}`)
}

/** Each file with what it holds. */
async function tree(root: GuestRoot, folder: string): Promise<Record<string, string>> {
  const all: Record<string, string> = {}
  for (
    const entry of await fs.readdir(join(root.path, folder), {
      recursive: true,
      withFileTypes: true,
    })
  ) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    all[path.slice(root.path.length)] = await fs.readFile(path, 'latin1')
  }
  return all
}

async function drivers(root: GuestRoot, kernel: string): Promise<string[]> {
  const listed = await root.run('lsinitramfs', `/boot/initrd.img-${kernel}`)
  return HYPER_V.filter((name) => new RegExp(`/${name.replace('_', '[-_]')}[.]ko`).test(listed))
}

/** A guest whose initramfs has what it is told to have, and nothing that Debian adds by itself. */
async function debian(root: GuestRoot): Promise<void> {
  const config = await root.read('etc/initramfs-tools/initramfs.conf')
  await root.write(
    'etc/initramfs-tools/initramfs.conf',
    config.replace(/^MODULES=.*/m, 'MODULES=list'),
  )
  await root.write('etc/initramfs-tools/modules', '# modules\next4\n')
}

async function adapter(root: GuestRoot, name: string, mac: string): Promise<void> {
  await root.write(`sys/class/net/${name}/address`, `${mac}\n`)
  await root.write(`sys/class/net/${name}/device/uevent`, '')
}

test('pain 2: adds the drivers to the initramfs of each kernel that lacks them, once, and takes them out again', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await debian(root)
  for (const kernel of [OLD, NEW]) await root.addKernel(kernel, [...HYPER_V, 'ext4'])
  await root.run('update-initramfs', '-c', '-k', NEW)
  // another kernel's without modules is the same
  await root.run('cp', `/boot/initrd.img-${NEW}`, `/boot/initrd.img-${OLD}`)
  deepEqual(await drivers(root, OLD), [])
  const [etc, boot] = [await tree(root, 'etc'), await tree(root, 'boot')]

  const would = await tell(root, { dry: 1 })
  match(
    said(would, 'initramfs')[0] as string,
    /^changed: .* would be added to the initramfs of 6.9.0-1-amd64 6.10.0-1-amd64, by initramfs-tools$/,
  )
  deepEqual([await tree(root, 'etc'), await tree(root, 'boot')], [etc, boot])

  const done = await tell(root)
  equal(done.changed, true)
  deepEqual(
    said(done, 'initramfs'),
    [OLD, NEW].map((kernel) =>
      `changed: The initramfs of ${kernel} has the drivers of Hyper-V now`
    ),
  )
  for (const kernel of [OLD, NEW]) deepEqual(await drivers(root, kernel), HYPER_V)
  equal(await root.read('etc/initramfs-tools/modules'), `# modules\next4\n${HYPER_V.join('\n')}\n`)
  deepEqual(done.before, [{
    what: '/etc/initramfs-tools/modules',
    was: '/var/lib/vbox-to-hyperv/files/etc/initramfs-tools/modules',
  }])

  const after = await tree(root, 'boot')
  const again = await tell(root)
  equal(again.changed, false)
  deepEqual(said(again, 'initramfs'), [`ok: The drivers of Hyper-V are there for ${OLD} ${NEW}`])
  deepEqual(await tree(root, 'boot'), after)

  equal((await tell(root, { mode: 'undo', dry: 1 })).changed, true)
  deepEqual(await tree(root, 'boot'), after)
  equal((await tell(root, { mode: 'undo' })).changed, true)
  deepEqual(await tree(root, 'etc'), etc)
  for (const kernel of [OLD, NEW]) deepEqual(await drivers(root, kernel), [])
  equal(await root.exists('var/lib/vbox-to-hyperv'), false)
  deepEqual((await tell(root, { mode: 'undo' })).steps, [{
    step: 'undo',
    state: 'ok',
    detail: 'Nothing was changed here',
  }])
})

test('leaves kernels alone that have the drivers built in, or in their initramfs by Debian’s own doing', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await root.addKernel(OLD, [], HYPER_V)
  await root.addKernel(NEW, HYPER_V)
  await root.run('update-initramfs', '-c', '-k', NEW) // MODULES=most
  const boot = await tree(root, 'boot')
  const answer = await tell(root)
  deepEqual(said(answer, 'initramfs'), [`ok: The drivers of Hyper-V are there for ${OLD} ${NEW}`])
  equal(answer.changed, false)
  deepEqual(await tree(root, 'boot'), boot)
})

test('refuses when the newest kernel has no driver, and warns when an older one has none', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await root.addKernel(OLD, ['ext4'])
  await root.addKernel(NEW, [], HYPER_V)
  // modules of a kernel that was removed
  await root.write('lib/modules/7.0.0-1-amd64/updates/own.ko', '')
  const fine = await tell(root)
  match(
    said(fine, 'initramfs')[0] as string,
    /^warning: The kernel 6\.9\.0-1-amd64 has no hv_vmbus hv_storvsc, /,
  )
  deepEqual(said(fine, 'initramfs').slice(1), [`ok: The drivers of Hyper-V are there for ${NEW}`])

  await root.addKernel('6.11.0-kvm', ['ext4'])
  match(
    said(await tell(root), 'initramfs')[1] as string,
    /^refusal: The kernel 6\.11\.0-kvm has no hv_vmbus hv_storvsc, .* does not start on Hyper-V/,
  )
})

test('refuses when the initramfs cannot be made, with the program’s own words', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await debian(root)
  await root.addKernel(NEW, HYPER_V)
  await root.run('update-initramfs', '-c', '-k', NEW)
  await root.write(
    'etc/initramfs-tools/hooks/broken',
    '#!/bin/sh\necho "cp: No space left on \\"device\\"" >&2\nexit 1\n',
  )
  await fs.chmod(join(root.path, 'etc/initramfs-tools/hooks/broken'), 0o755)
  const boot = await tree(root, 'boot')
  const [only, ...more] = said(await tell(root), 'initramfs')
  match(
    only as string,
    /^refusal: The initramfs of 6\.10\.0-1-amd64 lacks hv_vmbus hv_storvsc hv_netvsc hid_hyperv hyperv_keyboard after .*broken.*Run: sudo update-initramfs -c -k 6\.10\.0-1-amd64$/,
  )
  deepEqual(more, [])
  deepEqual(await tree(root, 'boot'), boot, 'the initramfs that was there is still there')
})

test('adds the drivers by dracut, and takes them out again', async (context) => {
  const root = context.root = await guestRoot('dracut')
  await root.addKernel(NEW, [...HYPER_V, 'ext4'])
  await root.write('etc/machine-id', `${'0'.repeat(32)}\n`)
  const quick = ['dracutmodules="base"', 'filesystems="ext4"', 'compress="cat"', 'do_strip="no"']
  await root.write('etc/dracut.conf.d/test.conf', `${quick.join('\n')}\nearly_microcode="no"\n`)
  const image = `/boot/initramfs-${NEW}.img`
  await root.run('sh', '-c', `cd /etc && find hostname passwd | cpio -o -H newc --quiet > ${image}`)
  const etc = await tree(root, 'etc')
  const done = await tell(root)
  deepEqual(said(done, 'initramfs'), [
    `changed: The initramfs of ${NEW} has the drivers of Hyper-V now`,
  ])
  const listed = await root.run('lsinitrd', image)
  for (const name of ['hv_vmbus', 'hv_storvsc', 'hv_netvsc', 'hid-hyperv', 'hyperv-keyboard']) {
    ok(listed.includes(`/${name}.ko`), name)
  }
  const added = `add_drivers+=" ${HYPER_V.join(' ')} "\n`
  equal(await root.read('etc/dracut.conf.d/vbox-to-hyperv.conf'), added)
  equal((await tell(root)).changed, false)
  await tell(root, { mode: 'undo' })
  deepEqual(await tree(root, 'etc'), etc)
  ok(!/hv_storvsc/.test(await root.run('lsinitrd', image)))
})

/** mkinitcpio is in no package of Debian's: this does what its manual says of presets, MODULES and `?`. */
const MKINITCPIO = `#!/bin/bash
[ "$1" = -p ] || exit 2
. "/etc/mkinitcpio.d/$2.preset"
. /etc/mkinitcpio.conf
for file in /etc/mkinitcpio.conf.d/*.conf; do [ -e "$file" ] && . "$file"; done
: > "$default_image"
for module in "\${MODULES[@]}"; do
  found=$(find /usr/lib/modules -name "$(echo "\${module%\\?}" | sed s/_/[-_]/g).ko")
  if [ -n "$found" ]; then echo "\${found#/}" >> "$default_image"
  elif [ "$module" = "\${module%\\?}" ]; then echo "==> ERROR: module not found: '$module'" >&2; exit 1; fi
done
`

for (const folder of [true, false]) {
  test(`adds the drivers by mkinitcpio ${folder ? 'with' : 'without'} a folder for configuration`, async (context) => {
    const root = context.root = await guestRoot('none')
    await root.write('usr/bin/mkinitcpio', MKINITCPIO)
    await root.write('usr/bin/lsinitcpio', '#!/bin/sh\ncat "$1"\n')
    for (const name of ['mkinitcpio', 'lsinitcpio']) {
      await fs.chmod(join(root.path, 'usr/bin', name), 0o755)
    }
    const kernel = '6.12.1-arch1-1'
    await root.addKernel(kernel, ['hv_vmbus', 'hv_storvsc', 'hv_netvsc'])
    await fs.remove(join(root.path, `boot/vmlinuz-${kernel}`))
    await root.write(`lib/modules/${kernel}/vmlinuz`, '')
    await root.write(`lib/modules/${kernel}/pkgbase`, 'linux\n')
    await root.write('etc/mkinitcpio.conf', 'MODULES=()\n')
    if (folder) await fs.ensureDir(join(root.path, 'etc/mkinitcpio.conf.d'))
    const preset = "PRESETS=('default')\ndefault_image=/boot/initramfs-linux.img\n"
    await root.write('etc/mkinitcpio.d/linux.preset', preset)
    await root.run('mkinitcpio', '-p', 'linux')
    const etc = await tree(root, 'etc')
    deepEqual(said(await tell(root), 'initramfs'), [
      `changed: The initramfs of ${kernel} has the drivers of Hyper-V now`,
    ])
    match(await root.read('boot/initramfs-linux.img'), /hv_storvsc/)
    equal((await tell(root)).changed, false)
    await tell(root, { mode: 'undo' })
    deepEqual(await tree(root, 'etc'), etc)
    equal(await root.read('boot/initramfs-linux.img'), '')
  })
}

/** A guest with nothing to do for its kernel. */
async function plain(): Promise<GuestRoot> {
  const root = await guestRoot('none')
  await root.addKernel(NEW, [], HYPER_V)
  return root
}

/** Everything that is already so: one step each, none of them changed. */
test('changes nothing in a guest that is ready', async (context) => {
  const root = context.root = await plain()
  await root.write('usr/sbin/hv_kvp_daemon', '')
  await fs.chmod(join(root.path, 'usr/sbin/hv_kvp_daemon'), 0o755)
  await root.write('etc/fstab', '# vboxsf\nUUID=1-2 / ext4 defaults 0 1\n')
  const answer = await tell(root)
  deepEqual(answer.steps.map(({ state }) => state), Array(8).fill('ok'))
  deepEqual([answer.guest, answer.changed, answer.before], ['linux', false, []])
})

test('pain 23: comments shared folders out of fstab, and brings them back', async (context) => {
  const root = context.root = await plain()
  const fstab = [
    '# <file system> <mount point> <type>',
    'UUID=0000-0001\t/\text4\terrors=remount-ro 0 1',
    'share\\040one  /mnt/share\\040one vboxsf uid=1000,rw 0 0',
    '  "b\\c" /mnt/b	vboxsf	defaults,nofail	0	0',
    '#old /mnt/old vboxsf defaults 0 0',
    'vboxsf /mnt/no tmpfs defaults 0 0', // without a newline at its end
  ]
  await root.write('etc/fstab', fstab.join('\n'))
  await fs.chmod(join(root.path, 'etc/fstab'), 0o640)
  const answer = await tell(root)
  deepEqual(said(answer, 'shared-folders'), [
    'changed: /etc/fstab mounts no shared folder of VirtualBox any more: /mnt/share\\040one, /mnt/b',
  ])
  const done = fstab.map((line) => /^(share| )/.test(line) ? `# vbox-to-hyperv: ${line}` : line)
  equal(await root.read('etc/fstab'), `${done.join('\n')}\n`)
  equal((await fs.stat(join(root.path, 'etc/fstab'))).mode & 0o777, 0o640)
  deepEqual(answer.before, [
    { what: '/etc/fstab', was: '/var/lib/vbox-to-hyperv/files/etc/fstab' },
  ])
  equal((await tell(root)).changed, false)
  await tell(root, { mode: 'undo' })
  equal(await root.read('etc/fstab'), fstab.join('\n'))
})

test('names disks by UUID where they are named by their controller, and refuses what has none', async (context) => {
  const root = context.root = await plain()
  const uuid = '6f1b9c6e-0000-4000-8000-000000000001'
  const disk = async (name: string, id?: string) => {
    await root.write(`dev/${name}`, '')
    await fs.truncate(join(root.path, 'dev', name), 4 * 1024 ** 2)
    if (id) await execute('mkswap', ['-q', '-U', id, join(root.path, 'dev', name)])
  }
  await disk('nvme0n1p2', uuid)
  await disk('disk/by-id/ata-VBOX_HARDDISK_VB1-part5', uuid.replace(/1$/, '5'))
  await disk('sda3', uuid.replace(/1$/, '3'))
  await disk('nvme0n1p7')
  const fstab = (names: string[]) => `${names.join(' / ext4 defaults 0 1\n')} / ext4 defaults 0 1\n`
  const names = [
    '/dev/nvme0n1p2',
    '/dev/disk/by-id/ata-VBOX_HARDDISK_VB1-part5',
    '/dev/mapper/vg-x',
    'LABEL=a',
  ]
  await root.write('etc/fstab', fstab(names))
  await root.write('etc/crypttab', '# name device\nsda3 /dev/sda3 none luks\n')
  const answer = await tell(root)
  deepEqual(said(answer, 'device-names'), [
    `changed: Disks are named by UUID, and not by their controller: ${names[0]}, ${
      names[1]
    }, /dev/sda3`,
  ])
  const by = [`UUID=${uuid}`, `UUID=${uuid.replace(/1$/, '5')}`, ...names.slice(2)]
  equal(await root.read('etc/fstab'), fstab(by))
  equal(
    await root.read('etc/crypttab'),
    `# name device\nsda3 UUID=${uuid.replace(/1$/, '3')} none luks\n`,
  )
  equal((await tell(root)).changed, false)

  await root.write('etc/fstab', fstab(['/dev/nvme0n1p7']))
  await root.write('proc/cmdline', 'quiet root=/dev/nvme0n1p2 ro\n')
  const [partition, kernel, ...more] = said(await tell(root), 'device-names')
  match(partition as string, /^refusal: On Hyper-V there is no \/dev\/nvme0n1p7 in \/etc\/fstab, /)
  match(
    kernel as string,
    new RegExp(`^refusal: The kernel is told root=/dev/nvme0n1p2, .*root=UUID=${uuid} `),
  )
  deepEqual(more, [])
  await fs.remove(join(root.path, 'proc/cmdline'))
  await root.write('etc/fstab', '/dev/nvme0n1p7 /data ext4 nofail 0 2\n')
  equal((await tell(root)).steps.some(({ state }) => state === 'refusal'), false)
})

test('pain 12: warns of what a TPM unlocks, whose key does not come along', async (context) => {
  const root = context.root = await plain()
  await root.write('etc/crypttab', 'a UUID=1-2 none luks,tpm2-device=auto\nb UUID=3-4 none luks\n')
  match(said(await tell(root), 'encryption')[0] as string, /^warning: The TPM unlocks UUID=1-2, /)
})

const CONFIGURATIONS: Record<string, [path: string, text: string]> = {
  netplan: [
    'etc/netplan/00-installer.yaml',
    'network:\n  ethernets:\n    enp0s3:\n      addresses: [10.0.0.5/24]\n',
  ],
  ifupdown: ['etc/network/interfaces', 'auto enp0s3.100\niface enp0s3.100 inet dhcp\n'],
  NetworkManager: [
    'etc/NetworkManager/system-connections/a b.nmconnection',
    '[connection]\ninterface-name=enp0s3\n',
  ],
  'systemd-networkd': ['etc/systemd/network/lan.network', '[Match]\nName=enp0s3\n'],
  'an ifcfg file': ['etc/sysconfig/network-scripts/ifcfg-enp0s3', 'BOOTPROTO=dhcp\n'],
  'a firewall': ['etc/nftables.conf', 'iifname "enp0s3" accept\n'],
}

test('pain 15: keeps the adapter’s name that any configuration says, by MAC address and for Hyper-V alone', async (context) => {
  const root = context.root = await plain()
  await adapter(root, 'enp0s3', '08:00:27:00:00:01')
  await adapter(root, 'enp0s8', '08:00:27:00:00:02') // nobody says this name
  await root.write('sys/class/net/lo/address', '00:00:00:00:00:00\n')
  const fine = 'ok: No adapter depends on a name that changes: enp0s3 enp0s8'
  deepEqual(said(await tell(root), 'network'), [fine])
  const link = 'etc/systemd/network/10-vbox-to-hyperv-enp0s3.link'
  for (const [what, [path, text]] of Object.entries(CONFIGURATIONS)) {
    await root.write(path, text)
    const answer = await tell(root)
    deepEqual(said(answer, 'network'), [
      'changed: Adapters keep by MAC address the names that the configuration uses: enp0s3 ' +
      '(08:00:27:00:00:01). The VM on Hyper-V has to have the same MAC addresses',
    ], what)
    deepEqual(answer.before, [{ what: `/${link}`, was: null }])
    equal(await root.read(path), text)
    if (what === 'netplan') {
      const lines = (await root.read(link)).split('\n').filter((line) => /^[^#]/.test(line))
      deepEqual(lines, [
        '[Match]',
        'MACAddress=08:00:27:00:00:01',
        'Driver=hv_netvsc',
        '[Link]',
        'Name=enp0s3',
      ])
      const again = await tell(root)
      equal(again.changed, false)
      deepEqual(said(again, 'network'), [fine])
    }
    await tell(root, { mode: 'undo' })
    equal(await root.exists(link), false)
    await fs.remove(join(root.path, path))
  }
})

test('takes the old rules of adapters away, and warns when several are named eth', async (context) => {
  const root = context.root = await plain()
  const rules = 'etc/udev/rules.d/70-persistent-net.rules'
  const rule = (mac: string, name: string) =>
    `SUBSYSTEM=="net", DRIVERS=="?*", ATTR{address}=="${mac}", KERNEL=="eth*", NAME="${name}"\n`
  const text = rule('08:00:27:00:00:01', 'eth0') + rule('08:00:27:00:00:02', 'eth1')
  await adapter(root, 'eth0', '08:00:27:00:00:01')
  await adapter(root, 'eth1', '08:00:27:00:00:02')
  await root.write(rules, text)
  const answer = await tell(root)
  equal(await root.exists(rules), false)
  const [pinned, taken, warned, ...more] = said(answer, 'network')
  match(pinned as string, /^changed: .* eth0 \(08:00:27:00:00:01\) eth1 \(08:00:27:00:00:02\)\./)
  match(
    taken as string,
    /^changed: \/etc\/udev\/rules\.d\/70-persistent-net\.rules, .* is taken away$/,
  )
  match(warned as string, /^warning: Several adapters are named eth0, eth1/)
  deepEqual(more, [])
  await tell(root, { mode: 'undo' })
  equal(await root.read(rules), text)
})

test('binds the name by a rule of udev where there is no systemd', async (context) => {
  const root = context.root = await plain()
  await fs.remove(join(root.path, 'usr/lib/systemd'))
  await fs.ensureDir(join(root.path, 'etc/udev/rules.d'))
  await adapter(root, 'eth0', '08:00:27:00:00:01')
  await root.write('etc/network/interfaces', 'auto eth0\n')
  await tell(root)
  match(
    await root.read('etc/udev/rules.d/70-vbox-to-hyperv-eth0.rules'),
    /^SUBSYSTEM=="net", ACTION=="add", DRIVERS=="hv_netvsc", ATTR\{address\}=="08:00:27:00:00:01", NAME="eth0"$/m,
  )
  equal((await tell(root)).changed, false)
})

test('pain 5: puts shim and GRUB where a new VM looks for a loader, and takes them away again', async (context) => {
  const root = context.root = await plain()
  for (const folder of ['sys/firmware/efi', 'boot/efi']) {
    await fs.ensureDir(join(root.path, folder))
  }
  match(
    said(await tell(root), 'boot-loader')[0] as string,
    /^refusal: The EFI system partition is not mounted/,
  )
  await root.write('boot/efi/EFI/other/shimx64.efi', 'another system’s')
  await root.write('etc/os-release', 'ID="debian"\n')
  for (const name of ['shimx64.efi', 'grubx64.efi', 'mmx64.efi', 'fbx64.efi']) {
    await root.write(`boot/efi/EFI/debian/${name}`, name)
  }
  const before = await tree(root, 'boot')
  await tell(root, { dry: 1 })
  deepEqual(await tree(root, 'boot'), before)
  const done = await tell(root)
  deepEqual(said(done, 'boot-loader'), [
    'changed: /boot/efi/EFI/debian/shimx64.efi is also /boot/efi/EFI/BOOT/BOOTX64.EFI, which a new VM starts',
  ])
  deepEqual(await tree(root, 'boot'), {
    ...before,
    '/boot/efi/EFI/BOOT/BOOTX64.EFI': 'shimx64.efi',
    '/boot/efi/EFI/BOOT/grubx64.efi': 'grubx64.efi',
    '/boot/efi/EFI/BOOT/mmx64.efi': 'mmx64.efi',
  })
  equal((await tell(root)).changed, false)
  await tell(root, { mode: 'undo' })
  deepEqual(await tree(root, 'boot'), before)
})

test('refuses a UEFI guest that has no loader to put there', async (context) => {
  const root = context.root = await plain()
  await fs.ensureDir(join(root.path, 'sys/firmware/efi'))
  await fs.ensureDir(join(root.path, 'boot/efi/EFI/Microsoft'))
  match(
    said(await tell(root), 'boot-loader')[0] as string,
    /^refusal: .* Run: sudo grub-install --target=x86_64-efi --removable$/,
  )
})

test('removes the Guest Additions unless told to keep them, and warns when that fails', async (context) => {
  const root = context.root = await plain()
  const folder = '/opt/VBoxGuestAdditions-7.0.14'
  await root.write('var/lib/VBoxGuestAdditions/config', `INSTALL_DIR='${folder}'\n`)
  await root.write(`${folder}/uninstall.sh`, 'echo "cannot" >&2; exit 1\n')
  deepEqual(said(await tell(root, { keep: 1 }), 'guest-additions'), [
    'ok: The Guest Additions are left alone',
  ])
  deepEqual(said(await tell(root), 'guest-additions'), [
    'warning: The Guest Additions could not be removed, and do nothing on Hyper-V: cannot. ' +
    `Run in the guest: sudo sh ${folder}/uninstall.sh`,
  ])
  await root.write(`${folder}/uninstall.sh`, `rm -r ${folder}\n`)
  deepEqual(said(await tell(root), 'guest-additions'), [
    `changed: The Guest Additions in ${folder} are removed, for good`,
  ])
  equal(await root.exists(folder), false)
  deepEqual(said(await tell(root), 'guest-additions'), ['ok: There are no Guest Additions'])
})

test('removes the Guest Additions after its answer when they carry it', async (context) => {
  const root = context.root = await plain()
  const folder = '/opt/VBoxGuestAdditions-7.0.14'
  await root.write('var/lib/VBoxGuestAdditions/config', `INSTALL_DIR=${folder}\n`)
  await root.write(`${folder}/uninstall.sh`, `rm -r ${folder}\n`)
  // goes on when it is told to
  await fs.remove(join(root.path, 'usr/bin/sleep'))
  await root.write('usr/bin/sleep', '#!/bin/sh\necho "$1" > /slept\nuntil [ -e /go ]; do :; done\n')
  await fs.chmod(join(root.path, 'usr/bin/sleep'), 0o755)
  const answer = await tell(root, { detached: 1 })
  deepEqual(said(answer, 'guest-additions'), [
    `changed: The Guest Additions in ${folder}, which carry this answer, are removed in 20 seconds, for good`,
  ])
  ok(await root.exists(`${folder}/uninstall.sh`))
  await root.write('go', '')
  for (let n = 0; await root.exists(folder); n++) {
    ok(n < 200, 'it is removed')
    await wait(25)
  }
  equal(await root.read('slept'), '20\n')
})

test('shuts a guest down that is ready, after its answer and the Guest Additions', async (context) => {
  const root = context.root = await plain()
  const folder = '/opt/VBoxGuestAdditions-7.0.14'
  await root.write('var/lib/VBoxGuestAdditions/config', `INSTALL_DIR=${folder}\n`)
  await root.write(`${folder}/uninstall.sh`, `rm -r ${folder}\nexit 1\n`)
  await root.write(
    'usr/sbin/shutdown',
    `#!/bin/sh\n[ -e ${folder} ] && when=before || when=after\necho "$when $*" > /down\n`,
  )
  await fs.remove(join(root.path, 'usr/bin/sleep'))
  await root.write('usr/bin/sleep', '#!/bin/sh\nuntil [ -e /go ]; do :; done\n')
  for (const file of ['sbin/shutdown', 'bin/sleep']) {
    await fs.chmod(join(root.path, 'usr', file), 0o755)
  }
  const dry = await tell(root, { detached: 1, down: 1, dry: 1 })
  deepEqual(said(dry, 'shut-down'), ['changed: The guest would be shut down'])
  const answer = await tell(root, { detached: 1, down: 1 })
  deepEqual(said(answer, 'shut-down'), ['changed: The guest shuts down in 20 seconds'])
  equal(await root.exists('down'), false)
  await root.write('go', '')
  for (let n = 0; !await root.exists('down') || !await root.read('down'); n++) {
    ok(n < 400, 'it is shut down')
    await wait(25)
  }
  equal(await root.read('down'), 'after -h now\n')
})

test('leaves a file that someone has changed since, and says where the first one is', async (context) => {
  const root = context.root = await plain()
  await root.write('etc/fstab', 'a /a vboxsf\n')
  await tell(root)
  await root.write('etc/fstab', 'mine\n')
  const answer = await tell(root, { mode: 'undo' })
  deepEqual(said(answer, 'undo'), [
    'warning: /etc/fstab was changed since, and stays as it is: what it was is in /var/lib/vbox-to-hyperv/files/etc/fstab',
  ])
  equal(await root.read('etc/fstab'), 'mine\n')
  equal(await root.read('var/lib/vbox-to-hyperv/files/etc/fstab'), 'a /a vboxsf\n')
})

test('does what it can where all programs are busybox’s, and takes it back', async (context) => {
  const root = context.root = await guestRoot('busybox')
  // depmod is not needed for what has no modules
  await root.write('lib/modules/6.6.1-0-virt/modules.builtin', 'kernel/drivers/hv/hv_vmbus.ko\n')
  await root.write('lib/modules/6.6.1-0-virt/kernel/drivers/scsi/hv_storvsc.ko.gz', '')
  await root.write('boot/vmlinuz-6.6.1-0-virt', '')
  await fs.ensureDir(join(root.path, 'etc/udev/rules.d'))
  await root.write('etc/fstab', 'a /a vboxsf\n')
  await root.write('etc/network/interfaces', 'auto eth0\n')
  await adapter(root, 'eth0', '08:00:27:00:00:01')
  const etc = await tree(root, 'etc')
  const answer = await tell(root)
  deepEqual(answer.steps.map(({ step, state }) => `${step} ${state}`), [
    'shared-folders changed',
    'device-names ok',
    'encryption ok',
    'network changed',
    'initramfs warning',
    'boot-loader ok',
    'daemons warning',
    'guest-additions ok',
  ])
  match(said(answer, 'initramfs')[0] as string, /does not know\. See that it has hv_storvsc$/)
  equal((await tell(root)).changed, false)
  await tell(root, { mode: 'undo' })
  deepEqual(await tree(root, 'etc'), etc)
})

test('installs what tells the host the addresses, once, and removes it again', async (context) => {
  const root = context.root = await plain()
  await root.write('etc/os-release', 'ID=mint\nID_LIKE="ubuntu debian"\n')
  // lists of packages are old at first
  const apt = `#!/bin/sh
echo "$*" >> /var/apt.log
case "$*" in
  '-q update') touch /var/updated ;;
  '-q -y --no-install-recommends -o DPkg::Lock::Timeout=60 install linux-cloud-tools-virtual')
    [ -e /var/updated ] || { echo 'E: Unable to fetch some archives' >&2; exit 100; }
    [ "$DEBIAN_FRONTEND" = noninteractive ] && printf '#!/bin/sh\\n' > /usr/sbin/hypervkvpd && chmod 755 /usr/sbin/hypervkvpd ;;
  '-q -y --no-install-recommends -o DPkg::Lock::Timeout=60 remove linux-cloud-tools-virtual')
    rm /usr/sbin/hypervkvpd ;;
  *) echo "E: syntax: $*" >&2; exit 100 ;;
esac
`
  const program = join(root.path, 'usr/bin/apt-get')
  await fs.outputFile(program, apt, { mode: 0o755 })
  const dry = await tell(root, { dry: 1 })
  equal(await root.exists('var/apt.log'), false)
  const first = await tell(root)
  deepEqual([said(dry, 'daemons').length, said(first, 'daemons')], [1, [
    'changed: linux-cloud-tools-virtual is installed, which tells the host the guest’s addresses',
  ]])
  ok(first.before.some(({ what, was }) => what === 'linux-cloud-tools-virtual' && was === null))
  match(said(await tell(root), 'daemons').join(), /^ok: \/usr\/sbin\/hypervkvpd is there/)
  const undone = await tell(root, { mode: 'undo' })
  ok(said(undone, 'undo').includes('changed: linux-cloud-tools-virtual is removed'))
  equal(await root.exists('usr/sbin/hypervkvpd'), false)
  await fs.writeFile(program, '#!/bin/sh\necho "E: Could not resolve host" >&2; exit 100\n')
  match(
    said(await tell(root), 'daemons').join(),
    /^warning: .+ could not be installed: E: Could not resolve host\. Run while it has a network: sudo apt-get/,
  )
})

test('has xrdp listen to enhanced sessions, only when asked to, and takes that back', async (context) => {
  const root = context.root = await plain()
  match(
    said(await tell(root, { enhanced: 1 }), 'enhanced-session').join(),
    /^warning: There is no xrdp/,
  )
  const ini = [
    ...['[Globals]', 'ini_version=1', '; port=vsock://<cid>:<port>', 'port=3389', 'use_vsock=true'],
    ...['security_layer=negotiate', 'crypt_level=high', '', '[Xorg]', 'port=-1', ''],
  ].join('\n')
  await root.write('etc/xrdp/xrdp.ini', ini)
  const etc = await tree(root, 'etc')
  equal(said(await tell(root), 'enhanced-session').length, 0)
  equal(await root.read('etc/xrdp/xrdp.ini'), ini)
  match(
    said(await tell(root, { enhanced: 1 }), 'enhanced-session').join(),
    /^changed: xrdp listens/,
  )
  equal(
    await root.read('etc/xrdp/xrdp.ini'),
    ini.replace('\nport=3389', '\nport=vsock://-1:3389').replace('=true', '=false')
      .replace('negotiate', 'rdp').replace('high', 'none'),
  )
  equal(await root.read('etc/modules-load.d/vbox-to-hyperv.conf'), 'hv_sock\n')
  match(said(await tell(root, { enhanced: 1 }), 'enhanced-session').join(), /^ok: /)
  await tell(root, { mode: 'undo' })
  deepEqual(await tree(root, 'etc'), etc)
})

test('refuses an account that is not root', async (context) => {
  const root = context.root = await plain()
  await root.write('etc/passwd', 'root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n')
  await root.write(
    'tmp/script',
    `mode=prepare dry=0 keep_additions=0 detached=0\n${await fs.readFile(SCRIPT, 'utf8')}`,
  )
  const { stdout } = await execute('chroot', [
    '--userspec=1000:1000',
    root.path,
    '/bin/sh',
    '/tmp/script',
  ])
  deepEqual(JSON.parse(stdout).steps, [{
    step: 'rights',
    state: 'refusal',
    detail: 'The account user is not root',
  }])
})

linux.run()
