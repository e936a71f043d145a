/** Whole passes of a small model on a device: what the comparison in check.ts runs on both. */
import type { DeviceName } from '../../lib/kernels';
import type { LatentModel } from '../../lib/latentModel';
import type { AdapterOptions } from '../../lib/model/adapter';
import type { PresetChanges } from '../../lib/model/preset';
import { RAGGED, reasoner } from '../model/reasoner';
import { trainingStep } from '../model/reasoningLoss';

const PRESETS: Readonly<Record<string, PresetChanges>> = {
  plain: { name: 'default', replay: false, routedLayers: [] },
  default: { name: 'default', patches: 3, window: 2 },
  'prefix-topk': { name: 'default', patches: 3, window: 2, rule: 'prefix-topk', alpha: 3, maxDepth: 3 },
  'soft-mix, MLP router': { name: 'default', patches: 3, mode: 'soft-mix', router: 'mlp' },
};

async function withModel<T>(preset: PresetChanges, device: DeviceName, use: (model: LatentModel) => Promise<T>, adapter?: AdapterOptions): Promise<T> {
  const model = await reasoner(preset, { device, ...(adapter === undefined ? {} : { adapter }) });
  try {
    return await use(model);
  } finally {
    model.dispose();
  }
}

/** A step of an adapter with dropout, then the weights that it is folded into. */
async function adapterStep(model: LatentModel): Promise<unknown> {
  for (const [n, { name }] of model.native.parameters().entries()) {
    model.native.setTrainable(name, name.startsWith('lora.'));
    if (name.startsWith('lora.')) await model.native.initialize(name, 'normal', 0.1, n);
  }
  const outcome = await trainingStep(model, model.preset, RAGGED, { dropoutSeed: 5 });
  await model.mergeAdapter();
  return { outcome, merged: await model.native.readParameter('model.layers.1.mlp.up_proj.weight', 'value') };
}

export const steps: Readonly<Record<string, (device: DeviceName) => Promise<unknown>>> = {
  ...Object.fromEntries(Object.entries(PRESETS).flatMap(([name, preset]) => [
    [`training step, ${name}`, (device: DeviceName) => withModel(preset, device, (model) => trainingStep(model, model.preset, RAGGED))],
    [`training step, recomputed, ${name}`, (device: DeviceName) => withModel(preset, device, (model) => trainingStep(model, model.preset, RAGGED, { recompute: true }))],
  ])),
  'training step, adapter': (device) => withModel(PRESETS['default']!, device, adapterStep, { rank: 3, alpha: 4, dropout: 0.3, vision: true }),
};
