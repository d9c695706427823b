/** The formats that are known, and how a file of each is told. */
import { extname } from 'node:path'
import { type Bytes, type Format, type Image, ImageError, printable } from './image.ts'
import { openRaw } from './raw.ts'
import { isVdi, openVdi } from './vdi.ts'
import { isVhd, openVhd } from './vhd.ts'
import { isVhdx, openVhdx } from './vhdx.ts'
import { isVmdk, type OpenSibling, openVmdk } from './vmdk.ts'

/** What a file begins or ends with, and what its name says when it is whole. */
const FORMATS = [
  { format: 'vdi', extensions: ['.vdi'], is: isVdi, open: openVdi },
  { format: 'vhdx', extensions: ['.vhdx', '.avhdx'], is: isVhdx, open: openVhdx },
  { format: 'vmdk', extensions: ['.vmdk'], is: isVmdk, open: openVmdk },
  { format: 'vhd', extensions: ['.vhd', '.avhd', '.vpc'], is: isVhd, open: openVhd },
] as const
const RAW = ['.img', '.raw', '.dd']
/** Known here, and not read. */
const OTHERS = ['.ova', '.ovf', '.qcow2', '.qcow', '.qed', '.hdd', '.iso']

/**
 * Opens an image as what its content says. A name that promises something else means damage, or a file
 * that somebody renamed: which of both only a person knows, who then names the `format`.
 */
export async function openImage(
  bytes: Bytes,
  sibling: OpenSibling,
  format?: Format,
): Promise<Image> {
  if (bytes.size === 0) throw new ImageError(bytes, 0, 'it is empty')
  if (format === 'raw') return openRaw(bytes)
  const wanted = FORMATS.find((known) => known.format === format)
  if (wanted) {
    if (await wanted.is(bytes)) return await wanted.open(bytes, sibling)
    throw new ImageError(bytes, 0, `it has no signature of a ${wanted.format.toUpperCase()}`)
  }
  const extension = extname(bytes.name).toLowerCase()
  const named = RAW.includes(extension)
    ? 'raw'
    : FORMATS.find(({ extensions }) => (extensions as readonly string[]).includes(extension))
      ?.format
  for (const known of FORMATS) {
    if (!await known.is(bytes)) continue
    if (named === undefined || named === known.format) return await known.open(bytes, sibling)
    throw new ImageError(
      bytes,
      0,
      `it is a ${known.format.toUpperCase()} by its content and none by its name. ` +
        `Rename it, or run again with --from-format ${known.format}`,
    )
  }
  if (named !== undefined && named !== 'raw') {
    throw new ImageError(
      bytes,
      0,
      `it has no signature of a ${named.toUpperCase()}, so it is damaged or of another format. ` +
        'If it is a raw image, run again with --from-format raw',
    )
  }
  const start = (await bytes.read(0, Math.min(bytes.size, 4))).toString('latin1')
  if (OTHERS.includes(extension) || start === 'QFI\xfb') {
    throw new ImageError(
      bytes,
      0,
      'its format is none of VDI, VMDK, VHD, VHDX and raw. ' +
        `Run: qemu-img convert -O vdi "${printable(bytes.name)}" whole.vdi, and convert that`,
    )
  }
  return openRaw(bytes)
}
