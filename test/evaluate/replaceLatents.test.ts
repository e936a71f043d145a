import { REPLACEMENTS, replaceLatents, type Replacement, type ReplaceOptions } from '../../lib/evaluate/replaceLatents';

const f32 = (...values: number[]): Float32Array => Float32Array.from(values);
const plain = (made: readonly Float32Array[]): number[][] => made.map((own) => [...own]);
// Of width 2: three steps, none, one, two.
const LATENTS = [f32(3, 4, 0, 0, 6, 8), f32(), f32(1, 2), f32(5, 0, 2, 1)];

test('zeros', () => expect(plain(replaceLatents('zero', LATENTS, 2))).toEqual([[0, 0, 0, 0, 0, 0], [], [0, 0], [0, 0, 0, 0]]));

test('noise has the norm of each latent that it replaces, and its own direction', () => {
  const noise = [f32(0, 2, 1, 1, -3, 0), f32(), f32(2, 1), f32(1, 0, 0, -4)];
  const [first, none, second, third] = replaceLatents('noise', LATENTS, 2, { noise });
  expect([...first!]).toEqual([0, 5, 0, 0, -10, 0]);
  expect(none).toHaveLength(0);
  expect([...second!]).toEqual([2, 1]);
  expect([...third!.subarray(0, 3)]).toEqual([5, 0, 0]);
  expect(third![3]).toBeCloseTo(-Math.sqrt(5), 6);
});

test('the mean of a step is over the samples that have it', () => {
  expect(plain(replaceLatents('mean', LATENTS, 2))).toEqual([[3, 2, 1, 0.5, 6, 8], [], [3, 2], [3, 2, 1, 0.5]]);
  // In f32 the sum of these would lose the 1s.
  expect(plain(replaceLatents('mean', [f32(2 ** 25), f32(1), f32(1), f32(2)], 1))[1]).toEqual([Math.fround((2 ** 25 + 4) / 4)]);
});

test('those of the next sample that has any, around the end; from its first again where it has fewer', () => {
  expect(plain(replaceLatents('other', LATENTS, 2))).toEqual([[1, 2, 1, 2, 1, 2], [], [5, 0], [3, 4, 0, 0]]);
  expect(plain(replaceLatents('other', [f32(), f32()], 2))).toEqual([[], []]);
});

test('its own in another order', () => {
  expect(plain(replaceLatents('shuffle', LATENTS, 2, { orders: [[2, 0, 1], [], [0], Int32Array.of(1, 0)] }))).toEqual([[6, 8, 3, 4, 0, 0], [], [1, 2], [2, 1, 5, 0]]);
});

test('gives new arrays, and changes none', () => {
  const before = plain(LATENTS);
  const options = { noise: LATENTS.map((own) => own.map(() => 1)), orders: [[0, 1, 2], [], [0], [0, 1]] };
  for (const kind of REPLACEMENTS) replaceLatents(kind, LATENTS, 2, options).forEach((made, n) => { expect(made).not.toBe(LATENTS[n]); made.fill(9); });
  expect(plain(LATENTS)).toEqual(before);
  expect(replaceLatents('mean', [], 2)).toEqual([]);
});

const ONE = [f32(1, 2, 3, 4)];
test.each<[Replacement, readonly Float32Array[], number, ReplaceOptions, string, string]>([
  ['zeros' as never, ONE, 2, {}, 'ERR_ARGUMENT', "Expected kind to be one of 'zero', 'noise', 'mean', 'other', 'shuffle' but received \"zeros\"; did you mean 'zero'?"],
  ['zero', ONE, 0, {}, 'ERR_RANGE', 'Expected width to be an integer of at least 1 but received 0'],
  ['zero', ONE[0] as never, 2, {}, 'ERR_ARGUMENT', 'Expected latents to be an array but received Float32Array(4)'],
  ['zero', [f32(), [1] as never], 1, {}, 'ERR_DTYPE', 'Expected latents of sample 1 to be a Float32Array but received Array(1)'],
  ['zero', ONE, 3, {}, 'ERR_SHAPE', 'Expected latents of sample 0 to be rows of width = 3 but received 4 elements'],
  ['zero', ONE, 2, { order: [] } as never, 'ERR_ARGUMENT', "Expected options among noise, orders but received 'order'; did you mean 'orders'?"],
  ['noise', ONE, 2, {}, 'ERR_ARGUMENT', 'Expected noise to be an array but received undefined'],
  ['noise', ONE, 2, { noise: [] }, 'ERR_SHAPE', 'Expected noise for each of 1 samples but received 0'],
  ['noise', ONE, 2, { noise: [new Float64Array(4) as never] }, 'ERR_DTYPE', 'Expected noise of sample 0 to be a Float32Array but received Float64Array(4)'],
  ['noise', ONE, 2, { noise: [f32(1, 2)] }, 'ERR_SHAPE', 'Expected noise of sample 0 to have steps*width = 4 elements but received 2'],
  ['noise', ONE, 2, { noise: [f32(1, 2, 0, 0)] }, 'ERR_RANGE', 'Expected noise of step 1 of sample 0 to have a finite norm above 0 but received 0; draw it from a normal distribution'],
  ['noise', ONE, 2, { noise: [f32(NaN, 2, 0, 1)] }, 'ERR_RANGE', 'Expected noise of step 0 of sample 0 to have a finite norm above 0 but received NaN; draw it from a normal distribution'],
  ['other', [f32(), ...ONE], 2, {}, 'ERR_ARGUMENT', "Expected at least two samples with latents for 'other' but received 1, whose latents would be replaced by themselves; give more samples"],
  ['shuffle', ONE, 2, {}, 'ERR_ARGUMENT', 'Expected orders to be an array but received undefined'],
  ['shuffle', ONE, 2, { orders: [[0, 1], []] }, 'ERR_SHAPE', 'Expected orders for each of 1 samples but received 2'],
  ['shuffle', ONE, 2, { orders: [1 as never] }, 'ERR_ARGUMENT', 'Expected order of sample 0 to be an object but received 1'],
  ['shuffle', ONE, 2, { orders: [[0]] }, 'ERR_SHAPE', 'Expected order of sample 0 to have a place for each of its 2 steps but received 1'],
  ['shuffle', ONE, 2, { orders: [[0, 2]] }, 'ERR_RANGE', 'Expected place 1 of the order of sample 0 to be an integer from 0 to 1 but received 2'],
  ['shuffle', ONE, 2, { orders: [[1, 1]] }, 'ERR_ARGUMENT', 'Expected order of sample 0 to hold each step once but received 1 twice'],
])('%s refuses %j, %j, %j', (kind, latents, width, options, code, message) => {
  expect(() => replaceLatents(kind, latents, width, options)).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[replaceLatents] ${message}` }));
});
