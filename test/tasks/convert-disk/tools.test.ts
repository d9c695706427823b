/** What the kit and other programs make of each other's images. */
import { equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { basename, extname, join } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import { convertDisk, inspectDisk } from '../../../tasks/convert-disk.ts'
import { needs } from '../../needs.ts'
import { disk, manifest, MB, ovf, tar, vdi, vmdk } from './images.ts'

interface Context {
  dir: string
  /** An image of the disk, made by VirtualBox's or qemu's converter. */
  raw: string
}

// no multiple of the block, the grain or the cylinder
const data = disk(20 * MB + 512 * 5, 7)

const open = async (context: Context) => {
  context.dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-tools-'))
  context.raw = join(context.dir, 'disk.raw')
  await fs.writeFile(context.raw, data)
}
const close = ({ dir }: Context) => fs.remove(dir)

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

async function holds(from: string, expected: Buffer = data): Promise<void> {
  const to = `${from}.read.raw`
  await convertDisk({ from, to })
  ok((await fs.readFile(to)).equals(expected), `${basename(from)} holds another disk`)
  await fs.remove(to)
}

const qemu = suite<Context>('with qemu-img')
qemu.before.each(open)
qemu.after.each(close)
const withQemu = needs(qemu, 'qemu-img')

withQemu('reads every image that it writes', async ({ dir, raw }) => {
  const variants = [
    'vdi',
    'vdi static=on',
    'vmdk',
    'vmdk zeroed_grain=on',
    'vmdk subformat=streamOptimized',
    'vmdk subformat=monolithicFlat',
    'vmdk subformat=twoGbMaxExtentSparse',
    'vmdk subformat=twoGbMaxExtentFlat',
    'vpc force_size=on',
    'vpc force_size=on,subformat=fixed',
    'vhdx',
    'vhdx subformat=fixed',
    'vhdx block_size=1M',
    'vhdx block_size=256M',
  ]
  for (const [index, variant] of variants.entries()) {
    const [format = '', options] = variant.split(' ')
    const image = join(dir, `${index}.${format === 'vpc' ? 'vhd' : format}`)
    const args = ['convert', '-f', 'raw', '-O', format, ...(options ? ['-o', options] : [])]
    await run(dir, 'qemu-img', ...args, raw, image)
    await holds(image)
  }
})

withQemu('finds what the kit writes to be right and equal', async ({ dir, raw }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(data, { reversed: true }))
  for (const format of ['vhdx', 'vhd', 'vdi', 'raw'] as const) {
    for (const type of ['dynamic', 'fixed'] as const) {
      const to = join(dir, `b.${format}`)
      await convertDisk({ from, to, type, force: true })
      const name = format === 'vhd' ? 'vpc' : format
      match(await run(dir, 'qemu-img', 'compare', '-f', 'raw', '-F', name, raw, to), /identical/)
      if (format === 'vhdx' || format === 'vdi') {
        match(await run(dir, 'qemu-img', 'check', '-f', name, to), /No errors/)
      }
      const info = await run(dir, 'qemu-img', 'info', '--output=json', '-f', name, to)
      equal(JSON.parse(info)['virtual-size'], data.length)
    }
  }
})

withQemu('lets it convert, out of an OVA too, with the result checked', async ({ dir }) => {
  const name = 'a "b", c.vmdk'
  const even = disk(20 * MB)
  const entries = [
    { name: 'a.ovf', data: ovf('a &quot;b&quot;, c.vmdk') },
    { name, data: vmdk(even, { compressed: true, atEnd: true }) },
  ]
  const mf = { name: 'a.mf', data: manifest('SHA256', entries) }
  const from = join(dir, 'a:b "c".ova')
  await fs.writeFile(from, tar([...entries, mf]))
  for (const format of ['vhdx', 'vhd', 'vdi', 'raw'] as const) {
    const to = join(dir, `b.${format}`)
    const { virtualSize } = await convertDisk({ from, to, engine: 'qemu-img', verify: true })
    equal(virtualSize, even.length)
    await holds(to, even)
  }
  await fs.writeFile(from, tar([...entries, { name: 'a.mf', data: `SHA1(${name})= 00\n` }]))
  const to = join(dir, 'c.vhdx')
  await rejects(convertDisk({ from, to, engine: 'qemu-img' }), /the manifest says/)
  ok(!(await fs.readdir(dir)).some((file) => file.startsWith('c.vhdx')))
})

qemu('says how to get a program that is absent', async ({ dir }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(disk(MB)))
  const { PATH } = process.env
  process.env.PATH = dir
  try {
    await rejects(
      convertDisk({ from, to: join(dir, 'a.vhd'), engine: 'qemu-img' }),
      /^Error: Cannot convert with qemu-img: no such program is on PATH. Install it /,
    )
    await rejects(
      convertDisk({ from, to: join(dir, 'a.vhd'), engine: 'vboxmanage' }),
      /^Error: Cannot convert with VBoxManage: no such program is on PATH. Install VirtualBox/,
    )
  } finally {
    process.env.PATH = PATH
  }
  ok(!(await fs.readdir(dir)).some((file) => file.startsWith('a.vhd')))
})

qemu.run()

const vbox = suite<Context>('with VBoxManage')
vbox.before.each(open)
vbox.after.each(close)
const withVBox = needs(vbox, 'VBoxManage')

withVBox('reads every image that it writes', async ({ dir, raw }) => {
  const first = join(dir, 'first.vdi')
  await run(dir, 'VBoxManage', 'convertfromraw', raw, first, '--format', 'VDI')
  await holds(first)
  const variants = [
    'VDI Fixed',
    'VMDK Standard',
    'VMDK Fixed',
    'VMDK Stream',
    'VMDK Split2G',
    'VMDK ESX',
    'VHD Standard',
    'VHD Fixed',
  ]
  for (const [index, variant] of variants.entries()) {
    const [format = '', kind = ''] = variant.split(' ')
    const image = join(dir, `${index}.${format.toLowerCase()}`)
    const args = ['clonemedium', 'disk', first, image, '--format', format, '--variant', kind]
    await run(dir, 'VBoxManage', ...args)
    await holds(image)
    const [described] = await inspectDisk({ from: image })
    const info = await run(dir, 'VBoxManage', 'showmediuminfo', image)
    // a VHD's is stored in another order, and a stream's is not the one that VirtualBox registers
    if (format === 'VHD' || kind === 'Stream') continue
    equal(described?.identifier, info.match(/^UUID:\s+(\S+)/m)?.[1], variant)
  }
})

withVBox('writes images that it reads', async ({ dir, raw }) => {
  for (const format of ['vdi', 'vhd'] as const) {
    for (const type of ['dynamic', 'fixed'] as const) {
      const image = join(dir, `${type}.${format}`)
      const back = join(dir, `${type}-${format}.raw`)
      await convertDisk({ from: raw, to: image, type })
      await run(dir, 'VBoxManage', 'clonemedium', 'disk', image, back, '--format', 'RAW')
      ok((await fs.readFile(back)).equals(data))
    }
  }
})

withVBox('reads an OVA that it exports, by its manifest', async ({ dir, raw }) => {
  const image = join(dir, 'a.vdi')
  await run(dir, 'VBoxManage', 'convertfromraw', raw, image, '--format', 'VDI')
  await run(dir, 'VBoxManage', 'createvm', '--name', 'a', '--register', '--basefolder', dir)
  await run(dir, 'VBoxManage', 'storagectl', 'a', '--name', 'SATA', '--add', 'sata')
  const place = ['--storagectl', 'SATA', '--port', '0', '--type', 'hdd', '--medium', image]
  await run(dir, 'VBoxManage', 'storageattach', 'a', ...place)
  for (const version of ['--ovf10', '--ovf20']) {
    const ova = join(dir, `${version}.ova`)
    await run(dir, 'VBoxManage', 'export', 'a', '--output', ova, version, '--manifest')
    await holds(ova)
    const { warnings } = await convertDisk({ from: ova, to: `${ova}.vhdx` })
    equal(warnings.length, 0)
  }
})

withVBox('lets it convert, and leaves its registry as it was', async ({ dir }) => {
  const from = join(dir, 'a.vdi')
  await fs.writeFile(from, vdi(data))
  const home = process.env.VBOX_USER_HOME
  process.env.VBOX_USER_HOME = join(dir, 'vbox')
  try {
    for (const format of ['vhd', 'vdi', 'raw'] as const) {
      const to = join(dir, `b.${format}`)
      await convertDisk({ from, to, engine: 'vboxmanage', verify: true })
      equal(extname(to), `.${format}`)
      await holds(to)
    }
  } finally {
    if (home === undefined) delete process.env.VBOX_USER_HOME
    else process.env.VBOX_USER_HOME = home
  }
  equal((await run(dir, 'VBoxManage', 'list', 'hdds')).trim(), '')
  await rejects(
    convertDisk({ from, to: join(dir, 'c.vhdx'), engine: 'vboxmanage' }),
    /VBoxManage: it has no such format. Use --format vhd, or --engine embedded$/,
  )
})

vbox.run()
