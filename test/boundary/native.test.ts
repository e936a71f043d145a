/** Every misuse that reaches the addon past lib: a typed error with its full message, and the process lives. */
import { writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { native, type NativeModel, type NativeModelSpec, type NativePass, type NativeSession } from '../../lib/native';
import { tinySpec, tokenPass } from './tinyModel';

type Loose = Record<string, (...values: unknown[]) => Promise<unknown>>;

const f32 = (...values: number[]) => Float32Array.from(values);
const i32 = (...values: number[]) => Int32Array.from(values);
const ops = () => native().ops as unknown as Loose;
const addon = () => native() as unknown as { [name: string]: (...values: unknown[]) => unknown };

let model: NativeModel;
let session: NativeSession;
let sequence: number;

beforeAll(async () => {
  model = new (native().Model)(tinySpec());
  await Promise.all(model.parameters().map(({ name }) => model.initialize(name, 'normal', 0.1, 1)));
  session = new (native().Session)(model, { training: false, recompute: false, detachLatents: false, visionGradient: false });
  sequence = session.add();
  await session.encode(new Uint8Array(48), i32(1, 4, 4));
});

afterAll(() => {
  session.dispose();
  model.dispose();
});

async function expectRejection(promise: unknown, code: string, message: string): Promise<void> {
  expect(Object.prototype.toString.call(promise)).toBe('[object Promise]');
  const error = await (promise as Promise<unknown>).then(() => 'it resolved', (reason: unknown) => reason as { code: string; message: string });
  expect(error).toMatchObject({ code, message });
}

describe('readers', () => {
  const ones = f32(1, 1);
  const wrong: readonly (readonly [string, unknown, string])[] = [
    ['an Int32Array', i32(1, 2), 'an Int32Array'],
    ['a Float64Array', new Float64Array(2), 'a Float64Array'],
    ['a Uint8ClampedArray', new Uint8ClampedArray(2), 'a Uint8ClampedArray'],
    ['a BigInt64Array', new BigInt64Array(2), 'a BigInt64Array'],
    ['a DataView', new DataView(new ArrayBuffer(8)), 'an object'],
    ['an ArrayBuffer', new ArrayBuffer(8), 'an object'],
    ['an Array', [1, 2], 'an Array'],
    ['undefined', undefined, 'undefined'],
    ['null', null, 'null'],
    ['a number', 3.5, '3.5'],
    ['NaN', Number.NaN, 'NaN'],
    ['a string', 'abc', '"abc"'],
    ['a long string', 'a'.repeat(1000), 'a string of 1000 bytes'],
    ['a bigint', 1n, 'a bigint'],
    ['a symbol', Symbol('x'), 'a symbol'],
    ['a boolean', true, 'true'],
    ['a function', () => 0, 'a function'],
    ['a Proxy of the right array', new Proxy(ones, {}), 'an object'],
    ['an object that inherits from an array', Object.create(ones), 'an object'],
  ];

  test.each(wrong)('%s in place of a Float32Array', (_name, value, received) =>
    expectRejection(ops().rmsNorm!(value, ones, 1e-6), 'ERR_DTYPE', `[rmsNorm] Expected x to be a Float32Array but received ${received}`));

  const eps: readonly (readonly [unknown, string, string])[] = [
    [Number.NaN, 'ERR_RANGE', 'NaN'], [Infinity, 'ERR_RANGE', 'Infinity'], [-1, 'ERR_RANGE', '-1'], [2, 'ERR_RANGE', '2'],
    ['1', 'ERR_ARGUMENT', '"1"'], [undefined, 'ERR_ARGUMENT', 'undefined'], [{ valueOf: () => 1 }, 'ERR_ARGUMENT', 'an object'],
  ];
  test.each(eps)('%p in place of eps', (value, code, received) =>
    expectRejection(ops().rmsNorm!(ones, ones, value), code, `[rmsNorm] Expected eps to be a finite number from 0 to 1 but received ${received}`));

  test.each([[{}], [1], [new AbortController().signal]])('%p in place of a token', (value) =>
    expectRejection(ops().rmsNorm!(ones, ones, 0, value), 'ERR_ARGUMENT', `[rmsNorm] Expected token to be a CancelToken or undefined but received ${value === 1 ? '1' : 'an object'}`));

  test('another object of ours in place of a token or a model', async () => {
    await expectRejection(ops().rmsNorm!(ones, ones, 0, model), 'ERR_ARGUMENT', '[rmsNorm] Expected token to be a CancelToken or undefined but received an object');
    expect(() => new (native().Session)(session as unknown as NativeModel, { training: false, recompute: false, detachLatents: false, visionGradient: false }))
      .toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: '[Session] Expected model to be a Model but received an object' }));
  });

  test('a view of part of a buffer, of a shared buffer and of a detached one', async () => {
    const whole = f32(9, 1, 2, 9);
    expect(await native().ops.activation('silu', whole.subarray(1, 3))).toEqual(await native().ops.activation('silu', f32(1, 2)));
    const shared = new Float32Array(new SharedArrayBuffer(8));
    shared.set([1, 2]);
    expect(await native().ops.activation('silu', shared)).toEqual(await native().ops.activation('silu', f32(1, 2)));
    structuredClone(whole.buffer, { transfer: [whole.buffer] });
    expect(await native().ops.activation('silu', whole)).toEqual(new Float32Array(0));
    await expectRejection(ops().rmsNorm!(f32(1), whole, 0), 'ERR_SHAPE', '[rmsNorm] Expected x to be rows of 0 but received 1 elements');
  });

  test('a getter that throws rejects with what it threw; one that transfers an array already read does no harm', async () => {
    const evil = { get q() { throw new Error('mine'); }, heads: 1, kvHeads: 1, headDim: 1 };
    await expect(ops().attention!(evil)).rejects.toMatchObject({ message: 'mine' });
    const q = new Float32Array(4);
    const sly = {
      heads: 1, kvHeads: 1, headDim: 4, q, k: new Float32Array(4), cuQ: i32(0, 1), cuK: i32(0, 1), causal: true,
      get v() { structuredClone(q.buffer, { transfer: [q.buffer] }); return new Float32Array(4); },
    };
    expect(await ops().attention!(sly)).toMatchObject({ out: new Float32Array(4) });
  });

  test('methods refuse a foreign `this`, and classes a call without new', () => {
    expect(() => model.bytes.call(session as unknown as NativeModel)).toThrow('Illegal invocation');
    expect(() => model.bytes.call(Object.create(model))).toThrow('Illegal invocation');
    expect(() => session.add.call({} as NativeSession)).toThrow('Illegal invocation');
    expect(() => addon().Model!(tinySpec())).toThrow();
    expect(() => Reflect.construct(native().Model, [], native().Session)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
  });
});

const offsets: readonly (readonly [number[], string, string])[] = [
  [[], 'ERR_SHAPE', 'have at least 1 element but received 0'],
  [[1, 2], 'ERR_RANGE', 'start at 0 but received 1'],
  [[0, 2, 1, 2], 'ERR_RANGE', 'never fall but received 2 then 1 at 2'],
  [[0, -5, 2], 'ERR_RANGE', 'never fall but received 0 then -5 at 1'],
  [[0, 3], 'ERR_RANGE', 'end at 2 but received 3'],
];

describe('ops', () => {
  const x = f32(1, 2, 3, 4);
  const attention = () => ({ q: new Float32Array(8), k: new Float32Array(8), v: new Float32Array(8), cuQ: i32(0, 2), cuK: i32(0, 2), heads: 1, kvHeads: 1, headDim: 4, causal: true });
  const image = (bytes: number) => new Uint8Array(bytes);

  const cases: readonly (readonly [string, unknown[], string, string])[] = [
    ['rmsNorm', [f32(1, 2, 3), f32(1, 1), 0], 'ERR_SHAPE', 'Expected x to be rows of 2 but received 3 elements'],
    ['rmsNormGrad', [x, f32(1, 1), f32(1), 0], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['layerNorm', [x, f32(1, 1), f32(1), 0], 'ERR_SHAPE', 'Expected bias to have 2 elements but received 1'],
    ['layerNormGrad', [x, f32(1, 1), f32(1, 1), f32(1), 0], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['swiglu', [x, f32(1)], 'ERR_SHAPE', 'Expected up to have 4 elements but received 1'],
    ['swigluGrad', [x, x, f32(1)], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['activation', ['relu', x], 'ERR_ARGUMENT', "Expected kind to be one of 'quick_gelu', 'gelu', 'silu' but received \"relu\""],
    ['activationGrad', ['silu', x, f32(1)], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['mrope', [x, i32(0, 0, 0), i32(1, 1, 1), 1, 4, 1e4, false], 'ERR_SHAPE', 'Expected headDim to be even and section to sum to headDim / 2 but received 4 and 3'],
    ['mrope', [x, i32(0, 0, 0), i32(3, -2, 1), 1, 4, 1e4, false], 'ERR_RANGE', 'Expected section not to be negative but received -2'],
    ['mrope', [x, i32(0, 0), i32(1, 1, 0), 1, 4, 1e4, false], 'ERR_SHAPE', 'Expected positions to have 3 * T = 3 elements but received 2'],
    ['mrope', [x, i32(0, -1, 0), i32(1, 1, 0), 1, 4, 1e4, false], 'ERR_RANGE', 'Expected positions in 0..16777215 but received -1'],
    ['mrope', [x, i32(0, 0, 1 << 24), i32(1, 1, 0), 1, 4, 1e4, false], 'ERR_RANGE', 'Expected positions in 0..16777215 but received 16777216'],
    ['mrope', [x, i32(0, 0, 0), i32(1, 1, 0), 0, 4, 1e4, false], 'ERR_RANGE', 'Expected heads to be an integer from 1 to 4096 but received 0'],
    ['mrope', [x, i32(0, 0, 0), i32(1, 1, 0), 1, 4, 1e4, 1], 'ERR_ARGUMENT', 'Expected inverse to be a boolean but received 1'],
    ['attention', [undefined], 'ERR_ARGUMENT', 'Expected input to be an object but received undefined'],
    ['attention', [{ ...attention(), heads: 3, kvHeads: 2 }], 'ERR_SHAPE', 'Expected heads to be a multiple of kvHeads = 2 but received 3'],
    ['attention', [{ ...attention(), v: f32(1) }], 'ERR_SHAPE', 'Expected input.v to have 8 elements but received 1'],
    ['attention', [{ ...attention(), q: f32(1) }], 'ERR_SHAPE', 'Expected q to be rows of 4 but received 1 elements'],
    ['attention', [{ ...attention(), cuK: i32(0, 1, 2) }], 'ERR_SHAPE', 'Expected input.cuK to have 2 elements but received 3'],
    ['attention', [{ ...attention(), headDim: 4.5 }], 'ERR_RANGE', 'Expected input.headDim to be an integer from 1 to 1024 but received 4.5'],
    ['attentionGrad', [attention(), f32(1)], 'ERR_SHAPE', 'Expected dout to have 8 elements but received 1'],
    ['crossEntropy', [x, i32(0, 2), 1], 'ERR_RANGE', 'Expected targets in 0..1 or -100 but received 2 at 1'],
    ['crossEntropy', [x, i32(0, -1), 1], 'ERR_RANGE', 'Expected targets in 0..1 or -100 but received -1 at 1'],
    ['crossEntropy', [x, i32(0, 0, 0), 1], 'ERR_SHAPE', 'Expected logits to have a whole number of elements for each of 3 targets but received 4'],
    ['crossEntropy', [x, i32(0, 0), Number.NaN], 'ERR_RANGE', 'Expected scale to be a finite number from -1e+30 to 1e+30 but received NaN'],
    ['linear', [x, x, null, 2, 2, 3], 'ERR_SHAPE', 'Expected x to have 6 elements but received 4'],
    ['linear', [x, f32(1), null, 2, 2, 2], 'ERR_SHAPE', 'Expected w to have 4 elements but received 1'],
    ['linear', [x, i32(1, 1, 1, 1), null, 2, 2, 2], 'ERR_DTYPE', 'Expected w to be a Float32Array but received an Int32Array'],
    ['linear', [x, x, f32(1), 2, 2, 2], 'ERR_SHAPE', 'Expected bias to have 2 elements but received 1'],
    ['linear', [x, x, null, 2 ** 31, 2 ** 31, 2 ** 31], 'ERR_SHAPE', 'Expected x to have 4611686018427387904 elements but received 4'],
    ['linear', [x, x, null, 2 ** 53, 1, 1], 'ERR_RANGE', 'Expected m to be an integer from 0 to 2147483648 but received 9007199254740992'],
    ['linearGrad', [x, x, f32(1), 2, 2, 2], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['resize', [image(3), 1, 1, 0, 1, 'bicubic'], 'ERR_RANGE', 'Expected toHeight to be an integer from 1 to 32768 but received 0'],
    ['resize', [image(3), 1, 2, 1, 1, 'bicubic'], 'ERR_SHAPE', 'Expected image to have 1 to 4 times height * width = 2 bytes but received 3'],
    ['resize', [image(3), 1, 1, 1, 1, 'nearest'], 'ERR_ARGUMENT', "Expected filter to be one of 'bilinear', 'bicubic' but received \"nearest\""],
    ['patchRows', [image(48), 1, 4, 4, 3, 1, 2, f32(0, 0, 0), f32(1, 1, 1)], 'ERR_SHAPE', 'Expected height and width to be multiples of patch * merge = 3 but received 4 x 4'],
    ['patchRows', [image(47), 1, 4, 4, 2, 2, 2, f32(0, 0, 0), f32(1, 1, 1)], 'ERR_SHAPE', 'Expected frames to have 48 elements but received 47'],
    ['patchRows', [image(48), 1, 4, 4, 2, 2, 2, f32(0, 0), f32(1, 1, 1)], 'ERR_SHAPE', 'Expected mean to have 3 elements but received 2'],
  ];
  test.each(cases)('%s %#', (op, values, code, message) => expectRejection(ops()[op]!(...values), code, `[${op}] ${message}`));

  test.each(offsets)('attention with cuQ %p', (cuQ, code, message) =>
    expectRejection(ops().attention!({ ...attention(), cuQ: i32(...cuQ), cuK: i32(...cuQ) }), code, `[attention] Expected cuQ to ${message}`));

  test('no rows at all are fine', async () => {
    const none = new Float32Array(0);
    expect(await native().ops.rmsNorm(none, f32(1, 1), 1e-6)).toEqual(none);
    expect(await native().ops.activation('gelu', none)).toEqual(none);
    expect(await native().ops.swiglu(none, none)).toEqual(none);
    expect(await native().ops.linear(none, f32(1, 1), null, 0, 1, 2)).toEqual(none);
    expect(await native().ops.crossEntropy(none, i32(), 1)).toEqual({ losses: none, argmax: i32(), dlogits: none });
    expect(await native().ops.attention({ ...attention(), q: none, k: none, v: none, cuQ: i32(0), cuK: i32(0) })).toEqual({ out: none, lse: none });
    expect(await native().ops.mrope(none, i32(), i32(1, 1, 0), 1, 4, 1e4, false)).toEqual(none);
  });

  test('a result beyond the address space is an error', () =>
    expectRejection(ops().linear!(new Float32Array(2 ** 24), new Float32Array(2 ** 24), null, 2 ** 24, 2 ** 24, 1), 'ERR_OUT_OF_MEMORY',
      '[native] Expected enough memory for this operation but received none; use smaller sizes'));
});

describe('Model', () => {
  const make = (change: (spec: { text: Record<string, unknown>; vision: Record<string, unknown>; dtype: unknown; extras?: unknown; adapters?: unknown }) => void) => () => {
    const spec = tinySpec() as unknown as Parameters<typeof change>[0];
    change(spec);
    return new (native().Model)(spec as unknown as NativeModelSpec);
  };
  const cases: readonly (readonly [() => unknown, string, string])[] = [
    [() => new (native().Model)(undefined as unknown as NativeModelSpec), 'ERR_ARGUMENT', 'Expected spec to be an object but received undefined'],
    [make((s) => { s.text.hidden = 0; }), 'ERR_RANGE', 'Expected spec.text.hidden to be an integer from 1 to 1048576 but received 0'],
    [make((s) => { s.text.vocab = 2 ** 40; }), 'ERR_RANGE', 'Expected spec.text.vocab to be an integer from 1 to 16777216 but received 1099511627776'],
    [make((s) => { s.text.kvHeads = 3; }), 'ERR_SHAPE', 'Expected text.heads to be a multiple of text.kvHeads = 3 but received 4'],
    [make((s) => { s.text.headDim = 7; }), 'ERR_SHAPE', 'Expected text.headDim to be even but received 7'],
    [make((s) => { s.text.mropeSection = [1, 1, 1]; }), 'ERR_SHAPE', 'Expected text.mropeSection to be 3 numbers that sum to headDim / 2 = 4 but received 3 numbers with sum 3'],
    [make((s) => { s.text.mropeSection = [4]; }), 'ERR_SHAPE', 'Expected text.mropeSection to be 3 numbers that sum to headDim / 2 = 4 but received 1 numbers with sum 4'],
    [make((s) => { s.text.mropeSection = [1, 1, 1, 1]; }), 'ERR_SHAPE', 'Expected spec.text.mropeSection to have at most 3 elements but received 4'],
    [make((s) => { s.vision.heads = 5; }), 'ERR_SHAPE', 'Expected vision.width to be vision.heads = 5 heads of a multiple of 4, at most 1024, but received 16'],
    [make((s) => { s.vision.outWidth = 8; }), 'ERR_SHAPE', 'Expected vision.outWidth to be text.hidden = 16 but received 8'],
    [make((s) => { s.vision.imageStd = [1, 0, 1]; }), 'ERR_RANGE', 'Expected spec.vision.imageStd[1] to be a finite number from 1e-06 to 1000000 but received 0'],
    [make((s) => { s.vision.windows = 4; }), 'ERR_ARGUMENT', 'Expected spec.vision.windows to be an object but received 4'],
    [make((s) => { s.vision.windows = { side: 0, fullAttentionBlocks: [] }; }), 'ERR_RANGE', 'Expected spec.vision.windows.side to be an integer from 1 to 1048576 but received 0'],
    [make((s) => { s.vision.windows = { side: 4 }; }), 'ERR_ARGUMENT', 'Expected spec.vision.windows.fullAttentionBlocks to be an Array but received undefined'],
    [make((s) => { s.vision.windows = { side: 4, fullAttentionBlocks: [-1] }; }), 'ERR_RANGE', 'Expected spec.vision.windows.fullAttentionBlocks[0] to be an integer from 0 to 4096 but received -1'],
    [make((s) => { s.vision.windows = { side: 4, fullAttentionBlocks: [] }; }), 'ERR_UNSUPPORTED', "Expected vision.activation to be 'silu' in a tower with vision.windows but received another"],
    [make((s) => { s.dtype = 'f16'; }), 'ERR_ARGUMENT', "Expected spec.dtype to be one of 'f32', 'bf16' but received \"f16\""],
    [make((s) => { s.extras = [{ name: 'model.norm.weight', shape: [1] }]; }), 'ERR_ARGUMENT', "Expected parameter names to be unique but received 'model.norm.weight' twice"],
    [make((s) => { s.adapters = [{ target: 'lm_head', rank: 1, scale: 1, dropout: 0 }]; s.text.tied = false; }), 'ERR_ARGUMENT', "Expected the adapter's target to be a linear layer of the decoder or the vision tower but received 'lm_head'"],
    [make((s) => { s.adapters = [{ target: 'model.layers.0.input_layernorm', rank: 1, scale: 1, dropout: 0 }]; }), 'ERR_ARGUMENT', "Expected the adapter's target to be a linear layer of the decoder or the vision tower but received 'model.layers.0.input_layernorm'"],
    [make((s) => { s.adapters = [{ target: 'model.layers.9.mlp.up_proj', rank: 1, scale: 1, dropout: 0 }]; }), 'ERR_ARGUMENT', "Expected the name of a parameter but received 'model.layers.9.mlp.up_proj.weight'"],
    [make((s) => { s.adapters = [{ target: 'model.layers.0.mlp.up_proj', rank: 0, scale: 1, dropout: 0 }]; }), 'ERR_RANGE', 'Expected spec.adapters[0].rank to be an integer from 1 to 1048576 but received 0'],
    [make((s) => { s.adapters = [{ target: 'model.layers.0.mlp.up_proj', rank: 1, scale: Infinity, dropout: 0 }]; }), 'ERR_RANGE', 'Expected spec.adapters[0].scale to be a finite number from -1000000 to 1000000 but received Infinity'],
    [make((s) => { s.adapters = [{ target: 'model.layers.0.mlp.up_proj', rank: 1, scale: 1, dropout: 1 }]; }), 'ERR_RANGE', 'Expected spec.adapters[0].dropout to be a finite number from 0 to 0.999 but received 1'],
    [make((s) => { s.adapters = [1, 2].map(() => ({ target: 'model.layers.0.mlp.up_proj', rank: 1, scale: 1, dropout: 0 })); }), 'ERR_ARGUMENT', "Expected parameter names to be unique but received 'lora.model.layers.0.mlp.up_proj.A' twice"],
    [make((s) => { s.extras = [{ name: 'x', shape: [2 ** 32, 2 ** 32] }]; }), 'ERR_RANGE', "Expected parameter 'x' to have at most 2^40 elements but received shape [4294967296, 4294967296]"],
  ];
  test.each(cases)('a wrong spec %#', (call, code, message) => {
    expect(call).toThrow(expect.objectContaining({ code, message: `[Model] ${message}` }));
  });

  test('a model beyond the address space is an error', () => {
    expect(make((s) => { s.extras = Array.from({ length: 40 }, (_, i) => ({ name: `x${i}`, shape: [2 ** 32, 2 ** 8] })); })).toThrow(expect.objectContaining({ code: 'ERR_OUT_OF_MEMORY' }));
  });

  test('parameters by name, slot and size', async () => {
    const loose = model as unknown as Loose;
    await expectRejection(loose.readParameter!('nope', 'value'), 'ERR_ARGUMENT', '[readParameter] Expected name to be the name of a parameter but received "nope"');
    await expectRejection(loose.readParameter!('model.norm.weight', 'third'), 'ERR_ARGUMENT',
      "[readParameter] Expected slot to be one of 'value', 'gradient', 'first', 'second', 'master' but received \"third\"");
    await expectRejection(loose.readParameter!('model.norm.weight', 'gradient'), 'ERR_ARGUMENT',
      "[Model] Expected training to be enabled, with 'model.norm.weight' trainable, before its gradient or optimiser state is used");
    await expectRejection(loose.writeParameter!('model.norm.weight', 'value', new Float32Array(3)), 'ERR_SHAPE', '[writeParameter] Expected data to have 16 elements but received 3');
    await expectRejection(loose.initialize!('model.norm.weight', 'normal', 1, -1), 'ERR_RANGE', '[initialize] Expected seed to be an integer from 0 to 9007199254740991 but received -1');
    await expectRejection(loose.initialize!('model.norm.weight', 'uniform', 1, 1), 'ERR_ARGUMENT', "[initialize] Expected kind to be one of 'normal', 'constant' but received \"uniform\"");
    await expectRejection(loose.optimizerStep!({ learningRate: -1 }), 'ERR_RANGE', '[optimizerStep] Expected options.learningRate to be a finite number from 0 to 1000000 but received -1');
    await expectRejection(loose.gradientNorm!(), 'ERR_ARGUMENT', '[Model] Expected training to be enabled before gradients are used');
    await expectRejection(loose.readMerged!('nope', 'f32'), 'ERR_ARGUMENT', '[readMerged] Expected name to be the name of a parameter but received "nope"');
    await expectRejection(loose.readMerged!('model.norm.weight', 'f16'), 'ERR_ARGUMENT', "[readMerged] Expected dtype to be one of 'f32', 'bf16' but received \"f16\"");
    await expectRejection(loose.mergeAdapters!(1), 'ERR_ARGUMENT', '[mergeAdapters] Expected keepBase to be a boolean but received 1');
    await expectRejection(loose.mergeAdapters!(true), 'ERR_ARGUMENT', '[mergeAdapter] Expected a model with an adapter but received one without; load it with the option adapter');
    await expectRejection(loose.unmergeAdapters!(), 'ERR_ARGUMENT', '[unmergeAdapter] Expected an adapter that is merged but received one that is not');
    expect(await model.mergedAdapters()).toBe(0);
    expect(() => model.setTrainable('nope', true)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: '[setTrainable] Expected name to be the name of a parameter but received "nope"' }));
  });

  test('files: missing, truncated, of wrong size, with NaN', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'plumbline-'));
    const path = join(folder, 'weights');
    const tensor = { name: 'model.norm.weight', dtype: 'F32' as const, offset: 8, bytes: 64 };
    writeFileSync(path, Buffer.alloc(40));
    await expectRejection(model.loadFile(join(folder, 'none'), [tensor]), 'ERR_CHECKPOINT', `[loadFile] Expected a readable file but received ${join(folder, 'none')}`);
    await expectRejection(model.loadFile(path, [tensor]), 'ERR_CHECKPOINT',
      `[loadFile] Expected 'model.norm.weight' at bytes 8 to 72 but received a file of 40 bytes: ${path} is truncated, fetch it again`);
    await expectRejection(model.loadFile(path, [{ ...tensor, bytes: 63 }]), 'ERR_CHECKPOINT', "[loadFile] Expected 'model.norm.weight' to have 64 bytes but received 63");
    await expectRejection(model.loadFile(path, [{ ...tensor, offset: 2 ** 53 - 1 }]), 'ERR_CHECKPOINT',
      `[loadFile] Expected 'model.norm.weight' at bytes 9007199254740991 to 9007199254741055 but received a file of 40 bytes: ${path} is truncated, fetch it again`);
    const values = new Float32Array(18).fill(2);
    values[5] = Number.NaN;
    writeFileSync(path, values);
    await expectRejection(model.loadFile(path, [tensor]), 'ERR_CHECKPOINT',
      "[Model.load] Expected the values of 'model.norm.weight' to be finite but element 3 is NaN or infinite; the checkpoint is damaged or its training diverged");
    await expect(model.loadFile(folder, [tensor])).rejects.toMatchObject({ code: 'ERR_CHECKPOINT' });
    writeFileSync(path, new Float32Array(18).fill(2));
    await model.loadFile(path, [tensor]);
    expect(await model.readParameter('model.norm.weight', 'value')).toEqual(new Float32Array(16).fill(2));
    writeFileSync(path, Float32Array.of(5, 6, 7));
    const part = { ...tensor, offset: 0, bytes: 12 };
    await model.loadFile(path, [{ ...part, first: 13 }]);
    expect(await model.readParameter('model.norm.weight', 'value')).toEqual(Float32Array.of(...new Array<number>(13).fill(2), 5, 6, 7));
    await expectRejection(model.loadFile(path, [{ ...part, first: 14 }]), 'ERR_CHECKPOINT', "[loadFile] Expected 'model.norm.weight' to have at most 8 bytes but received 12");
    await expectRejection(model.loadFile(path, [{ ...part, first: 0, bytes: 11 }]), 'ERR_CHECKPOINT', "[loadFile] Expected 'model.norm.weight' to have at most 64 bytes but received 11");
    await expectRejection(model.loadFile(path, [{ ...part, first: 17 }]), 'ERR_RANGE', '[loadFile] Expected tensors[0].first to be an integer from 0 to 16 but received 17');
    rmSync(folder, { recursive: true });
  });
});

describe('Session', () => {
  const pass = (change: Partial<Record<keyof NativePass, unknown>>) => ({ ...tokenPass(sequence, [1, 2]), ...change }) as NativePass;
  const cases: readonly (readonly [Partial<Record<keyof NativePass, unknown>>, string, string])[] = [
    [{ sequences: i32(99) }, 'ERR_ARGUMENT', 'Expected a live sequence of this session but received id 99'],
    [{ sequences: i32(-1) }, 'ERR_ARGUMENT', 'Expected a live sequence of this session but received id -1'],
    [{ sequences: i32(0, 0), cuSeqlens: i32(0, 1, 2) }, 'ERR_ARGUMENT', 'Expected each sequence once in a pass but received id 0 twice'],
    [{ cuSeqlens: i32(0, 1, 2) }, 'ERR_SHAPE', 'Expected pass.cuSeqlens to have 2 elements but received 3'],
    [{ cuSeqlens: i32(0, 3) }, 'ERR_RANGE', 'Expected cuSeqlens to end at 2 but received 3'],
    [{ cuSeqlens: i32(1, 2) }, 'ERR_RANGE', 'Expected cuSeqlens to start at 0 but received 1'],
    [{ kind: new Int32Array(2) }, 'ERR_DTYPE', 'Expected pass.kind to be a Uint8Array but received an Int32Array'],
    [{ kind: Uint8Array.of(0, 5) }, 'ERR_RANGE', 'Expected kind in 0..4 but received 5 at 1'],
    [{ index: i32(1) }, 'ERR_SHAPE', 'Expected pass.index to have 2 elements but received 1'],
    [{ index: i32(1, 50) }, 'ERR_RANGE', 'Expected token ids in 0..49 but received 50 at row 1'],
    [{ index: i32(-1, 0) }, 'ERR_RANGE', 'Expected token ids in 0..49 but received -1 at row 0'],
    [{ kind: Uint8Array.of(1, 1), index: i32(0, 1) }, 'ERR_RANGE', 'Expected visual rows in 0..0 but received 1 at row 1'],
    [{ kind: Uint8Array.of(3, 0), index: i32(0, 1) }, 'ERR_RANGE', 'Expected embedding rows in 0..-1 but received 0 at row 0'],
    [{ kind: Uint8Array.of(0, 2) }, 'ERR_ARGUMENT', 'Expected a latent row to follow an earlier pass of its sequence, whose last hidden state it takes, but sequence 0 has no rows yet'],
    [{ embeddings: new Float32Array(15) }, 'ERR_SHAPE', 'Expected embeddings to be rows of 16 but received 15 elements'],
    [{ positions: new Int32Array(5) }, 'ERR_SHAPE', 'Expected pass.positions to have 6 elements but received 5'],
    [{ positions: i32(0, 0, 0, 0, 0, -1) }, 'ERR_RANGE', 'Expected positions in 0..16777215 but received -1 at 5'],
    [{ positions: i32(0, 0, 0, 0, 0, 2 ** 24) }, 'ERR_RANGE', 'Expected positions in 0..16777215 but received 16777216 at 5'],
    [{ logitRows: i32(2) }, 'ERR_RANGE', 'Expected logitRows in 0..1 but received 2 at 0'],
    [{ hiddenRows: i32(0, -1) }, 'ERR_RANGE', 'Expected hiddenRows in 0..1 but received -1 at 1'],
    [{ keepLayerInputs: 1 }, 'ERR_ARGUMENT', 'Expected pass.keepLayerInputs to be a boolean but received 1'],
  ];
  test.each(cases)('extend %#', (change, code, message) => expectRejection(session.extend(pass(change)), code, `[extend] ${message}`));

  const pictures: readonly (readonly [Uint8Array, number[], string, string])[] = [
    [new Uint8Array(48), [], 'ERR_SHAPE', 'Expected sizes to be n * 3 numbers with n of at least 1 but received 0'],
    [new Uint8Array(48), [1, 4], 'ERR_SHAPE', 'Expected sizes to be n * 3 numbers with n of at least 1 but received 2'],
    [new Uint8Array(48), [0, 4, 4], 'ERR_RANGE', 'Expected 1 to 65536 frames with sides of 1 to 1048576 but received 0 frames of 4 x 4'],
    [new Uint8Array(48), [1, 4, -4], 'ERR_RANGE', 'Expected 1 to 65536 frames with sides of 1 to 1048576 but received 1 frames of 4 x -4'],
    [new Uint8Array(48), [2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1], 'ERR_RANGE', 'Expected 1 to 65536 frames with sides of 1 to 1048576 but received 2147483647 frames of 2147483647 x 2147483647'],
    [new Uint8Array(48), [1, 4, 6], 'ERR_SHAPE', 'Expected sides to be multiples of patch * merge = 4 but received 1 frames of 4 x 6'],
    [new Uint8Array(47), [1, 4, 4], 'ERR_SHAPE', 'Expected frames to have at least 48 bytes but received 47'],
    [new Uint8Array(49), [1, 4, 4], 'ERR_SHAPE', 'Expected frames to have 48 bytes but received 49'],
    [new Uint8Array(48), [65536, 1048576, 1048576, 65536, 1048576, 1048576], 'ERR_SHAPE', 'Expected frames to have at least 216172782113783808 bytes but received 48'],
  ];
  test.each(pictures)('encode %#', (frames, sizes, code, message) => expectRejection(session.encode(frames, i32(...sizes)), code, `[encode] ${message}`));

  test('training methods of a session that does not train, and reading what is not there', async () => {
    const zero = i32(0);
    await expectRejection(session.loss({ pass: zero, row: zero, target: zero, scale: 1 }), 'ERR_ARGUMENT', '[loss] Expected a training session');
    await expectRejection(session.loss({ pass: zero, row: i32(0, 0), target: zero, scale: 1 }), 'ERR_SHAPE', '[loss] Expected loss.row to have 1 elements but received 2');
    await expectRejection(session.backward(0), 'ERR_ARGUMENT', '[backward] Expected a training session');
    await expectRejection(session.free(99), 'ERR_ARGUMENT', '[free] Expected a live sequence of this session but received id 99');
    await expectRejection(session.fork(99), 'ERR_ARGUMENT', '[fork] Expected a live sequence of this session but received id 99');
    await expectRejection((session as unknown as Loose).free!(0.5), 'ERR_RANGE', '[free] Expected sequence to be an integer from 0 to 2147483647 but received 0.5');
    await expectRejection(session.read('hidden', 5, 0), 'ERR_RANGE', '[read] Expected a pass that was kept (training, or keepLayerInputs) but received 5');
    const early = new (native().Session)(model, { training: true, recompute: false, detachLatents: false, visionGradient: true });
    await expectRejection(early.extend(tokenPass(early.add(), [1])), 'ERR_ARGUMENT', "[Session] Expected the model's training to be enabled before a training session is used");
    early.dispose();
  });

  test('after all this the session still computes', async () => {
    const { logits, pass: number } = await session.extend({ ...tokenPass(sequence, [1, 2]), logitRows: i32(1) });
    expect(number).toBe(0);
    expect(logits.length).toBe(50);
    expect(logits.every(Number.isFinite)).toBe(true);
    expect(session.tokenForwards()).toBe(2);
  });
});

describe('settings', () => {
  test.each([
    ['setThreads', 0, 'ERR_RANGE', '[setThreads] Expected count to be an integer from 1 to 1024 but received 0'],
    ['setThreads', '2', 'ERR_ARGUMENT', '[setThreads] Expected count to be an integer from 1 to 1024 but received "2"'],
    ['setGemm', 'mkl', 'ERR_ARGUMENT', "[setGemm] Expected kind to be one of 'auto', 'onednn', 'portable' but received \"mkl\""],
    ['setIsa', 'sse', 'ERR_ARGUMENT', "[setIsa] Expected isa to be one of 'auto', 'baseline', 'avx2', 'avx512' but received \"sse\""],
  ])('%s(%p)', (name, value, code, message) => {
    expect(() => addon()[name]!(value)).toThrow(expect.objectContaining({ code, message }));
  });

  test('take effect for the next job, and show in buildInfo()', async () => {
    const before = native().buildInfo();
    const x = Float32Array.from({ length: 5000 }, (_, i) => Math.sin(i));
    const expected = await native().ops.activation('silu', x);
    native().setThreads(3);
    native().setIsa('baseline');
    native().setGemm('portable');
    expect(native().buildInfo()).toMatchObject({ threads: 3, isa: 'baseline' });
    const got = await native().ops.activation('silu', x);
    expect(Math.max(...got.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-6);
    expect(await native().ops.linear(f32(1, 2), f32(3, 4), null, 1, 1, 2)).toEqual(f32(11));
    native().setThreads(before.threads);
    native().setIsa('auto');
    native().setGemm('auto');
    expect(native().buildInfo()).toEqual(before);
  });

  test('bench refuses unknown names and wrong sizes', async () => {
    await expectRejection(addon().bench!('nope', [], 1), 'ERR_ARGUMENT',
      "[bench] Expected name to be one of 'linear', 'linear_grad', 'attention', 'attention_grad', 'read_bandwidth', 'fma_peak', 'gemm_time', 'rms_norm', 'layer_norm', 'rms_norm_grad', 'grad_norm', 'sum_squares', 'gather_rms_norm', 'gated_scatter', 'attention_saliency' but received \"nope\"");
    await expectRejection(addon().bench!('linear', [1, 2], 1), 'ERR_SHAPE', '[bench] Expected sizes of linear to have 4 elements but received 2');
    await expectRejection(addon().bench!('read_bandwidth', [64], 0), 'ERR_RANGE', '[bench] Expected repeats to be an integer from 1 to 1000000 but received 0');
    await expectRejection(addon().bench!('attention', [2, 3, 2, 8, 1], 1), 'ERR_SHAPE',
      '[bench] Expected heads to be a multiple of kvHeads and new rows not to exceed the keys but received 3, 2 and 1 of 2');
    await expectRejection(addon().bench!('gather_rms_norm', [2, 3, 8], 1), 'ERR_SHAPE', '[bench] Expected taken rows not to exceed rows but received 3 of 2');
    await expectRejection(addon().bench!('attention_saliency', [2, 4, 2, 8, 3], 1), 'ERR_SHAPE',
      '[bench] Expected heads to be a multiple of kvHeads and columns not to exceed the keys but received 4, 2 and 3 of 2');
  });
});
