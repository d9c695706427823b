/** Machines of an intranet for tests, on loopback: real sshds and a real MariaDB. */
import fs from 'fs-extra'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { freePort } from './ports.ts'
import { sshd } from './ssh-host.ts'

const execute = promisify(execFile)

export interface SshServer {
  port: number
  /** Where its files are, `user` and `user.pub` among them: the key that it lets in. */
  dir: string
  identity: string
  /** `type base64` of its host key. */
  hostKey: string
  /** Its log so far. */
  log: () => Promise<string>
  /** Ends it with all its connections. */
  stop: () => Promise<void>
  start: () => Promise<void>
  close: () => Promise<void>
}

/** An sshd that forwards to `permitOpen` alone, where that is given. */
export async function sshServer(
  { permitOpen, options = [] }: { permitOpen?: string; options?: string[] } = {},
): Promise<SshServer> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'sshd-'))
  const file = (name: string) => join(dir, name)
  for (const name of ['host', 'user']) {
    await execute('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', '', '-f', file(name)])
  }
  const port = await freePort()
  const config = [
    `Port ${port}`,
    'ListenAddress 127.0.0.1',
    `HostKey ${file('host')}`,
    `AuthorizedKeysFile ${file('user.pub')}`,
    'StrictModes no',
    'UsePAM no',
    'PasswordAuthentication no',
    'PidFile none',
    'LogLevel VERBOSE',
    ...(permitOpen ? [`PermitOpen ${permitOpen}`] : []),
    ...options,
  ]
  await fs.writeFile(file('sshd_config'), config.join('\n') + '\n')
  if (process.getuid?.() === 0) await fs.ensureDir('/run/sshd') // sshd's own, made when Debian boots
  let server: ChildProcess | undefined
  const log = () => fs.readFile(file('log'), 'utf8')
  const start = async () => {
    await fs.writeFile(file('log'), '')
    const fd = fs.openSync(file('log'), 'a')
    server = spawn(await sshd(), ['-D', '-e', '-f', file('sshd_config')], {
      stdio: ['ignore', fd, fd],
    })
    fs.closeSync(fd)
    await until(async () => /listening on/.test(await log()), `sshd: ${file('log')}`)
  }
  const stop = async () => {
    if (server === undefined) return
    const own = server
    server = undefined
    const below = await children(own.pid as number)
    const exit = own.exitCode === null && own.signalCode === null ? once(own, 'exit') : undefined
    own.kill('SIGKILL')
    for (const pid of below) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch { /* it ended by itself */ }
    }
    await exit
  }
  await start()
  return {
    port,
    dir,
    identity: file('user'),
    hostKey: (await fs.readFile(file('host.pub'), 'utf8')).trim(),
    log,
    stop,
    start,
    close: async () => {
      await stop()
      await fs.remove(dir)
    },
  }
}

/** A MariaDB with a user `app` whose password is `changeme`. */
export async function mariadb(): Promise<{ port: number; close: () => Promise<void> }> {
  const dir = await fs.mkdtemp(join(tmpdir(), 'mariadb-'))
  const user = process.getuid?.() === 0 ? ['--user=root'] : []
  const data = `--datadir=${join(dir, 'data')}`
  await execute('mariadb-install-db', ['--no-defaults', data, ...user, '--skip-test-db'])
  const init = join(dir, 'init.sql')
  await fs.writeFile(
    init,
    "CREATE USER app@'%' IDENTIFIED BY 'changeme';\nGRANT ALL ON *.* TO app@'%';\n",
  )
  const port = await freePort()
  const server = spawn('/usr/sbin/mariadbd', [
    '--no-defaults',
    data,
    ...user,
    `--socket=${join(dir, 'socket')}`,
    `--pid-file=${join(dir, 'pid')}`,
    `--port=${port}`,
    '--bind-address=127.0.0.1',
    '--skip-name-resolve',
    `--init-file=${init}`,
  ], { stdio: 'ignore' })
  await until(() => reaches(port), 'mariadbd')
  return {
    port,
    close: async () => {
      const ends = server.exitCode === null && server.signalCode === null
      const exit = ends ? once(server, 'exit') : undefined
      server.kill('SIGKILL')
      await exit
      await fs.remove(dir)
    },
  }
}

/** Debian's SOCKS5 server; `-u USER -P PASSWORD` make it want them. */
export async function microsocks(
  ...args: string[]
): Promise<{ address: string; close: () => Promise<void> }> {
  const port = await freePort()
  const server = spawn('microsocks', ['-i', '127.0.0.1', '-p', `${port}`, ...args], {
    stdio: 'ignore',
  })
  await until(() => reaches(port), 'microsocks')
  return {
    address: `127.0.0.1:${port}`,
    close: async () => {
      const exit = once(server, 'exit')
      server.kill()
      await exit
    },
  }
}

/** Waits until something holds; a minute is far more than it takes. */
export async function until(holds: () => Promise<boolean> | boolean, what: string): Promise<void> {
  for (let n = 0; !(await holds()); n++) {
    if (n > 1200) throw new Error(`waited in vain: ${what}`)
    await wait(50)
  }
}

export async function reaches(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

/** The processes of sshd below one. */
async function children(pid: number): Promise<number[]> {
  const { stdout } = await execute('ps', ['-A', '-o', 'pid=,ppid='])
  const all = stdout.trim().split('\n').map((line) => line.trim().split(/\s+/).map(Number))
  const below = all.filter(([, parent]) => parent === pid).map(([id]) => id as number)
  return [...below, ...(await Promise.all(below.map(children))).flat()]
}
