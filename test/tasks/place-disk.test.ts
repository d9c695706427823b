import fs from 'fs-extra'
import { equal, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { placeDisk, undoPlaceDisk } from '../../tasks/place-disk.ts'
import { needs } from '../needs.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const placing = suite<{ host: SimulatedHost; from: string; to: string }>('placeDisk')
const test = needs(placing, 'pwsh')

placing.before.each(async (context) => {
  context.host = await simulatedHost()
  context.from = join(context.host.dir, 'Bob’s [1] $(calc).vhdx')
  context.to = join(context.host.dir, 'made', '桥接', 'it’s.vhdx')
  await fs.writeFile(context.from, 'a disk')
})
placing.after.each(({ host }) => host.close())

test('copies the disk and makes the folder', async ({ host, from, to }) => {
  const result = await placeDisk({ from, to }, host.ps)
  equal(result.changed, true)
  equal(result.path, to)
  equal(result.size, 6)
  equal(await fs.readFile(to, 'utf8'), 'a disk')
  equal((await fs.readdir(join(to, '..'))).length, 1)
})

test('leaves an equal copy as it is', async ({ host, from, to }) => {
  await placeDisk({ from, to }, host.ps)
  const { mtimeMs } = await fs.stat(to)
  equal((await placeDisk({ from, to }, host.ps)).changed, false)
  equal((await fs.stat(to)).mtimeMs, mtimeMs)
})

test('makes nothing on a dry run', async ({ host, from, to }) => {
  equal((await placeDisk({ from, to, dryRun: true }, host.ps)).changed, true)
  equal(await fs.pathExists(join(host.dir, 'made')), false)
})

test('refuses to replace another file', async ({ host, from, to }) => {
  await fs.outputFile(to, 'another')
  await rejects(placeDisk({ from, to }, host.ps), {
    message: `Cannot copy to "${to}": another file is there. Remove it, or choose another folder`,
  })
  equal(await fs.readFile(to, 'utf8'), 'another')
})

test('refuses a source that is not there', async ({ host, to }) => {
  const from = join(host.dir, 'none.vhdx')
  await rejects(placeDisk({ from, to }, host.ps), {
    message: `Cannot copy "${from}": no such file. Copy the disk there and run again`,
  })
})

test('is taken back with its folder, and the disk it copied stays', async ({ host, from, to }) => {
  const result = await placeDisk({ from, to }, host.ps)
  await undoPlaceDisk(result, host.ps)
  equal(await fs.pathExists(to), false)
  equal(await fs.pathExists(from), true)
  await undoPlaceDisk(result, host.ps)
})

placing.run()
