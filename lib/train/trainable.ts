/** Which parameters a training changes. */
import { guarded } from '../errors';
import { isAdapter } from '../model/adapter';
import { extraShapes } from '../model/extras';
import { isBackbone } from '../model/parameterShapes';
import type { Preset } from '../model/preset';
import type { NativeModel } from '../native';

export interface TrainableChoice {
  /** The vision tower too. */
  trainVision: boolean;
  /** The preset that is trained with. */
  preset: Preset;
  /** The model has an adapter, which is trained instead of the weights below it. */
  adapted?: boolean;
}

/**
 * Sets what the optimiser changes: the decoder, or instead its adapter; the vision tower when asked; of the parameters beside the backbone those that
 * the preset uses, but never a threshold, which follows the scores instead. What is frozen gets no weight decay either.
 */
export function chooseTrainable(model: NativeModel, { trainVision, preset, adapted = false }: TrainableChoice): void {
  const used = new Set(extraShapes(preset, 1).map(({ name }) => name));   // names do not depend on the width
  guarded(() => {
    for (const { name } of model.parameters()) {
      if (isAdapter(name)) model.setTrainable(name, true);
      else if (name.startsWith('visual.')) model.setTrainable(name, trainVision);
      else if (isBackbone(name) && adapted) model.setTrainable(name, false);
      else if (!isBackbone(name)) model.setTrainable(name, used.has(name) && !name.endsWith('.threshold'));
    }
  });
}
