/** A SOCKS5 server of a test's own, in this process: it counts, it stalls and it breaks on demand. */
import { connect, createServer, type Socket } from 'node:net'
import { once } from 'node:events'
import { freePort } from './ports.ts'

export interface SocksServer {
  /** `127.0.0.1:port` */
  address: string
  port: number
  /** What was asked for, as `type host:port`, where type is name, ipv4 or ipv6. */
  asked: string[]
  /** Of its connections, to it and from it. */
  sockets: ReadonlySet<Socket>
  /** Ends every connection at once, as a broken link does. */
  cut: () => void
  /** Holds all bytes back, both ways, as a link does whose other end has vanished. */
  freeze: (frozen: boolean) => void
  close: () => Promise<void>
}

export interface SocksServerOptions {
  user?: string
  password?: string
  /** Answers every request so (RFC 1928, 6). @default as it is */
  reply?: number
  /** Says nothing at all. */
  silent?: boolean
  /** Looks names up. @default localhost for every name */
  lookup?: (host: string) => string
}

/** A listener on a free port of loopback. */
export async function socksServer(options: SocksServerOptions = {}): Promise<SocksServer> {
  const { user, password = '', reply, silent = false, lookup = () => '127.0.0.1' } = options
  const asked: string[] = []
  const sockets = new Set<Socket>()
  const keep = (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket)).on('error', () => socket.destroy())
    return socket
  }
  const serve = async (client: Socket) => {
    if (silent) return
    const read = reader(client)
    const [, methods = 0] = await read(2)
    const method = user === undefined ? 0 : 2
    if (!(await read(methods)).includes(method)) return void client.end(Buffer.of(5, 255))
    client.write(Buffer.of(5, method))
    if (user !== undefined) {
      const [, userLength = 0] = await read(2)
      const name = (await read(userLength)).toString()
      const secret = (await read((await read(1))[0] ?? 0)).toString()
      const right = name === user && secret === password
      client.write(Buffer.of(1, right ? 0 : 1))
      if (!right) return void client.end()
    }
    const [, , , type] = await read(4)
    const host = type === 1
      ? (await read(4)).join('.')
      : type === 3
      ? (await read((await read(1))[0] ?? 0)).toString()
      : (await read(16)).toString('hex').replace(/(.{4})(?!$)/g, '$1:')
    const port = (await read(2)).readUInt16BE()
    asked.push(`${type === 1 ? 'ipv4' : type === 3 ? 'name' : 'ipv6'} ${host}:${port}`)
    const answer = (code: number) => client.write(Buffer.of(5, code, 0, 1, 0, 0, 0, 0, 0, 0))
    if (reply !== undefined) return void (answer(reply), client.end())
    const target = connect({
      host: type === 3 ? lookup(host) : host,
      port,
      allowHalfOpen: true,
      noDelay: true,
    })
    keep(target)
    try {
      await once(target, 'connect')
    } catch {
      return void (answer(5), client.end())
    }
    answer(0)
    // what came with the request goes on before the rest
    target.write(read.rest())
    client.pipe(target)
    target.pipe(client)
    client.once('close', () => target.destroy())
    target.once('close', () => client.destroy())
  }
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    serve(keep(client)).catch(() => client.destroy())
  })
  const port = await freePort()
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  const cut = () => sockets.forEach((socket) => socket.destroy())
  return {
    address: `127.0.0.1:${port}`,
    port,
    asked,
    sockets,
    cut,
    freeze: (frozen) => sockets.forEach((socket) => frozen ? socket.pause() : socket.resume()),
    close: async () => {
      cut()
      server.close()
      if (server.listening) await once(server, 'close')
    },
  }
}

/** Reads so many bytes of a socket; `rest` gives the socket back, with what was read too much. */
function reader(socket: Socket) {
  let held = Buffer.alloc(0)
  let wake = () => {}
  const hear = (bytes: Buffer) => {
    held = Buffer.concat([held, bytes])
    wake()
  }
  socket.on('data', hear)
  const read = async (length: number): Promise<Buffer> => {
    while (held.length < length) {
      if (socket.destroyed || socket.readableEnded) throw new Error('ended')
      await new Promise<void>((resolve) => {
        wake = resolve
        socket.once('end', resolve).once('close', resolve)
      })
    }
    const bytes = held.subarray(0, length)
    held = held.subarray(length)
    return bytes
  }
  return Object.assign(read, {
    rest: () => {
      socket.off('data', hear)
      return held
    },
  })
}

/** A server on a free port of loopback that `serve` answers; `close` ends its connections too. */
export async function tcpServer(
  serve: (socket: Socket) => void,
  port?: number,
): Promise<{ port: number; sockets: Set<Socket>; close: () => Promise<void> }> {
  const sockets = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket)).on('error', () => socket.destroy())
    serve(socket)
  })
  const own = port ?? await freePort()
  server.listen(own, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: own,
    sockets,
    close: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      if (server.listening) await once(server, 'close')
    },
  }
}
