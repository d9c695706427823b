/** What hostile and damaged images have in common, done to a good one. */
import { deflateSync, gzipSync } from 'node:zlib'
import { type Base, type Field, fieldsOf, manifestOf, packed, seal, sealTar } from './bases.ts'

export interface Mutant {
  /** The files as they are to lie in the folder. */
  files: Record<string, Buffer>
  /** The one that is named to the kit. */
  from: string
  /** What was done, for whoever looks into a failure. */
  done: string[]
}

/** A number below a limit. */
type Below = (limit: number) => number

/** One to four changes to a base, with its checksums made right again, most of the time. */
export function mutate(base: Base, all: Base[], below: Below): Mutant {
  const files: Record<string, Buffer> = {}
  for (const [name, data] of Object.entries(base.files)) files[name] = Buffer.from(data)
  const done: string[] = []
  const first = Object.keys(files)[0] as string
  const inArchive = base.archive !== undefined && below(4) === 0
  const sealed = below(8) > 0
  const changes = [1, 1, 1, 2, 2, 3, 4][below(7)] as number
  if (!inArchive) {
    for (let change = 0; change < changes; change++) done.push(changeOne(files, base, all, below))
  }
  if (sealed) { for (const file of Object.values(files)) seal(file) }
  const manifest = Object.keys(files).find((name) => name.endsWith('.mf'))
  const changedManifest = done.some((what) => what.includes('.mf'))
  if (manifest && !changedManifest && below(8) > 0) files[manifest] = manifestOf(files)
  const result = packed(base, files)
  if (inArchive) {
    const name = base.archive as string
    for (let change = 0; change < changes; change++) {
      const file = result[name] as Buffer
      const { data, what } = changeFile(file, fieldsOf(file), all, below)
      result[name] = data
      done.push(`${name}: ${what}`)
    }
    if (sealed) sealTar(result[name] as Buffer)
  }
  return { files: result, from: base.archive ?? first, done }
}

function changeOne(
  files: Record<string, Buffer>,
  base: Base,
  all: Base[],
  below: Below,
): string {
  const names = Object.keys(files)
  const name = names[below(names.length)] as string
  const other = names[below(names.length)] as string
  const file = files[name] as Buffer
  if (names.length > 1 && below(12) === 0) {
    const kind = below(4)
    if (kind === 0 && name !== names[0]) {
      delete files[name]
      return `${name} is missing`
    }
    if (kind === 1) {
      files[name] = Buffer.alloc(0)
      return `${name} is empty`
    }
    if (kind === 2) {
      files[name] = Buffer.from(files[other] as Buffer)
      return `${name} is a copy of ${other}`
    }
    ;[files[name], files[other]] = [files[other] as Buffer, file]
    return `${name} and ${other} change places`
  }
  if (names.length > 1 && below(10) === 0) {
    // an identifier of one file in another: parents that are not, or that are themselves
    const ids = (name: string) =>
      fieldsOf(base.files[name] as Buffer).filter(({ at, length }) => {
        return length === 16 && at + length <= (files[name] as Buffer).length
      })
    const [to, from] = [ids(name), ids(other)]
    if (to.length > 0 && from.length > 0) {
      const [target, source] = [to[below(to.length)], from[below(from.length)]] as [Field, Field]
      ;(files[other] as Buffer).copy(file, target.at, source.at, source.at + 16)
      return `${name}: identifier at ${target.at} is that of ${other} at ${source.at}`
    }
  }
  const { data, what } = changeFile(file, fieldsOf(base.files[name] as Buffer), all, below)
  files[name] = data
  return `${name}: ${what}`
}

function changeFile(
  file: Buffer,
  fields: Field[],
  all: Base[],
  below: Below,
): { data: Buffer; what: string } {
  const within = fields.filter(({ at, length }) => at + length <= file.length)
  const kind = below(20)
  if (kind === 0 || within.length === 0) return cut(file, fields, below)
  if (kind === 1) return splice(file, all, below)
  if (kind === 2) return bomb(file, within, below)
  if (kind === 4) return giant(file, below)
  if (kind === 3) {
    const { at } = within[below(within.length)] as Field
    const length = Math.min(1 + below(16), file.length - at)
    for (let byte = 0; byte < length; byte++) file.writeUInt8(below(256), at + byte)
    return { data: file, what: `${length} random bytes at ${at}` }
  }
  const field = within[below(within.length)] as Field
  if (kind <= 7) {
    const alike = within.filter(({ length, kind }) =>
      length === field.length && kind === field.kind
    )
    const other = alike[below(alike.length)] as Field
    file.copy(file, field.at, other.at, other.at + field.length)
    return { data: file, what: `${field.length} bytes at ${field.at} as at ${other.at}` }
  }
  if (field.kind === 'text') return changeText(file, field, below)
  return { data: file, what: setField(file, field, below) }
}

/** A disk that is as large as its tables can say, and larger than its file by far. */
function giant(file: Buffer, below: Below): { data: Buffer; what: string } {
  const magic = file.toString('latin1', 0, 8)
  const power = (most: number) => 2 ** below(most)
  const put = (length: number, value: number, at: number, order: 'LE' | 'BE' = 'LE') => {
    if (at < 0 || at + length > file.length) return
    if (length === 8) file[`writeBigUInt64${order}`](BigInt(value), at)
    else file[`writeUInt32${order}`](value, at)
  }
  if (file.length > 0x200 && file.readUInt32LE(0x40) === 0xbeda107f) {
    const [block, count] = [2 ** 28 / power(12), power(18)]
    const old = file.readUInt32LE(0x44) === 1
    put(8, block * count - 512 * below(2), old ? 0x160 : 0x170)
    put(4, block, old ? 0x168 : 0x178)
    put(4, count, old ? 0x16c : 0x180)
    return { data: file, what: `${count} blocks of ${block} bytes` }
  }
  if (magic.startsWith('KDMV')) {
    const [grain, entries, tables] = [2 ** 12 / power(9), 2 ** 16 / power(7), power(16)]
    const footer = file.length - 1024
    for (const at of [0, file.toString('latin1', footer, footer + 4) === 'KDMV' ? footer : -99]) {
      put(8, grain * entries * tables, at + 12)
      put(8, grain, at + 20)
      put(4, entries, at + 44)
    }
    return { data: file, what: `${tables} tables of ${entries} grains of ${grain} sectors` }
  }
  if (magic === 'vhdxfile') {
    const [block, size] = [2 ** 28 / power(9), 2 ** 46 / power(20)]
    put(4, block, 2 * 1024 ** 2 + 64 * 1024)
    put(8, size, 2 * 1024 ** 2 + 64 * 1024 + 8)
    // an earlier change may have cut the file
    const table = file.subarray(3 * 1024 ** 2, 3 * 1024 ** 2 + 64)
    if (below(2)) table.fill(0)
    return { data: file, what: `${size} bytes in blocks of ${block}` }
  }
  if (magic === 'conectix') {
    const [block, count] = [2 ** 24 / power(15), power(16)]
    for (const at of [0, file.length - 512]) put(8, block * count, at + 48, 'BE')
    put(4, count, 512 + 28, 'BE')
    put(4, block, 512 + 32, 'BE')
    return { data: file, what: `${count} blocks of ${block} bytes` }
  }
  const more = Buffer.alloc(power(22))
  return { data: Buffer.concat([file, more]), what: `${more.length} bytes more` }
}

/** Sizes that matter to programs: borders of numbers, of the file, of units. */
function valueFor(file: Buffer, field: Field, now: bigint, below: Below): bigint {
  const bits = BigInt(field.length * 8)
  const size = BigInt(file.length)
  const power = 1n << BigInt(below(field.length * 8))
  const values = [
    ...[0n, 1n, 2n, (1n << bits) - 1n, (1n << bits) - 2n, 1n << (bits - 1n)],
    ...[now + 1n, now - 1n, now * 2n, now / 2n, now + 512n, now - 512n, now * 512n],
    ...[size, size - 1n, size - 512n, size + 1n, size / 512n, size / 512n - 1n, size / 512n + 1n],
    ...[power, power - 1n, power + 1n, now ^ power, now ^ power],
    // 64 TB in bytes and in sectors, and what floating point cannot hold
    ...[1n << 46n, 1n << 37n, (1n << 53n) - 512n, (1n << 53n) + 1n, (1n << 63n) / 512n],
    ...[BigInt(below(2 ** 31)), BigInt(below(64)), BigInt(below(file.length))],
  ]
  return values[below(values.length)] as bigint
}

function setField(file: Buffer, { at, length, kind }: Field, below: Below): string {
  if (kind === 'bytes') {
    const fill = [0, 0xff, 0x41][below(3)] as number
    if (below(3) > 0) file.writeUInt8(below(256), at + below(length))
    else file.fill(fill, at, at + length)
    return `bytes at ${at}`
  }
  if (kind === 'octal') {
    const texts = ['77777777777\0', '00000000000\0', '-0000000001\0', '0x000000200\0', '9', '1e3']
    const choice = below(texts.length + 4)
    const text = texts[choice]
    if (text !== undefined) file.fill(0, at, at + length).write(text, at)
    else {
      // base 256: large, negative, and small
      file.fill(choice % 2 ? 0xff : 0, at, at + length)
      if (choice % 2 === 0) file[at] = 0x80
      file.writeUInt8(below(256), at + below(length - 1) + 1)
    }
    return `size at ${at} is ${file.toString('hex', at, at + length)}`
  }
  if (kind === 'bat') {
    const megabyte = BigInt(below(Math.ceil(file.length / 1024 ** 2) + 2))
    const far = [0n, 1n << 43n, 1n << 30n][below(12)] ?? megabyte
    const value = (far << 20n) | BigInt(below(3) ? 6 + below(2) : below(8))
    file.writeBigUInt64LE(value, at)
    return `entry at ${at} is ${value.toString(16)}`
  }
  const bytes = Buffer.from(file.subarray(at, at + length))
  if (kind === 'little') bytes.reverse()
  const now = BigInt(`0x${bytes.toString('hex')}`)
  const value = BigInt.asUintN(length * 8, valueFor(file, { at, length, kind }, now, below))
  const result = Buffer.from(value.toString(16).padStart(length * 2, '0'), 'hex')
  if (kind === 'little') result.reverse()
  result.copy(file, at)
  return `${length} bytes at ${at}: ${now} is ${value}`
}

function cut(file: Buffer, fields: Field[], below: Below): { data: Buffer; what: string } {
  const field = fields[below(fields.length)]
  const ends = [
    (field?.at ?? 0) + below(field?.length ?? 1),
    file.length - 1 - below(2048),
    Math.floor(below(file.length + 1) / 512) * 512,
    below(file.length + 1),
  ]
  if (below(5) === 0) {
    const more = Buffer.alloc(1 + below(4096), below(2) ? 0 : 0xaa)
    return { data: Buffer.concat([file, more]), what: `${more.length} bytes more` }
  }
  const end = Math.max(0, ends[below(ends.length)] as number)
  return { data: file.subarray(0, end), what: `cut to ${end} bytes` }
}

/** The beginning of one image and the rest of another. */
function splice(file: Buffer, all: Base[], below: Below): { data: Buffer; what: string } {
  const { files, format, variant } = all[below(all.length)] as Base
  const others = Object.values(files)
  const other = others[below(others.length)] as Buffer
  const at = [512, 1024, 4096, 64 * 1024, below(file.length + 1)][below(5)] as number
  const data = Buffer.concat([file.subarray(0, at), other.subarray(at)])
  return { data, what: `from byte ${at} as a ${format} ${variant}` }
}

const large = Buffer.alloc(32 * 1024 ** 2)
let bombs: { deflate: Buffer; gzip: Buffer } | undefined

/** What is small, and unpacks to much. */
function bomb(file: Buffer, fields: Field[], below: Below): { data: Buffer; what: string } {
  bombs ??= { deflate: deflateSync(large), gzip: gzipSync(large) }
  if (file.readUInt16BE(0) === 0x1f8b) {
    const times = 1 + below(4)
    const data = Buffer.concat(Array.from({ length: times }, () => (bombs as typeof bombs)!.gzip))
    return { data, what: `gzip of ${times * 32} MB` }
  }
  if (file.toString('latin1', 0, 4) !== 'KDMV') return cut(file, fields, below)
  // an entry of the grain table that leads behind what is there
  const entry = fields.filter(({ length, kind }) => length === 4 && kind === 'little').at(
    -1 - below(14),
  )
  const at = Math.ceil(file.length / 512)
  const data = Buffer.concat([file, Buffer.alloc(at * 512 - file.length + 12), bombs.deflate])
  data.writeBigUInt64LE(BigInt(below(10) * 128), at * 512)
  data.writeUInt32LE(bombs.deflate.length, at * 512 + 8)
  if (entry) data.writeUInt32LE(at, entry.at)
  return { data, what: `a grain of 32 MB at ${at * 512}, by the entry at ${entry?.at}` }
}

const NUMBERS = [
  ...['0', '-1', '1', '00', '1e9', '0x10', '9'.repeat(30), 'x', ''],
  ...['36028797018963968', '9007199254740993', '137438953472', '137438953473', '4294967296'],
]
const NAMES = [
  ...['', '.', '..', '../a.vmdk', '/dev/zero', '/etc/passwd', 'C:\\x', 'C:x', '\\\\server\\x'],
  ...['a\u2028b', "’$(x)`'", '\u202e', '\u0000', 'x'.repeat(5000), 'a.vmdk', 'A.VMDK', 'd.vmdk'],
  ...['base.vmdk', 'a-s001.vmdk', 'a-delta.vmdk', 'a.ovf', 'a.mf', '__proto__', 'constructor'],
  ...['a.vmdk\n', '\x1b[31m', '%s%n', '&lt;', '<a>', 'con', 'nul.vmdk', 'a.vmdk.'],
]

/** A text of numbers and names: a descriptor, an OVF, a manifest, or a name in a tar. */
function changeText(
  file: Buffer,
  { at, length }: Field,
  below: Below,
): { data: Buffer; what: string } {
  const all = file.toString('latin1', at, at + length)
  const text = all.replace(/\0+$/, '')
  const pick = <T>(from: T[]): T => from[below(from.length)] as T
  const replace = (pattern: RegExp, by: string) => {
    const found = [...text.matchAll(pattern)]
    if (found.length === 0) return `${by}${text}`
    const { index, 0: old } = pick(found)
    return text.slice(0, index) + by + text.slice(index + old.length)
  }
  const lines = text.split('\n')
  const line = below(lines.length)
  const name = Buffer.from(pick(NAMES)).toString('latin1')
  const changes = [
    () => replace(/\d+/g, pick(NUMBERS)),
    () => replace(/\d+/g, pick(NUMBERS)),
    () => replace(/(?<=["(])[^"()]*(?=[")])/g, name),
    () => replace(/(?<=["(])[^"()]*(?=[")])/g, name),
    () => replace(/\b[A-Za-z]\w*\b/g, pick(text.match(/\b[A-Za-z]\w*\b/g) ?? ['x'])),
    () => lines.toSpliced(line, 1).join('\n'),
    () => lines.toSpliced(line, 0, pick(lines)).join('\n'),
    () => lines.toSpliced(line, 0, ...Array<string>(5000).fill(pick(lines))).join('\n'),
    () => text.slice(0, below(text.length + 1)),
    () =>
      `${text.slice(0, below(text.length + 1))}${pick(['\0', '\xff\xfe', '\r', '<', '"', '&x;'])}`,
    () => `\xef\xbb\xbf${text}`,
    () => replace(/\s/g, pick([' ', '\n', '\t', '\r\n']).repeat(pick([3, 1000, 300_000]))),
    () => replace(/[\w"=()<>]/g, pick(['=', '"', '(', ')', '<', ' =']).repeat(pick([2, 100_000]))),
    () => replace(/<(\w+)[^>]*>/g, '<a>'.repeat(pick([10, 1000, 100_000]))),
    () =>
      text.replace(
        /<Envelope/,
        '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx">' +
          '<!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;"><!ENTITY z "&y;&y;&y;&y;&y;&y;&y;">]><Envelope',
      )
        .replace(/(?<=href=")/, '&z;&z;&z;'),
  ]
  const which = below(changes.length)
  const changed = (changes[which] as () => string)()
  const what = `text at ${at} changed in way ${which}`
  // alone in its file it may grow
  if (at === 0 && length === file.length) return { data: Buffer.from(changed, 'latin1'), what }
  file.fill(0, at, at + length).write(changed, at, length, 'latin1')
  return { data: file, what }
}
