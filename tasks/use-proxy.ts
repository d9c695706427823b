#!/usr/bin/env zx
/** Let this machine's programs use the proxy in the guest, and give them back what they had. */
import envPaths from 'env-paths'
import fs from 'fs-extra'
import { isIP } from 'node:net'
import { homedir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { which } from 'zx/core'
import {
  command,
  dryRun,
  onWindows,
  openPowerShell,
  type PowerShell,
  withoutPassword,
} from './task.ts'
import { forShell, pacFile, type Shell, variables, type Ways } from './use-proxy/print.ts'
import {
  type Held,
  type Kept,
  type Program,
  read,
  replace,
  same,
  sameSetting,
  type Setting,
  shapeOf,
  where,
  write,
} from './use-proxy/settings.ts'

export interface UseProxyOptions {
  /** HTTP proxy, `HOST:PORT` or `http://HOST:PORT`. One of `http` and `socks` is required. */
  http?: string | undefined
  /** SOCKS5 proxy, `HOST:PORT` or `socks5://HOST:PORT`. */
  socks?: string | undefined
  /**
   * Whose settings. `env`: the user's variables, of Windows in its registry, elsewhere and in WSL by a
   * file that the shells read; `system`: Windows' own, for browsers; `pac`: a file for them.
   * @default env, those of git, npm, pip and docker that are on the PATH, and of Windows system
   */
  for?: readonly Program[] | undefined
  /**
   * Domains and IPv4 networks, such as `corp.example` and `10.0.0.0/8`. Where they are named, git and
   * the PAC file send them alone through the proxy; the other programs know no such list, and send
   * all but `direct`. @default everything
   */
  only?: readonly string[] | undefined
  /** Reached without the proxy. @default localhost, 127.0.0.1, ::1 */
  direct?: readonly string[] | undefined
  /**
   * Where a web server has the PAC file, for `system` with `only`: Windows takes none from `file:`
   * (Microsoft: "Windows 10 does not read a PAC file referenced by a file protocol").
   */
  pacUrl?: string | undefined
  dryRun?: boolean | undefined
  /** The home folder whose files are meant. @default this user's */
  home?: string | undefined
  /** The file that keeps what was there. @default use-proxy.json in the user's data folder */
  keep?: string | undefined
}

export type UseProxyOffOptions = Pick<UseProxyOptions, 'for' | 'dryRun' | 'keep'>

export interface UseProxyResult {
  changed: boolean
  settings: {
    program: Program
    /** A file, a key of git, or a value of the registry. */
    where: string
    /**
     * `set`, `restored`: it is now, or would be; `already`; `left`: somebody has set something else
     * since, which stays.
     */
    state: 'set' | 'already' | 'restored' | 'left'
  }[]
  /** What keeps what was there; null where nothing is kept. */
  kept: string | null
  /** Sentences for people. */
  notes: string[]
}

/**
 * Sets each, and keeps what it was before it is changed. What was set before and is not meant now returns.
 * When one fails, this call's others are as they were before it.
 * @param ps Windows' own PowerShell, for its registry; null: this machine has none
 */
export async function useProxy(
  options: UseProxyOptions,
  ps: PowerShell | null = onWindows() ? powershellOnce() : null,
): Promise<UseProxyResult> {
  const { home, dryRun = false, keep = keepFile() } = options
  const ways = readWays(options)
  const { domains, networks } = readOnly(options.only ?? [])
  const notes: string[] = []
  const programs = await choose(options, ps !== null, notes)
  const wanted = settings(programs, ways, domains, networks, options, ps !== null)
  const first = await readKept(keep)
  let kept = first
  const result: UseProxyResult['settings'] = []
  const done: Kept[] = []
  try {
    const gone = kept.filter((one) =>
      programs.includes(one.program) && !wanted.some((setting) => sameSetting(setting, one))
    )
    for (const one of gone.reverse()) {
      if (!dryRun) done.push({ ...one, was: await read(one, ps), shape: await shapeOf(one) })
      result.push(await putBack(one, dryRun, ps))
      kept = kept.filter((other) => other !== one)
      if (!dryRun) await writeKept(keep, kept)
    }
    for (const setting of wanted) {
      const told = { program: setting.program, where: where(setting) }
      const current = await read(setting, ps)
      if (same(current, setting.now)) {
        result.push({ ...told, state: 'already' })
        continue
      }
      const prior = kept.find((one) => sameSetting(one, setting))
      const ours = prior !== undefined && same(current, prior.now)
      const found = { was: current, shape: await shapeOf(setting) }
      const { was, shape } = ours ? prior : found
      result.push({ ...told, state: 'set' })
      if (dryRun) continue
      // kept before it changes: what is killed in between is put back by `off`
      kept = [...kept.filter((one) => one !== prior), { ...setting, was, shape }]
      await writeKept(keep, kept)
      done.push({ ...setting, ...found })
      await write(setting, setting.now, shape, ps)
    }
  } catch (error) {
    const stuck = await takeBack(done, ps)
    const among = (list: Setting[], one: Setting) => list.some((other) => sameSetting(other, one))
    const left = kept.filter((one) => among(stuck, one))
    if (done.length > 0) {
      await writeKept(keep, [...first.filter((one) => !among(stuck, one)), ...left])
    }
    if (left.length === 0) throw error
    const places = left.map(where).join(', ')
    throw new Error(
      `${(error as Error).message}. What could not be put back stays until off: ${places}`,
      { cause: error },
    )
  }
  const restricted = programs.filter((program) => !['git', 'pac', 'system'].includes(program))
  if (options.only?.length && restricted.length > 0) {
    notes.push(`${restricted.join(', ')} know no list of domains, and send everything but --direct`)
  }
  if (networks.length > 0 && programs.includes('git')) {
    notes.push('git knows domains alone, so its proxy is not used for networks')
  }
  const files = wanted.filter(({ program, kind }) => program === 'env' && kind === 'lines')
  const changed = result.some(({ state }) => state === 'set' || state === 'restored')
  if (changed && programs.includes('env')) {
    notes.push(
      files.length > 0 && home === undefined
        ? 'Shells that run have it after: . ~/.config/vbox-to-hyperv/proxy.sh'
        : 'Programs that run have it when they are started again',
    )
  }
  return { changed, settings: result, kept: kept.length > 0 ? keep : null, notes }
}

/** Gives back what was there before {@link useProxy}, unless somebody has set something else since. */
export async function undoUseProxy(
  { for: programs, dryRun = false, keep = keepFile() }: UseProxyOffOptions = {},
  ps: PowerShell | null = onWindows() ? powershellOnce() : null,
): Promise<UseProxyResult> {
  let kept = await readKept(keep)
  const settings: UseProxyResult['settings'] = []
  for (const one of [...kept].reverse()) {
    if (programs && !programs.includes(one.program)) continue
    settings.push(await putBack(one, dryRun, ps))
    if (dryRun) continue
    kept = kept.filter((other) => other !== one)
    await writeKept(keep, kept)
  }
  const notes = settings.filter(({ state }) => state === 'left').map(({ where }) =>
    `${where} was set to something else since, which stays`
  )
  const changed = settings.some(({ state }) => state === 'restored')
  return { changed, settings, kept: kept.length > 0 ? keep : null, notes }
}

/** What `print` says: nothing is changed by it. */
export function printProxy(options: UseProxyOptions, shell: Shell | 'pac'): string {
  const ways = readWays(options)
  if (shell !== 'pac') return forShell(shell, ways)
  const { domains, networks } = readOnly(options.only ?? [])
  if (domains.length + networks.length === 0) throw noList()
  return pacFile(ways, domains, networks)
}

/** Puts back what was before one call, as far as that goes; answers what stays as the call has set it. */
async function takeBack(done: Kept[], ps: PowerShell | null): Promise<Kept[]> {
  const stuck: Kept[] = []
  for (const one of done.reverse()) {
    try {
      if (!same(await read(one, ps), one.was)) await write(one, one.was, one.shape, ps)
    } catch {
      stuck.push(one)
    }
  }
  return stuck
}

async function putBack(
  one: Kept,
  dryRun: boolean,
  ps: PowerShell | null,
): Promise<UseProxyResult['settings'][number]> {
  const told = { program: one.program, where: where(one) }
  const current = await read(one, ps)
  if (same(current, one.was)) return { ...told, state: 'already' }
  if (!same(current, one.now)) return { ...told, state: 'left' }
  if (!dryRun) await write(one, one.was, one.shape, ps)
  return { ...told, state: 'restored' }
}

const PROGRAMS = ['env', 'git', 'npm', 'pip', 'docker', 'system', 'pac'] as const

async function choose(
  { for: named, only = [], pacUrl }: UseProxyOptions,
  windows: boolean,
  notes: string[],
): Promise<Program[]> {
  const unknown = named?.find((program) => !PROGRAMS.includes(program))
  if (unknown !== undefined) {
    throw new TypeError(
      `Cannot set the proxy of ${JSON.stringify(unknown)}: it is one of ${PROGRAMS.join(', ')}. ` +
        'Example: --for env git',
    )
  }
  if (named?.includes('pac') && only.length === 0) throw noList()
  if (named?.includes('system') && !windows) {
    throw new TypeError(
      'Cannot set the proxy of Windows: this machine has none. Run the same on Windows, or without system in --for',
    )
  }
  if (named?.includes('system') && only.length > 0 && pacUrl === undefined) {
    throw new TypeError(
      'Cannot give Windows a list of domains: it takes one from a web server alone. Put the file that ' +
        '--for pac writes there, and run again with --pac-url http://SERVER/intranet.pac',
    )
  }
  if (named) return [...new Set(named)]
  const found: Program[] = ['env']
  for (const program of ['git', 'npm', 'pip', 'docker'] as const) {
    if (await which(program, { nothrow: true })) found.push(program)
  }
  if (only.length > 0) found.push('pac')
  if (windows && (only.length === 0 || pacUrl !== undefined)) found.push('system')
  else if (windows) {
    notes.push(
      'Windows’ own proxy is left, as it takes a list of domains by --pac-url alone. Browsers with ' +
        'settings of their own take the file of pac',
    )
  }
  return found
}

/** All that is to be set, for these programs. */
function settings(
  programs: readonly Program[],
  ways: Ways,
  domains: readonly string[],
  networks: readonly string[],
  { home: named, pacUrl, keep = keepFile() }: UseProxyOptions,
  windows: boolean,
): Setting[] {
  const home = named ?? homedir()
  // where variables name another file, that is the user's own alone
  const own = named === undefined ? process.env : {}
  const proxy = ways.http ?? ways.socks as string
  const direct = ways.direct.join(',')
  const registry = (program: Program, key: string, name: string, kind: string, value: Held) =>
    ({
      ...{ program, kind: 'registry', key, name },
      now: value === null ? null : { kind, value: value as string },
    }) satisfies Setting
  const makers: Record<Program, () => Setting[]> = {
    env: () => {
      const all = Object.entries(variables(ways))
      const inRegistry = all.map(([name, value]) =>
        registry('env', 'Environment', name, 'String', value)
      )
      return [
        ...(windows ? inRegistry : []),
        ...(process.platform === 'win32' ? [] : shellFiles(home, ways)),
      ]
    },
    git: () => {
      const keys = domains.length + networks.length === 0
        ? ['http.proxy']
        : domains.flatMap((domain) =>
          // in a URL of git's * is one whole label
          [domain, `*.${domain}`].flatMap((host) =>
            ['https', 'http'].map((scheme) => `http.${scheme}://${host}/.proxy`)
          )
        )
      return keys.map((key) => ({
        program: 'git',
        kind: 'git',
        key,
        home: named ?? null,
        now: [proxy],
      }))
    },
    npm: () => [{
      program: 'npm',
      kind: 'lines',
      path: own.NPM_CONFIG_USERCONFIG || own.npm_config_userconfig || join(home, '.npmrc'),
      section: null,
      match: '^\\s*(proxy|https-proxy|noproxy)\\s*=',
      now: [`proxy=${proxy}`, `https-proxy=${proxy}`, `noproxy=${direct}`],
    }],
    pip: () => [{
      program: 'pip',
      kind: 'lines',
      path: own.PIP_CONFIG_FILE ||
        (process.platform === 'win32'
          ? join(own.APPDATA || join(home, 'AppData', 'Roaming'), 'pip', 'pip.ini')
          : join(own.XDG_CONFIG_HOME || join(home, '.config'), 'pip', 'pip.conf')),
      section: 'global',
      match: '^proxy\\s*[=:]',
      // without a SOCKS module pip itself refuses socks5h
      now: [`proxy = ${proxy}`],
    }],
    docker: () => [{
      program: 'docker',
      kind: 'docker',
      path: join(own.DOCKER_CONFIG || join(home, '.docker'), 'config.json'),
      now: { httpProxy: proxy, httpsProxy: proxy, allProxy: ways.socks ?? proxy, noProxy: direct },
    }],
    system: () => {
      const key = 'Software\\Microsoft\\Windows\\CurrentVersion\\Internet Settings'
      const set = (name: string, kind: string, value: Held | number) =>
        registry('system', key, name, kind, value as Held)
      if (pacUrl !== undefined) return [set('AutoConfigURL', 'String', pacUrl)]
      const bare = (way: string) => way.replace(/^\w+:\/\//, '')
      return [
        set('ProxyServer', 'String', ways.http ? bare(ways.http) : `socks=${bare(proxy)}`),
        set('ProxyOverride', 'String', [...ways.direct, '<local>'].join(';')),
        // last, when the others are there
        set('ProxyEnable', 'DWord', 1),
      ]
    },
    pac: () => [{
      program: 'pac',
      kind: 'file',
      path: join(keep, '..', 'intranet.pac'),
      now: pacFile(ways, domains, networks),
    }],
  }
  return programs.flatMap((program) => makers[program]())
}

/** A file with the variables, and the line in those that bash and others read when they start. */
function shellFiles(home: string, ways: Ways): Setting[] {
  const own = join(home, '.config', 'vbox-to-hyperv', 'proxy.sh')
  // it stays harmless where the file is gone
  const line = '[ ! -r "$HOME/.config/vbox-to-hyperv/proxy.sh" ] || ' +
    '. "$HOME/.config/vbox-to-hyperv/proxy.sh" # vbox-to-hyperv use-proxy'
  // a login shell of bash reads the first of these alone (bash(1), INVOCATION)
  const login =
    ['.bash_profile', '.bash_login', '.profile'].find((name) => fs.existsSync(join(home, name))) ??
      '.profile'
  const others = ['.bashrc', '.zshrc'].filter((name) => fs.existsSync(join(home, name)))
  return [
    { program: 'env', kind: 'file', path: own, now: `${forShell('bash', ways)}\n` },
    ...[login, ...others].map((name): Setting => ({
      program: 'env',
      kind: 'lines',
      path: join(home, name),
      section: null,
      match: '# vbox-to-hyperv use-proxy$',
      now: [line],
    })),
  ]
}

// --- what is kept ---

function keepFile(): string {
  return join(envPaths('vbox-to-hyperv', { suffix: '' }).data, 'use-proxy.json')
}

async function readKept(path: string): Promise<Kept[]> {
  const text = await fs.readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })
  if (text === null) return []
  try {
    const { version, kept } = JSON.parse(text) as { version: number; kept: Kept[] }
    if (version === 1 && Array.isArray(kept)) return kept
    throw new Error(`version ${version}`)
  } catch (cause) {
    throw new Error(
      `Cannot tell what was there before the proxy: "${path}" cannot be read (${
        (cause as Error).message
      }). Move it away, and set what was there by hand`,
      { cause },
    )
  }
}

/** For this user's eyes: a proxy that was there before may have a password. */
async function writeKept(path: string, kept: Kept[]): Promise<void> {
  const text = kept.length === 0 ? null : `${JSON.stringify({ version: 1, kept }, null, 2)}\n`
  await replace(path, text, 0o600)
}

// --- what was given ---

function readWays({ http, socks, direct, pacUrl }: UseProxyOptions): Ways {
  if (http === undefined && socks === undefined) {
    throw new TypeError(
      'Cannot use a proxy: none is named. Run again with --http 192.168.56.191:8080 or --socks',
    )
  }
  // a password there would be stored too
  const page = pacUrl !== undefined && URL.canParse(pacUrl) ? new URL(pacUrl) : undefined
  if (
    pacUrl !== undefined &&
    (!page || !/^https?:$/.test(page.protocol) || page.username || page.password)
  ) {
    throw new TypeError(
      `Cannot use ${
        JSON.stringify(withoutPassword(pacUrl))
      } for a PAC file: it is no address of a web server. ` +
        'Example: --pac-url http://192.168.56.191/intranet.pac',
    )
  }
  for (const one of direct ?? []) {
    if (isDomain(one.replace(/^\./, '')) || isIP(one) || isNetwork(one)) continue
    throw new TypeError(
      `Cannot reach ${JSON.stringify(one)} without the proxy: it is no host, domain or network. ` +
        'Example: --direct localhost 10.1.0.0/16',
    )
  }
  return {
    ...(http !== undefined && { http: `http://${readProxy(http, /^http:\/\//i)}` }),
    ...(socks !== undefined && { socks: `socks5h://${readProxy(socks, /^socks(5h?)?:\/\//i)}` }),
    direct: direct ?? ['localhost', '127.0.0.1', '::1'],
  }
}

function readProxy(text: string, scheme: RegExp): string {
  const rest = text.replace(scheme, '').replace(/\/$/, '')
  if (rest.includes('@')) {
    throw new TypeError(
      'Cannot use a proxy with a user: its password would be stored in the settings of every program. ' +
        'Run again with HOST:PORT alone, and limit the proxy to this host by the guest’s firewall',
    )
  }
  const [, host = '', port] = /^(\[[\da-f:.]+\]|[a-z\d.-]+):(\d{1,5})$/i.exec(rest) ?? []
  const known = host.startsWith('[') ? isIP(host.slice(1, -1)) === 6 : isDomain(host)
  if (known && Number(port) >= 1 && Number(port) <= 65535) return rest
  throw new TypeError(
    `Cannot use ${JSON.stringify(text)} as a proxy: it is HOST:PORT. Example: 192.168.56.191:8080`,
  )
}

function readOnly(only: readonly string[]): { domains: string[]; networks: string[] } {
  const domains: string[] = []
  const networks: string[] = []
  for (const one of only) {
    const domain = one.replace(/^\*?\./, '').toLowerCase()
    if (isNetwork(one)) networks.push(one)
    else if (isIP(one) === 4) networks.push(`${one}/32`)
    else if (isDomain(domain)) domains.push(domain)
    else {
      throw new TypeError(
        `Cannot send ${
          JSON.stringify(one)
        } through the proxy: it is a domain or an IPv4 network. ` +
          'Example: --only corp.example 10.0.0.0/8',
      )
    }
  }
  return { domains, networks }
}

function isDomain(text: string): boolean {
  return text.length <= 253 &&
    text.split('.').every((label) => /^[a-z\d]([a-z\d-]{0,61}[a-z\d])?$/i.test(label))
}

function isNetwork(text: string): boolean {
  const [address = '', length = '', ...more] = text.split('/')
  return more.length === 0 && isIP(address) === 4 && /^(\d|[12]\d|3[012])$/.test(length)
}

function noList(): Error {
  return new TypeError(
    'Cannot write a PAC file: no domain or network is named that goes through the proxy. ' +
      'Run again with for example: --only corp.example 10.0.0.0/8',
  )
}

/** One process for all values of the registry, started when the first is asked for. */
function powershellOnce(): PowerShell {
  let opened: ReturnType<typeof openPowerShell> | undefined
  let timer: NodeJS.Timeout | undefined
  return async (pieces, ...values) => {
    clearTimeout(timer)
    opened ??= openPowerShell()
    try {
      return await opened.ps(pieces, ...values)
    } finally {
      const { close } = opened
      timer = setTimeout(() => (opened = undefined, void close()), 500)
    }
  }
}

// --- the command line ---

type CommandLine = Omit<UseProxyOptions, 'home' | 'keep'> & {
  action: 'on' | 'off' | 'print'
  shell?: Shell | 'pac'
}

await command(
  import.meta,
  'Let this machine’s programs use the proxy in the guest, or give them back what they had',
  {
    action: {
      choices: ['on', 'off', 'print'],
      positional: true,
      demandOption: true,
      describe: 'on, off, or print for a shell',
      example: 'on',
    },
    http: { type: 'string', describe: 'HTTP proxy, HOST:PORT', example: '192.168.56.191:8080' },
    socks: { type: 'string', describe: 'SOCKS5 proxy, HOST:PORT' },
    for: {
      choices: PROGRAMS,
      array: true,
      describe: 'Whose settings [default: env, and what is on the PATH]',
    },
    only: {
      type: 'string',
      array: true,
      describe: 'Domains and IPv4 networks that go through it, for git and pac [default: all]',
    },
    direct: {
      type: 'string',
      array: true,
      describe: 'What is reached without it [default: localhost 127.0.0.1 ::1]',
    },
    pacUrl: { type: 'string', describe: 'Where a web server has the PAC file, for system' },
    shell: {
      choices: ['bash', 'powershell', 'cmd', 'pac'],
      describe: 'For print [default: powershell on Windows, else bash]',
    },
    dryRun,
  },
  async ({ action, shell, ...options }: CommandLine) => {
    if (action === 'print') {
      return printProxy(options, shell ?? (process.platform === 'win32' ? 'powershell' : 'bash'))
    }
    if (shell !== undefined) {
      throw new TypeError(`Cannot take --shell with ${action}: it is for print. Leave it out`)
    }
    const result = action === 'on' ? await useProxy(options) : await undoUseProxy(options)
    for (const note of result.notes) console.error(`${note}.`)
    return result
  },
)
