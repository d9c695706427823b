/** The host of a run: one PowerShell for all its scripts, and where its files are seen from here. */
import { statfs } from 'node:fs/promises'
import { dirname, posix, win32 } from 'node:path'
import process from 'node:process'
import { $ } from 'zx'
import { openPowerShell, type PowerShellProcess } from '../../tasks/task.ts'

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
    here: async (path) => {
      if (host !== 'local') return path
      if (process.platform === 'win32' || !isWindowsPath(path)) return path
      const { stdout } = await $({ quiet: true })`wslpath -u ${path}`
      const found = stdout.replace(/\n$/, '')
      // a disk in the Linux file system is one that Hyper-V cannot open
      if (!found.startsWith('/mnt/')) {
        throw new Error(
          `Cannot write to "${path}" from WSL: Windows drives are expected under /mnt. ` +
            'Run the recipe in Windows PowerShell',
        )
      }
      return found
    },
  }
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

function isWindowsPath(path: string): boolean {
  return /^[a-z]:[\\/]|^\\\\/i.test(path)
}
