/** MAC addresses that a VM of VirtualBox uses now, on the network that the VM on Hyper-V would be on. */
import { runningVms } from '../../tasks/inspect-vm.ts'
import type { Plan } from './plan.ts'

/**
 * Why the VM may not run now: one of VirtualBox's, such as its source, runs bridged with the address of
 * an adapter that goes to the external switch. Host-only and internal networks of VirtualBox are others
 * than Hyper-V's, and behind NAT an address is nobody's to see.
 */
export async function refuseTwins({ name, steps }: Plan, running = runningVms): Promise<string[]> {
  const external = steps.flatMap((step) =>
    step.task === 'create-switch' && step.options.type === 'external' ? [step.options.switch] : []
  )
  const wanted = steps.flatMap((step) =>
    step.task === 'attach-adapter' && step.options.mac &&
      external.includes(`${step.options.switch}`)
      ? [step.options.mac.replace(/[^\da-f]/gi, '').toUpperCase()]
      : []
  )
  if (wanted.length === 0) return []
  return (await running()).flatMap((vm) =>
    vm.nics.filter(({ mac, attachment }) => attachment === 'bridged' && wanted.includes(mac)).map((
      { mac },
    ) =>
      `Cannot run "${name}" with the MAC address ${mac}: the VM "${vm.name}" runs in VirtualBox with it, ` +
      'bridged to the same network, and each would take the other’s frames. ' +
      `Run: VBoxManage controlvm "${vm.name}" acpipowerbutton`
    )
  )
}
