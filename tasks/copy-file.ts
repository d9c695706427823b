#!/usr/bin/env zx
/** Copy a file or a folder of the Hyper-V host into the guest of a VM, without a network. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface CopyFileOptions {
  /** The VM's name. It has to run, with its integration services. */
  vm: string
  /** A file or folder on the host. */
  from: string
  /**
   * Where it goes in the guest, e.g. `C:\kit\gost.exe` or `/opt/gost`. Of a folder, or with a slash at its
   * end, it is the folder that it goes to. Folders on the way are made.
   */
  to: string
  /** Replace what is there. @default false */
  force?: boolean | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface CopyFileResult {
  /** What the guest has cannot be seen from here, so a file that is named is copied. */
  changed: boolean
  id: string
  vm: string
  files: {
    from: string
    to: string
    /** Bytes. */
    size: number
  }[]
}

/**
 * Goes by the Guest Service Interface, which is off unless it is asked for; it is turned on for this and put
 * back (learn.microsoft.com/powershell/module/hyper-v/copy-vmfile). A Linux guest needs hv_fcopy_daemon.
 * One file that cannot be copied ends it; those before it are there then.
 */
export async function copyFile(
  options: CopyFileOptions,
  ps = powershell,
): Promise<CopyFileResult> {
  const { vm, from, to, force = false, dryRun = false } = options
  throwIfUnusable(options)
  const { stdout } = await ps`
    $name = ${vm}
    $from = ${from}
    $to = ${to}
    $force = ${force}
    $dryRun = ${dryRun}
    $cannot = "Cannot copy ""$from"" into ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))
    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    $vm = $found[0]
    $source = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($from)
    if (-not (Test-Path -LiteralPath $source)) { throw "$cannot there is no such file on the host. Run: Get-ChildItem" }
    # the guest's slash, whatever the host's is
    $slash = if ($to.StartsWith('/')) { '/' } else { [string][char]92 }
    $inside = $to.TrimEnd([char[]](92, 47))
    if ($inside -match '^[a-zA-Z]:$' -or $inside -eq '') { $inside += $slash }
    $folder = Test-Path -LiteralPath $source -PathType Container
    $files = @(if ($folder) {
        $root = (Get-Item -LiteralPath $source -Force).FullName.TrimEnd([char[]](92, 47))
        foreach ($file in @(Get-ChildItem -LiteralPath $source -Recurse -File -Force)) {
          [ordered]@{ from = [string]$file.FullName; to = $inside.TrimEnd([char[]](92, 47)) + $slash + $file.FullName.Substring($root.Length + 1).Replace('/', $slash).Replace([string][char]92, $slash); size = [long]$file.Length }
        }
      } else {
        $file = Get-Item -LiteralPath $source -Force
        $into = $to -match ('[/' + [char]92 + [char]92 + ']$')
        [ordered]@{ from = [string]$file.FullName; to = $(if ($into) { $inside.TrimEnd([char[]](92, 47)) + $slash + $file.Name } else { $inside }); size = [long]$file.Length }
      })
    if ($files.Count -eq 0) { throw "$cannot there is no file in it. Run: Get-ChildItem -Recurse" }
    if ([string]$vm.State -ne 'Running') { throw "$cannot it is $($vm.State), and only a guest that runs takes files. Run: Start-VM -Name '$typed'" }
    $service = Get-VMIntegrationService -VM $vm | Where-Object { ([string]$_.Id).EndsWith('6C09BB55-D683-4DA0-8931-C9BF705F6480', 'OrdinalIgnoreCase') }
    if (-not $service) { throw "$cannot it has no Guest Service Interface, which came with Windows 8.1 and Windows Server 2012 R2. Copy it by its network" }
    $off = -not $service.Enabled
    if (-not $dryRun) {
      try {
        if ($off) { $service | Enable-VMIntegrationService }
        # the guest hears of it some seconds later
        for ($wait = 0; $off -and $wait -lt 40 -and [string](Get-VMIntegrationService -VM $vm | Where-Object { $_.Id -eq $service.Id }).PrimaryStatusDescription -ne 'OK'; $wait++) { Start-Sleep -Milliseconds 250 }
        foreach ($file in $files) {
          try { Copy-VMFile -VM $vm -SourcePath $file.from -DestinationPath $file.to -FileSource Host -CreateFullPath -Force:$force } catch {
            # which of the two carries the code differs between cmdlets; the words around it are translated
            $codes = $_.Exception.Message + ' 0x' + $_.Exception.HResult.ToString('X8')
            if ($codes -match '0x80070050') { throw "$cannot ""$($file.to)"" is there (0x80070050). Run again with another --to, or --force to replace it" }
            if ($codes -match '0x800710DF|0x80070015') { throw "$cannot its guest does not answer ($($Matches[0])): it has not started yet, or a Linux lacks hv_fcopy_daemon. Run: npx zx tasks/verify.ts --vm '$typed'" }
            if ($codes -match '0x80070005') { throw "$cannot ""$($file.from)"" may not be read, or ""$($file.to)"" not be written (0x80070005). Run again as administrator, or with another --to" }
            throw
          }
        }
      } finally {
        if ($off) { Get-VMIntegrationService -VM $vm | Where-Object { $_.Id -eq $service.Id } | Disable-VMIntegrationService }
      }
    }
    ConvertTo-Json -InputObject ([ordered]@{ changed = $true; id = [string]$vm.Id; vm = [string]$vm.Name; files = $files }) -Compress -Depth 3`
  return JSON.parse(stdout) as CopyFileResult
}

function throwIfUnusable({ vm, from, to }: CopyFileOptions): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  const control = /[\u0000-\u001f\u007f]/
  if (vm.trim() === '' || vm.length > 100 || control.test(vm)) {
    throw new TypeError(
      `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    )
  }
  if (from.trim() === '' || control.test(from)) {
    throw new TypeError(
      `Cannot copy ${JSON.stringify(from)}: that is no file's name. Name one by --from`,
    )
  }
  if (!/^([a-z]:[\\/]|\/)/i.test(to) || control.test(to) || /(^|[\\/])\.\.([\\/]|$)/.test(to)) {
    throw new TypeError(
      `Cannot copy to ${
        JSON.stringify(to)
      }: it is no whole path in the guest. Run again with for example: ` +
        '--to C:\\kit\\ or --to /opt/kit/',
    )
  }
}

await hostCommand(
  import.meta,
  'Copy a file or a folder of the host into the guest of a VM, without a network',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    from: {
      type: 'string',
      demandOption: true,
      describe: 'A file or folder on the host',
      example: 'gost.exe',
    },
    to: {
      type: 'string',
      demandOption: true,
      describe: 'Where it goes in the guest; a folder where it ends with a slash',
      example: '"C:\\kit\\\\"',
    },
    force: { type: 'boolean', describe: 'Replace what is there' },
    dryRun,
  },
  copyFile,
)
