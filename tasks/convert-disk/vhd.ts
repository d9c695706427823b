/** Virtual Hard Disk. Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0. Big endian. */
import { uuid, type Writer, type WriterOptions } from './image.ts'

export const MAX_SIZE = 2040 * 1024 ** 3

const SECTOR = 512
const BLOCK = 2 * 1024 ** 2
/** A bit for each sector of a block: set, the sector is the block's own. */
const BITMAP = BLOCK / SECTOR / 8
const UNUSED = 0xffffffff

export async function writeVhd(
  { file, virtualSize, type, uuid: next }: WriterOptions,
): Promise<Writer> {
  const id = next()
  const footer = makeFooter(virtualSize, type, id)
  if (type === 'fixed') {
    await file.truncate(virtualSize + SECTOR)
    let allocated = 0
    return {
      identifier: uuid(id),
      allocated: () => allocated,
      write: async (offset, data) => {
        await file.write(data, 0, data.length, offset)
        allocated += data.length
      },
      finish: async () => {
        await file.write(footer, 0, SECTOR, virtualSize)
      },
    }
  }
  const blocks = Math.ceil(virtualSize / BLOCK)
  const tableLength = Math.ceil((blocks * 4) / SECTOR) * SECTOR
  const table = Buffer.alloc(tableLength, 0xff)
  let end = 3 * SECTOR + tableLength
  let allocated = 0
  const bitmap = Buffer.alloc(BITMAP, 0xff)
  return {
    identifier: uuid(id),
    allocated: () => allocated,
    write: async (offset, data) => {
      const writes = []
      for (let at = 0; at < data.length;) {
        const block = Math.floor((offset + at) / BLOCK)
        const inside = (offset + at) % BLOCK
        const length = Math.min(BLOCK - inside, data.length - at)
        let sector = table.readUInt32BE(block * 4)
        if (sector === UNUSED) {
          sector = end / SECTOR
          table.writeUInt32BE(sector, block * 4)
          end += BITMAP + BLOCK
          allocated += BLOCK
          writes.push(file.write(bitmap, 0, BITMAP, sector * SECTOR))
        }
        writes.push(file.write(data, at, length, sector * SECTOR + BITMAP + inside))
        at += length
      }
      await Promise.all(writes)
    },
    finish: async () => {
      const header = makeDynamicHeader(blocks)
      await file.write(footer, 0, SECTOR, 0)
      await file.write(header, 0, header.length, SECTOR)
      await file.write(table, 0, table.length, 3 * SECTOR)
      await file.truncate(end + SECTOR)
      await file.write(footer, 0, SECTOR, end)
    },
  }
}

/**
 * Hard Disk Footer Format. The creator says "win ", as Hyper-V does: readers that doubt the size of
 * other creators and take the rounded CHS geometry instead believe this one (qemu's vpc.c).
 */
function makeFooter(virtualSize: number, type: 'dynamic' | 'fixed', id: Buffer): Buffer {
  const footer = Buffer.alloc(SECTOR)
  footer.write('conectix', 0, 'latin1') // Cookie
  footer.writeUInt32BE(2, 8) // Features: reserved, always set
  footer.writeUInt32BE(0x10000, 12) // File Format Version
  footer.writeBigUInt64BE(type === 'fixed' ? 0xffffffffffffffffn : BigInt(SECTOR), 16) // Data Offset
  footer.writeUInt32BE(0, 24) // Time Stamp: seconds since 2000; left at zero, so that equal disks are equal
  footer.write('win ', 28, 'latin1') // Creator Application
  footer.writeUInt32BE(0x000a0000, 32) // Creator Version
  footer.write('Wi2k', 36, 'latin1') // Creator Host OS
  footer.writeBigUInt64BE(BigInt(virtualSize), 40) // Original Size
  footer.writeBigUInt64BE(BigInt(virtualSize), 48) // Current Size
  const { cylinders, heads, sectors } = geometry(virtualSize / SECTOR)
  footer.writeUInt16BE(cylinders, 56) // Disk Geometry
  footer.writeUInt8(heads, 58)
  footer.writeUInt8(sectors, 59)
  footer.writeUInt32BE(type === 'fixed' ? 2 : 3, 60) // Disk Type
  id.copy(footer, 68, 0, 16) // Unique Id
  footer.writeUInt32BE(checksum(footer), 64)
  return footer
}

/** Dynamic Disk Header Format. */
function makeDynamicHeader(blocks: number): Buffer {
  const header = Buffer.alloc(2 * SECTOR)
  header.write('cxsparse', 0, 'latin1') // Cookie
  header.writeBigUInt64BE(0xffffffffffffffffn, 8) // Data Offset
  header.writeBigUInt64BE(BigInt(3 * SECTOR), 16) // Table Offset
  header.writeUInt32BE(0x10000, 24) // Header Version
  header.writeUInt32BE(blocks, 28) // Max Table Entries
  header.writeUInt32BE(BLOCK, 32) // Block Size
  header.writeUInt32BE(checksum(header), 36)
  return header
}

/** One's complement of the sum of all bytes but the checksum's, which are zero still. */
function checksum(data: Buffer): number {
  let sum = 0
  for (const byte of data) sum += byte
  return ~sum >>> 0
}

/** The specification's appendix, CHS Calculation. */
function geometry(total: number): { cylinders: number; heads: number; sectors: number } {
  const most = Math.min(total, 65535 * 16 * 255)
  if (most >= 65535 * 16 * 63) {
    return { sectors: 255, heads: 16, cylinders: Math.floor(most / 255 / 16) }
  }
  let sectors = 17
  let tracks = Math.floor(most / 17)
  let heads = Math.max(4, Math.floor((tracks + 1023) / 1024))
  if (tracks >= heads * 1024 || heads > 16) {
    sectors = 31
    heads = 16
    tracks = Math.floor(most / 31)
  }
  if (tracks >= heads * 1024) {
    sectors = 63
    heads = 16
    tracks = Math.floor(most / 63)
  }
  return { sectors, heads, cylinders: Math.floor(tracks / heads) }
}
