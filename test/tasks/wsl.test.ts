/** What a task does in WSL, with the programs that WSL brings. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { convertDisk } from '../../tasks/convert-disk.ts'
import { inspectVm } from '../../tasks/inspect-vm.ts'
import {
  ConnectionError,
  fromWindows,
  inWsl,
  openPowerShell,
  powershell,
  toWindows,
} from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { program, type Wsl, wsl } from '../wsl.ts'
import { disk, MB, vdi } from './convert-disk/images.ts'

const inside = suite<{ dir: string; here: Wsl }>('in WSL')
// the programs of WSL are scripts here, which Windows cannot run
const linux = needs(inside, '/bin/sh')
const test = needs(inside, '/bin/sh', 'pwsh')

inside.before.each(async (context) => {
  // without the links that wslpath resolves
  context.dir = await fs.realpath(await fs.mkdtemp(join(tmpdir(), 'wsl-')))
  context.here = await wsl(context.dir)
})
inside.after.each(async ({ dir, here }) => {
  here.close()
  await fs.remove(dir)
})

linux('is known by the name that WSL gives it', ({ here }) => {
  equal(inWsl(), true)
  here.close()
  equal(inWsl(), false)
})

linux('finds files of Windows where their drive is mounted', async ({ here }) => {
  const file = join(here.drive, "Bob’s “VMs” $(1)'s", 'a b.vhdx')
  const windows = "C:\\Bob’s “VMs” $(1)'s\\a b.vhdx"
  equal(await fromWindows(windows), file)
  equal(await fromWindows(windows.replaceAll('\\', '/')), file)
  equal(await toWindows(file), windows)
  equal(await toWindows(here.drive), 'C:\\')
  equal(await fromWindows('Z:\\a.vhdx'), undefined)
  equal(await fromWindows('\\\\server\\share\\a.vhdx'), undefined)
})

linux('tells the Linux file system from a drive of Windows', async ({ dir, here }) => {
  equal(await toWindows(dir), undefined)
  // a link there leads to Windows
  await fs.symlink(here.drive, join(dir, 'link'))
  equal(await toWindows(join(dir, 'link')), 'C:\\')
  // sudo drops the name, and wslpath then knows none
  process.env.WSL_DISTRO_NAME = ''
  equal(await toWindows(dir), inWsl() ? undefined : dir)
})

linux('says that wslpath is missing', async ({ dir, here }) => {
  process.env.PATH = join(dir, 'empty')
  await rejects(toWindows(here.drive), (error: Error) => {
    ok(error instanceof ConnectionError)
    equal(
      error.message,
      `Cannot translate "${here.drive}" between Windows and WSL: no program "wslpath" is on PATH, ` +
        'which WSL has in /usr/bin. Run in Windows: wsl --update',
    )
    return true
  })
})

test('asks the PowerShell of Windows', async ({ here }) => {
  equal((await powershell`'桥接'`).stdout, '桥接')
  deepEqual(await here.scripts(), ["'桥接'"])
})

linux('says how to name a PowerShell that is not on PATH', async ({ dir }) => {
  process.env.PATH = join(dir, 'empty')
  await rejects(async () => await powershell`1`, {
    message: 'Cannot start PowerShell: no program "powershell.exe" is on PATH. ' +
      'Run: export POWERSHELL=/mnt/c/Windows/System32/WindowsPowerShell/v1.0/powershell.exe',
  })
})

linux('says what to do where programs of Windows do not run', async ({ dir }) => {
  // what Linux makes of one without WSL's entry for them
  const file = join(dir, 'programs', 'powershell.exe')
  await fs.writeFile(file, 'MZ\u0090\n', { mode: 0o755 })
  const { ps, close } = openPowerShell({ program: file })
  try {
    await rejects(
      async () => await ps`1`,
      /^ConnectionError: Cannot start PowerShell from WSL: .* run in Windows: wsl --shutdown$/,
    )
  } finally {
    await close()
  }
})

test('asks Windows about the folder of a disk that is to be there', async ({ dir, here }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(disk(3 * MB)))
  const { warnings } = await convertDisk({ from, to: join(here.drive, 'VMs', 'a.vhdx') })
  deepEqual(warnings, [])
  const [folder = '', sparse = ''] = await here.scripts()
  match(folder, /\$folder = 'C:\\'\n/)
  match(sparse, /\$file = 'C:\\VMs\\[^']+'\n/)
})

linux('asks nobody about a disk in the Linux file system', async ({ dir, here }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(disk(3 * MB)))
  const { warnings } = await convertDisk({ from, to: join(dir, 'a.vhdx') })
  deepEqual(warnings, [])
  deepEqual(await here.scripts(), [])
})

linux('converts where wslpath is missing, and says what nobody looked at', async ({ dir }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(disk(3 * MB)))
  process.env.PATH = join(dir, 'empty')
  const { changed, warnings } = await convertDisk({ from, to: join(dir, 'a.vhdx') })
  equal(changed, true)
  match(warnings.join(), /^Nobody looked .*: Cannot translate ".*no program "wslpath" is on PATH/)
})

linux('finds the disks that a VM of Windows names', async ({ dir, here }) => {
  const fixtures = join(import.meta.dirname as string, '..', '..', 'fixtures', 'inspect-vm')
  const text = await fs.readFile(join(fixtures, '1.20.vbox'), 'utf8')
  const file = join(here.drive, 'a.vbox')
  for (const [named, path] of [['D:\\VMs\\a.vdi', 'D:\\VMs\\a.vdi'], ['C:\\VMs\\a.vdi']]) {
    await fs.writeFile(file, text.replace('"nvme.vdi"', `"${named}"`))
    const { disks } = await inspectVm({ source: [file] })
    // what is not mounted here stays as it is
    equal(disks[1]?.path, path ?? join(here.drive, 'VMs', 'a.vdi'))
  }
  // as Windows asks for VirtualBox: by the drive, wherever it is mounted
  const box = join(here.drive, 'Program Files', 'Oracle', 'VirtualBox', 'VBoxManage.exe')
  await program(box, 'echo "$@" >> "$TEST_SCRIPTS.vbox"')
  process.env.PATH = join(dir, 'programs') + ':/usr/bin:/bin'
  await rejects(inspectVm({ source: ['web'] }), /web/)
  match(await fs.readFile(join(dir, 'scripts.jsonl.vbox'), 'utf8'), /^list/)
})

inside.run()
