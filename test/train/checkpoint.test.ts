/** Training checkpoints of models with parameters beside the backbone; the storage type of the weights. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import type { PresetChanges } from '../../lib/model/preset';
import { chooseTrainable, trainAll } from '../../lib/train';
import { readTrainerState, writeCheckpoint } from '../../lib/train/checkpoint';
import { contents, endless, tinyModel } from './tinyModel';

let folder: string;
let models: LatentModel[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-state-'));
  models = [];
});
afterEach(() => {
  for (const model of models) model.dispose();
  rmSync(folder, { recursive: true });
});

/** A model that is ready to be trained. */
async function ready(preset: PresetChanges, seed: number): Promise<LatentModel> {
  using plain = await tinyModel();
  const model = await LatentModel.create(plain.config, { preset, seed });
  models.push(model);
  chooseTrainable(model.native, { trainVision: true, preset: model.preset });
  await model.native.enableTraining();
  return model;
}

test('weights, thresholds and optimiser state come back; a threshold has no optimiser state', async () => {
  const model = await ready({ replay: true }, 1);
  const numbers = (length: number, by: number): Float32Array => Float32Array.from({ length }, (_, i) => by / (i + 3));
  await model.native.writeParameter('router.1.threshold', 'value', Float32Array.of(-0.3));
  for (const slot of ['value', 'first', 'second'] as const) await model.native.writeParameter('step.2', slot, numbers(32, slot.length));
  const path = await writeCheckpoint(model, folder, 'checkpoint-7', { step: 7, settings: { seed: 3 } });

  const other = await ready({ replay: true }, 2);
  await other.native.writeParameter('router.1.threshold', 'value', Float32Array.of(9));
  expect(await readTrainerState(other, path, { seed: 3 })).toBe(7);
  const [want, got] = [await contents(model), await contents(other)];
  expect([...got.keys()]).toEqual([...want.keys()]);
  for (const [name, values] of want) expect([name, Buffer.compare(Buffer.from(got.get(name)!.buffer), Buffer.from(values.buffer))]).toEqual([name, 0]);
  expect(got.get('value.router.1.threshold')).toEqual(Float32Array.of(-0.3));
});

test('another preset is refused by its switch', async () => {
  const path = await writeCheckpoint(await ready({ patches: 4 }, 1), folder, 'checkpoint-1', { step: 1, settings: {} });
  await expect(readTrainerState(await ready({ patches: 5 }, 1), path, {})).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_CHECKPOINT', message: `[train] Expected patches of the model's preset as in ${path}, 4, but received 5; resume with the same preset or start anew`,
  });
  await expect(readTrainerState(await ready({ patches: 4, routedLayers: [0, 1] }, 1), path, {})).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT', message: `[train] Expected routedLayers of the model's preset as in ${path}, [1], but received [0,1]; resume with the same preset or start anew`,
  });
});

test('parameters that the checkpoint lacks are named', async () => {
  const model = await ready({}, 1);
  const path = await writeCheckpoint(model, folder, 'checkpoint-1', { step: 1, settings: {} });
  rmSync(join(path, 'plumbline.safetensors'));
  await expect(readTrainerState(model, path, {})).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_CHECKPOINT', message: `[load] Expected tensor 'router.1.weight' in ${join(path, 'plumbline.safetensors')}, as the switches in plumbline.json need, but received a checkpoint without it. Restore the file: without it the model has lost what it learned beside its backbone.`,
  });
});

test.each([['bf16', 'f32', undefined], ['f32', 'bf16', undefined], ['bf16', 'f32', { rank: 2 }]] as const)('a checkpoint of a model in %s is refused by one in %s (adapter %j)', async (before, now, adapter) => {
  const options = { data: endless, stages: [{ name: 'words', shape: {}, steps: 1, learningRate: 1e-3 }], batchSize: 1, checkpointFolder: folder };
  using model = await tinyModel({ dtype: before, ...(adapter && { adapter }) });
  await trainAll(model, options);
  using other = await tinyModel({ dtype: now, ...(adapter && { adapter }) });
  await expect(trainAll(other, { ...options, resume: 'latest' })).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_CHECKPOINT', message: `[train] Expected dtype as in ${join(folder, 'checkpoint-1')}, "${before}", but received "${now}"; resume with the same options or start anew`,
  });
});
