import { deepEqual, equal, match } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'

const root = join(import.meta.dirname as string, '..', '..')
// beside the tasks, where its packages are found
const file = join(root, 'test', 'tasks', `command-${process.pid}.ts`)

const commands = suite('command')

commands.before(() =>
  fs.writeFile(
    file,
    `import { command, dryRun } from '../../tasks/task.ts'
    await command(import.meta, 'Say what it was given', {
      state: { type: 'string', positional: true, demandOption: true, choices: ['on', 'off'], describe: 'x', example: 'on' },
      hostIp: { type: 'string', demandOption: true, describe: 'x', example: '10.0.0.1/24' },
      disk: { type: 'string', array: true, describe: 'x' },
      more: { type: 'string', positional: true, array: true, describe: 'x' },
      cpus: { type: 'number', describe: 'x' },
      share: { type: 'boolean', describe: 'x' },
      dryRun,
    }, async (options) => {
      if (options.cpus === 13) throw new Error('Cannot use 13 CPUs: no reason')
      return { ...options, restartNeeded: options.cpus === 7 }
    })`,
  )
)
commands.after(() => fs.remove(file))

commands('gives the options by their names, as the types they were declared', async () => {
  const { stdout, code } = await run('on', '--host-ip', '007', '--disk', 'a', 'b', '--no-share')
  equal(code, 0)
  deepEqual(JSON.parse(stdout), {
    state: 'on',
    hostIp: '007',
    disk: ['a', 'b'],
    share: false,
    more: [],
    restartNeeded: false,
  })
})

commands('takes what follows two dashes for names, whatever they begin with', async () => {
  const { stdout } = await run('--host-ip', 'x', '--', 'on', '-x', '--dry-run')
  const { state, more, dryRun } = JSON.parse(stdout)
  deepEqual({ state, more, dryRun }, { state: 'on', more: ['-x', '--dry-run'], dryRun: undefined })
})

commands('takes all of a list that is given in parts', async () => {
  const { stdout } = await run('on', '--host-ip', 'x', '--disk', 'a', 'b', '--disk', 'c')
  deepEqual(JSON.parse(stdout).disk, ['a', 'b', 'c'])
})

commands('takes a value that begins with a dash after an equals sign', async () => {
  equal(JSON.parse((await run('on', '--host-ip=-x')).stdout).hostIp, '-x')
})

commands('says what it cannot understand on standard error, with exit code 1', async () => {
  for (
    const args of [[], ['on'], ['up', '--host-ip', 'x'], ['on', '--host-ip', 'x', '--foo'], [
      'on',
      '--host-ip',
      '--dry-run',
    ]]
  ) {
    const { code, stdout, stderr } = await run(...args)
    equal(code, 1, args.join(' '))
    equal(stdout, '')
    match(stderr, /Run with --help/)
  }
})

commands('says what failed on standard error, in a sentence, with exit code 1', async () => {
  const { code, stdout, stderr } = await run('on', '--host-ip', 'x', '--cpus', '13')
  equal(code, 1)
  equal(stdout, '')
  equal(stderr, 'Cannot use 13 CPUs: no reason\n')
})

commands('tells by its exit code that Windows is to be restarted', async () => {
  const { code } = await run('on', '--host-ip', 'x', '--cpus', '7')
  equal(code, process.platform === 'win32' ? 3010 : 1)
})

commands('has a help in English with a whole example, whatever the user’s language', async () => {
  const { code, stdout } = await run('--help')
  equal(code, 0)
  match(stdout, /Examples:\n +npx zx .*command-\d+\.ts on --host-ip 10\.0\.0\.1\/24/)
})

commands.run()

function run(...args: string[]) {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      process.execPath,
      [...runtime, file, ...args],
      { env: { ...process.env, FORCE_COLOR: '0', LC_ALL: 'zh_CN.UTF-8' } },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}
