/** Options of the training loop, their defaults and their checks. */
import { resolve } from 'node:path';
import * as check from '../check';
import { fail } from '../errors';
import type { Picture } from '../model/image';
import type { PresetChanges, PresetName } from '../model/preset';
import type { PlannedStage, Rationale, TrainingStage } from './curriculum';

/** One training sample in token ids. */
export interface TrainingSample extends Rationale {
  promptIds: ArrayLike<number>;
  pictures: readonly Picture[];
}

/** Where in the training a sample is asked for. */
export interface SampleContext {
  stage: PlannedStage;
  /** Optimiser step of the stage, from 0. */
  stageStep: number;
}

/** Samples by index. Pure: the same index and context give the same sample, or a resumed run differs. */
export interface TrainingData {
  /** Number of samples; undefined: endless, read in order. */
  size?: number;
  at(index: number, context: SampleContext): TrainingSample | Promise<TrainingSample>;
}

export interface TrainOptions {
  data: TrainingData;
  stages: readonly TrainingStage[];
  /** Sequences per pass through the model. */
  batchSize: number;
  /** Batches per optimiser step. */
  accumulation: number;
  /** Of the data order and of the curriculum's draws. */
  seed: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  /** Clip the gradient to this global norm; 0 = no clipping. */
  maxNorm: number;
  /** Switches that differ from the model's own, for this training only: the model's record keeps its own. */
  preset?: PresetName | PresetChanges;
  /** 'through': the loss trains the states that latents were copied from; 'detached': it does not. Default: as the preset says. */
  latentGradient?: 'through' | 'detached';
  /** Keep only layer inputs and compute the rest again in the backward pass: less memory, about a third more time. */
  recompute: boolean;
  /** Train the vision tower too; false freezes all of it, weight decay included. */
  trainVision: boolean;
  /** Metrics as JSON Lines: a new training replaces the file, a resumed one goes on after the step of its checkpoint. */
  metricsFile?: string;
  /**
   * Gradient dynamics as JSON Lines (`readProfile`): by layer and class of row the norms of the gradient that hidden states receive, and
   * the spectra of weight gradients. Kept in step with checkpoints as metrics are; changes no weight.
   */
  profileFile?: string;
  /** Norms every so many steps. */
  profileEvery: number;
  /** Spectra of the gradients of q, k, v and o every so many steps (and norms then too), which cost about two steps more; 0 = never. */
  profileMatricesEvery: number;
  /** Matrices whose shorter side is larger are left out, and named in the file: CUDA takes up to 128, the CPU any (cost: side cubed). */
  profileMatrixSide: number;
  /** Checkpoints are written below this folder as checkpoint-<step>. A new training wants one without checkpoints. */
  checkpointFolder?: string;
  /** Also write one every so many steps; 0 = only at the end and when stopped. */
  checkpointEvery: number;
  /** Older checkpoints are removed; 0 = keep all. */
  keepCheckpoints: number;
  /** Bytes that gradients and optimiser state may take. Default: what is available now; `Infinity` switches the check off. */
  maxMemoryBytes?: number;
  /** A checkpoint folder to go on from, or 'latest' of `checkpointFolder` (from the start when there is none). */
  resume?: string;
  /** Stops after the step at hand is given up; a checkpoint of the last complete step is written first. */
  signal?: AbortSignal;
}

/** Defaults of the optional fields of `TrainOptions`. */
export const DEFAULT_TRAINING = Object.freeze({
  accumulation: 1, seed: 0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, maxNorm: 1,
  recompute: false, trainVision: false, profileEvery: 1, profileMatricesEvery: 50, profileMatrixSide: 128, checkpointEvery: 0, keepCheckpoints: 2,
});

type NeededField = 'data' | 'stages' | 'batchSize';
export type TrainArguments = Pick<TrainOptions, NeededField> & Partial<Omit<TrainOptions, NeededField>>;

const FIELDS = ['data', 'stages', 'batchSize', 'metricsFile', 'profileFile', 'checkpointFolder', 'maxMemoryBytes', 'resume', 'signal', 'preset', 'latentGradient', ...Object.keys(DEFAULT_TRAINING)];

/** Arguments with their defaults. */
export type FullOptions = TrainArguments & typeof DEFAULT_TRAINING;

/** Samples of an optimiser step: all are made before it starts. */
const MAX_SAMPLES = 65536;

/** @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`. */
export function checkedOptions(options: TrainArguments): FullOptions {
  check.options('train', options, FIELDS);
  const full = { ...DEFAULT_TRAINING, ...options } as FullOptions;
  check.integer('train', 'batchSize', full.batchSize, 1);
  check.integer('train', 'accumulation', full.accumulation, 1);
  check.integer('train', 'batchSize*accumulation', full.batchSize * full.accumulation, 1, MAX_SAMPLES);
  check.integer('train', 'seed', full.seed, 0);
  check.number('train', 'beta1', full.beta1, 0, 1 - 1e-9);
  check.number('train', 'beta2', full.beta2, 0, 1 - 1e-9);
  check.number('train', 'epsilon', full.epsilon, Number.MIN_VALUE);
  check.number('train', 'weightDecay', full.weightDecay, 0);
  check.number('train', 'maxNorm', full.maxNorm, 0);
  if (full.preset !== undefined && typeof full.preset !== 'string') check.object('train', 'preset', full.preset);
  if (full.latentGradient !== undefined) check.oneOf('train', 'latentGradient', full.latentGradient, ['through', 'detached']);
  check.boolean('train', 'recompute', full.recompute);
  check.boolean('train', 'trainVision', full.trainVision);
  check.integer('train', 'profileEvery', full.profileEvery, 1);
  check.integer('train', 'profileMatricesEvery', full.profileMatricesEvery, 0);
  check.integer('train', 'profileMatrixSide', full.profileMatrixSide, 1);
  check.integer('train', 'checkpointEvery', full.checkpointEvery, 0);
  check.integer('train', 'keepCheckpoints', full.keepCheckpoints, 0);
  if (full.maxMemoryBytes !== undefined && full.maxMemoryBytes !== Infinity) check.number('train', 'maxMemoryBytes', full.maxMemoryBytes, 0);
  check.signal('train', full.signal);
  for (const name of ['metricsFile', 'profileFile', 'checkpointFolder', 'resume'] as const) {
    if (full[name] !== undefined) check.path('train', name, full[name]);
  }
  for (const name of ['profileEvery', 'profileMatricesEvery', 'profileMatrixSide'] as const) {
    if (options[name] !== undefined && full.profileFile === undefined) fail('ERR_ARGUMENT', 'train', `Expected profileFile together with ${name} but received none`);
  }
  if (full.profileFile !== undefined && full.metricsFile !== undefined && resolve(full.profileFile) === resolve(full.metricsFile)) {
    fail('ERR_ARGUMENT', 'train', `Expected profileFile and metricsFile to be two files but received ${full.profileFile} and ${full.metricsFile}; name another for one of them`);
  }
  if (typeof full.data?.at !== 'function') fail('ERR_ARGUMENT', 'train', `Expected data to have a function at but received ${check.show(full.data)}`);
  if (full.data.size !== undefined) check.integer('train', 'data.size', full.data.size, 1);
  check.array('train', 'stages', full.stages);
  if (full.checkpointFolder === undefined && (full.checkpointEvery > 0 || full.resume === 'latest')) {
    fail('ERR_ARGUMENT', 'train', `Expected checkpointFolder together with ${full.resume === 'latest' ? 'resume: \'latest\'' : 'checkpointEvery'} but received none`);
  }
  return full;
}
