import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { which } from 'zx'
import {
  openTunnel,
  type OpenTunnelOptions,
  type Tunnel,
  type TunnelEvent,
} from '../../tasks/open-tunnel.ts'
import { fingerprint, judge, knownKeys } from '../../tasks/open-tunnel/known-hosts.ts'
import { parseHop } from '../../tasks/open-tunnel/hops.ts'
import { needs } from '../needs.ts'
import { freePort } from '../ports.ts'
import { type SocksServer, socksServer, tcpServer } from '../socks-server.ts'
import { mariadb, microsocks, reaches, type SshServer, sshServer, until } from '../tunnel-hosts.ts'

const execute = promisify(execFile)
const file = join(import.meta.dirname as string, '..', '..', 'tasks', 'open-tunnel.ts')
const runtime = 'Deno' in globalThis ? ['run', '-A'] : []

/** A database behind an SSH host, which a jump host alone reaches, behind a SOCKS5 proxy. */
interface Intranet {
  dir: string
  echo: Awaited<ReturnType<typeof tcpServer>>
  proxy: SocksServer
  jump: SshServer
  target: SshServer
  knownHosts: string
  via: string[]
  options: OpenTunnelOptions
  events: TunnelEvent[]
  open: (more?: Partial<OpenTunnelOptions>) => Promise<Tunnel>
  run: (args: string[], env?: NodeJS.ProcessEnv) => Promise<Run>
}
interface Run {
  code: number | null
  stdout: string
  stderr: string
}

const intranet = suite<Intranet>('openTunnel')
const test = needs(intranet, 'sshd', 'ssh-keygen')
const tunnels: Tunnel[] = []

intranet.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'tunnel-'))
  context.echo = await tcpServer((socket) => socket.pipe(socket))
  context.proxy = await socksServer()
  const { echo, proxy } = context
  const target = context.target = await sshServer()
  const jump = context.jump = await sshServer({ permitOpen: `127.0.0.1:${target.port}` })
  context.knownHosts = join(context.dir, 'known_hosts')
  await fs.writeFile(
    context.knownHosts,
    [target, jump].map(({ port, hostKey }) => `[127.0.0.1]:${port} ${hostKey}\n`).join(''),
  )
  const at = (server: SshServer) =>
    `ssh://root@127.0.0.1:${server.port}?identity=${encodeURIComponent(server.identity)}`
  context.via = [`socks5://${proxy.address}`, at(jump), at(target)]
  context.events = []
  context.options = {
    to: `127.0.0.1:${echo.port}`,
    via: context.via,
    knownHosts: [context.knownHosts],
    onEvent: (event) => context.events.push(event),
  }
  context.open = async (more) => {
    const local = `${await freePort()}`
    const tunnel = await openTunnel({ ...context.options, local, ...more })
    tunnels.push(tunnel)
    return tunnel
  }
  context.run = async (args, env) => {
    const known = ['--known-hosts', context.knownHosts]
    const child = spawn(process.execPath, [...runtime, file, ...known, ...args], {
      env: { ...process.env, FORCE_COLOR: '0', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const [stdout, stderr, [code]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'close') as Promise<[number | null]>,
    ])
    return { code, stdout, stderr }
  }
})
intranet.after.each(async ({ dir, echo, proxy, jump, target }) => {
  await Promise.all(tunnels.splice(0).map((tunnel) => tunnel.close()))
  await Promise.all([echo, proxy, jump, target].map((server) => server?.close()))
  await fs.remove(dir)
})

/** Says something through a tunnel, and tells what comes back. */
async function say(port: number, words: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  try {
    socket.write(words)
    const [answer] = await once(socket, 'data')
    return String(answer)
  } finally {
    socket.destroy()
  }
}

test('goes through a SOCKS5 proxy, a jump host and an SSH host, and counts', async ({ open, proxy, jump, target }) => {
  const tunnel = await open()
  equal(tunnel.host, '127.0.0.1')
  equal(await say(tunnel.port, 'hello'), 'hello')
  await until(() => tunnel.count().connections === 0, 'the end of the connection')
  deepEqual(tunnel.count(), { connections: 0, sent: 5, received: 5 })
  deepEqual(proxy.asked, [`ipv4 127.0.0.1:${jump.port}`])
  match(await jump.log(), /Accepted publickey/)
  match(await target.log(), /Accepted publickey/)
  equal(tunnel.state(), 'open')
  await tunnel.close()
  equal(await reaches(tunnel.port), false)
  equal(tunnel.state(), 'closed')
})

test('takes any order of hops, and none', async ({ open, via, proxy, echo }) => {
  const orders = [
    [],
    [via[0] as string],
    [via[1] as string, via[2] as string],
    [via[2] as string, via[0] as string],
    [via[0] as string, `socks5://${proxy.address}`],
  ]
  for (const order of orders) {
    const tunnel = await open({ via: order })
    equal(await say(tunnel.port, 'through'), 'through', order.join())
  }
  ok(proxy.asked.includes(`ipv4 127.0.0.1:${echo.port}`))
})

test('refuses an unknown host key with its fingerprint, and takes and remembers the one that is told', async ({ open, target, knownHosts }) => {
  const before = await fs.readFile(knownHosts, 'utf8')
  const others = before.split('\n').filter((line) => !line.includes(`:${target.port} `)).join('\n')
  await fs.writeFile(knownHosts, others.trimEnd()) // without the end of its line
  const shown = (await execute('ssh-keygen', ['-lf', join(target.dir, 'host.pub')])).stdout.split(
    ' ',
  )[1] as string
  await rejects(open(), ({ message }: Error) => {
    equal(
      message,
      `Cannot open the tunnel "${
        message.split('"')[1]
      }": hop 3, ssh://root@127.0.0.1:${target.port}: ` +
        `its key ${shown} is not in ${knownHosts}. On that machine, run: ssh-keygen -lf ` +
        `/etc/ssh/ssh_host_ed25519_key.pub and only if it shows the same, run again with --trust ${shown}`,
    )
    return true
  })
  await rejects(open({ trust: [`SHA256:${'A'.repeat(43)}`] }), /is not in/)
  equal(await fs.readFile(knownHosts, 'utf8'), others.trimEnd())
  equal(await say((await open({ trust: [shown] })).port, 'x'), 'x')
  equal(
    await fs.readFile(knownHosts, 'utf8'),
    `${others.trimEnd()}\n[127.0.0.1]:${target.port} ${target.hostKey}\n`,
  )
  equal(await say((await open()).port, 'x'), 'x')
})

test('refuses a host key that changed or is revoked, trusted or not', async ({ open, target, jump, knownHosts }) => {
  const known = await fs.readFile(knownHosts, 'utf8')
  const shown = fingerprint(Buffer.from(target.hostKey.split(' ')[1] as string, 'base64'))
  await fs.writeFile(knownHosts, known.replace(target.hostKey, jump.hostKey))
  await rejects(open({ trust: [shown] }), ({ message }: Error) => {
    match(message, /hop 3, .*: its key has CHANGED to SHA256:\S+, .*known_hosts:1 knows another\./)
    ok(message.endsWith(`ssh-keygen -R "[127.0.0.1]:${target.port}" -f "${knownHosts}"`), message)
    return true
  })
  await fs.writeFile(knownHosts, `${known}@revoked * ${target.hostKey}\n`)
  await rejects(open({ trust: [shown] }), /hop 3, .* is revoked in .*known_hosts:3\. Do not/)
})

test('names the hop of each failure', async ({ open, via, proxy, jump, target, options }) => {
  const [socks = '', first = '', second = ''] = via
  const stranger = `ssh://root@127.0.0.1:${jump.port}?identity=${
    encodeURIComponent(target.identity)
  }`
  await rejects(
    open({ via: [socks, stranger] }),
    /: hop 2, ssh:\/\/root@127\.0\.0\.1:\d+: it lets "root" in by none of: the key "/,
  )
  // the jump host lets nobody on to the database
  const tunnel = await open({ via: [socks, first] })
  await rejects(
    tunnel.check(),
    /: hop 2, .*: it does not connect to 127\.0\.0\.1:\d+: its rules do not allow it/,
  )
  await rejects(
    (await open({ to: '127.0.0.1:1' })).check(),
    /: hop 3, .*: it does not connect to 127\.0\.0\.1:1: Connection refused$/,
  )
  const web = await tcpServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
  await rejects(open({ via: [`ssh://root@127.0.0.1:${web.port}`] }), /: hop 1, ssh:\/\/root@127/)
  await rejects(
    open({ via: [`socks5://127.0.0.1:${web.port}`, first] }),
    /: hop 1, .*: what listens there does not speak SOCKS5/,
  )
  await web.close()
  await target.stop()
  await rejects(open(), /: hop 2, .* does not connect to 127\.0\.0\.1:\d+: Connection refused$/)
  await jump.stop()
  await rejects(open(), /: hop 1, .* does not connect to 127\.0\.0\.1:\d+: nothing listens there$/)
  await proxy.close()
  await rejects(open(), /: hop 1, socks5:.*: nothing listens there \(ECONNREFUSED\)/)
  const silent = await socksServer({ silent: true })
  await rejects(
    open({ via: [`socks5://${silent.address}`, first, second], timeout: 1 }),
    /: hop 1, .*: no answer within 1 s$/,
  )
  await silent.close()
  const [taken] = await Promise.all([tcpServer(() => {})])
  await rejects(
    open({ via: [], local: `${taken.port}` }),
    /: the local port 127\.0\.0\.1:\d+: the port is taken \(EADDRINUSE\)\. Run again/,
  )
  await taken.close()
  await rejects(open({ local: '0.0.0.0:0' }), /^Error: Cannot listen on 0\.0\.0\.0:0: other/)
  equal(options.via, via)
})

test('opens the way again when the jump host was restarted, and breaks what was under way at once', async ({ open, jump, events }) => {
  const tunnel = await open()
  const socket = connect(tunnel.port, '127.0.0.1')
  socket.write('query')
  await once(socket, 'data')
  const broken = new Promise((resolve) => socket.once('close', resolve))
  socket.on('error', () => {})
  await jump.stop()
  await broken
  await until(() => tunnel.state() === 'lost', 'the loss')
  // who comes now waits for the way
  const waiting = say(tunnel.port, 'again')
  await jump.start()
  equal(await waiting, 'again')
  equal(tunnel.state(), 'open')
  const told = events.map(({ event }) => event)
  deepEqual(told.filter((event) => event !== 'retry'), ['open', 'lost', 'open'])
  match(events.find(({ event }) => event === 'lost')?.detail ?? '', /^hop [23], ssh:/)
})

test('keeps nothing of the hops before one that was lost', async ({ open, proxy, target }) => {
  const tunnel = await open()
  const { size } = proxy.sockets
  for (let n = 0; n < 2; n++) {
    await target.stop()
    await until(() => tunnel.state() === 'lost', 'the loss')
    await target.start()
    await until(() => tunnel.state() === 'open', 'another way')
  }
  await until(() => proxy.sockets.size === size, 'the end of the ways that were lost')
  await tunnel.close()
  await until(() => proxy.sockets.size === 0, 'the end of all')
})

test('breaks a program’s connection where a hop is lost, and ends it where its server did', async ({ open, jump, target, echo }) => {
  const tunnel = await open()
  const how = async (lose: () => unknown) => {
    const socket = connect({ port: tunnel.port, host: '127.0.0.1', allowHalfOpen: true })
    const heard: string[] = []
    socket.on('end', () => heard.push('end')).on('error', () => heard.push('broken'))
    const over = new Promise((resolve) => socket.once('end', resolve).once('close', resolve))
    socket.write('query')
    await once(socket, 'data')
    await lose()
    await over
    socket.destroy()
    return heard
  }
  deepEqual(await how(() => echo.sockets.forEach((far) => far.end())), ['end'])
  for (const hop of [target, jump]) {
    deepEqual(await how(() => hop.stop()), ['broken'])
    await hop.start()
    await until(() => tunnel.state() === 'open', 'another way')
  }
})

test('lets who comes while the way is lost wait, and not for ever', async ({ open, jump, events }) => {
  const tunnel = await open({ timeout: 1 })
  await jump.stop()
  await until(() => tunnel.state() === 'lost', 'the loss')
  await rejects(say(tunnel.port, 'query'), /ECONNRESET|reset/)
  const failed = events.find(({ event }) => event === 'failed')
  equal(failed?.detail, 'the way is not open again within 1 s')
})

test('closes at once while it opens, for the first time and anew', async ({ open, via, target, knownHosts, events }) => {
  const silent = await socksServer({ silent: true })
  const halfWay = [`socks5://${silent.address}`, via[2] as string]
  const giveUp = new AbortController()
  const opening = open({ via: halfWay, timeout: 600, signal: giveUp.signal })
  await until(() => silent.sockets.size > 0, 'the first connection')
  giveUp.abort()
  await rejects(opening, /^Error: Cannot open the tunnel/)
  await silent.close()
  let speaks = true
  const relay = await tcpServer((socket) => {
    if (!speaks) return void socket.resume().once('end', () => socket.destroy())
    const far = connect(target.port, '127.0.0.1').on('error', () => {})
    socket.pipe(far).pipe(socket)
    socket.once('close', () => far.destroy())
  })
  await fs.appendFile(knownHosts, `[127.0.0.1]:${relay.port} ${target.hostKey}\n`)
  const identity = encodeURIComponent(target.identity)
  const hop = `ssh://root@127.0.0.1:${relay.port}?identity=${identity}`
  const tunnel = await open({ via: [hop], timeout: 600 })
  speaks = false
  for (const socket of relay.sockets) socket.destroy()
  await until(() => tunnel.state() === 'lost', 'the loss')
  await until(() => relay.sockets.size > 0, 'another try')
  await tunnel.close()
  await until(() => relay.sockets.size === 0, 'the end of the try')
  equal(tunnel.state(), 'closed')
  deepEqual(events.map(({ event }) => event), ['open', 'lost', 'closed'])
  await relay.close()
})

needs(intranet, 'sshd', 'ssh')(
  'leaves no ssh behind where it is closed while that connects',
  async ({ open, via, echo }) => {
    const silent = await tcpServer(() => {})
    const giveUp = new AbortController()
    const hop = `ssh://root@127.0.0.1:${silent.port}`
    const started = async () =>
      (await execute('ps', ['-A', '-o', 'args='])).stdout.includes(`:127.0.0.1:${echo.port} --`)
    const opening = open({ engine: 'ssh', via: [hop], timeout: 600, signal: giveUp.signal })
    await until(started, 'ssh')
    giveUp.abort()
    await rejects(opening, /^Error: Cannot open the tunnel/)
    await until(async () => !await started(), 'its end')
    await silent.close()
    equal(via.length, 3)
  },
)

test('guesses no password a second time', async ({ open, via, target }) => {
  process.env.TUNNEL_GUESS = 'guess'
  const tunnel = await open({ via: [`${via[2]}&password=env:TUNNEL_GUESS`] })
  await target.stop()
  await fs.writeFile(join(target.dir, 'user.pub'), '')
  await target.start()
  await rejects(tunnel.ended, /^FatalError: .*: hop 1, .*: it lets "root" in by none of: /)
})

test('asks by TCP whether a proxy is still there, as often as it is told', async ({ open, via, proxy }) => {
  if (process.platform !== 'linux') return // where the system tells of its timers
  const tunnel = await open({ via: [via[0] as string], keepalive: 5 })
  const socket = connect(tunnel.port, '127.0.0.1')
  socket.write('query')
  await once(socket, 'data')
  const to = `:${proxy.port.toString(16).toUpperCase().padStart(4, '0')}`
  const [line = ''] = (await fs.readFile('/proc/net/tcp', 'utf8')).split('\n')
    .filter((line) => line.trim().split(/\s+/)[2]?.endsWith(to))
  // tr 02 is the timer of signs of life, and when it ends, in hundredths of a second
  const [, timer, when = ''] = /\b(\d\d):([\dA-F]{8}) /.exec(line.slice(line.indexOf(to) + 5)) ??
    []
  socket.destroy()
  deepEqual([timer, parseInt(when, 16) <= 500], ['02', true], line)
})

test('reads keys and speaks ciphers that OpenSSH has, or says what does', async ({ open, via, dir, jump }) => {
  const modern = await sshServer({ options: ['Ciphers chacha20-poly1305@openssh.com'] })
  const old = await sshServer({ options: ['Ciphers aes256-cbc'] })
  const at = ({ port, identity }: SshServer) =>
    `ssh://root@127.0.0.1:${port}?identity=${encodeURIComponent(identity)}`
  const known = join(dir, 'others')
  await fs.writeFile(
    known,
    [modern, old, jump].map(({ port, hostKey }) => `[127.0.0.1]:${port} ${hostKey}\n`).join(''),
  )
  const knownHosts = [known]
  const tunnel = await open({ knownHosts, via: [at(modern)] })
  equal(await say(tunnel.port, 'hello'), 'hello')
  await rejects(
    open({ knownHosts, via: [at(old)] }),
    /: hop 1, .*no matching C->S cipher\. Run again with --engine ssh$/,
  )
  const locked = join(dir, 'chacha')
  await fs.copy(jump.identity, locked)
  await fs.chmod(locked, 0o600)
  await execute('ssh-keygen', [
    ...['-q', '-p', '-Z', 'chacha20-poly1305@openssh.com', '-P', '', '-N', 'open', '-f', locked],
  ])
  process.env.TUNNEL_CHACHA = 'open'
  const hop = `ssh://root@127.0.0.1:${jump.port}?identity=${encodeURIComponent(locked)}`
  await rejects(
    open({ knownHosts, via: [`${hop}&passphrase=env:TUNNEL_CHACHA`] }),
    ({ message }: Error) => {
      ok(!message.includes('passphrase is wrong'), message)
      match(message, /chacha" cannot be used: .+\. Run: ssh-add ".+chacha", or run again with/)
      return true
    },
  )
  await Promise.all([modern, old].map((server) => server.close()))
  equal(via.length, 3)
})

test('refuses times that are none', async ({ open }) => {
  for (const wrong of [{ timeout: Number.NaN }, { keepalive: -1 }, { keepalive: Infinity }]) {
    await rejects(open(wrong), /^RangeError: .*: (timeout|keepalive) is (NaN|-1|Infinity), and is/)
  }
})

test('notices a link whose other end has vanished, and opens another', async ({ open, proxy }) => {
  const tunnel = await open({ keepalive: 0.2 })
  // on a busy machine it takes a slow answer for a vanished one, and says so to its programs
  const says = (words: string) => async () =>
    await say(tunnel.port, words).catch(() => undefined) === words
  await until(says('before'), 'an answer')
  proxy.freeze(true)
  await until(() => tunnel.state() === 'lost', 'the loss')
  await until(says('after'), 'an answer by another way')
})

test('gives up when the host has another key after a loss', async ({ open, jump }) => {
  const tunnel = await open()
  await jump.stop()
  for (const name of ['host', 'host.pub']) await fs.remove(join(jump.dir, name))
  await execute('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(jump.dir, 'host')])
  await jump.start()
  await rejects(tunnel.ended, /^FatalError: .*hop 2, .*: its key has CHANGED/)
  equal(tunnel.state(), 'closed')
  equal(await reaches(tunnel.port), false)
})

test('breaks a connection whose server died, and keeps the tunnel', async ({ open, echo }) => {
  const tunnel = await open()
  const socket = connect(tunnel.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('query')
  await once(socket, 'data')
  const broken = new Promise((resolve) => socket.once('close', resolve))
  for (const far of echo.sockets) far.resetAndDestroy()
  await broken
  equal(await say(tunnel.port, 'next'), 'next')
  equal(tunnel.state(), 'open')
})

test('signs in by an agent, and by a key with a passphrase', async ({ open, jump, via, dir }) => {
  const [socks = ''] = via
  const locked = join(dir, 'locked')
  await fs.copy(jump.identity, locked)
  await fs.chmod(locked, 0o600)
  await execute('ssh-keygen', ['-q', '-p', '-P', '', '-N', 'open “it”', '-f', locked])
  const hop = `ssh://root@127.0.0.1:${jump.port}?identity=${encodeURIComponent(locked)}`
  process.env.TUNNEL_TEST = 'open “it”'
  const tunnel = await open({ via: [socks, `${hop}&passphrase=env:TUNNEL_TEST`] })
  equal(tunnel.state(), 'open')
  process.env.TUNNEL_WRONG = 'wrong'
  await rejects(
    open({ via: [socks, `${hop}&passphrase=env:TUNNEL_WRONG`] }),
    /: hop 2, .*: the key ".*locked" cannot be used: the passphrase is wrong$/,
  )
  const socket = join(dir, 'agent')
  const agent = spawn('ssh-agent', ['-D', '-a', socket], { stdio: 'ignore' })
  const before = process.env.SSH_AUTH_SOCK
  try {
    process.env.SSH_AUTH_SOCK = socket
    // its socket is there before it listens
    const added = () => execute('ssh-add', ['-q', jump.identity]).then(() => true, () => false)
    await until(added, 'the agent')
    const tunnel = await open({ via: [socks, `ssh://root@127.0.0.1:${jump.port}`] })
    equal(tunnel.state(), 'open')
  } finally {
    if (before === undefined) delete process.env.SSH_AUTH_SOCK
    else process.env.SSH_AUTH_SOCK = before
    agent.kill()
    await once(agent, 'exit')
  }
})

test('runs a command with the port, ends with it, and with its exit code', async ({ run, via, echo }) => {
  const hops = via.flatMap((hop) => ['--via', hop])
  const to = ['--to', `127.0.0.1:${echo.port}`]
  const script =
    "require('net').connect(process.env.TUNNEL_PORT, process.env.TUNNEL_HOST, function " +
    "() { this.end(process.argv[1]) }).on('data', (d) => { console.log(String(d)); process.exit(7) })"
  const node = 'Deno' in globalThis ? 'node' : process.execPath
  const ran = await run([...to, ...hops, '--exec', node, '-e', script, '{port} --json'])
  match(ran.stdout, /^\d+ --json\n$/)
  equal(ran.stderr, '')
  equal(ran.code, 7)
  const absent = await run([...to, ...hops, '--exec', 'no-such-program'])
  match(absent.stderr, /^Cannot run "no-such-program": .*ENOENT\. Check that it is on PATH\n$/)
  equal(absent.code, 1)
})

test('opens all tunnels of a file, tells of each with --check, and refuses what it cannot read', async ({ run, dir, via, echo }) => {
  const config = join(dir, 'tunnels.json')
  const to = `127.0.0.1:${echo.port}`
  await fs.writeJson(config, {
    tunnels: [{ name: 'db', to, via: via.slice(0, 1) }, { name: 'other', to, via }],
  })
  const { code, stdout, stderr } = await run(['--config', config, '--check'])
  equal(stderr, '')
  equal(code, 0)
  const { tunnels } = JSON.parse(stdout)
  deepEqual(tunnels.map(({ name }: { name: string }) => name), ['db', 'other'])
  for (const wrong of ['{', '{}', '{"tunnels":[{"to":1}]}', '{"tunnels":[{"to":"a:1","x":1}]}']) {
    await fs.writeFile(config, wrong)
    const refused = await run(['--config', config, '--check'])
    equal(refused.code, 1, wrong)
    match(refused.stderr, /^Cannot read the tunnels of ".*": .*\. Example: \{ "tunnels"/)
  }
})

test('tells what happens as JSON, and closes all on Ctrl-C', async ({ via, echo, knownHosts }) => {
  const hops = via.flatMap((hop) => ['--via', hop])
  const child = spawn(process.execPath, [
    ...[...runtime, file, '--known-hosts', knownHosts, '--to', `127.0.0.1:${echo.port}`],
    ...[...hops, '--json', '--local', `${await freePort()}`],
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  const closed = once(child, 'close')
  let said = ''
  child.stdout.on('data', (part) => said += part)
  await until(() => said.includes('\n'), 'the first event')
  const { event, port } = JSON.parse(said) as TunnelEvent
  equal(event, 'open')
  equal(await say(port, 'hello'), 'hello')
  process.kill(child.pid as number, 'SIGINT') // Deno's own kill leaves no exit code
  deepEqual(await closed, [0, null])
  equal(JSON.parse(said.trim().split('\n')[1] as string).event, 'closed')
  equal(await reaches(port), false)
})

needs(intranet, 'sshd', 'ssh')(
  'goes the same way by the system’s ssh, and names the hop of each failure',
  async ({ open, jump, target, via, events, dir, knownHosts }) => {
    const tunnel = await open({ engine: 'ssh' })
    equal(await say(tunnel.port, 'hello'), 'hello')
    await jump.stop()
    await until(() => tunnel.state() === 'lost', 'the loss')
    await jump.start()
    const again = await say(tunnel.port, 'again').catch((error) => {
      throw new Error(`${error.message} after ${JSON.stringify(events)}`)
    })
    equal(again, 'again')
    deepEqual(events.map(({ event }) => event).filter((event) => event !== 'retry'), [
      'open',
      'lost',
      'open',
    ])
    match(events[1]?.detail ?? '', /^hop 2, .*: ssh ended: ./)
    await target.stop()
    await until(() => tunnel.state() === 'lost', 'the second loss')
    await target.start()
    const [, second] = events.filter(({ event }) => event === 'lost')
    match(second?.detail ?? '', /^hop 3, .*: ssh ended: ./)
    await rejects(
      (await open({ engine: 'ssh', to: '127.0.0.1:1' })).check(),
      /: hop 3, .*: it does not connect to 127\.0\.0\.1:1: Connection refused$/,
    )
    const known = await fs.readFile(knownHosts, 'utf8')
    const others = join(dir, 'others')
    await fs.writeFile(others, known.replace(jump.hostKey, target.hostKey))
    const shown = fingerprint(Buffer.from(jump.hostKey.split(' ')[1] as string, 'base64'))
    await rejects(open({ engine: 'ssh', knownHosts: [others] }), ({ message }: Error) => {
      match(message, /: hop 2, .*Host key verification failed\. It showed SHA256:\S+\. Run again/)
      ok(message.includes(shown), message)
      return true
    })
    const [socks = '', first = '', last = ''] = via
    for (const secret of ['password', 'passphrase']) {
      await rejects(
        open({ engine: 'ssh', via: [socks, `${first}&${secret}=env:NAME`, last] }),
        /: hop 2, .*takes no password or passphrase from here\. .*ssh-add, or run again with/,
      )
    }
    await rejects(open({ engine: 'ssh', trust: [shown] }), /: hop 3, .*--engine embedded --trust/)
    await fs.writeFile(others, known.replace(target.hostKey, jump.hostKey))
    await rejects(open({ engine: 'ssh', knownHosts: [others] }), /: hop 3, .*Host key verif/)
    await target.stop()
    await rejects(open({ engine: 'ssh' }), /hop 2, .*: ssh ended: .*Connection refused/)
    await jump.stop()
    await rejects(open({ engine: 'ssh' }), /hop 1, socks5:.*nothing listens there/)
  },
)

needs(intranet, 'sshd', 'ssh')(
  'waits until the system’s ssh listens, on another port where its own is taken meanwhile',
  async ({ open, via, dir }) => {
    const real = await which('ssh')
    const ssh = join(dir, 'bin', 'ssh')
    // OpenSSH says that it listens before it does, and a busy machine lets it wait in between
    await fs.outputFile(
      ssh,
      `#!/usr/bin/env node
      const { spawn, spawnSync } = require('child_process')
      const fs = require('fs')
      const args = process.argv.slice(2)
      const port = args[args.indexOf('-L') + 1].split(':')[1]
      fs.appendFileSync(${JSON.stringify(join(dir, 'ports'))}, port + '\\n')
      const run = () => spawnSync(${JSON.stringify(real)}, args, { stdio: 'inherit' }).status
      if (fs.existsSync(${JSON.stringify(join(dir, 'second'))})) {
        fs.writeSync(2, 'debug1: Local forwarding listening on 127.0.0.1 port ' + port + '.\\r\\n')
        setTimeout(() => {
          const child = spawn(${JSON.stringify(real)}, args, { stdio: 'inherit' })
          child.on('exit', (code) => process.exit(code ?? 1))
          process.on('SIGTERM', () => child.kill())
        }, 500)
      } else {
        fs.writeFileSync(${JSON.stringify(join(dir, 'second'))}, '')
        require('net').createServer().listen(port, '127.0.0.1', () => process.exit(run()))
      }
`,
    )
    await fs.chmod(ssh, 0o755)
    const before = process.env.PATH
    process.env.PATH = `${join(dir, 'bin')}${delimiter}${before}`
    try {
      const tunnel = await open({ engine: 'ssh', via: [via[2] as string] })
      const all = ['one', 'two', 'three'].map((words) => say(tunnel.port, words))
      deepEqual(await Promise.all(all), ['one', 'two', 'three'])
      const ports = (await fs.readFile(join(dir, 'ports'), 'utf8')).trim().split('\n')
      equal(new Set(ports).size, 2)
    } finally {
      process.env.PATH = before
    }
  },
)

needs(intranet, 'sshd', 'mariadbd', 'mariadb', 'microsocks')(
  'asks a MariaDB through a SOCKS5 proxy with a password, a jump host and an SSH host',
  async ({ run, via }) => {
    const db = await mariadb()
    const guarded = await microsocks('-u', 'me', '-P', 'changeme')
    try {
      const hops = [`socks5://me@${guarded.address}?password=env:PROXY_PASSWORD`, ...via.slice(1)]
      const query = async (sql: string) =>
        await run([
          ...['--to', `127.0.0.1:${db.port}`, ...hops.flatMap((hop) => ['--via', hop]), '--exec'],
          ...['mariadb', '--no-defaults', '--skip-ssl', '-h127.0.0.1', '-P{port}', '-uapp', '-N'],
          ...['-e', sql],
        ], { PROXY_PASSWORD: 'changeme', MYSQL_PWD: 'changeme' })
      const { code, stdout, stderr } = await query("SELECT 6 * 7, REPEAT('x', 3)")
      equal(stderr, '')
      equal(stdout, '42\txxx\n')
      equal(code, 0)
      // killed in the middle of a query, the client is told and the tunnel ends with it
      const killed = query('SELECT SLEEP(600)')
      await until(async () => {
        const { stdout } = await query(
          'SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE "SELECT SLEEP%"',
        )
        return stdout === '1\n'
      }, 'the query')
      await db.close()
      const { code: lost, stderr: told } = await killed
      equal(lost, 1)
      match(told, /ERROR 2013|Lost connection/)
    } finally {
      await Promise.all([db.close(), guarded.close()])
    }
  },
)

intranet.run()

const words = suite('words of a tunnel')

words('takes hops of two kinds, and none that could be something else', () => {
  const { kind, host, port, user, password } = parseHop('socks5://me@proxy?password=env:A_B', 0)
  deepEqual([kind, host, port, user, password], ['socks5', 'proxy', 1080, 'me', 'env:A_B'])
  equal(parseHop('ssh://[fe80::1%eth0]:2222', 0).host, 'fe80::1%eth0')
  equal(parseHop('ssh://DOMAIN%5Cme@host', 0).user, 'DOMAIN\\me')
  const hostile = [
    ...['', 'host', 'http://a:1', 'ssh://', 'ssh://-oProxyCommand=x', 'ssh://-l@host', 'ssh://a b'],
    ...['ssh://a:99999', 'ssh://a\nb', 'ssh://host?x=1', 'ssh://host?password=changeme'],
    ...['ssh://me:changeme@host', 'ssh://%0a@host', 'ssh://%@host', 'ssh://a"b', 'ssh://$(x)/y'],
    ...['ssh://me:a/changeme@host', 'socks5://me:a#changeme@host', 'ssh://me:a@changeme@host'],
  ]
  for (const text of hostile) {
    let message = ''
    try {
      parseHop(text, 1)
    } catch (error) {
      message = (error as Error).message
    }
    match(message, /^Cannot take "/, text)
    ok(!/changeme@|:changeme/.test(message), message)
  }
})

needs(words, 'ssh-keygen')(
  'reads known_hosts as OpenSSH does: hashes, patterns, ports, exceptions',
  async () => {
    const dir = await fs.mkdtemp(join(tmpdir(), 'known-'))
    try {
      const keys: string[] = []
      for (const name of ['a', 'b']) {
        await execute('ssh-keygen', [
          '-q',
          '-t',
          'ed25519',
          '-N',
          '',
          '-C',
          '',
          '-f',
          join(dir, name),
        ])
        keys.push((await fs.readFile(join(dir, `${name}.pub`), 'utf8')).trim())
      }
      const [a = '', b = ''] = keys
      const path = join(dir, 'known_hosts')
      await fs.writeFile(path, `DB.Intranet,10.0.0.1 ${a}\n[db.intranet]:2222 ${b}\n`)
      await execute('ssh-keygen', ['-q', '-H', '-f', path])
      match(await fs.readFile(path, 'utf8'), /^\|1\|/)
      await fs.appendFile(
        path,
        [
          '',
          '# nothing',
          `*.lab,!bad.lab,h?st ${a} a comment`,
          `@revoked evil ${a}`,
          `@cert-authority *.ca ${a}`,
          `@unknown x ${a}`,
          'broken ssh-ed25519 AAAA',
          `${'*a'.repeat(2000)} ${a}`,
          '',
        ].join('\r\n'),
      )
      const verdict = async (host: string, port: number, key: string) => {
        const known = await knownKeys([join(dir, 'absent'), path], host, port)
        return judge(known, Buffer.from(key.split(' ')[1] as string, 'base64')).verdict
      }
      equal(await verdict('db.intranet', 22, a), 'known')
      equal(await verdict('DB.intranet', 2222, b), 'known')
      equal(await verdict('db.intranet', 2222, a), 'changed')
      equal(await verdict('10.0.0.1', 22, b), 'changed')
      equal(await verdict('db', 22, a), 'unknown')
      equal(await verdict('x.lab', 22, a), 'known')
      equal(await verdict('bad.lab', 22, a), 'unknown')
      equal(await verdict('host', 22, a), 'known')
      equal(await verdict('evil', 22, a), 'revoked')
      equal(await verdict('x.ca', 22, a), 'unknown')
      equal(await verdict('x', 22, a), 'unknown')
      equal(await verdict('broken', 22, a), 'unknown')
      equal(await verdict('a'.repeat(250), 22, a), 'unknown')
    } finally {
      await fs.remove(dir)
    }
  },
)

words.run()
