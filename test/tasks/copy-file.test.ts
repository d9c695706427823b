import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { copyFile } from '../../tasks/copy-file.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const NAME = 'Bob’s "VM"; $(calc) 桥接 [a*]'
const FILE = 'it’s [1] $(x).txt'

const copying = suite<{ host: SimulatedHost; seed: object }>('copyFile')
const test = needs(copying, 'pwsh')

copying.before(async (context) => {
  const host = context.host = await simulatedHost()
  await host.ps`
    $name = ${NAME}
    $null = New-VM -Name $name -Generation 2 -NoVHD
    Get-VM | Start-VM`
  await host.change((state) => state.guests = { '*': { heartbeat: { polls: 0 } } })
  context.seed = await host.state()
  await fs.outputFile(join(host.dir, 'kit', FILE), 'hello')
  await fs.outputFile(join(host.dir, 'kit', 'sub', 'b'), '')
})
copying.before.each(({ host, seed }) => host.change((state) => Object.assign(state, seed)))
copying.after(({ host }) => host.close())

const inside = async (host: SimulatedHost) => (await host.state()).guests[NAME]?.files ?? {}
const enabled = async (host: SimulatedHost) =>
  (await host.state()).vms[0].services.find(({ id }: { id: string }) =>
    id === 'Guest-Service-Interface'
  ).enabled

test('copies a file to a name or into a folder, by a service that it turns on and off again', async ({ host }) => {
  const from = join(host.dir, 'kit', FILE)
  const before = await host.text()
  const dry = await copyFile({ vm: NAME, from, to: 'C:\\kit\\', dryRun: true }, host.ps)
  equal(await host.text(), before)
  equal(await enabled(host), false)
  const result = await copyFile({ vm: NAME.toUpperCase(), from, to: 'C:\\kit\\' }, host.ps)
  deepEqual(dry, result)
  deepEqual(result.files, [{ from, to: `C:\\kit\\${FILE}`, size: 5 }])
  await copyFile({ vm: NAME, from, to: '/opt/name' }, host.ps)
  deepEqual(await inside(host), { [`C:\\kit\\${FILE}`]: 5, '/opt/name': 5 })
  equal(await enabled(host), false)
})

test('copies a folder with all that is in it, with the guest’s slashes', async ({ host }) => {
  await copyFile({ vm: NAME, from: join(host.dir, 'kit'), to: 'D:\\' }, host.ps)
  await copyFile({ vm: NAME, from: join(host.dir, 'kit'), to: '/opt/kit' }, host.ps)
  deepEqual(
    Object.keys(await inside(host)).sort(),
    [
      '/opt/kit/sub/b',
      `/opt/kit/${FILE}`,
      'D:\\sub\\b',
      `D:\\${FILE}`,
    ].sort(),
  )
})

test('leaves the service on that was on', async ({ host }) => {
  await host
    .ps`Get-VM | Get-VMIntegrationService | Where-Object { [string]$_.Id -like '*6C09BB55*' } | Enable-VMIntegrationService`
  await copyFile({ vm: NAME, from: join(host.dir, 'kit', FILE), to: '/a' }, host.ps)
  equal(await enabled(host), true)
})

test('replaces what is there only when told to, and puts the service back', async ({ host }) => {
  const options = { vm: NAME, from: join(host.dir, 'kit', FILE), to: '/a' }
  await copyFile(options, host.ps)
  await rejects(copyFile(options, host.ps), {
    message:
      `Cannot copy "${options.from}" into "${NAME}": "/a" is there (0x80070050). Run again with ` +
      'another --to, or --force to replace it',
  })
  equal(await enabled(host), false)
  await copyFile({ ...options, force: true }, host.ps)
})

test('says what keeps a guest from taking files', async ({ host }) => {
  const from = join(host.dir, 'kit', FILE)
  await host.change((state) => state.guests = { '*': { integration: false } })
  await host
    .ps`Get-VM | Get-VMIntegrationService | Where-Object { [string]$_.Id -like '*6C09BB55*' } | Enable-VMIntegrationService`
  await rejects(
    copyFile({ vm: NAME, from, to: '/a' }, host.ps),
    /its guest does not answer \(0x800710DF\)/,
  )
  await host.change(({ vms: [vm] }) => vm.state = 'Off')
  await rejects(
    copyFile({ vm: NAME, from, to: '/a' }, host.ps),
    /it is Off, and only a guest that runs/,
  )
  await rejects(
    copyFile({ vm: NAME, from: join(host.dir, 'none'), to: '/a' }, host.ps),
    /no such file/,
  )
  await rejects(copyFile({ vm: 'none', from, to: '/a' }, host.ps), /there is no such VM/)
})

test('refuses what is no whole path in the guest', async ({ host }) => {
  for (
    const to of ['', 'a', 'C:a', '..\\a', 'C:\\a\\..\\b', '/a/../b', '/a\nb', '\\\\server\\share']
  ) {
    await rejects(copyFile({ vm: 'a', from: 'a', to }, host.ps), /it is no whole path in the guest/)
  }
  await rejects(copyFile({ vm: 'a', from: ' ', to: '/a' }, host.ps), /is no file's name/)
  await rejects(copyFile({ vm: '', from: 'a', to: '/a' }, host.ps), /1 to 100 characters/)
})

test('is a command', async ({ host }) => {
  const args = ['--vm', NAME, '--from', join(host.dir, 'kit', FILE), '--to', '/opt/']
  const { code, stdout, stderr } = await runTask(host, 'copy-file', ...args)
  equal(code, 0, stderr)
  equal(JSON.parse(stdout).files[0].to, `/opt/${FILE}`)
  const again = await runTask(host, 'copy-file', ...args)
  deepEqual([again.code, again.stdout], [1, ''])
  match(again.stderr, /is there \(0x80070050\)/)
})

copying.run()
