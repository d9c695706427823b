/**
 * A Windows Credential Manager for tests: a class of the name that the kit's own C# has, which is then not
 * compiled. Everything but the call of Windows itself is the real thing.
 */
import fs from 'fs-extra'
import { join } from 'node:path'

/** Has every name but two: `none` is not there, `ssh` is closed. */
export const FAKE_MANAGER = `namespace VboxToHyperV { public static class CredentialManager {
  public static int Read(string target, out System.Net.NetworkCredential found) {
    found = new System.Net.NetworkCredential("bob", "p$\\u00e4\\"\\u2019;\\n\\u6865 of " + target);
    return target == "none" ? 1168 : target == "ssh" ? 1312 : 0;
  } } }`

/** A PowerShell, for POWERSHELL, that has it before its first script. */
export async function powershellWithManager(dir: string): Promise<string> {
  const path = join(dir, 'powershell-with-manager')
  const base64 = (text: string) => Buffer.from(text, 'utf16le').toString('base64')
  // the last word is what the kit starts PowerShell with
  const before = `Add-Type -TypeDefinition @'\n${FAKE_MANAGER}\n'@\n`
  // three characters are eight of base64, and no more
  const padded = before + '\n'.repeat((3 - before.length % 3) % 3)
  await fs.writeFile(join(dir, 'before.txt'), base64(padded))
  const text = `#!/bin/sh
for last; do :; done
text="$(printf '%s' "$(cat '${dir}/before.txt')$last" | base64 -d | base64 -w 0)"
exec pwsh -NoLogo -NoProfile -NonInteractive -EncodedCommand "$text"
`
  await fs.writeFile(path, text, { mode: 0o755 })
  return path
}
