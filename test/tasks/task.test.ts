import { deepEqual, equal, match, rejects, throws } from 'node:assert/strict'
import process from 'node:process'
import { suite } from 'uvu'
import {
  HostError,
  literal,
  openPowerShell,
  powershell,
  type PowerShellProcess,
  script,
  type Value,
} from '../../tasks/task.ts'
import { needs } from '../needs.ts'

const writing = suite('script')

writing('writes a value that is a whole right side as a literal', () => {
  equal(make`\n$name = ${'it’s'}\n$name`, `\n$name = 'it’’s'\n$name`)
})

writing('makes a value elsewhere a variable', () => {
  equal(make`"Hello ${'$(calc)'}!"`, `$value0 = '$(calc)'\n"Hello \${value0}!"`)
})

writing('writes booleans, numbers, arrays and nothing as values of their type', () => {
  equal(literal(false), '$false')
  equal(literal(4_294_967_296), '4294967296')
  equal(literal(-1.5), `[double]'-1.5'`)
  equal(literal(['a', 1, null]), `@('a', 1, $null)`)
  equal(literal(undefined), '$null')
  equal(literal([]), '@()')
})

writing('refuses a number that is none', () => {
  throws(() => literal(Number.NaN), { message: 'Cannot write NaN in PowerShell' })
})

writing.run()

const running = suite<{ shell: PowerShellProcess; warnings: string[] }>('openPowerShell')
const test = needs(running, process.env.POWERSHELL || 'pwsh')

running.before((context) => {
  context.warnings = []
  context.shell = openPowerShell({ onWarning: (warning) => context.warnings.push(warning) })
})
running.after(({ shell }) => shell.close())

test('gives back every string as it came, whatever it contains', async ({ shell: { ps } }) => {
  const alphabet = [
    ...'aZ0 \'"`$(){}[]*?;|&<>#@%!^~\\/-=,.:\t\n\r\0\u0007\u007f\u0085\u00a0\u00ad\u200b\u2028\u2029',
    ...'‘’‚‛“”„桥接😀\ufeff\uffff',
    '\ud800',
    '\udc00',
    '$(calc)',
    '’; exit 1 #',
    "''",
  ]
  let seed = 42
  const next = (below: number) => (seed = (seed * 48271) % 2147483647) % below
  const strings = ['', ...alphabet]
  while (strings.length < 2000) {
    strings.push(
      Array.from({ length: next(12) }, () => alphabet[next(alphabet.length)]).join(''),
    )
  }
  // a hundred at a time: as an array, and each inside double quotes
  for (let at = 0; at < strings.length; at += 100) {
    const some = strings.slice(at, at + 100)
    const { stdout } = await ps`
      $some = ${some}
      $inside = "${some[0] ?? ''}|${some[1] ?? ''}"
      ConvertTo-Json -Compress @{ some = @($some); inside = $inside }`
    const answer = JSON.parse(stdout) as { some: string[]; inside: string }
    deepEqual(answer.some, some)
    equal(answer.inside, `${some[0]}|${some[1]}`)
  }
})

test('gives values their own type', async ({ shell: { ps } }) => {
  const { stdout } = await ps`
    $values = ${['007', 7, 2 ** 40, 1.5, true, false, null]}
    @($values | ForEach-Object { if ($null -eq $_) { 'null' } else { $_.GetType().Name } }) -join ' '`
  equal(stdout, 'String Int32 Int64 Double Boolean Boolean null')
})

test('tells a failure in one sentence with its id', async ({ shell: { ps } }) => {
  await fails(ps`Get-Item -LiteralPath 'not there'`, (error: HostError) => {
    equal(error.id, 'PathNotFound,Microsoft.PowerShell.Commands.GetItemCommand')
    match(
      error.message,
      /^[^\n]+ \(PathNotFound,Microsoft\.PowerShell\.Commands\.GetItemCommand\)$/,
    )
    match(error.hresult, /^0x[0-9A-F]{8}$/)
    return true
  })
})

test('gives a script’s own refusal as it is', async ({ shell: { ps } }) => {
  await fails(ps`throw 'Cannot do it: no reason. Run: nothing'`, {
    message: 'Cannot do it: no reason. Run: nothing',
    id: '',
  })
})

test('makes an error that PowerShell would go on after a failure', async ({ shell: { ps } }) => {
  await fails(ps`Write-Error 'bad'; 'went on'`, HostError)
})

test('is not confused by what else reaches the console', async ({ shell: { ps } }) => {
  const { stdout } = await ps`
    [Console]::Write('no newline'); Write-Host 'host'; & (Get-Process -Id $PID).Path -NoProfile -Command "'native'" | Out-Null
    'answer'`
  equal(stdout, 'answer')
})

test('tells warnings apart from the answer', async ({ shell: { ps }, warnings }) => {
  warnings.length = 0
  equal((await ps`Write-Warning 'mind'; 1`).stdout, '1')
  deepEqual(warnings, ['mind'])
})

test('fails where PowerShell would ask a person', async ({ shell: { ps } }) => {
  await fails(ps`Read-Host 'who'`, HostError)
})

test('takes exit for a failure, and goes on with the next script', async ({ shell: { ps } }) => {
  await fails(ps`exit 0`, { message: 'The script left PowerShell by exit' })
  equal((await ps`'still there'`).stdout, 'still there')
})

test('keeps the variables of one script from the next', async ({ shell: { ps } }) => {
  await ps`$left = 1`
  equal((await ps`[string]$left`).stdout, '')
})

test('answers scripts in the order they were asked', async ({ shell: { ps } }) => {
  const answers = await Promise.all([1, 2, 3].map((n) => ps`${n}`))
  deepEqual(answers.map(({ stdout }) => stdout), ['1', '2', '3'])
})

test('carries ten megabytes', async ({ shell: { ps } }) => {
  equal((await ps`'桥' * 5MB`).stdout.length, 5 * 1024 ** 2)
})

test('fails a script whose PowerShell dies', async () => {
  const { ps, close } = openPowerShell()
  await fails(ps`[Environment]::Exit(7)`, {
    message: 'PowerShell ended in the middle of a script (exit code 7)',
  })
  await close()
})

test('ends a script that runs when it is closed', async () => {
  const { ps, close } = openPowerShell()
  await ps`1`
  const sleeping = fails(ps`Start-Sleep 60`, /PowerShell ended in the middle of a script/)
  await new Promise((resolve) => setTimeout(resolve, 100))
  await close()
  await sleeping
})

running('says how to name a PowerShell when there is none', async () => {
  const { POWERSHELL } = process.env
  process.env.POWERSHELL = 'no-such-powershell'
  try {
    await fails(powershell`1`, {
      message: 'Cannot start PowerShell: no program "no-such-powershell" is on PATH. ' +
        'Set POWERSHELL to the PowerShell to use, or install one: https://aka.ms/powershell',
    })
  } finally {
    if (POWERSHELL === undefined) delete process.env.POWERSHELL
    else process.env.POWERSHELL = POWERSHELL
  }
})

running.run()

function fails(
  answer: PromiseLike<unknown>,
  expected: Parameters<typeof rejects>[1],
): Promise<void> {
  return rejects(Promise.resolve(answer), expected)
}

function make(pieces: TemplateStringsArray, ...values: Value[]): string {
  return script(pieces, ...values)
}
