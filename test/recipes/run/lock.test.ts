import fs from 'fs-extra'
import { equal, match, rejects } from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { lock } from '../../../recipes/run/lock.ts'

const locks = suite<{ state: string }>('lock')

locks.before.each(async (context) => {
  context.state = await fs.mkdtemp(join(tmpdir(), 'lock-'))
})
locks.after.each(({ state }) => fs.remove(state))

const vm = { key: 'vm web', what: 'the VM "web"' }
const host = { key: 'host local', what: 'this machine’s Hyper-V' }

locks('keeps a second run out, and names the first', async ({ state }) => {
  const release = await lock(state, [vm, host], 'the run one')
  await rejects(lock(state, [host], 'the run two'), ({ message }: Error) => {
    match(
      message,
      /^Cannot work on this machine’s Hyper-V: the run one has it \(process \d+, since 20.+Z\)\. Wait/,
    )
    return message.includes(`process ${process.pid},`)
  })
  await release()
  await (await lock(state, [host], 'the run two'))()
})

locks('takes all or none', async ({ state }) => {
  const release = await lock(state, [host], 'the run one')
  await rejects(lock(state, [vm, host], 'the run two'))
  await (await lock(state, [vm], 'the run three'))()
  await release()
  equal(await fs.pathExists(join(state, 'locks')), false)
})

locks('lets runs be that have nothing in common', async ({ state }) => {
  const one = await lock(state, [vm], 'the run one')
  const two = await lock(state, [host], 'the run two')
  await one()
  await two()
})

locks('takes what a run left that was killed', async ({ state }) => {
  const child = spawn(process.execPath, ['--version'], { stdio: 'ignore' })
  const { pid } = child
  await once(child, 'exit')
  await change(state, { pid: pid as number })
  await (await lock(state, [vm], 'the run two'))()
})

locks('takes what is older than this start of the computer', async ({ state }) => {
  await change(state, { since: '2001-01-01T00:00:00.000Z' })
  await (await lock(state, [vm], 'the run two'))()
})

locks('believes another computer as long as it says that it lives', async ({ state }) => {
  const file = await change(state, { computer: `not-${hostname()}`, pid: 1 })
  await rejects(lock(state, [vm], 'the run two'), /on not-/)
  const old = new Date(Date.now() - 600_000)
  await fs.utimes(file, old, old)
  await (await lock(state, [vm], 'the run two'))()
})

locks('takes a file that is no lock for a stale one', async ({ state }) => {
  const file = await change(state, {})
  await fs.writeFile(file, 'what else')
  const old = new Date(Date.now() - 60_000)
  await fs.utimes(file, old, old)
  await (await lock(state, [vm], 'the run two'))()
})

locks('gives a stale lock to one of many', async ({ state }) => {
  await change(state, { since: '2001-01-01T00:00:00.000Z' })
  const taken = await Promise.allSettled(
    Array.from({ length: 20 }, (_, n) => lock(state, [vm], `the run ${n}`)),
  )
  equal(taken.filter(({ status }) => status === 'fulfilled').length, 1)
})

locks('says which folder refuses a run, and what names another', async ({ state }) => {
  const file = join(state, 'file')
  await fs.writeFile(file, '')
  await rejects(
    lock(file, [vm], 'the run one'),
    /^Error: Cannot keep a run's journal in ".+file": .+\. Name another folder by --state DIR$/,
  )
})

/** Leaves a lock behind, of another owner. */
async function change(state: string, owner: object): Promise<string> {
  await lock(state, [vm], 'the run one')
  const [name = ''] = await fs.readdir(join(state, 'locks'))
  const file = join(state, 'locks', name)
  await fs.writeJson(file, { ...await fs.readJson(file), token: 'another', ...owner })
  return file
}

locks.run()
