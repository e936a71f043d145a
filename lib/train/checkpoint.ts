/**
 * Checkpoints of a training: the model in Hugging Face layout, beside it `trainer.safetensors` (first and second moments, and the f32
 * masters of bf16 parameters) and `trainer.json`. Written to a temporary folder and renamed, so that a folder is whole or absent.
 */
import { accessSync, constants, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { abortable } from '../abort';
import { fail, guarded } from '../errors';
import { isAdapter, type Adapter } from '../model/adapter';
import { openAdapter } from '../model/adapterFiles';
import { openCheckpoint } from '../model/checkpoint';
import { readExtras, type FileExtras } from '../model/extras';
import { isBackbone } from '../model/parameterShapes';
import { isObject } from '../model/jsonReader';
import { presetJson, type Preset } from '../model/preset';
import { parseRecord } from '../model/record';
import { readFiles, readWeights } from '../model/weights';
import { readJson, writeJson, writing } from '../model/files';
import { readHeader, readTensor, writeSafetensors } from '../model/safetensors';
import type { NativeModel, NativeParameterInfo, ParameterSlot } from '../native';

/** What checkpoints need of a model; `LatentModel` has it. */
export interface SavableModel {
  readonly native: NativeModel;
  /** Recorded in what `save` writes. */
  readonly preset: Preset;
  /** Writes config, weights and processor files in Hugging Face layout. */
  save(folder: string): Promise<void>;
  /** Where there is one, it alone is trained and saved. */
  readonly adapter?: Adapter | undefined;
  saveAdapter?(folder: string): Promise<void>;
}

export interface TrainerState {
  /** Optimiser steps done. */
  step: number;
  /** Options that decide the results. */
  settings: Record<string, unknown>;
}

const VERSION = 1;
const PREFIX = 'checkpoint-';
/** Of any model: whether a layer exists is the model's affair. */
const MAX_LAYERS = 4096;
const STATE_JSON = 'trainer.json';
const STATE_TENSORS = 'trainer.safetensors';

export function checkpointName(step: number): string {
  return `${PREFIX}${step}`;
}

/** Complete checkpoints of a folder, oldest first. */
function checkpoints(folder: string): { step: number; path: string }[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => /^checkpoint-\d+$/.test(name) && existsSync(join(folder, name, STATE_JSON)))
    .map((name) => ({ step: Number(name.slice(PREFIX.length)), path: join(folder, name) }))
    .sort((a, b) => a.step - b.step);
}

/** Makes the folder, so that one that cannot be written is refused before the training and not after it. */
export function prepareFolder(folder: string): Promise<void> {
  return writing('train', folder, async () => {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK);
  });
}

/** The checkpoint with the most steps; undefined when there is none. */
export function latestCheckpoint(folder: string): string | undefined {
  return checkpoints(folder).at(-1)?.path;
}

/** Removes all but the `keep` latest up to `step` (later ones belong to a run that went further); 0 keeps all. */
export function pruneCheckpoints(folder: string, step: number, keep: number): void {
  if (keep === 0) return;
  for (const { path } of checkpoints(folder).filter((checkpoint) => checkpoint.step <= step).slice(0, -keep)) rmSync(path, { recursive: true });
}

/** Writes `folder/name`, replacing what is there only when the new one is complete. Returns its path. */
export function writeCheckpoint(model: SavableModel, folder: string, name: string, state: TrainerState): Promise<string> {
  return writing('train', folder, () => writeFolder(model, folder, name, state));
}

async function writeFolder(model: SavableModel, folder: string, name: string, state: TrainerState): Promise<string> {
  const target = join(folder, name);
  const temporary = `${target}.tmp-${process.pid}`;
  rmSync(temporary, { recursive: true, force: true });
  mkdirSync(temporary, { recursive: true });
  try {
    await (model.adapter !== undefined && model.saveAdapter !== undefined ? model.saveAdapter(temporary) : model.save(temporary));
    await writeState(model.native, join(temporary, STATE_TENSORS));
    await writeJson(join(temporary, STATE_JSON), { version: VERSION, ...state });
    rmSync(target, { recursive: true, force: true });
    renameSync(temporary, target);
    return target;
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    throw error;
  }
}

/**
 * Loads weights (those beside the backbone and the thresholds too) and optimiser state of a checkpoint and returns the number of steps done.
 *
 * @throws {LibError} `ERR_CHECKPOINT` when files are missing or broken, or when a setting differs that would change the results.
 */
export async function readTrainerState(model: SavableModel, folder: string, settings: Record<string, unknown>): Promise<number> {
  const state = await readState(join(folder, STATE_JSON));
  checkSettings(folder, state, JSON.parse(JSON.stringify(settings)) as Record<string, unknown>);
  if (model.adapter === undefined) {
    const checkpoint = await openCheckpoint(folder);
    checkPreset(folder, checkpoint.record.preset, model.preset);
    checkComplete(model.native, checkpoint.extras);
    await readWeights(model.native, checkpoint);
  } else {
    await readAdapter(model.native, folder, model.adapter, model.preset);
  }
  await restoreState(model.native, join(folder, STATE_TENSORS));
  return state.step;
}

async function readState(path: string): Promise<TrainerState> {
  const state = (await readJson(path)) as (Partial<TrainerState> & { version?: unknown }) | undefined;
  if (typeof state !== 'object' || state === null) fail('ERR_CHECKPOINT', 'train', `Expected a trainer state at ${path} but received none; resume from a checkpoint folder of a training`);
  if (state.version !== VERSION) fail('ERR_CHECKPOINT', 'train', `Expected ${path} to have version ${VERSION} but received ${String(state.version)}`);
  if (!Number.isSafeInteger(state.step) || (state.step as number) < 0 || typeof state.settings !== 'object' || state.settings === null) {
    fail('ERR_CHECKPOINT', 'train', `Expected ${path} to hold a step and settings but received other fields; resume from another checkpoint`);
  }
  return state as TrainerState;
}

/** Reads what a training of an adapter wrote: the adapter and the parameters beside the backbone, which is that of the base. */
async function readAdapter(native: NativeModel, folder: string, { layers }: Adapter, preset: Preset): Promise<void> {
  const file = await openAdapter(folder, new Map(layers.map((layer) => [layer.target, layer])), 'adapter in training');
  const saved = new Map(file.adapter.layers.map((layer) => [layer.target, layer]));
  const differs = layers.find(({ target, rank, scale }) => saved.get(target)?.rank !== rank || saved.get(target)?.scale !== scale);
  if (differs !== undefined) {
    const has = saved.get(differs.target);
    fail('ERR_CHECKPOINT', 'train', `Expected an adapter of rank ${differs.rank} and scale ${differs.scale} on '${differs.target}' in ${file.path} but received ${has === undefined ? 'none' : `rank ${has.rank} and scale ${has.scale}`}; resume with the same adapter`);
  }
  checkPreset(folder, parseRecord(await readJson(join(folder, 'plumbline.json')), MAX_LAYERS).preset, preset);
  const extras = await readExtras(folder);
  checkComplete(native, extras);
  const held = new Set(guarded(() => native.parameters()).map(({ name }) => name));
  await readFiles(native, [file, { path: extras.path, tensors: extras.tensors.filter(({ name }) => held.has(name)) }]);
}

/** Stages that have not begun may differ, so that a training can be extended. */
function checkSettings(folder: string, state: TrainerState, settings: Record<string, unknown>): void {
  const begun = (name: string, from: unknown): unknown => (name === 'stages' && Array.isArray(from) ? from.filter((stage) => isObject(stage) && Number(stage['firstStep']) < state.step) : from);
  // The switches of a preset one by one, so that the one that differs is named.
  const flat = (from: Record<string, unknown>): [string, unknown][] => Object.entries(from).flatMap(([name, value]): [string, unknown][] =>
    (isObject(value) ? Object.entries(value).map(([key, inner]) => [`${name}.${key}`, inner]) : [[name, value]]));
  const saved = new Map(flat(state.settings));
  for (const [name, value] of flat(settings)) {
    const before = begun(name, saved.get(name));
    const now = begun(name, value);
    if (!isDeepStrictEqual(before, now)) {
      fail('ERR_CHECKPOINT', 'train', `Expected ${name} as in ${folder}, ${JSON.stringify(before)}, but received ${JSON.stringify(now)}; resume with the same options or start anew`);
    }
  }
}

/** Another switch would change the results without a word. */
function checkPreset(folder: string, before: Preset, now: Preset): void {
  const [was, is] = [presetJson(before), presetJson(now)];
  const differs = Object.keys(is).find((key) => !isDeepStrictEqual(was[key], is[key]));
  if (differs !== undefined) {
    fail('ERR_CHECKPOINT', 'train', `Expected ${differs} of the model's preset as in ${folder}, ${JSON.stringify(was[differs])}, but received ${JSON.stringify(is[differs])}; resume with the same preset or start anew`);
  }
}

/** A parameter that the files lack would keep what it happens to hold. */
function checkComplete(native: NativeModel, extras: FileExtras): void {
  const held = new Set(extras.tensors.map(({ name }) => name));
  const lacking = guarded(() => native.parameters()).find(({ name }) => !isBackbone(name) && !isAdapter(name) && !held.has(name));
  if (lacking !== undefined) fail('ERR_CHECKPOINT', 'train', `Expected ${lacking.name} in ${extras.path} but received none; resume with the same model`);
}

interface StateTensor {
  /** In the file: slot and parameter. */
  name: string;
  parameter: string;
  slot: ParameterSlot;
  shape: number[];
}

function stateTensors(native: NativeModel): StateTensor[] {
  return guarded(() => native.parameters()).filter(({ trainable }) => trainable).flatMap((parameter) =>
    slotsOf(parameter).map((slot) => ({ name: `${slot}.${parameter.name}`, parameter: parameter.name, slot, shape: parameter.shape })));
}

function slotsOf(parameter: NativeParameterInfo): ParameterSlot[] {
  return parameter.dtype === 'bf16' ? ['first', 'second', 'master'] : ['first', 'second'];
}

async function writeState(native: NativeModel, path: string): Promise<void> {
  await writeSafetensors(path, stateTensors(native).map(({ name, parameter, slot, shape }) => ({
    name, shape, dtype: 'F32' as const, read: () => abortable(undefined, () => native.readParameter(parameter, slot)),
  })));
}

async function restoreState(native: NativeModel, path: string): Promise<void> {
  const header = await readHeader(path);
  for (const { name, parameter, slot, shape } of stateTensors(native)) {
    const entry = header.tensors.get(name);
    if (entry === undefined || entry.dtype !== 'F32' || String(entry.shape) !== String(shape)) {
      const received = entry === undefined ? 'none' : `${entry.dtype} [${entry.shape.join(', ')}]`;
      fail('ERR_CHECKPOINT', 'train', `Expected ${name} in ${path} to be F32 [${shape.join(', ')}] but received ${received}; resume with the same model and trainable parameters`);
    }
    const bytes = await readTensor(header, name);
    const data = new Float32Array(entry.bytes / 4);
    new Uint8Array(data.buffer).set(bytes);   // a copy: the buffer need not start at a multiple of 4
    await abortable(undefined, () => native.writeParameter(parameter, slot, data));
  }
}

/** Fresh optimiser state. */
export async function zeroMoments({ native }: { native: NativeModel }): Promise<void> {
  for (const { name, shape, trainable } of guarded(() => native.parameters())) {
    if (!trainable) continue;
    const zeros = new Float32Array(shape.reduce((product, side) => product * side, 1));
    for (const slot of ['first', 'second'] as const) await abortable(undefined, () => native.writeParameter(name, slot, zeros));
  }
}
