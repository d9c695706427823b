import fs from 'fs-extra'
import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate } from '../../recipes/migrate.ts'
import { beginJournal, record } from '../../recipes/run/journal.ts'
import type { Plan } from '../../recipes/run/plan.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { runs } from '../../recipes/runs.ts'
import { undo } from '../../recipes/undo.ts'
import { runTask } from '../run-task.ts'

const listing = suite<{ state: string; dir: string }>('runs')

listing.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'runs-'))
  context.state = join(context.dir, 'state')
})
listing.after.each(({ dir }) => fs.remove(dir))

const show = (dir: string, ...args: string[]) =>
  runTask({ dir, env: process.env }, '../recipes/runs', '--state', join(dir, 'state'), ...args)
const screen = () => {}

/** A run of two steps, which a test lets come to some end. */
const begin = (state: string, target: object = { kind: 'local' }) => {
  const steps = ['one', 'two'].map((id) => ({ id, title: `Do ${id}`, where: 'host' }))
  const plan = {
    key: JSON.stringify(target),
    slug: 'Bob’s web',
    name: 'Bob’s "web"',
    steps,
    target,
  }
  return beginJournal(state, plan as unknown as Plan)
}

listing('tells what a run changed, and that it was taken back', async ({ state, dir }) => {
  deepEqual(await runs({ state }), [])
  const { ova } = await demo('bios', dir)
  const to = `bundle:${join(dir, 'bundle')}`
  await migrate({ source: [ova], to, state }, { screen })
  const [run] = await runs({ run: 'last', state })
  deepEqual([run?.vm, run?.to, run?.outcome], ['Demo BIOS', to, 'done'])
  deepEqual(run?.steps.map(({ step, outcome }) => [step, outcome]), [['convert-disk-1', 'changed']])
  await migrate({ source: [ova], to, state }, { screen })
  equal((await runs({ run: 'last', state }))[0]?.steps[0]?.outcome, 'already so')
  const stopped = { screen, signal: AbortSignal.abort() }
  await rejects(undo({ run: String(run?.run), state }, stopped), /^Stopped: Stopped\. Run the same/)
  equal(await fs.pathExists(join(dir, 'bundle', 'disks')), true)
  await undo({ run: String(run?.run), state }, { screen })
  equal(await fs.pathExists(join(dir, 'bundle')), false)
  const [first] = await runs({ state })
  deepEqual([first?.outcome, first?.steps[0]?.outcome], ['undone', 'taken back'])
})

listing('tells what was begun from what is to do, and how to go on', async ({ state, dir }) => {
  const { file, run } = await begin(state)
  await record(file, { entry: 'started', step: 'one' })
  const [killed] = await runs({ state })
  equal(killed?.outcome, 'not ended')
  deepEqual(killed.steps.map(({ outcome }) => outcome), ['not known', 'to do'])
  await record(file, { entry: 'done', step: 'one', result: { changed: true } })
  await record(file, { entry: 'end', outcome: 'stopped' })
  const { stdout } = await show(dir, run)
  match(
    stdout,
    /Bob’s-web: stopped\n.+\n\n changed {2}Do one\n to do {4}Do two\n\nGo on with it by the same command/,
  )
  // ’ is a quote in PowerShell, and the journal is not where undo would look
  match(stdout, /\n {2}npx zx recipes\/undo\.ts "\S+-Bob’s-web" --state .+state"?\n/)
})

listing('shows and takes back those to one place, when that is named', async ({ state, dir }) => {
  const url = 'ssh://admin@hyperv.lan'
  const far = await begin(state, { kind: 'ssh', url, folder: 'D:\\', stage: join(dir, 'stage') })
  const here = await begin(state)
  const bundle = join(dir, 'bundle')
  const carried = await begin(state, { kind: 'bundle', dir: bundle })
  const one = { entry: 'done', step: 'one', result: { changed: true } } as const
  for (const { file } of [far, here, carried]) await record(file, one)
  const names = async (to: string) => (await runs({ state, to })).map(({ run }) => run)
  deepEqual(await names(url), [far.run])
  deepEqual(await names('local'), [here.run])
  deepEqual(await names(`bundle:${bundle}/`), [carried.run])
  const said: string[] = []
  const hear = (event: RunEvent) => event.event === 'note' && said.push(event.text)
  await undo({ state, to: url, dryRun: true }, { screen: hear })
  match(said.join(), new RegExp(`^Take back the run ${far.run}\n`))
  await rejects(undo({ state, to: 'ssh://other' }, { screen }), {
    message: `Cannot take back the last run: no run to ssh://other is in "${state}"`,
  })
  await rejects(undo({ state, run: here.run, to: url }, { screen }), {
    message:
      `Cannot take back the run "${here.run}": the runs to ${url} are ${far.run} (not ended)`,
  })
  match(
    (await show(dir, '--to', 'ssh://other')).stdout,
    /^No run to ssh:\/\/other is in ".+" yet\.\n$/,
  )
})

listing('is a command that lists, for people and for programs', async ({ state, dir }) => {
  match((await show(dir)).stdout, /^No run is in ".+" yet\.\n$/)
  const { file, run } = await begin(state)
  await record(file, { entry: 'end', outcome: 'failed' })
  const { stdout } = await show(dir)
  match(
    stdout,
    /^\d{4}-\d\d-\d\d \d\d:\d\d {2}failed +"Bob’s "web"" to local, 0 of 2 steps changed/,
  )
  const [found] = JSON.parse((await show(dir, '--json')).stdout)
  deepEqual([found.run, found.file], [run, file])
  const { code, stderr } = await show(dir, 'nope')
  equal(code, 1)
  match(stderr, /^Cannot show the run "nope": the runs are \S+-Bob’s-web\n$/)
  await rejects(runs({ run: 'last', state: join(state, 'none') }), {
    message: `Cannot show the run "last": no run is in "${join(state, 'none')}"`,
  })
})

listing.run()
