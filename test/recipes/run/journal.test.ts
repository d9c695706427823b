import fs from 'fs-extra'
import { deepEqual, equal, rejects } from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { beginJournal, readJournals, record } from '../../../recipes/run/journal.ts'
import type { Plan } from '../../../recipes/run/plan.ts'

const journals = suite<{ state: string }>('journal')

journals.before.each(async (context) => {
  context.state = await fs.mkdtemp(join(tmpdir(), 'journal-'))
})
journals.after.each(({ state }) => fs.remove(state))

const plan = (key = 'a') =>
  ({ version: 1, key, slug: 'web', name: 'web', steps: [] }) as unknown as Plan

journals('tells what was done, oldest first, and what was only begun', async ({ state }) => {
  const { file } = await beginJournal(state, plan())
  await record(file, { entry: 'started', step: 'one' })
  await record(file, { entry: 'done', step: 'one', result: { changed: true, id: '1' } })
  await record(file, { entry: 'started', step: 'two' })
  const [journal] = await readJournals(state)
  deepEqual(journal?.done, [{ step: 'one', result: { changed: true, id: '1' } }])
  deepEqual(journal?.unfinished, ['two'])
  equal(journal?.outcome, undefined)
})

journals('forgets what was taken back', async ({ state }) => {
  const { file } = await beginJournal(state, plan())
  await record(file, { entry: 'done', step: 'one', result: { changed: true } })
  await record(file, { entry: 'done', step: 'two', result: { changed: true } })
  await record(file, { entry: 'undone', step: 'two' })
  deepEqual((await readJournals(state))[0]?.done.map(({ step }) => step), ['one'])
})

journals('goes on with the run of the same plan that did not end well', async ({ state }) => {
  const first = await beginJournal(state, plan())
  await record(first.file, { entry: 'done', step: 'one', result: { changed: true } })
  await record(first.file, { entry: 'end', outcome: 'stopped' })
  const second = await beginJournal(state, plan())
  equal(second.file, first.file)
  deepEqual(second.done.map(({ step }) => step), ['one'])
  equal((await readJournals(state))[0]?.outcome, undefined)
})

journals('begins anew after a run that ended well, and for another plan', async ({ state }) => {
  const first = await beginJournal(state, plan())
  await record(first.file, { entry: 'end', outcome: 'done' })
  const second = await beginJournal(state, plan())
  const third = await beginJournal(state, plan('b'))
  equal(new Set([first.file, second.file, third.file]).size, 3)
})

journals('tells the order of runs that began within a second', async ({ state }) => {
  const begun: string[] = []
  for (let n = 0; n < 12; n++) begun.push((await beginJournal(state, plan(`${n}`))).run)
  deepEqual((await readJournals(state)).map(({ run }) => run), begun)
})

journals('reads past a line that a killed run left cut short', async ({ state }) => {
  const { file } = await beginJournal(state, plan())
  await fs.appendFile(file, '\n{"entry":"done","step":"on')
  equal((await readJournals(state))[0]?.done.length, 0)
  await record(file, { entry: 'done', step: 'two', result: { changed: true } })
  deepEqual((await readJournals(state))[0]?.done.map(({ step }) => step), ['two'])
})

journals('refuses a journal that is damaged elsewhere', async ({ state }) => {
  const { file } = await beginJournal(state, plan())
  await fs.appendFile(file, '\nnot json\n\n{"entry":"started","step":"one"}\n')
  await rejects(readJournals(state), {
    message: `Cannot read the journal "${file}": line 4 is damaged`,
  })
})

journals('says that the volume of its folder is full', async () => {
  if (process.platform !== 'linux') return
  await rejects(record('/dev/full', { entry: 'end', outcome: 'done' }), {
    message: 'Cannot keep a run\'s journal in "/": its volume is full. Make room there, or name ' +
      'another folder by --state DIR',
  })
})

journals('finds no journals where there is no folder, and makes none', async ({ state }) => {
  deepEqual(await readJournals(join(state, 'none')), [])
  equal(await fs.pathExists(join(state, 'none')), false)
})

journals.run()
