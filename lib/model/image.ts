/** Pictures: from files, bytes or raw pixels to RGB of the size that the vision tower takes. */
import { setImmediate } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type SharpFactory from 'sharp';
import { abortable } from '../abort';
import * as check from '../check';
import { LibError, fail } from '../errors';
import { native } from '../native';
import { kindOf } from './files';

/** Pixels that are there already: 8-bit, row-major, channels interleaved; 1 = grey, 2 = grey + alpha, 3 = RGB, 4 = RGBA. */
export interface RawImage {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: 1 | 2 | 3 | 4;
}

/** A path, a `data:` or `file:` URL, the bytes of an image file (PNG, JPEG, WebP, ...), or raw pixels. */
export type ImageSource = string | URL | Uint8Array | RawImage;

/** RGB bytes, row-major. */
export interface RgbImage {
  pixels: Uint8Array;
  height: number;
  width: number;
}

/** What the vision tower takes: sides are multiples of patch * merge; frames lie one after another in `pixels`. */
export interface Picture extends RgbImage {
  /** 1 for an image. */
  frames: number;
  /** A video's seconds between temporal patches (temporal patch / frames per second; default 1), for the positions of Qwen2.5-VL. */
  secondsPerGrid?: number;
  /** The decoded picture before it was resized, which visual replay cuts its crops from; shared, not a copy. */
  original?: RgbImage;
}

export interface ImageLimits {
  /** An image file of more pixels is refused before it is decoded. */
  maxInputPixels: number;
  signal?: AbortSignal | undefined;
}

/** A photo of 100 megapixels decodes to 0.3 GB; what claims to be more is a mistake or an attack. */
export const DEFAULT_MAX_INPUT_PIXELS = 100_000_000;
/** A photo of 100 megapixels takes a few seconds; files that were made to be slow take hours. */
const DECODE_SECONDS = 60;
/** Formats of pixels. Not SVG: it is a program, and a few hundred bytes of it draw for minutes. */
const FORMATS: ReadonlySet<string> = new Set(['png', 'jpeg', 'webp', 'gif', 'tiff', 'heif']);
/** Some 5 ms. */
const SLICE_PIXELS = 1 << 18;
/** Largest ratio of sides, as in the reference preprocessing. */
const MAX_ASPECT = 200;

export interface ResizeBounds {
  /** Sides become multiples of this: patch * merge. */
  factor: number;
  minPixels: number;
  maxPixels: number;
}

/**
 * Size that a picture is brought to: multiples of `factor` (rounded half to even), pixel count within the bounds, aspect kept
 * about.
 *
 * @throws {LibError} `ERR_IMAGE` for an aspect ratio above 200.
 * @see the `smart_resize` of Qwen2-VL's image processor
 */
export function smartResize(height: number, width: number, bounds: ResizeBounds): { height: number; width: number } {
  check.object('smartResize', 'bounds', bounds);
  const { factor, minPixels, maxPixels } = bounds;
  check.integer('smartResize', 'factor', factor, 1);
  check.integer('smartResize', 'maxPixels', maxPixels, 1);
  check.integer('smartResize', 'minPixels', minPixels, 1, maxPixels);
  check.integer('smartResize', 'height', height, 1);
  check.integer('smartResize', 'width', width, 1);
  if (Math.max(height, width) / Math.min(height, width) > MAX_ASPECT) {
    fail('ERR_IMAGE', 'smartResize', `Expected an image whose sides differ by a factor of at most ${MAX_ASPECT} but received ${width}x${height}. Crop or pad it first.`);
  }
  const high = roundHalfEven(height / factor) * factor;
  const wide = roundHalfEven(width / factor) * factor;
  if (high * wide > maxPixels) {
    const shrink = Math.sqrt((height * width) / maxPixels);
    const fit = (side: number): number => Math.max(factor, Math.floor(side / shrink / factor) * factor);
    return { height: fit(height), width: fit(width) };
  }
  if (high * wide < minPixels) {
    const grow = Math.sqrt(minPixels / (height * width));
    const fit = (side: number): number => Math.ceil((side * grow) / factor) * factor;
    return { height: fit(height), width: fit(width) };
  }
  return { height: high, width: wide };
}

function roundHalfEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/**
 * Decodes an image to RGB: first frame, turned as its EXIF orientation says, transparency over white, embedded colour profiles
 * not applied (as in the reference preprocessing).
 *
 * @throws {LibError} `ERR_IMAGE` when it cannot be read, is no image or is too large; `ERR_ARGUMENT` for another kind of source.
 */
export async function decodeImage(source: ImageSource, limits: ImageLimits = { maxInputPixels: DEFAULT_MAX_INPUT_PIXELS }): Promise<RgbImage> {
  check.options('image', limits, ['maxInputPixels', 'signal']);
  check.integer('image', 'maxInputPixels', limits.maxInputPixels, 1);
  check.signal('image', limits.signal)?.throwIfAborted();
  if (isRaw(source)) return decodeRaw(source, limits);
  const { input, name } = encodedInput(source);
  // Also because opening a named pipe waits for a writer for ever.
  const kind = typeof input === 'string' ? await kindOf(input) : 'file';
  if (kind !== 'file') fail('ERR_IMAGE', 'image', `Expected an image file at ${check.show(name)} but received ${kind === 'missing' ? 'no such file' : kind}. Correct the path, or give the bytes.`);
  const sharp = loadSharp();
  try {
    const options = { limitInputPixels: false, failOn: 'error', ignoreIcc: true } as const;
    const { format, width, height } = await sharp(input, options).metadata();
    if (!FORMATS.has(format)) fail('ERR_IMAGE', 'image', `Expected ${name} to be PNG, JPEG, WebP, GIF, TIFF or AVIF but received ${format}. Convert it first.`);
    checkSize(name, width, height, limits);
    const { data, info } = await sharp(input, options).autoOrient().toColourspace('srgb').raw({ depth: 'uchar' }).timeout({ seconds: DECODE_SECONDS }).toBuffer({ resolveWithObject: true });
    limits.signal?.throwIfAborted();
    const owned = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return { pixels: await toRgb(owned, info.width * info.height, info.channels, limits.signal), height: info.height, width: info.width };
  } catch (error) {
    if (error instanceof LibError || (limits.signal?.aborted === true && error === limits.signal.reason)) throw error;
    return fail('ERR_IMAGE', 'image', `Expected ${name} to be an image that can be decoded but received: ${(error as Error).message.trim()}. Give PNG, JPEG, WebP, GIF, TIFF or AVIF.`, { cause: error });
  }
}

function checkSize(name: string, width: number, height: number, limits: ImageLimits): void {
  if (width * height > limits.maxInputPixels) {
    fail('ERR_IMAGE', 'image', `Expected ${name} to have at most maxInputPixels = ${limits.maxInputPixels} pixels but received ${width}x${height} = ${width * height}. `
      + 'Make it smaller, or raise the option maxInputPixels.');
  }
}

function isRaw(source: ImageSource): source is RawImage {
  return typeof source === 'object' && source !== null && 'data' in source;
}

async function decodeRaw(image: RawImage, limits: ImageLimits): Promise<RgbImage> {
  const width = check.integer('image', 'width', image.width, 1, 2 ** 31 - 1);
  const height = check.integer('image', 'height', image.height, 1, 2 ** 31 - 1);
  const channels = check.integer('image', 'channels', image.channels, 1, 4);
  checkSize('raw pixels', width, height, limits);
  const { data } = image;
  if (Object.prototype.toString.call(data) !== '[object Uint8ClampedArray]') check.typedArray('image', 'data', data, 'Uint8Array');
  if (data.length !== width * height * channels) {
    fail('ERR_SHAPE', 'image', `Expected data to have width*height*channels = ${width * height * channels} elements but received ${data.length}`);
  }
  return { pixels: await toRgb(new Uint8Array(data), width * height, channels, limits.signal), height, width };
}

/** Bytes are copied: the decoder reads them on another thread, and the caller may transfer them away. */
function encodedInput(source: Exclude<ImageSource, RawImage>): { input: string | Buffer; name: string } {
  if (ArrayBuffer.isView(source)) {
    if (source.byteLength === 0) fail('ERR_IMAGE', 'image', 'Expected the bytes of an image file but received none');
    return { input: Buffer.from(source), name: `an image of ${source.byteLength} bytes` };
  }
  const text = source instanceof URL ? source.href : source;
  if (typeof text !== 'string' || text === '') return fail('ERR_ARGUMENT', 'image', `Expected a path, a data URL, bytes or { data, width, height, channels } but received ${check.show(source)}`);
  if (/^data:/i.test(text)) return { input: decodeDataUrl(text), name: 'the data URL' };
  if (/^file:/i.test(text)) return { input: pathOf(text), name: text };
  if (/^[a-z][a-z0-9+.-]+:\/\//i.test(text)) return fail('ERR_IMAGE', 'image', `Expected a path or a data URL but received ${check.show(text)}. Nothing is fetched from the network here: download it and give the bytes.`);
  return { input: text, name: text };
}

function pathOf(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (error) {
    return fail('ERR_IMAGE', 'image', `Expected a file URL but received ${check.show(url)}: ${(error as Error).message}`, { cause: error });
  }
}

function decodeDataUrl(url: string): Buffer {
  const comma = url.indexOf(',');
  const data = comma < 0 ? '' : url.slice(comma + 1);
  // Percent-encoded bytes need not be UTF-8, so decodeURIComponent cannot read them.
  const bytes = /;base64$/i.test(url.slice(0, comma).trim()) ? Buffer.from(data, 'base64')
    : Buffer.from(data.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16))), 'latin1');
  if (bytes.length === 0) fail('ERR_IMAGE', 'image', `Expected a data URL with the bytes of an image but received ${check.show(url)}`);
  return bytes;
}

/** The data themselves where they are RGB. In slices, between which other work goes on: a photo of 100 megapixels takes seconds. */
async function toRgb(data: Uint8Array, pixels: number, channels: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
  if (channels === 3) return data;
  const out = new Uint8Array(3 * pixels);
  for (let start = 0; start < pixels; start += SLICE_PIXELS) {
    if (start > 0) await setImmediate();
    signal?.throwIfAborted();
    overWhite(data, out, channels, start, Math.min(pixels, start + SLICE_PIXELS));
  }
  return out;
}

/** Alpha over white: (c*a + 255*(255-a)) / 255, rounded, in integers. Not the `flatten` of libvips, which rounds down. */
function overWhite(data: Uint8Array, out: Uint8Array, channels: number, start: number, end: number): void {
  const colours = channels >= 3 ? 3 : 1;
  for (let i = start; i < end; i++) {
    const alpha = channels === colours ? 255 : data[i * channels + colours]!;
    for (let c = 0; c < 3; c++) {
      const sum = data[i * channels + (colours === 3 ? c : 0)]! * alpha + 255 * (255 - alpha) + 128;
      out[3 * i + c] = (sum + (sum >> 8)) >> 8;
    }
  }
}

/** Loaded at the first picture: programs that give token ids or finished pixels never need it. */
export function loadSharp(): typeof SharpFactory {
  try {
    return require('sharp') as typeof SharpFactory;
  } catch (error) {
    return fail('ERR_UNSUPPORTED', 'image', `Expected the package sharp for decoding image files but received: ${(error as Error).message.split('\n')[0]}. Install it (npm install sharp), or give raw pixels.`, { cause: error });
  }
}

/** Brings a picture to its target size: 8-bit bicubic, bit-equal to the reference preprocessing. */
export async function resizeImage(image: RgbImage, to: { height: number; width: number }, signal?: AbortSignal): Promise<RgbImage> {
  if (to.height === image.height && to.width === image.width) return image;
  const pixels = await abortable(signal, (token) => native().ops.resize(image.pixels, image.height, image.width, to.height, to.width, 'bicubic', token));
  return { pixels, ...to };
}
