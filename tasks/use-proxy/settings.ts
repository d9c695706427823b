/** Settings of programs, each read and written in its own form: a key of git, lines of a file, a value of the registry. */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { dirname } from 'node:path'
import process from 'node:process'
import { isDeepStrictEqual } from 'node:util'
import type { PowerShell } from '../task.ts'

export type Program = 'env' | 'git' | 'npm' | 'pip' | 'docker' | 'system' | 'pac'

/** A value as JSON holds it; null and [] where there is none. */
export type Held = null | string | string[] | { [name: string]: string | number }

/** One thing that a program reads. */
export type Setting =
  & {
    program: Program
    /** What it is to be while the proxy is in use. */
    now: Held
  }
  & (
    | { kind: 'git'; key: string; home: string | null }
    /** All lines that match, of the part of the file below `[section]`, or above any. */
    | { kind: 'lines'; path: string; match: string; section: string | null }
    | { kind: 'docker'; path: string }
    /** A file that is the kit's own. */
    | { kind: 'file'; path: string }
    | { kind: 'registry'; key: string; name: string }
  )

/** A setting with what it was, as the user's data folder keeps it. */
export type Kept = Setting & { was: Held; shape: Shape }

/** What a file was like, for an undo that leaves it as it was, byte for byte. */
export interface Shape {
  existed: boolean
  /** Whether its last line ended. */
  ended: boolean
  section: boolean
}

/** The same setting, whatever it is set to. */
export function sameSetting(one: Setting, other: Setting): boolean {
  return one.program === other.program && where(one) === where(other)
}

/** Where a setting is, for people. */
export function where(setting: Setting): string {
  if (setting.kind === 'git') return `git config --global ${setting.key}`
  if (setting.kind === 'registry') return `HKCU\\${setting.key}: ${setting.name}`
  return setting.path
}

export const same = (one: Held, other: Held) => isDeepStrictEqual(one, other)

export async function read(setting: Setting, ps: PowerShell | null): Promise<Held> {
  switch (setting.kind) {
    case 'git':
      return await readGit(setting)
    case 'lines': {
      const { lines } = await readLines(setting.path)
      return matching(lines, setting).map((index) => lines[index] as string)
    }
    case 'docker': {
      const { json } = await readDocker(setting.path)
      return (json.proxies?.default ?? null) as Held
    }
    case 'file':
      return await fs.readFile(setting.path, 'utf8').catch(absent)
    case 'registry':
      return await readRegistry(setting, need(ps))
  }
}

/** What a setting's file is like, before it is changed. */
export async function shapeOf(setting: Setting): Promise<Shape> {
  if (setting.kind !== 'lines' && setting.kind !== 'docker' && setting.kind !== 'file') {
    return { existed: true, ended: true, section: true }
  }
  const text = await fs.readFile(setting.path, 'utf8').catch(absent)
  const section = setting.kind !== 'lines' || setting.section === null ||
    part((text ?? '').split(/\r?\n/), setting.section) !== undefined
  return { existed: text !== null, ended: text === null || /\n$/.test(text), section }
}

export async function write(
  setting: Setting,
  value: Held,
  shape: Shape,
  ps: PowerShell | null,
): Promise<void> {
  switch (setting.kind) {
    case 'git':
      return await writeGit(setting, value as string[])
    case 'lines':
      return await writeLines(setting, value as string[], shape)
    case 'docker':
      return await writeDocker(setting.path, value as Record<string, string> | null, shape)
    case 'file':
      return await replace(setting.path, value as string | null)
    case 'registry':
      return await writeRegistry(setting, value as RegistryValue | null, need(ps))
  }
}

// --- git ---

type Of<K extends Setting['kind']> = Extract<Setting, { kind: K }>

async function readGit(setting: Of<'git'>): Promise<string[]> {
  const { code, stdout, stderr } = await git(setting, '-z', '--get-all', setting.key)
  if (code === 1) return [] // there is none
  if (code !== 0) throw new Error(`Cannot read git’s "${setting.key}": ${stderr}`)
  return stdout.split('\0').slice(0, -1)
}

async function writeGit(setting: Of<'git'>, values: string[]): Promise<void> {
  const { key } = setting
  const [first, ...more] = values
  const steps = first === undefined
    ? [['--unset-all', key]]
    : [['--replace-all', key, first], ...more.map((value) => ['--add', key, value])]
  for (const args of steps) {
    const { code, stderr } = await git(setting, ...args)
    if (code !== 0) {
      throw new Error(
        `Cannot set git’s "${key}": ${stderr}. See what is wrong there. Run: git config --global --list`,
      )
    }
  }
}

/** `home` stands for another user's, with a configuration of its own. */
function git(
  { home }: Of<'git'>,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { XDG_CONFIG_HOME: _, GIT_CONFIG_GLOBAL: __, ...other } = process.env
  const env = home === null ? process.env : { ...other, HOME: home, USERPROFILE: home }
  return new Promise((resolve) => {
    execFile('git', ['config', '--global', ...args], { env }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 127
      resolve({ code, stdout, stderr: stderr.trim() || (error?.message ?? '') })
    })
  })
}

// --- lines of a file ---

interface Lines {
  /** The last one is empty where the file's last line ended. */
  lines: string[]
  eol: string
}

async function readLines(path: string): Promise<Lines> {
  const text = await fs.readFile(path, 'utf8').catch(absent) ?? ''
  return { lines: text.split(/\r?\n/), eol: text.includes('\r\n') ? '\r\n' : '\n' }
}

/** From and to, without its header; undefined where there is no such section. */
function part(lines: string[], section: string | null): [number, number] | undefined {
  const heads = lines.flatMap((line, index) => {
    const [, name] = /^\s*\[([^\]]*)\]\s*$/.exec(line) ?? []
    return name === undefined ? [] : [{ name: name.trim(), index }]
  })
  const at = section === null ? -1 : heads.find(({ name }) => name === section)?.index
  if (at === undefined) return undefined
  const next = heads.find(({ index }) => index > at)
  return [at + 1, next?.index ?? lines.length]
}

function matching(lines: string[], { match, section }: Of<'lines'>): number[] {
  const [from, to] = part(lines, section) ?? [0, 0]
  const pattern = new RegExp(match)
  return lines.flatMap((line, index) =>
    index >= from && index < to && pattern.test(line) ? [index] : []
  )
}

/** Puts each line where one was; more of them follow, or end the section. */
async function writeLines(setting: Of<'lines'>, wanted: string[], shape: Shape): Promise<void> {
  const { path, section } = setting
  const { lines, eol } = await readLines(path)
  const old = matching(lines, setting)
  old.slice(0, wanted.length).forEach((at, index) => lines[at] = wanted[index] as string)
  const more = wanted.slice(old.length)
  if (more.length > 0) {
    if (lines.at(-1) !== '') lines.push('')
    if (section !== null && part(lines, section) === undefined) {
      lines.splice(-1, 0, `[${section}]`)
    }
    const [from, to] = part(lines, section) as [number, number]
    // before the empty lines that part it from the next
    let at = old.length > 0 ? (old.at(-1) as number) + 1 : to
    while (old.length === 0 && at > from && lines[at - 1]?.trim() === '') at--
    lines.splice(at, 0, ...more)
  }
  for (const at of old.slice(wanted.length).reverse()) lines.splice(at, 1)
  if (wanted.length === 0) {
    const [from, to] = part(lines, section) ?? [0, 0]
    const empty = lines.slice(from, to).every((line) => line.trim() === '')
    if (section !== null && !shape.section && empty && from > 0) lines.splice(from - 1, 1)
    if (!shape.existed && lines.every((line) => line === '')) return await replace(path, null)
  }
  const back = !same(wanted, setting.now)
  if (back && !shape.ended && lines.length > 1 && lines.at(-1) === '') lines.pop()
  await replace(path, lines.join(eol))
}

// --- Docker's JSON ---

interface Docker {
  proxies?: { default?: Record<string, string>; [name: string]: unknown }
  [name: string]: unknown
}

async function readDocker(path: string): Promise<{ json: Docker; indent: string }> {
  const text = await fs.readFile(path, 'utf8').catch(absent)
  if (text === null || text.trim() === '') return { json: {}, indent: '\t' }
  try {
    const json = JSON.parse(text) as Docker
    if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new Error('a list')
    // Docker itself writes tabs
    return { json, indent: /^[{]\r?\n([ \t]+)/.exec(text)?.[1] ?? '\t' }
  } catch (cause) {
    throw new Error(
      `Cannot set Docker’s proxy: "${path}" is no JSON object. Mend it, or run again without docker in --for`,
      { cause },
    )
  }
}

async function writeDocker(
  path: string,
  value: Record<string, string> | null,
  shape: Shape,
): Promise<void> {
  const { json, indent } = await readDocker(path)
  if (value !== null) json.proxies = { ...json.proxies, default: value }
  else if (json.proxies) {
    delete json.proxies.default
    if (Object.keys(json.proxies).length === 0) delete json.proxies
    if (!shape.existed && Object.keys(json).length === 0) return await replace(path, null)
  }
  await replace(path, `${JSON.stringify(json, null, indent)}${shape.ended ? '\n' : ''}`)
}

// --- the registry of this user ---

interface RegistryValue {
  kind: string
  value: string | number
  [name: string]: string | number
}

async function readRegistry(
  { key: path, name: value }: Of<'registry'>,
  ps: PowerShell,
): Promise<RegistryValue | null> {
  const { stdout } = await ps`
    $path = ${path}
    $name = ${value}
    $user = [Microsoft.Win32.RegistryKey]::OpenBaseKey('CurrentUser', 'Default')
    $key = $user.OpenSubKey($path, $false)
    $found = $null
    # a path in a variable stays the path that it is
    if ($null -ne $key) { $found = $key.GetValue($name, $null, 'DoNotExpandEnvironmentNames') }
    if ($null -eq $found) { 'null' }
    else { ConvertTo-Json -Compress -Depth 2 -InputObject @{ kind = [string]$key.GetValueKind($name); value = $found } }`
  const found = JSON.parse(stdout) as RegistryValue | null
  return found && { kind: found.kind, value: found.value }
}

/**
 * Windows tells the programs that run: of variables by WM_SETTINGCHANGE, which .NET sends whenever it
 * sets one of the user's, of proxies by two options of WinINet.
 */
async function writeRegistry(
  { key: path, name }: Of<'registry'>,
  value: RegistryValue | null,
  ps: PowerShell,
): Promise<void> {
  await ps`
    $path = ${path}
    $name = ${name}
    $kind = ${value?.kind ?? null}
    $value = ${value?.value ?? null}
    $user = [Microsoft.Win32.RegistryKey]::OpenBaseKey('CurrentUser', 'Default')
    $key = $user.CreateSubKey($path)
    if ($null -eq $kind) { $key.DeleteValue($name, $false) } else { $key.SetValue($name, $value, $kind) }
    $key.Dispose()
    # assumption: one that is not there is announced too, as .NET's source has it
    if ($path -eq 'Environment') { [Environment]::SetEnvironmentVariable('VBOX_TO_HYPERV_NONE', $null, 'User') }
    elseif ([Environment]::OSVersion.Platform -eq 'Win32NT') {
      $source = '[DllImport("wininet.dll")] public static extern bool InternetSetOption(IntPtr session, int option, IntPtr value, int length);'
      $inet = Add-Type -Namespace VBoxToHyperV -Name WinINet -MemberDefinition $source -PassThru
      foreach ($option in 39, 37) { $null = $inet::InternetSetOption([IntPtr]::Zero, $option, [IntPtr]::Zero, 0) }
    }`
}

function need(ps: PowerShell | null): PowerShell {
  if (ps) return ps
  throw new Error(
    'Cannot set this on a machine without Windows. Run the same on Windows, or in WSL',
  )
}

// --- files ---

const absent = (error: NodeJS.ErrnoException): null => {
  if (error.code === 'ENOENT') return null
  throw error
}

/** Writes a file aside and puts it in its place, through links, with the rights it had; null removes it. */
export async function replace(path: string, text: string | null, mode?: number): Promise<void> {
  const target = await fs.realpath(path).catch(() => path)
  if (text === null) return await fs.remove(target)
  await fs.ensureDir(dirname(target))
  const had = await fs.stat(target).then((stat) => stat.mode & 0o777, () => undefined)
  const aside = `${target}.${process.pid}.new`
  try {
    // npm's and Docker's may hold passwords
    await fs.writeFile(aside, text, { mode: mode ?? had ?? 0o644 })
    await fs.chmod(aside, mode ?? had ?? 0o644)
    await fs.rename(aside, target)
  } finally {
    await fs.remove(aside)
  }
}
