#!/usr/bin/env zx
/** Export a VirtualBox VM that is off to an OVA, and check what was written. */
import fs from 'fs-extra'
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { type FileHandle, mkdtemp, open, rm, statfs } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { which } from 'zx/core'
import { command, dryRun, fromWindows, inWsl, toWindows } from './task.ts'

export interface ExportVmOptions {
  /** The VM's name or UUID, as `VBoxManage list vms` shows them. It has to be off. */
  vm: string
  /** The OVA to write. */
  to: string
  /** Replace an existing file, once the export has been checked. @default false */
  force?: boolean | undefined
  /** @default false */
  dryRun?: boolean | undefined
  /** Ends the export, and leaves nothing behind. */
  signal?: AbortSignal | undefined
  /** Hears each percent, of writing and then of checking. */
  onProgress?: ((progress: { phase: 'write' | 'check'; percent: number }) => void) | undefined
}

export interface ExportVmResult {
  changed: boolean
  vm: string
  uuid: string
  path: string
  /** Bytes that its disks occupy now, of which the export needs as much or less. */
  needed: number
  /** The OVA's bytes; null on a dry run. */
  bytes: number | null
  /** What is in it: the description, the manifest, the disks. */
  files: { name: string; bytes: number }[]
  /** Absent on a dry run. */
  before?: {
    /** There was another file of that name, which is gone. */
    replaced: boolean
  }
}

/**
 * Exports the VM's present state, its snapshots flattened, to OVF 2.0, whose manifest has SHA-256 of
 * every file. It goes to a folder beside the target, because VirtualBox names what is in an OVA after
 * the OVA, and gets its name when every file has the digest of the manifest: VirtualBox itself has been
 * seen to find wrong digests in a right OVA, so it is not asked.
 */
export async function exportVm(
  { vm, to, force = false, dryRun = false, signal, onProgress }: ExportVmOptions,
): Promise<ExportVmResult> {
  const cannot = `Cannot export the VM ${JSON.stringify(vm)}:`
  const path = resolve(to)
  refuseNames(vm, to)
  const program = await findVBoxManage(cannot)
  const found = await readVm(program, vm, cannot)
  const replaced = await fs.pathExists(path)
  if (replaced && (!force || !(await fs.stat(path)).isFile())) {
    throw new Error(
      `${cannot} "${path}" is there already. Name another file, or run again with --force`,
    )
  }
  const folder = dirname(path)
  if (!await fs.pathExists(folder)) {
    throw new Error(`${cannot} there is no folder "${folder}". Make it, or name another file`)
  }
  if (await toWindows(folder) === undefined) {
    throw new Error(
      `${cannot} VirtualBox of Windows cannot write to "${folder}" in WSL. Name a file under /mnt/c`,
    )
  }
  const needed = await occupied(program, found.images, cannot)
  const { bavail, bsize } = await statfs(folder)
  if (bavail * bsize < needed) {
    throw new Error(
      `${cannot} its disks occupy ${gigabytes(needed)}, and ${
        gigabytes(bavail * bsize)
      } are free ` +
        `in "${folder}". Name a file on another drive`,
    )
  }
  const result = { changed: true, vm: found.name, uuid: found.uuid, path, needed }
  if (dryRun) return { ...result, bytes: null, files: [] }

  const own = await mkdtemp(join(folder, '.export-'))
  try {
    const temporary = join(own, basename(path))
    const target = await toWindows(temporary) as string
    const args = ['export', found.uuid, '--output', target, '--ovf20', '--manifest']
    await runExport(program, args, cannot, signal, onProgress)
    const files = await checkOva(temporary, cannot, signal, onProgress)
    const { size } = await fs.stat(temporary)
    await fs.rename(temporary, path)
    return { ...result, bytes: size, files, before: { replaced } }
  } finally {
    // on Windows VirtualBox may hold the file for a moment after its end
    await rm(own, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 })
  }
}

/** Removes the OVA that {@link exportVm} wrote. One that is of another size by now stays. */
export async function undoExportVm(result: ExportVmResult): Promise<void> {
  if (result.before === undefined || !await fs.pathExists(result.path)) return
  if ((await fs.stat(result.path)).size === result.bytes) await fs.remove(result.path)
}

function refuseNames(vm: string, to: string): void {
  if (vm === '' || vm.includes('\0')) {
    throw new TypeError(
      `Cannot export the VM ${JSON.stringify(vm)}: that is no name. Run: VBoxManage list vms`,
    )
  }
  // VBoxManage goes by the extension: any other would be a folder's worth of files
  if (!/[^\\/]\.ova$/i.test(to) || to.includes('\0')) {
    throw new TypeError(
      `Cannot export to ${
        JSON.stringify(to)
      }: the file's name ends with .ova. Example: --to Win10.ova`,
    )
  }
}

async function findVBoxManage(cannot: string): Promise<string> {
  const { VBOXMANAGE, VBOX_MSI_INSTALL_PATH, ProgramFiles } = process.env
  const found = VBOXMANAGE || await which('VBoxManage', { nothrow: true })
  if (found) return found
  const folders = process.platform === 'win32'
    ? [VBOX_MSI_INSTALL_PATH, ProgramFiles && join(ProgramFiles, 'Oracle', 'VirtualBox')]
    : [inWsl() && await fromWindows('C:\\Program Files\\Oracle\\VirtualBox')]
  for (const folder of folders) {
    const program = folder && join(folder, 'VBoxManage.exe')
    if (program && await fs.pathExists(program)) return program
  }
  throw new Error(
    `${cannot} there is no VBoxManage on this machine. Run this where VirtualBox is, or set VBOXMANAGE`,
  )
}

interface Registered {
  name: string
  uuid: string
  /** UUIDs of the disks' images. */
  images: string[]
}

async function readVm(program: string, wanted: string, cannot: string): Promise<Registered> {
  const { stdout: list } = await ask(program, ['list', 'vms'], cannot)
  const vms = [...list.matchAll(/^"(.*?)" \{([0-9a-f-]{36})\}\r?$/gms)]
    .map(([, name = '', uuid = '']) => ({ name, uuid }))
  const id = wanted.replace(/^\{(.*)\}$/, '$1').toLowerCase()
  const named = vms.filter(({ name, uuid }) => name === wanted || uuid === id)
  if (named.length > 1) {
    throw new Error(
      `${cannot} VirtualBox has ${named.length} of that name. ` +
        `Name one by its UUID: ${named.map(({ uuid }) => uuid).join(', ')}`,
    )
  }
  // a name that the code page of Windows' console cannot show is not in the list, and found all the same
  const args = ['showvminfo', '--machinereadable', '--', named[0]?.uuid ?? wanted]
  const { stdout } = await ask(program, args, cannot).catch((cause) => {
    if (named.length === 1) throw cause
    const names = vms.map(({ name }) => JSON.stringify(name)).join(', ') || 'none'
    throw new Error(`${cannot} VirtualBox has ${names}. Name one of these`, { cause })
  })
  // the first is VirtualBox's own: a name may hold lines that look the same, but its quotes are escaped
  const value = (key: string) => stdout.match(new RegExp(`^${key}="(.*)"\r?$`, 'm'))?.[1] ?? ''
  const uuid = value('UUID')
  const state = value('VMState')
  if (/saved/.test(state)) {
    throw new Error(
      `${cannot} it is ${state}, and what it holds in memory would not be in the OVA. ` +
        `Start it and shut it down, or run: VBoxManage discardstate ${uuid}`,
    )
  }
  if (!['poweroff', 'aborted'].includes(state)) {
    throw new Error(
      `${cannot} it is ${state}, and its disks change while they are read. ` +
        `Shut it down. Run: VBoxManage controlvm ${uuid} acpipowerbutton`,
    )
  }
  const images = [...stdout.matchAll(/^".*-ImageUUID-\d+-\d+"="([0-9a-f-]{36})"\r?$/gm)]
  return {
    name: named[0]?.name ?? wanted,
    uuid,
    images: images.map(([, image = '']) => image),
  }
}

/** Bytes of the disks' files, with those that they are differences to. A DVD does not come along. */
async function occupied(program: string, images: string[], cannot: string): Promise<number> {
  const seen = new Set<string>()
  let bytes = 0
  const next = [...images]
  for (let uuid = next.pop(); uuid !== undefined; uuid = next.pop()) {
    if (seen.has(uuid)) continue
    seen.add(uuid)
    const info = await ask(program, ['showmediuminfo', 'disk', uuid], cannot).catch(() => null)
    const place = info?.stdout.match(/^Location: +(.*?)\r?$/m)?.[1]
    if (place === undefined) continue
    const stat = await fs.stat(await fromWindows(place) ?? place).catch(() => undefined)
    bytes += stat === undefined ? 0 : Math.min(stat.size, stat.blocks * 512 || stat.size)
    const parent = info?.stdout.match(/^Parent UUID: +([0-9a-f-]{36})\r?$/m)?.[1]
    if (parent !== undefined) next.push(parent)
  }
  return bytes
}

async function ask(program: string, args: string[], cannot: string): Promise<{ stdout: string }> {
  const options = { env: environment(), maxBuffer: 64 * 1024 ** 2, windowsHide: true }
  try {
    return await promisify(execFile)(program, args, options)
  } catch (cause) {
    const { code, stderr = '' } = cause as { code?: string | number; stderr?: string }
    throw new Error(failure(program, code, stderr, args, cannot), { cause })
  }
}

/** Tells VBoxManage to stop as Ctrl-C does, upon which it takes its own file away. */
async function runExport(
  program: string,
  args: string[],
  cannot: string,
  signal: AbortSignal | undefined,
  onProgress: ExportVmOptions['onProgress'],
): Promise<void> {
  signal?.throwIfAborted()
  const child = spawn(program, args, {
    env: environment(),
    windowsHide: true,
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let said = ''
  let percent = -1
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-10_000)
    const now = Number([...said.matchAll(/(\d+)%/g)].at(-1)?.[1] ?? -1)
    if (now > percent) onProgress?.({ phase: 'write', percent: percent = now })
  })
  let timer: NodeJS.Timeout | undefined
  const stop = () => {
    child.kill('SIGINT')
    timer = setTimeout(() => child.kill('SIGKILL'), 15_000)
  }
  signal?.addEventListener('abort', stop, { once: true })
  try {
    const code = await new Promise<string | number | undefined>((resolve) => {
      child.once('error', (error: NodeJS.ErrnoException) => resolve(error.code))
      child.once('close', (code, killed) => resolve(code ?? killed ?? undefined))
    })
    signal?.throwIfAborted()
    if (code !== 0) throw new Error(failure(program, code, said, args, cannot))
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
  }
}

function environment(): NodeJS.ProcessEnv {
  // elsewhere than in UTF-8 VBoxManage prints question marks
  return { ...process.env, LC_ALL: 'C.UTF-8' }
}

/** VBoxManage's own text may be empty or translated. */
function failure(
  program: string,
  code: string | number | undefined,
  stderr: string,
  args: string[],
  cannot: string,
): string {
  if (code === 'ENOENT') return `${cannot} there is no program "${program}". Set VBOXMANAGE`
  const words = /error: (.*)/.exec(stderr)?.[1]?.trim()
  const run = args.map((arg) => /^[\w-]+$/.test(arg) ? arg : JSON.stringify(arg)).join(' ')
  return `${cannot} VBoxManage ended with ${code}${
    words ? ` and says "${words}"` : ''
  }. See what it says in full. Run: VBoxManage ${run}`
}

interface Member {
  name: string
  offset: number
  bytes: number
}

/** An OVA is a tar (DSP0243). VirtualBox puts the description first and the manifest last. */
async function checkOva(
  path: string,
  cannot: string,
  signal: AbortSignal | undefined,
  onProgress: ExportVmOptions['onProgress'],
): Promise<ExportVmResult['files']> {
  const broken = (why: string) =>
    new Error(`${cannot} what VirtualBox wrote is not whole: ${why}. Run the same again`)
  const file = await open(path)
  try {
    const members = await readTar(file, broken)
    const text = async (extension: string) => {
      const member = members.find(({ name }) => name.toLowerCase().endsWith(extension))
      if (member === undefined) throw broken(`it has no ${extension}`)
      const { buffer } = await file.read(Buffer.alloc(member.bytes), 0, member.bytes, member.offset)
      return buffer.toString('utf8')
    }
    const digests = new Map<string, string>()
    for (const [, name = '', hex = ''] of (await text('.mf')).matchAll(MANIFEST_LINE)) {
      digests.set(name, hex.toLowerCase())
    }
    const names = new Set(members.map(({ name }) => name))
    for (const name of digests.keys()) if (!names.has(name)) throw broken(`it has no "${name}"`)
    if (!/<\w*:?File\b/.test(await text('.ovf'))) throw broken('its description names no files')
    const named = members.filter(({ name }) => !name.toLowerCase().endsWith('.mf'))
    const total = named.reduce((sum, { bytes }) => sum + bytes, 0)
    let done = 0
    for (const { name, offset, bytes } of named) {
      const expected = digests.get(name)
      if (expected === undefined) throw broken(`its manifest does not name "${name}"`)
      const hash = createHash(expected.length === 40 ? 'sha1' : 'sha256')
      const buffer = Buffer.alloc(4 * 1024 ** 2)
      for (let at = 0; at < bytes;) {
        signal?.throwIfAborted()
        const size = Math.min(buffer.length, bytes - at)
        const { bytesRead } = await file.read(buffer, 0, size, offset + at)
        if (bytesRead === 0) throw broken(`"${name}" ends too early`)
        hash.update(buffer.subarray(0, bytesRead))
        at += bytesRead
        done += bytesRead
        onProgress?.({ phase: 'check', percent: Math.floor(done / total * 100) })
      }
      if (hash.digest('hex') !== expected) throw broken(`"${name}" is not what its manifest says`)
    }
    return members.map(({ name, bytes }) => ({ name, bytes }))
  } finally {
    await file.close()
  }
}

const MANIFEST_LINE = /^SHA(?:1|256) ?\((.*)\) ?= ?([0-9a-f]{40}|[0-9a-f]{64})\r?$/gim

/** POSIX.1 ustar: a header of 512 bytes, then the file up to the next multiple of 512. */
async function readTar(file: FileHandle, broken: (why: string) => Error): Promise<Member[]> {
  const { size } = await file.stat()
  const members: Member[] = []
  const header = Buffer.alloc(512)
  let at = 0
  while (at + 512 <= size) {
    await file.read(header, 0, 512, at)
    if (header.every((byte) => byte === 0)) return members
    const name = header.toString('utf8', 0, 100).replace(/\0[^]*$/, '')
    const bytes = sizeOf(header)
    if (!(bytes >= 0) || at + 512 + bytes > size) throw broken(`"${name}" ends too early`)
    members.push({ name, offset: at + 512, bytes })
    at += 512 + Math.ceil(bytes / 512) * 512
  }
  // two empty blocks are to end a tar, and VirtualBox 7.0 writes none
  if (at !== size) throw broken('its end is missing')
  return members
}

/** Octal digits, or from 8 GiB on a binary number whose first bit is set. */
function sizeOf(header: Buffer): number {
  if ((header[124] as number) & 0x80) return header.readUIntBE(130, 6)
  return parseInt(header.toString('latin1', 124, 136), 8)
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1024 ** 3).toFixed(1)} GB`
}

/** Draws the progress on a terminal. */
function draw(): ExportVmOptions['onProgress'] {
  if (!process.stderr.isTTY) return undefined
  return ({ phase, percent }) => {
    process.stderr.write(`\r${phase} ${`${percent}`.padStart(3)} %\x1b[K`)
    if (percent === 100) process.stderr.write('\r\x1b[K')
  }
}

await command(
  import.meta,
  'Export a VirtualBox VM that is off to an OVA, and check it',
  {
    vm: {
      type: 'string',
      demandOption: true,
      describe: 'The VM’s name or UUID in VirtualBox',
      example: 'Win10',
    },
    to: {
      type: 'string',
      demandOption: true,
      describe: 'The OVA to write',
      example: 'Win10.ova',
    },
    force: { type: 'boolean', describe: 'Replace an existing file, in the end' },
    dryRun,
  },
  async (given: ExportVmOptions) => {
    const stop = new AbortController()
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => stop.abort(new Error('Stopped. Nothing was left behind')))
    }
    return await exportVm({ ...given, signal: stop.signal, onProgress: draw() })
  },
)
