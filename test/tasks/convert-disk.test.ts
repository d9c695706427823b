import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict'
import { execFile } from 'node:child_process'
import fs from 'fs-extra'
import { tmpdir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import process from 'node:process'
import { suite } from 'uvu'
import {
  convertDisk,
  type ConvertDiskProgress,
  type Format,
  inspectDisk,
  undoConvertDisk,
} from '../../tasks/convert-disk.ts'
import { anotherProcess } from './convert-disk/another.ts'
import { disk, gptDisk, manifest, MB, ovf, tar, vdi, vmdk, warned } from './convert-disk/images.ts'

interface Context {
  dir: string
  /** A file in the test's folder. */
  file: (name: string, data?: Buffer | string) => Promise<string>
  /** The disk of an image, by the kit's own readers. */
  bytes: (path: string, which?: string | number) => Promise<Buffer>
}

const open = async (context: Context) => {
  const dir = await fs.mkdtemp(join(tmpdir(), 'convert-disk-'))
  let count = 0
  Object.assign(context, {
    dir,
    file: async (name: string, data?: Buffer | string) => {
      const path = join(dir, name)
      if (data !== undefined) await fs.outputFile(path, data)
      return path
    },
    bytes: async (from: string, which?: string | number) => {
      const to = join(dir, `read-${count++}.raw`)
      await convertDisk({ from, to, ...(which !== undefined && { disk: which }) })
      const data = await fs.readFile(to)
      await fs.remove(to)
      return data
    },
  })
}
const close = ({ dir }: Context) => fs.remove(dir)

const same = (a: Buffer, b: Buffer) => ok(a.equals(b), 'the disks differ')
const small = disk(5 * MB + 512 * 3)

const converts = suite<Context>('convertDisk')
converts.before.each(open)
converts.after.each(close)

for (const format of ['vhdx', 'vhd', 'vdi', 'raw'] as Format[]) {
  for (const type of ['dynamic', 'fixed'] as const) {
    converts(`writes a ${type} ${format} that holds the source's disk`, async ({ file, bytes }) => {
      const from = await file('a.vdi', vdi(small))
      const to = await file(`b.${format}`)
      const result = await convertDisk({ from, to, type, verify: true })
      equal(result.changed, true)
      equal(result.virtualSize, small.length)
      equal(result.fileSize, (await fs.stat(to)).size)
      equal(result.source.format, 'vdi')
      same(await bytes(to), small)
      const [described] = await inspectDisk({ from: to })
      equal(described?.format, format)
      equal(described?.virtualSize, small.length)
      equal(described?.identifier, result.identifier)
      equal(described?.variant, format === 'raw' ? 'flat' : type)
      equal(described?.boots, 'bios')
    })
  }
}

converts(
  'gives equal files for equal disks and seeds, and other identifiers otherwise',
  async ({ file }) => {
    const from = await file('a.vdi', vdi(disk(40 * MB)))
    const turned = await file('b.vdi', vdi(disk(40 * MB), { reversed: true }))
    const paths = []
    for (const format of ['vhdx', 'vhd', 'vdi']) {
      const [one, two, three] = ['1', '2', '3'].map((name) => join(from, '..', `${name}.${format}`))
      await convertDisk({ from, to: one as string, seed: 'x' })
      await convertDisk({ from: turned, to: two as string, seed: 'x' })
      await convertDisk({ from, to: three as string })
      same(await fs.readFile(one as string), await fs.readFile(two as string))
      ok(!(await fs.readFile(one as string)).equals(await fs.readFile(three as string)))
      paths.push(one)
    }
    equal(paths.length, 3)
  },
)

converts('writes no blocks that hold only zeros', async ({ file }) => {
  const data = Buffer.alloc(64 * MB)
  data.write('here', 33 * MB)
  const from = await file('a.img', data)
  const vhdx = await convertDisk({ from, to: await file('a.vhdx') })
  const vhd = await convertDisk({ from, to: await file('a.vhd') })
  equal(vhdx.fileSize, (1 + 1 + 1 + 1 + 2) * MB) // header, log, metadata, table, block
  ok(vhd.fileSize < 2 * MB + 16 * 1024)
  ok((vhdx.dataBytes ?? Infinity) <= 64 * 1024)
})

converts('fills a disk up to whole sectors, and says so', async ({ file, bytes }) => {
  const from = await file('a.img', disk(MB + 100))
  const to = await file('a.vhd')
  const { virtualSize, warnings } = await convertDisk({ from, to })
  equal(virtualSize, MB + 512)
  match(warnings.join(), /412 zeros were added/)
  same((await bytes(to)).subarray(0, MB + 100), disk(MB + 100))
})

converts('says how far it is, until all is done, once more for verifying', async ({ file }) => {
  const heard: ConvertDiskProgress[] = []
  await convertDisk({
    from: await file('a.vdi', vdi(disk(20 * MB))),
    to: await file('a.vhdx'),
    verify: true,
    onProgress: (progress) => void heard.push(progress),
  })
  for (const phase of ['read', 'verify'] as const) {
    const last = heard.filter((progress) => progress.phase === phase).at(-1)
    deepEqual(last, { done: 20 * MB, total: 20 * MB, unit: 'bytes', phase })
  }
})

converts(
  'changes nothing on a dry run, and refuses what it would refuse',
  async ({ dir, file }) => {
    const from = await file('a.vdi', vdi(small))
    const result = await convertDisk({ from, to: join(dir, 'new', 'a.vhdx'), dryRun: true })
    equal(result.changed, true)
    ok(result.fileSize >= small.length)
    deepEqual(await fs.readdir(dir), ['a.vdi'])
    const there = await file('b.vhdx', 'mine')
    await rejects(convertDisk({ from, to: there, dryRun: true }), /the file is there/)
  },
)

converts('never replaces a file without force, and only in the end with it', async ({ file }) => {
  const from = await file('a.vdi', vdi(small))
  const to = await file('a.vhdx', 'mine')
  await rejects(convertDisk({ from, to }), {
    message: `Cannot write "${to}": the file is there. Remove it, or run again with --force`,
  })
  const broken = await file('b.vdi', vdi(small).subarray(0, 3 * MB))
  await rejects(convertDisk({ from: broken, to, force: true }), /not within the file/)
  equal(await fs.readFile(to, 'utf8'), 'mine')
  await convertDisk({ from, to, force: true })
  equal((await inspectDisk({ from: to }))[0]?.format, 'vhdx')
})

converts('refuses to write over its source, by whatever name', async ({ dir, file }) => {
  const from = await file('a.vdi', vdi(small))
  await fs.link(from, join(dir, 'hard.vhdx'))
  const names = [from, join(dir, 'hard.vhdx')]
  // on Windows one needs a right to make them
  if (process.platform !== 'win32') {
    names.push(join(dir, 'soft.vhdx'))
    await fs.symlink(from, join(dir, 'soft.vhdx'))
  }
  for (const to of names) {
    const options = { from, to, format: 'vhdx' as const, force: true }
    await rejects(convertDisk(options), /to itself/)
  }
  const data = Buffer.alloc(MB, 'x')
  const extent = await file('flat.vhd', data)
  const descriptor = await file('b.vmdk', `# Disk DescriptorFile\nRW 2048 FLAT "flat.vhd" 0\n`)
  await rejects(convertDisk({ from: descriptor, to: extent, force: true }), /to itself/)
  same(await fs.readFile(from), vdi(small))
  same(await fs.readFile(extent), data)
})

converts('stops when asked to, and leaves nothing behind', async ({ dir, file }) => {
  const from = await file('a.vdi', vdi(disk(40 * MB)))
  const stop = new AbortController()
  const converting = convertDisk({
    from,
    to: join(dir, 'new', 'folder', 'a.vhdx'),
    signal: stop.signal,
    onProgress: () => stop.abort(),
  })
  await rejects(converting, /^Error: Stopped: ".*a\.vhdx" was not written$/)
  deepEqual(await fs.readdir(dir), ['a.vdi'])
  await rejects(
    convertDisk({ from, to: join(dir, 'a.vhd'), signal: AbortSignal.abort() }),
    /Stopped/,
  )
  deepEqual(await fs.readdir(dir), ['a.vdi'])
})

converts('refuses a source that changes while it is read', async ({ dir, file }) => {
  const from = await file('a.vdi', vdi(disk(20 * MB)))
  let changed = false
  const converting = convertDisk({
    from,
    to: join(dir, 'a.vhdx'),
    onProgress: () => {
      if (changed) return
      changed = true
      const other = fs.openSync(from, 'r+')
      fs.writeSync(other, 'x', 0)
      fs.closeSync(other)
    },
  })
  await rejects(converting, /it was changed while it was read. Shut the VM down and run again$/)
  deepEqual(await fs.readdir(dir), ['a.vdi'])
})

converts(
  'cleans up what a killed run left, and not what a running one writes',
  async ({ dir, file }) => {
    const from = await file('a.vdi', vdi(small))
    const pid = await new Promise<number | undefined>((resolve) => {
      const child = execFile(process.execPath, ['--version'], () => resolve(child.pid))
    })
    await file(`a.vhdx.${pid}-0123abcd.partial`, 'left')
    const { pid: other, end } = anotherProcess()
    await file(`a.vhdx.${other}-0123abcd.partial`, 'in work')
    await file('a.vhdx.partial', 'of someone else')
    await convertDisk({ from, to: join(dir, 'a.vhdx') }).finally(end)
    deepEqual(
      (await fs.readdir(dir)).sort(),
      [
        'a.vdi',
        'a.vhdx',
        `a.vhdx.${other}-0123abcd.partial`,
        'a.vhdx.partial',
      ].sort(),
    )
  },
)

converts('refuses what the target cannot hold', async ({ dir }) => {
  const from = join(dir, 'large.img')
  await fs.writeFile(from, 'x')
  await fs.truncate(from, 2041 * 1024 ** 3)
  await rejects(convertDisk({ from, to: join(dir, 'a.vhd'), dryRun: true }), {
    message: `Cannot write "${join(dir, 'a.vhd')}": a VHD holds 2190433320960 bytes at most, ` +
      'and the disk has 2191507062784. Use --format vhdx',
  })
})

converts('says when there is no room, before it begins', async ({ dir, file }) => {
  const data = Buffer.alloc(1024)
  data.write('# Disk DescriptorFile\nRW 20000000000 FLAT "b.img"\n')
  await fs.writeFile(join(dir, 'b.img'), 'x')
  await fs.truncate(join(dir, 'b.img'), 20_000_000_000 * 512)
  const from = await file('a.vmdk', data.toString().replace(/\0.*$/s, ''))
  await rejects(
    convertDisk({ from, to: join(dir, 'a.vhdx') }),
    /may take up to \d+ MB, and \d+ MB are free there/,
  )
  deepEqual((await fs.readdir(dir)).sort(), ['a.vmdk', 'b.img'])
})

converts('takes names that scripts would trip over', async ({ dir, file, bytes }) => {
  // Windows takes neither in a name
  const [quote, newline] = process.platform === 'win32' ? ['', ''] : ['"', '\n']
  const name = `-Bob’s ${quote}VM${quote}; $(calc) \`x\` 桥接`
  const from = await file(`${name}.vdi`, vdi(small))
  const to = join(dir, `${name}${newline}.vhdx`)
  await convertDisk({ from, to })
  same(await bytes(to), small)
  await rejects(convertDisk({ from, to }), (error: Error) => !error.message.includes('\n'))
})

converts('refuses a target whose format its name does not tell', async ({ dir, file }) => {
  const from = await file('a.vdi', vdi(small))
  await rejects(
    convertDisk({ from, to: join(dir, 'a.qcow2') }),
    /Run again with --format vhdx, vhd, vdi or raw$/,
  )
})

converts('undoes by removing the file it made, and no other', async ({ dir, file }) => {
  const from = await file('a.vdi', vdi(small))
  const to = join(dir, 'a.vhdx')
  const result = await convertDisk({ from, to })
  await convertDisk({ from, to, force: true })
  await rejects(undoConvertDisk(result), /it is not the disk that was written there/)
  ok(await fs.pathExists(to))
  const again = await convertDisk({ from, to, force: true })
  deepEqual(await undoConvertDisk(again), { changed: true, path: to })
  deepEqual(await fs.readdir(dir), ['a.vdi'])
  deepEqual(await undoConvertDisk(again), { changed: false, path: to })
})

converts.run()

const archives = suite<Context>('convertDisk out of an OVA')
archives.before.each(open)
archives.after.each(close)

const stream = vmdk(small, { compressed: true, atEnd: true })

for (const algorithm of ['SHA1', 'SHA256', 'SHA512']) {
  archives(`checks the disk by a manifest of ${algorithm}`, async ({ dir, file, bytes }) => {
    const entries = [{ name: 'a.ovf', data: ovf('a.vmdk') }, { name: 'a.vmdk', data: stream }]
    const mf = { name: 'a.mf', data: manifest(algorithm, entries) }
    const from = await file('a.ova', tar([...entries, mf]))
    same(await bytes(from), small)
    deepEqual(warned(await convertDisk({ from, to: join(dir, 'a.vhdx') })), [])
    const damaged = { name: 'a.vmdk', data: Buffer.from(stream) }
    damaged.data[20 * 512] = 1 // within the descriptor's sectors, where no reader looks
    const wrong = await file('b.ova', tar([entries[0]!, mf, damaged]))
    await rejects(
      convertDisk({ from: wrong, to: join(dir, 'b.vhdx') }),
      new RegExp(`its ${algorithm} is .* and the manifest says .* Copy or export it again$`),
    )
    deepEqual((await fs.readdir(dir)).sort(), ['a.ova', 'a.vhdx', 'b.ova'])
  })
}

archives('says when there is no manifest', async ({ dir, file }) => {
  const entries = [{ name: 'a.vmdk', data: stream }, { name: 'a.ovf', data: ovf('a.vmdk') }]
  const from = await file('a.ova', tar(entries))
  const warnings = warned(await convertDisk({ from, to: join(dir, 'a.vhdx') }))
  deepEqual(warnings, ['"a.ova" has no manifest, so damage to it cannot be seen'])
})

archives('takes the disk that is meant, by place or name', async ({ dir, file, bytes }) => {
  const other = disk(3 * MB, 2)
  const long = `${'long/'.repeat(30)}桥接.vmdk`
  const entries = [
    { name: 'two.vmdk', data: vmdk(other, { compressed: true }) },
    { name: 'a.ovf', data: ovf(long, 'two.vmdk') },
    { name: long, data: stream, long: 'pax' as const },
  ]
  for (const kind of ['pax', 'gnu'] as const) {
    entries[2]!.long = kind as 'pax'
    const from = await file(`${kind}.ova`, tar(entries))
    same(await bytes(from, 0), small)
    same(await bytes(from, long), small)
    same(await bytes(from, 'two.vmdk'), other)
    const all = await inspectDisk({ from })
    deepEqual(all.map(({ member, virtualSize }) => ({ member, virtualSize })), [
      { member: long, virtualSize: small.length },
      { member: 'two.vmdk', virtualSize: other.length },
    ])
    await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), (error: Error) => {
      match(error.message, /^Cannot tell which disk of .* is meant: it has several, 0 ".*/)
      return /1 "two\.vmdk"\. Run again with --disk and one of these$/.test(error.message)
    })
    await rejects(convertDisk({ from, to: join(dir, 'a.vhdx'), disk: 2 }), /it has no "2"/)
  }
})

archives('passes over a DVD that was exported with the VM', async ({ dir, file }) => {
  const iso = 'ovf:format="http://www.ecma-international.org/publications/standards/Ecma-119.htm"'
  const text = ovf('a.vmdk', 'b.iso').replace('ovf:diskId="d1"', `ovf:diskId="d1" ${iso}`)
  const entries = [
    { name: 'a.ovf', data: text },
    { name: 'a.vmdk', data: stream },
    { name: 'b.iso', data: Buffer.alloc(80 * 1024) },
  ]
  const from = await file('a.ova', tar(entries))
  deepEqual((await inspectDisk({ from })).map(({ member }) => member), ['a.vmdk'])
  await convertDisk({ from, to: join(dir, 'a.vhdx') })
})

archives('reads an unpacked export by its OVF', async ({ dir, file, bytes }) => {
  const entries = [{ name: 'a.ovf', data: ovf('a.vmdk') }, { name: 'a.vmdk', data: stream }]
  for (const { name, data } of entries) await file(name, data)
  const from = join(dir, 'a.ovf')
  same(await bytes(from), small)
  equal((await inspectDisk({ from }))[0]?.member, 'a.vmdk')
  await file('a.mf', manifest('SHA256', [{ name: 'a.vmdk', data: 'other' }]))
  await rejects(convertDisk({ from, to: join(dir, 'a.vhdx') }), /the manifest says/)
})

archives('refuses members that lead elsewhere', async ({ dir, file }) => {
  const to = join(dir, 'a.vhdx')
  const cases: [RegExp, string, string][] = [
    [/is a link/, 'disk.vmdk', '2'],
    [/is a link/, 'disk.vmdk', '1'],
    [/leads out of the archive/, '/etc/disk.vmdk', '0'],
    [/leads out of the archive/, 'x/../../disk.vmdk', '0'],
    [/leads out of the archive/, 'C:\\disk.vmdk', '0'],
    [/leads out of the archive/, '..\\disk.vmdk', '0'],
    [/is no plain file/, 'disk.vmdk', '3'],
  ]
  for (const [reason, name, type] of cases) {
    const from = await file('a.ova', tar([{ name: 'ok.vmdk', data: stream }, { name, type }]))
    await rejects(convertDisk({ from, to }), reason)
  }
  const twice = [{ name: 'a.vmdk', data: stream }, { name: 'a.vmdk', data: stream }]
  await rejects(convertDisk({ from: await file('a.ova', tar(twice)), to }), /two of its members/)
  const cut = tar([{ name: 'a.vmdk', data: stream }]).subarray(0, MB)
  await rejects(convertDisk({ from: await file('a.ova', cut), to }), /may be cut short \(at byte 0/)
  await rejects(convertDisk({ from: await file('a.ova', 'nothing'), to }), /as a tar does/)
  deepEqual(await fs.readdir(dir), ['a.ova'])
})

archives.run()

const inspects = suite<Context>('inspectDisk')
inspects.before.each(open)
inspects.after.each(close)

inspects('tells the firmware that a disk boots by', async ({ file }) => {
  const ESP = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b'
  const BIOS = '21686148-6449-6e6f-744e-656564454649'
  const LINUX = '0fc63daf-8483-4772-8e79-3d69d8477de4'
  const withCode = (data: Buffer) => {
    data.write('code')
    return data
  }
  const mbr = (type: number, active: number, code: string) => {
    const data = Buffer.alloc(MB)
    data.write(code)
    data.writeUInt16LE(0xaa55, 510)
    data[446] = active
    data[450] = type
    return data
  }
  const cases: [string, Buffer][] = [
    ['mbr bios', mbr(0x83, 0x80, 'code')],
    ['mbr bios', mbr(0x07, 0, 'code')],
    ['mbr bios', mbr(0x07, 0x80, '')],
    ['mbr none', mbr(0x83, 0, '')],
    ['mbr uefi', mbr(0xef, 0, '')],
    ['mbr both', mbr(0xef, 0, 'code')],
    ['gpt uefi', gptDisk(LINUX, ESP)],
    ['gpt uefi', withCode(gptDisk(ESP))],
    ['gpt bios', gptDisk(BIOS, LINUX)],
    ['gpt both', withCode(gptDisk(BIOS, ESP))],
    ['gpt none', gptDisk(LINUX)],
    ['none none', Buffer.alloc(MB)],
    ['none none', Buffer.alloc(100)],
  ]
  for (const [index, [expected, data]] of cases.entries()) {
    const [found] = await inspectDisk({ from: await file(`${index}.img`, data) })
    equal(`${found?.partitionTable} ${found?.boots}`, expected, `case ${index}`)
  }
  const [found] = await inspectDisk({ from: await file('a.img', gptDisk(BIOS, ESP)) })
  deepEqual(found?.partitions, [
    { offset: 2048 * 512, length: 1024 * 512, type: BIOS },
    { offset: 3072 * 512, length: 1024 * 512, type: ESP },
  ])
})

inspects.run()

const commands = suite<Context>('convert-disk command')
commands.before.each(open)
commands.after.each(close)

const root = join(import.meta.dirname as string, '..', '..')
const task = join(root, 'tasks', 'convert-disk.ts')
const bin = join(root, 'node_modules', '.bin')
const node = 'Deno' in globalThis ? join(bin, 'node') : process.execPath
const RUNTIMES = {
  zx: [node, join(root, 'node_modules', 'zx', 'build', 'cli.js')],
  node: [node],
  // npm installs the Deno of the system that it runs on
  ...(fs.existsSync(join(bin, process.platform === 'win32' ? 'deno.cmd' : 'deno')) &&
    { deno: [join(bin, 'deno'), 'run', '-A'] }),
}

function run([program, ...first]: string[], ...args: string[]) {
  const env = { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` }
  // what npm puts into .bin on Windows are scripts for cmd
  const shell = process.platform === 'win32' && program !== process.execPath
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) =>
    execFile(
      program as string,
      [...first, task, ...args],
      { env, shell },
      (error, stdout, stderr) => resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    )
  )
}

for (const [runtime, program] of Object.entries(RUNTIMES)) {
  commands(`converts and describes under ${runtime}`, async ({ file, bytes }) => {
    // more than a few grains, so that threads inflate them
    const data = disk(48 * MB)
    const from = await file('a.vmdk', vmdk(data, { compressed: true, atEnd: true }))
    const to = await file('a.vhdx')
    const done = await run(program, '--from', from, '--to', to, '--verify')
    equal(done.stderr, '')
    equal(done.code, 0)
    equal(JSON.parse(done.stdout).path, resolve(to))
    same(await bytes(to), data)
    const info = await run(program, '--info', '--from', to)
    equal(JSON.parse(info.stdout)[0].format, 'vhdx')
    const again = await run(program, '--from', from, '--to', to)
    equal(again.code, 1)
    equal(again.stdout, '')
    match(again.stderr, /the file is there/)
  })
}

commands('says what is missing', async ({ file }) => {
  const from = await file('a.vdi', vdi(small))
  const { code, stderr } = await run(RUNTIMES.node, '--from', from)
  equal(code, 1)
  match(stderr, /no target is named/)
})

commands('takes all disks, sizes with units, and formats by name', async ({ dir, file }) => {
  const entries = [{ name: 'a.vmdk', data: stream }, { name: 'b.vmdk', data: vmdk(small) }]
  const from = await file('a.ova', tar(entries))
  const to = join(dir, 'disks')
  const all = ['--from', from, '--to', to, '--disk', 'all', '--block-size', '4MB']
  const done = await run(RUNTIMES.node, ...all)
  equal(done.stderr, '')
  const results = JSON.parse(done.stdout)
  deepEqual(results.map(({ path }: { path: string }) => path), [
    join(to, 'a.vhdx'),
    join(to, 'b.vhdx'),
  ])
  equal(results[0].blockSize, 4 * MB)
  const image = await file('renamed.vmdk', vdi(small))
  const named = ['--from', image, '--to', join(dir, 'b.vhd'), '--from-format', 'vdi']
  equal((await run(RUNTIMES.node, ...named)).code, 0)
  for (const size of ['3MB', 'large', '-1', '1GB']) {
    const wrong = [
      '--from',
      from,
      '--to',
      join(dir, 'c.vhdx'),
      `--block-size=${size}`,
      '--disk',
      '0',
    ]
    const { code, stderr } = await run(RUNTIMES.node, ...wrong)
    equal(code, 1)
    match(stderr, /powers of two from 1 MB to 256 MB/)
  }
})

commands.run()
