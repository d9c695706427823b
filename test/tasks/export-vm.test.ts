import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import { vboxManage } from '../../fixtures/inspect-vm/make.ts'
import { exportVm, undoExportVm } from '../../tasks/export-vm.ts'
import { inspectVm } from '../../tasks/inspect-vm.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'

const NAME = '-Bob’s "VM"; $(calc) 桥接'
const UUID = '3f1b9c6e-0000-4000-8000-0000000000e1'

const exporting = suite<{ dir: string; to: string }>('exportVm')
const test = needs(exporting, 'VBoxManage')
let home: string | undefined

exporting.before(async (context) => {
  const dir = context.dir = await fs.mkdtemp(join(tmpdir(), 'export-vm-'))
  home = process.env.VBOX_USER_HOME
  process.env.VBOX_USER_HOME = join(dir, 'home')
  const disk = join(dir, 'disk.vdi')
  const raw = join(dir, 'disk.raw')
  // what does not compress, so that the export takes its time
  await fs.writeFile(raw, Buffer.alloc(1024 ** 2, 'noise'))
  await vboxManage(dir, 'convertfromraw', raw, disk, '--format', 'VDI')
  const id = ['createvm', `--name=${NAME}`, '--uuid', UUID, '--register', '--basefolder', dir]
  await vboxManage(dir, ...id)
  await vboxManage(dir, 'storagectl', UUID, '--name', 'SATA', '--add', 'sata')
  await vboxManage(
    dir,
    ...['storageattach', UUID, '--storagectl', 'SATA', '--port', '0', '--device', '0'],
    ...['--type', 'hdd', '--medium', disk],
  )
})
exporting.before.each(async (context) => {
  context.to = join(await fs.mkdtemp(join(context.dir, 'out-')), '桥接 "1".ova')
})
exporting.after(async ({ dir }) => {
  if (home === undefined) delete process.env.VBOX_USER_HOME
  else process.env.VBOX_USER_HOME = home
  await fs.remove(dir)
})

test('writes a checked OVA with the VM and its disk, and nothing beside it', async ({ to }) => {
  const heard: string[] = []
  const result = await exportVm({
    vm: NAME,
    to,
    onProgress: ({ phase, percent }) => heard.push(`${phase} ${percent}`),
  })
  deepEqual([result.changed, result.vm, result.uuid, result.path], [true, NAME, UUID, to])
  equal(result.bytes, (await fs.stat(to)).size)
  deepEqual(result.files.map(({ name }) => name).sort(), [
    '桥接 "1"-disk001.vmdk',
    '桥接 "1".mf',
    '桥接 "1".ovf',
  ])
  ok(result.needed >= 1024 ** 2)
  ok(heard.includes('write 100') && heard.includes('check 100'), heard.join())
  deepEqual(await fs.readdir(join(to, '..')), ['桥接 "1".ova'])
  const described = await inspectVm({ source: [to] })
  deepEqual([described.name, described.disks.map(({ capacity }) => capacity)], [NAME, [1024 ** 2]])
})

test('takes the snapshots’ present state, and counts all of their files', async ({ dir, to }) => {
  const { needed } = await exportVm({ vm: UUID, to, dryRun: true })
  await vboxManage(dir, 'snapshot', UUID, 'take', 'one')
  const result = await exportVm({ vm: `{${UUID.toUpperCase()}}`, to })
  ok(result.needed > needed, `${result.needed} and ${needed} before`)
  equal((await inspectVm({ source: [to] })).disks.length, 1)
})

test('writes nothing on a dry run', async ({ to }) => {
  const { changed, bytes, files, before } = await exportVm({ vm: NAME, to, dryRun: true })
  deepEqual({ changed, bytes, files, before }, {
    changed: true,
    bytes: null,
    files: [],
    before: undefined,
  })
  deepEqual(await fs.readdir(join(to, '..')), [])
})

test('replaces a file only when it is told to, and is taken back', async ({ to }) => {
  await fs.writeFile(to, 'mine')
  await rejects(exportVm({ vm: NAME, to }), {
    message: `Cannot export the VM ${JSON.stringify(NAME)}: "${to}" is there already. ` +
      'Name another file, or run again with --force',
  })
  equal(await fs.readFile(to, 'utf8'), 'mine')
  const result = await exportVm({ vm: NAME, to, force: true })
  deepEqual(result.before, { replaced: true })
  await undoExportVm(result)
  equal(await fs.pathExists(to), false)
  await undoExportVm(result)
  await fs.writeFile(to, 'another')
  await undoExportVm(result)
  equal(await fs.readFile(to, 'utf8'), 'another')
})

test('leaves nothing when it is stopped, and what was there stays', async ({ to }) => {
  await fs.writeFile(to, 'mine')
  for (const phase of ['write', 'check']) {
    const stop = new AbortController()
    const exported = exportVm({
      vm: NAME,
      to,
      force: true,
      signal: stop.signal,
      onProgress: (progress) => {
        if (progress.phase === phase) stop.abort(new Error('Stopped'))
      },
    })
    await rejects(exported, { message: 'Stopped' })
    deepEqual(await fs.readdir(join(to, '..')), ['桥接 "1".ova'])
    equal(await fs.readFile(to, 'utf8'), 'mine')
  }
  await rejects(exportVm({ vm: NAME, to, force: true, signal: AbortSignal.abort() }))
  deepEqual(await fs.readdir(join(to, '..')), ['桥接 "1".ova'])
})

test('refuses a VM that is saved, and one that there is not', async ({ dir, to }) => {
  await fs.writeFile(join(dir, 'memory.sav'), 'saved')
  await vboxManage(dir, 'adoptstate', UUID, join(dir, 'memory.sav'))
  await rejects(exportVm({ vm: NAME, to }), {
    message: `Cannot export the VM ${JSON.stringify(NAME)}: it is saved, and what it holds in ` +
      `memory would not be in the OVA. Start it and shut it down, or run: VBoxManage discardstate ${UUID}`,
  })
  await vboxManage(dir, 'discardstate', UUID)
  await rejects(exportVm({ vm: 'none', to }), {
    message: `Cannot export the VM "none": VirtualBox has ${
      JSON.stringify(NAME)
    }. Name one of these`,
  })
  await rejects(exportVm({ vm: NAME, to: join(to, 'x.ova') }), /there is no folder "/)
})

test('is a command', async ({ dir, to }) => {
  const host = { dir, env: { ...process.env, FORCE_COLOR: '0' } }
  const { code, stdout, stderr } = await runTask(host, 'export-vm', `--vm=${NAME}`, '--to', to)
  deepEqual([code, stderr], [0, ''])
  equal(JSON.parse(stdout).path, to)
  const again = await runTask(host, 'export-vm', `--vm=${NAME}`, '--to', to)
  deepEqual([again.code, again.stdout], [1, ''])
  match(again.stderr, /is there already\. Name another file/)
})

exporting.run()

const faked = suite<{ dir: string; program: string }>('exportVm of a VBoxManage that fails')
let named: string | undefined

faked.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'export-vm-'))
  context.program = join(context.dir, 'VBoxManage')
  named = process.env.VBOXMANAGE
  process.env.VBOXMANAGE = context.program
})
faked.after.each(async ({ dir }) => {
  if (named === undefined) delete process.env.VBOXMANAGE
  else process.env.VBOXMANAGE = named
  await fs.remove(dir)
})
// a program that the system starts by its first line
const unix = process.platform === 'win32' ? faked.skip : faked

/** Answers as VBoxManage does for a VM in that state, and exports by a script of sh, where $4 is the OVA. */
async function fake(program: string, state: string, script: string): Promise<void> {
  const lines = [
    '#!/bin/sh',
    'case "$1" in',
    `list) echo '"web" {${UUID}}' ;;`,
    `showvminfo) printf 'name="web"\\nUUID="${UUID}"\\nVMState="${state}"\\n' ;;`,
    `export) ${script} ;;`,
    'esac',
  ]
  await fs.writeFile(program, `${lines.join('\n')}\n`, { mode: 0o755 })
}

unix('refuses a VM that runs', async ({ dir, program }) => {
  await fake(program, 'running', 'exit 1')
  await rejects(exportVm({ vm: 'web', to: join(dir, 'web.ova') }), {
    message: 'Cannot export the VM "web": it is running, and its disks change while they are ' +
      `read. Shut it down. Run: VBoxManage controlvm ${UUID} acpipowerbutton`,
  })
})

unix('takes no OVA that is not whole', async ({ dir, program }) => {
  const tar = async (files: Record<string, string>) => {
    const folder = await fs.mkdtemp(join(dir, 'tar-'))
    for (const [name, text] of Object.entries(files)) await fs.writeFile(join(folder, name), text)
    const args = ['-cf', join(dir, 'x.tar'), '--format=ustar', '-C', folder, ...Object.keys(files)]
    await new Promise<void>((resolve, reject) =>
      execFile('tar', args, (error) => error ? reject(error) : resolve())
    )
  }
  const ovf = '<Envelope><References><File href="web.vmdk"/></References></Envelope>'
  const sha = 'SHA256 (web.vmdk) = ' + '0'.repeat(64)
  const cases: [Record<string, string> | number, string][] = [
    [{ 'web.ovf': ovf }, 'it has no .mf'],
    [{ 'web.ovf': ovf, 'web.mf': sha }, 'it has no "web.vmdk"'],
    [
      { 'web.vmdk': 'disk', 'web.ovf': ovf, 'web.mf': sha },
      '"web.vmdk" is not what its manifest says',
    ],
    [{ 'web.mf': '', 'web.ovf': ovf }, 'its manifest does not name "web.ovf"'],
    [530, '"web.mf" ends too early'],
    [700, 'its end is missing'],
    [1024, 'it has no "web.vmdk"'],
  ]
  const to = join(dir, 'out', 'web.ova')
  await fs.ensureDir(join(dir, 'out'))
  for (const [files, why] of cases) {
    if (typeof files === 'number') await tar({ 'web.mf': sha, 'web.ovf': ovf })
    else await tar(files)
    if (typeof files === 'number') await fs.truncate(join(dir, 'x.tar'), files)
    await fake(program, 'poweroff', `cp "${join(dir, 'x.tar')}" "$4"`)
    await rejects(exportVm({ vm: 'web', to }), {
      message:
        `Cannot export the VM "web": what VirtualBox wrote is not whole: ${why}. Run the same again`,
    })
    deepEqual(await fs.readdir(join(dir, 'out')), [])
  }
})

unix('says how VBoxManage failed, and leaves nothing', async ({ dir, program }) => {
  const to = join(dir, 'web.ova')
  const tell = (script: string) => fake(program, 'aborted', script)
  await tell('echo half > "$4"; echo "VBoxManage: error: Disk full" >&2; exit 1')
  await rejects(
    exportVm({ vm: 'web', to }),
    /^Error: Cannot export the VM "web": VBoxManage ended with 1 and says "Disk full"\. See .* Run: VBoxManage export 3f1b/,
  )
  await tell('exit 2')
  await rejects(exportVm({ vm: 'web', to }), /VBoxManage ended with 2\. See /)
  deepEqual(await fs.readdir(dir), ['VBoxManage'])
})

unix('leaves nothing when Ctrl-C ends the command', async ({ dir, program }) => {
  // as VBoxManage does, it ends at the signal; a shell waits for its child first
  const script = 'trap "exit 1" INT; echo half > "$4"; echo 10% >&2; while :; do sleep 0.1; done'
  await fake(program, 'poweroff', script)
  const folder = join(dir, 'out')
  await fs.ensureDir(folder)
  const task = join(import.meta.dirname as string, '..', '..', 'tasks', 'export-vm.ts')
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const args = [...runtime, task, '--vm', 'web', '--to', join(folder, 'web.ova')]
  const child = spawn(process.execPath, args, { env: { ...process.env, FORCE_COLOR: '0' } })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => said += text)
  const ended = new Promise((resolve) => child.once('close', resolve))
  const begun = async () => {
    const [own] = await fs.readdir(folder)
    return own !== undefined && (await fs.readdir(join(folder, own))).length > 0
  }
  for (let n = 0; n < 300 && !await begun(); n++) await wait(100)
  ok(await begun(), said)
  // a child that Deno's own kill has stopped has no exit code there
  process.kill(child.pid as number, 'SIGINT')
  equal(await ended, 1)
  equal(said, 'Stopped. Nothing was left behind\n')
  deepEqual(await fs.readdir(folder), [])
})

faked('refuses what is no name of an OVA, or no VM', async ({ dir }) => {
  for (const to of ['', 'web', 'web.ovf', join(dir, '.ova'), 'a\0.ova']) {
    await rejects(exportVm({ vm: 'web', to }), /^TypeError: Cannot export to /)
  }
  for (const vm of ['', 'a\0']) {
    await rejects(exportVm({ vm, to: 'web.ova' }), /that is no name\. Run: VBoxManage list vms$/)
  }
  process.env.VBOXMANAGE = join(dir, 'none')
  await rejects(
    exportVm({ vm: 'web', to: join(dir, 'web.ova') }),
    /there is no program ".*none"\. Set VBOXMANAGE$/,
  )
})

faked.run()
