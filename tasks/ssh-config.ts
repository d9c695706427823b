#!/usr/bin/env zx
/** Teach ssh a host behind a SOCKS5 proxy and jump hosts, by a file that its configuration includes. */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { chmod, mkdir, open, readdir, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { isIP } from 'node:net'
import { homedir } from 'node:os'
import { basename, dirname, isAbsolute, join, resolve } from 'node:path'
import process from 'node:process'
import { which } from 'zx/core'
import { command, dryRun, withoutPassword } from './task.ts'

export interface SshConfigOptions {
  /** What `ssh` is to know the host as: letters, digits and `. _ @ + -`. */
  name: string
  /** `host[:port]`, as the last hop knows it. */
  to: string
  /** @default ssh's own, the user here */
  user?: string | undefined
  /** A private key. @default ssh's own */
  identity?: string | undefined
  /** Hops, in order: `socks5://[user@]host[:port]` first, then `ssh://[user@]host[:port]`. @default none */
  via?: readonly string[] | undefined
  /** Where the password of the SOCKS5 proxy comes from: `env:NAME` or `manager:TARGET`. */
  password?: string | undefined
  /**
   * What speaks SOCKS5 for ssh: the kit's own socks-connect, `connect` (it comes with Git for Windows) or
   * `ncat`, by its full path. @default kit
   */
  connector?: 'kit' | 'connect' | 'ncat' | undefined
  /** The user's configuration. @default ~/.ssh/config */
  config?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface SshConfigResult {
  changed: boolean
  name: string
  /** The user's configuration, and the file of entries beside it. */
  config: string
  file: string
  /** The entry. */
  entry: string
  /** The entry that was there under this name, and whether the file of entries was included. */
  before: { entry: string | null; included: boolean }
}

/**
 * Makes an entry, or makes it what it is to be. The user's own entries stay as they are, byte for byte: a
 * name that is one of theirs is refused.
 */
export async function sshConfig(
  { config = join(homedir(), '.ssh', 'config'), dryRun = false, ...wanted }: SshConfigOptions,
): Promise<SshConfigResult> {
  const entry = await makeEntry(wanted)
  const { name } = wanted
  const path = await realpath(config).catch(() => resolve(config)) // a link stays one
  const file = join(dirname(resolve(config)), FILE)
  const text = await read(path)
  if (text.startsWith('\ufeff')) {
    throw new Error(
      `Cannot add to ${
        JSON.stringify(config)
      }: it starts with a byte order mark, which ssh refuses. ` +
        'Save it as UTF-8 without one',
    )
  }
  const taken = (await hostsOf(path, file)).get(name.toLowerCase())
  if (taken) {
    throw new Error(
      `Cannot add the host ${
        JSON.stringify(name)
      }: ${taken} has one of that name, which stays as it ` +
        'is. Run again with another --name',
    )
  }
  const own = await read(file)
  const before = { entry: entryOf(own, name), included: includes(text, file, config) }
  const changed = before.entry !== entry || !before.included
  if (changed && !dryRun) {
    // the entries first: an Include of a file that is not there is none
    if (before.entry !== entry) await write(file, replaceEntry(own, name, entry))
    if (!before.included) await write(path, includeLine(text, file, config) + text)
  }
  return { changed, name, config: path, file, entry, before }
}

/** Puts back the entry that was there, or none, and takes the Include away that came with it. */
export async function undoSshConfig(
  { changed, name, config, file, before }: SshConfigResult,
): Promise<void> {
  if (!changed) return
  const own = await read(file)
  const rest = replaceEntry(own, name, before.entry)
  if (rest === HEAD) await rm(file, { force: true })
  else if (rest !== own) await write(file, rest)
  const text = await read(config)
  if (before.included || rest !== HEAD) return // entries made since need it
  const line = includeLine(text, file, config)
  if (!text.startsWith(line)) return
  if (text === line) await rm(config)
  else await write(config, text.slice(line.length))
}

/** The file of entries, beside the user's configuration. */
const FILE = 'vbox-to-hyperv.conf'

const HEAD = '# Hosts of vbox-to-hyperv (tasks/ssh-config.ts), which writes between begin and end\n'

interface Place {
  host: string
  port: number
  user?: string
}

async function makeEntry(
  { name, to, user, identity, via = [], password, connector = 'kit' }: SshConfigOptions,
): Promise<string> {
  // no pattern, no option, nothing that a shell, ssh or a path reads as more than a name
  if (!/^[\p{L}\p{N}_][\p{L}\p{N}._@+-]{0,99}$/u.test(name)) {
    throw new TypeError(
      `Cannot add the host ${
        JSON.stringify(name)
      }: a name has letters, digits and . _ @ + - alone. ` +
        'Example: --name db',
    )
  }
  const target = parsePlace(to, 22, '--to')
  const hops = via.map((text) => {
    const [, scheme, rest = ''] = /^(socks5|socks5h|ssh):\/\/(.*?)\/?$/s.exec(text) ?? []
    if (scheme === undefined) {
      throw new TypeError(
        `Cannot take the hop ${
          JSON.stringify(withoutPassword(text))
        }: it is neither socks5://HOST:PORT nor ssh://HOST`,
      )
    }
    const kind = scheme === 'ssh' ? 'ssh' : 'socks5'
    return { kind, ...parsePlace(rest, kind === 'ssh' ? 22 : 1080, '--via') }
  })
  if (hops.slice(1).some(({ kind }) => kind === 'socks5')) {
    throw new TypeError('Cannot take a SOCKS5 proxy behind another hop: ssh takes one as the first')
  }
  const first = hops[0]
  const proxy = first?.kind === 'socks5'
    ? await proxyCommand(first, password, connector)
    : undefined
  const chain = [...hops.filter(({ kind }) => kind === 'ssh'), { ...target, ...(user && { user }) }]
  const called = (index: number) => index === chain.length - 1 ? name : `${name}.via${index + 1}`
  const lines = chain.flatMap(({ host, port, user }, index) => [
    `Host ${called(index)}`,
    `  HostName ${host.replaceAll('%', '%%')}`,
    ...(port === 22 ? [] : [`  Port ${port}`]),
    ...(user ? [`  User ${word(user, '--user')}`] : []),
    ...(identity ? [`  IdentityFile ${word(pathOf(identity), '--identity')}`] : []),
    ...(index > 0
      ? [`  ProxyJump ${called(index - 1)}`]
      : proxy
      ? [`  ProxyCommand ${proxy}`]
      : []),
  ])
  return lines.join('\n') + '\n'
}

/** Reads `[user@]host[:port]`. */
function parsePlace(text: string, usual: number, option: string): Place {
  const [, user, bracketed, plain, digits] =
    /^(?:([^@]*)@)?(?:\[([0-9a-f:.]+(?:%\w+)?)\]|([\p{L}\p{N}_][\p{L}\p{N}._-]*))(?::(\d{1,5}))?$/ui
      .exec(text) ?? []
  const host = bracketed ?? plain
  const port = digits === undefined ? usual : Number(digits)
  const fits = host !== undefined && host.length <= 255 && port > 0 && port < 65536 &&
    (bracketed === undefined || isIP(bracketed) === 6)
  if (!fits || user === '' || user?.includes(':')) {
    throw new TypeError(
      `Cannot take ${
        JSON.stringify(withoutPassword(text))
      } of ${option}: it is not [USER@]HOST[:PORT]. Example: db.intranet:22`,
    )
  }
  if (user !== undefined) word(user, option)
  return { host, port, ...(user !== undefined && { user }) }
}

/** An argument in ssh's configuration, in which quotes and %-codes would be more than text. */
function word(text: string, option: string): string {
  // deno-lint-ignore no-control-regex
  if (/["'%\u0000-\u001f\u007f]|\$\{|\\[\\ ]|\\$|^-/.test(text)) {
    throw new TypeError(
      `Cannot write ${
        JSON.stringify(text)
      } of ${option} into ssh's configuration: quotes, %, a dash in front and line ends mean more there`,
    )
  }
  return /[\s#=,]/.test(text) ? `"${text}"` : text
}

/** ssh on Windows takes slashes, and backslashes before some characters are no separators there. */
function pathOf(path: string): string {
  const full = path.startsWith('~/') || path.startsWith('~\\') ? path : resolve(path)
  return process.platform === 'win32' ? full.replaceAll('\\', '/') : full
}

/** What ssh starts in place of a connection; `%h` and `%p` are ssh's. */
async function proxyCommand(
  { host, port, user }: Place,
  password: string | undefined,
  connector: 'kit' | 'connect' | 'ncat',
): Promise<string> {
  const at = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`
  if (password !== undefined && !/^(env:[A-Za-z_]\w*|manager:[^\p{Cc}]+)$/u.test(password)) {
    throw new TypeError(
      'Cannot take the password of the proxy but from the environment or Windows’ Credential ' +
        'Manager. Run again with --password env:NAME or manager:TARGET',
    )
  }
  let words: string[]
  if (connector === 'kit') {
    const script = join(import.meta.dirname as string, 'socks-connect.ts')
    if (!existsSync(script)) {
      throw new Error(
        `Cannot reach a proxy by the kit: ${JSON.stringify(script)} is missing. Copy it there`,
      )
    }
    const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
    words = [process.execPath, ...runtime, script, '--proxy', at]
    if (user) words.push('--user', user)
    if (password) words.push('--password', password)
  } else {
    const program = await which(connector, { nothrow: true })
    if (!program) {
      throw new Error(
        `Cannot reach a proxy by ${connector}: it is not on PATH. Run again with --connector kit`,
      )
    }
    if (user) {
      throw new Error(
        `Cannot sign in to a proxy by ${connector}: its password would be in the command line. ` +
          'Run again with --connector kit',
      )
    }
    words = connector === 'connect'
      ? [program, '-S', at]
      : [program, '--proxy', at, '--proxy-type', 'socks5']
  }
  return [...words.map(shellWord), '%h', '%p'].join(' ')
}

/** A word as the shell that ssh asks reads it: a POSIX one, and on Windows none. */
function shellWord(text: string): string {
  // deno-lint-ignore no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(text) || (process.platform === 'win32' && text.includes('"'))) {
    throw new TypeError(`Cannot write ${JSON.stringify(text)} into a ProxyCommand`)
  }
  const plain = text.replaceAll('%', '%%')
  if (/^[\w./:@=+-]+$/.test(plain)) return plain
  return process.platform === 'win32' ? `"${plain}"` : `'${plain.replaceAll("'", `'\\''`)}'`
}

function marks(name: string): [string, string] {
  return [`# begin ${name}\n`, `# end ${name}\n`]
}

function entryOf(text: string, name: string): string | null {
  const [begin, end] = marks(name)
  const at = `\n${text}`.indexOf(`\n${begin}`)
  if (at < 0) return null
  const stop = text.indexOf(end, at + begin.length)
  return stop < 0 ? null : text.slice(at + begin.length, stop)
}

function replaceEntry(text: string, name: string, entry: string | null): string {
  const [begin, end] = marks(name)
  const all = text || HEAD
  const old = entryOf(all, name)
  const next = entry === null ? '' : begin + entry + end
  return old === null ? all + next : all.replace(begin + old + end, () => next)
}

/** As the user's configuration names the file: ssh looks for a relative one in ~/.ssh. */
function includeLine(text: string, file: string, config: string): string {
  const home = resolve(dirname(config)) === join(homedir(), '.ssh')
  const path = process.platform === 'win32' ? file.replaceAll('\\', '/') : file
  return `Include ${home ? FILE : `"${path}"`}${/\r\n/.test(text) ? '\r\n' : '\n'}`
}

function includes(text: string, file: string, config: string): boolean {
  const line = includeLine(text, file, config).trim()
  return text.split(/\r?\n/).some((own) => own.trim() === line)
}

/** Names of hosts, without patterns, and the file that has each; of included files too. */
async function hostsOf(path: string, except: string, depth = 0): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  if (depth > 8 || resolve(path) === resolve(except)) return found
  for (const line of (await read(path)).split(/\r?\n/)) {
    const [, keyword = '', rest = ''] = /^\s*(\w+)(?:\s*=\s*|\s+)(.*)$/.exec(line) ?? []
    const words = [...rest.matchAll(/"([^"]*)"|([^\s"]+)/g)].map(([, quoted, bare]) =>
      quoted ?? bare ?? ''
    )
    if (/^host$/i.test(keyword)) {
      for (const name of words) if (!/[*?!]/.test(name)) found.set(name.toLowerCase(), path)
    } else if (/^include$/i.test(keyword)) {
      for (const name of words) {
        const from = name.replace(/^~(?=[/\\])/, () => homedir())
        const full = isAbsolute(from) ? from : join(homedir(), '.ssh', from)
        for (const one of await expand(full)) {
          for (const [host, file] of await hostsOf(one, except, depth + 1)) found.set(host, file)
        }
      }
    }
  }
  return found
}

/** The files of a pattern whose last part alone has `*` or `?`, as people write them. */
async function expand(path: string): Promise<string[]> {
  const last = basename(path)
  if (!/[*?]/.test(last)) return [path]
  const pattern = last.replace(/[.+^${}()|[\]\\]/g, '\\$&').replace(/\*+/g, '.*').replace(
    /\?/g,
    '.',
  )
  const names = await readdir(dirname(path)).catch(() => [])
  return names.filter((name) => new RegExp(`^${pattern}$`).test(name))
    .map((name) => join(dirname(path), name))
}

async function read(path: string): Promise<string> {
  try {
    const bytes = await readFile(path)
    const text = bytes.toString('utf8')
    if (!Buffer.from(text).equals(bytes)) {
      throw new Error(
        `Cannot read ${JSON.stringify(path)}: it is not UTF-8, as ssh reads it. Save it as UTF-8`,
      )
    }
    return text
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // a folder in an Include is none of ssh's files either
    if (code === 'ENOENT' || code === 'EISDIR' || code === 'ENOTDIR') return ''
    throw error
  }
}

/** Written aside and renamed, so that ssh has the old file or the new one whole. */
async function write(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const mode = await stat(path).then(({ mode }) => mode & 0o777, () => 0o600)
  const aside = `${path}.${randomBytes(6).toString('hex')}.tmp`
  try {
    const handle = await open(aside, 'wx', mode)
    try {
      await handle.writeFile(text)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await chmod(aside, mode) // whatever the umask is
    await rename(aside, path)
  } catch (error) {
    await rm(aside, { force: true })
    throw error
  }
}

await command(
  import.meta,
  'Teach ssh a host behind a SOCKS5 proxy and jump hosts',
  {
    name: {
      type: 'string',
      demandOption: true,
      describe: 'What ssh is to know it as',
      example: 'db',
    },
    to: { type: 'string', demandOption: true, describe: 'HOST[:PORT]', example: 'db.intranet' },
    user: { type: 'string', describe: 'The user there' },
    identity: { type: 'string', describe: 'A private key' },
    via: {
      type: 'string',
      array: true,
      nargs: 1,
      describe: 'socks5://HOST:PORT, then ssh://[USER@]HOST[:PORT], once a hop, in order',
      example: 'socks5://192.168.56.191:1080',
    },
    password: {
      type: 'string',
      describe: 'Where the password of the proxy is: env:NAME or manager:TARGET',
    },
    connector: {
      choices: ['kit', 'connect', 'ncat'],
      describe: 'What speaks SOCKS5 for ssh [default: kit]',
    },
    config: { type: 'string', describe: 'Default: ~/.ssh/config' },
    dryRun,
  },
  sshConfig,
)
