import * as check from '../check';
import { fail } from '../errors';
import type { NativeFloats } from '../native';
import { elements, rowsOf } from './call';
import { checkRows, floats, runFloats, type Floats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';

export interface GatherRmsNormOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  /** Added to the mean square (default 1e-6). */
  eps?: number;
  /** (C) added to each gathered row, f32. Default: none. Array: copied; tensor: shared. */
  step?: Floats;
}

/**
 * Gathers rows, adds a vector, and normalises them: x = h[rows] + step, y = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps).
 *
 * @param h (T, C) row-major, f32. Array: copied before this returns; tensor: shared.
 * @param rows (n) row numbers of h, in any order, repeats allowed. Copied.
 * @param weight (C), f32. Array: copied; tensor: shared.
 * @returns `x` (n, C), `y` (n, C) and `rstd` (n), float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example
 * await gatherRmsNorm(Float32Array.of(9, 9, 3, 4), Int32Array.of(1), Float32Array.of(1, 1), { step: Float32Array.of(0, -1) });
 * // { x: [3, 3], y: [1, 1], rstd: [0.3333] }
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), RDS
 */
export async function gatherRmsNorm<O extends OutputKind = 'array'>(h: Floats, rows: Int32Array, weight: Floats, options: GatherRmsNormOptions<O> = {}): Promise<{ x: FloatsOf<O>; y: FloatsOf<O>; rstd: FloatsOf<O> }> {
  const op = 'gatherRmsNorm';
  const { source, scale, step, eps, channels } = checkGather(op, h, rows, weight, options);
  const shapes = { x: [rows.length, channels], y: [rows.length, channels], rstd: [rows.length] };
  type Result = { x: Float32Array; y: Float32Array; rstd: Float32Array };
  return runFloats<O, keyof Result, Result>(op, options, shapes, (ops, into, token) => ops.gatherRmsNorm(source, rows, scale, step, eps, into, token));
}

/**
 * Gradient of {@link gatherRmsNorm}, through `y` alone.
 *
 * @param dy (n, C) gradient of the loss with respect to `y`, f32. Array: copied; tensor: shared.
 * @returns `dh` (T, C), zero in rows that were not gathered, summed in the order of `rows` in those gathered twice; `dstep` (C), also
 * when there was no step; `dweight` (C). float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 */
export async function gatherRmsNormGrad<O extends OutputKind = 'array'>(h: Floats, rows: Int32Array, weight: Floats, dy: Floats, options: GatherRmsNormOptions<O> = {}): Promise<{ dh: FloatsOf<O>; dstep: FloatsOf<O>; dweight: FloatsOf<O> }> {
  const op = 'gatherRmsNormGrad';
  const { source, scale, step, eps, channels, count } = checkGather(op, h, rows, weight, options);
  const upstream = floats(op, 'dy', dy, rows.length * channels, 'rows*channels').native;
  const shapes = { dh: [count, channels], dstep: [channels], dweight: [channels] };
  type Result = { dh: Float32Array; dstep: Float32Array; dweight: Float32Array };
  return runFloats<O, keyof Result, Result>(op, options, shapes, (ops, into, token) => ops.gatherRmsNormGrad(source, rows, scale, step, eps, upstream, into, token));
}

interface Gather {
  source: NativeFloats;
  scale: NativeFloats;
  step: NativeFloats | null;
  eps: number;
  count: number;
  channels: number;
}

function checkGather(op: string, h: Floats, rows: Int32Array, weight: Floats, options: GatherRmsNormOptions): Gather {
  check.options(op, options, ['eps', 'step', 'output', 'signal', 'device']);
  const { native: scale, length: channels } = floats(op, 'weight', weight);
  if (channels === 0) fail('ERR_SHAPE', op, 'Expected weight to have at least 1 element but received 0');
  const { native: source, length } = floats(op, 'h', h);
  const count = rowsOf(op, 'h', length, channels, 'channels');
  checkRows(op, rows, count, false);
  elements(op, 'the result', rows.length, channels);
  const step = options.step === undefined ? null : floats(op, 'step', options.step, channels, 'channels').native;
  return { source, scale, step, eps: check.number(op, 'eps', options.eps ?? 1e-6, 0, 1), count, channels };
}
