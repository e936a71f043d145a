/**
 * The curriculum: which reasoning steps of a sample are words and which are latents at a stage. Pure functions.
 *
 * Stage 0 keeps all steps in words; stage s replaces the first s units (of `stepsPerLatent` steps) by s * `latentsPerStep` latents.
 */
import * as check from '../check';
import { fail } from '../errors';
import { MAX_LATENTS } from '../model/record';
import { mix, uniform } from '../random';

/** What a word target belongs to: reasoning steps still in words, or the answer. */
export type WordClass = 'step-text' | 'answer-text';

/** A sample's words after the prompt, before a stage decides what becomes a latent. */
export interface Rationale {
  /** Token ids of each reasoning step. */
  steps: readonly (readonly number[])[];
  /** Token ids of the answer, the end token included. */
  answer: readonly number[];
}

/** How a stage turns steps into latents. */
export interface StageShape {
  /** Number of leading units that become latents. */
  stage: number;
  /** Steps per unit. */
  stepsPerLatent: number;
  /** Latents that replace one unit. */
  latentsPerStep: number;
  /** Samples with fewer units than the stage still get `stage * latentsPerStep` latents. */
  padLatents: boolean;
  /** No words but the answer. */
  lastStage: boolean;
}

/** Defaults of the fields of `StageShape`. */
export const DEFAULT_STAGE_SHAPE: StageShape = Object.freeze({
  stage: 0, stepsPerLatent: 1, latentsPerStep: 1, padLatents: false, lastStage: false,
});

/** A sample at a stage: `latents` latent steps, then `words`. */
export interface StagedSequence {
  latents: number;
  words: number[];
  classes: WordClass[];
}

/**
 * Merges steps to at most `maxSteps` contiguous groups whose step counts differ by at most one, the longer groups first.
 *
 * @throws {LibError} `ERR_RANGE` when maxSteps is not a positive integer.
 */
export function mergeSteps(steps: readonly (readonly number[])[], maxSteps: number): number[][] {
  checkSteps('mergeSteps', steps);
  check.integer('mergeSteps', 'maxSteps', maxSteps, 1);
  const groups = Math.min(maxSteps, steps.length);
  const merged: number[][] = [];
  let start = 0;
  for (let group = 0; group < groups; group++) {
    const size = Math.floor(steps.length / groups) + (group < steps.length % groups ? 1 : 0);
    merged.push(steps.slice(start, start + size).flat());
    start += size;
  }
  return merged;
}

/**
 * The latents and words of a sample at a stage. A shorter sample uses the units it has (a broken last unit counts), unless
 * `padLatents`; the last stage keeps the answer only.
 *
 * @throws {LibError} `ERR_RANGE`, `ERR_ARGUMENT`.
 */
export function stageSequence(rationale: Rationale, shape: Partial<StageShape> = {}): StagedSequence {
  check.options('stageSequence', shape, Object.keys(DEFAULT_STAGE_SHAPE));
  const { stage, stepsPerLatent, latentsPerStep, padLatents, lastStage } = { ...DEFAULT_STAGE_SHAPE, ...shape };
  check.integer('stageSequence', 'stage', stage, 0);
  check.integer('stageSequence', 'stepsPerLatent', stepsPerLatent, 1);
  check.integer('stageSequence', 'latentsPerStep', latentsPerStep, 0);
  check.boolean('stageSequence', 'padLatents', padLatents);
  check.boolean('stageSequence', 'lastStage', lastStage);
  check.object('stageSequence', 'rationale', rationale);
  checkSteps('stageSequence', rationale.steps);
  check.array('stageSequence', 'answer', rationale.answer);
  const units = Math.ceil(rationale.steps.length / stepsPerLatent);
  const taken = Math.min(stage, units);
  const latents = check.integer('stageSequence', 'latents', (padLatents ? stage : taken) * latentsPerStep, 0, MAX_LATENTS);
  const stepWords = lastStage ? [] : rationale.steps.slice(taken * stepsPerLatent).flat();
  return {
    latents,
    words: [...stepWords, ...rationale.answer],
    classes: [
      ...stepWords.map((): WordClass => 'step-text'),
      ...rationale.answer.map((): WordClass => 'answer-text'),
    ],
  };
}

function checkSteps(op: string, steps: readonly (readonly number[])[]): void {
  check.array(op, 'steps', steps);
  for (const [n, step] of steps.entries()) check.array(op, `step ${n}`, step);
}

/** One stage of training. Exactly one of `steps` and `epochs` is given. */
export interface TrainingStage {
  /** Shown in metrics and progress. */
  name: string;
  /** Fields of `StageShape`. */
  shape: Partial<StageShape>;
  /** Optimiser steps. */
  steps?: number;
  /** Passes over the data set (which then needs a `size`). */
  epochs?: number;
  /** Peak learning rate. */
  learningRate: number;
  /** Linear warm-up, in optimiser steps. */
  warmupSteps?: number;
  /** Learning rate at the end of the stage, as a share of the peak. */
  finalRate?: number;
  /** Start the stage with zero moments and step number 1. */
  resetOptimizer?: boolean;
  /** Probability that a sample is drawn at an earlier curriculum stage (0 .. stage - 1, evenly). */
  earlierProbability?: number;
}

/** A stage with its place on the time line of the whole training. */
export interface PlannedStage extends Required<Omit<TrainingStage, 'epochs' | 'shape'>> {
  shape: StageShape;
  /** First optimiser step, counted from 0 over all stages. */
  firstStep: number;
}

const STAGE_FIELDS: readonly (keyof TrainingStage)[] = [
  'name', 'shape', 'steps', 'epochs', 'learningRate', 'warmupSteps', 'finalRate', 'resetOptimizer', 'earlierProbability',
];

/**
 * Fills defaults and lays the stages one after another.
 *
 * @param samplesPerStep samples of one optimiser step, accumulation included.
 * @param size samples in the data set; needed where a stage counts epochs.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`.
 */
export function planStages(stages: readonly TrainingStage[], samplesPerStep: number, size?: number): PlannedStage[] {
  check.array('train', 'stages', stages);
  if (stages.length === 0) fail('ERR_ARGUMENT', 'train', 'Expected at least one stage but received none');
  let firstStep = 0;
  return stages.map((stage, n) => {
    check.object('train', `stage ${n}`, stage);
    check.options('train', stage, STAGE_FIELDS);
    check.string('train', `name of stage ${n}`, stage.name);
    check.options('train', stage.shape, Object.keys(DEFAULT_STAGE_SHAPE));
    const steps = stageSteps(stage, samplesPerStep, size);
    const planned: PlannedStage = {
      name: stage.name, learningRate: stage.learningRate, steps, firstStep,
      shape: { ...DEFAULT_STAGE_SHAPE, ...stage.shape },
      warmupSteps: stage.warmupSteps ?? 0, finalRate: stage.finalRate ?? 0,
      resetOptimizer: stage.resetOptimizer ?? false, earlierProbability: stage.earlierProbability ?? 0,
    };
    check.integer('train', `warmupSteps of stage "${stage.name}"`, planned.warmupSteps, 0);
    check.number('train', `finalRate of stage "${stage.name}"`, planned.finalRate, 0, 1);
    check.number('train', `earlierProbability of stage "${stage.name}"`, planned.earlierProbability, 0, 1);
    check.number('train', `learningRate of stage "${stage.name}"`, stage.learningRate, 0);
    check.boolean('train', `resetOptimizer of stage "${stage.name}"`, planned.resetOptimizer);
    stageSequence({ steps: [], answer: [] }, planned.shape);
    firstStep += steps;
    return planned;
  });
}

function stageSteps(stage: TrainingStage, samplesPerStep: number, size: number | undefined): number {
  const of = `of stage "${stage.name}"`;
  if ((stage.steps === undefined) === (stage.epochs === undefined)) {
    fail('ERR_ARGUMENT', 'train', `Expected exactly one of steps and epochs ${of} but received ${stage.steps === undefined ? 'neither' : 'both'}`);
  }
  if (stage.steps !== undefined) return check.integer('train', `steps ${of}`, stage.steps, 1);
  if (size === undefined) fail('ERR_ARGUMENT', 'train', `Expected data with a size, because epochs ${of} are counted, but received an endless source`);
  const epochs = check.number('train', `epochs ${of}`, stage.epochs, 0);
  return Math.max(1, Math.ceil((epochs * size) / samplesPerStep));
}

/** The stage that optimiser step `step` (from 0) belongs to; undefined after the last one. */
export function stageOf(stages: readonly PlannedStage[], step: number): PlannedStage | undefined {
  return stages.find((stage) => step >= stage.firstStep && step < stage.firstStep + stage.steps);
}

/** The shape that the sample at `position` of the data order is drawn at: the stage's own, or an earlier one. */
export function drawShape(stage: PlannedStage, seed: number, position: number): StageShape {
  const { shape, earlierProbability } = stage;
  if (shape.stage === 0 || earlierProbability === 0) return shape;
  const key = mix(seed, position, 1);
  if (uniform(key, 0) >= earlierProbability) return shape;
  return { ...shape, stage: Math.floor(uniform(key, 1) * shape.stage), lastStage: false };
}
