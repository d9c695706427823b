/** A raw image: the disk byte by byte. What of it is all zeros is found by reading. */
import type { Bytes, Image, Writer, WriterOptions } from './image.ts'

export function openRaw(bytes: Bytes): Image {
  return {
    format: 'raw',
    variant: 'flat',
    virtualSize: bytes.size,
    sectorSize: 512,
    async *runs(from = 0) {
      if (from < bytes.size) {
        yield await Promise.resolve({ offset: from, length: bytes.size - from, bytes, at: from })
      }
    },
  }
}

export function writeRaw({ virtualSize }: WriterOptions): Writer {
  return {
    length: virtualSize,
    place: (offset, data) => [{ position: offset, data }],
    finish: () => Promise.resolve(),
  }
}
