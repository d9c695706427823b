#!/usr/bin/env zx
/**
 * Compares the embedded converter with the programs that one would take instead.
 *
 *     npm run bench -- [--files FOLDER] [--size GB] [--runs N] [--dir FOLDER]
 *
 * Makes a file system with files of a folder (so that they compress as files do), half as large again
 * as they are, and converts it in turn by each program. Prints medians of wall time, the processor's
 * time and the largest resident memory, and how many times the kit's wall time that is.
 * Everything is read from the page cache. The kit waits for the disk, so that a power failure loses
 * nothing, and the others do not: so each is measured both ways, the others with `sync` of the file
 * behind them, and the kit with `eatmydata`, which takes the waiting from it.
 * A virtual machine that hands free memory back to its host waits for it when it writes: the same `cp` took
 * from 1.1 to 7.3 seconds. There `--size 1` is steadier, where the last run's memory is still at hand.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import fs from 'fs-extra'
import { availableParallelism, cpus, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
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
    size: { type: 'string', default: '2.5' },
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
const self = import.meta.filename as string

interface Run {
  /** Seconds. */
  wall: number
  cpu: number
  /** Bytes. */
  memory: number
}

/** What a machine may lack. */
const missing: string[] = []
for (const program of ['eatmydata', 'VBoxManage', 'taskset']) {
  if (!await which(program, { nothrow: true })) missing.push(program)
}

const PREFIX = 'bench-convert-disk-'
const dir = await makeFolder(values.dir)
const env = { ...process.env, VBOX_USER_HOME: join(dir, 'vbox') }
let running: ChildProcess | undefined
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
  process.once(signal, () => {
    if (running?.pid) process.kill(-running.pid, 'SIGKILL')
    fs.removeSync(dir)
    process.exit(code)
  })
}
try {
  const raw = join(dir, 'disk.raw')
  const vdi = join(dir, 'disk.vdi')
  const ova = join(dir, 'disk.ova')
  const size = await makeDisk(raw, values.files, Number(values.size) * 1024 * MB)
  const node = join(bin, 'node')
  // blocks begin with a page, as VirtualBox lays them and qemu-img does not
  await measure(node, [task, '--from', raw, '--to', vdi])
  await fs.remove(raw)
  await makeOva(ova, vdi)
  const kit = (from: string, to: string): Command => [node, task, '--from', from, '--to', to]
  const kitOnDeno = (from: string, to: string): Command => {
    return [join(bin, 'deno'), 'run', '-A', task, '--from', from, '--to', to]
  }
  const kitOnOneCore = (from: string, to: string): Command => {
    return ['taskset', '-c', '0', ...kit(from, to)]
  }
  const compiled = `NODE_COMPILE_CACHE=${join(dir, 'compiled')}`
  await measure('env', [compiled, node, task, '--from', vdi, '--info']) // fills it
  const kitCompiled = (from: string, to: string): Command => ['env', compiled, ...kit(from, to)]
  const qemu = (format: string, ...options: string[]) => (to: string): Command => {
    return ['qemu-img', 'convert', ...options, '-f', 'vdi', '-O', format, vdi, to]
  }
  const best = ['-m', '16', '-W']
  const vhd = ['-o', 'force_size=on']
  const unpacked = join(dir, 'unpacked')
  const unpack = (...options: string[]) => (to: string): Command => {
    // what a user types, in one shell
    const convert = `qemu-img convert ${options.join(' ')} -f vmdk -O vhdx`
    const line = `mkdir "$1" && tar -xf "$2" -C "$1" && ${convert} "$1/disk.vmdk" "$3"`
    return ['sh', '-c', line, 'sh', unpacked, ova, to]
  }
  const clone = (to: string): Command => {
    return ['VBoxManage', 'clonemedium', 'disk', vdi, to, '--format', 'VHD']
  }
  const cp = (to: string): Command => ['cp', vdi, to]
  await describe(size)
  await compare('VDI -> VHDX', 'vhdx', {
    synced: {
      'the kit': (to) => kit(vdi, to),
      'the kit on Deno': (to) => kitOnDeno(vdi, to),
      'qemu-img': synced(qemu('vhdx')),
      'qemu-img -m 16 -W': synced(qemu('vhdx', ...best)),
      'cp': synced(cp),
    },
    'not synced': {
      'the kit': (to) => hasty(kit(vdi, to)),
      'the kit, NODE_COMPILE_CACHE': (to) => hasty(kitCompiled(vdi, to)),
      'the kit on Deno': (to) => hasty(kitOnDeno(vdi, to)),
      'qemu-img': qemu('vhdx'),
      'qemu-img -m 16 -W': qemu('vhdx', ...best),
      'cp': cp,
    },
  })
  await compare('VDI -> VHD', 'vhd', {
    synced: {
      'the kit': (to) => kit(vdi, to),
      'qemu-img': synced(qemu('vpc', ...vhd)),
      'qemu-img -m 16 -W': synced(qemu('vpc', ...best, ...vhd)),
      'VBoxManage clonemedium': synced(clone),
    },
    'not synced': {
      'the kit': (to) => hasty(kit(vdi, to)),
      'qemu-img': qemu('vpc', ...vhd),
      'qemu-img -m 16 -W': qemu('vpc', ...best, ...vhd),
      'VBoxManage clonemedium': clone,
    },
  })
  await compare('OVA -> VHDX', 'vhdx', {
    synced: {
      'the kit': (to) => kit(ova, to),
      'the kit on Deno': (to) => kitOnDeno(ova, to),
      'tar, qemu-img': synced(unpack()),
      'tar, qemu-img -m 16 -W': synced(unpack(...best)),
    },
    'not synced': {
      'the kit': (to) => hasty(kit(ova, to)),
      'the kit on one core': (to) => hasty(kitOnOneCore(ova, to)),
      'the kit on Deno': (to) => hasty(kitOnDeno(ova, to)),
      'tar, qemu-img': unpack(),
      'tar, qemu-img -m 16 -W': unpack(...best),
      'reading and inflating alone': () => [node, self, '--inflate', ova],
    },
  })
  const sparse = join(dir, 'sparse.vdi')
  await makeSparse(sparse)
  await compare('VDI of 2 TB, 64 MB in it', 'vhdx', {
    synced: {
      'the kit': (to) => kit(sparse, to),
      'the kit on Deno': (to) => kitOnDeno(sparse, to),
      'qemu-img -m 16 -W': (to) => synced(() => qemuSparse(sparse, to))(to),
    },
  })
} finally {
  await fs.remove(dir)
}

type Command = [program: string, ...args: string[]]
type Commands = Record<string, (to: string) => Command>

/** What waits for the disk, and what does not, each compared with the kit that does the same. */
type Groups = Partial<Record<'synced' | 'not synced', Commands>>

function qemuSparse(from: string, to: string): Command {
  return ['qemu-img', 'convert', '-m', '16', '-W', '-f', 'vdi', '-O', 'vhdx', from, to]
}

/** Then waits until what it wrote is on the disk. */
function synced(command: (to: string) => Command): (to: string) => Command {
  return (to) => ['sh', '-c', 'to=$1; shift; "$@" && sync "$to"', 'sh', to, ...command(to)]
}

/** Makes fsync and its like do nothing. */
function hasty(command: Command): Command {
  return ['eatmydata', ...command]
}

/** A folder of its own. Those of runs that were killed go first. */
async function makeFolder(parent: string): Promise<string> {
  for (const name of await fs.readdir(parent)) {
    const pid = name.startsWith(PREFIX) ? Number.parseInt(name.slice(PREFIX.length), 10) : NaN
    if (pid > 0 && !await fs.pathExists(`/proc/${pid}`)) await fs.remove(join(parent, name))
  }
  return await fs.mkdtemp(join(parent, `${PREFIX}${process.pid}-`))
}

/** On what all this was measured. */
async function describe(size: number): Promise<void> {
  const first = async (program: string) => (await $`${program} --version`).stdout.split('\n')[0]
  const { stdout: volume } = await $`df --output=fstype,source ${dir}`
  const [type, source] = volume.trim().split('\n').at(-1)?.split(/\s+/) ?? []
  console.log(`${Math.round(size / MB)} MB of files of ${values.files}, ${runs} runs, medians`)
  console.log(`${availableParallelism()} cores (${cpus()[0]?.model}), ${type} on ${source}`)
  for (const program of [join(bin, 'node'), join(bin, 'deno'), 'qemu-img', 'cp']) {
    console.log(`  ${program === join(bin, 'node') ? 'node ' : ''}${await first(program)}`)
  }
  for (const program of missing) console.log(`  no ${program}: its rows are left out`)
}

/** Runs all of them in turn, so that a machine that is slow for a while is so for all. */
async function compare(title: string, extension: string, groups: Groups): Promise<void> {
  const results = new Map<string, Run[]>()
  let count = 0
  for (let run = 0; run < runs; run++) {
    for (const [group, commands] of Object.entries(groups)) {
      for (const [name, command] of Object.entries(commands)) {
        // VirtualBox does not clone to a name that it knows, whether the file is there or not
        const to = join(dir, `out-${count++}.${extension}`)
        const [program, ...args] = command(to)
        if (missing.some((one) => program === one || args.includes(one))) continue
        const key = `${group}/${name}`
        results.set(key, [...results.get(key) ?? [], await measure(program, args)])
        await fs.remove(to)
        await fs.remove(join(dir, 'unpacked'))
      }
    }
  }
  const median = (key: string, of: (run: Run) => number) => {
    const sorted = (results.get(key) ?? []).map(of).toSorted((a, b) => a - b)
    return sorted[Math.floor(sorted.length / 2)] ?? NaN
  }
  for (const [group, commands] of Object.entries(groups)) {
    console.log(`\n${`${title}, ${group}`.padEnd(30)}  wall s   cpu s  memory MB   times the kit's`)
    for (const name of Object.keys(commands)) {
      const key = `${group}/${name}`
      if (!results.has(key)) continue
      const wall = median(key, ({ wall }) => wall)
      const columns = [
        wall.toFixed(2).padStart(7),
        median(key, ({ cpu }) => cpu).toFixed(2).padStart(7),
        String(Math.round(median(key, ({ memory }) => memory) / MB)).padStart(10),
        (wall / median(`${group}/the kit`, ({ wall }) => wall)).toFixed(2).padStart(17),
      ]
      console.log(`  ${name.padEnd(28)} ${columns.join(' ')}`)
    }
  }
}

/** Runs a program and its children, and says what that cost, by GNU time. */
function measure(program: string, args: string[]): Promise<Run> {
  const start = performance.now()
  return new Promise((resolve, reject) => {
    const options = { env, detached: true } // a group, which a signal ends whole
    const child = spawn('/usr/bin/time', ['-f', '%U %S %M', program, ...args], options)
    running = child
    let stderr = ''
    child.stderr.on('data', (text) => stderr += text)
    child.stdout.resume()
    child.on('error', () => reject(new Error('Cannot measure: GNU time is not installed')))
    child.on('close', (code) => {
      running = undefined
      const wall = (performance.now() - start) / 1000
      if (code !== 0) return reject(new Error(`${program} ${args.join(' ')}: ${stderr}`))
      const [user, system, memory] = stderr.trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
      resolve({ wall, cpu: (user ?? 0) + (system ?? 0), memory: (memory ?? 0) * 1024 })
    })
  })
}

/** A file system with files of a folder in it, of all kinds that it has. Gives their bytes. */
async function makeDisk(path: string, folder: string, most: number): Promise<number> {
  const { stdout } = await $`find ${folder} -xdev -type f -readable -printf '%s %P\\0'`
  const files = stdout.split('\0').filter(Boolean).map((line) => {
    const [size = ''] = line.split(' ', 1)
    return { size: Number(size), name: line.slice(size.length + 1) }
  })
  const share = most / files.reduce((sum, { size }) => sum + size, 0)
  let due = 0
  const taken = files.filter(({ size }) => {
    due += size * share
    const take = due >= size
    if (take) due -= size
    return take
  })
  const size = taken.reduce((sum, file) => sum + file.size, 0)
  const list = `${path}.list`
  const stage = `${path}.files`
  await fs.writeFile(list, taken.map(({ name }) => `${name}\0`).join(''))
  await fs.mkdir(stage)
  const line = 'tar -C "$1" --null --verbatim-files-from -T "$2" -c | tar -x -C "$3"'
  await measure('sh', ['-c', line, 'sh', folder, list, stage])
  const blocks = taken.reduce((sum, file) => sum + Math.ceil(file.size / 4096), 0)
  const inodes = ['-N', String(2 * taken.length + 1024)] // with the folders; small files need many
  const length = `${Math.ceil(blocks * 4096 / MB * 1.5) + 64}M`
  await measure('mke2fs', ['-q', '-F', '-t', 'ext4', ...inodes, '-d', stage, path, length])
  await fs.remove(stage)
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
  await measure('qemu-img', ['convert', '-f', 'raw', '-O', 'vdi', raw, path])
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

/** As VirtualBox exports a VM. */
async function makeOva(path: string, vdi: string): Promise<void> {
  const vmdk = join(dir, 'disk.vmdk')
  const stream = ['-O', 'vmdk', '-o', 'subformat=streamOptimized']
  await measure('qemu-img', ['convert', '-f', 'vdi', ...stream, vdi, vmdk])
  const hash = createHash('sha256')
  for await (const data of fs.createReadStream(vmdk)) hash.update(data as Buffer)
  const described = { name: 'disk.ovf', data: ovf('disk.vmdk') }
  await fs.writeFile(join(dir, 'disk.ovf'), described.data)
  const lines = `${manifest('SHA256', [described])}SHA256(disk.vmdk)= ${hash.digest('hex')}\n`
  await fs.writeFile(join(dir, 'disk.mf'), lines)
  await measure('tar', ['-C', dir, '-cf', path, 'disk.ovf', 'disk.vmdk', 'disk.mf'])
  await fs.remove(vmdk)
}
