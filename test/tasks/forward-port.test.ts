import { deepEqual, equal, match, rejects } from 'node:assert/strict'
import { suite } from 'uvu'
import { forwardPort, undoForwardPort } from '../../tasks/forward-port.ts'
import { setStaticIp } from '../../tasks/set-static-ip.ts'
import { needs } from '../needs.ts'
import { runTask } from '../run-task.ts'
import { type SimulatedHost, simulatedHost } from '../simulated-host.ts'

const forwarding = suite<{ host: SimulatedHost; seed: object; bare: object }>('forwardPort')
const test = needs(forwarding, 'pwsh')

const guestIp = '192.168.56.191'
const ssh = { port: 2222, guestIp, guestPort: 22 }

forwarding.before(async (context) => {
  const host = context.host = await simulatedHost()
  const levers = { faults: [], mappings: [], listeners: [], reservedPorts: [], nats: [] }
  context.bare = { ...levers, ...await host.state() }
  await host.ps`$null = New-VMSwitch -Name 'Static-NAT' -SwitchType Internal`
  await setStaticIp({ switch: 'Static-NAT', hostIp: '192.168.56.1/24', nat: true }, host.ps)
  context.seed = { ...levers, ...await host.state() }
})
forwarding.before.each(async ({ host, seed }) => {
  await host.change((state) => Object.assign(state, seed))
})
forwarding.after(({ host }) => host.close())

test('forwards a port to the guest behind the NAT, and does so once', async ({ host }) => {
  const result = await forwardPort(ssh, host.ps)
  const now = { nat: 'Static-NAT', protocol: 'tcp', ...ssh, state: 'on' }
  deepEqual(result, { changed: true, ...now, before: { state: 'off' } })
  const { mappings } = await host.state()
  deepEqual(mappings, [
    { id: 1, nat: 'Static-NAT', protocol: 'TCP', port: 2222, guest: guestIp, guestPort: 22 },
  ])
  const before = await host.text()
  const again = await forwardPort(ssh, host.ps)
  deepEqual(again, { changed: false, ...now, before: { state: 'on' } })
  equal(await host.text(), before)
})

test('forwards the same port of TCP and of UDP to two guests', async ({ host }) => {
  await forwardPort({ port: 53, guestIp }, host.ps)
  await forwardPort({ port: 53, guestIp: '192.168.56.192', protocol: 'udp' }, host.ps)
  const { mappings } = await host.state()
  deepEqual(
    mappings.map(({ protocol, guest, guestPort }: Record<string, unknown>) => [
      protocol,
      guest,
      guestPort,
    ]),
    [['TCP', guestIp, 53], ['UDP', '192.168.56.192', 53]],
  )
})

test('says on a dry run what it would do, also before there is a NAT', async ({ host, bare }) => {
  const before = await host.text()
  const dry = await forwardPort({ ...ssh, dryRun: true }, host.ps)
  equal(await host.text(), before)
  deepEqual(await forwardPort(ssh, host.ps), dry)
  await host.change((state) => Object.assign(state, bare))
  const { changed, nat } = await forwardPort({ ...ssh, dryRun: true }, host.ps)
  deepEqual({ changed, nat }, { changed: true, nat: null })
  await rejects(forwardPort(ssh, host.ps), {
    message: 'Cannot forward port 2222 (tcp) to 192.168.56.191:22: the host has no NAT for that ' +
      'network. Run: npx zx tasks/set-static-ip.ts --switch NAME --host-ip ADDRESS/LENGTH --nat',
  })
})

test('takes a forward away, and has it back by its undo', async ({ host }) => {
  const made = await forwardPort(ssh, host.ps)
  const before = await host.state()
  const off = await forwardPort({ ...ssh, state: 'off' }, host.ps)
  deepEqual([off.changed, off.state, off.before.state], [true, 'off', 'on'])
  deepEqual((await host.state()).mappings, [])
  equal((await forwardPort({ ...ssh, state: 'off' }, host.ps)).changed, false)
  await undoForwardPort(off, host.ps)
  deepEqual(await host.state(), before)
  await undoForwardPort(made, host.ps)
  await undoForwardPort(made, host.ps)
  deepEqual((await host.state()).mappings, [])
})

test('takes back what it made when another has the port since, and when the NAT is gone', async ({ host }) => {
  const made = await forwardPort(ssh, host.ps)
  await forwardPort({ ...ssh, state: 'off' }, host.ps)
  await forwardPort({ ...ssh, guestIp: '192.168.56.192' }, host.ps)
  const before = await host.text()
  await undoForwardPort(made, host.ps)
  equal(await host.text(), before)
  await host.ps`Get-NetNat | Remove-NetNat -Confirm:$false`
  deepEqual((await host.state()).mappings, [])
  await undoForwardPort(made, host.ps)
})

test('refuses a port that another guest has, or a program, or Windows', async ({ host }) => {
  await forwardPort({ ...ssh, guestIp: '192.168.56.192' }, host.ps)
  const cannot =
    /^Cannot forward port 2222 \(tcp\) to 192\.168\.56\.191:22: the NAT forwards it to 192\.168\.56\.192:22\. .+ Remove-NetNatStaticMapping -StaticMappingID 1$/
  await rejects(forwardPort(ssh, host.ps), { message: cannot })
  await host.change((state) => {
    state.listeners = [{ port: 3389, process: 1044 }]
    state.reservedPorts = [50000]
  })
  await rejects(forwardPort({ port: 3389, guestIp }, host.ps), {
    message: /a program of the host listens there \(process 1044\)/,
  })
  const before = await host.text()
  await rejects(forwardPort({ port: 50000, guestIp }, host.ps), {
    message: /has that port, or Windows keeps it \(32\)\. .+ protocol=tcp$/,
  })
  equal(await host.text(), before)
})

test('refuses what is no port and no address before it asks', async ({ host }) => {
  for (const port of [0, 65536, 1.5, NaN, -22]) {
    await rejects(forwardPort({ port, guestIp }, host.ps), /is a whole number from 1 to 65535/)
  }
  for (
    const guestIp of ['', '192.168.56.300', "'; calc", '$(calc)', 'fe80::1', '192.168.56.1/24']
  ) {
    await rejects(forwardPort({ port: 22, guestIp }, host.ps), /that is no IPv4 address/)
  }
})

test('is a command', async ({ host }) => {
  const args = ['--port', '2222', '--guest-ip', guestIp, '--guest-port', '22']
  const on = await runTask(host, 'forward-port', ...args)
  equal(on.code, 0, on.stderr)
  equal(JSON.parse(on.stdout).changed, true)
  const off = await runTask(host, 'forward-port', 'off', ...args)
  deepEqual([JSON.parse(off.stdout).state, off.code], ['off', 0])
  const wrong = await runTask(host, 'forward-port', '--port', '22', '--guest-ip', 'x')
  deepEqual([wrong.code, wrong.stdout], [1, ''])
  match(wrong.stderr, /^Cannot forward a port to "x"/)
})

forwarding.run()
