#!/usr/bin/env zx
/** Convert a disk image to one that Hyper-V takes, or back, straight out of an OVA too. */
import filenamify from 'filenamify'
import { createHash, randomUUID } from 'node:crypto'
import { writeSync } from 'node:fs'
import { type FileHandle, open, rm, rmdir, stat } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { basename, extname, join, parse, resolve } from 'node:path'
import process from 'node:process'
import { setImmediate } from 'node:timers/promises'
import type { Volume } from './convert-disk/contents.ts'
import {
  Checkpoint,
  isWritten,
  lengthOf,
  reach,
  type Reached,
  reachNothing,
  restore,
} from './convert-disk/checkpoint.ts'
import { compare, copy, type Written } from './convert-disk/copy.ts'
import { refuseEngine, runEngine } from './convert-disk/engine.ts'
import { flusher, type Pace } from './convert-disk/flush.ts'
import { uuidText } from './convert-disk/header.ts'
import { type Image, KB, MB, printable, WINDOW, type Writer } from './convert-disk/image.ts'
import { type Layout, readLayout } from './convert-disk/partitions.ts'
import { writeRaw } from './convert-disk/raw.ts'
import { listDisks, openSource, openWritten, type Source } from './convert-disk/source.ts'
import {
  checkpointOf,
  nearestFolder,
  refuseSpace,
  refuseTarget,
  removeLeftovers,
  sizeOfLeftovers,
  writeWhole,
} from './convert-disk/target.ts'
import { writeVdi } from './convert-disk/vdi.ts'
import { MAX_VHD, writeVhd } from './convert-disk/vhd.ts'
import { chooseBlockSize, MAX_VHDX, writeVhdx } from './convert-disk/vhdx.ts'
import { clearSparse, refuseVolume } from './convert-disk/volume.ts'
import { command, ConnectionError, dryRun, onWindows, type PowerShell, powershell } from './task.ts'

export type Format = 'vhdx' | 'vhd' | 'vdi' | 'raw'

export interface ConvertDiskOptions {
  /**
   * A VDI, VMDK (its descriptor, when it has extents), VHD, VHDX or raw image, or an OVA or OVF whose
   * disk is meant. What a file is, its content says. A snapshot is read with its parents.
   */
  from: string
  to: string
  /** @default by the extension of `to`; .img is raw */
  format?: Format | undefined
  /** `fixed` has all its blocks from the start. A raw image is always so. @default 'dynamic' */
  type?: 'dynamic' | 'fixed' | undefined
  /** What `from` is, when its content does not tell, or its name is wrong. @default by its content */
  fromFormat?: Image['format'] | undefined
  /** Which disk of an OVA or OVF: its place, from 0, or its name. Needed when there are several. */
  disk?: number | string | undefined
  /** Bytes of a block of a VHDX: a power of two from 1 MB to 256 MB. @default by the guest */
  blockSize?: number | undefined
  /** Who converts. @default 'embedded' */
  engine?: 'embedded' | 'qemu-img' | 'vboxmanage' | undefined
  /** Replace an existing target, in the end. @default false */
  force?: boolean | undefined
  /** Fixes the identifiers, so that the same disk gives the same file. */
  seed?: string | undefined
  /** Compare every byte of the result with the source before it gets its name. @default false */
  verify?: boolean | undefined
  /**
   * Go on where the same conversion was stopped or killed before, and leave what is written when this one
   * is. What went wrong in another way begins anew, a full volume too, because others need its room.
   * With other engines, and where a source, option or what is there is another, it begins at 0; a disk
   * that is compressed as a whole in an OVA (.gz) is inflated anew, and manifests are compared whole.
   * A target that is there, and byte by byte holds the disk, is done already. @default false
   */
  resume?: boolean | undefined
  /** Check all that can be checked before, and write nothing. @default false */
  dryRun?: boolean | undefined
  /** Hears how far the work is; percent, rate and time left follow from that. Not with other engines. */
  onProgress?: ((progress: ConvertDiskProgress) => void) | undefined
  /** Stops the work: nothing is left behind but for `resume`, and it rejects. */
  signal?: AbortSignal | undefined
}

export interface ConvertDiskProgress {
  /** Of the bytes that may hold data; what is known to be empty counts in neither. */
  done: number
  total: number
  unit: 'bytes'
  /** `verify` begins again at 0 when `read` is through. */
  phase: 'read' | 'verify'
  /** Of `done`, what a run of before has read, from which this one goes on. */
  resumed?: number
}

export interface ConvertDiskResult {
  changed: boolean
  /** Absolute. */
  path: string
  format: Format
  type: 'dynamic' | 'fixed'
  /** Bytes of the virtual disk. */
  virtualSize: number
  /** Bytes that may hold data and were read by a run of before, from which this one went on. */
  resumedAt?: number
  /** Bytes of data that were written, by it too; absent on a dry run and with other engines. */
  dataBytes?: number
  /** Bytes of the file; on a dry run the most that it may take. */
  fileSize: number
  /** The new image's own identifier; a raw image has none. */
  identifier?: string
  /** Bytes of a block of a VHDX, and why so many. */
  blockSize?: number
  blockSizeReason?: string
  source: {
    format: Image['format']
    variant: string
    virtualSize: number
    allocatedSize: number
    identifier?: string
    /** Of a snapshot: it and its parents, the last parent first. */
    chain?: string[]
  }
  /** What is worth knowing, e.g. that an OVA has no manifest. */
  warnings: string[]
}

export interface DiskDescription extends Layout {
  /** The name of a disk of an OVA or OVF. */
  member?: string
  format: Image['format']
  /** As the format's specification names it, e.g. `dynamic` or `streamOptimized`. */
  variant: string
  /** Bytes of the virtual disk. */
  virtualSize: number
  /** Bytes of it that may hold data. */
  allocatedSize: number
  identifier?: string
  /** Of a snapshot: it and its parents, the last parent first. */
  chain?: string[]
  /** What its partitions hold, in their order. */
  volumes: Volume[]
}

/**
 * Converts a disk image. The source is only read. The target is written under a temporary name,
 * synced, read again, and renamed in the end.
 * Rejects, and leaves nothing behind, when the source is damaged, is not as its manifest says or
 * changes meanwhile, when the target cannot be written, and when Hyper-V would refuse it.
 */
export async function convertDisk(
  options: ConvertDiskOptions,
  /** Asks Windows about the target's folder. @default on Windows and in WSL, its PowerShell */
  ps: PowerShell | undefined = onWindows() ? powershell : undefined,
  pace: Pace = {},
): Promise<ConvertDiskResult> {
  const { from, to, disk, fromFormat, engine = 'embedded', force = false } = options
  const format = options.format ?? formatOf(to)
  const type = format === 'raw' ? 'fixed' : options.type ?? 'dynamic'
  const path = resolve(to)
  refuseBlockSize(options.blockSize, format, engine)
  const folder = await nearestFolder(path) ?? tmpdir()
  const source = await openSource(from, { disk, format: fromFormat, folder })
  try {
    const { image, allocatedSize, windows, warnings } = source
    if (await source.has(path)) {
      throw new Error(`Cannot convert "${printable(from)}" to itself. Name another file by --to`)
    }
    const there = options.resume === true && await isFile(path)
    if (!there) await refuseTarget(path, force)
    await source.refuseInUse()
    const virtualSize = Math.ceil(image.virtualSize / 512) * 512
    if (virtualSize !== image.virtualSize) {
      warnings.push(
        `The disk has ${image.virtualSize} bytes, no whole number of sectors: ` +
          `${virtualSize - image.virtualSize} zeros were added`,
      )
    }
    refuseDisk(image, virtualSize, format, path)
    if (engine !== 'embedded') refuseEngine({ engine, source, format })
    const block = format === 'vhdx' && engine === 'embedded'
      ? await blockSizeOf(image, virtualSize, options.blockSize)
      : undefined
    const blocks = windows * Math.max(WINDOW, block?.blockSize ?? 0)
    const whole = type === 'fixed' && (format !== 'raw' || process.platform === 'win32')
    const most = 24 * MB + (whole ? virtualSize : Math.min(blocks, virtualSize))
    const wanted = {
      ...options,
      ...{ format, type, path, virtualSize, blockSize: block?.blockSize },
    }
    const done = there ? await findDone(source, wanted) : undefined
    if (there && !done) await refuseTarget(path, force)
    if (!done) await refuseSpace(path, most)
    let asked = ps
    try {
      if (ps) warnings.push(...await refuseVolume({ path, folder, most }, ps))
    } catch (error) {
      // a PowerShell that cannot run is no reason to be without the disk
      if (!(error instanceof ConnectionError)) throw error
      asked = undefined
      warnings.push(
        `Nobody looked whether the files in "${
          printable(folder)
        }" are sparse, compressed or encrypted, ` +
          `which Hyper-V refuses (0xC03A001A): ${error.message}`,
      )
    }
    const { format: sourceFormat, variant, identifier, chain } = image
    const result = {
      changed: true,
      path,
      format,
      type,
      virtualSize,
      source: {
        format: sourceFormat,
        variant,
        virtualSize: image.virtualSize,
        allocatedSize,
        ...(identifier !== undefined && { identifier }),
        ...(chain && { chain }),
      },
      ...block,
      warnings,
    }
    if (done) return { ...result, changed: false, ...done }
    if (options.dryRun) return { ...result, fileSize: most }
    const written = await write(source, wanted, asked, pace)
    return { ...result, ...written }
  } finally {
    await source.close()
  }
}

/**
 * Converts each disk of an OVA or OVF, into a folder, named as in there. As {@link convertDisk}; when one
 * fails, those of before are removed again, unless they replaced others or the run is to be gone on with.
 */
export async function convertDisks(
  { to, format = 'vhdx', ...options }: Omit<ConvertDiskOptions, 'disk'>,
): Promise<ConvertDiskResult[]> {
  const names = await listDisks(options.from)
  if (!names) {
    throw new Error(
      `Cannot convert all disks of "${printable(options.from)}": it is no OVA or OVF. ` +
        'Run again without --disk',
    )
  }
  const file = nameFiles(names, format)
  const all = names.map((disk, index) => ({
    ...options,
    ...{ disk: index, format, to: join(to, file(disk)) },
  }))
  const results: ConvertDiskResult[] = []
  // all refusals before the first disk
  for (const one of all) results.push(await convertDisk({ ...one, dryRun: true }))
  if (options.dryRun) return results
  const there = await stat(to).catch(() => undefined)
  const made: ConvertDiskResult[] = []
  try {
    for (const [index, one] of all.entries()) {
      if (results[index]?.changed) made.push(results[index] = await convertDisk(one))
    }
    return results
  } catch (error) {
    const kept = options.force || options.resume && options.signal?.aborted
    if (!kept) { for (const one of made) await undoConvertDisk(one) }
    if (!there) await rmdir(to).catch(() => {}) // unless there is something in it
    throw error
  }
}

/** File names that Windows takes: the disks' own with another extension, where that is enough. */
function nameFiles(disks: string[], format: Format): (disk: string) => string {
  const extension = format === 'raw' ? '.img' : `.${format}`
  const whole = (disk: string) => filenamify(basename(disk), { replacement: '_', maxLength: 200 })
  const short = (disk: string) => parse(whole(disk)).name
  const twice = new Set(disks.map((disk) => short(disk).toLowerCase())).size < disks.length
  return (disk) => (twice ? `${disks.indexOf(disk)}-${whole(disk)}` : short(disk)) + extension
}

/**
 * Removes the image that {@link convertDisk} made. Rejects when there is another one by now; one that a
 * VM has written to is still the one.
 */
export async function undoConvertDisk(
  { changed, path, format, virtualSize, identifier }: ConvertDiskResult,
): Promise<{ changed: boolean; path: string }> {
  if (!changed || !await stat(path).catch(() => undefined)) {
    return { changed: changed && await removeLeftovers(path), path }
  }
  const same = await openWritten(path, format).then(async ({ image, close }) => {
    await close()
    return image.virtualSize === virtualSize && image.identifier === identifier
  }, () => false)
  if (!same) {
    throw new Error(
      `Cannot remove "${printable(path)}": it is not the disk that was written there. ` +
        'Look at it, and remove it by hand',
    )
  }
  await rm(path)
  return { changed: true, path }
}

/** Bytes that a conversion takes which was stopped or killed; 0 when there is none. */
export async function sizeOfUnfinished({ to }: Pick<ConvertDiskOptions, 'to'>): Promise<number> {
  return await sizeOfLeftovers(resolve(to))
}

/**
 * Removes what a conversion that was stopped or killed left for `resume`. Leaves what a process is at
 * work on.
 */
export async function undoUnfinishedConvertDisk(
  { to }: Pick<ConvertDiskOptions, 'to'>,
): Promise<{ changed: boolean; path: string }> {
  const path = resolve(to)
  return { changed: await removeLeftovers(path), path }
}

/** Describes a disk image, or each disk of an OVA or OVF. Reads only. */
export async function inspectDisk(
  { from, fromFormat, disk }: Pick<ConvertDiskOptions, 'from' | 'fromFormat' | 'disk'>,
): Promise<DiskDescription[]> {
  const { readVolumes } = await import('./convert-disk/contents.ts') // converting needs none of it
  const disks = disk !== undefined ? [disk] : fromFormat ? undefined : await listDisks(from)
  const descriptions: DiskDescription[] = []
  for (const which of disks ?? [undefined]) {
    const options = { disk: which, format: fromFormat, folder: tmpdir() }
    const { image, allocatedSize, member, close } = await openSource(from, options)
    try {
      const { format, variant, virtualSize, identifier, chain } = image
      const layout = await readLayout(image)
      const name = member?.name ?? (typeof which === 'string' ? which : undefined)
      descriptions.push({
        ...(name !== undefined && { member: name }),
        ...{ format, variant, virtualSize, allocatedSize },
        ...(identifier !== undefined && { identifier }),
        ...(chain && { chain }),
        ...layout,
        volumes: await readVolumes(image, layout),
      })
    } finally {
      await close()
    }
  }
  return descriptions
}

type Wanted = ConvertDiskOptions & {
  format: Format
  type: 'dynamic' | 'fixed'
  path: string
  virtualSize: number
}

const isFile = (path: string) => stat(path).then((found) => found.isFile(), () => false)

/** What a run of before has come to its end with; undefined unless every byte of the disk is there. */
async function findDone(
  source: Source,
  { path, format, type, virtualSize, signal, onProgress }: Wanted,
): Promise<Pick<ConvertDiskResult, 'fileSize' | 'identifier'> | undefined> {
  const written = await openWritten(path, format).catch(() => undefined)
  if (!written) return undefined
  const { image, close } = written
  try {
    const variant = format === 'raw' ? 'flat' : type
    if (image.variant !== variant || image.virtualSize !== virtualSize) return undefined
    const failure = new AbortController()
    const either = AbortSignal.any([failure.signal, ...(signal ? [signal] : [])])
    const onBytes = count('verify', source.allocatedSize, onProgress)
    const comparing = compare(image, source.image, { onBytes, signal: either })
    const [differs] = await allOrNone([comparing, source.verify(either)], failure)
    if (differs !== undefined) return undefined
    await source.refuseChanged()
    const { size: fileSize } = await stat(path)
    return { fileSize, ...(image.identifier !== undefined && { identifier: image.identifier }) }
  } catch (cause) {
    if (!signal?.aborted) throw cause
    throw new Error(`Stopped: "${printable(path)}" was not compared to its end`, { cause })
  } finally {
    await close()
  }
}

/** Writes the target, whole or not at all. */
async function write(
  source: Source,
  wanted: Wanted,
  ps: PowerShell | undefined,
  pace: Pace,
): Promise<Pick<ConvertDiskResult, 'resumedAt' | 'dataBytes' | 'fileSize' | 'identifier'>> {
  const { from, format, type, path, virtualSize, engine = 'embedded', force = false } = wanted
  const resume = engine === 'embedded' && wanted.resume === true
  // when copying fails nobody waits for the digest, and the other way round
  const failure = new AbortController()
  const signals = [failure.signal, ...(wanted.signal ? [wanted.signal] : [])]
  const signal = AbortSignal.any(signals)
  const whole = { path, force, signal: wanted.signal, resume }
  return await writeWhole(whole, async (temporary, found) => {
    signal.throwIfAborted()
    const converting: Promise<Converted | void> = engine === 'embedded'
      ? convert(source, { temporary, found }, wanted, signal, pace)
      : runEngine({ engine, source, format, type, signal }, from, temporary)
    const [converted] = await allOrNone([converting, source.verify(signal)], failure)
    if (engine !== 'embedded') await sync(temporary)
    if (ps) await clearSparse(temporary, ps)
    await source.refuseChanged()
    const { image, close } = await openWritten(temporary, format)
    try {
      // engines other than this have their own ideas of sizes
      if (image.virtualSize !== virtualSize) {
        throw new Error(
          `Cannot convert "${
            printable(from)
          }" with ${engine}: it made a disk of ${image.virtualSize} bytes, ` +
            `and ${virtualSize} it must be. Run again with --engine embedded`,
        )
      }
      if (wanted.verify) await refuseDifference(source, image, wanted, signal)
      const { size: fileSize } = await stat(temporary)
      return {
        ...converted,
        fileSize,
        ...(image.identifier !== undefined && { identifier: image.identifier }),
      }
    } finally {
      await close()
    }
  })
}

const WRITERS = { vhdx: writeVhdx, vhd: writeVhd, vdi: writeVdi, raw: writeRaw }

type Converted = Pick<ConvertDiskResult, 'resumedAt' | 'dataBytes'>

async function convert(
  source: Source,
  { temporary, found }: { temporary: string; found: boolean },
  wanted: Wanted,
  signal: AbortSignal,
  pace: Pace,
): Promise<Converted> {
  const { image, allocatedSize: total } = source
  const { virtualSize, onProgress } = wanted
  const checkpoint = wanted.resume ? await checkpointFor(source, wanted, temporary) : undefined
  const begun = found && checkpoint ? await goOn(image, temporary, wanted, checkpoint) : undefined
  if (found && !begun) {
    await checkpoint?.remove()
    // not cut to nothing: another may have it open, which this machine does not see
    await rm(temporary)
  }
  const file = begun?.file ?? await open(temporary, 'wx+')
  try {
    const { writer, length } = begun ?? { writer: makeWriter(image, file, wanted), length: 0 }
    const { blockSize } = writer
    const at = begun?.reached ?? reachNothing(virtualSize, blockSize)
    // what came after the checkpoint goes; ext4 would flush a file that was cut to nothing when it is closed
    if (begun) await file.truncate(length)
    if (length < writer.length) await file.truncate(writer.length)
    const { done: resumedAt, dataBytes: before } = at
    if (resumedAt > 0) count('read', total, onProgress, resumedAt)(0)
    const keep = () => {
      const kept = { ...at, blocks: Buffer.from(at.blocks) }
      const length = lengthOf(writer, kept.last)
      // a scanner may have it open for a moment: then the one of before holds
      return async () => void await checkpoint?.save(kept, length).catch(() => {})
    }
    const flush = flusher(file, pace, checkpoint && keep)
    const put = async ({ position, data }: { position: number; data: Buffer }) => {
      await writeAll(file, data, position)
      flush.written(data.length)
    }
    const work = {
      from: at.end,
      onBytes: count('read', total, onProgress, resumedAt),
      onWritten: checkpoint && ((written: Written) => {
        reach(at, written, blockSize)
        flush.written(0)
      }),
      signal,
    }
    const written = await copy(image, writer, put, work).catch(async (error) => {
      if (wanted.signal?.aborted && at.end > 0) {
        await flush.end()
        await keep()()
      }
      throw error
    })
    await writer.finish()
    await flush.end()
    if (checkpoint) await keep()()
    return { ...(resumedAt > 0 && { resumedAt }), dataBytes: before + written }
  } finally {
    await file.close()
  }
}

function makeWriter(image: Image, file: FileHandle, wanted: Wanted): Writer {
  const { format, type, virtualSize, blockSize, seed } = wanted
  const uuid = uuids(seed)
  const { sectorSize } = image
  return WRITERS[format]({ file, virtualSize, sectorSize, type, blockSize, uuid })
}

/** All on which depends what is written, and where; identifiers come last. */
async function checkpointFor(
  source: Source,
  { format, type, virtualSize, blockSize }: Wanted,
  temporary: string,
): Promise<Checkpoint> {
  // what process is at work on a file, another machine cannot tell
  const machine = [hostname(), process.platform]
  const parts = [machine, await source.identity(), format, type, virtualSize, blockSize]
  return new Checkpoint(checkpointOf(temporary), parts)
}

interface Begun {
  file: FileHandle
  writer: Writer
  reached: Reached
  /** Bytes of the file that can be relied upon. */
  length: number
}

/** What a run of before has written; undefined, and nothing open, when that cannot be relied upon. */
async function goOn(
  image: Image,
  path: string,
  wanted: Wanted,
  checkpoint: Checkpoint,
): Promise<Begun | undefined> {
  const file = await open(path, 'r+').catch(() => undefined)
  if (!file) return undefined
  const writer = makeWriter(image, file, wanted)
  const look = async () => {
    const kept = await checkpoint.read(wanted.virtualSize, writer.blockSize)
    if (!kept) return undefined
    const { reached } = kept
    const length = restore(writer, reached)
    const { size } = await file.stat()
    const fits = length === kept.length && length <= size
    if (!fits || !await isWritten(image, writer, file, reached)) return undefined
    return { file, writer, reached, length }
  }
  const begun = await look().catch(() => undefined)
  if (!begun) await file.close()
  return begun
}

async function refuseDifference(
  { image: source, allocatedSize }: Source,
  target: Image,
  { path, onProgress }: Wanted,
  signal: AbortSignal,
): Promise<void> {
  const onBytes = count('verify', allocatedSize, onProgress)
  const offset = await compare(target, source, { onBytes, signal })
  if (offset === undefined) return
  throw new Error(
    `Cannot write "${printable(path)}": read again, it differs from the source ` +
      `in the ${WINDOW} bytes from byte ${offset} of the disk. Check the volume and the memory of this machine`,
  )
}

/** What another program wrote is only in memory yet, as far as is known. */
async function sync(path: string): Promise<void> {
  const file = await open(path, 'r+')
  await file.sync().finally(() => file.close())
}

/**
 * Bytes that are written at once. Linux takes as large a page for a write as it finds, and up to 32 KB
 * (PAGE_ALLOC_COSTLY_ORDER) it has them at hand. Measured on Linux 6.18 and ext4, in 2.5 GB: where memory is
 * free and in large pieces 128 KB take 0.3 s less of the processor, where it is not 2.4 s more.
 */
const STEP = process.platform === 'linux' ? 32 * KB : 128 * KB

/**
 * Writes here and now. In the thread pool writes to one file wait for each other, spinning, and a hop
 * each costs more than the copy to the page cache that a write is. A write may be cut short, as it is
 * before a volume is full.
 */
async function writeAll({ fd }: FileHandle, data: Buffer, position: number): Promise<void> {
  let start = performance.now()
  for (let done = 0; done < data.length;) {
    const length = Math.min(STEP, data.length - done)
    done += writeSync(fd, data, done, length, position + done)
    if (performance.now() - start < 20) continue
    // a slow volume leaves time for the screen and for Ctrl-C
    await setImmediate()
    start = performance.now()
  }
}

/** Both, or the first error after the other has stopped too. */
async function allOrNone<A, B>(
  works: [Promise<A>, Promise<B>],
  failure: AbortController,
): Promise<[A, B]> {
  let first: { error: unknown } | undefined
  await Promise.all(works.map((work) =>
    work.catch((error) => {
      first ??= { error }
      failure.abort()
    })
  ))
  if (first) throw (first as { error: unknown }).error
  return await Promise.all(works)
}

function count(
  phase: 'read' | 'verify',
  total: number,
  onProgress: ConvertDiskOptions['onProgress'],
  resumed = 0,
): (bytes: number) => void {
  let done = resumed
  const from = resumed > 0 ? { resumed } : {}
  return (bytes) => onProgress?.({ done: done += bytes, total, unit: 'bytes', phase, ...from })
}

function formatOf(path: string): Format {
  const format = extname(path).slice(1).toLowerCase()
  if (format === 'img') return 'raw'
  if (format === 'vhdx' || format === 'vhd' || format === 'vdi' || format === 'raw') return format
  throw new Error(
    `Cannot tell the format of "${printable(path)}" by its extension. ` +
      'Run again with --format vhdx, vhd, vdi or raw',
  )
}

/** Refuses what the format cannot hold, or Hyper-V would not take. */
function refuseDisk(image: Image, virtualSize: number, format: Format, path: string): void {
  const most = { vhdx: MAX_VHDX, vhd: MAX_VHD, vdi: MAX_VHDX, raw: Infinity }[format]
  const refuse = (reason: string) => {
    throw new Error(`Cannot write "${printable(path)}": ${reason}`)
  }
  if (virtualSize > most) {
    refuse(
      `a ${format.toUpperCase()} holds ${most} bytes at most, and the disk has ${virtualSize}` +
        (format === 'vhd' ? '. Use --format vhdx' : ''),
    )
  }
  if (image.sectorSize === 4096 && format !== 'vhdx') {
    refuse('the disk has sectors of 4096 bytes, which only a VHDX can say. Use --format vhdx')
  }
}

function refuseBlockSize(
  blockSize: number | undefined,
  format: Format,
  engine: ConvertDiskOptions['engine'],
): void {
  if (blockSize === undefined) return
  if (format !== 'vhdx' || engine !== 'embedded') {
    throw new Error(
      'Cannot choose a block size: only a VHDX, written by the embedded engine, has that choice. ' +
        'Run again without --block-size',
    )
  }
  if (blockSize >= MB && blockSize <= 256 * MB && Number.isInteger(Math.log2(blockSize))) return
  throw new Error(
    `Cannot write blocks of ${blockSize} bytes: a VHDX has powers of two from 1 MB to 256 MB. ` +
      'Run again with --block-size 32MB, or without',
  )
}

async function blockSizeOf(
  image: Image,
  virtualSize: number,
  asked: number | undefined,
): Promise<{ blockSize: number; blockSizeReason: string }> {
  if (asked !== undefined) return { blockSize: asked, blockSizeReason: 'it was asked for' }
  const { partitions } = await readLayout(image)
  const { blockSize, reason } = chooseBlockSize(virtualSize, partitions)
  return { blockSize, blockSizeReason: reason }
}

/** Random, or as the seed has it: version 4 of RFC 9562. */
function uuids(seed: string | undefined): () => string {
  let count = 0
  return () => {
    if (seed === undefined) return randomUUID()
    const data = createHash('sha256').update(`${seed}\0${count++}`).digest().subarray(0, 16)
    data[6] = ((data[6] as number) & 0x0f) | 0x40
    data[8] = ((data[8] as number) & 0x3f) | 0x80
    return uuidText(data)
  }
}

/** `32MB`, `1m` or a number of bytes. NaN for what is none. */
function bytesOf(text: string): number {
  const [, digits, unit = ''] = text.match(/^(\d+) ?([km]?)b?$/i) ?? []
  return Number(digits) * ({ k: 1024, m: MB }[unit.toLowerCase()] ?? 1)
}

/** Draws progress on a terminal, in one line. */
function draw(): ((progress: ConvertDiskProgress) => void) | undefined {
  if (!process.stderr.isTTY) return undefined
  const start = performance.now()
  let shown = 0
  return ({ done, total, phase, resumed = 0 }) => {
    if (performance.now() - shown < 250 && done < total) return
    shown = performance.now()
    const rate = (done - resumed) / Math.max(1, shown - start) * 1000
    const percent = `${Math.floor(done / total * 100)} %`.padStart(5)
    const left = phase === 'read' && rate > 0 ? `, ${Math.ceil((total - done) / rate)} s left` : ''
    process.stderr.write(`\r${phase} ${percent}, ${Math.round(rate / MB)} MB/s${left}\x1b[K`)
    if (done === total) process.stderr.write('\r\x1b[K')
  }
}

await command(
  import.meta,
  'Convert a disk image to VHDX, VHD, VDI or raw',
  {
    from: {
      type: 'string',
      demandOption: true,
      describe: 'VDI, VMDK, VHD, VHDX, raw, or an OVA or OVF',
      example: 'Win10.vdi',
    },
    to: { type: 'string', describe: 'The image to write', example: 'Win10.vhdx' },
    format: {
      choices: ['vhdx', 'vhd', 'vdi', 'raw'],
      describe: 'Default: by the extension of --to',
    },
    type: { choices: ['dynamic', 'fixed'], describe: 'Default: dynamic' },
    fromFormat: {
      choices: ['vdi', 'vmdk', 'vhd', 'vhdx', 'raw'],
      describe: 'Default: what the content of --from says',
    },
    disk: { type: 'string', describe: 'Which disk of an OVA: its place, from 0, its name, or all' },
    blockSize: { type: 'string', describe: 'Of a VHDX: 1MB to 256MB. Default: by the guest' },
    engine: { choices: ['embedded', 'qemu-img', 'vboxmanage'], describe: 'Default: embedded' },
    verify: { type: 'boolean', describe: 'Compare every byte of the result with the source' },
    force: { type: 'boolean', describe: 'Replace an existing target, in the end' },
    resume: { type: 'boolean', describe: 'Go on where the same command was stopped' },
    seed: { type: 'string', describe: 'Fixes the identifiers of the result' },
    info: { type: 'boolean', describe: 'Only describe the source' },
    dryRun,
  },
  async (given: Omit<ConvertDiskOptions, 'blockSize'> & { blockSize?: string; info?: boolean }) => {
    const { info, disk, blockSize, ...options } = given
    const which = /^\d+$/.test(String(disk)) ? Number(disk) : disk
    const { from, fromFormat } = options
    if (info) {
      return await inspectDisk({ from, fromFormat, disk: which === 'all' ? undefined : which })
    }
    if (!options.to) {
      throw new Error(
        'Cannot convert: no target is named. Run again with --to FILE, or with --info',
      )
    }
    const stop = new AbortController()
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => stop.abort())
    }
    const wanted = {
      ...options,
      blockSize: blockSize === undefined ? undefined : bytesOf(blockSize),
      signal: stop.signal,
      onProgress: draw(),
    }
    return which === 'all'
      ? await convertDisks(wanted)
      : await convertDisk({ ...wanted, disk: which })
  },
)
