/**
 * A WSL of a test's own: `wslpath` and `powershell.exe` on PATH that behave as Microsoft's (its init is
 * open source: microsoft/WSL, src/linux/init/wslpath.cpp and util.cpp). Drive C is a folder, mounted
 * elsewhere than in /mnt, as `[automount] root=` of wsl.conf does. PowerShell is the real one, on which
 * paths of Windows are found in that folder. Run as a program this file is that powershell.exe.
 */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { delimiter, join } from 'node:path'
import process from 'node:process'

export interface Wsl {
  /** Where drive C is mounted. */
  drive: string
  /** How often PowerShell was started. */
  starts: () => Promise<number>
  /** The scripts that PowerShell was given, as they came. */
  scripts: () => Promise<string[]>
  /** Ends it, in `process.env` too. */
  close: () => void
}

/** Makes this process one in WSL until `close`; `env` comes along. */
export async function wsl(dir: string, env: NodeJS.ProcessEnv = {}): Promise<Wsl> {
  const mounts = join(dir, 'windows')
  const drive = join(mounts, 'c')
  const programs = join(dir, 'programs')
  const log = join(dir, 'scripts.jsonl')
  await fs.ensureDir(drive)
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const self = [process.execPath, ...runtime, import.meta.filename as string].map(quote).join(' ')
  await program(join(programs, 'powershell.exe'), `exec ${self} "$@"`)
  await program(join(programs, 'wslpath'), WSLPATH)
  const changed: NodeJS.ProcessEnv = {
    ...env,
    PATH: [programs, process.env.PATH].join(delimiter),
    POWERSHELL: undefined,
    WSL_DISTRO_NAME: 'Ubuntu',
    TEST_MOUNTS: mounts,
    TEST_SCRIPTS: log,
  }
  const before = Object.fromEntries(Object.keys(changed).map((name) => [name, process.env[name]]))
  assign(changed)
  const entries = async (): Promise<(string | null)[]> => {
    const lines = await fs.readFile(log, 'utf8').catch(() => '')
    return lines.split('\n').filter(Boolean).map((line) => JSON.parse(line))
  }
  return {
    drive,
    starts: async () => (await entries()).filter((entry) => entry === null).length,
    scripts: async () => (await entries()).filter((entry) => entry !== null),
    close: () => assign(before),
  }
}

/** Writes a program of sh. */
export async function program(file: string, text: string): Promise<void> {
  await fs.outputFile(file, `#!/bin/sh\n${text}\n`, { mode: 0o755 })
}

function assign(env: NodeJS.ProcessEnv): void {
  for (const [name, value] of Object.entries(env)) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}

/**
 * A drive that is not mounted and a share fail with exit code 1. Windows names the Linux file system
 * `\\wsl.localhost\DISTRIBUTION`, unless nobody knows which this is.
 */
const WSLPATH = String.raw`
fail() { echo "wslpath: $path" >&2; exit 1; }
mode=$1 path=$2
distribution='\\wsl.localhost\'$WSL_DISTRO_NAME
case $mode in
-u)
  dos=$(printf %s "$path" | tr / '\\' | sed 's/^\\\\?\\//')
  case $dos in
  [Cc]:\\*) printf '%s\n' "$TEST_MOUNTS/c/$(printf %s "$dos" | cut -c 4- | tr '\\' /)" ;;
  "$distribution"\\*) printf '%s\n' "$(printf %s "$dos" | cut -c $((\${#distribution} + 1))- | tr '\\' /)" ;;
  *) fail ;;
  esac ;;
-w)
  real=$(realpath -m -- "$path")
  case $real in
  "$TEST_MOUNTS"/c) echo 'C:\' ;;
  "$TEST_MOUNTS"/c/*) printf 'C:%s\n' "$(printf %s "\${real#"$TEST_MOUNTS"/c}" | tr / '\\')" ;;
  *) [ "$WSL_DISTRO_NAME" ] || fail
    printf '%s%s\n' "$distribution" "$(printf %s "$real" | tr / '\\')" ;;
  esac ;;
*) fail ;;
esac`.replaceAll('\\${', '${')

/** Hands scripts on to the real PowerShell, with paths of Windows changed to where their files are. */
async function powershell(args: string[]): Promise<void> {
  const { TEST_MOUNTS: mounts = '', TEST_SCRIPTS: log = '' } = process.env
  fs.appendFileSync(log, 'null\n') // a start
  const child = spawn('pwsh', args, { stdio: ['pipe', 'inherit', 'inherit'] })
  const boot = Buffer.from(args.at(-1) ?? '', 'base64').toString('utf16le')
  let loop = Number(boot.match(/byte\[\] (\d+)/)?.[1])
  let text = ''
  process.stdin.on('data', (data: Buffer) => {
    const own = data.subarray(0, loop)
    loop -= own.length
    if (own.length > 0) child.stdin.write(own)
    const lines = (text + data.toString('latin1', own.length)).split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      const [more, limit, feeds, base64 = ''] = line.split(' ')
      const script = Buffer.from(base64, 'base64').toString('utf16le')
      fs.appendFileSync(log, `${JSON.stringify(script)}\n`)
      const here = script.replace(
        /'([a-z]):\\([^']*)'/gi,
        (_, drive, rest) => `'${join(mounts, drive.toLowerCase(), rest.replaceAll('\\', '/'))}'`,
      )
      child.stdin.write(
        `${more} ${limit} ${feeds} ${Buffer.from(here, 'utf16le').toString('base64')}\n`,
      )
    }
  })
  process.stdin.on('end', () => child.stdin.end())
  const [code] = await once(child, 'exit')
  process.exit(code ?? 1)
}

if (import.meta.main) await powershell(process.argv.slice(2))
