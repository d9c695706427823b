import fs from 'fs-extra'
import { deepEqual, equal, match, notEqual, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { convertDisk } from '../../tasks/convert-disk.ts'
import { importVm, type ImportVmOptions, undoImportVm } from '../../tasks/import-vm.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const NAME = 'Bob’s "VM"; $(calc) 桥接'
const GB = 1024 ** 3

interface Context {
  host: SimulatedHost
  seed: object
  /** What Hyper-V exported, as it was, and a copy of it for each test. */
  exported: string
  from: string
  id: string
}
const importing = suite<Context>('importVm')
const test = needs(importing, 'pwsh')

importing.before(async (context) => {
  const host = context.host = await simulatedHost()
  context.seed = { incompatibilities: [], faults: [], ...await host.state() }
  const raw = join(host.dir, 'web.raw')
  const disk = join(host.dir, 'web.vhdx')
  await fs.writeFile(raw, Buffer.alloc(1024 ** 2, 1))
  await convertDisk({ from: raw, to: disk, fromFormat: 'raw' })
  await fs.writeFile(join(host.dir, 'tools.iso'), 'iso')
})
importing.before.each(async (context) => {
  const { host, seed } = context
  if (context.exported === undefined) {
    context.exported = join(host.dir, 'exported')
    const { stdout } = await host.ps`
      $name = ${NAME}
      $dir = ${host.dir}
      $to = ${context.exported}
      $null = New-VMSwitch -Name 'Office' -SwitchType Internal
      $vm = New-VM -Name $name -Generation 2 -MemoryStartupBytes 2GB -VHDPath "$dir/web.vhdx" -SwitchName 'Office'
      Add-VMDvdDrive -VM $vm -Path "$dir/tools.iso"
      Set-VMProcessor -VM $vm -Count 4
      Export-VM -VM $vm -Path $to
      [string]$vm.Id`
    context.id = stdout.trim()
  }
  await fs.writeJson(host.env.SIMULATED_HOST as string, seed)
  const own = await fs.mkdtemp(join(host.dir, 'test-'))
  context.from = join(own, 'export')
  await fs.copy(join(context.exported, NAME), context.from)
})
importing.after(({ host }) => host.close())

test('uses the VM where it lies, disconnected from the switch that is missing', async ({ host, from, id }) => {
  const result = await importVm({ from }, host.ps)
  const { before, mended, ...rest } = result
  deepEqual(rest, {
    changed: true,
    id,
    vm: NAME,
    path: from,
    disks: [join(from, 'Virtual Hard Disks', 'web.vhdx')],
    newId: false,
  })
  deepEqual(mended.map(({ what, to }) => [what, to]), [['switch', null]])
  match(mended[0]?.from ?? '', /Office/)
  equal(before?.copied, false)
  const [vm] = (await host.state()).vms
  deepEqual([vm.id, vm.name, vm.nics[0].switch], [id, NAME, null])
})

test('does nothing to a VM that is imported', async ({ host, from, id }) => {
  await importVm({ from }, host.ps)
  const before = await host.text()
  const again = await importVm({ from: `${from}/` }, host.ps)
  deepEqual([again.changed, again.id, again.vm, again.before], [false, id, NAME, undefined])
  equal(await host.text(), before)
})

test('connects adapters to the switch that it is given, and leaves those that fit', async ({ host, from }) => {
  await host.ps`$null = New-VMSwitch -Name '桥接' -SwitchType Internal`
  const { mended } = await importVm({ from, switch: '桥接' }, host.ps)
  deepEqual(mended.map(({ what, to }) => [what, to]), [['switch', '桥接']])
  const state = await host.state()
  const named = ({ name }: { name: string }) => name === '桥接'
  equal(state.vms[0].nics[0].switch, state.switches.find(named).id)
  await fs.writeJson(host.env.SIMULATED_HOST as string, { ...state, vms: [] })
  await host.ps`$null = New-VMSwitch -Name 'Office' -SwitchType Internal`
  deepEqual((await importVm({ from, switch: '桥接' }, host.ps)).mended, [])
})

test('changes nothing on a dry run', async ({ host, from }) => {
  for (const copyTo of [undefined, join(host.dir, 'dry')]) {
    const before = await host.text()
    const files = await tree(from)
    const dry = await importVm({ from, copyTo, dryRun: true }, host.ps)
    equal(await host.text(), before)
    deepEqual(await tree(from), files)
    equal(await fs.pathExists(join(host.dir, 'dry')), false)
    deepEqual(await importVm({ from, copyTo }, host.ps), dry)
    await fs.writeJson(host.env.SIMULATED_HOST as string, JSON.parse(before))
  }
})

test('is taken back, and the export is whole again', async ({ host, from }) => {
  const state = await host.state()
  const files = await tree(from)
  const result = await importVm({ from }, host.ps)
  await undoImportVm(result, host.ps)
  deepEqual(await host.state(), state)
  deepEqual(await tree(from), files)
  await undoImportVm(result, host.ps)
  deepEqual(await tree(from), files)
})

test('copies, with the same id when it is free, and takes the copy back', async ({ host, from, id }) => {
  const state = await host.state()
  const files = await tree(from)
  const copyTo = join(host.dir, 'copies', 'web')
  const result = await importVm({ from, copyTo }, host.ps)
  deepEqual([result.id, result.newId, result.path], [id, false, copyTo])
  deepEqual(result.disks, [join(copyTo, 'Virtual Hard Disks', 'web.vhdx')])
  ok(await fs.pathExists(result.disks[0] as string))
  deepEqual(await tree(from), files)
  equal((await importVm({ from, copyTo: `${copyTo}/` }, host.ps)).changed, false)
  await undoImportVm(result, host.ps)
  deepEqual(await host.state(), state)
  equal(await fs.pathExists(copyTo), false)
})

test('gives a copy a new id when its own is taken, and refuses that in place', async ({ host, from, id }) => {
  await importVm({ from }, host.ps)
  const other = join(host.dir, 'other', 'export')
  await fs.copy(from, other)
  await rejects(importVm({ from: other }, host.ps), {
    message:
      `Cannot import "${other}": a VM of its id is there already, "${NAME}". Run again with ` +
      'a folder for a copy, which gets an id of its own: --copy-to',
  })
  const copyTo = join(host.dir, 'second')
  equal((await importVm({ from: other, copyTo, dryRun: true }, host.ps)).id, null)
  const result = await importVm({ from: other, copyTo }, host.ps)
  notEqual(result.id, id)
  equal(result.newId, true)
  equal((await importVm({ from: other, copyTo }, host.ps)).changed, false)
  equal((await host.state()).vms.length, 2)
})

test('mends more processors and memory than the host has, and a DVD that is gone', async ({ host, from, exported }) => {
  const [name] = await fs.readdir(join(from, 'Virtual Machines'))
  const config = join(from, 'Virtual Machines', name as string)
  const vm = await fs.readJson(config)
  vm.processors.count = 64
  vm.memory = { ...vm.memory, startup: 64 * GB, minimum: 32 * GB, maximum: 64 * GB, dynamic: true }
  vm.drives.find(({ kind }: { kind: string }) => kind === 'dvd').path = join(exported, 'none.iso')
  await fs.writeJson(config, vm)
  const { mended } = await importVm({ from }, host.ps)
  deepEqual(mended.slice(0, 2), [
    { what: 'processors', from: '64', to: '8' },
    { what: 'memory', from: '65536 MB', to: '8192 MB' },
  ])
  deepEqual(mended.slice(2).map(({ what, to }) => [what, to]), [['switch', null], ['dvd', null]])
  const [made] = (await host.state()).vms
  deepEqual([made.processors.count, made.memory.startup, made.memory.minimum], [
    8,
    8 * GB,
    8 * GB,
  ])
})

test('refuses what it cannot mend, with its words and its id, and changes nothing', async ({ host, from }) => {
  const before = async () => [await host.text(), await tree(from)]
  await host.change((state) => {
    state.incompatibilities = [{ id: 24000, message: 'Processor features of another maker.' }]
  })
  const was = await before()
  for (const copyTo of [undefined, join(host.dir, 'never')]) {
    await rejects(importVm({ from, copyTo }, host.ps), {
      message: `Cannot import "${from}": this host cannot run it: Processor features of another ` +
        'maker. (24000). Mend it where it was exported, and export again',
    })
    deepEqual(await before(), was)
  }
  await host.change((state) => state.incompatibilities = [])
  await fs.remove(join(from, 'Virtual Hard Disks', 'web.vhdx'))
  await fs.move(join(host.dir, 'web.vhdx'), join(host.dir, 'away.vhdx'))
  try {
    await rejects(
      importVm({ from }, host.ps),
      /of its disks these are not there: ".*web\.vhdx"\. Bring them into ".*Virtual Hard Disks", or export again$/,
    )
  } finally {
    await fs.move(join(host.dir, 'away.vhdx'), join(host.dir, 'web.vhdx'))
  }
})

test('leaves neither VM nor copy nor trace when Import-VM fails', async ({ host, from }) => {
  await host.change((state) => {
    state.faults = [{ cmdlet: 'Import-VM', when: 'before', error: { id: 'X', message: 'no' } }]
  })
  const text = await host.text()
  const files = await tree(from)
  for (const copyTo of [undefined, join(host.dir, 'failed')]) {
    await rejects(importVm({ from, copyTo }, host.ps), /no \(X,/)
    equal(await host.text(), text)
    deepEqual(await tree(from), files)
    equal(await fs.pathExists(join(host.dir, 'failed')), false)
  }
})

test('refuses folders without a VM, with several, and files in the way', async ({ host, from }) => {
  const refuses = (options: ImportVmOptions, message: RegExp) =>
    rejects(importVm(options, host.ps), message)
  const empty = await fs.mkdtemp(join(host.dir, 'empty-'))
  await refuses({ from: empty }, /there is no \.vmcx file of a VM\. Name the folder that Export-VM/)
  await refuses({ from: join(empty, '[a*]') }, /there is no \.vmcx file of a VM/)
  await refuses({ from, switch: 'none' }, /there are 0 switches named "none"\. Run: Get-VMSwitch$/)
  await fs.copy(from, join(empty, 'one'))
  await fs.copy(from, join(empty, '[a*]'))
  await refuses({ from: empty }, /it has 2 VMs\. Name one by its file: .*\.vmcx, .*\.vmcx$/)
  equal((await importVm({ from: join(empty, '[a*]'), dryRun: true }, host.ps)).changed, true)
  const copyTo = await fs.mkdtemp(join(host.dir, 'taken-'))
  await fs.outputFile(join(copyTo, 'Virtual Hard Disks', 'web.vhdx'), 'mine')
  await refuses(
    { from, copyTo },
    /there is already ".*web\.vhdx"\. Name another folder: --copy-to$/,
  )
  equal(await fs.readFile(join(copyTo, 'Virtual Hard Disks', 'web.vhdx'), 'utf8'), 'mine')
  const [name] = await fs.readdir(join(from, 'Virtual Machines'))
  await fs.writeFile(join(from, 'Virtual Machines', name as string), 'no configuration')
  await refuses(
    { from },
    /Hyper-V cannot read its configuration: .*Run: Get-VMHostSupportedVersion$/,
  )
  for (const text of ['', ' ', 'a\nb']) {
    await refuses({ from: text }, /^TypeError: Cannot import with /)
  }
})

test('takes back no VM that runs, and none in place with checkpoints', async ({ host, from }) => {
  const result = await importVm({ from }, host.ps)
  await host.change((state) => state.vms[0].state = 'Running')
  await rejects(undoImportVm(result, host.ps), /it is Running\. Run: Stop-VM -Name 'Bob’’s /)
  await host.change((state) => {
    state.vms[0].state = 'Off'
    state.vms[0].snapshots = [{ id: '1', name: 'one' }]
  })
  await rejects(undoImportVm(result, host.ps), /it has checkpoints, which would go into the export/)
  equal((await host.state()).vms.length, 1)
})

test('is a command', async ({ host, from }) => {
  const { code, stdout, stderr } = await runTask(host, 'import-vm', '--from', from)
  deepEqual([code, stderr], [0, ''])
  equal(JSON.parse(stdout).vm, NAME)
})

importing.run()

/** What is in a folder: each file with its content. */
async function tree(folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  for (const name of (await fs.readdir(folder, { recursive: true })).map(String).sort()) {
    const path = join(folder, name)
    found[name] = (await fs.stat(path)).isFile() ? await fs.readFile(path, 'base64') : 'folder'
  }
  return found
}
