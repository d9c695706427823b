#!/usr/bin/env zx
/** Copy a disk image on the host to where a VM is to have it, checked byte for byte. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface PlaceDiskOptions {
  /** The image on the host. A relative path is taken from PowerShell's current location. */
  from: string
  /** The file to make; its folder is made too. */
  to: string
  /** @default false */
  dryRun?: boolean
}

export interface PlaceDiskResult {
  changed: boolean
  /** The copy, as the host writes its path. */
  path: string
  /** Bytes. */
  size: number
  /** The folder that was made for it, or null. */
  madeFolder: string | null
}

/**
 * Copies a disk image to a temporary name, compares SHA-256 and renames it. A target that a VM uses is
 * that VM's by now and stays; any other file that differs is refused.
 *
 * A copy by Windows has neither the sparse nor the compressed flag of its source, with which Hyper-V
 * refuses a disk (assumption: CopyFile takes on the flags of the target folder, not of the source).
 */
export async function placeDisk(
  { from, to, dryRun = false }: PlaceDiskOptions,
  ps = powershell,
): Promise<PlaceDiskResult> {
  const { stdout } = await ps`
    $from = ${from}
    $to = ${to}
    $dryRun = ${dryRun}
    $paths = $ExecutionContext.SessionState.Path
    $source = $paths.GetUnresolvedProviderPathFromPSPath($from)
    $target = $paths.GetUnresolvedProviderPathFromPSPath($to)
    $folder = [IO.Path]::GetDirectoryName($target)
    if (-not (Test-Path -LiteralPath $source -PathType Leaf)) { throw "Cannot copy ""$source"": no such file. Copy the disk there and run again" }
    $size = (Get-Item -LiteralPath $source -Force).Length
    $hash = { (Get-FileHash -LiteralPath $args[0] -Algorithm SHA256).Hash }
    $there = Test-Path -LiteralPath $target
    if ($there) {
      $users = @(Get-VM | ForEach-Object { Get-VMHardDiskDrive -VM $_ } | Where-Object { $_.Path -eq $target })
      if ($users.Count -eq 0 -and (& $hash $source) -ne (& $hash $target)) {
        throw "Cannot copy to ""$target"": another file is there. Remove it, or choose another folder"
      }
    }
    $madeFolder = $null
    if (-not $there -and -not (Test-Path -LiteralPath $folder)) { $madeFolder = $folder }
    if (-not $there -and -not $dryRun) {
      if ($madeFolder) { $null = New-Item -ItemType Directory -Path $folder -Force }
      $free = (Get-Item -LiteralPath $folder -Force).PSDrive.Free
      if ($null -ne $free -and $free -lt $size) { throw "Cannot copy to ""$target"": it needs $size bytes and $free are free. Choose another folder" }
      $partial = "$target.partial"
      try {
        Copy-Item -LiteralPath $source -Destination $partial -Force
        if ((& $hash $source) -ne (& $hash $partial)) { throw "Cannot copy to ""$target"": the copy differs from ""$source"". Check the drive (chkdsk) and run again" }
        Move-Item -LiteralPath $partial -Destination $target
      } finally {
        if (Test-Path -LiteralPath $partial) { Remove-Item -LiteralPath $partial -Force }
      }
    }
    ConvertTo-Json -Compress ([ordered]@{ changed = -not $there; path = $target; size = $size; madeFolder = $madeFolder })`
  return JSON.parse(stdout) as PlaceDiskResult
}

/** Removes the copy, and the folder made for it when nothing else is in it. Refused while a VM uses it. */
export async function undoPlaceDisk(
  result: PlaceDiskResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $path = $result.path
    $folder = $result.madeFolder
    $users = @(Get-VM | Where-Object { @(Get-VMHardDiskDrive -VM $_ | Where-Object { $_.Path -eq $path }).Count -gt 0 })
    if ($users.Count -gt 0) { throw "Cannot remove ""$path"": the VM ""$($users[0].Name)"" uses it. Remove the VM first" }
    if (Test-Path -LiteralPath $path) { Remove-Item -LiteralPath $path -Force }
    if ($folder -and (Test-Path -LiteralPath $folder) -and @(Get-ChildItem -LiteralPath $folder -Force).Count -eq 0) {
      Remove-Item -LiteralPath $folder
    }`
}

await hostCommand(
  import.meta,
  'Copy a disk image on the host to where a VM is to have it',
  {
    from: {
      type: 'string',
      demandOption: true,
      describe: 'The image',
      example: 'disks/Win10.vhdx',
    },
    to: {
      type: 'string',
      demandOption: true,
      describe: 'The file to make',
      example: 'D:/Hyper-V/Win10.vhdx',
    },
    dryRun,
  },
  placeDisk,
)
