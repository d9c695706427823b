import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { makeVm, NAME, vboxManage } from '../../fixtures/inspect-vm/make.ts'
import { inspectVm, listVms } from '../../tasks/inspect-vm.ts'
import { needs } from '../needs.ts'

const root = join(import.meta.dirname as string, '..', '..')
const fixtures = join(root, 'fixtures', 'inspect-vm')
const MB = 1024 ** 2
const uuid = (last: string) => `3f1b9c6e-0000-4000-8000-${last.padStart(12, '0')}`

const nic = { cableConnected: true, model: '82540EM', forwards: [] }

/** What fixtures/inspect-vm/make.ts gives the VM, and what is said of it. */
const NICS = [
  {
    ...nic,
    slot: 0,
    mac: '080027000001',
    attachment: 'nat',
    forwards: [
      {
        name: 'dns',
        protocol: 'udp',
        hostIp: '',
        hostPort: 53,
        guestIp: '10.0.2.15',
        guestPort: 53,
      },
      {
        name: 'ssh',
        protocol: 'tcp',
        hostIp: '127.0.0.1',
        hostPort: 2222,
        guestIp: '',
        guestPort: 22,
      },
    ],
  },
  {
    ...nic,
    slot: 1,
    mac: '080027000002',
    attachment: 'bridged',
    network: 'Intel(R) Wi-Fi "6"',
    model: 'virtio',
  },
  {
    ...nic,
    slot: 2,
    mac: '080027000003',
    attachment: 'hostonly',
    network: 'vboxnet0',
    cableConnected: false,
  },
  {
    ...nic,
    slot: 3,
    mac: '080027000004',
    attachment: 'internal',
    network: '内网 <1>\nVMState="running"',
  },
  { ...nic, slot: 4, mac: '080027000005', attachment: 'natnetwork', network: 'NatNetwork' },
]
const WARNINGS = [
  'Snapshots, other than its current state, do not come along: before "update"',
  'What its TPM holds does not come along. Have the BitLocker recovery key at hand',
  'Shared folders do not come along: srv',
  'USB devices do not come along: YubiKey',
]
/** One more: the ISO, whose path is the folder's. */
function warningsIn(folder: string): string[] {
  return [...WARNINGS, `"${join(folder, 'tools.iso')}" in its drive does not come along`]
}

/** A fresh folder with a fixture in it. */
const settings = suite<{ dir: string; has: (fixture: string, as?: string) => Promise<string> }>(
  'inspectVm',
)
settings.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'inspect-vm-'))
  context.has = async (fixture, as = fixture) => {
    await fs.copy(join(fixtures, fixture), join(context.dir, as))
    return join(context.dir, as)
  }
  // a VirtualBox that knows nothing
  process.env.VBOX_USER_HOME = join(context.dir, 'home')
})
settings.after.each(async ({ dir }) => {
  delete process.env.VBOX_USER_HOME
  await fs.remove(dir)
})

settings('describes a .vbox as VirtualBox 7.0 writes it', async ({ dir, has }) => {
  const vm = await inspectVm({ source: [await has('7.0.vbox')] })
  const { disks, nics, warnings, ...rest } = vm
  deepEqual(rest, {
    kind: 'vbox',
    name: NAME,
    settings: join(dir, '7.0.vbox'),
    uuid: uuid('1'),
    hardwareUuid: uuid('1'),
    cpus: 3,
    // the current state's, not its snapshot's 1536 MB
    memory: 2048 * MB,
    firmware: 'efi',
    tpm: true,
    osType: 'Windows10_64',
    guest: 'windows',
    state: 'poweroff',
    removable: [join(dir, 'tools.iso')],
    dvds: [{ path: join(dir, 'tools.iso'), controller: { type: 'sata', port: 1, device: 0 } }],
    serialPorts: [{ port: 2, mode: 'pipe', path: 'com2', server: true }],
    sharedFolders: [{ name: 'srv', path: '/srv', writable: true, autoMount: false }],
    clock: { rtc: 'local', follows: true },
    snapshots: ['before "update"'],
  })
  deepEqual(
    disks.map(({ chain, format, controller, encrypted }) => [
      chain.map((path) => path.replace(/\{.*\}/, 'leaf').slice(dir.length + 1)),
      format,
      Object.values(controller ?? {}),
      encrypted,
    ]),
    [
      [[join('Snapshots', 'leaf.vdi'), 'ide.vdi'], 'VDI', ['ide', 1, 1], false],
      [[join('Snapshots', 'leaf.vmdk'), 'sata.vmdk'], 'VMDK', ['sata', 0, 0], false],
      [[join('Snapshots', 'leaf.vhd'), 'scsi.vhd'], 'VHD', ['scsi', 0, 0], false],
    ],
  )
  for (const { path, chain } of disks) equal(path, chain[0])
  deepEqual(nics, NICS)
  deepEqual(
    warnings.filter((text) => !/^Its disk ".*" cannot be read$/.test(text)),
    warningsIn(dir),
  )
  equal(warnings.length, warningsIn(dir).length + 3, 'one more for each disk that is not there')
})

settings(
  'describes a .vbox of VirtualBox 4.0 that is saved and encrypted',
  async ({ dir, has }) => {
    const vm = await inspectVm({ source: [await has('1.12.vbox')] })
    equal(vm.state, 'saved')
    equal(vm.firmware, 'bios')
    equal(vm.cpus, 1)
    equal(vm.memory, 192 * MB)
    deepEqual(vm.disks, [{
      path: join(dir, 'xp.vdi'),
      format: 'VDI',
      controller: { type: 'ide', port: 0, device: 0 },
      uuid: uuid('d1'),
      chain: [join(dir, 'xp.vdi')],
      encrypted: true,
    }])
    deepEqual(vm.nics.map(({ slot, mac, attachment }) => [slot, mac, attachment]), [
      [0, '080027ABCDEF', 'nat'],
    ])
    deepEqual(vm.dvds, [{ controller: { type: 'ide', port: 1, device: 0 } }])
    deepEqual(vm.serialPorts, [{ port: 2, mode: 'file', path: 'C:\\serial.txt', server: false }])
    deepEqual(vm.warnings, [
      'Its saved state does not come along',
      'USB devices do not come along: Scanner',
      'Parallel ports do not come along: LPT1',
      `Its disk "${join(dir, 'xp.vdi')}" cannot be read`,
      `Its disk "${join(dir, 'xp.vdi')}" is encrypted by VirtualBox`,
    ])
  },
)

settings(
  'pain 10: takes the attached leaf of a tree of snapshots, in a .vbox of VirtualBox 5.0',
  async ({ dir, has }) => {
    const file = await has('1.15.vbox')
    const vm = await inspectVm({ source: [file] })
    const leaf = (last: string) => join(dir, 'Snapshots', `{${uuid(last)}}.vdi`)
    deepEqual([vm.cpus, vm.memory, vm.firmware, vm.state], [2, 3072 * MB, 'bios', 'poweroff'])
    equal(vm.uuid, uuid('15'))
    equal(vm.hardwareUuid, '6e9c1b3f-0000-0040-8000-000000000015')
    deepEqual(vm.snapshots, ['installed', 'updated', 'tried'])
    deepEqual(vm.disks.map(({ chain, controller }) => [controller?.type, ...chain]), [
      ['sata', leaf('e3'), leaf('e2'), join(dir, 'jump.vdi')],
      ['sas', join(dir, 'data.vhd')],
    ])
    const additions = 'C:/Program Files/Oracle/VirtualBox/VBoxGuestAdditions.iso'
    deepEqual(vm.dvds.map(({ path }) => path?.endsWith('VBoxGuestAdditions.iso')), [true])
    equal(vm.removable.length, 2)
    if (process.platform !== 'win32') equal(vm.dvds[0]?.path, additions)
    deepEqual(vm.nics[0]?.forwards, [{
      name: 'rdp',
      protocol: 'tcp',
      hostIp: '',
      hostPort: 33389,
      guestIp: '',
      guestPort: 3389,
    }])
    deepEqual(vm.sharedFolders, [{ name: 'd', path: 'D:\\', writable: true, autoMount: true }])
    deepEqual(vm.warnings.slice(0, 3), [
      'Snapshots, other than its current state, do not come along: installed, updated, tried',
      'Shared folders do not come along: d',
      'USB devices do not come along: Token',
    ])
  },
)

settings('describes a .vbox of a VirtualBox to come as those before it', async ({ dir, has }) => {
  const known = await inspectVm({ source: [await has('1.20.vbox')] })
  const text = await fs.readFile(join(fixtures, '1.20.vbox'), 'utf8')
  const file = join(dir, 'later.vbox')
  await fs.writeFile(file, text.replace('"1.20-windows"', '"1.99-linux" other="1"'))
  deepEqual(await inspectVm({ source: [file] }), { ...known, settings: file })
})

settings('describes a .vbox of VirtualBox 7.1', async ({ has }) => {
  const vm = await inspectVm({ source: [await has('1.20.vbox')] })
  equal(vm.name, '007')
  equal(vm.cpus, 6)
  equal(vm.state, 'aborted')
  equal(vm.guest, 'linux')
  equal(vm.hardwareUuid, uuid('aa'))
  equal(vm.secureBoot, undefined)
  deepEqual(vm.disks.map(({ controller }) => controller?.type), ['virtio', 'nvme'])
  deepEqual(vm.nics.map(({ slot, attachment, network }) => [slot, attachment, network]), [
    [2, 'hostonlynetwork', 'HostOnly'],
    [3, 'none', undefined],
    [8, 'generic', 'UDPTunnel'],
  ])
  deepEqual(vm.dvds, [
    { hostDrive: '/dev/sr0', controller: { type: 'virtio', port: 1, device: 0 } },
  ])
  deepEqual(vm.serialPorts, [
    { port: 1, mode: 'disconnected', server: false },
    { port: 3, mode: 'device', path: '/dev/ttyS0', server: false },
    { port: 4, mode: 'tcp', path: '127.0.0.1:2023', server: true },
  ])
  deepEqual(vm.sharedFolders, [
    { name: 'home', path: 'C:\\Users\\Bob', writable: false, autoMount: true },
  ])
})

settings('reads Secure Boot from the .nvram', async ({ dir, has }) => {
  const source = [await has('1.20.vbox')]
  const nvram = join(dir, 'vars.nvram')
  await fs.writeFile(nvram, Buffer.alloc(4096, 255))
  equal((await inspectVm({ source })).secureBoot, false)
  const old = variable('SecureBootEnable', [1], 0x3c)
  const key = variable('PK', Buffer.alloc(900, 7))
  const cases: [Buffer[], boolean][] = [
    [[key, old, variable('SecureBootEnable', [1])], true],
    [[key, old, variable('SecureBootEnable', [0])], false],
    // as it is before the first start
    [[key], true],
    // without a key there is nothing to go by
    [[variable('SecureBootEnable', [1])], false],
    [[variable('PK', [7], 0x3c), variable('SecureBootEnable', [1])], false],
  ]
  for (const [variables, expected] of cases) {
    await fs.writeFile(nvram, Buffer.concat([Buffer.alloc(100), ...variables]))
    equal((await inspectVm({ source })).secureBoot, expected)
  }
})

settings('pain 5: reads what EFI remembers to start from the .nvram', async ({ dir, has }) => {
  const source = [await has('1.20.vbox')]
  const node = (type: number, subtype: number, data: Buffer) => {
    const header = Buffer.of(type, subtype, 0, 0)
    header.writeUInt16LE(4 + data.length, 2)
    return Buffer.concat([header, data])
  }
  const text = (value: string) => Buffer.from(`${value}\0`, 'utf16le')
  const end = node(0x7f, 0xff, Buffer.alloc(0))
  const entry = (name: string, ...nodes: Buffer[]) =>
    Buffer.concat([Buffer.alloc(6), text(name), ...nodes, end])
  const disk = node(4, 1, Buffer.alloc(38))
  const store = [
    variable('BootOrder', [2, 0, 0, 0, 1, 0, 9, 0, 0x0a, 0]),
    variable('Boot0000', entry('UiApp', node(4, 6, Buffer.alloc(16)))),
    variable('Boot0001', entry('桥接', disk, node(4, 4, text('\\EFI\\debian\\grubx64.efi')))),
    variable('Boot0002', entry('ubuntu', disk, node(4, 4, text('\\EFI\\ubuntu\\shimx64.efi')))),
    variable('Boot000A', Buffer.of(1, 2, 3)),
  ]
  await fs.writeFile(join(dir, 'vars.nvram'), Buffer.concat(store))
  const { bootEntries, secureBoot } = await inspectVm({ source })
  equal(secureBoot, false)
  deepEqual(bootEntries, [
    { name: 'ubuntu', path: '\\EFI\\ubuntu\\shimx64.efi' },
    { name: '桥接', path: '\\EFI\\debian\\grubx64.efi' },
  ])
})

settings('reads Secure Boot from the variables that OVMF comes with', async ({ dir, has }) => {
  const enrolled = '/usr/share/OVMF/OVMF_VARS_4M.ms.fd'
  if (!await fs.pathExists(enrolled)) return console.error(`skipped, ${enrolled} not found`)
  const source = [await has('1.20.vbox')]
  await fs.copy(enrolled, join(dir, 'vars.nvram'))
  equal((await inspectVm({ source })).secureBoot, true)
  await fs.copy(enrolled.replace('.ms', ''), join(dir, 'vars.nvram'))
  equal((await inspectVm({ source })).secureBoot, false)
})

settings(
  'finds disks that are in another VM’s file, or in VirtualBox’s own',
  async ({ dir, has }) => {
    const whole = await fs.readFile(join(fixtures, '1.20.vbox'), 'utf8')
    const shared = whole.replace(/<MediaRegistry>.*<\/MediaRegistry>/s, '')
    await fs.writeFile(join(dir, 'clone.vbox'), shared)
    const source = [join(dir, 'clone.vbox')]
    await rejects(inspectVm({ source }), {
      message: `Cannot read "${source[0]}": its disk ${uuid('d3')} is in no media registry here. ` +
        'Set VBOX_USER_HOME to the folder of its VirtualBox.xml, or name the disk itself',
    })
    await has('1.20.vbox', join('other', 'other.vbox'))
    await fs.outputFile(join(dir, 'broken.vbox'), '<VirtualBox')
    const entries = ['gone.vbox', 'broken.vbox', 'other/other.vbox']
      .map((name, index) => `<MachineEntry uuid="{${uuid(`${index}`)}}" src="../${name}"/>`)
    await fs.outputFile(
      join(dir, 'home', 'VirtualBox.xml'),
      `<VirtualBox><Global><MachineRegistry>${
        entries.join('')
      }</MachineRegistry></Global></VirtualBox>`,
    )
    deepEqual(
      (await inspectVm({ source })).disks.map(({ path }) => path),
      ['virtio.vdi', 'nvme.vdi'].map((name) => join(dir, 'other', name)),
    )
    const [registry] = whole.match(/<MediaRegistry>.*<\/MediaRegistry>/s) ?? []
    await fs.outputFile(
      join(dir, 'home', 'VirtualBox.xml'),
      `<VirtualBox><Global>${registry}</Global></VirtualBox>`,
    )
    equal((await inspectVm({ source })).disks[0]?.path, join(dir, 'home', 'virtio.vdi'))
  },
)

settings('keeps a path of Windows as it is where there is no WSL', async ({ dir }) => {
  const text = await fs.readFile(join(fixtures, '1.20.vbox'), 'utf8')
  const file = join(dir, 'a.vbox')
  await fs.writeFile(file, text.replace('"nvme.vdi"', '"D:/VMs/it’s.vdi"'))
  const vm = await inspectVm({ source: [file] })
  equal(vm.disks[1]?.path, 'D:/VMs/it’s.vdi')
})

settings('puts the disks of a controller that does not boot last', async ({ dir }) => {
  const text = await fs.readFile(join(fixtures, '7.0.vbox'), 'utf8')
  const file = join(dir, 'a.vbox')
  await fs.writeFile(file, text.replace(/(type="PIIX4".*)Bootable="true"/g, '$1Bootable="false"'))
  const vm = await inspectVm({ source: [file] })
  deepEqual(vm.disks.map(({ controller }) => controller?.type), ['sata', 'scsi', 'ide'])
})

for (const version of ['0.9', '1.0', '2.0']) {
  settings(`describes an OVF ${version} of VirtualBox`, async ({ dir, has }) => {
    const name = `ovf-${version}`
    for (const n of [1, 2, 3]) await fs.writeFile(join(dir, `${name}-disk00${n}.vmdk`), '')
    const vm = await inspectVm({ source: [await has(`${name}.ovf`)] })
    equal(vm.kind, 'ovf')
    equal(vm.name, NAME)
    equal(vm.settings, join(dir, `${name}.ovf`))
    equal(vm.cpus, 3)
    equal(vm.memory, 2048 * MB)
    equal(vm.firmware, 'efi')
    equal(vm.state, undefined)
    deepEqual(vm.nics, NICS)
    deepEqual(vm.dvds, [{ controller: { type: 'sata', port: 1, device: 0 } }])
    deepEqual(vm.serialPorts, [{ port: 2, mode: 'pipe', path: 'com2', server: true }])
    deepEqual(
      vm.disks.map(({ path, format, capacity, controller }) => [
        path.slice(dir.length + 1),
        format,
        capacity,
        controller?.type,
      ]),
      [
        [`${name}-disk003.vmdk`, 'VMDK', 6 * MB, 'ide'],
        [`${name}-disk002.vmdk`, 'VMDK', 5 * MB, 'sata'],
        [`${name}-disk001.vmdk`, 'VMDK', 4 * MB, 'scsi'],
      ],
    )
  })
  settings(`describes an OVF ${version} by the standard’s items alone`, async ({ dir, has }) => {
    const name = `ovf-${version}`
    for (const n of [1, 2, 3]) await fs.writeFile(join(dir, `${name}-disk00${n}.vmdk`), '')
    const file = await has(`${name}.ovf`)
    const text = await fs.readFile(file, 'utf8')
    await fs.writeFile(file, text.replace(/<vbox:Machine.*<\/vbox:Machine>/s, ''))
    const vm = await inspectVm({ source: [file] })
    equal(vm.name, NAME)
    equal(vm.cpus, 3)
    equal(vm.memory, 2048 * MB)
    equal(vm.guest, 'windows')
    deepEqual(
      vm.nics.map(({ attachment }) => attachment),
      ['nat', 'bridged', 'hostonly', 'internal', 'natnetwork'],
    )
    deepEqual(
      vm.disks.map(({ path, controller }) => [path.at(-6), ...Object.values(controller ?? {})]),
      [['1', 'scsi', 0, 0], ['2', 'sata', 0, 0], ['3', 'ide', 1, 1]],
    )
  })
}

settings('describes an OVF of VMware', async ({ dir, has }) => {
  for (const n of [1, 2]) await fs.writeFile(join(dir, `jump host-disk${n}.vmdk`), '')
  const source = [await has('vmware.ovf')]
  const vm = await inspectVm({ source })
  deepEqual(vm, {
    kind: 'ovf',
    name: 'jump host',
    settings: source[0],
    cpus: 4,
    memory: 4096 * MB,
    firmware: 'efi',
    secureBoot: true,
    tpm: true,
    osType: 'ubuntu64Guest',
    guest: 'linux',
    disks: [
      {
        path: join(dir, 'jump host-disk1.vmdk'),
        format: 'VMDK',
        capacity: 40 * 1024 * MB,
        controller: { type: 'scsi', port: 2, device: 0 },
        chain: [join(dir, 'jump host-disk1.vmdk')],
        encrypted: false,
      },
      {
        path: join(dir, 'jump host-disk2.vmdk'),
        format: 'VMDK',
        capacity: 512 * MB,
        controller: { type: 'ide', port: 1, device: 1 },
        chain: [join(dir, 'jump host-disk2.vmdk')],
        encrypted: false,
      },
    ],
    removable: [],
    dvds: [{ controller: { type: 'ide', port: 1, device: 0 } }],
    serialPorts: [{ port: 1, mode: 'disconnected', server: false }],
    sharedFolders: [],
    nics: [{
      slot: 0,
      mac: '005056AABB0C',
      attachment: 'bridged',
      network: 'VM Network',
      cableConnected: true,
      model: 'VmxNet3',
      forwards: [],
    }],
    snapshots: [],
    warnings: [
      'What its TPM holds does not come along. Have the BitLocker recovery key at hand',
      'The empty disk "vmdisk3" does not come along',
    ],
  })
  await fs.remove(join(dir, 'jump host-disk2.vmdk'))
  await rejects(inspectVm({ source }), {
    message: `Cannot read "${source[0]}": its disk "jump host-disk2.vmdk" is not beside it. ` +
      'Copy all files of the export',
  })
})

settings('refuses an OVF that it cannot carry whole', async ({ has }) => {
  const file = await has('vmware.ovf')
  const text = await fs.readFile(file, 'utf8')
  const cases: [RegExp, string, RegExp][] = [
    [/jump%20host-disk1.vmdk/, '../../etc/passwd', /file "..\/..\/etc\/passwd" .* outside of it/],
    [/jump%20host-disk1.vmdk/, '..%2F..%2Fetc%2Fpasswd', /outside of it/],
    [/jump%20host-disk1.vmdk/, '/etc/passwd', /outside of it/],
    [/jump%20host-disk1.vmdk/, 'C:\\Windows\\x.vmdk', /outside of it/],
    [/jump%20host-disk1.vmdk/, 'http://host/x.vmdk', /outside of it/],
    [/ovf:size/, 'ovf:chunkSize="7" ovf:size', /disk1\.vmdk" is not beside it/],
    [/ovf:size/, 'ovf:compression="gzip" ovf:size', /disk1\.vmdk" is not beside it/],
    [/ovf:size/, 'ovf:compression="bzip2" ovf:size', /is compressed by bzip2, and gzip is known/],
    [/ovf:fileRef="file1"/, 'ovf:fileRef="file7"', /outside of it/],
    [/disk\/vmdisk1/, 'disk/vmdisk7', /disk "ovf:\/disk\/vmdisk7" is not among its files/],
    [/<VirtualSystem .*<\/VirtualSystem>/s, '', /it describes no VMs/],
    [/<VirtualSystem .*<\/VirtualSystem>/s, '$&$&', /it describes 2 VMs/],
    [/>4096</, '>much<', /does not say how much CPU and memory/],
  ]
  for (const [from, to, why] of cases) {
    await fs.writeFile(file, text.replace(from, to))
    await rejects(inspectVm({ source: [file] }), (error: Error) => sentence(error, file, why))
  }
})

settings(
  'finds the OVF of an OVA wherever it is, and its disks where they are',
  async ({ dir }) => {
    const ovf = await fs.readFile(join(fixtures, 'vmware.ovf'))
    const disks: [string, Buffer][] = [
      ['jump%20host-disk1.vmdk', Buffer.alloc(700, 1)],
      ['jump host-disk2.vmdk', Buffer.alloc(512, 2)],
    ]
    const file = join(dir, 'it’s.ova')
    for (
      const members of [[['a.ovf', ovf], ...disks], [...disks, ['a.OVF', ovf]]] as typeof disks[]
    ) {
      await fs.writeFile(file, tar(members))
      const vm = await inspectVm({ source: [file] })
      equal(vm.kind, 'ova')
      deepEqual(vm.disks.map(({ path, member }) => [path, member]), [
        [file, 'jump%20host-disk1.vmdk'],
        [file, 'jump host-disk2.vmdk'],
      ])
    }
  },
)

settings(
  'names disks in chunks or compressed by the OVF that they are read through',
  async ({ dir, has }) => {
    const file = await has('vmware.ovf')
    const text = await fs.readFile(file, 'utf8')
    const first = async (change: string, ...members: string[]) => {
      const ovf = text.replace('jump%20host', 'jump').replace('ovf:size', `${change} ovf:size`)
      await fs.writeFile(file, ovf)
      for (const name of [...members, 'jump host-disk2.vmdk']) {
        await fs.writeFile(
          join(dir, name),
          'x',
        )
      }
      const ova = join(dir, 'a.ova')
      const parts = [...members, 'jump host-disk2.vmdk']
        .map((name): [string, Buffer] => [name, Buffer.from('x')])
      await fs.writeFile(ova, tar([['a.ovf', Buffer.from(ovf)], ...parts]))
      const both = await Promise.all([file, ova].map((source) => inspectVm({ source: [source] })))
      return both.map(({ disks: [disk] }) => [disk?.path, disk?.member, disk?.packed])
    }
    const [ovf, ova] = [file, join(dir, 'a.ova')]
    deepEqual(await first('ovf:compression="gzip"', 'jump-disk1.vmdk'), [
      [ovf, 'jump-disk1.vmdk', 'gzip'],
      [ova, 'jump-disk1.vmdk', 'gzip'],
    ])
    await fs.remove(join(dir, 'jump-disk1.vmdk'))
    deepEqual(await first('ovf:chunkSize="40000"', 'jump-disk1.vmdk.000000000'), [
      [ovf, 'jump-disk1.vmdk', 'chunks'],
      [ova, 'jump-disk1.vmdk', 'chunks'],
    ])
  },
)

settings('refuses an OVA that is damaged or hostile', async ({ dir }) => {
  const ovf = await fs.readFile(join(fixtures, 'vmware.ovf'))
  const file = join(dir, 'a.ova')
  const good = tar([['a.ovf', ovf], ['b', Buffer.alloc(2000)]])
  const cases: [Buffer, RegExp][] = [
    [good, /its disk "jump%20host-disk1.vmdk" is not in it/],
    [tar([['b.vmdk', ovf]]), /there is no OVF in the archive/],
    [tar([['../a.ovf', ovf]]), /the file "..\/a.ovf" that it names is outside of it/],
    [tar([['/a.ovf', ovf]]), /outside of it/],
    [tar([['a.ovf', ovf, '2']]), /"a.ovf" in it is a link/],
    [good.subarray(0, 2048), /the archive is cut short/],
    [Buffer.from('PK\u0003\u0004'.padEnd(2000)), /it is no tar archive/],
    [Buffer.alloc(0), /there is no OVF/],
  ]
  for (const [bytes, why] of cases) {
    await fs.writeFile(file, bytes)
    await rejects(inspectVm({ source: [file] }), (error: Error) => sentence(error, file, why))
  }
})

settings('describes bare disks by their content', async ({ dir }) => {
  const write = async (name: string, size: number, at: number, bytes: Buffer) => {
    const image = Buffer.alloc(size)
    bytes.copy(image, at < 0 ? size + at : at)
    await fs.writeFile(join(dir, name), image)
  }
  const number = (value: bigint, big = false) => {
    const bytes = Buffer.alloc(8)
    big ? bytes.writeBigUInt64BE(value) : bytes.writeBigUInt64LE(value)
    return bytes
  }
  const vdi = Buffer.alloc(312)
  vdi.writeUInt32LE(0xbeda107f)
  number(77n).copy(vdi, 304)
  await write('007.vdi', 1024, 64, vdi)
  await write(
    'b.vmdk',
    1024,
    0,
    Buffer.concat([Buffer.from('KDMV'.padEnd(12, '\0')), number(3n)]),
  )
  await write('c.vmdk', 600, 0, Buffer.from('# Disk DescriptorFile\nversion=1'))
  await write(
    'd.bin',
    1024,
    -512,
    Buffer.concat([Buffer.from('conectix'.padEnd(48, '\0')), number(5n, true)]),
  )
  await write('e', 1024, 0, Buffer.from('vhdxfile'))
  await write('f.img', 1536, 0, Buffer.from('KDM'))
  await write('g.raw', 0, 0, Buffer.alloc(0))
  const names = ['007.vdi', 'b.vmdk', 'c.vmdk', 'd.bin', 'e', 'f.img', 'g.raw']
  const vm = await inspectVm({ source: names.map((name) => join(dir, name)) })
  const { disks, ...rest } = vm
  deepEqual(rest, {
    kind: 'disks',
    name: '007',
    cpus: 2,
    memory: 2048 * MB,
    firmware: 'unknown',
    tpm: false,
    osType: 'unknown',
    guest: 'unknown',
    removable: [],
    dvds: [],
    serialPorts: [],
    sharedFolders: [],
    nics: [],
    snapshots: [],
    warnings: [],
  })
  deepEqual(disks.map(({ format, capacity }) => [format, capacity]), [
    ['VDI', 77],
    ['VMDK', 1536],
    ['VMDK', undefined],
    ['VHD', 5],
    ['VHDX', undefined],
    ['RAW', 1536],
    ['RAW', 0],
  ])
  deepEqual(disks.map(({ path }) => path), names.map((name) => join(dir, name)))
})

settings('says what is wrong with a source', async ({ dir, has }) => {
  const vbox = await has('7.0.vbox')
  const gone = join(dir, 'gone.vdi')
  const cases: [string[], string][] = [
    [[], 'Cannot describe a VM: no source is named'],
    [[gone], `Cannot read "${gone}": there is no such file. Name one that is there`],
    [['gone.ova'], 'Cannot read "gone.ova": there is no such file. Name one that is there'],
    [
      [vbox, vbox],
      `Cannot describe 2 sources as one VM: "${vbox}" is a whole VM, and only disk images go ` +
      'together. Name it alone',
    ],
  ]
  for (const [source, message] of cases) await rejects(inspectVm({ source }), { message })
  const { PATH } = process.env
  process.env.PATH = dir
  try {
    equal(await listVms(), null)
    await rejects(inspectVm({ source: ['Win10'] }), {
      message:
        'Cannot find the VM "Win10": there is no VBoxManage on this machine, and no file of that ' +
        'name. Set VBOXMANAGE to where it is, or name a .vbox or .ova file',
    })
    process.env.VBOXMANAGE = join(dir, 'none')
    await rejects(inspectVm({ source: ['Win10'] }), {
      message: `Cannot run "${join(dir, 'none')}": there is no such program. ` +
        'Set VBOXMANAGE to the one to use',
    })
  } finally {
    delete process.env.VBOXMANAGE
    process.env.PATH = PATH
  }
})

settings('names the line of broken XML, and takes no entities', async ({ dir }) => {
  const file = join(dir, 'a.vbox')
  const text = await fs.readFile(join(fixtures, '7.0.vbox'), 'utf8')
  const bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
  const cases: [string | Buffer, RegExp][] = [
    [text.replace('</Hardware>', '</Hardwar>'), /it is damaged in line \d+ \(/],
    [text.slice(0, 3000), /it is damaged in line \d+/],
    [text.replace('?>', `?>${bomb}`), /it has a DOCTYPE, which no VM has/],
    [Buffer.from(text, 'utf16le'), /is not UTF-8|is damaged/],
    [Buffer.from(text.replace('&quot;', 'é'), 'latin1'), /it is not UTF-8/],
    ['<a>'.repeat(5000) + '</a>'.repeat(5000), /it is damaged \(/],
    ['', /is damaged/],
    ['<'.repeat(100_000), /it is damaged in line 1 \(.{0,100}\)\./],
    ['<VirtualBox/>', /it describes no VM/],
    ['<VirtualBox><MachineEncrypted/></VirtualBox>', /it is encrypted/],
    ['<VirtualBox><Machine name="a"/></VirtualBox>', /its VM has no hardware/],
    [text.replace(/RAMSize="\d+"/g, 'RAMSize="lots"'), /its RAMSize is "lots", not a number/],
    [text.replaceAll(/<Memory.*>/g, ''), /its RAMSize is missing/],
  ]
  for (const [bytes, why] of cases) {
    await fs.writeFile(file, bytes)
    await rejects(inspectVm({ source: [file] }), (error: Error) => sentence(error, file, why))
  }
})

settings('keeps every character of a name', async ({ dir }) => {
  const file = join(dir, 'a.vbox')
  const text = await fs.readFile(join(fixtures, '1.20.vbox'), 'utf8')
  const names = {
    '007': '007',
    '  two  ': '  two  ',
    'a&#10;b&#x1F600;&amp;lt;': 'a\nb😀&lt;',
    '&copy;&#x110000;&apos;': "&copy;&#x110000;'",
    '__proto__': '__proto__',
    'true': 'true',
  }
  for (const [written, name] of Object.entries(names)) {
    await fs.writeFile(file, text.replace('name="007"', `name="${written}"`))
    equal((await inspectVm({ source: [file] })).name, name)
  }
})

settings('answers every damaged file with a description or a sentence', async ({ dir }) => {
  const random = generator(20261123)
  for (const name of ['7.0.vbox', 'ovf-1.0.ovf', 'vmware.ovf']) {
    const whole = await fs.readFile(join(fixtures, name))
    for (const n of [1, 2, 3]) await fs.writeFile(join(dir, `ovf-1.0-disk00${n}.vmdk`), '')
    for (const n of [1, 2]) await fs.writeFile(join(dir, `jump host-disk${n}.vmdk`), '')
    const file = join(dir, name)
    let described = 0
    for (let round = 0; round < 150; round++) {
      await fs.writeFile(file, mutate(whole, random))
      await inspectVm({ source: [file] }).then(
        () => described++,
        (error: Error) => sentence(error, file, /./),
      )
    }
    ok(described > 0 && described < 150, `${name}: ${described}`)
  }
})

settings('runs as a command', async ({ has }) => {
  const file = await has('1.12.vbox')
  const { code, stdout, stderr } = await run('node', file)
  equal(stderr, '')
  equal(code, 0)
  equal(JSON.parse(stdout).name, 'Win XP')
  const failed = await run('node', `${file}x.vbox`)
  equal(failed.code, 1)
  equal(failed.stdout, '')
  match(failed.stderr, /^Cannot read ".*": there is no such file\. Name one that is there\n$/)
})

settings.run()

const real = suite<{ dir: string; vbox: string }>('inspectVm with VirtualBox')
const test = needs(real, 'VBoxManage')
let home: string | undefined

real.before(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'inspect-vm-'))
  home = process.env.VBOX_USER_HOME
  process.env.VBOX_USER_HOME = join(context.dir, 'home')
})
real.after(async ({ dir }) => {
  if (home === undefined) delete process.env.VBOX_USER_HOME
  else process.env.VBOX_USER_HOME = home
  await fs.remove(dir)
})

test('describes a VM alike by name, by UUID, by its .vbox and by its exports', async (context) => {
  const { dir } = context
  context.vbox = await makeVm(dir)
  const { kind, ...vm } = await inspectVm({ source: [NAME] })
  equal(kind, 'virtualbox')
  equal(vm.name, NAME)
  equal(vm.state, 'poweroff')
  equal(vm.settings, context.vbox)
  deepEqual(vm.nics, NICS)
  deepEqual(vm.warnings, warningsIn(dirname(context.vbox)))
  deepEqual(vm.disks.map(({ capacity }) => capacity), [6 * MB, 5 * MB, 4 * MB])
  for (const { chain } of vm.disks) {
    equal(chain.length, 2)
    for (const path of chain) ok(await fs.pathExists(path), path)
  }
  for (const source of [uuid('1'), `{${uuid('1').toUpperCase()}}`]) {
    deepEqual(await inspectVm({ source: [source] }), { kind, ...vm })
  }
  deepEqual(await inspectVm({ source: [context.vbox] }), { ...vm, kind: 'vbox' })
  for (const version of ['09', '10', '20']) {
    const file = join(dir, `桥接 ${version}.ova`)
    await vboxManage(dir, 'export', NAME, '-o', file, `--ovf${version}`)
    const ova = await inspectVm({ source: [file] })
    const settings = (
      { name, uuid, cpus, memory, firmware, tpm, osType, guest, nics }: typeof ova,
    ) => ({ name, uuid, cpus, memory, firmware, tpm, osType, guest, nics })
    deepEqual(settings(ova), settings({ kind, ...vm }))
    equal(ova.settings, file)
    deepEqual(
      ova.disks.map((
        { path, member, capacity, controller },
      ) => [path, member, capacity, controller]),
      vm.disks.map(({ capacity, controller }, index) => [
        file,
        `桥接 ${version}-disk00${3 - index}.vmdk`,
        capacity,
        controller,
      ]),
    )
  }
})

test('tells of an image in a drive that was exported with the VM', async ({ dir }) => {
  const file = join(dir, 'with.ova')
  await vboxManage(dir, 'export', NAME, '-o', file, '--options', 'iso')
  const { disks, dvds, warnings } = await inspectVm({ source: [file] })
  deepEqual(disks.map(({ member }) => member?.slice(-5)), Array(3).fill('.vmdk'))
  equal(dvds.length, 1)
  match(warnings.at(-1) ?? '', /^"with-disk\d+\.iso" in its drive does not come along$/)
})

test('pain 25: tells the UUID of the hardware as Windows in it reads it', async ({ dir }) => {
  const id = '00112233-4455-6677-8899-aabbccddeeff'
  await vboxManage(dir, 'modifyvm', NAME, `--hardware-uuid=${id}`)
  const hardwareUuid = async () => (await inspectVm({ source: [NAME] })).hardwareUuid
  equal(await hardwareUuid(), id)
  // as VMs have it that were made before 6.1
  await vboxManage(dir, 'modifyvm', NAME, '--system-uuid-le=off')
  equal(await hardwareUuid(), '33221100-5544-7766-8899-aabbccddeeff')
  await vboxManage(dir, 'modifyvm', NAME, '--system-uuid-le=on')
  equal(await hardwareUuid(), id)
})

test('pain 24: tells what its clock shows, whether it follows the host’s, and when it starts', async ({ dir }) => {
  const about = async () => {
    const { clock, autostart } = await inspectVm({ source: [NAME] })
    return { clock, autostart }
  }
  const local = { clock: { rtc: 'local', follows: true }, autostart: undefined }
  deepEqual(await about(), local)
  const hostTime = 'VBoxInternal/Devices/VMMDev/0/Config/GetHostTimeDisabled'
  await vboxManage(dir, 'setextradata', NAME, hostTime, '1')
  await fs.ensureDir(join(dir, 'autostart'))
  await vboxManage(dir, 'setproperty', 'autostartdbpath', join(dir, 'autostart'))
  const own = ['--rtc-use-utc', 'on', '--autostart-enabled', 'on', '--autostart-delay', '30']
  await vboxManage(dir, 'modifyvm', NAME, ...own)
  for (const [word, stop] of [['savestate', 'save'], ['acpishutdown', 'shut-down']] as const) {
    await vboxManage(dir, 'modifyvm', NAME, '--autostop-type', word)
    const expected = { clock: { rtc: 'utc', follows: false }, autostart: { delay: 30, stop } }
    deepEqual(await about(), expected)
  }
  await vboxManage(dir, 'setextradata', NAME, hostTime)
  await vboxManage(dir, 'modifyvm', NAME, '--rtc-use-utc', 'off', '--autostart-enabled', 'off')
  deepEqual(await about(), local)
})

test('follows what VirtualBox is told, at once', async ({ dir }) => {
  await vboxManage(dir, 'modifyvm', NAME, '--memory', '3000', '--firmware', 'bios')
  await vboxManage(dir, 'snapshot', NAME, 'take', 'two')
  const vm = await inspectVm({ source: [NAME] })
  equal(vm.memory, 3000 * MB)
  equal(vm.firmware, 'bios')
  deepEqual(vm.snapshots, ['before "update"', 'two'])
  deepEqual(vm.disks.map(({ chain }) => chain.length), [3, 3, 3])
  await fs.writeFile(join(dir, 'memory.sav'), 'saved')
  await vboxManage(dir, 'adoptstate', NAME, join(dir, 'memory.sav'))
  const { state, warnings } = await inspectVm({ source: [NAME] })
  equal(state, 'saved')
  ok(warnings.includes('Its saved state does not come along'))
  await vboxManage(dir, 'discardstate', NAME)
})

test('tells Secure Boot of a VM that has its keys and has never started', async ({ dir }) => {
  await vboxManage(
    dir,
    ...[
      'createvm',
      '--name',
      'keys',
      '--ostype',
      'Windows11_64',
      '--register',
      '--basefolder',
      dir,
    ],
  )
  await vboxManage(dir, 'modifyvm', 'keys', '--firmware', 'efi')
  const secureBoot = async () => (await inspectVm({ source: ['keys'] })).secureBoot
  equal(await secureBoot(), undefined)
  await vboxManage(dir, 'modifynvram', 'keys', 'inituefivarstore')
  equal(await secureBoot(), false)
  await vboxManage(dir, 'modifynvram', 'keys', 'enrollmssignatures')
  equal(await secureBoot(), false)
  await vboxManage(dir, 'modifynvram', 'keys', 'enrollorclpk')
  equal(await secureBoot(), true)
  await vboxManage(dir, 'unregistervm', 'keys', '--delete')
})

test('pain 11: tells that a VM runs', async ({ dir }) => {
  // VirtualBox's own words, but for the state: without a driver for the processor nothing runs
  const program = join(dir, 'running')
  await fs.writeFile(
    program,
    '#!/bin/sh\nVBoxManage "$@" | sed \'s/^VMState="poweroff"$/VMState="running"/\'\n',
    { mode: 0o755 },
  )
  process.env.VBOXMANAGE = program
  try {
    equal((await inspectVm({ source: [NAME] })).state, 'running')
  } finally {
    delete process.env.VBOXMANAGE
  }
})

test('finds the disks of a linked clone', async ({ dir }) => {
  await vboxManage(
    dir,
    ...['clonevm', NAME, '--name', 'clone', '--options', 'link', '--snapshot', 'two'],
    ...['--register', '--basefolder', dir],
  )
  const vm = await inspectVm({ source: ['clone'] })
  deepEqual(vm.disks.map(({ chain }) => chain.length), [3, 3, 3])
  for (const { chain } of vm.disks) {
    for (const path of chain) ok(await fs.pathExists(path), path)
    ok(chain[0]?.startsWith(join(dir, 'clone')))
  }
})

test('finds VMs whatever they are named', async ({ dir }) => {
  const names = ['-dash', '--help', 'new\nline"', '  ', '007', '$(calc)', 'a" {b}']
  for (const name of names) {
    await vboxManage(dir, 'createvm', `--name=${name}`, '--register', '--basefolder', dir)
  }
  for (const name of names) equal((await inspectVm({ source: [name] })).name, name)
  deepEqual(await listVms(), [NAME, 'clone', ...names])
})

test('says which VMs there are when one is not, or several are', async ({ dir }) => {
  await vboxManage(dir, 'createvm', '--name', '007', '--register', '--basefolder', join(dir, '2'))
  await rejects(inspectVm({ source: ['007'] }), {
    message: new RegExp(
      '^Cannot choose the VM "007": VirtualBox has 2 of that name\\. ' +
        'Name one by its UUID: [0-9a-f-]{36}, [0-9a-f-]{36}$',
    ),
  })
  await rejects(inspectVm({ source: ['no such'] }), {
    message: /^Cannot find the VM "no such": VirtualBox has "Bob.*"007"\. Name one of these$/s,
  })
})

test('says that the settings file of a VM is gone', async ({ dir }) => {
  await fs.remove(join(dir, 'clone', 'clone.vbox'))
  await rejects(
    inspectVm({ source: ['clone'] }),
    (error: Error) =>
      /^Cannot read the VM "clone": its settings file ".*clone.vbox" is not there\. /.test(
        error.message,
      ),
  )
})

for (const [runtime, ...args] of [['zx'], ['node'], ['deno', 'run', '-A']]) {
  test(`runs as a command under ${runtime}`, async ({ vbox }) => {
    const { code, stdout, stderr } = await run(runtime as string, NAME, ...args)
    equal(stderr, '')
    equal(code, 0)
    const { kind: _, ...vm } = JSON.parse(stdout)
    const { kind: __, ...same } = await inspectVm({ source: [vbox] })
    deepEqual(vm, same)
  })
}

real.run()

/** Runs the task's command. */
function run(
  program: string,
  source: string,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const bin = join(root, 'node_modules', '.bin')
  const own = program === 'node' && !('Deno' in globalThis)
  const options = {
    cwd: root,
    // what npm puts into .bin on Windows are scripts for cmd
    shell: process.platform === 'win32' && !own,
    env: { ...process.env, FORCE_COLOR: '0', PATH: `${bin}${delimiter}${process.env.PATH}` },
  }
  return new Promise((resolve) =>
    execFile(
      own ? process.execPath : program,
      [...args, join('tasks', 'inspect-vm.ts'), source],
      options,
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}

/** A failure is a sentence that names the file, says why, and what to do. */
function sentence(error: Error, file: string, why: RegExp): true {
  equal(error.constructor, Error, error.stack)
  ok(error.message.startsWith(`Cannot read "${file}": `), error.message)
  match(error.message, why)
  match(error.message, /\. [A-Z]/)
  return true
}

/** A variable as EDK II stores it. */
function variable(name: string, value: Buffer | number[], state = 0x3f): Buffer {
  const [text, data] = [Buffer.from(`${name}\0`, 'utf16le'), Buffer.from(value)]
  const header = Buffer.alloc(60)
  header.writeUInt16LE(0x55aa)
  header[2] = state
  header.writeUInt32LE(text.length, 36)
  header.writeUInt32LE(data.length, 40)
  return Buffer.concat([header, text, data])
}

/** A tar with these members; the third says the type of one. */
function tar(members: [string, Buffer, string?][]): Buffer {
  const parts = members.flatMap(([name, bytes, type = '0']) => {
    const header = Buffer.alloc(512)
    header.write(name)
    header.write(bytes.length.toString(8).padStart(11, '0'), 124)
    header.write(type, 156)
    header.write('ustar\u000000', 257)
    return [header, bytes, Buffer.alloc((512 - bytes.length % 512) % 512)]
  })
  return Buffer.concat([...parts, Buffer.alloc(1024)])
}

/** Numbers below `end`, the same ones for a seed. */
function generator(seed: number): (end: number) => number {
  let state = seed
  return (end) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor(state / 2 ** 32 * end)
  }
}

/** Damage of the kinds that happen, and of those that people do. */
function mutate(whole: Buffer, random: (end: number) => number): Buffer {
  const at = random(whole.length)
  const length = random(80)
  const insert = (text: string) =>
    Buffer.concat([whole.subarray(0, at), Buffer.from(text), whole.subarray(at)])
  const values = [...whole.toString('latin1').matchAll(/"[^"<>]*"/g)]
  const value = values[random(values.length)] as RegExpExecArray
  const instead = ['""', '"-1"', '"9999999999999"', '"__proto__"', '"../../x"', '"&#0;&bomb;"']
  const mutations = [
    () => Buffer.concat([whole.subarray(0, at), whole.subarray(at + length)]),
    () =>
      Buffer.concat([whole.subarray(0, at), Buffer.alloc(length, random(256)), whole.subarray(at)]),
    () =>
      insert(
        ['<', '>', '"', '&', '<__proto__>', '<![CDATA[', '-->', '</', '\u0000'][random(9)] ?? '',
      ),
    () => insert(whole.toString('utf8', at, at + length)),
    () =>
      Buffer.concat([
        whole.subarray(0, value.index),
        Buffer.from(instead[random(instead.length)] as string),
        whole.subarray(value.index + value[0].length),
      ]),
  ]
  return (mutations[random(mutations.length)] as () => Buffer)()
}
