import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel, native, newConfig, type GenerateResult, type ImageSource, type Message, type NewModelConfig } from '../../lib/index';

const FIXTURES = join(__dirname, '../fixtures');
const TINY = join(FIXTURES, 'tiny-qwen2/checkpoint');
const CONFIG: NewModelConfig = {
  text: { hidden: 32, layers: 2, heads: 4, kvHeads: 2, intermediate: 48, vocab: 320, mropeSection: [2, 1, 1], tied: true },
  vision: { depth: 1, width: 16, heads: 2, mlpWidth: 24 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
};
const MESSAGES: Message[] = [{ role: 'user', content: [{ type: 'image', image: { data: new Uint8Array(28 * 56 * 3).fill(90), width: 56, height: 28, channels: 3 } }, { type: 'text', text: 'what?' }] }];

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-model-'));
  cpSync(join(FIXTURES, 'tokenizer'), folder, { recursive: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

const parameter = async (model: LatentModel, name: string): Promise<Float32Array> => model.native.readParameter(name, 'value');

describe('create', () => {
  test('matrices are normal, scales one, biases zero; the seed decides', async () => {
    using model = await LatentModel.create(CONFIG, { seed: 7 });
    const table = await parameter(model, 'model.embed_tokens.weight');
    const deviation = Math.sqrt(table.reduce((sum, v) => sum + v * v, 0) / table.length);
    // 10,240 samples: the deviation's own standard error is 0.7 per cent, the mean's 0.0002.
    expect(Math.abs(deviation / 0.02 - 1)).toBeLessThan(0.04);
    expect(Math.abs(table.reduce((sum, v) => sum + v, 0) / table.length)).toBeLessThan(0.001);
    expect(new Set(await parameter(model, 'visual.blocks.0.norm1.weight'))).toEqual(new Set([1]));
    expect(new Set(await parameter(model, 'model.layers.1.post_attention_layernorm.weight'))).toEqual(new Set([1]));
    expect(new Set(await parameter(model, 'visual.merger.mlp.0.bias'))).toEqual(new Set([0]));
    using same = await LatentModel.create(newConfig(CONFIG), { seed: 7 });
    using other = await LatentModel.create(CONFIG, { seed: 8 });
    expect(await parameter(same, 'lm_head.weight').catch(() => 'tied')).toBe('tied');
    expect(await parameter(same, 'visual.patch_embed.proj.weight')).toEqual(await parameter(model, 'visual.patch_embed.proj.weight'));
    expect(await parameter(other, 'visual.patch_embed.proj.weight')).not.toEqual(await parameter(model, 'visual.patch_embed.proj.weight'));
    expect(await parameter(model, 'model.layers.0.self_attn.q_proj.weight')).not.toEqual(await parameter(model, 'model.layers.1.self_attn.q_proj.weight'));
  });

  test('with tokenizer files it answers messages, before and after saving', async () => {
    using model = await LatentModel.create(CONFIG, { seed: 1, processor: folder, latentSteps: 2 });
    expect(model.endIds).toEqual([300]);
    const answer = await model.generate({ messages: MESSAGES }, { maxNewTokens: 5, stopIds: [] });
    expect(answer).toMatchObject({ latentSteps: 2, arSteps: 7, finishReason: 'length', text: model.decodeText!(answer.ids) });
    const saved = join(folder, 'saved');
    await model.save(saved);
    expect(readFileSync(join(saved, 'tokenizer.json'))).toEqual(readFileSync(join(folder, 'tokenizer.json')));
    using again = await LatentModel.load(saved);
    expect(await again.generate({ messages: MESSAGES }, { maxNewTokens: 5, stopIds: [] })).toEqual(answer);
    const events: string[] = [];
    for await (const event of again.stream({ messages: MESSAGES }, { maxNewTokens: 2, stopIds: [] })) events.push(event.type);
    expect(events).toEqual(['latent', 'latent', 'token', 'token', 'end']);
    const both = await again.generateBatch([{ messages: MESSAGES }, { promptIds: [1, 2, 3], latentSteps: 0 }], { maxNewTokens: 5, stopIds: [] });
    expect(both[0]!.ids).toEqual(answer.ids);
    expect(both[1]).toMatchObject({ latentSteps: 0, arSteps: 5 });
  });
});

test('a video answers, and an odd number of frames is as if the last came twice', async () => {
  using model = await LatentModel.create({ ...CONFIG, initializerRange: 0.3 }, { seed: 1, processor: folder, latentSteps: 1 });
  const frame = (value: number): ImageSource => ({ data: new Uint8Array(28 * 56 * 3).map((_, i) => (i * value) % 251), width: 56, height: 28, channels: 3 });
  const ask = (...values: number[]): Promise<GenerateResult> => model.generate({
    messages: [{ role: 'user', content: [{ type: 'video', video: { frames: values.map(frame) }, resizedHeight: 28, resizedWidth: 56 }, { type: 'text', text: 'what?' }] }],
  }, { maxNewTokens: 8, stopIds: [] });
  const three = await ask(3, 5, 7);
  expect(three.ids).toHaveLength(8);
  expect(await ask(3, 5, 7, 7)).toEqual(three);
  expect((await ask(3, 5, 7, 90)).ids).not.toEqual(three.ids);
});

test('latent steps of a new model: its own, those of the processor folder, or 0 when 0 is said', async () => {
  writeFileSync(join(folder, 'plumbline.json'), '{"format": 1, "latentSteps": 3}');
  for (const [options, steps] of [[{}, 3], [{ latentSteps: 0 }, 0], [{ latentSteps: 5 }, 5]] as const) {
    using model = await LatentModel.create(CONFIG, { processor: folder, ...options });
    expect(model.latentSteps).toBe(steps);
  }
  rmSync(join(folder, 'plumbline.json'));
});

test('without a tokenizer ids work, text does not', async () => {
  using model = await LatentModel.load(TINY);
  expect(model.decodeText).toBeUndefined();
  const answer = await model.generate({ promptIds: [1, 2, 3] }, { maxNewTokens: 3, stopIds: [] });
  expect(answer.ids).toHaveLength(3);
  expect(answer).not.toHaveProperty('text');
  await expect(model.generate({ messages: MESSAGES })).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
});

test('a disposed model says so everywhere, and may be disposed again', async () => {
  const before = native().liveObjects().models;
  const model = await LatentModel.load(TINY);
  expect(native().liveObjects().models).toBe(before + 1);
  model.dispose();
  model.dispose();
  expect(native().liveObjects().models).toBe(before);
  const disposed = { name: 'LibError', code: 'ERR_DISPOSED', message: '[model] Expected a model that is in use but received one that was disposed' };
  expect(() => model.native).toThrow(expect.objectContaining(disposed));
  expect(() => model.openSession({ training: false, recompute: false, detachLatents: false, visionGradient: false })).toThrow(expect.objectContaining(disposed));
  await expect(model.save(folder)).rejects.toMatchObject(disposed);
  await expect(model.loadWeights(TINY)).rejects.toMatchObject(disposed);
  await expect(model.generate({ promptIds: [1] })).rejects.toMatchObject(disposed);
});

test('`await using` frees it too', async () => {
  const before = native().liveObjects().models;
  {
    await using model = await LatentModel.load(TINY);
    expect(model.latentSteps).toBe(3);
  }
  expect(native().liveObjects().models).toBe(before);
});

test.each<[string, () => Promise<unknown>, string, string]>([
  ['a directory that is no text', () => LatentModel.load(5 as never), 'ERR_ARGUMENT', '[load] Expected directory to be a string but received 5'],
  ['a directory that is not there', () => LatentModel.load('./no/such'), 'ERR_CHECKPOINT', '[load] Expected the directory of a Hugging Face checkpoint but received "./no/such", which is not there. Correct the path.'],
  ['a name of the hub', () => LatentModel.load('Qwen/Qwen2-VL-2B-Instruct'), 'ERR_CHECKPOINT', '[load] Expected the directory of a Hugging Face checkpoint but received "Qwen/Qwen2-VL-2B-Instruct", which is not there. '
    + 'Nothing is downloaded here: huggingface-cli download Qwen/Qwen2-VL-2B-Instruct --local-dir Qwen2-VL-2B-Instruct, then give Qwen2-VL-2B-Instruct.'],
  ['a wrong option', () => LatentModel.load(TINY, { dtyp: 'f32' } as never), 'ERR_ARGUMENT', "[load] Expected options among dtype, device, preset, latentTokens, adapter, seed, signal, onProgress, maxMemoryBytes but received 'dtyp'; did you mean 'dtype'?"],
  ['a wrong type', () => LatentModel.load(TINY, { dtype: 'fp16' as never }), 'ERR_ARGUMENT', "[load] Expected dtype to be one of 'auto', 'f32', 'bf16' but received \"fp16\""],
  ['a progress that is no function', () => LatentModel.load(TINY, { onProgress: 1 as never }), 'ERR_ARGUMENT', '[load] Expected onProgress to be a function but received 1'],
  ['a negative limit', () => LatentModel.load(TINY, { maxMemoryBytes: -1 }), 'ERR_RANGE', '[load] Expected maxMemoryBytes to be a number of at least 0 but received -1'],
  ['a seed of loading that is none', () => LatentModel.load(TINY, { seed: -1 }), 'ERR_RANGE', '[load] Expected seed to be an integer of at least 0 but received -1'],
  ['a preset that is none', () => LatentModel.load(TINY, { preset: 'defualt' as never }), 'ERR_ARGUMENT', "[preset] Expected name to be one of 'default', 'paper', 'official' but received \"defualt\"; did you mean 'default'?"],
  ['a layer to route that is not there', () => LatentModel.load(TINY, { preset: { routedLayers: [2] } }), 'ERR_RANGE', '[preset] Expected layer 0 of routedLayers to be an integer from 0 to 1 but received 2'],
  ['a preset of a new model that is none', () => LatentModel.create(CONFIG, { preset: null as never }), 'ERR_ARGUMENT', '[preset] Expected a preset to be a name or an object of switches but received null'],
  ['a seed that is none', () => LatentModel.create(CONFIG, { seed: 1.5 }), 'ERR_RANGE', '[create] Expected seed to be an integer of at least 0 but received 1.5'],
  ['dimensions that do not fit', () => LatentModel.create({ ...CONFIG, text: { ...CONFIG.text, kvHeads: 3 } }), 'ERR_CHECKPOINT',
    '[config] Expected num_key_value_heads in config.json to be a divisor of num_attention_heads = 4 but received 3. Each key/value head serves the same number of query heads.'],
  ...[{ source: {} }, { source: {}, text: { layers: 1 } }, { ...newConfig(CONFIG) }].map((config): [string, () => Promise<unknown>, string, string] => [
    `a config that only looks like one, with ${Object.keys(config).join(' and ')},`, () => LatentModel.create(config as never), 'ERR_ARGUMENT',
    "[create] Expected config to be dimensions, or the config of a model as it came, but received an object with 'source' that neither is. Give model.config itself, or dimensions without 'source'.",
  ]),
  ['an estimate of such a config', () => LatentModel.estimate({ source: {} } as never), 'ERR_ARGUMENT',
    "[estimate] Expected source to be dimensions, or the config of a model as it came, but received an object with 'source' that neither is. Give model.config itself, or dimensions without 'source'."],
  ['a model of a terabyte', () => LatentModel.create({ ...CONFIG, text: { ...CONFIG.text, hidden: 65536, heads: 512, kvHeads: 8, layers: 200, mropeSection: [16, 24, 24] } }), 'ERR_OUT_OF_MEMORY', ''],
])('%s is refused', async (_, call, code, message) => {
  const before = native().liveObjects();
  const error: unknown = await call().then(() => undefined, (reason: unknown) => reason);
  expect(error).toMatchObject({ name: 'LibError', code });
  if (message !== '') expect((error as Error).message).toBe(message);
  expect(native().liveObjects()).toEqual(before);
});

test('what is no model, no folder or no options is refused by name', async () => {
  using model = await LatentModel.load(TINY);
  const refused = { name: 'LibError', code: 'ERR_ARGUMENT' };
  await expect(LatentModel.create(null as never)).rejects.toMatchObject({ ...refused, message: '[create] Expected config to be an object but received null' });
  await expect(LatentModel.create(CONFIG, { processor: 5 as never })).rejects.toMatchObject({ ...refused, message: '[create] Expected processor to be a string but received 5' });
  await expect(model.loadWeights(null as never)).rejects.toMatchObject({ ...refused, message: '[load] Expected directory to be a string but received null' });
  await expect(model.loadWeights(TINY, { dtype: 'f32' } as never)).rejects.toMatchObject(refused);
  await expect(model.generate({ promptIds: [1] }, 5 as never)).rejects.toMatchObject({ ...refused, message: '[generate] Expected options to be an object but received 5' });
  await expect(model.stream({ promptIds: [1] }, 5 as never).next()).rejects.toMatchObject(refused);
  await expect(model.save(folder, { latentSteps: 65537 })).rejects.toMatchObject({ code: 'ERR_RANGE', message: '[save] Expected latentSteps to be an integer from 0 to 65536 but received 65537' });
  const file = join(TINY, 'config.json');
  await expect(model.save(file)).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringContaining(`[save] Expected ${file} to be a folder that can be written but received EEXIST`) as string });
});
