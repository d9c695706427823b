/** VirtualBox Disk Image. Source: VirtualBox's VDICore.h (header version 1.1). */
import { type Bytes, type Extent, guid, type Image, ImageError, number } from './image.ts'

const SIGNATURE = 0xbeda107f

/** VDIHEADER1PLUS, offsets in the file. */
const HEADER = {
  u32Signature: 0x40,
  u32Version: 0x44,
  u32Type: 0x4c,
  offBlocks: 0x154,
  offData: 0x158,
  cbDisk: 0x170,
  cbBlock: 0x178,
  cbBlockExtra: 0x17c,
  cBlocks: 0x180,
  uuidCreate: 0x188,
  length: 0x200,
}

const TYPES: Record<number, string> = { 1: 'dynamic', 2: 'fixed', 3: 'undo', 4: 'differencing' }

/** Block map entries that have no block: never written, and written with zeros. */
const FREE = 0xffffffff
const ZERO = 0xfffffffe

/** Whether the content has VDI's signature. */
export async function isVdi(bytes: Bytes): Promise<boolean> {
  if (bytes.size < HEADER.length) return false
  return (await bytes.read(HEADER.u32Signature, 4)).readUInt32LE() === SIGNATURE
}

export async function openVdi(bytes: Bytes): Promise<Image> {
  const header = await bytes.read(0, HEADER.length)
  const version = header.readUInt32LE(HEADER.u32Version)
  if (version !== 0x10001) {
    const text = `${version >>> 16}.${version & 0xffff}`
    throw new ImageError(
      bytes,
      HEADER.u32Version,
      `its header has version ${text}, and 1.1 is known`,
    )
  }
  const type = header.readUInt32LE(HEADER.u32Type)
  const variant = TYPES[type]
  if (variant !== 'dynamic' && variant !== 'fixed') {
    throw new ImageError(
      bytes,
      HEADER.u32Type,
      variant === undefined
        ? `its type is ${type}, and no such type is known`
        : `it is a ${variant} image, which holds only what changed since its parent. ` +
          `Run: VBoxManage clonemedium "${bytes.name}" whole.vdi, and convert that`,
    )
  }
  const virtualSize = number(
    bytes,
    HEADER.cbDisk,
    header.readBigUInt64LE(HEADER.cbDisk),
    'its size',
  )
  const blockSize = header.readUInt32LE(HEADER.cbBlock)
  const extra = header.readUInt32LE(HEADER.cbBlockExtra)
  const blocks = header.readUInt32LE(HEADER.cBlocks)
  const offBlocks = header.readUInt32LE(HEADER.offBlocks)
  const offData = header.readUInt32LE(HEADER.offData)
  if (blockSize < 4096 || blockSize > 256 * 1024 ** 2 || blockSize % 512) {
    throw new ImageError(bytes, HEADER.cbBlock, `its block size is ${blockSize}`)
  }
  if (blocks !== Math.ceil(virtualSize / blockSize)) {
    throw new ImageError(
      bytes,
      HEADER.cBlocks,
      `${blocks} blocks of ${blockSize} bytes do not make ${virtualSize} bytes`,
    )
  }
  if (offBlocks + blocks * 4 > bytes.size) {
    throw new ImageError(bytes, offBlocks, `its block map of ${blocks} entries goes beyond the end`)
  }
  const map = await bytes.read(offBlocks, blocks * 4)
  const stored = Math.ceil((bytes.size - offData) / (blockSize + extra))
  const used = new Uint8Array(Math.ceil(Math.max(0, stored) / 8))
  let allocatedSize = 0
  for (let block = 0; block < blocks; block++) {
    const at = map.readUInt32LE(block * 4)
    if (at === FREE || at === ZERO) continue
    if (at >= stored) {
      throw new ImageError(
        bytes,
        offBlocks + block * 4,
        `block ${block} lies beyond the end of the file`,
      )
    }
    const bit = 1 << (at & 7)
    if ((used[at >> 3] as number) & bit) {
      throw new ImageError(
        bytes,
        offBlocks + block * 4,
        `two blocks lie at one place, of which one is ${block}`,
      )
    }
    used[at >> 3] = (used[at >> 3] as number) | bit
    allocatedSize += Math.min(blockSize, virtualSize - block * blockSize)
  }
  return {
    format: 'vdi',
    variant,
    virtualSize,
    allocatedSize,
    identifier: guid(header.subarray(HEADER.uuidCreate, HEADER.uuidCreate + 16)),
    async *extents(): AsyncGenerator<Extent> {
      for (let block = 0; block < blocks; block++) {
        const at = map.readUInt32LE(block * 4)
        if (at === FREE || at === ZERO) continue
        const start = block * blockSize
        const from = offData + at * (blockSize + extra) + extra
        const whole = Math.min(blockSize, virtualSize - start)
        for (let part = 0; part < whole; part += PIECE) {
          const length = Math.min(PIECE, whole - part)
          yield { offset: start + part, length, load: () => bytes.read(from + part, length) }
        }
      }
    },
  }
}

const PIECE = 2 * 1024 ** 2
