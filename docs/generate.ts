#!/usr/bin/env zx
/**
 * Writes a page for each task and recipe, of its docstrings, its types and its --help:
 *
 *     npm run docs               # writes docs/tasks/ and docs/recipes/
 *     npm run docs -- --check    # says which pages are not current, and exits with 1
 *
 * Types come from `deno doc --json`, whose format has a version of its own.
 */
import fs from 'fs-extra'
import { execFile } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { basename, join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'

const execute = promisify(execFile)
const root = join(import.meta.dirname as string, '..')
const VERSION = 2

interface Doc {
  version: number
  nodes: Record<string, { moduleDoc?: JsDoc; symbols: Symbol[] }>
}
interface Symbol {
  name: string
  declarations: Declaration[]
}
interface Declaration {
  location: { filename: string; line: number }
  declarationKind: string
  kind: string
  jsDoc?: JsDoc
  def: {
    properties?: Property[]
    tsType?: Type
    params?: { kind: string; name?: string; left?: { name?: string }; tsType?: Type }[]
    returnType?: Type
    isAsync?: boolean
    extends?: Type[]
  }
}
interface JsDoc {
  doc?: string
  tags?: { kind: string; value?: string; doc?: string }[]
}
interface Property {
  name: string
  optional?: boolean
  jsDoc?: JsDoc
  tsType?: Type
}
// deno-lint-ignore no-explicit-any -- a tree of many kinds, of which a reader sees `repr` at the least
type Type = any

/** A page as Markdown. */
async function page(folder: 'tasks' | 'recipes', name: string): Promise<string> {
  const path = `${folder}/${name}.ts`
  const deno = join(root, 'node_modules', '.bin', 'deno')
  const options = { cwd: root, maxBuffer: 64 * 1024 ** 2, env: { ...process.env, NO_COLOR: '1' } }
  const windows = process.platform === 'win32'
  const [{ stdout }, { stdout: help }, source] = await Promise.all([
    execute(deno, ['doc', '--json', path], { ...options, shell: windows }),
    execute(process.execPath, [path, '--help'], options),
    fs.readFile(join(root, path), 'utf8'),
  ])
  const doc = JSON.parse(stdout) as Doc
  if (doc.version !== VERSION) {
    throw new Error(`Cannot read deno doc: its format is ${doc.version}, not ${VERSION}`)
  }
  const [summary = ''] = source.match(/(?<=^#!.*\n\/\*\*)[^]*?(?=\*\/)/) ?? []
  const symbols = Object.values(doc.nodes).flatMap((node) => node.symbols ?? [])
    .flatMap((symbol) =>
      symbol.declarations.map((declaration) => ({ ...declaration, name: symbol.name }))
    )
    .filter(({ declarationKind }) => declarationKind === 'export')
  const functions = symbols.filter(({ kind }) => kind === 'function')
  const types = symbols.filter(({ kind }) => kind === 'interface' || kind === 'typeAlias')
  return [
    `# ${name}`,
    '',
    text(summary.replace(/^\s*\* ?/gm, '').trim()),
    '',
    `Source: [${path}](../../${path})`,
    '',
    '## Command',
    '',
    '```text',
    help.trim(),
    '```',
    ...(functions.length > 0 ? ['', '## Functions'] : []),
    ...functions.flatMap(({ name, def, jsDoc }) => [
      '',
      `### ${name}`,
      '',
      '```ts',
      `function ${name}(${(def.params ?? []).map(parameter).join(', ')}): ${type(def.returnType)}`,
      '```',
      ...(jsDoc?.doc ? ['', text(jsDoc.doc)] : []),
    ]),
    ...(types.length > 0 ? ['', '## Types'] : []),
    ...types.flatMap(({ name, def, jsDoc }) => [
      '',
      `### ${name}`,
      ...(jsDoc?.doc ? ['', text(jsDoc.doc)] : []),
      ...(def.extends?.length ? ['', `With what ${def.extends.map(code).join(', ')} has.`] : []),
      '',
      ...(def.properties ? table(def.properties) : [code(def.tsType)]),
    ]),
    '',
  ].join('\n')
}

function table(properties: Property[]): string[] {
  if (properties.length === 0) return []
  return [
    '| Field | Type | What it is |',
    '| --- | --- | --- |',
    ...properties.map(({ name, optional, tsType, jsDoc }) => {
      const tags = (jsDoc?.tags ?? []).map(({ value, doc }) => value ?? doc ?? '')
      const words = [jsDoc?.doc ?? '', ...tags].join(' ').replaceAll(/\s+/g, ' ').trim()
        .replace(/@default (.*)$/, 'Default: $1.')
      return `| \`${name}${optional ? '?' : ''}\` | ${cell(code(tsType))} | ${cell(words)} |`
    }),
  ]
}

function parameter(
  { kind, name, left, tsType }: NonNullable<Declaration['def']['params']>[number],
) {
  const known = kind === 'assign' ? left?.name : name
  const shown = known ?? (kind === 'object' || left ? 'options' : 'value')
  const typed = tsType ?? (left as { tsType?: Type } | undefined)?.tsType
  const said = typed ? type(typed) : shown === 'ps' ? 'PowerShell' : undefined
  return `${shown}${kind === 'assign' ? '?' : ''}${said ? `: ${said}` : ''}`
}

/** A type as TypeScript writes it. `| undefined` of an optional field says nothing that its `?` does not. */
function type(node: Type): string {
  if (!node) return 'void'
  switch (node.kind) {
    case 'keyword':
      return node.value
    case 'literal':
      return node.value.kind === 'string' ? `'${node.value.string}'` : node.repr
    case 'union':
      return node.value.filter((one: Type) => one.repr !== 'undefined').map(type).join(' | ')
    case 'intersection':
      return node.value.map(type).join(' & ')
    case 'array':
      return /[|& ]/.test(type(node.value)) ? `(${type(node.value)})[]` : `${type(node.value)}[]`
    case 'typeOperator':
      return `${node.value.operator} ${type(node.value.tsType)}`
    case 'parenthesized':
      return `(${type(node.value)})`
    case 'tuple':
      return `[${node.value.map(type).join(', ')}]`
    case 'typeRef': {
      const { typeName, typeParams } = node.value
      return typeParams?.length ? `${typeName}<${typeParams.map(type).join(', ')}>` : typeName
    }
    case 'typeLiteral': {
      const fields = node.value.properties ?? []
      const shown = fields.map(({ name, optional, tsType }: Property) =>
        `${name}${optional ? '?' : ''}: ${type(tsType)}`
      )
      return `{ ${shown.join('; ')} }`
    }
    case 'fnOrConstructor': {
      const { params = [], tsType } = node.value
      return `(${params.map(parameter).join(', ')}) => ${type(tsType)}`
    }
    case 'indexedAccess':
      return `${type(node.value.objType)}[${type(node.value.indexType)}]`
    case 'typeQuery':
      return `typeof ${node.value}`
    default:
      return node.repr || node.kind
  }
}

const code = (node: Type) => `\`${type(node)}\``
const cell = (words: string) => words.replaceAll('|', '\\|').replaceAll('\n', ' ') || '—'
/** Prose of a docstring, its links and its own lines kept. */
const text = (words: string) => words.replaceAll(/\{@link (\w+)\}/g, '`$1`').trim()

const check = process.argv.includes('--check')
const pages: [string, 'tasks' | 'recipes', string][] = []
for (const folder of ['tasks', 'recipes'] as const) {
  const files = (await fs.readdir(join(root, folder))).sort()
  for (const file of files) {
    // what every task is made of is no command
    if (!file.endsWith('.ts') || (folder === 'tasks' && ['task.ts', 'guard.ts'].includes(file))) {
      continue
    }
    const name = basename(file, '.ts')
    pages.push([join(root, 'docs', folder, `${name}.md`), folder, name])
  }
}
const stale: string[] = []
const queue = [...pages]
await Promise.all(Array.from({ length: availableParallelism() }, async () => {
  for (let next = queue.shift(); next; next = queue.shift()) {
    const [path, folder, name] = next
    const made = await page(folder, name)
    const there = await fs.readFile(path, 'utf8').catch(() => '')
    if (made === there.replaceAll('\r\n', '\n')) continue
    stale.push(`docs/${folder}/${name}.md`)
    if (!check) await fs.outputFile(path, made)
  }
}))
for (const folder of ['tasks', 'recipes']) {
  const names = await fs.readdir(join(root, 'docs', folder)).catch(() => [] as string[])
  for (const name of names) {
    const path = join(root, 'docs', folder, name)
    if (pages.some(([page]) => page === path)) continue
    stale.push(`docs/${folder}/${name}`)
    if (!check) await fs.remove(path)
  }
}
if (check && stale.length > 0) {
  console.error(
    `Cannot pass these pages, which are not what the code says: ${
      stale.sort().join(', ')
    }. Run: npm run docs`,
  )
  process.exitCode = 1
} else if (stale.length > 0) console.log(stale.sort().join('\n'))
