/**
 * An OVA is a tar with an OVF, its disks and perhaps a manifest. Its disks are read where they lie:
 * that takes each member's place in the file, which tar libraries that stream do not give.
 * Source: DMTF DSP0243; POSIX pax, ustar interchange format; GNU tar manual, basic tar format.
 */
import { createHash } from 'node:crypto'
import type { Bytes } from './image.ts'
import { ImageError } from './image.ts'

export interface Member {
  name: string
  /** Where its bytes begin in the archive. */
  offset: number
  size: number
}

const RECORD = 512

export async function isTar(bytes: Bytes): Promise<boolean> {
  if (bytes.size < 2 * RECORD) return false
  const header = await bytes.read(0, RECORD)
  return header.toString('latin1', 257, 262) === 'ustar' && sumIsRight(header)
}

/** The files of an archive, in its order. Refuses links, absolute names and names that climb out. */
export async function listMembers(archive: Bytes): Promise<Member[]> {
  const members: Member[] = []
  let longName: string | undefined
  let longSize: number | undefined
  for (let at = 0; at + RECORD <= archive.size;) {
    const header = await archive.read(at, RECORD)
    if (header.every((byte) => byte === 0)) break
    if (!sumIsRight(header)) throw new ImageError(archive, at, 'there is no tar header')
    const type = String.fromCharCode(header[156] ?? 0)
    const size = longSize ?? field(header)
    const offset = at + RECORD
    if (!Number.isSafeInteger(size) || offset + size > archive.size) {
      throw new ImageError(archive, at, 'a member goes beyond the end: the archive is cut short')
    }
    if (type === 'L' || type === 'x') {
      if (size > 1024 ** 2) {
        throw new ImageError(archive, at, `an extended header has ${size} bytes`)
      }
      const text = (await archive.read(offset, size)).toString('utf8')
      if (type === 'L') longName = text.replace(/\0.*$/s, '')
      else {
        longName = text.match(/(?:^|\n)\d+ path=([^\n]*)\n/)?.[1] ?? longName
        const long = text.match(/(?:^|\n)\d+ size=(\d+)\n/)?.[1]
        if (long !== undefined) longSize = Number(long)
      }
    } else if (type !== 'g') {
      const prefix = string(header, 345, 155)
      const name = longName ?? (prefix ? `${prefix}/` : '') + string(header, 0, 100)
      longName = longSize = undefined
      if (type === '1' || type === '2') throw new ImageError(archive, at, `"${name}" is a link`)
      if (/^[\\/]|^[a-z]:|(^|[\\/])\.\.([\\/]|$)/i.test(name)) {
        throw new ImageError(archive, at, `the name "${name}" leads out of the archive`)
      }
      if (type === '0' || type === '\0' || type === '7') members.push({ name, offset, size })
    }
    at = offset + Math.ceil(size / RECORD) * RECORD
  }
  return members
}

/** A member as the bytes of an image. */
export function member(archive: Bytes, { name, offset, size }: Member): Bytes {
  const full = `${archive.name}/${name}`
  return {
    name: full,
    size,
    read: (position, length) => {
      if (position + length > size) {
        throw new ImageError({ name: full }, position, 'the file ends there')
      }
      return archive.read(offset + position, length)
    },
  }
}

/** Compares a member with the manifest. True when it is as listed, undefined when it is not listed. */
export async function verifyMember(
  archive: Bytes,
  members: Member[],
  wanted: Member,
): Promise<boolean | undefined> {
  const manifest = members.find(({ name }) => name.toLowerCase().endsWith('.mf'))
  if (!manifest || manifest.size > 1024 ** 2) return undefined
  const text = (await archive.read(manifest.offset, manifest.size)).toString('utf8')
  for (const line of text.split(/\r?\n/)) {
    const [, algorithm, name, digest] = line.match(/^(SHA\d+)\s*\((.*)\)\s*=\s*([0-9a-f]+)\s*$/i) ??
      []
    if (name !== wanted.name || algorithm === undefined || digest === undefined) continue
    const hash = createHash(algorithm.toLowerCase())
    for (let at = 0; at < wanted.size; at += CHUNK) {
      hash.update(await archive.read(wanted.offset + at, Math.min(CHUNK, wanted.size - at)))
    }
    return hash.digest('hex') === digest.toLowerCase()
  }
  return undefined
}

const CHUNK = 4 * 1024 ** 2

/** The size: octal text, or base 256 when it is too large for that. */
function field(header: Buffer): number {
  if ((header[124] ?? 0) & 0x80) {
    return Number(header.readBigUInt64BE(128))
  }
  return Number.parseInt(string(header, 124, 12).trim() || '0', 8)
}

function string(header: Buffer, at: number, length: number): string {
  return header.toString('utf8', at, at + length).replace(/\0.*$/s, '')
}

function sumIsRight(header: Buffer): boolean {
  let sum = 8 * 0x20
  header.forEach((byte, index) => (sum += index >= 148 && index < 156 ? 0 : byte))
  return sum === Number.parseInt(string(header, 148, 8).trim(), 8)
}
