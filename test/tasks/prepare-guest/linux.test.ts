/** The script for Linux guests, in real root file systems with the real initramfs-tools and dracut. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { type GuestRoot, guestRoot, HYPER_V, programs } from '../../guest-root.ts'
import { needs } from '../../needs.ts'

const execute = promisify(execFile)
const SCRIPT = join(import.meta.dirname as string, '..', '..', '..', 'tasks/prepare-guest/linux.sh')
const NEW = '6.10.0-1-amd64'
const OLD = '6.9.0-1-amd64'

interface Answer {
  guest: string
  changed: boolean
  steps: { step: string; state: string; detail: string }[]
  before: { path: string; backup: string | null }[]
}

const linux = suite<{ root?: GuestRoot }>('the script for Linux guests')
const test = needs(linux, ...programs)

linux.after.each(async (context) => {
  await context.root?.close()
  delete context.root
})

async function tell(
  root: GuestRoot,
  { mode = 'prepare', dry = 0, keep = 0, detached = 0 } = {},
): Promise<Answer> {
  const script = await fs.readFile(SCRIPT, 'utf8')
  const head = `mode=${mode} dry=${dry} keep_additions=${keep} detached=${detached}\n`
  await root.write('tmp/script', head + script)
  const { stdout, stderr } = await execute('chroot', [root.path, '/bin/sh', '/tmp/script'])
  equal(stderr, '')
  await fs.remove(join(root.path, 'tmp/script'))
  deepEqual(await fs.readdir(join(root.path, 'tmp')), [], 'what it had in /tmp is gone')
  equal(stdout.trimEnd().split('\n').length, 1)
  return JSON.parse(stdout) as Answer
}

/** What an answer says of one step, as `state: detail`. */
function said(answer: Answer, step: string): string[] {
  return answer.steps.filter((one) => one.step === step).map((one) => `${one.state}: ${one.detail}`)
}

/** Each file with what it holds. */
async function tree(root: GuestRoot, folder: string): Promise<Record<string, string>> {
  const all: Record<string, string> = {}
  for (
    const entry of await fs.readdir(join(root.path, folder), {
      recursive: true,
      withFileTypes: true,
    })
  ) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    all[path.slice(root.path.length)] = await fs.readFile(path, 'latin1')
  }
  return all
}

async function drivers(root: GuestRoot, kernel: string): Promise<string[]> {
  const listed = await root.run('lsinitramfs', `/boot/initrd.img-${kernel}`)
  return HYPER_V.filter((name) => new RegExp(`/${name.replace('_', '[-_]')}[.]ko`).test(listed))
}

/** A guest whose initramfs has what it is told to have, and nothing that Debian adds by itself. */
async function debian(root: GuestRoot): Promise<void> {
  const config = await root.read('etc/initramfs-tools/initramfs.conf')
  await root.write(
    'etc/initramfs-tools/initramfs.conf',
    config.replace(/^MODULES=.*/m, 'MODULES=list'),
  )
  await root.write('etc/initramfs-tools/modules', '# modules\next4\n')
}

async function adapter(root: GuestRoot, name: string, mac: string): Promise<void> {
  await root.write(`sys/class/net/${name}/address`, `${mac}\n`)
  await root.write(`sys/class/net/${name}/device/uevent`, '')
}

test('adds the drivers to the initramfs of each kernel that lacks them, once, and takes them out again', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await debian(root)
  for (const kernel of [OLD, NEW]) {
    await root.addKernel(kernel, [...HYPER_V, 'ext4'])
    await root.run('update-initramfs', '-c', '-k', kernel)
    deepEqual(await drivers(root, kernel), [])
  }
  const [etc, boot] = [await tree(root, 'etc'), await tree(root, 'boot')]

  const would = await tell(root, { dry: 1 })
  match(
    said(would, 'initramfs')[0] as string,
    /^changed: .* would be added to the initramfs of 6.9.0-1-amd64 6.10.0-1-amd64, by initramfs-tools$/,
  )
  deepEqual([await tree(root, 'etc'), await tree(root, 'boot')], [etc, boot])

  const done = await tell(root)
  equal(done.changed, true)
  deepEqual(
    said(done, 'initramfs'),
    [OLD, NEW].map((kernel) =>
      `changed: The initramfs of ${kernel} has the drivers of Hyper-V now`
    ),
  )
  for (const kernel of [OLD, NEW]) deepEqual(await drivers(root, kernel), HYPER_V)
  equal(await root.read('etc/initramfs-tools/modules'), `# modules\next4\n${HYPER_V.join('\n')}\n`)
  deepEqual(done.before, [{
    path: '/etc/initramfs-tools/modules',
    backup: '/var/lib/vbox-to-hyperv/files/etc/initramfs-tools/modules',
  }])

  const after = await tree(root, 'boot')
  const again = await tell(root)
  equal(again.changed, false)
  deepEqual(said(again, 'initramfs'), [`ok: The drivers of Hyper-V are there for ${OLD} ${NEW}`])
  deepEqual(await tree(root, 'boot'), after)

  equal((await tell(root, { mode: 'undo' })).changed, true)
  deepEqual(await tree(root, 'etc'), etc)
  for (const kernel of [OLD, NEW]) deepEqual(await drivers(root, kernel), [])
  equal(await root.exists('var/lib/vbox-to-hyperv'), false)
  deepEqual((await tell(root, { mode: 'undo' })).steps, [{
    step: 'undo',
    state: 'ok',
    detail: 'Nothing was changed here',
  }])
})

test('leaves kernels alone that have the drivers built in, or in their initramfs by Debian’s own doing', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await root.addKernel(OLD, [], HYPER_V)
  await root.addKernel(NEW, HYPER_V)
  await root.run('update-initramfs', '-c', '-k', NEW) // MODULES=most
  const boot = await tree(root, 'boot')
  const answer = await tell(root)
  deepEqual(said(answer, 'initramfs'), [`ok: The drivers of Hyper-V are there for ${OLD} ${NEW}`])
  equal(answer.changed, false)
  deepEqual(await tree(root, 'boot'), boot)
})

test('refuses when the newest kernel has no driver, and warns when an older one has none', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await root.addKernel(OLD, ['ext4'])
  await root.addKernel(NEW, [], HYPER_V)
  // modules of a kernel that was removed
  await root.write('lib/modules/7.0.0-1-amd64/updates/own.ko', '')
  const fine = await tell(root)
  match(
    said(fine, 'initramfs')[0] as string,
    /^warning: The kernel 6\.9\.0-1-amd64 has no hv_vmbus hv_storvsc, /,
  )
  deepEqual(said(fine, 'initramfs').slice(1), [`ok: The drivers of Hyper-V are there for ${NEW}`])

  await root.addKernel('6.11.0-kvm', ['ext4'])
  match(
    said(await tell(root), 'initramfs')[1] as string,
    /^refusal: The kernel 6\.11\.0-kvm has no hv_vmbus hv_storvsc, .* does not start on Hyper-V/,
  )
})

test('refuses when the initramfs cannot be made, with the program’s own words', async (context) => {
  const root = context.root = await guestRoot('initramfs-tools')
  await debian(root)
  await root.addKernel(NEW, HYPER_V)
  await root.run('update-initramfs', '-c', '-k', NEW)
  await root.write(
    'etc/initramfs-tools/hooks/broken',
    '#!/bin/sh\necho "cp: No space left on \\"device\\"" >&2\nexit 1\n',
  )
  await fs.chmod(join(root.path, 'etc/initramfs-tools/hooks/broken'), 0o755)
  const boot = await tree(root, 'boot')
  const [only, ...more] = said(await tell(root), 'initramfs')
  match(
    only as string,
    /^refusal: The initramfs of 6\.10\.0-1-amd64 lacks hv_vmbus hv_storvsc hv_netvsc hid_hyperv hyperv_keyboard after .*broken.*Run: sudo update-initramfs -c -k 6\.10\.0-1-amd64$/,
  )
  deepEqual(more, [])
  deepEqual(await tree(root, 'boot'), boot, 'the initramfs that was there is still there')
})

test('adds the drivers by dracut, and takes them out again', async (context) => {
  const root = context.root = await guestRoot('dracut')
  await root.addKernel(NEW, [...HYPER_V, 'ext4'])
  await root.write('etc/machine-id', `${'0'.repeat(32)}\n`)
  // as on a guest whose initramfs was made for the controllers of VirtualBox
  await root.write('etc/dracut.conf.d/test.conf', 'dracutmodules="base"\nomit_drivers+=" none "\n')
  await root.run('dracut', '--force', `/boot/initramfs-${NEW}.img`, NEW)
  const listed = () => root.run('lsinitrd', `/boot/initramfs-${NEW}.img`)
  ok(!/hv_storvsc/.test(await listed()))
  const etc = await tree(root, 'etc')
  const done = await tell(root)
  deepEqual(said(done, 'initramfs'), [
    `changed: The initramfs of ${NEW} has the drivers of Hyper-V now`,
  ])
  for (const name of ['hv_vmbus', 'hv_storvsc', 'hv_netvsc', 'hid-hyperv', 'hyperv-keyboard']) {
    ok((await listed()).includes(`/${name}.ko`), name)
  }
  equal(
    await root.read('etc/dracut.conf.d/vbox-to-hyperv.conf'),
    `add_drivers+=" ${HYPER_V.join(' ')} "\n`,
  )
  equal((await tell(root)).changed, false)
  await tell(root, { mode: 'undo' })
  deepEqual(await tree(root, 'etc'), etc)
  ok(!/hv_storvsc/.test(await listed()))
})

linux.run()
