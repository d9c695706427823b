import { Ajv2020 } from 'ajv/dist/2020.js'
import { deepEqual, equal, match, ok } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'

const root = join(import.meta.dirname as string, '..', '..')
const schema = await fs.readJson(join(root, 'docs', 'events.schema.json'))
const valid = new Ajv2020().compile(schema)

const events = suite<{ dir: string; ova: string }>('the events of a run')
events.before(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'events-'))
  context.ova = (await demo('bios', context.dir)).ova
})
events.after(({ dir }) => fs.remove(dir))

events(
  'are what their schema says, on standard output and in the log, of each outcome',
  async ({ dir, ova }) => {
    const log = join(dir, 'logs', 'run.jsonl')
    const bundle = `bundle:${join(dir, 'b')}`
    const seen: unknown[] = []
    for (
      const args of [
        [ova, '--to', bundle, '--dry-run'],
        [ova, '--to', bundle],
        [ova, '--to', bundle],
        [ova, '--to', bundle, '--nat'],
      ]
    ) {
      const before = (await lines(log)).length
      const { stdout } = await migrate(dir, [...args, '--json', '--log', log])
      const shown = stdout.trim().split('\n').map((line) => JSON.parse(line))
      const logged = (await lines(log)).slice(before)
      deepEqual(logged.map(({ time: _, ...event }) => event), shown)
      for (const event of [...shown, ...logged]) {
        ok(
          valid(event),
          JSON.stringify([event, valid.errors]),
        )
      }
      seen.push(shown.findLast(({ event }) => event === 'end')?.outcome)
    }
    deepEqual(seen, ['dry-run', 'done', 'same', 'failed'])
    const kinds = new Set((await lines(log)).map(({ event }) => event))
    deepEqual([...kinds].sort(), ['end', 'error', 'plan', 'progress', 'source', 'step'])
  },
)

events(
  'go to the log from a run without --json too, which shows what it always does',
  async ({ dir, ova }) => {
    const log = join(dir, 'plain.jsonl')
    const { stdout } = await migrate(dir, [ova, '--to', `bundle:${join(dir, 'p')}`, '--log', log])
    match(stdout, /^Move "Demo BIOS" to Hyper-V\n/)
    equal((await lines(log)).at(-1)?.event, 'end')
  },
)

events(
  'have no log where it cannot be written, and the run changes nothing',
  async ({ dir, ova }) => {
    const bundle = join(dir, 'none')
    const { code, stderr } = await migrate(dir, [
      ova,
      '--to',
      `bundle:${bundle}`,
      '--log',
      join(ova, 'log'),
    ])
    equal(code, 1)
    match(
      stderr.replaceAll('\n', ' '),
      /^Cannot keep a log in \".+\": .+\. Name a file .+ --log FILE $/,
    )
    equal(await fs.pathExists(bundle), false)
  },
)

events.run()

async function lines(file: string): Promise<(RunEvent & { time: string })[]> {
  const text = await fs.readFile(file, 'utf8').catch(() => '')
  return text.split('\n').filter(Boolean).map((line) => JSON.parse(line))
}

function migrate(
  dir: string,
  args: string[],
): Promise<{ code: number; stdout: string; stderr: string }> {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const all = [join(root, 'recipes', 'migrate.ts'), ...args, '--state', join(dir, 'state')]
  const env = { ...process.env, FORCE_COLOR: '0' }
  return new Promise((resolve) =>
    execFile(process.execPath, [...runtime, ...all], { cwd: dir, env }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr })
    })
  )
}
