#!/usr/bin/env zx
/** Give a Hyper-V VM the identity and the devices that its guest knows: BIOS UUID, TPM, serial ports, DVD drives. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface SetHardwareOptions {
  /** The VM's name. It has to be off where something is to change. */
  vm: string
  /** The UUID of its hardware as the guest reads it, to which licences are bound. @default as it is */
  uuid?: string | undefined
  /** Whether it has a TPM, which takes generation 2. A new one is empty. @default as it is */
  tpm?: boolean | undefined
  /**
   * The named pipes of COM1 and COM2, such as `\\.\pipe\web-com1`; empty for none. @default as they are
   */
  serial?: readonly string[] | undefined
  /**
   * Its DVD drives, each with the path of an ISO on the host, or empty. Generation 1 keeps the one that it
   * has and no more; drives are added, and never removed. @default as they are
   */
  dvd?: readonly string[] | undefined
  /** Whether the guest's clock follows the host's; not for a domain controller. @default as it is */
  timeSync?: boolean | undefined
  /** What it does when the host starts. @default as it is */
  startAction?: 'nothing' | 'start-if-running' | 'start' | undefined
  /** Seconds after the host, when it starts with it. @default as it is */
  startDelay?: number | undefined
  /** What it does when the host shuts down. VMs with VMs inside cannot be saved. @default as it is */
  stopAction?: 'save' | 'turn-off' | 'shut-down' | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** What of a VM this task sets. */
export interface Hardware {
  /** In lower case, without braces. */
  uuid: string
  /** Null in generation 1, which has none. */
  tpm: boolean | null
  serial: string[]
  dvd: string[]
  timeSync: boolean
  startAction: string
  /** Seconds. */
  startDelay: number
  stopAction: string
}

export interface SetHardwareResult extends Hardware {
  changed: boolean
  /** The VM's id, by which the undo finds it again. */
  id: string
  vm: string
  /** What was so before, of what was changed. */
  before: Partial<Hardware>
}

/**
 * Windows' activation and much licensed software are bound to the UUID that the firmware tells
 * (Win32_ComputerSystemProduct.UUID), so it is carried over: BIOSGUID of Msvm_VirtualSystemSettingData, by
 * ModifySystemSettings, which no cmdlet does. It is read back, as is what was not to change. A serial
 * number cannot be kept.
 *
 * A TPM needs a key protector first; a local one is made where there is none, and then the VM starts on
 * this host alone until its certificates are carried to another
 * (learn.microsoft.com/windows-server/virtualization/hyper-v/learn-more/generation-2-virtual-machine-security-settings-for-hyper-v).
 * What the TPM of the source held does not come along: BitLocker asks for its recovery key.
 */
export async function setHardware(
  options: SetHardwareOptions,
  ps = powershell,
): Promise<SetHardwareResult> {
  throwIfUnusable(options)
  return JSON.parse(await tell(options, undefined, ps)) as SetHardwareResult
}

/** Puts back what {@link setHardware} changed. The VM has to be off again; DVD drives that were added go. */
export async function undoSetHardware(
  result: SetHardwareResult,
  ps = powershell,
): Promise<void> {
  if (result.changed) await tell({ vm: '' }, result, ps)
}

async function tell(
  options: SetHardwareOptions,
  done: SetHardwareResult | undefined,
  ps: typeof powershell,
): Promise<string> {
  const { vm, uuid, tpm, serial, dvd, timeSync, dryRun = false } = options
  const { startAction, startDelay, stopAction } = options
  const { stdout } = await ps`
    $done = ${done && JSON.stringify(done)}
    $name = ${vm}
    $uuid = ${uuid?.toLowerCase()}
    $tpm = ${tpm}
    $serial = ${serial}
    $dvd = ${dvd}
    $timeSync = ${timeSync}
    $startAction = ${startAction && ACTIONS[startAction]}
    $startDelay = ${startDelay}
    $stopAction = ${stopAction && ACTIONS[stopAction]}
    $dryRun = ${dryRun}
    $cannot = "Cannot set the hardware of ""$name"":"
    $namespace = 'root/virtualization/v2'
    # their names are translated, what ends their ids is not
    function clockOf($vm) { Get-VMIntegrationService -VM $vm | Where-Object { ([string]$_.Id).EndsWith('2497F4DE-E9FA-4204-80E4-4B75C46419C0', 'OrdinalIgnoreCase') } }
    function settingsOf($vm) {
      Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$(([string]$vm.Id).ToUpperInvariant())'" |
        Where-Object { [string]$_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' } | Select-Object -First 1
    }
    function uuidOf($vm) { ([string](settingsOf $vm).BIOSGUID).Trim([char[]]'{}').ToLowerInvariant() }
    function lookAt($vm) {
      $hardware = [ordered]@{ uuid = uuidOf $vm; tpm = $null; serial = @(); dvd = @(); timeSync = [bool](clockOf $vm).Enabled; startAction = [string]$vm.AutomaticStartAction; startDelay = [int]$vm.AutomaticStartDelay; stopAction = [string]$vm.AutomaticStopAction }
      if ([int]$vm.Generation -eq 2) { $hardware.tpm = [bool](Get-VMSecurity -VM $vm).TpmEnabled }
      $hardware.serial = @(Get-VMComPort -VM $vm | Sort-Object Number | ForEach-Object { [string]$_.Path })
      $hardware.dvd = @(Get-VMDvdDrive -VM $vm | Sort-Object ControllerNumber, ControllerLocation | ForEach-Object { [string]$_.Path })
      $hardware
    }
    # an embedded instance as text (DTD 2.0 of the DMTF), with all that it has but what only Hyper-V sets
    function textOf($instance, $changes) {
      $parts = foreach ($property in $instance.CimInstanceProperties) {
        $value = $property.Value
        if ($changes.ContainsKey($property.Name)) { $value = $changes[$property.Name] }
        $type = [string]$property.CimType
        if ($null -eq $value -or $type -match 'DateTime|Reference|Instance') { continue }
        $list = $type -match 'Array$'
        $written = @($value | ForEach-Object { "<VALUE>$([Security.SecurityElement]::Escape($(if ($_ -is [bool]) { ([string]$_).ToUpperInvariant() } else { [string]$_ })))</VALUE>" }) -join ''
        $element = if ($list) { 'PROPERTY.ARRAY' } else { 'PROPERTY' }
        if ($list) { $written = "<VALUE.ARRAY>$written</VALUE.ARRAY>" }
        "<$element NAME=""$($property.Name)"" TYPE=""$(($type -replace 'Array$').ToLowerInvariant())"">$written</$element>"
      }
      "<INSTANCE CLASSNAME=""$($instance.CimClass.CimClassName)"">$($parts -join '')</INSTANCE>"
    }
    function setUuid($vm, $uuid) {
      $before = settingsOf $vm
      $service = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemManagementService
      $answer = Invoke-CimMethod -InputObject $service -MethodName ModifySystemSettings -Arguments @{ SystemSettings = textOf $before @{ BIOSGUID = '{' + $uuid.ToUpperInvariant() + '}' } }
      $code = [long]$answer.ReturnValue
      if ($code -eq 4096) {
        $clock = [Diagnostics.Stopwatch]::StartNew()
        for ($job = Get-CimInstance -InputObject $answer.Job; [int]$job.JobState -lt 7 -and $clock.Elapsed.TotalSeconds -lt 60; $job = Get-CimInstance -InputObject $answer.Job) { Start-Sleep -Milliseconds 100 }
        $code = if ([int]$job.JobState -eq 7) { 0 } elseif ([int]$job.ErrorCode) { [long]$job.ErrorCode } else { 32768 }
      }
      $after = settingsOf $vm
      if ($code -ne 0 -or (uuidOf $vm) -ne $uuid) { throw "$cannot Hyper-V does not take the UUID $uuid ($code). Run again without --uuid, and have Windows activated anew" }
      foreach ($property in $before.CimInstanceProperties) {
        $is = ($after.CimInstanceProperties | Where-Object { $_.Name -eq $property.Name }).Value
        if ($property.Name -ne 'BIOSGUID' -and [string]$property.CimType -notmatch 'DateTime|Reference|Instance' -and (@($is) -join ',') -cne (@($property.Value) -join ',')) { throw "$cannot with its UUID $($property.Name) has changed, from ""$($property.Value)"" to ""$is"". Look at it in Hyper-V Manager" }
      }
    }
    function apply($vm, $to, $fields) {
      if ('uuid' -in $fields) { setUuid $vm $to.uuid }
      if ('tpm' -in $fields) {
        if ($to.tpm) {
          # four bytes stand for none
          if (@(Get-VMKeyProtector -VM $vm).Count -le 4) { Set-VMKeyProtector -VM $vm -NewLocalKeyProtector }
          Enable-VMTPM -VM $vm
        } else { Disable-VMTPM -VM $vm }
      }
      if ('serial' -in $fields) { for ($n = 0; $n -lt @($to.serial).Count; $n++) { Set-VMComPort -VM $vm -Number ($n + 1) -Path ([string]@($to.serial)[$n]) } }
      if ('dvd' -in $fields) {
        $wanted = @($to.dvd)
        while (@(Get-VMDvdDrive -VM $vm).Count -lt $wanted.Count) { Add-VMDvdDrive -VM $vm }
        $drives = @(Get-VMDvdDrive -VM $vm | Sort-Object ControllerNumber, ControllerLocation)
        for ($n = 0; $n -lt $drives.Count; $n++) {
          if ($n -ge $wanted.Count) { Remove-VMDvdDrive -VMDvdDrive $drives[$n]; continue }
          if ([string]$drives[$n].Path -eq [string]$wanted[$n]) { continue }
          if ($wanted[$n]) { Set-VMDvdDrive -VMDvdDrive $drives[$n] -Path $wanted[$n] } else { Set-VMDvdDrive -VMDvdDrive $drives[$n] -Path $null }
        }
      }
      if ('timeSync' -in $fields) { if ($to.timeSync) { clockOf $vm | Enable-VMIntegrationService } else { clockOf $vm | Disable-VMIntegrationService } }
      if ('startAction' -in $fields) { Set-VM -VM $vm -AutomaticStartAction $to.startAction }
      if ('startDelay' -in $fields) { Set-VM -VM $vm -AutomaticStartDelay $to.startDelay }
      if ('stopAction' -in $fields) { Set-VM -VM $vm -AutomaticStopAction $to.stopAction }
    }
    # what differs, compared as text: lists are no values of PowerShell's own
    function differing($now, $wanted) { @($now.Keys | Where-Object { (ConvertTo-Json -InputObject $now[$_] -Compress) -cne (ConvertTo-Json -InputObject $wanted[$_] -Compress) }) }
    function typed($vm) { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name)) + "'" }

    if ($done) {
      $result = ConvertFrom-Json $done
      $vm = Get-VM | Where-Object { [string]$_.Id -eq $result.id }
      if ($null -eq $vm) { return }
      $now = lookAt $vm
      $wanted = [ordered]@{}
      foreach ($field in $now.Keys) { $wanted[$field] = $now[$field] }
      foreach ($one in $result.before.PSObject.Properties) { $wanted[$one.Name] = $one.Value }
      $fields = differing $now $wanted
      if ($fields.Count -eq 0) { return }
      if ([string]$vm.State -ne 'Off') { throw "Cannot put the hardware of ""$($vm.Name)"" back: it is $($vm.State), and has to be off for that. Run: Stop-VM -Name $(typed $vm)" }
      apply $vm $wanted $fields
      return
    }

    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    $vm = $found[0]
    $now = lookAt $vm
    $wanted = [ordered]@{}
    foreach ($field in $now.Keys) { $wanted[$field] = $now[$field] }
    if ($null -ne $uuid) { $wanted.uuid = $uuid }
    if ($tpm -and [int]$vm.Generation -ne 2) { throw "$cannot it is of generation 1, which has no TPM. Run again without --tpm" }
    if ($null -ne $tpm -and [int]$vm.Generation -eq 2) { $wanted.tpm = $tpm }
    if ($null -ne $serial) { $wanted.serial = @(for ($n = 0; $n -lt $now.serial.Count; $n++) { [string]@($serial)[$n] }) }
    if ($null -ne $dvd) {
      $drives = @($now.dvd)
      for ($n = 0; $n -lt @($dvd).Count; $n++) {
        $image = [string]@($dvd)[$n]
        if ($image) {
          $image = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($image)
          if (-not (Test-Path -LiteralPath $image -PathType Leaf)) { throw "$cannot there is no image ""$image"". Run again with --dvd and one that is there, or with an empty one" }
        }
        if ($n -lt $drives.Count) { $drives[$n] = $image }
        elseif ([int]$vm.Generation -eq 1) { throw "$cannot generation 1 has $($drives.Count) DVD drive, and $(@($dvd).Count) are asked for. Run again with fewer --dvd" }
        else { $drives += $image }
      }
      $wanted.dvd = $drives
    }
    if ($null -ne $timeSync) { $wanted.timeSync = $timeSync }
    if ($null -ne $startAction) { $wanted.startAction = $startAction }
    if ($null -ne $startDelay) { $wanted.startDelay = [int]$startDelay }
    if ($null -ne $stopAction) { $wanted.stopAction = $stopAction }
    $fields = differing $now $wanted
    if ($fields.Count -gt 0 -and [string]$vm.State -ne 'Off') { throw "$cannot it is $($vm.State), and $($fields -join ', ') $(if ($fields.Count -eq 1) { 'changes' } else { 'change' }) only while it is off. Run: Stop-VM -Name $(typed $vm)" }
    if ($fields.Count -gt 0 -and -not $dryRun) {
      try { apply $vm $wanted $fields } catch {
        $failure = $_
        try { apply $vm $now (differing (lookAt $vm) $now) } catch { Write-Warning "Not all of ""$name"" could be put back: $($_.Exception.Message)" }
        throw $failure
      }
      $wanted = lookAt $vm
    }
    $before = [ordered]@{}
    foreach ($field in $fields) { $before[$field] = $now[$field] }
    $result = [ordered]@{ changed = $fields.Count -gt 0; id = [string]$vm.Id; vm = [string]$vm.Name }
    foreach ($field in $wanted.Keys) { $result[$field] = $wanted[$field] }
    $result.before = $before
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  return stdout
}

const ACTIONS = {
  nothing: 'Nothing',
  'start-if-running': 'StartIfRunning',
  start: 'Start',
  save: 'Save',
  'turn-off': 'TurnOff',
  'shut-down': 'ShutDown',
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

function throwIfUnusable(options: SetHardwareOptions): void {
  const { vm, uuid, serial = [], dvd = [], startAction, startDelay = 0, stopAction } = options
  // deno-lint-ignore no-control-regex -- these are what is refused
  const control = /[\u0000-\u001f\u007f]/
  if (vm.trim() === '' || vm.length > 100 || control.test(vm)) {
    throw new TypeError(
      `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    )
  }
  const cannot = `Cannot set the hardware of "${vm}":`
  if (uuid !== undefined && !UUID.test(uuid)) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(uuid)} is no UUID. Run again with for example: ` +
        '--uuid 5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61',
    )
  }
  if (serial.length > 2) {
    throw new RangeError(
      `${cannot} a VM of Hyper-V has COM1 and COM2. Run again with two --serial at most`,
    )
  }
  for (const pipe of serial) {
    if (pipe === '' || (/^\\\\[^\\]+\\pipe\\./.test(pipe) && !control.test(pipe))) continue
    throw new TypeError(
      `${cannot} ${JSON.stringify(pipe)} is no named pipe. Run again with for example: ` +
        '--serial \\\\.\\pipe\\web-com1',
    )
  }
  for (const image of dvd) {
    if (!control.test(image)) continue
    throw new TypeError(
      `${cannot} ${JSON.stringify(image)} is no file's name. Name an .iso by --dvd`,
    )
  }
  if (
    startAction !== undefined && !['nothing', 'start-if-running', 'start'].includes(startAction)
  ) {
    throw new RangeError(
      `${cannot} "${startAction}" is no start action: nothing, start-if-running or start`,
    )
  }
  if (!(Number.isInteger(startDelay) && startDelay >= 0 && startDelay <= 2 ** 31 - 1)) {
    throw new RangeError(
      `${cannot} it cannot start ${startDelay} s after the host: it is 0 or more`,
    )
  }
  if (stopAction !== undefined && !['save', 'turn-off', 'shut-down'].includes(stopAction)) {
    throw new RangeError(`${cannot} "${stopAction}" is no stop action: save, turn-off or shut-down`)
  }
}

await hostCommand(
  import.meta,
  'Give a VM the identity and devices that its guest knows: BIOS UUID, TPM, serial ports, DVD drives',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    uuid: {
      type: 'string',
      describe: 'The UUID of its hardware, to which licences are bound',
      example: '5a1f3c2e-0b64-4d7e-9a52-3f1c0e8d7b61',
    },
    tpm: { type: 'boolean', describe: 'Give it a TPM, empty, or take it away (generation 2)' },
    serial: {
      type: 'string',
      array: true,
      describe: 'The named pipes of COM1 and COM2; empty for none',
    },
    dvd: { type: 'string', array: true, describe: 'ISO images of its DVD drives; empty for none' },
    timeSync: { type: 'boolean', describe: 'Let its clock follow the host’s' },
    startAction: {
      choices: ['nothing', 'start-if-running', 'start'],
      describe: 'What it does when the host starts',
    },
    startDelay: { type: 'number', describe: 'Seconds after the host then' },
    stopAction: {
      choices: ['save', 'turn-off', 'shut-down'],
      describe: 'What it does when the host shuts down',
    },
    dryRun,
  },
  setHardware,
)
