#!/usr/bin/env zx
/** Start a Hyper-V VM, wait until its guest answers, and say at which addresses. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface StartVmOptions {
  /** The VM's name. */
  vm: string
  /** Seconds to wait for the guest. @default 120 */
  timeout?: number | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface StartVmResult {
  changed: boolean
  /** The VM's id, by which the undo finds it again. */
  id: string
  vm: string
  /** As Hyper-V calls it: `Running`, or what the VM went to while the guest was waited for. */
  state: string
  /** `none`: the guest's integration services did not answer in time. The VM runs for all that. */
  heartbeat: 'ok' | 'none'
  /** Seconds from the start to the answer, or to the end of the wait. */
  waited: number
  adapters: {
    name: string
    /** Null when not connected. */
    switch: string | null
    /** 12 hexadecimal digits. */
    mac: string
    /** What the guest reports, IPv4 first, without those of `linkLocal`. */
    addresses: string[]
    /** 169.254.x.x and fe80::, which a guest gives itself when nobody gives it one. */
    linkLocal: string[]
  }[]
  /** Absent when the VM ran already. */
  before?: { state: string }
}

/**
 * Starts the VM, or resumes it when paused. Running says nothing about the guest: the heartbeat of
 * its integration services does, and they report its addresses a moment later, if at all
 * (learn.microsoft.com/virtualization/hyper-v-on-windows/reference/integration-services). So both are
 * asked for, first often and then every 4 seconds. Addresses are waited for where an adapter is
 * connected: 30 seconds for the first, 5 where another is known, as a network may have no DHCP. A
 * guest that does not answer is no failure: the result says so. Disks that its account may not open, as
 * when a file was copied over one, are given to it, once.
 */
export async function startVm(
  { vm, timeout = 120, dryRun = false }: StartVmOptions,
  ps = powershell,
): Promise<StartVmResult> {
  refuseName(vm)
  if (!(timeout >= 0 && timeout <= 86400)) {
    throw new RangeError(
      `Cannot wait ${timeout} seconds for "${vm}": it is 0 to 86400. Run again with --timeout 120`,
    )
  }
  const { stdout } = await ps`
    $name = ${vm}
    $timeout = ${timeout}
    $dryRun = ${dryRun}
    $cannot = "Cannot start ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))

    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) {
      throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM"
    }
    $vm = $found[0]
    $state = [string]$vm.State
    $changed = $state -in 'Off', 'Saved', 'Paused'
    if (-not $changed -and $state -notin 'Running', 'Starting', 'Resuming') {
      if ($state -like '*Critical') { throw "$cannot it is $state, for its disk or the drive under it is gone or full. Run: Get-VMHardDiskDrive -VMName '$typed'" }
      throw "$cannot it is $state, and has to come to an end of that first. Run: Get-VM -Name '$typed', until it is Off"
    }

    # which of the two carries the code differs between cmdlets; the words around it are translated
    function codesOf($failure) { $failure.Exception.Message + ' 0x' + $failure.Exception.HResult.ToString('X8') }
    # its own account by the SID, for its name is translated (assumption: the id, as four numbers)
    $id = $vm.Id.ToByteArray()
    $right = '*S-1-5-83-1-' + (@(0, 4, 8, 12 | ForEach-Object { [BitConverter]::ToUInt32($id, $_) }) -join '-') + ':F'
    # its disks, with those that they build on
    function disksOf($vm) {
      foreach ($drive in @(Get-VMHardDiskDrive -VM $vm | Where-Object { $_.Path })) {
        for ($file = $drive.Path; $file; $file = $parent) {
          $file
          $parent = $null
          if ($file -match '[.]avhdx?$') { try { $parent = (Get-VHD -Path $file).ParentPath } catch { $null = $_ } }
        }
      }
    }
    function grant($files) {
      $ErrorActionPreference = 'Continue'
      foreach ($file in $files) {
        $null = icacls.exe $file /grant $right 2>$null
        if ($LASTEXITCODE -ne 0) { return $false }
      }
      $true
    }
    function startNow { if ($state -eq 'Paused') { Resume-VM -VM $vm } else { Start-VM -VM $vm } }
    if ($changed -and -not $dryRun) {
      try {
        try { startNow } catch {
          # a file that was copied over another keeps its own rights, without the VM
          if ((codesOf $_) -notmatch '0x80070005' -or -not (grant (disksOf $vm))) { throw }
          startNow
        }
      } catch {
        $codes = codesOf $_
        $files = @(disksOf $vm | ForEach-Object { '"' + $_ + '"' })
        if ($codes -match '0x80070005') { throw "$cannot its account may not open its disks (0x80070005). Run as an administrator: $(@($files | ForEach-Object { "icacls $_ /grant $right" }) -join '; ')" }
        if ($codes -match '0xC03A001A') { throw "$cannot a disk of it is sparse, compressed or encrypted (0xC03A001A). Run: $(@($files | ForEach-Object { 'fsutil sparse setflag ' + $_ + ' 0' }) -join '; ')" }
        if ($codes -match '0x80070020') { throw "$cannot another program has a disk of it open (0x80070020), one of $($files -join ', '). Run: Dismount-VHD, or end VirtualBox" }
        if ($codes -match '0x8007000E|0x800705AA' -or $_.FullyQualifiedErrorId -like 'OutOfMemory,*') {
          throw "$cannot the host has less than the $($vm.MemoryStartup / 1MB) MB of memory free that it needs. Run: Get-VM | Where-Object State -EQ Running, and stop one, or Set-VMMemory -VMName '$typed' -StartupBytes with less"
        }
        # it comes with no code of its own (jamesstringer90/Easy-GPU-PV#7)
        if ($env:PROCESSOR_IDENTIFIER -like '*AuthenticAMD*' -and [version]$vm.Version -lt [version]'9.3' -and (Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions) {
          throw "$cannot it is to run hypervisors, which on AMD takes configuration version 9.3 of Windows 11 or Windows Server 2022, and it has $($vm.Version). Run: Set-VMProcessor -VMName '$typed' -ExposeVirtualizationExtensions 0"
        }
        throw
      }
    }

    function addresses {
      foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm)) {
        $given = @($adapter.IPAddresses | Where-Object { $_ } | ForEach-Object { [string]$_ })
        $usable = @($given | Where-Object { $_ -notmatch '^(169[.]254[.]|fe[89ab][0-9a-f]:)' })
        $switch = $null
        if ($adapter.SwitchName) { $switch = [string]$adapter.SwitchName }
        [ordered]@{
          name = [string]$adapter.Name; switch = $switch; mac = [string]$adapter.MacAddress
          addresses = @(@($usable | Where-Object { $_ -notmatch ':' }) + @($usable | Where-Object { $_ -match ':' }))
          linkLocal = @($given | Where-Object { $_ -notin $usable })
        }
      }
    }
    # a guest that has run for as long as that already will not answer any more
    if (-not $changed) { $timeout = [Math]::Max(0, $timeout - $vm.Uptime.TotalSeconds) }
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $pause = 250
    $answered = $null
    while ($true) {
      $now = Get-VM -Id $vm.Id
      # the text of an enumeration, which is not translated: OkApplicationsHealthy, OkApplicationsUnknown ...
      $alive = [string]$now.State -eq 'Running' -and [string]$now.Heartbeat -like 'Ok*'
      $seconds = $clock.Elapsed.TotalSeconds
      if ($alive -and $null -eq $answered) { $answered = $seconds; $pause = 250 }
      $adapters = @(addresses)
      $silent = @($adapters | Where-Object { $_.switch -and $_.addresses.Count -eq 0 })
      if ($dryRun -or $seconds -ge $timeout) { break }
      $known = @($adapters | Where-Object { $_.addresses.Count -gt 0 }).Count -gt 0
      $patience = if (-not $changed) { 0 } elseif ($known) { 5 } else { 30 }
      if ($alive -and ($silent.Count -eq 0 -or $seconds - $answered -ge $patience)) { break }
      if ([string]$now.State -notin 'Running', 'Starting', 'Resuming') { break }
      Start-Sleep -Milliseconds ([int][Math]::Min($pause, [Math]::Max(1, ($timeout - $seconds) * 1000)))
      $pause = [Math]::Min(4000, $pause * 2)
    }
    $result = [ordered]@{ changed = $changed; id = [string]$vm.Id; vm = $vm.Name; state = [string]$now.State; heartbeat = 'none'; waited = [Math]::Round($seconds, 1); adapters = $adapters }
    if ($alive) { $result.heartbeat = 'ok' }
    if ($changed) { $result.before = [ordered]@{ state = $state } }
    ConvertTo-Json -InputObject $result -Compress -Depth 5`
  return JSON.parse(stdout) as StartVmResult
}

/**
 * Takes a VM back to what it was before {@link startVm}: off, by asking the guest to shut down and
 * waiting `timeout` seconds for it; saved or paused, by that. A guest that does not shut down keeps
 * running, and the undo fails with what to do: pulling its plug could lose what it has not written.
 */
export async function undoStartVm(
  result: StartVmResult,
  ps = powershell,
  timeout = 300,
): Promise<void> {
  if (result.before === undefined) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $state = $result.before.state
    $limit = ${timeout}
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm -or [string]$vm.State -in 'Off', $state) { return }
    $cannot = "Cannot shut down ""$($vm.Name)"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
    $way = "Run: vmconnect localhost ""$($vm.Name)"", and shut it down there, or Stop-VM -Name '$typed' -TurnOff, which loses what the guest has not written"
    if ([string]$vm.State -ne 'Running') { throw "$cannot it is $($vm.State). $way" }
    if ($state -eq 'Saved') { Save-VM -VM $vm; return }
    if ($state -eq 'Paused') { Suspend-VM -VM $vm; return }
    if ([string]$vm.Heartbeat -notlike 'Ok*') { throw "$cannot its guest does not answer. $way" }
    # without -Force, for that ends programs with unsaved work after 5 minutes
    $job = Stop-VM -VM $vm -Confirm:$false -AsJob
    $clock = [Diagnostics.Stopwatch]::StartNew()
    for ($pause = 250; [string](Get-VM -Id $id).State -ne 'Off'; $pause = [Math]::Min(4000, $pause * 2)) {
      $failed = [string]$job.State -eq 'Failed'
      if ($failed -or $clock.Elapsed.TotalSeconds -ge $limit) {
        $reason = if ($failed) { " ($($job.JobStateInfo.Reason.Message))" } else { " after $limit seconds" }
        throw "$cannot its guest was asked to and still runs$reason. $way"
      }
      Start-Sleep -Milliseconds $pause
    }`
}

function refuseName(vm: string): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (vm.trim() !== '' && vm.length <= 100 && !/[\u0000-\u001f\u007f]/.test(vm)) return
  throw new TypeError(
    `Cannot start a VM named ${JSON.stringify(vm)}: ` +
      'a name is 1 to 100 characters and no control characters. Run: Get-VM',
  )
}

await hostCommand(
  import.meta,
  'Start a VM, wait until its guest answers, and say at which addresses',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    timeout: { type: 'number', describe: 'Seconds to wait for the guest [default: 120]' },
    dryRun,
  },
  startVm,
)
