/**
 * Parameters beside the backbone: routers, step vectors and token super-resolution. They are f32 whatever the model's storage, and
 * lie in plumbline.safetensors.
 */
import { join } from 'node:path';
import * as check from '../check';
import { fail } from '../errors';
import type { NativeExtraSpec, NativeFileTensor } from '../native';
import { isAdapter } from './adapter';
import { kindOf } from './files';
import { isBackbone } from './parameterShapes';
import { routes, type Preset } from './preset';
import { readHeader } from './safetensors';

export const EXTRAS_FILE = 'plumbline.safetensors';
/** A threshold that was never set: the largest f32, which no score is above, so nothing is routed. */
export const UNSET_THRESHOLD = 3.4028234663852886e38;

export interface ExtraShape extends NativeExtraSpec {
  /** What a new one holds: 'normal' with the model's `initializerRange`, or this number everywhere. */
  readonly start: 'normal' | number;
}

/**
 * Names, shapes and start values of the parameters that a preset needs, in a fixed order.
 *
 * Those that end in `.threshold` are buffers that `updateThresholds` moves: no gradient, no decay.
 *
 * @param hidden width D of the decoder.
 * @throws {LibError} `ERR_ARGUMENT` for a preset whose layers are not resolved, `ERR_RANGE` for `hidden`.
 * @example extraShapes(makePreset({ replay: false, routedLayers: [3] }, 28), 1536).map(({ name }) => name)
 *   // ['router.3.weight', 'router.3.bias', 'router.3.threshold', 'step.2']
 */
export function extraShapes(preset: Preset, hidden: number): ExtraShape[] {
  check.integer('extras', 'hidden', hidden, 1);
  const shapes: ExtraShape[] = [];
  const linear = (name: string, out: number, fanIn: number, start: 'normal' | 0): void => {
    shapes.push({ name: `${name}weight`, shape: [out, fanIn], start }, { name: `${name}bias`, shape: [out], start: 0 });
  };
  const narrow = Math.max(1, Math.floor(hidden / 4));
  for (const layer of routes(preset) ? preset.routedLayers : []) {
    if (preset.router === 'linear') linear(`router.${layer}.`, 1, hidden, 'normal');
    else {
      linear(`router.${layer}.0.`, narrow, hidden, 'normal');
      linear(`router.${layer}.2.`, 1, narrow, 'normal');
    }
    if (preset.rule === 'threshold') shapes.push({ name: `router.${layer}.threshold`, shape: [1], start: UNSET_THRESHOLD });
  }
  if (routes(preset) && preset.fusion !== 'plain') {
    for (let pass = 2; pass <= preset.maxDepth; pass++) shapes.push({ name: `step.${pass}`, shape: [hidden], start: 0 });
  }
  if (preset.replay && (preset.tokenSr || preset.srAdded)) {
    linear('token_sr.0.', hidden, hidden, 'normal');
    linear('token_sr.2.', hidden, hidden, 0);   // F is zero at first: replay starts as if there were none of it
  }
  return shapes;
}

/** A tensor of plumbline.safetensors. */
export interface FileExtra extends NativeFileTensor {
  readonly shape: readonly number[];
}

export interface FileExtras {
  readonly path: string;
  readonly tensors: readonly FileExtra[];
}

/** Limits of the addon. */
const MAX_RANK = 8;
const MAX_EXTENT = 2 ** 32;

/**
 * Names, shapes and places of all tensors of a folder's plumbline.safetensors; none when there is no such file.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming the tensor.
 */
export async function readExtras(directory: string): Promise<FileExtras> {
  const path = join(directory, EXTRAS_FILE);
  if (await kindOf(path) === 'missing') return Object.freeze({ path, tensors: Object.freeze([]) });
  const { tensors } = await readHeader(path);
  const found = [...tensors.values()].map(({ name, dtype, shape, offset, bytes }): FileExtra => {
    const wrong = (expected: string, received: string): never =>
      fail('ERR_CHECKPOINT', 'load', `Expected tensor '${name.slice(0, 200)}' ${expected} but received ${received} in ${path}. The file is damaged: save the checkpoint again.`);
    if (isBackbone(name)) wrong('in the files of the backbone', 'it');
    if (isAdapter(name)) wrong('in adapter_model.safetensors', 'it');
    if (dtype !== 'F32' && dtype !== 'F16' && dtype !== 'BF16') return wrong('to be F32, F16 or BF16', dtype);
    if (shape.length > MAX_RANK || shape.some((extent) => extent < 1 || extent > MAX_EXTENT)) wrong(`to have a shape of at most ${MAX_RANK} numbers above 0`, `[${shape.join(', ')}]`);
    return { name, dtype, shape, offset, bytes };
  });
  return Object.freeze({ path, tensors: Object.freeze(found) });
}

/**
 * Compares the tensors of a file with what is wanted of those that both have.
 *
 * @param why completes "of shape [..], as <why>".
 * @throws {LibError} `ERR_CHECKPOINT` naming the tensor.
 */
export function checkExtraShapes({ path, tensors }: FileExtras, wanted: readonly NativeExtraSpec[], why: string, remedy: string): void {
  const found = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  for (const { name, shape } of wanted) {
    const has = found.get(name)?.shape;
    if (has === undefined || (has.length === shape.length && has.every((extent, i) => extent === shape[i]))) continue;
    fail('ERR_CHECKPOINT', 'load', `Expected tensor '${name}' to have shape [${shape.join(', ')}], as ${why}, but received [${has.join(', ')}] in ${path}. ${remedy}`);
  }
}
