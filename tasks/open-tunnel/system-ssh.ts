/** The way through the system's own ssh, whose configuration, agent and known hosts then hold. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { createInterface } from 'node:readline'
import { type Endpoint, type Hop, show, type Way, type WayOptions } from './hops.ts'

/**
 * Starts `ssh -N -L`, with the hops in a configuration of its own that includes the user's. ssh tells by
 * `-vv` what it does: those messages are of its program, and no language changes them. Assumed about Windows:
 * its own ssh says the same.
 */
export async function systemSsh(
  hops: readonly Hop[],
  target: Endpoint,
  options: WayOptions,
): Promise<Way> {
  check(hops, options)
  for (let left = 3;; left--) {
    const port = await freePort()
    try {
      return await start(hops, target, port, options)
    } catch (error) {
      // another program was faster
      const taken = (error as Error).message.includes(`cannot listen to port: ${port}`)
      if (!taken || left === 0) throw error
    }
  }
}

/** Refuses what would be left out silently. */
function check(hops: readonly Hop[], { trust }: WayOptions): void {
  const last = hops.at(-1)
  const chain = hops.slice(hops[0]?.kind === 'socks5' ? 1 : 0)
  if (last?.kind !== 'ssh' || chain.some(({ kind }) => kind !== 'ssh')) {
    throw new Error(
      `${
        last?.text ?? 'no hop'
      }: the system's ssh takes one SOCKS5 proxy first and SSH hosts after it. ` +
        'Run again with --engine embedded',
    )
  }
  const secret = chain.find(({ password, passphrase }) => password ?? passphrase)
  if (secret) {
    throw new Error(
      `${secret.text}: the system's ssh takes no password or passphrase from here. Add the key to the ` +
        'agent by ssh-add, or run again with --engine embedded',
    )
  }
  if (trust.length > 0) {
    throw new Error(
      `${last.text}: the system's ssh takes no key by its fingerprint. ` +
        'Run once with --engine embedded --trust, which remembers it for both',
    )
  }
}

async function start(
  hops: readonly Hop[],
  target: Endpoint,
  port: number,
  { timeout, keepalive, identity, knownHosts, signal }: WayOptions,
): Promise<Way> {
  const last = hops.at(-1) as Hop
  const socks = hops[0]?.kind === 'socks5' ? hops[0] : undefined
  const chain = socks ? hops.slice(1) : hops
  const dir = await mkdtemp(join(tmpdir(), 'open-tunnel-'))
  const log = (index: number) => join(dir, `hop${index + 1}.log`)
  try {
    const config = join(dir, 'config')
    const names = chain.map(({ host }, index) =>
      chain.filter((hop) => hop.host === host).length === 1 ? host : `hop${index + 1}`
    )
    const common = [
      'BatchMode yes',
      'ExitOnForwardFailure yes',
      'StrictHostKeyChecking yes',
      `ConnectTimeout ${timeout}`,
      `ServerAliveInterval ${Math.max(1, Math.round(keepalive))}`,
      'ServerAliveCountMax 3',
      'ControlMaster no',
      'ControlPath none',
      ...identity.map((file) => `IdentityFile ${quoted(file)}`),
      `UserKnownHostsFile ${knownHosts.map(quoted).join(' ')}`,
    ]
    // each with a log of its own, which tells the hop that failed
    const jump = (index: number) =>
      `ssh -F ${quoted(config)} -v -E ${quoted(log(index))} -W [%h]:%p ${names[index]}`
    const entries = chain.flatMap((hop, index) => [
      `Host ${names[index]}`,
      `  HostName ${hop.host}`,
      `  Port ${hop.port}`,
      ...(hop.user ? [`  User ${quoted(hop.user)}`] : []),
      ...(hop.identity ? [`  IdentityFile ${quoted(hop.identity)}`] : []),
      ...(index > 0
        // ProxyJump hands a path with a space on as two
        ? [`  ProxyCommand ${jump(index - 1)}`]
        : socks
        ? [`  ProxyCommand ${proxyCommand(socks)}`]
        : []),
    ])
    const own = join(homedir(), '.ssh', 'config')
    const lines = [...entries, 'Host *', ...common.map((line) => `  ${line}`)]
    if (existsSync(own)) lines.push(`Include ${quoted(own)}`)
    await writeFile(config, lines.join('\n') + '\n', { mode: 0o600 })
    const forward = `127.0.0.1:${port}:${show(target)}`
    const child = spawn('ssh', [
      ...['-vv', '-F', config, '-N', '-L', forward, '--', names.at(-1) as string],
    ], { stdio: ['ignore', 'ignore', 'pipe'] })
    let dead = false
    const lost = new Promise<string>((resolve) => {
      child.once('error', (error: NodeJS.ErrnoException) => {
        dead = true
        resolve(
          error.code === 'ENOENT'
            ? 'the system has no ssh. Run again with --engine embedded'
            : error.message,
        )
      })
      child.once('close', async () => {
        dead = true
        const logs = await Promise.all(
          chain.slice(0, -1).map((_, index) => readFile(log(index), 'utf8').catch(() => '')),
        )
        await rm(dir, { recursive: true, force: true })
        resolve(blame(socks, chain, [...logs, said.join('\n')]))
      })
    })
    const said: string[] = []
    const channels = new Map<string, (failure: string) => void>()
    let numbered: ((number: string) => void) | undefined
    const ready = new Promise<void>((resolve) => {
      let bound = false
      createInterface({ input: child.stderr }).on('line', (line) => {
        // what it says of its connections is no reason for its end
        if (said.length > 200) said.splice(0, 100)
        const [, number = '', event] =
          /^(?:debug\d: )?channel (\d+): (new .*direct-tcpip|open confirm|open failed: .*)/.exec(
            line,
          ) ??
            []
        if (event === undefined) said.push(line)
        else if (event.startsWith('new')) numbered?.(number)
        else channels.get(number)?.(event === 'open confirm' ? '' : event.slice(13))
        // it says so before it does; that its port is open is sure when it says the next
        bound ||= line.includes(`Local forwarding listening on 127.0.0.1 port ${port}`)
        if (bound && line.includes('Entering interactive session')) resolve()
      })
    })
    const giveUp = () => child.kill()
    signal.addEventListener('abort', giveUp)
    if (signal.aborted) giveUp()
    const first = await Promise.race([ready, lost])
    signal.removeEventListener('abort', giveUp)
    if (first !== undefined) throw new Error(first)
    const gone = lost.then((why) => {
      throw new Error(why)
    })
    gone.catch(() => {})
    const what = `it does not connect to ${show(target)}`
    // ssh numbers its connections as they come, so the next one comes when this one has its number
    let turn: Promise<unknown> = Promise.resolve()
    const take = async () => {
      const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true, noDelay: true })
      let outcome: Promise<string> = Promise.resolve('')
      const known = new Promise<void>((resolve) => {
        numbered = (number) => {
          numbered = undefined
          outcome = new Promise((resolve) => channels.set(number, resolve))
          outcome.then(() => channels.delete(number))
          resolve()
        }
      })
      try {
        await once(socket, 'connect')
        socket.on('error', () => {}) // `close` follows
        await within(timeout, Promise.race([known, gone]), `${last.text}: ${what}: no answer`)
          .catch((error) => {
            // one that does not take connections any more cannot number the next ones
            child.kill()
            throw error
          })
        return { socket, outcome }
      } catch (error) {
        socket.destroy()
        throw error
      } finally {
        numbered = undefined
      }
    }
    return {
      dial: async () => {
        const taken = turn.then(take)
        turn = taken.catch(() => {})
        const { socket, outcome } = await taken
        try {
          const failure = await within(
            timeout,
            Promise.race([outcome, gone]),
            `${last.text}: ${what}: no answer`,
          )
          if (failure === '') return socket
          throw new Error(
            `${last.text}: ${what}: ${
              failure.startsWith('administratively prohibited')
                ? 'its rules do not allow it (AllowTcpForwarding, PermitOpen)'
                : failure.replace(/^connect failed: /, '')
            }`,
          )
        } catch (error) {
          socket.destroy()
          throw error
        }
      },
      lost,
      close: () => {
        if (!dead) child.kill()
      },
    }
  } catch (error) {
    await rm(dir, { recursive: true, force: true })
    throw error
  }
}

async function within<T>(seconds: number, work: Promise<T>, late: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${late} within ${seconds} s`)), seconds * 1000)
  })
  try {
    return await Promise.race([work, limit])
  } finally {
    clearTimeout(timer)
  }
}

/** What all say when a connection ends, whoever ended it. */
const COMMON =
  /closed by|Broken pipe|Connection (closed|reset)|banner exchange|kex_exchange_identification/

/**
 * Why ssh ended: what the first hop says that says more than that its connection ended, each by a log of its
 * own. Else the first whose connection did: where one after it ends, its own channel is drained.
 */
function blame(socks: Hop | undefined, chain: readonly Hop[], logs: readonly string[]): string {
  const noise =
    /^debug\d:|^OpenSSH_|^Authenticated to |^Transferred: |^Bytes per second: |^Killed by signal/
  const told = logs.map((log) => log.split(/\r?\n/).filter((line) => line && !noise.test(line)))
  const own = told.at(-1) as string[]
  // its words are on the standard error that all share
  const proxy = socks && own.find((line) => line.includes(`the SOCKS5 proxy ${show(socks)}`))
  if (proxy !== undefined) return `${socks?.text}: ${proxy}`
  const says = told.findIndex((lines) => lines.some((line) => !COMMON.test(line)))
  const ended = logs.slice(0, -1).findIndex((log, index) =>
    (told[index] as string[]).length > 0 ||
    (log.includes('channel 0: free: ') && !log.includes('FORCE input drain'))
  )
  const index = says >= 0 ? says : ended >= 0 ? ended : chain.length - 1
  const lines = told[index] as string[]
  const words = (lines.length > 0 ? lines : own).slice(-4).join(' ')
  const [, key] = /Server host key: \S+ (SHA256:\S+)/.exec(logs[index] as string) ?? []
  const more = key !== undefined && words.includes('Host key verification failed')
    ? ` It showed ${key}. Run again with --engine embedded, which tells how to check that`
    : ''
  return `${(chain[index] as Hop).text}: ssh ended: ${words || 'it does not say why'}${more}`
}

/** The kit's own connector, by the program that runs now: Windows has none. */
function proxyCommand(hop: Hop): string {
  const file = join(import.meta.dirname as string, '..', 'socks-connect.ts')
  if (!existsSync(file)) {
    throw new Error(
      `${hop.text}: "${file}" is missing. Copy socks-connect.ts beside open-tunnel.ts`,
    )
  }
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const user = hop.user ? ['--user', hop.user] : []
  const password = hop.password ? ['--password', hop.password] : []
  return [process.execPath, ...runtime, file, '--proxy', show(hop), ...user, ...password]
    .map((word) => quoted(word.replaceAll('%', '%%'))).concat('%h', '%p').join(' ')
}

function quoted(text: string): string {
  // deno-lint-ignore no-control-regex
  if (/["\u0000-\u001f\u007f]/.test(text)) {
    throw new TypeError(`Cannot write ${JSON.stringify(text)} into a configuration of ssh`)
  }
  return `"${text}"`
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject).listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}
