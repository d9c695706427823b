import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import {
  noteOf,
  runnerArguments,
  subscription,
  windowsArgument,
} from '../../../recipes/run/schedule.ts'

const test = suite('schedule: commands of Windows')

const words = [
  'plain',
  'two words',
  '',
  'a"b',
  '"',
  '\\"',
  '\\\\"x\\',
  'C:\\trailing\\',
  'C:\\two words\\',
  '%PATH%',
  '^ & | < > !',
  "'",
  '桥接 ’”',
  '-x',
  'tab\there',
]

test('quotes each word as the rules for C programs say', () => {
  const line = words.map(windowsArgument).join(' ')
  assert.deepEqual(parse(line), words)
})

/**
 * The rules (learn.microsoft.com/cpp/c-language/parsing-c-command-line-arguments): 2n backslashes before a
 * quotation mark are n, and the mark opens or closes; of 2n+1 the last makes the mark a character.
 */
function parse(line: string): string[] {
  const found: string[] = []
  let word: string | undefined
  let open = false
  for (let at = 0; at < line.length;) {
    const [bars = ''] = /^\\*/.exec(line.slice(at)) ?? []
    at += bars.length
    const mark = line[at] === '"'
    if (bars) word = (word ?? '') + bars.slice(0, mark ? Math.floor(bars.length / 2) : undefined)
    if (mark) {
      if (bars.length % 2) word = `${word ?? ''}"`
      else {
        open = !open
        word ??= ''
      }
    } else if (/[ \t]/.test(line[at] ?? ' ') && !open) {
      if (word !== undefined) found.push(word)
      word = undefined
    } else word = (word ?? '') + line[at]
    at++
  }
  if (word !== undefined) found.push(word)
  return found
}

// Windows itself, and Wine
if (process.platform === 'win32') {
  test('quotes each word so that a program of Windows reads it as it was', async () => {
    const dir = await fs.mkdtemp(join(tmpdir(), 'schedule-'))
    try {
      const file = join(dir, 'words.json')
      const code =
        `require('node:fs').writeFileSync(process.argv[1], JSON.stringify(process.argv.slice(2)))`
      const line = ['-e', code, '--', file, ...words].map(windowsArgument)
      const child = spawn(process.execPath, line, {
        windowsVerbatimArguments: true,
        stdio: 'ignore',
      })
      assert.deepEqual(await once(child, 'exit'), [0, null])
      assert.deepEqual(await fs.readJson(file), words)
    } finally {
      await fs.remove(dir)
    }
  })
}

test('keeps a note in the script, and finds none in what others made', () => {
  const job = { program: 'node.exe', args: ['a'], log: 'C:\\log', limit: 60 }
  const note = JSON.stringify({ recipe: 'C:\\kit\\a.ts' })
  assert.equal(noteOf(runnerArguments({ ...job, note })), note)
  assert.equal(noteOf(runnerArguments(job)), undefined)
  assert.equal(noteOf('-File a.ps1'), undefined)
  assert.equal(noteOf(''), undefined)
})

test('waits for events by their logs and numbers', () => {
  assert.equal(
    subscription({ A: [1, 2], B: [3] }),
    '<QueryList><Query Id="0"><Select Path="A">*[System[EventID=1 or EventID=2]]</Select>' +
      '<Select Path="B">*[System[EventID=3]]</Select></Query></QueryList>',
  )
})

test.run()
