/** What the volumes of a disk hold, as far as it decides whether a copy of them will start. */
import { openFat } from './fat.ts'
import { little, read } from './header.ts'
import { type Image, readDisk } from './image.ts'
import { readNtfs } from './ntfs.ts'
import { Damaged, type Layout, type ReadAt } from './partitions.ts'

const { u16, u32 } = little

export interface Volume {
  /** Bytes from the start of the disk. */
  offset: number
  length: number
  /** By its signature; `ldm` is Windows' dynamic disk, `md` Linux' RAID. */
  holds:
    | 'ntfs'
    | 'refs'
    | 'fat'
    | 'exfat'
    | 'bitlocker'
    | 'ldm'
    | 'ext'
    | 'xfs'
    | 'btrfs'
    | 'swap'
    | 'lvm'
    | 'luks'
    | 'md'
    | 'unknown'
  label?: string
  /** NTFS, ext: it was not closed properly, and is checked or mended when the guest starts. */
  dirty?: boolean
  /**
   * NTFS: Windows is to go on from its memory on disk, after hibernation or Fast Startup. Swap: Linux is,
   * from its memory there.
   */
  hibernated?: boolean
  /** NTFS: Windows is installed there. */
  windows?: boolean
  /** FAT: what UEFI can start, such as `EFI/BOOT/BOOTX64.EFI`. */
  loaders?: string[]
  /** It has the signature, and what is in it cannot be read. */
  damaged?: true
}

/** GPT's types of a dynamic disk's parts, and MBR's. */
const LDM = [
  '5808c8aa-7e8f-42e0-85d2-e1e90434cfb3',
  'af9b60a0-1431-4f62-bc68-3311714a69ad',
  '42',
]

/** What Linux writes over swap's own signature, and takes back when it goes on (kernel/power/swap.c). */
const HIBERNATED = 'S1SUSPEND\0'

/** Of ext's superblock (fs/ext4/ext4.h): s_state, and a journal to be replayed in s_feature_incompat. */
const EXT = { state: u16(1024 + 58), incompatible: u32(1024 + 96) }
const EXT4_VALID_FS = 1
const EXT4_FEATURE_INCOMPAT_RECOVER = 4

/** Where file systems and containers have their signatures. */
const SIGNATURES: [Volume['holds'], at: number, signature: string][] = [
  ['ntfs', 3, 'NTFS    '],
  ['refs', 3, 'ReFS\0\0\0\0'],
  ['exfat', 3, 'EXFAT   '],
  ['bitlocker', 3, '-FVE-FS-'],
  ['luks', 0, 'LUKS\xba\xbe'],
  ['xfs', 0, 'XFSB'],
  ['ext', 1024 + 56, '\x53\xef'],
  // metadata 1.2, 1.1
  ['md', 4096, '\xfc\x4e\x2b\xa9'],
  ['md', 0, '\xfc\x4e\x2b\xa9'],
  // the label is in one of the first four sectors
  ...[0, 1, 2, 3].map((sector): [Volume['holds'], number, string] => [
    'lvm',
    sector * 512 + 24,
    'LVM2 001',
  ]),
  // at the end of the first page
  ['swap', 4096 - 10, 'SWAPSPACE2'],
  ['swap', 4096 - 10, HIBERNATED],
  ['btrfs', 0x10040, '_BHRfS_M'],
]
const LABELS: Partial<Record<Volume['holds'], [at: number, length: number]>> = {
  ext: [1024 + 120, 16],
  xfs: [108, 12],
  btrfs: [0x1012b, 256],
}
const START = 0x10200

/** The volumes in a disk's partitions, or the one that takes all of a disk without a table. */
export async function readVolumes(
  image: Image,
  { partitions }: Layout,
): Promise<Volume[]> {
  const whole = { offset: 0, length: image.virtualSize, type: '' }
  const places = partitions.length > 0 ? partitions : [whole]
  const volumes: Volume[] = []
  for (const { offset, length, type } of places) {
    const end = Math.min(length, image.virtualSize - offset)
    const at: ReadAt = (position, size) => {
      if (!(position >= 0 && position + size <= end)) return Promise.reject(new Damaged())
      return readDisk(image, offset + position, size)
    }
    const volume: Volume = { offset, length, holds: 'unknown' }
    if (LDM.includes(type)) volume.holds = 'ldm'
    else if (end >= 512) {
      try {
        await describe(volume, at, end)
      } catch (error) {
        if (!(error instanceof Damaged)) throw error
        volume.damaged = true
      }
    }
    // a disk without partitions holds a volume only where it shows one
    if (places === partitions || volume.holds !== 'unknown') volumes.push(volume)
  }
  return volumes
}

async function describe(volume: Volume, at: ReadAt, length: number): Promise<void> {
  const start = await at(0, Math.min(START, length))
  const found = SIGNATURES.find(([, place, signature]) =>
    start.toString('latin1', place, place + signature.length) === signature
  )
  if (found) volume.holds = found[0]
  const label = LABELS[volume.holds]
  if (label) {
    const text = start.subarray(label[0], label[0] + label[1]).toString('utf8').replace(
      /\0.*$/s,
      '',
    )
    if (text) volume.label = text
  }
  if (volume.holds === 'swap') volume.hibernated = found?.[2] === HIBERNATED
  if (volume.holds === 'ext' && start.length >= 2048) {
    const { state, incompatible } = read(EXT, start)
    volume.dirty = (state & EXT4_VALID_FS) === 0 ||
      (incompatible & EXT4_FEATURE_INCOMPAT_RECOVER) !== 0
  }
  if (volume.holds === 'ntfs') Object.assign(volume, await readNtfs(at))
  // its texts are for people: the specification forbids to go by them
  else if (!found && start.readUInt16LE(510) === 0xaa55) {
    const list = await openFat(at)
    if (!list) return
    volume.holds = 'fat'
    volume.loaders = await findLoaders(list)
  }
}

/** `.efi` files in the folders that boot loaders are put in: two levels below `EFI`. */
async function findLoaders(list: Awaited<ReturnType<typeof openFat>> & object): Promise<string[]> {
  const loaders: string[] = []
  const folders = [['EFI']]
  for (let path = folders.shift(); path && loaders.length < 64; path = folders.shift()) {
    for (const { name, directory } of await list(path)) {
      if (directory && path.length < 3 && folders.length < 64) folders.push([...path, name])
      else if (!directory && /\.efi$/i.test(name)) loaders.push([...path, name].join('/'))
    }
  }
  return loaders
}
