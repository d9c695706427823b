/** Sends a disk image to the host through its PowerShell: only what holds data, and checked on arrival. */
import fs from 'fs-extra'
import { createHash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { PowerShell, PowerShellProcess } from '../../tasks/task.ts'
import type { Progress } from './steps.ts'

export interface SendDiskOptions {
  /** The image here. */
  from: string
  /** The file to make on the host, in full; its folder is made too. */
  to: string
}

export interface SendDiskResult {
  changed: boolean
  /** The image, as the host writes its path. */
  path: string
  /** Bytes. */
  size: number
  sha256: string
  /** Bytes that crossed the wire for it. */
  sent: number
  /** The folder that was made for it, or null. */
  madeFolder: string | null
}

export interface SendDiskTools {
  host: PowerShellProcess
  /** What the errors call it. */
  step?: string | undefined
  /** Stops it; what has arrived stays for the next try. */
  signal?: AbortSignal | undefined
  /** Hears how much of the image is read, sent or not. */
  onProgress?: ((progress: Progress) => void) | undefined
}

/** Bytes of the pieces in which a file that is there is compared. */
const BLOCK = 16 * 1024 ** 2

/** Bytes that are read, and at most sent, at once. */
const PIECE = 1024 ** 2

/** Bytes that are sent or, when all are zero, left out. */
const GRAIN = 64 * 1024

const ZERO = Buffer.alloc(GRAIN)

/**
 * Writes the image to a temporary name on the host, compares the SHA-256 of the whole, as it is read
 * back there, and renames it. What an earlier try left under that name is compared block by block, and
 * only blocks that differ or are missing are sent. An equal image that is there already stays as it is;
 * another one is refused.
 *
 * Zeros are not sent where the file there grows: what was skipped reads as zero (assumption: NTFS and
 * ReFS fill it when something behind it is written). The file is not made sparse for it, as Hyper-V
 * refuses a sparse disk (0xC03A001A), so the host writes the zeros of a fixed disk itself.
 */
export async function sendDisk(
  { from, to }: SendDiskOptions,
  { host, step, signal, onProgress }: SendDiskTools,
): Promise<SendDiskResult> {
  const file = await fs.promises.open(from)
  try {
    const { size } = await file.stat()
    // reading back what is there takes as long as the drives take
    const limits = { step, timeout: 7 * 24 * 3600 }
    const there = await look(host.using(limits), to, size)
    const image = readImage(file, size, there.blocks, signal, onProgress)
    if (there.sha256 === null) {
      await receive(host.using({ ...limits, feed: image.frames }), there.path)
    } else {
      for await (const _ of image.frames) { /* for its sum alone */ }
      if (there.sha256 !== image.sums().sha256) {
        throw new Error(
          `Cannot send "${from}" to "${there.path}": another file is there. ` +
            'Remove it, or choose another --name or --storage',
        )
      }
    }
    const changed = there.sha256 === null
    const { sha256, sent } = image.sums()
    const { path, madeFolder } = there
    return { changed, path, size, sha256, sent: changed ? sent : 0, madeFolder }
  } finally {
    await file.close()
  }
}

/** Removes the folder of disks that were on their way, and the folder of such folders when it is empty. */
export async function removeStage(stage: string): Promise<void> {
  await fs.remove(stage)
  await fs.rmdir(dirname(stage)).catch((error: NodeJS.ErrnoException) => {
    if (!['ENOTEMPTY', 'ENOENT', 'EEXIST'].includes(error.code ?? '')) throw error
  })
}

/** Removes what has arrived of a disk that was not sent to its end. */
export async function removePartial(to: string, ps: PowerShell): Promise<void> {
  await ps`
    $to = ${to}
    $partial = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($to) + '.partial'
    if (Test-Path -LiteralPath $partial) { Remove-Item -LiteralPath $partial -Force }`
}

interface There {
  path: string
  madeFolder: string | null
  /** The sum of the file that is there; null when there is none; empty when it is of another size. */
  sha256: string | null
  /** What an earlier try left: the sum of each block, the last of which may be short, and all its bytes. */
  blocks: { length: number; sums: string[] }
}

/** Looks at what is there and whether there is room, and makes the folder. */
async function look(ps: PowerShell, to: string, size: number): Promise<There> {
  const { stdout } = await ps`
    $to = ${to}
    $size = ${size}
    $block = ${BLOCK}
    $target = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($to)
    $partial = "$target.partial"
    $folder = [IO.Path]::GetDirectoryName($target)
    $sha256 = $null
    $sums = @()
    $length = 0
    $madeFolder = $null
    if (Test-Path -LiteralPath $target) {
      $sha256 = ''
      if ((Get-Item -LiteralPath $target -Force).Length -eq $size) {
        $sha256 = (Get-FileHash -LiteralPath $target -Algorithm SHA256).Hash.ToLowerInvariant()
      }
    } else {
      if (Test-Path -LiteralPath $partial) { $length = (Get-Item -LiteralPath $partial -Force).Length }
      $above = $folder
      while (-not (Test-Path -LiteralPath $above)) { $above = [IO.Path]::GetDirectoryName($above) }
      # a share has no drive to ask, and says when it is full
      $volume = if ($above -match '^[A-Za-z]:') { [IO.Path]::GetPathRoot($above) } else { $above }
      $free = $null
      try { $free = (New-Object IO.DriveInfo $volume).AvailableFreeSpace } catch { }
      $needed = $size - $length
      if ($null -ne $free -and $free -lt $needed) {
        throw "Cannot send ""$target"": it needs $needed bytes, and $free are free. Make room, or choose another folder by --storage"
      }
      if ($above -ne $folder) {
        $null = New-Item -ItemType Directory -Path $folder -Force
        $madeFolder = $folder
      }
      if ($length -gt $size) {
        Remove-Item -LiteralPath $partial -Force
        $length = 0
      }
      if ($length -gt 0) {
        $hash = [Security.Cryptography.SHA256]::Create()
        $buffer = New-Object byte[] $block
        $file = [IO.File]::OpenRead($partial)
        try {
          for ($at = 0; $at -lt $length; $at += $got) {
            $got = 0
            do {
              $read = $file.Read($buffer, $got, $block - $got)
              $got += $read
            } until ($read -eq 0 -or $got -eq $block)
            if ($got -eq 0) { break }
            $sums += [BitConverter]::ToString($hash.ComputeHash($buffer, 0, $got)).Replace('-', '').ToLowerInvariant()
            Write-Progress -Activity $partial -PercentComplete ([int](100 * $at / $length))
          }
        } finally { $file.Dispose() }
      }
    }
    ConvertTo-Json -Compress -Depth 4 @{
      path = $target; madeFolder = $madeFolder; sha256 = $sha256; blocks = @{ length = $length; sums = @($sums) }
    }`
  return JSON.parse(stdout) as There
}

/**
 * Takes frames from the channel until one that is empty: 8 bytes of place, 4 of length, both little
 * endian, and the data. The place of the last is the file's size, and its SHA-256 follows.
 */
async function receive(ps: PowerShell, to: string): Promise<void> {
  await ps`
    $target = ${to}
    $partial = "$target.partial"
    $buffer = New-Object byte[] 1048576
    $take = {
      param($count)
      for ($at = 0; $at -lt $count; $at += $got) {
        $got = $channel.Read($buffer, $at, $count - $at)
        if ($got -eq 0) { [Environment]::Exit(1) } # the connection is lost, which is for the other end to say
      }
    }
    $file = New-Object IO.FileStream $partial, ([IO.FileMode]::OpenOrCreate), ([IO.FileAccess]::Write), ([IO.FileShare]::Read), 1
    try {
      while ($true) {
        . $take 12
        $place = [BitConverter]::ToInt64($buffer, 0)
        $length = [BitConverter]::ToInt32($buffer, 8)
        if ($length -eq 0) { break }
        . $take $length
        $file.Position = $place
        $file.Write($buffer, 0, $length)
      }
      . $take 32
      $sent = [BitConverter]::ToString($buffer, 0, 32).Replace('-', '')
      $file.SetLength($place)
      $file.Flush($true)
    } finally { $file.Dispose() }
    if ((Get-FileHash -LiteralPath $partial -Algorithm SHA256).Hash -ne $sent) {
      Remove-Item -LiteralPath $partial -Force
      throw "Cannot send ""$target"": it did not arrive as it was sent (SHA-256 differs). Check the drive there (chkdsk) and run again"
    }
    Move-Item -LiteralPath $partial -Destination $target`
}

/** Reads the image once, from beginning to end: the frames to send, and in the end its sum. */
function readImage(
  file: FileHandle,
  size: number,
  arrived: There['blocks'],
  signal: AbortSignal | undefined,
  onProgress: SendDiskTools['onProgress'],
): { frames: AsyncIterable<Buffer>; sums: () => { sha256: string; sent: number } } {
  const hash = createHash('sha256')
  let sha256 = ''
  let sent = 0
  async function* frames() {
    for (let at = 0; at < size;) {
      signal?.throwIfAborted()
      // where something has arrived in whole blocks, as they were compared there
      const known = at < arrived.length
      const end = known ? Math.min(at + BLOCK, arrived.length) : at + PIECE
      const data = await readAt(file, at, Math.min(end, size) - at)
      hash.update(data)
      const same = known && sum(data) === arrived.sums[at / BLOCK]
      if (!same) {
        for (const [from, to] of known ? whole(data) : runs(data)) {
          sent += to - from
          yield header(at + from, to - from)
          yield data.subarray(from, to)
        }
      }
      at += data.length
      onProgress?.({ done: at, total: size })
    }
    const digest = hash.digest()
    sha256 = digest.toString('hex')
    yield Buffer.concat([header(size, 0), digest])
  }
  return { frames: frames(), sums: () => ({ sha256, sent }) }
}

async function readAt(file: FileHandle, at: number, length: number): Promise<Buffer> {
  const data = Buffer.allocUnsafe(length)
  for (let filled = 0; filled < length;) {
    const { bytesRead } = await file.read(data, filled, length - filled, at + filled)
    if (bytesRead === 0) throw new Error('Cannot send the disk: its file became shorter. Run again')
    filled += bytesRead
  }
  return data
}

/** The parts of a piece that are not zero, as offsets from and to. */
function* runs(data: Buffer): Iterable<[number, number]> {
  let from = -1
  for (let at = 0; at < data.length; at += GRAIN) {
    const grain = data.subarray(at, at + GRAIN)
    const zero = grain.equals(grain.length === GRAIN ? ZERO : ZERO.subarray(0, grain.length))
    if (zero && from >= 0) yield [from, at]
    if (zero) from = -1
    else if (from < 0) from = at
  }
  if (from >= 0) yield [from, data.length]
}

/** A block in pieces that fit a frame. */
function* whole(data: Buffer): Iterable<[number, number]> {
  for (let at = 0; at < data.length; at += PIECE) yield [at, Math.min(at + PIECE, data.length)]
}

function header(place: number, length: number): Buffer {
  const bytes = Buffer.alloc(12)
  bytes.writeBigInt64LE(BigInt(place), 0)
  bytes.writeInt32LE(length, 8)
  return bytes
}

function sum(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex')
}
