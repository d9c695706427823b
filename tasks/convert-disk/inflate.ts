/**
 * Inflates grains, on all cores. In threads of its own, because zlib's asynchronous calls cost 1.4
 * times the time on grains of 64 KB (measured on Node 24), and only they can use zlib's buffers again.
 */
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { inflateSync } from 'node:zlib'

/** Memory changes hands with a job, so that nothing is copied. */
export interface Job {
  stored: ArrayBuffer
  data: ArrayBuffer
  /** Four numbers a grain: where it is stored, bytes there, where it goes, bytes of it. */
  grains: number[]
  /** What a grain has inflated; the disk's last may be longer than what is left of the disk. */
  grainSize: number
}

export interface Inflater {
  /** The first grain that is damaged, or -1, and the job's memory back. */
  run: (job: Job) => Promise<{ stored: ArrayBuffer; data: ArrayBuffer; failed: number }>
  close: () => Promise<void>
}

/** Inflates a job's grains, here and now. Gives the first that is damaged, or -1. */
export function inflateGrains({ stored, data, grains, grainSize }: Job): number {
  for (let grain = 0; grain * 4 < grains.length; grain++) {
    const [at = 0, size = 0, to = 0, length = 0] = grains.slice(grain * 4, grain * 4 + 4)
    try {
      const inflated = inflateSync(new Uint8Array(stored, at, size), {
        maxOutputLength: grainSize,
        chunkSize: grainSize + 64, // one chunk, and room in it to see the end
      })
      if (inflated.length < length) return grain
      new Uint8Array(data).set(inflated.subarray(0, length), to)
      // frees it at once; the collector lets what it has to free grow to 90 MB a thread
      const memory = inflated.buffer as ArrayBuffer
      memory.transfer(0)
    } catch {
      return grain
    }
  }
  return -1
}

/** A thread's program. As text, because a file would load the TypeScript stripper in each: 14 MB. */
const THREAD = `
const { parentPort } = require('node:worker_threads')
const { inflateSync } = require('node:zlib')
${inflateGrains}
parentPort.on('message', ({ id, ...job }) => {
  const { stored, data } = job
  const failed = inflateGrains(job)
  parentPort.postMessage({ id, stored, data, failed }, [stored, data])
})
`

/** Jobs that are quicker done at once than by starting threads. */
const FEW = 8

export function openInflater(): Inflater {
  const workers: Worker[] = []
  const waiting = new Map<number, {
    resolve: (answer: Awaited<ReturnType<Inflater['run']>>) => void
    reject: (error: Error) => void
  }>()
  let jobs = 0
  const fail = (error: Error) => {
    for (const { reject } of waiting.values()) reject(error)
    waiting.clear()
  }
  const start = () => {
    for (let count = Math.min(availableParallelism(), 16); count > 0; count--) {
      const worker = new Worker(THREAD, { eval: true })
      worker.on('message', ({ id, ...answer }) => {
        waiting.get(id)?.resolve(answer)
        waiting.delete(id)
      })
      worker.on('error', fail)
      worker.on('exit', () => fail(new Error('Cannot inflate: a thread ended early')))
      workers.push(worker)
    }
  }
  return {
    run: (job) => {
      const id = jobs++
      if (id < FEW) {
        const { stored, data } = job
        return Promise.resolve({ stored, data, failed: inflateGrains(job) })
      }
      if (workers.length === 0) start()
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject })
        workers[id % workers.length]?.postMessage({ id, ...job }, [job.stored, job.data])
      })
    },
    close: async () => {
      await Promise.all(workers.splice(0).map((worker) => worker.terminate()))
    },
  }
}
