#!/usr/bin/env zx
/**
 * Compares the embedded converter with the programs that one would take instead.
 *
 *     npx node test/bench/convert-disk.ts [--size MB] [--runs N] [--dir FOLDER]
 *
 * Makes a disk that holds `size` MB of data, half of it compressible, in twice the space, then converts
 * it in turn by each program. Prints medians of wall time and of processor time, the largest resident
 * memory, and how many times the kit's time that is. Everything is in the page cache, and nothing but
 * the kit (and the line that says so) waits for the disk, as none of the others do.
 */
import { spawn } from 'node:child_process'
import fs from 'fs-extra'
import { availableParallelism, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { parseArgs } from 'node:util'
import { which } from 'zx'
import { manifest, MB, ovf, random, tar } from '../tasks/convert-disk/images.ts'

const { values } = parseArgs({
  options: {
    size: { type: 'string', default: '1024' },
    runs: { type: 'string', default: '3' },
    dir: { type: 'string', default: tmpdir() },
  },
})
const size = Number(values.size)
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
  await makeRaw(raw)
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
  console.log(`${size} MB of data, ${runs} runs, ${availableParallelism()} cores`)
  await compare('VDI -> VHDX', 'vhdx', {
    'the kit': (to) => kit(vdi, to),
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
    'VBoxManage clonemedium': (to) => {
      return ['VBoxManage', 'clonemedium', 'disk', vdi, to, '--format', 'VHD']
    },
  })
  await compare('OVA -> VHDX', 'vhdx', {
    'the kit': (to) => kit(ova, to),
    'the kit on Deno': (to) => kit(ova, to, 'deno'),
    'tar, qemu-img': (to) => unpack(to),
    'tar, qemu-img -m 16 -W': (to) => unpack(to, ...best),
  })
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

/** Runs of 8 MB of data and 8 MB of nothing, as a disk has that was used. */
async function makeRaw(path: string): Promise<void> {
  const file = await fs.open(path, 'w')
  const next = random(1)
  const words = Array.from({ length: 4096 }, () => Math.floor(next() * 2 ** 32).toString(36))
  for (let at = 0; at < size; at++) {
    const data = Buffer.alloc(MB)
    for (let byte = 0; byte < MB / 2; byte += 4) data.writeUInt32LE(next() * 2 ** 32, byte)
    for (let byte = MB / 2; byte < MB;) {
      byte += data.write(`${words[Math.floor(next() * words.length)]} `, byte)
    }
    await fs.write(file, data, 0, MB, (at + Math.floor(at / 8) * 8) * MB)
  }
  await fs.ftruncate(file, size * 2 * MB)
  await fs.close(file)
}

async function makeOva(path: string, vmdk: string): Promise<void> {
  const data = await fs.readFile(vmdk)
  const entries = [
    { name: 'disk.ovf', data: ovf('disk.vmdk') },
    { name: 'disk.vmdk', data },
  ]
  await fs.writeFile(
    path,
    tar([...entries, { name: 'disk.mf', data: manifest('SHA256', entries) }]),
  )
  await fs.remove(vmdk)
}
