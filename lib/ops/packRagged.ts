import * as check from '../check';
import { fail } from '../errors';
import { elements, rowsOf } from './call';
import { floats, runFloats, type Floats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';

export type PackRaggedOptions<O extends OutputKind = OutputKind> = OutputOptions<O>;

export interface UnpackRaggedOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  /** Rows of each padded sequence (default: the longest one's). */
  length?: number;
  /** Value of the rows that are padding (default 0; NaN and infinity too). */
  fill?: number;
}

const MAX_ROWS = 2 ** 31 - 1;
const MAX_WIDTH = 2 ** 31 - 1;

/**
 * Packs the rows of a padded batch that hold something, sequence after sequence: the form that the other kernels take.
 *
 * @param padded (B, S, width) row-major, f32; S follows from the number of elements. Array: copied before this returns; tensor:
 * shared. Rows of a multiple of 4 elements stay aligned to 16 bytes.
 * @param lengths (B) rows of each sequence that hold something: its first ones. Copied.
 * @param width elements of a row.
 * @returns `packed` (T, width), float32, T = sum of lengths, and `cuSeqlens` (B+1): rows of sequence b are cuSeqlens[b] .. cuSeqlens[b+1].
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example await packRagged(Float32Array.of(1, 2, 3, 0), Int32Array.of(2, 1), 1);  // { packed: [1, 2, 3], cuSeqlens: [0, 2, 3] }
 */
export async function packRagged<O extends OutputKind = 'array'>(padded: Floats, lengths: Int32Array, width: number, options: PackRaggedOptions<O> = {}): Promise<{ packed: FloatsOf<O>; cuSeqlens: Int32Array }> {
  const op = 'packRagged';
  check.options(op, options, ['output', 'signal', 'device']);
  check.typedArray(op, 'lengths', lengths, 'Int32Array');
  check.integer(op, 'width', width, 1, MAX_WIDTH);
  const source = floats(op, 'padded', padded, lengths.length === 0 ? 0 : undefined, 'lengths*width');
  const longest = lengths.length === 0 ? 0 : rowsOf(op, 'padded', source.length, lengths.length * width, 'lengths*width');
  checkRowCount(op, lengths.length, longest);
  const cuSeqlens = new Int32Array(lengths.length + 1);
  lengths.forEach((length, b) => {
    if (length < 0 || length > longest) fail('ERR_RANGE', op, `Expected length ${b} to be an integer from 0 to ${longest} but received ${length}`);
    cuSeqlens[b + 1] = cuSeqlens[b]! + length;
  });
  const shapes = { packed: [cuSeqlens.at(-1)!, width] };
  const { packed } = await runFloats<O, 'packed', { packed: Float32Array }>(op, options, shapes, (ops, into, token) => ops.packRagged(source.native, lengths, width, into, token));
  return { packed, cuSeqlens };
}

/**
 * Spreads packed rows over a padded batch: the way back of {@link packRagged}.
 *
 * @param packed (T, width) row-major, f32. Array: copied before this returns; tensor: shared.
 * @param cuSeqlens (B+1) rows of sequence b are cuSeqlens[b] .. cuSeqlens[b+1]. Copied.
 * @param width elements of a row.
 * @returns (B, length, width), float32: the first rows of each sequence are its own, the others hold `fill`.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example await unpackRagged(Float32Array.of(1, 2, 3), Int32Array.of(0, 2, 3), 1, { fill: -1 });  // [1, 2, 3, -1]
 */
export async function unpackRagged<O extends OutputKind = 'array'>(packed: Floats, cuSeqlens: Int32Array, width: number, options: UnpackRaggedOptions<O> = {}): Promise<FloatsOf<O>> {
  const op = 'unpackRagged';
  check.options(op, options, ['length', 'fill', 'output', 'signal', 'device']);
  check.typedArray(op, 'cuSeqlens', cuSeqlens, 'Int32Array');
  const sequences = check.offsets(op, 'cuSeqlens', cuSeqlens, cuSeqlens.at(-1) ?? 0);
  check.integer(op, 'width', width, 1, MAX_WIDTH);
  const source = floats(op, 'packed', packed, elements(op, 'packed', cuSeqlens.at(-1)!, width), 'rows*width');
  let longest = 0;
  for (let b = 0; b < sequences; b++) longest = Math.max(longest, cuSeqlens[b + 1]! - cuSeqlens[b]!);
  const length = check.integer(op, 'length', options.length ?? longest, longest, MAX_ROWS);
  const fill = options.fill ?? 0;
  if (typeof fill !== 'number') fail('ERR_ARGUMENT', op, `Expected fill to be a number but received ${check.show(fill)}`);
  checkRowCount(op, sequences, length);
  elements(op, 'the result', sequences, length, width);
  const shapes = { padded: [sequences, length, width] };
  return (await runFloats<O, 'padded', { padded: Float32Array }>(op, options, shapes, (ops, into, token) => ops.unpackRagged(source.native, cuSeqlens, width, length, fill, into, token))).padded;
}

function checkRowCount(op: string, sequences: number, length: number): void {
  if (sequences * length > MAX_ROWS) fail('ERR_RANGE', op, `Expected at most ${MAX_ROWS} padded rows but received ${sequences} x ${length}`);
}
