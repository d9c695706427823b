/**
 * Reads in an NTFS volume what decides whether Windows will start from a copy of it.
 * Source: the structures and names of Windows' driver as the NTFS documentation of
 * flatcap.github.io/linux-ntfs and ntfs-3g's layout.h give them.
 */
import { little, read, text, u8 } from './header.ts'
import { Damaged, type ReadAt } from './partitions.ts'

const { u16, u32, u64 } = little

export interface Ntfs {
  label: string
  /** It was not closed properly, or Windows found it damaged: it is checked when Windows starts. */
  dirty: boolean
  /** Windows is to go on from `hiberfil.sys`: it is hibernated, or was shut down by Fast Startup. */
  hibernated: boolean
  /** There is a `\Windows\System32`. */
  windows: boolean
}

const BOOT = {
  BytesPerSector: u16(11),
  SectorsPerCluster: u8(13),
  MftStartLcn: u64(48),
  ClustersPerFileRecordSegment: u8(64),
}

/** Begins a file record and an index buffer: the last two bytes of each sector are kept here. */
const MULTI_SECTOR_HEADER = {
  Signature: text(0, 4),
  UpdateSequenceArrayOffset: u16(4),
  UpdateSequenceArraySize: u16(6),
}
const SECTOR = 512
const FIRST_ATTRIBUTE_OFFSET = u16(20)

const ATTRIBUTE = {
  TypeCode: u32(0),
  RecordLength: u32(4),
  FormCode: u8(8),
  ValueLength: u32(16),
  ValueOffset: u16(20),
}
const NONRESIDENT = { LowestVcn: u64(16), MappingPairsOffset: u16(32), FileSize: u64(48) }
const ATTRIBUTE_LIST = 0x20
const VOLUME_NAME = 0x60
const VOLUME_INFORMATION = 0x70
const DATA = 0x80
const INDEX_ROOT = 0x90
const INDEX_ALLOCATION = 0xa0
const END = 0xffffffff

const ATTRIBUTE_LIST_ENTRY = { TypeCode: u32(0), Length: u16(4), LowestVcn: u64(8) }
const ATTRIBUTE_LIST_REFERENCE = 16

/** In INDEX_ROOT, and the header that follows there and in an index buffer. */
const BYTES_PER_INDEX_BUFFER = u32(8)
const INDEX_HEADER = { FirstIndexEntry: u32(0), FirstFreeByte: u32(4) }
const INDEX_HEADER_OF_ROOT = 16
const INDEX_HEADER_OF_BUFFER = 24
const INDEX_ENTRY = { Length: u16(8), Flags: u16(12) }
const INDEX_ENTRY_NODE = 1
const INDEX_ENTRY_END = 2
/** The name that an entry of a directory is sorted by: FILE_NAME. */
const NAME_LENGTH = 16 + 64
const NAME = 16 + 66

const MFT = 0
const VOLUME = 3
const ROOT = 5
const VOLUME_IS_DIRTY = 1

/** A root directory has a few dozen names, and no more than these are looked at. */
const MAX_BUFFERS = 4096

interface Extent {
  /** Cluster of the volume; undefined where nothing is stored. */
  lcn: number | undefined
  count: number
}
interface Attribute {
  type: number
  /** Of a resident attribute, its value. */
  value?: Buffer
  extents?: Extent[]
}

/** Reads the volume that `at` reads. */
export async function readNtfs(at: ReadAt): Promise<Ntfs> {
  const boot = read(BOOT, await at(0, SECTOR))
  const cluster = boot.BytesPerSector * exponent(boot.SectorsPerCluster)
  const segments = boot.ClustersPerFileRecordSegment
  const recordSize = segments < 0x80 ? segments * cluster : exponent(segments)
  const sane = cluster >= 512 && cluster <= 2 * 1024 ** 2 && recordSize >= 512 &&
    recordSize <= 65536
  if (!sane) throw new Damaged()

  /** A part of what lies in extents. */
  async function part(extents: Extent[], from: number, length: number): Promise<Buffer> {
    const result = Buffer.alloc(length)
    let start = 0
    for (const { lcn, count } of extents) {
      const end = start + count * cluster
      const [first, last] = [Math.max(from, start), Math.min(from + length, end)]
      if (first < last && lcn !== undefined) {
        const data = await at(lcn * cluster + first - start, last - first)
        data.copy(result, first - from)
      }
      start = end
    }
    if (from + length > start) throw new Damaged()
    return result
  }

  const first = attributes(fix(await at(boot.MftStartLcn * cluster, recordSize), 'FILE'))
  // where the table itself is in more pieces than its record can name, files beyond stay unknown
  const table = first.find(({ type }) => type === DATA)?.extents
  if (!table) throw new Damaged()

  async function own(number: number): Promise<Attribute[]> {
    const record = number === MFT
      ? undefined
      : await part(table as Extent[], number * recordSize, recordSize)
    return record ? attributes(fix(record, 'FILE')) : first
  }

  /** An attribute, or where it is in pieces its first. */
  async function attribute(number: number, wanted: number): Promise<Attribute | undefined> {
    const all = await own(number)
    const found = all.find(({ type }) => type === wanted)
    const list = all.find(({ type }) => type === ATTRIBUTE_LIST)
    if (found || !list) return found
    const data = list.value ?? await part(list.extents ?? [], 0, SECTOR)
    for (let offset = 0; offset + 26 <= data.length;) {
      const { TypeCode, Length, LowestVcn } = read(ATTRIBUTE_LIST_ENTRY, data, offset)
      if (TypeCode === wanted && LowestVcn === 0) {
        const holder = data.readUIntLE(offset + ATTRIBUTE_LIST_REFERENCE, 6)
        return (await own(holder)).find(({ type }) => type === wanted)
      }
      if (Length < 26) break
      offset += Length
    }
  }

  /** The record of a name in a directory. All of its tree is looked through, whatever its order. */
  async function find(directory: number, name: string): Promise<number | undefined> {
    const root = (await attribute(directory, INDEX_ROOT))?.value
    if (!root || root.length < 32) throw new Damaged()
    const extents = (await attribute(directory, INDEX_ALLOCATION))?.extents ?? []
    const size = BYTES_PER_INDEX_BUFFER.get(root)
    if (size < 512 || size > 65536) throw new Damaged()
    const nodes = [{ data: root, header: INDEX_HEADER_OF_ROOT }]
    const seen = new Set<number>()
    for (let node = nodes.pop(); node; node = nodes.pop()) {
      const { data, header } = node
      const { FirstIndexEntry, FirstFreeByte } = read(INDEX_HEADER, data, header)
      const end = Math.min(data.length, header + FirstFreeByte)
      for (let offset = header + FirstIndexEntry; offset + 16 <= end;) {
        const { Length, Flags } = read(INDEX_ENTRY, data, offset)
        if (Length < 16 || offset + Length > end) throw new Damaged()
        if (Flags & INDEX_ENTRY_NODE) {
          const vcn = Number(data.readBigUInt64LE(offset + Length - 8))
          if (!seen.has(vcn) && seen.size < MAX_BUFFERS) {
            seen.add(vcn)
            // counted in clusters, or in sectors where a buffer is smaller than a cluster
            const position = vcn * (size < cluster ? SECTOR : cluster)
            const buffer = fix(await part(extents, position, size), 'INDX')
            nodes.push({ data: buffer, header: INDEX_HEADER_OF_BUFFER })
          }
        }
        if (Flags & INDEX_ENTRY_END) break
        const from = offset + NAME
        const to = from + 2 * (data[offset + NAME_LENGTH] ?? 0)
        if (to <= offset + Length && same(data.toString('utf16le', from, to), name)) {
          return data.readUIntLE(offset, 6)
        }
        offset += Length
      }
    }
  }

  const label = (await attribute(VOLUME, VOLUME_NAME))?.value?.toString('utf16le') ?? ''
  const information = (await attribute(VOLUME, VOLUME_INFORMATION))?.value
  if (!information || information.length < 12) throw new Damaged()
  const windows = await find(ROOT, 'Windows')
  const system = windows === undefined ? undefined : await find(windows, 'System32')
  const hiberfil = await find(ROOT, 'hiberfil.sys')
  return {
    label,
    dirty: (information.readUInt16LE(10) & VOLUME_IS_DIRTY) !== 0,
    hibernated: hiberfil !== undefined && await holdsMemory(hiberfil),
    windows: system !== undefined,
  }

  /** Windows overwrites the signature, with `wake` or zeros, when it has gone on from the file. */
  async function holdsMemory(number: number): Promise<boolean> {
    const data = await attribute(number, DATA)
    if (!data) return false
    const start = data.value ??
      (data.extents?.length ? await part(data.extents, 0, 4) : Buffer.alloc(0))
    return /^(hibr|rstr)$/i.test(start.toString('latin1', 0, 4))
  }
}

const same = (one: string, other: string) => one.toLowerCase() === other.toLowerCase()

/** Sizes are a count, or the negative of a power of two. */
function exponent(value: number): number {
  return value <= 0x80 ? value : 2 ** (256 - value)
}

/** Puts the ends of the sectors back, which a torn write would show in. */
function fix(data: Buffer, signature: string): Buffer {
  const header = read(MULTI_SECTOR_HEADER, data)
  const { UpdateSequenceArrayOffset: offset, UpdateSequenceArraySize: size } = header
  const fits = offset + 2 * size <= data.length && (size - 1) * SECTOR <= data.length
  if (header.Signature !== signature || size < 1 || !fits) throw new Damaged()
  for (let sector = 1; sector < size; sector++) {
    const end = sector * SECTOR - 2
    if (data.readUInt16LE(end) !== data.readUInt16LE(offset)) throw new Damaged()
    data.copy(data, end, offset + 2 * sector, offset + 2 * sector + 2)
  }
  return data
}

function attributes(record: Buffer): Attribute[] {
  const found: Attribute[] = []
  for (let offset = FIRST_ATTRIBUTE_OFFSET.get(record); offset + 24 <= record.length;) {
    const { TypeCode: type, RecordLength, FormCode, ValueLength, ValueOffset } = read(
      ATTRIBUTE,
      record,
      offset,
    )
    if (type === END) break
    if (RecordLength < 24 || offset + RecordLength > record.length) throw new Damaged()
    const data = record.subarray(offset, offset + RecordLength)
    if (FormCode === 0) {
      if (ValueOffset + ValueLength > RecordLength) throw new Damaged()
      found.push({ type, value: data.subarray(ValueOffset, ValueOffset + ValueLength) })
    } else if (data.length >= 64 && read(NONRESIDENT, data).LowestVcn === 0) {
      found.push({
        type,
        extents: mappingPairs(data.subarray(read(NONRESIDENT, data).MappingPairsOffset)),
      })
    }
    offset += RecordLength
  }
  return found
}

/** Each pair: how long its two numbers are, a count of clusters, and how far from the last pair it is. */
function mappingPairs(data: Buffer): Extent[] {
  const extents: Extent[] = []
  let lcn = 0
  for (let offset = 0; offset < data.length && data[offset] !== 0;) {
    const sizes = data[offset] as number
    const [counted, moved] = [sizes & 15, sizes >> 4]
    if (counted < 1 || counted > 6 || moved > 6 || offset + 1 + counted + moved > data.length) {
      throw new Damaged()
    }
    const count = data.readUIntLE(offset + 1, counted)
    if (moved > 0) lcn += data.readIntLE(offset + 1 + counted, moved)
    if (lcn < 0) throw new Damaged()
    extents.push({ lcn: moved > 0 ? lcn : undefined, count })
    offset += 1 + counted + moved
  }
  return extents
}
