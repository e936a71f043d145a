import * as check from '../check';
import { run, type KernelOptions } from './call';

/** x * sigmoid(1.702 x) | x * Phi(x), with the error function | x * sigmoid(x). */
export type ActivationKind = 'quick_gelu' | 'gelu' | 'silu';

const KINDS: readonly ActivationKind[] = ['quick_gelu', 'gelu', 'silu'];

/**
 * Activation function, element by element.
 *
 * @param kind which; see {@link ActivationKind}.
 * @param x any shape. Copied before this returns.
 * @returns as many elements, float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`.
 * @example await activation('silu', Float32Array.of(0, 1));  // [0, 0.7311]
 * @see Hendrycks and Gimpel, 2016 (1606.08415)
 */
export async function activation(kind: ActivationKind, x: Float32Array, options: KernelOptions = {}): Promise<Float32Array> {
  checkActivation('activation', kind, x, options);
  return run('activation', options, (ops, token) => ops.activation(kind, x, token));
}

/**
 * Gradient of {@link activation}.
 *
 * @param dout gradient of the loss with respect to the result.
 * @returns gradient with respect to `x`.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`.
 */
export async function activationGrad(kind: ActivationKind, x: Float32Array, dout: Float32Array, options: KernelOptions = {}): Promise<Float32Array> {
  checkActivation('activationGrad', kind, x, options);
  check.typedArray('activationGrad', 'dout', dout, 'Float32Array', x.length, 'as many as x');
  return run('activationGrad', options, (ops, token) => ops.activationGrad(kind, x, dout, token));
}

function checkActivation(op: string, kind: ActivationKind, x: Float32Array, options: KernelOptions): void {
  check.options(op, options, ['signal', 'device']);
  check.oneOf(op, 'kind', kind, KINDS);
  check.typedArray(op, 'x', x, 'Float32Array');
}
