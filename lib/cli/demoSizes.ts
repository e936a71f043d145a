/** What `plumbline demo` trains: sizes of the model, the pictures and the training. Step counts are fixed, so that a seed gives the same run. */
import type { DigitGridOptions } from '../data';
import type { NewModelConfig } from '../model/config';
import { DIGIT_GRID_TOKENS, DIGIT_GRID_VOCABULARY } from '../data';

export interface DemoSize {
  /** Pictures and questions; seed and split are the demo's. */
  task: Pick<DigitGridOptions, 'rows' | 'columns' | 'kinds' | 'readingKinds'>;
  text: Omit<NewModelConfig['text'], 'vocab'>;
  vision: NewModelConfig['vision'];
  /** Standard deviation of new weights. */
  initializerRange: number;
  batchSize: number;
  learningRate: number;
  beta2: number;
  /** Optimiser steps on 2 x 2 pictures of one digit each: features of digits, before attention has to find a place. */
  digitSteps: number;
  /** Optimiser steps in which the share of reading questions falls from 1 to `readingShare`. */
  warmupSteps: number;
  readingShare: number;
  /** Optimiser steps of reasoning in words. */
  explicitSteps: number;
  /** Reasoning steps are merged to at most so many groups; there are as many latent stages. */
  maxSteps: number;
  latentsPerStep: number;
  /** Optimiser steps of each latent stage but the last. */
  stageSteps: number;
  /** Optimiser steps of the last stage, which has no words but the answer. */
  lastStageSteps: number;
  latentRate: number;
  /** Image tokens replayed before each latent; a picture that has no more of them replays what is left. */
  patches: number;
  /** Side of the window of spatial coherence, in cells. */
  window: number;
  /** Held-out questions. */
  questions: number;
  /** Minutes on two cores that the step counts were chosen for. */
  minutes: number;
}

export type SizeName = 'small' | 'medium' | 'large';

// ropeTheta: M-RoPE gives the columns the lowest frequencies. With 16 pairs and the usual 1e4, neighbouring columns differ by 0.003
// radians at most and no small model learns to tell them apart; with 10 by 0.12 to 0.24 (sight within 500 steps instead of none in 900).
const SMALL: DemoSize = {
  task: {
    rows: 3, columns: 3, kinds: { sum: 1, alternating: 1, difference: 1, path: 1, follow: 1 }, readingKinds: { readCell: 2, readLine: 1, readGrid: 1 },
  },
  text: { hidden: 128, layers: 4, heads: 4, kvHeads: 2, intermediate: 352, mropeSection: [4, 6, 6], ropeTheta: 10 },
  vision: { depth: 2, width: 64, heads: 4, mlpWidth: 256 },
  initializerRange: 0.06, batchSize: 32, learningRate: 1.5e-3, beta2: 0.99, digitSteps: 100, warmupSteps: 450, readingShare: 0.2, explicitSteps: 1450,
  maxSteps: 3, latentsPerStep: 1, stageSteps: 300, lastStageSteps: 900, latentRate: 1e-3, patches: 2, window: 2, questions: 1000, minutes: 20,
};

const MEDIUM: DemoSize = {
  ...SMALL,
  task: { ...SMALL.task, rows: [3, 6], columns: [3, 6] },
  text: { ...SMALL.text, hidden: 256, layers: 6, heads: 8, kvHeads: 2, intermediate: 704 },
  vision: { depth: 3, width: 128, heads: 4, mlpWidth: 512 },
  batchSize: 64, learningRate: 1e-3, digitSteps: 200, warmupSteps: 1200, explicitSteps: 5000, stageSteps: 800, lastStageSteps: 2400, patches: 4, window: 3, questions: 2000, minutes: 480,
};

const LARGE: DemoSize = {
  ...MEDIUM,
  task: { ...SMALL.task, rows: [3, 10], columns: [3, 10] },
  text: { ...SMALL.text, hidden: 512, layers: 8, heads: 8, kvHeads: 2, intermediate: 1408, mropeSection: [8, 12, 12] },
  vision: { depth: 4, width: 192, heads: 6, mlpWidth: 768 },
  learningRate: 6e-4, initializerRange: 0.03, warmupSteps: 2000, explicitSteps: 12_000, stageSteps: 2000, lastStageSteps: 6000, latentRate: 3e-4, patches: 8, window: 3, minutes: 5300,
};

export const DEMO_SIZES: Readonly<Record<SizeName, DemoSize>> = Object.freeze({ small: SMALL, medium: MEDIUM, large: LARGE });

/** Step counts stretched or shrunk to another number of minutes: fixed for given minutes, whatever the machine. */
export function scaledTo(size: DemoSize, minutes: number): DemoSize {
  const scale = (steps: number): number => Math.max(1, Math.round((steps * minutes) / size.minutes));
  return {
    ...size, minutes, digitSteps: scale(size.digitSteps), warmupSteps: scale(size.warmupSteps), explicitSteps: scale(size.explicitSteps),
    stageSteps: scale(size.stageSteps), lastStageSteps: scale(size.lastStageSteps),
  };
}

export function demoConfig(size: DemoSize): NewModelConfig {
  const t = DIGIT_GRID_TOKENS;
  return {
    text: { ...size.text, vocab: DIGIT_GRID_VOCABULARY, tied: true },
    vision: size.vision, initializerRange: size.initializerRange,
    tokens: { image: t.imagePad, video: t.videoPad, visionStart: t.visionStart, visionEnd: t.visionEnd, eos: t.imEnd, pad: t.endOfText },
  };
}
