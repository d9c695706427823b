#!/usr/bin/env zx
/** Serve a proxy in the guest by gost, HTTP and SOCKS5 on one port, for the guest's Hyper-V host alone. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import process from 'node:process'
import { pipeline } from 'node:stream/promises'
import {
  command,
  dryRun,
  openPowerShell,
  parseHost,
  type PowerShellProcess,
  Secret,
  type Value,
} from './task.ts'

/** The way into the guest. */
export interface GuestWay {
  /**
   * `ssh://[user@]host[:port]`, which the system's own ssh reaches with a key: as root, as one who may
   * sudo without a password, or as an administrator of Windows.
   */
  via: string
}

/** A PowerShell of a Windows guest that is open already, whose `via` is then only told. */
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
  const guest = await openGuest(options.via, opened)
  try {
    const asked: Asked = {
      ...{ mode: 'serve', dryRun, ...place, wanted: sha256, config: configuration(options, place) },
      ...{ had: false, allowed: false },
    }
    let said = await guest.run(asked)
    if (said.state === 'upload' && dryRun) {
      said = { ...said, state: 'ok', changed: true, sha256 }
    } else if (said.state === 'upload') {
      said = await guest.run({ ...asked, upload: await guest.upload(binary as string) })
    }
    if (said.state !== 'ok') throw refusal(said, place, options, guest.family)
    return {
      changed: said.changed,
      guest: guest.family,
      proxy: `${place.address}:${place.port}`,
      gost: { program: said.program, version: said.version, sha256: said.sha256 },
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
  { via }: GuestWay,
  opened?: OpenGuest,
  dryRun = false,
): Promise<{ changed: boolean }> {
  if (!result.changed) return { changed: false }
  const { address, subnet, port, before } = result
  const place = check({ via, address, subnet, port })
  const guest = await openGuest(via, opened)
  try {
    const rest = { wanted: '', config: '', had: before.served, allowed: before.allowed }
    const said = await guest.run({ mode: 'undo', dryRun, ...place, ...rest })
    if (said.state !== 'ok') throw refusal(said, place, { via, address }, guest.family)
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
  upload: (path: string) => Promise<string>
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
  { binary, via }: Pick<ServeProxyOptions, 'binary' | 'via' | 'address'>,
  guest: Guest['family'],
): Error {
  const cannot = `Cannot serve a proxy at ${address}:${port}:`
  const releases = 'https://github.com/go-gost/gost/releases'
  const logs = guest === 'windows'
    ? `gost -L ${address}:${port} in the guest, to see what it says`
    : `ssh ${via.replace(/^ssh:\/\//, '')} journalctl -u vbox-to-hyperv-proxy`
  const why: Record<Exclude<Said['state'], 'ok' | 'upload'>, string> = {
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
async function openGuest(via: string, opened?: OpenGuest): Promise<Guest> {
  if (opened) return windowsGuest(opened, async () => {})
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

function windowsGuest({ using }: OpenGuest, close: () => Promise<void>): Guest {
  const file = join(import.meta.dirname as string, 'serve-proxy', 'windows.ps1')
  const tell = async (values: Record<string, Value>, feed?: AsyncIterable<Uint8Array>) => {
    const text = await fs.readFile(file, 'utf8')
    // one assignment a line, so that each value is written there as a literal
    const pieces = [...Object.keys(values).map((name) => `\n$${name} = `), `\n${text}`]
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
  return {
    family: 'windows',
    run: ({ mode, dryRun, had, allowed, address, port, subnet, wanted, upload, config }) =>
      tell({
        ...{ mode, dryRun, had, ruleWas: allowed, address, port, subnet, wanted },
        upload: upload !== undefined,
        // it may hold a password, which Windows would write down with the script's text
        config: config === '' ? '' : new Secret(config),
      }),
    upload: async (path) => {
      const { size } = await fs.stat(path)
      const said = await tell({ mode: 'upload', length: size }, createReadStream(path))
      return said.state
    },
    close,
  }
}

function linuxGuest(args: string[]): Guest {
  return {
    family: 'linux',
    run: async (asked) => {
      const file = join(import.meta.dirname as string, 'serve-proxy', 'linux.sh')
      // git on Windows may have written its line ends
      const text = (await fs.readFile(file, 'utf8')).replace(/\r\n/g, '\n')
      const { mode, address, subnet, port, wanted, upload = '', config } = asked
      const [dry, had, rule] = [asked.dryRun, asked.had, asked.allowed].map(Number)
      // none has a character that sh reads: check() and the guest's own mktemp see to that
      const script = [
        `mode=${mode} dry=${dry} had=${had} rule_was=${rule} address=${address} subnet=${subnet}`,
        `port=${port} wanted=${wanted} upload=${upload}`,
        `config=${Buffer.from(config).toString('base64')}`,
        '[ "$(id -u)" -eq 0 ] || exec sudo -n /bin/sh "$0"',
        text,
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
      if (said.code === 0 && /^\/[\w./-]+$/.test(made)) return made
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

function check({ address, subnet, port = 8080, user, password }: ServeProxyOptions): Place {
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
  return { address, subnet: network, port }
}

// --- the command line ---

async function readPassword(way: string, user: string | undefined): Promise<Secret> {
  const [, from, variable = ''] = /^(stdin|prompt|env:(.+))$/s.exec(way) ?? []
  if (from === 'stdin') {
    let text = ''
    for await (const part of process.stdin.setEncoding('utf8')) text += part
    return new Secret(text.replace(/\r?\n$/, ''))
  }
  if (from === 'prompt') {
    if (!process.stdin.isTTY || !process.stderr.isTTY) {
      throw new Error(
        'Cannot ask for the password: there is no terminal. Run again with --credential env:NAME ' +
          'or --credential stdin',
      )
    }
    const { password } = await import('@inquirer/prompts')
    const message = `Password that ${user} is to have at the proxy`
    return new Secret(await password({ message }, { output: process.stderr }))
  }
  if (from === undefined) {
    throw new TypeError(
      'Cannot take the password from the command line: it is prompt, stdin or env:NAME. ' +
        'Example: --credential env:PROXY_PASSWORD',
    )
  }
  const value = process.env[variable]
  if (value === undefined) {
    throw new Error(
      `Cannot take the password from the environment: there is no variable ${
        JSON.stringify(variable)
      }. Set it, or run again with --credential prompt`,
    )
  }
  delete process.env[variable] // programs that are started from here on do not have it
  return new Secret(value)
}

type CommandLine = Omit<ServeProxyOptions, 'password'> & { credential?: string; undo?: boolean }

await command(
  import.meta,
  'Serve a proxy in the guest by gost, HTTP and SOCKS5, for its Hyper-V host alone',
  {
    via: {
      type: 'string',
      demandOption: true,
      describe: 'The guest: ssh://[user@]host[:port]',
      example: 'ssh://root@192.168.56.191',
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
      describe: 'Where the password comes from: prompt, stdin or env:NAME [default: prompt]',
    },
    undo: { type: 'boolean', describe: 'Serve nothing there any more' },
    dryRun,
  },
  async ({ credential, undo = false, ...options }: CommandLine) => {
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
    const password = user === undefined && credential === undefined
      ? undefined
      : await readPassword(credential ?? 'prompt', user)
    return await serveProxy({ ...options, password })
  },
)
