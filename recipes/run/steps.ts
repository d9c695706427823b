/** The tasks that steps are made of, each with its undo, and how a step is done, asked or written down. */
import { attachAdapter, undoAttachAdapter } from '../../tasks/attach-adapter.ts'
import { checkHost } from '../../tasks/check-host.ts'
import {
  convertDisk,
  undoConvertDisk,
  undoUnfinishedConvertDisk,
} from '../../tasks/convert-disk.ts'
import { createSwitch, undoCreateSwitch } from '../../tasks/create-switch.ts'
import { createVm, undoCreateVm } from '../../tasks/create-vm.ts'
import { enableHyperV, undoEnableHyperV } from '../../tasks/enable-hyperv.ts'
import { enableNested, undoEnableNested } from '../../tasks/enable-nested.ts'
import { forwardPort, undoForwardPort } from '../../tasks/forward-port.ts'
import { type GuardOptions, guardScripts } from '../../tasks/guard.ts'
import { placeDisk, undoPlaceDisk } from '../../tasks/place-disk.ts'
import { prepareDisk, undoPrepareDisk } from '../../tasks/prepare-guest.ts'
import { type GuestCredential, setGuestIp, undoSetGuestIp } from '../../tasks/set-guest-ip.ts'
import { setHardware, undoSetHardware } from '../../tasks/set-hardware.ts'
import { setStaticIp, undoSetStaticIp } from '../../tasks/set-static-ip.ts'
import { startVm, undoStartVm } from '../../tasks/start-vm.ts'
import { type PowerShell, type PowerShellProcess, script } from '../../tasks/task.ts'
import { removePartial, sendDisk, type SendDiskOptions } from './send-disk.ts'

/** What a step may use while it works. */
export interface Tools {
  ps: PowerShell
  /** The host that `ps` asks, for a step that sends it more than scripts. */
  host?: PowerShellProcess | undefined
  /** The same as `ps` where that is of the Windows on this machine. */
  here?: PowerShell | undefined
  signal?: AbortSignal | undefined
  /** The guest's account, which is in no plan and no journal. */
  credential?: GuestCredential | undefined
  /** How an undo that could cut the host off is guarded. */
  guard?: GuardOptions | undefined
  onProgress?: ((progress: Progress) => void) | undefined
}

/** How far a step has come, in bytes that hold data. */
export interface Progress {
  done: number
  total: number
  /** Of `done`, what a run of before has done, from which this one goes on. */
  resumed?: number
}

interface Task<O, R> {
  run: (options: O & { dryRun?: boolean }, tools: Tools) => Promise<R>
  undo?: (result: R, tools: Tools) => Promise<unknown>
  /** Removes what was written by a run that did not come to its end, and is there to be gone on with. */
  undoUnfinished?: (options: O, tools: Tools) => Promise<unknown>
}

const task = <O, R>(task: Task<O, R>): Task<O, R> => task

export const tasks = {
  'check-host': task({
    run: (options: Parameters<typeof checkHost>[0], { ps }) => checkHost(options, ps),
  }),
  'enable-hyperv': task({
    run: (options: Pick<NonNullable<Parameters<typeof enableHyperV>[0]>, 'dryRun'>, { ps }) =>
      enableHyperV(options, ps),
    undo: (result, { ps }) => undoEnableHyperV(result, ps),
  }),
  'convert-disk': task({
    run: (options: Parameters<typeof convertDisk>[0], { here, signal, onProgress }) =>
      convertDisk(
        { ...options, resume: true, ...(signal && { signal }), ...(onProgress && { onProgress }) },
        here,
      ),
    undo: (result) => undoConvertDisk(result),
    undoUnfinished: (options) => undoUnfinishedConvertDisk(options),
  }),
  'place-disk': task({
    run: (options: Parameters<typeof placeDisk>[0], { ps }) => placeDisk(options, ps),
    undo: (result, { ps }) => undoPlaceDisk(result, ps),
  }),
  // no task of its own: there is nothing to send where PowerShell is on this machine
  'send-disk': task({
    run: (options: SendDiskOptions, { host, signal, onProgress }) => {
      if (host === undefined) throw new Error('Cannot send a disk: the plan has no host')
      const step = `Send the disk to "${options.to}"`
      return sendDisk(options, { host, step, signal, onProgress })
    },
    undo: (result, { ps }) => undoPlaceDisk(result, ps),
    undoUnfinished: ({ to }, { ps }) => removePartial(to, ps),
  }),
  'prepare-guest': task({
    run: async (options: Parameters<typeof prepareDisk>[0], { ps }) => {
      const result = await prepareDisk(options, ps)
      const [obstacle] = result.steps.filter(({ state }) => state === 'refusal')
      if (obstacle) {
        throw new Error(`Cannot prepare Windows on "${options.disk}": ${obstacle.detail}`)
      }
      const warnings = result.steps.filter(({ state }) => state === 'warning')
      return { ...result, warnings: warnings.map(({ detail }) => `${detail}.`) }
    },
    undo: (result, { ps }) => undoPrepareDisk(result, ps),
  }),
  'create-switch': task({
    run: (options: Parameters<typeof createSwitch>[0], { ps }) => createSwitch(options, ps),
    undo: (result, { ps, guard }) => undoCreateSwitch(result, ps, guard),
  }),
  'set-static-ip': task({
    run: (options: Parameters<typeof setStaticIp>[0], { ps }) => setStaticIp(options, ps),
    undo: (result, { ps }) => undoSetStaticIp(result, ps),
  }),
  'forward-port': task({
    run: (options: Parameters<typeof forwardPort>[0], { ps }) => forwardPort(options, ps),
    undo: (result, { ps }) => undoForwardPort(result, ps),
  }),
  'create-vm': task({
    run: (options: Parameters<typeof createVm>[0], { ps }) => createVm(options, ps),
    undo: (result, { ps }) => undoCreateVm(result, ps),
  }),
  'set-hardware': task({
    run: (options: Parameters<typeof setHardware>[0], { ps }) => setHardware(options, ps),
    undo: (result, { ps }) => undoSetHardware(result, ps),
  }),
  'attach-adapter': task({
    run: (options: Parameters<typeof attachAdapter>[0], { ps }) => attachAdapter(options, ps),
    undo: (result, { ps }) => undoAttachAdapter(result, ps),
  }),
  'enable-nested': task({
    run: (options: Parameters<typeof enableNested>[0], { ps }) => enableNested(options, ps),
    undo: (result, { ps }) => undoEnableNested(result, ps),
  }),
  'start-vm': task({
    run: (options: Parameters<typeof startVm>[0], { ps }) => startVm(options, ps),
    undo: (result, { ps }) => undoStartVm(result, ps),
  }),
  'set-guest-ip': task({
    run: (options: Omit<Parameters<typeof setGuestIp>[0], 'credential'>, { ps, credential }) =>
      setGuestIp({ ...options, ...(credential && { credential }) }, ps),
    undo: (result, { ps }) => undoSetGuestIp(result, ps),
  }),
}

export type TaskName = keyof typeof tasks

/** A task and what it is given, as data. */
export type Call = {
  [T in TaskName]: { task: T; options: Parameters<typeof tasks[T]['run']>[0] }
}[TaskName]

/** What a task answered. The fields beside `changed` are its own. */
export type StepResult = { changed: boolean; [field: string]: unknown }

/** The host's PowerShell for one step, which its errors name and its time limit ends. */
export function powershellFor(
  host: PowerShellProcess | undefined,
  { task, title, options }: Call & { title: string },
): PowerShell {
  // a script looks and changes settings in seconds; only copying and waiting for a guest take longer
  const waits = task === 'place-disk' ? 24 * 3600 : task === 'start-vm' ? options.timeout ?? 120 : 0
  return (pieces, ...values) => {
    if (host === undefined) throw new Error(`Cannot ask a host in "${title}": the plan has none`)
    return host.using({ step: title, timeout: 600 + waits })(pieces, ...values)
  }
}

/** Does a step, or with `dryRun` asks it what it would change. */
export async function perform(call: Call, tools: Tools, dryRun = false): Promise<StepResult> {
  // the pair of a task and its options is right by the type of Call, which no union of functions keeps
  const { run } = tasks[call.task] as unknown as Task<object, object>
  return { changed: false, ...await run({ ...call.options, dryRun }, tools) }
}

/**
 * What a step of a run is going to change, asked before it does: an answer that is lost, with a process or a
 * connection, is not missed then. Undefined where that says nothing: a file is there whole or not at all,
 * and what is changed in a VM or a disk that the run has made itself goes with it.
 */
export async function foresee(
  call: Call,
  tools: Tools,
  made: ReadonlySet<TaskName>,
): Promise<StepResult | undefined> {
  const { undo } = tasks[call.task] as unknown as Task<object, object>
  const within = WITHIN[call.task] ?? []
  if (!undo || ['convert-disk', 'send-disk'].includes(call.task)) return undefined
  if (within.some((name) => made.has(name))) return undefined
  return await perform(call, tools, true)
}

/** What a step changes something in: made by the run, it is taken back with it. */
export const WITHIN: Partial<Record<TaskName, readonly TaskName[]>> = {
  'prepare-guest': ['convert-disk', 'send-disk', 'place-disk'],
  'set-hardware': ['create-vm'],
  'attach-adapter': ['create-vm'],
  'enable-nested': ['create-vm'],
}

/**
 * What a step changed that was cut off and has been asked again: what is there is as it is told now, what
 * was there before as it was told before the first change.
 */
export function completed(expected: StepResult, now: StepResult): StepResult {
  if (!expected.changed) return now
  const known = Object.entries(now).filter(([, value]) => value !== null && value !== undefined)
  return { ...expected, ...Object.fromEntries(known), before: expected.before, changed: true }
}

/** Takes back what a step changed, and gives what its undo answers; a task that only reads has none. */
export async function takeBack(name: TaskName, result: StepResult, tools: Tools): Promise<unknown> {
  const { undo } = tasks[name] as unknown as Task<object, object>
  return result.changed ? await undo?.(result, tools) : undefined
}

/** Removes what a step has written of a file that it did not come to the end of. */
export async function removeUnfinished({ task, options }: Call, tools: Tools): Promise<void> {
  const { undoUnfinished } = tasks[task] as unknown as Task<object, object>
  await undoUnfinished?.(options, tools)
}

/** The PowerShell that a step would run, whole, without running it: the task asks a recorder instead of a host. */
export function scriptOf(call: Call): Promise<string> {
  return new Promise((resolve, reject) => {
    const ps = recorder(resolve)
    // what is written down is guarded by who runs it (see deploy.ts)
    perform({ ...call, options: { ...call.options, guard: false } } as Call, { ps }).then(
      () => reject(new Error(`Cannot write ${call.task} down: it runs no script`)),
      reject,
    )
  })
}

/** The PowerShell that takes back what a step answered, which it has in its first line; undefined where none does. */
export function undoScriptOf({ task }: Call): Promise<string | undefined> {
  const { undo } = tasks[task] as unknown as Task<object, object>
  if (!undo) return Promise.resolve(undefined)
  // an answer that says that all was changed: what the undo is to take back it reads on the host
  const answer = { changed: true, id: '', adapter: '', path: '', hostIp: '', before: {} }
  return new Promise((resolve, reject) => {
    const ps = recorder(resolve)
    undo(answer, { ps }).then(
      () => reject(new Error(`Cannot write the undo of ${task} down`)),
      reject,
    )
  })
}

/** Takes down the script of a task, and nothing of guards of before, which are not its own. */
function recorder(resolve: (script: string) => void): PowerShell {
  return (pieces, ...values) => {
    const text = script(pieces, ...values)
    if (text.includes(guardScripts.undoPending)) return Promise.resolve({ stdout: '' })
    resolve(text)
    return new Promise(() => {}) // it needs no answer any more
  }
}
