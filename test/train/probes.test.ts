/** Which rows a probed batch runs, on a session that only records, and what probes must be. */
import { makePreset, type Preset } from '../../lib/model/preset';
import { countSuperResolved, runBatch, type BatchOptions, type SequenceInput } from '../../lib/train/batch';
import type { SequenceProbe, SequenceRoute } from '../../lib/train/probes';
import { END, fakeModel, GEOMETRY, picture, type FakeModel } from '../decode/fakeModel';

const D = GEOMETRY.hidden;
const IMAGE = GEOMETRY.imageToken;
/** Rows that hold one number each. */
const rows = (...values: number[]): Float32Array => Float32Array.from(values.flatMap((value) => new Array<number>(D).fill(value)));
const plain = (values: ArrayLike<number> | undefined): number[] => Array.from(values ?? []);
/** What the rows of `rows` hold. */
const firsts = (vectors: Float32Array | undefined): number[] => plain(vectors).filter((_, i) => i % D === 0);

const PICTURED: SequenceInput = { promptIds: [1, IMAGE, IMAGE, 2], pictures: [picture(1, 2)], latents: 2, words: [5, END] };
const SAID: SequenceInput = { promptIds: [3], pictures: [], latents: 1, words: [7, END] };
const REPLAYING = makePreset({ patches: 1, routedLayers: [] }, GEOMETRY.layers);
const ROUTING = makePreset({ replay: false, routedLayers: [1, 3], maxDepth: 3 }, GEOMETRY.layers);
const AHEAD = makePreset({ patches: 1, routedLayers: [1], rule: 'topk' }, GEOMETRY.layers);

async function run(sequences: readonly SequenceInput[], preset: Preset, options: BatchOptions = {}): Promise<FakeModel> {
  const model = fakeModel();
  const session = model.openSession({ training: false, recompute: false, detachLatents: false, visionGradient: false, replay: { patches: preset.patches } as never });
  await runBatch(session, sequences, GEOMETRY, { preset, feedLastWord: true, ...options });
  return model;
}

describe('given rows', () => {
  test('latents take the place of latent rows; replay goes on', async () => {
    const { passes, calls } = await run([{ ...PICTURED, probe: { latents: rows(8, 9) } }, SAID], REPLAYING);
    expect(passes.map(({ kind }) => plain(kind))).toEqual([[0, 1, 1, 0, 0], [4, 3, 2, 0, 0], [4, 3, 0, 0]]);
    expect(passes.map(({ index }) => plain(index))).toEqual([[1, 0, 1, 2, 3], [0, 0, 0, 7, END], [1, 0, 5, END]]);
    expect(passes.map(({ embeddings }) => firsts(embeddings))).toEqual([[], [8], [9]]);
    expect(calls).toEqual(['setPictures[0]', 'replay[0]', 'replay[0]']);
  });
  test('blocks take the place of replay, which then does not look', async () => {
    const { passes, calls } = await run([{ ...PICTURED, probe: { blocks: [rows(1, 2, 3), rows()] } }, { ...SAID, probe: { latents: rows(7), blocks: [rows(6)] } }], REPLAYING);
    expect(passes.map(({ kind }) => plain(kind))).toEqual([[0, 1, 1, 0, 0], [3, 3, 3, 2, 3, 3, 0, 0], [2, 0, 0]]);
    expect(passes.map(({ index }) => plain(index))).toEqual([[1, 0, 1, 2, 3], [0, 1, 2, 0, 3, 4, 7, END], [0, 5, END]]);
    expect(firsts(passes[1]!.embeddings)).toEqual([1, 2, 3, 6, 7]);
    expect(plain(passes[1]!.positions.subarray(0, 6))).toEqual([4, 5, 6, 7, 1, 2]);
    expect(plain(passes[2]!.positions.subarray(0, 3))).toEqual([8, 9, 10]);
    expect(passes.every((pass) => pass.saliency === undefined)).toBe(true);
    expect(calls).toEqual([]);
  });
  test('dropped blocks: the rows after them move up', async () => {
    const { passes, calls } = await run([{ ...PICTURED, probe: { blocks: 'dropped' } }], REPLAYING);
    expect(passes.map(({ kind }) => plain(kind))).toEqual([[0, 1, 1, 0], [2], [2, 0, 0]]);
    expect(plain(passes[2]!.positions.subarray(0, 3))).toEqual([5, 6, 7]);
    expect(calls).toEqual([]);
  });
  test("in the form 'recompute' they are sent again with every pass; only own latents are kept", async () => {
    const { passes, calls } = await run([{ ...PICTURED, probe: { latents: rows(8, 9) } }, { ...SAID, latents: 2 }], AHEAD);
    expect(passes.map(({ kind }) => plain(kind))).toEqual([
      [0, 1, 1, 0, 0], [0, 1, 1, 0, 4, 3, 0, 4], [0, 1, 1, 0, 4, 3, 4, 3, 0, 0, 0, 4, 4, 0, 0],
    ]);
    expect(passes.map(({ embeddings }) => firsts(embeddings))).toEqual([[], [8], [8, 9]]);
    expect(passes.map(({ kind, index }) => plain(index).filter((_, i) => kind[i] === 3))).toEqual([[], [0], [0, 1]]);
    expect(calls.filter((call) => call.startsWith('keep'))).toEqual(['keepLatents[1]', 'keepLatents[1]']);
  });
  test('are copied before anything waits', async () => {
    const probe = { latents: rows(8, 9), blocks: [rows(1), rows(2)] };
    const running = run([{ ...PICTURED, probe }], REPLAYING);
    for (const vectors of [probe.latents, ...probe.blocks]) vectors.fill(0);
    expect((await running).passes.map(({ embeddings }) => firsts(embeddings))).toEqual([[], [1, 8], [2, 9]]);
  });
  test('a sequence with given blocks has no super-resolution loss', () => {
    expect(countSuperResolved([PICTURED, { ...PICTURED, probe: { latents: rows(1, 2) } }, { ...PICTURED, probe: { blocks: 'dropped' } }], GEOMETRY, REPLAYING)).toBe(2);
  });
});

test('forced routes: rows of each sequence, in the passes that they are in, at every depth of every routed layer', async () => {
  const forcedRoutes: SequenceRoute[][] = [[{ layer: 1, depth: 2, rows: [0, 3, 4, 7] }, { layer: 3, depth: 3, rows: Int32Array.of(5) }], [{ layer: 1, depth: 2, rows: [0, 1] }]];
  const { passes } = await run([PICTURED, SAID], ROUTING, { forcedRoutes });
  expect(passes.map((pass) => pass.forcedRoutes!.map(({ layer, depth, rows: own }) => [layer, depth, plain(own)]))).toEqual([
    [[1, 2, [0, 3, 4]], [1, 3, []], [3, 2, []], [3, 3, []]],
    [[1, 2, [0, 1]], [1, 3, []], [3, 2, []], [3, 3, []]],
    [[1, 2, [2]], [1, 3, []], [3, 2, []], [3, 3, [0]]],
  ]);
  const ahead = await run([PICTURED, SAID], AHEAD, { forcedRoutes: [[{ layer: 1, depth: 2, rows: [0, 9] }], []] });
  expect(ahead.passes.map((pass) => plain(pass.forcedRoutes![0]!.rows))).toEqual([[0], [0], [0, 9]]);
  expect((await run([PICTURED], ROUTING)).passes[0]).not.toHaveProperty('forcedRoutes');
});

const probed = (probe: unknown): SequenceInput[] => [SAID, { ...PICTURED, probe: probe as SequenceProbe }];
test.each<[unknown, string, string]>([
  [5, 'ERR_ARGUMENT', 'Expected options of the probe of sequence 1 to be an object but received 5'],
  [{ latent: rows(1) }, 'ERR_ARGUMENT', "Expected options of the probe of sequence 1 among latents, blocks but received 'latent'; did you mean 'latents'?"],
  [{ latents: [1] }, 'ERR_DTYPE', 'Expected probe latents of sequence 1 to be a Float32Array but received Array(1)'],
  [{ latents: rows(1) }, 'ERR_SHAPE', 'Expected probe latents of sequence 1 to have latents*hidden = 16 elements but received 8'],
  [{ latents: rows(1, NaN) }, 'ERR_RANGE', 'Expected probe latents of sequence 1 to be finite but received NaN at 8'],
  [{ blocks: 'kept' }, 'ERR_ARGUMENT', "Expected blocks of the probe of sequence 1 to be 'dropped' or an array but received \"kept\""],
  [{ blocks: [rows(1)] }, 'ERR_SHAPE', 'Expected a block for each of the 2 latents of sequence 1 but received 1; a step without one has a block of 0 rows'],
  [{ blocks: [rows(1), null] }, 'ERR_DTYPE', 'Expected block 1 of sequence 1 to be a Float32Array but received null'],
  [{ blocks: [rows(1), new Float32Array(9)] }, 'ERR_SHAPE', 'Expected block 1 of sequence 1 to be rows of hidden = 8 but received 9 elements'],
  [{ blocks: [rows(Infinity), rows()] }, 'ERR_RANGE', 'Expected block 0 of sequence 1 to be finite but received Infinity at 0'],
])('refuses the probe %p', async (probe, code, message) => {
  await expect(run(probed(probe), REPLAYING)).rejects.toMatchObject({ name: 'LibError', code, message: `[runBatch] ${message}` });
});

const second = (...routes: unknown[]): unknown[] => [[], routes];
test.each<[unknown, string, string]>([
  ['random', 'ERR_ARGUMENT', 'Expected forcedRoutes to be an array but received "random"'],
  [[[]], 'ERR_SHAPE', 'Expected forcedRoutes for each of 2 sequences but received 1'],
  [[[], null], 'ERR_ARGUMENT', 'Expected forcedRoutes of sequence 1 to be an array but received null'],
  [second(7), 'ERR_ARGUMENT', 'Expected forced route 0 of sequence 1 to be an object but received 7'],
  [second({ layer: 2, depth: 2, rows: [] }), 'ERR_ARGUMENT', 'Expected layer of forced route 0 of sequence 1 to be a layer that the preset routes, 1, 3, but received 2'],
  [second({ layer: 1, depth: 4, rows: [] }), 'ERR_RANGE', 'Expected depth of forced route 0 of sequence 1 to be an integer from 2 to 3 but received 4'],
  [second({ layer: 1, depth: 2, rows: [] }, { layer: 1, depth: 2, rows: [] }), 'ERR_ARGUMENT', 'Expected each layer and depth once in forcedRoutes of sequence 1 but received layer 1 at depth 2 twice'],
  [second({ layer: 1, depth: 2 }), 'ERR_ARGUMENT', 'Expected rows of forced route 0 of sequence 1 to be an object but received undefined'],
  [second({ layer: 1, depth: 2, rows: [-1] }), 'ERR_RANGE', 'Expected row 0 of forced route 0 of sequence 1 to be an integer of at least 0 but received -1'],
  [second({ layer: 1, depth: 2, rows: [2, 2] }), 'ERR_RANGE', 'Expected row 1 of forced route 0 of sequence 1 to be an integer of at least 3 but received 2'],
  [second({ layer: 1, depth: 2, rows: [0, 4] }), 'ERR_RANGE', 'Expected forced rows of sequence 1 to be among its 4 rows but received 4'],
])('refuses the forced routes %j', async (forcedRoutes, code, message) => {
  await expect(run([PICTURED, SAID], ROUTING, { forcedRoutes: forcedRoutes as never })).rejects.toMatchObject({ name: 'LibError', code, message: `[runBatch] ${message}` });
});
test('without routing there is nothing to force', async () => {
  await expect(run([SAID], REPLAYING, { forcedRoutes: [[{ layer: 1, depth: 2, rows: [] }]] })).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: '[runBatch] Expected layer of forced route 0 of sequence 0 to be a layer that the preset routes, of which there is none, but received 1',
  });
});
