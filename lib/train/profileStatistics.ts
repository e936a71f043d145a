/** Statistics of gradient norms: exact, in a fixed order, whatever the batches. Pure functions. */
import { ROW_CLASSES } from '../model/rowClass';

/** Quantiles of each row of statistics, by linear interpolation between order statistics. */
export const PROFILE_QUANTILES = Object.freeze([0.05, 0.25, 0.5, 0.75, 0.95] as const);

/** What a row of statistics holds. Variance: of the population. All but the counts are null where count is 0. */
export const PROFILE_COLUMNS = Object.freeze(['count', 'notFinite', 'mean', 'variance', 'min', 'max', 'q05', 'q25', 'q50', 'q75', 'q95'] as const);

/** Count, mean and spread of some finite values; others are counted alone. */
export interface Moments {
  count: number;
  notFinite: number;
  mean: number;
  /** Sum of squared deviations from the mean. */
  m2: number;
  min: number;
  max: number;
}

export function noMoments(): Moments {
  return { count: 0, notFinite: 0, mean: 0, m2: 0, min: Infinity, max: -Infinity };
}

/** Takes a value in (Welford). */
export function addValue(moments: Moments, value: number): void {
  if (!Number.isFinite(value)) {
    moments.notFinite++;
    return;
  }
  moments.count++;
  const gap = value - moments.mean;
  moments.mean += gap / moments.count;
  moments.m2 += gap * (value - moments.mean);
  moments.min = Math.min(moments.min, value);
  moments.max = Math.max(moments.max, value);
}

/** Those of both sets together (Chan et al. 1979, equation 2.1). */
export function mergeMoments(a: Moments, b: Moments): Moments {
  const count = a.count + b.count;
  const notFinite = a.notFinite + b.notFinite;
  if (a.count === 0 || b.count === 0) return { ...(a.count === 0 ? b : a), notFinite };
  const gap = b.mean - a.mean;
  return {
    count, notFinite, mean: a.mean + (gap * b.count) / count, m2: a.m2 + b.m2 + (gap * gap * a.count * b.count) / count,
    min: Math.min(a.min, b.min), max: Math.max(a.max, b.max),
  };
}

/** Of the population. */
export function momentsOf(values: Iterable<number>): Moments {
  const moments = noMoments();
  for (const value of values) addValue(moments, value);
  return moments;
}

/** Linear interpolation between order statistics, as NumPy's default. @param sorted ascending, at least one. */
export function quantileOf(sorted: ArrayLike<number>, share: number): number {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const low = sorted[below]!;
  return low + (place - below) * (sorted[Math.min(below + 1, sorted.length - 1)]! - low);
}

/** Coefficient of variation: standard deviation of the population over the mean; 0 where the mean is 0, NaN of nothing. */
export function coefficientOfVariation(values: Iterable<number>): number {
  const { count, mean, m2 } = momentsOf(values);
  if (count === 0) return NaN;
  return mean === 0 ? 0 : Math.sqrt(m2 / count) / mean;
}

/** Weight of what was before, in the running loss of a sample: a visit's share halves in two visits. */
export const RUNNING_DECAY = 0.7;

/** A sample's running loss after a visit: the first loss, then an exponential mean. */
export function runningLoss(before: number | undefined, loss: number): number {
  return before === undefined ? loss : RUNNING_DECAY * before + (1 - RUNNING_DECAY) * loss;
}

export type Difficulty = 'easy' | 'hard';

/**
 * Median split of the samples of a step: the half with the lower running loss is easy, the other hard; the one in the middle of an odd
 * number is neither, nor is one without a loss. Equal ones in their order.
 */
export function splitByLoss(running: readonly (number | null)[]): (Difficulty | null)[] {
  const order = running.flatMap((loss, place) => (loss === null ? [] : [{ loss, place }])).sort((a, b) => a.loss - b.loss || a.place - b.place);
  const half = Math.floor(order.length / 2);
  const split = running.map((): Difficulty | null => null);
  order.forEach(({ place }, rank) => {
    if (rank < half) split[place] = 'easy';
    else if (rank >= order.length - half) split[place] = 'hard';
  });
  return split;
}

/** Gradient norms of one sample's rows. */
export interface SampleNorms {
  /** Place in ROW_CLASSES of each row. */
  classes: Uint8Array;
  /** Per level, one of each row. */
  norms: readonly Float32Array[];
}

/** A row of `PROFILE_COLUMNS`; null where a class has no rows. */
export type StatisticsRow = readonly (number | null)[] | null;

/** Nine digits tell all float32 values apart. */
function rounded(value: number): number {
  return Number(value.toPrecision(9));
}

/**
 * Statistics of `scale` times the norms by [level][class]. Moments of each sample, merged in their order: the same bits however the
 * samples were put into batches.
 */
export function classStatistics(samples: readonly SampleNorms[], levels: number, scale: number): StatisticsRow[][] {
  return Array.from({ length: levels }, (_, level) => {
    const moments = ROW_CLASSES.map(noMoments);
    const values = ROW_CLASSES.map((): number[] => []);
    for (const { classes, norms } of samples) {
      const own = ROW_CLASSES.map(noMoments);
      norms[level]!.forEach((norm, row) => {
        const value = scale * norm;
        addValue(own[classes[row]!]!, value);
        if (Number.isFinite(value)) values[classes[row]!]!.push(value);
      });
      own.forEach((more, n) => { moments[n] = mergeMoments(moments[n]!, more); });
    }
    return moments.map((all, n) => statisticsRow(all, values[n]!));
  });
}

function statisticsRow({ count, notFinite, mean, m2, min, max }: Moments, values: readonly number[]): StatisticsRow {
  if (count === 0) return notFinite === 0 ? null : [0, notFinite, ...PROFILE_COLUMNS.slice(2).map(() => null)];
  const sorted = Float64Array.from(values).sort();
  return [count, notFinite, ...[mean, m2 / count, min, max, ...PROFILE_QUANTILES.map((share) => quantileOf(sorted, share))].map(rounded)];
}

/** A number as a profile holds it: null where it is not finite. */
export function recorded(value: number): number | null {
  return Number.isFinite(value) ? rounded(value) : null;
}
