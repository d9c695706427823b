/** What the readers take and what they refuse, format by format, on images that tests lay themselves. */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { gzipSync } from 'node:zlib'
import { suite } from 'uvu'
import { convertDisk, inspectDisk } from '../../../tasks/convert-disk.ts'
import { ends } from '../../ends.ts'
import { fuzz } from '../../fuzz/convert-disk.ts'
import {
  disk,
  manifest,
  MB,
  ovf,
  sealed,
  tar,
  vdi,
  vhd,
  VHDX,
  vhdx,
  vmdk,
  vmfsSparse,
  warned,
} from './images.ts'

interface Context {
  dir: string
}

const open = async (context: Context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-formats-'))
}
const close = ({ dir }: Context) => fs.remove(dir)

async function holds(dir: string, name: string, image: Buffer, expected: Buffer): Promise<void> {
  const from = join(dir, name)
  await fs.writeFile(from, image)
  const to = join(dir, 'read.raw')
  await convertDisk({ from, to, force: true })
  ok((await fs.readFile(to)).equals(expected), `${name} holds another disk`)
}

async function refuses(dir: string, name: string, image: Buffer | string, reason: RegExp) {
  const from = join(dir, name)
  await fs.writeFile(from, image)
  const before = await fs.readdir(dir)
  await rejects(convertDisk({ from, to: join(dir, 'refused.vhdx') }), (error: Error) => {
    match(error.message, reason)
    match(error.message, /^Cannot read ".*": .* \(at byte \d+\)$/)
    return true
  })
  deepEqual(await fs.readdir(dir), before)
}

/** An image with some bytes changed. */
function patched(image: Buffer, at: number, bytes: number[]): Buffer {
  const copy = Buffer.from(image)
  copy.set(bytes, at)
  return copy
}

const data = disk(5 * MB + 512 * 3)

const vdis = suite<Context>('VDI')
vdis.before.each(open)
vdis.after.each(close)

vdis('reads blocks in any order, zero and discarded ones, and fixed images', async ({ dir }) => {
  const sparse = Buffer.concat([data, Buffer.alloc(4 * MB), disk(3 * MB + 512, 3)])
  await holds(dir, 'a.vdi', vdi(sparse), sparse)
  await holds(dir, 'b.vdi', vdi(sparse, { reversed: true }), sparse)
  await holds(dir, 'c.vdi', vdi(sparse, { type: 2 }), sparse)
  const [found] = await inspectDisk({ from: join(dir, 'a.vdi') })
  let allocated = 0
  for (let at = 0; at < sparse.length; at += MB) {
    const block = sparse.subarray(at, at + MB)
    if (block.some((byte) => byte !== 0)) allocated += block.length
  }
  equal(found?.allocatedSize, allocated)
  ok(allocated < sparse.length - 2 * MB)
})

vdis('refuses what is half a disk, damaged or of another version', async ({ dir }) => {
  const image = vdi(data)
  await refuses(dir, 'a.vdi', vdi(data, { type: 4 }), /differencing image that names no parent/)
  await refuses(dir, 'a.vdi', image.subarray(0, 4 * MB), /block 2 is not within the file/)
  await refuses(dir, 'a.vdi', image.subarray(0, 100), /has no signature of a VDI/)
  await refuses(dir, 'a.vdi', patched(image, 0x40, [0]), /has no signature of a VDI/)
  await refuses(
    dir,
    'a.vdi',
    patched(image, 0x44, [0, 0, 2]),
    /version 2\.0, and 0\.1, 1\.0 and 1\.1 are/,
  )
  await refuses(dir, 'a.vdi', patched(image, MB + 4, [0]), /block 1 is where another block is/)
  await refuses(dir, 'a.vdi', patched(image, 0x178, [1]), /its blocks have 1048577 bytes/)
  await refuses(dir, 'a.vdi', patched(image, 0x176, [9]), /less than \d+ bytes/)
  await refuses(
    dir,
    'a.vdi',
    patched(image, 0x176, [0xff, 0xff]),
    /its disk has more bytes than any/,
  )
  await refuses(dir, 'a.vdi', '', /it is empty/)
  // the block map within the header
  const map = patched(vdi(data, { blockSize: 4096 }), 0x154, [0xc0, 0x01, 0, 0])
  await refuses(dir, 'a.vdi', map, /its block map of \d+ entries is where its header is/)
})

vdis.run()

const vmdks = suite<Context>('VMDK')
vmdks.before.each(open)
vmdks.after.each(close)

vmdks('reads sparse and stream-optimized images of all versions', async ({ dir }) => {
  for (const version of [1, 2, 3]) {
    for (const zeroed of [false, true]) {
      await holds(dir, 'a.vmdk', vmdk(data, { version, zeroed }), data)
      const stream = { version, zeroed, compressed: true }
      await holds(dir, 'b.vmdk', vmdk(data, stream), data)
      await holds(dir, 'c.vmdk', vmdk(data, { ...stream, atEnd: true }), data)
    }
  }
})

vmdks(
  'reads extents beside their descriptor, with CRLF, spaces and other letters',
  async ({ dir }) => {
    const [first, second] = [disk(2 * MB, 4), disk(MB, 5)]
    await fs.writeFile(join(dir, 'Диск 1-s001.vmdk'), vmdk(first))
    await fs.writeFile(join(dir, 'f.img'), Buffer.concat([Buffer.alloc(1024), second]))
    const descriptor = [
      '# Disk DescriptorFile',
      'version=1',
      'parentCID=ffffffff',
      'createType="custom"',
      'RW 4096 SPARSE "Диск 1-s001.vmdk"',
      'RW 2048 ZERO',
      'RW 2048 FLAT "f.img" 2',
    ].join('\r\n')
    const whole = Buffer.concat([first, Buffer.alloc(MB), second])
    await holds(dir, 'a.vmdk', Buffer.from(descriptor), whole)
    const extent = (line: string) => `# Disk DescriptorFile\n${line}\n`
    await refuses(dir, 'a.vmdk', extent('RW 9 FLAT "../x" 0'), /"\.\.\/x" is no file beside it/)
    await refuses(dir, 'a.vmdk', extent('RW 9 FLAT "/dev/sda" 0'), /is no file beside it/)
    const self = extent('RW 9 SPARSE "a.vmdk"')
    await refuses(dir, 'a.vmdk', self, /its extent "a\.vmdk" is the descriptor itself/)
    const other = extent('RW 9 SPARSE "b.vmdk"')
    await fs.writeFile(join(dir, 'b.vmdk'), other)
    await refuses(dir, 'a.vmdk', other, /the file ends in its header/)
    await fs.writeFile(join(dir, 'b.vmdk'), other.padEnd(1024, '#'))
    await refuses(dir, 'a.vmdk', other, /does not begin as a sparse extent/)
    await refuses(dir, 'a.vmdk', extent('RW 9 SESPARSE "f.img"'), /type SESPARSE is none/)
    await refuses(dir, 'a.vmdk', extent('RW 9999999 FLAT "f.img" 0'), /it is cut short/)
    await refuses(dir, 'a.vmdk', extent('RW x FLAT "f.img" 0'), /cannot be understood/)
    await refuses(dir, 'a.vmdk', extent('nothing'), /names no extents/)
  },
)

vmdks(
  'reads names in the encoding that the descriptor says, and extents of VMFS',
  async ({ dir }) => {
    const start = disk(MB, 6)
    await fs.writeFile(join(dir, '磁盘-delta.vmdk'), vmfsSparse(start))
    await fs.writeFile(join(dir, '磁盘-flat.vmdk'), start)
    const lines = (line: string) => `# Disk DescriptorFile\nencoding="GBK"\nRW 2048 ${line}\n`
    // "磁盘" in GBK
    const name = Buffer.from([0xb4, 0xc5, 0xc5, 0xcc])
    for (const [before, after] of [['VMFSSPARSE "', '-delta.vmdk"'], ['VMFS "', '-flat.vmdk"']]) {
      const [head = '', tail = ''] = lines(`${before}|${after}`).split('|')
      const descriptor = Buffer.concat([Buffer.from(head), name, Buffer.from(tail)])
      await holds(dir, 'a.vmdk', descriptor, start)
    }
    const [found] = await inspectDisk({ from: join(dir, 'a.vmdk') })
    equal(found?.allocatedSize, MB)
    await refuses(dir, 'b.vmdk', vmfsSparse(start), /it is one extent of a disk/)
    await refuses(dir, 'b.vmdk', patched(vmfsSparse(start), 16, [0]), /its grains have 0 bytes/)
    const secret = `${lines('VMFS "a.vmdk"')}encryption.keySafe = "x"\n`
    await refuses(dir, 'b.vmdk', secret, /VMware has encrypted it/)
  },
)

vmdks('says so when it was not closed in order', async ({ dir }) => {
  const from = join(dir, 'a.vmdk')
  await fs.writeFile(from, patched(vmdk(data), 72, [1]))
  const { warnings } = await convertDisk({ from, to: join(dir, 'a.img') })
  match(warnings.join(), /"a\.vmdk"|a\.vmdk" was not closed in order: its VM crashed/)
})

vmdks('refuses what is half a disk, damaged or of another version', async ({ dir }) => {
  const stream = vmdk(data, { compressed: true, atEnd: true })
  await refuses(
    dir,
    'a.vmdk',
    vmdk(data, { parent: '87654321' }),
    /its parent cid 87654321 is neither/,
  )
  await refuses(dir, 'a.vmdk', vmdk(data, { version: 4 }), /its version is 4/)
  await refuses(dir, 'a.vmdk', stream.subarray(0, -4096), /its footer is missing/)
  await refuses(dir, 'a.vmdk', patched(stream, 128 * 512, [9]), /is not that of byte 0/)
  await refuses(dir, 'a.vmdk', patched(stream, 128 * 512 + 20, [9, 9, 9]), /cannot be decompressed/)
  await refuses(dir, 'a.vmdk', patched(stream, 128 * 512 + 8, [0, 0, 0]), /has 0 bytes compressed/)
  await refuses(dir, 'a.vmdk', Buffer.alloc(MB, 'x'), /no signature of a VMDK/)
})

vmdks('stops at a grain that inflates without end', async ({ dir }) => {
  const zeros = Buffer.alloc(64 * 1024, 1)
  const image = vmdk(zeros, { compressed: true })
  const bomb = await import('node:zlib').then(({ deflateSync }) =>
    deflateSync(Buffer.alloc(32 * MB))
  )
  // its compressed size passes: 32 MB of zeros are 32 KB
  const large = Buffer.concat([image.subarray(0, 128 * 512 + 12), bomb, Buffer.alloc(256 * 1024)])
  large.writeUInt32LE(bomb.length, 128 * 512 + 8)
  const directory = Math.ceil((128 * 512 + 12 + bomb.length) / 512) + 1
  large.writeBigUInt64LE(BigInt(directory), 56)
  large.writeUInt32LE(directory + 1, directory * 512)
  large.writeUInt32LE(128, (directory + 1) * 512)
  await refuses(dir, 'a.vmdk', large, /cannot be decompressed/)
})

vmdks('refuses grain tables that lie in each other, however many they are', async ({ dir }) => {
  const two = Buffer.concat([disk(33 * MB), Buffer.alloc(MB, 'x')])
  const image = vmdk(two)
  await holds(dir, 'a.vmdk', image, two)
  const directory = Number(image.readBigUInt64LE(56)) * 512
  const [first, second] = [image.readUInt32LE(directory), image.readUInt32LE(directory + 4)]
  const entry = (value: number, at = directory + 4) => {
    const copy = Buffer.from(image)
    copy.writeUInt32LE(value, at)
    return copy
  }
  const inside = /grain table 1 is where another is/
  await refuses(dir, 'a.vmdk', entry(first), inside)
  await refuses(dir, 'a.vmdk', entry(first + 3), inside)
  await refuses(dir, 'a.vmdk', entry(second, directory), inside)
  const header = /is where the header or the grain directory is/
  await refuses(dir, 'a.vmdk', entry(directory / 512 - 3), header)
  await refuses(dir, 'a.vmdk', entry(1), header)
  await refuses(dir, 'a.vmdk', entry(1, first * 512), /the grain of byte 0 is where the header/)
  // 2 TB by one grain table, and by one that has nothing in it
  for (const zeroed of [0, 4]) {
    for (const grain of [0, zeroed / 4]) {
      const small = Buffer.alloc(1024 + 512 * 4 + 4 * 2 ** 21)
      vmdk(Buffer.alloc(0)).copy(small, 0, 0, 512)
      small.writeUInt32LE(0x30000 | zeroed | 1, 8)
      small.writeUInt16LE(1, 77)
      small.writeBigUInt64LE(2n ** 33n, 12)
      small.writeBigUInt64LE(8n, 20)
      small.writeBigUInt64LE(6n, 56)
      small.write('# Disk DescriptorFile\n', 512)
      small.writeUInt32LE(grain, 1024)
      for (let at = 6 * 512; at + 4 <= small.length; at += 4) small.writeUInt32LE(2, at)
      small.writeBigUInt64LE(1n, 36)
      await ends(() => refuses(dir, 'a.vmdk', small, inside))
    }
  }
})

vmdks('takes no extent twice, and none that is the descriptor', async ({ dir }) => {
  const [sparse, flat] = [disk(MB, 7), disk(MB, 8)]
  await fs.writeFile(join(dir, 'sparse.vmdk'), vmdk(sparse))
  await fs.writeFile(join(dir, 'flat.vmdk'), flat)
  const lines = (...lines: string[]) =>
    Buffer.from(['# Disk DescriptorFile', ...lines, ''].join('\n'))
  const [one, other] = ['RW 1024 FLAT "flat.vmdk" 1024', 'RW 1024 FLAT "flat.vmdk" 0']
  const turned = Buffer.concat([flat.subarray(MB / 2), flat.subarray(0, MB / 2)])
  await holds(dir, 'a.vmdk', lines(one, other), turned)
  const twice = /its extent "[a-z]+\.vmdk" is one that it has already/
  await refuses(dir, 'a.vmdk', lines(one, other, 'RW 1 FLAT "flat.vmdk" 2047'), twice)
  await refuses(dir, 'a.vmdk', lines(...Array<string>(4000).fill(one)), twice)
  const grains = 'RW 2048 SPARSE "sparse.vmdk"'
  await refuses(dir, 'a.vmdk', lines(grains, 'RW 2048 ZERO', grains), twice)
  await refuses(dir, 'a.vmdk', lines('RW 1 FLAT "a.vmdk" 0'), /"a\.vmdk" is the descriptor itself/)
  const long = `${'x'.repeat(300)}.vmdk`
  await refuses(dir, 'a.vmdk', lines(`RW 1 FLAT "${long}" 0`), /is no file beside it/)
  // what a file says is quoted as far as it helps
  const cut = /^.{1000,2000}….{0,200}$/
  await refuses(dir, 'a.vmdk', lines(`RW 1 FLAT "${'x'.repeat(99_999)}" 0`), cut)
  await refuses(dir, 'a.vmdk', lines(`RW 1 ${'X'.repeat(99_999)} "a"`), cut)
})

vmdks('reads a descriptor of any text in a moment', async ({ dir }) => {
  const blank = ' '.repeat(900_000)
  for (
    const text of [
      ...['\n'.repeat(900_000), `CID=${blank}x`, `CID = "${blank}`, `CID=${'" '.repeat(400_000)}`],
      ...[`RW 1${blank}x`, `RW 1 FLAT "${blank}x`, `encoding${blank}x`, `CID=x\n`.repeat(100_000)],
    ]
  ) {
    await ends(async () => {
      await refuses(dir, 'a.vmdk', `# Disk DescriptorFile\n${text}`, /names no extents|understood/)
      const image = vmdk(data)
      const [hosted, at] = [Buffer.concat([image, Buffer.alloc(MB)]), image.length]
      hosted.write(text, at)
      hosted.writeBigUInt64LE(BigInt(at / 512), 28)
      hosted.writeBigUInt64LE(2048n, 36)
      await holds(dir, 'a.vmdk', hosted, data)
    })
  }
})

vmdks('takes a footer only where the header says that there is one', async ({ dir }) => {
  const image = vmdk(data, { compressed: true, atEnd: true })
  await holds(dir, 'a.vmdk', image, data)
  await refuses(
    dir,
    'a.vmdk',
    patched(image, 63, [0x7f]),
    /its grain directory of 1 entries is not/,
  )
})

vmdks.run()

const microsoft = suite<Context>('VHD and VHDX')
microsoft.before.each(open)
microsoft.after.each(close)

const make = async (dir: string, format: 'vhd' | 'vhdx', type: 'dynamic' | 'fixed' = 'dynamic') => {
  const from = join(dir, 'source.img')
  await fs.writeFile(from, data)
  const to = join(dir, `made.${format}`)
  const blockSize = format === 'vhdx' ? 2 * MB : undefined
  await convertDisk({ from, to, type, blockSize, seed: 'x' })
  const image = await fs.readFile(to)
  await fs.emptyDir(dir)
  return image
}

microsoft(
  'reads a VHD whose footer is damaged or a byte short by what is left',
  async ({ dir }) => {
    const dynamic = await make(dir, 'vhd')
    await holds(dir, 'a.vhd', patched(dynamic, dynamic.length - 512, [0]), data)
    const to = join(dir, 'b.raw')
    const { warnings } = await convertDisk({ from: join(dir, 'a.vhd'), to })
    match(warnings.join(), /footer of .* is damaged: its copy was used/)
    const fixed = await make(dir, 'vhd', 'fixed')
    await holds(dir, 'a.vhd', fixed.subarray(0, -1), data)
  },
)

microsoft(
  'writes a VHD whose size is exact and whose blocks lie on whole 4 KB',
  async ({ dir }) => {
    const image = await make(dir, 'vhd')
    const footer = image.subarray(-512)
    equal(footer.toString('latin1', 0, 8), 'conectix')
    equal(Number(footer.readBigUInt64BE(48)), data.length)
    equal(footer.toString('latin1', 28, 32), 'win ')
    ok(footer.equals(image.subarray(0, 512)))
    const blocks = [0, 1, 2].map((index) => image.readUInt32BE(3 * 512 + index * 4))
    deepEqual(blocks.map((sector) => (sector * 512 + 512) % 4096), [0, 0, 0])
  },
)

microsoft('reads a VHD with sectors that were never written as zeros', async ({ dir }) => {
  await holds(dir, 'a.vhd', vhd(data), data)
  await holds(dir, 'b.avhd', vhd(data), data)
})

microsoft(
  'tells a VHD that qemu rounded to whole cylinders from one of exact size',
  async ({ dir }) => {
    const size = 17 * 4 * 512 * 150
    const image = patched(vhd(disk(size)), 0, [])
    const footer = image.subarray(-512)
    footer.write('qemu', 28, 'latin1')
    footer.writeUInt16BE(150, 56)
    footer.set([4, 17], 58)
    footer.writeUInt32BE(0, 64)
    footer.writeUInt32BE(~footer.reduce((sum, byte) => sum + byte, 0) >>> 0, 64)
    const from = join(dir, 'a.vhd')
    await fs.writeFile(from, image)
    const { warnings, virtualSize } = await convertDisk({ from, to: join(dir, 'a.img') })
    equal(virtualSize, size)
    match(warnings.join(), /qemu-img rounded the disk up to whole cylinders/)
    await fs.writeFile(from, vhd(disk(size)))
    deepEqual(warned(await convertDisk({ from, to: join(dir, 'b.img') })), [])
  },
)

microsoft('refuses a damaged VHD', async ({ dir }) => {
  const image = await make(dir, 'vhd')
  const cut = image.subarray(0, 3 * MB)
  await refuses(dir, 'a.vhd', cut, /block 1 is not within the file/)
  await refuses(
    dir,
    'a.vhd',
    patched(image, 1536, [0, 0, 0, 1]),
    /where the header or the table is/,
  )
  await refuses(
    dir,
    'a.vhd',
    patched(image, 1540, [...image.subarray(1536, 1540)]),
    /another block/,
  )
  await refuses(dir, 'a.vhd', patched(image, 512, [0]), /its header is damaged/)
  const fixed = await make(dir, 'vhd', 'fixed')
  await refuses(dir, 'a.vhd', fixed.subarray(512), /is not within the file/)
  await refuses(dir, 'a.vhd', fixed.subarray(0, -512), /no signature of a VHD/)
})

microsoft('reads a VHDX by whichever header and region table is whole', async ({ dir }) => {
  const image = await make(dir, 'vhdx')
  await holds(dir, 'a.vhdx', patched(image, 64 * 1024, [0]), data)
  await holds(dir, 'a.vhdx', patched(image, 128 * 1024 + 9, [7]), data)
  await holds(dir, 'a.vhdx', patched(image, 192 * 1024, [0]), data)
  const neither = patched(patched(image, 64 * 1024, [0]), 128 * 1024, [0])
  await refuses(dir, 'a.vhdx', neither, /both its headers are damaged/)
})

microsoft(
  'reads a VHDX with what its log holds, which is not in its place yet',
  async ({ dir }) => {
    const dirty = vhdx(data, { dirty: true })
    const from = join(dir, 'a.vhdx')
    await holds(dir, 'a.vhdx', dirty, data)
    ok((await fs.readFile(from)).equals(dirty), 'the source was written to')
    const { warnings } = await convertDisk({ from, to: join(dir, 'b.img') })
    match(warnings.join(), /a\.vhdx" was not closed in order: what its log holds was read/)
    // its first entry is torn, so that the second, which goes on from it, is of no use
    const torn = patched(dirty, VHDX.log + 100, [1])
    await refuses(dir, 'a.vhdx', torn, /its log holds changes that are damaged/)
    await refuses(dir, 'a.vhdx', dirty.subarray(0, -MB), /cut short: it had/)
  },
)

microsoft('refuses a damaged VHDX', async ({ dir }) => {
  const image = await make(dir, 'vhdx')
  const bat = 3 * MB
  await refuses(dir, 'a.vhdx', image.subarray(0, 5 * MB), /block 0 is not within the file/)
  await refuses(dir, 'a.vhdx', image.subarray(0, 1000), /the file ends within its headers/)
  await refuses(dir, 'a.vhdx', patched(image, bat, [5]), /block 0 is in state 5/)
  await refuses(
    dir,
    'a.vhdx',
    patched(image, bat + 8, [...image.subarray(bat, bat + 8)]),
    /another/,
  )
  await refuses(dir, 'a.vhdx', patched(image, 0, [0]), /no signature of a VHDX/)
  await refuses(dir, 'a.vhdx', patched(image, 2 * MB + 64 * 1024, [1]), /its blocks have/)
})

microsoft('refuses a VHD whose parts lie in each other', async ({ dir }) => {
  const image = vhd(data)
  const sector = (at: number, value: number) => {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32BE(value)
    return patched(image, at, [...bytes])
  }
  const resealed = (image: Buffer, at: number) => {
    const header = image.subarray(at, at + 1024)
    header.writeUInt32BE(0, 36)
    header.writeUInt32BE(~header.reduce((sum, byte) => sum + byte, 0) >>> 0, 36)
    return image
  }
  const last = 2048 + 8
  const block = image.readUInt32BE(last)
  await refuses(dir, 'a.vhd', sector(2048, 0), /block 0 is where the header or the table is/)
  await refuses(dir, 'a.vhd', sector(2048, 1), /block 0 is where the header or the table is/)
  await refuses(dir, 'a.vhd', sector(2048, 4), /block 0 is where the header or the table is/)
  // so far behind that its last sector is where the footer is
  const behind = block + (2 * MB - (data.length - 4 * MB)) / 512 + 1
  await holds(dir, 'a.vhd', image, data)
  await refuses(dir, 'a.vhd', sector(last, behind), /block 2 is not within the file/)
  const table = patched(image, 512 + 23, [0])
  table.writeBigUInt64BE(1024n, 512 + 16)
  await refuses(dir, 'a.vhd', resealed(table, 512), /its table is where its header is/)
})

microsoft('refuses a VHDX whose parts lie in each other', async ({ dir }) => {
  const image = vhdx(data, { blockSize: MB })
  const block = (at: number) => patched(image, VHDX.bat + 2, [(at / MB) << 4])
  await holds(dir, 'a.vhdx', image, data)
  for (const at of [0, VHDX.log, VHDX.metadata, VHDX.bat]) {
    await refuses(dir, 'a.vhdx', block(at), /block 0 is where another block or the header is/)
  }
  const twice = Buffer.from(image)
  for (const at of [192 * 1024, 256 * 1024]) {
    twice.writeBigUInt64LE(BigInt(VHDX.bat), at + 16 + 32 + 16)
    sealed(twice.subarray(at, at + 64 * 1024))
  }
  await refuses(dir, 'a.vhdx', twice, /its region 8b7ca206-[-0-9a-f]+ is where another is/)
  const changed = (sector: number) => sector % 2 === 0
  const written = '99999999-8888-7777-6666-555555555555'
  await fs.writeFile(join(dir, 'base.vhdx'), vhdx(data, { written }))
  const child = vhdx(data, { blockSize: MB, parent: { changed, written, path: '.\\base.vhdx' } })
  await holds(dir, 'a.avhdx', child, data)
  const bitmap = VHDX.bat + 2 ** 23 * 512 / MB * 8 + 2
  const wrong = /the sector bitmap of block 0 is not where one can be/
  await refuses(dir, 'a.avhdx', patched(child, bitmap, [VHDX.bat / MB << 4]), wrong)
  await refuses(dir, 'a.avhdx', patched(child, bitmap, [VHDX.blocks / MB << 4]), wrong)
})

microsoft('reads the metadata of a VHDX in bounded time and memory', async ({ dir }) => {
  const written = '99999999-8888-7777-6666-555555555555'
  await fs.writeFile(join(dir, 'base.vhdx'), vhdx(data, { written }))
  const changed = (sector: number) => sector < 4
  const image = vhdx(data, { parent: { written, path: 'base.vhdx', changed } })
  const locator = VHDX.metadata + 32 + 5 * 32
  // 65535 pairs of keys of 64 KB, all over each other
  const large = patched(image, locator + 20, [0, 0, 14, 0])
  const at = VHDX.metadata + large.readUInt32LE(locator + 16)
  large.writeUInt16LE(0xffff, at + 18)
  for (let index = 0; index < 65535; index++) {
    const entry = at + 20 + index * 12
    large.writeUInt32LE(index * 2, entry)
    large.writeUInt32LE(index * 2, entry + 4)
    large.writeUInt32LE(0xfffefffe, entry + 8)
  }
  await refuses(dir, 'a.vhdx', large, /its parent locator has 65535 entries/)
  const twice = patched(image, VHDX.metadata + 10, [7])
  twice.copy(twice, locator + 32, locator, locator + 32)
  await refuses(dir, 'a.vhdx', twice, /its metadata item a8d35f2d-[-0-9a-f]+ occurs twice/)
  const log = (length: number) => {
    const dirty = vhdx(data, { dirty: true })
    for (const at of [64 * 1024, 128 * 1024]) {
      dirty.writeUInt32LE(length, at + 68)
      sealed(dirty.subarray(at, at + 4096))
    }
    return dirty
  }
  await refuses(dir, 'a.vhdx', log(9 * MB), /its log has 9437184 bytes, which no log has/)
  // a disk of 64 TB, and a log that has its table behind the end of the file
  const far = vhdx(data, { dirty: true, blockSize: MB })
  for (const at of [192 * 1024, 256 * 1024]) {
    far.writeBigUInt64LE(BigInt(64 * MB), at + 16 + 16)
    far.writeUInt32LE(1024 * MB, at + 16 + 24)
    sealed(far.subarray(at, at + 64 * 1024))
  }
  far.writeBigUInt64LE(2n ** 46n, VHDX.metadata + 64 * 1024 + 8)
  // its last entry, of two sectors
  const last = far.subarray(VHDX.log + 4096, VHDX.log + 3 * 4096)
  last.writeBigUInt64LE(2n ** 45n, 56)
  sealed(last)
  await ends(() =>
    refuses(dir, 'a.vhdx', far, /its region 2dc27766-[-0-9a-f]+ is not within the file/)
  )
  const beyond = vhdx(data, { dirty: true })
  const change = beyond.subarray(VHDX.log + 4096, VHDX.log + 3 * 4096)
  change.writeBigUInt64LE(2n ** 63n, 64 + 16)
  sealed(change)
  await refuses(dir, 'a.vhdx', beyond, /its log changes bytes that no file has/)
  const ranges = 30_000
  const entry = Buffer.alloc(Math.ceil((64 + ranges * 32) / 4096) * 4096)
  const dirty = vhdx(data, { dirty: true })
  entry.write('loge')
  entry.writeUInt32LE(entry.length, 8)
  entry.writeBigUInt64LE(99n, 16)
  entry.writeUInt32LE(ranges, 24)
  dirty.copy(entry, 32, 64 * 1024 + 48, 64 * 1024 + 64)
  for (let at = 64; at < 64 + ranges * 32; at += 32) {
    entry.write('zero', at)
    entry.writeBigUInt64LE(4096n, at + 8)
    entry.writeBigUInt64LE(BigInt(at * 4096), at + 16)
    entry.writeBigUInt64LE(99n, at + 24)
  }
  sealed(entry).copy(dirty, VHDX.log)
  await refuses(dir, 'a.vhdx', dirty, /its log has 30000 ranges of zeros/)
})

microsoft.run()

const exports = suite<Context>('an OVA or OVF')
exports.before.each(open)
exports.after.each(close)

exports('that is damaged is refused in words of this kit', async ({ dir }) => {
  const whole = ovf('a.vmdk')
  const envelope = (inside: string) => `<?xml version="1.0"?><Envelope>${inside}</Envelope>`
  const bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">' +
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">]>'
  for (
    const broken of [
      ...[whole.slice(0, 50), whole.slice(0, -20) + '\0</', `${whole.slice(0, 99)}\u001b[31m<`],
      envelope('\0').padEnd(3 * MB),
    ]
  ) {
    const reason = /its XML is damaged|it has \d+ bytes, which no such text has/
    await refuses(dir, 'a.ovf', broken, reason)
    await refuses(dir, 'a.ova', tar([{ name: 'a.ovf', data: broken }]), reason)
  }
  const from = join(dir, 'a.ovf')
  for (const inside of ['<a>'.repeat(100_000), '<a>&d;&d;&d;</a>'.repeat(10_000)]) {
    await fs.writeFile(from, bomb + envelope(inside))
    const memory = process.memoryUsage().rss
    await ends(async () => {
      const reason =
        /^Cannot read "[^"]+": (its XML is damaged|it has no disk)\. Export the VM again/
      await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), { message: reason })
    })
    ok(process.memoryUsage().rss - memory < 200 * MB)
  }
  await refuses(dir, 'a.ovf', whole.replace('ovf:href="a.vmdk"', ''), /its file "f0" has no name/)
  const unnamed = tar([{ name: 'a.vmdk', data: 'x', type: '\n' }])
  await refuses(dir, 'a.ova', unnamed, /"a\.vmdk" is no plain file \(type \\u000a\)/)
})

exports('has no disk where neither disk nor file is named', async ({ dir }) => {
  const from = join(dir, 'a.ovf')
  const none =
    '<Envelope><References><File/></References><DiskSection><Disk/></DiskSection></Envelope>'
  await fs.writeFile(from, none)
  await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), /it has no disk/)
  // as many of each as fit in
  const many = none.replace('<File/>', '<File/>'.repeat(60_000))
    .replace('<Disk/>', '<Disk fileRef="x"/>'.repeat(20_000))
  await fs.writeFile(from, many)
  await ends(() => rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), /it has no disk/))
})

exports('inflates no more than its disk has', async ({ dir }) => {
  const bomb = gzipSync(Buffer.alloc(80 * MB))
  const text = ovf('a.vdi').replace('<File ', '<File ovf:compression="gzip" ')
  const sized = (capacity: string) => text.replace('<Disk ', `<Disk ovf:capacity="${capacity}" `)
  const made = (text: string, data: Buffer) =>
    tar([{ name: 'a.ovf', data: text }, { name: 'a.vdi', data }])
  await holds(dir, 'a.ova', made(sized(`${data.length}`), gzipSync(vdi(data))), data)
  await refuses(dir, 'a.ova', made(sized(`${MB}`), bomb), /it inflates to more than/)
  const unknown = /its disk "a\.vdi" is compressed, and how large it is is not said/
  await refuses(dir, 'a.ova', made(text, bomb), unknown)
  for (const size of ['-1', '1e400', 'x', '9'.repeat(20)]) {
    await refuses(dir, 'a.ova', made(sized(size), bomb), unknown)
  }
})

exports('in thousands of chunks is looked up in its manifest in a moment', async ({ dir }) => {
  const count = 4000
  const image = vmdk(disk(4 * MB))
  const size = Math.ceil(image.length / count)
  const chunks = Array.from({ length: count }, (_, index) => ({
    name: `a.vmdk.${String(index).padStart(9, '0')}`,
    data: image.subarray(index * size, (index + 1) * size),
  })).filter(({ data }) => data.length > 0)
  const attributes = `ovf:chunkSize="${size}" ovf:size="${image.length}"`
  const text = ovf('a.vmdk').replace('<File ', `<File ${attributes} `)
  const entries = [{ name: 'a.ovf', data: text }, ...chunks]
  const lines = manifest('SHA256', entries)
  await ends(() =>
    holds(dir, 'a.ova', tar([...entries, { name: 'a.mf', data: lines }]), disk(4 * MB))
  )
  const other = lines.replace(/[0-9a-f]{64}\n$/, `${'0'.repeat(64)}\n`)
  const from = join(dir, 'a.ova')
  await fs.writeFile(from, tar([...entries, { name: 'a.mf', data: other }]))
  await rejects(convertDisk({ from, to: join(dir, 'b.img') }), /the manifest says 0{64}/)
})

exports('may tell members apart by case alone', async ({ dir }) => {
  const from = join(dir, 'a.ova')
  const [lower, upper] = [disk(MB, 1), disk(MB, 2)]
  const entries = [{ name: 'a.vmdk', data: vmdk(lower) }, { name: 'A.vmdk', data: vmdk(upper) }]
  await fs.writeFile(from, tar([{ name: 'a.ovf', data: ovf('A.vmdk', 'a.vmdk') }, ...entries]))
  for (const [name, data] of [['a.vmdk', lower], ['A.vmdk', upper]] as const) {
    const to = join(dir, 'a.img')
    await convertDisk({ from, disk: name, to, force: true })
    ok((await fs.readFile(to)).equals(data))
  }
})

exports('whose tar has sizes that are none is refused', async ({ dir }) => {
  const image = vmdk(disk(MB))
  const sized = (size: Buffer) => {
    const archive = tar([{ name: 'a.vmdk', data: image }])
    size.copy(archive, 124)
    archive.fill(' ', 148, 156)
    const sum = archive.subarray(0, 512).reduce((sum, byte) => sum + byte, 0)
    archive.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    return archive
  }
  const base256 = (...bytes: number[]) =>
    Buffer.concat([Buffer.from(bytes), Buffer.alloc(12)])
      .subarray(0, 12)
  const size = base256(0x80)
  size.writeBigUInt64BE(BigInt(image.length), 4)
  await holds(dir, 'a.ova', sized(size), disk(MB))
  const reason = /a member is not within the archive/
  size[3] = 1
  await refuses(dir, 'a.ova', sized(size), reason)
  await refuses(dir, 'a.ova', sized(Buffer.alloc(12, 0xff)), reason)
  await refuses(dir, 'a.ova', sized(Buffer.from('-0000000001\0')), reason)
  await refuses(dir, 'a.ova', sized(Buffer.from('77777777777\0')), reason)
  const pax = (...records: string[]) => {
    const data = records.map((record) => `${record.length + 4} ${record}\n`).join('')
    return tar([{ name: 'x', data, type: 'x' }, { name: 'a.vmdk', data: image }])
  }
  await holds(dir, 'a.ova', pax(`size=00${image.length}`), disk(MB))
  await refuses(dir, 'a.ova', pax(`size=0x${image.length.toString(16)}`), reason)
  await refuses(dir, 'a.ova', pax('size=-00000512'), reason)
  const many = Array<string>(100_000).fill('a=123456')
  await refuses(dir, 'a.ova', pax(...many), /an extended header has \d+ bytes/)
  await holds(dir, 'a.ova', pax(...many.slice(0, 70_000)), disk(MB))
})

exports.run()

const damage = suite<Context>('damaged images')
damage.before.each(open)
damage.after.each(close)

// npx node test/fuzz/convert-disk.ts runs more of them, and one of them alone
damage(
  'are refused in one sentence, or read as they should be, and always soon, with nothing left behind',
  async () => {
    const { counts, failures } = await fuzz({ seed: 20261123, cases: 240 })
    deepEqual(failures, [])
    deepEqual(Object.keys(counts).sort(), ['ova', 'raw', 'vdi', 'vhd', 'vhdx', 'vmdk'])
    for (const { read, refused } of Object.values(counts)) ok(read + refused > 5)
    ok(Object.values(counts).reduce((sum, { refused }) => sum + refused, 0) > 100)
  },
)

damage('of 64 TB in a few KB cost neither time nor memory', async ({ dir }) => {
  const image = vmdk(Buffer.alloc(64 * 1024, 1))
  image.writeBigUInt64LE(2n ** 37n, 12) // 64 TB
  await refuses(dir, 'a.vmdk', image, /its grain directory of \d+ entries is not within the file/)
  const large = vdi(Buffer.alloc(MB, 1))
  large.writeBigUInt64LE(2n ** 46n, 0x170)
  large.writeUInt32LE(2 ** 26, 0x180)
  await refuses(dir, 'a.vdi', large, /its block map of 67108864 entries is not within the file/)
})

damage.run()

const large = suite<Context>('a disk of 2 TB with little in it')
large.before.each(open)
large.after.each(close)

large('converts in the time and memory of what is in it', async ({ dir }) => {
  const size = 2 * 1024 ** 4
  const blocks = size / MB
  const image = Buffer.alloc(2 * MB + blocks * 4 + 2 * MB, 0)
  vdi(Buffer.alloc(MB, 1)).copy(image, 0, 0, MB)
  const offData = MB + blocks * 4
  image.writeUInt32LE(offData, 0x158)
  image.writeBigUInt64LE(BigInt(size), 0x170)
  image.writeUInt32LE(blocks, 0x180)
  image.fill(0xff, MB, offData)
  image.writeUInt32LE(0, MB + 4 * 7)
  image.writeUInt32LE(1, MB + 4 * (blocks - 1))
  image.fill('a', offData, offData + MB)
  image.fill('z', offData + MB, offData + 2 * MB)
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, image)
  const before = process.memoryUsage().rss
  for (const format of ['vhdx', 'vdi'] as const) {
    await ends(async () => {
      const to = join(dir, `b.${format}`)
      const { fileSize } = await convertDisk({ from, to, verify: true })
      ok(fileSize < 40 * MB, `${fileSize}`)
    })
  }
  ok(process.memoryUsage().rss - before < 200 * MB)
})

large('is surveyed in little memory, however its grains of one sector lie', async ({ dir }) => {
  const tables = 16
  const sectors = tables * 4096
  const image = Buffer.alloc(8 * 512 + tables * 4096 * 4)
  vmfsSparse(Buffer.alloc(0)).copy(image, 0, 0, 512)
  image.writeUInt32LE(sectors, 12)
  for (let table = 0; table < tables; table++) {
    image.writeUInt32LE(8 + table * 32, 4 * 512 + table * 4)
    for (let entry = 0; entry < 4096; entry++) {
      // 16 MB from one to the next
      const grain = (table * 4096 + entry + 1) * 32768
      image.writeUInt32LE(grain, 8 * 512 + table * 16384 + entry * 4)
    }
  }
  await fs.writeFile(join(dir, 'a-delta.vmdk'), image)
  await fs.truncate(join(dir, 'a-delta.vmdk'), (sectors + 1) * 32768 * 512)
  const from = join(dir, 'a.vmdk')
  await fs.writeFile(from, `# Disk DescriptorFile\nRW ${sectors} VMFSSPARSE "a-delta.vmdk"\n`)
  const before = process.memoryUsage().rss
  const [found] = await inspectDisk({ from })
  equal(found?.allocatedSize, sectors * 512)
  ok(process.memoryUsage().rss - before < 200 * MB)
})

large.run()
