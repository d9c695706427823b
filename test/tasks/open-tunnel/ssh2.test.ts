import { equal } from 'node:assert/strict'
import crypto from 'node:crypto'
import { suite } from 'uvu'

const it = suite('the package ssh2')

it('is loaded without a trace in the functions that others take, meanwhile and after', async () => {
  const { createCipheriv, createDecipheriv } = crypto
  let loaded = false
  // anew, as another test may have loaded it
  const file = '../../../tasks/open-tunnel/ssh2.ts?again'
  const loading = import(file).finally(() => loaded = true)
  while (!loaded) {
    equal(crypto.createCipheriv, createCipheriv)
    await new Promise((resolve) => setImmediate(resolve))
  }
  const { default: ssh2 } = await loading
  equal(typeof ssh2.Client, 'function')
  equal(crypto.createCipheriv, createCipheriv)
  equal(crypto.createDecipheriv, createDecipheriv)
})

it.run()
