import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import {
  intranet,
  type IntranetOptions,
  scheduleIntranet,
  unscheduleIntranet,
} from '../../recipes/intranet.ts'
import { type PowerShell, script } from '../../tasks/task.ts'
import { undoToggleShare } from '../../tasks/toggle-share.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { socksServer, tcpServer } from '../socks-server.ts'
import { analyze } from '../tasks/analyze.ts'

const recipe = suite('intranet')
const test = needs(recipe, 'pwsh')
const hostile = 'Bob’s "WLAN"; $(calc) 桥接\\'
const CONNECTED = 'Microsoft-Windows-NetworkProfile/Operational 10000'
const WIFI = 'Microsoft-Windows-WLAN-AutoConfig/Operational 8001'

let host: SimulatedHost
let seed: string

recipe.before(async () => {
  host = await simulatedHost()
  await host.ps`
    $null = New-VMSwitch -Name 桥接 -NetAdapterName Wi-Fi -AllowManagementOS $true
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal`
  // each is a process, and most tests need none
  await host.change((state) => state.host.tasksHeld = true)
  seed = await host.text()
})
recipe.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.ProgramData))
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
})
recipe.after(() => host.close())

/** Without the guard, whose tests are in guard.test.ts. */
const turn = (options: IntranetOptions) =>
  intranet({ guard: false, folder: join(host.dir, 'none'), ...options }, host.ps)
const shared = async () => {
  const { switches, adapters } = await host.state()
  const { hostNics } = switches.find(({ name }: { name: string }) => name === '桥接')
  return adapters.some(({ guid }: { guid: string }) => guid === hostNics[0]?.id)
}
const changes = async () =>
  (await host.calls()).map(({ cmdlet }) => cmdlet).filter((cmdlet) => !cmdlet.startsWith('Get-'))
/** Takes the laptop elsewhere: the Wi-Fi connects there, and the host too if it shares the adapter. */
const move = (name: string | null, more: object = {}) =>
  host.change((state) => {
    const wifi = state.adapters.find(({ name }: { name: string }) => name === 'Wi-Fi')
    wifi.network = name === null ? null : { ...wifi.network, name, ...more }
    wifi.status = name === null ? 'Disconnected' : 'Up'
    for (const profile of state.profiles) if (name !== null) profile.name = name
    if (name === null) state.profiles = []
  })
test('leaves the adapter to the VM on the intranet, and has it back elsewhere', async () => {
  const on = await turn({ state: 'on', switch: '桥接' })
  assert.deepEqual([on.changed, on.intranet, on.shared], [true, 'on', false])
  assert.equal(await shared(), false)
  assert.equal((await turn({ state: 'on' })).changed, false)
  const off = await turn({ state: 'off' })
  assert.deepEqual([off.changed, off.intranet, off.shared], [true, 'off', true])
  assert.equal(await shared(), true)
  await undoToggleShare(off, host.ps)
  assert.equal(await shared(), false)
})

test('knows the intranet by its name in Windows, in whatever case', async () => {
  const text = await host.text()
  const dry = await turn({ state: 'auto', network: ['HQ', 'oFFice'], dryRun: true })
  assert.deepEqual([dry.changed, dry.inside, dry.intranet], [true, true, 'on'])
  assert.equal(await host.text(), text)
  assert.deepEqual(await changes(), [])
  const result = await turn({ state: 'auto', network: ['HQ', 'oFFice'] })
  assert.deepEqual(result.networks, ['Office'])
  assert.equal(await shared(), false)
})

test('knows the network of the Wi-Fi that is the VM’s alone by its SSID', async () => {
  await turn({ state: 'on' })
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  const still = await turn({ state: 'auto', network: ['Office'] })
  assert.deepEqual([still.changed, still.inside, still.networks], [false, true, ['Office']])
  assert.deepEqual(await changes(), [])
  await move('Home', { ssid: '桥接网 <5G> & co' })
  const home = await turn({ state: 'auto', network: ['Office'] })
  assert.deepEqual([home.changed, home.inside, home.intranet], [true, false, 'off'])
  assert.deepEqual(home.networks, ['桥接网 <5G> & co'])
  assert.equal(await shared(), true)
})

test('compares whole names, whatever is in them', async () => {
  const names = [hostile, '[a*]', '桥接网']
  assert.equal((await turn({ state: 'status', network: names })).inside, false)
  for (const name of names) {
    await move(name)
    assert.equal((await turn({ state: 'status', network: [name] })).inside, true, name)
  }
})

test('changes nothing where the host is on no network', async () => {
  await move(null)
  // the host’s side of an internal switch leads nowhere
  await host.change((state) => {
    const { ifIndex } = state.adapters.find(({ name }: { name: string }) => /NAT/.test(name))
    state.profiles = [{ ifIndex, name: 'Unidentified network', category: 'Public' }]
  })
  const text = await host.text()
  const result = await turn({ state: 'auto', network: ['Office'] })
  assert.deepEqual([result.changed, result.inside, result.networks], [false, null, []])
  assert.equal(await host.text(), text)
  assert.deepEqual(await changes(), [])
})

test('leaves a change alone that another run has not confirmed yet', async () => {
  const folder = join(String(host.env.ProgramData), 'vbox-to-hyperv')
  await fs.outputFile(join(folder, 'guard-x.ps1'), 'throw 1')
  const result = await intranet({ state: 'auto', network: ['HQ'] }, host.ps)
  assert.deepEqual([result.changed, result.inside], [false, false])
})

test('changes nothing while the network is being identified', async () => {
  await host.change((state) => {
    state.adapters.find(({ name }: { name: string }) => name === 'Wi-Fi').physicalMedia = '802.3'
    state.profiles[0].name = 'Identifying...'
    state.profiles[0].connectivity = 'NoTraffic'
  })
  const { changed, inside } = await turn({ state: 'auto', network: ['Office'] })
  assert.deepEqual([changed, inside], [false, null])
})

test('changes nothing where Windows took no note of the Wi-Fi, and says so', async () => {
  await turn({ state: 'on' })
  await host.change((state) =>
    state.adapters.find(({ name }: { name: string }) => name === 'Wi-Fi').wlanLog = false
  )
  const result = await turn({ state: 'auto', network: ['Office'] })
  assert.deepEqual([result.changed, result.inside], [false, null])
  assert.deepEqual(result.notes, [
    'The network of the adapter "Wi-Fi" is not known: Windows has no note of its connection. See ' +
    'that it takes notes: wevtutil set-log Microsoft-Windows-WLAN-AutoConfig/Operational /enabled:true',
  ])
})

test('only asks', async () => {
  const text = await host.text()
  const result = await turn({ state: 'status' })
  assert.deepEqual(
    [result.changed, result.intranet, result.networks, result.inside, result.scheduled],
    [false, 'off', ['Office'], null, false],
  )
  assert.equal((await turn({ state: 'status', network: ['Office'] })).inside, true)
  assert.equal(await host.text(), text)
})

test('refuses what it cannot take', async () => {
  await assert.rejects(turn({ state: 'auto' }), {
    message: 'Cannot tell the intranet from elsewhere: no network is named. ' +
      'Run again with its SSID, or its name in Windows: --network NAME',
  })
  for (const name of ['', ' ', 'a\nb']) {
    await assert.rejects(turn({ state: 'auto', network: ['Office', name] }), {
      message: `Cannot look for the network ${JSON.stringify(name)}: ` +
        'a name is not empty and has no control characters. Run: Get-NetConnectionProfile',
    })
  }
  await assert.rejects(turn({ state: 'yes' as 'on' }), {
    message: 'Cannot turn the intranet "yes": it takes on, off, auto or status',
  })
  const network = Array.from({ length: 400 }, (_, index) => `a long name ${index}`)
  await assert.rejects(scheduleIntranet({ network }, host.ps), {
    message:
      'Cannot schedule for 400 networks: their names are too long for one task of Windows. ' +
      'Name fewer with --network',
  })
  const nowhere = [join(host.dir, 'node'), join(host.dir, 'intranet.ts')]
  await assert.rejects(scheduleIntranet({ network: ['Office'], command: nowhere }, host.ps), {
    message: `Cannot schedule "auto": the file "${nowhere[0]}" is not on this host. ` +
      'Run it at the host itself, in PowerShell',
  })
  await host.change((state) => state.user = { administrator: true })
  await assert.rejects(scheduleIntranet({ network: ['Office'] }, host.ps), {
    message:
      'Cannot schedule "auto": its task is to run with administrator rights, and PowerShell ' +
      'runs without. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens',
  })
  await assert.rejects(unscheduleIntranet({}, host.ps), {
    message:
      'Cannot take "auto" from the schedule: PowerShell runs without administrator rights. ' +
      'Run: Start-Process powershell -Verb RunAs, and this again in the window it opens',
  })
  assert.deepEqual(await changes(), [])
})

test('lets the host do so by itself, and no more', async () => {
  const log = join(host.dir, 'intranet.log')
  const text = await host.text()
  const dry = await scheduleIntranet({ network: ['Office'], log, dryRun: true }, host.ps)
  assert.equal(dry.changed, true)
  assert.equal(await host.text(), text)
  const made = await scheduleIntranet({ network: ['Office'], log }, host.ps)
  const { name } = (await host.state()).host
  assert.deepEqual(made, {
    changed: true,
    task: 'vbox-to-hyperv intranet',
    user: `${name}\\user`,
    log,
    before: { scheduled: false },
  })
  const [task] = (await host.state()).tasks
  assert.deepEqual([task.logon, task.level, task.principal], ['Interactive', 'Highest', made.user])
  assert.deepEqual(task.settings, { batteries: true, startWhenAvailable: true })
  assert.equal(task.instances, 'Queue')
  assert.deepEqual(task.triggers.map(({ kind }: { kind: string }) => kind), ['Event', 'Logon'])
  assert.deepEqual(task.triggers[0].events, [CONNECTED, CONNECTED.replace(/0$/, '1'), WIFI])
  const registered = await host.text()
  assert.equal((await scheduleIntranet({ network: ['Office'], log }, host.ps)).changed, false)
  assert.equal(await host.text(), registered)
  assert.equal((await turn({ state: 'status' })).scheduled, true)
  // another takes its place
  const other = await scheduleIntranet({ network: ['Office', 'HQ'], log }, host.ps)
  assert.deepEqual([other.changed, other.before.scheduled], [true, true])
  assert.equal((await host.state()).tasks.length, 1)
  assert.equal((await unscheduleIntranet({ dryRun: true }, host.ps)).changed, true)
  assert.equal((await host.state()).tasks.length, 1)
  assert.equal((await unscheduleIntranet({}, host.ps)).changed, true)
  assert.equal((await unscheduleIntranet({}, host.ps)).changed, false)
  assert.deepEqual((await host.state()).tasks, [])
})

test('runs by itself where the Wi-Fi connects, with names as they are', async () => {
  const log = join(host.dir, 'notes', 'intranet.log')
  const network = [hostile, '"Office"']
  await scheduleIntranet({ network, switch: '桥接', guard: false, log }, host.ps)
  await host.change((state) => state.host.tasksHeld = false)
  await move(hostile)
  await host.fire(WIFI)
  const line = await noted(log)
  assert.match(line, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d On /)
  assert.ok(line.includes(`On "${hostile}": that is the intranet\n`), line)
  assert.equal(await shared(), false)
})

test('is a command: JSON for programs, words for people', async () => {
  const auto = await recipeOf('auto', '--network', 'Office', '--dry-run')
  assert.equal(auto.code, 0)
  assert.equal(JSON.parse(auto.stdout).inside, true)
  assert.equal(
    auto.stderr,
    'On "Office": that is the intranet\nThe switch "桥接" would become the VMs’ alone\n' +
      'The host is offline while the switch "桥接" is not shared: it has no other network adapter that is connected\n',
  )
  const failed = await recipeOf('schedule', '--dry-run')
  assert.deepEqual([failed.code, failed.stdout], [1, ''])
  assert.match(failed.stderr, /^Cannot tell the intranet from elsewhere: /)
})

test('has scripts that Windows PowerShell 5.1 can read', async () => {
  const folder = join(host.dir, 'scripts')
  let count = 0
  const keep: PowerShell = async (pieces, ...values) => {
    await fs.outputFile(join(folder, `${count++}.ps1`), `\ufeff${script(pieces, ...values)}`)
    return await host.ps(pieces, ...values)
  }
  await intranet({ state: 'status' }, keep)
  await scheduleIntranet({ network: ['Office'] }, keep)
  const [task] = (await host.state()).tasks
  const action = Buffer.from(task.action.argument.split(' ').at(-1), 'base64').toString('utf16le')
  await fs.outputFile(join(folder, 'action.ps1'), `\ufeff${action}`)
  await unscheduleIntranet({}, keep)
  assert.equal(count, 4)
  assert.deepEqual(await analyze(host.ps, folder), [])
})

function recipeOf(...args: string[]) {
  return runTask(host, '../recipes/intranet', ...args)
}

/** What the task noted of its run, when it has. */
async function noted(log: string): Promise<string> {
  for (let n = 0; n < 900; n++) {
    const text = await fs.readFile(log, 'utf8').catch(() => '')
    if (text.endsWith('\n')) return text
    await wait(100)
  }
  throw new Error('the task noted nothing')
}

test('turns the whole intranet on and off: adapter, proxies, settings and tunnels', async () => {
  const socks = await socksServer()
  const echo = await tcpServer((socket) => socket.pipe(socket))
  const home = join(host.dir, 'home')
  await fs.outputFile(join(home, '.gitconfig'), '[user]\n\tname = me\n')
  const config = join(host.dir, 'tunnels.json')
  const tunnel = { name: 'db', to: `127.0.0.1:${echo.port}`, via: [`socks5://${socks.address}`] }
  await fs.writeJson(config, { tunnels: [tunnel] })
  const options = {
    socks: socks.address,
    destination: `127.0.0.1:${echo.port}`,
    for: ['git' as const],
    tunnels: config,
    folder: join(host.dir, 'kept'),
    home,
  }
  const gitconfig = () => fs.readFile(join(home, '.gitconfig'), 'utf8')
  try {
    const before = await gitconfig()
    const dry = await turn({ state: 'on', ...options, dryRun: true })
    assert.deepEqual([dry.changed, await gitconfig(), await shared()], [true, before, true])
    const on = await turn({ state: 'on', ...options })
    assert.deepEqual([on.changed, on.intranet, on.settings?.[0]?.state], [true, 'on', 'set'])
    assert.match(await gitconfig(), new RegExp(socks.address))
    assert.equal(await shared(), false)
    assert.equal(on.tunnels?.[0]?.name, 'db')
    assert.equal((await turn({ state: 'on', ...options })).changed, false)
    assert.deepEqual((await turn({ state: 'status', folder: options.folder })).tunnels, on.tunnels)
    // a later call that fails leaves what this one has set
    const set = await gitconfig()
    await fs.writeJson(config, { tunnels: [{ ...tunnel, via: ['ssh://nobody@127.0.0.1:1'] }] })
    const other = { ...options, only: ['corp.example'] }
    await assert.rejects(turn({ state: 'on', ...other }), /Cannot keep the tunnels of /)
    assert.deepEqual([await gitconfig(), await shared()], [set, false])
    await fs.writeJson(config, { tunnels: [tunnel] })
    const off = await turn({ state: 'off', folder: options.folder })
    assert.deepEqual([off.changed, off.intranet, off.settings?.[0]?.state], [
      true,
      'off',
      'restored',
    ])
    assert.equal(await gitconfig(), before)
    assert.equal(await shared(), true)
    assert.equal((await turn({ state: 'off', folder: options.folder })).changed, false)

    // what is not whole is taken back
    await fs.writeJson(config, { tunnels: [{ ...tunnel, via: ['ssh://nobody@127.0.0.1:1'] }] })
    await assert.rejects(turn({ state: 'on', ...options }), /Cannot keep the tunnels of /)
    assert.deepEqual([await gitconfig(), await shared()], [before, true])
    await fs.writeJson(config, { tunnels: [tunnel] })
    await fs.outputFile(join(home, '.docker', 'config.json'), '{ broken')
    await assert.rejects(
      turn({ state: 'on', ...options, for: ['git', 'docker'] }),
      /Cannot set Docker’s proxy/,
    )
    assert.deepEqual([await gitconfig(), await shared()], [before, true])
    const now = await turn({ state: 'status', folder: options.folder })
    assert.equal(now.tunnels, undefined)
    const state = await host.text()
    await assert.rejects(turn({ state: 'on', ...options, socks: '127.0.0.1:1' }), {
      message:
        /^Cannot go on the intranet: the proxy socks5:\/\/127\.0\.0\.1:1 does not work, and nothing was changed\. /,
    })
    assert.deepEqual([await gitconfig(), await host.text()], [before, state])
    // a guest that the change cuts off from the intranet takes the way along
    const cut: PowerShell = async (pieces, ...values) => {
      await echo.close()
      return await host.ps(pieces, ...values)
    }
    await assert.rejects(intranet({ state: 'on', guard: false, ...options, settle: 0 }, cut), {
      message:
        /^Cannot go on the intranet: the proxy socks5:\/\/.* does not work, and what was changed is taken back\. Cannot reach /,
    })
    assert.deepEqual([await gitconfig(), await shared()], [before, true])
  } finally {
    await turn({ state: 'off', folder: options.folder })
    await Promise.all([socks.close(), echo.close()])
  }
})

test('signs in to a proxy for the check alone, and keeps no password', async () => {
  const proxy = await socksServer({ user: 'me', password: 'xyzzy' })
  const echo = await tcpServer((socket) => socket.pipe(socket))
  const home = join(host.dir, 'home of me')
  const folder = join(host.dir, 'kept of me')
  const destination = `127.0.0.1:${echo.port}`
  const options = { socks: proxy.address, destination, for: ['git' as const], folder, home }
  try {
    await fs.outputFile(join(home, '.gitconfig'), '')
    const state = await host.text()
    const cannot =
      `Cannot go on the intranet: the proxy socks5://${proxy.address} does not work, ` +
      `and nothing was changed. Cannot sign in to the proxy ${proxy.address}:`
    await assert.rejects(turn({ state: 'on', ...options }), {
      message: `${cannot} it wants a user and a password. ` +
        'Run again with --user NAME --credential prompt',
    })
    const account = { user: 'me', credential: 'env:PROXY_PASSWORD' }
    process.env.PROXY_PASSWORD = 'plugh'
    await assert.rejects(turn({ state: 'on', ...options, ...account }), {
      message: `${cannot} it does not take this password of "me". ` +
        'Run again with the right one: --user NAME --credential prompt',
    })
    assert.equal(await host.text(), state)
    process.env.PROXY_PASSWORD = 'xyzzy'
    const on = await turn({ state: 'on', ...options, ...account })
    assert.equal(process.env.PROXY_PASSWORD, undefined)
    assert.equal(on.intranet, 'on')
    assert.deepEqual(on.notes.slice(-1), [
      `The proxy socks5://${proxy.address} wants a password, which is not stored: ` +
      'programs have to know it by themselves',
    ])
    assert.match(await fs.readFile(join(home, '.gitconfig'), 'utf8'), new RegExp(proxy.address))
    for (const file of [join(home, '.gitconfig'), join(folder, 'use-proxy.json')]) {
      assert.ok(!(await fs.readFile(file, 'utf8')).includes('xyzzy'))
    }
    // where the password is gone, the adapter comes back all the same
    const away = await turn({ state: 'auto', network: ['HQ'], ...options, ...account })
    assert.deepEqual([away.changed, away.intranet], [true, 'off'])
    // the command, and the variable is there for the tunnels
    const config = join(host.dir, 'tunnels of me.json')
    await fs.writeJson(config, {
      tunnels: [{
        name: 'db',
        to: destination,
        via: [`socks5://me@${proxy.address}?password=env:PROXY_PASSWORD`],
      }],
    })
    const args = ['--socks', proxy.address, '--destination', destination, '--for', 'git']
    const signIn = ['--user', 'me', '--credential', 'env:PROXY_PASSWORD']
    const own = { HOME: home, USERPROFILE: home, GIT_CONFIG_GLOBAL: join(home, '.gitconfig') }
    const env = { ...host.env, ...own, PROXY_PASSWORD: 'xyzzy' }
    const kept = ['--folder', folder, '--no-guard']
    const done = await runTask(
      { ...host, env },
      '../recipes/intranet',
      'on',
      ...args,
      ...signIn,
      ...['--tunnels', config],
      ...kept,
    )
    assert.equal(done.code, 0, done.stderr)
    assert.equal(JSON.parse(done.stdout).tunnels[0].name, 'db')
    assert.ok(!`${done.stdout}${done.stderr}`.includes('xyzzy'))
    const off = await runTask({ ...host, env }, '../recipes/intranet', 'off', ...kept)
    assert.equal(off.code, 0, off.stderr)
  } finally {
    delete process.env.PROXY_PASSWORD
    await turn({ state: 'off', folder })
    await Promise.all([proxy.close(), echo.close()])
  }
})

test('schedules itself with proxies and tunnels, whatever these are called', async () => {
  const result = await scheduleIntranet({
    network: ['Office'],
    socks: '192.168.56.191:1080',
    user: 'me',
    credential: 'manager:the proxy’s',
    for: ['git', 'env'],
    only: ['corp.example', '10.0.0.0/8'],
    tunnels: 'C:\\my “tunnels”.json',
    command: [process.execPath, process.execPath],
  }, host.ps)
  assert.equal(result.changed, true)
  const [task] = (await host.state()).tasks
  const encoded = /-EncodedCommand (\S+)$/.exec(task.action.argument)?.[1] ?? ''
  const text = Buffer.from(encoded, 'base64').toString('utf16le')
  for (
    const part of [
      '--socks=192.168.56.191:1080',
      '--only=',
      'corp.example',
      '--for=',
      '--tunnels=',
      '--user=me',
      '--credential=manager:the proxy',
    ]
  ) {
    assert.ok(text.includes(part), `${part} in ${text}`)
  }
  for (const credential of ['prompt', 'stdin', 'xyzzy', undefined]) {
    const wanted = { network: ['Office'], socks: '192.168.56.191:1080', user: 'me' }
    await assert.rejects(scheduleIntranet({ ...wanted, credential }, host.ps), {
      message: 'Cannot schedule with a password that nobody is there to type: it is env:NAME or ' +
        'manager:TARGET. Run again with --credential manager:TARGET',
    })
  }
})

recipe.run()
