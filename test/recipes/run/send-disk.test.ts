import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { createHash, randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { removePartial, sendDisk } from '../../../recipes/run/send-disk.ts'
import {
  ConnectionError,
  openPowerShell,
  type PowerShell,
  type PowerShellProcess,
  script,
} from '../../../tasks/task.ts'
import { analyze } from '../../tasks/analyze.ts'
import { needs } from '../../needs.ts'
import { type SshHost, sshHost } from '../../ssh-host.ts'

const MB = 1024 ** 2

const sending = suite<{ ssh: SshHost; host: PowerShellProcess; from: string; to: string }>(
  'sendDisk',
)
const test = needs(sending, 'sshd', 'ssh', 'ps', process.env.POWERSHELL || 'pwsh')

const open = ({ url, env }: SshHost) => openPowerShell({ host: url, env })
let count = 0

sending.before(async (context) => {
  // every context is a copy of this one
  context.ssh ??= await sshHost()
  context.host ??= open(context.ssh)
})
sending.before.each((context) => {
  const { dir } = context.ssh
  context.from = join(dir, `from-${++count}.vhdx`)
  context.to = join(dir, `[a*] Bob’s $(calc) 桥接 ${count}`, 'web.vhdx')
})
sending.after(async ({ host, ssh }) => {
  await host?.close()
  await ssh?.close()
})

test('sends what holds data, and nothing the second time', async ({ host, from, to }) => {
  // data in the middle and an odd end, between zeros
  const data = Buffer.alloc(40 * MB + 777)
  randomFillSync(data, 3 * MB + 5, 2 * MB)
  randomFillSync(data, 38 * MB, 1)
  await fs.writeFile(from, data)
  const progress: number[] = []
  const result = await sendDisk({ from, to }, {
    host,
    onProgress: ({ done, total }) => progress.push(done / total),
  })
  const sha256 = sum(data)
  ok(result.sent >= 2 * MB && result.sent < 3 * MB, `${result.sent}`)
  deepEqual(result, {
    changed: true,
    path: to,
    size: data.length,
    sha256,
    sent: result.sent,
    madeFolder: join(to, '..'),
  })
  equal(progress.at(-1), 1)
  equal(sum(await fs.readFile(to)), sha256)
  deepEqual(await fs.readdir(join(to, '..')), ['web.vhdx'])
  const again = await sendDisk({ from, to }, { host })
  deepEqual(again, { ...result, changed: false, sent: 0, madeFolder: null })
})

test('refuses another file in its place, and leaves it alone', async ({ host, from, to }) => {
  await fs.writeFile(from, 'new')
  for (const text of ['old', 'older']) {
    await fs.outputFile(to, text)
    await rejects(sendDisk({ from, to }, { host }), {
      message: `Cannot send "${from}" to "${to}": another file is there. ` +
        'Remove it, or choose another --name or --storage',
    })
    equal(await fs.readFile(to, 'utf8'), text)
  }
})

test('refuses before anything is written when there is no room', async ({ host, from, to }) => {
  await fs.writeFile(from, '')
  await fs.truncate(from, 8 * 1024 ** 4)
  await rejects(
    sendDisk({ from, to }, { host }),
    /^HostError: Cannot send ".+": it needs 8796093022208 bytes, and \d+ are free\. Make room, or/,
  )
  equal(await fs.pathExists(join(to, '..')), false)
})

test('makes nothing of what an earlier disk left', async ({ host, from, to }) => {
  for (const length of [17, 20]) {
    await fs.outputFile(`${to}.partial`, Buffer.alloc(length * MB, 1))
    const data = Buffer.alloc(18 * MB)
    await fs.writeFile(from, data)
    await sendDisk({ from, to }, { host })
    equal(sum(await fs.readFile(to)), sum(data))
    await fs.remove(to)
  }
})

test('goes on after a broken link, and believes nothing of what is there', async ({ ssh, from, to }) => {
  const data = randomFillSync(Buffer.alloc(160 * MB))
  await fs.writeFile(from, data)
  const host = open(ssh)
  let cut: Promise<void> | undefined
  await rejects(
    sendDisk({ from, to }, {
      host,
      step: 'Send the disk',
      onProgress: ({ done }) => {
        if (done > 80 * MB) cut ??= ssh.cut()
      },
    }),
    (error: Error) => {
      ok(error instanceof ConnectionError)
      match(
        error.message,
        /^The connection to "127\.0\.0\.1" was lost in the middle of "Send the disk"/,
      )
      return true
    },
  )
  await cut
  await host.close()
  equal(await fs.pathExists(to), false)
  const { size } = await fs.stat(`${to}.partial`)
  ok(size > 16 * MB, `${size}`)
  // a byte that the drive lost, in the first block
  const partial = await fs.promises.open(`${to}.partial`, 'r+')
  await partial.write(Buffer.from([(data[5] as number) ^ 1]), 0, 1, 5)
  await partial.close()
  const next = open(ssh)
  const { sent } = await sendDisk({ from, to }, { host: next })
  await next.close()
  ok(
    sent >= 16 * MB + data.length - size && sent <= data.length,
    `${sent} of ${data.length}, ${size} there`,
  )
  ok(sent < data.length, 'it sends all again')
  equal(sum(await fs.readFile(to)), sum(data))
})

test('keeps what has arrived when it is stopped', async ({ ssh, from, to }) => {
  await fs.writeFile(from, randomFillSync(Buffer.alloc(64 * MB)))
  const host = open(ssh)
  const stop = new AbortController()
  await rejects(
    sendDisk({ from, to }, {
      host,
      signal: stop.signal,
      onProgress: ({ done }) => {
        if (done > 32 * MB) stop.abort()
      },
    }),
    { name: 'AbortError' },
  )
  await host.close()
  equal(await fs.pathExists(to), false)
  ok(await fs.pathExists(`${to}.partial`))
})

test('refuses a disk that did not arrive as it was sent', async ({ ssh, from, to }) => {
  await fs.writeFile(from, randomFillSync(Buffer.alloc(64 * MB)))
  const host = open(ssh)
  let damage: Promise<unknown> | undefined
  await rejects(
    sendDisk({ from, to }, {
      host,
      onProgress: ({ done }) => {
        if (done > 48 * MB) damage ??= damaged(`${to}.partial`)
      },
    }),
    /^HostError: Cannot send ".+": it did not arrive as it was sent \(SHA-256 differs\)/,
  )
  await damage
  await host.close()
  deepEqual(await fs.readdir(join(to, '..')), [])
})

test('has no syntax that Windows PowerShell 5.1 lacks', async ({ from, to }) => {
  const scripts: string[] = []
  const answers = [{ path: to, madeFolder: null, sha256: null, blocks: { length: 0, sums: [] } }]
  const ps: PowerShell = (pieces, ...values) => {
    scripts.push(script(pieces, ...values))
    return Promise.resolve({ stdout: JSON.stringify(answers.shift() ?? '') })
  }
  await fs.writeFile(from, 'data')
  await sendDisk({ from, to }, { host: { ps, using: () => ps, close: () => Promise.resolve() } })
  await removePartial(to, ps)
  equal(scripts.length, 3)
  const dir = join(from, '..', 'scripts')
  for (const [n, text] of scripts.entries()) {
    await fs.outputFile(join(dir, `${n}.ps1`), `\ufeff${text}`)
  }
  const { ps: local, close } = openPowerShell()
  deepEqual(await analyze(local, dir), [])
  await close()
})

sending.run()

async function damaged(path: string): Promise<void> {
  const file = await fs.promises.open(path, 'r+')
  await file.write('damage', 0)
  await file.close()
}

function sum(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex')
}
