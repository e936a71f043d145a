/**
 * Gradients of an adapter against goldens: with W0 = W - s B A below it, the model is the golden's, and dA = s B^T dW, dB = s dW A^T
 * follow from the golden's dW.
 */
import { LatentModel } from '../../lib/latentModel';
import { adapterNames, type AdaptedLayer } from '../../lib/model/adapter';
import { addGradients } from './cases';
import type { Golden, Report } from './goldens';

const RANK = 3;

/** Draws A and B, and takes s B A out of the weights. */
async function insert({ native }: LatentModel, { target, scale, rank, out, in: fanIn }: AdaptedLayer, seed: number): Promise<{ a: Float32Array; b: Float32Array }> {
  const names = adapterNames(target);
  await native.initialize(names.a, 'normal', 1 / Math.sqrt(fanIn), seed);
  await native.initialize(names.b, 'normal', 0.1, seed);
  const [a, b, w] = await Promise.all([native.readParameter(names.a, 'value'), native.readParameter(names.b, 'value'), native.readParameter(`${target}.weight`, 'value')]);
  for (let i = 0; i < out; i++) {
    for (let j = 0; j < fanIn; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += b[i * rank + k]! * a[k * fanIn + j]!;
      w[i * fanIn + j] = w[i * fanIn + j]! - scale * sum;
    }
  }
  await native.writeParameter(`${target}.weight`, 'value', w);
  return { a, b };
}

/** Worst error of `got` [rows, columns] as a share of the tolerance of each row. */
function worst(got: Float32Array, columns: number, want: (row: number, column: number) => number, tolerance: (row: number, column: number) => number): number {
  return got.reduce((most, value, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    return Math.max(most, Math.abs(value - want(row, column)) / tolerance(row, column));
  }, 0);
}

/** Compares the gradients of both matrices of every layer whose weight has a golden gradient. */
export async function runLora(report: Report, checkpoint: string, golden: Golden, recompute: boolean): Promise<void> {
  const model = await LatentModel.load(checkpoint, { dtype: 'f32', adapter: { rank: RANK, alpha: 2, vision: true } });
  try {
    const { native } = model;
    const { layers } = model.adapter!;
    const drawn = new Map<string, { a: Float32Array; b: Float32Array }>();
    for (const [n, layer] of layers.entries()) drawn.set(layer.target, await insert(model, layer, n));
    for (const { name } of native.parameters()) native.setTrainable(name, name.startsWith('lora.'));
    await native.enableTraining();
    await addGradients(golden, model, recompute);
    for (const { target, scale, rank, out, in: fanIn } of layers) {
      const key = `out.grad.${target}.weight`;
      if (!golden.has(key)) continue;
      const [dw, { max = 0, err32 = 0 }] = [golden.f32(key), golden.entry.tensors[key]!];
      const { a, b } = drawn.get(target)!;
      const names = adapterNames(target);
      const sum = (count: number, term: (i: number) => number): number => {
        let total = 0;
        for (let i = 0; i < count; i++) total += term(i);
        return total;
      };
      const each = 8 * err32 + 2e-6 * max + 1e-8;   // of an element of dW: each product adds its part of it
      report.add(`grad.${names.a}`, worst(await native.readParameter(names.a, 'gradient'), fanIn,
        (k, j) => scale * sum(out, (i) => b[i * rank + k]! * dw[i * fanIn + j]!), (k) => scale * each * sum(out, (i) => Math.abs(b[i * rank + k]!))));
      report.add(`grad.${names.b}`, worst(await native.readParameter(names.b, 'gradient'), rank,
        (i, k) => scale * sum(fanIn, (j) => dw[i * fanIn + j]! * a[k * fanIn + j]!), (_, k) => scale * each * sum(fanIn, (j) => Math.abs(a[k * fanIn + j]!))));
    }
  } finally {
    model.dispose();
  }
}
