/** What readers and writers of disk images have in common. */
import type { FileHandle } from 'node:fs/promises'

/** The bytes of an image: a file, or a member of an archive, read where it lies. */
export interface Bytes {
  /** For messages: the file, or the archive and the member. */
  name: string
  size: number
  /** Exactly `length` bytes from `position`; rejects where the file ends before. */
  read: (position: number, length: number) => Promise<Buffer>
}

/** A piece of the virtual disk that may hold data. Everything between extents reads as zeros. */
export interface Extent {
  /** Where on the virtual disk; bytes. */
  offset: number
  length: number
  load: () => Promise<Buffer>
}

/** A disk image that can be read. */
export interface Image {
  format: 'vdi' | 'vmdk' | 'vhd' | 'vhdx' | 'raw'
  /** As the format's specification names it, e.g. `dynamic` or `streamOptimized`. */
  variant: string
  /** Bytes. */
  virtualSize: number
  /** Bytes of the extents. */
  allocatedSize: number
  /** The image's own identifier, in the usual notation. */
  identifier?: string
  /** By rising offset, and never larger than a few megabytes each. */
  extents: () => AsyncIterable<Extent>
}

/** An image that is being written. */
export interface Writer {
  /** Writes data that is not all zeros; each byte of the disk at most once, in any order. */
  write: (offset: number, data: Buffer) => Promise<void>
  /** Writes what is only known in the end: tables, headers. */
  finish: () => Promise<void>
  identifier?: string
  /** Bytes of data blocks that were allocated. */
  allocated: () => number
}

export interface WriterOptions {
  file: FileHandle
  virtualSize: number
  type: 'dynamic' | 'fixed'
  /** 16 random bytes each time, or the next of a seeded row. */
  uuid: () => Buffer
}

/** Refuses an image: file, offset and reason in one sentence. */
export class ImageError extends Error {
  override name = 'ImageError'
  constructor({ name }: { name: string }, offset: number, reason: string) {
    super(`Cannot read "${name}": ${reason} (at byte ${offset})`)
  }
}

/** A number that a table holds, when it can be one: tables of damaged images hold anything. */
export function number(bytes: Bytes, at: number, value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ImageError(bytes, at, `${what} is ${value}, beyond all sizes`)
  }
  return Number(value)
}

/** A UUID of mixed byte order, as Microsoft and VirtualBox store it. */
export function guid(data: Buffer): string {
  const hex = Buffer.from(data)
  hex.subarray(0, 4).reverse()
  hex.subarray(4, 6).reverse()
  hex.subarray(6, 8).reverse()
  return uuid(hex)
}

/** A UUID whose bytes stand as it is written. */
export function uuid(data: Buffer): string {
  return data.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*$/, '$1-$2-$3-$4-$5')
}

/** A GUID in its stored order. */
export function guidBytes(text: string): Buffer {
  const data = Buffer.from(text.replaceAll('-', ''), 'hex')
  data.subarray(0, 4).reverse()
  data.subarray(4, 6).reverse()
  data.subarray(6, 8).reverse()
  return data
}

const ZEROS = Buffer.alloc(1024 ** 2)

export function isZero(data: Buffer): boolean {
  for (let at = 0; at < data.length; at += ZEROS.length) {
    const part = data.subarray(at, at + ZEROS.length)
    if (part.compare(ZEROS, 0, part.length) !== 0) return false
  }
  return true
}
