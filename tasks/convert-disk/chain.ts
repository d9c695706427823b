/** Differencing images: finding the parents, and reading child and parents as one disk. */
import { openImage } from './formats.ts'
import {
  type Bytes,
  type Image,
  ImageError,
  type ParentLink,
  printable,
  type Run,
  ZEROS,
} from './image.ts'
import type { OpenSibling } from './vmdk.ts'

/** Where the parent of an image may be found. */
export interface Place {
  /** The image's own name, by which a circle of parents is seen. */
  name: string
  /** Files that may be the parent, the likely ones first, without those that are known to be none. */
  candidates: (link: ParentLink, isNone: (name: string) => boolean) => AsyncGenerator<Candidate>
}

export interface Candidate {
  bytes: Bytes
  sibling: OpenSibling
  /** It is the one: its files stay open. Gives where its own parent may be found. */
  take: () => Promise<Place>
  close: () => Promise<void>
}

/** More generations than any row of snapshots has. */
const MOST_PARENTS = 256

/** What was opened on the way: a long row of parents in one folder would open each again for each. */
type Seen = Map<string, Known | undefined>
type Known = Pick<Image, 'identifier'> & { states: string[] }

/** The whole disk of an image: a differencing image is put on its parents, another is as it is. */
export async function withParents(
  image: Image,
  bytes: Bytes,
  place: Place,
  children: string[] = [],
  seen: Seen = new Map(),
): Promise<Image> {
  const { parent: link } = image
  if (!link) return image
  const refuse = (reason: string) => new ImageError(bytes, link.at, reason)
  if (children.length >= MOST_PARENTS) throw refuse(`it has more than ${MOST_PARENTS} parents`)
  if (children.includes(place.name)) throw refuse('its parents lead back to itself')
  let changed: Bytes | undefined
  const verdictOf = (image: Known | undefined) => image ? isParent(link, image) : 'no'
  const isNone = (name: string) => seen.has(name) && verdictOf(seen.get(name)) === 'no'
  for await (const { bytes: file, sibling, take, close } of place.candidates(link, isNone)) {
    // what else lies there may be of any kind
    const candidate = await openImage(file, sibling).catch(() => undefined)
    const { identifier, states = [] } = candidate ?? {}
    seen.set(file.name, candidate && { identifier, states })
    const verdict = verdictOf(seen.get(file.name))
    if (candidate && verdict === 'yes') {
      const next = await take()
      try {
        const parent = await withParents(candidate, file, next, [...children, place.name], seen)
        return overlay(image, parent, bytes.name, file.name)
      } catch (error) {
        await candidate.close?.()
        throw error
      }
    }
    if (verdict === 'changed') changed = file
    await candidate?.close?.()
    await close()
  }
  if (changed) {
    throw refuse(
      `its parent "${printable(changed.name)}" was written to since, so that the two do not fit. ` +
        'Bring the parent back from a copy of the time of the snapshot',
    )
  }
  throw refuse(
    'it is a differencing image, which holds only what changed since its parent, and its parent ' +
      `${
        printable(link.paths[0] ?? link.identifier ?? link.states[0] ?? '')
      } is neither beside it, ` +
      "nor in the folder above, nor where its VM's settings say. Copy the parent there",
  )
}

/**
 * Whether an image is the parent that is meant. `changed` is the parent, but was written to since, so
 * that what the child changes no longer fits.
 */
function isParent(
  link: ParentLink,
  image: Known,
): 'yes' | 'changed' | 'no' {
  const { identifier, states } = link
  const known = image.states
  const same = states.some((state) => known.includes(state))
  if (identifier === undefined) return same ? 'yes' : 'no'
  // VirtualBox stores a VHD's identifier in another byte order than it shows it in
  const is = image.identifier === identifier || image.identifier === swapped(identifier)
  if (!is) return 'no'
  return same || states.length === 0 || known.length === 0 ? 'yes' : 'changed'
}

/** The first three parts of a GUID with their bytes in the other order. */
function swapped(identifier: string): string {
  const reverse = (hex: string) => hex.match(/../g)?.reverse().join('') ?? ''
  const [a = '', b = '', c = '', ...rest] = identifier.split('-')
  return [reverse(a), reverse(b), reverse(c), ...rest].join('-')
}

/** The disk that a child and its parent are together. */
function overlay(child: Image, parent: Image, childName: string, parentName: string): Image {
  const { parent: _, ...own } = child
  return {
    ...own,
    chain: [...parent.chain ?? [parentName], childName],
    warnings: [...parent.warnings ?? [], ...child.warnings ?? []],
    async *runs(from = 0): AsyncGenerator<Run> {
      const below = new Parts(parent.runs(from))
      try {
        let at = from
        for await (const run of child.runs(from)) {
          yield* below.between(at, run.offset)
          if (run.bytes !== ZEROS) yield run
          at = run.offset + run.length
        }
        yield* below.between(at, child.virtualSize)
      } finally {
        await below.close()
      }
    },
    close: async () => {
      await child.close?.()
      await parent.close?.()
    },
  }
}

/** The runs of a parent, cut to the places where its child has nothing. */
class Parts {
  readonly #runs: AsyncIterator<Run>
  #next: Run | undefined
  #done = false

  constructor(runs: AsyncIterable<Run>) {
    this.#runs = runs[Symbol.asyncIterator]()
  }

  async *between(start: number, end: number): AsyncGenerator<Run> {
    while (start < end) {
      const run = await this.#from(start)
      if (!run || run.offset >= end) return
      const from = Math.max(start, run.offset)
      const to = Math.min(end, run.offset + run.length)
      const part = { ...run, offset: from, length: to - from, at: run.at + from - run.offset }
      const cut = part.length !== run.length
      yield cut && run.load ? { ...part, whole: run.whole ?? run } : part
      start = to
    }
  }

  /** The first run that ends behind `start`. */
  async #from(start: number): Promise<Run | undefined> {
    while (!this.#done && (!this.#next || this.#next.offset + this.#next.length <= start)) {
      const { done, value } = await this.#runs.next()
      this.#done = done === true
      this.#next = done ? undefined : value
    }
    return this.#next
  }

  async close(): Promise<void> {
    await this.#runs.return?.()
  }
}
