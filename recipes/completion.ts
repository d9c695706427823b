#!/usr/bin/env zx
/** Write what makes a shell complete the options of all tasks and recipes. */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { command, DESCRIBE, kebab, type Option } from '../tasks/task.ts'

export interface CompletionOptions {
  shell: 'bash' | 'powershell'
  /** @default all that the kit has */
  commands?: Command[] | undefined
}

/** A task or recipe: its words, and those that follow one of them. */
export interface Command {
  /** E.g. `recipes/migrate.ts`. */
  path: string
  words: string[]
  values: Record<string, string[]>
}

/**
 * A script for the shell's profile, which completes after `npx zx recipes/migrate.ts` and the like the
 * options and what they may be; elsewhere, and for files, the shell does what it always does. It holds all
 * options, so that a key press starts no program; write it again when the kit is new.
 */
export async function completion({ shell, commands }: CompletionOptions): Promise<string> {
  return (shell === 'bash' ? forBash : forPowerShell)(commands ?? await describeCommands())
}

/** Asks each task and recipe for its options, which takes seconds. */
export async function describeCommands(): Promise<Command[]> {
  const root = join(import.meta.dirname as string, '..')
  const paths: string[] = []
  for (const folder of ['recipes', 'tasks']) {
    for (const file of (await fs.readdir(join(root, folder))).sort()) {
      const isCommand = file.endsWith('.ts') && !['task.ts', 'guard.ts'].includes(file)
      if (isCommand) paths.push(`${folder}/${file}`)
    }
  }
  const queue = [...paths.entries()]
  const commands: Command[] = []
  await Promise.all(Array.from({ length: availableParallelism() }, async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const [index, path] = next
      commands[index] = await describe(root, path)
    }
  }))
  return commands
}

async function describe(root: string, path: string): Promise<Command> {
  const runtime = 'Deno' in globalThis ? ['run', '-A'] : []
  const args = [...runtime, join(root, path), DESCRIBE]
  const { stdout } = await promisify(execFile)(process.execPath, args, { windowsHide: true })
  const { options } = JSON.parse(stdout) as { options: Record<string, Option> }
  const words = ['--help']
  const values: Command['values'] = {}
  for (const [name, { positional, hidden, type, choices = [] }] of Object.entries(options)) {
    const option = `--${kebab(name)}`
    const texts = choices.map(String)
    if (hidden) continue
    if (positional) {
      words.push(...texts)
      continue
    }
    words.push(option)
    if (type !== 'boolean') values[option] = texts
    else words.push(`--no-${kebab(name)}`)
  }
  return { path, words, values }
}

// the words are the kit's own, of letters, digits and dashes
function forBash(commands: Command[]): string {
  return [
    '# options of the tasks and recipes of vbox-to-hyperv: source this in ~/.bashrc',
    '_vbox_to_hyperv() {',
    '  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} part path= words= values=',
    '  for part in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
    '    case $part in *recipes/*.ts) path=recipes/${part##*/} ;; *tasks/*.ts) path=tasks/${part##*/} ;; esac',
    '  done',
    '  case "$path $before" in',
    ...commands.flatMap(({ path, values }) =>
      Object.entries(values).map(([option, texts]) =>
        `    '${path} ${option}') values='${texts.join(' ')}'; words=- ;;`
      )
    ),
    '  esac',
    '  [ -n "$words" ] || case $path in',
    ...commands.map(({ path, words }) => `    '${path}') values='${words.join(' ')}' ;;`),
    '  esac',
    '  COMPREPLY=($(compgen -W "$values" -- "$word"))',
    '}',
    'complete -o bashdefault -o default -F _vbox_to_hyperv npx zx',
  ].join('\n')
}

function forPowerShell(commands: Command[]): string {
  const list = (texts: string[]) => `@(${texts.map((text) => `'${text}'`).join(', ')})`
  return [
    '# options of the tasks and recipes of vbox-to-hyperv: dot-source this in $PROFILE',
    'Register-ArgumentCompleter -Native -CommandName npx, npx.cmd, zx, zx.cmd -ScriptBlock {',
    '  param($word, $line, $position)',
    '  $values = @{',
    ...commands.flatMap(({ path, values }) =>
      Object.entries(values).map(([option, texts]) => `    '${path} ${option}' = ${list(texts)}`)
    ),
    '  }',
    '  $words = @{',
    ...commands.map(({ path, words }) => `    '${path}' = ${list(words)}`),
    '  }',
    '  $given = @($line.CommandElements | Where-Object { $_.Extent.EndOffset -lt $position } | ForEach-Object { [string]$_.Extent.Text.Trim([char[]](34, 39)) })',
    '  $path = @($given | ForEach-Object { if ($_ -match \'(recipes|tasks)[\\\\/]([a-z-]+[.]ts)$\') { "$($Matches[1])/$($Matches[2])" } })[-1]',
    '  if (-not $path) { return }',
    '  $of = "$path $($given[-1])"',
    '  $known = if ($values.ContainsKey($of)) { $values[$of] } else { $words[$path] }',
    '  $known | Where-Object { $_.StartsWith($word) } | ForEach-Object { New-Object System.Management.Automation.CompletionResult $_ }',
    '}',
  ].join('\n')
}

await command(
  import.meta,
  'Write what makes a shell complete the options of all tasks and recipes: ' +
    'npx zx recipes/completion.ts bash > ~/.vbox-to-hyperv.bash',
  {
    shell: {
      type: 'string',
      positional: true,
      demandOption: true,
      choices: ['bash', 'powershell'],
      describe: 'Whose profile reads it',
      example: 'bash',
    },
  },
  completion,
)
