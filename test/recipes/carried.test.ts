import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { undo } from '../../recipes/undo.ts'
import { needs } from '../needs.ts'
import {
  comparable,
  lent,
  quickGuests,
  type SimulatedHost,
  simulatedHost,
} from '../simulated-host.ts'

const NAME = 'Bob’s "VM" 桥接'
const UUID = '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61'
const MACS = ['080027000001', '080027000002']

const carrying = suite<{ host: SimulatedHost; was: NodeJS.ProcessEnv }>(
  'migrate of a VM that VirtualBox made',
)
const test = needs(carrying, 'pwsh', 'VBoxManage')

carrying.before(async (context) => {
  const host = context.host = await simulatedHost()
  await host.change(quickGuests)
  context.was = { ...process.env }
  process.env.VBOX_USER_HOME = join(host.dir, 'home')
})
carrying.after(async ({ host, was }: { host?: SimulatedHost; was?: NodeJS.ProcessEnv }) => {
  if (was && !('VBOX_USER_HOME' in was)) delete process.env.VBOX_USER_HOME
  else if (was) process.env.VBOX_USER_HOME = was.VBOX_USER_HOME
  await host?.close()
})

test('pain 12, 24, 25: brings along all that its guest knows, and is taken back', async ({ host }) => {
  await makeVm(host.dir)
  const before = await host.state()
  const { outcome, events } = await run(host)
  equal(outcome, 'done')
  const { vms: [vm], mappings } = await host.state()
  equal(vm.name, NAME)
  equal(vm.generation, 2)
  equal(vm.biosGuid, `{${UUID.toUpperCase()}}`)
  equal(vm.tpm, true)
  deepEqual([vm.processors.count, vm.memory.startup], [3, 1026 * 1024 ** 2])
  const [com1, com2] = vm.ports
  deepEqual([com1.path, com2.path], ['\\\\.\\pipe\\Bob_s _VM_ 桥接-com1', ''])
  const drives = vm.drives.map(({ kind, type, path }: Record<string, string>) => [kind, type, path])
  const disk = join(host.dir, 'disks', 'Bob_s _VM_ 桥接.vhdx')
  deepEqual(drives, [['disk', 'SCSI', disk], ['dvd', 'SCSI', ''], ['dvd', 'SCSI', '']])
  const isClock = ({ id }: { id: string }) => id === 'Time-Synchronization'
  equal(vm.services.find(isClock).enabled, true)
  deepEqual([vm.startAction, vm.startDelay, vm.stopAction], ['Start', 30, 'ShutDown'])
  deepEqual(vm.nics.map(({ mac }: { mac: string }) => mac), MACS)
  deepEqual(mappings, [
    {
      id: 1,
      nat: 'Static-NAT',
      protocol: 'TCP',
      port: 33890,
      guest: '192.168.56.191',
      guestPort: 3389,
    },
  ])
  const plan = events.find((event) => event.event === 'plan')
  ok(plan?.event === 'plan')
  const notes = plan.plan.notes.join('\n')
  match(notes, /^What its TPM holds does not come along/m)
  match(notes, /^".+tools\.iso" in its drive does not come along/m)
  match(notes, /^The port forward "ssh" \(tcp 127\.0\.0\.1:2222\) was for the host alone/m)
  match(notes, /^Windows in it takes its hardware clock for UTC, /m)
  const text = await host.text()
  equal((await run(host)).outcome, 'same')
  equal(await host.text(), text)

  // it has run for ten minutes, and says nothing
  await host.change((state) => {
    state.vms[0].started -= 600 * 1e7
    state.guests = { '*': { integration: false, screen: 'text' } }
  })
  const pictures: Uint8Array[] = []
  const silent = await run(host, { guestIp: undefined }, (one) => pictures.push(one))
  const end = silent.events.at(-1)
  ok(end?.event === 'end')
  const said = end.next.join('\n')
  match(said, /^The guest has given no heartbeat in the \d+ s since the VM was started\.$/m)
  const file = join(host.dir, 'state', 'Bob_s _VM_ 桥接-screen.png')
  ok(said.includes(`Its screen: "${file}".`), said)
  deepEqual(pictures.map((one) => Buffer.from(one)), [await fs.readFile(file)])
  match(said, / - INACCESSIBLE_BOOT_DEVICE \(0x7B\)\n.+stop-0x7b\)\n {3}Stop-VM -Name 'Bob’’s/)
  ok(!said.includes('dracut'), 'it is known to be Windows')
  await host.change(quickGuests)

  await undo(
    { run: 'last', state: join(host.dir, 'state') },
    { screen: () => {}, host: () => lent(host) },
  )
  const after = await host.state()
  for (const part of ['vms', 'switches', 'nats', 'addresses', 'adapters']) {
    deepEqual(comparable(after[part]), comparable(before[part]), part)
  }
  deepEqual(after.mappings ?? [], [])
})

carrying.run()

/** As someone makes a VM in VirtualBox, with all that the kit has to carry over. */
async function makeVm(dir: string): Promise<void> {
  const { vdi } = await demo('uefi', dir)
  const vbox = (...args: string[]) =>
    promisify(execFile)('VBoxManage', args, { env: { ...process.env, LC_ALL: 'C.UTF-8' } })
  const iso = join(dir, 'tools.iso')
  await fs.writeFile(iso, Buffer.alloc(64 * 1024))
  await fs.ensureDir(join(dir, 'autostart'))
  await vbox('setproperty', 'autostartdbpath', join(dir, 'autostart'))
  const made = ['--ostype', 'Windows11_64', '--register', '--basefolder', join(dir, 'vms')]
  await vbox('createvm', '--name', NAME, ...made)
  await vbox(
    ...['modifyvm', NAME, '--firmware', 'efi', '--cpus', '3', '--memory', '1025'],
    ...['--hardware-uuid', UUID, '--rtc-use-utc', 'on', '--tpm-type', '2.0'],
    ...['--uart1', '0x3F8', '4', '--uart-mode1', 'server', join(dir, 'com1')],
    ...['--nic1', 'nat', '--mac-address1', MACS[0] as string],
    ...['--natpf1', 'rdp,tcp,,33890,,3389', '--natpf1', 'ssh,tcp,127.0.0.1,2222,,22'],
    ...['--nic2', 'intnet', '--mac-address2', MACS[1] as string],
    ...['--autostart-enabled', 'on', '--autostart-delay', '30'],
  )
  await vbox('modifyvm', NAME, '--autostop-type', 'acpishutdown')
  await vbox('storagectl', NAME, '--name', 'SATA', '--add', 'sata', '--portcount', '4')
  const attach = (port: number, type: string, medium: string) =>
    vbox(
      ...['storageattach', NAME, '--storagectl', 'SATA', '--port', `${port}`],
      ...['--type', type, '--medium', medium],
    )
  await attach(0, 'hdd', vdi)
  await attach(1, 'dvddrive', iso)
  await attach(2, 'dvddrive', 'emptydrive')
}

async function run(
  host: SimulatedHost,
  options: MigrateOptions = {},
  show = (_: Uint8Array): unknown => undefined,
) {
  const events: RunEvent[] = []
  const outcome = await migrate({
    source: [NAME],
    to: 'local',
    storage: join(host.dir, 'disks'),
    state: join(host.dir, 'state'),
    internal: 'Static-NAT',
    hostIp: '192.168.56.1/24',
    nat: true,
    guestIp: '192.168.56.191',
    ...options,
  }, {
    screen: (event) => events.push(event),
    show: (picture) => Promise.resolve(show(picture)),
    host: () => lent(host),
  })
  return { outcome, events }
}
