/**
 * A process that converts a disk and is killed on the way, for the tests:
 *
 *     node interrupted.ts OPTIONS DONE
 *
 * `OPTIONS` are those of convertDisk as JSON. It is killed, as a power failure would, when a checkpoint
 * says that `DONE` bytes are done. Checkpoints come after each flush, and flushes after each write; here
 * reading waits for them, as it would for a slow volume.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import process from 'node:process'
import { setTimeout } from 'node:timers/promises'
import { convertDisk } from '../../../tasks/convert-disk.ts'

const [options = '', most = ''] = process.argv.slice(2)
const given = JSON.parse(options) as { from: string; to: string }
let done = 0

/** Bytes that the newest checkpoint says to be done. */
function kept(): number {
  const [folder, file] = [dirname(given.to), basename(given.to)]
  const name = readdirSync(folder).find((name) =>
    name.startsWith(`${file}.`) && name.endsWith('.checkpoint')
  )
  if (name === undefined) return 0
  const { said } = JSON.parse(readFileSync(join(folder, name), 'utf8')) as {
    said: { done: number }
  }
  return said.done
}

function look(): number {
  const there = kept()
  if (there >= Number(most)) process.kill(process.pid, 'SIGKILL')
  return there
}

const file = await open(import.meta.filename as string)
const prototype = Object.getPrototypeOf(file) as FileHandle
await file.close()
const read = prototype.read
let turn: Promise<unknown> = Promise.resolve()
prototype.read = function (this: FileHandle, ...args: unknown[]) {
  const mine = turn.then(async () => {
    for (let tries = 0; tries < 10 && look() < done; tries++) await setTimeout(2)
    return await Reflect.apply(read, this, args)
  })
  turn = mine.catch(() => {})
  return mine
} as FileHandle['read']

await convertDisk(
  {
    ...given,
    onProgress: (progress) => {
      if (progress.phase === 'read') done = progress.done
      look()
    },
  },
  undefined,
  { bytes: 1, seconds: 0 },
)
