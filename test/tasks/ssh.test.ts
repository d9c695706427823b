/** The channel over SSH: a real sshd on loopback, whose powershell.exe is pwsh. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { ConnectionError, type HostError, openPowerShell, parseHost } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { type SshHost, sshHost } from '../ssh-host.ts'

const root = join(import.meta.dirname as string, '..', '..')
const HOSTILE = 'Bob’s "VM"; $(calc) `n %PATH% ^& 桥接 \ud800'

const names = suite('a host’s name')

names('is taken apart', () => {
  deepEqual(parseHost('ssh://hyperv.lan'), {
    name: 'hyperv.lan',
    user: undefined,
    port: undefined,
    program: 'powershell.exe',
  })
  deepEqual(
    parseHost('ssh://LAN%5CBob%20B@[fe80::1%25eth0]:2222/?powershell=pwsh').user,
    'LAN\\Bob B',
  )
  equal(parseHost('ssh://LAN\\Bob@[::1]:22').name, '::1')
  equal(parseHost('SSH://a_b?powershell=C:/pwsh/pwsh.exe').program, 'C:/pwsh/pwsh.exe')
})

names('is refused where ssh or a shell could take it for something else', () => {
  const hostile = [
    '-oProxyCommand=calc',
    'ssh://-oProxyCommand=calc',
    'ssh://-l@host',
    'ssh://%2doProxyCommand=x@host',
    'ssh://a b',
    'ssh://a\nb',
    'ssh://a;calc',
    'ssh://$(calc)@host',
    'ssh://%60calc%60@host',
    'ssh://a%0ab@host',
    'ssh://%zz@host',
    'ssh://@host',
    'ssh://host:0',
    'ssh://host:99999',
    'ssh://host:22:22',
    'ssh://host/path',
    'ssh://host?powershell=-x',
    'ssh://host?powershell=a%20b',
    'ssh://host?powershell=a;calc',
    'ssh://',
    'ssh://user@',
    'http://host',
    'hyperv.lan',
    '',
  ]
  for (const host of hostile) {
    throws(
      () => parseHost(host),
      /^TypeError: Cannot use ".*" as a host: it is local, or ssh:/,
      host,
    )
  }
})

names('are told without a password that somebody typed there', () => {
  for (const password of ['xyzzy', 'xyzzy/plugh', 'xyzzy@plugh', 'xyzzy#plugh']) {
    throws(
      () => parseHost(`ssh://me:${password}@host`),
      /^TypeError: Cannot use "ssh:\/\/me:\.\.\.@host" as a host: /,
    )
  }
})

names.run()

const hosts = suite<{ host: SshHost }>('a host over SSH')
const test = needs(hosts, 'sshd', 'ssh', 'ps', process.env.POWERSHELL || 'pwsh')

hosts.before(async (context) => {
  if (context.host === undefined) context.host = await sshHost()
})
hosts.after(({ host }) => host?.close())

const open = ({ url, env }: SshHost) => openPowerShell({ host: url, env })

test('runs scripts, with values as they are, over one connection', async ({ host }) => {
  const logins = async () => (await log(host)).match(/Accepted publickey/g)?.length ?? 0
  const before = await logins()
  for (let n = 0; n < 2; n++) {
    const { ps, close } = open(host)
    equal((await ps`"<${HOSTILE}>"`).stdout, `<${HOSTILE}>`)
    equal((await ps`'x' * 1MB`).stdout.length, 1024 ** 2)
    await rejects(Promise.resolve(ps`Get-Item -LiteralPath 'none'`), (error: HostError) => {
      equal(error.id, 'PathNotFound,Microsoft.PowerShell.Commands.GetItemCommand')
      return true
    })
    await close()
  }
  equal(await logins(), before + 1)
})

test('tells a link that broke apart, and leaves no script behind', async ({ host }) => {
  const { using, close } = open(host)
  const beat = join(host.dir, 'beat')
  const broken = rejects(
    Promise.resolve(using({ step: 'Make the VM' })`
    $file = ${beat}
    while ($true) { [IO.File]::AppendAllText($file, 'x'); Start-Sleep -Milliseconds 50 }`),
    (error: Error) => {
      ok(error instanceof ConnectionError)
      match(
        error.message,
        /^The connection to "127\.0\.0\.1" was lost in the middle of "Make the VM" \(exit code 255\)/,
      )
      match(error.message, /Run the same again: it goes on from what is done$/)
      return true
    },
  )
  await begins(beat)
  await host.cut()
  await broken
  await stops(beat)
  await close()
  const next = open(host)
  equal((await next.ps`1`).stdout, '1')
  await next.close()
})

test('ends the script there at its time limit, and when it is not wanted any more', async ({ host }) => {
  const { using, ps, close } = open(host)
  const beats = ['limit', 'closed'].map((name) => join(host.dir, name)) as [string, string]
  await ps`1` // the limit is the script's alone
  await rejects(
    Promise.resolve(using({ timeout: 3 })`
      $file = ${beats[0]}
      while ($true) { [IO.File]::AppendAllText($file, 'x'); Start-Sleep -Milliseconds 50 }`),
    (error: HostError) => error.id === 'TimedOut',
  )
  const { size } = await fs.stat(beats[0])
  const running = rejects(
    Promise.resolve(ps`
    $file = ${beats[1]}
    while ($true) { [IO.File]::AppendAllText($file, 'x'); Start-Sleep -Milliseconds 50 }`),
    ConnectionError,
  )
  await begins(beats[1])
  await close()
  await running
  await stops(beats[1])
  equal((await fs.stat(beats[0])).size, size)
})

test('leaves no script behind when the kit itself is killed', async ({ host }) => {
  const beat = join(host.dir, 'killed')
  const program = join(host.dir, 'program.ts')
  await fs.writeFile(
    program,
    `import { existsSync } from 'node:fs'
    import process from 'node:process'
    import { openPowerShell } from ${JSON.stringify(join(root, 'tasks', 'task.ts'))}
    void openPowerShell({ host: ${JSON.stringify(host.url)} }).ps\`$file = \${${
      JSON.stringify(beat)
    }}
      while ($true) { [IO.File]::AppendAllText($file, 'x'); Start-Sleep -Milliseconds 50 }\`
    while (!existsSync(${JSON.stringify(beat)})) await new Promise((done) => setTimeout(done, 50))
    process.kill(process.pid, 'SIGKILL')`,
  )
  const runtime = 'Deno' in globalThis ? ['run', '-A', '--config', join(root, 'deno.json')] : []
  await rejects(promisify(execFile)(process.execPath, [...runtime, program], { env: host.env }))
  await stops(beat)
})

test('says in a sentence why there is no connection', async ({ host }) => {
  const message = async (url: string, env = host.env) => {
    const { ps, close } = openPowerShell({ host: url, env })
    let said = ''
    await rejects(Promise.resolve(ps`1`), (error: Error) => {
      said = error.message
      return error instanceof ConnectionError
    })
    await close()
    return said
  }
  match(await message('ssh://127.0.0.1:1'), /^Cannot connect to "127\.0\.0\.1": .*refused/)
  match(
    await message('ssh://no-such-host.invalid'),
    /^Cannot connect to "no-such-host\.invalid": .*resolve/,
  )
  match(
    await message(`${host.url}?powershell=no-such`),
    /there is no program "no-such".+\?powershell=pwsh$/,
  )
  match(
    await message(`ssh://nobody@127.0.0.1:${host.port}`),
    /^Cannot connect to "127\.0\.0\.1": it takes none of the keys/,
  )
  match(await message(host.url, { ...host.env, PATH: '/none' }), /no program "ssh" is on PATH/)
})

test('refuses a host key that is unknown, and one that has changed', async () => {
  const host = await sshHost()
  try {
    const known = await fs.readFile(host.knownHosts, 'utf8')
    await fs.writeFile(host.knownHosts, '')
    await rejects(
      once(host),
      new RegExp(
        `its host key is not known here\\. .+ Run: ssh -p ${host.port} 127\\.0\\.0\\.1 exit$`,
      ),
    )
    equal(await fs.readFile(host.knownHosts, 'utf8'), '')
    await fs.writeFile(host.knownHosts, known)
    await host.changeKey()
    await rejects(
      once(host),
      new RegExp(
        `its host key is not the one that is known.+Run: ssh-keygen -R "\\[127\\.0\\.0\\.1\\]:${host.port}"$`,
      ),
    )
    equal(await fs.readFile(host.knownHosts, 'utf8'), known)
  } finally {
    await host.close()
  }
})

test('does not mind which shell the host starts commands with', async () => {
  const host = await sshHost(process.env, { shell: 'pwsh -NoProfile' })
  try {
    equal(await once(host), HOSTILE)
  } finally {
    await host.close()
  }
})

hosts.run()

const commands = suite<{ host: SimulatedHost; ssh: SshHost }>('--host')
const commanding = needs(commands, 'sshd', 'ssh', 'ps', process.env.POWERSHELL || 'pwsh')

commanding('does a task’s job on another machine, and refuses what is no host', async () => {
  const host = await simulatedHost()
  const ssh = await sshHost(host.env)
  try {
    const run = (...args: string[]) => runTask({ ...host, env: ssh.env }, 'create-switch', ...args)
    const made = await run(
      '--switch',
      HOSTILE.slice(0, -2),
      '--type',
      'internal',
      '--host',
      ssh.url,
    )
    equal(made.code, 0, made.stderr)
    equal(JSON.parse(made.stdout).changed, true)
    const { switches } = await host.state()
    ok(switches.some(({ name }: { name: string }) => name === HOSTILE.slice(0, -2)))
    const refused = await run(
      '--switch',
      'x',
      '--type',
      'internal',
      '--host',
      'ssh://-oProxyCommand=x',
    )
    equal(refused.code, 1)
    match(refused.stderr, /^Cannot use "ssh:\/\/-oProxyCommand=x" as a host/)
  } finally {
    await ssh.close()
    await host.close()
  }
})

commands.run()

async function once(host: SshHost): Promise<string> {
  const { ps, close } = open(host)
  try {
    return (await ps`${HOSTILE}`).stdout
  } finally {
    await close()
  }
}

function log(host: SshHost): Promise<string> {
  return fs.readFile(join(host.dir, 'sshd.log'), 'utf8')
}

async function begins(file: string): Promise<void> {
  while (!await fs.pathExists(file)) await wait(50)
}

/** A script that beats stops, and stays so. */
async function stops(file: string): Promise<void> {
  const size = async () => (await fs.stat(file)).size
  for (let n = 0; n < 150; n++) {
    const before = await size()
    await wait(400)
    if (await size() === before) return
  }
  throw new Error('The script goes on')
}
