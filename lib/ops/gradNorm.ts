import * as check from '../check';
import { fail } from '../errors';
import { elements, run, type KernelOptions } from './call';
import { gradient, sameDtype, type Gradient } from './gradients';

export interface GradNormOptions extends KernelOptions {
  /** T, rows of grad. */
  tokens: number;
  /** C, length of a row. */
  channels: number;
  /** What a Uint16Array holds: 'f16' or 'bf16'. Float32Array and Tensor: 'f32', which may be left out. */
  dtype?: 'f32' | 'f16' | 'bf16';
  /** (T) class of each row. Default: one class. Copied. */
  classes?: Uint8Array;
  /** From 1 to 256. Default: the largest class + 1, at least 1. */
  numClasses?: number;
  /** Factor of the norms in the statistics, as float32 (default 1), at least 0: the number of target tokens, say, to undo a mean over them. `norms` are without it. */
  scale?: number;
}

/** Bins of a histogram: four to an octave, equally wide inside it, from 2^-40 (bin 0, and all below) to 2^24 (bin 255, and all above). */
export const NORM_BINS = 256;

/** Of the finite norms of one class. Plain data. */
export interface NormStatistics {
  count: number;
  /** NaN, like the next three, while count is 0. */
  mean: number;
  /** Mean squared deviation from the mean. */
  variance: number;
  min: number;
  max: number;
  /** Norms that are NaN or infinite: counted here alone. */
  notFinite: number;
  /** (256) norms in each bin, see {@link NORM_BINS}. */
  histogram: Int32Array;
}

export interface GradNormResult {
  /** (T) L2 norm of each row. */
  norms: Float32Array;
  /** (numClasses) of scale * norm. */
  statistics: NormStatistics[];
}

const FIELDS = ['tokens', 'channels', 'dtype', 'classes', 'numClasses', 'scale', 'signal', 'device'];
const FIGURES = 6;
const MAX_CLASSES = 256;
const MAX_SCALE = 3e38;

/**
 * L2 norm of each row of a gradient, and statistics of the norms for each class of row, in one pass over the gradient.
 *
 * @param grad (T, C) row-major: f32, or 16-bit floats as Uint16Array. Array: copied before this returns; tensor: shared.
 * @returns see {@link GradNormResult}. Norms are exact to float32 rounding (CUDA: sums in float32, and in float64 where those would overflow
 *   or vanish); statistics are float64. The same bits on every run of a device. A row with NaN or infinity has such a norm.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_BACKEND_UNAVAILABLE`.
 * @example
 * const { norms, statistics } = await gradNorm(Float32Array.of(3, 4, 0, 1), { tokens: 2, channels: 2 });
 * // norms [5, 1]; statistics[0]: count 2, mean 3, variance 4, min 1, max 5
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), section 3
 */
export async function gradNorm(grad: Gradient, options: GradNormOptions): Promise<GradNormResult> {
  const op = 'gradNorm';
  check.options(op, options, FIELDS);
  const tokens = check.integer(op, 'tokens', options?.tokens, 0);
  const channels = check.integer(op, 'channels', options.channels, 1, 2 ** 31 - 1);
  const given = gradient(op, 'grad', grad, options.dtype, elements(op, 'grad', tokens, channels), 'tokens*channels');
  sameDtype(op, 'grad', options.dtype, given.dtype);
  const scale = check.number(op, 'scale', options.scale === undefined ? 1 : options.scale, 0, MAX_SCALE);
  const { classes, numClasses } = checkClasses(op, tokens, options);
  const native = { tokens, channels, dtype: given.dtype, numClasses, scale, ...(classes === undefined ? {} : { classes }) };
  const { norms, figures, histogram } = await run(op, options, (ops, token) => ops.gradNorm(given.native, native, token));
  return { norms, statistics: Array.from({ length: numClasses }, (_, k) => statisticsOf(figures, histogram, k)) };
}

function checkClasses(op: string, tokens: number, options: GradNormOptions): { classes: Uint8Array | undefined; numClasses: number } {
  const numClasses = options.numClasses === undefined ? undefined : check.integer(op, 'numClasses', options.numClasses, 1, MAX_CLASSES);
  if (options.classes === undefined) return { classes: undefined, numClasses: numClasses ?? 1 };
  const classes = check.typedArray(op, 'classes', options.classes, 'Uint8Array', tokens, 'tokens');
  const largest = classes.reduce((most, k) => Math.max(most, k), 0);
  if (numClasses !== undefined && largest >= numClasses) fail('ERR_RANGE', op, `Expected classes to be below numClasses = ${numClasses} but received ${largest} at ${classes.indexOf(largest)}`);
  return { classes, numClasses: numClasses ?? largest + 1 };
}

function statisticsOf(figures: Float64Array, histogram: Int32Array, k: number): NormStatistics {
  const [count, mean, squares, min, max, notFinite] = figures.subarray(k * FIGURES, (k + 1) * FIGURES) as unknown as [number, number, number, number, number, number];
  const bins = histogram.slice(k * NORM_BINS, (k + 1) * NORM_BINS);
  if (count === 0) return { count, mean: NaN, variance: NaN, min: NaN, max: NaN, notFinite, histogram: bins };
  return { count, mean, variance: squares / count, min, max, notFinite, histogram: bins };
}

/** Lower edge of a bin. */
function edgeOf(bin: number): number {
  return 2 ** (Math.floor(bin / 4) - 40) * (1 + (bin % 4) / 4);
}

/**
 * The norm below which a share p of a class lies, from its histogram: exact to the width of a bin (at most a quarter of the value between
 * 2^-40 and 2^24), linear inside it, and within [min, max]: the first bin begins at min, the last ends at max. p = 0 gives min, p = 1 max.
 *
 * @param statistics of one class, as {@link gradNorm} gives them; count, min, max and histogram are read, and must agree.
 * @param p from 0 to 1.
 * @returns NaN while count is 0.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`.
 * @example normQuantile(statistics[0], 0.5);  // the median norm
 */
export function normQuantile(statistics: Pick<NormStatistics, 'count' | 'min' | 'max' | 'histogram'>, p: number): number {
  const op = 'normQuantile';
  check.object(op, 'statistics', statistics);
  check.number(op, 'p', p, 0, 1);
  const histogram = check.typedArray(op, 'statistics.histogram', statistics.histogram, 'Int32Array', NORM_BINS);
  const count = check.integer(op, 'statistics.count', statistics.count, 0);
  const sum = histogram.reduce((total, inside) => total + inside, 0);
  histogram.forEach((inside, bin) => check.integer(op, `bin ${bin} of statistics.histogram`, inside, 0));
  if (sum !== count) fail('ERR_RANGE', op, `Expected statistics.count to be the sum of statistics.histogram = ${sum} but received ${count}`);
  if (count === 0) return NaN;
  const min = check.number(op, 'statistics.min', statistics.min);
  const max = check.number(op, 'statistics.max', statistics.max, min);
  if (p === 0) return min;
  if (p === 1) return max;
  let before = 0;
  for (let bin = 0; bin < NORM_BINS; bin += 1) {
    const inside = histogram[bin]!;
    if (inside > 0 && before + inside >= p * count) {
      const low = bin === 0 ? min : Math.max(min, edgeOf(bin));
      const high = bin === NORM_BINS - 1 ? max : Math.min(max, edgeOf(bin + 1));
      const value = low + (high - low) * ((p * count - before) / inside);
      return Math.min(max, Math.max(min, value));
    }
    before += inside;
  }
  return max;
}
