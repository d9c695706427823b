/** What a disk says of its partitions and of what boots it. */
import { little, read, text } from './header.ts'
import { type Image, MB, readDisk } from './image.ts'

export interface Partition {
  /** Bytes from the start of the disk. */
  offset: number
  length: number
  /** A GUID on GPT, two hexadecimal digits on MBR. */
  type: string
  /** MBR: a BIOS starts what is in it. */
  active?: true
}

export interface Layout {
  partitionTable: 'mbr' | 'gpt' | 'none'
  /** The entries in use; of an MBR the primary ones, then the logical ones. */
  partitions: Partition[]
  /**
   * Which firmware finds something to start:
   * - `uefi` when there is an EFI system partition (of GPT, or of MBR type ef);
   * - `bios` when the first sector ends in 55 AA and either holds code in its first 440 bytes or, on an
   *   MBR, has an active partition. On GPT, whose first sector may hold code for nothing, it takes a
   *   BIOS boot partition, and the code too where there is an EFI system partition;
   * - `both`, `none` accordingly.
   */
  boots: 'bios' | 'uefi' | 'both' | 'none'
}

/** Exactly `length` bytes of a volume. Rejects with {@link Damaged} beyond its end. */
export type ReadAt = (offset: number, length: number) => Promise<Buffer>

/** A volume whose structures lead astray. What it holds stays unknown. */
export class Damaged extends Error {
  override name = 'Damaged'
}

const { u32, u64, guid } = little

/** UEFI specification 2.10, table 5.1, Legacy MBR: where its parts stand. */
const BOOT_CODE_LENGTH = 440
const PARTITION_RECORDS = 446
const SIGNATURE = 510
/** Table 5.2, Legacy MBR Partition Record; bytes 0 and 4 are BootIndicator and OSType. */
const RECORD = { startingLba: u32(8), sizeInLba: u32(12) }
const ACTIVE = 0x80
const GPT_PROTECTIVE = 'ee'
const ESP_MBR = 'ef'
/** Extended partitions, as Windows (05, 0f) and Linux (85) write them. */
const EXTENDED = ['05', '0f', '85']
/** No tool makes more: a chain of tables that is a loop ends here. */
const MAX_LOGICAL = 128

/** Table 5.5, GPT Header. */
const GPT = {
  signature: text(0, 8),
  partitionEntryLba: u64(72),
  numberOfPartitionEntries: u32(80),
  sizeOfPartitionEntry: u32(84),
}
/** Table 5.6, GPT Partition Entry. */
const ENTRY = { partitionTypeGuid: guid(0), startingLba: u64(32), endingLba: u64(40) }
const UNUSED = '00000000-0000-0000-0000-000000000000'
const ESP = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
const BIOS_BOOT = '21686148-6449-6e6f-744e-656564454649'

export async function readLayout(image: Image): Promise<Layout> {
  const { sectorSize } = image
  const start = await readDisk(image, 0, 2 * sectorSize)
  if (start.readUInt16LE(SIGNATURE) !== 0xaa55) {
    return { partitionTable: 'none', partitions: [], boots: 'none' }
  }
  const code = start.subarray(0, BOOT_CODE_LENGTH).some((byte) => byte !== 0)
  const records = readRecords(start, sectorSize)
  const header = read(GPT, start, sectorSize)
  if (records.some(({ type }) => type === GPT_PROTECTIVE) && header.signature === 'EFI PART') {
    const partitions = await readGpt(image, header)
    const uefi = partitions.some(({ type }) => type === ESP)
    const bios = partitions.some(({ type }) => type === BIOS_BOOT) && (code || !uefi)
    return { partitionTable: 'gpt', partitions, boots: boots(bios, uefi) }
  }
  // a file system without a partition table has code where the records would be
  const table = records.every(({ indicator }) => indicator === 0 || indicator === ACTIVE)
  const used = table ? records.filter(({ type }) => type !== '00') : []
  const active = used.some(({ indicator }) => indicator === ACTIVE)
  const uefi = used.some(({ type }) => type === ESP_MBR)
  return {
    partitionTable: table ? 'mbr' : 'none',
    partitions: [
      ...used.map(({ indicator, ...partition }) => ({
        ...partition,
        ...(indicator === ACTIVE && { active: true as const }),
      })),
      ...await readLogical(image, used),
    ],
    boots: boots(code || active, uefi),
  }
}

/** The four entries of a boot record. */
function readRecords(sector: Buffer, sectorSize: number) {
  return [0, 1, 2, 3].map((index) => {
    const record = sector.subarray(PARTITION_RECORDS + index * 16)
    const { startingLba, sizeInLba } = read(RECORD, record)
    return {
      indicator: record[0] as number,
      type: (record[4] as number).toString(16).padStart(2, '0'),
      offset: startingLba * sectorSize,
      length: sizeInLba * sectorSize,
    }
  })
}

/** Each table in an extended partition has a partition, counted from it, and the next table, counted from the first. */
async function readLogical(image: Image, primary: Partition[]): Promise<Partition[]> {
  const extended = primary.find(({ type }) => EXTENDED.includes(type))
  const partitions: Partition[] = []
  let at = extended?.offset
  for (let n = 0; extended && at !== undefined && n < MAX_LOGICAL; n++) {
    const sector = await readDisk(image, at, image.sectorSize)
    if (sector.readUInt16LE(SIGNATURE) !== 0xaa55) break
    const [logical, next] = readRecords(sector, image.sectorSize)
    if (logical && logical.type !== '00') {
      const { indicator: _, ...partition } = logical
      partitions.push({ ...partition, offset: at + logical.offset })
    }
    at = next && EXTENDED.includes(next.type) ? extended.offset + next.offset : undefined
  }
  return partitions
}

async function readGpt(
  image: Image,
  { partitionEntryLba, numberOfPartitionEntries, sizeOfPartitionEntry: size }: {
    partitionEntryLba: number
    numberOfPartitionEntries: number
    sizeOfPartitionEntry: number
  },
): Promise<Partition[]> {
  const at = partitionEntryLba * image.sectorSize
  const length = numberOfPartitionEntries * size
  // a damaged header describes no table, and a disk without one has no partitions
  if (size < 128 || length > MB || !(at + length <= image.virtualSize)) return []
  const table = await readDisk(image, at, length)
  const partitions: Partition[] = []
  for (let index = 0; index < numberOfPartitionEntries; index++) {
    const { partitionTypeGuid: type, startingLba, endingLba } = read(ENTRY, table, index * size)
    if (type === UNUSED || !(startingLba <= endingLba && endingLba !== Infinity)) continue
    partitions.push({
      offset: startingLba * image.sectorSize,
      length: (endingLba - startingLba + 1) * image.sectorSize,
      type,
    })
  }
  return partitions
}

function boots(bios: boolean, uefi: boolean): Layout['boots'] {
  if (bios) return uefi ? 'both' : 'bios'
  return uefi ? 'uefi' : 'none'
}
