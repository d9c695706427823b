import { ok } from 'node:assert/strict'

/**
 * That work ends, where careless code would seem to hang. The limit is far above what a busy machine takes, and far
 * below what work takes that grows with the square of its input: how fast the kit is, test/bench/ measures.
 */
export async function ends<T>(work: () => Promise<T>): Promise<T> {
  const start = performance.now()
  const result = await work()
  const seconds = (performance.now() - start) / 1000
  ok(seconds < 60, `took ${Math.round(seconds)} s`)
  return result
}
