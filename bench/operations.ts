/** GEMM, GEMV and attention against what this machine can do, measured in the same run. */
import { native } from '../lib/native';
import { nativeTimes, type BenchRow } from './harness';

export interface Roofs { gflops: number; gigabytesPerSecond: number; rows: BenchRow[] }

const READ_BYTES = 1 << 28; // far beyond the last cache

/** The better of two measurements: a machine that was busy during one does not lower the roof. */
export function higher(a: Roofs, b: Roofs): Roofs {
  return { gflops: Math.max(a.gflops, b.gflops), gigabytesPerSecond: Math.max(a.gigabytesPerSecond, b.gigabytesPerSecond), rows: a.rows.map((row, i) => (row.value >= (b.rows[i] as BenchRow).value ? row : b.rows[i] as BenchRow)) };
}

/** What the machine can do at its best: the fastest multiply-add loop, the fastest tenth of the reads. */
export async function roofs(): Promise<Roofs> {
  const peak = Array.from(await native().bench('fma_peak', [], 20)).sort((a, b) => a - b);
  const gflops = peak.at(-1) as number;
  const read = await nativeTimes('read_bandwidth', [READ_BYTES], 20);
  const gigabytesPerSecond = READ_BYTES / read.p10 / 1e9;
  return {
    gflops, gigabytesPerSecond,
    rows: [
      { name: 'roof: fused multiply-adds', what: 'registers only, all threads, f32', value: gflops, unit: 'GFLOP/s', note: `best of ${peak.length}` },
      { name: 'roof: reading', what: '268 MB, cold, all threads', value: gigabytesPerSecond, unit: 'GB/s', seconds: read, note: 'from p10' },
    ],
  };
}

// Of Qwen2-VL-2B's MLP, and of the demo's model at the rows of one training batch.
const GEMM_SHAPES = [[512, 4096, 1536], [2048, 1536, 1536], [512, 17920, 1536], [3200, 704, 128], [3200, 128, 352], [4096, 192, 64]] as const;

export async function gemmRows({ gflops }: Roofs): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  const addon = native();
  const kinds = addon.buildInfo().gemm.startsWith('onednn') ? (['auto', 'portable', 'onednn'] as const) : (['portable'] as const);
  for (const kind of kinds) {
    addon.setGemm(kind);
    for (const [m, n, k] of GEMM_SHAPES) {
      for (const [name, factor] of [['linear', 2], ['linear_grad', 4]] as const) {
        const seconds = await nativeTimes(name, [m, n, k, 0], 20);
        rows.push({ name: `${name === 'linear' ? 'GEMM' : 'GEMM, both gradients'} (${kind})`, what: `${m} x ${n} x ${k} f32`, value: (factor * m * n * k) / seconds.median / 1e9, unit: 'GFLOP/s', roof: gflops, seconds });
      }
    }
  }
  addon.setGemm('auto');
  return rows;
}

export async function gemvRows({ gigabytesPerSecond }: Roofs): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  for (const [m, n, k, bytes] of [[1, 17920, 1536, 2], [1, 151936, 1536, 2], [1, 17920, 1536, 4], [4, 17920, 1536, 2]] as const) {
    const seconds = await nativeTimes('linear', [m, n, k, bytes === 2 ? 1 : 0], 20);
    rows.push({ name: 'GEMV', what: `${m} row(s), ${n} x ${k} ${bytes === 2 ? 'bf16' : 'f32'}`, value: (n * k * bytes) / seconds.median / 1e9, unit: 'GB/s', roof: gigabytesPerSecond, seconds });
  }
  return rows;
}

export async function attentionRows({ gflops, gigabytesPerSecond }: Roofs): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  for (const [s, heads, kvHeads, d] of [[1024, 12, 2, 128], [2048, 28, 4, 128], [256, 4, 2, 32]] as const) {
    const pairs = (s * (s + 1)) / 2; // causal
    for (const [name, products] of [['attention', 2], ['attention_grad', 5]] as const) { // q k, p v; and again q k, dp, dv, dq, dk
      const seconds = await nativeTimes(name, [s, heads, kvHeads, d, s], 20);
      rows.push({ name: name === 'attention' ? 'attention' : 'attention, backward', what: `${s} rows, ${heads}/${kvHeads} heads of ${d}, causal`, value: (2 * products * pairs * heads * d) / seconds.median / 1e9, unit: 'GFLOP/s', roof: gflops, seconds });
    }
  }
  const [s, heads, kvHeads, d] = [65536, 12, 2, 128];
  const seconds = await nativeTimes('attention', [s, heads, kvHeads, d, 1], 20);
  rows.push({ name: 'attention, one new row', what: `${s} keys, ${heads}/${kvHeads} heads of ${d}`, value: (2 * s * kvHeads * d * 4) / seconds.median / 1e9, unit: 'GB/s', roof: gigabytesPerSecond, seconds });
  return rows;
}
