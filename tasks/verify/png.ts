/** The screen of a VM as a PNG. */
import { crc32, deflateSync, inflateSync } from 'node:zlib'

/**
 * An image of Hyper-V as PNG (RFC 2083).
 *
 * @param data 16 bits a pixel, little endian, 5 of red, 6 of green and 5 of blue, from the top left on, as
 * GetVirtualSystemThumbnailImage gives it (learn.microsoft.com/windows/win32/hyperv_v2; that it is little
 * endian is an assumption)
 */
export function png(data: Uint8Array, width: number, height: number): Uint8Array {
  // each row begins with its filter: none
  const rows = Buffer.alloc((width * 3 + 1) * height)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = (y * width + x) * 2
      const pixel = (data[at] ?? 0) | (data[at + 1] ?? 0) << 8
      const to = y * (width * 3 + 1) + 1 + x * 3
      rows[to] = scale(pixel >> 11, 31)
      rows[to + 1] = scale((pixel >> 5) & 63, 63)
      rows[to + 2] = scale(pixel & 31, 31)
    }
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 2], 8) // 8 bits each of red, green and blue
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

/** The pixels of a PNG of {@link png}, 8 bits each of red, green and blue. */
export function rgb(file: Uint8Array): { width: number; height: number; data: Uint8Array } {
  const bytes = Buffer.from(file)
  const [width, height] = [bytes.readUInt32BE(16), bytes.readUInt32BE(20)]
  const length = bytes.readUInt32BE(33)
  const rows = inflateSync(bytes.subarray(41, 41 + length))
  const data = Buffer.alloc(width * height * 3)
  for (let y = 0; y < height; y++) {
    rows.copy(data, y * width * 3, y * (width * 3 + 1) + 1, (y + 1) * (width * 3 + 1))
  }
  return { width, height, data }
}

/** Whether all pixels are one, as they are of a screen that is black. */
export function uniform(data: Uint8Array): boolean {
  return data.every((byte, index) => byte === data[index % 2])
}

const scale = (value: number, most: number) => Math.round(value * 255 / most)

function chunk(type: string, data: Uint8Array): Uint8Array {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data])
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)]
  length.writeUInt32BE(data.length)
  sum.writeUInt32BE(crc32(body))
  return Buffer.concat([length, body, sum])
}
