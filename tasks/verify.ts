#!/usr/bin/env zx
/** Prove that the guest of a Hyper-V VM has started, or show its screen and say what may keep it from that. */
import fs from 'fs-extra'
import { randomBytes } from 'node:crypto'
import { dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { hostCommand, type PowerShell, powershell, readCredential, Secret } from './task.ts'
import { png, uniform } from './verify/png.ts'
import { describeLikely, likely, type Symptom } from './verify/symptoms.ts'
import { showPicture } from './verify/terminal.ts'

export type { Symptom }
export { describeLikely, showPicture }

export interface VerifyOptions {
  /** The VM's name. */
  vm: string
  /** Seconds to wait for the guest, from its start on. @default 120 */
  timeout?: number | undefined
  /** TCP ports that are tried. @default 3389 for Windows, 22 for Linux, both where that is not known */
  port?: readonly number[] | undefined
  /** What is known of the guest beside what it says itself. @default as it says */
  guest?: 'windows' | 'linux' | undefined
  /** The PNG that gets the screen of a guest that does not answer. @default `NAME-screen.png` in this folder */
  screenshot?: string | undefined
  /** An administrator of a Windows guest: its report and clock are asked for by PowerShell Direct then. */
  credential?: { user: string; password: Secret } | undefined
}

export interface VerifyResult {
  vm: string
  id: string
  /** `yes`: it answers. `no`: it does not run, or nothing of it answers. */
  booted: 'yes' | 'no'
  /** Each thing that was looked at, in a sentence. */
  reasons: string[]
  state: string
  /** Seconds since the VM was started. */
  uptime: number
  heartbeat: 'ok' | 'none'
  /** As the guest calls itself, e.g. `Windows 11 Pro`; null where it says nothing. */
  os: string | null
  guest: 'windows' | 'linux' | 'unknown'
  addresses: {
    adapter: string
    address: string
    /** Who says so: the guest's integration services, or the host's ARP table by the MAC address. */
    seenBy: 'integration services' | 'arp'
    /** Whether it answers a ping. Windows does not, by its firewall. */
    ping: boolean
    /** `open`: somebody answers there; `refused`: the guest says that nobody does; `silent`: nobody says anything. */
    ports: { port: number; answer: 'open' | 'refused' | 'silent' }[]
  }[]
  /** The integration services, by what they do. Their names are translated. */
  services: { name: string; enabled: boolean; ok: boolean }[]
  /** What Windows says of itself by PowerShell Direct; null where it was not asked. */
  report: {
    /** Null where it does not say. */
    activated: boolean | null
    /** What became of its adapters at its first start here, as prepare-guest had left it to do. */
    firstStart: string[]
  } | null
  /** Seconds that the guest's clock is ahead of the host's; null where it was not asked for. */
  clock: number | null
  /** The file with the screen; null where the guest answers or there is none. */
  screenshot: string | null
  /** What may be the matter, the likeliest first; docs/symptoms.md has a section for each. */
  likely: Symptom[]
}

/**
 * Reads only, but for the screenshot. A guest has started when its heartbeat or its network answers:
 * that the VM is Running says nothing of it. Addresses come from the integration services, else from the
 * host's ARP table; a ping and TCP connections go there from the host.
 *
 * Where nothing answers in time the VM's screen is fetched
 * (Msvm_VirtualSystemManagementService.GetVirtualSystemThumbnailImage) and what fits the VM is listed.
 */
export async function verify(options: VerifyOptions, ps = powershell): Promise<VerifyResult> {
  const { vm, timeout = 120, port, credential } = options
  throwIfUnusable(options)
  const { stdout } = await ps`
    $name = ${vm}
    $timeout = ${timeout}
    $ports = ${port}
    $family = ${options.guest}
    $user = ${credential?.user}
    $password = ${credential?.password}
    $cannot = "Cannot verify ""$name"":"
    $found = @(Get-VM | Where-Object { $_.Name.Equals($name, 'OrdinalIgnoreCase') })
    if ($found.Count -eq 0) { throw "$cannot there is no such VM. Run: Get-VM" }
    if ($found.Count -gt 1) { throw "$cannot $($found.Count) VMs have that name, with the ids $(@($found | ForEach-Object { [string]$_.Id }) -join ', '). Run: Rename-VM" }
    $vm = $found[0]
    $namespace = 'root/virtualization/v2'

    $clock = [Diagnostics.Stopwatch]::StartNew()
    $wait = [Math]::Max(0, $timeout - $vm.Uptime.TotalSeconds)
    $pause = 250
    while ($true) {
      $now = Get-VM -Id $vm.Id
      $alive = [string]$now.State -eq 'Running' -and [string]$now.Heartbeat -like 'Ok*'
      if ($alive -or [string]$now.State -notin 'Running', 'Starting', 'Resuming' -or $clock.Elapsed.TotalSeconds -ge $wait) { break }
      Start-Sleep -Milliseconds ([int][Math]::Min($pause, [Math]::Max(1, ($wait - $clock.Elapsed.TotalSeconds) * 1000)))
      $pause = [Math]::Min(4000, $pause * 2)
    }
    $running = [string]$now.State -eq 'Running'

    # what the guest says of itself
    $os = $null
    $exchange = Get-CimInstance -Namespace $namespace -ClassName Msvm_KvpExchangeComponent -Filter "SystemName='$([string]$vm.Id)'"
    foreach ($item in @($exchange.GuestIntrinsicExchangeItems | Where-Object { $_ })) {
      $fields = @{}
      foreach ($property in ([xml]$item).INSTANCE.PROPERTY) { $fields[[string]$property.NAME] = [string]$property.VALUE }
      if ($fields.Name -eq 'OSName') { $os = $fields.Data }
    }
    if (-not $family) { $family = if (-not $os) { 'unknown' } elseif ($os -match 'Windows') { 'windows' } else { 'linux' } }
    # their names are translated, what ends their ids is not
    $known = [ordered]@{ '84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47' = 'heartbeat'; '2497F4DE-E9FA-4204-80E4-4B75C46419C0' = 'time synchronization'; '2A34B1C2-FD73-4043-8A5B-DD2159BC743F' = 'key-value pair exchange'; '9F8233AC-BE49-4C79-8EE3-E7E1985B2077' = 'shutdown'; '6C09BB55-D683-4DA0-8931-C9BF705F6480' = 'guest services'; '5CED1297-4598-4915-A5FC-AD21BB4D02A4' = 'backup' }
    $services = @(foreach ($service in @(Get-VMIntegrationService -VM $vm)) {
        $what = $known[([string]$service.Id).Split([char]92)[-1].ToUpperInvariant()]
        if ($what) { [ordered]@{ name = $what; enabled = [bool]$service.Enabled; ok = [string]$service.PrimaryStatusDescription -eq 'OK' } }
      })

    # where it is reached
    function connects($address, $port) {
      $client = New-Object Net.Sockets.TcpClient ([Net.Sockets.AddressFamily]$(if ($address -match ':') { 'InterNetworkV6' } else { 'InterNetwork' }))
      try {
        $going = $client.BeginConnect($address, $port, $null, $null)
        if (-not $going.AsyncWaitHandle.WaitOne(2000)) { return 'silent' }
        $client.EndConnect($going)
        'open'
      } catch {
        $failure = $_.Exception
        while ($failure -and $failure -isnot [Net.Sockets.SocketException]) { $failure = $failure.InnerException }
        if ($failure -and [string]$failure.SocketErrorCode -eq 'ConnectionRefused') { 'refused' } else { 'silent' }
      } finally { $client.Close() }
    }
    function answers($address) {
      $ping = New-Object Net.NetworkInformation.Ping
      try { [string]$ping.Send($address, 2000).Status -eq 'Success' } catch { $false } finally { $ping.Dispose() }
    }
    if (-not $ports) { $ports = @(if ($family -ne 'linux') { 3389 }; if ($family -ne 'windows') { 22 }) }
    $addresses = @()
    if ($running) {
      foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm | Where-Object { $_.SwitchName })) {
        $by = 'integration services'
        $given = @($adapter.IPAddresses | Where-Object { $_ } | ForEach-Object { [string]$_ })
        if ($given.Count -eq 0) {
          $by = 'arp'
          $mac = [string]$adapter.MacAddress
          $given = @(Get-NetNeighbor | Where-Object { ([string]$_.LinkLayerAddress -replace '-') -eq $mac -and $mac -match '[1-9A-F]' -and [string]$_.State -notin 'Unreachable', 'Incomplete' } | ForEach-Object { [string]$_.IPAddress })
        }
        foreach ($address in @($given | Where-Object { $_ -notmatch '^(169[.]254[.]|fe[89ab][0-9a-f]:)' } | Select-Object -Unique)) {
          $tried = @($ports | ForEach-Object { [ordered]@{ port = [int]$_; answer = [string](connects $address $_) } })
          $addresses += [ordered]@{ adapter = [string]$adapter.Name; address = $address; seenBy = $by; ping = [bool](answers $address); ports = $tried }
        }
      }
    }
    $ahead = $null
    $report = $null
    if ($user -and $running -and $family -ne 'linux') {
      $account = New-Object Management.Automation.PSCredential $user, $password
      try {
        $before = [DateTime]::UtcNow
        $ticks = Invoke-Command -VMId $vm.Id -Credential $account -ScriptBlock { [DateTime]::UtcNow.Ticks }
        $between = $before.AddTicks(([DateTime]::UtcNow - $before).Ticks / 2)
        $ahead = [Math]::Round(([long]$ticks - $between.Ticks) / 1e7, 1)
        $told = Invoke-Command -VMId $vm.Id -Credential $account -ScriptBlock {
          $activated = $null
          # of Windows, which is one of many products that it knows
          try { $activated = [int]@(Get-CimInstance -ClassName SoftwareLicensingProduct -Filter "ApplicationID='55c92734-d682-4d71-983e-d6ec3f16059f'" | Where-Object { $_.PartialProductKey })[0].LicenseStatus -eq 1 } catch { $null = $_ }
          $log = [IO.Path]::Combine($env:ProgramData, 'vbox-to-hyperv', 'first-start.log')
          $lines = @(if ([IO.File]::Exists($log)) { [IO.File]::ReadAllLines($log) | Select-Object -Last 20 | ForEach-Object { [string]$_ } })
          ConvertTo-Json -InputObject ([ordered]@{ activated = $activated; firstStart = $lines }) -Compress
        }
        $report = ConvertFrom-Json ([string]@($told)[-1])
      } catch {
        if ($_.Exception.GetType().Name -eq 'PSDirectException') { throw "$cannot the guest does not take the account ""$user"": its password is wrong or empty, or it has never signed in there. Run again with another --user, or without one" }
        if ([string]$_.FullyQualifiedErrorId -notlike '*PSSessionStateBroken*') { throw }
      }
    }

    # what may keep it from starting
    $secure = $null
    $first = $null
    if ([int]$vm.Generation -eq 2) {
      $firmware = Get-VMFirmware -VM $vm
      $secure = if ([string]$firmware.SecureBoot -ne 'On') { 'off' } elseif ([string]$firmware.SecureBootTemplateId -eq '1734c6e8-3154-4dda-ba5f-a874cc483422') { 'Windows' } else { 'other' }
      $order = @($firmware.BootOrder)
      if ($order.Count -gt 0) { $first = [string]$order[0].BootType -in 'Drive', 'File' -and ([string]$order[0].BootType -eq 'File' -or $order[0].Device.GetType().Name -like '*HardDiskDrive*') }
    }
    $result = [ordered]@{
      vm = [string]$vm.Name; id = [string]$vm.Id; state = [string]$now.State; uptime = [Math]::Round($now.Uptime.TotalSeconds); heartbeat = $(if ($alive) { 'ok' } else { 'none' })
      os = $os; guest = $family; addresses = $addresses; services = $services; clock = $ahead; report = $report
      typed = [Management.Automation.Language.CodeGeneration]::EscapeSingleQuotedStringContent([WildcardPattern]::Escape($vm.Name))
      generation = [int]$vm.Generation; secureBoot = $secure; diskFirst = $first
      disks = @(Get-VMHardDiskDrive -VM $vm | Where-Object { $_.Path } | ForEach-Object { [string]$_.Path })
    }
    ConvertTo-Json -InputObject $result -Compress -Depth 5`
  const { typed, generation, secureBoot, diskFirst, disks, ...seen } = JSON.parse(stdout)
  const answers = judge(seen)
  if (answers || seen.state !== 'Running') {
    const booted = answers ? 'yes' as const : 'no' as const
    return { ...seen, booted, reasons: describe(seen), screenshot: null, likely: [] }
  }
  const picture = await screen(seen.id, options.screenshot ?? fileOf(seen.vm), ps)
  return {
    ...seen,
    booted: 'no',
    reasons: [...describe(seen), ...picture.reasons],
    screenshot: picture.path,
    likely: likely({ vm: typed, guest: seen.guest, generation, secureBoot, diskFirst, disks }),
  }
}

type Seen = Omit<VerifyResult, 'booted' | 'reasons' | 'screenshot' | 'likely'>

/** Whether something of the guest answers. What is in the ARP table may be of before. */
function judge({ heartbeat, addresses }: Seen): boolean {
  return heartbeat === 'ok' ||
    addresses.some(({ ping, ports }) => ping || ports.some(({ answer }) => answer !== 'silent'))
}

function describe(
  { state, uptime, heartbeat, os, addresses, services, clock, report }: Seen,
): string[] {
  if (state !== 'Running') return [`It is ${state}, so nothing of the guest can answer`]
  const off = services.filter(({ enabled }) => !enabled).map(({ name }) => name)
    .filter((name) => name !== 'guest services') // off by default
  const time = services.find(({ name }) => name === 'time synchronization')
  return [
    heartbeat === 'ok'
      ? `The guest's heartbeat is there${os ? `: ${os}` : ''}`
      : `The guest has given no heartbeat in the ${uptime} s since the VM was started`,
    ...addresses.map(({ adapter, address, seenBy, ping, ports }) => {
      const tried = ports.map(({ port, answer }) => `port ${port} is ${answer}`)
      const by = seenBy === 'arp' ? ', by the host’s ARP table,' : ''
      return `It has ${address} on "${adapter}"${by}: it ${
        ping ? 'answers' : 'does not answer'
      } a ping, ` +
        tried.join(', ')
    }),
    ...(addresses.length === 0 ? ['No address of it is known'] : []),
    ...(off.length > 0 ? [`These integration services are off: ${off.join(', ')}`] : []),
    ...(time?.enabled && !time.ok && heartbeat === 'ok'
      ? ['The guest does not take the time from the host']
      : []),
    ...(clock !== null && Math.abs(clock) >= 5
      ? [`Its clock is ${Math.abs(clock)} s ${clock > 0 ? 'ahead of' : 'behind'} the host's`]
      : []),
    ...(report?.activated === false
      ? [
        'Windows in it is not activated. Run in it, elevated: slmgr /ato; or Settings, Activation, ' +
        '"I changed hardware on this device recently"',
      ]
      : []),
    ...(report?.firstStart ?? []).map((line) => `At its first start here: ${line}`),
  ]
}

/** Pixels of the picture: what text of a boot screen is legible in. */
const [WIDTH, HEIGHT] = [800, 600]

/** Fetches what the VM shows, and writes it aside first. */
async function screen(
  id: string,
  file: string,
  ps: PowerShell,
): Promise<{ path: string | null; reasons: string[] }> {
  const { stdout } = await ps`
    $id = ${id}
    $width = ${WIDTH}
    $height = ${HEIGHT}
    $namespace = 'root/virtualization/v2'
    $settings = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='$($id.ToUpperInvariant())'" | Where-Object { [string]$_.VirtualSystemType -eq 'Microsoft:Hyper-V:System:Realized' } | Select-Object -First 1
    $service = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemManagementService
    $answer = @{ code = 0; image = '' }
    if ($settings -and $service) {
      $taken = Invoke-CimMethod -InputObject $service -MethodName GetVirtualSystemThumbnailImage -Arguments @{ TargetSystem = $settings; WidthPixels = [uint16]$width; HeightPixels = [uint16]$height }
      $answer.code = [int]$taken.ReturnValue
      if ($taken.ImageData) { $answer.image = [Convert]::ToBase64String([byte[]]$taken.ImageData) }
    }
    ConvertTo-Json -InputObject $answer -Compress`
  const { code, image } = JSON.parse(stdout) as { code: number; image: string }
  const data = Buffer.from(image, 'base64')
  if (code !== 0 || data.length !== WIDTH * HEIGHT * 2) {
    return { path: null, reasons: [`Hyper-V gives no picture of its screen (${code})`] }
  }
  const path = resolve(file)
  const aside = `${path}.${randomBytes(4).toString('hex')}.partial`
  try {
    await fs.ensureDir(dirname(path))
    await fs.writeFile(aside, png(data, WIDTH, HEIGHT), { flag: 'wx' })
    await fs.rename(aside, path)
  } catch (cause) {
    await fs.remove(aside)
    const why = (cause as NodeJS.ErrnoException).code ?? String(cause)
    throw new Error(
      `Cannot write the screen to "${path}": ${why}. Name another file by --screenshot`,
      {
        cause,
      },
    )
  }
  const what = uniform(data) ? 'Its screen is of one colour' : 'Its screen'
  return { path, reasons: [`${what}: "${path}"`] }
}

/** A file for the screen of a VM of any name. */
function fileOf(vm: string): string {
  const name = vm.normalize('NFC').replace(/[^\p{L}\p{M}\p{N} ._-]+/gu, '_').replace(
    /^[-. ]+|[. ]+$/g,
    '',
  )
  return join(process.cwd(), `${name.slice(0, 80) || 'vm'}-screen.png`)
}

function throwIfUnusable({ vm, timeout = 120, port = [] }: VerifyOptions): void {
  // deno-lint-ignore no-control-regex -- these are what is refused
  if (vm.trim() === '' || vm.length > 100 || /[\u0000-\u001f\u007f]/.test(vm)) {
    throw new TypeError(
      `Cannot look for a VM named ${JSON.stringify(vm)}: ` +
        'a name is 1 to 100 characters and no control characters. Run: Get-VM',
    )
  }
  if (!(timeout >= 0 && timeout <= 86400)) {
    throw new RangeError(
      `Cannot wait ${timeout} seconds for "${vm}": it is 0 to 86400. Run again with --timeout 120`,
    )
  }
  for (const number of port) {
    if (Number.isInteger(number) && number >= 1 && number <= 65535) continue
    throw new RangeError(`Cannot try port ${number}: it is 1 to 65535. Run again with --port 3389`)
  }
}

/** The account of the guest; its password is on no command line. */
async function account(
  user: string | undefined,
  way: string | undefined,
): Promise<Pick<VerifyOptions, 'credential'>> {
  if (user === undefined && way === undefined) return {}
  const found = await readCredential(way ?? 'prompt', 'password of the guest’s administrator')
  const name = user ?? found.user
  if (name) return { credential: { user: name, password: found.password } }
  throw new TypeError(
    'Cannot use a credential without its user. Run again with --user Administrator',
  )
}

await hostCommand(
  import.meta,
  'Prove that the guest of a VM has started, or show its screen and say what may keep it from that',
  {
    vm: { type: 'string', demandOption: true, describe: 'The VM’s name', example: 'Win10' },
    timeout: {
      type: 'number',
      default: 120,
      describe: 'Seconds to wait for the guest, from its start on',
    },
    port: {
      type: 'number',
      array: true,
      describe: 'TCP ports to try [default: 3389 for Windows, 22 for Linux]',
    },
    guest: { choices: ['windows', 'linux'], describe: 'What it is [default: as it says itself]' },
    screenshot: {
      type: 'string',
      describe: 'The PNG that gets the screen of a guest that does not answer',
    },
    user: {
      type: 'string',
      describe: 'An administrator of a Windows guest, to ask for its report',
    },
    credential: {
      type: 'string',
      describe:
        'Where the password comes from: prompt, stdin, env:NAME, or manager:TARGET (Windows’ ' +
        'Credential Manager here) [default: prompt]',
    },
  },
  async (
    { user, credential, ...rest }: Omit<VerifyOptions, 'credential'> & {
      user?: string
      credential?: string
    },
    ps,
  ) => {
    const options = { ...rest, ...await account(user, credential) }
    const result = await verify(options, ps)
    const { booted, reasons, likely, screenshot } = result
    if (screenshot) await showPicture(await fs.readFile(screenshot))
    const words = [...reasons.map((reason) => `${reason}.`), ...describeLikely(likely)].join('\n')
    if (booted === 'yes') return result
    process.stderr.write(`${words}\n`)
    process.exitCode = 1
    return result
  },
)
