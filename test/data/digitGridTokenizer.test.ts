import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type * as Jinja from '@huggingface/jinja';
import type * as Tokenizers from '@huggingface/tokenizers';
import {
  DIGIT_GRID_TOKENS, DIGIT_GRID_VOCABULARY, digitGridAnswer, digitGridReply, encodeDigitGrid, recordAt, writeDigitGridTokenizer,
  type DigitGridRecord,
} from '../../lib/data';

// Both packages can be required, but type themselves as ESM only.
const { Template } = require('@huggingface/jinja') as typeof Jinja;
const { Tokenizer } = require('@huggingface/tokenizers') as typeof Tokenizers;

interface TokenizerConfig { chat_template: string }
interface TokenizerFile { added_tokens: { id: number; content: string }[]; model: { vocab: Record<string, number> } }

let dir: string;
let tokenizer: Tokenizers.Tokenizer;
let tokenizerFile: TokenizerFile;
let template: Jinja.Template;

function json<T>(name: string): T {
  return JSON.parse(readFileSync(join(dir, name), 'utf8')) as T;
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'plumbline-tokenizer-'));
  writeDigitGridTokenizer(join(dir, 'made'));
  dir = join(dir, 'made');
  tokenizerFile = json('tokenizer.json');
  const config = json<TokenizerConfig>('tokenizer_config.json');
  tokenizer = new Tokenizer(tokenizerFile, config);
  template = new Template(config.chat_template);
});

afterAll(() => rmSync(join(dir, '..'), { recursive: true }));

function prompt({ question, meta }: DigitGridRecord): string {
  const content = [{ type: 'image' }, { type: 'text', text: question }];
  return template.render({ messages: [{ role: 'user', content }], add_generation_prompt: true })
    .replace('<|image_pad|>', '<|image_pad|>'.repeat(meta.rows * meta.columns));
}

describe('fast encoder', () => {
  test('gives the ids of template and tokenizer on 4,000 samples of all sizes', () => {
    for (let index = 0; index < 4000; index++) {
      const record = recordAt({ rows: [2, 10], columns: [2, 10], readingShare: 0.2, seed: 5 }, index);
      const { promptIds, stepIds, answerIds } = encodeDigitGrid(record);
      const text = `${prompt(record)}${digitGridReply(record)}<|im_end|>`;
      const all = [...promptIds, ...stepIds.flat(), ...answerIds];
      expect(all.join()).toBe(tokenizer.encode(text).ids.join());
      expect(promptIds.join()).toBe(tokenizer.encode(prompt(record)).ids.join());
      expect(stepIds).toHaveLength(record.steps.length);
      expect(all).not.toContain(DIGIT_GRID_TOKENS.unknown);
    }
  });

  test('prompts of a 4x4 grid have 10 to 17 tokens besides the 16 image tokens', () => {
    const lengths = Array.from({ length: 500 }, (_, index) => {
      const { promptIds } = encodeDigitGrid(recordAt({ readingShare: 0.2 }, index));
      expect(promptIds.filter((id) => id === DIGIT_GRID_TOKENS.imagePad)).toHaveLength(16);
      return promptIds.length - 16;
    });
    expect(Math.min(...lengths)).toBe(10);   // digit of grid
    expect(Math.max(...lengths)).toBeLessThanOrEqual(17);
  });

  test('a word of another task is an error', () => {
    const record = { ...recordAt({}, 0), question: 'sum of  row 1' };
    expect(() => encodeDigitGrid(record)).toThrow(expect.objectContaining({
      code: 'ERR_ARGUMENT', message: '[encodeDigitGrid] Expected words of the digit-grid task but received ""',
    }));
    expect(() => encodeDigitGrid({ ...record, question: 'toString' })).toThrow('"toString"');
  });
});

describe('tokenizer files', () => {
  test('ids are those that Python transformers 5.18 gave for the same files', () => {
    const content = [{ type: 'image' }, { type: 'text', text: 'sum of row 2' }];
    const text = template.render({ messages: [{ role: 'user', content }], add_generation_prompt: true });
    expect(text).toBe('<|im_start|>user<|vision_start|><|image_pad|><|vision_end|> sum of row 2<|im_end|><|im_start|>assistant ');
    const ids = [122, 92, 124, 126, 125, 104, 98, 96, 2, 123, 122, 93, 3, 91, 3, 106, 5, 100, 8, 91, 95, 12, 123];
    expect(tokenizer.encode(`${text}3\n3 plus 5 is 8\nanswer 12<|im_end|>`).ids).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(
      '<|im_start|>user<|vision_start|><|image_pad|><|vision_end|>sum of row 2<|im_end|><|im_start|>assistant 3\n3 plus 5 is 8\nanswer 12<|im_end|>');
    expect(tokenizer.encode('Hello, wörld 91 \n\n 9 plusplus  a\tb').ids).toEqual([120, 120, 120, 91, 91, 9, 120, 120, 120]);
  });

  test('replies survive encoding and decoding', () => {
    for (let index = 0; index < 500; index++) {
      const record = recordAt({ rows: [2, 10], columns: [2, 10], readingShare: 0.1 }, index);
      const { stepIds, answerIds } = encodeDigitGrid(record);
      const ids = [...stepIds.flat(), ...answerIds];
      expect(tokenizer.decode(ids, { skip_special_tokens: true })).toBe(digitGridReply(record));
      expect(digitGridAnswer(tokenizer.decode(ids))).toBe(record.answer);
    }
  });

  test('vocabulary: small, dense, and the named tokens are special ones of the files', () => {
    const ids = Object.values(tokenizerFile.model.vocab).sort((a, b) => a - b);
    expect(ids).toEqual(Array.from({ length: DIGIT_GRID_VOCABULARY }, (_, id) => id));
    expect(DIGIT_GRID_VOCABULARY).toBeLessThan(200);
    for (let n = 0; n <= 90; n++) expect(tokenizerFile.model.vocab[`${n}`]).toBe(n);
    const special = new Map(tokenizerFile.added_tokens.map(({ content, id }) => [content, id]));
    const { newline, answer, ...named } = DIGIT_GRID_TOKENS;
    expect([newline, answer]).toEqual([tokenizerFile.model.vocab['\n'], tokenizerFile.model.vocab.answer]);
    expect([...special.values()].sort((a, b) => a - b)).toEqual(Object.values(named).sort((a, b) => a - b));
    expect(special.get('<|im_end|>')).toBe(DIGIT_GRID_TOKENS.imEnd);
    expect(special.get('<|latent|>')).toBe(DIGIT_GRID_TOKENS.latent);
    expect(special.get('<|start-latent|>')).toBe(DIGIT_GRID_TOKENS.startLatent);
  });

  test('the template takes plain strings, several turns, two pictures and videos', () => {
    const messages = [
      { role: 'user', content: 'sum of row 1' },
      { role: 'assistant', content: 'answer 3' },
      { role: 'user', content: [{ type: 'image' }, { type: 'image' }, { type: 'video' }, { type: 'text', text: 'count' }] },
    ];
    expect(template.render({ messages })).toBe('<|im_start|>user sum of row 1<|im_end|><|im_start|>assistant answer 3<|im_end|><|im_start|>user'
      + '<|vision_start|><|image_pad|><|vision_end|>'.repeat(2) + '<|vision_start|><|video_pad|><|vision_end|> count<|im_end|>');
  });

  test('generation stops at the end tokens, and no grid is resized', () => {
    expect(json('generation_config.json')).toEqual({
      do_sample: false, eos_token_id: [DIGIT_GRID_TOKENS.imEnd, DIGIT_GRID_TOKENS.endOfText], pad_token_id: DIGIT_GRID_TOKENS.endOfText,
    });
    expect(json('preprocessor_config.json')).toMatchObject({ min_pixels: 2 * 28 * 2 * 28, max_pixels: 10 * 28 * 10 * 28, patch_size: 14, merge_size: 2 });
  });
});

test.each([
  ['answer 12', '12'],
  ['3\n3 plus 5 is 8\nanswer 8', '8'],
  ['answer 1\nanswer 4 2 <|im_end|>', '4 2'],
  ['3 plus answer 5', null],
  ['answer', null],
  ['', null],
])('digitGridAnswer(%j) is %j', (reply, answer) => {
  expect(digitGridAnswer(reply)).toBe(answer);
});
