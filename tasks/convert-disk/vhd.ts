/**
 * Virtual Hard Disk, as Virtual PC made it. Big endian.
 * Source: Microsoft, Virtual Hard Disk Image Format Specification, version 1.0.
 */
import { big, read, text, u8, type Values, write } from './header.ts'
import {
  type Bytes,
  GB,
  type Image,
  ImageError,
  KB,
  MB,
  type ParentLink,
  Places,
  type Run,
  SECTOR,
  setBits,
  spread,
  textOf,
  type Write,
  type Writer,
  type WriterOptions,
} from './image.ts'

/** The most that Hyper-V takes. */
export const MAX_VHD = 2040 * GB

const { u16, u32, u64, uuid } = big

/** Hard Disk Footer Format. */
const FOOTER = {
  cookie: text(0, 8),
  features: u32(8),
  fileFormatVersion: u32(12),
  dataOffset: u64(16),
  timeStamp: u32(24),
  creatorApplication: text(28, 4),
  creatorVersion: u32(32),
  creatorHostOs: text(36, 4),
  originalSize: u64(40),
  currentSize: u64(48),
  cylinders: u16(56),
  heads: u8(58),
  sectors: u8(59),
  diskType: u32(60),
  checksum: u32(64),
  uniqueId: uuid(68),
}
const FOOTER_LENGTH = SECTOR

/** Dynamic Disk Header Format. */
const HEADER = {
  cookie: text(0, 8),
  dataOffset: u64(8),
  tableOffset: u64(16),
  headerVersion: u32(24),
  maxTableEntries: u32(28),
  blockSize: u32(32),
  checksum: u32(36),
  parentUniqueId: uuid(40),
}
/** UTF-16, big endian. */
const PARENT_UNICODE_NAME = { at: 64, length: 512 }

/** Parent Locator Entry, of which the header has eight. */
const LOCATOR = {
  platformCode: text(0, 4),
  platformDataLength: u32(8),
  platformDataOffset: u64(16),
}
const LOCATORS = Array.from({ length: 8 }, (_, index) => 576 + index * 24)
/** Paths of Windows in UTF-16, little endian: from the child's folder, and absolute. */
const PATHS = ['W2ru', 'W2ku']

const HEADER_LENGTH = 2 * SECTOR

const VERSION = 0x00010000
const TYPES: Record<number, string> = { 2: 'fixed', 3: 'dynamic', 4: 'differencing' }
const UNUSED = 0xffffffff

export async function isVhd(bytes: Bytes): Promise<boolean> {
  return await findFooter(bytes) !== undefined
}

/** At the end; where an old Virtual PC wrote, one byte short; or, if that is damaged, its copy. */
async function findFooter(bytes: Bytes): Promise<{ at: number; data: Buffer } | undefined> {
  for (const at of [bytes.size - FOOTER_LENGTH, bytes.size - FOOTER_LENGTH + 1, 0]) {
    if (at < 0 || bytes.size < FOOTER_LENGTH) continue
    const data = Buffer.alloc(FOOTER_LENGTH)
    await bytes.read(at, Math.min(FOOTER_LENGTH, bytes.size - at), data)
    const { cookie, checksum } = read(FOOTER, data)
    if (cookie === 'conectix' && checksum === sum(data, FOOTER.checksum.at)) return { at, data }
  }
}

export async function openVhd(bytes: Bytes): Promise<Image> {
  const found = await findFooter(bytes)
  if (!found) throw new ImageError(bytes, bytes.size - FOOTER_LENGTH, 'its footer is damaged')
  const { at, data } = found
  const footer = read(FOOTER, data)
  const { fileFormatVersion, dataOffset, currentSize, diskType, uniqueId } = footer
  const refuse = (field: keyof typeof FOOTER, reason: string) => {
    return new ImageError(bytes, at + FOOTER[field].at, reason)
  }
  if (fileFormatVersion >>> 16 !== 1) {
    throw refuse('fileFormatVersion', `its version is ${fileFormatVersion >>> 16}, and 1 is known`)
  }
  const variant = TYPES[diskType]
  if (variant === undefined) throw refuse('diskType', `its type is ${diskType}, which none has`)
  // not the geometry, to which other tools cut a disk: it is rounded
  if (!Number.isSafeInteger(currentSize) || currentSize === 0 || currentSize % SECTOR) {
    throw refuse('currentSize', `its disk has ${textOf(currentSize)}`)
  }
  const image = {
    format: 'vhd' as const,
    variant,
    virtualSize: currentSize,
    sectorSize: 512 as const,
    identifier: uniqueId,
    warnings: [
      ...(at === 0 && variant !== 'fixed'
        ? [`The footer of "${bytes.name}" is damaged: its copy was used`]
        : []),
      ...explainSize(footer),
    ],
  }
  if (variant === 'fixed') {
    if (currentSize > at) {
      throw refuse('currentSize', `its disk of ${currentSize} bytes is not within the file`)
    }
    return {
      ...image,
      async *runs(from = 0): AsyncGenerator<Run> {
        if (from >= currentSize) return
        const run = { offset: from, length: currentSize - from, bytes, at: from }
        yield await Promise.resolve(run)
      },
    }
  }
  const { blockSize, table, parent } = await readHeader(bytes, dataOffset, currentSize)
  const end = at === 0 ? bytes.size : at
  const bitmapSize = Math.ceil(blockSize / SECTOR / 8 / SECTOR) * SECTOR
  return {
    ...image,
    ...(variant === 'differencing' && { parent }),
    async *runs(from = 0): AsyncGenerator<Run> {
      const blocks = Math.ceil(currentSize / blockSize)
      const places = new Places(bitmapSize + blockSize, SECTOR)
      let entries: Buffer | undefined
      for (let block = Math.floor(from / blockSize), first = 0; block < blocks; block++) {
        if (!entries || block >= first + CHUNK) {
          first = block
          entries = await bytes.read(table + first * 4, Math.min(CHUNK, blocks - first) * 4)
        }
        const sector = entries.readUInt32BE((block - first) * 4)
        if (sector === UNUSED) continue
        const offset = block * blockSize
        const length = Math.min(blockSize, currentSize - offset)
        const position = sector * SECTOR
        const blockEnd = position + bitmapSize + length
        const wrong = blockEnd > end
          ? 'not within the file, which may be cut short'
          : position < FOOTER_LENGTH ||
              position < dataOffset + HEADER_LENGTH && blockEnd > dataOffset ||
              position < table + blocks * 4 && blockEnd > table
          ? 'where the header or the table is'
          : !places.add(position)
          ? 'where another block is'
          : undefined
        if (wrong) throw new ImageError(bytes, table + block * 4, `block ${block} is ${wrong}`)
        const bitmap = await bytes.read(position, bitmapSize)
        // the others of a dynamic disk are zeros
        for (const { start, end } of setBits(bitmap, length / SECTOR, 'high first')) {
          yield {
            offset: offset + start * SECTOR,
            length: (end - start) * SECTOR,
            bytes,
            at: position + bitmapSize + start * SECTOR,
          }
        }
      }
    },
  }
}

/** Entries of the block allocation table that are read at once. */
const CHUNK = 64 * KB

async function readHeader(
  bytes: Bytes,
  at: number,
  virtualSize: number,
): Promise<{ blockSize: number; table: number; parent: ParentLink }> {
  if (at + HEADER_LENGTH > bytes.size) {
    throw new ImageError(bytes, FOOTER.dataOffset.at, 'its header is not within the file')
  }
  const data = await bytes.read(at, HEADER_LENGTH)
  const { cookie, tableOffset, maxTableEntries, blockSize, checksum, parentUniqueId } = read(
    HEADER,
    data,
  )
  const refuse = (field: keyof typeof HEADER, reason: string) => {
    return new ImageError(bytes, at + HEADER[field].at, reason)
  }
  if (cookie !== 'cxsparse' || checksum !== sum(data, HEADER.checksum.at)) {
    throw refuse('checksum', 'its header is damaged')
  }
  const whole = blockSize >= SECTOR && blockSize <= 16 * MB && (blockSize & (blockSize - 1)) === 0
  if (!whole) throw refuse('blockSize', `its blocks have ${blockSize} bytes`)
  const blocks = Math.ceil(virtualSize / blockSize)
  if (maxTableEntries < blocks) {
    throw refuse(
      'maxTableEntries',
      `${maxTableEntries} blocks of ${blockSize} bytes are less than ${virtualSize} bytes`,
    )
  }
  if (tableOffset + blocks * 4 > bytes.size) {
    throw refuse('tableOffset', `its table of ${blocks} entries is not within the file`)
  }
  if (tableOffset < at + HEADER_LENGTH && tableOffset + blocks * 4 > at) {
    throw refuse('tableOffset', 'its table is where its header is')
  }
  const parent = {
    identifier: parentUniqueId,
    // the header has a time of the parent too, but programs disagree about which
    states: [],
    paths: await readPaths(bytes, data),
    at: at + HEADER.parentUniqueId.at,
  }
  return { blockSize, table: tableOffset, parent }
}

/** Where the parent was, as the locators and the name have it. */
async function readPaths(bytes: Bytes, header: Buffer): Promise<string[]> {
  const paths = new Map<string, string>()
  for (const at of LOCATORS) {
    const { platformCode, platformDataLength, platformDataOffset } = read(LOCATOR, header, at)
    const within = platformDataLength <= 64 * KB &&
      platformDataOffset + platformDataLength <= bytes.size
    if (!PATHS.includes(platformCode) || !within) continue
    const data = await bytes.read(platformDataOffset, platformDataLength)
    paths.set(platformCode, data.toString('utf16le').replace(/\0.*$/s, ''))
  }
  const { at, length } = PARENT_UNICODE_NAME
  const name = Buffer.from(header.subarray(at, at + length)).swap16().toString('utf16le')
  const all = [...PATHS.map((code) => paths.get(code)), name.replace(/\0.*$/s, '')]
  return all.filter((path): path is string => path !== undefined && path !== '')
}

/**
 * Two programs know a disk by its geometry, in whole cylinders. The size that the footer says is what
 * Hyper-V takes; this says where the two differ.
 * Source: qemu, block/vpc.c, vpc_open, which lists who means which.
 */
function explainSize(footer: Values<typeof FOOTER>): string[] {
  const { creatorApplication, currentSize, originalSize, cylinders, heads, sectors } = footer
  const geometry = cylinders * heads * sectors * SECTOR
  if (creatorApplication === 'qemu' && geometry === currentSize) {
    return [
      `qemu-img rounded the disk up to whole cylinders, ${currentSize} bytes: ` +
      'what is behind its real end is zeros. Convert its own source, or use -o force_size=on there',
    ]
  }
  if (
    creatorApplication.trim() === 'vpc' && geometry < currentSize && originalSize === currentSize
  ) {
    return [
      `Virtual PC showed its guest ${geometry} of the ${currentSize} bytes, the whole cylinders; ` +
      'all of them are there',
    ]
  }
  return []
}

/** The specification's default. */
const BLOCK = 2 * MB
/** A bit for each sector of a block. */
const BITMAP = BLOCK / SECTOR / 8

export function writeVhd({ file, virtualSize, type, uuid: next }: WriterOptions): Writer {
  const uniqueId = next()
  const footer = makeFooter(virtualSize, type, uniqueId)
  if (type === 'fixed') {
    return {
      identifier: uniqueId,
      length: virtualSize,
      place: (offset, data) => [{ position: offset, data }],
      finish: async () => void await file.write(footer, 0, footer.length, virtualSize),
    }
  }
  const blocks = Math.ceil(virtualSize / BLOCK)
  const table = Buffer.alloc(Math.ceil(blocks * 4 / SECTOR) * SECTOR, 0xff)
  const tableOffset = FOOTER_LENGTH + HEADER_LENGTH
  const bitmap = Buffer.alloc(BITMAP, 0xff)
  let end = tableOffset + table.length
  return {
    identifier: uniqueId,
    length: 0,
    blockSize: BLOCK,
    place: (offset, data) => {
      const bitmaps: Write[] = []
      const writes = spread(offset, data, BLOCK, (block) => {
        const sector = table.readUInt32BE(block * 4)
        if (sector !== UNUSED) return sector * SECTOR + BITMAP
        // data on whole 4 KB: what Get-VHD calls Alignment, without which disks of such sectors are slow
        const start = Math.ceil((end + BITMAP) / (4 * KB)) * 4 * KB
        table.writeUInt32BE((start - BITMAP) / SECTOR, block * 4)
        bitmaps.push({ position: start - BITMAP, data: bitmap })
        end = start + BLOCK
        return start
      })
      return [...bitmaps, ...writes]
    },
    finish: async () => {
      const header = write(HEADER, HEADER_LENGTH, {
        cookie: 'cxsparse',
        dataOffset: Infinity,
        tableOffset,
        headerVersion: VERSION,
        maxTableEntries: blocks,
        blockSize: BLOCK,
      })
      HEADER.checksum.set(header, sum(header, HEADER.checksum.at))
      await file.write(footer, 0, footer.length, 0)
      await file.write(header, 0, header.length, FOOTER_LENGTH)
      await file.write(table, 0, table.length, tableOffset)
      await file.truncate(end)
      await file.write(footer, 0, footer.length, end)
    },
  }
}

/**
 * The creator is "win ", Hyper-V's own: qemu doubts the size that others wrote, and cuts the disk to
 * its geometry (block/vpc.c, vpc_open). Written without a time, so that equal disks give equal files.
 */
function makeFooter(virtualSize: number, type: 'dynamic' | 'fixed', uniqueId: string): Buffer {
  const footer = write(FOOTER, FOOTER_LENGTH, {
    cookie: 'conectix',
    features: 2, // a reserved bit that is always set
    fileFormatVersion: VERSION,
    dataOffset: type === 'fixed' ? Infinity : FOOTER_LENGTH,
    creatorApplication: 'win ',
    creatorVersion: 0x000a0000,
    creatorHostOs: 'Wi2k',
    originalSize: virtualSize,
    currentSize: virtualSize,
    ...geometry(virtualSize / SECTOR),
    diskType: type === 'fixed' ? 2 : 3,
    uniqueId,
  })
  FOOTER.checksum.set(footer, sum(footer, FOOTER.checksum.at))
  return footer
}

/** One's complement of the sum of all bytes but those of the checksum. */
function sum(data: Buffer, checksum: number): number {
  let sum = 0
  data.forEach((byte, at) => (sum += at >= checksum && at < checksum + 4 ? 0 : byte))
  return ~sum >>> 0
}

/** The specification's appendix, CHS Calculation. */
function geometry(total: number): { cylinders: number; heads: number; sectors: number } {
  const most = Math.min(total, 65535 * 16 * 255)
  if (most >= 65535 * 16 * 63) {
    return { cylinders: Math.floor(most / 255 / 16), heads: 16, sectors: 255 }
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
  return { cylinders: Math.floor(tracks / heads), heads, sectors }
}
