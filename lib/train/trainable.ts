/** Which parameters a training changes. */
import { guarded } from '../errors';
import { extraShapes } from '../model/extras';
import { isBackbone } from '../model/parameterShapes';
import type { Preset } from '../model/preset';
import type { NativeModel } from '../native';

export interface TrainableChoice {
  /** The vision tower too. */
  trainVision: boolean;
  /** The preset that is trained with. */
  preset: Preset;
}

/**
 * Sets what the optimiser changes: the decoder always; the vision tower when asked; of the parameters beside the backbone those that
 * the preset uses, but never a threshold, which follows the scores instead. What is frozen gets no weight decay either.
 */
export function chooseTrainable(model: NativeModel, { trainVision, preset }: TrainableChoice): void {
  const used = new Set(extraShapes(preset, 1).map(({ name }) => name));   // names do not depend on the width
  guarded(() => {
    for (const { name } of model.parameters()) {
      if (name.startsWith('visual.')) model.setTrainable(name, trainVision);
      else if (!isBackbone(name)) model.setTrainable(name, used.has(name) && !name.endsWith('.threshold'));
    }
  });
}
