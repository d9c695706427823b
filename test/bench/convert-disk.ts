#!/usr/bin/env zx
/**
 * Compares the embedded converter with the programs that one would take instead.
 *
 *     npm run bench -- [--files FOLDER] [--runs N] [--dir FOLDER]
 *
 * Makes a file system with the files of a folder (so that they compress as files do), half as large
 * again as they are, and converts it in turn by each program. Prints medians of wall time, the
 * processor's time and the largest resident memory, and how many times the kit's wall time that is.
 * Everything is read from the page cache. The kit waits for the disk, so that a power failure loses
 * nothing; of the others only those called synced do, and `eatmydata` takes the waiting from the kit.
 */
import { spawn } from 'node:child_process'
import fs from 'fs-extra'
import { availableParallelism, tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import process from 'node:process'
import { parseArgs } from 'node:util'
import { createHash } from 'node:crypto'
import { $, which } from 'zx'
import { copy } from '../../tasks/convert-disk/copy.ts'
import { openSource } from '../../tasks/convert-disk/source.ts'
import { manifest, MB, ovf } from '../tasks/convert-disk/images.ts'

const { values } = parseArgs({
  options: {
    files: { type: 'string', default: '/usr' },
    runs: { type: 'string', default: '3' },
    dir: { type: 'string', default: tmpdir() },
    inflate: { type: 'string' }, // for the bench itself
  },
})
if (values.inflate !== undefined) {
  await inflateAlone(values.inflate)
  process.exit()
}
const runs = Number(values.runs)
const root = resolve(import.meta.dirname as string, '..', '..')
const bin = join(root, 'node_modules', '.bin')
const task = join(root, 'tasks', 'convert-disk.ts')

interface Run {
  /** Seconds. */
  wall: number
  cpu: number
  /** Bytes. */
  memory: number
}

const dir = await fs.mkdtemp(join(values.dir, 'bench-convert-disk-'))
const env = { ...process.env, VBOX_USER_HOME: join(dir, 'vbox') }
try {
  const raw = join(dir, 'disk.raw')
  const vdi = join(dir, 'disk.vdi')
  const ova = join(dir, 'disk.ova')
  const vmdk = join(dir, 'disk.vmdk')
  const size = await makeDisk(raw, values.files)
  await measure('qemu-img', ['convert', '-f', 'raw', '-O', 'vdi', raw, vdi])
  await fs.remove(raw)
  const stream = ['-O', 'vmdk', '-o', 'subformat=streamOptimized']
  await measure('qemu-img', ['convert', '-f', 'vdi', ...stream, vdi, vmdk])
  await makeOva(ova, vmdk)
  const kit = (from: string, to: string, runtime: 'node' | 'deno' = 'node'): Command => [
    join(bin, runtime),
    ...(runtime === 'deno' ? ['run', '-A'] : []),
    ...[task, '--from', from, '--to', to],
  ]
  // makes fsync and its like do nothing
  const hasty = (command: Command): Command => ['eatmydata', ...command]
  const qemu = (format: string, ...options: string[]) => (to: string): Command => {
    return ['qemu-img', 'convert', ...options, '-f', 'vdi', '-O', format, vdi, to]
  }
  const best = ['-m', '16', '-W']
  const vhd = ['-o', 'force_size=on']
  const unpacked = join(dir, 'unpacked')
  const unpack = (to: string, ...options: string[]): Command => {
    // what a user types, in one shell
    const convert = `qemu-img convert ${options.join(' ')} -f vmdk -O vhdx`
    return ['sh', '-c', `mkdir "$1" && tar -xf "$2" -C "$1" && ${convert} "$1/disk.vmdk" "$3"`]
      .concat('sh', unpacked, ova, to) as Command
  }
  console.log(`${size} MB of files, ${runs} runs, ${availableParallelism()} cores`)
  await compare('VDI -> VHDX', 'vhdx', {
    'the kit': (to) => kit(vdi, to),
    'the kit, not synced': (to) => hasty(kit(vdi, to)),
    'the kit on Deno': (to) => kit(vdi, to, 'deno'),
    'qemu-img': qemu('vhdx'),
    'qemu-img -m 16 -W': qemu('vhdx', ...best),
    'qemu-img -m 16 -W, synced': qemu('vhdx', ...best, '-t', 'writeback'),
    'cp': (to) => ['cp', vdi, to],
    'cp, synced': (to) => ['sh', '-c', 'cp "$1" "$2" && sync "$2"', 'sh', vdi, to],
  })
  await compare('VDI -> VHD', 'vhd', {
    'the kit': (to) => kit(vdi, to),
    'qemu-img': qemu('vpc', ...vhd),
    'qemu-img -m 16 -W': qemu('vpc', ...best, ...vhd),
    'qemu-img -m 16 -W, synced': qemu('vpc', ...best, ...vhd, '-t', 'writeback'),
    'VBoxManage clonemedium': (to) => {
      return ['VBoxManage', 'clonemedium', 'disk', vdi, to, '--format', 'VHD']
    },
  })
  await compare('OVA -> VHDX', 'vhdx', {
    'the kit': (to) => kit(ova, to),
    'the kit, not synced': (to) => hasty(kit(ova, to)),
    'the kit on Deno': (to) => kit(ova, to, 'deno'),
    'tar, qemu-img': (to) => unpack(to),
    'tar, qemu-img -m 16 -W': (to) => unpack(to, ...best),
    'reading and inflating alone':
      () => [join(bin, 'node'), import.meta.filename as string, '--inflate', ova],
  })
  const sparse = join(dir, 'sparse.vdi')
  await makeSparse(sparse)
  await compare('VDI of 2 TB, 64 MB in it', 'vhdx', { 'the kit': (to) => kit(sparse, to) })
} finally {
  await fs.remove(dir)
}

type Command = [program: string, ...args: string[]]

/** Runs all of them in turn, so that a machine that is slow for a while is so for all. */
async function compare(
  title: string,
  extension: string,
  commands: Record<string, (to: string) => Command>,
): Promise<void> {
  const results = new Map<string, Run[]>()
  for (let run = 0; run < runs; run++) {
    for (const [name, command] of Object.entries(commands)) {
      const to = join(dir, `out-${results.size}-${run}.${extension}`)
      const [program, ...args] = command(to)
      if (!await which(program, { nothrow: true })) continue
      const result = await measure(program, args)
      results.set(name, [...results.get(name) ?? [], result])
      await fs.remove(to)
      await fs.remove(join(dir, 'unpacked'))
    }
  }
  const median = (name: string, of: (run: Run) => number) => {
    const sorted = (results.get(name) ?? []).map(of).toSorted((a, b) => a - b)
    return sorted[Math.floor(sorted.length / 2)] ?? NaN
  }
  console.log(`\n${title.padEnd(28)}  wall s   cpu s  memory MB   times the kit's`)
  for (const name of results.keys()) {
    const wall = median(name, ({ wall }) => wall)
    const columns = [
      wall.toFixed(2).padStart(7),
      median(name, ({ cpu }) => cpu).toFixed(2).padStart(7),
      String(Math.round(median(name, ({ memory }) => memory) / MB)).padStart(10),
      (wall / median('the kit', ({ wall }) => wall)).toFixed(2).padStart(17),
    ]
    console.log(`  ${name.padEnd(26)} ${columns.join(' ')}`)
  }
}

/** Runs a program and its children, and says what that cost, by GNU time. */
function measure(program: string, args: string[]): Promise<Run> {
  const start = performance.now()
  return new Promise((resolve, reject) => {
    const child = spawn('/usr/bin/time', ['-f', '%U %S %M', program, ...args], { env })
    let stderr = ''
    child.stderr.on('data', (text) => stderr += text)
    child.stdout.resume()
    child.on('error', () => reject(new Error('Cannot measure: GNU time is not installed')))
    child.on('close', (code) => {
      const wall = (performance.now() - start) / 1000
      if (code !== 0) return reject(new Error(`${program} ${args.join(' ')}: ${stderr}`))
      const [user, system, memory] = stderr.trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
      resolve({ wall, cpu: (user ?? 0) + (system ?? 0), memory: (memory ?? 0) * 1024 })
    })
  })
}

/** A file system with a folder's files in it. Gives their size in MB. */
async function makeDisk(path: string, folder: string): Promise<number> {
  const { stdout } = await $`du -sxm ${folder}`
  const size = Number.parseInt(stdout, 10)
  await $`mke2fs -q -F -t ext4 -d ${folder} ${path} ${Math.ceil(size * 1.5)}M`
  return size
}

/** Blocks of data far apart in a disk of 2 TB. */
async function makeSparse(path: string): Promise<void> {
  const raw = `${path}.raw`
  const file = await fs.open(raw, 'w')
  for (let at = 0; at < 64; at++) {
    await fs.write(file, Buffer.alloc(MB, 'x'), 0, MB, at * 32 * 1024 * MB)
  }
  await fs.ftruncate(file, 2 * 1024 * 1024 * MB)
  await fs.close(file)
  await $`qemu-img convert -f raw -O vdi ${raw} ${path}`
  await fs.remove(raw)
}

/** What of the kit's time is inflating: all that it reads, and nothing written. */
async function inflateAlone(from: string): Promise<void> {
  const { image, allocatedSize, close } = await openSource(from, { folder: tmpdir() })
  const nowhere = { place: () => [], finish: () => Promise.resolve() }
  const signal = new AbortController().signal
  await copy(image, nowhere, () => Promise.resolve(), { signal })
  await close()
  console.log(JSON.stringify({ allocatedSize }))
}

async function makeOva(path: string, vmdk: string): Promise<void> {
  const hash = createHash('sha256')
  for await (const data of fs.createReadStream(vmdk)) hash.update(data as Buffer)
  const described = { name: 'disk.ovf', data: ovf('disk.vmdk') }
  await fs.writeFile(join(dir, 'disk.ovf'), described.data)
  const lines = `${manifest('SHA256', [described])}SHA256(disk.vmdk)= ${hash.digest('hex')}\n`
  await fs.writeFile(join(dir, 'disk.mf'), lines)
  await $`tar -C ${dir} -cf ${path} disk.ovf ${basename(vmdk)} disk.mf`
  await fs.remove(vmdk)
}
