/**
 * What Windows does to a file by its folder and its volume, that Hyper-V then refuses: it takes no
 * compressed, encrypted or sparse file (0xC03A001A), and none with ReFS integrity.
 */
import { type PowerShell, toWindows } from '../task.ts'
import { GB, printable } from './image.ts'

/** The bits of System.IO.FileAttributes that matter. */
const ATTRIBUTES = { sparse: 0x200, compressed: 0x800, encrypted: 0x4000, integrity: 0x8000 }

/** The most that a file on FAT32 has. */
const MAX_FAT32 = 4 * GB - 1

/**
 * Refuses a folder whose new files Hyper-V would refuse, and a volume that cannot hold `most` bytes in
 * one file. Gives what is worth a warning. Linux's own file systems in WSL have none of this.
 */
export async function refuseVolume(
  { path, folder, most }: { path: string; folder: string; most: number },
  ps: PowerShell,
): Promise<string[]> {
  const known = await toWindows(folder)
  if (known === undefined) return []
  const { stdout } = await ps`
    $folder = ${known}
    $ErrorActionPreference = 'Stop'
    $root = [IO.Path]::GetPathRoot($folder)
    # a share has no drive to ask
    $remote = $root.StartsWith([string][char]92 + [char]92)
    @{
      folder = $folder
      attributes = [int][IO.File]::GetAttributes($folder)
      fileSystem = $(if ($remote) { '' } else { ([IO.DriveInfo]$root).DriveFormat })
    } | ConvertTo-Json -Compress`
  return judge(path, most, JSON.parse(stdout))
}

interface Volume {
  /** As Windows names it. */
  folder: string
  /** System.IO.FileAttributes. */
  attributes: number
  /** E.g. `NTFS`; empty for a share. */
  fileSystem: string
}

/** What a folder and its volume mean for a disk that is to be there. */
export function judge(
  path: string,
  most: number,
  { folder, attributes, fileSystem }: Volume,
): string[] {
  const shown = `'${printable(folder).replace(/['\u2018-\u201b]/g, '$&$&')}'`
  const wrong = attributes & ATTRIBUTES.compressed
    ? ['compressed by NTFS', `compact /u ${shown}`]
    : attributes & ATTRIBUTES.encrypted
    ? ['encrypted by EFS', `cipher /d ${shown}`]
    : attributes & ATTRIBUTES.integrity
    ? ['guarded by ReFS integrity', `Set-FileIntegrity -FileName ${shown} -Enable $false`]
    : undefined
  if (wrong) {
    throw new Error(
      `Cannot write "${printable(path)}": its folder is ${wrong[0]}, new files in it are so too, ` +
        `and Hyper-V refuses such disks (0xC03A001A). Run: ${wrong[1]}`,
    )
  }
  if (fileSystem === 'FAT32' && most > MAX_FAT32) {
    throw new Error(
      `Cannot write "${printable(path)}": FAT32 holds no file of 4 GB, and it may take ` +
        `${Math.ceil(most / GB)} GB. Name a file on an NTFS volume by --to`,
    )
  }
  if (!/FAT/i.test(fileSystem)) return []
  return [
    `"${printable(path)}" is on ${fileSystem}, from which Hyper-V runs no VM: ` +
    'copy it to an NTFS or ReFS volume of the host',
  ]
}

/** Clears the sparse flag, which qemu-img leaves on Windows. */
export async function clearSparse(path: string, ps: PowerShell): Promise<void> {
  const known = await toWindows(path)
  if (known === undefined) return
  await ps`
    $file = ${known}
    $ErrorActionPreference = 'Stop'
    if ([int][IO.File]::GetAttributes($file) -band ${ATTRIBUTES.sparse}) {
      $output = fsutil sparse setflag $file 0
      if ([int][IO.File]::GetAttributes($file) -band ${ATTRIBUTES.sparse}) {
        throw "Cannot clear the sparse flag of ""$file"": $output"
      }
    }`
}
