import * as check from '../check';
import { rowsOf, run, widthOf, type KernelOptions } from './call';

export interface NormOptions extends KernelOptions {
  /** Added to the mean square (default 1e-6). */
  eps?: number;
}

/**
 * Root-mean-square normalisation of each row: y = weight * x / sqrt(mean(x^2) + eps).
 *
 * @param x (T, C) row-major. Copied before this returns.
 * @param weight (C). Copied.
 * @returns (T, C), float32. Sums are f32 in a fixed order: same input, same bits. NaN and infinity pass through.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await rmsNorm(Float32Array.of(3, 4), Float32Array.of(1, 1));  // [0.8485, 1.1314]
 * @see Zhang and Sennrich, 2019 (1910.07467), equation 4
 */
export async function rmsNorm(x: Float32Array, weight: Float32Array, options: NormOptions = {}): Promise<Float32Array> {
  const eps = checkNorm('rmsNorm', x, weight, options);
  return run('rmsNorm', options, (ops, token) => ops.rmsNorm(x, weight, eps, token));
}

/**
 * Gradient of {@link rmsNorm}.
 *
 * @param dout (T, C) gradient of the loss with respect to the result.
 * @returns `dx` (T, C) and `dweight` (C), summed over the rows.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 */
export async function rmsNormGrad(x: Float32Array, weight: Float32Array, dout: Float32Array, options: NormOptions = {}): Promise<{ dx: Float32Array; dweight: Float32Array }> {
  const eps = checkNorm('rmsNormGrad', x, weight, options);
  check.typedArray('rmsNormGrad', 'dout', dout, 'Float32Array', x.length, 'as many as x');
  return run('rmsNormGrad', options, (ops, token) => ops.rmsNormGrad(x, weight, dout, eps, token));
}

/** Checks x, weight and options of a norm; returns eps. */
export function checkNorm(op: string, x: Float32Array, weight: Float32Array, options: NormOptions): number {
  check.options(op, options, ['eps', 'signal', 'device']);
  check.typedArray(op, 'weight', weight, 'Float32Array');
  check.typedArray(op, 'x', x, 'Float32Array');
  rowsOf(op, 'x', x.length, widthOf(op, 'weight', weight), 'channels');
  return check.number(op, 'eps', options.eps ?? 1e-6, 0);
}
