/**
 * Norms, gather, scatter and saliency against a plain read of as many bytes, measured in turn with them. Cold: every call has inputs and
 * outputs of its own, out of sets of 268 MB in all. Bytes: every input read once and every output written once; that a store to the caches
 * reads its line first is not counted as achieved, so where lines must be fetched to be written the work done is up to half as much again.
 */
import { native } from '../lib/native';
import { timing, type BenchRow } from './harness';

const REPEATS = 40;
const SHAPES = [[64, 1536], [512, 1536], [4096, 3584]] as const;
const TYPES = ['f32', 'f16', 'bf16'] as const;

async function kernelRow(name: string, kernel: string, what: string, sizes: readonly number[], bytes: number): Promise<BenchRow> {
  const times = await native().bench(kernel, sizes, REPEATS);
  const own = times.subarray(0, REPEATS), reading = times.subarray(REPEATS);
  const seconds = timing(own), read = timing(reading);
  const ratio = timing(own.map((second, i) => (reading[i] as number) / second));
  return {
    name, what: `${what}, cold`, value: bytes / seconds.median / 1e9, unit: 'GB/s', roof: bytes / read.median / 1e9, ownRoof: true, seconds,
    note: `in pairs ${(100 * ratio.median).toFixed(0)} % (p10 ${(100 * ratio.p10).toFixed(0)}, p90 ${(100 * ratio.p90).toFixed(0)})`,
  };
}

export async function kernelRows(): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  for (const [T, C] of SHAPES) {
    const size = T * C, what = `${T} x ${C}`;
    rows.push(await kernelRow('rms_norm', 'rms_norm', what, [T, C], 8 * size));
    rows.push(await kernelRow('layer_norm', 'layer_norm', what, [T, C], 8 * size));
    rows.push(await kernelRow('rms_norm_grad', 'rms_norm_grad', what, [T, C, 0], 12 * size));
    rows.push(await kernelRow('rms_norm_grad with dx_norm', 'rms_norm_grad', what, [T, C, 1], 12 * size));
    for (const [code, dtype] of TYPES.entries()) {
      const bytes = (dtype === 'f32' ? 4 : 2) * size;
      rows.push(await kernelRow('grad_norm', 'grad_norm', `${what} ${dtype}`, [T, C, code, 0], bytes));
      rows.push(await kernelRow('grad_norm with statistics', 'grad_norm', `${what} ${dtype}`, [T, C, code, 1], bytes));
      rows.push(await kernelRow('sum_squares', 'sum_squares', `${what} ${dtype}`, [T, C, code], bytes));
    }
    const all = T > 2048 ? 2 * T : 4 * T;
    rows.push(await kernelRow('gather_rms_norm', 'gather_rms_norm', `${T} of ${all} rows of ${C}`, [all, T, C], 12 * size));
    rows.push(await kernelRow('gated_scatter', 'gated_scatter', `${T} of ${all} rows of ${C}`, [all, T, C], 12 * size));
  }
  for (const [keys, heads, kvHeads, columns] of [[256, 12, 2, 192], [1024, 12, 2, 960], [4096, 28, 4, 3840]] as const)
    rows.push(await kernelRow('attention_saliency', 'attention_saliency', `${columns} of ${keys} keys, ${heads}/${kvHeads} heads of 128`, [keys, heads, kvHeads, 128, columns], columns * kvHeads * 128 * 4));
  return rows;
}
