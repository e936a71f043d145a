/** Training samples and held-out questions of the demo. */
import { encodeDigitGrid, readingShareAt, sampleAt, type DigitGridOptions, type DigitGridSample } from '../data';
import { endsWithAnswer, type EvaluationItem } from '../evaluate';
import { mergeSteps } from '../train/curriculum';
import type { SampleContext, TrainingSample } from '../train/trainOptions';
import type { DemoSize } from './demoSizes';

/** Name of the stage whose pictures show one digit four times. */
export const DIGITS = 'digits';
/** Name of the stage in which the share of reading questions falls. */
export const WARMUP = 'reading';

function encoded(sample: DigitGridSample, maxSteps: number): TrainingSample {
  const { promptIds, stepIds, answerIds } = encodeDigitGrid(sample);
  return { promptIds, pictures: [{ ...sample.picture, frames: 1 }], steps: mergeSteps(stepIds, maxSteps), answer: answerIds };
}

/** Endless: sample i is computed from the seed and i. */
export function demoTrainingData(size: DemoSize, seed: number): { at(index: number, context: SampleContext): TrainingSample } {
  return {
    at(index, { stage, stageStep }) {
      if (stage.name === DIGITS) {
        return encoded(sampleAt({ ...size.task, rows: 2, columns: 2, seed, split: 'train', readingShare: 1, readingKinds: { readSame: 1 } }, index), size.maxSteps);
      }
      const readingShare = stage.name === WARMUP ? readingShareAt(stageStep / stage.steps, 1, size.readingShare) : size.readingShare;
      return encoded(sampleAt({ ...size.task, seed, split: 'train', readingShare }, index), size.maxSteps);
    },
  };
}

export interface HeldOut {
  items: EvaluationItem[];
  samples: DigitGridSample[];
}

/** Questions on digits that training never shows. `readingShare` 0: reasoning questions only; 1: reading only. */
export function heldOut(size: DemoSize, seed: number, count: number, readingShare: 0 | 1): HeldOut {
  const options = heldOutOptions(size, seed, readingShare);
  const samples = Array.from({ length: count }, (_, index) => sampleAt(options, index));
  const items = samples.map((sample): EvaluationItem => {
    const { promptIds, pictures, answer } = encoded(sample, size.maxSteps);
    return { promptIds, pictures, kind: sample.questionKind, isRight: ({ ids }) => endsWithAnswer(ids, answer) };
  });
  return { items, samples };
}

export function heldOutOptions(size: DemoSize, seed: number, readingShare: 0 | 1): Partial<DigitGridOptions> {
  return { ...size.task, seed, split: 'test', readingShare };
}
