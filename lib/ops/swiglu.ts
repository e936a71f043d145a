import * as check from '../check';
import { run, type KernelOptions } from './call';

/**
 * Gated activation, element by element: silu(gate) * up, silu(x) = x / (1 + exp(-x)).
 *
 * @param gate any shape. Copied before this returns.
 * @param up as many elements. Copied.
 * @returns as many elements, float32.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`.
 * @example await swiglu(Float32Array.of(0, 1), Float32Array.of(5, 2));  // [0, 1.4621]
 * @see Shazeer, 2020 (2002.05202)
 */
export async function swiglu(gate: Float32Array, up: Float32Array, options: KernelOptions = {}): Promise<Float32Array> {
  checkSwiglu('swiglu', gate, up, options);
  return run('swiglu', options, (ops, token) => ops.swiglu(gate, up, token));
}

/**
 * Gradient of {@link swiglu}.
 *
 * @param dout gradient of the loss with respect to the result.
 * @returns gradients with respect to `gate` and `up`.
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`.
 */
export async function swigluGrad(gate: Float32Array, up: Float32Array, dout: Float32Array, options: KernelOptions = {}): Promise<{ dgate: Float32Array; dup: Float32Array }> {
  checkSwiglu('swigluGrad', gate, up, options);
  check.typedArray('swigluGrad', 'dout', dout, 'Float32Array', gate.length, 'as many as gate');
  return run('swigluGrad', options, (ops, token) => ops.swigluGrad(gate, up, dout, token));
}

function checkSwiglu(op: string, gate: Float32Array, up: Float32Array, options: KernelOptions): void {
  check.options(op, options, ['signal', 'device']);
  check.typedArray(op, 'gate', gate, 'Float32Array');
  check.typedArray(op, 'up', up, 'Float32Array', gate.length, 'as many as gate');
}
