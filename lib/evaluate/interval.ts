/** An interval for a share that was counted. */

export interface Share {
  count: number;
  right: number;
  /** right / count; 0 of 0 is NaN. */
  share: number;
  /** 95 % interval. */
  low: number;
  high: number;
}

/** Two-sided 95 % point of the normal distribution. */
const Z = 1.959963984540054;

/** Wilson's score interval: sensible near 0 and 1 and for small counts, where the textbook interval is not (Wilson 1927). */
export function wilson(right: number, count: number): Share {
  if (count === 0) return { count, right, share: NaN, low: 0, high: 1 };
  const share = right / count;
  const scale = 1 + (Z * Z) / count;
  const centre = (share + (Z * Z) / (2 * count)) / scale;
  const half = (Z / scale) * Math.sqrt((share * (1 - share)) / count + (Z * Z) / (4 * count * count));
  return { count, right, share, low: Math.max(0, centre - half), high: Math.min(1, centre + half) };
}
