/** The live list of tunnels in a terminal: what each is doing, and what has gone through it. */
import type { WriteStream } from 'node:tty'

export interface Row {
  name: string
  /** Where it listens, and where it leads. */
  from: string
  to: string
  state: 'connecting' | 'up' | 'waiting' | 'closed'
  /** Milliseconds of performance.now() at which it is tried again. */
  again: number
  /** Why it is not up, or what failed last. */
  why: string
  count: () => { connections: number; sent: number; received: number }
}

/** Draws at most so many lines of so many columns: a line a tunnel, and more where something is wrong. */
export function draw(
  rows: readonly Row[],
  { columns, lines, now }: { columns: number; lines: number; now: number },
): string[] {
  const table = rows.map((row) => {
    const { connections, sent, received } = row.count()
    const left = Math.max(0, Math.ceil((row.again - now) / 1000))
    const state = row.state !== 'waiting'
      ? row.state
      : left > 0
      ? `waiting ${left} s`
      : 'connecting'
    const used = sent + received + connections > 0
    const traffic = used ? [`${connections} open`, `↑${amount(sent)}`, `↓${amount(received)}`] : []
    const mark = { up: '✔', closed: '✖' }[state as string] ?? '…'
    return [`${mark} ${cut(plain(row.name), 16)}`, row.from, state, ...traffic]
  })
  const widths = [0, 1, 2, 3, 4, 5].map((column) =>
    Math.max(...table.map((cells) => width(cells[column] ?? '')))
  )
  const lined = table.map((cells) =>
    widths.map((columns, index) => pad(cells[index] ?? '', columns)).join('  ').trimEnd()
  )
  // where it leads, its name tells too: shown where there is room for all
  const room = columns - Math.max(...lined.map(width)) - ' -> '.length
  const shown = room >= Math.min(12, Math.max(...rows.map(({ to }) => width(to))))
  const drawn = rows.flatMap(({ to, why, state }, index) => [
    cut(`${lined[index]}${shown ? ` -> ${cut(plain(to), room)}` : ''}`, columns),
    ...(why && state !== 'closed' ? wrap(plain(why), columns - 2, 3) : []).map((line) =>
      `  ${line}`
    ),
  ])
  if (drawn.length <= lines) return drawn
  return [
    ...drawn.slice(0, Math.max(0, lines - 1)),
    cut(`… and ${drawn.length - lines + 1} lines more`, columns),
  ]
}

/** Draws the rows again and again in their place, until it is closed. */
export function liveList(rows: readonly Row[], stream: WriteStream): {
  /** Leaves the terminal to a question, and comes back after it. */
  hush: (asking: boolean) => void
  close: () => void
} {
  let shown = 0
  let before = ''
  let hushed = false
  const show = () => {
    if (hushed) return
    const { columns = 80, rows: lines = 24 } = stream
    // the last column and line stay free: a terminal moves on when they are written
    const drawn = draw(rows, { columns: columns - 1, lines: lines - 1, now: performance.now() })
    const text = drawn.map((line) => `${line}\x1b[K\n`).join('')
    if (text === before) return
    // in one write, over what is there, so that nothing flickers
    stream.write(`\r${shown > 0 ? `\x1b[${shown}A` : ''}${text}\x1b[J`)
    shown = drawn.length
    before = text
  }
  const timer = setInterval(show, 250)
  show()
  return {
    hush: (asking) => {
      hushed = asking
      // the question has its place, and the list goes on below it
      shown = 0
      before = ''
    },
    close: () => {
      clearInterval(timer)
      show()
    },
  }
}

/** Without what would move the cursor. */
function plain(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, '\ufffd')
}

const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u

/** Columns that a text takes. */
function width(text: string): number {
  let columns = 0
  for (const character of text) {
    columns += /\p{M}/u.test(character) ? 0 : WIDE.test(character) ? 2 : 1
  }
  return columns
}

function pad(text: string, columns: number): string {
  return text + ' '.repeat(Math.max(0, columns - width(text)))
}

function cut(text: string, columns: number): string {
  if (width(text) <= columns) return text
  let kept = ''
  for (const character of text) {
    if (width(kept + character) > columns - 1) break
    kept += character
  }
  return `${kept}…`
}

/** Breaks a text between words; what does not fit into so many lines is cut. */
function wrap(text: string, columns: number, lines: number): string[] {
  const wrapped: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line && width(line) + 1 + width(word) > columns && wrapped.length < lines - 1) {
      wrapped.push(line)
      line = word
    } else line = line ? `${line} ${word}` : word
  }
  return [...wrapped, line].map((one) => cut(one, columns))
}

function amount(bytes: number): string {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(bytes, 1)) / 10)))
  const number = bytes / 1024 ** power
  return `${number.toFixed(power === 0 || number >= 100 ? 0 : 1)} ${
    'B KB MB GB TB'.split(' ')[power]
  }`
}
