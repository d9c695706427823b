import { deepEqual, match } from 'node:assert/strict'
import { suite } from 'uvu'
import { lookAt } from '../../../recipes/run/look.ts'
import type { Plan } from '../../../recipes/run/plan.ts'
import type { PowerShell } from '../../../tasks/task.ts'

const plan = { name: 'web', slug: 'web', source: { osType: 'Debian_64' } } as Plan
const looks = suite('lookAt')

looks('says that a guest whose network answers has started after all', async () => {
  let asked: unknown[] = []
  const address = { adapter: 'lan', address: '10.0.0.7', seenBy: 'arp', ping: true, ports: [] }
  const ps: PowerShell = (_, ...values) => {
    asked = values
    const seen = { vm: 'web', id: 'x', state: 'Running', uptime: 300, heartbeat: 'none' }
    const rest = { os: null, guest: 'linux', addresses: [address], services: [], clock: null }
    return Promise.resolve({ stdout: JSON.stringify({ ...seen, ...rest, report: null }) })
  }
  const { lines, picture } = await lookAt(plan, 'state', ps)
  // at once, and knowing what it is
  deepEqual(asked.slice(0, 4), ['web', 0, undefined, 'linux'])
  match(lines.join('\n'), /10\.0\.0\.7 .+ answers a ping.*\nSo it has started, without the integr/)
  deepEqual(picture, null)
})

looks('says why where the host cannot be asked, which is no failure', async () => {
  const ps: PowerShell = () => Promise.reject(new Error('The link is broken'))
  const { lines, picture } = await lookAt(plan, 'state', ps)
  deepEqual(lines, ['Its screen could not be fetched: The link is broken'])
  deepEqual(picture, null)
})

looks.run()
