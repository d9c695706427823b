#!/usr/bin/env zx
/** Open the window of a Hyper-V VM: its console, an enhanced session, or remote desktop with drives of this computer. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { isIP } from 'node:net'
import { hostname } from 'node:os'
import { resolve } from 'node:path'
import {
  dryRun,
  hostCommand,
  inWsl,
  onWindows,
  type Option,
  powershell,
  toWindows,
} from './task.ts'

export interface OpenVmOptions {
  /** The VM's name. */
  vm: string
  /**
   * Enhanced session: clipboard, sound and drives in the console's window. It is the host's policy for all
   * its VMs. @default as it is
   */
  enhanced?: boolean | undefined
  /** What is in it: an enhanced session of a Linux needs more, which the notes say. @default windows */
  guest?: 'windows' | 'linux' | undefined
  /** Writes a file for remote desktop here, and opens that instead of the console. */
  rdp?: string | undefined
  /** The guest's address for it. @default as its integration services say, on an internal switch first */
  address?: string | undefined
  /** Letters of this computer's drives that it has there. A folder is one by `subst W: C:\share`. @default none */
  drive?: readonly string[] | undefined
  /** The account that it proposes. The password is asked for by Windows, and is in no file. */
  user?: string | undefined
  /** Width and height of its screen. @default all of this one's */
  size?: string | undefined
  /** The computer that vmconnect asks. @default the one that PowerShell is on */
  server?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface OpenVmResult {
  /** Whether host, VM or file were changed. Opening a window changes nothing. */
  changed: boolean
  id: string
  vm: string
  enhanced: boolean
  /** The program that shows it, with what it is given. */
  command: string[]
  /** The file for remote desktop; null for the console. */
  rdp: string | null
  /** What was so before, of what was changed on the host. */
  before: { enhanced?: boolean }
  /** Sentences for people. */
  notes: string[]
}

/**
 * Prepares the window; {@link showVm} opens it. The host's switch is EnableEnhancedSessionMode
 * (learn.microsoft.com/windows-server/virtualization/hyper-v/learn-more/use-local-resources-on-hyper-v-virtual-machine-with-vmconnect);
 * a Windows guest needs an account with a password and Remote Desktop Services, a Linux guest xrdp on hv_sock.
 */
export async function openVm(
  options: OpenVmOptions,
  ps = powershell,
): Promise<OpenVmResult> {
  throwIfUnusable(options)
  const { vm, enhanced, guest = 'windows', rdp, dryRun = false } = options
  const { stdout } = await ps`
    $name = ${vm}
    $enhanced = ${enhanced}
    $needsAddress = ${rdp !== undefined && options.address === undefined}
    $dryRun = ${dryRun}
    $cannot = "Cannot open ""$name"":"
    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    $vm = $found[0]
    $is = [bool](Get-VMHost).EnableEnhancedSessionMode
    $before = [ordered]@{}
    if ($null -ne $enhanced -and $enhanced -ne $is) { $before.enhanced = $is }
    $internal = @(Get-VMSwitch | Where-Object { [string]$_.SwitchType -eq 'Internal' } | ForEach-Object { [string]$_.Id })
    $adapters = @(Get-VMNetworkAdapter -VM $vm | Where-Object { $_.SwitchName } | Sort-Object { [string]$_.SwitchId -notin $internal })
    $addresses = @($adapters | ForEach-Object { $_.IPAddresses } | Where-Object { $_ -match '^[0-9.]+$' -and $_ -notlike '169.254.*' } | ForEach-Object { [string]$_ })
    if ($needsAddress -and $addresses.Count -eq 0) { throw "$cannot it tells no address for remote desktop. Run again with --address, or without --rdp" }
    if ($before.Contains('enhanced') -and -not $dryRun) { Set-VMHost -EnableEnhancedSessionMode $enhanced }
    $result = [ordered]@{ id = [string]$vm.Id; vm = [string]$vm.Name; state = [string]$vm.State; computer = [Environment]::MachineName; enhanced = $(if ($null -ne $enhanced) { $enhanced } else { $is }); addresses = $addresses; before = $before }
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  const { state, addresses, computer, ...result } = JSON.parse(stdout)
  const isHere = computer.toLowerCase() === hostname().split('.')[0]?.toLowerCase()
  const server = options.server ?? (isHere ? 'localhost' : computer)
  const notes = state === 'Running'
    ? []
    : [`It is ${state}: start it in its window, or by start-vm`]
  if (enhanced && guest === 'linux') {
    // known of linux-vm-tools; the reference of Set-VM does not have it
    notes.push(
      'An enhanced session of a Linux needs xrdp on hv_sock in the guest, and while the VM is off on the host: ' +
        `Set-VM -VMName '${
          vm.replace(/['\u2018-\u201b]/g, '$&$&')
        }' -EnhancedSessionTransportType HvSocket`,
    )
  }
  const settings = Object.keys(result.before).length > 0
  if (rdp === undefined) {
    const command = ['vmconnect.exe', server, '-G', result.id]
    return { changed: settings, ...result, command, rdp: null, notes }
  }
  const path = resolve(rdp)
  const address = options.address ?? addresses[0]
  const written = await writeRdp(path, address, options).catch(async (error) => {
    await undoOpenVm({ ...result, enhanced }, ps)
    throw error
  })
  return {
    changed: settings || written,
    ...result,
    command: ['mstsc.exe', (inWsl() ? await toWindows(path) : undefined) ?? path],
    rdp: path,
    notes,
  }
}

/** Puts back what {@link openVm} changed on the host. A file stays. */
export async function undoOpenVm(result: OpenVmResult, ps = powershell): Promise<void> {
  if (Object.keys(result.before).length === 0) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    if ($null -ne $result.before.enhanced -and [bool](Get-VMHost).EnableEnhancedSessionMode -eq $result.enhanced) { Set-VMHost -EnableEnhancedSessionMode $result.before.enhanced }`
}

/** Starts the program that shows the VM, which stays when this one ends. False where there is no Windows. */
export async function showVm({ command }: Pick<OpenVmResult, 'command'>): Promise<boolean> {
  if (!onWindows() && !inWsl()) return false
  const [program = '', ...args] = command
  const child = spawn(program, args, { detached: true, stdio: 'ignore' })
  await new Promise<void>((done, fail) => {
    child.once('spawn', done)
    child.once('error', (cause) => {
      fail(
        new Error(
          `Cannot start ${program}: ${
            (cause as NodeJS.ErrnoException).code
          }. Run: npx zx tasks/enable-hyperv.ts, ` +
            'which brings it, or at the host itself the command that --print shows',
          { cause },
        ),
      )
    })
  })
  child.unref()
  return true
}

/** Whether the file was written anew. In UTF-16 with a mark, as mstsc itself saves one. */
async function writeRdp(
  path: string,
  address: string,
  { drive = [], user, size, dryRun = false }: OpenVmOptions,
): Promise<boolean> {
  const [width, height] = size?.split('x') ?? []
  const lines = [
    `full address:s:${address}`,
    ...(user === undefined ? [] : [`username:s:${user}`]),
    'prompt for credentials:i:1',
    // a guest of one's own has a certificate of its own: warn, and let a person decide
    'authentication level:i:2',
    'redirectclipboard:i:1',
    `drivestoredirect:s:${drive.map((letter) => `${letter.toUpperCase()}:\\;`).join('')}`,
    ...(width === undefined
      ? ['screen mode id:i:2']
      : ['screen mode id:i:1', `desktopwidth:i:${width}`, `desktopheight:i:${height}`]),
  ]
  const data = Buffer.from(`\ufeff${lines.join('\r\n')}\r\n`, 'utf16le')
  const there = await fs.readFile(path).catch(() => undefined)
  if (there?.equals(data)) return false
  if (dryRun) return true
  const aside = `${path}.${randomBytes(4).toString('hex')}.partial`
  try {
    await fs.writeFile(aside, data, { flag: 'wx' })
    await fs.rename(aside, path)
  } catch (cause) {
    await fs.remove(aside)
    const why = (cause as NodeJS.ErrnoException).code ?? String(cause)
    throw new Error(
      `Cannot write "${path}": ${why}. Name a file in a folder that is there by --rdp`,
      {
        cause,
      },
    )
  }
  return true
}

function throwIfUnusable(options: OpenVmOptions): void {
  const { vm, address, drive = [], user, size, server } = options
  // deno-lint-ignore no-control-regex -- these are what is refused
  const control = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/
  if (vm.trim() === '' || vm.length > 100 || control.test(vm)) {
    throw new TypeError(
      `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    )
  }
  const cannot = `Cannot open "${vm}":`
  if (
    address !== undefined && isIP(address) === 0 &&
    !/^[\p{L}\d]([\p{L}\d.-]*[\p{L}\d])?$/u.test(address)
  ) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(address)} is no address. Example: --address 192.168.56.191`,
    )
  }
  // a leading dash is an option of vmconnect's
  if (server !== undefined && !/^[\p{L}\d]([\p{L}\d.-]*[\p{L}\d])?$/u.test(server)) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(server)} is no computer's name. Example: --server localhost`,
    )
  }
  for (const letter of drive) {
    if (/^[a-z]$/i.test(letter)) continue
    throw new TypeError(
      `${cannot} ${
        JSON.stringify(letter)
      } is no drive's letter. Run again with for example: --drive C D`,
    )
  }
  if (user !== undefined && (user.trim() === '' || control.test(user))) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(user)} is no account. Example: --user Administrator`,
    )
  }
  if (size !== undefined && !/^\d{3,5}x\d{3,5}$/.test(size)) {
    throw new TypeError(`${cannot} ${JSON.stringify(size)} is no size. Example: --size 1920x1080`)
  }
  for (const [name, value] of Object.entries({ address, drive, user, size })) {
    const given = Array.isArray(value) ? value.length > 0 : value !== undefined
    if (!given || options.rdp !== undefined) continue
    throw new TypeError(`${cannot} --${name} is for remote desktop. Add --rdp FILE.rdp`)
  }
}

const options: Record<string, Option> = {
  vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
  enhanced: { type: 'boolean', describe: 'Allow enhanced sessions on the host, or not' },
  guest: { choices: ['windows', 'linux'], describe: 'What is in it, for an enhanced session' },
  rdp: { type: 'string', describe: 'Write this file for remote desktop, and open that' },
  address: { type: 'string', describe: 'The guest’s address [default: as it says itself]' },
  drive: {
    type: 'string',
    array: true,
    describe: 'Drives of this computer that it has, such as C D',
  },
  user: { type: 'string', describe: 'The account to propose' },
  size: { type: 'string', describe: 'Of its screen, such as 1920x1080 [default: all of this one]' },
  server: { type: 'string', describe: 'The computer that vmconnect asks [default: the host]' },
  print: { type: 'boolean', describe: 'Open nothing, and say the command' },
  dryRun,
}

await hostCommand(
  import.meta,
  'Open the window of a VM: its console, an enhanced session, or remote desktop',
  options,
  async ({ print, ...given }: OpenVmOptions & { print?: boolean; host?: string }, ps) => {
    const result = await openVm(given, ps)
    const opened = !print && !given.dryRun && await showVm(result)
    return { ...result, opened }
  },
)
