/** Image files that lie or explode: an `ERR_IMAGE` or a picture, in bounded memory and time. */
import fc from 'fast-check';
import { deflateSync } from 'node:zlib';
import sharp from 'sharp';
import { decodeImage } from '../../lib/model/image';

const MB = 2 ** 20;
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});
function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data]);
  let crc = 0xffffffff;
  for (const byte of body) crc = CRC[(crc ^ byte) & 255]! ^ (crc >>> 8);
  const length = Buffer.alloc(4), end = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  end.writeUInt32BE((crc ^ 0xffffffff) >>> 0);
  return Buffer.concat([length, body, end]);
}
function png(width: number, height: number, ...more: Buffer[]): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 0, 0, 0, 0], 8);
  return Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), chunk('IHDR', head), ...more, chunk('IEND', Buffer.alloc(0))]);
}
const zeros = (bytes: number): Buffer => deflateSync(Buffer.alloc(bytes), { level: 9 });

/** A TIFF of these entries: [tag, type 3 (16 bits) or 4 (32 bits), value]. */
function tiff(entries: readonly (readonly [number, number, number])[]): Buffer {
  const file = Buffer.alloc(8 + 2 + 12 * entries.length + 4 + 64);
  file.write('II*\0', 'latin1');
  file.writeUInt32LE(8, 4);
  file.writeUInt16LE(entries.length, 8);
  entries.forEach(([tag, type, value], i) => {
    file.writeUInt16LE(tag, 10 + 12 * i);
    file.writeUInt16LE(type, 12 + 12 * i);
    file.writeUInt32LE(1, 14 + 12 * i);
    file.writeUInt32LE(value >>> 0, 18 + 12 * i);
  });
  return file;
}
const grey = (width: number, height: number, ...more: (readonly [number, number, number])[]): Buffer =>
  tiff([[256, 4, width], [257, 4, height], [258, 3, 8], [259, 3, 1], [262, 3, 1], ...more].sort((a, b) => a[0]! - b[0]!) as [number, number, number][]);

/** What came of it, and how much memory the process took for it. */
async function decoded(bytes: Buffer, limits?: { maxInputPixels: number }): Promise<{ outcome: string; megabytes: number; seconds: number }> {
  const before = process.memoryUsage().rss, started = performance.now();
  let peak = before;
  const timer = setInterval(() => { peak = Math.max(peak, process.memoryUsage().rss); }, 5);
  try {
    const outcome = await decodeImage(bytes, limits).then(({ height, width }) => `${width}x${height}`, (error: { name: string; code?: string }) => `${error.name} ${error.code}`);
    return { outcome, megabytes: (Math.max(peak, process.memoryUsage().rss) - before) / MB, seconds: (performance.now() - started) / 1000 };
  } finally {
    clearInterval(timer);
  }
}
beforeAll(async () => { await decodeImage(png(1, 1, chunk('IDAT', zeros(2)))); });   // what the decoder takes once

test.each<[string, () => Buffer]>([
  ['a PNG of 20,000 x 20,000 pixels in 400 kB', () => png(20_000, 20_000, chunk('IDAT', zeros(20_001 * 1000)))],
  ['a PNG of 2^31 - 1 pixels a side', () => png(2 ** 31 - 1, 2 ** 31 - 1, chunk('IDAT', zeros(100)))],
  ['a TIFF of 2^31 pixels a side', () => grey(2 ** 31 - 1, 2 ** 31 - 1, [273, 4, 100], [278, 4, 2 ** 31 - 1], [279, 4, 8])],
  ['a TIFF whose pixels lie outside', () => grey(100, 100, [273, 4, 2 ** 31], [278, 4, 100], [279, 4, 10_000])],
  ['a TIFF whose strip lies about its length', () => grey(100, 100, [273, 4, 100], [278, 4, 100], [279, 4, 2 ** 32 - 1])],
  ['a TIFF of ten pixels in a tile of a gigabyte', () => grey(10, 10, [322, 4, 32_768], [323, 4, 32_768], [324, 4, 100], [325, 4, 64])],
  ['a PNG cut short', () => png(64, 64, chunk('IDAT', zeros(65 * 64))).subarray(0, 60)],
])('%s is refused', async (_, make) => {
  const { outcome, megabytes, seconds } = await decoded(make());
  expect(outcome).toBe('LibError ERR_IMAGE');
  expect(megabytes).toBeLessThan(100);
  expect(seconds).toBeLessThan(10);
});

test('a comment that unpacks to 300 MB costs a picture little', async () => {
  const bomb = chunk('zTXt', Buffer.concat([Buffer.from('k\0\0', 'latin1'), zeros(300 * MB)]));
  const { megabytes, seconds } = await decoded(png(4, 4, bomb, chunk('IDAT', zeros(20))));
  expect(megabytes).toBeLessThan(150);
  expect(seconds).toBeLessThan(10);
});

test('a GIF of 100,000 frames gives the first', async () => {
  const head = Buffer.from([0x47, 0x49, 0x46, 0x38, 0x39, 0x61, 1, 0, 1, 0, 0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
  const frame = Buffer.from([0x21, 0xf9, 4, 0, 0, 0, 0, 0, 0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0]);
  const { outcome, megabytes, seconds } = await decoded(Buffer.concat([head, ...Array<Buffer>(100_000).fill(frame), Buffer.from([0x3b])]));
  expect(['1x1', 'LibError ERR_IMAGE']).toContain(outcome);
  expect(megabytes).toBeLessThan(300);
  expect(seconds).toBeLessThan(20);
});

test('the limit counts pixels to the last one', async () => {
  const bytes = await sharp({ create: { width: 64, height: 640, channels: 3, background: '#123' } }).webp({ loop: 0 }).toBuffer();
  expect((await decoded(bytes, { maxInputPixels: 64 * 640 })).outcome).toBe('64x640');
  expect((await decoded(bytes, { maxInputPixels: 64 * 640 - 1 })).outcome).toBe('LibError ERR_IMAGE');
});

describe.each(['png', 'jpeg', 'webp', 'gif', 'tiff', 'avif'] as const)('%s', (format) => {
  test('with bytes changed is a picture or refused', async () => {
    const noise = Buffer.from(Array.from({ length: 24 * 17 * 3 }, (_, i) => (i * 7919) % 251));
    const bytes = await sharp(noise, { raw: { width: 24, height: 17, channels: 3 } }).toFormat(format).toBuffer();
    expect((await decoded(bytes)).outcome).toBe('24x17');
    await fc.assert(fc.asyncProperty(fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 4 }), async (changes) => {
      const bad = Buffer.from(bytes);
      for (const [at, value] of changes) bad[at] = value;
      const { outcome, seconds } = await decoded(bad, { maxInputPixels: 4_000_000 });
      expect(outcome).toMatch(/^(\d+x\d+|LibError ERR_IMAGE)$/);
      expect(seconds).toBeLessThan(20);
    }), { numRuns: 80, seed: 1, interruptAfterTimeLimit: 8000 });
  }, 60_000);
});
