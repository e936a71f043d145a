/** bf16 weights: the error against the float64 golden, beside that of transformers in bf16 (test/fixtures/bf16_reference.py). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { formOf, openReasoning } from '../../lib/model/reasoning';
import { runBatch } from '../../lib/train/batch';
import { presetOf, sequencesOf } from './cases';
import { Golden, readManifest } from './goldens';

const FIXTURES = join(__dirname, '..', 'fixtures');
const VARIANT = join(FIXTURES, 'tiny-qwen2-bf16');
interface Measured { rms: number; rmsError: number }
const reference = JSON.parse(readFileSync(join(VARIANT, 'bf16_reference.json'), 'utf8')) as { sequences: { hidden: Measured; logits: Measured }[] };

function rmsOf(values: ArrayLike<number>): number {
  return Math.sqrt(Array.from(values).reduce((sum, value) => sum + value * value, 0) / values.length);
}

function rmsError(got: ArrayLike<number>, want: Float32Array): number {
  expect(got.length).toBe(want.length);
  return rmsOf(Array.from(want, (value, i) => got[i]! - value));
}

test('bf16 weights are at most twice as far from the float64 oracle as transformers in bf16', async () => {
  const golden = new Golden(readManifest(FIXTURES).variants['tiny-qwen2-bf16']!.files['plain']!, join(VARIANT, 'plain.safetensors'));
  using model = await LatentModel.load(join(VARIANT, 'checkpoint'));
  expect(model.dtype).toBe('bf16');
  const preset = presetOf(golden.entry.preset as Record<string, unknown>, model.geometry.layers);
  const sequences = sequencesOf(golden);
  expect(formOf(preset)).toBe('cached');
  expect(sequences).toHaveLength(reference.sequences.length);
  const session = openReasoning('parity', model, preset, { training: false, recompute: false, visionGradient: false });
  try {
    const run = await runBatch(session, sequences, model.geometry, {
      preset, feedLastWord: true, adjust: (pass) => ({ ...pass, logitRows: Int32Array.from(pass.kind.keys()), hiddenRows: Int32Array.from(pass.kind.keys()) }),
    });
    expect(run.results).toHaveLength(1); // no latents: one pass has all rows
    const { logits, hidden } = run.results[0]!;
    const { vocab, hidden: width } = model.geometry;
    let first = 0;
    for (const [n, { promptIds, words }] of sequences.entries()) {
      const end = first + promptIds.length + words.length;
      const predicting = first + promptIds.length - 1;
      const got = { hidden: hidden.subarray(first * width, end * width), logits: logits.subarray(predicting * vocab, (predicting + words.length) * vocab) };
      for (const name of ['hidden', 'logits'] as const) {
        const want = golden.f32(`out.s${n}.${name}`);
        const theirs = reference.sequences[n]![name];
        expect(rmsOf(want)).toBeCloseTo(theirs.rms, 5);                     // the reference was measured on this very golden
        expect(theirs.rmsError / theirs.rms).toBeGreaterThan(2 ** -9);      // and in bf16, whose unit roundoff this is
        const error = rmsError(got[name], want);
        expect(error).toBeGreaterThan(0);
        expect(error).toBeLessThanOrEqual(2 * theirs.rmsError);
      }
      first = end;
    }
  } finally {
    session.dispose();
  }
});
