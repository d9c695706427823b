/** Conversions that are stopped or killed, and gone on with. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import {
  convertDisk,
  type ConvertDiskOptions,
  type ConvertDiskProgress,
  convertDisks,
  type Format,
  sizeOfUnfinished,
  undoUnfinishedConvertDisk,
} from '../../../tasks/convert-disk.ts'
import { flusher } from '../../../tasks/convert-disk/flush.ts'
import { anotherProcess } from './another.ts'
import { disk, manifest, MB, ovf, tar, vdi, vmdk } from './images.ts'

interface Context {
  dir: string
  file: (name: string, data?: Buffer | string) => Promise<string>
}

const resumes = suite<Context>('convertDisk with resume')
resumes.before.each(async (context) => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'checkpoint-'))
  Object.assign(context, {
    dir,
    file: async (name: string, data?: Buffer | string) => {
      const path = join(dir, name)
      if (data !== undefined) await fs.outputFile(path, data)
      return path
    },
  })
})
resumes.after.each(({ dir }) => fs.remove(dir))

/** A disk of 20 MB and some sectors, a part of which is empty. */
const data = disk(20 * MB + 512 * 3, 4)
data.fill(0, 7 * MB, 11 * MB)

const runtime = [...('Deno' in globalThis ? ['run', '-A'] : [])]
const helper = join(import.meta.dirname as string, 'interrupted.ts')
const task = join(import.meta.dirname as string, '..', '..', '..', 'tasks', 'convert-disk.ts')

/** Converts in a process that is killed once `share` of what is to be read is done. */
async function killed(options: ConvertDiskOptions, share: number, total: number): Promise<void> {
  const given = [JSON.stringify({ ...options, resume: true }), String(share * total)]
  const child = spawn(process.execPath, [...runtime, helper, ...given], { stdio: 'inherit' })
  const [code, signal] = await once(child, 'exit')
  // Windows has no signals: what is ended so has exit code 1
  if (process.platform === 'win32') equal(code, 1)
  else equal(signal, 'SIGKILL', `it ended with ${code}`)
}

/** Converts and stops at the first progress of `share` or more. */
async function stopped(options: ConvertDiskOptions, share = 0.5): Promise<void> {
  const stop = new AbortController()
  const onProgress = ({ done, total }: ConvertDiskProgress) => {
    if (done >= share * total) stop.abort()
  }
  await rejects(
    convertDisk({ resume: true, ...options, signal: stop.signal, onProgress }),
    /^Error: Stopped: ".*" was not written to its end. Run the same again: it goes on from what is there$/,
  )
}

const leftOf = async (dir: string) =>
  (await fs.readdir(dir)).filter((name) => /\.(partial|checkpoint|new)$/.test(name))

const sum = async (path: string) =>
  createHash('sha256').update(await fs.readFile(path)).digest('hex')

/** Sources of several kinds: a file, a compressed one, a snapshot, an archive with a manifest, raw. */
const sources: Record<string, (file: Context['file']) => Promise<string>> = {
  vdi: (file) => file('a.vdi', vdi(data, { reversed: true })),
  vmdk: (file) => file('a.vmdk', vmdk(data, { compressed: true, atEnd: true })),
  raw: (file) => file('a.img', data),
  ova: (file) => {
    const entries = [
      { name: 'a.ovf', data: ovf('a.vmdk') },
      { name: 'a.vmdk', data: vmdk(data, { compressed: true }) },
    ]
    return file('a.ova', tar([...entries, { name: 'a.mf', data: manifest('SHA256', entries) }]))
  },
  snapshot: async (file) => {
    const [uuid, modified] = ['1', '2'].map((digit) =>
      `${digit.repeat(8)}-2222-4333-8444-555555555555`
    )
    const before = Buffer.from(data)
    before.fill('was so', 3 * MB, 5 * MB)
    before.fill('was so', 15 * MB, 17 * MB)
    await file('base.vdi', vdi(before, { uuid: uuid!, modified: modified! }))
    const parent = { uuid: uuid!, modified: modified!, data: before }
    return await file('{a}.vdi', vdi(data, { parent }))
  },
}

const cases: [Format, 'dynamic' | 'fixed', string][] = [
  ['vhdx', 'dynamic', 'ova'],
  ['vhdx', 'fixed', 'vdi'],
  ['vhd', 'dynamic', 'snapshot'],
  ['vhd', 'fixed', 'vmdk'],
  ['vdi', 'dynamic', 'raw'],
  ['vdi', 'fixed', 'ova'],
  ['raw', 'fixed', 'snapshot'],
]

for (const [format, type, source] of cases) {
  resumes(
    `writes the ${type} ${format} of an ${source} that was killed as if it had not been`,
    async ({ dir, file }) => {
      const from = await sources[source]!(file)
      const options = { from, format, type, seed: 'x' }
      const whole = await file('whole')
      const fresh = await convertDisk({ ...options, to: whole })
      const total = fresh.source.allocatedSize
      const to = await file('a')
      // a second time, too
      for (const share of source === 'ova' ? [0.2, 0.6] : [0.6]) {
        await killed({ ...options, to }, share, total)
        equal((await leftOf(dir)).filter((name) => !name.endsWith('.new')).length, 2)
        // what was written after the checkpoint may be there in part, and be anything
        const [partial = ''] = (await leftOf(dir)).filter((name) => name.endsWith('.partial'))
        const [kept = ''] = (await leftOf(dir)).filter((name) => name.endsWith('.checkpoint'))
        const { said } = await fs.readJson(join(dir, kept))
        const { size } = await fs.stat(join(dir, partial))
        const rest = Buffer.alloc(Math.max(0, size - said.length) + 12345, 'garbage')
        const handle = await fs.open(join(dir, partial), 'r+')
        await fs.write(handle, rest, 0, rest.length, said.length)
        await fs.close(handle)
      }
      const heard: ConvertDiskProgress[] = []
      const onProgress = (progress: ConvertDiskProgress) => heard.push(progress)
      const result = await convertDisk({ ...options, to, resume: true, onProgress })
      ok(result.resumedAt! >= total * 0.6 && result.resumedAt! < total, String(result.resumedAt))
      equal(heard[0]?.done, result.resumedAt)
      equal(heard[0]?.resumed, result.resumedAt)
      equal(heard.at(-1)?.done, total)
      deepEqual({ ...result, resumedAt: undefined }, { ...fresh, path: to, resumedAt: undefined })
      equal(await sum(to), await sum(whole))
      deepEqual(await leftOf(dir), [])
    },
  )
}

resumes('goes on with what was killed when all was read', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  const options = { from, to, seed: 'x', verify: true }
  const fresh = await convertDisk({ ...options, to: await file('whole.vhdx') })
  const total = fresh.source.allocatedSize
  await killed(options, 1, total)
  const { resumedAt, dataBytes } = await convertDisk({ ...options, resume: true })
  equal(resumedAt, total)
  equal(dataBytes, fresh.dataBytes)
  equal(await sum(to), await sum(join(dir, 'whole.vhdx')))
})

resumes('goes on where it was stopped, in larger blocks too', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  for (const blockSize of [MB, 8 * MB]) {
    const options = { from, to: await file(`${blockSize}.vhdx`), blockSize, seed: 'x' }
    const whole = await file(`whole-${blockSize}.vhdx`)
    await convertDisk({ ...options, to: whole })
    await stopped(options, 0.3)
    ok(await sizeOfUnfinished(options) > MB)
    await stopped(options, 0.8)
    const { resumedAt } = await convertDisk({ ...options, resume: true })
    ok(resumedAt! > 0)
    equal(await sum(options.to), await sum(whole))
    equal(await sizeOfUnfinished(options), 0)
  }
  deepEqual(await leftOf(dir), [])
})

resumes(
  'begins anew where source, format or block size are others by now',
  async ({ dir, file }) => {
    const from = await sources['vdi']!(file)
    const to = await file('a')
    const options: ConvertDiskOptions = { from, to, format: 'vhdx', seed: 'x' }
    const others: Partial<ConvertDiskOptions>[] = [
      { format: 'vdi' },
      { type: 'fixed' },
      { blockSize: 4 * MB },
      { from: await file('b.vdi', vdi(data, { reversed: true })) },
      {},
    ]
    for (const other of others) {
      await stopped(options)
      // the same bytes, written again
      if (!Object.keys(other).length) await fs.writeFile(from, await fs.readFile(from))
      const wanted = { ...options, ...other, resume: true }
      const whole = await file('whole')
      await convertDisk({ ...wanted, to: whole, force: true, resume: false })
      const { resumedAt } = await convertDisk(wanted)
      equal(resumedAt, undefined, JSON.stringify(other))
      equal(await sum(to), await sum(whole))
      deepEqual(await leftOf(dir), [])
      await fs.remove(to)
    }
  },
)

resumes('begins anew where what is there is damaged, foreign or forged', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  const options = { from, to, seed: 'x' }
  const whole = await file('whole.vhdx')
  await convertDisk({ ...options, to: whole })
  const names = async () => {
    const find = async (end: string) =>
      join(dir, (await leftOf(dir)).find((name) => name.endsWith(end)) ?? '')
    return { partial: await find('.partial'), checkpoint: await find('.checkpoint') }
  }
  type Said = Record<string, unknown> & {
    end: number
    last: number
    length: number
    blocks: string
  }
  const forge = (change: (said: Said) => void) => async () => {
    const { checkpoint, partial } = await names()
    const { said } = await fs.readJson(checkpoint) as { said: Said }
    change(said)
    const sum = createHash('sha256').update(JSON.stringify(said)).digest('hex')
    await fs.writeJson(checkpoint, { said, sum })
    await fs.truncate(partial, 100 * MB)
  }
  const ones = (bytes: number) => Buffer.alloc(bytes, 0xff).toString('base64')
  const overwrite = async (at: number, length: number) => {
    const handle = await fs.open((await names()).partial, 'r+')
    await fs.write(handle, Buffer.alloc(length, 'other'), 0, length, at)
    await fs.close(handle)
  }
  const changes: Record<string, () => Promise<unknown>> = {
    'no checkpoint': async () => fs.remove((await names()).checkpoint),
    'an empty one': async () => fs.writeFile((await names()).checkpoint, ''),
    'one cut short': async () => {
      const { checkpoint } = await names()
      await fs.truncate(checkpoint, (await fs.stat(checkpoint)).size - 9)
    },
    'one with another byte': async () => {
      const { checkpoint } = await names()
      const text = await fs.readFile(checkpoint, 'utf8')
      await fs.writeFile(checkpoint, text.replace(/"length":(\d)/, '"length":9$1'))
    },
    'a folder': async () => {
      const { checkpoint } = await names()
      await fs.remove(checkpoint)
      await fs.ensureDir(checkpoint)
    },
    'a huge one': async () => fs.truncate((await names()).checkpoint, 1024 ** 3),
    'other JSON': async () => fs.writeJson((await names()).checkpoint, [null]),
    'a file that is shorter': async () => fs.truncate((await names()).partial, 5 * MB),
    'a file of nothing': async () => {
      const { partial } = await names()
      const { size } = await fs.stat(partial)
      await fs.truncate(partial, 0)
      await fs.truncate(partial, size)
    },
    'a file of something else': () => overwrite(4 * MB, 8 * MB),
    'forged: all is done': forge((said) => {
      Object.assign(said, { end: 22 * MB, last: data.length, blocks: ones(2).slice(0, 3) })
    }),
    'forged: more is done': forge((said) => {
      const blocks = Buffer.from(said.blocks, 'base64')
      const block = said.last = said.end += 2 * MB
      blocks[Math.floor((block / (2 * MB) - 1) / 8)]! |= 1 << (block / (2 * MB) - 1) % 8
      said.blocks = blocks.toString('base64')
      said.length += 2 * MB
    }),
    'forged: no numbers': forge((said) => Object.assign(said, { end: -2 * MB, last: 'x' })),
    'forged: far beyond': forge((said) => Object.assign(said, { end: 2 ** 50, last: 2 ** 50 })),
    'forged: more blocks than there are': forge((said) =>
      Object.assign(said, { blocks: ones(MB) })
    ),
    'forged: another length': forge((said) => Object.assign(said, { length: said.length + 4096 })),
  }
  for (const [what, change] of Object.entries(changes)) {
    await stopped(options)
    await change()
    const { resumedAt } = await convertDisk({ ...options, resume: true })
    equal(resumedAt, undefined, what)
    equal(await sum(to), await sum(whole), what)
    await fs.remove(to)
    // what is no file of the kit's stays where it is
    for (const name of await leftOf(dir)) await fs.remove(join(dir, name))
  }
})

resumes('writes to no file that has another name, and through no link', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  const options = { from, to, seed: 'x' }
  await convertDisk({ ...options, to: await file('whole.vhdx') })
  for (const link of [fs.link, fs.symlink]) {
    const treasure = await file('treasure', 'treasure')
    await stopped(options)
    for (const name of await leftOf(dir)) {
      if (name.endsWith('partial')) await fs.remove(join(dir, name))
      if (name.endsWith('partial')) await link(treasure, join(dir, name))
      else await fs.symlink(treasure, join(dir, `${name}.new`))
    }
    equal((await convertDisk({ ...options, resume: true })).resumedAt, undefined)
    equal(await fs.readFile(treasure, 'utf8'), 'treasure')
    equal(await sum(to), await sum(join(dir, 'whole.vhdx')))
    deepEqual(await leftOf(dir), [])
    await fs.remove(to)
  }
})

const linux = process.platform === 'linux' ? resumes : resumes.skip
linux('goes on where the killed process’s number is another’s by now', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  await stopped({ from, to })
  const other = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
  await once(other, 'spawn')
  const before = Date.now() / 1000 - 120
  for (const name of await leftOf(dir)) {
    const renamed = join(dir, name.replace(/\.\d+-/, `.${other.pid}-`))
    await fs.rename(join(dir, name), renamed)
    await fs.utimes(renamed, before, before)
  }
  try {
    ok((await convertDisk({ from, to, resume: true })).resumedAt! > 0)
  } finally {
    other.kill('SIGKILL')
  }
  deepEqual(await leftOf(dir), [])
})

resumes('leaves alone what another process writes just now', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  await stopped({ from, to })
  const { pid, end } = anotherProcess()
  try {
    for (const name of await leftOf(dir)) {
      await fs.rename(join(dir, name), join(dir, name.replace(/\.\d+-/, `.${pid}-`)))
    }
    equal((await convertDisk({ from, to, resume: true })).resumedAt, undefined)
    equal((await leftOf(dir)).length, 2)
    deepEqual(await undoUnfinishedConvertDisk({ to }), { changed: false, path: to })
  } finally {
    end()
  }
})

resumes('leaves nothing when it fails in another way', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('new/a.vhdx')
  let times = 0
  const onProgress = () => {
    if (times++ === 3) fs.utimesSync(from, 1, 1)
  }
  const pace = { bytes: 1, seconds: 0 }
  await rejects(
    convertDisk({ from, to, resume: true, onProgress }, undefined, pace),
    /it was changed while it was read/,
  )
  deepEqual(await fs.readdir(dir), ['a.vdi'])
})

resumes('compares a manifest whole, whoever has read the beginning', async ({ dir, file }) => {
  // what is read for the digest alone takes longer than what is read before the stop
  const stream = vmdk(data, { gap: 128 * MB })
  const entries = [{ name: 'a.ovf', data: ovf('a.vmdk') }, { name: 'a.vmdk', data: stream }]
  const mf = { name: 'a.mf', data: manifest('SHA256', entries) }
  stream[20 * 512] = 1 // within the descriptor's sectors, where no reader looks
  const from = await file('a.ova', tar([...entries, mf]))
  const to = await file('a.vhdx')
  await stopped({ from, to }, 0)
  await rejects(
    convertDisk({ from, to, resume: true }),
    /its SHA256 is .* Copy or export it again$/,
  )
  deepEqual(await fs.readdir(dir), ['a.ova'])
})

resumes('is taken back before its end, or by a run that does not go on', async ({ dir, file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  await stopped({ from, to })
  deepEqual(await undoUnfinishedConvertDisk({ to }), { changed: true, path: to })
  deepEqual(await fs.readdir(dir), ['a.vdi'])
  deepEqual(await undoUnfinishedConvertDisk({ to }), { changed: false, path: to })
  await stopped({ from, to })
  equal((await convertDisk({ from, to })).resumedAt, undefined)
  deepEqual((await fs.readdir(dir)).sort(), ['a.vdi', 'a.vhdx'])
})

resumes('takes a target for done only if it holds the disk', async ({ file }) => {
  const from = await sources['vdi']!(file)
  const to = await file('a.vhdx')
  const made = await convertDisk({ from, to })
  const again = await convertDisk({ from, to, resume: true })
  equal(again.changed, false)
  equal(again.identifier, made.identifier)
  equal(again.fileSize, made.fileSize)
  const handle = await fs.open(to, 'r+')
  await fs.write(handle, 'x', 6 * MB)
  await fs.close(handle)
  await rejects(convertDisk({ from, to, resume: true }), /the file is there/)
  equal((await convertDisk({ from, to, resume: true, force: true })).changed, true)
})

resumes('of all disks of an OVA keeps those that are done', async ({ dir, file }) => {
  const entries = [
    { name: 'a.ovf', data: ovf('a.vmdk', 'b.vmdk') },
    { name: 'a.vmdk', data: vmdk(disk(3 * MB, 2), { compressed: true }) },
    { name: 'b.vmdk', data: vmdk(data, { compressed: true }) },
  ]
  const from = await file('a.ova', tar(entries))
  const stop = new AbortController()
  const onProgress = ({ done, total }: ConvertDiskProgress) => {
    if (total > 4 * MB && done > total / 2) stop.abort()
  }
  const options = { from, to: join(dir, 'disks'), resume: true }
  await rejects(convertDisks({ ...options, onProgress, signal: stop.signal }), /^Error: Stopped/)
  equal((await leftOf(join(dir, 'disks'))).length, 2)
  const [first, second] = await convertDisks(options)
  equal(first?.changed, false)
  ok(second?.resumedAt! > 0)
  deepEqual((await fs.readdir(join(dir, 'disks'))).sort(), ['a.vhdx', 'b.vhdx'])
})

resumes('says only what is on the volume to be there', async () => {
  const said: string[] = []
  let fails = false
  const file = {
    datasync: async () => {
      said.push('synced')
      await Promise.resolve()
      if (!fails) return
      fails = false
      throw new Error('lost')
    },
    sync: () => Promise.resolve(),
  }
  let at = 0
  const keep = () => {
    const kept = at
    return () => Promise.resolve(void said.push(`kept ${kept}`))
  }
  const flush = flusher(file, { bytes: 10, seconds: 0 }, keep)
  const write = async (bytes: number) => {
    at += bytes
    flush.written(bytes)
    flush.written(bytes) // meanwhile
    await new Promise((resolve) => setTimeout(resolve))
  }
  await write(1)
  deepEqual(said.splice(0), ['synced', 'kept 1'])
  fails = true
  await write(2)
  await write(3) // a later flush that succeeds brings nothing back
  deepEqual(said.splice(0), ['synced', 'synced'])
  await rejects(flush.end(), /lost/)
})

// what sends SIGINT on Windows ends the process
const stopping = process.platform === 'win32' ? resumes.skip : resumes
for (const resume of [true, false]) {
  const what = resume ? 'leaves what it wrote, and goes on from there' : 'leaves nothing'
  stopping(`stopped by Ctrl-C in the command line ${what}`, async ({ dir, file }) => {
    const from = await file('a.img', data.subarray(0, 8 * MB))
    // what is empty takes its time, too
    await fs.truncate(from, 384 * MB)
    const to = await file('a.vhdx')
    const args = [...runtime, task, '--from', from, '--to', to, ...(resume ? ['--resume'] : [])]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    let text = ''
    child.stderr.on('data', (data) => text += data)
    const exit = once(child, 'exit')
    const watch = setInterval(() => {
      const [partial] = fs.readdirSync(dir).filter((name) => name.endsWith('.partial'))
      if (!partial || fs.statSync(join(dir, partial)).size < 8 * MB) return
      // not child.kill: Deno then tells the signal as the end, whatever the child made of it
      process.kill(child.pid as number, 'SIGINT')
      clearInterval(watch)
    }, 5)
    const [code] = await exit
    clearInterval(watch)
    equal(code, 1, text)
    match(text, /^Stopped: ".*a\.vhdx" was not written( to its end\. Run the same again: .*)?\n$/)
    equal(text.includes('Run the same again'), resume)
    equal((await leftOf(dir)).length, resume ? 2 : 0)
    if (!resume) return
    const answer = await new Promise<string>((resolve, reject) =>
      execFile(process.execPath, args, (error, stdout) => error ? reject(error) : resolve(stdout))
    )
    ok(JSON.parse(answer).resumedAt > 0)
    deepEqual((await fs.readdir(dir)).sort(), ['a.img', 'a.vhdx'])
  })
}

resumes.run()
