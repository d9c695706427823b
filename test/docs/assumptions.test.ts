import { deepEqual } from 'node:assert/strict'
import fs from 'fs-extra'
import { join } from 'node:path'
import { suite } from 'uvu'

const root = join(import.meta.dirname as string, '..', '..')
const docs = suite('docs/assumptions.md')

docs(
  'lists every file of tasks and recipes that assumes something, and none that is not there',
  async () => {
    const list = await fs.readFile(join(root, 'docs', 'assumptions.md'), 'utf8')
    const linked = new Set(
      [...list.matchAll(/\]\(\.\.\/([^)]+)\)/g)].map(([, path]) => path as string),
    )
    for (const path of linked) {
      deepEqual([path, await fs.pathExists(join(root, path))], [path, true])
    }
    const missing: string[] = []
    for (const folder of ['tasks', 'recipes']) {
      for (const name of await fs.readdir(join(root, folder), { recursive: true }) as string[]) {
        const path = `${folder}/${name.replaceAll('\\', '/')}`
        if (!/\.(ts|ps1|sh)$/.test(path) || linked.has(path)) continue
        if (/assum/i.test(await fs.readFile(join(root, path), 'utf8'))) missing.push(path)
      }
    }
    deepEqual(missing, [])
  },
)

docs.run()
