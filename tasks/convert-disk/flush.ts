/** Flushes while the copying goes on, so that the last flush, on which all wait, is short. */
import type { FileHandle } from 'node:fs/promises'
import { MB } from './image.ts'

/** How often a file is flushed, and how far it is kept. */
export interface Pace {
  /** Bytes that are written between two flushes. @default 128 MB */
  bytes?: number
  /** Seconds between two checkpoints. @default 5 */
  seconds?: number
}

/**
 * `keep` is called before a flush, and what it gives after it, with what was kept then: only that is
 * known to be on the volume.
 */
export function flusher(
  file: Pick<FileHandle, 'datasync' | 'sync'>,
  { bytes: most = 128 * MB, seconds = 5 }: Pace = {},
  keep?: () => () => Promise<void>,
) {
  let since = 0
  let kept = performance.now()
  let flush: Promise<void> | undefined
  let failed: { error: unknown } | undefined
  const run = async (save: (() => Promise<void>) | undefined) => {
    try {
      await file.datasync()
    } catch (error) {
      // a volume may say so only once
      failed ??= { error }
    }
    // what one flush could not write is lost, and a later one does not say so
    if (!failed) await save?.()
  }
  return {
    /** Hears what was written, or with 0 that the work has come further. */
    written: (bytes: number) => {
      since += bytes
      if (flush) return
      const due = keep !== undefined && performance.now() - kept >= seconds * 1000
      if (since < most && !due) return
      since = 0
      if (due) kept = performance.now()
      flush = run(due ? keep() : undefined).then(() => flush = undefined)
    },
    /** Rejects when any flush failed. */
    end: async () => {
      await flush
      await file.sync()
      if (failed) throw failed.error
    },
  }
}
