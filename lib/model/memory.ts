/** What a model costs in memory, said before it is taken. */
import { availableMemory as processAvailable } from 'node:process';
import { freemem } from 'node:os';
import * as check from '../check';
import { fail } from '../errors';
import type { NativeExtraSpec, NativeModel, StorageDType } from '../native';
import type { Adapter } from './adapter';
import type { ModelConfig } from './config';
import { parameterShapes, sizeOf } from './parameterShapes';

export interface MemoryEstimate {
  /** Number of parameters. */
  parameters: number;
  /** Bytes of the weights: matrices in the storage type, vectors always in f32. */
  weightBytes: number;
  /** Bytes that training all parameters adds: gradients, two moments, and where the model is bf16 room for f32 masters of each. */
  trainingBytes: number;
  /** What loading and making new weights take beside them, for a while: buffers for a piece of one tensor. */
  stagingBytes: number;
}

/** 8 MiB of a file, and a million values of it as f32 and as bf16 where they are converted: see the addon's `loadFile`. */
const STAGING_BYTES = 14 * 2 ** 20;

/** @param extras parameters beside the backbone: `extraShapes` of a preset (default: none). */
export function estimateMemory(config: ModelConfig, dtype: StorageDType, extras: readonly NativeExtraSpec[] = []): MemoryEstimate {
  check.object('memory', 'config', config);
  for (const part of ['text', 'vision'] as const) check.object('memory', `config.${part}`, config[part]);
  check.array('memory', 'extras', extras).forEach((extra, i) => check.array('memory', `shape of extra ${i}`, (extra as NativeExtraSpec | undefined)?.shape));
  let parameters = 0;
  let matrices = 0;
  let largest = 0;
  for (const { shape, role } of [...parameterShapes(config), ...extras.map(({ shape }) => ({ shape, role: 'extra' }))]) {
    const size = sizeOf(shape);
    parameters += size;
    largest = Math.max(largest, size);
    if (role === 'matrix') matrices += size;
  }
  const narrow = dtype === 'bf16' ? 2 * matrices : 0;
  return { parameters, weightBytes: 4 * parameters - narrow, trainingBytes: (dtype === 'bf16' ? 16 : 12) * parameters, stagingBytes: Math.min(STAGING_BYTES, 4 * largest) };
}

/** Bytes that this process can still take: free memory of the machine, or of its control group where that is less. */
export function availableMemory(): number {
  return Math.min(processAvailable(), freemem());
}

/**
 * Refuses a model that does not fit.
 *
 * @param limit bytes that may be taken; default: what is available now. `Infinity` switches the check off.
 * @throws {LibError} `ERR_OUT_OF_MEMORY` with both figures and what can be done.
 */
export function requireMemory(op: string, what: string, config: ModelConfig, dtype: StorageDType, extras: readonly NativeExtraSpec[], limit: number = availableMemory()): MemoryEstimate {
  const estimate = estimateMemory(config, dtype, extras);
  const needed = estimate.weightBytes + estimate.stagingBytes;
  if (needed > limit) {
    const smaller = dtype === 'f32' ? `load it with dtype 'bf16', ` : '';
    fail('ERR_OUT_OF_MEMORY', op, `Expected ${gigabytes(needed)} of memory for the weights of ${what} (${(estimate.parameters / 1e6).toFixed(1)} million parameters, ${dtype}) `
      + `but received ${gigabytes(limit)}. Close other programs, ${smaller}or set maxMemoryBytes to go ahead all the same.`);
  }
  return estimate;
}

export interface TrainingMemory {
  /** Parameters that are trainable now. */
  trainable: number;
  weightBytes: number;
  /** Gradients, two moments and, of a bf16 model, f32 masters of what is trainable. */
  stateBytes: number;
}

export function trainingMemory(model: NativeModel): TrainingMemory {
  const parameters = model.parameters();
  const trainable = parameters.reduce((total, { shape, trainable }) => total + (trainable ? sizeOf(shape) : 0), 0);
  const hasMasters = parameters.some(({ dtype, trainable }) => trainable && dtype === 'bf16');
  const weightBytes = parameters.reduce((total, { shape, dtype }) => total + (dtype === 'bf16' ? 2 : 4) * sizeOf(shape), 0);
  return { trainable, weightBytes, stateBytes: (hasMasters ? 16 : 12) * trainable };
}

/**
 * Refuses a training whose gradients, moments and master copies do not fit: those of the parameters that are trainable now.
 *
 * @param limit bytes that may be taken where the model lies.
 * @throws {LibError} `ERR_OUT_OF_MEMORY` with both figures and what can be done.
 */
export function requireTrainingMemory(op: string, model: NativeModel, limit: number): void {
  const { trainable, weightBytes, stateBytes } = trainingMemory(model);
  const needed = weightBytes + stateBytes - model.bytes();   // about nothing when training was enabled before
  if (needed > limit) {
    fail('ERR_OUT_OF_MEMORY', op, `Expected ${gigabytes(needed)} of memory for gradients and optimiser state of ${(trainable / 1e6).toFixed(1)} million trainable parameters `
      + `but received ${gigabytes(limit)}. Close other programs, take a smaller model, or set maxMemoryBytes to go ahead all the same.`);
  }
}

/**
 * Refuses the copy of the adapted matrices that a merge keeps, where it does not fit.
 *
 * @throws {LibError} `ERR_OUT_OF_MEMORY` with both figures and what can be done.
 */
export function requireMergeMemory(op: string, { layers }: Adapter, dtype: StorageDType, keepBase: boolean, limit: number): void {
  const sizes = layers.map((layer) => layer.out * layer.in);
  // Three times one matrix in f32 while it is worked on.
  const needed = 12 * Math.max(...sizes) + (keepBase ? (dtype === 'bf16' ? 2 : 4) * sizes.reduce((sum, size) => sum + size, 0) : 0);
  const less = keepBase ? ', or merge with keepBase: false, which keeps no copy' : '';
  if (needed > limit) fail('ERR_OUT_OF_MEMORY', op, `Expected ${gigabytes(needed)} of memory for ${keepBase ? 'a copy of ' : ''}the ${layers.length} matrices that are changed but received ${gigabytes(limit)}. Close other programs${less}.`);
}

export function gigabytes(bytes: number): string {
  return bytes < 1e8 ? `${(bytes / 1e6).toFixed(2)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
