import { deepEqual, equal, ok } from 'node:assert/strict'
import { suite } from 'uvu'
import type { Estimate, Plan } from '../../../recipes/run/plan.ts'
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

screens('tabulates what each step changes, its undo, and the time and space it may take', () => {
  const step = { task: 'start-vm', where: 'host', needs: [], options: { vm: 'x' } }
  const one = { ...step, id: 'a', title: 'Start it', undo: 'stop it', estimate: on(45, 0) }
  const long = 'Convert "桥接" '.repeat(9).trim()
  const two = { ...step, id: 'b', title: long, undo: '', estimate: on(9000, 5e9) }
  const three = { ...one, id: 'c', already: 'it is there' }
  const plan = {
    name: 'x',
    source: { name: 'x', kind: 'ova', osType: '', firmware: 'bios', cpus: 1, disks: [], nics: [] },
    target: { kind: 'local' },
    vm: { generation: 1, why: 'y' },
    steps: [one, two, three],
    notes: [],
  } as unknown as Plan
  const { log } = console
  let said = ''
  console.log = (text: string) => said += text
  try {
    textScreen({ live: false })({ event: 'plan', plan, refusals: [] })
  } finally {
    console.log = log
  }
  const lines = said.slice(said.indexOf('   time')).trimEnd().split('\n')
  deepEqual(lines, [
    '   time    space  Steps',
    '   45 s        -   1. Start it',
    '                      undo: stop it',
    `  2.5 h   4.7 GB   2. ${'Convert "桥接" '.repeat(5).trim()}`,
    `                      ${'Convert "桥接" '.repeat(4).trim()}`,
    '                      changes nothing',
    '      -        -   3. Start it',
    '                      (it is there)',
    '  2.5 h   4.7 GB      in all, about',
  ])
})

screens.run()

function on(seconds: number, space: number): Estimate {
  return { seconds, space }
}
