import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { serveProxy, undoServeProxy } from '../../tasks/serve-proxy.ts'
import { Secret } from '../../tasks/task.ts'
import { type GuestRoot, guestRoot, programs } from '../guest-root.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { type SshHost, sshHost } from '../ssh-host.ts'
import { analyze } from './analyze.ts'

const execute = promisify(execFile)

// --- Linux: a real root file system behind a real sshd, with stand-ins for what cannot run in it ---

/** Says its version, and serves by writing down what it was configured with. */
const gost = (version: string) =>
  `#!/bin/sh
if [ "$1" = -V ]; then echo "gost ${version} (go1.22.0 linux/amd64)"; exit 0; fi
[ ! -e /run/broken ] || exit 1
cat "$2" > /run/served
`

const SYSTEMCTL = `#!/bin/sh
echo "$*" >> /run/systemctl.log
for unit; do :; done
case $1 in
  --version) echo 'systemd 252 (252.39-1~deb12u1)' ;;
  is-active) [ -e /run/active ] ;;
  is-enabled) [ -e /run/enabled ] ;;
  enable) touch /run/enabled ;;
  disable) rm -f /run/enabled /run/active /run/served ;;
  restart)
    rm -f /run/active
    CREDENTIALS_DIRECTORY=/etc/vbox-to-hyperv
    eval "$(sed -n 's/^ExecStart=//p' /etc/systemd/system/$unit)" && touch /run/active
    exit 0 ;;
esac
`

/** It shows a single address without its length. */
const UFW = `#!/bin/sh
case "$*" in
  status) [ -e /run/firewalld ] || echo 'Status: active' ;;
  'show added') cat /run/ufw 2> /dev/null ;;
  delete*) shift 2; grep -v "from \${4%/32} to $6 port $8 " /run/ufw > /run/ufw.new; mv /run/ufw.new /run/ufw ;;
  allow*) echo "ufw allow from \${5%/32} to $7 port $9 proto tcp comment 'vbox-to-hyperv'" >> /run/ufw ;;
esac
`

/** What `--permanent` has is in another list than what is in force; either says by a warning alone that it did nothing. */
const FIREWALLD = `#!/bin/sh
list=/run/firewalld
[ "$1" != --permanent ] || { list=/run/firewalld-permanent; shift; }
rule=\${1#*=}
case $1 in
  --state) [ -e /run/firewalld ] || exit 252 ;;
  --query-rich-rule=*) grep -qxF -e "$rule" $list 2> /dev/null ;;
  --add-rich-rule=*)
    [ ! -e /run/refused ] || [ $list != /run/firewalld ] || exit 13
    grep -qxF -e "$rule" $list 2> /dev/null || printf '%s\\n' "$rule" >> $list ;;
  --remove-rich-rule=*)
    if grep -vxF -e "$rule" $list > $list.new; then :; fi
    mv $list.new $list ;;
  *) exit 2 ;;
esac
`

const IP = '#!/bin/sh\necho "2: eth0    inet 192.168.56.191/24 brd 192.168.56.255 scope global"\n'

interface Context {
  root: GuestRoot
  host: SshHost
  dir: string
}

const linux = suite('serveProxy in a Linux guest')

const inRoot = needs(linux, 'sshd', 'ssh', 'ssh-keygen', 'pwsh', ...programs)

const UNIT = 'etc/systemd/system/vbox-to-hyperv-proxy.service'
const CONFIG = 'etc/vbox-to-hyperv/gost.json'
const OWN = 'usr/local/lib/vbox-to-hyperv/gost'

let made: Promise<Context> | undefined

/** Made once, as that takes longer than a test. */
async function make(): Promise<Context> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'serve-proxy-'))
  const root = await guestRoot('none')
  const shell = join(dir, 'shell')
  await fs.writeFile(shell, `#!/bin/sh\nexec chroot '${root.path}' /bin/sh "$@"\n`, { mode: 0o755 })
  const stubs = { systemctl: SYSTEMCTL, ufw: UFW, 'firewall-cmd': FIREWALLD, ip: IP }
  const programs = { ...stubs, sleep: '#!/bin/sh\n' }
  for (const [name, text] of Object.entries(programs)) {
    await fs.remove(join(root.path, 'usr/bin', name)) // other roots share it
    await root.write(`usr/bin/${name}`, text)
    await fs.chmod(join(root.path, 'usr/bin', name), 0o755)
  }
  return { root, host: await sshHost(process.env, { shell }), dir }
}

/** A guest with what a test gives it, and nothing left in its /tmp. */
async function guest(work: (context: Context) => Promise<void>): Promise<void> {
  const context = await (made ??= make())
  const { root, host } = context
  for (const name of ['run', 'etc/systemd', 'etc/vbox-to-hyperv', 'usr/local']) {
    await fs.remove(join(root.path, name))
  }
  for (const name of ['run', 'etc']) await fs.ensureDir(join(root.path, name, 'systemd/system'))
  const path = process.env.PATH
  try {
    process.env.PATH = host.env.PATH
    await work(context)
    deepEqual(await fs.readdir(join(root.path, 'tmp')), [])
  } finally {
    process.env.PATH = path
  }
}

linux.after(async () => {
  const context = await made
  await context?.host.close()
  await context?.root.close()
  if (context) await fs.remove(context.dir)
})

async function put(root: GuestRoot, version: string): Promise<void> {
  await root.write('usr/local/bin/gost', gost(version))
  await fs.chmod(join(root.path, 'usr/local/bin/gost'), 0o755)
}

async function local(dir: string, version: string): Promise<string> {
  const path = join(dir, `gost ’${version}`)
  await fs.writeFile(path, gost(version), { mode: 0o755 })
  return path
}

const hash = (text: string) => createHash('sha256').update(text).digest('hex')
const address = '192.168.56.191'

inRoot(
  'serves by the gost on the guest’s PATH, for the host’s network alone, and only once',
  () =>
    guest(async ({ root, host }) => {
      await put(root, '3.0.0')
      const options = { via: host.url, address }
      const before = await fs.readdir(join(root.path, 'etc'))
      const dry = await serveProxy({ ...options, dryRun: true })
      equal(dry.changed, true)
      equal(await root.exists(UNIT), false)
      deepEqual(await fs.readdir(join(root.path, 'etc')), before)
      const result = await serveProxy(options)
      deepEqual(result, {
        ...dry,
        gost: {
          program: '/usr/local/bin/gost',
          version: 'gost 3.0.0 (go1.22.0 linux/amd64)',
          sha256: hash(gost('3.0.0')),
        },
        guest: 'linux',
        proxy: '192.168.56.191:8080',
        firewall: 'ufw',
        before: { served: false, allowed: false },
        subnet: '192.168.56.0/24',
      })
      const config = JSON.parse(await root.read('run/served'))
      equal(config.services[0].addr, '192.168.56.191:8080')
      deepEqual(config.services[0].handler, { type: 'auto' })
      deepEqual(config.admissions, [
        { name: 'host', whitelist: true, matchers: ['192.168.56.0/24'] },
      ])
      const rule = 'ufw allow from 192.168.56.0/24 to 192.168.56.191 port 8080 proto tcp'
      ok((await root.read('run/ufw')).startsWith(rule))
      await root.write('run/systemctl.log', '')
      const inside = { ...options, subnet: '192.168.56.77/24' }
      equal((await serveProxy(inside)).changed, false)
      ok(!/^(restart|enable|daemon-reload)\b/m.test(await root.read('run/systemctl.log')))
      await undoServeProxy(result, options)
      equal(await root.exists(UNIT), false)
      equal(await root.exists('run/enabled'), false)
      equal(await root.read('run/ufw'), '')
      deepEqual(await fs.readdir(join(root.path, 'etc')), before)
      await undoServeProxy(result, options)
    }),
)

inRoot(
  'brings the user’s program, keeps its password for root, and returns to what was served',
  () =>
    guest(async ({ root, host, dir }) => {
      const options = { via: host.url, address, port: 1080, subnet: '192.168.56.1/32' }
      const first = await serveProxy({ ...options, binary: await local(dir, 'v3.0.0') })
      equal(first.gost.program, `/${OWN}`)
      equal(await root.read(OWN), gost('v3.0.0'))
      const unit = await root.read(UNIT)
      match(unit, /DynamicUser=yes\nLoadCredential=gost\.json:/)
      match(unit, /\nRestart=always\n/)
      const password = 'change’me "$(id)" `id` \\'
      const second = await serveProxy({
        ...options,
        binary: await local(dir, '3.1.0'),
        user: 'bob',
        password: new Secret(password),
      })
      deepEqual(second.before, { served: true, allowed: true })
      const config = JSON.parse(await root.read('run/served'))
      deepEqual(config.services[0].handler.auth, { username: 'bob', password })
      equal((await fs.stat(join(root.path, CONFIG))).mode & 0o777, 0o600)
      equal((await fs.stat(join(root.path, 'etc/vbox-to-hyperv'))).mode & 0o777, 0o700)
      equal((await fs.stat(join(root.path, OWN))).mode & 0o777, 0o755)
      ok(!(await root.read('run/systemctl.log')).includes('change'))
      ok(!(await root.read(UNIT)).includes('change'))
      await undoServeProxy(second, options)
      equal(await root.read(OWN), gost('v3.0.0'))
      equal(JSON.parse(await root.read('run/served')).services[0].handler.auth, undefined)
      ok((await root.read('run/ufw')).includes('from 192.168.56.1 to '))
      await undoServeProxy(second, options)
      equal(await root.exists('run/active'), true)
      await undoServeProxy(first, options)
      equal(await root.exists(OWN), false)
      equal(await root.exists('run/active'), false)
    }),
)

/** The addresses and ports that a rule of the guest's firewall opens now, and after a restart. */
const FIREWALLS = {
  ufw: async (root: GuestRoot) =>
    [...(await root.read('run/ufw').catch(() => '')).matchAll(/from (\S+) to (\S+) port (\d+)/g)]
      .map(([, from, to, port]) => `${from?.includes('/') ? from : `${from}/32`} ${to} ${port}`),
  firewalld: async (root: GuestRoot) => {
    const now = await root.read('run/firewalld')
    equal(await root.read('run/firewalld-permanent').catch(() => ''), now)
    return now.split('\n').slice(0, -1).map((line) => {
      // firewalld.richlanguage(5)
      const [, from, to, port] =
        /^rule family="ipv4" source address="([^"]+)" destination address="([^"]+)" port port="(\d+)" protocol="tcp" accept$/
          .exec(line) ?? []
      return `${from} ${to} ${port}`
    })
  },
}

for (const firewall of ['ufw', 'firewalld'] as const) {
  inRoot(
    `opens one place in ${firewall}, and with the proxy it moves`,
    () =>
      guest(async ({ root, host }) => {
        if (firewall === 'firewalld') await root.write('run/firewalld', '')
        await put(root, '3.0.0')
        const [via, rules] = [host.url, () => FIREWALLS[firewall](root)]
        const before = await fs.readdir(join(root.path, 'etc'))
        const first = await serveProxy({ via, address })
        deepEqual([first.firewall, first.before.allowed], [firewall, false])
        deepEqual(await rules(), ['192.168.56.0/24 192.168.56.191 8080'])
        equal((await serveProxy({ via, address })).changed, false)
        const moved = { via, address, port: 8081, subnet: '192.168.56.1/32' }
        await serveProxy({ ...moved, dryRun: true })
        deepEqual(await rules(), ['192.168.56.0/24 192.168.56.191 8080'])
        const second = await serveProxy(moved)
        equal((await serveProxy(moved)).changed, false)
        deepEqual(await rules(), ['192.168.56.1/32 192.168.56.191 8081'])
        // one more change in the same place, whose undo leaves the rule
        const password = { user: 'bob', password: new Secret('changeme') }
        const third = await serveProxy({ ...moved, ...password })
        await undoServeProxy(third, { via })
        deepEqual(await rules(), ['192.168.56.1/32 192.168.56.191 8081'])
        await serveProxy({ via, address })
        await undoServeProxy({ ...first, before: second.before }, { via })
        deepEqual(await rules(), ['192.168.56.1/32 192.168.56.191 8081'])
        // what does not come up leaves the earlier place open
        await root.write('run/broken', '')
        await rejects(serveProxy({ via, address, port: 8082 }), /it ends as soon as it starts/)
        await fs.remove(join(root.path, 'run/broken'))
        deepEqual(await rules(), ['192.168.56.1/32 192.168.56.191 8081'])
        // by hand, and without its port
        await undoServeProxy({ ...first, changed: true }, { via })
        deepEqual(await rules(), [])
        equal(await root.exists(UNIT), false)
        deepEqual(await fs.readdir(join(root.path, 'etc')), before)
      }),
  )
}

inRoot(
  'returns to the earlier place with its rule, and leaves the rules of others',
  () =>
    guest(async ({ root, host }) => {
      await put(root, '3.0.0')
      const via = host.url
      const theirs = '192.168.56.0/24 192.168.56.191 8081'
      await root.write(
        'run/ufw',
        'ufw allow from 192.168.56.0/24 to 192.168.56.191 port 8081 proto tcp\n',
      )
      const first = await serveProxy({ via, address })
      const second = await serveProxy({ via, address, port: 8081 })
      deepEqual(second.before, { served: true, allowed: true })
      deepEqual(await FIREWALLS.ufw(root), [theirs])
      const third = await serveProxy({ via, address, port: 8082 })
      deepEqual(await FIREWALLS.ufw(root), [theirs, '192.168.56.0/24 192.168.56.191 8082'])
      await undoServeProxy(third, { via })
      deepEqual(await FIREWALLS.ufw(root), [theirs])
      await undoServeProxy(first, { via })
      deepEqual(await FIREWALLS.ufw(root), [theirs])
    }),
)

inRoot(
  'leaves firewalld as it was where that refuses the rule',
  () =>
    guest(async ({ root, host }) => {
      await put(root, '3.0.0')
      const options = { via: host.url, address }
      await root.write('run/firewalld', '')
      await root.write('run/refused', '')
      await rejects(serveProxy(options), /its firewall \(firewalld\), and the guest is as it was/)
      deepEqual(await FIREWALLS.firewalld(root), [])
      await fs.remove(join(root.path, 'run/refused'))
      await serveProxy(options)
      await root.write('run/refused', '')
      await rejects(serveProxy({ ...options, port: 8081 }), /its firewall \(firewalld\)/)
      equal(JSON.parse(await root.read('run/served')).services[0].addr, '192.168.56.191:8080')
      deepEqual(await FIREWALLS.firewalld(root), ['192.168.56.0/24 192.168.56.191 8080'])
      await fs.remove(join(root.path, 'run/refused'))
    }),
)

inRoot(
  'leaves the guest as it was where gost does not stay up',
  () =>
    guest(async ({ root, host }) => {
      await put(root, '3.0.0')
      await root.write('run/broken', '')
      const options = { via: host.url, address }
      await rejects(serveProxy(options), {
        message:
          'Cannot serve a proxy at 192.168.56.191:8080: it ends as soon as it starts, and the guest is ' +
          `as it was. Run: ssh ${host.url.slice(6)} journalctl -u vbox-to-hyperv-proxy`,
      })
      equal(await root.exists(UNIT), false)
      equal(await root.exists('etc/vbox-to-hyperv'), false)
      equal(await root.exists('run/enabled'), false)
      // what was served already, and not what was served before that
      await fs.remove(join(root.path, 'run/broken'))
      await serveProxy(options)
      await serveProxy({ ...options, port: 8081 })
      await fs.remove(join(root.path, 'run/active'))
      await root.write('run/broken', '')
      await rejects(serveProxy({ ...options, port: 8081 }), /it ends as soon as it starts/)
      equal(JSON.parse(await root.read(CONFIG)).services[0].addr, '192.168.56.191:8081')
    }),
)

inRoot(
  'refuses a guest without gost, with version 2, or without the address',
  () =>
    guest(async ({ root, host, dir }) => {
      const options = { via: host.url, address }
      await rejects(
        serveProxy(options),
        /the guest has no gost on its PATH\. Take one of version 3/,
      )
      await put(root, '2.11.5')
      await rejects(serveProxy(options), {
        message:
          'Cannot serve a proxy at 192.168.56.191:8080: "/usr/local/bin/gost" is no gost of version 3 ' +
          'that runs there (it says "gost 2.11.5 (go1.22.0 linux/amd64)"). Take one for the guest’s ' +
          'system from https://github.com/go-gost/gost/releases, and run again with --binary FILE',
      })
      const old = { ...options, binary: await local(dir, '2.0') }
      await rejects(serveProxy(old), /is no gost of version 3/)
      await put(root, '3.0.0')
      await rejects(
        serveProxy({ ...options, address: '192.168.56.19' }),
        /the guest does not have that address\. Run: npx zx tasks\/set-guest-ip\.ts/,
      )
      await fs.remove(join(root.path, 'run/systemd'))
      await rejects(serveProxy(options), /is not run by systemd/)
      equal(await root.exists(UNIT), false)
    }),
)

const verified = needs(linux, 'sshd', 'ssh', 'ssh-keygen', 'systemd-analyze', 'pwsh', ...programs)

verified(
  'makes a unit in which systemd finds nothing wrong',
  () =>
    guest(async ({ root, host, dir }) => {
      await put(root, '3.0.0')
      await serveProxy({ via: host.url, address })
      const unit = (await root.read(UNIT)).replace(/\/usr\/local\/bin\/gost/, '/bin/true')
      const path = join(dir, 'vbox-to-hyperv-proxy.service')
      await fs.writeFile(path, unit)
      const { stdout, stderr } = await execute('systemd-analyze', ['verify', '--man=no', path])
      equal(
        `${stdout}${stderr}`.split('\n').filter((line) => line.includes('proxy')).join('\n'),
        '',
      )
    }),
)

linux('refuses what cannot be meant before the guest is asked', async () => {
  const via = 'ssh://192.0.2.1'
  for (const wrong of ['0.0.0.0', '127.0.0.1', '::', 'x', '1.2.3', '192.168.56.191; id', '']) {
    await rejects(serveProxy({ via, address: wrong }), /it is one IPv4 address of the guest/)
  }
  for (const subnet of ['0.0.0.0/0', '192.168.56.0', '192.168.56.0/24/1', '$(id)/24']) {
    await rejects(serveProxy({ via, address, subnet }), /it is an IPv4 network of the host/)
  }
  await rejects(serveProxy({ via, address, port: 0 }), RangeError)
  await rejects(serveProxy({ via, address, user: 'bob' }), /Cannot ask for that user/)
  const password = new Secret('x')
  await rejects(serveProxy({ via, address, user: 'a:b', password }), /Cannot ask for that user/)
  await rejects(
    serveProxy({ via, address, binary: '/no/such' }),
    /^Error: Cannot read "\/no\/such"/,
  )
})

inRoot('answers its command in JSON', () =>
  guest(async ({ root, host, dir }) => {
    await put(root, '3.0.0')
    const env = { ...host.env, PROXY_PASSWORD: 'changeme' }
    const args = ['--via', host.url, '--address', address, '--user', 'bob']
    const credential = ['--credential', 'env:PROXY_PASSWORD']
    const done = await runTask({ dir, env }, 'serve-proxy', ...args, ...credential)
    equal(done.code, 0, done.stderr)
    equal(JSON.parse(done.stdout).proxy, '192.168.56.191:8080')
    ok(!`${done.stdout}${done.stderr}`.includes('changeme'))
    const undone = await runTask({ dir, env }, 'serve-proxy', ...args.slice(0, 4), '--undo')
    equal(undone.stdout, '{"changed":true}\n', undone.stderr)
    equal(await root.exists(UNIT), false)
    const typed = await runTask({ dir, env }, 'serve-proxy', ...args, '--credential', 'changeme')
    equal(typed.code, 1)
    ok(!typed.stderr.includes('changeme'))
  }))

linux.run()

// --- Windows: the simulated host stands for the guest ---

/** As {@link gost}, and stays until it is ended. */
const gostForWindows = (version: string) =>
  `#!/bin/sh
if [ "$1" = -V ]; then echo "gost ${version} (go1.22.0 windows/amd64)"; exit 0; fi
grep -q '"addr":"192.168.56.191:' "$2" || exit 1
[ ! -e "\${0%/*}/../broken" ] || exit 1
exec sleep 600
`

const windows = suite('serveProxy in a Windows guest')
const onWindows = needs(windows, 'sshd', 'ssh', 'ssh-keygen', 'pwsh')

interface WindowsGuest {
  windows: SimulatedHost
  /** The kit's folder in the guest. */
  base: string
  /** A folder of the guest's PATH. */
  bin: string
}

let simulated: Promise<SimulatedHost> | undefined

/** The same one for all tests, with nothing of the one before. */
async function windowsGuest(work: (guest: WindowsGuest) => Promise<void>): Promise<void> {
  const windows = await (simulated ??= simulatedHost())
  const base = join(windows.dir, 'ProgramData', 'vbox-to-hyperv')
  const bin = join(windows.dir, 'bin')
  await fs.remove(base)
  await fs.remove(bin)
  await windows.change((state) => {
    const [loopback, ...others] = state.addresses
    const rest = others.filter((one: { address: string }) => one.address !== address)
    state.addresses = [loopback, ...rest, { ...loopback, address }]
    state.tasks = []
    state.firewall = []
  })
  const path = process.env.PATH
  try {
    await work({ windows, base, bin })
  } finally {
    process.env.PATH = path
    for (const task of (await windows.state()).tasks ?? []) {
      try {
        process.kill(task.process, 'SIGKILL')
      } catch { /* it ended by itself */ }
    }
  }
}

windows.after(async () => await (await simulated)?.close())

const via = 'ssh://Administrator@192.168.56.191'

/** gost on the guest's PATH. */
async function onPath({ windows, bin }: WindowsGuest, version: string): Promise<void> {
  await fs.outputFile(join(bin, 'gost'), gostForWindows(version), { mode: 0o755 })
  await windows.ps`
    $bin = ${bin}
    if (-not $env:PATH.EndsWith($bin)) { $env:PATH += ":$bin" }`
}

onWindows(
  'serves by a task that starts with Windows, and again when it ends',
  () =>
    windowsGuest(async (guest) => {
      const { windows, base } = guest

      await onPath(guest, '3.0.0')
      const options = { via, address, user: 'bob', password: new Secret('change’me "') }
      const before = await windows.text()
      const dry = await serveProxy({ ...options, dryRun: true }, windows)
      equal(await windows.text(), before)
      equal(await fs.pathExists(base), false)
      const result = await serveProxy(options, windows)
      deepEqual(result, dry)
      deepEqual(result.gost, {
        program: join(base, 'proxy', 'gost.exe'),
        version: 'gost 3.0.0 (go1.22.0 windows/amd64)',
        sha256: hash(gostForWindows('3.0.0')),
      })
      const config = await fs.readJson(join(base, 'proxy', 'gost.json'))
      deepEqual(config.services[0].handler.auth, { username: 'bob', password: 'change’me "' })
      const { tasks: [task], firewall } = await windows.state()
      equal(task.principal, 'S-1-5-18')
      equal(task.instances, 'IgnoreNew')
      deepEqual(
        task.triggers.map(({ kind, repetition }: Record<string, string>) => [kind, repetition]),
        [
          ['Startup', undefined],
          ['Once', 'PT1M'],
        ],
      )
      const [rule, ...more] = firewall
      deepEqual(more, [])
      deepEqual([rule.localAddress, rule.localPort, rule.remoteAddress, rule.program], [
        ['192.168.56.191'],
        ['8080'],
        ['192.168.56.0/24'],
        join(base, 'proxy', 'gost.exe'),
      ])
      ok(!(await windows.text()).includes('change'))
      ok(!JSON.stringify(await windows.calls()).includes('change'))
      const done = await windows.text()
      equal((await serveProxy(options, windows)).changed, false)
      equal(await windows.text(), done)
      await undoServeProxy(result, options, windows)
      const { tasks, firewall: left } = await windows.state()
      deepEqual([tasks, left], [[], []])
      deepEqual(await fs.readdir(base), [])
      await undoServeProxy(result, options, windows)
    }),
)

onWindows(
  'brings the user’s program, and returns to what was served',
  () =>
    windowsGuest(async (guest) => {
      const { windows, base } = guest

      await onPath(guest, '3.0.0')
      const first = await serveProxy({ via, address }, windows)
      const binary = join(windows.dir, 'gost.exe')
      await fs.writeFile(binary, gostForWindows('v3.2.1'))
      // what is written here may not be run, unless it was there
      await fs.outputFile(join(base, 'proxy.new', 'gost.exe'), '', { mode: 0o755 })
      const second = await serveProxy({ via, address, port: 1080, binary }, windows)
      equal(second.gost.version, 'gost v3.2.1 (go1.22.0 windows/amd64)')
      deepEqual(second.before, { served: true, allowed: true })
      equal(await fs.pathExists(join(base, 'proxy.new')), false)
      equal(
        (await windows.state()).firewall[0].description,
        '192.168.56.191:1080 from 192.168.56.0/24',
      )
      await undoServeProxy(second, { via }, windows)
      equal(await fs.readFile(first.gost.program, 'utf8'), gostForWindows('3.0.0'))
      equal(
        (await windows.state()).firewall[0].description,
        '192.168.56.191:8080 from 192.168.56.0/24',
      )
      await undoServeProxy(first, { via }, windows)
      deepEqual((await windows.state()).tasks, [])
    }),
)

onWindows(
  'leaves the guest as it was where gost does not stay up, and refuses what cannot be',
  () =>
    windowsGuest(async (guest) => {
      const { windows, base } = guest

      const options = { via, address }
      await rejects(serveProxy(options, windows), /the guest has no gost on its PATH/)
      await onPath(guest, '2.12.0')
      await rejects(serveProxy(options, windows), /is no gost of version 3/)
      await onPath(guest, '3.0.0')
      await rejects(
        serveProxy({ via, address: '192.168.56.7' }, windows),
        /does not have that address/,
      )
      await fs.outputFile(join(base, 'broken'), '')
      await rejects(serveProxy(options, windows), {
        message:
          'Cannot serve a proxy at 192.168.56.191:8080: it ends as soon as it starts, and the guest is ' +
          'as it was. Run: gost -L 192.168.56.191:8080 in the guest, to see what it says',
      })
      const { tasks, firewall } = await windows.state()
      deepEqual([tasks, firewall], [[], []])
      deepEqual(await fs.readdir(base), ['broken'])
    }),
)

onWindows('finds a Windows guest behind ssh', () =>
  windowsGuest(async ({ windows }) => {
    const shell = join(windows.dir, 'shell')
    // as cmd does
    const text =
      '#!/bin/sh\ncase "$2" in uname*) echo "not recognized" >&2; exit 1 ;; esac\nexec sh "$@"\n'
    await fs.writeFile(shell, text, { mode: 0o755 })
    const host = await sshHost(windows.env, { shell })
    try {
      process.env.PATH = host.env.PATH
      const binary = join(windows.dir, 'gost.exe')
      await fs.writeFile(binary, gostForWindows('3.0.0'))
      const result = await serveProxy({ via: host.url, address, binary, dryRun: true })
      deepEqual([result.guest, result.changed, result.gost.sha256], [
        'windows',
        true,
        hash(gostForWindows('3.0.0')),
      ])
    } finally {
      await host.close()
    }
  }))

windows.run()

// --- Windows in a VM: its Hyper-V host enters it by PowerShell Direct ---

const direct = suite('serveProxy by PowerShell Direct')
const onHost = needs(direct, 'pwsh')

const vm = 'Bob’s "VM"; $(calc) 桥接'
const way = { vm, account: { user: 'admin', password: new Secret('guest’s $(id)') } }

let hyperV: SimulatedHost
let seed: string
let id: string

direct.before(async () => {
  hyperV = await simulatedHost()
  await hyperV.change((state) => {
    const guest = { user: 'admin', password: 'guest’s $(id)', addresses: { '*': [address] } }
    state.guests = { '*': { heartbeat: { polls: 0 }, ...guest } }
  })
  const { stdout } = await hyperV.ps`
    $name = ${vm}
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal
    $vm = New-VM -Name $name -Generation 2 -NoVHD -MemoryStartupBytes 1GB -SwitchName Static-NAT
    Start-VM -VM $vm
    ([string]$vm.Id).ToUpperInvariant()`
  id = stdout
  seed = await hyperV.text()
})
direct.before.each(async () => {
  await fs.writeFile(String(hyperV.env.SIMULATED_HOST), seed)
  await fs.remove(join(hyperV.dir, 'guests'))
  await fs.remove(`${hyperV.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(hyperV.env.SIMULATED_HOST_LOG))
})
direct.after.each(async () => {
  for (const { process: number } of await tasksOf()) {
    try {
      process.kill(number, 'SIGKILL')
    } catch { /* it ended by itself */ }
  }
})
direct.after(() => hyperV.close())

// deno-lint-ignore no-explicit-any -- the state has no type
const tasksOf = async (): Promise<any[]> => (await hyperV.state()).guests[vm]?.windows?.tasks ?? []

/** gost here, and the folder of the kit in the guest. */
async function directPlaces(): Promise<{ binary: string; base: string }> {
  const binary = join(hyperV.dir, 'gost ’3.exe')
  await fs.writeFile(binary, gostForWindows('3.0.0'))
  return { binary, base: join(hyperV.dir, 'guests', id, 'ProgramData', 'vbox-to-hyperv') }
}

const copies = async () =>
  (await hyperV.calls()).map(({ cmdlet }) => cmdlet)
    .filter((name) => name === 'Copy-Item' || name === 'Copy-VMFile')

onHost('brings the program by the session, serves by it, and copies it only once', async () => {
  const { binary, base } = await directPlaces()
  const options = { ...way, address, binary, user: 'bob', password: new Secret('change’me "') }
  const before = await hyperV.text()
  const dry = await serveProxy({ ...options, dryRun: true }, hyperV)
  equal(await hyperV.text(), before)
  equal(await fs.pathExists(base), false)
  deepEqual(await copies(), [])
  const result = await serveProxy(options, hyperV)
  deepEqual([dry.changed, result.changed, result.copied, result.guest], [
    ...[true, true],
    'session',
    'windows',
  ])
  deepEqual(result.gost, {
    program: join(base, 'proxy', 'gost.exe'),
    version: 'gost 3.0.0 (go1.22.0 windows/amd64)',
    sha256: hash(gostForWindows('3.0.0')),
  })
  const [service] = (await fs.readJson(join(base, 'proxy', 'gost.json'))).services
  deepEqual(service.handler.auth, { username: 'bob', password: 'change’me "' })
  equal((await tasksOf())[0].principal, 'S-1-5-18')
  deepEqual(await copies(), ['Copy-Item'])
  const done = await hyperV.text()
  equal((await serveProxy(options, hyperV)).changed, false)
  equal(await hyperV.text(), done)
  // another port takes the program that is there
  const second = await serveProxy({ ...options, port: 1080 }, hyperV)
  deepEqual([second.changed, second.copied, second.before.served], [true, undefined, true])
  deepEqual(await copies(), ['Copy-Item'])
  for (const said of [await hyperV.text(), JSON.stringify(await hyperV.calls())]) {
    ok(!said.includes('change’me'))
  }
  ok(!JSON.stringify(await hyperV.calls()).includes('guest’s'))
  await undoServeProxy(second, way, hyperV)
  equal((await hyperV.state()).guests[vm].windows.firewall[0].localPort[0], '8080')
  await undoServeProxy(result, way, hyperV)
  deepEqual(await fs.readdir(base), [])
  deepEqual((await hyperV.state()).guests[vm].windows, { tasks: [], firewall: [] })
  equal((await undoServeProxy(result, way, hyperV)).changed, false)
})

onHost('brings it by Copy-VMFile where the session cannot, and puts its service back', async () => {
  const { binary, base } = await directPlaces()
  const error = { id: 'CopyError', message: 'The session language mode is not supported.' }
  await hyperV.change((state) => state.faults = [{ cmdlet: 'Copy-Item', error }])
  const services = async () => (await hyperV.state()).vms[0].services
  const before = await services()
  const result = await serveProxy({ ...way, address, binary }, hyperV)
  deepEqual([result.changed, result.copied], [true, 'copy-vmfile'])
  deepEqual(await services(), before)
  await undoServeProxy(result, way, hyperV)
  await hyperV.change((state) => state.faults.push({ cmdlet: 'Copy-VMFile', error }))
  await rejects(serveProxy({ ...way, address, binary }, hyperV), {
    message: `Cannot bring "${binary}" into the guest of "${vm}": session: The session language ` +
      'mode is not supported; copy-vmfile: The session language mode is not supported. Copy it ' +
      'there by hand, into a folder of its PATH, and run again without --binary',
  })
  deepEqual(await services(), before)
  deepEqual(await fs.readdir(base), [])
})

onHost('refuses a file that arrived as another, and leaves nothing of it', async () => {
  const { binary, base } = await directPlaces()
  await hyperV.change((state) => state.guests['*'].corrupts = true)
  await rejects(
    serveProxy({ ...way, address, binary, copy: 'session' }, hyperV),
    /the program did not arrive as it was sent\. Run the same again$/,
  )
  deepEqual(await fs.readdir(base), [])
  deepEqual(await tasksOf(), [])
})

onHost('refuses a VM that it cannot enter, each with its command', async () => {
  const options = { ...way, address }
  const cannot = `Cannot serve a proxy in the guest of "${vm}": `
  const refused = async (more: object, message: string) => {
    const before = await hyperV.text()
    await rejects(serveProxy({ ...options, ...more }, hyperV), { message })
    equal(await hyperV.text(), before)
  }
  await refused(
    { vm: '[a*]' },
    'Cannot serve a proxy in the guest of "[a*]": there is no such VM. Run: Get-VM',
  )
  const wrong = { user: 'admin', password: new Secret('x') }
  await refused(
    { account: wrong },
    `${cannot}the guest does not take the account "admin": its password is wrong or empty, or it ` +
      'has never signed in there. Run again with another --guest-user',
  )
  await refused(
    { account: { target: 'guest' } },
    `${cannot}only Windows has a Credential Manager. Run again with: --guest-user Administrator ` +
      '--guest-credential prompt',
  )
  await hyperV.change((state) => state.guests['*'].os = 'Debian GNU/Linux 12')
  await refused(
    {},
    `${cannot}nobody answered in the guest: its Windows has not started yet, or is older than ` +
      'Windows 10 and Windows Server 2016, or it is no Windows. Run again with: --via ssh://USER@HOST',
  )
  await hyperV.change((state) => state.vms[0].state = 'Off')
  await refused(
    {},
    `${cannot}it is Off, and only a guest that runs can serve. Run: Start-VM -Name ` +
      "'Bob''’s \"VM\"; $(calc) 桥接'".replace("''’", '’’'),
  )
  for (const wrong of [{}, { vm, via }, { via: undefined, vm }]) {
    await rejects(
      serveProxy({ ...wrong, address }, hyperV),
      /Cannot tell how the guest is reached|Cannot enter the guest of/,
    )
  }
})

onHost('is asked for on the command line, with the passwords in the environment', async () => {
  const { binary } = await directPlaces()
  const env = { ...hyperV.env, GUEST_PASSWORD: 'guest’s $(id)', PROXY_PASSWORD: 'changeme' }
  const args = ['--vm', vm, '--guest-user', 'admin', '--guest-credential', 'env:GUEST_PASSWORD']
  const proxy = ['--binary', binary, '--user', 'bob', '--credential', 'env:PROXY_PASSWORD']
  const at = ['--address', address]
  const { dir } = hyperV
  const done = await runTask({ dir, env }, 'serve-proxy', ...args, ...at, ...proxy)
  equal(done.code, 0, done.stderr)
  equal(JSON.parse(done.stdout).copied, 'session')
  ok(!`${done.stdout}${done.stderr}`.includes('changeme'))
  const undone = await runTask({ dir, env }, 'serve-proxy', ...args, ...at, '--undo')
  equal(undone.stdout, '{"changed":true}\n', undone.stderr)
  deepEqual(await tasksOf(), [])
  const none = await runTask({ dir, env }, 'serve-proxy', ...at)
  match(none.stderr, /^Cannot tell how the guest is reached/)
})

onHost('has scripts that Windows PowerShell 5.1 reads too', async () => {
  const folder = join(import.meta.dirname as string, '..', '..', 'tasks', 'serve-proxy')
  deepEqual(await analyze(hyperV.ps, folder), [])
})

direct.run()
