import * as check from '../check';
import { fail } from '../errors';
import type { NativeSaliencyInput } from '../native';
import { elements } from './call';
import { floats, runFloats, type Floats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';

export interface SaliencyOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  heads: number;
  /** Divides heads; query heads h*g .. h*g+g-1 share key head h. Default: heads. */
  kvHeads?: number;
  headDim: number;
  /** Rows of q of sequence b are cuQ[b] .. cuQ[b+1]; the last of them is the one that looks. A sequence may have none. Copied. */
  cuQ: Int32Array;
  /** Rows of k of sequence b. Copied. */
  cuK: Int32Array;
  /** (N) key rows, counted inside their sequence, sequence after sequence. Default: all keys. Copied. */
  columns?: Int32Array;
  /** Columns of sequence b are cuColumns[b] .. cuColumns[b+1]. Given with `columns` only. Copied. */
  cuColumns?: Int32Array;
  /** (Tq, heads) as `attention` gives it, f32. Default: computed, for the last rows only, in O(headDim) memory a row and head. */
  lse?: Floats;
}

const FIELDS = ['heads', 'kvHeads', 'headDim', 'cuQ', 'cuK', 'columns', 'cuColumns', 'lse', 'output', 'signal', 'device'];

/**
 * How much the last query row of each sequence attends to some of its keys: the mean over the heads of softmax(q k / sqrt(headDim)).
 * Only that row is computed, no matrix of scores is formed.
 *
 * @param q (Tq, heads, headDim) packed rows of all sequences, f32 row-major. Array: copied before this returns; tensor: shared.
 * @param k (Tk, kvHeads, headDim), likewise.
 * @returns (N) one value per column, float32; 0 where the sequence has no query row. Heads are added in order: same input, same bits.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const options = { heads: 1, headDim: 1, cuQ: Int32Array.of(0, 1), cuK: Int32Array.of(0, 2) };
 * await attentionSaliency(Float32Array.of(1), Float32Array.of(0, Math.log(3)), options);  // [0.25, 0.75]
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), SCF-VR
 */
export async function attentionSaliency<O extends OutputKind = 'array'>(q: Floats, k: Floats, options: SaliencyOptions<O>): Promise<FloatsOf<O>> {
  const op = 'attentionSaliency';
  const input = checkSaliency(op, q, k, options);
  const shapes = { saliency: [input.columns.length] };
  return (await runFloats<O, 'saliency', { saliency: Float32Array }>(op, options, shapes, (ops, into, token) => ops.attentionSaliency(input, into, token))).saliency;
}

/**
 * Gradient of {@link attentionSaliency}.
 *
 * @param dsaliency (N) gradient of the loss with respect to the result, f32. Array: copied; tensor: shared.
 * @returns `dq` (Tq, heads, headDim), zero outside the last rows, and `dk` (Tk, kvHeads, headDim), float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 */
export async function attentionSaliencyGrad<O extends OutputKind = 'array'>(q: Floats, k: Floats, dsaliency: Floats, options: SaliencyOptions<O>): Promise<{ dq: FloatsOf<O>; dk: FloatsOf<O> }> {
  const op = 'attentionSaliencyGrad';
  const input = checkSaliency(op, q, k, options);
  const upstream = floats(op, 'dsaliency', dsaliency, input.columns.length, 'as many as columns');
  const { heads, kvHeads, headDim } = input;
  const shapes = { dq: [input.cuQ.at(-1)!, heads, headDim], dk: [input.cuK.at(-1)!, kvHeads, headDim] };
  return runFloats<O, 'dq' | 'dk', { dq: Float32Array; dk: Float32Array }>(op, options, shapes, (ops, into, token) => ops.attentionSaliencyGrad(input, upstream.native, into, token));
}

function checkSaliency(op: string, q: Floats, k: Floats, options: SaliencyOptions): NativeSaliencyInput {
  check.options(op, options, FIELDS);
  const heads = check.integer(op, 'heads', options?.heads, 1, 4096);
  const kvHeads = check.integer(op, 'kvHeads', options.kvHeads ?? heads, 1, heads);
  if (heads % kvHeads !== 0) fail('ERR_RANGE', op, `Expected kvHeads to divide heads = ${heads} but received ${kvHeads}`);
  const headDim = check.integer(op, 'headDim', options.headDim, 1, 1024);
  const cuQ = check.typedArray(op, 'cuQ', options.cuQ, 'Int32Array');
  const sequences = check.offsets(op, 'cuQ', cuQ, cuQ.at(-1) ?? 0);
  const cuK = check.typedArray(op, 'cuK', options.cuK, 'Int32Array', sequences + 1, 'as many as cuQ');
  check.offsets(op, 'cuK', cuK, cuK.at(-1) ?? 0);
  const { columns, cuColumns } = columnsOf(op, options, cuK);
  const rows = cuQ.at(-1)!;
  const input = {
    q: floats(op, 'q', q, elements(op, 'q', rows, heads, headDim), 'rows*heads*headDim').native,
    k: floats(op, 'k', k, elements(op, 'k', cuK.at(-1)!, kvHeads, headDim), 'rows*kvHeads*headDim').native,
    cuQ, cuK, columns, cuColumns, heads, kvHeads, headDim,
  };
  return options.lse === undefined ? input : { ...input, lse: floats(op, 'lse', options.lse, rows * heads, 'rows*heads').native };
}

function columnsOf(op: string, options: SaliencyOptions, cuK: Int32Array): { columns: Int32Array; cuColumns: Int32Array } {
  const sequences = cuK.length - 1;
  if (options.columns === undefined && options.cuColumns === undefined) {
    const columns = new Int32Array(cuK.at(-1)!);
    for (let b = 0; b < sequences; b++) for (let i = cuK[b]!; i < cuK[b + 1]!; i++) columns[i] = i - cuK[b]!;
    return { columns, cuColumns: cuK };
  }
  const columns = check.typedArray(op, 'columns', options.columns, 'Int32Array');
  const cuColumns = check.typedArray(op, 'cuColumns', options.cuColumns, 'Int32Array', sequences + 1, 'as many as cuK');
  check.offsets(op, 'cuColumns', cuColumns, columns.length);
  for (let b = 0; b < sequences; b++) {
    const keys = cuK[b + 1]! - cuK[b]!;
    for (let i = cuColumns[b]!; i < cuColumns[b + 1]!; i++) {
      if (columns[i]! < 0 || columns[i]! >= keys) fail('ERR_RANGE', op, `Expected column ${i} to be one of the ${keys} keys of sequence ${b} but received ${columns[i]}`);
    }
  }
  return { columns, cuColumns };
}
