/** A secret reaches PowerShell, and nobody else. */
import { equal, ok, rejects, throws } from 'node:assert/strict'
import { inspect } from 'node:util'
import { suite } from 'uvu'
import { HostError, openPowerShell, script, Secret } from '../../tasks/task.ts'
import { needs } from '../needs.ts'

const it = suite('a secret')
const test = needs(it, 'pwsh')
const text = 'p$ä"’;\n桥 $(calc)'
const secret = new Secret(text)

it('is in no text of it', () => {
  for (
    const shown of [
      `${secret}`,
      JSON.stringify({ secret }),
      inspect({ secret }),
      script`a ${secret}`,
    ]
  ) {
    ok(!shown.includes('p$ä'), shown)
  }
  throws(() => script`$list = ${[secret]}`, /^TypeError: Cannot write a secret down in PowerShell$/)
})

test('arrives as a SecureString of that text, and is gone afterwards', async () => {
  const { ps, close } = openPowerShell()
  try {
    const { stdout } = await ps`
      $first = ${secret}
      $second = ${new Secret('2')}
      $first.GetType().Name
      foreach ($one in $first, $second) { (New-Object Net.NetworkCredential '', $one).Password }`
    equal(stdout, `SecureString\n${text}\n2`)
    equal((await ps`[string]($null -eq $secret0 -and $null -eq $secret1)`).stdout, 'True')
    await rejects(
      async () =>
        await ps`
          $password = ${secret}; throw "it failed"`,
      (error: unknown) => error instanceof HostError && !inspect(error).includes('p$ä'),
    )
    equal((await ps`'still here'`).stdout, 'still here')
  } finally {
    await close()
  }
})

it.run()
