#!/usr/bin/env zx
/**
 * Makes the pictures of the README: docs/run.svg, a recorded terminal of a run, and docs/network.svg, the
 * networks that the README's example makes, on the simulated host.
 *
 *     npm run record
 *
 * Needs tmux, in which the run is recorded as a person sees it, and pwsh.
 */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { demo } from '../fixtures/demo.ts'
import { convertDisk } from '../tasks/convert-disk.ts'
import { createSwitch } from '../tasks/create-switch.ts'
import { createVm } from '../tasks/create-vm.ts'
import { attachAdapter } from '../tasks/attach-adapter.ts'
import { setStaticIp } from '../tasks/set-static-ip.ts'
import { showNetwork } from '../tasks/show-network.ts'
import { startVm } from '../tasks/start-vm.ts'
import { quickGuests, simulatedHost } from '../test/simulated-host.ts'

const execute = promisify(execFile)
const root = join(import.meta.dirname as string, '..')
const [COLUMNS, ROWS] = [80, 56]
/** Pixels of a character's cell, for a font of 14. */
const [WIDTH, HEIGHT] = [8.43, 18]

interface Frame {
  /** Milliseconds after the first. */
  at: number
  /** With the escapes of colours. */
  text: string
}

/** What a terminal shows while it runs a command, each picture once. */
async function record(command: string): Promise<Frame[]> {
  const name = `record-${process.pid}`
  const tmux = (...args: string[]) => execute('tmux', ['-L', name, ...args])
  await tmux(
    ...['-f', '/dev/null', 'new-session', '-d', '-s', name, '-x', `${COLUMNS}`, '-y', `${ROWS}`],
    ...['-c', root, `env PS1='$ ' HISTFILE= bash --norc --noprofile`],
  )
  try {
    await wait(500)
    await tmux('send-keys', '-t', name, '-l', command)
    const frames: Frame[] = []
    let start = 0
    const look = async () => {
      const { stdout } = await tmux('capture-pane', '-p', '-e', '-t', name)
      const text = stdout.replace(/\s+$/, '')
      if (text === frames.at(-1)?.text) return false
      start ||= performance.now()
      frames.push({ at: performance.now() - start, text })
      return true
    }
    await wait(300)
    await look()
    await tmux('send-keys', '-t', name, 'Enter')
    const prompt = () => /\n\$$/.test(plain(frames.at(-1)?.text ?? ''))
    let asked = false
    for (let n = 0; n < 1200 && !prompt(); n++) {
      await wait(40)
      await look()
      if (asked || !/Go ahead\?/.test(plain(frames.at(-1)?.text ?? ''))) continue
      asked = true
      // what a person needs to read it
      await wait(1500)
      await tmux('send-keys', '-t', name, 'y', 'Enter')
    }
    return frames
  } finally {
    await tmux('kill-server').catch(() => undefined)
  }
}

// deno-lint-ignore no-control-regex -- these are what a terminal reads
const ESCAPE = /\u001b\[([\d;]*)m/g
const plain = (text: string) => text.replace(ESCAPE, '')
const COLOURS: Record<string, string> = {
  31: '#f47067',
  32: '#6bc46d',
  33: '#daaa3f',
  34: '#6cb6ff',
  35: '#dcbdfb',
  36: '#76e3ea',
  90: '#8b949e',
}

/** The frames as one picture that plays them, over and over. */
function draw(frames: Frame[]): string {
  const end = (frames.at(-1)?.at ?? 0) + 6000
  const rows = Math.max(...frames.map(({ text }) => text.split('\n').length))
  const [width, height] = [Math.ceil(COLUMNS * WIDTH + 24), rows * HEIGHT + 24]
  const percent = (at: number) => `${((at / end) * 100).toFixed(2)}%`
  const shows = frames.map(({ at }, index) => {
    const next = frames[index + 1]
    const [from, to] = [percent(at), next ? percent(next.at) : '100%']
    const before = index === 0 ? '' : `0%{opacity:0}${from}{opacity:0}`
    const after = next ? `${to}{opacity:0}100%{opacity:0}` : '100%{opacity:1}'
    return `@keyframes f${index}{${before}${from}{opacity:1}${after}}` +
      `#f${index}{opacity:0;animation:f${index} ${Math.round(end)}ms step-end infinite}`
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
    '<title>A run of recipes/migrate.ts</title>',
    `<style>text{font:14px ui-monospace,Consolas,Menlo,monospace;fill:#d1d7e0;white-space:pre}`,
    // who wants no motion sees the end
    `${shows.join('')}@media (prefers-reduced-motion){g{animation:none!important}#f${
      frames.length - 1
    }{opacity:1}}</style>`,
    `<rect width="${width}" height="${height}" rx="8" fill="#151b23"/>`,
    ...frames.map(({ text }, index) =>
      `<g id="f${index}">${text.split('\n').map(drawLine).join('')}</g>`
    ),
    '</svg>',
    '',
  ].join('\n')
}

function drawLine(line: string, row: number): string {
  const spans: string[] = []
  let [style, column, from] = ['', 0, 0]
  const add = (part: string) => {
    // not all that draw SVG keep the spaces that a line begins with
    const text = part.trimStart()
    column += part.length - text.length
    if (text.trim() !== '') {
      const x = (12 + column * WIDTH).toFixed(1)
      const length = (cells(text) * WIDTH).toFixed(1)
      spans.push(`<tspan x="${x}" textLength="${length}"${style}>${escape(text)}</tspan>`)
    }
    column += cells(text)
  }
  for (const match of line.matchAll(ESCAPE)) {
    add(line.slice(from, match.index))
    from = match.index + match[0].length
    const codes = (match[1] ?? '').split(';')
    const colour = codes.map((code) => COLOURS[code]).find(Boolean)
    const faint = codes.includes('2') ? ' fill-opacity=".6"' : ''
    const bold = codes.includes('1') ? ' font-weight="bold"' : ''
    style = `${colour ? ` fill="${colour}"` : ''}${faint}${bold}`
  }
  add(line.slice(from).trimEnd())
  return spans.length
    ? `<text xml:space="preserve" y="${12 + (row + 1) * HEIGHT - 5}">${spans.join('')}</text>`
    : ''
}

/** Columns of a terminal: Chinese takes two each. */
function cells(text: string): number {
  return [...text].reduce((sum, one) => sum + (/[\u1100-\u115f\u2e80-\uffdc]/.test(one) ? 2 : 1), 0)
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

/** The networks of the jump host, drawn by the kit's own task. */
async function networks(): Promise<string> {
  const host = await simulatedHost()
  try {
    await host.change(quickGuests)
    const addresses = { 桥接: ['10.20.30.50'], 'Static-NAT': ['192.168.56.191'] }
    await host.change((state) =>
      Object.assign(state.guests, { Win10: { addresses, heartbeat: { polls: 0 } } })
    )
    const { ps } = host
    await createSwitch({ switch: '桥接', type: 'external', adapter: 'Wi-Fi', guard: false }, ps)
    await createSwitch({ switch: 'Static-NAT', type: 'internal' }, ps)
    await setStaticIp({ switch: 'Static-NAT', hostIp: '192.168.56.1/24', nat: true }, ps)
    const disk = join(host.dir, 'Win10.vhdx')
    await convertDisk({ from: (await demo('bios', host.dir)).vdi, to: disk })
    await createVm({ vm: 'Win10', disk: [disk], generation: 1 }, ps)
    await attachAdapter({ vm: 'Win10', switch: '桥接', name: '桥接', mac: '08:00:27:DE:30:01' }, ps)
    await attachAdapter({
      vm: 'Win10',
      switch: 'Static-NAT',
      name: 'Static-NAT',
      mac: '08:00:27:DE:30:02',
    }, ps)
    await startVm({ vm: 'Win10' }, ps)
    const drawn = await showNetwork({ format: 'svg' }, ps) as string
    return drawn.replaceAll(`${hostname()} (the host)`, 'laptop (the host)').replace(
      /(?<=<title>Networks of ).*(?=<)/,
      'laptop',
    )
  } finally {
    await host.close()
  }
}

const state = await fs.mkdtemp(join(tmpdir(), 'record-'))
try {
  await fs.remove(join(root, 'out', 'demo'))
  const frames = await record(
    'npx zx recipes/migrate.ts fixtures/demo/demo-bios.ova --to bundle:out/demo',
  )
  await fs.writeFile(join(root, 'docs', 'run.svg'), draw(frames))
  console.log(`docs/run.svg: ${frames.length} frames`)
} finally {
  await fs.remove(state)
}
await fs.writeFile(join(root, 'docs', 'network.svg'), await networks())
