/** Messages and pictures in, rows for the decoder out: chat template, tokenizer and image preprocessing of one checkpoint. */
import * as check from '../check';
import { fail } from '../errors';
import type { CompanionFiles } from './checkpoint';
import { modelGeometry, type ModelConfig } from './config';
import { DEFAULT_MAX_INPUT_PIXELS, decodeImage, resizeImage, smartResize, type ImageSource, type Picture } from './image';
import type { ImageSettings } from './imageSettings';
import { mergedTokens, mropePositions, type Grid } from './positions';
import { makeChatTemplate, makeTokenizer, type TemplateMessage, type Tokenizer } from './tokenizer';

/**
 * `image_url` takes data URLs only, because such messages come from strangers; `image` takes any source, also paths, because it
 * comes from the program.
 */
export type MessagePart =
  | { type: 'text'; text: string }
  | { type: 'image'; image: ImageSource }
  | { type: 'image_url'; image_url: string | { url: string } };

export interface Message {
  role: 'system' | 'user' | 'assistant';
  content: string | readonly MessagePart[];
  name?: string;
}

export interface EncodedPrompt {
  /** Token ids, one image token per merged patch. */
  promptIds: Int32Array;
  /** In the order of their tokens. */
  pictures: Picture[];
  /** [3*S] M-RoPE ids. */
  positions: Int32Array;
  /** Position id of a row that follows, minus its index. */
  delta: number;
}

export interface ProcessorOptions {
  /** Bounds of a picture's pixels after resizing; default: the checkpoint's, `maxPixels` at most {@link DEFAULT_MAX_PIXELS}. */
  minPixels?: number;
  maxPixels?: number;
  /** An image of more pixels is refused before it is decoded (default 100 million). */
  maxInputPixels?: number;
  signal?: AbortSignal;
}

export interface EncodeOptions extends ProcessorOptions {
  /** End with the opening of the assistant's turn (default), or with the last message as it is. */
  addGenerationPrompt?: boolean;
}

export interface Processor {
  readonly tokenizer: Tokenizer | undefined;
  /** Renders messages, encodes the text, prepares the pictures. */
  encode(messages: readonly Message[], options?: EncodeOptions): Promise<EncodedPrompt>;
  /** Text of generated ids, special tokens left out. */
  decode(ids: readonly number[]): string;
  /** One picture at the size that the vision tower takes, with its original. */
  preparePicture(source: ImageSource, options?: ProcessorOptions): Promise<Picture>;
}

/** The reference class's own default, 1,280 rows per picture. Hub files allow 12.8 million pixels: 16,384 rows for one photo. */
export const DEFAULT_MAX_PIXELS = 28 * 28 * 1280;

const PICTURE_OPTIONS = ['minPixels', 'maxPixels', 'maxInputPixels', 'signal'];
const ENCODE_OPTIONS = [...PICTURE_OPTIONS, 'addGenerationPrompt'];
const IMAGE_PAD = '<|image_pad|>';

/**
 * @throws {LibError} `ERR_CHECKPOINT` when tokenizer or template are broken, or the tokenizer's image token is not the model's.
 */
export function makeProcessor(config: ModelConfig, images: ImageSettings, companions: CompanionFiles): Processor {
  const tokenizer = makeTokenizer(companions);
  const template = makeChatTemplate(companions);
  const geometry = modelGeometry(config);
  checkImageToken(tokenizer, config);

  const preparePicture = async (source: ImageSource, options: ProcessorOptions = {}): Promise<Picture> => {
    const { bounds, maxInputPixels, signal } = pictureOptions(options, images, config);
    const image = await decodeImage(source, { maxInputPixels, signal });
    const { pixels, height, width } = await resizeImage(image, smartResize(image.height, image.width, bounds), signal);
    return { pixels, frames: 1, height, width, original: image };
  };

  const encode = async (messages: readonly Message[], options: EncodeOptions = {}): Promise<EncodedPrompt> => {
    check.options('encode', options, ENCODE_OPTIONS);
    const addGenerationPrompt = check.boolean('encode', 'addGenerationPrompt', options.addGenerationPrompt ?? true);
    const { rendered, sources } = readMessages(messages);
    if (tokenizer === undefined) fail('ERR_UNSUPPORTED', 'encode', 'Expected a checkpoint with tokenizer.json for messages but received one without. Add the file, or give promptIds.');
    if (template === undefined) fail('ERR_UNSUPPORTED', 'encode', 'Expected a checkpoint with a chat template for messages but received one without. Add chat_template.json, or give promptIds.');
    const text = template(rendered, addGenerationPrompt);
    const { addGenerationPrompt: _, ...rest } = options;
    const pictures: Picture[] = [];
    for (const source of sources) pictures.push(await preparePicture(source, rest));
    const grids = pictures.map((picture): Grid => [1, picture.height / geometry.patch, picture.width / geometry.patch]);
    const promptIds = expandPictures(tokenizer.encode(text), geometry.imageToken, grids.map((grid) => mergedTokens(grid, geometry.merge)));
    return { promptIds, pictures, ...mropePositions(promptIds, grids, geometry) };
  };

  return Object.freeze({
    tokenizer, encode, preparePicture,
    decode(ids: readonly number[]): string {
      if (tokenizer === undefined) return fail('ERR_UNSUPPORTED', 'decode', 'Expected a checkpoint with tokenizer.json for text but received one without. Add the file, or use the ids.');
      check.array('decode', 'ids', ids);
      return tokenizer.decode(ids);
    },
  });
}

function checkImageToken(tokenizer: Tokenizer | undefined, config: ModelConfig): void {
  const id = tokenizer?.idOf(IMAGE_PAD);
  if (id !== undefined && id !== config.tokens.image) {
    fail('ERR_CHECKPOINT', 'load', `Expected ${IMAGE_PAD} to be token ${config.tokens.image}, as image_token_id in config.json says, but received ${id} in the tokenizer files. They belong to different models.`);
  }
}

function pictureOptions(options: ProcessorOptions, images: ImageSettings, config: ModelConfig): { bounds: { factor: number; minPixels: number; maxPixels: number }; maxInputPixels: number; signal: AbortSignal | undefined } {
  check.options('picture', options, PICTURE_OPTIONS);
  const maxPixels = check.integer('picture', 'maxPixels', options.maxPixels ?? Math.min(images.maxPixels, DEFAULT_MAX_PIXELS), 1, 2 ** 31);
  const minPixels = check.integer('picture', 'minPixels', options.minPixels ?? Math.min(images.minPixels, maxPixels), 1, maxPixels);
  const maxInputPixels = check.integer('picture', 'maxInputPixels', options.maxInputPixels ?? DEFAULT_MAX_INPUT_PIXELS, 1);
  const factor = config.vision.patch * config.vision.merge;
  return { bounds: { factor, minPixels, maxPixels }, maxInputPixels, signal: check.signal('picture', options.signal) };
}

/** Checks messages; returns what the template sees, and the pictures in their order. */
function readMessages(messages: readonly Message[]): { rendered: TemplateMessage[]; sources: ImageSource[] } {
  if (!Array.isArray(messages) || messages.length === 0) fail('ERR_ARGUMENT', 'encode', `Expected messages to be a list of at least one message but received ${check.show(messages)}`);
  const sources: ImageSource[] = [];
  const rendered = (messages as readonly Message[]).map((message, m): TemplateMessage => {
    if (typeof message !== 'object' || message === null) fail('ERR_ARGUMENT', 'encode', `Expected message ${m} to be an object with role and content but received ${check.show(message)}`);
    check.options('encode', message, ['role', 'content', 'name']);
    const role = check.oneOf('encode', `role of message ${m}`, message.role, ['system', 'user', 'assistant']);
    const { content } = message;
    if (typeof content !== 'string' && !Array.isArray(content)) fail('ERR_ARGUMENT', 'encode', `Expected content of message ${m} to be a string or a list of parts but received ${check.show(content)}`);
    return {
      role, ...(message.name === undefined ? {} : { name: check.string('encode', `name of message ${m}`, message.name) }),
      content: typeof content === 'string' ? content : content.map((part, p) => readPart(part, `part ${p} of message ${m}`, sources)),
    };
  });
  return { rendered, sources };
}

function readPart(part: MessagePart, what: string, sources: ImageSource[]): { type: 'text'; text: string } | { type: 'image' } {
  const type = check.oneOf('encode', `type of ${what}`, (part as MessagePart | null)?.type, ['text', 'image', 'image_url']);
  if (part.type === 'text') return { type: 'text', text: check.string('encode', `text of ${what}`, part.text) };
  sources.push(type === 'image' ? (part as { image: ImageSource }).image : dataUrl((part as { image_url: unknown }).image_url, what));
  return { type: 'image' };
}

function dataUrl(value: unknown, what: string): string {
  const url = typeof value === 'object' && value !== null ? (value as { url?: unknown }).url : value;
  if (typeof url !== 'string' || !/^data:/i.test(url)) {
    return fail('ERR_ARGUMENT', 'encode', `Expected image_url of ${what} to be a data URL but received ${check.show(url)}. Files and bytes go into { type: 'image', image }; nothing is fetched from the network.`);
  }
  return url;
}

/** Replaces the n-th image token by as many as the n-th picture has rows. */
function expandPictures(ids: readonly number[], imageToken: number, rows: readonly number[]): Int32Array {
  const found = ids.filter((id) => id === imageToken).length;
  if (found !== rows.length) {
    fail('ERR_ARGUMENT', 'encode', `Expected one ${IMAGE_PAD} per picture = ${rows.length} in the rendered messages but received ${found}. `
      + 'The text of a message must not hold that token, and the chat template must place one per image.');
  }
  const out = new Int32Array(ids.length - found + rows.reduce((sum, n) => sum + n, 0));
  let at = 0;
  let picture = 0;
  for (const id of ids) {
    const copies = id === imageToken ? rows[picture++]! : 1;
    out.fill(id, at, at + copies);
    at += copies;
  }
  return out;
}
