import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { suite } from 'uvu'
import { enableNested, undoEnableNested } from '../../tasks/enable-nested.ts'
import type { PowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const nesting = suite<{ host: SimulatedHost; seed: object }>('enableNested')
const test = needs(nesting, 'pwsh')

nesting.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = { faults: [], ...await context.host.state() }
})
nesting.before.each(async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, seed))
})
nesting.after(({ host }) => host.close())

test('exposes the extensions, fixes the memory and lets the inner VMs send', async ({ host }) => {
  await make(host, 'web')
  const result = await enableNested({ vm: 'WEB' }, host.ps)
  equal(result.changed, true)
  equal(result.vm, 'web')
  deepEqual({ ...result.before, unspoofed: result.before?.unspoofed.length }, {
    nested: false,
    dynamicMemory: true,
    unspoofed: 1,
  })
  deepEqual(await look(host, 'web'), { nested: true, dynamic: false, spoofing: ['On'] })
})

test('pain 21: says what the inner network needs, and that 4 GB of memory are wanted', async ({ host }) => {
  await make(host, 'web')
  const { notes } = await enableNested({ vm: 'web' }, host.ps)
  match(notes.join('\n'), /takes several MAC addresses .+ give it a NAT inside/)
  match(notes.join('\n'), /MB of memory, and with VMs inside it wants 4 GB .+ -StartupBytes 4GB/)
  await host.ps`Set-VMMemory -VMName 'web' -StartupBytes 4GB`
  equal((await enableNested({ vm: 'web' }, host.ps)).notes.length, 1)
})

test('does nothing to a VM that has it', async ({ host }) => {
  await make(host, 'web')
  const { id, notes } = await enableNested({ vm: 'web' }, host.ps)
  const before = await host.text()
  const calls = await changing(host)
  deepEqual(await enableNested({ vm: 'web' }, host.ps), { changed: false, id, vm: 'web', notes })
  equal(await host.text(), before)
  deepEqual(await changing(host), calls)
})

test('does nothing to a running VM that has it', async ({ host }) => {
  await make(host, 'web')
  await enableNested({ vm: 'web' }, host.ps)
  await host.ps`Start-VM -Name 'web'`
  equal((await enableNested({ vm: 'web' }, host.ps)).changed, false)
})

test('changes nothing on a dry run', async ({ host }) => {
  await make(host, 'web')
  const before = await host.text()
  const dry = await enableNested({ vm: 'web', dryRun: true }, host.ps)
  equal(await host.text(), before)
  deepEqual(await enableNested({ vm: 'web' }, host.ps), dry)
})

test('is taken back to the state it found, once and again', async ({ host }) => {
  await make(host, 'web')
  const before = await host.state()
  const result = await enableNested({ vm: 'web' }, host.ps)
  await undoEnableNested(result, host.ps)
  deepEqual(await host.state(), before)
  const calls = await changing(host)
  await undoEnableNested(result, host.ps)
  deepEqual(await changing(host), calls)
  await host.ps`Remove-VM -Name 'web' -Force`
  await undoEnableNested(result, host.ps)
})

test('leaves as it was what it did not change', async ({ host }) => {
  await make(host, 'web')
  await host.ps`Set-VMMemory -VMName 'web' -DynamicMemoryEnabled $false
    Set-VMNetworkAdapter -VMName 'web' -MacAddressSpoofing On`
  const before = await host.state()
  const result = await enableNested({ vm: 'web' }, host.ps)
  deepEqual(result.before, { nested: false, dynamicMemory: false, unspoofed: [] })
  await undoEnableNested(result, host.ps)
  deepEqual(await host.state(), before)
})

test('refuses a VM that runs, and one that is saved', async ({ host }) => {
  await make(host, 'it’s')
  await host.ps`Start-VM -Name 'it*'`
  const before = await host.text()
  await rejects(enableNested({ vm: 'it’s' }, host.ps), {
    message:
      'Cannot enable nesting for "it’s": it is Running, and only a VM that is off takes it. ' +
      "Run: Stop-VM -Name 'it’’s'",
  })
  equal(await host.text(), before)
  await host.ps`Save-VM -Name 'it*'`
  await rejects(enableNested({ vm: 'it’s' }, host.ps), {
    message:
      'Cannot enable nesting for "it’s": it is saved, and a saved VM keeps the processor it was ' +
      "saved with. Run: Start-VM -Name 'it’’s', shut the guest down, and run again",
  })
})

test('is not taken back while the VM runs', async ({ host }) => {
  await make(host, 'web')
  const result = await enableNested({ vm: 'web' }, host.ps)
  await host.ps`Start-VM -Name 'web'`
  await rejects(undoEnableNested(result, host.ps), {
    message:
      'Cannot take nesting from "web": it is Running, and only a VM that is off gives it back. ' +
      "Run: Stop-VM -Name 'web'",
  })
})

test('pain 21: refuses a host whose Windows is too old, which on AMD is a newer one', async ({ host }) => {
  await make(host, 'web')
  await host.change((state) => state.host.build = 19045)
  await host.ps`$env:PROCESSOR_IDENTIFIER = 'AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD'`
  const before = await host.text()
  await rejects(enableNested({ vm: 'web' }, host.ps), {
    message:
      'Cannot enable nesting for "web": the host is build 19045 of Windows, and on this processor it takes ' +
      'Windows 11 and Windows Server 2022 or later. Update the host, or run its hypervisors on another. See: winver',
  })
  equal(await host.text(), before)
  await host.ps`$env:PROCESSOR_IDENTIFIER = 'Intel64 Family 6 Model 158 Stepping 10, GenuineIntel'`
  equal((await enableNested({ vm: 'web' }, host.ps)).changed, true)
})

test('pain 21: refuses a VM of too old a version, which on AMD is a newer one', async ({ host }) => {
  await make(host, 'web')
  await host.change((state) => state.vms[0].version = '5.0')
  const message = (has: string, least: string, hosts: string) =>
    `Cannot enable nesting for "web": its configuration version is ${has}, and on this processor it ` +
    `takes ${least}, which hosts from ${hosts} on have. Run there: Update-VMVersion -Name 'web' ` +
    '-Force, which cannot be taken back'
  await rejects(enableNested({ vm: 'web' }, host.ps), {
    message: message('5.0', '8.0', 'Windows 10 and Windows Server 2016'),
  })
  await host.change((state) => state.vms[0].version = '9.0')
  await host.ps`$env:PROCESSOR_IDENTIFIER = 'AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD'`
  const before = await host.text()
  await rejects(enableNested({ vm: 'web' }, host.ps), {
    message: message('9.0', '9.3', 'Windows 11 and Windows Server 2022'),
  })
  equal(await host.text(), before)
  await host.ps`$env:PROCESSOR_IDENTIFIER = 'Intel64 Family 6 Model 158 Stepping 10, GenuineIntel'`
  equal((await enableNested({ vm: 'web' }, host.ps)).changed, true)
})

test('leaves the VM as it was when a change fails or does not stay', async ({ host }) => {
  await make(host, 'web')
  for (const cmdlet of ['Set-VMProcessor', 'Set-VMNetworkAdapter']) {
    const before = (await host.state()).vms
    await host.change((state) => {
      const error = { id: 'OperationFailed', message: 'It failed.', hresult: 0x80004005 }
      state.faults = [{ cmdlet, nth: 1, error }]
    })
    await rejects(enableNested({ vm: 'web' }, host.ps), { hresult: '0x80004005' })
    deepEqual((await host.state()).vms, before)
  }
  const fallsBack: PowerShell = (pieces, ...values) => {
    const [first = '', ...rest] = pieces
    return host.ps(Object.assign([stub + first, ...rest], { raw: pieces.raw }), ...values)
  }
  const before = (await host.state()).vms
  await rejects(enableNested({ vm: 'web' }, fallsBack), {
    message:
      'Cannot enable nesting for "web": the setting did not stay, so the processor or Windows ' +
      'does not take it. Run: systeminfo',
  })
  deepEqual((await host.state()).vms, before)
})

test('refuses a name that no VM or several have', async ({ host }) => {
  await rejects(enableNested({ vm: 'none' }, host.ps), {
    message: 'Cannot enable nesting for "none": there is no such VM. Run: Get-VM',
  })
  const ids = [await make(host, 'web'), await make(host, 'Web')]
  await rejects(enableNested({ vm: 'web' }, host.ps), (error: Error) => {
    match(error.message, /^Cannot enable nesting for "web": 2 VMs have that name, with the ids /)
    return ids.every((id) => error.message.includes(id))
  })
})

test('refuses a name that cannot be one before the host is asked', async ({ host }) => {
  const calls = await host.calls()
  for (const vm of ['', ' ', 'a\nb', 'a'.repeat(101)]) {
    await rejects(enableNested({ vm }, host.ps), {
      message: `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    })
  }
  deepEqual(await host.calls(), calls)
})

test('takes a name for what it is, not for a pattern or code', async ({ host }) => {
  for (const vm of ['Bob’s "VM"; $(calc) 桥接', '[a*]']) {
    await make(host, 'a')
    const before = await look(host, 'a')
    await make(host, vm)
    equal((await enableNested({ vm }, host.ps)).vm, vm)
    equal((await look(host, vm)).nested, true)
    deepEqual(await look(host, 'a'), before)
    await host.ps`Get-VM | Remove-VM -Force`
  }
})

test('runs as a command', async ({ host }) => {
  await make(host, 'web')
  const { code, stdout, stderr } = await runTask(host, 'enable-nested', '--vm', 'web')
  equal(stderr, '')
  equal(code, 0)
  equal(JSON.parse(stdout).changed, true)
  const failed = await runTask(host, 'enable-nested', '--vm', 'a\nb')
  deepEqual([failed.code, failed.stdout], [1, ''])
  match(failed.stderr, /^Cannot look for a VM named "a\\nb": .+ Run: Get-VM\n$/)
})

/** A host where the cmdlet succeeds and the flag stays off. */
const stub = `
    function Set-VMProcessor { $null = $args }`

/** Makes a VM with one adapter and dynamic memory. Gives its id. */
async function make(host: SimulatedHost, name: string): Promise<string> {
  const { stdout } = await host.ps`
    $name = ${name}
    $vm = New-VM -Name $name -Generation 2 -NoVHD -MemoryStartupBytes 1GB
    Set-VMMemory -VM $vm -DynamicMemoryEnabled $true
    [string]$vm.Id`
  return stdout
}

async function look(host: SimulatedHost, name: string) {
  const { stdout } = await host.ps`
    $name = ${name}
    $vm = Get-VM | Where-Object Name -CEQ $name
    ConvertTo-Json -Compress @{
      nested = (Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions
      dynamic = (Get-VMMemory -VM $vm).DynamicMemoryEnabled
      spoofing = @(Get-VMNetworkAdapter -VM $vm | ForEach-Object { [string]$_.MacAddressSpoofing })
    }`
  return JSON.parse(stdout)
}

/** The calls so far that change something. */
async function changing(host: SimulatedHost): Promise<string[]> {
  return (await host.calls()).map(({ cmdlet }) => cmdlet).filter((name) =>
    !/^(Get|Test)-/.test(name)
  )
}

nesting.run()
