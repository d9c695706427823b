#!/usr/bin/env zx
/** Open a local port to a host behind SOCKS5 proxies and SSH hosts, such as a database of an intranet. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { constants } from 'node:os'
import process from 'node:process'
import type { Duplex } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'
import { agentSocket, secrets } from './open-tunnel/credentials.ts'
import {
  type Endpoint,
  FatalError,
  openWay,
  parseEndpoint,
  parseHop,
  show,
  type Way,
  type WayOptions,
} from './open-tunnel/hops.ts'
import { knownHostsFiles } from './open-tunnel/known-hosts.ts'
import { liveList, type Row } from './open-tunnel/list.ts'
import { systemSsh } from './open-tunnel/system-ssh.ts'
import { commandLine } from './task.ts'

export interface OpenTunnelOptions {
  /** `host:port` of the target, as the last hop knows it. */
  to: string
  /**
   * The hops, in order: `socks5://[user@]host[:port]` or `ssh://[user@]host[:port]`. Behind `?` their own
   * `password`, `passphrase` (`env:NAME`, `manager:TARGET` of Windows' Credential Manager, or `prompt`) and
   * `identity`. @default none
   */
  via?: readonly string[] | undefined
  /** `[address:]port` here, 0 for a free one. @default 127.0.0.1:0 */
  local?: string | undefined
  /** Lets `local` be an address that other machines reach. @default false */
  bind?: boolean | undefined
  /** How it is told. @default `to` */
  name?: string | undefined
  /** Files of private keys, for hops that name none. @default the agent, then ~/.ssh/id_* */
  identity?: readonly string[] | undefined
  /** The first is the one that `trust` writes to. @default OpenSSH's own */
  knownHosts?: readonly string[] | undefined
  /** Fingerprints (`SHA256:...`) of unknown keys to take, and to remember in known_hosts. */
  trust?: readonly string[] | undefined
  /** Seconds between signs of life of an SSH connection; three missed end it. @default 15 */
  keepalive?: number | undefined
  /** Seconds for each hop. @default 30 */
  timeout?: number | undefined
  /** This kit's own SSH, or the system's `ssh`, whose configuration then holds too. @default embedded */
  engine?: 'embedded' | 'ssh' | undefined
  /** Gives up its opening. */
  signal?: AbortSignal | undefined
  /** Hears what happens. @default nobody */
  onEvent?: ((event: TunnelEvent) => void) | undefined
}

export interface TunnelEvent {
  tunnel: string
  /**
   * `open` at the start and after a loss, `lost` with `detail` why, `retry` with `detail` when, `failed`
   * when a connection of a program did not come about.
   */
  event: 'open' | 'lost' | 'retry' | 'failed' | 'closed'
  detail?: string
  /** Seconds until it is tried again, for `lost` and `retry`. */
  again?: number
  host: string
  port: number
}

export interface Tunnel {
  name: string
  to: string
  via: readonly string[]
  /** Where it listens. */
  host: string
  port: number
  state: () => 'open' | 'lost' | 'closed'
  /** Connections now, and bytes since it opened: sent to the target, received from it. */
  count: () => { connections: number; sent: number; received: number }
  /** Connects to the target once. Milliseconds. */
  check: () => Promise<number>
  /** Rejects when it ends otherwise than by `close`, e.g. as a hop has another key now. */
  ended: Promise<void>
  /** Ends its connections, and waits until nothing is left of it. */
  close: () => Promise<void>
}

/**
 * Listens on a local port whose connections go through the hops to the target. A way that breaks is
 * opened anew, after 1 s, 2 s, 4 s ... 30 s. Errors name the hop.
 */
export async function openTunnel(options: OpenTunnelOptions): Promise<Tunnel> {
  const { to, via = [], bind = false, engine = 'embedded', onEvent = () => {} } = options
  const { name = to, identity = [], trust = [], keepalive = 15, timeout = 30 } = options
  for (const [option, seconds] of Object.entries({ timeout, keepalive })) {
    if (seconds > 0 && seconds <= 3600) continue
    throw new RangeError(
      `Cannot open the tunnel ${
        JSON.stringify(name)
      }: ${option} is ${seconds}, and is to be more than 0 ` +
        `and at most 3600 seconds. Example: --${option} 30`,
    )
  }
  const target = parseEndpoint(to, 'the target')
  const hops = via.map(parseHop)
  const local = parseLocal(options.local ?? '0', bind)
  const stop = new AbortController()
  const settings: WayOptions = {
    signal: AbortSignal.any([stop.signal, ...options.signal ? [options.signal] : []]),
    identity,
    trust,
    knownHosts: options.knownHosts ?? knownHostsFiles(),
    keepalive,
    timeout,
    agent: agentSocket(),
    secret: ASKED,
  }
  const fail = (error: unknown) => {
    const { message } = error as Error
    const Kind = error instanceof FatalError ? FatalError : Error
    return new Kind(`Cannot open the tunnel ${JSON.stringify(name)}: ${message}`, { cause: error })
  }
  const sockets = new Set<Socket>()
  let state: ReturnType<Tunnel['state']> = 'open'
  let past = { sent: 0, received: 0 }
  let way: Promise<Way>
  const server = createServer({ allowHalfOpen: true, noDelay: true })
  // the port first: it costs nothing to say that it is taken
  await listen(server, local).catch((error) => {
    throw fail(error)
  })
  const { port } = server.address() as { port: number }
  const tell = (event: TunnelEvent['event'], detail?: string, again?: number) => {
    const more = { ...(detail && { detail }), ...(again !== undefined && { again }) }
    onEvent({ tunnel: name, event, ...more, host: local.host, port })
  }
  const open = () => engine === 'ssh' ? systemSsh(hops, target, settings) : openWay(hops, settings)
  const close = async () => {
    if (stop.signal.aborted) return
    state = 'closed'
    stop.abort()
    for (const socket of sockets) socket.destroy()
    server.close()
    const opened = await way.catch(() => undefined)
    opened?.close()
    await opened?.lost
    tell('closed')
  }
  way = open()
  try {
    await way
  } catch (error) {
    server.close()
    throw fail(error)
  }
  tell('open')

  const keepUp = async () => {
    while (!stop.signal.aborted) {
      const broken = await way
      const why = await broken.lost
      if (stop.signal.aborted) return
      // the hops before the one that was lost are connected still
      broken.close()
      state = 'lost'
      tell('lost', why, 1)
      // what was under way is broken, and its program is to know at once
      for (const socket of sockets) breakOff(socket)
      const reopened = Promise.withResolvers<Way>()
      reopened.promise.catch(() => {})
      way = reopened.promise
      for (let seconds = 1;; seconds = Math.min(seconds * 2, 30)) {
        await wait(seconds * 1000, undefined, { signal: stop.signal }).catch(() => {})
        if (stop.signal.aborted) return reopened.reject(new Error('closed'))
        try {
          reopened.resolve(await open())
          if (stop.signal.aborted) return
          state = 'open'
          tell('open')
          break
        } catch (error) {
          if (stop.signal.aborted) return reopened.reject(error)
          if (error instanceof FatalError) {
            reopened.reject(error)
            throw fail(error)
          }
          const next = Math.min(seconds * 2, 30)
          tell('retry', `${(error as Error).message}. Again in ${next} s`, next)
        }
      }
    }
  }
  const ended = keepUp().catch(async (error) => {
    await close()
    throw error
  })
  ended.catch(() => {}) // for whoever does not listen

  // who comes while the way is lost waits for it, and not for ever: a program gives up and asks again
  const dial = async () => {
    const late = new Error(`the way is not open again within ${timeout} s`)
    return await (await within(timeout, way, late)).dial(target)
  }
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('error', () => {}) // `close` follows
    socket.once('close', () => {
      sockets.delete(socket)
      past = { sent: past.sent + socket.bytesRead, received: past.received + socket.bytesWritten }
    })
    dial().then((far) => join(socket, far), (error) => {
      breakOff(socket)
      if (!stop.signal.aborted) tell('failed', (error as Error).message)
    })
  })
  return {
    name,
    to,
    via,
    host: local.host,
    port,
    state: () => state,
    count: () => {
      let { sent, received } = past
      for (const { bytesRead, bytesWritten } of sockets) {
        sent += bytesRead
        received += bytesWritten
      }
      return { connections: sockets.size, sent, received }
    },
    check: async () => {
      const start = performance.now()
      const far = await dial().catch((error) => {
        throw fail(error)
      })
      far.on('error', () => {}).destroy()
      return Math.round(performance.now() - start)
    },
    ended,
    close,
  }
}

async function within<T>(seconds: number, work: Promise<T>, late: Error): Promise<T> {
  const over = new AbortController()
  const limit = wait(seconds * 1000, undefined, { signal: over.signal }).then(() => {
    throw late
  })
  try {
    return await Promise.race([work, limit])
  } finally {
    limit.catch(() => {})
    over.abort()
  }
}

/** The same question is asked once, for all tunnels and each time that a way opens. */
const ASKED = secrets((now) => asking(now))

/** Hears when a question is on the terminal, and when it is not any more. */
let asking: (now: boolean) => void = () => {}

function parseLocal(text: string, bind: boolean): Endpoint {
  const { host, port } = /^\d+$/.test(text)
    ? parseEndpoint(`127.0.0.1:${text}`, 'the local port')
    : parseEndpoint(text, 'the local port')
  const loopback = host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host)
  if (!loopback && !bind) {
    throw new Error(
      `Cannot listen on ${
        show({ host, port })
      }: other machines could reach the target through it. ` +
        'Run again with --bind if that is meant',
    )
  }
  return { host, port }
}

async function listen(server: Server, local: Endpoint): Promise<void> {
  server.listen(local.port, local.host)
  try {
    await once(server, 'listening')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const why = code === 'EADDRINUSE'
      ? 'the port is taken (EADDRINUSE). Run again with another --local, or with --local 0'
      : code === 'EACCES'
      ? 'the port is not for everybody (EACCES). Run again with --local 0'
      : message
    throw new Error(`the local port ${show(local)}: ${why}`, { cause: error })
  }
}

/** Pours each into the other, passes ends on, and lets none outlive the other. */
function join(near: Socket, far: Duplex): void {
  if (near.destroyed) return void far.on('error', () => {}).destroy()
  let broken = false
  far.on('error', () => {
    broken = true
    breakOff(near)
  })
  far.once('close', () => {
    // an end in order has been passed on, and only what is left is to be written
    if (!broken && near.writableEnded) near.destroySoon()
    else breakOff(near)
  })
  near.once('close', () => far.destroy())
  near.pipe(far)
  far.pipe(near)
}

/**
 * Tells a program that its connection broke, and did not end. One whose half has ended can only be closed:
 * a reset then leaves a handle behind, on which Node spins when it exits (libuv: no reset after shutdown).
 */
function breakOff(socket: Socket): void {
  if (socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}

interface Given {
  to?: string
  via?: string[]
  local?: string
  bind?: boolean
  config?: string
  identity?: string[]
  knownHosts?: string[]
  trust?: string[]
  keepalive?: number
  timeout?: number
  engine?: 'embedded' | 'ssh'
  check?: boolean
  json?: boolean
  exec?: boolean
  command?: string[]
}

/** The tunnels of a file: `{ "tunnels": [{ "name": "db", "to": "...", "via": [...], "local": "..." }] }` */
async function readConfig(file: string): Promise<OpenTunnelOptions[]> {
  const wrong = (why: string) =>
    new Error(
      `Cannot read the tunnels of ${JSON.stringify(file)}: ${why}. Example: ` +
        '{ "tunnels": [{ "name": "db", "to": "db.intranet:3306", "via": ["ssh://me@jump"] }] }',
    )
  let config: unknown
  try {
    config = JSON.parse((await readFile(file, 'utf8')).replace(/^\ufeff/, ''))
  } catch (error) {
    throw wrong((error as Error).message)
  }
  const { tunnels } = (config ?? {}) as { tunnels?: unknown }
  if (!Array.isArray(tunnels) || tunnels.length === 0) throw wrong('it has no list "tunnels"')
  const texts = ['name', 'to', 'local', 'engine']
  const lists = ['via', 'identity', 'knownHosts', 'trust']
  const others = ['bind', 'keepalive', 'timeout']
  const names = new Set<string>()
  for (const tunnel of tunnels as unknown[]) {
    if (typeof tunnel !== 'object' || tunnel === null) throw wrong('a tunnel is no object')
    for (const [name, value] of Object.entries(tunnel)) {
      const fits = texts.includes(name)
        ? typeof value === 'string'
        : lists.includes(name)
        ? Array.isArray(value) && value.every((item) => typeof item === 'string')
        : others.includes(name) && typeof value === (name === 'bind' ? 'boolean' : 'number')
      if (!fits) throw wrong(`a tunnel's ${JSON.stringify(name)} is not one of a tunnel`)
    }
    const { name, to } = tunnel as { name?: string; to?: string }
    if (to === undefined) throw wrong('a tunnel has no "to"')
    if (names.has(name ?? to)) throw wrong(`two tunnels are called ${JSON.stringify(name ?? to)}`)
    names.add(name ?? to)
  }
  return tunnels as OpenTunnelOptions[]
}

/** Runs a command that finds the ports in its environment, and ends with its exit code. */
async function runCommand(command: readonly string[], tunnels: readonly Tunnel[]): Promise<number> {
  const env = { ...process.env }
  for (const { name, host, port } of tunnels) {
    const own = name.toUpperCase().replace(/[^A-Z0-9]+/g, '_')
    env[`TUNNEL_${own}_HOST`] = host
    env[`TUNNEL_${own}_PORT`] = `${port}`
  }
  const [first] = tunnels
  env.TUNNEL_HOST = first?.host
  env.TUNNEL_PORT = `${first?.port}`
  const [program = '', ...args] = command.map((word) =>
    word.replaceAll('{port}', `${first?.port}`).replaceAll('{host}', first?.host ?? '')
  )
  const child = spawn(program, args, { stdio: 'inherit', env })
  // a terminal gives Ctrl-C to the command too, which says what it means
  const pass = (signal: NodeJS.Signals) => void child.kill(signal)
  const ignore = () => {}
  process.on('SIGINT', ignore).on('SIGTERM', pass)
  try {
    const [code, signal] = await once(child, 'exit') as [number | null, NodeJS.Signals | null]
    return code ?? 128 + (constants.signals[signal ?? 'SIGTERM'] ?? 15)
  } catch (error) {
    throw new Error(
      `Cannot run ${JSON.stringify(program)}: ${
        (error as Error).message
      }. Check that it is on PATH`,
      { cause: error },
    )
  } finally {
    process.off('SIGINT', ignore).off('SIGTERM', pass)
  }
}

/** A tunnel before anything of it is known. */
function rowOf({ to, name = to, local = '0' }: OpenTunnelOptions): Row {
  const from = /^\d+$/.test(local) ? `127.0.0.1:${local}` : local
  const count = () => ({ connections: 0, sent: 0, received: 0 })
  return { name, from: from.replace(/:0$/, ''), to, state: 'connecting', again: 0, why: '', count }
}

/** What an event makes of its tunnel's row. */
function follow(row: Row, { event, detail = '', again = 0, ...place }: TunnelEvent): void {
  row.from = show(place)
  if (event === 'open') Object.assign(row, { state: 'up', why: '' })
  else if (event === 'failed') row.why = `A connection failed: ${detail}`
  else if (event === 'closed') row.state = 'closed'
  else {
    const why = detail.replace(/\. Again in \d+ s$/, '')
    Object.assign(row, { state: 'waiting', why, again: performance.now() + again * 1000 })
  }
}

/** Opens them at the same time, in their order. Where one cannot be, or all are to stop, none stays. */
async function openAll(
  wanted: readonly OpenTunnelOptions[],
  stopped: Promise<void>,
): Promise<Tunnel[]> {
  const given = new AbortController()
  void stopped.then(() => given.abort())
  const opening = wanted.map((one) => openTunnel({ ...one, signal: given.signal }))
  const opened = await Promise.race([Promise.all(opening), stopped]).catch((error) => {
    // those that are still on their way do not hold up why
    void closeAll(opening)
    throw error
  })
  if (opened) return opened
  await closeAll(opening)
  return []
}

async function closeAll(opening: readonly Promise<Tunnel>[]): Promise<void> {
  await Promise.all(opening.map((tunnel) => tunnel.then(({ close }) => close(), () => {})))
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

async function main(given: Given): Promise<void> {
  const { to, via, local, bind, config, check, json, exec, command = [], ...common } = given
  if ((to === undefined) === (config === undefined)) {
    throw new Error(
      'Cannot open a tunnel: name a target or a file of tunnels. Run again with --to HOST:PORT or --config FILE',
    )
  }
  if (exec !== (command.length > 0 || undefined)) {
    throw new Error('Cannot run a command: none is named. Run again with --exec COMMAND ARGUMENTS')
  }
  const live = !json && !check && !exec && process.stderr.isTTY
  const rows = new Map<string, Row>()
  const onEvent = (event: TunnelEvent) => {
    const row = rows.get(event.tunnel)
    if (row) follow(row, event)
    if (json && !exec) console.log(JSON.stringify(event))
    else if (!live && !check && (!exec || event.event !== 'open' && event.event !== 'closed')) {
      const { tunnel, detail } = event
      console.error(`${tunnel}: ${event.event} on ${show(event)}${detail ? `: ${detail}` : ''}`)
    }
  }
  const wanted: OpenTunnelOptions[] = to === undefined
    ? await readConfig(config as string)
    : [{ to, via, local, bind }]
  for (const one of wanted) rows.set(one.name ?? one.to, rowOf(one))
  let tunnels: Tunnel[] = []
  const stopped = new Promise<void>((resolve) => {
    // a second Ctrl-C does not wait for anything
    if (!exec) { for (const signal of SIGNALS) process.once(signal, () => resolve()) }
    // who keeps it in the background is gone, however that ended
    process.once('disconnect', resolve)
  })
  const list = live ? liveList([...rows.values()], process.stderr) : undefined
  if (list) asking = list.hush
  try {
    tunnels = await openAll(wanted.map((one) => ({ ...common, ...one, onEvent })), stopped)
    for (const { name, count } of tunnels) {
      const row = rows.get(name)
      if (row) row.count = count
    }
    if (tunnels.length === 0) return
    if (check) {
      const told = []
      for (const tunnel of tunnels) {
        const { name, to, via } = tunnel
        told.push({ name, to, via, milliseconds: await tunnel.check() })
      }
      console.log(JSON.stringify({ tunnels: told }))
    } else if (exec) process.exitCode = await runCommand(command, tunnels)
    else await Promise.race([stopped, ...tunnels.map(({ ended }) => ended)])
  } finally {
    await Promise.all(tunnels.map((tunnel) => tunnel.close()))
    list?.close()
    // who hears of its end by the channel is kept alive by it
    if (process.connected) process.disconnect()
  }
}

// all that follows --exec is the command's, whatever it looks like
const exec = process.argv.indexOf('--exec')
const zx = (globalThis as { __filename?: string }).__filename === import.meta.filename
if (exec > 0 && (import.meta.main || zx) && process.argv[exec + 1] !== '--') {
  process.argv.splice(exec + 1, 0, '--')
}
const given = await commandLine<Given>(
  import.meta,
  'Open a local port to a host behind SOCKS5 proxies and SSH hosts',
  {
    to: { type: 'string', describe: 'HOST:PORT of the target', example: 'db.intranet:3306' },
    via: {
      type: 'string',
      array: true,
      nargs: 1,
      describe: 'socks5://[USER@]HOST:PORT or ssh://[USER@]HOST[:PORT], once a hop, in order',
      example: 'socks5://192.168.56.191:1080',
    },
    local: { type: 'string', describe: '[ADDRESS:]PORT here, 0 for a free one [default: 0]' },
    bind: { type: 'boolean', describe: 'Let --local be an address that other machines reach' },
    config: { type: 'string', describe: 'A JSON file of several tunnels' },
    identity: { type: 'string', array: true, nargs: 1, describe: 'A private key' },
    knownHosts: { type: 'string', array: true, nargs: 1, describe: 'A known_hosts file' },
    trust: {
      type: 'string',
      array: true,
      nargs: 1,
      describe: 'SHA256:... of an unknown key to take and remember',
    },
    keepalive: { type: 'number', describe: 'Seconds between signs of life [default: 15]' },
    timeout: { type: 'number', describe: 'Seconds for each hop [default: 30]' },
    engine: { choices: ['embedded', 'ssh'], describe: 'Default: embedded' },
    check: { type: 'boolean', describe: 'Connect to each target once, tell, and end' },
    json: { type: 'boolean', describe: 'Tell what happens as JSON, one object a line' },
    exec: {
      type: 'boolean',
      describe: 'Run the command that follows, with TUNNEL_PORT and {port}, and end with it',
    },
    command: { type: 'string', array: true, positional: true, describe: 'For --exec' },
  },
)
if (given !== undefined) {
  try {
    await main(given)
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error))
    process.exitCode = 1
  }
}
