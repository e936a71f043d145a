import * as check from '../check';
import { fail } from '../errors';
import type { NativeFloats } from '../native';
import { rowsOf } from './call';
import { checkRows, floats, runFloats, type Floats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';
import { Tensor } from './tensor';

/** h + gate (y - h) | h + gate y | h + gate y (1 + step). */
export type Fusion = 'interpolate' | 'plain' | 'scaled';

export interface GatedScatterOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  /** How a row takes its other one in (default 'interpolate'). */
  fusion?: Fusion;
  /** (C) of fusion 'scaled' only, f32. Default: zeros. Array: copied; tensor: shared. */
  step?: Floats;
}

const FUSIONS: readonly Fusion[] = ['interpolate', 'plain', 'scaled'];

/**
 * Brings rows that took another pass back into their places, each with its gate; the other rows stay as they are. See {@link Fusion}.
 *
 * @param h (T, C) row-major, f32; not changed. Array: copied before this returns; tensor: shared.
 * @param y (n, C) the rows after their pass, f32. Array: copied; tensor: shared.
 * @param gate (n) gate of each row of y, f32. Array: copied; tensor: shared.
 * @param rows (n) row of h that each row of y belongs to, each at most once. Copied.
 * @returns (T, C), float32; a tensor has the shape of h when that is one.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example await gatedScatter(Float32Array.of(1, 2, 3), Float32Array.of(6), Float32Array.of(0.5), Int32Array.of(1));  // [1, 4, 3]
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), RDS
 */
export async function gatedScatter<O extends OutputKind = 'array'>(h: Floats, y: Floats, gate: Floats, rows: Int32Array, options: GatedScatterOptions<O> = {}): Promise<FloatsOf<O>> {
  const op = 'gatedScatter';
  const { source, other, gates, step, fusion, channels, shape } = checkScatter(op, h, y, gate, rows, options);
  const { out } = await runFloats<O, 'out', { out: Float32Array }>(op, options, { out: shape }, (ops, into, token) =>
    ops.gatedScatter(source, other, gates, rows, step, fusion, channels, into, token));
  return out;
}

/**
 * Gradient of {@link gatedScatter}.
 *
 * @param dout (T, C) gradient of the loss with respect to the result, f32. Array: copied; tensor: shared.
 * @returns `dh` (T, C), `dy` (n, C), `dgate` (n), and `dstep` (C) when there is a step. float32.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 */
export async function gatedScatterGrad<O extends OutputKind = 'array'>(
  h: Floats, y: Floats, gate: Floats, rows: Int32Array, dout: Floats, options: GatedScatterOptions<O> = {},
): Promise<{ dh: FloatsOf<O>; dy: FloatsOf<O>; dgate: FloatsOf<O>; dstep?: FloatsOf<O> }> {
  const op = 'gatedScatterGrad';
  const { source, other, gates, step, fusion, count, channels, shape } = checkScatter(op, h, y, gate, rows, options);
  const upstream = floats(op, 'dout', dout, count * channels, 'as many as h').native;
  const shapes = { dh: shape, dy: [rows.length, channels], dgate: [rows.length], ...(step === null ? {} : { dstep: [channels] }) };
  type Result = { dh: Float32Array; dy: Float32Array; dgate: Float32Array; dstep?: Float32Array };
  return runFloats<O, 'dh' | 'dy' | 'dgate', Result>(op, options, shapes, (ops, into, token) =>
    ops.gatedScatterGrad(source, other, gates, rows, step, fusion, channels, upstream, into, token)) as Promise<{ dh: FloatsOf<O>; dy: FloatsOf<O>; dgate: FloatsOf<O>; dstep?: FloatsOf<O> }>;
}

interface Scatter {
  source: NativeFloats;
  other: NativeFloats;
  gates: NativeFloats;
  step: NativeFloats | null;
  fusion: Fusion;
  count: number;
  channels: number;
  /** Of a tensor like h. */
  shape: readonly number[];
}

function checkScatter(op: string, h: Floats, y: Floats, gate: Floats, rows: Int32Array, options: GatedScatterOptions): Scatter {
  check.options(op, options, ['fusion', 'step', 'output', 'signal', 'device']);
  const fusion = check.oneOf(op, 'fusion', options.fusion ?? 'interpolate', FUSIONS);
  if (fusion !== 'scaled' && options.step !== undefined) fail('ERR_ARGUMENT', op, `Expected no step with fusion '${fusion}' but received ${check.show(options.step)}`);
  check.typedArray(op, 'rows', rows, 'Int32Array');
  const { native: source, length } = floats(op, 'h', h);
  const { native: other, length: routed } = floats(op, 'y', y);
  const added = options.step === undefined ? undefined : floats(op, 'step', options.step);
  const channels = widthOfRows(op, rows.length, routed, added?.length);
  const count = rowsOf(op, 'h', length, channels, 'channels');
  checkRows(op, rows, count, true);
  const gates = floats(op, 'gate', gate, rows.length, 'as many as rows').native;
  return { source, other, gates, step: added?.native ?? null, fusion, count, channels, shape: Tensor.is(h) ? h.shape : [count, channels] };
}

/** Channels of n rows of `routed` elements in all. Without rows and step they do not show, and do not matter: 1. */
function widthOfRows(op: string, n: number, routed: number, step: number | undefined): number {
  const channels = n > 0 ? rowsOf(op, 'y', routed, n, 'rows') : step ?? 1;
  if (channels === 0) fail('ERR_SHAPE', op, `Expected ${n > 0 ? 'y' : 'step'} to have at least 1 channel but received 0`);
  if (n === 0 && routed !== 0) fail('ERR_SHAPE', op, `Expected y to have rows*channels = 0 elements but received ${routed}`);
  if (step !== undefined && step !== channels) fail('ERR_SHAPE', op, `Expected step to have channels = ${channels} elements but received ${step}`);
  return channels;
}
