import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import { suite } from 'uvu'
import { setHardware, undoSetHardware } from '../../tasks/set-hardware.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const NAME = 'Bob’s "VM"; $(calc) 桥接 [a*]'
const UUID = '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61'
const PIPE = '\\\\.\\pipe\\Bob’s "VM" $(calc)-com1'

const hardware = suite<{ host: SimulatedHost; seed: object }>('setHardware')
const test = needs(hardware, 'pwsh')

hardware.before(async (context) => {
  const host = context.host = await simulatedHost()
  await host.ps`
    $name = ${NAME}
    $null = New-VM -Name $name -Generation 2 -NoVHD
    $null = New-VM -Name 'old' -Generation 1 -NoVHD`
  context.seed = { faults: [], guests: {}, ...await host.state() }
})
hardware.before.each(({ host, seed }) => host.change((state) => Object.assign(state, seed)))
hardware.after(({ host }) => host.close())

const own = async (host: SimulatedHost) =>
  (await host.state()).vms.find(({ name }: { name: string }) => name === NAME)

test('pain 12, 24, 25: carries the BIOS UUID, a TPM, serial ports, DVD drives and the clock, once', async ({ host }) => {
  const iso = join(host.dir, 'it’s [1].iso')
  await fs.writeFile(iso, '')
  const options = {
    vm: NAME.toUpperCase(),
    uuid: UUID.toUpperCase(),
    tpm: true,
    serial: [PIPE],
    dvd: ['', iso],
    timeSync: false,
    startAction: 'start' as const,
    startDelay: 30,
    stopAction: 'shut-down' as const,
  }
  const before = await host.text()
  const dry = await setHardware({ ...options, dryRun: true }, host.ps)
  equal(await host.text(), before)
  const result = await setHardware(options, host.ps)
  deepEqual(dry, result)
  const { id, vm, before: was, ...now } = result
  deepEqual({ vm, id: /^[0-9a-f-]{36}$/.test(id) }, { vm: NAME, id: true })
  deepEqual(now, {
    changed: true,
    uuid: UUID,
    tpm: true,
    serial: [PIPE, ''],
    dvd: ['', iso],
    timeSync: false,
    startAction: 'Start',
    startDelay: 30,
    stopAction: 'ShutDown',
  })
  deepEqual(was, {
    uuid: id,
    tpm: false,
    serial: ['', ''],
    dvd: [],
    timeSync: true,
    startAction: 'StartIfRunning',
    startDelay: 0,
    stopAction: 'Save',
  })
  equal((await own(host)).biosGuid, `{${UUID.toUpperCase()}}`)
  const after = await host.text()
  equal((await setHardware(options, host.ps)).changed, false)
  equal(await host.text(), after)
})

test('puts back what it changed, once and again, and nothing of a VM that is gone', async ({ host }) => {
  const first = await own(host)
  const result = await setHardware(
    { vm: NAME, uuid: UUID, tpm: true, serial: [PIPE, PIPE + '2'], dvd: [''], timeSync: false },
    host.ps,
  )
  await undoSetHardware(result, host.ps)
  // a key protector does no harm, and another TPM may need it
  deepEqual(await own(host), { ...first, protector: true })
  await undoSetHardware(result, host.ps)
  await host.ps`Get-VM | Remove-VM -Force`
  await undoSetHardware(result, host.ps)
})

test('sets nothing that is not asked for, also while the VM runs', async ({ host }) => {
  const { uuid } = await setHardware({ vm: NAME }, host.ps)
  await host.ps`Get-VM | Start-VM`
  const before = await host.text()
  equal((await setHardware({ vm: NAME, uuid, timeSync: true }, host.ps)).changed, false)
  equal(await host.text(), before)
  await rejects(setHardware({ vm: NAME, uuid: UUID, timeSync: false }, host.ps), {
    message:
      /it is Running, and uuid, timeSync change only while it is off\. Run: Stop-VM -Name 'Bob’’s/,
  })
  equal(await host.text(), before)
})

test('leaves the VM as it was where Hyper-V does not take the UUID, or does as if', async ({ host }) => {
  const before = await own(host)
  for (
    const [levers, code] of [[{ uuidFails: 32773 }, 32773], [{ uuidIgnored: true }, 0]] as const
  ) {
    await host.change((state) => state.guests = { '*': levers })
    await rejects(setHardware({ vm: NAME, uuid: UUID, timeSync: false }, host.ps), {
      message:
        `Cannot set the hardware of "${NAME}": Hyper-V does not take the UUID ${UUID} (${code}). ` +
        'Run again without --uuid, and have Windows activated anew',
    })
    deepEqual(await own(host), before)
  }
  await host.change((state) => {
    state.guests = {}
    state.faults = [{
      cmdlet: 'Enable-VMTPM',
      when: 'before',
      error: { id: 'OperationFailed', message: 'no', hresult: -2147467259 },
    }]
  })
  await rejects(setHardware({ vm: NAME, uuid: UUID, tpm: true }, host.ps), { message: /no/ })
  deepEqual(await own(host), { ...before, protector: true })
})

test('refuses what generation 1 has not, and what is not there', async ({ host }) => {
  await rejects(
    setHardware({ vm: 'old', tpm: true }, host.ps),
    /it is of generation 1, which has no TPM/,
  )
  await rejects(
    setHardware({ vm: 'old', dvd: ['', ''] }, host.ps),
    /generation 1 has 1 DVD drive, and 2 are/,
  )
  equal((await setHardware({ vm: 'old', dvd: [''], uuid: UUID }, host.ps)).tpm, null)
  await rejects(setHardware({ vm: 'none' }, host.ps), {
    message: 'Cannot set the hardware of "none": there is no such VM. Run: Get-VM',
  })
  await rejects(
    setHardware({ vm: NAME, dvd: [join(host.dir, 'none.iso')] }, host.ps),
    /there is no image "/,
  )
})

test('refuses what it cannot take before it asks the host', async ({ host }) => {
  const refused = (options: object, reason: RegExp) =>
    rejects(setHardware({ vm: 'a', ...options }, host.ps), reason)
  for (const uuid of ['', 'x', `{${UUID}}`, `${UUID}'; calc`]) await refused({ uuid }, /is no UUID/)
  for (const pipe of ['COM1', '\\\\.\\pipe\\', '\\\\.\\pipe\\a\nb', '/tmp/x']) {
    await refused({ serial: [pipe] }, /is no named pipe/)
  }
  await refused({ serial: ['', '', ''] }, /two --serial at most/)
  await refused({ vm: 'a\n' }, /1 to 100 characters/)
  await refused({ startAction: 'x' }, /is no start action/)
  await refused({ stopAction: 'x' }, /is no stop action/)
})

test('is a command', async ({ host }) => {
  const { code, stdout, stderr } = await runTask(
    host,
    'set-hardware',
    '--vm',
    NAME,
    '--uuid',
    UUID,
    '--no-time-sync',
  )
  equal(code, 0, stderr)
  deepEqual([JSON.parse(stdout).uuid, JSON.parse(stdout).timeSync], [UUID, false])
  const wrong = await runTask(host, 'set-hardware', '--vm', NAME, '--uuid', 'x')
  deepEqual([wrong.code, wrong.stdout], [1, ''])
  match(wrong.stderr, /"x" is no UUID/)
})

hardware.run()
