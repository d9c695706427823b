/** Has the guest of a VM that VirtualBox runs made ready and shut down, before the plan is made of its disks. */
import type { VmDescription } from '../../tasks/inspect-vm.ts'
import { prepareGuest, type PrepareGuestResult } from '../../tasks/prepare-guest.ts'
import type { GuestCredential } from '../../tasks/set-guest-ip.ts'
import type { Screen } from './screen.ts'

export interface PrepareOptions {
  /** The way into the guest: `guestcontrol`, or `ssh://[user@]host[:port]`. */
  prepare: string
  suspendBitlocker?: boolean | undefined
  dryRun?: boolean | undefined
}

export interface PrepareTools {
  screen: Screen
  credential?: GuestCredential | undefined
  /** Asks before the guest is changed. @default goes on */
  agree?: ((question: string) => Promise<boolean>) | undefined
}

/**
 * `off`: the guest is off, so its disks are at rest. What it changed the guest keeps, and takes back by
 * `npx zx tasks/prepare-guest.ts --undo`; in VirtualBox it starts with it as before.
 *
 * Rejects when the guest would not start on Hyper-V, and leaves it running then.
 */
export async function prepareSource(
  vm: VmDescription,
  { prepare: via, suspendBitlocker, dryRun = false }: PrepareOptions,
  { screen, credential, agree }: PrepareTools,
): Promise<'off' | 'declined' | 'dry-run'> {
  const note = (text: string) => screen({ event: 'note', text })
  if (vm.kind !== 'virtualbox') {
    throw new Error(
      `Cannot prepare the guest of "${vm.name}": only VirtualBox can run it for that, and a file is named. ` +
        'Name the VM as VirtualBox does (VBoxManage list vms), or run again without --prepare',
    )
  }
  if (vm.state !== 'running') {
    note(`"${vm.name}" is not running, so nothing is made ready in it. What was, stays so.`)
    return 'off'
  }
  if (credential && 'target' in credential) {
    throw new Error(
      `Cannot prepare the guest of "${vm.name}": VirtualBox takes no password from Windows' Credential ` +
        'Manager. Run again with --guest-user and --guest-credential prompt, stdin or env:NAME',
    )
  }
  const { user, password } = credential ?? {}
  const account = via.startsWith('ssh:') ? {} : { user, password } // ssh signs in with a key
  const options = { vm: vm.name, via, suspendBitlocker, ...account }
  const question = `Make the guest of "${vm.name}" ready for Hyper-V and shut it down?`
  if (!dryRun && agree && !await agree(question)) return 'declined'
  note(`${dryRun ? 'Asking' : 'Preparing'} the guest of "${vm.name}" ...`)
  const result = await prepareGuest({ ...options, dryRun, shutDown: true })
  tell(result, note)
  const [obstacle] = result.steps.filter(({ state }) => state === 'refusal')
  if (obstacle) {
    throw new Error(
      `Cannot move "${vm.name}": as it is its guest would not start on Hyper-V, so it stays on. ` +
        `${obstacle.detail}. Mend that in the guest, and run the same command again`,
    )
  }
  return dryRun ? 'dry-run' : 'off'
}

function tell({ steps }: PrepareGuestResult, note: (text: string) => void): void {
  const words = { ok: undefined, changed: 'guest', warning: 'warning', refusal: 'refusal' }
  for (const { state, detail } of steps) {
    if (words[state]) note(`${words[state].padEnd(10)} ${detail}`)
  }
}
