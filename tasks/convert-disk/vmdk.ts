/** VMware virtual disk. Source: VMware, Virtual Disk Format 5.0. */
import { promisify } from 'node:util'
import { inflate as inflateCallback, type InputType } from 'node:zlib'
import { type Bytes, type Extent, type Image, ImageError, number } from './image.ts'

const inflate = promisify(
  inflateCallback as (
    data: InputType,
    options: { maxOutputLength: number },
    done: (error: Error | null, data: Buffer) => void,
  ) => void,
)

const SECTOR = 512
const MAGIC = 0x564d444b // KDMV

/** SparseExtentHeader, offsets in the header. */
const HEADER = {
  magicNumber: 0,
  version: 4,
  flags: 8,
  capacity: 12,
  grainSize: 20,
  descriptorOffset: 28,
  descriptorSize: 36,
  numGTEsPerGT: 44,
  rgdOffset: 48,
  gdOffset: 56,
  compressAlgorithm: 77,
}

const COMPRESSED = 1 << 16
/** The grain directory lies behind the grains, and the header behind that, before the end-of-stream marker. */
const GD_AT_END = 0xffffffffffffffffn
/** A grain table entry for a grain of zeros, when the header's flags have ZEROED_GRAINS. */
const ZEROED_GRAIN = 1
const ZEROED_GRAINS = 1 << 2

export async function isVmdk(bytes: Bytes): Promise<boolean> {
  if (bytes.size < SECTOR) return false
  const start = await bytes.read(0, 21)
  return start.toString('latin1', 0, 4) === 'KDMV' ||
    start.toString('latin1') === '# Disk DescriptorFile'
}

export async function openVmdk(bytes: Bytes): Promise<Image> {
  let header = await bytes.read(0, SECTOR)
  if (header.readUInt32LE(HEADER.magicNumber) !== MAGIC) {
    throw new ImageError(
      bytes,
      0,
      'it is a descriptor whose extents are files of their own, which is not known here',
    )
  }
  let at = 0
  if (header.readBigUInt64LE(HEADER.gdOffset) === GD_AT_END) {
    at = bytes.size - 2 * SECTOR
    header = await bytes.read(at, SECTOR)
    if (header.readUInt32LE(HEADER.magicNumber) !== MAGIC) {
      throw new ImageError(bytes, at, 'its footer is missing: the file is cut short')
    }
  }
  const version = header.readUInt32LE(HEADER.version)
  if (version < 1 || version > 3) {
    throw new ImageError(
      bytes,
      at + HEADER.version,
      `its version is ${version}, and 1 to 3 are known`,
    )
  }
  const flags = header.readUInt32LE(HEADER.flags)
  const compressed = (flags & COMPRESSED) !== 0
  if (compressed && header.readUInt16LE(HEADER.compressAlgorithm) !== 1) {
    throw new ImageError(
      bytes,
      at + HEADER.compressAlgorithm,
      'its compression is none that is known',
    )
  }
  const field = (
    name: 'capacity' | 'grainSize' | 'gdOffset' | 'descriptorOffset' | 'descriptorSize',
  ) => number(bytes, at + HEADER[name], header.readBigUInt64LE(HEADER[name]), `its ${name}`)
  // the header's capacity is rounded up to whole grains; the descriptor has the disk's own size
  const described = await readDescriptor(
    bytes,
    field('descriptorOffset') * SECTOR,
    field('descriptorSize') * SECTOR,
  )
  const virtualSize = Math.min(field('capacity'), described ?? Number.POSITIVE_INFINITY) * SECTOR
  const grainSize = field('grainSize') * SECTOR
  const perTable = header.readUInt32LE(HEADER.numGTEsPerGT)
  if (grainSize < 8 * SECTOR || grainSize > 16 * 1024 ** 2 || perTable < 1 || perTable > 65536) {
    throw new ImageError(
      bytes,
      at + HEADER.grainSize,
      'its grain size or grain table size is none that is known',
    )
  }
  const tables = Math.ceil(virtualSize / (grainSize * perTable))
  const gd = field('gdOffset') * SECTOR
  if (gd + tables * 4 > bytes.size) {
    throw new ImageError(bytes, gd, `its grain directory of ${tables} entries goes beyond the end`)
  }
  const directory = await bytes.read(gd, tables * 4)
  const zeroed = (flags & ZEROED_GRAINS) !== 0
  /** The grains of a table that hold something, as virtual offset and place in the file. */
  const grains = async (table: number): Promise<{ offset: number; from: number }[]> => {
    const sector = directory.readUInt32LE(table * 4)
    if (sector === 0) return []
    const from = sector * SECTOR
    if (from + perTable * 4 > bytes.size) {
      throw new ImageError(
        bytes,
        gd + table * 4,
        `grain table ${table} lies beyond the end of the file`,
      )
    }
    const entries = await bytes.read(from, perTable * 4)
    const found = []
    for (let index = 0; index < perTable; index++) {
      const grain = entries.readUInt32LE(index * 4)
      const offset = (table * perTable + index) * grainSize
      if (grain === 0 || (zeroed && grain === ZEROED_GRAIN) || offset >= virtualSize) continue
      if (grain * SECTOR >= bytes.size) {
        throw new ImageError(
          bytes,
          from + index * 4,
          `the grain of byte ${offset} lies beyond the end of the file`,
        )
      }
      found.push({ offset, from: grain * SECTOR })
    }
    return found
  }
  const load = async (offset: number, from: number, length: number): Promise<Buffer> => {
    if (!compressed) return await bytes.read(from, length)
    // GrainMarker: lba, cmpSize, and the grain as RFC 1950
    const marker = await bytes.read(from, 12)
    const size = marker.readUInt32LE(8)
    if (marker.readBigUInt64LE(0) !== BigInt(offset / SECTOR)) {
      throw new ImageError(bytes, from, `the grain there is not that of byte ${offset}`)
    }
    if (size === 0 || size > 2 * grainSize + 1024) {
      throw new ImageError(
        bytes,
        from + 8,
        `a grain of ${grainSize} bytes cannot be ${size} compressed`,
      )
    }
    const data = await inflate(await bytes.read(from + 12, size), { maxOutputLength: grainSize })
      .catch(() => {
        throw new ImageError(bytes, from + 12, `the grain of byte ${offset} cannot be decompressed`)
      })
    if (data.length < length) {
      throw new ImageError(
        bytes,
        from + 12,
        `the grain of byte ${offset} has ${data.length} bytes of ${grainSize}`,
      )
    }
    return data.subarray(0, length)
  }
  let allocatedSize = 0
  for (let table = 0; table < tables; table++) {
    for (const { offset } of await grains(table)) {
      allocatedSize += Math.min(grainSize, virtualSize - offset)
    }
  }
  return {
    format: 'vmdk',
    variant: compressed ? 'streamOptimized' : 'monolithicSparse',
    virtualSize,
    allocatedSize,
    async *extents(): AsyncGenerator<Extent> {
      for (let table = 0; table < tables; table++) {
        for (const { offset, from } of await grains(table)) {
          const length = Math.min(grainSize, virtualSize - offset)
          yield { offset, length, load: () => load(offset, from, length) }
        }
      }
    },
  }
}

/** The size of the disk in sectors, when the descriptor has it. Refuses an image with a parent: it holds only what changed. */
async function readDescriptor(
  bytes: Bytes,
  offset: number,
  length: number,
): Promise<number | undefined> {
  if (length === 0 || length > 1024 ** 2 || offset + length > bytes.size) return undefined
  const descriptor = (await bytes.read(offset, length)).toString('utf8')
  const parent = descriptor.match(/^\s*parentCID\s*=\s*([0-9a-f]+)\s*$/im)?.[1]
  if (parent !== undefined && parent.toLowerCase() !== 'ffffffff') {
    throw new ImageError(
      bytes,
      offset,
      'it holds only what changed since its parent. ' +
        `Run: VBoxManage clonemedium "${bytes.name}" whole.vdi, and convert that`,
    )
  }
  const sectors = Number(descriptor.match(/^(?:RW|RDONLY)\s+(\d+)\s+SPARSE\s/m)?.[1])
  return Number.isSafeInteger(sectors) && sectors > 0 ? sectors : undefined
}
