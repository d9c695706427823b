import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { inflateSync } from 'node:zlib'
import { suite } from 'uvu'
import { createVm } from '../../tasks/create-vm.ts'
import { Secret } from '../../tasks/task.ts'
import { verify } from '../../tasks/verify.ts'
import { png, uniform } from '../../tasks/verify/png.ts'
import { type Known, likely } from '../../tasks/verify/symptoms.ts'
import { showPicture, sixels, type Terminal } from '../../tasks/verify/terminal.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { gptDisk, vhdx } from './convert-disk/images.ts'

const HOSTILE = 'Bob’s "VM"; $(calc) 桥接 [a*]'

const verifying = suite<{ host: SimulatedHost; seed: object; port: number; close: () => void }>(
  'verify',
)
const test = needs(verifying, 'pwsh')

verifying.before(async (context) => {
  const host = context.host = await simulatedHost()
  const disk = join(host.dir, 'it’s.vhdx')
  await fs.writeFile(disk, vhdx(gptDisk('c12a7328-f81f-11d2-ba4b-00a0c93ec93b')))
  await createVm({
    vm: HOSTILE,
    disk: [disk],
    generation: 2,
    memory: '64MB',
    secureBoot: 'windows',
  }, host.ps)
  await host.ps`Get-VM | Get-VMNetworkAdapter | Remove-VMNetworkAdapter
    $null = New-VMSwitch -Name 'lan' -SwitchType Internal
    Get-VM | Add-VMNetworkAdapter -SwitchName 'lan' -Name 'lan' -StaticMacAddress '080027000007'
    Get-VM | Start-VM`
  context.seed = await host.state()
  const server = createServer((socket) => socket.end()).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  context.port = (server.address() as { port: number }).port
  context.close = () => server.close()
})
verifying.before.each(({ host, seed }) => host.change((state) => Object.assign(state, seed)))
verifying.after(async ({ host, close }: { host: SimulatedHost; close?: () => void }) => {
  close?.() // not where all tests skip
  await host.close()
})

/** What the guest of the test's VM does. */
const guest = (host: SimulatedHost, levers: object) =>
  host.change((state) => state.guests = { '*': levers })
const SILENT = { integration: false, screen: 'text' }

test('proves by its heartbeat that a guest has started, and tells where it is reached', async ({ host, port }) => {
  await guest(host, { heartbeat: { polls: 0 }, addresses: ['127.0.0.1', '169.254.1.1', 'fe80::1'] })
  const before = await host.text()
  const result = await verify({ vm: HOSTILE.toUpperCase(), port: [port, 1], timeout: 5 }, host.ps)
  equal(await host.text(), before)
  const { booted, heartbeat, os, guest: family, addresses, screenshot, likely } = result
  deepEqual({ booted, heartbeat, os, family, screenshot, likely }, {
    booted: 'yes',
    heartbeat: 'ok',
    os: 'Windows 11 Pro',
    family: 'windows',
    screenshot: null,
    likely: [],
  })
  deepEqual(addresses.map(({ ping: _, ...address }) => address), [{
    adapter: 'lan',
    address: '127.0.0.1',
    seenBy: 'integration services',
    ports: [{ port, answer: 'open' }, { port: 1, answer: 'refused' }],
  }])
  ok(
    result.services.some(({ name, enabled, ok }) =>
      name === 'time synchronization' && enabled && ok
    ),
  )
  equal(result.reasons[0], "The guest's heartbeat is there: Windows 11 Pro")
})

test('proves by its network that a guest without integration services has started', async ({ host, port }) => {
  await guest(host, SILENT)
  await host.change((state) => {
    state.neighbors = [{ ifIndex: 1, address: '127.0.0.1', mac: '080027000007', state: 'Stale' }]
  })
  const { booted, heartbeat, addresses } = await verify(
    { vm: HOSTILE, port: [port], timeout: 0, guest: 'linux' },
    host.ps,
  )
  deepEqual([booted, heartbeat], ['yes', 'none'])
  deepEqual(addresses.map(({ seenBy, address }) => [seenBy, address]), [['arp', '127.0.0.1']])
})

test('shows the screen of a guest that does not answer, and what may be the matter', async ({ host }) => {
  await guest(host, SILENT)
  const file = join(host.dir, 'shots', 'screen.png')
  const result = await verify({ vm: HOSTILE, timeout: 0, screenshot: file }, host.ps)
  equal(result.booted, 'no')
  equal(result.screenshot, file)
  const { width, height, pixels } = decode(await fs.readFile(file))
  deepEqual([width, height], [800, 600])
  deepEqual([...pixels.subarray(0, 12)], [255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
  match(
    result.reasons.join('\n'),
    /no heartbeat in the \d+ s .+\nNo address of it is known\nIts screen: "/,
  )
  equal(result.likely[0]?.symptom, 'the-signed-images-hash-is-not-allowed')
  const text = JSON.stringify(result.likely)
  ok(text.includes('Bob’’s'), 'a quote in a name is doubled')
  ok(text.includes('it’’s.vhdx') || text.includes("it’s.vhdx'"), text)
})

test('says that a screen is of one colour, and that there is none', async ({ host }) => {
  await guest(host, { ...SILENT, screen: 'black' })
  const file = join(host.dir, 'black.png')
  const black = await verify({ vm: HOSTILE, timeout: 0, screenshot: file }, host.ps)
  match(black.reasons.join('\n'), /Its screen is of one colour: /)
  await guest(host, { ...SILENT, screen: 32768 })
  const none = await verify(
    { vm: HOSTILE, timeout: 0, screenshot: join(host.dir, 'none.png') },
    host.ps,
  )
  equal(none.screenshot, null)
  match(none.reasons.join('\n'), /gives no picture of its screen \(32768\)/)
  equal(await fs.pathExists(join(host.dir, 'none.png')), false)
})

test('says that a VM which is off has not started', async ({ host }) => {
  await host.change(({ vms: [vm] }) => vm.state = 'Off')
  const { booted, reasons, likely } = await verify({ vm: HOSTILE }, host.ps)
  deepEqual([booted, reasons, likely], [
    'no',
    ['It is Off, so nothing of the guest can answer'],
    [],
  ])
})

test('refuses a VM that is not there, and what is no name, time or port', async ({ host }) => {
  await rejects(verify({ vm: 'none' }, host.ps), {
    message: 'Cannot verify "none": there is no such VM. Run: Get-VM',
  })
  await rejects(verify({ vm: 'a\nb' }, host.ps), /1 to 100 characters/)
  await rejects(verify({ vm: 'a', timeout: -1 }, host.ps), /it is 0 to 86400/)
  await rejects(verify({ vm: 'a', port: [0] }, host.ps), /it is 1 to 65535/)
})

test('pain 24, 25: asks a Windows guest for its clock, activation and first start, with an account that is on no command line', async ({ host }) => {
  const account = { user: 'admin', password: 'guest’s $(id)' }
  await guest(host, { heartbeat: { polls: 0 }, ...account })
  const options = { vm: HOSTILE, port: [1], timeout: 5 }
  const password = new Secret(account.password)
  const quiet = await verify({ ...options, credential: { user: 'admin', password } }, host.ps)
  deepEqual(quiet.report, { activated: true, firstStart: [] })
  const { vms: [{ id }] } = await host.state()
  const log = join(host.dir, 'guests', id.toUpperCase(), 'ProgramData', 'vbox-to-hyperv')
  await fs.outputFile(join(log, 'first-start.log'), 'x has 10.0.0.5 again\n')
  await guest(host, { heartbeat: { polls: 0 }, ...account, windows: { licence: 5 } })
  const told = await verify({ ...options, credential: { user: 'admin', password } }, host.ps)
  deepEqual(told.report, { activated: false, firstStart: ['x has 10.0.0.5 again'] })
  match(told.reasons.join('\n'), /^Windows in it is not activated\. .+ slmgr \/ato/m)
  match(told.reasons.join('\n'), /^At its first start here: x has 10\.0\.0\.5 again$/m)
  const { clock, reasons } = await verify(
    { ...options, credential: { user: account.user, password } },
    host.ps,
  )
  ok(clock !== null && Math.abs(clock) < 5, `${clock} s`)
  ok(!reasons.some((reason) => reason.includes('clock')))
  await rejects(
    verify({ ...options, credential: { user: 'admin', password: new Secret('no') } }, host.ps),
    /the guest does not take the account "admin": its password is wrong or empty/,
  )
  const args = ['--vm', HOSTILE, '--timeout', '5', '--port', '1']
  host.env.GUEST_PASSWORD = account.password
  const asked = await runTask(
    host,
    'verify',
    ...args,
    ...['--user', 'admin', '--credential', 'env:GUEST_PASSWORD'],
  )
  deepEqual([asked.code, asked.stderr], [0, ''])
  equal(typeof JSON.parse(asked.stdout).clock, 'number')
  const none = await runTask(host, 'verify', ...args, '--credential', 'env:GUEST_PASSWORD')
  equal(none.code, 1)
  match(none.stderr, /Run again with --user Administrator/)
})

test('is a command, which exits with 1 where the guest does not answer', async ({ host }) => {
  await guest(host, { heartbeat: { polls: 0 } })
  const good = await runTask(host, 'verify', '--vm', HOSTILE, '--timeout', '5')
  deepEqual([good.code, good.stderr, JSON.parse(good.stdout).booted], [0, '', 'yes'])
  await guest(host, SILENT)
  const bad = await runTask(host, 'verify', '--vm', HOSTILE, '--timeout', '0')
  equal(bad.code, 1)
  const { screenshot } = JSON.parse(bad.stdout)
  equal(screenshot, join(host.dir, 'Bob_s _VM_ _calc_ 桥接 _a_-screen.png'))
  ok(await fs.pathExists(screenshot))
  match(
    bad.stderr,
    /\(docs\/symptoms\.md#the-signed-images-hash-is-not-allowed\)\n +Stop-VM -Name '/,
  )
})

const known: Known = {
  vm: 'web',
  generation: 1,
  guest: 'unknown',
  secureBoot: null,
  disks: ['D:\\web.vhdx'],
  diskFirst: null,
}
const symptoms = suite('likely')

symptoms('pain 3, 4: names what fits the generation, the guest and Secure Boot', () => {
  const of = (some: Partial<Known>) => likely({ ...known, ...some }).map(({ symptom }) => symptom)
  deepEqual(of({ guest: 'windows' }), [
    'stop-0x7b',
    '0xc000000e',
    'no-boot-device',
    'bitlocker',
    'it-started-and-says-nothing',
  ])
  deepEqual(
    of({ guest: 'linux', generation: 2, secureBoot: 'Windows', diskFirst: true })[0],
    'the-signed-images-hash-is-not-allowed',
  )
  ok(
    !of({ guest: 'linux', generation: 2, secureBoot: 'off', diskFirst: true }).includes(
      'the-signed-images-hash-is-not-allowed',
    ),
  )
  equal(
    of({ guest: 'windows', generation: 2, secureBoot: 'Windows', diskFirst: false })[0],
    'no-boot-device',
  )
  ok(of({ guest: 'linux' }).includes('dracut') && of({ guest: 'linux' }).includes('grub-rescue'))
})

symptoms('have a section each in the manual, and a command each', async () => {
  const manual = await fs.readFile(
    join(import.meta.dirname as string, '..', '..', 'docs', 'symptoms.md'),
    'utf8',
  )
  // as GitHub makes them
  const anchors = [...manual.matchAll(/^## (.+)$/gm)].map(([, title = '']) =>
    title.toLowerCase().replace(/[^\p{L}\p{N} -]/gu, '').replaceAll(' ', '-')
  )
  const named = (['windows', 'linux', 'unknown'] as const).flatMap((guest) =>
    ([1, 2] as const).flatMap((generation) =>
      [true, false].flatMap((diskFirst) =>
        likely({
          ...known,
          guest,
          generation,
          diskFirst,
          secureBoot: generation === 2 ? 'other' : null,
        })
      )
    )
  )
  for (const { symptom, command } of named) {
    ok(anchors.includes(symptom), `${symptom} of ${anchors.join(', ')}`)
    ok(command.length > 0)
  }
})

/** A terminal that answers the question what it is, in two parts, if at all. */
function answering(env: Terminal['env'], answer?: string, isTTY = true) {
  let written = ''
  let hear: ((data: Uint8Array) => void) | undefined
  const modes: boolean[] = []
  const terminal: Terminal = {
    out: {
      isTTY,
      write: (text) => {
        written += text
        if (text !== '\u001b[c' || answer === undefined) return
        hear?.(Buffer.from(answer.slice(0, 4)))
        hear?.(Buffer.from(answer.slice(4)))
      },
    },
    in: {
      isTTY,
      setRawMode: (raw) => modes.push(raw),
      on: (_, listener) => hear = listener,
      off: () => hear = undefined,
      resume: () => {},
      pause: () => {},
    },
    env,
  }
  return { terminal, modes, written: () => written, listens: () => hear !== undefined }
}

const pictures = suite('showPicture')
const picture = png(Uint8Array.of(0x00, 0xf8, 0x1f, 0x00, 0x1f, 0x00, 0x1f, 0x00), 2, 2)

pictures(
  'goes by the protocol of the terminal, and by sixels where it says that it knows them',
  async () => {
    const shown = async (env: Terminal['env'], answer?: string, isTTY = true) => {
      const { terminal, written, modes, listens } = answering(env, answer, isTTY)
      const shows = await showPicture(picture, terminal)
      equal(listens(), false)
      return { shows, text: written(), modes }
    }
    const base64 = Buffer.from(picture).toString('base64')
    const iterm = await shown({ TERM_PROGRAM: 'WezTerm' })
    ok(iterm.shows && iterm.text.includes(`:${base64}\u0007`))
    const kitty = await shown({ TERM: 'xterm-kitty' })
    ok(kitty.shows && kitty.text.includes(`m=0;${base64}\u001b\\`))
    // Windows Terminal 1.22
    const windows = await shown({ WT_SESSION: 'x' }, '\u001b[?61;4;6;7;14;21;22;23;24;28;32;42c')
    equal(windows.shows, true)
    equal(windows.text, `\u001b[c${sixels({ width: 2, height: 2, data: PIXELS })}\n`)
    deepEqual(windows.modes, [true, false])
    const older = await shown({ WT_SESSION: 'x' }, '\u001b[?61;6;7;14;21;22c')
    deepEqual([older.shows, older.text, older.modes], [false, '\u001b[c', [true, false]])
    const mute = await shown({ TERM: 'xterm-256color' })
    deepEqual([mute.shows, mute.modes], [false, [true, false]])
    const file = await shown({ TERM_PROGRAM: 'WezTerm' }, undefined, false)
    deepEqual([file.shows, file.text], [false, ''])
  },
)

/** Red and blue above blue and blue. */
const PIXELS = Uint8Array.of(255, 0, 0, 0, 0, 255, 0, 0, 255, 0, 0, 255)

pictures('writes each colour once, and each band of rows in passes', () => {
  // bit 0 is the row above: red 1, 0; blue 2, 3
  const text = '\u001bPq"1;1;2;2#180;2;100;0;0#180@?$#5;2;0;0;100#5AB-\u001b\\'
  equal(sixels({ width: 2, height: 2, data: PIXELS }), text)
  const white = new Uint8Array(12 * 7 * 3).fill(255)
  const wide = sixels({ width: 12, height: 7, data: white })
  equal(wide, '\u001bPq"1;1;12;7#215;2;100;100;100#215!12~-#215!12@-\u001b\\')
})

needs(pictures, 'script')('are shown by the command, on a terminal alone', async () => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'verify-'))
  try {
    await fs.writeFile(join(dir, 'a.png'), picture)
    const path = join(import.meta.dirname as string, '..', '..', 'tasks', 'verify.ts')
    const code =
      `import(${JSON.stringify(pathToFileURL(path).href)}).then(async ({ showPicture }) => ` +
      `process.exit(await showPicture(require('fs').readFileSync('a.png')) ? 7 : 8))`
    await fs.writeFile(join(dir, 'show.cjs'), code)
    const run = promisify(execFile)
    const config = join(import.meta.dirname as string, '..', '..', 'deno.json')
    const runtime = 'Deno' in globalThis
      ? `${process.execPath} run -A --config ${config}`
      : process.execPath
    const env = { ...process.env, TERM: 'xterm-kitty', TERM_PROGRAM: '' }
    const options = { cwd: dir, env }
    const seen = await run('script', ['-qec', `${runtime} show.cjs`, 'log'], options)
      .then(() => 0, ({ code }) => code)
    equal(seen, 7)
    ok((await fs.readFile(join(dir, 'log'), 'utf8')).includes('\u001b_Ga=T,f=100,c=60,m=0;'))
  } finally {
    await fs.remove(dir)
  }
})

symptoms('know a picture of one colour', () => {
  equal(uniform(new Uint8Array(16)), true)
  equal(uniform(Uint8Array.of(1, 2, 1, 2)), true)
  equal(uniform(Uint8Array.of(1, 2, 2, 1)), false)
  const { pixels } = decode(png(Uint8Array.of(0x00, 0xf8, 0x1f, 0x00), 2, 1))
  deepEqual([...pixels], [255, 0, 0, 0, 0, 255])
})

verifying.run()
symptoms.run()
pictures.run()

/** Reads a PNG of 8 bits a channel without filters. */
function decode(file: Uint8Array): { width: number; height: number; pixels: Buffer } {
  const data = Buffer.from(file)
  equal(data.toString('latin1', 1, 4), 'PNG')
  const [width, height] = [data.readUInt32BE(16), data.readUInt32BE(20)]
  const length = data.readUInt32BE(33)
  equal(data.toString('latin1', 37, 41), 'IDAT')
  const rows = inflateSync(data.subarray(41, 41 + length))
  const pixels = Buffer.concat(
    Array.from({ length: height }, (_, y) => {
      const start = y * (width * 3 + 1)
      equal(rows[start], 0)
      return rows.subarray(start + 1, start + 1 + width * 3)
    }),
  )
  return { width, height, pixels }
}
