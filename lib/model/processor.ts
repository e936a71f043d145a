/** Messages and pictures in, rows for the decoder out: chat template, tokenizer and image preprocessing of one checkpoint. */
import * as check from '../check';
import { LibError, fail } from '../errors';
import type { CompanionFiles } from './checkpoint';
import { modelGeometry, type ModelConfig, type ModelGeometry } from './config';
import { parseJson } from './files';
import type { ImageSource, Picture } from './image';
import { parseVideoSettings, type ImageSettings } from './imageSettings';
import { isObject, own } from './jsonReader';
import { readMessages, type Message, type VideoFrames } from './messages';
import { promptPositions, visualRowsOf } from './passes';
import { PICTURE_OPTIONS, prepareImage, prepareVideo, type PictureOptions, type ProcessorOptions } from './pictures';
import { makeChatTemplate, makeTokenizer, type Tokenizer } from './tokenizer';

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

export interface EncodeOptions extends ProcessorOptions {
  /** End with the opening of the assistant's turn (default), or with the last message as it is. */
  addGenerationPrompt?: boolean;
  /** Number the pictures in the text, "Picture 1: " and "Video 1: ", where the chat template knows how (default false). */
  addVisionId?: boolean;
}

export interface Processor {
  readonly tokenizer: Tokenizer | undefined;
  /** Renders messages, encodes the text, prepares the pictures; rejects with `signal.reason` when aborted. */
  encode(messages: readonly Message[], options?: EncodeOptions): Promise<EncodedPrompt>;
  /** Text of generated ids, special tokens left out. */
  decode(ids: readonly number[]): string;
  /** One picture at the size that the vision tower takes, with its original. */
  preparePicture(source: ImageSource, options?: PictureOptions): Promise<Picture>;
  /** The frames of a video at one size. */
  prepareVideo(video: VideoFrames, options?: PictureOptions): Promise<Picture>;
}

const ENCODE_OPTIONS = [...PICTURE_OPTIONS, 'addGenerationPrompt', 'addVisionId'];
const IMAGE_PAD = '<|image_pad|>';
const VIDEO_PAD = '<|video_pad|>';
const VIDEO_FILE = 'video_preprocessor_config.json';
const PROCESSOR_FILE = 'processor_config.json';

/**
 * @throws {LibError} `ERR_CHECKPOINT` when tokenizer or template are broken, or the tokenizer's image token is not the model's.
 */
export function makeProcessor(config: ModelConfig, images: ImageSettings, companions: CompanionFiles): Processor {
  const tokenizer = makeTokenizer(companions);
  const template = makeChatTemplate(companions);
  const geometry = modelGeometry(config);
  checkPictureTokens(tokenizer, config);
  const maker = { vision: config.vision, images, videos: parseVideoSettings(videoJson(companions), images) };

  const preparePicture = (source: ImageSource, options: PictureOptions = {}): Promise<Picture> => prepareImage(maker, source, options);
  const prepareFrames = (video: VideoFrames, options: PictureOptions = {}): Promise<Picture> => prepareVideo(maker, video, options);

  const encode = async (messages: readonly Message[], options: EncodeOptions = {}): Promise<EncodedPrompt> => {
    check.options('encode', options, ENCODE_OPTIONS);
    const { addGenerationPrompt = true, addVisionId = false, ...rest } = options;
    check.boolean('encode', 'addGenerationPrompt', addGenerationPrompt);
    check.boolean('encode', 'addVisionId', addVisionId);
    const signal = check.signal('encode', rest.signal);
    signal?.throwIfAborted();
    const { rendered, pictures: wanted } = readMessages(messages);
    if (tokenizer === undefined) fail('ERR_UNSUPPORTED', 'encode', 'Expected a checkpoint with tokenizer.json for messages but received one without. Add the file, or give promptIds.');
    if (template === undefined) fail('ERR_UNSUPPORTED', 'encode', 'Expected a checkpoint with a chat template for messages but received one without. Add chat_template.json, or give promptIds.');
    const text = await template(rendered, addGenerationPrompt, addVisionId, signal);
    const ids = tokenizer.encode(text);
    if (ids.length === 0) fail('ERR_CHECKPOINT', 'chatTemplate', `Expected a chat template that renders the messages to some text but received ${text === '' ? 'one that renders none' : 'text that has no tokens'}. Correct the checkpoint's chat template.`);
    const foreign = ids.find((id) => id >= geometry.vocab);
    if (foreign !== undefined) fail('ERR_CHECKPOINT', 'encode', `Expected the ids of tokens in tokenizer.json to be below ${geometry.vocab}, the rows of the embedding table, but received ${foreign}. The files belong to different models.`);
    const pictures: Picture[] = [];
    for (const { what, size, ...part } of wanted) {
      pictures.push(await ofPart(what, part.type === 'video' ? prepareFrames(part.source, { ...rest, ...size }) : preparePicture(part.source, { ...rest, ...size })));
    }
    const tokens = pictures.map((picture, n) => ({ token: wanted[n]!.type === 'video' ? geometry.videoToken : geometry.imageToken, rows: visualRowsOf(picture, geometry) }));
    const promptIds = expandPictures(ids, tokens, geometry);
    return { promptIds, pictures, ...promptPositions({ promptIds, pictures }, geometry) };
  };

  return Object.freeze({
    tokenizer, encode, preparePicture, prepareVideo: prepareFrames,
    decode(ids: readonly number[]): string {
      if (tokenizer === undefined) return fail('ERR_UNSUPPORTED', 'decode', 'Expected a checkpoint with tokenizer.json for text but received one without. Add the file, or use the ids.');
      for (const id of check.array('decode', 'ids', ids)) check.integer('decode', 'id', id, 0);
      return tokenizer.decode(ids);
    },
  });
}

/** Errors of a picture say which part of which message it is. */
async function ofPart<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof LibError)) throw error;
    throw new LibError(error.code, `${error.message} (${what})`, { cause: error });
  }
}

/** transformers 5 nests it in processor_config.json, which it reads first. */
function videoJson(companions: CompanionFiles): unknown {
  const processor = parseJson(companions.get(PROCESSOR_FILE), PROCESSOR_FILE);
  return (isObject(processor) ? own(processor, 'video_processor') : undefined) ?? parseJson(companions.get(VIDEO_FILE), VIDEO_FILE);
}

function checkPictureTokens(tokenizer: Tokenizer | undefined, { tokens: { image, video } }: ModelConfig): void {
  for (const [token, key, expected] of [[IMAGE_PAD, 'image_token_id', image], [VIDEO_PAD, 'video_token_id', video]] as const) {
    const id = tokenizer?.idOf(token);
    if (id !== undefined && id !== expected) {
      fail('ERR_CHECKPOINT', 'load', `Expected ${token} to be token ${expected}, as ${key} in config.json says, but received ${id} in the tokenizer files. They belong to different models.`);
    }
  }
}

/** Replaces the n-th picture token by as many as the n-th picture has rows. */
function expandPictures(ids: readonly number[], pictures: readonly { token: number; rows: number }[], { imageToken, videoToken }: ModelGeometry): Int32Array {
  const isPicture = (id: number): boolean => id === imageToken || id === videoToken;
  const found = ids.filter(isPicture);
  const differs = pictures.findIndex(({ token }, n) => found[n] !== token);
  if (found.length !== pictures.length || differs >= 0) {
    const images = pictures.filter(({ token }) => token === imageToken).length;
    const received = found.filter((id) => id === imageToken).length;
    const [wanted, got] = [words(images, pictures.length - images), words(received, found.length - received)];
    fail('ERR_ARGUMENT', 'encode', `Expected one ${IMAGE_PAD} per picture${pictures.length > images ? ` and one ${VIDEO_PAD} per video` : ''} = ${wanted} in the rendered messages but received ${got}${wanted === got ? ' in another order' : ''}. `
      + 'The text of a message must not hold that token, and the chat template must place one per image.');
  }
  const out = new Int32Array(ids.length - found.length + pictures.reduce((sum, { rows }) => sum + rows, 0));
  let at = 0;
  let picture = 0;
  for (const id of ids) {
    const copies = isPicture(id) ? pictures[picture++]!.rows : 1;
    out.fill(id, at, at + copies);
    at += copies;
  }
  return out;
}

function words(images: number, videos: number): string {
  return videos === 0 ? `${images}` : `${images} and ${videos}`;
}
