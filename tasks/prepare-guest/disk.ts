/** Windows on a disk of Hyper-V, made ready there where nobody did it while VirtualBox ran it. */
import { powershell } from '../task.ts'
import type { GuestStep } from '../prepare-guest.ts'

/**
 * What Windows may start from on Hyper-V, with the disks of either generation. One that is not installed
 * is passed over. (Own knowledge, with virt-v2v's convert_windows.ml and KB922976.)
 */
export const BOOT_DRIVERS = ['vmbus', 'storvsc', 'intelide', 'atapi', 'pciide', 'storahci'] as const

export interface PrepareDiskOptions {
  /** The converted disk, VHDX or VHD, on the host. A relative path is taken from PowerShell's current location. */
  disk: string
  /** Files that belong to the source, as the host names them: none of them is changed. @default none */
  source?: readonly string[] | undefined
  /** The VM that is to have the disk: one that has it already keeps it as it is. @default none */
  vm?: string | undefined
  /** Say what would change. @default false */
  dryRun?: boolean | undefined
}

export interface PrepareDiskResult {
  changed: boolean
  /** Whether nothing is known that keeps Windows from starting on Hyper-V: no step is a refusal. */
  ready: boolean
  /** Absolute, as the host writes it. */
  disk: string
  guest: 'windows'
  steps: GuestStep[]
  /** What was changed in the registry of Windows, and what it was; null: there was none. */
  before: { what: string; was: string | null }[]
}

/**
 * Makes Windows on a disk ready for Hyper-V, by its registry: boot drivers that start with it (else stop
 * 0x7B), Fast Startup off, stop screens that stay. The disk is mounted on the host, at a folder or else
 * at a letter, read-only first: what is to be refused is found before anything is written, and nothing is written
 * where all is so already.
 *
 * Refuses the disk of a VM of VirtualBox, of a VM that is not off or has checkpoints, one that is mounted,
 * and a Windows that is hibernated, not closed properly, or locked by BitLocker. What was before is kept
 * in the registry there, from where {@link undoPrepareDisk} takes it.
 *
 * Only reg.exe touches the registry: it holds no key open, so that the hive can be unloaded again
 * (a process that opened keys has to wait for its garbage collector).
 *
 * Assumptions, not checked on Windows: Win32_Volume.DirtyBitSet tells of a disk that is mounted read-only
 * too; an administrator may read hiberfil.sys of a Windows that does not run.
 */
export async function prepareDisk(
  { disk, source = [], vm, dryRun = false }: PrepareDiskOptions,
  ps = powershell,
): Promise<PrepareDiskResult> {
  return await tell('prepare', disk, source, vm, dryRun, ps)
}

/**
 * Puts back what {@link prepareDisk} changed, where it is still so. Harmless where nothing was, where the
 * disk is gone, and where Windows has run since and was not shut down: that is left as it is, with a warning.
 */
export async function undoPrepareDisk(
  { changed, disk }: Pick<PrepareDiskResult, 'changed' | 'disk'>,
  ps = powershell,
  dryRun = false,
): Promise<PrepareDiskResult | undefined> {
  return changed ? await tell('undo', disk, [], undefined, dryRun, ps) : undefined
}

async function tell(
  mode: 'prepare' | 'undo',
  disk: string,
  source: readonly string[],
  owner: string | undefined,
  dryRun: boolean,
  ps: typeof powershell,
): Promise<PrepareDiskResult> {
  refuse(disk)
  const { stdout } = await ps`
    $disk = ${disk}
    $sources = ${source}
    $owner = ${owner}
    $drivers = ${BOOT_DRIVERS}
    $mode = ${mode}
    $dryRun = ${dryRun}
    $slash = [string][char]92
    $file = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($disk)
    $cannot = $(if ($mode -eq 'undo') { "Cannot undo what was prepared on ""$file"":" } else { "Cannot prepare the guest on ""$file"":" })
    $typed = "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($file) + "'"
    $record = 'vbox-to-hyperv'
    $steps = New-Object Collections.ArrayList
    $before = New-Object Collections.ArrayList
    $left = New-Object Collections.ArrayList
    $found = New-Object Collections.ArrayList
    $seen = @{}
    $way = @{ letters = $false; used = $false; failure = $null }

    function say($step, $state, $detail) { $null = $steps.Add([ordered]@{ step = $step; state = $state; detail = $detail }) }
    function finish {
      $answer = [ordered]@{
        changed = @($steps | Where-Object { $_.state -eq 'changed' }).Count -gt 0
        ready = @($steps | Where-Object { $_.state -eq 'refusal' }).Count -eq 0
        disk = $file; guest = 'windows'; steps = @($steps); before = @($before)
      }
      ConvertTo-Json -InputObject $answer -Compress -Depth 4
    }
    # the way out goes on whatever fails on it
    function tidy($work, $mend) {
      try { & $work } catch {
        $text = "$($_.Exception.Message.Trim()) Run: $mend"
        Write-Warning $text
        $null = $left.Add($text)
      }
    }
    # a program's words on its error stream are no failure of ours
    function ask($asked) {
      $ErrorActionPreference = 'Continue'
      $lines = @(& reg.exe @asked 2>$null)
      @{ code = $LASTEXITCODE; lines = $lines }
    }
    function keyOf($path) { "HKLM$slash$hive" + $(if ($path) { $slash + $path }) }

    # --- what is not to be changed ---

    if (-not (Test-Path -LiteralPath $file -PathType Leaf)) {
      if ($mode -eq 'undo') { say 'undo' 'ok' 'The disk is gone'; finish; return }
      throw "$cannot there is no such file. Run: Get-ChildItem -Recurse -Include *.vhdx,*.vhd"
    }
    $convert = "npx zx tasks/convert-disk.ts --from $typed --to copy.vhdx, and prepare that"
    foreach ($source in $sources) {
      if ($file.Equals($ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($source), 'OrdinalIgnoreCase')) { throw "$cannot it is the source, which stays as it is. Run: $convert" }
    }
    $folder = [IO.Path]::GetDirectoryName($file)
    $location = 'location="([^"]*[/' + $slash + $slash + '])?' + [regex]::Escape([Security.SecurityElement]::Escape([IO.Path]::GetFileName($file))) + '"'
    foreach ($place in @($folder, [IO.Path]::GetDirectoryName($folder)) | Where-Object { $_ }) {
      foreach ($settings in @([IO.Directory]::GetFiles($place, '*.vbox'))) {
        if ([regex]::IsMatch([IO.File]::ReadAllText($settings), $location, 'IgnoreCase')) { throw "$cannot the VM of VirtualBox in ""$settings"" has it, and a source stays as it is. Run: $convert" }
      }
    }
    function baseOf($path) {
      try { while ($path -match '[.]avhdx?$' -and ($parent = (Get-VHD -Path $path).ParentPath)) { $path = $parent } } catch { $null = $_ }
      $path
    }
    foreach ($vm in @(Get-VM)) {
      $of = "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name)) + "'"
      foreach ($drive in @(Get-VMHardDiskDrive -VM $vm | Where-Object { $_.Path })) {
        $direct = $file.Equals($drive.Path, 'OrdinalIgnoreCase')
        if (-not $direct -and -not $file.Equals((baseOf $drive.Path), 'OrdinalIgnoreCase')) { continue }
        if ($vm.Name.Equals($owner, 'OrdinalIgnoreCase')) { say 'disk' 'ok' "The VM ""$($vm.Name)"" has it already"; finish; return }
        if ([string]$vm.State -ne 'Off') { throw "$cannot the VM ""$($vm.Name)"" has it and is $($vm.State). Run: Stop-VM -Name $of" }
        if (-not $direct) { throw "$cannot the VM ""$($vm.Name)"" has checkpoints on top of it, which a change below would break. Run: Get-VMSnapshot -VMName $of | Remove-VMSnapshot" }
      }
    }
    $image = Get-VHD -Path $file
    if ($image.Attached) { throw "$cannot it is mounted on the host. Run: Dismount-VHD -Path $typed" }
    if ([string]$image.VhdType -eq 'Differencing') { throw "$cannot it holds only what differs from ""$($image.ParentPath)"". Run: Merge-VHD -Path $typed" }

    # --- the disk, mounted, and the registry on it, loaded ---

    # calls WORK with each partition that Windows may be on, and the folder that it is at
    function onDisk($readOnly, $numbers, $work) {
      $at = [IO.Path]::Combine([IO.Path]::GetTempPath(), 'vbox-to-hyperv-' + [guid]::NewGuid().ToString('N'))
      $null = [IO.Directory]::CreateDirectory($at)
      try {
        try { $mounted = Mount-VHD -Path $file -ReadOnly:$readOnly -NoDriveLetter:(-not $way.letters) -Passthru } catch {
          $codes = $_.Exception.Message + ' 0x' + $_.Exception.HResult.ToString('X8')
          if ($codes -match '0x80070020') { throw "$cannot another program has it open (0x80070020). End it, and run again" }
          if ($codes -match '0x8007(0005|0522)') { throw "$cannot only an administrator may mount a disk ($($Matches[0])). Run again in PowerShell as administrator" }
          throw
        }
        try {
          # Windows may take a moment to see what is on a disk that it has mounted
          for ($try = 1; $try -le 20; $try++) {
            $partitions = @(Get-Partition | Where-Object { $_.DiskNumber -eq $mounted.DiskNumber })
            if ($partitions.Count -gt 0) { break }
            Start-Sleep -Milliseconds 250
          }
          foreach ($partition in $partitions) {
            $basic = [string]$partition.GptType -eq '{ebd0a0a2-b9e5-4433-87c0-68b6b72699c7}' -or $partition.MbrType -eq 7
            if (-not $basic -or ($numbers -and $partition.PartitionNumber -notin $numbers)) { continue }
            if ($way.letters) {
              if (-not [int]$partition.DriveLetter) { continue }
              $way.used = $true
              & $work $partition ([string]$partition.DriveLetter + ':' + [IO.Path]::DirectorySeparatorChar)
              continue
            }
            try { Add-PartitionAccessPath -DiskNumber $partition.DiskNumber -PartitionNumber $partition.PartitionNumber -AccessPath $at } catch { $way.failure = $_; break }
            try { & $work $partition $at } finally {
              tidy { Remove-PartitionAccessPath -DiskNumber $partition.DiskNumber -PartitionNumber $partition.PartitionNumber -AccessPath $at } "mountvol '$at' /D"
            }
          }
          if ($way.letters -and -not $way.used) { throw $way.failure }
        } finally { tidy { Dismount-VHD -Path $file } "Dismount-VHD -Path $typed" }
      } finally {
        # never what is in it: it may still be the volume
        tidy { [IO.Directory]::Delete($at) } "mountvol '$at' /D"
      }
      # a volume that takes no folder has the letter that Windows gives it by itself
      if ($way.failure -and -not $way.letters) {
        $way.letters = $true
        onDisk $readOnly $numbers $work
      }
    }
    function onHive($path, $work) {
      $hive = 'vbox-to-hyperv-' + [guid]::NewGuid().ToString('N')
      $said = ask @('load', (keyOf), $path)
      if ($said.code -ne 0) { throw "$cannot the registry of Windows on it could not be loaded (reg load: exit code $($said.code)), which takes an administrator. Run again in PowerShell as administrator" }
      $seen.Clear()
      try { & $work } finally {
        tidy {
          for ($try = 1; (ask @('unload', (keyOf))).code -ne 0; $try++) {
            if ($try -ge 5) { throw "The registry of Windows on ""$file"" is still in use." }
            Start-Sleep -Seconds 1
          }
        } "reg unload $(keyOf)"
      }
    }
    # names of its keys, and values as reg.exe writes them, kept until something is changed
    function read($path) {
      if ($seen.ContainsKey($path)) { return $seen[$path] }
      $said = ask @('query', (keyOf $path))
      if ($said.code -ne 0) { throw "$cannot the registry of Windows on it has no key ""$path"", or it cannot be read (reg query: exit code $($said.code)). Run in the guest: chkdsk /f" }
      $start = 'HKEY_LOCAL_MACHINE' + (keyOf $path).Substring(4) + $slash
      $content = @{ keys = @(); values = @{} }
      foreach ($line in $said.lines) {
        if ($line -match '^ {4}(.*?) {4}(REG_[A-Z_]+)(?: {4}(.*))?$') { $content.values[$Matches[1]] = [string]$Matches[3] }
        elseif ($line.StartsWith($start, 'OrdinalIgnoreCase')) { $content.keys += $line.Substring($start.Length) }
      }
      $seen[$path] = $content
      $content
    }
    function has($path) {
      $at = ''
      foreach ($name in $path.Split([char]92)) {
        if ($name -notin (read $at).keys) { return $false }
        $at = $(if ($at) { $at + $slash + $name } else { $name })
      }
      $true
    }
    function change($asked, $what) {
      $seen.Clear()
      $said = ask $asked
      if ($said.code -ne 0) { throw "$cannot its registry does not take $what (reg $($asked[0]): exit code $($said.code)). Run in the guest: chkdsk /f" }
    }

    # --- what is to change ---

    # the one that ran last, and the one that starts next: the same unless Windows did not start
    function sets {
      $select = (read 'Select').values
      @(@($select.Current, $select.Default) | Where-Object { $_ } | ForEach-Object { 'ControlSet{0:d3}' -f [Convert]::ToInt32($_, 16) } | Sort-Object -Unique)
    }
    # each: a key, a name and what it is to be, DELETE for a key that is to go
    function lookAt($set) {
      $services = @((read ($set + $slash + 'Services')).keys)
      $there = @($drivers | Where-Object { $_ -in $services })
      $scsi = 'vmbus' -in $there -and 'storvsc' -in $there
      $late = @()
      if (-not $scsi -and ('intelide' -notin $there -or 'atapi' -notin $there)) {
        say 'boot-drivers' 'refusal' 'This Windows has neither vmbus and storvsc nor intelide and atapi, and stops on Hyper-V with 0x7B (INACCESSIBLE_BOOT_DEVICE). Start it in VirtualBox, and install the integration services in it'
        return
      }
      if (-not $scsi) { say 'boot-drivers' 'warning' 'This Windows has no vmbus and storvsc, so it starts from IDE alone, in a VM of generation 1' }
      foreach ($driver in $there) {
        $key = @($set, 'Services', $driver) -join $slash
        $own = read $key
        $was = $own.values.Start
        $override = $key + $slash + 'StartOverride'
        if ($was -ne '0x0') { @{ key = $key; name = 'Start'; was = $was } }
        if ('StartOverride' -in $own.keys) { @{ key = $override; name = ''; was = 'key'; values = (read $override).values } }
        if ($was -ne '0x0' -or 'StartOverride' -in $own.keys) { $late += $driver }
      }
      if ($late.Count -eq 0) { say 'boot-drivers' 'ok' "These drivers start with Windows: $($there -join ', ')" }
      else { say 'boot-drivers' 'changed' "These drivers $(if ($dryRun) { 'would start with Windows' } else { 'start with Windows now' }): $($late -join ', ')" }
      $power = @($set, 'Control', 'Session Manager', 'Power') -join $slash
      $was = $(if (has $power) { (read $power).values.HiberbootEnabled })
      if ($was -and $was -ne '0x0') {
        @{ key = $power; name = 'HiberbootEnabled'; was = $was }
        say 'hibernation' 'changed' "Fast Startup $(if ($dryRun) { 'would be off' } else { 'is off now' }), so that the disk is complete when Windows is shut down"
      } else { say 'hibernation' 'ok' 'Fast Startup is off' }
      $crash = @($set, 'Control', 'CrashControl') -join $slash
      $was = $(if (has $crash) { (read $crash).values.AutoReboot })
      if ($was -ne '0x0') {
        @{ key = $crash; name = 'AutoReboot'; was = $was }
        say 'auto-reboot' 'changed' "Windows $(if ($dryRun) { 'would show' } else { 'shows' }) a stop screen until someone has read it"
      } else { say 'auto-reboot' 'ok' 'Windows shows a stop screen until someone has read it' }
    }
    # written down before it is changed, and what was before the first change alone
    function keep($key, $name, $was) {
      $what = $key + '|' + $name
      $null = $before.Add([ordered]@{ what = $what; was = $was })
      if ((has $record) -and (read $record).values.ContainsKey($what)) { return }
      change @('add', (keyOf $record), '/v', $what, '/t', 'REG_SZ', '/d', $(if ($null -eq $was) { 'none' } else { $was }), '/f') 'a note of what was'
    }
    function apply($changes) {
      foreach ($one in $changes) {
        keep $one.key $one.name $one.was
        if ($one.was -eq 'key') {
          foreach ($name in @($one.values.Keys | Sort-Object)) { keep $one.key $name $one.values[$name] }
          change @('delete', (keyOf $one.key), '/f') $one.key
        } else { change @('add', (keyOf $one.key), '/v', $one.name, '/t', 'REG_DWORD', '/d', '0', '/f') $one.name }
      }
      foreach ($one in $changes) {
        if ($one.was -ne 'key' -and (read $one.key).values[$one.name] -ne '0x0') { throw "$cannot its registry has not taken $($one.key)$slash$($one.name). Run in the guest: chkdsk /f" }
      }
    }
    function putBack {
      if (-not (has $record)) { return }
      $kept = (read $record).values
      foreach ($what in @($kept.Keys | Sort-Object)) {
        $key, $name = $what.Split('|')
        $was = $kept[$what]
        $owner = $(if ($key.EndsWith('StartOverride')) { $key.Substring(0, $key.LastIndexOf($slash)) } else { $key })
        if (-not (has $owner)) { continue }
        if ($owner -ne $key) {
          if ($was -eq 'key') { change @('add', (keyOf $key), '/f') $key } else { change @('add', (keyOf $key), '/v', $name, '/t', 'REG_DWORD', '/d', $was, '/f') $name }
          continue
        }
        # someone else's by now
        if ((read $key).values[$name] -ne '0x0') { continue }
        if ($was -eq 'none') { change @('delete', (keyOf $key), '/v', $name, '/f') $name }
        else { change @('add', (keyOf $key), '/v', $name, '/t', 'REG_DWORD', '/d', $was, '/f') $name }
      }
      change @('delete', (keyOf $record), '/f') $record
    }

    # --- look, with nothing written; then do it ---

    # looked at in a copy, for a hive is written to when it is loaded
    function copied($hivePath, $work) {
      $own = [IO.Path]::Combine([IO.Path]::GetTempPath(), 'vbox-to-hyperv-' + [guid]::NewGuid().ToString('N'))
      $null = [IO.Directory]::CreateDirectory($own)
      try {
        foreach ($suffix in '', '.LOG1', '.LOG2') {
          if ([IO.File]::Exists($hivePath + $suffix)) { [IO.File]::Copy($hivePath + $suffix, [IO.Path]::Combine($own, "SYSTEM$suffix")) }
        }
        onHive ([IO.Path]::Combine($own, 'SYSTEM')) $work
      } finally { tidy { [IO.Directory]::Delete($own, $true) } "Remove-Item -Recurse '$own'" }
    }
    # why nothing may be written there, and what mends it
    function obstacle($partition, $at) {
      $hiberfil = [IO.Path]::Combine($at, 'hiberfil.sys')
      if ([IO.File]::Exists($hiberfil)) {
        $stream = [IO.File]::OpenRead($hiberfil)
        try {
          $bytes = New-Object byte[] 4
          $count = $stream.Read($bytes, 0, 4)
        } finally { $stream.Dispose() }
        if ($count -eq 4 -and [Text.Encoding]::ASCII.GetString($bytes) -in 'hibr', 'rstr') {
          return 'Windows on it is hibernated, or was shut down by Fast Startup, and what is written now would be lost or do damage', 'Start it in VirtualBox, run in it, elevated: powercfg /h off; shutdown /s /t 0, and convert its disk again'
        }
      }
      $id = @($partition.AccessPaths | Where-Object { $_ -like '*Volume{*' })[0]
      if (@(Get-CimInstance -ClassName Win32_Volume | Where-Object { $_.DeviceID -eq $id -and $_.DirtyBitSet }).Count -gt 0) {
        return 'the volume of Windows was not closed properly, or is damaged', 'Start it in VirtualBox, let it check the disk, shut it down, and convert its disk again'
      }
    }
    # a Windows without BitLocker has no such class
    function lockedVolumes {
      try { @(Get-CimInstance -Namespace root/cimv2/Security/MicrosoftVolumeEncryption -ClassName Win32_EncryptableVolume | Where-Object { $_.ProtectionStatus -eq 2 } | ForEach-Object { [string]$_.DeviceID }) }
      catch { if ($_.Exception.HResult -ne -2147217394 -and $_.FullyQualifiedErrorId -notlike 'HRESULT 0x8004100e*') { throw } }
    }
    $locked = New-Object Collections.ArrayList
    $open = New-Object Collections.ArrayList
    onDisk $true $null {
      $partition, $at = $args
      $hivePath = [IO.Path]::Combine($at, 'Windows', 'System32', 'config', 'SYSTEM')
      if (@(lockedVolumes | Where-Object { $_ -in $partition.AccessPaths }).Count -gt 0) { $null = $locked.Add($partition.PartitionNumber); return }
      if (-not [IO.File]::Exists($hivePath)) { return }
      $why, $mend = obstacle $partition $at
      if ($why -and $mode -eq 'undo') { $null = $open.Add($why); return }
      if ($why) { throw "$cannot $why. $mend" }
      copied $hivePath {
        $one = @{ number = $partition.PartitionNumber; changes = @(); kept = has $record }
        if ($mode -eq 'prepare') { $one.changes = @(sets | ForEach-Object { lookAt $_ }) }
        $null = $found.Add($one)
      }
    }
    if ($left.Count -gt 0) { throw "$cannot $($left[0])" }
    if ($mode -eq 'undo' -and $locked.Count -gt 0) { $null = $open.Add('BitLocker has locked it') }
    if ($mode -eq 'undo' -and $open.Count -gt 0) {
      # it has run since, and is its own again
      say 'undo' 'warning' "Windows stays prepared for Hyper-V, with which it starts in VirtualBox too: $($open[0])"
      finish
      return
    }
    if ($found.Count -eq 0 -and $locked.Count -gt 0) {
      throw "$cannot BitLocker has locked its partition $($locked -join ', '). Start it in VirtualBox, run in it, elevated: Suspend-BitLocker -MountPoint C: -RebootCount 0, and convert its disk again"
    }
    if ($found.Count -eq 0) {
      if ($mode -eq 'undo') { say 'undo' 'ok' 'There is no Windows on it'; finish; return }
      throw "$cannot there is no Windows on it. A Linux is prepared while VirtualBox runs it. Run: npx zx tasks/prepare-guest.ts --vm NAME --user root --credential prompt"
    }
    $todo = @($found | Where-Object { $(if ($mode -eq 'undo') { $_.kept } else { $_.changes.Count -gt 0 }) })
    if ($mode -eq 'undo') {
      if ($todo.Count -eq 0) { say 'undo' 'ok' 'Nothing was changed there' }
      else { say 'undo' 'changed' "What was changed in the registry of Windows $(if ($dryRun) { 'would be' } else { 'is' }) as it was" }
    }
    # what would not start gains nothing by half of it
    if ($todo.Count -gt 0 -and -not $dryRun -and @($steps | Where-Object { $_.state -eq 'refusal' }).Count -eq 0) {
      onDisk $false @($todo | ForEach-Object { $_.number }) {
        $partition, $at = $args
        onHive ([IO.Path]::Combine($at, 'Windows', 'System32', 'config', 'SYSTEM')) {
          if ($mode -eq 'undo') { putBack; return }
          try { apply @($todo | Where-Object { $_.number -eq $partition.PartitionNumber })[0].changes } catch {
            $failure = $_
            tidy { putBack } 'npx zx tasks/prepare-guest.ts --undo with the same --disk'
            throw $failure
          }
        }
      }
      if ($left.Count -gt 0) { throw "$cannot $($left[0])" }
    } elseif (-not $dryRun) {
      foreach ($one in @($steps | Where-Object { $_.state -eq 'changed' })) { $steps.Remove($one) }
    }
    finish`
  return JSON.parse(stdout) as PrepareDiskResult
}

function refuse(disk: string): void {
  const shown = JSON.stringify(disk)
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (disk.trim() === '' || /[\u0000-\u001f\u007f]/.test(disk)) {
    throw new TypeError(
      `Cannot prepare the guest on ${shown}: that is no file's name. Name a .vhdx`,
    )
  }
  if (/\.vhdx?$/i.test(disk)) return
  throw new TypeError(
    `Cannot prepare the guest on ${shown}: the host mounts .vhdx and .vhd. ` +
      `Run: npx zx tasks/convert-disk.ts --from ${shown} --to copy.vhdx, and prepare that`,
  )
}
