/** The findings as a person reads them: on a screen, in a report for strangers, and as a picture. */
import { stripVTControlCharacters } from 'node:util'
import wrapAnsi from 'wrap-ansi'
import type { Finding, Group } from './doctor-findings.ts'
import { anonymizer, reveal } from './doctor-private.ts'

export interface Answer {
  /** A migration would go through. */
  ready: boolean
  /** VirtualBox is slow because of the hypervisor below Windows. */
  crawls: boolean
  /** A hypervisor runs below the host's system; null where that is not known. */
  below: boolean | null
  /** Their texts may have marks of what is private. */
  findings: Finding[]
}

/** For a terminal, folded at its width and without what would move the cursor. */
export function screenText(
  answer: Answer,
  { columns = 80, colour = false, picture = false }: {
    columns?: number
    colour?: boolean
    picture?: boolean
  } = {},
): string {
  const paint = (text: string, code: number) => colour ? `\u001b[${code}m${text}\u001b[0m` : text
  const width = Math.min(Math.max(columns, 40), 100)
  const fold = (text: string, first: string, hang: string) =>
    wrapAnsi(safe(reveal(text)), width - hang.length, { hard: true }).split('\n')
      .map((line, index) => `${index ? hang : first}${line.trimEnd()}`)
  const lines: string[] = []
  for (const [group, title] of Object.entries(GROUPS)) {
    const found = answer.findings.filter((finding) => finding.group === group)
    if (found.length === 0) continue
    lines.push(paint(title, 1), '')
    for (const { level, title, evidence, meaning, command } of found) {
      // what is well needs no explanation; of a VM it is what it needs
      const tells = level !== 'ok' || group === 'vms'
      const { word, code } = LEVELS[level]
      const [head = '', ...rest] = fold(title, '', MARGIN)
      lines.push(`${paint(word.padEnd(MARGIN.length), code)}${head}`, ...rest)
      if (evidence) {
        lines.push(...fold(`(${evidence})`, MARGIN, MARGIN).map((line) => paint(line, 2)))
      }
      if (meaning && tells) lines.push(...fold(meaning, MARGIN, MARGIN))
      // to be copied, whole
      if (command && tells) lines.push(`    ${paint(safe(reveal(command)), 36)}`)
      lines.push('')
    }
  }
  if (picture || answer.crawls) lines.push(drawStacks(answer.below), '')
  lines.push(...fold(summary(answer), '', ''))
  return lines.join('\n')
}

/**
 * One Markdown file for an issue tracker: no names of users, hosts, VMs, switches, adapters or networks,
 * no addresses beyond their kind, and no paths. The same placeholder stands for the same thing.
 */
export function reportText(answer: Answer): string {
  const anonymous = anonymizer()
  const text = (marked: string) => markdown(safe(anonymous(marked)))
  const sections = Object.entries(GROUPS).map(([group, title]) => {
    const found = answer.findings.filter((finding) => finding.group === group)
    if (found.length === 0) return ''
    const items = found.map(({ id, level, title, evidence, meaning, command }) => {
      const tells = level !== 'ok' || group === 'vms'
      return [
        `- **${LEVELS[level].word}** ${text(title)} (\`${id}\`)`,
        ...(evidence ? [`  - evidence: ${text(evidence)}`] : []),
        ...(meaning && tells ? [`  - meaning: ${text(meaning)}`] : []),
        ...(command && tells
          ? [`  - command: \`${safe(anonymous(command)).replaceAll('`', "'")}\``]
          : []),
      ].join('\n')
    })
    return `## ${title}\n\n${items.join('\n')}\n`
  })
  return [
    '# What recipes/doctor.ts found\n',
    `${summary(answer)}\n`,
    'Names, addresses and paths are replaced: `VM-1` is the same VM everywhere.\n',
    ...sections.filter((section) => section !== ''),
    ...(answer.crawls ? [`\`\`\`text\n${drawStacks(true)}\n\`\`\`\n`] : []),
  ].join('\n')
}

/** The two ways in which a VM gets the processor; `below` says that the host is the second one, with
 * its hypervisor below its system; null that it is not known. */
export function drawStacks(below: boolean | null): string {
  const here = (it: boolean) => below === it ? '   <- this host' : ''
  return [
    `Type 2: the hypervisor is a program of the system${here(false)}`,
    '',
    '    +-----------+   +-----------------+',
    '    |           |   | VM              |   at full speed',
    '    | programs  |   +-----------------+',
    '    |           |   | VirtualBox      |   takes VT-x while it runs VMs',
    '    +-----------+---+-----------------+',
    '    | Windows                         |',
    '    +---------------------------------+',
    '    | processor with VT-x or AMD-V    |',
    '    +---------------------------------+',
    '',
    `Type 1: the hypervisor is below every system${here(true)}`,
    '',
    '    +-----------------+ +-----------+ +-------------+',
    '    | VM, the turtle  | |           | |             |',
    '    +-----------------+ | programs, | | VM of       |   at full speed,',
    '    | VirtualBox asks | | WSL, ...  | | Hyper-V,    |   WSL 2 and Docker',
    '    +-----------------+-+-----------+ | WSL 2       |   are such VMs',
    '    | Windows (itself in a VM)      | |             |',
    '    +-------------------------------+-+-------------+',
    '    | Hyper-V’s hypervisor                          |   has VT-x, always',
    '    +-----------------------------------------------+',
    '    | processor with VT-x or AMD-V                  |',
    '    +-----------------------------------------------+',
  ].join('\n')
}

function summary({ ready, findings }: Answer): string {
  if (ready) return 'A migration would go through.'
  const problems = findings.filter(({ level }) => level === 'problem').length
  return `A migration would not go through: ${problems} ${
    problems === 1 ? 'problem stands' : 'problems stand'
  } in the way.`
}

const MARGIN = '         '

const GROUPS: Record<Group, string> = {
  host: 'The host',
  hypervisor: 'Who owns VT-x',
  network: 'Networks',
  vms: 'VMs',
}

const LEVELS: Record<Finding['level'], { word: string; code: number }> = {
  ok: { word: 'ok', code: 32 },
  note: { word: 'note', code: 33 },
  problem: { word: 'problem', code: 31 },
}

/** In one line, without what would move the cursor. */
function safe(text: string): string {
  const line = stripVTControlCharacters(text).trim().replace(/\s*[\r\n]+\s*/g, ' ')
  // deno-lint-ignore no-control-regex
  return line.replace(/[\u0000-\u001f\u007f-\u009f]/g, '\ufffd')
}

function markdown(text: string): string {
  return text.replace(/[\\`*_<>[\]#|]/g, '\\$&')
}
