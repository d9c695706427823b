#!/usr/bin/env zx
/** Move a VirtualBox VM to Hyper-V: this machine's, another's over SSH, or a folder to carry to one. */
import fs from 'fs-extra'
import { Listr } from 'listr2'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { checkHost, type CheckHostResult } from '../tasks/check-host.ts'
import { inspectDisk, sizeOfUnfinished } from '../tasks/convert-disk.ts'
import { parseMemory } from '../tasks/create-vm.ts'
import type { EnableHyperVResult } from '../tasks/enable-hyperv.ts'
import type { EnableNestedResult } from '../tasks/enable-nested.ts'
import { inspectVm, listVms, type VmDescription } from '../tasks/inspect-vm.ts'
import {
  credentialOptions,
  type GuestCredential,
  readCredential,
  type SetGuestIpResult,
} from '../tasks/set-guest-ip.ts'
import type { StartVmResult } from '../tasks/start-vm.ts'
import { guardOptions, readGuard } from '../tasks/guard.ts'
import { showPicture } from '../tasks/verify.ts'
import { commandLine, dryRun, onWindows, type Option, parseHost } from '../tasks/task.ts'
import {
  beginBundle,
  BUNDLE,
  bundleState,
  finishBundle,
  holdsNothing,
  removeBundle,
} from './run/bundle.ts'
import { Stopped } from './run/ask.ts'
import { cutOffMaking, findOut, isSince, madeIn, sizeThere } from './run/cut-off.ts'
import { checkElevation, converse, elevate, elevateOptions, offerElevation } from './run/elevate.ts'
import { farFolder, freeSpace, type Host, localFolder, openHost } from './run/host.ts'
import {
  beginJournal,
  canBeTakenBack,
  readJournals,
  record,
  stateFolder,
  turnedOn,
  undoCommand,
} from './run/journal.ts'
import { type Look, lookAt } from './run/look.ts'
import { lock, locksOf } from './run/lock.ts'
import {
  checkSource,
  readPlan,
  refuseBeside,
  refuseHost,
  refuseOther,
  refusePlanOut,
  writePlan,
} from './run/plan-file.ts'
import {
  type Disks,
  FEATURES,
  featuresOf,
  type Foreseen,
  isFeatures,
  makePlan,
  type Plan,
  refuseState,
  refuseWishes,
  size,
  type Step,
  type Target,
  targetOf,
  type Wishes,
  wishesOf,
} from './run/plan.ts'
import { prepareSource } from './run/prepare.ts'
import {
  describeProgress,
  LEFT,
  logOption,
  measure,
  near,
  RESTART,
  type Screen,
  STOPPING,
  terminal,
  UNCHANGED,
} from './run/screen.ts'
import { removeStage } from './run/send-disk.ts'
import { changedSince, fingerprint, refuseChanged } from './run/source.ts'
import { refuseTwins } from './run/twins.ts'
import {
  completed,
  foresee,
  perform,
  powershellFor,
  type Progress,
  removeUnfinished,
  scriptOf,
  type StepResult,
} from './run/steps.ts'

export interface MigrateOptions extends Omit<Wishes, 'memory'> {
  /** A VirtualBox VM by name, a `.vbox`, `.ova` or `.ovf`, or disk images. @default asks, or the demo VM */
  source?: string[] | undefined
  /** `local`, `ssh://[user@]host[:port]`, or `bundle:DIR`. @default local where PowerShell has Hyper-V, else `bundle:out/NAME` */
  to?: string | undefined
  /** Bytes, or a text such as `4GB`. */
  memory?: number | string | undefined
  /**
   * Has a guest that VirtualBox runs made ready and shut down first: `guestcontrol`, or
   * `ssh://[user@]host[:port]` into it.
   */
  prepare?: string | undefined
  /** Suspends BitLocker in the guest then. @default false */
  suspendBitlocker?: boolean | undefined
  /**
   * A file that `planOut` wrote: exactly that is done, or nothing where its source or its host has changed
   * since. Source, target and wishes come from there.
   */
  plan?: string | undefined
  /** A file that gets the plan, for later; nothing else is done. A plan that is there is replaced. */
  planOut?: string | undefined
  /** The folder for journals. @default the user's data folder */
  state?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface MigrateTools {
  screen: Screen
  /** Whether the run draws its list in the terminal itself. @default false */
  live?: boolean
  /** Asks before the first change. @default goes on */
  agree?: (plan: Plan) => Promise<boolean>
  /** Asks before the guest is made ready and shut down. @default goes on */
  agreePrepare?: (question: string) => Promise<boolean>
  /** Picks one of several VMs. @default refuses, naming them */
  pick?: (names: string[]) => Promise<string>
  /**
   * Picks the network adapter of a switch that is not there yet. @default refuses, naming them
   */
  pickAdapter?: (adapters: CheckHostResult['adapters']) => Promise<string>
  /** Shows a PNG in the terminal, where it can. @default shows nothing */
  show?: (picture: Uint8Array) => Promise<unknown>
  /** Stops at the next safe point. */
  signal?: AbortSignal | undefined
  /** Opens `local` or `ssh://...`. @default by the PowerShell there */
  host?: ((name: string) => Host) | undefined
  /** An administrator of the guest, for its address by PowerShell Direct. */
  credential?: GuestCredential | undefined
}

/** `restart`: Hyper-V is turned on, and the same goes on when Windows has restarted. */
export type Outcome = 'done' | 'same' | 'dry-run' | 'declined' | 'restart'

/**
 * Checks, plans, does and verifies. Every refusal comes before the first change, all of them at once.
 * Each step is in the journal when it is done; a run that stopped goes on when it is asked for again.
 * In the end, however it came, the files of the source are as they were, or the run has failed.
 */
export async function migrate(options: MigrateOptions, tools: MigrateTools): Promise<Outcome> {
  for (;;) {
    const outcome = await attempt(options, tools)
    // what the host has is known now, and a new PowerShell finds its modules
    if (outcome !== 'on') return outcome
  }
}

/** A migration; `on` where all that it has done is to turn Hyper-V on. */
async function attempt(
  { plan: file, planOut, ...given }: MigrateOptions,
  tools: MigrateTools,
): Promise<Outcome | 'on'> {
  const { screen, signal } = tools
  if (planOut !== undefined && given.prepare !== undefined) {
    throw new TypeError(
      'Cannot write the plan down: it is made of the disks of a guest that is off, and --prepare is to ' +
        'shut it down first. Shut it down, and run again without --prepare',
    )
  }
  if (file !== undefined) refuseBeside(file, { ...given, planOut }, DEFAULTS)
  const planned = file === undefined ? undefined : await readPlan(file)
  if (file !== undefined && planned) await checkSource(file, planned)
  const { source: from, to: there, wishes: own } = planned?.origin ?? {}
  const options: MigrateOptions = planned
    ? { ...own, source: from, to: there, dryRun: given.dryRun }
    : given
  if (options.to?.startsWith('ssh:')) parseHost(options.to)
  const { source, to } = await chooseSource(options, tools)
  let vm = await inspectVm({ source })
  const wishes = wishesOf({ ...options, memory: undefined })
  const { memory, prepare, suspendBitlocker } = options
  const state = resolve(given.state ?? planned?.origin.state ?? stateFolder)
  const asked = to?.startsWith('bundle:')
    ? undefined
    : (tools.host ?? openHost)(to?.startsWith('ssh:') ? to : 'local')
  try {
    const name = options.name ?? vm.name
    // disks on their way stay where they are, whoever runs the plan
    const stage = planned?.origin.state ?? state
    const enable = options.enableHyperv && file === undefined
    const where = { ...options, enableHyperv: enable, state: stage }
    const target = await chooseTarget(to, name, where, asked, screen)
    const off = enable && target.kind !== 'bundle' && !await runsVms(target, asked as Host)
    const adapter = await chooseAdapter(wishes, target, off ? undefined : asked, tools)
    const asks = {
      ...wishes,
      ...(adapter !== undefined && { adapter }),
      ...(memory !== undefined && { memory: parseMemory(memory) }),
    }
    if (prepare !== undefined) {
      // what the host refuses is known before the guest is touched, too
      const refusals = await refuseEarly(vm, asks, target, off ? undefined : asked)
      if (refusals.length > 0) throw new Error(refusals.join('\n'))
      const guest = { prepare, suspendBitlocker, dryRun: options.dryRun }
      const prepared = await prepareSource(vm, guest, { ...tools, agree: tools.agreePrepare })
      if (prepared === 'dry-run') {
        const rest = 'The rest of the plan is made of its disks, when it is off.'
        screen({ event: 'end', outcome: 'dry-run', next: [rest, UNCHANGED] })
      }
      if (prepared === 'declined') screen({ event: 'end', outcome: 'declined', next: [LEFT] })
      if (prepared !== 'off') return prepared
      vm = await inspectVm({ source })
    }
    const look = async () => ({ disks: await describeDisks(vm), files: await fingerprint(vm) })
    const { disks, files } = await look().catch((error) => {
      // Windows lets nobody else read a disk that VirtualBox has open
      throw new Error(refuseState(vm) ?? error.message, { cause: error })
    })
    // a PowerShell without Hyper-V was asked in vain
    const host = target.kind === 'bundle' ? undefined : asked
    const { plan: whole, refusals } = makePlan(vm, disks, asks, target)
    const plan = off ? featuresOf(whole) : whole
    plan.origin = {
      source: vm.kind === 'virtualbox' ? source : source.map((path) => resolve(path)),
      to: targetOf(plan),
      state: stage,
      wishes: asks,
      files,
    }
    if (file !== undefined && planned) refusals.push(...refuseOther(file, planned, plan))
    if (planOut !== undefined) refusals.push(...[await refusePlanOut(planOut) ?? []].flat())
    if (planOut !== undefined && off) {
      refusals.push(
        'Cannot write the plan down: Hyper-V is off on the host, and the plan is made of what the host has ' +
          'when it is on. Run again without --plan-out, which turns it on',
      )
    }
    const journals = await readJournals(state)
    refusals.push(...await refuseChanged(journals, plan))
    if (target.kind !== 'bundle') refusals.push(...await refuseTwins(plan))
    // each task refuses what it cannot take, such as a name, before it asks the host
    for (const step of plan.steps) {
      if (step.where === 'host') await scriptOf(step).catch(({ message }) => refusals.push(message))
    }
    const release = options.dryRun || planOut !== undefined
      ? undefined
      : await lock(state, locksOf(plan), `the migration of "${plan.source.name}"`)
    try {
      if (target.kind === 'bundle') refusals.push(...await checkBundle(plan, target.dir))
      else {
        const check = off
          ? checkFeatures(plan, target, host as Host)
          : checkReach(plan, host as Host, state)
        refusals.push(...await check.catch(({ message }) => [message]))
      }
      const fresh = !journals.some((journal) =>
        journal.plan.key === plan.key && journal.outcome !== 'undone'
      )
      // what a run of this plan has changed by now is no change of the world
      if (file !== undefined && planned && fresh && refusals.length === 0) {
        const found = await foreseeAll(plan, host, tools)
        refusals.push(...refuseHost(file, planned, found))
      }
      screen({ event: 'plan', plan, refusals })
      if (refusals.length > 0) throw new Error([...new Set(refusals)].join('\n'))
      if (options.dryRun || planOut !== undefined) {
        return await rehearse(plan, host, tools, planOut)
      }
      if (tools.agree && !await tools.agree(plan)) {
        screen({ event: 'end', outcome: 'declined', next: [LEFT] })
        return 'declined'
      }
      return await run(plan, host, { ...tools, signal, state })
    } finally {
      await release?.()
    }
  } finally {
    await asked?.close()
  }
}

/** What is on the VM's disks, in the VM's order. */
async function describeDisks(vm: VmDescription): Promise<Disks> {
  const disks: Disks = []
  for (const { path, member } of vm.disks) {
    const [disk] = await inspectDisk({ from: path, ...(member !== undefined && { disk: member }) })
    const { mtime } = await fs.stat(path)
    if (disk) disks.push({ ...disk, modified: mtime.toISOString() })
  }
  return disks
}

/** What the wishes and the host refuse, whatever is on the VM's disks. */
async function refuseEarly(
  vm: VmDescription,
  wishes: Wishes,
  target: Target,
  host: Host | undefined,
): Promise<string[]> {
  const refusals = refuseWishes(wishes)
  if (target.kind === 'bundle' || host === undefined || refusals.length > 0) return refusals
  const [check] = makePlan(vm, [], wishes, target).plan.steps
  if (check?.task !== 'check-host') return refusals
  return (await checkHost({ ...check.options, space: 0 }, host.ps)).refusals
}

async function chooseSource(
  { source, to }: MigrateOptions,
  { screen, pick }: MigrateTools,
): Promise<{ source: string[]; to: string | undefined }> {
  if (source !== undefined && source.length > 0) return { source, to }
  const names = await listVms()
  if (names === null) {
    const demo = join(import.meta.dirname as string, '..', 'fixtures', 'demo', 'demo-bios.ova')
    screen({
      event: 'note',
      text: 'There is no VirtualBox on this machine: this is the demo VM.\n',
    })
    return { source: [demo], to: to ?? 'bundle:out/demo' }
  }
  if (names.length > 0 && pick) return { source: [await pick(names)], to }
  const which = names.length ? `VirtualBox has ${names.join(', ')}` : 'VirtualBox has no VM'
  throw new Error(
    `Cannot tell what to move: no source is named, and ${which}. Run: npx zx recipes/migrate.ts <name or file>`,
  )
}

async function chooseTarget(
  to: string | undefined,
  name: string,
  { storage: wanted, state, enableHyperv }: MigrateOptions & { state: string },
  host: Host | undefined,
  screen: Screen,
): Promise<Target> {
  if (host === undefined) {
    const dir = to?.slice('bundle:'.length)
    if (!dir) {
      throw new Error('Cannot write a bundle: no folder is named. Example: --to bundle:out/demo')
    }
    // what is written down of it is read in other folders too
    return { kind: 'bundle', dir: resolve(dir) }
  }
  const ssh = to?.startsWith('ssh:')
  if (to !== undefined && to !== 'local' && !ssh) {
    throw new Error(
      `Cannot move to "${to}": a target is local, ssh://[user@]host[:port] or bundle:DIR`,
    )
  }
  const named = (folder: string) => ssh ? farFolder(folder) : localFolder(folder)
  const storage = wanted === undefined ? undefined : await named(wanted)
  const found = await checkHost(storage === undefined ? {} : { storage }, host.ps).catch(
    (error) => {
      if (to !== undefined) throw error
      return undefined
    },
  )
  const folder = storage ?? found?.host.diskFolder
  if (found && (found.hyperV ? folder : enableHyperv)) {
    const there = { folder: folder ?? '', host: found }
    return ssh
      ? { kind: 'ssh', url: to as string, ...there, stage: join(state, 'disks') }
      : { kind: 'local', ...there }
  }
  if (to !== undefined) {
    const { refusals = [] } = found ?? {}
    const isOff = refusals.some((refusal) => /Run: (Enable|Install)-Windows/.test(refusal))
    throw new Error([...refusals, ...(isOff ? [TURN_ON] : [])].join('\n'))
  }
  const dir = join('out', name.replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[-.]+/, '') || 'vm')
  screen({
    event: 'note',
    text: `There is no PowerShell with Hyper-V here: this makes a bundle.\n`,
  })
  return { kind: 'bundle', dir: resolve(dir) }
}

const TURN_ON = 'With --enable-hyperv this turns it on first'

/** Whether Hyper-V is on, and its hypervisor runs: people turn it off for VirtualBox's sake. */
async function runsVms(
  { host }: Exclude<Target, { kind: 'bundle' }>,
  { ps }: Host,
): Promise<boolean> {
  if (!host.hyperV) return false
  // null where Windows does not say
  const { stdout } = await ps`
    if (-not (Get-Command -Name Get-CimInstance -ErrorAction Ignore)) { return }
    (Get-CimInstance -ClassName Win32_ComputerSystem -Property HypervisorPresent).HypervisorPresent -eq $false`
  return stdout.trim() !== 'True'
}

/** Why Hyper-V cannot be turned on there. */
async function checkFeatures(plan: Plan, target: Target, host: Host): Promise<string[]> {
  const [step] = plan.steps
  if (step === undefined || target.kind === 'bundle') return []
  const { changed, restartNeeded, notes } = await perform(
    step,
    { ps: powershellFor(host, step) },
    true,
  ) as EnableHyperVResult & StepResult
  plan.notes.push(...notes)
  // on, and refused for another reason
  return changed || restartNeeded ? [] : target.host.refusals
}

/** The adapter that is asked for, or else picked by a person where a switch has to be made. */
async function chooseAdapter(
  { external, adapter }: Omit<Wishes, 'memory'>,
  target: Target,
  host: Host | undefined,
  { pickAdapter }: MigrateTools,
): Promise<string | undefined> {
  if (external === undefined || adapter !== undefined || target.kind === 'bundle') return adapter
  const isIt = ({ name }: { name: string }) => name.toLowerCase() === external.toLowerCase()
  if (!pickAdapter || host === undefined || target.host.switches.some(isIt)) return undefined
  const { adapters } = await checkHost({ external }, host.ps)
  const free = adapters.filter(({ bound }) => !bound)
  // none: the refusal says so
  return free.length > 0 ? await pickAdapter(free) : undefined
}

async function checkBundle(plan: Plan, dir: string): Promise<string[]> {
  const found = await bundleState(dir, plan)
  if (found === 'other') {
    return [
      `Cannot write the bundle to "${dir}": the folder holds something else. ` +
      'Name another by --to bundle:DIR, or remove it',
    ]
  }
  if (found === 'finished') {
    for (const step of plan.steps) if (step.where === 'here') step.already = 'the bundle has it'
    return []
  }
  const needed = plan.source.disks.reduce((sum, disk) => sum + disk.allocatedSize, 0)
  const free = await freeSpace(resolve(dir)) + await sizeOfBegun(plan, (to) => join(dir, to))
  if (free >= needed) return []
  return [
    `Cannot write the bundle to "${dir}": it needs ${size(needed)}, and ${size(free)} are free. ` +
    'Name a folder on another volume by --to bundle:DIR',
  ]
}

/** Asks the host for all that is in the way, and marks the conversions that it has no need of. */
async function checkReach(plan: Plan, { ps, here }: Host, state: string): Promise<string[]> {
  const [check] = plan.steps
  if (check?.task !== 'check-host') {
    throw new Error('Cannot check the host: the plan does not begin so')
  }
  const before = (await readJournals(state)).findLast(({ plan: { key } }) => key === plan.key)
  const cutOff = before !== undefined && cutOffMaking(before)
  const remote = plan.target.kind === 'ssh'
  const made: { step: Step; path: string; size: number; own: boolean }[] = []
  let arrived = 0
  for (const step of plan.steps) {
    if (step.task !== 'convert-disk' && step.task !== 'send-disk') continue
    const path = step.options.to
    const size = step.task === 'send-disk'
      ? await sizeThere(path, ps)
      : (await fs.stat(await here(path)).catch(() => undefined))?.size
    const result = before?.done.find((done) => done.step === step.id)?.result
    // a registry that was changed on a disk may have made its file larger
    const prepared = step.id.replace(/^[a-z]+-disk/, 'prepare-guest')
    const changed = [...before?.done.map((done) => done.step) ?? [], ...before?.unfinished ?? []]
      .includes(prepared)
    const begun = before?.unfinished.includes(step.id) ? before.begun[step.id] : undefined
    const whole = result !== undefined
      ? (result.fileSize ?? result.size) === size
      // it is there under its name whole or not at all, and was not there when the run began with it
      : begun !== undefined && (step.task === 'send-disk' || await isSince(await here(path), begun))
    const own = before?.outcome !== 'done' && (whole || (changed && result !== undefined))
    if (size !== undefined) made.push({ step, path, size, own })
    if (remote && step.task === 'convert-disk') continue
    if (size !== undefined && own) arrived += size
    if (!remote) arrived += await sizeOfUnfinished({ to: await here(path) })
    if (remote && size === undefined) arrived += await sizeThere(`${path}.partial`, ps) ?? 0
  }
  // what an earlier run wrote needs no space again
  const space = Math.max(0, (check.options.space ?? 0) - arrived)
  const found = await checkHost({ ...check.options, space, cutOff }, ps) as CheckHostResult
  plan.notes.push(...found.notes)
  const refusals = [...found.refusals]
  for (const step of plan.steps) {
    const file = ['convert-disk', 'send-disk', 'prepare-guest'].includes(step.task)
    if (file && found.vm && found.refusals.length === 0) step.already = 'the VM has it'
  }
  for (const { step, path, own } of made) {
    if (step.already) continue
    if (own) {
      const how = step.task === 'send-disk' ? 'sent' : 'converted'
      step.already = `an earlier run ${how} it`
    } else if (!found.vm && !(remote && step.task === 'convert-disk')) {
      refusals.push(
        `Cannot write "${path}": a file of that name is there, and it is not of this plan. ` +
          'Remove it, or choose another --name or --storage',
      )
    }
  }
  if (plan.target.kind === 'ssh') refusals.push(...await checkStage(plan, plan.target.stage))
  return refusals
}

/** Bytes of the disks that runs of before have converted, or begun to, which need no space again. */
async function sizeOfBegun(plan: Plan, place: (to: string) => string): Promise<number> {
  let sum = 0
  for (const step of plan.steps) {
    if (step.task !== 'convert-disk') continue
    const to = place(step.options.to)
    sum += (await fs.stat(to).catch(() => undefined))?.size ?? 0
    sum += await sizeOfUnfinished({ to })
  }
  return sum
}

/** Disks for another machine are converted here first. */
async function checkStage(plan: Plan, stage: string): Promise<string[]> {
  const left = plan.steps.filter(({ task, already }) => task === 'convert-disk' && !already)
  const all = plan.source.disks.reduce((sum, disk) => sum + disk.allocatedSize, 0)
  const free = await freeSpace(stage) + await sizeOfBegun(plan, (to) => to)
  if (left.length === 0 || free >= all) return []
  return [
    `Cannot convert the disks in "${stage}": they need ${size(all)}, and ${size(free)} are free. ` +
    'Name a folder on another volume by --state DIR',
  ]
}

/** Asks every step what it would change, and changes nothing. */
async function foreseeAll(
  plan: Plan,
  host: Host | undefined,
  { credential }: MigrateTools,
  say: (step: Step, state: Foreseen) => void = () => {},
): Promise<Map<string, Foreseen>> {
  const found = new Map<string, Foreseen>()
  for (const step of plan.steps) {
    if (step.where === 'host' && (host === undefined || step.task === 'check-host')) continue
    const ask = async () => {
      if (step.task === 'enable-hyperv' && step.already) return 'same'
      if (step.where === 'here') return step.already ? 'same' : 'would'
      if (step.needs.some((need) => found.has(need) && found.get(need) !== 'same')) return 'unknown'
      const ps = powershellFor(host, step)
      return (await perform(step, { ps, credential }, true)).changed ? 'would' : 'same'
    }
    const state = await ask()
    found.set(step.id, state)
    say(step, state)
  }
  return found
}

/** A dry run, which may write the plan down. */
async function rehearse(
  plan: Plan,
  host: Host | undefined,
  tools: MigrateTools,
  planOut: string | undefined,
): Promise<Outcome> {
  const { screen } = tools
  const found = await foreseeAll(plan, host, tools, ({ id, title }, state) => {
    screen({ event: 'step', step: id, title, state })
  })
  const next = [...found.values()].some((state) => state !== 'same') ? UNCHANGED : NOTHING_TO_DO
  if (planOut === undefined) screen({ event: 'end', outcome: 'dry-run', next: [next] })
  else {
    if (plan.origin) plan.origin.found = Object.fromEntries(found)
    await writePlan(planOut, plan)
    const wrote = [
      `The plan is in "${planOut}", and nothing else was changed. Run it:`,
      `  npx zx recipes/migrate.ts --plan "${planOut}"`,
    ]
    screen({ event: 'end', outcome: 'dry-run', next: wrote })
  }
  return 'dry-run'
}

async function run(
  plan: Plan,
  host: Host | undefined,
  { screen, live = false, show, signal, credential, state }: MigrateTools & { state: string },
): Promise<Outcome | 'on'> {
  const dir = plan.target.kind === 'bundle' ? resolve(plan.target.dir) : undefined
  const stage = plan.target.kind === 'ssh' ? plan.target.stage : undefined
  const journal = await beginJournal(state, plan)
  const results = new Map<string, StepResult>()
  /** What has become of the source, told and written down. */
  const prove = async (): Promise<string[]> => {
    const files = journal.source
    if (files.length === 0) return []
    const changed = await changedSince(files)
    await record(journal.file, { entry: 'source', changed })
    screen({ event: 'source', files, changed })
    return changed
  }
  const made = madeIn(journal)
  const cutOff = cutOffMaking(journal)
  const placed = async (step: Step): Promise<Step> => {
    if (step.task !== 'convert-disk') return step
    const to = dir ? join(dir, step.options.to) : await (host as Host).here(step.options.to)
    return { ...step, options: { ...step.options, to } }
  }
  const foreseen = new Map<string, ReturnType<typeof foresee>>()
  /** Asks together with a step's script what the next one is going to change, which saves a way there and back. */
  const lookAhead = (step: Step, makes: boolean) => {
    const next = plan.steps[plan.steps.indexOf(step) + 1]
    if (next?.where !== 'host' || next.already || ALONE.includes(step.task)) return
    // what could cut the host off is to be confirmed before anything else is asked
    if (step.task === 'create-switch' && step.options.type === 'external') return
    if (journal.unfinished.includes(next.id)) return
    const then = makes ? new Set([...made, step.task]) : made
    const asked = foresee(callOf(next), { ps: powershellFor(host, next), credential }, then)
    asked.catch(() => {}) // it is for the next step to fail
    foreseen.set(next.id, asked)
  }
  const callOf = (step: Step): Step =>
    cutOff && (step.task === 'create-vm' || step.task === 'check-host')
      ? { ...step, options: { ...step.options, cutOff } } as Step
      : step
  const work = async (step: Step, onProgress: (progress: Progress) => void) => {
    const begun = journal.unfinished.includes(step.id) ? journal.begun[step.id] : undefined
    if (step.already) {
      const tools = { ps: powershellFor(host, step) }
      const found = begun && await findOut(await placed(step), begun, tools)
      // a run that was killed between the last two things that a conversion does
      if (begun && step.task === 'convert-disk') await removeUnfinished(await placed(step), tools)
      if (found) await record(journal.file, { entry: 'done', step: step.id, result: found })
      return { changed: false }
    }
    if (step.task === 'start-vm') {
      // it may have been started again while the disks were converted
      const [twin] = await refuseTwins(plan)
      if (twin !== undefined) throw new Error(twin)
    }
    let call = callOf(await placed(step))
    if (call.task === 'convert-disk') {
      // a bundle's folder and one for disks on their way are known to be this plan's own by now
      const force = dir !== undefined || stage !== undefined
      call = { ...call, options: { ...call.options, force } }
    }
    const ps = powershellFor(host, step)
    const here = plan.target.kind === 'local' && onWindows() ? ps : undefined
    const tools = { ps, host, here, signal, onProgress, credential }
    const before = begun?.expected
    const expected = before ?? await (foreseen.get(step.id) ?? foresee(call, tools, made))
    await record(journal.file, { entry: 'started', step: step.id, ...(expected && { expected }) })
    const makes = expected?.changed === true && expected.before === undefined
    let asked = false
    let answer = await perform(call, {
      ...tools,
      ps: (pieces, ...values) => {
        const answer = ps(pieces, ...values)
        if (!asked) lookAhead(step, makes)
        asked = true
        return answer
      },
    })
    if (call.task === 'convert-disk' && !answer.changed && begun) {
      // what it found done the run has done itself, which did not come to saying so
      answer = await findOut(call, begun, tools) ?? answer
    }
    const result = before ? completed(before, answer) : answer
    if (result.changed && result.before === undefined) made.add(step.task)
    await record(journal.file, { entry: 'done', step: step.id, result })
    return result
  }
  const steps = plan.steps.filter(({ where }) => where === 'here' || host)
  const list = new Listr<object, 'default' | 'silent'>(
    steps.map((step) => ({
      title: step.title,
      task: async (_, task) => {
        const { id, title } = step
        if (signal?.aborted) return task.skip(`${title} (not begun)`)
        const say = (state: 'started' | 'done' | 'same' | 'left' | 'failed', text?: string) =>
          screen({ event: 'step', step: id, title, state, ...(text && { text }) })
        const rate = measure()
        let shown = 0
        say('started')
        const stopping = () => {
          if (live) task.output = STOPPING
          else screen({ event: 'note', text: STOPPING })
        }
        signal?.addEventListener('abort', stopping)
        const result = await work(step, (progress) => {
          if (Date.now() - shown < 250 && progress.done < progress.total) return
          shown = Date.now()
          const measured = rate(progress)
          task.output = describeProgress(measured)
          screen({ event: 'progress', step: id, ...measured })
        }).catch((error) => {
          say('failed', signal?.aborted ? 'stopped' : undefined)
          throw error
        }).finally(() => signal?.removeEventListener('abort', stopping))
        results.set(id, result)
        if (result.changed || step.task === 'check-host') return say('done')
        if (result.set === false) return say('left')
        say('same')
        if (live) task.skip(`${title} (${step.already ?? 'already so'})`)
      },
    })),
    {
      renderer: live ? 'default' : 'silent',
      registerSignalListeners: false,
      rendererOptions: { collapseErrors: false, showErrorMessage: false },
    },
  )
  let changed: string[] | undefined
  try {
    const unfinished = dir && steps.some(({ already }) => !already) ? dir : undefined
    if (unfinished) await beginBundle(unfinished, plan)
    if (stage && steps.some(({ already }) => !already)) await fs.ensureDir(stage)
    await list.run()
    if (steps.some(({ id }) => !results.has(id))) signal?.throwIfAborted()
    if (unfinished) await finishBundle(unfinished, plan)
    if (host) await verify(plan, host)
    if (stage) await removeStage(stage)
    changed = await prove()
    if (changed.length > 0) throw new Error('Cannot vouch for what was made')
  } catch (error) {
    changed ??= await prove()
    if (dir && await holdsNothing(dir)) await removeBundle(dir)
    await record(journal.file, { entry: 'end', outcome: signal?.aborted ? 'stopped' : 'failed' })
    const known = (await readJournals(state)).find(({ file }) => file === journal.file)
    const takeBack = known && canBeTakenBack(known)
      ? `\n  ${undoCommand(known.run, state, isFeatures(plan))}`
      : undefined
    const again = changed.length > 0
      ? `The source has changed since the run began: ${changed.join('; ')}. ` +
        (takeBack ? `Take the run back, and run again:${takeBack}` : 'Run again')
      : takeBack
      ? `Run the same command again to go on, or take it back:${takeBack}`
      : 'Nothing was changed. Run the same command again to go on'
    if (signal?.aborted) throw new Stopped(`Stopped. ${again}`)
    throw new Error(`${(error as Error).message}\n${again}`, { cause: error })
  }
  if (isFeatures(plan)) {
    const { restartNeeded } = results.get(FEATURES) as EnableHyperVResult & StepResult
    await record(journal.file, { entry: 'end', outcome: 'stopped' })
    if (!restartNeeded) return 'on'
    const next = [
      'Hyper-V is turned on, and runs when Windows has restarted.',
      'After the restart the same command goes on with the VM. Or take it back:',
      `  ${undoCommand(journal.run, state, true)}`,
    ]
    screen({ event: 'end', outcome: 'restart', next })
    return 'restart'
  }
  await record(journal.file, { entry: 'end', outcome: 'done' })
  const same = ![...results.values()].some(({ changed }) => changed)
  const silent = results.get('start-vm')?.heartbeat === 'none'
  const look = host && silent ? await lookAt(plan, state, host.ps) : undefined
  if (look?.picture) await show?.(look.picture)
  // a bundle is a folder, and its host's part is taken back there
  const features = turnedOn(journal)
    ? ['With --features that turns off, last, what it turned on of Windows, too.']
    : []
  const takeBack = same || dir
    ? []
    : ['Take it all back:', `  ${undoCommand(journal.run, state)}`, ...features]
  screen({
    event: 'end',
    outcome: same ? 'same' : 'done',
    next: [...nextSteps(plan, results, same, look), ...takeBack],
  })
  return same ? 'same' : 'done'
}

/** Tasks that work with several scripts or with none, after which the next is asked when they are done. */
const ALONE: Step['task'][] = ['convert-disk', 'send-disk', 'prepare-guest', 'set-guest-ip']

/** Asks every step once more: whatever would still change something is not as planned. */
async function verify(plan: Plan, host: Host): Promise<void> {
  // an address in the guest was read back when it was set
  const steps = plan.steps.filter(({ where, task, already }) =>
    where === 'host' && !['check-host', 'set-guest-ip'].includes(task) &&
    !(task === 'enable-hyperv' && already)
  )
  // all at once, which is one way there and back
  const found = await Promise.all(
    steps.map((step) => perform(step, { ps: powershellFor(host, step) }, true)),
  )
  const other = steps.find((_, index) => found[index]?.changed)
  if (!other) return
  throw new Error(
    `Cannot confirm the step "${other.title}": asked again, the host is not as it was left`,
  )
}

function nextSteps(
  plan: Plan,
  results: Map<string, StepResult>,
  same: boolean,
  look: Look | undefined,
): string[] {
  const { name, target } = plan
  const warnings = [...results.values()].flatMap((result) => result.warnings ?? []) as string[]
  if (target.kind === 'bundle') {
    return [
      ...warnings,
      same
        ? `Nothing to do: the bundle "${near(target.dir)}" is there and whole.`
        : `The bundle is "${near(target.dir)}".`,
      'Copy the folder to the Hyper-V host, to where the disks are to stay, and run there, elevated:',
      `  powershell -ExecutionPolicy Bypass -File ${BUNDLE.deploy} -DryRun`,
      `  powershell -ExecutionPolicy Bypass -File ${BUNDLE.deploy}`,
    ]
  }
  const started = results.get('start-vm') as StartVmResult & StepResult | undefined
  const addresses =
    started?.adapters.flatMap((adapter) =>
      adapter.addresses.map((address) => `${address} on ${adapter.name}`)
    ) ?? []
  const guest = results.get('set-guest-ip') as SetGuestIpResult & StepResult | undefined
  const nested = results.get('enable-nested') as EnableNestedResult & StepResult | undefined
  return [
    ...warnings,
    same ? NOTHING_TO_DO : `"${name}" is on Hyper-V.`,
    ...(started?.heartbeat === 'none'
      ? [
        'It runs, but the guest gave no heartbeat: it may not have booted, or lacks the integration services ' +
        '(Linux: hyperv-daemons).',
        ...look?.lines ?? [],
        'To look again:',
        `  npx zx tasks/verify.ts --vm "${name}"${
          target.kind === 'ssh' ? ` --host ${target.url}` : ''
        }`,
      ]
      : []),
    ...(addresses.length ? [`Its addresses: ${addresses.join(', ')}`] : []),
    ...(guest ? guestAddress(guest) : []),
    ...(nested?.changed ? nested.notes.map((note) => `${note}.`) : []),
    `Open its window: vmconnect ${
      target.kind === 'ssh' ? parseHost(target.url).name : 'localhost'
    } "${name}"`,
  ]
}

/** What came of the guest's address, and what to type there where it is left to a person. */
function guestAddress({ set, guestIp, via, seenBy, notes, commands }: SetGuestIpResult): string[] {
  const ways = { direct: 'by PowerShell Direct', kvp: 'by its integration services', print: '' }
  if (set) {
    const how = via === null || via === 'print' ? 'as before' : ways[via]
    const seen = seenBy === 'arp' ? '; the host sees it by ARP' : ''
    return [`The guest has ${guestIp}, ${how}${seen}.`, ...notes]
  }
  return [
    ...notes,
    `The guest does not have ${guestIp} yet. Type in the guest:`,
    ...commands.flatMap((
      { guest, lines },
    ) => [`  ${guest}:`, ...lines.map((line) => `    ${line}`)]),
  ]
}

const NOTHING_TO_DO = 'Nothing to do: everything is already so.'

const options: Record<string, Option> = {
  source: {
    type: 'string',
    array: true,
    positional: true,
    describe: 'A VirtualBox VM by name, a .vbox, .ova or .ovf, or disk images',
    example: 'Win10',
  },
  to: {
    type: 'string',
    describe: 'local, ssh://[user@]host[:port], or bundle:DIR: a folder to carry to a Hyper-V host',
  },
  name: { type: 'string', describe: 'The VM’s name on Hyper-V' },
  cpus: { type: 'number', describe: 'Virtual processors' },
  memory: { type: 'string', describe: 'Such as 4GB' },
  generation: { choices: ['auto', 1, 2], default: 'auto', describe: '1 boots by BIOS, 2 by UEFI' },
  format: { choices: ['vhdx', 'vhd'], default: 'vhdx', describe: 'Of the disks' },
  storage: { type: 'string', describe: 'The host’s folder for the disks' },
  external: { type: 'string', describe: 'External switch to attach to', example: '桥接' },
  adapter: {
    type: 'string',
    describe: 'Its network adapter: name, description, index, or auto for the wired one',
    example: 'Wi-Fi',
  },
  share: { type: 'boolean', describe: 'Whether the host goes on using that adapter' },
  ...guardOptions,
  internal: { type: 'string', describe: 'Internal switch to attach to', example: 'Static-NAT' },
  hostIp: {
    type: 'string',
    describe: 'The host’s address there, with prefix length, or auto for a free one',
    example: '192.168.56.1/24',
  },
  nat: { type: 'boolean', describe: 'Whether that network reaches out by NAT' },
  guestIp: { type: 'string', describe: 'The address that the guest is to have there' },
  pin: { type: 'boolean', describe: 'Fix the address that the guest has there' },
  via: {
    choices: ['auto', 'direct', 'kvp', 'print'],
    describe: 'How the guest gets it: PowerShell Direct, integration services, or typed by you',
  },
  prepare: {
    type: 'string',
    describe:
      'Have the running guest made ready and shut down first: guestcontrol, or ssh://[user@]host',
    example: 'guestcontrol',
  },
  suspendBitlocker: { type: 'boolean', describe: 'Suspend BitLocker in the guest then' },
  guestUser: credentialOptions.user,
  guestCredential: credentialOptions.credential,
  nested: { type: 'boolean', describe: 'Let the VM run hypervisors (WSL 2, Docker)' },
  start: { type: 'boolean', default: true, describe: 'Start the VM in the end' },
  enableHyperv: {
    type: 'boolean',
    describe:
      'Where Hyper-V is off, turn it on first; exit code 3010 means: restart Windows, run again',
  },
  config: {
    type: 'string',
    config: true,
    configParser: (path) => fs.readJsonSync(path),
    describe: 'A JSON file with any of these options',
  },
  plan: {
    type: 'string',
    describe: 'Do what a file of --plan-out says, or nothing where its source or host has changed',
    example: 'plan.json',
  },
  planOut: {
    type: 'string',
    describe: 'Write the plan to a file, for --plan, and do nothing else',
  },
  state: { type: 'string', describe: 'Folder for the journals of runs' },
  ...elevateOptions,
  dryRun,
  yes: { type: 'boolean', alias: 'y', describe: 'Do not ask' },
  json: { type: 'boolean', describe: 'One JSON object a line, for programs' },
  log: logOption,
}

/** What the command line gives unasked. */
const DEFAULTS = Object.fromEntries(
  Object.entries(options).map(([name, option]) => [name, option.default]),
)

const given = await commandLine<
  Omit<MigrateOptions, 'revertAfter'> & {
    revertAfter?: string
    yes?: boolean
    json?: boolean
    log?: string
    guestUser?: string
    guestCredential?: string
    elevate?: boolean
    elevatedBy?: string
  }
>(
  import.meta,
  'Move a VirtualBox VM to Hyper-V',
  options,
)
if (given) {
  const { yes, json, log, guestUser: user, guestCredential, elevate: up, elevatedBy, ...options } =
    given
  const { to } = options
  let { screen } = terminal(json)
  try {
    const conversation = converse({ json, log, elevatedBy })
    const { live, person, confirm, select, signal } = conversation
    screen = conversation.screen
    if (up && !elevatedBy) checkElevation({ to, user, credential: guestCredential })
    const code = up && !elevatedBy ? await elevate({ meta: import.meta, conversation }) : undefined
    if (code !== undefined) process.exitCode = code
    else {
      const credential = await readCredential({ user, credential: guestCredential })
      const outcome = await migrate(readGuard(options), {
        screen,
        live,
        credential,
        signal: signal(),
        ...(person && !yes && { agree: () => confirm('Go ahead?'), agreePrepare: confirm }),
        ...(live && { show: showPicture }),
        ...(person && { pick: (names) => select('Which VM?', names) }),
        ...(person && {
          pickAdapter: async (adapters) => {
            const lines = adapters.map(({ name, description, status, wifi }) =>
              `${name}: ${description}, ${status}${wifi ? ', Wi-Fi' : ''}`
            )
            const line = await select('On which network adapter is the switch made?', lines)
            return adapters[lines.indexOf(line)]?.name as string
          },
        }),
      })
      if (outcome === 'restart') process.exitCode = RESTART
    }
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    const outcome = error instanceof Stopped ? 'stopped' : 'failed'
    screen({ event: 'error', message: offerElevation(message) })
    screen({ event: 'end', outcome, next: [] })
    process.exitCode = outcome === 'stopped' ? 130 : 1
  }
}
