/** A file that is there whole or not at all: written beside its place, and renamed last. */
import { randomBytes } from 'node:crypto'
import { lstat, mkdir, open, readdir, rename, rm, rmdir, stat, statfs } from 'node:fs/promises'
import { uptime } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { isOpen } from './files.ts'
import { printable } from './image.ts'

/** Refuses a target that is there, unless it may be replaced, and a name that Windows cannot open. */
export async function refuseTarget(path: string, force: boolean): Promise<void> {
  const strange = process.platform === 'win32' && strangeName(basename(path))
  if (strange) {
    throw new Error(`Cannot write "${printable(path)}": ${strange}. Name another file by --to`)
  }
  const found = await stat(path).catch(() => undefined)
  if (found && !found.isFile()) {
    throw new Error(`Cannot write "${printable(path)}": it is no file. Name a file by --to`)
  }
  if (found && !force) {
    throw new Error(
      `Cannot write "${printable(path)}": the file is there. Remove it, or run again with --force`,
    )
  }
}

/**
 * Why most programs on Windows could not open a file of that name, where one can be: Node makes it by
 * a path that Windows does not look into (\\?\).
 * Source: learn.microsoft.com/windows/win32/fileio/naming-a-file
 */
export function strangeName(name: string): string | undefined {
  const device = name.match(
    /^(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3])(?=\s*(\.|$))/i,
  )
  if (device) return `${device[0]} is a device of Windows, whatever follows it`
  if (/[. ]$/.test(name)) return 'Windows takes no name that ends in a dot or a space'
  // with a colon it would be a stream of another file
  const sign = name.match(/[<>:"|?*]/)
  if (sign) return `Windows takes no ${sign[0]} in a name`
}

/** Refuses a volume that has not room for `needed` bytes, which is the most that a file may take. */
export async function refuseSpace(path: string, needed: number): Promise<void> {
  const folder = await nearestFolder(path)
  if (folder === undefined) {
    throw new Error(
      `Cannot write "${printable(path)}": there is no such drive. Name a file on another by --to`,
    )
  }
  const { bavail, bsize } = await statfs(folder)
  // what stopped runs left is gone on with, or removed
  const free = bavail * bsize + await sizeOfLeftovers(path)
  if (free >= needed) return
  throw new Error(
    `Cannot write "${printable(path)}": it may take up to ${megabytes(needed)}, ` +
      `and ${megabytes(free)} are free there. Name a file on another volume by --to`,
  )
}

/** The folder of a file to be, or the nearest above it that is there; undefined without a drive. */
export async function nearestFolder(path: string): Promise<string | undefined> {
  for (let folder = dirname(resolve(path));; folder = dirname(folder)) {
    if (await stat(folder).catch(() => undefined)) return folder
    if (dirname(folder) === folder) return undefined
  }
}

/**
 * Lets `make` write the file under a temporary name. When that fails nothing of it is left, but where it
 * may `resume`: when it is stopped, or its process killed, what is written stays if a checkpoint is beside
 * it, and is what the next run is given (`found`), under another name.
 */
export async function writeWhole<T>(
  { path, force, signal, resume = false }: {
    path: string
    force: boolean
    signal: AbortSignal | undefined
    resume?: boolean
  },
  make: (temporary: string, found: boolean) => Promise<T>,
): Promise<T> {
  const folder = dirname(path)
  let made: string | undefined
  let temporary: string | undefined
  try {
    made = await mkdir(folder, { recursive: true })
    const found = resume ? await takeOver(path) : undefined
    temporary = found ?? nameOf(path, randomBytes(4).toString('hex'))
    inWork.add(temporary)
    await removeLeftovers(path)
    const result = await make(temporary, found !== undefined)
    signal?.throwIfAborted()
    await refuseTarget(path, force) // it may have come meanwhile
    await rename(temporary, path)
    await rm(checkpointOf(temporary), { force: true })
    await syncFolder(folder)
    return result
  } catch (error) {
    const kept = temporary !== undefined && resume && signal?.aborted === true &&
      await isThere(checkpointOf(temporary))
    if (temporary !== undefined && !kept) {
      for (const name of [temporary, ...checkpointsOf(temporary)]) await rm(name, { force: true })
    }
    if (made !== undefined && !kept) await removeFolders(folder, made)
    // a scanner may have it open: then it is this process's, until that ends
    if (temporary !== undefined && kept) await release(temporary).catch(() => {})
    throw explain(error, path, signal, kept)
  } finally {
    if (temporary !== undefined) inWork.delete(temporary)
  }
}

/** Lets another process go on with a file while this one still runs: no process has the number 0. */
async function release(temporary: string): Promise<void> {
  const free = temporary.replace(/\d+(?=-[0-9a-f]{8}\.partial$)/, '0')
  await rename(checkpointOf(temporary), checkpointOf(free))
  await rename(temporary, free)
}

/** Where it is kept how far a temporary file is. */
export const checkpointOf = (temporary: string): string =>
  temporary.replace(/partial$/, 'checkpoint')

/** And under what name it is written. */
const checkpointsOf = (temporary: string): string[] => {
  const checkpoint = checkpointOf(temporary)
  return [checkpoint, `${checkpoint}.new`]
}

/** Temporary files of this process: its number alone may be that of one of before, as in containers. */
const inWork = new Set<string>()

const nameOf = (path: string, id: string) => `${path}.${process.pid}-${id}.partial`

interface Leftover {
  file: string
  /** Equal for a file and its checkpoint. */
  id: string
  kind: string
}

/** What stopped and killed runs left of a file: only this kit names files so, and their process is gone. */
async function findLeftovers(path: string): Promise<Leftover[]> {
  const start = `${basename(path)}.`
  const entries = await readdir(dirname(path), { withFileTypes: true }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return []
      throw error
    },
  )
  const found: Leftover[] = []
  for (const entry of entries) {
    const { name } = entry
    if (!name.startsWith(start) || entry.isDirectory()) continue
    const [, pid, id, kind] = name.slice(start.length).match(
      /^(\d+)-([0-9a-f]{8})\.(partial|checkpoint|checkpoint\.new)$/,
    ) ??
      []
    if (pid === undefined || id === undefined || kind === undefined) continue
    const file = join(dirname(path), name)
    if (!await isInWork(file, Number(pid))) found.push({ file, id, kind })
  }
  return found
}

/** Gives a file and checkpoint that are nobody's any more this process's number. */
async function takeOver(path: string): Promise<string | undefined> {
  const leftovers = await findLeftovers(path)
  for (const { file, id } of leftovers.filter(({ kind }) => kind === 'checkpoint')) {
    const partial = leftovers.find((other) => other.id === id && other.kind === 'partial')
    if (!partial) continue
    const found = await lstat(partial.file).catch(() => undefined)
    // one with a second name is a file of somebody else
    if (!found?.isFile() || found.nlink > 1) continue
    const temporary = nameOf(path, id)
    inWork.add(temporary)
    try {
      // of two runs one can do this
      await rename(file, checkpointOf(temporary))
      await rename(partial.file, temporary)
      return temporary
    } catch (error) {
      inWork.delete(temporary)
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
}

/** Removes what stopped and killed runs left of a file, and says whether there was anything. */
export async function removeLeftovers(path: string): Promise<boolean> {
  const leftovers = await findLeftovers(path)
  for (const { file } of leftovers) await rm(file, { force: true })
  return leftovers.length > 0
}

/** Bytes that they take. */
export async function sizeOfLeftovers(path: string): Promise<number> {
  let size = 0
  for (const { file } of await findLeftovers(path)) {
    const found = await lstat(file).catch(() => undefined)
    size += (found?.blocks ?? 0) * 512 // POSIX and Node count blocks of 512 bytes everywhere
  }
  return size
}

/** Whether the process that a file is named after may still be at work on it. */
async function isInWork(file: string, pid: number): Promise<boolean> {
  const partial = file.replace(/checkpoint(\.new)?$/, 'partial')
  if (pid === 0) return false
  if (pid === process.pid) return inWork.has(partial)
  const written = await lstat(partial).catch(() => lstat(file)).catch(() => undefined)
  if (!written || !lives(pid)) return false
  const age = Date.now() - written.mtimeMs
  // a minute for clocks that were set
  if (age > (uptime() + 60) * 1000) return false
  // numbers are given again; between two of its steps the file is open to nobody for a moment
  return age < 60_000 || await isOpen(partial, pid)
}

function lives(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

const isThere = async (path: string) => await stat(path).then(() => true, () => false)

/** So that the new name survives a power failure. Windows has no such call for folders. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return
  const file = await open(folder, 'r')
  await file.sync().finally(() => file.close())
}

/** Removes the folders that were made, from `folder` up to the first, as far as they are empty. */
async function removeFolders(folder: string, made: string): Promise<void> {
  // on Windows mkdir says \\?\C:\..., and \\?\UNC\... of a share
  const last = made.replace(/^\\\\\?\\(UNC(?=\\))?/, (_, share) => share ? '\\' : '')
  for (let at = resolve(folder); at.length >= last.length; at = dirname(at)) {
    if (!await rmdir(at).then(() => true, () => false)) return
  }
}

function explain(
  error: unknown,
  path: string,
  signal: AbortSignal | undefined,
  kept: boolean,
): unknown {
  if (signal?.aborted) {
    const rest = kept ? ' to its end. Run the same again: it goes on from what is there' : ''
    return new Error(`Stopped: "${printable(path)}" was not written${rest}`, { cause: error })
  }
  const why: Record<string, string> = {
    ENOSPC: 'the volume is full. Free space, or name a file on another volume by --to',
    EDQUOT: 'the quota is used up. Free space, or name a file on another volume by --to',
    EFBIG: 'its file system holds no file that large. Name a file on another volume by --to',
    EROFS: 'its file system is read-only. Name a file elsewhere by --to',
    EACCES: 'its rights do not let this user write there. Name a file elsewhere by --to',
    EPERM: 'its rights do not let this user write there. Name a file elsewhere by --to',
    EBUSY: 'another program has it open. Close that, and run again',
    EIO: 'the volume reports an error. Check its health before it is used again',
  }
  const reason = why[(error as NodeJS.ErrnoException).code ?? '']
  if (reason === undefined) return error
  return new Error(`Cannot write "${printable(path)}": ${reason}`, { cause: error })
}

function megabytes(bytes: number): string {
  return `${Math.ceil(bytes / 1024 ** 2)} MB`
}
