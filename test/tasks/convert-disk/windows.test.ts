/** Paths as Windows has them. Those that need its file systems run there, and under Wine. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { convertDisk, inspectDisk } from '../../../tasks/convert-disk.ts'
import { strangeName } from '../../../tasks/convert-disk/target.ts'
import { disk, MB, vdi } from './images.ts'

const names = suite('a file name on Windows')

names('is refused where it is a device, or another name to other programs', () => {
  for (
    const name of ['NUL', 'nul.vhdx', 'Con .vhdx', 'COM1.vhd', 'lpt².img', 'CONIN$', 'aux.a.b']
  ) {
    match(String(strangeName(name)), /is a device of Windows/, name)
  }
  for (const name of ['a.vhdx.', 'a.vhdx ', 'a.vhdx:stream', 'a|b.vhdx', 'a"b.vhdx', 'a?.vhdx']) {
    match(String(strangeName(name)), /^Windows takes no /, name)
  }
  for (
    const name of ['a.vhdx', 'console.vhdx', 'com10.vhdx', 'my nul.vhdx', '-桥接 $(x) `’.vhdx']
  ) {
    equal(strangeName(name), undefined, name)
  }
})

names.run()

const paths = suite<{ dir: string; from: string }>('a path on Windows')
// elsewhere there is nothing to skip: such paths are other names there
const windows = process.platform === 'win32'
  ? paths
  : (_name: string, _test: (context: { dir: string; from: string }) => Promise<void>) => {}

paths.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'windows-'))
  context.from = join(context.dir, 'a.vdi')
  await fs.writeFile(context.from, vdi(disk(3 * MB)))
})
paths.after.each(({ dir }) => fs.remove(dir))

windows(
  'may have a small drive letter, slashes either way, spaces, and \\\\?\\',
  async ({ dir, from }) => {
    const forms = [
      from.replaceAll('\\', '/'),
      from.replace(/^\w/, (letter) => letter.toLowerCase()),
      `\\\\?\\${from}`,
    ]
    for (const [index, form] of forms.entries()) {
      const to = join(dir, 'a folder', `${index} a.vhdx`).replaceAll('\\', '/')
      const { path } = await convertDisk({ from: form, to, verify: true })
      equal(path, join(dir, 'a folder', `${index} a.vhdx`))
    }
  },
)

windows('may be longer than 260 characters', async ({ dir, from }) => {
  const folder = join(dir, ...Array.from({ length: 12 }, (_, n) => `${n} `.padEnd(30, 'x')))
  ok(folder.length > 260)
  const to = join(folder, 'a.vhdx')
  await convertDisk({ from, to, verify: true })
  equal((await inspectDisk({ from: to }))[0]?.virtualSize, 3 * MB)
})

windows('is the same file in each of its forms', async ({ from }) => {
  const before = await fs.readFile(from)
  for (const to of [from.toUpperCase(), from.replaceAll('\\', '/'), `\\\\?\\${from}`]) {
    await rejects(convertDisk({ from, to, format: 'vdi', force: true }), /to itself/)
  }
  ok(before.equals(await fs.readFile(from)))
})

windows(
  'that is a device’s or a stream’s is refused, and nothing is made',
  async ({ dir, from }) => {
    for (const name of ['NUL.vhdx', 'a.vhdx:b', 'a.vhdx.']) {
      const to = `${dir}\\new\\${name}`
      await rejects(convertDisk({ from, to, format: 'vhdx' }), /Name another file by --to/)
    }
    deepEqual(await fs.readdir(dir), ['a.vdi'])
  },
)

windows('on a drive that is not there is refused', async ({ from }) => {
  await rejects(
    convertDisk({ from, to: 'Q:\\new\\a.vhdx' }),
    /a\.vhdx": there is no such drive\. Name/,
  )
  await rejects(convertDisk({ from: 'Q:\\a.vdi', to: 'Q:\\a.vhdx' }), /there is no such file/)
})

windows('of somebody who has it open is refused as a source', async ({ dir, from }) => {
  const other = await fs.open(from, 'r+')
  try {
    const to = join(dir, 'a.vhdx')
    await rejects(convertDisk({ from, to }), /another program has it open for writing/)
  } finally {
    await fs.close(other)
  }
  await convertDisk({ from, to: join(dir, 'a.vhdx') })
})

paths.run()
