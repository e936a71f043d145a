/** Which rows a batch runs, in which pass, on a session that only records. */
import { makePreset, PRESETS, type Preset, type PresetChanges } from '../../lib/model/preset';
import { countSuperResolved, replayLosses, runBatch, type BatchOptions, type BatchRun, type SequenceInput } from '../../lib/train/batch';
import { END, fakeModel, GEOMETRY, picture, type FakeModel } from '../decode/fakeModel';

const IMAGE = GEOMETRY.imageToken;
// 0 latents with a picture; 2 latents without; 1 latent, two pictures, no words.
const SEQUENCES: SequenceInput[] = [
  { promptIds: [1, IMAGE, IMAGE, 2], pictures: [picture(1, 2)], latents: 0, words: [5, 6, END] },
  { promptIds: [3], pictures: [], latents: 2, words: [7, END] },
  { promptIds: [4, IMAGE, 4, IMAGE, IMAGE], pictures: [picture(1, 1), picture(2, 1)], latents: 1, words: [] },
];
const TRAINING = { training: true, recompute: false, detachLatents: false, visionGradient: true };

async function run(sequences: readonly SequenceInput[], options: BatchOptions = {}, before = 0): Promise<{ model: FakeModel; ran: BatchRun }> {
  const model = fakeModel();
  model.passes.push(...new Array(before));   // the session's next pass is number `before`
  const { preset } = options;
  const session = model.openSession({ ...TRAINING, ...(preset?.replay ? { replay: { patches: preset.patches } as never } : {}) });
  return { model, ran: await runBatch(session, sequences, GEOMETRY, options) };
}

function plain(values: ArrayLike<number> | undefined): number[] {
  return Array.from(values ?? []);
}
const presetOf = (changes: PresetChanges): Preset => makePreset(changes, GEOMETRY.layers);

describe('without replay', () => {
  test('pass 0 holds prompts, and the words of sequences without latents', async () => {
    const { model: { passes: [pass] } } = await run(SEQUENCES, { feedLastWord: true });
    expect(plain(pass!.sequences)).toEqual([0, 1, 2]);
    expect(plain(pass!.cuSeqlens)).toEqual([0, 7, 8, 13]);
    expect(plain(pass!.kind)).toEqual([0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1]);
    expect(plain(pass!.index)).toEqual([1, 0, 1, 2, 5, 6, END, 3, 4, 2, 4, 3, 4]);
    expect(plain(pass!.positions)).toEqual([
      0, 1, 1, 3, 4, 5, 6, 0, 0, 1, 2, 3, 3,
      0, 1, 1, 3, 4, 5, 6, 0, 0, 1, 2, 3, 4,
      0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 3, 3,
    ]);
    expect(pass).not.toHaveProperty('saliency');
    expect(pass).not.toHaveProperty('logitRows');
  });
  test('pass t holds the t-th latents, and the words of sequences whose last it is', async () => {
    const { model: { passes, calls } } = await run(SEQUENCES, { feedLastWord: true });
    expect(passes.length).toBe(3);
    expect(plain(passes[1]!.sequences)).toEqual([1, 2]);
    expect(plain(passes[1]!.kind)).toEqual([2, 2]);
    expect(plain(passes[1]!.positions)).toEqual([1, 5, 1, 5, 1, 5]);
    expect(plain(passes[2]!.sequences)).toEqual([1]);
    expect(plain(passes[2]!.kind)).toEqual([2, 0, 0]);
    expect(plain(passes[2]!.index)).toEqual([0, 7, END]);
    expect(plain(passes[2]!.positions)).toEqual([2, 3, 4, 2, 3, 4, 2, 3, 4]);
    expect(calls).toEqual([]);
  });
  test('each word is predicted by the row before it, in the pass that the session numbered', async () => {
    const { ran: { results, targets, replays } } = await run(SEQUENCES, { feedLastWord: true }, 4);
    expect(results.map(({ pass }) => pass)).toEqual([4, 5, 6]);
    expect(plain(targets.pass)).toEqual([4, 4, 4, 6, 6]);
    expect(plain(targets.row)).toEqual([3, 4, 5, 0, 1]);
    expect(plain(targets.target)).toEqual([5, 6, END, 7, END]);
    expect(plain(targets.sequence)).toEqual([0, 0, 0, 1, 1]);
    expect(replays).toEqual([]);
  });
  test('the last word is left out unless asked for: the same targets, one row less per sequence with words', async () => {
    const [all, short] = [await run(SEQUENCES, { feedLastWord: true }), await run(SEQUENCES)];
    expect(short.ran.targets).toEqual(all.ran.targets);
    expect(short.model.passes.map(({ kind }) => kind.length)).toEqual([12, 2, 2]);
  });
  test('n latents add exactly n rows', async () => {
    const rows = async (latents: number): Promise<number> => (await run([{ ...SEQUENCES[0]!, latents }])).model.tokenForwards;
    for (const n of [0, 1, 5, 33]) expect(await rows(n)).toBe((await rows(0)) + n);
  });
  test('pictures of all sequences are encoded in one call, in order', async () => {
    expect((await run(SEQUENCES)).model.encoded.map(plain)).toEqual([[1, 28, 56, 1, 28, 28, 1, 56, 28]]);
  });
});

// Three image tokens: blocks of 2, 1 and no rows. Ends before, with and after the others.
const REPLAYED: SequenceInput[] = [
  { ...SEQUENCES[2]!, latents: 3, words: [8, END] },
  { ...SEQUENCES[1]!, words: [7, END] },
  { promptIds: [IMAGE, IMAGE], pictures: [picture(1, 2)], latents: 1, words: [9] },
  { ...SEQUENCES[0]!, words: [5] },
];

describe('with replay', () => {
  const preset = presetOf({ patches: 2, routedLayers: [] });
  test('a block and a latent per step, as many rows as are left; words after the last', async () => {
    const { model, ran } = await run(REPLAYED, { preset, feedLastWord: true, targets: true });
    expect(model.passes.map((pass) => plain(pass.sequences))).toEqual([[0, 1, 2, 3], [0, 1, 2], [0, 1], [0]]);
    expect(model.passes.map((pass) => plain(pass.cuSeqlens))).toEqual([[0, 5, 6, 8, 13], [0, 3, 4, 8], [0, 2, 5], [0, 3]]);
    expect(model.passes.map((pass) => plain(pass.kind))).toEqual([
      [0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0], [4, 4, 2, 2, 4, 4, 2, 0], [4, 2, 2, 0, 0], [2, 0, 0],
    ]);
    // Stored rows: block 1 of sequence 0, block 1 of sequence 2, block 2 of sequence 0.
    expect(model.passes.map((pass) => plain(pass.index))).toEqual([
      [4, 0, 4, 1, 2, 3, 3, 4, 1, 5, 6, 2, 5], [0, 1, 0, 0, 2, 3, 0, 9], [4, 0, 0, 7, END], [0, 8, END],
    ]);
    // Sequence 0: prompt at 0..3 (delta 0: 5 rows, the next at 5), then row by row. All three rows alike.
    expect(plain(model.passes[1]!.positions.subarray(0, 8))).toEqual([5, 6, 7, 1, 2, 3, 4, 5]);
    expect(plain(model.passes[2]!.positions.subarray(5, 10))).toEqual([8, 9, 2, 3, 4]);
    expect(plain(model.passes[3]!.positions.subarray(6, 9))).toEqual([10, 11, 12]);
    // Only where a block follows; none for a sequence without latents or without pictures.
    expect(model.passes.map(({ saliency }) => saliency && plain(saliency))).toEqual([[1, 0, 1, 0], [1, 0, 0], [1, 0], undefined]);
    expect(model.calls).toEqual(['setPictures[0]', 'setPictures[2]', 'replayTargets[0,2]', 'replayTargets[0]', 'replayTargets[0]']);
    expect(plain(ran.targets.pass)).toEqual([0, 1, 2, 2, 3, 3]);
    expect(plain(ran.targets.row)).toEqual([11, 6, 2, 3, 0, 1]);
    expect(plain(ran.targets.target)).toEqual([5, 9, 7, END, 8, END]);
    expect(plain(ran.targets.sequence)).toEqual([3, 2, 1, 1, 0, 0]);
    expect(ran.replays.map(({ step, sequences, result }) => [step, sequences, plain(result.rows)])).toEqual([[0, [0, 2], [2, 2]], [1, [0], [1]], [2, [0], [0]]]);
  });
  test('pictures are described with their pixels only where targets are cut', async () => {
    const at = async (targets: boolean): Promise<unknown> => {
      const { model } = await run(REPLAYED, { preset, targets });
      return Object.fromEntries(Object.entries(model.pictures.get(0)!).map(([key, values]) => [key, key === 'originals' ? (values as Uint8Array).length : plain(values as Int32Array)]));
    };
    const described = { columns: [1, 3, 4], visualRows: [0, 1, 2], grids: [1, 1, 2, 1], sizes: [28, 28, 56, 28], originalSizes: [28, 28, 56, 28] };
    expect(await at(false)).toEqual(described);
    expect(await at(true)).toEqual({ ...described, originals: 3 * (28 * 28 + 56 * 28) });
  });
  test('super-resolution: the mean over a sequence\'s steps with a block, then over sequences', async () => {
    const { ran } = await run(REPLAYED, { preset, targets: true });
    expect(countSuperResolved(REPLAYED, GEOMETRY, preset)).toBe(2);
    const losses = replayLosses(ran, REPLAYED, GEOMETRY, preset, 4);
    expect([losses.replay, losses.index, losses.share].map(plain)).toEqual([[0, 0, 1], [0, 1, 0], [1 / 8, 1 / 4, 1 / 8]]);
    expect(plain(losses.losses)).toEqual([1, 2, 11]);
  });
  test('the last step only: a sequence whose last step has no block has no loss', async () => {
    const last = presetOf({ patches: 2, routedLayers: [], srSteps: 'last' });
    const { ran } = await run(REPLAYED, { preset: last, targets: true });
    expect(countSuperResolved(REPLAYED, GEOMETRY, last)).toBe(1);
    const losses = replayLosses(ran, REPLAYED, GEOMETRY, last, 1);
    expect([losses.replay, losses.index, losses.share].map(plain)).toEqual([[0], [1], [1]]);
  });
  test.each<[PresetChanges, number]>([
    [{ tokenSr: false }, 0], [{ replay: false }, 0], [{ reselectUsed: true }, 2], [{ allImages: false }, 2], [{ mode: 'soft-mix' }, 2], [{ patches: 3, srSteps: 'last' }, 1],
  ])('%j: %i sequences have a loss', (changes, count) => {
    expect(countSuperResolved(REPLAYED, GEOMETRY, presetOf({ ...changes, routedLayers: [], patches: changes.patches ?? 2 }))).toBe(count);
  });
});

describe("form 'recompute'", () => {
  const preset = presetOf({ ...PRESETS.official, patches: 2, grid: null, reselectUsed: false, allImages: true });
  test('every pass after the first holds the whole sequences again', async () => {
    const { model, ran } = await run(REPLAYED, { preset, feedLastWord: true });
    const [first, second] = [[0, 1, 0, 1, 1], [1, 1]];
    expect(model.passes.map((pass) => plain(pass.kind))).toEqual([
      [...first, 0, ...second, 0, 1, 1, 0, 0],
      [...first, 4, 4, 4, 0, 4, ...second, 4, 4, 4, 0],
      [...first, 4, 4, 4, 4, 4, 0, 4, 4, 0, 0],
      [...first, 4, 4, 4, 4, 4, 4, 0, 0],
    ]);
    // Stored: blocks 0 1 | 2 3, latents 4 5 6; block 7, latents 8 9; latent 10.
    expect(plain(model.passes[3]!.index)).toEqual([4, 0, 4, 1, 2, 0, 1, 4, 7, 8, 10, 8, END]);
    expect(plain(model.passes[2]!.index.subarray(10))).toEqual([3, 5, 9, 7, END]);
    expect(plain(model.passes[3]!.positions)).toEqual([0, 1, 2].flatMap(() => plain(Int32Array.from({ length: 13 }, (_, i) => i))));   // sequential
    expect(model.calls).toEqual([
      'setPictures[0]', 'setPictures[2]', 'replay[0,2]', 'keepLatents[0,1,2]', 'restart[0,1,2]', 'replay[0]', 'keepLatents[0,1]', 'restart[0,1]',
      'replay[0]', 'keepLatents[0]', 'restart[0]',
    ]);
    expect(model.passes.map(({ saliency }) => saliency && plain(saliency))).toEqual([[1, 0, 1, 0], [1, 0, 0], [1, 0], undefined]);
    expect(plain(ran.targets.pass)).toEqual([0, 1, 2, 2, 3, 3]);
    expect(plain(ran.targets.row)).toEqual([11, 14, 12, 13, 10, 11]);
  });
});

test('without pictures nothing is replayed, whatever the preset', async () => {
  const { model, ran } = await run([SEQUENCES[1]!], { preset: presetOf({ routedLayers: [] }), targets: true });
  expect(model.calls).toEqual([]);
  expect(ran.replays).toEqual([]);
  expect(model.passes.map(({ kind }) => plain(kind))).toEqual([[0], [2], [2, 0]]);
});

test('a pass may be changed before it runs', async () => {
  const { model } = await run(SEQUENCES, { adjust: (pass, number) => ({ ...pass, logitRows: number === 2 ? Int32Array.of(1) : new Int32Array(0) }) });
  expect(model.passes.map(({ logitRows }) => plain(logitRows))).toEqual([[], [], [1]]);
});

const [PICTURED, SAID] = SEQUENCES as [SequenceInput, SequenceInput];
test.each<[string, SequenceInput[], string, string]>([
  ['no sequences', [], 'ERR_ARGUMENT', 'Expected at least one sequence but received none'],
  ['an empty prompt', [{ ...SAID, promptIds: [] }], 'ERR_ARGUMENT', 'Expected the prompt of sequence 0 to have at least one token but received none'],
  ['an id out of range', [{ ...SAID, promptIds: [1, 32] }], 'ERR_RANGE', 'Expected prompt token of sequence 0, 1 to be an integer from 0 to 31 but received 32'],
  ['a negative word', [{ ...SAID, words: [-1] }], 'ERR_RANGE', 'Expected word of sequence 0, 0 to be an integer from 0 to 31 but received -1'],
  ['a missing picture', [{ ...PICTURED, pictures: [] }], 'ERR_SHAPE', 'Expected the prompt of sequence 0 to have 0 picture tokens, one per merged patch of its 0 picture(s), but received 2'],
  ['a picture of another size', [{ ...PICTURED, pictures: [picture(3, 1)] }], 'ERR_SHAPE', 'Expected the prompt of sequence 0 to have 3 picture tokens, one per merged patch of its 1 picture(s), but received 2'],
  ['a side that is no multiple', [{ ...PICTURED, pictures: [{ ...picture(1, 2), height: 27 }] }], 'ERR_SHAPE', 'Expected height of picture 0 of sequence 0 to be a multiple of 28 but received 27; resize it with the processor'],
  ['too few pixels', [{ ...PICTURED, pictures: [{ ...picture(1, 2), pixels: new Uint8Array(3) }] }], 'ERR_SHAPE', 'Expected pixels of picture 0 of sequence 0 to have frames*height*width*3 = 4704 elements but received 3'],
  ['time that runs backwards', [{ ...PICTURED, pictures: [{ ...picture(1, 2), secondsPerGrid: -1 }] }], 'ERR_RANGE', 'Expected secondsPerGrid of picture 0 of sequence 0 to be a number of at least 0 but received -1'],
  ['a picture that is none', [{ ...PICTURED, pictures: [null as never] }], 'ERR_ARGUMENT', 'Expected picture 0 of sequence 0 to be an object but received null'],
  ['an original that is none', [{ ...PICTURED, pictures: [{ ...picture(1, 2), original: 5 as never }] }], 'ERR_ARGUMENT', 'Expected original of picture 0 of sequence 0 to be an object but received 5'],
  ['an original without a side', [{ ...PICTURED, pictures: [{ ...picture(1, 2), original: { pixels: new Uint8Array(0), height: 0, width: 1 } }] }], 'ERR_RANGE', 'Expected height of the original of picture 0 of sequence 0 to be an integer from 1 to 1048576 but received 0'],
  ['an original of other pixels', [{ ...PICTURED, pictures: [{ ...picture(1, 2), original: { pixels: new Uint8Array(3), height: 2, width: 1 } }] }], 'ERR_SHAPE', 'Expected pixels of the original of picture 0 of sequence 0 to have height*width*3 = 6 elements but received 3'],
  ['more latents than memory', [{ ...SAID, latents: 1e9 }], 'ERR_RANGE', 'Expected latents of sequence 0 to be an integer from 0 to 65536 but received 1000000000'],
  ['negative latents', [{ ...PICTURED, latents: -1 }], 'ERR_RANGE', 'Expected latents of sequence 0 to be an integer from 0 to 65536 but received -1'],
])('refuses %s', async (_, bad, code, message) => {
  await expect(run(bad)).rejects.toMatchObject({ name: 'LibError', code, message: `[runBatch] ${message}` });
});
