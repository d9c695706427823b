#!/usr/bin/env zx
/** Prepare the guest in a VM of VirtualBox, while it runs, or Windows on a disk, so that it starts on Hyper-V. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { which } from 'zx/core'
import {
  command,
  dryRun,
  fromWindows,
  inWsl,
  openPowerShell,
  type Option,
  parseHost,
  script,
  Secret,
  toWindows,
} from './task.ts'
import {
  BOOT_DRIVERS,
  prepareDisk,
  type PrepareDiskResult,
  undoPrepareDisk,
} from './prepare-guest/disk.ts'

export { prepareDisk, undoPrepareDisk } from './prepare-guest/disk.ts'
export type { PrepareDiskOptions, PrepareDiskResult } from './prepare-guest/disk.ts'

/** The way into a guest that VirtualBox runs. */
export interface GuestAccess {
  /** The VM's name or UUID in VirtualBox. */
  vm: string
  /**
   * `guestcontrol`: VBoxManage and the Guest Additions; or `ssh://[user@]host[:port]`, which the system's
   * own ssh reaches with a key. @default guestcontrol
   */
  via?: string | undefined
  /**
   * An account of the guest. Linux: root, or one that may sudo without a password. Windows: an
   * administrator, for guestcontrol the built-in one, as Windows keeps the rights of others (UAC).
   * Required for guestcontrol; for ssh its own configuration names one.
   */
  user?: string | undefined
  /** The account's, for guestcontrol. @default empty */
  password?: Secret | undefined
  /** Say what would change. @default false */
  dryRun?: boolean | undefined
}

export interface PrepareGuestOptions extends GuestAccess {
  /** Suspend BitLocker until it is resumed, for the new VM's TPM does not have its key. @default false */
  suspendBitlocker?: boolean | undefined
  /**
   * Do not remove the Guest Additions. The undo cannot bring them back, and without them goes by ssh
   * alone. @default false
   */
  keepAdditions?: boolean | undefined
  /**
   * Have xrdp of a Linux listen to enhanced sessions of Hyper-V, and no longer to a network; Windows needs
   * nothing for that here. @default false
   */
  enhancedSession?: boolean | undefined
  /** Shut a guest down that is ready, and wait until VirtualBox has let go of it. @default false */
  shutDown?: boolean | undefined
}

export interface PrepareGuestResult {
  /** Whether anything was changed in the guest, or would be. */
  changed: boolean
  /** Whether nothing is known that keeps the guest from starting on Hyper-V: no step is a refusal. */
  ready: boolean
  vm: string
  guest: 'linux' | 'windows'
  steps: GuestStep[]
  /**
   * What was changed, and what it was: on Linux a file, and the guest's own copy of it (null: there was
   * none), or a package that was installed, on Windows a setting and its value as JSON.
   */
  before: { what: string; was: string | null }[]
  /** The IPv4 addresses of a Windows guest's adapters, which has them recorded too. */
  addresses: GuestAddresses[]
}

export interface GuestStep {
  /** E.g. `initramfs`, `network`, `boot-drivers`. */
  step: string
  /**
   * `ok`: it is so already; `changed`; `warning`: it is not done, and the guest starts without; `refusal`:
   * it is not done, and the guest would not start.
   */
  state: 'ok' | 'changed' | 'warning' | 'refusal'
  /** A sentence, with the command that mends it where there is one. */
  detail: string
}

export interface GuestAddresses {
  /** E.g. `08:00:27:00:00:01`. */
  mac: string
  dhcp: boolean
  description: string
  addresses: string[]
  masks: string[]
  gateways: string[]
  dns: string[]
}

/**
 * Does in the guest what can be done only there, by one script that looks first: run twice, it changes
 * nothing. What it cannot do is a step of its own in the result, and the others are done all the same.
 *
 * Linux: the drivers of Hyper-V in the initramfs of each kernel (initramfs-tools, dracut, mkinitcpio;
 * without them there is no root device, LIS/lis-next#547), adapters that keep their names by MAC address
 * (systemd#8652), disks named by UUID, mounts of shared folders commented out, and a loader where UEFI
 * looks that knows no boot entry. Windows: boot drivers that start with it (else stop 0x7B), hibernation
 * and Fast Startup off, stop screens that stay, BitLocker suspended when asked, and at the first start
 * on Hyper-V the addresses that it had, by MAC address. Both: the Guest Additions removed, whose
 * uninstaller often refuses on another hypervisor.
 *
 * Rejects when the guest cannot be reached or its account may not do this; nothing is changed then.
 */
export async function prepareGuest(options: PrepareGuestOptions): Promise<PrepareGuestResult> {
  const result = await tell('prepare', options)
  if (options.shutDown && result.ready && !options.dryRun) await untilOff(options)
  return result
}

/** Takes back what {@link prepareGuest} changed in the guest, which itself has kept what was there. */
export async function undoPrepareGuest(access: GuestAccess): Promise<PrepareGuestResult> {
  return await tell('undo', access)
}

async function tell(
  mode: 'prepare' | 'undo',
  options: PrepareGuestOptions,
): Promise<PrepareGuestResult> {
  const { vm } = options
  const cannot = `Cannot ${
    mode === 'undo' ? 'undo what was prepared' : 'prepare the guest'
  } in "${vm}":`
  const way = check(options, cannot)
  const guest = way ? await bySsh(way, cannot) : await byGuestControl(options, cannot)
  const said = await guest.run(await scriptFor(guest.family, mode, options, way === undefined))
  // what else the guest's programs print is not the answer
  const line = said.stdout.split(/\r?\n/).findLast((text) => text.startsWith('{"'))
  if (line === undefined) throw new Error(`${cannot} ${explain(said, options)}`)
  const answer = JSON.parse(line) as Omit<PrepareGuestResult, 'vm' | 'ready'>
  const [only] = answer.steps
  if (only?.step === 'rights') {
    const mend = guest.family === 'linux'
      ? 'Run again with --user root, or as one who may sudo'
      : 'Run again with --user Administrator (in the guest: net user Administrator /active:yes), ' +
        'or with --via ssh://Administrator@HOST'
    throw new Error(`${cannot} ${only.detail.replace(/^The/, 'the')}. ${mend}`)
  }
  const ready = !answer.steps.some(({ state }) => state === 'refusal')
  const { changed, steps, before, addresses = [] } = answer
  return { changed, ready, vm, guest: guest.family, steps, before, addresses }
}

/** How a program ended, here or in the guest. */
interface Said {
  code: number
  stdout: string
  stderr: string
}

interface Guest {
  family: 'linux' | 'windows'
  run: (text: GuestScript) => Promise<Said>
}

/** A script for `sh`, or the template of one for PowerShell. */
type GuestScript = string | [TemplateStringsArray, ...(string | boolean | readonly string[])[]]

type Ssh = ReturnType<typeof parseHost> & { url: string }

/** Refuses what no guest needs to be asked about. Undefined: through guestcontrol. */
function check({ vm, via = 'guestcontrol', user, password }: GuestAccess, cannot: string) {
  for (const text of [vm, user ?? 'x']) {
    // deno-lint-ignore no-control-regex -- these are what is refused
    if (text.trim() !== '' && !/[\u0000-\u001f]/.test(text)) continue
    throw new TypeError(`${cannot} ${JSON.stringify(text)} is no name. Run: VBoxManage list vms`)
  }
  if (via === 'guestcontrol') {
    // VBoxManage reads to the first control character
    // deno-lint-ignore no-control-regex
    if (password && /[\u0000-\u001f\u007f]/.test(password.reveal())) {
      throw new TypeError(`${cannot} VBoxManage takes no password with control characters`)
    }
    if (user !== undefined) return undefined
    throw new TypeError(
      `${cannot} no account of the guest is named. Run again with --user root or --user Administrator`,
    )
  }
  const host = parseHost(via)
  if (password) {
    throw new TypeError(
      `${cannot} ssh asks for no password here, it needs a key. Run: ssh-copy-id, and again without --credential`,
    )
  }
  if (user !== undefined && host.user !== undefined && user !== host.user) {
    throw new TypeError(
      `${cannot} "${user}" and "${host.user}" are named as its user. Leave out --user`,
    )
  }
  const who = host.user ?? user
  const name = host.name.includes(':') ? `[${host.name}]` : host.name
  const login = who === undefined ? '' : `${encodeURIComponent(who)}@`
  const url = `ssh://${login}${name}${host.port ? `:${host.port}` : ''}?powershell=${host.program}`
  return { ...parseHost(url), url } satisfies Ssh
}

/** The script of the guest's family, with what it is to do. */
async function scriptFor(
  family: Guest['family'],
  mode: 'prepare' | 'undo',
  options: PrepareGuestOptions,
  detached: boolean,
): Promise<GuestScript> {
  const { dryRun = false, suspendBitlocker = false, keepAdditions = false } = options
  const { enhancedSession = false, shutDown = false } = options
  const name = family === 'linux' ? 'linux.sh' : 'windows.ps1'
  const file = join(import.meta.dirname as string, 'prepare-guest', name)
  // git on Windows may have written its line ends
  const text = (await fs.readFile(file, 'utf8')).replace(/\r\n/g, '\n')
  if (family === 'linux') {
    const [dry, keep, late] = [dryRun, keepAdditions, detached].map(Number)
    const [down, enhanced] = [shutDown, enhancedSession].map(Number)
    return [
      `mode=${mode} dry=${dry} keep_additions=${keep} detached=${late} shut_down=${down}`,
      `enhanced=${enhanced}`,
      '[ "$(id -u)" -eq 0 ] || exec sudo -n /bin/sh "$0"',
      text,
    ].join('\n')
  }
  const values = {
    mode,
    dryRun,
    suspendBitLocker: suspendBitlocker,
    keepAdditions,
    detached,
    shutDown,
    bootDrivers: BOOT_DRIVERS,
  }
  const pieces = [...Object.keys(values).map((name) => `\n$${name} = `), `\n${text}`]
  return [pieces as unknown as TemplateStringsArray, ...Object.values(values)]
}

/** Seconds that a guest may take for shutting down: it may be putting updates in. */
const SHUT_DOWN = 600

/** Waits for a guest that was told to shut down. Where VirtualBox is on another machine nobody can tell. */
async function untilOff({ vm }: PrepareGuestOptions): Promise<void> {
  const program = await findVBoxManage()
  if (program === undefined) return
  const end = performance.now() + SHUT_DOWN * 1000
  while (true) {
    const { code, stdout } = await run(program, ['showvminfo', '--machinereadable', '--', vm])
    const state = stdout.match(/^VMState="(.*)"\r?$/m)?.[1]
    // one that only ssh knows, by another name than VirtualBox
    if (code !== 0 || state === 'poweroff') return
    if (performance.now() > end) {
      throw new Error(
        `Cannot wait longer for "${vm}" to be off: it was told to shut down, and is ${state} after ` +
          `${SHUT_DOWN} s. Shut it down in its window, or run: VBoxManage controlvm "${vm}" acpipowerbutton`,
      )
    }
    await wait(1000)
  }
}

/** Why a guest gave no answer. */
function explain(
  { code, stderr, stdout }: Said,
  { vm, user = 'the user', via }: GuestAccess,
): string {
  const words = (stderr.trim() || stdout.trim()).split(/\r?\n/).filter((line) => line.trim())
  const first = words[0]?.replace(/^VBoxManage(\.exe)?: error: /, '') ?? `exit code ${code}`
  const again = via?.startsWith('ssh:') ? via : 'ssh://root@HOST'
  if (/^sudo: |sudo: not found/m.test(stderr)) {
    const who = /^[\w.-]+$/.test(user) ? user : 'USER'
    return `sudo there does not let "${user}" act as root without a password (${first}). Run in the guest: ` +
      `echo '${who} ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/vbox-to-hyperv, or run again with --user root`
  }
  if (/not able to logon|restricted and can't be used|AUTHENTICATION_FAILURE/i.test(stderr)) {
    return `the guest does not let "${user}" in (${first}). Windows takes no empty password here. ` +
      'Run again with the account and password of one who can sign in there'
  }
  if (/service is not ready|not ready \(yet\)|Guest Additions/i.test(stderr)) {
    return `its Guest Additions do not answer (${first}). Install them, wait until the guest has started, ` +
      `or run again with --via ${again}`
  }
  if (/is not running/i.test(stderr)) {
    return `VirtualBox does not run it now. Run: VBoxManage startvm "${vm}"`
  }
  return `its script ended without an answer (${first}). Mend that in the guest, and run again`
}

// --- through VBoxManage and the Guest Additions ---

/**
 * Looks what the guest is, and brings scripts into it. The password goes to VBoxManage's standard
 * input (`--passwordfile stdin`, VBoxManage's readPasswordFile), so it is on no command line and on no
 * disk; as VBoxManage brings nobody else's input to the guest either, a script goes there as a file, in
 * a folder of its own that is removed.
 */
async function byGuestControl(access: GuestAccess, cannot: string): Promise<Guest> {
  const { vm, user = '', password } = access
  const program = await findVBoxManage()
  if (program === undefined) {
    throw new Error(
      `${cannot} there is no VBoxManage on this machine. Set VBOXMANAGE to where it is, or use --via ssh://root@HOST`,
    )
  }
  // after `--` a leading dash is no option; guestcontrol has no `--` there, and takes the UUID
  const info = await run(program, ['showvminfo', '--machinereadable', '--', vm])
  // the first is VirtualBox's own: a name may hold lines that look the same, but its quotes are escaped
  const value = (key: string) => info.stdout.match(new RegExp(`^${key}="(.*)"\r?$`, 'm'))?.[1]
  const uuid = value('UUID')
  if (info.code !== 0 || uuid === undefined) {
    throw new Error(`${cannot} VirtualBox has no such VM. Run: VBoxManage list vms`)
  }
  const state = value('VMState')
  if (state !== 'running') {
    throw new Error(
      `${cannot} VirtualBox does not run it now (${state}). Run: VBoxManage startvm "${vm}"`,
    )
  }
  const property = await run(program, [
    'guestproperty',
    'get',
    uuid,
    '/VirtualBox/GuestInfo/OS/Product',
  ])
  const product = /^Value: (.*)/m.exec(property.stdout)?.[1] ?? value('ostype') ?? ''
  const family = /windows/i.test(product) ? 'windows' : 'linux'
  const account = ['--username', user, '--passwordfile', 'stdin']
  const control = (verb: string, ...args: string[]) =>
    run(program, ['guestcontrol', uuid, verb, ...account, ...args], `${password?.reveal() ?? ''}\n`)
  return {
    family,
    run: async (text) => {
      const own = `vbox-to-hyperv-${randomBytes(8).toString('hex')}`
      const windows = family === 'windows'
      // assumption: Windows in a VM is on C:, for what it is on is not known before something runs there
      const folder = windows ? `C:\\ProgramData\\${own}` : `/tmp/${own}`
      const name = windows ? 'prepare.ps1' : 'prepare.sh'
      const inside = `${folder}${windows ? '\\' : '/'}${name}`
      const here = await fs.mkdtemp(join(tmpdir(), 'vbox-to-hyperv-'))
      try {
        const file = join(here, name)
        // with a mark, without which 5.1 takes a file for ANSI
        await fs.writeFile(file, typeof text === 'string' ? text : `\ufeff${script(...text)}`)
        const made = await control('mkdir', '--mode', '0700', folder)
        if (made.code !== 0) return { ...made, stdout: '' }
        try {
          const target = `${folder}${windows ? '\\' : '/'}`
          const source = /[.]exe$/i.test(program) && inWsl() ? await toWindows(file) ?? file : file
          const copied = await control('copyto', '--target-directory', target, source)
          if (copied.code !== 0) return { ...copied, stdout: '' }
          // up to 6.1 the first argument is the program's own name, and later it is not: so it is twice
          // (assumption: powershell.exe takes -NoProfile twice)
          const [exe, args] = windows
            ? [POWERSHELL, [
              ...['-NoProfile', '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass'],
              // a policy may forbid files, and not what is read from one
              ...['-Command', `& ([ScriptBlock]::Create([IO.File]::ReadAllText('${inside}')))`],
            ]]
            : ['/bin/sh', [inside, inside]]
          return await control(
            'run',
            ...['--exe', exe, '--timeout', `${LIMIT}`, '--wait-stdout', '--wait-stderr', '--'],
            ...args,
          )
        } finally {
          // the guest may be gone, and then there is nothing to remove
          await control('rm', inside)
          await control('rmdir', folder)
        }
      } finally {
        await fs.remove(here)
      }
    },
  }
}

/** Milliseconds for the script in the guest: it may make several initramfs. */
const LIMIT = 30 * 60 * 1000

const POWERSHELL = 'C:\\Windows\\System32\\WindowsPowerShell\\v1.0\\powershell.exe'

async function findVBoxManage(): Promise<string | undefined> {
  if (process.env.VBOXMANAGE) return process.env.VBOXMANAGE
  const found = await which('VBoxManage', { nothrow: true })
  if (found) return found
  const { VBOX_MSI_INSTALL_PATH, ProgramFiles } = process.env
  const folders = process.platform === 'win32'
    ? [VBOX_MSI_INSTALL_PATH, ProgramFiles && join(ProgramFiles, 'Oracle', 'VirtualBox')]
    : [inWsl() && await fromWindows('C:\\Program Files\\Oracle\\VirtualBox')]
  for (const folder of folders) {
    const program = folder && join(folder, 'VBoxManage.exe')
    if (program && await fs.pathExists(program)) return program
  }
  return undefined
}

// --- through SSH ---

/** A machine over SSH is Windows unless its `uname` says otherwise. */
async function bySsh(host: Ssh, cannot: string): Promise<Guest> {
  const args = [
    ...['-T', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=30'],
    ...(host.user === undefined ? [] : ['-l', host.user]),
    ...(host.port === undefined ? [] : ['-p', host.port]),
    '--',
    host.name,
  ]
  const asked = await run('ssh', [...args, 'uname -s -r'])
  // ssh's own failures
  if (asked.code === 255) {
    const why = asked.stderr.trim().split(/\r?\n/).at(-1)
    throw new Error(
      `${cannot} ssh does not get there (${why}). See that this works without a question. Run: ssh -o BatchMode=yes ${
        args.slice(5).join(' ')
      } exit`,
    )
  }
  const [system = '', release = ''] = asked.code === 0 ? asked.stdout.trim().split(/\s+/) : []
  // in WSL, which may be the shell of Windows' sshd, it is Linux too
  if (system === 'Linux' && !/microsoft/i.test(release)) {
    return { family: 'linux', run: (text) => run('ssh', [...args, BY_FILE], text as string) }
  }
  if (/^(Darwin|.*BSD|SunOS|Haiku)$/.test(system)) {
    throw new Error(
      `${cannot} it is ${system}, and only Linux and Windows are known here. Move it as it is`,
    )
  }
  return {
    family: 'windows',
    run: async (text) => {
      const { ps, close } = openPowerShell({ host: host.url })
      try {
        const { stdout } = await ps(...text as Exclude<GuestScript, string>)
        return { code: 0, stdout, stderr: '' }
      } finally {
        await close()
      }
    },
  }
}

/**
 * As a file, for what the script starts would read on in its standard input. Any login shell
 * understands this much of quotes.
 */
const BY_FILE =
  `exec sh -c 'umask 077; f=$(mktemp) && cat > "$f" && { sh "$f" < /dev/null; c=$?; rm -f "$f"; exit $c; }'`

/** Fails only where there is no such program. */
function run(program: string, args: string[], input?: string): Promise<Said> {
  return new Promise((resolve, reject) => {
    // elsewhere than in UTF-8 VBoxManage prints question marks
    const env = { ...process.env, LC_ALL: 'C.UTF-8' }
    const child = spawn(program, args, { env, windowsHide: true })
    const said = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => said[name] += text)
    }
    child.on('error', (cause) => {
      reject(
        new Error(`Cannot run "${program}": there is no such program. Install it, or set PATH`, {
          cause,
        }),
      )
    })
    child.on('close', (code) => resolve({ code: code ?? 1, ...said }))
    child.stdin.on('error', () => {}) // it ended without reading all of it
    child.stdin.end(input ?? '')
  })
}

// --- the command line ---

async function readPassword(
  way: string | undefined,
  user: string | undefined,
): Promise<Secret | undefined> {
  if (way === undefined) return undefined
  const [, from, name = ''] = /^(stdin|prompt|env:(.+))$/s.exec(way) ?? []
  if (from === undefined) {
    throw new TypeError(
      `Cannot take a password from ${
        JSON.stringify(way)
      }: it is prompt, stdin or env:NAME. Example: --credential env:GUEST_PASSWORD`,
    )
  }
  if (from === 'stdin') {
    let text = ''
    for await (const part of process.stdin.setEncoding('utf8')) text += part
    return new Secret(text.replace(/\r?\n$/, ''))
  }
  if (from === 'prompt') {
    if (!process.stdin.isTTY || !process.stderr.isTTY) {
      throw new Error(
        'Cannot ask for the password: there is no terminal. Run again with --credential env:NAME or --credential stdin',
      )
    }
    const { password } = await import('@inquirer/prompts')
    return new Secret(
      await password({ message: `Password of ${user} in the guest` }, { output: process.stderr }),
    )
  }
  const value = process.env[name]
  if (value === undefined) {
    throw new Error(
      `Cannot take the password from the environment: there is no variable ${
        JSON.stringify(name)
      }. Set it, or run again with --credential prompt`,
    )
  }
  delete process.env[name] // programs that are started from here on do not have it
  return new Secret(value)
}

const options: Record<string, Option> = {
  vm: {
    type: 'string',
    describe: 'The VM’s name in VirtualBox, which runs it',
    example: 'Win10',
  },
  disk: {
    type: 'string',
    describe: 'Instead of a VM: a disk with Windows, converted for Hyper-V, on the host',
  },
  host: {
    type: 'string',
    describe: 'The host that has the disk: local, or ssh://[user@]host[:port] [default: local]',
  },
  user: {
    type: 'string',
    describe: 'An account of the guest: root, or Administrator',
    example: 'Administrator',
  },
  credential: {
    type: 'string',
    describe: 'Where its password comes from: prompt, stdin or env:NAME [default: it has none]',
    example: 'env:GUEST_PASSWORD',
  },
  via: {
    type: 'string',
    describe: 'guestcontrol, or ssh://[user@]host[:port] [default: guestcontrol]',
  },
  suspendBitlocker: {
    type: 'boolean',
    describe: 'Suspend BitLocker in the guest until it is resumed',
  },
  keepAdditions: { type: 'boolean', describe: 'Do not remove the Guest Additions' },
  enhancedSession: {
    type: 'boolean',
    describe: 'Have xrdp of a Linux listen to enhanced sessions, and no longer to a network',
  },
  shutDown: {
    type: 'boolean',
    describe: 'Shut a guest down that is ready, and wait until it is off',
  },
  undo: { type: 'boolean', describe: 'Take back in the guest what was changed before' },
  dryRun,
}

await command(
  import.meta,
  'Prepare the guest in a VM, while VirtualBox runs it, or Windows on a disk, so that it starts on Hyper-V',
  options,
  async ({ disk, host, ...all }: CommandLine) => {
    const result = disk === undefined ? await onVm(all, host) : await onDisk(disk, host, all)
    for (const { state, detail } of result.steps) {
      if (state === 'warning' || state === 'refusal') console.error(`${detail}.`)
    }
    if (!result.ready) process.exitCode = 1
    return result
  },
)

type CommandLine = Omit<Partial<PrepareGuestOptions>, 'password'> & {
  disk?: string
  host?: string
  credential?: string
  undo?: boolean
}

async function onDisk(
  disk: string,
  host: string | undefined,
  { undo = false, dryRun = false, ...rest }: CommandLine,
): Promise<PrepareDiskResult> {
  const [other] = Object.keys(rest)
  if (other !== undefined) {
    const flag = `--${other.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
    throw new TypeError(
      `Cannot prepare the guest on "${disk}": --disk goes without ${flag}, for nothing runs there. Leave it out`,
    )
  }
  const { ps, close } = openPowerShell({ host })
  try {
    if (!undo) return await prepareDisk({ disk, dryRun }, ps)
    return await undoPrepareDisk({ changed: true, disk }, ps, dryRun) as PrepareDiskResult
  } finally {
    await close()
  }
}

async function onVm(
  { vm, credential, undo = false, ...rest }: CommandLine,
  host: string | undefined,
): Promise<PrepareGuestResult> {
  if (vm === undefined) {
    throw new TypeError(
      'Cannot prepare a guest: neither a VM nor a disk is named. Run again with --vm or --disk',
    )
  }
  if (host !== undefined) {
    throw new TypeError(
      `Cannot prepare the guest in "${vm}": --host goes with --disk. For a guest of another machine run again with --via ssh://HOST`,
    )
  }
  const given = { vm, ...rest }
  if (credential !== undefined && given.user === undefined) {
    throw new TypeError('Cannot sign in to the guest: no user is named. Add --user Administrator')
  }
  const password = await readPassword(credential, given.user)
  return await (undo ? undoPrepareGuest : prepareGuest)({ ...given, password })
}
