/** Thresholds follow the scores of the training passes: quantiles, the first time, the rate, and what is forgotten. */
import type { LatentModel } from '../../lib/latentModel';
import { UNSET_THRESHOLD } from '../../lib/model/extras';
import { openReasoning } from '../../lib/model/reasoning';
import { ROW_KIND, type NativePass, type NativePassResult } from '../../lib/native';
import { runBatch, type SequenceInput } from '../../lib/train/batch';
import { sample, tinyModel } from '../train/tinyModel';
import { trainAll, type StepMetrics } from '../../lib/train';
import { disposing, RAGGED, reasoner } from './reasoner';

let model: LatentModel;
beforeAll(async () => {
  model = await reasoner({ maxDepth: 3, replay: false });
  await model.native.enableTraining();
});
afterAll(() => model.dispose());
beforeEach(async () => {
  await model.native.zeroGradients();
  await setThresholds(UNSET_THRESHOLD);
});

const LAYERS = [1, 3];
async function setThresholds(value: number): Promise<void> {
  for (const layer of LAYERS) await model.native.writeParameter(`router.${layer}.threshold`, 'value', Float32Array.of(value));
}
async function thresholds(): Promise<number[]> {
  return Promise.all(LAYERS.map(async (layer) => (await model.native.readParameter(`router.${layer}.threshold`, 'value'))[0]!));
}

/** Runs sequences in a session and returns the scores that each layer gave to all rows. */
async function scores(sequences: readonly SequenceInput[], training = true): Promise<number[][]> {
  return disposing(openReasoning('test', model, model.preset, { training, recompute: false, visionGradient: false }), async (session) => {
    const { results } = await runBatch(session, sequences, model.geometry, { preset: model.preset, adjust: (pass) => ({ ...pass, traceRouting: true }) });
    if (training) await session.backward(0);   // a tape that is given up moves no threshold
    return LAYERS.map((layer) => scoresOf(results, layer));
  });
}
function scoresOf(results: readonly NativePassResult[], layer: number): number[] {
  return results.flatMap(({ routing }) => routing!).filter((trace) => trace.layer === layer && trace.depth === 2).flatMap((trace) => [...trace.scores]);
}

/** Linear interpolation between the two nearest ranks, as numpy's default. */
function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  return sorted[below]! + (place - below) * ((sorted[below + 1] ?? sorted[below]!) - sorted[below]!);
}

test.each([0, 0.1, 1 / 3, 0.5, 0.999, 1])('a threshold that was never set becomes the quantile of all rows, fraction %d, whatever the rate', async (fraction) => {
  const seen = await scores(RAGGED);
  expect(seen.map(({ length }) => length)).toEqual(new Array(2).fill(RAGGED.reduce((sum, { promptIds, latents, words }) => sum + promptIds.length + latents + Math.max(0, words.length - 1), 0)));
  const { layers, thresholds: moved } = await model.native.updateThresholds(0.1, fraction);
  expect([...layers]).toEqual(LAYERS);
  expect([...moved]).toEqual(seen.map((values) => Math.fround(quantile(values, 1 - fraction))));
  expect(await thresholds()).toEqual([...moved]);
});

test.each([0, 0.1, 0.5, 1])('one that is set moves the rate %d of the way', async (rate) => {
  await setThresholds(0.25);
  const seen = await scores(RAGGED);
  const { thresholds: moved } = await model.native.updateThresholds(rate, 0.2);
  expect([...moved]).toEqual(seen.map((values) => Math.fround(0.25 + rate * (Math.fround(quantile(values, 0.8)) - 0.25))));
});

test('the scores of all passes since the last update count, deeper passes and other sessions do not', async () => {
  await setThresholds(-1e9);   // every row goes as deep as it may
  const [first, second] = [await scores(RAGGED.slice(0, 2)), await scores(RAGGED.slice(2))];
  await scores(RAGGED, false);
  const { thresholds: moved } = await model.native.updateThresholds(1, 0.3);
  LAYERS.forEach((_, n) => {
    const q = Math.fround(quantile([...first[n]!, ...second[n]!], 0.7));
    expect(moved[n]).toBe(Math.fround(Math.fround(-1e9) + (q - Math.fround(-1e9))));
  });
});

test('an update, and zeroGradients(), forget the scores', async () => {
  await scores(RAGGED);
  await model.native.updateThresholds(1, 0.3);
  expect((await model.native.updateThresholds(1, 0.3)).layers).toHaveLength(0);
  await setThresholds(0.5);
  await scores(RAGGED);
  await model.native.zeroGradients();
  expect(await model.native.updateThresholds(1, 0.3)).toEqual({ layers: new Int32Array(0), thresholds: new Float32Array(0) });
  expect(await thresholds()).toEqual([0.5, 0.5]);
});

describe('scores that are no numbers', () => {
  const rows = (id: number, values: Float32Array): NativePass => ({
    sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, values.length / 32), kind: new Uint8Array(values.length / 32).fill(ROW_KIND.embedding),
    index: Int32Array.from({ length: values.length / 32 }, (_, i) => i), positions: new Int32Array((3 * values.length) / 32), embeddings: values, traceRouting: true,
  });
  const values = Float32Array.from({ length: 6 * 32 }, (_, i) => Math.sin(i * i));
  async function run(from: number): Promise<NativePassResult> {
    return disposing(openReasoning('test', model, model.preset, { training: true, recompute: false, visionGradient: false }), async (session) => {
      const result = await session.extend(rows(session.add(), values.map((value, i) => (i >= 32 * from ? NaN : value))));
      await session.backward(0);
      return result;
    });
  }
  test('are left out: the quantile of the others', async () => {
    const result = await run(4);   // the rows before do not see it
    const seen = LAYERS.map((layer) => scoresOf([result], layer));
    for (const layer of seen) expect(layer.map(Number.isNaN)).toEqual([false, false, false, false, true, true]);
    const { thresholds: moved } = await model.native.updateThresholds(0.5, 0.4);
    expect([...moved]).toEqual(seen.map((layer) => Math.fround(quantile(layer.slice(0, 4), 0.6))));
  });
  test('nothing but those: the threshold stays', async () => {
    await setThresholds(0.5);
    await run(0);
    expect((await model.native.updateThresholds(0.5, 0.4)).layers).toHaveLength(0);
    expect(await thresholds()).toEqual([0.5, 0.5]);
    const { routing } = await run(0);
    for (const { routed } of routing!) expect(routed).toHaveLength(0);   // NaN passes no threshold
  });
});

test('a training ends with about the share of rows that it aims at', async () => {
  const trained = await tinyModel({ preset: { replay: false, targetFraction: 0.25 }, initializerRange: 0.1 });
  const figures: StepMetrics[] = [];
  await trainAll(trained, { data: { at: sample }, batchSize: 6, seed: 2, stages: [{ name: 'half', shape: { stage: 1 }, steps: 120, learningRate: 3e-3 }] }, (event) => {
    if (event.type === 'step') figures.push(event.metrics);
  });
  trained.dispose();
  expect(figures[0]!.routedFraction).toBe(0);
  // While the model learns fast its scores rise and the threshold follows behind; the learning rate falls to nothing at the end.
  const last = figures.slice(-40).reduce((sum, { routedFraction }) => sum + routedFraction! / 40, 0);
  expect(Math.abs(last - 0.25)).toBeLessThan(0.2 * 0.25);
});
