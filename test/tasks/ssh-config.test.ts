import fs from 'fs-extra'
import { equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { sshConfig, type SshConfigOptions, undoSshConfig } from '../../tasks/ssh-config.ts'
import { needs } from '../needs.ts'
import { socksServer } from '../socks-server.ts'
import { sshServer } from '../tunnel-hosts.ts'

const execute = promisify(execFile)

interface Context {
  dir: string
  config: string
  own: string
  wanted: SshConfigOptions
}
const test = suite<Context>('sshConfig')
const real = needs(test, 'ssh')

test.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'ssh config '))
  context.config = join(context.dir, 'config')
  context.own = join(context.dir, 'vbox-to-hyperv.conf')
  context.wanted = {
    name: 'db',
    to: 'db.intranet:2222',
    user: 'CORP\\me',
    via: ['socks5://192.168.56.191:1080', 'ssh://jumper@jump.intranet'],
    config: context.config,
  }
})
test.after.each(({ dir }) => fs.remove(dir))

/** What ssh makes of a host. */
async function asked(config: string, name: string): Promise<Record<string, string>> {
  const { stdout } = await execute('ssh', ['-G', '-F', config, '--', name])
  return Object.fromEntries(
    stdout.trim().split('\n').map((line) => {
      const at = line.indexOf(' ')
      return [line.slice(0, at), line.slice(at + 1)]
    }),
  )
}

test('adds an entry in a file of its own, includes it once, and takes it back', async ({ config, own, wanted }) => {
  const theirs = '# mine\r\nHost *\r\n  ServerAliveInterval 10\r\n\tUser “me”'
  await fs.writeFile(config, theirs)
  if (process.platform !== 'win32') await fs.chmod(config, 0o640)
  const first = await sshConfig(wanted)
  equal(first.changed, true)
  equal((await sshConfig(wanted)).changed, false)
  const other = await sshConfig({ ...wanted, name: 'other', via: [] })
  const text = await fs.readFile(config, 'utf8')
  equal(text.slice(text.indexOf('\n') + 1), theirs)
  match(text, /^Include ".*vbox-to-hyperv\.conf"\r\n# mine/)
  if (process.platform !== 'win32') {
    equal((await fs.stat(config)).mode & 0o777, 0o640)
    equal((await fs.stat(own)).mode & 0o777, 0o600)
  }
  const again = await sshConfig({ ...wanted, to: 'db2.intranet' })
  match(await fs.readFile(own, 'utf8'), /HostName db2\.intranet/)
  await undoSshConfig(again)
  match(await fs.readFile(own, 'utf8'), /HostName db\.intranet/)
  await undoSshConfig(other)
  await undoSshConfig(first)
  equal(await fs.readFile(config, 'utf8'), theirs)
  equal(await fs.pathExists(own), false)
  equal((await fs.readdir(join(config, '..'))).join(), 'config')
})

test('makes a configuration where there is none, and leaves none behind', async ({ config, own, wanted }) => {
  const dry = await sshConfig({ ...wanted, dryRun: true })
  equal(dry.changed, true)
  equal(await fs.pathExists(config), false)
  const made = await sshConfig(wanted)
  ok(await fs.pathExists(own))
  await undoSshConfig(made)
  equal(await fs.pathExists(config), false)
  equal(await fs.pathExists(own), false)
})

test('leaves an entry of the user alone, in an included file too', async ({ dir, config, own, wanted }) => {
  await fs.writeFile(
    config,
    `Include "${join(dir, 'more', '*.conf').replaceAll('\\', '/')}"\nHost=web DB\n`,
  )
  await rejects(
    sshConfig(wanted),
    /^Error: Cannot add the host "db": .* has one of that name, which/,
  )
  await fs.outputFile(join(dir, 'more', 'a.conf'), 'host "nas" x*\n')
  await rejects(sshConfig({ ...wanted, name: 'nas' }), /a\.conf has one of that name/)
  equal((await sshConfig({ ...wanted, name: 'x1' })).changed, true)
  ok(await fs.pathExists(own))
})

test('refuses what would be more than a name, and writes nothing', async ({ config, own, wanted }) => {
  const names = [
    '',
    '-oProxyCommand=x',
    'a b',
    'a\nHost *',
    '*',
    '!a',
    'a"b',
    "a'b",
    '$(x)',
    '`x`',
    '%h',
  ]
  for (const name of [...names, '../x', 'a’b', 'a,b', '#a']) {
    await rejects(sshConfig({ ...wanted, name }), /^TypeError: Cannot add the host "/, name)
  }
  for (const to of ['', '-x', 'a b', 'a\nb', 'a:99999', 'a:0', '%h', '$(x)', '[::1', 'me:pw@a']) {
    await rejects(sshConfig({ ...wanted, to }), /^TypeError: Cannot take "/, to)
  }
  for (const user of ['a"b', "a'b", 'a\nb', '-x', '%r', '${HOME}']) {
    await rejects(sshConfig({ ...wanted, user }), /^TypeError: Cannot write "/, user)
    await rejects(
      sshConfig({ ...wanted, via: [`ssh://${user}@jump`] }),
      /^TypeError: Cannot /,
      user,
    )
  }
  for (const via of ['http://a', 'jump', 'ssh://', 'socks5://me:changeme@a', 'ssh://a\nb']) {
    await rejects(sshConfig({ ...wanted, via: [via] }), (error: Error) => {
      ok(!error.message.includes('changeme'), error.message)
      return /^Cannot take /.test(error.message)
    }, via)
  }
  for (const password of ['xyzzy/plugh', 'xyzzy@plugh', 'xyzzy:plugh', 'xyzzy#plugh', 'xyzzy"@']) {
    for (const via of ['ssh', 'socks5', 'http'].map((scheme) => `${scheme}://me:${password}@h`)) {
      await rejects(
        sshConfig({ ...wanted, via: [via] }),
        ({ message }: Error) => /"(http:\/\/)?me:\.\.\.@h"/.test(message),
        via,
      )
    }
    const to = `me:${password}@h`
    await rejects(sshConfig({ ...wanted, to }), /^TypeError: Cannot take "me:\.\.\.@h" of --to/)
  }
  await rejects(
    sshConfig({ ...wanted, password: 'changeme' }),
    /^TypeError: Cannot take the password/,
  )
  await rejects(
    sshConfig({ ...wanted, via: ['ssh://a', 'socks5://b'] }),
    /SOCKS5 proxy behind another hop/,
  )
  equal(await fs.pathExists(config), false)
  equal(await fs.pathExists(own), false)
})

real('is what ssh makes of it', async ({ config, wanted }) => {
  await sshConfig({
    ...wanted,
    via: ['socks5://me@192.168.56.191:1080', 'ssh://jumper@jump.intranet:23'],
    password: 'env:PROXY_PASSWORD',
    identity: join(wanted.config as string, '..', 'my key'),
  })
  const db = await asked(config, 'db')
  equal(db.hostname, 'db.intranet')
  equal(db.port, '2222')
  equal(db.user, 'CORP\\me')
  equal(db.proxyjump, 'db.via1')
  match(db.identityfile ?? '', /my key$/)
  const jump = await asked(config, 'db.via1')
  equal(jump.hostname, 'jump.intranet')
  equal(jump.port, '23')
  equal(jump.user, 'jumper')
  match(
    jump.proxycommand ?? '',
    /socks-connect\.ts --proxy 192\.168\.56\.191:1080 --user me --password env:PROXY_PASSWORD %h %p$/,
  )
  await sshConfig({ ...wanted, name: 'v6', to: '[fe80::1%eth0]:22', via: [] })
  equal((await asked(config, 'v6')).hostname, 'fe80::1%eth0')
})

real('asks connect and ncat as their manuals say', async ({ dir, config, wanted }) => {
  const path = process.env.PATH
  const folder = join(dir, 'Bob’s programs')
  const windows = process.platform === 'win32'
  for (const name of ['connect', 'ncat']) {
    const stub = windows ? '' : '#!/bin/sh\nprintf "%s|" "$@"\n'
    await fs.outputFile(join(folder, windows ? `${name}.cmd` : name), stub, { mode: 0o755 })
  }
  try {
    process.env.PATH = `${folder}${delimiter}${path}`
    for (
      const [connector, ...words] of [
        // its manual: -S [user@]server[:port]
        ['connect', '-S', '192.168.56.191:1080'],
        // ncat(1): --proxy addr[:port], --proxy-type type, of which http is the usual one
        ['ncat', '--proxy', '192.168.56.191:1080', '--proxy-type', 'socks5'],
      ] as const
    ) {
      const via = ['socks5://192.168.56.191:1080', 'ssh://jump.intranet:23']
      await sshConfig({ ...wanted, connector, via })
      const { proxycommand = '' } = await asked(config, 'db.via1')
      ok(proxycommand.endsWith(` ${words.join(' ')} %h %p`), proxycommand)
      if (!windows) {
        const command = proxycommand.replace('%h', 'jump.intranet').replace('%p', '23')
        const { stdout } = await execute('sh', ['-c', command])
        equal(stdout, [...words, 'jump.intranet', '23', ''].join('|'))
      }
      const signIn = { via: ['socks5://me@192.168.56.191'], password: 'env:PROXY_PASSWORD' }
      await rejects(
        sshConfig({ ...wanted, connector, ...signIn }),
        /its password would be in the command line\. Run again with --connector kit$/,
      )
    }
    process.env.PATH = join(dir, 'none')
    await rejects(
      sshConfig({ ...wanted, connector: 'ncat' }),
      /by ncat: it is not on PATH\. Run again with --connector kit$/,
    )
  } finally {
    process.env.PATH = path
  }
})

needs(test, 'ssh', 'sshd')(
  'connects ssh through a SOCKS5 proxy and a jump host',
  async ({ dir, config, wanted }) => {
    const target = await sshServer()
    const jump = await sshServer({ permitOpen: `127.0.0.1:${target.port}` })
    const proxy = await socksServer({ user: 'me', password: 'changeme' })
    try {
      const known = join(dir, 'known_hosts')
      await fs.writeFile(
        known,
        [target, jump].map(({ port, hostKey }) => `[127.0.0.1]:${port} ${hostKey}\n`).join(''),
      )
      // the same key for both hosts, as a user has
      await fs.copy(`${target.identity}.pub`, join(jump.dir, 'user.pub'))
      await fs.writeFile(
        config,
        `Host *\n  UserKnownHostsFile "${known}"\n  BatchMode yes\n  IdentityAgent none\n`,
      )
      await sshConfig({
        ...wanted,
        to: `127.0.0.1:${target.port}`,
        user: 'root',
        identity: target.identity,
        via: [`socks5://me@${proxy.address}`, `ssh://root@127.0.0.1:${jump.port}`],
        password: 'env:PROXY_PASSWORD',
      })
      const { stdout } = await execute('ssh', ['-F', 'config', 'db', 'echo', 'there'], {
        cwd: dir, // ssh hands a path with a space on to its jump as two
        env: { ...process.env, PROXY_PASSWORD: 'changeme' },
      })
      equal(stdout, 'there\n')
      equal(proxy.asked.join(), `ipv4 127.0.0.1:${jump.port}`)
    } finally {
      await Promise.all([target.close(), jump.close(), proxy.close()])
    }
  },
)

test.run()
