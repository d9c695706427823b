import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { startVm, undoStartVm } from '../../tasks/start-vm.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { gptDisk, vhdx } from './convert-disk/images.ts'

const starting = suite<{ host: SimulatedHost; seed: object }>('startVm')
const test = needs(starting, 'pwsh')

starting.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = { faults: [], ...await context.host.state() }
})
starting.before.each(async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, seed))
  await make(host, 'web')
})
starting.after(({ host }) => host.close())

test('starts the VM and says at which addresses its guest is', async ({ host }) => {
  await guest(host, {
    heartbeat: { polls: 1 },
    addressesAfter: { polls: 2 },
    addresses: { lan: ['fe80::1', '2001:db8::1', '192.168.56.191', '169.254.1.2'] },
  })
  const { id: _, waited, adapters, ...rest } = await startVm({ vm: 'WEB' }, host.ps)
  deepEqual(rest, {
    changed: true,
    vm: 'web',
    state: 'Running',
    heartbeat: 'ok',
    before: { state: 'Off' },
  })
  ok(waited > 0 && waited < 30, `${waited} seconds`)
  match(adapters[0]?.mac ?? '', /^00155D[0-9A-F]{6}$/)
  deepEqual(adapters.map(({ mac: _, ...adapter }) => adapter), [{
    name: 'lan',
    switch: 'Static-NAT',
    addresses: ['192.168.56.191', '2001:db8::1'],
    linkLocal: ['fe80::1', '169.254.1.2'],
  }])
})

test('says when the guest does not answer in time', async ({ host }) => {
  await guest(host, { integration: false })
  const result = await startVm({ vm: 'web', timeout: 1 }, host.ps)
  deepEqual([result.changed, result.state, result.heartbeat], [true, 'Running', 'none'])
  ok(result.waited >= 1 && result.waited < 3, `${result.waited} seconds`)
  deepEqual(result.adapters[0]?.addresses, [])
})

test('does not wait for addresses where no adapter is connected', async ({ host }) => {
  await host.ps`Get-VM | Get-VMNetworkAdapter | Disconnect-VMNetworkAdapter`
  await guest(host, { heartbeat: { polls: 0 } })
  const { heartbeat, waited, adapters } = await startVm({ vm: 'web' }, host.ps)
  equal(heartbeat, 'ok')
  ok(waited < 3, `${waited} seconds`)
  equal(adapters[0]?.switch, null)
})

test('waits 5 seconds for an adapter without an address when another has one', async ({ host }) => {
  await host.ps`Add-VMNetworkAdapter -VMName 'web' -Name 'silent' -SwitchName 'Static-NAT'`
  await guest(host, { heartbeat: { polls: 0 }, addresses: { lan: ['192.168.56.191'] } })
  const { heartbeat, waited, adapters } = await startVm({ vm: 'web' }, host.ps)
  deepEqual([heartbeat, adapters.map(({ addresses }) => addresses.length)], ['ok', [1, 0]])
  ok(waited >= 5 && waited < 20, `${waited} seconds`)
})

test('does not wait for a guest that has run for longer without an answer', async ({ host }) => {
  await guest(host, { integration: false })
  await startVm({ vm: 'web', timeout: 0 }, host.ps)
  // .NET counts time in 10 millionths of a second
  await host.change((state) => state.vms[0].started -= 3600 * 1e7)
  const { heartbeat, waited } = await startVm({ vm: 'web' }, host.ps)
  equal(heartbeat, 'none')
  ok(waited < 5, `${waited} seconds`)
})

test('does nothing to a VM that runs, and reports it', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 0 }, addresses: ['192.168.56.191'] })
  const { id } = await startVm({ vm: 'web' }, host.ps)
  const before = await host.text()
  const calls = await changing(host)
  const result = await startVm({ vm: 'web' }, host.ps)
  deepEqual([result.changed, result.id, result.heartbeat, result.before], [
    false,
    id,
    'ok',
    undefined,
  ])
  deepEqual(result.adapters[0]?.addresses, ['192.168.56.191'])
  equal(await host.text(), before)
  deepEqual(await changing(host), calls)
})

test('changes nothing on a dry run, and does not wait', async ({ host }) => {
  const before = await host.text()
  const calls = await changing(host)
  const result = await startVm({ vm: 'web', dryRun: true }, host.ps)
  deepEqual([result.changed, result.state, result.heartbeat, result.before], [
    true,
    'Off',
    'none',
    { state: 'Off' },
  ])
  ok(result.waited < 1, `${result.waited} seconds`)
  equal(await host.text(), before)
  deepEqual(await changing(host), calls)
})

test('goes on with a saved and with a paused VM, and takes each back', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 0 } })
  for (const state of ['Saved', 'Paused']) {
    await host.ps`
      $state = ${state}
      $vm = Get-VM
      Start-VM -VM $vm
      if ($state -eq 'Saved') { Save-VM -VM $vm } else { Suspend-VM -VM $vm }`
    const before = timeless(await host.state())
    const result = await startVm({ vm: 'web', timeout: 0 }, host.ps)
    deepEqual([result.state, result.before], ['Running', { state }])
    await undoStartVm(result, host.ps)
    deepEqual(timeless(await host.state()), before)
    await host.change((state) => state.vms[0].state = 'Off')
  }
})

test('is taken back by a shutdown of the guest, once and again', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 0 } })
  await host
    .ps`Get-VM | Get-VMNetworkAdapter | Set-VMNetworkAdapter -StaticMacAddress '080027AABBCC'`
  const before = timeless(await host.state())
  const result = await startVm({ vm: 'web', timeout: 0 }, host.ps)
  await undoStartVm(result, host.ps)
  deepEqual(timeless(await host.state()), before)
  const calls = await host.calls()
  const stop = calls.findLast(({ cmdlet }) => cmdlet === 'Stop-VM') as { parameters?: object }
  ok(stop.parameters && !('TurnOff' in stop.parameters) && !('Force' in stop.parameters))
  await undoStartVm(result, host.ps)
  await host.ps`Get-VM | Remove-VM -Force`
  await undoStartVm(result, host.ps)
})

test('never turns the VM off under a guest that does not shut down', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 1 } })
  const result = await startVm({ vm: 'web', timeout: 0 }, host.ps)
  const way = 'Run: vmconnect localhost "web", and shut it down there, or ' +
    "Stop-VM -Name 'web' -TurnOff, which loses what the guest has not written"
  await guest(host, { integration: false })
  await rejects(undoStartVm(result, host.ps), {
    message: `Cannot shut down "web": its guest does not answer. ${way}`,
  })
  await guest(host, { heartbeat: { polls: 0 } })
  await host.ps`Disable-VMIntegrationService -VMName 'web' -Name 'Shutdown'`
  await rejects(undoStartVm(result, host.ps), (error: Error) => {
    match(
      error.message,
      /^Cannot shut down "web": its guest was asked to and still runs \(.*\(0x80041005\)\)\. Run: /,
    )
    return error.message.endsWith(way)
  })
  await host.ps`Enable-VMIntegrationService -VMName 'web' -Name 'Shutdown'`
  await guest(host, { heartbeat: { polls: 0 }, unsaved: true })
  await rejects(undoStartVm(result, host.ps, 1), {
    message:
      `Cannot shut down "web": its guest was asked to and still runs after 1 seconds. ${way}`,
  })
  const { stdout } = await host.ps`[string](Get-VM).State`
  equal(stdout, 'Running')
})

test('pain 9: explains why a VM does not start, such as for its rights on a disk', async ({ host }) => {
  const disk = join(host.dir, 'web.vhdx')
  await host.change((state) => {
    state.vms[0].drives = [
      { id: 'd', kind: 'disk', type: 'SCSI', number: 0, location: 0, path: disk },
    ]
  })
  const { stdout: sid } = await host
    .ps`$id = (Get-VM).Id.ToByteArray(); 'S-1-5-83-1-' + (@(0, 4, 8, 12 | ForEach-Object { [BitConverter]::ToUInt32($id, $_) }) -join '-')`
  const reasons: [number, string][] = [
    [
      0x80070005,
      'its account may not open its disks (0x80070005). ' +
      `Run as an administrator: icacls "${disk}" /grant *${sid.trim()}:F`,
    ],
    [
      0xc03a001a,
      'a disk of it is sparse, compressed or encrypted (0xC03A001A). ' +
      `Run: fsutil sparse setflag "${disk}" 0`,
    ],
    [
      0x80070020,
      `another program has a disk of it open (0x80070020), one of "${disk}". ` +
      'Run: Dismount-VHD, or end VirtualBox',
    ],
    [
      0x8007000e,
      'the host has less than the 1024 MB of memory free that it needs. Run: Get-VM | Where-Object ' +
      "State -EQ Running, and stop one, or Set-VMMemory -VMName 'web' -StartupBytes with less",
    ],
  ]
  for (const [hresult, why] of reasons) {
    await guest(host, { startError: { message: 'It failed.', hresult } })
    await rejects(startVm({ vm: 'web' }, host.ps), { message: `Cannot start "web": ${why}` })
  }
  await guest(host, { startError: { message: 'It failed.', hresult: 0x80004005 } })
  await rejects(startVm({ vm: 'web' }, host.ps), {
    message: /It failed\. \(0x80004005\) \(OperationFailed,/,
    hresult: '0x80004005',
  })
})

test('pain 9: gives its account by SID the disks that it may not open, and starts it', async ({ host }) => {
  const disk = join(host.dir, 'it’s "its" disk.vhdx')
  await fs.writeFile(disk, vhdx(gptDisk('c12a7328-f81f-11d2-ba4b-00a0c93ec93b')))
  await host.change((state) => {
    state.vms[0].drives = [
      { id: 'd', kind: 'disk', type: 'SCSI', number: 0, location: 0, path: disk },
    ]
    state.files = { [disk]: { denied: true } }
  })
  const { changed, state } = await startVm({ vm: 'web' }, host.ps)
  deepEqual([changed, state], [true, 'Running'])
  // who may not change the file's rights is told
  await host.change((state) => {
    state.vms[0].state = 'Off'
    state.files = { [disk]: { denied: 'fixed' } }
  })
  await rejects(startVm({ vm: 'web' }, host.ps), {
    message:
      /may not open its disks \(0x80070005\)\. Run as an administrator: icacls ".+" \/grant \*S-1-5-83-1-/,
  })
})

test('explains why a VM that runs hypervisors does not start on AMD', async ({ host }) => {
  await host.ps`Set-VMProcessor -VMName 'web' -ExposeVirtualizationExtensions $true`
  await host.change((state) => {
    Object.assign(state.host, { processor: 'AMD', build: 19045 })
    state.vms[0].version = '9.0'
    state.locale = 'de-DE'
  })
  await host.ps`$env:PROCESSOR_IDENTIFIER = 'AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD'`
  await rejects(startVm({ vm: 'web' }, host.ps), {
    message:
      'Cannot start "web": it is to run hypervisors, which on AMD takes configuration version ' +
      "9.3 of Windows 11 or Windows Server 2022, and it has 9.0. Run: Set-VMProcessor -VMName 'web' " +
      '-ExposeVirtualizationExtensions 0',
  })
})

test('refuses a VM in between, one that is not there, and a limit that is none', async ({ host }) => {
  await host.change((state) => state.vms[0].state = 'Stopping')
  await rejects(startVm({ vm: 'web' }, host.ps), {
    message: 'Cannot start "web": it is Stopping, and has to come to an end of that first. ' +
      "Run: Get-VM -Name 'web', until it is Off",
  })
  await rejects(startVm({ vm: 'none' }, host.ps), {
    message: 'Cannot start "none": there is no such VM. Run: Get-VM',
  })
  await rejects(startVm({ vm: 'web', timeout: -1 }, host.ps), {
    message: 'Cannot wait -1 seconds for "web": it is 0 to 86400. Run again with --timeout 120',
  })
  await rejects(startVm({ vm: '' }, host.ps), {
    message:
      'Cannot start a VM named "": a name is 1 to 100 characters and no control characters. ' +
      'Run: Get-VM',
  })
})

test('takes a name for what it is, not for a pattern or code', async ({ host }) => {
  await make(host, 'a')
  for (const vm of ['Bob’s "VM"; $(calc) 桥接', '[a*]']) {
    await make(host, vm)
    const result = await startVm({ vm, timeout: 0 }, host.ps)
    deepEqual([result.vm, result.state], [vm, 'Running'])
  }
  const { stdout } = await host.ps`@(Get-VM | Where-Object State -EQ Running).Count`
  equal(stdout, '2')
})

test('runs as a command', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 0 }, addresses: ['192.168.56.191'] })
  const { code, stdout, stderr } = await runTask(host, 'start-vm', '--vm', 'web')
  equal(stderr, '')
  equal(code, 0)
  deepEqual(JSON.parse(stdout).adapters[0].addresses, ['192.168.56.191'])
  const failed = await runTask(host, 'start-vm', '--vm', 'web', '--timeout', '-1')
  deepEqual([failed.code, failed.stdout], [1, ''])
})

/** Makes a VM with one adapter, "lan", on the switch Static-NAT. */
async function make(host: SimulatedHost, name: string): Promise<void> {
  await host.ps`
    $name = ${name}
    if (-not @(Get-VMSwitch | Where-Object Name -EQ 'Static-NAT')) {
      $null = New-VMSwitch -Name 'Static-NAT' -SwitchType Internal
    }
    $vm = New-VM -Name $name -Generation 2 -NoVHD -MemoryStartupBytes 1GB -SwitchName 'Static-NAT'
    Set-VM -VM $vm -AutomaticCheckpointsEnabled $false
    Get-VMNetworkAdapter -VM $vm | Rename-VMNetworkAdapter -NewName 'lan'`
}

/** Says what the guests of the host do from now on. */
async function guest(host: SimulatedHost, guest: object): Promise<void> {
  await host.change((state) => state.guests = { '*': guest })
}

/** The state without the times of starts. */
function timeless(state: unknown): unknown {
  return JSON.parse(JSON.stringify(state, (key, value) => key === 'started' ? 0 : value))
}

/** The calls so far that change something. */
async function changing(host: SimulatedHost): Promise<string[]> {
  return (await host.calls()).map(({ cmdlet }) => cmdlet).filter((name) =>
    !/^(Get|Test)-/.test(name)
  )
}

starting.run()
