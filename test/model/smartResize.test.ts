/** smart_resize against Python's, at every half-way side and on drawn sizes and bounds; resizing against Pillow's bytes. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { resizeImage, smartResize } from '../../lib/model/image';
import { noise } from '../train/tinyModel';

interface Expected {
  bounds: [number, number][];
  most: number;
  step: number;
  /** By bounds, then by half-way side. */
  halves: string[][];
  sides: number[];
  chunk: number;
  drawn: string[];
  resized: { sizes: [number, number, number, number]; pixels: string }[];
}
const expected = JSON.parse(readFileSync(join(__dirname, '../fixtures/images.json'), 'utf8')) as Expected;
const HALVES = Array.from({ length: Math.ceil((expected.most - 13) / 28) }, (_, n) => 14 + 28 * n);

/** Height and width, 0 and 0 where the sides differ by too large a factor. */
function size(height: number, width: number, minPixels: number, maxPixels: number): [number, number] {
  try {
    const { height: high, width: wide } = smartResize(height, width, { factor: 28, minPixels, maxPixels });
    return [high, wide];
  } catch (error) {
    expect((error as { code?: string }).code).toBe('ERR_IMAGE');
    return [0, 0];
  }
}

const digest = (numbers: Int32Array): string => createHash('sha256').update(numbers).digest('hex');

/** Sizes of a half-way side by other sides, of all rests by 28, as height and as width. */
function sizesOf(half: number, minPixels: number, maxPixels: number): Int32Array {
  const numbers: number[] = [];
  for (let other = 1; other <= expected.most; other += expected.step) numbers.push(...size(half, other, minPixels, maxPixels), ...size(other, half, minPixels, maxPixels));
  return Int32Array.from(numbers);
}

test('the half-way sides up to 4096 are 146', () => {
  expect([HALVES.length, HALVES[0], HALVES.at(-1)]).toEqual([146, 14, 4074]);
});

test.each(expected.bounds)('every half-way side, from %i to %i pixels', (minPixels, maxPixels) => {
  const hashes = expected.halves[expected.bounds.findIndex((bounds) => bounds[1] === maxPixels)]!;
  const differs = HALVES.filter((half, n) => digest(sizesOf(half, minPixels, maxPixels)) !== hashes[n]);
  expect(differs).toEqual([]);
});

test('half-way sides round to the even multiple, in whole numbers', () => {
  for (const half of HALVES.slice(1)) {
    const below = (half - 14) / 28;
    const even = 28 * (below % 2 === 0 ? below : below + 1);
    for (const other of [28, 1232, 4060]) {
      expect(size(half, other, 1, 2 ** 31)).toEqual(half * 200 < other || other * 200 < half ? [0, 0] : [even, other]);
      expect(size(other, half, 1, 2 ** 31)).toEqual(half * 200 < other || other * 200 < half ? [0, 0] : [other, even]);
    }
  }
});

test('drawn sizes and bounds', () => {
  let state = 1;
  const below = (bound: number): number => {
    state = (state * 48271) % 2147483647;
    return state % bound;
  };
  const { sides, chunk } = expected;
  const differs = expected.drawn.map((hash, n) => {
    const numbers = new Int32Array(2 * chunk);
    for (let i = 0; i < chunk; i++) {
      const height = 1 + below(sides[below(sides.length)]!);
      const width = 1 + below(sides[below(sides.length)]!);
      const least = 1 + below(200_000);
      numbers.set(size(height, width, least, least + below(4_000_000)), 2 * i);
    }
    return digest(numbers) === hash ? -1 : n;
  }).filter((n) => n >= 0);
  expect(expected.drawn).toHaveLength(40);
  expect(differs).toEqual([]);
});

test.each(expected.resized.map(({ sizes, pixels }, n) => [...sizes, pixels, n] as const))('%i x %i to %i x %i is bit-equal to Pillow', async (height, width, toHeight, toWidth, pixels, n) => {
  const made = await resizeImage({ pixels: noise(n + 1, 3 * height * width), height, width }, { height: toHeight, width: toWidth });
  expect(Buffer.compare(made.pixels, Buffer.from(pixels, 'base64'))).toBe(0);
});
