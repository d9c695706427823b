#!/usr/bin/env zx
/** Say what a host can do, why VirtualBox is slow on it, and what stands in the way of each VM. Changes nothing. */
import { randomBytes, randomUUID } from 'node:crypto'
import { rename, rm, writeFile } from 'node:fs/promises'
import { homedir, hostname, tmpdir, userInfo } from 'node:os'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { checkHost, type CheckHostResult } from '../tasks/check-host.ts'
import { inspectVm, listVms, type VmDescription } from '../tasks/inspect-vm.ts'
import { type Network, readNetwork } from '../tasks/show-network.ts'
import { commandLine, type Option, parseHost } from '../tasks/task.ts'
import { migrate } from './migrate.ts'
import { crawls, type ExaminedVm, type Finding, findings } from './run/doctor-findings.ts'
import { type HostFacts, readHost } from './run/doctor-host.ts'
import { type Private, reveal } from './run/doctor-private.ts'
import { type Answer, drawStacks, reportText, screenText } from './run/doctor-text.ts'
import { farFolder, type Host, localFolder, openHost } from './run/host.ts'
import type { Plan } from './run/plan.ts'
import { textScreen } from './run/screen.ts'

export type { Finding } from './run/doctor-findings.ts'

export interface DoctorOptions {
  /** VMs of VirtualBox by name, or files, each a VM of its own. @default all VMs of VirtualBox */
  vm?: readonly string[] | undefined
  /** `local`, `ssh://[user@]host[:port]`, or `bundle:DIR`, which has no host to ask. @default local */
  host?: string | undefined
  /** The host's folder for disks. @default the host's own for virtual hard disks */
  storage?: string | undefined
  /** The folder for journals, of which a migration would go on. @default the user's data folder */
  state?: string | undefined
  /** The Markdown file to write, which is replaced. */
  report?: string | undefined
}

export interface DoctorTools {
  /** Opens `local` or `ssh://...`. @default by the PowerShell there */
  open?: ((name: string) => Host) | undefined
}

export interface Diagnosis {
  /** Of this format. */
  version: 1
  /** Nothing that was found is a problem: a migration would go through. */
  ready: boolean
  /** VirtualBox is there and slow, because a hypervisor runs below Windows. */
  crawls: boolean
  /** By group, in the order in which they are to be read. */
  findings: Finding[]
}

/**
 * Looks at a host and at the VMs that are to go there, and changes nothing. Of a VM it asks what
 * `migrate` would ask, up to its plan. What cannot be asked is a finding; it rejects only when the
 * report cannot be written.
 */
export async function doctor(options: DoctorOptions, tools: DoctorTools = {}): Promise<Diagnosis> {
  const answer = await examine(options, tools)
  if (options.report !== undefined) await writeReport(options.report, answer)
  return shown(answer)
}

async function examine(
  { vm: named = [], host: where = 'local', storage: wanted, state }: DoctorOptions,
  { open = openHost }: DoctorTools,
): Promise<Answer> {
  const bundle = /^bundle:./.test(where)
  const remote = where !== 'local' && !bundle
  if (remote) parseHost(where)
  const folderOf = (folder: string) => remote ? farFolder(folder) : localFolder(folder)
  const storage = wanted === undefined ? undefined : await folderOf(wanted)
  const host = bundle ? undefined : open(where)
  try {
    const asked = host ? await ask(host, storage) : NOTHING
    const there = bundle || (asked.check?.hyperV && asked.check.host.diskFolder)
    const to = there ? where : 'bundle'
    const vms = await examineVms(named, (source) => rehearse(source, { to, storage, state }, host))
    const examined = { ...asked, vms: vms.found, storage, remote, named: named.length > 0 }
    const known = [...ownNames(), ...namesOn(asked), ...vms.known]
    if (remote) {
      const { name, user = '' } = parseHost(where)
      known.push({ kind: 'Host', value: where }, { kind: 'Host', value: name })
      known.push({ kind: 'User', value: user })
    }
    const folder = bundle ? where.slice('bundle:'.length) : storage
    if (folder !== undefined) known.push({ kind: 'Path', value: folder })
    // whatever the host is that it is carried to, it is asked there: Deploy.ps1 -DryRun
    const found = findings(examined, known).filter(({ group }) => !bundle || group === 'vms')
    return {
      ready: found.every(({ level }) => level !== 'problem'),
      crawls: crawls(examined),
      below: asked.facts?.hypervisor ?? null,
      findings: found,
    }
  } finally {
    await host?.close()
  }
}

interface Asked {
  facts: HostFacts | null
  check: CheckHostResult | null
  network: Network | null
  silence: string
}

const NOTHING: Asked = { facts: null, check: null, network: null, silence: '' }

async function ask({ ps }: Host, storage: string | undefined): Promise<Asked> {
  const asked = { ...NOTHING }
  const message = (error: unknown) => error instanceof Error ? error.message : String(error)
  try {
    asked.facts = await readHost(storage, ps)
    asked.check = await checkHost({ storage, space: 0 }, ps)
  } catch (error) {
    return { ...asked, silence: message(error) }
  }
  // what it draws is Hyper-V's
  if (asked.check.hyperV) {
    await readNetwork(ps).then(
      (network) => asked.network = network,
      (error) => asked.silence = message(error),
    )
  }
  return asked
}

type Rehearsal = Pick<ExaminedVm, 'plan' | 'refusals'>

async function examineVms(
  named: readonly string[],
  look: (source: string) => Promise<Rehearsal>,
): Promise<{ found: ExaminedVm[] | null | string; known: Private[] }> {
  const known: Private[] = named.map((value) => ({ kind: 'VM', value }))
  let listed: string[] | null = null
  try {
    listed = await listVms()
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    if (named.length === 0) return { found: message, known }
  }
  // an error may name them all
  known.push(...(listed ?? []).map((value): Private => ({ kind: 'VM', value })))
  const sources = named.length > 0 ? named : listed
  if (sources === null) return { found: null, known }
  const found: ExaminedVm[] = []
  for (const source of sources) {
    // what it cannot read, the rehearsal refuses for the same reason
    const vm = await inspectVm({ source: [source] }).catch(() => undefined)
    if (vm) known.push(...namesIn(vm))
    const { plan, refusals } = await look(source)
    if (plan) known.push({ kind: 'VM', value: plan.slug })
    found.push({ name: vm?.name ?? source, source, state: vm?.state, plan, refusals })
  }
  return { found, known }
}

/** A migration up to the question whether to go ahead, which is answered with no. */
async function rehearse(
  source: string,
  { to, storage, state }: { to: string; storage: string | undefined; state: string | undefined },
  host: Host | undefined,
): Promise<Rehearsal> {
  // it is never made, and only its volume is looked at
  const dir = join(tmpdir(), `doctor-${randomUUID()}`)
  const target = to === 'bundle' ? `bundle:${dir}` : to
  let plan: Plan | null = null
  let refusals: string[] = []
  try {
    await migrate({ source: [source], to: target, storage, state }, {
      screen: (event) => {
        if (event.event === 'plan') ({ plan, refusals } = event)
      },
      agree: () => Promise.resolve(false),
      // the host is asked about the next VM, too
      host: () => ({ ...host as Host, close: () => Promise.resolve() }),
    })
  } catch (error) {
    if (refusals.length === 0) {
      refusals = (error instanceof Error ? error.message : String(error)).split('\n')
    }
  }
  return { plan, refusals: [...new Set(refusals)] }
}

/** What is this machine's own, and is in messages by chance. */
function ownNames(): Private[] {
  const { username } = userInfo()
  return [
    { kind: 'Path', value: homedir() },
    { kind: 'Path', value: resolve('.') },
    { kind: 'User', value: username },
    { kind: 'Host', value: hostname() },
  ]
}

function namesOn({ facts, check, network }: Asked): Private[] {
  const names: Private[] = []
  const add = (kind: Private['kind'], ...values: (string | null | undefined)[]) =>
    names.push(...values.filter((value) => value != null).map((value) => ({ kind, value })))
  for (const { name, description } of facts?.adapters ?? []) {
    add('Adapter', name)
    add('Name', description)
  }
  add('Host', check?.host.name, network?.host)
  add('Path', check?.host.diskFolder)
  for (const { name, adapter } of check?.switches ?? []) {
    add('Switch', name)
    add('Name', adapter)
  }
  for (const { name, description } of network?.adapters ?? []) {
    add('Adapter', name)
    add('Name', description)
  }
  for (const { name, vm } of network?.ports ?? []) {
    add('Adapter', name)
    add('VM', vm?.name)
  }
  add('NAT', ...(network?.nats ?? []).map(({ name }) => name))
  return names
}

function namesIn(
  { name, disks, nics, snapshots, sharedFolders, removable }: VmDescription,
): Private[] {
  const paths = [...disks.flatMap(({ path, chain }) => [path, ...chain]), ...removable]
  return [
    { kind: 'VM', value: name },
    ...paths.map((value): Private => ({ kind: 'Path', value })),
    ...sharedFolders.map(({ path }): Private => ({ kind: 'Path', value: path })),
    ...[...sharedFolders.map((folder) => folder.name), ...snapshots]
      .map((value): Private => ({ kind: 'Name', value })),
    ...nics.flatMap(({ network = '' }): Private[] =>
      network ? [{ kind: 'Name', value: network }] : []
    ),
  ]
}

async function writeReport(to: string, answer: Answer): Promise<void> {
  const path = resolve(to)
  const temporary = `${path}.${randomBytes(4).toString('hex')}.partial`
  try {
    await writeFile(temporary, reportText(answer), { flag: 'wx' })
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true })
    const why = (cause as NodeJS.ErrnoException).code ?? String(cause)
    throw new Error(
      `Cannot write the report "${path}": ${why}. Name a file in a folder that is there: --report FILE.md`,
      { cause },
    )
  }
}

/** As a person may see it, who owns what is private in it. */
function shown({ ready, crawls, findings }: Answer): Diagnosis {
  return {
    version: 1,
    ready,
    crawls,
    findings: findings.map((finding) => ({
      ...finding,
      title: reveal(finding.title),
      evidence: reveal(finding.evidence),
      meaning: reveal(finding.meaning),
      command: reveal(finding.command),
    })),
  }
}

const options: Record<string, Option> = {
  vm: {
    type: 'string',
    array: true,
    positional: true,
    describe: 'VMs of VirtualBox by name, or files [default: all of VirtualBox]',
    example: 'Win10',
  },
  host: {
    type: 'string',
    alias: 'to',
    describe: 'local, ssh://[user@]host[:port], or bundle:DIR [default: local]',
  },
  storage: { type: 'string', describe: 'The host’s folder for disks' },
  report: {
    type: 'string',
    describe: 'Write a Markdown file with nothing private in it, for an issue tracker',
    example: 'report.md',
  },
  picture: { type: 'boolean', describe: 'Draw the two stacks, type 1 and type 2' },
  state: { type: 'string', describe: 'Folder for the journals of runs' },
  json: { type: 'boolean', describe: 'One JSON document on standard output, for programs' },
}

const given = await commandLine<DoctorOptions & { picture?: boolean; json?: boolean }>(
  import.meta,
  'Say what a host can do and what stands in the way, before anything. Changes nothing. ' +
    'Exit code 0 when a migration would go through, 1 when not',
  options,
)
if (given) {
  const { picture, json, ...wanted } = given
  try {
    const answer = await examine(wanted, {})
    if (json) {
      console.log(
        JSON.stringify({
          ...shown(answer),
          ...(picture && { picture: drawStacks(answer.below) }),
        }),
      )
    } else {
      const { isTTY = false, columns = 80 } = process.stdout
      const colour = isTTY && !process.env.NO_COLOR && process.env.TERM !== 'dumb'
      console.log(screenText(answer, { columns, colour, picture: picture ?? false }))
    }
    if (wanted.report !== undefined) await writeReport(wanted.report, answer)
    if (!answer.ready) process.exitCode = 1
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    textScreen({ live: false })({ event: 'error', message })
    process.exitCode = 1
  }
}
