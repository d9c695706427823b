#!/usr/bin/env zx
/**
 * Compares open-tunnel with `ssh -L` over the same hops: a jump host and an SSH host, both real, on
 * loopback.
 *
 *     node test/bench/open-tunnel.ts [--megabytes N] [--runs N]
 *
 * Prints medians of throughput from and to the target, of the time of a small question and its answer, and
 * of the time until a new connection has its first answer; and how many times `ssh -L` each is.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'fs-extra'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { parseArgs } from 'node:util'
import { freePort } from '../ports.ts'
import { tcpServer } from '../socks-server.ts'
import { reaches, type SshServer, sshServer, until } from '../tunnel-hosts.ts'

const { values } = parseArgs({
  options: {
    megabytes: { type: 'string', default: '256' },
    runs: { type: 'string', default: '3' },
  },
})
const total = Number(values.megabytes) * 1024 ** 2
const runs = Number(values.runs)
const block = Buffer.alloc(1024 ** 2, 'vbox-to-hyperv')

// the first byte says what is wanted: d to be sent all, u to take all, e each byte back
const target = await tcpServer((socket) => {
  socket.once('data', (first: Buffer) => {
    const kind = first.toString('latin1', 0, 1)
    if (kind === 'd') return void send(socket)
    let left = total - (first.length - 1)
    socket.on('data', (bytes: Buffer) => {
      if (kind === 'e') socket.write(bytes)
      else if ((left -= bytes.length) <= 0) socket.write('!')
    })
    if (kind === 'e') socket.write(first)
  })
})
const host = await sshServer()
const jump = await sshServer()
const dir = await fs.mkdtemp(join(tmpdir(), 'bench-'))
const children: ChildProcess[] = []
try {
  const known = join(dir, 'known_hosts')
  await fs.writeFile(
    known,
    [host, jump].map(({ port, hostKey }) => `[127.0.0.1]:${port} ${hostKey}\n`).join(''),
  )
  const ways = { 'open-tunnel': await openTunnel(known), 'ssh -L': await systemSsh(known) }
  const found: Record<string, Record<string, number[]>> = {}
  for (let run = 0; run < runs; run++) {
    for (const [way, port] of Object.entries(ways)) {
      const figures = found[way] ??= {}
      for (const [name, measure] of Object.entries({ download, upload, latency, connection })) {
        ;(figures[name] ??= []).push(await measure(port))
      }
    }
  }
  const median = (way: string, name: string) => {
    const sorted = [...(found[way]?.[name] ?? [])].sort((a, b) => a - b)
    return sorted[sorted.length >> 1] ?? NaN
  }
  const units = { download: 'MB/s', upload: 'MB/s', latency: 'ms', connection: 'ms' }
  for (const [name, unit] of Object.entries(units)) {
    const ours = median('open-tunnel', name)
    const theirs = median('ssh -L', name)
    // more is better of both
    const ratio = unit === 'ms' ? theirs / ours : ours / theirs
    const digits = unit === 'ms' ? 2 : 0
    console.log(
      `${name.padEnd(11)} ${ours.toFixed(digits)} ${unit}, ssh -L ${
        theirs.toFixed(digits)
      } ${unit}: ` +
        `${ratio.toFixed(2)}x`,
    )
  }
} finally {
  for (const child of children) {
    child.kill()
    await once(child, 'exit')
  }
  await Promise.all([target, host, jump].map((server) => server.close()))
  await fs.remove(dir)
}

function hop({ port, identity }: SshServer): string[] {
  return ['--via', `ssh://root@127.0.0.1:${port}?identity=${encodeURIComponent(identity)}`]
}

async function openTunnel(known: string): Promise<number> {
  const task = join(import.meta.dirname as string, '..', '..', 'tasks', 'open-tunnel.ts')
  const child = spawn(process.execPath, [
    ...[task, '--to', `127.0.0.1:${target.port}`, ...hop(jump), ...hop(host)],
    ...['--known-hosts', known, '--json'],
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  children.push(child)
  const [line] = await once(child.stdout, 'data')
  return JSON.parse(String(line)).port
}

async function systemSsh(known: string): Promise<number> {
  const port = await freePort()
  const config = join(dir, 'config')
  const entry = (name: string, { port, identity }: SshServer, more: string) =>
    `Host ${name}\n  HostName 127.0.0.1\n  Port ${port}\n  User root\n  IdentityFile ${identity}\n` +
    `  UserKnownHostsFile ${known}\n  BatchMode yes\n  IdentityAgent none\n${more}`
  await fs.writeFile(config, entry('jump', jump, '') + entry('host', host, '  ProxyJump jump\n'))
  const forward = `127.0.0.1:${port}:127.0.0.1:${target.port}`
  const child = spawn('ssh', ['-F', config, '-N', '-L', forward, 'host'], { stdio: 'inherit' })
  children.push(child)
  await until(() => reaches(port), 'ssh -L')
  return port
}

async function open(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  return socket
}

async function send(socket: Socket): Promise<void> {
  for (let sent = 0; sent < total; sent += block.length) {
    if (!socket.write(block)) await once(socket, 'drain')
  }
}

/** MB/s of all that `work` moves. */
async function rate(port: number, work: (socket: Socket) => Promise<void>): Promise<number> {
  const socket = await open(port)
  const start = performance.now()
  await work(socket)
  const seconds = (performance.now() - start) / 1000
  socket.destroy()
  return total / 1024 ** 2 / seconds
}

function download(port: number): Promise<number> {
  return rate(port, async (socket) => {
    let left = total
    socket.write('d')
    await new Promise<void>((resolve) => {
      socket.on('data', (bytes) => (left -= bytes.length) <= 0 && resolve())
    })
  })
}

function upload(port: number): Promise<number> {
  return rate(port, async (socket) => {
    const taken = once(socket, 'data')
    socket.write('u')
    await send(socket)
    await taken
  })
}

/** Milliseconds of a question and its answer. */
async function latency(port: number): Promise<number> {
  const socket = await open(port)
  const ask = async () => {
    const answer = once(socket, 'data')
    socket.write('e')
    await answer
  }
  for (let n = 0; n < 50; n++) await ask()
  const start = performance.now()
  for (let n = 0; n < 500; n++) await ask()
  const milliseconds = (performance.now() - start) / 500
  socket.destroy()
  return milliseconds
}

/** Milliseconds from nothing to the first answer. */
async function connection(port: number): Promise<number> {
  const start = performance.now()
  for (let n = 0; n < 20; n++) {
    const socket = await open(port)
    const answer = once(socket, 'data')
    socket.write('e')
    await answer
    socket.destroy()
  }
  return (performance.now() - start) / 20
}
