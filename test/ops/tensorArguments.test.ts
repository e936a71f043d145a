/** Every operation takes tensors where it takes float arrays, and gives them. */
import * as kernels from '../../lib/kernels';
import { Tensor } from '../../lib/kernels';
import { native } from '../../lib/native';
import { offsets, random, refuses } from './support';

const tensors = (): number => native().liveObjects().tensors;

type Call = (floats: Record<string, kernels.Floats>, output: { output?: 'tensor'; signal?: AbortSignal }) => Promise<unknown>;
/** shapes: of the results that are floats. */
interface Operation { floats: Record<string, Float32Array>; shapes: Record<string, readonly number[]>; call: Call }

const rows = Int32Array.of(3, 1);
const attention = { heads: 4, kvHeads: 2, headDim: 8, cuQ: offsets([2, 3]), cuK: offsets([7, 5]) };
const grids = { cuTokens: offsets([6, 2]), cuPictures: offsets([1, 1]), grids: Int32Array.of(2, 3, 1, 2), patches: 3, window: 2 };
const q = random(5 * 32, 1);
const k = random(12 * 16, 2);
const [h, y, gate, vector] = [random(20, 3), random(8, 4), random(2, 5), random(4, 6)];

const operations: Record<string, Operation> = {
  attentionSaliency: { floats: { q, k, lse: random(20, 7) }, shapes: { result: [12] }, call: ({ q, k, lse }, o) => kernels.attentionSaliency(q!, k!, { ...attention, lse: lse!, ...o }) },
  attentionSaliencyGrad: {
    floats: { q, k, dsaliency: random(12, 8), lse: random(20, 7) }, shapes: { dq: [5, 4, 8], dk: [12, 2, 8] },
    call: ({ q, k, dsaliency, lse }, o) => kernels.attentionSaliencyGrad(q!, k!, dsaliency!, { ...attention, lse: lse!, ...o }),
  },
  coherentWindow: { floats: { scores: random(8, 1) }, shapes: { weights: [5] }, call: ({ scores }, o) => kernels.coherentWindow(scores!, { ...grids, ...o }) },
  cropPatches: {
    floats: {}, shapes: { rows: [4, 1176] },
    call: (_, o) => kernels.cropPatches(new Uint8Array(75).fill(9), { height: 5, width: 5, box: [1, 1, 4, 3], toHeight: 28, toWidth: 28, ...o }),
  },
  routeTokens: { floats: { scores: random(8, 1) }, shapes: {}, call: ({ scores }, { signal }) => kernels.routeTokens(scores!, { rule: 'topk', cuSeqlens: offsets([8]), alpha: 3, ...(signal ? { signal } : {}) }) },
  gatherRmsNorm: { floats: { weight: vector, h, step: vector }, shapes: { x: [2, 4], y: [2, 4], rstd: [2] }, call: ({ h, weight, step }, o) => kernels.gatherRmsNorm(h!, rows, weight!, { step: step!, ...o }) },
  gatherRmsNormGrad: {
    floats: { weight: vector, h, step: vector, dy: y }, shapes: { dh: [5, 4], dstep: [4], dweight: [4] },
    call: ({ h, weight, step, dy }, o) => kernels.gatherRmsNormGrad(h!, rows, weight!, dy!, { step: step!, ...o }),
  },
  gatedScatter: { floats: { h, y, step: vector, gate }, shapes: { result: [20] }, call: ({ h, y, gate, step }, o) => kernels.gatedScatter(h!, y!, gate!, rows, { fusion: 'scaled', step: step!, ...o }) },
  gatedScatterGrad: {
    floats: { h, y, step: vector, gate, dout: h }, shapes: { dh: [20], dy: [2, 4], dgate: [2], dstep: [4] },
    call: ({ h, y, gate, step, dout }, o) => kernels.gatedScatterGrad(h!, y!, gate!, rows, dout!, { fusion: 'scaled', step: step!, ...o }),
  },
  packRagged: { floats: { padded: h }, shapes: { packed: [4, 2] }, call: ({ padded }, o) => kernels.packRagged(padded!, Int32Array.of(3, 1), 2, o) },
  unpackRagged: { floats: { packed: y }, shapes: { result: [2, 3, 2] }, call: ({ packed }, o) => kernels.unpackRagged(packed!, offsets([3, 1]), 2, o) },
};

/** Results by name: a single one is `result`. */
function named(result: unknown): Record<string, unknown> {
  return result instanceof Tensor || ArrayBuffer.isView(result) ? { result } : (result as Record<string, unknown>);
}

test('the table holds every operation that takes or gives tensors', () => {
  const older = ['activation', 'attention', 'crossEntropy', 'layerNorm', 'linear', 'mrope', 'patchRows', 'resize', 'rmsNorm', 'swiglu', 'raggedAttention'];
  const others = ['deviceReport', 'globalNorm', 'gradNorm', 'gradSpectra', 'normQuantile'];  // gradients: tested with their own tensors
  const functions = Object.entries(kernels).filter(([name, value]) => typeof value === 'function' && /^[a-z]/.test(name)).map(([name]) => name);
  expect(functions.filter((name) => ![...older, ...others].includes(name.replace(/Grad$/, ''))).sort()).toEqual(Object.keys(operations).sort());
});

describe.each(Object.entries(operations))('%s', (name, { floats, shapes, call }) => {
  test('tensors in, tensors out: the same bits as arrays, and nothing stays alive', async () => {
    const before = native().liveObjects();
    const want = named(await call(floats, {}));
    const given = Object.fromEntries(await Promise.all(Object.entries(floats).map(async ([key, data]) => [key, await Tensor.from(data, [data.length])] as const)));
    const got = named(await call(given, { output: 'tensor' }));
    expect(Object.keys(got).sort()).toEqual(Object.keys(want).sort());
    for (const [key, value] of Object.entries(got)) {
      expect(value instanceof Tensor).toBe(key in shapes);
      if (value instanceof Tensor) expect(value.shape).toEqual(shapes[key]);
      expect(value instanceof Tensor ? await value.read() : value).toEqual(want[key]);
      if (value instanceof Tensor) value.dispose();
    }
    for (const [key, tensor] of Object.entries(given)) { // mixed, and inputs are not changed
      expect(named(await call({ ...floats, [key]: tensor }, {}))).toEqual(want);
      expect(await tensor.read()).toEqual(floats[key]);
      tensor.dispose();
    }
    expect(native().liveObjects()).toEqual(before);
  });

  for (const [key, data] of Object.entries(floats)) test(`${key}: disposed, of the wrong size, not a tensor`, async () => {
    const tensor = await Tensor.from(data, [data.length]);
    const running = call({ ...floats, [key]: tensor }, {});
    tensor.dispose();
    expect(named(await running)).toEqual(named(await call(floats, {}))); // disposed in the middle of the job
    await refuses(call({ ...floats, [key]: tensor }, {}), 'ERR_DISPOSED', `[${name}] Expected ${key} to be a living Tensor but received one that is disposed`);
    const large = Tensor.zeros([data.length + 1]);
    await expect(call({ ...floats, [key]: large }, {})).rejects.toMatchObject({ name: 'LibError', code: 'ERR_SHAPE' });
    large.dispose();
    await refuses(call({ ...floats, [key]: { size: data.length, shape: [data.length] } as never }, {}), 'ERR_DTYPE', `[${name}] Expected ${key} to be a Float32Array or a Tensor but received an object`);
  });

  test('an aborted call leaves no tensor behind', async () => {
    const before = tensors();
    await expect(call(floats, { ...(name === 'routeTokens' ? {} : { output: 'tensor' }), signal: AbortSignal.abort('enough') })).rejects.toBe('enough');
    expect(tensors()).toBe(before);
  });
});
