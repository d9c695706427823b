#!/usr/bin/env zx
/**
 * Compares one PowerShell for all scripts of a run with a PowerShell a script.
 *
 *     node test/bench/powershell.ts [--runs N]
 *
 * Migrates the demo to a simulated host once, with every option, and notes the scripts that the
 * recipe sends. Runs the same scripts again, each time on a host as it was: by a process each, by one
 * process with its start and all that it meets for the first time (modules to load, code to compile),
 * and by that process once more, which is what scripts cost in a run that goes on. Real cmdlets of
 * Hyper-V are slower to load than simulated ones are, which is in favour of one process; a Windows
 * with a warm cache starts PowerShell faster than this may.
 */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { parseArgs, promisify } from 'node:util'
import { which } from 'zx'
import { demo } from '../../fixtures/demo.ts'
import { migrate } from '../../recipes/migrate.ts'
import {
  openPowerShell,
  type PowerShell,
  type PowerShellProcess,
  script,
} from '../../tasks/task.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../simulated-host.ts'
import { sshHost, traffic } from '../ssh-host.ts'

const execute = promisify(execFile)
const { values } = parseArgs({ options: { runs: { type: 'string', default: '3' } } })
const runs = Number(values.runs)

// the disk that scripts look at stays until the end
const { scripts, seed, close } = await record()
try {
  const rows = { cold: [] as number[], warm: [] as number[], each: [] as number[] }
  for (let n = 0; n < runs; n++) {
    const [cold = 0, warm = 0] = await time(seed, byOne, byOne)
    const [each = 0] = await time(seed, byEach)
    rows.cold.push(cold)
    rows.warm.push(warm)
    rows.each.push(each)
  }
  const { cold, warm, each } = rows
  const times = (row: number[]) => `${(median(each) / median(row)).toFixed(1).padStart(5)} times`
  console.log(`${scripts.length} scripts of the demo's migration, ${runs} runs, median\n`)
  console.log(`a process a script            ${seconds(median(each))}`)
  console.log(`one process, with its start   ${seconds(median(cold))} ${times(cold)} as fast`)
  console.log(`one process, warm             ${seconds(median(warm))} ${times(warm)} as fast`)
  console.log()
  await overhead()
} finally {
  await close()
}

/** The scripts of the demo's migration, and the host's state before it. */
async function record() {
  const host = await simulatedHost()
  await host.change(quickGuests)
  const seed = await host.text()
  const scripts: string[] = []
  const noted = (ps: PowerShell): PowerShell => (pieces, ...values) => {
    scripts.push(script(pieces, ...values))
    return ps(pieces, ...values)
  }
  await migrateDemo(host.dir, 'local', {
    ps: noted(host.ps),
    using: (options) => noted(host.using(options)),
    close: () => Promise.resolve(),
  })
  return { scripts, seed, close: host.close }
}

/** With every option. Answers how many steps the host has. */
async function migrateDemo(dir: string, to: string, host: PowerShellProcess): Promise<number> {
  const { ova } = await demo('bios', dir)
  let steps = 0
  await migrate({
    source: [ova],
    to,
    storage: join(dir, 'disks'),
    state: join(dir, 'state'),
    ...{ external: '桥接', adapter: 'Wi-Fi', internal: 'Static-NAT', hostIp: '192.168.56.1/24' },
    ...{ nat: true, guestIp: '192.168.56.191', nested: true, cpus: 2, memory: '512MB' },
  }, {
    screen: (event) => {
      if (event.event !== 'plan') return
      steps = event.plan.steps.filter(({ where }) => where === 'host').length
    },
    host: () => ({ ...host, here: (path) => Promise.resolve(path) }),
  })
  return steps
}

/** Milliseconds of each work on one host, which is in the state of before each time. */
async function time(
  seed: string,
  ...works: ((host: SimulatedHost) => Promise<void>)[]
): Promise<number[]> {
  const host = await simulatedHost()
  delete host.env.SIMULATED_HOST_LOG // no Windows writes its calls down
  try {
    const times: number[] = []
    for (const work of works) {
      await fs.writeFile(host.env.SIMULATED_HOST as string, seed)
      await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
      await fs.remove(host.env.ProgramData as string)
      const start = performance.now()
      await work(host)
      times.push(performance.now() - start)
    }
    return times
  } finally {
    await host.close()
  }
}

async function byOne({ ps }: SimulatedHost): Promise<void> {
  for (const text of scripts) await ps([text] as unknown as TemplateStringsArray)
}

/** As a program does that runs PowerShell anew for each script, from a file, as some are too long for a command line. */
async function byEach({ env, dir }: SimulatedHost): Promise<void> {
  const file = join(dir, 'script.ps1')
  for (const text of scripts) {
    // with a mark, without which 5.1 takes a file for ANSI
    await fs.writeFile(file, `\ufeff$ErrorActionPreference = 'Stop'\n${text}`)
    const args = ['-NoLogo', '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass']
    await execute(process.env.POWERSHELL || 'pwsh', [...args, '-File', file], {
      env,
      maxBuffer: 64 * 1024 ** 2,
    })
  }
}

/** What the way there and back costs, without what a script does. */
async function overhead(): Promise<void> {
  const host = await simulatedHost()
  try {
    await way('here', host.ps)
    if (!await which('sshd', { nothrow: true, path: `${process.env.PATH}:/usr/sbin` })) return
    const ssh = await sshHost(host.env)
    const far = openPowerShell({ host: ssh.url, env: ssh.env })
    await way('by SSH on loopback', far.ps)
    await far.close()
    const { env, count } = await traffic(ssh)
    await host.change(quickGuests)
    const counted = openPowerShell({ host: ssh.url, env })
    const steps = await migrateDemo(host.dir, ssh.url, counted)
    await counted.close()
    const { connections, starts, scripts: sent, trips } = await count()
    console.log(
      `\nthe demo's migration over SSH: ${connections} connection, ${starts} PowerShell; ` +
        `${steps} steps and all checks are ${sent} scripts, there and back ${trips} times`,
    )
    await ssh.close()
  } finally {
    await host.close()
  }
}

async function way(name: string, ps: PowerShell): Promise<void> {
  const start = performance.now()
  await ps`1`
  const first = performance.now() - start
  const calls: number[] = []
  for (let n = 0; n < 200; n++) {
    const start = performance.now()
    await ps`1`
    calls.push(performance.now() - start)
  }
  const times = `${first.toFixed(0)} ms, then one call ${median(calls).toFixed(1)} ms`
  console.log(`starting PowerShell ${name}: ${times}`)
}

function median(numbers: number[]): number {
  return [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] as number
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(2).padStart(6)} s`
}
