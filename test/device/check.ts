/** `node check.js`: public operations and a model on the CUDA device against the CPU; prints a line each, exits 1 when one differs. */
import {
  activation, activationGrad, attention, attentionGrad, attentionSaliency, attentionSaliencyGrad, coherentWindow, cropPatches, crossEntropy, gatedScatter, gatedScatterGrad,
  gatherRmsNorm, gatherRmsNormGrad, layerNorm, layerNormGrad, globalNorm, gradNorm, gradSpectra, linear, linearGrad, mrope, packRagged, patchRows, raggedAttention, raggedAttentionGrad, resize, rmsNorm, rmsNormGrad, routeTokens, swiglu,
  swigluGrad, Tensor, unpackRagged, type DeviceName,
} from '../../lib/kernels';
import { mix } from '../../lib/random';
import { steps } from './model';

type Value = Float32Array | Float64Array | Int32Array | Uint8Array | number | string;
export type Outcome = Readonly<Record<string, unknown>>;

const i32 = (...values: number[]): Int32Array => Int32Array.from(values);
const floats = (seed: number, count: number, scale = 1): Float32Array =>
  Float32Array.from({ length: count }, (_, n) => scale * ((mix(seed, n) % 2001) / 1000 - 1));
const bytes = (seed: number, count: number): Uint8Array => Uint8Array.from({ length: count }, (_, n) => mix(seed, n) % 256);

/** bf16 bits of `floats`, cut off. */
const bits = (seed: number, count: number): Uint16Array => Uint16Array.from(new Uint32Array(floats(seed, count).buffer), (word) => word >>> 16);
/** bf16 results as floats, so that they are compared as such. */
const widened = (result: Readonly<Record<string, Float32Array | Uint16Array>>): unknown =>
  Object.fromEntries(Object.entries(result).map(([name, value]) => [name, value instanceof Uint16Array ? new Float32Array(Uint32Array.from(value, (half) => half << 16).buffer) : value]));

/** Typed arrays and plain values of a result, by path. */
function* leaves(value: unknown, path: string): Generator<[string, Value]> {
  if (typeof value === 'number' || typeof value === 'string') yield [path, value];
  else if (ArrayBuffer.isView(value)) yield [path, value as Float32Array];
  else if (value instanceof Map) for (const [key, item] of value) yield* leaves(item, `${path}.${String(key)}`);
  else if (typeof value === 'object' && value !== null) for (const [key, item] of Object.entries(value)) yield* leaves(item, path === '' ? key : `${path}.${key}`);
}

const isFloats = (value: Value): value is Float32Array | Float64Array => value instanceof Float32Array || value instanceof Float64Array;

/** Largest difference of floats as a share of `tolerance` times the largest value of the CPU; anything else must be equal. */
function difference(cpu: Value, cuda: Value, tolerance: number): number {
  if (!isFloats(cpu) || !isFloats(cuda)) {
    if (typeof cpu === 'number' && typeof cuda === 'number') return Math.abs(cpu - cuda) / (tolerance * Math.max(1, Math.abs(cpu)));
    return JSON.stringify(typeof cpu === 'string' ? cpu : [...(cpu as Int32Array)]) === JSON.stringify(typeof cuda === 'string' ? cuda : [...(cuda as Int32Array)]) ? 0 : Infinity;
  }
  if (cpu.length !== cuda.length) return Infinity;
  let largest = 0;
  let worst = 0;
  cpu.forEach((value, i) => {
    if (Number.isFinite(value)) largest = Math.max(largest, Math.abs(value));
    if (!Object.is(value, cuda[i])) worst = Math.max(worst, Number.isFinite(value) && Number.isFinite(cuda[i]) ? Math.abs(value - cuda[i]!) : String(value) === String(cuda[i]) ? 0 : Infinity);
  });
  return worst === 0 ? 0 : worst / (tolerance * Math.max(largest, 1e-30));
}

const RAGGED = { cuQ: i32(0, 3, 3, 4, 21), cuK: i32(0, 9, 12, 13, 96) };
const SHAPES = { heads: 14, kvHeads: 2, headDim: 24 };

const CASES: Readonly<Record<string, (device: DeviceName) => Promise<unknown>>> = {
  rmsNorm: (device) => rmsNorm(floats(1, 9 * 129), floats(2, 129), { device }),
  rmsNormGrad: (device) => rmsNormGrad(floats(1, 9 * 128), floats(2, 128), floats(3, 9 * 128), { device }),
  layerNorm: (device) => layerNorm(floats(1, 9 * 33), floats(2, 33), floats(3, 33), { device }),
  layerNormGrad: (device) => layerNormGrad(floats(1, 40 * 33), floats(2, 33), floats(3, 33), floats(4, 40 * 33), { device }),
  swiglu: (device) => swiglu(floats(1, 4099, 4), floats(2, 4099), { device }),
  swigluGrad: (device) => swigluGrad(floats(1, 4099, 4), floats(2, 4099), floats(3, 4099), { device }),
  activation: async (device) => [await activation('gelu', floats(1, 1001, 5), { device }), await activation('quick_gelu', floats(1, 1001, 5), { device })],
  activationGrad: (device) => activationGrad('silu', floats(1, 1001, 5), floats(2, 1001), { device }),
  mrope: (device) => mrope(floats(1, 7 * 3 * 16), Int32Array.from({ length: 21 }, (_, n) => mix(5, n) % 900), { heads: 3, headDim: 16, section: [4, 2, 2], device }),
  attention: (device) => attention(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), floats(3, 96 * 2 * 24), { ...SHAPES, ...RAGGED, causal: true, device }),
  attentionGrad: (device) => attentionGrad(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), floats(3, 96 * 2 * 24), floats(4, 21 * 14 * 24), { ...SHAPES, ...RAGGED, causal: true, device }),
  attentionSaliency: (device) => attentionSaliency(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), { ...SHAPES, ...RAGGED, columns: i32(8, 0, 0, 80, 3), cuColumns: i32(0, 2, 2, 3, 5), device }),
  attentionSaliencyGrad: (device) => attentionSaliencyGrad(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), floats(3, 5), { ...SHAPES, ...RAGGED, columns: i32(8, 0, 0, 80, 3), cuColumns: i32(0, 2, 2, 3, 5), device }),
  raggedAttention: (device) => raggedAttention(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), floats(3, 96 * 2 * 24), { ...SHAPES, ...RAGGED, device }),
  raggedAttentionGrad: (device) => raggedAttentionGrad(floats(1, 21 * 14 * 24), floats(2, 96 * 2 * 24), floats(3, 96 * 2 * 24), floats(4, 21 * 14 * 24), { ...SHAPES, ...RAGGED, device }),
  'raggedAttention, bf16': async (device) => widened(await raggedAttention(bits(1, 21 * 14 * 24), bits(2, 96 * 2 * 24), bits(3, 96 * 2 * 24), { ...SHAPES, ...RAGGED, dtype: 'bf16', device })),
  'raggedAttentionGrad, bf16': async (device) =>
    widened(await raggedAttentionGrad(bits(1, 21 * 14 * 24), bits(2, 96 * 2 * 24), bits(3, 96 * 2 * 24), bits(4, 21 * 14 * 24), { ...SHAPES, ...RAGGED, dtype: 'bf16', device })),
  gradNorm: async (device) => [
    await gradNorm(floats(1, 50 * 129), { tokens: 50, channels: 129, classes: Uint8Array.from({ length: 50 }, (_, n) => n % 3), device }),
    await gradNorm(bits(1, 9 * 64), { tokens: 9, channels: 64, dtype: 'bf16', device }),
  ],
  globalNorm: (device) => globalNorm([floats(1, 4097), floats(2, 1), floats(3, 0)], { device }),
  gradSpectra: (device) => gradSpectra([{ data: floats(1, 5 * 40), rows: 5, cols: 40 }, { data: floats(2, 70 * 33), rows: 70, cols: 33 }], { device }),
  crossEntropy: (device) => crossEntropy(floats(1, 5 * 1003, 6), i32(0, -100, 1002, 7, 7), { scale: 0.25, device }),
  linear: async (device) => [
    await linear(floats(1, 3 * 65), floats(2, 33 * 65), floats(3, 33), { inputs: 65, outputs: 33, device }),
    await linear(floats(1, 70 * 64), Uint16Array.from({ length: 40 * 64 }, (_, n) => 0x3e00 + (mix(3, n) % 512)), null, { inputs: 64, outputs: 40, device }),
  ],
  linearGrad: (device) => linearGrad(floats(1, 130 * 66), floats(2, 34 * 66), floats(3, 130 * 34), { inputs: 66, outputs: 34, device }),
  resize: (device) => resize(bytes(1, 37 * 53 * 3), { height: 37, width: 53, toHeight: 61, toWidth: 29, filter: 'bicubic', device }),
  patchRows: (device) => patchRows(bytes(1, 2 * 56 * 28 * 3), { frames: 2, height: 56, width: 28, device }),
  cropPatches: (device) => cropPatches(bytes(1, 50 * 41 * 3), { height: 50, width: 41, box: [3, 4, 38, 47], toHeight: 56, toWidth: 28, device }),
  coherentWindow: (device) => coherentWindow(Float32Array.from(floats(1, 77), (v) => Math.round(v * 4) / 64), {
    cuTokens: i32(0, 35, 35, 77), cuPictures: i32(0, 1, 1, 3), grids: i32(5, 7, 6, 5, 3, 4), patches: 8, window: 3, device,
  }),
  routeTokens: async (device) => {
    const scores = Float32Array.from(floats(4, 301), (v) => Math.round(v * 16) / 16);
    const cuSeqlens = i32(0, 1, 1, 260, 301);
    return [
      await routeTokens(scores, { rule: 'threshold', threshold: 0.25, cuSeqlens, device }), await routeTokens(scores, { rule: 'prefix-topk', alpha: 5, cuSeqlens, device }),
      await routeTokens(scores, { rule: 'topk', alpha: 12, cuSeqlens, device }),
    ];
  },
  gatherRmsNorm: (device) => gatherRmsNorm(floats(1, 40 * 72), i32(3, 39, 0, 3), floats(2, 72), { step: floats(3, 72), device }),
  gatherRmsNormGrad: (device) => gatherRmsNormGrad(floats(1, 40 * 72), i32(3, 39, 0, 3), floats(2, 72), floats(4, 4 * 72), { step: floats(3, 72), device }),
  gatedScatter: (device) => gatedScatter(floats(1, 40 * 71), floats(2, 3 * 71), floats(3, 3), i32(4, 9, 39), { fusion: 'scaled', step: floats(5, 71), device }),
  gatedScatterGrad: (device) => gatedScatterGrad(floats(1, 40 * 71), floats(2, 3 * 71), floats(3, 3), i32(4, 9, 39), floats(6, 40 * 71), { fusion: 'scaled', step: floats(5, 71), device }),
  packRagged: async (device) => [await packRagged(floats(1, 3 * 5 * 6), i32(2, 0, 5), 6, { device }), await unpackRagged(floats(1, 7 * 6), i32(0, 2, 2, 7), 6, { fill: -1, device })],
  tensors: async (device) => {
    using h = await Tensor.from(floats(1, 40 * 72), [40, 72], { device });
    using weight = await Tensor.from(floats(2, 72), [72], { device });
    const { x, y, rstd } = await gatherRmsNorm(h, i32(1, 2), weight, { output: 'tensor', device });
    try {
      return [await x.read(), await y.read(), await rstd.read(), x.device === device ? 'there' : 'elsewhere'];
    } finally {
      for (const one of [x, y, rstd]) one.dispose();
    }
  },
};

/** What f32 sums in another order may differ by, as a share of the largest value. */
const TOLERANCE = 4e-6;
/** The tensor cores take probabilities and score gradients as bf16, and the result is rounded to it: two half units, and a little for sums. */
const BF16_TOLERANCE = 2 ** -7;

async function main(): Promise<number> {
  const [only = ''] = process.argv.slice(2);
  let failed = 0;
  const compare = async (name: string, run: (device: DeviceName) => Promise<unknown>, tolerance: number): Promise<void> => {
    const cpu = new Map(leaves(await run('cpu'), ''));
    const cuda = new Map(leaves(await run('cuda'), ''));
    const again = new Map(leaves(await run('cuda'), ''));
    const shares = [...cpu].map(([path, value]) => [path, cuda.has(path) ? difference(value, cuda.get(path) as Value, tolerance) : Infinity] as const);
    const repeats = [...cuda].every(([path, value]) => difference(value, again.get(path) as Value, 1e-300) === 0);
    const [path, worst] = shares.reduce((a, b) => (b[1] > a[1] ? b : a), ['', 0]);
    const isGood = worst <= 1 && repeats && cpu.size > 0 && cpu.size === cuda.size;
    if (!isGood) failed++;
    process.stdout.write(`${isGood ? 'same' : 'DIFFERENT'}  ${name}: ${cpu.size} results, worst ${worst.toPrecision(3)} of the tolerance${path === '' ? '' : ` (${path})`}${repeats ? '' : ', other bits on the second run'}\n`);
  };
  const cases = Object.entries(CASES).filter(([name]) => name.includes(only));
  for (const [name, run] of cases) await compare(name, run, name.endsWith('bf16') ? BF16_TOLERANCE : TOLERANCE);
  for (const [name, run] of Object.entries(steps).filter(([step]) => step.includes(only))) await compare(name, run, 1e-4);
  process.stdout.write(`${failed === 0 ? 'all the same' : `${failed} different`}\n`);
  return failed === 0 ? 0 : 1;
}

main().then((code) => { process.exitCode = code; }, (error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 2;
});
