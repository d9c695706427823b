/** Good images of every format and variant, small, and where in them the fields of the formats are. */
import { gzipSync } from 'node:zlib'
import {
  disk,
  gptDisk,
  manifest,
  MB,
  NO_UUID,
  ovf,
  tar,
  vdi,
  vhd,
  VHDX,
  vhdx,
  vmdk,
  vmfsSparse,
} from '../../tasks/convert-disk/images.ts'
import { crcOf } from './reference.ts'

/** A place in a file that a mutation may write to. */
export interface Field {
  at: number
  /** Bytes: a number of 1 to 8, an identifier of 16, or a text of any length. */
  length: number
  kind: 'little' | 'big' | 'bytes' | 'text' | 'octal' | 'bat'
}

export interface Base {
  format: 'vdi' | 'vmdk' | 'vhd' | 'vhdx' | 'raw' | 'ova'
  variant: string
  /** By name; the first is the one that is named to the kit. */
  files: Record<string, Buffer>
  /** Puts the files into one archive, of that name, or leaves them beside each other. */
  archive?: string
}

const SECTOR = 512
const BLOCK = 64 * 1024
/** No whole number of blocks, with a piece less than a block at the end. */
const SIZE = 9 * BLOCK + 3 * SECTOR
const data = disk(SIZE, 9)
const changed = (sector: number) => sector % 3 === 1

/** `over` where a sector is changed, and `under` elsewhere. */
function mixed(under: Buffer, over: Buffer): Buffer {
  const result = Buffer.from(under)
  for (let sector = 0; sector * SECTOR < result.length; sector++) {
    if (changed(sector)) over.copy(result, sector * SECTOR, sector * SECTOR, (sector + 1) * SECTOR)
  }
  return result
}

const id = (digit: number) => `aaaaaaaa-0000-0000-0000-00000000000${digit}`
const state = (digit: number) => `bbbbbbbb-0000-0000-0000-00000000000${digit}`

/** A child of a child: its blocks are in three files. */
function vdiChain(version: number): Record<string, Buffer> {
  const [one, two] = [Buffer.from(data), Buffer.from(data)]
  one.fill('one', BLOCK, 2 * BLOCK).fill(0, 3 * BLOCK, 4 * BLOCK)
  one.copy(two).toString()
  two.fill('two', 4 * BLOCK, 5 * BLOCK)
  const modified = (digit: number) => version === 1 ? NO_UUID : state(digit)
  const make = (digit: number, of: Buffer, under?: Buffer) =>
    vdi(of, {
      version,
      blockSize: BLOCK,
      uuid: id(digit),
      modified: modified(digit),
      ...(under && { parent: { uuid: id(digit - 1), modified: modified(digit - 1), data: under } }),
    })
  return { 'two.vdi': make(3, two, one), 'one.vdi': make(2, one, data), 'base.vdi': make(1, data) }
}

function fixedVhd(): Buffer {
  const footer = Buffer.from(vhd(data).subarray(-SECTOR))
  footer.fill(0xff, 16, 24).writeUInt32BE(2, 60)
  return seal(Buffer.concat([data, footer]))
}

function descriptor(...lines: string[]): Buffer {
  return Buffer.from(['# Disk DescriptorFile', 'version=1', ...lines, ''].join('\n'))
}

function vmdkExtents(): Record<string, Buffer> {
  const flat = disk(2 * BLOCK, 5)
  return {
    'a.vmdk': descriptor(
      'CID=abcd0001',
      'parentCID=ffffffff',
      'createType="custom"',
      `RW ${SIZE / SECTOR} SPARSE "a-s001.vmdk"`,
      'RW 128 ZERO',
      `RW ${flat.length / SECTOR} FLAT "a-f002.vmdk" 2`,
    ),
    'a-s001.vmdk': vmdk(data),
    'a-f002.vmdk': Buffer.concat([Buffer.alloc(1024), flat]),
  }
}

function vmdkDelta(compressed: boolean): Record<string, Buffer> {
  return {
    'a.vmdk': descriptor(
      'CID=abcd0002',
      'parentCID=abcd0001',
      'createType="vmfsSparse"',
      'parentFileNameHint="base.vmdk"',
      `RW ${SIZE / SECTOR} VMFSSPARSE "a-delta.vmdk"`,
    ),
    'a-delta.vmdk': vmfsSparse(disk(SIZE, 7), changed),
    'base.vmdk': vmdk(data, { compressed, cid: 'abcd0001' }),
  }
}

function ovfOf(file: string, attributes: string): string {
  return ovf(file).replace('<File ', `<File ${attributes} `)
    .replace('<Disk ', `<Disk ovf:capacity="${SIZE}" `)
}

function package_(name: string, text: string, files: Record<string, Buffer>) {
  const all: Record<string, Buffer> = { [`${name}.ovf`]: Buffer.from(text), ...files }
  return { ...all, [`${name}.mf`]: manifestOf(all) }
}

/** The manifest of all files but itself. */
export function manifestOf(files: Record<string, Buffer>): Buffer {
  const listed = Object.entries(files).filter(([name]) => !/\.mf$/.test(name))
  return Buffer.from(manifest('SHA256', listed.map(([name, data]) => ({ name, data }))))
}

/** All bases, made when they are first wanted. */
export function makeBases(): Base[] {
  const stream = vmdk(data, { compressed: true, atEnd: true })
  const two = disk(2 * MB - 5 * SECTOR, 4)
  const vhdxParent = '99999999-8888-7777-6666-555555555555'
  const gpt = gptDisk('c12a7328-f81f-11d2-ba4b-00a0c93ec93b').subarray(0, 40 * SECTOR)
  const half = Math.ceil(stream.length / 2)
  const chunked = {
    'd.vmdk.000000000': stream.subarray(0, half),
    'd.vmdk.000000001': stream.subarray(half),
  }
  const zipped = gzipSync(vdi(data, { blockSize: BLOCK }))
  const large = (sectorSize: 512 | 4096) =>
    sectorSize === 512 ? two : Buffer.concat([two, Buffer.alloc(5 * SECTOR)])
  const vhdxChild = (sectorSize: 512 | 4096) => ({
    'a.avhdx': vhdx(mixed(large(sectorSize), disk(large(sectorSize).length, 6)), {
      ...{ sectorSize, blockSize: MB },
      parent: { written: vhdxParent, path: '.\\base.vhdx', changed },
    }),
    'base.vhdx': vhdx(large(sectorSize), { sectorSize, written: vhdxParent, blockSize: MB }),
  })
  const small = { blockSize: BLOCK }
  const parent = { id: id(1), path: '.\\base.vhd', changed }
  const bases: [Base['format'], string, Record<string, Buffer>, archive?: string][] = [
    ['vdi', 'dynamic', { 'a.vdi': vdi(data, { ...small, reversed: true }) }],
    ['vdi', 'fixed', { 'a.vdi': vdi(data, { ...small, type: 2 }) }],
    ['vdi', 'version 1.0', { 'a.vdi': vdi(data, { ...small, version: 0x10000 }) }],
    ['vdi', 'version 0.1', { 'a.vdi': vdi(data, { ...small, version: 1 }) }],
    ['vdi', 'differencing', vdiChain(0x10001)],
    ['vdi', 'differencing of version 0.1', vdiChain(1)],
    ['vmdk', 'monolithicSparse', { 'a.vmdk': vmdk(data) }],
    ['vmdk', 'monolithicSparse with zeroed grains', { 'a.vmdk': vmdk(data, { zeroed: true }) }],
    ['vmdk', 'streamOptimized', { 'a.vmdk': vmdk(data, { compressed: true }) }],
    ['vmdk', 'streamOptimized with footer', { 'a.vmdk': stream }],
    ['vmdk', 'extents', vmdkExtents()],
    ['vmdk', 'delta', vmdkDelta(false)],
    ['vmdk', 'delta on streamOptimized', vmdkDelta(true)],
    ['vhd', 'dynamic', { 'a.vhd': vhd(data, small) }],
    ['vhd', 'fixed', { 'a.vhd': fixedVhd() }],
    ['vhd', 'differencing', {
      'a.vhd': vhd(disk(SIZE, 7), { ...small, parent }),
      'base.vhd': vhd(data, { ...small, id: id(1) }),
    }],
    ['vhdx', 'dynamic', { 'a.vhdx': vhdx(large(512), { blockSize: MB }) }],
    ['vhdx', '4096', { 'a.vhdx': vhdx(large(4096), { sectorSize: 4096, blockSize: MB }) }],
    ['vhdx', 'dirty', { 'a.vhdx': vhdx(large(512), { dirty: true, blockSize: MB }) }],
    ['vhdx', 'differencing', vhdxChild(512)],
    ['vhdx', 'differencing 4096', vhdxChild(4096)],
    ['raw', 'mbr', { 'a.img': data }],
    ['raw', 'gpt', { 'a.img': gpt }],
    ['ova', 'one disk', package_('a', ovf('d.vmdk'), { 'd.vmdk': stream }), 'a.ova'],
    [
      'ova',
      'chunks',
      package_(
        'a',
        ovfOf('d.vmdk', `ovf:chunkSize="${half}" ovf:size="${stream.length}"`),
        chunked,
      ),
      'a.ova',
    ],
    [
      'ova',
      'gzip',
      package_('a', ovfOf('d.vdi', 'ovf:compression="gzip"'), { 'd.vdi': zipped }),
      'a.ova',
    ],
    ['ova', 'without OVF', vdiChain(0x10001), 'a.ova'],
    [
      'ova',
      'two disks',
      package_('a', ovf('d.vmdk', 'e.vhd'), {
        'd.vmdk': vmdk(data),
        'e.vhd': vhd(data, small),
      }),
      'a.ova',
    ],
    ['ova', 'OVF', package_('a', ovf('d.vmdk'), { 'd.vmdk': stream })],
  ]
  return bases.map(([format, variant, files, archive]) => ({
    format,
    variant,
    files,
    ...(archive !== undefined && { archive }),
  }))
}

export function packed({ archive }: Base, files: Record<string, Buffer>): Record<string, Buffer> {
  if (archive === undefined) return files
  return { [archive]: tar(Object.entries(files).map(([name, data]) => ({ name, data }))) }
}

/** The checksums of the format made right again, wherever a builder puts them. */
export function seal(file: Buffer): Buffer {
  if (file.toString('latin1', 0, 8) === 'vhdxfile') {
    const crc = (at: number, length: number) => {
      if (at + length > file.length) return
      file.writeUInt32LE(crcOf(file.subarray(at, at + length)), at + 4)
    }
    for (const at of [64, 128]) crc(at * 1024, 4096)
    for (const at of [192, 256]) crc(at * 1024, 64 * 1024)
    for (const at of logEntries(file)) sealLogEntry(file, at)
    return file
  }
  const sum = (at: number, length: number, checksum: number, cookie: string) => {
    const data = file.subarray(at, at + length)
    if (at < 0 || data.length < length || data.toString('latin1', 0, 8) !== cookie) return
    data.writeUInt32BE(0, checksum)
    data.writeUInt32BE(~data.reduce((sum, byte) => sum + byte, 0) >>> 0, checksum)
  }
  sum(0, SECTOR, 64, 'conectix')
  sum(file.length - SECTOR, SECTOR, 64, 'conectix')
  sum(SECTOR, 2 * SECTOR, 36, 'cxsparse')
  return file
}

/** An entry may go round the end of the log. */
function sealLogEntry(file: Buffer, at: number): void {
  const ring = file.subarray(VHDX.log, VHDX.log + MB)
  const length = Math.min(file.readUInt32LE(at + 8), MB)
  const start = at - VHDX.log
  const data = Buffer.concat([ring.subarray(start), ring]).subarray(0, length)
  if (data.length >= 8) file.writeUInt32LE(crcOf(data), at + 4)
}

function logEntries(file: Buffer): number[] {
  const found: number[] = []
  for (let at = VHDX.log; at < VHDX.log + MB && at + 64 <= file.length; at += 4096) {
    if (file.toString('latin1', at, at + 4) === 'loge') found.push(at)
  }
  return found
}

/** A tar's headers, with their sums made right again. */
export function sealTar(file: Buffer): void {
  for (const at of tarHeaders(file)) {
    file.fill(' ', at + 148, at + 156)
    const sum = file.subarray(at, at + SECTOR).reduce((sum, byte) => sum + byte, 0)
    file.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148)
  }
}

function tarHeaders(file: Buffer): number[] {
  const found: number[] = []
  for (let at = 0; at + SECTOR <= file.length; at += SECTOR) {
    if (file.toString('latin1', at + 257, at + 262) === 'ustar') found.push(at)
  }
  return found
}

const little = (at: number, ...lengths: number[]) => row('little', at, lengths)
const big = (at: number, ...lengths: number[]) => row('big', at, lengths)

/** Fields that follow each other; a negative length is a gap. */
function row(kind: Field['kind'], at: number, lengths: number[]): Field[] {
  const fields: Field[] = []
  for (const length of lengths) {
    if (length > 0) fields.push({ at, length, kind: length > 8 ? 'bytes' : kind })
    at += Math.abs(length)
  }
  return fields
}

const array = (kind: Field['kind'], at: number, length: number, count: number): Field[] =>
  Array.from({ length: count }, (_, index) => ({ at: at + index * length, length, kind }))

/** The fields of a file, by what it is: headers and tables that {@link makeBases} has laid. */
export function fieldsOf(file: Buffer): Field[] {
  const magic = file.toString('latin1', 0, 4)
  if (file.length > 0x200 && file.readUInt32LE(0x40) === 0xbeda107f) return vdiFields(file)
  if (magic === 'KDMV') return vmdkFields(file)
  if (magic === 'COWD') {
    return [
      ...little(4, 4, -4, 4, 4, 4),
      ...array('little', 2048, 4, 2),
      ...array(
        'little',
        4096,
        4,
        300,
      ),
    ]
  }
  if (magic === 'vhdx') return vhdxFields(file)
  if (file.toString('latin1', 257, 262) === 'ustar') {
    return tarHeaders(file).flatMap((at): Field[] => [
      { at, length: 100, kind: 'text' },
      { at: at + 124, length: 12, kind: 'octal' },
      { at: at + 156, length: 1, kind: 'bytes' },
      { at: at + 257, length: 6, kind: 'bytes' },
      { at: at + 345, length: 155, kind: 'text' },
    ])
  }
  const end = file.length - SECTOR
  if (end > 0 && file.toString('latin1', end, end + 8) === 'conectix') return vhdFields(file)
  const isText = !file.subarray(0, 1024).includes(0)
  if (isText) return [{ at: 0, length: file.length, kind: 'text' }]
  // the partition tables of a disk
  return [...array('little', 446, 1, 66), ...little(512, 8, 4, 4, 4, -4, 8, 8, 8, 8, 16, 8, 4, 4)]
    .concat(little(1024, 16, 16, 8, 8))
}

function vdiFields(file: Buffer): Field[] {
  const old = file.readUInt32LE(0x44) === 1
  const [map, count] = old
    ? [0x1a4, file.readUInt32LE(0x16c)]
    : [file.readUInt32LE(0x154), file.readUInt32LE(0x180)]
  const entries = array('little', map, 4, Math.min(count, 64))
  return old
    ? [...little(0x40, 4, 4, 4, 4), ...little(0x160, 8, 4, 4, 4, 16, 16, 16), ...entries]
    : [
      ...little(0x40, 4, 4, 4, 4, 4),
      ...little(0x154, 4, 4),
      ...little(0x170, 8, 4, 4, 4, 4, 16, 16, 16, 16),
      ...entries,
    ]
}

function vmdkFields(file: Buffer): Field[] {
  const header = (at: number) => little(at, 4, 4, 4, 8, 8, 8, 8, 4, 8, 8, 8, 1, -4, 2)
  const text: Field = { at: SECTOR, length: 20 * SECTOR, kind: 'text' }
  const atEnd = file.readBigUInt64LE(56) === 0xffffffffffffffffn
  // the first chunk of several
  if (atEnd && file.toString('latin1', file.length - 1024, file.length - 1020) !== 'KDMV') {
    return [...header(0), text]
  }
  const directory = Number(file.readBigUInt64LE(atEnd ? file.length - 1024 + 56 : 56)) * SECTOR
  const table = file.readUInt32LE(directory) * SECTOR
  const compressed = (file.readUInt32LE(8) & 0x10000) !== 0
  const markers = Array.from({ length: 16 }, (_, index) => file.readUInt32LE(table + index * 4))
    .filter((entry) => compressed && entry > 1)
    .flatMap((entry) => little(entry * SECTOR, 8, 4, 1, 1))
  return [
    ...header(0),
    ...(atEnd ? header(file.length - 1024) : []),
    text,
    ...array('little', directory, 4, 2),
    ...array('little', table, 4, 14),
    ...markers,
  ]
}

function vhdFields(file: Buffer): Field[] {
  const footer = (at: number) => [
    ...big(at + 8, 4, 4, 8, 4, 4, 4, 4, 8, 8, 2, 1, 1, 4, 4, 16),
    // who made it decides which size is meant
    { at: at + 28, length: 4, kind: 'bytes' as const },
  ]
  const last = footer(file.length - SECTOR)
  if (file.toString('latin1', 0, 8) !== 'conectix') return last
  const locators = Array.from({ length: 8 }, (_, index) => 576 + index * 24)
  return [
    ...footer(0),
    ...last,
    ...big(SECTOR + 8, 8, 8, 4, 4, 4, 4, 16),
    ...locators.slice(0, 2).flatMap((at) => big(SECTOR + at, 4, 4, 4, -4, 8)),
    { at: SECTOR + 64, length: 512, kind: 'bytes' },
    { at: 1536, length: 64, kind: 'bytes' },
    ...array('big', 2048, 4, 12),
    ...array('big', 2560, 8, 3),
  ]
}

function vhdxFields(file: Buffer): Field[] {
  const kb = 1024
  const header = (at: number) => little(at, 4, 4, 8, 16, 16, 16, 2, 2, 4, 8)
  const region = (at: number) => little(at, 4, 4, 4, -4, 16, 8, 4, 4, 16, 8, 4, 4)
  const items = file.readUInt16LE(VHDX.metadata + 10)
  const entries = Array.from(
    { length: items + 1 },
    (_, index) => little(VHDX.metadata + 32 + index * 32, 16, 4, 4, 4),
  )
  const values = Array.from({ length: items }, (_, index) => {
    const entry = VHDX.metadata + 32 + index * 32
    const at = VHDX.metadata + file.readUInt32LE(entry + 16)
    const length = file.readUInt32LE(entry + 20)
    return length > 16
      ? little(at, 16, -2, 2, 4, 4, 2, 2, 4, 4, 2, 2)
      : little(at, ...split(length))
  })
  const log = logEntries(file).flatMap((at) => [
    ...little(at, 4, 4, 4, 4, 8, 4, -4, 16, 8, 8),
    ...little(at + 64, 4, 4, 8, 8, 8, 4, 4, 8, 8, 8),
  ])
  return [
    ...header(64 * kb),
    ...header(128 * kb),
    ...region(192 * kb),
    ...region(256 * kb),
    ...little(VHDX.metadata + 8, 2, 2),
    ...entries.flat(),
    ...values.flat(),
    ...log,
    ...array('bat', VHDX.bat, 8, 4),
    ...array('bat', VHDX.bat + 2 ** 23 * 512 / MB * 8, 8, 1),
    ...array('bat', VHDX.bat + 2 ** 23 * 4096 / MB * 8, 8, 1),
    ...array('bytes', VHDX.bitmap, 16, 4),
  ]
}

/** The parts of a metadata item. */
function split(length: number): number[] {
  return length === 8 ? [4, 4] : [length]
}
