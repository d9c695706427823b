/**
 * Feeds the converter with images that are damaged or made to harm, thousands a minute: each is read as
 * it should be, or refused in one sentence, soon, in bounded memory, with nothing left behind.
 *
 *     npx node test/fuzz/convert-disk.ts [--seed N] [--cases N] [--format F] [--case N] [--keep DIR]
 *
 * A seed gives the same cases each time, and `--case` runs one of them again.
 */
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import process from 'node:process'
import { setImmediate } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { gunzipSync } from 'node:zlib'
import yargs from 'yargs'
import { convertDisk, type ConvertDiskResult, inspectDisk } from '../../tasks/convert-disk.ts'
import { printable } from '../../tasks/convert-disk/image.ts'
import { random } from '../tasks/convert-disk/images.ts'
import { type Base, makeBases } from './convert-disk/bases.ts'
import { type Mutant, mutate } from './convert-disk/mutate.ts'
import { type Disk, type Format, openReference } from './convert-disk/reference.ts'

export interface FuzzOptions {
  /** Fixes all cases. @default 1 */
  seed?: number
  /** How many. @default 1000 */
  cases?: number
  /** The first of them. @default 0 */
  first?: number
  /** Only bases of this format. */
  format?: string | undefined
  /** A folder for the files of cases that fail. */
  keep?: string | undefined
  /** Hears of each case before it runs. */
  onCase?: (number: number) => void
}

export interface Failure {
  seed: number
  number: number
  /** Format and variant. */
  base: string
  what: string
  /** How the image was changed. */
  done: string[]
}

export interface FuzzResult {
  /** By format. */
  counts: Record<string, { read: number; refused: number; failed: number }>
  failures: Failure[]
  /** The case that took longest, and its milliseconds. */
  slowest: { number: number; time: number }
  /** Reasons of refusals, and how often each was given: numbers and names left out. */
  reasons: Map<string, number>
}

const MB = 1024 ** 2
const SECTOR = 512
/** Milliseconds. */
const MOST_TIME = 2000
/** Bytes by which memory may grow in one case. */
const MOST_MEMORY = 200 * MB
/** Disks up to here are compared whole, larger ones here and there. */
const COMPARED = 16 * MB

let bases: Base[] | undefined

/** Runs cases one after the other. Nothing of them stays. */
export async function fuzz(options: FuzzOptions = {}): Promise<FuzzResult> {
  const { seed = 1, cases = 1000, first = 0, format, keep, onCase } = options
  bases ??= makeBases()
  const chosen = bases.filter((base) => format === undefined || base.format === format)
  const root = fs.mkdtempSync(join(fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'fuzz-'))
  const result: FuzzResult = {
    counts: {},
    failures: [],
    slowest: { number: first, time: 0 },
    reasons: new Map(),
  }
  try {
    for (let number = first; number < first + cases; number++) {
      onCase?.(number)
      const next = random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(number, 0x85ebca6b))
      const below = (limit: number) => Math.floor(next() * limit)
      const base = chosen[below(chosen.length)]
      if (!base) throw new Error(`Cannot fuzz ${format}: there is no such format`)
      const mutant = mutate(base, bases, below)
      const outcome = await runCase(join(root, 'vms', 'vm'), mutant, below)
      if (outcome.time > result.slowest.time) result.slowest = { number, time: outcome.time }
      const count = result.counts[base.format] ??= { read: 0, refused: 0, failed: 0 }
      count[outcome.failure !== undefined ? 'failed' : outcome.refusal ? 'refused' : 'read']++
      if (outcome.refusal !== undefined) {
        const reason = outcome.refusal.replace(/"[^"]*"/g, '""').replace(/\d+/g, '0')
        result.reasons.set(reason, (result.reasons.get(reason) ?? 0) + 1)
      }
      if (outcome.failure === undefined) continue
      const name = `${base.format} ${base.variant}`
      result.failures.push({ seed, number, base: name, what: outcome.failure, done: mutant.done })
      if (keep === undefined) continue
      const folder = join(keep, `${seed}-${number}`)
      fs.mkdirSync(folder, { recursive: true })
      for (const [file, data] of Object.entries(mutant.files)) {
        fs.writeFileSync(join(folder, basename(file)), data)
      }
    }
  } finally {
    fs.rmSync(root, { recursive: true, force: true })
  }
  return result
}

interface Outcome {
  time: number
  refusal?: string
  failure?: string
}

async function runCase(
  dir: string,
  mutant: Mutant,
  below: (limit: number) => number,
): Promise<Outcome> {
  fs.rmSync(dir, { recursive: true, force: true })
  fs.mkdirSync(dir, { recursive: true })
  for (const [name, data] of Object.entries(mutant.files)) writeSparse(join(dir, name), data)
  const target = below(6) === 0 ? below(6) : 6
  const outcome = await runOnce(dir, mutant, target)
  if (outcome.time <= MOST_TIME || outcome.failure !== undefined) return outcome
  // another program may have had the processor
  const again = await runOnce(dir, mutant, target)
  if (again.time > MOST_TIME) again.failure ??= `it took ${Math.round(again.time)} ms`
  return again
}

/** Data of which most is zeros. */
function writeSparse(path: string, data: Buffer): void {
  const file = fs.openSync(path, 'w')
  fs.ftruncateSync(file, data.length)
  const zeros = Buffer.alloc(64 * 1024)
  for (let at = 0; at < data.length; at += zeros.length) {
    const part = data.subarray(at, at + zeros.length)
    if (part.compare(zeros, 0, part.length) !== 0) fs.writeSync(file, part, 0, part.length, at)
  }
  fs.closeSync(file)
}

const TARGETS = [
  ...[{ format: 'vhdx', type: 'dynamic' }, { format: 'vhdx', type: 'fixed' }],
  ...[{ format: 'vhd', type: 'dynamic' }, { format: 'vhd', type: 'fixed' }],
  ...[{ format: 'vdi', type: 'dynamic' }, { format: 'vdi', type: 'fixed' }],
  { format: 'raw', type: 'fixed' },
] as const

async function runOnce(dir: string, mutant: Mutant, target: number): Promise<Outcome> {
  const from = join(dir, mutant.from)
  const before = look(dir)
  const memory = process.resourceUsage().maxRSS
  const start = performance.now()
  const used = process.cpuUsage()
  const inspected = await settle(inspectDisk({ from }))
  const [found] = inspected.value ?? []
  // only a VHDX has larger sectors, and only what is small is written in full
  const small = found !== undefined && found.virtualSize <= COMPARED
  const { format, type } = TARGETS[small || target === 0 ? target : 6] ?? TARGETS[6]
  const to = join(dir, `made.${format === 'raw' ? 'img' : format}`)
  const several = (inspected.value?.length ?? 0) > 1
  const converted = await settle(
    convertDisk({ from, to, format, type, ...(several && { disk: 0 }), seed: 'fuzz' }),
  )
  // where others have the processor it is not this that takes so long
  const { user, system } = process.cpuUsage(used)
  const time = Math.min(performance.now() - start, (user + system) / 1000)
  const grown = (process.resourceUsage().maxRSS - memory) * 1024
  const problems: string[] = []
  if (grown > MOST_MEMORY) problems.push(`it took ${Math.round(grown / MB)} MB`)
  const wasMade = fs.existsSync(to)
  if (converted.value) {
    if (inspected.error) problems.push(`read, though ${inspected.error.message}`)
    problems.push(...differences(dir, to, mutant, converted.value, found?.member))
  } else {
    if (wasMade) problems.push('refused, and written')
    problems.push(...faultsOf(converted.error as Error))
  }
  if (inspected.error) problems.push(...faultsOf(inspected.error))
  fs.rmSync(to, { force: true })
  if (look(dir) !== before) problems.push(`the folder is not as it was: ${look(dir)}`)
  const open = await leaked()
  if (open > 0) problems.push(`${open} files stay open`)
  const failure = [...new Set(problems)].join('; ')
  return {
    time,
    ...(converted.error && { refusal: converted.error.message }),
    ...(failure && { failure }),
  }
}

async function settle<T>(promise: Promise<T>): Promise<{ value?: T; error?: Error }> {
  return await promise.then((value) => ({ value }), (error: Error) => ({ error }))
}

/** All files with their times: what was written to has another. */
function look(dir: string): string {
  return fs.readdirSync(dir).sort().map((name) => {
    const { size, mtimeNs, ctimeNs } = fs.statSync(join(dir, name), { bigint: true })
    return `${name} ${size} ${mtimeNs} ${ctimeNs}`
  }).join(', ')
}

let usual: number | undefined

/** Files that are open now and were not after the first case. Linux alone tells. */
async function leaked(): Promise<number> {
  const count = () => fs.readdirSync('/proc/self/fd').length
  if (process.platform !== 'linux') return 0
  usual ??= count()
  for (let tries = 0; tries < 50 && count() > usual; tries++) await setImmediate()
  const more = count() - usual
  usual = Math.max(usual, count())
  return more
}

const SENTENCE = [
  /^Cannot read ".*": .+ \(at byte \d+\)$/,
  /^Cannot read ".*": (there is no such file|it is no file. Name a disk image)$/,
  /^Cannot read ".*": it has no disk. Export the VM again$/,
  /^Cannot tell which disk of ".*" is meant: .+ Run again with --disk and one of these$/,
  /^Cannot convert ".*": its SHA\d+ is .+ Copy or export it again$/,
  /^Cannot write ".*": a (VHDX|VHD|VDI) holds \d+ bytes at most.+$/,
  /^Cannot write ".*": the disk has sectors of 4096 bytes.+$/,
  /^Cannot write ".*": it may take up to \d+ MB, and \d+ MB are free there.+$/,
  /^Cannot write ".*": its file system holds no file that large.+$/,
]

/** What is wrong with a refusal. */
function faultsOf(error: Error): string[] {
  const { message, name } = error
  const faults: string[] = []
  if (name !== 'Error' && name !== 'ImageError') faults.push(`${name}: ${error.stack}`)
  else if (!SENTENCE.some((form) => form.test(message))) {
    faults.push(`no known sentence: ${message}`)
  }
  // deno-lint-ignore no-control-regex -- these are what must not reach a terminal
  if (/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(message)) faults.push('several lines')
  // of names only so much as tells them apart
  if (message.length > 4000) faults.push(`a sentence of ${message.length} characters`)
  if (/\b(undefined|NaN|Infinity|null|\[object|E[A-Z]{4,}:|ERR_)/.test(message)) {
    faults.push(`not for people: ${message}`)
  }
  return faults
}

/** Compares what was made with what the references read of both. */
function differences(
  dir: string,
  to: string,
  { files, from }: Mutant,
  { source, format, virtualSize }: ConvertDiskResult,
  member: string | undefined,
): string[] {
  try {
    const isArchive = from.endsWith('.ova')
    const members = isArchive ? untar(files[from] as Buffer) : files
    const sibling = (name: string) => {
      const found = partsOf(members, name)
      if (found) return found
      throw new Error(`the reference has no "${name}"`)
    }
    let expected: Disk | undefined
    const inside = join(dir, from).length + 1
    const names = source.chain?.map((path) => isArchive ? path.slice(inside) : basename(path))
    const chain = names ?? [member ?? from]
    for (const [index, name] of chain.entries()) {
      const data = sibling(name)
      const is = index === chain.length - 1 ? source.format : formatOf(data)
      expected = openReference(is, data, sibling, expected)
    }
    if (!expected) throw new Error('there is no reference')
    return compare(expected, to, format, virtualSize)
  } catch (error) {
    return [`read, though ${(error as Error).message}`]
  }
}

function compare(expected: Disk, to: string, format: Format, virtualSize: number): string[] {
  if (Math.ceil(expected.size / SECTOR) * SECTOR !== virtualSize) {
    return [`read as ${virtualSize} bytes, and it has ${expected.size}`]
  }
  const file = fs.openSync(to, 'r')
  try {
    const { size } = fs.fstatSync(file)
    const whole = size <= 4 * COMPARED ? fs.readFileSync(to) : undefined
    const made: Disk = whole ? openReference(format, whole, () => Buffer.alloc(0)) : {
      size,
      sector: (index) => {
        const data = Buffer.alloc(SECTOR)
        fs.readSync(file, data, 0, SECTOR, index * SECTOR)
        return data
      },
    }
    if (made.size !== virtualSize) return [`written as ${made.size} bytes of ${virtualSize}`]
    const zeros = Buffer.alloc(SECTOR)
    for (const index of sectorsOf(virtualSize)) {
      const [a, b] = [expected.sector(index) ?? zeros, made.sector(index) ?? zeros]
      const [more, less] = a.length >= b.length ? [a, b] : [b, a]
      const rest = more.subarray(less.length)
      const same = more.compare(less, 0, less.length, 0, less.length) === 0 &&
        rest.compare(zeros, 0, rest.length) === 0
      if (!same) return [`wrong from sector ${index} on`]
    }
    return []
  } finally {
    fs.closeSync(file)
  }
}

/** All sectors of a disk, or of a large one the first, the last, and some at all distances. */
function* sectorsOf(size: number): Generator<number> {
  const last = size / SECTOR - 1
  const all = size <= COMPARED
  for (let index = 0; index <= (all ? last : 8191); index++) yield index
  if (all) return
  for (let step = 8192; step < last; step *= 2) {
    for (const index of [step - 1, step, step + 1, last - step]) if (index <= last) yield index
  }
  for (let index = last - 64; index <= last; index++) yield index
}

/** What a tar holds, whatever it says of types but that a member is the next one's name. */
function untar(archive: Buffer): Record<string, Buffer> {
  const members: Record<string, Buffer> = {}
  let long: string | undefined
  for (
    let at = 0;
    at + SECTOR <= archive.length && archive.subarray(at, at + SECTOR).some((byte) => byte);
  ) {
    const text = (from: number, length: number) =>
      archive.toString('utf8', at + from, at + from + length).replace(/\0.*$/s, '')
    const wide = (archive[at + 124] as number) & 0x80
    const size = wide
      ? Number(archive.readBigUInt64BE(at + 128))
      : Number.parseInt(text(124, 12).trim() || '0', 8)
    const prefix = archive.toString('latin1', at + 257, at + 263) === 'ustar\0'
      ? text(345, 155)
      : ''
    const name = (prefix && `${prefix}/`) + text(0, 100)
    const data = archive.subarray(at + SECTOR, at + SECTOR + size)
    const before = long
    long = archive[at + 156] === 0x4c ? data.toString().replace(/\0.*$/s, '') : undefined
    if (long === undefined) members[before ?? name] = data
    at += SECTOR + Math.ceil(size / SECTOR) * SECTOR
  }
  return members
}

/** A disk of a package: of one file or of chunks, and unpacked. */
function partsOf(files: Record<string, Buffer>, name: string): Buffer | undefined {
  const parts: Buffer[] = []
  for (let part = files[`${name}.000000000`]; part && parts.length < 10_000;) {
    parts.push(part)
    part = files[`${name}.${String(parts.length).padStart(9, '0')}`]
  }
  const data = files[name] ?? (parts.length > 0 ? Buffer.concat(parts) : undefined)
  const isGzip = data && data.length > 2 && data.readUInt16BE() === 0x1f8b
  return isGzip ? gunzipSync(data, { maxOutputLength: 512 * MB }) : data
}

function formatOf(data: Buffer): Format {
  const start = data.toString('latin1', 0, 8)
  if (start === 'vhdxfile') return 'vhdx'
  if (data.length > 0x200 && data.readUInt32LE(0x40) === 0xbeda107f) return 'vdi'
  return /^\s*(KDMV|COWD|# Disk)/.test(start) ? 'vmdk' : 'vhd'
}

/** Ends the process when a case never does, which nothing in the same thread can see. */
function watch(seed: number): { onCase: (number: number) => void; end: () => void } {
  const shared = new Int32Array(new SharedArrayBuffer(8))
  const worker = new Worker(
    `
    const { workerData } = require('node:worker_threads')
    const { writeSync } = require('node:fs')
    let [last, since] = [-1, Date.now()]
    setInterval(() => {
      const now = Atomics.load(workerData.shared, 0)
      if (now !== last) [last, since] = [now, Date.now()]
      else if (Date.now() - since > 60000) {
        writeSync(2, 'Seed ' + workerData.seed + ' case ' + now + ' does not end\\n')
        process.kill(process.pid, 'SIGKILL')
      }
    }, 1000)
    `,
    { eval: true, workerData: { shared, seed } },
  )
  return {
    onCase: (number) => Atomics.store(shared, 0, number),
    end: () => void worker.terminate(),
  }
}

async function main(): Promise<void> {
  const { seed, cases, format, keep, case: only, reasons } = await yargs(process.argv.slice(2))
    .options({
      seed: { type: 'number', default: 1, describe: 'Fixes all cases' },
      cases: { type: 'number', default: 1000, describe: 'How many' },
      format: { type: 'string', describe: 'vdi, vmdk, vhd, vhdx, raw or ova. Default: all' },
      case: { type: 'number', describe: 'Only this one' },
      keep: { type: 'string', describe: 'A folder for the files of cases that fail' },
      reasons: { type: 'boolean', describe: 'Tell how often each reason was given' },
    }).strict().parse()
  const { onCase, end } = watch(seed)
  const which = only === undefined ? { cases } : { first: only, cases: 1 }
  const start = performance.now()
  const result = await fuzz({ seed, ...which, format, keep, onCase })
  end()
  for (const [format, { read, refused, failed }] of Object.entries(result.counts)) {
    console.log(`${format.padEnd(5)} ${read} read, ${refused} refused, ${failed} failed`)
  }
  if (reasons) {
    for (const [reason, count] of [...result.reasons].sort(([, a], [, b]) => b - a)) {
      console.log(`${String(count).padStart(6)}  ${reason}`)
    }
  }
  for (const { seed, number, base, what, done } of result.failures) {
    console.log(printable(`Seed ${seed} case ${number}, ${base} (${done.join('; ')}): ${what}`))
  }
  const seconds = Math.round((performance.now() - start) / 1000)
  const peak = Math.round(process.resourceUsage().maxRSS / 1024)
  const { number, time } = result.slowest
  console.log(
    `${seconds} s, case ${number} the slowest: ${Math.round(time)} ms, ${peak} MB at most`,
  )
  process.exitCode = result.failures.length > 0 ? 1 : 0
}

if (import.meta.main) await main()
