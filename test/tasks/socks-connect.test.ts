import { equal, match, ok, rejects } from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import process from 'node:process'
import { text } from 'node:stream/consumers'
import { suite } from 'uvu'
import { socksConnect } from '../../tasks/socks-connect.ts'
import { Secret } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import * as servers from '../socks-server.ts'
import { microsocks } from '../tunnel-hosts.ts'

const test = suite('socksConnect')
const real = needs(test, 'microsocks')

// what a test opened ends with it, however it ends
const open: { close: () => Promise<void> }[] = []
const keep = async <T extends { close: () => Promise<void> }>(opening: Promise<T>) => {
  const opened = await opening
  open.push(opened)
  return opened
}
const socksServer: typeof servers.socksServer = (options) => keep(servers.socksServer(options))
const tcpServer: typeof servers.tcpServer = (serve) => keep(servers.tcpServer(serve))
test.after.each(async () => {
  await Promise.all(open.splice(0).map(({ close }) => close()))
})

const file = join(import.meta.dirname as string, '..', '..', 'tasks', 'socks-connect.ts')
const runtime = 'Deno' in globalThis ? ['run', '-A'] : []

/** Runs the command with `input`; without one, or with `open`, its standard input stays open. */
async function run(
  args: string[],
  input?: string,
  env: NodeJS.ProcessEnv = {},
  open = input === undefined,
) {
  const child = spawn(process.execPath, [...runtime, file, ...args], {
    env: { ...process.env, ...env },
  })
  if (input !== undefined) child.stdin.write(input)
  if (!open) child.stdin.end()
  const [stdout, stderr, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close') as Promise<[number]>,
  ])
  return { code, stdout, stderr }
}

/** A server that answers when its client has said a line, or all. */
const echo = () =>
  tcpServer((socket) => {
    let said = ''
    const answer = () => socket.end(`heard ${said.trimEnd().length}: ${said.slice(0, 5)}`)
    socket.setEncoding('latin1').once('end', answer).on('data', (part) => {
      said += part
      if (said.includes('\n')) socket.off('end', answer), answer()
    })
  })

// the servers of Deno end both ways when one has ended
const halfOpen = 'Deno' in globalThis ? () => {} : test

halfOpen('passes the end of input on, and still reads the whole answer', async () => {
  const server = await echo()
  const proxy = await socksServer()
  const input = 'x'.repeat(3_000_000)
  const { code, stdout, stderr } = await run(
    ['--proxy', proxy.address, '127.0.0.1', `${server.port}`],
    input,
  )
  equal(stderr, '')
  equal(stdout, `heard 3000000: ${'x'.repeat(5)}`)
  equal(code, 0)
})

test('ends when the other side ends, with all that it said, while input stays open', async () => {
  const server = await tcpServer((socket) => socket.end('y'.repeat(2_000_000)))
  const proxy = await socksServer()
  const { code, stdout } = await run(['--proxy', proxy.address, '127.0.0.1', `${server.port}`])
  equal(stdout.length, 2_000_000)
  equal(code, 0)
})

test('lets the proxy look names up, and hands addresses over as they are', async () => {
  const server = await echo()
  const proxy = await socksServer()
  for (const host of ['db.intranet', 'bücher.example', '127.0.0.1']) {
    const socket = await socksConnect({ host, port: server.port, proxy: proxy.address })
    socket.destroy()
  }
  equal(
    proxy.asked.map((line) => line.replace(/:\d+$/, '')).join(),
    'name db.intranet,name xn--bcher-kva.example,ipv4 127.0.0.1',
  )
})

test('hands over what a server says at once, before anybody asks', async () => {
  const server = await tcpServer((socket) => socket.write('5.5.5-MariaDB'))
  const proxy = await socksServer()
  for (let n = 0; n < 20; n++) {
    const socket = await socksConnect({ host: 'db', port: server.port, proxy: proxy.address })
    let said = ''
    await new Promise<void>((resolve) => {
      socket.on('data', (part) => (said += part).length === 13 && resolve()).resume()
    })
    equal(said, '5.5.5-MariaDB')
    socket.destroy()
  }
})

test('takes the password from the environment alone', async () => {
  const server = await echo()
  const proxy = await socksServer({ user: 'me', password: 'changeme “$(x)' })
  const args = ['--proxy', proxy.address, '127.0.0.1', `${server.port}`, '--user', 'me']
  const right = await run([...args, '--password', 'env:PROXY_PASSWORD'], 'hello\n', {
    PROXY_PASSWORD: 'changeme “$(x)',
  })
  equal(right.stdout, 'heard 5: hello')
  const wrong = await run([...args, '--password', 'env:PROXY_PASSWORD'], '', {
    PROXY_PASSWORD: 'wrong',
  })
  equal(wrong.code, 1)
  equal(
    wrong.stderr,
    `Cannot connect to 127.0.0.1:${server.port} through the SOCKS5 proxy ${proxy.address}: user or ` +
      'password is wrong. Run again with --user NAME --password env:NAME\n',
  )
  const typed = await run([...args, '--password', 'changeme'], '')
  match(typed.stderr, /^Cannot take the password from the command line, which others see:/)
  ok(!typed.stderr.includes('changeme'))
  const absent = await run([...args, '--password', 'env:NO_SUCH'], '')
  match(absent.stderr, /no variable "NO_SUCH"/)
  const none = await run(['--proxy', proxy.address, '127.0.0.1', `${server.port}`], '')
  match(none.stderr, /it wants a user and a password\. Run again with --user/)
  await rejects(
    socksConnect({ host: 'a', port: 1, proxy: 'socks5://me:changeme@127.0.0.1' }),
    /^TypeError: Cannot take the password of the proxy from its address/,
  )
  // what is no address at all has one just the same
  for (const password of ['xyzzy#plugh', 'xyzzy/plugh', 'xyzzy?@plugh', ':xyzzy#']) {
    const address = `socks5://me:${password}@127.0.0.1`
    await rejects(
      socksConnect({ host: 'a', port: 1, proxy: address }),
      /^TypeError: Cannot use the proxy "socks5:\/\/me:\.\.\.@127\.0\.0\.1": it is not HOST:PORT/,
    )
    const asked = await run(['--proxy', address, 'a', '1', '--password', 'env:NO_SUCH'], '')
    ok(!/xyzzy|plugh/.test(asked.stderr), asked.stderr)
  }
})

test('tells refused, not allowed, unreachable, silent, gone and not SOCKS5 apart', async () => {
  const expected: [number, RegExp][] = [
    [1, /the proxy failed to connect$/],
    [2, /the proxy's rules do not allow it\. Ask/],
    [3, /no way to its network$/],
    [4, /cannot reach it, or does not know its name$/],
    [5, /nothing listens there$/],
    [8, /does not take this kind of address/],
    [99, /^Cannot connect to db:22 through the SOCKS5 proxy 127\.0\.0\.1:\d+: .+/],
  ]
  for (const [reply, error] of expected) {
    const proxy = await socksServer({ reply })
    await rejects(
      socksConnect({ host: 'db', port: 22, proxy: proxy.address }),
      ({ message }: Error) => error.test(message),
    )
    await proxy.close()
  }
  const silent = await socksServer({ silent: true })
  await rejects(
    socksConnect({ host: 'db', port: 22, proxy: silent.address, timeout: 1 }),
    /no answer within 1 s$/,
  )
  await silent.close()
  await rejects(
    socksConnect({ host: 'db', port: 22, proxy: silent.address }),
    /Cannot reach the SOCKS5 proxy 127\.0\.0\.1:\d+: nothing listens there\. Start the proxy/,
  )
  const web = await tcpServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
  const proxy = `127.0.0.1:${web.port}`
  await rejects(
    socksConnect({ host: 'db', port: 22, proxy }),
    /what listens there does not speak SOCKS5\. Check the port$/,
  )
  await web.close()
  const mute = await tcpServer((socket) => socket.end())
  await rejects(
    socksConnect({ host: 'db', port: 22, proxy: `127.0.0.1:${mute.port}` }),
    /it ended the connection$/,
  )
  await mute.close()
})

test('refuses what is no proxy, host or port, before it connects', async () => {
  const proxy = '127.0.0.1:9'
  const wrong = { proxy, host: 'db', port: 22 }
  for (const bad of ['', 'http://a:1', 'a:1/x', 'a:99999', '-', 'a b']) {
    if (bad === '-') continue
    await rejects(socksConnect({ ...wrong, proxy: bad }), /Cannot use the proxy /)
  }
  for (const bad of ['', 'a b', 'a\nb', 'x'.repeat(256)]) {
    await rejects(socksConnect({ ...wrong, host: bad }), /that is no name of a host$/)
  }
  for (const bad of [0, 65536, 1.5, NaN]) {
    await rejects(socksConnect({ ...wrong, port: bad }), /a port is a whole number/)
  }
  await rejects(
    socksConnect({ ...wrong, user: 'a'.repeat(256), password: new Secret('x') }),
    /1 to 255 bytes each/,
  )
})

test('says that the connection broke, by exit code 1', async () => {
  const proxy = await socksServer()
  const server = await tcpServer((socket) => {
    socket.write('begin')
    setTimeout(() => socket.resetAndDestroy(), 50)
  })
  const { code, stdout } = await run(['--proxy', proxy.address, 'db', `${server.port}`])
  equal(stdout, 'begin')
  // the proxy tells of a broken connection by ending it
  equal(code, 0)
  let delay: number | undefined
  const broken = await tcpServer((socket) => {
    socket.once('data', () => {
      socket.write(Buffer.of(5, 0))
      socket.once('data', () => {
        socket.write(Buffer.of(5, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        const reset = () => socket.resetAndDestroy()
        delay === undefined ? reset() : setTimeout(reset, delay)
      })
    })
  })
  // Wine never tells of a reset that comes together with data
  for (delay of process.platform === 'win32' ? [50] : [50, undefined]) {
    const reset = await run(['--proxy', `127.0.0.1:${broken.port}`, 'db', '22'])
    equal(
      reset.stderr,
      'Lost the connection to db:22: the SOCKS5 proxy reset it (ECONNRESET). Run the same again\n',
    )
    equal(reset.code, 1)
  }
})

test('tells with --check how long it takes, and ends', async () => {
  const server = await echo()
  const proxy = await socksServer()
  const { code, stdout } = await run([
    '--check',
    '--proxy',
    proxy.address,
    '127.0.0.1',
    `${server.port}`,
  ])
  equal(code, 0)
  const { milliseconds, ...rest } = JSON.parse(stdout)
  ok(milliseconds >= 0)
  equal(
    JSON.stringify(rest),
    JSON.stringify({ proxy: proxy.address, host: '127.0.0.1', port: server.port }),
  )
})

real('connects through microsocks, with and without a password', async () => {
  const server = await echo()
  for (const args of [[], ['-u', 'me', '-P', 'changeme']]) {
    const { address } = await keep(microsocks(...args))
    const account = args.length ? ['--user', 'me', '--password', 'env:PROXY_PASSWORD'] : []
    const { stdout, stderr } = await run(
      ['--proxy', address, ...account, 'localhost', `${server.port}`],
      'hello\n',
      { PROXY_PASSWORD: 'changeme' },
      true, // microsocks ends both ways when one has ended
    )
    equal(stderr, '')
    equal(stdout, 'heard 5: hello')
  }
})

test.run()
