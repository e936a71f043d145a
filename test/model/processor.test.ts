import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readCompanions, type CompanionFiles } from '../../lib/model/checkpoint';
import { newConfig } from '../../lib/model/config';
import { decodeImage } from '../../lib/model/image';
import { parseImageSettings } from '../../lib/model/imageSettings';
import type { Message } from '../../lib/model/messages';
import { makeProcessor, type Processor } from '../../lib/model/processor';
import { makeChatTemplate, makeTokenizer, type TemplateMessage } from '../../lib/model/tokenizer';
import { textStream } from '../../lib/decode/text';

const FOLDER = join(__dirname, '../fixtures/tokenizer');
interface Expected {
  texts: { text: string; ids: number[]; decoded: string }[];
  chats: { messages: TemplateMessage[]; addGenerationPrompt: boolean; text: string; ids: number[] }[];
}
const expected = JSON.parse(readFileSync(join(FOLDER, 'expected.json'), 'utf8')) as Expected;
const config = newConfig({
  text: { hidden: 16, layers: 1, heads: 2, kvHeads: 1, intermediate: 16, vocab: 320, mropeSection: [2, 1, 1] },
  vision: { depth: 1, width: 8, heads: 1, mlpWidth: 8 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
});
const images = parseImageSettings({ min_pixels: 784, max_pixels: 31360 }, config.vision);
let companions: CompanionFiles;
let processor: Processor;
beforeAll(async () => {
  companions = await readCompanions(FOLDER);
  processor = makeProcessor(config, images, companions);
});

function without(...names: string[]): CompanionFiles {
  return new Map([...companions].filter(([name]) => !names.includes(name)));
}

const picture = (width: number, height: number): { type: 'image'; image: { data: Uint8Array; width: number; height: number; channels: 3 } } =>
  ({ type: 'image', image: { data: new Uint8Array(3 * width * height).fill(width), width, height, channels: 3 } });

describe('tokenizer', () => {
  test.each(expected.texts.map((entry) => [entry.text, entry] as const))('%j as in Python', (_, { text, ids, decoded }) => {
    const tokenizer = makeTokenizer(companions)!;
    expect(tokenizer.encode(text)).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(decoded);
  });

  test.each(expected.texts.map((entry) => [entry.text, entry] as const))('%j streams to the same text', (_, { ids, decoded }) => {
    const stream = textStream(processor.decode, []);
    const pieces = ids.map((id) => stream.push(id).text);
    for (const piece of pieces) expect(piece).not.toContain('\uFFFD');
    expect(pieces.join('') + stream.flush().text).toBe(decoded);
  });

  test('ids that the tokenizer does not know leave no text', () => {
    expect(processor.decode([71, 315, 72, 300, 4_000_000])).toBe('hi');
    expect(processor.decode([])).toBe('');
  });

  test.each<[string, string, string]>([
    ['tokenizer.json', '{"model":{}}', 'a tokenizer.json that can be read'], ['tokenizer.json', '[]', 'an object in tokenizer.json'],
    ['tokenizer.json', '{', 'JSON in tokenizer.json'], ['tokenizer_config.json', '{"chat_template":"{% if %}"}', 'a chat template in Jinja'],
    ['tokenizer_config.json', '{"chat_template":5}', 'chat_template to be a string'],
  ])('a broken %s is ERR_CHECKPOINT: %s', (name, text, message) => {
    const broken = new Map(companions).set(name, text);
    expect(() => makeProcessor(config, images, broken)).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT', message: expect.stringContaining(message) as string }));
  });
  test('a tokenizer.json that fails only at work is ERR_CHECKPOINT too', async () => {
    const json = JSON.parse(companions.get('tokenizer.json') as string) as object;
    const broken = makeProcessor(config, images, new Map(companions).set('tokenizer.json', JSON.stringify({ ...json, pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 5, invert: false } })));
    await expect(broken.encode([{ role: 'user', content: 'a' }])).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringContaining('a tokenizer.json that encodes text') as string });
  });
  test('ids beyond the embedding table are ERR_CHECKPOINT', async () => {
    const json = JSON.parse(companions.get('tokenizer.json') as string) as { model: { vocab: object } };
    const high = makeProcessor(config, images, new Map(companions).set('tokenizer.json', JSON.stringify({ ...json, model: { ...json.model, vocab: { ...json.model.vocab, h: 320 } } })));
    await expect(high.encode([{ role: 'user', content: 'h' }])).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: '[encode] Expected the ids of tokens in tokenizer.json to be below 320, the rows of the embedding table, but received 320. The files belong to different models.',
    });
  });
  test.each<[unknown, string, string]>([[1.5, 'ERR_RANGE', '1.5'], [-1, 'ERR_RANGE', '-1'], ['5', 'ERR_ARGUMENT', '"5"']])('%j is no id', (id, code, shown) => {
    expect(() => processor.decode([64, id as number])).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[decode] Expected id to be an integer of at least 0 but received ${shown}` }));
  });
  test.each([null, 5])('%j are no ids', (ids) => {
    expect(() => processor.decode(ids as never)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: `[decode] Expected ids to be an array but received ${ids}` }));
  });
});

describe('chat template', () => {
  test.each(expected.chats)('chat %# as in Python', async ({ messages, addGenerationPrompt, text, ids }) => {
    expect(await makeChatTemplate(companions)!(messages, addGenerationPrompt)).toBe(text);
    expect(processor.tokenizer!.encode(text)).toEqual(ids);
  });

  test('the processor\'s own template wins, a list gives its default', async () => {
    const own = new Map(companions).set('chat_template.json', '{"chat_template":"own {{ eos_token }}"}');
    expect(await makeChatTemplate(own)!([], false)).toBe('own <|im_end|>');
    expect(await makeChatTemplate(new Map(own).set('chat_template.jinja', 'file'))!([], false)).toBe('file');
    const config = { chat_template: [{ name: 'tools', template: 'no' }, { name: 'default', template: 'yes' }] };
    expect(await makeChatTemplate(new Map([['tokenizer_config.json', JSON.stringify(config)]]))!([], false)).toBe('yes');
  });

  test('what the template refuses is ERR_ARGUMENT', async () => {
    const strict = new Map([['chat_template.jinja', "{{ raise_exception('roles must alternate') }}"]]);
    await expect(makeChatTemplate(strict)!([], true)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: "[chatTemplate] Expected messages that the checkpoint's chat template accepts but received: roles must alternate" });
  });
});

describe('encode', () => {
  const endless = '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}';
  test('an abort stops the chat template, and the pictures, with its reason', async () => {
    const controller = new AbortController(), reason = new Error('enough');
    const stuck = makeProcessor(config, images, new Map(companions).set('chat_template.jinja', endless));
    setTimeout(() => controller.abort(reason), 100);
    const started = performance.now();
    await expect(stuck.encode([{ role: 'user', content: 'a' }], { signal: controller.signal })).rejects.toBe(reason);
    expect(performance.now() - started).toBeLessThan(4000);
    await expect(processor.encode([{ role: 'user', content: 'a' }], { signal: controller.signal })).rejects.toBe(reason);
    const late = new AbortController();
    const side = 2048, large = { type: 'image' as const, image: { data: new Uint8Array(4 * side * side), width: side, height: side, channels: 4 as const } };
    const messages: Message[] = [{ role: 'user', content: [large, large] }];
    const encoding = processor.encode(messages, { signal: late.signal, maxPixels: 784 });
    setTimeout(() => late.abort(reason), 20);
    await expect(encoding).rejects.toBe(reason);
  });
  test.each<[string, string, string]>([
    ['nothing', '{% for m in [] %}{% endfor %}', 'one that renders none'], ['text without tokens', 'aaa', 'text that has no tokens'],
  ])('a template that renders %s is ERR_CHECKPOINT', async (_, template, shown) => {
    const json = JSON.parse(companions.get('tokenizer.json') as string) as object;
    const files = new Map(companions).set('chat_template.jinja', template).set('tokenizer.json', JSON.stringify({ ...json, normalizer: { type: 'Replace', pattern: { String: 'a' }, content: '' } }));
    await expect(makeProcessor(config, images, files).encode([{ role: 'user', content: 'hi' }])).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: `[chatTemplate] Expected a chat template that renders the messages to some text but received ${shown}. Correct the checkpoint's chat template.`,
    });
  });
  test('a signal of another kind is refused', async () => {
    await expect(processor.encode([{ role: 'user', content: 'a' }], { signal: 3 as never })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[encode] Expected signal to be an AbortSignal but received 3' });
  });

  test('each picture becomes as many tokens as it has merged patches, in order', async () => {
    const messages: Message[] = [{ role: 'user', content: [picture(56, 84), { type: 'text', text: 'and' }, picture(28, 28)] }];
    const { promptIds, pictures, positions, delta } = await processor.encode(messages);
    const text = await makeChatTemplate(companions)!([{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: 'and' }, { type: 'image' }] }], true);
    const plain = processor.tokenizer!.encode(text);
    const want = plain.flatMap((id, at) => Array<number>(id !== 303 ? 1 : plain.indexOf(303) === at ? 6 : 1).fill(id));
    expect([...promptIds]).toEqual(want);
    expect(pictures.map(({ frames, height, width, pixels }) => [frames, height, width, pixels.length])).toEqual([[1, 84, 56, 14112], [1, 28, 28, 2352]]);
    expect(positions.length).toBe(3 * promptIds.length);
    // Six rows of a 3x2 picture advance by 3, the others by 1.
    expect(delta).toBe(-3);
  });

  test('without a generation prompt the text ends with the last message', async () => {
    const { promptIds } = await processor.encode([{ role: 'user', content: 'hi' }], { addGenerationPrompt: false });
    expect([...promptIds.slice(-2)]).toEqual([300, 198]);
  });

  test.each<[string, unknown, string, string]>([
    ['no messages', [], 'ERR_ARGUMENT', '[encode] Expected messages to be a list of at least one message but received Array(0). Give [{ role: \'user\', content: \'text\' }].'],
    ['text', 'hi', 'ERR_ARGUMENT', '[encode] Expected messages to be a list of at least one message but received "hi". Give [{ role: \'user\', content: \'text\' }].'],
    ['null', [null], 'ERR_ARGUMENT', '[encode] Expected message 0 to be an object with role and content but received null. Give { role: \'user\', content: \'text\' }.'],
    ['a role', [{ role: 'users', content: '' }], 'ERR_ARGUMENT', "[encode] Expected role of message 0 to be one of 'system', 'user', 'assistant' but received \"users\"; did you mean 'user'?"],
    ['a key', [{ role: 'user', contents: '' }], 'ERR_ARGUMENT', "[encode] Expected options among role, content, name but received 'contents'; did you mean 'content'?"],
    ['content', [{ role: 'user', content: 5 }], 'ERR_ARGUMENT', '[encode] Expected content of message 0 to be a string or a list of parts but received 5. A part is { type: \'text\', text } or { type: \'image\', image }.'],
    ['a part', [{ role: 'user', content: [{ type: 'audio' }] }], 'ERR_ARGUMENT', "[encode] Expected type of part 0 of message 0 to be one of 'text', 'image', 'image_url', 'video' but received \"audio\""],
    ['no text', [{ role: 'user', content: [{ type: 'text' }] }], 'ERR_ARGUMENT', '[encode] Expected text of part 0 of message 0 to be a string but received undefined'],
    ['a path as URL', [{ role: 'user', content: [{ type: 'image_url', image_url: { url: '/etc/passwd' } }] }], 'ERR_ARGUMENT',
      "[encode] Expected image_url of part 0 of message 0 to be a data URL but received \"/etc/passwd\". Files and bytes go into { type: 'image', image }; nothing is fetched from the network."],
    ['an image token in the text', [{ role: 'user', content: 'a<|image_pad|>b' }], 'ERR_ARGUMENT',
      '[encode] Expected one <|image_pad|> per picture = 0 in the rendered messages but received 1. The text of a message must not hold that token, and the chat template must place one per image.'],
    ['a broken picture', [{ role: 'user', content: [{ type: 'image_url', image_url: 'data:image/png;base64,AAAA' }] }], 'ERR_IMAGE', ''],
  ])('%s is refused', async (_, messages, code, message) => {
    const error: unknown = await processor.encode(messages as Message[]).then(() => undefined, (reason: unknown) => reason);
    expect(error).toMatchObject({ name: 'LibError', code });
    if (message !== '') expect((error as Error).message).toBe(message);
  });

  test.each<[object, string]>([[{ maxPixel: 1 }, 'ERR_ARGUMENT'], [{ maxPixels: 0 }, 'ERR_RANGE'], [{ minPixels: 9, maxPixels: 8 }, 'ERR_RANGE'], [{ signal: 5 }, 'ERR_ARGUMENT']])('options %j are refused', async (options, code) => {
    await expect(processor.encode([{ role: 'user', content: [picture(28, 28)] }], options)).rejects.toMatchObject({ code });
  });

  test('without tokenizer or template messages are ERR_UNSUPPORTED, pictures work', async () => {
    const bare = makeProcessor(config, images, new Map());
    await expect(bare.encode([{ role: 'user', content: 'hi' }])).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED', message: '[encode] Expected a checkpoint with tokenizer.json for messages but received one without. Add the file, or give promptIds.' });
    expect(() => bare.decode([1])).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED' }));
    expect((await bare.preparePicture(picture(28, 56).image)).height).toBe(56);
    const mute = makeProcessor(config, images, without('tokenizer_config.json'));
    await expect(mute.encode([{ role: 'user', content: 'hi' }])).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED', message: expect.stringContaining('chat template') as string });
  });

  test('a tokenizer of another model is ERR_CHECKPOINT', () => {
    const other = { ...config, tokens: { ...config.tokens, image: 299 } };
    expect(() => makeProcessor(other, images, companions)).toThrow(expect.objectContaining({
      code: 'ERR_CHECKPOINT', message: expect.stringContaining('Expected <|image_pad|> to be token 299, as image_token_id in config.json says, but received 303') as string,
    }));
  });
});

test('pictures are brought within the bounds of the checkpoint, or of the call', async () => {
  const { image } = picture(300, 300);
  expect(await processor.preparePicture(image)).toMatchObject({ height: 168, width: 168 });
  expect(await processor.preparePicture(image, { maxPixels: 7000 })).toMatchObject({ height: 56, width: 56 });
  expect(await processor.preparePicture(image, { minPixels: 100_000, maxPixels: 200_000 })).toMatchObject({ height: 336, width: 336 });
});

test('a picture keeps its original, from before it was resized', async () => {
  const { image } = picture(300, 290);
  const decoded = await decodeImage(image);
  const { original, ...small } = await processor.preparePicture(image, { maxPixels: 7000 });
  expect(original).toEqual(decoded);
  expect([original!.height, original!.width, small.height, small.width]).toEqual([290, 300, 56, 84]);
  const [kept] = (await processor.encode([{ role: 'user', content: [{ type: 'image', image }] }])).pictures;
  expect(kept!.original).toEqual(decoded);
  const whole = await processor.preparePicture(picture(28, 56).image);
  expect(whole.original!.pixels).toEqual(whole.pixels);   // its size was right
});
