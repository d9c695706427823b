#!/usr/bin/env zx
/**
 * Tunnels that stay open behind the recipe that asked for them. A process of its own keeps them, as long as
 * a file in the state folder is there, whose time it renews: so they end with the file, wherever that is
 * removed, and no process is ever ended by a number that may be another's by now. Assumed about Windows: what
 * a scheduled task started, and did not wait for, lives on when that task has come to its end.
 */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'

export interface TunnelsOptions {
  /** A file of tunnels, as `tasks/open-tunnel.ts --config` takes it. */
  config: string
  /** The folder for what is kept. */
  state: string
  /** Seconds until all are open. @default 60 */
  timeout?: number | undefined
  dryRun?: boolean | undefined
}

export interface TunnelsResult {
  changed: boolean
  /** Where each listens; empty when they are down. */
  tunnels: { name: string; host: string; port: number }[]
  /** What happened, a JSON object a line. */
  log: string
}

/** Seconds after which nobody renews the file any more. */
const STALE = 15

const files = (state: string) => ({
  file: join(state, 'tunnels.json'),
  log: join(state, 'tunnels.log'),
})

/** Opens the tunnels, and returns when all are open. Rejects when one cannot be, and leaves none then. */
export async function tunnelsUp(
  { config, state, timeout = 60, dryRun = false }: TunnelsOptions,
): Promise<TunnelsResult> {
  const { file, log } = files(state)
  const wanted: Kept = {
    config: resolve(config),
    text: await fs.readFile(config, 'utf8'),
    id: randomUUID(),
  }
  const there = await kept(file)
  if (there && there.config === wanted.config && there.text === wanted.text) {
    return { changed: false, tunnels: await open(log), log }
  }
  if (dryRun) return { changed: true, tunnels: [], log }
  if (there) await tunnelsDown({ state })
  await fs.ensureDir(state)
  await fs.writeFile(log, '', { mode: 0o600 })
  await fs.writeFile(file, JSON.stringify(wanted), { mode: 0o600 })
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const args = [...runtime, import.meta.filename as string, file, log]
  spawn(process.execPath, args, { detached: true, stdio: 'ignore', windowsHide: true }).unref()
  const end = performance.now() + timeout * 1000
  while (true) {
    const events = await told(log)
    const ended = events.find(({ event }) => event === 'ended')
    const ready = events.some(({ event }) => event === 'ready')
    if (ready) return { changed: true, tunnels: await open(log), log }
    if (ended || performance.now() > end) {
      await tunnelsDown({ state })
      const why = ended?.detail ?? `they are not open after ${timeout} s`
      throw new Error(
        `Cannot keep the tunnels of "${config}" open: ${why}. What happened is in "${log}"`,
      )
    }
    await wait(100)
  }
}

/** Closes them. */
export async function tunnelsDown(
  { state, dryRun = false }: Pick<TunnelsOptions, 'state' | 'dryRun'>,
): Promise<TunnelsResult> {
  const { file, log } = files(state)
  const changed = await kept(file) !== undefined
  if (dryRun) return { changed, tunnels: [], log }
  await fs.remove(file) // one that nobody renews, too
  if (!changed) return { changed, tunnels: [], log }
  for (let n = 0; n < 300; n++) {
    if ((await told(log)).some(({ event }) => event === 'ended')) break
    await wait(100)
  }
  return { changed, tunnels: [], log }
}

/** What is open now. */
export async function tunnelsNow(state: string): Promise<TunnelsResult> {
  const { file, log } = files(state)
  return { changed: false, tunnels: await kept(file) ? await open(log) : [], log }
}

interface Kept {
  config: string
  text: string
  /** Whose file it is: a process that was away for long, as the machine slept, may find another's. */
  id: string
}

/** What a process keeps; undefined where none does. */
async function kept(file: string): Promise<Kept | undefined> {
  const found = await fs.stat(file).catch(() => undefined)
  if (!found || Date.now() - found.mtimeMs > STALE * 1000) return undefined
  return await fs.readJson(file).catch(() => undefined)
}

interface Told {
  event: string
  tunnel?: string
  host?: string
  port?: number
  detail?: string
}

async function told(log: string): Promise<Told[]> {
  const text = await fs.readFile(log, 'utf8').catch(() => '')
  return text.split('\n').flatMap((line) => {
    try {
      return [JSON.parse(line) as Told]
    } catch {
      return [] // nothing, or what is being written
    }
  })
}

async function open(log: string): Promise<TunnelsResult['tunnels']> {
  const all = new Map<string, TunnelsResult['tunnels'][number]>()
  for (const { event, tunnel: name, host, port } of await told(log)) {
    if (event !== 'open' || name === undefined || host === undefined || port === undefined) continue
    all.set(name, { name, host, port })
  }
  return [...all.values()]
}

/** The process that keeps them. */
async function keep(file: string, log: string): Promise<void> {
  const { config, text, id } = await fs.readJson(file) as Kept
  const whose = async () => {
    const found = await fs.readFile(file, 'utf8').catch(() => undefined)
    // half written, it is asked again
    return found === undefined ? 'gone' : found === '' || found.includes(id) ? 'own' : 'other'
  }
  const count =
    (JSON.parse(text.replace(/^\ufeff/, '')).tunnels as unknown[] | undefined)?.length ?? 0
  const add = (event: Told) => fs.appendFile(log, `${JSON.stringify(event)}\n`)
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const task = join(dirname(import.meta.filename as string), '..', '..', 'tasks', 'open-tunnel.ts')
  // by the channel between them it hears when this process is no more
  const child = spawn(process.execPath, [...runtime, task, '--config', config, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    windowsHide: true,
  })
  const names = new Set<string>()
  let words = ''
  child.stderr?.setEncoding('utf8').on(
    'data',
    (part: string) => words = (words + part).slice(-4096),
  )
  createInterface({ input: child.stdout as Readable }).on('line', async (line) => {
    if (await whose() === 'other') return // and so is the log
    await fs.appendFile(log, `${line}\n`)
    const { event, tunnel } = JSON.parse(line) as Told
    if (event !== 'open' || tunnel === undefined || names.has(tunnel)) return
    names.add(tunnel)
    if (names.size === count) await add({ event: 'ready' })
  })
  let ended = false
  child.on('error', (error) => {
    words = error.message
    ended = true
  })
  child.on('close', () => ended = true)
  let renewed = 0
  let told = Infinity
  while (!ended) {
    if (await whose() !== 'own') {
      // told twice it would leave at once, and leave behind what it is opening
      if (told === Infinity) child.kill()
      told = Math.min(told, performance.now())
      if (performance.now() - told > 10_000) child.kill('SIGKILL')
    } else if (performance.now() - renewed > 2000) {
      renewed = performance.now()
      const now = new Date()
      await fs.utimes(file, now, now).catch(() => undefined) // removed meanwhile
    }
    await wait(200)
  }
  const detail = words.trim().split(/\r?\n/).at(-1)
  const last = await whose()
  if (last === 'other') return
  await add({ event: 'ended', ...(detail && { detail }) })
  if (last === 'own') await fs.remove(file)
}

const [file, log] = process.argv.slice(2)
if (import.meta.main && file !== undefined && log !== undefined) await keep(file, log)
