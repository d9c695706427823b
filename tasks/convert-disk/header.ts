/** Headers as tables of their specification's field names: one table reads and writes. */

/** A field: where it stands, and how its value is stored. */
export interface Field<T> {
  at: number
  get(data: Buffer): T
  set(data: Buffer, value: T): void
}

type Table = Record<string, Field<unknown>>

export type Values<T extends Table> = { [K in keyof T]: T[K] extends Field<infer V> ? V : never }

/** The values of a header's fields. `at` is where it begins in the data. */
export function read<T extends Table>(table: T, data: Buffer, at = 0): Values<T> {
  const header = data.subarray(at)
  return Object.fromEntries(
    Object.entries(table).map(([name, field]) => [name, field.get(header)]),
  ) as Values<T>
}

/** A header of `length` bytes. Fields that are not named stay zero. */
export function write<T extends Table>(
  table: T,
  length: number,
  values: Partial<Values<T>>,
): Buffer<ArrayBuffer> {
  const header = Buffer.alloc(length)
  for (const [name, value] of Object.entries(values)) table[name]?.set(header, value)
  return header
}

export const u8 = (at: number): Field<number> => ({
  at,
  get: (data) => data.readUInt8(at),
  set: (data, value) => void data.writeUInt8(value, at),
})

/** A text of one byte a character, without the NULs that fill it up. */
export const text = (at: number, length: number): Field<string> => ({
  at,
  get: (data) => data.toString('latin1', at, at + length).replace(/\0+$/, ''),
  set: (data, value) => void data.write(value, at, length, 'latin1'),
})

export const little = {
  u16: (at: number): Field<number> => ({
    at,
    get: (data) => data.readUInt16LE(at),
    set: (data, value) => void data.writeUInt16LE(value, at),
  }),
  u32: (at: number): Field<number> => ({
    at,
    get: (data) => data.readUInt32LE(at),
    set: (data, value) => void data.writeUInt32LE(value, at),
  }),
  /** A value beyond all sizes is Infinity: larger than whatever it is compared with. */
  u64: (at: number): Field<number> => ({
    at,
    get: (data) => size(data.readBigUInt64LE(at)),
    set: (data, value) => void data.writeBigUInt64LE(uint64(value), at),
  }),
  /** All of its 64 bits. */
  exact: (at: number): Field<bigint> => ({
    at,
    get: (data) => data.readBigUInt64LE(at),
    set: (data, value) => void data.writeBigUInt64LE(value, at),
  }),
  /** Its first three parts are numbers, and stored as such. */
  guid: (at: number): Field<string> => ({
    at,
    get: (data) => uuidText(swap(data.subarray(at, at + 16))),
    set: (data, value) => void swap(uuidBytes(value)).copy(data, at),
  }),
}

export const big = {
  u16: (at: number): Field<number> => ({
    at,
    get: (data) => data.readUInt16BE(at),
    set: (data, value) => void data.writeUInt16BE(value, at),
  }),
  u32: (at: number): Field<number> => ({
    at,
    get: (data) => data.readUInt32BE(at),
    set: (data, value) => void data.writeUInt32BE(value, at),
  }),
  /** A value beyond all sizes is Infinity: larger than whatever it is compared with. */
  u64: (at: number): Field<number> => ({
    at,
    get: (data) => size(data.readBigUInt64BE(at)),
    set: (data, value) => void data.writeBigUInt64BE(uint64(value), at),
  }),
  /** Stored in the order in which it is written. */
  uuid: (at: number): Field<string> => ({
    at,
    get: (data) => uuidText(data.subarray(at, at + 16)),
    set: (data, value) => void uuidBytes(value).copy(data, at),
  }),
}

/** 16 bytes in the usual notation. */
export function uuidText(data: Buffer): string {
  return data.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

function uuidBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll('-', ''), 'hex')
}

function swap(data: Buffer): Buffer {
  const swapped = Buffer.from(data)
  swapped.subarray(0, 4).reverse()
  swapped.subarray(4, 6).reverse()
  swapped.subarray(6, 8).reverse()
  return swapped
}

function size(value: bigint): number {
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? Infinity : Number(value)
}

function uint64(value: number): bigint {
  return value === Infinity ? 0xffffffffffffffffn : BigInt(value)
}
