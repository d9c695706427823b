/**
 * Deploy.ps1 of a bundle: the scripts of the plan's steps in a row, with their undos, for Windows
 * PowerShell 5.1 and PowerShell 7. What differs from host to host is a parameter.
 */
import { basename } from 'node:path'
import { guardScripts } from '../../tasks/guard.ts'
import { literal } from '../../tasks/task.ts'
import type { Plan, Step } from './plan.ts'
import { scriptOf, undoScriptOf, WITHIN } from './steps.ts'

export async function deployScript(plan: Plan): Promise<string> {
  const { steps, parameters, files } = generalize(plan)
  const guarded = steps.find((step) => cutsOff(step))
  const parts: string[] = []
  const scripts: string[] = []
  const undos: string[] = []
  for (const step of steps) {
    const script = insert(asVariables(await scriptOf(step)))
    scripts.push(`${literal(step.id)} = {\n${indent(script)}\n}`)
    parts.push(invoke(step))
    if (step.task === 'check-host') parts.push(`${CHECK_DISKS}\n`)
    const undo = await undoScriptOf(step)
    if (undo === undefined) continue
    // the answer that the undo takes back comes from the journal
    const taken = undo.replace(/^\s*\$done = .*$/m, 'param($done)')
    undos.push(`${literal(step.id)} = {\n${indent(asVariables(taken))}\n}`)
  }
  const given = parameters.map(({ name, value, type = 'string' }) =>
    `  [${type}] $${name}${value === undefined ? '' : ` = ${literal(value)}`},\n`
  )
  const told = parameters.map(({ name, help }) => `.PARAMETER ${name}\n  ${help}\n`)
  // names stand in literals only: a comment could be closed by one
  return `${HEAD.replace('PARAMETERS', told.join('')).replace('GIVEN', () => given.join(''))}

$name = ${literal(plan.name)}
$files = ${literal(files)}

${PARTS}
${guarded ? `\n${guardPart(guarded)}\n` : ''}
# What each step does, and with $DryRun only says
$scripts = @{
${indent(scripts.join('\n'))}
}

# How each step is taken back, given what it answered
$undos = @{
${indent(undos.join('\n'))}
}

try {
${indent(guarded ? `${CHECK_GUARD}\n${PENDING}\n${BEGIN}` : BEGIN)}

${indent(parts.join('\n'))}

${indent(TAIL)}
} catch {
${indent(FAILED)}
} finally {
  Pop-Location
}
`
}

interface Parameter {
  name: string
  /** Undefined is none. */
  value?: string | number | readonly string[] | undefined
  /** @default string */
  type?: 'string' | 'string[]' | 'int' | 'switch'
  help: string
}

type SwitchStep = Extract<Step, { task: 'create-switch' }>

/** Whether a step could cut the host off from its network, so that it is done and taken back under the guard. */
function cutsOff(step: Step): step is SwitchStep {
  return step.task === 'create-switch' && step.options.type === 'external'
}

/** What a script has in place of a value that the host decides; no name has these characters. */
const MARK = '\ue001'
const PLACES: Record<string, string> = {
  external: '$theExternal',
  internal: '$theInternal',
  adapter: '$theAdapter',
}

/** The steps that run on the host, with marks for what differs by host, and always able to copy the disks. */
function generalize(plan: Plan): { steps: Step[]; parameters: Parameter[]; files: string[] } {
  const converted = plan.steps.flatMap((step) => step.task === 'convert-disk' ? [step] : [])
  const files = converted.map(({ options }) => options.to)
  const placed = plan.steps.flatMap((step) => step.task === 'place-disk' ? [step.options.to] : [])
  const check = plan.steps.find((step) => step.task === 'check-host')
  const { external, internal, adapter } = check?.task === 'check-host'
    ? check.options
    : {} as Record<string, undefined>
  const mark = (name: string) => `${MARK}${name}${MARK}`
  // a file's extension says its format
  const disks = files.map((file, index) => mark(`disk${index}`) + file.slice(file.lastIndexOf('.')))
  const names = {
    ...(external !== undefined && { external }),
    ...(internal !== undefined && { internal }),
  }
  const named = (value: string | undefined) => {
    const [name] = Object.entries(names).find(([, name]) => name === value) ?? []
    return name === undefined ? value : mark(name)
  }
  const copies = files.map((from, index): Step => ({
    id: `place-disk-${index + 1}`,
    task: 'place-disk',
    where: 'host',
    needs: [],
    title: `Copy the disk to "${disks[index]}"`,
    undo: '',
    estimate: { seconds: 0, space: 0 }, // of its sizes it knows nothing
    options: { from, to: disks[index] as string },
  }))
  const steps = plan.steps.filter(({ where, task }) => where === 'host' && task !== 'place-disk')
    .flatMap((step): Step[] => {
      let { title } = step
      for (
        const [name, value] of Object.entries({
          ...names,
          ...(adapter !== undefined && { adapter }),
        })
      ) {
        title = title.replaceAll(`"${value}"`, `"${mark(name)}"`)
      }
      const general = { ...step, title } as Step
      if (general.task === 'check-host') {
        const { options } = general
        const wanted = {
          ...options,
          disk: disks,
          ...(external !== undefined && { external: mark('external'), adapter: mark('adapter') }),
          ...(internal !== undefined && { internal: mark('internal') }),
        }
        return [{ ...general, options: wanted }, ...copies]
      }
      if (general.task === 'create-vm') {
        const needs = [...general.needs, ...copies.map(({ id }) => id)]
        return [{ ...general, needs, options: { ...general.options, disk: disks } }]
      }
      if (general.task === 'create-switch') {
        const { options } = general
        const card = options.type === 'external' ? { adapter: mark('adapter') } : {}
        return [{
          ...general,
          options: { ...options, switch: named(options.switch) as string, ...card },
        }]
      }
      if (['attach-adapter', 'set-static-ip', 'set-guest-ip'].includes(general.task)) {
        const options = general.options as { switch?: string }
        return [{ ...general, options: { ...options, switch: named(options.switch) } } as Step]
      }
      return [general]
    })
  const parameters: Parameter[] = [{
    name: 'Storage',
    value: placed[0]?.slice(0, -basename(files[0] ?? '').length).replace(/(?<=[^:])[\\/]$/, '') ??
      '',
    help: 'The folder that the disks are copied to. Without one they stay in this folder.',
  }]
  if (external !== undefined) {
    parameters.push(
      { name: 'ExternalSwitch', value: external, help: 'The external switch.' },
      { name: 'Adapter', value: adapter ?? '', help: 'The network adapter that it is made on.' },
    )
  }
  const guarded = plan.steps.find((step) => cutsOff(step))
  if (guarded) {
    const { guard = true, revertAfter = 60, probe = [] } = guarded.options
    parameters.push({
      name: 'RevertAfter',
      type: 'int',
      value: revertAfter,
      help:
        'Seconds, 5 to 3600, after which the host takes a change of its network back by itself,\n' +
        '  unless the network was tested after it and is as good as before.',
    }, {
      name: 'Probe',
      type: 'string[]',
      value: probe,
      help:
        'What else has to answer after such a change: URLs, and host:port. Several with commas.',
    }, {
      name: guard ? 'NoGuard' : 'Guard',
      type: 'switch',
      help: guard
        ? 'Change the network without that.'
        : 'Do all that, which was not asked for when this was packed.',
    })
  }
  if (internal !== undefined) {
    parameters.push({ name: 'InternalSwitch', value: internal, help: 'The internal switch.' })
  }
  return { steps, parameters, files }
}

const SOME = new RegExp(`${MARK}(\\w+)${MARK}(?:\\.\\w+)?`, 'g')

/** The variables in place of the marks, which are whole literals in scripts. */
function insert(script: string): string {
  return script.replace(new RegExp(`'${SOME.source}'`, 'g'), (_, name) => variable(name))
}

function variable(name: string): string {
  return PLACES[name] ?? `$theDisks[${name.replace('disk', '')}]`
}

function invoke(step: Step): string {
  const { id, title, needs, task } = step
  const shown = literal(title).replace(SOME, (_, name) => `' + ${variable(name)} + '`)
  const only = task === 'place-disk' ? ' -When ([bool]$Storage)' : ''
  const guarded = cutsOff(step) ? ' -Subject "the switch ""$theExternal"""' : ''
  const within = WITHIN[task] ? ' -Within' : ''
  return `Invoke-Step -Id ${literal(id)} -Needs ${
    literal(needs)
  } -Title (${shown})${only}${guarded}${within}`
}

/** The script's own flags become the variables of Deploy.ps1, which asks, guards and does again by them. */
function asVariables(script: string): string {
  return script
    .replaceAll('Run again with: --no-guard', 'Run again with: -NoGuard')
    .replaceAll(
      'under the guard: without --no-guard',
      'under the guard: without -NoGuard, or with -Guard',
    )
    .replace(/^(\s*)\$dryRun = \$false$/m, '$1$dryRun = [bool]$DryRun')
    .replace(/^(\s*)\$guard = \$false$/m, '$1$guard = [bool]$theGuard')
    .replace(/^(\s*)\$redo = \$false$/m, '$1$redo = [bool]$redo')
    .replace(/^(\s*)\$cutOff = \$false$/m, '$1$cutOff = [bool]$cutOff')
}

/** The guard of tasks/guard.ts, whose scripts are the same. */
function guardPart({ options }: SwitchStep): string {
  const { confirm, undoPending, reverting, end } = guardScripts
  const change = asVariables(guardScripts.change)
  return `# Whether the host takes back by itself what changed its network, unless that is tested and confirmed
$theGuard = [bool]${options.guard ?? true ? '(-not $NoGuard)' : '$Guard'}
# a URL may have a comma of its own
$theProbes = @($Probe | ForEach-Object { $_ -split ',(?=https?://|(?:[\\w.-]+|\\[[0-9a-fA-F:.]+\\]):[0-9]+(?:,|$))' } | Where-Object { $_ })
$end = ${literal(end)}

# Makes the change, and gives what it answered, and whether that is to be confirmed
function Invoke-Guarded {
  param([string] $Subject, [string] $Token, [string] $Changing, [string] $Undoing)
  $asking = '$DryRun = $true; ' + $Changing
  $seconds = $RevertAfter
  $probes = $theProbes
  $reverting = ([string]{
${indent(indent(reverting))}
  }).Trim()
  $told = & {
${indent(indent(change))}
  }
  ConvertFrom-Json $told
}

function Confirm-Change {
  param([string] $Subject, [string] $Token)
  $kept = & {
${indent(indent(confirm))}
  }
  if ($kept -ne 'true') {
    throw "Cannot keep the change of $($Subject): the host took it back, as it was not confirmed within $RevertAfter s. Run again with a longer time: -RevertAfter 300"
  }
}

function Undo-PendingChange {
${indent(undoPending)}
}`
}

function indent(text: string): string {
  const lines = text.replace(/^\n+|\s+$/g, '').split('\n')
  const margins = lines.filter((line) => line.trim()).map((line) => line.search(/\S/))
  const margin = Math.min(...margins)
  return lines.map((line) => line.trim() ? `  ${line.slice(margin)}` : '').join('\n')
}

const HEAD = `#Requires -Version 5.1
<#
.SYNOPSIS
  Makes a Hyper-V VM of the disks in this folder.
.DESCRIPTION
  Run it on the Hyper-V host, in an elevated PowerShell:
    powershell -ExecutionPolicy Bypass -File Deploy.ps1 [-DryRun]
  It can be run again: what is already so stays as it is. It goes on where an earlier run stopped.
  Without -Storage the VM uses the disks where they are, so put the folder where they are to stay.
  What it changed is in Deploy.journal.json beside it, from which -Undo takes it back.
.PARAMETER DryRun
  Say what would change, and change nothing.
.PARAMETER Undo
  Take back what earlier runs changed, the last first. The disks in this folder stay.
PARAMETERS.PARAMETER Log
  The file that each line is added to, with its time. Default: Deploy.log in this folder.
.NOTES
  Exit code 0: done or already so. 1: failed, and the reason is on standard error. 3010: restart
  Windows and run it again.
#>
[CmdletBinding(PositionalBinding = $false)]
param(
  [switch] $DryRun,
  [switch] $Undo,
GIVEN  [string] $Log = ''
)

$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'`

const PARTS = `# What each step answered, and the steps that changed something or would
$results = @{}
$changed = @()
$theGuard = $false
$redo = $false
$cutOff = $false
$theExternal = $ExternalSwitch
$theInternal = $InternalSwitch
$theAdapter = if ($Adapter) { $Adapter }
$theDisks = @($files | ForEach-Object { if ($Storage) { [IO.Path]::Combine($Storage, [IO.Path]::GetFileName($_)) } else { $_ } })
$journalPath = [IO.Path]::Combine($PSScriptRoot, 'Deploy.journal.json')
if (-not $Log) { $Log = [IO.Path]::Combine($PSScriptRoot, 'Deploy.log') }

function Write-Line {
  param([string] $Text, [switch] $Failure)
  if ($Failure) { [Console]::Error.WriteLine($Text) } else { Write-Host $Text }
  if ($DryRun) { return }
  $line = [DateTime]::Now.ToString('s', [Globalization.CultureInfo]::InvariantCulture) + ' ' + $Text + [Environment]::NewLine
  [IO.File]::AppendAllText($Log, $line)
}

function Read-Journal {
  if (-not [IO.File]::Exists($journalPath)) { return }
  # a list in a variable first: Windows PowerShell gives a list of JSON as one object
  $read = ConvertFrom-Json ([IO.File]::ReadAllText($journalPath))
  $read | ForEach-Object { $_ }
}

function Save-Journal {
  param([object[]] $Entries)
  $partial = "$journalPath.partial"
  [IO.File]::WriteAllText($partial, (ConvertTo-Json -InputObject @($Entries) -Depth 3))
  Move-Item -LiteralPath $partial -Destination $journalPath -Force
}

function Invoke-Step {
  param([string] $Id, [string[]] $Needs, [string] $Title, [bool] $When = $true, [string] $Subject, [switch] $Within)
  if (-not $When) { return }
  $step = $scripts[$Id]
  if ($DryRun -and @($Needs | Where-Object { $changed -contains $_ }).Count -gt 0) {
    # it works on what an earlier step only would have made, so it cannot be asked
    $script:changed += $Id
    Write-Line "would do    $Title"
    return
  }
  $notes = @()
  $armed = ''
  if ($Subject -and $theGuard -and -not $DryRun) {
    $token = [Guid]::NewGuid().ToString('N').Substring(0, 12)
    $guarded = Invoke-Guarded -Subject $Subject -Token $token -Changing $step -Undoing ('& {' + $undos[$Id] + '} $done')
    if ($guarded.armed) { $armed = $token }
    $notes += $guarded.told
    $answer = ConvertTo-Json -Compress -Depth 6 -InputObject $guarded.result
  } else {
    # what it will change is noted first: a run that is killed is taken back all the same. What is changed in a VM
    # that a run has made goes with it
    if (-not $DryRun -and -not $Within) { Save-Begun -Id $Id -Title $Title }
    $answer = [string](& $step | Select-Object -Last 1)
  }
  $result = ConvertFrom-Json $answer
  $script:results[$Id] = $result
  if ($result.refusals) { throw ($result.refusals -join [Environment]::NewLine) }
  if ($result.changed) { $script:changed += $Id }
  if (-not $DryRun) {
    $entries = @(Read-Journal)
    $begun = $entries | Where-Object { $_.id -eq $Id -and $_.begun } | Select-Object -First 1
    if ($begun) { $answer = Complete-Answer -Begun $begun.begun -Now $answer }
    if ($begun -or $result.changed) {
      Save-Journal (@($entries | Where-Object { -not ($_.id -eq $Id -and $_.begun) }) + @{ id = $Id; title = $Title; subject = $Subject; done = $answer })
    }
  }
  # noted first: to take back once more what the host has taken back is no harm
  if ($armed) { Confirm-Change -Subject $Subject -Token $armed }
  $done = if (-not $result.changed) { 'already so' } elseif ($DryRun) { 'would do  ' } else { 'done      ' }
  if ($null -eq $result.changed) { $done = 'checked   ' }
  if ($result.set -eq $false -and -not $result.changed) { $done = 'left to do' }
  Write-Line "$done  $Title"
  # what the check of the host has to say, the steps say themselves
  if ($null -ne $result.changed) { $notes += $result.notes }
  foreach ($note in @($notes | Where-Object { $_ })) { Write-Line "            $note" }
  foreach ($command in @($result.commands | Where-Object { $_ })) {
    Write-Line "            Type in the guest ($($command.guest)):"
    foreach ($line in $command.lines) { Write-Line "              $line" }
  }
}

function Save-Begun {
  param([string] $Id, [string] $Title)
  $entries = @(Read-Journal)
  # one that a run of before has begun says what was there before that
  if (@($entries | Where-Object { $_.id -eq $Id -and $_.begun }).Count -gt 0) { return }
  $DryRun = $true
  $expected = [string](& $scripts[$Id] | Select-Object -Last 1)
  if ((ConvertFrom-Json $expected).changed) { Save-Journal ($entries + @{ id = $Id; title = $Title; begun = $expected }) }
}

# What was changed in the end: what is there is as it is told now, what was there before as it was told then
function Complete-Answer {
  param([string] $Begun, [string] $Now)
  $whole = ConvertFrom-Json $Begun
  foreach ($field in (ConvertFrom-Json $Now).PSObject.Properties) {
    if ($field.Name -in 'before', 'changed' -or $null -eq $field.Value) { continue }
    Add-Member -InputObject $whole -MemberType NoteProperty -Name $field.Name -Value $field.Value -Force
  }
  ConvertTo-Json -Compress -Depth 6 -InputObject $whole
}

function Undo-Step {
  param($Entry)
  $undo = $undos[$Entry.id]
  $done = $Entry.done
  if ($Entry.begun) {
    $now = & {
      $DryRun = $true
      $cutOff = $null -eq (ConvertFrom-Json $Entry.begun).before
      & $scripts[$Entry.id] | Select-Object -Last 1
    }
    $done = Complete-Answer -Begun $Entry.begun -Now $now
  }
  if (-not $theGuard -or -not $Entry.subject) { $null = & $undo $done; return }
  $token = [Guid]::NewGuid().ToString('N').Substring(0, 12)
  $again = '& {' + $undo + '} $done'
  $guarded = Invoke-Guarded -Subject $Entry.subject -Token $token -Changing $again -Undoing ('$redo = $true; ' + $again)
  if ($guarded.armed) { Confirm-Change -Subject $Entry.subject -Token $token }
  foreach ($note in $guarded.told) { Write-Line "            $note" }
}

Push-Location -LiteralPath $PSScriptRoot`

/** What the guard is given. */
const CHECK_GUARD = `if ($RevertAfter -lt 5 -or $RevertAfter -gt 3600) {
  throw "Cannot take a change back after $RevertAfter s: it is 5 to 3600 seconds. Example: -RevertAfter 60"
}
foreach ($one in $theProbes) {
  if ($one -match '^\\w+://[^/?#]*@') { throw 'Cannot probe an address with a user or a password in it. Give it without: any answer of the server will do' }
  $fits = $one -match '^(https?://[^\\s/]+\\S*|([\\w.-]+|\\[[0-9a-fA-F:.]+\\]):(?<port>[0-9]{1,5}))$'
  if (-not $fits -or ($Matches.port -and [int]$Matches.port -notin 1..65535)) {
    throw "Cannot probe ""$one"": it is a URL of http or https, or host:port. Example: -Probe intranet.lan:443"
  }
}`

/** What a run that was killed has changed and not confirmed goes first, with and without the guard. */
const PENDING = `$pending = $null
if (-not $DryRun) {
  # where a VM is on a switch by now, that is taken back first
  try { Undo-PendingChange } catch { if ($Undo) { $pending = $_ } else { throw } }
}`

const BEGIN = `if (-not $DryRun) {
  try { Save-Journal @(Read-Journal) } catch {
    throw "Cannot write to ""$PSScriptRoot"", where what is changed is noted ($($_.Exception.Message)). Copy the folder to a drive that can be written, and run it there"
  }
}
if ($Undo) {
  $left = @(Read-Journal)
  if ($left.Count -eq 0) { Write-Line 'Nothing to take back: no run has changed anything, or all is taken back already' }
  while ($left.Count -gt 0) {
    $last = $left[-1]
    if ($DryRun) { Write-Line "would undo  $($last.title)" } else {
      Undo-Step $last
      Write-Line "undone      $($last.title)"
    }
    $left = @($left | Select-Object -SkipLast 1)
    if (-not $DryRun) { Save-Journal $left }
  }
  if ($pending) { Undo-PendingChange }
  exit 0
}`

/** A VM that is there has written to its disks, so their sums say nothing any more. */
const CHECK_DISKS = `if ($null -eq $results['check-host'].vm) {
  foreach ($line in Get-Content -LiteralPath 'SHA256SUMS' -Encoding UTF8) {
    $sum, $file = $line -split '  ', 2
    if ((Get-FileHash -LiteralPath $file -Algorithm SHA256).Hash -ne $sum) {
      throw "Cannot use ""$file"": it is not the file that was packed (SHA-256 differs). Copy the folder again"
    }
    Write-Line "checked     $file"
  }
}`

const TAIL = `$vm = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })[0]
if ($null -eq $vm) {
  Write-Line "The VM ""$name"" is not there yet"
} else {
  $addresses = @(Get-VMNetworkAdapter -VM $vm | ForEach-Object { $_.IPAddresses } | Where-Object { $_ })
  $known = if ($addresses.Count -gt 0) { $addresses -join ', ' } else { 'no address known' }
  Write-Line "The VM ""$($vm.Name)"" is $($vm.State), $known"
}
if ($changed.Count -eq 0) { Write-Line 'Nothing to do: everything is already so' }
if (@($results.Values | Where-Object { $_.restartNeeded }).Count -gt 0) {
  Write-Line 'Restart Windows, and run this again'
  exit 3010
}
exit 0`

const FAILED = `$reason = $_.Exception.Message
try { Write-Line $reason -Failure } catch { [Console]::Error.WriteLine("The log cannot be written: $($_.Exception.Message)") }
if ($changed.Count -gt 0 -and -not $DryRun) { [Console]::Error.WriteLine('Mend that and run again: it goes on from here. Or take back what was done: -Undo') }
exit 1`
