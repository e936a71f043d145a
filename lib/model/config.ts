/**
 * config.json of a Qwen2-VL or Qwen2.5-VL checkpoint as plain frozen data, and back.
 *
 * Hub files are sparse, and newer ones nest the text keys in `text_config` and call `rope_scaling` `rope_parameters`; the defaults
 * are those of transformers' configuration classes.
 */
import * as check from '../check';
import { fail } from '../errors';
import type { NativeExtraSpec, NativeModelSpec, NativeTextSpec, StorageDType } from '../native';
import type { ImageSettings } from './imageSettings';
import { JsonReader, isObject, own, type JsonObject } from './jsonReader';
import type { PositionGeometry } from './positions';
import { MODEL_KINDS, parseVision, visionJson, type ModelKind, type NewVisionConfig, type VisionConfig } from './visionConfig';

export type { ModelKind, NewVisionConfig, VisionConfig } from './visionConfig';

export type TextConfig = Readonly<NativeTextSpec>;

export interface SpecialTokens {
  readonly image: number;
  readonly video: number;
  readonly visionStart: number;
  readonly visionEnd: number;
}

export interface ModelConfig {
  readonly kind: ModelKind;
  readonly text: TextConfig;
  readonly vision: VisionConfig;
  readonly tokens: SpecialTokens;
  /** Standard deviation of new weights (`initializer_range`). */
  readonly initializerRange: number;
  /** The file as it was read, kept so that saving loses no key. */
  readonly source: JsonObject;
}

/** What packing rows needs to know of a model. */
export interface ModelGeometry extends PositionGeometry {
  readonly vocab: number;
  /** Width and number of the decoder's layers. */
  readonly hidden: number;
  readonly layers: number;
  readonly patch: number;
  readonly temporal: number;
}

const OP = 'config';
/** Sizes above these are a broken file, not a model: they keep all products of sizes below 2^53. */
const MAX_WIDTH = 1 << 20;
const MAX_VOCAB = 1 << 24;
/** Limits of the addon. */
const MAX_EPS = 1;
const [MIN_THETA, MAX_THETA] = [1, 1e15];
const ARCHITECTURES: Readonly<Record<ModelKind, string>> = { qwen2_vl: 'Qwen2VLForConditionalGeneration', qwen2_5_vl: 'Qwen2_5_VLForConditionalGeneration' };
const TOKEN_DEFAULTS = { vision_start_token_id: 151652, vision_end_token_id: 151653, image_token_id: 151655, video_token_id: 151656 };

/**
 * Reads a parsed config.json.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming the key, what it should be and what it is; `ERR_UNSUPPORTED` for model kinds and
 *   switches that are not implemented.
 */
export function parseConfig(raw: unknown): ModelConfig {
  if (!isObject(raw)) return fail('ERR_CHECKPOINT', OP, 'Expected config.json to hold an object. Take the file from the model\'s own repository.');
  const top: JsonReader = new JsonReader(OP, 'config.json', raw);
  const kind = checkKind(top);
  const nested = top.child('text_config').object;
  const flat: JsonReader = new JsonReader(OP, 'config.json', { ...raw, ...nested });
  const text = parseText(top, flat);
  const vision = parseVision(kind, top.child('vision_config'), text.hidden);
  return known({
    kind, text, vision, tokens: parseTokens(top, text.vocab),
    initializerRange: flat.positive('initializer_range', 0.02), source: raw,
  });
}

/** The configs that were checked here: an object of the same look may hold anything. */
const KNOWN = new WeakSet<object>();

function known(config: ModelConfig): ModelConfig {
  KNOWN.add(config);
  return Object.freeze(config);
}

/**
 * The config of a model as it is, or that of a new one.
 *
 * @throws {LibError} `ERR_ARGUMENT` naming the argument; as `newConfig`.
 */
export function configOf(op: string, name: string, value: unknown): ModelConfig {
  if (KNOWN.has(check.object(op, name, value))) return value as ModelConfig;
  if ('source' in (value as object)) {
    fail('ERR_ARGUMENT', op, `Expected ${name} to be dimensions, or the config of a model as it came, but received an object with 'source' that neither is. Give model.config itself, or dimensions without 'source'.`);
  }
  return newConfig(value as NewModelConfig);
}

function checkKind(top: JsonReader): ModelKind {
  const kind = MODEL_KINDS.find((known) => known === top.raw('model_type'));
  if (kind === undefined) return top.unsupported('model_type', "only 'qwen2_vl' and 'qwen2_5_vl' are supported; is this the directory of a Qwen2-VL or Qwen2.5-VL checkpoint?");
  if (top.has('quantization_config')) top.unsupported('quantization_config', 'quantised weights are not supported; use the bf16 checkpoint');
  return kind;
}

function parseText(top: JsonReader, flat: JsonReader): TextConfig {
  const hidden = flat.integer('hidden_size', 8192, 1, MAX_WIDTH);
  const layers = flat.integer('num_hidden_layers', 80, 1, 4096);
  const heads = flat.integer('num_attention_heads', 64, 1, 4096);
  const kvHeads = flat.integer('num_key_value_heads', flat.object['num_key_value_heads'] === null ? heads : 8, 1, 4096);
  if (heads % kvHeads !== 0) flat.wrong('num_key_value_heads', `a divisor of num_attention_heads = ${heads}`, 'Each key/value head serves the same number of query heads.');
  if (!flat.has('head_dim') && hidden % heads !== 0) {
    flat.wrong('hidden_size', `a multiple of num_attention_heads = ${heads}`, 'Or set head_dim.');
  }
  const headDim = flat.integer('head_dim', Math.floor(hidden / heads), 1, 4096);
  if (flat.text('hidden_act', 'silu') !== 'silu') flat.unsupported('hidden_act', "the decoder's activation must be 'silu'");
  if (flat.boolean('use_sliding_window', false) && flat.integer('max_window_layers', 80, 0, 1 << 20) < layers) {
    flat.unsupported('use_sliding_window', 'sliding-window attention is not implemented');
  }
  const rope = parseRope(flat, headDim);
  const tied = flat.boolean('tie_word_embeddings', false);
  if (top.boolean('tie_word_embeddings', tied) !== tied) {
    top.wrong('tie_word_embeddings', `${tied}, as text_config says`, 'Set both to true when the checkpoint has no lm_head.weight, else both to false.');
  }
  return Object.freeze({
    hidden, layers, heads, kvHeads, headDim, tied, ...rope,
    intermediate: flat.integer('intermediate_size', 29568, 1, MAX_WIDTH),
    vocab: flat.integer('vocab_size', 152064, 1, MAX_VOCAB),
    eps: flat.positive('rms_norm_eps', 1e-5, MAX_EPS),
  });
}

function parseRope(flat: JsonReader, headDim: number): { ropeTheta: number; mropeSection: readonly number[] } {
  const key = flat.has('rope_scaling') ? 'rope_scaling' : 'rope_parameters';
  const rope: JsonReader = flat.child(key);
  for (const name of ['rope_type', 'type']) {
    if (!['mrope', 'default'].includes(rope.text(name, 'default'))) rope.unsupported(name, "only 'mrope' and 'default' are implemented");
  }
  const section = rope.numbers('mrope_section', [], 3);
  if (!section.every((n) => Number.isInteger(n) && n >= 0) || 2 * section.reduce((a, b) => a + b, 0) !== headDim) {
    rope.wrong('mrope_section', `three whole numbers that sum to half of head_dim = ${headDim}`, 'head_dim is hidden_size / num_attention_heads unless given.');
  }
  const ropeTheta = (rope.has('rope_theta') ? rope : flat).between('rope_theta', 1e6, MIN_THETA, MAX_THETA);
  return { ropeTheta, mropeSection: section };
}

function parseTokens(top: JsonReader, vocab: number): SpecialTokens {
  const id = (key: keyof typeof TOKEN_DEFAULTS): number => top.integer(key, TOKEN_DEFAULTS[key], 0, Math.max(vocab, MAX_VOCAB));
  const tokens = { image: id('image_token_id'), video: id('video_token_id'), visionStart: id('vision_start_token_id'), visionEnd: id('vision_end_token_id') };
  if (tokens.image === tokens.video) top.wrong('video_token_id', `another id than image_token_id = ${tokens.image}`, 'Pictures are found by these ids.');
  return Object.freeze(tokens);
}

/** Dimensions of a model that is made new. transformers' own class does not read `headDim`: leave it out where Python shall load the model. */
export interface NewModelConfig {
  /** Default 'qwen2_vl'. */
  kind?: ModelKind;
  text: { hidden: number; layers: number; heads: number; kvHeads: number; headDim?: number; intermediate: number; vocab: number; mropeSection: readonly number[]; tied?: boolean; eps?: number; ropeTheta?: number };
  vision: NewVisionConfig;
  tokens: SpecialTokens & { eos: number; pad: number };
  initializerRange?: number;
}

/** Makes the config of a new model; checked like a file. */
export function newConfig(wanted: NewModelConfig): ModelConfig {
  checkFields('config', wanted, ['kind', 'text', 'vision', 'tokens', 'initializerRange']);
  const kind = check.oneOf(OP, 'kind', wanted.kind ?? 'qwen2_vl', MODEL_KINDS);
  const { text, vision, tokens } = wanted;
  checkFields('text', text, ['hidden', 'layers', 'heads', 'kvHeads', 'headDim', 'intermediate', 'vocab', 'mropeSection', 'tied', 'eps', 'ropeTheta']);
  checkFields('tokens', tokens, ['image', 'video', 'visionStart', 'visionEnd', 'eos', 'pad']);
  check.array(OP, 'text.mropeSection', text.mropeSection);
  return parseConfig({
    architectures: [ARCHITECTURES[kind]], model_type: kind,
    hidden_size: text.hidden, num_hidden_layers: text.layers, num_attention_heads: text.heads, num_key_value_heads: text.kvHeads,
    ...(text.headDim === undefined ? {} : { head_dim: text.headDim }),
    intermediate_size: text.intermediate, vocab_size: text.vocab, hidden_act: 'silu', rms_norm_eps: text.eps ?? 1e-6,
    rope_theta: text.ropeTheta ?? 1e6, rope_scaling: { type: 'mrope', mrope_section: [...text.mropeSection] },
    max_position_embeddings: 32768, attention_dropout: 0, use_sliding_window: false, use_cache: true,
    initializer_range: wanted.initializerRange ?? 0.02, tie_word_embeddings: text.tied ?? true,
    bos_token_id: tokens.pad, eos_token_id: tokens.eos, pad_token_id: tokens.pad,
    vision_start_token_id: tokens.visionStart, vision_end_token_id: tokens.visionEnd, image_token_id: tokens.image, video_token_id: tokens.video,
    vision_config: visionJson(kind, vision, text.hidden),
  });
}

function checkFields(name: string, value: unknown, fields: readonly string[]): void {
  check.object(OP, name, value);
  check.options(OP, value, fields);
}

/** config.json for saving: the classic flat layout, which every version of transformers reads, with all other keys as they came. */
export function configJson(config: ModelConfig, dtype: StorageDType): Record<string, unknown> {
  const { text_config: nested, rope_parameters: _rope, dtype: _dtype, ...flat } = { ...config.source };
  const { model_type: _type, rope_parameters: _nestedRope, dtype: _nestedDtype, ...inner } = isObject(nested) ? nested : {} as Record<string, unknown>;
  // Some savers repeat keys of the whole model in text_config as null.
  const text = Object.fromEntries(Object.entries(inner).filter(([key, value]) => value !== null || !Object.hasOwn(flat, key)));
  const scaling = own({ ...flat, ...text }, 'rope_scaling');
  return {
    ...flat, ...text,
    architectures: own(flat, 'architectures') ?? [ARCHITECTURES[config.kind]],
    vocab_size: config.text.vocab, tie_word_embeddings: config.text.tied, rope_theta: config.text.ropeTheta,
    rope_scaling: isObject(scaling) ? scaling : { type: 'mrope', mrope_section: [...config.text.mropeSection] },
    torch_dtype: dtype === 'bf16' ? 'bfloat16' : 'float32',
  };
}

/** Dimensions for the addon. */
export function toNativeSpec(config: ModelConfig, images: ImageSettings, dtype: StorageDType, extras: readonly NativeExtraSpec[] = []): NativeModelSpec {
  const { tokensPerSecond: _, ...vision } = config.vision;
  return { text: config.text, vision: { ...vision, imageMean: images.mean, imageStd: images.std }, dtype, extras };
}

export function modelGeometry(config: ModelConfig): ModelGeometry {
  const { patch, merge, temporal, tokensPerSecond } = config.vision;
  return Object.freeze({
    vocab: config.text.vocab, hidden: config.text.hidden, layers: config.text.layers, imageToken: config.tokens.image, videoToken: config.tokens.video, patch, merge, temporal,
    ...(tokensPerSecond === undefined ? {} : { tokensPerSecond }),
  });
}

/** The same config with the number of rows that the embedding table really has. */
export function withVocab(config: ModelConfig, vocab: number): ModelConfig {
  return vocab === config.text.vocab ? config : known({ ...config, text: Object.freeze({ ...config.text, vocab }) });
}
