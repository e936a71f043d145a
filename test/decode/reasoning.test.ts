/** Generation with visual replay and depth routing on the real engine. */
import { generate, stream, type GenerateEvent, type GenerateOptions, type GenerateRequest } from '../../lib/decode';
import type { LatentModel } from '../../lib/latentModel';
import type { PresetChanges } from '../../lib/model/preset';
import { native } from '../../lib/native';
import { prompt, RAGGED, reasoner, settleThresholds, traces, worstGap } from '../model/reasoner';
import { tinyModel } from '../train/tinyModel';
import { expectClose, recording } from './recording';

const REQUESTS: GenerateRequest[] = RAGGED.map(({ promptIds, pictures, latents }, n) => ({ promptIds, pictures, latentSteps: latents, maxNewTokens: 3 + n }));
const PATCHES = 4;
const ENDLESS = { stopIds: [] };
const models: LatentModel[] = [];
let causal: LatentModel;

async function made(preset: PresetChanges): Promise<LatentModel> {
  const model = await reasoner({ patches: PATCHES, window: 2, alpha: 3, ...preset });
  models.push(model);
  await settleThresholds(model, () => traces(model, RAGGED));
  return model;
}
beforeAll(async () => { causal = await made({ maxDepth: 3 }); });
afterAll(() => {
  for (const model of models) model.dispose();
});

describe('rows and steps', () => {
  const SIX = prompt(1, [[2, 3]]);
  async function rowsOf(model: LatentModel, request: GenerateRequest, latentSteps: number, options: Partial<GenerateOptions> = {}): Promise<number> {
    const [result] = await generate(model, [{ ...request, latentSteps }], { maxNewTokens: 3, ...ENDLESS, ...options });
    expect(result).toMatchObject({ latentSteps, arSteps: latentSteps + 3, finishReason: 'length' });
    return result!.tokenForwards;
  }
  test.each<[string, PresetChanges, number[]]>([
    ['a latent takes K rows and its own; what is left of six tokens; then its own', {}, [5, 3, 1, 1]],
    ['K = 1', { patches: 1 }, [2, 2, 2, 2]],
    ['used tokens again: never exhausted', { reselectUsed: true }, [5, 5, 5, 5]],
    ['all of six, but one, under reselectUsed', { reselectUsed: true, patches: 32 }, [6, 6, 6, 6]],
    ['soft-mix: one row for the block', { mode: 'soft-mix' }, [2, 2, 1, 1]],
    ['no replay', { replay: false }, [1, 1, 1, 1]],
  ])('%s', async (_, preset, steps) => {
    const base = await rowsOf(causal, SIX, 0, { preset });
    expect(base).toBe(SIX.promptIds.length + 2);
    for (let n = 1; n <= steps.length; n++) expect(await rowsOf(causal, SIX, n, { preset })).toBe(base + steps.slice(0, n).reduce((sum, rows) => sum + rows, 0));
  });
  test('without an image a latent is one row', async () => {
    const none = prompt(2, []);
    expect(await rowsOf(causal, none, 4) - await rowsOf(causal, none, 0)).toBe(4);
  });
  test('the counter of the session agrees', async () => {
    const model = recording(causal);
    const results = await generate(model, REQUESTS, ENDLESS);
    expect(results.reduce((sum, { tokenForwards }) => sum + tokenForwards, 0)).toBe(model.passes.reduce((sum, { pass }) => sum + pass.kind.length, 0));
  });
  test('recomputing counts every row again', async () => {
    const [cached, again] = [await rowsOf(causal, SIX, 2), await rowsOf(causal, SIX, 2, { recompute: true })];
    const prefix = SIX.promptIds.length;   // passes of P, P + 5, P + 8, then a word more each
    expect(again).toBe(prefix + (prefix + 5) + (prefix + 8) + (prefix + 9) + (prefix + 10));
    expect(cached).toBe(prefix + 10);
  });
});

describe('batch-mates', () => {
  test.each<[string, PresetChanges, Partial<GenerateOptions>]>([
    ['default', {}, {}], ['prefix-topk, mlp, raw, scaled', { rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'scaled' }, {}],
    ['soft-mix, softmax weights', { mode: 'soft-mix', weights: 'softmax', srAdded: false }, {}], ['sampled', {}, { temperature: 1, topP: 0.9, seed: 4 }],
    ['paper', { name: 'paper', patches: PATCHES, alpha: 3 }, { recompute: true }], ['official', { name: 'official', patches: PATCHES, grid: null, alpha: 3 }, { recompute: true }],
  ])('%s: a batch gives what each request gives alone, evidence too', async (_, preset, options) => {
    const model = await made({ maxDepth: 3, ...preset });
    const all = { ...ENDLESS, ...options, evidence: true };
    const alone = [];
    for (const request of REQUESTS) alone.push((await generate(model, [request], all))[0]);
    for (const batchSize of [5, 2]) expectClose(await generate(model, REQUESTS, { ...all, batchSize }), alone, 1e-5);
    expect(await generate(model, REQUESTS, { ...all, evidence: false })).toEqual(alone.map((result) => ({ ...result, evidence: undefined })).map(({ evidence: __, ...rest }) => rest));
  });
});

describe('recompute', () => {
  test.each<[string, PresetChanges]>([
    ['threshold', { maxDepth: 3 }], ['prefix-topk', { rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'plain', maxDepth: 4 }], ['no routing', { routedLayers: [] }],
    ['no replay', { replay: false }], ['sequential positions', { positions: 'sequential', allImages: false }],
  ])('%s: the tokens, logits and evidence of the cache', async (_, preset) => {
    const model = await made(preset);
    const results = [];
    const logits: number[][] = [];
    for (const recompute of [false, true]) {
      const recorded = recording(model);
      const got = await generate(recorded, REQUESTS, { ...ENDLESS, recompute, evidence: true });
      results.push(got.map(({ tokenForwards: __, ...rest }) => rest));
      logits.push(recorded.passes.flatMap(({ result }) => [...result.logits]));
    }
    expectClose(results[1], results[0], 1e-5);
    expect(logits[0]!.length).toBeGreaterThan(1000);
    expect(worstGap(logits[1]!, logits[0]!)).toBeLessThan(1e-4);
  });
  test.each<[PresetChanges, string]>([
    [{ rule: 'topk' }, "rule 'topk' with gate 'sigmoid'"], [{ gate: 'softmax-sequence' }, "rule 'threshold' with gate 'softmax-sequence'"],
    [{ rule: 'prefix-topk', gate: 'softmax-sequence' }, "rule 'prefix-topk' with gate 'softmax-sequence'"],
  ])('%j looks ahead: refused unless recomputed', async (preset, received) => {
    for (const [op, call] of [['generate', () => generate(causal, [REQUESTS[0]!], { preset })], ['stream', () => stream(causal, REQUESTS[0]!, { preset }).next()]] as const) {
      await expect(call()).rejects.toMatchObject({
        name: 'LibError', code: 'ERR_UNSUPPORTED', message: `[${op}] Expected a preset that can be cached but received ${received}, which looks ahead to later tokens. `
          + "Set recompute: true to run the whole sequence again at every step, or take rule 'threshold' or 'prefix-topk' with gate 'sigmoid' or 'raw', or routedLayers: []",
      });
    }
    expect((await generate(causal, [REQUESTS[0]!], { preset, recompute: true }))[0]!.ids.length).toBeGreaterThan(0);
    expect((await generate(causal, [REQUESTS[0]!], { preset: { ...preset, routedLayers: [] } }))[0]!.ids.length).toBeGreaterThan(0);
    expect((await generate(causal, [REQUESTS[0]!], { preset: { ...preset, maxDepth: 1 } }))[0]!.ids.length).toBeGreaterThan(0);
  });
});

describe('switches of a call', () => {
  test('replay and routing show, each on its own, and leave the model as it was', async () => {
    const options = { ...ENDLESS, maxNewTokens: 24, latentSteps: 3 };
    const request = { promptIds: REQUESTS[2]!.promptIds!, pictures: REQUESTS[2]!.pictures! };
    const ids = async (preset?: PresetChanges): Promise<string> => String((await generate(causal, [request], { ...options, ...(preset ? { preset } : {}) }))[0]!.ids);
    const before = JSON.stringify(causal.preset);
    const base = await ids();
    const all = [base, await ids({ replay: false }), await ids({ routedLayers: [] }), await ids({ replay: false, routedLayers: [] })];
    expect(new Set(all).size).toBe(4);
    expect(await ids({})).toBe(base);
    expect(await ids({ maxDepth: 1 })).toBe(all[2]);
    expect(JSON.stringify(causal.preset)).toBe(before);
  });
  test('what the model lacks is named', async () => {
    using plain = await tinyModel();
    const refusal = (name: string): object => ({
      name: 'LibError', code: 'ERR_UNSUPPORTED', message: `[generate] Expected a model with parameter '${name}', which the preset's switches need, but received one without; load or create it with this preset and train it, or switch off replay, tokenSr and srAdded, or routedLayers`,
    });
    const request = [{ promptIds: [1], latentSteps: 1 }];
    const sessions = native().liveObjects().sessions;
    await expect(generate(plain, request, { preset: { routedLayers: [1] } })).rejects.toMatchObject(refusal('router.1.weight'));
    await expect(generate(plain, request, { preset: { replay: true } })).rejects.toMatchObject(refusal('token_sr.0.weight'));
    await expect(generate(causal, request, { preset: { routedLayers: [0, 1] } })).rejects.toMatchObject(refusal('router.0.weight'));
    await expect(generate(causal, request, { preset: { router: 'mlp' } })).rejects.toMatchObject(refusal('router.1.0.weight'));
    await expect(generate(causal, request, { preset: { maxDepth: 4 } })).rejects.toMatchObject(refusal('step.4'));
    expect(native().liveObjects().sessions).toBe(sessions);
    const [result] = await generate(plain, [{ ...prompt(1, [[2, 2]]), latentSteps: 2 }], { preset: { replay: true, tokenSr: false, srAdded: false, patches: 3 }, maxNewTokens: 1 });
    expect(result!.tokenForwards).toBe(prompt(1, [[2, 2]]).promptIds.length + 4 + 2);
  });
  test.each<[object, string, string]>([
    [{ preset: { patches: 0 } }, 'ERR_RANGE', '[preset] Expected patches to be an integer from 1 to 65536 but received 0'],
    [{ preset: { routedLayer: [1] } }, 'ERR_ARGUMENT', "did you mean 'routedLayers'?"],
    [{ preset: { routedLayers: [9] } }, 'ERR_RANGE', '[preset] Expected layer 0 of routedLayers to be an integer from 0 to 3 but received 9'],
    [{ preset: 5 }, 'ERR_ARGUMENT', '[preset] Expected a preset to be a name or an object of switches but received 5'],
    [{ recompute: 'yes' }, 'ERR_ARGUMENT', '[generate] Expected recompute to be a boolean but received "yes"'],
    [{ evidence: 1 }, 'ERR_ARGUMENT', '[generate] Expected evidence to be a boolean but received 1'],
  ])('%j', async (options, code, message) => {
    await expect(generate(causal, REQUESTS, options as never)).rejects.toMatchObject({ name: 'LibError', code, message: expect.stringContaining(message) as string });
  });
  test('a model whose preset is none', async () => {
    await expect(generate({ ...recording(causal), preset: undefined } as never, [])).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[generate] Expected model.preset to be an object but received undefined' });
    await expect(generate({ ...recording(causal), preset: { routedLayers: 'odd' } } as never, [])).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[preset] Expected a preset of makePreset but received one with routedLayers "odd"' });
  });
});

test.each(['default', 'paper', 'official'] as const)('preset %s generates, with the switches of a call too', async (name) => {
  const model = await made(name === 'official' ? { name, patches: 4, alpha: 3, grid: 3 } : { name });
  const recompute = name !== 'default';
  const request = { ...prompt(9, [[3, 3]]), latentSteps: 3 };
  const [result] = await generate(model, [request], { ...ENDLESS, recompute, evidence: true, maxNewTokens: 4 });
  expect(result!.ids).toHaveLength(4);
  expect(result!.evidence!.steps).toHaveLength(3);
  expect(result!.evidence!.routing.map(({ layer, depth }) => [layer, depth])).toEqual([[1, 2], [3, 2]]);
  expect((await generate(model, [request], { ...ENDLESS, recompute, maxNewTokens: 4 }))[0]!.ids).toEqual(result!.ids);
});

test('a fixed grid wants pictures of its size', async () => {
  const call = generate(causal, [{ ...prompt(9, [[2, 3]]), latentSteps: 1 }], { ...ENDLESS, preset: { grid: 3 } });
  await expect(call).rejects.toMatchObject({ code: 'ERR_SHAPE', message: "[replay] Expected picture 0 to have the preset's grid of 3 x 3 image tokens but received 84x56 = 3 x 2 tokens; resize it, or set grid: null" });
});

test('a stream yields each latent with its evidence, and the same result', async () => {
  const events: GenerateEvent[] = [];
  for await (const event of stream(causal, REQUESTS[2]!, { ...ENDLESS, evidence: true })) events.push(event);
  const [result] = await generate(causal, [REQUESTS[2]!], { ...ENDLESS, evidence: true });
  const latents = events.flatMap((event) => (event.type === 'latent' ? [event] : []));
  expect(latents.map(({ step }) => step)).toEqual([1, 2, 3]);
  expect(latents.map(({ evidence }) => evidence)).toEqual(result!.evidence!.steps);
  expect(events.at(-1)).toMatchObject({ type: 'end', result });
  for await (const event of stream(causal, REQUESTS[2]!, ENDLESS)) expect(event).not.toHaveProperty('evidence');
});

test('a stream that is left during its latents frees the session', async () => {
  const before = native().liveObjects().sessions;
  for await (const event of stream(causal, REQUESTS[2]!, { evidence: true })) if (event.type === 'latent') break;
  expect(native().liveObjects().sessions).toBe(before);
});
