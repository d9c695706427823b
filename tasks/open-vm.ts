#!/usr/bin/env zx
/** Open the window of a Hyper-V VM: its console, an enhanced session, or remote desktop with drives of this computer. */
import fs from 'fs-extra'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { isIP } from 'node:net'
import { hostname } from 'node:os'
import { resolve } from 'node:path'
import {
  dryRun,
  hostCommand,
  inWsl,
  onWindows,
  type Option,
  powershell,
  readCredential,
  type Secret,
  toWindows,
} from './task.ts'

export interface OpenVmOptions {
  /** The VM's name. */
  vm: string
  /**
   * Enhanced session: clipboard, sound and drives in the console's window. It is the host's policy for all
   * its VMs; a Linux, whose session goes another way, has that set of its VM too, which has to be off.
   * @default as it is
   */
  enhanced?: boolean | undefined
  /** What is in it. @default windows */
  guest?: 'windows' | 'linux' | undefined
  /**
   * An administrator of a Windows guest that runs: Remote Desktop Services, which either session needs, are
   * turned on in it then, and with `rdp` connections from others are allowed, also by its firewall.
   * @default the guest is left as it is
   */
  credential?: { user: string; password: Secret } | undefined
  /** Writes a file for remote desktop here, and opens that instead of the console. */
  rdp?: string | undefined
  /** The guest's address for it. @default as its integration services say, on an internal switch first */
  address?: string | undefined
  /** Letters of this computer's drives that it has there. A folder is one by `subst W: C:\share`. @default none */
  drive?: readonly string[] | undefined
  /** The account that it proposes. The password is asked for by Windows, and is in no file. */
  user?: string | undefined
  /** Width and height of its screen. @default all of this one's */
  size?: string | undefined
  /** The computer that vmconnect asks. @default the one that PowerShell is on */
  server?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

export interface OpenVmResult {
  /** Whether host, VM or file were changed. Opening a window changes nothing. */
  changed: boolean
  id: string
  vm: string
  enhanced: boolean
  /** The program that shows it, with what it is given. */
  command: string[]
  /** The file for remote desktop; null for the console. */
  rdp: string | null
  /** What was so before, of what was changed on the host and in the guest. */
  before: {
    enhanced?: boolean
    /** How an enhanced session goes to the VM: `VMBus`, or `HvSocket` for a Linux. */
    transport?: string
    /** Of the guest's Remote Desktop Services: how they start, whether they ran, whether others may connect. */
    guest?: { startMode?: string; running?: boolean; allowed?: boolean }
  }
  /** Sentences for people. */
  notes: string[]
}

/**
 * Prepares the window; {@link showVm} opens it. The host's switch is EnableEnhancedSessionMode
 * (learn.microsoft.com/windows-server/virtualization/hyper-v/learn-more/use-local-resources-on-hyper-v-virtual-machine-with-vmconnect);
 * a Windows guest needs an account with a password and Remote Desktop Services, a Linux guest xrdp on hv_sock
 * (assumption: and nothing else). What is changed in the guest is Win32_Service and
 * Win32_TerminalServiceSetting, as no cmdlet opens the firewall in every language.
 */
export async function openVm(
  options: OpenVmOptions,
  ps = powershell,
): Promise<OpenVmResult> {
  throwIfUnusable(options)
  const { vm, enhanced, guest = 'windows', rdp, credential, dryRun = false } = options
  const { stdout } = await ps`
    $name = ${vm}
    $linux = ${guest === 'linux'}
    $remote = ${rdp !== undefined}
    $user = ${credential?.user}
    $password = ${credential?.password}
    $enhanced = ${enhanced}
    $needsAddress = ${rdp !== undefined && options.address === undefined}
    $dryRun = ${dryRun}
    $cannot = "Cannot open ""$name"":"
    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    $vm = $found[0]
    $is = [bool](Get-VMHost).EnableEnhancedSessionMode
    $before = [ordered]@{}
    if ($null -ne $enhanced -and $enhanced -ne $is) { $before.enhanced = $is }
    $internal = @(Get-VMSwitch | Where-Object { [string]$_.SwitchType -eq 'Internal' } | ForEach-Object { [string]$_.Id })
    $adapters = @(Get-VMNetworkAdapter -VM $vm | Where-Object { $_.SwitchName } | Sort-Object { [string]$_.SwitchId -notin $internal })
    $addresses = @($adapters | ForEach-Object { $_.IPAddresses } | Where-Object { $_ -match '^[0-9.]+$' -and $_ -notlike '169.254.*' } | ForEach-Object { [string]$_ })
    if ($needsAddress -and $addresses.Count -eq 0) { throw "$cannot it tells no address for remote desktop. Run again with --address, or without --rdp" }
    $notes = @()
    $typed = "'" + [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name)) + "'"
    # the parameter came with Windows 10 1803 (microsoft/linux-vm-tools)
    $byHand = "Set-VM -VMName $typed -EnhancedSessionTransportType HvSocket"
    if ($enhanced -and $linux) {
      if (-not (Get-Command Set-VM).Parameters.ContainsKey('EnhancedSessionTransportType')) { $notes += 'This Windows has enhanced sessions of Windows guests alone: those of a Linux came with Windows 10 1803 and Windows Server 2019' }
      elseif ([string]$vm.EnhancedSessionTransportType -ne 'HvSocket') {
        if ([string]$vm.State -eq 'Off') { $before.transport = [string]$vm.EnhancedSessionTransportType } else { $notes += "An enhanced session of a Linux goes by a way of its own, which is set while the VM is off: $byHand" }
      }
    }
    # in the guest, with what both kinds of session need; what it was is answered
    $inside = {
      param($remote, $dryRun)
      $ErrorActionPreference = 'Stop'
      $was = @{}
      function done($code, $what) { if ($code -ne 0) { throw "$what ($code)" } }
      $service = Get-CimInstance -ClassName Win32_Service -Filter "Name='TermService'"
      if ($service.StartMode -eq 'Disabled') { $was.startMode = [string]$service.StartMode }
      if ($service.State -ne 'Running') { $was.running = $false }
      $setting = $null
      if ($remote) {
        $setting = Get-CimInstance -Namespace root/cimv2/TerminalServices -ClassName Win32_TerminalServiceSetting
        if ([int]$setting.AllowTSConnections -eq 0) { $was.allowed = $false }
      }
      if (-not $dryRun) {
        if ($was.ContainsKey('startMode')) { done (Invoke-CimMethod -InputObject $service -MethodName ChangeStartMode -Arguments @{ StartMode = 'Manual' }).ReturnValue 'Remote Desktop Services could not be turned on in the guest' }
        if ($was.ContainsKey('running')) { done (Invoke-CimMethod -InputObject $service -MethodName StartService).ReturnValue 'Remote Desktop Services could not be started in the guest' }
        if ($was.ContainsKey('allowed')) { done (Invoke-CimMethod -InputObject $setting -MethodName SetAllowTSConnections -Arguments @{ AllowTSConnections = [uint32]1; ModifyFirewallException = [uint32]1 }).ReturnValue 'Remote desktop could not be allowed in the guest' }
      }
      ConvertTo-Json -InputObject $was -Compress
    }
    if ($user) {
      if ([string]$vm.State -ne 'Running') { throw "$cannot it is $($vm.State), and only a guest that runs can be entered. Run: Start-VM -Name $typed, and this again" }
      $account = New-Object Management.Automation.PSCredential $user, $password
      try { $told = Invoke-Command -VMId $vm.Id -Credential $account -ScriptBlock $inside -ArgumentList $remote, $dryRun } catch {
        if ($_.Exception.GetType().Name -eq 'PSDirectException') { throw "$cannot the guest does not take the account ""$user"": its password is wrong or empty, or it has never signed in there. Run again with another --guest-user" }
        if ([string]$_.FullyQualifiedErrorId -like '*PSSessionStateBroken*') { throw "$cannot nobody answered in the guest: its Windows has not started yet, or it is no Windows. Run again without --guest-user" }
        if ([string]$_.FullyQualifiedErrorId -eq [string]$_.Exception.Message) { throw "$cannot $($_.Exception.Message). Run in the guest: sc.exe qc TermService" }
        throw
      }
      $was = ConvertFrom-Json ([string]@($told)[-1])
      if (@($was.PSObject.Properties).Count -gt 0) { $before.guest = $was }
    }
    if (-not $dryRun) {
      if ($before.Contains('transport')) { Set-VM -VM $vm -EnhancedSessionTransportType HvSocket }
      if ($before.Contains('enhanced')) { Set-VMHost -EnableEnhancedSessionMode $enhanced }
    }
    $result = [ordered]@{ id = [string]$vm.Id; vm = [string]$vm.Name; state = [string]$vm.State; computer = [Environment]::MachineName; enhanced = $(if ($null -ne $enhanced) { $enhanced } else { $is }); addresses = $addresses; before = $before; notes = $notes }
    ConvertTo-Json -InputObject $result -Compress -Depth 4`
  const { state, addresses, computer, notes: said, ...result } = JSON.parse(stdout)
  const isHere = computer.toLowerCase() === hostname().split('.')[0]?.toLowerCase()
  const server = options.server ?? (isHere ? 'localhost' : computer)
  const notes: string[] = [...said]
  if (state !== 'Running') notes.push(`It is ${state}: start it in its window, or by start-vm`)
  if (enhanced && guest === 'linux') {
    notes.push(
      'In the Linux it takes xrdp, which listens there: prepare-guest --enhanced-session, while VirtualBox ' +
        'runs it, makes it so, or by hand port=vsock://-1:3389 and security_layer=rdp in /etc/xrdp/xrdp.ini',
    )
  } else if (enhanced) {
    notes.push(
      'Where Windows in it then asks for no password, it takes Windows Hello alone: turn that off in it, in ' +
        'Settings, Accounts, Sign-in options',
    )
  }
  const settings = Object.keys(result.before).length > 0
  if (rdp === undefined) {
    const command = ['vmconnect.exe', server, '-G', result.id]
    return { changed: settings, ...result, command, rdp: null, notes }
  }
  const path = resolve(rdp)
  const address = options.address ?? addresses[0]
  const written = await writeRdp(path, address, options).catch(async (error) => {
    if (!dryRun) await undoOpenVm({ ...result, enhanced }, ps, credential)
    throw error
  })
  return {
    changed: settings || written,
    ...result,
    command: ['mstsc.exe', (inWsl() ? await toWindows(path) : undefined) ?? path],
    rdp: path,
    notes,
  }
}

/**
 * Puts back what {@link openVm} changed on the host, and, with an account of it, in the guest. A file stays.
 * The VM has to be off again where its own setting was changed.
 */
export async function undoOpenVm(
  result: Pick<OpenVmResult, 'id' | 'before'> & { enhanced?: boolean | undefined },
  ps = powershell,
  credential?: OpenVmOptions['credential'],
): Promise<void> {
  if (Object.keys(result.before).length === 0) return
  await ps`
    $done = ${JSON.stringify(result)}
    $user = ${credential?.user}
    $password = ${credential?.password}
    $result = ConvertFrom-Json $done
    $vm = Get-VM | Where-Object { [string]$_.Id -eq $result.id }
    $inside = {
      param($startMode, $running, $allowed)
      if ($null -ne $allowed) {
        $setting = Get-CimInstance -Namespace root/cimv2/TerminalServices -ClassName Win32_TerminalServiceSetting
        $null = Invoke-CimMethod -InputObject $setting -MethodName SetAllowTSConnections -Arguments @{ AllowTSConnections = [uint32]0; ModifyFirewallException = [uint32]1 }
      }
      $service = Get-CimInstance -ClassName Win32_Service -Filter "Name='TermService'"
      if ($null -ne $running -and $service.State -eq 'Running') { $null = Invoke-CimMethod -InputObject $service -MethodName StopService }
      if ($null -ne $startMode) { $null = Invoke-CimMethod -InputObject $service -MethodName ChangeStartMode -Arguments @{ StartMode = $startMode } }
    }
    $guest = $result.before.guest
    if ($guest -and $user -and $vm -and [string]$vm.State -eq 'Running') {
      Invoke-Command -VMId $vm.Id -Credential (New-Object Management.Automation.PSCredential $user, $password) -ScriptBlock $inside -ArgumentList $guest.startMode, $guest.running, $guest.allowed
    }
    if ($null -ne $result.before.transport -and $vm -and [string]$vm.EnhancedSessionTransportType -ne $result.before.transport) {
      if ([string]$vm.State -ne 'Off') { throw "Cannot put the enhanced session of ""$($vm.Name)"" back: it is $($vm.State), and has to be off for that. Run: Stop-VM -Name '$([Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name)))'" }
      Set-VM -VM $vm -EnhancedSessionTransportType $result.before.transport
    }
    if ($null -ne $result.before.enhanced -and [bool](Get-VMHost).EnableEnhancedSessionMode -eq $result.enhanced) { Set-VMHost -EnableEnhancedSessionMode $result.before.enhanced }`
}

/** Starts the program that shows the VM, which stays when this one ends. False where there is no Windows. */
export async function showVm({ command }: Pick<OpenVmResult, 'command'>): Promise<boolean> {
  if (!onWindows() && !inWsl()) return false
  const [program = '', ...args] = command
  const child = spawn(program, args, { detached: true, stdio: 'ignore' })
  await new Promise<void>((done, fail) => {
    child.once('spawn', done)
    child.once('error', (cause) => {
      fail(
        new Error(
          `Cannot start ${program}: ${
            (cause as NodeJS.ErrnoException).code
          }. Run: npx zx tasks/enable-hyperv.ts, ` +
            'which brings it, or at the host itself the command that --print shows',
          { cause },
        ),
      )
    })
  })
  child.unref()
  return true
}

/** Whether the file was written anew. In UTF-16 with a mark, as mstsc itself saves one. */
async function writeRdp(
  path: string,
  address: string,
  { drive = [], user, size, dryRun = false }: OpenVmOptions,
): Promise<boolean> {
  const [width, height] = size?.split('x') ?? []
  const lines = [
    `full address:s:${address}`,
    ...(user === undefined ? [] : [`username:s:${user}`]),
    'prompt for credentials:i:1',
    // a guest of one's own has a certificate of its own: warn, and let a person decide
    'authentication level:i:2',
    'redirectclipboard:i:1',
    `drivestoredirect:s:${drive.map((letter) => `${letter.toUpperCase()}:\\;`).join('')}`,
    ...(width === undefined
      ? ['screen mode id:i:2']
      : ['screen mode id:i:1', `desktopwidth:i:${width}`, `desktopheight:i:${height}`]),
  ]
  const data = Buffer.from(`\ufeff${lines.join('\r\n')}\r\n`, 'utf16le')
  const there = await fs.readFile(path).catch(() => undefined)
  if (there?.equals(data)) return false
  if (dryRun) return true
  const aside = `${path}.${randomBytes(4).toString('hex')}.partial`
  try {
    await fs.writeFile(aside, data, { flag: 'wx' })
    await fs.rename(aside, path)
  } catch (cause) {
    await fs.remove(aside)
    const why = (cause as NodeJS.ErrnoException).code ?? String(cause)
    throw new Error(
      `Cannot write "${path}": ${why}. Name a file in a folder that is there by --rdp`,
      {
        cause,
      },
    )
  }
  return true
}

function throwIfUnusable(options: OpenVmOptions): void {
  const { vm, address, drive = [], user, size, server } = options
  // deno-lint-ignore no-control-regex -- these are what is refused
  const control = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/
  if (vm.trim() === '' || vm.length > 100 || control.test(vm)) {
    throw new TypeError(
      `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    )
  }
  const cannot = `Cannot open "${vm}":`
  if (
    address !== undefined && isIP(address) === 0 &&
    !/^[\p{L}\d]([\p{L}\d.-]*[\p{L}\d])?$/u.test(address)
  ) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(address)} is no address. Example: --address 192.168.56.191`,
    )
  }
  // a leading dash is an option of vmconnect's
  if (server !== undefined && !/^[\p{L}\d]([\p{L}\d.-]*[\p{L}\d])?$/u.test(server)) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(server)} is no computer's name. Example: --server localhost`,
    )
  }
  for (const letter of drive) {
    if (/^[a-z]$/i.test(letter)) continue
    throw new TypeError(
      `${cannot} ${
        JSON.stringify(letter)
      } is no drive's letter. Run again with for example: --drive C D`,
    )
  }
  if (user !== undefined && (user.trim() === '' || control.test(user))) {
    throw new TypeError(
      `${cannot} ${JSON.stringify(user)} is no account. Example: --user Administrator`,
    )
  }
  if (size !== undefined && !/^\d{3,5}x\d{3,5}$/.test(size)) {
    throw new TypeError(`${cannot} ${JSON.stringify(size)} is no size. Example: --size 1920x1080`)
  }
  for (const [name, value] of Object.entries({ address, drive, user, size })) {
    const given = Array.isArray(value) ? value.length > 0 : value !== undefined
    if (!given || options.rdp !== undefined) continue
    throw new TypeError(`${cannot} --${name} is for remote desktop. Add --rdp FILE.rdp`)
  }
}

const options: Record<string, Option> = {
  vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
  enhanced: { type: 'boolean', describe: 'Allow enhanced sessions on the host, or not' },
  guest: { choices: ['windows', 'linux'], describe: 'What is in it, for an enhanced session' },
  rdp: { type: 'string', describe: 'Write this file for remote desktop, and open that' },
  address: { type: 'string', describe: 'The guest’s address [default: as it says itself]' },
  drive: {
    type: 'string',
    array: true,
    describe: 'Drives of this computer that it has, such as C D',
  },
  user: { type: 'string', describe: 'The account to propose' },
  guestUser: {
    type: 'string',
    describe: 'An administrator of a Windows guest: its remote desktop is turned on then',
  },
  guestCredential: {
    type: 'string',
    describe: 'Where the password comes from: prompt, stdin, env:NAME, or manager:TARGET ' +
      '(Windows’ Credential Manager here) [default: prompt]',
  },
  size: { type: 'string', describe: 'Of its screen, such as 1920x1080 [default: all of this one]' },
  server: { type: 'string', describe: 'The computer that vmconnect asks [default: the host]' },
  print: { type: 'boolean', describe: 'Open nothing, and say the command' },
  dryRun,
}

await hostCommand(
  import.meta,
  'Open the window of a VM: its console, an enhanced session, or remote desktop',
  options,
  async ({ print, guestUser, guestCredential, ...rest }: CommandLine, ps) => {
    const given = { ...rest, ...await account(guestUser, guestCredential) }
    const result = await openVm(given, ps)
    const opened = !print && !given.dryRun && await showVm(result)
    return { ...result, opened }
  },
)

type CommandLine = Omit<OpenVmOptions, 'credential'> & {
  print?: boolean
  host?: string
  guestUser?: string
  guestCredential?: string
}

/** The account of the guest; its password is on no command line. */
async function account(
  user: string | undefined,
  way: string | undefined,
): Promise<Pick<OpenVmOptions, 'credential'>> {
  if (user === undefined && way === undefined) return {}
  const found = await readCredential(way ?? 'prompt', 'password of the guest’s administrator')
  const name = user ?? found.user
  if (name) return { credential: { user: name, password: found.password } }
  throw new TypeError(
    'Cannot use a credential without its user. Run again with --guest-user Administrator',
  )
}
