/** The files that a VM is read from, as they were before a run, to prove after it that they still are so. */
import fs from 'fs-extra'
import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, open, readdir } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import type { VmDescription } from '../../tasks/inspect-vm.ts'
import type { Journal } from './journal.ts'
import { FEATURES, type Plan } from './plan.ts'

/** A file of the source. */
export interface SourceFile {
  /** Absolute. */
  path: string
  /** Bytes. */
  size: number
  /** When it was last written, ISO 8601, UTC. */
  modified: string
  /** SHA-256 in hexadecimal digits; of a file above 8 MB of its first and its last MB. */
  sha256: string
}

/**
 * Looks at each file that the VM is made of: its settings, and every image of its disks. Of an image it
 * reads where its header is and where it grows; what is written elsewhere in it changes its time.
 */
export async function fingerprint(vm: VmDescription): Promise<SourceFile[]> {
  const files = new Set(vm.settings === undefined ? [] : [vm.settings])
  for (const { path, member = '', packed, chain } of vm.disks) {
    const images = [...new Set([path, ...chain])]
    for (const image of images) {
      files.add(image)
      for (const extent of await extentsOf(image)) files.add(extent)
    }
    if (packed === undefined || vm.kind !== 'ovf') continue
    const isPart = (name: string) => name === member || /^\.\d{9}$/.test(name.slice(member.length))
    const parts = (await readdir(dirname(path))).filter((name) => name.startsWith(member))
    for (const name of parts.filter(isPart).sort()) files.add(join(dirname(path), name))
  }
  return await Promise.all([...files].map((path) =>
    look(path).catch((cause: Error) => {
      const why = cause.message.split(',')[0]
      throw new Error(`Cannot read "${path}": ${why}. Let yourself read it, and run again`, {
        cause,
      })
    })
  ))
}

/** What is not as it was: a clause for each file that differs, none for a source that is unchanged. */
export async function changedSince(files: readonly SourceFile[]): Promise<string[]> {
  const said = await Promise.all(files.map(async ({ path, size, modified, sha256 }) => {
    const now = await look(path).catch((error: NodeJS.ErrnoException) => error)
    if (now instanceof Error) {
      const { code, message } = now
      return code === 'ENOENT'
        ? `"${path}" is gone`
        : `"${path}" cannot be read any more (${code ?? message})`
    }
    if (now.size !== size) return `"${path}" had ${size} bytes and has ${now.size}`
    if (now.sha256 !== sha256) return `"${path}" has other contents since ${now.modified}`
    // of one that was read whole its time says nothing more
    return size > WHOLE && now.modified !== modified
      ? `"${path}" was written to at ${now.modified}`
      : []
  }))
  return said.flat()
}

/**
 * Why a run that was cut off cannot go on: what it has made is of a source that is no more. `journals` are
 * those of earlier runs, oldest first.
 */
export async function refuseChanged(journals: readonly Journal[], plan: Plan): Promise<string[]> {
  const wanted = placeOf(plan)
  const last = journals.findLast((journal) => placeOf(journal.plan) === wanted)
  if (!last || last.outcome === 'done' || last.outcome === 'undone') return []
  // of one that has made nothing there is nothing to go on with
  if (!last.done.some(({ step, result }) => step !== FEATURES && result.changed)) return []
  const changed = await changedSince(last.source)
  if (changed.length === 0) return []
  return [
    `Cannot go on with the run ${last.run}: its source has changed since it began: ` +
    `${changed.join('; ')}. Take it back, and run again: npx zx recipes/undo.ts ${last.run}`,
  ]
}

/** Equal for two plans of one VM and one target, however the VM's files are. */
function placeOf({ name, source, target }: Plan): string {
  const where = target.kind === 'bundle' ? target.dir : target.kind === 'ssh' ? target.url : ''
  return JSON.stringify([name, source.disks.map(({ path }) => path), target.kind, where])
}

/** A VMDK may be a text that names the files with the data. */
async function extentsOf(image: string): Promise<string[]> {
  if (!/\.vmdk$/i.test(image) || (await fs.stat(image)).size > MB) return []
  const text = await fs.readFile(image, 'utf8')
  if (!text.startsWith('# Disk DescriptorFile')) return []
  const paths = [...text.matchAll(EXTENT)].map(([, name = '']) => resolve(dirname(image), name))
  const there = await Promise.all(paths.map((path) => fs.pathExists(path)))
  return paths.filter((_, index) => there[index])
}

const EXTENT = /^(?:RW|RDONLY)\s+\d+\s+\w+\s+"(.+?)"/gm

async function look(path: string): Promise<SourceFile> {
  const handle = await open(path, 'r')
  try {
    const { size, mtime } = await handle.stat()
    const hash = createHash('sha256')
    if (size <= WHOLE) await add(hash, handle, 0, size)
    else {
      await add(hash, handle, 0, MB)
      await add(hash, handle, size - MB, MB)
    }
    return { path, size, modified: mtime.toISOString(), sha256: hash.digest('hex') }
  } finally {
    await handle.close()
  }
}

async function add(hash: Hash, handle: FileHandle, from: number, length: number): Promise<void> {
  const buffer = new Uint8Array(Math.min(length, MB))
  for (let done = 0; done < length;) {
    const wanted = Math.min(buffer.length, length - done)
    const { bytesRead } = await handle.read(buffer, 0, wanted, from + done)
    if (bytesRead === 0) return
    hash.update(buffer.subarray(0, bytesRead))
    done += bytesRead
  }
}

const MB = 1024 ** 2

/** Bytes up to which a file is read whole. */
const WHOLE = 8 * MB
