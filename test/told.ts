/** A recipe that does what it is told, for tests of how recipes are elevated. */
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import { converse } from '../recipes/run/elevate.ts'

const args = process.argv.slice(2)
const [, elevatedBy, what = '', ...names] = args
const { screen, person, confirm, select, signal } = converse({ elevatedBy })
const note = (text: string) => screen({ event: 'note', text })
const { TEST_TOKEN: token = null, VBOX_USER_HOME: home } = process.env

const does: Record<string, () => unknown> = {
  tell: () => {
    note(JSON.stringify({ args, cwd: process.cwd(), token, home }))
    process.exitCode = 42
  },
  slow: async () => {
    note('first')
    process.stderr.write('PowerShell warns: 桥接\n')
    await sleep(600)
    screen({ event: 'end', outcome: 'done', next: [] })
  },
  ask: async () => {
    signal()
    note(person ? 'person' : 'nobody')
    if (!person) return
    note(String(await confirm('Go ahead?')))
    note(await select('Which VM?', names))
  },
  step: () => screen({ event: 'step', step: 'vm', title: 'Make the VM', state: 'done' }),
  wait: async () => {
    const stop = signal()
    note('waits')
    for (let n = 0; n < 100 && !stop.aborted; n++) await sleep(100)
    note(stop.aborted ? 'stopped in order' : 'never stopped')
    process.exitCode = 130
  },
  deaf: async () => {
    note('works')
    await sleep(10000)
  },
}

await does[what]?.()
