import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { tunnelsDown, tunnelsNow, tunnelsUp } from '../../../recipes/run/tunnels.ts'
import { freePort } from '../../ports.ts'
import { type SocksServer, socksServer } from '../../socks-server.ts'
import { reaches, until } from '../../tunnel-hosts.ts'

const tunnels = suite<{ dir: string; config: string; socks: SocksServer; echo: Server }>(
  'tunnels in the background',
)
// Node under Wine writes to no pipe
const test = process.platform === 'win32' ? tunnels.skip : tunnels

tunnels.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'tunnels-'))
  context.socks = await socksServer()
  context.echo = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1')
  await once(context.echo, 'listening')
  context.config = join(context.dir, 'tunnels of the “intranet”.json')
  await describe(context.config, context.echo, context.socks.port)
})
tunnels.after.each(async ({ dir, socks, echo }) => {
  await tunnelsDown({ state: dir })
  await socks.close()
  echo.close()
  await fs.remove(dir)
})

const describe = async (config: string, echo: Server, socks: number, name = 'echo') => {
  const { port } = echo.address() as { port: number }
  const via = [`socks5://127.0.0.1:${socks}`]
  const local = `${await freePort()}`
  await fs.writeJson(config, { tunnels: [{ name, to: `127.0.0.1:${port}`, via, local }] })
}

async function says(port: number, words: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.end(words)
  let text = ''
  for await (const data of socket.setEncoding('utf8')) text += data
  return text
}

test('stay open behind who asked for them, once, and end when told to', async ({ dir, config }) => {
  const up = await tunnelsUp({ config, state: dir })
  equal(up.changed, true)
  const [tunnel] = up.tunnels
  ok(tunnel)
  equal(tunnel.name, 'echo')
  equal(await says(tunnel.port, 'hello'), 'hello')
  deepEqual(await tunnelsUp({ config, state: dir }), { ...up, changed: false })
  deepEqual((await tunnelsNow(dir)).tunnels, up.tunnels)
  equal((await tunnelsDown({ state: dir })).changed, true)
  await rejects(says(tunnel.port, 'hello'), /ECONNREFUSED|refused/)
  deepEqual((await tunnelsNow(dir)).tunnels, [])
  equal((await tunnelsDown({ state: dir })).changed, false)
})

test('are those of the file as it is now', async ({ dir, config, echo, socks }) => {
  const first = await tunnelsUp({ config, state: dir })
  await describe(config, echo, socks.port, 'other')
  const second = await tunnelsUp({ config, state: dir })
  deepEqual([second.changed, second.tunnels.map(({ name }) => name)], [true, ['other']])
  await rejects(says(first.tunnels[0]?.port ?? 0, 'x'))
})

test('end where another has taken their place, and leave its file and its log', async ({ dir, config }) => {
  const [tunnel] = (await tunnelsUp({ config, state: dir })).tunnels
  const file = join(dir, 'tunnels.json')
  const other = JSON.stringify({ ...await fs.readJson(file), id: 'another' })
  await fs.writeFile(file, other)
  await until(async () => !await reaches(tunnel?.port ?? 0), 'the end')
  equal(await fs.readFile(file, 'utf8'), other)
  ok(!/ended|closed/.test(await fs.readFile(join(dir, 'tunnels.log'), 'utf8')))
  await fs.remove(file)
})

test('end when who keeps them is killed', async ({ dir, config }) => {
  const [tunnel] = (await tunnelsUp({ config, state: dir })).tunnels
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,args='])
  const keeper = stdout.split('\n').find((line) =>
    line.includes(dir) && line.includes('tunnels.ts') && !line.includes('--config')
  )
  process.kill(Number.parseInt(keeper ?? ''), 'SIGKILL')
  await until(async () => !await reaches(tunnel?.port ?? 0), 'the end')
  await fs.remove(join(dir, 'tunnels.json')) // nobody is there to say that it has ended
})

test('leave nothing where one cannot be opened, and say why', async ({ dir, config }) => {
  const via = ['ssh://nobody@127.0.0.1:1']
  await fs.writeJson(config, { tunnels: [{ name: 'db', to: 'db:3306', via }] })
  await rejects(tunnelsUp({ config, state: dir }), (error: Error) => {
    match(
      error.message,
      /^Cannot keep the tunnels of ".+" open: .*127\.0\.0\.1:1.*What happened is in "/s,
    )
    return true
  })
  deepEqual((await tunnelsNow(dir)).tunnels, [])
  equal(await fs.pathExists(join(dir, 'tunnels.json')), false)
})

test('change nothing on a dry run', async ({ dir, config }) => {
  equal((await tunnelsUp({ config, state: dir, dryRun: true })).changed, true)
  equal(await fs.pathExists(join(dir, 'tunnels.json')), false)
  const up = await tunnelsUp({ config, state: dir })
  equal((await tunnelsDown({ state: dir, dryRun: true })).changed, true)
  deepEqual((await tunnelsNow(dir)).tunnels, up.tunnels)
})

tunnels.run()
