/** Chat templates and tokenizer files of strangers: a typed error in bounded time and memory, and a process that lives on. */
import fc from 'fast-check';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { renderTemplate } from '../../lib/model/templateProcess';
import { makeChatTemplate, makeTokenizer } from '../../lib/model/tokenizer';

const FIXTURE = join(__dirname, '../fixtures/tokenizer');
const good = JSON.parse(readFileSync(join(FIXTURE, 'tokenizer.json'), 'utf8')) as Record<string, unknown>;
const LIMIT_MS = 1500;

/** Longest time that the event loop stood still while `work` ran. */
async function longestPause(work: () => Promise<unknown>): Promise<number> {
  let last = performance.now(), longest = 0;
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 10);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  return longest;
}

describe('chat templates', () => {
  const doubled = (times: number, start: string, after: string): string =>
    `{% set ns = namespace(x=${start}) %}{% for i in range(${times}) %}{% set ns.x = ns.x + ns.x %}{% endfor %}${after}`;
  const slow = /^\[chatTemplate\] Expected a chat template that renders messages in bounded time and memory but received one that (took longer than 1500 ms|failed with: (Invalid string length|Invalid array length|Maximum call stack size exceeded)|ended the process that renders it, which has 128 MB of memory|produced \d+ characters, of at most 16777216)\. Take the chat template of the model's own repository\.$/;

  test.each<[string, string]>([
    ['an endless loop', '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}'],
    ['a range of all memory', '{{ range(1000000000) }}'],
    ['a list that doubles', doubled(60, '[1]', '{{ ns.x }}')],
    ['a string that doubles', doubled(24, "'aaaaaaaaaaaaaaaa'", '{{ ns.x|upper }}')],
    ['a string that is replaced by longer ones', doubled(20, "'aaaaaaaaaaaaaaaa'", "{{ ns.x|replace('a', 'bbbbbbbbbbbbbbbbbbbbbbb')|length }}")],
    ['more text than a prompt', doubled(20, "'aaaaaaaaaaaaaaaa'", '{% for i in range(40) %}{{ ns.x }}{% endfor %}')],
    ['a string beyond all limits', doubled(60, "'aaaaaaaaaaaaaaaa'", '{{ ns.x }}')],
    ['recursion without end', '{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}'],
  ])('%s', async (_, template) => {
    const rendered = renderTemplate(template, { messages: [] }, LIMIT_MS).then(() => 'rendered', (error: { code?: string; message: string }) => error);
    const pause = await longestPause(() => rendered);
    const error = await rendered as { code: string; message: string };
    expect(error).toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringMatching(slow) as string });
    expect(pause).toBeLessThan(1000);
    expect(await renderTemplate('{{ 1 + 1 }}', {})).toBe('2');   // a new process, when the last one ended
  }, 30_000);

  test.each<[string, string, string]>([
    ['a string', doubled(60, "'aaaaaaaaaaaaaaaa'", '{{ ns.x }}'), 'Invalid string length'],
    ['a stack', '{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}', 'Maximum call stack size exceeded'],
  ])('%s beyond all limits is the fault of the template', async (_, template, said) => {
    await expect(renderTemplate(template, { messages: [] }, 20_000)).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: `[chatTemplate] Expected a chat template that renders messages in bounded time and memory but received one that failed with: ${said}. Take the chat template of the model's own repository.`,
    });
  });

  test('renderings that wait for a slow one do not lose their time', async () => {
    const stuck = renderTemplate('{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}', {}, LIMIT_MS).catch((error: { code: string }) => error.code);
    const behind = Array.from({ length: 5 }, (_, i) => renderTemplate('{{ n }}', { n: i }, LIMIT_MS));
    expect(await Promise.all([stuck, ...behind])).toEqual(['ERR_CHECKPOINT', '0', '1', '2', '3', '4']);
  });

  test.each<[string, string, string]>([
    ['too long', 'x'.repeat((1 << 18) + 1), 'Expected a chat template of at most 262144 characters but received 262145. Correct the checkpoint\'s chat template.'],
    ['a tag of empty lines', `{% ${'\n'.repeat(250_000)}`, 'Expected a chat template that can be parsed in bounded time but received one that took longer than 1000 ms. Correct the checkpoint\'s chat template.'],
    ['brackets without end', `{{ ${'('.repeat(50_000)}1${')'.repeat(50_000)} }}`, 'Expected a chat template in Jinja but received: Maximum call stack size exceeded. Correct the checkpoint\'s chat template.'],
  ])('%s is refused when the checkpoint is opened', (_, template, message) => {
    expect(() => makeChatTemplate(new Map([['chat_template.jinja', template]]))).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[chatTemplate] ${message}` }));
  });

  test('templates of any characters are parsed or refused', () => {
    const piece = fc.constantFrom('{{', '}}', '{%', '%}', '{#', 'for', 'in', 'if', 'endfor', 'endif', 'set', 'x', '(', ')', '[', '"', "'", '|', '.', ' ', '1', '=', '-', '\n', '\u0000');
    fc.assert(fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
      try {
        makeChatTemplate(new Map([['chat_template.jinja', pieces.join('')]]));
      } catch (error) {
        expect(error).toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT' });
      }
    }), { numRuns: 300, seed: 1 });
  });
});

describe('tokenizer files', () => {
  const open = (json: unknown, config: object = {}) => makeTokenizer(new Map([['tokenizer.json', typeof json === 'string' ? json : JSON.stringify(json)], ['tokenizer_config.json', JSON.stringify(config)]]));
  const evil = { Regex: '(\\w+\\w+)+!' };
  const text = `${'a'.repeat(60)} ?`;

  test.each<[string, object]>([
    ['pre_tokenizer', { pre_tokenizer: { type: 'Split', pattern: evil, behavior: 'Isolated', invert: false } }],
    ['pre_tokenizer, in a sequence', { pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Split', pattern: evil, behavior: 'Isolated', invert: false }] } }],
    ['normalizer', { normalizer: { type: 'Replace', pattern: evil, content: '' } }],
  ])('a pattern that never ends in the %s', (_, part) => {
    const tokenizer = open({ ...good, ...part })!;
    const start = performance.now();
    expect(() => tokenizer.encode(text)).toThrow(expect.objectContaining({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: "[tokenizer] Expected a tokenizer.json that encodes text in bounded time but received one that took longer than 1002 ms. Take tokenizer.json of the model's own repository.",
    }));
    expect(performance.now() - start).toBeLessThan(5000);
  });

  test('a pattern that never ends in the decoder', () => {
    const tokenizer = open({ ...good, decoder: { type: 'Sequence', decoders: [{ type: 'Fuse' }, { type: 'Replace', pattern: evil, content: '' }] } })!;
    const ids = tokenizer.encode('a'.repeat(60));
    expect(() => tokenizer.decode(ids)).toThrow(expect.objectContaining({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[tokenizer\] Expected a tokenizer\.json that decodes ids in bounded time but received one that took longer than 10\d\d ms\. /) as string,
    }));
  });

  const LONGER = 'Expected steps of normalizer and pre_tokenizer that make a text at most 128 times longer in tokenizer.json but received others.';
  const times = (count: number, step: object): object[] => Array.from({ length: count }, () => step);
  const many = Array.from({ length: 40 }, () => ({ type: 'Replace', pattern: { String: 'a' }, content: 'aa' }));
  test.each<[string, unknown, string]>([
    ['text that doubles forty times', { ...good, normalizer: { type: 'Sequence', normalizers: many } }, LONGER],
    ['a long text for every letter', { ...good, normalizer: { type: 'Replace', pattern: { Regex: '' }, content: 'x'.repeat(1000) } }, LONGER],
    ['a long space', { ...good, pre_tokenizer: { type: 'Metaspace', replacement: '_'.repeat(1000) } }, LONGER],
    ['a start without end', { ...good, normalizer: { type: 'Prepend', prepend: 'x'.repeat(5000) } }, 'Expected prepend of at most 4096 letters in tokenizer.json but received 5000.'],
    ['a long unknown token', { ...good, model: { ...good['model'] as object, unk_token: 'x'.repeat(5000) } }, 'Expected unk_token of at most 4096 letters in tokenizer.json but received 5000.'],
    ['bytes of bytes', { ...good, pre_tokenizer: { type: 'Sequence', pretokenizers: times(40, { type: 'ByteLevel', add_prefix_space: false, use_regex: false }) } }, 'Expected at most one step ByteLevel of normalizer and pre_tokenizer in tokenizer.json but received more.'],
    ['two spaces for one, often', { ...good, pre_tokenizer: { type: 'Sequence', pretokenizers: times(8, { type: 'Metaspace', replacement: '_', str_rep: '__' }) } }, LONGER],
    ['compatibility forms in turn', { ...good, normalizer: { type: 'Sequence', normalizers: [{ type: 'NFKC' }, { type: 'Replace', pattern: { String: 'a' }, content: '\ufdfa' }, { type: 'NFKC' }] } }, LONGER],
    ['spaces between words, often', { ...good, normalizer: { type: 'Sequence', normalizers: times(2, { type: 'BertNormalizer', handle_chinese_chars: true }) } }, LONGER],
    ['spaces between letters, often', { ...good, decoder: { type: 'Sequence', decoders: times(40, { type: 'BPEDecoder', suffix: '' }) } }, 'Expected steps of decoder that make a text at most 128 times longer in tokenizer.json but received others.'],
    ['delimiters between letters, often', { ...good, decoder: { type: 'Sequence', decoders: times(40, { type: 'CTC', word_delimiter_token: '', cleanup: true }) } }, 'Expected steps of decoder that make a text at most 128 times longer in tokenizer.json but received others.'],
    ['pieces of no length', { ...good, pre_tokenizer: { type: 'FixedLength', length: 0 } }, 'Expected length of FixedLength to be at least 1 in tokenizer.json but received 0.'],
    ['a giant token', { ...good, added_tokens: [{ id: 1, content: 'x'.repeat(5000), special: false }] }, 'Expected tokens of at most 4096 letters in tokenizer.json but received one of 5000.'],
    ['a hundred steps', { ...good, normalizer: { type: 'Sequence', normalizers: Array.from({ length: 100 }, () => ({ type: 'NFC' })) } }, 'Expected normalizer of at most 64 steps, 16 deep in tokenizer.json but received more.'],
    ['steps in steps', { ...good, normalizer: Array.from({ length: 50 }).reduce<unknown>((inner) => ({ type: 'Sequence', normalizers: [inner] }), { type: 'NFC' }) }, 'Expected normalizer of at most 64 steps, 16 deep in tokenizer.json but received more.'],
  ])('%s', (_, json, message) => {
    expect(() => open(json)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[tokenizer] ${message} Take tokenizer.json of the model's own repository.` }));
  });

  test('a post_processor that would multiply the words is left out', () => {
    const step = { type: 'TemplateProcessing', single: times(4, { Sequence: { id: 'A', type_id: 0 } }), pair: [], special_tokens: {} };
    const tokenizer = open({ ...good, post_processor: { type: 'Sequence', processors: times(30, step) } })!;
    expect(tokenizer.encode('hello')).toEqual(open(good)!.encode('hello'));
  });

  test.each<[string, object, number]>([
    ['of a known shape', good, 1 << 20],
    ['that may make it longer', { ...good, normalizer: { type: 'Replace', pattern: { String: 'a' }, content: 'bbbbbbbbbb' } }, Math.floor(2 ** 24 / 40)],
  ])('a text that is too long for a file %s', (_, json, longest) => {
    expect(() => open(json)!.encode('a'.repeat(longest + 1))).toThrow(expect.objectContaining({ code: 'ERR_RANGE', message: `[tokenizer] Expected a text of at most ${longest} characters but received ${longest + 1}; encode it in parts` }));
  });

  test('a file that takes for ever to be read', () => {
    const names = Array.from({ length: 60_000 }, (_, i) => `t${i}`);
    const start = performance.now();
    expect(() => open({ ...good, added_tokens: names.map((content, i) => ({ id: 1000 + i, content, special: true })) }, { additional_special_tokens: names.map((name) => `${name}x`) })).toThrow(expect.objectContaining({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[tokenizer\] Expected a tokenizer\.json that can be read in bounded time but received one that took longer than \d{4} ms\. Take tokenizer\.json of the model's own repository\.$/) as string,
    }));
    expect(performance.now() - start).toBeLessThan(15_000);
  });

  test('known steps with a hundred thousand added tokens are guarded', () => {
    const added = Array.from({ length: 100_000 }, (_, i) => ({ id: 1000 + i, content: `t${i}`, special: false }));
    const tokenizer = open({ ...good, added_tokens: added })!;
    expect(() => tokenizer.decode(Array.from({ length: 16_000 }, () => 1))).toThrow(expect.objectContaining({
      code: 'ERR_CHECKPOINT', message: "[tokenizer] Expected a tokenizer.json that decodes ids in bounded time but received one that took longer than 1320 ms. Take tokenizer.json of the model's own repository.",
    }));
  });

  test.each<[string, unknown, string]>([
    ['a string', 'x', '"x"'], ['negative', -5, '-5'], ['a fraction', 1.5, '1.5'], ['an object', { a: 1 }, 'an object'], ['too large', 1e300, '1e+300'],
  ])('an id of a token that is %s', (_, id, shown) => {
    const model = good['model'] as { vocab: object };
    const tokenizer = open({ ...good, model: { ...model, vocab: Object.fromEntries(Object.keys(model.vocab).map((key) => [key, id])) } })!;
    expect(() => tokenizer.encode('hello')).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT', message: `[tokenizer] Expected the ids of tokens in tokenizer.json to be whole numbers from 0 but received ${shown}. Take tokenizer.json of the model's own repository.` }));
  });

  test('wrong types everywhere, and merges that go in circles, are read or refused, in bounded time', () => {
    const model = good['model'] as Record<string, unknown>;
    const keys = [...Object.keys(good).map((key) => [key]), ...Object.keys(model).map((key) => ['model', key]), ['model', 'type', 'WordPiece'], ['model', 'type', 'Unigram']];
    const merges = fc.array(fc.tuple(fc.constantFrom('a', 'b', 'aa', 'ab', 'c', ''), fc.constantFrom('a', 'b', 'aa', 'ab', 'c', '')), { maxLength: 30 });
    const value = fc.oneof(fc.jsonValue({ maxDepth: 3 }), merges, merges.map((list) => list.map((pair) => pair.join(' '))), fc.constantFrom(1e308, -1, 'WordPiece', 'Unigram', 'BPE'));
    fc.assert(fc.property(fc.constantFrom(...keys), value, fc.string({ maxLength: 20 }), ([first, second], wrong, words) => {
      const json = second === undefined ? { ...good, [first!]: wrong } : { ...good, model: { ...model, [second]: wrong } };
      try {
        const tokenizer = open(json)!;
        tokenizer.decode(tokenizer.encode(`ab cab ${words}`).filter((id) => Number.isSafeInteger(id)));
      } catch (error) {
        expect(error).toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT' });
      }
    }), { numRuns: 250, seed: 1, interruptAfterTimeLimit: 20_000 });
  }, 60_000);
});
