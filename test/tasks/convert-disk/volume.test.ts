/** What Windows would do to a disk by its folder and its volume. */
import { deepEqual, equal, match, throws } from 'node:assert/strict'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import { convertDisk } from '../../../tasks/convert-disk.ts'
import { clearSparse, judge, refuseVolume } from '../../../tasks/convert-disk/volume.ts'
import { openPowerShell, type PowerShell, script } from '../../../tasks/task.ts'
import { needs } from '../../needs.ts'
import { analyze } from '../analyze.ts'
import { disk, MB, vdi } from './images.ts'

interface Context {
  dir: string
}

const volumes = suite<Context>('a volume of Windows')
volumes.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-volume-'))
})
volumes.after.each(({ dir }) => fs.remove(dir))

const GB = 1024 * MB
const folder = 'C:\\Bob’s $(VMs)'
const path = 'C:\\a.vhdx'

volumes('is refused whose new files Hyper-V would refuse, with what mends it', () => {
  const plain = { folder, attributes: 0x10, fileSystem: 'NTFS' }
  deepEqual(judge(path, 100 * GB, plain), [])
  const cases = [
    [0x810, /compressed by NTFS.*\(0xC03A001A\). Run: compact \/u 'C:\\Bob’’s \$\(VMs\)'$/],
    [0x4010, /encrypted by EFS.* Run: cipher \/d 'C:/],
    [
      0x8010,
      /guarded by ReFS integrity.* Run: Set-FileIntegrity -FileName 'C:.*' -Enable \$false$/,
    ],
  ] as const
  for (const [attributes, reason] of cases) {
    throws(() => judge(path, GB, { ...plain, attributes }), reason)
  }
})

volumes('of FAT32 takes no large file, and no FAT runs a VM', () => {
  const fat = { folder, attributes: 0x10, fileSystem: 'FAT32' }
  throws(() => judge(path, 5 * GB, fat), /FAT32 holds no file of 4 GB, and it may take 5 GB/)
  match(judge(path, GB, fat).join(), /is on FAT32, from which Hyper-V runs no VM/)
  match(judge(path, 5 * GB, { ...fat, fileSystem: 'exFAT' }).join(), /is on exFAT/)
  deepEqual(judge(path, 5 * GB, { ...fat, fileSystem: '' }), [])
})

needs(volumes, 'pwsh')(
  'is asked in PowerShell, before and after the disk is written',
  async ({ dir }) => {
    const { ps, close } = openPowerShell()
    try {
      const from = join(dir, 'a.vdi')
      await fs.writeFile(from, vdi(disk(3 * MB)))
      const place = join(dir, "it's “here” $(1)")
      await fs.ensureDir(place)
      const to = join(place, 'a.vhdx')
      const { changed, warnings } = await convertDisk({ from, to }, ps)
      equal(changed, true)
      deepEqual(warnings, [])
      deepEqual(await refuseVolume({ path: to, folder: place, most: GB }, ps), [])
    } finally {
      await close()
    }
  },
)

needs(volumes, 'pwsh')('is asked in words that Windows PowerShell 5.1 knows', async ({ dir }) => {
  const scripts: string[] = []
  const record: PowerShell = (pieces, ...values) => {
    scripts.push(script(pieces, ...values))
    return Promise.resolve({ stdout: '{"folder":"x","attributes":16,"fileSystem":"NTFS"}' })
  }
  await refuseVolume({ path: 'a', folder: dir, most: 1 }, record)
  await clearSparse(join(dir, 'a'), record)
  equal(scripts.length, 2)
  await fs.outputFile(join(dir, '0.ps1'), scripts[0]!)
  await fs.outputFile(join(dir, '1.ps1'), scripts[1]!)
  const { ps, close } = openPowerShell()
  try {
    deepEqual(await analyze(ps, dir), [])
  } finally {
    await close()
  }
})

volumes.run()
