/** What the start of a disk says of its partitions and of what boots it. */
import { guid, type Image } from './image.ts'

export interface Partition {
  /** Bytes from the start of the disk. */
  offset: number
  length: number
  /** A GUID on GPT, two hexadecimal digits on MBR. */
  type: string
}

export interface Layout {
  partitionTable: 'mbr' | 'gpt' | 'none'
  partitions: Partition[]
  /**
   * `bios` when the boot sector holds code (on GPT: when there is a BIOS boot partition), `uefi` when
   * there is an EFI system partition.
   */
  boots: 'bios' | 'uefi' | 'both' | 'none'
}

const SECTOR = 512
const EFI_SYSTEM = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
const BIOS_BOOT = '21686148-6449-6e6f-744e-656564454649'

export async function readLayout(image: Image): Promise<Layout> {
  const start = await readStart(image, 1024 ** 2)
  if (start.readUInt16LE(510) !== 0xaa55) {
    return { partitionTable: 'none', partitions: [], boots: 'none' }
  }
  const code = start.subarray(0, 440).some((byte) => byte !== 0)
  const entries = [0, 1, 2, 3].map((index) => start.subarray(446 + index * 16, 462 + index * 16))
  const protective = entries.some((entry) => entry[4] === 0xee)
  if (protective && start.toString('latin1', SECTOR, SECTOR + 8) === 'EFI PART') {
    const partitions = readGpt(start)
    const uefi = partitions.some(({ type }) => type === EFI_SYSTEM)
    const bios = code && partitions.some(({ type }) => type === BIOS_BOOT)
    return { partitionTable: 'gpt', partitions, boots: boots(bios, uefi) }
  }
  // a file system without a partition table has code where the entries would be
  const table = entries.every((entry) => entry[0] === 0 || entry[0] === 0x80)
  const partitions = table
    ? entries.filter((entry) => entry[4] !== 0).map((entry) => ({
      offset: entry.readUInt32LE(8) * SECTOR,
      length: entry.readUInt32LE(12) * SECTOR,
      type: (entry[4] as number).toString(16).padStart(2, '0'),
    }))
    : []
  const uefi = partitions.some(({ type }) => type === 'ef')
  return { partitionTable: table ? 'mbr' : 'none', partitions, boots: boots(code, uefi) }
}

/** UEFI specification 2.10, 5.3: GPT header at LBA 1 and its partition entries. */
function readGpt(start: Buffer): Partition[] {
  const first = Number(start.readBigUInt64LE(SECTOR + 72)) * SECTOR
  const count = start.readUInt32LE(SECTOR + 80)
  const size = start.readUInt32LE(SECTOR + 84)
  const partitions: Partition[] = []
  for (let index = 0; index < Math.min(count, 1024); index++) {
    const at = first + index * size
    if (size < 128 || at + size > start.length) break
    const type = guid(start.subarray(at, at + 16))
    if (/^[0-]+$/.test(type)) continue
    const offset = Number(start.readBigUInt64LE(at + 32)) * SECTOR
    const end = (Number(start.readBigUInt64LE(at + 40)) + 1) * SECTOR
    partitions.push({ offset, length: end - offset, type })
  }
  return partitions
}

async function readStart(image: Image, length: number): Promise<Buffer> {
  const start = Buffer.alloc(length)
  for await (const extent of image.extents()) {
    if (extent.offset >= length) break
    ;(await extent.load()).copy(start, extent.offset)
  }
  return start
}

function boots(bios: boolean, uefi: boolean): Layout['boots'] {
  if (bios) return uefi ? 'both' : 'bios'
  return uefi ? 'uefi' : 'none'
}
