/** `node traffic.js`: operations at 1 MB and more on the CUDA device. Prints JSON { launches, cases } for scripts/cuda-counters.cjs. */
import { attentionSaliency, gatedScatter, gatherRmsNorm, gradNorm, layerNorm, layerNormGrad, raggedAttention, raggedAttentionGrad, rmsNorm, rmsNormGrad } from '../../lib/kernels';
import { native } from '../../lib/native';
import { mix } from '../../lib/random';

/** `launches` of the device before and after are added as `from` and `to`. */
interface Case {
  name: string;
  /** Parts of the names of the kernels that count. */
  kernels: readonly string[];
  /** What they cannot but move: every input and every output once. */
  bytes: number;
  /** Bytes of small vectors (weight, bias, step) that each block of the first kernel reads: after the first block they are in the cache. */
  vectors?: number;
  /** Kernels that read partial sums which the one before has just left in the cache, and what they are added to. */
  sums?: readonly string[];
  run: () => Promise<unknown>;
}

const device = 'cuda';

/** Noise of a prime period. */
function floats(seed: number, count: number): Float32Array {
  const period = Float32Array.from({ length: Math.min(count, 65521) }, (_, n) => (mix(seed, n) % 2001) / 1000 - 1);
  return Float32Array.from({ length: count }, (_, n) => period[n % period.length]!);
}
const bits = (seed: number, count: number): Uint16Array => new Uint16Array(new Uint32Array(floats(seed, count).buffer).map((word) => word >>> 16));
const offsets = (lengths: readonly number[]): Int32Array => Int32Array.from([0, ...lengths]).map((_, n) => lengths.slice(0, n).reduce((a, b) => a + b, 0));

function norms(T: number, C: number): Case[] {
  const [x, w, dout] = [floats(1, T * C), floats(2, C), floats(3, T * C)];
  const [rows, column, figure] = [4 * T * C, 4 * C, 4 * T];
  const size = `${T} x ${C}`;
  const norm = (dtype: 'f32' | 'bf16'): Case => ({
    name: `grad_norm ${size} ${dtype}`, kernels: ['norm_kernel'], bytes: (dtype === 'f32' ? rows : rows / 2) + 2 * figure,
    run: () => gradNorm(dtype === 'f32' ? x : bits(1, T * C), { tokens: T, channels: C, dtype, device }),
  });
  return [
    { name: `rms_norm ${size}`, kernels: ['norm_kernel<false'], bytes: 2 * rows + column + figure, vectors: column, run: () => rmsNorm(x, w, { device }) },
    { name: `rms_norm_grad ${size}`, kernels: ['norm_grad_kernel', 'add_shares'], bytes: 3 * rows + 2 * column + figure, vectors: column, sums: ['add_shares'], run: () => rmsNormGrad(x, w, dout, { device }) },
    norm('f32'), norm('bf16'),
  ];
}

/** The gradient's partial sums are 2 vectors for each 8 rows (fewer up to 1,056), written once: 8 % of what must be moved, and more below. */
function layerNorms(T: number, C: number): Case[] {
  const [x, w, b, dout] = [floats(1, T * C), floats(2, C), floats(3, C), floats(4, T * C)];
  const [rows, column, figure] = [4 * T * C, 4 * C, 4 * T];
  return [
    { name: `layer_norm ${T} x ${C}`, kernels: ['norm_kernel<true'], bytes: 2 * rows + 2 * column + 2 * figure, vectors: 2 * column, run: () => layerNorm(x, w, b, { device }) },
    { name: `layer_norm_grad ${T} x ${C}`, kernels: ['norm_grad_kernel', 'add_shares'], bytes: 3 * rows + 3 * column + 2 * figure, vectors: column, sums: ['add_shares'], run: () => layerNormGrad(x, w, b, dout, { device }) },
  ];
}

/** Every other row is routed. */
function routed(n: number, C: number): Case[] {
  const h = floats(1, 2 * n * C);
  const y = floats(2, n * C);
  const [gate, w, step] = [floats(3, n), floats(4, C), floats(5, C)];
  const rows = Int32Array.from({ length: n }, (_, i) => 2 * i + (i % 2));
  const [part, column, figure] = [4 * n * C, 4 * C, 4 * n];
  const size = `${n} x ${C}`;
  return [
    { name: `gather_rms_norm ${size}`, kernels: ['gather_norm'], bytes: 3 * part + column + 2 * figure, vectors: column, run: () => gatherRmsNorm(h, rows, w, { device }) },
    { name: `gather_rms_norm ${size}, step`, kernels: ['gather_norm'], bytes: 3 * part + 2 * column + 2 * figure, vectors: 2 * column, run: () => gatherRmsNorm(h, rows, w, { step, device }) },
    { name: `gated_scatter ${size}`, kernels: ['gated_scatter'], bytes: 3 * part + 3 * figure, run: () => gatedScatter(h, y, gate, rows, { device }) },
    { name: `gated_scatter ${size}, step`, kernels: ['gated_scatter'], bytes: 3 * part + column + 3 * figure, vectors: column, run: () => gatedScatter(h, y, gate, rows, { fusion: 'scaled', step, device }) },
  ];
}

/** The last row of each sequence looks at all its keys but 40. */
function saliency(lengths: readonly number[], heads: number, kvHeads: number): Case {
  const d = 128;
  const cuK = offsets(lengths.map((length) => length + 40));
  const cuColumns = offsets(lengths);
  const columns = Int32Array.from(lengths.flatMap((length) => Array.from({ length }, (_, n) => n + 20)));
  const cuQ = offsets(lengths.map(() => 1));
  const [q, k, lse] = [floats(1, lengths.length * heads * d), floats(2, cuK.at(-1)! * kvHeads * d), floats(3, lengths.length * heads).map((x) => x + 7)];
  return {
    name: `attention_saliency ${lengths.join(', ')} columns, ${heads}/${kvHeads}`, kernels: ['saliency_partial', 'saliency_sum'],
    bytes: 4 * (columns.length * (kvHeads * d + 1 + 2) + q.length + lse.length), run: () => attentionSaliency(q, k, { heads, kvHeads, headDim: d, cuQ, cuK, columns, cuColumns, lse, device }),
  };
}

function attention(lengths: readonly number[], heads: number, kvHeads: number): Case[] {
  const d = 128;
  const cuQ = offsets(lengths);
  const T = cuQ.at(-1)!;
  const [q, k, v, dout] = [bits(1, T * heads * d), bits(2, T * kvHeads * d), bits(3, T * kvHeads * d), bits(4, T * heads * d)];
  const options = { heads, kvHeads, headDim: d, cuQ, cuK: cuQ, dtype: 'bf16', causal: true, device } as const;
  const size = `${lengths.join(', ')}, ${heads}/${kvHeads} bf16`;
  return [
    { name: `ragged_attention ${size}`, kernels: ['ragged_attention_kernel'], bytes: 2 * d * T * 2 * (heads + kvHeads) + 4 * T * heads, run: () => raggedAttention(q, k, v, options) },
    { name: `ragged_attention_grad ${size}`, kernels: ['ragged_attention_grad'], bytes: 2 * d * T * 4 * (heads + kvHeads) + 4 * T * heads, run: () => raggedAttentionGrad(q, k, v, dout, options) },
  ];
}

const CASES: readonly Case[] = [
  ...norms(512, 1536), ...norms(1024, 3584), ...layerNorms(1536, 1280), ...routed(512, 1536), ...routed(1024, 3584),
  saliency([1024, 1024], 12, 2), saliency([2048, 130, 7], 28, 4), ...attention([300, 5, 64], 12, 2), ...attention([130], 28, 4),
];

async function main(): Promise<void> {
  const launches = (): number => native().cudaDevice().launches;
  const done: object[] = [];
  for (const { run, ...known } of CASES) {
    const from = launches();
    await run();
    done.push({ ...known, from, to: launches() });
  }
  process.stdout.write(`${JSON.stringify({ launches: launches(), cases: done })}\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 1;
});
