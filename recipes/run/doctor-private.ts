/**
 * Texts that know which parts of them are private: a screen shows those, and a report has placeholders
 * in their place, the same one for the same thing.
 */

/** What a private part is; its placeholder begins so. */
export type Kind =
  | 'VM'
  | 'Host'
  | 'User'
  | 'Adapter'
  | 'Switch'
  | 'NAT'
  | 'Path'
  | 'Address'
  | 'Name'
  | 'Message'

export interface Private {
  kind: Kind
  value: string
}

/** Marks a part of a text as private. The marks are characters that are no one's: reserved for private use. */
export function hide(kind: Kind, value: string): string {
  return `\uf8e0${kind}\uf8e1${unmarked(value)}\uf8e2`
}

/** A text of someone else's, such as an error, with all that is known or looks private in it marked. */
export function conceal(text: string, known: readonly Private[]): string {
  // a name in a command has its quotes doubled, and one in JSON has them escaped
  const forms = known.flatMap(({ kind, value }) => {
    const clean = unmarked(value).trim()
    const doubled = clean.replace(/['\u2018-\u201b]/g, '$&$&')
    return [clean, doubled, JSON.stringify(clean).slice(1, -1)].map((form) => ({ kind, form }))
  }).filter(({ form }) => form !== '').sort((a, b) => b.form.length - a.form.length)
  let marked = unmarked(text)
  for (const { kind, form } of forms) {
    // a name that is a common word is known only where it stands in quotes
    const common = form.length < 4 || /^[a-z]{4,5}$/i.test(form)
    const edge = common
      ? ['(?<=["\'])', '(?=["\'])']
      : ['(?<![\\p{L}\\p{N}])', '(?![\\p{L}\\p{N}])']
    const found = new RegExp(`${edge[0]}${escape(form)}${edge[1]}`, 'giu')
    marked = outsideMarks(marked, (part) => part.replace(found, (value) => hide(kind, value)))
  }
  // what another program said is the longest that its quotes can hold
  marked = marked.replace(
    /(answers ")(.+)(?=")/gsu,
    (_, before, said) => before + whole('Message', said),
  )
  marked = marked.replace(
    QUOTED,
    (found, inner?: string) => inner === undefined ? found : `"${whole('Name', inner)}"`,
  )
  for (const [kind, pattern] of LOOKS) {
    marked = outsideMarks(marked, (part) => part.replace(pattern, (value) => hide(kind, value)))
  }
  return marked
}

/** A part that is private as a whole, whatever in it has been marked. */
function whole(kind: Kind, text: string): string {
  if (text === '' || new RegExp(`^${MARK.source}$`, 'u').test(text)) return text
  const shown = reveal(text)
  return hide(/^([a-z]:[\\/]|\\\\|~?\/)/i.test(shown) ? 'Path' : kind, shown)
}

/** The text as a person at the screen reads it. */
export function reveal(text: string): string {
  return text.replace(MARK, '$2')
}

/** Makes texts fit for strangers: one for all texts of a report. */
export function anonymizer(): (text: string) => string {
  const given = new Map<string, string>()
  const counts = new Map<string, number>()
  return (text) =>
    text.replace(MARK, (_, kind: Kind, value: string) => {
      // in a command its quotes are doubled
      const plain = value.replace(/(['\u2018-\u201b])\1/g, '$1')
      const key = `${kind} ${plain.toLowerCase()}`
      let placeholder = given.get(key)
      if (placeholder === undefined) {
        const number = (counts.get(kind) ?? 0) + 1
        counts.set(kind, number)
        placeholder = `${kind}-${number}${kind === 'Address' ? ` (${kindOf(value)})` : ''}`
        given.set(key, placeholder)
      }
      return placeholder
    })
}

/** Cuts a text in two at the first `at` that is no private part's; the second is empty when there is none. */
export function cut(text: string, at: RegExp): [string, string] {
  const covered = text.replace(MARK, (mark) => '\uf8e3'.repeat(mark.length))
  const found = at.exec(covered)
  if (!found) return [text, '']
  return [text.slice(0, found.index), text.slice(found.index + found[0].length)]
}

const MARK = /\uf8e0(\w+)\uf8e1([^\uf8e0-\uf8e2]*)\uf8e2/gu

/** What stands in quotes; a private part may hold some itself. */
const QUOTED = /\uf8e0[^\uf8e2]*\uf8e2|"((?:\uf8e0[^\uf8e2]*\uf8e2|[^"\uf8e0])*)"/gu

/** What is private by its looks. More than that is hidden rather than less. */
const LOOKS: [Kind, RegExp][] = [
  ['Name', /(?<=(?:^|[\s(=])')(?:[^']|'')+(?='(?:[\s,.;):]|$))/g],
  ['Path', /(?<![\w])(?:[a-z]:[\\/]|\\\\)[^"'<>|*?\n)]*?(?=, |\. |: |$|[\n"'<>|*?)])/gi],
  ['Path', /(?<=^|[\s(=])~?\/[^\s/"']+\/[^"'\n)]*?(?=, |\. |: |$|[\n"')])/g],
  ['Name', /\bssh:\/\/(?!\[)[^\s"')]+/gi],
  ['User', /[^\s"'()]+\\[^\s"'()]*[^\s"'(),.;:]/g],
  ['User', /[^\s"'()<>[\]]+@[^\s"'()<>[\]]*[^\s"'()<>[\],.;:]/g],
  ['Name', /\{?\b[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\b\}?/gi],
  ['Address', /(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?:\/\d{1,2})?(?![\w.]*\w)/g],
  ['Address', /\b(?:[\da-f]{2}[-:]){5}[\da-f]{2}\b|\b(?=\w*\d)[\dA-F]{12}\b/gi],
  ['Address', /(?<![\w:])[\da-f]{0,4}(?::[\da-f]{0,4}){2,}(?:%\w+)?(?:\/\d+)?/gi],
]

/** What kind of address it is, and no more. */
function kindOf(address: string): string {
  if (!/^\d+\.\d+\.\d+\.\d+(\/\d+)?$/.test(address)) {
    return /^(?:[\da-f]{2}[-:]?){6}$/i.test(address) ? 'MAC' : 'IPv6'
  }
  if (/^169\.254\./.test(address)) return 'link-local IPv4'
  if (/^127\./.test(address)) return 'loopback IPv4'
  return /^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.)/.test(address)
    ? 'private IPv4'
    : 'public IPv4'
}

function outsideMarks(text: string, change: (part: string) => string): string {
  return text.split(/(\uf8e0\w+\uf8e1[^\uf8e0-\uf8e2]*\uf8e2)/u)
    .map((part, index) => index % 2 ? part : change(part)).join('')
}

function unmarked(text: string): string {
  return text.replace(/[\uf8e0-\uf8e3]/g, '\ufffd')
}

function escape(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}
