#!/usr/bin/env zx
/** Check from this machine what a proxy in the guest does, and name what stands in its way. */
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { lookup } from 'node:dns/promises'
import { connect, isIP, type Socket } from 'node:net'
import process from 'node:process'
import { domainToASCII } from 'node:url'
import { command, readCredential, type Secret, withoutPassword } from './task.ts'

export interface CheckProxyOptions {
  /**
   * `HOST:PORT`, on which both protocols are tried, as gost speaks them on one port; or
   * `http://HOST:PORT`, `socks5://HOST:PORT` for one. Several are checked one after the other.
   */
  proxy: string | readonly string[]
  /**
   * What is to be reached through it: `HOST:PORT`, or `http://HOST[:PORT]`. Plain HTTP is tried where
   * that is port 80 or a URL. @default the proxy itself, which tells protocol and password alone
   */
  destination?: string | undefined
  /** Tried beside no user at all. 1 to 255 bytes, without a colon. @default none */
  user?: string | undefined
  /** 1 to 255 bytes. */
  password?: Secret | undefined
  /** Seconds for each answer. @default 5 */
  timeout?: number | undefined
}

export interface CheckProxyResult {
  /** Whether any way through any of the proxies leads to the destination. */
  works: boolean
  destination: string | null
  checks: ProxyCheck[]
}

export interface ProxyCheck {
  /** `HOST:PORT` */
  proxy: string
  /**
   * `tcp`: the connection to the proxy alone; `connect`: HTTP's CONNECT, as for https; `http`: a plain
   * request; `socks5`: with the name looked up here; `socks5h`: by the proxy.
   */
  check: 'tcp' | 'connect' | 'http' | 'socks5' | 'socks5h'
  /** Null: without any. */
  user: string | null
  /**
   * `refused`, `timed-out`, `unreachable`: the proxy's port; `wrong-protocol`: something else listens
   * there; `authentication`: it wants a user, or not this one; `blocked`: its rules forbid the
   * destination; `destination`: it cannot reach that; `unresolved`: nobody here knows the name.
   */
  state:
    | 'ok'
    | 'refused'
    | 'timed-out'
    | 'unreachable'
    | 'wrong-protocol'
    | 'authentication'
    | 'blocked'
    | 'destination'
    | 'unresolved'
    | 'skipped'
  /** The proxy's own code, where it gave one: HTTP's status, or SOCKS5's reply (RFC 1928, 6). */
  code?: number
  /** Until the answer. */
  milliseconds: number
  /** What that means and what mends it; empty where it works. */
  detail: string
}

/**
 * Talks to each proxy as its clients would. What does not work is an answer, not an error; rejects
 * only for options that cannot be meant.
 */
export async function checkProxy(options: CheckProxyOptions): Promise<CheckProxyResult> {
  const { proxy, destination, user, password, timeout = 5 } = options
  const proxies = (typeof proxy === 'string' ? [proxy] : proxy).map(parseProxy)
  const target = destination === undefined ? undefined : parseDestination(destination)
  if (proxies.length === 0) throw new TypeError('Cannot check a proxy: none is named. Add --proxy')
  if (!(timeout > 0 && timeout <= 600)) {
    throw new RangeError(`Cannot wait ${timeout} seconds for a proxy. Run again with --timeout 5`)
  }
  const account = readAccount(user, password)
  const checks: ProxyCheck[] = []
  for (const way of proxies) {
    checks.push(...await checkOne(way, target ?? { ...way, http: true }, account, timeout * 1000))
  }
  return {
    works: checks.some(({ check, state }) => check !== 'tcp' && state === 'ok'),
    destination: target ? address(target) : null,
    checks,
  }
}

interface Endpoint {
  host: string
  port: number
}

type Protocol = 'http' | 'socks5'

interface Way extends Endpoint {
  protocols: Protocol[]
  /** What it did not speak, and why: that is waited for once. */
  not: Map<Protocol, Outcome>
}

interface Destination extends Endpoint {
  /** Whether a web server can be expected there. */
  http: boolean
}

interface Account {
  user: string
  password: string
}

type Outcome = Pick<ProxyCheck, 'state' | 'detail' | 'code'>

async function checkOne(
  way: Way,
  target: Destination,
  account: Account | undefined,
  limit: number,
): Promise<ProxyCheck[]> {
  const proxy = address(way)
  const checks: ProxyCheck[] = []
  const add = async (
    check: ProxyCheck['check'],
    who: Account | undefined,
    work: () => Promise<Outcome>,
  ) => {
    const start = performance.now()
    const outcome = await work()
    const milliseconds = Math.round((performance.now() - start) * 10) / 10
    checks.push({ proxy, check, user: who?.user ?? null, ...outcome, milliseconds })
    return outcome
  }
  const { state } = await add('tcp', undefined, async () => {
    const line = await open(way, limit)
    if (!('socket' in line)) return line
    line.close()
    return OK
  })
  if (state !== 'ok') return checks
  // without any user first: a proxy that lets everybody in is to be known
  for (const who of account ? [undefined, account] : [undefined]) {
    if (way.protocols.includes('http')) {
      let web: Outcome | undefined
      const first = await add('connect', who, async () => {
        const said = await httpConnect(way, target, who, limit)
        web = await webServer(way, who, limit, said)
        return web ?? said
      })
      const closed = first.state === 'authentication'
      await add('http', who, async () => web ?? await plainHttp(way, target, who, limit, closed))
    }
    if (way.protocols.includes('socks5')) {
      await add('socks5', who, () => socks5(way, target, who, limit, 'here'))
      await add('socks5h', who, () => socks5(way, target, who, limit, 'there'))
    }
  }
  return checks
}

const OK: Outcome = { state: 'ok', detail: '' }

// --- HTTP ---

async function httpConnect(
  way: Way,
  target: Destination,
  who: Account | undefined,
  limit: number,
): Promise<Outcome> {
  const to = address(target)
  const answer = await askHttp(way, [`CONNECT ${to} HTTP/1.1`, `Host: ${to}`], who, limit)
  if ('state' in answer) return answer
  const { status, head } = answer
  // a web server that knows no methods sends its page; a proxy may not say that one follows (RFC 9110, 9.3.6)
  const page = /^(transfer-encoding:|content-length:\s*[1-9])/im.test(head)
  if (status >= 200 && status < 300 && !page) return OK
  if (status === 407 || status === 401) return { ...unauthorized(way, who), code: status }
  if (FORBIDDEN.has(status)) return { ...blocked(way, target, `HTTP ${status}`), code: status }
  if (status >= 500) return { ...lost(way, target, `HTTP ${status}`), code: status }
  return {
    state: 'wrong-protocol',
    code: status,
    detail:
      `Cannot use ${
        address(way)
      } as an HTTP proxy: it answers CONNECT with HTTP ${status}, as a web ` +
      `server does. Run again with the proxy’s own port: --proxy ${name(way)}:8080`,
  }
}

async function plainHttp(
  way: Way,
  target: Destination,
  who: Account | undefined,
  limit: number,
  closed: boolean,
): Promise<Outcome> {
  if (!target.http) {
    return {
      state: 'skipped',
      detail: `Port ${target.port} is not known for HTTP. Run again with --destination http://${
        address(target)
      }`,
    }
  }
  const to = address(target).replace(/:80$/, '')
  const answer = await askHttp(way, [`GET http://${to}/ HTTP/1.1`, `Host: ${to}`], who, limit)
  if ('state' in answer) return answer
  const { status } = answer
  // tinyproxy says 401 to a wrong password, as web servers do to theirs
  if (status === 407 || (status === 401 && closed)) {
    return { ...unauthorized(way, who), code: status }
  }
  if (FORBIDDEN.has(status)) return { ...blocked(way, target, `HTTP ${status}`), code: status }
  if (status >= 500) return { ...lost(way, target, `HTTP ${status}`), code: status }
  return { ...OK, code: status }
}

/**
 * By these a proxy, or a filter before it, says that it will not: forbidden, not allowed, legal reasons,
 * not implemented.
 */
const FORBIDDEN = new Set([403, 405, 451, 501])

/**
 * Web servers refuse CONNECT as some proxies do, and answer a plain request by a page of their own, also
 * for a host that does not exist. There a proxy says 5xx, or that its rules forbid it. Each account is
 * asked for, as gost can act as a web server to strangers.
 */
async function webServer(
  way: Way,
  who: Account | undefined,
  limit: number,
  { state, code }: Outcome,
): Promise<Outcome | undefined> {
  if (code === undefined || (state !== 'wrong-protocol' && code !== 405 && code !== 501)) return
  const host = `${randomUUID()}.invalid` // which no DNS knows (RFC 6761, 6.4)
  const lines = [`GET http://${host}/ HTTP/1.1`, `Host: ${host}`]
  // no answer within the time, as while names are looked up, tells nothing of the protocol
  const answer = await askHttp({ ...way, not: new Map() }, lines, who, limit)
  if ('state' in answer || answer.status >= 500) return
  if (answer.status === 407 || FORBIDDEN.has(answer.status)) return
  return {
    state: 'wrong-protocol',
    code,
    detail:
      `Cannot use ${address(way)} as an HTTP proxy: a web server listens there, which answers ` +
      `for a host that does not exist. Run: npx zx tasks/check-proxy.ts --proxy ${name(way)}:PORT`,
  }
}

async function askHttp(
  way: Way,
  lines: string[],
  who: Account | undefined,
  limit: number,
): Promise<Outcome | { status: number; head: string }> {
  const other = way.not.get('http')
  if (other) return other
  const line = await open(way, limit)
  if (!('socket' in line)) return line
  try {
    const basic = who && Buffer.from(`${who.user}:${who.password}`).toString('base64')
    const sign = basic === undefined ? [] : [`Proxy-Authorization: Basic ${basic}`]
    line.socket.write([...lines, ...sign, 'Connection: close', '', ''].join('\r\n'))
    // an answer that is none is known before its end
    const head = await line.read((bytes) =>
      bytes.includes('\r\n\r\n') || bytes.length > 65536 ||
      !'HTTP/'.startsWith(bytes.toString('latin1', 0, 5))
    )
    const text = head.bytes.toString('latin1').split('\r\n\r\n')[0] as string
    const [, status] = /^HTTP\/1\.[01] (\d{3})/.exec(text) ?? []
    if (status !== undefined) return { status: Number(status), head: text }
    return await notSpoken(way, 'http', head, limit)
  } finally {
    line.close()
  }
}

// --- SOCKS5 (RFC 1928, and 1929 for user and password) ---

async function socks5(
  way: Way,
  target: Destination,
  who: Account | undefined,
  limit: number,
  resolved: 'here' | 'there',
): Promise<Outcome> {
  let host = target.host
  if (resolved === 'there' && isIP(host)) {
    return { state: 'skipped', detail: 'An address is no name that the proxy would look up.' }
  }
  if (resolved === 'here' && !isIP(host)) {
    try {
      host = (await lookup(host, { verbatim: false })).address
    } catch {
      return {
        state: 'unresolved',
        detail:
          `Cannot look up "${host}" on this machine: its DNS does not know the name. Let the proxy do ` +
          `it. Run: curl --proxy socks5h://${address(way)} http://${address(target)}`,
      }
    }
  }
  const other = way.not.get('socks5')
  if (other) return other
  const line = await open(way, limit)
  if (!('socket' in line)) return line
  const { socket, read } = line
  try {
    socket.write(who ? Buffer.of(5, 2, 0, 2) : Buffer.of(5, 1, 0))
    const greeting = await read((bytes) => bytes.length >= 2 || (bytes[0] ?? 5) !== 5)
    const [version, method] = greeting.bytes
    if (version !== 5 || method === undefined) {
      return await notSpoken(way, 'socks5', greeting, limit)
    }
    if (method === 0xff) return unauthorized(way, who)
    if (method === 2 && who) {
      const user = Buffer.from(who.user)
      const password = Buffer.from(who.password)
      socket.write(
        Buffer.concat([
          Buffer.of(1, user.length),
          user,
          Buffer.of(password.length),
          password,
        ]),
      )
      const { bytes, end } = await read((bytes) => bytes.length >= 2)
      if (end === 'timed-out') return late(way, limit)
      // some end the connection instead of saying no
      if (bytes[1] !== 0) return unauthorized(way, who)
    } else if (method !== 0) return unauthorized(way, who)
    const port = Buffer.of(target.port >> 8, target.port & 255)
    socket.write(Buffer.concat([Buffer.of(5, 1, 0), socksAddress(host), port]))
    const { bytes, end } = await read((bytes) => bytes.length >= 2)
    const code = bytes[1]
    if (code === 0) return { ...OK, code }
    if (code === undefined) {
      return end === 'timed-out'
        ? lost(way, target, `no answer within ${limit / 1000} s`, 'timed-out')
        : lost(way, target, 'it ended the connection')
    }
    if (code === 2) return { ...blocked(way, target, 'SOCKS5 reply 2'), code }
    return { ...lost(way, target, REPLIES[code] ?? `SOCKS5 reply ${code}`), code }
  } finally {
    line.close()
  }
}

const REPLIES: Record<number, string> = {
  1: 'it failed (SOCKS5 reply 1)',
  3: 'it has no way to that network (SOCKS5 reply 3)',
  4: 'it has no way to that host, or does not know its name (SOCKS5 reply 4)',
  5: 'nothing listens there (SOCKS5 reply 5)',
  6: 'nobody answered it (SOCKS5 reply 6)',
  7: 'it makes no connections (SOCKS5 reply 7)',
  8: 'it does not take this kind of address (SOCKS5 reply 8)',
}

function socksAddress(host: string): Buffer {
  const family = isIP(host)
  if (family === 4) return Buffer.from([1, ...host.split('.').map(Number)])
  if (family === 0) return Buffer.concat([Buffer.of(3, Buffer.byteLength(host)), Buffer.from(host)])
  // URL writes any IPv6 address in hexadecimal, so no part has dots
  const [front = '', back] = new URL(`http://[${host}]`).hostname.slice(1, -1).split('::')
  const groups = (text: string) => text.split(':').filter(Boolean).map((part) => parseInt(part, 16))
  const [first, last] = [groups(front), groups(back ?? '')]
  const all = [...first, ...new Array(8 - first.length - last.length).fill(0), ...last]
  return Buffer.from([4, ...all.flatMap((group: number) => [group >> 8, group & 255])])
}

// --- a connection ---

/** What came, and why no more. */
interface Heard {
  bytes: Buffer
  end: 'enough' | 'closed' | 'timed-out'
}

interface Line {
  socket: Socket
  /** Reads until `enough` says so. What was read is gone. */
  read: (enough: (bytes: Buffer) => boolean) => Promise<Heard>
  close: () => void
}

async function open(way: Endpoint, limit: number): Promise<Line | Outcome> {
  const socket = connect({ host: way.host, port: way.port, noDelay: true })
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(limit) })
  } catch (error) {
    socket.destroy()
    return noLine(way, error as NodeJS.ErrnoException, limit)
  }
  let held = Buffer.alloc(0)
  let closed = false
  let wake = () => {}
  socket.on('data', (bytes) => (held = Buffer.concat([held, bytes]), wake()))
  const ended = () => (closed = true, wake())
  socket.on('end', ended).on('close', ended).on('error', ended)
  return {
    socket,
    close: () => socket.destroy(),
    read: async (enough) => {
      const end = performance.now() + limit
      const take = (why: Heard['end']): Heard => {
        const bytes = held
        held = Buffer.alloc(0)
        return { bytes, end: why }
      }
      while (true) {
        if (held.length > 0 && enough(held)) return take('enough')
        if (closed) return take('closed')
        const left = end - performance.now()
        if (left <= 0) return take('timed-out')
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, left)
          wake = () => (clearTimeout(timer), resolve())
        })
      }
    },
  }
}

function noLine(way: Endpoint, error: NodeJS.ErrnoException, limit: number): Outcome {
  const cannot = `Cannot reach ${address(way)}:`
  if (error.name === 'AbortError' || error.code === 'ETIMEDOUT') return late(way, limit)
  if (error.code === 'ECONNREFUSED') {
    return {
      state: 'refused',
      detail: `${cannot} nothing listens there. Start the proxy in the guest. Run: npx zx ` +
        `tasks/serve-proxy.ts --help`,
    }
  }
  if (error.code === 'ENOTFOUND' || error.code === 'EAI_AGAIN') {
    return {
      state: 'unresolved',
      detail:
        `${cannot} this machine does not know the name. Run again with the guest’s address, which ` +
        'this tells: npx zx tasks/show-network.ts',
    }
  }
  return {
    state: 'unreachable',
    detail:
      `${cannot} no way leads there (${error.code ?? error.message}). See whether the host has ` +
      'an address on the guest’s switch. Run: npx zx tasks/show-network.ts',
  }
}

function late(way: Endpoint, limit: number): Outcome {
  return {
    state: 'timed-out',
    detail:
      `Cannot reach ${address(way)}: no answer within ${
        limit / 1000
      } s, as from a guest that is off or ` +
      'whose firewall drops it. Run in the guest, in an elevated PowerShell: New-NetFirewallRule ' +
      `-DisplayName proxy -Direction Inbound -Action Allow -Protocol TCP -LocalPort ${way.port}`,
  }
}

// --- what an answer means ---

function unauthorized(way: Way, who: Account | undefined): Outcome {
  const cannot = `Cannot sign in to the proxy ${address(way)}:`
  const detail = who
    ? `${cannot} it does not take this password of "${who.user}". Run again with the right one: ` +
      '--user NAME --credential prompt'
    : `${cannot} it wants a user and a password. Run again with --user NAME --credential prompt`
  return { state: 'authentication', detail }
}

function blocked(way: Way, target: Destination, said: string): Outcome {
  return {
    state: 'blocked',
    detail:
      `Cannot reach ${address(target)} through ${address(way)}: it is forbidden there (${said}). ` +
      'Allow it in the rules of the proxy, and run the same again',
  }
}

function lost(
  way: Way,
  target: Destination,
  said: string,
  state: 'destination' | 'timed-out' = 'destination',
): Outcome {
  return {
    state,
    detail: `Cannot reach ${address(target)} through ${address(way)}: ${said}. ` +
      `See whether the guest reaches it. Run in the guest: Test-NetConnection ${
        name(target)
      } -Port ${target.port}`,
  }
}

/** An answer that is none in this protocol, or no answer: whose is it? */
async function notSpoken(
  way: Way,
  wanted: Protocol,
  heard: Heard,
  limit: number,
): Promise<Outcome> {
  const found = whose(heard.bytes) ?? await whoIsThere(way, wanted, limit)
  if (found === undefined && heard.bytes.length === 0 && heard.end === 'timed-out') {
    const outcome = late(way, limit)
    way.not.set(wanted, outcome)
    return outcome
  }
  const kind = wanted === 'http' ? 'an HTTP' : 'a SOCKS5'
  const mend = found === 'an HTTP server' && wanted !== 'http'
    ? `http://${address(way)}`
    : found === 'a SOCKS5 proxy'
    ? `socks5://${address(way)}`
    : `${name(way)}:PORT`
  const outcome: Outcome = {
    state: 'wrong-protocol',
    detail: `Cannot use ${address(way)} as ${kind} proxy: ${
      found ? `${found} listens there` : 'what listens there does not speak that'
    }. Run: npx zx tasks/check-proxy.ts --proxy ${mend}`,
  }
  way.not.set(wanted, outcome)
  return outcome
}

/** Servers that wait for their own protocol are asked in it. */
async function whoIsThere(
  way: Way,
  unlike: Protocol,
  limit: number,
): Promise<string | undefined> {
  const line = await open(way, limit)
  if (!('socket' in line)) return undefined
  try {
    line.socket.write(unlike === 'http' ? Buffer.of(5, 1, 0) : 'OPTIONS * HTTP/1.0\r\n\r\n')
    return whose((await line.read((bytes) => bytes.length >= 2)).bytes)
  } finally {
    line.close()
  }
}

function whose(bytes: Buffer): string | undefined {
  const text = bytes.toString('latin1', 0, 5)
  if (text.startsWith('SSH-')) return 'an SSH server'
  if (text.startsWith('HTTP/')) return 'an HTTP server'
  if (bytes[0] === 5 && bytes.length === 2) return 'a SOCKS5 proxy'
  if (bytes[0] === 0x15 && bytes[1] === 3) return 'a TLS server'
  if (/^220[ -]/.test(text)) return 'a mail or FTP server'
  return undefined
}

// --- what was given ---

/** A host and a port as they are written, an IPv6 address in brackets. */
function address({ host, port }: Endpoint): string {
  return `${name({ host })}:${port}`
}

function name({ host }: Pick<Endpoint, 'host'>): string {
  return isIP(host) === 6 ? `[${host}]` : host
}

function parseEndpoint(text: string): Endpoint | undefined {
  const [, host = '', digits] =
    /^(\[[\da-f:.]+\]|[^\s:/@?#[\]\\"'`$;|&<>()]+)(?::(\d{1,5}))?$/i.exec(text) ?? []
  const port = Number(digits)
  const bare = host.replace(/^\[|\]$/g, '')
  const known = host.startsWith('[') ? isIP(bare) === 6 : true
  const ascii = isIP(bare) ? bare : domainToASCII(bare)
  // more does not fit into SOCKS5's one byte
  if (!ascii || !known || ascii.length > 255 || !(port >= 1 && port <= 65535)) return undefined
  return { host: ascii, port }
}

function parseProxy(text: string): Way {
  const [, scheme, rest = ''] = /^(?:([a-z\d+]+):\/\/)?(.*?)\/?$/is.exec(text) ?? []
  if (/^[^@]*:[^@]*@/.test(rest)) {
    throw new TypeError(
      'Cannot take the password from the address of the proxy: others see command lines. ' +
        'Run again with --user NAME --credential prompt',
    )
  }
  const found = parseEndpoint(rest)
  const protocols = scheme === undefined
    ? ['http', 'socks5'] as const
    : /^http$/i.test(scheme)
    ? ['http'] as const
    : /^socks5?h?$/i.test(scheme)
    ? ['socks5'] as const
    : undefined
  if (found === undefined || protocols === undefined) {
    throw new TypeError(
      `Cannot use ${
        JSON.stringify(withoutPassword(text))
      } as a proxy: it is HOST:PORT, http://HOST:PORT or ` +
        'socks5://HOST:PORT. Example: --proxy 192.168.56.191:8080',
    )
  }
  return { ...found, protocols: [...protocols], not: new Map() }
}

function parseDestination(text: string): Destination {
  const [, web, rest = ''] = /^(http:\/\/)?(.*?)\/?$/is.exec(text) ?? []
  const found = parseEndpoint(rest) ?? (web ? parseEndpoint(`${rest}:80`) : undefined)
  if (found === undefined) {
    throw new TypeError(
      `Cannot reach ${
        JSON.stringify(withoutPassword(text))
      } through a proxy: it is HOST:PORT or http://HOST. ` +
        'Example: --destination db.intranet:3306',
    )
  }
  return { ...found, http: web !== undefined || found.port === 80 }
}

function readAccount(
  user: string | undefined,
  password: Secret | undefined,
): Account | undefined {
  if (user === undefined && password === undefined) return undefined
  const text = password?.reveal() ?? ''
  const fits = (word: string) => word !== '' && Buffer.byteLength(word) <= 255
  // HTTP ends the user at the first colon (RFC 7617, 2)
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (!fits(user ?? '') || !fits(text) || /[:\u0000-\u001f\u007f]/.test(user ?? '')) {
    throw new TypeError(
      'Cannot sign in to a proxy: user and password are 1 to 255 bytes each, and a user has no ' +
        'colon. Run again with --user NAME --credential prompt',
    )
  }
  return { user: user as string, password: text }
}

// --- the command line ---

await command(
  import.meta,
  'Check what a proxy in the guest does: TCP, HTTP, SOCKS5, password, destination',
  {
    proxy: {
      type: 'string',
      array: true,
      demandOption: true,
      describe: 'HOST:PORT, http://HOST:PORT or socks5://HOST:PORT, several with spaces between',
      example: '192.168.56.191:8080',
    },
    destination: {
      type: 'string',
      describe: 'What is to be reached: HOST:PORT or http://HOST [default: the proxy itself]',
      example: 'db.intranet:3306',
    },
    user: { type: 'string', describe: 'A user of the proxy, tried beside none' },
    credential: {
      type: 'string',
      describe:
        'Where the password comes from: prompt, stdin, env:NAME, or manager:TARGET (Windows’ ' +
        'Credential Manager, which has the user too) [default: prompt]',
    },
    timeout: { type: 'number', describe: 'Seconds for each answer [default: 5]' },
  },
  async (
    { credential, ...options }: Omit<CheckProxyOptions, 'password'> & { credential?: string },
  ) => {
    const { user } = options
    const account = user === undefined && credential === undefined ? {} : await readCredential(
      credential ?? 'prompt',
      `password of ${user ?? 'the user'} at the proxy`,
    )
    const result = await checkProxy({ ...account, ...options })
    for (const { state, detail } of result.checks) {
      if (state !== 'ok' && state !== 'skipped') console.error(`${detail}.`)
    }
    if (!result.works) process.exitCode = 1
    return result
  },
)
