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
  share,
  type Slot,
  TB,
  textOf,
  WINDOW,
  ZEROS,
} from './image.ts'
import { type Inflater, openInflater } from './inflate.ts'

const { u16, u32, u64, exact } = little

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
  gdOffset: exact(56),
  overHead: u64(64),
  uncleanShutdown: u8(72),
  compressAlgorithm: u16(77),
}

const MAGIC = 'KDMV'

/** COWDisk_Header: the sparse extent of VMFS. */
const VMFS_SPARSE = {
  magicNumber: text(0, 4),
  version: u32(4),
  numSectors: u32(12),
  grainSize: u32(16),
  gdOffset: u32(20),
}
const VMFS_MAGIC = 'COWD'
const VMFS_ENTRIES = 4096
const ZEROED_GRAINS = 1 << 2
const COMPRESSED_GRAINS = 1 << 16
const COMPRESSION_DEFLATE = 1
/** GD_AT_END: the header is repeated at the end, before the end-of-stream marker, and tells there. */
const GD_AT_END = 0xffffffffffffffffn
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
  return start.startsWith(MAGIC) || start.startsWith(`${VMFS_MAGIC}\x01\0\0\0`) ||
    start.trimStart().startsWith(DESCRIPTOR)
}

export async function openVmdk(bytes: Bytes, sibling: OpenSibling): Promise<Image> {
  const start = (await bytes.read(0, Math.min(bytes.size, 4))).toString('latin1')
  if (start === MAGIC || start === VMFS_MAGIC) {
    const { descriptor, ...extent } = await openSparse(bytes)
    if (descriptor) return { ...extent, ...linksOf(descriptor) }
    await extent.close?.()
    throw new ImageError(
      bytes,
      0,
      'it is one extent of a disk. Name the small text file that describes the disk, ' +
        'whose name is the same without the last part',
    )
  }
  if (bytes.size > MB) throw new ImageError(bytes, 0, `its descriptor has ${bytes.size} bytes`)
  return await openExtents(bytes, readDescriptor(await bytes.read(0, bytes.size), 0), sibling)
}

interface Descriptor {
  /** Byte of the file. */
  at: number
  length: number
  lines: string[]
}

/** In the encoding that it names; UTF-8 before it could. */
function readDescriptor(data: Buffer, at: number): Descriptor {
  const lines = linesOf(data.toString('latin1'))
  const label = valueOf({ at, length: data.length, lines }, 'encoding') ?? 'utf-8'
  let decoder
  try {
    decoder = new TextDecoder(label)
  } catch {
    decoder = new TextDecoder() // only names of files need it, and most are ASCII
  }
  return { at, length: data.length, lines: linesOf(decoder.decode(data)) }
}

/** Patterns that repeat spaces are kept from texts of many lines, in which they would take hours. */
const linesOf = (text: string) => text.replace(/\0.*$/s, '').split('\n')

/** A value of the descriptor, e.g. `CID`, or of its disk database, e.g. `ddb.uuid.image`. */
function valueOf({ lines }: Descriptor, key: string): string | undefined {
  for (const line of lines) {
    const equals = line.indexOf('=')
    if (line.slice(0, equals).trim().toLowerCase() !== key.toLowerCase()) continue
    const value = line.slice(equals + 1).trim().replace(/^"|"$/g, '')
    if (equals > 0 && !value.includes('"')) return value
  }
}

/** Who the disk is, and whose changes it holds: VMware tells by CID, VirtualBox by UUID. */
function linksOf(descriptor: Descriptor): Pick<Image, 'identifier' | 'states' | 'parent'> {
  const value = (key: string) => valueOf(descriptor, key)?.toLowerCase()
  const known = (value: string | undefined) => value && !/^[0-]*$/.test(value) ? [value] : []
  const cid = (key: string) => known(value(key)).map((cid) => `cid ${cid}`)
  const [identifier] = known(value('ddb.uuid.image'))
  const [parent] = known(value('ddb.uuid.parent'))
  const parentCid = cid('parentCID').filter((cid) => cid !== 'cid ffffffff')
  const hint = valueOf(descriptor, 'parentFileNameHint')
  return {
    identifier,
    states: [...known(value('ddb.uuid.modification')), ...cid('CID')],
    ...((parent !== undefined || parentCid.length > 0) && {
      parent: {
        identifier: parent,
        states: [...known(value('ddb.uuid.parentmodification')), ...parentCid],
        paths: hint === undefined ? [] : [hint],
        at: descriptor.at,
      },
    }),
  }
}

interface Layout {
  virtualSize: number
  grainSize: number
  numGTEsPerGT: number
  /** Byte of the grain directory. */
  directory: number
  compressed: boolean
  /** Grain table entries of 1 are zeros. */
  zeroed: boolean
  descriptor?: Descriptor
  warnings: string[]
}

/** VMFS sparse extent: as a hosted one, with larger tables, and grains of one sector. */
async function readVmfsHeader(bytes: Bytes): Promise<Layout> {
  const header = read(VMFS_SPARSE, await bytes.read(0, SECTOR))
  const refuse = (field: keyof typeof VMFS_SPARSE, reason: string) => {
    return new ImageError(bytes, VMFS_SPARSE[field].at, reason)
  }
  const { version, numSectors, gdOffset } = header
  if (version !== 1) throw refuse('version', `its version is ${version}, and 1 is known`)
  if (numSectors === 0) throw refuse('numSectors', 'its disk has 0 bytes')
  const grainSize = header.grainSize * SECTOR
  const whole = grainSize > 0 && grainSize <= WINDOW && (grainSize & (grainSize - 1)) === 0
  if (!whole) throw refuse('grainSize', `its grains have ${textOf(grainSize)}`)
  const virtualSize = numSectors * SECTOR
  const tables = Math.ceil(virtualSize / (grainSize * VMFS_ENTRIES))
  const directory = gdOffset * SECTOR
  if (directory < SECTOR || directory + tables * 4 > bytes.size) {
    throw refuse('gdOffset', `its grain directory of ${tables} entries is not within the file`)
  }
  const rest = { compressed: false, zeroed: false, warnings: [] }
  return { virtualSize, grainSize, numGTEsPerGT: VMFS_ENTRIES, directory, ...rest }
}

/** Hosted sparse extent: a header, a grain directory, grain tables, grains. */
async function readHostedHeader(bytes: Bytes): Promise<Layout> {
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
  const grainSize = header.grainSize * SECTOR
  if (capacity === 0 || virtualSize > MAX_SIZE) {
    throw refuse('capacity', `its disk has ${textOf(virtualSize)}`)
  }
  const whole = grainSize >= 4 * KB && grainSize <= WINDOW && (grainSize & (grainSize - 1)) === 0
  if (!whole) throw refuse('grainSize', `its grains have ${textOf(grainSize)}`)
  if (numGTEsPerGT < 512 || numGTEsPerGT > 64 * KB) {
    throw refuse('numGTEsPerGT', `its grain tables have ${numGTEsPerGT} entries`)
  }
  let descriptor: Descriptor | undefined
  if (descriptorOffset > 0 && descriptorSize > 0) {
    const place = descriptorOffset * SECTOR
    const length = descriptorSize * SECTOR
    if (length > MB || place + length > bytes.size) {
      throw refuse('descriptorOffset', 'its descriptor is not within the file')
    }
    descriptor = readDescriptor(await bytes.read(place, length), place)
    // VirtualBox rounds the capacity up to whole grains, and says the true size only there
    const said = descriptor.lines.map((line) => line.match(EXTENT))
      .find((found) => found?.[1] !== 'NOACCESS' && found?.[3] === 'SPARSE')
    const size = Number(said?.[2]) * SECTOR
    if (size > 0 && Math.ceil(size / grainSize) * grainSize === virtualSize) virtualSize = size
  }
  const tables = Math.ceil(virtualSize / (grainSize * numGTEsPerGT))
  const directory = Number(header.gdOffset) * SECTOR
  if (directory < SECTOR || directory + tables * 4 > bytes.size) {
    throw refuse('gdOffset', `its grain directory of ${tables} entries is not within the file`)
  }
  return {
    ...{ virtualSize, grainSize, numGTEsPerGT, directory, compressed },
    zeroed: (flags & ZEROED_GRAINS) !== 0,
    ...(descriptor && { descriptor }),
    warnings: header.uncleanShutdown === 0 ? [] : [
      `"${bytes.name}" was not closed in order: its VM crashed, and its last writes may be missing`,
    ],
  }
}

async function openSparse(bytes: Bytes): Promise<Image & { descriptor?: Descriptor }> {
  if (bytes.size < SECTOR) throw new ImageError(bytes, bytes.size, 'the file ends in its header')
  const magic = (await bytes.read(0, 4)).toString('latin1')
  const vmfs = magic === VMFS_MAGIC
  const layout = await (vmfs ? readVmfsHeader(bytes) : readHostedHeader(bytes))
  const { virtualSize, grainSize, numGTEsPerGT, directory, compressed, zeroed } = layout
  const covered = grainSize * numGTEsPerGT
  const tables = Math.ceil(virtualSize / covered)
  const { at: start = 0, length = 0 } = layout.descriptor ?? {}
  const taken = [
    { start: 0, end: SECTOR },
    { start: directory, end: directory + tables * 4 },
    { start, end: start + length },
  ]
  const isTaken = (at: number, length: number) =>
    taken.some(({ start, end }) => at < end && at + length > start)
  const inflater = compressed ? openInflater() : undefined
  const load: Run['load'] = inflater &&
    ((piece, slot) => loadGrains(inflater, grainSize, piece, slot))
  return {
    format: 'vmdk',
    variant: compressed ? 'streamOptimized' : vmfs ? 'vmfsSparse' : 'monolithicSparse',
    virtualSize,
    sectorSize: 512,
    warnings: layout.warnings,
    ...(layout.descriptor && { descriptor: layout.descriptor }),
    async *runs(from = 0): AsyncGenerator<Run> {
      const places = new Places(grainSize, SECTOR)
      // tables that are shared make a few bytes a disk that takes hours to walk
      const tablePlaces = new Places(Math.ceil(numGTEsPerGT * 4 / SECTOR) * SECTOR, SECTOR)
      let chunk: Buffer | undefined
      let pending: Run | undefined
      for (let table = Math.floor(from / covered), first = 0; table < tables; table++) {
        if (!chunk || table >= first + CHUNK) {
          first = table
          chunk = await bytes.read(directory + first * 4, Math.min(CHUNK, tables - first) * 4)
        }
        const sector = chunk.readUInt32LE((table - first) * 4)
        if (sector === 0) continue
        const position = sector * SECTOR
        const misplaced = position + numGTEsPerGT * 4 > bytes.size
          ? 'not within the file, which may be cut short'
          : isTaken(position, numGTEsPerGT * 4)
          ? 'where the header or the grain directory is'
          : !tablePlaces.add(position)
          ? 'where another is'
          : undefined
        if (misplaced) {
          const reason = `grain table ${table} is ${misplaced}`
          throw new ImageError(bytes, directory + table * 4, reason)
        }
        const entries = await bytes.read(position, numGTEsPerGT * 4)
        for (let index = 0; index < numGTEsPerGT; index++) {
          const entry = entries.readUInt32LE(index * 4)
          const offset = table * covered + index * grainSize
          if (entry === 0 || offset >= virtualSize || offset + grainSize <= from) continue
          const length = Math.min(grainSize, virtualSize - offset)
          if (zeroed && entry === ZEROED) {
            if (pending) yield pending
            pending = { offset, length, bytes: ZEROS, at: offset }
            continue
          }
          const at = entry * SECTOR
          const wrong = at + (compressed ? MARKER_LENGTH : length) > bytes.size
            ? 'not within the file, which may be cut short'
            : isTaken(at, compressed ? MARKER_LENGTH : length)
            ? 'where the header or the grain directory is'
            // a compressed grain says itself which it is
            : !compressed && !places.add(at)
            ? 'where another grain is'
            : undefined
          if (wrong) {
            const reason = `the grain of byte ${offset} is ${wrong}`
            throw new ImageError(bytes, position + index * 4, reason)
          }
          if (load) yield { offset, length, bytes, at, load }
          else if (pending && follows(pending, offset, at)) pending.length += length
          else {
            if (pending) yield pending
            pending = { offset, length, bytes, at }
          }
        }
      }
      if (pending) yield pending
    },
    ...(inflater && { close: inflater.close }),
  }
}

/** Grains of one sector come by the million. */
function follows(run: Run, offset: number, at: number): boolean {
  return run.bytes !== ZEROS && run.offset + run.length === offset && run.at + run.length === at &&
    run.length < WINDOW
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
  if (!slot.stored || slot.stored.length < used) slot.stored = share(Math.max(used, WINDOW))
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
    // not as a table: this is done for each grain
    const marker = stored.subarray(to + at - from)
    const [lba, cmpSize] = [MARKER.lba.get(marker), MARKER.cmpSize.get(marker)]
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
  const failed = await inflater.run({
    stored: stored.buffer,
    data: data.buffer,
    grains,
    grainSize,
  })
  if (failed < 0) return
  const { at, offset } = byPlace[failed] as Run
  throw new ImageError(bytes, at, `the grain of byte ${offset} cannot be decompressed`)
}

/** Extent Description: access, size in sectors, type, file name, offset in sectors. */
const EXTENT = /^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z]+)(?:\s+"([^"]*)")?(?:\s+(\d+))?\s*$/

const SPARSE = ['SPARSE', 'VMFSSPARSE']
const FLAT = ['FLAT', 'VMFS']

async function openExtents(
  bytes: Bytes,
  descriptor: Descriptor,
  sibling: OpenSibling,
): Promise<Image> {
  const extents: { start: number; size: number; image: Image | undefined }[] = []
  const files = new Map<string, { file: Bytes; parts: { start: number; end: number }[] }>()
  const warnings: string[] = []
  let virtualSize = 0
  let line = 0
  if (valueOf(descriptor, 'encryption.keySafe') !== undefined) {
    throw new ImageError(bytes, 0, 'VMware has encrypted it. Decrypt the VM there, and run again')
  }
  for (const text of descriptor.lines) {
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
    const sparse = SPARSE.includes(type as string)
    if (sparse || FLAT.includes(type as string)) {
      if (!name || /[\\/]|^\.\.?$|^[a-z]:|^.{256}/i.test(name)) {
        throw refuse(`its extent "${printable(name ?? '')}" is no file beside it`)
      }
      // a file may hold several flat extents, one behind the other
      const known = files.get(name)
      const file = known?.file ?? await sibling(name)
      if (file.name === bytes.name) {
        throw refuse(`its extent "${printable(name)}" is the descriptor itself`)
      }
      const at = Number(first ?? 0) * SECTOR
      const [start, end] = sparse ? [0, Infinity] : [at, at + size]
      if (known?.parts.some((part) => start < part.end && end > part.start)) {
        throw refuse(`its extent "${printable(name)}" is one that it has already`)
      }
      files.set(name, { file, parts: [...known?.parts ?? [], { start, end }] })
      if (!sparse && at + size > file.size) {
        throw new ImageError(file, file.size, `it is cut short: its extent has ${size} bytes`)
      }
      image = sparse ? await openSparse(file) : openFlat(file, at, size)
      warnings.push(...image.warnings ?? [])
      if (image.variant === 'streamOptimized' || image.virtualSize < size) {
        await image.close?.()
        throw new ImageError(file, 0, `it is no extent of ${size} bytes as its descriptor says`)
      }
    } else if (type !== 'ZERO') {
      throw refuse(`its extent of type ${printable(`${type}`)} is none that is known`)
    }
    extents.push({ start: virtualSize, size, image })
    virtualSize += size
  }
  if (extents.length === 0) throw new ImageError(bytes, 0, 'its descriptor names no extents')
  return {
    format: 'vmdk',
    ...linksOf(descriptor),
    variant: valueOf(descriptor, 'createType') ?? 'extents',
    virtualSize,
    sectorSize: 512,
    warnings,
    async *runs(from = 0): AsyncGenerator<Run> {
      for (const { start, size, image } of extents) {
        if (start + size <= from) continue
        if (!image) {
          yield { offset: start, length: size, bytes: ZEROS, at: start }
          continue
        }
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
