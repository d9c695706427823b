/** A bundle: a folder with the disks and one script that makes the VM of them on a Hyper-V host without Node. */
import fs from 'fs-extra'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { deployScript } from './deploy.ts'
import type { Plan } from './plan.ts'

/** The files of a bundle beside its disks. The sums are written last: a folder without them is unfinished. */
export const BUNDLE = { plan: 'plan.json', deploy: 'Deploy.ps1', sums: 'SHA256SUMS' }

/** What is in a folder that a bundle is to be written to. */
export type BundleState = 'empty' | 'unfinished' | 'finished' | 'other'

/**
 * Looks whether a folder is free for the bundle of a plan, or holds it already, whole or in part. A
 * bundle whose disks do not have their sums is not finished.
 */
export async function bundleState(dir: string, plan: Plan): Promise<BundleState> {
  const names = await fs.readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  if (names.length === 0) return 'empty'
  const found = await fs.readJson(join(dir, BUNDLE.plan)).catch(() => undefined) as Plan | undefined
  if (found?.key !== plan.key) return 'other'
  const sums = await fs.readFile(join(dir, BUNDLE.sums), 'utf8').catch(() => '')
  for (const path of disksOf(plan)) {
    if (!await fs.pathExists(join(dir, path))) return 'unfinished'
    if (!sums.includes(await sumLine(dir, path))) return 'unfinished'
  }
  return 'finished'
}

/** Writes the plan, before the disks: it tells the next run whose folder this is. */
export async function beginBundle(dir: string, plan: Plan): Promise<void> {
  await fs.outputJson(join(dir, BUNDLE.plan), plan, { spaces: 2 })
}

/** Writes what goes with the converted disks. */
export async function finishBundle(dir: string, plan: Plan): Promise<void> {
  // Windows PowerShell takes a script without the mark for one in the old code page of the country
  await fs.writeFile(join(dir, BUNDLE.deploy), `\ufeff${await deployScript(plan)}`)
  const sums = []
  for (const path of disksOf(plan)) sums.push(await sumLine(dir, path))
  await fs.writeFile(join(dir, BUNDLE.sums), sums.join(''))
}

/** Whether there are no disks in it, not even one that was begun. */
export async function holdsNothing(dir: string): Promise<boolean> {
  const names = await fs.readdir(join(dir, 'disks')).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  return names.length === 0
}

/** Removes the files of a bundle and the folders they leave empty; what else is there stays. */
export async function removeBundle(dir: string): Promise<void> {
  for (const name of Object.values(BUNDLE)) await fs.remove(join(dir, name))
  for (const path of [join(dir, 'disks'), dir]) {
    await fs.rmdir(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'ENOENT' && error.code !== 'EEXIST') {
        throw error
      }
    })
  }
}

function disksOf(plan: Plan): string[] {
  return plan.steps.flatMap((step) => step.task === 'convert-disk' ? [step.options.to] : [])
}

async function sumLine(dir: string, path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(fs.createReadStream(join(dir, path), { highWaterMark: 1024 ** 2 }), hash)
  return `${hash.digest('hex')}  ${path}\n`
}
