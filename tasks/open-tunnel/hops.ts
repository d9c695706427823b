/** The hops of a tunnel, and the way through them: TCP, SOCKS5 and SSH, one inside the other. */
import { once } from 'node:events'
import { connect, isIP, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import { domainToASCII } from 'node:url'
import { SocksClient } from 'socks'
import type { Algorithms, Client, ClientChannel } from 'ssh2'
import { type Secret, withoutPassword } from '../task.ts'
import { signIn } from './credentials.ts'
import { fingerprint, hostName, judge, knownKeys, remember } from './known-hosts.ts'
import ssh2 from './ssh2.ts'

export interface Endpoint {
  host: string
  port: number
}

export interface Hop extends Endpoint {
  kind: 'socks5' | 'ssh'
  user?: string
  /** Where its password comes from: `env:NAME`, `manager:TARGET` or `prompt`. */
  password?: string
  /** Where the passphrase of its keys comes from: `env:NAME`, `manager:TARGET` or `prompt`. */
  passphrase?: string
  identity?: string
  /** As it is told: `hop 2, ssh://me@jump:22`. */
  text: string
}

export interface WayOptions {
  /** Gives up what is being opened; what is open stays. */
  signal: AbortSignal
  identity: readonly string[]
  knownHosts: readonly string[]
  /** Fingerprints of keys that are to be taken and remembered. */
  trust: readonly string[]
  /** Seconds. */
  timeout: number
  /** Seconds between signs of life; three that are missed end a connection. */
  keepalive: number
  agent: string | undefined
  /** The secret that `way` names, as readCredential takes it. */
  secret: (way: string, what: string) => Promise<Secret>
}

/** A failure that trying again does not mend, such as another key than the known one. */
export class FatalError extends Error {
  override name = 'FatalError'
}

/** An open way: `dial` connects to an end point from its far end. */
export interface Way {
  dial: (target: Endpoint) => Promise<Duplex>
  /** Resolves with why, when the way is no more. */
  lost: Promise<string>
  close: () => void
}

/** Reads `host:port` and `[IPv6]:port`. */
export function parseEndpoint(text: string, what: string, port?: number): Endpoint {
  const [, bracketed, plain, digits] =
    /^(?:\[([0-9a-f:.]+(?:%\w+)?)\]|([^\s:/?#@[\]\\'"]+))(?::(\d{1,5}))?$/i.exec(text) ?? []
  const host = bracketed ?? plain
  const given = digits === undefined ? port : Number(digits)
  // a name that begins with a dash is an option to ssh
  const fits = host !== undefined && !host.startsWith('-') && host.length <= 255 &&
    (bracketed === undefined || isIP(bracketed) === 6)
  // deno-lint-ignore no-control-regex
  if (!fits || /[\u0000-\u0020\u007f]/.test(host) || given === undefined || given > 65535) {
    throw new TypeError(
      `Cannot take ${
        JSON.stringify(text)
      } as ${what}: it is not HOST:PORT. Example: db.intranet:3306`,
    )
  }
  return { host, port: given }
}

/** Reads `socks5://[user@]host[:port]` and `ssh://[user@]host[:port]`, with its settings behind `?`. */
export function parseHop(text: string, index: number): Hop {
  const wrong = (why: string) =>
    new TypeError(
      `Cannot take ${JSON.stringify(withoutPassword(text))} as hop ${index + 1}: ${why}. ` +
        'Example: --via socks5://192.168.56.191:1080 --via ssh://me@jump.intranet',
    )
  const [, scheme, account, place = '', query = ''] =
    /^(socks5h?|ssh):\/\/(?:([^@/?#]*)@)?([^/?#@]+)\/?(?:\?([^#]*))?$/i.exec(text) ?? []
  if (scheme === undefined) throw wrong('it is neither socks5://HOST:PORT nor ssh://USER@HOST:PORT')
  if (account?.includes(':')) {
    throw wrong(
      'a password in it is seen by others. Put it into a variable and add ?password=env:NAME',
    )
  }
  const kind = /^ssh$/i.test(scheme) ? 'ssh' : 'socks5'
  const { host, port } = parseEndpoint(place, `hop ${index + 1}`, kind === 'ssh' ? 22 : 1080)
  const settings = new URLSearchParams(query)
  const known = kind === 'ssh' ? ['password', 'passphrase', 'identity'] : ['password']
  for (const [name, value] of settings) {
    if (!known.includes(name)) throw wrong(`it has no setting ${JSON.stringify(name)}`)
    if (name !== 'identity' && !/^(env:.+|manager:.+|prompt)$/s.test(value)) {
      throw wrong(
        `its ${name} is to be env:NAME, manager:TARGET or prompt, as others see command lines`,
      )
    }
  }
  let user: string | undefined
  try {
    user = account ? decodeURIComponent(account) : undefined
  } catch {
    throw wrong('its user is not a text with %-codes')
  }
  // deno-lint-ignore no-control-regex
  if (user !== undefined && (user.startsWith('-') || /[\u0000-\u001f\u007f]/.test(user))) {
    throw wrong('its user is no name of one')
  }
  const shown = isIP(host) === 6 ? `[${host}]` : host
  return {
    kind,
    host,
    port,
    text: `hop ${index + 1}, ${kind}://${user ? `${user}@` : ''}${shown}:${port}`,
    ...(user && { user }),
    ...Object.fromEntries(settings),
  }
}

export function show({ host, port }: Endpoint): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port}`
}

/** Opens the SSH connections of a way, one through the other. What it opened, it closes when it fails. */
export async function openWay(hops: readonly Hop[], options: WayOptions): Promise<Way> {
  const closers: (() => void)[] = []
  let say: (why: string) => void = () => {}
  const lost = new Promise<string>((resolve) => say = resolve)
  const close = () => {
    if (closers.length === 0) say('closed')
    closers.splice(0).reverse().forEach((end) => end())
  }
  // what is being opened is all inside the first
  let first: Duplex | undefined
  const giveUp = () => first?.destroy()
  options.signal.addEventListener('abort', giveUp)
  let dial: Way['dial'] = async (target) => first = await dialTcp(target, options)
  // names who is asked, for the error of what cannot be reached
  let before = 'this machine'
  try {
    for (const hop of hops) {
      const from = dial
      const asked = before
      const reach = async () => {
        try {
          return await from(hop)
        } catch (error) {
          if (error instanceof FatalError) throw error
          const { message } = error as Error
          const who = asked === 'this machine' || message.startsWith('hop ')
            ? ''
            : `${asked} says: `
          throw new Error(message.startsWith('hop ') ? message : `${hop.text}: ${who}${message}`, {
            cause: error,
          })
        }
      }
      if (hop.kind === 'socks5') {
        dial = async (target) => await throughSocks(await reach(), hop, target, options)
      } else {
        const sock = await reach()
        const client = await openSsh(sock, hop, options)
        closers.push(() => {
          client.end()
          // one whose other end has vanished does not answer to that
          const timer = setTimeout(() => sock.destroy(), 1000)
          client.once('close', () => clearTimeout(timer))
        })
        client.once('close', () => say(`${hop.text}: it ended the connection`))
        client.on('error', (error) => say(`${hop.text}: ${error.message}`))
        dial = (target) => throughSsh(client, hop, target, options)
      }
      before = hop.text
    }
  } catch (error) {
    close()
    throw error
  } finally {
    options.signal.removeEventListener('abort', giveUp)
  }
  return { dial, lost, close }
}

async function dialTcp(
  { host, port }: Endpoint,
  { timeout, keepalive, signal }: WayOptions,
): Promise<Socket> {
  const keepAlive = { keepAlive: true, keepAliveInitialDelay: keepalive * 1000 }
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true, ...keepAlive })
  try {
    const late = AbortSignal.timeout(timeout * 1000)
    await once(socket, 'connect', { signal: AbortSignal.any([late, signal]) })
    return socket
  } catch (error) {
    socket.destroy()
    const { code, name, message } = error as NodeJS.ErrnoException
    const why: Record<string, string> = {
      ECONNREFUSED: 'nothing listens there (ECONNREFUSED). Check that it runs, and its port',
      ENOTFOUND: 'its name is not known (ENOTFOUND). Name it by its address',
      EAI_AGAIN: 'its name cannot be looked up now (EAI_AGAIN). Name it by its address',
      EHOSTUNREACH: 'no way leads there (EHOSTUNREACH). Check that its machine runs',
      ENETUNREACH: 'no way leads there (ENETUNREACH). Check the network',
    }
    throw new Error(
      name === 'AbortError' || code === 'ETIMEDOUT'
        ? `it does not answer within ${timeout} s. Check that its machine runs, and its firewall`
        : why[code ?? ''] ?? message,
      { cause: error },
    )
  }
}

async function throughSocks(
  socket: Duplex,
  hop: Hop,
  target: Endpoint,
  { timeout, secret }: WayOptions,
): Promise<Duplex> {
  const giveUp = () => socket.destroy()
  socket.once('end', giveUp)
  // the package listens only while it shakes hands, and an error that nobody hears ends the process
  socket.on('error', () => {})
  try {
    const password = hop.password && await secret(hop.password, `password for ${hop.text}`)
    const { host, port } = target
    const answered = SocksClient.createConnection({
      command: 'connect',
      // the package counts characters where the protocol counts bytes
      destination: { host: /^[ -~]*$/.test(host) ? host : domainToASCII(host), port },
      proxy: {
        host: hop.host,
        port: hop.port,
        type: 5,
        ...(hop.user && { userId: hop.user, password: password ? password.reveal() : '' }),
      },
      existing_socket: socket,
      timeout: timeout * 1000,
    })
    socket.resume() // the hop before left it paused
    await answered
    socket.off('end', giveUp)
    // what came with the answer, the package tells as an event; it goes back where it belongs
    const early: Buffer[] = []
    const hear = (bytes: Buffer) => early.push(bytes)
    socket.on('data', hear)
    await setImmediate()
    socket.off('data', hear).pause()
    if (early.length > 0) socket.unshift(Buffer.concat(early))
    return socket
  } catch (error) {
    socket.destroy()
    const { message } = error as Error
    const [, reply] = /rejected connection - (\w+)/i.exec(message) ?? []
    const replies: Record<string, string> = {
      NotAllowed: 'its rules do not allow it',
      NetworkUnreachable: 'it has no way to that network',
      HostUnreachable: 'it cannot reach that host, or does not know its name',
      ConnectionRefused: 'nothing listens there',
      TTLExpired: 'it had no answer in time',
      AddressNotSupported: 'it does not take this kind of address',
    }
    const why = reply !== undefined
      ? `it does not connect to ${show(target)}: ${replies[reply] ?? `it failed (${reply})`}`
      : /authentication failed/i.test(message)
      ? 'user or password is wrong'
      : /no accepted authentication/i.test(message)
      ? 'it wants a user and a password. Run again with socks5://USER@HOST:PORT?password=env:NAME'
      : /authentication type|socks version|handshake/i.test(message)
      ? 'what listens there does not speak SOCKS5. Check the port'
      : /timed out/i.test(message)
      ? `no answer within ${timeout} s`
      : /closed/i.test(message)
      ? `it ended the connection before it connected to ${show(target)}`
      : message
    throw new Error(`${hop.text}: ${why}`, { cause: error })
  }
}

async function openSsh(sock: Duplex, hop: Hop, options: WayOptions): Promise<Client> {
  const { timeout, keepalive, knownHosts, trust } = options
  sock.on('error', () => {}) // the client says it
  let refusal: Error | undefined
  try {
    const known = await knownKeys(knownHosts, hop.host, hop.port)
    const { username, methods, notes } = await signIn(hop, options).catch((error) => {
      const { message } = error as Error
      throw message.includes(hop.text)
        ? error
        : new Error(`${hop.text}: ${message}`, { cause: error })
    })
    const client = new ssh2.Client()
    client.setMaxListeners(0) // one for each channel
    let banner = ''
    const ready = new Promise<void>((resolve, reject) => {
      client.once('ready', resolve)
      client.on('error', (error: Error & { level?: string }) => {
        // without its agent, a client goes on to the next way to sign in
        if (error.level === 'agent') notes.push(`the agent does not answer: ${error.message}`)
        else reject(error)
      })
      client.once('close', () => reject(new Error('it ended the connection')))
      // SSH has no half of a connection
      sock.once('end', () => {
        reject(new Error('it ended the connection'))
        sock.destroy()
      })
      client.on('banner', (text) => banner = text)
    })
    client.connect({
      sock: gathered(sock),
      username,
      readyTimeout: timeout * 1000,
      keepaliveInterval: keepalive * 1000,
      keepaliveCountMax: 3,
      algorithms: algorithms(known.filter(({ marker }) => marker === '').map(({ type }) => type)),
      authHandler: methods,
      hostVerifier: (key: Buffer, verify: (fits: boolean) => void) => {
        const { verdict, by } = judge(known, key)
        const shown = fingerprint(key)
        if (verdict === 'known') return verify(true)
        const authority = known.some(({ marker }) => marker === 'cert-authority')
        const name = hostName(hop.host, hop.port)
        if (verdict === 'unknown' && trust.includes(shown)) {
          remember(knownHosts[0] ?? '', hop.host, hop.port, key).then(
            () => verify(true),
            (error) => (refusal = error, verify(false)),
          )
          return
        }
        refusal = new FatalError(
          verdict === 'revoked'
            ? `${hop.text}: its key ${shown} is revoked in ${by?.file}:${by?.line}. ` +
              'Do not connect; ask who runs it'
            : verdict === 'changed'
            ? `${hop.text}: its key has CHANGED to ${shown}, ${by?.file}:${by?.line} knows another. ` +
              'Somebody may be listening in between. Ask who runs it, and only if the new key is ' +
              `right, run: ssh-keygen -R "${name}" -f "${by?.file}"`
            : `${hop.text}: its key ${shown} is not in ${knownHosts[0]}${
              authority ? ' (certificate authorities take --engine ssh)' : ''
            }. On that machine, run: ssh-keygen -lf /etc/ssh/ssh_host_${
              /ed25519/.test(key.toString('latin1'))
                ? 'ed25519'
                : /ecdsa/.test(key.toString('latin1'))
                ? 'ecdsa'
                : 'rsa'
            }_key.pub and only if it shows the same, run again with --trust ${shown}`,
        )
        verify(false)
      },
    })
    try {
      await ready
      return client
    } catch (error) {
      client.destroy()
      if (refusal) throw refusal
      const { level } = error as { level?: string }
      const { message } = error as Error
      const said = banner.trim() ? ` (${JSON.stringify(banner.trim().slice(0, 200))})` : ''
      // to guess again and again by the same password locks an account
      const Kind = level === 'client-authentication' && hop.password ? FatalError : Error
      throw new Kind(
        `${hop.text}: ` +
          (level === 'client-authentication'
            ? `it lets "${username}" in by none of: ${
              notes.join('; ') || 'nothing to offer'
            }${said}. ` +
              'Add a key by ssh-add, or name one by --identity FILE'
            : level === 'client-timeout' || /timed out/i.test(message)
            ? `no answer of SSH within ${timeout} s`
            : /ended the connection|lost before handshake/.test(message)
            ? `it ended the connection before it spoke SSH${said}. Check that its port is one of SSH`
            : /no matching/.test(message)
            ? `${message}. Run again with --engine ssh`
            : message),
        { cause: error },
      )
    }
  } catch (error) {
    sock.destroy()
    throw error
  }
}

/**
 * The package writes the length, the content and the check of a packet one by one, each of which would be a
 * packet of the connection around it. What is written in one go leaves as one.
 */
function gathered(sock: Duplex): Duplex {
  const write = sock.write.bind(sock) as (bytes: Buffer) => boolean
  const end = sock.end.bind(sock) as () => Duplex
  let held: Buffer[] = []
  const flush = () => {
    const [first] = held
    if (first === undefined) return
    const bytes = held.length === 1 ? first : Buffer.concat(held)
    held = []
    if (sock.writable) write(bytes)
  }
  return Object.assign(sock, {
    write: (bytes: Buffer) => {
      if (held.push(bytes) === 1) queueMicrotask(flush)
      return !sock.writableNeedDrain
    },
    end: () => {
      flush()
      return end()
    },
  })
}

/** What Node does fast goes first; a kind of key that is known goes before those that are not. */
function algorithms(known: readonly string[]): Algorithms {
  const keys = [
    'ssh-ed25519',
    'ecdsa-sha2-nistp256',
    'ecdsa-sha2-nistp384',
    'ecdsa-sha2-nistp521',
    'rsa-sha2-512',
    'rsa-sha2-256',
  ] as const
  const isKnown = (name: string) =>
    known.includes(name) || (name.startsWith('rsa-') && known.includes('ssh-rsa'))
  return {
    serverHostKey: [...keys.filter(isKnown), ...keys.filter((name) => !isKnown(name))],
    cipher: [
      'aes128-gcm@openssh.com',
      'aes256-gcm@openssh.com',
      'aes128-ctr',
      'aes256-ctr',
      'aes192-ctr',
      'chacha20-poly1305@openssh.com',
    ],
  }
}

function throughSsh(
  client: Client,
  hop: Hop,
  target: Endpoint,
  { timeout }: WayOptions,
): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const fail = (why: string, cause?: unknown) =>
      reject(new Error(`${hop.text}: it does not connect to ${show(target)}: ${why}`, { cause }))
    let late = false
    const timer = setTimeout(() => {
      late = true
      fail(`no answer within ${timeout} s`)
    }, timeout * 1000)
    try {
      client.forwardOut(
        '127.0.0.1',
        0,
        target.host,
        target.port,
        (error, channel: ClientChannel) => {
          clearTimeout(timer)
          if (late) return void channel?.close()
          if (!error) {
            // the package ends a channel in order when its connection breaks, and says this first
            const broken = () => channel.emit('error', new Error('it ended the connection'))
            client.once('close', broken)
            channel.once('close', () => client.off('close', broken))
            return resolve(channel)
          }
          const { reason, message } = error as Error & { reason?: number | string }
          const prohibited = reason === 1 || reason === 'ADMINISTRATIVELY_PROHIBITED'
          fail(
            prohibited
              ? 'its rules do not allow it (AllowTcpForwarding, PermitOpen)'
              : message.replace(/^\(SSH\) Channel open failure: /, ''),
            error,
          )
        },
      )
    } catch (error) {
      clearTimeout(timer)
      fail((error as Error).message, error)
    }
  })
}
