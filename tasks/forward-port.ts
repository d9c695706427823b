#!/usr/bin/env zx
/** Forward a port of the host to a VM that is behind the host's NAT. */
import { isIPv4 } from 'node:net'
import { dryRun, hostCommand, powershell } from './task.ts'

export interface ForwardPortOptions {
  /** The host's port, from 1 to 65535. */
  port: number
  /** The VM's address on the NAT's network, e.g. `192.168.56.191`. */
  guestIp: string
  /** The port there. @default the same */
  guestPort?: number | undefined
  /** @default tcp */
  protocol?: 'tcp' | 'udp' | undefined
  /** `off` takes a forward away, whoever made it. @default on */
  state?: 'on' | 'off' | undefined
  /** The NAT need not be there on a dry run. @default false */
  dryRun?: boolean | undefined
}

export interface ForwardPortResult {
  changed: boolean
  /** The NAT whose network holds the guest's address. Null on a dry run before there is one. */
  nat: string | null
  protocol: 'tcp' | 'udp'
  port: number
  guestIp: string
  guestPort: number
  state: 'on' | 'off'
  before: { state: 'on' | 'off' }
}

/**
 * Makes a static mapping of the host's NAT (`--nat` of set-static-ip), as a VM of VirtualBox has its port
 * forwards: whoever reaches the host at any of its addresses reaches the guest by that port.
 *
 * The host itself does not, by none of its own addresses (WinNAT: known limitations,
 * techcommunity.microsoft.com, Windows NAT 2016): it takes the guest's address and port. The mapping is
 * for all addresses, 0.0.0.0, as one of them alone is refused (windows-powershell-docs#1594).
 *
 * Refuses a port that another guest has, and one at which a program of the host listens.
 */
export async function forwardPort(
  { port, guestIp, guestPort = port, protocol = 'tcp', state = 'on', dryRun = false }:
    ForwardPortOptions,
  ps = powershell,
): Promise<ForwardPortResult> {
  throwIfUnusable(port, guestIp, guestPort)
  const { stdout } = await ps`
    $port = ${port}
    $guestAddress = ${guestIp}
    $guestPort = ${guestPort}
    $protocol = ${protocol}
    $on = ${state === 'on'}
    $dryRun = ${dryRun}
    $what = "Cannot forward port $port ($protocol) to $($guestAddress):$guestPort"
    function numberOf($address) {
      $bytes = ([Net.IPAddress]$address).GetAddressBytes()
      [long]$bytes[0] * 16777216 + [long]$bytes[1] * 65536 + [long]$bytes[2] * 256 + $bytes[3]
    }
    if (-not (Get-Command -Name Add-NetNatStaticMapping -ErrorAction Ignore)) {
      throw "$($what): Windows has no NetNat module, which came with Windows 10 1607. Reach the guest by its address on an external switch instead. Run: npx zx tasks/create-switch.ts --help"
    }
    $nat = $null
    foreach ($one in @(Get-NetNat | Where-Object { $_.InternalIPInterfaceAddressPrefix })) {
      $start, $bits = ([string]$one.InternalIPInterfaceAddressPrefix).Split('/')
      $size = [long][Math]::Pow(2, 32 - [int]$bits)
      if ([Math]::Floor((numberOf $start) / $size) -eq [Math]::Floor((numberOf $guestAddress) / $size)) { $nat = $one }
    }
    if ($null -eq $nat -and $on -and -not $dryRun) {
      throw "$($what): the host has no NAT for that network. Run: npx zx tasks/set-static-ip.ts --switch NAME --host-ip ADDRESS/LENGTH --nat"
    }
    $there = $null
    if ($null -ne $nat) {
      $same = @(Get-NetNatStaticMapping | Where-Object { [string]$_.NatName -eq [string]$nat.Name -and [string]$_.Protocol -eq $protocol -and [int]$_.ExternalPort -eq $port })
      $there = $same | Where-Object { [string]$_.InternalIPAddress -eq $guestAddress -and [int]$_.InternalPort -eq $guestPort } | Select-Object -First 1
      if ($on -and $null -eq $there -and $same.Count -gt 0) {
        throw "$($what): the NAT forwards it to $($same[0].InternalIPAddress):$($same[0].InternalPort). Run again with another --port, or first: Remove-NetNatStaticMapping -StaticMappingID $($same[0].StaticMappingID)"
      }
    }
    $is = $null -ne $there
    if ($on -and -not $is -and $protocol -eq 'tcp') {
      $listener = @(Get-NetTCPConnection -LocalPort ([uint16]$port) -State Listen -ErrorAction Ignore)
      if ($listener.Count -gt 0) {
        throw "$($what): a program of the host listens there (process $($listener[0].OwningProcess)). Run again with another --port, or see what it is: Get-Process -Id $($listener[0].OwningProcess)"
      }
    }
    if ($on -ne $is -and -not $dryRun) {
      if ($on) {
        try {
          $null = Add-NetNatStaticMapping -NatName ([string]$nat.Name) -Protocol $protocol -ExternalIPAddress '0.0.0.0' -ExternalPort ([uint16]$port) -InternalIPAddress $guestAddress -InternalPort ([uint16]$guestPort)
        } catch {
          # a port in use or reserved (assumption: 32 is what a sharing violation is everywhere)
          if ($_.FullyQualifiedErrorId -eq 'Windows System Error 32,Add-NetNatStaticMapping') {
            throw "$($what): something of the host has that port, or Windows keeps it (32). Run again with another --port, or see who: netsh interface ipv4 show excludedportrange protocol=$protocol"
          }
          throw
        }
      } else { $there | Remove-NetNatStaticMapping -Confirm:$false }
    }
    $answer = [ordered]@{ changed = $on -ne $is; nat = $null; protocol = $protocol; port = $port; guestIp = $guestAddress; guestPort = $guestPort; state = 'off'; before = [ordered]@{ state = 'off' } }
    if ($null -ne $nat) { $answer.nat = [string]$nat.Name }
    if ($on) { $answer.state = 'on' }
    if ($is) { $answer.before.state = 'on' }
    ConvertTo-Json -InputObject $answer -Compress -Depth 3`
  return JSON.parse(stdout) as ForwardPortResult
}

/** Takes a forward away that {@link forwardPort} made, and makes one again that it took away. */
export async function undoForwardPort(
  result: ForwardPortResult,
  ps = powershell,
): Promise<void> {
  if (!result.changed) return
  await ps`
    $done = ${JSON.stringify(result)}
    $result = ConvertFrom-Json $done
    # a NAT that is gone took its mappings with it
    $nat = Get-NetNat | Where-Object { [string]$_.Name -eq [string]$result.nat }
    if ($null -eq $nat) { return }
    $same = @(Get-NetNatStaticMapping | Where-Object { [string]$_.NatName -eq [string]$nat.Name -and [string]$_.Protocol -eq $result.protocol -and [int]$_.ExternalPort -eq $result.port })
    $there = @($same | Where-Object { [string]$_.InternalIPAddress -eq $result.guestIp -and [int]$_.InternalPort -eq $result.guestPort })
    if ($result.before.state -eq 'off') { $there | Remove-NetNatStaticMapping -Confirm:$false }
    elseif ($same.Count -eq 0) {
      $null = Add-NetNatStaticMapping -NatName ([string]$nat.Name) -Protocol $result.protocol -ExternalIPAddress '0.0.0.0' -ExternalPort ([uint16]$result.port) -InternalIPAddress $result.guestIp -InternalPort ([uint16]$result.guestPort)
    }`
}

function throwIfUnusable(port: number, guestIp: string, guestPort: number): void {
  for (const number of [port, guestPort]) {
    if (Number.isInteger(number) && number >= 1 && number <= 65535) continue
    throw new TypeError(
      `Cannot forward port ${number}: a port is a whole number from 1 to 65535. Run again with for ` +
        'example: --port 2222 --guest-port 22',
    )
  }
  if (isIPv4(guestIp)) return
  throw new TypeError(
    `Cannot forward a port to ${
      JSON.stringify(guestIp)
    }: that is no IPv4 address, and NAT is for IPv4. ` +
      'Run again with for example: --guest-ip 192.168.56.191',
  )
}

await hostCommand(
  import.meta,
  'Forward a port of the host to a VM that is behind the host’s NAT',
  {
    state: {
      type: 'string',
      choices: ['on', 'off'],
      positional: true,
      default: 'on',
      describe: 'off takes the forward away',
    },
    port: { type: 'number', demandOption: true, describe: 'The host’s port', example: '2222' },
    guestIp: {
      type: 'string',
      demandOption: true,
      describe: 'The VM’s address behind the NAT',
      example: '192.168.56.191',
    },
    guestPort: { type: 'number', describe: 'The port there [default: the same]', example: '22' },
    protocol: { choices: ['tcp', 'udp'], default: 'tcp', describe: 'Which of the two' },
    dryRun,
  },
  forwardPort,
  undoForwardPort,
)
