import * as check from '../check';
import { fail } from '../errors';
import { MAX_SIDE, elements, run, type KernelOptions } from './call';

/** Means and deviations of the CLIP preprocessing, which Qwen2-VL uses. */
export const IMAGE_MEAN: readonly number[] = Object.freeze([0.48145466, 0.4578275, 0.40821073]);
export const IMAGE_STD: readonly number[] = Object.freeze([0.26862954, 0.26130258, 0.27577711]);

export interface PatchRowsOptions extends KernelOptions {
  /** Pictures in time: 1 for an image. An odd last frame is doubled. */
  frames: number;
  /** A multiple of patch * merge, as width is. */
  height: number;
  width: number;
  /** Side of a patch (default 14). */
  patch?: number;
  /** Side of the square of patches that are merged later (default 2); they follow each other in the result. */
  merge?: number;
  /** Frames per patch (default 2). */
  temporal?: number;
  /** Per channel, subtracted from pixels in [0, 1]; default: CLIP's. */
  mean?: readonly number[];
  /** Per channel, divided by; default: CLIP's. */
  std?: readonly number[];
}

const FIELDS = ['frames', 'height', 'width', 'patch', 'merge', 'temporal', 'mean', 'std', 'signal', 'device'];

/**
 * Normalised patch rows of a picture, as the vision tower takes them: time, then merge blocks row-major, then the patches of a
 * block.
 *
 * @param pixels (frames, height, width, 3) 8-bit RGB. Copied before this returns.
 * @returns (ceil(frames / temporal) * height/patch * width/patch, 3 * temporal * patch * patch), float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await patchRows(new Uint8Array(28 * 28 * 3), { frames: 1, height: 28, width: 28 });  // 4 rows of 1176
 */
export async function patchRows(pixels: Uint8Array, options: PatchRowsOptions): Promise<Float32Array> {
  const op = 'patchRows';
  check.options(op, options, FIELDS);
  const frames = check.integer(op, 'frames', options?.frames, 1, MAX_SIDE);
  const patch = check.integer(op, 'patch', options.patch ?? 14, 1, 1024);
  const merge = check.integer(op, 'merge', options.merge ?? 2, 1, 64);
  const temporal = check.integer(op, 'temporal', options.temporal ?? 2, 1, 64);
  const [height, width] = (['height', 'width'] as const).map((name) => {
    const side = check.integer(op, name, options[name], 1, MAX_SIDE);
    if (side % (patch * merge) !== 0) fail('ERR_SHAPE', op, `Expected ${name} to be a multiple of patch*merge = ${patch * merge} but received ${side}`);
    return side;
  }) as [number, number];
  check.typedArray(op, 'pixels', pixels, 'Uint8Array', elements(op, 'pixels', frames, height, width, 3), 'frames*height*width*3');
  const mean = perChannel(op, 'mean', options.mean ?? IMAGE_MEAN);
  const std = checkStd(op, options.std ?? IMAGE_STD);
  return run(op, options, (ops, token) => ops.patchRows(pixels, frames, height, width, patch, merge, temporal, mean, std, token));
}

/** Three positive numbers. */
export function checkStd(op: string, values: readonly number[]): Float32Array {
  const std = perChannel(op, 'std', values);
  if (std.some((value) => value <= 0)) fail('ERR_RANGE', op, `Expected std to be above 0 but received ${std.join(', ')}`);
  return std;
}

/** Three numbers. */
export function perChannel(op: string, name: string, values: readonly number[]): Float32Array {
  if (!Array.isArray(values) || values.length !== 3) fail('ERR_ARGUMENT', op, `Expected ${name} to be an array of 3 numbers but received ${check.show(values)}`);
  return Float32Array.from(values, (value) => check.number(op, `an entry of ${name}`, value));
}
