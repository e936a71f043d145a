import * as check from '../check';
import { fail } from '../errors';
import type { GradientDType, NativeGradient, NativeRaggedInput } from '../native';
import { attentionLayout, type AttentionOptions } from './attention';
import { run } from './call';
import { gradient, sameDtype } from './gradients';

/** Packed rows: f32, or the bits of 16-bit floats. Copied before the call returns. */
export type RaggedRows = Float32Array | Uint16Array;

export interface RaggedAttentionOptions extends AttentionOptions {
  /** What the arrays hold: 'f16' or 'bf16' in Uint16Arrays, 'f32' (default) in Float32Arrays. One for all of them. */
  dtype?: GradientDType;
}

const FIELDS = ['heads', 'kvHeads', 'headDim', 'cuQ', 'cuK', 'causal', 'dtype', 'signal', 'device'];
const MAX_HEAD_DIM = 256;

/**
 * Softmax attention over packed rows of many sequences in f32, f16 or bf16, scaled by 1/sqrt(headDim); sums are f32. On CUDA, 16-bit rows go
 * through the tensor cores; one launch serves the whole ragged batch. The CPU computes 16-bit rows in f32 and rounds the result.
 *
 * @param q (Tq, heads, headDim) packed rows of all sequences; headDim at most 256.
 * @param k (Tk, kvHeads, headDim), of the dtype of q.
 * @param v (Tk, kvHeads, headDim), of the dtype of q.
 * @returns `out` (Tq, heads, headDim) in the dtype of q; `lse` (Tq, heads) f32: the natural log-sum-exp of the scaled scores.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_BACKEND_UNAVAILABLE`.
 * @example
 * const one = Int32Array.of(0, 1);
 * const bits = Uint16Array.of(0x40e0);  // 7 as bf16
 * await raggedAttention(bits, bits, bits, { heads: 1, headDim: 1, cuQ: one, cuK: one, dtype: 'bf16' });
 * // { out: [0x40e0], lse: [49] }
 * @see Dao, 2023 (2307.08691); Ainslie et al., 2023 (2305.13245)
 */
export async function raggedAttention<R extends RaggedRows>(q: R, k: R, v: R, options: RaggedAttentionOptions): Promise<{ out: R; lse: Float32Array }> {
  const op = 'raggedAttention';
  const { input } = checkRagged(op, q, k, v, options);
  return run(op, options, (ops, token) => ops.raggedAttention(input, token)) as Promise<{ out: R; lse: Float32Array }>;
}

/**
 * Gradient of {@link raggedAttention}, from the log-sum-exp of each row.
 *
 * @param dout (Tq, heads, headDim) gradient of the loss with respect to `out`, of the dtype of q.
 * @returns gradients with respect to q, k and v, in the dtype of q.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_BACKEND_UNAVAILABLE`.
 */
export async function raggedAttentionGrad<R extends RaggedRows>(q: R, k: R, v: R, dout: R, options: RaggedAttentionOptions): Promise<{ dq: R; dk: R; dv: R }> {
  const op = 'raggedAttentionGrad';
  const { input, rows } = checkRagged(op, q, k, v, options);
  const upstream = rows('dout', dout, q.length, 'as many as q');
  return run(op, options, (ops, token) => ops.raggedAttentionGrad(input, upstream, token)) as Promise<{ dq: R; dk: R; dv: R }>;
}

function checkRagged(op: string, q: RaggedRows, k: RaggedRows, v: RaggedRows, options: RaggedAttentionOptions) {
  const { querySize, keySize, ...layout } = attentionLayout(op, options, FIELDS);
  if (layout.headDim > MAX_HEAD_DIM) fail('ERR_RANGE', op, `Expected headDim to be an integer from 1 to ${MAX_HEAD_DIM} but received ${layout.headDim}`);
  const rows = (name: string, value: RaggedRows, size: number, meaning: string): NativeGradient => {
    const given = gradient(op, name, value, options.dtype, size, meaning);
    sameDtype(op, name, options.dtype ?? 'f32', given.dtype);
    if (!ArrayBuffer.isView(given.native)) fail('ERR_DTYPE', op, `Expected ${name} to be a Float32Array or a Uint16Array but received ${check.show(value)}`);
    return given.native;
  };
  const input: NativeRaggedInput = {
    q: rows('q', q, querySize, 'rows*heads*headDim'), k: rows('k', k, keySize, 'rows*kvHeads*headDim'), v: rows('v', v, keySize, 'rows*kvHeads*headDim'),
    ...layout, dtype: options.dtype ?? 'f32',
  };
  return { input, rows };
}
