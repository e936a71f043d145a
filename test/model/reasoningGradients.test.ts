/** Gradients of everything at once: cross entropy, super-resolution and router penalty, through replay, routing and latents. */
import type { LatentModel } from '../../lib/latentModel';
import { makePreset, PRESETS, type Preset, type PresetChanges } from '../../lib/model/preset';
import { mix } from '../../lib/random';
import { RAGGED, reasoner, settleThresholds, traces } from './reasoner';
import { bytesOf, trainingStep, type StepOutcome } from './reasoningLoss';

const models: LatentModel[] = [];
afterAll(() => {
  for (const model of models) model.dispose();
});

async function made(changes: PresetChanges, margin = 1e-3): Promise<{ model: LatentModel; preset: Preset }> {
  const model = await reasoner({ patches: 3, window: 2, alpha: 3, ...changes });
  models.push(model);
  await model.native.enableTraining();
  await settleThresholds(model, () => traces(model, RAGGED), margin);
  return { model, preset: model.preset };
}
const changed = (preset: Preset, changes: PresetChanges): Preset => makePreset(changes, 4, preset);

/** Bits of all gradients that differ, by name. */
function differing(a: StepOutcome, b: StepOutcome): string[] {
  return [...a.gradients.keys()].filter((name) => Buffer.compare(bytesOf(a.gradients.get(name)!), bytesOf(b.gradients.get(name)!)) !== 0);
}

const CACHED: PresetChanges = { maxDepth: 3, routerPenalty: 0.1, srWeight: 0.5 };
const OFFICIAL: PresetChanges = { ...PRESETS.official, grid: null, maxDepth: 3, routerPenalty: 0.1, patches: 3, alpha: 4, routedLayers: [1, 3] };

describe.each<[string, PresetChanges]>([['cached', CACHED], ['prefix-topk, mlp, raw, scaled', { ...CACHED, rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'scaled' }], ["form 'recompute'", OFFICIAL]])('%s', (_, changes) => {
  let model: LatentModel;
  let preset: Preset;
  beforeAll(async () => { ({ model, preset } = await made(changes)); });

  test('checkpointed activations give the same bits; so does a second run', async () => {
    const kept = await trainingStep(model, preset, RAGGED);
    for (const settings of [{ recompute: true }, {}]) {
      const again = await trainingStep(model, preset, RAGGED, settings);
      expect([again.crossEntropy, again.superResolution, again.squares]).toEqual([kept.crossEntropy, kept.superResolution, kept.squares]);
      expect(differing(kept, again)).toEqual([]);
    }
    expect(kept.choices).toMatch(/\[3,3,\[+\d/);   // rows took a third pass through layer 3
    for (const [name, gradient] of kept.gradients) expect([name, gradient.every(Number.isFinite)]).toEqual([name, true]);
    for (const name of [...kept.gradients.keys()].filter((key) => /^(router|step|token_sr)/.test(key) && !key.endsWith('threshold'))) {
      expect([name, kept.gradients.get(name)!.some((value) => value !== 0)]).toEqual([name, true]);
    }
  });
  test('saliency that is detached changes gradients of attention, and no loss', async () => {
    const [through, detached] = [await trainingStep(model, changed(preset, { saliencyGradient: 'through' }), RAGGED), await trainingStep(model, changed(preset, { saliencyGradient: 'detached' }), RAGGED)];
    expect(detached.total).toBe(through.total);
    for (const layer of [0, 3]) expect(differing(through, detached)).toEqual(expect.arrayContaining([`model.layers.${layer}.self_attn.q_proj.weight`, `model.layers.${layer}.self_attn.k_proj.weight`]));
  });
  test('latents that are detached change gradients, and no loss', async () => {
    const [through, detached] = [await trainingStep(model, changed(preset, { latentGradient: 'through' }), RAGGED), await trainingStep(model, changed(preset, { latentGradient: 'detached' }), RAGGED)];
    expect(detached.total).toBe(through.total);
    expect(differing(through, detached)).toEqual(expect.arrayContaining(['model.layers.0.mlp.down_proj.weight', 'model.embed_tokens.weight', 'model.norm.weight']));
  });
  test('the penalty pulls scores to zero, in proportion to its weight', async () => {
    const of = async (routerPenalty: number): Promise<Float32Array> => (await trainingStep(model, changed(preset, { routerPenalty }), RAGGED)).gradients.get(preset.router === 'mlp' ? 'router.3.2.bias' : 'router.3.bias')!;
    const [none, one, two] = [await of(0), await of(10), await of(20)];
    expect(Math.abs(one[0]! - none[0]!)).toBeGreaterThan(1e-3);
    expect((two[0]! - none[0]!) / (one[0]! - none[0]!)).toBeCloseTo(2, 3);
  });
});

/** Few, so that choices are far apart. */
const SOME = RAGGED.slice(0, 3);

/** A direction of length 1: half the gradient's own, half noise that shows what the gradient leaves out. */
function direction(gradient: Float32Array, seed: number): Float64Array {
  if (gradient.length === 1) return Float64Array.of(1);
  const norm = Math.hypot(...gradient);
  const noise = Float64Array.from(gradient, (_, i) => mix(seed, i) / 2 ** 31 - 1);
  const length = Math.hypot(...noise);
  const mixed = Float64Array.from(gradient, (value, i) => (norm > 0 ? value / norm : 0) + noise[i]! / length);
  const all = Math.hypot(...mixed);
  return mixed.map((value) => value / all);
}

/**
 * Central differences against the gradient, at two steps and extrapolated to none (Richardson), so that what is left of a slope's error
 * is of fifth order. The loss is about 4 in sums of f32, whose rounding is below 1e-6; the extrapolation has it (8 + 1) / 3 times
 * over a step. The step is the largest of a falling list that flips no choice: the loss jumps where another token is replayed or
 * routed. Besides, 1 % of the slope is allowed for the kinks of ReLU.
 */
async function expectSlope(model: LatentModel, preset: Preset, base: StepOutcome, name: string): Promise<void> {
  const gradient = base.gradients.get(name)!;
  const value = await model.native.readParameter(name, 'value');
  const along = direction(gradient, 7);
  const expected = gradient.reduce((sum, one, i) => sum + one * along[i]!, 0);
  const slopeAt = async (step: number): Promise<number> => {
    const totals: number[] = [];
    for (const by of [step, -step]) {
      await model.native.writeParameter(name, 'value', value.map((one, i) => one + by * along[i]!));
      const { total, choices } = await trainingStep(model, preset, SOME, { lossOnly: true });
      totals.push(choices === base.choices ? total : NaN);
    }
    return (totals[0]! - totals[1]!) / (2 * step);
  };
  try {
    for (const step of [0.02, 0.006, 0.002, 0.0006, 0.0002]) {
      const [far, near] = [await slopeAt(step), await slopeAt(step / 2)];
      if (Number.isNaN(far) || Number.isNaN(near)) continue;
      const slope = (4 * near - far) / 3;
      const allowed = 0.01 * Math.abs(expected) + (3 * 1e-6) / step;
      if (!(Math.abs(slope - expected) <= allowed)) throw new Error(`${name}: slopes ${far}, ${near}, ${slope}, gradient ${expected}, step ${step}, allowed ${allowed}`);
      expect(Math.abs(expected)).toBeGreaterThan(allowed);   // more than nothing was compared
      return;
    }
    throw new Error(`${name}: every step flips a choice`);
  } finally {
    await model.native.writeParameter(name, 'value', value);
  }
}
const BACKBONE = ['model.embed_tokens.weight', 'model.norm.weight', 'model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight', 'model.layers.1.self_attn.k_proj.weight',
  'model.layers.1.self_attn.v_proj.bias', 'model.layers.3.self_attn.k_proj.weight', 'model.layers.1.mlp.gate_proj.weight', 'model.layers.3.mlp.down_proj.weight', 'model.layers.1.input_layernorm.weight',
  'model.layers.2.self_attn.o_proj.weight', 'visual.merger.mlp.2.weight', 'visual.blocks.0.attn.qkv.weight', 'visual.patch_embed.proj.weight'];
const SUPER = ['token_sr.0.weight', 'token_sr.0.bias', 'token_sr.2.weight', 'token_sr.2.bias'];
const LINEAR = ['router.1.weight', 'router.3.weight', 'router.3.bias'];
const MLP = ['router.1.0.weight', 'router.1.0.bias', 'router.3.2.weight', 'router.3.2.bias'];

// Gradient flows into the target here: without it the loss moves with the vision tower in a way that the gradient leaves out on purpose.
const SLOPES: readonly [string, PresetChanges, string[]][] = [
  ['default', { ...CACHED, targetGradient: true, routerPenalty: 1 }, [...BACKBONE, ...SUPER, ...LINEAR, 'step.2', 'step.3']],
  ['prefix-topk, mlp, raw, scaled', { ...CACHED, rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'scaled', weights: 'softmax', srAdded: false, targetGradient: true, routerPenalty: 1 }, [...BACKBONE, ...SUPER, ...MLP, 'step.2', 'step.3']],
  ['soft-mix, plain fusion, last step', { ...CACHED, mode: 'soft-mix', fusion: 'plain', srSteps: 'last', targetGradient: true, routerPenalty: 1 }, [...BACKBONE.slice(2, 6), ...SUPER.slice(2), ...LINEAR]],
  ["form 'recompute', latents through", { ...OFFICIAL, latentGradient: 'through', routerPenalty: 1 }, [...BACKBONE, ...SUPER, ...LINEAR]],
];
describe.each(SLOPES)('central differences: %s', (_, changes, names) => {
  let model: LatentModel;
  let preset: Preset;
  let base: StepOutcome;
  beforeAll(async () => {
    ({ model, preset } = await made({ ...changes, alpha: 2 }, changes.router === 'mlp' ? 1e-3 : 3e-3));
    base = await trainingStep(model, preset, SOME);
  });
  test.each(names)('%s', (name) => expectSlope(model, preset, base, name));
  test('thresholds have none', () => {
    for (const [name, gradient] of base.gradients) if (name.endsWith('.threshold')) expect(gradient.every((value) => value === 0)).toBe(true);
  });
});
