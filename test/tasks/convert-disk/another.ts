/** A process that is not this one, and lives: the parent, or a child where that has no number, as under Wine. */
import { spawn } from 'node:child_process'
import process from 'node:process'

export function anotherProcess(): { pid: number; end: () => void } {
  if (process.ppid > 0) return { pid: process.ppid, end: () => {} }
  const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' })
  return { pid: child.pid as number, end: () => child.kill() }
}
