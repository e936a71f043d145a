/** What loading, generating with and training a model take in all. */
import * as check from '../check';
import { fail } from '../errors';
import type { NativeExtraSpec, StorageDType } from '../native';
import { adapterShapes, makeAdapter, type Adapter, type AdapterOptions } from './adapter';
import { openCheckpoint } from './checkpoint';
import { configOf, type ModelConfig, type NewModelConfig } from './config';
import { extraShapes } from './extras';
import { estimateMemory } from './memory';
import { adapterOption } from './modelOptions';
import { parameterShapes, sizeOf } from './parameterShapes';
import { makePreset, PLAIN, type Preset, type PresetChanges, type PresetName } from './preset';
import { estimateSession } from './sessionMemory';

/** Tokens of one page of the cache. */
const PAGE_TOKENS = 64;
/** Logits are computed in pieces of this size. */
const LOGIT_BYTES = 64 * 2 ** 20;
export const MAX_CONTEXT = 2 ** 30;

export interface EstimateOptions {
  /** Storage of the matrices (default: as the files, 'f32' for a config). */
  dtype?: StorageDType | undefined;
  /** Tokens of the context: prompt, pictures and answer together (default 4096). */
  contextTokens?: number | undefined;
  /** Patches of all pictures of the context (default: those of pictures that fill a fourth of it). */
  patches?: number | undefined;
  /** As for `load`: an adapter on the weights, which is then trained instead of them. */
  adapter?: string | AdapterOptions | undefined;
  /** As for `train`: the weights of the vision tower are trained too (default false). */
  trainVision?: boolean | undefined;
  /** As for `load` and `create`. */
  preset?: PresetName | PresetChanges | undefined;
}

export interface UseEstimate {
  /** Number of parameters of the model. */
  parameters: number;
  dtype: StorageDType;
  contextTokens: number;
  patches: number;
  /** Weights, and at the most while they are read. */
  weightBytes: number;
  loadBytes: number;
  /** One sequence of the context: keys and values, the largest pass, and all that is there while it runs. */
  generation: { cacheBytes: number; passBytes: number; totalBytes: number };
  /** One sequence of the context, nothing recomputed: gradients, moments and masters; what the tape keeps; all that is there. */
  training: { stateBytes: number; tapeBytes: number; totalBytes: number };
}

/**
 * What using a model takes, said before any of it is taken.
 *
 * @param source directory of a checkpoint or an adapter, or a config. Of a directory only the small files and the headers of the weights are read.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` naming the option; as `openCheckpoint`.
 */
export async function estimateUse(op: string, source: string | NewModelConfig | ModelConfig, options: EstimateOptions = {}): Promise<UseEstimate> {
  check.options(op, options, ['dtype', 'contextTokens', 'patches', 'adapter', 'trainVision', 'preset']);
  if (typeof source === 'string') {
    const { base, saved, fresh } = await adapterOption(source, options.adapter);
    const { config, record: { preset }, extras: { tensors }, dtype, adapter } = await openCheckpoint(base, options.preset, saved);
    const held = new Set(tensors.map(({ name }) => name));
    const lacking = extraShapes(preset, config.text.hidden).filter(({ name }) => !held.has(name));
    return estimateOf(op, config, preset, [...tensors, ...lacking], fresh === undefined ? adapter?.adapter : makeAdapter(config, fresh, undefined), options, dtype);
  }
  const config = configOf(op, 'source', source);
  const preset = options.preset === undefined ? PLAIN : makePreset(options.preset, config.text.layers);
  if (typeof options.adapter === 'string') fail('ERR_ARGUMENT', op, `Expected adapter to be the options of a new one for a config but received ${check.show(options.adapter)}; give the directory of its base`);
  const adapter = options.adapter === undefined ? undefined : makeAdapter(config, options.adapter, undefined);
  return estimateOf(op, config, preset, extraShapes(preset, config.text.hidden), adapter, options, 'f32');
}

/** Gradients and two moments of what is trained, and masters where some of it is bf16. */
function trainingState(config: ModelConfig, dtype: StorageDType, extras: readonly NativeExtraSpec[], adapter: Adapter | undefined, trainVision: boolean): number {
  const backbone = adapter === undefined ? parameterShapes(config).filter(({ name }) => trainVision || !name.startsWith('visual.')) : adapterShapes(adapter);
  const trained = [...backbone, ...extras.filter(({ name }) => !name.endsWith('.threshold'))].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  return (adapter === undefined && dtype === 'bf16' ? 16 : 12) * trained;
}

function estimateOf(op: string, config: ModelConfig, preset: Preset, extras: readonly NativeExtraSpec[], adapter: Adapter | undefined, options: EstimateOptions, filesDType: StorageDType): UseEstimate {
  const dtype = check.oneOf(op, 'dtype', options.dtype ?? filesDType, ['f32', 'bf16']);
  const contextTokens = check.integer(op, 'contextTokens', options.contextTokens ?? 4096, 1, MAX_CONTEXT);
  const most = contextTokens * config.vision.merge ** 2;
  const patches = check.integer(op, 'patches', options.patches ?? Math.floor(contextTokens / 4) * config.vision.merge ** 2, 0);
  if (patches > most) fail('ERR_RANGE', op, `Expected patches to fit the context, at most ${most}, but received ${patches}; raise contextTokens`);
  const trainVision = check.boolean(op, 'trainVision', options.trainVision ?? false);
  const { parameters, weightBytes, stagingBytes } = estimateMemory(config, dtype, [...extras, ...adapterShapes(adapter)]);
  const { cacheBytesPerToken, rowBytes, patchBytes, keptRowBytes, keptPatchBytes } = estimateSession(config, preset);
  const cacheBytes = Math.ceil(contextTokens / PAGE_TOKENS) * PAGE_TOKENS * cacheBytesPerToken;
  // Pictures are encoded before the rows run, and their memory serves the rows again.
  const passBytes = Math.max(contextTokens * rowBytes, patches * patchBytes) + Math.min(LOGIT_BYTES, contextTokens * config.text.vocab * 4);
  const stateBytes = trainingState(config, dtype, extras, adapter, trainVision);
  const tapeBytes = contextTokens * keptRowBytes + patches * keptPatchBytes + cacheBytes;   // the cache has gradients too
  return {
    parameters, dtype, contextTokens, patches, weightBytes, loadBytes: weightBytes + stagingBytes,
    generation: { cacheBytes, passBytes, totalBytes: weightBytes + cacheBytes + passBytes },
    training: { stateBytes, tapeBytes, totalBytes: weightBytes + stateBytes + cacheBytes + tapeBytes + 2 * passBytes },
  };
}
