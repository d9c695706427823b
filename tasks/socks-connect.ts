#!/usr/bin/env zx
/** Connect standard input and output to a host through a SOCKS5 proxy, as ssh's ProxyCommand wants it. */
import { once } from 'node:events'
import { connect, isIP, type Socket } from 'node:net'
import process from 'node:process'
import { setImmediate } from 'node:timers/promises'
import { domainToASCII } from 'node:url'
import { SocksClient, type SocksClientError } from 'socks'
import { commandLine, readCredential, type Secret, withoutPassword } from './task.ts'

export interface SocksConnectOptions {
  /** A name, which the proxy looks up, or an address. */
  host: string
  /** 1 to 65535. */
  port: number
  /** `host:port`, `[IPv6]:port` or `socks5://[user@]host[:port]`; without a port 1080. */
  proxy: string
  /** For a proxy that wants a user. 1 to 255 bytes. @default the one in `proxy`, else none */
  user?: string | undefined
  /** 1 to 255 bytes. */
  password?: Secret | undefined
  /** Seconds for the way to the proxy, and for its answer. @default 30 */
  timeout?: number | undefined
}

export interface SocksConnectResult {
  proxy: string
  host: string
  port: number
  /** Until the proxy said that it is connected. */
  milliseconds: number
}

/**
 * A connection through a SOCKS5 proxy (RFC 1928, with user and password by RFC 1929). It is paused and
 * half open: it ends when both sides have ended it. Where it broke at once, it is destroyed already.
 */
export async function socksConnect(
  { host, port, proxy, user, password, timeout = 30 }: SocksConnectOptions,
): Promise<Socket> {
  const way = parseProxy(proxy)
  const through = `the SOCKS5 proxy ${way.text}`
  const target = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`
  // the protocol has one byte for the length of a name
  // deno-lint-ignore no-control-regex
  if (!/^[^\s\u0000-\u001f]+$/.test(host) || Buffer.byteLength(host) > 255) {
    throw new TypeError(`Cannot connect to ${JSON.stringify(host)}: that is no name of a host`)
  }
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new RangeError(`Cannot connect to ${target}: a port is a whole number from 1 to 65535`)
  }
  const account = credentials(way.user ?? user, password)
  const socket = connect({
    host: way.host,
    port: way.port,
    allowHalfOpen: true,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 30_000,
  })
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(timeout * 1000) })
  } catch (error) {
    socket.destroy()
    throw unreachable(through, error as NodeJS.ErrnoException, timeout)
  }
  // the package listens only while it shakes hands, and an error that nobody hears ends the process
  socket.on('error', () => {})
  // one that ends half way through has said no
  const giveUp = () => socket.destroy()
  socket.once('end', giveUp)
  try {
    await SocksClient.createConnection({
      command: 'connect',
      // the package counts characters where the protocol counts bytes
      destination: { host: /^[ -~]*$/.test(host) ? host : domainToASCII(host), port },
      proxy: { host: way.host, port: way.port, type: 5, ...account },
      existing_socket: socket,
      timeout: timeout * 1000,
    })
    socket.off('end', giveUp)
    return await whole(socket)
  } catch (error) {
    socket.destroy()
    throw refused(through, target, error as SocksClientError, timeout)
  }
}

/** What came with the proxy's answer, the package tells as an event; it goes back where it belongs. */
async function whole(socket: Socket): Promise<Socket> {
  const early: Buffer[] = []
  const hear = (bytes: Buffer) => early.push(bytes)
  socket.on('data', hear)
  await setImmediate()
  socket.off('data', hear).pause()
  if (early.length > 0) socket.unshift(Buffer.concat(early))
  return socket
}

interface Proxy {
  host: string
  port: number
  user?: string
  /** As it is told. */
  text: string
}

/** Reads `host:port`, `[IPv6]:port` and `socks5://[user@]host[:port]`. */
function parseProxy(text: string): Proxy {
  const given = /^\w+:\/\//.test(text) ? text : `socks5://${text}`
  const url = URL.canParse(given) ? new URL(given) : undefined
  if (url?.password) {
    throw new TypeError(
      `Cannot take the password of the proxy from its address: others see command lines. ` +
        'Run again with --password env:NAME',
    )
  }
  const known = url && /^socks(5h?)?:$/.test(url.protocol) && url.hostname !== ''
  if (!known || !/^\/?$/.test(url.pathname) || url.search || url.hash) {
    throw new TypeError(
      `Cannot use the proxy ${
        JSON.stringify(withoutPassword(text))
      }: it is not HOST:PORT. Example: --proxy 192.168.56.191:1080`,
    )
  }
  const port = Number(url.port || 1080)
  return {
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port,
    text: `${url.hostname}:${port}`,
    ...(url.username && { user: decodeURIComponent(url.username) }),
  }
}

function credentials(
  user: string | undefined,
  password: Secret | undefined,
): { userId?: string; password?: string } {
  if (user === undefined && password === undefined) return {}
  const fits = (text: string) => text !== '' && Buffer.byteLength(text) <= 255
  if (!fits(user ?? '') || (password && !fits(password.reveal()))) {
    throw new TypeError(
      'Cannot sign in to the proxy: user and password are 1 to 255 bytes each. ' +
        'Run again with --user NAME --password env:NAME',
    )
  }
  return { userId: user ?? '', password: password?.reveal() ?? '' }
}

/** No TCP connection to the proxy came about. */
function unreachable(through: string, error: NodeJS.ErrnoException, timeout: number): Error {
  const why: Record<string, string> = {
    ECONNREFUSED: 'nothing listens there. Start the proxy, or name another by --proxy HOST:PORT',
    ENOTFOUND: 'no such name is known here. Name it by its address: --proxy ADDRESS:PORT',
    EAI_AGAIN: 'its name cannot be looked up now. Name it by its address: --proxy ADDRESS:PORT',
    EHOSTUNREACH: 'no way leads there. Check that its machine runs, and the network to it',
    ENETUNREACH: 'no way leads there. Check that its machine runs, and the network to it',
  }
  const late = error.name === 'AbortError' || error.code === 'ETIMEDOUT'
  const cause = late
    ? `it does not answer within ${timeout} s. Check that its machine runs, and its firewall`
    : why[error.code ?? ''] ?? `${error.message}. Check the network to it`
  return Object.assign(new Error(`Cannot reach ${through}: ${cause}`, { cause: error }), {
    code: late ? 'ETIMEDOUT' : error.code,
  })
}

/** The proxy answered, or ended, without a connection to the target. `socks` tells by text alone. */
function refused(
  through: string,
  target: string,
  error: SocksClientError,
  timeout: number,
): Error {
  const text = error.message
  const [, reply] = /rejected connection - (\w+)/i.exec(text) ?? []
  const replies: Record<string, string> = {
    Failure: 'the proxy failed to connect',
    NotAllowed: "the proxy's rules do not allow it. Ask whoever runs the proxy",
    NetworkUnreachable: 'the proxy has no way to its network',
    HostUnreachable: 'the proxy cannot reach it, or does not know its name',
    ConnectionRefused: 'nothing listens there',
    TTLExpired: 'the proxy had no answer from it in time',
    CommandNotSupported: 'the proxy makes no connections for others',
    AddressNotSupported: 'the proxy does not take this kind of address. Name the host otherwise',
  }
  const start = `Cannot connect to ${target} through ${through}: `
  const why = reply !== undefined
    ? replies[reply] ?? `the proxy refuses (${reply})`
    : /authentication failed/i.test(text)
    ? 'user or password is wrong. Run again with --user NAME --password env:NAME'
    : /no accepted authentication/i.test(text)
    ? 'it wants a user and a password. Run again with --user NAME --password env:NAME'
    : /authentication type|socks version|initial handshake|authentication handshake/i.test(text)
    ? 'what listens there does not speak SOCKS5. Check the port'
    : /timed out/i.test(text)
    ? `no answer within ${timeout} s`
    : /closed/i.test(text)
    ? 'it ended the connection'
    : text
  return new Error(start + why, { cause: error })
}

/**
 * Pours standard input into the connection and the connection to standard output. The end of input is
 * passed on, and the answer still read; the other side's end is the end.
 */
async function pour(socket: Socket, { host, port }: SocksConnectOptions): Promise<void> {
  const { stdin, stdout } = process
  const lost = (error: NodeJS.ErrnoException) => {
    const how = error.code === 'ECONNRESET'
      ? 'the SOCKS5 proxy reset it (ECONNRESET)'
      : error.message
    return new Error(`Lost the connection to ${host}:${port}: ${how}. Run the same again`)
  }
  if (socket.destroyed) throw lost(socket.errored ?? new Error('it is closed'))
  const failed = new Promise<never>((_, reject) => {
    socket.once('error', (error: NodeJS.ErrnoException) => reject(lost(error)))
    // whoever read is gone, and nobody is left to tell
    stdout.once('error', () => socket.destroy())
    stdin.once('error', () => socket.end())
  })
  socket.pipe(stdout, { end: false })
  stdin.pipe(socket)
  const ended = new Promise((resolve) => socket.once('end', resolve).once('close', resolve))
  await Promise.race([ended, failed])
  socket.destroy()
  stdin.destroy()
  // what waits is written before the process ends
  await new Promise((resolve) => stdout.write('', resolve))
}

const given = await commandLine<
  Omit<SocksConnectOptions, 'password'> & { password?: string; check?: boolean }
>(import.meta, 'Connect standard input and output to a host through a SOCKS5 proxy', {
  host: {
    type: 'string',
    positional: true,
    demandOption: true,
    describe: 'A name, which the proxy looks up, or an address',
    example: 'db.intranet',
  },
  port: {
    type: 'number',
    positional: true,
    demandOption: true,
    describe: '1 to 65535',
    example: '22',
  },
  proxy: {
    type: 'string',
    demandOption: true,
    describe: 'HOST:PORT of the proxy',
    example: '192.168.56.191:1080',
  },
  user: { type: 'string', describe: 'For a proxy that wants one' },
  password: {
    type: 'string',
    describe: 'env:NAME, the variable that has it, or manager:TARGET (Windows’ Credential Manager)',
  },
  timeout: { type: 'number', describe: 'Seconds [default: 30]' },
  check: { type: 'boolean', describe: 'Connect, tell how long that took, and end' },
})
if (given !== undefined) {
  const { check, password, ...options } = given
  try {
    const start = performance.now()
    // standard input is what goes to the host
    if (password === 'stdin') {
      throw new TypeError(
        'Cannot take the password from standard input, which goes to the host. Use env:NAME',
      )
    }
    const account = password === undefined
      ? {}
      : await readCredential(password, `password at the proxy ${withoutPassword(options.proxy)}`)
    const socket = await socksConnect({ ...account, ...options })
    if (check) {
      socket.destroy()
      const milliseconds = Math.round(performance.now() - start)
      const { proxy, host, port } = options
      const result: SocksConnectResult = { proxy, host, port, milliseconds }
      console.log(JSON.stringify(result))
    } else await pour(socket, options)
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error))
    process.exitCode = 1
  }
  // Deno waits for standard input that nobody reads any more
  if ('Deno' in globalThis) process.exit()
}
