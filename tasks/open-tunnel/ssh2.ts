/**
 * The package ssh2, quicker under Node: it gives the key of a connection as bytes to a new cipher for each
 * packet, and Node 24 takes 45 microseconds to make a cipher of bytes, 5 of a key object.
 */
import crypto, { createSecretKey, type KeyObject } from 'node:crypto'
import { createRequire } from 'node:module'

type Make = (name: string, key: Uint8Array, ...rest: unknown[]) => unknown

const { createCipheriv, createDecipheriv } = crypto
const keys = new WeakMap<Uint8Array, KeyObject>()

function ofKeyObjects<F>(make: F): F {
  const made: Make = (name, bytes, ...rest) => {
    const key = keys.get(bytes) ?? createSecretKey(bytes)
    keys.set(bytes, key)
    return (make as (...given: unknown[]) => unknown)(name, key, ...rest)
  }
  return made as F
}

// the package takes both functions while it loads: at one go, so that no other module loads meanwhile
let ssh2: typeof import('ssh2')
try {
  crypto.createCipheriv = ofKeyObjects(createCipheriv)
  crypto.createDecipheriv = ofKeyObjects(createDecipheriv)
  ssh2 = createRequire(import.meta.url)('ssh2')
} finally {
  Object.assign(crypto, { createCipheriv, createDecipheriv })
}

export default ssh2
