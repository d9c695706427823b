/** Windows on a disk of the host, made ready there: its registry, by reg.exe, on the simulated host. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { BOOT_DRIVERS, prepareDisk, undoPrepareDisk } from '../../../tasks/prepare-guest/disk.ts'
import { createVm } from '../../../tasks/create-vm.ts'
import { needs } from '../../needs.ts'
import { type SimulatedHost, simulatedHost } from '../../simulated-host.ts'
import { analyze } from '../analyze.ts'
import { gptDisk, vhdx } from '../convert-disk/images.ts'
import { script } from '../../../tasks/task.ts'

const root = join(import.meta.dirname as string, '..', '..', '..')
const BASIC = 'ebd0a0a2-b9e5-4433-87c0-68b6b72699c7'
const ESP = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
const SERVICES = 'ControlSet001\\Services\\'
const POWER = 'ControlSet001\\Control\\Session Manager\\Power'
const CRASH = 'ControlSet001\\Control\\CrashControl'
const RECORD = 'vbox-to-hyperv'

type Hive = Record<string, Record<string, string>>

/** Windows 10 as VirtualBox ran it from SATA. */
const HIVE: Hive = {
  Select: { Current: '0x1', Default: '0x1', Failed: '0x0', LastKnownGood: '0x1' },
  [`${SERVICES}vmbus`]: { Start: '0x0', ImagePath: 'System32\\drivers\\vmbus.sys' },
  [`${SERVICES}storvsc`]: { Start: '0x3' },
  [`${SERVICES}intelide`]: { Start: '0x3' },
  [`${SERVICES}atapi`]: { Start: '0x0' },
  [`${SERVICES}storahci`]: { Start: '0x0' },
  [`${SERVICES}storahci\\StartOverride`]: { '0': '0x3' },
  [POWER]: { HiberbootEnabled: '0x1' },
  [CRASH]: { DumpFile: '%SystemRoot%\\MEMORY.DMP' },
}

const disks = suite<{ host: SimulatedHost; disk: string; hive: () => Promise<Hive> }>('prepareDisk')
const test = needs(disks, 'pwsh')

// one PowerShell for all: each test has the host's state and the disk anew
let shared: SimulatedHost | undefined
let fresh = ''

disks.before.each(async (context) => {
  const host = context.host = shared ??= await simulatedHost()
  fresh ||= await host.text()
  await fs.writeFile(host.env.SIMULATED_HOST as string, fresh)
  await fs.remove(host.env.SIMULATED_HOST_LOG as string)
  const folder = join(host.dir, 'Bob’s "VM"; $(calc) 桥接 [a*]')
  await fs.emptyDir(folder)
  context.disk = join(folder, 'copy.vhdx')
  await fs.writeFile(context.disk, vhdx(mbrDisk(0x0b, 0x07)))
  await host.change((state) => {
    state.windows = [{ disk: context.disk, partition: 2, hive: HIVE }]
  })
  context.hive = async () => (await host.state()).windows[0].hive
})
disks.after(() => shared?.close())

/** Cmdlets and programs that were called, but those that only look. */
async function changes(host: SimulatedHost): Promise<string[]> {
  const calls = await host.calls() as { cmdlet: string; parameters: unknown }[]
  return calls.map(({ cmdlet, parameters }) =>
    cmdlet === 'reg' ? `reg ${parameters}`.split(' ').slice(0, 2).join(' ') : cmdlet
  ).filter((call) => !/^Get-|^reg (query|load|unload)$/.test(call))
}

const says = (result: { steps: { step: string; state: string }[] }) =>
  result.steps.map(({ step, state }) => `${step} ${state}`)

test('pain 1: makes Windows on a disk start from what Hyper-V has, once, and undoes it', async ({ host, disk, hive }) => {
  await fs.writeFile(disk, vhdx(gptDisk(ESP, BASIC)))
  const state = await host.state()
  const result = await prepareDisk({ disk }, host.ps)
  deepEqual(result, {
    changed: true,
    ready: true,
    disk,
    guest: 'windows',
    steps: [
      {
        step: 'boot-drivers',
        state: 'changed',
        detail: 'These drivers start with Windows now: storvsc, intelide, storahci',
      },
      {
        step: 'hibernation',
        state: 'changed',
        detail: 'Fast Startup is off now, so that the disk is complete when Windows is shut down',
      },
      {
        step: 'auto-reboot',
        state: 'changed',
        detail: 'Windows shows a stop screen until someone has read it',
      },
    ],
    before: [
      { what: `${SERVICES}storvsc|Start`, was: '0x3' },
      { what: `${SERVICES}intelide|Start`, was: '0x3' },
      { what: `${SERVICES}storahci\\StartOverride|`, was: 'key' },
      { what: `${SERVICES}storahci\\StartOverride|0`, was: '0x3' },
      { what: `${POWER}|HiberbootEnabled`, was: '0x1' },
      { what: `${CRASH}|AutoReboot`, was: null },
    ],
  })
  const { [RECORD]: record, ...done } = await hive()
  ok(record)
  const { [`${SERVICES}storahci\\StartOverride`]: _, ...rest } = HIVE
  deepEqual(done, {
    ...rest,
    [`${SERVICES}storvsc`]: { Start: '0x0' },
    [`${SERVICES}intelide`]: { Start: '0x0' },
    [POWER]: { HiberbootEnabled: '0x0' },
    [CRASH]: { ...HIVE[CRASH], AutoReboot: '0x0' },
  })

  await fs.remove(host.env.SIMULATED_HOST_LOG as string)
  const text = await host.text()
  const again = await prepareDisk({ disk }, host.ps)
  equal(again.changed, false)
  deepEqual(says(again), ['boot-drivers ok', 'hibernation ok', 'auto-reboot ok'])
  equal(await host.text(), text)
  // mounted read-only, and so taken out again
  deepEqual(await changes(host), [
    'Mount-VHD',
    'Add-PartitionAccessPath',
    'Remove-PartitionAccessPath',
    'Dismount-VHD',
  ])

  const undone = await undoPrepareDisk(result, host.ps)
  deepEqual(undone && says(undone), ['undo changed'])
  deepEqual(await host.state(), state)
  deepEqual(await undoPrepareDisk(result, host.ps), {
    changed: false,
    ready: true,
    disk,
    guest: 'windows',
    steps: [{ step: 'undo', state: 'ok', detail: 'Nothing was changed there' }],
    before: [],
  })
  equal(await undoPrepareDisk(again, host.ps), undefined)
  deepEqual(await host.state(), state)
  await fs.remove(disk)
  deepEqual((await undoPrepareDisk(result, host.ps))?.steps.map(({ detail }) => detail), [
    'The disk is gone',
  ])
})

test('changes nothing on a dry run, and says what it would', async ({ host, disk }) => {
  const [before, image] = [await host.state(), await fs.readFile(disk)]
  const result = await prepareDisk({ disk, dryRun: true }, host.ps)
  equal(result.changed, true)
  deepEqual(result.steps.map(({ detail }) => detail), [
    'These drivers would start with Windows: storvsc, intelide, storahci',
    'Fast Startup would be off, so that the disk is complete when Windows is shut down',
    'Windows would show a stop screen until someone has read it',
  ])
  deepEqual(result.before, [])
  deepEqual(await host.state(), before)
  ok(image.equals(await fs.readFile(disk)))
  const mounts = (await host.calls() as { cmdlet: string; parameters: { ReadOnly?: boolean } }[])
    .filter(({ cmdlet }) => cmdlet === 'Mount-VHD')
  deepEqual(mounts.map(({ parameters }) => parameters.ReadOnly), [true])
})

test('prepares the control set that Windows ran and the one that it starts next', async ({ host, disk, hive }) => {
  const moved = Object.entries(HIVE).map(([key, values]) => [key.replace('001', '002'), values])
  await host.change(({ windows: [windows] }) => {
    windows.hive = { ...HIVE, ...Object.fromEntries(moved) }
    windows.hive.Select = { ...HIVE.Select, Default: '0x2' }
  })
  await prepareDisk({ disk }, host.ps)
  const done = await hive()
  for (const set of ['ControlSet001', 'ControlSet002']) {
    equal(done[`${set}\\Services\\storvsc`]?.Start, '0x0', set)
  }
})

test('keeps what was before the first of two, and what Windows has changed since', async ({ host, disk, hive }) => {
  const result = await prepareDisk({ disk }, host.ps)
  await host.change(({ windows: [{ hive }] }) => {
    hive[`${SERVICES}intelide`].Start = '0x4' // by the guest itself
    hive[`${SERVICES}atapi`].Start = '0x3'
    delete hive[POWER]
  })
  equal((await prepareDisk({ disk }, host.ps)).changed, true)
  await host.change(({ windows: [{ hive }] }) => {
    hive[`${SERVICES}storvsc`].Start = '0x1'
  })
  await undoPrepareDisk(result, host.ps)
  const done = await hive()
  equal(done[`${SERVICES}intelide`]?.Start, '0x3', 'as it was at first')
  equal(done[`${SERVICES}storvsc`]?.Start, '0x1', 'someone else’s by now')
  equal(done[`${SERVICES}atapi`]?.Start, '0x3')
  equal(done[POWER], undefined)
  equal(done[RECORD], undefined)
})

test('leaves a Windows as it is that has run since and was not shut down', async ({ host, disk, hive }) => {
  const result = await prepareDisk({ disk }, host.ps)
  const done = await hive()
  for (const part of [{ dirty: true }, { hiberfil: 'HIBR' }, { locked: true }]) {
    await host.change((state) => {
      state.windows = [{ disk, partition: 2, hive: done, ...part }]
    })
    const undone = await undoPrepareDisk(result, host.ps)
    deepEqual(undone && [undone.changed, ...says(undone)], [false, 'undo warning'])
    deepEqual(await hive(), done)
  }
})

test('tells a Windows that Hyper-V cannot start, and changes nothing in it', async ({ host, disk }) => {
  const without = (...drivers: string[]) =>
    host.change(({ windows: [{ hive }] }) => {
      for (const driver of drivers) delete hive[`${SERVICES}${driver}`]
    })
  await without('storvsc')
  const old = await prepareDisk({ disk, dryRun: true }, host.ps)
  equal(old.ready, true)
  match(old.steps[0]?.detail ?? '', /^This Windows has no vmbus and storvsc, .* generation 1$/)
  await without('atapi')
  const before = await host.state()
  const result = await prepareDisk({ disk }, host.ps)
  deepEqual([result.ready, result.changed], [false, false])
  deepEqual(says(result), ['boot-drivers refusal'])
  deepEqual(await host.state(), before)
})

test('pain 11, 12: refuses a Windows that is hibernated, not closed, or locked by BitLocker', async ({ host, disk }) => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [
      { hiberfil: 'HIBR…' },
      /Windows on it is hibernated, or was shut down by Fast Startup, .* powercfg \/h off; shutdown \/s \/t 0/,
    ],
    [{ hiberfil: 'rstr' }, /Windows on it is hibernated/],
    [{ dirty: true }, /the volume of Windows was not closed properly, .* let it check the disk/],
    [
      { locked: true },
      /BitLocker has locked its partition 2\. .*Suspend-BitLocker -MountPoint C: -RebootCount 0/,
    ],
  ]
  for (const [part, why] of cases) {
    await host.change((state) => {
      state.windows = [{ disk, partition: 2, hive: HIVE, ...part }]
    })
    const before = await host.state()
    await rejects(prepareDisk({ disk }, host.ps), (error: Error) => {
      ok(error.message.startsWith(`Cannot prepare the guest on "${disk}": `), error.message)
      match(error.message, why)
      return true
    })
    deepEqual(await host.state(), before)
  }
  await host.change(({ windows: [windows] }) => {
    windows.locked = false
    windows.hiberfil = 'wake'
  })
  equal((await prepareDisk({ disk, dryRun: true }, host.ps)).ready, true)
  await host.change((state) => {
    state.windows = []
  })
  await rejects(prepareDisk({ disk }, host.ps), {
    message:
      `Cannot prepare the guest on "${disk}": there is no Windows on it. A Linux is prepared while ` +
      'VirtualBox runs it. Run: npx zx tasks/prepare-guest.ts --vm NAME --user root --credential prompt',
  })
})

test('pain 10: refuses what is the source’s, a VM’s that runs, under a checkpoint, or mounted', async ({ host, disk }) => {
  const cannot = `Cannot prepare the guest on "${disk}": `
  const refused = async (why: RegExp, source: string[] = []) => {
    const before = await host.state()
    await rejects(prepareDisk({ disk, source }, host.ps), (error: Error) => {
      ok(error.message.startsWith(cannot), error.message)
      match(error.message, why)
      return true
    })
    deepEqual(await host.state(), before)
  }
  await refused(
    /it is the source, which stays as it is\. Run: npx zx tasks\/convert-disk\.ts --from '/,
    [
      disk.toUpperCase().replace('COPY', 'copy'),
    ],
  )
  const settings = join(disk, '..', '..', 'Win.vbox')
  await fs.writeFile(settings, '<HardDisk location="a&amp;b/copy.vhdx" format="VHDX"/>')
  await refused(/the VM of VirtualBox in ".*Win\.vbox" has it, and a source stays as it is\. Run: /)
  await fs.writeFile(settings, '<HardDisk location="another copy.vhdx"/>')
  equal((await prepareDisk({ disk, dryRun: true }, host.ps)).ready, true)
  await fs.remove(settings)

  await createVm({ vm: 'web [1]', disk: [disk], generation: 2, memory: '64MB' }, host.ps)
  equal((await prepareDisk({ disk, dryRun: true }, host.ps)).ready, true, 'of a VM that is off')
  for (const state of ['Running', 'Saved', 'Paused']) {
    await host.change(({ vms: [vm] }) => {
      vm.state = state
    })
    await refused(new RegExp(`the VM "web \\[1\\]" has it and is ${state}\\. Run: Stop-VM -Name '`))
    const { changed, steps } = await prepareDisk({ disk, vm: 'WEB [1]' }, host.ps)
    deepEqual([changed, steps.map(({ detail }) => detail)], [false, [
      'The VM "web [1]" has it already',
    ]])
  }
  await host.change(({ vms: [vm] }) => {
    vm.state = 'Off'
  })
  await host.ps`Checkpoint-VM -Name 'web*' -SnapshotName one`
  await refused(/the VM "web \[1\]" has checkpoints on top of it, .* Remove-VMSnapshot$/)
  await host.change((state) => {
    state.vms = []
  })
  await host.ps`
    $disk = ${disk}
    Mount-VHD -Path $disk -NoDriveLetter`
  await refused(/it is mounted on the host\. Run: Dismount-VHD -Path '/)
})

test('puts back what it began when the registry does not take all, and leaves nothing mounted', async ({ host, disk }) => {
  await host.change((state) => {
    state.hiveFails = '*Power'
  })
  const before = await host.state()
  await rejects(prepareDisk({ disk }, host.ps), {
    message: `Cannot prepare the guest on "${disk}": its registry does not take HiberbootEnabled ` +
      '(reg add: exit code 1). Run in the guest: chkdsk /f',
  })
  deepEqual(await host.state(), before)
})

test('waits for a registry that is in use, and says so when it stays loaded', async ({ host, disk }) => {
  await host.change((state) => {
    state.hiveInUse = 1
  })
  equal((await prepareDisk({ disk }, host.ps)).changed, true)
  equal((await host.state()).hives, undefined)
})

test('goes by the letters that Windows gives where a volume takes no folder', async ({ host, disk, hive }) => {
  await host.change((state) => {
    Object.assign(state.host, { noFolders: true, letters: true })
  })
  const before = await host.state()
  await host.ps`
    $folder = ${host.dir}
    [Environment]::CurrentDirectory = $folder`
  const result = await prepareDisk({ disk }, host.ps)
  deepEqual(says(result), ['boot-drivers changed', 'hibernation changed', 'auto-reboot changed'])
  equal((await hive())[`${SERVICES}storvsc`]?.Start, '0x0')
  await undoPrepareDisk(result, host.ps)
  deepEqual(await host.state(), before)
  await host.change((state) => {
    delete state.host.letters
  })
  await rejects(prepareDisk({ disk }, host.ps), /Not Supported/)
  deepEqual((await host.state()).mounted, before.mounted)
})

test('says that it takes an administrator', async ({ host, disk }) => {
  await host.change((state) => {
    state.faults = [{
      cmdlet: 'Mount-VHD',
      error: { id: 'AccessDenied', message: 'No', hresult: 0x80070005 },
    }]
  })
  await rejects(prepareDisk({ disk }, host.ps), {
    message:
      `Cannot prepare the guest on "${disk}": only an administrator may mount a disk (0x80070005). ` +
      'Run again in PowerShell as administrator',
  })
})

test('refuses what is no disk of Hyper-V before the host is asked', async ({ host }) => {
  for (const disk of ['', ' ', 'a\n.vhdx', 'Win10.vdi', 'C:\\a.vhdx\u0000.vdi', 'x.avhdx']) {
    await rejects(prepareDisk({ disk }, () => Promise.reject(new Error('asked'))), TypeError)
  }
  const disk = join(host.dir, 'gone.vhdx')
  await rejects(prepareDisk({ disk }, host.ps), {
    message: `Cannot prepare the guest on "${disk}": there is no such file. ` +
      'Run: Get-ChildItem -Recurse -Include *.vhdx,*.vhd',
  })
})

test('has a script for Windows PowerShell 5.1, and one list of drivers', async ({ host, disk }) => {
  let text = ''
  await prepareDisk({ disk, dryRun: true }, (pieces, ...values) => {
    text = script(pieces, ...values)
    return host.ps(pieces, ...values)
  })
  const folder = join(host.dir, 'scripts')
  await fs.outputFile(join(folder, 'disk.ps1'), `\ufeff${text}`)
  deepEqual(await analyze(host.ps, folder), [])
  const guests = await fs.readFile(join(root, 'tasks/prepare-guest/windows.ps1'), 'utf8')
  equal(guests.includes(`'${BOOT_DRIVERS[2]}', `), false, 'no second list in windows.ps1')
})

test('runs as a command', async ({ host, disk, hive }) => {
  const done = await run(host, '--disk', disk)
  deepEqual([done.code, done.stderr], [0, ''])
  equal(JSON.parse(done.stdout).changed, true)
  const undone = await run(host, '--disk', disk, '--undo')
  deepEqual(JSON.parse(undone.stdout).steps.map(({ state }: { state: string }) => state), [
    'changed',
  ])
  deepEqual(await hive(), HIVE)
  const refusals: [string[], RegExp][] = [
    [[], /neither a VM nor a disk is named/],
    [['--vm', 'a', '--disk', disk], /--disk goes without --vm/],
    [['--disk', disk, '--shut-down'], /--disk goes without --shut-down/],
    [['--vm', 'a', '--host', 'local'], /--host goes with --disk/],
  ]
  await Promise.all(refusals.map(async ([args, why]) => {
    const { code, stdout, stderr } = await run(host, ...args)
    deepEqual([code, stdout], [1, ''])
    match(stderr, why)
  }))
})

disks.run()

/** A disk of 4 MB with an MBR and partitions of these types. */
function mbrDisk(...types: number[]): Buffer {
  const data = Buffer.alloc(4 * 1024 ** 2)
  for (const [index, type] of types.entries()) {
    const at = 446 + 16 * index
    data[at + 4] = type
    data.writeUInt32LE(2048 * (index + 1), at + 8)
    data.writeUInt32LE(2048, at + 12)
  }
  data.writeUInt16LE(0xaa55, 510)
  return data
}

function run(
  host: SimulatedHost,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const node = 'Deno' in globalThis ? ['run', '-A'] : []
  return new Promise((resolve) =>
    execFile(
      process.execPath,
      [...node, join('tasks', 'prepare-guest.ts'), ...args],
      { cwd: root, env: host.env },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}
