import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'
import { suite } from 'uvu'
import { enableHyperV, undoEnableHyperV } from '../../tasks/enable-hyperv.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const TASK = 'vbox-to-hyperv-resume'
const MODULE = 'Microsoft-Hyper-V-Management-PowerShell'
const SERVER = join(import.meta.dirname as string, '..', '..', 'fixtures', 'hyper-v', 'server.json')
const enabling = suite<{ host: SimulatedHost; seed: object }>('enableHyperV')
const test = needs(enabling, 'pwsh')

enabling.before(async (context) => {
  context.host = await simulatedHost()
  context.seed = await context.host.state()
})
enabling.before.each(({ host, seed }) => off(host, seed))
enabling.after(({ host }) => host.close())

test('turns on all of Hyper-V that is off, and says that Windows restarts', async ({ host }) => {
  const result = await enableHyperV({}, host.ps)
  equal(result.changed, true)
  equal(result.windows, 'client')
  equal(result.restartNeeded, true)
  equal(result.resume, null)
  equal(result.before?.features.length, 7)
  const { features } = await host.state()
  equal(features['Microsoft-Hyper-V'], 'EnablePending')
  equal(features['Microsoft-Hyper-V-Management-PowerShell'], 'EnablePending')
  equal(features.HypervisorPlatform, 'Disabled')
})

test('says again that Windows restarts, and changes nothing twice', async ({ host }) => {
  await enableHyperV({}, host.ps)
  const before = await host.text()
  const again = await enableHyperV({}, host.ps)
  equal(again.changed, false)
  equal(again.restartNeeded, true)
  equal(again.before, undefined)
  equal(await host.text(), before)
  await host.change((state) => {
    for (const name of Object.keys(state.features)) state.features[name] = 'Enabled'
    state.host.hypervisorPresent = true
  })
  deepEqual(await enableHyperV({}, host.ps), {
    changed: false,
    windows: 'client',
    restartNeeded: false,
    resume: null,
    notes: [],
  })
})

test('changes nothing on a dry run', async ({ host }) => {
  await host.change((state) => state.launchType = 'Off')
  const before = await host.text()
  const dry = await enableHyperV({ dryRun: true, resumeAtLogon: 'Get-Date' }, host.ps)
  equal(await host.text(), before)
  deepEqual(await enableHyperV({ resumeAtLogon: 'Get-Date' }, host.ps), dry)
})

test('pain 22: is taken back to what it found, once and again', async ({ host }) => {
  await host.change((state) => {
    state.launchType = 'Off'
    state.features['Microsoft-Hyper-V-Hypervisor'] = 'Enabled'
  })
  const { tasks, ...before } = await host.state()
  const result = await enableHyperV({ resumeAtLogon: 'Get-Date' }, host.ps)
  equal(result.before?.launchType, 'Off')
  ok(!result.before?.features.includes('Microsoft-Hyper-V-Hypervisor'))
  equal((await host.state()).launchType, 'Auto')
  deepEqual(await undoEnableHyperV(result, host.ps), { changed: true, restartNeeded: true })
  deepEqual(await host.state(), { ...before, tasks })
  deepEqual(await undoEnableHyperV(result, host.ps), { changed: false, restartNeeded: false })
  deepEqual(await host.state(), { ...before, tasks })
})

test('turns off what runs with the next start, and says so', async ({ host }) => {
  const result = await enableHyperV({}, host.ps)
  await host.change((state) => {
    for (const name of Object.keys(state.features)) {
      if (state.features[name] === 'EnablePending') state.features[name] = 'Enabled'
    }
  })
  deepEqual(await undoEnableHyperV(result, host.ps), { changed: true, restartNeeded: true })
  equal((await host.state()).features['Microsoft-Hyper-V'], 'DisablePending')
})

test('leaves Hyper-V on where it has VMs by then, and names them', async ({ host }) => {
  const result = await enableHyperV({}, host.ps)
  await host.change((state) => {
    for (const name of Object.keys(state.features)) {
      if (state.features[name] === 'EnablePending') state.features[name] = 'Enabled'
    }
  })
  const name = 'Bob’s "VM" 桥接'
  await host.ps`
    $name = ${name}
    $null = New-VM -Name $name -NoVHD`
  const before = await host.text()
  const left = { changed: false, restartNeeded: false, vms: [name] }
  deepEqual(await undoEnableHyperV(result, host.ps), left)
  equal(await host.text(), before)
  // its tools are no VM's
  const tools = { ...result, before: { features: [MODULE], launchType: null, waited: true } }
  equal((await undoEnableHyperV(tools, host.ps)).changed, true)
  equal((await host.state()).features[MODULE], 'DisablePending')
})

test('turns the module on where only that is off', async ({ host, seed }) => {
  await host.change((state) => {
    Object.assign(state, structuredClone(seed))
    state.features['Microsoft-Hyper-V-Management-PowerShell'] = 'Disabled'
    state.host.hypervisorPresent = true
  })
  const { before } = await enableHyperV({}, host.ps)
  deepEqual(before?.features, ['Microsoft-Hyper-V-Management-PowerShell'])
})

test('lets the hypervisor start again where it was turned off for VirtualBox', async ({ host, seed }) => {
  await host.change((state) => {
    Object.assign(state, structuredClone(seed), { launchType: 'Off', locale: 'de-DE' })
    state.host.hypervisorPresent = false
  })
  const result = await enableHyperV({}, host.ps)
  deepEqual(result.before, { features: [], launchType: 'Off', waited: true })
  equal(result.restartNeeded, true)
  equal((await host.state()).launchType, 'Auto')
})

test('says that the hypervisor of a Hyper-V that is on does not run', async ({ host, seed }) => {
  await host.change((state) => {
    Object.assign(state, structuredClone(seed), { launchType: 'Auto' })
    state.host.hypervisorPresent = false
  })
  const { changed, restartNeeded, notes } = await enableHyperV({}, host.ps)
  equal(changed, false)
  equal(restartNeeded, true)
  match(notes[0] ?? '', /^Hyper-V is on, and its hypervisor does not run: restart Windows/)
})

test('pain 22: says to prepare and shut down the VMs of VirtualBox before the restart, and what it does to them', async ({ host }) => {
  const { notes } = await enableHyperV({ dryRun: true }, host.ps)
  match(notes[0] ?? '', /^Before Windows restarts: prepare the guest .* and shut it down$/)
  match(
    notes[1] ?? '',
    /^After the restart VirtualBox runs its VMs .*the turtle .*disks are read as before/,
  )
  match(notes[2] ?? '', /^Restart Windows when it suits/)
  await host.change((state) => state.processes = ['VirtualBoxVM.exe', 'VBoxHeadless.exe', 'x.exe'])
  const [first] = (await enableHyperV({ dryRun: true }, host.ps)).notes
  match(
    first ?? '',
    /^VMs of VirtualBox that run now: 2\. Prepare .* shut them down before Windows restarts/,
  )
})

test('runs a command once after the restart, where it was asked', async ({ host }) => {
  const file = join(host.dir, 'Bob’s "note" $(1) 桥接.txt')
  const command = `[IO.File]::AppendAllText('${file.replaceAll('’', '’’')}', 'ran ')
    if (-not [IO.Directory]::Exists((Get-Location).ProviderPath)) { throw 'nowhere' }`
  const result = await enableHyperV({ resumeAtLogon: command }, host.ps)
  equal(result.resume, TASK)
  const [task] = (await host.state()).tasks
  deepEqual([task.triggers[0].kind, task.logon, task.level], ['Logon', 'Interactive', 'Highest'])
  equal(task.principal, task.triggers[0].user)
  const before = await host.text()
  const again = await enableHyperV({ resumeAtLogon: command }, host.ps)
  deepEqual([again.changed, again.resume], [false, TASK])
  equal(await host.text(), before)
  await rejects(enableHyperV({ resumeAtLogon: 'other' }, host.ps), {
    message: 'Cannot turn Hyper-V on: another command waits already for the next logon. ' +
      `Run: Unregister-ScheduledTask -TaskName ${TASK}, and this again`,
  })
  await host.fire('Logon')
  for (let n = 0; n < 300 && !await fs.pathExists(file); n++) await wait(100)
  equal(await fs.readFile(file, 'utf8'), 'ran ')
  deepEqual((await host.state()).tasks, [])
  await host.fire('Logon')
  await wait(300)
  equal(await fs.readFile(file, 'utf8'), 'ran ')
})

test('leaves nothing for the next logon where no restart is needed', async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, structuredClone(seed)))
  const { changed, resume, notes } = await enableHyperV({ resumeAtLogon: 'Get-Date' }, host.ps)
  deepEqual([changed, resume], [false, null])
  match(notes[0] ?? '', /^No restart is needed/)
})

test('refuses what cannot run Hyper-V, before it changes anything', async ({ host }) => {
  const refuses = async (change: (state: Host) => void, message: RegExp) => {
    const was = await host.state()
    await host.change((state) => change(state))
    const before = await host.text()
    await rejects(enableHyperV({ resumeAtLogon: 'Get-Date' }, host.ps), { message })
    equal(await host.text(), before)
    await fs.writeJson(host.env.SIMULATED_HOST as string, was)
  }
  type Host = { host: Record<string, unknown>; features: Record<string, string> } & {
    denied: boolean
  }
  await refuses(
    (state) => state.host.editionId = 'CoreSingleLanguage',
    /^Cannot turn Hyper-V on: this is Windows Home, which has none\. Change to Windows Pro, .* Run: Start-Process ms-settings:activation$/,
  )
  await refuses(
    (state) => state.denied = true,
    /^Cannot turn Hyper-V on: PowerShell runs without administrator rights, .* Run: Start-Process powershell -Verb RunAs, /,
  )
  await refuses(
    (state) =>
      Object.assign(state.host, {
        hypervisorPresent: false,
        cpu: { VirtualizationFirmwareEnabled: false },
      }),
    /^Cannot turn Hyper-V on: virtualization is off in this computer's firmware\. .* Run: shutdown \/r \/fw \/t 0, /,
  )
  await refuses(
    (state) =>
      Object.assign(state.host, {
        hypervisorPresent: false,
        cpu: { SecondLevelAddressTranslationExtensions: false },
      }),
    /^Cannot turn Hyper-V on: the processor has no SecondLevelAddressTranslationExtensions, /,
  )
  await refuses(
    (state) => {
      for (const name of Object.keys(state.features)) {
        if (name.startsWith('Microsoft-Hyper-V')) delete state.features[name]
      }
    },
    /^Cannot turn Hyper-V on: this edition of Windows has no feature Microsoft-Hyper-V\. /,
  )
})

test('believes no processor while a hypervisor runs, and none on ARM', async ({ host }) => {
  for (const change of [{ hypervisorPresent: true }, { cpu: { Architecture: 12 } }]) {
    await host.change((state) => {
      Object.assign(state.host, {
        hypervisorPresent: false,
        cpu: { VirtualizationFirmwareEnabled: false },
      }, change)
    })
    equal((await enableHyperV({ dryRun: true }, host.ps)).changed, true)
  }
})

test('puts back what it did when Windows fails at the features', async ({ host }) => {
  for (const when of ['before', 'after']) {
    await host.change((state) => {
      state.launchType = 'Off'
      state.faults = [{
        cmdlet: 'Enable-WindowsOptionalFeature',
        when,
        error: { id: 'Dism,X', message: 'no source', hresult: 0x800f0954 },
      }]
    })
    const { tasks: _, ...before } = await host.state()
    await rejects(enableHyperV({ resumeAtLogon: 'Get-Date' }, host.ps), /no source/)
    const { tasks, ...after } = await host.state()
    deepEqual(after, before)
    deepEqual(tasks, [])
  }
})

test('refuses commands that no task can hold', async ({ host }) => {
  for (
    const [command, why] of [
      [' ', 'it says nothing'],
      ['a\0b', 'it has a null character'],
      ['x'.repeat(8001), 'it has 8001 characters, and 8000 are the most'],
    ] as const
  ) {
    await rejects(
      enableHyperV({ resumeAtLogon: command }, host.ps),
      ({ message }: Error) => message.includes(` at the next logon: ${why}. Example: `),
    )
  }
})

test('is a command that ends with 3010, or 1 where exit codes end at 255', async ({ host }) => {
  const { code, stdout, stderr } = await runTask(
    host,
    'enable-hyperv',
    ...['--resume-at-logon', 'npx zx x.ts Win10'],
  )
  equal(code, process.platform === 'win32' ? 3010 : 1)
  equal(stderr, '')
  const { restartNeeded, resume } = JSON.parse(stdout)
  deepEqual([restartNeeded, resume], [true, TASK])
})

test('installs the role of a server with its tools, and takes them back', async ({ host }) => {
  await off(host, await fs.readJson(SERVER))
  const before = await host.state()
  const dry = await host.text()
  equal((await enableHyperV({ dryRun: true }, host.ps)).changed, true)
  equal(await host.text(), dry)
  const result = await enableHyperV({}, host.ps)
  deepEqual([result.windows, result.restartNeeded], ['server', true])
  deepEqual(result.before?.features, [
    'Hyper-V',
    'Hyper-V-PowerShell',
    'Hyper-V-Tools',
    'RSAT-Hyper-V-Tools',
  ])
  equal((await host.state()).features['Microsoft-Hyper-V'], 'EnablePending')
  equal((await enableHyperV({}, host.ps)).changed, false)
  deepEqual(await undoEnableHyperV(result, host.ps), { changed: true, restartNeeded: false })
  deepEqual(await host.state(), before)
})

test('needs no restart on a server for the module alone', async ({ host }) => {
  const server = await fs.readJson(SERVER)
  await host.change((state) => {
    Object.assign(state, server)
    state.features['Microsoft-Hyper-V-Management-PowerShell'] = 'Disabled'
  })
  const result = await enableHyperV({}, host.ps)
  deepEqual([result.changed, result.restartNeeded], [true, false])
  deepEqual(await undoEnableHyperV(result, host.ps), { changed: true, restartNeeded: false })
})

enabling.run()

/** A computer that can run Hyper-V, and on which it is off. */
async function off(host: SimulatedHost, seed: object): Promise<void> {
  const state = structuredClone(seed) as {
    features: Record<string, string>
    host: Record<string, unknown>
  }
  for (const name of Object.keys(state.features)) {
    if (name.startsWith('Microsoft-Hyper-V')) state.features[name] = 'Disabled'
  }
  state.host.hypervisorPresent = false
  await fs.writeJson(host.env.SIMULATED_HOST as string, { tasks: [], ...state })
}
