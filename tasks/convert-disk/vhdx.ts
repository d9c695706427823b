/** Virtual Hard Disk v2. Source: Microsoft, [MS-VHDX]. Little endian. */
import { guid, guidBytes, type Writer, type WriterOptions } from './image.ts'

export const MAX_SIZE = 64 * 1024 ** 4

const KB = 1024
const MB = 1024 * KB

/** Where this writer lays the file's parts: fixed by the specification up to the log, then in a row. */
const LAYOUT = {
  identifier: 0,
  headers: [64 * KB, 128 * KB],
  regionTables: [192 * KB, 256 * KB],
  log: { offset: 1 * MB, length: 1 * MB },
  metadata: { offset: 2 * MB, length: 1 * MB },
  bat: 3 * MB,
}

const REGION = {
  bat: '2dc27766-f623-4200-9d64-115e9bfd4a08',
  metadata: '8b7ca206-4790-4b9a-b8fe-575f050f886e',
}

const ITEM = {
  fileParameters: 'caa16737-fa36-4d43-b3b6-33f0aa44e76b',
  virtualDiskSize: '2fa54224-cd1b-4876-b211-5dbed83bf4b8',
  virtualDiskId: 'beca12ab-b2e6-4523-93ef-c309e000c746',
  logicalSectorSize: '8141bf1d-a96f-4709-ba47-f233a8faab5f',
  physicalSectorSize: 'cda348c7-445d-4471-9cc9-e9885251c556',
}

const IS_VIRTUAL_DISK = 2
const IS_REQUIRED = 4
const PAYLOAD_BLOCK_FULLY_PRESENT = 6n

/**
 * Hyper-V's own default is 32 MB. Two suit a converted disk better: data lies scattered in it, and a
 * block that holds any is written whole, while the table stays small enough (4 MB a terabyte).
 */
export const BLOCK = 2 * MB

export function writeVhdx({ file, virtualSize, type, uuid }: WriterOptions): Writer {
  const blocks = Math.ceil(virtualSize / BLOCK)
  // after each run of payload blocks the table has an entry for a sector bitmap, used by parents only
  const ratio = (2 ** 23 * 512) / BLOCK
  const entries = blocks + Math.floor((blocks - 1) / ratio)
  const table = Buffer.alloc(Math.ceil((entries * 8) / MB) * MB)
  let end = LAYOUT.bat + table.length
  let allocated = 0
  const place = (block: number): number => {
    const at = (block + Math.floor(block / ratio)) * 8
    const entry = table.readBigUInt64LE(at)
    if (entry !== 0n) return Number(entry >> 20n) * MB
    const offset = end
    table.writeBigUInt64LE((BigInt(offset / MB) << 20n) | PAYLOAD_BLOCK_FULLY_PRESENT, at)
    end += BLOCK
    allocated += BLOCK
    return offset
  }
  if (type === 'fixed') { for (let block = 0; block < blocks; block++) place(block) }
  const [fileWrite, dataWrite, diskId] = [uuid(), uuid(), uuid()]
  return {
    identifier: guid(diskId),
    allocated: () => allocated,
    write: async (offset, data) => {
      const writes = []
      for (let at = 0; at < data.length;) {
        const inside = (offset + at) % BLOCK
        const length = Math.min(BLOCK - inside, data.length - at)
        const to = place(Math.floor((offset + at) / BLOCK)) + inside
        writes.push(file.write(data, at, length, to))
        at += length
      }
      await Promise.all(writes)
    },
    finish: async () => {
      await file.truncate(end)
      const identifier = Buffer.alloc(64 * KB)
      identifier.write('vhdxfile', 0, 'latin1')
      identifier.write('vbox-to-hyperv', 8, 'utf16le')
      await file.write(identifier, 0, identifier.length, LAYOUT.identifier)
      for (const [index, at] of LAYOUT.headers.entries()) {
        const header = makeHeader(index + 1, fileWrite, dataWrite)
        await file.write(header, 0, header.length, at)
      }
      const regions = makeRegionTable(table.length)
      for (const at of LAYOUT.regionTables) await file.write(regions, 0, regions.length, at)
      const metadata = makeMetadata(virtualSize, type, diskId)
      await file.write(metadata, 0, metadata.length, LAYOUT.metadata.offset)
      await file.write(table, 0, table.length, LAYOUT.bat)
    },
  }
}

/** 2.2.2 Headers. The one with the higher sequence number is current; the log is empty. */
function makeHeader(sequence: number, fileWrite: Buffer, dataWrite: Buffer): Buffer {
  const header = Buffer.alloc(4 * KB)
  header.write('head', 0, 'latin1') // Signature
  header.writeBigUInt64LE(BigInt(sequence), 8) // SequenceNumber
  fileWrite.copy(header, 16, 0, 16) // FileWriteGuid
  dataWrite.copy(header, 32, 0, 16) // DataWriteGuid
  // LogGuid zero: nothing to replay
  header.writeUInt16LE(0, 64) // LogVersion
  header.writeUInt16LE(1, 66) // Version
  header.writeUInt32LE(LAYOUT.log.length, 68) // LogLength
  header.writeBigUInt64LE(BigInt(LAYOUT.log.offset), 72) // LogOffset
  header.writeUInt32LE(crc32c(header), 4) // Checksum
  return header
}

/** 2.2.3 Region Table. */
function makeRegionTable(batLength: number): Buffer {
  const table = Buffer.alloc(64 * KB)
  table.write('regi', 0, 'latin1') // Signature
  const regions = [
    { id: REGION.bat, offset: LAYOUT.bat, length: batLength },
    { id: REGION.metadata, ...LAYOUT.metadata },
  ]
  table.writeUInt32LE(regions.length, 8) // EntryCount
  regions.forEach(({ id, offset, length }, index) => {
    const at = 16 + index * 32
    guidBytes(id).copy(table, at) // Guid
    table.writeBigUInt64LE(BigInt(offset), at + 16) // FileOffset
    table.writeUInt32LE(length, at + 24) // Length
    table.writeUInt32LE(1, at + 28) // Required
  })
  table.writeUInt32LE(crc32c(table), 4) // Checksum
  return table
}

/** 2.6 Metadata Region. */
function makeMetadata(virtualSize: number, type: 'dynamic' | 'fixed', diskId: Buffer): Buffer {
  const region = Buffer.alloc(LAYOUT.metadata.length)
  region.write('metadata', 0, 'latin1') // Signature
  const parameters = Buffer.alloc(8)
  parameters.writeUInt32LE(BLOCK, 0) // BlockSize
  parameters.writeUInt32LE(type === 'fixed' ? 1 : 0, 4) // LeaveBlocksAllocated
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(virtualSize))
  const items = [
    { id: ITEM.fileParameters, data: parameters, flags: IS_REQUIRED },
    { id: ITEM.virtualDiskSize, data: size, flags: IS_VIRTUAL_DISK | IS_REQUIRED },
    { id: ITEM.virtualDiskId, data: diskId, flags: IS_VIRTUAL_DISK | IS_REQUIRED },
    { id: ITEM.logicalSectorSize, data: uint32(512), flags: IS_VIRTUAL_DISK | IS_REQUIRED },
    { id: ITEM.physicalSectorSize, data: uint32(4096), flags: IS_VIRTUAL_DISK | IS_REQUIRED },
  ]
  region.writeUInt16LE(items.length, 10) // EntryCount
  let offset = 64 * KB
  items.forEach(({ id, data, flags }, index) => {
    const at = 32 + index * 32
    guidBytes(id).copy(region, at) // ItemId
    region.writeUInt32LE(offset, at + 16) // Offset
    region.writeUInt32LE(data.length, at + 20) // Length
    region.writeUInt32LE(flags, at + 24)
    data.copy(region, offset)
    offset += data.length
  })
  return region
}

function uint32(value: number): Buffer {
  const data = Buffer.alloc(4)
  data.writeUInt32LE(value)
  return data
}

/** CRC-32C (Castagnoli), which zlib does not have: its polynomial, bits reversed, is 0x82F63B78. */
function crc32c(data: Buffer): number {
  let crc = 0xffffffff
  for (const byte of data) crc = (CRC[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8)
  return ~crc >>> 0
}

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1
  return value
})
