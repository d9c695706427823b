import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import {
  prepareGuest,
  type PrepareGuestResult,
  undoPrepareGuest,
} from '../../tasks/prepare-guest.ts'
import { Secret } from '../../tasks/task.ts'
import { type GuestRoot, guestRoot, HYPER_V, programs } from '../guest-root.ts'
import { needs } from '../needs.ts'
import { runningVm, windowsGuest } from '../running-vm.ts'
import { simulatedHost } from '../simulated-host.ts'
import { sshHost } from '../ssh-host.ts'

const root = join(import.meta.dirname as string, '..', '..')
const NAME = '-w’eb "1" $(x)'
const PASSWORD = 'p’ss "w$rd" `1'

interface Context {
  dir: string
  env: NodeJS.ProcessEnv
  root?: GuestRoot
}

const guests = suite<Context>('prepareGuest')
const onLinux = needs(guests, ...programs, 'bash')
const onWindows = needs(guests, 'bash', 'pwsh')
const bySsh = needs(guests, ...programs, 'ssh', 'sshd')
const bySshOnWindows = needs(guests, 'ssh', 'sshd', 'pwsh')

guests.before.each(async (context) => {
  context.env = { ...process.env }
  context.dir = await fs.mkdtemp(join(tmpdir(), 'prepare-guest-'))
  Object.assign(process.env, await runningVm(context.dir, { name: NAME, password: PASSWORD }))
})
guests.after.each(async (context) => {
  for (const name of Object.keys(process.env)) {
    if (!(name in context.env)) delete process.env[name]
  }
  Object.assign(process.env, context.env)
  await context.root?.close()
  delete context.root
  await fs.remove(context.dir)
})

const access = { vm: NAME, user: 'root', password: new Secret(PASSWORD) }

/** A Linux guest with one thing to do. */
async function linuxGuest(context: Context): Promise<GuestRoot> {
  const guest = context.root = await guestRoot('none')
  await guest.addKernel('6.1.0-1-amd64', [], HYPER_V)
  await guest.write('etc/fstab', 'share /mnt vboxsf\n')
  await fs.remove(join(context.dir, 'guest'))
  await fs.symlink(guest.path, join(context.dir, 'guest'))
  return guest
}

function states({ steps }: PrepareGuestResult): string[] {
  return steps.map(({ step, state }) => `${step} ${state}`)
}

for (const old of [false, true]) {
  onLinux(
    `prepares a Linux guest through guestcontrol${
      old ? ' of 6.1' : ''
    }, and leaves nothing but that`,
    async (context) => {
      const guest = await linuxGuest(context)
      if (old) await fs.writeFile(join(context.dir, 'old'), '')
      const would = await prepareGuest({ ...access, dryRun: true })
      equal(would.changed, true)
      equal(await guest.read('etc/fstab'), 'share /mnt vboxsf\n')
      const result = await prepareGuest(access)
      deepEqual([result.vm, result.guest, result.changed, result.ready], [
        NAME,
        'linux',
        true,
        true,
      ])
      equal(states(result)[0], 'shared-folders changed')
      equal(await guest.read('etc/fstab'), '# vbox-to-hyperv: share /mnt vboxsf\n')
      equal((await prepareGuest(access)).changed, false)
      equal((await undoPrepareGuest(access)).changed, true)
      equal(await guest.read('etc/fstab'), 'share /mnt vboxsf\n')
      deepEqual(await fs.readdir(join(guest.path, 'tmp')), [])
      const log = await fs.readFile(join(context.dir, 'log'), 'utf8')
      ok(!log.includes('w$rd'), 'the password is on no command line')
    },
  )
}

onWindows(
  'prepares a Windows guest through guestcontrol, and leaves nothing but that',
  async (context) => {
    const host = await simulatedHost()
    try {
      Object.assign(process.env, host.env)
      await fs.writeFile(join(context.dir, 'product'), 'Value: Windows 11\n')
      await fs.writeFile(join(context.dir, 'prelude.ps1'), await windowsGuest())
      await fs.writeFile(join(context.dir, 'old'), '')
      const result = await prepareGuest({ ...access, user: 'Administrator' })
      deepEqual([result.guest, result.changed, result.ready], ['windows', true, true])
      deepEqual(states(result), [
        'boot-drivers changed',
        'hibernation ok',
        'auto-reboot ok',
        'bitlocker ok',
        'addresses changed',
        'licence ok',
        'guest-additions ok',
      ])
      deepEqual(await fs.readdir(join(context.dir, 'guest')), [])
    } finally {
      await host.close()
    }
  },
)

onLinux(
  'shuts the guest down when told to, and waits until VirtualBox has let go of it',
  async (context) => {
    const guest = await linuxGuest(context)
    await guest.write('usr/sbin/shutdown', '#!/bin/sh\necho "$*" > /down\n')
    await fs.remove(join(guest.path, 'usr/bin/sleep'))
    await guest.write('usr/bin/sleep', '#!/bin/sh\n')
    for (const file of ['sbin/shutdown', 'bin/sleep']) {
      await fs.chmod(
        join(guest.path, 'usr', file),
        0o755,
      )
    }
    const state = join(context.dir, 'state')
    const off = (async () => {
      while (!await guest.exists('down')) await wait(25)
      await fs.writeFile(state, 'stopping')
      await wait(50)
      await fs.writeFile(state, 'poweroff')
    })()
    const result = await prepareGuest({ ...access, shutDown: true })
    equal(await fs.readFile(state, 'utf8'), 'poweroff')
    await off
    ok(states(result).includes('shut-down changed'))
  },
)

onLinux('leaves a guest on that would not start on Hyper-V', async (context) => {
  const guest = await linuxGuest(context)
  // an initramfs that nothing makes again
  await guest.write('lib/modules/6.1.0-1-amd64/modules.builtin', '')
  await guest.write('boot/vmlinuz-6.1.0-1-amd64', '')
  await guest.write('boot/initrd.img-6.1.0-1-amd64', '')
  const result = await prepareGuest({ ...access, shutDown: true })
  equal(result.ready, false)
  ok(states(result).includes('shut-down warning'))
  equal(await fs.readFile(join(context.dir, 'state'), 'utf8'), 'running')
})

onLinux('says what to do when sudo asks for a password', async (context) => {
  const guest = await linuxGuest(context)
  await guest.write('usr/bin/sudo', '#!/bin/sh\necho "sudo: a password is required" >&2\nexit 1\n')
  await fs.chmod(join(guest.path, 'usr/bin/sudo'), 0o755)
  await rejects(prepareGuest({ ...access, user: 'me' }), {
    message:
      `Cannot prepare the guest in "${NAME}": sudo there does not let "me" act as root without a ` +
      "password (sudo: a password is required). Run in the guest: echo 'me ALL=(ALL) NOPASSWD: ALL' | " +
      'sudo tee /etc/sudoers.d/vbox-to-hyperv, or run again with --user root',
  })
  deepEqual(await fs.readdir(join(guest.path, 'tmp')), [])
})

onLinux('rejects when the guest gives no answer, with its words', async (context) => {
  const guest = await linuxGuest(context)
  await fs.remove(join(guest.path, 'usr/bin/mktemp'))
  await rejects(
    prepareGuest(access),
    /ended without an answer \(.*mktemp: not found\)\. Mend that in the guest/,
  )
})

const REFUSED: [what: string, change: Record<string, string>, options: object, message: RegExp][] =
  [
    [
      'a VM that VirtualBox does not have',
      { name: 'x' },
      {},
      /VirtualBox has no such VM\. Run: VBoxManage list vms$/,
    ],
    [
      'a VM that does not run',
      { state: 'saved' },
      {},
      /does not run it now \(saved\)\. Run: VBoxManage startvm /,
    ],
    [
      'a wrong password',
      { password: 'x' },
      {},
      /does not let "root" in \(The specified user was not able to logon on guest\)/,
    ],
    [
      'no account',
      {},
      { user: undefined },
      /no account of the guest is named\. Run again with --user root/,
    ],
    ['an empty name', {}, { vm: ' ' }, /" " is no name/],
    [
      'a password of two lines',
      {},
      { password: new Secret('a\nb') },
      /no password with control characters/,
    ],
    ['a password for ssh', {}, { via: 'ssh://web' }, /ssh asks for no password here/],
    ['another way', {}, { via: 'telnet://web' }, /Cannot use "telnet:\/\/web" as a host/],
    [
      'two users for ssh',
      {},
      { via: 'ssh://a@web', password: undefined },
      /"root" and "a" are named as its user/,
    ],
  ]

for (const [what, change, options, message] of REFUSED) {
  needs(guests, 'bash')(`refuses ${what}`, async ({ dir }) => {
    for (const [name, text] of Object.entries(change)) await fs.writeFile(join(dir, name), text)
    await rejects(prepareGuest({ ...access, ...options }), message)
    deepEqual(await fs.readdir(join(dir, 'guest')), [])
  })
}

bySsh('prepares a Linux guest through ssh, and leaves nothing but that', async (context) => {
  const guest = await linuxGuest(context)
  const shell = join(context.dir, 'shell')
  await fs.writeFile(shell, `#!/bin/sh\nexec chroot '${guest.path}' /bin/sh "$@"\n`, {
    mode: 0o755,
  })
  const host = await sshHost(process.env, { shell })
  try {
    process.env.PATH = host.env.PATH
    const via = { vm: NAME, via: host.url }
    const result = await prepareGuest(via)
    deepEqual([result.guest, result.changed, states(result)[0]], [
      'linux',
      true,
      'shared-folders changed',
    ])
    equal((await prepareGuest(via)).changed, false)
    equal((await undoPrepareGuest(via)).changed, true)
    equal(await guest.read('etc/fstab'), 'share /mnt vboxsf\n')
    deepEqual(await fs.readdir(join(guest.path, 'tmp')), [])
    await fs.writeFile(host.knownHosts, '')
    await rejects(
      prepareGuest(via),
      /: ssh does not get there \(Host key verification failed\.\)\. See that this works/,
    )
  } finally {
    await host.close()
  }
})

bySshOnWindows('prepares a Windows guest through ssh', async (context) => {
  const windows = await simulatedHost()
  const shell = join(context.dir, 'shell')
  // as cmd does
  const text =
    '#!/bin/sh\ncase "$2" in uname*) echo "not recognized" >&2; exit 1 ;; esac\nexec sh "$@"\n'
  await fs.writeFile(shell, text, { mode: 0o755 })
  // a module that PowerShell loads when the script asks who it is
  const module = join(context.dir, 'modules', 'Guest')
  await fs.outputFile(
    join(module, 'Guest.psd1'),
    "@{ ModuleVersion = '1.0'; RootModule = 'Guest.psm1'; FunctionsToExport = 'whoami.exe' }",
  )
  await fs.outputFile(
    join(module, 'Guest.psm1'),
    `${await windowsGuest()}\n\${function:whoami.exe} = \${function:global:whoami.exe}\n`,
  )
  const modules = [join(context.dir, 'modules'), windows.env.PSModulePath].join(delimiter)
  const host = await sshHost({ ...windows.env, PSModulePath: modules }, { shell })
  try {
    process.env.PATH = host.env.PATH
    const result = await prepareGuest({ vm: NAME, via: host.url })
    deepEqual([result.guest, states(result)[0]], ['windows', 'boot-drivers changed'])
  } finally {
    await host.close()
    await windows.close()
  }
})

onLinux(
  'is a command that ends with 1 and words on standard error when the guest would not start',
  async (context) => {
    const guest = await linuxGuest(context)
    await guest.addKernel('9.0.0-1-none', ['ext4'])
    const run = (...args: string[]) =>
      new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
        const env = { ...process.env, GUEST_PASSWORD: PASSWORD, FORCE_COLOR: '0' }
        const own = [
          join(root, 'tasks/prepare-guest.ts'),
          `--vm=${NAME}`,
          '--user',
          'root',
          ...args,
        ]
        const program = 'Deno' in globalThis
          ? ['deno', 'run', '-A', ...own]
          : [process.execPath, ...own]
        const child = execFile(
          program[0] as string,
          program.slice(1),
          { env },
          (error, stdout, stderr) => {
            resolve({ code: error ? Number(error.code) : 0, stdout, stderr })
          },
        )
        child.stdin?.end(`${PASSWORD}\n`)
      })
    const bad = await run('--credential', 'env:GUEST_PASSWORD')
    equal(bad.code, 1)
    equal(JSON.parse(bad.stdout).ready, false)
    match(bad.stderr, /^The kernel 9\.0\.0-1-none has no hv_vmbus hv_storvsc, /m)
    const undone = await run('--credential', 'stdin', '--undo')
    deepEqual([undone.code, undone.stderr], [0, ''])
    match(
      (await run('--credential', 'secret')).stderr,
      /^Cannot take a password from "secret": it is prompt, stdin or env:NAME\./,
    )
  },
)

guests.run()
