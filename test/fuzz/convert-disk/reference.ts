/**
 * Readers of disk images apart from the kit's own: one sector at a time, plainly as the specifications
 * say, of images that somebody else has found to be sound. What they give the kit must give too.
 */
import { inflateSync } from 'node:zlib'

export interface Disk {
  /** Bytes. */
  size: number
  /** 512 bytes; undefined for zeros. Behind the end of the disk are zeros. */
  sector: (index: number) => Buffer | undefined
}

/** The bytes of a file by its name. */
export type FileOf = (name: string) => Buffer

export type Format = 'vdi' | 'vmdk' | 'vhd' | 'vhdx' | 'raw'

const SECTOR = 512
const MB = 1024 ** 2

export function openReference(
  format: Format,
  file: Buffer,
  sibling: FileOf,
  parent?: Disk,
): Disk {
  const { size, sector } = openFormat(format, file, sibling, parent)
  return {
    size,
    // a child may be larger than its parent, in which zeros follow then
    sector: (index) => {
      const left = size - index * SECTOR
      return left > 0 ? sector(index)?.subarray(0, left) : undefined
    },
  }
}

function openFormat(format: Format, file: Buffer, sibling: FileOf, parent?: Disk): Disk {
  if (format === 'vdi') return openVdi(file, parent)
  if (format === 'vhd') return openVhd(file, parent)
  if (format === 'vhdx') return openVhdx(file, parent)
  if (format === 'vmdk') return openVmdk(file, sibling, parent)
  return { size: file.length, sector: (index) => part(file, index * SECTOR) }
}

/** The sector at byte `at`; what the file does not have is an error, but for less than a sector. */
function part(file: Buffer, at: number): Buffer {
  const found = file.subarray(at, at + SECTOR)
  if (found.length === 0) throw new Error(`The reference reads at byte ${at} of ${file.length}`)
  return found
}

const u64 = (file: Buffer, at: number) => Number(file.readBigUInt64LE(at))

function openVdi(file: Buffer, parent?: Disk): Disk {
  const old = file.readUInt32LE(0x44) === 1
  const size = u64(file, old ? 0x160 : 0x170)
  const block = file.readUInt32LE(old ? 0x168 : 0x178)
  const extra = old ? 0 : file.readUInt32LE(0x17c)
  const map = old ? 0x1a4 : file.readUInt32LE(0x154)
  const data = old ? map + file.readUInt32LE(0x16c) * 4 : file.readUInt32LE(0x158)
  return {
    size,
    sector: (index) => {
      const at = index * SECTOR
      const entry = file.readUInt32LE(map + Math.floor(at / block) * 4)
      if (entry === 0xffffffff) return parent?.sector(index)
      if (entry === 0xfffffffe) return undefined
      return part(file, data + entry * (extra + block) + extra + at % block)
    },
  }
}

function openVhd(file: Buffer, parent?: Disk): Disk {
  const sum = (of: Buffer, at: number) =>
    ~of.reduce((sum, byte, index) => sum + (index >= at && index < at + 4 ? 0 : byte), 0) >>> 0
  const footer = [file.subarray(-512), file.subarray(-511), file.subarray(0, 512)].find((data) =>
    data.toString('latin1', 0, 8) === 'conectix' && data.readUInt32BE(64) === sum(data, 64)
  )
  if (!footer) throw new Error('The reference finds no footer')
  const size = Number(footer.readBigUInt64BE(48))
  if (footer.readUInt32BE(60) === 2) return { size, sector: (index) => part(file, index * SECTOR) }
  const header = file.subarray(Number(footer.readBigUInt64BE(16)))
  const table = Number(header.readBigUInt64BE(16))
  const block = header.readUInt32BE(32)
  const bitmap = Math.ceil(block / SECTOR / 8 / SECTOR) * SECTOR
  return {
    size,
    sector: (index) => {
      const inside = index % (block / SECTOR)
      const entry = file.readUInt32BE(table + Math.floor(index / (block / SECTOR)) * 4)
      if (entry === 0xffffffff) return parent?.sector(index)
      const set = file.readUInt8(entry * SECTOR + (inside >> 3)) & (0x80 >> (inside & 7))
      return set ? part(file, entry * SECTOR + bitmap + inside * SECTOR) : parent?.sector(index)
    },
  }
}

function openVmdk(file: Buffer, sibling: FileOf, parent?: Disk): Disk {
  const magic = file.toString('latin1', 0, 4)
  if (magic === 'KDMV') return openHosted(file, parent)
  if (magic === 'COWD') return openVmfs(file, parent)
  const text = file.toString('utf8').replace(/\0.*$/s, '')
  const lines = text.match(/^[ \t]*(RW|RDONLY|NOACCESS)[ \t].*$/gm) ?? []
  let size = 0
  const extents = lines.map((line) => {
    const [, sectors, type = '', name = '', first] =
      line.match(/^\s*\w+\s+(\d+)\s+(\w+)(?:\s+"([^"]*)")?(?:\s+(\d+))?\s*$/) ?? []
    const [start, length] = [size, Number(sectors) * SECTOR]
    size += length
    if (type === 'ZERO') return { start, length, sector: () => undefined }
    const found = sibling(name)
    const above = parent &&
      { ...parent, sector: (at: number) => parent.sector(at + start / SECTOR) }
    const sector = /SPARSE/.test(type)
      ? openVmdk(found, sibling, above).sector
      : (index: number) => part(found, (index + Number(first ?? 0)) * SECTOR)
    return { start, length, sector }
  })
  return {
    size,
    sector: (index) => {
      const at = index * SECTOR
      const extent = extents.find(({ start, length }) => at >= start && at < start + length)
      return extent?.sector(index - (extent.start / SECTOR))
    },
  }
}

function openHosted(file: Buffer, parent?: Disk): Disk {
  const atEnd = file.readBigUInt64LE(56) === 0xffffffffffffffffn
  const header = atEnd ? file.subarray(-1024, -512) : file
  const grain = u64(header, 20)
  const entries = header.readUInt32LE(44)
  const directory = u64(header, 56) * SECTOR
  const flags = header.readUInt32LE(8)
  const at = u64(header, 28) * SECTOR
  const descriptor = file.toString('latin1', at, at + u64(header, 36) * SECTOR).replace(
    /\0.*$/s,
    '',
  )
  const said = Number(descriptor.match(/^\s*(?:RW|RDONLY)\s+(\d+)\s+SPARSE\s/m)?.[1])
  const rounded = said > 0 && Math.ceil(said / grain) * grain === u64(header, 12)
  const inflated = { at: -1, data: file }
  return {
    size: (rounded ? said : u64(header, 12)) * SECTOR,
    sector: (index) => {
      const which = Math.floor(index / grain)
      const table = file.readUInt32LE(directory + Math.floor(which / entries) * 4) * SECTOR
      const entry = table && file.readUInt32LE(table + (which % entries) * 4)
      if (entry === 0) return parent?.sector(index)
      if (entry === 1 && flags & 4) return undefined
      if (!(flags & 0x10000)) return part(file, (entry + index % grain) * SECTOR)
      const at = entry * SECTOR
      if (inflated.at !== at) {
        if (u64(file, at) !== which * grain) throw new Error('The reference finds another grain')
        const packed = file.subarray(at + 12, at + 12 + file.readUInt32LE(at + 8))
        inflated.data = inflateSync(packed, { maxOutputLength: grain * SECTOR })
        inflated.at = at
      }
      return part(inflated.data, (index % grain) * SECTOR)
    },
  }
}

function openVmfs(file: Buffer, parent?: Disk): Disk {
  const grain = file.readUInt32LE(16)
  const directory = file.readUInt32LE(20) * SECTOR
  return {
    size: file.readUInt32LE(12) * SECTOR,
    sector: (index) => {
      const which = Math.floor(index / grain)
      const table = file.readUInt32LE(directory + Math.floor(which / 4096) * 4) * SECTOR
      const entry = table && file.readUInt32LE(table + (which % 4096) * 4)
      return entry ? part(file, (entry + index % grain) * SECTOR) : parent?.sector(index)
    },
  }
}

function openVhdx(stored: Buffer, parent?: Disk): Disk {
  const headers = [64 * 1024, 128 * 1024].map((at) => stored.subarray(at, at + 4096))
    .filter((data) => data.toString('latin1', 0, 4) === 'head' && isSealed(data))
    .sort((a, b) => u64(b, 8) - u64(a, 8))
  const [header] = headers
  if (!header) throw new Error('The reference finds no header')
  const file = header.subarray(48, 64).some((byte) => byte) ? replay(stored, header) : stored
  const regions = [192 * 1024, 256 * 1024].map((at) => file.subarray(at, at + 64 * 1024))
    .find((data) =>
      data.toString('latin1', 0, 4) === 'regi' && isSealed(data) && data.readUInt32LE(8) <= 2047
    )
  if (!regions) throw new Error('The reference finds no region table')
  const find = (table: Buffer, from: number, count: number, id: string) => {
    for (let entry = from; entry < from + count * 32; entry += 32) {
      if (table.toString('hex', entry, entry + 16) === id) return table.subarray(entry)
    }
    throw new Error('The reference lacks an entry')
  }
  const region = (id: string) => u64(find(regions, 16, regions.readUInt32LE(8), id), 16)
  const bat = region('6677c22d23f600429d64115e9bfd4a08')
  const metadata = file.subarray(region('06a27c8b90479a4bb8fe575f050f886e'))
  const item = (id: string) => {
    return metadata.subarray(find(metadata, 32, metadata.readUInt16LE(10), id).readUInt32LE(16))
  }
  const block = item('3767a1ca36fa434db3b633f0aa44e76b').readUInt32LE()
  const size = u64(item('2442a52f1bcd7648b2115dbed83bf4b8'), 0)
  const sectorSize = item('1dbf41816fa90947ba47f233a8faab5f').readUInt32LE()
  const ratio = 2 ** 23 * sectorSize / block
  const entry = (index: number) => {
    const value = file.readBigUInt64LE(bat + index * 8)
    return { state: Number(value & 7n), at: Number(value >> 20n) * MB }
  }
  return {
    size,
    sector: (index) => {
      const at = index * SECTOR
      const which = Math.floor(at / block)
      const { state, at: place } = entry(which + Math.floor(which / ratio))
      if (state === 0) return parent?.sector(index)
      if (state === 1 || state === 2 || state === 3) return undefined
      if (state === 7) {
        const chunk = Math.floor(which / ratio)
        const bit = Math.floor((at - chunk * ratio * block) / sectorSize)
        const bitmap = entry(chunk * (ratio + 1) + ratio).at
        const set = file.readUInt8(bitmap + (bit >> 3)) & (1 << (bit & 7))
        if (!set) return parent?.sector(index)
      }
      return part(file, place + at % block)
    },
  }
}

/** The file with the changes of its log: of the newest entry and those back to its tail. */
function replay(stored: Buffer, header: Buffer): Buffer {
  const length = header.readUInt32LE(68)
  const ring = stored.subarray(u64(header, 72), u64(header, 72) + length)
  const round = Buffer.concat([ring, ring])
  const entries = new Map<bigint, { at: number; data: Buffer }>()
  for (let at = 0; at < length; at += 4096) {
    if (round.toString('latin1', at, at + 4) !== 'loge') continue
    const size = round.readUInt32LE(at + 8)
    if (size === 0 || size % 4096 || size > length) continue
    const data = round.subarray(at, at + size)
    const own = data.subarray(32, 48).equals(header.subarray(48, 64))
    if (own && isSealed(data) && isWhole(data)) entries.set(data.readBigUInt64LE(16), { at, data })
  }
  for (const last of [...entries.keys()].sort((a, b) => a < b ? 1 : -1)) {
    const tail = entries.get(last)?.data.readUInt32LE(12)
    const row: Buffer[] = []
    let [sequence, end] = [last, entries.get(last)?.at]
    for (; entries.has(sequence); sequence--) {
      const { at, data } = entries.get(sequence) as { at: number; data: Buffer }
      if (row.length > 0 && (at + data.length) % length !== end) break
      row.unshift(data)
      end = at
      if (at === tail) return apply(stored, row)
    }
  }
  throw new Error('The reference finds no log that is whole')
}

/** Descriptors and data carry the number of their entry, without which they were written half. */
function isWhole(data: Buffer): boolean {
  const count = data.readUInt32LE(24)
  const sequence = data.readBigUInt64LE(16)
  let sector = Math.ceil((64 + count * 32) / 4096) * 4096
  if (sequence === 0n || sector > data.length) return false
  for (let at = 64; at < 64 + count * 32; at += 32) {
    const signature = data.toString('latin1', at, at + 4)
    if (data.readBigUInt64LE(at + 24) !== sequence || u64(data, at + 16) % 4096) return false
    if (signature === 'zero' && u64(data, at + 8) % 4096 === 0) continue
    if (signature !== 'desc' || sector + 4096 > data.length) return false
    const numbers = [data.readUInt32LE(sector + 4), data.readUInt32LE(sector + 4092)] as const
    const same = BigInt(numbers[0]) << 32n | BigInt(numbers[1])
    if (data.toString('latin1', sector, sector + 4) !== 'data' || same !== sequence) return false
    sector += 4096
  }
  return true
}

function apply(stored: Buffer, row: Buffer[]): Buffer {
  const size = Math.max(stored.length, u64(row.at(-1) as Buffer, 56))
  if (size > 256 * MB) throw new Error(`The reference holds no file of ${size} bytes`)
  const file = Buffer.alloc(size)
  stored.copy(file)
  for (const data of row) {
    const count = data.readUInt32LE(24)
    let sector = Math.ceil((64 + count * 32) / 4096) * 4096
    for (let descriptor = 64; descriptor < 64 + count * 32; descriptor += 32) {
      const to = u64(data, descriptor + 16)
      if (data.toString('latin1', descriptor, descriptor + 4) === 'zero') {
        file.fill(0, Math.min(size, to), Math.min(size, to + u64(data, descriptor + 8)))
        continue
      }
      data.copy(file, to + 8, sector + 8, sector + 4092)
      data.copy(file, to, descriptor + 8, descriptor + 16)
      data.copy(file, to + 4092, descriptor + 4, descriptor + 8)
      sector += 4096
    }
  }
  return file
}

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (0x82f63b78 & -(value & 1))
  return value
})

/** CRC-32C with the four bytes from 4 as zeros, where VHDX keeps it. */
export function crcOf(data: Buffer): number {
  let crc = 0xffffffff
  for (let at = 0; at < data.length; at++) {
    const byte = at >= 4 && at < 8 ? 0 : data[at] as number
    crc = (CRC[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8)
  }
  return ~crc >>> 0
}

function isSealed(data: Buffer): boolean {
  return data.readUInt32LE(4) === crcOf(data)
}
