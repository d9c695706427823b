import { deepEqual, match } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { type Command, completion, describeCommands } from '../../recipes/completion.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'

const execute = promisify(execFile)
const completing = suite<{ dir: string }>('completion')

completing.before(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'completion-'))
})
completing.after(({ dir }) => fs.remove(dir))

/** Asked once, and only where it is needed: each command of the kit is run for it. */
let asked: Promise<Command[]> | undefined
const describe = () => asked ??= describeCommands()

/** What is typed, the last word of it not yet whole, and what it may become. */
const CASES: [string[], string[]][] = [
  [['npx', 'zx', 'recipes/migrate.ts', '--gen'], ['--generation']],
  [['npx', 'zx', 'recipes/migrate.ts', 'Win10', '--generation', ''], ['auto', '1', '2']],
  [['npx', 'zx', './tasks/toggle-share.ts', 'o'], ['on', 'off']],
  [['npx', 'zx', 'other.ts', '--gen'], []],
]

needs(completing, 'bash')(
  'completes options, and what they may be, in bash',
  async ({ dir }) => {
    const file = join(dir, 'completion.bash')
    await fs.writeFile(file, await completion({ shell: 'bash', commands: await describe() }))
    const script = '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vbox_to_hyperv; ' +
      'printf "%s\\n" "${COMPREPLY[@]}"'
    for (const [typed, expected] of CASES) {
      const { stdout, stderr } = await execute('bash', ['-c', script, file, ...typed])
      deepEqual([stdout.split('\n').filter(Boolean), stderr], [expected, ''], typed.join(' '))
    }
  },
)

needs(completing, 'pwsh')('completes them in PowerShell', async ({ dir }) => {
  const file = join(dir, 'completion.ps1')
  await fs.writeFile(file, await completion({ shell: 'powershell', commands: await describe() }))
  const lines = CASES.map(([typed]) => `'${typed.join(' ')}'`).join(', ')
  const script = `. '${file}'; ${lines} | ForEach-Object { ` +
    `@((TabExpansion2 $_ $_.Length).CompletionMatches.CompletionText) -join ' ' }`
  const { stdout } = await execute('pwsh', ['-NoProfile', '-Command', script])
  deepEqual(
    stdout.trimEnd().split(/\r?\n/),
    CASES.map(([, expected]) => expected.join(' ')).slice(0, -1),
  )
})

completing('refuses a shell that it does not know', async ({ dir }) => {
  const { code, stdout, stderr } = await runTask(
    { dir, env: process.env },
    '../recipes/completion',
    'fish',
  )
  deepEqual([code, stdout], [1, ''])
  match(stderr, /bash.+powershell/)
})

completing.run()
