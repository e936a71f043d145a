import * as check from '../check';
import { fail } from '../errors';
import { run, type KernelOptions } from './call';

/** Target of a row that has no loss and no gradient. */
export const IGNORED_TARGET = -100;

export interface CrossEntropyOptions extends KernelOptions {
  /** Multiplies the gradient, e.g. 1 / number of targets for a mean loss (default 1). */
  scale?: number;
}

/**
 * Cross entropy of each row, -log softmax(logits)[target], with its gradient.
 *
 * @param logits (R, V) row-major. Copied before this returns.
 * @param targets (R) class of each row, or -100 for none. Copied.
 * @returns `losses` (R), 0 where ignored; `argmax` (R), ties to the lowest; `dlogits` (R, V) = scale * (softmax - one-hot).
 * @throws {LibError} `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await crossEntropy(Float32Array.of(0, 0), Int32Array.of(1));  // { losses: [0.6931], argmax: [0], dlogits: [0.5, -0.5] }
 */
export async function crossEntropy(logits: Float32Array, targets: Int32Array, options: CrossEntropyOptions = {}): Promise<{ losses: Float32Array; argmax: Int32Array; dlogits: Float32Array }> {
  const op = 'crossEntropy';
  check.options(op, options, ['scale', 'signal', 'device']);
  check.typedArray(op, 'logits', logits, 'Float32Array');
  check.typedArray(op, 'targets', targets, 'Int32Array');
  const rows = targets.length;
  if (rows === 0 ? logits.length !== 0 : logits.length === 0 || logits.length % rows !== 0) {
    fail('ERR_SHAPE', op, `Expected logits to have a multiple of rows = ${rows} elements but received ${logits.length}`);
  }
  const classes = rows === 0 ? 0 : logits.length / rows;
  for (let row = 0; row < rows; row++) {
    const target = targets[row]!;
    if (target !== IGNORED_TARGET && (target < 0 || target >= classes)) {
      fail('ERR_RANGE', op, `Expected target ${row} to be ${IGNORED_TARGET} or an integer from 0 to ${classes - 1} but received ${target}`);
    }
  }
  const scale = check.number(op, 'scale', options.scale ?? 1);
  return run(op, options, (ops, token) => ops.crossEntropy(logits, targets, scale, token));
}
