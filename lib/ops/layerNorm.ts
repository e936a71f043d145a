import * as check from '../check';
import { run } from './call';
import { checkNorm, type NormOptions } from './rmsNorm';

/**
 * Layer normalisation of each row: y = weight * (x - mean) / sqrt(variance + eps) + bias, population variance.
 *
 * @param x (T, C) row-major. Copied before this returns.
 * @param weight (C). Copied.
 * @param bias (C). Copied.
 * @returns (T, C), float32; same input, same bits.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await layerNorm(Float32Array.of(1, 3), Float32Array.of(1, 1), Float32Array.of(0, 5));  // [-1, 6]
 * @see Ba, Kiros and Hinton, 2016 (1607.06450)
 */
export async function layerNorm(x: Float32Array, weight: Float32Array, bias: Float32Array, options: NormOptions = {}): Promise<Float32Array> {
  const eps = checkNorm('layerNorm', x, weight, options);
  check.typedArray('layerNorm', 'bias', bias, 'Float32Array', weight.length, 'channels');
  return run('layerNorm', options, (ops, token) => ops.layerNorm(x, weight, bias, eps, token));
}

/**
 * Gradient of {@link layerNorm}.
 *
 * @param dout (T, C) gradient of the loss with respect to the result.
 * @returns `dx` (T, C), `dweight` (C) and `dbias` (C), summed over the rows.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 */
export async function layerNormGrad(x: Float32Array, weight: Float32Array, bias: Float32Array, dout: Float32Array, options: NormOptions = {}): Promise<{ dx: Float32Array; dweight: Float32Array; dbias: Float32Array }> {
  const eps = checkNorm('layerNormGrad', x, weight, options);
  check.typedArray('layerNormGrad', 'bias', bias, 'Float32Array', weight.length, 'channels');
  check.typedArray('layerNormGrad', 'dout', dout, 'Float32Array', x.length, 'as many as x');
  return run('layerNormGrad', options, (ops, token) => ops.layerNormGrad(x, weight, bias, dout, eps, token));
}
