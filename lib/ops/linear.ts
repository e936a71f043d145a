import * as check from '../check';
import { elements, rowsOf, run, type KernelOptions } from './call';

export interface LinearOptions extends KernelOptions {
  /** Width of a row of x: K. */
  inputs: number;
  /** Width of a row of the result: N. */
  outputs: number;
}

/** A weight matrix (N, K) row-major: f32, or the bits of bf16 numbers in a Uint16Array. */
export type WeightMatrix = Float32Array | Uint16Array;

const MAX_WIDTH = 2 ** 31 - 1;

/**
 * Matrix product with a transposed weight: y = x weight^T + bias.
 *
 * @param x (M, inputs) row-major. Copied before this returns.
 * @param weight (outputs, inputs). Copied.
 * @param bias (outputs), or null.
 * @returns (M, outputs), float32; sums are f32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await linear(Float32Array.of(1, 2), Float32Array.of(3, 4), Float32Array.of(10), { inputs: 2, outputs: 1 });  // [21]
 */
export async function linear(x: Float32Array, weight: WeightMatrix, bias: Float32Array | null, options: LinearOptions): Promise<Float32Array> {
  const { rows, inputs, outputs } = checkLinear('linear', x, weight, options);
  if (bias !== null) check.typedArray('linear', 'bias', bias, 'Float32Array', outputs, 'outputs');
  elements('linear', 'the result', rows, outputs);
  return run('linear', options, (ops, token) => ops.linear(x, weight, bias, rows, outputs, inputs, token));
}

/**
 * Gradient of {@link linear}.
 *
 * @param dout (M, outputs) gradient of the loss with respect to the result.
 * @returns `dx` (M, inputs), `dw` (outputs, inputs) and `dbias` (outputs), all float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 */
export async function linearGrad(x: Float32Array, weight: WeightMatrix, dout: Float32Array, options: LinearOptions): Promise<{ dx: Float32Array; dw: Float32Array; dbias: Float32Array }> {
  const { rows, inputs, outputs } = checkLinear('linearGrad', x, weight, options);
  check.typedArray('linearGrad', 'dout', dout, 'Float32Array', elements('linearGrad', 'dout', rows, outputs), 'rows*outputs');
  return run('linearGrad', options, (ops, token) => ops.linearGrad(x, weight, dout, rows, outputs, inputs, token));
}

function checkLinear(op: string, x: Float32Array, weight: WeightMatrix, options: LinearOptions): { rows: number; inputs: number; outputs: number } {
  check.options(op, options, ['inputs', 'outputs', 'signal', 'device']);
  const inputs = check.integer(op, 'inputs', options?.inputs, 1, MAX_WIDTH);
  const outputs = check.integer(op, 'outputs', options.outputs, 1, MAX_WIDTH);
  check.typedArray(op, 'x', x, 'Float32Array');
  const kind = Object.prototype.toString.call(weight) === '[object Uint16Array]' ? 'Uint16Array' : 'Float32Array';
  check.typedArray(op, 'weight', weight, kind, elements(op, 'weight', outputs, inputs), 'outputs*inputs');
  return { rows: rowsOf(op, 'x', x.length, inputs, 'inputs'), inputs, outputs };
}
