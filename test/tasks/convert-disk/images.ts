/** Small disk images for tests, laid byte by byte, so that readers are not tested by the kit's own writers. */
import { createHash } from 'node:crypto'
import { deflateSync } from 'node:zlib'

export const MB = 1024 ** 2

/** Numbers from 0 to 1 that a seed fixes (mulberry32). */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A disk with boot code, one active partition, and data here and there; `size` need be no whole MB. */
export function disk(size: number, seed = 1): Buffer {
  const data = Buffer.alloc(size)
  const next = random(seed)
  for (let at = 0; at < size; at += 64 * 1024) {
    const kind = next()
    if (kind < 0.5) continue
    const end = Math.min(size, at + 64 * 1024)
    if (kind < 0.75) data.fill(`sector ${at} of seed ${seed}. `, at, end)
    else for (let byte = at; byte + 4 <= end; byte += 4) data.writeUInt32LE(next() * 2 ** 32, byte)
  }
  data.fill(0, 0, 512)
  data.write('boot code', 0)
  data[446] = 0x80
  data[450] = 0x83
  data.writeUInt32LE(128, 454)
  data.writeUInt32LE(Math.floor(size / 512) - 128, 458)
  data.writeUInt16LE(0xaa55, 510)
  return data
}

/** A GPT disk of 4 MB with partitions of the given types. */
export function gptDisk(...types: string[]): Buffer {
  const data = Buffer.alloc(4 * MB)
  data[450] = 0xee
  data.writeUInt16LE(0xaa55, 510)
  data.write('EFI PART', 512)
  data.writeBigUInt64LE(2n, 512 + 72)
  data.writeUInt32LE(128, 512 + 80)
  data.writeUInt32LE(128, 512 + 84)
  types.forEach((type, index) => {
    const at = 1024 + index * 128
    const [a = '', b = '', c = '', d = '', e = ''] = type.split('-')
    const reverse = (hex: string) => Buffer.from(hex, 'hex').reverse()
    const bytes = [reverse(a), reverse(b), reverse(c), Buffer.from(d + e, 'hex')]
    Buffer.concat(bytes).copy(data, at)
    data.writeBigUInt64LE(BigInt(2048 + index * 1024), at + 32)
    data.writeBigUInt64LE(BigInt(2048 + index * 1024 + 1023), at + 40)
  })
  return data
}

export interface VdiOptions {
  /** 1 dynamic, 2 fixed, 4 differencing. */
  type?: number
  reversed?: boolean
  /** 0x10001, 0x10000, or 1, whose header is shorter. */
  version?: number
  uuid?: string
  /** Changes with the data. */
  modified?: string
  /** Of a differencing image, the parent's two identifiers, and what the parent holds. */
  parent?: { uuid: string; modified: string; data: Buffer }
  /** Bytes. @default 1 MB */
  blockSize?: number
}

export const NO_UUID = '00000000-0000-0000-0000-000000000000'

/** A GUID as Microsoft and VirtualBox store it. */
export function guid(text: string): Buffer {
  const [a = '', b = '', c = '', ...rest] = text.split('-')
  const reverse = (hex: string) => Buffer.from(hex, 'hex').reverse()
  return Buffer.concat([reverse(a), reverse(b), reverse(c), Buffer.from(rest.join(''), 'hex')])
}

/**
 * A VDI. Zero blocks have no place, every other of them as discarded ones; a
 * differencing image has those that differ from its parent.
 */
export function vdi(data: Buffer, options: VdiOptions = {}): Buffer {
  const { reversed = false, version = 0x10001, parent, blockSize = MB } = options
  const {
    uuid = '33323130-3534-3736-3839-616263646566',
    modified = '62646566-3938-3736-3534-333231306665',
  } = options
  const type = options.type ?? (parent ? 4 : 1)
  const count = Math.ceil(data.length / blockSize)
  const all = Array.from({ length: count }, (_, block) => block)
  const part = (of: Buffer, block: number) =>
    of.subarray(block * blockSize, (block + 1) * blockSize)
  const used = all.filter((block) =>
    type === 2 ||
    !isZero(part(data, block)) && !(parent && part(data, block).equals(part(parent.data, block)))
  )
  if (reversed) used.reverse()
  const old = version < 0x10000
  const offBlocks = old ? 0x1a4 : blockSize
  const offData = old ? offBlocks + count * 4 : 2 * blockSize
  const image = Buffer.alloc(offData + used.length * blockSize)
  image.write('<<< Oracle VM VirtualBox Disk Image >>>\n')
  image.writeUInt32LE(0xbeda107f, 0x40)
  image.writeUInt32LE(version, 0x44)
  const link = Buffer.concat([guid(parent?.uuid ?? NO_UUID), guid(parent?.modified ?? NO_UUID)])
  if (old) {
    image.writeUInt32LE(type, 0x48)
    image.writeBigUInt64LE(BigInt(data.length), 0x160)
    image.writeUInt32LE(blockSize, 0x168)
    image.writeUInt32LE(count, 0x16c)
    image.writeUInt32LE(used.length, 0x170)
    Buffer.concat([guid(uuid), guid(modified), link]).copy(image, 0x174, 0, 48)
  } else {
    image.writeUInt32LE(version === 0x10000 ? 0x180 : 0x190, 0x48)
    image.writeUInt32LE(type, 0x4c)
    image.writeUInt32LE(offBlocks, 0x154)
    image.writeUInt32LE(offData, 0x158)
    image.writeUInt32LE(512, 0x168)
    image.writeBigUInt64LE(BigInt(data.length), 0x170)
    image.writeUInt32LE(blockSize, 0x178)
    image.writeUInt32LE(count, 0x180)
    image.writeUInt32LE(used.length, 0x184)
    Buffer.concat([guid(uuid), guid(modified), link]).copy(image, 0x188)
    if (version === 0x10001) image.writeUInt32LE(512, 0x1d4)
  }
  for (const block of all) {
    const at = used.indexOf(block)
    const same = parent && part(data, block).equals(part(parent.data, block))
    const none = parent ? same ? 0xffffffff : 0xfffffffe : 0xffffffff - block % 2
    image.writeUInt32LE(at >= 0 ? at : none, offBlocks + block * 4)
    if (at >= 0) part(data, block).copy(image, offData + at * blockSize)
  }
  return image
}

const SECTOR = 512
const GRAIN = 64 * 1024
const TABLE = 512

export interface VmdkOptions {
  compressed?: boolean
  /** The grain directory behind the grains, told by a footer. */
  atEnd?: boolean
  version?: number
  /** Grains of zeros are marked so, and not left out. */
  zeroed?: boolean
  /** Bytes before the first grain that nobody reads. @default 0 */
  gap?: number
  cid?: string
  parent?: string
}

/** A sparse VMDK with grains of 64 KB. */
export function vmdk(
  data: Buffer,
  options: VmdkOptions = {},
): Buffer {
  const { compressed = false, atEnd = false, version = 1, zeroed = false, gap = 0 } = options
  const { cid = '12345678', parent = 'ffffffff' } = options
  const grains = Math.ceil(data.length / GRAIN)
  const tables = Math.ceil(grains / TABLE)
  const descriptor = Buffer.alloc(20 * SECTOR)
  descriptor.write(
    `# Disk DescriptorFile\nversion=1\nCID=${cid}\nparentCID=${parent}\n` +
      `createType="${compressed ? 'streamOptimized' : 'monolithicSparse'}"\n` +
      `RW ${Math.ceil(data.length / SECTOR)} SPARSE "disk.vmdk"\n`,
  )
  const parts: Buffer[] = [Buffer.alloc(gap)]
  let end = 128 * SECTOR + gap
  const append = (part: Buffer) => {
    const at = end
    const padded = Buffer.alloc(Math.ceil(part.length / SECTOR) * SECTOR)
    part.copy(padded)
    parts.push(padded)
    end += padded.length
    return at / SECTOR
  }
  const makeTables = (entries: number[]) => {
    const directory = Buffer.alloc(tables * 4)
    for (let table = 0; table < tables; table++) {
      const bytes = Buffer.alloc(TABLE * 4)
      entries.slice(table * TABLE, (table + 1) * TABLE)
        .forEach((entry, index) => bytes.writeUInt32LE(entry, index * 4))
      if (compressed) append(marker(TABLE * 4 / SECTOR, 1))
      if (bytes.some((byte) => byte)) directory.writeUInt32LE(append(bytes), table * 4)
    }
    if (compressed) append(marker(Math.ceil(directory.length / SECTOR), 2))
    return append(directory)
  }
  const entries: number[] = []
  for (let grain = 0; grain < grains; grain++) {
    const bytes = Buffer.alloc(GRAIN)
    data.copy(bytes, 0, grain * GRAIN, (grain + 1) * GRAIN)
    if (isZero(bytes)) {
      entries.push(zeroed ? 1 : 0)
      continue
    }
    const packed = deflateSync(bytes)
    const head = Buffer.alloc(12)
    head.writeBigUInt64LE(BigInt(grain * GRAIN / SECTOR))
    head.writeUInt32LE(packed.length, 8)
    entries.push(append(compressed ? Buffer.concat([head, packed]) : bytes))
  }
  const directory = makeTables(entries)
  const header = (gdOffset: bigint) => {
    const bytes = Buffer.alloc(SECTOR)
    bytes.write('KDMV')
    bytes.writeUInt32LE(version, 4)
    bytes.writeUInt32LE(1 | (zeroed ? 4 : 0) | (compressed ? 0x30000 : 0), 8)
    bytes.writeBigUInt64LE(BigInt(Math.ceil(data.length / SECTOR)), 12)
    bytes.writeBigUInt64LE(BigInt(GRAIN / SECTOR), 20)
    bytes.writeBigUInt64LE(1n, 28)
    bytes.writeBigUInt64LE(20n, 36)
    bytes.writeUInt32LE(TABLE, 44)
    bytes.writeBigUInt64LE(gdOffset, 56)
    bytes.writeBigUInt64LE(128n + BigInt(gap / SECTOR), 64)
    bytes.write('\n \r\n', 73)
    bytes.writeUInt16LE(compressed ? 1 : 0, 77)
    return bytes
  }
  if (atEnd) {
    append(marker(1, 3))
    append(header(BigInt(directory)))
    append(Buffer.alloc(SECTOR))
  }
  const start = Buffer.alloc(128 * SECTOR)
  header(atEnd ? 0xffffffffffffffffn : BigInt(directory)).copy(start)
  descriptor.copy(start, SECTOR)
  return Buffer.concat([start, ...parts])
}

/** A sparse extent of VMFS, with grains of one sector, of a disk of less than 2 MB. */
export function vmfsSparse(
  data: Buffer,
  changed: (sector: number) => boolean = () => true,
): Buffer {
  const sectors = data.length / SECTOR
  const part = (sector: number) => data.subarray(sector * SECTOR, (sector + 1) * SECTOR)
  const image = Buffer.alloc(8 * SECTOR + 4096 * 4)
  image.write('COWD')
  ;[1, 3, sectors, 1, 4, 1].forEach((value, index) => image.writeUInt32LE(value, 4 + index * 4))
  image.writeUInt32LE(8, 4 * SECTOR)
  const grains: Buffer[] = []
  for (let sector = 0; sector < sectors; sector++) {
    if (!changed(sector)) continue
    image.writeUInt32LE(8 + 32 + grains.length, 8 * SECTOR + sector * 4)
    grains.push(part(sector))
  }
  return Buffer.concat([image, ...grains])
}

/** A dynamic VHD; with a parent a differencing one, in which `changed` sectors are. */
export function vhd(
  data: Buffer,
  { id = 'fedcba98-7654-3210-0123-456789abcdef', parent, blockSize: size = 2 * MB }: {
    id?: string
    parent?: { id: string; path: string; changed: (sector: number) => boolean }
    /** Bytes, 2 MB at most. @default 2 MB */
    blockSize?: number
  } = {},
): Buffer {
  const blocks = Math.ceil(data.length / size)
  const bytes = (uuid: string) => Buffer.from(uuid.replaceAll('-', ''), 'hex')
  const footer = Buffer.alloc(SECTOR)
  footer.write('conectix')
  footer.writeUInt32BE(2, 8)
  footer.writeUInt32BE(0x10000, 12)
  footer.writeBigUInt64BE(512n, 16)
  footer.write('win ', 28)
  footer.writeBigUInt64BE(BigInt(data.length), 40)
  footer.writeBigUInt64BE(BigInt(data.length), 48)
  footer.writeUInt32BE(parent ? 4 : 3, 60)
  bytes(id).copy(footer, 68)
  const header = Buffer.alloc(1024)
  header.write('cxsparse')
  header.fill(0xff, 8, 16)
  header.writeBigUInt64BE(2048n, 16)
  header.writeUInt32BE(0x10000, 24)
  header.writeUInt32BE(blocks, 28)
  header.writeUInt32BE(size, 32)
  const locator = Buffer.alloc(SECTOR)
  if (parent) {
    bytes(parent.id).copy(header, 40)
    Buffer.from(parent.path.slice(parent.path.lastIndexOf('\\') + 1), 'utf16le').swap16().copy(
      header,
      64,
    )
    header.write('W2ru', 576)
    header.writeUInt32BE(SECTOR, 580)
    header.writeUInt32BE(locator.write(parent.path, 'utf16le'), 584)
    header.writeBigUInt64BE(1536n, 592)
  }
  const sum = (part: Buffer) => ~part.reduce((total, byte) => total + byte, 0) >>> 0
  footer.writeUInt32BE(sum(footer), 64)
  header.writeUInt32BE(sum(header), 36)
  const table = Buffer.alloc(SECTOR, 0xff)
  const parts = [footer, header, locator, table]
  let end = 2048 + SECTOR
  for (let block = 0; block < blocks; block++) {
    const bitmap = Buffer.alloc(SECTOR)
    const stored = Buffer.alloc(size)
    for (let sector = 0; sector < size / SECTOR; sector++) {
      const at = block * size + sector * SECTOR
      const whole = block * size / SECTOR + sector
      if (at >= data.length || parent && !parent.changed(whole)) continue
      bitmap.writeUInt8((bitmap[sector >> 3] as number) | (0x80 >> (sector & 7)), sector >> 3)
      data.copy(stored, sector * SECTOR, at, at + SECTOR)
    }
    if (isZero(bitmap)) continue
    table.writeUInt32BE(end / SECTOR, block * 4)
    parts.push(bitmap, stored)
    end += SECTOR + size
  }
  return Buffer.concat([...parts, footer])
}

/** CRC-32C, bit by bit. */
export function crc32c(data: Buffer): number {
  let crc = 0xffffffff
  for (const byte of data) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0x82f63b78 & -(crc & 1))
  }
  return ~crc >>> 0
}

/** With its checksum made right, where VHDX has it. */
export function sealed(data: Buffer): Buffer {
  data.writeUInt32LE(0, 4)
  data.writeUInt32LE(crc32c(data), 4)
  return data
}

export interface VhdxOptions {
  sectorSize?: 512 | 4096
  diskId?: string
  /** DataWriteGuid. */
  written?: string
  /** The parent's DataWriteGuid, where it was, and which sectors of the disk are changed. */
  parent?: { written: string; path: string; changed: (sector: number) => boolean }
  /** Leaves the block allocation table to a log that was not replayed. */
  dirty?: boolean
  /** Bytes. @default 2 MB */
  blockSize?: number
}

export const VHDX = { log: MB, metadata: 2 * MB, bat: 3 * MB, bitmap: 4 * MB, blocks: 5 * MB }
/** A VHDX. */
export function vhdx(data: Buffer, options: VhdxOptions = {}): Buffer {
  const { sectorSize = 512, parent, dirty = false, blockSize = 2 * MB } = options
  const { diskId = '10101010-2020-3030-4040-505050505050' } = options
  const { written = '61616161-6262-6363-6464-656565656565' } = options
  const blocks = Math.ceil(data.length / blockSize)
  const perBlock = blockSize / sectorSize
  const stored = Array.from({ length: blocks }, (_, block) => block).filter((block) => {
    if (!parent) return !isZero(data.subarray(block * blockSize, (block + 1) * blockSize))
    return Array.from({ length: perBlock }).some((_, sector) =>
      parent.changed(block * perBlock + sector)
    )
  })
  const image = Buffer.alloc(VHDX.blocks + stored.length * blockSize)
  image.write('vhdxfile')
  const logGuid = '77777777-7777-7777-7777-777777777777'
  ;[64 * 1024, 128 * 1024].forEach((at, index) => {
    const header = Buffer.alloc(4096)
    header.write('head')
    header.writeBigUInt64LE(BigInt(index + 1), 8)
    guid(written).copy(header, 32)
    if (dirty) guid(logGuid).copy(header, 48)
    header.writeUInt16LE(1, 66)
    header.writeUInt32LE(MB, 68)
    header.writeBigUInt64LE(BigInt(VHDX.log), 72)
    sealed(header).copy(image, at)
  })
  const regions = Buffer.alloc(64 * 1024)
  regions.write('regi')
  regions.writeUInt32LE(2, 8)
  ;[
    { id: '2dc27766-f623-4200-9d64-115e9bfd4a08', at: VHDX.bat },
    { id: '8b7ca206-4790-4b9a-b8fe-575f050f886e', at: VHDX.metadata },
  ].forEach(({ id, at }, index) => {
    const entry = 16 + index * 32
    guid(id).copy(regions, entry)
    regions.writeBigUInt64LE(BigInt(at), entry + 16)
    regions.writeUInt32LE(MB, entry + 24)
    regions.writeUInt32LE(1, entry + 28)
  })
  sealed(regions).copy(image, 192 * 1024)
  regions.copy(image, 256 * 1024)
  const number = (value: number | bigint, length: number) => {
    const bytes = Buffer.alloc(length)
    if (length === 8) bytes.writeBigUInt64LE(BigInt(value))
    else bytes.writeUInt32LE(Number(value))
    return bytes
  }
  const items: [id: string, data: Buffer][] = [
    [
      'caa16737-fa36-4d43-b3b6-33f0aa44e76b',
      Buffer.concat([number(blockSize, 4), number(parent ? 2 : 0, 4)]),
    ],
    ['2fa54224-cd1b-4876-b211-5dbed83bf4b8', number(data.length, 8)],
    ['beca12ab-b2e6-4523-93ef-c309e000c746', guid(diskId)],
    ['8141bf1d-a96f-4709-ba47-f233a8faab5f', number(sectorSize, 4)],
    ['cda348c7-445d-4471-9cc9-e9885251c556', number(4096, 4)],
  ]
  if (parent) {
    items.push([
      'a8d35f2d-b30b-454d-abf7-d3d84834ab0c',
      locator({
        parent_linkage: `{${parent.written.toUpperCase()}}`,
        relative_path: parent.path,
      }),
    ])
  }
  image.write('metadata', VHDX.metadata)
  image.writeUInt16LE(items.length, VHDX.metadata + 10)
  let offset = 64 * 1024
  items.forEach(([id, bytes], index) => {
    const entry = VHDX.metadata + 32 + index * 32
    guid(id).copy(image, entry)
    image.writeUInt32LE(offset, entry + 16)
    image.writeUInt32LE(bytes.length, entry + 20)
    image.writeUInt32LE(4, entry + 24)
    bytes.copy(image, VHDX.metadata + offset)
    offset += bytes.length
  })
  const table = Buffer.alloc(4096)
  const ratio = 2 ** 23 * sectorSize / blockSize
  stored.forEach((block, index) => {
    const at = VHDX.blocks + index * blockSize
    table.writeBigUInt64LE((BigInt(at / MB) << 20n) | (parent ? 7n : 6n), block * 8)
    data.copy(image, at, block * blockSize, (block + 1) * blockSize)
    for (let sector = block * perBlock; parent && sector < (block + 1) * perBlock; sector++) {
      if (parent.changed(sector)) {
        const byte = VHDX.bitmap + (sector >> 3)
        image.writeUInt8((image[byte] as number) | (1 << (sector & 7)), byte)
      } else {image.fill(
          0xee,
          at + sector % perBlock * sectorSize,
          at + (sector % perBlock + 1) * sectorSize,
        )}
    }
  })
  if (dirty) log(table, image.length, logGuid).copy(image, VHDX.log)
  else table.copy(image, VHDX.bat)
  if (parent) {
    image.writeBigUInt64LE((BigInt(VHDX.bitmap / MB) << 20n) | 6n, VHDX.bat + ratio * 8)
  }
  return image
}

/** A log whose second entry writes `table` where the block allocation table is, and whose first wrote other things there. */
function log(table: Buffer, fileSize: number, logGuid: string): Buffer {
  const entry = (sequence: number, data: Buffer) => {
    const bytes = Buffer.alloc(3 * 4096)
    bytes.write('loge')
    bytes.writeUInt32LE(2 * 4096, 8)
    bytes.writeBigUInt64LE(BigInt(sequence), 16)
    bytes.writeUInt32LE(2, 24)
    guid(logGuid).copy(bytes, 32)
    bytes.writeBigUInt64LE(BigInt(fileSize), 48)
    bytes.writeBigUInt64LE(BigInt(fileSize), 56)
    bytes.write('zero', 64)
    bytes.writeBigUInt64LE(8192n, 72)
    bytes.writeBigUInt64LE(BigInt(VHDX.bat), 80)
    bytes.writeBigUInt64LE(BigInt(sequence), 88)
    bytes.write('desc', 96)
    data.copy(bytes, 100, 4092, 4096)
    data.copy(bytes, 104, 0, 8)
    bytes.writeBigUInt64LE(BigInt(VHDX.bat), 112)
    bytes.writeBigUInt64LE(BigInt(sequence), 120)
    data.copy(bytes, 4096)
    bytes.write('data', 4096)
    bytes.writeUInt32LE(0, 4100)
    bytes.writeUInt32LE(sequence, 4096 + 4092)
    return bytes.subarray(0, 2 * 4096)
  }
  const first = entry(41, Buffer.alloc(4096, 0xab))
  const second = entry(42, table)
  // it begins 4 KB before the end of the ring, and goes on at its start
  const ring = Buffer.alloc(MB)
  const all = Buffer.concat([sealed(withTail(first)), sealed(withTail(second))])
  all.copy(ring, MB - 4096, 0, 4096)
  all.copy(ring, 0, 4096)
  return ring
}

function withTail(entry: Buffer): Buffer {
  entry.writeUInt32LE(MB - 4096, 12)
  return entry
}

function locator(values: Record<string, string>): Buffer {
  const keys = Object.entries(values)
  const head = Buffer.alloc(20 + keys.length * 12)
  guid('b04aefb7-d19e-4a81-b789-25b8e9445913').copy(head)
  head.writeUInt16LE(keys.length, 18)
  const texts: Buffer[] = []
  let at = head.length
  keys.forEach((pair, index) =>
    pair.forEach((text, which) => {
      const bytes = Buffer.from(text, 'utf16le')
      head.writeUInt32LE(at, 20 + index * 12 + which * 4)
      head.writeUInt16LE(bytes.length, 20 + index * 12 + 8 + which * 2)
      texts.push(bytes)
      at += bytes.length
    })
  )
  return Buffer.concat([head, ...texts])
}

function marker(sectors: number, type: number): Buffer {
  const bytes = Buffer.alloc(SECTOR)
  bytes.writeBigUInt64LE(BigInt(sectors))
  bytes.writeUInt32LE(type, 12)
  return bytes
}

export interface Entry {
  name: string
  data?: Buffer | string
  type?: string
  /** How a name that is long, or is not ASCII, is stored. */
  long?: 'gnu' | 'pax'
}

export function tar(entries: Entry[]): Buffer {
  const parts: Buffer[] = []
  for (const { name, data = '', type = '0', long } of entries) {
    const bytes = Buffer.from(data)
    if (long === 'gnu') parts.push(...record('././@LongLink', Buffer.from(`${name}\0`), 'L'))
    if (long === 'pax') {
      const body = ` path=${name}\n`
      let length = Buffer.byteLength(body)
      while (Buffer.byteLength(`${length}${body}`) !== length) {
        length = Buffer.byteLength(`${length}${body}`)
      }
      parts.push(...record('PaxHeaders/x', Buffer.from(`${length}${body}`), 'x'))
    }
    parts.push(...record(long ? 'short' : name, bytes, type))
  }
  return Buffer.concat([...parts, Buffer.alloc(1024)])
}

function record(name: string, data: Buffer, type: string): Buffer[] {
  const header = Buffer.alloc(SECTOR)
  header.write(name, 0, 100)
  header.write('0000644\0', 100)
  header.write(`${data.length.toString(8).padStart(11, '0')}\0`, 124)
  header.fill(' ', 148, 156)
  header.write(type, 156)
  header.write('ustar\x0000', 257, 'latin1')
  header.write(
    `${header.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0')}\0 `,
    148,
  )
  return [header, data, Buffer.alloc((SECTOR - data.length % SECTOR) % SECTOR)]
}

/** An OVF that names these files as its disks. */
export function ovf(...names: string[]): string {
  const files = names.map((name, index) => `<File ovf:id="f${index}" ovf:href="${name}"/>`)
  const disks = names.map((_, index) => `<Disk ovf:diskId="d${index}" ovf:fileRef="f${index}"/>`)
  return `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">` +
    `<References>${files.join('')}</References><DiskSection>${
      disks.join('')
    }</DiskSection></Envelope>`
}

export function manifest(algorithm: string, entries: Entry[]): string {
  return entries.map(({ name, data = '' }) => {
    const digest = createHash(algorithm.replace('-', '').toLowerCase()).update(data).digest('hex')
    return `${algorithm}(${name})= ${digest}\n`
  }).join('')
}

function isZero(data: Buffer): boolean {
  return data.every((byte) => byte === 0)
}

/** The warnings but for one: where Windows has no PowerShell, nobody looks at the volume. */
export function warned({ warnings }: { warnings: string[] }): string[] {
  return warnings.filter((warning) => !warning.startsWith('Nobody looked whether the files in '))
}
