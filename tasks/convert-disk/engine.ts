/** The other programs that convert, for who wants one of them. */
import { execFile, type ExecFileException } from 'node:child_process'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { type Format, MB, printable } from './image.ts'
import type { Source } from './source.ts'

export interface EngineOptions {
  engine: 'qemu-img' | 'vboxmanage'
  source: Source
  format: Exclude<Format, 'vmdk'>
  type: 'dynamic' | 'fixed'
  signal: AbortSignal
}

const INSTALL = {
  'qemu-img':
    'Install it (Linux: apt install qemu-utils; macOS: brew install qemu; Windows: winget install SoftwareFreedomConservancy.QEMU)',
  VBoxManage: 'Install VirtualBox, and add its folder to PATH',
}

/** Refuses what a program cannot do, before anything is written. */
export function refuseEngine({ engine, source, format }: Omit<EngineOptions, 'signal' | 'type'>) {
  if (!source.single) {
    throw new Error(
      `Cannot convert "${
        printable(source.path)
      }" with ${engine}: its disk is a snapshot with parents, ` +
        'or in an OVA compressed or in chunks. Use --engine embedded',
    )
  }
  if (engine !== 'vboxmanage') return
  if (format === 'vhdx') {
    throw new Error(
      'Cannot write VHDX with VBoxManage: it has no such format. Use --format vhd, or --engine embedded',
    )
  }
  if (source.member) {
    throw new Error(
      `Cannot convert out of an OVA with VBoxManage: it reads files only. Use --engine embedded, or run: ` +
        `tar -xf "${printable(source.path)}" "${printable(source.member.name)}"`,
    )
  }
}

/** Converts `from`, the image's own file, to the new file `to`. */
export async function runEngine(
  { engine, source, format, type, signal }: EngineOptions,
  from: string,
  to: string,
): Promise<void> {
  if (engine === 'vboxmanage') {
    return await runVBoxManage({ source, format, type, signal }, from, to)
  }
  await execute('qemu-img', qemuImgArgs({ source, format, type }, from, to), from, signal)
}

const QEMU = { vdi: 'vdi', vmdk: 'vmdk', vhd: 'vpc', vhdx: 'vhdx', raw: 'raw' }

function qemuImgArgs(
  { source, format, type }: Pick<EngineOptions, 'source' | 'format' | 'type'>,
  from: string,
  to: string,
): string[] {
  const { image, member } = source
  const file = { driver: 'file', filename: resolve(from) }
  // as JSON: a plain name with a colon would be a protocol, and a member of a tar has none
  const node = {
    driver: QEMU[image.format],
    // else it may cut the disk to its geometry
    ...(image.format === 'vhd' && { force_size_calc: 'current_size' }),
    file: member ? { driver: 'raw', offset: member.offset, size: member.size, file } : file,
  }
  const options = {
    vhdx: `subformat=${type}`,
    // else it makes the disk larger, to whole cylinders
    vhd: `subformat=${type},force_size=on`,
    vdi: `static=${type === 'fixed' ? 'on' : 'off'}`,
    raw: undefined,
  }[format]
  return [
    ...['convert', '-m', '16', '-W', '-O', QEMU[format]],
    ...(options ? ['-o', options] : []),
    ...[`json:${JSON.stringify(node)}`, resolve(to)],
  ]
}

/** VBoxManage notes each image it sees in its registry. What it did not know before is taken out again. */
async function runVBoxManage(
  { source, format, type, signal }: Omit<EngineOptions, 'engine'>,
  from: string,
  to: string,
): Promise<void> {
  const file = resolve(from)
  const run = (...args: string[]) => execute('VBoxManage', args, from, signal)
  const known = (await run('list', 'hdds')).split(/\r?\n/)
    .some((line) => line.match(/^Location:\s+(.*)$/)?.[1] === file)
  if (source.image.format === 'raw') {
    const variant = type === 'fixed' ? 'Fixed' : 'Standard'
    const names = { vdi: 'VDI', vhd: 'VHD', raw: 'RAW', vhdx: '' }
    await run('convertfromraw', file, to, '--format', names[format], '--variant', variant)
    return
  }
  try {
    await run(
      ...['clonemedium', 'disk', file, to, '--format', format.toUpperCase()],
      ...['--variant', type === 'fixed' ? 'Fixed' : 'Standard'],
    )
  } finally {
    const forget = [to, ...(known ? [] : [file])]
    for (const path of forget) {
      // a clone that failed was never noted
      await execute('VBoxManage', ['closemedium', 'disk', path], from).catch(() => undefined)
    }
  }
}

async function execute(
  program: keyof typeof INSTALL,
  args: string[],
  from: string,
  signal?: AbortSignal,
): Promise<string> {
  const options = {
    // elsewhere than in UTF-8 VBoxManage tells other names than ASCII as question marks
    env: { ...process.env, LC_ALL: 'C.UTF-8' },
    maxBuffer: 64 * MB,
    windowsHide: true,
    ...(signal && { signal }),
  }
  try {
    const { stdout } = await promisify(execFile)(find(program), args, options)
    return stdout
  } catch (cause) {
    const { code, signal, stderr = '' } = cause as ExecFileException & { stderr?: string }
    if (code === 'ENOENT') {
      throw new Error(
        `Cannot convert with ${program}: no such program is on PATH. ` +
          `${INSTALL[program]}, or use --engine embedded`,
        { cause },
      )
    }
    const lines = stderr.trim().split(/\r?\n/)
    // VBoxManage tells its progress there too, and where in its source it failed
    const reason = lines.find((line) => /error:/i.test(line)) || lines.at(-1) ||
      `it ended with ${code ?? signal}`
    throw new Error(
      `Cannot convert "${printable(from)}" with ${program}: ${printable(reason)}. ` +
        'Run again with --engine embedded',
      { cause },
    )
  }
}

/** VirtualBox's installer for Windows leaves PATH alone, and notes its folder. */
function find(program: keyof typeof INSTALL): string {
  const { VBOXMANAGE, VBOX_MSI_INSTALL_PATH } = process.env
  if (program !== 'VBoxManage') return program
  if (VBOXMANAGE) return VBOXMANAGE
  return VBOX_MSI_INSTALL_PATH ? join(VBOX_MSI_INSTALL_PATH, 'VBoxManage.exe') : program
}
