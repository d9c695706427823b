#!/usr/bin/env zx
/**
 * Leave the network adapter to the VM where its intranet is, and have it back elsewhere: by hand, by the
 * network that the host is on, or by itself whenever that changes.
 */
import fs from 'fs-extra'
import { join, resolve } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { checkProxy, type ProxyCheck } from '../tasks/check-proxy.ts'
import { type GuardOptions, guardOptions, readGuard } from '../tasks/guard.ts'
import { type Credential, dryRun, hostCommand, powershell, readCredential } from '../tasks/task.ts'
import { toggleShare, type ToggleShareResult } from '../tasks/toggle-share.ts'
import {
  undoUseProxy,
  useProxy,
  type UseProxyOptions,
  type UseProxyResult,
} from '../tasks/use-proxy.ts'
import { stateFolder } from './run/journal.ts'
import {
  commandOf,
  LONGEST,
  NETWORKS,
  RUNNER,
  runnerArguments,
  subscription,
  WLAN,
} from './run/schedule.ts'
import { tunnelsDown, tunnelsNow, type TunnelsResult, tunnelsUp } from './run/tunnels.ts'

export interface IntranetOptions extends GuardOptions {
  /**
   * `on` leaves the switch's adapter to the VMs, `off` shares it with the host again, `auto` does
   * either by the network that the host is on, and `status` only asks.
   */
  state: 'on' | 'off' | 'auto' | 'status'
  /** Name of the external switch. @default the only one */
  switch?: string | undefined
  /**
   * The intranet's networks, for `auto`: the SSID of a Wi-Fi, or the name that Windows shows for a
   * network. Upper and lower case are the same.
   */
  network?: readonly string[] | undefined
  /** The HTTP proxy in the guest, `HOST:PORT`, which this machine's programs use while it is on. @default none */
  http?: string | undefined
  /** The SOCKS5 proxy in the guest, `HOST:PORT`, likewise. @default none */
  socks?: string | undefined
  /** `HOST:PORT` of the intranet that has to be reached through them. @default the proxies themselves */
  destination?: string | undefined
  /** A user of the proxies, to check them with; the programs have to know it by themselves. @default none */
  user?: string | undefined
  /** Where the password comes from, which is not stored: as readCredential takes it. @default prompt */
  credential?: string | undefined
  /** The programs whose settings these are, as use-proxy takes them. @default those that are there */
  for?: UseProxyOptions['for']
  /** Domains and networks that go through the proxies, as use-proxy takes them. @default all */
  only?: readonly string[] | undefined
  /** Seconds that the proxies have until they work again, when the adapter has changed hands. @default 30 */
  settle?: number | undefined
  /** A file of tunnels, as open-tunnel takes it, which are open while it is on. @default none */
  tunnels?: string | undefined
  /** The folder for what is kept meanwhile. @default the user's data folder */
  folder?: string | undefined
  /** The home folder whose files are meant. @default this user's */
  home?: string | undefined
  /** @default false */
  dryRun?: boolean | undefined
}

/** What {@link toggleShare} answers, by which undoToggleShare takes it back, and why it was asked. */
export interface IntranetResult extends ToggleShareResult {
  /** How the host is set up; on a dry run, how it would be afterwards. */
  intranet: 'on' | 'off'
  /** The networks that the host is on; for `auto` and `status`. */
  networks?: string[]
  /** Whether one of them is the intranet's. Null where the host is on none, or none can be told. */
  inside?: boolean | null
  /** The host runs `auto` by itself; for `status`. */
  scheduled?: boolean
  /** What was set for the proxies, or put back. */
  settings?: UseProxyResult['settings']
  /** The tunnels that are open. */
  tunnels?: TunnelsResult['tunnels']
}

/**
 * Sets the host up for the intranet or for elsewhere, under the guard (see guard.ts). On the intranet the
 * proxies are checked before anything changes; then the adapter is the VMs', the proxies still work, this
 * machine's programs use them, and the tunnels are open. What of that fails takes back what this call has
 * changed. Off does it all backwards, whatever was asked for when it went on.
 */
export async function intranet(
  options: IntranetOptions,
  ps = powershell,
): Promise<IntranetResult> {
  const { state, switch: name, network = [], dryRun = false, folder = stateFolder } = options
  const { guard, revertAfter, probe } = options
  const guarded = { guard, revertAfter, probe }
  if (!['on', 'off', 'auto', 'status'].includes(state)) {
    throw new TypeError(`Cannot turn the intranet "${state}": it takes on, off, auto or status`)
  }
  checkNetworks(network, state === 'auto')
  const toggle = async (state: 'on' | 'off' | 'status'): Promise<IntranetResult> => {
    const result = await toggleShare({ state, switch: name, dryRun, ...guarded }, ps)
    return { ...result, intranet: result.shared ? 'off' : 'on' }
  }
  const keep = join(folder, 'use-proxy.json')
  const on = async (): Promise<IntranetResult> => {
    const account = await readAccount(options)
    const notes = await checkProxies(options, account, 'nothing was changed')
    const result = await toggle('off')
    try {
      if (result.changed && !dryRun) await settled(options, account)
      const { http, socks, for: programs, only, home, tunnels: config } = options
      const proxies = { http, socks, for: programs, only, home, keep, dryRun }
      const up = config === undefined
        ? undefined
        : await tunnelsUp({ config, state: folder, dryRun })
      const used = (http ?? socks) === undefined
        ? undefined
        : await useProxy(proxies).catch(async (error) => {
          if (up?.changed) await tunnelsDown({ state: folder, dryRun })
          throw error
        })
      const all = together(result, used, up)
      return { ...all, notes: [...all.notes, ...notes] }
    } catch (error) {
      if (result.changed && !dryRun) await toggle('on')
      throw error
    }
  }
  const off = async (): Promise<IntranetResult> => {
    const down = await tunnelsDown({ state: folder, dryRun })
    const used = await fs.pathExists(keep) ? await undoUseProxy({ keep, dryRun }) : undefined
    return together(await toggle('on'), used, down)
  }
  if (state === 'on') return await on()
  if (state === 'off') return await off()
  const { networks, inside, unknown, scheduled } = await look(network, ps)
  if (state === 'status') {
    const known = network.length > 0 ? inside : null
    const { tunnels } = await tunnelsNow(folder)
    const open = tunnels.length > 0 && { tunnels }
    return { ...await toggle('status'), ...open, networks, inside: known, scheduled }
  }
  const now = await toggle('status')
  // a guard would take back first what another run has changed and not confirmed yet
  const same = inside === null || (inside === (now.intranet === 'on') && !more(options))
  const result = same ? now : await (inside ? on() : off())
  const notes = inside === null ? unknown : []
  return { ...result, networks, inside, notes: [...notes, ...result.notes] }
}

/** Whether there is more to it than the adapter. */
function more({ http, socks, tunnels }: IntranetOptions): boolean {
  return http !== undefined || socks !== undefined || tunnels !== undefined
}

function together(
  result: IntranetResult,
  used: UseProxyResult | undefined,
  { changed, tunnels }: Partial<TunnelsResult> = {},
): IntranetResult {
  return {
    ...result,
    changed: result.changed || used?.changed === true || changed === true,
    ...(used && { settings: used.settings }),
    ...(tunnels && tunnels.length > 0 && { tunnels }),
    notes: [...result.notes, ...used?.notes ?? []],
  }
}

/** Waits until the guest's way to the intranet is there again, which the change may have cut for a while. */
async function settled(options: IntranetOptions, account: Account): Promise<void> {
  const end = performance.now() + (options.settle ?? 30) * 1000
  while (true) {
    try {
      return void await checkProxies(options, account, 'what was changed is taken back')
    } catch (error) {
      if (performance.now() > end) throw error
      await wait(1000)
    }
  }
}

type Account = Partial<Credential>

/** Asked for where it is needed alone: the way back is open without it. */
async function readAccount(
  { user, credential, http, socks, tunnels }: IntranetOptions,
): Promise<Account> {
  const way = credential ?? (user === undefined ? undefined : 'prompt')
  if (way === undefined || (http ?? socks) === undefined) return {}
  const account = await readCredential(way, `password of ${user ?? 'the user'} at the proxy`)
  // the tunnels may take theirs from the same variable, which is gone once it is read
  if (tunnels !== undefined && way.startsWith('env:')) {
    process.env[way.slice(4)] = account.password.reveal()
  }
  return { ...account, ...(user !== undefined && { user }) }
}

/** Refuses proxies that would cut this machine's programs off. Answers what people have to know of the others. */
async function checkProxies(
  { http, socks, destination }: IntranetOptions,
  account: Account,
  then: string,
): Promise<string[]> {
  const bare = (text: string) => text.replace(/^[a-z\d]+:\/\//i, '')
  const proxy = [
    ...(http === undefined ? [] : [`http://${bare(http)}`]),
    ...(socks === undefined ? [] : [`socks5://${bare(socks)}`]),
  ]
  const notes: string[] = []
  for (const one of proxy) {
    const { works, checks } = await checkProxy({ proxy: one, destination, ...account })
    const open = ({ check, user, state }: ProxyCheck) =>
      check !== 'tcp' && user === null && state === 'ok'
    if (works && !checks.some(open)) {
      notes.push(
        `The proxy ${one} wants a password, which is not stored: programs have to know it by themselves`,
      )
    }
    if (works) continue
    const wrong = checks.filter(({ detail }) => detail !== '')
    // of an account that was named, what is wrong with that
    const why = (wrong.find(({ user }) => user !== null) ?? wrong[0])?.detail
    throw new Error(
      `Cannot go on the intranet: the proxy ${one} does not work, and ${then}. ${why ?? ''}`.trim(),
    )
  }
  return notes
}

export interface ScheduleIntranetOptions extends Omit<IntranetOptions, 'state'> {
  network: readonly string[]
  /** `env:NAME` or `manager:TARGET`. */
  credential?: string | undefined
  /** The file that gets a line a run. @default intranet.log in the user's data folder */
  log?: string | undefined
  /** The program and what it is given before `auto`. @default this file and what runs it */
  command?: readonly string[] | undefined
}

export interface ScheduleIntranetResult {
  changed: boolean
  /** The scheduled task's name. */
  task: string
  /** Whom it runs as. */
  user: string
  log: string
  before: { scheduled: boolean }
}

const TASK = 'vbox-to-hyperv intranet'

/**
 * Lets the host run `auto` by itself: when the user signs in, when Windows finds or loses a network,
 * and when Wi-Fi connects, which Windows does not call a network of the host's while the adapter is the
 * VM's. The task runs as who made it, with all rights and while signed in. A second one takes the
 * place of the first. What is turned by hand meanwhile stays so until a network comes or goes, and that
 * a turn brings about by itself.
 *
 * Assumed about Windows, as no test machine has it: the events' numbers (NetworkProfile 10000 and
 * 10001, WLAN-AutoConfig 8001), and that a task may wait for those of two logs by one trigger.
 */
export async function scheduleIntranet(
  { switch: name, network, log, command, dryRun = false, ...options }: ScheduleIntranetOptions,
  ps = powershell,
): Promise<ScheduleIntranetResult> {
  checkNetworks(network, true)
  const { user, credential } = options
  if ((user ?? credential) !== undefined && !/^(env|manager):./.test(credential ?? '')) {
    throw new TypeError(
      'Cannot schedule with a password that nobody is there to type: it is env:NAME or ' +
        'manager:TARGET. Run again with --credential manager:TARGET',
    )
  }
  const [program = '', ...first] = command ?? commandOf(import.meta.filename as string)
  const file = resolve(log ?? join(stateFolder, 'intranet.log'))
  const { http, socks, destination, for: programs = [], only = [], tunnels, folder } = options
  const account = { user, credential }
  const own = { http, socks, destination, ...account, tunnels: tunnels && resolve(tunnels), folder }
  const given = [
    // of each of several, the parser takes one pair of quotation marks off
    ...network.map((name) => `--network="${name}"`),
    ...(options.probe ?? []).map((target) => `--probe="${target}"`),
    ...programs.map((program) => `--for="${program}"`),
    ...only.map((domain) => `--only="${domain}"`),
    ...(name === undefined ? [] : [`--switch=${name}`]),
    ...Object.entries(own).flatMap(([name, value]) =>
      value === undefined ? [] : [`--${name}=${value}`]
    ),
    ...(options.revertAfter === undefined ? [] : [`--revert-after=${options.revertAfter}s`]),
    ...(options.guard === false ? ['--no-guard'] : []),
  ]
  const args = [...first, 'auto', ...given]
  const argument = runnerArguments({ program, args, log: file, limit: LIMIT })
  if (argument.length > LONGEST) {
    throw new RangeError(
      `Cannot schedule for ${network.length} networks: their names are too long for one task of ` +
        'Windows. Name fewer with --network',
    )
  }
  const { stdout } = await ps`
    $task = ${TASK}
    $program = ${program}
    $recipe = ${first.at(-1) ?? program}
    $execute = ${RUNNER}
    $argument = ${argument}
    $limit = ${LIMIT}
    $subscription = ${SUBSCRIPTION}
    $log = ${file}
    $dryRun = ${dryRun}
    foreach ($path in $program, $recipe) {
      if (-not [IO.File]::Exists($path)) { throw "Cannot schedule ""auto"": the file ""$path"" is not on this host. Run it at the host itself, in PowerShell" }
    }
    $found = @(Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue)
    # by name: the class is Windows' alone, and a simulated host brings its own
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    if ('S-1-5-32-544' -notin @($identity.Groups | ForEach-Object { $_.Value })) {
      throw 'Cannot schedule "auto": its task is to run with administrator rights, and PowerShell runs without. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens'
    }
    $user = [string]$identity.Name
    $same = $found.Count -eq 1 -and [string]$found[0].State -ne 'Disabled' -and $found[0].Actions[0].Arguments -ceq $argument -and @($found[0].Triggers | Where-Object { $_.Subscription -eq $subscription }).Count -eq 1
    if (-not $same -and -not $dryRun) {
      $class = Get-CimClass -Namespace Root/Microsoft/Windows/TaskScheduler -ClassName MSFT_TaskEventTrigger
      # an address comes some seconds after the connection
      $connected = New-CimInstance -CimClass $class -ClientOnly -Property @{ Enabled = $true; Subscription = $subscription; Delay = 'PT5S' }
      $null = Register-ScheduledTask -Force -TaskName $task -Description 'Leaves the network adapter to the VM on the intranet, and has it back elsewhere' -Action (New-ScheduledTaskAction -Execute $execute -Argument $argument) -Trigger @($connected, (New-ScheduledTaskTrigger -AtLogOn -User $user)) -Principal (New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Highest) -Settings (New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable -MultipleInstances Queue -ExecutionTimeLimit (New-TimeSpan -Seconds ($limit + 300)))
    }
    ConvertTo-Json -Compress -Depth 3 ([ordered]@{ changed = -not $same; task = $task; user = $user; log = $log; before = [ordered]@{ scheduled = $found.Count -gt 0 } })`
  return JSON.parse(stdout) as ScheduleIntranetResult
}

/** Takes back {@link scheduleIntranet}. */
export async function unscheduleIntranet(
  { dryRun = false }: { dryRun?: boolean | undefined } = {},
  ps = powershell,
): Promise<Pick<ScheduleIntranetResult, 'changed' | 'task' | 'before'>> {
  const { stdout } = await ps`
    $task = ${TASK}
    $dryRun = ${dryRun}
    $found = @(Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue)
    # without rights the task may not be seen
    $identity = ([type]'Security.Principal.WindowsIdentity')::GetCurrent()
    if ('S-1-5-32-544' -notin @($identity.Groups | ForEach-Object { $_.Value })) {
      throw 'Cannot take "auto" from the schedule: PowerShell runs without administrator rights. Run: Start-Process powershell -Verb RunAs, and this again in the window it opens'
    }
    if (-not $dryRun) { foreach ($one in $found) { Unregister-ScheduledTask -InputObject $one -Confirm:$false } }
    ConvertTo-Json -Compress -Depth 3 ([ordered]@{ changed = $found.Count -gt 0; task = $task; before = [ordered]@{ scheduled = $found.Count -gt 0 } })`
  return JSON.parse(stdout)
}

function checkNetworks(networks: readonly string[], needed: boolean): void {
  if (needed && networks.length === 0) {
    throw new TypeError(
      'Cannot tell the intranet from elsewhere: no network is named. ' +
        'Run again with its SSID, or its name in Windows: --network NAME',
    )
  }
  for (const name of networks) {
    // deno-lint-ignore no-control-regex
    if (name.trim() !== '' && !/[\u0000-\u001f\u007f]/.test(name)) continue
    throw new TypeError(
      `Cannot look for the network ${JSON.stringify(name)}: ` +
        'a name is not empty and has no control characters. Run: Get-NetConnectionProfile',
    )
  }
}

/**
 * Where the host is. Windows knows the networks of the host's own adapters; that of a Wi-Fi adapter
 * which is the VM's alone it knows not, but the log of its WLAN service has where the adapter connected
 * last. `netsh wlan show interfaces` would say so too, but in the user's language and code page, and
 * since Windows 11 24H2 only to who lets apps see where they are
 * (learn.microsoft.com/windows/win32/nativewifi/wi-fi-access-location-changes).
 *
 * Assumed about Windows: that log is on, as it is by default; its events 8001 and 8003 name their data
 * InterfaceGuid, SSID and ProfileName; a Wi-Fi adapter below a switch still says that it is up; and a
 * network that is still being identified has no connectivity yet.
 */
async function look(
  names: readonly string[],
  ps: typeof powershell,
): Promise<{
  networks: string[]
  inside: boolean | null
  unknown: string[]
  scheduled: boolean
}> {
  const { stdout } = await ps`
    $names = ${names}
    $task = ${TASK}
    $log = ${WLAN}
    # networks behind a switch that leads nowhere outside are nowhere to be
    $all = @(Get-VMSwitch)
    $inner = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { $port = $_; @($all | Where-Object { [string]$_.Id -eq [string]$port.SwitchId -and [string]$_.SwitchType -eq 'External' }).Count -eq 0 } | ForEach-Object { [string]$_.DeviceId })
    $cards = @(Get-NetAdapter)
    $networks = @()
    $connected = $false
    foreach ($network in @(Get-NetConnectionProfile)) {
      if (@($cards | Where-Object { $_.InterfaceIndex -eq $network.InterfaceIndex -and [string]$_.DeviceID -in $inner }).Count -gt 0) { continue }
      $networks += [string]$network.Name
      if (@([string]$network.IPv4Connectivity, [string]$network.IPv6Connectivity | Where-Object { $_ -notin 'Disconnected', 'NoTraffic' }).Count -gt 0) { $connected = $true }
    }
    $unknown = @()
    $wifi = @($cards | Where-Object { [string]$_.Status -eq 'Up' -and ([string]$_.PhysicalMediaType -eq 'Native 802.11' -or $_.NdisPhysicalMedium -eq 9) })
    $entries = @()
    if ($wifi.Count -gt 0) {
      try { $entries = @(Get-WinEvent -LogName $log -FilterXPath '*[System[EventID=8001 or EventID=8003]]' -MaxEvents 200) } catch { if ($_.FullyQualifiedErrorId -notlike 'NoMatching*') { throw } }
    }
    foreach ($card in $wifi) {
      $last = $null
      foreach ($entry in $entries) {
        $data = @{}
        foreach ($item in ([xml]$entry.ToXml()).Event.EventData.Data) { $data[$item.GetAttribute('Name')] = $item.InnerText }
        # the newest comes first; 8003 is the end of a connection
        if ($data.InterfaceGuid -and [guid]$data.InterfaceGuid -eq [guid]$card.InterfaceGuid) { if ($entry.Id -eq 8001) { $last = $data }; break }
      }
      if ($last) {
        $connected = $true
        $networks += @($last.SSID, $last.ProfileName)
      } else { $unknown += "The network of the adapter ""$($card.Name)"" is not known: Windows has no note of its connection. See that it takes notes: wevtutil set-log $log /enabled:true" }
    }
    $once = @()
    foreach ($network in $networks) { if ($network -and @($once | Where-Object { $_.Equals($network, 'OrdinalIgnoreCase') }).Count -eq 0) { $once += $network } }
    $inside = $null
    if ($connected) { $inside = $false }
    foreach ($name in $names) { if (@($once | Where-Object { $_.Equals($name, 'OrdinalIgnoreCase') }).Count -gt 0) { $inside = $true } }
    ConvertTo-Json -Compress -Depth 3 ([ordered]@{ networks = $once; inside = $inside; unknown = $unknown; scheduled = @(Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue).Count -gt 0 })`
  return JSON.parse(stdout)
}

const SUBSCRIPTION = subscription({ [NETWORKS]: [10000, 10001], [WLAN]: [8001] })

/** Seconds after which a run is stopped. */
const LIMIT = 7200

type Command =
  & Omit<IntranetOptions, 'state' | 'revertAfter'>
  & Pick<ScheduleIntranetOptions, 'log'>
  & {
    state: IntranetOptions['state'] | 'schedule' | 'unschedule'
    revertAfter?: string
  }

/** What people are told. */
function say(
  result: IntranetResult,
  dryRun: boolean,
): string {
  const { changed, switch: name, intranet, networks, inside, scheduled, notes } = result
  const { settings = [], tunnels = [] } = result
  const at = networks?.length
    ? `On ${networks.map((name) => `"${name}"`).join(', ')}`
    : 'On no network'
  const where = inside === undefined ? [] : scheduled !== undefined && inside === null ? [at] : [
    inside === null
      ? `${networks?.length ? at : 'On no network that is known'}: nothing is changed`
      : `${at}: that is ${inside ? '' : 'not '}the intranet`,
  ]
  const how = changed ? (dryRun ? 'would become ' : 'is now ') : 'is '
  return [
    ...where,
    `The switch "${name}" ${how}${intranet === 'on' ? 'the VMs’ alone' : 'shared with the host'}`,
    ...(scheduled === undefined
      ? []
      : [`The host ${scheduled ? 'runs' : 'does not run'} auto by itself`]),
    ...(settings.length > 0
      ? [
        `Proxy settings: ${settings.map(({ program, state }) => `${program} ${state}`).join(', ')}`,
      ]
      : []),
    ...tunnels.map(({ name, host, port }) => `The tunnel "${name}" is open on ${host}:${port}`),
    ...notes,
    // a network's name may hold what would move the cursor
    // deno-lint-ignore no-control-regex
  ].join('\n').replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, '\ufffd')
}

await hostCommand(
  import.meta,
  'Leave the network adapter to the VM on the intranet (on), have it back elsewhere (off), or either by ' +
    'the network that the host is on (auto), by itself whenever that changes (schedule)',
  {
    state: {
      type: 'string',
      positional: true,
      demandOption: true,
      choices: ['on', 'off', 'auto', 'status', 'schedule', 'unschedule'],
      describe: 'What to do; status only asks',
      example: 'auto',
    },
    switch: {
      type: 'string',
      describe: 'The switch’s name [default: the only external one]',
    },
    network: {
      type: 'string',
      array: true,
      describe: 'The intranet: SSID of a Wi-Fi, or a network’s name in Windows',
      example: 'Office',
    },
    http: { type: 'string', describe: 'The HTTP proxy in the guest, HOST:PORT' },
    socks: { type: 'string', describe: 'The SOCKS5 proxy in the guest, HOST:PORT' },
    destination: {
      type: 'string',
      describe: 'HOST:PORT of the intranet that has to be reached through them',
    },
    user: { type: 'string', describe: 'A user of the proxies, to check them with' },
    credential: {
      type: 'string',
      describe:
        'Where the password comes from: prompt, stdin, env:NAME, or manager:TARGET (Windows’ ' +
        'Credential Manager, which has the user too) [default: prompt]',
    },
    for: {
      array: true,
      choices: ['env', 'git', 'npm', 'pip', 'docker', 'system', 'pac'],
      describe: 'Whose settings these are [default: those that are there]',
    },
    only: {
      type: 'string',
      array: true,
      describe: 'Domains and networks that go through them [default: all]',
    },
    tunnels: { type: 'string', describe: 'A file of tunnels, as open-tunnel takes it' },
    folder: { type: 'string', describe: 'Where is kept what was there before' },
    log: { type: 'string', describe: 'schedule: the file that gets a line a run' },
    host: { alias: 'to' },
    ...guardOptions,
    dryRun,
  },
  async (given: Command, ps) => {
    const { state, log, ...rest } = readGuard(given)
    const { dryRun = false, network = [] } = rest
    const tell = (words: string) => process.stderr.write(`${words}\n`)
    if (state === 'schedule') {
      const result = await scheduleIntranet({ ...rest, network, log }, ps)
      const { changed, user } = result
      const how = changed ? (dryRun ? 'would run' : 'now runs') : 'already runs'
      tell(`The host ${how} auto by itself, as "${user}", and notes it in "${result.log}"`)
      return result
    }
    if (state === 'unschedule') {
      const result = await unscheduleIntranet({ dryRun }, ps)
      const how = dryRun && result.changed ? 'would not run' : 'does not run'
      tell(`The host ${how} auto by itself${result.changed && !dryRun ? ' any more' : ''}`)
      return result
    }
    const result = await intranet({ ...rest, state }, ps)
    tell(say(result, dryRun))
    return result
  },
)
