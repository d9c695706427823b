import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { access, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import {
  BOOT,
  ConnectionError,
  HostError,
  literal,
  LOOP,
  openPowerShell,
  powershell,
  type PowerShellProcess,
  script,
  type ScriptProgress,
  type Value,
} from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { analyze } from './analyze.ts'

const root = join(import.meta.dirname as string, '..', '..')
const task = join(root, 'tasks', 'task.ts')
const config = join(root, 'deno.json')

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
  equal(literal([['a']]), `@(, @('a'))`)
})

writing('writes a text of many lines in one piece, whatever is in it', () => {
  const text = "it's {0}\n".repeat(20)
  equal(literal(text), `('${"it''s {{0}}{0}".repeat(20)}' -f [char]10)`)
  equal(literal(`${text}\0`), `('${"it''s {{0}}{0}".repeat(20)}{1}' -f [char]10, [char]0)`)
  equal(literal('a\nb'), `('a' + [char]10 + 'b')`)
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
    equal(error.category, 'ObjectNotFound')
    return true
  })
})

test('tells where a script failed, and what it was for', async ({ shell: { using } }) => {
  const ps = using({ step: 'Make the VM' })
  const failing = ps`
    $name = ${'x'}
    function inner { Get-Item -LiteralPath 'not there' }

    inner "${'y'}"`
  await fails(failing, (error: HostError) => {
    equal(error.step, 'Make the VM')
    equal(error.line?.text, `function inner { Get-Item -LiteralPath 'not there' }`)
    return true
  })
  await fails(ps`1\n  2\n1 +`, (error: HostError) => error.category === 'ParserError')
})

test('tells the script’s own line where a module’s function failed', async ({ shell: { ps } }) => {
  const dir = await mkdtemp(join(tmpdir(), 'module-'))
  const module = join(dir, 'failing.psm1')
  await writeFile(module, '\n\n\n\n\n\nfunction Fail { Write-Error -ErrorId Sad -Message sad }\n')
  try {
    const failing = ps`
      $module = ${module}
      Import-Module $module
      Fail`
    await fails(failing, (error: HostError) => {
      equal(error.id, 'Sad,Fail')
      equal(error.line?.text, 'Fail')
      return true
    })
  } finally {
    await rm(dir, { recursive: true })
  }
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

test('tells errors that a script let pass as warnings', async ({ shell: { ps }, warnings }) => {
  warnings.length = 0
  const { stdout } = await ps`
    Write-Error 'bad' -ErrorAction Continue
    Write-Error 'unsaid' -ErrorAction SilentlyContinue
    Get-Item -LiteralPath 'not there' -ErrorAction Continue
    'went on'`
  equal(stdout, 'went on')
  equal(warnings.length, 2)
  match(warnings[0] ?? '', /^bad /)
  match(warnings[1] ?? '', /\(PathNotFound,Microsoft\.PowerShell\.Commands\.GetItemCommand\)$/)
})

test('is not confused by what else reaches the console', async ({ shell: { ps } }) => {
  const { stdout } = await ps`
    [Console]::Write('no newline'); Write-Host 'host'; [Console]::Error.Write('error')
    $long = 'x' * 3MB
    [Console]::Write($long); [Console]::Out.WriteLine()
    & node -p "'native'" | Out-Null
    # not through PowerShell but to the same pipe, while the answer goes out
    $other = [Diagnostics.Process]::Start('node', '-e "for (let n = 0; n < 20000; n++) process.stdout.write(String(n))"')
    'answer' * 200KB
    $other.WaitForExit()`
  equal(stdout, 'answer'.repeat(200 * 1024))
})

test('takes a native program’s output for the script’s', async ({ shell: { ps }, warnings }) => {
  warnings.length = 0
  const { stdout } = await ps`& node -e "console.error('words'); console.log('answer')"`
  equal(stdout, 'answer')
  match(warnings.join(), /words/)
})

test('is not confused by the console’s code page', async ({ shell: { ps } }) => {
  for (const page of [936, 437, 65001]) {
    const { stdout } = await ps`
      $page = ${page}
      [Text.Encoding]::RegisterProvider([Text.CodePagesEncodingProvider]::Instance)
      [Console]::OutputEncoding = [Text.Encoding]::GetEncoding($page)
      [Console]::Write('桥接'); Write-Host '桥接'
      '桥接'`
    equal(stdout, '桥接')
  }
})

test('tells how far a script is', async ({ shell: { using } }) => {
  const told: ScriptProgress[] = []
  const { stdout } = await using({ onProgress: (progress) => told.push(progress) })`
    foreach ($n in 1, 2) {
      Write-Progress -Activity '桥接' -Status "part $n" -PercentComplete ($n * 40)
      Start-Sleep -Milliseconds 400
    }
    Write-Progress -Activity '桥接' -Completed
    'done'`
  equal(stdout, 'done')
  deepEqual(told[0], { activity: '桥接', status: 'part 1', percent: 40 })
  ok(told.some(({ percent }) => percent === 80))
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

test('sends what is asked for at once together, before a script could read it', async ({ shell, warnings }) => {
  const { ps, using } = shell
  warnings.length = 0
  const answers = await Promise.allSettled([
    ps`bash -c 'read -t 1 line; echo "got <$line>"'`,
    ps`throw 'Cannot do that'`,
    using({ timeout: 1, step: 'Wait' })`Start-Sleep -Seconds 60`,
    ps`Write-Warning 'its own'; ${'桥接'}`,
  ])
  deepEqual(
    answers.map((each) => each.status === 'fulfilled' ? each.value.stdout : `${each.reason}`),
    [
      'got <>',
      'HostError: Cannot do that',
      'HostError: Cannot wait longer for "Wait": it ran into its time limit of 1 s and was stopped. ' +
      'See what keeps the host busy, and run the same again',
      '桥接',
    ],
  )
  deepEqual(warnings, ['its own'])
})

test('carries ten megabytes', async ({ shell: { ps } }) => {
  equal((await ps`'桥' * 5MB`).stdout.length, 5 * 1024 ** 2)
})

test('stops a script at its time limit, names its step, and goes on with the next', async ({ shell }) => {
  const { ps, using } = shell
  const dir = await mkdtemp(join(tmpdir(), 'limit-'))
  try {
    await fails(
      using({ step: 'Wait for ever', timeout: 1 })`
        $file = ${join(dir, 'stopped')}
        try { while ($true) { Start-Sleep 1 } } finally { [IO.File]::WriteAllText($file, '') }`,
      (error: HostError) => {
        equal(error.id, 'TimedOut')
        equal(error.step, 'Wait for ever')
        match(error.message, /^Cannot wait longer for "Wait for ever": .+ limit of 1 s/)
        return true
      },
    )
    await access(join(dir, 'stopped'))
    equal((await ps`'still there'`).stdout, 'still there')
  } finally {
    await rm(dir, { recursive: true })
  }
})

test('ends a PowerShell whose script cannot be stopped at its time limit', async () => {
  const { using, close } = openPowerShell({ timeout: 1 })
  const ps = using({})
  await fails(ps`[Threading.Thread]::Sleep(60000)`, (error: HostError) => error.id === 'TimedOut')
  await fails(ps`1`, ConnectionError)
  await close()
})

test('tells a PowerShell that died apart from a script that failed', async () => {
  const { ps, using, close } = openPowerShell()
  await fails(using({ step: 'Die' })`[Environment]::Exit(7)`, (error: Error) => {
    ok(error instanceof ConnectionError && !(error instanceof HostError))
    match(error.message, /^PowerShell ended in the middle of "Die" \(exit code 7\)/)
    return true
  })
  await fails(ps`1`, ConnectionError)
  await close()
})

test('fails all that it was sent when it dies', async () => {
  const { ps, close } = openPowerShell()
  const answers = await Promise.allSettled([ps`[Environment]::Exit(3)`, ps`1`, ps`2`])
  for (const each of answers) {
    ok(each.status === 'rejected' && each.reason instanceof ConnectionError)
    match(each.reason.message, /exit code 3/)
  }
  await rejects(async () => await ps`3`, ConnectionError)
  await close()
})

test('stops a script that nobody waits for any more', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'gone-'))
  const file = join(dir, 'beat')
  try {
    // a program of its own, which ends without a word in the middle of a script
    const source = `import { existsSync } from 'node:fs'
      import process from 'node:process'
      import { openPowerShell } from ${JSON.stringify(task)}
      void openPowerShell().ps\`$file = \${${JSON.stringify(file)}}
        while ($true) { [IO.File]::AppendAllText($file, 'x'); Start-Sleep -Milliseconds 100 }\`
      while (!existsSync(${JSON.stringify(file)})) await new Promise((done) => setTimeout(done, 50))
      process.kill(process.pid, 'SIGKILL')`
    await writeFile(join(dir, 'program.ts'), source)
    const runtime = 'Deno' in globalThis ? ['run', '-A', '--config', config] : []
    await rejects(promisify(execFile)(process.execPath, [...runtime, join(dir, 'program.ts')]))
    await wait(2500)
    const { size } = await stat(file)
    await wait(500)
    equal((await stat(file)).size, size)
  } finally {
    await rm(dir, { recursive: true })
  }
})

test('ends a script that runs when it is closed', async () => {
  const { ps, close } = openPowerShell()
  await ps`1`
  const sleeping = fails(ps`Start-Sleep 60`, /PowerShell ended in the middle of a script/)
  await wait(100)
  await close()
  await sleeping
})

test('lets PowerShell end by itself when no script runs, and leaves alone what it has started', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'close-'))
  const file = join(dir, 'done')
  const { ps, close } = openPowerShell()
  try {
    await ps`
      $file = ${file}
      $null = Start-Process -FilePath sh -ArgumentList '-c', ('"sleep 1; echo > ' + $file + '"') -PassThru`
    await close()
    for (let n = 0; n < 50 && !existsSync(file); n++) await wait(100)
    ok(existsSync(file))
  } finally {
    await rm(dir, { recursive: true })
  }
})

test('has no syntax that Windows PowerShell 5.1 lacks', async ({ shell: { ps } }) => {
  const dir = await mkdtemp(join(tmpdir(), 'loop-'))
  try {
    for (const [name, text] of Object.entries({ BOOT, LOOP })) {
      // what goes over the wire is ASCII
      // deno-lint-ignore no-control-regex
      match(text, /^[\u0000-\u007f]+$/)
      // by that name PowerShell would take standard input for itself
      ok(!/\$input\b/i.test(text), name)
      await writeFile(join(dir, `${name}.ps1`), text)
    }
    deepEqual(await analyze(ps, dir), [])
  } finally {
    await rm(dir, { recursive: true })
  }
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

needs(running, 'pwsh')('says so where policy limits PowerShell’s language', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'limited-'))
  const program = join(dir, 'limited')
  // what the policy does before a script runs
  const limit = "$ExecutionContext.SessionState.LanguageMode = 'ConstrainedLanguage'"
  const last = 'eval "last=\\${$#}"'
  const text = 'text=$(printf %s "$last" | base64 -d | iconv -f UTF-16LE -t UTF-8)'
  await writeFile(
    program,
    `#!/bin/sh\n${last}\n${text}\nexec pwsh -NoProfile -NonInteractive -Command "${
      limit.replaceAll('$', '\\$')
    }; $text"\n`,
    { mode: 0o755 },
  )
  const { ps, close } = openPowerShell({ program })
  try {
    await fails(
      ps`1`,
      /^ConnectionError: Cannot use the PowerShell ".+limited": it runs in Constrained/,
    )
  } finally {
    await close()
    await rm(dir, { recursive: true })
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
