/** Root file systems of Linux guests, with the distribution's own programs, for tests that run in them by chroot. */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { homedir, tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'

const execute = promisify(execFile)

/** What a test in such a root needs; only root may chroot, so another user's machine has no such program. */
export const programs = [
  'apt-get',
  'dpkg-deb',
  'chroot',
  'nasm',
  ...(process.getuid?.() === 0 ? [] : ['the user root']),
]

export interface GuestRoot {
  path: string
  /** Runs a program in it; rejects when it fails. */
  run: (program: string, ...args: string[]) => Promise<string>
  read: (path: string) => Promise<string>
  write: (path: string, text: string) => Promise<void>
  exists: (path: string) => Promise<boolean>
  /** Adds a kernel of these modules, with those of the second list built in. */
  addKernel: (version: string, modules: string[], builtin?: string[]) => Promise<void>
  close: () => Promise<void>
}

/** Where a Linux kernel has the modules that a test may ask for. */
const MODULES: Record<string, string> = {
  hv_vmbus: 'drivers/hv/hv_vmbus.ko',
  hv_storvsc: 'drivers/scsi/hv_storvsc.ko',
  hv_netvsc: 'drivers/net/hyperv/hv_netvsc.ko',
  hid_hyperv: 'drivers/hid/hid-hyperv.ko',
  hyperv_keyboard: 'drivers/input/serio/hyperv-keyboard.ko',
  ext4: 'fs/ext4/ext4.ko',
}

export const HYPER_V = Object.keys(MODULES).filter((name) => name !== 'ext4')

/**
 * A new root, of Debian's packages, in which `keeps` alone makes an initramfs; `busybox`: nothing does,
 * and it has no programs but those in one, which are fewer than Alpine's.
 */
export async function guestRoot(
  keeps: 'initramfs-tools' | 'dracut' | 'none' | 'busybox',
): Promise<GuestRoot> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'guest-'))
  const path = join(dir, 'root')
  const first = await base()
  // programs are shared, and never written to; links end where a file system does
  await execute('cp', ['-al', first, path]).catch(async () => {
    await fs.remove(path)
    await execute('cp', ['-a', first, path])
  })
  await fs.remove(join(path, 'etc'))
  await execute('cp', ['-a', join(first, 'etc'), path])
  const at = (name: string) => join(path, name)
  if (keeps !== 'initramfs-tools') {
    await fs.remove(at('usr/share/initramfs-tools'))
    await fs.remove(at('usr/sbin/update-initramfs'))
  }
  if (keeps !== 'dracut') await fs.remove(at('usr/bin/dracut'))
  if (keeps === 'busybox') {
    await fs.move(at('usr/bin/busybox'), at('busybox'))
    for (const folder of ['usr/bin', 'usr/sbin', 'usr/lib/systemd']) await fs.emptyDir(at(folder))
    await execute('chroot', [path, '/busybox', '--install', '-s', '/usr/bin'])
  }
  const run = async (program: string, ...args: string[]) => {
    const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }
    return (await execute('chroot', [path, program, ...args], { env })).stdout
  }
  return {
    path,
    run,
    read: (name) => fs.readFile(at(name), 'utf8'),
    write: (name, text) => fs.outputFile(at(name), text),
    exists: (name) => fs.pathExists(at(name)),
    addKernel: async (version, modules, builtin = []) => {
      const folder = at(`lib/modules/${version}`)
      for (const name of modules) {
        await fs.copy(at(`modules/${name}.ko`), join(folder, 'kernel', MODULES[name] as string))
      }
      const lines = builtin.map((name) => `kernel/${MODULES[name]}\n`).join('')
      await fs.outputFile(join(folder, 'modules.builtin'), lines)
      await fs.outputFile(join(folder, 'modules.builtin.modinfo'), '')
      await fs.outputFile(join(folder, 'modules.order'), '')
      await fs.outputFile(at(`boot/vmlinuz-${version}`), '')
      await fs.outputFile(at(`boot/config-${version}`), 'CONFIG_RD_ZSTD=y\n')
      await run('depmod', version)
    },
    close: async () => {
      await execute('rm', ['-rf', dir]) // a third of the time that it takes from here
    },
  }
}

/**
 * The root that all others are copies of, made once for a user: packages that apt brings, unpacked
 * only. That is a tenth of what debootstrap takes, which sets them up too.
 */
async function base(): Promise<string> {
  const mark = createHash('sha256').update(await fs.readFile(import.meta.filename as string))
    .update(await fs.readFile('/etc/os-release')).digest('hex').slice(0, 16)
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'vbox-to-hyperv-test')
  const ready = join(cache, `guest-root-${mark}`)
  if (await fs.pathExists(ready)) return ready
  await fs.ensureDir(cache)
  for (const old of await fs.readdir(cache)) {
    if (old.startsWith('guest-root-') && old !== basename(ready)) await fs.remove(join(cache, old))
  }
  const dir = await fs.mkdtemp(join(cache, 'making-'))
  try {
    const root = join(dir, 'root')
    await fs.ensureDir(join(dir, 'debs', 'partial'))
    await fs.writeFile(join(dir, 'installed'), '') // nothing is, so apt brings what these depend on
    const download = () =>
      execute('apt-get', [
        ...['-qq', '-y', '--no-install-recommends', '--download-only'],
        ...['-o', `Dir::State::status=${join(dir, 'installed')}`],
        ...['-o', `Dir::Cache::archives=${join(dir, 'debs')}`, '-o', 'Debug::NoLocking=1'],
        // as root apt would go to a user of its own, who may not enter this folder
        ...['-o', 'APT::Sandbox::User=root'],
        ...[
          'install',
          'initramfs-tools',
          'dracut-core',
          'coreutils',
          'dash',
          'bash',
          'sed',
          'grep',
        ],
        ...[
          'mawk',
          'findutils',
          'libc-bin',
          'zstd',
          'util-linux',
          'diffutils',
          'gzip',
          'hostname',
          'busybox-static',
        ],
      ])
    await download().catch(async () => {
      await execute('apt-get', ['-qq', 'update'])
      await download()
    })
    for (
      const [link, target] of [['bin', 'usr/bin'], ['sbin', 'usr/sbin'], ['lib', 'usr/lib'], [
        'lib64',
        'usr/lib64',
      ]] as const
    ) {
      await fs.ensureDir(join(root, target))
      await fs.symlink(target, join(root, link))
    }
    await execute('sh', ['-c', UNPACK, 'sh', join(dir, 'debs'), root])
    await fs.symlink('mawk', join(root, 'usr/bin/awk')) // which setting up would do
    for (const folder of ['dev', 'etc', 'proc', 'sys', 'boot', 'modules']) {
      await fs.ensureDir(join(root, folder))
    }
    await fs.ensureDir(join(root, 'tmp'))
    await fs.chmod(join(root, 'tmp'), 0o1777)
    // what other packages add takes longer than all the rest
    for (const hook of ['udev', 'dmsetup', 'keymap', 'thermal']) {
      await fs.remove(join(root, 'usr/share/initramfs-tools/hooks', hook))
    }
    // a container may not make devices
    await execute('mknod', ['-m', '666', join(root, 'dev/null'), 'c', '1', '3'])
      .catch(() => fs.writeFile(join(root, 'dev/null'), ''))
    for (const name of Object.keys(MODULES)) {
      const source = join(dir, `${name}.asm`)
      const symbol = name === 'hv_vmbus'
        ? 'section __ksymtab_strings\ndb "vmbus_open",0\n'
        : /^h/.test(name)
        ? 'extern vmbus_open\nsection .data\ndq vmbus_open\n'
        : ''
      await fs.writeFile(source, `section .modinfo\ndb "name=${name}",0,"license=GPL",0\n${symbol}`)
      await execute('nasm', ['-f', 'elf64', source, '-o', join(root, 'modules', `${name}.ko`)])
    }
    // another run may have been faster
    await fs.rename(root, ready).catch(async (error) => {
      if (!await fs.pathExists(ready)) throw error
    })
    return ready
  } finally {
    await fs.remove(dir)
  }
}

const UNPACK = `set -e
for deb in "$1"/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$2" \\
    --exclude './usr/share/doc' --exclude './usr/share/man' --exclude './usr/share/locale' --exclude './usr/lib/*/gconv'
done`
