import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { runInNewContext } from 'node:vm'
import { suite } from 'uvu'
import { printProxy, undoUseProxy, useProxy, type UseProxyOptions } from '../../tasks/use-proxy.ts'
import type { PowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { simulatedHost } from '../simulated-host.ts'

const execute = promisify(execFile)

interface Context {
  home: string
  keep: string
  options: UseProxyOptions
}

const programs = suite<Context>('useProxy')

programs.before.each(async (context) => {
  context.home = await fs.mkdtemp(join(tmpdir(), 'use-proxy-’$(calc) '))
  context.keep = join(context.home, 'data', 'use-proxy.json')
  context.options = {
    http: '192.168.56.191:8080',
    socks: 'socks5://192.168.56.191:1080',
    home: context.home,
    keep: context.keep,
  }
})
programs.after.each(({ home }) => fs.remove(home))

const withGit = needs(programs, 'git')
const withNpm = needs(programs, 'npm')
const withPip = needs(programs, 'pip')
const withBash = needs(programs, 'bash')

/** What a program says with this home. */
async function ask(home: string, program: string, ...args: string[]): Promise<string> {
  const { XDG_CONFIG_HOME: _, ...other } = process.env
  const env = { ...other, HOME: home, GIT_CONFIG_NOSYSTEM: '1' }
  for (const name of Object.keys(env)) {
    if (/^npm_config_|_proxy$|^pip_/i.test(name)) delete (env as NodeJS.ProcessEnv)[name]
  }
  return (await execute(program, args, { env, cwd: home })).stdout.trim()
}

/** Every file of a home, by path. */
async function all(home: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  for (const entry of await fs.readdir(home, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    found[path.slice(home.length).replaceAll('\\', '/')] = await fs.readFile(path, 'utf8')
  }
  return found
}

withGit(
  'sets git’s proxy, once, and gives the one back that was there',
  async ({ home, options }) => {
    const config = '[user]\n\tname = Bob\n[http]\n\tproxy = http://old:1\n'
    await fs.writeFile(join(home, '.gitconfig'), config)
    const given = { ...options, for: ['git'] as const }
    const dry = await useProxy({ ...given, dryRun: true }, null)
    equal(dry.changed, true)
    deepEqual(await all(home), { '/.gitconfig': config })
    const on = await useProxy(given, null)
    deepEqual(on.settings, [{
      program: 'git',
      where: 'git config --global http.proxy',
      state: 'set',
    }])
    equal(
      await ask(home, 'git', 'config', '--get', 'http.proxy'),
      'http://192.168.56.191:8080',
    )
    const again = await useProxy(given, null)
    equal(again.changed, false)
    const off = await undoUseProxy(options, null)
    equal(off.changed, true)
    equal(off.kept, null)
    deepEqual(await all(home), { '/.gitconfig': config })
    equal((await undoUseProxy(options, null)).changed, false)
  },
)

withGit(
  'sends only named domains of git through it, and forgets those that are named no more',
  async ({ home, options }) => {
    const given = { ...options, for: ['git'] as const }
    await useProxy({ ...given, only: ['Corp.example', '*.lab.example'] }, null)
    const proxy = (url: string) =>
      ask(home, 'git', 'config', '--get-urlmatch', 'http.proxy', url).catch(() => '')
    const through = 'http://192.168.56.191:8080'
    equal(await proxy('https://git.corp.example/a/b.git'), through)
    equal(await proxy('https://corp.example/'), through)
    equal(await proxy('http://x.lab.example/'), through)
    equal(await proxy('https://github.com/a/b'), '')
    const other = await useProxy({ ...given, only: ['corp.example', '10.0.0.0/8'] }, null)
    match(other.notes.join(), /git knows domains alone/)
    equal(await proxy('http://x.lab.example/'), '')
    equal(await proxy('https://git.corp.example/'), through)
    await undoUseProxy(options, null)
    equal(await proxy('https://git.corp.example/'), '')
  },
)

withGit('leaves what somebody has set since, and says so', async ({ home, options }) => {
  const given = { ...options, for: ['git'] as const }
  await useProxy(given, null)
  await ask(home, 'git', 'config', '--global', 'http.proxy', 'http://mine:1')
  const off = await undoUseProxy(options, null)
  equal(off.settings[0]?.state, 'left')
  deepEqual(off.notes, [
    'git config --global http.proxy was set to something else since, which stays',
  ])
  equal(await ask(home, 'git', 'config', '--get', 'http.proxy'), 'http://mine:1')
})

withGit('takes back what it has set where a later one fails', async ({ home, keep, options }) => {
  const broken = { ...options, for: ['git', 'npm', 'docker'] as const }
  await fs.writeFile(join(home, '.gitconfig'), '[user]\n\tname = Bob\n')
  await fs.outputFile(join(home, '.docker', 'config.json'), '{ broken')
  const before = await all(home)
  await rejects(useProxy(broken, null), /^Error: Cannot set Docker’s proxy: .* is no JSON object/)
  deepEqual(await all(home), before)
  // what an earlier call has set stays set, and its way back too, also of domains that were named then alone
  const given = { ...options, for: ['git'] as const }
  await useProxy({ ...given, http: '192.168.56.191:1', only: ['a.example'] }, null)
  const first = await all(home)
  const kept = await fs.readFile(keep, 'utf8')
  await rejects(useProxy({ ...broken, only: ['b.example'] }, null), /Cannot set Docker’s proxy/)
  deepEqual(await all(home), first)
  equal(await fs.readFile(keep, 'utf8'), kept)
  await undoUseProxy(options, null)
  deepEqual(await all(home), before)
})

withGit('keeps what it cannot take back for off', async ({ home, keep, options }) => {
  const config = join(home, '.gitconfig')
  await fs.outputFile(join(home, '.docker', 'config.json'), '{ broken')
  // git leaves a configuration alone that another git is writing
  const lock = `${config}.lock`
  const ps: PowerShell = async () => {
    await fs.writeFile(lock, '')
    throw new Error('Cannot open the registry')
  }
  const given = { ...options, for: ['git', 'system'] as const }
  await rejects(useProxy(given, ps), {
    message: 'Cannot open the registry. What could not be put back stays until off: ' +
      'git config --global http.proxy',
  })
  match(await fs.readFile(keep, 'utf8'), /"http\.proxy"/)
  await fs.remove(lock)
  await undoUseProxy(options, null)
  equal(await ask(home, 'git', 'config', '--global', '--list').catch(() => ''), '')
  equal(await fs.pathExists(keep), false)
})

withNpm('sets npm’s proxy beside what npm keeps there', async ({ home, options }) => {
  const npmrc = '; mine\r\n//registry.example/:_authToken=secret\r\nproxy = http://old:1'
  await fs.writeFile(join(home, '.npmrc'), npmrc, { mode: 0o600 })
  await useProxy({ ...options, for: ['npm'] }, null)
  for (const name of ['proxy', 'https-proxy']) {
    // some versions end it so
    const found = (await ask(home, 'npm', 'config', 'get', name)).replace(/\/$/, '')
    equal(found, 'http://192.168.56.191:8080')
  }
  const text = await fs.readFile(join(home, '.npmrc'), 'utf8')
  match(text, /^; mine\r\n\/\/registry[^\n]*\r\nproxy=/)
  if (process.platform !== 'win32') {
    equal((await fs.stat(join(home, '.npmrc'))).mode & 0o777, 0o600)
    equal((await fs.stat(options.keep as string)).mode & 0o777, 0o600)
  }
  ok(!(await fs.readFile(options.keep as string, 'utf8')).includes('secret'))
  await undoUseProxy(options, null)
  equal(await fs.readFile(join(home, '.npmrc'), 'utf8'), npmrc)
})

withPip('sets pip’s proxy in its section', async ({ home, options }) => {
  const path = process.platform === 'win32'
    ? join(home, 'AppData', 'Roaming', 'pip', 'pip.ini')
    : join(home, '.config', 'pip', 'pip.conf')
  for (
    const conf of [
      '',
      '[global]\ntimeout = 60\n\n[install]\nproxy = no\n',
      '[install]\nuser = yes\n',
      'x = 1\n[global]\nproxy=http://old:1',
    ]
  ) {
    const before = conf === '' ? await all(home) : undefined
    if (conf !== '') await fs.outputFile(path, conf)
    await useProxy({ ...options, for: ['pip'] }, null)
    if (!conf.startsWith('x')) {
      equal(await ask(home, 'pip', 'config', 'get', 'global.proxy'), 'http://192.168.56.191:8080')
    }
    await undoUseProxy(options, null)
    if (before) deepEqual(await all(home), before)
    else equal(await fs.readFile(path, 'utf8'), conf)
  }
})

programs(
  'sets Docker’s proxy for containers beside what Docker keeps there',
  async ({ home, options }) => {
    const path = join(home, '.docker', 'config.json')
    for (
      const json of [
        { auths: { x: { auth: 'secret' } } },
        { proxies: { default: { httpProxy: 'http://old:1' }, 'tcp://x': {} }, z: 1 },
      ]
    ) {
      const text = JSON.stringify(json, null, '\t')
      await fs.outputFile(path, text)
      await useProxy({ ...options, for: ['docker'] }, null)
      const set = await fs.readJson(path)
      deepEqual(set.proxies.default, {
        httpProxy: 'http://192.168.56.191:8080',
        httpsProxy: 'http://192.168.56.191:8080',
        allProxy: 'socks5h://192.168.56.191:1080',
        noProxy: 'localhost,127.0.0.1,::1',
      })
      ok(!(await fs.readFile(options.keep as string, 'utf8')).includes('secret'))
      await undoUseProxy(options, null)
      equal(await fs.readFile(path, 'utf8'), text)
    }
    await fs.remove(path)
    await useProxy({ ...options, for: ['docker'] }, null)
    await undoUseProxy(options, null)
    deepEqual(await all(home), {})
    await fs.writeFile(path, '{"auths":')
    await rejects(useProxy({ ...options, for: ['docker'] }, null), {
      message:
        `Cannot set Docker’s proxy: "${path}" is no JSON object. Mend it, or run again without docker in --for`,
    })
    equal(await fs.readFile(path, 'utf8'), '{"auths":')
  },
)

if (process.platform !== 'win32') {
  withBash(
    'gives shells the variables by a file of its own, and goes without a trace',
    async ({ home, options }) => {
      await fs.writeFile(join(home, '.profile'), 'export A=1')
      await fs.outputFile(join(home, 'dotfiles', 'bashrc'), '# mine\n')
      await fs.symlink(join('dotfiles', 'bashrc'), join(home, '.bashrc'))
      const before = await all(home)
      await useProxy({ ...options, for: ['env'] }, null)
      equal((await fs.lstat(join(home, '.bashrc'))).isSymbolicLink(), true)
      const print = 'echo "$A $https_proxy $HTTPS_PROXY $ALL_PROXY $NO_PROXY"'
      equal(
        await ask(home, 'bash', '-l', '-c', print),
        '1 http://192.168.56.191:8080 http://192.168.56.191:8080 ' +
          'socks5h://192.168.56.191:1080 localhost,127.0.0.1,::1',
      )
      await undoUseProxy(options, null)
      deepEqual(await all(home), before)
      equal(await ask(home, 'bash', '-l', '-c', 'echo "$A$https_proxy"'), '1')
    },
  )
}

programs(
  'puts back what a run left that was killed before it changed anything',
  async ({ home, options, keep }) => {
    await fs.writeFile(join(home, '.npmrc'), 'a=1\n')
    await useProxy({ ...options, for: ['npm'] }, null)
    const kept = await fs.readFile(keep, 'utf8')
    await undoUseProxy(options, null)
    await fs.writeFile(keep, kept)
    const off = await undoUseProxy(options, null)
    equal(off.settings[0]?.state, 'already')
    deepEqual(await all(home), { '/.npmrc': 'a=1\n' })
  },
)

programs('changes nothing where what it keeps cannot be read', async ({ home, options, keep }) => {
  await fs.outputFile(keep, '{')
  await rejects(useProxy({ ...options, for: ['npm'] }, null), /Cannot tell what was there/)
  await rejects(undoUseProxy(options, null), /Move it away/)
  equal(await fs.pathExists(join(home, '.npmrc')), false)
})

programs(
  'refuses what would store a password, and what is no proxy, domain or list',
  async ({ home, options }) => {
    const wrong: [Partial<UseProxyOptions>, string | RegExp][] = [
      [
        { http: 'http://bob:changeme@192.168.56.191:8080' },
        'Cannot use a proxy with a user: its password would be stored in the settings of every program. ' +
        'Run again with HOST:PORT alone, and limit the proxy to this host by the guest’s firewall',
      ],
      [{ http: '$(calc):80' }, /^Cannot use "\$\(calc\):80" as a proxy: it is HOST:PORT/],
      [{ http: "a'b:80" }, /as a proxy/],
      [{ http: 'a:0' }, /as a proxy/],
      [{ direct: ["x'; calc"] }, /without the proxy: it is no host/],
      [{ only: ['corp.example', '10.0.0.0/33'] }, /^Cannot send "10.0.0.0\/33" through the proxy/],
      [{ for: ['pac'] }, /^Cannot write a PAC file: no domain or network is named/],
      [{ for: ['system'] }, /^Cannot set the proxy of Windows: this machine has none/],
      [{ pacUrl: 'file:///c:/x.pac' }, /no address of a web server/],
      [
        { pacUrl: 'http://bob:changeme@h/x.pac' },
        /^Cannot use "http:\/\/bob:\.\.\.@h\/x\.pac" for /,
      ],
      [
        { pacUrl: 'http://bob:changeme@h/x.pac' },
        /^Cannot use "http:\/\/bob:\.\.\.@h\/x\.pac" for /,
      ],
    ]
    for (const [change, message] of wrong) {
      await rejects(
        useProxy({ ...options, for: ['npm'], ...change }, null),
        (error: Error) => {
          if (typeof message === 'string') equal(error.message, message)
          else match(error.message, message)
          ok(!error.message.includes('changeme'))
          return true
        },
      )
    }
    await rejects(useProxy({ home, keep: join(home, 'x') }, null), /none is named/)
    deepEqual(await all(home), {})
  },
)

programs('prints for each shell', () => {
  const ways = { http: '192.168.56.191:8080' }
  equal(
    printProxy(ways, 'powershell').split('\n')[0],
    "$env:HTTP_PROXY = 'http://192.168.56.191:8080'",
  )
  equal(printProxy(ways, 'cmd').split('\n')[3], 'set "NO_PROXY=localhost,127.0.0.1,::1"')
  equal(
    printProxy(ways, 'bash').split('\n')[1],
    "export http_proxy='http://192.168.56.191:8080'",
  )
  throws(() => printProxy(ways, 'pac'), /Cannot write a PAC file/)
})

programs('sends only the intranet through it by the PAC file, as browsers run it', () => {
  const pac = printProxy({
    http: '192.168.56.191:8080',
    socks: '192.168.56.191:1080',
    only: ['corp.example', '10.20.0.0/14', '192.0.2.7'],
  }, 'pac')
  // the functions that browsers have for it; one that would look a name up fails here
  const number = (address: string) =>
    address.split('.').reduce((all, part) => all * 256 + Number(part), 0)
  const functions = {
    dnsDomainIs: (host: string, domain: string) => host.endsWith(domain),
    isInNet: (host: string, network: string, mask: string) => {
      match(host, /^[\d.]+$/)
      return (number(host) & number(mask)) === (number(network) & number(mask))
    },
  }
  const find = (url: string) =>
    runInNewContext(`${pac}; FindProxyForURL(${JSON.stringify(url)}, host)`, {
      ...functions,
      host: new URL(url).hostname,
    })
  const through = 'PROXY 192.168.56.191:8080; SOCKS5 192.168.56.191:1080'
  for (const host of ['corp.example', 'GIT.corp.example', 'a.b.corp.example.', '10.23.255.1']) {
    equal(find(`https://${host}/`), through, host)
  }
  equal(find('http://192.0.2.7:8000/'), through)
  for (const host of ['github.com', 'notcorp.example', 'corp.example.com', '10.24.0.1', 'x']) {
    equal(find(`https://${host}/`), 'DIRECT', host)
  }
})

programs(
  'answers its command in JSON, with what is kept in the user’s data folder',
  async ({ home }) => {
    const env: NodeJS.ProcessEnv = { ...process.env, FORCE_COLOR: '0' }
    for (const name of ['HOME', 'USERPROFILE']) env[name] = home
    for (const name of ['XDG_DATA_HOME', 'LOCALAPPDATA']) env[name] = join(home, 'data')
    for (const name of Object.keys(env)) if (/^npm_config_userconfig$/i.test(name)) delete env[name]
    const host = { dir: home, env }
    const only = ['--http', '192.168.56.191:8080', '--for', 'npm', 'pac', '--only', 'corp.example']
    const on = await runTask(host, 'use-proxy', 'on', ...only)
    equal(on.code, 0, on.stderr)
    const { changed, kept, settings } = JSON.parse(on.stdout)
    equal(changed, true)
    ok(kept.startsWith(home), kept)
    match(await fs.readFile(settings[1].where, 'utf8'), /FindProxyForURL/)
    match(on.stderr, /npm know no list of domains/)
    const off = await runTask(host, 'use-proxy', 'off')
    equal(JSON.parse(off.stdout).changed, true)
    equal(await fs.pathExists(join(home, '.npmrc')), false)
    equal(await fs.pathExists(kept), false)
    const printed = await runTask(host, 'use-proxy', 'print', '--http', 'h:1', '--shell', 'cmd')
    match(printed.stdout, /^set "HTTP_PROXY=http:\/\/h:1"\n/)
    const wrong = await runTask(host, 'use-proxy', 'on', '--http', 'bob:changeme@h:1')
    equal(wrong.code, 1)
    equal(wrong.stdout, '')
  },
)

programs.run()

const windows = suite('useProxy on Windows')
const withPowerShell = needs(windows, 'pwsh')

withPowerShell(
  'sets the user’s variables and Windows’ own proxy, and gives back those that were there',
  async () => {
    const host = await simulatedHost()
    try {
      await host.ps`$null = Get-VMHost` // with which the simulated host and its registry come
      const internet = 'Software\\Microsoft\\Windows\\CurrentVersion\\Internet Settings'
      const registry = {
        Environment: {
          Path: { kind: 'ExpandString', value: '%USERPROFILE%\\bin' },
          HTTP_PROXY: { kind: 'ExpandString', value: 'http://%OLD%:1' },
        },
        [internet]: { ProxyEnable: { kind: 'DWord', value: 0 } },
      }
      await host.change((state) => state.registry = registry)
      const options: UseProxyOptions = {
        http: '192.168.56.191:8080',
        for: ['env', 'system'],
        home: host.dir,
        keep: join(host.dir, 'use-proxy.json'),
      }
      const before = await host.text()
      await useProxy({ ...options, dryRun: true }, host.ps)
      equal(await host.text(), before)
      const on = await useProxy(options, host.ps)
      equal(on.settings[0]?.where, 'HKCU\\Environment: HTTP_PROXY')
      const set = (await host.state()).registry
      deepEqual(set.Environment.HTTP_PROXY, {
        kind: 'String',
        value: 'http://192.168.56.191:8080',
      })
      equal(set[internet].ProxyEnable.value, 1)
      equal(set[internet].ProxyServer.value, '192.168.56.191:8080')
      equal(set[internet].ProxyOverride.value, 'localhost;127.0.0.1;::1;<local>')
      const calls = (await host.calls()).length
      equal((await useProxy(options, host.ps)).changed, false)
      equal((await host.calls()).length, calls)
      await undoUseProxy(options, host.ps)
      deepEqual((await host.state()).registry, registry)
      const listed = { ...options, for: ['system'] as const, only: ['corp.example'] }
      await rejects(useProxy(listed, host.ps), /^TypeError: Cannot give Windows a list of domains/)
      await useProxy({ ...listed, pacUrl: 'http://192.168.56.191/intranet.pac' }, host.ps)
      equal(
        (await host.state()).registry[internet].AutoConfigURL.value,
        'http://192.168.56.191/intranet.pac',
      )
      await undoUseProxy(options, host.ps)
      deepEqual((await host.state()).registry, registry)
    } finally {
      await host.close()
    }
  },
)

windows.run()
