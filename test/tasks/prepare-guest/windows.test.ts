/** The script for Windows guests, in real PowerShell, on a simulated registry and programs. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BOOT_DRIVERS } from '../../../tasks/prepare-guest/disk.ts'
import { script } from '../../../tasks/task.ts'
import { needs } from '../../needs.ts'
import { type SimulatedHost, simulatedHost } from '../../simulated-host.ts'
import { analyze } from '../analyze.ts'

const here = import.meta.dirname as string
const root = join(here, '..', '..', '..')
const SERVICES = 'HKLM:\\SYSTEM\\CurrentControlSet\\Services\\'
const POWER = 'HKLM:\\SYSTEM\\CurrentControlSet\\Control\\Power'
const CRASH = 'HKLM:\\SYSTEM\\CurrentControlSet\\Control\\CrashControl'
const ADDITIONS =
  'HKLM:\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Uninstall\\Oracle VM VirtualBox Guest Additions'
const FIRST = 'vbox-to-hyperv first start'

interface Answer {
  changed: boolean
  steps: { step: string; state: string; detail: string }[]
  before: { what: string; was: string | null }[]
  addresses: { mac: string; dhcp: boolean; addresses: string[] }[]
}

interface Guest {
  registry: Record<string, Record<string, unknown>>
  calls: string[]
  // deno-lint-ignore no-explicit-any -- the simulated guest's own
  [part: string]: any
}

const windows = suite<{ host: SimulatedHost; guest: Simulated }>('the script for Windows guests')
const test = needs(windows, 'pwsh')

interface Simulated {
  state: () => Promise<Guest>
  change: (parts: Partial<Guest>) => Promise<void>
  tell: (given?: Given) => Promise<Answer>
  /** A file in the guest's folder of this program, or undefined. */
  file: (name: string) => Promise<string | undefined>
}

interface Given {
  mode?: 'prepare' | 'undo'
  dryRun?: boolean
  suspendBitLocker?: boolean
  keepAdditions?: boolean
  detached?: boolean
  shutDown?: boolean
}

/** Windows 10 as VirtualBox runs it from SATA, with Fast Startup, BitLocker and the Guest Additions. */
const WINDOWS = {
  registry: {
    [`${SERVICES}vmbus`]: { Start: 0 },
    [`${SERVICES}storvsc`]: { Start: 3 },
    [`${SERVICES}intelide`]: { Start: 3 },
    [`${SERVICES}atapi`]: { Start: 0 },
    [`${SERVICES}storahci`]: { Start: 0 },
    [`${SERVICES}storahci\\StartOverride`]: { '0': 3 },
    [POWER]: { HibernateEnabledDefault: 1 },
    [CRASH]: { AutoReboot: 1 },
    'HKLM:\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Uninstall': {},
    [ADDITIONS]: {
      DisplayName: 'Oracle VM VirtualBox Guest Additions 7.0.14',
      UninstallString: '"C:\\Program Files\\Oracle\\VirtualBox Guest Additions\\uninst.exe"',
    },
    'HKLM:\\HARDWARE\\DESCRIPTION\\System\\BIOS': {
      SystemManufacturer: 'innotek GmbH',
      SystemProductName: 'VirtualBox',
    },
  },
  volumes: [
    { DriveLetter: 'C:', VolumeType: 0, ProtectionStatus: 1 },
    { DriveLetter: 'D:', VolumeType: 1, ProtectionStatus: 1 },
  ],
  adapters: [
    {
      MACAddress: '08:00:27:00:00:01',
      DHCPEnabled: false,
      Description: 'Intel(R) PRO/1000 MT',
      IPAddress: ['10.0.0.5', '10.0.0.6', 'fe80::1'],
      IPSubnet: ['255.255.255.0', '255.255.255.0', '64'],
      DefaultIPGateway: ['10.0.0.1'],
      DNSServerSearchOrder: ['10.0.0.2', '10.0.0.3'],
    },
    {
      MACAddress: '08:00:27:00:00:02',
      DHCPEnabled: true,
      Description: '以太网',
      IPAddress: ['192.168.1.7'],
      IPSubnet: ['255.255.255.0'],
      DefaultIPGateway: null,
      DNSServerSearchOrder: null,
    },
  ],
}

// one PowerShell for all: each test has the guest and the folder anew
let shared: SimulatedHost | undefined

windows.before.each(async (context) => {
  const host = context.host = shared ??= await simulatedHost()
  await fs.remove(host.env.ProgramData as string)
  await host.change((state) => {
    state.tasks = []
  })
  const prelude = await fs.readFile(join(here, 'guest.ps1'), 'utf8')
  await host.ps([prelude] as unknown as TemplateStringsArray)
  const change = async (parts: Partial<Guest>) => {
    await host.ps`
      $text = ${JSON.stringify(parts)}
      $parts = ConvertFrom-Json $text
      foreach ($part in $parts.PSObject.Properties) {
        if ($part.Name -ne 'registry') { $guest[$part.Name] = $part.Value; continue }
        foreach ($key in $part.Value.PSObject.Properties) {
          if ($null -eq $key.Value) { $guest.registry.Remove($key.Name); continue }
          $guest.registry[$key.Name] = @{}
          foreach ($value in $key.Value.PSObject.Properties) { $guest.registry[$key.Name][$value.Name] = $value.Value }
        }
      }`
  }
  context.guest = {
    state: async () =>
      JSON.parse((await host.ps`ConvertTo-Json -InputObject $guest -Depth 6 -Compress`).stdout),
    change,
    tell: async (given = {}) => {
      const { stdout } = await host.ps(...await parts(given))
      equal(stdout.trim().split('\n').length, 1)
      match(stdout.trim(), /^[\x20-\x7e]*$/)
      return JSON.parse(stdout)
    },
    file: (name) =>
      fs.readFile(join(host.env.ProgramData as string, 'vbox-to-hyperv', name), 'utf8')
        .catch(() => undefined),
  }
  await change(WINDOWS)
})
windows.after(() => shared?.close())

async function parts(
  {
    mode = 'prepare',
    dryRun = false,
    suspendBitLocker = false,
    keepAdditions = false,
    detached = false,
    shutDown = false,
  }: Given,
): Promise<[TemplateStringsArray, ...(string | boolean | readonly string[])[]]> {
  const text = await fs.readFile(join(root, 'tasks/prepare-guest/windows.ps1'), 'utf8')
  const bootDrivers = BOOT_DRIVERS
  const values = { mode, dryRun, suspendBitLocker, keepAdditions, detached, shutDown, bootDrivers }
  const pieces = Object.keys(values).map((name) => `\n$${name} = `)
  return [[...pieces, `\n${text}`] as unknown as TemplateStringsArray, ...Object.values(values)]
}

function said(answer: Answer, step: string): string[] {
  return answer.steps.filter((one) => one.step === step).map((one) => `${one.state}: ${one.detail}`)
}

test('changes nothing on a dry run, and says what it would', async ({ guest, host }) => {
  const before = [await guest.state(), await host.text()]
  const answer = await guest.tell({ dryRun: true, suspendBitLocker: true })
  deepEqual(answer.steps.map(({ step, state }) => `${step} ${state}`), [
    'boot-drivers changed',
    'hibernation changed',
    'auto-reboot changed',
    'bitlocker changed',
    'addresses changed',
    'licence ok',
    'guest-additions changed',
  ])
  equal(answer.changed, true)
  deepEqual(answer.before, [])
  deepEqual([await guest.state(), await host.text()], before)
  equal(await guest.file('before.json'), undefined)
})

test('pain 1, 11: prepares Windows once, and brings everything back but the Guest Additions', async ({ guest, host }) => {
  const start = await guest.state()
  const answer = await guest.tell({ suspendBitLocker: true })
  const steps = answer.steps.filter(({ step }) => step !== 'licence')
  deepEqual(steps.map(({ state }) => state), Array(6).fill('changed'))
  deepEqual(said(answer, 'boot-drivers'), [
    'changed: These drivers start with Windows now: storvsc, intelide, storahci',
  ])
  deepEqual(
    answer.before.map(({ what, was }) => `${what}: ${was && JSON.stringify(JSON.parse(was))}`)
      .slice(3),
    [
      'hibernation: true',
      'auto-reboot: 1',
      'bitlocker C:: true',
      'first-start: null',
    ],
  )
  deepEqual(answer.addresses.map(({ mac, dhcp, addresses }) => [mac, dhcp, ...addresses]), [
    ['08:00:27:00:00:01', false, '10.0.0.5', '10.0.0.6'],
    ['08:00:27:00:00:02', true, '192.168.1.7'],
  ])
  const done = await guest.state()
  for (const driver of ['vmbus', 'storvsc', 'intelide', 'atapi', 'storahci']) {
    equal(done.registry[`${SERVICES}${driver}`]?.Start, 0, driver)
  }
  equal(done.registry[`${SERVICES}storahci\\StartOverride`], undefined)
  equal(done.registry[POWER]?.HibernateEnabled, 0)
  equal(done.registry[CRASH]?.AutoReboot, 0)
  equal(done.registry[ADDITIONS], undefined)
  deepEqual(
    done.volumes.map(({ ProtectionStatus }: { ProtectionStatus: number }) => ProtectionStatus),
    [0, 1],
  )
  ok(done.calls.includes(
    'C:\\Program Files\\Oracle\\VirtualBox Guest Additions\\uninst.exe /S _?=C:\\Program Files\\Oracle\\VirtualBox Guest Additions',
  ))
  const [task] = (await host.state()).tasks
  equal(task.name, FIRST)
  deepEqual(task.triggers.map(({ kind }: { kind: string }) => kind), ['Startup'])

  const again = await guest.tell({ suspendBitLocker: true })
  equal(again.changed, false)
  deepEqual(again.steps.map(({ state }) => state), Array(7).fill('ok'))
  deepEqual(again.before, [])

  const undone = await guest.tell({ mode: 'undo' })
  equal(undone.changed, true)
  deepEqual(undone.steps.filter(({ state }) => state !== 'changed'), [])
  const end = await guest.state()
  delete start.registry[ADDITIONS]
  // Windows itself writes down what was its default
  start.registry[POWER] = { ...start.registry[POWER], HibernateEnabled: 1 }
  deepEqual([end.registry, end.volumes], [start.registry, start.volumes])
  deepEqual((await host.state()).tasks, [])
  equal(await fs.pathExists(join(host.env.ProgramData as string, 'vbox-to-hyperv')), false)
  deepEqual((await guest.tell({ mode: 'undo' })).steps, [
    { step: 'undo', state: 'ok', detail: 'Nothing was changed here' },
  ])
})

test('keeps what was before the first of several runs', async ({ guest }) => {
  await guest.tell()
  await guest.change({
    registry: { [CRASH]: { AutoReboot: 7 }, [`${SERVICES}atapi`]: { Start: 3 } },
  })
  await guest.tell()
  await guest.tell({ mode: 'undo' })
  const { registry } = await guest.state()
  deepEqual([registry[CRASH], registry[`${SERVICES}atapi`]], [{ AutoReboot: 1 }, { Start: 3 }])
})

test('refuses when Windows has no driver to start from, or the registry does not take it', async ({ guest }) => {
  await guest.change({ denied: [`${SERVICES}storvsc`] })
  const denied = await guest.tell()
  match(
    said(denied, 'boot-drivers')[0] as string,
    /^refusal: The driver storvsc .*unauthorized operation.*reg add HKLM\\SYSTEM\\CurrentControlSet\\Services\\storvsc \/v Start \/t REG_DWORD \/d 0 \/f$/,
  )
  match(said(denied, 'boot-drivers')[1] as string, /^changed: .*: intelide, storahci$/)
  await guest.change({
    denied: [],
    registry: { [`${SERVICES}vmbus`]: null, [`${SERVICES}storvsc`]: null } as never,
  })
  match(said(await guest.tell(), 'boot-drivers')[0] as string, /^warning: .* generation 1$/)
  await guest.change({ registry: { [`${SERVICES}atapi`]: null } as never })
  deepEqual(said(await guest.tell(), 'boot-drivers').map((text) => text.split(':')[0]), ['refusal'])
})

test('pain 25: tells how Windows is activated, and warns of a key that came with the computer', async ({ guest }) => {
  match(
    said(await guest.tell({ dryRun: true }), 'licence').join(),
    /^ok: Windows is activated \(Retail, the key that ends in 3V66T\)\. The UUID .+ comes along, a serial number cannot/,
  )
  await guest.change({
    licence: { LicenseStatus: 1, ProductKeyChannel: 'OEM:DM', PartialProductKey: 'ABCDE' },
  } as never)
  match(
    said(await guest.tell({ dryRun: true }), 'licence').join(),
    /^warning: .+ \(OEM:DM, .+ABCDE\)/,
  )
  await guest.change({ licence: { LicenseStatus: 5, PartialProductKey: 'ABCDE' } } as never)
  match(said(await guest.tell({ dryRun: true }), 'licence').join(), /^ok: Windows is not activated/)
})

test('pain 12: warns of BitLocker unless it is to suspend it, and refuses when it cannot', async ({ guest }) => {
  match(
    said(await guest.tell(), 'bitlocker')[0] as string,
    /^warning: BitLocker protects C:, .*--suspend-bitlocker.*manage-bde -protectors -get C:$/,
  )
  await guest.change({ denied: ['bitlocker'] })
  match(
    said(await guest.tell({ suspendBitLocker: true }), 'bitlocker')[0] as string,
    /^refusal: .* \(0x80310021\), .*manage-bde -protectors -disable C: -rebootcount 0$/,
  )
  await guest.change({ volumes: null })
  deepEqual(said(await guest.tell(), 'bitlocker'), [
    'ok: BitLocker protects no volume that Windows starts from',
  ])
})

test('goes on with a warning when a step fails', async ({ guest }) => {
  await guest.change({ denied: ['powercfg'], uninstaller: 2 })
  const answer = await guest.tell()
  match(
    said(answer, 'hibernation')[0] as string,
    /^warning: .*powercfg: exit code 1\. Run in the guest, elevated: powercfg \/h off$/,
  )
  match(
    said(answer, 'guest-additions')[0] as string,
    /^warning: .*exit code 2 of "C:.*uninst\.exe"/,
  )
  deepEqual(said(answer, 'auto-reboot').length, 1)
})

test('pain 23: leaves the Guest Additions until it has answered when they carry it, or alone when told to', async ({ guest, host }) => {
  deepEqual(said(await guest.tell({ keepAdditions: true }), 'guest-additions'), [
    'ok: The Guest Additions are left alone',
  ])
  const answer = await guest.tell({ detached: true })
  match(
    said(answer, 'guest-additions')[0] as string,
    /^changed: The Oracle VM VirtualBox Guest Additions 7\.0\.14, which carry this answer, /,
  )
  ok((await guest.state()).registry[ADDITIONS])
  const task = (await host.state()).tasks.find(({ name }: { name: string }) =>
    name === 'vbox-to-hyperv guest additions'
  )
  match(
    task.action.argument,
    /Start-Sleep -Seconds 20; Start-Process -FilePath 'C:\\Program Files\\Oracle\\VirtualBox Guest Additions\\uninst\.exe'/,
  )
})

test('shuts the guest down when it is ready, after the Guest Additions where these carry the answer', async ({ guest, host }) => {
  const dry = await guest.tell({ shutDown: true, dryRun: true })
  deepEqual(said(dry, 'shut-down'), ['changed: The guest would be shut down'])
  equal((await guest.state()).calls.some((call: string) => call.startsWith('shutdown')), false)
  await guest.tell({ shutDown: true, detached: true })
  equal((await guest.state()).calls.some((call: string) => call.startsWith('shutdown')), false)
  const find = ({ name }: { name: string }) => name === 'vbox-to-hyperv guest additions'
  match((await host.state()).tasks.find(find).action.argument, /; shutdown\.exe \/s \/t 0"$/)
  const answer = await guest.tell({ shutDown: true, keepAdditions: true })
  deepEqual(said(answer, 'shut-down'), ['changed: The guest shuts down in 20 seconds'])
  ok((await guest.state()).calls.includes('shutdown /s /t 20'))
})

test('refuses an account without administrator rights, and changes nothing', async ({ guest }) => {
  await guest.change({
    groups: ['"Mandatory Label\\Medium Mandatory Level","Label","S-1-16-8192",""'],
  })
  const before = await guest.state()
  const answer = await guest.tell()
  deepEqual(answer.steps.map(({ step, state }) => [step, state]), [['rights', 'refusal']])
  deepEqual(await guest.state(), before)
})

test('pain 13, 14: gives adapters on Hyper-V their addresses by MAC at the first start, removes the old ones, and only there', async ({ guest, host }) => {
  await guest.tell()
  const start = await guest.file('first-start.ps1') as string
  const run = () => host.ps([start.replace(/^\ufeff/, '')] as unknown as TemplateStringsArray)
  const before = await guest.state()
  await run()
  deepEqual(await guest.state(), before, 'nothing while VirtualBox runs it')

  const [fixed, dynamic] = WINDOWS.adapters
  const fresh = {
    DHCPEnabled: true,
    IPAddress: ['169.254.1.1'],
    IPSubnet: ['255.255.0.0'],
    DefaultIPGateway: null,
    DNSServerSearchOrder: null,
  }
  await guest.change({
    registry: {
      'HKLM:\\HARDWARE\\DESCRIPTION\\System\\BIOS': {
        SystemManufacturer: 'Microsoft Corporation',
        SystemProductName: 'Virtual Machine',
      },
    },
    adapters: [{ ...fresh, MACAddress: dynamic?.MACAddress }, {
      ...fresh,
      MACAddress: fixed?.MACAddress,
    }],
    devices: [
      { InstanceId: 'PCI\\VEN_8086&DEV_100E&SUBSYS_1\\3&1', Present: false },
      { InstanceId: 'PCI\\VEN_8086&DEV_1234\\9', Present: true },
      { InstanceId: 'VMBUS\\{1}', Present: true },
      { InstanceId: 'ROOT\\VPN\\0000', Present: false },
    ],
  })
  await run()
  const { adapters, devices } = await guest.state()
  deepEqual(adapters, [{ ...fresh, MACAddress: dynamic?.MACAddress }, {
    MACAddress: fixed?.MACAddress,
    DHCPEnabled: false,
    IPAddress: ['10.0.0.5', '10.0.0.6'],
    IPSubnet: ['255.255.255.0', '255.255.255.0'],
    DefaultIPGateway: ['10.0.0.1'],
    DNSServerSearchOrder: ['10.0.0.2', '10.0.0.3'],
  }])
  equal(devices.length, 3)
  match(
    await guest.file('first-start.log') as string,
    /removed PCI\\VEN_8086&DEV_100E&SUBSYS_1\\3&1\r?\n.*08:00:27:00:00:01 has 10\.0\.0\.5, 10\.0\.0\.6 again/,
  )
  deepEqual((await host.state()).tasks, [])
})

test('has no syntax that Windows PowerShell 5.1 lacks', async ({ host }) => {
  const folder = join(host.dir, 'scripts')
  const text = script(...await parts({}))
  const start = /\$firstStart = @'\n(.*?)\n'@/s.exec(text)?.[1]
  ok(start)
  await fs.outputFile(join(folder, 'windows.ps1'), `\ufeff${text}`)
  await fs.outputFile(join(folder, 'first-start.ps1'), `\ufeff${start}`)
  deepEqual(await analyze(host.ps, folder), [])
})

windows.run()
