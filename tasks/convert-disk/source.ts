/** Opens the disk that is meant: an image by its content, or a disk of an OVA or OVF. */
import type { BigIntStats } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { basename, dirname, extname, join } from 'node:path'
import { digestOf, disksOf, hash, isTar, listMembers, type Member, member } from './archive.ts'
import { type Bytes, type Format, type Image, ImageError, printable, WINDOW } from './image.ts'
import { openRaw } from './raw.ts'
import { isVdi, openVdi } from './vdi.ts'
import { isVhd, openVhd } from './vhd.ts'
import { isVhdx, openVhdx } from './vhdx.ts'
import { isVmdk, type OpenSibling, openVmdk } from './vmdk.ts'

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
  warnings: string[]
  /** Compares the disk with its manifest. */
  verify: (signal: AbortSignal) => Promise<void>
  /** Rejects when a file that was read is not what it was. */
  refuseChanged: () => Promise<void>
  /** Whether a file is one of those that are read, by whatever name. */
  has: (path: string) => Promise<boolean>
  close: () => Promise<void>
}

/** Opens a source and checks its tables. Nothing is ever written to it. */
export async function openSource(path: string, disk?: number | string): Promise<Source> {
  const files = new Files()
  try {
    const bytes = await files.open(path)
    const warnings: string[] = []
    const package_ = await openPackage(bytes, path, files)
    const name = package_ && choose(path, package_.disks, disk)
    const disks = name === undefined ? bytes : await package_?.open(name)
    const sibling = package_?.open ?? ((name) => files.open(join(dirname(path), name)))
    const image = await openImage(disks as Bytes, sibling)
    const close = async () => {
      await image.close?.()
      await files.close()
    }
    try {
      warnings.push(...image.warnings ?? [])
      const listed = package_ && name !== undefined ? await package_.listed(name) : undefined
      if (package_ && !listed) {
        warnings.push(
          `"${printable(basename(path))}" has no manifest of "${
            printable(name as string)
          }", so damage to it cannot be seen`,
        )
      }
      const found = package_?.members?.find((member) => member.name === name)
      return {
        image,
        ...await survey(image),
        path,
        ...(found && { member: found }),
        warnings,
        verify: async (signal) => {
          if (!listed) return
          const digest = await hash(disks as Bytes, listed.algorithm, signal)
          if (digest === listed.digest) return
          throw new Error(
            `Cannot convert "${
              printable((disks as Bytes).name)
            }": its ${listed.algorithm.toUpperCase()} is ` +
              `${digest}, and the manifest says ${listed.digest}, so it is damaged. Copy or export it again`,
          )
        },
        refuseChanged: () => files.refuseChanged(),
        has: (path) => files.has(path),
        close,
      }
    } catch (error) {
      await image.close?.()
      throw error
    }
  } catch (error) {
    await files.close()
    throw error
  }
}

/** The names of the disks of an OVA or OVF; undefined for what is a disk itself. */
export async function listDisks(path: string): Promise<string[] | undefined> {
  const files = new Files()
  try {
    return (await openPackage(await files.open(path), path, files))?.disks
  } finally {
    await files.close()
  }
}

interface Package {
  disks: string[]
  members?: Member[]
  open: OpenSibling
  listed: (name: string) => ReturnType<typeof digestOf>
}

async function openPackage(bytes: Bytes, path: string, files: Files): Promise<Package | undefined> {
  if (await isTar(bytes)) {
    const members = await listMembers(bytes)
    const find = (test: (name: string) => boolean) => members.find(({ name }) => test(name))
    const ovf = find((name) => extname(name).toLowerCase() === '.ovf')
    const manifest = find((name) => extname(name).toLowerCase() === '.mf')
    return {
      members,
      disks: ovf
        ? await disksOf(member(bytes, ovf))
        : members.map(({ name }) => name).filter((name) => name !== manifest?.name),
      open: (name) => {
        const found = find((other) => other === name)
        if (found) return Promise.resolve(member(bytes, found))
        throw new ImageError(bytes, 0, `it has no member "${printable(name)}", which it names`)
      },
      listed: async (name) => manifest && await digestOf(member(bytes, manifest), name),
    }
  }
  if (extname(path).toLowerCase() === '.ova') {
    throw new ImageError(bytes, 0, 'it does not begin as a tar does, which every OVA is')
  }
  const start = await bytes.read(0, Math.min(bytes.size, 4096))
  if (extname(path).toLowerCase() !== '.ovf' || !start.includes('Envelope')) return undefined
  const beside = (name: string) => {
    if (/[\\/]|^\.\.?$|^[a-z]:/i.test(name)) {
      throw new ImageError(bytes, 0, `its file "${printable(name)}" is not beside it`)
    }
    return files.open(join(dirname(path), name))
  }
  const manifest = path.slice(0, -extname(path).length) + '.mf'
  return {
    disks: await disksOf(bytes),
    open: beside,
    listed: async (name) => {
      const bytes = await files.open(manifest).catch((error) => {
        if ((error as { cause?: NodeJS.ErrnoException }).cause?.code === 'ENOENT') return undefined
        throw error
      })
      return bytes && await digestOf(bytes, name)
    },
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

/** What a file begins or ends with, and what its name says when it is whole. */
const FORMATS = [
  { extension: '.vdi', is: isVdi, open: openVdi },
  { extension: '.vhdx', is: isVhdx, open: openVhdx },
  { extension: '.vmdk', is: isVmdk, open: openVmdk },
  { extension: '.vhd', is: isVhd, open: openVhd },
]
/** Known here, and not read. */
const OTHERS = ['.ova', '.ovf', '.qcow2', '.qcow', '.qed', '.avhd', '.avhdx', '.hdd', '.iso']

/** The format is what the content says. A name that promises what the content lacks means damage. */
async function openImage(bytes: Bytes, sibling: OpenSibling): Promise<Image> {
  if (bytes.size === 0) throw new ImageError(bytes, 0, 'it is empty')
  for (const { is, open } of FORMATS) if (await is(bytes)) return await open(bytes, sibling)
  const extension = extname(bytes.name).toLowerCase()
  if (FORMATS.some((format) => format.extension === extension)) {
    throw new ImageError(
      bytes,
      0,
      `it has no signature of a ${
        extension.slice(1).toUpperCase()
      }, so it is damaged or of another format. ` +
        'If it is a raw image, name it .img',
    )
  }
  const start = (await bytes.read(0, Math.min(bytes.size, 4))).toString('latin1')
  if (OTHERS.includes(extension) || start === 'QFI\xfb') {
    throw new ImageError(
      bytes,
      0,
      'its format is none of VDI, VMDK, VHD, VHDX and raw. ' +
        `Run: qemu-img convert -O vdi "${printable(bytes.name)}" whole.vdi, and convert that`,
    )
  }
  return openRaw(bytes)
}

/** Opens an image that was written here, to read it again. */
export async function openWritten(
  path: string,
  format: Exclude<Format, 'vmdk'>,
): Promise<{ image: Image; close: () => Promise<void> }> {
  const files = new Files()
  try {
    const bytes = await files.open(path)
    const open = { vdi: openVdi, vhd: openVhd, vhdx: openVhdx, raw: openRaw }[format]
    const image = await open(bytes)
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
  for await (const { offset, length } of image.runs()) {
    const first = Math.max(last + 1, Math.floor(offset / WINDOW))
    last = Math.floor((offset + length - 1) / WINDOW)
    windows += last - first + 1
    allocatedSize += length
  }
  return { allocatedSize, windows }
}

/** The files that a source is read from, read only. */
class Files {
  #files: { path: string; file: FileHandle; stat: BigIntStats }[] = []

  async open(path: string): Promise<Bytes> {
    const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
      const why: Record<string, string> = {
        ENOENT: 'there is no such file',
        EACCES: 'its rights do not let this user read it',
        EPERM: 'its rights do not let this user read it',
        EBUSY: 'another program has it open. Shut the VM down and run again',
      }
      const reason = why[error.code ?? ''] ?? error.message
      throw new Error(`Cannot read "${printable(path)}": ${reason}`, { cause: error })
    })
    const stat = await file.stat({ bigint: true })
    this.#files.push({ path, file, stat })
    if (!stat.isFile()) {
      throw new Error(`Cannot read "${printable(path)}": it is no file. Name a disk image`)
    }
    return fileBytes(path, file, Number(stat.size))
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

  async has(path: string): Promise<boolean> {
    const other = await stat(path, { bigint: true }).catch(() => undefined)
    return this.#files.some(({ stat }) => other?.ino === stat.ino && other.dev === stat.dev)
  }

  async close(): Promise<void> {
    await Promise.all(this.#files.splice(0).map(({ file }) => file.close()))
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
