import { deepEqual, equal, ok } from 'node:assert/strict'
import type { WriteStream } from 'node:tty'
import { suite } from 'uvu'
import { draw, liveList, type Row } from '../../../tasks/open-tunnel/list.ts'

const it = suite('the live list of tunnels')

const row = (more: Partial<Row> = {}): Row => ({
  ...{ name: 'db', from: '127.0.0.1:3306', to: 'db.intranet:3306', state: 'up', again: 0 },
  ...{ why: '', count: () => ({ connections: 0, sent: 0, received: 0 }) },
  ...more,
})
const at80 = (...rows: Row[]) => draw(rows, { columns: 79, lines: 23, now: 1000 })

it('says of each tunnel where it listens and leads, and what has gone through it', () => {
  const count = () => ({ connections: 2, sent: 11, received: 10.7 * 1024 ** 3 })
  deepEqual(at80(row({ count }), row({ name: '桥接', from: '127.0.0.1', state: 'connecting' })), [
    '✔ db    127.0.0.1:3306  up          2 open  ↑11 B  ↓10.7 GB -> db.intranet:3306',
    '… 桥接  127.0.0.1       connecting -> db.intranet:3306',
  ])
  const long = row({ name: 'a-name-of-many-words', to: 'db.intranet.corp.example:3306', count })
  deepEqual(at80(long), [
    '✔ a-name-of-many-…  127.0.0.1:3306  up  2 open  ↑11 B  ↓10.7 GB -> db.intranet…',
  ])
})

it('says when a lost one is tried again, and the hop that it waits for', () => {
  const why =
    'hop 2, ssh://me@jump.intranet:22: nothing listens there (ECONNREFUSED). Check that ' +
    'it runs, and its port'
  const lost = row({ state: 'waiting', again: 4500, why })
  deepEqual(at80(lost), [
    '… db  127.0.0.1:3306  waiting 4 s -> db.intranet:3306',
    '  hop 2, ssh://me@jump.intranet:22: nothing listens there (ECONNREFUSED). Check',
    '  that it runs, and its port',
  ])
  ok(at80({ ...lost, again: 900 })[0]?.includes('connecting'))
  equal(at80({ ...lost, state: 'closed' }).length, 1)
})

it('keeps to the terminal, whatever a name or an error has in it', () => {
  const count = () => ({
    connections: 9999,
    sent: 1023.9 * 1024 ** 3,
    received: 999.99 * 1024 ** 2,
  })
  const hostile = row({
    name: '桥接 \x1b[2J"; $(calc) 👩‍💻 and more of it',
    from: '127.100.100.100:65535',
    state: 'waiting',
    again: 31_000,
    why: `x\x1b]0;title\x07\n${'y'.repeat(300)}`,
    count,
  })
  for (const columns of [20, 40, 79, 119]) {
    for (const line of draw([hostile, row()], { columns, lines: 23, now: 1000 })) {
      // deno-lint-ignore no-control-regex -- these are what may not be there
      ok(!/[\u0000-\u001f\u007f-\u009f]/.test(line), JSON.stringify(line))
      ok([...line].length <= columns, line)
    }
  }
  const many = Array.from({ length: 40 }, () => row())
  const drawn = draw(many, { columns: 79, lines: 10, now: 0 })
  deepEqual([drawn.length, drawn.at(-1)], [10, '… and 31 lines more'])
})

it('writes once for each change, over what is there, and leaves questions alone', () => {
  const written: string[] = []
  const stream = { columns: 80, rows: 24, write: (text: string) => written.push(text) }
  const rows = [row({ state: 'connecting' }), row({ name: 'web' })]
  const list = liveList(rows, stream as unknown as WriteStream)
  equal(written.length, 1)
  ok(!written[0]?.includes('\x1b[2A'))
  list.hush(true)
  list.close()
  equal(written.length, 1)
  list.hush(false)
  list.close()
  ok(!written[1]?.includes('\x1b[2A'))
  list.close()
  equal(written.length, 2)
  Object.assign(rows[0] as Row, { state: 'closed' })
  list.close()
  ok(written[2]?.startsWith('\r\x1b[2A✖ db'))
})

it.run()
