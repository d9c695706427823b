/** VirtualBox Disk Image. Source: VirtualBox's VDICore.h. Little endian. */
import { little, read, text, write } from './header.ts'
import {
  type Bytes,
  type Image,
  ImageError,
  KB,
  MB,
  Places,
  type Run,
  SECTOR,
  spread,
  textOf,
  type Writer,
  type WriterOptions,
  ZEROS,
} from './image.ts'

const { u32, u64, guid } = little

/** VDIPREHEADER, and VDIHEADER1PLUS from 0x48 on: version 1.1, and but for its end 1.0. */
const HEADER = {
  szFileInfo: text(0, 64),
  u32Signature: u32(0x40),
  u32Version: u32(0x44),
  cbHeader: u32(0x48),
  u32Type: u32(0x4c),
  fFlags: u32(0x50),
  offBlocks: u32(0x154),
  offData: u32(0x158),
  'LegacyGeometry.cbSector': u32(0x168),
  cbDisk: u64(0x170),
  cbBlock: u32(0x178),
  cbBlockExtra: u32(0x17c),
  cBlocks: u32(0x180),
  cBlocksAllocated: u32(0x184),
  uuidCreate: guid(0x188),
  uuidModify: guid(0x198),
  uuidLinkage: guid(0x1a8),
  uuidParentModify: guid(0x1b8),
  'LCHSGeometry.cbSector': u32(0x1d4),
}
const HEADER_LENGTH = 0x200

/** VDIPREHEADER and VDIHEADER0: version 0.1, behind which the block map follows at once. */
const HEADER_0 = {
  u32Type: u32(0x48),
  fFlags: u32(0x4c),
  cbDisk: u64(0x160),
  cbBlock: u32(0x168),
  cBlocks: u32(0x16c),
  uuidCreate: guid(0x174),
  uuidModify: guid(0x184),
  uuidLinkage: guid(0x194),
}
const HEADER_0_LENGTH = 0x1a4

const SIGNATURE = 0xbeda107f
const VERSION = 0x00010001
const VERSIONS = [0x00000001, 0x00010000, VERSION]
const NO_UUID = '00000000-0000-0000-0000-000000000000'
/** VDI_IMAGE_TYPE_NORMAL and its like. */
const TYPES: Record<number, string> = { 1: 'dynamic', 2: 'fixed', 3: 'undo', 4: 'differencing' }
/** VDI_IMAGE_BLOCK_ZERO, a discarded block, and VDI_IMAGE_BLOCK_FREE, which the parent may have. */
const ZERO = 0xfffffffe
const FREE = 0xffffffff

/** Entries of the block map that are read at once. */
const CHUNK = 64 * KB

export async function isVdi(bytes: Bytes): Promise<boolean> {
  if (bytes.size < HEADER_LENGTH) return false
  return (await bytes.read(HEADER.u32Signature.at, 4)).readUInt32LE() === SIGNATURE
}

export async function openVdi(bytes: Bytes): Promise<Image> {
  const { table, ...header } = await readHeader(bytes)
  const { u32Type, offBlocks, offData, cbDisk, cbBlock, cbBlockExtra, cBlocks, headerEnd } = header
  const refuse = (field: keyof typeof table, reason: string) => {
    return new ImageError(bytes, table[field].at, reason)
  }
  const variant = TYPES[u32Type]
  if (variant === undefined) throw refuse('u32Type', `its type is ${u32Type}, which none has`)
  if (variant === 'undo') {
    throw refuse('u32Type', 'it is an undo image, which no VirtualBox since 2007 has made')
  }
  if (!Number.isSafeInteger(cbDisk) || cbDisk === 0) {
    throw refuse('cbDisk', `its disk has ${textOf(cbDisk)}`)
  }
  const whole = cbBlock >= 4 * KB && cbBlock <= 256 * MB && (cbBlock & (cbBlock - 1)) === 0
  if (!whole) throw refuse('cbBlock', `its blocks have ${cbBlock} bytes`)
  if (cbBlockExtra % SECTOR || cbBlockExtra > MB) {
    throw refuse('cbBlockExtra', `its blocks have ${cbBlockExtra} bytes before their data`)
  }
  const blocks = Math.ceil(cbDisk / cbBlock)
  if (cBlocks < blocks) {
    throw refuse('cBlocks', `${cBlocks} blocks of ${cbBlock} bytes are less than ${cbDisk} bytes`)
  }
  if (offBlocks + blocks * 4 > bytes.size) {
    throw refuse('offBlocks', `its block map of ${blocks} entries is not within the file`)
  }
  if (offBlocks < headerEnd) {
    throw refuse('offBlocks', `its block map of ${blocks} entries is where its header is`)
  }
  if (offData < offBlocks + blocks * 4) {
    throw refuse('offData', 'its blocks begin within its block map')
  }
  const differencing = variant === 'differencing'
  if (differencing && header.uuidLinkage === NO_UUID) {
    throw refuse('uuidLinkage', 'it is a differencing image that names no parent')
  }
  const known = (uuid: string) => uuid === NO_UUID ? [] : [uuid]
  return {
    format: 'vdi',
    variant,
    virtualSize: cbDisk,
    sectorSize: 512,
    identifier: header.uuidCreate,
    states: known(header.uuidModify),
    ...(differencing && {
      parent: {
        identifier: header.uuidLinkage,
        states: known(header.uuidParentModify),
        paths: [],
        at: table.uuidLinkage.at,
      },
    }),
    async *runs(from = 0): AsyncGenerator<Run> {
      const stride = cbBlockExtra + cbBlock
      const places = new Places(stride, stride)
      let map: Buffer | undefined
      for (let block = Math.floor(from / cbBlock), first = 0; block < blocks; block++) {
        if (!map || block >= first + CHUNK) {
          first = block
          map = await bytes.read(offBlocks + first * 4, Math.min(CHUNK, blocks - first) * 4)
        }
        const entry = map.readUInt32LE((block - first) * 4)
        if (entry === FREE || entry === ZERO && !differencing) continue
        const offset = block * cbBlock
        const length = Math.min(cbBlock, cbDisk - offset)
        if (entry === ZERO) {
          yield { offset, length, bytes: ZEROS, at: offset }
          continue
        }
        const at = offData + entry * stride + cbBlockExtra
        const wrong = at + length > bytes.size
          ? 'not within the file, which may be cut short'
          : !places.add(entry * stride)
          ? 'where another block is'
          : undefined
        if (wrong) {
          throw new ImageError(bytes, offBlocks + block * 4, `block ${block} is ${wrong}`)
        }
        yield { offset, length, bytes, at }
      }
    },
  }
}

/** The fields of any version under the names that they have today. */
async function readHeader(bytes: Bytes) {
  const data = await bytes.read(0, HEADER_LENGTH)
  const header = read(HEADER, data)
  if (!VERSIONS.includes(header.u32Version)) {
    const version = `${header.u32Version >>> 16}.${header.u32Version & 0xffff}`
    throw new ImageError(
      bytes,
      HEADER.u32Version.at,
      `its header has version ${version}, and 0.1, 1.0 and 1.1 are known`,
    )
  }
  // it says its own length, which no reader needs
  const headerEnd = HEADER.uuidParentModify.at + 16
  if (header.u32Version >>> 16 === 1) return { ...header, headerEnd, table: HEADER }
  const old = read(HEADER_0, data)
  return {
    ...header,
    ...old,
    headerEnd: HEADER_0_LENGTH,
    offBlocks: HEADER_0_LENGTH,
    offData: HEADER_0_LENGTH + old.cBlocks * 4,
    cbBlockExtra: 0,
    uuidParentModify: NO_UUID,
    table: { ...HEADER, ...HEADER_0 },
  }
}

/** VirtualBox's own block size. */
const BLOCK = MB

export function writeVdi({ file, virtualSize, type, uuid }: WriterOptions): Writer {
  const blocks = Math.ceil(virtualSize / BLOCK)
  const offBlocks = MB
  const offData = offBlocks + Math.ceil(blocks * 4 / MB) * MB
  const map = Buffer.alloc(offData - offBlocks)
  let allocated = 0
  const allocate = (block: number) => map.writeUInt32LE(allocated++, block * 4)
  for (let block = 0; block < blocks; block++) map.writeUInt32LE(FREE, block * 4)
  if (type === 'fixed') { for (let block = 0; block < blocks; block++) allocate(block) }
  const [uuidCreate, uuidModify] = [uuid(), uuid()]
  return {
    identifier: uuidCreate,
    length: offData,
    ...(type === 'dynamic' && { blockSize: BLOCK }),
    place: (offset, data) =>
      spread(offset, data, BLOCK, (block) => {
        if (map.readUInt32LE(block * 4) === FREE) allocate(block)
        return offData + map.readUInt32LE(block * 4) * BLOCK
      }),
    finish: async () => {
      const header = write(HEADER, HEADER_LENGTH, {
        szFileInfo: '<<< Oracle VM VirtualBox Disk Image >>>\n',
        u32Signature: SIGNATURE,
        u32Version: VERSION,
        cbHeader: 400,
        u32Type: type === 'fixed' ? 2 : 1,
        offBlocks,
        offData,
        'LegacyGeometry.cbSector': SECTOR,
        cbDisk: virtualSize,
        cbBlock: BLOCK,
        cBlocks: blocks,
        cBlocksAllocated: allocated,
        uuidCreate,
        uuidModify,
        'LCHSGeometry.cbSector': SECTOR, // without it VirtualBox takes the header for damaged
      })
      await file.truncate(offData + allocated * BLOCK)
      await file.write(map, 0, map.length, offBlocks)
      await file.write(header, 0, header.length, 0)
    },
  }
}
