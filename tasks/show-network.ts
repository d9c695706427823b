#!/usr/bin/env zx
/** Show a host's networks as a picture: adapters, switches, addresses, NATs and VMs, conflicts marked. */
import { randomBytes } from 'node:crypto'
import { rename, rm, writeFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { drawMermaid, drawSvg, drawText } from './show-network/draw.ts'
import { conflictsOf, type Network } from './show-network/network.ts'
import { hostCommand, powershell } from './task.ts'

export { drawMermaid, drawSvg, drawText } from './show-network/draw.ts'
export type { Network } from './show-network/network.ts'

const DEFAULT_SWITCH = 'c08cb7b8-9b3c-408e-8e30-5e16a3aeb444' // its name is translated, its id is not

/** Reads the networks of a host. Changes nothing. */
export async function readNetwork(ps = powershell): Promise<Network> {
  const { stdout } = await ps`
    function addresses($index) {
      @($all | Where-Object { $_.InterfaceIndex -eq $index -and ([string]$_.AddressFamily -eq 'IPv4' -or [string]$_.PrefixOrigin -ne 'WellKnown') } | ForEach-Object {
        [ordered]@{ address = [string]$_.IPAddress; prefixLength = [int]$_.PrefixLength; dhcp = [string]$_.PrefixOrigin -eq 'Dhcp' }
      })
    }
    function gateways($index) {
      @($routes | Where-Object { $_.InterfaceIndex -eq $index } | ForEach-Object { [string]$_.NextHop })
    }
    $cards = @(Get-NetAdapter)
    # without a filter: what a filter does not find is an error
    $all = @(Get-NetIPAddress)
    $routes = @(Get-NetRoute | Where-Object { $_.DestinationPrefix -eq '0.0.0.0/0' })
    $bound = @(Get-NetAdapterBinding | Where-Object { $_.ComponentID -eq 'vms_pp' -and $_.Enabled } | ForEach-Object { [string]$_.InterfaceDescription })
    $vms = @{}
    foreach ($vm in @(Get-VM)) { $vms[[string]$vm.Id] = [ordered]@{ id = [string]$vm.Id; name = [string]$vm.Name; state = [string]$vm.State } }
    $ports = @(Get-VMNetworkAdapter -All | ForEach-Object {
      $nic = $_
      $vlan = Get-VMNetworkAdapterVlan -VMNetworkAdapter $nic
      $port = [ordered]@{
        vm = $null
        name = [string]$nic.Name
        switch = $null
        mac = [string]$nic.MacAddress
        vlan = $null
        addresses = @()
        gateways = @()
      }
      if ($nic.SwitchName) { $port.switch = [string]$nic.SwitchId }
      if ([string]$vlan.OperationMode -eq 'Access') { $port.vlan = [int]$vlan.AccessVlanId }
      if ($nic.IsManagementOs) {
        $card = @($cards | Where-Object { [string]$_.DeviceID -eq [string]$nic.DeviceId })[0]
        if ($card) {
          $port.name = [string]$card.Name
          $port.addresses = @(addresses $card.InterfaceIndex)
          $port.gateways = @(gateways $card.InterfaceIndex)
        }
      } else {
        $port.vm = $vms[[string]$nic.VMId]
        $port.addresses = @($nic.IPAddresses | Where-Object { $_ } | ForEach-Object { [ordered]@{ address = [string]$_; prefixLength = -1; dhcp = $false } })
      }
      $port
    })
    ConvertTo-Json -Compress -Depth 5 -InputObject ([ordered]@{
      host = [Environment]::MachineName
      adapters = @($cards | Where-Object { $_.ComponentID -notin 'vms_mp', 'ms_bridge' } | ForEach-Object {
        [ordered]@{
          name = [string]$_.Name
          description = [string]$_.InterfaceDescription
          status = [string]$_.Status
          wifi = [string]$_.PhysicalMediaType -eq 'Native 802.11' -or $_.NdisPhysicalMedium -eq 9
          mac = ([string]$_.MacAddress).Replace('-', '')
          addresses = @(addresses $_.InterfaceIndex)
          gateways = @(gateways $_.InterfaceIndex)
          bound = [string]$_.InterfaceDescription -in $bound
        }
      })
      # on Wi-Fi a bridge stands between adapter and switch; it has the adapter's MAC address
      bridges = @($cards | Where-Object { $_.ComponentID -eq 'ms_bridge' } | ForEach-Object {
        [ordered]@{ description = [string]$_.InterfaceDescription; mac = ([string]$_.MacAddress).Replace('-', '') }
      })
      switches = @(Get-VMSwitch | ForEach-Object {
        [ordered]@{
          id = [string]$_.Id
          name = [string]$_.Name
          type = [string]$_.SwitchType
          adapters = @(@($_.NetAdapterInterfaceDescriptions) + $_.NetAdapterInterfaceDescription | Where-Object { $_ } | Select-Object -Unique)
          shared = [bool]$_.AllowManagementOS
        }
      })
      ports = $ports
      # of a module that came with Windows 10 1607
      nats = @(@(if (Get-Command -Name Get-NetNat -ErrorAction Ignore) { Get-NetNat }) | ForEach-Object { [ordered]@{ name = [string]$_.Name; prefix = [string]$_.InternalIPInterfaceAddressPrefix } })
    })`
  const read = JSON.parse(stdout) as Network & { bridges: { description: string; mac: string }[] }
  const { bridges, ...network } = read
  network.switches = read.switches.map((one) => ({
    ...one,
    isDefault: one.id.toLowerCase() === DEFAULT_SWITCH,
  }))
  network.adapters = read.adapters.map((adapter) => {
    const names = [
      adapter.description,
      ...bridges.filter(({ mac }) => mac === adapter.mac).map(({ description }) => description),
    ]
    const has = read.switches.find(({ adapters }) => adapters.some((name) => names.includes(name)))
    return { ...adapter, switch: has?.id ?? null }
  })
  return { ...network, conflicts: conflictsOf(network) }
}

export interface ShowNetworkOptions {
  /** @default `text` */
  format?: 'text' | 'mermaid' | 'svg' | 'json' | undefined
  /** The file to write, which is replaced; else the picture is the answer. */
  to?: string | undefined
}

/** Reads a host's networks and draws them. */
export async function showNetwork(
  { format = 'text', to }: ShowNetworkOptions,
  ps = powershell,
): Promise<string | { path: string; conflicts: string[] }> {
  const network = await readNetwork(ps)
  const draw = {
    text: drawText,
    mermaid: drawMermaid,
    svg: drawSvg,
    json: (all: Network) => JSON.stringify(all),
  }
  const drawn = draw[format](network)
  if (to === undefined) return drawn
  const path = resolve(to)
  const temporary = `${path}.${randomBytes(4).toString('hex')}.partial`
  try {
    await writeFile(temporary, `${drawn}\n`, { flag: 'wx' })
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    const why = (error as NodeJS.ErrnoException).code ?? String(error)
    throw new Error(`Cannot write "${path}": ${why}. Name a file in a folder that is there by --to`)
  }
  return { path, conflicts: network.conflicts.map(({ text }) => text) }
}

await hostCommand(
  import.meta,
  'Show the networks of a host as a picture, conflicts marked',
  {
    format: {
      choices: ['text', 'mermaid', 'svg', 'json'],
      describe: 'For a terminal, for Mermaid, as an image, or as data [default: text]',
    },
    to: { type: 'string', describe: 'The file to write', example: 'network.svg' },
  },
  showNetwork,
)
