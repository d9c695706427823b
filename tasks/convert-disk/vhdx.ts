/** Virtual Hard Disk v2. Source: Microsoft, [MS-VHDX], whose sections are named. Little endian. */
import { little, read, text, type Values, write } from './header.ts'
import {
  type Bytes,
  type Image,
  ImageError,
  KB,
  MB,
  type ParentLink,
  Places,
  type Run,
  setBits,
  spread,
  TB,
  textOf,
  type Writer,
  type WriterOptions,
  ZEROS,
} from './image.ts'

export const MAX_VHDX = 64 * TB

const { u16, u32, u64, exact, guid } = little

/** 2.2.2 Headers. */
const HEADER = {
  signature: text(0, 4),
  checksum: u32(4),
  sequenceNumber: u64(8),
  fileWriteGuid: guid(16),
  dataWriteGuid: guid(32),
  logGuid: guid(48),
  logVersion: u16(64),
  version: u16(66),
  logLength: u32(68),
  logOffset: u64(72),
}
const HEADERS = [64 * KB, 128 * KB]
const HEADER_LENGTH = 4 * KB

/** 2.2.3.1 Region Table Header. */
const REGION_TABLE = { signature: text(0, 4), checksum: u32(4), entryCount: u32(8) }
const REGION_TABLES = [192 * KB, 256 * KB]
const REGION_TABLE_LENGTH = 64 * KB

/** 2.2.3.2 Region Table Entry. */
const REGION = { guid: guid(0), fileOffset: u64(16), length: u32(24), required: u32(28) }
const BAT = '2dc27766-f623-4200-9d64-115e9bfd4a08'
const METADATA = '8b7ca206-4790-4b9a-b8fe-575f050f886e'

/** 2.3.1.1 Entry Header. */
const LOG_ENTRY = {
  signature: text(0, 4),
  checksum: u32(4),
  entryLength: u32(8),
  tail: u32(12),
  sequenceNumber: exact(16),
  descriptorCount: u32(24),
  logGuid: guid(32),
  flushedFileOffset: u64(48),
  lastFileOffset: u64(56),
}
const LOG_ENTRY_LENGTH = 64

/** 2.3.1.2 Zero Descriptor and 2.3.1.3 Data Descriptor. */
const DESCRIPTOR = {
  signature: text(0, 4),
  trailingBytes: u32(4),
  leadingBytes: exact(8),
  zeroLength: u64(8),
  fileOffset: u64(16),
  sequenceNumber: exact(24),
}
const DESCRIPTOR_LENGTH = 32

/** 2.3.1.4 Data Sector. */
const DATA_SECTOR = { signature: text(0, 4), sequenceHigh: u32(4), sequenceLow: u32(4092) }
const LOG_SECTOR = 4 * KB
/** More than any writer takes; Hyper-V and qemu have 1 MB. */
const MOST_LOG = 8 * MB
/** A log of 1 MB has room for more, but for each the file would be read anew. */
const MOST_ZEROS = 4096
const NO_LOG = '00000000-0000-0000-0000-000000000000'

/** 2.6.1.1 Metadata Table Header. */
const METADATA_TABLE = { signature: text(0, 8), entryCount: u16(10) }

/** 2.6.1.2 Metadata Table Entry. */
const ENTRY = { itemId: guid(0), offset: u32(16), length: u32(20), flags: u32(24) }
const IS_VIRTUAL_DISK = 2
const IS_REQUIRED = 4

/** 2.6.2 Known Metadata Items. */
const ITEMS = {
  fileParameters: 'caa16737-fa36-4d43-b3b6-33f0aa44e76b',
  virtualDiskSize: '2fa54224-cd1b-4876-b211-5dbed83bf4b8',
  virtualDiskId: 'beca12ab-b2e6-4523-93ef-c309e000c746',
  logicalSectorSize: '8141bf1d-a96f-4709-ba47-f233a8faab5f',
  physicalSectorSize: 'cda348c7-445d-4471-9cc9-e9885251c556',
  parentLocator: 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c',
}
const LEAVE_BLOCKS_ALLOCATED = 1
const HAS_PARENT = 2

/** 2.6.2.6.1 Parent Locator Header and 2.6.2.6.2 Parent Locator Entry. */
const LOCATOR = { locatorType: guid(0), keyValueCount: u16(18) }
const LOCATOR_LENGTH = 20
const KEY_VALUE = {
  keyOffset: u32(0),
  valueOffset: u32(4),
  keyLength: u16(8),
  valueLength: u16(10),
}
const KEY_VALUE_LENGTH = 12
/** 2.6.2.6.3: who the parent is, and where it was. */
const LINKAGES = ['parent_linkage', 'parent_linkage2']
const PATHS = ['relative_path', 'absolute_win32_path', 'volume_path']
const MOST_ITEM = MB
/** The specification knows six. */
const MOST_KEYS = 64

/** 2.5.1.1 Payload BAT Entry States. */
const NOT_PRESENT = 0
const FULLY_PRESENT = 6
const RESERVED = [4, 5]
const PARTIALLY_PRESENT = 7

/** 2.5 BAT: after each so many payload blocks its table has an entry for a sector bitmap. */
const chunkRatio = (sectorSize: number, blockSize: number) => (2 ** 23 * sectorSize) / blockSize

export async function isVhdx(bytes: Bytes): Promise<boolean> {
  if (bytes.size < 8) return false
  return (await bytes.read(0, 8)).toString('latin1') === 'vhdxfile'
}

export async function openVhdx(file: Bytes): Promise<Image> {
  if (file.size < MB) throw new ImageError(file, file.size, 'the file ends within its headers')
  const header = await readHeader(file)
  const bytes = await replayLog(file, header)
  const regions = await readRegions(bytes)
  const items = await readMetadata(bytes, regions.metadata)
  const { blockSize, virtualDiskSize, virtualDiskId, leaveBlocksAllocated, parent } = items
  const sectorSize = items.logicalSectorSize
  const ratio = chunkRatio(sectorSize, blockSize)
  const blocks = Math.ceil(virtualDiskSize / blockSize)
  // of a differencing image the last bitmap has an entry too
  const bitmaps = parent ? Math.ceil(blocks / ratio) : Math.floor((blocks - 1) / ratio)
  const entries = parent ? bitmaps * (ratio + 1) : blocks + bitmaps
  // a log may say that the file is larger than it is, but its tables were made with it
  if (regions.bat.offset + regions.bat.length > file.size) {
    throw new ImageError(bytes, regions.bat.at, `its region ${BAT} is not within the file`)
  }
  if (entries * 8 > regions.bat.length) {
    throw new ImageError(
      bytes,
      regions.bat.at,
      `its block allocation table has no room for the ${blocks} blocks of its disk`,
    )
  }
  const bitmapSize = blockSize / sectorSize / 8
  const taken = [
    { offset: 0, length: MB },
    { offset: header.logOffset, length: header.logLength },
    regions.bat,
    regions.metadata,
  ]
  const isTaken = (at: number, length: number) =>
    taken.some((part) => at < part.offset + part.length && at + length > part.offset)
  return {
    format: 'vhdx',
    variant: parent ? 'differencing' : leaveBlocksAllocated ? 'fixed' : 'dynamic',
    virtualSize: virtualDiskSize,
    sectorSize,
    identifier: virtualDiskId,
    states: [header.dataWriteGuid],
    // a child has its parent's VirtualDiskId: forking copies what is of the virtual disk (2.6.1.2)
    ...(parent && { parent: { ...parent, identifier: virtualDiskId } }),
    warnings: bytes === file ? [] : [
      `"${file.name}" was not closed in order: what its log holds was read with it`,
    ],
    async *runs(from = 0): AsyncGenerator<Run> {
      const places = new Places(blockSize, MB)
      const readEntries = (first: number, count: number) =>
        bytes.read(regions.bat.offset + first * 8, count * 8)
      const entryOf = (table: Buffer, index: number) => {
        const low = table.readUInt32LE(index * 8)
        const high = table.readUInt32LE(index * 8 + 4)
        return { state: low & 7, at: (high * 4096 + (low >>> 20)) * MB }
      }
      let table: Buffer | undefined
      const refuse = (index: number, reason: string) => {
        return new ImageError(bytes, regions.bat.offset + index * 8, reason)
      }
      for (let block = Math.floor(from / blockSize), first = 0; block < blocks; block++) {
        const index = block + Math.floor(block / ratio)
        if (!table || index >= first + CHUNK) {
          first = index
          table = await readEntries(first, Math.min(CHUNK, entries - first))
        }
        const { state, at } = entryOf(table, index - first)
        if (state === NOT_PRESENT) continue
        const offset = block * blockSize
        const length = Math.min(blockSize, virtualDiskSize - offset)
        const stored = state === FULLY_PRESENT || state === PARTIALLY_PRESENT
        const wrong = RESERVED.includes(state) || state === PARTIALLY_PRESENT && !parent
          ? `in state ${state}, in which no block of such a disk is`
          : !stored
          ? undefined
          : at + length > bytes.size
          ? 'not within the file, which may be cut short'
          : isTaken(at, length) || !places.add(at)
          ? 'where another block or the header is'
          : undefined
        if (wrong) throw refuse(index, `block ${block} is ${wrong}`)
        if (state === FULLY_PRESENT) yield { offset, length, bytes, at }
        else if (!stored) {
          if (parent) yield { offset, length, bytes: ZEROS, at: offset }
        } else {
          const chunk = Math.floor(block / ratio)
          const bitmapIndex = chunk * (ratio + 1) + ratio
          const bitmap = entryOf(await readEntries(bitmapIndex, 1), 0)
          const position = bitmap.at + (block % ratio) * bitmapSize
          if (
            bitmap.state !== FULLY_PRESENT || isTaken(bitmap.at, MB) ||
            bitmap.at < at + length && bitmap.at + MB > at || position + bitmapSize > bytes.size
          ) {
            const reason = `the sector bitmap of block ${block} is not where one can be`
            throw refuse(bitmapIndex, reason)
          }
          const bits = await bytes.read(position, bitmapSize)
          for (const { start, end } of setBits(bits, length / sectorSize, 'low first')) {
            yield {
              offset: offset + start * sectorSize,
              length: (end - start) * sectorSize,
              bytes,
              at: at + start * sectorSize,
            }
          }
        }
      }
    },
  }
}

/** Entries of the block allocation table that are read at once. */
const CHUNK = 64 * KB

type Header = Values<typeof HEADER>

/** The newer of the two headers that are whole. */
async function readHeader(bytes: Bytes): Promise<Header> {
  const headers = []
  for (const at of HEADERS) {
    const data = await bytes.read(at, HEADER_LENGTH)
    const header = read(HEADER, data)
    if (header.signature === 'head' && header.checksum === checksumOf(data)) {
      headers.push({ at, header })
    }
  }
  const [current] = headers.sort((a, b) => b.header.sequenceNumber - a.header.sequenceNumber)
  if (!current) throw new ImageError(bytes, HEADERS[0] as number, 'both its headers are damaged')
  const { at, header } = current
  const refuse = (field: keyof Header, reason: string) => {
    return new ImageError(bytes, at + HEADER[field].at, reason)
  }
  if (header.version !== 1) {
    throw refuse('version', `its version is ${header.version}, and only 1 is known`)
  }
  if (header.logGuid === NO_LOG) return header
  const { logOffset, logLength, logVersion } = header
  if (logVersion !== 0) {
    throw refuse('logVersion', `its log has version ${logVersion}, and 0 is known`)
  }
  if (logLength === 0 || logLength > MOST_LOG) {
    throw refuse('logLength', `its log has ${logLength} bytes, which no log has`)
  }
  if (logOffset < MB || logLength % MB || logOffset + logLength > bytes.size) {
    throw refuse('logOffset', 'its log is not within the file')
  }
  return header
}

interface LogEntry {
  /** Byte of the log. */
  at: number
  length: number
  tail: number
  sequenceNumber: bigint
  flushedFileOffset: number
  lastFileOffset: number
  /** Descriptors, and where the data of each is in the log. */
  descriptors: (Values<typeof DESCRIPTOR> & { dataAt: number })[]
}

/** 2.3.3 Log Replay: the file as it is with the changes of its log in their places. The file stays as it is. */
async function replayLog(file: Bytes, header: Header): Promise<Bytes> {
  if (header.logGuid === NO_LOG) return file
  const { logOffset, logLength } = header
  const refuse = (reason: string) => new ImageError(file, logOffset, reason)
  /** The log is a ring. */
  const readRing = async (at: number, length: number) => {
    const first = Math.min(length, logLength - at)
    const data = await file.read(logOffset + at, first)
    if (first === length) return data
    return Buffer.concat([data, await file.read(logOffset, length - first)])
  }
  // what looks like an entry is summed up whole; of damage that costs no more than a few logs
  let budget = 4 * logLength
  const readEntry = async (at: number): Promise<LogEntry | undefined> => {
    const entry = read(LOG_ENTRY, await file.read(logOffset + at, LOG_ENTRY_LENGTH))
    const { signature, entryLength: length, descriptorCount, logGuid, sequenceNumber, tail } = entry
    const sectors = Math.ceil((LOG_ENTRY_LENGTH + descriptorCount * DESCRIPTOR_LENGTH) / LOG_SECTOR)
    const wrong = signature !== 'loge' || logGuid !== header.logGuid || sequenceNumber === 0n ||
      length === 0 || length % LOG_SECTOR || tail % LOG_SECTOR || length > logLength ||
      tail >= logLength || sectors * LOG_SECTOR > length
    if (wrong) return undefined
    budget -= length
    if (budget < 0) throw refuse('its log is damaged')
    const data = await readRing(at, length)
    if (entry.checksum !== checksumOf(data)) return undefined
    const descriptors: LogEntry['descriptors'] = []
    let sector = sectors
    for (let index = 0; index < descriptorCount; index++) {
      const position = LOG_ENTRY_LENGTH + index * DESCRIPTOR_LENGTH
      const descriptor = read(DESCRIPTOR, data, position)
      const { signature, fileOffset, zeroLength } = descriptor
      if (descriptor.sequenceNumber !== sequenceNumber || fileOffset % LOG_SECTOR) return undefined
      // its sum is right, so it is no left-over: without it the disk would be another
      const end = fileOffset + (signature === 'zero' ? zeroLength : LOG_SECTOR)
      if (end > 2 * MAX_VHDX) throw refuse('its log changes bytes that no file has')
      if (signature === 'zero') {
        if (zeroLength % LOG_SECTOR) return undefined
        descriptors.push({ ...descriptor, dataAt: -1 })
        continue
      }
      const dataAt = sector++ * LOG_SECTOR
      if (signature !== 'desc' || dataAt + LOG_SECTOR > length) return undefined
      const { signature: mark, sequenceHigh, sequenceLow } = read(DATA_SECTOR, data, dataAt)
      const sequence = BigInt(sequenceHigh) << 32n | BigInt(sequenceLow)
      if (mark !== 'data' || sequence !== sequenceNumber) return undefined
      descriptors.push({ ...descriptor, dataAt: (at + dataAt) % logLength })
    }
    const { flushedFileOffset, lastFileOffset } = entry
    return { at, length, tail, sequenceNumber, flushedFileOffset, lastFileOffset, descriptors }
  }
  let active: LogEntry[] = []
  for (let tail = 0, previous = -1; tail > previous;) {
    const sequence: LogEntry[] = []
    let head = tail
    for (let used = 0; used < logLength;) {
      const entry = await readEntry(head)
      const last = sequence.at(-1)
      if (!entry || last && entry.sequenceNumber !== last.sequenceNumber + 1n) break
      sequence.push(entry)
      used += entry.length
      head = (head + entry.length) % logLength
    }
    const last = sequence.at(-1)
    const start = sequence.findIndex(({ at }) => at === last?.tail)
    if (last && start >= 0 && last.sequenceNumber > (active.at(-1)?.sequenceNumber ?? 0n)) {
      active = sequence.slice(start)
    }
    previous = tail
    tail = last && start >= 0 ? head : (tail + LOG_SECTOR) % logLength
  }
  const last = active.at(-1)
  if (!last) throw refuse('its log holds changes that are damaged')
  if (file.size < last.flushedFileOffset) {
    throw refuse(`the file is cut short: it had ${textOf(last.flushedFileOffset)}`)
  }
  const zeros = active.flatMap(({ descriptors }) => descriptors).filter(({ dataAt }) => dataAt < 0)
  if (zeros.length > MOST_ZEROS) throw refuse(`its log has ${zeros.length} ranges of zeros`)
  return applyLog(file, active, { ...last, read: readRing })
}

function applyLog(
  file: Bytes,
  entries: LogEntry[],
  log: { lastFileOffset: number; read: (at: number, length: number) => Promise<Buffer> },
): Bytes {
  const zeros: { start: number; end: number }[] = []
  const sectors = new Map<number, Values<typeof DESCRIPTOR> & { dataAt: number }>()
  let size = Math.max(file.size, log.lastFileOffset)
  for (const descriptor of entries.flatMap(({ descriptors }) => descriptors)) {
    const { fileOffset: start, dataAt, zeroLength } = descriptor
    if (dataAt >= 0) {
      sectors.set(start, descriptor)
      size = Math.max(size, start + LOG_SECTOR)
      continue
    }
    const end = start + zeroLength
    zeros.push({ start, end })
    for (const at of sectors.keys()) if (at >= start && at < end) sectors.delete(at)
    size = Math.max(size, end)
  }
  const readSector = async (at: number) => {
    const { dataAt, leadingBytes, trailingBytes } = sectors.get(at) as Values<typeof DESCRIPTOR> & {
      dataAt: number
    }
    const data = await log.read(dataAt, LOG_SECTOR)
    data.writeBigUInt64LE(leadingBytes, 0)
    data.writeUInt32LE(trailingBytes, LOG_SECTOR - 4)
    return data
  }
  return {
    name: file.name,
    size,
    read: async (position, length, into = Buffer.allocUnsafe(length)) => {
      const end = position + length
      if (end > size) throw new ImageError(file, size, 'the file ends there')
      const there = Math.max(0, Math.min(length, file.size - position))
      if (there > 0) await file.read(position, there, into.subarray(0, there))
      into.fill(0, there, length)
      for (const zero of zeros) {
        if (zero.start >= end || zero.end <= position) continue
        into.fill(0, Math.max(zero.start, position) - position, Math.min(zero.end, end) - position)
      }
      for (let at = position - position % LOG_SECTOR; at < end; at += LOG_SECTOR) {
        if (!sectors.has(at)) continue
        const [from, to] = [Math.max(at, position), Math.min(at + LOG_SECTOR, end)]
        const data = await readSector(at)
        data.copy(into, from - position, from - at, to - at)
      }
      return into
    },
  }
}

interface Region {
  /** Byte of its entry. */
  at: number
  offset: number
  length: number
}

async function readRegions(bytes: Bytes): Promise<{ bat: Region; metadata: Region }> {
  for (const at of REGION_TABLES) {
    const data = await bytes.read(at, REGION_TABLE_LENGTH)
    const { signature, checksum, entryCount } = read(REGION_TABLE, data)
    if (signature !== 'regi' || checksum !== checksumOf(data) || entryCount > 2047) continue
    const regions: Record<string, Region> = {}
    for (let index = 0; index < entryCount; index++) {
      const entry = at + 16 + index * 32
      const { guid, fileOffset: offset, length, required } = read(REGION, data, entry - at)
      const known = guid === BAT || guid === METADATA
      const wrong = !known && required & 1
        ? `its region ${guid} is none that is known`
        : offset < MB || offset % MB || length % MB || offset + length > bytes.size
        ? `its region ${guid} is not within the file`
        : guid in regions
        ? `its region ${guid} occurs twice`
        : Object.values(regions).some((other) =>
            offset < other.offset + other.length && offset + length > other.offset
          )
        ? `its region ${guid} is where another is`
        : undefined
      if (wrong) throw new ImageError(bytes, entry, wrong)
      regions[guid] = { at: entry, offset, length }
    }
    const { [BAT]: bat, [METADATA]: metadata } = regions
    if (!bat || !metadata) throw new ImageError(bytes, at, 'its region table lacks a region')
    return { bat, metadata }
  }
  throw new ImageError(bytes, REGION_TABLES[0] as number, 'both its region tables are damaged')
}

async function readMetadata(bytes: Bytes, region: Region) {
  const refuse = (at: number, reason: string) => new ImageError(bytes, region.offset + at, reason)
  if (region.length < 64 * KB) throw refuse(0, 'its metadata region is cut short')
  const data = await bytes.read(region.offset, 64 * KB)
  const { signature, entryCount } = read(METADATA_TABLE, data)
  if (signature !== 'metadata' || entryCount > 2047) throw refuse(0, 'its metadata is damaged')
  const found: Record<string, Buffer> = {}
  for (let index = 0; index < entryCount; index++) {
    const at = 32 + index * 32
    const { itemId, offset, length, flags } = read(ENTRY, data, at)
    const name = Object.entries(ITEMS).find(([, id]) => id === itemId)?.[0]
    if (name === undefined && flags & IS_REQUIRED) {
      throw refuse(at, `its metadata item ${itemId} is none that is known`)
    }
    if (length > 0 && (offset < 64 * KB || offset + length > region.length)) {
      throw refuse(at, `its metadata item ${itemId} is not within its region`)
    }
    if (name && name in found) throw refuse(at, `its metadata item ${itemId} occurs twice`)
    if (name && length <= MOST_ITEM) found[name] = await bytes.read(region.offset + offset, length)
  }
  const item = (name: keyof typeof ITEMS, length: number) => {
    const data = found[name]
    if (data?.length === length) return data
    throw refuse(0, `its metadata has no ${name}`)
  }
  const parameters = item('fileParameters', 8)
  const blockSize = parameters.readUInt32LE(0)
  const flags = parameters.readUInt32LE(4)
  const virtualDiskSize = little.u64(0).get(item('virtualDiskSize', 8))
  const logicalSectorSize = item('logicalSectorSize', 4).readUInt32LE(0)
  if (blockSize < MB || blockSize > 256 * MB || (blockSize & (blockSize - 1)) !== 0) {
    throw refuse(0, `its blocks have ${blockSize} bytes`)
  }
  if (logicalSectorSize !== 512 && logicalSectorSize !== 4096) {
    throw refuse(0, `its sectors have ${logicalSectorSize} bytes`)
  }
  if (virtualDiskSize === 0 || virtualDiskSize > MAX_VHDX || virtualDiskSize % logicalSectorSize) {
    throw refuse(0, `its disk has ${textOf(virtualDiskSize)}`)
  }
  return {
    blockSize,
    leaveBlocksAllocated: (flags & LEAVE_BLOCKS_ALLOCATED) !== 0,
    virtualDiskSize,
    virtualDiskId: little.guid(0).get(item('virtualDiskId', 16)),
    logicalSectorSize: logicalSectorSize as 512 | 4096,
    ...(flags & HAS_PARENT && {
      parent: readLocator(found.parentLocator, region.offset, (reason) => refuse(0, reason)),
    }),
  }
}

/** 2.6.2.6 Parent Locator: keys and values, in UTF-16. */
function readLocator(
  data: Buffer | undefined,
  at: number,
  refuse: (reason: string) => ImageError,
): ParentLink {
  if (!data || data.length < LOCATOR_LENGTH) throw refuse('it names no parent, and must have one')
  const values = new Map<string, string>()
  const { keyValueCount } = read(LOCATOR, data)
  if (keyValueCount > MOST_KEYS) throw refuse(`its parent locator has ${keyValueCount} entries`)
  for (let index = 0; index < keyValueCount; index++) {
    const entry = LOCATOR_LENGTH + index * KEY_VALUE_LENGTH
    if (entry + KEY_VALUE_LENGTH > data.length) throw refuse('its parent locator is cut short')
    const { keyOffset, keyLength, valueOffset, valueLength } = read(KEY_VALUE, data, entry)
    const part = (offset: number, length: number) => {
      if (offset + length > data.length) throw refuse('its parent locator is cut short')
      return data.toString('utf16le', offset, offset + length)
    }
    values.set(part(keyOffset, keyLength).toLowerCase(), part(valueOffset, valueLength))
  }
  const all = (keys: string[]) => {
    return keys.map((key) => values.get(key)).filter((value) => value !== undefined)
  }
  const states = all(LINKAGES).map((value) => value.replace(/[{}]/g, '').toLowerCase())
  if (states.length === 0) throw refuse('its parent locator does not say who the parent is')
  return { states, paths: all(PATHS), at }
}

/** Where this writer lays the parts that have no fixed place. */
const LAYOUT = {
  log: { offset: 1 * MB, length: 1 * MB },
  metadata: { offset: 2 * MB, length: 1 * MB },
  bat: 3 * MB,
}

/** Partitions of Linux: MBR types, and GUIDs of the Discoverable Partitions Specification. */
const LINUX = [
  ...['82', '83', '88', '8e', 'fd'],
  '0fc63daf-8483-4772-8e79-3d69d8477de4', // Linux filesystem data
  '0657fd6d-a4ab-43c4-84e5-0933c84b4f4f', // swap
  'e6d6d379-f507-44c2-a23c-238f2a3df928', // LVM
  'a19d880f-05fc-4d3b-a006-743f0f84911e', // RAID
  '4f68bce3-e8cd-4db1-96e7-fbcaf984b709', // root of x86-64
]

/**
 * The block size for a guest, and why. A block that holds any data takes its whole size in the file;
 * Hyper-V's own default, 32 MB, is for disks that begin empty.
 * Source: Microsoft, Best Practices for running Linux on Hyper-V, which has 1 MB for ext4.
 */
export function chooseBlockSize(
  virtualSize: number,
  partitions: { type: string }[],
): { blockSize: number; reason: string } {
  const linux = partitions.some(({ type }) => LINUX.includes(type.toLowerCase()))
  // the block allocation table, 8 bytes a block, is held in memory by the host: 16 MB at most
  const least = 2 ** Math.ceil(Math.log2(virtualSize / (2 * MB)))
  if (least > 2 * MB) {
    return {
      blockSize: least,
      reason: 'the disk is so large that smaller blocks take too large a table',
    }
  }
  return linux
    ? { blockSize: Math.max(MB, least), reason: 'Linux spreads small data over the whole disk' }
    : { blockSize: 2 * MB, reason: 'data of a disk that was used lies scattered' }
}

export function writeVhdx(
  { file, virtualSize, sectorSize, type, blockSize = 2 * MB, uuid }: WriterOptions,
): Writer {
  const blocks = Math.ceil(virtualSize / blockSize)
  const ratio = chunkRatio(sectorSize, blockSize)
  const entries = blocks + Math.floor((blocks - 1) / ratio)
  const table = Buffer.alloc(Math.ceil(entries * 8 / MB) * MB)
  let end = LAYOUT.bat + table.length
  const positionOf = (block: number): number => {
    const at = (block + Math.floor(block / ratio)) * 8
    const entry = table.readBigUInt64LE(at)
    if (entry !== 0n) return Number(entry >> 20n) * MB
    const position = end
    table.writeBigUInt64LE((BigInt(position / MB) << 20n) | BigInt(FULLY_PRESENT), at)
    end += blockSize
    return position
  }
  if (type === 'fixed') { for (let block = 0; block < blocks; block++) positionOf(block) }
  const [fileWriteGuid, dataWriteGuid, diskId] = [uuid(), uuid(), uuid()]
  return {
    identifier: diskId,
    length: end,
    ...(type === 'dynamic' && { blockSize }),
    place: (offset, data) => spread(offset, data, blockSize, positionOf),
    finish: async () => {
      const put = (data: Buffer, at: number) => file.write(data, 0, data.length, at)
      await file.truncate(end)
      await put(makeIdentifier(), 0)
      for (const [index, at] of HEADERS.entries()) {
        await put(
          seal(write(HEADER, HEADER_LENGTH, {
            signature: 'head',
            sequenceNumber: index + 1,
            fileWriteGuid,
            dataWriteGuid,
            version: 1,
            logLength: LAYOUT.log.length,
            logOffset: LAYOUT.log.offset,
          })),
          at,
        )
      }
      for (const at of REGION_TABLES) await put(makeRegionTable(table.length), at)
      const metadata = makeMetadata({ virtualSize, sectorSize, type, blockSize, diskId })
      await put(metadata, LAYOUT.metadata.offset)
      await put(table, LAYOUT.bat)
    },
  }
}

/** 2.2.1 File Type Identifier. */
function makeIdentifier(): Buffer {
  const identifier = Buffer.alloc(64 * KB)
  identifier.write('vhdxfile', 0, 'latin1') // Signature
  identifier.write('vbox-to-hyperv', 8, 'utf16le') // Creator
  return identifier
}

function makeRegionTable(batLength: number): Buffer {
  const table = write(REGION_TABLE, REGION_TABLE_LENGTH, { signature: 'regi', entryCount: 2 })
  const { offset, length } = LAYOUT.metadata
  const regions = [
    { guid: BAT, fileOffset: LAYOUT.bat, length: batLength, required: 1 },
    { guid: METADATA, fileOffset: offset, length, required: 1 },
  ]
  regions.forEach((region, index) => write(REGION, 32, region).copy(table, 16 + index * 32))
  return seal(table)
}

function makeMetadata({ virtualSize, sectorSize, type, blockSize, diskId }: {
  virtualSize: number
  sectorSize: number
  type: 'dynamic' | 'fixed'
  blockSize: number
  diskId: string
}): Buffer {
  const flags = type === 'fixed' ? LEAVE_BLOCKS_ALLOCATED : 0
  const parameters = { blockSize: u32(0), flags: u32(4) }
  const number = (value: number) => write({ value: u32(0) }, 4, { value })
  const ofDisk = IS_VIRTUAL_DISK | IS_REQUIRED
  const items: [id: string, flags: number, data: Buffer][] = [
    [ITEMS.fileParameters, IS_REQUIRED, write(parameters, 8, { blockSize, flags })],
    [ITEMS.virtualDiskSize, ofDisk, write({ value: u64(0) }, 8, { value: virtualSize })],
    [ITEMS.virtualDiskId, ofDisk, write({ value: guid(0) }, 16, { value: diskId })],
    [ITEMS.logicalSectorSize, ofDisk, number(sectorSize)],
    // what disks have by now; a guest aligns to it
    [ITEMS.physicalSectorSize, ofDisk, number(4096)],
  ]
  const region = write(METADATA_TABLE, LAYOUT.metadata.length, {
    signature: 'metadata',
    entryCount: items.length,
  })
  let offset = 64 * KB
  items.forEach(([itemId, flags, data], index) => {
    write(ENTRY, 32, { itemId, offset, length: data.length, flags }).copy(region, 32 + index * 32)
    data.copy(region, offset)
    offset += data.length
  })
  return region
}

/** Both tables that carry a checksum have it at the same place. */
function seal(data: Buffer): Buffer {
  HEADER.checksum.set(data, checksumOf(data))
  return data
}

/** CRC-32C (Castagnoli) of the data with the checksum itself zero. Its polynomial is not zlib's. */
function checksumOf(data: Buffer): number {
  let crc = 0xffffffff
  const { at } = HEADER.checksum
  for (let index = 0; index < data.length; index++) {
    const byte = index >= at && index < at + 4 ? 0 : data[index] as number
    crc = (CRC[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8)
  }
  return ~crc >>> 0
}

/** 0x1EDC6F41 with its bits reversed. */
const POLYNOMIAL = 0x82f63b78

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) {
    value = value & 1 ? (value >>> 1) ^ POLYNOMIAL : value >>> 1
  }
  return value
})
