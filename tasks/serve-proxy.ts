#!/usr/bin/env zx
/** Serve a proxy in the guest by gost, HTTP and SOCKS5 on one port, for the guest's Hyper-V host alone. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import {
  command,
  CREDENTIAL_MANAGER,
  dryRun,
  openPowerShell,
  parseHost,
  type PowerShellProcess,
  readCredential,
  Secret,
  type Value,
} from './task.ts'

/** The way into the guest: `via`, or `vm` with `account`. */
export interface GuestWay {
  /**
   * `ssh://[user@]host[:port]`, which the system's own ssh reaches with a key: as root, as one who may
   * sudo without a password, or as an administrator of Windows.
   */
  via?: string | undefined
  /**
   * Name of a VM whose guest is a Windows 10 or Windows Server 2016 or later, which its Hyper-V host enters
   * by PowerShell Direct, without a network.
   */
  vm?: string | undefined
  /** An administrator of the guest, for `vm`. */
  account?: GuestAccount | undefined
  /**
   * How a file comes into the guest of `vm`: by the session of PowerShell Direct, by Copy-VMFile and the
   * Guest Service Interface, or by the first and, where that fails, the second. @default auto
   */
  copy?: 'auto' | 'session' | 'copy-vmfile' | undefined
  /** The Hyper-V host of `vm`: `local`, or `ssh://[user@]host[:port]`. @default local */
  host?: string | undefined
}

/** An account with its password, or the name of one in Windows' Credential Manager on the Hyper-V host. */
export type GuestAccount = { user: string; password: Secret } | { target: string }

/**
 * A PowerShell that is open already, and whose way is then only told: of the Windows guest for `via`, of the
 * Hyper-V host for `vm`.
 */
export type OpenGuest = Pick<PowerShellProcess, 'using'>

export interface ServeProxyOptions extends GuestWay {
  /** The guest's IPv4 address on the switch that it shares with its host. Nothing else is listened at. */
  address: string
  /** Who may use it: the host's network there. @default the /24 of `address` */
  subnet?: string | undefined
  /** @default 8080 */
  port?: number | undefined
  /**
   * gost for the guest's system, of version 3, a file of this machine.
   * @default the one on the guest's PATH
   */
  binary?: string | undefined
  /** Who uses it has to sign in so. @default nobody has to */
  user?: string | undefined
  /** In the guest only root or SYSTEM can read it, and no command line has it. */
  password?: Secret | undefined
  dryRun?: boolean | undefined
}

export interface ServeProxyResult {
  changed: boolean
  guest: 'linux' | 'windows'
  /** `HOST:PORT`, for HTTP and SOCKS5. */
  proxy: string
  /** The program that serves it there. Empty version: not known before it is there. */
  gost: { program: string; version: string; sha256: string }
  /** How the program came into the guest now. */
  copied?: 'ssh' | 'session' | 'copy-vmfile'
  /** What lets the host's network in: ufw, firewalld, Windows, or none where no firewall is on. */
  firewall: string
  /** What the undo needs. */
  before: { served: boolean; allowed: boolean }
  address: string
  subnet: string
  port: number
}

/**
 * Has a service of the guest that starts with it and again when it ends: of systemd with no rights but
 * the network's, or a scheduled task of Windows as SYSTEM. gost listens at `address` alone and takes
 * connections of `subnet` alone (its admission list), and a firewall that is on lets these in.
 *
 * Rejects, with the guest as it was, when gost does not stay up. Its configuration is of version 3.
 */
export async function serveProxy(
  options: ServeProxyOptions,
  opened?: OpenGuest,
): Promise<ServeProxyResult> {
  const { binary, dryRun = false } = options
  const place = check(options)
  const sha256 = binary === undefined ? '' : await digest(binary)
  const guest = await openGuest(options, opened)
  let copied: ServeProxyResult['copied']
  try {
    const asked: Asked = {
      ...{ mode: 'serve', dryRun, ...place, wanted: sha256, config: configuration(options, place) },
      ...{ had: false, allowed: false },
    }
    let said = await guest.run(asked)
    if (said.state === 'upload' && dryRun) {
      said = { ...said, state: 'ok', changed: true, sha256 }
    } else if (said.state === 'upload') {
      const brought = await guest.upload(binary as string)
      copied = brought.copied
      said = await guest.run({ ...asked, upload: brought.path })
    }
    if (said.state !== 'ok') throw refusal(said, place, options, guest.family)
    return {
      changed: said.changed,
      guest: guest.family,
      proxy: `${place.address}:${place.port}`,
      gost: { program: said.program, version: said.version, sha256: said.sha256 },
      ...(copied && { copied }),
      firewall: said.firewall,
      before: { served: said.served, allowed: said.ruleWas },
      ...place,
    }
  } finally {
    await guest.close()
  }
}

/** Serves again what was served before {@link serveProxy}, or nothing. Does nothing a second time. */
export async function undoServeProxy(
  result: Pick<ServeProxyResult, 'changed' | 'before' | 'address' | 'subnet' | 'port'>,
  way: GuestWay,
  opened?: OpenGuest,
  dryRun = false,
): Promise<{ changed: boolean }> {
  if (!result.changed) return { changed: false }
  const { address, subnet, port, before } = result
  const place = check({ ...way, address, subnet, port })
  const guest = await openGuest(way, opened)
  try {
    const rest = { wanted: '', config: '', had: before.served, allowed: before.allowed }
    const said = await guest.run({ mode: 'undo', dryRun, ...place, ...rest })
    if (said.state !== 'ok') throw refusal(said, place, { ...way, address }, guest.family)
    return { changed: said.changed }
  } finally {
    await guest.close()
  }
}

interface Place {
  address: string
  subnet: string
  port: number
}

/** What a guest's script is told. */
interface Asked extends Place {
  mode: 'serve' | 'undo'
  dryRun: boolean
  /** SHA-256 of the program that is to run; empty: the one on the guest's PATH. */
  wanted: string
  /** A file of the guest. */
  upload?: string
  config: string
  had: boolean
  allowed: boolean
}

/** What it answers. */
interface Said {
  state:
    | 'ok'
    | 'upload'
    | 'broken-upload'
    | 'not-brought'
    | 'no-systemd'
    | 'no-gost'
    | 'wrong-version'
    | 'no-address'
    | 'taken'
    | 'failed'
  detail: string
  version: string
  sha256: string
  program: string
  served: boolean
  changed: boolean
  firewall: string
  ruleWas: boolean
}

interface Guest {
  family: 'linux' | 'windows'
  run: (asked: Asked) => Promise<Said>
  /** Brings a file into the guest, to where only who is signed in there can write. */
  upload: (
    path: string,
  ) => Promise<{ path: string; copied: NonNullable<ServeProxyResult['copied']> }>
  close: () => Promise<void>
}

/** gost reads JSON as it does YAML (gost.run, Configuration file). `auto` is HTTP and SOCKS on one port. */
function configuration({ user, password }: ServeProxyOptions, place: Place): string {
  const auth = user === undefined ? {} : { auth: { username: user, password: password?.reveal() } }
  const service = {
    name: 'proxy',
    addr: `${place.address}:${place.port}`,
    admission: 'host',
    handler: { type: 'auto', ...auth },
    listener: { type: 'tcp' },
  }
  return JSON.stringify({
    services: [service],
    admissions: [{ name: 'host', whitelist: true, matchers: [place.subnet] }],
    log: { level: 'warn' },
  })
}

function refusal(
  { state, detail, version, program }: Said,
  { address, port }: Place,
  { binary, via = '' }: Pick<ServeProxyOptions, 'binary' | 'via' | 'address'>,
  guest: Guest['family'],
): Error {
  const cannot = `Cannot serve a proxy at ${address}:${port}:`
  const releases = 'https://github.com/go-gost/gost/releases'
  const logs = guest === 'windows'
    ? `gost -L ${address}:${port} in the guest, to see what it says`
    : `ssh ${via.replace(/^ssh:\/\//, '')} journalctl -u vbox-to-hyperv-proxy`
  const why: Record<Exclude<Said['state'], 'ok' | 'upload' | 'not-brought'>, string> = {
    'broken-upload': 'the program did not arrive as it was sent. Run the same again',
    'no-systemd': 'the guest is not run by systemd. Start gost there by its own means: gost -L ' +
      `${address}:${port}`,
    'no-gost':
      `the guest has no gost on its PATH. Take one of version 3 for its system from ${releases}, ` +
      'and run again with --binary FILE',
    'wrong-version': `"${binary ?? program}" is no gost of version 3 that runs there (it says "${
      version.slice(0, 80)
    }"). Take one for the guest’s system from ${releases}, and run again with --binary FILE`,
    'no-address':
      `the guest does not have that address. Run: npx zx tasks/set-guest-ip.ts --vm NAME ` +
      `--guest-ip ${address}`,
    taken: `${
      detail ? `"${detail}"` : 'another program'
    } of the guest listens there. Run again with --port ${port + 1}`,
    failed: `${detail || 'it does not start'}, and the guest is as it was. Run: ${logs}`,
  }
  return new Error(`${cannot} ${why[state as keyof typeof why]}`)
}

// --- the way in ---

/** A machine over SSH is Windows unless its `uname` says otherwise. */
async function openGuest(way: GuestWay, opened?: OpenGuest): Promise<Guest> {
  const { via, vm, host: hyperV } = way
  if (vm !== undefined) {
    if (opened) return directGuest(opened, way, async () => {})
    const shell = openPowerShell({ host: hyperV })
    return directGuest(shell, way, shell.close)
  }
  if (opened) return windowsGuest(opened, async () => {})
  if (via === undefined) throw noWay()
  const host = parseHost(via)
  const args = [
    ...['-T', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=30'],
    ...(host.user === undefined ? [] : ['-l', host.user]),
    ...(host.port === undefined ? [] : ['-p', host.port]),
    '--',
    host.name,
  ]
  const asked = await run('ssh', [...args, 'uname -s'])
  // ssh's own failures
  if (asked.code === 255) {
    throw new Error(
      `Cannot reach the guest: ssh does not get there (${
        asked.stderr.trim().split(/\r?\n/).at(-1)
      }). See that this works without a question. Run: ssh -o BatchMode=yes ${
        args.slice(5).join(' ')
      } exit`,
    )
  }
  if (asked.code === 0 && asked.stdout.trim() === 'Linux') return linuxGuest(args)
  if (/^(Darwin|.*BSD|SunOS|Haiku)$/.test(asked.code === 0 ? asked.stdout.trim() : '')) {
    throw new Error(
      `Cannot serve a proxy in the guest: it is ${asked.stdout.trim()}, and only Linux and Windows ` +
        'are known here. Start gost there by its own means: gost -L ADDRESS:8080',
    )
  }
  const shell = openPowerShell({ host: via })
  return windowsGuest(shell, shell.close)
}

/** Runs a file of this task's folder, with values before it, one assignment a line, so that each is a literal. */
async function tell(
  { using }: OpenGuest,
  name: string,
  values: Record<string, Value>,
  feed?: AsyncIterable<Uint8Array>,
): Promise<Said> {
  const heads = Object.keys(values).map((name) => `\n$${name} = `)
  const pieces = [...heads, `\n${await text(name)}`]
  const ps = using({ step: 'Serve the proxy', feed })
  const { stdout } = await ps(
    pieces as unknown as TemplateStringsArray,
    ...Object.values(values),
  )
  const line = stdout.split(/\r?\n/).findLast((text) => text.startsWith('{"'))
  if (line !== undefined) return JSON.parse(line) as Said
  throw new Error(
    'Cannot serve a proxy: the script in the guest ended without an answer. Run the same again',
  )
}

/** A file of this task's folder. git on Windows may have written its line ends. */
async function text(name: string): Promise<string> {
  const file = join(import.meta.dirname as string, 'serve-proxy', name)
  return (await fs.readFile(file, 'utf8')).replace(/\r\n/g, '\n')
}

/** What windows.ps1 has before it. */
function valuesOf(asked: Asked): Record<string, Value> {
  const { mode, dryRun, had, allowed, address, port, subnet, wanted, upload, config } = asked
  return {
    ...{ mode, dryRun, had, ruleWas: allowed, address, port, subnet, wanted },
    upload: upload !== undefined,
    // it may hold a password, which Windows would write down with the script's text
    config: config === '' ? '' : new Secret(config),
  }
}

function windowsGuest(shell: OpenGuest, close: () => Promise<void>): Guest {
  return {
    family: 'windows',
    run: (asked) => tell(shell, 'windows.ps1', valuesOf(asked)),
    upload: async (path) => {
      const { size } = await fs.stat(path)
      const values = { mode: 'upload', length: size }
      await tell(shell, 'windows.ps1', values, createReadStream(path))
      return { path: '', copied: 'ssh' }
    },
    close,
  }
}

/** The guest of a VM, by its Hyper-V host: the same script there, in a session of PowerShell Direct. */
function directGuest(shell: OpenGuest, way: GuestWay, close: () => Promise<void>): Guest {
  const { vm = '', account, copy = 'auto' } = way
  const none = { user: undefined, password: undefined, target: undefined }
  const common = async () => ({
    ...{ vm, ...none, ...account, source: CREDENTIAL_MANAGER },
    inside: await text('windows.ps1'),
  })
  return {
    family: 'windows',
    run: async (asked) =>
      await tell(shell, 'direct.ps1', { ...await common(), ...valuesOf(asked) }),
    upload: async (path) => {
      const { size } = await fs.stat(path)
      const values = {
        ...await common(),
        ...{ mode: 'upload', dryRun: false, had: false, ruleWas: false, address: '', port: 0 },
        ...{ subnet: '', wanted: '', upload: false, config: '', length: size, copy },
      }
      const { state, detail } = await tell(shell, 'direct.ps1', values, createReadStream(path))
      if (state === 'not-brought') {
        throw new Error(
          `Cannot bring "${path}" into the guest of "${vm}": ${detail}. Copy it there by hand, into a ` +
            'folder of its PATH, and run again without --binary',
        )
      }
      return { path: '', copied: detail === 'session' ? 'session' : 'copy-vmfile' }
    },
    close,
  }
}

function linuxGuest(args: string[]): Guest {
  return {
    family: 'linux',
    run: async (asked) => {
      const { mode, address, subnet, port, wanted, upload = '', config } = asked
      const [dry, had, rule] = [asked.dryRun, asked.had, asked.allowed].map(Number)
      // none has a character that sh reads: check() and the guest's own mktemp see to that
      const script = [
        `mode=${mode} dry=${dry} had=${had} rule_was=${rule} address=${address} subnet=${subnet}`,
        `port=${port} wanted=${wanted} upload=${upload}`,
        `config=${Buffer.from(config).toString('base64')}`,
        '[ "$(id -u)" -eq 0 ] || exec sudo -n /bin/sh "$0"',
        await text('linux.sh'),
      ].join('\n')
      const said = await run('ssh', [...args, BY_FILE], script)
      const line = said.stdout.split(/\r?\n/).findLast((text) => text.startsWith('{"'))
      if (line !== undefined) return JSON.parse(line) as Said
      const words = said.stderr.trim().split(/\r?\n/)[0] || `exit code ${said.code}`
      throw new Error(
        /^sudo: |sudo: not found/m.test(said.stderr)
          ? `Cannot serve a proxy: sudo in the guest asks for a password (${words}). Run again with ` +
            '--via ssh://root@HOST, or let the user act as root without one'
          : `Cannot serve a proxy: the script in the guest ended without an answer (${words}). Mend ` +
            'that in the guest, and run again',
      )
    },
    upload: async (path) => {
      const said = await run('ssh', [...args, TO_FILE], createReadStream(path))
      const made = said.stdout.trim()
      if (said.code === 0 && /^\/[\w./-]+$/.test(made)) return { path: made, copied: 'ssh' }
      throw new Error(
        `Cannot bring "${path}" into the guest: ${
          said.stderr.trim() || `exit code ${said.code}`
        }. ` +
          'Make room in its /tmp, and run again',
      )
    },
    close: async () => {},
  }
}

/** As a file, for what the script starts would read on in its standard input, and no command line has it. */
const BY_FILE =
  `exec sh -c 'umask 077; f=$(mktemp) && cat > "$f" && { sh "$f" < /dev/null; c=$?; rm -f "$f"; exit $c; }'`

const TO_FILE =
  `exec sh -c 'umask 077; f=$(mktemp) && { cat > "$f" && echo "$f" || { rm -f "$f"; exit 1; }; }'`

interface Ended {
  code: number
  stdout: string
  stderr: string
}

/** Fails only where there is no such program. */
async function run(
  program: string,
  args: string[],
  input: string | NodeJS.ReadableStream = '',
): Promise<Ended> {
  const child = spawn(program, args, { windowsHide: true })
  const said = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => said[name] += text)
  }
  const ended = new Promise<number>((resolve, reject) => {
    child.on('error', (cause) => {
      const message = `Cannot run "${program}": there is no such program. Install it, or set PATH`
      reject(new Error(message, { cause }))
    })
    child.on('close', (code) => resolve(code ?? 1))
  })
  child.stdin.on('error', () => {}) // it ended without reading all of it, which its exit code tells
  if (typeof input === 'string') child.stdin.end(input)
  else await Promise.race([ended, pipeline(input, child.stdin).catch(() => {})])
  return { code: await ended, ...said }
}

// --- what was given ---

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    await pipeline(createReadStream(path), hash)
  } catch (cause) {
    throw new Error(
      `Cannot read "${path}": ${(cause as Error).message}. Name the program by --binary FILE`,
      { cause },
    )
  }
  return hash.digest('hex')
}

function noWay(): TypeError {
  return new TypeError(
    'Cannot tell how the guest is reached: it is one of --via ssh://USER@HOST and, for Windows, --vm NAME ' +
      '--guest-user Administrator. Run again with either',
  )
}

function check(options: ServeProxyOptions): Place {
  const { address, subnet, port = 8080, user, password, via, vm, account } = options
  if ((via === undefined) === (vm === undefined)) throw noWay()
  // deno-lint-ignore no-control-regex -- these are what is refused
  const control = /[\u0000-\u001f\u007f]/
  if (vm !== undefined && (vm.trim() === '' || vm.length > 100 || control.test(vm))) {
    throw new TypeError(
      `Cannot look for a VM named ${
        JSON.stringify(vm)
      }: a name is 1 to 100 characters and no control ` +
        'characters. Run: Get-VM',
    )
  }
  if (vm !== undefined && account === undefined) {
    throw new TypeError(
      `Cannot enter the guest of ${
        JSON.stringify(vm)
      }: PowerShell Direct needs an account of the guest. ` +
        'Run again with --guest-user Administrator',
    )
  }
  const first = Number(address.split('.')[0])
  if (isIP(address) !== 4 || first === 0 || first === 127 || first >= 224) {
    throw new TypeError(
      `Cannot serve a proxy at ${
        JSON.stringify(address)
      }: it is one IPv4 address of the guest, never ` +
        'all of them. Run again with for example: --address 192.168.56.191',
    )
  }
  const network = subnet ?? `${address.split('.').slice(0, 3).join('.')}.0/24`
  const [base = '', length = '', ...more] = network.split('/')
  if (more.length > 0 || isIP(base) !== 4 || !/^([89]|[12]\d|3[0-2])$/.test(length)) {
    throw new TypeError(
      `Cannot let ${JSON.stringify(network)} use the proxy: it is an IPv4 network of the host. ` +
        'Run again with for example: --subnet 192.168.56.0/24',
    )
  }
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new RangeError(
      `Cannot serve a proxy at port ${port}: it is a whole number from 1 to 65535. Run again with --port 8080`,
    )
  }
  const fits = (text: string) => text !== '' && Buffer.byteLength(text) <= 255
  // HTTP ends the user at the first colon (RFC 7617, 2), SOCKS5 has a byte for each length (RFC 1929)
  // deno-lint-ignore no-control-regex -- these are what is refused
  const wrong = user !== undefined && (!fits(user) || /[:\u0000-\u001f\u007f]/.test(user))
  if (
    wrong || (user === undefined) !== (password === undefined) ||
    (password && !fits(password.reveal()))
  ) {
    throw new TypeError(
      'Cannot ask for that user at the proxy: user and password are 1 to 255 bytes each, and a user ' +
        'has no colon. Run again with --user NAME --credential prompt',
    )
  }
  return { address, subnet: `${networkOf(base, Number(length))}/${length}`, port }
}

/** Its first address, by which firewalls know a network. */
function networkOf(address: string, length: number): string {
  const number = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)
  const first = number - number % 2 ** (32 - length)
  return [24, 16, 8, 0].map((bits) => Math.floor(first / 2 ** bits) % 256).join('.')
}

// --- the command line ---

type CommandLine = Omit<ServeProxyOptions, 'password' | 'account'> & {
  credential?: string
  guestUser?: string
  guestCredential?: string
  undo?: boolean
}

/** The account of the guest; its password is on no command line. */
async function guestAccount({ vm, guestUser, guestCredential }: CommandLine): Promise<GuestWay> {
  if (vm === undefined) {
    if (guestUser === undefined && guestCredential === undefined) return {}
    throw new TypeError(
      'Cannot use an account of the guest without its VM. Run again with --vm NAME, and without --via',
    )
  }
  const [, target] = /^manager:(.+)$/s.exec(guestCredential ?? '') ?? []
  if (target !== undefined && guestUser === undefined) return { account: { target } }
  if (!guestUser) return {}
  const way = guestCredential ?? 'prompt'
  const { password } = await readCredential(way, `password of ${guestUser} in the guest`)
  return { account: { user: guestUser, password } }
}

await command(
  import.meta,
  'Serve a proxy in the guest by gost, HTTP and SOCKS5, for its Hyper-V host alone',
  {
    via: {
      type: 'string',
      describe: 'The guest: ssh://[user@]host[:port]',
      example: 'ssh://root@192.168.56.191',
    },
    vm: {
      type: 'string',
      describe: 'In place of --via: a VM whose Windows PowerShell Direct enters',
    },
    guestUser: { type: 'string', describe: 'An administrator of the guest, for --vm' },
    guestCredential: {
      type: 'string',
      describe:
        'Where its password comes from: prompt, stdin, env:NAME, or manager:TARGET (Windows’ ' +
        'Credential Manager on the host, which has the user too) [default: prompt]',
    },
    copy: {
      choices: ['auto', 'session', 'copy-vmfile'],
      describe: 'How gost comes into the guest of --vm [default: auto, the session first]',
    },
    host: {
      type: 'string',
      describe: 'The Hyper-V host of --vm: local, or ssh://[user@]host[:port] [default: local]',
    },
    address: {
      type: 'string',
      demandOption: true,
      describe: 'The guest’s address on the switch that it shares with the host',
      example: '192.168.56.191',
    },
    subnet: { type: 'string', describe: 'Who may use it [default: the /24 of the address]' },
    port: { type: 'number', describe: 'For HTTP and SOCKS5 [default: 8080]' },
    binary: {
      type: 'string',
      describe: 'gost 3 for the guest’s system [default: the one on the guest’s PATH]',
    },
    user: { type: 'string', describe: 'Who uses it has to sign in so' },
    credential: {
      type: 'string',
      describe:
        'Where that user’s password comes from: prompt, stdin, env:NAME or manager:TARGET [default: prompt]',
    },
    undo: { type: 'boolean', describe: 'Serve nothing there any more' },
    dryRun,
  },
  async (given: CommandLine) => {
    const { credential, undo = false, guestUser: _, guestCredential: __, ...rest } = given
    if (credential === 'stdin' && given.guestCredential === 'stdin') {
      throw new TypeError(
        'Cannot read two passwords from standard input. Run again with --guest-credential env:NAME',
      )
    }
    const options = { ...rest, ...await guestAccount(given) }
    const { user } = options
    if (undo) {
      const before = { served: false, allowed: false }
      const place = check({ ...options, user: undefined })
      return await undoServeProxy(
        { changed: true, before, ...place },
        options,
        undefined,
        options.dryRun,
      )
    }
    check({ ...options, ...(user !== undefined && { password: new Secret('not asked for yet') }) })
    const account = user === undefined && credential === undefined ? {} : await readCredential(
      credential ?? 'prompt',
      `password that ${user ?? 'the user'} is to have at the proxy`,
    )
    return await serveProxy({ ...account, ...options })
  },
)
