/** What holds for every task: its file, its command line, its copy elsewhere, its scripts. */
import fs from 'fs-extra'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { attachAdapter, undoAttachAdapter } from '../../tasks/attach-adapter.ts'
import { checkHost } from '../../tasks/check-host.ts'
import { createSwitch, undoCreateSwitch } from '../../tasks/create-switch.ts'
import { createVm, undoCreateVm } from '../../tasks/create-vm.ts'
import { enableHyperV, undoEnableHyperV } from '../../tasks/enable-hyperv.ts'
import { enableNested, undoEnableNested } from '../../tasks/enable-nested.ts'
import { importVm, undoImportVm } from '../../tasks/import-vm.ts'
import { placeDisk, undoPlaceDisk } from '../../tasks/place-disk.ts'
import { setGuestIp, undoSetGuestIp } from '../../tasks/set-guest-ip.ts'
import { forwardPort, undoForwardPort } from '../../tasks/forward-port.ts'
import { copyFile } from '../../tasks/copy-file.ts'
import { openVm, undoOpenVm } from '../../tasks/open-vm.ts'
import { setHardware, undoSetHardware } from '../../tasks/set-hardware.ts'
import { setStaticIp, undoSetStaticIp } from '../../tasks/set-static-ip.ts'
import { readNetwork } from '../../tasks/show-network.ts'
import { startVm, undoStartVm } from '../../tasks/start-vm.ts'
import { type PowerShell, script } from '../../tasks/task.ts'
import { verify } from '../../tasks/verify.ts'
import { toggleShare, undoToggleShare } from '../../tasks/toggle-share.ts'
import { convertDisk } from '../../tasks/convert-disk.ts'
import { needs } from '../needs.ts'
import { runningVm } from '../running-vm.ts'
import { analyze } from './analyze.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { type SocksServer, socksServer } from '../socks-server.ts'

const root = join(import.meta.dirname as string, '..', '..')
const tasks = (await fs.readdir(join(root, 'tasks')))
  .filter((name) => name.endsWith('.ts') && !['task.ts', 'guard.ts'].includes(name))
const folders = (await fs.readdir(join(root, 'tasks'), { withFileTypes: true }))
  .filter((entry) => entry.isDirectory()).map(({ name }) => name)
const bin = join(root, 'node_modules', '.bin')
// each runtime's where it runs the tests, as this takes minutes
const RUNTIMES: Record<string, string[]> = 'Deno' in globalThis
  ? { deno: ['deno', 'run', '-A'] }
  : { zx: ['zx'], node: ['node'] }

const files = suite('every task')

files('has a test of its own', async () => {
  for (const task of tasks) {
    ok(await fs.pathExists(join(root, 'test', 'tasks', task.replace('.ts', '.test.ts'))), task)
  }
})

files('imports npm packages, node:, ./task.ts and ./guard.ts, and no other task', async () => {
  for (const task of tasks) {
    const source = await fs.readFile(join(root, 'tasks', task), 'utf8')
    match(source, /^#!\/usr\/bin\/env zx\n\/\*\* /, task)
    const own = task.replace('.ts', '')
    const local = [...source.matchAll(/from '(\.[^']+)'/g)].map(([, path]) => path as string)
      .filter((path) =>
        !['./task.ts', './guard.ts'].includes(path) && !path.startsWith(`./${own}/`)
      )
    deepEqual(local, [], task)
  }
})

files('has a help with an example, and refuses what it does not know', async () => {
  for (const task of tasks) {
    const [help, wrong] = await Promise.all([
      run('node', [join('tasks', task), '--help']),
      run('node', [join('tasks', task), '--no-such-option']),
    ])
    equal(help.code, 0, task)
    match(help.stdout, /Examples:\n {2}npx zx tasks/, task)
    equal(wrong.code, 1, task)
    equal(wrong.stdout, '', task)
    ok(wrong.stderr.length > 0, task)
  }
})

files.run()

const jobs = suite<{ host: SimulatedHost; dir: string; proxy: SocksServer }>('every task alone')
const test = needs(jobs, 'pwsh')

jobs.before.each(async (context) => {
  context.host = await simulatedHost()
  context.proxy = await socksServer()
  // what `npm init --init-type=module` and `npm install` leave in an empty folder
  context.dir = await fs.mkdtemp(join(tmpdir(), 'copied-'))
  await fs.symlink(join(root, 'node_modules'), join(context.dir, 'node_modules'), 'junction')
  const { dependencies } = await fs.readJson(join(root, 'package.json'))
  await fs.writeJson(join(context.dir, 'package.json'), { type: 'module', dependencies })
})
jobs.after.each(async ({ host, dir, proxy }) => {
  await host.close()
  await proxy.close()
  await fs.remove(dir)
})

for (const [runtime, program] of Object.entries(RUNTIMES)) {
  test(`does its job copied with task.ts and guard.ts into an empty folder, under ${runtime}`, async ({ host, dir, proxy }) => {
    const { vdi, ova } = await demo('bios', dir)
    const disk = join(dir, 'demo.vhdx')
    const vm = await runningVm(dir, { name: 'demo', password: '', product: 'Windows 11' })
    const PATH = `${await guestBySsh(dir)}${delimiter}${host.env.PATH}`
    // each line depends on those before it, and all tasks but task.ts occur
    const commands = [
      ['inspect-vm', ova],
      ['prepare-guest', '--vm', 'demo', '--user', 'Administrator'],
      // what it does without --dry-run takes a VirtualBox
      ['export-vm', '--vm', 'demo', '--to', join(dir, 'export.ova'), '--dry-run'],
      ['convert-disk', '--from', vdi, '--to', disk],
      ['check-host', '--vm', 'demo', '--internal', 'Static-NAT', '--host-ip', '192.168.56.1/24'],
      ['enable-hyperv'],
      ['place-disk', '--from', disk, '--to', join(dir, 'placed', 'demo.vhdx')],
      ['create-switch', '--switch', '桥接', '--type', 'external', '--adapter', 'Wi-Fi'],
      ['toggle-share', 'off', '--switch', '桥接'],
      ['create-switch', '--switch', 'Static-NAT', '--type', 'internal'],
      ['set-static-ip', '--switch', 'Static-NAT', '--host-ip', '192.168.56.1/24', '--nat'],
      ['forward-port', '--port', '2222', '--guest-ip', '192.168.56.191', '--guest-port', '22'],
      ['create-vm', '--vm', 'demo', '--disk', disk, '--memory', '256MB'],
      ['set-hardware', '--vm', 'demo', '--uuid', '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61'],
      ['attach-adapter', '--vm', 'demo', '--switch', 'Static-NAT', '--mac', '08:00:27:00:00:07'],
      ['enable-nested', '--vm', 'demo'],
      ['show-network', '--format', 'json'],
      ['start-vm', '--vm', 'demo'],
      ['open-vm', '--vm', 'demo', '--print'],
      ['copy-file', '--vm', 'demo', '--from', ova, '--to', 'C:\\kit\\'],
      ['verify', '--vm', 'demo', '--timeout', '10', '--port', '9'],
      ['set-guest-ip', '--vm', 'demo', '--guest-ip', '192.168.56.191'],
      ['socks-connect', '--proxy', proxy.address, '--check', '127.0.0.1', `${proxy.port}`],
      ['open-tunnel', '--via', `socks5://${proxy.address}`, '--to', proxy.address, '--check'],
      ['ssh-config', '--name', 'db', '--to', 'db.lan', '--config', join(dir, 'ssh', 'config')],
      ['import-vm', '--from', await exportOne(host, dir)],
      ['check-proxy', '--proxy', `socks5://${proxy.address}`],
      ['serve-proxy', '--via', 'ssh://guest', '--address', '192.168.56.191'],
      // what it does without --dry-run is this user's
      ['use-proxy', 'on', '--http', '192.168.56.191:8080', '--for', 'npm', '--dry-run'],
    ]
    deepEqual(tasks.filter((task) => !commands.some(([name]) => `${name}.ts` === task)), [])
    for (const [task = '', ...args] of commands) {
      if (task === 'export-vm') await fs.writeFile(join(dir, 'state'), 'poweroff')
      const alone = join(dir, `alone-${task}`)
      for (
        const name of [
          `${task}.ts`,
          'task.ts',
          'guard.ts',
          ...(folders.includes(task) ? [task] : []),
        ]
      ) {
        await fs.copy(join(root, 'tasks', name), join(alone, name))
      }
      const { code, stdout, stderr } = await run(program[0] as string, [
        ...program.slice(1),
        join(alone, `${task}.ts`),
        ...args,
      ], { cwd: dir, env: { ...host.env, ...vm, PATH } })
      equal(code, 0, `${task}: ${stderr}`)
      equal(stdout.trim().split('\n').length, 1, `${task} prints one line: ${stdout}`)
      ok(typeof JSON.parse(stdout) === 'object', task)
      equal(stderr, '', task)
    }
    const [made] = (await host.state()).vms
    equal(made.name, 'demo')
  })
}

/** A folder with an ssh to a guest that serves a proxy already, as serve-proxy's own test has a real one. */
async function guestBySsh(dir: string): Promise<string> {
  const said = '{"state":"ok","changed":false,"program":"gost","served":true,"ruleWas":true}'
  const text =
    `#!/bin/sh\ncase "$*" in *uname*) echo Linux ;; *) cat > /dev/null; echo '${said}' ;; esac\n`
  await fs.outputFile(join(dir, 'bin', 'ssh'), text, { mode: 0o755 })
  return join(dir, 'bin')
}

test('leaves the host as it was on a dry run, and its scripts have no syntax that 5.1 lacks', async ({ host, dir }) => {
  const scripts: Record<string, string> = {}
  const noted = (name: string): PowerShell => (pieces, ...values) => {
    scripts[name] = script(pieces, ...values)
    return host.ps(pieces, ...values)
  }
  const { vdi } = await demo('bios', dir)
  const disk = join(dir, 'demo.vhdx')
  await convertDisk({ from: vdi, to: disk })
  const placed = join(dir, 'placed.vhdx')
  const done: (() => Promise<unknown>)[] = []
  /** Asks, compares the host's state, does it, and asks again. */
  const job = async <O, R extends { changed: boolean }>(
    task: (options: O, ps?: PowerShell) => Promise<R>,
    options: Omit<O, 'dryRun'>,
    undo: (result: R, ps?: PowerShell) => Promise<unknown>,
  ) => {
    const before = await host.text()
    const would = await task({ ...options, dryRun: true } as O, noted(task.name))
    equal(await host.text(), before, `${task.name} changes something on a dry run`)
    const result = await task(options as O, host.ps)
    equal(result.changed, true, task.name)
    equal(would.changed, true, task.name)
    const after = await host.text()
    equal(
      (await task(options as O, host.ps)).changed,
      false,
      `${task.name} changes something twice`,
    )
    equal(await host.text(), after, task.name)
    done.push(() => undo(result, noted(undo.name)))
  }
  const seed = JSON.parse(await host.text())
  await checkHost(
    { vm: 'demo', internal: 'Static-NAT', hostIp: '192.168.56.1/24', nat: true },
    noted('checkHost'),
  )
  await readNetwork(noted('readNetwork'))
  await copyFile({ vm: 'none', from: 'a', to: '/a' }, noted('copyFile')).catch(() => undefined)
  await verify({ vm: 'none' }, noted('verify')).catch(() => undefined)
  deepEqual(JSON.parse(await host.text()), seed)
  const { features } = seed
  const hyperV = { changed: true, windows: 'client', restartNeeded: true, resume: null } as const
  await enableHyperV({ dryRun: true }, noted(enableHyperV.name))
  await undoEnableHyperV(
    { ...hyperV, notes: [], before: { features: [], launchType: null, waited: true } },
    noted(undoEnableHyperV.name),
  )
  deepEqual((await host.state()).features, features)
  await job(importVm, { from: await exportOne(host, dir) }, undoImportVm)
  await job(placeDisk, { from: disk, to: placed }, undoPlaceDisk)
  await job(
    createSwitch,
    { switch: '桥接', type: 'external' as const, adapter: 'Wi-Fi' },
    undoCreateSwitch,
  )
  await job(toggleShare, { state: 'off' as const, switch: '桥接' }, undoToggleShare)
  await job(createSwitch, { switch: 'Static-NAT', type: 'internal' as const }, undoCreateSwitch)
  await job(
    setStaticIp,
    { switch: 'Static-NAT', hostIp: '192.168.56.1/24', nat: true },
    undoSetStaticIp,
  )
  await job(forwardPort, { port: 2222, guestIp: '192.168.56.191' }, undoForwardPort)
  await job(createVm, { vm: 'demo', disk: [placed] }, undoCreateVm)
  await job(openVm, { vm: 'demo', enhanced: false }, undoOpenVm)
  await job(setHardware, { vm: 'demo', timeSync: false }, undoSetHardware)
  await job(attachAdapter, { vm: 'demo', switch: 'Static-NAT' }, undoAttachAdapter)
  await job(enableNested, { vm: 'demo' }, undoEnableNested)
  await job(startVm, { vm: 'demo' }, undoStartVm)
  await job(setGuestIp, { vm: 'demo', guestIp: '192.168.56.191' }, undoSetGuestIp)
  for (const undo of done.reverse()) await undo()
  equal((await host.state()).vms.length, 0)

  const folder = join(dir, 'scripts')
  for (const [name, text] of Object.entries(scripts)) {
    await fs.outputFile(join(folder, `${name}.ps1`), `\ufeff${text}`)
  }
  deepEqual(await analyze(host.ps, folder), [])
})

jobs.run()

/** A folder that Hyper-V exported, of a VM that is gone. */
async function exportOne(host: SimulatedHost, dir: string): Promise<string> {
  await host.ps`
    $to = ${dir}
    $vm = New-VM -Name 'exported' -NoVHD
    Export-VM -VM $vm -Path $to
    Remove-VM -VM $vm -Force`
  return join(dir, 'exported')
}

function run(
  program: string,
  args: string[],
  { cwd = root, env = process.env }: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const own = program === 'node' && !('Deno' in globalThis)
  return new Promise((resolve) => {
    execFile(
      own ? process.execPath : program,
      args,
      {
        cwd,
        // what npm puts into .bin on Windows are scripts for cmd
        shell: process.platform === 'win32' && !own,
        env: { ...env, FORCE_COLOR: '0', PATH: `${bin}${delimiter}${env.PATH}` },
      },
      (error, stdout, stderr) => resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    )
  })
}
