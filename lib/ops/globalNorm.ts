import * as check from '../check';
import { run, type KernelOptions } from './call';
import { checkDtype, gradient, type Gradient } from './gradients';

export interface GlobalNormOptions extends KernelOptions {
  /** What the Uint16Arrays hold, if there are any: 'f16' or 'bf16'. */
  dtype?: 'f32' | 'f16' | 'bf16';
}

const MAX_TENSORS = 2 ** 20;

/**
 * L2 norm of many tensors taken together, as gradient clipping needs it: sqrt of the sum of the squares of all elements. One launch for all
 * of them on CUDA.
 *
 * @param tensors of any lengths: f32, or 16-bit floats as Uint16Array, mixed at will. Arrays are copied before this returns; tensors are shared.
 * @returns `norm`, summed in float64 in a fixed order: the same on every run of a device. 0 for no elements. NaN and infinity pass through.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_BACKEND_UNAVAILABLE`.
 * @example
 * const { norm } = await globalNorm([Float32Array.of(3), Float32Array.of(0, 4)]);  // 5
 * const factor = Math.min(1, 1 / (norm + 1e-6));                                   // what clipping to 1 multiplies by
 * @see Pascanu, Mikolov and Bengio, 2013 (1211.5063), algorithm 1
 */
export async function globalNorm(tensors: readonly Gradient[], options: GlobalNormOptions = {}): Promise<{ norm: number }> {
  const op = 'globalNorm';
  check.options(op, options, ['dtype', 'signal', 'device']);
  const list = check.array(op, 'tensors', tensors);
  check.integer(op, 'the number of tensors', list.length, 0, MAX_TENSORS);
  checkDtype(op, options.dtype);
  // Array.from: holes are undefined, not skipped.
  const given = Array.from(list, (tensor, i) => gradient(op, `tensor ${i}`, tensor, options.dtype));
  const halves = given.find(({ dtype }) => dtype !== 'f32')?.dtype ?? 'f32';
  const norm = await run(op, options, (ops, token) => ops.globalNorm(given.map(({ native }) => native), halves, token));
  return { norm };
}
