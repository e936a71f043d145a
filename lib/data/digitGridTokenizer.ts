import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { array, integer, object, show, string } from '../check';
import { fail } from '../errors';
import type { DigitGridRecord } from './digitGrid';

/** Largest number with a word of its own: the sum of ten nines. */
const LARGEST_NUMBER = 90;
const UNKNOWN = '<|unknown|>';

/** Every word of the task; a word is one token, whatever its length. */
const WORDS = [
  'user', 'assistant', 'system', 'answer', 'row', 'column', 'of', 'in', 'is', 'at', 'from', 'grid', 'sum', 'alternating', 'plus', 'minus',
  'largest', 'max', 'count', 'difference', 'follow', 'rows', 'digit', 'digits', 'right', 'down', 'left', 'up',
];

const SPECIAL = [
  '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>', '<|image_pad|>', '<|video_pad|>',
  '<|start-latent|>', '<|end-latent|>', '<|latent|>',
] as const;

const NUMBERS = Array.from({ length: LARGEST_NUMBER + 1 }, (_, n) => `${n}`);
const ENTRIES = [...NUMBERS, '\n', ...WORDS, UNKNOWN, ...SPECIAL];
const IDS: ReadonlyMap<string, number> = new Map(ENTRIES.map((entry, id) => [entry, id]));

function id(entry: string): number {
  return IDS.get(entry)!;
}

/** Ids of the tokens that programs need by name. Numbers 0..90 are their own ids. */
export const DIGIT_GRID_TOKENS = Object.freeze({
  newline: id('\n'), answer: id('answer'), unknown: id(UNKNOWN), endOfText: id('<|endoftext|>'), imStart: id('<|im_start|>'), imEnd: id('<|im_end|>'),
  visionStart: id('<|vision_start|>'), visionEnd: id('<|vision_end|>'), imagePad: id('<|image_pad|>'), videoPad: id('<|video_pad|>'),
  startLatent: id('<|start-latent|>'), endLatent: id('<|end-latent|>'), latent: id('<|latent|>'),
});

/** Number of tokens, special ones included: the model's vocabulary. */
export const DIGIT_GRID_VOCABULARY = ENTRIES.length;

/**
 * Qwen2-VL's chat format without its default system message and without the newlines between the parts: in this tokenizer a newline is a
 * token, and three of them in a prompt of thirteen words would be paid in every step of the training.
 */
const CHAT_TEMPLATE = [
  '{%- for message in messages -%}',
  '{{- "<|im_start|>" + message.role -}}',
  '{%- if message.content is string -%}{{- " " + message.content -}}',
  '{%- else -%}{%- for part in message.content -%}',
  '{%- if part.type == "image" -%}{{- "<|vision_start|><|image_pad|><|vision_end|>" -}}',
  '{%- elif part.type == "video" -%}{{- "<|vision_start|><|video_pad|><|vision_end|>" -}}',
  '{%- elif part.type == "text" -%}{{- " " + part.text -}}{%- endif -%}',
  '{%- endfor -%}{%- endif -%}',
  '{{- "<|im_end|>" -}}',
  '{%- endfor -%}',
  '{%- if add_generation_prompt -%}{{- "<|im_start|>assistant " -}}{%- endif -%}',
].join('');

const BEFORE_IMAGE = [id('<|im_start|>'), id('user'), id('<|vision_start|>')];
const BEFORE_REPLY = [id('<|im_end|>'), id('<|im_start|>'), id('assistant')];

function wordIds(text: string): number[] {
  return string('encodeDigitGrid', 'a text', text).split(' ').map((word) => IDS.get(word)
    ?? fail('ERR_ARGUMENT', 'encodeDigitGrid', `Expected words of the digit-grid task but received ${show(word)}`));
}

export interface EncodedDigitGrid {
  /** The whole prompt, with one image token per cell, up to and including the word `assistant`. */
  promptIds: number[];
  /** Per reasoning step its words and a newline. */
  stepIds: number[][];
  /** `answer`, the answer's words, and `<|im_end|>`. */
  answerIds: number[];
}

/**
 * Token ids of a record, equal to those of the chat template and the tokenizer files (tested), in a few microseconds.
 *
 * @throws ERR_ARGUMENT for a record that is not of the digit-grid task.
 */
export function encodeDigitGrid(record: Pick<DigitGridRecord, 'question' | 'steps' | 'answer' | 'meta'>): EncodedDigitGrid {
  object('encodeDigitGrid', 'record', record);
  object('encodeDigitGrid', 'meta', record.meta);
  for (const side of ['rows', 'columns'] as const) integer('encodeDigitGrid', side, record.meta[side], 1, 100);
  array('encodeDigitGrid', 'steps', record.steps);
  const cells = new Array<number>(record.meta.rows * record.meta.columns).fill(DIGIT_GRID_TOKENS.imagePad);
  return {
    promptIds: [...BEFORE_IMAGE, ...cells, DIGIT_GRID_TOKENS.visionEnd, ...wordIds(record.question), ...BEFORE_REPLY],
    stepIds: record.steps.map((step) => [...wordIds(step), DIGIT_GRID_TOKENS.newline]),
    answerIds: [DIGIT_GRID_TOKENS.answer, ...wordIds(record.answer), DIGIT_GRID_TOKENS.imEnd],
  };
}

/** The reply of a record in words, as the model should give it: each step and a newline, then `answer X`. */
export function digitGridReply(record: Pick<DigitGridRecord, 'steps' | 'answer'>): string {
  return [...record.steps, `answer ${record.answer}`].join('\n');
}

/** The answer in a generated reply: what stands after the last `answer ` to the end of its line; null where there is none. */
export function digitGridAnswer(reply: string): string | null {
  string('digitGridAnswer', 'reply', reply);
  const found = /^(?:[^]*\n)?answer ([^\n]*)/.exec(reply);
  return found ? found[1]!.replace(/<\|.*$/, '').trim() : null;
}

/**
 * Writes the Hugging Face files that go with a digit-grid model: tokenizer.json, tokenizer_config.json (with the chat template),
 * preprocessor_config.json and generation_config.json. Existing files of these names are replaced; `dir` is made if missing.
 */
export function writeDigitGridTokenizer(dir: string): void {
  mkdirSync(dir, { recursive: true });
  const files = {
    'tokenizer.json': tokenizerFile(),
    'tokenizer_config.json': tokenizerConfig(),
    'preprocessor_config.json': PREPROCESSOR_CONFIG,
    'generation_config.json': GENERATION_CONFIG,
  };
  for (const [name, content] of Object.entries(files)) writeFileSync(join(dir, name), `${JSON.stringify(content, null, 2)}\n`);
}

function addedTokens(): { id: number; content: string; single_word: boolean; lstrip: boolean; rstrip: boolean; normalized: boolean; special: boolean }[] {
  return [UNKNOWN, ...SPECIAL].map((content) =>
    ({ id: id(content), content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }));
}

/** Word-level: the WordPiece model without continuation pieces, because every reader of the format knows WordPiece. */
function tokenizerFile(): object {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: '[ \\t\\r]+' }, behavior: 'Removed', invert: false },
        { type: 'Split', pattern: { String: '\n' }, behavior: 'Isolated', invert: false },
      ],
    },
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'WordPiece', prefix: '##', cleanup: false },
        { type: 'Fuse' },
        ...[[' \n', '\n'], ['\n ', '\n'], [' <|', '<|'], ['|> ', '|>']].map(([from, to]) => ({ type: 'Replace', pattern: { String: from }, content: to })),
      ],
    },
    model: {
      type: 'WordPiece', unk_token: UNKNOWN, continuing_subword_prefix: '##', max_input_chars_per_word: 100,
      vocab: Object.fromEntries(ENTRIES.map((entry, index) => [entry, index])),
    },
  };
}

function tokenizerConfig(): object {
  return {
    tokenizer_class: 'PreTrainedTokenizerFast',
    model_max_length: 32768,
    clean_up_tokenization_spaces: false,
    bos_token: null,
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    unk_token: UNKNOWN,
    additional_special_tokens: SPECIAL.slice(1),
    added_tokens_decoder: Object.fromEntries(addedTokens().map(({ id: key, ...token }) => [key, token])),
    chat_template: CHAT_TEMPLATE,
  };
}

/** Grids of 2×2 to 10×10 cells lie within the limits on pixels, so that no picture is resized. */
const PREPROCESSOR_CONFIG = {
  image_processor_type: 'Qwen2VLImageProcessor',
  processor_class: 'Qwen2VLProcessor',
  do_convert_rgb: true,
  do_normalize: true,
  do_rescale: true,
  do_resize: true,
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
  rescale_factor: 1 / 255,
  resample: 3,
  min_pixels: 56 * 56,
  max_pixels: 280 * 280,
  patch_size: 14,
  temporal_patch_size: 2,
  merge_size: 2,
};

const GENERATION_CONFIG = {
  do_sample: false,
  eos_token_id: [DIGIT_GRID_TOKENS.imEnd, DIGIT_GRID_TOKENS.endOfText],
  pad_token_id: DIGIT_GRID_TOKENS.endOfText,
};
