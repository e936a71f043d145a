/** Vectors for the latent slots in place of a model's own: does the answer depend on the latents at all? */
import * as check from '../check';
import { fail } from '../errors';

/** 'zero', 'noise' of each latent's norm, the 'mean' per step, those of an 'other' sample, or its own 'shuffle'd. */
export const REPLACEMENTS = Object.freeze(['zero', 'noise', 'mean', 'other', 'shuffle'] as const);
export type Replacement = (typeof REPLACEMENTS)[number];

export interface ReplaceOptions {
  /** For 'noise': standard normal numbers, per sample as many as its latents have. Each row is scaled to the norm of the latent that it replaces. */
  noise?: readonly Float32Array[];
  /** For 'shuffle': per sample the step, from 0, whose latent each step takes; each step once. */
  orders?: readonly ArrayLike<number>[];
}

const OP = 'replaceLatents';

/**
 * Replaces the latents of samples (algorithms, section 10; the critiques in arXiv 2602.22766, 2605.18445 and 2606.01287 use such dummies).
 *
 * @param kind 'mean' is taken over the samples that have the step; 'other' takes the latents of the next sample, cyclically, that has any,
 * from the first again where it has fewer.
 * @param latents per sample [T, D], its T steps one after another; T may be 0. Not changed.
 * @param width D.
 * @returns new arrays of the same sizes. Sums are f64.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE` naming the sample; `ERR_ARGUMENT` for 'other' when fewer than two
 * samples have latents, `ERR_RANGE` for noise of norm 0.
 * @example replaceLatents('mean', [Float32Array.of(1, 2), Float32Array.of(3, 4, 5, 6)], 2)  // [[2, 3], [2, 3, 5, 6]]
 */
export function replaceLatents(kind: Replacement, latents: readonly Float32Array[], width: number, options: ReplaceOptions = {}): Float32Array[] {
  check.oneOf(OP, 'kind', kind, REPLACEMENTS);
  check.integer(OP, 'width', width, 1);
  check.options(OP, options, ['noise', 'orders']);
  check.array(OP, 'latents', latents);
  latents.forEach((own, n) => {
    check.typedArray(OP, `latents of sample ${n}`, own, 'Float32Array');
    if (own.length % width !== 0) fail('ERR_SHAPE', OP, `Expected latents of sample ${n} to be rows of width = ${width} but received ${own.length} elements`);
  });
  switch (kind) {
    case 'zero': return latents.map((own) => new Float32Array(own.length));
    case 'noise': return scaledNoise(latents, width, options.noise);
    case 'mean': return meanOfSteps(latents, width);
    case 'other': return ofOthers(latents);
    case 'shuffle': return reordered(latents, width, options.orders);
  }
}

/** A list with one entry per sample. */
function perSample<T>(name: string, value: readonly T[] | undefined, count: number): readonly T[] {
  check.array(OP, name, value);
  const list = value as readonly T[];
  if (list.length !== count) fail('ERR_SHAPE', OP, `Expected ${name} for each of ${count} samples but received ${list.length}`);
  return list;
}

function norm(vector: Float32Array): number {
  return Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
}

function scaledNoise(latents: readonly Float32Array[], width: number, given: ReplaceOptions['noise']): Float32Array[] {
  const noise = perSample('noise', given, latents.length);
  return latents.map((own, n) => {
    const drawn = check.typedArray(OP, `noise of sample ${n}`, noise[n], 'Float32Array', own.length, 'steps*width');
    const out = new Float32Array(own.length);
    for (let at = 0; at < own.length; at += width) {
      const row = drawn.subarray(at, at + width);
      const size = norm(row);
      if (!(size > 0 && size < Infinity)) fail('ERR_RANGE', OP, `Expected noise of step ${at / width} of sample ${n} to have a finite norm above 0 but received ${size}; draw it from a normal distribution`);
      const scale = norm(own.subarray(at, at + width)) / size;
      out.set(row.map((x) => x * scale), at);
    }
    return out;
  });
}

function meanOfSteps(latents: readonly Float32Array[], width: number): Float32Array[] {
  const means = new Float64Array(latents.reduce((most, { length }) => Math.max(most, length), 0));
  for (const own of latents) own.forEach((x, i) => { means[i]! += x; });
  const having = Array.from({ length: means.length / width }, (_, step) => latents.filter(({ length }) => length > step * width).length);
  means.forEach((sum, i) => { means[i] = sum / having[Math.floor(i / width)]!; });
  return latents.map(({ length }) => Float32Array.from(means.subarray(0, length)));
}

function ofOthers(latents: readonly Float32Array[]): Float32Array[] {
  const having = latents.filter(({ length }) => length > 0).length;
  if (having === 1) fail('ERR_ARGUMENT', OP, "Expected at least two samples with latents for 'other' but received 1, whose latents would be replaced by themselves; give more samples");
  return latents.map((own, n) => {
    const donor = [...latents.slice(n + 1), ...latents.slice(0, n)].find(({ length }) => length > 0);
    return Float32Array.from(own, (_, i) => donor![i % donor!.length]!);
  });
}

function reordered(latents: readonly Float32Array[], width: number, given: ReplaceOptions['orders']): Float32Array[] {
  const orders = perSample('orders', given, latents.length);
  return latents.map((own, n) => {
    check.object(OP, `order of sample ${n}`, orders[n]);
    const order = Array.from(orders[n]!);
    const steps = own.length / width;
    if (order.length !== steps) fail('ERR_SHAPE', OP, `Expected order of sample ${n} to have a place for each of its ${steps} steps but received ${order.length}`);
    order.forEach((step, place) => {
      check.integer(OP, `place ${place} of the order of sample ${n}`, step, 0, steps - 1);
      if (order.indexOf(step) !== place) fail('ERR_ARGUMENT', OP, `Expected order of sample ${n} to hold each step once but received ${step} twice`);
    });
    return Float32Array.from(own, (_, i) => own[order[Math.floor(i / width)]! * width + (i % width)]!);
  });
}
