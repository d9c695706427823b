/** Ports of loopback for programs that a test starts. */
import { once } from 'node:events'
import { createServer } from 'node:net'
import process from 'node:process'

let next = Math.floor(Math.random() * 256)

/**
 * A port where nothing listens, and where nothing will by chance: it is none of those that systems give to
 * whoever asks for any, from 32768 on. So no connection of other tests has it meanwhile, none that is made to
 * it can meet itself, and each process takes from its own 256.
 */
export async function freePort(): Promise<number> {
  for (let n = 0; n < 256; n++) {
    const port = 12_288 + process.pid % 64 * 256 + next++ % 256
    const server = createServer().listen(port, '127.0.0.1')
    try {
      await once(server, 'listening')
    } catch {
      continue // somebody's
    }
    server.close()
    await once(server, 'close')
    return port
  }
  throw new Error('no port is free')
}
