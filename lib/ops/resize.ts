import * as check from '../check';
import { MAX_SIDE, elements, run, type KernelOptions } from './call';

export interface ResizeOptions extends KernelOptions {
  height: number;
  width: number;
  toHeight: number;
  toWidth: number;
  /** Default 'bicubic' (a = -0.5). */
  filter?: 'bilinear' | 'bicubic';
}

/**
 * Resizes an 8-bit RGB picture, bit-equal to Pillow's `Image.resize`: horizontal pass first, the filter widens when shrinking.
 *
 * @param image (height, width, 3) row-major. Copied before this returns.
 * @returns (toHeight, toWidth, 3).
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await resize(Uint8Array.of(10, 20, 30), { height: 1, width: 1, toHeight: 1, toWidth: 2 });  // [10, 20, 30, 10, 20, 30]
 */
export async function resize(image: Uint8Array, options: ResizeOptions): Promise<Uint8Array> {
  const op = 'resize';
  check.options(op, options, ['height', 'width', 'toHeight', 'toWidth', 'filter', 'signal', 'device']);
  const [height, width, toHeight, toWidth] = (['height', 'width', 'toHeight', 'toWidth'] as const)
    .map((name) => check.integer(op, name, options?.[name], 1, MAX_SIDE)) as [number, number, number, number];
  const filter = check.oneOf(op, 'filter', options.filter ?? 'bicubic', ['bilinear', 'bicubic']);
  check.typedArray(op, 'image', image, 'Uint8Array', elements(op, 'image', height, width, 3), 'height*width*3');
  elements(op, 'the result', toHeight, toWidth, 3);
  return run(op, options, (ops, token) => ops.resize(image, height, width, toHeight, toWidth, filter, token));
}
