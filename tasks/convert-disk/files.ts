/** The files that a source is read from: opened read only, not in use, and the same to the end. */
import { type BigIntStats, constants, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { createHash } from 'node:crypto'
import { type FileHandle, open, realpath, rm, stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import process from 'node:process'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { createGunzip } from 'node:zlib'
import { type Bytes, ImageError, KB, MB, printable } from './image.ts'

export class Files {
  #files: { path: string; file: FileHandle; stat: BigIntStats; alone: boolean }[] = []
  #inflated: { path: string; file: FileHandle }[] = []

  /** Opens a file to read. */
  async open(path: string): Promise<Bytes> {
    const explain = (error: NodeJS.ErrnoException) => {
      const why: Record<string, string> = {
        ENOENT: 'there is no such file',
        EACCES: 'its rights do not let this user read it',
        EPERM: 'its rights do not let this user read it',
        EBUSY: 'another program has it open. Shut the VM down and run again',
      }
      const reason = why[error.code ?? ''] ?? error.message
      throw new Error(`Cannot read "${printable(path)}": ${reason}`, { cause: error })
    }
    // a pipe would never open, and devices mind being opened
    if (!(await stat(path).catch(explain)).isFile()) {
      throw new Error(`Cannot read "${printable(path)}": it is no file. Name a disk image`)
    }
    // on Windows this very file would be one that is open
    const alone = process.platform !== 'win32' || await this.has(path) || await isAlone(path)
    const file = await open(path, 'r').catch(explain)
    const found = await file.stat({ bigint: true })
    this.#files.push({ path, file, stat: found, alone })
    return fileBytes(path, file, Number(found.size))
  }

  /**
   * Inflates a gzip stream into a file of its own at `path`, because the tables of an image may stand
   * anywhere in it; the file goes when the source is closed. Rejects beyond `most` bytes.
   */
  async inflate(packed: Bytes, path: string, most: number): Promise<Bytes> {
    const file = await open(path, 'wx+')
    this.#inflated.push({ path, file })
    // so that it goes even when this process is killed; Windows keeps the name of an open file
    if (process.platform !== 'win32') await rm(path)
    const inflated = Readable.from(chunks(packed)).on('error', (error) => gunzip.destroy(error))
    const gunzip = createGunzip({ chunkSize: MB })
    let size = 0
    try {
      for await (const data of inflated.pipe(gunzip) as AsyncIterable<Buffer>) {
        if (size + data.length > most) {
          throw new ImageError(packed, 0, `it inflates to more than the ${most} bytes of its disk`)
        }
        for (let done = 0; done < data.length;) {
          const left = data.length - done
          done += (await file.write(data, done, left, size + done)).bytesWritten
        }
        size += data.length
      }
    } catch (error) {
      if (!/^(Z_|ERR_STREAM)/.test((error as NodeJS.ErrnoException).code ?? '')) throw error
      throw new ImageError(packed, 0, 'it is gzip, and damaged or cut short')
    } finally {
      inflated.destroy()
    }
    return fileBytes(packed.name, file, size)
  }

  /** Takes over what another has opened. */
  adopt(other: Files): void {
    this.#files.push(...other.#files.splice(0))
    this.#inflated.push(...other.#inflated.splice(0))
  }

  /** Rejects when a program had a file open for writing, as a running VM has its disks. */
  async refuseInUse(): Promise<void> {
    for (const { path, alone } of this.#files) {
      const user = alone ? await writerOf(path) : 'another program'
      if (user === undefined) continue
      throw new Error(
        `Cannot convert "${printable(path)}": ${user} has it open for writing. ` +
          'Shut the VM down, and run again',
      )
    }
  }

  async refuseChanged(): Promise<void> {
    for (const { path, file, stat } of this.#files) {
      const now = await file.stat({ bigint: true })
      if (now.size === stat.size && now.mtimeNs === stat.mtimeNs) continue
      throw new Error(
        `Cannot convert "${
          printable(path)
        }": it was changed while it was read. Shut the VM down and run again`,
      )
    }
  }

  /**
   * Which files are read: equal while nobody has written to one of them. Of content their beginnings are
   * looked at, where most formats have what changes with each writing.
   */
  async identity(): Promise<string[][]> {
    return await Promise.all(this.#files.map(async ({ path, file, stat }) => {
      const { size, mtimeNs, ctimeNs } = stat
      const start = Buffer.alloc(Math.min(Number(size), 64 * KB))
      await fileBytes(path, file, start.length).read(0, start.length, start)
      const header = createHash('sha256').update(start).digest('hex')
      return [resolve(path), String(size), String(mtimeNs), String(ctimeNs), header]
    }))
  }

  /** Whether a file is one of those that are read, by whatever name. */
  async has(path: string): Promise<boolean> {
    const other = await stat(path, { bigint: true }).catch(() => undefined)
    return this.#files.some(({ stat }) => other?.ino === stat.ino && other.dev === stat.dev)
  }

  async close(): Promise<void> {
    await Promise.all(this.#files.splice(0).map(({ file }) => file.close()))
    for (const { path, file } of this.#inflated.splice(0)) {
      await file.close()
      await rm(path, { force: true })
    }
  }
}

function fileBytes(name: string, file: FileHandle, size: number): Bytes {
  return {
    name,
    size,
    read: async (position, length, into = Buffer.allocUnsafe(length)) => {
      for (let done = 0; done < length;) {
        const { bytesRead } = await file.read(into, done, length - done, position + done)
        if (bytesRead === 0) throw new ImageError({ name }, position + done, 'the file ends there')
        done += bytesRead
      }
      return into
    },
  }
}

async function* chunks(bytes: Bytes): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.size; at += MB) {
    yield await bytes.read(at, Math.min(MB, bytes.size - at))
  }
}

/** The program that has a file open for writing, as far as this user may know. */
async function writerOf(path: string): Promise<string | undefined> {
  // VMware puts its locks into a folder beside the disk
  const lock = await stat(`${path}.lck`).catch(() => undefined)
  if (lock?.isDirectory()) {
    return `VMware (it keeps "${printable(path)}.lck"; remove that when no VMware runs)`
  }
  if (process.platform === 'linux') return findWriter(await realpath(path))
}

/**
 * Whether nobody else has the file open. VirtualBox opens a disk so that others may read it, which would
 * pass for a disk at rest; a scanner or a backup has it for a moment only.
 * Source: libuv, UV_FS_O_EXLOCK ("dwShareMode = 0"). Deno does not know the flag, and says so by EINVAL or not at all.
 */
async function isAlone(path: string): Promise<boolean> {
  const UV_FS_O_EXLOCK = 0x10000000
  for (let tries = 5;; tries--) {
    try {
      const file = await open(path, constants.O_RDONLY | UV_FS_O_EXLOCK)
      await file.close()
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EBUSY') return true // opening says why
      if (tries === 1) return false
      await setTimeout(200)
    }
  }
}

/** Whether a process may have a file open; where nobody can tell, it may. */
export async function isOpen(path: string, pid: number): Promise<boolean> {
  if (process.platform === 'win32' && !('Deno' in globalThis)) return !await isAlone(path)
  if (process.platform !== 'linux') return true
  const file = await realpath(path).catch(() => undefined)
  const fds = read((path) => readdirSync(path), `/proc/${pid}/fd`)
  return fds?.some((fd) => read((link) => readlinkSync(link), `/proc/${pid}/fd/${fd}`) === file) ??
    true
}

/** Looks through the open files of all processes that this user may look into. */
function findWriter(path: string): string | undefined {
  for (const pid of list('/proc').filter((name) => /^\d+$/.test(name))) {
    if (Number(pid) === process.pid) continue
    for (const fd of list(`/proc/${pid}/fd`)) {
      if (read((link) => readlinkSync(link), `/proc/${pid}/fd/${fd}`) !== path) continue
      const flags = read(text, `/proc/${pid}/fdinfo/${fd}`)?.match(/^flags:\s*([0-7]+)/m)?.[1]
      const mode = Number.parseInt(flags ?? '0', 8) & (constants.O_WRONLY | constants.O_RDWR)
      if (mode === 0) continue
      return `${read(text, `/proc/${pid}/comm`)?.trim() ?? 'a program'} (process ${pid})`
    }
  }
}

const list = (path: string): string[] => read((path) => readdirSync(path), path) ?? []
const text = (path: string): string => readFileSync(path, 'utf8')

/** A process may end while it is looked at, and others' are not shown. */
function read<T>(how: (path: string) => T, path: string): T | undefined {
  try {
    return how(path)
  } catch {
    return undefined
  }
}
