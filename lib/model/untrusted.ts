/** Limits on what a tokenizer file of a stranger can do: time by interrupting it, memory by refusing files that multiply text. */
import { createContext, Script } from 'node:vm';
import { codeOf, fail } from '../errors';
import { isObject, own, type JsonObject } from './jsonReader';

/** Splitting patterns of the families in use and our own: none takes more than linear time. They run without a guard, which costs 0.2 ms a call. */
const KNOWN_PATTERNS: ReadonlySet<string> = new Set([
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  '[ \\t\\r]+',
]);
/** Bytes of JSON text; that of Qwen2-VL has 7 MB. */
const MAX_FILE = 64 * 2 ** 20;
/** Letters of a token: the longest real ones are runs of spaces. */
const MAX_TOKEN = 4096;
const MAX_TOKENS = 1 << 21;
/** Steps of a pipeline, and how deep they may lie in each other. */
const MAX_STEPS = 64;
const MAX_DEPTH = 16;
/** How many times longer all replacements together may make a text. */
const MAX_GROWTH = 4;
const MAX_TEXT = 1 << 22;
const PIPELINES = ['normalizer', 'pre_tokenizer', 'post_processor', 'decoder'] as const;
const REMEDY = "Take tokenizer.json of the model's own repository.";

function refuse(expected: string, received: string): never {
  return fail('ERR_CHECKPOINT', 'tokenizer', `Expected ${expected} in tokenizer.json but received ${received}. ${REMEDY}`);
}

/** @throws {LibError} `ERR_CHECKPOINT`. Returns whether it may run without a guard. */
export function checkTokenizerFile(json: JsonObject): boolean {
  checkTokens(json);
  let trusted = own(own0(json, 'model'), 'type') === 'BPE';
  for (const name of PIPELINES) {
    const steps: JsonObject[] = [];
    collect(name, own(json, name), 0, steps);
    let growth = 1;
    for (const step of steps) {
      growth *= growthOf(step);
      if (growth > MAX_GROWTH) refuse(`replacements of ${name} that make a text at most ${MAX_GROWTH} times longer`, 'more');
      const pattern = own(own0(step, 'pattern'), 'Regex');
      if (pattern !== undefined && !(typeof pattern === 'string' && KNOWN_PATTERNS.has(pattern))) trusted = false;
    }
  }
  return trusted;
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
    for (const key of ['normalizers', 'pretokenizers', 'processors', 'decoders']) if (own(value, key) !== undefined) collect(name, own(value, key), depth + 1, steps);
  }
}

/** An upper bound of how many times longer a step makes a long text. */
function growthOf(step: JsonObject): number {
  for (const key of ['prepend', 'prefix', 'suffix', 'replacement']) {
    const text = own(step, key);
    if (typeof text === 'string' && text.length > MAX_TOKEN) refuse(`${key} of at most ${MAX_TOKEN} letters`, String(text.length));
  }
  const content = own(step, 'content'), pattern = own0(step, 'pattern'), replaced = own(pattern, 'String');
  const metaspace = own(step, 'replacement');
  if (typeof metaspace === 'string' && metaspace.length > 1) return metaspace.length;
  if (own(step, 'type') !== 'Replace' || typeof content !== 'string') return 1;
  // A pattern may match nothing at all, between any two letters.
  const least = typeof replaced === 'string' ? replaced.length : 0;
  return least > 0 ? Math.max(1, content.length / least) : 1 + content.length;
}

/** Parsed only when it is not too long. */
export function checkLength(name: string, text: string): string {
  if (text.length > MAX_FILE) fail('ERR_CHECKPOINT', 'tokenizer', `Expected ${name} to have at most ${MAX_FILE} characters but received ${text.length}. Is it the right file?`);
  return text;
}

let guard: { box: { work?: () => unknown }; script: Script } | undefined;

/**
 * Runs synchronous code of a stranger's file for so long at most: a pattern that backtracks for ever is interrupted.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming `what`; what the work throws.
 */
export function within<T>(limitMs: number, what: string, work: () => T): T {
  guard ??= { box: createContext({}) as { work?: () => unknown }, script: new Script('work()') };
  const { box, script } = guard;
  const before = box.work;
  box.work = work;
  try {
    return script.runInContext(box, { timeout: limitMs }) as T;
  } catch (error) {
    if (codeOf(error) !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    return fail('ERR_CHECKPOINT', 'tokenizer', `Expected ${what} in bounded time but received one that took longer than ${limitMs} ms. ${REMEDY}`);
  } finally {
    if (before === undefined) delete box.work;
    else box.work = before;
  }
}

/** Milliseconds that a text may take: a second, and a second for each million letters. */
export function timeFor(length: number): number {
  if (length > MAX_TEXT) fail('ERR_RANGE', 'tokenizer', `Expected a text of at most ${MAX_TEXT} characters but received ${length}; encode it in parts`);
  return Math.ceil(1000 + length / 1000);
}
