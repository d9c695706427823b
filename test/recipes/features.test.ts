import { Ajv2020 } from 'ajv/dist/2020.js'
import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../recipes/migrate.ts'
import type { RunEvent } from '../../recipes/run/screen.ts'
import { runs } from '../../recipes/runs.ts'
import { undo, type UndoOptions } from '../../recipes/undo.ts'
import { needs } from '../needs.ts'
import { lent, quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const root = join(import.meta.dirname as string, '..', '..')
const MODULE = 'Microsoft-Hyper-V-Management-PowerShell'
const valid = {
  event: new Ajv2020().compile(await fs.readJson(join(root, 'docs', 'events.schema.json'))),
  plan: new Ajv2020().compile(await fs.readJson(join(root, 'docs', 'plan.schema.json'))),
}

/** What a restart is called where exit codes end at 255. */
const RESTART = process.platform === 'win32' ? 3010 : 1

interface Context {
  host: SimulatedHost
  seed: object
  ova: string
  state: string
  options: MigrateOptions
}

const features = suite<Context>('turning Hyper-V on and off with a migration')
const test = needs(features, 'pwsh')

features.before(async (context) => {
  context.host = await simulatedHost('laptop', { without: ['Hyper-V'] })
  context.seed = await context.host.state()
  context.ova = (await demo('bios', context.host.dir)).ova
})
features.before.each(async (context) => {
  const { host, seed, ova } = context
  if (await fs.pathExists(modules(host))) {
    await fs.remove(modules(host))
    await host.fire('Startup')
  }
  await host.change((state) => {
    Object.assign(state, structuredClone(seed))
    for (const name of Object.keys(state.features)) {
      if (name.startsWith('Microsoft-Hyper-V')) state.features[name] = 'Disabled'
    }
    state.host.hypervisorPresent = false
    quickGuests(state)
  })
  await fs.remove(join(host.dir, 'disks'))
  context.state = join(host.dir, 'state')
  await fs.remove(context.state)
  context.options = {
    source: [ova],
    to: 'local',
    name: 'moved',
    storage: join(host.dir, 'disks'),
    state: context.state,
    enableHyperv: true,
  }
})
features.after(({ host }) => host.close())

test('says on a dry run that Hyper-V would be turned on, and asks before it is', async ({ host, options }) => {
  const before = await host.text()
  const { outcome, events } = await run(host, { ...options, dryRun: true })
  equal(outcome, 'dry-run')
  deepEqual(steps(events), [['enable-hyperv', 'would']])
  const declined = await run(host, options, () => Promise.resolve(false))
  equal(declined.outcome, 'declined')
  equal(await host.text(), before)
  await rejects(run(host, { ...options, enableHyperv: false }), {
    message: / Run: Enable-WindowsOptionalFeature .+\nWith --enable-hyperv this turns it on first$/,
  })
  await rejects(run(host, { ...options, planOut: join(host.dir, 'plan.json') }), {
    message: /^Cannot write the plan down: Hyper-V is off on the host, /,
  })
  equal(await host.text(), before)
  await rejects(run(host, { ...options, to: `bundle:${join(host.dir, 'b')}` }), {
    message: /^Cannot turn Hyper-V on where a bundle goes: /,
  })
})

test('turns Hyper-V on, goes on after the restart as one run, and turns it off last and only when asked', async ({ host, options, state, ova }) => {
  const before = await host.state()
  const { storage = '' } = options
  const on = await program(host, 'migrate', [ova, '--to', 'local', '--name', 'moved'], [
    ...['--storage', storage, '--enable-hyperv', '--state', state],
  ])
  equal(on.code, RESTART, on.stderr)
  match(on.stdout, /done {7}Turn Hyper-V on\n/)
  match(on.stdout, /After the restart the same command goes on with the VM/)
  equal((await host.state()).features['Microsoft-Hyper-V'], 'EnablePending')

  // before the restart: nothing more
  const pending = await host.text()
  equal((await run(host, options)).outcome, 'restart')
  const left = await takeBack(host, { state })
  equal(left.outcome, 'same')
  match(
    left.next,
    /^Nothing else is to be taken back\.\nHyper-V stays on, .+\n {2}npx zx .+ --features/,
  )
  equal(await host.text(), pending)
  deepEqual(await outcomes(state), [['stopped', 'enable-hyperv']])

  await restart(host)
  const { outcome, events } = await run(host, options)
  equal(outcome, 'done')
  match(next(events), /Take it all back:\n.+\nWith --features that turns off, last, /)
  const [[ended = '', ...changed] = [], ...others] = await outcomes(state)
  deepEqual([ended, others], ['done', []])
  ok(
    ['enable-hyperv', 'convert-disk-1', 'create-vm', 'start-vm'].every((id) =>
      changed.includes(id)
    ),
  )
  equal((await run(host, options)).outcome, 'same')
  const [{ run: name = '' } = {}] = await runs({ state })

  const dry: string[] = []
  await undo({ state, dryRun: true }, {
    screen: (event) => event.event === 'note' && dry.push(event.text),
  })
  match(
    dry.join(),
    /\nHyper-V stays on, which it turned on\. To turn that off, too:\n {2}npx zx .+ --features/,
  )
  const undone = await takeBack(host, { state })
  equal(undone.outcome, 'done')
  ok(!undone.steps.some(([id]) => id === 'enable-hyperv'))
  match(undone.next, /Hyper-V stays on, which it turned on\. To turn that off, too:/)
  const now = await host.state()
  deepEqual([now.vms, now.features['Microsoft-Hyper-V']], [[], 'Enabled'])
  match(
    (await program(host, 'runs', [name, '--state', state])).stdout,
    /Turn Hyper-V off as well, .+\n {2}npx zx .+ --features/,
  )

  // somebody makes a VM of their own
  await host.ps`$null = New-VM -Name 'theirs' -NoVHD -Generation 1`
  const theirs = await host.text()
  const kept = await takeBack(host, { state, features: true })
  deepEqual([kept.outcome, kept.steps], ['same', [['enable-hyperv', 'left']]])
  match(
    kept.next,
    /^Hyper-V stays on: it has VMs, which would be lost to you: "theirs"\. Without them:\n/,
  )
  equal(await host.text(), theirs)
  await host.ps`Remove-VM -Name 'theirs' -Force`

  const off = await program(host, 'undo', ['last', '--features', '--state', state])
  equal(off.code, RESTART, off.stderr)
  match(off.stdout, /What it turned off goes when Windows restarts/)
  const { features } = await host.state()
  deepEqual(
    Object.entries(features).filter(([feature, is]) => is !== before.features[feature]).map((
      [, is],
    ) => is),
    Array(7).fill('DisablePending'),
  )
  await rejects(undo({ state, features: true }, { screen: () => {}, host: () => lent(host) }), {
    message: /^Cannot take back the last run: /,
  })
})

test('knows what it turned on where the answer was lost, and turns off no more than that', async ({ host, options, state }) => {
  await host.change(({ features }) => features['Microsoft-Hyper-V-Hypervisor'] = 'Enabled')
  const lost = await run(host, options, undefined, () => {
    throw new Error('The connection is lost')
  }).catch(({ message }: Error) => message)
  match(
    `${lost}`,
    /^The connection is lost\nRun the same command again to go on, or take it back:\n.+ --features/,
  )
  equal((await host.state()).features['Microsoft-Hyper-V'], 'EnablePending')
  await restart(host)
  equal((await run(host, options)).outcome, 'done')
  const [[, first] = [], ...others] = await outcomes(state)
  deepEqual([first, others], ['enable-hyperv', []])
  const off = await takeBack(host, { state, features: true })
  deepEqual([off.outcome, off.steps.at(-1)], ['restart', ['enable-hyperv', 'done']])
  const { features } = await host.state()
  const { 'Microsoft-Hyper-V-Hypervisor': kept, [MODULE]: module } = features
  deepEqual([kept, module], ['Enabled', 'DisablePending'])
})

test('goes on at once where no restart is needed, and leaves what was on', async ({ host, options, state }) => {
  const server = await fs.readJson(join(root, 'fixtures', 'hyper-v', 'server.json'))
  await host.change((state) => {
    Object.assign(state, server)
    state.features[MODULE] = 'Disabled'
    state.host.hypervisorPresent = true
    quickGuests(state)
  })
  const { outcome, events } = await run(host, options, undefined, () => restart(host, false))
  equal(outcome, 'done')
  deepEqual(steps(events).filter(([, state]) => state !== 'started').slice(0, 2), [
    ['enable-hyperv', 'done'],
    ['check-host', 'done'],
  ])
  equal((await runs({ state })).length, 1)
  const off = await takeBack(host, { state, features: true })
  deepEqual([off.outcome, off.steps.at(-1)], ['done', ['enable-hyperv', 'done']])
  const { features } = await host.state()
  deepEqual([features['Microsoft-Hyper-V'], features[MODULE]], ['Enabled', 'Disabled'])
})

test('lets the hypervisor start that was turned off for VirtualBox, and refuses what cannot run it', async ({ host, options, seed }) => {
  await restart(host)
  await host.change((state) => {
    Object.assign(state, structuredClone(seed), { launchType: 'Off' })
    state.host.hypervisorPresent = false
  })
  const { outcome } = await run(host, options)
  deepEqual([outcome, (await host.state()).launchType], ['restart', 'Auto'])
  await host.change((state) => state.host.editionId = 'Core')
  await host.change((state) => state.launchType = 'Off')
  const before = await host.text()
  await rejects(run(host, options), { message: /^Cannot turn Hyper-V on: this is Windows Home/ })
  equal(await host.text(), before)
})

features.run()

function modules({ dir }: SimulatedHost): string {
  return join(dir, 'windows', 'modules', 'Hyper-V')
}

/** Windows starts anew, and has what was turned on. */
async function restart(host: SimulatedHost, running = true): Promise<void> {
  await fs.copy(join(root, 'fixtures', 'hyper-v', 'modules', 'Hyper-V'), modules(host))
  if (!running) return
  await host.change((state) => {
    for (const [name, is] of Object.entries(state.features)) {
      if (is === 'EnablePending') state.features[name] = 'Enabled'
    }
    state.host.hypervisorPresent = true
  })
}

/** @param turned what happens when Hyper-V has been turned on, before that is answered */
async function run(
  host: SimulatedHost,
  options: MigrateOptions,
  agree?: () => Promise<boolean>,
  turned?: () => Promise<void>,
) {
  const events: RunEvent[] = []
  const outcome = await migrate(options, {
    screen: (event) => events.push(event),
    host: () => watched(host, turned),
    ...(agree && { agree }),
  })
  for (const event of events) {
    ok(valid.event(event), JSON.stringify([event, valid.event.errors]))
    if (event.event === 'plan') ok(valid.plan(event.plan), JSON.stringify(valid.plan.errors))
  }
  return { outcome, events }
}

async function takeBack(host: SimulatedHost, options: UndoOptions) {
  const events: RunEvent[] = []
  const outcome = await undo(options, {
    screen: (event) => events.push(event),
    host: () => lent(host),
  })
  const ended = steps(events).filter(([, state]) => state !== 'started')
  return { outcome, steps: ended, next: next(events) }
}

/** The test's host, which tells when Hyper-V is turned on. */
function watched(host: SimulatedHost, turned?: () => Promise<void>) {
  const using: SimulatedHost['using'] = (options) => async (pieces, ...values) => {
    const answer = await host.using(options)(pieces, ...values)
    const turnsOn = pieces.join('').includes('Install-WindowsFeature') && values[1] === false
    if (turnsOn) await turned?.()
    return answer
  }
  return { ...lent(host), using }
}

function steps(events: RunEvent[]): [string, string][] {
  return events.flatMap((event) => event.event === 'step' ? [[event.step, event.state]] : [])
}

function next(events: RunEvent[]): string {
  const end = events.at(-1)
  return end?.event === 'end' ? end.next.join('\n') : ''
}

/** Of each run how it ended, and the steps that changed something. */
async function outcomes(state: string): Promise<string[][]> {
  return (await runs({ state })).map(({ outcome, steps }) => [
    outcome,
    ...steps.filter((step) => step.outcome === 'changed').map(({ step }) => step),
  ])
}

function program({ env }: SimulatedHost, recipe: string, ...args: string[][]) {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const all = [...runtime, join(root, 'recipes', `${recipe}.ts`), ...args.flat()]
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      process.execPath,
      all,
      { cwd: root, env },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  )
}
