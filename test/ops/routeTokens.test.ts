import fc from 'fast-check';
import { routeTokens, type PrefixState, type RouteTokensOptions } from '../../lib/kernels';
import { bestFirst, prefixTopk } from '../reference/selection';
import { offsets, random, refuses } from './support';

const score = fc.oneof(fc.constantFrom(NaN, Infinity, -Infinity, 0, -0), fc.constantFrom(1, 2, 3), fc.float({ noNaN: true }));
const batch = fc.array(fc.array(score, { maxLength: 40 }), { maxLength: 4 });

/** Rows of the batch and their offsets, from rows inside each sequence. */
function packed(lengths: readonly number[], own: readonly (readonly number[])[]): { rows: Int32Array; cuRouted: Int32Array } {
  const first = offsets(lengths);
  return { rows: Int32Array.from(own.flatMap((rows, b) => rows.map((row) => row + first[b]!))), cuRouted: offsets(own.map((rows) => rows.length)) };
}

test('threshold: a stable compaction of what lies above, on 10,000 random batches', async () => {
  await fc.assert(fc.asyncProperty(batch, fc.float({ min: -4, max: 4, noNaN: true }), async (sequences, threshold) => {
    const lengths = sequences.map((scores) => scores.length);
    const got = await routeTokens(Float32Array.from(sequences.flat()), { rule: 'threshold', cuSeqlens: offsets(lengths), threshold });
    expect(got).toEqual(packed(lengths, sequences.map((scores) => [...scores.keys()].filter((i) => scores[i]! > threshold))));
  }), { numRuns: 10_000, seed: 6 });
}, 120_000);

test('topk: the best of each sequence, in position order and best first, on 2,000 random batches', async () => {
  await fc.assert(fc.asyncProperty(batch, fc.integer({ min: 1, max: 50 }), async (sequences, alpha) => {
    const lengths = sequences.map((scores) => scores.length);
    const best = sequences.map((scores) => bestFirst(Float32Array.from(scores), [...scores.keys()]).slice(0, alpha));
    const got = await routeTokens(Float32Array.from(sequences.flat()), { rule: 'topk', cuSeqlens: offsets(lengths), alpha });
    expect(got).toEqual({ ...packed(lengths, best.map((rows) => [...rows].sort((a, b) => a - b))), order: packed(lengths, best).rows });
  }), { numRuns: 2_000, seed: 7 });
}, 120_000);

test('prefix-topk: the definition, and the same in two chunks cut anywhere, on 2,000 random batches', async () => {
  await fc.assert(fc.asyncProperty(batch, fc.integer({ min: 1, max: 12 }), fc.float({ min: 0, max: 1, noNaN: true }), async (sequences, alpha, share) => {
    const want = sequences.map((scores) => prefixTopk(Float32Array.from(scores), alpha));
    const rule = { rule: 'prefix-topk', alpha } as const;
    const run = (chunk: readonly number[][], state?: PrefixState) =>
      routeTokens(Float32Array.from(chunk.flat()), { ...rule, cuSeqlens: offsets(chunk.map((scores) => scores.length)), ...(state === undefined ? {} : { state }) });
    const whole = await run(sequences);
    expect({ rows: whole.rows, cuRouted: whole.cuRouted }).toEqual(packed(sequences.map((scores) => scores.length), want));
    const cut = sequences.map((scores) => Math.floor(share * scores.length));
    const first = await run(sequences.map((scores, b) => scores.slice(0, cut[b])));
    const second = await run(sequences.map((scores, b) => scores.slice(cut[b])), first.state as PrefixState);
    expect({ rows: second.rows, cuRouted: second.cuRouted })
      .toEqual(packed(sequences.map((scores, b) => scores.length - cut[b]!), want.map((rows, b) => rows.filter((row) => row >= cut[b]!).map((row) => row - cut[b]!))));
    expect(second.state).toEqual(whole.state);
  }), { numRuns: 2_000, seed: 8 });
}, 120_000);

test.each([0, 1, 31, 32, 33, 127, 128, 129, 1000])('%i scores between empty sequences', async (n) => {
  const scores = random(n, 3);
  const got = await routeTokens(scores, { rule: 'threshold', cuSeqlens: offsets([0, n, 0]), threshold: 0.5 });
  expect(got).toEqual(packed([0, n, 0], [[], [...scores.keys()].filter((i) => scores[i]! > 0.5), []]));
});

test('the state is plain data: it may be stored as JSON, and is not changed', async () => {
  const options = { rule: 'prefix-topk', cuSeqlens: offsets([3, 0]), alpha: 2 } as const;
  const { state } = await routeTokens(Float32Array.of(1, 3, 2), options);
  expect(state).toEqual({ version: 1, alpha: 2, cuBest: Int32Array.of(0, 2, 2), best: Float32Array.of(3, 2) });
  const stored = JSON.parse(JSON.stringify({ cuBest: [...state!.cuBest], best: [...state!.best] })) as { cuBest: number[]; best: number[] };
  const again = { version: 1, alpha: 2, cuBest: Int32Array.from(stored.cuBest), best: Float32Array.from(stored.best) } as const;
  expect((await routeTokens(Float32Array.of(2, 2.5, 9), { ...options, state: again })).rows).toEqual(Int32Array.of(1, 2));
  expect(again.best).toEqual(Float32Array.of(3, 2));
});

test('the example of the documentation', async () => {
  expect(await routeTokens(Float32Array.of(1, 5, 3, 9), { rule: 'threshold', cuSeqlens: Int32Array.of(0, 2, 4), threshold: 2 }))
    .toEqual({ rows: Int32Array.of(1, 2, 3), cuRouted: Int32Array.of(0, 1, 3) });
});

test('misuse', async () => {
  const x = random(4, 1);
  const call = (options: object): Promise<unknown> => routeTokens(x, { cuSeqlens: Int32Array.of(0, 4), ...options } as RouteTokensOptions);
  const prefix = { rule: 'prefix-topk', alpha: 2 };
  const state: PrefixState = { version: 1, alpha: 2, cuBest: Int32Array.of(0, 2), best: Float32Array.of(3, 2) };
  await refuses(routeTokens(x, undefined as never), 'ERR_ARGUMENT', "[routeTokens] Expected rule to be one of 'threshold', 'prefix-topk', 'topk' but received undefined");
  await refuses(call({ rule: 'prefix_topk' }), 'ERR_ARGUMENT', "[routeTokens] Expected rule to be one of 'threshold', 'prefix-topk', 'topk' but received \"prefix_topk\"; did you mean 'prefix-topk'?");
  await refuses(call({ rule: 'threshold' }), 'ERR_ARGUMENT', '[routeTokens] Expected threshold to be a finite number but received undefined');
  await refuses(call({ rule: 'threshold', threshold: NaN }), 'ERR_RANGE', '[routeTokens] Expected threshold to be a finite number but received NaN');
  await refuses(call({ rule: 'threshold', threshold: 1, alpha: 2 }), 'ERR_ARGUMENT', "[routeTokens] Expected no alpha with rule 'threshold' but received 2");
  await refuses(call({ rule: 'topk', alpha: 2, threshold: 1 }), 'ERR_ARGUMENT', "[routeTokens] Expected no threshold with rule 'topk' but received 1");
  await refuses(call({ rule: 'topk', alpha: 2, state }), 'ERR_ARGUMENT', "[routeTokens] Expected no state with rule 'topk' but received an object");
  await refuses(call({ rule: 'topk', alpha: 0 }), 'ERR_RANGE', '[routeTokens] Expected alpha to be an integer from 1 to 2147483647 but received 0');
  await refuses(call({ rule: 'topk', alpha: 1, cuSeqlens: Int32Array.of(0, 3) }), 'ERR_SHAPE', '[routeTokens] Expected scores to have the end of cuSeqlens = 3 elements but received 4');
  await refuses(call({ rule: 'topk', alpha: 1, cuSeqlens: new Int32Array(0) }), 'ERR_SHAPE', '[routeTokens] Expected cuSeqlens to have at least 1 element but received 0');
  await refuses(call({ ...prefix, state: null }), 'ERR_ARGUMENT', '[routeTokens] Expected state to be an object but received null');
  await refuses(call({ ...prefix, state: { ...state, version: 2 } }), 'ERR_ARGUMENT', '[routeTokens] Expected state to have version 1 but received 2');
  await refuses(call({ ...prefix, alpha: 3, state }), 'ERR_RANGE', '[routeTokens] Expected state to be of alpha = 3 but received 2');
  await refuses(call({ ...prefix, state: { ...state, cuBest: Int32Array.of(0, 1, 2) } }), 'ERR_SHAPE', '[routeTokens] Expected state.cuBest to have as many as cuSeqlens = 2 elements but received 3');
  await refuses(call({ ...prefix, state: { ...state, cuBest: Int32Array.of(0, 1) } }), 'ERR_RANGE', '[routeTokens] Expected state.cuBest to end at 2 but received 1');
  await refuses(call({ ...prefix, state: { ...state, best: [3, 2] } }), 'ERR_DTYPE', '[routeTokens] Expected state.best to be a Float32Array but received Array(2)');
  await refuses(call({ ...prefix, state: { ...state, cuBest: Int32Array.of(0, 3), best: Float32Array.of(3, 2, 1) } }), 'ERR_RANGE', '[routeTokens] Expected state to hold at most alpha = 2 scores of sequence 0 but received 3');
  await refuses(call({ ...prefix, state: { ...state, best: Float32Array.of(2, 3) } }), 'ERR_RANGE', '[routeTokens] Expected state.best to be best first but received 2 then 3 at 1');
  await refuses(call({ ...prefix, state: { ...state, best: Float32Array.of(NaN, 3) } }), 'ERR_RANGE', '[routeTokens] Expected state.best to be best first but received NaN then 3 at 1');
  await refuses(call({ rule: 'topk', alpa: 1 }), 'ERR_ARGUMENT', "[routeTokens] Expected options among rule, cuSeqlens, threshold, alpha, state, signal, device but received 'alpa'; did you mean 'alpha'?");
});
