/** Estimates against what the addon really takes. */
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { newConfig } from '../../lib/model/config';
import { makePreset, PLAIN } from '../../lib/model/preset';
import { estimateSession } from '../../lib/model/sessionMemory';
import { tokenPass } from '../boundary/tinyModel';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
const ADAPTER = join(__dirname, '../fixtures/tiny-qwen2-adapter');
const CONFIG = newConfig({
  text: { hidden: 96, layers: 3, heads: 6, kvHeads: 2, intermediate: 224, vocab: 400, mropeSection: [2, 3, 3] },
  vision: { depth: 3, width: 64, heads: 4, mlpWidth: 256 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
});
const ROWS = 512;

test.each([false, true])('rows: training %s', async (training) => {
  using model = await LatentModel.create(CONFIG);
  if (training) await model.native.enableTraining();
  const session = model.openSession({ training, recompute: false, detachLatents: false, visionGradient: true });
  await session.extend(tokenPass(session.add(), Array.from({ length: ROWS }, (_, i) => i % 300)));
  const { cacheBytesPerToken, rowBytes, keptRowBytes } = estimateSession(CONFIG, PLAIN);
  expect(cacheBytesPerToken).toBe(3 * 2 * 2 * 16 * 4);
  const expected = ROWS * ((training ? 2 : 1) * cacheBytesPerToken + rowBytes + (training ? keptRowBytes : 0));
  expect(session.bytes() / expected).toBeGreaterThan(0.8);
  expect(session.bytes() / expected).toBeLessThan(1.05);
  session.dispose();
});

const WINDOWED = newConfig({
  kind: 'qwen2_5_vl', text: { hidden: 96, layers: 1, heads: 6, kvHeads: 2, intermediate: 224, vocab: 400, mropeSection: [2, 3, 3] },
  vision: { depth: 3, width: 64, heads: 4, mlpWidth: 200, fullAttentionBlocks: [1] },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
});
test.each([[CONFIG, false], [CONFIG, true], [WINDOWED, false], [WINDOWED, true]] as const)('patches: %#', async (config, training) => {
  using model = await LatentModel.create(config);
  if (training) await model.native.enableTraining();
  const session = model.openSession({ training, recompute: false, detachLatents: false, visionGradient: true });
  const side = 280;
  await session.encode(new Uint8Array(side * side * 3), Int32Array.of(1, side, side));
  const { patchBytes, keptPatchBytes } = estimateSession(config, PLAIN);
  const expected = (side / 14) ** 2 * (patchBytes + (training ? keptPatchBytes : 0));
  expect(session.bytes() / expected).toBeGreaterThan(0.8);
  expect(session.bytes() / expected).toBeLessThan(1.05);
  session.dispose();
});

test('routed layers have keys and values of their own for every extra pass', () => {
  const plain = estimateSession(CONFIG, PLAIN), routed = estimateSession(CONFIG, makePreset({ routedLayers: [0, 2], maxDepth: 3 }, 3));
  expect(routed.cacheBytesPerToken / plain.cacheBytesPerToken).toBe((3 + 2 * 2) / 3);
});

/** Elements of the parameters of some names. */
function count(model: LatentModel, isCounted: (name: string) => boolean): number {
  return model.native.parameters().filter(({ name }) => isCounted(name)).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
}

describe('of a directory or a config', () => {
  test('the parts add up', async () => {
    const { parameters, dtype, contextTokens, patches, weightBytes, loadBytes, generation, training } = await LatentModel.estimate(TINY, { contextTokens: 100 });
    using model = await LatentModel.load(TINY);
    expect(parameters).toBe(model.native.parameters().reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0));
    expect([dtype, contextTokens, patches]).toEqual(['f32', 100, 100]);
    expect([weightBytes, loadBytes > weightBytes]).toEqual([4 * parameters, true]);
    expect(generation.cacheBytes).toBe(128 * estimateSession(model.config, model.preset).cacheBytesPerToken);   // two pages of 64
    expect(generation.totalBytes).toBe(weightBytes + generation.cacheBytes + generation.passBytes);
    const trained = (await LatentModel.estimate(TINY, { trainVision: true })).training.stateBytes;
    expect(trained).toBe(12 * count(model, (name) => !name.endsWith('.threshold')));
    expect(training.stateBytes).toBe(12 * count(model, (name) => !/^visual\.|\.threshold$/.test(name)));
    expect(training.totalBytes).toBeGreaterThan(generation.totalBytes + training.stateBytes + training.tapeBytes);
  });

  test('bf16 halves matrices; an adapter has state for its own parameters alone', async () => {
    const wide = await LatentModel.estimate(CONFIG), narrow = await LatentModel.estimate(CONFIG, { dtype: 'bf16', adapter: { rank: 2, targets: ['q_proj', 'layers.0.mlp.down_proj'] } });
    const adapted = narrow.parameters - wide.parameters;
    expect(adapted).toBeGreaterThan(0);
    expect([wide.dtype, wide.contextTokens, wide.patches]).toEqual(['f32', 4096, 4096]);
    expect(narrow.weightBytes).toBeLessThan(0.6 * wide.weightBytes);
    expect(narrow.training.stateBytes).toBe(12 * adapted);
    expect((await LatentModel.estimate(CONFIG, { dtype: 'bf16', trainVision: true })).training.stateBytes).toBe(16 * wide.parameters);
    const saved = await LatentModel.estimate(ADAPTER);
    expect(saved).toEqual(await LatentModel.estimate(TINY, { adapter: ADAPTER }));
    using model = await LatentModel.load(ADAPTER);
    expect(saved.training.stateBytes).toBe(12 * count(model, (name) => !/^(model|visual|lm_head)\.|\.threshold$/.test(name)));   // what is beside the backbone is trained too
  });

  test.each<[string, object, string, string]>([
    ['too many patches', { contextTokens: 10, patches: 41 }, 'ERR_RANGE', 'Expected patches to fit the context, at most 40, but received 41; raise contextTokens'],
    ['no context', { contextTokens: 0 }, 'ERR_RANGE', 'Expected contextTokens to be an integer from 1 to 1073741824 but received 0'],
    ['another type', { dtype: 'f16' }, 'ERR_ARGUMENT', `Expected dtype to be one of 'f32', 'bf16' but received "f16"; did you mean 'bf16'?`],
    ['a word', { context: 7 }, 'ERR_ARGUMENT', "Expected options among dtype, contextTokens, patches, adapter, trainVision, preset but received 'context'"],
    ['a saved adapter on a config', { adapter: 'somewhere' }, 'ERR_ARGUMENT', 'Expected adapter to be the options of a new one for a config but received "somewhere"; give the directory of its base'],
    ['no boolean', { trainVision: 1 }, 'ERR_ARGUMENT', 'Expected trainVision to be a boolean but received 1'],
  ])('%s', async (_, options, code, message) => {
    await expect(LatentModel.estimate(CONFIG, options)).rejects.toMatchObject({ name: 'LibError', code, message: `[estimate] ${message}` });
  });
  test('neither', async () => {
    await expect(LatentModel.estimate(7 as never)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[estimate] Expected source to be an object but received 7' });
  });
});
