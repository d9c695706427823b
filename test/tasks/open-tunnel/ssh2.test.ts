import { equal } from 'node:assert/strict'
import crypto from 'node:crypto'
import { suite } from 'uvu'

const it = suite('the package ssh2')

it('is loaded without a trace in the functions that others take', async () => {
  const { createCipheriv, createDecipheriv } = crypto
  const { default: ssh2 } = await import('../../../tasks/open-tunnel/ssh2.ts')
  equal(typeof ssh2.Client, 'function')
  equal(crypto.createCipheriv, createCipheriv)
  equal(crypto.createDecipheriv, createDecipheriv)
})

it.run()
