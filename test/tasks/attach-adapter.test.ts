import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { attachAdapter, undoAttachAdapter } from '../../tasks/attach-adapter.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const attaching = suite<{ host: SimulatedHost; seed: object }>('attachAdapter')
const test = needs(attaching, 'pwsh')

attaching.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = { faults: [], ...await context.host.state() }
})
attaching.before.each(async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, seed))
  await host.ps`
    $null = New-VMSwitch -Name 'Static-NAT' -SwitchType Internal
    $null = New-VMSwitch -Name 'Other' -SwitchType Private`
  await make(host, 'web')
})
attaching.after(({ host }) => host.close())

test('gives the VM an adapter with the switch’s name and the address', async ({ host }) => {
  const result = await attachAdapter(
    { vm: 'WEB', switch: 'static-nat', mac: '08:00:27:aa:bb:cc' },
    host.ps,
  )
  const { id, adapter, ...rest } = result
  deepEqual(rest, {
    changed: true,
    vm: 'web',
    name: 'static-nat',
    switch: 'Static-NAT',
    mac: '080027AABBCC',
  })
  deepEqual(await adapters(host), [{
    id: adapter,
    vmId: id,
    name: 'static-nat',
    switch: 'Static-NAT',
    mac: '080027AABBCC',
    dynamic: false,
  }])
})

test('leaves the adapter unconnected and its address to Hyper-V unless told', async ({ host }) => {
  const result = await attachAdapter({ vm: 'web' }, host.ps)
  deepEqual([result.name, result.switch, result.mac], ['Network Adapter', null, null])
  const [made] = await adapters(host)
  deepEqual([made?.name, made?.switch, made?.dynamic], ['Network Adapter', '', true])
})

test('does nothing when the adapter is there', async ({ host }) => {
  const options = { vm: 'web', switch: 'Static-NAT', name: 'nat', mac: '0800.27aa.bbcc' }
  const { adapter } = await attachAdapter(options, host.ps)
  const before = await host.text()
  const calls = await changing(host)
  const again = await attachAdapter(options, host.ps)
  equal(again.changed, false)
  equal(again.adapter, adapter)
  equal(again.before, undefined)
  equal((await attachAdapter({ vm: 'web', name: 'NAT' }, host.ps)).changed, false)
  equal(await host.text(), before)
  deepEqual(await changing(host), calls)
})

test('connects the adapter of that name elsewhere and gives it the address', async ({ host }) => {
  const made = await attachAdapter({ vm: 'web', switch: 'Static-NAT', name: 'lan' }, host.ps)
  const before = await host.state()
  const result = await attachAdapter(
    { vm: 'web', switch: 'Other', name: 'Lan', mac: '08-00-27-aa-bb-cc' },
    host.ps,
  )
  equal(result.adapter, made.adapter)
  equal(result.name, 'lan')
  deepEqual([result.before?.switch, result.before?.mac], ['Static-NAT', null])
  const [now] = await adapters(host)
  deepEqual([now?.switch, now?.mac, now?.dynamic], ['Other', '080027AABBCC', false])
  await undoAttachAdapter(result, host.ps)
  const [back] = await adapters(host)
  deepEqual([back?.switch, back?.dynamic], ['Static-NAT', true])
  // the address that Hyper-V had chosen may be another one now
  equal(withoutMac(await host.state()), withoutMac(before))
})

test('puts back an address that a person gave, and no connection', async ({ host }) => {
  await attachAdapter({ vm: 'web', name: 'lan', mac: '080027000001' }, host.ps)
  const before = await host.state()
  const result = await attachAdapter(
    { vm: 'web', switch: 'Other', name: 'lan', mac: '080027000002' },
    host.ps,
  )
  deepEqual(result.before, { switch: null, switchId: null, mac: '080027000001' })
  await undoAttachAdapter(result, host.ps)
  deepEqual(await host.state(), before)
})

test('says that a switch is gone when it is taken back', async ({ host }) => {
  await attachAdapter({ vm: 'web', switch: 'Other', name: 'lan' }, host.ps)
  const result = await attachAdapter({ vm: 'web', switch: 'Static-NAT', name: 'lan' }, host.ps)
  await host.ps`Remove-VMSwitch -Name 'Other' -Force`
  await undoAttachAdapter(result, host.ps)
  deepEqual((await adapters(host)).map((adapter) => adapter.switch), [''])
  deepEqual(host.warnings.splice(0), [
    'The switch "Other" is gone, so the adapter "lan" of "web" is not connected',
  ])
})

test('is removed when it is taken back, once and again', async ({ host }) => {
  const before = await host.state()
  const result = await attachAdapter(
    { vm: 'web', switch: 'Static-NAT', mac: '080027AABBCC' },
    host.ps,
  )
  await undoAttachAdapter(result, host.ps)
  deepEqual(await host.state(), before)
  await undoAttachAdapter(result, host.ps)
  await host.ps`Remove-VM -Name 'web' -Force`
  await undoAttachAdapter(result, host.ps)
})

test('changes nothing on a dry run', async ({ host }) => {
  const before = await host.text()
  const options = { vm: 'web', switch: 'Static-NAT', mac: '080027AABBCC' }
  const dry = await attachAdapter({ ...options, dryRun: true }, host.ps)
  equal(await host.text(), before)
  deepEqual({ ...await attachAdapter(options, host.ps), adapter: null }, dry)
})

test('knows the Default Switch by its id, whatever Windows calls it', async ({ host }) => {
  await host.change((state) => {
    for (const one of state.switches) {
      if (one.name === 'Default Switch') one.name = 'Standardswitch'
    }
  })
  const result = await attachAdapter({ vm: 'web', switch: 'Default Switch' }, host.ps)
  deepEqual([result.name, result.switch], ['Default Switch', 'Standardswitch'])
})

test('connects a running VM of generation 2, and one of generation 1 only when it is off', async ({ host }) => {
  await make(host, 'old', 1)
  await host.ps`Get-VM | Start-VM`
  equal((await attachAdapter({ vm: 'web', switch: 'Other' }, host.ps)).changed, true)
  await rejects(attachAdapter({ vm: 'old', switch: 'Other' }, host.ps), {
    message: 'Cannot attach the adapter "Other" to "old": the VM is of generation 1 and Running, ' +
      "and takes a new adapter only while it is off. Run: Stop-VM -Name 'old'",
  })
})

test('is not taken from a running VM of generation 1', async ({ host }) => {
  await make(host, 'old', 1)
  const result = await attachAdapter({ vm: 'old', switch: 'Other' }, host.ps)
  await host.ps`Start-VM -Name 'old'`
  await rejects(undoAttachAdapter(result, host.ps), {
    message:
      'Cannot remove the adapter "Other" from "old": the VM is of generation 1 and Running, ' +
      "and loses an adapter only while it is off. Run: Stop-VM -Name 'old'",
  })
})

test('refuses another address while the VM runs, and so does the undo', async ({ host }) => {
  const options = { vm: 'web', name: 'lan', mac: '080027000001' }
  await attachAdapter({ vm: 'web', name: 'lan' }, host.ps)
  const result = await attachAdapter(options, host.ps)
  await host.ps`Start-VM -Name 'web'`
  await rejects(attachAdapter({ ...options, switch: 'Other', mac: '080027000002' }, host.ps), {
    message: 'Cannot attach the adapter "lan" to "web": the VM is Running, and a MAC address ' +
      "changes only while it is off. Run: Stop-VM -Name 'web'",
  })
  deepEqual((await adapters(host)).map((adapter) => adapter.switch), [''])
  await rejects(undoAttachAdapter(result, host.ps), {
    message: 'Cannot give the adapter "lan" of "web" its MAC address back: the VM is Running, ' +
      "and it changes only while the VM is off. Run: Stop-VM -Name 'web'",
  })
})

test('refuses an address that another adapter has', async ({ host }) => {
  await make(host, 'db')
  await attachAdapter({ vm: 'db', name: 'lan', mac: '080027000001' }, host.ps)
  await rejects(attachAdapter({ vm: 'web', name: 'lan', mac: '08-00-27-00-00-01' }, host.ps), {
    message: 'Cannot attach the adapter "lan" to "web": the VM "db" has the MAC address ' +
      '080027000001 already. Run: Get-VMNetworkAdapter -All | Where-Object MacAddress -EQ 080027000001',
  })
  const { stdout: mac } = await host.ps`
    (Get-VMNetworkAdapter -ManagementOS | Select-Object -First 1).MacAddress`
  await rejects(attachAdapter({ vm: 'web', name: 'lan', mac }, host.ps), {
    message:
      `Cannot attach the adapter "lan" to "web": the host has the MAC address ${mac} already. ` +
      `Run: Get-VMNetworkAdapter -All | Where-Object MacAddress -EQ ${mac}`,
  })
})

test('refuses the address while the VM that it comes from runs on the same network', async ({ host }) => {
  await make(host, 'db')
  const { stdout } = await host.ps`
    $null = New-VMSwitch -Name lan -NetAdapterName Ethernet
    [string](Get-NetAdapter | Where-Object Name -eq 'vEthernet (lan)').InterfaceIndex`
  const mac = '080027AABBCC'
  const options = { vm: 'web', switch: 'lan', mac }
  await host.change((state) =>
    state.neighbors.push({ address: '192.168.77.9', ifIndex: Number(stdout), mac })
  )
  const text = await host.text()
  await rejects(attachAdapter(options, host.ps), {
    message: `Cannot attach the adapter "lan" to "web": a computer with the MAC address ${mac} ` +
      'answers at 192.168.77.9 on the network of "lan", the VM perhaps that this one comes from. ' +
      'Shut that down, and run again after a minute',
  })
  equal(await host.text(), text)
  equal((await attachAdapter({ ...options, vm: 'db', switch: 'Other' }, host.ps)).changed, true)
  await host.change((state) => Object.assign(state, JSON.parse(text), { neighbors: [] }))

  // one that the host has not heard of, which this host's VirtualBox runs
  const id = '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61'
  const box = join(host.dir, 'VirtualBox')
  const says = async (attachment: string) => {
    const text = `#!/bin/sh\nif [ "$1" = list ]; then echo '"Bob’s {x}" {${id}}'; exit; fi\n` +
      `[ "$2" = ${id} ] && printf 'name="x"\\nnic2="${attachment}"\\nmacaddress2="${mac}"\\n'\n`
    await fs.outputFile(join(box, 'VBoxManage.exe'), text, { mode: 0o755 })
  }
  await host.ps`
    $box = ${box}
    $env:VBOX_MSI_INSTALL_PATH = $box`
  try {
    await says('bridged')
    await rejects(attachAdapter(options, host.ps), {
      message: `Cannot attach the adapter "lan" to "web": VirtualBox runs a VM with the MAC ` +
        `address ${mac}, bridged to a network. Run, and this again when it is off: ` +
        `VBoxManage controlvm ${id} acpipowerbutton`,
    })
    await says('nat')
    equal((await attachAdapter(options, host.ps)).changed, true)
  } finally {
    await host.ps`$env:VBOX_MSI_INSTALL_PATH = $null`
  }
})

test('refuses what is not there, and what is there twice', async ({ host }) => {
  await rejects(attachAdapter({ vm: 'none' }, host.ps), {
    message:
      'Cannot attach the adapter "Network Adapter" to "none": there is no such VM. Run: Get-VM',
  })
  await rejects(attachAdapter({ vm: 'web', switch: 'none' }, host.ps), {
    message:
      'Cannot attach the adapter "none" to "web": there is no switch "none". Run: Get-VMSwitch',
  })
  const twin = '11111111-2222-3333-4444-555555555555'
  await host.change(({ switches }) => {
    const other = switches.find(({ name }: { name: string }) => name === 'Other')
    switches.push({ ...other, id: twin, name: 'OTHER' })
  })
  await rejects(attachAdapter({ vm: 'web', switch: 'other' }, host.ps), (error: Error) => {
    match(
      error.message,
      /^Cannot attach the adapter "other" to "web": 2 switches are named "other", with the ids .+\. Run: Rename-VMSwitch$/,
    )
    return error.message.includes(twin)
  })
  await host.ps`
    Add-VMNetworkAdapter -VMName 'web' -Name 'lan'
    Add-VMNetworkAdapter -VMName 'web' -Name 'LAN'`
  await rejects(attachAdapter({ vm: 'web', name: 'lan' }, host.ps), {
    message: 'Cannot attach the adapter "lan" to "web": it has 2 adapters of that name. Run: ' +
      "Get-VMNetworkAdapter -VMName 'web' | Select-Object -First 1 | Rename-VMNetworkAdapter -NewName 'another name'",
  })
  await host.ps`foreach ($n in 1..6) { Add-VMNetworkAdapter -VMName 'web' -Name $n }`
  await rejects(attachAdapter({ vm: 'web', name: 'ninth' }, host.ps), {
    message:
      'Cannot attach the adapter "ninth" to "web": the VM has 8 adapters, and Hyper-V takes no ' +
      "more. Run: Get-VMNetworkAdapter -VMName 'web', and Remove-VMNetworkAdapter for one it can spare",
  })
  await make(host, 'WEB')
  await rejects(
    attachAdapter({ vm: 'web' }, host.ps),
    /^HostError: Cannot attach the adapter "Network Adapter" to "web": 2 VMs have that name, with the ids /,
  )
})

test('leaves no adapter behind when it cannot be connected', async ({ host }) => {
  const before = await host.state()
  await fault(host, 'Connect-VMNetworkAdapter')
  await rejects(attachAdapter({ vm: 'web', switch: 'Other' }, host.ps), { hresult: '0x80070490' })
  deepEqual({ ...await host.state(), faults: before.faults }, before)
})

test('gives the address back when the adapter cannot be connected', async ({ host }) => {
  await attachAdapter({ vm: 'web', name: 'lan', mac: '080027000001' }, host.ps)
  const before = await host.state()
  await fault(host, 'Connect-VMNetworkAdapter')
  const options = { vm: 'web', name: 'lan', switch: 'Other', mac: '080027000002' }
  await rejects(attachAdapter(options, host.ps), { hresult: '0x80070490' })
  deepEqual({ ...await host.state(), faults: before.faults }, before)
})

test('pain 13: gives a new adapter its VLAN and what it may do before it is connected', async ({ host }) => {
  const options = { vm: 'web', switch: 'Static-NAT', macSpoofing: true, dhcpGuard: false, vlan: 20 }
  const before = await host.state()
  const text = await host.text()
  const dry = await attachAdapter({ ...options, dryRun: true }, host.ps)
  equal(await host.text(), text)
  const calls = (await changing(host)).length
  const result = await attachAdapter(options, host.ps)
  deepEqual({ ...result, adapter: null }, dry)
  deepEqual([result.macSpoofing, result.dhcpGuard, result.vlan], [true, false, 20])
  deepEqual((await changing(host)).slice(calls), [
    'Add-VMNetworkAdapter',
    'Set-VMNetworkAdapter',
    'Set-VMNetworkAdapterVlan',
    'Connect-VMNetworkAdapter',
  ])
  deepEqual(await settings(host), { spoofing: 'On', dhcpGuard: 'Off', naming: 'Off', vlan: 20 })
  const now = await host.text()
  equal((await attachAdapter(options, host.ps)).changed, false)
  equal(await host.text(), now)
  await undoAttachAdapter(result, host.ps)
  deepEqual(await host.state(), before)
})

test('changes what an adapter may do while the VM runs, and puts it back', async ({ host }) => {
  await attachAdapter({ vm: 'web', name: 'lan', vlan: 10, dhcpGuard: true }, host.ps)
  await host.ps`Start-VM -Name 'web'`
  const options = { vm: 'web', name: 'lan', vlan: 0, dhcpGuard: false, deviceNaming: true }
  const result = await attachAdapter(options, host.ps)
  deepEqual([result.before?.vlan, result.before?.dhcpGuard, result.before?.deviceNaming], [
    10,
    true,
    false,
  ])
  deepEqual(await settings(host), { spoofing: 'Off', dhcpGuard: 'Off', naming: 'On', vlan: 0 })
  for (let times = 0; times < 2; times++) {
    await undoAttachAdapter(result, host.ps)
    deepEqual(await settings(host), { spoofing: 'Off', dhcpGuard: 'On', naming: 'Off', vlan: 10 })
  }
})

test('puts a trunk back', async ({ host }) => {
  await attachAdapter({ vm: 'web', name: 'lan' }, host.ps)
  await host.ps`
    Set-VMNetworkAdapterVlan -VMNetworkAdapter (Get-VMNetworkAdapter -VMName 'web') -Trunk -NativeVlanId 1 -AllowedVlanIdList '1-100'`
  const before = await host.state()
  const result = await attachAdapter({ vm: 'web', name: 'lan', vlan: 20 }, host.ps)
  deepEqual(result.before?.trunk, { native: 1, allowed: '1-100' })
  await undoAttachAdapter(result, host.ps)
  deepEqual(await host.state(), before)
})

test('puts VLAN and settings back when the adapter cannot be connected', async ({ host }) => {
  await attachAdapter({ vm: 'web', name: 'lan', vlan: 10 }, host.ps)
  const before = await host.state()
  await fault(host, 'Connect-VMNetworkAdapter')
  const options = { vm: 'web', name: 'lan', switch: 'Other', vlan: 20, macSpoofing: true }
  await rejects(attachAdapter(options, host.ps), { hresult: '0x80070490' })
  deepEqual({ ...await host.state(), faults: before.faults }, before)
})

test('refuses a VLAN that no network has before the host is asked', async ({ host }) => {
  const calls = await host.calls()
  for (const vlan of [-1, 4095, 1.5, NaN]) {
    await rejects(attachAdapter({ vm: 'web', name: 'lan', vlan }, host.ps), {
      message:
        `Cannot put the adapter "lan" into the VLAN ${vlan}: it is 1 to 4094, or 0 for none. ` +
        'Run again with for example: --vlan 20',
    })
  }
  deepEqual(await host.calls(), calls)
})

test('refuses an address that no adapter can have before the host is asked', async ({ host }) => {
  const calls = await host.calls()
  const cannot = 'Cannot give the adapter "lan" the MAC address'
  for (
    const mac of ['', '08:00:27:aa:bb', '08:00-27:aa:bb:cc', '080027AABBCG', '08 00 27 aa bb cc']
  ) {
    await rejects(attachAdapter({ vm: 'web', name: 'lan', mac }, host.ps), {
      message:
        `${cannot} "${mac}": it is not 12 hexadecimal digits. Run again with --mac 08-00-27-AA-BB-CC`,
    })
  }
  await rejects(attachAdapter({ vm: 'web', name: 'lan', mac: '00-00-00-00-00-00' }, host.ps), {
    message:
      `${cannot} "00-00-00-00-00-00": it is no address. Run again without --mac, and Hyper-V chooses one`,
  })
  await rejects(attachAdapter({ vm: 'web', name: 'lan', mac: 'FF:FF:FF:FF:FF:FF' }, host.ps), {
    message:
      `${cannot} "FF:FF:FF:FF:FF:FF": it stands for many adapters (its first byte is odd). ` +
      'Run again with the address of one',
  })
  await rejects(attachAdapter({ vm: 'web', name: 'a\u0000' }, host.ps), {
    message: 'Cannot use "a\\u0000" as the name of the adapter: it is 1 to 256 characters and no ' +
      'control characters. Run: Get-VMNetworkAdapter -All',
  })
  deepEqual(await host.calls(), calls)
})

test('takes a name for what it is, not for a pattern or code', async ({ host }) => {
  for (const name of ['Bob’s "VM"; $(calc) 桥接', '[a*]']) {
    await make(host, name)
    await host.ps`
      $name = ${name}
      $null = New-VMSwitch -Name $name -SwitchType Private
      $null = New-VMSwitch -Name 'a' -SwitchType Private`
    const { vm, name: adapter, switch: connected } = await attachAdapter(
      { vm: name, switch: name },
      host.ps,
    )
    deepEqual([vm, adapter, connected], [name, name, name])
    equal((await adapters(host)).find((one) => one.name === name)?.switch, name)
    await host.ps`Remove-VMSwitch -Name 'a' -Force`
  }
})

test('runs as a command', async ({ host }) => {
  const words = ['--vm', 'web', '--switch', 'Static-NAT', '--mac', '080027000007']
  const { code, stdout, stderr } = await runTask(host, 'attach-adapter', ...words)
  equal(stderr, '')
  equal(code, 0)
  equal(JSON.parse(stdout).mac, '080027000007')
  const failed = await runTask(host, 'attach-adapter', '--vm', 'web', '--mac', '1')
  deepEqual([failed.code, failed.stdout], [1, ''])
  match(failed.stderr, /^Cannot give the adapter "Network Adapter" the MAC address "1": .+\n$/)
})

/** Makes a VM without adapters. */
async function make(host: SimulatedHost, name: string, generation = 2): Promise<void> {
  await host.ps`
    $name = ${name}
    $generation = ${generation}
    $vm = New-VM -Name $name -Generation $generation -NoVHD -MemoryStartupBytes 1GB
    Get-VMNetworkAdapter -VM $vm | Remove-VMNetworkAdapter`
}

/** What the VM's only adapter may do, and its VLAN. */
async function settings(host: SimulatedHost): Promise<unknown> {
  const [{ spoofing, dhcpGuard, naming, vlan }] = (await host.state()).vms[0].nics
  return { spoofing, dhcpGuard, naming, vlan: vlan?.access ?? 0 }
}

interface Adapter {
  id: string
  vmId: string
  name: string
  switch: string
  mac: string
  dynamic: boolean
}

/** The adapters of all VMs, not of the host. */
async function adapters(host: SimulatedHost): Promise<Adapter[]> {
  const { stdout } = await host.ps`
    $all = @(Get-VM | Get-VMNetworkAdapter | ForEach-Object {
      [ordered]@{
        id = [string]$_.Id; vmId = [string]$_.VMId; name = $_.Name; switch = [string]$_.SwitchName
        mac = $_.MacAddress; dynamic = $_.DynamicMacAddressEnabled
      }
    })
    ConvertTo-Json -InputObject $all -Compress`
  return JSON.parse(stdout)
}

async function fault(host: SimulatedHost, cmdlet: string): Promise<void> {
  const error = { id: 'OperationFailed', message: 'Element not found', hresult: 0x80070490 }
  await host.change((state) => state.faults = [{ cmdlet, error }])
}

/** The state as text, without the address that Hyper-V chooses. */
function withoutMac(state: unknown): string {
  return JSON.stringify(state, (key, value) => /mac/i.test(key) ? undefined : value)
}

/** The calls so far that change something. */
async function changing(host: SimulatedHost): Promise<string[]> {
  return (await host.calls()).map(({ cmdlet }) => cmdlet).filter((name) =>
    !/^(Get|Test)-/.test(name)
  )
}

attaching.run()
