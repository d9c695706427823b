/** What a guest shows that gives no heartbeat, and what may be the matter. */
import fs from 'fs-extra'
import { join } from 'node:path'
import { guestOf } from '../../tasks/inspect-vm.ts'
import type { PowerShell } from '../../tasks/task.ts'
import { describeLikely, verify } from '../../tasks/verify.ts'
import type { Plan } from './plan.ts'

export interface Look {
  /** For people; with commands, which are indented. */
  lines: string[]
  /** The picture of its screen; null where there is none. */
  picture: Uint8Array | null
}

/**
 * Looks at once: the guest has had its time. The picture is kept beside the journals, in `state`. A look
 * that fails is no failure of the run, and says why.
 */
export async function lookAt(
  { name, slug, source }: Plan,
  state: string,
  ps: PowerShell,
): Promise<Look> {
  const family = guestOf(source.osType)
  const guest = family === 'windows' || family === 'linux' ? family : undefined
  const screenshot = join(state, `${slug}-screen.png`)
  try {
    const seen = await verify({ vm: name, timeout: 0, guest, screenshot }, ps)
    const picture = seen.screenshot === null ? null : await fs.readFile(seen.screenshot)
    const lines = seen.reasons.map((reason) => `${reason}.`)
    if (seen.booted === 'yes') {
      return { lines: [...lines, 'So it has started, without the integration services.'], picture }
    }
    if (seen.likely.length > 0) lines.push('What may be the matter, by what its screen shows:')
    const fits = describeLikely(seen.likely).flatMap((text) => text.split('\n'))
    return { lines: [...lines, ...fits], picture }
  } catch (error) {
    return {
      lines: [`Its screen could not be fetched: ${(error as Error).message}`],
      picture: null,
    }
  }
}
