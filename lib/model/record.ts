/** plumbline.json and generation_config.json: how a checkpoint reasons, and how it decodes when nobody says otherwise. */
import { fail } from '../errors';
import { JsonReader, isObject, own, type JsonObject } from './jsonReader';
import { parsePreset, PLAIN, presetJson, type Preset } from './preset';

/** plumbline.json. A checkpoint without one is a plain vision-language model: no latent steps, no replay, no routing. */
export interface LatentRecord {
  /** The switches that the checkpoint was trained with. Format 1 had none: `PLAIN`. */
  readonly preset: Preset;
  /** Latent steps before the words. */
  readonly latentSteps: number;
  /** Ids of `<|latent|>`, `<|start-latent|>`, `<|end-latent|>` where the vocabulary has them. */
  readonly latentToken?: number;
  readonly startLatentToken?: number;
  readonly endLatentToken?: number;
  /** The file as it was read, kept so that saving loses no key. */
  readonly source: JsonObject;
}

const TOKEN_KEYS = { latentToken: 'latentTokenId', startLatentToken: 'startLatentTokenId', endLatentToken: 'endLatentTokenId' } as const;
const FORMAT = 2;
/** More is a mistake: each latent is a pass through the model, and a row of its cache. */
export const MAX_LATENTS = 65536;

/**
 * @param layers decoder layers of the model.
 * @throws {LibError} `ERR_CHECKPOINT` naming the key, `ERR_UNSUPPORTED` for files of later versions.
 */
export function parseRecord(raw: unknown, layers: number): LatentRecord {
  if (raw === undefined) return Object.freeze({ preset: PLAIN, latentSteps: 0, source: Object.freeze({}) });
  if (!isObject(raw)) return fail('ERR_CHECKPOINT', 'load', 'Expected plumbline.json to hold an object. The file is damaged: save the checkpoint again.');
  const file: JsonReader = new JsonReader('load', 'plumbline.json', raw);
  const format = file.raw('format');
  if (format !== 1 && format !== FORMAT) file.unsupported('format', 'this version reads formats 1 and 2; update plumbline');
  const name = file.text('preset', 'default');
  if (format === 1 && file.has('switches')) file.wrong('format', 'that of a file with switches, 2', 'Save the checkpoint again.');
  const preset = format === FORMAT ? parsePreset(name, file.raw('switches'), layers) : PLAIN;
  const ids: { -readonly [K in keyof typeof TOKEN_KEYS]?: number } = {};
  for (const [id, key] of Object.entries(TOKEN_KEYS) as [keyof typeof TOKEN_KEYS, string][]) {
    if (file.has(key)) ids[id] = file.integer(key, undefined, 0, 2 ** 31 - 1);
  }
  return Object.freeze({ preset, latentSteps: file.integer('latentSteps', 0, 0, MAX_LATENTS), ...ids, source: raw });
}

/** plumbline.json, format 2. */
export function recordJson({ preset, latentSteps, source, ...ids }: LatentRecord): Record<string, unknown> {
  const { format: _, ...kept } = source;
  const tokens = Object.fromEntries(Object.entries(ids).map(([name, id]) => [TOKEN_KEYS[name as keyof typeof TOKEN_KEYS], id]));
  return { format: FORMAT, ...kept, preset: preset.name, latentSteps, ...tokens, switches: presetJson(preset) };
}

/** A penalty outside makes scores infinite or all alike; nobody means one. */
export const [MIN_PENALTY, MAX_PENALTY] = [1e-3, 1e3];

/** What generation_config.json says, with transformers' defaults. */
export interface GenerationDefaults {
  /** Any of these ends the answer. */
  readonly endTokens: readonly number[];
  readonly padToken?: number;
  /** False: the likeliest token, whatever the four numbers below say; the repetition penalty counts all the same. */
  readonly sample: boolean;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  /** Words at most. */
  readonly maxNewTokens?: number;
}

/** @param config config.json, whose end token counts where generation_config.json names none. */
export function parseGeneration(raw: unknown, config: JsonObject): GenerationDefaults {
  if (raw !== undefined && !isObject(raw)) return fail('ERR_CHECKPOINT', 'load', 'Expected generation_config.json to hold an object. The file is damaged: download it again.');
  const file: JsonReader = new JsonReader('load', 'generation_config.json', raw ?? {});
  const text = own(config, 'text_config');
  const flat: JsonReader = new JsonReader('load', 'config.json', { ...config, ...(isObject(text) ? text : {}) });
  const pad = file.has('pad_token_id') ? file : flat;
  const sample = file.boolean('do_sample', false);
  return Object.freeze({
    endTokens: Object.freeze(endTokens(file.has('eos_token_id') ? file : flat)),
    ...(pad.has('pad_token_id') ? { padToken: pad.integer('pad_token_id', undefined, -1, 2 ** 31 - 1) } : {}),
    sample, ...(sample ? sampling(file) : NOT_SAMPLED), repetitionPenalty: file.between('repetition_penalty', 1, MIN_PENALTY, MAX_PENALTY),
    ...(file.has('max_new_tokens') ? { maxNewTokens: file.integer('max_new_tokens', undefined, 1, 2 ** 31 - 1) } : {}),
  });
}

type Sampling = Pick<GenerationDefaults, 'temperature' | 'topK' | 'topP' | 'minP'>;
/** Files of greedy models hold numbers that sampling would refuse, as temperature 0: transformers does not look at them either. */
const NOT_SAMPLED: Sampling = Object.freeze({ temperature: 1, topK: 50, topP: 1, minP: 0 });

function sampling(file: JsonReader): Sampling {
  const share = (key: string, fallback: number): number => {
    const value = (file.raw(key) ?? fallback) === 0 ? 0 : file.positive(key, fallback);
    if (value > 1) file.wrong(key, 'a number from 0 to 1', `Correct the file or take it from the model's own repository.`);
    return value;
  };
  // top_p 0 keeps the best token alone, as does the smallest number above it.
  return { temperature: file.positive('temperature', 1), topK: file.integer('top_k', 50, 0, 2 ** 31 - 1), topP: share('top_p', 1) || Number.MIN_VALUE, minP: share('min_p', 0) };
}

function endTokens(file: JsonReader): number[] {
  const value = file.raw('eos_token_id') ?? [];
  const ids = Array.isArray(value) ? (value as unknown[]) : [value];
  if (!ids.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) file.wrong('eos_token_id', 'a token id or a list of them', 'Correct the file.');
  return [...new Set(ids as number[])];
}
