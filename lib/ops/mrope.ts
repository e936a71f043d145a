import * as check from '../check';
import { fail } from '../errors';
import { elements, rowsOf, run, type KernelOptions } from './call';

export interface MropeOptions extends KernelOptions {
  heads: number;
  /** Even. */
  headDim: number;
  /** Frequency pairs that turn with the temporal, height and width id; sums to headDim / 2. */
  section: readonly number[];
  /** Base of the frequencies (default 1e6). */
  theta?: number;
  /** Turns back: the gradient of the rotation. */
  inverse?: boolean;
}

/**
 * Multimodal rotary embedding: element j of each head and element j + headDim/2 turn by the angle
 * position * theta^(-2j/headDim), where the position is the row's temporal, height or width id as `section` says.
 *
 * @param x (T, heads, headDim) row-major. Copied before this returns.
 * @param positions (3, T): all temporal ids, then height, then width. Equal rows are plain rotary embedding. Copied.
 * @returns (T, heads, headDim), float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example await mrope(Float32Array.of(1, 0), Int32Array.of(1, 1, 1), { heads: 1, headDim: 2, section: [1, 0, 0] });  // [cos 1, sin 1]
 * @see Qwen2-VL, 2024 (2409.12191), section 2.1
 */
export async function mrope(x: Float32Array, positions: Int32Array, options: MropeOptions): Promise<Float32Array> {
  const op = 'mrope';
  check.options(op, options, ['heads', 'headDim', 'section', 'theta', 'inverse', 'signal', 'device']);
  const heads = check.integer(op, 'heads', options?.heads, 1, 65536);
  const headDim = check.integer(op, 'headDim', options.headDim, 2, 65536);
  const section = checkSection(op, options.section, headDim);
  check.typedArray(op, 'x', x, 'Float32Array');
  const rows = rowsOf(op, 'x', x.length, elements(op, 'a row', heads, headDim), 'heads*headDim');
  check.typedArray(op, 'positions', positions, 'Int32Array', 3 * rows, '3*rows');
  const theta = check.number(op, 'theta', options.theta ?? 1e6, Number.MIN_VALUE);
  const inverse = check.boolean(op, 'inverse', options.inverse ?? false);
  return run(op, options, (ops, token) => ops.mrope(x, positions, section, heads, headDim, theta, inverse, token));
}

function checkSection(op: string, section: readonly number[], headDim: number): Int32Array {
  if (!Array.isArray(section) || section.length !== 3) fail('ERR_ARGUMENT', op, `Expected section to be an array of 3 integers but received ${check.show(section)}`);
  const sum = section.reduce((total: number, n) => total + check.integer(op, 'an entry of section', n, 0, headDim), 0);
  if (2 * sum !== headDim) fail('ERR_RANGE', op, `Expected section to sum to headDim/2 = ${headDim / 2} but received ${sum}`);
  return Int32Array.from(section);
}
