/** How a model is asked for: the options of `LatentModel`, checked, and what it is made of beside its weights. */
import { join } from 'node:path';
import * as check from '../check';
import { chooseDevice, type DeviceChoice, type DeviceName } from '../device';
import { fail } from '../errors';
import type { StorageDType } from '../native';
import type { Adapter, AdapterOptions } from './adapter';
import { ADAPTER_CONFIG, baseDirectory } from './adapterFiles';
import { readCompanions, type CompanionFiles } from './checkpoint';
import type { ModelConfig } from './config';
import { exists, kindOf, readJson } from './files';
import { parseImageSettings, type ImageSettings } from './imageSettings';
import { isObject } from './jsonReader';
import type { Preset, PresetChanges, PresetName } from './preset';
import { parseGeneration, parseRecord, type GenerationDefaults, type LatentRecord } from './record';
import type { LoadProgress } from './weights';

export interface LoadOptions {
  /** Storage of the matrices. 'auto' (default): bf16 where the file is, else f32. Sums are f32 always. */
  dtype?: StorageDType | 'auto';
  /** Where the weights lie and the work is done: 'cpu', 'cuda', or 'auto' (default, unless PLUMBLINE_DEVICE says otherwise). */
  device?: DeviceChoice;
  /** A preset by name, or switches to change: of the preset `name` when that is given, else of the recorded one. Default: as recorded. */
  preset?: PresetName | PresetChanges;
  /** Give the tokenizer `<|start-latent|>`, `<|end-latent|>` and `<|latent|>` where it lacks them, with rows in the embedding table; `save` keeps them (default: where an adapter was trained with them). */
  latentTokens?: boolean;
  /**
   * A low-rank adapter on the weights: the directory of one as PEFT saves it, or the shape of a new one, which changes nothing until it is
   * trained. Training a model with an adapter trains the adapter.
   */
  adapter?: string | AdapterOptions;
  /** Of the parameters that the preset and a new adapter need and the checkpoint lacks (default 0). */
  seed?: number;
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
  /** Bytes that the weights may take. Default: what is available now; `Infinity` switches the check off. */
  maxMemoryBytes?: number;
}

export interface CreateOptions {
  dtype?: StorageDType;
  /** Where the weights lie and the work is done: 'cpu', 'cuda', or 'auto' (default, unless PLUMBLINE_DEVICE says otherwise). */
  device?: DeviceChoice;
  /** Same config, dtype and seed: same weights (default 0). */
  seed?: number;
  /** Directory with tokenizer, chat template, preprocessor_config.json and generation_config.json for the new model. */
  processor?: string;
  /** Latent steps before the words (default: as plumbline.json of `processor` says, else 0). */
  latentSteps?: number;
  /** A preset by name, or switches that differ from those of `name` ('default' when not given). Default: `PLAIN`, no replay and no routing. */
  preset?: PresetName | PresetChanges;
  /** A low-rank adapter on the weights. */
  adapter?: AdapterOptions;
  signal?: AbortSignal;
  maxMemoryBytes?: number;
}

export interface SaveOptions {
  /** Recorded in plumbline.json instead of the model's own. */
  latentSteps?: number;
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
}

/** What a model is made of, beside its weights. */
export interface ModelParts {
  config: ModelConfig;
  images: ImageSettings;
  generation: GenerationDefaults;
  record: LatentRecord;
  companions: CompanionFiles;
  adapter?: Adapter | undefined;
}

/** The directory of the weights, and the adapter that goes on top: saved in a directory, or a new one. */
export async function adapterOption(directory: string, wanted: string | AdapterOptions | undefined): Promise<{ base: string; saved?: string; fresh?: AdapterOptions }> {
  if (typeof wanted === 'string') return { base: directory, saved: check.path('load', 'adapter', wanted) };
  if (wanted !== undefined) return { base: directory, fresh: wanted };
  if (await kindOf(join(directory, ADAPTER_CONFIG)) === 'missing') return { base: directory };
  // Beside weights it belongs to them, as transformers has it.
  return { base: await exists(join(directory, 'config.json')) ? directory : await baseDirectory(directory), saved: directory };
}

interface CheckedWeightOptions {
  device: DeviceName;
  signal: AbortSignal | undefined;
  onProgress: ((progress: LoadProgress) => void) | undefined;
  maxMemoryBytes: number | undefined;
}

export function weightOptions(op: string, options: { device?: DeviceChoice; signal?: AbortSignal; onProgress?: (progress: LoadProgress) => void; maxMemoryBytes?: number }): CheckedWeightOptions {
  const { onProgress, maxMemoryBytes } = options;
  if (onProgress !== undefined && typeof onProgress !== 'function') fail('ERR_ARGUMENT', op, `Expected onProgress to be a function but received ${check.show(onProgress)}`);
  if (maxMemoryBytes !== undefined && maxMemoryBytes !== Infinity) check.number(op, 'maxMemoryBytes', maxMemoryBytes, 0);
  return { device: chooseDevice(op, options.device), signal: check.signal(op, options.signal), onProgress, maxMemoryBytes };
}

export async function newParts(config: ModelConfig, directory: string | undefined, latentSteps: number | undefined, preset: Preset): Promise<ModelParts> {
  const read = async (name: string): Promise<unknown> => (directory === undefined ? undefined : readJson(join(directory, name)));
  const companions = directory === undefined ? new Map<string, string>() : await readCompanions(directory);
  const record = parseRecord(withoutSwitches(await read('plumbline.json')), config.text.layers);
  return {
    config, companions, record: { ...record, preset, latentSteps: latentSteps ?? record.latentSteps },
    images: parseImageSettings(await read('preprocessor_config.json'), config.vision),
    generation: parseGeneration(await read('generation_config.json'), config.source),
  };
}

/** The switches of a processor's folder are those of another model, which may have other layers. */
function withoutSwitches(raw: unknown): unknown {
  if (!isObject(raw)) return raw;
  const { switches: _, format, ...rest } = raw;
  return { ...rest, format: format === 2 ? 1 : format };
}
