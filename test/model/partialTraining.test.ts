/** Any set of parameters can be trained alone: the same gradients as when all are, and the optimiser moves no other. */
import { newConfig } from '../../lib/model/config';
import { LatentModel } from '../../lib/latentModel';
import { PLAIN } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import { runBatch } from '../../lib/train/batch';
import { END, IMAGE, noise, tinyModel } from '../train/tinyModel';

const SETS: Readonly<Record<string, RegExp>> = {
  'q of q, k, v': /q_proj\.weight$/, 'v of q, k, v': /v_proj\.weight$/, 'one bias of three': /k_proj\.bias$/, 'up of gate and up': /up_proj/, 'biases of layers': /(up_proj|fc1|down_proj|attn\.proj|mlp\.0)\.bias$/,
  norms: /norm|ln_q/, 'the vision tower': /^visual\./, 'patch embedding': /patch_embed/, 'the table': /embed_tokens/, nothing: /^$/,
};

async function small(kind: 'qwen2_vl' | 'qwen2_5_vl', dtype: 'f32' | 'bf16'): Promise<LatentModel> {
  if (kind === 'qwen2_vl') return tinyModel({ initializerRange: 0.2, dtype });
  return LatentModel.create(newConfig({
    kind, text: { hidden: 32, layers: 2, heads: 4, kvHeads: 2, intermediate: 48, vocab: 48, mropeSection: [2, 1, 1], ropeTheta: 1000 },
    vision: { depth: 2, width: 16, heads: 2, mlpWidth: 24, windowSize: 56, fullAttentionBlocks: [1] },
    tokens: { image: IMAGE, video: 41, visionStart: 42, visionEnd: 43, eos: END, pad: 45 }, initializerRange: 0.2,
  }), { seed: 1, dtype });
}

/** Gradients of the trainable parameters. */
async function gradients(model: LatentModel, wanted: RegExp): Promise<Map<string, Float32Array>> {
  for (const { name } of model.native.parameters()) model.native.setTrainable(name, wanted.test(name));
  await model.native.enableTraining();
  await model.native.zeroGradients();
  const session = openReasoning('test', model, PLAIN, { training: true, recompute: false, visionGradient: true });
  try {
    const input = { promptIds: [1, 42, IMAGE, IMAGE, 43, 7], pictures: [{ pixels: noise(3, 28 * 56 * 3), frames: 1, height: 28, width: 56 }], latents: 2, words: [5, 6, END] };
    const { targets: { pass, row, target } } = await runBatch(session, [input], model.geometry);
    await session.loss({ pass, row, target, scale: 1 });
    await session.backward(0);
  } finally {
    session.dispose();
  }
  const found = new Map<string, Float32Array>();
  for (const { name, trainable } of model.native.parameters()) if (trainable) found.set(name, await model.native.readParameter(name, 'gradient'));
  return found;
}

async function values(model: LatentModel): Promise<Map<string, Float32Array>> {
  const found = new Map<string, Float32Array>();
  for (const { name } of model.native.parameters()) found.set(name, await model.native.readParameter(name, 'value'));
  return found;
}

test.each([['qwen2_vl', 'f32'], ['qwen2_vl', 'bf16'], ['qwen2_5_vl', 'f32'], ['qwen2_5_vl', 'bf16']] as const)('%s, %s', async (kind, dtype) => {
  const model = await small(kind, dtype);
  try {
    const all = await gradients(model, /./);
    expect(all.size).toBe(model.native.parameters().length);
    const before = await values(model);
    for (const [what, wanted] of Object.entries(SETS)) {
      const some = await gradients(model, wanted);
      expect([what, some.size > 0]).toEqual([what, what !== 'nothing']);
      for (const [name, gradient] of some) expect([what, name, gradient]).toEqual([what, name, all.get(name)]);
      await model.native.optimizerStep({ learningRate: 1e-2, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1, maxNorm: 1, step: 1 });
      for (const [name, value] of await values(model)) {
        const same = value.every((x, i) => x === before.get(name)![i]);
        expect([what, name, same]).toEqual([what, name, !some.has(name)]);
        if (!same) await model.native.writeParameter(name, 'value', before.get(name)!);
      }
    }
  } finally {
    model.dispose();
  }
});
