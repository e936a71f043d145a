import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/model/checkpoint';
import { LatentModel } from '../../lib/latentModel';
import { estimateMemory } from '../../lib/model/memory';
import { PLAIN, presetJson } from '../../lib/model/preset';
import { readHeader, readTensor, writeSafetensors, type TensorSource } from '../../lib/model/safetensors';
import { native } from '../../lib/native';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
const EMBEDDING = 'model.embed_tokens.weight';
let root: string;
let folder: string;
beforeAll(() => { root = mkdtempSync(join(tmpdir(), 'plumbline-checkpoint-')); });
afterAll(() => rmSync(root, { recursive: true }));
beforeEach(() => {
  folder = mkdtempSync(join(root, 'c-'));
  cpSync(TINY, folder, { recursive: true });
});

const path = (name: string): string => join(folder, name);
const readJson = (name: string): Record<string, unknown> => JSON.parse(readFileSync(path(name), 'utf8')) as Record<string, unknown>;
const writeJson = (name: string, value: unknown): void => writeFileSync(path(name), JSON.stringify(value));

/** All tensors of the folder's file, as sources to write again. */
async function tensorsOf(file = path('model.safetensors')): Promise<TensorSource[]> {
  const header = await readHeader(file);
  return Promise.all([...header.tensors.values()].map(async ({ name, dtype, shape }) => {
    const bytes = await readTensor(header, name);
    return { name, dtype, shape, read: () => bytes };
  }));
}

async function rewrite(change: (tensors: TensorSource[]) => TensorSource[]): Promise<void> {
  await writeSafetensors(path('model.safetensors'), change(await tensorsOf()));
}

async function values(model: LatentModel): Promise<Map<string, number[]>> {
  const all = new Map<string, number[]>();
  for (const { name } of model.native.parameters()) all.set(name, [...(await model.native.readParameter(name, 'value'))]);
  return all;
}

async function refused(code: string, message: string): Promise<void> {
  const before = native().liveObjects();
  const error: unknown = await LatentModel.load(folder).then((model) => model.dispose(), (reason: unknown) => reason);
  expect(error).toMatchObject({ name: 'LibError', code, message: expect.stringContaining(message) as string });
  expect(native().liveObjects()).toEqual(before);
}

test('an opened checkpoint says what it is', async () => {
  const checkpoint = await openCheckpoint(folder);
  expect(checkpoint).toMatchObject({ dtype: 'f32', ignored: [], images: { maxPixels: 31360 }, generation: { endTokens: [300, 305] }, record: { latentSteps: 3, latentToken: 308 } });
  expect(checkpoint.files.map(({ tensors }) => tensors.length)).toEqual([(await readHeader(path('model.safetensors'))).tensors.size]);
});

test('every weight arrives where it belongs', async () => {
  using model = await LatentModel.load(folder);
  const headers = [await readHeader(path('model.safetensors')), await readHeader(path('plumbline.safetensors'))];
  const loaded = await values(model);
  expect([...loaded.keys()].sort()).toEqual(headers.flatMap(({ tensors }) => [...tensors.keys()]).sort());
  for (const [name, got] of loaded) {
    const bytes = new Uint8Array(await readTensor(headers.find(({ tensors }) => tensors.has(name))!, name));
    expect(got).toEqual([...new Float32Array(bytes.buffer)]);
  }
});

test('shards with the newer names hold the same model', async () => {
  using classic = await LatentModel.load(folder);
  const want = await values(classic);
  const renamed = (await tensorsOf()).map((tensor) => ({ ...tensor, name: tensor.name.replace(/^model\./, 'model.language_model.').replace(/^visual\./, 'model.visual.') }));
  rmSync(path('model.safetensors'));
  const weightMap: Record<string, string> = {};
  for (let shard = 0; shard < 3; shard++) {
    const file = `model-0000${shard + 1}-of-00003.safetensors`;
    const part = renamed.filter((_, n) => n % 3 === shard);
    for (const { name } of part) weightMap[name] = file;
    await writeSafetensors(path(file), part);
  }
  writeJson('model.safetensors.index.json', { metadata: {}, weight_map: weightMap });
  using sharded = await LatentModel.load(folder);
  expect(await values(sharded)).toEqual(want);

  writeJson('model.safetensors.index.json', { weight_map: { ...weightMap, extra: '../../../etc/passwd.safetensors' } });
  await refused('ERR_CHECKPOINT', "Expected the file of 'extra' in model.safetensors.index.json to be the name of a .safetensors file beside it");
  writeJson('model.safetensors.index.json', { weight_map: { ...weightMap, extra: 'model-00001-of-00003.safetensors' } });
  await refused('ERR_CHECKPOINT', "Expected tensor 'extra' in model-00001-of-00003.safetensors, as model.safetensors.index.json says, but received a file without it");
  writeJson('model.safetensors.index.json', { weight_map: weightMap });
  rmSync(path('model-00002-of-00003.safetensors'));
  await refused('ERR_CHECKPOINT', 'model-00002-of-00003.safetensors');
  writeJson('model.safetensors.index.json', { weight_map: [] });
  await refused('ERR_CHECKPOINT', 'Expected weight_map in model.safetensors.index.json to be an object');
});

test.each([-7, 5])('the table has as many rows as the file says: vocab_size off by %i', async (more) => {
  const config = readJson('config.json');
  const vocab = config['vocab_size'] as number;
  writeJson('config.json', { ...config, vocab_size: vocab + more });
  using model = await LatentModel.load(folder);
  expect(model.geometry.vocab).toBe(vocab);
});

test('bf16 and f16 files load, also mixed; the default type loses nothing', async () => {
  const f32 = (await tensorsOf()).map((tensor) => {
    const bytes = new Uint8Array(tensor.read() as Uint8Array);
    return { tensor, data: new Float32Array(bytes.buffer) };
  });
  const bits = new Uint32Array(1);
  const number = new Float32Array(bits.buffer);
  const narrowed = (value: number): number => { number[0] = value; return bits[0]! >>> 16; };
  await writeSafetensors(path('model.safetensors'), f32.map(({ tensor, data }) => ({ ...tensor, dtype: 'BF16' as const, read: () => Uint16Array.from(data, narrowed) })));
  using narrow = await LatentModel.load(folder);
  expect(narrow.dtype).toBe('bf16');
  using wide = await LatentModel.load(folder, { dtype: 'f32' });
  expect(wide.dtype).toBe('f32');
  const got = await values(narrow);
  expect(got).toEqual(await values(wide));
  for (const { tensor, data } of f32) {
    expect(got.get(tensor.name)).toEqual([...data].map((value) => { bits[0] = narrowed(value) << 16; return number[0]!; }));
  }
  // 0x3c01 = 1 + 2^-10 and 0x0001 = 2^-24, the smallest f16.
  await rewrite((tensors) => tensors.map((tensor) => (tensor.name === 'model.norm.weight'
    ? { ...tensor, dtype: 'F16', read: () => Uint16Array.from({ length: tensor.shape[0]! }, (_, i) => (i % 2 === 0 ? 0x3c01 : 1)) } : tensor)));
  using half = await LatentModel.load(folder, { dtype: 'f32' });
  expect([...(await half.native.readParameter('model.norm.weight', 'value')).subarray(0, 2)]).toEqual([1 + 2 ** -10, 2 ** -24]);
});

test('a tied head in the file is taken for the copy that it is', async () => {
  const config = readJson('config.json');
  writeJson('config.json', { ...config, tie_word_embeddings: true });
  const checkpoint = await openCheckpoint(folder);
  expect(checkpoint.ignored).toEqual(['lm_head.weight']);
  expect(checkpoint.config.text.tied).toBe(true);
  await rewrite((tensors) => tensors.filter(({ name }) => name !== 'lm_head.weight'));
  using model = await LatentModel.load(folder);
  expect(model.native.parameters().map(({ name }) => name)).not.toContain('lm_head.weight');
  writeJson('config.json', { ...config, tie_word_embeddings: false });
  await refused('ERR_CHECKPOINT', "Expected tensor 'lm_head.weight' but received a checkpoint without it. If the head is the embedding table, set tie_word_embeddings to true in config.json.");
});

describe('a checkpoint is refused by name', () => {
  const named = (wanted: string, change: (tensor: TensorSource) => TensorSource[]) => (tensors: TensorSource[]): TensorSource[] =>
    tensors.flatMap((tensor) => (tensor.name === wanted ? change(tensor) : [tensor]));

  test('missing tensor', async () => {
    await rewrite(named('visual.blocks.0.norm1.bias', () => []));
    await refused('ERR_CHECKPOINT', "[load] Expected tensor 'visual.blocks.0.norm1.bias' but received a checkpoint without it. Download the missing files, or correct the sizes in config.json.");
  });

  test('missing table', async () => {
    await rewrite(named(EMBEDDING, () => []));
    await refused('ERR_CHECKPOINT', `Expected tensor '${EMBEDDING}' but received a checkpoint without it`);
  });

  test('wrong shape', async () => {
    await rewrite(named('model.norm.weight', (tensor) => [{ ...tensor, shape: [1, ...tensor.shape] }]));
    await refused('ERR_CHECKPOINT', "Expected tensor 'model.norm.weight' to have shape [40], as config.json says, but received [1, 40]");
  });

  test('wrong width of the table', async () => {
    await rewrite(named(EMBEDDING, (tensor) => [{ ...tensor, shape: [tensor.shape[0]! * 2, tensor.shape[1]! / 2] }]));
    await refused('ERR_CHECKPOINT', `Expected tensor '${EMBEDDING}' to have shape [rows, 40]`);
  });

  test('unexpected tensors', async () => {
    await rewrite((tensors) => [...tensors, ...['a', 'b', 'c', 'd'].map((name) => ({ name, dtype: 'F32' as const, shape: [1], read: () => new Float32Array(1) }))]);
    await refused('ERR_CHECKPOINT', "Expected only tensors of the model that config.json describes but received 'a', 'b', 'c' and 1 more");
  });

  test('one tensor under both names', async () => {
    await rewrite((tensors) => [...tensors, { name: 'model.language_model.norm.weight', dtype: 'F32', shape: [40], read: () => new Float32Array(40) }]);
    await refused('ERR_CHECKPOINT', "Expected tensor 'model.norm.weight' once");
  });

  test('integers', async () => {
    await rewrite(named('model.norm.weight', (tensor) => [{ ...tensor, dtype: 'I32' }]));
    await refused('ERR_CHECKPOINT', "Expected tensor 'model.norm.weight' to be F32, F16 or BF16 but received I32");
  });

  test.each([NaN, Infinity])('%d among the weights', async (bad) => {
    await rewrite(named('model.norm.weight', (tensor) => [{ ...tensor, read: () => new Float32Array(tensor.shape[0]!).fill(bad, 7, 8) }]));
    await refused('ERR_CHECKPOINT', 'model.norm.weight');
  });

  test('a file cut short', async () => {
    const bytes = readFileSync(path('model.safetensors'));
    writeFileSync(path('model.safetensors'), bytes.subarray(0, bytes.length - 100));
    await refused('ERR_CHECKPOINT', 'The file is damaged or incomplete');
  });

  test('no weights, no config, no folder', async () => {
    rmSync(path('model.safetensors'));
    await refused('ERR_CHECKPOINT', 'Expected model.safetensors or model.safetensors.index.json in');
    rmSync(path('config.json'));
    await refused('ERR_CHECKPOINT', 'Expected config.json in');
    rmSync(folder, { recursive: true });
    await refused('ERR_CHECKPOINT', 'which is not there. Correct the path.');
  });

  test.each(['config.json', 'generation_config.json', 'preprocessor_config.json', 'plumbline.json'])('%s that is no JSON', async (name) => {
    writeFileSync(path(name), '{"a":');
    await refused('ERR_CHECKPOINT', `Expected JSON in ${path(name)}`);
  });

  test('another kind of model', async () => {
    writeJson('config.json', { ...readJson('config.json'), model_type: 'qwen3_vl' });
    await refused('ERR_UNSUPPORTED', "only 'qwen2_vl' and 'qwen2_5_vl' are supported");
  });

  test('a Qwen2.5-VL config beside the weights of a Qwen2-VL', async () => {
    const config = readJson('config.json');
    const { embed_dim: width, hidden_size: out, mlp_ratio: _, hidden_act: __, ...tower } = config['vision_config'] as Record<string, unknown>;
    writeJson('config.json', { ...config, model_type: 'qwen2_5_vl', vision_config: { ...tower, hidden_size: width, out_hidden_size: out, intermediate_size: 32 } });
    await refused('ERR_CHECKPOINT', "[load] Expected tensor 'visual.blocks.0.mlp.gate_proj.weight', 'visual.blocks.0.mlp.gate_proj.bias', 'visual.blocks.0.mlp.up_proj.weight' and 9 more but received a checkpoint without them. Download the missing files, or correct the sizes in config.json.");
  });

  test('more memory than there is, before it is taken', async () => {
    writeJson('config.json', { ...readJson('config.json') });
    await expect(LatentModel.load(folder, { maxMemoryBytes: 1000 })).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY', message: expect.stringMatching(/^\[load\] Expected 0\.\d\d MB of memory for the weights of .* \(0\.\d million parameters, f32\) but received 0\.00 MB\. Close other programs, load it with dtype 'bf16', or set maxMemoryBytes to go ahead all the same\.$/) as string,
    });
    (await LatentModel.load(folder, { maxMemoryBytes: Infinity })).dispose();
  });
});

test('the estimate is what the addon takes', async () => {
  for (const dtype of ['f32', 'bf16'] as const) {
    using model = await LatentModel.load(folder, { dtype });
    const { weightBytes, trainingBytes, parameters } = estimateMemory(model.config, dtype, (await openCheckpoint(folder)).extras.tensors);
    // Each parameter is padded to 64 bytes or so.
    const slack = 256 * model.native.parameters().length;
    expect(Math.abs(model.native.bytes() - weightBytes)).toBeLessThan(slack);
    await model.native.enableTraining();
    expect(Math.abs(model.native.bytes() - weightBytes - trainingBytes)).toBeLessThan(5 * slack);
    expect(parameters).toBeGreaterThan(50_000);
  }
});

test('progress ends at the total, an abort rejects with its reason and frees the model', async () => {
  const seen: { doneBytes: number; totalBytes: number }[] = [];
  (await LatentModel.load(folder, { onProgress: (progress) => seen.push(progress) })).dispose();
  expect(seen.at(-1)!.doneBytes).toBe(seen.at(-1)!.totalBytes);
  const before = native().liveObjects();
  const reason = new Error('enough');
  await expect(LatentModel.load(folder, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  expect(native().liveObjects()).toEqual(before);
});

describe('saving', () => {
  test.each(['f32', 'bf16'] as const)('%s: loading gives the same bits, and every other file', async (dtype) => {
    mkdirSync(path('out'));
    writeFileSync(path('tokenizer_config.json'), '{"kept": true}');
    using model = await LatentModel.load(folder, { dtype });
    writeJson('out/model.safetensors.index.json', { weight_map: {} });
    await model.save(path('out'), { latentSteps: 9 });
    expect(readdirSync(path('out')).sort()).toEqual([
      'config.json', 'generation_config.json', 'model.safetensors', 'plumbline.json', 'plumbline.safetensors', 'preprocessor_config.json', 'tokenizer_config.json',
    ]);
    expect(readJson('out/config.json')).toEqual({ ...readJson('config.json'), torch_dtype: dtype === 'bf16' ? 'bfloat16' : 'float32' });
    expect(readJson('out/preprocessor_config.json')).toEqual(readJson('preprocessor_config.json'));
    expect(readJson('out/plumbline.json')).toEqual({ ...readJson('plumbline.json'), format: 2, latentSteps: 9, switches: presetJson(PLAIN) });
    expect(readFileSync(path('out/plumbline.safetensors'))).toEqual(readFileSync(path('plumbline.safetensors')));
    expect((await readHeader(path('out/model.safetensors'))).metadata).toEqual({ format: 'pt' });
    using again = await LatentModel.load(path('out'));
    expect(again.dtype).toBe(dtype);
    expect(again.latentSteps).toBe(9);
    expect(await values(again)).toEqual(await values(model));
  });

  test('into the folder it came from', async () => {
    using model = await LatentModel.load(folder);
    const want = await values(model);
    await model.native.writeParameter('model.norm.weight', 'value', new Float32Array(40).fill(2));
    await model.save(folder);
    using again = await LatentModel.load(folder);
    expect(await values(again)).toEqual(want.set('model.norm.weight', Array<number>(40).fill(2)));
  });

  test('loadWeights takes a checkpoint of the same dimensions only', async () => {
    using model = await LatentModel.load(folder);
    const want = await values(model);
    await model.native.writeParameter('model.norm.weight', 'value', new Float32Array(40));
    await model.loadWeights(folder);
    expect(await values(model)).toEqual(want);
    writeJson('config.json', { ...readJson('config.json'), rms_norm_eps: 1e-5 });
    await expect(model.loadWeights(folder)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringContaining('Expected a checkpoint with text.eps = 0.000001 but received 0.00001') as string });
  });
});
