import * as check from '../check';
import { fail } from '../errors';
import type { NativeCrop } from '../native';
import { MAX_SIDE, elements } from './call';
import { runFloats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';
import { checkStd, IMAGE_MEAN, IMAGE_STD, perChannel } from './patchRows';

export interface CropPatchesOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  /** Of the whole picture. */
  height: number;
  width: number;
  /** Left, top, right, bottom in pixels, the last two outside: 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height. */
  box: readonly number[];
  /** Of the resized crop; a multiple of patch * merge, as toWidth is. */
  toHeight: number;
  toWidth: number;
  /** Side of a patch (default 14). */
  patch?: number;
  /** Side of the square of patches that are merged later (default 2); they follow each other in the result. */
  merge?: number;
  /** Frames per patch (default 2): the crop is repeated. */
  temporal?: number;
  /** Per channel, subtracted from pixels in [0, 1]; default: CLIP's. */
  mean?: readonly number[];
  /** Per channel, divided by; default: CLIP's. */
  std?: readonly number[];
}

const FIELDS = ['height', 'width', 'box', 'toHeight', 'toWidth', 'patch', 'merge', 'temporal', 'mean', 'std', 'output', 'signal', 'device'];

/**
 * Cuts a box out of a picture, resizes it (8-bit bilinear, bit-equal to Pillow's `Image.resize`), and gives it as normalised patch
 * rows, in one operation: what a vision tower takes to look at a window again.
 *
 * @param image (height, width, 3) 8-bit RGB, row-major. Copied before this returns.
 * @returns `rows` (toHeight/patch * toWidth/patch, 3 * temporal * patch * patch), float32, ordered as `patchRows` orders them, and
 * `pixels` (toHeight, toWidth, 3): the resized crop.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const options = { height: 1, width: 2, box: [1, 0, 2, 1], toHeight: 1, toWidth: 1, patch: 1, merge: 1, temporal: 1, mean: [0, 0, 0], std: [1, 1, 1] };
 * await cropPatches(Uint8Array.of(9, 9, 9, 0, 51, 255), options);  // { rows: [0, 0.2, 1], pixels: [0, 51, 255] }
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), SCF-VR
 */
export async function cropPatches<O extends OutputKind = 'array'>(image: Uint8Array, options: CropPatchesOptions<O>): Promise<{ rows: FloatsOf<O>; pixels: Uint8Array }> {
  const op = 'cropPatches';
  check.options(op, options, FIELDS);
  const [height, width] = (['height', 'width'] as const).map((name) => check.integer(op, name, options?.[name], 1, MAX_SIDE)) as [number, number];
  const patch = check.integer(op, 'patch', options.patch ?? 14, 1, 256);
  const merge = check.integer(op, 'merge', options.merge ?? 2, 1, 16);
  const temporal = check.integer(op, 'temporal', options.temporal ?? 2, 1, 16);
  const [toHeight, toWidth] = (['toHeight', 'toWidth'] as const).map((name) => {
    const side = check.integer(op, name, options[name], 1, MAX_SIDE);
    if (side % (patch * merge) !== 0) fail('ERR_SHAPE', op, `Expected ${name} to be a multiple of patch*merge = ${patch * merge} but received ${side}`);
    return side;
  }) as [number, number];
  check.typedArray(op, 'image', image, 'Uint8Array', elements(op, 'image', height, width, 3), 'height*width*3');
  elements(op, 'the result', toHeight, toWidth, 3, temporal);
  const crop: NativeCrop = {
    height, width, box: checkBox(op, options.box, height, width), toHeight, toWidth, patch, merge, temporal,
    mean: perChannel(op, 'mean', options.mean ?? IMAGE_MEAN), std: checkStd(op, options.std ?? IMAGE_STD),
  };
  const shapes = { rows: [(toHeight / patch) * (toWidth / patch), 3 * temporal * patch * patch] };
  return runFloats<O, 'rows', { rows: Float32Array; pixels: Uint8Array }>(op, options, shapes, (ops, into, token) => ops.cropPatches(image, crop, into, token));
}

function checkBox(op: string, box: readonly number[], height: number, width: number): Int32Array {
  if (!Array.isArray(box) || box.length !== 4) fail('ERR_ARGUMENT', op, `Expected box to be an array of 4 integers but received ${check.show(box)}`);
  const [x1, y1, x2, y2] = Array.from(box, (side) => check.integer(op, 'an entry of box', side, 0, MAX_SIDE)) as [number, number, number, number];
  if (x1 >= x2 || x2 > width || y1 >= y2 || y2 > height) {
    fail('ERR_RANGE', op, `Expected box to hold at least 1 pixel of the picture of width ${width} and height ${height} but received ${box.join(', ')}`);
  }
  return Int32Array.of(x1, y1, x2, y2);
}
