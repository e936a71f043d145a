/** Which calls generation makes of a session, on one that only records: replay, routing and evidence. */
import { generate, type GenerateOptions, type GenerateRequest } from '../../lib/decode';
import { makePreset, type PresetChanges } from '../../lib/model/preset';
import { fakeModel, GEOMETRY, picture, type FakeModel } from './fakeModel';

const IMAGE = GEOMETRY.imageToken;
const REQUESTS: GenerateRequest<string>[] = [
  { promptIds: [4, IMAGE, IMAGE, IMAGE, 5], pictures: [picture(1, 3)], latentSteps: 3, maxNewTokens: 2 },
  { promptIds: [6], latentSteps: 1, maxNewTokens: 3 },
  { promptIds: [IMAGE, 7, IMAGE], pictures: [picture(1, 1), picture(1, 1)], latentSteps: 1, maxNewTokens: 1 },
  { promptIds: [IMAGE, 8], pictures: [picture(1, 1)], maxNewTokens: 1 },
];

async function run(preset: PresetChanges, options: Partial<GenerateOptions> = {}, requests = REQUESTS): Promise<{ model: FakeModel; results: Awaited<ReturnType<typeof generate>> }> {
  const model = fakeModel({ preset: makePreset({ patches: 2, ...preset }, GEOMETRY.layers) });
  return { model, results: await generate(model, requests, options) };
}
const kinds = (model: FakeModel): number[][] => model.passes.map(({ kind }) => [...kind]);

test('blocks and latents, then words; each sequence at its own pace', async () => {
  const { model, results } = await run({});
  expect(model.passes.map(({ sequences }) => [...sequences])).toEqual([[0, 1, 2, 3], [0, 1, 2], [0, 1], [0, 1], [0]]);
  expect(kinds(model)).toEqual([[0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0], [4, 4, 2, 2, 4, 4, 2], [4, 2, 0], [2, 0], [0]]);
  expect(model.passes.map(({ saliency }) => saliency && [...saliency])).toEqual([[1, 0, 1, 0], [1, 0, 0], [1, 0], undefined, undefined]);
  expect(model.calls).toEqual(['setPictures[0]', 'setPictures[2]', 'replay[0,2]', 'replay[0]', 'replay[0]']);
  expect(model.pictures.get(0)).toMatchObject({ columns: Int32Array.of(1, 2, 3), visualRows: Int32Array.of(0, 1, 2), grids: Int32Array.of(1, 3), sizes: Int32Array.of(28, 84), originalSizes: Int32Array.of(28, 84) });
  expect(model.pictures.get(2)).toMatchObject({ columns: Int32Array.of(0, 2), visualRows: Int32Array.of(3, 4) });
  expect(model.pictures.get(0)).not.toHaveProperty('originals');
  expect(results.map(({ tokenForwards, arSteps }) => [tokenForwards, arSteps])).toEqual([[5 + 3 + 2 + 1 + 1, 5], [1 + 1 + 2, 4], [3 + 3, 2], [2, 1]]);
  expect(model.opened).toEqual([{ training: false, recompute: false, visionGradient: false, detachLatents: false, replay: expect.objectContaining({ patches: 2, grid: 0 }) as object, routing: expect.objectContaining({ layers: [1, 3] }) as object }]);
});

test('nothing extra is computed unless evidence is asked for', async () => {
  const plain = await run({});
  for (const pass of plain.model.passes) expect(pass).not.toHaveProperty('traceRouting');
  // Logits only of the rows that choose a word: the last of sequence 3, then 1 and 2, and so on.
  expect(plain.model.passes.map(({ logitRows }) => logitRows && [...logitRows])).toEqual([[10], [3, 6], [2], [0, 1], [0]]);
  for (const result of plain.results) expect(result).not.toHaveProperty('evidence');
  const asked = await run({}, { evidence: true });
  for (const pass of asked.model.passes) expect(pass.traceRouting).toBe(true);
  expect(asked.model.passes.map(({ logitRows }) => [...logitRows!])).toEqual([[4, 5, 8, 10], [2, 3, 6], [1, 2], [0, 1], [0]]);
  expect(asked.model.calls).toEqual(plain.model.calls.map((call) => call.replace('replay[', 'replaySaliency[')));
  expect(asked.results.map(({ evidence: _, ...rest }) => rest)).toEqual(plain.results);
  const unrouted = await run({ routedLayers: [] }, { evidence: true });
  for (const pass of unrouted.model.passes) expect(pass).not.toHaveProperty('traceRouting');
});

test('evidence of a batch goes to the right requests', async () => {
  const { results: [first, second, third, last] } = await run({}, { evidence: true });
  expect(first!.evidence!.steps.map(({ saliency, replayed }) => [saliency, replayed.map(({ column, weight }) => [column, weight])])).toEqual([
    [[[1, 2, 3]], [[2, 3], [1, 2]]], [[[1, 2, 3]], [[0, 1]]], [[[1, 2, 3]], []],
  ]);
  expect(third!.evidence!.steps.map(({ saliency, replayed }) => [saliency, replayed.map(({ image, weight }) => [image, weight])])).toEqual([[[[1], [2]], [[1, 2], [0, 1]]]]);
  expect(second!.evidence!.steps.map(({ saliency, replayed, words }) => [saliency, replayed, words.length])).toEqual([[[], [], 5]]);
  expect(last!.evidence).toMatchObject({ images: [], steps: [] });
  // Packed rows 0, 3, 6, 9 of pass 0 hold rows 0 and 3 of request 0, row 0 of request 2 and row 0 of request 3; rows 0, 3, 6 of pass 1 are 5, 1 and 5.
  const rows = (result: typeof first): number[] => result!.evidence!.routing[0]!.rows;
  expect([rows(first), rows(second), rows(third), rows(last)]).toEqual([[0, 3, 5, 8, 10, 11], [1], [0, 5], [0]]);
  expect(first!.evidence!.routing[1]!.rows).toEqual(rows(first));
});

test("form 'recompute': the sequences forget their rows and run whole", async () => {
  const { model, results } = await run({ rule: 'topk' }, { recompute: true });
  const [a, c] = [[0, 1, 1, 1, 0], [1, 0, 1]];
  expect(kinds(model)).toEqual([
    [...a, 0, ...c, 1, 0], [...a, 4, 4, 4, 0, 4, ...c, 4, 4, 4], [...a, 4, 4, 4, 4, 4, 0, 4, 0], [...a, 4, 4, 4, 4, 4, 4, 0, 4, 0, 0], [...a, 4, 4, 4, 4, 4, 4, 0],
  ]);
  expect(model.calls).toEqual([
    'setPictures[0]', 'setPictures[2]', 'replay[0,2]', 'keepLatents[0,1,2]', 'restart[0,1,2]', 'replay[0]', 'keepLatents[0]', 'restart[0,1]',
    'replay[0]', 'keepLatents[0]', 'restart[0,1]', 'restart[0]',
  ]);
  expect(results.map(({ tokenForwards }) => tokenForwards)).toEqual([5 + 8 + 10 + 11 + 12, 1 + 2 + 3 + 4, 3 + 6, 2]);
  // The hash of the rows decides the words: the same rows as cached, the same words.
  expect(results.map(({ ids }) => ids)).toEqual((await run({})).results.map(({ ids }) => ids));
});

test.each([1, 2, 4])('batches of %i', async (batchSize) => {
  for (const [preset, options] of [[{}, {}], [{ rule: 'topk' }, { recompute: true }]] as const) {
    const alone = [];
    for (const request of REQUESTS) alone.push((await run(preset, options, [request])).results[0]);
    expect((await run(preset, { ...options, batchSize })).results).toEqual(alone);
  }
});

test('an abort during the latents ends with its reason and frees the session', async () => {
  const controller = new AbortController();
  const reason = new Error('enough');
  const model = fakeModel({ preset: makePreset({ patches: 2 }, GEOMETRY.layers), logitsOf: (rows) => {
    if (rows.includes('B2')) controller.abort(reason);
    return new Float32Array(GEOMETRY.vocab);
  } });
  await expect(generate(model, REQUESTS, { signal: controller.signal })).rejects.toBe(reason);
  expect(model.openSessions).toBe(0);
  expect(model.passes).toHaveLength(2);
});
