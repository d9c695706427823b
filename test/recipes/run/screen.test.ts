import { deepEqual, equal, ok } from 'node:assert/strict'
import { suite } from 'uvu'
import { textScreen } from '../../../recipes/run/screen.ts'

const screens = suite('textScreen')

/** What it writes to standard error for a failure. */
function said(message: string): string[] {
  const { error } = console
  const lines: string[] = []
  console.error = (text: string) => lines.push(...text.split('\n'))
  try {
    textScreen({ live: false })({ event: 'error', message })
  } finally {
    console.error = error
  }
  return lines
}

screens('folds long lines at words, and begins none with the space between them', () => {
  const words = 'Cannot move it: '.repeat(12).trim()
  const lines = said(words)
  ok(lines.length > 1)
  for (const line of lines) equal(line, line.trim())
  equal(lines.join(' '), words)
})

screens('sets a command that would be folded on a line of its own', () => {
  const why = 'Cannot tell what to move: no source is named, and VirtualBox has no VM'
  const run = 'npx zx recipes/migrate.ts <name or file>'
  deepEqual(said(`${why}. Run: ${run}`), [`${why}. Run:`, `  ${run}`])
  deepEqual(said(`${why}. Run: ${run}, and this again. It goes on`), [
    `${why}. Run:`,
    `  ${run}`,
    'and this again, It goes on',
  ])
  deepEqual(said(`No VM. Run: ${run}`), [`No VM. Run: ${run}`])
})

screens('leaves whole what is indented, for it is to be copied', () => {
  const command = `  echo ${'桥接 '.repeat(60)}end`
  deepEqual(said(`Run:\n${command}`), ['Run:', command])
})

screens('shows what would move the cursor as a mark', () => {
  deepEqual(said('Cannot move "\u001b[2Ja\r"'), ['Cannot move "\ufffd[2Ja\ufffd"'])
})

screens.run()
