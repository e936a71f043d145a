import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { train, trainAll, type StepMetrics, type TrainArguments, type TrainEvent, type TrainingStage } from '../../lib/train';
import { contents, endless, sample, tinyModel } from './tinyModel';

let folder: string;
let models: LatentModel[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-train-'));
  models = [];
});
afterEach(() => {
  for (const model of models) model.dispose();
  rmSync(folder, { recursive: true });
});

async function fresh(options?: Parameters<typeof tinyModel>[0]): Promise<LatentModel> {
  const model = await tinyModel(options);
  models.push(model);
  return model;
}

const STAGES: TrainingStage[] = [
  { name: 'words', shape: {}, steps: 3, learningRate: 3e-3, warmupSteps: 2, finalRate: 1 },
  { name: 'half', shape: { stage: 1, latentsPerStep: 2 }, steps: 2, learningRate: 2e-3, resetOptimizer: true, earlierProbability: 0.4 },
  { name: 'latents', shape: { stage: 2, lastStage: true, padLatents: true }, steps: 2, learningRate: 1e-3 },
];
const BASE: TrainArguments = { data: endless, stages: STAGES, batchSize: 3, accumulation: 2, seed: 9, trainVision: true };

async function run(model: LatentModel, options: TrainArguments): Promise<StepMetrics[]> {
  const figures: StepMetrics[] = [];
  await trainAll(model, options, (event) => {
    if (event.type === 'step') figures.push(event.metrics);
  });
  return figures;
}

/** Trains until `steps` steps are done, then stops through the signal. */
async function runUntil(model: LatentModel, options: TrainArguments, steps: number, how: 'between' | 'during'): Promise<TrainEvent[]> {
  const controller = new AbortController();
  const reason = new Error('enough');
  const events: TrainEvent[] = [];
  await expect((async () => {
    for await (const event of train(model, { ...options, signal: controller.signal })) {
      events.push(event);
      if (event.type !== 'step' || event.metrics.step !== steps) continue;
      if (how === 'between') controller.abort(reason);
      else setTimeout(() => controller.abort(reason), 1);
    }
  })()).rejects.toBe(reason);
  return events;
}

async function caught(call: () => Promise<unknown>): Promise<{ code?: string; message: string }> {
  try {
    await call();
  } catch (error) {
    return error as { code?: string; message: string };
  }
  throw new Error('nothing was thrown');
}

function timeless(metrics: readonly StepMetrics[]): Omit<StepMetrics, 'milliseconds'>[] {
  return metrics.map(({ milliseconds: _, ...rest }) => rest);
}

describe('training', () => {
  test('learns four samples by heart, and counts what it does', async () => {
    const model = await fresh();
    const data = { size: 4, at: sample };
    const figures = await run(model, { data, batchSize: 4, seed: 1, stages: [{ name: 'words', shape: {}, epochs: 80, learningRate: 1e-2 }] });
    expect(figures).toHaveLength(80);
    expect(figures.at(-1)!.loss).toBeLessThan(0.05 * figures[0]!.loss);
    expect(figures.at(-1)!.accuracy).toBe(1);
    const words = [0, 1, 2, 3].reduce((sum, i) => sum + sample(i).steps.flat().length + sample(i).answer.length, 0);
    expect(figures[0]).toMatchObject({ step: 1, stage: 'words', stageStep: 1, targets: words, samples: 4 });
    // Every prompt row and every word but the last of each sample is fed.
    expect(figures[0]!.rows).toBe(words - 4 + [0, 1, 2, 3].reduce((sum, i) => sum + sample(i).promptIds.length, 0));
  });
  test('the loss is the mean over all targets, however they are split into batches', async () => {
    const stages: TrainingStage[] = [{ name: 'half', shape: { stage: 1 }, steps: 1, learningRate: 0 }];
    const [whole] = await run(await fresh(), { data: endless, stages, batchSize: 6 });
    const [split] = await run(await fresh(), { data: endless, stages, batchSize: 2, accumulation: 3 });
    expect(split!.targets).toBe(whole!.targets);
    expect(Math.abs(split!.loss - whole!.loss)).toBeLessThan(1e-6 * whole!.loss);
    expect(Math.abs(split!.gradientNorm - whole!.gradientNorm)).toBeLessThan(1e-5 * whole!.gradientNorm);
  });
  test('latents carry gradient unless detached; recomputing changes nothing', async () => {
    const stages: TrainingStage[] = [{ name: 'latents', shape: { stage: 2, padLatents: true, lastStage: true }, steps: 1, learningRate: 0 }];
    const norm = async (options: Partial<TrainArguments>): Promise<number> => (await run(await fresh(), { data: endless, stages, batchSize: 4, ...options }))[0]!.gradientNorm;
    const through = await norm({});
    expect(await norm({ recompute: true })).toBe(through);
    expect(Math.abs((await norm({ latentGradient: 'detached' })) - through)).toBeGreaterThan(1e-4 * through);
  });
  test('the vision tower is frozen unless asked, weight decay included, and the others move', async () => {
    const model = await fresh();
    await model.native.enableTraining();
    const before = await contents(model);
    const frozen = model.native.parameters().filter(({ name }) => name.startsWith('visual.')).map(({ name }) => name);
    const { trainVision: _, ...rest } = BASE;
    await run(model, { ...rest, weightDecay: 0.5 });
    const after = await contents(model);
    expect(frozen.length).toBeGreaterThan(5);
    for (const name of frozen) expect(after.get(`value.${name}`)).toEqual(before.get(`value.${name}`));
    expect(after.get('value.model.norm.weight')).not.toEqual(before.get('value.model.norm.weight'));
    await run(model, BASE);
    expect((await contents(model)).get('value.visual.patch_embed.proj.weight')).not.toEqual(before.get('value.visual.patch_embed.proj.weight'));
  });
  test('samples may come as promises; one that fails ends the training after the step before it', async () => {
    const expected = timeless(await run(await fresh(), BASE));
    const late = { at: async (index: number) => { await new Promise(setImmediate); return sample(index); } };
    expect(timeless(await run(await fresh(), { ...BASE, data: late }))).toEqual(expected);
    const done: number[] = [];
    const broken = { at: (index: number) => (index < 18 ? sample(index) : Promise.reject(new Error('no more'))) };
    await expect(trainAll(await fresh(), { ...BASE, data: broken }, (event) => { if (event.type === 'step') done.push(event.metrics.step); })).rejects.toThrow('no more');
    expect(done).toEqual([1, 2, 3]);
  });
  test('memory is asked for before it is taken', async () => {
    const model = await fresh({ dtype: 'bf16' });
    const before = model.native.bytes();
    const parameters = model.native.parameters().reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    const error = await caught(async () => run(model, { ...BASE, maxMemoryBytes: 15.9 * parameters }));
    expect(error.code).toBe('ERR_OUT_OF_MEMORY');
    expect(error.message).toMatch(/^\[train\] Expected [\d.]+ MB of memory for gradients and optimiser state of 0\.0 million trainable parameters but received [\d.]+ MB\. Close other programs, /);
    expect(model.native.bytes()).toBe(before);
    await run(model, { ...BASE, maxMemoryBytes: 16.5 * parameters });
    expect(await run(model, { ...BASE, maxMemoryBytes: 0.2 * parameters })).toHaveLength(7);   // nothing more is taken
  });
  test('a loss that is not finite names the step', async () => {
    const error = await caught(async () => run(await fresh(), { ...BASE, maxNorm: 0, stages: [{ name: 'wild', shape: {}, steps: 5, learningRate: 1e6, finalRate: 1 }] }));
    expect(error.code).toBe('ERR_RANGE');
    expect(error.message).toMatch(/^\[train\] Expected a finite (loss|gradient) in step [234] \(stage "wild"\) but received /);
  });
});

describe('stop and resume', () => {
  test.each<['f32' | 'bf16', number, 'between' | 'during']>([
    ['f32', 1, 'between'], ['f32', 2, 'during'], ['f32', 3, 'between'], ['f32', 4, 'during'], ['f32', 6, 'between'], ['bf16', 4, 'between'],
  ])('%s, stopped at step %i (%s): the same bits as without a stop', async (dtype, steps, how) => {
    const straight = await fresh({ dtype });
    const expected = await run(straight, { ...BASE, metricsFile: join(folder, 'straight.jsonl') });
    const options = { ...BASE, checkpointFolder: join(folder, 'run'), metricsFile: join(folder, 'run.jsonl'), resume: 'latest' };
    await runUntil(await fresh({ dtype }), options, steps, how);

    const resumed = await fresh({ dtype, seed: 77 });   // other weights: all of them must come from the checkpoint
    const rest = await run(resumed, options);
    expect(rest.length).toBeLessThanOrEqual(7 - steps);
    expect(timeless(rest)).toEqual(timeless(expected.slice(7 - rest.length)));
    const [a, b] = [await contents(straight), await contents(resumed)];
    expect([...b.keys()]).toEqual([...a.keys()]);
    for (const [name, values] of a) expect([name, Buffer.compare(Buffer.from(values.buffer), Buffer.from(b.get(name)!.buffer))]).toEqual([name, 0]);

    const lines = (file: string): Omit<StepMetrics, 'milliseconds'>[] => timeless(readFileSync(join(folder, file), 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line) as StepMetrics));
    expect(lines('run.jsonl')).toEqual(lines('straight.jsonl'));
  });
  test('metrics of steps after the checkpoint are written once', async () => {
    const options = { ...BASE, checkpointFolder: join(folder, 'run'), metricsFile: join(folder, 'run.jsonl'), checkpointEvery: 2, keepCheckpoints: 0 };
    await run(await fresh(), options);
    writeFileSync(options.metricsFile, `${readFileSync(options.metricsFile, 'utf8')}{"step": 8, "cut`);
    await run(await fresh(), { ...options, resume: join(folder, 'run', 'checkpoint-4') });
    const steps = readFileSync(options.metricsFile, 'utf8').trimEnd().split('\n').map((line) => (JSON.parse(line) as StepMetrics).step);
    expect(steps).toEqual([1, 2, 3, 4, 5, 6, 7]);
  });
  test('checkpoints: every so often, the latest kept, in Hugging Face layout, nothing half-written', async () => {
    const events: TrainEvent[] = [];
    const checkpointFolder = join(folder, 'run');
    await trainAll(await fresh(), { ...BASE, checkpointFolder, checkpointEvery: 2, keepCheckpoints: 2 }, (event) => events.push(event));
    expect(events.filter(({ type }) => type === 'checkpoint').map((event) => (event as { step: number }).step)).toEqual([2, 4, 6, 7]);
    expect(readdirSync(checkpointFolder).sort()).toEqual(['checkpoint-6', 'checkpoint-7']);
    for (const file of ['config.json', 'model.safetensors', 'preprocessor_config.json', 'trainer.json', 'trainer.safetensors']) {
      expect([file, existsSync(join(checkpointFolder, 'checkpoint-7', file))]).toEqual([file, true]);
    }
    (await LatentModel.load(join(checkpointFolder, 'checkpoint-7'))).dispose();
  });
  test('a new training wants a folder without checkpoints; going on from an earlier one removes none of the later', async () => {
    const checkpointFolder = join(folder, 'run');
    const options = { ...BASE, checkpointFolder, checkpointEvery: 2, keepCheckpoints: 0 };
    await run(await fresh(), options);
    expect(await caught(async () => run(await fresh(), options))).toMatchObject({
      code: 'ERR_ARGUMENT', message: `[train] Expected a checkpointFolder without checkpoints but received one with ${join(checkpointFolder, 'checkpoint-7')}; set resume: 'latest', or name another folder`,
    });
    for await (const event of train(await fresh(), { ...options, keepCheckpoints: 1, resume: join(checkpointFolder, 'checkpoint-2') })) if (event.type === 'checkpoint') break;
    expect(readdirSync(checkpointFolder).sort()).toEqual(['checkpoint-4', 'checkpoint-6', 'checkpoint-7']);
  });
  test('a training can be extended by stages', async () => {
    const checkpointFolder = join(folder, 'run');
    await run(await fresh(), { ...BASE, stages: STAGES.slice(0, 2), checkpointFolder });
    const rest = await run(await fresh(), { ...BASE, checkpointFolder, resume: 'latest' });
    expect(timeless(rest)).toEqual(timeless((await run(await fresh(), BASE)).slice(5)));
  });
  test('other options than those of the checkpoint are refused', async () => {
    const checkpointFolder = join(folder, 'run');
    await run(await fresh(), { ...BASE, checkpointFolder });
    const error = await caught(async () => run(await fresh(), { ...BASE, seed: 10, checkpointFolder, resume: 'latest' }));
    expect(error).toMatchObject({
      code: 'ERR_CHECKPOINT', message: `[train] Expected seed as in ${join(checkpointFolder, 'checkpoint-7')}, 9, but received 10; resume with the same options or start anew`,
    });
  });
  test.each([
    ['trainer.json', '{"version": 1'],
    ['trainer.json', '{"version": 2}'],
    ['trainer.json', '{"version": 1, "step": -1, "settings": {}}'],
    ['trainer.json', '{"version": 1, "step": 3, "settings": {"stages": [null]}}'],
    ['trainer.safetensors', 'short'],
    ['model.safetensors', 'short'],
  ])('a broken %s is refused (%s)', async (file, content) => {
    const checkpointFolder = join(folder, 'run');
    await run(await fresh(), { ...BASE, stages: STAGES.slice(0, 1), checkpointFolder });
    writeFileSync(join(checkpointFolder, 'checkpoint-3', file), content);
    expect(await caught(async () => run(await fresh(), { ...BASE, checkpointFolder, resume: 'latest' }))).toMatchObject({ code: 'ERR_CHECKPOINT' });
  });
  test('a checkpoint of more steps than the stages have is refused', async () => {
    const checkpointFolder = join(folder, 'run');
    await run(await fresh(), { ...BASE, stages: STAGES.slice(0, 1), checkpointFolder });
    const path = join(checkpointFolder, 'checkpoint-3', 'trainer.json');
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')) as object, step: 4 }));
    expect(await caught(async () => run(await fresh(), { ...BASE, stages: STAGES.slice(0, 1), checkpointFolder, resume: 'latest' }))).toMatchObject({
      code: 'ERR_CHECKPOINT', message: expect.stringContaining('[train] Expected a checkpoint of at most 3 steps, as the stages have, but received 4') as string,
    });
  });
  test('a folder without a checkpoint is refused, an empty run folder starts anew', async () => {
    expect(await caught(async () => run(await fresh(), { ...BASE, resume: folder }))).toMatchObject({
      code: 'ERR_CHECKPOINT', message: `[train] Expected a trainer state at ${join(folder, 'trainer.json')} but received none; resume from a checkpoint folder of a training`,
    });
    const steps = await run(await fresh(), { ...BASE, checkpointFolder: join(folder, 'new'), resume: 'latest' });
    expect(steps).toHaveLength(7);
  });
  test('a second training starts with fresh optimiser state', async () => {
    const stages: TrainingStage[] = [{ name: 'words', shape: {}, steps: 2, learningRate: 0 }];
    const model = await fresh();
    await run(model, { ...BASE, stages });
    await run(model, { ...BASE, stages });
    const once = await fresh();
    await run(once, { ...BASE, stages });
    expect(await contents(model)).toEqual(await contents(once));
  });
});

describe('misuse', () => {
  test.each<[object, string, string]>([
    [{ batchSize: 0 }, 'ERR_RANGE', '[train] Expected batchSize to be an integer of at least 1 but received 0'],
    [{ accumulation: 1.5 }, 'ERR_RANGE', '[train] Expected accumulation to be an integer of at least 1 but received 1.5'],
    [{ beta1: 1 }, 'ERR_RANGE', '[train] Expected beta1 to be a number from 0 to 0.999999999 but received 1'],
    [{ latentGradient: 'detach' }, 'ERR_ARGUMENT', "[train] Expected latentGradient to be one of 'through', 'detached' but received \"detach\"; did you mean 'detached'?"],
    [{ data: {} }, 'ERR_ARGUMENT', '[train] Expected data to have a function at but received an object'],
    [{ stages: 3 }, 'ERR_ARGUMENT', '[train] Expected stages to be an array but received 3'],
    [{ checkpointEvery: 5 }, 'ERR_ARGUMENT', '[train] Expected checkpointFolder together with checkpointEvery but received none'],
    [{ resume: 'latest' }, 'ERR_ARGUMENT', "[train] Expected checkpointFolder together with resume: 'latest' but received none"],
    [{ data: { at: () => ({ promptIds: [1], pictures: [], steps: [], answer: [] }) } }, 'ERR_ARGUMENT', '[train] Expected samples with words to learn but received none in step 1'],
    [{ batchSize: 1e9 }, 'ERR_RANGE', '[train] Expected batchSize*accumulation to be an integer from 1 to 65536 but received 2000000000'],
    [{ metricsFile: 5 }, 'ERR_ARGUMENT', '[train] Expected metricsFile to be a string but received 5'],
    [{ checkpointFolder: '' }, 'ERR_ARGUMENT', '[train] Expected checkpointFolder to be a path but received ""'],
    [{ data: { at: () => null } }, 'ERR_ARGUMENT', '[train] Expected what data.at resolves to to be an object but received null'],
    [{ data: { at: () => ({ promptIds: [1], steps: [], answer: [1] }) } }, 'ERR_ARGUMENT', '[train] Expected pictures of sample 0 to be an array but received undefined'],
    [{ data: { at: () => ({ promptIds: [99], pictures: [], steps: [], answer: [1] }) } }, 'ERR_RANGE', '[train] Expected prompt token of sample 0, 0 to be an integer from 0 to 47 but received 99'],
  ])('%j', async (change, code, message) => {
    expect(await caught(async () => run(await fresh(), { ...BASE, ...change } as TrainArguments))).toMatchObject({ code, message });
  });
  test('one training at a time holds a model', async () => {
    const model = await fresh();
    const first = train(model, BASE);
    await first.next();
    expect(await caught(() => run(model, BASE))).toMatchObject({
      code: 'ERR_ARGUMENT', message: '[train] Expected a model that no training holds but received one that is being trained; end that training first, or leave its loop',
    });
    await first.return();
    expect(await run(model, BASE)).toHaveLength(7);
  });
  test.each([null, {}])('%j is no model', async (model) => {
    expect(await caught(() => trainAll(model as never, BASE))).toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT' });
  });
  test('places that cannot be written are refused before the first step', async () => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    for (const [options, code, message] of [
      [{ metricsFile: folder }, 'ERR_ARGUMENT', `[train] Expected metricsFile to be a file that can be written but received ${folder}: EISDIR`],
      [{ metricsFile: join(file, 'x') }, 'ERR_ARGUMENT', `[train] Expected metricsFile to be a file that can be written but received ${join(file, 'x')}: `],
      [{ checkpointFolder: file }, 'ERR_CHECKPOINT', `[train] Expected ${file} to be a folder that can be written but received EEXIST`],
    ] as const) {
      const error = await caught(async () => run(await fresh(), { ...BASE, ...options, data: { at: () => { throw new Error('a step was begun'); } } }));
      expect(error).toMatchObject({ name: 'LibError', code, message: expect.stringContaining(message) as string });
    }
  });
  (existsSync('/dev/full') ? test : test.skip)('a full disk under the metrics is an error of the library', async () => {
    expect(await caught(async () => run(await fresh(), { ...BASE, metricsFile: '/dev/full' }))).toMatchObject({
      code: 'ERR_ARGUMENT', message: '[train] Expected metricsFile to be a file that can be written but received /dev/full: ENOSPC: no space left on device, write',
    });
  });
  test('an unknown option names the near match', async () => {
    const error = await caught(async () => run(await fresh(), { ...BASE, batchsize: 3 } as TrainArguments));
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT' });
    expect(error.message).toContain("received 'batchsize'; did you mean 'batchSize'?");
  });
});
