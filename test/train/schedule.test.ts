import { uniform } from '../../lib/random';
import { sampleIndex } from '../../lib/train/dataOrder';
import { learningRate } from '../../lib/train/schedule';

describe('learningRate', () => {
  test.each([
    [0, 0.25], [1, 0.5], [3, 1], [4, 1], [9, 0.55], [14, 0.1], [99, 0.1],
  ])('step %i of 15 with 4 of warm-up and a final tenth: %f', (step, rate) => {
    expect(learningRate({ peak: 1, warmupSteps: 4, steps: 15, finalRate: 0.1 }, step)).toBeCloseTo(rate, 12);
  });
  test('a stage of one step runs at the peak', () => expect(learningRate({ peak: 3, warmupSteps: 0, steps: 1, finalRate: 0 }, 0)).toBe(3));
  test('warm-up longer than the stage', () => expect(learningRate({ peak: 1, warmupSteps: 10, steps: 5, finalRate: 0 }, 4)).toBe(0.5));
});

describe('data order', () => {
  test.each([1, 2, 3, 31, 64, 1000])('every epoch of %i samples is a permutation', (size) => {
    const epoch = (n: number): number[] => Array.from({ length: size }, (_, i) => sampleIndex(7, n * size + i, size));
    const all = Array.from({ length: size }, (_, i) => i);
    for (const n of [0, 1, 2]) expect([...epoch(n)].sort((a, b) => a - b)).toEqual(all);
    if (size > 10) {
      expect(epoch(0)).not.toEqual(epoch(1));
      expect(epoch(0)).not.toEqual(all);
    }
  });
  test('an endless source is read in order', () => expect(sampleIndex(7, 123_456_789)).toBe(123_456_789));
  test('uniform numbers are uniform', () => {
    const buckets = new Array<number>(10).fill(0);
    for (let i = 0; i < 10_000; i++) buckets[Math.floor(uniform(i, 0) * 10)]! += 1;
    // Four standard deviations of a count of 1,000: 120.
    for (const count of buckets) expect(Math.abs(count - 1000)).toBeLessThan(120);
  });
});
