import fs from 'fs-extra'
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import { demo } from '../../fixtures/demo.ts'
import { convertDisk, inspectDisk, undoConvertDisk } from '../../tasks/convert-disk.ts'
import { needs } from '../needs.ts'

const execute = promisify(execFile)
const MB = 1024 ** 2

const disks = suite<{ dir: string }>('convertDisk')

disks.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-'))
})
disks.after.each(({ dir }) => fs.remove(dir))

for (const which of ['bios', 'uefi'] as const) {
  disks(
    `writes the same raw disk from the VDI and from the OVA of the ${which} demo`,
    async ({ dir }) => {
      const { vdi, ova, size } = await demo(which, dir)
      const [a, b] = [join(dir, 'a.raw'), join(dir, 'b.raw')]
      equal((await convertDisk({ from: vdi, to: a })).virtualSize, size)
      await convertDisk({ from: ova, to: b })
      const [one, two] = [await fs.readFile(a), await fs.readFile(b)]
      equal(one.length, size)
      ok(one.equals(two))
    },
  )
}

const compared = needs(disks, 'qemu-img')

for (const [format, qemu] of [['vhdx', 'vhdx'], ['vhd', 'vpc'], ['raw', 'raw']] as const) {
  for (const type of ['dynamic', 'fixed'] as const) {
    compared(
      `writes ${type} ${format} that qemu-img finds identical and whole`,
      async ({ dir }) => {
        const { raw, sources } = await samples(dir)
        for (const [name, from] of Object.entries(sources)) {
          const to = join(dir, `${name}.${format}`)
          const result = await convertDisk({ from, to, type })
          equal(
            result.virtualSize,
            name.startsWith('qemu') ? result.virtualSize : (await fs.stat(raw)).size,
            name,
          )
          equal(result.fileSize, (await fs.stat(to)).size)
          const { stdout } = await execute('qemu-img', [
            'compare',
            '-f',
            'raw',
            '-F',
            qemu,
            raw,
            to,
          ])
          match(stdout, /Images are identical/, name)
          if (format === 'vhdx') await execute('qemu-img', ['check', '-f', 'vhdx', to])
        }
      },
    )
  }
}

compared('has the exact size in a VHD, without growth to whole cylinders', async ({ dir }) => {
  const { raw } = await samples(dir)
  const to = join(dir, 'a.vhd')
  await convertDisk({ from: raw, to })
  const { stdout } = await execute('qemu-img', ['info', '--output=json', '-f', 'vpc', to])
  equal(JSON.parse(stdout)['virtual-size'], (await fs.stat(raw)).size)
})

compared('allocates no block for zeros, wherever they come from', async ({ dir }) => {
  const from = join(dir, 'zeros.img')
  await fs.ensureFile(from)
  await fs.truncate(from, 256 * MB)
  for (const format of ['vhdx', 'vhd'] as const) {
    const { fileSize } = await convertDisk({ from, to: join(dir, `zeros.${format}`) })
    ok(fileSize < 5 * MB, `${format} ${fileSize}`)
  }
})

needs(disks, 'VBoxManage', 'qemu-img')(
  'reads every image that VirtualBox writes, and VirtualBox reads its VHD',
  async ({ dir }) => {
    const { raw } = await samples(dir)
    const env = { ...process.env, VBOX_USER_HOME: join(dir, 'home') }
    const manage = (...args: string[]) => execute('VBoxManage', args, { env })
    const made = {
      'vdi dynamic': ['--format', 'VDI'],
      'vdi fixed': ['--format', 'VDI', '--variant', 'Fixed'],
      'vmdk sparse': ['--format', 'VMDK'],
      'vmdk stream': ['--format', 'VMDK', '--variant', 'Stream'],
    }
    for (const [name, args] of Object.entries(made)) {
      const from = join(dir, `${name}.${name.slice(0, name.indexOf(' '))}`)
      await manage('convertfromraw', raw, from, ...args)
      const to = join(dir, `${name}.vhdx`)
      await convertDisk({ from, to })
      const { stdout } = await execute('qemu-img', ['compare', '-f', 'raw', '-F', 'vhdx', raw, to])
      match(stdout, /Images are identical/, name)
    }
    for (const type of ['dynamic', 'fixed'] as const) {
      const to = join(dir, `${type}.vhd`)
      await convertDisk({ from: raw, to, type })
      const back = join(dir, `${type}.back`)
      await manage('internalcommands', 'converttoraw', to, back)
      ok((await fs.readFile(back)).equals(await fs.readFile(raw)), type)
    }
  },
)

for (
  const [engine, program, formats] of [
    ['qemu-img', 'qemu-img', ['vhdx', 'vhd', 'raw']],
    ['vboxmanage', 'VBoxManage', ['vhd', 'raw']],
  ] as const
) {
  needs(disks, program, 'qemu-img')(`lets ${program} convert when asked`, async ({ dir }) => {
    const { vdi } = await demo('bios', dir)
    process.env.VBOX_USER_HOME = join(dir, 'home')
    try {
      for (const format of formats) {
        const to = join(dir, `x.${format}`)
        const { fileSize } = await convertDisk({ from: vdi, to, engine })
        equal(fileSize, (await fs.stat(to)).size)
        const as = format === 'vhd' ? 'vpc' : format
        const file = as === 'vpc'
          ? [`json:{"driver":"vpc","force_size_calc":"current_size","file.filename":"${to}"}`]
          : ['-F', as, to]
        const { stdout } = await execute('qemu-img', ['compare', '-f', 'vdi', vdi, ...file])
        match(stdout, /Images are identical/, format)
      }
    } finally {
      delete process.env.VBOX_USER_HOME
    }
  })
}

disks('refuses what an engine cannot do, and names one that can', async ({ dir }) => {
  const { vdi, ova } = await demo('bios', dir)
  await rejects(convertDisk({ from: vdi, to: join(dir, 'x.vhdx'), engine: 'vboxmanage' }), {
    message:
      'Cannot write VHDX with VBoxManage: it has no such format. Use --format vhd or --engine embedded',
  })
  await rejects(
    convertDisk({ from: ova, to: join(dir, 'x.vhdx'), engine: 'qemu-img' }),
    /Cannot convert out of an OVA with qemu-img/,
  )
  await nothingLeft(dir)
})

disks('gives equal files for an equal seed, and others without', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const hashes = []
  for (const [index, seed] of ['a', 'a', 'b', undefined, undefined].entries()) {
    const to = join(dir, `${index}.vhdx`)
    await convertDisk({ from: vdi, to, seed })
    hashes.push(createHash('sha256').update(await fs.readFile(to)).digest('hex'))
  }
  equal(hashes[0], hashes[1])
  equal(new Set(hashes).size, 4)
})

disks('tells how far it is, and ends at the whole', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const seen: { done: number; total: number }[] = []
  await convertDisk({
    from: vdi,
    to: join(dir, 'x.vhdx'),
    onProgress: (progress) => seen.push(progress),
  })
  ok(seen.every(({ done }, index) => index === 0 || done > (seen[index - 1]?.done ?? 0)))
  equal(seen.at(-1)?.done, seen.at(-1)?.total)
})

disks('changes nothing on a dry run', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const before = await fs.readdir(dir)
  equal((await convertDisk({ from: vdi, to: join(dir, 'x.vhdx'), dryRun: true })).changed, true)
  deepEqual(await fs.readdir(dir), before)
})

disks('refuses an existing target without force, and replaces it with force', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const to = join(dir, 'x.vhdx')
  await fs.writeFile(to, 'mine')
  await rejects(convertDisk({ from: vdi, to }), {
    message: `Cannot write "${to}": the file is there. Remove it, or run again with --force`,
  })
  equal(await fs.readFile(to, 'utf8'), 'mine')
  await convertDisk({ from: vdi, to, force: true })
  equal((await fs.readFile(to)).toString('latin1', 0, 8), 'vhdxfile')
})

disks('refuses to write onto its own source, by whatever name', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const before = await fs.readFile(vdi)
  const alias = join(dir, 'alias.vhdx')
  await fs.link(vdi, alias)
  await rejects(convertDisk({ from: vdi, to: alias, force: true }), /to itself/)
  ok((await fs.readFile(vdi)).equals(before))
})

disks('leaves nothing when it is stopped', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const before = await fs.readdir(dir)
  const stop = new AbortController()
  const to = join(dir, 'x.vhdx')
  await rejects(
    convertDisk({ from: vdi, to, signal: stop.signal, onProgress: () => stop.abort() }),
    { message: `Stopped: "${to}" was not written` },
  )
  deepEqual(await fs.readdir(dir), before)
})

disks(
  'clears away what a killed run left of the same target, and nothing else',
  async ({ dir }) => {
    const { vdi } = await demo('bios', dir)
    const to = join(dir, 'x.vhdx')
    // no process has a number this large
    await fs.writeFile(`${to}.99999999-0011aabb.partial`, 'left')
    await fs.writeFile(`${to}.mine.partial`, 'mine')
    await convertDisk({ from: vdi, to })
    const names = (await fs.readdir(dir)).filter((name) => name.startsWith('x.vhdx'))
    deepEqual(names.sort(), ['x.vhdx', 'x.vhdx.mine.partial'])
  },
)

disks('refuses a source that is written to meanwhile', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const to = join(dir, 'x.vhdx')
  let once = true
  const onProgress = () => {
    if (once) fs.appendFileSync(vdi, 'x')
    once = false
  }
  await rejects(convertDisk({ from: vdi, to, onProgress }), /it was changed while it was read/)
  await nothingLeft(dir)
})

disks('refuses an OVA whose disk is not as its manifest says', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const archive = await fs.readFile(ova)
  // in the middle of a grain's padding or data: the tar and the VMDK may well stay readable
  const at = archive.lastIndexOf('SHA1') - 2048
  archive[at] = (archive[at] as number) ^ 1
  await fs.writeFile(ova, archive)
  await rejects(convertDisk({ from: ova, to: join(dir, 'x.vhdx') }))
  await nothingLeft(dir)
})

disks('says when an OVA has no manifest', async ({ dir }) => {
  const { ova } = await demo('bios', dir)
  const archive = await fs.readFile(ova)
  const at = archive.indexOf('.mf\0')
  archive.write('.xx', at, 'latin1')
  // the header's checksum of the two changed letters
  const header = Math.floor(at / 512) * 512
  let sum = 8 * 0x20
  for (let index = 0; index < 512; index++) {
    if (index < 148 || index >= 156) sum += archive[header + index] as number
  }
  archive.write(`${sum.toString(8).padStart(6, '0')}\0 `, header + 148, 'latin1')
  await fs.writeFile(ova, archive)
  const { warnings } = await convertDisk({ from: ova, to: join(dir, 'x.vhdx') })
  match(warnings.join(), /has no manifest/)
})

disks('names the disks of an archive with several or none', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  for (const name of ['a.vmdk', 'b.vmdk']) await fs.copy(vdi, join(dir, name))
  await execute('tar', ['-cf', 'two.ova', '--format=ustar', 'a.vmdk', 'b.vmdk'], { cwd: dir })
  const from = join(dir, 'two.ova')
  await rejects(convertDisk({ from, to: join(dir, 'x.vhdx') }), {
    message:
      `Cannot tell which disk of "${from}" is meant: its disks are 0: a.vmdk, 1: b.vmdk. Run again with --disk NAME`,
  })
  equal((await inspectDisk({ from })).length, 2)
  equal((await convertDisk({ from, to: join(dir, 'x.vhdx'), disk: 1 })).changed, true)
  equal((await convertDisk({ from, to: join(dir, 'y.vhdx'), disk: 'a.vmdk' })).changed, true)
})

disks('refuses an archive whose members climb out or are links', async ({ dir }) => {
  await fs.writeFile(join(dir, 'a.vmdk'), 'x')
  await fs.symlink('/etc/passwd', join(dir, 'b.vmdk'))
  const tar = (...args: string[]) => execute('tar', ['--format=ustar', ...args], { cwd: dir })
  await tar('-cf', 'up.ova', '--transform=s,^,../,', '-P', 'a.vmdk')
  await tar('-cf', 'abs.ova', '--transform=s,^,/tmp/,', '-P', 'a.vmdk')
  await tar('-cf', 'link.ova', 'b.vmdk')
  for (const name of ['up', 'abs']) {
    await rejects(inspectDisk({ from: join(dir, `${name}.ova`) }), /leads out of the archive/)
  }
  await rejects(inspectDisk({ from: join(dir, 'link.ova') }), /is a link/)
})

disks('takes damage for damage and not for a raw disk', async ({ dir }) => {
  for (const extension of ['vdi', 'vmdk', 'ova']) {
    const from = join(dir, `x.${extension}`)
    await fs.writeFile(from, Buffer.alloc(64 * 1024, 7))
    await rejects(
      convertDisk({ from, to: join(dir, 'y.vhdx') }),
      new RegExp(`does not begin as a ${extension.toUpperCase()} does`),
    )
  }
  await nothingLeft(dir)
})

disks('refuses a VHD beyond its 2040 GB, in a second', async ({ dir }) => {
  const from = join(dir, 'x.img')
  await fs.ensureFile(from)
  await fs.truncate(from, 2041 * 1024 ** 3)
  await rejects(
    convertDisk({ from, to: join(dir, 'x.vhd') }),
    /a VHD holds 2190433320960 bytes at most/,
  )
})

disks(
  'refuses mutated images in a sentence, and never writes a disk of them half',
  async ({ dir }) => {
    const { vdi, ova } = await demo('bios', dir)
    let seed = 7
    const next = (below: number) => (seed = (seed * 48271) % 2147483647) % below
    const archive = await fs.readFile(ova)
    const start = archive.indexOf('KDMV')
    const whole = {
      'x.vdi': await fs.readFile(vdi),
      'x.ova': archive,
      'x.vmdk': archive.subarray(start),
    }
    let refused = 0
    for (let round = 0; round < 120; round++) {
      const [name, data] = Object.entries(whole)[round % 3] as [string, Buffer]
      const bad = Buffer.from(data)
      // headers and tables are in the first kilobytes and, for a stream, in the last
      for (let n = next(4); n >= 0; n--) {
        const at = next(2) ? next(2048) : bad.length - 1 - next(4096)
        bad.writeUInt8(next(256), at)
      }
      const from = join(dir, name)
      await fs.writeFile(from, next(3) ? bad : bad.subarray(0, next(bad.length)))
      const to = join(dir, 'y.raw')
      try {
        await convertDisk({ from, to, force: true })
        await fs.remove(to)
      } catch (error) {
        refused++
        ok(error instanceof Error && error.message.length < 500, String(error))
        ok(
          !(error instanceof TypeError || error instanceof RangeError),
          `${name}: ${(error as Error).stack}`,
        )
        equal(await fs.pathExists(to), false)
      }
    }
    ok(refused > 40, `${refused}`)
    await nothingLeft(dir)
  },
)

disks('needs memory for a table, not for the disk, when that is 2 TB', async ({ dir }) => {
  const from = join(dir, 'huge.vdi')
  // a dynamic VDI of 2 TB without a block: header and a map of 8 MB
  const { vdi } = await demo('bios', dir)
  const header = (await fs.readFile(vdi)).subarray(0, 512)
  const blocks = 2 * 1024 ** 2
  header.writeBigUInt64LE(BigInt(blocks) * BigInt(MB), 0x170)
  header.writeUInt32LE(blocks, 0x180)
  header.writeUInt32LE(MB + blocks * 4, 0x158)
  const file = await fs.open(from, 'w')
  await fs.write(file, header, 0, 512, 0)
  await fs.write(file, Buffer.alloc(blocks * 4, 0xff), 0, blocks * 4, header.readUInt32LE(0x154))
  await fs.close(file)
  const { fileSize, virtualSize } = await convertDisk({ from, to: join(dir, 'huge.vhdx') })
  equal(virtualSize, 2 * 1024 ** 4)
  ok(fileSize < 16 * MB, String(fileSize))
  ok(process.memoryUsage().rss < 400 * MB)
})

disks('is taken back by removing the file it made', async ({ dir }) => {
  const { vdi } = await demo('bios', dir)
  const result = await convertDisk({ from: vdi, to: join(dir, 'x.vhdx') })
  await undoConvertDisk(result)
  equal(await fs.pathExists(result.path), false)
  ok(await fs.pathExists(vdi))
  await undoConvertDisk(result)
})

disks.run()

const layouts = suite<{ dir: string }>('inspectDisk')

layouts.before.each(async (context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'inspect-disk-'))
})
layouts.after.each(({ dir }) => fs.remove(dir))

layouts('tells a disk that boots by BIOS from one that boots by UEFI', async ({ dir }) => {
  for (const [which, table] of [['bios', 'mbr'], ['uefi', 'gpt']] as const) {
    const { vdi, ova, size } = await demo(which, dir)
    for (const from of [vdi, ova]) {
      const [disk] = await inspectDisk({ from })
      equal(disk?.boots, which)
      equal(disk?.partitionTable, table)
      equal(disk?.virtualSize, size)
    }
  }
})

layouts('finds no loader on an empty disk', async ({ dir }) => {
  const from = join(dir, 'empty.img')
  await fs.ensureFile(from)
  await fs.truncate(from, MB)
  const [disk] = await inspectDisk({ from })
  deepEqual([disk?.partitionTable, disk?.boots, disk?.partitions], ['none', 'none', []])
})

layouts.run()

/** A raw disk with data here and there, of an odd number of sectors, and the same as other images. */
async function samples(dir: string): Promise<{ raw: string; sources: Record<string, string> }> {
  const raw = join(dir, 'sample.img')
  const size = 70 * MB + 7 * 512
  const data = Buffer.alloc(size)
  let seed = 1
  const next = (below: number) => (seed = (seed * 48271) % 2147483647) % below
  for (let n = 0; n < 60; n++) {
    const at = next(size - 70000)
    createHash('shake256', { outputLength: 1 + next(65536) }).update(`${n}`).digest().copy(data, at)
  }
  data.write('the end', size - 512)
  await fs.writeFile(raw, data)
  const stream = join(dir, 'sample.vmdk')
  await execute('qemu-img', [
    ...['convert', '-f', 'raw', '-O', 'vmdk', '-o', 'subformat=streamOptimized'],
    ...[raw, stream],
  ])
  const vdi = join(dir, 'sample.vdi')
  await execute('qemu-img', ['convert', '-f', 'raw', '-O', 'vdi', raw, vdi])
  return { raw, sources: { raw, 'qemu-stream': stream, vdi } }
}

async function nothingLeft(dir: string): Promise<void> {
  const names = await fs.readdir(dir)
  deepEqual(names.filter((name) => /partial|^[xy]\.(vhdx|vhd|raw)$/.test(name)), [])
}
