/** Training with replay, super-resolution and routing on. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generate } from '../../lib/decode';
import type { LatentModel } from '../../lib/latentModel';
import type { PresetChanges } from '../../lib/model/preset';
import type { NativeSession, StorageDType } from '../../lib/native';
import { train, trainAll, type StepMetrics, type TrainArguments, type TrainingSample, type TrainingStage } from '../../lib/train';
import { prompt, words } from '../model/reasoner';
import { contents, END, sample, tinyModel } from './tinyModel';

let folder: string;
let models: LatentModel[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-reasoning-'));
  models = [];
});
afterEach(() => {
  for (const model of models) model.dispose();
  rmSync(folder, { recursive: true });
});

const ALL: PresetChanges = { patches: 2, window: 2, maxDepth: 3, targetFraction: 0.3, routerPenalty: 0.01, routedLayers: [0, 1] };
const PRESETS: readonly [string, PresetChanges][] = [
  ['default', ALL], ['prefix-topk', { ...ALL, rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'scaled', alpha: 3, mode: 'soft-mix' }],
  ['official', { name: 'official', patches: 2, alpha: 3, grid: null }],
];
const STAGES: TrainingStage[] = [
  { name: 'half', shape: { stage: 1 }, steps: 3, learningRate: 3e-3, warmupSteps: 1 },
  { name: 'latents', shape: { stage: 2, lastStage: true, padLatents: true }, steps: 2, learningRate: 1e-3, resetOptimizer: true },
];
/** As `sample`, the pictures with originals. */
function pictured(index: number): TrainingSample {
  const made = sample(index);
  return { ...made, pictures: made.pictures.map((one, n) => (n === 0 ? { ...one, original: { pixels: one.pixels.slice(0, 3 * 17 * 23), height: 17, width: 23 } } : one)) };
}
const BASE: TrainArguments = { data: { at: pictured }, stages: STAGES, batchSize: 3, accumulation: 2, seed: 9, trainVision: true };

async function fresh(preset: PresetChanges = ALL, seed = 1, dtype: StorageDType = 'f32'): Promise<LatentModel> {
  const model = await tinyModel({ preset, seed, dtype, initializerRange: 0.1 });
  models.push(model);
  return model;
}

async function run(model: LatentModel, options: Partial<TrainArguments> = {}): Promise<Omit<StepMetrics, 'milliseconds'>[]> {
  const figures: Omit<StepMetrics, 'milliseconds'>[] = [];
  await trainAll(model, { ...BASE, ...options }, (event) => {
    if (event.type !== 'step') return;
    const { milliseconds: _, ...rest } = event.metrics;
    figures.push(rest);
  });
  return figures;
}

async function expectSameBits(got: LatentModel, want: LatentModel): Promise<void> {
  const [a, b] = [await contents(want), await contents(got)];
  expect([...b.keys()]).toEqual([...a.keys()]);
  for (const [name, values] of a) expect([name, Buffer.compare(Buffer.from(values.buffer), Buffer.from(b.get(name)!.buffer))]).toEqual([name, 0]);
}

describe.each<[string, PresetChanges, StorageDType]>([...PRESETS.map(([name, preset]): [string, PresetChanges, StorageDType] => [name, preset, 'f32']), ['default, bf16', ALL, 'bf16']])('%s', (_, preset, dtype) => {
  test('twice the same bits; stopped after any step and resumed into other weights too', async () => {
    const straight = await fresh(preset, 1, dtype);
    const expected = await run(straight, { metricsFile: join(folder, 'straight.jsonl') });
    const again = await fresh(preset, 1, dtype);
    expect(await run(again, { recompute: true })).toEqual(expected);   // checkpointed activations: the same bits
    await expectSameBits(again, straight);
    for (const stop of [1, 4]) {
      const options = { ...BASE, checkpointFolder: join(folder, `run${stop}`), metricsFile: join(folder, `run${stop}.jsonl`), resume: 'latest' };
      for await (const event of train(await fresh(preset, 1, dtype), { ...options, checkpointEvery: stop })) if (event.type === 'checkpoint') break;
      const resumed = await fresh(preset, 77, dtype);
      expect(await run(resumed, options)).toEqual(expected.slice(stop));
      await expectSameBits(resumed, straight);
      const lines = readFileSync(options.metricsFile, 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line) as StepMetrics);
      expect(lines.map(({ milliseconds: __, ...rest }) => rest)).toEqual(expected);
    }
  });
  test('the figures of a step', async () => {
    const figures = await run(await fresh(preset, 1, dtype));
    for (const { srLoss, routedFraction, scoreSquare, thresholds, loss, gradientNorm } of figures) {
      expect([loss, gradientNorm, srLoss, scoreSquare].every((value) => value! > 0)).toBe(true);
      expect(routedFraction! >= 0 && routedFraction! <= 1).toBe(true);
      if (preset === ALL) expect(Object.keys(thresholds!)).toEqual(['0', '1']);
      else expect(thresholds).toBeUndefined();
    }
    expect(figures.slice(1).every(({ routedFraction }) => routedFraction! > 0)).toBe(true);
  });
});

test('fields that do not apply are absent', async () => {
  const stages: TrainingStage[] = [{ name: 'words', shape: {}, steps: 1, learningRate: 1e-3 }];
  const [words0] = await run(await fresh(), { stages });
  expect(words0).not.toHaveProperty('srLoss');   // no latents, no replay
  expect(words0).toHaveProperty('thresholds');
  const [plain] = await run(await fresh({ replay: false, routedLayers: [] }));
  for (const key of ['srLoss', 'routedFraction', 'scoreSquare', 'thresholds']) expect(plain).not.toHaveProperty(key);
  const [still] = await run(await fresh({ ...ALL, tokenSr: false }));
  expect(still).not.toHaveProperty('srLoss');
});

test('the thresholds of a step are those that the model holds', async () => {
  const model = await fresh();
  const figures = await run(model);
  for (const layer of [0, 1]) expect(figures.at(-1)!.thresholds![layer]).toBe((await model.native.readParameter(`router.${layer}.threshold`, 'value'))[0]);
});

describe('accumulation', () => {
  // Six sequences as long as each other, so that each half has half the scores: the penalty is a mean over each batch.
  const even = (index: number): TrainingSample => ({ ...prompt(index % 6, [[2, 2]]), steps: [words(index % 6, 2), words((index % 6) + 9, 2)], answer: [index % 7, END] });
  const one: TrainingStage[] = [{ name: 'half', shape: { stage: 1, latentsPerStep: 3 }, steps: 2, learningRate: 1e-4 }];
  test.each(PRESETS)('%s: halves add up to the whole', async (_, preset) => {
    const [whole, halves] = [await run(await fresh(preset), { data: { at: even }, stages: one, batchSize: 6, accumulation: 1 }), await run(await fresh(preset), { data: { at: even }, stages: one, batchSize: 3, accumulation: 2 })];
    whole.forEach((figures, n) => {
      for (const key of ['loss', 'srLoss', 'scoreSquare', 'gradientNorm'] as const) expect([key, Math.abs(halves[n]![key]! - figures[key]!) < 1e-4 * figures[key]!]).toEqual([key, true]);
      for (const key of ['routedFraction', 'targets', 'samples', 'rows'] as const) expect([key, halves[n]![key]]).toEqual([key, figures[key]]);
      for (const [layer, threshold] of Object.entries(figures.thresholds ?? {})) expect(Math.abs(halves[n]!.thresholds![Number(layer)]! - threshold)).toBeLessThan(1e-5);
    });
  });
  test('uneven batches: cross entropy and super-resolution are means over all of the step', async () => {
    const stages: TrainingStage[] = [{ name: 'half', shape: { stage: 2 }, steps: 1, learningRate: 0 }];
    const of = async (batchSize: number, accumulation: number): Promise<Omit<StepMetrics, 'milliseconds'>> => (await run(await fresh({ ...ALL, routerPenalty: 0 }), { stages, batchSize, accumulation }))[0]!;
    const [whole, parts] = [await of(6, 1), await of(2, 3)];
    for (const key of ['loss', 'srLoss', 'gradientNorm'] as const) expect([key, Math.abs(parts[key]! - whole[key]!) < 1e-4 * whole[key]!]).toEqual([key, true]);
  });
});

/** A model whose sessions call `before` ahead of each replay. */
function watched(model: LatentModel, before: (count: number) => void): LatentModel {
  let count = 0;
  return new Proxy(model, {
    get(target, name) {
      if (name !== 'openSession') return typeof Reflect.get(target, name, target) === 'function' ? (Reflect.get(target, name, target) as () => unknown).bind(target) : Reflect.get(target, name, target);
      return (...args: Parameters<LatentModel['openSession']>) => new Proxy(target.openSession(...args), {
        get(session, method: keyof NativeSession) {
          if (method === 'replay') before(count++);
          return (session[method] as () => unknown).bind(session);
        },
      });
    },
  });
}

test('an abort during a replay leaves the weights of the step before, no gradients, and a model that works', async () => {
  const expected = await fresh();
  for await (const event of train(expected, BASE)) if (event.type === 'step' && event.metrics.step === 2) break;
  const [model, controller, reason] = [await fresh(), new AbortController(), new Error('enough')];
  let steps = 0;
  const replaysOfStep: number[] = [];
  const stopping = watched(model, () => {
    replaysOfStep[steps] = (replaysOfStep[steps] ?? 0) + 1;
    if (steps === 2 && replaysOfStep[2] === 2) controller.abort(reason);
  });
  await expect(trainAll(stopping, { ...BASE, signal: controller.signal }, (event) => { if (event.type === 'step') steps = event.metrics.step; })).rejects.toBe(reason);
  expect([steps, replaysOfStep[2]]).toEqual([2, 2]);
  await expectSameBits(model, expected);
  for (const { name } of model.native.parameters().filter(({ trainable }) => trainable)) expect((await model.native.readParameter(name, 'gradient')).every((value) => value === 0)).toBe(true);
  expect((await model.native.updateThresholds(1, 0.5)).layers).toHaveLength(0);   // the scores of the step that was given up are gone
  expect((await generate(model, [{ ...prompt(1, [[2, 2]]), latentSteps: 2, maxNewTokens: 2 }], { stopIds: [] }))[0]!.ids).toHaveLength(2);
  expect(await run(model, { stages: [{ name: 'again', shape: { stage: 1 }, steps: 1, learningRate: 0 }] })).toHaveLength(1);
});

describe('switches of a training', () => {
  test('what they switch off stays as it was, weight decay or not; thresholds too', async () => {
    const model = await fresh();
    await model.native.enableTraining();
    await run(model);   // so that thresholds and moments are not at their start
    const before = await contents(model);
    const preset = JSON.stringify(model.preset);
    await run(model, { weightDecay: 0.5, preset: { routedLayers: [1], replay: false } });
    const after = await contents(model);
    const names = [...before.keys()].filter((name) => /^value\.(router|token_sr|step)/.test(name));
    const moved = names.filter((name) => Buffer.compare(Buffer.from(before.get(name)!.buffer), Buffer.from(after.get(name)!.buffer)) !== 0);
    expect(moved.sort()).toEqual(['value.router.1.bias', 'value.router.1.threshold', 'value.router.1.weight', 'value.step.2', 'value.step.3']);
    expect(JSON.stringify(model.preset)).toBe(preset);
  });
  test('they count: latents detached, another K, another penalty', async () => {
    const stages: TrainingStage[] = [{ name: 'latents', shape: { stage: 2, padLatents: true }, steps: 1, learningRate: 0 }];
    const of = async (options: Partial<TrainArguments>): Promise<Omit<StepMetrics, 'milliseconds'>> => (await run(await fresh(), { stages, ...options }))[0]!;
    const base = await of({});
    expect(await of({ preset: {} })).toEqual(base);
    expect((await of({ latentGradient: 'detached' })).gradientNorm).not.toBe(base.gradientNorm);
    expect(await of({ preset: { latentGradient: 'detached' } })).toEqual(await of({ latentGradient: 'detached' }));
    expect((await of({ preset: { patches: 1 } })).rows).toBeLessThan(base.rows);
    expect((await of({ preset: { routerPenalty: 10 } })).gradientNorm).toBeGreaterThan(base.gradientNorm);
    expect((await of({ preset: { srWeight: 0 } })).srLoss).toBe(base.srLoss);
  });
  test.each<[Partial<TrainArguments>, string, string]>([
    [{ preset: { rule: 'x' as never } }, 'ERR_ARGUMENT', "[preset] Expected rule to be one of 'threshold', 'prefix-topk', 'topk' but received \"x\""],
    [{ preset: 5 as never }, 'ERR_ARGUMENT', '[train] Expected preset to be an object but received 5'],
    [{ preset: { maxDepth: 4 } }, 'ERR_UNSUPPORTED', "[train] Expected a model with parameter 'step.4', which the preset's switches need, but received one without; load or create it with this preset and train it, or switch off replay, tokenSr and srAdded, or routedLayers"],
  ])('%j', async (options, code, message) => {
    await expect(run(await fresh(), options)).rejects.toMatchObject({ name: 'LibError', code, message });
  });
  test('a training that cannot start leaves the metrics of an earlier one', async () => {
    const metricsFile = join(folder, 'kept.jsonl');
    writeFileSync(metricsFile, '{"step":1}\n');
    await expect(run(await fresh(), { metricsFile, preset: { maxDepth: 4 } })).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
    expect(readFileSync(metricsFile, 'utf8')).toBe('{"step":1}\n');
  });
  test('a resumed training has the same switches', async () => {
    const checkpointFolder = join(folder, 'run');
    await run(await fresh(), { stages: STAGES.slice(0, 1), checkpointFolder, preset: { patches: 1 } });
    await expect(run(await fresh(), { checkpointFolder, resume: 'latest' })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[train] Expected preset.patches as in ${join(checkpointFolder, 'checkpoint-3')}, 1, but received 2; resume with the same options or start anew` });
    await expect(run(await fresh(), { checkpointFolder, resume: 'latest', preset: { patches: 1, routedLayers: [1] } })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT', message: `[train] Expected preset.routedLayers as in ${join(checkpointFolder, 'checkpoint-3')}, [0,1], but received [1]; resume with the same options or start anew` });
    expect(await run(await fresh(), { checkpointFolder, resume: 'latest', preset: { patches: 1 } })).toHaveLength(2);
  });
});
