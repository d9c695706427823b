/** Tests that need a program which may be absent: they skip, are counted as skipped, and name it. */
import { delimiter } from 'node:path'
import process from 'node:process'
import type { Test } from 'uvu'
import { which } from 'zx'

// sshd is a program of the system's, in no user's PATH
const path = [process.env.PATH, '/usr/sbin', '/usr/local/sbin'].join(delimiter)

type Define<T> = (name: string, test: (context: T) => void | Promise<void>) => void

/**
 * What to define a test with when it runs `programs`: the suite itself where all of them are on
 * PATH, else one that skips the test and says on standard error which program it misses.
 */
export function needs<T>(suite: Test<T>, ...programs: string[]): Define<T> {
  const absent = programs.filter((program) => !which.sync(program, { nothrow: true, path }))
  if (absent.length === 0) return (name, test) => suite(name, test as Parameters<typeof suite>[1])
  return (name, test) => {
    console.error(`skipped, ${absent.join(' and ')} not found: ${name}`)
    suite.skip(name, test as Parameters<typeof suite>[1])
  }
}
