/**
 * An export of a VM: an OVF, its disks and perhaps a manifest, in one tar (OVA) or beside each other.
 * The disks of an OVA are read where they lie, without unpacking: that takes each member's place in
 * the archive, which libraries that stream a tar do not give.
 * Source: DMTF DSP0243 (OVF 2.1); POSIX pax, ustar interchange format; GNU tar manual, "Basic Tar Format".
 */
import { createHash } from 'node:crypto'
import { type Bytes, ImageError, MB, printable, share } from './image.ts'

export interface Member {
  name: string
  /** Where its bytes begin in the archive. */
  offset: number
  size: number
}

const RECORD = 512
/** More than any export has: a list that takes long is no list of one. */
const MOST_MEMBERS = 10_000
/** The most of a manifest that is read into memory. */
const MOST_MANIFEST = 2 * MB
/** Ten times what an OVF has; parsing takes up to a second for it, and 100 times the memory. */
const MOST_OVF = MB

export async function isTar(bytes: Bytes): Promise<boolean> {
  return bytes.size >= 2 * RECORD && sumIsRight(await bytes.read(0, RECORD))
}

/** The files of a tar, in its order. Refuses links, absolute names and names that climb out. */
export async function listMembers(archive: Bytes): Promise<Member[]> {
  const members: Member[] = []
  let longName: string | undefined
  let longSize: number | undefined
  for (let at = 0, count = 0; at + RECORD <= archive.size; count++) {
    const header = await archive.read(at, RECORD)
    if (header.every((byte) => byte === 0)) break
    const refuse = (reason: string) => new ImageError(archive, at, reason)
    if (!sumIsRight(header)) throw refuse('there is no tar header where one must be')
    if (count > MOST_MEMBERS) throw refuse(`it has more than ${MOST_MEMBERS} members`)
    const type = String.fromCharCode(header[156] ?? 0)
    const extended = type === 'L' || type === 'K' || type === 'x' || type === 'g'
    const size = (extended ? undefined : longSize) ?? sizeOf(header)
    const offset = at + RECORD
    if (!Number.isSafeInteger(size) || size < 0 || offset + size > archive.size) {
      throw refuse('a member is not within the archive, which may be cut short')
    }
    if (extended) {
      if (size > MB) throw refuse(`an extended header has ${size} bytes`)
      const data = await archive.read(offset, size)
      if (type === 'L') longName = data.toString('utf8').replace(/\0.*$/s, '')
      if (type === 'x') {
        const records = paxRecords(data)
        if (!records) throw refuse('an extended header is damaged')
        if ([...records.keys()].some((key) => key.startsWith('GNU.sparse.'))) {
          throw refuse('a member is stored sparse, which no export is')
        }
        longName = records.get('path') ?? longName
        const size = records.get('size')
        if (size !== undefined) longSize = /^\d+$/.test(size) ? Number(size) : NaN
      }
    } else {
      const prefix = header.toString('latin1', 257, 263) === 'ustar\0'
        ? string(header, 345, 155)
        : ''
      const name = longName ?? (prefix ? `${prefix}/` : '') + string(header, 0, 100)
      longName = longSize = undefined
      if (type === '1' || type === '2') throw refuse(`"${printable(name)}" is a link`)
      if (/^[\\/]|^[a-z]:|(^|[\\/])\.\.([\\/]|$)/i.test(name) || name.includes('\0')) {
        throw refuse(`the name "${printable(name)}" leads out of the archive`)
      }
      if (type === '0' || type === '\0' || type === '7') members.push({ name, offset, size })
      else if (type !== '5') {
        throw refuse(`"${printable(name)}" is no plain file (type ${printable(type)})`)
      }
    }
    at = offset + Math.ceil(size / RECORD) * RECORD
  }
  const names = new Set<string>()
  for (const { name } of members) {
    if (names.has(name)) {
      throw new ImageError(archive, 0, `two of its members are named "${printable(name)}"`)
    }
    names.add(name)
  }
  return members
}

/** A member as the bytes of an image. */
export function member(archive: Bytes, { name, offset, size }: Member): Bytes {
  const full = `${archive.name}/${name}`
  return {
    name: full,
    size,
    read: async (position, length, into) => {
      if (position + length > size) {
        throw new ImageError({ name: full }, size, 'the file ends there')
      }
      return await archive.read(offset + position, length, into)
    },
  }
}

/** A disk as an OVF refers to it. */
export interface DiskFile {
  name: string
  /** The files that hold it, in order: one, or its chunks. */
  parts: () => string[]
  /** It is compressed as a file, whatever its own format does. */
  gzip?: boolean
  /** Bytes of the virtual disk. */
  capacity?: number | undefined
}

/** The disks of an OVF that have files, in its order. */
export async function disksOf(ovf: Bytes): Promise<DiskFile[]> {
  const { XMLParser } = await import('fast-xml-parser')
  const parser = new XMLParser({ ignoreAttributes: false, removeNSPrefix: true })
  const text = await readText(ovf, MOST_OVF)
  const damaged = new ImageError(ovf, 0, 'its XML is damaged. Export the VM again')
  if (text.includes('\0')) throw damaged
  let envelope
  try {
    envelope = parser.parse(text)?.Envelope
  } catch {
    throw damaged // the parser's own words quote the file
  }
  const files = new Map(list(envelope?.References?.File).map((file) => [file['@_id'], file]))
  return list(envelope?.DiskSection?.Disk).flatMap((disk) => {
    const reference = disk['@_fileRef']
    const file = reference === undefined ? undefined : files.get(reference)
    if (!file) return [] // an empty disk has no file
    // a DVD that VirtualBox exported too: the name of ISO 9660 at ECMA
    if (/Ecma-119/i.test(String(disk['@_format']))) return []
    if (file['@_href'] === undefined) {
      throw new ImageError(ovf, 0, `its file "${printable(String(reference))}" has no name`)
    }
    const name = String(file['@_href'])
    const refuse = (reason: string) => {
      return new ImageError(ovf, 0, `its disk "${printable(name)}" ${reason}`)
    }
    const compression = String(file['@_compression'] ?? 'identity')
    if (compression !== 'identity' && compression !== 'gzip') {
      throw refuse(`is compressed by ${printable(compression)}, and gzip is known`)
    }
    const chunkSize = file['@_chunkSize']
    const count = Math.ceil(Number(file['@_size']) / Number(chunkSize))
    if (chunkSize !== undefined && !(count >= 1 && count <= MOST_MEMBERS)) {
      throw refuse('is in chunks, of which it does not say how many')
    }
    const capacity = capacityOf(disk)
    if (compression === 'gzip' && capacity === undefined) {
      throw refuse('is compressed, and how large it is is not said')
    }
    return [{
      name,
      // DSP0243, 7.1: nine digits, from zero
      parts: () => {
        if (chunkSize === undefined) return [name]
        return Array.from({ length: count }, (_, at) => `${name}.${String(at).padStart(9, '0')}`)
      },
      gzip: compression === 'gzip',
      capacity,
    }]
  })
}

/** In units that DSP0004 writes as `byte * 2^30`. Undefined when it cannot be understood. */
function capacityOf(disk: Node): number | undefined {
  const units = String(disk['@_capacityAllocationUnits'] ?? 'byte').replaceAll(/\s/g, '')
  const [, base, exponent] = units.match(/^byte(?:s)?(?:\*(\d+)\^(\d+))?$/i) ?? []
  const unit = base === undefined
    ? /^bytes?$/i.test(units) ? 1 : NaN
    : Number(base) ** Number(exponent)
  const capacity = Number(disk['@_capacity']) * unit
  return capacity > 0 && Number.isSafeInteger(capacity) ? capacity : undefined
}

interface Digest {
  algorithm: string
  digest: string
}

/** Read once, and not for each of thousands of chunks. */
const manifests = new WeakMap<Bytes, Promise<Map<string, Digest>>>()

/** What a manifest says of a file: algorithm and digest. */
export async function digestOf(manifest: Bytes, name: string): Promise<Digest | undefined> {
  let reading = manifests.get(manifest)
  if (!reading) manifests.set(manifest, reading = readManifest(manifest))
  const listed = (await reading).get(name)
  if (!listed) return undefined
  const { algorithm, digest } = listed
  if (!/^SHA-?(1|256|512)$/i.test(algorithm)) {
    throw new ImageError(
      manifest,
      0,
      `its digests are ${printable(algorithm)}, and SHA-1, SHA-256 and SHA-512 are known`,
    )
  }
  return { algorithm: algorithm.toLowerCase().replace('-', ''), digest: digest.toLowerCase() }
}

async function readManifest(manifest: Bytes): Promise<Map<string, Digest>> {
  const digests = new Map<string, Digest>()
  for (const line of (await readText(manifest, MOST_MANIFEST)).split(/\r?\n/)) {
    const [, algorithm = '', name, digest = ''] =
      line.match(/^\s*([\w-]+)\s*\((.*)\)\s*=\s*([0-9a-f]+)\s*$/i) ?? []
    if (name !== undefined && !digests.has(name)) digests.set(name, { algorithm, digest })
  }
  return digests
}

/** The digest of a whole file, read from the beginning to the end. */
export async function hash(bytes: Bytes, algorithm: string, signal: AbortSignal): Promise<string> {
  const hash = createHash(algorithm)
  const data = share(Math.min(MB, bytes.size))
  for (let at = 0; at < bytes.size; at += data.length) {
    signal.throwIfAborted()
    const length = Math.min(data.length, bytes.size - at)
    hash.update((await bytes.read(at, length, data)).subarray(0, length))
  }
  return hash.digest('hex')
}

async function readText(bytes: Bytes, most: number): Promise<string> {
  if (bytes.size > most) {
    throw new ImageError(bytes, most, `it has ${bytes.size} bytes, which no such text has`)
  }
  return (await bytes.read(0, bytes.size)).toString('utf8')
}

type Node = Record<string, unknown>

function list(value: unknown): Node[] {
  const nodes: unknown[] = Array.isArray(value) ? value : [value]
  return nodes.filter((node): node is Node => typeof node === 'object' && node !== null)
}

/** pax: `<length> <key>=<value>\n`, the length counting all of it. Undefined when it is damaged. */
function paxRecords(data: Buffer): Map<string, string> | undefined {
  const records = new Map<string, string>()
  for (let at = 0; at < data.length && data[at] !== 0;) {
    const length = Number.parseInt(data.toString('latin1', at, at + 20), 10)
    const record = data.toString('utf8', at, at + length)
    const [, key, value] = record.match(/^\d+ ([^=]+)=(.*)\n$/s) ?? []
    if (!(length > 0) || key === undefined || value === undefined) return undefined
    records.set(key, value)
    at += length
  }
  return records
}

/** Octal text, or where that is too short a number of 96 bits, marked by its first. */
function sizeOf(header: Buffer): number {
  if ((header[124] as number) & 0x80) {
    const above = header.readUInt32BE(124)
    return above === 0x80000000 ? Number(header.readBigUInt64BE(128)) : NaN
  }
  const text = string(header, 124, 12).trim()
  return /^[0-7]*$/.test(text) ? Number.parseInt(text || '0', 8) : NaN
}

function string(header: Buffer, at: number, length: number): string {
  return header.toString('utf8', at, at + length).replace(/\0.*$/s, '')
}

function sumIsRight(header: Buffer): boolean {
  let sum = 8 * 0x20
  header.forEach((byte, index) => (sum += index >= 148 && index < 156 ? 0 : byte))
  return sum === Number.parseInt(string(header, 148, 8).trim(), 8)
}
