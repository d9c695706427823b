/** A file that is there whole or not at all: written beside its place, and renamed last. */
import { randomBytes } from 'node:crypto'
import { mkdir, open, readdir, rename, rm, rmdir, stat, statfs } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import process from 'node:process'
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
  const free = bavail * bsize
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

/** Lets `make` write the file under a temporary name. When that fails nothing of it is left. */
export async function writeWhole<T>(
  path: string,
  force: boolean,
  signal: AbortSignal | undefined,
  make: (temporary: string) => Promise<T>,
): Promise<T> {
  const folder = dirname(path)
  let made: string | undefined
  let temporary: string | undefined
  try {
    made = await mkdir(folder, { recursive: true })
    await removeLeftovers(path)
    temporary = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.partial`
    const result = await make(temporary)
    signal?.throwIfAborted()
    await refuseTarget(path, force) // it may have come meanwhile
    await rename(temporary, path)
    await syncFolder(folder)
    return result
  } catch (error) {
    if (temporary !== undefined) await rm(temporary, { force: true })
    if (made !== undefined) await removeFolders(folder, made)
    throw explain(error, path, signal)
  }
}

/** What killed runs left: the process in the name is gone, and only this kit names files so. */
async function removeLeftovers(path: string): Promise<void> {
  const start = `${basename(path)}.`
  for (const name of await readdir(dirname(path))) {
    if (!name.startsWith(start)) continue
    const pid = name.slice(start.length).match(/^(\d+)-[0-9a-f]{8}\.partial$/)?.[1]
    if (pid !== undefined && !lives(Number(pid))) await rm(join(dirname(path), name))
  }
}

function lives(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

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

function explain(error: unknown, path: string, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) {
    return new Error(`Stopped: "${printable(path)}" was not written`, { cause: error })
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
