/** Words that hidden states are nearest to. */
import * as check from '../check';
import { fail } from '../errors';

const OP = 'nearestWords';

/**
 * The best tokens of rows of logits.
 *
 * A latent is the final hidden state of the row before it, so the logits of that row are those of the latent through the lm_head.
 *
 * @param logits [n, vocab].
 * @param count tokens per row, at most `vocab`.
 * @returns ids [n, count], best first; of equal ones the lower id first.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`; `ERR_RANGE` for a logit that is NaN.
 * @example nearestWords(Float32Array.of(0, 3, 2, 5, 5, 1), 3, 2)  // Int32Array [1, 2, 0, 1]
 */
export function nearestWords(logits: Float32Array, vocab: number, count: number): Int32Array {
  check.typedArray(OP, 'logits', logits, 'Float32Array');
  check.integer(OP, 'vocab', vocab, 1);
  check.integer(OP, 'count', count, 1, vocab);
  if (logits.length % vocab !== 0) fail('ERR_SHAPE', OP, `Expected logits to be rows of vocab = ${vocab} but received ${logits.length} elements`);
  const nearest = new Int32Array((logits.length / vocab) * count);
  for (let row = 0; row * vocab < logits.length; row++) nearest.set(bestOf(logits.subarray(row * vocab, (row + 1) * vocab), count, row), row * count);
  return nearest;
}

/** Insertion into a short sorted list: count is small beside the vocabulary. */
function bestOf(scores: Float32Array, count: number, row: number): number[] {
  const best: number[] = [];
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id]!;
    if (Number.isNaN(score)) fail('ERR_RANGE', OP, `Expected logits without NaN but received one at token ${id} of row ${row}`);
    if (best.length === count && score <= scores[best[count - 1]!]!) continue;
    let place = best.length;
    while (place > 0 && scores[best[place - 1]!]! < score) place--;
    best.splice(place, 0, id);
    best.length = Math.min(best.length, count);
  }
  return best;
}
