/**
 * The elevated side of `--elevate`: the process that Windows starts with administrator rights. It runs
 * what a folder says and leaves there what came of it. It loads nothing, so that it starts at once.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, openSync, writeSync } from 'node:fs'
import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import process from 'node:process'

/** The folder's files: to the run, and back from it. Each is whole when its name appears. */
export const RUN = 'run.json'
export const FIRST = 'first.json'
export const STOP = 'stop'
export const OUT = 'out'
export const ERR = 'err'
export const EXIT = 'exit'
export const answerFile = (id: number) => `answer-${id}.json`

export interface Run {
  program: string
  args: string[]
  cwd: string
  env: Record<string, string>
}

/** The process at the terminal. */
export interface First {
  pid: number
  person: boolean
}

/** Whether a process has not ended, of whoever it is. */
export function lives(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

/** Writes a file that is whole when it appears. */
export async function put(folder: string, name: string, value: unknown): Promise<void> {
  const partial = join(folder, `${name}.partial`)
  await writeFile(partial, JSON.stringify(value))
  await rename(partial, join(folder, name))
}

/** The elevated process: runs what the folder says, and leaves the exit code there. */
async function launch(folder: string): Promise<void> {
  const { program, args, cwd, env } = JSON.parse(await readFile(join(folder, RUN), 'utf8')) as Run
  await rm(join(folder, RUN)) // from here on it is known to have come this far
  const first = JSON.parse(await readFile(join(folder, FIRST), 'utf8')) as First
  Object.assign(process.env, env)
  const out = openSync(join(folder, OUT), 'a')
  const err = openSync(join(folder, ERR), 'a')
  let code = 1
  try {
    if (!existsSync(cwd)) {
      throw new Error(
        `Cannot run with administrator rights in "${cwd}": elevated programs do not have the drives ` +
          'that this user has mapped. Go to a folder on a local drive, and run the same there',
      )
    }
    const child = spawn(program, args, { cwd, stdio: ['ignore', out, err], windowsHide: true })
    code = (await once(child, 'exit') as [number | null])[0] ?? 1
  } catch (error) {
    writeSync(err, `${(error as Error).message}\n`)
  }
  closeSync(out)
  closeSync(err)
  await put(folder, EXIT, code)
  if (!lives(first.pid)) await rm(folder, { recursive: true, force: true }) // nobody reads it any more
}

if (import.meta.main) await launch(process.argv.at(-1) as string)
