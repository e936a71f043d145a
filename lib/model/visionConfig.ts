/** The vision tower's part of config.json: two kinds of tower, with the defaults of transformers' configuration classes. */
import * as check from '../check';
import type { NativeVisionSpec } from '../native';
import type { JsonReader } from './jsonReader';

export const MODEL_KINDS = ['qwen2_vl', 'qwen2_5_vl'] as const;
/** `model_type` of config.json. The two differ in the vision tower and in the positions of videos. */
export type ModelKind = (typeof MODEL_KINDS)[number];

export interface VisionConfig extends Readonly<Omit<NativeVisionSpec, 'imageMean' | 'imageStd'>> {
  /** Qwen2.5-VL: temporal position ids of a second of video. */
  readonly tokensPerSecond?: number;
}

/** The tower of a model that is made new. Patches are 14 pixels wide, 2 frames deep, and 2 x 2 of them become a row of the decoder. */
export interface NewVisionConfig {
  depth: number;
  width: number;
  heads: number;
  mlpWidth: number;
  /** Kind 'qwen2_5_vl' only: side of the attention windows in pixels (default 112). */
  windowSize?: number;
  /** Kind 'qwen2_5_vl' only: blocks that attend over the whole picture (default 7, 15, 23, 31). */
  fullAttentionBlocks?: readonly number[];
  /** Kind 'qwen2_5_vl' only: temporal position ids of a second of video (default 4). */
  tokensPerSecond?: number;
}

const OP = 'config';
const BASE_FIELDS = ['depth', 'width', 'heads', 'mlpWidth'];
const WINDOW_FIELDS = ['windowSize', 'fullAttentionBlocks', 'tokensPerSecond'];
/** Sizes above this are a broken file, not a model. */
const MAX_WIDTH = 1 << 20;
const MAX_DEPTH = 4096;

/** @param hidden the decoder's width. */
export function parseVision(kind: ModelKind, raw: JsonReader, hidden: number): VisionConfig {
  const patch = raw.integer('patch_size', 14, 1, 1024);
  const merge = raw.integer('spatial_merge_size', 2, 1, 64);
  const tower = kind === 'qwen2_vl' ? parseQwen2(raw) : parseQwen25(raw, patch, merge);
  const [widthKey, outKey] = kind === 'qwen2_vl' ? (['embed_dim', 'hidden_size'] as const) : (['hidden_size', 'out_hidden_size'] as const);
  const heads = raw.integer('num_heads', 16, 1, 4096);
  if (tower.width % (4 * heads) !== 0) raw.wrong(widthKey, `a multiple of 4 * num_heads = ${4 * heads}`, 'The rotary embedding splits each head into four parts.');
  const outWidth = raw.integer(outKey, 3584, 1, MAX_WIDTH);
  if (outWidth !== hidden) raw.wrong(outKey, `the decoder's hidden_size = ${hidden}`, 'Pictures enter the decoder as rows of its width.');
  const channels = raw.integer('in_channels', raw.integer('in_chans', 3, 1, 64), 1, 64);
  if (channels !== 3) raw.unsupported(raw.has('in_channels') ? 'in_channels' : 'in_chans', 'pictures have 3 channels');
  return Object.freeze({
    ...tower, depth: raw.integer('depth', 32, 1, MAX_DEPTH), heads, outWidth, channels, patch, merge, temporal: raw.integer('temporal_patch_size', 2, 1, 64),
  });
}

type Tower = Pick<VisionConfig, 'width' | 'mlpWidth' | 'activation' | 'windows' | 'tokensPerSecond'>;

function parseQwen2(raw: JsonReader): Tower {
  const width = raw.integer('embed_dim', 1280, 1, MAX_WIDTH);
  const activation = raw.text('hidden_act', 'quick_gelu');
  if (activation !== 'quick_gelu' && activation !== 'gelu' && activation !== 'silu') {
    return raw.unsupported('hidden_act', "the tower's activation must be 'quick_gelu', 'gelu' or 'silu'");
  }
  const mlpWidth = Math.trunc(width * raw.positive('mlp_ratio', 4));
  if (mlpWidth < 1 || mlpWidth > MAX_WIDTH) raw.wrong('mlp_ratio', `a factor that makes the MLP of ${width} between 1 and ${MAX_WIDTH} wide`, 'Correct the file.');
  return { width, mlpWidth, activation };
}

function parseQwen25(raw: JsonReader, patch: number, merge: number): Tower {
  if (raw.text('hidden_act', 'silu') !== 'silu') raw.unsupported('hidden_act', "the tower's activation must be 'silu'");
  const windowSize = raw.integer('window_size', 112, 1, MAX_WIDTH);
  const side = Math.floor(windowSize / (patch * merge));
  if (side < 1) raw.wrong('window_size', `at least patch_size * spatial_merge_size = ${patch * merge}`, 'A window holds one merged patch at least.');
  return {
    // The class's own default is 3584; every released tower is 1280 wide and says so.
    width: raw.integer('hidden_size', 3584, 1, MAX_WIDTH), mlpWidth: raw.integer('intermediate_size', 3420, 1, MAX_WIDTH), activation: 'silu',
    windows: Object.freeze({ side, fullAttentionBlocks: raw.indexes('fullatt_block_indexes', [7, 15, 23, 31], MAX_DEPTH - 1) }),
    tokensPerSecond: raw.integer('tokens_per_second', 4, 1, 1 << 16),
  };
}

/** vision_config of a new model's file. */
export function visionJson(kind: ModelKind, vision: NewVisionConfig, hidden: number): Record<string, unknown> {
  check.object(OP, 'vision', vision);
  check.options(OP, vision, kind === 'qwen2_vl' ? BASE_FIELDS : [...BASE_FIELDS, ...WINDOW_FIELDS]);
  const shared = {
    model_type: kind, depth: vision.depth, num_heads: vision.heads, in_channels: 3, in_chans: 3, patch_size: 14, spatial_patch_size: 14,
    spatial_merge_size: 2, temporal_patch_size: 2,
  };
  if (kind === 'qwen2_vl') {
    return { ...shared, embed_dim: vision.width, hidden_size: hidden, mlp_ratio: mlpRatio(vision.width, vision.mlpWidth), hidden_act: 'quick_gelu' };
  }
  const { windowSize = 112, fullAttentionBlocks = [7, 15, 23, 31], tokensPerSecond = 4 } = vision;
  check.array(OP, 'vision.fullAttentionBlocks', fullAttentionBlocks);
  return {
    ...shared, hidden_size: vision.width, out_hidden_size: hidden, intermediate_size: vision.mlpWidth, hidden_act: 'silu', window_size: windowSize,
    fullatt_block_indexes: [...fullAttentionBlocks], tokens_per_second: tokensPerSecond,
  };
}

/** A ratio whose truncated product with `width` is `mlpWidth` again: a plain quotient may fall just below it. */
function mlpRatio(width: number, mlpWidth: number): number {
  const ratio = mlpWidth / width;
  return Math.trunc(width * ratio) === mlpWidth ? ratio : ratio * (1 + 2 ** -51);
}
