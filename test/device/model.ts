/** Whole passes of a small model on a device: what the comparison in check.ts runs on both. */
import type { DeviceName } from '../../lib/kernels';
import type { LatentModel } from '../../lib/latentModel';
import type { PresetChanges } from '../../lib/model/preset';
import { RAGGED, reasoner } from '../model/reasoner';
import { trainingStep } from '../model/reasoningLoss';

const PRESETS: Readonly<Record<string, PresetChanges>> = {
  plain: { name: 'default', replay: false, routedLayers: [] },
  default: { name: 'default', patches: 3, window: 2 },
  'prefix-topk': { name: 'default', patches: 3, window: 2, rule: 'prefix-topk', alpha: 3, maxDepth: 3 },
  'soft-mix, MLP router': { name: 'default', patches: 3, mode: 'soft-mix', router: 'mlp' },
};

async function withModel<T>(preset: PresetChanges, device: DeviceName, use: (model: LatentModel) => Promise<T>): Promise<T> {
  const model = await reasoner(preset, { device });
  try {
    return await use(model);
  } finally {
    model.dispose();
  }
}

export const steps: Readonly<Record<string, (device: DeviceName) => Promise<unknown>>> = Object.fromEntries(Object.entries(PRESETS).flatMap(([name, preset]) => [
  [`training step, ${name}`, (device: DeviceName) => withModel(preset, device, (model) => trainingStep(model, model.preset, RAGGED))],
  [`training step, recomputed, ${name}`, (device: DeviceName) => withModel(preset, device, (model) => trainingStep(model, model.preset, RAGGED, { recompute: true }))],
]));
