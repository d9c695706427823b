/** A machine over SSH of a test's own: a real sshd on loopback, with keys made for it. */
import fs from 'fs-extra'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { which } from 'zx'
import { freePort } from './ports.ts'

const execute = promisify(execFile)

export interface SshHost {
  /** `ssh://127.0.0.1:port` */
  url: string
  port: number
  dir: string
  /** What a program needs in its environment so that its `ssh` knows this host and its key. */
  env: NodeJS.ProcessEnv
  knownHosts: string
  /** Ends every connection at once, as a broken link does. */
  cut: () => Promise<void>
  /** Gives the host another key, as another machine has. */
  changeKey: () => Promise<void>
  close: () => Promise<void>
}

/** `env` is the environment of what runs there, where `powershell.exe` is pwsh, started by `shell`. */
export async function sshHost(
  env: NodeJS.ProcessEnv = process.env,
  { shell = '/bin/sh' }: { shell?: string } = {},
): Promise<SshHost> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'ssh-'))
  const file = (name: string) => join(dir, name)
  const bin = file('bin')
  const there = file('there')
  const makeKey = (name: string) =>
    execute('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', '', '-f', file(name)])
  await Promise.all([makeKey('host'), makeKey('user')])
  const port = await freePort()
  const pwsh = await which(process.env.POWERSHELL || 'pwsh')
  await fs.outputFile(join(there, 'powershell.exe'), `#!/bin/sh\nexec "${pwsh}" "$@"\n`)
  // what is started by sshd has nothing of the test's environment but this
  const kept = Object.entries(env).filter(([name]) =>
    /^(SIMULATED_|SSH_CONNECTION|ProgramData|PSModulePath|HOME|LC_ALL)/.test(name)
  )
  await fs.writeFile(
    file('force'),
    [
      '#!/bin/bash',
      `export PATH='${there}${delimiter}${process.env.PATH}'`,
      ...kept.map(([name, value]) => `export ${name}='${value}'`),
      // as sshd on Windows gives the command to the shell that it is told of
      `exec ${shell} -c "$SSH_ORIGINAL_COMMAND"\n`,
    ].join('\n'),
  )
  await fs.writeFile(
    file('sshd_config'),
    [
      `Port ${port}`,
      'ListenAddress 127.0.0.1',
      `HostKey ${file('host')}`,
      `AuthorizedKeysFile ${file('user.pub')}`,
      'StrictModes no',
      'UsePAM no',
      'PasswordAuthentication no',
      'PidFile none',
      `ForceCommand ${file('force')}`,
      '',
    ].join('\n'),
  )
  const knownHosts = file('known_hosts')
  await fs.writeFile(
    knownHosts,
    `[127.0.0.1]:${port} ${await fs.readFile(file('host.pub'), 'utf8')}`,
  )
  await fs.writeFile(
    file('ssh_config'),
    [
      `IdentityFile ${file('user')}`,
      'IdentitiesOnly yes',
      'IdentityAgent none',
      `UserKnownHostsFile ${knownHosts}`,
      'GlobalKnownHostsFile none',
      '',
    ].join('\n'),
  )
  // the user's own configuration, as far as the kit can tell
  await fs.outputFile(
    join(bin, 'ssh'),
    `#!/bin/sh\nexec "${await which('ssh')}" -F "${file('ssh_config')}" "$@"\n`,
  )
  for (const path of [join(bin, 'ssh'), join(there, 'powershell.exe'), file('force')]) {
    await fs.chmod(path, 0o755)
  }
  if (process.getuid?.() === 0) await fs.ensureDir('/run/sshd') // sshd's own, made when Debian boots
  const start = async () => {
    const log = fs.openSync(file('sshd.log'), 'a')
    const started = spawn(await sshd(), ['-D', '-e', '-f', file('sshd_config')], {
      stdio: ['ignore', log, log],
    })
    for (let n = 0; !/listening on/.test(await fs.readFile(file('sshd.log'), 'utf8')); n++) {
      if (n > 1200 || started.exitCode !== null) {
        throw new Error(`sshd does not start: ${await fs.readFile(file('sshd.log'), 'utf8')}`)
      }
      await wait(50)
    }
    return started
  }
  let server: ChildProcess = await start()
  const cut = async () => {
    for (const pid of await children(server.pid as number)) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch { /* it ended by itself */ }
    }
  }
  const stop = async () => {
    await cut()
    if (server.exitCode !== null || server.signalCode !== null) return
    const ended = new Promise((resolve) => server.once('exit', resolve))
    server.kill()
    await ended
  }
  return {
    url: `ssh://127.0.0.1:${port}`,
    port,
    dir,
    env: {
      ...process.env,
      PATH: `${bin}${delimiter}${process.env.PATH}`,
      XDG_RUNTIME_DIR: dir,
      FORCE_COLOR: '0',
    },
    knownHosts,
    cut,
    changeKey: async () => {
      await stop()
      await fs.remove(file('host'))
      await fs.remove(file('host.pub'))
      await makeKey('host')
      await fs.remove(file('sshd.log'))
      server = await start()
    },
    close: async () => {
      await stop()
      await fs.remove(dir)
    },
  }
}

export interface Traffic {
  /** For a program whose connections are counted; it shares none with others. */
  env: NodeJS.ProcessEnv
  count: () => Promise<{ connections: number; starts: number; scripts: number; trips: number }>
}

/**
 * Counts what crosses the wire to a host: connections, PowerShells started, scripts, and how often something
 * was sent and its answer waited for, as scripts that go together have one way there and back.
 */
export async function traffic({ dir, env }: SshHost): Promise<Traffic> {
  const own = await fs.mkdtemp(join(dir, 't'))
  const log = join(own, 'sent')
  const ssh = await which('ssh', { path: env.PATH as string })
  await fs.outputFile(
    join(own, 'bin', 'ssh'),
    `#!/bin/sh\ntee -a "${log}" | "${ssh}" "$@"\n`,
    { mode: 0o755 },
  )
  const logins = async () =>
    (await fs.readFile(join(dir, 'sshd.log'), 'utf8')).match(/Accepted publickey/g)?.length ?? 0
  const before = await logins()
  return {
    env: {
      ...env,
      PATH: `${join(own, 'bin')}${delimiter}${env.PATH}`,
      XDG_RUNTIME_DIR: own,
    },
    count: async () => {
      const sent = await fs.readFile(log, 'latin1')
      const scripts = sent.match(/^\d+ [\d.]+ [01] /gm) ?? []
      return {
        connections: await logins() - before,
        starts: sent.match(/^\$lines = /gm)?.length ?? 0,
        scripts: scripts.length,
        // before each script is how many more come with it
        trips: scripts.filter((line) => line.startsWith('0 ')).length,
      }
    },
  }
}

/** sshd is in no user's PATH. */
export async function sshd(): Promise<string> {
  return await which('sshd', {
    path: `${process.env.PATH}${delimiter}/usr/sbin${delimiter}/usr/local/sbin`,
  })
}

/** All processes below one, the deepest last. */
async function children(pid: number): Promise<number[]> {
  const { stdout } = await execute('ps', ['-A', '-o', 'pid=,ppid=,comm='])
  const all = stdout.trim().split('\n').map((line) => line.trim().split(/\s+/))
  // the connection is sshd's; what it runs is left to notice by itself
  const below = all.filter(([, parent, name]) => Number(parent) === pid && /^sshd/.test(name ?? ''))
    .map(([id]) => Number(id))
  return [...below, ...(await Promise.all(below.map(children))).flat()]
}
