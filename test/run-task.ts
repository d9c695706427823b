/** A task's command line, as a program of its own, on a simulated host. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import type { SimulatedHost } from './simulated-host.ts'

export interface Run {
  code: number
  stdout: string
  stderr: string
}

/** Runs tasks/`task`.ts with the runtime that runs the test, in the folder of the host's files. */
export function runTask(
  host: Pick<SimulatedHost, 'dir' | 'env'>,
  task: string,
  ...args: string[]
): Promise<Run> {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const file = join(import.meta.dirname as string, '..', 'tasks', `${task}.ts`)
  const options = { cwd: host.dir, env: host.env }
  return new Promise((resolve) =>
    execFile(process.execPath, [...runtime, file, ...args], options, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr })
    })
  )
}
