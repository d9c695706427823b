/**
 * A process that converts a disk and is killed on the way, for the tests:
 *
 *     node interrupted.ts OPTIONS DONE
 *
 * `OPTIONS` are those of convertDisk as JSON. It is killed, as a power failure would, at the first
 * checkpoint after `DONE` bytes. Checkpoints come after each flush, and flushes after each write.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import process from 'node:process'
import { convertDisk } from '../../../tasks/convert-disk.ts'

const [options = '', done = ''] = process.argv.slice(2)
const given = JSON.parse(options) as { from: string; to: string }

/** Bytes that the newest checkpoint says to be done. */
function kept(): number {
  const folder = dirname(given.to)
  const name = readdirSync(folder).find((name) => name.endsWith('.checkpoint'))
  if (name === undefined) return 0
  return (JSON.parse(readFileSync(join(folder, name), 'utf8')) as { said: { done: number } }).said
    .done
}

const watch = setInterval(stop, 1)
function stop(): void {
  if (kept() > Number(done)) process.kill(process.pid, 'SIGKILL')
}
await convertDisk({ ...given, onProgress: stop }, undefined, { bytes: 1, seconds: 0 })
clearInterval(watch)
