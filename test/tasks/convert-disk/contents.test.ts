import { deepEqual, equal, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import type { Volume } from '../../../tasks/convert-disk/contents.ts'
import { inspectDisk } from '../../../tasks/convert-disk.ts'
import { ends } from '../../ends.ts'
import { needs } from '../../needs.ts'
import { gptDisk, MB, random, vdi } from './images.ts'

interface Context {
  dir: string
  run: (program: string, ...args: string[]) => Promise<string>
  /** An empty image, and where it is. */
  image: (name: string, size: number) => Promise<string>
}

const contents = suite<Context>('readVolumes')

contents.before.each(async (context) => {
  const dir = context.dir = await fs.mkdtemp(join(tmpdir(), 'contents-'))
  // tools for file systems are the administrator's
  const PATH = [process.env.PATH, '/usr/sbin', '/sbin'].join(delimiter)
  context.run = async (program, ...args) => {
    const options = { cwd: dir, env: { ...process.env, PATH } }
    return (await promisify(execFile)(program, args, options)).stdout
  }
  context.image = async (name, size) => {
    const file = join(dir, name)
    await fs.writeFile(file, '')
    await fs.truncate(file, size)
    return file
  }
})
contents.after.each(async ({ dir }) => await fs.remove(dir))

const inside = async (from: string): Promise<Volume[]> =>
  (await inspectDisk({ from }))[0]?.volumes ?? []

/** A disk with two partitions of 512 KB, each begun by what is given. */
function partitioned(types: [string, string], parts: Buffer[]): Buffer {
  const data = gptDisk(...types)
  for (const [index, part] of parts.entries()) part.copy(data, (2048 + 1024 * index) * 512)
  return data
}

const LINUX = '0fc63daf-8483-4772-8e79-3d69d8477de4'
const LDM = 'af9b60a0-1431-4f62-bc68-3311714a69ad'

contents('knows containers by their signatures, where they stand', async ({ dir }) => {
  const cases: [Volume['holds'], number, string][] = [
    ['bitlocker', 3, '-FVE-FS-'],
    ['refs', 3, 'ReFS\0\0\0\0'],
    ['exfat', 3, 'EXFAT   '],
    ['luks', 0, 'LUKS\xba\xbe'],
    ['lvm', 512 + 24, 'LVM2 001'],
    ['md', 4096, '\xfc\x4e\x2b\xa9'],
    ['swap', 4086, 'SWAPSPACE2'],
    ['unknown', 5, '-FVE-FS-'],
  ]
  const file = join(dir, 'a.vdi')
  for (const [holds, at, signature] of cases) {
    const part = Buffer.alloc(8192)
    part.write(signature, at, 'latin1')
    const disk = partitioned([LINUX, LDM], [Buffer.alloc(0), part])
    await fs.writeFile(file, vdi(partitioned([LINUX, LINUX], [part])))
    deepEqual((await inside(file)).map(({ holds }) => holds), [holds, 'unknown'])
    // a dynamic disk is known by its partition's type, and not looked into
    await fs.writeFile(file, vdi(disk))
    deepEqual((await inside(file)).map(({ holds }) => holds), ['unknown', 'ldm'])
  }
})

contents(
  'finds logical partitions, and the end of a chain of them that is a loop',
  async ({ dir }) => {
    const disk = Buffer.alloc(8 * MB)
    const record = (sector: number, index: number, type: number, start: number, length: number) => {
      const at = sector * 512 + 446 + 16 * index
      disk[at + 4] = type
      disk.writeUInt32LE(start, at + 8)
      disk.writeUInt32LE(length, at + 12)
      disk.writeUInt16LE(0xaa55, sector * 512 + 510)
    }
    record(0, 0, 0x83, 2048, 1000)
    record(0, 1, 0x05, 4096, 8192)
    record(4096, 0, 0x82, 64, 2000)
    record(4096, 1, 0x05, 4096, 4096)
    record(8192, 0, 0x8e, 64, 3000)
    disk.write('LVM2 001', (8192 + 64) * 512 + 512 + 24)
    const file = join(dir, 'a.img')
    await fs.writeFile(file, disk)
    const [found] = await inspectDisk({ from: file })
    deepEqual(found?.partitions.map(({ type, offset }) => [type, offset / 512]), [
      ['83', 2048],
      ['05', 4096],
      ['82', 4160],
      ['8e', 8256],
    ])
    deepEqual(found?.volumes.map(({ holds }) => holds), ['unknown', 'unknown', 'unknown', 'lvm'])
    record(8192, 1, 0x05, 0, 4096)
    await fs.writeFile(file, disk)
    equal((await inspectDisk({ from: file }))[0]?.partitions.length, 130)
  },
)

const ntfs = needs(contents, 'mkntfs', 'ntfscp', 'wimcapture', 'wimapply')

/** An NTFS volume with Windows' folders, and a root too large for its own record. */
async function windows({ dir, run, image }: Context): Promise<string> {
  const file = await image('ntfs.img', 8 * MB)
  await fs.ensureDir(join(dir, 'c', 'Windows', 'System32'))
  for (let n = 0; n < 200; n++) {
    await fs.writeFile(join(dir, 'c', `a long name in the root directory, number ${n}.txt`), 'x')
  }
  await run('wimcapture', 'c', 'c.wim', '--compress=none')
  await run('mkntfs', '-q', '-F', '-c', '4096', '-L', '系统', file)
  await run('wimapply', 'c.wim', '1', file)
  return file
}

/** Sets the volume's flag, where the table's fourth record has it. */
async function makeDirty(file: string): Promise<void> {
  const data = await fs.readFile(file)
  const mft = Number(data.readBigUInt64LE(48)) * 4096
  let at = mft + 3 * 1024
  at += data.readUInt16LE(at + 20)
  while (data.readUInt32LE(at) !== 0x70) at += data.readUInt32LE(at + 4)
  data[at + data.readUInt16LE(at + 20) + 10] = 1
  await fs.writeFile(file, data)
}

ntfs('finds Windows, hibernated or not properly closed', async (context) => {
  const { dir, run } = context
  const file = await windows(context)
  const volume = { offset: 0, length: 8 * MB, holds: 'ntfs', label: '系统' } as const
  const plain = { ...volume, dirty: false, hibernated: false, windows: true }
  deepEqual(await inside(file), [plain])
  for (
    const [start, hibernated] of [['wake', false], ['\0\0\0\0', false], ['HIBR', true]] as const
  ) {
    // in clusters of its own, as Windows' is
    await fs.writeFile(join(dir, 'hiberfil.sys'), Buffer.alloc(100_000).fill(start, 0, 4))
    await run('ntfscp', '-q', file, join(dir, 'hiberfil.sys'), 'hiberfil.sys')
    deepEqual(await inside(file), [{ ...plain, hibernated }], start)
  }
  // ntfs-3g goes by the same signature
  await run('ntfscp', '-q', file, join(dir, 'hiberfil.sys'), 'x').then(
    () => ok(false, 'ntfs-3g takes a hibernated volume'),
    ({ stderr }) => ok(/hibernated/.test(stderr), stderr),
  )
  await makeDirty(file)
  deepEqual(await inside(file), [{ ...plain, hibernated: true, dirty: true }])
})

ntfs(
  'says of a volume that is none that it is damaged, whatever its bytes are',
  async (context) => {
    const file = await windows(context)
    const whole = await fs.readFile(file)
    const next = random(7)
    const mft = Number(whole.readBigUInt64LE(48)) * 4096
    let damaged = 0
    const disk = await fs.open(file, 'r+')
    for (let n = 0; n < 300; n++) {
      // in the boot sector or in the records of the table that are read
      const from = n % 3 === 0 ? 11 : mft
      const place = () => from + Math.floor(next() * (n % 3 === 0 ? 60 : 40 * 1024))
      const changes = Array.from({ length: 1 + n % 8 }, place)
      for (const at of changes) await fs.write(disk, Buffer.of(next() * 256), 0, 1, at)
      const [volume] = await ends(() => inside(file))
      if (volume?.damaged) damaged++
      for (const at of changes) await fs.write(disk, whole, at, 1, at)
    }
    await fs.close(disk)
    ok(damaged > 30, `${damaged} of 300`)
  },
)

needs(contents, 'mkfs.vfat', 'mmd', 'mcopy')(
  'lists what UEFI finds on FAT of each width',
  async ({ run, image, dir }) => {
    await fs.writeFile(join(dir, 'x.efi'), 'x')
    for (const [bits, size] of [['12', 2], ['16', 16], ['32', 40]] as const) {
      const file = await image(`${bits}.img`, size * MB)
      await run('mkfs.vfat', '-F', bits, file)
      equal((await inside(file))[0]?.loaders?.length, 0)
      await run(
        'mmd',
        '-i',
        file,
        '::efi',
        '::efi/BOOT',
        '::efi/Microsoft',
        '::efi/Microsoft/Boot',
        '::other',
      )
      for (
        const name of ['efi/BOOT/BOOTX64.EFI', 'efi/Microsoft/Boot/bootmgfw.efi', 'other/x.efi']
      ) {
        await run('mcopy', '-i', file, 'x.efi', `::${name}`)
      }
      // more than a cluster of them, with names that take several entries each
      const many = Array.from({ length: 40 }, (_, n) => `a long name of a loader, number ${n}.efi`)
      for (const name of many) await fs.writeFile(join(dir, name), 'x')
      await run('mcopy', '-i', file, ...many, '::efi/BOOT')
      await run('mdel', '-i', file, '::efi/BOOT/a long name of a loader, number 7.efi')
      const [volume] = await inside(file)
      equal(volume?.holds, 'fat', bits)
      equal(volume.loaders?.length, 41)
      for (
        const name of [
          'BOOT/BOOTX64.EFI',
          'Microsoft/Boot/bootmgfw.efi',
          'BOOT/a long name of a loader, number 39.efi',
        ]
      ) {
        ok(volume.loaders?.some((path) => path.toLowerCase() === `efi/${name}`.toLowerCase()), name)
      }
    }
  },
)

needs(contents, 'mkfs.ext4', 'mkfs.xfs', 'mkfs.btrfs', 'mkswap', 'cryptsetup')(
  'knows Linux’ own, with their labels',
  async ({ run, image }) => {
    const make = async (size: number, program: string, ...args: string[]) => {
      const file = await image('a.img', size * MB)
      await run(program, ...args, file)
      return (await inside(file)).map(({ holds, label }) => [holds, label])
    }
    deepEqual(await make(4, 'mkfs.ext4', '-q', '-L', 'root'), [['ext', 'root']])
    deepEqual(await make(400, 'mkfs.xfs', '-q', '-L', 'data'), [['xfs', 'data']])
    deepEqual(await make(200, 'mkfs.btrfs', '-q', '-L', 'home'), [['btrfs', 'home']])
    deepEqual(await make(4, 'mkswap'), [['swap', undefined]])
    const file = await image('a.img', 20 * MB)
    const options = ['-q', '--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', '1000']
    const key = join(file, '..', 'key')
    await fs.writeFile(key, 'secret')
    await run('cryptsetup', 'luksFormat', ...options, file, key)
    deepEqual((await inside(file)).map(({ holds }) => holds), ['luks'])
  },
)

needs(contents, 'mkfs.ext4', 'debugfs', 'mkswap')(
  'finds a Linux that is hibernated or was not shut down',
  async ({ run, image }) => {
    const file = await image('a.img', 8 * MB)
    await run('mkfs.ext4', '-q', file)
    const dirty = async () => (await inside(file)).map(({ dirty }) => dirty)
    deepEqual(await dirty(), [false])
    await run('debugfs', '-w', '-R', 'feature needs_recovery', file)
    deepEqual(await dirty(), [true], 'its journal is to be replayed')
    await run('debugfs', '-w', '-R', 'feature -needs_recovery', file)
    await run('debugfs', '-w', '-R', 'set_super_value state 0', file)
    deepEqual(await dirty(), [true], 'it was in use')
    const swap = await image('b.img', 4 * MB)
    await run('mkswap', swap)
    deepEqual((await inside(swap)).map(({ hibernated }) => hibernated), [false])
    // as the kernel does when it writes its memory there
    const handle = await fs.open(swap, 'r+')
    await fs.write(handle, 'S1SUSPEND\0', 4086, 'latin1')
    await fs.close(handle)
    deepEqual((await inside(swap)).map(({ holds, hibernated }) => [holds, hibernated]), [
      ['swap', true],
    ])
  },
)

needs(contents, 'sgdisk')(
  'reads the tables that sgdisk writes, and what is active in them',
  async ({ run, image }) => {
    const file = await image('a.img', 64 * MB)
    const read = async () => {
      const [found] = await inspectDisk({ from: file })
      return [
        found?.partitionTable,
        found?.boots,
        ...found?.partitions.map(({ type, length, active }) => [type, length / MB, active]) ?? [],
      ]
    }
    const make = ['-n', '1:0:+8M', '-t', '1:0700', '-n', '2:0:+16M', '-t', '2:0700']
    await run('sgdisk', ...make, '-n', '3:0:+8M', '-t', '3:8300', file)
    await run('sgdisk', '-m', '1:2:3', file)
    const parts = [['07', 8, undefined], ['07', 16, undefined], ['83', 8, undefined]]
    deepEqual(await read(), ['mbr', 'none', ...parts])
    // which sgdisk does not set
    const disk = await fs.open(file, 'r+')
    await fs.write(disk, Buffer.of(0x80), 0, 1, 446 + 16)
    await fs.close(disk)
    deepEqual(await read(), ['mbr', 'bios', parts[0], ['07', 16, true], parts[2]])
    await run('sgdisk', '-Z', file)
    await run('sgdisk', '-n', '1:0:+8M', '-t', '1:EF00', '-n', '2:0:0', '-t', '2:0700', file)
    const ESP = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
    deepEqual((await read()).slice(0, 3), ['gpt', 'uefi', [ESP, 8, undefined]])
    await run('sgdisk', '-t', '1:EF02', file)
    deepEqual((await read()).slice(0, 2), ['gpt', 'bios'])
  },
)

contents.run()
