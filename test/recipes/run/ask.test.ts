import fs from 'fs-extra'
import { equal, match } from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { stripVTControlCharacters } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { needs } from '../../needs.ts'

const root = join(import.meta.dirname as string, '..', '..', '..')

const asking = suite<{ dir: string }>('questions')
asking.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'ask-'))
})
asking.after.each(({ dir }) => dir ? fs.remove(dir) : undefined)

// a terminal of its own, by util-linux
const test = needs(asking, 'script')

for (
  const [name, keys, code, words] of [
    ['goes on after yes', 'y\r', 0, /Go ahead\? Yes[^]*The bundle is/],
    ['changes nothing after no', 'n\r', 0, /Go ahead\? No/],
    ['ends with 130 on Ctrl-C, and says that nothing was changed', '\u0003', 130, /Stopped at a/],
  ] as const
) {
  test(name, async ({ dir }) => {
    const { ova } = await demo('bios', dir)
    const to = join(dir, 'b')
    const args = [ova, '--to', `bundle:${to}`, '--state', join(dir, 'state')]
    const shown = await terminal([join(root, 'recipes', 'migrate.ts'), ...args], /Go ahead\?/, keys)
    match(shown.text, words)
    equal(shown.code, code)
    equal(await fs.pathExists(to), keys.startsWith('y'))
  })
}

test('has one of several VMs chosen, and leaves the answer on the screen', async ({ dir }) => {
  const file = join(dir, 'ask.ts')
  await fs.writeFile(
    file,
    `import { select } from ${JSON.stringify(join(root, 'recipes', 'run', 'ask.ts'))}
console.log('chosen:', await select('Which VM?', ['web', '跳板机']))`,
  )
  const { text, code } = await terminal([file], /Which VM\?/, '\u001b[B\r')
  equal(code, 0)
  match(text, /\? Which VM\? 跳板机\r\nchosen: 跳板机/)
})

test('asks nothing in a CI that has a terminal, and says it in plain lines', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const args = [ova, '--to', `bundle:${join(dir, 'b')}`, '--state', join(dir, 'state')]
  const recipe = join(root, 'recipes', 'migrate.ts')
  const { text, code } = await terminal([recipe, ...args], /Go ahead/, 'n\r', { CI: 'true' })
  equal(code, 0)
  match(text, /\nbegins {5}Convert [^]+\ndone {7}Convert [^]+The bundle is/)
})

/** Runs a program in a terminal and types `keys` when it has asked. */
async function terminal(
  args: string[],
  question: RegExp,
  keys: string,
  more: NodeJS.ProcessEnv = {},
) {
  const runtime = 'Deno' in globalThis ? ['run', '-A', '--config', join(root, 'deno.json')] : []
  const quoted = [process.execPath, ...runtime, ...args].map((arg) => `'${arg}'`).join(' ')
  const child = spawn('script', ['-qec', `stty cols 80 rows 40; exec ${quoted}`, '/dev/null'], {
    cwd: root,
    stdio: ['pipe', 'pipe', 'inherit'],
    env: {
      ...process.env,
      TERM: 'xterm',
      NO_COLOR: '1',
      FORCE_COLOR: undefined,
      CI: undefined,
      ...more,
    },
  })
  let text = ''
  let typed = false
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    text += part
    if (typed || !question.test(stripVTControlCharacters(text))) return
    typed = true
    child.stdin.write(keys)
  })
  const [code] = await once(child, 'close')
  return { text: stripVTControlCharacters(text), code }
}

asking.run()
