import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { type Disks, makePlan, size, type Target, type Wishes } from '../../../recipes/run/plan.ts'
import type { CheckHostResult } from '../../../tasks/check-host.ts'
import type { VmDescription } from '../../../tasks/inspect-vm.ts'

const bundle: Target = { kind: 'bundle', dir: 'out/x' }

const plans = suite('makePlan')

for (
  const [firmware, boots, generation] of [
    ['bios', 'bios', 1],
    ['bios', 'none', 1],
    ['efi', 'uefi', 2],
    ['efi', 'none', 2],
    ['efi', 'both', 2],
    ['bios', 'both', 1],
    ['unknown', 'uefi', 2],
    ['unknown', 'bios', 1],
    ['unknown', 'both', 2],
    // the disk is believed before the settings
    ['bios', 'uefi', 2],
    ['efi', 'bios', 1],
  ] as const
) {
  plans(
    `pain 3: makes generation ${generation} of ${firmware} firmware and a disk that boots by ${boots}`,
    () => {
      const { plan, refusals } = makePlan(vm({ firmware }), [disk({ boots })], {}, bundle)
      equal(plan.vm.generation, generation)
      deepEqual(refusals, [])
    },
  )
}

plans('asks for the generation where nothing tells it', () => {
  const { refusals } = makePlan(vm({ firmware: 'unknown' }), [disk({ boots: 'none' })], {}, bundle)
  match(refusals.join(), /^Cannot tell the generation of "web"/)
})

plans('refuses a generation that cannot boot the disk, and VHD for generation 2', () => {
  match(refusal({ generation: 2 }, 'bios'), /its disk boots by BIOS, and generation 2 is UEFI only/)
  match(refusal({ format: 'vhd' }, 'uefi'), /Cannot use VHD for a VM of generation 2/)
})

plans('refuses a VM that runs or sleeps, and says how to end that', () => {
  for (
    const [state, reason] of [['running', /it is running/], [
      'saved',
      /its state is saved/,
    ]] as const
  ) {
    const { refusals } = makePlan(vm({ state }), [disk({})], {}, bundle)
    match(refusals.join(), reason)
  }
})

plans('refuses options that lack what they belong to', () => {
  match(refusal({ adapter: 'Wi-Fi' }), /Cannot use --adapter alone/)
  match(refusal({ share: false }), /Cannot use --share alone/)
  match(refusal({ guard: false }), /Cannot use --guard alone/)
  match(refusal({ hostIp: '10.0.0.1/24' }), /Cannot use --host-ip alone/)
  match(refusal({ internal: 'x', nat: true }), /Cannot use --nat alone/)
  match(refusal({ internal: 'x', guestIp: '10.0.0.2' }), /Cannot use --guest-ip alone/)
  match(refusal({ internal: 'x', external: 'X' }), /two switches named/)
  match(refusal({ pin: true }), /Cannot use --pin alone/)
  match(refusal({ internal: 'x', via: 'kvp' }), /Cannot use --via alone/)
})

plans('refuses a guest address that is not in the host’s network, or is the host’s', () => {
  for (const guestIp of ['10.0.1.2', '10.0.0.1', '10.0.0.256', 'fe80::1', '10.0.0.2/24']) {
    match(refusal({ internal: 'x', hostIp: '10.0.0.1/24', guestIp }), /10\.0\.0|fe80|10\.0\.1/)
  }
  equal(refusal({ internal: 'x', hostIp: '10.0.0.1/24', guestIp: '10.0.0.2' }), '')
})

plans(
  'gives the guest its address after it has started, and takes a free network for the host',
  () => {
    const network = {
      internal: 'x',
      hostIp: '10.0.0.1/24',
      guestIp: '10.0.0.2',
      via: 'kvp' as const,
    }
    const { plan } = makePlan(vm({}), [disk({})], network, bundle)
    deepEqual(plan.steps.slice(-2).map(({ title }) => title), [
      'Start the VM and wait for its heartbeat',
      'Give the guest 10.0.0.2 on "x"',
    ])
    const last = plan.steps.at(-1)
    deepEqual(last?.options, { vm: 'web', switch: 'x', name: 'x', guestIp: '10.0.0.2', via: 'kvp' })
    const off = makePlan(vm({}), [disk({})], { ...network, start: false }, bundle).plan
    ok(!off.steps.some(({ task }) => task === 'set-guest-ip'))
    match(
      off.notes.join(),
      /npx zx tasks\/set-guest-ip\.ts --vm NAME --switch NAME --guest-ip 10\.0\.0\.2/,
    )
    const auto = makePlan(vm({}), [disk({})], { internal: 'x', hostIp: 'auto', nat: true }, bundle)
    deepEqual(auto.refusals, [])
    ok(
      auto.plan.steps.some(({ title }) =>
        title === 'Give the host a free address on "x", with NAT'
      ),
    )
    deepEqual('hostIp' in (auto.plan.steps[0]?.options ?? {}), false)
    match(
      refusal({ ...network, hostIp: 'auto' }),
      /the network is chosen when the host’s address is/,
    )
    match(refusal({ ...network, pin: true }), /Cannot fix the guest’s address and give it another/)
    const pin = makePlan(vm({}), [disk({})], { internal: 'x', pin: true }, bundle).plan.steps.at(-1)
    equal(pin?.title, 'Fix the guest’s address on "x"')
  },
)

plans(
  'gives the bridged adapter to the external switch and the host-only one to the internal',
  () => {
    const { plan } = makePlan(
      vm({}),
      [disk({})],
      { external: '桥接', adapter: 'Wi-Fi', internal: 'Static-NAT', nested: true },
      bundle,
    )
    // in the source's order; VMs inside it are bridged through the external switch only
    const adapters = plan.steps.flatMap((step) =>
      step.task === 'attach-adapter' ? [step.options] : []
    )
    deepEqual(adapters, [
      { vm: 'web', name: 'Adapter 1', switch: 'Default Switch', mac: '080027000001' },
      { vm: 'web', name: '桥接', switch: '桥接', mac: '080027000002', macSpoofing: true },
      { vm: 'web', name: 'Static-NAT', switch: 'Static-NAT', mac: '080027000003' },
    ])
  },
)

plans('leaves it to the host which adapter an index or auto means', () => {
  for (const adapter of ['auto', '7']) {
    const { plan } = makePlan(vm({}), [disk({})], { external: '桥接', adapter }, bundle)
    const asked = plan.steps.flatMap((step) =>
      step.task === 'check-host' || (step.task === 'create-switch' && step.options.adapter)
        ? [[step.task, step.options.adapter]]
        : []
    )
    deepEqual(asked, [['check-host', adapter], ['create-switch', adapter]])
  }
})

plans('leaves an adapter unconnected where its network is not asked for, and says so', () => {
  const { plan } = makePlan(vm({}), [disk({})], {}, bundle)
  const bridged = plan.steps.find(({ id }) => id === 'attach-adapter-2')
  deepEqual(bridged?.options, { vm: 'web', name: 'Adapter 2', mac: '080027000002' })
  match(plan.notes.join('\n'), /Adapter 2 was bridged and stays unconnected/)
})

plans('makes file names of any VM’s name', () => {
  for (
    const [name, slug] of [
      ['Bob’s "VM"; $(calc) 桥接', 'Bob_s _VM_ _calc_ 桥接'],
      ['../../etc/passwd', '_.._etc_passwd'],
      ['-rf', 'rf'],
      ['a[1]*?', 'a_1_'],
      ['line\nline\u0000', 'line_line_'],
      ['CON', 'CON_'],
      ['...', '_'],
    ]
  ) {
    const { plan } = makePlan(vm({}), [disk({})], { name }, bundle)
    equal(plan.slug, slug, name)
    equal(plan.name, name)
  }
})

plans('rounds memory up to what Hyper-V takes', () => {
  const { plan } = makePlan(vm({ memory: 1025 * 1024 ** 2 }), [disk({})], {}, bundle)
  equal(plan.vm.memory, 1026 * 1024 ** 2)
  // what Linux is given while it runs comes in blocks of 128 MB
  const linux = { guest: 'linux' as const, memory: 1025 * 1024 ** 2 }
  equal(makePlan(vm(linux), [disk({})], {}, bundle).plan.vm.memory, 1152 * 1024 ** 2)
  const asked = makePlan(vm(linux), [disk({})], { memory: 1026 * 1024 ** 2 }, bundle).plan
  equal(asked.vm.memory, 1026 * 1024 ** 2)
})

plans('has another key when the source was written to since', () => {
  const keys = ['2026-01-01', '2026-01-01', '2026-01-02'].map((modified) =>
    makePlan(vm({}), [disk({ modified })], {}, bundle).plan.key
  )
  equal(keys[0], keys[1])
  equal(new Set(keys).size, 2)
})

plans('tells sizes in the units of Windows', () => {
  deepEqual([0, 1023, 1024, 1536, 66 * 1024 ** 2, 2 ** 41].map(size), [
    '0 bytes',
    '1023 bytes',
    '1 KB',
    '1.5 KB',
    '66 MB',
    '2 TB',
  ])
})

plans('converts for another machine in a folder here, and sends from there', () => {
  const target = (url: string): Target => ({
    kind: 'ssh',
    url,
    folder: 'D:\\Hyper-V',
    stage: 'stage',
    host: { switches: [] } as unknown as CheckHostResult,
  })
  const { plan, refusals } = makePlan(vm({}), [disk({})], {}, target('ssh://a'))
  deepEqual(refusals, [])
  const [check, convert, send] = plan.steps
  const to = 'D:\\Hyper-V\\web.vhdx'
  ok(check?.task === 'check-host' && convert?.task === 'convert-disk' && send?.task === 'send-disk')
  deepEqual(check.options.disk, [to])
  equal(join(convert.options.to, '..', '..'), 'stage')
  deepEqual(send.options, { from: convert.options.to, to })
  const made = plan.steps.find(({ task }) => task === 'create-vm')
  ok(made?.task === 'create-vm' && made.needs.includes(send.id))
  deepEqual(made.options.disk, [to])
  const [, other] = makePlan(vm({}), [disk({})], {}, target('ssh://b')).plan.steps
  ok(other?.task === 'convert-disk' && other.options.to !== convert.options.to)
})

plans('prepares Windows on its converted disk, where that can be written to', () => {
  const volume = { offset: 0, length: 1, holds: 'ntfs' as const }
  const on = (elevated: boolean): Target => ({
    kind: 'local',
    folder: 'D:\\Hyper-V',
    host: { switches: [], host: { elevated } } as unknown as CheckHostResult,
  })
  const local = on(true)
  const steps = (volumes: Disks[number]['volumes'], to: Target) =>
    makePlan(vm({}), [disk({ volumes })], {}, to).plan.steps
  const all = steps([{ ...volume, windows: true }], local)
  const windows = all.find(({ task }) => task === 'prepare-guest')
  ok(windows?.task === 'prepare-guest')
  deepEqual(windows.options, { disk: 'D:\\Hyper-V\\web.vhdx', vm: 'web' })
  const made = all.find(({ task }) => task === 'create-vm')
  ok(made?.needs.includes(windows.id))
  const [one] = vm({}).disks as [VmDescription['disks'][number]]
  const sata = vm({ disks: [{ ...one, controller: { type: 'sata', port: 0, device: 0 } }] })
  const told = (to: Target) =>
    makePlan(sata, [disk({ volumes: [{ ...volume, windows: true }] })], {}, to).plan.notes.join()
  match(told(bundle), /may stop with 0x7B/)
  ok(!told(local).includes('0x7B'), 'not where it is prevented')
  for (
    const [volumes, to] of [
      [[{ ...volume }], local],
      [[{ ...volume, windows: true, dirty: true }], local],
      [[{ ...volume, windows: true }], on(false)],
      [[{ ...volume, windows: true }], bundle],
    ] as const
  ) {
    equal(steps([...volumes], to).some(({ task }) => task === 'prepare-guest'), false)
  }
})

plans('pain 25: carries over what the guest knows its computer by', () => {
  const hardwareUuid = '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61'
  const known = vm({
    firmware: 'efi',
    hardwareUuid,
    tpm: true,
    dvds: [{}, { path: 'C:\\a.iso' }],
    serialPorts: [
      { port: 2, mode: 'pipe', path: '\\\\.\\pipe\\own', server: true },
      { port: 3, mode: 'file', path: 'C:\\a.log', server: false },
    ],
  })
  const of = (generation: 1 | 2) =>
    makePlan(known, [disk({ boots: 'both' })], { generation }, bundle).plan.steps
      .find(({ task }) => task === 'set-hardware')
  const second = of(2)
  ok(second?.task === 'set-hardware')
  deepEqual(second.options, {
    vm: 'web',
    uuid: hardwareUuid,
    tpm: true,
    serial: ['', '\\\\.\\pipe\\own'],
    dvd: ['', ''],
  })
  equal(
    second.title,
    'Carry over the BIOS UUID, a TPM, empty, COM2 as \\\\.\\pipe\\own and 2 DVD drives',
  )
  const first = of(1)
  ok(first?.task === 'set-hardware')
  deepEqual(first.options, { vm: 'web', uuid: hardwareUuid, serial: ['', '\\\\.\\pipe\\own'] })
  const bare = makePlan(vm({}), [disk({})], {}, bundle).plan.steps
  equal(bare.some(({ task }) => task === 'set-hardware'), false)
})

plans(
  'pain 4: has Secure Boot on with the keys of the guest on the disk, off where none is known',
  () => {
    const of = (some: Partial<VmDescription>, volumes: unknown[] = []) => {
      const on = disk({ boots: 'both', volumes } as Partial<Disks[number]>)
      const { plan } = makePlan(
        vm({ firmware: 'efi', secureBoot: true, ...some }),
        [on],
        {},
        bundle,
      )
      const step = plan.steps.find(({ task }) => task === 'create-vm')
      ok(step?.task === 'create-vm')
      return step.options.secureBoot
    }
    equal(of({ guest: 'windows' }), 'windows')
    equal(of({ guest: 'linux' }), 'linux')
    equal(of({ guest: 'linux' }, [{ holds: 'ntfs', windows: true, loaders: [] }]), 'windows')
    equal(of({ guest: 'unknown' }, [{ holds: 'ext', loaders: [] }]), 'linux')
    equal(of({ guest: 'unknown' }), 'off')
    equal(of({ guest: 'linux', secureBoot: false }), 'off')
    equal(of({ guest: 'linux', firmware: 'bios' }), undefined)
  },
)

plans(
  'pain 24: has its clock follow the host’s where VirtualBox does, and says where that differs',
  () => {
    const of = (some: Partial<VmDescription>, wishes: Wishes = {}) => {
      const { plan } = makePlan(vm({ hardwareUuid: 'x', ...some }), [disk({})], wishes, bundle)
      const step = plan.steps.find(({ task }) => task === 'set-hardware')
      ok(step?.task === 'set-hardware')
      const { timeSync, startAction, startDelay, stopAction } = step.options
      return { notes: plan.notes.join(), set: [timeSync, startAction, startDelay, stopAction] }
    }
    const local = of({ guest: 'windows', clock: { rtc: 'local', follows: true } })
    deepEqual(local.set, [true, undefined, undefined, undefined])
    ok(!/clock/.test(local.notes), local.notes)
    const utc = of({ guest: 'windows', clock: { rtc: 'utc', follows: true } })
    match(utc.notes, /takes its hardware clock for UTC, .+ then time synchronization sets it/)
    const own = of({ guest: 'linux', clock: { rtc: 'utc', follows: false } })
    deepEqual(own.set, [false, undefined, undefined, undefined])
    match(own.notes, /its clock did not follow the host’s, so on Hyper-V it does not either/)
    const autostart = { delay: 30, stop: 'save' as const }
    deepEqual(of({ autostart }).set, [undefined, 'start', 30, 'save'])
    // a VM with VMs inside cannot be saved
    deepEqual(of({ autostart }, { nested: true }).set, [undefined, 'start', 30, 'shut-down'])
    deepEqual(of({ autostart: { delay: 0, stop: 'nothing' } }).set, [
      undefined,
      'start',
      0,
      undefined,
    ])
  },
)

plans('turns the port forwards of VirtualBox into mappings of the host’s NAT', () => {
  const [nat, ...others] = vm({}).nics as [VmDescription['nics'][number]]
  const forward = (name: string, hostIp: string, hostPort: number, guestPort: number) => ({
    ...{ name, protocol: 'tcp' as const, hostIp, hostPort, guestIp: '10.0.2.15', guestPort },
  })
  const forwards = [
    forward('rdp', '', 33890, 3389),
    forward('ssh', '127.0.0.1', 2222, 22),
    forward('web "x"; $(calc)', '192.168.1.5', 8080, 80),
    forward('again', '10.0.0.5', 8080, 80),
  ]
  const described = vm({ nics: [{ ...nat, forwards }, ...others] })
  const wishes = { internal: 'Static-NAT', hostIp: '192.168.56.1/24', nat: true }
  const guestIp = '192.168.56.191'
  const { plan } = makePlan(described, [disk({})], { ...wishes, guestIp }, bundle)
  const steps = plan.steps.flatMap((step) => step.task === 'forward-port' ? [step.options] : [])
  deepEqual(steps, [
    { port: 33890, protocol: 'tcp', guestIp, guestPort: 3389 },
    { port: 8080, protocol: 'tcp', guestIp, guestPort: 80 },
  ])
  const notes = plan.notes.join('\n')
  match(
    notes,
    /"ssh" \(tcp 127\.0\.0\.1:2222\) was for the host alone, .+ 192\.168\.56\.191:22 now/,
  )
  match(notes, /Port 8080 .+ It was for 192\.168\.1\.5, and is for all addresses of the host now\./)
  const without = makePlan(described, [disk({})], wishes, bundle).plan
  equal(without.steps.some(({ task }) => task === 'forward-port'), false)
  match(
    without.notes.join('\n'),
    /"rdp" \(tcp \*:33890 to port 3389\), .+ --guest-ip 192\.168\.56\.191/,
  )
})

plans.run()

function vm(some: Partial<VmDescription>): VmDescription {
  const nic = (slot: number, attachment: VmDescription['nics'][number]['attachment']) => ({
    slot,
    mac: `08002700000${slot + 1}`,
    attachment,
    cableConnected: true,
    model: '82540EM',
    forwards: [],
  })
  return {
    kind: 'ova',
    name: 'web',
    cpus: 2,
    memory: 2 * 1024 ** 3,
    firmware: 'bios',
    tpm: false,
    osType: 'Other',
    guest: 'other',
    disks: [{ path: '/x.ova', member: 'x.vmdk', format: 'VMDK', chain: [], encrypted: false }],
    removable: [],
    dvds: [],
    serialPorts: [],
    sharedFolders: [],
    nics: [nic(0, 'nat'), nic(1, 'bridged'), nic(2, 'hostonly')],
    snapshots: [],
    warnings: [],
    ...some,
  }
}

function disk(some: Partial<Disks[number]>): Disks[number] {
  return {
    format: 'vmdk',
    variant: 'streamOptimized',
    virtualSize: 1024 ** 3,
    allocatedSize: 1024 ** 2,
    partitionTable: 'mbr',
    partitions: [],
    volumes: [],
    boots: 'bios',
    modified: '2026-01-01T00:00:00.000Z',
    ...some,
  } as Disks[number]
}

function refusal(wishes: Wishes, boots: Disks[number]['boots'] = 'bios'): string {
  return makePlan(
    vm({ firmware: boots === 'uefi' ? 'efi' : 'bios' }),
    [disk({ boots })],
    wishes,
    bundle,
  )
    .refusals.join('\n')
}
