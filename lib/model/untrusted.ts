/** Limits on what a tokenizer file of a stranger can do: time by interrupting it, memory by refusing files that multiply text. */
import { createContext, Script } from 'node:vm';
import { show } from '../check';
import { codeOf, fail } from '../errors';
import { isObject, own, type JsonObject } from './jsonReader';

/** Splitting patterns of the families in use: none takes more than linear time. */
const KNOWN_PATTERNS: ReadonlySet<unknown> = new Set([
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
]);
/** Every word decoded is looked for among the added tokens; the families in use have some twenty. */
const KNOWN_ADDED = 1024;
/** Letters of a token: the longest real ones are runs of spaces. */
const MAX_TOKEN = 4096;
const MAX_TOKENS = 1 << 21;
/** Steps of a pipeline, and how deep they may lie in each other. */
const MAX_STEPS = 64;
const MAX_DEPTH = 16;
/** How many times longer all steps together may make a text: Unicode's compatibility forms (18), bytes (4). */
const MAX_GROWTH = 128;
const MAX_TEXT = 1 << 20;
/** Characters of a text after all its steps, whatever they are. */
const MAX_GROWN = 1 << 24;
/** A text that a tokenizer of a known shape takes under 0.1 s for; the guard costs 0.2 ms a call. */
const QUICK_TEXT = 1 << 14;
/** Steps on the way in, and on the way out. `post_processor` is not used: it adds special tokens, and the chat template has them. */
const PIPELINES = [['normalizer', 'pre_tokenizer'], ['decoder']] as const;
const NESTED = ['normalizers', 'pretokenizers', 'decoders'] as const;
const REMEDY = "Take tokenizer.json of the model's own repository.";

/** What the steps of a file can do. */
export interface TokenizerCost {
  /** How many times longer they make a text at most. */
  growth: number;
  /** Only steps that are known to take linear time. */
  isKnown: boolean;
}

function refuse(expected: string, received: string): never {
  return fail('ERR_CHECKPOINT', 'tokenizer', `Expected ${expected} in tokenizer.json but received ${received}. ${REMEDY}`);
}

/** @throws {LibError} `ERR_CHECKPOINT`. */
export function checkTokenizerFile(json: JsonObject): TokenizerCost {
  checkTokens(json);
  checkTexts(own0(json, 'model'), ['unk_token', 'continuing_subword_prefix', 'continuing_subword_suffix', 'end_of_word_suffix']);
  let most = 1;
  for (const names of PIPELINES) {
    const steps: JsonObject[] = [];
    for (const name of names) collect(name, own(json, name), 0, steps);
    if (steps.filter((step) => own(step, 'type') === 'ByteLevel').length > 1) refuse(`at most one step ByteLevel of ${names.join(' and ')}`, 'more');
    const growth = steps.reduce((product, step) => product * growthOf(step), 1);
    if (growth > MAX_GROWTH) refuse(`steps of ${names.join(' and ')} that make a text at most ${MAX_GROWTH} times longer`, 'others');
    most = Math.max(most, growth);
  }
  return { growth: most, isKnown: isKnown(json) };
}

/** The shape of Qwen's files, exactly. */
function isKnown(json: JsonObject): boolean {
  const normalizer = own(json, 'normalizer'), words = own0(json, 'pre_tokenizer'), added = own(json, 'added_tokens');
  const list = own(words, 'pretokenizers');
  const [split, bytes, ...more] = (Array.isArray(list) ? list : []) as unknown[];
  return own(own0(json, 'model'), 'type') === 'BPE' && (normalizer === undefined || is(normalizer, { type: 'NFC' }))
    && is(words, { type: 'Sequence' }) && more.length === 0 && is(bytes, { type: 'ByteLevel', add_prefix_space: false, use_regex: false })
    && is(split, { type: 'Split', behavior: 'Isolated', invert: false }) && KNOWN_PATTERNS.has(own(own0(split as JsonObject, 'pattern'), 'Regex'))
    && is(own(json, 'decoder'), { type: 'ByteLevel' }) && Array.isArray(added) && added.length <= KNOWN_ADDED;
}

function is(step: unknown, fields: JsonObject): boolean {
  return isObject(step) && Object.entries(fields).every(([key, value]) => own(step, key) === value);
}

/** An object below, or an empty one. */
function own0(object: JsonObject, key: string): JsonObject {
  const value = own(object, key);
  return isObject(value) ? value : {};
}

function checkTokens(json: JsonObject): void {
  const vocab = own(own0(json, 'model'), 'vocab'), added = own(json, 'added_tokens');
  const texts = [...(isObject(vocab) ? Object.keys(vocab) : Array.isArray(vocab) ? vocab.map((entry: unknown) => (Array.isArray(entry) ? entry[0] as unknown : entry)) : []),
    ...(Array.isArray(added) ? added.map((token: unknown) => (isObject(token) ? own(token, 'content') : token)) : [])];
  if (texts.length > MAX_TOKENS) refuse(`at most ${MAX_TOKENS} tokens`, String(texts.length));
  const long = texts.find((text) => typeof text === 'string' && text.length > MAX_TOKEN);
  if (long !== undefined) refuse(`tokens of at most ${MAX_TOKEN} letters`, `one of ${(long as string).length}`);
}

/** All steps of a pipeline, those of sequences too. */
function collect(name: string, value: unknown, depth: number, steps: JsonObject[]): void {
  if (depth > MAX_DEPTH || steps.length > MAX_STEPS) refuse(`${name} of at most ${MAX_STEPS} steps, ${MAX_DEPTH} deep`, 'more');
  if (Array.isArray(value)) for (const step of value) collect(name, step, depth + 1, steps);
  else if (isObject(value)) {
    steps.push(value);
    for (const key of NESTED) if (own(value, key) !== undefined) collect(name, own(value, key), depth + 1, steps);
  }
}

function checkTexts(object: JsonObject, keys: readonly string[]): void {
  for (const key of keys) {
    const text = own(object, key);
    if (typeof text === 'string' && text.length > MAX_TOKEN) refuse(`${key} of at most ${MAX_TOKEN} letters`, String(text.length));
  }
}

/**
 * An upper bound of how many times longer a step makes a text, in UTF-16 units. Unicode: at most 3 for NFC, 4 for NFD, 18 for NFKC and
 * NFKD (unicode.org/faq/normalization.html), 2 for lower case.
 */
function growthOf(step: JsonObject): number {
  checkTexts(step, ['prepend', 'prefix', 'suffix', 'replacement', 'str_rep']);
  const lengthOf = (key: string, fallback: number): number => {
    const text = own(step, key);
    return typeof text === 'string' ? text.length : fallback;
  };
  switch (own(step, 'type')) {
    case 'NFC': return 3;
    case 'NFD': case 'StripAccents': return 4;
    case 'NFKC': case 'NFKD': case 'Precompiled': return 18;
    case 'Lowercase': return 2;
    case 'BertNormalizer': return 24;                // three letters for one, lower case, NFD
    case 'ByteLevel': return 4;                      // bytes of UTF-8, a space in front
    case 'WordPiece': return 2;                      // a space before each word
    case 'Prepend': return 1 + lengthOf('prepend', 0);
    case 'Metaspace': return 1 + Math.max(1, lengthOf('replacement', 1), lengthOf('str_rep', 1));
    case 'BPEDecoder': return lengthOf('suffix', 0) === 0 ? 2 : 1;              // nothing is found between any two letters
    case 'CTC': return lengthOf('word_delimiter_token', 0) === 0 ? 2 : 1;
    case 'FixedLength': {
      const length = own(step, 'length');
      return Number.isSafeInteger(length) && (length as number) > 0 ? 1 : refuse('length of FixedLength to be at least 1', show(length));
    }
    case 'Replace': {
      const least = own(own0(step, 'pattern'), 'String');
      return typeof least === 'string' && least.length > 0 ? Math.max(1, lengthOf('content', 0) / least.length) : 1 + lengthOf('content', 0);
    }
    default: return 1;
  }
}

let guard: { box: { work?: () => unknown }; script: Script } | undefined;

/** Who is to blame when time runs out. */
export interface Blame { op: string; what: string; remedy: string }

/** Of a tokenizer. @param what it is asked for. */
export function tokenizerBlame(what: string): Blame {
  return { op: 'tokenizer', what: `a tokenizer.json that ${what}`, remedy: REMEDY };
}

/**
 * Runs synchronous code of a stranger's file for so long at most: a pattern that backtracks for ever is interrupted.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming who is to blame; what the work throws.
 */
export function within<T>(limitMs: number, { op, what, remedy }: Blame, work: () => T): T {
  guard ??= { box: createContext({}) as { work?: () => unknown }, script: new Script('work()') };
  const { box, script } = guard;
  const before = box.work;
  box.work = work;
  try {
    return script.runInContext(box, { timeout: limitMs }) as T;
  } catch (error) {
    if (codeOf(error) !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    return fail('ERR_CHECKPOINT', op, `Expected ${what} in bounded time but received one that took longer than ${limitMs} ms. ${remedy}`);
  } finally {
    if (before === undefined) delete box.work;
    else box.work = before;
  }
}

/** Milliseconds for reading a file of so many characters: that of Qwen2-VL, 7 million, takes half a second. */
export function readingTime(characters: number): number {
  return Math.ceil(1000 + characters / 1000);
}

/**
 * Milliseconds that a text may take, six times what one endless word takes; undefined: no guard is needed.
 *
 * @throws {LibError} `ERR_RANGE` when it is too long.
 */
export function timeFor(length: number, { growth, isKnown }: TokenizerCost): number | undefined {
  const longest = Math.min(MAX_TEXT, Math.floor(MAX_GROWN / growth));
  if (length > longest) fail('ERR_RANGE', 'tokenizer', `Expected a text of at most ${longest} characters but received ${length}; encode it in parts`);
  return isKnown && length <= QUICK_TEXT ? undefined : Math.ceil(1000 + length / 50);
}
