/** Training of an adapter: the weights below it stay, dropout repeats, checkpoints hold the adapter alone. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { readProfile, train, trainAll, type StepMetrics, type TrainArguments } from '../../lib/train';
import { contents, endless, sample, tinyModel } from './tinyModel';

let folder: string;
const models: LatentModel[] = [];
beforeEach(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-train-adapter-')); });
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
  rmSync(folder, { recursive: true });
});

const REPLAY = { patches: 2, window: 2, routedLayers: [1], targetFraction: 0.3 } as const;
const BASE: TrainArguments = {
  data: endless, batchSize: 3, accumulation: 2, seed: 9,
  stages: [{ name: 'words', shape: {}, steps: 2, learningRate: 3e-3 }, { name: 'latents', shape: { stage: 2, lastStage: true, padLatents: true }, steps: 3, learningRate: 1e-3 }],
};

/** The same base on disk for every test, and a model on it. */
async function adapted(options: { dropout?: number; vision?: boolean; dtype?: 'f32' | 'bf16' } = {}): Promise<LatentModel> {
  const base = join(folder, 'base');
  if (!existsSync(base)) {
    const made = await tinyModel({ preset: REPLAY, dtype: options.dtype ?? 'f32', initializerRange: 0.1 });
    await made.save(base);
    made.dispose();
  }
  const model = await LatentModel.load(base, { adapter: { rank: 3, dropout: options.dropout ?? 0, vision: options.vision ?? false }, seed: 4 });
  models.push(model);
  return model;
}

async function run(model: LatentModel, options: Partial<TrainArguments> = {}): Promise<StepMetrics[]> {
  const figures: StepMetrics[] = [];
  await trainAll(model, { ...BASE, ...options }, (event) => { if (event.type === 'step') figures.push({ ...event.metrics, milliseconds: 0 }); });
  return figures;
}

test.each([false, true])('the weights keep their bits; the adapter and what is beside the backbone learn (vision: %p)', async (vision) => {
  const model = await adapted({ vision });
  const before = new Map<string, Float32Array>();
  for (const { name } of model.native.parameters()) before.set(`value.${name}`, await model.native.readParameter(name, 'value'));
  const losses = await run(model);
  const after = await contents(model);
  for (const { name, trainable } of model.native.parameters()) {
    const same = Buffer.compare(Buffer.from(before.get(`value.${name}`)!.buffer), Buffer.from(after.get(`value.${name}`)!.buffer)) === 0;
    if (/^(model|visual|lm_head)\./.test(name)) expect([name, same, trainable]).toEqual([name, true, false]);
    else if (name.startsWith('lora.')) expect([name, same, trainable]).toEqual([name, false, true]);
  }
  expect(after.get('value.token_sr.2.weight')).not.toEqual(before.get('value.token_sr.2.weight'));
  expect(model.native.parameters().some(({ name }) => name.startsWith('lora.visual.'))).toBe(vision);
  expect(losses).toHaveLength(5);
});

test('optimiser state is that of the adapter, not of the model', async () => {
  const model = await adapted();
  const weights = model.native.bytes();
  const trainable = (): number => model.native.parameters().filter(({ name }) => !/^(model|visual|lm_head)\./.test(name) && !name.endsWith('.threshold')).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  await run(model, { stages: [BASE.stages[0]!] });
  const state = model.native.bytes() - weights;
  expect(state).toBeGreaterThanOrEqual(12 * trainable());
  expect(state).toBeLessThan(12 * (trainable() + 16 * model.native.parameters().length));   // room is given in units of 16 elements
});

test('dropout: same seed, same training; recomputing changes nothing; another seed does', async () => {
  const figures = await run(await adapted({ dropout: 0.3 }));
  expect(await run(await adapted({ dropout: 0.3 }))).toEqual(figures);
  expect(await run(await adapted({ dropout: 0.3 }), { recompute: true })).toEqual(figures);
  expect((await run(await adapted({ dropout: 0 })))[1]!.loss).not.toBe(figures[1]!.loss);
  // The seed of the training draws order and dropout: with one batch of one sample, dropout alone.
  const one = { data: { size: 1, at: () => sample(3) }, batchSize: 1, accumulation: 1, stages: [BASE.stages[0]!] };
  const [first, again] = [(await run(await adapted({ dropout: 0.3 }), { ...one, seed: 1 }))[1]!.loss, (await run(await adapted({ dropout: 0.3 }), { ...one, seed: 2 }))[1]!.loss];
  expect(first).not.toBe(again);
  expect((await run(await adapted(), { ...one, seed: 1 }))[1]!.loss).toBe((await run(await adapted(), { ...one, seed: 2 }))[1]!.loss);
});

test.each(['f32', 'bf16'] as const)('stopped and resumed: the same bits (%s); checkpoints hold the adapter alone', async (dtype) => {
  const whole = await adapted({ dropout: 0.2, dtype });
  const expected = await run(whole);
  const first = await adapted({ dropout: 0.2, dtype });
  const checkpointFolder = join(folder, 'run');
  await run(first, { checkpointFolder, checkpointEvery: 3, keepCheckpoints: 0 });
  const saved = join(checkpointFolder, 'checkpoint-3');
  expect(existsSync(join(saved, 'model.safetensors'))).toBe(false);
  expect(existsSync(join(saved, 'config.json'))).toBe(false);
  const second = await adapted({ dropout: 0.2, dtype });
  expect(await run(second, { checkpointFolder: join(folder, 'other'), resume: saved })).toEqual(expected.slice(3));
  expect(await contents(second)).toEqual(await contents(whole));
  // Loaded by itself, it answers as the trained model does.
  const loaded = await LatentModel.load(join(checkpointFolder, 'checkpoint-5'), { dtype });
  models.push(loaded);
  const request = { promptIds: [1, 2, 3], pictures: [] };
  expect((await loaded.generate(request, { maxNewTokens: 4, stopIds: [] })).ids).toEqual((await whole.generate(request, { maxNewTokens: 4, stopIds: [] })).ids);
  expect(loaded.preset).toEqual(whole.preset);
});

test('a checkpoint of another adapter is refused', async () => {
  const checkpointFolder = join(folder, 'run');
  await run(await adapted(), { checkpointFolder });
  const saved = join(checkpointFolder, 'checkpoint-5');
  const other = await LatentModel.load(join(folder, 'base'), { adapter: { rank: 2, alpha: 6 }, seed: 4 });
  models.push(other);
  await expect(run(other, { resume: saved })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[train\] Expected an adapter of rank 2 and scale 3 on 'model\.layers\.0\.self_attn\.q_proj' in .* but received rank 3 and scale 2; resume with the same adapter$/) as string });
  await expect(run(await adapted({ dropout: 0.1 }), { resume: saved })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[train\] Expected adapter\.dropout as in .*, 0, but received 0\.1; resume with the same options or start anew$/) as string });
  const broken = join(folder, 'broken');
  cpSync(saved, broken, { recursive: true });
  rmSync(join(broken, 'adapter_config.json'));
  await expect(run(await adapted(), { resume: broken })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[load] Expected adapter_config.json in ${broken} but received no such file. Give the directory of an adapter as PEFT saves it.` });
});

test('a base with other weights is refused', async () => {
  const checkpointFolder = join(folder, 'run');
  await run(await adapted(), { checkpointFolder });
  const other = await tinyModel({ preset: REPLAY, initializerRange: 0.1, seed: 8 });
  await other.save(join(folder, 'other'));
  other.dispose();
  const model = await LatentModel.load(join(folder, 'other'), { adapter: { rank: 3 }, seed: 4 });
  models.push(model);
  await expect(run(model, { resume: join(checkpointFolder, 'checkpoint-5') })).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[train\] Expected adapter\.base as in .*, "[0-9a-f]{16}", but received "[0-9a-f]{16}"; resume with the same options or start anew$/) as string,
  });
});

test('f32 masters of a bf16 model outlive a training of other parameters', async () => {
  const model = await tinyModel({ dtype: 'bf16', initializerRange: 0.1 });
  models.push(model);
  const stages = [{ name: 'words', shape: {}, steps: 2, learningRate: 1e-5 }];
  await run(model, { stages });
  const name = 'model.layers.0.mlp.down_proj.weight';
  const masters = await model.native.readParameter(name, 'master');
  expect(masters).not.toEqual(await model.native.readParameter(name, 'value'));   // below a unit of bf16
  for (const { name } of model.native.parameters()) model.native.setTrainable(name, true);
  await model.native.enableTraining();
  expect(await model.native.readParameter(name, 'master')).toEqual(masters);
});

test('trainVision is for whole models', async () => {
  await expect(run(await adapted(), { trainVision: true })).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: '[train] Expected trainVision: false for a model with an adapter, which is trained instead of the weights, but received true; give the adapter vision: true to train the tower too',
  });
});

test('a merged adapter is not trained; nothing was changed', async () => {
  const model = await adapted();
  await model.mergeAdapter();
  const bytes = model.native.bytes();
  await expect(run(model, { checkpointFolder: join(folder, 'run') })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[train] Expected an adapter that is not merged into the weights, because it is trained, but received one that is; call unmergeAdapter first, or load the model again' });
  expect([model.native.bytes(), existsSync(join(folder, 'run'))]).toEqual([bytes, false]);
});

test('a model that is being trained is neither merged nor read anew, and its training goes on', async () => {
  const expected = await run(await adapted());
  const model = await adapted();
  const refused = (op: string): object => ({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[${op}] Expected a model that no training holds but received one that is being trained; end that training first, or leave its loop` });
  const figures: StepMetrics[] = [];
  for await (const event of train(model, BASE)) {
    if (event.type !== 'step') continue;
    figures.push({ ...event.metrics, milliseconds: 0 });
    await expect(model.mergeAdapter()).rejects.toMatchObject(refused('mergeAdapter'));
    await expect(model.unmergeAdapter()).rejects.toMatchObject(refused('unmergeAdapter'));
    await expect(model.loadWeights(join(folder, 'base'))).rejects.toMatchObject(refused('load'));
  }
  expect(figures).toEqual(expected);
  await model.mergeAdapter();
});

test('spectra are those of A and B', async () => {
  const profileFile = join(folder, 'profile.jsonl');
  await run(await adapted(), { profileFile, profileMatricesEvery: 2 });
  const { head } = await readProfile(profileFile);
  expect(head.matrices).toContain('lora.model.layers.1.self_attn.o_proj.B');
  expect(head.matrices.every((name) => /^lora\./.test(name))).toBe(true);
  expect(readFileSync(profileFile, 'utf8')).toContain('matrices');
});
