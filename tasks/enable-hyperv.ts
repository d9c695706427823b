#!/usr/bin/env zx
/** Turn on Hyper-V of a Windows client or server, and what it needs to start with Windows. */
import { dryRun, hostCommand, powershell } from './task.ts'

export interface EnableHyperVOptions {
  /**
   * A command of PowerShell that runs once when this user next signs in, with administrator rights, in
   * the folder that PowerShell is in now. It waits only where Windows has to be restarted.
   */
  resumeAtLogon?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface EnableHyperVResult {
  changed: boolean
  windows: 'client' | 'server'
  /** Hyper-V does not run before Windows is restarted. The command then ends with exit code 3010. */
  restartNeeded: boolean
  /** The scheduled task that waits for the next logon; null when none does. */
  resume: string | null
  /** What to do before and after the restart, and in which order. */
  notes: string[]
  /** What was so before; absent when nothing changed. */
  before?: {
    /** Features that were off: optional features of a client, roles of a server. */
    features: string[]
    /** What hypervisorlaunchtype was; null when it was left alone. */
    launchType: string | null
    /** No task waited for the next logon. */
    waited: boolean
  }
}

/**
 * Asks before it changes anything: edition, processor, firmware. Once a hypervisor runs, Windows says
 * of the processor that virtualization is off (anthropics/claude-code#25034), so it is asked first
 * whether one runs. Windows is not restarted: VMs of VirtualBox that run would be lost.
 *
 * Assumptions about Windows: `-All` brings the tools too; bcdedit names elements in English and their
 * values Auto and Off in every language; a task at logon with the highest run level asks no consent.
 */
export async function enableHyperV(
  { resumeAtLogon, dryRun = false }: EnableHyperVOptions = {},
  ps = powershell,
): Promise<EnableHyperVResult> {
  refuseCommand(resumeAtLogon)
  const { stdout } = await ps`
    $command = ${resumeAtLogon}
    $dryRun = ${dryRun}
    $cannot = 'Cannot turn Hyper-V on:'
    $again = 'and this again'
    if ($env:PROCESSOR_ARCHITEW6432) { throw "$cannot this PowerShell is a 32-bit one, and features of Windows are changed by its own. Run it from a 64-bit program, $again" }
    $computer = Get-CimInstance -ClassName Win32_ComputerSystem -Property HypervisorPresent

    # classes by name, for they are Windows' alone
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    if ('S-1-5-32-544' -notin @($identity.Groups | ForEach-Object { $_.Value })) {
      throw "$cannot PowerShell runs without administrator rights, without which Windows does not even say what is on. Run: Start-Process powershell -Verb RunAs, $again in the window it opens"
    }
    $key = ('HKEY_LOCAL_MACHINE', 'SOFTWARE', 'Microsoft', 'Windows NT', 'CurrentVersion') -join [char]92
    $registry = [type]'Microsoft.Win32.Registry'
    $client = [string]$registry::GetValue($key, 'InstallationType', '') -eq 'Client'
    if ([string]$registry::GetValue($key, 'EditionID', '') -like 'Core*') {
      throw "$cannot this is Windows Home, which has none. Change to Windows Pro, which keeps programs and files, $again. Run: Start-Process ms-settings:activation"
    }
    # null where Windows does not say (Justsenger/ExHyperV#87)
    $present = $computer.HypervisorPresent
    $cpu = @(Get-CimInstance -ClassName Win32_Processor)
    # on ARM, which is 12, these are not said
    if ($present -eq $false -and @($cpu | Where-Object { $_.Architecture -eq 12 }).Count -eq 0) {
      if (@($cpu | Where-Object { $_.VirtualizationFirmwareEnabled -eq $false }).Count -gt 0) {
        throw "$cannot virtualization is off in this computer's firmware. Turn on Intel VT-x or AMD SVM there, $again. Run: shutdown /r /fw /t 0, which restarts into the firmware"
      }
      foreach ($need in 'VMMonitorModeExtensions', 'SecondLevelAddressTranslationExtensions') {
        if (@($cpu | Where-Object { $_.$need -eq $false }).Count -gt 0) { throw "$cannot the processor has no $need, which Hyper-V takes. Use another computer. See: systeminfo" }
      }
    }

    # what is on, or will be with the next start
    function states {
      $states = @{}
      if ($client) {
        $known = 'All', 'Hypervisor', 'Services', 'Tools-All', 'Management-PowerShell', 'Management-Clients' | ForEach-Object { "Microsoft-Hyper-V-$_" }
        Get-WindowsOptionalFeature -Online | Where-Object { $_.FeatureName -eq 'Microsoft-Hyper-V' -or $_.FeatureName -in $known } | ForEach-Object { $states[$_.FeatureName] = [string]$_.State -replace 'Enable', 'On' }
      } else {
        Get-WindowsFeature | Where-Object { $_.Name -in 'Hyper-V', 'RSAT-Hyper-V-Tools', 'Hyper-V-Tools', 'Hyper-V-PowerShell' } | ForEach-Object { $states[$_.Name] = [string]$_.InstallState -replace '^Install', 'On' }
      }
      $states
    }
    function off($states) { @($states.Keys | Where-Object { $states[$_] -notlike 'On*' } | Sort-Object) }
    $needed = if ($client) { 'Microsoft-Hyper-V', 'Microsoft-Hyper-V-Management-PowerShell' } else { 'Hyper-V', 'Hyper-V-PowerShell' }
    $states = states
    foreach ($name in $needed) { if (-not $states.ContainsKey($name)) { throw "$cannot this edition of Windows has no feature $name. Change to Pro, Enterprise, Education or Server, $again. Run: Start-Process ms-settings:activation" } }
    $missing = @(off $states | Where-Object { $_ -in $needed })
    $off = if ($missing.Count -gt 0) { off $states } else { @() }

    # Off is what people set for VirtualBox's sake; no such line is Windows' own choice
    $launch = $null
    $lines = @(bcdedit /enum '{current}')
    if ($LASTEXITCODE -ne 0) { throw "$cannot bcdedit ended with exit code $LASTEXITCODE and says ""$(($lines -join ' ').Trim())"". Run as an administrator: bcdedit /enum" }
    foreach ($line in $lines) { if ([string]$line -match '^hypervisorlaunchtype +([^ ]+) *$') { $launch = $Matches[1] } }
    $held = $launch -eq 'Off' -or ($launch -and $launch -ne 'Auto' -and $present -eq $false)
    $pending = @($needed | Where-Object { $states[$_] -eq 'OnPending' }).Count -gt 0
    $restart = $missing.Count -gt 0 -or $pending -or $held -or $present -eq $false

    $task = 'vbox-to-hyperv-resume'
    $waiting = $null
    $register = $false
    if ($null -ne $command -and $restart) {
      $quoted = { "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent($args[0]) + "'" }
      # it goes before the command runs, so that a command that fails does not come again at each logon
      $lines = ("Unregister-ScheduledTask -TaskName $task -Confirm:" + '$false'), "Set-Location -LiteralPath $(& $quoted (Get-Location).ProviderPath)", $command
      $text = [Convert]::ToBase64String([Text.Encoding]::Unicode.GetBytes($lines -join [char]10))
      $argument = "-NoProfile -NoExit -ExecutionPolicy Bypass -EncodedCommand $text"
      $waiting = Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue
      if ($waiting -and [string]@($waiting.Actions)[0].Arguments -ne $argument) { throw "$cannot another command waits already for the next logon. Run: Unregister-ScheduledTask -TaskName $task, $again" }
      $register = -not $waiting
    }

    $changed = $missing.Count -gt 0 -or $held -or $register
    $notes = @()
    if ($missing.Count -gt 0 -or $held) {
      $running = @(Get-CimInstance -ClassName Win32_Process | Where-Object { $_.Name -in 'VirtualBoxVM.exe', 'VBoxHeadless.exe' }).Count
      if ($running -gt 0) { $notes += "VMs of VirtualBox that run now: $running. Prepare their guests (prepare-guest) and shut them down before Windows restarts, which would cut them off" }
      else { $notes += 'Before Windows restarts: prepare the guest (prepare-guest) while VirtualBox still runs it at full speed, and shut it down' }
      $notes += 'After the restart VirtualBox runs its VMs on top of Hyper-V, slowly (the turtle in its status bar) or not at all; their disks are read as before. To have it as it was: bcdedit /set hypervisorlaunchtype off, and restart'
    } elseif ($restart) { $notes += 'Hyper-V is on, and its hypervisor does not run: restart Windows. If that was done already, see: Get-WinEvent -LogName Microsoft-Windows-Hyper-V-Hypervisor-Operational -MaxEvents 5' }
    if ($restart) { $notes += 'Restart Windows when it suits: shutdown /r /t 0' }
    elseif ($null -ne $command) { $notes += 'No restart is needed, so nothing waits for the next logon: run the command now' }

    if ($changed -and -not $dryRun) {
      $done = @()
      try {
        if ($register) {
          $user = $identity.Name
          $null = Register-ScheduledTask -TaskName $task -Description 'Goes on with moving a VM to Hyper-V, once, after the restart' -Action (New-ScheduledTaskAction -Execute powershell.exe -Argument $argument) -Trigger (New-ScheduledTaskTrigger -AtLogOn -User $user) -Principal (New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Highest) -Settings (New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -ExecutionTimeLimit ([TimeSpan]::Zero))
          $done += 'task'
        }
        if ($held) {
          $lines = @(bcdedit /set '{current}' hypervisorlaunchtype auto)
          if ($LASTEXITCODE -ne 0) { throw "$cannot bcdedit ended with exit code $LASTEXITCODE and says ""$(($lines -join ' ').Trim())"". Run as an administrator: bcdedit /set hypervisorlaunchtype auto" }
          $done += 'launch'
        }
        if ($missing.Count -gt 0) {
          $done += 'features'
          if ($client) { foreach ($name in $missing) { $null = Enable-WindowsOptionalFeature -Online -FeatureName $name -All -NoRestart } }
          else { $null = Install-WindowsFeature -Name $missing -IncludeManagementTools }
          $now = states
          $still = @($needed | Where-Object { $now[$_] -notlike 'On*' })
          if ($still.Count -gt 0) { throw "$cannot Windows took it, and still $($still -join ', ') is $($now[$still[0]]). Run: DISM /Online /Cleanup-Image /RestoreHealth, $again" }
          $off = @($off | Where-Object { $now[$_] -like 'On*' })
          $pending = @($needed | Where-Object { $now[$_] -eq 'OnPending' }).Count -gt 0
          $restart = $pending -or $held -or $present -eq $false
        }
      } catch {
        $failure = $_
        if ('task' -in $done) { Unregister-ScheduledTask -TaskName $task -Confirm:$false }
        if ('launch' -in $done) { $null = bcdedit /set '{current}' hypervisorlaunchtype off }
        if ('features' -in $done) {
          $now = states
          $on = @($off | Where-Object { $now[$_] -like 'On*' })
          if ($on.Count -gt 0 -and $client) { $null = Disable-WindowsOptionalFeature -Online -FeatureName $on -NoRestart }
          elseif ($on.Count -gt 0) { $null = Uninstall-WindowsFeature -Name $on }
        }
        throw $failure
      }
    }
    $result = [ordered]@{
      changed = $changed; windows = if ($client) { 'client' } else { 'server' }; restartNeeded = [bool]$restart
      resume = if ($register -or $waiting) { $task } else { $null }; notes = @($notes)
    }
    if ($changed) { $result.before = [ordered]@{ features = @($off); launchType = if ($held) { $launch } else { $null }; waited = -not $register } }
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  return JSON.parse(stdout) as EnableHyperVResult
}

/**
 * Takes back what {@link enableHyperV} changed, and nothing that was on before it. Where Hyper-V runs and
 * has VMs, whoever made them, it changes nothing and names them in `vms`: they would be lost to the user.
 * Where `restartNeeded` is true, it holds from the next start of Windows.
 */
export async function undoEnableHyperV(
  result: EnableHyperVResult,
  ps = powershell,
): Promise<{ changed: boolean; restartNeeded: boolean; vms?: string[] }> {
  if (result.before === undefined) return { changed: false, restartNeeded: false }
  const { stdout } = await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    $features = @($result.before.features | Where-Object { $_ })
    $task = $result.resume
    $restart = $false
    $changed = $false
    # its tools may go while it has VMs
    $takes = $result.before.launchType -or @($features | Where-Object { $_ -notmatch 'Tools|PowerShell|Clients' }).Count -gt 0
    $runs = if (-not $takes) { $false }
    elseif ($result.windows -eq 'client') { @(Get-WindowsOptionalFeature -Online | Where-Object { $_.FeatureName -eq 'Microsoft-Hyper-V' -and [string]$_.State -eq 'Enabled' }).Count -gt 0 }
    else { @(Get-WindowsFeature | Where-Object { $_.Name -eq 'Hyper-V' -and [string]$_.InstallState -eq 'Installed' }).Count -gt 0 }
    if ($runs) {
      if (-not (Get-Command -Name Get-VM -ErrorAction Ignore)) { throw 'Cannot turn Hyper-V off: whether it has VMs is not known, for its PowerShell module is not on. Look yourself. Run: virtmgmt.msc' }
      $vms = @(Get-VM | ForEach-Object { $_.Name })
      if ($vms.Count -gt 0) {
        ConvertTo-Json -InputObject ([ordered]@{ changed = $false; restartNeeded = $false; vms = $vms }) -Compress
        return
      }
    }
    if ($task -and -not $result.before.waited) {
      $waiting = @(Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue)
      if ($waiting.Count -gt 0) { Unregister-ScheduledTask -InputObject $waiting[0] -Confirm:$false; $changed = $true }
    }
    if ($result.before.launchType -and @(bcdedit /enum '{current}') -match '^hypervisorlaunchtype +Auto *$') {
      $lines = @(bcdedit /set '{current}' hypervisorlaunchtype off)
      if ($LASTEXITCODE -ne 0) { throw "Cannot turn the hypervisor off: bcdedit says ""$(($lines -join ' ').Trim())"". Run as an administrator: bcdedit /set hypervisorlaunchtype off" }
      $changed = $true
      $restart = $true
    }
    if ($features.Count -gt 0 -and $result.windows -eq 'client') {
      $on = @(Get-WindowsOptionalFeature -Online | Where-Object { $_.FeatureName -in $features -and [string]$_.State -like 'Enable*' } | ForEach-Object { $_.FeatureName })
      if ($on.Count -gt 0) {
        $answers = @(Disable-WindowsOptionalFeature -Online -FeatureName $on -NoRestart)
        $restart = $restart -or @($answers | Where-Object { $_.RestartNeeded }).Count -gt 0
        $changed = $true
      }
    } elseif ($features.Count -gt 0) {
      $on = @(Get-WindowsFeature | Where-Object { $_.Name -in $features -and [string]$_.InstallState -like 'Install*' } | ForEach-Object { $_.Name })
      if ($on.Count -gt 0) {
        $answer = Uninstall-WindowsFeature -Name $on
        $restart = $restart -or [string]$answer.RestartNeeded -ne 'No'
        $changed = $true
      }
    }
    ConvertTo-Json -InputObject ([ordered]@{ changed = $changed; restartNeeded = $restart }) -Compress`
  return JSON.parse(stdout) as { changed: boolean; restartNeeded: boolean; vms?: string[] }
}

function refuseCommand(command: string | undefined): void {
  if (command === undefined) return
  const why = command.trim() === ''
    ? 'it says nothing'
    : command.includes('\0')
    ? 'it has a null character'
    // the Task Scheduler takes arguments up to 32 KB, and Base64 of UTF-16 is 8/3 as long
    : command.length > 8000
    ? `it has ${command.length} characters, and 8000 are the most`
    : undefined
  if (why === undefined) return
  throw new TypeError(
    `Cannot run ${JSON.stringify(command.slice(0, 40))} at the next logon: ${why}. ` +
      'Example: --resume-at-logon "npx zx recipes/migrate.ts Win10"',
  )
}

await hostCommand(
  import.meta,
  'Turn Hyper-V on; exit code 3010 means: restart Windows',
  {
    resumeAtLogon: {
      type: 'string',
      describe: 'A command of PowerShell to run once when you next sign in, should Windows restart',
      example: '"npx zx recipes/migrate.ts Win10"',
    },
    dryRun,
  },
  enableHyperV,
)
