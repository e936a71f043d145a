/** Stages of a training as its file says them: one by one, or as a curriculum that makes them. */
import { fail } from '../errors';
import { MAX_LATENTS } from '../model/record';
import type { StageShape, TrainingStage } from '../train';
import type { ConfigReader } from './configReader';

const SHAPE = ['stage', 'stepsPerLatent', 'latentsPerStep', 'padLatents', 'lastStage'] as const satisfies (keyof StageShape)[];
const RATES = ['learningRate', 'warmupSteps', 'finalRate', 'resetOptimizer', 'earlierProbability'];
const STAGE = ['name', ...SHAPE, 'steps', 'epochs', ...RATES];
const CURRICULUM = ['latentStages', 'stepsPerLatent', 'latentsPerStep', 'padLatents', 'wordSteps', 'wordEpochs', 'steps', 'epochs', 'lastSteps', 'lastEpochs', ...RATES];

/** Optimiser steps of a stage, and what else counts them. */
export const MAX_STEPS = 2 ** 31;
/** Stages of a curriculum: each trains with one unit of steps more in latents. */
const MAX_STAGES = 1000;
const MAX_EPOCHS = 1e6;

/** `stages`: a list of stages with their shapes flat beside the rest. */
export function readStages(top: ConfigReader): TrainingStage[] {
  const stages = top.children('stages', STAGE);
  if (stages.length === 0) fail('ERR_ARGUMENT', 'train', `Expected ${top.name('stages')} to have at least one stage but received none; add one, as { steps: 100, learningRate: 1.0e-4 }`);
  return stages.map((stage, n) => {
    const number = stage.integer('stage', 0, 0, MAX_STAGES);
    return {
      name: stage.string('name', stage.boolean('lastStage', false) ? 'answers' : number === 0 ? 'words' : `latents ${number}`),
      shape: {
        stage: number, stepsPerLatent: stage.integer('stepsPerLatent', 1, 1, MAX_LATENTS), latentsPerStep: stage.integer('latentsPerStep', 1, 0, MAX_LATENTS),
        padLatents: stage.boolean('padLatents', false), lastStage: stage.boolean('lastStage', false),
      },
      ...length(stage, 'steps', 'epochs', 1), ...rates(stage, n > 0),
    };
  });
}

/**
 * `curriculum`: words; then one unit of steps after another becomes latents (`latentStages` of them); at last nothing is said but the
 * answer. A part of length 0 is left out.
 */
export function curriculumStages(top: ConfigReader): TrainingStage[] {
  const curriculum = top.child('curriculum', CURRICULUM);
  const latentStages = curriculum.integer('latentStages', undefined, 0, MAX_STAGES);
  const shape = { stepsPerLatent: curriculum.integer('stepsPerLatent', 1, 1, MAX_LATENTS), latentsPerStep: curriculum.integer('latentsPerStep', 1, 0, MAX_LATENTS), padLatents: curriculum.boolean('padLatents', false) };
  const parts = [
    { name: 'words', stage: 0, lastStage: false, keys: ['wordSteps', 'wordEpochs'] },
    ...Array.from({ length: latentStages }, (_, n) => ({ name: `latents ${n + 1}`, stage: n + 1, lastStage: false, keys: ['steps', 'epochs'] })),
    { name: 'answers', stage: latentStages, lastStage: true, keys: ['lastSteps', 'lastEpochs'] },
  ];
  const stages = parts.flatMap(({ name, stage, lastStage, keys: [steps, epochs] }): TrainingStage[] => {
    const own = length(curriculum, steps!, epochs!, 0);
    return (own.steps ?? own.epochs) === 0 ? [] : [{ name, shape: { ...shape, stage, lastStage }, ...own, ...rates(curriculum, stage > 0 || lastStage) }];
  });
  if (stages.length === 0) fail('ERR_ARGUMENT', 'train', `Expected ${top.name('curriculum')} to have at least one stage but received only stages of length 0; give one of its parts a length above 0`);
  return stages;
}

/** Exactly one of two keys: optimiser steps, at least `least`, or passes over the data. */
function length(reader: ConfigReader, steps: string, epochs: string, least: 0 | 1): { steps?: number; epochs?: number } {
  if (reader.has(steps) === reader.has(epochs)) {
    fail('ERR_ARGUMENT', 'train', `Expected exactly one of ${steps} and ${epochs} in ${reader.place} but received ${reader.has(steps) ? 'both; leave one of them out' : 'neither; add one of them'}`);
  }
  return reader.has(steps) ? { steps: reader.integer(steps, undefined, least, MAX_STEPS) } : { epochs: reader.number(epochs, undefined, least / 1000, MAX_EPOCHS) };
}

/** Only a later stage can reset what an earlier one left. */
function rates(reader: ConfigReader, isLater: boolean): Pick<TrainingStage, 'learningRate' | 'warmupSteps' | 'finalRate' | 'resetOptimizer' | 'earlierProbability'> {
  return {
    learningRate: reader.number('learningRate', undefined, 0), warmupSteps: reader.integer('warmupSteps', 0, 0, MAX_STEPS), finalRate: reader.number('finalRate', 0, 0, 1),
    resetOptimizer: isLater && reader.boolean('resetOptimizer', false), earlierProbability: reader.number('earlierProbability', 0, 0, 1),
  };
}
