/** Sources of pictures to pixels of the size that the vision tower takes: images, and videos as frames. */
import * as check from '../check';
import { LibError, fail } from '../errors';
import type { VisionConfig } from './config';
import { DEFAULT_MAX_INPUT_PIXELS, decodeImage, resizeImage, smartResize, type ImageSource, type Picture, type ResizeBounds, type RgbImage } from './image';
import type { ImageSettings, VideoSettings } from './imageSettings';
import { availableMemory, gigabytes } from './memory';
import { SIZE_OPTIONS, type PictureSize, type VideoFrames } from './messages';

export interface ProcessorOptions {
  /** Bounds of a picture's pixels after resizing; default: the checkpoint's, `maxPixels` of an image at most {@link DEFAULT_MAX_PIXELS}. */
  minPixels?: number;
  maxPixels?: number;
  /** An image of more pixels is refused before it is decoded (default 100 million). */
  maxInputPixels?: number;
  signal?: AbortSignal;
}

export type PictureOptions = ProcessorOptions & PictureSize;

/** The reference class's own default, 1,280 rows per picture. Hub files allow 12.8 million pixels: 16,384 rows for one photo. */
export const DEFAULT_MAX_PIXELS = 28 * 28 * 1280;
/** qwen_vl_utils' FPS. */
export const DEFAULT_FPS = 2;
/** qwen_vl_utils' FPS_MAX_FRAMES: of longer films it takes fewer frames. */
const MAX_FRAMES = 768;
/** Limit of the addon's resizing. */
export const MAX_PICTURE_SIDE = 2 ** 15;
export const MAX_PIXELS = 2 ** 31;
/** Elements that a typed array can have in every Node that is supported. */
const MAX_VIDEO_BYTES = 2 ** 32;

export const PICTURE_OPTIONS = ['minPixels', 'maxPixels', 'maxInputPixels', 'signal'] as const satisfies (keyof ProcessorOptions)[];

/** How the pictures of one checkpoint are prepared. */
export interface PictureMaker {
  vision: VisionConfig;
  images: ImageSettings;
  videos: VideoSettings;
}

interface Size {
  height: number;
  width: number;
}

interface Prepared {
  bounds: ResizeBounds;
  /** Given exactly. */
  size: Size | undefined;
  limits: { maxInputPixels: number; signal: AbortSignal | undefined };
}

/** One picture at its size, with its original. */
export async function prepareImage({ vision, images }: PictureMaker, source: ImageSource, options: PictureOptions): Promise<Picture> {
  const { bounds, size, limits } = read(options, vision, images.minPixels, Math.min(images.maxPixels, DEFAULT_MAX_PIXELS));
  const image = await decodeImage(source, limits);
  const { pixels, height, width } = await resized(image, size ?? smartResize(image.height, image.width, bounds), limits.signal);
  return { pixels, frames: 1, height, width, original: image };
}

/** `resizeImage`, whose own limits would be complained of in the words of the addon. */
async function resized(image: RgbImage, to: Size, signal: AbortSignal | undefined): Promise<RgbImage> {
  const isSame = to.height === image.height && to.width === image.width;
  for (const [what, code, { height, width }, remedy] of [['after resizing', 'ERR_RANGE', to, 'Lower minPixels and maxPixels, or crop it'], ['to be resized', 'ERR_IMAGE', image, 'Make it smaller']] as const) {
    if (!isSame && Math.max(height, width) > MAX_PICTURE_SIDE) fail(code, 'picture', `Expected a picture ${what} with sides of at most ${MAX_PICTURE_SIDE} but received ${width}x${height}. ${remedy}.`);
  }
  return resizeImage(image, to, signal);
}

/** The frames of a video at the size that `frameSize` finds for the first; each is resized as an image is (8-bit bicubic). */
export async function prepareVideo({ vision, videos }: PictureMaker, video: VideoFrames, options: PictureOptions): Promise<Picture> {
  const { frames, fps } = checkVideo(video);
  const { bounds, size, limits } = read(options, vision, videos.minPixels, videos.maxPixels);
  let pixels: Uint8Array | undefined;
  let [height, width, wide, high] = [0, 0, 0, 0];
  for (const [n, source] of frames.entries()) {
    const frame = await ofFrame(n, decodeImage(source, limits));
    if (pixels === undefined) {
      [high, wide] = [frame.height, frame.width];
      ({ height, width } = size ?? frameSize(frames.length, high, wide, bounds, videos.tokens * vision.temporal));
      pixels = roomFor(frames.length, height, width);
    }
    if (frame.height !== high || frame.width !== wide) {
      fail('ERR_SHAPE', 'picture', `Expected all frames of a video to be ${wide}x${high}, as the first is, but received ${frame.width}x${frame.height} as frame ${n}. Bring them to one size first, or give them as images.`);
    }
    pixels.set((await resized(frame, { height, width }, limits.signal)).pixels, 3 * n * height * width);
  }
  return { pixels: pixels as Uint8Array, frames: frames.length, height, width, secondsPerGrid: vision.temporal / fps };
}

/** @throws {LibError} `ERR_OUT_OF_MEMORY` before it is taken. */
function roomFor(count: number, height: number, width: number): Uint8Array {
  const needed = 3 * count * height * width;
  const limit = Math.min(availableMemory(), MAX_VIDEO_BYTES);
  if (needed > limit) fail('ERR_OUT_OF_MEMORY', 'picture', `Expected ${gigabytes(needed)} of memory for ${count} frames of ${width}x${height} but received ${gigabytes(limit)}. Take fewer frames, or lower minPixels and maxPixels.`);
  return new Uint8Array(needed);
}

/**
 * Size of each of `count` frames: within the bounds, and at most an even share of what the whole video may have, but not below 1.05
 * times the lower bound.
 *
 * @param tokens merged patches that all frames may take as single images.
 * @see transformers' Qwen2VLVideoProcessor with `cap_pixels_per_frame`, which is how qwen_vl_utils reads films; without the share a long
 *   video would not fit
 */
export function frameSize(count: number, height: number, width: number, bounds: ResizeBounds, tokens: number): Size {
  const share = Math.floor((tokens * bounds.factor ** 2) / count);
  return smartResize(height, width, { ...bounds, maxPixels: Math.max(Math.min(bounds.maxPixels, share), Math.floor(bounds.minPixels * 1.05)) });
}

function checkVideo(video: VideoFrames): Required<VideoFrames> {
  if (typeof video !== 'object' || video === null || !('frames' in video)) {
    fail('ERR_ARGUMENT', 'picture', `Expected a video to be { frames, fps } but received ${check.show(video)}. Video files are not decoded here: take frames out of them first, for example with ffmpeg.`);
  }
  check.options('picture', video, ['frames', 'fps']);
  const { frames, fps } = video;
  if (!Array.isArray(frames) || frames.length === 0) fail('ERR_ARGUMENT', 'picture', `Expected frames of a video to be a list of at least one image but received ${check.show(frames)}. Give its frames in order, as paths, bytes or raw pixels.`);
  if (frames.length > MAX_FRAMES) fail('ERR_RANGE', 'picture', `Expected at most ${MAX_FRAMES} frames of a video but received ${frames.length}. Take every ${Math.ceil(frames.length / MAX_FRAMES)}. frame, and divide fps by as much.`);
  return { frames, fps: fps === undefined ? DEFAULT_FPS : check.number('picture', 'fps', fps, 1e-3, 1e4) };
}

/** Errors of one frame say which. */
async function ofFrame<T>(n: number, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof LibError)) throw error;
    throw new LibError(error.code, `${error.message} (frame ${n} of a video)`, { cause: error });
  }
}

function read(options: PictureOptions, { patch, merge }: VisionConfig, least: number, most: number): Prepared {
  check.options('picture', options, [...PICTURE_OPTIONS, ...SIZE_OPTIONS]);
  const maxPixels = check.integer('picture', 'maxPixels', options.maxPixels ?? most, 1, MAX_PIXELS);
  const minPixels = check.integer('picture', 'minPixels', options.minPixels ?? Math.min(least, maxPixels), 1, maxPixels);
  const maxInputPixels = check.integer('picture', 'maxInputPixels', options.maxInputPixels ?? DEFAULT_MAX_INPUT_PIXELS, 1);
  const bounds = { factor: patch * merge, minPixels, maxPixels };
  return { bounds, size: exactSize(options, bounds), limits: { maxInputPixels, signal: check.signal('picture', options.signal) } };
}

/** A size that was asked for is not made smaller in silence. */
function exactSize({ resizedHeight, resizedWidth }: PictureOptions, { factor, maxPixels }: ResizeBounds): Size | undefined {
  if (resizedHeight === undefined && resizedWidth === undefined) return undefined;
  const height = check.integer('picture', 'resizedHeight (given together with resizedWidth)', resizedHeight, 1, MAX_PICTURE_SIDE);
  const width = check.integer('picture', 'resizedWidth (given together with resizedHeight)', resizedWidth, 1, MAX_PICTURE_SIDE);
  const size = smartResize(height, width, { factor, minPixels: 1, maxPixels: Number.MAX_SAFE_INTEGER });
  if (size.height * size.width > maxPixels) {
    fail('ERR_RANGE', 'picture', `Expected resizedHeight x resizedWidth, ${size.height}x${size.width} = ${size.height * size.width} pixels, to be at most maxPixels = ${maxPixels}. Make it smaller, or raise the option maxPixels.`);
  }
  return size;
}
