import { checkSampling, DEFAULT_SAMPLING, sampleToken, type SamplingOptions } from '../../lib/decode/sampling';

function pick(logits: number[], options: Partial<SamplingOptions>, u: number, seen: number[] = []): number {
  return sampleToken(Float32Array.from(logits), { ...DEFAULT_SAMPLING, ...options }, seen, u);
}

/** Ids that come out over a fine sweep of u, with their shares. */
function shares(logits: number[], options: Partial<SamplingOptions>, seen: number[] = []): Record<number, number> {
  const found: Record<number, number> = {};
  for (let i = 0; i < 1000; i++) {
    const id = pick(logits, options, (i + 0.5) / 1000, seen);
    found[id] = (found[id] ?? 0) + 0.001;
  }
  return found;
}

const log = (...p: number[]): number[] => p.map((value) => Math.log(value) + 3);

describe('greedy', () => {
  test('takes the best, the lowest id on a tie', () => expect(pick([0, 2, 1, 2], {}, 0.9)).toBe(1));
  test('-Infinity is legal beside others', () => expect(pick([-Infinity, -5], {}, 0)).toBe(1));
  test.each([
    [[NaN, 1], '[sampleToken] Expected logits without NaN but received NaN for token 0'],
    [[-Infinity, -Infinity], '[sampleToken] Expected finite logits but received none above -Infinity'],
    [[1, Infinity], '[sampleToken] Expected finite logits but received Infinity'],
  ])('refuses %j', (logits, message) => {
    expect.assertions(1);
    try {
      pick(logits, {}, 0);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ERR_RANGE', message });
    }
  });
});

describe('sampled', () => {
  const logits = log(0.1, 0.4, 0.2, 0.3);
  test.each<[string, Partial<SamplingOptions>, Record<number, number>]>([
    ['all', { temperature: 1 }, { 0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3 }],
    // p^2 / sum p^2, sum = 0.30
    ['temperature 0.5', { temperature: 0.5 }, { 0: 0.01 / 0.3, 1: 0.16 / 0.3, 2: 0.04 / 0.3, 3: 0.09 / 0.3 }],
    ['top-k', { temperature: 1, topK: 2 }, { 1: 4 / 7, 3: 3 / 7 }],
    ['top-k above the vocabulary', { temperature: 1, topK: 9 }, { 0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3 }],
    ['top-p keeps the token that crosses the limit', { temperature: 1, topP: 0.5 }, { 1: 4 / 7, 3: 3 / 7 }],
    ['top-p of the share left by top-k', { temperature: 1, topK: 2, topP: 0.57 }, { 1: 1 }],
    ['top-p below the best', { temperature: 1, topP: 0.01 }, { 1: 1 }],
    ['min-p', { temperature: 1, minP: 0.6 }, { 1: 4 / 7, 3: 3 / 7 }],
    ['min-p 1', { temperature: 1, minP: 1 }, { 1: 1 }],
    ['top-p and min-p', { temperature: 1, topP: 0.85, minP: 0.6 }, { 1: 4 / 7, 3: 3 / 7 }],
  ])('%s', (_, options, expected) => {
    const found = shares(logits, options);
    expect(Object.keys(found)).toEqual(Object.keys(expected));
    for (const [id, share] of Object.entries(expected)) expect(Math.abs((found[Number(id)] as number) - share)).toBeLessThan(0.0021);
  });
  test('top-k keeps the lowest ids of equals', () => expect(Object.keys(shares([1, 1, 1, 1], { temperature: 1, topK: 2 }))).toEqual(['0', '1']));
  test('a sorted head of a large vocabulary is the same as sorting all of it', () => {
    const many = Array.from({ length: 5000 }, (_, id) => Math.sin(id * 12.9898) * 6);
    const order = many.map((_, id) => id).sort((a, b) => many[b]! - many[a]! || a - b);
    const total = many.reduce((sum, value) => sum + Math.exp(value), 0);
    let mass = 0;
    const kept = order.slice(0, order.findIndex((id) => (mass += Math.exp(many[id]!)) >= 0.9 * total) + 1);
    expect(kept.length).toBeGreaterThan(100);
    for (const u of [0, 0.25, 0.5, 0.999]) {
      let left = u * kept.reduce((sum, id) => sum + Math.exp(many[id]!), 0);
      const expected = kept.find((id) => (left -= Math.exp(many[id]!)) < 0);
      expect(pick(many, { temperature: 1, topP: 0.9 }, u)).toBe(expected);
    }
  });
  test('u just below 1 stays inside', () => expect(pick([0, -Infinity], { temperature: 1 }, 1 - 2 ** -53)).toBe(0));
});

describe('repetition penalty', () => {
  test('divides positive logits, multiplies negative ones, once per token', () => {
    expect(pick([3, 2, -1], { repetitionPenalty: 2 }, 0, [0, 0])).toBe(1);
    expect(pick([-1.5, -2, -1], { repetitionPenalty: 2 }, 0, [2])).toBe(0);
  });
  test('leaves the given logits alone', () => {
    const logits = Float32Array.of(3, 2);
    sampleToken(logits, { ...DEFAULT_SAMPLING, repetitionPenalty: 4 }, [0], 0);
    expect([...logits]).toEqual([3, 2]);
  });
});

test.each([
  [{ temperature: -1 }, 'ERR_RANGE', '[generate] Expected temperature to be a number of at least 0 but received -1'],
  [{ topK: 1.5 }, 'ERR_RANGE', '[generate] Expected topK to be an integer of at least 0 but received 1.5'],
  [{ topP: 0 }, 'ERR_RANGE', '[generate] Expected topP to be a number from 5e-324 to 1 but received 0'],
  [{ minP: 2 }, 'ERR_RANGE', '[generate] Expected minP to be a number from 0 to 1 but received 2'],
  [{ repetitionPenalty: 5e-324 }, 'ERR_RANGE', '[generate] Expected repetitionPenalty to be a number from 0.001 to 1000 but received 5e-324'],
  [{ repetitionPenalty: 1e4 }, 'ERR_RANGE', '[generate] Expected repetitionPenalty to be a number from 0.001 to 1000 but received 10000'],
])('refuses %j', (change, code, message) => {
  expect.assertions(1);
  try {
    checkSampling('generate', { ...DEFAULT_SAMPLING, ...change });
  } catch (error) {
    expect(error).toMatchObject({ code, message });
  }
});
