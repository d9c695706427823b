/**
 * VMware virtual disk: one file, or a descriptor with extents in files beside it. Little endian.
 * Source: VMware, Virtual Disk Format 5.0.
 */
import { little, read, text, u8 } from './header.ts'
import {
  type Bytes,
  type Image,
  ImageError,
  KB,
  MB,
  type Piece,
  Places,
  printable,
  type Run,
  SECTOR,
  type Slot,
  TB,
  WINDOW,
} from './image.ts'
import { type Inflater, openInflater } from './inflate.ts'

const { u16, u32, u64 } = little

/** SparseExtentHeader. */
const HEADER = {
  magicNumber: text(0, 4),
  version: u32(4),
  flags: u32(8),
  capacity: u64(12),
  grainSize: u64(20),
  descriptorOffset: u64(28),
  descriptorSize: u64(36),
  numGTEsPerGT: u32(44),
  rgdOffset: u64(48),
  gdOffset: u64(56),
  overHead: u64(64),
  uncleanShutdown: u8(72),
  compressAlgorithm: u16(77),
}

const MAGIC = 'KDMV'
const ZEROED_GRAINS = 1 << 2
const COMPRESSED_GRAINS = 1 << 16
const COMPRESSION_DEFLATE = 1
/** GD_AT_END: the header is repeated at the end, before the end-of-stream marker, and tells there. */
const GD_AT_END = Infinity
/** The grain table entry of a grain of zeros, where the flags have ZEROED_GRAINS. */
const ZEROED = 1

/** GrainMarker: a grain's first sector, its compressed size, and then itself as RFC 1950 says. */
const MARKER = { lba: u64(0), cmpSize: u32(8) }
const MARKER_LENGTH = 12

const DESCRIPTOR = '# Disk DescriptorFile'
const MAX_SIZE = 64 * TB

/** Opens another file of the image: one beside it, of that plain name. */
export type OpenSibling = (name: string) => Promise<Bytes>

export async function isVmdk(bytes: Bytes): Promise<boolean> {
  const start = (await bytes.read(0, Math.min(bytes.size, 512))).toString('latin1')
  return start.startsWith(MAGIC) || start.trimStart().startsWith(DESCRIPTOR)
}

export async function openVmdk(bytes: Bytes, sibling: OpenSibling): Promise<Image> {
  const start = (await bytes.read(0, Math.min(bytes.size, 4))).toString('latin1')
  if (start === MAGIC) return await openSparse(bytes)
  if (bytes.size > MB) throw new ImageError(bytes, 0, `its descriptor has ${bytes.size} bytes`)
  const descriptor = (await bytes.read(0, bytes.size)).toString('utf8')
  refuseParent(bytes, 0, descriptor)
  return await openExtents(bytes, descriptor, sibling)
}

/** Hosted sparse extent: a header, a grain directory, grain tables, grains. */
async function openSparse(bytes: Bytes): Promise<Image> {
  if (bytes.size < SECTOR) throw new ImageError(bytes, bytes.size, 'the file ends in its header')
  let at = 0
  let header = read(HEADER, await bytes.read(0, SECTOR))
  if (header.magicNumber !== MAGIC) {
    throw new ImageError(bytes, 0, 'it does not begin as a sparse extent does')
  }
  if (header.gdOffset === GD_AT_END) {
    at = bytes.size - 2 * SECTOR
    header = read(HEADER, await bytes.read(Math.max(0, at), SECTOR))
    if (at < SECTOR || header.magicNumber !== MAGIC || header.gdOffset === GD_AT_END) {
      throw new ImageError(bytes, Math.max(0, at), 'its footer is missing: the file is cut short')
    }
  }
  const refuse = (field: keyof typeof HEADER, reason: string) => {
    return new ImageError(bytes, at + HEADER[field].at, reason)
  }
  const { version, flags, capacity, numGTEsPerGT, descriptorOffset, descriptorSize } = header
  if (version < 1 || version > 3) {
    throw refuse('version', `its version is ${version}, and 1 to 3 are known`)
  }
  const compressed = (flags & COMPRESSED_GRAINS) !== 0
  if (compressed && header.compressAlgorithm !== COMPRESSION_DEFLATE) {
    throw refuse('compressAlgorithm', 'its grains are compressed in a way that is not known')
  }
  let virtualSize = capacity * SECTOR
  let identifier: string | undefined
  const grainSize = header.grainSize * SECTOR
  if (capacity === 0 || virtualSize > MAX_SIZE) {
    throw refuse('capacity', `its disk has ${virtualSize} bytes`)
  }
  const whole = grainSize >= 4 * KB && grainSize <= WINDOW && (grainSize & (grainSize - 1)) === 0
  if (!whole) throw refuse('grainSize', `its grains have ${grainSize} bytes`)
  if (numGTEsPerGT < 512 || numGTEsPerGT > 64 * KB) {
    throw refuse('numGTEsPerGT', `its grain tables have ${numGTEsPerGT} entries`)
  }
  if (descriptorOffset > 0 && descriptorSize > 0) {
    const place = descriptorOffset * SECTOR
    const length = descriptorSize * SECTOR
    if (length > MB || place + length > bytes.size) {
      throw refuse('descriptorOffset', 'its descriptor is not within the file')
    }
    const descriptor = (await bytes.read(place, length)).toString('utf8')
    refuseParent(bytes, place, descriptor)
    // VirtualBox rounds the capacity up to whole grains, and says the true size only there
    const size = Number(descriptor.match(/^\s*(?:RW|RDONLY)\s+(\d+)\s+SPARSE\s/m)?.[1]) * SECTOR
    if (size > 0 && Math.ceil(size / grainSize) * grainSize === virtualSize) virtualSize = size
    identifier = uuidOf(descriptor)
  }
  const covered = grainSize * numGTEsPerGT
  const tables = Math.ceil(virtualSize / covered)
  const directory = header.gdOffset * SECTOR
  if (directory < SECTOR || directory + tables * 4 > bytes.size) {
    throw refuse('gdOffset', `its grain directory of ${tables} entries is not within the file`)
  }
  const image: Image = {
    format: 'vmdk',
    variant: compressed ? 'streamOptimized' : 'monolithicSparse',
    virtualSize,
    sectorSize: 512,
    ...(identifier !== undefined && { identifier }),
    async *runs(from = 0): AsyncGenerator<Run> {
      const places = new Places(grainSize, SECTOR)
      let chunk: Buffer | undefined
      for (let table = Math.floor(from / covered), first = 0; table < tables; table++) {
        if (!chunk || table >= first + CHUNK) {
          first = table
          chunk = await bytes.read(directory + first * 4, Math.min(CHUNK, tables - first) * 4)
        }
        const sector = chunk.readUInt32LE((table - first) * 4)
        if (sector === 0) continue
        const position = sector * SECTOR
        if (position + numGTEsPerGT * 4 > bytes.size) {
          throw new ImageError(
            bytes,
            directory + table * 4,
            `grain table ${table} is not within the file, which may be cut short`,
          )
        }
        const entries = await bytes.read(position, numGTEsPerGT * 4)
        for (let index = 0; index < numGTEsPerGT; index++) {
          const entry = entries.readUInt32LE(index * 4)
          const offset = table * covered + index * grainSize
          if (entry === 0 || offset >= virtualSize || offset + grainSize <= from) continue
          if (flags & ZEROED_GRAINS && entry === ZEROED) continue
          const at = entry * SECTOR
          const length = Math.min(grainSize, virtualSize - offset)
          const wrong = at + (compressed ? MARKER_LENGTH : length) > bytes.size
            ? 'not within the file, which may be cut short'
            // a compressed grain says itself which it is
            : !compressed && !places.add(at)
            ? 'where another grain is'
            : undefined
          if (wrong) {
            const reason = `the grain of byte ${offset} is ${wrong}`
            throw new ImageError(bytes, position + index * 4, reason)
          }
          yield { offset, length, bytes, at }
        }
      }
    },
  }
  if (!compressed) return image
  const inflater = openInflater()
  return {
    ...image,
    load: (piece, slot) => loadGrains(inflater, grainSize, piece, slot),
    close: inflater.close,
  }
}

/** Entries of the grain directory that are read at once. */
const CHUNK = 64 * KB

/**
 * Reads the grains of a piece, which mostly lie in a row, as few times as it can, and inflates them.
 */
async function loadGrains(
  inflater: Inflater,
  grainSize: number,
  piece: Piece,
  slot: Slot,
): Promise<void> {
  // zlib makes nothing larger by more than this, and the rest is its marker
  const most = grainSize + Math.ceil(grainSize / 1000) + 64
  const byPlace = piece.runs.toSorted((a, b) => a.at - b.at)
  let used = 0
  const spans: { from: number; end: number; to: number }[] = []
  for (const { at, bytes } of byPlace) {
    const end = Math.min(at + most, bytes.size)
    const last = spans.at(-1)
    if (last && at <= last.end) {
      used += end - last.end
      last.end = end
    } else {
      spans.push({ from: at, end, to: used })
      used += end - at
    }
  }
  if (!slot.stored || slot.stored.length < used) slot.stored = Buffer.alloc(Math.max(used, WINDOW))
  const { stored, data } = slot
  const { bytes } = byPlace[0] as Run
  await Promise.all(
    spans.map(({ from, end, to }) => bytes.read(from, end - from, stored.subarray(to))),
  )
  const grains: number[] = []
  let span = 0
  for (const { at, offset, length } of byPlace) {
    while (at >= (spans[span] as { end: number }).end) span++
    const { from, end, to } = spans[span] as { from: number; end: number; to: number }
    const { lba, cmpSize } = read(MARKER, stored, to + at - from)
    if (lba * SECTOR !== offset) {
      throw new ImageError(bytes, at, `the grain there is not that of byte ${offset}`)
    }
    if (cmpSize === 0 || at + MARKER_LENGTH + cmpSize > end) {
      throw new ImageError(
        bytes,
        at + MARKER.cmpSize.at,
        `the grain of byte ${offset} has ${cmpSize} bytes compressed`,
      )
    }
    grains.push(to + at - from + MARKER_LENGTH, cmpSize, offset - piece.offset, length)
  }
  const job = { stored: stored.buffer, data: data.buffer, grains, grainSize }
  const failed = await inflater.run(job).then((done) => {
    slot.stored = Buffer.from(done.stored)
    slot.data = Buffer.from(done.data)
    return done.failed
  })
  if (failed < 0) return
  const { at, offset } = byPlace[failed] as Run
  throw new ImageError(bytes, at, `the grain of byte ${offset} cannot be decompressed`)
}

/** An image with a parent holds only what changed. VirtualBox names the parent by its UUID alone. */
function refuseParent(bytes: Bytes, at: number, descriptor: string): void {
  const cid = descriptor.match(/^\s*parentCID\s*=\s*"?([0-9a-f]+)/im)?.[1] ?? 'ffffffff'
  const parent = descriptor.match(/^\s*ddb\.uuid\.parent\s*=\s*"([^"\n]*)"/m)?.[1] ?? ''
  if (/^f{8}$/i.test(cid) && /^[0-]*$/.test(parent)) return
  throw new ImageError(
    bytes,
    at,
    'it is a delta link, which holds only what changed since its parent. ' +
      `Run: VBoxManage clonemedium "${printable(bytes.name)}" whole.vdi, and convert that`,
  )
}

/** What VirtualBox notes in the disk database. */
function uuidOf(descriptor: string): string | undefined {
  return descriptor.match(/^\s*ddb\.uuid\.image\s*=\s*"([0-9a-f-]{36})"/m)?.[1]
}

/** Extent Description: access, size in sectors, type, file name, offset in sectors. */
const EXTENT = /^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z]+)(?:\s+"([^"]*)")?(?:\s+(\d+))?\s*$/

async function openExtents(
  bytes: Bytes,
  descriptor: string,
  sibling: OpenSibling,
): Promise<Image> {
  const extents: { start: number; size: number; image: Image | undefined }[] = []
  let virtualSize = 0
  let line = 0
  for (const text of descriptor.split('\n')) {
    const position = line
    line += Buffer.byteLength(text) + 1
    if (!/^\s*(RW|RDONLY|NOACCESS)\s/.test(text)) continue
    const [, , sectors, type, name, first] = text.match(EXTENT) ?? []
    const refuse = (reason: string) => new ImageError(bytes, position, reason)
    const size = Number(sectors) * SECTOR
    if (!(size > 0 && virtualSize + size <= MAX_SIZE) || extents.length >= 4096) {
      throw refuse(`its extent ${extents.length} cannot be understood`)
    }
    let image: Image | undefined
    if (type === 'FLAT' || type === 'VMFS' || type === 'SPARSE') {
      if (!name || /[\\/]|^\.\.?$|^[a-z]:/i.test(name)) {
        throw refuse(`its extent "${printable(name ?? '')}" is no file beside it`)
      }
      const file = await sibling(name)
      const at = Number(first ?? 0) * SECTOR
      if (type !== 'SPARSE' && at + size > file.size) {
        throw new ImageError(file, file.size, `it is cut short: its extent has ${size} bytes`)
      }
      image = type === 'SPARSE' ? await openSparse(file) : openFlat(file, at, size)
      if (image.load || image.virtualSize < size) {
        await image.close?.()
        throw new ImageError(file, 0, `it is no extent of ${size} bytes as its descriptor says`)
      }
    } else if (type !== 'ZERO') throw refuse(`its extent of type ${type} is none that is known`)
    extents.push({ start: virtualSize, size, image })
    virtualSize += size
  }
  if (extents.length === 0) throw new ImageError(bytes, 0, 'its descriptor names no extents')
  const identifier = uuidOf(descriptor)
  return {
    format: 'vmdk',
    ...(identifier !== undefined && { identifier }),
    variant: descriptor.match(/^\s*createType\s*=\s*"([^"\n]*)"/im)?.[1] ?? 'extents',
    virtualSize,
    sectorSize: 512,
    async *runs(from = 0): AsyncGenerator<Run> {
      for (const { start, size, image } of extents) {
        if (!image || start + size <= from) continue
        for await (const run of image.runs(Math.max(0, from - start))) {
          if (run.offset >= size) break
          const length = Math.min(run.length, size - run.offset)
          yield { ...run, length, offset: start + run.offset }
        }
      }
    },
  }
}

function openFlat(bytes: Bytes, at: number, virtualSize: number): Image {
  return {
    format: 'vmdk',
    variant: 'flat',
    virtualSize,
    sectorSize: 512,
    async *runs(from = 0): AsyncGenerator<Run> {
      if (from >= virtualSize) return
      yield await Promise.resolve({
        offset: from,
        length: virtualSize - from,
        bytes,
        at: at + from,
      })
    },
  }
}
