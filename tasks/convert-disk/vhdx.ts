/** Virtual Hard Disk v2. Source: Microsoft, [MS-VHDX], whose sections are named. Little endian. */
import { little, read, text, write } from './header.ts'
import {
  type Bytes,
  type Image,
  ImageError,
  KB,
  MB,
  Places,
  type Run,
  spread,
  TB,
  type Writer,
  type WriterOptions,
} from './image.ts'

export const MAX_VHDX = 64 * TB

const { u16, u32, u64, guid } = little

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
  logGuid: guid(32),
}
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

/** 2.5.1.1 Payload BAT Entry States. */
const FULLY_PRESENT = 6
const RESERVED = [4, 5]
const PARTIALLY_PRESENT = 7

/** 2.5 BAT: after each so many payload blocks its table has an entry for a sector bitmap. */
const chunkRatio = (sectorSize: number, blockSize: number) => (2 ** 23 * sectorSize) / blockSize

export async function isVhdx(bytes: Bytes): Promise<boolean> {
  if (bytes.size < 8) return false
  return (await bytes.read(0, 8)).toString('latin1') === 'vhdxfile'
}

export async function openVhdx(bytes: Bytes): Promise<Image> {
  if (bytes.size < MB) throw new ImageError(bytes, bytes.size, 'the file ends within its headers')
  await refuseLog(bytes)
  const regions = await readRegions(bytes)
  const items = await readMetadata(bytes, regions.metadata)
  const { blockSize, virtualDiskSize, virtualDiskId, leaveBlocksAllocated } = items
  const sectorSize = items.logicalSectorSize
  const ratio = chunkRatio(sectorSize, blockSize)
  const blocks = Math.ceil(virtualDiskSize / blockSize)
  const entries = blocks + Math.floor((blocks - 1) / ratio)
  if (entries * 8 > regions.bat.length) {
    throw new ImageError(
      bytes,
      regions.bat.at,
      `its block allocation table has no room for the ${blocks} blocks of its disk`,
    )
  }
  return {
    format: 'vhdx',
    variant: leaveBlocksAllocated ? 'fixed' : 'dynamic',
    virtualSize: virtualDiskSize,
    sectorSize,
    identifier: virtualDiskId,
    async *runs(from = 0): AsyncGenerator<Run> {
      const places = new Places(blockSize, MB)
      let table: Buffer | undefined
      for (let block = Math.floor(from / blockSize), first = 0; block < blocks; block++) {
        const entry = block + Math.floor(block / ratio)
        if (!table || entry >= first + CHUNK) {
          first = entry
          const length = Math.min(CHUNK, entries - first) * 8
          table = await bytes.read(regions.bat.offset + first * 8, length)
        }
        const low = table.readUInt32LE((entry - first) * 8)
        const state = low & 7
        const at = (table.readUInt32LE((entry - first) * 8 + 4) * 4096 + (low >>> 20)) * MB
        const offset = block * blockSize
        const length = Math.min(blockSize, virtualDiskSize - offset)
        const wrong = RESERVED.includes(state) || state === PARTIALLY_PRESENT
          ? `in state ${state}, in which no block of such a disk is`
          : state !== FULLY_PRESENT
          ? undefined
          : at + length > bytes.size
          ? 'not within the file, which may be cut short'
          : at < MB || !places.add(at)
          ? 'where another block or the header is'
          : undefined
        if (wrong) {
          const position = regions.bat.offset + entry * 8
          throw new ImageError(bytes, position, `block ${block} is ${wrong}`)
        }
        if (state === FULLY_PRESENT) yield { offset, length, bytes, at }
      }
    },
  }
}

/** Entries of the block allocation table that are read at once. */
const CHUNK = 64 * KB

/** A log holds changes that are not in their places yet. */
async function refuseLog(bytes: Bytes): Promise<void> {
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
  const { at, header: { version, logGuid, logOffset, logLength } } = current
  if (version !== 1) {
    throw new ImageError(
      bytes,
      at + HEADER.version.at,
      `its version is ${version}, and only 1 is known`,
    )
  }
  if (logGuid === NO_LOG) return
  if (logOffset < MB || logLength % MB || logOffset + logLength > bytes.size) {
    throw new ImageError(bytes, at + HEADER.logOffset.at, 'its log is not within the file')
  }
  for (let position = 0; position < logLength; position += 4 * KB) {
    const data = await bytes.read(logOffset + position, 4 * KB)
    const entry = read(LOG_ENTRY, data)
    if (entry.signature !== 'loge' || entry.logGuid !== logGuid) continue
    throw new ImageError(
      bytes,
      logOffset + position,
      'its log holds changes that are not in their places yet: it was not closed in order. ' +
        'On Windows, Mount-VHD and Dismount-VHD mend it',
    )
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
    if (name && length <= 16) found[name] = await bytes.read(region.offset + offset, length)
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
  if (flags & HAS_PARENT) {
    throw refuse(
      0,
      'it is a differencing image, which holds only what changed since its parent. ' +
        'On Windows, Merge-VHD puts both into one',
    )
  }
  if (blockSize < MB || blockSize > 256 * MB || (blockSize & (blockSize - 1)) !== 0) {
    throw refuse(0, `its blocks have ${blockSize} bytes`)
  }
  if (logicalSectorSize !== 512 && logicalSectorSize !== 4096) {
    throw refuse(0, `its sectors have ${logicalSectorSize} bytes`)
  }
  if (virtualDiskSize === 0 || virtualDiskSize > MAX_VHDX || virtualDiskSize % logicalSectorSize) {
    throw refuse(0, `its disk has ${virtualDiskSize} bytes`)
  }
  return {
    blockSize,
    leaveBlocksAllocated: (flags & LEAVE_BLOCKS_ALLOCATED) !== 0,
    virtualDiskSize,
    virtualDiskId: little.guid(0).get(item('virtualDiskId', 16)),
    logicalSectorSize: logicalSectorSize as 512 | 4096,
  }
}

/** Where this writer lays the parts that have no fixed place. */
const LAYOUT = {
  log: { offset: 1 * MB, length: 1 * MB },
  metadata: { offset: 2 * MB, length: 1 * MB },
  bat: 3 * MB,
}

/**
 * 2 MB up to 4 TB. Hyper-V's default is 32 MB, but in a disk that was used data lies scattered, and a
 * block that holds any takes its whole size in the file. Beyond, the size that keeps the table at
 * 16 MB: 32 MB at 64 TB.
 */
function blockSizeFor(virtualSize: number): number {
  let blockSize = 2 * MB
  while (virtualSize / blockSize > 2 * MB) blockSize *= 2
  return blockSize
}

export async function writeVhdx(
  { file, virtualSize, sectorSize, type, uuid }: WriterOptions,
): Promise<Writer> {
  const blockSize = blockSizeFor(virtualSize)
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
  await file.truncate(end)
  const [fileWriteGuid, dataWriteGuid, diskId] = [uuid(), uuid(), uuid()]
  return {
    identifier: diskId,
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
