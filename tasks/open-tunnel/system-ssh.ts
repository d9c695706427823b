/** The way through the system's own ssh, whose configuration, agent and known hosts then hold. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { type Endpoint, type Hop, show, type Way, type WayOptions } from './hops.ts'

/**
 * Starts `ssh -N -L`, with the hops in a configuration of its own that includes the user's. ssh tells by
 * `-v` when it is ready: those messages are of its program, and no language changes them.
 */
export async function systemSsh(
  hops: readonly Hop[],
  target: Endpoint,
  { timeout, keepalive, identity, knownHosts }: WayOptions,
): Promise<Way> {
  const last = hops.at(-1)
  const socks = hops[0]?.kind === 'socks5' ? hops[0] : undefined
  const chain = socks ? hops.slice(1) : hops
  if (last?.kind !== 'ssh' || chain.some(({ kind }) => kind !== 'ssh')) {
    throw new Error(
      `${
        last?.text ?? 'no hop'
      }: the system's ssh takes one SOCKS5 proxy first and SSH hosts after it. ` +
        'Run again with --engine embedded',
    )
  }
  const port = await freePort()
  const dir = await mkdtemp(join(tmpdir(), 'open-tunnel-'))
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
    const entries = chain.flatMap((hop, index) => [
      `Host ${names[index]}`,
      `  HostName ${hop.host}`,
      `  Port ${hop.port}`,
      ...(hop.user ? [`  User ${quoted(hop.user)}`] : []),
      ...(hop.identity ? [`  IdentityFile ${quoted(hop.identity)}`] : []),
      ...(index > 0
        // ProxyJump hands a path with a space on as two
        ? [`  ProxyCommand ssh -F ${quoted(config)} -W [%h]:%p ${names[index - 1]}`]
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
      ...['-v', '-F', config, '-N', '-L', forward, '--', names.at(-1) as string],
    ], { stdio: ['ignore', 'ignore', 'pipe'] })
    let words = ''
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
        await rm(dir, { recursive: true, force: true })
        const told = words.split(/\r?\n/).filter((line) =>
          line && !/^debug\d:|^OpenSSH_/.test(line)
        )
        resolve(`${last.text}: ssh ended: ${told.slice(-4).join(' ') || 'it does not say why'}`)
      })
    })
    const ready = new Promise<void>((resolve) => {
      child.stderr.setEncoding('utf8').on('data', (part: string) => {
        words = (words + part).slice(-20_000)
        // its jump hosts' own ssh speak here too
        if (words.includes(`Local forwarding listening on 127.0.0.1 port ${port}`)) resolve()
      })
    })
    const end = () => {
      if (!dead) child.kill()
    }
    const first = await Promise.race([ready, lost])
    if (first !== undefined) throw new Error(first)
    return {
      dial: async () => {
        const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true, noDelay: true })
        await once(socket, 'connect')
        return socket
      },
      lost,
      close: end,
    }
  } catch (error) {
    await rm(dir, { recursive: true, force: true })
    throw error
  }
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
