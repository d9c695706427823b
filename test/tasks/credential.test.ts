/** Where a password comes from, which is never a command line. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { inspect } from 'node:util'
import { suite } from 'uvu'
import { secrets } from '../../tasks/open-tunnel/credentials.ts'
import { CREDENTIAL_MANAGER, openPowerShell, readCredential } from '../../tasks/task.ts'
import { FAKE_MANAGER, powershellWithManager } from '../credential-manager.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { socksServer } from '../socks-server.ts'

const it = suite('readCredential')
const test = needs(it, 'pwsh')

it('takes a password from the environment, and out of it', async () => {
  process.env.TEST_PASSWORD = 'p$ä"’'
  const { password, ...rest } = await readCredential('env:TEST_PASSWORD', 'password')
  equal(password.reveal(), 'p$ä"’')
  deepEqual(rest, {})
  equal(process.env.TEST_PASSWORD, undefined)
  await rejects(readCredential('env:TEST_PASSWORD', 'password of bob'), {
    message: 'Cannot take the password of bob from the environment: there is no variable ' +
      '"TEST_PASSWORD". Set it, or use prompt',
  })
})

it('takes nothing that could be the password itself, and does not repeat it', async () => {
  for (const way of ['hunter2', 'env:', 'manager:', 'prompt:', 'promptx', 'stdin ', '']) {
    await rejects(readCredential(way, 'password'), (error: Error) => {
      match(error.message, /^Cannot take the password from the command line, which others see/)
      return !error.message.includes('hunter2')
    })
  }
})

test('reads one of Windows’ Credential Manager, with its user, and no text of it', async () => {
  const { ps, close } = openPowerShell()
  try {
    await ps`
      $source = ${FAKE_MANAGER}
      Add-Type -TypeDefinition $source`
    const heard: string[] = []
    const found = await readCredential('manager:proxy:’s "db"', 'password', async (...script) => {
      const answer = await ps(...script)
      heard.push(answer.stdout)
      return answer
    })
    equal(found.user, 'bob')
    equal(found.password.reveal(), 'p$ä"’;\n桥 of proxy:’s "db"')
    ok(!inspect(found).includes('桥'))
    // what Windows may log is not the password
    const bytes = Buffer.from(heard.join().split('\n')[0] as string, 'base64')
    ok(bytes.length > 0 && !bytes.toString('utf16le').includes('桥'))
    await rejects(readCredential('manager:none', 'password', ps), {
      message: 'Cannot take the password "none" from the Credential Manager: it has no generic ' +
        'credential of that name (1168). Run, and answer its question: ' +
        'cmdkey /generic:"none" /user:NAME /pass',
    })
    await rejects(
      readCredential('manager:ssh', 'password', ps),
      /it is closed to this session \(1312\), as over SSH\. Use prompt or env:NAME instead$/,
    )
  } finally {
    await close()
  }
})

const elsewhere = process.platform === 'win32' ? it.skip : test
elsewhere('says so where there is none, with C# that PowerShell compiles', async () => {
  await rejects(readCredential('manager:x', 'password'), {
    message:
      'Cannot take the password "x" from the Credential Manager: only Windows has one. Use ' +
      'prompt or env:NAME instead',
  })
  const { ps, close } = openPowerShell()
  try {
    const { stdout } = await ps`
      $source = ${CREDENTIAL_MANAGER}
      Add-Type -TypeDefinition $source
      $type = [VboxToHyperV.CredentialManager]
      @($type.GetMethod('Read').GetParameters() | ForEach-Object { $_.ParameterType.Name }) -join ' '
      # as wincred.h lays CREDENTIALW out for 64 bits: 80 bytes, of which the size of the blob is at 32
      $entry = $type.GetNestedType('Entry', 'NonPublic')
      [Runtime.InteropServices.Marshal]::SizeOf([type]$entry)
      [int][Runtime.InteropServices.Marshal]::OffsetOf([type]$entry, 'Size')`
    equal(stdout, 'String NetworkCredential&\n80\n32')
  } finally {
    await close()
  }
})

elsewhere('signs in at a proxy by it on the command line, and through a tunnel', async () => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'credential-'))
  const proxy = await socksServer({ user: 'bob', password: 'p$ä"’;\n桥 of db' })
  try {
    const env = { ...process.env, POWERSHELL: await powershellWithManager(dir) }
    const args = ['--proxy', `socks5://${proxy.address}`, '--credential', 'manager:db']
    const told = await runTask({ dir, env }, 'check-proxy', ...args)
    equal(told.code, 0, told.stderr)
    ok(!`${told.stdout}${told.stderr}`.includes('p$'))
    const hop = `socks5://bob@${proxy.address}?password=manager:db`
    const way = ['--via', hop, '--to', proxy.address, '--check']
    const tunnel = await runTask({ dir, env }, 'open-tunnel', ...way)
    equal(tunnel.code, 0, tunnel.stderr)
    const connect = ['--proxy', proxy.address, '--password', 'manager:db', '--check']
    const connected = await runTask(
      { dir, env },
      'socks-connect',
      ...connect,
      '127.0.0.1',
      `${proxy.port}`,
    )
    equal(connected.code, 0, connected.stderr)
    const ssh = ['--via', `ssh://me@${proxy.address}?password=manager:none`, ...way.slice(2)]
    const lacking = await runTask({ dir, env }, 'open-tunnel', ...ssh)
    match(
      lacking.stderr,
      /^Cannot open the tunnel "[^"]+": hop 1, ssh:[^ ]+: Cannot take the password "none" from the/,
    )
    const none = await runTask({ dir, env }, 'check-proxy', ...args.slice(0, 3), 'manager:none')
    match(none.stderr, /^Cannot take the password "none" from the Credential Manager/)
  } finally {
    await proxy.close()
    await fs.remove(dir)
  }
})

it('asks for the same secret once', async () => {
  process.env.TEST_PASSWORD = 'once'
  const secret = secrets()
  const first = await secret('env:TEST_PASSWORD', 'password for hop 1')
  equal(await secret('env:TEST_PASSWORD', 'password for hop 2'), first)
})

it.run()
