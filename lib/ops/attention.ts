import * as check from '../check';
import { fail } from '../errors';
import type { NativeAttentionInput } from '../native';
import { elements, run, type KernelOptions } from './call';

export interface AttentionOptions extends KernelOptions {
  heads: number;
  /** Divides heads; query heads h*g .. h*g+g-1 share key/value head h. Default: heads. */
  kvHeads?: number;
  headDim: number;
  /** Rows of q of sequence b are cuQ[b] .. cuQ[b+1]; a sequence may have none. */
  cuQ: Int32Array;
  /** Rows of k and v of sequence b. */
  cuK: Int32Array;
  /** The last query row of a sequence sees all its keys, the row before one less, and so on (default true); false: every row sees all. */
  causal?: boolean;
}

const FIELDS = ['heads', 'kvHeads', 'headDim', 'cuQ', 'cuK', 'causal', 'signal', 'device'];

/**
 * Ragged softmax attention of many sequences at once, scaled by 1/sqrt(headDim). No matrix of scores is formed.
 *
 * @param q (Tq, heads, headDim) packed rows of all sequences. Copied before this returns.
 * @param k (Tk, kvHeads, headDim). Copied.
 * @param v (Tk, kvHeads, headDim). Copied.
 * @returns `out` (Tq, heads, headDim), and `lse` (Tq, heads): the natural log-sum-exp of the scaled scores.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example
 * const one = Int32Array.of(0, 1);
 * await attention(Float32Array.of(1), Float32Array.of(2), Float32Array.of(7), { heads: 1, headDim: 1, cuQ: one, cuK: one });
 * // { out: [7], lse: [2] }
 * @see Dao et al., 2022 (2205.14135); Ainslie et al., 2023 (2305.13245)
 */
export async function attention(q: Float32Array, k: Float32Array, v: Float32Array, options: AttentionOptions): Promise<{ out: Float32Array; lse: Float32Array }> {
  const input = checkAttention('attention', q, k, v, options);
  return run('attention', options, (ops, token) => ops.attention(input, token));
}

/**
 * Gradient of {@link attention}, from the log-sum-exp of each row.
 *
 * @param dout (Tq, heads, headDim) gradient of the loss with respect to `out`.
 * @returns gradients with respect to q, k and v.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 */
export async function attentionGrad(q: Float32Array, k: Float32Array, v: Float32Array, dout: Float32Array, options: AttentionOptions): Promise<{ dq: Float32Array; dk: Float32Array; dv: Float32Array }> {
  const input = checkAttention('attentionGrad', q, k, v, options);
  check.typedArray('attentionGrad', 'dout', dout, 'Float32Array', q.length, 'as many as q');
  return run('attentionGrad', options, (ops, token) => ops.attentionGrad(input, dout, token));
}

export interface AttentionLayout extends Pick<NativeAttentionInput, 'cuQ' | 'cuK' | 'heads' | 'kvHeads' | 'headDim' | 'causal'> {
  querySize: number;
  keySize: number;
}

/** Checks the options that say where the sequences lie, and how many elements that makes. */
export function attentionLayout(op: string, options: AttentionOptions, fields: readonly string[]): AttentionLayout {
  check.options(op, options, fields);
  const heads = check.integer(op, 'heads', options?.heads, 1, 65536);
  const kvHeads = check.integer(op, 'kvHeads', options.kvHeads === undefined ? heads : options.kvHeads, 1, heads);
  if (heads % kvHeads !== 0) fail('ERR_RANGE', op, `Expected kvHeads to divide heads = ${heads} but received ${kvHeads}`);
  const headDim = check.integer(op, 'headDim', options.headDim, 1, 65536);
  const causal = check.boolean(op, 'causal', options.causal === undefined ? true : options.causal);
  const cuQ = check.typedArray(op, 'cuQ', options.cuQ, 'Int32Array');
  const cuK = check.typedArray(op, 'cuK', options.cuK, 'Int32Array');
  const sequences = check.offsets(op, 'cuQ', cuQ, cuQ.at(-1) ?? 0);
  if (check.offsets(op, 'cuK', cuK, cuK.at(-1) ?? 0) !== sequences) {
    fail('ERR_SHAPE', op, `Expected cuK to have as many elements as cuQ = ${cuQ.length} but received ${cuK.length}`);
  }
  for (let b = 0; b < sequences; b++) {
    const queries = cuQ[b + 1]! - cuQ[b]!;
    const keys = cuK[b + 1]! - cuK[b]!;
    const least = causal ? queries : Math.min(queries, 1);
    if (keys < least) fail('ERR_RANGE', op, `Expected sequence ${b} to have at least ${least} keys for its ${queries} query rows but received ${keys}`);
  }
  return { cuQ, cuK, heads, kvHeads, headDim, causal, querySize: elements(op, 'q', cuQ.at(-1)!, heads, headDim), keySize: elements(op, 'k', cuK.at(-1)!, kvHeads, headDim) };
}

function checkAttention(op: string, q: Float32Array, k: Float32Array, v: Float32Array, options: AttentionOptions): NativeAttentionInput {
  const { querySize, keySize, ...layout } = attentionLayout(op, options, FIELDS);
  check.typedArray(op, 'q', q, 'Float32Array', querySize, 'rows*heads*headDim');
  check.typedArray(op, 'k', k, 'Float32Array', keySize, 'rows*kvHeads*headDim');
  check.typedArray(op, 'v', v, 'Float32Array', keySize, 'rows*kvHeads*headDim');
  return { q, k, v, ...layout };
}
