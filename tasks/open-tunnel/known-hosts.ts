/** OpenSSH's known_hosts: whose key a server's is (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { appendFile, mkdir, readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import process from 'node:process'

export interface KnownKey {
  type: string
  key: Buffer
  marker: '' | 'revoked' | 'cert-authority'
  file: string
  /** From 1. */
  line: number
}

/** The files that OpenSSH reads, the one that it writes first. */
export function knownHostsFiles(): string[] {
  const home = join(homedir(), '.ssh')
  const all = process.platform === 'win32'
    ? join(process.env.ProgramData ?? 'C:\\ProgramData', 'ssh', 'ssh_known_hosts')
    : '/etc/ssh/ssh_known_hosts'
  return [join(home, 'known_hosts'), join(home, 'known_hosts2'), all]
}

/** The name that a server has in known_hosts. */
export function hostName(host: string, port: number): string {
  const name = host.toLowerCase()
  return port === 22 ? name : `[${name}]:${port}`
}

/** All lines that speak of a server. A line that cannot be read is passed over, as OpenSSH does. */
export async function knownKeys(
  files: readonly string[],
  host: string,
  port: number,
): Promise<KnownKey[]> {
  const name = hostName(host, port)
  const found: KnownKey[] = []
  for (const file of files) {
    let text: string
    try {
      text = await readFile(file, 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue
      throw error
    }
    text.split(/\r?\n/).forEach((line, index) => {
      const words = line.trim().split(/[ \t]+/)
      if (words[0] === '' || words[0]?.startsWith('#')) return
      const marker = words[0]?.startsWith('@') ? (words.shift() as string).slice(1) : ''
      const [hosts = '', type = '', base64 = ''] = words
      if (marker !== '' && marker !== 'revoked' && marker !== 'cert-authority') return
      if (!isOf(hosts, name)) return
      const key = Buffer.from(base64, 'base64')
      if (keyType(key) === type) found.push({ type, key, marker, file, line: index + 1 })
    })
  }
  return found
}

/** What known_hosts say of a key that a server shows. */
export function judge(
  known: readonly KnownKey[],
  key: Buffer,
): { verdict: 'known' | 'unknown' | 'changed' | 'revoked'; by?: KnownKey } {
  const same = known.filter((entry) => entry.key.equals(key))
  const revoked = same.find(({ marker }) => marker === 'revoked')
  if (revoked) return { verdict: 'revoked', by: revoked }
  const plain = known.filter(({ marker }) => marker === '')
  const by = same.find(({ marker }) => marker === '')
  if (by) return { verdict: 'known', by }
  return plain[0] ? { verdict: 'changed', by: plain[0] } : { verdict: 'unknown' }
}

/** Adds a key, as `ssh` does when its user says yes. */
export async function remember(
  file: string,
  host: string,
  port: number,
  key: Buffer,
): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 })
  const before = await readFile(file).catch(() => Buffer.alloc(0))
  // a last line without its end would take this one in
  const start = before.length > 0 && before.at(-1) !== 10 ? '\n' : ''
  const line = `${hostName(host, port)} ${keyType(key)} ${key.toString('base64')}\n`
  // another tunnel may have come through the same host meanwhile
  if (`\n${before}`.includes(`\n${line}`)) return
  await appendFile(file, `${start}${line}`, { mode: 0o600 })
}

/** As `ssh-keygen -l` writes it. */
export function fingerprint(key: Buffer): string {
  return `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`
}

/** The name of a key's kind, with which its own bytes begin; empty for what is no key. */
export function keyType(key: Buffer): string {
  const length = key.length < 4 ? 0 : key.readUInt32BE(0)
  return length > 0 && length < 64 ? key.toString('latin1', 4, 4 + length) : ''
}

/** Whether a list of hosts has a name: patterns, exceptions (!), or one hashed name. */
function isOf(hosts: string, name: string): boolean {
  const [, salt, hash] = /^\|1\|([^|]+)\|([^|]+)$/.exec(hosts) ?? []
  if (salt !== undefined && hash !== undefined) {
    const made = createHmac('sha1', Buffer.from(salt, 'base64')).update(name).digest()
    const told = Buffer.from(hash, 'base64')
    return told.length === made.length && timingSafeEqual(told, made)
  }
  const patterns = hosts.split(',')
  const fits = (pattern: string) => matches(pattern.toLowerCase(), name)
  if (patterns.some((pattern) => pattern.startsWith('!') && fits(pattern.slice(1)))) return false
  return patterns.some((pattern) => !pattern.startsWith('!') && fits(pattern))
}

/** `*` any characters, `?` one. Without a regular expression, in which a long line could take forever. */
function matches(pattern: string, name: string): boolean {
  let at = 0
  let star = -1
  let from = 0
  let n = 0
  while (n < name.length) {
    if (pattern[at] === '*') {
      star = at++
      from = n
    } else if (at < pattern.length && (pattern[at] === '?' || pattern[at] === name[n])) {
      at++
      n++
    } else if (star >= 0) {
      at = star + 1
      n = ++from
    } else return false
  }
  while (pattern[at] === '*') at++
  return at === pattern.length
}
