/**
 * Opens a Hugging Face directory: reads the small files, finds every tensor, checks names and shapes. No weight is read here; see
 * `weights.ts`.
 */
import { join } from 'node:path';
import * as check from '../check';
import { fail } from '../errors';
import type { NativeFileTensor, StorageDType } from '../native';
import { parseConfig, withVocab, type ModelConfig } from './config';
import { adaptableLayers } from './adapter';
import { openAdapter, type FileAdapter } from './adapterFiles';
import { checkExtraShapes, extraShapes, EXTRAS_FILE, readExtras, type FileExtras } from './extras';
import { kindOf, readJson, readText } from './files';
import { parseImageSettings, type ImageSettings } from './imageSettings';
import { isObject, own } from './jsonReader';
import { canonicalName, EMBEDDING, parameterShapes, sizeOf } from './parameterShapes';
import { makePreset, type PresetChanges, type PresetName } from './preset';
import { parseGeneration, parseRecord, type GenerationDefaults, type LatentRecord } from './record';
import { readHeader, type TensorEntry } from './safetensors';

/** Text files that are read with a checkpoint and written again when it is saved. */
const COMPANION_FILES = [
  'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'merges.txt',
  'chat_template.json', 'chat_template.jinja', 'processor_config.json', 'video_preprocessor_config.json',
] as const;
export type CompanionFiles = ReadonlyMap<string, string>;

export interface Checkpoint {
  readonly directory: string;
  readonly config: ModelConfig;
  readonly images: ImageSettings;
  readonly generation: GenerationDefaults;
  readonly record: LatentRecord;
  readonly companions: CompanionFiles;
  /** With an adapter: the files of the base alone. */
  readonly baseCompanions?: CompanionFiles;
  /** Storage that loses nothing of the file and takes the least memory. */
  readonly dtype: StorageDType;
  /** Where each parameter lies, by file. */
  readonly files: readonly { readonly path: string; readonly tensors: readonly NativeFileTensor[] }[];
  /** Tensors of the files that a model does not have by itself: a copy of the tied head, rotary tables. */
  readonly ignored: readonly string[];
  /** Tensors beside the backbone, those too that the preset does not need. */
  readonly extras: FileExtras;
  /** An adapter of PEFT on top. */
  readonly adapter?: FileAdapter;
}

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
/** The largest models have some hundred. */
const MAX_SHARDS = 10_000;
const LOADABLE: ReadonlySet<string> = new Set(['F32', 'F16', 'BF16']);

/** A tensor of some file, under its canonical name. */
interface Found {
  readonly entry: TensorEntry;
  readonly path: string;
}

/**
 * @param directory holds config.json and model.safetensors (or shards and their index); tokenizer, template and preprocessing
 *   files are taken where present.
 * @param preset a name, or changes of the recorded preset; the checkpoint's record says the outcome.
 * @param adapterDirectory holds an adapter as PEFT saves it; what lies beside it (plumbline.json, plumbline.safetensors, tokenizer files)
 *   counts instead of the base's.
 * @throws {LibError} `ERR_CHECKPOINT` naming the file and the tensor or key, `ERR_UNSUPPORTED` for other kinds of model,
 *   `ERR_ARGUMENT` and `ERR_RANGE` for the preset.
 */
export async function openCheckpoint(directory: string, preset: PresetName | PresetChanges = {}, adapterDirectory?: string): Promise<Checkpoint> {
  check.path('load', 'directory', directory);
  const rawConfig = await readJson(join(directory, 'config.json'));
  if (rawConfig === undefined) {
    if (await kindOf(directory) === 'missing') return fail('ERR_CHECKPOINT', 'load', `Expected the directory of a Hugging Face checkpoint but received ${JSON.stringify(directory)}, which is not there. ${nowhere(directory)}`);
    return fail('ERR_CHECKPOINT', 'load', `Expected config.json in ${directory} but received ${await missingFrom(directory)}. Give the directory of a Hugging Face checkpoint.`);
  }
  const stated = parseConfig(rawConfig);
  const found = await findTensors(directory);
  const config = withVocab(stated, tableRows(found, stated));
  const { files, ignored, dtype } = matchParameters(found, config);
  const { layers, hidden } = config.text;
  const adapter = adapterDirectory === undefined ? undefined : await openAdapter(adapterDirectory, adaptableLayers(config));
  const beside = async (file: string): Promise<string> => (adapterDirectory !== undefined && await kindOf(join(adapterDirectory, file)) !== 'missing' ? adapterDirectory : directory);
  const recorded = parseRecord(await readJson(join(await beside('plumbline.json'), 'plumbline.json')), layers);
  const record = Object.freeze({ ...recorded, preset: makePreset(preset, layers, recorded.preset) });
  const extras = await readExtras(await beside(EXTRAS_FILE));
  const baseCompanions = await readCompanions(directory);
  const held = new Set(extras.tensors.map(({ name }) => name));
  const lost = extraShapes(recorded.preset, hidden).find(({ name }) => !held.has(name));
  if (lost !== undefined) {
    fail('ERR_CHECKPOINT', 'load', `Expected tensor '${lost.name}' in ${extras.path}, as the switches in plumbline.json need, but received a checkpoint without it. Restore the file: without it the model has lost what it learned beside its backbone.`);
  }
  checkExtraShapes(extras, extraShapes(record.preset, hidden), `the preset and hidden_size = ${hidden} say`, 'The files belong to different models.');
  return Object.freeze({
    directory, config, files, ignored, dtype, record, extras,
    images: parseImageSettings(await readPreprocessing(directory), config.vision),
    generation: parseGeneration(await readJson(join(directory, 'generation_config.json')), config.source),
    companions: new Map([...baseCompanions, ...(adapterDirectory === undefined ? [] : await readCompanions(adapterDirectory))]),
    ...(adapter === undefined ? {} : { adapter, baseCompanions }),
  });
}

/** What to do about a directory that is not there; what looks like a name of the hub was probably meant as one. */
function nowhere(directory: string): string {
  const [, name] = /^[\w-][\w.-]*\/([\w-][\w.-]*)$/.exec(directory) ?? [];
  return name === undefined ? 'Correct the path.' : `Nothing is downloaded here: huggingface-cli download ${directory} --local-dir ${name}, then give ${name}.`;
}

async function missingFrom(directory: string): Promise<string> {
  const kind = await kindOf(directory);
  return kind === 'a directory' ? 'no such file' : kind === 'file' ? 'a file of that name' : kind;
}

async function readPreprocessing(directory: string): Promise<unknown> {
  const classic = await readJson(join(directory, 'preprocessor_config.json'));
  if (classic !== undefined) return classic;
  const processor = await readJson(join(directory, 'processor_config.json'));  // transformers 5 nests it there
  return isObject(processor) ? own(processor, 'image_processor') : undefined;
}

/** Tokenizer, template and generation files of a directory. */
export async function readCompanions(directory: string): Promise<CompanionFiles> {
  const files = new Map<string, string>();
  for (const name of COMPANION_FILES) {
    const text = await readText(join(directory, name));
    if (text !== undefined) files.set(name, text);
  }
  return files;
}

async function findTensors(directory: string): Promise<Map<string, Found>> {
  const found = new Map<string, Found>();
  const shards = await shardFiles(directory);
  for (const [file, listed] of shards) {
    const header = await readHeader(join(directory, file));
    for (const name of listed ?? []) {
      if (!header.tensors.has(name)) fail('ERR_CHECKPOINT', 'load', `Expected tensor '${name}' in ${file}, as ${INDEX} says, but received a file without it. Download both again.`);
    }
    for (const entry of header.tensors.values()) {
      const name = canonicalName(entry.name);
      const earlier = found.get(name);
      if (earlier !== undefined) fail('ERR_CHECKPOINT', 'load', `Expected tensor '${name}' once but received '${earlier.entry.name}' in ${earlier.path} and '${entry.name}' in ${header.path}. Remove the files that do not belong to the checkpoint.`);
      found.set(name, { entry, path: header.path });
    }
  }
  return found;
}

/** Weight files and, when sharded, the names that each should hold. One file wins over shards, as in transformers. */
export async function shardFiles(directory: string): Promise<Map<string, string[] | undefined>> {
  if (await kindOf(join(directory, SINGLE)) !== 'missing') return new Map([[SINGLE, undefined]]);
  const index = await readJson(join(directory, INDEX));
  if (index === undefined) return fail('ERR_CHECKPOINT', 'load', `Expected ${SINGLE} or ${INDEX} in ${directory} but received neither. Download the weights, or convert them to safetensors.`);
  const map = isObject(index) ? own(index, 'weight_map') : undefined;
  if (!isObject(map)) return fail('ERR_CHECKPOINT', 'load', `Expected weight_map in ${INDEX} to be an object but received something else. Download the file again.`);
  const shards = new Map<string, string[]>();
  for (const [name, file] of Object.entries(map)) {
    // Only plain names: an index from a stranger must not point out of the directory.
    if (typeof file !== 'string' || !/^[^/\\]+\.safetensors$/.test(file)) return fail('ERR_CHECKPOINT', 'load', `Expected the file of '${name}' in ${INDEX} to be the name of a .safetensors file beside it but received ${check.brief(file, 120)}. Download the file again.`);
    const names = shards.get(file) ?? [];
    names.push(name);
    shards.set(file, names);
  }
  if (shards.size > MAX_SHARDS) return fail('ERR_CHECKPOINT', 'load', `Expected at most ${MAX_SHARDS} files in weight_map of ${INDEX} but received ${shards.size}. Download the file again.`);
  return shards;
}

/** Rows of the embedding table: the file knows better than config.json, whose vocab_size may be smaller or larger. */
function tableRows(found: ReadonlyMap<string, Found>, config: ModelConfig): number {
  const table = found.get(EMBEDDING);
  if (table === undefined) return config.text.vocab;  // reported as missing with the others
  const [rows, width] = table.entry.shape;
  if (table.entry.shape.length !== 2 || rows === undefined || rows < 1 || width !== config.text.hidden) {
    return wrongShape(table, ['rows', config.text.hidden]);
  }
  return rows;
}

function wrongShape(found: Found, expected: readonly (number | string)[]): never {
  return fail('ERR_CHECKPOINT', 'load', `Expected tensor '${found.entry.name}' to have shape [${expected.join(', ')}], as config.json says, but received [${found.entry.shape.join(', ')}] in ${found.path}. `
    + 'config.json and the weights belong to different models.');
}

function matchParameters(found: ReadonlyMap<string, Found>, config: ModelConfig): Pick<Checkpoint, 'files' | 'ignored' | 'dtype'> {
  const byFile = new Map<string, NativeFileTensor[]>();
  const used = new Set<string>();
  const missing: string[] = [];
  let narrow = true;
  for (const { name, shape } of parameterShapes(config)) {
    const tensor = found.get(name);
    if (tensor === undefined) {
      missing.push(name);
      continue;
    }
    const { entry, path } = tensor;
    if (entry.shape.length !== shape.length || entry.shape.some((n, i) => n !== shape[i])) wrongShape(tensor, shape);
    if (!LOADABLE.has(entry.dtype)) fail('ERR_CHECKPOINT', 'load', `Expected tensor '${entry.name}' to be F32, F16 or BF16 but received ${entry.dtype} in ${path}. Use the unquantised checkpoint.`);
    if (shape.length > 1 && entry.dtype !== 'BF16') narrow = false;
    used.add(name);
    const tensors = byFile.get(path) ?? [];
    tensors.push({ name, dtype: entry.dtype as NativeFileTensor['dtype'], offset: entry.offset, bytes: entry.bytes });
    byFile.set(path, tensors);
  }
  if (missing.length > 0) reportMissing(missing, config);
  const extra = [...found.keys()].filter((name) => !used.has(name));
  const ignored = extra.filter((name) => isIgnorable(name, found, config));
  const unexpected = extra.filter((name) => !ignored.includes(name));
  if (unexpected.length > 0) {
    fail('ERR_CHECKPOINT', 'load', `Expected only tensors of the model that config.json describes but received ${list(unexpected)}. config.json and the weights belong to different models.`);
  }
  const files = [...byFile].map(([path, tensors]) => ({ path, tensors: tensors.sort((a, b) => a.offset - b.offset) }));
  return { files, ignored, dtype: narrow ? 'bf16' : 'f32' };
}

function reportMissing(missing: readonly string[], config: ModelConfig): never {
  const tied = missing.length === 1 && missing[0] === 'lm_head.weight' && !config.text.tied;
  return fail('ERR_CHECKPOINT', 'load', `Expected tensor ${list(missing)} but received a checkpoint without ${missing.length === 1 ? 'it' : 'them'}. `
    + (tied ? 'If the head is the embedding table, set tie_word_embeddings to true in config.json.' : 'Download the missing files, or correct the sizes in config.json.'));
}

/** Tensors that some savers add: the head that is tied to the embedding table, and tables that are computed here. */
function isIgnorable(name: string, found: ReadonlyMap<string, Found>, config: ModelConfig): boolean {
  if (name.endsWith('.rotary_emb.inv_freq') || name.endsWith('.rotary_pos_emb.inv_freq')) return true;
  if (name !== 'lm_head.weight' || !config.text.tied) return false;
  return sizeOf(found.get(name)?.entry.shape ?? []) === config.text.vocab * config.text.hidden;
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 3).map((name) => `'${name.slice(0, 200)}'`).join(', ');
  return names.length > 3 ? `${shown} and ${names.length - 3} more` : shown;
}
