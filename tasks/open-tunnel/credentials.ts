/** Who signs in at an SSH hop, and by what: agent, keys and passwords, in OpenSSH's order. */
import { readFile } from 'node:fs/promises'
import { homedir, userInfo } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import type { AnyAuthMethod, ParsedKey } from 'ssh2'
import { readCredential, type Secret } from '../task.ts'
import type { Hop, WayOptions } from './hops.ts'
import ssh2 from './ssh2.ts'

export interface SignIn {
  username: string
  methods: AnyAuthMethod[]
  /** What is offered and what is not, for the error when none is taken. */
  notes: string[]
}

/** Where an agent listens: SSH_AUTH_SOCK, on Windows the service's pipe. */
export function agentSocket(): string | undefined {
  if (process.env.SSH_AUTH_SOCK) return process.env.SSH_AUTH_SOCK
  return process.platform === 'win32' ? '\\\\.\\pipe\\openssh-ssh-agent' : undefined
}

export async function signIn(hop: Hop, options: WayOptions): Promise<SignIn> {
  const username = hop.user ?? userInfo().username
  const methods: AnyAuthMethod[] = []
  const notes: string[] = []
  const named = hop.identity ? [hop.identity] : options.identity
  const usual = ['id_ed25519', 'id_ecdsa', 'id_rsa'].map((name) => join(homedir(), '.ssh', name))
  if (options.agent && named.length === 0) {
    methods.push({ type: 'agent', username, agent: options.agent })
    notes.push('the keys of the agent')
  }
  for (const file of named.length > 0 ? named : usual) {
    const path = file.replace(/^~(?=$|[/\\])/, () => homedir())
    let text: Buffer
    try {
      text = await readFile(path)
    } catch (error) {
      if (named.length === 0) continue
      throw new Error(
        `${hop.text}: the key "${path}" cannot be read (${
          (error as NodeJS.ErrnoException).code
        }). Name another by --identity FILE`,
        { cause: error },
      )
    }
    const key = await readKey(path, text, named.length > 0, hop, options)
    if (typeof key === 'string') {
      notes.push(key)
      continue
    }
    methods.push({ type: 'publickey', username, key })
    notes.push(`the key "${path}"`)
  }
  if (options.agent && named.length > 0) {
    methods.push({ type: 'agent', username, agent: options.agent })
    notes.push('the keys of the agent')
  }
  if (hop.password) {
    const password = await options.secret(hop.password, `password for ${hop.text}`)
    methods.push({ type: 'password', username, password: password.reveal() })
    // a server with PAM asks for the password so
    methods.push({
      type: 'keyboard-interactive',
      username,
      prompt: (_name, _instructions, _language, prompts, finish) =>
        finish(prompts.map(() => password.reveal())),
    })
    notes.push('the password')
  }
  return { username, methods, notes }
}

/** A key, or why it is none. One that was named and cannot be used is an error. */
async function readKey(
  path: string,
  text: Buffer,
  named: boolean,
  hop: Hop,
  options: WayOptions,
): Promise<ParsedKey | string> {
  const parse = (passphrase?: Secret) => {
    const parsed = ssh2.utils.parseKey(text, passphrase?.reveal())
    return Array.isArray(parsed) ? parsed[0] as ParsedKey : parsed as ParsedKey | Error
  }
  const first = parse()
  if (!(first instanceof Error)) return first
  if (!/encrypted|passphrase/i.test(first.message)) {
    if (!named) return `not the key "${path}" (${first.message})`
    throw new Error(
      `${hop.text}: the key "${path}" cannot be used: ${first.message}. Run: ssh-add "${path}", ` +
        'or run again with --engine ssh',
    )
  }
  const way = hop.passphrase ?? (named && process.stdin.isTTY ? 'prompt' : undefined)
  if (way === undefined) {
    const note = `the key "${path}" is encrypted. Run: ssh-add "${path}", or add ` +
      '?passphrase=env:NAME to the hop'
    if (!named || options.agent) return `not ${note}`
    throw new Error(`${hop.text}: ${note}`)
  }
  const key = parse(await options.secret(way, `passphrase of ${path}`))
  if (key instanceof Error) {
    const why = /passphrase|integrity|authenticate/i.test(key.message)
      ? 'the passphrase is wrong'
      : `${key.message}. Run: ssh-add "${path}", or run again with --engine ssh`
    throw new Error(`${hop.text}: the key "${path}" cannot be used: ${why}`)
  }
  return key
}

/**
 * Takes a secret from where its hop says; the same one once, and one question after the other.
 * @param asking hears when a question is on the terminal, and when it is not any more
 */
export function secrets(asking: (now: boolean) => void = () => {}): WayOptions['secret'] {
  const asked = new Map<string, Promise<Secret>>()
  let last: Promise<unknown> = Promise.resolve()
  const take = async (way: string, what: string) => {
    if (way === 'prompt') asking(true)
    try {
      return (await readCredential(way, what)).password
    } finally {
      if (way === 'prompt') asking(false)
    }
  }
  return (way, what) => {
    const key = way === 'prompt' ? what : way
    let answer = asked.get(key)
    if (!answer) {
      answer = last.then(() => take(way, what))
      last = answer.catch(() => {})
      asked.set(key, answer)
    }
    return answer
  }
}
