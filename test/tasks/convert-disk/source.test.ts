/** What a source may be and must not be: in use, in a saved state, encrypted, misnamed; and packages of disks. */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { gzipSync } from 'node:zlib'
import { convertDisk, convertDisks, inspectDisk } from '../../../tasks/convert-disk.ts'
import { disk, gptDisk, manifest, MB, tar, vdi, vmdk, warned } from './images.ts'

interface Context {
  dir: string
}

const open = async (context: Context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-source-'))
}
const close = ({ dir }: Context) => fs.remove(dir)

const data = disk(5 * MB + 512)
const node = join(import.meta.dirname as string, '..', '..', '..', 'node_modules', '.bin', 'node')

const sources = suite<Context>('a source')
sources.before.each(open)
sources.after.each(close)

if (process.platform === 'linux') {
  sources('that a program has open for writing is refused, and by whom', async ({ dir }) => {
    const from = join(dir, 'a.vdi')
    await fs.writeFile(from, vdi(data))
    const program = `const fd = require('fs').openSync(process.argv[1], 'r+')
      console.log('open'); setInterval(() => fd, 1000)`
    const child = spawn(node, ['-e', program, from], { stdio: ['ignore', 'pipe', 'inherit'] })
    try {
      await once(child.stdout, 'data')
      const started = convertDisk({ from, to: join(dir, 'a.vhdx') })
      await rejects(
        started,
        /a\.vdi": .+ \(process \d+\) has it open for writing. Shut the VM down/,
      )
    } finally {
      child.kill('SIGKILL')
      await once(child, 'exit')
    }
    await convertDisk({ from, to: join(dir, 'a.vhdx') })
  })
}

sources('that VMware has locked is refused', async ({ dir }) => {
  const from = join(dir, 'a.vmdk')
  await fs.writeFile(from, vmdk(data))
  await fs.ensureDir(`${from}.lck`)
  await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), /VMware .*a\.vmdk\.lck/)
})

sources('of a VM in a saved state, or encrypted, is refused', async ({ dir }) => {
  const from = join(dir, 'vm', 'a.vdi')
  await fs.outputFile(from, vdi(data))
  const settings = (attributes: string, inside: string) =>
    fs.writeFile(
      join(dir, 'vm', 'vm.vbox'),
      `<VirtualBox><Machine name="my $(vm)" ${attributes}><MediaRegistry><HardDisks>
      <HardDisk uuid="{0}" location="a.vdi" format="VDI">${inside}</HardDisk>
      </HardDisks></MediaRegistry></Machine></VirtualBox>`,
    )
  const converted = () => convertDisk({ from, to: join(dir, 'a.vhdx'), force: true })
  await settings('stateFile="Snapshots/x.sav"', '')
  await rejects(converted(), /its VM "my \$\(vm\)" is in a saved state.* VBoxManage discardstate/)
  await settings('', '<Property name="CRYPT/KeyStore" value="x"/>')
  await rejects(converted(), /VirtualBox has encrypted it. Run: VBoxManage encryptmedium/)
  await settings('', '')
  await converted()
  await fs.writeFile(join(dir, 'vm', 'vm.vbox'), '<VirtualBox><Machine')
  await converted()
  deepEqual((await fs.readdir(dir)).sort(), ['a.vhdx', 'vm'])
})

sources(
  'whose name and content disagree is refused, unless its format is named',
  async ({ dir }) => {
    const to = join(dir, 'out.vhdx')
    const images = { vdi: vdi(data), vmdk: vmdk(data), raw: data }
    const cases = [
      ['vdi', 'a.vmdk', /it is a VDI by its content .* run again with --from-format vdi/],
      ['vmdk', 'a.img', /it is a VMDK by its content .* run again with --from-format vmdk/],
      ['raw', 'a.vdi', /no signature of a VDI, .* run again with --from-format raw/],
      ['raw', 'a.vhd', /no signature of a VHD, .* run again with --from-format raw/],
    ] as const
    for (const [format, name, reason] of cases) {
      const from = join(dir, name)
      await fs.writeFile(from, images[format])
      await rejects(convertDisk({ from, to, force: true }), reason)
      const named = await convertDisk({ from, to, force: true, fromFormat: format })
      equal(named.source.format, format)
      equal((await inspectDisk({ from, fromFormat: format }))[0]?.format, format)
    }
    const from = join(dir, 'a.img')
    await fs.writeFile(from, data)
    await rejects(
      convertDisk({ from, to, force: true, fromFormat: 'vdi' }),
      /has no signature of a VDI/,
    )
  },
)

sources('that is no file is refused without being opened', async ({ dir }) => {
  if (process.platform === 'win32') return
  const from = join(dir, 'pipe')
  await new Promise((resolve) => execFile('mkfifo', [from], resolve))
  await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), /it is no file. Name a disk image/)
})

sources.run()

const blocks = suite<Context>('the block size of a VHDX')
blocks.before.each(open)
blocks.after.each(close)

const LINUX = '0fc63daf-8483-4772-8e79-3d69d8477de4'
const WINDOWS = 'ebd0a0a2-b9e5-4433-87c0-68b6b72699c7'

blocks('follows the guest, and is told with its reason', async ({ dir }) => {
  const to = join(dir, 'a.vhdx')
  const cases = [
    [gptDisk(LINUX), MB, /Linux spreads small data/],
    [gptDisk(WINDOWS), 2 * MB, /data of a disk that was used lies scattered/],
    [disk(4 * MB), MB, /Linux/], // its partition has type 83
  ] as const
  for (const [content, size, reason] of cases) {
    const from = join(dir, 'a.img')
    await fs.writeFile(from, content)
    const { blockSize, blockSizeReason } = await convertDisk({
      from,
      to,
      verify: true,
      force: true,
    })
    equal(blockSize, size)
    match(`${blockSizeReason}`, reason)
  }
})

blocks('is what was asked for', async ({ dir }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(data))
  for (const blockSize of [MB, 32 * MB, 256 * MB]) {
    const to = join(dir, `${blockSize}.vhdx`)
    const done = await convertDisk({ from, to, verify: true, blockSize })
    equal(done.blockSize, blockSize)
    const back = join(dir, 'back.img')
    await convertDisk({ from: to, to: back, force: true })
    ok((await fs.readFile(back)).equals(data))
  }
  for (const blockSize of [0, 3 * MB, 512 * MB, NaN, MB / 2]) {
    const wrong = convertDisk({ from, to: join(dir, 'b.vhdx'), blockSize })
    await rejects(wrong, /powers of two from 1 MB to 256 MB. Run again with --block-size 32MB/)
  }
  const vhd = convertDisk({ from, to: join(dir, 'b.vhd'), blockSize: MB })
  await rejects(vhd, /only a VHDX, .* has that choice/)
})

blocks.run()

const packages = suite<Context>('a package of disks')
packages.before.each(open)
packages.after.each(close)

const stream = vmdk(data, { compressed: true, atEnd: true })

/** An OVF of one disk, with these attributes of its file. */
const ovfOf = (name: string, attributes: string, capacity = data.length) =>
  `<?xml version="1.0"?><Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>` +
  `<File ovf:id="f" ovf:href="${name}" ${attributes}/></References><DiskSection>` +
  `<Disk ovf:fileRef="f" ovf:capacity="${capacity}"/></DiskSection></Envelope>`

packages(
  'has its disk in chunks, or compressed as a file, and is checked by its manifest',
  async ({ dir }) => {
    const chunk = Math.ceil(stream.length / 3)
    const parts = [0, 1, 2].map((index) => ({
      name: `a.vmdk.00000000${index}`,
      data: stream.subarray(index * chunk, (index + 1) * chunk),
    }))
    const chunked = `ovf:size="${stream.length}" ovf:chunkSize="${chunk}"`
    const packed = gzipSync(stream)
    const cases = {
      chunks: [{ name: 'a.ovf', data: ovfOf('a.vmdk', chunked) }, ...parts],
      gzip: [
        { name: 'a.ovf', data: ovfOf('a.vmdk.gz', 'ovf:compression="gzip"') },
        { name: 'a.vmdk.gz', data: packed },
      ],
    }
    for (const [kind, entries] of Object.entries(cases)) {
      const mf = { name: 'a.mf', data: manifest('SHA256', entries) }
      const from = join(dir, `${kind}.ova`)
      await fs.writeFile(from, tar([...entries, mf]))
      const to = join(dir, `${kind}.img`)
      deepEqual(warned(await convertDisk({ from, to, verify: true })), [])
      ok((await fs.readFile(to)).equals(data))
      equal((await inspectDisk({ from }))[0]?.virtualSize, data.length)
      // what the manifest vouches for is what is stored
      const wrong = entries.map((entry) => ({ ...entry, data: Buffer.from(entry.data) }))
      const last = wrong.at(-1)!.data
      const place = kind === 'gzip' ? 4 : last.length - 1 // the time in its header, the fill of the end
      last.writeUInt8((last[place] as number) ^ 1, place)
      await fs.writeFile(from, tar([...wrong, mf]))
      const again = convertDisk({ from, to: join(dir, 'b.img') })
      await rejects(again, /its SHA256 is .* and the manifest says/)
      const other = convertDisk({ from, to: join(dir, 'b.vhdx'), engine: 'qemu-img' })
      await rejects(other, /compressed or in chunks. Use --engine embedded/)
    }
    deepEqual((await fs.readdir(dir)).sort(), ['chunks.img', 'chunks.ova', 'gzip.img', 'gzip.ova'])
  },
)

packages(
  'is refused when a compressed disk is damaged, or larger than its disk can be',
  async ({ dir }) => {
    const from = join(dir, 'a.ova')
    const gzip = 'ovf:compression="gzip"'
    const to = join(dir, 'a.vhdx')
    const make = (content: Buffer, capacity?: number) =>
      fs.writeFile(
        from,
        tar([{ name: 'a.ovf', data: ovfOf('a.gz', gzip, capacity) }, {
          name: 'a.gz',
          data: content,
        }]),
      )
    await make(gzipSync(stream).subarray(0, -1000))
    await rejects(convertDisk({ from, to }), /a\.gz": it is gzip, and damaged or cut short/)
    await make(stream)
    await rejects(convertDisk({ from, to }), /a\.gz": it is gzip, and damaged or cut short/)
    await make(gzipSync(Buffer.alloc(100 * MB)), MB)
    await rejects(convertDisk({ from, to }), /it inflates to more than the \d+ bytes of its disk/)
    const other = ovfOf('a.gz', 'ovf:compression="bzip2"')
    await fs.writeFile(from, tar([{ name: 'a.ovf', data: other }, { name: 'a.gz', data: stream }]))
    await rejects(convertDisk({ from, to }), /is compressed by bzip2, and gzip is known/)
    const endless = ovfOf('a.vmdk', 'ovf:chunkSize="0" ovf:size="100"')
    await fs.writeFile(from, tar([{ name: 'a.ovf', data: endless }]))
    await rejects(convertDisk({ from, to }), /in chunks, of which it does not say how many/)
    deepEqual(await fs.readdir(dir), ['a.ova'])
  },
)

packages('is checked with the OVF that describes it', async ({ dir }) => {
  const from = join(dir, 'a.ova')
  const entries = [{ name: 'a.ovf', data: ovfOf('a.vmdk', '') }, { name: 'a.vmdk', data: stream }]
  const other = [{ name: 'a.ovf', data: 'other' }, entries[1]!]
  await fs.writeFile(from, tar([...entries, { name: 'a.mf', data: manifest('SHA1', other) }]))
  const to = join(dir, 'a.vhdx')
  await rejects(
    convertDisk({ from, to }),
    /a\.ova\/a\.ovf": its SHA1 is .* Copy or export it again/,
  )
  const one = { name: 'a.mf', data: manifest('SHA1', [entries[1]!]) }
  await fs.writeFile(from, tar([...entries, one]))
  const warnings = warned(await convertDisk({ from, to }))
  deepEqual(warnings, ['The manifest of "a.ova" lacks "a.ovf", so damage to that cannot be seen'])
})

packages('gives all its disks, or none', async ({ dir }) => {
  const from = join(dir, 'two.ova')
  const other = disk(3 * MB, 2)
  const entries = [
    { name: 'one.vmdk', data: stream },
    { name: 'sub/two.vmdk', data: vmdk(other, { compressed: true }) },
  ]
  await fs.writeFile(from, tar(entries))
  const to = join(dir, 'all')
  const all = await convertDisks({ from, to, format: 'raw', verify: true })
  deepEqual(all.map(({ path }) => basename(path)), ['one.img', 'two.img'])
  ok((await fs.readFile(join(to, 'one.img'))).equals(data))
  ok((await fs.readFile(join(to, 'two.img'))).equals(other))
  await rejects(convertDisks({ from, to, format: 'raw' }), /the file is there/)
  const damaged = Buffer.from(entries[1]!.data)
  damaged.fill(9, 128 * 512 + 20, 128 * 512 + 30)
  await fs.writeFile(from, tar([entries[0]!, { name: 'one.vmdk.vmdk', data: damaged }]))
  await rejects(convertDisks({ from, to: join(dir, 'none') }), /cannot be decompressed/)
  ok(!await fs.pathExists(join(dir, 'none')))
  await rejects(convertDisks({ from: join(to, 'one.img'), to }), /it is no OVA or OVF/)
})

packages.run()
