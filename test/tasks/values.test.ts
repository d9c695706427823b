/** Values never become code: thousands of them, drawn from a seed, go to real PowerShell and back. */
import { deepEqual, equal } from 'node:assert/strict'
import process from 'node:process'
import { suite } from 'uvu'
import { openPowerShell, type PowerShellProcess, type Value } from '../../tasks/task.ts'
import { needs } from '../needs.ts'

/** What has a meaning somewhere between here and there. */
const PIECES = [
  ...'aZ0 \'"`$(){}[]*?;|&<>#@%!^~\\/-=,.:\t\n\r\0\u0007\u001b\u007f\u0085\u00a0\u00ad\u200b\u2028\u2029',
  ...'‘’‚‛“”„«»桥接é😀\ufeff\uffff\ufffe',
  ...['\ud800', '\udbff', '\udc00', '\udfff', '\ud83d', 'e\u0301'],
  ...[
    '$(calc)',
    '$env:PATH',
    '$value0',
    '${value0}',
    '@(1)',
    '@"\n',
    '\n"@',
    '`n',
    '`u{41}',
    '%PATH%',
  ],
  ...['{0}', '{{', '}', '\n{1:x}\n\0\n'],
  ...['’; exit 1 #', "''", '""', '\\"', '--', '-Verbose', '-EncodedCommand', '--%', '<#', '#>'],
  ...[
    '[a*]',
    '[a-z]',
    '??',
    '007',
    '1gb',
    '0x10',
    'True',
    '$null',
    'C:\\',
    '\\\\server\\share',
    '..',
  ],
]

let seed = 20261123
const below = (limit: number) => (seed = (seed * 48271) % 2147483647) % limit
const some = <T>(most: number, make: () => T): T[] => Array.from({ length: below(most + 1) }, make)
const text = () => some([8, 8, 40][below(3)] as number, () => PIECES[below(PIECES.length)]).join('')
const number = () =>
  [below(1000), 0 - below(1000), below(2 ** 31) * 4_000_000, below(1e6) / 1024][below(4)] as number

const values = suite<{ shell: PowerShellProcess }>('a value in a script')
const test = needs(values, process.env.POWERSHELL || 'pwsh')

values.before((context) => {
  context.shell = openPowerShell()
})
values.after(({ shell }) => shell.close())

test('arrives as it is, with every character that there is', async ({ shell }) => {
  const units = Array.from({ length: 0x10000 }, (_, unit) => String.fromCharCode(unit))
  // in threes that do not make pairs of halves, so that each half stands alone too
  const strings = Array.from(
    { length: 2048 },
    (_, row) => units.slice(row * 32, row * 32 + 32).join('|'),
  )
  for (let at = 0; at < strings.length; at += 256) {
    const part = strings.slice(at, at + 256)
    deepEqual(await echo(shell, part), part)
  }
})

test('arrives as it is, whatever is put together', async ({ shell }) => {
  const strings = [...PIECES, ...Array.from({ length: 4000 }, text)]
  for (let at = 0; at < strings.length; at += 250) {
    const part = strings.slice(at, at + 250)
    deepEqual(await echo(shell, part), part)
  }
})

test('stays data inside double quotes, arguments, names and patterns', async ({ shell: { ps } }) => {
  for (let n = 0; n < 60; n++) {
    const [a, b] = [text(), text()]
    const { stdout } = await ps`
      function Tell { param([string] $Name) $Name }
      $hash = @{}
      $hash[${a}] = 1
      $equal = ${a}.Equals(${b}, 'Ordinal')
      $found = @(${[a, b]} | Where-Object { [string]::Equals($_, ${b}, 'Ordinal') })
      ConvertTo-Json -Compress @{
        inside = "<${a}|${b}>"; named = (Tell -Name ${a}); positional = (Tell ${b}); key = @($hash.Keys)[0]
        equal = $equal; found = $found.Length
      }`
    deepEqual(JSON.parse(stdout), {
      inside: `<${a}|${b}>`,
      named: a,
      positional: b,
      key: a,
      equal: a === b,
      found: a === b ? 2 : 1,
    })
  }
})

test('keeps its type: numbers, booleans, nothing, lists and lists in lists', async ({ shell }) => {
  const value = (depth: number): Value =>
    ([
      text,
      number,
      () => below(2) === 1,
      () => null,
      () => depth ? some(3, () => value(depth - 1)) : [],
    ][
      below(depth ? 6 : 4)
    ] ?? (() => some(2, () => value(depth - 1))))()
  const list = Array.from({ length: 1000 }, () => value(3))
  const known: Value[] = [
    [],
    [[]],
    [[[]]],
    [['a']],
    [[], []],
    [[1], 2],
    [null],
    [[null]],
    0,
    -1,
    1.5,
    true,
    '',
  ]
  for (const one of known) deepEqual(await echo(shell, [one, one]), [one, one])
  for (const one of known) deepEqual(await echo(shell, [one]), [one])
  for (let at = 0; at < list.length; at += 100) {
    const part = list.slice(at, at + 100)
    deepEqual(await echo(shell, part), part)
  }
})

test('is the very number, to the last bit', async ({ shell: { ps } }) => {
  const bits = new BigInt64Array(500)
  const numbers = new Float64Array(bits.buffer)
  for (let n = 0; n < bits.length; n++) {
    do bits[n] = (BigInt(below(2 ** 31)) << 33n) ^ BigInt(below(2 ** 31) * below(2 ** 21))
    while (!Number.isFinite(numbers[n]))
  }
  numbers.set([
    Number.MAX_SAFE_INTEGER,
    Number.MIN_SAFE_INTEGER,
    Number.MAX_VALUE,
    5e-324,
    2 ** -958,
  ])
  const { stdout } = await ps`
    $numbers = ${[...numbers]}
    @($numbers | ForEach-Object { [BitConverter]::DoubleToInt64Bits([double]$_) }) -join ' '`
  equal(stdout, bits.join(' '))
})

test('makes no more of a text than a text', async ({ shell: { ps } }) => {
  const { stdout } = await ps`
    $values = ${['007', '1gb', '$true', '', '-Verbose', '@(1)']}
    @($values | ForEach-Object { $_.GetType().Name } | Select-Object -Unique) -join ' '`
  equal(stdout, 'String')
})

values.run()

async function echo({ ps }: PowerShellProcess, list: Value[]): Promise<unknown> {
  const { stdout } = await ps`
    $list = ${list}
    ConvertTo-Json -InputObject $list -Compress -Depth 10`
  return JSON.parse(stdout)
}
