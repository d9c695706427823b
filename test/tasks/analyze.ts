/** PSScriptAnalyzer, for Windows PowerShell 5.1, which no test machine but Windows has. */
import type { PowerShell } from '../../tasks/task.ts'

/** What it has to say of the scripts in a folder; nothing when 5.1 would read them all. */
export async function analyze(ps: PowerShell, folder: string): Promise<string[]> {
  const { stdout } = await ps`
    $folder = ${folder}
    Import-Module PSScriptAnalyzer
    $rules = @{ PSUseCompatibleSyntax = @{ Enable = $true; TargetVersions = @('5.1') } }
    $settings = @{ IncludeRules = @('PSUseCompatibleSyntax'); Rules = $rules }
    $found = @(Invoke-ScriptAnalyzer -Path $folder -Recurse -Settings $settings)
    ConvertTo-Json -Compress -InputObject @($found | ForEach-Object { "$($_.ScriptName):$($_.Line) $($_.Message)" })`
  return JSON.parse(stdout) as string[]
}
