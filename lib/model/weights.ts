/** Weights between files and the addon: load, initialise, save. */
import { copyFile, mkdir, realpath, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { abortable } from '../abort';
import { fail, guarded } from '../errors';
import { native, type NativeModel, type NativeParameterInfo, type StorageDType } from '../native';
import type { Checkpoint, CompanionFiles } from './checkpoint';
import { configJson, toNativeSpec, type ModelConfig } from './config';
import { exists, writeAtomically, writeJson, writing } from './files';
import { imageSettingsJson, type ImageSettings } from './imageSettings';
import { requireMemory } from './memory';
import { parameterShapes, sizeOf } from './parameterShapes';
import { recordJson, type LatentRecord } from './record';
import { writeSafetensors, type TensorSource } from './safetensors';

export interface LoadProgress {
  /** Bytes of the files read so far, of all that are read. */
  doneBytes: number;
  totalBytes: number;
}

export interface WeightOptions {
  /** Stops between tensors and rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Bytes that the weights may take. Default: what is available now; `Infinity` switches the check off. */
  maxMemoryBytes?: number | undefined;
}

/** One native call reads about this much, so that progress moves. */
const BATCH_BYTES = 128 * 1024 * 1024;

/** Makes an empty native model after asking whether it fits. The caller disposes it. */
function makeModel(op: string, what: string, config: ModelConfig, images: ImageSettings, dtype: StorageDType, limit: number | undefined): NativeModel {
  requireMemory(op, what, config, dtype, limit);
  const model = guarded(() => new (native().Model)(toNativeSpec(config, images, dtype)));
  const infos = new Map(model.parameters().map((info) => [info.name, info]));
  const differs = parameterShapes(config).find(({ name, shape }) => sizeOf(infos.get(name)?.shape ?? [-1]) !== sizeOf(shape));
  if (differs === undefined) return model;
  model.dispose();
  return fail('ERR_INTERNAL', op, `Expected the addon to hold parameter '${differs.name}' of shape [${differs.shape.join(', ')}] but received another. The addon and the library are of different versions: rebuild`);
}

/** Reads all weights of an opened checkpoint. Nothing is left behind when it fails or is stopped. */
export async function loadWeights(checkpoint: Checkpoint, dtype: StorageDType, options: WeightOptions): Promise<NativeModel> {
  const model = makeModel('load', checkpoint.directory, checkpoint.config, checkpoint.images, dtype, options.maxMemoryBytes);
  try {
    await readWeights(model, checkpoint, options);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Reads the weights of a checkpoint into a model of the same shapes. */
export async function readWeights(model: NativeModel, checkpoint: Checkpoint, options: Pick<WeightOptions, 'signal' | 'onProgress'> = {}): Promise<void> {
  const totalBytes = checkpoint.files.reduce((sum, file) => sum + bytesOf(file.tensors), 0);
  let doneBytes = 0;
  for (const { path, tensors } of checkpoint.files) {
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
export async function initializeWeights(config: ModelConfig, images: ImageSettings, dtype: StorageDType, seed: number, options: WeightOptions): Promise<NativeModel> {
  const model = makeModel('create', 'the new model', config, images, dtype, options.maxMemoryBytes);
  try {
    for (const { name, role } of parameterShapes(config)) {
      const [kind, scale] = role === 'matrix' ? (['normal', config.initializerRange] as const) : (['constant', role === 'scale' ? 1 : 0] as const);
      await abortable(options.signal, () => model.initialize(name, kind, scale, seed));
    }
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** All that a checkpoint directory holds beside the weights. */
export interface CheckpointParts {
  readonly config: ModelConfig;
  readonly images: ImageSettings;
  readonly record: LatentRecord;
  readonly companions: CompanionFiles;
  /** Directory the model came from, for plumbline.safetensors (tensors of replay and routing), which is copied through. */
  readonly origin?: string | undefined;
}

/**
 * Writes a directory in the classic Hugging Face layout. Each file appears complete or not at all, the weights last. Matrices keep
 * the model's storage type, vectors are f32, so that loading gives the same bits.
 */
export function saveCheckpoint(directory: string, model: NativeModel, dtype: StorageDType, parts: CheckpointParts, options: WeightOptions = {}): Promise<void> {
  return writing('save', directory, () => writeFiles(directory, model, dtype, parts, options));
}

async function writeFiles(directory: string, model: NativeModel, dtype: StorageDType, parts: CheckpointParts, options: WeightOptions): Promise<void> {
  const infos = new Map(guarded(() => model.parameters()).map((info) => [info.name, info]));
  const tensors = parameterShapes(parts.config).map(({ name, shape }) => source(model, infos.get(name), name, shape));
  await mkdir(directory, { recursive: true });
  await writeJson(join(directory, 'config.json'), configJson(parts.config, dtype));
  await writeJson(join(directory, 'preprocessor_config.json'), imageSettingsJson(parts.images, parts.config.vision));
  await writeJson(join(directory, 'plumbline.json'), recordJson(parts.record));
  for (const [name, text] of parts.companions) await writeAtomically(join(directory, name), (write) => write(Buffer.from(text)));
  if (!parts.companions.has('generation_config.json')) await writeJson(join(directory, 'generation_config.json'), generationJson(parts.config));
  await copyReplayTensors(parts.origin, directory);
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, {
    metadata: { format: 'pt' },
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    onProgress: ({ doneBytes, totalBytes }) => options.onProgress?.({ doneBytes, totalBytes }),
  });
  // An index of shards that lay here before would describe other weights.
  await rm(join(directory, 'model.safetensors.index.json'), { force: true });
}

function source(model: NativeModel, info: NativeParameterInfo | undefined, name: string, shape: readonly number[]): TensorSource {
  return info?.dtype === 'bf16'
    ? { name, shape, dtype: 'BF16', read: () => abortable(undefined, () => model.readParameterBf16(name)) }
    : { name, shape, dtype: 'F32', read: () => abortable(undefined, () => model.readParameter(name, 'value')) };
}

function generationJson(config: ModelConfig): Record<string, unknown> {
  const { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad } = configJson(config, 'f32');
  return { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad, do_sample: false };
}

async function copyReplayTensors(origin: string | undefined, directory: string): Promise<void> {
  const file = 'plumbline.safetensors';
  if (origin === undefined || !(await exists(join(origin, file)))) return;
  if ((await realpath(origin)) !== (await realpath(directory))) await copyFile(join(origin, file), join(directory, file));
}
