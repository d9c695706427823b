/** The host of a run: one PowerShell for all its scripts, and where its files are seen from here. */
import { statfs } from 'node:fs/promises'
import { dirname, posix, win32 } from 'node:path'
import process from 'node:process'
import {
  fromWindows,
  onWindows,
  openPowerShell,
  type PowerShellProcess,
  toWindows,
} from '../../tasks/task.ts'

export interface Host extends PowerShellProcess {
  /**
   * Where a file of this machine is that PowerShell knows by this path: the same, but for Windows
   * seen from WSL. A machine over SSH has no such files, and those that are made for it are here.
   */
  here: (path: string) => Promise<string>
}

/** `local`: this machine's own PowerShell, or in WSL that of the Windows around it; or `ssh://...`. */
export function openHost(host: string): Host {
  return {
    ...openPowerShell({ host }),
    here: host === 'local' ? localFile : (path) => Promise.resolve(path),
  }
}

/** Where a file of this machine is that its own PowerShell knows by this path. */
export async function localFile(path: string): Promise<string> {
  if (!isWindowsPath(path)) return path
  if (!onWindows()) {
    throw new Error(
      `Cannot write to "${path}": it is a path of Windows, and this is neither Windows nor WSL. ` +
        'Run again with --to ssh://[user@]host[:port]',
    )
  }
  const found = await fromWindows(path)
  if (found === undefined) throw new Error(notMounted(path))
  // Windows has names for files in the Linux file system too
  if (await toWindows(found) === undefined) throw new Error(inLinux(path))
  return found
}

/** A folder of a machine over SSH as its PowerShell knows it: Windows takes slashes for a share's backslashes, too. */
export function farFolder(folder: string): string {
  return /^\/\/[^/\\]/.test(folder) ? folder.replaceAll('/', '\\') : folder
}

/** A folder of this machine as its own PowerShell knows it, which in WSL is that of Windows. */
export async function localFolder(folder: string): Promise<string> {
  if (process.platform === 'win32') return farFolder(folder)
  if (isWindowsPath(folder)) return folder
  const found = await toWindows(folder)
  if (found === undefined) throw new Error(inLinux(folder))
  return found
}

/** Joins names to a folder of the host, in the host's own manner of writing paths. */
export function joinHost(folder: string, ...names: string[]): string {
  return (isWindowsPath(folder) ? win32 : posix).join(folder, ...names)
}

/** The space that is free on the volume of a folder, or of the nearest folder above that exists; bytes. */
export async function freeSpace(folder: string): Promise<number> {
  for (let path = folder;; path = dirname(path)) {
    const stat = await statfs(path).catch(() => undefined)
    if (stat) return stat.bavail * stat.bsize
    if (path === dirname(path)) return Number.POSITIVE_INFINITY
  }
}

function inLinux(path: string): string {
  return `Cannot store disks in "${path}": it is in the Linux file system of WSL, where Hyper-V opens ` +
    `no disk. Run again with a folder on a drive of Windows: --storage 'C:\\VMs'`
}

function notMounted(path: string): string {
  const cannot = `Cannot write to "${path}" from WSL:`
  const drive = path.slice(0, 2).toUpperCase()
  if (drive.startsWith('\\')) {
    return `${cannot} the share is not mounted here. Run again with a drive of Windows: --storage 'C:\\VMs'`
  }
  const folder = `/mnt/${drive.charAt(0).toLowerCase()}`
  return `${cannot} the drive is not mounted here. ` +
    `Run: sudo mkdir -p ${folder} && sudo mount -t drvfs ${drive} ${folder}`
}

function isWindowsPath(path: string): boolean {
  return /^[a-z]:[\\/]|^\\\\/i.test(path)
}
