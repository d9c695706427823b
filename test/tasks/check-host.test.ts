import fs from 'fs-extra'
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { checkHost, type CheckHostOptions } from '../../tasks/check-host.ts'
import { openPowerShell } from '../../tasks/task.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const checking = suite('checkHost')
const test = needs(checking, 'pwsh')
const hostile = 'Bob’s "VM"; $(calc) 桥接'
const plan = {
  vm: 'demo',
  cpus: 1,
  memory: 2 ** 29,
  external: '桥接',
  adapter: 'Wi-Fi',
  share: true,
  internal: 'Static-NAT',
  hostIp: '192.168.56.1/24',
  nat: true,
  mac: ['08:00:27:01:02:03'],
  space: 1,
} satisfies CheckHostOptions

let host: SimulatedHost
let seed: string

/** Runs a script of the test's own on the host, and forgets that it ran. */
const given: SimulatedHost['ps'] = async (pieces, ...values) => {
  const answer = await host.ps(pieces, ...values)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
  return answer
}
const check = (options: CheckHostOptions) => checkHost({ storage: host.dir, ...options }, host.ps)

checking.before(async () => {
  host = await simulatedHost()
  seed = await host.text()
})
checking.before.each(async () => {
  await fs.writeFile(String(host.env.SIMULATED_HOST), seed)
  await fs.remove(`${host.env.SIMULATED_HOST}.counters`)
  await fs.remove(String(host.env.SIMULATED_HOST_LOG))
})
checking.after(() => host.close())

test('finds nothing in the way of a VM on a host that has none, and says what the host has', async () => {
  const result = await check(plan)
  assert.deepEqual([result.ready, result.hyperV, result.refusals, result.vm], [
    true,
    true,
    [],
    null,
  ])
  assert.match(result.notes.join('\n'), /^The adapter "Wi-Fi" is Wi-Fi: /m)
  assert.ok(result.host.processors !== null && result.host.processors > 0)
  assert.ok(result.host.memory !== null && result.host.memory > plan.memory)
  assert.ok(result.host.diskFolder)
  assert.ok(result.host.freeSpace !== null && result.host.freeSpace > 0)
  const card = result.adapters.find(({ name }) => name === 'Wi-Fi')
  assert.deepEqual([card?.wifi, card?.bound, card?.status], [true, false, 'Up'])
  assert.ok(result.adapters.every(({ name }) => !name.startsWith('vEthernet')))
  assert.ok(result.switches.some(({ name }) => name === 'Default Switch'))
  assert.deepEqual(result.nats, [])
  assert.ok(result.addresses.length > 0)
})

test('says which PowerShell to take where this one is of the wrong kind', async () => {
  await given`$env:PROCESSOR_ARCHITEW6432 = 'AMD64'`
  try {
    const { refusals } = await check({ vm: 'demo' })
    assert.equal(refusals.length, 1)
    assert.match(
      String(refusals[0]),
      /32-bit PowerShell: .+ Set POWERSHELL to %SystemRoot%\\sysnative\\WindowsPowerShell\\v1\.0\\powershell\.exe/,
    )
  } finally {
    await given`Remove-Item env:PROCESSOR_ARCHITEW6432`
  }
  await host.change((state) => state.compatibility = true)
  const { refusals } = await check({ vm: 'demo' })
  assert.equal(refusals.length, 1)
  assert.match(String(refusals[0]), /WinPSCompatSession.+POWERSHELL set to powershell\.exe$/)
})

test('tells what Group Policy says of scripts', async () => {
  const get = async (policy: string) => {
    await given`
      $global:policy = ${policy}
      function global:Get-ExecutionPolicy { if ($args[1] -eq 'MachinePolicy') { $global:policy } else { 'Undefined' } }`
    return await check({ vm: 'demo' })
  }
  try {
    const { refusals } = await get('Restricted')
    assert.match(
      refusals.join('\n'),
      /^Cannot load the modules .+ Run: Get-ExecutionPolicy -List$/m,
    )
    const signed = await get('AllSigned')
    assert.deepEqual(signed.refusals, [])
    assert.match(
      signed.notes.join('\n'),
      /signed scripts only: nothing of this run is a script file/,
    )
    const { notes } = await get('RemoteSigned')
    assert.doesNotMatch(notes.join('\n'), /Group Policy/)
  } finally {
    await given`Remove-Item function:Get-ExecutionPolicy`
  }
})

test('changes nothing, and asks only about what is wanted', async () => {
  await check({ vm: 'demo' })
  const called = (await host.calls()).map(({ cmdlet }) => cmdlet)
  assert.deepEqual(called, ['Get-VMHost', 'Get-VM', 'Get-VMSwitch', 'Get-CimInstance'])
  await check(plan)
  assert.ok((await host.calls()).every(({ cmdlet }) => cmdlet.startsWith('Get-')))
  assert.equal(await host.text(), seed)
})

test('is content with what is there already', async () => {
  const disk = join(host.dir, 'demo.vhdx')
  await given`
    $null = New-VM -Name demo -NoVHD -Generation 2
    $null = New-VMSwitch -Name 桥接 -NetAdapterName Wi-Fi -AllowManagementOS $true
    $null = New-VMSwitch -Name Static-NAT -SwitchType Internal
    $null = New-NetIPAddress -InterfaceAlias 'vEthernet (Static-NAT)' -IPAddress 192.168.56.1 -PrefixLength 24
    $null = New-NetNat -Name other -InternalIPInterfaceAddressPrefix 192.168.56.0/24`
  const result = await check({ ...plan, vm: 'DEMO', mac: [] })
  assert.deepEqual(result.refusals, [])
  assert.deepEqual(result.notes, [
    'The VM "DEMO" is there already (Off)',
    'The switch "桥接" is there already',
    'The switch "Static-NAT" is there already',
    'The host has 192.168.56.1/24 on the switch "Static-NAT" already',
    'The NAT "other" for 192.168.56.0/24 is there already',
  ])
  assert.equal(result.vm?.generation, 2)
  assert.equal(result.adapters.find(({ name }) => name === 'Wi-Fi')?.bound, true)
  assert.match(
    (await check({ ...plan, disk: [disk], mac: [] })).refusals.join(),
    /^Cannot make the VM "demo": there is one of that name with other disks \(\)\. Choose another name, or run: Get-VM -Id [\da-f-]{36} \| Rename-VM -NewName <another name>$/,
  )
})

needs(checking, 'pwsh', 'qemu-img')('knows a VM’s disk under a checkpoint too', async () => {
  const disk = join(host.dir, 'demo.vhdx')
  await promisify(execFile)('qemu-img', ['create', '-q', '-f', 'vhdx', disk, '16M'])
  await given`
    $disk = ${disk}
    $null = New-VM -Name demo -Generation 2 -VHDPath $disk`
  const wanted = { vm: 'demo', disk: [disk] }
  assert.deepEqual((await check(wanted)).notes, ['The VM "demo" is there already (Off)'])
  await given`Checkpoint-VM -Name demo`
  const result = await check(wanted)
  assert.match(String(result.vm?.disks), /\.avhdx$/)
  assert.deepEqual([result.ready, result.refusals], [true, []])
  assert.equal((await check({ vm: 'demo', disk: [`${disk}.other`] })).ready, false)
})

test('says when sharing is about to change or the host to lose the adapter', async () => {
  assert.ok(
    (await check({ ...plan, share: false })).notes.includes(
      'The host loses its connection by "Wi-Fi" while the switch "桥接" is not shared with it',
    ),
  )
  await given`$null = New-VMSwitch -Name 桥接 -NetAdapterName Wi-Fi -AllowManagementOS $false`
  const wanted = { external: '桥接', adapter: 'Wi-Fi' }
  assert.deepEqual((await check(wanted)).notes, ['The switch "桥接" is there already'])
  assert.deepEqual((await check({ ...wanted, share: true })).notes, [
    'The switch "桥接" is there already',
    'Whether the switch "桥接" is shared with the host changes',
  ])
})

const one: [string, string, CheckHostOptions, RegExp | string][] = [
  [
    'several VMs of that name',
    'New-VM -Name x -NoVHD; New-VM -Name X -NoVHD',
    { vm: 'x' },
    /^Cannot make the VM "x": 2 VMs have that name: [\da-f-]{36}, [\da-f-]{36}\. Run: Get-VM -Id /,
  ],
  [
    'a saved VM',
    'New-VM -Name x -NoVHD; Start-VM -Name x; Save-VM -Name x',
    { vm: 'x' },
    /^Cannot change the VM "x": it is saved, and only a VM that is off takes changes\. Run: Get-VM -Id [\da-f-]{36} \| Start-VM, and shut it down$/,
  ],
  [
    'more processors than the host has',
    '',
    { cpus: 4096 },
    /^Cannot give the VM 4096 processors: the host has (\d+)\. Run again with: --cpus \1$/,
  ],
  [
    'more memory than the host has',
    '',
    { memory: 2 ** 44 },
    /^Cannot give the VM 16384 GB of memory: the host has [\d.]+ GB\. Run again with less: --memory$/,
  ],
  [
    'too little disk space',
    '',
    { space: 2 ** 52 },
    /^Cannot store the disks in ".*": they need 4194304 GB, and [\d.]+ GB are free there\. Run again with a folder on another drive: --storage$/,
  ],
  [
    'a MAC address that another VM has',
    'New-VM -Name x -NoVHD; Get-VMNetworkAdapter -VMName x | Set-VMNetworkAdapter -StaticMacAddress 080027010203',
    { vm: 'demo', mac: ['08-00-27-01-02-03'] },
    'Cannot give the VM the MAC address 080027010203: the VM "x" has it. ' +
    'Run: Get-VMNetworkAdapter -All | Where-Object MacAddress -eq 080027010203',
  ],
  [
    'no such adapter',
    '',
    { external: 'x', adapter: 'WLAN' },
    /^Cannot make the switch "x" on "WLAN": no network adapter has that name, among .*"Wi-Fi" \(.*, Up\).*\. Run: Get-NetAdapter$/,
  ],
  [
    'a new external switch without an adapter',
    '',
    { external: 'x' },
    /^Cannot make the switch "x": it needs a network adapter, one of .*"Wi-Fi" \(.*, Up\).*\. Run again with: --adapter$/,
  ],
  [
    'an adapter that another switch has',
    'New-VMSwitch -Name "Bob’s" -NetAdapterName Wi-Fi -AllowManagementOS $true',
    { external: 'x', adapter: 'Wi-Fi' },
    'Cannot make the switch "x" on "Wi-Fi": the switch "Bob’s" has that adapter, and an adapter ' +
    "serves one switch. Run again with: --external 'Bob’’s'",
  ],
  [
    'an external switch that is internal',
    'New-VMSwitch -Name x -SwitchType Internal',
    { external: 'x' },
    /^Cannot use the switch "x" for the network outside: there is one of that name that is Internal\. Choose another name, or run: /,
  ],
  [
    'an internal switch that is private',
    'New-VMSwitch -Name x -SwitchType Private',
    { internal: 'x' },
    /^Cannot use the switch "x" between host and VM: there is one of that name that is Private\. Choose another name, or run: /,
  ],
  [
    'several switches of that name',
    'New-VMSwitch -Name x -SwitchType Private; New-VMSwitch -Name x -SwitchType Private',
    { internal: 'x' },
    /^Cannot use the switch "x": 2 switches have that name: [\da-f-]{36}, [\da-f-]{36}\. Run: /,
  ],
  [
    'the Default Switch',
    '',
    { internal: 'Default Switch' },
    'Cannot use the switch "Default Switch": it is the Default Switch, which Windows changes by ' +
    'itself at every start. Choose another name',
  ],
  [
    'a second address',
    "New-VMSwitch -Name x -SwitchType Internal; New-NetIPAddress -InterfaceAlias 'vEthernet (x)' -IPAddress 10.9.9.1 -PrefixLength 24",
    { internal: 'x', hostIp: '10.9.9.2/24' },
    /^Cannot give the host 10\.9\.9\.2\/24 on the switch "x": it has 10\.9\.9\.1\/24 there\. Run: Remove-NetIPAddress -InterfaceIndex \d+ -IPAddress 10\.9\.9\.1$/,
  ],
  [
    'another NAT',
    'New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 172.30.0.0/16',
    { internal: 'x', hostIp: '10.9.9.2/24', nat: true },
    'Cannot make a NAT for 10.9.9.0/24: the NAT "Docker" for 172.30.0.0/16 is there, and a host has ' +
    'one. Run again with an address in its network or with --no-nat, or if nothing needs it, run: ' +
    "Get-NetNat -Name 'Docker' | Remove-NetNat",
  ],
  [
    'the removal of another’s NAT',
    'New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 10.9.9.0/24',
    { internal: 'x', hostIp: '10.9.9.2/24', nat: false },
    'Cannot remove the NAT for 10.9.9.0/24: it is "Docker", which something else made. ' +
    "Run, if nothing needs it: Get-NetNat -Name 'Docker' | Remove-NetNat",
  ],
]
for (const [what, prepare, options, message] of one) {
  test(`refuses ${what}`, async () => {
    if (prepare) {
      await given`
        $script = ${prepare}
        $null = & ([scriptblock]::Create($script))`
    }
    const { ready, refusals } = await check(options)
    assert.deepEqual([ready, refusals.length], [false, 1], refusals.join('\n'))
    if (typeof message === 'string') assert.equal(refusals[0], message)
    else assert.match(String(refusals[0]), message)
  })
}

test('refuses a host address in a network that the host is in', async () => {
  const [taken] = (await check({ internal: 'x', hostIp: '10.9.9.2/24' })).addresses
    .filter(({ address }) => !/^(127|169)\./.test(address))
  const hostIp = `${taken?.address.replace(/\d+$/, '77')}/16`
  const { refusals } = await check({ internal: 'x', hostIp })
  assert.ok(
    refusals.includes(
      `Cannot give the host ${hostIp} on the switch "x": "${taken?.interface}" has ` +
        `${taken?.address}/${taken?.prefixLength}, and the two networks overlap. ` +
        'Run again with another network: --host-ip',
    ),
    refusals.join('\n'),
  )
})

test('finds all refusals at once', async () => {
  await given`
    $null = New-VM -Name demo -NoVHD
    $null = New-VMSwitch -Name Static-NAT -SwitchType Private
    $null = New-NetNat -Name Docker -InternalIPInterfaceAddressPrefix 172.30.0.0/16`
  const { refusals } = await check({
    ...plan,
    disk: [join(host.dir, 'demo.vhdx')],
    cpus: 4096,
    memory: 2 ** 44,
    space: 2 ** 52,
    adapter: 'none',
  })
  assert.deepEqual(refusals.map((refusal) => refusal.split(/[\d":]/)[0]), [
    'Cannot make the VM ',
    'Cannot give the VM ',
    'Cannot give the VM ',
    'Cannot store the disks in ',
    'Cannot make the switch ',
    'Cannot use the switch ',
    'Cannot make a NAT for ',
  ])
})

test('answers when Hyper-V’s service does not run', async () => {
  await host.change((state) => state.hyperV = false)
  const result = await check(plan)
  assert.deepEqual([result.ready, result.hyperV, result.host.processors], [false, false, null])
  assert.equal(result.refusals.length, 1)
  assert.match(String(result.refusals[0]), /^Cannot use Hyper-V on this host: .*\. Run: /)
})

test('tells Hyper-V’s commands from Hyper-V', async () => {
  await host.change((state) => state.hyperV = false)
  await given`function global:Get-Service { param($Name) }`
  try {
    const { refusals } = await check({ vm: 'demo' })
    assert.equal(refusals.length, 1)
    // the second one on a server
    assert.match(
      String(refusals[0]),
      /^Cannot use Hyper-V on this host: only its commands are installed, and the feature is off\. Run: (Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All -NoRestart|Install-WindowsFeature -Name Hyper-V -IncludeManagementTools), then restart Windows$/,
    )
  } finally {
    await given`Remove-Item -LiteralPath Function:Get-Service`
  }
})

test('says when the hypervisor does not run, and not when Windows does not tell', async () => {
  for (const [present, count] of [[false, 1], [null, 0], [true, 0]] as const) {
    await given`
      $global:present = ${present}
      function global:Get-CimInstance { param($ClassName, $Property) @{ HypervisorPresent = $global:present } }`
    try {
      const { refusals } = await check({ vm: 'demo' })
      assert.equal(refusals.length, count, refusals.join())
      if (count) {
        assert.equal(
          refusals[0],
          'Cannot start a VM on this host: the hypervisor does not run. Turn virtualization on in the ' +
            'firmware, run: bcdedit /set hypervisorlaunchtype auto, then restart Windows',
        )
      }
    } finally {
      await given`Remove-Item -LiteralPath Function:Get-CimInstance`
    }
  }
})

test('finds the adapter that leads out, but takes no Wi-Fi by itself', async () => {
  const auto = async () => (await check({ ...plan, adapter: 'auto' })).refusals.join()
  assert.match(
    await auto(),
    /^Cannot choose .+ it would be "Wi-Fi", which is Wi-Fi.+--adapter 'Wi-Fi', or without/,
  )
  await host.change((state) => {
    state.adapters[1].status = 'Up'
    const way = {
      ifIndex: 7,
      prefix: '0.0.0.0/0',
      nextHop: '192.168.77.1',
      metric: 0,
      byHand: true,
    }
    Object.assign(state.interfaces.find(({ ifIndex }: { ifIndex: number }) => ifIndex === 7), {
      metric: 1,
    })
    state.routes = [...state.routes, way]
  })
  assert.equal(await auto(), '')
  await host.change((state) => state.routes = [])
  assert.match(await auto(), /^Cannot choose .+ none of the host's has a default route/)
  assert.deepEqual((await check({ ...plan, adapter: '7' })).refusals, [])
})

test('says that a switch moves to another adapter, with its VMs', async () => {
  await given`$null = New-VMSwitch -Name x -NetAdapterName Ethernet -AllowManagementOS $true`
  const { refusals, notes } = await check({ vm: 'demo', external: 'x', adapter: 'Wi-Fi' })
  assert.deepEqual(refusals, [])
  assert.match(
    notes.join(),
    /The switch "x" moves from the adapter "Realtek .+" to "Wi-Fi", with all VMs on it/,
  )
})

test('knows the adapter of a switch by its GUID, and leaves a team of adapters as it is', async () => {
  await given`
    $null = New-VMSwitch -Name x -NetAdapterName Ethernet -AllowManagementOS $true`
  await host.change((state) => state.adapters[1].hyperVDescription = 'Realtek PCIe #39')
  const there = await check({ external: 'x', adapter: 'Ethernet' })
  assert.deepEqual([there.refusals, there.notes], [[], ['The switch "x" is there already']])
  await host.change((state) => {
    const one = state.switches.find(({ name }: { name: string }) => name === 'x')
    one.team = [one.adapter, one.adapter]
  })
  const { refusals } = await check({ external: 'x', adapter: 'Wi-Fi' })
  assert.deepEqual(refusals, [
    'Cannot move the switch "x" to "Wi-Fi": it is on a team of adapters. Choose another name, or ' +
    "run: Set-VMSwitchTeam -Name 'x' -NetAdapterName 'Wi-Fi'",
  ])
})

test('refuses an adapter that is turned off, before anything is made', async () => {
  await host.change((state) => state.adapters[1].status = 'Disabled')
  const { refusals } = await check({ ...plan, adapter: 'Ethernet' })
  assert.match(
    refusals.join(),
    /the adapter is turned off\. Run: Enable-NetAdapter -Name 'Ethernet'$/,
  )
})

test('answers when the user has no rights', async () => {
  await host.change((state) => state.denied = true)
  const result = await check(plan)
  assert.deepEqual([result.ready, result.hyperV], [false, false])
  assert.deepEqual(result.refusals, [
    'Cannot use Hyper-V on this host: "LAPTOP\\user" is no administrator and not in Hyper-V ' +
    'Administrators. Let an administrator run: Add-LocalGroupMember -SID S-1-5-32-578 ' +
    "-Member 'LAPTOP\\user', then sign out and in",
  ])
})

test('tells administrators who are not elevated from users who are none', async () => {
  const said = async (user: object, denied = true) => {
    await host.change((state) => Object.assign(state, { user, denied }))
    const { host: { elevated }, refusals } = await check(plan)
    return [elevated, ...refusals]
  }
  const elevate = 'Run: Start-Process powershell -Verb RunAs, and this again in the window it opens'
  assert.deepEqual(await said({ administrator: true }), [
    false,
    'Cannot use Hyper-V on this host: PowerShell runs without the administrator rights that this ' +
    `user has. ${elevate}`,
  ])
  const manager = { hyperVAdministrator: true, name: 'Bob’s' }
  assert.deepEqual(await said({ ...manager, administrator: true }, false), [
    false,
    `Cannot set the host address 192.168.56.1/24: PowerShell runs without administrator rights. ${elevate}`,
  ])
  assert.deepEqual(await said(manager, false), [
    false,
    'Cannot set the host address 192.168.56.1/24: "LAPTOP\\Bob’s" is no administrator, and Windows ' +
    'lets nobody else. Run this again as one',
  ])
  assert.match(
    String((await said({ name: 'Bob’s' }))[1]),
    /-Member 'LAPTOP\\Bob’’s', then sign out and in$/,
  )
  const administrator = { administrator: true, elevated: true }
  assert.deepEqual(await said(administrator, false), [true])
  assert.deepEqual(await said(administrator), [
    true,
    'Cannot use Hyper-V on this host: it refuses "LAPTOP\\user", who has the rights for it ' +
    '(AccessDenied). Run: Get-WinEvent -LogName Microsoft-Windows-Hyper-V-VMMS-Admin -MaxEvents 5',
  ])
})

test('says how each Windows comes to Hyper-V when it has no module of it', async () => {
  const bare = await simulatedHost('laptop', { without: ['Hyper-V'] })
  const cannot = 'Cannot use Hyper-V on this host:'
  const client = 'Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V'
  const server = 'Install-WindowsFeature -Name Hyper-V'
  const feature = 'Microsoft-Hyper-V'
  const module = 'Microsoft-Hyper-V-Management-PowerShell'
  try {
    const said = async (change: object, on: string[]) => {
      await bare.change((state) => {
        Object.assign(state.host, change)
        state.features = Object.fromEntries(
          [feature, module, 'VirtualMachinePlatform'].map((name) => [
            name,
            on.includes(name) ? 'Enabled' : 'Disabled',
          ]),
        )
      })
      const { refusals } = await checkHost({ vm: 'demo', storage: bare.dir }, bare.ps)
      assert.equal(refusals.length, 1, refusals.join('\n'))
      return refusals[0]
    }
    assert.equal(
      await said({}, []),
      `${cannot} Windows has no Hyper-V module, so the feature is off. Run: ${client} -All -NoRestart, then restart Windows`,
    )
    assert.equal(
      await said({}, ['VirtualMachinePlatform']),
      `${cannot} of it only the platform of WSL 2 is on (VirtualMachinePlatform), which runs no VMs of yours. ` +
        `Run: ${client} -All -NoRestart, then restart Windows`,
    )
    assert.equal(
      await said({}, ['VirtualMachinePlatform', feature]),
      `${cannot} it is on, and its PowerShell module is not. Run: ${client}-Management-PowerShell -NoRestart`,
    )
    assert.equal(
      await said({ editionId: 'CoreSingleLanguage' }, ['VirtualMachinePlatform']),
      `${cannot} this is Windows Home, which has none. Change to Windows Pro, then turn Hyper-V on. ` +
        'Run: Start-Process ms-settings:activation',
    )
    const windowsServer = { edition: 'server', editionId: 'ServerStandard' }
    assert.equal(
      await said(windowsServer, []),
      `${cannot} Windows has no Hyper-V module, so the feature is off. Run: ${server} -IncludeManagementTools, then restart Windows`,
    )
    assert.equal(
      await said(windowsServer, [feature]),
      `${cannot} it is on, and its PowerShell module is not. Run: ${server}-PowerShell`,
    )
  } finally {
    await bare.close()
  }
})

// Windows finds its own modules, wherever PSModulePath leads
const elsewhere = process.platform === 'win32' ? checking.skip : test
elsewhere('answers when Windows has none of the modules', async () => {
  const { ps, close } = openPowerShell({ env: { ...host.env, PSModulePath: host.dir } })
  try {
    const result = await checkHost({ ...plan, storage: host.dir }, ps)
    assert.deepEqual([result.ready, result.hyperV], [false, false])
    assert.deepEqual(result.refusals, [
      'Cannot use Hyper-V on this host: Windows has no Hyper-V module, so the feature is off. Run: ' +
      'Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All -NoRestart, then restart Windows',
      'Cannot make the switch "桥接": Windows has no NetAdapter module. Run: Get-Module -ListAvailable NetAdapter',
      'Cannot set the host address 192.168.56.1/24: Windows has no NetTCPIP module. Run: Get-Module -ListAvailable NetTCPIP',
      'Cannot make a NAT for 192.168.56.0/24: Windows has no NetNat module, which came with ' +
      'Windows 10 1607. Run again with: --no-nat',
    ])
  } finally {
    await close()
  }
})

test('takes names as names', async () => {
  for (const name of [hostile, '[a*]']) {
    await given`
      $name = ${name}
      $null = New-VM -Name $name -NoVHD
      $null = New-VMSwitch -Name $name -SwitchType Internal`
    const { vm, notes } = await check({ vm: name, internal: name })
    assert.ok(vm)
    assert.deepEqual(notes, [
      `The VM "${name}" is there already (Off)`,
      `The switch "${name}" is there already`,
    ])
    assert.equal((await check({ vm: '*' })).vm, null)
  }
})

test('refuses what makes no sense before it asks PowerShell', async () => {
  const wrong: [CheckHostOptions, string, string][] = [
    [
      { vm: '' },
      'TypeError',
      'Cannot check the host for vm "": a name is not empty and has no control characters',
    ],
    [{ cpus: 1.5 }, 'RangeError', 'Cannot check the host for cpus 1.5: it takes a whole number'],
    [{ memory: -1 }, 'RangeError', 'Cannot check the host for memory -1: it takes a whole number'],
    [
      { mac: ['08:00:27'] },
      'TypeError',
      'Cannot check the MAC address "08:00:27": it takes 12 hexadecimal digits',
    ],
    [
      { hostIp: '10.0.0.1/24' },
      'TypeError',
      'Cannot check the host address: no internal switch is named. Add: --internal',
    ],
    [
      { internal: 'x', hostIp: '10.0.0.0/24' },
      'TypeError',
      'Cannot use the host address "10.0.0.0/24": it is the network’s own or its broadcast ' +
      'address. Run again with for example: --host-ip 10.0.0.1/24',
    ],
  ]
  for (const [options, name, message] of wrong) {
    await assert.rejects(checkHost(options, host.ps), { name, message })
  }
  assert.deepEqual(await host.calls(), [])
})

test('the command exits with 0 when ready and 1 when not, with the answer on standard output', async () => {
  const ready = await runTask(host, 'check-host', '--vm', hostile, '--cpus', '1')
  assert.deepEqual([ready.code, ready.stderr, JSON.parse(ready.stdout).ready], [0, '', true])
  const not = await runTask(host, 'check-host', '--cpus', '4096')
  assert.deepEqual([not.code, JSON.parse(not.stdout).ready], [1, false])
  assert.match(not.stderr, /^Cannot give the VM 4096 processors: .*\n$/)
})

checking.run()
