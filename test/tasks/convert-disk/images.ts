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

/** A VDI with blocks of 1 MB. Zero blocks have no place, every other of them as discarded ones. */
export function vdi(
  data: Buffer,
  { type = 1, reversed = false }: { type?: number; reversed?: boolean } = {},
): Buffer {
  const blocks = Math.ceil(data.length / MB)
  const used = Array.from({ length: blocks }, (_, block) => block)
    .filter((block) => type === 2 || !isZero(data.subarray(block * MB, (block + 1) * MB)))
  if (reversed) used.reverse()
  const image = Buffer.alloc(2 * MB + used.length * MB)
  image.write('<<< Oracle VM VirtualBox Disk Image >>>\n')
  image.writeUInt32LE(0xbeda107f, 0x40)
  image.writeUInt32LE(0x10001, 0x44)
  image.writeUInt32LE(0x190, 0x48)
  image.writeUInt32LE(type, 0x4c)
  image.writeUInt32LE(MB, 0x154)
  image.writeUInt32LE(2 * MB, 0x158)
  image.writeUInt32LE(512, 0x168)
  image.writeBigUInt64LE(BigInt(data.length), 0x170)
  image.writeUInt32LE(MB, 0x178)
  image.writeUInt32LE(blocks, 0x180)
  image.writeUInt32LE(used.length, 0x184)
  image.write('0123456789abcdeffedcba9876543210', 0x188)
  image.writeUInt32LE(512, 0x1d4)
  for (let block = 0; block < blocks; block++) {
    const at = used.indexOf(block)
    image.writeUInt32LE(at >= 0 ? at : 0xffffffff - block % 2, MB + block * 4)
    if (at >= 0) data.copy(image, (2 + at) * MB, block * MB, (block + 1) * MB)
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
  parent?: string
}

/** A sparse VMDK with grains of 64 KB. */
export function vmdk(
  data: Buffer,
  { compressed = false, atEnd = false, version = 1, zeroed = false, parent = 'ffffffff' }:
    VmdkOptions = {},
): Buffer {
  const grains = Math.ceil(data.length / GRAIN)
  const tables = Math.ceil(grains / TABLE)
  const descriptor = Buffer.alloc(20 * SECTOR)
  descriptor.write(
    `# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=${parent}\n` +
      `createType="${compressed ? 'streamOptimized' : 'monolithicSparse'}"\n` +
      `RW ${Math.ceil(data.length / SECTOR)} SPARSE "disk.vmdk"\n`,
  )
  const parts: Buffer[] = []
  let end = 128 * SECTOR
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
    bytes.writeBigUInt64LE(128n, 64)
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
