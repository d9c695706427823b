/**
 * What VirtualBox notes of disks in the settings of their VM, the `.vbox` file beside them: where each
 * is, whether it is encrypted, and whether the VM is in a saved state.
 * Source: VirtualBox's VirtualBox-settings.xsd.
 */
import { readdir, readFile, stat } from 'node:fs/promises'
import { dirname, extname, join, resolve } from 'node:path'
import process from 'node:process'
import { MB } from './image.ts'

export interface Medium {
  /** In the usual notation, without braces. */
  uuid: string
  /** Absolute. */
  location: string
  encrypted: boolean
}

export interface Machine {
  name: string
  /** The VM waits in the middle of its work, with parts of its disks in memory. */
  saved: boolean
  media: Medium[]
}

/** More than any settings have: a file that takes long is none. */
const MOST = 16 * MB

/** The VMs whose settings lie beside an image, or a folder above, as those of a snapshot do. */
export async function findMachines(image: string): Promise<Machine[]> {
  const folder = dirname(resolve(image))
  const machines: Machine[] = []
  for (const place of new Set([folder, dirname(folder)])) {
    const names = await readdir(place).catch(() => [])
    for (const name of names.filter((name) => extname(name).toLowerCase() === '.vbox')) {
      const machine = await readMachine(join(place, name))
      if (machine) machines.push(machine)
    }
  }
  return machines
}

/** Whether two paths are the same file, in the manner of the system. */
export function isSame(a: string, b: string): boolean {
  const fold = (path: string) => {
    return process.platform === 'win32' ? resolve(path).toLowerCase() : resolve(path)
  }
  return fold(a) === fold(b)
}

type Node = Record<string, unknown>

const nodes = (value: unknown): Node[] => {
  const all: unknown[] = Array.isArray(value) ? value : [value]
  return all.filter((node): node is Node => typeof node === 'object' && node !== null)
}

/** Undefined for what is not, or cannot be read as, settings of a VM: they are of no use here, and no obstacle. */
async function readMachine(path: string): Promise<Machine | undefined> {
  const found = await stat(path).catch(() => undefined)
  if (!found?.isFile() || found.size > MOST) return undefined
  const text = await readFile(path, 'utf8').catch(() => '')
  const { XMLParser } = await import('fast-xml-parser') // a disk alone needs none, and 60 ms less
  const parser = new XMLParser({ ignoreAttributes: false, parseAttributeValue: false })
  let machine: Node | undefined
  try {
    machine = nodes(nodes(parser.parse(text).VirtualBox)[0]?.Machine)[0]
  } catch {
    return undefined
  }
  if (!machine) return undefined
  const media: Medium[] = []
  const collect = (parent: Node | undefined) => {
    for (const disk of nodes(parent?.HardDisk)) {
      media.push({
        uuid: String(disk['@_uuid']).replace(/[{}]/g, '').toLowerCase(),
        location: resolve(dirname(path), String(disk['@_location'])),
        encrypted: nodes(disk.Property).some((it) => String(it['@_name']).startsWith('CRYPT/')),
      })
      collect(disk)
    }
  }
  collect(nodes(nodes(machine.MediaRegistry)[0]?.HardDisks)[0])
  return {
    name: String(machine['@_name']),
    saved: machine['@_stateFile'] !== undefined,
    media,
  }
}
