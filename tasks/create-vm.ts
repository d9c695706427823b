#!/usr/bin/env zx
/** Make a Hyper-V VM from virtual hard disks, so that its first start boots. */
import { dryRun, hostCommand, powershell } from './task.ts'

/** Which boot loaders start: any, those signed for Windows, or those signed for others such as Linux. */
export type SecureBoot = 'off' | 'windows' | 'linux'

export interface CreateVmOptions {
  /** The VM's name: 1 to 100 characters. */
  vm: string
  /**
   * Its disks, VHDX or VHD, the one that boots first. Relative paths are taken from PowerShell's
   * current location on the host.
   */
  disk: readonly string[]
  /**
   * 1 boots by BIOS, 2 by UEFI. With `auto` the first disk decides: a VHD or an MBR means 1, an EFI
   * system partition 2. The disk is mounted read-only for that, without a drive letter.
   * @default 'auto'
   */
  generation?: 'auto' | 1 | 2 | undefined
  /** @default 2, or 1 on a host with one; a VM that is there keeps what it has */
  cpus?: number | undefined
  /** Bytes, or text such as `4GB`, `4096MB` or `4GiB`; a multiple of 2 MB. @default 2 GB, likewise */
  memory?: number | string | undefined
  /** Only for generation 2. @default 'off', likewise */
  secureBoot?: SecureBoot | undefined
  /** Folder on the host in which a new VM gets a folder of its name. @default the host's own for VMs */
  path?: string | undefined
  /** Notes of a new VM. @default none */
  notes?: string | undefined
  /**
   * An earlier call was cut off before it answered, and there was no such VM before: one without disks is
   * what is left of it, and is made anew. @default false
   */
  cutOff?: boolean | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface CreateVmResult {
  changed: boolean
  /** The VM's id, by which the undo finds it again; null when a dry run found no such VM. */
  id: string | null
  vm: string
  generation: 1 | 2
  /** Why it is that generation. */
  generationReason: string
  cpus: number
  /** Bytes. */
  memory: number
  secureBoot: SecureBoot | 'other'
  /** Absolute paths, as the host knows them. */
  disks: string[]
  /** What a VM that was there had before it was changed. Absent when the VM was made, or nothing changed. */
  before?: {
    cpus: number
    /** Bytes. */
    memory: number
    dynamicMemory: boolean
    secureBoot: boolean
    /** Id of the Secure Boot template; empty for generation 1. */
    template: string
  }
}

/**
 * Makes a VM that is off, with its disks where they can boot: generation 2 on SCSI; generation 1 with
 * the first three on IDE beside the DVD drive and the others on SCSI, from which a BIOS cannot boot.
 *
 * Its memory is static and automatic checkpoints are off, for with them the disk in use is another
 * file after the first start. When the host shuts down, the guest is asked to, which a VM with VMs
 * inside needs. The adapter that New-VM adds is removed: `attach-adapter` gives the VM those it had.
 *
 * A VM that is there with the same disks and generation gets the processors, memory and Secure Boot
 * that were asked for, and keeps all else. One with other disks or another generation is refused.
 * A VM that cannot be made whole is removed again, its disks never.
 */
export async function createVm(
  {
    vm,
    disk,
    generation = 'auto',
    cpus,
    memory,
    secureBoot,
    path,
    notes = '',
    cutOff = false,
    dryRun = false,
  }: CreateVmOptions,
  ps = powershell,
): Promise<CreateVmResult> {
  refuseName(vm)
  refuseDisks(vm, disk, generation)
  if (![1, 2, 'auto'].includes(generation)) {
    throw new RangeError(`Cannot make "${vm}" of generation ${generation}: it is 1, 2 or auto`)
  }
  if (secureBoot !== undefined && !['off', 'windows', 'linux'].includes(secureBoot)) {
    throw new RangeError(
      `Cannot set Secure Boot of "${vm}" to "${secureBoot}": it is off, windows or linux`,
    )
  }
  if (generation === 1 && secureBoot !== undefined && secureBoot !== 'off') {
    throw new RangeError(
      `Cannot set Secure Boot of "${vm}": generation 1 has none. Run again with --secure-boot off or --generation 2`,
    )
  }
  if (cpus !== undefined && !(Number.isInteger(cpus) && cpus >= 1 && cpus <= 2048)) {
    throw new RangeError(`Cannot give "${vm}" ${cpus} CPUs: it takes a whole number from 1`)
  }
  const bytes = memory === undefined ? undefined : parseMemory(memory)
  const { stdout } = await ps`
    $name = ${vm}
    $disk = ${disk}
    $generation = ${generation}
    $cpus = ${cpus}
    $memory = ${bytes}
    $secureBoot = ${secureBoot}
    $path = ${path}
    $notes = ${notes}
    $cutOff = ${cutOff}
    $dryRun = ${dryRun}
    $cannot = "Cannot make the VM ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))
    $unfinished = 'Being made by vbox-to-hyperv'

    function fullPath($file) {
      try { $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($file) }
      catch [Management.Automation.DriveNotFoundException] { $file }
    }
    # the disk that a checkpoint's .avhdx began with; one that cannot be read stands for itself
    function baseOf($file) {
      try {
        while ($file -match '[.]avhdx?$' -and ($parent = (Get-VHD -Path $file).ParentPath)) { $file = $parent }
      } catch { $null = $_ }
      $file
    }
    # which of the two carries the code differs between cmdlets; the words around it are translated
    function codesOf($failure) { $failure.Exception.Message + ' 0x' + $failure.Exception.HResult.ToString('X8') }
    # the VM's own account by its SID, for its name is translated (assumption: the id, as four numbers)
    function accountOf($vm) { $id = $vm.Id.ToByteArray(); 'S-1-5-83-1-' + (@(0, 4, 8, 12 | ForEach-Object { [BitConverter]::ToUInt32($id, $_) }) -join '-') }
    function grant($vm, $file) {
      $ErrorActionPreference = 'Continue'
      $null = icacls.exe $file /grant "*$(accountOf $vm):F" 2>$null
      $LASTEXITCODE -eq 0
    }
    function denyDisk($file, $failure) {
      $codes = codesOf $failure
      $disk = "Cannot attach ""$file"" to ""$name"":"
      if ($codes -match '0x80070005') { throw "$disk it may not be opened (0x80070005), and its rights could not be changed. Run as an administrator: takeown /f ""$file"" /a; icacls ""$file"" /reset, and this again" }
      if ($codes -match '0xC03A001A') { throw "$disk the file is sparse, compressed or encrypted (0xC03A001A). Run: fsutil sparse setflag ""$file"" 0, then compact /u ""$file"" and cipher /d ""$file""" }
      if ($codes -match '0x80070299') { throw "$disk it is on a FAT or exFAT volume (0x80070299). Move it to one with NTFS and run again" }
      if ($codes -match '0x80070020') { throw "$disk another program has it open (0x80070020). Run: Dismount-VHD -Path ""$file"", or end VirtualBox" }
      if ($codes -match '0x80070570|0xC03A00(0[1-9A-C]|1[2-5])') { throw "$disk it is damaged, or not the image that its name says ($($Matches[0])). Run: Test-VHD -Path ""$file""" }
      throw $failure
    }

    $all = @(Get-VM)
    $found = @($all | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -gt 1) {
      throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM"
    }
    $vm = $found | Select-Object -First 1
    # what is left of a run that was killed in the middle
    $rest = $null
    # the mark comes a moment after the VM
    $marked = $vm -and ($vm.Notes -eq $unfinished -or ($cutOff -and -not $vm.Notes -and @(Get-VMHardDiskDrive -VM $vm).Count -eq 0))
    if ($marked -and [string]$vm.State -eq 'Off') { $rest = $vm; $vm = $null }
    $disks = @($disk | ForEach-Object { fullPath $_ })

    if ($vm) {
      $has = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { baseOf $_.Path })
      if ($has.Count -ne $disks.Count -or @($disks | Where-Object { $_ -notin $has }).Count -gt 0) {
        throw "$cannot a VM of that name is there with other disks ($($has -join ', ')). Run: Rename-VM -Name '$typed' -NewName 'another name', or run again with another --vm"
      }
      if ($generation -ne 'auto' -and $generation -ne $vm.Generation) {
        throw "$cannot a VM of that name and with these disks is there as generation $($vm.Generation), which cannot change. Run again with --generation $($vm.Generation), or another --vm"
      }
      $generation = [int]$vm.Generation
      $reason = 'the VM is there with it'
    } else {
      if (@($disks | Group-Object).Count -ne $disks.Count) {
        throw "$cannot a disk is named twice. Run again with each --disk once"
      }
      $used = @{}
      foreach ($other in $all) {
        if ($rest -and $other.Id -eq $rest.Id) { continue }
        foreach ($drive in @(Get-VMHardDiskDrive -VM $other)) { if ($drive.Path) { $used[(baseOf $drive.Path)] = $other.Name } }
      }
      foreach ($file in $disks) {
        $attach = "Cannot attach ""$file"" to ""$name"":"
        if (-not (Test-Path -LiteralPath $file -PathType Leaf)) { throw "$attach there is no such file. Run: Get-ChildItem -Recurse -Include *.vhdx,*.vhd" }
        if ($used.ContainsKey($file)) { throw "$attach the VM ""$($used[$file])"" has it. Run: Copy-Item, and name the copy" }
        try { $attached = (Get-VHD -Path $file).Attached } catch { denyDisk $file $_ }
        if ($attached) { throw "$attach it is mounted on the host. Run: Dismount-VHD -Path ""$file""" }
      }
      $reason = 'as asked'
    }
    if ($generation -eq 'auto' -and $disks[0] -match '[.]vhd$') {
      $generation = 1
      $reason = 'a VHD boots in generation 1 only'
    }
    if ($generation -eq 'auto') {
      $boot = $disks[0]
      $mounted = $null
      try {
        $mounted = Mount-VHD -Path $boot -ReadOnly -NoDriveLetter -Passthru
        $style = [string](Get-Disk -Number $mounted.DiskNumber).PartitionStyle
        $types = @(Get-Partition | Where-Object DiskNumber -EQ $mounted.DiskNumber | ForEach-Object { [string]$_.GptType })
      } catch {
        denyDisk $boot $_
      } finally {
        if ($mounted) { Dismount-VHD -Path $boot }
      }
      if ($style -eq 'MBR') { $generation = 1; $reason = 'the disk has an MBR' }
      elseif ($style -eq 'GPT' -and $types -contains '{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}') { $generation = 2; $reason = 'the disk has an EFI system partition' }
      elseif ($style -eq 'GPT' -and $types -contains '{21686148-6449-6e6f-744e-656564454649}') { $generation = 1; $reason = 'the disk has a BIOS boot partition' }
      else { throw "$cannot ""$boot"" does not show whether it boots by BIOS or UEFI (partition table: $style). Run again with --generation 1 (BIOS) or --generation 2 (UEFI)" }
    }
    if ($generation -eq 2 -and @($disks -match '[.]vhd$').Count -gt 0) {
      throw "$cannot generation 2 takes VHDX only, and ""$(@($disks -match '[.]vhd$')[0])"" is a VHD. Run: Convert-VHD"
    }
    if ($generation -eq 1 -and $secureBoot -in 'windows', 'linux') {
      throw "$cannot it is of generation 1 ($reason), which has no Secure Boot. Run again with --secure-boot off"
    }
    $server = Get-VMHost
    if ($cpus -gt $server.LogicalProcessorCount) {
      throw "$cannot it would have $cpus CPUs, and the host has $($server.LogicalProcessorCount). Run again with --cpus $($server.LogicalProcessorCount)"
    }
    if ($memory -gt $server.MemoryCapacity) {
      throw "$cannot it would have $($memory / 1MB) MB of memory, and the host has $([Math]::Floor($server.MemoryCapacity / 1MB)) MB. Run again with less --memory"
    }

    # name and id of each template; where a host does not know the name, it knows the id
    $templates = @{
      windows = 'MicrosoftWindows', '1734c6e8-3154-4dda-ba5f-a874cc483422'
      linux = 'MicrosoftUEFICertificateAuthority', '272e7447-90a4-4563-a4b9-8e4ab00526ce'
    }
    function setSecureBoot($vm, $wanted) {
      if ($wanted -eq 'off') { Set-VMFirmware -VM $vm -EnableSecureBoot Off; return }
      try { Set-VMFirmware -VM $vm -EnableSecureBoot On -SecureBootTemplate $templates[$wanted][0] }
      catch { Set-VMFirmware -VM $vm -EnableSecureBoot On -SecureBootTemplateId ([guid]$templates[$wanted][1]) }
    }
    $result = [ordered]@{
      changed = $true; id = $null; vm = $name; generation = $generation; generationReason = $reason
      cpus = $cpus; memory = $memory; secureBoot = $secureBoot; disks = $disks
    }

    if ($vm) {
      $before = [ordered]@{
        cpus = [int]$vm.ProcessorCount; memory = [long]$vm.MemoryStartup; dynamicMemory = [bool]$vm.DynamicMemoryEnabled
        secureBoot = $false; template = ''
      }
      $now = 'off'
      $changes = @{}
      if ($generation -eq 2) {
        $firmware = Get-VMFirmware -VM $vm
        $before.secureBoot = [string]$firmware.SecureBoot -eq 'On'
        $before.template = [string]$firmware.SecureBootTemplateId
        if ($before.secureBoot) {
          $now = 'other'
          foreach ($key in $templates.Keys) { if ($templates[$key][1] -eq $before.template) { $now = $key } }
        }
      }
      if ($null -eq $cpus) { $result.cpus = $before.cpus } elseif ($cpus -ne $before.cpus) { $changes.ProcessorCount = $cpus }
      if ($null -eq $memory) { $result.memory = $before.memory }
      elseif ($memory -ne $before.memory -or $before.dynamicMemory) { $changes.StaticMemory = $true; $changes.MemoryStartupBytes = $memory }
      if ($null -eq $secureBoot) { $result.secureBoot = $now }
      $resecure = $result.secureBoot -ne $now
      $result.changed = $changes.Count -gt 0 -or $resecure
      $result.id = [string]$vm.Id
      $result.vm = $vm.Name
      if ($result.changed) {
        if ([string]$vm.State -ne 'Off') { throw "Cannot change the VM ""$name"": it is $($vm.State), and processors, memory and Secure Boot change only while it is off. Run: Stop-VM -Name '$typed'" }
        $result.before = $before
        if (-not $dryRun) {
          try {
            if ($changes.Count -gt 0) { Set-VM -VM $vm @changes }
            if ($resecure) { setSecureBoot $vm $secureBoot }
          } catch {
            $failure = $_
            Set-VM -VM $vm -ProcessorCount $before.cpus -MemoryStartupBytes $before.memory
            if ($before.dynamicMemory) { Set-VM -VM $vm -DynamicMemory }
            throw $failure
          }
        }
      }
      ConvertTo-Json -InputObject $result -Compress -Depth 4
      return
    }

    # by which a run that was killed can be taken back
    if ($rest) { $result.id = [string]$rest.Id }
    if ($null -eq $cpus) { $result.cpus = [Math]::Min(2, $server.LogicalProcessorCount) }
    if ($null -eq $memory) { $result.memory = 2GB }
    if ($null -eq $secureBoot) { $result.secureBoot = 'off' }
    if (-not $dryRun) {
      if ($rest) { Remove-VM -VM $rest -Force }
      $new = @{ Name = $name; Generation = $generation; MemoryStartupBytes = $result.memory; NoVHD = $true }
      if ($path) { $new.Path = fullPath $path }
      $vm = New-VM @new
      try {
        $settings = @{ StaticMemory = $true; ProcessorCount = $result.cpus; AutomaticStopAction = 'ShutDown'; Notes = $unfinished }
        # hosts before Windows 10 1709 and Windows Server 2019 have no automatic checkpoints
        if ((Get-Command Set-VM).Parameters.ContainsKey('AutomaticCheckpointsEnabled')) { $settings.AutomaticCheckpointsEnabled = $false }
        Set-VM -VM $vm @settings
        foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm)) { Remove-VMNetworkAdapter -VMNetworkAdapter $adapter }
        $ide = @(@(0, 0), @(0, 1), @(1, 1))
        for ($index = 0; $index -lt $disks.Count; $index++) {
          $place = @{ ControllerType = 'IDE'; Path = $disks[$index] }
          if ($generation -eq 1 -and $index -lt $ide.Count) {
            $place.ControllerNumber = $ide[$index][0]
            $place.ControllerLocation = $ide[$index][1]
          } else {
            if (@(Get-VMScsiController -VM $vm).Count -eq 0) { Add-VMScsiController -VM $vm }
            $place.ControllerType = 'SCSI'
            $place.ControllerNumber = 0
            $place.ControllerLocation = $index - $(if ($generation -eq 1) { $ide.Count } else { 0 })
          }
          try { Add-VMHardDiskDrive -VM $vm @place } catch {
            # a file that was copied over another keeps its own rights, without the VM
            if ((codesOf $_) -notmatch '0x80070005' -or -not (grant $vm $disks[$index])) { denyDisk $disks[$index] $_ }
            try { Add-VMHardDiskDrive -VM $vm @place } catch { denyDisk $disks[$index] $_ }
          }
        }
        if ($generation -eq 1) {
          Set-VMBios -VM $vm -StartupOrder IDE, CD, LegacyNetworkAdapter, Floppy
        } else {
          setSecureBoot $vm $result.secureBoot
          Set-VMFirmware -VM $vm -FirstBootDevice (Get-VMHardDiskDrive -VM $vm -ControllerType SCSI -ControllerNumber 0 -ControllerLocation 0)
        }
        Set-VM -VM $vm -Notes $notes
      } catch {
        $failure = $_
        try {
          $folder = $vm.Path
          Remove-VM -VM $vm -Force
          # of a folder of its own Hyper-V leaves the empty tree
          if ($path -and [IO.Directory]::Exists($folder) -and [IO.Directory]::GetFiles($folder, '*', 'AllDirectories').Count -eq 0) { [IO.Directory]::Delete($folder, $true) }
        } catch {
          Write-Warning "The VM ""$name"" could neither be made whole nor removed: $($_.Exception.Message) Run: Remove-VM -Name '$typed'"
        }
        throw $failure
      }
      $result.id = [string]$vm.Id
    }
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  return JSON.parse(stdout) as CreateVmResult
}

/** Removes the VM that {@link createVm} made, never its disks, or gives one that was there what it had. */
export async function undoCreateVm(
  result: CreateVmResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed || result.id === null) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $made = $null -eq $result.before
    $cpus = $result.before.cpus
    $memory = $result.before.memory
    $dynamicMemory = $result.before.dynamicMemory
    $secureBoot = $result.before.secureBoot
    $template = $result.before.template
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm) { return }
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
    if ($made) {
      if ([string]$vm.State -ne 'Off') {
        throw "Cannot remove the VM ""$($vm.Name)"": it is $($vm.State), and what its guest has not written would be lost. Run: Stop-VM -Name '$typed'"
      }
      $folder = $vm.Path
      Remove-VM -VM $vm -Force
      if ($folder -ne (Get-VMHost).VirtualMachinePath -and [IO.Directory]::Exists($folder) -and [IO.Directory]::GetFiles($folder, '*', 'AllDirectories').Count -eq 0) { [IO.Directory]::Delete($folder, $true) }
      return
    }
    $settings = @{}
    if ($vm.ProcessorCount -ne $cpus) { $settings.ProcessorCount = $cpus }
    if ($vm.MemoryStartup -ne $memory) { $settings.MemoryStartupBytes = $memory }
    if ($vm.DynamicMemoryEnabled -ne $dynamicMemory) { $settings[$(if ($dynamicMemory) { 'DynamicMemory' } else { 'StaticMemory' })] = $true }
    $firmware = @{}
    if ($vm.Generation -eq 2) {
      $has = Get-VMFirmware -VM $vm
      if ([string]$has.SecureBootTemplateId -ne $template) { $firmware.SecureBootTemplateId = [guid]$template }
      if (([string]$has.SecureBoot -eq 'On') -ne $secureBoot) { $firmware.EnableSecureBoot = $(if ($secureBoot) { 'On' } else { 'Off' }) }
    }
    if ($settings.Count + $firmware.Count -gt 0 -and [string]$vm.State -ne 'Off') {
      throw "Cannot change the VM ""$($vm.Name)"" back: it is $($vm.State), and processors, memory and Secure Boot change only while it is off. Run: Stop-VM -Name '$typed'"
    }
    if ($settings.Count -gt 0) { Set-VM -VM $vm @settings }
    if ($firmware.Count -gt 0) { Set-VMFirmware -VM $vm @firmware }`
}

function refuseName(vm: string): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (vm.trim() !== '' && vm.length <= 100 && !/[\u0000-\u001f\u007f]/.test(vm)) return
  throw new TypeError(
    `Cannot make a VM named ${JSON.stringify(vm)}: ` +
      'a name is 1 to 100 characters and no control characters. Run again with another --vm',
  )
}

function refuseDisks(vm: string, disk: readonly string[], generation: 'auto' | 1 | 2): void {
  if (disk.length < 1 || disk.length > 64) {
    throw new RangeError(
      `Cannot make "${vm}" with ${disk.length} disks: it takes 1 to 64. Run again with --disk`,
    )
  }
  for (const file of disk) {
    if (!/\.vhdx?$/i.test(file)) {
      throw new TypeError(
        `Cannot attach "${file}" to "${vm}": Hyper-V opens .vhdx and .vhd. ` +
          `Run: npx zx tasks/convert-disk.ts --from "${file}" --to "${file}.vhdx"`,
      )
    }
    if (generation === 2 && /\.vhd$/i.test(file)) {
      throw new TypeError(
        `Cannot attach "${file}" to "${vm}": generation 2 takes VHDX only. ` +
          `Run: Convert-VHD -Path "${file}" -DestinationPath "${file}x"`,
      )
    }
  }
}

/**
 * Bytes of an amount of memory that Hyper-V takes: bytes, or text such as `4GB`, `4096MB` or `4GiB`.
 * Units are binary, as in Hyper-V and VirtualBox: 1 GB is 1024 MB.
 */
export function parseMemory(memory: number | string): number {
  const [, number = NaN, unit = ''] = /^\s*(\d+(?:\.\d+)?)\s*([MGT])i?B?\s*$/i.exec(`${memory}`) ??
    []
  const bytes = typeof memory === 'number'
    ? memory
    : Number(number) * 1024 ** ('MGT'.indexOf(unit.toUpperCase()) + 2)
  if (Number.isNaN(bytes)) {
    throw new TypeError(
      `Cannot take "${memory}" for an amount of memory: it needs a number and a unit. Run again with --memory 4GB or 4096MB`,
    )
  }
  const step = 2 * 1024 ** 2
  if (bytes % step === 0 && bytes >= 16 * step && bytes <= Number.MAX_SAFE_INTEGER) return bytes
  const next = Math.min(Math.max(16, Math.ceil(bytes / step)), 2 ** 23) * 2
  throw new RangeError(
    `Cannot give a VM ${memory} of memory: Hyper-V takes multiples of 2 MB from 32 MB. Run again with --memory ${next}MB`,
  )
}

await hostCommand(
  import.meta,
  'Make a VM from virtual hard disks, without starting it',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    disk: {
      type: 'string',
      array: true,
      demandOption: true,
      describe: 'Its disks, VHDX or VHD, the one that boots first',
      example: 'Win10.vhdx',
    },
    generation: {
      type: 'string',
      choices: ['auto', '1', '2'],
      describe: '1 boots by BIOS, 2 by UEFI, auto as the disk shows [default: auto]',
    },
    cpus: { type: 'number', describe: 'Virtual processors [default: 2]' },
    memory: { type: 'string', describe: 'E.g. 4GB or 4096MB [default: 2GB]' },
    secureBoot: {
      type: 'string',
      choices: ['off', 'windows', 'linux'],
      describe: 'Whose boot loaders start, in generation 2 [default: off]',
    },
    path: { type: 'string', describe: 'Folder on the host for the VM’s own folder' },
    notes: { type: 'string', describe: 'Notes of a new VM' },
    dryRun,
  },
  ({ generation = 'auto', ...given }: CommandLine, ps) =>
    createVm({
      ...given,
      generation: generation === 'auto' ? generation : Number(generation) as 1 | 2,
    }, ps),
)

type CommandLine = Omit<CreateVmOptions, 'generation'> & { generation?: 'auto' | '1' | '2' }
