/** Weights between files and the addon: load, initialise, save. */
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { abortable } from '../abort';
import type { DeviceName } from '../device';
import { fail, guarded } from '../errors';
import { native, type NativeExtraSpec, type NativeModel, type NativeParameterInfo, type StorageDType } from '../native';
import type { Checkpoint, CompanionFiles } from './checkpoint';
import { ADAPTER_CONFIG, ADAPTER_WEIGHTS } from './adapterFiles';
import { configJson, toNativeSpec, type ModelConfig } from './config';
import { adapterShapes, adapterSpecs, isAdapter, type Adapter } from './adapter';
import { checkExtraShapes, extraShapes, EXTRAS_FILE, type ExtraShape } from './extras';
import { writeAtomically, writeJson, writing } from './files';
import { imageSettingsJson, type ImageSettings } from './imageSettings';
import { availableMemory, requireMemory } from './memory';
import { isBackbone, parameterShapes, sizeOf } from './parameterShapes';
import { recordJson, type LatentRecord } from './record';
import { writeSafetensors, type TensorSource } from './safetensors';

export interface LoadProgress {
  /** Bytes of tensors done so far, of all. */
  doneBytes: number;
  totalBytes: number;
}

export interface WeightOptions {
  /** Where the weights are (default 'cpu'). */
  device?: DeviceName | undefined;
  /** Stops between tensors and rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Bytes that the weights may take. Default: what is available now; `Infinity` switches the check off. */
  maxMemoryBytes?: number | undefined;
}

/** One native call reads about this much, so that progress moves. */
const BATCH_BYTES = 128 * 1024 * 1024;

/** Bytes that a device can still take. */
export function memoryOf(device: DeviceName): number {
  return device === 'cuda' ? native().cudaDevice().freeBytes : availableMemory();
}

/** Makes an empty native model after asking whether it fits. The caller disposes it. */
function makeModel(op: string, what: string, { config, images, adapter }: Pick<CheckpointParts, 'config' | 'images' | 'adapter'>, dtype: StorageDType, extras: readonly NativeExtraSpec[], { maxMemoryBytes: limit, device = 'cpu' }: WeightOptions): NativeModel {
  const adapted = adapterShapes(adapter);
  requireMemory(op, what, config, dtype, [...extras, ...adapted], limit ?? memoryOf(device));
  const model = guarded(() => new (native().Model)({ ...toNativeSpec(config, images, dtype, extras), adapters: adapterSpecs(adapter) }, device));
  const infos = new Map(model.parameters().map((info) => [info.name, info]));
  const differs = [...parameterShapes(config), ...extras, ...adapted].find(({ name, shape }) => sizeOf(infos.get(name)?.shape ?? [-1]) !== sizeOf(shape));
  if (differs === undefined) return model;
  model.dispose();
  return fail('ERR_INTERNAL', op, `Expected the addon to hold parameter '${differs.name}' of shape [${differs.shape.join(', ')}] but received another. The addon and the library are of different versions: rebuild`);
}

/**
 * Reads all weights of an opened checkpoint. Nothing is left behind when it fails or is stopped.
 *
 * @param seed of the parameters that the preset needs and the files lack: they start as in a new model.
 * @param adapter of the model: a new one, or the checkpoint's.
 */
export async function loadWeights(checkpoint: Checkpoint, dtype: StorageDType, seed: number, options: WeightOptions, adapter?: Adapter): Promise<NativeModel> {
  const { config, images, record, extras: { tensors } } = checkpoint;
  const held = new Set(tensors.map(({ name }) => name));
  const lacking = extraShapes(record.preset, config.text.hidden).filter(({ name }) => !held.has(name));
  const model = makeModel('load', checkpoint.directory, { config, images, adapter }, dtype, [...tensors, ...lacking], options);
  try {
    await initializeExtras(model, lacking, config, seed, options.signal);
    await initializeAdapter(model, adapter, seed, options.signal);
    await readWeights(model, checkpoint, options);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Reads the weights of a checkpoint into a model of the same shapes. Of the tensors beside the backbone, those are read that the
 * model has; what it has and the checkpoint lacks stays as it is.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming the tensor; before anything is read when a shape differs.
 */
export async function readWeights(model: NativeModel, checkpoint: Checkpoint, options: Pick<WeightOptions, 'signal' | 'onProgress'> = {}): Promise<void> {
  const mine = new Map(guarded(() => model.parameters()).map((info) => [info.name, info]));
  const { path: extrasPath, tensors: stored } = checkpoint.extras;
  checkExtraShapes(checkpoint.extras, [...mine.values()], 'this model has it', 'Load the checkpoint as a model of its own.');
  const files = [...checkpoint.files, { path: extrasPath, tensors: stored.filter(({ name }) => mine.has(name)) }, ...(checkpoint.adapter === undefined ? [] : [checkpoint.adapter])];
  await readFiles(model, files, options);
}

/** Reads tensors of files into parameters of their names. */
export async function readFiles(model: NativeModel, files: Checkpoint['files'], options: Pick<WeightOptions, 'signal' | 'onProgress'> = {}): Promise<void> {
  const totalBytes = files.reduce((sum, file) => sum + bytesOf(file.tensors), 0);
  let doneBytes = 0;
  for (const { path, tensors } of files) {
    for (const batch of batches(tensors)) {
      await abortable(options.signal, (token) => model.loadFile(path, batch, token));
      doneBytes += bytesOf(batch);
      options.onProgress?.({ doneBytes, totalBytes });
    }
  }
}

function bytesOf(tensors: readonly { bytes: number }[]): number {
  return tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
}

function* batches<T extends { bytes: number }>(tensors: readonly T[]): Generator<T[]> {
  let batch: T[] = [];
  for (const tensor of tensors) {
    batch.push(tensor);
    if (bytesOf(batch) < BATCH_BYTES) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

/** A model with new weights: matrices normal with `initializer_range`, norm scales 1, biases 0. Same seed, same weights. */
export async function initializeWeights(parts: Pick<CheckpointParts, 'config' | 'images' | 'record' | 'adapter'>, dtype: StorageDType, seed: number, options: WeightOptions): Promise<NativeModel> {
  const { config, record } = parts;
  const extras = extraShapes(record.preset, config.text.hidden);
  const model = makeModel('create', 'the new model', parts, dtype, extras, options);
  try {
    for (const { name, role } of parameterShapes(config)) {
      const [kind, scale] = role === 'matrix' ? (['normal', config.initializerRange] as const) : (['constant', role === 'scale' ? 1 : 0] as const);
      await abortable(options.signal, () => model.initialize(name, kind, scale, seed));
    }
    await initializeExtras(model, extras, config, seed, options.signal);
    await initializeAdapter(model, parts.adapter, seed, options.signal);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

async function initializeExtras(model: NativeModel, extras: readonly ExtraShape[], config: ModelConfig, seed: number, signal: AbortSignal | undefined): Promise<void> {
  for (const { name, shape, start } of extras) {
    // Written, because the addon's own constants end at 1e30, below an unset threshold.
    await abortable(signal, () => (start === 'normal'
      ? model.initialize(name, 'normal', config.initializerRange, seed) : model.writeParameter(name, 'value', new Float32Array(sizeOf(shape)).fill(start))));
  }
}

/** B is zero, so that the model starts as it was; A normal with the variance of PEFT's uniform numbers, 1 / (3 in). */
async function initializeAdapter(model: NativeModel, adapter: Adapter | undefined, seed: number, signal: AbortSignal | undefined): Promise<void> {
  for (const { name, shape, part } of adapterShapes(adapter)) {
    await abortable(signal, () => (part === 'A' ? model.initialize(name, 'normal', Math.sqrt(1 / (3 * shape[1]!)), seed) : model.initialize(name, 'constant', 0, seed)));
  }
}

/** All that a checkpoint directory holds beside the weights. */
export interface CheckpointParts {
  readonly config: ModelConfig;
  readonly images: ImageSettings;
  readonly record: LatentRecord;
  readonly companions: CompanionFiles;
  readonly adapter?: Adapter | undefined;
}

/**
 * Writes a directory in the classic Hugging Face layout. Each file appears complete or not at all, the weights last. Matrices keep
 * the model's storage type, vectors are f32, so that loading gives the same bits. An adapter is folded into the weights that are written.
 */
export function saveCheckpoint(directory: string, model: NativeModel, dtype: StorageDType, parts: CheckpointParts, options: WeightOptions = {}): Promise<void> {
  return writing('save', directory, () => writeFiles(directory, model, dtype, parts, options));
}

async function writeFiles(directory: string, model: NativeModel, dtype: StorageDType, parts: CheckpointParts, options: WeightOptions): Promise<void> {
  const infos = new Map(guarded(() => model.parameters()).map((info) => [info.name, info]));
  const adapted = new Set(parts.adapter?.layers.map(({ target }) => `${target}.weight`));
  const tensors = parameterShapes(parts.config).map(({ name, shape }) => source(model, infos.get(name), name, shape, adapted.has(name)));
  await mkdir(directory, { recursive: true });
  await writeJson(join(directory, 'config.json'), configJson(parts.config, dtype));
  await writeJson(join(directory, 'preprocessor_config.json'), imageSettingsJson(parts.images, parts.config.vision));
  await writeJson(join(directory, 'plumbline.json'), recordJson(parts.record));
  for (const [name, text] of parts.companions) await writeAtomically(join(directory, name), (write) => write(Buffer.from(text)));
  if (!parts.companions.has('generation_config.json')) await writeJson(join(directory, 'generation_config.json'), generationJson(parts.config));
  const { signal, onProgress } = options;
  const extraBytes = await writeExtras(directory, model, signal);
  const stopped = signal === undefined ? {} : { signal };
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, {
    metadata: { format: 'pt' }, ...stopped,
    onProgress: ({ doneBytes, totalBytes }) => onProgress?.({ doneBytes: extraBytes + doneBytes, totalBytes: extraBytes + totalBytes }),
  });
  // An index of shards that lay here before would describe other weights, and readers would put an adapter on top once more.
  for (const stale of ['model.safetensors.index.json', ADAPTER_CONFIG, ADAPTER_WEIGHTS]) await rm(join(directory, stale), { force: true });
}

/** Writes plumbline.safetensors and returns the bytes of its tensors. */
export async function writeExtras(directory: string, model: NativeModel, signal?: AbortSignal): Promise<number> {
  const extras = guarded(() => model.parameters()).filter(({ name }) => !isBackbone(name) && !isAdapter(name)).sort((a, b) => (a.name < b.name ? -1 : 1))
    .map((info) => source(model, info, info.name, info.shape));
  // Extras that lay here before would belong to other weights.
  if (extras.length === 0) await rm(join(directory, EXTRAS_FILE), { force: true });
  else await writeSafetensors(join(directory, EXTRAS_FILE), extras, { metadata: { format: 'plumbline' }, ...(signal === undefined ? {} : { signal }) });
  return extras.reduce((sum, { shape }) => sum + 4 * sizeOf(shape), 0);
}

function source(model: NativeModel, info: NativeParameterInfo | undefined, name: string, shape: readonly number[], isAdapted = false): TensorSource {
  return info?.dtype === 'bf16'
    ? { name, shape, dtype: 'BF16', read: () => abortable(undefined, () => (isAdapted ? model.readMerged(name, 'bf16') : model.readParameterBf16(name))) }
    : { name, shape, dtype: 'F32', read: () => abortable(undefined, () => (isAdapted ? model.readMerged(name, 'f32') : model.readParameter(name, 'value'))) };
}

function generationJson(config: ModelConfig): Record<string, unknown> {
  const { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad } = configJson(config, 'f32');
  return { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad, do_sample: false };
}
