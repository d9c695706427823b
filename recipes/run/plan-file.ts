/** A plan as a file: written for later, read with distrust, and held against the world as it is now. */
import fs from 'fs-extra'
import { randomUUID } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Foreseen, Origin, Plan } from './plan.ts'
import { changedSince } from './source.ts'

/** A plan that says what it was made of, so that it can be made once more. */
export type PlanFile = Plan & { origin: Origin }

/**
 * Reads a plan that `--plan-out` wrote, or a bundle's. Rejects, and names all that is wrong by its place in
 * the file, what is no plan of this version: see docs/plan.schema.json.
 */
export async function readPlan(file: string): Promise<PlanFile> {
  const cannot = `Cannot run the plan "${file}":`
  const plan = await readJson(file, cannot) as Partial<PlanFile> | null
  if (typeof plan !== 'object' || plan === null || !('version' in plan && 'steps' in plan)) {
    throw new Error(`${cannot} it is no plan. ${MAKE}`)
  }
  if (plan.version !== 1) {
    throw new Error(
      `${cannot} its version is ${brief(plan.version)}, and this kit has version 1. ${MAKE}`,
    )
  }
  if (plan.origin === undefined) {
    throw new Error(`${cannot} it does not say what it was made of. ${MAKE}`)
  }
  const wrong = await errorsIn(plan)
  if (wrong.length > 0) throw new Error(`${cannot} ${wrong.join('; ')}. ${MAKE}`)
  return plan as PlanFile
}

/** Why a plan cannot be written to a file; undefined where it can. */
export async function refusePlanOut(file: string): Promise<string | undefined> {
  const cannot = `Cannot write the plan to "${file}":`
  const folder = await fs.stat(dirname(resolve(file))).catch(() => undefined)
  if (!folder?.isDirectory()) {
    return `${cannot} there is no folder "${
      dirname(resolve(file))
    }". Name a file in one that is there`
  }
  if (!await fs.pathExists(resolve(file))) return undefined
  const found = await readJson(file, cannot).catch(() => undefined) as Partial<Plan> | undefined
  const isPlan = typeof found?.version === 'number' && typeof found.key === 'string' &&
    Array.isArray(found.steps)
  return isPlan
    ? undefined
    : `${cannot} what is there is no plan. Name another file by --plan-out, or remove it`
}

/** Writes a plan, whole or not at all, and over nothing but a plan. */
export async function writePlan(file: string, plan: Plan): Promise<void> {
  const refusal = await refusePlanOut(file)
  if (refusal !== undefined) throw new Error(refusal)
  const path = resolve(file)
  const partial = join(dirname(path), `.${basename(path).slice(0, 100)}.${randomUUID()}.partial`)
  let handle: FileHandle | undefined
  try {
    handle = await open(partial, 'wx')
    await handle.writeFile(`${JSON.stringify(plan, null, 2)}\n`)
    await handle.sync()
    await handle.close()
    handle = undefined
    await fs.rename(partial, path)
  } catch (cause) {
    await handle?.close()
    await fs.remove(partial)
    const why = (cause as Error).message.split(',')[0]
    const message = `Cannot write the plan to "${file}": ${why}. Name another file by --plan-out`
    throw new Error(message, { cause })
  }
}

/** Rejects, and names them, options beside a plan that say otherwise: it says all that is done. */
export function refuseBeside(
  file: string,
  given: Record<string, unknown>,
  defaults: Record<string, unknown>,
): void {
  const names = Object.keys(given).filter((name) => {
    const value = given[name]
    const none = value === undefined || (Array.isArray(value) && value.length === 0)
    return !none && value !== defaults[name] && !['state', 'dryRun'].includes(name)
  })
  if (names.length === 0) return
  const dashed = names.map((name) =>
    name === 'source'
      ? 'a source'
      : `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
  )
  throw new TypeError(
    `Cannot run the plan "${file}" with ${dashed.join(', ')}: it says all that is done. ` +
      'Run again without, or make another plan by --plan-out',
  )
}

/** Rejects where the plan's source is another by now. */
export async function checkSource(file: string, { origin }: PlanFile): Promise<void> {
  const changed = await changedSince(origin.files)
  if (changed.length === 0) return
  throw new Error(
    `Cannot run the plan "${file}": its source has changed since it was made: ` +
      `${changed.join('; ')}. ${MAKE}`,
  )
}

/**
 * Why a plan cannot be run: what of it would be another if it were made now, of the same source and wishes.
 * What is known only while it runs, such as what is there already, may differ.
 */
export function refuseOther(file: string, planned: PlanFile, now: Plan): string[] {
  const cannot = `Cannot run the plan "${file}":`
  const found = differences(essence(planned), essence(now), '')
  const edited = planned.key === now.key
  if (found.length === 0 && edited) return []
  if (found.length === 0) found.push('/key does not fit what is in it')
  const shown = found.slice(0, SHOWN)
  if (found.length > SHOWN) shown.push(`and ${found.length - SHOWN} more`)
  const why = edited ? 'its contents do not fit its key' : 'it is not what would be planned now'
  return [`${cannot} ${why}: ${shown.join('; ')}. ${MAKE}`]
}

/** Why a plan cannot be run on a host that answers otherwise than when it was made. */
export function refuseHost(
  file: string,
  { origin, steps }: PlanFile,
  found: ReadonlyMap<string, Foreseen>,
): string[] {
  const others = steps.flatMap(({ id, title }) => {
    const [before, now] = [origin.found?.[id], found.get(id)]
    return before === undefined || now === undefined || before === now
      ? []
      : [`"${title}" ${FORESEEN[before]} then, and ${FORESEEN[now]} now`]
  })
  if (others.length === 0) return []
  return [
    `Cannot run the plan "${file}": its host has changed since it was made: ${
      others.join('; ')
    }. ` +
    MAKE,
  ]
}

const FORESEEN: Record<Foreseen, string> = {
  would: 'was to be done',
  same: 'was already so',
  unknown: 'could not be told',
}

const SHOWN = 20

const MAKE = 'Make it anew: npx zx recipes/migrate.ts NAME --plan-out FILE'

/** What has to be equal. Steps are known by their ids. */
function essence({ version, name, slug, source, target, vm, steps }: Plan): unknown {
  const known = steps.map(({ id, already: _, estimate: __, ...step }) => [id, step] as const)
  // the same steps in another order are another plan
  const order = steps.map(({ id }) => id)
  const all = { version, name, slug, vm, source, target, steps: Object.fromEntries(known), order }
  return JSON.parse(JSON.stringify(all))
}

function differences(planned: unknown, now: unknown, path: string): string[] {
  if (planned === undefined) return [`${path} is new: ${brief(now)}`]
  if (now === undefined) return [`${path} is no more: ${brief(planned)}`]
  if (!isObject(planned) || !isObject(now)) {
    return planned === now ? [] : [`${path} was ${brief(planned)} and is ${brief(now)}`]
  }
  const names = new Set([...Object.keys(planned), ...Object.keys(now)])
  return [...names].flatMap((name) =>
    differences(own(planned, name), own(now, name), `${path}/${pointer(name)}`)
  )
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}

function own(from: Record<string, unknown>, name: string): unknown {
  return Object.hasOwn(from, name) ? from[name] : undefined
}

/** A name within a JSON pointer (RFC 6901). */
function pointer(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1')
}

function brief(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return text.length > 120 ? `${text.slice(0, 120)}...` : text
}

/** More than any plan has: a VM of 100 disks has 200 KB. */
const LIMIT = 4 * 1024 ** 2

async function readJson(file: string, cannot: string): Promise<unknown> {
  const text = await readText(file, cannot)
  try {
    return JSON.parse(text.replace(/^\ufeff/, ''))
  } catch (cause) {
    throw new Error(`${cannot} it is not JSON (${(cause as Error).message}). ${MAKE}`, { cause })
  }
}

async function readText(file: string, cannot: string): Promise<string> {
  const stat = await fs.stat(file).catch((cause: NodeJS.ErrnoException) => {
    const why = cause.code === 'ENOENT' ? 'there is no such file' : cause.message.split(',')[0]
    throw new Error(`${cannot} ${why}. Name one that --plan-out wrote`, { cause })
  })
  // of a pipe or a device there may be no end
  if (!stat.isFile()) throw new Error(`${cannot} it is no file. Name one that --plan-out wrote`)
  if (stat.size > LIMIT) {
    throw new Error(
      `${cannot} it has ${stat.size} bytes, and no plan has more than ${LIMIT}. ${MAKE}`,
    )
  }
  return await fs.readFile(file, 'utf8').catch((cause: Error) => {
    throw new Error(`${cannot} ${cause.message.split(',')[0]}. Let yourself read it`, { cause })
  })
}

const SCHEMA = join(import.meta.dirname as string, '..', '..', 'docs', 'plan.schema.json')

/** Each place in a plan that its schema forbids, with the reason. */
async function errorsIn(plan: object): Promise<string[]> {
  // it takes longer to load than all else that a run needs
  const { Ajv2020 } = await import('ajv/dist/2020.js')
  const ajv = new Ajv2020({ allErrors: true, allowUnionTypes: true })
  const valid = ajv.compile(await fs.readJson(SCHEMA))
  if (valid(plan)) return []
  const wrong = (valid.errors ?? []).flatMap(({ keyword, instancePath, message, params }) => {
    // it repeats what the chosen part says
    if (keyword === 'if' || keyword === 'oneOf') return []
    const { additionalProperty: name, allowedValues } = params as Record<string, unknown>
    if (typeof name === 'string') return [`${instancePath}/${pointer(name)} is not known`]
    const among = Array.isArray(allowedValues) ? `: ${allowedValues.map(brief).join(', ')}` : ''
    return [`${instancePath || '/'} ${message}${among}`]
  })
  const all = [...new Set(wrong)]
  return all.length > SHOWN
    ? [...all.slice(0, SHOWN), `and ${all.length - SHOWN} more`]
    : all.length > 0
    ? all
    : ['it does not fit its schema']
}
