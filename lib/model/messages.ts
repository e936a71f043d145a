/** Messages as programs write them (OpenAI's shape, with qwen_vl_utils' options), checked and taken apart for template and pictures. */
import * as check from '../check';
import { fail } from '../errors';
import type { ImageSource } from './image';
import type { TemplateMessage } from './tokenizer';

/** How large a picture is given to the model, as in qwen_vl_utils; what is left out comes from the call, then from the checkpoint. */
export interface PictureSize {
  /** Bounds of height * width after resizing; of each frame of a video. */
  minPixels?: number;
  maxPixels?: number;
  /** Exactly this size, rounded to multiples of patch * merge; both or neither, without minPixels. maxPixels holds all the same. */
  resizedHeight?: number;
  resizedWidth?: number;
}

/** A video is its frames: decoding video files is left to programs made for it. */
export interface VideoFrames {
  /** In order, all of one size; an odd number is filled up by repeating the last. */
  frames: readonly ImageSource[];
  /** Frames per second of this list, not of the film that they were taken from (default 2, as in qwen_vl_utils). Tells Qwen2.5-VL how much time lies between frames. */
  fps?: number;
}

/**
 * `image_url` takes data URLs only, because such messages come from strangers; `image` takes any source, also paths, because it
 * comes from the program.
 */
export type MessagePart =
  | { type: 'text'; text: string }
  | ({ type: 'image'; image: ImageSource } & PictureSize)
  | ({ type: 'image_url'; image_url: string | { url: string; detail?: 'auto' } } & PictureSize)
  | ({ type: 'video'; video: VideoFrames } & PictureSize);

export interface Message {
  role: 'system' | 'user' | 'assistant';
  content: string | readonly MessagePart[];
  name?: string;
}

/** A picture of a message, before it is decoded. `what` names its part in errors. */
export type MessagePicture = { what: string; size: PictureSize } & ({ type: 'image'; source: ImageSource } | { type: 'video'; source: VideoFrames });

export const SIZE_OPTIONS = ['minPixels', 'maxPixels', 'resizedHeight', 'resizedWidth'] as const satisfies (keyof PictureSize)[];
const PARTS = { text: 'text', image: 'image', image_url: 'image_url', video: 'video' } as const;

/** Checks messages; returns what the template sees, and the pictures in their order. @throws {LibError} `ERR_ARGUMENT` naming message and part. */
export function readMessages(messages: readonly Message[]): { rendered: TemplateMessage[]; pictures: MessagePicture[] } {
  if (!Array.isArray(messages) || messages.length === 0) fail('ERR_ARGUMENT', 'encode', `Expected messages to be a list of at least one message but received ${check.show(messages)}. Give [{ role: 'user', content: 'text' }].`);
  const pictures: MessagePicture[] = [];
  const rendered = (messages as readonly Message[]).map((message, m): TemplateMessage => {
    if (typeof message !== 'object' || message === null) fail('ERR_ARGUMENT', 'encode', `Expected message ${m} to be an object with role and content but received ${check.show(message)}. Give { role: 'user', content: 'text' }.`);
    check.options('encode', message, ['role', 'content', 'name']);
    const role = check.oneOf('encode', `role of message ${m}`, message.role, ['system', 'user', 'assistant']);
    const { content } = message;
    if (typeof content !== 'string' && !Array.isArray(content)) fail('ERR_ARGUMENT', 'encode', `Expected content of message ${m} to be a string or a list of parts but received ${check.show(content)}. A part is { type: 'text', text } or { type: 'image', image }.`);
    return {
      role, ...(message.name === undefined ? {} : { name: check.string('encode', `name of message ${m}`, message.name) }),
      content: typeof content === 'string' ? content : content.map((part, p) => readPart(part, `part ${p} of message ${m}`, pictures)),
    };
  });
  return { rendered, pictures };
}

function readPart(part: MessagePart, what: string, pictures: MessagePicture[]): { type: 'text'; text: string } | { type: 'image' | 'video' } {
  const type = check.oneOf('encode', `type of ${what}`, (part as MessagePart | null)?.type, Object.keys(PARTS) as MessagePart['type'][]);
  check.options('encode', part, type === 'text' ? ['type', 'text'] : ['type', PARTS[type], ...SIZE_OPTIONS]);
  if (part.type === 'text') return { type: 'text', text: check.string('encode', `text of ${what}`, part.text) };
  const { minPixels, maxPixels, resizedHeight, resizedWidth } = part;
  const size = Object.fromEntries(Object.entries({ minPixels, maxPixels, resizedHeight, resizedWidth }).filter(([, value]) => value !== undefined));
  if ((resizedHeight !== undefined || resizedWidth !== undefined) && minPixels !== undefined) {
    fail('ERR_ARGUMENT', 'encode', `Expected either resizedHeight and resizedWidth or minPixels in ${what} but received both. Leave one of them out.`);
  }
  if (part.type === 'video') {
    pictures.push({ what, size, type: 'video', source: part.video });
    return { type: 'video' };
  }
  pictures.push({ what, size, type: 'image', source: part.type === 'image' ? part.image : dataUrl(part.image_url, what) });
  return { type: 'image' };
}

function dataUrl(value: string | { url: string; detail?: unknown }, what: string): string {
  const isObject = typeof value === 'object' && value !== null;
  if (isObject) check.options('encode', value, ['url', 'detail']);
  if (isObject && value.detail !== undefined && value.detail !== 'auto') {
    fail('ERR_ARGUMENT', 'encode', `Expected detail of ${what} to be 'auto' but received ${check.show(value.detail)}. Say how large the picture shall be with minPixels and maxPixels.`);
  }
  const url: unknown = isObject ? value.url : value;
  if (typeof url !== 'string' || !/^data:/i.test(url)) {
    return fail('ERR_ARGUMENT', 'encode', `Expected image_url of ${what} to be a data URL but received ${check.show(url)}. Files and bytes go into { type: 'image', image }; nothing is fetched from the network.`);
  }
  return url;
}
