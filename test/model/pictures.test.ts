/** Chats with pictures and videos as transformers' processors read them; sizes of pictures by options of the call and of the part. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readCompanions, type CompanionFiles } from '../../lib/model/checkpoint';
import { modelGeometry, newConfig } from '../../lib/model/config';
import type { RawImage } from '../../lib/model/image';
import { parseImageSettings, parseVideoSettings } from '../../lib/model/imageSettings';
import type { Message, MessagePart } from '../../lib/model/messages';
import { frameSize } from '../../lib/model/pictures';
import { makeProcessor, type Processor } from '../../lib/model/processor';
import { noise } from '../train/tinyModel';

type Part = { type: 'text'; text: string } | { type: 'image'; seed: number; height: number; width: number }
  | { type: 'video'; seed: number; frames: number; height: number; width: number; fps: number };
interface Positions { positions: number[]; delta: number; secondsPerGrid?: number[] }
interface Chat {
  messages: { role: 'user' | 'assistant'; content: string | Part[] }[];
  addVisionId: boolean;
  ids: number[];
  imageGrids: number[][];
  videoGrids: number[][];
  imagePixels: string[];
  videoPixels: string[];
  qwen2_vl: Positions;
  qwen2_5_vl: Positions;
}
interface Expected {
  tokensPerSecond: number;
  bounds: object;
  videoBounds: object;
  chats: Record<string, Chat>;
  videoSizes: [count: number, height: number, width: number, toHeight: number, toWidth: number][];
}
const FIXTURES = join(__dirname, '../fixtures');
const expected = JSON.parse(readFileSync(join(FIXTURES, 'processor.json'), 'utf8')) as Expected;
const config = newConfig({
  text: { hidden: 16, layers: 1, heads: 2, kvHeads: 1, intermediate: 16, vocab: 320, mropeSection: [2, 1, 1] },
  vision: { depth: 1, width: 8, heads: 1, mlpWidth: 8 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
});
const geometry = modelGeometry(config);
let companions: CompanionFiles;
let files: CompanionFiles;
let processor: Processor;
const images = parseImageSettings(expected.bounds, config.vision);
const NO_FILE = parseImageSettings(undefined, config.vision);
beforeAll(async () => {
  companions = await readCompanions(join(FIXTURES, 'tokenizer'));
  files = new Map(companions).set('video_preprocessor_config.json', JSON.stringify(expected.videoBounds));
  processor = makeProcessor(config, images, files);
});

const raw = (seed: number, height: number, width: number): RawImage => ({ data: noise(seed, 3 * height * width), height, width, channels: 3 });

function partOf(part: Part): MessagePart {
  if (part.type === 'text') return part;
  if (part.type === 'image') return { type: 'image', image: raw(part.seed, part.height, part.width) };
  const { seed, frames, height, width, fps } = part;
  return { type: 'video', video: { frames: Array.from({ length: frames }, (_, n) => raw(1000 * seed + n, height, width)), fps } };
}

/** The same chat read by a Qwen2.5-VL, whose positions know time. */
async function positionsOfTime(messages: readonly Message[], addVisionId: boolean): Promise<Pick<Positions, 'positions' | 'delta'>> {
  const timed = { ...config, kind: 'qwen2_5_vl' as const, vision: { ...config.vision, tokensPerSecond: expected.tokensPerSecond } };
  const { positions, delta } = await makeProcessor(timed, images, files).encode(messages, { addVisionId });
  return { positions: [...positions], delta };
}

describe('as in Python', () => {
  test.each(Object.keys(expected.chats))('%s', async (name) => {
    const chat = expected.chats[name]!;
    const messages = chat.messages.map(({ role, content }): Message => ({ role, content: typeof content === 'string' ? content : content.map(partOf) }));
    const { promptIds, pictures, positions, delta } = await processor.encode(messages, { addVisionId: chat.addVisionId });
    expect([...promptIds]).toEqual(chat.ids);
    expect([...positions]).toEqual(chat.qwen2_vl.positions);
    expect(delta).toBe(chat.qwen2_vl.delta);
    const { secondsPerGrid = [], ...timed } = chat.qwen2_5_vl;
    expect(await positionsOfTime(messages, chat.addVisionId)).toEqual(timed);
    const grids = (isVideo: boolean): number[][] => pictures.filter(({ secondsPerGrid }) => (secondsPerGrid !== undefined) === isVideo)
      .map(({ frames, height, width }) => [Math.ceil(frames / geometry.temporal), height / geometry.patch, width / geometry.patch]);
    expect([grids(false), grids(true)]).toEqual([chat.imageGrids, chat.videoGrids]);
    const hashes = (isVideo: boolean): string[] => pictures.filter(({ secondsPerGrid }) => (secondsPerGrid !== undefined) === isVideo)
      .map(({ pixels }) => createHash('sha256').update(pixels).digest('hex'));
    expect([hashes(false), hashes(true)]).toEqual([chat.imagePixels, chat.videoPixels]);
    const seconds = pictures.flatMap(({ secondsPerGrid }) => (secondsPerGrid === undefined ? [] : [secondsPerGrid]));
    // Stored as Python's float64 of a torch float32 or of a plain quotient.
    expect(seconds.map(Math.fround)).toEqual(secondsPerGrid.map(Math.fround));
  });

  test('sizes of frames, from one frame to the most', () => {
    const { minPixels, maxPixels, tokens } = parseVideoSettings(undefined, NO_FILE);
    expect(expected.videoSizes.length).toBeGreaterThan(70);
    for (const [count, height, width, toHeight, toWidth] of expected.videoSizes) {
      expect([count, height, width, frameSize(count, height, width, { factor: 28, minPixels, maxPixels }, 2 * tokens)]).toEqual([count, height, width, { height: toHeight, width: toWidth }]);
    }
  });
});

describe('sizes', () => {
  const sizeOf = async (part: object, options = {}): Promise<number[]> => {
    const { pictures: [picture] } = await processor.encode([{ role: 'user', content: [{ type: 'image', image: raw(1, 300, 300), ...part }] }], options);
    return [picture!.height, picture!.width];
  };
  test.each<[object, object, number[]]>([
    [{}, {}, [168, 168]], [{ maxPixels: 7000 }, {}, [56, 56]], [{ maxPixels: 7000 }, { maxPixels: 90_000 }, [56, 56]], [{}, { maxPixels: 7000 }, [56, 56]],
    [{ minPixels: 100_000, maxPixels: 200_000 }, {}, [336, 336]], [{ resizedHeight: 84, resizedWidth: 57 }, {}, [84, 56]], [{ resizedHeight: 20, resizedWidth: 20 }, {}, [28, 28]],
    [{ resizedHeight: 280, resizedWidth: 280, maxPixels: 78_400 }, {}, [280, 280]],
  ])('part %j, call %j', async (part, options, size) => {
    expect(await sizeOf(part, options)).toEqual(size);
  });

  test.each<[object, string, string]>([
    [{ maxPixel: 1 }, 'ERR_ARGUMENT', "[encode] Expected options among type, image, minPixels, maxPixels, resizedHeight, resizedWidth but received 'maxPixel'; did you mean 'maxPixels'?"],
    [{ maxPixels: '9' }, 'ERR_ARGUMENT', '[picture] Expected maxPixels to be an integer from 1 to 2147483648 but received "9" (part 0 of message 0)'],
    [{ minPixels: 9, maxPixels: 8 }, 'ERR_RANGE', '[picture] Expected minPixels to be an integer from 1 to 8 but received 9 (part 0 of message 0)'],
    [{ resizedHeight: 84 }, 'ERR_ARGUMENT', '[picture] Expected resizedWidth (given together with resizedHeight) to be an integer from 1 to 32768 but received undefined (part 0 of message 0)'],
    [{ resizedHeight: 84, resizedWidth: 84, minPixels: 100 }, 'ERR_ARGUMENT', '[encode] Expected either resizedHeight and resizedWidth or minPixels in part 0 of message 0 but received both. Leave one of them out.'],
    [{ resizedHeight: 280, resizedWidth: 281 }, 'ERR_RANGE',
      '[picture] Expected resizedHeight x resizedWidth, 280x280 = 78400 pixels, to be at most maxPixels = 31360. Make it smaller, or raise the option maxPixels. (part 0 of message 0)'],
    [{ minPixels: 2 ** 31, maxPixels: 2 ** 31 }, 'ERR_RANGE', '[picture] Expected a picture after resizing with sides of at most 32768 but received 46368x46368. Lower minPixels and maxPixels, or crop it. (part 0 of message 0)'],
    [{ resizedHeight: 1, resizedWidth: 300 }, 'ERR_IMAGE', '[smartResize] Expected an image whose sides differ by a factor of at most 200 but received 300x1. Crop or pad it first. (part 0 of message 0)'],
  ])('part %j is refused', async (part, code, message) => {
    await expect(sizeOf(part)).rejects.toMatchObject({ name: 'LibError', code, message });
  });

  test('an image is brought under the default cap, not refused; one that is too large to decode names size, cap and option', async () => {
    const wide = makeProcessor(config, parseImageSettings(undefined, config.vision), companions);
    const { height, width } = await wide.preparePicture(raw(1, 1500, 1000));
    expect([height, width]).toEqual([1204, 812]);
    await expect(wide.preparePicture({ data: new Uint8Array(32_800 * 200), height: 200, width: 32_800, channels: 1 })).rejects.toMatchObject({
      code: 'ERR_IMAGE', message: '[picture] Expected a picture to be resized with sides of at most 32768 but received 32800x200. Make it smaller.',
    });
    await expect(wide.preparePicture(raw(1, 40, 30), { maxInputPixels: 1199 })).rejects.toMatchObject({
      code: 'ERR_IMAGE', message: '[image] Expected raw pixels to have at most maxInputPixels = 1199 pixels but received 30x40 = 1200. Make it smaller, or raise the option maxInputPixels.',
    });
  });
});

describe('videos', () => {
  const frames = [raw(1, 40, 60), raw(2, 40, 60)];
  const video = (value: unknown, size = {}): Promise<unknown> => processor.encode([{ role: 'user', content: [{ type: 'video', video: value, ...size } as MessagePart] }]);

  test('options of the part count, of each frame', async () => {
    expect(await processor.prepareVideo({ frames }, { resizedHeight: 28, resizedWidth: 56 })).toMatchObject({ frames: 2, height: 28, width: 56, secondsPerGrid: 1 });
    expect(await processor.prepareVideo({ frames, fps: 8 }, { maxPixels: 784 })).toMatchObject({ frames: 2, height: 28, width: 28, secondsPerGrid: 0.25 });
    expect(await processor.prepareVideo({ frames }, { minPixels: 10_000 })).toMatchObject({ height: 84, width: 140 });
  });

  test('bounds of processor_config.json come first', async () => {
    const nested = makeProcessor(config, images, new Map(files).set('processor_config.json', JSON.stringify({ video_processor: { size: { shortest_edge: 784, longest_edge: 1568 } } })));
    expect(await nested.prepareVideo({ frames })).toMatchObject({ height: 28, width: 56 });
  });

  test('bounds without a file of their own', () => {
    expect(parseVideoSettings(undefined, NO_FILE)).toEqual({ minPixels: 100_352, maxPixels: 602_112, tokens: 115_200 });
    // As preprocessor_config.json says where it is all there is: that of the hub, but for the cap of a frame.
    expect(parseVideoSettings(undefined, parseImageSettings({ min_pixels: 3136, max_pixels: 12_845_056 }, config.vision))).toEqual({ minPixels: 3136, maxPixels: 602_112, tokens: 115_200 });
    expect(parseVideoSettings({ size: { shortest_edge: 5 } }, parseImageSettings({ min_pixels: 3136 }, config.vision))).toEqual({ minPixels: 5, maxPixels: 602_112, tokens: 115_200 });
    expect(parseVideoSettings({ size: { shortest_edge: 1000, longest_edge: 2000 }, max_video_tokens: 100 }, NO_FILE)).toEqual({ minPixels: 1000, maxPixels: 2000, tokens: 90 });
    expect(() => parseVideoSettings([], NO_FILE)).toThrow(expect.objectContaining({
      code: 'ERR_CHECKPOINT', message: "[config] Expected video_preprocessor_config.json to hold an object. Take the file from the model's own repository.",
    }));
    expect(() => parseVideoSettings({ min_pixels: 9, max_pixels: 8 }, NO_FILE)).toThrow(expect.objectContaining({
      code: 'ERR_CHECKPOINT', message: '[config] Expected min_pixels in video_preprocessor_config.json to be at most max_pixels = 8 but received 9. Correct the file.',
    }));
  });

  test.each<[string, unknown, string, string]>([
    ['a path', 'film.mp4', 'ERR_ARGUMENT', '[picture] Expected a video to be { frames, fps } but received "film.mp4". Video files are not decoded here: take frames out of them first, for example with ffmpeg. (part 0 of message 0)'],
    ['frames alone', frames, 'ERR_ARGUMENT', '[picture] Expected a video to be { frames, fps } but received Array(2). Video files are not decoded here: take frames out of them first, for example with ffmpeg. (part 0 of message 0)'],
    ['another key', { frames, rate: 2 }, 'ERR_ARGUMENT', "[picture] Expected options among frames, fps but received 'rate' (part 0 of message 0)"],
    ['no frames', { frames: [] }, 'ERR_ARGUMENT', '[picture] Expected frames of a video to be a list of at least one image but received Array(0). Give its frames in order, as paths, bytes or raw pixels. (part 0 of message 0)'],
    ['too many', { frames: Array(769).fill(frames[0]) }, 'ERR_RANGE', '[picture] Expected at most 768 frames of a video but received 769. Take every 2. frame, and divide fps by as much. (part 0 of message 0)'],
    ['fps 0', { frames, fps: 0 }, 'ERR_RANGE', '[picture] Expected fps to be a number from 0.001 to 10000 but received 0 (part 0 of message 0)'],
    ['two sizes', { frames: [raw(1, 40, 60), raw(2, 60, 40)] }, 'ERR_SHAPE',
      '[picture] Expected all frames of a video to be 60x40, as the first is, but received 40x60 as frame 1. Bring them to one size first, or give them as images. (part 0 of message 0)'],
    ['a frame that is none', { frames: [frames[0], null] }, 'ERR_ARGUMENT', '[image] Expected a path, a data URL, bytes or { data, width, height, channels } but received null (frame 1 of a video) (part 0 of message 0)'],
  ])('%s is refused', async (_, value, code, message) => {
    await expect(video(value)).rejects.toMatchObject({ name: 'LibError', code, message });
  });

  test('a film larger than memory is refused before it is made', async () => {
    const call = processor.prepareVideo({ frames: Array(768).fill(frames[0]) }, { minPixels: 2 ** 30, maxPixels: 2 ** 31 });
    await expect(call.catch((error: Error) => Promise.reject({ ...error, message: error.message.replace(/received [\d.]+ [MG]B/, 'received N') }))).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_OUT_OF_MEMORY', message: '[picture] Expected 2476.31 GB of memory for 768 frames of 40152x26768 but received N. Take fewer frames, or lower minPixels and maxPixels.',
    });
  });

  test('an aborted signal stops it with its reason', async () => {
    const reason = new Error('enough');
    await expect(processor.prepareVideo({ frames }, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  test('a template that knows no videos, and one that puts them elsewhere', async () => {
    const other = (template: string): Processor => makeProcessor(config, images, new Map(companions).set('chat_template.jinja', template));
    const messages: Message[] = [{ role: 'user', content: [{ type: 'image', image: frames[0]! }, { type: 'video', video: { frames } }] }];
    const options = { resizedHeight: 28, resizedWidth: 28 };
    await expect(other('<|image_pad|>').encode(messages, { maxPixels: 784 })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: '[encode] Expected one <|image_pad|> per picture and one <|video_pad|> per video = 1 and 1 in the rendered messages but received 1. '
        + 'The text of a message must not hold that token, and the chat template must place one per image.',
    });
    await expect(other('<|video_pad|><|image_pad|>').encode(messages, { maxPixels: 784 })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: expect.stringContaining('= 1 and 1 in the rendered messages but received 1 and 1 in another order.') as string,
    });
    await expect(processor.encode(messages, options as never)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
  });

  test('a tokenizer whose video token is another is ERR_CHECKPOINT', () => {
    const wrong = { ...config, tokens: { ...config.tokens, video: 299 } };
    expect(() => makeProcessor(wrong, images, companions)).toThrow(expect.objectContaining({
      code: 'ERR_CHECKPOINT', message: '[load] Expected <|video_pad|> to be token 299, as video_token_id in config.json says, but received 304 in the tokenizer files. They belong to different models.',
    }));
  });
});

test('image_url knows its own keys alone', async () => {
  const url = 'data:image/png;base64,AAAA';
  const ask = (image_url: unknown): Promise<unknown> => processor.encode([{ role: 'user', content: [{ type: 'image_url', image_url } as MessagePart] }]);
  await expect(ask({ url, detail: 'low' })).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: "[encode] Expected detail of part 0 of message 0 to be 'auto' but received \"low\". Say how large the picture shall be with minPixels and maxPixels.",
  });
  await expect(ask({ url, deatil: 'auto' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: "[encode] Expected options among url, detail but received 'deatil'; did you mean 'detail'?" });
  await expect(ask({ url, detail: 'auto' })).rejects.toMatchObject({ code: 'ERR_IMAGE' });
});
