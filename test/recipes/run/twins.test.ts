import fs from 'fs-extra'
import { deepEqual } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import type { Plan } from '../../../recipes/run/plan.ts'
import { refuseTwins } from '../../../recipes/run/twins.ts'
import { runningVms } from '../../../tasks/inspect-vm.ts'

const twins = suite('refuseTwins')

/** A plan with an adapter on an external and one on an internal switch. */
const plan = {
  name: 'web',
  steps: [
    { task: 'create-switch', options: { switch: '桥接', type: 'external' } },
    { task: 'create-switch', options: { switch: 'Static-NAT', type: 'internal' } },
    { task: 'attach-adapter', options: { vm: 'web', switch: '桥接', mac: '080027000001' } },
    { task: 'attach-adapter', options: { vm: 'web', switch: 'Static-NAT', mac: '080027000002' } },
  ],
} as Plan

const runs = (mac: string, attachment: string) => () =>
  Promise.resolve([{ name: 'Win10', nics: [{ mac, attachment }] }])

twins('names the VM in VirtualBox that has the address on the same network', async () => {
  deepEqual(await refuseTwins(plan, runs('080027000001', 'bridged')), [
    'Cannot run "web" with the MAC address 080027000001: the VM "Win10" runs in VirtualBox with it, ' +
    'bridged to the same network, and each would take the other’s frames. ' +
    'Run: VBoxManage controlvm "Win10" acpipowerbutton',
  ])
})

twins('lets be what is on another network, or has another address', async () => {
  for (
    const [mac, attachment] of [
      ['080027000001', 'nat'],
      ['080027000001', 'hostonly'],
      ['080027000002', 'bridged'],
      ['080027000003', 'bridged'],
    ] as const
  ) deepEqual(await refuseTwins(plan, runs(mac, attachment)), [])
})

const unix = process.platform === 'win32' ? twins.skip : twins
unix('reads from VBoxManage which VMs run, with which adapters', async () => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'twins-'))
  const before = process.env.VBOXMANAGE
  try {
    const program = join(dir, 'VBoxManage')
    // what VirtualBox 7 prints
    await fs.writeFile(
      program,
      `#!/bin/sh
case "$1 $2" in
  'list runningvms') echo '"Win 10" {11111111-2222-3333-4444-555555555555}' ;;
  'showvminfo --machinereadable') printf '%s\\n' 'name="Win 10"' 'bridgeadapter1="wlan0"' \\
    'macaddress1="080027000001"' 'nic1="bridged"' 'macaddress2="080027000002"' 'nic2="hostonly"' 'nic3="none"' ;;
  *) exit 1 ;;
esac
`,
      { mode: 0o755 },
    )
    process.env.VBOXMANAGE = program
    deepEqual(await runningVms(), [{
      name: 'Win 10',
      nics: [
        { mac: '080027000001', attachment: 'bridged' },
        { mac: '080027000002', attachment: 'hostonly' },
      ],
    }])
  } finally {
    if (before === undefined) delete process.env.VBOXMANAGE
    else process.env.VBOXMANAGE = before
    await fs.remove(dir)
  }
})

twins.run()
