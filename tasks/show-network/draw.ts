/** Draws the networks of a host: for a terminal, for Mermaid, and as an image. */
import {
  cidr,
  covers,
  type HostAdapter,
  isLinkLocal,
  keyOf,
  type Network,
  type Port,
  type Switch,
} from './network.ts'

/** A box of the picture: a title, and a line of text for each adapter or fact in it. */
interface Box {
  key: string
  title: string
  lines: { key: string; text: string }[]
}

/** Outside on the left, switches in the middle, who uses them on the right. */
interface Picture {
  columns: [Box[], Box[], Box[]]
  /** Keys of boxes or of lines in them. */
  links: [from: string, to: string][]
}

function picture({ host, adapters, switches, ports, nats }: Network): Picture {
  const fact = (text: string) => ({ key: '', text })
  const cards = adapters.map((one): Box => ({
    key: keyOf.adapter(one),
    title: one.name,
    lines: [one.description, ...facts(one)].map(fact),
  }))
  const natOf = (one: Switch) =>
    nats.filter(({ prefix }) =>
      ports.some(({ vm, switch: on, addresses }) =>
        vm === null && on === one.id && addresses.some(({ address }) => covers(prefix, address))
      )
    )
  const natLine = (nat: Network['nats'][number]) => ({
    key: keyOf.nat(nat),
    text: `NAT "${nat.name}" for ${nat.prefix}`,
  })
  const boxes = switches.map((one): Box => ({
    key: keyOf.switch(one),
    title: one.name,
    lines: [fact(kindOf(one)), ...natOf(one).map(natLine)],
  }))
  const placed = switches.flatMap(natOf)
  const alone = nats.filter((nat) => !placed.includes(nat)).map((nat): Box => ({
    key: `box ${keyOf.nat(nat)}`,
    title: 'No switch',
    lines: [natLine(nat)],
  }))
  const users = new Map<string, Box>()
  for (const port of ports) {
    const key = `user ${port.vm?.id ?? ''}`
    const title = port.vm ? `${port.vm.name} (${port.vm.state})` : `${host} (the host)`
    const box = users.get(key) ?? { key, title, lines: [] }
    box.lines.push({ key: keyOf.port(port), text: [port.name, ...facts(port)].join(', ') })
    users.set(key, box)
  }
  return {
    columns: [cards, [...boxes, ...alone], [...users.values()]],
    links: [
      ...adapters.flatMap((one): [string, string][] =>
        one.switch === null ? [] : [[keyOf.adapter(one), `switch ${one.switch}`]]
      ),
      ...ports.flatMap((one): [string, string][] =>
        one.switch === null ? [] : [[`switch ${one.switch}`, keyOf.port(one)]]
      ),
    ],
  }
}

/** The picture for a terminal: a tree from the adapters to those who use them, and the conflicts. */
export function drawText(network: Network): string {
  const { columns: [cards, middle, users], links } = picture(network)
  const marked = new Set(network.conflicts.flatMap(({ about }) => about))
  const mark = (key: string) => marked.has(key) ? '! ' : ''
  interface Branch {
    texts: string[]
    branches: Branch[]
  }
  const ends = (key: string) =>
    users.flatMap(({ title, lines }) =>
      lines.filter((line) => links.some(([from, to]) => from === key && to === line.key))
        .map((line): Branch => ({
          texts: [`${mark(line.key)}${title}`, line.text],
          branches: [],
        }))
    )
  const branch = (box: Box): Branch => ({
    texts: [mark(box.key) + box.title, ...box.lines.map(({ key, text }) => mark(key) + text)],
    branches: [
      ...middle.filter((one) => links.some(([from, to]) => from === box.key && to === one.key))
        .map(branch),
      ...ends(box.key),
    ],
  })
  const inner = middle.filter(({ key }) => !links.some(([, to]) => to === key))
  const loose = users.flatMap(({ title, lines }) =>
    lines.filter(({ key }) => !links.some(([, to]) => to === key))
      .map((line): Branch => ({ texts: [title, `${line.text}, not connected`], branches: [] }))
  )
  const grow = ({ texts, branches }: Branch, first: string, rest: string): string[] => [
    ...texts.map((text, index) => {
      // the details stand in the line of the branches that follow
      if (index === 0) return first + clean(text)
      return `${rest}${branches.length > 0 ? '│ ' : '  '}${clean(text)}`
    }),
    ...branches.flatMap((one, index) => {
      const last = index === branches.length - 1
      return grow(one, `${rest}${last ? '└─ ' : '├─ '}`, `${rest}${last ? '   ' : '│  '}`)
    }),
  ]
  const root = {
    texts: [network.host],
    branches: [...cards.map(branch), ...inner.map(branch), ...loose],
  }
  // pixels of the drawing, of which a terminal's cell has seven
  const notes = network.conflicts.flatMap(({ text }) =>
    wrap(clean(text), 76 * 7).map((line, index) => (index === 0 ? '! ' : '  ') + line)
  )
  return [...grow(root, '', ''), ...(notes.length > 0 ? ['', ...notes] : [])].join('\n')
}

/** The picture as a flowchart for Mermaid, which GitHub and many editors draw. */
export function drawMermaid(network: Network): string {
  const { columns, links } = picture(network)
  const marked = new Set(network.conflicts.flatMap(({ about }) => about))
  const boxes = columns.flat()
  const ids = new Map<string, string>()
  boxes.forEach((box, index) => {
    for (const key of [box.key, ...box.lines.map(({ key }) => key)]) {
      if (key !== '') ids.set(key, `n${index}`)
    }
  })
  // all that has a meaning in a label, by its number
  const quoted = (text: string) =>
    clean(text).replace(/["#&<>`\\;{}|[\]]/g, (sign) => `#${sign.codePointAt(0)};`)
  const titles = ['Network adapters', 'Switches', 'Host and VMs']
  const groups = columns.map((column, index) =>
    column.length === 0 ? '' : [
      `  subgraph c${index}["${titles[index]}"]`,
      ...column.map((box) => {
        const text = [box.title, ...box.lines.map(({ text }) => text)].map(quoted).join('<br/>')
        const bad = marked.has(box.key) || box.lines.some(({ key }) => marked.has(key))
        return `    ${ids.get(box.key)}["${text}"]${bad ? ':::conflict' : ''}`
      }),
      '  end',
    ].join('\n')
  )
  return [
    'flowchart LR',
    ...groups.filter(Boolean),
    ...new Set(links.map(([from, to]) => `  ${ids.get(from)} --- ${ids.get(to)}`)),
    '  classDef conflict stroke:#c00,stroke-width:3px',
    ...network.conflicts.map(({ text }) =>
      `  %% ${clean(text).replaceAll('{', '(').replaceAll('}', ')')}`
    ),
  ].join('\n')
}

const LINE = 18
const GAP = 24
const WIDTH = 330

/** The picture as an SVG of its own, without scripts, fonts or links. */
export function drawSvg(network: Network): string {
  const { columns, links } = picture(network)
  const marked = new Set(network.conflicts.flatMap(({ about }) => about))
  const at = new Map<string, { left: number; right: number; y: number }>()
  const shapes: string[] = []
  let bottom = 0
  columns.forEach((column, index) => {
    const left = GAP + index * (WIDTH + 3 * GAP)
    let top = GAP
    for (const box of column) {
      // what is too long goes on in the next line, but is one thing still
      const lines = box.lines.flatMap(({ key, text }) =>
        wrap(text, WIDTH - 20).map((part, index) => ({
          text: cut(part, WIDTH - 20),
          key: index === 0 ? key : '',
          bad: marked.has(key),
        }))
      )
      const height = (lines.length + 1) * LINE + 14
      const bad = marked.has(box.key)
      const right = left + WIDTH
      at.set(box.key, { left, right, y: top + height / 2 })
      shapes.push(
        `<rect class="${
          bad ? 'box bad' : 'box'
        }" x="${left}" y="${top}" width="${WIDTH}" height="${height}" rx="6"/>`,
        `<text class="title" x="${left + 10}" y="${top + LINE + 2}">${
          xml(cut(box.title, WIDTH - 20))
        }</text>`,
      )
      lines.forEach(({ key, text, bad }, row) => {
        const y = top + (row + 2) * LINE + 2
        if (key !== '') at.set(key, { left, right, y: y - 4 })
        const kind = bad ? ' class="bad"' : ''
        shapes.push(`<text${kind} x="${left + 10}" y="${y}">${xml(text)}</text>`)
      })
      top += height + GAP
    }
    bottom = Math.max(bottom, top)
  })
  const lines = links.flatMap(([from, to]) => {
    const [a, b] = [at.get(from), at.get(to)]
    if (!a || !b) return []
    const middle = (a.right + b.left) / 2
    return [`<path d="M${a.right} ${a.y} C${middle} ${a.y} ${middle} ${b.y} ${b.left} ${b.y}"/>`]
  })
  const width = 2 * GAP + 3 * WIDTH + 6 * GAP
  const notes = network.conflicts.flatMap(({ text }) => wrap(`! ${text}`, width - 2 * GAP))
  const words = notes.map((text, index) =>
    `<text class="bad" x="${GAP}" y="${bottom + (index + 1) * LINE}">${xml(text)}</text>`
  )
  const height = bottom + notes.length * LINE + GAP
  const style = '.box{fill:#fff;stroke:#555}.box.bad{stroke:#c00;stroke-width:3}' +
    'text{font:12px system-ui,sans-serif;fill:#222}text.title{font-weight:bold;font-size:14px}' +
    'text.bad{fill:#c00}path{fill:none;stroke:#555}'
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
    `<title>${xml(`Networks of ${network.host}`)}</title>`,
    `<style>${style}</style>`,
    '<rect width="100%" height="100%" fill="#f7f7f7"/>',
    ...lines,
    ...shapes,
    ...words,
    '</svg>',
  ].join('\n')
}

function kindOf({ type, shared, isDefault }: Switch): string {
  if (isDefault) return 'Windows’ own switch with NAT, whose network changes'
  if (type === 'External') return `external, ${shared ? 'shared with the host' : 'for VMs only'}`
  return type === 'Internal' ? 'internal: host and VMs' : 'private: VMs only'
}

function facts(one: HostAdapter | Port): string[] {
  const { addresses, gateways } = one
  const seen = addresses.filter(({ address }) => !isLinkLocal(address))
  return [
    ...('status' in one ? [`${one.wifi ? 'Wi-Fi, ' : ''}${one.status}`] : []),
    ...('vlan' in one && one.vlan !== null ? [`VLAN ${one.vlan}`] : []),
    ...seen.map((at) =>
      at.prefixLength < 0 ? at.address : `${cidr(at)}${at.dhcp ? ' by DHCP' : ''}`
    ),
    ...gateways.map((gateway) => `gateway ${gateway}`),
    ...('mac' in one && 'vm' in one && one.vm ? [one.mac.replace(/(..)(?=.)/g, '$1-')] : []),
  ]
}

/** Without what would move a cursor or end a line. */
function clean(text: string): string {
  return text.replace(
    // deno-lint-ignore no-control-regex
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
    '\ufffd',
  )
}

function xml(text: string): string {
  return clean(text).replace(/[&<>"']/g, (sign) => `&#${sign.codePointAt(0)};`)
}

/** Pixels of a text in the picture's font, roughly: Chinese signs are about as wide as high. */
function width(text: string): number {
  return [...text].reduce((sum, sign) => sum + (sign > '\u2e7f' ? 13 : 7), 0)
}

function cut(text: string, most: number): string {
  if (width(text) <= most) return text
  const signs = [...text]
  while (signs.length > 0 && width(`${signs.join('')}…`) > most) signs.pop()
  return `${signs.join('')}…`
}

function wrap(text: string, most: number): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const last = lines.at(-1)
    if (last !== undefined && width(`${last} ${word}`) <= most) {
      lines[lines.length - 1] = `${last} ${word}`
    } else lines.push(word)
  }
  return lines
}
