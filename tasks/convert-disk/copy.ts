/** The one loop that copies, whatever the two formats are. */
import {
  type Image,
  load,
  nonZero,
  type Piece,
  pieces,
  share,
  type Slot,
  WINDOW,
  type Write,
  type Writer,
} from './image.ts'

/** How many pieces are read, inflated and written at once: enough for disk and cores, and 16 MB. */
const AT_ONCE = 8

export interface Work {
  /** Hears the bytes that are done, each time some are. */
  onBytes?: ((bytes: number) => void) | undefined
  /** Hears of each piece, in the disk's order, when it and all before it are written. */
  onWritten?: ((written: Written) => void) | undefined
  /** Byte of the disk where it begins, a multiple of {@link WINDOW}. @default 0 */
  from?: number | undefined
  signal: AbortSignal
}

export interface Written {
  /** Byte of the disk behind the piece, a multiple of {@link WINDOW}. */
  end: number
  /** Its bytes that are not zeros, as bytes of the disk. */
  parts: { start: number; end: number }[]
  /** What {@link Work.onBytes} hears of it. */
  bytes: number
}

/**
 * Copies what is not zeros. Pieces are in work side by side, but get their places in the disk's order.
 * Gives the bytes that were written.
 */
export async function copy(
  image: Image,
  { place }: Pick<Writer, 'place'>,
  put: (write: Write) => Promise<unknown>,
  work: Work,
): Promise<number> {
  let written = 0
  const inWork: { written: Written; done: boolean }[] = []
  await eachPiece(pieces(image, work.from), work, async (piece, slot, inOrder) => {
    await load(piece, slot)
    const data = slot.data.subarray(0, piece.length)
    const { offset } = piece
    const parts = [...nonZero(data)]
      .map(({ start, end }) => ({ start: offset + start, end: offset + end }))
    const bytes = piece.runs.reduce((sum, { length }) => sum + length, 0)
    const own = { written: { end: offset + WINDOW, parts, bytes }, done: false }
    const writes = await inOrder(() => {
      inWork.push(own)
      return parts.flatMap(({ start, end }) =>
        place(start, data.subarray(start - offset, end - offset))
      )
    })
    await Promise.all(writes.map(put))
    for (const { start, end } of parts) written += end - start
    own.done = true
    for (; inWork[0]?.done; inWork.shift()) work.onWritten?.(inWork[0].written)
    return bytes
  })
  return written
}

/** The first piece of two disks in which they differ, by its offset; undefined when they are equal. */
export async function compare(a: Image, b: Image, work: Work): Promise<number | undefined> {
  let differs: number | undefined
  const slots = new Map<Slot, Slot>()
  await eachPiece(pairs(a, b), work, async ({ offset, length, a: first, b: second }, slot) => {
    let other = slots.get(slot)
    if (!other) slots.set(slot, other = { data: share(WINDOW) })
    const nothing = { offset, length, runs: [] }
    await Promise.all([load(first ?? nothing, slot), load(second ?? nothing, other)])
    const equal = slot.data.compare(other.data, 0, length, 0, length) === 0
    if (!equal) differs = Math.min(offset, differs ?? Infinity)
    return second?.runs.reduce((sum, { length }) => sum + length, 0) ?? 0
  })
  return differs
}

interface Pair {
  offset: number
  length: number
  a: Piece | undefined
  b: Piece | undefined
}

/** The pieces of two images side by side. */
async function* pairs(a: Image, b: Image): AsyncGenerator<Pair> {
  const [left, right] = [pieces(a), pieces(b)]
  let [first, second] = [await left.next(), await right.next()]
  while (!first.done || !second.done) {
    const offset = Math.min(
      first.done ? Infinity : first.value.offset,
      second.done ? Infinity : second.value.offset,
    )
    const ofA = !first.done && first.value.offset === offset ? first.value : undefined
    const ofB = !second.done && second.value.offset === offset ? second.value : undefined
    const length = Math.max(ofA?.length ?? 0, ofB?.length ?? 0)
    yield { offset, length, a: ofA, b: ofB }
    if (ofA) first = await left.next()
    if (ofB) second = await right.next()
  }
}

type InOrder = <R>(act: () => R) => Promise<R>

/** Works on several at once, each with a slot of its own. `inOrder` is the one thing done in a row. */
async function eachPiece<T>(
  all: AsyncGenerator<T>,
  { onBytes, signal }: Work,
  act: (piece: T, slot: Slot, inOrder: InOrder) => Promise<number>,
): Promise<void> {
  let failed: { error: unknown } | undefined
  let turn: Promise<unknown> = Promise.resolve()
  const worker = async () => {
    const slot: Slot = { data: share(WINDOW) }
    while (!failed) {
      signal.throwIfAborted()
      const next = all.next()
      const before = turn
      const { promise, resolve } = Promise.withResolvers<void>()
      turn = promise
      try {
        const { done, value } = await next
        if (done) return
        const bytes = await act(value, slot, async (act) => {
          await before
          const result = act()
          resolve()
          return result
        })
        onBytes?.(bytes)
      } finally {
        resolve()
      }
    }
  }
  await Promise.all(
    Array.from({ length: AT_ONCE }, () =>
      worker().catch((error) => {
        failed ??= { error }
      })),
  )
  await all.return(undefined)
  if (failed) throw (failed as { error: unknown }).error
}
