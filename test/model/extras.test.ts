/** Parameters beside the backbone, from creation and files through saving and loading. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  estimateMemory, extraShapes, LatentModel, makePreset, native, openCheckpoint, PLAIN, readHeader, readTensor, UNSET_THRESHOLD, writeSafetensors,
  type LoadOptions, type LoadProgress, type NewModelConfig, type TensorSource,
} from '../../lib/index';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
const CONFIG: NewModelConfig = {
  text: { hidden: 32, layers: 4, heads: 4, kvHeads: 2, intermediate: 48, vocab: 64, mropeSection: [2, 1, 1], tied: true },
  vision: { depth: 1, width: 16, heads: 2, mlpWidth: 24 },
  tokens: { image: 60, video: 61, visionStart: 62, visionEnd: 63, eos: 58, pad: 59 },
};
const ROUTED = ['router.1.bias', 'router.1.threshold', 'router.1.weight', 'router.3.bias', 'router.3.threshold', 'router.3.weight', 'step.2'];
const TOKEN_SR = ['token_sr.0.bias', 'token_sr.0.weight', 'token_sr.2.bias', 'token_sr.2.weight'];

let root: string;
let folder: string;
beforeAll(() => { root = mkdtempSync(join(tmpdir(), 'plumbline-extras-')); });
afterAll(() => rmSync(root, { recursive: true }));
beforeEach(() => { folder = mkdtempSync(join(root, 'c-')); });

const path = (name: string): string => join(folder, name);
const tiny = (): void => cpSync(TINY, folder, { recursive: true });
const readJson = (name: string): Record<string, unknown> => JSON.parse(readFileSync(path(name), 'utf8')) as Record<string, unknown>;
const isExtra = (name: string): boolean => /^(router|step|token_sr|other)\./.test(name);

async function values(model: LatentModel): Promise<Map<string, Float32Array>> {
  const all = new Map<string, Float32Array>();
  for (const { name } of model.native.parameters()) all.set(name, await model.native.readParameter(name, 'value'));
  return all;
}

/** Equal bits; -0 and 0 differ. */
function same(got: Map<string, Float32Array>, want: Map<string, Float32Array>): void {
  expect([...got.keys()].sort()).toEqual([...want.keys()].sort());
  for (const [name, expected] of want) expect([name, Buffer.compare(Buffer.from(got.get(name)!.buffer), Buffer.from(expected.buffer))]).toEqual([name, 0]);
}

async function extraTensors(): Promise<TensorSource[]> {
  const header = await readHeader(path('plumbline.safetensors'));
  return Promise.all([...header.tensors.values()].map(async ({ name, dtype, shape }) => {
    const bytes = await readTensor(header, name);
    return { name, dtype, shape, read: () => bytes };
  }));
}

async function rewrite(change: (tensor: TensorSource) => TensorSource[]): Promise<void> {
  await writeSafetensors(path('plumbline.safetensors'), (await extraTensors()).flatMap(change));
}

async function refused(code: string, message: string, options: LoadOptions = {}): Promise<void> {
  const before = native().liveObjects();
  const error: unknown = await LatentModel.load(folder, options).then((model) => model.dispose(), (reason: unknown) => reason);
  expect(error).toMatchObject({ name: 'LibError', code, message });
  expect(native().liveObjects()).toEqual(before);
}

describe('a new model', () => {
  test('has what its preset needs, with its start values; the seed decides', async () => {
    using model = await LatentModel.create(CONFIG, { preset: 'default', seed: 3 });
    expect(model.preset).toEqual(makePreset('default', 4));
    expect(model.record.preset).toBe(model.preset);
    const all = await values(model);
    expect([...all.keys()].filter(isExtra).sort()).toEqual([...ROUTED, ...TOKEN_SR]);
    for (const name of ['router.1.bias', 'step.2', 'token_sr.0.bias', 'token_sr.2.weight', 'token_sr.2.bias']) expect([name, new Set(all.get(name))]).toEqual([name, new Set([0])]);
    expect([...all.get('router.3.threshold')!]).toEqual([UNSET_THRESHOLD]);
    // 1,024 samples: the deviation's own standard error is 2.2 per cent.
    const table = all.get('token_sr.0.weight')!;
    expect(Math.abs(Math.sqrt(table.reduce((sum, v) => sum + v * v, 0) / table.length) / 0.02 - 1)).toBeLessThan(0.1);
    expect(all.get('router.1.weight')).not.toEqual(all.get('router.3.weight'));
    using again = await LatentModel.create(CONFIG, { preset: 'default', seed: 3 });
    same(await values(again), all);
    using other = await LatentModel.create(CONFIG, { preset: 'default', seed: 4 });
    expect((await values(other)).get('router.1.weight')).not.toEqual(all.get('router.1.weight'));
  });

  test('is plain unless asked, and its backbone does not depend on the preset', async () => {
    using plain = await LatentModel.create(CONFIG, { seed: 3 });
    expect(plain.preset).toEqual(PLAIN);
    expect(plain.native.parameters().map(({ name }) => name).filter(isExtra)).toEqual([]);
    using full = await LatentModel.create(CONFIG, { seed: 3, preset: { name: 'paper', maxDepth: 3 } });
    const backbone = new Map([...(await values(full))].filter(([name]) => !isExtra(name)));
    same(backbone, await values(plain));
    expect(full.native.parameters().filter(({ name }) => name.startsWith('router.1.')).map(({ name, shape, dtype }) => `${name} ${shape.join('x')} ${dtype}`)).toEqual([
      'router.1.0.weight 8x32 f32', 'router.1.0.bias 8 f32', 'router.1.2.weight 1x8 f32', 'router.1.2.bias 1 f32',
    ]);
  });

  test('a processor folder gives latent steps, not the switches of its own layers', async () => {
    writeFileSync(path('plumbline.json'), JSON.stringify({ format: 2, preset: 'default', latentSteps: 3, switches: { routedLayers: [77] } }));
    using model = await LatentModel.create(CONFIG, { processor: folder });
    expect([model.latentSteps, model.preset]).toEqual([3, PLAIN]);
    using asked = await LatentModel.create(CONFIG, { processor: folder, preset: { routedLayers: [2] } });
    expect(asked.preset.routedLayers).toEqual([2]);
  });

  test.each(['f32', 'bf16'] as const)('%s: saved and loaded it is the same, the extras always in f32', async (dtype) => {
    using model = await LatentModel.create(CONFIG, { preset: { alpha: 5, maxDepth: 3 }, dtype, latentSteps: 4 });
    await model.native.writeParameter('router.3.threshold', 'value', Float32Array.of(0.1));
    await model.native.writeParameter('step.3', 'value', Float32Array.from({ length: 32 }, (_, i) => 1 / (i + 1)));
    await model.save(folder);
    expect(readJson('plumbline.json')).toMatchObject({ format: 2, preset: 'default', latentSteps: 4, switches: { alpha: 5, maxDepth: 3, routedLayers: [1, 3], grid: null } });
    const header = await readHeader(path('plumbline.safetensors'));
    expect([...header.tensors.keys()]).toEqual([...ROUTED, 'step.3', ...TOKEN_SR]);
    expect(new Set([...header.tensors.values()].map((entry) => entry.dtype))).toEqual(new Set(['F32']));
    using again = await LatentModel.load(folder);
    expect([again.preset, again.dtype, again.latentSteps]).toEqual([model.preset, dtype, 4]);
    same(await values(again), await values(model));
  });

  test('saved without extras, the folder keeps none of another model', async () => {
    using model = await LatentModel.create(CONFIG);
    tiny();
    await model.save(folder);
    expect(existsSync(path('plumbline.safetensors'))).toBe(false);
    using again = await LatentModel.load(folder);
    expect(again.preset).toEqual(PLAIN);
  });

  test('progress counts the extras too, saving and loading', async () => {
    using model = await LatentModel.create(CONFIG, { preset: 'default' });
    const { weightBytes } = estimateMemory(model.config, 'f32', extraShapes(model.preset, 32));
    const seen: LoadProgress[] = [];
    const onProgress = (progress: LoadProgress): void => { seen.push(progress); };
    await model.save(folder, { onProgress });
    expect(seen.at(-1)).toEqual({ doneBytes: weightBytes, totalBytes: weightBytes });
    (await LatentModel.load(folder, { onProgress })).dispose();
    expect(seen.at(-1)).toEqual({ doneBytes: weightBytes, totalBytes: weightBytes });
  });
});

describe('a checkpoint', () => {
  beforeEach(tiny);

  test('of format 1 is plain, keeps tensors that nothing needs, and is saved back byte for byte', async () => {
    using model = await LatentModel.load(folder);
    expect(model.preset).toEqual(PLAIN);
    await model.save(path('out'));
    expect(readFileSync(path('out/plumbline.safetensors'))).toEqual(readFileSync(path('plumbline.safetensors')));
    using again = await LatentModel.load(path('out'));
    same(await values(again), await values(model));
    expect(again.preset).toEqual(PLAIN);
  });

  test('says what lies beside the backbone', async () => {
    const { extras, record } = await openCheckpoint(folder);
    expect(extras.path).toBe(path('plumbline.safetensors'));
    expect(extras.tensors).toHaveLength(20);
    expect(extras.tensors.find(({ name }) => name === 'router.1.0.weight')).toMatchObject({ dtype: 'F32', shape: [10, 40], bytes: 1600 });
    expect(record.preset).toEqual(PLAIN);
    expect((await openCheckpoint(folder, { name: 'paper', alpha: 6 })).record.preset).toEqual(makePreset({ name: 'paper', alpha: 6 }, 2));
    rmSync(path('plumbline.safetensors'));
    expect((await openCheckpoint(folder)).extras).toEqual({ path: path('plumbline.safetensors'), tensors: [] });
  });

  test('a preset of the call is what the model has and records; changes without a name go over the recorded one', async () => {
    {
      using model = await LatentModel.load(folder, { preset: { name: 'paper', patches: 4 } });
      expect(model.preset).toEqual(makePreset({ name: 'paper', patches: 4 }, 2));
      await model.save(folder);
    }
    using recorded = await LatentModel.load(folder);
    expect(recorded.preset).toEqual(makePreset({ name: 'paper', patches: 4 }, 2));
    using changed = await LatentModel.load(folder, { preset: { window: 2 } });
    expect(changed.preset).toEqual(makePreset({ name: 'paper', patches: 4, window: 2 }, 2));
    using named = await LatentModel.load(folder, { preset: 'official' });
    expect(named.preset).toEqual(makePreset('official', 2));
  });

  test('what it lacks starts as new, from the seed; what it has comes from the file', async () => {
    await rewrite((tensor) => (tensor.name === 'router.1.weight' || tensor.name === 'router.1.threshold' ? [] : [tensor]));
    using model = await LatentModel.load(folder, { preset: 'default' });
    using same0 = await LatentModel.load(folder, { preset: 'default', seed: 0 });
    using other = await LatentModel.load(folder, { preset: 'default', seed: 1 });
    const [all, zero, one] = [await values(model), await values(same0), await values(other)];
    same(zero, all);
    expect([...all.get('router.1.threshold')!]).toEqual([UNSET_THRESHOLD]);
    expect(one.get('router.1.weight')).not.toEqual(all.get('router.1.weight'));
    expect(one.get('router.1.weight')!.every((v) => v !== 0)).toBe(true);
    const [bias] = (await extraTensors()).filter(({ name }) => name === 'router.1.bias');
    expect(Buffer.from(all.get('router.1.bias')!.buffer)).toEqual(Buffer.from(await bias!.read() as Uint8Array));
    rmSync(path('plumbline.safetensors'));
    using none = await LatentModel.load(folder, { preset: 'default' });
    expect((await values(none)).get('token_sr.0.bias')).toEqual(new Float32Array(40));
  });

  test('halves are widened, and unknown names kept', async () => {
    await rewrite((tensor) => (tensor.name === 'step.2' ? [
      { ...tensor, dtype: 'BF16', read: () => new Uint16Array(40).fill(0x3fc0) }, { name: 'other.scalar', dtype: 'F16', shape: [], read: () => Uint16Array.of(0x3c01) },
    ] : [tensor]));
    using model = await LatentModel.load(folder);
    const all = await values(model);
    expect([new Set(all.get('step.2')), all.get('other.scalar')]).toEqual([new Set([1.5]), Float32Array.of(1 + 2 ** -10)]);
    await model.save(folder);
    expect((await readHeader(path('plumbline.safetensors'))).tensors.get('other.scalar')).toMatchObject({ dtype: 'F32', shape: [] });
    using again = await LatentModel.load(folder);
    same(await values(again), all);
  });

  test('memory counts the extras', async () => {
    const { config, extras } = await openCheckpoint(folder);
    const bare = estimateMemory(config, 'f32');
    const bytes = extras.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    expect(estimateMemory(config, 'f32', extras.tensors).weightBytes).toBe(bare.weightBytes + bytes);
    await expect(LatentModel.load(folder, { maxMemoryBytes: bare.weightBytes + bare.stagingBytes })).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    (await LatentModel.load(folder, { maxMemoryBytes: bare.weightBytes + bare.stagingBytes + bytes })).dispose();
    expect(() => estimateMemory(config, 'f32', [{}] as never)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: '[memory] Expected shape of extra 0 to be an array but received undefined' }) as unknown as Error);
  });

  test('an abort while it is loaded leaves nothing', async () => {
    const before = native().liveObjects();
    const reason = new Error('enough');
    await expect(LatentModel.load(folder, { preset: 'default', signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(native().liveObjects()).toEqual(before);
  });

  describe('is refused by name', () => {
    const file = (): string => path('plumbline.safetensors');
    const change = (wanted: string, into: (tensor: TensorSource) => TensorSource[]) => (tensor: TensorSource): TensorSource[] => (tensor.name === wanted ? into(tensor) : [tensor]);

    test('a shape that the preset does not have', async () => {
      await rewrite(change('token_sr.2.weight', (tensor) => [{ ...tensor, shape: [20, 80] }]));
      (await LatentModel.load(folder)).dispose();   // plain: not needed
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'token_sr.2.weight' to have shape [40, 40], as the preset and hidden_size = 40 say, but received [20, 80] in ${file()}. The files belong to different models.`, { preset: 'default' });
    });

    test('integers, empty tensors, and tensors of the backbone', async () => {
      const damaged = 'The file is damaged: save the checkpoint again.';
      const original = readFileSync(file());
      await rewrite(change('step.2', (tensor) => [{ ...tensor, dtype: 'I32' }]));
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'step.2' to be F32, F16 or BF16 but received I32 in ${file()}. ${damaged}`);
      writeFileSync(file(), original);
      await rewrite(change('step.2', (tensor) => [{ ...tensor, shape: [0], read: () => new Float32Array(0) }]));
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'step.2' to have a shape of at most 8 numbers above 0 but received [0] in ${file()}. ${damaged}`);
      writeFileSync(file(), original);
      await rewrite(change('step.2', (tensor) => [{ ...tensor, shape: [1, 1, 1, 1, 1, 1, 1, 1, 40] }]));
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'step.2' to have a shape of at most 8 numbers above 0 but received [1, 1, 1, 1, 1, 1, 1, 1, 40] in ${file()}. ${damaged}`);
      writeFileSync(file(), original);
      await rewrite(change('step.2', (tensor) => [tensor, { ...tensor, name: 'model.norm.weight' }]));
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'model.norm.weight' in the files of the backbone but received it in ${file()}. ${damaged}`);
      writeFileSync(file(), original);
      await rewrite(change('step.2', (tensor) => [tensor, { ...tensor, name: 'lora.model.layers.0.mlp.up_proj.A' }]));
      await refused('ERR_CHECKPOINT', `[load] Expected tensor 'lora.model.layers.0.mlp.up_proj.A' in adapter_model.safetensors but received it in ${file()}. ${damaged}`);
    });

    test('NaN', async () => {
      await rewrite(change('router.0.threshold', (tensor) => [{ ...tensor, read: () => Float32Array.of(NaN) }]));
      await refused('ERR_CHECKPOINT', "[Model.load] Expected the values of 'router.0.threshold' to be finite but element 0 is NaN or infinite; the checkpoint is damaged or its training diverged");
    });

    test('a file cut short', async () => {
      const bytes = readFileSync(file());
      writeFileSync(file(), bytes.subarray(0, bytes.length - 4));
      await refused('ERR_CHECKPOINT', `[safetensors] Expected ${bytes.length} bytes in ${file()} but received a file of ${bytes.length - 4} bytes. The file is damaged or incomplete: download or save it again.`);
    });

    test('a file that was lost, or a tensor of it', async () => {
      const model = await LatentModel.create(CONFIG, { preset: {} });
      await model.save(folder);
      model.dispose();
      const lost = (name: string): string => `[load] Expected tensor '${name}' in ${file()}, as the switches in plumbline.json need, but received a checkpoint without it. Restore the file: without it the model has lost what it learned beside its backbone.`;
      await rewrite((tensor) => [tensor.name === 'router.1.weight' ? { ...tensor, name: 'router.9.weight' } : tensor]);
      await refused('ERR_CHECKPOINT', lost('router.1.weight'));
      rmSync(file());
      await refused('ERR_CHECKPOINT', lost('router.1.weight'));
      await refused('ERR_CHECKPOINT', lost('router.1.weight'), { preset: { replay: false } });
    });
    test('a plumbline.json without its switches, or with those of another format', async () => {
      tiny();
      const record = readJson('plumbline.json');
      writeFileSync(path('plumbline.json'), JSON.stringify({ ...record, format: 2 }));
      await refused('ERR_CHECKPOINT', '[load] Expected switches in plumbline.json to be an object but received undefined. Correct the file, or save the checkpoint again.');
      writeFileSync(path('plumbline.json'), JSON.stringify({ ...record, switches: {} }));
      await refused('ERR_CHECKPOINT', '[load] Expected format in plumbline.json to be that of a file with switches, 2 but received 1. Save the checkpoint again.');
    });
    test('a switch of plumbline.json', async () => {
      using model = await LatentModel.load(folder, { preset: 'default' });
      await model.save(folder);
      const record = readJson('plumbline.json');
      writeFileSync(path('plumbline.json'), JSON.stringify({ ...record, switches: { ...record['switches'] as object, rule: 'best' } }));
      await refused('ERR_CHECKPOINT', "[load] Expected switches.rule in plumbline.json to be one of 'threshold', 'prefix-topk', 'topk' but received \"best\". Correct the file, or save the checkpoint again.");
    });
  });
});

test('loadWeights reads the extras that the model has, and leaves the others and the preset', async () => {
  tiny();
  using model = await LatentModel.load(folder, { preset: { name: 'default', maxDepth: 4 } });
  const want = await values(model);
  for (const [name, value] of want) if (isExtra(name)) await model.native.writeParameter(name, 'value', new Float32Array(value.length).fill(7));
  await model.loadWeights(folder);
  same(await values(model), new Map(want).set('step.4', new Float32Array(40).fill(7)));   // the file has steps 2 and 3
  expect(model.preset.maxDepth).toBe(4);

  rmSync(path('plumbline.safetensors'));
  using plain = await LatentModel.load(folder);
  const before = await values(plain);
  await plain.loadWeights(TINY);
  same(await values(plain), before);

  cpSync(TINY, folder, { recursive: true });
  await rewrite((tensor) => (tensor.name === 'step.3' ? [{ ...tensor, shape: [4, 10] }] : [tensor]));
  await model.native.writeParameter('model.norm.weight', 'value', new Float32Array(40).fill(3));
  await expect(model.loadWeights(folder)).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_CHECKPOINT',
    message: `[load] Expected tensor 'step.3' to have shape [40], as this model has it, but received [4, 10] in ${path('plumbline.safetensors')}. Load the checkpoint as a model of its own.`,
  });
  expect(new Set(await model.native.readParameter('model.norm.weight', 'value'))).toEqual(new Set([3]));   // nothing was read
});
