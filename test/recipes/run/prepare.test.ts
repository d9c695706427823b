import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { demo } from '../../../fixtures/demo.ts'
import { migrate, type MigrateOptions } from '../../../recipes/migrate.ts'
import type { RunEvent } from '../../../recipes/run/screen.ts'
import { Secret } from '../../../tasks/task.ts'
import { needs } from '../../needs.ts'
import { runningVm } from '../../running-vm.ts'
import { quickGuests, type SimulatedHost, simulatedHost } from '../../simulated-host.ts'

const preparing = suite<{ host: SimulatedHost; vm: string; was: NodeJS.ProcessEnv }>(
  'migrate --prepare',
)
const test = needs(preparing, 'pwsh', 'bash')

preparing.before.each(async (context) => {
  const host = context.host = await simulatedHost()
  await host.change(quickGuests)
  const { vbox } = await demo('bios', host.dir)
  const vm = context.vm = join(host.dir, 'vm')
  await fs.ensureDir(vm)
  const guest = { name: 'Demo BIOS', password: 'se"c$ret', product: 'Windows 11' }
  const env = { ...host.env, ...await runningVm(vm, guest) }
  await fs.writeFile(join(vm, 'settings'), vbox)
  const down = '${function:global:shutdown.exe} = { ' +
    "[IO.File]::WriteAllText($env:VM + '/state', 'poweroff'); $global:LASTEXITCODE = 0 }\n"
  await fs.appendFile(join(vm, 'prelude.ps1'), down)
  context.was = { ...process.env }
  Object.assign(process.env, env)
})
preparing.after.each(async ({ host, was }) => {
  for (const name of Object.keys(process.env)) if (!(name in was)) delete process.env[name]
  Object.assign(process.env, was)
  await host.close()
})

test('makes the running guest ready, shuts it down, and moves it', async ({ host, vm }) => {
  const asked: string[] = []
  const { outcome, events } = await run(host, {}, (question) => {
    asked.push(question)
    return Promise.resolve(true)
  })
  equal(outcome, 'done')
  deepEqual(asked, ['Make the guest of "Demo BIOS" ready for Hyper-V and shut it down?'])
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'poweroff')
  match(
    notes(events),
    /^guest +These drivers start with Windows now: .+\n(.+\n)*guest +The guest shuts down/m,
  )
  deepEqual((await host.state()).vms.map(({ name }: { name: string }) => name), ['Demo BIOS'])
  ok(!(await fs.readFile(join(vm, 'log'), 'utf8')).includes('se"c$ret'), 'no password in a command')
  ok(!JSON.stringify(events).includes('c$ret'))
})

test('goes on with a guest that was shut down before', async ({ host, vm }) => {
  await fs.writeFile(join(vm, 'state'), 'poweroff')
  const { outcome, events } = await run(host)
  equal(outcome, 'done')
  match(notes(events), /"Demo BIOS" is not running, so nothing is made ready in it/)
})

test('changes neither guest nor host on a dry run, when refused by a person, and when the host refuses', async ({ host, vm }) => {
  const before = await host.text()
  const dry = await run(host, { dryRun: true })
  equal(dry.outcome, 'dry-run')
  match(notes(dry.events), /^guest +These drivers would start with Windows: /m)
  equal((await run(host, {}, () => Promise.resolve(false))).outcome, 'declined')
  await rejects(
    run(host, { external: '桥接', adapter: 'no such' }),
    /there is no network adapter "no such"|"no such"/,
  )
  await rejects(run(host, { hostIp: '192.168.56.1/24' }), /Add --internal/)
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'running')
  deepEqual(await fs.readdir(join(vm, 'guest')), [])
  equal(await host.text(), before)
})

test('leaves the guest on that would not start on Hyper-V, and says why', async ({ host, vm }) => {
  await fs.appendFile(
    join(vm, 'prelude.ps1'),
    "$guest.registry.Remove('HKLM:\\SYSTEM\\CurrentControlSet\\Services\\storvsc')\n",
  )
  await rejects(run(host), {
    message:
      /^Cannot move "Demo BIOS": as it is its guest would not start on Hyper-V, so it stays on\. .*storvsc/,
  })
  equal(await fs.readFile(join(vm, 'state'), 'utf8'), 'running')
  equal((await host.state()).vms.length, 0)
})

test('says without --prepare that the VM runs, and what would help', async ({ host }) => {
  await rejects(run(host, { prepare: undefined }), {
    message:
      /"Demo BIOS": it is running, .+ or again with --prepare guestcontrol --guest-user NAME/,
  })
})

test('refuses a file, which nothing runs', async ({ host }) => {
  const { ova } = await demo('bios', host.dir)
  await rejects(
    run(host, { source: [ova] }),
    /only VirtualBox can run it for that, and a file is named/,
  )
})

preparing.run()

async function run(
  { ps, using, dir }: SimulatedHost,
  options: MigrateOptions = {},
  agreePrepare?: (question: string) => Promise<boolean>,
) {
  const events: RunEvent[] = []
  const here = (path: string) => Promise.resolve(path)
  const close = () => Promise.resolve()
  const outcome = await migrate(
    {
      source: ['Demo BIOS'],
      to: 'local',
      prepare: 'guestcontrol',
      state: join(dir, 'state'),
      storage: join(dir, 'disks'),
      ...options,
    },
    {
      screen: (event) => events.push(event),
      host: () => ({ ps, using, here, close }),
      credential: { user: 'Administrator', password: new Secret('se"c$ret') },
      ...(agreePrepare && { agreePrepare }),
    },
  )
  return { outcome, events }
}

function notes(events: RunEvent[]): string {
  return events.flatMap((event) => event.event === 'note' ? [event.text] : []).join('\n')
}
