/** Migrating from WSL to the Windows around it. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate } from '../../recipes/migrate.ts'
import { localFile, localFolder } from '../../recipes/run/host.ts'
import { undo } from '../../recipes/undo.ts'
import { needs } from '../needs.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { type Wsl, wsl } from '../wsl.ts'

interface Context {
  host: SimulatedHost
  here: Wsl
  state: string
  ova: string
}

const inside = suite<Context>('migrate in WSL')
// the programs of WSL are scripts here, which Windows cannot run
const linux = needs(inside, '/bin/sh')
const test = needs(inside, '/bin/sh', 'pwsh')

inside.before.each(async (context) => {
  context.host = await simulatedHost()
  await context.host.change(quickGuests)
  const { dir, env } = context.host
  const { PSModulePath, ProgramData, SIMULATED_HOST, SIMULATED_HOST_LOG } = env
  context.here = await wsl(dir, { PSModulePath, ProgramData, SIMULATED_HOST, SIMULATED_HOST_LOG })
  context.state = join(dir, 'state')
  context.ova = (await demo('bios', dir)).ova
})
inside.after.each(async ({ here, host }) => {
  here.close()
  await host.close()
})

test('makes the VM of Windows, with its disk on the drive of the host’s folder', async ({ host, here, state, ova }) => {
  const name = 'Bob’s VM'
  const quiet = { screen: () => {} }
  equal(await migrate({ source: [ova], to: 'local', name, state }, quiet), 'done')
  equal(await here.starts(), 1)
  const folder = join('ProgramData', 'Microsoft', 'Windows', 'Virtual Hard Disks')
  const [disk = ''] = await fs.readdir(join(here.drive, folder))
  match(disk, /\.vhdx$/)
  const [vm] = (await host.state()).vms
  equal(vm.name, name)
  const disks = vm.drives.filter(({ kind }: { kind: string }) => kind === 'disk')
  equal(disks.map(({ path }: { path: string }) => path).join(), join(here.drive, folder, disk))
  const scripts = (await here.scripts()).join('\n')
  ok(scripts.includes(`C:\\ProgramData\\Microsoft\\Windows\\Virtual Hard Disks\\${disk}`))
  // Windows would take a path of Linux for one on the current drive
  ok(!scripts.includes(host.dir), 'PowerShell was given a path of Linux')
  equal(await undo({ state }, quiet), 'done')
  equal((await host.state()).vms.length, 0)
  equal(await fs.pathExists(join(here.drive, folder, disk)), false)
})

linux('takes a folder for the disks as Linux or as Windows names it', async ({ here }) => {
  const folder = join(here.drive, 'VMs')
  equal(await localFolder(folder), 'C:\\VMs')
  for (const storage of ['C:\\VMs', 'c:/VMs', '\\\\?\\C:\\VMs']) {
    equal(await localFolder(storage), storage)
    equal(await localFile(storage), folder)
  }
})

test('refuses a folder in the Linux file system, before anything is made', async ({ host, here, state, ova }) => {
  const before = await host.text()
  const storage = join(host.dir, 'VMs')
  const refused = (message: string) =>
    rejects(migrate({ source: [ova], to: 'local', storage, state }, { screen: () => {} }), {
      message,
    })
  await refused(inLinux(storage))
  process.env.PATH = join(host.dir, 'none')
  await refused(
    `Cannot translate "${storage}" between Windows and WSL: no program "wslpath" is on PATH, ` +
      'which WSL has in /usr/bin. Run in Windows: wsl --update',
  )
  equal(await host.text(), before)
  equal(await fs.pathExists(storage), false)
  equal(await fs.pathExists(state), false)
  deepEqual(await here.scripts(), [])
})

linux('refuses a disk of Windows that is on none of its drives in WSL', async ({ here }) => {
  const share = '\\\\wsl.localhost\\Ubuntu\\home\\a.vhdx'
  await rejects(localFile(share), { message: inLinux(share) })
  const slashes = '//wsl.localhost/Ubuntu/home'
  await rejects(localFolder(slashes), { message: inLinux(slashes) })
  await rejects(localFile('z:\\VMs\\a.vhdx'), {
    message: 'Cannot write to "z:\\VMs\\a.vhdx" from WSL: the drive is not mounted here. ' +
      'Run: sudo mkdir -p /mnt/z && sudo mount -t drvfs Z: /mnt/z',
  })
  await rejects(localFile('\\\\server\\VMs\\a.vhdx'), {
    message: 'Cannot write to "\\\\server\\VMs\\a.vhdx" from WSL: the share is not mounted here. ' +
      "Run again with a drive of Windows: --storage 'C:\\VMs'",
  })
  here.close()
  await rejects(localFile('C:\\VMs\\a.vhdx'), {
    message:
      'Cannot write to "C:\\VMs\\a.vhdx": it is a path of Windows, and this is neither Windows ' +
      'nor WSL. Run again with --to ssh://[user@]host[:port]',
  })
})

inside.run()

function inLinux(path: string): string {
  return `Cannot store disks in "${path}": it is in the Linux file system of WSL, where Hyper-V opens ` +
    "no disk. Run again with a folder on a drive of Windows: --storage 'C:\\VMs'"
}
