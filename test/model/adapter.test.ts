import { mkdtempSync, readFileSync, rmSync, writeFileSync, cpSync, existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { adaptableLayers, type AdapterOptions } from '../../lib/model/adapter';
import type { Picture } from '../../lib/model/image';
import { PLAIN } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import { readHeader, readTensor, writeSafetensors } from '../../lib/model/safetensors';
import { runBatch } from '../../lib/train/batch';
import { readTensors } from '../parity/goldens';
import { END, IMAGE, noise, tinyModel } from '../train/tinyModel';

const FIXTURES = join(__dirname, '../fixtures');
const BASE = join(FIXTURES, 'tiny-qwen2/checkpoint');
const ADAPTER = join(FIXTURES, 'tiny-qwen2-adapter');
/** What transformers and PEFT compute, and what with: test/fixtures/make_adapter.py. */
const expectedOf = (adapter: string): { prompt: number[]; words: number[]; tensors: Record<string, { max: number; err32: number }> } =>
  JSON.parse(readFileSync(join(adapter, 'expected.json'), 'utf8')) as ReturnType<typeof expectedOf>;
const EXPECTED = expectedOf(ADAPTER);

let folder: string;
const models: LatentModel[] = [];

beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-adapter-')); });
afterEach(() => { for (const model of models.splice(0)) model.dispose(); });
afterAll(() => rmSync(folder, { recursive: true }));

async function load(directory: string, options?: Parameters<typeof LatentModel.load>[1]): Promise<LatentModel> {
  const model = await LatentModel.load(directory, options);
  models.push(model);
  return model;
}

interface Ran { logits: Float32Array; loss: number; gradients: Map<string, Float32Array> }

/** Logits of the prompt and the words, their mean loss, and the gradients of the adapter. */
async function run(model: LatentModel, { recompute = false, dropoutSeed, train = true, adapter = ADAPTER }: { recompute?: boolean; dropoutSeed?: number; train?: boolean; adapter?: string } = {}): Promise<Ran> {
  const { prompt, words } = expectedOf(adapter);
  const frames = readTensors(join(adapter, 'expected.safetensors')).get('frames') as Uint8Array;
  const picture: Picture = { pixels: frames, frames: 1, height: 56, width: 84 };
  for (const { name } of model.native.parameters()) model.native.setTrainable(name, name.startsWith('lora.'));
  if (train) await model.native.enableTraining();
  const session = openReasoning('test', model, PLAIN, { training: train, recompute, visionGradient: train });
  try {
    await session.reset(dropoutSeed);
    const ran = await runBatch(session, [{ promptIds: prompt, pictures: [picture], latents: 0, words }], model.geometry, { adjust: (pass) => ({ ...pass, logitRows: Int32Array.from(pass.kind.keys()) }) });
    const gradients = new Map<string, Float32Array>();
    if (!train) return { logits: ran.results[0]!.logits, loss: NaN, gradients };
    const { pass, row, target } = ran.targets;
    const { losses } = await session.loss({ pass, row, target, scale: 1 / words.length });
    await model.native.zeroGradients();
    await session.backward(0);
    for (const { name } of model.native.parameters()) if (name.startsWith('lora.')) gradients.set(name, await model.native.readParameter(name, 'gradient'));
    return { logits: ran.results[0]!.logits, loss: losses.reduce((sum, one) => sum + one, 0) / words.length, gradients };
  } finally {
    session.dispose();
  }
}

/** Shares of the tolerance of test/oracle/README.md, of everything that PEFT computed. */
function worst(ran: Ran, adapter: string): Map<string, number> {
  const want = readTensors(join(adapter, 'expected.safetensors'));
  const got = new Map<string, ArrayLike<number>>([['logits', ran.logits], ['loss', [ran.loss]], ...[...ran.gradients].map(([name, values]) => [`grad.${name}`, values] as const)]);
  return new Map(Object.entries(expectedOf(adapter).tensors).map(([name, { max, err32 }]) => {
    const values = want.get(name) as Float32Array;
    const mine = got.get(name)!;
    expect(mine).toHaveLength(values.length);
    return [name, values.reduce((most, value, i) => Math.max(most, Math.abs(value - mine[i]!)), 0) / (8 * err32 + 2e-6 * max + 1e-8)];
  }));
}

async function bytesOf(path: string): Promise<Map<string, Buffer>> {
  const header = await readHeader(path);
  return new Map(await Promise.all([...header.tensors.keys()].map(async (name) => [name, await readTensor(header, name)] as const)));
}

async function weights(model: LatentModel): Promise<Map<string, Float32Array>> {
  return new Map(await Promise.all(model.native.parameters().map(async ({ name }) => [name, await model.native.readParameter(name, 'value')] as const)));
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);
}

describe('an adapter that PEFT saved', () => {
  test.each([
    ['tiny-qwen2', 17, false], ['tiny-qwen2', 17, true], ['tiny-qwen2_5', 18, false], ['tiny-qwen2_5', 18, true],
  ] as const)('on %s, %i layers: logits, loss and gradients are those of transformers and PEFT in float64 (recompute: %p)', async (name, layers, recompute) => {
    const adapter = join(FIXTURES, `${name}-adapter`);
    const model = await load(join(FIXTURES, name, 'checkpoint'), { adapter });
    const shares = worst(await run(model, { recompute, adapter }), adapter);
    expect(shares.size).toBe(2 + 2 * layers);
    for (const [tensor, share] of shares) expect([tensor, share <= 1]).toEqual([tensor, true]);
  });

  test('dropout is for training', async () => {
    const model = await load(BASE, { adapter: { rank: 2, dropout: 0.5 } });
    await model.native.initialize('lora.model.layers.0.mlp.down_proj.B', 'normal', 1, 1);
    expect((await run(model, { train: false, dropoutSeed: 3 })).logits).toEqual((await run(model, { train: false })).logits);
  });

  test('its folder alone finds the base; rank, scale and layers are those of the files', async () => {
    const model = await load(ADAPTER);
    expect(model.adapter).toMatchObject({ rank: 4, alpha: 6, dropout: 0, base: resolve(BASE) });
    const of = (target: string): object | undefined => model.adapter?.layers.find((layer) => layer.target === target);
    expect(of('model.layers.1.mlp.down_proj')).toEqual({ target: 'model.layers.1.mlp.down_proj', rank: 3, scale: 2, out: 40, in: 56 });
    expect(of('model.layers.0.self_attn.v_proj')).toMatchObject({ rank: 4, scale: 5 / 4 });
    expect(of('visual.blocks.1.attn.qkv')).toMatchObject({ rank: 4, scale: 1.5 });
    expect(of('model.layers.0.self_attn.k_proj')).toBeUndefined();
    const alone = await run(model, { train: false });
    expect(alone.logits).toEqual((await run(await load(BASE, { adapter: ADAPTER }), { train: false })).logits);
  });

  test('merged answers are the same up to rounding, unmerged weights to the bit', async () => {
    const model = await load(BASE, { adapter: ADAPTER });
    const before = await weights(model);
    const apart = await run(model, { train: false });
    const bytes = model.native.bytes();
    const sizes = model.adapter!.layers.map((layer) => layer.out * layer.in);
    await expect(model.mergeAdapter({ maxMemoryBytes: 1000, keepBase: false })).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY', message: expect.stringMatching(/^\[mergeAdapter\] Expected 0\.\d\d MB of memory for the 17 matrices that are changed but received 0\.00 MB\. Close other programs\.$/) as string });
    await expect(model.unmergeAdapter()).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[unmergeAdapter] Expected an adapter that is merged but received one that is not' });
    await expect(model.mergeAdapter({ maxMemoryBytes: 1000 })).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY', message: `[mergeAdapter] Expected ${(4e-6 * sizes.reduce((sum, size) => sum + size, 0) + 12e-6 * Math.max(...sizes)).toFixed(2)} MB of memory for a copy of the 17 matrices that are changed but received 0.00 MB. Close other programs, or merge with keepBase: false, which keeps no copy.`,
    });
    await model.mergeAdapter();
    const merged = await run(model, { train: false });
    const tolerance = 8 * EXPECTED.tensors['logits']!.err32 + 2e-6 * EXPECTED.tensors['logits']!.max;
    expect(largestDifference(merged.logits, apart.logits)).toBeLessThan(tolerance);
    expect(largestDifference((await weights(model)).get('model.layers.0.self_attn.q_proj.weight')!, before.get('model.layers.0.self_attn.q_proj.weight')!)).toBeGreaterThan(1e-3);
    expect(model.native.bytes()).toBeGreaterThan(bytes);
    await model.unmergeAdapter();
    expect(await weights(model)).toEqual(before);
    expect(model.native.bytes()).toBe(bytes);
    expect((await run(model, { train: false })).logits).toEqual(apart.logits);
    await model.mergeAdapter({ keepBase: false });
    expect((await run(model, { train: false })).logits).toEqual(merged.logits);
    expect(model.native.bytes()).toBe(bytes);
    await expect(model.unmergeAdapter()).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[unmergeAdapter] Expected an adapter that was merged with keepBase but received one without; load the model again' });
    await expect(model.mergeAdapter()).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[mergeAdapter] Expected an adapter that is not merged but received one that is' });
    await expect(run(model)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[Session] Expected an adapter that is not merged into the weights, because it is trained; call unmergeAdapter first, or load the model again' });
    await expect(model.loadWeights(BASE)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[loadFile] Expected an adapter that is not merged into the weights, because they are replaced; call unmergeAdapter first, or load the model anew' });
  });

  test('merged into bf16 weights: each is the rounded sum', async () => {
    const model = await load(BASE, { adapter: ADAPTER, dtype: 'bf16' });
    const name = 'model.layers.0.mlp.gate_proj';
    const [w, a, b] = await Promise.all([`${name}.weight`, `lora.${name}.A`, `lora.${name}.B`].map((of) => model.native.readParameter(of, 'value')));
    await model.mergeAdapter();
    const got = await model.native.readParameter(`${name}.weight`, 'value');
    for (let i = 0; i < 56; i++) {
      for (let j = 0; j < 40; j++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += b![4 * i + k]! * a![40 * k + j]!;
        const exact = w![40 * i + j]! + 1.5 * sum;
        expect(Math.abs(got[40 * i + j]! - exact)).toBeLessThanOrEqual(Math.abs(exact) * 2 ** -8 + 1e-7);   // half a unit of bf16 is 2^-9
      }
    }
  });

  test('saved and loaded again it has the same bits and keys', async () => {
    const model = await load(BASE, { adapter: ADAPTER });
    const out = join(folder, 'again');
    await model.saveAdapter(out);
    expect(await bytesOf(join(out, 'adapter_model.safetensors'))).toEqual(await bytesOf(join(ADAPTER, 'adapter_model.safetensors')));
    const json = (directory: string): object => JSON.parse(readFileSync(join(directory, 'adapter_config.json'), 'utf8')) as object;
    expect(json(out)).toEqual({ ...json(ADAPTER), base_model_name_or_path: resolve(BASE) });
    expect(await weights(await load(out))).toEqual(await weights(model));
    expect(existsSync(join(out, 'model.safetensors'))).toBe(false);
  });

  test('keys of alpha_pattern are ends of the names in the file', async () => {
    const out = join(folder, 'patterns');
    cpSync(ADAPTER, out, { recursive: true });
    const json = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8')) as object;
    writeFileSync(join(out, 'adapter_config.json'), JSON.stringify({ ...json, alpha_pattern: { 'language_model.layers.0.self_attn.v_proj': 60, 'visual.blocks.1.attn.qkv': 8, 'ayers.1.self_attn.v_proj': 9 } }));
    const scales = new Map((await load(BASE, { adapter: out })).adapter!.layers.map(({ target, scale }) => [target, scale]));
    expect([scales.get('model.layers.0.self_attn.v_proj'), scales.get('visual.blocks.1.attn.qkv'), scales.get('model.layers.1.self_attn.v_proj')]).toEqual([15, 2, 1.5]);
  });

  test('names of older versions are read, and kept', async () => {
    const [old, again] = [join(folder, 'old'), join(folder, 'old-again')];
    cpSync(ADAPTER, old, { recursive: true });
    const tensors = await bytesOf(join(ADAPTER, 'adapter_model.safetensors'));
    const header = await readHeader(join(ADAPTER, 'adapter_model.safetensors'));
    const classic = (name: string): string => name.replace('.model.language_model.', '.model.').replace('.model.visual.', '.visual.');
    await writeSafetensors(join(old, 'adapter_model.safetensors'), [...tensors].map(([name, bytes]) => ({
      name: classic(name), shape: header.tensors.get(name)!.shape, dtype: 'F32' as const, read: () => Promise.resolve(new Float32Array(Uint8Array.from(bytes).buffer)),
    })));
    const model = await load(BASE, { adapter: old });
    await model.saveAdapter(again);
    expect(await bytesOf(join(again, 'adapter_model.safetensors'))).toEqual(new Map([...tensors].map(([name, bytes]) => [classic(name), bytes])));
    expect((await run(model, { train: false })).logits).toEqual((await run(await load(BASE, { adapter: ADAPTER }), { train: false })).logits);
  });

  test('beside weights it belongs to them, and a whole model in its place leaves none of it', async () => {
    const both = join(folder, 'both');
    cpSync(BASE, both, { recursive: true });
    cpSync(ADAPTER, both, { recursive: true });
    const model = await load(both);
    expect(model.adapter?.layers).toHaveLength(17);
    await expect(model.saveAdapter(both)).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: `[saveAdapter] Expected a folder without config.json, because an adapter beside weights is put on top of them, but received ${both}. Choose another folder.`,
    });
    await model.save(both);
    expect([existsSync(join(both, 'adapter_config.json')), existsSync(join(both, 'adapter_model.safetensors'))]).toEqual([false, false]);
    const whole = await load(both);
    expect(whole.adapter).toBeUndefined();
    await model.mergeAdapter();
    expect((await run(whole, { train: false })).logits).toEqual((await run(model, { train: false })).logits);
  });

  test('a whole checkpoint has it folded in', async () => {
    const model = await load(BASE, { adapter: ADAPTER });
    const out = join(folder, 'whole');
    await model.save(out);
    const whole = await load(out);
    expect(whole.adapter).toBeUndefined();
    await model.mergeAdapter();
    expect((await run(whole, { train: false })).logits).toEqual((await run(model, { train: false })).logits);
    await model.save(join(folder, 'merged'));
    expect(await bytesOf(join(folder, 'merged', 'model.safetensors'))).toEqual(await bytesOf(join(out, 'model.safetensors')));
  });
});

describe('a new adapter', () => {
  test('changes nothing at first, and its files name its layers', async () => {
    const plain = await load(BASE);
    const model = await load(BASE, { adapter: { rank: 4, alpha: 6, dropout: 0.1 } });
    expect((await run(model, { train: false })).logits).toEqual((await run(plain, { train: false })).logits);
    expect(model.adapter?.layers).toHaveLength(2 * 7);
    expect(model.adapter?.layers.every(({ target, scale }) => target.startsWith('model.layers.') && scale === 1.5)).toBe(true);
    const a = await model.native.readParameter('lora.model.layers.0.mlp.down_proj.A', 'value');
    const spread = Math.sqrt(a.reduce((sum, value) => sum + value * value, 0) / a.length);
    expect(spread / Math.sqrt(1 / (3 * 56))).toBeGreaterThan(0.8);
    expect(spread / Math.sqrt(1 / (3 * 56))).toBeLessThan(1.2);
    expect((await model.native.readParameter('lora.model.layers.0.mlp.down_proj.B', 'value')).every((value) => value === 0)).toBe(true);
    await model.saveAdapter(join(folder, 'new'));
    const json = JSON.parse(readFileSync(join(folder, 'new', 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
    expect(json).toMatchObject({ peft_type: 'LORA', r: 4, lora_alpha: 6, lora_dropout: 0.1, bias: 'none', base_model_name_or_path: resolve(BASE) });
    expect(json['target_modules']).toContain('layers.1.self_attn.k_proj');
    expect([...(await bytesOf(join(folder, 'new', 'adapter_model.safetensors'))).keys()]).toContain('base_model.model.model.language_model.layers.1.self_attn.k_proj.lora_B.weight');
    expect((await load(join(folder, 'new'))).adapter).toMatchObject({ rank: 4, dropout: 0.1, base: resolve(BASE) });
  });

  test('targets choose layers, vision adds those of the tower', async () => {
    const count = async (adapter: AdapterOptions): Promise<string[]> => (await load(BASE, { adapter: { rank: 2, ...adapter } })).adapter!.layers.map(({ target }) => target);
    expect(await count({ targets: ['q_proj', 'layers.1.mlp.up_proj'] })).toEqual(['model.layers.0.self_attn.q_proj', 'model.layers.1.self_attn.q_proj', 'model.layers.1.mlp.up_proj']);
    const all = await count({ vision: true });
    expect(all).toEqual([...adaptableLayers((await load(BASE)).config).keys()]);
    expect(all).toContain('visual.merger.mlp.2');
    expect(all).not.toContain('visual.patch_embed.proj');
    expect(all).not.toContain('lm_head');
  });

  test('its gradients are those of finite differences, dropout included; seeds drop other elements', async () => {
    const model = await tinyModel({ initializerRange: 0.2, adapter: { rank: 3, alpha: 4, dropout: 0.4, vision: true } });
    models.push(model);
    for (const [n, { name }] of model.native.parameters().entries()) {
      if (name.startsWith('lora.')) await model.native.initialize(name, 'normal', 0.2, 50 + n);
      model.native.setTrainable(name, name.startsWith('lora.'));
    }
    await model.native.enableTraining();
    const input = { promptIds: [1, 42, IMAGE, IMAGE, 43, 7], pictures: [{ pixels: noise(3, 28 * 56 * 3), frames: 1, height: 28, width: 56 }], latents: 2, words: [5, 6, END] };
    const lossOf = async (seed: number | undefined, recompute: boolean, withGradient: boolean): Promise<number> => {
      const session = openReasoning('test', model, PLAIN, { training: true, recompute, visionGradient: true });
      try {
        await session.reset(seed);
        const { targets: { pass, row, target } } = await runBatch(session, [input], model.geometry);
        const { losses } = await session.loss({ pass, row, target, scale: 1 });
        await model.native.zeroGradients();
        if (withGradient) await session.backward(0);
        return losses.reduce((sum, one) => sum + one, 0);
      } finally {
        session.dispose();
      }
    };
    const loss = await lossOf(4, false, true);
    const gradients = new Map<string, Float32Array>();
    const names = model.native.parameters().map(({ name }) => name).filter((name) => name.startsWith('lora.'));
    for (const name of names) gradients.set(name, await model.native.readParameter(name, 'gradient'));
    expect(await lossOf(4, true, true)).toBe(loss);
    for (const name of names) expect([name, await model.native.readParameter(name, 'gradient')]).toEqual([name, gradients.get(name)]);
    expect(await lossOf(5, false, false)).not.toBe(loss);
    expect(await lossOf(undefined, false, false)).not.toBe(loss);
    let checked = 0;
    for (const [n, name] of names.entries()) {
      const values = await model.native.readParameter(name, 'value');
      const gradient = gradients.get(name)!;
      const i = (7 * n + 3) % values.length;
      const at = async (value: number): Promise<number> => {
        await model.native.writeParameter(name, 'value', values.map((old, j) => (j === i ? value : old)));
        return lossOf(4, false, false);
      };
      const step = 1 / 64;
      const slope = ((await at(values[i]! + step)) - (await at(values[i]! - step))) / (2 * step);
      await model.native.writeParameter(name, 'value', values);
      // Rounding of the loss, 2e-6 / step, and the curvature, which a second step size would show: 1e-2 of the gradient.
      expect([name, Math.abs(slope - gradient[i]!) < 3e-4 + 2e-2 * Math.abs(slope)]).toEqual([name, true]);
      if (Math.abs(slope) > 3e-3) checked++;
    }
    expect(checked).toBeGreaterThan(names.length / 4);
  });

  const wrong: [AdapterOptions, string, string][] = [
    [{ rank: 0 }, 'ERR_RANGE', 'Expected rank to be an integer from 1 to 65536 but received 0'],
    [{ rank: 1 << 20 }, 'ERR_RANGE', 'Expected rank to be an integer from 1 to 65536 but received 1048576'],
    [{ rank: 2, alpha: 0 }, 'ERR_RANGE', 'Expected alpha to be a number from 5e-324 to 1000000 but received 0'],
    [{ rank: 2, dropout: 1 }, 'ERR_RANGE', 'Expected dropout to be a number from 0 to 0.999 but received 1'],
    [{ rank: 2, targets: [] }, 'ERR_ARGUMENT', 'Expected at least one name in targets but received none. Leave targets out for all linear layers.'],
    [{ rank: 2, targets: ['q_prj'] }, 'ERR_ARGUMENT', "Expected targets to be ends of the names of linear layers, as 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj', but received \"q_prj\"; did you mean 'q_proj'?"],
    [{ rank: 2, targets: ['qkv'] }, 'ERR_ARGUMENT', "Expected targets to be ends of the names of linear layers, as 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj', but received \"qkv\"; set vision: true, because it is in the vision tower"],
    [{ ranks: 2 } as AdapterOptions, 'ERR_ARGUMENT', "Expected options among rank, alpha, dropout, targets, vision but received 'ranks'; did you mean 'rank'?"],
  ];
  test.each(wrong)('wrong options %#', async (adapter, code, message) => {
    await expect(LatentModel.load(BASE, { adapter })).rejects.toMatchObject({ code, message: `[adapter] ${message}` });
  });

  test('a model without one', async () => {
    const model = await load(BASE);
    const message = (op: string): string => `[${op}] Expected a model with an adapter but received one without; load it with the option adapter`;
    await expect(model.saveAdapter(join(folder, 'none'))).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: message('saveAdapter') });
    await expect(model.mergeAdapter()).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: message('mergeAdapter') });
    await expect(model.unmergeAdapter()).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: message('unmergeAdapter') });
  });
});

describe('damaged and foreign adapters', () => {
  let count = 0;
  /** A copy of the fixture with other keys in adapter_config.json and other tensors. */
  async function broken(keys: object, change?: (tensors: Map<string, { shape: number[]; data: Float32Array }>) => void): Promise<string> {
    const out = join(folder, `broken-${count++}`);
    cpSync(ADAPTER, out, { recursive: true });
    const json = JSON.parse(readFileSync(join(out, 'adapter_config.json'), 'utf8')) as object;
    writeFileSync(join(out, 'adapter_config.json'), JSON.stringify({ ...json, base_model_name_or_path: BASE, ...keys }));
    if (change === undefined) return out;
    const header = await readHeader(join(out, 'adapter_model.safetensors'));
    const tensors = new Map<string, { shape: number[]; data: Float32Array }>();
    for (const { name, shape } of header.tensors.values()) {
      const bytes = await readTensor(header, name);
      tensors.set(name, { shape: [...shape], data: new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)) });
    }
    change(tensors);
    await writeSafetensors(join(out, 'adapter_model.safetensors'), [...tensors].map(([name, { shape, data }]) => ({ name, shape, dtype: 'F32' as const, read: () => Promise.resolve(data) })));
    return out;
  }
  const Q = 'base_model.model.model.language_model.layers.0.self_attn.q_proj';

  test.each<[object, string, RegExp]>([
    [{ peft_type: 'IA3' }, 'ERR_UNSUPPORTED', /^\[load\] Expected peft_type in adapter_config\.json to be something supported but received "IA3": only 'LORA' is implemented$/],
    [{ bias: 'all' }, 'ERR_UNSUPPORTED', /^\[load\] Expected bias in adapter_config\.json to be something supported but received "all": only 'none' is implemented; train without biases$/],
    [{ use_dora: true }, 'ERR_UNSUPPORTED', /^\[load\] Expected use_dora in .* received true: this variant is not implemented; merge the adapter in Python, or train plain LoRA$/],
    [{ modules_to_save: ['lm_head'] }, 'ERR_UNSUPPORTED', /^\[load\] Expected modules_to_save in .* received \["lm_head"\]: this variant/],
    [{ init_lora_weights: 'pissa' }, 'ERR_UNSUPPORTED', /^\[load\] Expected init_lora_weights in adapter_config\.json to be something supported but received "pissa": reading such an adapter changes the base weights; convert it to plain LoRA in PEFT/],
    [{ kasa_config: {} }, 'ERR_UNSUPPORTED', /^\[load\] Expected kasa_config in .* received \{\}: this variant/],
    [{ lora_alpha: 1e8 }, 'ERR_CHECKPOINT', /^\[load\] Expected lora_alpha in adapter_config\.json to be a number above 0, at most 1000000 but received 100000000\. Correct the file\.$/],
    [{ r: -1 }, 'ERR_CHECKPOINT', /^\[load\] Expected r in adapter_config\.json to be a whole number from 1 to 65536 but received -1\. /],
    [{ lora_alpha: 'much' }, 'ERR_CHECKPOINT', /^\[load\] Expected lora_alpha in adapter_config\.json to be a finite number above 0 but received "much"\. /],
    [{ lora_dropout: 1 }, 'ERR_CHECKPOINT', /^\[load\] Expected lora_dropout in adapter_config\.json to be a number from 0 to 0\.999 but received 1\. Correct the file\.$/],
    [{ alpha_pattern: { '(a+)+$': 3 } }, 'ERR_UNSUPPORTED', /^\[load\] Expected alpha_pattern in .*: only names of layers or their ends are implemented, no regular expressions$/],
    [{ alpha_pattern: { v_proj: 0 } }, 'ERR_CHECKPOINT', /^\[load\] Expected alpha_pattern\.v_proj in adapter_config\.json to be a finite number above 0 but received 0\. /],
    [{ base_model_name_or_path: 'Qwen/Qwen2-VL-2B-Instruct' }, 'ERR_CHECKPOINT', /^\[load\] Expected base_model_name_or_path in .* to be a directory with config\.json but received "Qwen\/Qwen2-VL-2B-Instruct"\. Load the base model with the option adapter: '.*'\.$/],
  ])('adapter_config.json %#', async (keys, code, message) => {
    await expect(LatentModel.load(await broken(keys))).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string });
  });

  test.each<[(tensors: Map<string, { shape: number[]; data: Float32Array }>) => void, RegExp]>([
    [(tensors) => tensors.delete(`${Q}.lora_A.weight`), /^\[load\] Expected lora_A and lora_B of 'model\.layers\.0\.self_attn\.q_proj' but received only lora_B in .*\. Save the adapter again\.$/],
    [(tensors) => tensors.set(`${Q}.lora_C.weight`, { shape: [1], data: new Float32Array(1) }), /^\[load\] Expected the tensors of .* to belong to linear layers of the model but received '.*lora_C\.weight'\. /],
    [(tensors) => tensors.set('base_model.model.model.language_model.layers.7.self_attn.q_proj.lora_A.weight', { shape: [4, 40], data: new Float32Array(160) }), /^\[load\] Expected the tensors of .* received '.*layers\.7.*'\. The file belongs to another model, or adapts what is not supported\.$/],
    [(tensors) => tensors.set(`${Q}.lora_A.weight`, { shape: [4, 41], data: new Float32Array(164) }), /^\[load\] Expected tensor '.*q_proj\.lora_A\.weight' to have shape \[rank, 40\] but received \[4, 41\] in .*\. The adapter belongs to another model\.$/],
    [(tensors) => tensors.set(`${Q}.lora_B.weight`, { shape: [40, 5], data: new Float32Array(200) }), /^\[load\] Expected tensor '.*q_proj\.lora_B\.weight' to have shape \[40, 4\] but received \[40, 5\] in /],
    [(tensors) => tensors.set('base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight', { shape: [4, 40], data: new Float32Array(160) }), /^\[load\] Expected one lora_A of 'model\.layers\.0\.self_attn\.q_proj' but received a second, '.*', in /],
    [(tensors) => tensors.set('lora_A.weight', { shape: [1], data: new Float32Array(1) }), /^\[load\] Expected the tensors of .* received 'lora_A\.weight'\. /],
    [(tensors) => tensors.clear(), /^\[load\] Expected the matrices of an adapter in .* but received none\. Save the adapter again\.$/],
    [(tensors) => tensors.get(`${Q}.lora_A.weight`)!.data.fill(NaN, 5, 6), /^\[Model\.load\] Expected the values of 'lora\.model\.layers\.0\.self_attn\.q_proj\.A' to be finite but element 5 is NaN or infinite; /],
  ])('adapter_model.safetensors %#', async (change, message) => {
    await expect(LatentModel.load(await broken({}, change))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringMatching(message) as string });
  });

  test('tensors of another type', async () => {
    const out = await broken({});
    const path = join(out, 'adapter_model.safetensors');
    const bytes = readFileSync(path);
    const text = bytes.toString('latin1').replace('"dtype":"F32"', '"dtype":"I32"');
    writeFileSync(path, Buffer.from(text, 'latin1'));
    await expect(LatentModel.load(out)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[load\] Expected tensor '.*' to be F32, F16 or BF16 but received I32 in .*\. Save the adapter again\.$/) as string });
  });

  test('missing files', async () => {
    await expect(LatentModel.load(BASE, { adapter: folder })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[load] Expected adapter_config.json in ${folder} but received no such file. Give the directory of an adapter as PEFT saves it.` });
    const out = await broken({});
    rmSync(join(out, 'adapter_model.safetensors'));
    await expect(LatentModel.load(out)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[load] Expected adapter_model.safetensors in ${out} but received no such file. Save the adapter as safetensors (PEFT's default).` });
    writeFileSync(join(out, 'adapter_config.json'), '[]');
    await expect(LatentModel.load(BASE, { adapter: out })).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[load] Expected ${join(out, 'adapter_config.json')} to hold an object. The file is damaged: save the adapter again.` });
    await expect(LatentModel.load(BASE, { adapter: '' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[load] Expected adapter to be a path but received ""' });
  });
});
