/** What a directory holds, as far as it can be read: every part is looked at by itself, so that one broken file does not hide the others. */
import { join } from 'node:path';
import { deviceReport } from '../device';
import { LatentModel } from '../latentModel';
import { ADAPTER_CONFIG, ADAPTER_WEIGHTS } from '../model/adapterFiles';
import { openCheckpoint, readCompanions, shardFiles, type Checkpoint } from '../model/checkpoint';
import { parseConfig, type ModelConfig } from '../model/config';
import { readJson } from '../model/files';
import { adapterOption } from '../model/modelOptions';
import { isObject, own, type JsonObject } from '../model/jsonReader';
import { availableMemory } from '../model/memory';
import { EMBEDDING, parameterShapes, sizeOf } from '../model/parameterShapes';
import { looksAhead, routes } from '../model/preset';
import { makeProcessor } from '../model/processor';
import { readHeader } from '../model/safetensors';
import { makeChatTemplate, makeTokenizer } from '../model/tokenizer';
import type { StorageDType } from '../native';

/** `trainingBytes`: of the decoder, or of the adapter where there is one; `loraBytes`: of a new adapter of rank 16 on all its linear layers. */
export interface MemoryRow { dtype: StorageDType; loadBytes: number; generationBytes: number; trainingBytes: number; loraBytes?: number }

export interface Inspection {
  directory: string;
  /** Whether `LatentModel.load` takes it, as far as can be told without reading the weights. */
  loadable: boolean;
  /** Why not, and what else is wrong. */
  problems: string[];
  /** What works otherwise than the files say, or not at all. */
  notes: string[];
  architecture?: { kind: string; layers: number; hidden: number; heads: number; kvHeads: number; headDim: number; intermediate: number; vocab: number; tied: boolean; vision: { depth: number; width: number; heads: number; patch: number; merge: number } };
  files?: { name: string; bytes: number; tensors: Record<string, number> }[];
  /** Of 'auto'. */
  dtype?: StorageDType;
  parameters?: Record<string, number>;
  tokenizer?: { tokens: 'yes' | 'no'; template: 'yes' | 'no' };
  reasoning?: { preset: string; replay: boolean; routedLayers: readonly number[]; latentSteps: number };
  adapter?: { base: string; rank: number | undefined; targets: unknown; parameters?: number };
  contextTokens: number;
  memory?: MemoryRow[];
  devices: { name: string; freeBytes: number }[];
}

/** Keys of generation_config.json that are not honoured, with the values that change nothing. */
const IGNORED_GENERATION: Readonly<Record<string, readonly unknown[]>> = {
  num_beams: [1], num_beam_groups: [1], no_repeat_ngram_size: [0], encoder_no_repeat_ngram_size: [0], encoder_repetition_penalty: [1], typical_p: [1], epsilon_cutoff: [0],
  eta_cutoff: [0], penalty_alpha: [0], min_length: [0], min_new_tokens: [0], bad_words_ids: [], force_words_ids: [], suppress_tokens: [], begin_suppress_tokens: [],
  sequence_bias: [], forced_bos_token_id: [], forced_eos_token_id: [], exponential_decay_length_penalty: [], guidance_scale: [1], stop_strings: [],
};

/** Never throws for what a directory holds. */
export async function inspectDirectory(directory: string, contextTokens: number): Promise<Inspection> {
  const found: Inspection = { directory, loadable: false, problems: [], notes: [], contextTokens, devices: devices() };
  const trying = async <T>(work: () => T | Promise<T>): Promise<T | undefined> => {
    try {
      return await work();
    } catch (error) {
      const { message } = error as Error;
      if (!found.problems.includes(message)) found.problems.push(message);
      return undefined;
    }
  };
  await trying(() => inspectAdapter(found));
  const place = await trying(() => adapterOption(directory, undefined));
  if (place === undefined) return found;
  const { base, saved } = place;
  const checkpoint = await trying(() => openCheckpoint(base, {}, saved));
  const config = checkpoint?.config ?? await trying(() => stated(base));
  await trying(() => inspectFiles(found, base, trying));
  if (config !== undefined) inspectConfig(found, config, checkpoint);
  const companions = checkpoint?.companions ?? await trying(() => readCompanions(base));
  if (companions !== undefined) {
    const tokenizer = await trying(() => makeTokenizer(companions)), template = await trying(() => makeChatTemplate(companions));
    found.tokenizer = { tokens: tokenizer === undefined ? 'no' : 'yes', template: template === undefined ? 'no' : 'yes' };
    if (tokenizer === undefined || template === undefined) found.notes.push(`messages are not supported without ${tokenizer === undefined ? 'tokenizer.json' : 'a chat template'}: give token ids`);
  }
  if (checkpoint !== undefined) await trying(() => makeProcessor(checkpoint.config, checkpoint.images, checkpoint.companions));
  await trying(() => inspectGeneration(found, base));
  const source = checkpoint === undefined ? config : directory;
  if (source !== undefined) found.memory = await memory(source, contextTokens, saved !== undefined).catch((error: Error) => {
    // Nothing that keeps it from loading.
    found.notes.push(`the memory cannot be said: ${error.message}`);
    return [];
  });
  found.loadable = checkpoint !== undefined && found.problems.length === 0;
  return found;
}

async function stated(directory: string): Promise<ModelConfig | undefined> {
  const raw = await readJson(join(directory, 'config.json'));
  return raw === undefined ? undefined : parseConfig(raw);
}

async function inspectAdapter(found: Inspection): Promise<void> {
  const raw = await readJson(join(found.directory, ADAPTER_CONFIG));
  if (!isObject(raw)) return;
  const base = own(raw, 'base_model_name_or_path'), rank = own(raw, 'r');
  found.adapter = { base: typeof base === 'string' ? base : 'not named', rank: typeof rank === 'number' ? rank : undefined, targets: own(raw, 'target_modules') };
  const header = await readHeader(join(found.directory, ADAPTER_WEIGHTS));
  found.adapter.parameters = [...header.tensors.values()].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
}

async function inspectFiles(found: Inspection, base: string, trying: <T>(work: () => Promise<T>) => Promise<T | undefined>): Promise<void> {
  found.files = [];
  for (const name of (await shardFiles(base)).keys()) {
    const header = await trying(() => readHeader(join(base, name)));
    if (header === undefined) continue;
    const tensors: Record<string, number> = {};
    let bytes = 0;
    for (const entry of header.tensors.values()) {
      tensors[entry.dtype] = (tensors[entry.dtype] ?? 0) + 1;
      bytes += entry.bytes;
    }
    found.files.push({ name, bytes, tensors });
  }
}

function inspectConfig(found: Inspection, config: ModelConfig, checkpoint: Checkpoint | undefined): void {
  const { kind, text, vision } = config;
  const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab, tied } = text;
  found.architecture = { kind, layers, hidden, heads, kvHeads, headDim, intermediate, vocab, tied, vision: { depth: vision.depth, width: vision.width, heads: vision.heads, patch: vision.patch, merge: vision.merge } };
  const parts: Record<string, number> = {};
  const add = (part: string, shape: readonly number[]): void => {
    parts[part] = (parts[part] ?? 0) + sizeOf(shape);
  };
  for (const { name, shape } of parameterShapes(config)) {
    add(name === EMBEDDING ? 'embedding' : name.startsWith('lm_head') ? 'head' : name.startsWith('visual.merger') ? 'merger' : name.startsWith('visual.') ? 'vision tower' : 'decoder', shape);
  }
  for (const { shape } of checkpoint?.extras.tensors ?? []) add('replay and routing', shape);
  found.parameters = parts;
  if (checkpoint === undefined) return;
  const { preset, latentSteps } = checkpoint.record;
  found.dtype = checkpoint.dtype;
  found.reasoning = { preset: preset.name, replay: preset.replay, routedLayers: preset.routedLayers, latentSteps };
  if (checkpoint.ignored.length > 0) found.notes.push(`${checkpoint.ignored.length} tensors of the files are not used: ${checkpoint.ignored.slice(0, 3).join(', ')}`);
  if (looksAhead(preset)) found.notes.push('the preset looks ahead to later tokens: it cannot be cached, run it with recompute');
  if (!preset.replay && !routes(preset)) found.notes.push('a plain model: it records neither replay nor routing');
}

async function inspectGeneration(found: Inspection, base: string): Promise<void> {
  const raw = await readJson(join(base, 'generation_config.json'));
  if (!isObject(raw)) return;
  const changes = Object.entries(IGNORED_GENERATION).filter(([key, neutral]) => says(raw, key) && !neutral.includes(own(raw, key))).map(([key]) => key);
  if (changes.length > 0) found.notes.push(`generation_config.json asks for what is not supported and not done: ${changes.join(', ')}`);
}

function says(raw: JsonObject, key: string): boolean {
  const value = own(raw, key);
  return value !== undefined && !(Array.isArray(value) && value.length === 0);
}

async function memory(source: string | ModelConfig, contextTokens: number, isAdapted: boolean): Promise<MemoryRow[]> {
  const rows: MemoryRow[] = [];
  for (const dtype of ['f32', 'bf16'] as const) {
    const { loadBytes, generation, training } = await LatentModel.estimate(source, { dtype, contextTokens });
    const lora = isAdapted ? undefined : await LatentModel.estimate(source, { dtype, contextTokens, adapter: { rank: 16 } });
    rows.push({ dtype, loadBytes, generationBytes: generation.totalBytes, trainingBytes: training.totalBytes, ...(lora === undefined ? {} : { loraBytes: lora.training.totalBytes }) });
  }
  return rows;
}

function devices(): Inspection['devices'] {
  const { cuda } = deviceReport();
  return [{ name: 'cpu', freeBytes: availableMemory() }, ...(cuda.isUsable ? [{ name: 'cuda', freeBytes: cuda.freeBytes }] : [])];
}
