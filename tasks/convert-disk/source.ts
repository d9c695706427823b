/** Opens the disk that is meant: an image by its content, or a disk of an OVA or OVF. */
import { dirname, join } from 'node:path'
import type { Member } from './archive.ts'
import { withParents } from './chain.ts'
import { Files } from './files.ts'
import { openImage } from './formats.ts'
import { type Format, type Image, printable, WINDOW, ZEROS } from './image.ts'
import { openPackage } from './package.ts'
import { Beside, Inside } from './parents.ts'
import { findMachines, isSame, type Machine } from './registry.ts'

export interface Source {
  image: Image
  /** Bytes of the disk that may hold data. */
  allocatedSize: number
  /** How many windows of the disk hold any. */
  windows: number
  /** The file that holds the image: with an OVA the archive. */
  path: string
  /** The disk's name in an OVA, and where it lies. */
  member?: Member
  /** The disk is one file, or one member of an OVA, as it is stored. */
  single: boolean
  warnings: string[]
  /** Compares the disk with its manifest. */
  verify: (signal: AbortSignal) => Promise<void>
  /** Rejects when a program may write to a file that is read. */
  refuseInUse: () => Promise<void>
  /** Rejects when a file that was read is not what it was. */
  refuseChanged: () => Promise<void>
  /** Equal for the same disk of the same files, while nobody has written to one of them. */
  identity: () => Promise<unknown[]>
  /** Whether a file is one of those that are read, by whatever name. */
  has: (path: string) => Promise<boolean>
  close: () => Promise<void>
}

export interface SourceOptions {
  /** Which disk of an OVA or OVF. */
  disk?: number | string | undefined
  /** What the file is taken for. @default what its content says, which its name must not belie */
  format?: Format | undefined
  /** Where a disk may be inflated to that is compressed as a whole. */
  folder: string
}

/** Opens a source and checks its tables. Nothing is ever written to it. */
export async function openSource(
  path: string,
  { disk, format, folder }: SourceOptions,
): Promise<Source> {
  const files = new Files()
  let image: Image | undefined
  const close = async () => {
    await image?.close?.()
    await files.close()
  }
  try {
    const bytes = await files.open(path)
    const found = format ? undefined : await openPackage(bytes, path, files, folder)
    const name = found && choose(path, found.disks, disk)
    const warnings: string[] = []
    if (found && name !== undefined) {
      const stored = await found.openDisk(name)
      image = await openImage(stored, found.open)
      image = await withParents(image, stored, new Inside(found, name))
      const unverified = await found.unverified(name)
      if (unverified !== undefined) warnings.push(unverified)
    } else {
      const machines = await findMachines(path)
      refuseMachine(path, machines)
      image = await openImage(bytes, (name) => files.open(join(dirname(path), name)), format)
      image = await withParents(image, bytes, new Beside(path, machines, files))
    }
    const member = found?.members?.find((member) => member.name === name)
    const surveyed = await survey(image)
    const { format: stored, variant, virtualSize, sectorSize, identifier } = image
    const kind = { stored, variant, virtualSize, sectorSize, identifier, ...surveyed }
    return {
      image,
      ...surveyed,
      path,
      ...(member && { member }),
      single: !image.chain && (!found || found.isSingle(name as string)),
      warnings: [...image.warnings ?? [], ...warnings],
      verify: async (signal) => {
        if (name !== undefined) await found?.verify(name, signal)
      },
      refuseInUse: () => files.refuseInUse(),
      refuseChanged: () => files.refuseChanged(),
      identity: async () => [name, kind, ...await files.identity()],
      has: (path) => files.has(path),
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** The names of the disks of an OVA or OVF; undefined for what is a disk itself. */
export async function listDisks(path: string): Promise<string[] | undefined> {
  const files = new Files()
  try {
    return (await openPackage(await files.open(path), path, files, dirname(path)))?.disks
  } finally {
    await files.close()
  }
}

function choose(path: string, disks: string[], disk: number | string | undefined): string {
  const chosen = disk === undefined
    ? disks.length === 1 ? disks[0] : undefined
    : typeof disk === 'number'
    ? disks[disk]
    : disks.find((name) => name === disk)
  if (chosen !== undefined) return chosen
  const names = disks.map((name, index) => `${index} "${printable(name)}"`).join(', ')
  throw new Error(
    disks.length === 0
      ? `Cannot read "${printable(path)}": it has no disk. Export the VM again`
      : `Cannot tell which disk of "${printable(path)}" is meant: ` +
        `${disk === undefined ? 'it has several' : `it has no "${printable(String(disk))}"`}, ` +
        `${names}. Run again with --disk and one of these`,
  )
}

/** What a VM holds in its memory, or VirtualBox has encrypted, is not in the disk's file. */
function refuseMachine(path: string, machines: Machine[]): void {
  for (const { name, saved, media } of machines) {
    const medium = media.find(({ location }) => isSame(location, path))
    if (!medium) continue
    const vm = `"${printable(name)}"`
    if (medium.encrypted) {
      throw new Error(
        `Cannot convert "${printable(path)}": VirtualBox has encrypted it. ` +
          `Run: VBoxManage encryptmedium ${medium.uuid} --old-password=-`,
      )
    }
    if (!saved) continue
    throw new Error(
      `Cannot convert "${printable(path)}": its VM ${vm} is in a saved state, ` +
        `with parts of the disk in memory. Start it and shut it down, or run: ` +
        `VBoxManage discardstate ${vm}`,
    )
  }
}

/** Opens an image that was written here, to read it again. */
export async function openWritten(
  path: string,
  format: Exclude<Format, 'vmdk'>,
): Promise<{ image: Image; close: () => Promise<void> }> {
  const files = new Files()
  try {
    const bytes = await files.open(path)
    const image = await openImage(bytes, () => Promise.reject(new Error('No siblings')), format)
    await survey(image)
    return { image, close: () => files.close() }
  } catch (error) {
    await files.close()
    throw error
  }
}

/** Walks all tables once: what they say is right, or it is refused before anything is written. */
async function survey(image: Image): Promise<{ allocatedSize: number; windows: number }> {
  let allocatedSize = 0
  let windows = 0
  let last = -1
  for await (const { offset, length, bytes } of image.runs()) {
    if (bytes === ZEROS) continue
    const first = Math.max(last + 1, Math.floor(offset / WINDOW))
    last = Math.floor((offset + length - 1) / WINDOW)
    windows += last - first + 1
    allocatedSize += length
  }
  return { allocatedSize, windows }
}
