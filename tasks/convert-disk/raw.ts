/** A raw image: the disk byte by byte. What is all zeros is no data, and is found by reading. */
import type { Bytes, Extent, Image, Writer, WriterOptions } from './image.ts'

const PIECE = 2 * 1024 ** 2

export function openRaw(bytes: Bytes): Image {
  return {
    format: 'raw',
    variant: 'flat',
    virtualSize: bytes.size,
    allocatedSize: bytes.size,
    async *extents(): AsyncGenerator<Extent> {
      for (let offset = 0; offset < bytes.size; offset += PIECE) {
        const length = Math.min(PIECE, bytes.size - offset)
        yield { offset, length, load: () => bytes.read(offset, length) }
      }
    },
  }
}

export async function writeRaw({ file, virtualSize }: WriterOptions): Promise<Writer> {
  await file.truncate(virtualSize)
  let allocated = 0
  return {
    allocated: () => allocated,
    write: async (offset, data) => {
      await file.write(data, 0, data.length, offset)
      allocated += data.length
    },
    finish: () => Promise.resolve(),
  }
}
