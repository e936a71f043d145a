/** Statistics of profiles as pure functions, against plain formulas. */
import {
  classStatistics, coefficientOfVariation, mergeMoments, momentsOf, noMoments, PROFILE_COLUMNS, quantileOf, recorded, runningLoss, splitByLoss, type SampleNorms,
} from '../../lib/train/profileStatistics';

const column = (row: readonly (number | null)[] | null | undefined, name: (typeof PROFILE_COLUMNS)[number]): number | null => row![PROFILE_COLUMNS.indexOf(name)]!;

describe('moments', () => {
  test.each<[number[], number, number]>([[[5], 5, 0], [[1, 2, 3, 4], 2.5, 1.25], [[1e9 + 1, 1e9 + 2, 1e9 + 3], 1e9 + 2, 2 / 3], [[-2, 2], 0, 4]])('%j', (values, mean, variance) => {
    const moments = momentsOf(values);
    expect(moments).toMatchObject({ count: values.length, notFinite: 0, mean, min: Math.min(...values), max: Math.max(...values) });
    expect(moments.m2 / moments.count).toBeCloseTo(variance, 9);
  });
  test('values that are not finite are counted alone', () => {
    expect(momentsOf([NaN, 1, Infinity, 3, -Infinity])).toMatchObject({ count: 2, notFinite: 3, mean: 2, min: 1, max: 3 });
  });
  test('merged sets are as one set, and an empty one changes nothing', () => {
    const values = Array.from({ length: 50 }, (_, n) => Math.sin(n) * n);
    for (const cut of [0, 1, 7, 25, 49, 50]) {
      const merged = mergeMoments(momentsOf(values.slice(0, cut)), momentsOf(values.slice(cut)));
      const whole = momentsOf(values);
      expect(merged).toMatchObject({ count: 50, min: whole.min, max: whole.max });
      expect(merged.mean).toBeCloseTo(whole.mean, 12);
      expect(merged.m2).toBeCloseTo(whole.m2, 8);
    }
    expect(mergeMoments(noMoments(), noMoments())).toEqual(noMoments());
    expect(mergeMoments({ ...noMoments(), notFinite: 2 }, momentsOf([4]))).toMatchObject({ count: 1, notFinite: 2, mean: 4 });
  });
});

test.each<[number[], number, number]>([
  [[3], 0.05, 3], [[1, 2], 0.5, 1.5], [[1, 2, 3, 4, 5], 0.25, 2], [[1, 2, 3, 4], 0.95, 3.85], [[0, 10], 0, 0], [[0, 10], 1, 10],
])('quantile of %j at %d', (sorted, share, expected) => expect(quantileOf(sorted, share)).toBeCloseTo(expected, 12));

test.each<[number[], number]>([[[], NaN], [[0, 0], 0], [[2], 0], [[1, 3], 0.5], [[4, 4, 4], 0]])('coefficient of variation of %j', (values, expected) => expect(coefficientOfVariation(values)).toBe(expected));

test('a running loss starts with the first and follows the later ones', () => {
  expect(runningLoss(undefined, 3)).toBe(3);
  expect(runningLoss(3, 1)).toBeCloseTo(2.4, 12);
});

describe('easy and hard', () => {
  test.each<[(number | null)[], (string | null)[]]>([
    [[], []], [[1], [null]], [[2, 1], ['hard', 'easy']], [[3, 1, 2], ['hard', 'easy', null]], [[5, 5, 5, 5], ['easy', 'easy', 'hard', 'hard']],
    [[1, null, 2], ['easy', null, 'hard']], [[null, null], [null, null]], [[4, 0, 3, 1, 2], ['hard', 'easy', 'hard', 'easy', null]],
  ])('%j', (running, expected) => expect(splitByLoss(running)).toEqual(expected));
});

describe('by level and class', () => {
  const sample = (classes: number[], ...norms: number[][]): SampleNorms => ({ classes: Uint8Array.from(classes), norms: norms.map((level) => Float32Array.from(level)) });

  test('scaled, per class, over all samples', () => {
    const rows = classStatistics([sample([0, 1, 1], [1, 2, 4], [0, 0, 0]), sample([1, 5], [6, 8], [1, NaN])], 2, 10);
    expect(rows).toHaveLength(2);
    expect(rows[0]!.map((row) => row?.[0] ?? null)).toEqual([1, 3, null, null, null, 1]);
    expect(['count', 'notFinite', 'mean', 'variance', 'min', 'max', 'q50'].map((name) => column(rows[0]![1], name as 'mean'))).toEqual([3, 0, 40, 266.666667, 20, 60, 40]);
    expect(rows[1]![5]).toEqual([0, 1, ...new Array(9).fill(null)]);
  });
  test('the same bits however the samples come in batches', () => {
    const samples = Array.from({ length: 9 }, (_, n) => sample([0, 1, 1, 4], [n / 3, Math.sqrt(n), 1 / (n + 1), n]));
    expect(classStatistics(samples, 1, 3)).toEqual(classStatistics([...samples.slice(0, 4), ...samples.slice(4)], 1, 3));
  });
});

test.each<[number, number | null]>([[NaN, null], [Infinity, null], [0, 0], [1 / 3, 0.333333333], [Math.fround(0.1), 0.100000001]])('%d is written as %j', (value, expected) => expect(recorded(value)).toBe(expected));
