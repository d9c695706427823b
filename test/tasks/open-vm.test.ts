import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { openVm, showVm, undoOpenVm } from '../../tasks/open-vm.ts'
import { Secret } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const NAME = 'Bob’s "VM"; $(calc) 桥接 [a*]'

const opening = suite<{ host: SimulatedHost; seed: object }>('openVm')
const test = needs(opening, 'pwsh')

opening.before(async (context) => {
  const host = context.host = await simulatedHost('server')
  await host.ps`
    $name = ${NAME}
    $vm = New-VM -Name $name -Generation 2 -NoVHD
    Get-VMNetworkAdapter -VM $vm | Remove-VMNetworkAdapter
    $null = New-VMSwitch -Name 'lan' -NetAdapterName 'Ethernet' -AllowManagementOS $true
    $null = New-VMSwitch -Name 'Static-NAT' -SwitchType Internal
    Add-VMNetworkAdapter -VM $vm -Name 'lan' -SwitchName 'lan'
    Add-VMNetworkAdapter -VM $vm -Name 'inner' -SwitchName 'Static-NAT'
    Start-VM -VM $vm`
  await host.change((state) => {
    const addresses = { lan: ['10.0.0.7'], inner: ['fe80::1', '192.168.56.191'] }
    state.guests = { '*': { heartbeat: { polls: 0 }, addresses } }
  })
  context.seed = await host.state()
})
opening.before.each(({ host, seed }) => host.change((state) => Object.assign(state, seed)))
opening.after(({ host }) => host.close())

test('opens the console of a VM by its id, and changes nothing', async ({ host }) => {
  const before = await host.text()
  const { id, ...result } = await openVm({ vm: NAME.toUpperCase(), server: 'hyperv.lan' }, host.ps)
  deepEqual(result, {
    changed: false,
    vm: NAME,
    enhanced: false,
    command: ['vmconnect.exe', 'hyperv.lan', '-G', id],
    rdp: null,
    before: {},
    notes: [],
  })
  equal(await host.text(), before)
})

test('allows enhanced sessions on the host, and takes that back', async ({ host }) => {
  const before = await host.state()
  const dry = await openVm({ vm: NAME, enhanced: true, guest: 'linux', dryRun: true }, host.ps)
  deepEqual(await host.state(), before)
  const result = await openVm({ vm: NAME, enhanced: true, guest: 'linux' }, host.ps)
  deepEqual(dry, result)
  deepEqual([result.changed, result.before], [true, { enhanced: false }])
  equal((await host.state()).host.enhancedSession, true)
  match(result.notes.join(), /Set-VM -VMName 'Bob’’s .+' -EnhancedSessionTransportType HvSocket/)
  equal((await openVm({ vm: NAME, enhanced: true }, host.ps)).changed, false)
  await undoOpenVm(result, host.ps)
  await undoOpenVm(result, host.ps)
  deepEqual(await host.state(), before)
})

test('has the enhanced session of a Linux go its own way, while the VM is off, and takes that back', async ({ host }) => {
  const own = async () => (await host.state()).vms[0].sessionTransport
  await host.ps`Get-VM | Stop-VM -TurnOff -Force`
  const options = { vm: NAME, enhanced: true, guest: 'linux' as const }
  const dry = await openVm({ ...options, dryRun: true }, host.ps)
  equal(await own(), undefined)
  const result = await openVm(options, host.ps)
  deepEqual(dry, result)
  deepEqual(result.before, { enhanced: false, transport: 'VMBus' })
  equal(await own(), 'HvSocket')
  match(result.notes.join(), /prepare-guest --enhanced-session/)
  equal((await openVm(options, host.ps)).changed, false)
  await host.ps`Get-VM | Start-VM`
  await rejects(undoOpenVm(result, host.ps), /it is Running, and has to be off for that/)
  await host.ps`Get-VM | Stop-VM -TurnOff -Force`
  await undoOpenVm(result, host.ps)
  await undoOpenVm(result, host.ps)
  deepEqual([await own(), (await host.state()).host.enhancedSession], ['VMBus', false])
})

test('turns remote desktop on in a Windows guest, as its administrator, and takes that back', async ({ host }) => {
  const account = { user: 'admin', password: 'guest’s $(id)' }
  const terminal = { startMode: 'Disabled', state: 'Stopped', allowed: false }
  await host.change((state) => {
    Object.assign(state.guests['*'], { ...account, windows: { terminal } })
    state.guests[NAME] = state.guests['*']
  })
  const before = await host.state()
  const inside = async () => (await host.state()).guests[NAME].windows.terminal
  const credential = { user: account.user, password: new Secret(account.password) }
  const rdp = join(host.dir, 'guest.rdp')
  const options = { vm: NAME, enhanced: true, rdp, credential }
  const dry = await openVm({ ...options, dryRun: true }, host.ps)
  deepEqual(await host.state(), before)
  const result = await openVm(options, host.ps)
  deepEqual(dry, result)
  deepEqual(result.before, {
    enhanced: false,
    guest: { startMode: 'Disabled', running: false, allowed: false },
  })
  deepEqual(await inside(), { startMode: 'Manual', state: 'Running', allowed: true })
  equal((await openVm(options, host.ps)).changed, false)
  await undoOpenVm(result, host.ps, credential)
  deepEqual(await inside(), terminal)
  // without --rdp nobody else has to connect
  await openVm({ vm: NAME, enhanced: true, credential }, host.ps)
  deepEqual(await inside(), { startMode: 'Manual', state: 'Running', allowed: false })
  const wrong = { user: 'admin', password: new Secret('no') }
  await rejects(openVm({ vm: NAME, credential: wrong }, host.ps), {
    message: /the guest does not take the account "admin": .+ Run again with another --guest-user/,
  })
  const none = await runTask(host, 'open-vm', '--vm', NAME, '--guest-credential', 'env:NONE')
  equal(none.code, 1)
})

test('writes a file for remote desktop, with drives and without a password, once', async ({ host }) => {
  const rdp = join(host.dir, 'it’s "my" VM.rdp')
  const options = { vm: NAME, rdp, drive: ['c', 'W'], user: 'LAPTOP\\me', size: '1920x1080' }
  equal((await openVm({ ...options, dryRun: true }, host.ps)).changed, true)
  equal(await fs.pathExists(rdp), false)
  const { command, changed } = await openVm(options, host.ps)
  deepEqual([changed, command], [true, ['mstsc.exe', rdp]])
  const data = await fs.readFile(rdp)
  equal(data.readUInt16LE(0), 0xfeff)
  deepEqual(data.toString('utf16le').slice(1).trimEnd().split('\r\n'), [
    'full address:s:192.168.56.191',
    'username:s:LAPTOP\\me',
    'prompt for credentials:i:1',
    'authentication level:i:2',
    'redirectclipboard:i:1',
    'drivestoredirect:s:C:\\;W:\\;',
    'screen mode id:i:1',
    'desktopwidth:i:1920',
    'desktopheight:i:1080',
  ])
  equal((await openVm(options, host.ps)).changed, false)
  equal((await openVm({ ...options, address: 'web.lan' }, host.ps)).changed, true)
  deepEqual((await fs.readdir(host.dir)).filter((name) => name.endsWith('.partial')), [])
})

test('leaves the host as it was where the file cannot be written, and where there is no address', async ({ host }) => {
  const before = await host.state()
  const rdp = join(host.dir, 'none', 'a.rdp')
  await rejects(
    openVm({ vm: NAME, rdp, enhanced: true }, host.ps),
    /Cannot write ".+": ENOENT\. Name a file/,
  )
  deepEqual(await host.state(), before)
  await host.change((state) => state.guests = { '*': { integration: false } })
  const silent = await host.state()
  await rejects(openVm({ vm: NAME, rdp: join(host.dir, 'a.rdp'), enhanced: true }, host.ps), {
    message:
      `Cannot open "${NAME}": it tells no address for remote desktop. Run again with --address, or without --rdp`,
  })
  deepEqual(await host.state(), silent)
})

test('refuses what would be more than a value in the file or on a command line', async ({ host }) => {
  const refused = (options: object, reason: RegExp) =>
    rejects(openVm({ vm: 'a', rdp: 'a.rdp', ...options }, host.ps), reason)
  await refused({ address: '1.2.3.4\r\nremoteapplicationmode:i:1' }, /is no address/)
  await refused({ user: 'a\nb' }, /is no account/)
  await refused({ drive: ['C:\\', 'D'] }, /is no drive's letter/)
  await refused({ size: '1x1' }, /is no size/)
  await refused({ server: '-G' }, /is no computer's name/)
  await refused({ vm: '' }, /1 to 100 characters/)
  await rejects(
    openVm({ vm: 'a', drive: ['C'] }, host.ps),
    /--drive is for remote desktop\. Add --rdp/,
  )
  await rejects(openVm({ vm: 'none' }, host.ps), /there is no such VM/)
})

test('opens nothing where there is no Windows, and is a command', async ({ host }) => {
  if (process.platform !== 'win32') equal(await showVm({ command: ['vmconnect.exe'] }), false)
  const { code, stdout, stderr } = await runTask(host, 'open-vm', '--vm', NAME, '--print')
  equal(code, 0, stderr)
  const { command, opened } = JSON.parse(stdout)
  deepEqual([command.slice(0, 3), opened], [['vmconnect.exe', 'localhost', '-G'], false])
})

opening.run()
