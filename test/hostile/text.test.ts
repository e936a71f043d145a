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
  const slow = /^\[chatTemplate\] Expected a chat template that renders messages in bounded time and memory but received one that (took longer than 1500 ms|ended the process that renders it, which has 128 MB of memory|produced \d+ characters, of at most 16777216)\. Take the chat template of the model's own repository\.$/;
  const refused = /^\[chatTemplate\] Expected messages that the checkpoint's chat template accepts but received: /;

  test.each<[string, string]>([
    ['an endless loop', '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}'],
    ['a range of all memory', '{{ range(1000000000) }}'],
    ['a list that doubles', doubled(60, '[1]', '{{ ns.x }}')],
    ['a string that doubles', doubled(24, "'aaaaaaaaaaaaaaaa'", '{{ ns.x|upper }}')],
    ['a string that is replaced by longer ones', doubled(20, "'aaaaaaaaaaaaaaaa'", "{{ ns.x|replace('a', 'bbbbbbbbbbbbbbbbbbbbbbb')|length }}")],
    ['more text than a prompt', doubled(20, "'aaaaaaaaaaaaaaaa'", '{% for i in range(40) %}{{ ns.x }}{% endfor %}')],
    ['a string beyond all limits', doubled(60, "'aaaaaaaaaaaaaaaa'", '{{ ns.x }}')],
    ['recursion without end', '{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}'],
  ])('%s', async (_, template) => {
    const rendered = renderTemplate(template, { messages: [] }, LIMIT_MS).then(() => 'rendered', (error: { code?: string; message: string }) => error);
    const pause = await longestPause(() => rendered);
    const error = await rendered as { code: string; message: string };
    expect(error).toMatchObject({ name: 'LibError' });
    expect(error.message).toMatch(error.code === 'ERR_CHECKPOINT' ? slow : refused);
    expect(pause).toBeLessThan(1000);
    expect(await renderTemplate('{{ 1 + 1 }}', {})).toBe('2');   // a new process, when the last one ended
  }, 30_000);

  test('renderings that wait for a slow one do not lose their time', async () => {
    const stuck = renderTemplate('{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}', {}, LIMIT_MS).catch((error: { code: string }) => error.code);
    const behind = Array.from({ length: 5 }, (_, i) => renderTemplate('{{ n }}', { n: i }, LIMIT_MS));
    expect(await Promise.all([stuck, ...behind])).toEqual(['ERR_CHECKPOINT', '0', '1', '2', '3', '4']);
  });

  test.each<[string, string, string]>([
    ['too long', 'x'.repeat((1 << 18) + 1), 'Expected a chat template of at most 262144 characters but received 262145. Correct the checkpoint\'s chat template.'],
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
      name: 'LibError', code: 'ERR_CHECKPOINT', message: "[tokenizer] Expected a tokenizer.json that encodes text in bounded time but received one that took longer than 1001 ms. Take tokenizer.json of the model's own repository.",
    }));
    expect(performance.now() - start).toBeLessThan(5000);
  });

  test('a pattern that never ends in the decoder', () => {
    const tokenizer = open({ ...good, decoder: { type: 'Sequence', decoders: [{ type: 'Fuse' }, { type: 'Replace', pattern: evil, content: '' }] } })!;
    const ids = tokenizer.encode('a'.repeat(60));
    expect(() => tokenizer.decode(ids)).toThrow(expect.objectContaining({
      name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[tokenizer\] Expected a tokenizer\.json that decodes ids in bounded time but received one that took longer than 100\d ms\. /) as string,
    }));
  });

  const many = Array.from({ length: 40 }, () => ({ type: 'Replace', pattern: { String: 'a' }, content: 'aa' }));
  test.each<[string, unknown, string]>([
    ['text that doubles forty times', { ...good, normalizer: { type: 'Sequence', normalizers: many } }, 'Expected replacements of normalizer that make a text at most 4 times longer in tokenizer.json but received more.'],
    ['a long text for every letter', { ...good, normalizer: { type: 'Replace', pattern: { Regex: '' }, content: 'x'.repeat(1000) } }, 'Expected replacements of normalizer that make a text at most 4 times longer in tokenizer.json but received more.'],
    ['a long space', { ...good, pre_tokenizer: { type: 'Metaspace', replacement: '_'.repeat(1000) } }, 'Expected replacements of pre_tokenizer that make a text at most 4 times longer in tokenizer.json but received more.'],
    ['a start without end', { ...good, normalizer: { type: 'Prepend', prepend: 'x'.repeat(5000) } }, 'Expected prepend of at most 4096 letters in tokenizer.json but received 5000.'],
    ['a giant token', { ...good, added_tokens: [{ id: 1, content: 'x'.repeat(5000), special: false }] }, 'Expected tokens of at most 4096 letters in tokenizer.json but received one of 5000.'],
    ['a hundred steps', { ...good, normalizer: { type: 'Sequence', normalizers: Array.from({ length: 100 }, () => ({ type: 'NFC' })) } }, 'Expected normalizer of at most 64 steps, 16 deep in tokenizer.json but received more.'],
    ['steps in steps', { ...good, normalizer: Array.from({ length: 50 }).reduce<unknown>((inner) => ({ type: 'Sequence', normalizers: [inner] }), { type: 'NFC' }) }, 'Expected normalizer of at most 64 steps, 16 deep in tokenizer.json but received more.'],
  ])('%s', (_, json, message) => {
    expect(() => open(json)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[tokenizer] ${message} Take tokenizer.json of the model's own repository.` }));
  });

  test('a text that is too long', () => {
    expect(() => open(good)!.encode('a'.repeat((1 << 22) + 1))).toThrow(expect.objectContaining({ code: 'ERR_RANGE', message: '[tokenizer] Expected a text of at most 4194304 characters but received 4194305; encode it in parts' }));
  });

  test('a file that is too long', () => {
    expect(() => open(`{"a":"${'x'.repeat(2 ** 26)}"}`)).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT', message: `[tokenizer] Expected tokenizer.json to have at most 67108864 characters but received ${2 ** 26 + 8}. Is it the right file?` }));
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
