/** preprocessor_config.json: how a picture becomes pixels for the vision tower. */
import { fail } from '../errors';
import { IMAGE_MEAN, IMAGE_STD } from '../ops/patchRows';
import type { VisionConfig } from './config';
import { JsonReader, isObject, type JsonObject } from './jsonReader';

export interface ImageSettings {
  /** Bounds of the resized picture's height * width. */
  readonly minPixels: number;
  readonly maxPixels: number;
  readonly mean: readonly number[];
  readonly std: readonly number[];
  /** The file as it was read. */
  readonly source: JsonObject;
}

/** How the frames of a video become pixels, beside what holds for pictures. */
export interface VideoSettings {
  /** Bounds of a resized frame's height * width. */
  readonly minPixels: number;
  readonly maxPixels: number;
  /** Merged patches that a whole video may take, if its frames were single images. */
  readonly tokens: number;
}

const OP = 'config';
const FILE = 'preprocessor_config.json';
/** Pillow's number of the bicubic filter. */
const BICUBIC = 3;

/**
 * Reads a parsed preprocessor_config.json; `undefined` gives the defaults of transformers' Qwen2VLImageProcessor.
 *
 * @throws {LibError} `ERR_CHECKPOINT` when it contradicts the vision tower, `ERR_UNSUPPORTED` for steps that are not implemented.
 */
export function parseImageSettings(raw: unknown, vision: VisionConfig): ImageSettings {
  if (raw === undefined) raw = {};
  if (!isObject(raw)) return fail('ERR_CHECKPOINT', OP, `Expected ${FILE} to hold an object. Take the file from the model's own repository.`);
  const file: JsonReader = new JsonReader(OP, FILE, raw);
  for (const key of ['do_resize', 'do_rescale', 'do_normalize', 'do_convert_rgb']) {
    if (!file.boolean(key, true)) file.unsupported(key, 'this step of the preprocessing cannot be left out');
  }
  if (file.integer('resample', BICUBIC, 0, 5) !== BICUBIC) file.unsupported('resample', 'only 3 (bicubic) is implemented');
  if (Math.abs(file.positive('rescale_factor', 1 / 255) * 255 - 1) > 1e-6) file.unsupported('rescale_factor', 'only 1/255 is implemented');
  for (const [key, expected] of [['patch_size', vision.patch], ['merge_size', vision.merge], ['temporal_patch_size', vision.temporal]] as const) {
    if (file.integer(key, expected, 1, 1024) !== expected) file.wrong(key, `${expected}, as vision_config in config.json says`, 'The two files belong to different models.');
  }
  const size: JsonReader = file.child('size');
  const minPixels = file.integer('min_pixels', size.integer('shortest_edge', 56 * 56, 1, 2 ** 31), 1, 2 ** 31);
  const maxPixels = file.integer('max_pixels', size.integer('longest_edge', 28 * 28 * 1280, 1, 2 ** 31), 1, 2 ** 31);
  if (minPixels > maxPixels) file.wrong('min_pixels', `at most max_pixels = ${maxPixels}`, 'Correct the file.');
  const mean = file.numbers('image_mean', IMAGE_MEAN, 3);
  const std = file.numbers('image_std', IMAGE_STD, 3);
  if (std.some((v) => v <= 0)) file.wrong('image_std', 'three numbers above 0', 'Pixels are divided by it.');
  return Object.freeze({ minPixels, maxPixels, mean, std, source: raw });
}

const VIDEO_FILE = 'video_preprocessor_config.json';
/** Of transformers' Qwen2VLVideoProcessor: bounds of a frame where no file says, and the tokens of a context that a video is cut to. */
const VIDEO_MIN_PIXELS = 128 * 28 * 28;
const VIDEO_MAX_PIXELS = 768 * 28 * 28;
const VIDEO_TOKENS = 128_000;
/** Share of that context which the video may fill. */
const VIDEO_SHARE = 0.9;

/**
 * How frames become pixels: as a parsed video_preprocessor_config.json says (or `video_processor` of processor_config.json), else as
 * preprocessor_config.json says of images, as transformers has it, but with frames of at most 602,112 pixels: the hub's files allow 12.8
 * million.
 *
 * @param images what preprocessor_config.json says.
 * @throws {LibError} `ERR_CHECKPOINT` naming the key.
 */
export function parseVideoSettings(raw: unknown, images: ImageSettings): VideoSettings {
  if (raw === undefined && Object.keys(images.source).length > 0) {
    return Object.freeze({ minPixels: Math.min(images.minPixels, VIDEO_MAX_PIXELS), maxPixels: Math.min(images.maxPixels, VIDEO_MAX_PIXELS), tokens: VIDEO_SHARE * VIDEO_TOKENS });
  }
  if (raw !== undefined && !isObject(raw)) return fail('ERR_CHECKPOINT', OP, `Expected ${VIDEO_FILE} to hold an object. Take the file from the model's own repository.`);
  const file: JsonReader = new JsonReader(OP, VIDEO_FILE, raw ?? {});
  const size: JsonReader = file.child('size');
  const minPixels = file.integer('min_pixels', size.integer('shortest_edge', VIDEO_MIN_PIXELS, 1, 2 ** 31), 1, 2 ** 31);
  const maxPixels = file.integer('max_pixels', size.integer('longest_edge', VIDEO_MAX_PIXELS, 1, 2 ** 31), 1, 2 ** 31);
  if (minPixels > maxPixels) file.wrong('min_pixels', `at most max_pixels = ${maxPixels}`, 'Correct the file.');
  return Object.freeze({ minPixels, maxPixels, tokens: VIDEO_SHARE * file.integer('max_video_tokens', VIDEO_TOKENS, 1, 2 ** 31) });
}

/** preprocessor_config.json for saving. */
export function imageSettingsJson(settings: ImageSettings, vision: VisionConfig): Record<string, unknown> {
  return {
    image_processor_type: 'Qwen2VLImageProcessor', processor_class: vision.windows === undefined ? 'Qwen2VLProcessor' : 'Qwen2_5_VLProcessor',
    ...settings.source,
    min_pixels: settings.minPixels, max_pixels: settings.maxPixels, patch_size: vision.patch, merge_size: vision.merge,
    temporal_patch_size: vision.temporal, image_mean: [...settings.mean], image_std: [...settings.std],
  };
}
