/** Snapshots: a differencing image and its parents, read as the one disk that they are. */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { convertDisk, inspectDisk } from '../../../tasks/convert-disk.ts'
import { type Place, withParents } from '../../../tasks/convert-disk/chain.ts'
import { openImage } from '../../../tasks/convert-disk/formats.ts'
import type { Bytes } from '../../../tasks/convert-disk/image.ts'
import { needs } from '../../needs.ts'
import { disk, MB, NO_UUID, tar, vdi, vhd, vhdx, vmdk, vmfsSparse } from './images.ts'

interface Context {
  dir: string
}

const open = async (context: Context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-chains-'))
}
const close = ({ dir }: Context) => fs.remove(dir)

async function holds(from: string, expected: Buffer): Promise<void> {
  const to = `${from}.read.img`
  await convertDisk({ from, to, verify: true })
  ok((await fs.readFile(to)).equals(expected), `${basename(from)} holds another disk`)
  await fs.remove(to)
}

const refuses = (from: string, reason: RegExp) =>
  rejects(convertDisk({ from, to: `${from}.vhdx` }), (error: Error) => {
    match(error.message, reason)
    match(error.message, /^Cannot read ".*": .*\(at byte \d+\)$/)
    return true
  })

const SECTOR = 512
const size = 5 * MB + 3 * SECTOR
const base = disk(size, 1)
/** The base with blocks changed, and one of them to zeros. */
const child = Buffer.from(base)
child.fill('new', MB, 2 * MB)
child.fill(0, 3 * MB, 4 * MB)
/** Every third sector is another. */
const changed = (sector: number) => sector % 3 === 1
const mixed = Buffer.from(base)
for (let sector = 0; sector * SECTOR < size; sector++) {
  if (changed(sector)) mixed.fill(`sector ${sector} `, sector * SECTOR, (sector + 1) * SECTOR)
}

const made = suite<Context>('a differencing image')
made.before.each(open)
made.after.each(close)

made('of VDI is read with parents of all header versions', async ({ dir }) => {
  const leaf = disk(size, 3)
  for (const version of [0x10001, 0x10000, 1]) {
    // the oldest cannot say in which state the parent was
    const state = version === 1 ? NO_UUID : 'bbbbbbbb-0000-0000-0000-000000000001'
    const [a, b] = ['aaaaaaaa-0000-0000-0000-00000000000a', 'aaaaaaaa-0000-0000-0000-00000000000b']
    await fs.writeFile(join(dir, 'base.vdi'), vdi(base, { version, uuid: a, modified: state }))
    const parent = { uuid: a, modified: state, data: base }
    await fs.writeFile(join(dir, 'one.vdi'), vdi(child, { version, uuid: b, parent }))
    const next = { uuid: b, modified: NO_UUID, data: child }
    await fs.writeFile(join(dir, 'two.vdi'), vdi(leaf, { version, parent: next }))
    await holds(join(dir, 'one.vdi'), child)
    await holds(join(dir, 'two.vdi'), leaf)
    const [found] = await inspectDisk({ from: join(dir, 'two.vdi') })
    deepEqual(found?.chain?.map((path) => basename(path)), ['base.vdi', 'one.vdi', 'two.vdi'])
    equal(found?.variant, 'differencing')
  }
})

made('is refused without its parent, on a changed one, and on itself', async ({ dir }) => {
  const from = join(dir, 'child.vdi')
  const [a, b] = ['aaaaaaaa-0000-0000-0000-00000000000a', 'aaaaaaaa-0000-0000-0000-00000000000b']
  const state = 'bbbbbbbb-0000-0000-0000-000000000001'
  const parent = { uuid: a, modified: state, data: base }
  await fs.writeFile(from, vdi(child, { uuid: b, parent }))
  await refuses(from, /only what changed since its parent.*000a is neither beside it.* Copy the/)
  const other = 'bbbbbbbb-0000-0000-0000-000000000002'
  await fs.writeFile(join(dir, 'base.vdi'), vdi(base, { uuid: a, modified: other }))
  await refuses(from, /its parent ".*base\.vdi" was written to since/)
  await fs.writeFile(join(dir, 'base.vdi'), vdi(base, { uuid: a, modified: state }))
  await holds(from, child)
  const loop = { uuid: b, modified: NO_UUID, data: child }
  await fs.writeFile(join(dir, 'base.vdi'), vdi(base, { uuid: a, modified: state, parent: loop }))
  await refuses(from, /its parents lead back to itself/)
  await fs.writeFile(from, vdi(child, { uuid: b, parent: loop }))
  await refuses(from, /only what changed since its parent/)
  await fs.writeFile(from, vdi(child, { uuid: b, type: 4 }))
  await refuses(from, /names no parent/)
  deepEqual((await fs.readdir(dir)).sort(), ['base.vdi', 'child.vdi'])
})

made(
  "is found its parent in the folder above, and where its VM's settings say",
  async ({ dir }) => {
    const uuid = 'aaaaaaaa-0000-0000-0000-00000000000a'
    const from = join(dir, 'vm', 'Snapshots', 'child.vdi')
    const parent = { uuid, modified: NO_UUID, data: base }
    await fs.outputFile(from, vdi(child, { parent }))
    await fs.writeFile(join(dir, 'vm', 'base.vdi'), vdi(base, { uuid }))
    await holds(from, child)
    await fs.move(join(dir, 'vm', 'base.vdi'), join(dir, 'other disks', 'base.vdi'))
    await refuses(from, /is neither beside it/)
    await fs.writeFile(
      join(dir, 'vm', 'vm.vbox'),
      `<VirtualBox><Machine name="vm"><MediaRegistry><HardDisks>
      <HardDisk uuid="{${uuid}}" location="../other disks/base.vdi" format="VDI">
        <HardDisk uuid="{33323130-3534-3736-3839-616263646566}" location="Snapshots/child.vdi"/>
      </HardDisk></HardDisks></MediaRegistry></Machine></VirtualBox>`,
    )
    await holds(from, child)
  },
)

made('of VMDK is read by name and CID, on a stream-optimized parent too', async ({ dir }) => {
  for (const compressed of [false, true]) {
    await fs.writeFile(join(dir, 'base.vmdk'), vmdk(base, { compressed, cid: 'abcd0001' }))
    const delta = vmfsSparse(mixed.subarray(0, 2 * MB - SECTOR), changed)
    await fs.writeFile(join(dir, 'vm-delta.vmdk'), delta)
    const sectors = delta.readUInt32LE(12)
    const descriptor = [
      '# Disk DescriptorFile',
      'version=1',
      'CID=abcd0002',
      'parentCID=abcd0001',
      'createType="vmfsSparse"',
      'parentFileNameHint="base.vmdk"',
      `RW ${sectors} VMFSSPARSE "vm-delta.vmdk"`,
      `RW ${size / SECTOR - sectors} ZERO`,
    ]
    const from = join(dir, 'vm.vmdk')
    await fs.writeFile(from, descriptor.join('\n'))
    const expected = Buffer.alloc(size)
    mixed.copy(expected, 0, 0, sectors * SECTOR)
    await holds(from, expected)
    await refuses(join(dir, 'vm-delta.vmdk'), /one extent of a disk. Name the small text file/)
    await fs.writeFile(from, descriptor.join('\n').replace('parentCID=abcd0001', 'parentCID=1'))
    await refuses(from, /only what changed since its parent, and its parent base\.vmdk/)
  }
})

made('of VHD has its parent’s sectors where its bitmap has none', async ({ dir }) => {
  const id = '11111111-2222-3333-4444-555555555555'
  await fs.outputFile(join(dir, 'bases', 'base.vhd'), vhd(base, { id }))
  const from = join(dir, 'child.vhd')
  await fs.writeFile(from, vhd(mixed, { parent: { id, path: '.\\bases\\base.vhd', changed } }))
  await holds(from, mixed)
  await fs.move(join(dir, 'bases', 'base.vhd'), join(dir, 'base.vhd'))
  await holds(from, mixed)
  await fs.remove(join(dir, 'base.vhd'))
  await refuses(from, /its parent \.\\bases\\base\.vhd is neither beside it/)
  const remote = '\\\\server\\share\\base.vhd'
  await fs.writeFile(from, vhd(mixed, { parent: { id, path: remote, changed } }))
  await refuses(from, /its parent \\\\server\\share\\base\.vhd is neither/)
  await fs.writeFile(join(dir, 'base.vhd'), vhd(base, { id }))
  await holds(from, mixed)
})

made('of VHDX has its parent’s sectors where its bitmap has none', async ({ dir }) => {
  for (const sectorSize of [512, 4096] as const) {
    const length = 6 * MB
    const [under, over] = [disk(length, 5), disk(length, 6)]
    const expected = Buffer.from(under)
    const isChanged = (sector: number) => sector % 5 === 2 && sector * sectorSize > 2 * MB
    for (let sector = 0; sector * sectorSize < length; sector++) {
      if (isChanged(sector)) {
        over.copy(expected, sector * sectorSize, sector * sectorSize, (sector + 1) * sectorSize)
      }
    }
    const written = '99999999-8888-7777-6666-555555555555'
    await fs.writeFile(join(dir, 'base.vhdx'), vhdx(under, { sectorSize, written }))
    const parent = { written, path: '.\\base.vhdx', changed: isChanged }
    const from = join(dir, 'child.avhdx')
    await fs.writeFile(from, vhdx(over, { sectorSize, parent }))
    const to = join(dir, 'whole.vhdx')
    const { source } = await convertDisk({
      ...{ from, to, verify: true, force: true, blockSize: 2 * MB },
    })
    equal(source.variant, 'differencing')
    ok(blocksOf(await fs.readFile(to), length).equals(expected))
    await fs.writeFile(join(dir, 'base.vhdx'), vhdx(under, { sectorSize }))
    await refuses(from, /its parent ".*base\.vhdx" was written to since/)
  }
})

/** The disk in a VHDX of the kit's, with blocks of 2 MB; 4096-byte sectors have no raw image. */
function blocksOf(image: Buffer, length: number): Buffer {
  const blocks = Array.from({ length: length / (2 * MB) }, (_, block) => {
    const entry = image.readBigUInt64LE(3 * MB + block * 8)
    const at = Number(entry >> 20n) * MB
    return entry === 0n ? Buffer.alloc(2 * MB) : image.subarray(at, at + 2 * MB)
  })
  return Buffer.concat(blocks)
}

made('in an OVA is read with its parent there', async ({ dir }) => {
  const uuid = 'aaaaaaaa-0000-0000-0000-00000000000a'
  const parent = { uuid, modified: NO_UUID, data: base }
  const from = join(dir, 'a.ova')
  const entries = [
    { name: 'child.vdi', data: vdi(child, { parent }) },
    { name: 'base.vdi', data: vdi(base, { uuid }) },
  ]
  await fs.writeFile(from, tar(entries))
  const to = join(dir, 'a.img')
  await convertDisk({ from, to, disk: 'child.vdi' })
  ok((await fs.readFile(to)).equals(child))
})

made('of 300 generations is refused, with no file opened for each of them', async () => {
  const id = (number: number) => `aaaaaaaa-0000-0000-0000-${String(number).padStart(12, '0')}`
  const data = Buffer.alloc(4096, 'x')
  const files = Array.from({ length: 301 }, (_, number): Bytes => {
    const parent = { uuid: id(number - 1), modified: NO_UUID, data: Buffer.alloc(4096) }
    const image = vdi(data, { blockSize: 4096, uuid: id(number), ...(number > 0 && { parent }) })
    const read: Bytes['read'] = (at, length, into = Buffer.alloc(length)) => {
      image.copy(into, 0, at, at + length)
      return Promise.resolve(into)
    }
    return { name: `${number}.vdi`, size: image.length, read }
  })
  const sibling = () => Promise.reject(new Error('There are no siblings'))
  let opened = 0
  const placeOf = (name: string): Place => ({
    name,
    candidates: async function* (_, isNone) {
      for (const bytes of files) {
        if (bytes.name === name || isNone(bytes.name)) continue
        opened++
        const take = () => Promise.resolve(placeOf(bytes.name))
        yield { bytes, sibling, take, close: () => Promise.resolve() }
      }
    },
  })
  const last = files[300] as Bytes
  const image = await openImage(last, sibling)
  const reason = { message: /^Cannot read "44\.vdi": it has more than 256 parents/ }
  await rejects(withParents(image, last, placeOf(last.name)), reason)
  ok(opened < 2 * files.length, `${opened} were opened`)
})

made.run()

function run(dir: string, program: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, VBOX_USER_HOME: join(dir, 'vbox') }
  return new Promise((resolve, reject) =>
    execFile(
      program,
      args,
      { cwd: dir, env },
      (error, stdout, stderr) => error ? reject(new Error(`${stdout}${stderr}`)) : resolve(stdout),
    )
  )
}

const tools = suite<Context>('a snapshot')
tools.before.each(open)
tools.after.each(close)

needs(tools, 'VBoxManage')(
  'pain 10: that VBoxManage made is read as it is now, in each of its formats',
  async ({ dir }) => {
    const even = 8 * MB
    const states = [1, 2, 3].map((seed) => disk(even, seed))
    for (const [index, state] of states.entries()) {
      await fs.writeFile(join(dir, `${index}.raw`), state)
      const image = join(dir, `${index}.vdi`)
      await run(dir, 'VBoxManage', 'convertfromraw', join(dir, `${index}.raw`), image)
    }
    // a VHD with a parent that it cannot name by number keeps the parent's own format
    for (
      const [first, other] of [['VDI', 'VDI'], ['VMDK', 'VMDK'], ['VHD', 'VHD'], ['VMDK', 'VDI'], [
        'VHD',
        'VDI',
      ]]
    ) {
      const extension = other?.toLowerCase()
      const folder = join(dir, `${first}-${other}`)
      const names = [
        join(folder, `base.${first?.toLowerCase()}`),
        join(folder, 'Snapshots', `one.${extension}`),
        join(folder, 'Snapshots', `two.${extension}`),
      ]
      await fs.ensureDir(join(folder, 'Snapshots'))
      for (const [index, name] of names.entries()) {
        const parent = names[index - 1]
        const format = index === 0 ? first : other
        await (parent === undefined
          ? run(
            dir,
            'VBoxManage',
            'clonemedium',
            'disk',
            join(dir, '0.vdi'),
            name,
            '--format',
            `${format}`,
          )
          : run(
            dir,
            'VBoxManage',
            'createmedium',
            'disk',
            '--format',
            `${format}`,
            '--filename',
            name,
            '--diffparent',
            parent,
          ))
        if (parent !== undefined) {
          await run(
            dir,
            'VBoxManage',
            'clonemedium',
            'disk',
            join(dir, `${index}.vdi`),
            name,
            '--existing',
          )
        }
      }
      for (const [index, name] of names.entries()) await holds(name, states[index] as Buffer)
    }
  },
)

needs(tools, 'qemu-img', 'qemu-io')('that qemu made of a VMDK is read', async ({ dir }) => {
  await fs.writeFile(join(dir, 'base.raw'), disk(4 * MB))
  await run(dir, 'qemu-img', 'convert', '-f', 'raw', '-O', 'vmdk', 'base.raw', 'base.vmdk')
  await run(dir, 'qemu-img', 'create', '-f', 'vmdk', '-b', 'base.vmdk', '-F', 'vmdk', 'child.vmdk')
  await run(dir, 'qemu-io', '-f', 'vmdk', '-c', 'write -P 0x5a 1000k 300k', 'child.vmdk')
  await run(dir, 'qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', 'child.vmdk', 'child.raw')
  await holds(join(dir, 'child.vmdk'), await fs.readFile(join(dir, 'child.raw')))
})

tools.run()
