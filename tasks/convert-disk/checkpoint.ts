/**
 * How far a conversion is, in a small file beside what is written, so that a run that was stopped or
 * killed goes on from there. What it says to be written was synced before it got its name; all that came
 * later is cut off. `--verify` compares the rest too.
 */
import { createHash } from 'node:crypto'
import { type FileHandle, lstat, open, readFile, rename, rm } from 'node:fs/promises'
import type { Written } from './copy.ts'
import { type Image, load, pieces, setBits, share, spread, WINDOW, type Writer } from './image.ts'

/** What of a disk is written: all data before `end`. */
export interface Reached {
  /** Byte of the disk, a multiple of {@link WINDOW}. */
  end: number
  /** Byte of the disk behind the last that was written. */
  last: number
  /** Of a target whose blocks get their places one after the other: a bit for each that has one. */
  blocks: Buffer
  /** Bytes that were read, as {@link Written.bytes}. */
  done: number
  /** Bytes that were written. */
  dataBytes: number
}

/** Other when the same {@link Reached} would mean another file. */
const VERSION = 1

/** More than 64 TB of the smallest blocks take. */
const MOST = 32 * 1024 ** 2

export function reachNothing(virtualSize: number, blockSize: number | undefined): Reached {
  const blocks = blockSize === undefined ? 0 : Math.ceil(virtualSize / blockSize)
  return { end: 0, last: 0, blocks: Buffer.alloc(Math.ceil(blocks / 8)), done: 0, dataBytes: 0 }
}

/** Adds the next piece. */
export function reach(reached: Reached, { end, parts, bytes }: Written, blockSize?: number): void {
  const { blocks } = reached
  for (const part of parts) {
    reached.last = part.end
    reached.dataBytes += part.end - part.start
    if (blockSize === undefined) continue
    const last = Math.floor((part.end - 1) / blockSize)
    for (let block = Math.floor(part.start / blockSize); block <= last; block++) {
      blocks[block >> 3] = (blocks[block >> 3] as number) | (1 << (block & 7))
    }
  }
  reached.end = end
  reached.done += bytes
}

/** Gives blocks the places that they have, and says how many bytes of the file are written. */
export function restore(writer: Writer, { last, blocks }: Reached): number {
  const { place, blockSize } = writer
  const byte = Buffer.alloc(1)
  if (blockSize !== undefined) {
    for (const { start, end } of setBits(blocks, blocks.length * 8, 'low first')) {
      for (let block = start; block < end; block++) place(block * blockSize, byte)
    }
  }
  return lengthOf(writer, last)
}

/** Bytes of the file up to the disk's byte `last`, whose block has its place. */
export function lengthOf({ place }: Writer, last: number): number {
  if (last === 0) return 0
  return (place(last - 1, Buffer.alloc(1)).at(-1)?.position ?? 0) + 1
}

/** What of a disk is compared before a run goes on: its last window, and as many more, evenly spread. */
const SAMPLES = 16

/** Whether what is written is this disk, as far as some of its windows tell. `writer` knows its blocks. */
export async function isWritten(
  image: Image,
  writer: Writer,
  file: FileHandle,
  { last, blocks }: Reached,
): Promise<boolean> {
  const { place, blockSize } = writer
  const slot = { data: share(WINDOW) }
  const there = share(WINDOW)
  const isPlaced = (block: number) => ((blocks[block >> 3] ?? 0) & (1 << (block & 7))) !== 0
  for (let sample = 1; sample <= SAMPLES; sample++) {
    const from = Math.floor((last - 1) * sample / SAMPLES / WINDOW) * WINDOW
    const { value: piece } = await pieces(image, Math.max(0, from)).next()
    // what lies between may all be zeros
    if (!piece || piece.offset >= last) continue
    await load(piece, slot)
    // the rest of the last window can only be zeros
    const data = slot.data.subarray(0, piece.length)
    there.fill(0)
    let done = 0
    for (const { data: part } of spread(piece.offset, data, blockSize ?? WINDOW, () => 0)) {
      const offset = piece.offset + done
      const placed = blockSize === undefined || isPlaced(Math.floor(offset / blockSize))
      const length = Math.min(part.length, last - offset)
      if (placed && length > 0) {
        const position = place(offset, part.subarray(0, 1)).at(-1)?.position ?? 0
        await file.read(there, done, length, position)
      }
      done += part.length
    }
    if (data.compare(there, 0, data.length) !== 0) return false
  }
  return true
}

export class Checkpoint {
  readonly #path: string
  readonly #identity: string

  /** `parts` are all on which depends what is written, and where. */
  constructor(path: string, parts: unknown[]) {
    this.#path = path
    this.#identity = createHash('sha256').update(JSON.stringify([VERSION, ...parts])).digest('hex')
  }

  /** Keeps how far the work is; what that says must be synced. */
  async save(reached: Reached, length: number): Promise<void> {
    const { last, blocks, ...rest } = reached
    const bits = blocks.subarray(0, blocks.findLastIndex((byte) => byte !== 0) + 1)
    const said = {
      identity: this.#identity,
      ...rest,
      last,
      blocks: bits.toString('base64'),
      length,
    }
    const aside = `${this.#path}.new`
    await rm(aside, { force: true })
    const file = await open(aside, 'wx') // no link that leads elsewhere
    try {
      await file.writeFile(JSON.stringify({ said, sum: sumOf(said) }))
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(aside, this.#path)
  }

  /** How far the work is; undefined when nothing that can be relied upon says so. */
  async read(
    virtualSize: number,
    blockSize: number | undefined,
  ): Promise<{ reached: Reached; length: number } | undefined> {
    const found = await lstat(this.#path).catch(() => undefined)
    if (!found?.isFile() || found.size > MOST) return undefined
    const file = parse(await readFile(this.#path, 'utf8').catch(() => ''))
    if (!isObject(file) || !isObject(file['said'])) return undefined
    const { said, sum } = file
    if (sum !== sumOf(said) || said['identity'] !== this.#identity) return undefined
    const { end, last, done, dataBytes, length, blocks: text } = said
    const whole = [end, last, done, dataBytes, length].every((value) =>
      Number.isSafeInteger(value) && (value as number) >= 0
    )
    if (!whole || typeof text !== 'string') return undefined
    const reached = reachNothing(virtualSize, blockSize)
    const bits = Buffer.from(text, 'base64')
    if (bits.length > reached.blocks.length) return undefined
    bits.copy(reached.blocks)
    Object.assign(reached, { end, last, done, dataBytes })
    return isPossible(reached, virtualSize, blockSize)
      ? { reached, length: length as number }
      : undefined
  }

  async remove(): Promise<void> {
    await rm(this.#path, { force: true })
    await rm(`${this.#path}.new`, { force: true })
  }
}

function isPossible({ end, last, blocks }: Reached, virtualSize: number, blockSize?: number) {
  if (end % WINDOW || end >= virtualSize + WINDOW || last > Math.min(end, virtualSize)) return false
  if (blockSize === undefined) return true
  const byte = blocks.findLastIndex((byte) => byte !== 0)
  const count = byte < 0 ? 0 : byte * 8 + 32 - Math.clz32(blocks[byte] as number)
  return count === Math.ceil(last / blockSize)
}

const sumOf = (said: unknown): string =>
  createHash('sha256').update(JSON.stringify(said)).digest('hex')

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
