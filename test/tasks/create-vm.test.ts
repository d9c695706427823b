import fs from 'fs-extra'
import { deepEqual, equal, match, rejects, throws } from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { suite } from 'uvu'
import { createVm, parseMemory, undoCreateVm } from '../../tasks/create-vm.ts'
import type { PowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const GB = 1024 ** 3

interface Context {
  host: SimulatedHost
  seed: object
  /** Paths of disks in the host's folder. */
  mbr: string
  esp: string
  bios: string
  raw: string
  vhd: string
}

const creating = suite<Context>('createVm')
const test = needs(creating, 'pwsh', 'qemu-img')

creating.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = { faults: [], ...await context.host.state() }
  const make = (name: string, sectors: Buffer) => {
    const file = join(context.host.dir, name)
    try {
      fs.writeFileSync(`${file}.raw`, sectors)
      const format = name.endsWith('.vhd')
        ? ['vpc', '-o', 'subformat=fixed,force_size=on']
        : ['vhdx', '-o', 'block_size=1M']
      execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', ...format, `${file}.raw`, file])
    } catch (error) {
      if ((error as { code?: string }).code !== 'ENOENT') throw error // the tests say what is missing
    }
    return file
  }
  context.mbr = make('mbr.vhdx', mbrDisk(0x83))
  context.esp = make('esp.vhdx', gptDisk('C12A7328-F81F-11D2-BA4B-00A0C93EC93B'))
  context.bios = make('bios.vhdx', gptDisk('21686148-6449-6E6F-744E-656564454649'))
  context.raw = make('raw.vhdx', Buffer.alloc(1024 ** 2))
  context.vhd = make('old.vhd', mbrDisk(0x07))
})
creating.before.each(async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, seed))
  // a look into a disk mounts it for a moment: let the state be in the form in which that leaves it
  await host.ps`Remove-VM -VM (New-VM -Name 'x' -NoVHD) -Force`
})
creating.after(({ host }) => host.close())

test('pain 3, 4, 5, 10: makes a VM of generation 2 that boots from its first disk', async ({ host, esp, raw }) => {
  const { id, ...rest } = await createVm(
    { vm: 'web', disk: [esp, raw], cpus: 4, memory: '4GB', secureBoot: 'linux', notes: 'Moved' },
    host.ps,
  )
  deepEqual(rest, {
    changed: true,
    vm: 'web',
    generation: 2,
    generationReason: 'the disk has an EFI system partition',
    cpus: 4,
    memory: 4 * GB,
    secureBoot: 'linux',
    disks: [esp, raw],
  })
  const [vm] = (await host.state()).vms
  deepEqual([vm.id, vm.name, vm.generation, vm.notes, vm.state], [id, 'web', 2, 'Moved', 'Off'])
  equal(vm.processors.count, 4)
  deepEqual([vm.memory.startup, vm.memory.dynamic], [4 * GB, false])
  deepEqual([vm.automaticCheckpoints, vm.stopAction], [false, 'ShutDown'])
  deepEqual(vm.nics, [])
  deepEqual(places(vm), [`SCSI 0:0 ${esp}`, `SCSI 0:1 ${raw}`])
  deepEqual(vm.firmware.order[0], vm.drives[0].id)
  deepEqual([vm.firmware.secureBoot, vm.firmware.template], [
    'On',
    'MicrosoftUEFICertificateAuthority',
  ])
  deepEqual((await host.state()).mounted, [])
})

test('makes a VM of generation 1 with what it boots from on IDE', async ({ host, mbr }) => {
  const disk = [mbr, ...await copies(host, mbr, 4)]
  const result = await createVm({ vm: 'old', disk }, host.ps)
  deepEqual([result.generation, result.generationReason], [1, 'the disk has an MBR'])
  deepEqual([result.cpus, result.memory, result.secureBoot], [2, 2 * GB, 'off'])
  const [vm] = (await host.state()).vms
  deepEqual(vm.bios.order, ['IDE', 'CD', 'LegacyNetworkAdapter', 'Floppy'])
  deepEqual(places(vm), [
    'IDE 1:0 ',
    `IDE 0:0 ${disk[0]}`,
    `IDE 0:1 ${disk[1]}`,
    `IDE 1:1 ${disk[2]}`,
    `SCSI 0:0 ${disk[3]}`,
    `SCSI 0:1 ${disk[4]}`,
  ])
  equal((await createVm({ vm: 'old', disk }, host.ps)).changed, false)
})

test('pain 4: takes Secure Boot off, or for Windows, by the template’s id where its name is unknown', async ({ host, esp }) => {
  await createVm({ vm: 'a', disk: [esp] }, host.ps)
  deepEqual((await host.state()).vms[0].firmware.secureBoot, 'Off')
  await host.change((state) => {
    state.vms = []
    const error = { id: 'InvalidParameter', message: 'Unknown.', hresult: 0x80070057 }
    state.faults = [{ cmdlet: 'Set-VMFirmware', nth: 1, error }]
  })
  equal(
    (await createVm({ vm: 'b', disk: [esp], secureBoot: 'windows' }, host.ps)).secureBoot,
    'windows',
  )
  const [vm] = (await host.state()).vms
  deepEqual([vm.firmware.secureBoot, vm.firmware.template], ['On', 'MicrosoftWindows'])
  const calls = await host.calls() as { cmdlet: string; parameters: Record<string, unknown> }[]
  const asked = calls.filter(({ cmdlet }) => cmdlet === 'Set-VMFirmware').slice(-2)[0]
  equal(asked?.parameters.SecureBootTemplateId, '1734c6e8-3154-4dda-ba5f-a874cc483422')
})

test('makes a VM where Windows has no automatic checkpoints', async ({ host, esp }) => {
  const older = `
    function Set-VM {
      [CmdletBinding()] param($VM, $ProcessorCount, $AutomaticStopAction, $Notes, [switch]$StaticMemory)
      Hyper-V\\Set-VM @PSBoundParameters
    }`
  const ps: PowerShell = (pieces, ...values) => {
    const [first = '', ...rest] = pieces
    return host.ps(Object.assign([older + first, ...rest], { raw: pieces.raw }), ...values)
  }
  await createVm({ vm: 'web', disk: [esp], notes: 'Moved' }, ps)
  const [vm] = (await host.state()).vms
  deepEqual([vm.notes, vm.stopAction, vm.drives.length], ['Moved', 'ShutDown', 1])
})

test('pain 3: sees the generation in the disk, and says why', async ({ host, mbr, esp, bios, vhd }) => {
  for (
    const [disk, generation, reason] of [
      [mbr, 1, 'the disk has an MBR'],
      [bios, 1, 'the disk has a BIOS boot partition'],
      [esp, 2, 'the disk has an EFI system partition'],
      [vhd, 1, 'a VHD boots in generation 1 only'],
    ] as const
  ) {
    const result = await createVm({ vm: 'web', disk: [disk], dryRun: true }, host.ps)
    deepEqual([result.generation, result.generationReason], [generation, reason])
  }
  const result = await createVm({ vm: 'web', disk: [mbr], generation: 2, dryRun: true }, host.ps)
  deepEqual([result.generation, result.generationReason], [2, 'as asked'])
})

test('refuses a disk that does not show its generation', async ({ host, raw }) => {
  const before = await host.text()
  await rejects(createVm({ vm: 'web', disk: [raw] }, host.ps), {
    message: `Cannot make the VM "web": "${raw}" does not show whether it boots by BIOS or UEFI ` +
      '(partition table: RAW). Run again with --generation 1 (BIOS) or --generation 2 (UEFI)',
  })
  equal(await host.text(), before)
})

test('does nothing when the VM is there, running or with a checkpoint', async ({ host, esp }) => {
  const options = { vm: 'web', disk: [esp], cpus: 2, memory: 2 * GB, secureBoot: 'off' } as const
  const { id } = await createVm(options, host.ps)
  await host.ps`
    Checkpoint-VM -Name 'web' -SnapshotName 'before'
    Start-VM -Name 'web'`
  const before = await host.text()
  const calls = await changing(host)
  const result = await createVm({ ...options, vm: 'WEB', generation: 2 }, host.ps)
  deepEqual([result.changed, result.id, result.vm], [false, id, 'web'])
  deepEqual([result.generationReason, result.before], ['the VM is there with it', undefined])
  equal((await createVm({ vm: 'web', disk: [esp] }, host.ps)).changed, false)
  equal(await host.text(), before)
  deepEqual(await changing(host), calls)
})

test('changes nothing on a dry run', async ({ host, esp }) => {
  const before = await host.text()
  const options = { vm: 'web', disk: [esp] }
  const dry = await createVm({ ...options, dryRun: true }, host.ps)
  equal(dry.id, null)
  equal(await host.text(), before)
  const made = await createVm(options, host.ps)
  deepEqual({ ...made, id: null }, dry)
  const there = await host.text()
  const change = await createVm({ ...options, cpus: 3, dryRun: true }, host.ps)
  deepEqual([change.changed, change.cpus, change.before?.cpus], [true, 3, 2])
  equal(await host.text(), there)
})

test('gives a VM that is there other processors, memory and Secure Boot, and takes it back', async ({ host, esp }) => {
  await createVm({ vm: 'web', disk: [esp] }, host.ps)
  await host.ps`Set-VM -Name 'web' -DynamicMemory`
  const before = await host.state()
  const result = await createVm(
    { vm: 'web', disk: [esp], cpus: 3, memory: '3GB', secureBoot: 'linux' },
    host.ps,
  )
  deepEqual(result.before, {
    cpus: 2,
    memory: 2 * GB,
    dynamicMemory: true,
    secureBoot: false,
    template: '1734c6e8-3154-4dda-ba5f-a874cc483422',
  })
  const [vm] = (await host.state()).vms
  deepEqual([vm.processors.count, vm.memory.startup, vm.memory.dynamic], [3, 3 * GB, false])
  deepEqual([vm.firmware.secureBoot, vm.firmware.template], [
    'On',
    'MicrosoftUEFICertificateAuthority',
  ])
  await undoCreateVm(result, host.ps)
  deepEqual(await host.state(), before)
  const calls = await changing(host)
  await undoCreateVm(result, host.ps)
  deepEqual(await changing(host), calls)
})

test('leaves a VM that is there as it was when a change of it fails', async ({ host, esp }) => {
  await createVm({ vm: 'web', disk: [esp] }, host.ps)
  await host.ps`Set-VM -Name 'web' -DynamicMemory`
  const before = (await host.state()).vms
  await host.change((state) => {
    const error = { id: 'OperationFailed', message: 'It failed.', hresult: 0x80004005 }
    state.faults = [{ cmdlet: 'Set-VMFirmware', error }]
  })
  const options = { vm: 'web', disk: [esp], cpus: 3, memory: '3GB', secureBoot: 'windows' } as const
  await rejects(createVm(options, host.ps), { hresult: '0x80004005' })
  deepEqual((await host.state()).vms, before)
})

test('refuses to change a VM that runs', async ({ host, esp }) => {
  const result = await createVm({ vm: 'web', disk: [esp] }, host.ps)
  const changed = await createVm({ vm: 'web', disk: [esp], cpus: 3 }, host.ps)
  await host.ps`Start-VM -Name 'web'`
  const how =
    'it is Running, and processors, memory and Secure Boot change only while it is off. ' +
    "Run: Stop-VM -Name 'web'"
  await rejects(createVm({ vm: 'web', disk: [esp], cpus: 4 }, host.ps), {
    message: `Cannot change the VM "web": ${how}`,
  })
  await rejects(undoCreateVm(changed, host.ps), {
    message: `Cannot change the VM "web" back: ${how}`,
  })
  await rejects(undoCreateVm(result, host.ps), {
    message:
      'Cannot remove the VM "web": it is Running, and what its guest has not written would be ' +
      "lost. Run: Stop-VM -Name 'web'",
  })
})

test('is removed without its disks when it is taken back, once and again', async ({ host, esp }) => {
  const before = await host.state()
  const path = join(host.dir, 'machines')
  const folder = join(path, 'web')
  // what Hyper-V makes there, and leaves
  await fs.outputFile(join(folder, 'Virtual Machines', 'x.vmcx'), '')
  const result = await createVm({ vm: 'web', disk: [esp], path }, host.ps)
  equal((await host.state()).vms[0].path, folder)
  await fs.remove(join(folder, 'Virtual Machines', 'x.vmcx'))
  await undoCreateVm(result, host.ps)
  deepEqual(await host.state(), before)
  deepEqual([await fs.pathExists(esp), await fs.pathExists(folder)], [true, false])
  await undoCreateVm(result, host.ps)
})

test('leaves no half of a VM when a step of it fails', async ({ host, esp, raw }) => {
  const path = join(host.dir, 'machines')
  for (
    const cmdlet of ['Set-VM', 'Remove-VMNetworkAdapter', 'Add-VMHardDiskDrive', 'Set-VMFirmware']
  ) {
    await fs.ensureDir(join(path, 'web', 'Snapshots'))
    await host.change((state) => {
      const error = { id: 'OperationFailed', message: 'It failed.', hresult: 0x80004005 }
      state.faults = [{ cmdlet, error }]
    })
    await rejects(createVm({ vm: 'web', disk: [esp, raw], path }, host.ps), {
      hresult: '0x80004005',
    })
    deepEqual((await host.state()).vms, [])
    equal(await fs.pathExists(join(path, 'web')), false)
  }
  equal(await fs.pathExists(esp), true)
})

test('makes anew what a run that was killed has left', async ({ host, esp, raw }) => {
  const { id } = await createVm({ vm: 'web', disk: [esp, raw] }, host.ps)
  await host.change((state) => {
    state.vms[0].notes = 'Being made by vbox-to-hyperv'
    state.vms[0].drives.pop()
  })
  const result = await createVm({ vm: 'web', disk: [esp, raw] }, host.ps)
  equal(result.changed, true)
  const { vms } = await host.state()
  deepEqual([vms.length, vms[0].id === id, vms[0].drives.length, vms[0].notes], [1, false, 2, ''])
})

test('says when what it could not make whole could not be removed either', async ({ host, esp }) => {
  await host.change((state) => {
    const id = 'OperationFailed,Microsoft.HyperV.PowerShell.Commands.AddVMHardDiskDrive'
    const error = { id, message: 'It failed.', hresult: 0x80004005 }
    state.faults = [{ cmdlet: 'Remove-VM', error }, { cmdlet: 'Add-VMHardDiskDrive', error }]
  })
  await rejects(createVm({ vm: 'web', disk: [esp] }, host.ps), {
    id: 'OperationFailed,Microsoft.HyperV.PowerShell.Commands.AddVMHardDiskDrive',
  })
  deepEqual(host.warnings.splice(0), [
    'The VM "web" could neither be made whole nor removed: It failed. (0x80004005) ' +
    "Run: Remove-VM -Name 'web'",
  ])
})

test('refuses a name that a VM has with other disks or another generation', async ({ host, esp, raw }) => {
  await createVm({ vm: 'web', disk: [esp] }, host.ps)
  await rejects(createVm({ vm: 'Web', disk: [esp, raw] }, host.ps), {
    message:
      `Cannot make the VM "Web": a VM of that name is there with other disks (${esp}). Run: ` +
      "Rename-VM -Name 'Web' -NewName 'another name', or run again with another --vm",
  })
  await rejects(createVm({ vm: 'web', disk: [raw] }, host.ps), /with other disks/)
  await rejects(createVm({ vm: 'web', disk: [esp], generation: 1 }, host.ps), {
    message: 'Cannot make the VM "web": a VM of that name and with these disks is there as ' +
      'generation 2, which cannot change. Run again with --generation 2, or another --vm',
  })
  await host.ps`$null = New-VM -Name 'WEB' -NoVHD`
  await rejects(
    createVm({ vm: 'web', disk: [esp] }, host.ps),
    /^HostError: Cannot make the VM "web": 2 VMs have that name, with the ids .+\. Run: Rename-VM$/,
  )
})

test('refuses a disk that is missing, taken, mounted or named twice', async ({ host, esp, raw }) => {
  const none = join(host.dir, 'none.vhdx')
  await rejects(createVm({ vm: 'web', disk: [none] }, host.ps), {
    message: `Cannot attach "${none}" to "web": there is no such file. ` +
      'Run: Get-ChildItem -Recurse -Include *.vhdx,*.vhd',
  })
  await rejects(
    createVm({ vm: 'web', disk: ['Q:/none.vhdx'] }, host.ps),
    /^HostError: Cannot attach "Q:\/none.vhdx" to "web": there is no such file/,
  )
  await rejects(
    createVm({ vm: 'web', disk: [esp, esp.replace('esp.vhdx', 'ESP.VHDX')] }, host.ps),
    {
      message: 'Cannot make the VM "web": a disk is named twice. Run again with each --disk once',
    },
  )
  await createVm({ vm: 'other', disk: [esp] }, host.ps)
  await host.ps`Checkpoint-VM -Name 'other'`
  await rejects(createVm({ vm: 'web', disk: [raw, esp] }, host.ps), {
    message:
      `Cannot attach "${esp}" to "web": the VM "other" has it. Run: Copy-Item, and name the copy`,
  })
  await host.ps`
    $path = ${raw}
    Mount-VHD -Path $path`
  await rejects(createVm({ vm: 'web', disk: [raw] }, host.ps), {
    message: `Cannot attach "${raw}" to "web": it is mounted on the host. ` +
      `Run: Dismount-VHD -Path "${raw}"`,
  })
})

test('pain 9: gives the VM by its SID a disk that it may not open', async ({ host, esp }) => {
  await host.change((state) => Object.assign(state, { files: { [esp]: { denied: true } } }))
  const { id, disks } = await createVm({ vm: 'web', disk: [esp], generation: 2 }, host.ps)
  deepEqual(disks, [esp])
  const { vms, files } = await host.state()
  deepEqual([vms[0].id, files[esp]], [id, {}])
  await host.ps`Start-VM 'web'`
})

test('refuses a disk that Hyper-V would not open, and says what mends it', async ({ host, esp }) => {
  const flags: [object, string][] = [
    [
      { sparse: true },
      'the file is sparse, compressed or encrypted (0xC03A001A). Run: fsutil sparse setflag ' +
      `"${esp}" 0, then compact /u "${esp}" and cipher /d "${esp}"`,
    ],
    [
      { inUse: true },
      `another program has it open (0x80070020). Run: Dismount-VHD -Path "${esp}", or end VirtualBox`,
    ],
  ]
  for (const generation of ['auto', 2] as const) {
    for (const [flag, why] of flags) {
      await host.change((state) =>
        Object.assign(state, { files: { [esp]: flag }, locale: 'zh-CN' })
      )
      await rejects(createVm({ vm: 'web', disk: [esp], generation }, host.ps), {
        message: `Cannot attach "${esp}" to "web": ${why}`,
      })
      const { vms, mounted } = await host.state()
      deepEqual([vms, mounted], [[], []])
    }
  }
  await host.change((state) => Object.assign(state, { files: { [esp]: { denied: 'fixed' } } }))
  await rejects(createVm({ vm: 'web', disk: [esp], generation: 2 }, host.ps), {
    message:
      `Cannot attach "${esp}" to "web": it may not be opened (0x80070005), and its rights could ` +
      `not be changed. Run as an administrator: takeown /f "${esp}" /a; icacls "${esp}" /reset, and this again`,
  })
  deepEqual((await host.state()).vms, [])
  const broken = join(host.dir, 'broken.vhdx')
  await fs.writeFile(broken, 'not a disk')
  await rejects(createVm({ vm: 'web', disk: [broken] }, host.ps), {
    message:
      `Cannot attach "${broken}" to "web": it is damaged, or not the image that its name says ` +
      `(0xC03A0014). Run: Test-VHD -Path "${broken}"`,
  })
})

test('refuses more than the host has, and what the generation does not take', async ({ host, mbr, esp, vhd }) => {
  await rejects(createVm({ vm: 'web', disk: [esp], cpus: 9 }, host.ps), {
    message:
      'Cannot make the VM "web": it would have 9 CPUs, and the host has 8. Run again with --cpus 8',
  })
  await rejects(createVm({ vm: 'web', disk: [esp], memory: '17GB' }, host.ps), {
    message:
      'Cannot make the VM "web": it would have 17408 MB of memory, and the host has 16384 MB. ' +
      'Run again with less --memory',
  })
  await rejects(createVm({ vm: 'web', disk: [esp, vhd] }, host.ps), {
    message:
      `Cannot make the VM "web": generation 2 takes VHDX only, and "${vhd}" is a VHD. Run: Convert-VHD`,
  })
  await rejects(createVm({ vm: 'web', disk: [mbr], secureBoot: 'linux' }, host.ps), {
    message:
      'Cannot make the VM "web": it is of generation 1 (the disk has an MBR), which has no ' +
      'Secure Boot. Run again with --secure-boot off',
  })
  deepEqual((await host.state()).vms, [])
})

test('refuses what cannot be before the host is asked', async ({ host }) => {
  const calls = await host.calls()
  const disk = ['a.vhdx']
  const refused: [Parameters<typeof createVm>[0], string][] = [
    [
      { vm: 'a\nb', disk },
      'Cannot make a VM named "a\\nb": a name is 1 to 100 characters and no control characters. ' +
      'Run again with another --vm',
    ],
    [
      { vm: 'web', disk: [] },
      'Cannot make "web" with 0 disks: it takes 1 to 64. Run again with --disk',
    ],
    [
      { vm: 'web', disk: ['a.vdi'] },
      'Cannot attach "a.vdi" to "web": Hyper-V opens .vhdx and .vhd. ' +
      'Run: npx zx tasks/convert-disk.ts --from "a.vdi" --to "a.vdi.vhdx"',
    ],
    [
      { vm: 'web', disk: ['a.VHD'], generation: 2 },
      'Cannot attach "a.VHD" to "web": generation 2 takes VHDX only. ' +
      'Run: Convert-VHD -Path "a.VHD" -DestinationPath "a.VHDx"',
    ],
    [
      { vm: 'web', disk, generation: 3 as 2 },
      'Cannot make "web" of generation 3: it is 1, 2 or auto',
    ],
    [
      { vm: 'web', disk, generation: 1, secureBoot: 'windows' },
      'Cannot set Secure Boot of "web": generation 1 has none. ' +
      'Run again with --secure-boot off or --generation 2',
    ],
    [{ vm: 'web', disk, cpus: 1.5 }, 'Cannot give "web" 1.5 CPUs: it takes a whole number from 1'],
  ]
  for (const [options, message] of refused) {
    await rejects(createVm(options, host.ps), { message })
  }
  deepEqual(await host.calls(), calls)
})

test('takes a name for what it is, not for a pattern or code', async ({ host, esp, mbr }) => {
  const names = ['Bob’s "VM"; $(calc) 桥接', '[a*]']
  await host.ps`$null = New-VM -Name 'a' -NoVHD`
  for (const vm of names) {
    const file = join(host.dir, `${vm === '[a*]' ? 'it’s $(calc) 桥' : 'b'}.vhdx`)
    await fs.copy(vm === '[a*]' ? esp : mbr, file)
    const result = await createVm({ vm, disk: [file], notes: vm }, host.ps)
    equal((await createVm({ vm, disk: [file] }, host.ps)).changed, false)
    const made = (await host.state()).vms.find(({ name }: { name: string }) => name === vm)
    deepEqual([made.id, made.notes, result.disks], [result.id, vm, [file]])
    await undoCreateVm(result, host.ps)
  }
  deepEqual((await host.state()).vms.map(({ name }: { name: string }) => name), ['a'])
})

test('runs as a command, with disks relative to the folder it runs in', async ({ host, esp }) => {
  const words = ['--vm', '007', '--disk', 'esp.vhdx', 'raw.vhdx', '--generation', '2']
  const { code, stdout, stderr } = await runTask(host, 'create-vm', ...words, '--memory', '1GB')
  equal(stderr, '')
  equal(code, 0)
  const result = JSON.parse(stdout)
  deepEqual([result.vm, result.memory, result.disks[0]], ['007', GB, esp])
  equal((await host.state()).vms[0].id, result.id)
  const failed = await runTask(host, 'create-vm', '--vm', 'a', '--disk', 'a.vdi')
  deepEqual([failed.code, failed.stdout], [1, ''])
  match(failed.stderr, /^Cannot attach "a\.vdi" to "a": .+\n$/)
})

creating.run()

const sizes = suite('parseMemory')

sizes('takes bytes, and text with a unit', () => {
  equal(parseMemory(4 * GB), 4 * GB)
  for (const text of ['4GB', '4096MB', '4 GiB', '4g', '4096M', '4.0gb']) {
    equal(parseMemory(text), 4 * GB, text)
  }
  equal(parseMemory('1TB'), 1024 * GB)
})

sizes('refuses what is no amount, or none that Hyper-V takes', () => {
  for (const text of ['', '4', '-4GB', '4KB', 'GB', '4GBs', '0x4GB']) {
    throws(() => parseMemory(text), {
      message: `Cannot take "${text}" for an amount of memory: it needs a number and a unit. ` +
        'Run again with --memory 4GB or 4096MB',
    })
  }
  const refused = (given: string | number, next: number) =>
    throws(() => parseMemory(given), {
      message: `Cannot give a VM ${given} of memory: Hyper-V takes multiples of 2 MB from 32 MB. ` +
        `Run again with --memory ${next}MB`,
    })
  refused('4095MB', 4096)
  refused('16MB', 32)
  refused(1, 32)
  refused(-1, 32)
})

sizes.run()

function mbrDisk(type: number): Buffer {
  const disk = Buffer.alloc(1024 ** 2)
  disk[446] = 0x80
  disk[450] = type
  disk.writeUInt32LE(64, 454)
  disk.writeUInt32LE(1024, 458)
  disk.writeUInt16LE(0xaa55, 510)
  return disk
}

/** A GPT disk with one partition of that type. */
function gptDisk(type: string): Buffer {
  const disk = mbrDisk(0xee)
  disk.write('EFI PART', 512, 'latin1')
  disk.writeBigUInt64LE(2n, 512 + 72)
  disk.writeUInt32LE(4, 512 + 80)
  disk.writeUInt32LE(128, 512 + 84)
  const bytes = Buffer.from(type.replaceAll('-', ''), 'hex')
  // the first three fields of a GUID are little-endian
  Buffer.concat([
    bytes.subarray(0, 4).reverse(),
    bytes.subarray(4, 6).reverse(),
    bytes.subarray(6, 8).reverse(),
    bytes.subarray(8),
  ]).copy(disk, 1024)
  disk.fill(1, 1024 + 16, 1024 + 32)
  disk.writeBigUInt64LE(64n, 1024 + 32)
  disk.writeBigUInt64LE(1000n, 1024 + 40)
  return disk
}

async function copies(host: SimulatedHost, disk: string, count: number): Promise<string[]> {
  const files = Array.from({ length: count }, (_, index) => join(host.dir, `copy-${index}.vhdx`))
  for (const file of files) await fs.copy(disk, file)
  return files
}

/** Where the drives of a VM are, as the state has them. */
function places({ drives }: { drives: Record<string, unknown>[] }): string[] {
  return drives.map(({ type, number, location, path }) => `${type} ${number}:${location} ${path}`)
}

/** The calls so far that change something. */
async function changing(host: SimulatedHost): Promise<string[]> {
  return (await host.calls()).map(({ cmdlet }) => cmdlet).filter((name) =>
    !/^(Get|Test)-/.test(name)
  )
}
