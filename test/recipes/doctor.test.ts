import fs from 'fs-extra'
import { deepEqual, doesNotMatch, equal, match, ok, rejects } from 'node:assert/strict'
import { hostname, tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { type Diagnosis, doctor, type DoctorOptions } from '../../recipes/doctor.ts'
import { readHost } from '../../recipes/run/doctor-host.ts'
import { anonymizer, conceal, cut, hide, reveal } from '../../recipes/run/doctor-private.ts'
import { drawStacks, reportText, screenText } from '../../recipes/run/doctor-text.ts'
import { ConnectionError, type PowerShell, script } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { analyze } from '../tasks/analyze.ts'

const HOSTILE = 'Bob’s "VM"; $(calc) 桥接'
const named = process.env.VBOXMANAGE

interface Here {
  dir: string
}

/** No VirtualBox of this machine's is looked at. */
async function begin(context: Here): Promise<void> {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'doctor-'))
  process.env.VBOXMANAGE = join(context.dir, 'none')
}
async function end({ dir }: Here): Promise<void> {
  if (named === undefined) delete process.env.VBOXMANAGE
  else process.env.VBOXMANAGE = named
  await fs.remove(dir)
}

const levels = ({ findings }: Diagnosis) =>
  Object.fromEntries(findings.map(({ id, level }) => [id, level]))
const finding = ({ findings }: Diagnosis, id: string) => {
  const found = findings.find((one) => one.id === id)
  if (!found) throw new Error(`no finding ${id} among ${findings.map((one) => one.id).join(', ')}`)
  return found
}

interface There extends Here {
  host: SimulatedHost
  seed: object
}

const diagnosis = suite<There>('doctor')
const asked = needs(diagnosis, 'pwsh')

// one for all, as it is never to be changed
diagnosis.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = await context.host.state()
})
diagnosis.before.each(async (context) => {
  await begin(context)
  await context.host.change((state) => {
    for (const key of Object.keys(state)) delete state[key]
    Object.assign(state, context.seed)
  })
})
diagnosis.after.each(end)
diagnosis.after(({ host }) => host.close())

/** By the simulated host, with a folder for disks that is there. */
async function examine(
  { dir, host }: Pick<There, 'dir' | 'host'>,
  options: DoctorOptions = {},
): Promise<Diagnosis> {
  const storage = join(dir, 'disks')
  const open = () => ({
    ...host,
    close: () => Promise.resolve(),
    here: (path: string) => Promise.resolve(path),
  })
  return await doctor({ storage, state: join(dir, 'state'), ...options }, { open })
}

asked('says why VirtualBox crawls: each who owns VT-x, by what says so', async (context) => {
  const { host, dir } = context
  const { ova } = await demo('bios', dir)
  await host.change((state) => {
    state.programs = { virtualBox: '7.0.14', vmware: '17.5.2' }
    state.launchType = 'Auto'
    state.host.hypervisorPresent = true
    state.deviceGuard = { status: 2, services: [1, 2, 9] }
    state.features.HypervisorPlatform = 'Enabled'
    state.features['Containers-DisposableClientVM'] = 'Enabled'
  })
  const before = await host.text()
  const called = (await host.calls()).length
  const found = await examine(context, { vm: [ova] })
  equal(found.crawls, true)
  equal(found.ready, true)
  const owners = [
    ['hypervisor', 'Win32_ComputerSystem.HypervisorPresent is True'],
    ['launch-type', 'hypervisorlaunchtype Auto'],
    ['feature-microsoft-hyper-v', 'Microsoft-Hyper-V is on'],
    ['feature-virtualmachineplatform', 'VirtualMachinePlatform is on'],
    ['feature-hypervisorplatform', 'HypervisorPlatform is on'],
    ['feature-containers-disposableclientvm', 'Containers-DisposableClientVM is on'],
    ['vbs', 'VirtualizationBasedSecurityStatus is 2'],
    ['credential-guard', 'SecurityServicesRunning has 1'],
    ['memory-integrity', 'SecurityServicesRunning has 2'],
    ['security-service-9', 'SecurityServicesRunning has 9'],
    ['virtualbox', '7.0.14'],
    ['vmware', '17.5.2'],
  ] as const
  ok(finding(found, 'space').evidence.includes(join(dir, 'disks')))
  for (const [id, evidence] of owners) ok(finding(found, id).evidence.includes(evidence), id)
  for (const one of found.findings) ok(one.evidence && one.meaning && one.command, one.id)
  const meanings = owners.map(([id]) => finding(found, id).meaning)
  equal(new Set(meanings).size, meanings.length)
  match(finding(found, 'virtualbox').title, /^VirtualBox crawls here/)
  match(finding(found, 'vmware').title, /hit in the same way/)
  equal(await host.text(), before)
  const calls = (await host.calls()).slice(called).map(({ cmdlet }) => cmdlet)
  deepEqual(calls.filter((name) => !name.startsWith('Get-') && name !== 'bcdedit'), [])
  deepEqual((await fs.readdir(dir)).sort(), ['Demo BIOS', 'Demo BIOS.ova'])
})

asked('asks in what Windows PowerShell 5.1 reads', async ({ dir, host }) => {
  const folder = join(dir, 'scripts')
  const ps: PowerShell = async (pieces, ...values) => {
    await fs.outputFile(join(folder, 'read-host.ps1'), `\uFEFF${script(pieces, ...values)}`)
    return { stdout: '{}' }
  }
  await readHost('C:\\VMs', ps)
  deepEqual(await analyze(host.ps, folder), [])
})

asked('says that nothing is in VirtualBox’s way, and what is in Hyper-V’s', async (context) => {
  await context.host.change((state) => {
    state.programs = { virtualBox: '5.2.44' }
    state.launchType = 'Off'
    state.host.hypervisorPresent = false
    state.host.cpu = { VirtualizationFirmwareEnabled: false }
  })
  const found = await examine(context)
  deepEqual([found.crawls, found.ready], [false, false])
  for (const one of found.findings) ok(one.evidence && one.meaning && one.command, one.id)
  const { hypervisor, firmware, virtualbox, vbs } = levels(found)
  deepEqual([hypervisor, firmware, virtualbox, vbs], ['problem', 'problem', 'ok', undefined])
  equal(finding(found, 'hypervisor').command, 'bcdedit /set hypervisorlaunchtype auto')
  equal(finding(found, 'launch-type').command, 'bcdedit /set hypervisorlaunchtype auto')
  equal(finding(found, 'firmware').command, 'shutdown /r /fw /t 0')
})

asked('asks what a user without rights may ask, and names the rest', async (context) => {
  await context.host.change((state) => {
    state.user = { name: 'kim', administrator: true, elevated: false }
    state.denied = true
    state.programs = { virtualBox: '7.0.14' }
    state.host.hypervisorPresent = true
  })
  const found = await examine(context)
  equal(found.ready, false)
  const { rights, hypervisor, virtualbox } = levels(found)
  deepEqual([rights, hypervisor, virtualbox], ['note', 'ok', 'note'])
  equal(levels(found)['feature-virtualmachineplatform'], 'note')
  match(finding(found, 'unknown-launchtype').title, /could not be asked$/)
  match(finding(found, 'unknown-deviceguard').evidence, /HRESULT 0x80041003/)
  deepEqual(finding(found, 'refusal-1'), {
    id: 'refusal-1',
    group: 'host',
    level: 'problem',
    title: 'Cannot use Hyper-V on this host',
    evidence: 'tasks/check-host.ts refuses',
    meaning: 'PowerShell runs without the administrator rights that this user has. ' +
      'With the command: and this again in the window it opens.',
    command: 'Start-Process powershell -Verb RunAs',
  })
})

asked('tells Wi-Fi from wired, and which networks are taken', async (context) => {
  await context.host.change((state) => {
    state.adapters.push({
      ...state.adapters[1],
      name: 'VirtualBox Host-Only Network',
      description: 'VirtualBox Host-Only Ethernet Adapter',
      guid: '1f0c9d7e-32ab-4d51-8a77-90be4c11d8ff',
      ifIndex: 40,
      mac: '0A0027000005',
      status: 'Up',
      kind: 'vpn',
    })
    state.addresses.push({
      origin: 'Manual',
      suffix: 'Manual',
      ifIndex: 40,
      address: '192.168.56.1',
      prefix: 24,
    })
    state.nats = [{ name: 'Old', prefix: '10.9.8.0/24' }]
  })
  const found = await examine(context)
  match(finding(found, 'adapter-1').title, /^"Wi-Fi" is Wi-Fi$/)
  match(finding(found, 'adapter-1').command ?? '', /--internal NAT --host-ip auto --nat/)
  match(finding(found, 'adapter-2').title, /^"Ethernet" is wired, not connected$/)
  match(
    finding(found, 'host-only').evidence,
    /"VirtualBox Host-Only Network" has 192\.168\.56\.1\/24/,
  )
  equal(finding(found, 'nat').evidence, '"Old" for 10.9.8.0/24')
  match(finding(found, 'conflict-1').title, /The NAT "Old" serves 10\.9\.8\.0\/24/)
  equal(finding(found, 'conflict-1').command?.startsWith('Get-NetNat'), true)
  // they are no obstacle for a VM without networks
  equal(found.ready, true)
})

asked('sees what a host without Hyper-V has, and looks at the VM all the same', async (context) => {
  const host = await simulatedHost('laptop', { without: ['Hyper-V'] })
  await host.change((state) => {
    state.host.editionId = 'Core'
    state.features = { VirtualMachinePlatform: 'Enabled' }
  })
  const { ova } = await demo('uefi', context.dir)
  const found = await examine({ ...context, host }, { vm: [ova] }).finally(host.close)
  equal(found.ready, false)
  match(finding(found, 'windows').meaning, /Windows Home has no Hyper-V/)
  match(finding(found, 'refusal-1').meaning, /this is Windows Home, which has none/i)
  match(finding(found, 'vm-1').title, /^"Demo UEFI" can be moved, as far as this machine can tell$/)
  match(finding(found, 'vm-1').evidence, /^generation 2, .*; 2 CPUs, 512 MB, 1 disk with/)
  match(finding(found, 'adapter-1').title, /Wi-Fi/)
})

const unix = process.platform === 'win32' ? diagnosis.skip : asked

unix('says of each VM of VirtualBox what it needs, and what keeps it', async (context) => {
  const { dir, host } = context
  const { vbox } = await demo('bios', dir)
  const other = await demo('uefi', dir)
  await virtualBox(dir, [['Demo BIOS', vbox, 'running'], ['Demo UEFI', other.vbox, 'poweroff']])
  await host.change((state) => state.vms = [])
  const found = await examine(context)
  match(finding(found, 'vm-1').title, /^"Demo BIOS" cannot be moved yet$/)
  match(finding(found, 'vm-1').evidence, /VirtualBox says running$/)
  deepEqual(finding(found, 'vm-1-refusal-1'), {
    id: 'vm-1-refusal-1',
    group: 'vms',
    level: 'note',
    title: 'Cannot move "Demo BIOS"',
    evidence: 'recipes/migrate.ts refuses; VirtualBox says running',
    meaning: 'It is running, and its disks are in use. With the command: ' +
      'or again with --prepare guestcontrol --guest-user NAME.',
    command: 'VBoxManage controlvm "Demo BIOS" acpipowerbutton',
  })
  match(finding(found, 'vm-2').title, /^"Demo UEFI" can be moved$/)
  match(finding(found, 'vm-2').meaning, /^It needs .* of the .* that are free\.$/)
  equal(finding(found, 'vm-2').command, 'npx zx recipes/migrate.ts --dry-run "Demo UEFI"')
  // one of the two can go; who names the other is told no
  equal(found.ready, true)
  const one = await examine(context, { vm: ['Demo BIOS'] })
  deepEqual([one.ready, levels(one)['vm-1-refusal-1']], [false, 'problem'])
  const none = await examine(context, { vm: ['Nobody'] })
  deepEqual([none.ready, levels(none)['vm-1-refusal-1']], [false, 'problem'])
})

unix('keeps private what is, in a report of hostile names everywhere', async (context) => {
  const { dir, host } = context
  const { vbox } = await demo('bios', dir)
  const secret = (what: string) =>
    `Kim’s "${what}" \`x\` | <b> $(calc) 桥接 ${what.toUpperCase()}SECRET`
  const xml = (text: string) =>
    text.replaceAll('&', '&amp;').replaceAll('"', '&quot;').replaceAll('<', '&lt;')
  const folder = join(dir, 'home of kimsecret')
  await fs.move(join(vbox, '..'), folder)
  const file = join(folder, 'Demo BIOS.vbox')
  const text = await fs.readFile(file, 'utf8')
  await fs.writeFile(
    file,
    text.replace('name="Demo BIOS"', `name="${xml(secret('vm'))}"`)
      .replace('OSType="Other"', 'OSType="OsSecret"'),
  )
  await virtualBox(dir, [[secret('vm'), file, 'paused'], [
    secret('gone'),
    join(dir, 'gonesecret'),
    'saved',
  ]])
  await host.change((state) => {
    state.host.name = 'HOSTSECRET'
    state.host.hypervisorPresent = true
    state.host.vhdPath = 'C:\\Users\\pathsecret\\My Disks'
    state.user = {
      name: 'usersecret',
      administrator: false,
      elevated: false,
      hyperVAdministrator: true,
    }
    state.programs = { virtualBox: `7 ${secret('version')}`, vmware: secret('vmware') }
    state.adapters[0].name = secret('adapter')
    state.adapters[0].description = secret('description')
    state.adapters[0].network.name = 'SSIDSECRET'
    state.adapters[0].network.ssid = 'SSIDSECRET'
    state.adapters[1].name = 'wiredsecret'
    state.switches.push({
      ...state.switches[0],
      id: '0a8cb7b8-9b3c-408e-8e30-5e16a3aeb400',
      name: secret('switch'),
      hostNics: [],
    })
    state.nats = [{ name: secret('nat'), prefix: '10.99.8.0/24' }]
    state.vms = []
  })
  const report = join(dir, 'report.md')
  for (
    const options of [
      {},
      { storage: undefined, host: 'ssh://kimsecret@hostsecret.example:2222' },
      {
        vm: [secret('nobody'), join(dir, 'no such secret.ova')],
        storage: join(dir, 'storage of pathsecret'),
      },
    ]
  ) {
    const found = await examine(context, { ...options, report })
    const written = await fs.readFile(report, 'utf8')
    doesNotMatch(written, /secret|calc|桥接|kim|\b10\.|169\.254|AX201|Realtek/i)
    doesNotMatch(written, /[0-9a-f]{2}([-:][0-9a-f]{2}){5}|[0-9a-f]{8}-[0-9a-f]{4}-/i)
    doesNotMatch(written, /\/tmp|[a-z]:\\|\\\\/i)
    for (const own of [userInfo().username, hostname()]) {
      // a user may be called as a word is
      if (own.length > 5) ok(!written.includes(own), own)
    }
    match(written, /^# What recipes\/doctor\.ts found\n/)
    match(written, /"VM-1"/)
    // who asks sees the names
    match(JSON.stringify(found), /SECRET/)
  }
  doesNotMatch((await fs.readdir(dir)).join(' '), /partial/)
})

asked('writes no half report', async (context) => {
  const report = join(context.dir, 'none', 'report.md')
  await rejects(examine(context, { report }), {
    message: `Cannot write the report "${report}": ENOENT. ` +
      'Name a file in a folder that is there: --report FILE.md',
  })
})

asked(
  'answers on the command line: words, one JSON document, and the exit code',
  async (context) => {
    const { dir, host } = context
    const { ova } = await demo('bios', dir)
    await host.change((state) => {
      state.programs = { virtualBox: '7.0.14' }
      state.host.hypervisorPresent = true
    })
    const here = { dir, env: { ...host.env, VBOXMANAGE: join(dir, 'none') } }
    const args = ['--storage', join(dir, 'disks'), '--state', join(dir, 'state')]
    const before = await host.text()
    const words = await runTask(here, '../recipes/doctor', ova, ...args)
    deepEqual([words.code, words.stderr], [0, ''])
    match(words.stdout, /\nWho owns VT-x\n/)
    match(words.stdout, /\n {9}It needs .* of the .* that are free\.\n/)
    match(words.stdout, /Type 1: .*<- this host/)
    match(words.stdout, /\nA migration would go through\.\n$/)
    // deno-lint-ignore no-control-regex
    doesNotMatch(words.stdout, /\u001b/)
    const json = await runTask(here, '../recipes/doctor', join(dir, 'none.ova'), ...args, '--json')
    deepEqual([json.code, json.stderr], [1, ''])
    const found = JSON.parse(json.stdout) as Diagnosis
    deepEqual([found.version, found.ready, found.crawls], [1, false, true])
    equal(await host.text(), before)
  },
)

diagnosis.run()

const alone = suite<Here>('doctor without PowerShell')
alone.before.each(begin)
alone.after.each(end)

alone('says what it can of a VM, and that the host could not be asked', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const env = { ...process.env, POWERSHELL: join(dir, 'no-powershell'), FORCE_COLOR: '0' }
  const { code, stdout } = await runTask({ dir, env }, '../recipes/doctor', ova, '--json')
  equal(code, 1)
  const found = JSON.parse(stdout) as Diagnosis
  deepEqual(levels(found), { host: 'problem', 'vm-1': 'ok' })
  match(finding(found, 'host').evidence, /no-powershell/)
  match(finding(found, 'vm-1').title, /as far as this machine can tell$/)
  deepEqual((await fs.readdir(dir)).sort(), ['Demo BIOS', 'Demo BIOS.ova'])
})

alone(
  'asks no host about a bundle, only whether its VM and its folder will do',
  async ({ dir }) => {
    const { ova } = await demo('bios', dir)
    const env = { ...process.env, POWERSHELL: join(dir, 'no-powershell'), FORCE_COLOR: '0' }
    const bundle = join(dir, 'bundle')
    const run = () =>
      runTask({ dir, env }, '../recipes/doctor', ova, '--json', `--to=bundle:${bundle}`)
    const fits = await run()
    equal(fits.code, 0, fits.stderr)
    deepEqual(levels(JSON.parse(fits.stdout)), { 'vm-1': 'ok' })
    equal(await fs.pathExists(bundle), false)
    await fs.outputFile(join(bundle, 'of another'), '')
    const refused = await run()
    equal(refused.code, 1)
    match(
      finding(JSON.parse(refused.stdout), 'vm-1').title,
      /the folder holds something else|cannot be moved/,
    )
    const report = join(dir, 'report.md')
    await doctor({ vm: [ova], host: `bundle:${bundle}`, report })
    const written = await fs.readFile(report, 'utf8')
    ok(!written.includes(bundle), written)
  },
)

alone('keeps private what ssh says of machines in between', async ({ dir }) => {
  const message = 'kex_exchange: closed by bastionsecret port 22'
  const open = () => ({
    ps: () => Promise.reject(new ConnectionError(message)),
    using: () => () => Promise.reject(new ConnectionError(message)),
    close: () => Promise.resolve(),
    here: (path: string) => Promise.resolve(path),
  })
  const report = join(dir, 'report.md')
  const found = await doctor({ host: 'ssh://kim@hostsecret', report }, { open })
  equal(finding(found, 'host').evidence, message)
  const written = await fs.readFile(report, 'utf8')
  match(
    written,
    /- \*\*problem\*\* The host could not be asked \(`host`\)\n {2}- evidence: Message-1\n/,
  )
  doesNotMatch(written, /secret|kim/)
})

alone('refuses a host that is none', async () => {
  await rejects(doctor({ host: 'telnet:x' }), {
    message: 'Cannot use "telnet:x" as a host: it is local, or ssh://[user@]host[:port]. ' +
      'Example: ssh://admin@hyperv.lan',
  })
})

alone.run()

const texts = suite('texts of doctor')

const KNOWN = [
  { kind: 'VM', value: HOSTILE },
  { kind: 'VM', value: 'Win10' },
  { kind: 'VM', value: 'Win10 old' },
  { kind: 'VM', value: 'the' },
  { kind: 'User', value: 'kim' },
] as const

for (
  const [text, expected] of [
    [
      `Cannot move "${HOSTILE}": it runs. Run: x '${HOSTILE.replace('’', '’’')}'`,
      'Cannot move "VM-1": it runs. Run: x \'VM-1\'',
    ],
    ['Win10 old and WIN10, not Win100', 'VM-1 and VM-2, not Win100'],
    ['the VM "the" of kim', 'the VM "VM-1" of kim'],
    ['Name "a b" and "a b", not "c"', 'Name "Name-1" and "Name-1", not "Name-2"'],
    ['it answers "no "such" thing" (Id)', 'it answers "Message-1" (Id)'],
    ['in "C:\\Users\\kim\\x y.vhdx": full', 'in "Path-1": full'],
    ['disks (D:\\a b\\c.vhdx, /home/kim/d e.vdi)', 'disks (Path-1, Path-2)'],
    ['\\\\server\\share is away', 'Path-1'],
    ['by LAPTOP\\kim, kim@example.com or ssh://kim@h:22', 'by User-1, User-2 or Name-1'],
    ['--to ssh://[user@]host[:port]', '--to ssh://[user@]host[:port]'],
    [
      'Run: shutdown /r /fw /t 0; npx zx tasks/x.ts',
      'Run: shutdown /r /fw /t 0; npx zx tasks/x.ts',
    ],
    ['10.0.26100.0 is a version', '10.0.26100.0 is a version'],
    [
      '10.1.2.3/24, 8.8.8.8, 169.254.1.1 and 10.1.2.3/24',
      'Address-1 (private IPv4), Address-2 (public IPv4), Address-3 (link-local IPv4) and Address-1 (private IPv4)',
    ],
    [
      '08-00-27-AA-BB-CC, 080027AABBCC, fe80::1%12',
      'Address-1 (MAC), Address-2 (MAC), Address-3 (IPv6)',
    ],
    ['Get-VM -Id 5b1d9a51-0c4e-4a5f-9d1e-2f3b8c7a6e10 | x', 'Get-VM -Id Name-1 | x'],
    [
      "--adapter 'My ''net'''. Windows' own is the host's",
      "--adapter 'Name-1'. Windows' own is the host's",
    ],
    ['a mark \uf8e0VM\uf8e1x\uf8e2 of its own', 'a mark \ufffdVM\ufffdx\ufffd of its own'],
  ] as const
) {
  texts(`hides what is private in: ${text}`, () => {
    const marked = conceal(text, KNOWN)
    equal(anonymizer()(marked), expected)
    equal(reveal(marked), text.replace(/[\uf8e0-\uf8e3]/g, '\ufffd'))
  })
}

texts('cuts a sentence where it ends, and not in a name', () => {
  const text = `"${hide('VM', 'a: b')}" is: c`
  deepEqual(cut(text, /: /).map(reveal), ['"a: b" is', 'c'])
  deepEqual(cut(text, /; /), [text, ''])
})

const answer = (name: string) => ({
  ready: false,
  crawls: false,
  below: false,
  findings: [{
    id: 'vm-1',
    group: 'vms',
    level: 'problem',
    title: `"${hide('VM', name)}" cannot be moved`,
    evidence: 'a word '.repeat(30),
    meaning: '桥接'.repeat(60),
    command: 'Get-VM',
  }] as Diagnosis['findings'],
})

texts('folds at the width of the terminal, Chinese counted double', () => {
  for (const columns of [60, 80, 200]) {
    const lines = screenText(answer(`桥接${'x'.repeat(90)}`), { columns }).split('\n')
    const widths = lines.map((line) => [...line].length + (line.match(/[桥接]/g)?.length ?? 0))
    ok(Math.max(...widths) <= Math.min(columns, 100), `${Math.max(...widths)} of ${columns}`)
  }
  for (const line of drawStacks(true).split('\n')) ok(line.length <= 80)
})

texts('colours words alone, and lets no name move the cursor', () => {
  const name = 'a\u001b[2Jb\u0007\nc'
  // deno-lint-ignore no-control-regex
  doesNotMatch(screenText(answer(name)), /[\u0000-\u0009\u000b-\u001f]/)
  // deno-lint-ignore no-control-regex
  const codes = screenText(answer(name), { colour: true }).match(/\u001b\[[^m]*./g)
  deepEqual([...new Set(codes)].sort(), [
    '\u001b[0m',
    '\u001b[1m',
    '\u001b[2m',
    '\u001b[31m',
    '\u001b[36m',
  ])
})

texts('draws the two stacks when asked, and tells which one this is', () => {
  doesNotMatch(screenText(answer('a')), /Type 2/)
  match(screenText(answer('a'), { picture: true }), /Type 2[^\n]*<- this host/)
  match(screenText({ ...answer('a'), crawls: true, below: true }), /Type 1[^\n]*<- this host/)
  // Hyper-V has VT-x, and there is no VirtualBox that would be slow
  const picture = screenText({ ...answer('a'), below: true }, { picture: true })
  match(picture, /Type 1[^\n]*<- this host/)
  doesNotMatch(picture, /Type 2[^\n]*<- this host/)
  doesNotMatch(drawStacks(null), /this host/)
})

texts('writes Markdown that says the same with placeholders', () => {
  const report = reportText(answer('<b>*x*'))
  match(report, /- \*\*problem\*\* "VM-1" cannot be moved \(`vm-1`\)/)
  match(report, /\n {2}- command: `Get-VM`\n/)
  match(report, /A migration would not go through: 1 problem stands in the way\./)
})

texts.run()

/** A VirtualBox that has these VMs, as far as it is asked here. */
async function virtualBox(
  dir: string,
  vms: readonly (readonly [name: string, file: string, state: string])[],
): Promise<void> {
  const program = join(dir, 'VBoxManage')
  const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
  const uuid = (index: number) => `11111111-2222-3333-4444-55555555555${index}`
  const list = vms.map(([name], index) => `echo ${quoted(`"${name}" {${uuid(index)}}`)}`)
  const info = vms.map(([name, file, state], index) =>
    `${uuid(index)}) printf '%s\\n' ${quoted(`name="${name}"`)} ${
      quoted(`UUID="${uuid(index)}"`)
    } ${quoted(`CfgFile="${file}"`)} 'VMState="${state}"' ;;`
  )
  await fs.writeFile(
    program,
    `#!/bin/sh
case "$1 $2" in
  'list vms') ${list.join('; ')} ;;
  'list runningvms') ;;
  'showvminfo --machinereadable') case "$4" in
    ${info.join('\n    ')}
    *) exit 1 ;; esac ;;
  *) exit 1 ;;
esac
`,
    { mode: 0o755 },
  )
  process.env.VBOXMANAGE = program
}
