/** Confidence in the mean of a series whose neighbours resemble each other, as the steps of a training do. */
import { mix } from '../random';

export interface Interval { low: number; high: number; }

/** Fewer values say nothing about their spread. */
export const FEWEST = 8;
const RESAMPLES = 1000;
const TAIL = 0.025;
const NORMAL_QUANTILE = 1.959964;

/** 97.5 % quantile of Student's t by its expansion in 1/df (Abramowitz and Stegun 26.7.5). */
function studentQuantile(df: number): number {
  const z = NORMAL_QUANTILE;
  return z + (z ** 3 + z) / (4 * df) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * df ** 2) + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * df ** 3);
}

/**
 * 95 % interval of the mean by a circular block bootstrap (Politis and Romano 1992) with blocks of sqrt(n) values; undefined for fewer
 * than 8 values. The same series gives the same interval. Blocks of so short a series vary too little about its own mean, so that the plain
 * percentiles hold the mean in 60 to 88 % of series only: both distances are widened, by sqrt(n / (n - block)) and by Student's t of n / block blocks.
 */
export function meanInterval(series: readonly number[]): Interval | undefined {
  const n = series.length;
  if (n < FEWEST) return undefined;
  const block = Math.round(Math.sqrt(n));
  const blocks = Math.ceil(n / block);
  // Sums of the blocks that start at each place, around the end.
  const sums = series.map((_, start) => Array.from({ length: block }, (__, i) => series[(start + i) % n]!).reduce((sum, value) => sum + value, 0));
  const means = Float64Array.from({ length: RESAMPLES }, (_, resample) => {
    let sum = 0;
    for (let i = 0; i < blocks; i++) sum += sums[mix(1, resample, i) % n]!;
    return sum / (blocks * block);
  }).sort();
  const mean = series.reduce((sum, value) => sum + value, 0) / n;
  const wider = (Math.sqrt(n / (n - block)) * studentQuantile(Math.max(1, n / block - 1))) / NORMAL_QUANTILE;
  const at = (place: number): number => mean + wider * (means[place]! - mean);
  return { low: at(Math.floor(TAIL * (RESAMPLES - 1))), high: at(Math.ceil((1 - TAIL) * (RESAMPLES - 1))) };
}
