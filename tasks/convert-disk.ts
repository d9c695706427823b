#!/usr/bin/env zx
/** Convert a disk image to one that Hyper-V takes, or to raw, straight out of an OVA too. */
import fs from 'fs-extra'
import { createHash, randomBytes } from 'node:crypto'
import { type FileHandle, open, statfs } from 'node:fs/promises'
import { basename, dirname, extname, join, resolve } from 'node:path'
import process from 'node:process'
import { $ } from 'zx'
import {
  type Bytes,
  type Extent,
  type Image,
  ImageError,
  isZero,
  type Writer,
} from './convert-disk/image.ts'
import { isTar, listMembers, type Member, member, verifyMember } from './convert-disk/ova.ts'
import { type Layout, readLayout } from './convert-disk/partitions.ts'
import { openRaw, writeRaw } from './convert-disk/raw.ts'
import { isVdi, openVdi } from './convert-disk/vdi.ts'
import { MAX_SIZE as MAX_VHD, writeVhd } from './convert-disk/vhd.ts'
import { MAX_SIZE as MAX_VHDX, writeVhdx } from './convert-disk/vhdx.ts'
import { isVmdk, openVmdk } from './convert-disk/vmdk.ts'
import { command, dryRun } from './task.ts'

export type Format = 'vhdx' | 'vhd' | 'raw'

export interface ConvertDiskOptions {
  /** A VDI, VMDK or raw image, or an OVA. What a file is, its content says. */
  from: string
  to: string
  /** @default by the extension of `to` */
  format?: Format | undefined
  /** `fixed` has all its blocks from the start. @default 'dynamic' */
  type?: 'dynamic' | 'fixed' | undefined
  /** Which disk of an OVA: its place, from 0, or its name. Needed when there are several. */
  disk?: number | string | undefined
  /** Who converts. @default 'embedded' */
  engine?: 'embedded' | 'qemu-img' | 'vboxmanage' | undefined
  /** Replace an existing target, in the end. @default false */
  force?: boolean | undefined
  /** Fixes the identifiers, so that the same disk gives the same file. */
  seed?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
  /** Hears how many of the bytes that may hold data are done. */
  onProgress?: ((progress: { done: number; total: number }) => void) | undefined
  /** Stops the work: nothing is left behind, and it rejects. */
  signal?: AbortSignal | undefined
}

export interface ConvertDiskResult {
  changed: boolean
  path: string
  format: Format
  type: 'dynamic' | 'fixed'
  /** Bytes of the virtual disk. */
  virtualSize: number
  /** Bytes of the file. */
  fileSize: number
  /** The new image's own identifier; a raw image has none. */
  identifier?: string
  source: { format: Image['format']; variant: string; allocatedSize: number }
  /** What is worth knowing, e.g. that an OVA has no manifest. */
  warnings: string[]
}

export interface DiskDescription extends Layout {
  /** The member of an OVA. */
  member?: string
  format: Image['format']
  variant: string
  /** Bytes of the virtual disk. */
  virtualSize: number
  /** Bytes of it that may hold data. */
  allocatedSize: number
  identifier?: string
}

/**
 * Converts a disk image. The target is written under a temporary name, synced, and renamed in the end.
 * Rejects, and leaves nothing behind, when the source is damaged or changes meanwhile.
 */
export async function convertDisk(options: ConvertDiskOptions): Promise<ConvertDiskResult> {
  const { from, to, type = 'dynamic', engine = 'embedded', force = false, seed, signal } = options
  const format = options.format ?? formatOf(to)
  await refuseTarget(from, to, force)
  const source = await openDisk(from, options.disk)
  try {
    const { image } = source
    const virtualSize = Math.ceil(image.virtualSize / 512) * 512
    refuseSize(virtualSize, format, to)
    const path = resolve(to)
    const result = {
      changed: true,
      path,
      format,
      type: format === 'raw' ? 'fixed' as const : type,
      virtualSize,
      source: { format: image.format, variant: image.variant, allocatedSize: image.allocatedSize },
      warnings: source.warnings,
    }
    if (options.dryRun) return { ...result, fileSize: 0 }
    signal?.throwIfAborted()
    await removeLeftovers(path)
    await refuseSpace(
      path,
      type === 'fixed' && format !== 'raw' ? virtualSize : image.allocatedSize,
    )
    const temporary = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.partial`
    await fs.ensureDir(dirname(path))
    try {
      let identifier: string | undefined
      if (engine === 'embedded') {
        const file = await open(temporary, 'wx+')
        try {
          const write = { vhdx: writeVhdx, vhd: writeVhd, raw: writeRaw }[format]
          const writer = await write({ file, virtualSize, type, uuid: uuids(seed) })
          await copy(image, writer, options)
          await writer.finish()
          identifier = writer.identifier
          await file.sync()
        } finally {
          await file.close()
        }
      } else {await runEngine(engine, from, temporary, {
          format,
          type,
          image,
          member: source.member,
        })}
      await source.verify()
      signal?.throwIfAborted()
      await fs.rename(temporary, path)
      const { size: fileSize } = await fs.stat(path)
      return { ...result, fileSize, ...(identifier !== undefined && { identifier }) }
    } catch (error) {
      await fs.remove(temporary)
      throw explain(error, path, signal)
    }
  } finally {
    await source.close()
  }
}

/** Removes the image that {@link convertDisk} made. */
export async function undoConvertDisk({ changed, path }: ConvertDiskResult): Promise<void> {
  if (changed) await fs.remove(path)
}

/** Describes a disk image, or each disk of an OVA. Reads only. */
export async function inspectDisk(
  { from, disk }: { from: string; disk?: number | string | undefined },
): Promise<DiskDescription[]> {
  const names = disk === undefined ? await listDisks(from) : [disk]
  const descriptions: DiskDescription[] = []
  for (const name of names) {
    const { image, member, close } = await openDisk(from, name)
    try {
      const { format, variant, virtualSize, allocatedSize, identifier } = image
      descriptions.push({
        ...(member && { member: member.name }),
        ...{ format, variant, virtualSize, allocatedSize },
        ...(identifier !== undefined && { identifier }),
        ...await readLayout(image),
      })
    } finally {
      await close()
    }
  }
  return descriptions
}

interface Opened {
  image: Image
  member: Member | undefined
  warnings: string[]
  /** Rejects when the source is not what it was, or not what its manifest says. */
  verify: () => Promise<void>
  close: () => Promise<void>
}

async function openDisk(path: string, disk: number | string | undefined): Promise<Opened> {
  const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
    throw new Error(`Cannot read "${path}": there is no such file`)
  })
  try {
    const before = await file.stat()
    const bytes = fileBytes(path, file, before.size)
    const unchanged = async () => {
      const { size, mtimeMs } = await file.stat()
      if (size === before.size && mtimeMs === before.mtimeMs) return
      throw new Error(
        `Cannot convert "${path}": it was changed while it was read. Shut the VM down and run again`,
      )
    }
    if (!await isTar(bytes)) {
      const image = await openImage(bytes, path)
      return {
        image,
        member: undefined,
        warnings: [],
        verify: unchanged,
        close: () => file.close(),
      }
    }
    const members = await listMembers(bytes)
    const disks = members.filter(({ name }) => DISK.test(name))
    const wanted = typeof disk === 'number'
      ? disks[disk]
      : disk === undefined && disks.length === 1
      ? disks[0]
      : disks.find(({ name }) => name === disk)
    if (!wanted) {
      const names = disks.map(({ name }, index) => `${index}: ${name}`).join(', ') || 'none'
      throw new Error(
        `Cannot tell which disk of "${path}" is meant: its disks are ${names}. Run again with --disk NAME`,
      )
    }
    const listed = members.some(({ name }) => name.toLowerCase().endsWith('.mf'))
    return {
      image: await openImage(member(bytes, wanted), wanted.name),
      member: wanted,
      warnings: listed
        ? []
        : [`"${basename(path)}" has no manifest, so damage to it cannot be seen`],
      verify: async () => {
        await unchanged()
        if (await verifyMember(bytes, members, wanted) !== false) return
        throw new Error(
          `Cannot convert "${wanted.name}" of "${path}": it is not as the manifest lists it. Copy the OVA again`,
        )
      },
      close: () => file.close(),
    }
  } catch (error) {
    await file.close()
    throw error
  }
}

const DISK = /\.(vmdk|vdi|vhd|vhdx|img|raw)$/i

async function listDisks(path: string): Promise<(number | undefined)[]> {
  const file = await open(path, 'r').catch(() => undefined)
  if (!file) return [undefined]
  try {
    const bytes = fileBytes(path, file, (await file.stat()).size)
    if (!await isTar(bytes)) return [undefined]
    return (await listMembers(bytes)).filter(({ name }) => DISK.test(name)).map((_, index) => index)
  } finally {
    await file.close()
  }
}

/** Opens an image by its content. An extension that promises a format the content lacks means damage. */
async function openImage(bytes: Bytes, path: string): Promise<Image> {
  if (await isVdi(bytes)) return await openVdi(bytes)
  if (await isVmdk(bytes)) return await openVmdk(bytes)
  const start = bytes.size < 8 ? '' : (await bytes.read(0, 8)).toString('latin1')
  const end = bytes.size < 512 ? '' : (await bytes.read(bytes.size - 512, 8)).toString('latin1')
  if (start === 'vhdxfile' || start === 'conectix' || end === 'conectix') {
    throw new ImageError(
      bytes,
      0,
      'it is a VHD or VHDX already. On Windows, Convert-VHD converts between the two',
    )
  }
  const extension = extname(path).toLowerCase()
  if (['.vdi', '.vmdk', '.vhd', '.vhdx', '.ova', '.qcow2'].includes(extension)) {
    throw new ImageError(
      bytes,
      0,
      `it does not begin as a ${extension.slice(1).toUpperCase()} does`,
    )
  }
  if (bytes.size === 0) throw new ImageError(bytes, 0, 'it is empty')
  return openRaw(bytes)
}

function fileBytes(name: string, file: FileHandle, size: number): Bytes {
  return {
    name,
    size,
    read: async (position, length) => {
      const data = Buffer.allocUnsafe(length)
      let done = 0
      while (done < length) {
        const { bytesRead } = await file.read(data, done, length - done, position + done)
        if (bytesRead === 0) throw new ImageError({ name }, position + done, 'the file ends there')
        done += bytesRead
      }
      return data
    },
  }
}

/** How many extents are read, decompressed and written at once: enough to keep the thread pool busy. */
const AT_ONCE = 8

async function copy(
  image: Image,
  writer: Writer,
  { onProgress, signal }: ConvertDiskOptions,
): Promise<void> {
  const total = image.allocatedSize
  let done = 0
  // writers give out places as they are asked, so they are asked in order: equal disks, equal files
  let turn = Promise.resolve()
  const work = async (extent: Extent) => {
    const mine = turn
    let next = () => {}
    turn = new Promise((resolve) => (next = resolve))
    let writing: Promise<void> | undefined
    try {
      const data = await extent.load()
      await mine
      if (!isZero(data)) writing = writer.write(extent.offset, data)
    } finally {
      next()
    }
    await writing
    done += extent.length
    onProgress?.({ done, total })
  }
  const extents = image.extents()[Symbol.asyncIterator]()
  let failed = false
  const worker = async () => {
    try {
      for (let next = await extents.next(); !next.done && !failed; next = await extents.next()) {
        signal?.throwIfAborted()
        await work(next.value)
      }
    } catch (error) {
      failed = true
      throw error
    }
  }
  const results = await Promise.allSettled(Array.from({ length: AT_ONCE }, worker))
  for (const result of results) if (result.status === 'rejected') throw result.reason
}

async function runEngine(
  engine: 'qemu-img' | 'vboxmanage',
  from: string,
  to: string,
  { format, type, image, member }: {
    format: Format
    type: 'dynamic' | 'fixed'
    image: Image
    member: Member | undefined
  },
): Promise<void> {
  const program = engine === 'qemu-img' ? 'qemu-img' : 'VBoxManage'
  if (member) {
    throw new Error(
      `Cannot convert out of an OVA with ${program}: it reads files. Run: tar -xf "${from}" "${member.name}", or use --engine embedded`,
    )
  }
  if (engine === 'vboxmanage' && format === 'vhdx') {
    throw new Error(
      'Cannot write VHDX with VBoxManage: it has no such format. Use --format vhd or --engine embedded',
    )
  }
  const subformat = `subformat=${type}`
  const args = engine === 'qemu-img'
    ? [
      ...['convert', '-f', image.format, '-O', { vhdx: 'vhdx', vhd: 'vpc', raw: 'raw' }[format]],
      // without force_size the disk grows to whole cylinders
      ...(format === 'raw'
        ? []
        : ['-o', format === 'vhd' ? `${subformat},force_size=on` : subformat]),
      ...['--', from, to],
    ]
    : [
      ...['clonemedium', 'disk', resolve(from), to, '--format', format.toUpperCase()],
      ...['--variant', type === 'fixed' ? 'Fixed' : 'Standard'],
    ]
  const { exitCode, stderr } = await $({ quiet: true, nothrow: true })`${program} ${args}`
  if (exitCode === 0) return
  throw new Error(
    exitCode === 127 || exitCode === null
      ? `Cannot convert with ${program}: no such program is on PATH. Use --engine embedded, or install it`
      : `Cannot convert "${from}" with ${program}: ${stderr.trim().split('\n').at(-1)}`,
  )
}

function formatOf(path: string): Format {
  const format = extname(path).slice(1).toLowerCase()
  if (format === 'img') return 'raw'
  if (format === 'vhdx' || format === 'vhd' || format === 'raw') return format
  throw new Error(
    `Cannot tell the format of "${path}" by its extension. Run again with --format vhdx, vhd or raw`,
  )
}

async function refuseTarget(from: string, to: string, force: boolean): Promise<void> {
  const target = await fs.stat(to).catch(() => undefined)
  if (!target) return
  const source = await fs.stat(from).catch(() => undefined)
  if (source && source.ino === target.ino && source.dev === target.dev) {
    throw new Error(`Cannot convert "${from}" to itself. Name another file by --to`)
  }
  if (!target.isFile()) throw new Error(`Cannot write "${to}": it is no file. Name a file by --to`)
  if (!force) {
    throw new Error(`Cannot write "${to}": the file is there. Remove it, or run again with --force`)
  }
}

function refuseSize(virtualSize: number, format: Format, to: string): void {
  const most = { vhdx: MAX_VHDX, vhd: MAX_VHD, raw: Number.POSITIVE_INFINITY }[format]
  if (virtualSize <= most) return
  throw new Error(
    `Cannot write "${to}": a ${format.toUpperCase()} holds ${most} bytes at most, and the disk has ${virtualSize}` +
      (format === 'vhd' ? '. Use --format vhdx' : ''),
  )
}

async function refuseSpace(path: string, needed: number): Promise<void> {
  let folder = dirname(path)
  while (!await fs.pathExists(folder)) folder = dirname(folder)
  const { bavail, bsize } = await statfs(folder)
  if (bavail * bsize >= needed) return
  throw new Error(
    `Cannot write "${path}": it may take ${needed} bytes, and ${bavail * bsize} are free there. ` +
      'Name a file on another volume by --to',
  )
}

/** What a killed run left: its process is gone, and only this kit names files so. */
async function removeLeftovers(path: string): Promise<void> {
  const names = await fs.readdir(dirname(path)).catch(() => [])
  for (const name of names) {
    if (!name.startsWith(`${basename(path)}.`)) continue
    const pid = Number(
      name.slice(basename(path).length).match(/^\.(\d+)-[0-9a-f]{8}\.partial$/)?.[1] ?? 0,
    )
    if (pid && !alive(pid)) await fs.remove(join(dirname(path), name))
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function uuids(seed: string | undefined): () => Buffer {
  let count = 0
  return () => {
    const data = seed === undefined
      ? randomBytes(16)
      : createHash('sha256').update(`${seed}\0${count++}`).digest().subarray(0, 16)
    data[6] = ((data[6] as number) & 0x0f) | 0x40
    data[8] = ((data[8] as number) & 0x3f) | 0x80
    return data
  }
}

function explain(error: unknown, path: string, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return new Error(`Stopped: "${path}" was not written`, { cause: error })
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ENOSPC') {
    return new Error(
      `Cannot write "${path}": the disk is full. Free space, or name a file on another volume by --to`,
      {
        cause: error,
      },
    )
  }
  return error
}

await command(
  import.meta,
  'Convert a disk image to VHDX, VHD or raw',
  {
    from: {
      type: 'string',
      demandOption: true,
      describe: 'VDI, VMDK, raw, or an OVA',
      example: 'Win10.vdi',
    },
    to: { type: 'string', describe: 'The image to write', example: 'Win10.vhdx' },
    format: { choices: ['vhdx', 'vhd', 'raw'], describe: 'Default: by the extension of --to' },
    type: { choices: ['dynamic', 'fixed'], describe: 'Default: dynamic' },
    disk: { type: 'string', describe: 'Which disk of an OVA: its place, from 0, or its name' },
    engine: { choices: ['embedded', 'qemu-img', 'vboxmanage'], describe: 'Default: embedded' },
    force: { type: 'boolean', describe: 'Replace an existing target, in the end' },
    seed: { type: 'string', describe: 'Fixes the identifiers of the result' },
    info: { type: 'boolean', describe: 'Only describe the source' },
    dryRun,
  },
  async ({ info, disk, ...options }: ConvertDiskOptions & { info?: boolean }) => {
    const which = disk !== undefined && /^\d+$/.test(String(disk)) ? Number(disk) : disk
    if (info) return await inspectDisk({ from: options.from, disk: which })
    if (!options.to) {
      throw new Error(
        'Cannot convert: no target is named. Run again with --to FILE, or with --info',
      )
    }
    return await convertDisk({ ...options, disk: which })
  },
)
