/** A picture in the terminal itself, where the terminal can show one. */
import process from 'node:process'
import { rgb } from './png.ts'

/** A terminal: what is written to it, and what it answers. */
export interface Terminal {
  out: { isTTY?: boolean; write: (text: string) => unknown }
  in: {
    isTTY?: boolean
    isRaw?: boolean
    setRawMode?: (raw: boolean) => unknown
    on: (event: 'data', listener: (data: Uint8Array) => void) => unknown
    off: (event: 'data', listener: (data: Uint8Array) => void) => unknown
    resume: () => unknown
    pause: () => unknown
  }
  env: Record<string, string | undefined>
}

/** Milliseconds that a terminal may take to answer, also over SSH. */
const PATIENCE = 500

/**
 * Shows a PNG of {@link png}: by the protocols of iTerm2 and kitty, else as sixels, which Windows Terminal
 * from 1.22 on, Visual Studio Code, Konsole, foot and others say that they know when they are asked what
 * they are (DA1, attribute 4). False where nothing was shown.
 */
export async function showPicture(
  file: Uint8Array,
  terminal: Terminal = { out: process.stderr, in: process.stdin, env: process.env },
): Promise<boolean> {
  const { out, env } = terminal
  if (!out.isTTY) return false
  const image = Buffer.from(file).toString('base64')
  if (/^(iTerm\.app|WezTerm)$/.test(env.TERM_PROGRAM ?? '')) {
    out.write(`\u001b]1337;File=inline=1;width=60:${image}\u0007\n`)
  } else if (/kitty|ghostty/.test(env.TERM ?? '')) {
    const parts = image.match(/.{1,4096}/g) ?? []
    parts.forEach((part, index) => {
      const first = index === 0 ? 'a=T,f=100,c=60,' : ''
      out.write(`\u001b_G${first}m=${index < parts.length - 1 ? 1 : 0};${part}\u001b\\`)
    })
    out.write('\n')
  } else if ((await attributes(terminal)).includes('4')) {
    out.write(`${sixels(rgb(file))}\n`)
  } else return false
  return true
}

/** What the terminal says that it is; nothing where it does not answer. */
async function attributes({ out, in: input }: Terminal): Promise<string[]> {
  if (!input.isTTY || !input.setRawMode) return []
  const raw = input.isRaw ?? false
  let answer = ''
  let timer: NodeJS.Timeout | undefined
  let hear = (_: Uint8Array) => {}
  try {
    // else the answer would be shown, and wait for Enter
    input.setRawMode(true)
    await new Promise<void>((done) => {
      timer = setTimeout(done, PATIENCE)
      hear = (data) => {
        answer += Buffer.from(data).toString('latin1')
        if (DEVICE_ATTRIBUTES.test(answer)) done()
      }
      input.on('data', hear)
      input.resume()
      out.write('\u001b[c')
    })
  } finally {
    clearTimeout(timer)
    input.off('data', hear)
    input.pause()
    input.setRawMode(raw)
  }
  return DEVICE_ATTRIBUTES.exec(answer)?.[1]?.split(';') ?? []
}

// deno-lint-ignore no-control-regex -- with which a terminal answers
const DEVICE_ATTRIBUTES = /\u001b\[\?([\d;]*)c/

/**
 * The picture as sixels (DEC STD 070): bands of six rows, in each a pass for every colour. Colours are those
 * of a cube of six steps a side, which is more than a boot screen has.
 */
export function sixels(
  { width, height, data }: { width: number; height: number; data: Uint8Array },
): string {
  const step = (value = 0) => Math.round(value / 51)
  const colour = (x: number, y: number) => {
    const at = (y * width + x) * 3
    return step(data[at]) * 36 + step(data[at + 1]) * 6 + step(data[at + 2])
  }
  const known = new Set<number>()
  let text = ''
  for (let top = 0; top < height; top += 6) {
    const band = new Map<number, Uint8Array>()
    for (let y = top; y < Math.min(top + 6, height); y++) {
      for (let x = 0; x < width; x++) {
        const of = colour(x, y)
        let columns = band.get(of)
        if (columns === undefined) band.set(of, columns = new Uint8Array(width))
        columns[x] = (columns[x] as number) | 1 << (y - top)
      }
    }
    const passes = [...band].map(([of, columns]) => {
      let pass = `#${of}`
      if (!known.has(of)) {
        const percent = [Math.floor(of / 36), Math.floor(of / 6) % 6, of % 6].map((part) =>
          part * 20
        )
        pass += `;2;${percent.join(';')}#${of}`
        known.add(of)
      }
      for (let x = 0; x < width;) {
        let end = x + 1
        while (end < width && columns[end] === columns[x]) end++
        const sixel = String.fromCharCode(63 + (columns[x] as number))
        pass += end - x > 3 ? `!${end - x}${sixel}` : sixel.repeat(end - x)
        x = end
      }
      return pass
    })
    text += `${passes.join('$')}-`
  }
  return `\u001bPq"1;1;${width};${height}${text}\u001b\\`
}
