import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { createServer, type Server } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import { checkProxy, type ProxyCheck } from '../../tasks/check-proxy.ts'
import { Secret } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { freePort } from '../ports.ts'
import { runTask } from '../run-task.ts'
import { socksServer, tcpServer } from '../socks-server.ts'

const states = (checks: ProxyCheck[]) =>
  checks.map(({ check, user, state }) => `${check}${user === null ? '' : `/${user}`} ${state}`)

/** A program that listens on a port of loopback, ended after the work. */
async function serving<T>(
  port: number,
  program: string,
  args: string[],
  work: () => Promise<T>,
): Promise<T> {
  const child: ChildProcess = spawn(program, args, { stdio: 'ignore' })
  const ended = new Promise((resolve) => child.once('close', resolve))
  try {
    for (let n = 0; !await listens(port); n++) {
      ok(child.exitCode === null && n < 600, `${program} does not start`)
      await wait(50)
    }
    return await work()
  } finally {
    child.kill()
    await ended
  }
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => (socket.destroy(), resolve(true)))
    socket.once('error', () => resolve(false))
  })
}

const parts = suite<{ web: Server; port: number; dir: string }>('checkProxy')

parts.before(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'check-proxy-'))
  context.web = createServer((_, response) => response.end('here'))
  await new Promise<void>((resolve) => context.web.listen(0, '127.0.0.1', resolve))
  context.port = (context.web.address() as { port: number }).port
})

parts.after(async ({ web, dir }) => {
  web.closeAllConnections()
  await new Promise((resolve) => web.close(resolve))
  await fs.remove(dir)
})

const microsocks = needs(parts, 'microsocks')
const tinyproxy = needs(parts, 'tinyproxy')

microsocks(
  'finds SOCKS5 with names looked up here and there, and no HTTP beside it',
  async ({ port }) => {
    const own = await freePort()
    await serving(own, 'microsocks', ['-i', '127.0.0.1', '-p', `${own}`], async () => {
      const proxy = `127.0.0.1:${own}`
      const result = await checkProxy({ proxy, destination: `http://localhost:${port}` })
      deepEqual(states(result.checks), [
        'tcp ok',
        'connect wrong-protocol',
        'http wrong-protocol',
        'socks5 ok',
        'socks5h ok',
      ])
      equal(result.works, true)
      equal(result.destination, `localhost:${port}`)
      equal(
        result.checks[1]?.detail,
        `Cannot use ${proxy} as an HTTP proxy: a SOCKS5 proxy listens there. ` +
          `Run: npx zx tasks/check-proxy.ts --proxy socks5://${proxy}`,
      )
      ok(result.checks.every(({ milliseconds }) => milliseconds >= 0))
      const closed = await freePort()
      const lost = await checkProxy({
        proxy: `socks5://${proxy}`,
        destination: `localhost:${closed}`,
      })
      deepEqual(states(lost.checks), ['tcp ok', 'socks5 destination', 'socks5h destination'])
      equal(lost.checks[1]?.code, 5)
      equal(
        lost.checks[2]?.detail,
        `Cannot reach localhost:${closed} through ${proxy}: nothing listens there (SOCKS5 reply 5). ` +
          'See whether the guest reaches it. Run in the guest: ' +
          `Test-NetConnection localhost -Port ${closed}`,
      )
    })
  },
)

microsocks('tells no user, a wrong password and the right one apart', async ({ port }) => {
  const own = await freePort()
  const args = ['-i', '127.0.0.1', '-p', `${own}`, '-u', 'bob', '-P', 'changeme']
  await serving(own, 'microsocks', args, async () => {
    const common = {
      proxy: `socks5://127.0.0.1:${own}`,
      destination: `localhost:${port}`,
      user: 'bob',
    }
    const right = await checkProxy({ ...common, password: new Secret('changeme') })
    deepEqual(states(right.checks), [
      'tcp ok',
      'socks5 authentication',
      'socks5h authentication',
      'socks5/bob ok',
      'socks5h/bob ok',
    ])
    const wrong = await checkProxy({ ...common, password: new Secret('change’me') })
    equal(wrong.works, false)
    match(wrong.checks[1]?.detail ?? '', /it wants a user and a password/)
    equal(
      wrong.checks[3]?.detail,
      `Cannot sign in to the proxy 127.0.0.1:${own}: it does not take this password of "bob". ` +
        'Run again with the right one: --user NAME --credential prompt',
    )
    ok(!JSON.stringify(wrong).includes('change'))
  })
})

tinyproxy(
  'finds HTTP with and without CONNECT, and what a filter blocks',
  async ({ port, dir }) => {
    const own = await freePort()
    const file = join(dir, 'tinyproxy.conf')
    await fs.writeFile(join(dir, 'filter'), '^blocked\\.example$\n')
    await fs.writeFile(
      file,
      `Port ${own}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nFilter "${join(dir, 'filter')}"\n`,
    )
    await serving(own, 'tinyproxy', ['-d', '-c', file], async () => {
      const proxy = `127.0.0.1:${own}`
      const result = await checkProxy({ proxy, destination: `http://localhost:${port}` })
      deepEqual(states(result.checks), [
        'tcp ok',
        'connect ok',
        'http ok',
        'socks5 wrong-protocol',
        'socks5h wrong-protocol',
      ])
      equal(
        result.checks[3]?.detail,
        `Cannot use ${proxy} as a SOCKS5 proxy: an HTTP server listens there. ` +
          `Run: npx zx tasks/check-proxy.ts --proxy http://${proxy}`,
      )
      const blocked = await checkProxy({
        proxy: `http://${proxy}`,
        destination: 'blocked.example:80',
      })
      deepEqual(states(blocked.checks), ['tcp ok', 'connect blocked', 'http blocked'])
      equal(blocked.works, false)
      equal(blocked.checks[1]?.code, 403)
      const closed = await freePort()
      const lost = await checkProxy({
        proxy: `http://${proxy}`,
        destination: `http://127.0.0.1:${closed}`,
      })
      deepEqual(states(lost.checks), ['tcp ok', 'connect destination', 'http destination'])
      const tls = await checkProxy({ proxy: `http://${proxy}`, destination: `localhost:${port}` })
      deepEqual(states(tls.checks), ['tcp ok', 'connect ok', 'http skipped'])
      const itself = await checkProxy({ proxy: `http://${proxy}` })
      equal(itself.works, true)
      equal(itself.destination, null)
    })
  },
)

tinyproxy('tells a proxy whose rules allow CONNECT to other ports', async ({ port, dir }) => {
  const own = await freePort()
  const file = join(dir, 'ports.conf')
  await fs.writeFile(
    file,
    `Port ${own}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nConnectPort 443\n`,
  )
  await serving(own, 'tinyproxy', ['-d', '-c', file], async () => {
    const proxy = `http://127.0.0.1:${own}`
    const destination = `http://localhost:${port}`
    const { works, checks } = await checkProxy({ proxy, destination })
    equal(works, true)
    deepEqual(states(checks), ['tcp ok', 'connect blocked', 'http ok'])
  })
})

tinyproxy('tells a wrong password of an HTTP proxy', async ({ port, dir }) => {
  const own = await freePort()
  const file = join(dir, 'password.conf')
  await fs.writeFile(
    file,
    `Port ${own}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nBasicAuth bob changeme\n`,
  )
  await serving(own, 'tinyproxy', ['-d', '-c', file], async () => {
    const common = {
      proxy: `http://127.0.0.1:${own}`,
      destination: `http://localhost:${port}`,
      user: 'bob',
    }
    const right = await checkProxy({ ...common, password: new Secret('changeme') })
    deepEqual(states(right.checks), [
      'tcp ok',
      'connect authentication',
      'http authentication',
      'connect/bob ok',
      'http/bob ok',
    ])
    const wrong = await checkProxy({ ...common, password: new Secret('other') })
    deepEqual(states(wrong.checks).slice(3), [
      'connect/bob authentication',
      'http/bob authentication',
    ])
  })
})

parts('tells a port where nothing listens, and tries no more there', async () => {
  const port = await freePort()
  const { works, checks } = await checkProxy({ proxy: `127.0.0.1:${port}` })
  equal(works, false)
  deepEqual(states(checks), ['tcp refused'])
  equal(
    checks[0]?.detail,
    `Cannot reach 127.0.0.1:${port}: nothing listens there. Start the proxy in the guest. ` +
      'Run: npx zx tasks/serve-proxy.ts --help',
  )
})

parts('tells a server that never answers, by its firewall’s command', async () => {
  const server = await tcpServer(() => {})
  try {
    const { checks } = await checkProxy({ proxy: `127.0.0.1:${server.port}`, timeout: 1 })
    deepEqual(states(checks), [
      'tcp ok',
      'connect timed-out',
      'http timed-out',
      'socks5 timed-out',
      'socks5h skipped',
    ])
    match(checks[1]?.detail ?? '', /New-NetFirewallRule .* -LocalPort \d+$/)
  } finally {
    await server.close()
  }
})

parts('tells an SSH server and a web server that are taken for a proxy', async ({ port }) => {
  const ssh = await tcpServer((socket) => socket.write('SSH-2.0-OpenSSH_9.6\r\n'))
  try {
    const { checks } = await checkProxy({ proxy: `localhost:${ssh.port}` })
    deepEqual(states(checks).slice(1), [
      'connect wrong-protocol',
      'http wrong-protocol',
      'socks5 wrong-protocol',
      'socks5h wrong-protocol',
    ])
    match(checks[3]?.detail ?? '', /as a SOCKS5 proxy: an SSH server listens there\./)
  } finally {
    await ssh.close()
  }
  const { checks } = await checkProxy({
    proxy: [`http://127.0.0.1:${port}`, `socks5://127.0.0.1:${port}`],
    destination: 'db.example:3306',
  })
  const [, connect, , , here, there] = checks
  equal(connect?.state, 'wrong-protocol')
  equal(here?.state, 'unresolved')
  equal(there?.state, 'wrong-protocol')
  match(there?.detail ?? '', /an HTTP server listens there/)
})

/** An HTTP server that answers by the first line of a request: `GET http://x/ HTTP/1.1`. */
const httpServer = (answer: (line: string) => string | undefined) =>
  tcpServer((socket) =>
    socket.once('data', (bytes) => {
      const said = answer(`${bytes}`.split('\r\n')[0] as string)
      if (said !== undefined) socket.end(`HTTP/1.1 ${said}\r\nContent-Length: 0\r\n\r\n`)
    })
  )

parts('does not take a web server for a proxy, however that refuses CONNECT', async () => {
  // nginx and Apache, old nginx, a redirect to https, one that wants a password, one that takes every method
  for (
    const [connect, get] of [
      ['405 Not Allowed', '200 OK'],
      ['400 Bad Request', '404 Not Found'],
      ['301 Moved Permanently', '301 Moved Permanently'],
      ['405 Not Allowed', '401 Unauthorized'],
      ['200 OK\r\nTransfer-Encoding: chunked', '200 OK'],
    ] as const
  ) {
    const web = await httpServer((line) => line.startsWith('CONNECT') ? connect : get)
    const proxy = `127.0.0.1:${web.port}`
    try {
      for (const destination of [undefined, 'http://intranet.invalid', 'db.invalid:3306']) {
        const { works, checks } = await checkProxy({ proxy: `http://${proxy}`, destination })
        equal(works, false, `${connect}, ${get}, ${destination}`)
        deepEqual(states(checks), ['tcp ok', 'connect wrong-protocol', 'http wrong-protocol'])
        equal(
          checks[2]?.detail,
          `Cannot use ${proxy} as an HTTP proxy: a web server listens there, which answers for a host ` +
            `that does not exist. Run: npx zx tasks/check-proxy.ts --proxy 127.0.0.1:PORT`,
        )
      }
    } finally {
      await web.close()
    }
  }
})

needs(parts, 'python3')('does not take Python’s web server for a proxy', async ({ dir }) => {
  const own = await freePort()
  const args = ['-m', 'http.server', '--bind', '127.0.0.1', '--directory', dir, `${own}`]
  await serving(own, 'python3', args, async () => {
    const proxy = `http://127.0.0.1:${own}`
    const { works, checks } = await checkProxy({ proxy, destination: 'http://intranet.invalid' })
    equal(works, false)
    deepEqual(states(checks), ['tcp ok', 'connect wrong-protocol', 'http wrong-protocol'])
  })
})

parts('knows a proxy without CONNECT, by rule or because it has none', async () => {
  for (const refusal of ['405 Method Not Allowed', '501 Not Implemented']) {
    const asked: string[] = []
    const server = await httpServer((line) => {
      asked.push(line)
      return line.startsWith('CONNECT')
        ? refusal
        : /^GET http:\/\/[^/]+\.invalid\//.test(line)
        ? '502 Bad Gateway'
        : '404 Not Found'
    })
    const proxy = `http://127.0.0.1:${server.port}`
    try {
      const { works, checks } = await checkProxy({ proxy, destination: 'http://intranet.example' })
      equal(works, true)
      deepEqual(states(checks), ['tcp ok', 'connect blocked', 'http ok'])
      deepEqual(asked.map((line) => line.slice(0, 11)), [
        'CONNECT int',
        'GET http://',
        'GET http://',
      ])
      equal(asked[2], 'GET http://intranet.example/ HTTP/1.1')
    } finally {
      await server.close()
    }
  }
})

parts('asks on where a proxy never answers for a host that does not exist', async () => {
  const server = await httpServer((line) =>
    line.startsWith('CONNECT') ? '405 No' : line.includes('.invalid/') ? undefined : '200 OK'
  )
  try {
    const { checks } = await checkProxy({
      proxy: `http://127.0.0.1:${server.port}`,
      destination: 'http://intranet.example',
      timeout: 1,
    })
    deepEqual(states(checks), ['tcp ok', 'connect blocked', 'http ok'])
  } finally {
    await server.close()
  }
})

// gost with probe resistance is a web server to whoever does not sign in (gost.run, Probing Resistance)
parts('signs in to a proxy that is a web server to everybody else', async () => {
  const server = await tcpServer((socket) =>
    socket.once('data', (bytes) => {
      const [, name] = /Proxy-Authorization: Basic (\S+)/.exec(`${bytes}`) ?? []
      socket.end(`HTTP/1.1 ${name ? '200 Connection established' : '404 Not Found'}\r\n\r\n`)
    })
  )
  try {
    const { works, checks } = await checkProxy({
      proxy: `http://127.0.0.1:${server.port}`,
      destination: 'db.example:3306',
      user: 'bob',
      password: new Secret('changeme'),
    })
    equal(works, true)
    deepEqual(states(checks), [
      'tcp ok',
      'connect wrong-protocol',
      'http wrong-protocol',
      'connect/bob ok',
      'http/bob skipped',
    ])
  } finally {
    await server.close()
  }
})

parts('tells each refusal of SOCKS5 by its code, and a rule from a failure', async () => {
  for (const [reply, state] of [[1, 'destination'], [2, 'blocked'], [4, 'destination']] as const) {
    const server = await socksServer({ reply })
    try {
      const { checks } = await checkProxy({
        proxy: `socks5://${server.address}`,
        destination: 'db.example:3306',
      })
      const last = checks.at(-1)
      equal(last?.state, state)
      equal(last?.code, reply)
      deepEqual(server.asked, ['name db.example:3306'])
    } finally {
      await server.close()
    }
  }
})

parts('sends IPv6 addresses as such', async () => {
  const server = await socksServer({ reply: 3 })
  try {
    for (const host of ['[2001:db8::1]', '[::]', '[::ffff:1.2.3.4]']) {
      await checkProxy({ proxy: `socks5://${server.address}`, destination: `${host}:80` })
    }
    deepEqual(server.asked, [
      'ipv6 2001:0db8:0000:0000:0000:0000:0000:0001:80',
      'ipv6 0000:0000:0000:0000:0000:0000:0000:0000:80',
      'ipv6 0000:0000:0000:0000:0000:ffff:0102:0304:80',
    ])
  } finally {
    await server.close()
  }
})

parts('refuses what cannot be meant before anything is asked', async () => {
  const proxy = '127.0.0.1:9'
  for (
    const [options, message] of [
      [
        { proxy: 'http://bob:changeme@127.0.0.1:9' },
        'Cannot take the password from the address of the proxy: others see command lines. ' +
        'Run again with --user NAME --credential prompt',
      ],
      [
        { proxy: 'ftp://127.0.0.1:9' },
        'Cannot use "ftp://127.0.0.1:9" as a proxy: it is HOST:PORT, http://HOST:PORT or ' +
        'socks5://HOST:PORT. Example: --proxy 192.168.56.191:8080',
      ],
      [
        { proxy, destination: 'a b:80' },
        'Cannot reach "a b:80" through a proxy: it is HOST:PORT or http://HOST. ' +
        'Example: --destination db.intranet:3306',
      ],
      [
        { proxy, user: 'bob:x', password: new Secret('y') },
        'Cannot sign in to a proxy: user and password are 1 to 255 bytes each, and a user has no ' +
        'colon. Run again with --user NAME --credential prompt',
      ],
    ] as const
  ) {
    await rejects(checkProxy(options), { message })
  }
  for (const typed of ['http://me:xyzzy#@plugh@h', 'ftp://me:xyzzy/plugh@h:1', '@:xyzzy@plugh:1']) {
    for (const options of [{ proxy: typed }, { proxy, destination: typed }]) {
      await rejects(checkProxy(options), ({ message }: Error) => !/xyzzy|plugh@/.test(message))
    }
  }
  for (
    const wrong of ['$(calc):1', '`calc`:1', '-x', 'h:0', 'h:65536', 'a\r\nX: y:80', '[::g]:1']
  ) {
    await rejects(checkProxy({ proxy: wrong }), TypeError)
    await rejects(checkProxy({ proxy, destination: wrong }), TypeError)
  }
})

parts('answers in JSON, says what is wrong, and fails when nothing works', async ({ dir }) => {
  const server = await socksServer({ user: 'bob', password: 'changeme' })
  try {
    const args = ['--proxy', `socks5://${server.address}`, '--user', 'bob']
    const env = { ...process.env, FORCE_COLOR: '0', PROXY_PASSWORD: 'changeme' }
    const host = { dir, env }
    const good = await runTask(host, 'check-proxy', ...args, '--credential', 'env:PROXY_PASSWORD')
    equal(good.code, 0, good.stderr)
    equal(JSON.parse(good.stdout).works, true)
    match(good.stderr, /it wants a user and a password/)
    ok(!`${good.stdout}${good.stderr}`.includes('changeme'))
    const bad = await runTask(host, 'check-proxy', ...args.slice(0, 2))
    equal(bad.code, 1)
    equal(JSON.parse(bad.stdout).works, false)
    const typed = await runTask(host, 'check-proxy', ...args, '--credential', 'changeme')
    equal(typed.stdout, '')
    ok(!typed.stderr.includes('changeme'))
  } finally {
    await server.close()
  }
})

parts.run()
