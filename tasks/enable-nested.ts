#!/usr/bin/env zx
/** Let a Hyper-V VM run hypervisors of its own, for WSL 2 and Docker inside it. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface EnableNestedOptions {
  /** The VM's name. The VM has to be off. */
  vm: string
  /** @default false */
  dryRun?: boolean
}

export interface EnableNestedResult {
  changed: boolean
  /** The VM's id, by which the undo finds it again. */
  id: string
  vm: string
  /** What was so before; absent when nothing changed. */
  before?: {
    nested: boolean
    dynamicMemory: boolean
    /** Ids of the adapters that could not send with another MAC than their own. */
    unspoofed: string[]
  }
  /** What the VMs inside need beside it. */
  notes: string[]
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
  refuseName(vm)
  const { stdout } = await ps`
    $name = ${vm}
    $dryRun = ${dryRun}
    $cannot = "Cannot enable nesting for ""$name"":"
    $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($name))

    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) {
      throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM"
    }
    $vm = $found[0]
    $processor = Get-VMProcessor -VM $vm
    $memory = Get-VMMemory -VM $vm
    $unspoofed = @(Get-VMNetworkAdapter -VM $vm | Where-Object { [string]$_.MacAddressSpoofing -ne 'On' })
    $nested = [bool]$processor.ExposeVirtualizationExtensions
    $dynamic = [bool]$memory.DynamicMemoryEnabled
    $changed = -not $nested -or $dynamic -or $unspoofed.Count -gt 0
    $notes = @('A VM inside that is bridged needs a network that takes several MAC addresses from one port, which Wi-Fi and many port securities do not: there give it a NAT inside, such as that of WSL 2, of Docker, or of New-NetNat')
    if ($memory.Startup -lt 4GB) { $notes += "It has $($memory.Startup / 1MB) MB of memory, and with VMs inside it wants 4 GB at least. Run: Set-VMMemory -VMName '$typed' -StartupBytes 4GB" }
    $result = [ordered]@{ changed = $changed; id = [string]$vm.Id; vm = $vm.Name; notes = $notes }
    if ($changed) {
      $result.before = [ordered]@{
        nested = $nested; dynamicMemory = $dynamic; unspoofed = @($unspoofed | ForEach-Object { [string]$_.Id })
      }
    }

    if ($changed -and [string]$vm.State -eq 'Saved') {
      throw "$cannot it is saved, and a saved VM keeps the processor it was saved with. Run: Start-VM -Name '$typed', shut the guest down, and run again"
    }
    if ($changed -and [string]$vm.State -ne 'Off') {
      throw "$cannot it is $($vm.State), and only a VM that is off takes it. Run: Stop-VM -Name '$typed'"
    }
    # on AMD the set would succeed and the start fail (jamesstringer90/Easy-GPU-PV#7)
    $least, $build, $hosts = '8.0', 14393, 'Windows 10 and Windows Server 2016'
    if ($env:PROCESSOR_IDENTIFIER -like '*AuthenticAMD*') { $least, $build, $hosts = '9.3', 20348, 'Windows 11 and Windows Server 2022' }
    $windows = [int](Get-CimInstance -ClassName Win32_OperatingSystem -Property BuildNumber).BuildNumber
    if (-not $nested -and $windows -lt $build) { throw "$cannot the host is build $windows of Windows, and on this processor it takes $hosts or later. Update the host, or run its hypervisors on another. See: winver" }
    if (-not $nested -and [version]$vm.Version -lt [version]$least) {
      throw "$cannot its configuration version is $($vm.Version), and on this processor it takes $least, which hosts from $hosts on have. Run there: Update-VMVersion -Name '$typed' -Force, which cannot be taken back"
    }

    if ($changed -and -not $dryRun) {
      try {
        if ($dynamic) { Set-VMMemory -VM $vm -DynamicMemoryEnabled $false }
        if (-not $nested) { Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $true }
        foreach ($adapter in $unspoofed) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -MacAddressSpoofing On }
        if (-not (Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions) {
          throw "$cannot the setting did not stay, so the processor or Windows does not take it. Run: systeminfo"
        }
      } catch {
        $failure = $_
        foreach ($adapter in $unspoofed) { Set-VMNetworkAdapter -VMNetworkAdapter $adapter -MacAddressSpoofing Off }
        if (-not $nested) { Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $false }
        if ($dynamic) { Set-VMMemory -VM $vm -DynamicMemoryEnabled $true }
        throw $failure
      }
    }
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  return JSON.parse(stdout) as EnableNestedResult
}

/** Puts back what {@link enableNested} changed. The VM has to be off again. */
export async function undoEnableNested(
  result: EnableNestedResult,
  ps = powershell,
): Promise<void> {
  if (result.before === undefined) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $id = $result.id
    $nested = $result.before.nested
    $dynamicMemory = $result.before.dynamicMemory
    $unspoofed = @($result.before.unspoofed | Where-Object { $_ })
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $id }
    if ($null -eq $vm) { return }
    $flag = [bool](Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions -ne $nested
    $memory = [bool](Get-VMMemory -VM $vm).DynamicMemoryEnabled -ne $dynamicMemory
    if (($flag -or $memory) -and [string]$vm.State -ne 'Off') {
      $typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
      throw "Cannot take nesting from ""$($vm.Name)"": it is $($vm.State), and only a VM that is off gives it back. Run: Stop-VM -Name '$typed'"
    }
    if ($flag) { Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $nested }
    if ($memory) { Set-VMMemory -VM $vm -DynamicMemoryEnabled $dynamicMemory }
    Get-VMNetworkAdapter -VM $vm |
      Where-Object { [string]$_.Id -in $unspoofed -and [string]$_.MacAddressSpoofing -eq 'On' } |
      ForEach-Object { Set-VMNetworkAdapter -VMNetworkAdapter $_ -MacAddressSpoofing Off }`
}

function refuseName(vm: string): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (vm.trim() !== '' && vm.length <= 100 && !/[\u0000-\u001f\u007f]/.test(vm)) return
  throw new TypeError(
    `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
      'a name is 1 to 100 characters and no control characters. Run: Get-VM',
  )
}

await hostCommand(
  import.meta,
  'Expose the processor’s virtualization extensions to a VM that is off',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    dryRun,
  },
  enableNested,
)
