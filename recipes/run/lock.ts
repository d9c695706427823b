/**
 * Who is at work on a VM or a host: two runs at once would each see what the other is about to change.
 * A lock is a file in the state folder, so runs with other folders (`--state`) know nothing of it.
 */
import fs from 'fs-extra'
import { createHash, randomUUID } from 'node:crypto'
import { hostname, uptime } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { setTimeout as delay } from 'node:timers/promises'
import { stateRefused } from './journal.ts'
import type { Plan } from './plan.ts'

/** What a run holds, in words that end the sentence "Cannot work on ...". */
export interface Lock {
  /** Equal for what two runs may not hold at once. */
  key: string
  what: string
}

interface Owner {
  token: string
  pid: number
  computer: string
  /** What it holds, and what it does, for whom it keeps waiting. */
  what: string
  doing: string
  /** ISO 8601, UTC. */
  since: string
}

/** How often an owner says that it lives, and after how long without that it is taken for dead; milliseconds. */
const BEAT = 10_000
const SILENCE = 120_000

/**
 * Takes all of the locks, or none: rejects, naming who has one. Gives what releases them. A lock whose
 * process is gone, or which is older than this start of the computer, is nobody's.
 */
export async function lock(
  state: string,
  locks: readonly Lock[],
  doing: string,
): Promise<() => Promise<void>> {
  const folder = join(state, 'locks')
  const held: string[] = []
  const token = randomUUID()
  const release = async () => {
    clearInterval(beat)
    for (const file of held) {
      // somebody may have taken this process for dead
      if ((await readOwner(file))?.token === token) await fs.remove(file)
    }
    // a run that was refused leaves no trace
    await fs.rmdir(folder).then(() => fs.rmdir(state)).catch((error: NodeJS.ErrnoException) => {
      const kept = ['ENOTEMPTY', 'EEXIST', 'ENOENT', 'EPERM', 'EACCES', 'EBUSY', 'ENOTDIR', 'EROFS']
      if (!kept.includes(error.code ?? '')) throw error
    })
  }
  const beat = setInterval(() => {
    // a folder that is gone is noticed by what is written to it
    for (const file of held) say(file, token).catch(() => undefined)
  }, BEAT)
  beat.unref()
  try {
    for (const { key, what } of locks) {
      const name = createHash('sha256').update(key).digest('hex').slice(0, 16)
      const file = join(folder, `${name}.json`)
      const since = new Date().toISOString()
      await take(file, { token, pid: process.pid, computer: hostname(), what, doing, since })
      held.push(file)
    }
  } catch (error) {
    await release()
    throw stateRefused(state, error) ?? error
  }
  return release
}

/** What a run of a plan, or its undo, has for itself. */
export function locksOf({ source, target }: Plan): Lock[] {
  // the disks of an OVA are all in one file
  const files = new Set(source.disks.map(({ path }) => resolve(path)))
  const disks = [...files].map((file) => ({
    key: `source ${file}`,
    what: `the VM "${source.name}"`,
  }))
  if (target.kind === 'local') return [...disks, { key: 'host', what: 'this machine’s Hyper-V' }]
  if (target.kind === 'ssh') {
    return [...disks, { key: `host ${target.url}`, what: `Hyper-V on ${target.url}` }]
  }
  return [...disks, { key: `bundle ${resolve(target.dir)}`, what: `the bundle "${target.dir}"` }]
}

/** Says that the owner lives, where it still is that. */
async function say(file: string, token: string): Promise<void> {
  const now = new Date()
  if ((await readOwner(file))?.token === token) await fs.utimes(file, now, now)
}

async function take(file: string, owner: Owner): Promise<void> {
  for (let tries = 0;; tries++) {
    try {
      // another may remove the folder while it is empty
      await fs.ensureDir(dirname(file))
      await fs.writeFile(file, JSON.stringify(owner), { flag: 'wx', mode: 0o600 })
      // somebody may have taken it for what a dead process left, before it was written
      if ((await readOwner(file))?.token === owner.token) return
      continue
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException
      if (code === 'ENOENT' && tries < 20) continue
      // Windows says EPERM where one is being removed
      if (!['EEXIST', 'EPERM'].includes(code) || code === 'EPERM' && tries > 20) throw error
    }
    const other = await readOwner(file)
    if (other !== undefined && await lives(file, other)) {
      const where = other.computer === hostname() ? '' : ` on ${other.computer}`
      throw new Error(
        `Cannot work on ${owner.what}: ${other.doing} has it (process ${other.pid}${where}, since ` +
          `${other.since}). Wait until that has ended, and run again`,
      )
    }
    // one that is being written
    if (other === undefined && await isYoung(file)) {
      await delay(100)
      continue
    }
    if (tries > 1000) {
      throw new Error(`Cannot work on ${owner.what}: "${file}" cannot be taken. Remove it`)
    }
    await removeStale(file, other)
  }
}

/** Of those that see a stale lock one may remove it, and only while it still is the one that was seen. */
async function removeStale(file: string, seen: Owner | undefined): Promise<void> {
  const turn = `${file}.turn`
  try {
    await fs.mkdir(turn)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    // it takes a moment, unless whoever has it was killed in that moment
    const stat = await fs.stat(turn).catch(() => undefined)
    if (stat && Date.now() - stat.mtimeMs > 10_000) await fs.rmdir(turn).catch(() => undefined)
    await delay(20)
    return
  }
  try {
    if ((await readOwner(file))?.token === seen?.token) await fs.remove(file)
  } finally {
    await fs.rmdir(turn)
  }
}

/** Undefined where there is none, or what is there is no lock of ours. */
async function readOwner(file: string): Promise<Owner | undefined> {
  try {
    const owner = JSON.parse(await fs.readFile(file, 'utf8')) as Owner
    return typeof owner.pid === 'number' && typeof owner.token === 'string' ? owner : undefined
  } catch {
    return undefined
  }
}

async function isYoung(file: string): Promise<boolean> {
  const stat = await fs.stat(file).catch(() => undefined)
  return stat !== undefined && Date.now() - stat.mtimeMs < 2000
}

async function lives(file: string, { pid, computer, since }: Owner): Promise<boolean> {
  const stat = await fs.stat(file).catch(() => undefined)
  if (stat === undefined) return false
  const silent = Date.now() - stat.mtimeMs > SILENCE
  // of another computer's process nothing else is known
  if (computer !== hostname()) return !silent
  const started = Date.now() - uptime() * 1000
  // numbers of processes are given again, after a start of the computer at the latest
  if (Date.parse(since) < started - 60_000) return false
  try {
    process.kill(pid, 0)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false
  }
  if (!silent) return true
  // a computer that wakes from its sleep has old files until the next beat
  await delay(1.5 * BEAT)
  const later = await fs.stat(file).catch(() => undefined)
  return later !== undefined && later.mtimeMs > stat.mtimeMs
}
