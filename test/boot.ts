/** Boots a disk image of a demo VM in QEMU, to see whether what was converted still runs. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** What a test that boots needs, for needs(): QEMU, and OVMF by that name where it is absent. */
export function bootPrograms(firmware: 'bios' | 'uefi'): string[] {
  return ['qemu-system-x86_64', ...(firmware === 'uefi' && ovmf() === null ? ['ovmf'] : [])]
}

export interface BootOptions {
  /** Milliseconds. @default 120_000 */
  timeout?: number
}

/**
 * Boots `file` as Hyper-V would: its disk on IDE under BIOS, on AHCI under UEFI. Resolves with all that
 * came out of COM1 once there is a whole line of the demo VM's verdict (`booted`, or `BAD sector ...`).
 * The file is not written to.
 */
export async function boots(
  file: string,
  firmware: 'bios' | 'uefi',
  format: 'vhdx' | 'vpc' | 'raw' | 'vdi' | 'vmdk',
  { timeout = 120_000 }: BootOptions = {},
): Promise<string> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'boot-'))
  try {
    return await run([...machine, ...disk(file, format), ...await start[firmware](dir)], timeout)
  } finally {
    await fs.remove(dir)
  }
}

// no network: firmware would try to boot from it first or last, and wait
const machine = '-accel tcg -m 256 -display none -serial stdio -monitor none -nic none -no-reboot'
  .split(' ')

function disk(file: string, format: string): string[] {
  const options = [
    'if=none,id=disk,snapshot=on',
    `format=${format}`,
    `file.filename=${file.replaceAll(',', ',,')}`,
  ]
  // else qemu takes the size of a VHD from its CHS geometry, which ends before the disk does
  if (format === 'vpc') options.push('force_size_calc=current_size')
  return ['-drive', options.join(',')]
}

const start = {
  bios: () => Promise.resolve(['-machine', 'pc', '-device', 'ide-hd,drive=disk,bus=ide.0']),

  async uefi(dir: string): Promise<string[]> {
    const files = ovmf()
    if (!files) {
      throw new Error('Cannot boot by UEFI: OVMF is not installed. Run: apt-get install ovmf')
    }
    const own = join(dir, 'vars.fd') // the firmware writes its variables
    await fs.copyFile(files.vars, own)
    return [
      ...['-machine', 'q35', '-device', 'ide-hd,drive=disk,bus=ide.0'],
      ...['-drive', `if=pflash,format=raw,readonly=on,file=${files.code}`],
      ...['-drive', `if=pflash,format=raw,file=${own.replaceAll(',', ',,')}`],
    ]
  },
}

/** OVMF's code and its empty variables, which belong together by size, or null without OVMF. */
function ovmf(): { code: string; vars: string } | null {
  for (const size of ['', '_4M']) {
    const code = `/usr/share/OVMF/OVMF_CODE${size}.fd`
    const vars = `/usr/share/OVMF/OVMF_VARS${size}.fd`
    if (fs.existsSync(code) && fs.existsSync(vars)) return { code, vars }
  }
  return null
}

function run(args: string[], timeout: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const qemu = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let seen = ''
    let errors = ''
    let end = () => reject(new Error(`Cannot boot: QEMU ended. ${errors}${seen}`))
    const stop = (then: () => void) => {
      end = then
      qemu.kill('SIGKILL')
    }
    const timer = setTimeout(() => {
      stop(() =>
        reject(new Error(`Cannot boot: nothing after ${timeout} ms but: ${seen}${errors}`))
      )
    }, timeout)
    qemu.stdout.setEncoding('utf8').on('data', (text: string) => {
      seen += text
      if (/vbox-to-hyperv demo: (booted|BAD sector [0-9A-F]{8})\r?\n/.test(seen)) {
        stop(() => resolve(seen))
      }
    })
    qemu.stderr.setEncoding('utf8').on('data', (text: string) => errors += text)
    qemu.on('error', (error) => {
      clearTimeout(timer)
      reject(error)
    })
    // only when it is gone is the file free again
    qemu.on('close', () => {
      clearTimeout(timer)
      end()
    })
  })
}
