/** What readers and writers of disk images have in common. */
import type { FileHandle } from 'node:fs/promises'

export type Format = 'vdi' | 'vmdk' | 'vhd' | 'vhdx' | 'raw'

/** The bytes of an image: a file, or a member of an archive, read where it lies. */
export interface Bytes {
  /** For messages: the file, or the archive and the member. */
  name: string
  size: number
  /** Exactly `length` bytes from `position`, in `into` when given; rejects where the file ends before. */
  read: (position: number, length: number, into?: Buffer) => Promise<Buffer>
}

/** A part of the virtual disk that may hold data, and where that lies. */
export interface Run {
  /** Byte of the virtual disk. */
  offset: number
  length: number
  bytes: Bytes
  /** Byte of `bytes`. */
  at: number
  /** Reads runs of one window that are stored compressed, into the first bytes of `slot.data`. */
  load?: (piece: Piece, slot: Slot) => Promise<void>
  /** The compressed run that this is a part of: only that can be read. */
  whole?: Run
}

/** The runs of one {@link WINDOW} of the virtual disk. What they leave out reads as zeros. */
export interface Piece {
  offset: number
  length: number
  runs: Run[]
}

/** Memory that one piece after the other is read into, shared with the threads that inflate. */
export interface Slot {
  data: Buffer
  /** For what is stored compressed. */
  stored?: Buffer
}

/**
 * Memory to read files into. One that could grow begins with a page, others 16 bytes behind where one
 * begins, as allocators have it. There AMD's processors (Zen 3 and later) copy from the page cache at a
 * fifth of their speed: 2.3 instead of 11 GB/s were measured.
 * Source: https://xuanwo.io/2023/04-rust-std-fs-slower-than-python/
 */
export function share(bytes: number): Buffer {
  return Buffer.from(new SharedArrayBuffer(bytes, { maxByteLength: bytes }), 0, bytes)
}

/** What a differencing image says of the image that it changes. */
export interface ParentLink {
  /** The parent's own identifier. */
  identifier?: string | undefined
  /** Any of the {@link Image.states} of the parent for which the changes were written. */
  states: string[]
  /** Where the parent was: absolute, or from the folder of the image. Often no longer true. */
  paths: string[]
  /** Byte of the image where this stands. */
  at: number
}

/** A disk image that can be read. */
export interface Image {
  format: Format
  /** As the format's specification names it, e.g. `dynamic` or `streamOptimized`. */
  variant: string
  /** Bytes. */
  virtualSize: number
  /** Bytes of a sector as the guest sees it. */
  sectorSize: 512 | 4096
  /** The image's own identifier, in the usual notation. */
  identifier?: string | undefined
  /** Others each time that data was written: VDI uuidModify, VMDK CID, VHDX DataWriteGuid. */
  states?: string[]
  /**
   * A differencing image has one. Its runs are what it changes; all else is as the parent has it.
   */
  parent?: ParentLink
  /** The images that it was put together from, by name, the last parent first. */
  chain?: string[]
  /** What is wrong with it and no obstacle. */
  warnings?: string[]
  /**
   * By rising offset, each within the disk, beginning with the one that holds byte `from` or follows it.
   * Runs of {@link ZEROS} are what the image says to be zeros, whatever its parent has there.
   * Checks the tables on its way: rejects with an {@link ImageError} where they cannot be right.
   */
  runs: (from?: number) => AsyncIterable<Run>
  close?: () => Promise<void>
}

/** An image that is being written. */
export interface Writer {
  identifier?: string
  /** Bytes that the file has before anything is written; those are zeros. */
  length: number
  /**
   * Bytes of a block, where blocks get their places as data comes for them, one behind the other.
   * Without it all bytes of the disk have theirs from the start, in its order.
   */
  blockSize?: number
  /**
   * Gives data that is not all zeros its place. Called in the order of the disk, so that equal disks
   * give equal files. The same byte has the same place again.
   */
  place: (offset: number, data: Buffer) => Write[]
  /** Writes what is only known in the end: tables, headers. */
  finish: () => Promise<void>
}

export interface Write {
  position: number
  data: Buffer
}

export interface WriterOptions {
  file: FileHandle
  /** Bytes, whole sectors. */
  virtualSize: number
  sectorSize: 512 | 4096
  type: 'dynamic' | 'fixed'
  /** Bytes of a block, where the format leaves a choice: VHDX. */
  blockSize?: number | undefined
  /** A random one each time, or the next of a seeded row. */
  uuid: () => string
}

/** Bytes that are zeros, in a differencing image, whatever the parent has there. */
export const ZEROS: Bytes = {
  name: 'zeros',
  size: Number.MAX_SAFE_INTEGER,
  read: (_, length, into = Buffer.alloc(length)) => Promise.resolve(into.fill(0, 0, length)),
}

/** Refuses an image: file, offset and reason in one sentence. */
export class ImageError extends Error {
  override name = 'ImageError'
  constructor({ name }: { name: string }, offset: number, reason: string) {
    super(`Cannot read "${printable(name)}": ${reason} (at byte ${offset})`)
  }
}

/** The most of a name that is quoted. */
const MOST_NAME = 1000

/** A name as a message may hold it: it stays on its line. */
export function printable(name: string): string {
  const start = name.length > MOST_NAME ? `${name.slice(0, MOST_NAME)}…` : name
  // deno-lint-ignore no-control-regex -- these are what must not reach a terminal
  return start.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
  })
}

/** A number of bytes that a header has. */
export function textOf(bytes: number): string {
  return bytes === Infinity ? 'more bytes than any' : `${bytes} bytes`
}

export const KB = 1024
export const MB = 1024 * KB
export const GB = 1024 * MB
export const TB = 1024 * GB
export const SECTOR = 512

/** What is copied at once: the largest grain, and a block of VHD and VHDX as they are written here. */
export const WINDOW = 2 * MB

/** Cuts the runs of an image at the borders of windows. `from` is such a border, to begin with. */
export async function* pieces(image: Image, from = 0): AsyncGenerator<Piece> {
  if (from > 0 && from >= image.virtualSize) return
  let piece: Piece | undefined
  for await (const run of image.runs(from)) {
    if (run.bytes === ZEROS) continue
    for (let done = Math.max(0, from - run.offset); done < run.length;) {
      const offset = run.offset + done
      const start = offset - offset % WINDOW
      if (piece?.offset !== start) {
        if (piece) yield piece
        piece = { offset: start, length: Math.min(WINDOW, image.virtualSize - start), runs: [] }
      }
      const length = Math.min(run.length - done, start + WINDOW - offset)
      piece.runs.push({ ...run, offset, length, at: run.at + done })
      done += length
    }
  }
  if (piece) yield piece
}

/** Reads a piece into the first bytes of `slot.data`. */
export async function load(piece: Piece, slot: Slot): Promise<void> {
  clearGaps(piece, slot.data)
  const { runs } = piece
  if (!runs.some((run) => run.load)) return await loadStored(piece, slot)
  const [first] = runs
  const alike = runs.every((run) => run.load === first?.load && !run.whole)
  await (alike && first?.load ? first.load(piece, slot) : loadMixed(piece, slot))
}

/** Runs that follow each other in the disk and in the file are read at once. */
async function loadStored(piece: Piece, slot: Slot): Promise<void> {
  const reads: Promise<unknown>[] = []
  for (let index = 0; index < piece.runs.length;) {
    const { bytes, offset, at, ...first } = piece.runs[index++] as Run
    let length = first.length
    for (; index < piece.runs.length; index++) {
      const next = piece.runs[index] as Run
      const follows = next.offset === offset + length && next.at === at + length
      if (!follows || next.bytes !== bytes) break
      length += next.length
    }
    const start = offset - piece.offset
    reads.push(bytes.read(at, length, slot.data.subarray(start, start + length)))
  }
  await Promise.all(reads)
}

/** A differencing image may change parts of what its parent has compressed. */
async function loadMixed({ runs, ...piece }: Piece, slot: Slot): Promise<void> {
  await loadStored({ ...piece, runs: runs.filter((run) => !run.load) }, slot)
  const start = piece.offset - piece.offset % WINDOW
  for (const load of new Set(runs.map((run) => run.load))) {
    if (!load) continue
    const parts = runs.filter((run) => run.load === load)
    const wholes = [...new Set(parts.map((run) => run.whole ?? run))]
    const own: Slot = { data: share(WINDOW) }
    await load({ offset: start, length: WINDOW, runs: wholes }, own)
    for (const { offset, length } of parts) {
      own.data.copy(slot.data, offset - piece.offset, offset - start, offset - start + length)
    }
  }
}

function clearGaps({ offset, length, runs }: Piece, data: Buffer): void {
  let end = offset
  for (const run of runs) {
    if (run.offset > end) data.fill(0, end - offset, run.offset - offset)
    end = run.offset + run.length
  }
  data.fill(0, end - offset, length)
}

/** Reads a part of the disk, of a few megabytes at most. What lies beyond its end reads as zeros. */
export async function readDisk(image: Image, offset: number, length: number): Promise<Buffer> {
  const result = Buffer.alloc(length)
  let slot: Slot = { data: share(Math.min(WINDOW, length)) }
  for await (const run of image.runs(offset)) {
    if (run.offset >= offset + length) break
    if (run.load && slot.data.length < WINDOW) slot = { data: share(WINDOW) }
    // compressed runs are read whole, others as far as they are wanted
    let from = run.load ? run.offset : Math.max(run.offset, offset)
    const end = Math.min(run.offset + run.length, run.load ? Infinity : offset + length)
    while (from < end) {
      const size = Math.min(slot.data.length, end - from)
      const part = { ...run, offset: from, length: size, at: run.at + from - run.offset }
      await load({ offset: from, length: size, runs: [part] }, slot)
      const skip = Math.max(0, offset - from)
      slot.data.copy(result, from + skip - offset, skip, Math.min(size, offset + length - from))
      from += size
    }
  }
  return result
}

/** The writes of data that falls into blocks, whose positions `positionOf` gives. */
export function spread(
  offset: number,
  data: Buffer,
  blockSize: number,
  positionOf: (block: number) => number,
): Write[] {
  const writes: Write[] = []
  for (let done = 0; done < data.length;) {
    const inside = (offset + done) % blockSize
    const end = Math.min(done + blockSize - inside, data.length)
    const position = positionOf(Math.floor((offset + done) / blockSize)) + inside
    writes.push({ position, data: data.subarray(done, end) })
    done = end
  }
  return writes
}

/** The runs of set bits among the first `count`: sectors that an image holds. */
export function* setBits(
  bitmap: Buffer,
  count: number,
  order: 'high first' | 'low first',
): Generator<{ start: number; end: number }> {
  let start = -1
  for (let bit = 0; bit < count; bit++) {
    const byte = bitmap[bit >> 3] as number
    if (byte === 0xff && start >= 0 && bit % 8 === 0) {
      bit += 7
      continue
    }
    const mask = order === 'high first' ? 0x80 >> (bit & 7) : 1 << (bit & 7)
    const set = (byte & mask) !== 0
    if (set && start < 0) start = bit
    else if (!set && start >= 0) {
      yield { start, end: bit }
      start = -1
    }
  }
  if (start >= 0) yield { start, end: count }
}

/** Where stored blocks of one length lie, to see that no two overlap. Takes memory as blocks are added. */
export class Places {
  readonly #length: number
  readonly #step: number
  readonly #pages = new Map<number, Uint16Array>()
  /** Blocks that lie side by side take a bit each: grains of one sector come by the hundred million. */
  readonly #bits = new Map<number, Uint8Array>()

  /** Blocks of `length` bytes that begin at multiples of `step`; at most 65534 steps a block. */
  constructor(length: number, step: number) {
    this.#length = length
    this.#step = step
  }

  /** False when a block that was added before overlaps the one at byte `at`. */
  add(at: number): boolean {
    const cell = Math.floor(at / this.#length)
    if (this.#length === this.#step) return this.#addBit(cell)
    const inside = at % this.#length
    // a cell is as long as a block, so only the two beside it can hold the beginning of another
    const before = this.#get(cell - 1)
    const after = this.#get(cell + 1)
    const free = this.#get(cell) === undefined && (before === undefined || before <= inside) &&
      (after === undefined || after >= inside)
    let page = this.#pages.get(cell >>> 12)
    if (!page) this.#pages.set(cell >>> 12, page = new Uint16Array(4096))
    page[cell & 4095] = Math.floor(inside / this.#step) + 1
    return free
  }

  #addBit(cell: number): boolean {
    let page = this.#bits.get(cell >>> 12)
    if (!page) this.#bits.set(cell >>> 12, page = new Uint8Array(512))
    const [byte, bit] = [(cell & 4095) >>> 3, 1 << (cell & 7)]
    const free = ((page[byte] as number) & bit) === 0
    page[byte] = (page[byte] as number) | bit
    return free
  }

  #get(cell: number): number | undefined {
    const value = this.#pages.get(cell >>> 12)?.[cell & 4095]
    return value ? (value - 1) * this.#step : undefined
  }
}

const NOTHING = Buffer.alloc(64 * KB)

/** The parts of data that are not all zeros, to 64 KB. */
export function* nonZero(data: Buffer): Generator<{ start: number; end: number }> {
  let start = -1
  for (let at = 0; at < data.length; at += NOTHING.length) {
    const end = Math.min(at + NOTHING.length, data.length)
    const zero = data.compare(NOTHING, 0, end - at, at, end) === 0
    if (zero && start >= 0) {
      yield { start, end: at }
      start = -1
    } else if (!zero && start < 0) start = at
  }
  if (start >= 0) yield { start, end: data.length }
}
