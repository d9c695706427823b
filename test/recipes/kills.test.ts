/**
 * A migration is killed again and again, at seeded moments, and run again until it ends: what it leaves
 * then is what it leaves when nobody disturbs it, and nothing more.
 */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions, type Outcome } from '../../recipes/migrate.ts'
import type { Host } from '../../recipes/run/host.ts'
import { readJournals } from '../../recipes/run/journal.ts'
import { describeProgress, type RunEvent } from '../../recipes/run/screen.ts'
import { undo } from '../../recipes/undo.ts'
import { convertDisk } from '../../tasks/convert-disk.ts'
import { needs } from '../needs.ts'
import { answer, type Said } from '../run-migration.ts'
import { comparable, lent, quickGuests, simulatedHost } from '../simulated-host.ts'

const execute = promisify(execFile)
const cache = join(tmpdir(), 'vbox-to-hyperv-compile-cache')
const program = join(import.meta.dirname as string, '..', 'run-migration.ts')

const kills = suite<{ dir: string }>('kills')
kills.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'kills-'))
})
kills.after.each(({ dir }) => dir ? fs.remove(dir) : undefined)

kills('of a run in the middle of a disk let the next go on from there', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const data = join(dir, 'data.img')
  const random = seeded(4)
  const bytes = Buffer.alloc(40 << 20)
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(random() * 2 ** 32, at)
  await fs.writeFile(data, bytes)
  const folder = join(dir, 'b')
  const disks = join(folder, 'disks')
  const options = { source: [vdi, data], to: `bundle:${folder}`, state: join(dir, 'state') }
  const step = 'convert-disk-2'
  const stopped = async () => {
    const stop = new AbortController()
    const screen = (event: RunEvent) => {
      if (event.event === 'progress' && event.step === step) stop.abort()
    }
    await rejects(
      migrate(options, { screen, signal: stop.signal }),
      /^Stopped: Stopped\. Run the same/,
    )
    equal((await fs.readdir(disks)).length, 3) // a disk that is done, and one with its checkpoint
  }
  await stopped()
  const child = await start(options, undefined, step)
  equal((await child.ended).outcome, undefined)
  equal((await fs.readdir(disks)).length, 3)
  const events: RunEvent[] = []
  equal(await migrate(options, { screen: (event) => events.push(event) }), 'done')
  const states = events.flatMap((event) =>
    event.event === 'step' ? [`${event.step} ${event.state}`] : []
  )
  deepEqual(states, [
    'convert-disk-1 started',
    'convert-disk-1 same',
    `${step} started`,
    `${step} done`,
  ])
  const first = events.find((event) => event.event === 'progress' && event.step === step)
  ok(first?.event === 'progress' && first.resumed! > 0 && first.done === first.resumed)
  match(describeProgress(first), /^\d\d % of 40 MB \(goes on from \d\d %\)$/)
  deepEqual((await fs.readdir(disks)).sort(), ['Demo BIOS-2.vhdx', 'Demo BIOS.vhdx'])
  const raw = join(dir, 'again.img')
  await convertDisk({ from: join(disks, 'Demo BIOS-2.vhdx'), to: raw })
  equal(await sum(raw), await sum(data))
  // what the three runs wrote is the run's, and one that is stopped can be taken back
  await undo({ state: options.state }, { screen: () => {} })
  equal(await fs.pathExists(folder), false)
  await stopped()
  await undo({ state: options.state }, { screen: () => {} })
  equal(await fs.pathExists(folder), false)
})

needs(kills, 'qemu-img')(
  'of a run that packs a bundle leave a whole one, and never a wrong one',
  async ({ dir }) => {
    const { vdi } = await demo('bios', dir)
    // time to be killed in: what compresses to nothing is converted in none
    const data = join(dir, 'data.img')
    const random = seeded(1)
    const bytes = Buffer.alloc(32 << 20)
    for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(random() * 2 ** 32, at)
    for (let n = 0; n < 4; n++) await fs.appendFile(data, bytes)
    const source = [vdi, data]
    const sums = await Promise.all(source.map(sum))
    const folder = join(dir, 'run', 'b')
    const options = { source, to: `bundle:${folder}`, state: join(dir, 'run', 'state') }
    const plan = async () => anonymous(await fs.readJson(join(folder, 'plan.json')))
    const unbroken = await start(options)
    const began = performance.now()
    equal((await unbroken.ended).outcome, 'done')
    const whole = performance.now() - began
    const list = await tree(join(dir, 'run'))
    const planned = await plan()
    await fs.remove(join(dir, 'run'))
    const told = await killed({
      kills: 70,
      random: seeded(2),
      whole,
      begin: () => start(options),
      finished: async () => {
        deepEqual(await tree(join(dir, 'run')), list)
        const lines = await fs.readFile(join(folder, 'SHA256SUMS'), 'utf8')
        for (const line of lines.trim().split('\n')) {
          const [hash, name = ''] = line.split('  ')
          equal(await sum(join(folder, name)), hash, name)
        }
        deepEqual(await plan(), planned)
        const disks = { 'Demo BIOS.vhdx': vdi, 'Demo BIOS-2.vhdx': data }
        for (const [name, from] of Object.entries(disks)) {
          const formats = ['-f', from === vdi ? 'vdi' : 'raw', '-F', 'vhdx']
          await execute('qemu-img', ['compare', ...formats, from, join(folder, 'disks', name)])
        }
        await fs.remove(join(dir, 'run'))
      },
    })
    deepEqual(await Promise.all(source.map(sum)), sums)
    console.log(`\n  a bundle: ${told}`)
  },
)

needs(kills, 'pwsh')(
  'of a run that makes a VM leave that VM once, or none when it is taken back',
  async ({ dir }) => {
    const { ova } = await demo('bios', dir)
    const host = await simulatedHost()
    try {
      await host.change(quickGuests)
      const before = await host.text()
      const options: MigrateOptions = {
        source: [ova],
        to: 'local',
        state: join(dir, 'run', 'state'),
        storage: join(dir, 'run', 'vms'),
        external: '桥接',
        adapter: 'Wi-Fi',
        internal: 'Static-NAT',
        hostIp: '192.168.56.1/24',
        nat: true,
        guestIp: '192.168.56.191',
      }
      await fs.ensureDir(join(dir, 'run', 'vms'))
      const begin = () => start(options, lent(host))
      const reset = async () => {
        await host.change((state) => {
          for (const key of Object.keys(state)) delete state[key]
          Object.assign(state, JSON.parse(before))
        })
        await fs.remove(join(dir, 'run'))
        await fs.ensureDir(join(dir, 'run', 'vms'))
      }
      const result = async () => [
        anonymous(await host.state()),
        await tree(join(dir, 'run', 'vms')),
      ]
      await host.ps`'{}'` // its start is not the run's
      const first = await begin()
      const began = performance.now()
      equal((await first.ended).outcome, 'done')
      const whole = performance.now() - began
      const unbroken = await result()
      await reset()
      let takenBack = 0
      const random = seeded(3)
      const told = await killed({
        kills: 30,
        random,
        whole,
        begin,
        finished: async () => {
          deepEqual(await result(), unbroken)
          await reset()
        },
        // every fifth time somebody has had enough
        after: async () => {
          await host.ps`'{}'` // what was under way has ended
          if (random() > 0.2) return
          if ((await readJournals(options.state as string)).length > 0) {
            await undo({ state: options.state }, { screen: () => {}, host: () => lent(host) })
          }
          const { guests: _, ...state } = await host.state()
          const { guests: __, ...was } = JSON.parse(before)
          deepEqual(anonymous(state), anonymous(was))
          deepEqual(await fs.readdir(join(dir, 'run', 'vms')), [])
          takenBack++
          await reset()
        },
      })
      console.log(`\n  a VM: ${told}, ${takenBack} runs taken back`)
    } finally {
      await host.close()
    }
  },
)

interface Ended {
  /** Undefined where it was killed. */
  outcome: Outcome | undefined
}

interface Run {
  ended: Promise<Ended>
  kill: () => void
}

/** Starts a run in a process of its own, which is killed in the step `victim`; resolves as it begins to work. */
async function start(options: MigrateOptions, host?: Host, victim?: string): Promise<Run> {
  const child = fork(program, victim === undefined ? [] : [victim], {
    serialization: 'advanced',
    stdio: 'inherit',
    env: { ...process.env, NODE_COMPILE_CACHE: cache }, // it starts in half the time
  })
  let said: { outcome: Outcome } | { failure: string } | undefined
  const ready = Promise.withResolvers<void>()
  child.on('message', (message: Said) => {
    if ('ready' in message) ready.resolve()
    else if ('asks' in message) void answer(child, host as Host, message.asks)
    else said = message
  })
  const ended = once(child, 'exit').then(([code, signal]): Ended => {
    ready.reject(new Error(`it ended with ${code ?? signal} before it began`))
    if (said && 'failure' in said) throw new Error(said.failure)
    return { outcome: said?.outcome }
  })
  ended.catch(() => {})
  await ready.promise
  child.send(options)
  return { ended, kill: () => child.kill('SIGKILL') }
}

/** Kills runs at moments of their work until there were so many, and tells of what. */
async function killed({ kills, random, whole, begin, finished, after }: {
  kills: number
  random: () => number
  /** How long a run takes that nobody kills, in milliseconds. */
  whole: number
  begin: () => Promise<Run>
  /** Looks at what a run has left that came to its end. */
  finished: () => Promise<void>
  /** Waits for what a kill left under way. */
  after?: () => Promise<void>
}): Promise<string> {
  let count = 0
  let complete = 0
  let again = 0
  let shortest = whole
  for (let left = 0; count < kills || left > 0;) {
    const run = await begin()
    const began = performance.now()
    // the last run is let be, so that it is seen to end
    const timer = count < kills ? setTimeout(run.kill, 1.2 * random() * shortest) : undefined
    const { outcome } = await run.ended
    clearTimeout(timer)
    const took = performance.now() - began
    if (outcome === undefined) {
      count++
      left++
      await after?.()
      continue
    }
    // what was done is not done again: then nothing is left to do
    ok(outcome === 'done' || outcome === 'same' && left > 0, `${outcome} after ${left} kills`)
    // what is done again and again gets quicker, and later than its end nothing can be killed
    if (left === 0) shortest = Math.min(shortest, took)
    await finished()
    complete++
    again = Math.max(again, left)
    left = 0
  }
  return `${count} kills of a run of ${
    Math.round(shortest)
  } ms, ${complete} runs came to their end, one after ${again} kills`
}

/** A generator of numbers from 0 to 1 that are the same each time (mulberry32). */
function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

async function sum(path: string): Promise<string> {
  return createHash('sha256').update(await fs.readFile(path)).digest('hex')
}

/** Each file below a folder with its size, journals aside: each run has its own. */
async function tree(dir: string): Promise<Record<string, number>> {
  const names = await fs.readdir(dir, { recursive: true }) as string[]
  const found: Record<string, number> = {}
  for (const name of names.sort()) {
    const stat = await fs.stat(join(dir, name))
    if (stat.isFile() && !name.endsWith('.jsonl')) found[name] = stat.size
  }
  return found
}

/** Without what is another in each run: identifiers, numbers and times. */
function anonymous(value: unknown): unknown {
  const text = JSON.stringify(
    value,
    (key, one) => /^(ifIndex|created|started)$/.test(key) ? undefined : one,
  )
  return comparable(JSON.parse(
    text.replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/gi, '(GUID)')
      .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z?/g, '(time)')
      .replace(/"00155D[0-9A-F]{6}"/g, '"(MAC)"'),
  ))
}

kills.run()
