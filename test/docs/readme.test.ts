import { deepEqual, ok } from 'node:assert/strict'
import fs from 'fs-extra'
import { join } from 'node:path'
import { suite } from 'uvu'

const root = join(import.meta.dirname as string, '..', '..')
const readmes = ['README.md', 'README.zh-CN.md'] as const
const read = (file: string) => fs.readFile(join(root, file), 'utf8')
const readme = suite('README')

readme('has the same commands in each language', async () => {
  const commands = async (file: string) => {
    const text = await read(file)
    const lines = text.split(/\r?\n/).filter((line) => line.startsWith('    '))
    // comments are for people
    return lines.map((line) => line.replace(/\s+# .*$|^ +# .*$/, '').trimEnd()).filter(Boolean)
  }
  const [english, chinese] = await Promise.all(readmes.map(commands))
  ok(english !== undefined && english.length > 20)
  deepEqual(chinese, english)
})

readme('links to what is there, the same in each language', async () => {
  const links = async (file: string) => {
    const found = [...(await read(file)).matchAll(/\]\(([^)#]+)[^)]*\)/g)].map(([, path]) =>
      path as string
    )
    return found.filter((path) => !/^(https?:|README)/.test(path)).sort()
  }
  const [english, chinese] = await Promise.all(readmes.map(links))
  deepEqual(chinese, english)
  for (const path of english ?? []) ok(await fs.pathExists(join(root, path)), path)
})

readme('names every task', async () => {
  const tasks = (await fs.readdir(join(root, 'tasks'))).filter((name) => name.endsWith('.ts'))
  for (const file of readmes) {
    const text = await read(file)
    deepEqual([file, tasks.filter((name) => !text.includes(`(tasks/${name})`))], [file, []])
  }
})

readme.run()
