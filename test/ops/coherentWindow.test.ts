import fc from 'fast-check';
import { coherentWindow, type CoherentWindowOptions, type CoherentWindowResult } from '../../lib/kernels';
import { replayStep, type Grid, type Step } from '../reference/selection';
import { expectClose, offsets, random, refuses } from './support';

interface Sequence { scores: number[]; used: number[]; grids: Grid[] }

function optionsOf(sequences: readonly Sequence[], patches: number, window: number): CoherentWindowOptions<'array'> & { used: Uint8Array } {
  return {
    cuTokens: offsets(sequences.map(({ scores }) => scores.length)), cuPictures: offsets(sequences.map(({ grids }) => grids.length)),
    grids: Int32Array.from(sequences.flatMap(({ grids }) => grids.flatMap(({ rows, columns }) => [rows, columns]))), patches, window,
    used: Uint8Array.from(sequences.flatMap(({ used }) => used)),
  };
}

const scoresOf = (sequences: readonly Sequence[]): Float32Array => Float32Array.from(sequences.flatMap(({ scores }) => scores));

function expectSteps(got: CoherentWindowResult, want: readonly Step[]): void {
  const { cuSelected, selected, windows, used, weights } = got;
  expect([cuSelected, selected, windows, used].map((values) => values.join())).toEqual([
    offsets(want.map((step) => step.selected.length)), want.flatMap((step) => step.selected), want.flatMap((step) => step.window), want.flatMap((step) => step.used),
  ].map((values) => values.join()));
  expect(weights.every(Number.isFinite)).toBe(true);
  if (weights.length > 0) expectClose(weights, want.flatMap((step) => step.weights));
}

/** Of equal scores, few different ones, or any: NaN, infinities and both zeros among them. Squares, strips and single cells. */
const score = fc.oneof(fc.constantFrom(NaN, Infinity, -Infinity, 0, -0, 1), fc.constantFrom(0.25, 0.5, 0.75), fc.float({ min: 0, max: 1, noNaN: true }), fc.constant(0.5));
const grid = fc.record({ rows: fc.integer({ min: 1, max: 9 }), columns: fc.integer({ min: 1, max: 9 }) });
const sequence = fc.array(grid, { maxLength: 3 }).chain((grids) => {
  const cells = grids.reduce((sum, { rows, columns }) => sum + rows * columns, 0);
  const list = <T>(item: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.array(item, { minLength: cells, maxLength: cells });
  return fc.record({
    grids: fc.constant(grids), scores: fc.oneof(list(score), fc.constant(Array<number>(cells).fill(0.5))), used: fc.oneof(list(fc.constantFrom(0, 0, 1)), fc.constant(Array<number>(cells).fill(0))),
  });
});

test('equals brute force on 10,000 random batches: ties, NaN, infinities, all equal, more places than cells', async () => {
  let places = 0;
  await fc.assert(fc.asyncProperty(fc.array(sequence, { maxLength: 2 }), fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 10 }), fc.constantFrom('mean-preserving' as const, 'softmax' as const), async (sequences, patches, window, weights) => {
    const scores = scoresOf(sequences);
    const got = await coherentWindow(scores, { ...optionsOf(sequences, patches, window), weights });
    let at = 0;
    const want = sequences.map(({ scores: { length }, used, grids }) => replayStep(scores.subarray(at, at += length), used, grids, patches, window, weights));
    expectSteps(got, want);
    places += got.selected.length;
  }), { numRuns: 10_000, seed: 5 });
  expect(places).toBeGreaterThan(100_000);
}, 300_000);

test('a real picture: 28 x 37 cells, 32 of them, step after step until none is left', async () => {
  const only: Sequence = { scores: [...random(28 * 37, 4)].map(Math.abs), used: Array<number>(28 * 37).fill(0), grids: [{ rows: 28, columns: 37 }] };
  const options = optionsOf([only], 32, 3);
  let used = options.used;
  for (let step = 0; step < 34; step++) {
    const got = await coherentWindow(scoresOf([only]), { ...options, used });
    expectSteps(got, [replayStep(scoresOf([only]), used, only.grids, 32, 3, 'mean-preserving')]);
    expect(got.selected.length).toBe(step < 32 ? 32 : step === 32 ? 12 : 0);
    used = got.used;
  }
});

test('the example of the documentation', async () => {
  const options = { cuTokens: Int32Array.of(0, 4), cuPictures: Int32Array.of(0, 1), grids: Int32Array.of(2, 2), patches: 2, window: 1 };
  expect(await coherentWindow(Float32Array.of(0, 1, 3, 0), options)).toEqual({
    cuSelected: Int32Array.of(0, 2), selected: Int32Array.of(2, 1), weights: Float32Array.of(1.5, 0.5), windows: Int32Array.of(0, 0, 1, 1, 1, 1), used: Uint8Array.of(0, 1, 1, 0),
  });
});

test('the given state is not changed; no sequences and no pictures are fine', async () => {
  const used = Uint8Array.of(0, 1);
  await coherentWindow(Float32Array.of(1, 2), { ...optionsOf([{ scores: [1, 2], used: [0, 1], grids: [{ rows: 1, columns: 2 }] }], 1, 1), used });
  expect([...used]).toEqual([0, 1]);
  const none = { cuSelected: Int32Array.of(0), selected: new Int32Array(0), weights: new Float32Array(0), windows: new Int32Array(0), used: new Uint8Array(0) };
  expect(await coherentWindow(new Float32Array(0), optionsOf([], 1, 1))).toEqual(none);
  expect(await coherentWindow(new Float32Array(0), optionsOf([{ scores: [], used: [], grids: [] }], 1, 1))).toEqual({ ...none, cuSelected: Int32Array.of(0, 0), windows: new Int32Array(6) });
});

test('misuse', async () => {
  const x = random(6, 1);
  const good = { cuTokens: Int32Array.of(0, 6), cuPictures: Int32Array.of(0, 1), grids: Int32Array.of(2, 3), patches: 2, window: 2 };
  const call = (change: object): Promise<unknown> => coherentWindow(x, { ...good, ...change });
  await refuses(coherentWindow(x, undefined as never), 'ERR_DTYPE', '[coherentWindow] Expected cuTokens to be a Int32Array but received undefined');
  await refuses(call({ cuTokens: Int32Array.of(0, 7) }), 'ERR_SHAPE', '[coherentWindow] Expected the grids of sequence 0 to have as many cells as it has scores = 7 but received 6');
  await refuses(call({ cuTokens: Int32Array.of(0, 6, 5) }), 'ERR_RANGE', '[coherentWindow] Expected cuTokens never to fall but received 6 then 5 at 2');
  await refuses(call({ cuPictures: Int32Array.of(0) }), 'ERR_SHAPE', '[coherentWindow] Expected cuPictures to have as many as cuTokens = 2 elements but received 1');
  await refuses(call({ grids: Int32Array.of(2, 3, 1) }), 'ERR_SHAPE', '[coherentWindow] Expected grids to have 2*pictures = 2 elements but received 3');
  await refuses(call({ grids: Int32Array.of(-2, -3) }), 'ERR_RANGE', '[coherentWindow] Expected the grid of picture 0 to be at least 1 x 1 but received -2 x -3');
  await refuses(call({ patches: 0 }), 'ERR_RANGE', '[coherentWindow] Expected patches to be an integer from 1 to 2147483647 but received 0');
  await refuses(call({ window: 1.5 }), 'ERR_RANGE', '[coherentWindow] Expected window to be an integer from 1 to 2147483647 but received 1.5');
  await refuses(call({ weights: 'soft' }), 'ERR_ARGUMENT', "[coherentWindow] Expected weights to be one of 'mean-preserving', 'softmax' but received \"soft\"");
  await refuses(call({ used: new Uint8Array(5) }), 'ERR_SHAPE', '[coherentWindow] Expected used to have as many as scores = 6 elements but received 5');
  await refuses(call({ used: Uint8Array.of(0, 1, 2, 0, 0, 0) }), 'ERR_RANGE', '[coherentWindow] Expected used to hold 0 and 1 but received 2 at 2');
  await refuses(coherentWindow(random(5, 1), good), 'ERR_SHAPE', '[coherentWindow] Expected scores to have the end of cuTokens = 6 elements but received 5');
  await refuses(coherentWindow(new Float64Array(6) as never, good), 'ERR_DTYPE', '[coherentWindow] Expected scores to be a Float32Array or a Tensor but received Float64Array(6)');
  await refuses(call({ patch: 1 }), 'ERR_ARGUMENT', "[coherentWindow] Expected options among cuTokens, cuPictures, grids, patches, window, weights, used, output, signal, device but received 'patch'");
});
