/** The disks of an exported VM: of an OVA where they lie in it, of an OVF beside it. */
import { randomBytes } from 'node:crypto'
import { basename, dirname, extname, join } from 'node:path'
import process from 'node:process'
import {
  digestOf,
  type DiskFile,
  disksOf,
  hash,
  isTar,
  listMembers,
  type Member,
  member,
} from './archive.ts'
import type { Files } from './files.ts'
import { type Bytes, ImageError, MB, printable } from './image.ts'

export interface Package {
  /** The disks' names, in the OVF's order. */
  disks: string[]
  /** Of an OVA, all its files and where they lie. */
  members?: Member[]
  /** Another file of the package, by its plain name. */
  open: (name: string) => Promise<Bytes>
  /** A disk, put together from its pieces and inflated, as the OVF says of it. */
  openDisk: (name: string) => Promise<Bytes>
  /** Whether a disk is one file as it is stored, neither in chunks nor compressed as a file. */
  isSingle: (name: string) => boolean
  /** Compares a disk, and the OVF that describes it, with the manifest. */
  verify: (name: string, signal: AbortSignal) => Promise<void>
  /** What of a disk no manifest vouches for, as a sentence. */
  unverified: (name: string) => Promise<string | undefined>
}

/** Undefined for what is no OVA and no OVF. `folder` is where a compressed disk may be inflated to. */
export async function openPackage(
  bytes: Bytes,
  path: string,
  files: Files,
  folder: string,
): Promise<Package | undefined> {
  if (await isTar(bytes)) {
    const members = await listMembers(bytes)
    const find = (test: (name: string) => boolean) => members.find(({ name }) => test(name))
    const ovf = find((name) => extname(name).toLowerCase() === '.ovf')
    const manifest = find((name) => extname(name).toLowerCase() === '.mf')
    const open = (name: string) => {
      const found = find((other) => other === name)
      if (found) return Promise.resolve(member(bytes, found))
      throw new ImageError(bytes, 0, `it has no member "${printable(name)}", which it names`)
    }
    const all = members.map(({ name }) => name).filter((name) => name !== manifest?.name)
    const disks = ovf
      ? await disksOf(member(bytes, ovf))
      : all.map((name): DiskFile => ({ name, parts: () => [name] }))
    const lists = manifest && member(bytes, manifest)
    return { members, ...assemble({ path, ovf: ovf?.name, disks, open, lists, files, folder }) }
  }
  if (extname(path).toLowerCase() === '.ova') {
    throw new ImageError(bytes, 0, 'it does not begin as a tar does, which every OVA is')
  }
  const start = await bytes.read(0, Math.min(bytes.size, 4096))
  if (extname(path).toLowerCase() !== '.ovf' || !start.includes('Envelope')) return undefined
  const open = (name: string) => {
    if (/[\\/]|^\.\.?$|^[a-z]:/i.test(name)) {
      throw new ImageError(bytes, 0, `its file "${printable(name)}" is not beside it`)
    }
    return files.open(join(dirname(path), name))
  }
  const manifest = path.slice(0, -extname(path).length) + '.mf'
  const lists = await files.open(manifest).catch((error) => {
    if ((error as { cause?: NodeJS.ErrnoException }).cause?.code === 'ENOENT') return undefined
    throw error
  })
  const disks = await disksOf(bytes)
  return assemble({ path, ovf: basename(path), disks, open, lists, files, folder })
}

function assemble({ path, ovf, disks, open, lists, files, folder }: {
  path: string
  /** The name of the OVF; a tar without one is a row of disks. */
  ovf: string | undefined
  disks: DiskFile[]
  open: Package['open']
  /** The manifest. */
  lists: Bytes | undefined
  files: Files
  folder: string
}): Package {
  const find = (name: string) => disks.find((disk) => disk.name === name) as DiskFile
  const stored = new Map<string, Promise<Bytes[]>>()
  const openParts = (disk: DiskFile): Promise<Bytes[]> => {
    const known = stored.get(disk.name)
    if (known) return known
    const opening = (async () => {
      const parts: Bytes[] = []
      for (const name of disk.parts()) parts.push(await open(name))
      return parts
    })()
    stored.set(disk.name, opening)
    return opening
  }
  const named = (disk: DiskFile) => [...(ovf === undefined ? [] : [ovf]), ...disk.parts()]
  const listed = async (name: string) => lists && await digestOf(lists, name)
  return {
    disks: disks.map(({ name }) => name),
    open,
    openDisk: async (name) => {
      const disk = find(name)
      const packed = concatenate(`${printable(path)}/${name}`, await openParts(disk))
      if (!disk.gzip) return packed
      const temporary = `${process.pid}-${randomBytes(4).toString('hex')}.partial`
      // grains and headers take a little more than the disk itself
      const most = Math.ceil((disk.capacity ?? Infinity) * 1.1) + 64 * MB
      return await files.inflate(packed, join(folder, `${basename(name)}.${temporary}`), most)
    },
    isSingle: (name) => !find(name).gzip && find(name).parts()[0] === name,
    verify: async (name, signal) => {
      for (const part of named(find(name))) {
        const expected = await listed(part)
        if (!expected) continue
        const bytes = await open(part)
        const digest = await hash(bytes, expected.algorithm, signal)
        if (digest === expected.digest) continue
        throw new Error(
          `Cannot convert "${printable(bytes.name)}": its ${expected.algorithm.toUpperCase()} is ` +
            `${digest}, and the manifest says ${expected.digest}, so it is damaged. ` +
            'Copy or export it again',
        )
      }
    },
    unverified: async (name) => {
      if (!lists) {
        return `"${printable(basename(path))}" has no manifest, so damage to it cannot be seen`
      }
      const missing: string[] = []
      for (const part of named(find(name))) if (!await listed(part)) missing.push(part)
      if (missing.length === 0) return undefined
      const what = missing.map((name) => `"${printable(name)}"`).join(', ')
      return `The manifest of "${printable(basename(path))}" lacks ${what}, ` +
        'so damage to that cannot be seen'
    },
  }
}

/** Parts one behind the other as one file. */
function concatenate(name: string, parts: Bytes[]): Bytes {
  const [only] = parts
  if (parts.length === 1 && only) return only
  const starts: number[] = []
  let size = 0
  for (const part of parts) {
    starts.push(size)
    size += part.size
  }
  return {
    name,
    size,
    read: async (position, length, into = Buffer.allocUnsafe(length)) => {
      if (position + length > size) throw new ImageError({ name }, size, 'the file ends there')
      let index = starts.findLastIndex((start) => start <= position)
      for (let done = 0; done < length; index++) {
        const part = parts[index] as Bytes
        const at = position + done - (starts[index] as number)
        const count = Math.min(length - done, part.size - at)
        await part.read(at, count, into.subarray(done, done + count))
        done += count
      }
      return into
    },
  }
}
