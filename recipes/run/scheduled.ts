/**
 * Runs what is scheduled where timers of systemd or cron start it, as run/schedule.ts has Windows run it:
 * `node scheduled.ts JOB.json`. Exits with the exit code of the program.
 */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { dirname } from 'node:path'
import process from 'node:process'
import { createInterface } from 'node:readline'
import { LATE, LOG_SIZE, LOGS } from './schedule.ts'
import type { Schedule } from '../schedule.ts'

/** A job as a file has it. */
export interface ScheduledJob {
  version: 1
  schedule: Schedule
  command: [string, ...string[]]
  folder: string
  log: string
  /** Seconds. */
  limit: number
  /** PATH as it was when the job was made: that of cron and systemd is short. */
  path: string
}

/** How the last run of a job went; beside the job's file. */
export interface LastRun {
  /** ISO 8601, UTC. */
  began: string
  /** Absent while it runs. */
  code?: number
  /** The process that runs it. */
  pid: number
}

/** The file of {@link LastRun}. */
export function lastRunOf(job: string): string {
  return job.replace(/\.json$/, '.last')
}

async function runJob(file: string): Promise<number> {
  const { command: [program, ...args], folder, log, limit, path } = await fs.readJson(
    file,
  ) as ScheduledJob
  const run: LastRun = { began: new Date().toISOString(), pid: process.pid }
  await fs.writeJson(lastRunOf(file), run)
  note(log, `Run: ${[program, ...args].map((word) => JSON.stringify(word)).join(' ')}`)
  let code = 1
  try {
    // a group of its own, so that what it started is stopped with it
    const child = spawn(program, args, {
      cwd: folder,
      detached: true,
      env: { ...process.env, PATH: path },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const ended = once(child, 'exit')
    let late = false
    const stop = (signal: NodeJS.Signals) => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, signal)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
      }
    }
    const timer = setTimeout(() => {
      late = true
      stop('SIGKILL')
    }, limit * 1000)
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      process.on(signal, () => stop(signal))
    }
    for (const output of [child.stdout, child.stderr]) {
      createInterface({ input: output }).on('line', (line) => line && note(log, line))
    }
    const [status, signal] = await ended
    clearTimeout(timer)
    // what it said last is still on its way; what it left running may hold its output open
    await Promise.race([once(child, 'close'), new Promise((done) => setTimeout(done, 1000))])
    code = late ? LATE : status ?? 1
    if (late) note(log, `Stopped after ${limit} seconds, its time limit`)
    else if (signal) note(log, `Ended by ${signal}`)
  } catch (error) {
    note(log, `Cannot run "${program}": ${(error as Error).message}`)
  }
  note(log, `Exit code ${code}`)
  await fs.writeJson(lastRunOf(file), { ...run, code })
  return code
}

/** A line of the log, which goes to another file when it is full. */
function note(log: string, line: string): void {
  fs.ensureDirSync(dirname(log))
  if ((fs.statSync(log, { throwIfNoEntry: false })?.size ?? 0) >= LOG_SIZE) {
    for (let n = LOGS; n > 0; n--) {
      const from = n === 1 ? log : `${log}.${n - 1}`
      if (fs.existsSync(from)) fs.renameSync(from, `${log}.${n}`)
    }
  }
  const now = new Date()
  const two = (number: number) => String(number).padStart(2, '0')
  const day = [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join('-')
  const time = [now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join(':')
  // deno-lint-ignore no-control-regex
  fs.appendFileSync(log, `${day} ${time} ${line.replace(/[\u0000-\u001f\u007f]/g, ' ')}\n`)
}

if (import.meta.main) {
  const [file] = process.argv.slice(-1)
  process.exit(await runJob(file as string))
}
