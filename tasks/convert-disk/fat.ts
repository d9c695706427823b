/**
 * Reads names in a FAT file system, which an EFI system partition has.
 * Source: Microsoft FAT Specification (2005), whose field names these are.
 */
import { little, read, u8 } from './header.ts'
import type { ReadAt } from './partitions.ts'

const { u16, u32 } = little

/** Section 3.1: BIOS Parameter Block. */
const BPB = {
  BytsPerSec: u16(11),
  SecPerClus: u8(13),
  RsvdSecCnt: u16(14),
  NumFATs: u8(16),
  RootEntCnt: u16(17),
  TotSec16: u16(19),
  FATSz16: u16(22),
  TotSec32: u32(32),
  FATSz32: u32(36),
  RootClus: u32(44),
}

/** Section 6: a directory's entry of 32 bytes. */
const DIR = {
  Attr: u8(11),
  /** Windows NT: 8 is a base in small letters, 16 an extension. */
  NTRes: u8(12),
  FstClusHI: u16(20),
  FstClusLO: u16(26),
}
const ATTR_VOLUME_ID = 0x08
const ATTR_DIRECTORY = 0x10
const ATTR_LONG_NAME = 0x0f
const FREE = 0xe5
const LAST_LONG_ENTRY = 0x40

/** Far more than an EFI system partition has: a table that is a loop ends here. */
const MAX_DIRECTORY = 1024 ** 2

interface Entry {
  name: string
  directory: boolean
  cluster: number
}

/** Lists directories of the file system that `at` reads. Undefined where it is none. */
export async function openFat(
  at: ReadAt,
): Promise<((path: string[]) => Promise<Entry[]>) | undefined> {
  const bpb = read(BPB, await at(0, 512))
  const { BytsPerSec, SecPerClus, RsvdSecCnt, NumFATs, RootEntCnt, RootClus } = bpb
  const powers = [BytsPerSec, SecPerClus].every((n) => n > 0 && (n & (n - 1)) === 0)
  const fatSize = bpb.FATSz16 || bpb.FATSz32
  if (!powers || BytsPerSec < 512 || BytsPerSec > 4096) return undefined
  if (RsvdSecCnt === 0 || NumFATs === 0 || fatSize === 0) return undefined
  // section 3.5: the count of clusters alone tells which FAT it is
  const rootSectors = Math.ceil(RootEntCnt * 32 / BytsPerSec)
  const dataSector = RsvdSecCnt + NumFATs * fatSize + rootSectors
  const clusters = Math.floor(((bpb.TotSec16 || bpb.TotSec32) - dataSector) / SecPerClus)
  if (clusters < 1) return undefined
  const bits = clusters < 4085 ? 12 : clusters < 65525 ? 16 : 32
  const fat = RsvdSecCnt * BytsPerSec
  const clusterSize = SecPerClus * BytsPerSec

  async function next(cluster: number): Promise<number | undefined> {
    const data = await at(fat + Math.floor(cluster * bits / 8), bits === 32 ? 4 : 2)
    const entry = bits === 32
      ? data.readUInt32LE() & 0x0fffffff
      : bits === 16
      ? data.readUInt16LE()
      : data.readUInt16LE() >> (cluster % 2 * 4) & 0xfff
    return entry >= 2 && entry < clusters + 2 ? entry : undefined
  }

  async function directory(start: number): Promise<Buffer> {
    const parts: Buffer[] = []
    let cluster: number | undefined = start
    while (cluster !== undefined && parts.length * clusterSize < MAX_DIRECTORY) {
      parts.push(await at((dataSector + (cluster - 2) * SecPerClus) * BytsPerSec, clusterSize))
      cluster = await next(cluster)
    }
    return Buffer.concat(parts)
  }

  return async (path) => {
    let entries = parse(
      bits === 32
        ? await directory(RootClus)
        : await at((dataSector - rootSectors) * BytsPerSec, RootEntCnt * 32),
    )
    for (const wanted of path) {
      const found = entries.find(({ name }) => name.toLowerCase() === wanted.toLowerCase())
      if (!found?.directory || found.cluster < 2) return []
      entries = parse(await directory(found.cluster))
    }
    return entries
  }
}

function parse(data: Buffer): Entry[] {
  const entries: Entry[] = []
  let long = ''
  for (let at = 0; at + 32 <= data.length && data[at] !== 0; at += 32) {
    const entry = data.subarray(at, at + 32)
    const { Attr, NTRes, FstClusHI, FstClusLO } = read(DIR, entry)
    if (entry[0] === FREE) long = ''
    else if ((Attr & 0x3f) === ATTR_LONG_NAME) {
      const part = [[1, 11], [14, 26], [28, 32]].map(([from, to]) =>
        entry.toString('utf16le', from, to)
      ).join('')
      // a long name stands before its entry, its last part first
      long = (entry[0] as number) & LAST_LONG_ENTRY ? part : part + long
    } else {
      if (!(Attr & ATTR_VOLUME_ID)) {
        const base = entry.toString('latin1', 0, 8).trimEnd()
        const extension = entry.toString('latin1', 8, 11).trimEnd()
        const short = [
          NTRes & 8 ? base.toLowerCase() : base,
          NTRes & 16 ? extension.toLowerCase() : extension,
        ].filter(Boolean).join('.')
        entries.push({
          name: long.replace(/\0.*$/s, '') || short,
          directory: (Attr & ATTR_DIRECTORY) !== 0,
          cluster: FstClusHI * 65536 + FstClusLO,
        })
      }
      long = ''
    }
  }
  return entries.filter(({ name }) => name !== '.' && name !== '..')
}
