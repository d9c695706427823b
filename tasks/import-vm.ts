#!/usr/bin/env zx
/** Import a VM that Hyper-V exported, and mend what does not fit this host. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface ImportVmOptions {
  /** The folder that Hyper-V exported, as the host calls it, or the .vmcx in it. */
  from: string
  /** Copy the VM to this folder. Without it the VM is used where it lies, and its files are its own. */
  copyTo?: string | undefined
  /**
   * The switch for adapters whose switch this host does not have.
   * @default they are disconnected
   */
  switch?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface ImportVmResult {
  changed: boolean
  /** The VM's id; null on a dry run where it gets a new one. */
  id: string | null
  vm: string
  /** The folder of its configuration. */
  path: string
  disks: string[]
  /** It has another id than in the export, because a VM here has that. */
  newId: boolean
  /** What did not fit this host, and what became of it, e.g. switch `Office` to `桥接`. */
  mended: { what: 'switch' | 'dvd' | 'processors' | 'memory'; from: string; to: string | null }[]
  /** Absent when nothing changed. */
  before?: {
    /** It was copied, so that its files go with it. */
    copied: boolean
    /** The folder of the copy was there already. */
    folder: boolean
    /** Where the export's configuration is kept that the undo puts back; null for a copy. */
    configuration: string | null
  }
}

/**
 * Compare-VM, mending, and Import-VM happen in one script, because the report holds a live VM that is
 * planned and not yet made (Compare-VM's documentation, example 2). Of the ids of what it reports only
 * 33012 is documented, a switch that is missing; the rest is known by the part that it is about, and
 * what is not mended after all is refused with its id.
 *
 * An id that is taken is no obstacle to a copy, which gets a new one. In place it is, for the files
 * would belong to two VMs.
 *
 * Assumptions about Windows: what Compare-VM plans is gone with the report; Import-VM takes away what
 * it has copied when it fails.
 */
export async function importVm(
  { from, copyTo, switch: to, dryRun = false }: ImportVmOptions,
  ps = powershell,
): Promise<ImportVmResult> {
  for (const text of [from, copyTo, to]) refuseText(text)
  const { stdout } = await ps`
    $from = ${from}
    $folder = ${copyTo}
    $switch = ${to}
    $dryRun = ${dryRun}
    $cannot = "Cannot import ""$from"":"
    function fullPath($path) {
      try { $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($path) }
      catch [Management.Automation.DriveNotFoundException] { throw "$cannot there is no drive for ""$path"". Run: Get-PSDrive -PSProvider FileSystem" }
    }
    function same($one, $other) { $bars = '/', [char]92; ([string]$one).TrimEnd($bars).Equals(([string]$other).TrimEnd($bars), 'OrdinalIgnoreCase') }

    function quoted($paths) { @($paths | ForEach-Object { '"' + $_ + '"' }) -join ', ' }

    # checkpoints have files of the same kind, in a folder of their own
    $source = fullPath $from
    $files = @()
    if ([IO.File]::Exists($source)) { $files = @($source) }
    elseif ([IO.Directory]::Exists($source)) {
      $places = @($source) + @([IO.Directory]::GetDirectories($source))
      foreach ($place in @($source) + @($places | ForEach-Object { [IO.Path]::Combine($_, 'Virtual Machines') })) {
        if ([IO.Directory]::Exists($place)) { $files += [IO.Directory]::GetFiles($place, '*.vmcx') }
      }
    }
    $files = @($files | Where-Object { [IO.Path]::GetExtension($_) -eq '.vmcx' } | Sort-Object -Unique)
    if ($files.Count -eq 0) { throw "$cannot there is no .vmcx file of a VM. Name the folder that Export-VM made; an OVA is for inspect-vm and convert-disk. Run: Get-ChildItem -Recurse -Include *.vmcx" }
    if ($files.Count -gt 1) { throw "$cannot it has $($files.Count) VMs. Name one by its file: $($files -join ', ')" }
    $file = $files[0]
    $stem = [IO.Path]::GetFileNameWithoutExtension($file)
    $id = $stem -as [guid]
    if ($null -eq $id) { throw "$cannot ""$file"" is not named after a VM's id, by which Hyper-V finds it. Give it back its name, or export again" }
    $root = [IO.Path]::GetDirectoryName([IO.Path]::GetDirectoryName($file))

    $vms = @(Get-VM)
    $taken = @($vms | Where-Object { $_.Id -eq $id })
    $target = $null
    if ($null -ne $switch) {
      $target = @(Get-VMSwitch | Where-Object { $_.Name.Equals($switch, 'OrdinalIgnoreCase') })
      if ($target.Count -ne 1) { throw "$cannot there are $($target.Count) switches named ""$switch"". Run: Get-VMSwitch" }
    }
    function answer($vm, $changed) {
      [ordered]@{
        changed = $changed; id = [string]$vm.Id; vm = $vm.Name; path = [string]$vm.ConfigurationLocation
        disks = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { [string]$_.Path }); newId = $vm.Id -ne $id; mended = @()
      }
    }
    if ($null -ne $folder) { $folder = (fullPath $folder).TrimEnd('/', [char]92) }
    elseif ($taken.Count -gt 0) {
      if (same $taken[0].ConfigurationLocation $root) { return ConvertTo-Json -InputObject (answer $taken[0] $false) -Compress -Depth 4 }
      throw "$cannot a VM of its id is there already, ""$($taken[0].Name)"". Run again with a folder for a copy, which gets an id of its own: --copy-to"
    }
    $there = @($vms | Where-Object { $null -ne $folder -and (same $_.ConfigurationLocation $folder) })

    $new = $taken.Count -gt 0
    try {
      if ($null -ne $folder) {
        $vhds = [IO.Path]::Combine($folder, 'Virtual Hard Disks')
        $places = @{ VirtualMachinePath = $folder; SnapshotFilePath = $folder; SmartPagingFilePath = $folder; VhdDestinationPath = $vhds }
        $report = Compare-VM -Path $file -Copy -GenerateNewId:$new @places
      } else { $report = Compare-VM -Path $file -Register }
    } catch {
      if ($_.FullyQualifiedErrorId -like 'AccessDenied,*' -or $_.FullyQualifiedErrorId -like 'ObjectNotFound,*') { throw }
      throw "$cannot Hyper-V cannot read its configuration: $($_.Exception.Message.Trim()) ($($_.FullyQualifiedErrorId)). An older format needs an older Windows first. Run: Get-VMHostSupportedVersion"
    }
    $vm = $report.VM
    $again = @($there | Where-Object { $_.Name -eq $vm.Name })
    if ($again.Count -eq 1) { return ConvertTo-Json -InputObject (answer $again[0] $false) -Compress -Depth 4 }

    # what fits, what can be made to fit, and what cannot
    $vmHost = Get-VMHost
    $mended = @()
    $lost = @()
    $other = @()
    $adapters = @()
    $dvds = @()
    $cpus = [long]$vm.ProcessorCount
    $fewer = [Math]::Min($cpus, [long]$vmHost.LogicalProcessorCount)
    $memory = [long]$vm.MemoryStartup
    $capacity = [long]$vmHost.MemoryCapacity
    # half of it, in steps of 2 MB, so that the host can start it
    $less = if ($memory -gt $capacity) { [long][Math]::Floor($capacity / 4MB) * 2MB } else { $memory }
    if ($fewer -lt $cpus) { $mended += [ordered]@{ what = 'processors'; from = [string]$cpus; to = [string]$fewer } }
    if ($less -lt $memory) { $mended += [ordered]@{ what = 'memory'; from = "$($memory / 1MB) MB"; to = "$($less / 1MB) MB" } }
    foreach ($one in @($report.Incompatibilities | Where-Object { $_ })) {
      $kind = if ($null -ne $one.Source) { $one.Source.GetType().Name } else { '' }
      if ($one.MessageId -eq 33012) {
        $adapters += $one.Source
        $mended += [ordered]@{ what = 'switch'; from = [string]$one.Message; to = $switch }
      } elseif ($kind -eq 'DvdDrive') {
        $dvds += $one.Source
        $mended += [ordered]@{ what = 'dvd'; from = [string]$one.Source.Path; to = $null }
      } elseif ($kind -eq 'HardDiskDrive') { $lost += [string]$one.Source.Path }
      elseif (-not ($kind -eq 'VMProcessor' -and $fewer -lt $cpus) -and -not ($kind -eq 'VMMemory' -and $less -lt $memory)) { $other += "$(([string]$one.Message).Trim()) ($($one.MessageId))" }
    }
    if ($lost.Count -gt 0) { throw "$cannot of its disks these are not there: $(quoted $lost). Bring them into ""$([IO.Path]::Combine($root, 'Virtual Hard Disks'))"", or export again" }
    # a limit that was passed may be reported of the VM as a whole, so it is mended first, and asked again
    if ($other.Count -gt 0 -and ($dryRun -or $fewer -eq $cpus -and $less -eq $memory)) { throw "$cannot this host cannot run it: $($other -join '; '). Mend it where it was exported, and export again" }
    $disks = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { [string]$_.Path })
    $existed = $null -ne $folder -and [IO.Directory]::Exists($folder)
    if ($null -ne $folder) {
      $clash = @($disks | ForEach-Object { [IO.Path]::Combine($vhds, [IO.Path]::GetFileName($_)) } | Where-Object { [IO.File]::Exists($_) })
      if ($clash.Count -gt 0) { throw "$cannot there is already $(quoted $clash). Name another folder: --copy-to" }
      $needed = [long]0
      foreach ($disk in $disks) { if ([IO.File]::Exists($disk)) { $needed += (New-Object IO.FileInfo $disk).Length } }
      $drive = [IO.Path]::GetPathRoot($folder)
      if (-not $drive.StartsWith([string][char]92 + [char]92)) {
        $free = (New-Object IO.DriveInfo $drive).AvailableFreeSpace
        if ($free -lt $needed) { throw "$cannot its disks take $([Math]::Round($needed / 1GB, 1)) GB, and $([Math]::Round($free / 1GB, 1)) GB are free on $drive. Name a folder on another drive: --copy-to" }
      }
    }

    $result = answer $vm $true
    $result.mended = @($mended)
    $result.newId = $new
    $result.path = if ($null -ne $folder) { $folder } else { $root }
    if ($null -ne $folder) { $result.disks = @($disks | ForEach-Object { [IO.Path]::Combine($vhds, [IO.Path]::GetFileName($_)) }) }
    $kept = $null
    if ($null -eq $folder) { $kept = [IO.Path]::Combine([IO.Path]::GetDirectoryName($file), "before-import-$stem") }
    $result.before = [ordered]@{ copied = $null -ne $folder; folder = $existed; configuration = $kept }
    if ($dryRun) {
      if ($new) { $result.id = $null }
      return ConvertTo-Json -InputObject $result -Compress -Depth 4
    }

    try {
      foreach ($adapter in $adapters) {
        if ($target) { Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -VMSwitch $target[0] } else { Disconnect-VMNetworkAdapter -VMNetworkAdapter $adapter }
      }
      foreach ($dvd in $dvds) { Set-VMDvdDrive -VMDvdDrive $dvd -Path $null }
      if ($fewer -lt $cpus) { Set-VMProcessor -VM $vm -Count $fewer }
      if ($less -lt $memory) {
        $bytes = @{ StartupBytes = $less }
        if ($vm.DynamicMemoryEnabled -and $vm.MemoryMinimum -gt $less) { $bytes.MinimumBytes = $less }
        Set-VMMemory -VM $vm @bytes
      }
      if ($mended.Count -gt 0) {
        $report = Compare-VM -CompatibilityReport $report
        $other = @($report.Incompatibilities | Where-Object { $_ } | ForEach-Object { "$(([string]$_.Message).Trim()) ($($_.MessageId))" })
        if ($other.Count -gt 0) { throw "$cannot this host cannot run it: $($other -join '; '). Mend it where it was exported, and export again" }
      }
      if ($null -ne $kept) {
        # from now on the files are the VM's, and removing it removes them
        $null = [IO.Directory]::CreateDirectory($kept)
        foreach ($one in [IO.Directory]::GetFiles([IO.Path]::GetDirectoryName($file), "$stem.*")) { [IO.File]::Copy($one, [IO.Path]::Combine($kept, [IO.Path]::GetFileName($one)), $true) }
      }
      $made = Import-VM -CompatibilityReport $report
    } catch {
      $failure = $_
      if ($null -ne $kept -and [IO.Directory]::Exists($kept)) { [IO.Directory]::Delete($kept, $true) }
      if ($null -ne $folder -and -not $existed -and [IO.Directory]::Exists($folder)) { [IO.Directory]::Delete($folder, $true) }
      throw $failure
    }
    $final = answer $made $true
    $final.newId = $new
    $final.mended = @($mended)
    $final.before = $result.before
    ConvertTo-Json -InputObject $final -Compress -Depth 4`
  return JSON.parse(stdout) as ImportVmResult
}

/**
 * Takes the VM that {@link importVm} made from Hyper-V again: a copy with its files, and of one that was
 * used in place the export gets its configuration back, while its disks keep what the guest has written.
 * The VM has to be off, and in place have no checkpoints, which would go into the disks.
 */
export async function undoImportVm(result: ImportVmResult, ps = powershell): Promise<void> {
  if (result.before === undefined) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $kept = $result.before.configuration
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -ne $vm) {
      $cannot = "Cannot take back the import of ""$($vm.Name)"":"
      $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
      if ([string]$vm.State -ne 'Off') { throw "$cannot it is $($vm.State). Run: Stop-VM -Name '$typed'" }
      if (-not $result.before.copied -and @(Get-VMSnapshot -VM $vm).Count -gt 0) { throw "$cannot it has checkpoints, which would go into the export's disks. Run: Get-VMSnapshot -VMName '$typed' | Remove-VMSnapshot" }
      Remove-VM -VM $vm -Force
    }
    if ($kept -and [IO.Directory]::Exists($kept)) {
      $beside = [IO.Path]::GetDirectoryName($kept)
      foreach ($file in [IO.Directory]::GetFiles($kept)) { [IO.File]::Copy($file, [IO.Path]::Combine($beside, [IO.Path]::GetFileName($file)), $true) }
      [IO.Directory]::Delete($kept, $true)
    }
    if ($null -ne $vm -and $result.before.copied) {
      foreach ($disk in @($result.disks)) { [IO.File]::Delete($disk) }
      $folders = @('Virtual Hard Disks', 'Virtual Machines', 'Snapshots' | ForEach-Object { [IO.Path]::Combine($result.path, $_) })
      if (-not $result.before.folder) { $folders += $result.path }
      foreach ($folder in $folders) {
        if ([IO.Directory]::Exists($folder) -and [IO.Directory]::GetFileSystemEntries($folder).Length -eq 0) { [IO.Directory]::Delete($folder) }
      }
    }`
}

function refuseText(text: string | undefined): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (text === undefined || (text.trim() !== '' && !/[\u0000-\u001f\u007f]/.test(text))) return
  throw new TypeError(
    `Cannot import with ${JSON.stringify(text)}: folders, files and switches have names without ` +
      'control characters. Example: --from D:\\Export\\Win10',
  )
}

await hostCommand(
  import.meta,
  'Import a VM that Hyper-V exported, and mend what does not fit this host',
  {
    from: {
      type: 'string',
      demandOption: true,
      describe: 'The folder that Hyper-V exported, on the host',
      example: '"D:\\Export\\Win10"',
    },
    copyTo: { type: 'string', describe: 'Copy the VM to this folder, instead of using its files' },
    switch: { type: 'string', describe: 'For adapters whose switch is missing [default: none]' },
    dryRun,
  },
  importVm,
)
