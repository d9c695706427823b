/** Where the parents of differencing images are looked for. */
import { readdir } from 'node:fs/promises'
import { dirname, extname, join, resolve, win32 } from 'node:path'
import process from 'node:process'
import type { Candidate, Place } from './chain.ts'
import { Files } from './files.ts'
import type { ParentLink } from './image.ts'
import type { Package } from './package.ts'
import { findMachines, type Machine } from './registry.ts'

/** Extensions of images that can have children. */
const EXTENSIONS = ['.vdi', '.vmdk', '.vhd', '.vhdx', '.avhd', '.avhdx']
/** A folder of more is no VM's. */
const MOST_FILES = 4096

/** The paths that the child names, then its VM's settings, then the images beside it and above. */
export class Beside implements Place {
  readonly name: string
  readonly #machines: Machine[]
  readonly #files: Files

  constructor(path: string, machines: Machine[], files: Files) {
    this.name = resolve(path)
    this.#machines = machines
    this.#files = files
  }

  async *candidates({ paths, identifier }: ParentLink): AsyncGenerator<Candidate> {
    const folder = dirname(this.name)
    const named = paths.flatMap((path) => {
      const beside = join(folder, win32.basename(path)) // both kinds of slash end a folder
      // an image must not make this machine log in somewhere, or read what is no file
      if (/^([\\/]{2}|[\\/]dev[\\/])/.test(path)) return [beside]
      const local = process.platform === 'win32' ? path : path.replaceAll('\\', '/')
      return [resolve(folder, local), beside]
    })
    const media = this.#machines.flatMap(({ media }) => media)
    const listed = media.filter(({ uuid }) => uuid === identifier).map(({ location }) => location)
    const all = [...named, ...listed, ...await imagesOf(folder), ...await imagesOf(dirname(folder))]
    for (const path of new Set(all)) {
      if (path === this.name) continue
      const files = new Files()
      const bytes = await files.open(path).catch(() => undefined)
      if (!bytes) continue // named once, and no longer there
      yield {
        bytes,
        sibling: (name) => files.open(join(dirname(path), name)),
        take: async () => {
          this.#files.adopt(files)
          return new Beside(path, [...this.#machines, ...await findMachines(path)], this.#files)
        },
        close: () => files.close(),
      }
    }
  }
}

async function imagesOf(folder: string): Promise<string[]> {
  const names = (await readdir(folder).catch(() => [])).slice(0, MOST_FILES)
  return names.filter((name) => EXTENSIONS.includes(extname(name).toLowerCase()))
    .map((name) => join(folder, name))
}

/** The other disks of an OVA or OVF. */
export class Inside implements Place {
  readonly name: string
  readonly #package: Package

  constructor(package_: Package, name: string) {
    this.name = name
    this.#package = package_
  }

  async *candidates(): AsyncGenerator<Candidate> {
    for (const name of this.#package.disks) {
      if (name === this.name) continue
      yield {
        bytes: await this.#package.openDisk(name),
        sibling: this.#package.open,
        take: () => Promise.resolve(new Inside(this.#package, name)),
        close: () => Promise.resolve(),
      }
    }
  }
}
