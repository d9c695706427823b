/** A bundle: a folder with the disks and one script that makes the VM of them on a Hyper-V host without Node. */
import fs from 'fs-extra'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { literal } from '../../tasks/task.ts'
import type { Plan, Step } from './plan.ts'
import { scriptOf } from './steps.ts'

/** The files of a bundle beside its disks. The sums are written last: a folder without them is unfinished. */
export const BUNDLE = { plan: 'plan.json', deploy: 'Deploy.ps1', sums: 'SHA256SUMS' }

/** What is in a folder that a bundle is to be written to. */
export type BundleState = 'empty' | 'unfinished' | 'finished' | 'other'

/**
 * Looks whether a folder is free for the bundle of a plan, or holds it already, whole or in part. A
 * bundle whose disks do not have their sums is not finished.
 */
export async function bundleState(dir: string, plan: Plan): Promise<BundleState> {
  const names = await fs.readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  if (names.length === 0) return 'empty'
  const found = await fs.readJson(join(dir, BUNDLE.plan)).catch(() => undefined) as Plan | undefined
  if (found?.key !== plan.key) return 'other'
  const sums = await fs.readFile(join(dir, BUNDLE.sums), 'utf8').catch(() => '')
  for (const path of disksOf(plan)) {
    if (!await fs.pathExists(join(dir, path))) return 'unfinished'
    if (!sums.includes(await sumLine(dir, path))) return 'unfinished'
  }
  return 'finished'
}

/** Writes the plan, before the disks: it tells the next run whose folder this is. */
export async function beginBundle(dir: string, plan: Plan): Promise<void> {
  await fs.outputJson(join(dir, BUNDLE.plan), plan, { spaces: 2 })
}

/** Writes what goes with the converted disks. */
export async function finishBundle(dir: string, plan: Plan): Promise<void> {
  // Windows PowerShell takes a script without the mark for one in the old code page of the country
  await fs.writeFile(join(dir, BUNDLE.deploy), `\ufeff${await deployScript(plan)}`)
  const sums = []
  for (const path of disksOf(plan)) sums.push(await sumLine(dir, path))
  await fs.writeFile(join(dir, BUNDLE.sums), sums.join(''))
}

/** Removes the files of a bundle and the folders they leave empty; what else is there stays. */
export async function removeBundle(dir: string): Promise<void> {
  for (const name of Object.values(BUNDLE)) await fs.remove(join(dir, name))
  for (const path of [join(dir, 'disks'), dir]) {
    await fs.rmdir(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'ENOENT' && error.code !== 'EEXIST') {
        throw error
      }
    })
  }
}

/** Deploy.ps1: the scripts of the plan's steps in a row, for Windows PowerShell 5.1 and PowerShell 7. */
export async function deployScript(plan: Plan): Promise<string> {
  const steps = await Promise.all(
    plan.steps.filter(({ where }) => where === 'host').map(async (step) =>
      `${invoke(step)} {\n${indent(asParameter(await scriptOf(step)))}\n}\n` +
      (step.task === 'check-host' ? `\n${CHECK_DISKS}\n` : '')
    ),
  )
  // names stand in literals only: a comment could be closed by one
  return `${HEAD}\n$name = ${literal(plan.name)}\n\n${PARTS}\ntry {\n${
    indent(`${steps.join('\n')}\n${TAIL}`)
  }\n} catch {\n${indent(FAILED)}\n} finally {\n  Pop-Location\n}\n`
}

function invoke({ id, title, needs }: Step): string {
  return `Invoke-Step -Id ${literal(id)} -Needs ${literal(needs)} -Title ${literal(title)} -Script`
}

/** The script's own dry-run flag becomes the parameter of Deploy.ps1. */
function asParameter(script: string): string {
  return script.replace(/^(\s*)\$dryRun = \$false$/m, '$1$dryRun = [bool]$DryRun')
}

function indent(text: string): string {
  const lines = text.replace(/^\n+|\s+$/g, '').split('\n')
  const margins = lines.filter((line) => line.trim()).map((line) => line.search(/\S/))
  const margin = Math.min(...margins)
  return lines.map((line) => line.trim() ? `  ${line.slice(margin)}` : '').join('\n')
}

function disksOf(plan: Plan): string[] {
  return plan.steps.flatMap((step) => step.task === 'convert-disk' ? [step.options.to] : [])
}

async function sumLine(dir: string, path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(fs.createReadStream(join(dir, path), { highWaterMark: 1024 ** 2 }), hash)
  return `${hash.digest('hex')}  ${path}\n`
}

const HEAD = `#Requires -Version 5.1
<#
.SYNOPSIS
  Makes a Hyper-V VM of the disks in this folder.
.DESCRIPTION
  Run it on the Hyper-V host, in an elevated PowerShell:
    powershell -ExecutionPolicy Bypass -File Deploy.ps1 [-DryRun]
  It can be run again: what is already so stays as it is. It goes on where an earlier run stopped.
  The VM uses the disks where they are, so put the folder where they are to stay.
.PARAMETER DryRun
  Say what would change, and change nothing.
.NOTES
  Exit code 0: done or already so. 1: failed, and the reason is on standard error.
#>
[CmdletBinding()]
param([switch] $DryRun)

$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'`

const PARTS = `# What each step answered, and the steps that changed something or would
$results = @{}
$changed = @()

function Invoke-Step {
  param([string] $Id, [string[]] $Needs, [string] $Title, [scriptblock] $Script)
  if ($DryRun -and @($Needs | Where-Object { $changed -contains $_ }).Count -gt 0) {
    # it works on what an earlier step only would have made, so it cannot be asked
    $script:changed += $Id
    Write-Host "would do    $Title"
    return
  }
  $result = & $Script | Select-Object -Last 1 | ConvertFrom-Json
  $script:results[$Id] = $result
  if ($result.refusals) { throw ($result.refusals -join [Environment]::NewLine) }
  if ($result.changed) { $script:changed += $Id }
  $done = if (-not $result.changed) { 'already so' } elseif ($DryRun) { 'would do  ' } else { 'done      ' }
  if ($null -eq $result.changed) { $done = 'checked   ' }
  Write-Host "$done  $Title"
}

Push-Location -LiteralPath $PSScriptRoot`

/** A VM that is there has written to its disks, so their sums say nothing any more. */
const CHECK_DISKS = `if ($null -eq $results['check-host'].vm) {
  foreach ($line in Get-Content -LiteralPath 'SHA256SUMS' -Encoding UTF8) {
    $sum, $file = $line -split '  ', 2
    if ((Get-FileHash -LiteralPath $file -Algorithm SHA256).Hash -ne $sum) {
      throw "Cannot use ""$file"": it is not the file that was packed (SHA-256 differs). Copy the folder again"
    }
    Write-Host "checked     $file"
  }
}`

const TAIL = `$vm = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })[0]
if ($null -eq $vm) {
  Write-Host "The VM ""$name"" is not there yet"
} else {
  $addresses = @(Get-VMNetworkAdapter -VM $vm | ForEach-Object { $_.IPAddresses } | Where-Object { $_ })
  $known = if ($addresses.Count -gt 0) { $addresses -join ', ' } else { 'no address known' }
  Write-Host "The VM ""$($vm.Name)"" is $($vm.State), $known"
}
if ($changed.Count -eq 0) { Write-Host 'Nothing to do: everything is already so' }
exit 0`

const FAILED = `[Console]::Error.WriteLine($_.Exception.Message)
if ($changed.Count -gt 0 -and -not $DryRun) { [Console]::Error.WriteLine('Mend that and run again: it goes on from here') }
exit 1`
