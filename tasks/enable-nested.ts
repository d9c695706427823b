#!/usr/bin/env zx
/** Let a Hyper-V VM run hypervisors of its own, for WSL 2 and Docker inside it. */
import { command, dryRun, powershell } from './task.ts'

export interface EnableNestedOptions {
  /** The VM's name. It has to be off. */
  vm: string
  /** @default false */
  dryRun?: boolean
}

export interface EnableNestedResult {
  /** The VM's id, by which the undo finds it again. */
  id: string
  changed: boolean
  before: { nested: boolean; dynamicMemory: boolean; spoofing: string[] }
}

/**
 * Exposes the processor's virtualization extensions to a VM, gives it memory that stays, and lets
 * its adapters send with the addresses of the VMs inside.
 *
 * Dynamic memory goes off because the flag has been seen to fall back with it (microsoft/MSLab#133),
 * and MAC spoofing on because the inner VMs' frames are dropped without it
 * (learn.microsoft.com/virtualization/hyper-v-on-windows/user-guide/enable-nested-virtualization).
 */
export async function enableNested(
  { vm, dryRun = false }: EnableNestedOptions,
  ps = powershell,
): Promise<EnableNestedResult> {
  const { stdout } = await ps`
    $name = ${vm}
    $dryRun = ${dryRun}
    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -ne 1) { throw "Cannot enable nesting: $($found.Count) VMs are named ""$name"". Run: Get-VM" }
    $vm = $found[0]
    $processor = Get-VMProcessor -VM $vm
    $memory = Get-VMMemory -VM $vm
    $unspoofed = @(Get-VMNetworkAdapter -VM $vm | Where-Object MacAddressSpoofing -ne 'On')
    $before = [ordered]@{
      nested = [bool]$processor.ExposeVirtualizationExtensions
      dynamicMemory = [bool]$memory.DynamicMemoryEnabled
      spoofing = @($unspoofed | ForEach-Object { $_.Id })
    }
    $changed = -not $before.nested -or $before.dynamicMemory -or $unspoofed.Count -gt 0
    if ($changed -and $vm.State -ne 'Off') {
      throw "Cannot enable nesting for ""$name"": it is $($vm.State), and only a VM that is off takes it. Run: Stop-VM -Name '$name'"
    }
    if ($changed -and -not $dryRun) {
      if ($before.dynamicMemory) { Set-VMMemory -VM $vm -DynamicMemoryEnabled $false }
      Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $true
      $unspoofed | Set-VMNetworkAdapter -MacAddressSpoofing On
      if (-not (Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions) {
        throw "Cannot enable nesting for ""$name"": the setting did not stay. On AMD it needs Windows 11 or Windows Server 2022"
      }
    }
    ConvertTo-Json -Compress -Depth 4 ([ordered]@{ id = [string]$vm.Id; changed = $changed; before = $before })`
  return JSON.parse(stdout) as EnableNestedResult
}

/** Puts back what {@link enableNested} changed. */
export async function undoEnableNested(
  { id, changed, before }: EnableNestedResult,
  ps = powershell,
): Promise<void> {
  if (!changed) return
  await ps`
    $id = ${id}
    $nested = ${before.nested}
    $dynamicMemory = ${before.dynamicMemory}
    $spoofing = ${before.spoofing}
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm) { return }
    Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $nested
    Set-VMMemory -VM $vm -DynamicMemoryEnabled $dynamicMemory
    Get-VMNetworkAdapter -VM $vm | Where-Object Id -in $spoofing | Set-VMNetworkAdapter -MacAddressSpoofing Off`
}

await command(
  import.meta,
  'Expose the processor’s virtualization extensions to a VM that is off',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    dryRun,
  },
  enableNested,
)
