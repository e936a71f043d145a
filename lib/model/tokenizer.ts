/** tokenizer.json and the chat template of a checkpoint, through Hugging Face's own JavaScript packages. */
import type { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import type { Template as HubTemplate } from '@huggingface/jinja';
import { show } from '../check';
import { LibError, fail } from '../errors';
import type { CompanionFiles } from './checkpoint';
import { isObject, own, type JsonObject } from './jsonReader';
import { renderTemplate } from './templateProcess';
import { checkTokenizerFile, readingTime, timeFor, tokenizerBlame, within } from './untrusted';

/** A message as a chat template sees it: parts have a type, and a text where it is 'text'. */
export interface TemplateMessage {
  role: string;
  name?: string;
  content: string | readonly ({ type: 'text'; text: string } | { type: 'image' | 'video' })[];
}

export interface Tokenizer {
  encode(text: string): number[];
  /** Text of ids; special tokens leave no text, nor do ids that the tokenizer does not know (rows that pad the table). */
  decode(ids: readonly number[]): string;
  /** Id of a token, e.g. `<|image_pad|>`. */
  idOf(token: string): number | undefined;
}

/** Renders in a process of its own: a template is a program. @throws {LibError} `ERR_ARGUMENT` when it refuses the messages, `ERR_CHECKPOINT`, `signal.reason`. */
export type ChatTemplate = (messages: readonly TemplateMessage[], addGenerationPrompt: boolean, addVisionId?: boolean, signal?: AbortSignal) => Promise<string>;

/** Those of Qwen2-VL have 1,000 characters, the longest in use some 20,000. */
const MAX_TEMPLATE = 1 << 18;
const PARSE_MS = 1000;

/**
 * Undefined when the checkpoint has no tokenizer.json. What a stranger's file can cost is bounded: see `untrusted.ts`.
 *
 * @throws {LibError} `ERR_CHECKPOINT`; its functions too, and `ERR_RANGE` for a text that is too long.
 */
export function makeTokenizer(files: CompanionFiles): Tokenizer | undefined {
  const source = files.get('tokenizer.json');
  if (source === undefined) return undefined;
  const { Tokenizer: Hub } = require('@huggingface/tokenizers') as { Tokenizer: typeof HubTokenizer };
  const config = parse(files, 'tokenizer_config.json') ?? {};
  // What a post_processor adds, special tokens, is in the chat template already.
  const json = { ...withAddedTokens(parse(files, 'tokenizer.json') as JsonObject, config), post_processor: null };
  const cost = checkTokenizerFile(json);
  const doing = <T>(what: string, limit: number | undefined, work: () => T): T => {
    try {
      return limit === undefined ? work() : within(limit, tokenizerBlame(what), work);
    } catch (error) {
      if (error instanceof LibError) throw error;
      return fail('ERR_CHECKPOINT', 'tokenizer', `Expected a tokenizer.json that ${what} but received: ${String((error as Error | null)?.message).slice(0, 200)}. Download it again, or save it with a recent version of tokenizers.`, { cause: error });
    }
  };
  const hub = doing('can be read', readingTime(source.length + (files.get('tokenizer_config.json')?.length ?? 0)), () => new Hub(json, config));
  const silent = new Set([...hub.get_added_tokens_decoder()].filter(([, token]) => token.special).map(([id]) => id));
  return {
    encode: (text) => (text === '' ? [] : checkIds(doing('encodes text', timeFor(text.length, cost), () => hub.encode(text, { add_special_tokens: false }).ids))),
    decode(ids) {
      const known = ids.filter((id) => !silent.has(id) && hub.id_to_token(id) !== undefined);
      return known.length === 0 ? '' : doing('decodes ids', timeFor(known.length, cost), () => hub.decode(known, { clean_up_tokenization_spaces: false }));
    },
    idOf: (token) => hub.token_to_id(token),
  };
}

function checkIds(ids: number[]): number[] {
  const at = ids.findIndex((id) => !Number.isSafeInteger(id) || id < 0);
  if (at >= 0) fail('ERR_CHECKPOINT', 'tokenizer', `Expected the ids of tokens in tokenizer.json to be whole numbers from 0 but received ${show(ids[at])}. Take tokenizer.json of the model's own repository.`);
  return ids;
}

/** Some releases list special tokens (`<|image_pad|>`) in tokenizer_config.json only; without them they would fall into pieces. */
function withAddedTokens(json: JsonObject, config: JsonObject): JsonObject {
  const listed = own(json, 'added_tokens');
  const added = Array.isArray(listed) ? [...(listed as unknown[])] : [];
  const known = new Set(added.map((token) => (isObject(token) ? token['content'] : undefined)));
  const extra = own(config, 'added_tokens_decoder');
  for (const [id, token] of Object.entries(isObject(extra) ? extra : {})) {
    if (isObject(token) && /^\d+$/.test(id) && !known.has(token['content'])) added.push({ ...token, id: Number(id) });
  }
  return { ...json, added_tokens: added };
}

function parse(files: CompanionFiles, name: string): JsonObject | undefined {
  const text = files.get(name);
  if (text === undefined) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return value;
  } catch (error) {
    return fail('ERR_CHECKPOINT', 'tokenizer', `Expected JSON in ${name} but received: ${(error as Error).message.slice(0, 120)}. Download it again.`, { cause: error });
  }
  return fail('ERR_CHECKPOINT', 'tokenizer', `Expected an object in ${name} but received other JSON. Download it again.`);
}

/** Undefined when the checkpoint has none. The processor's own files win over tokenizer_config.json, as in transformers. */
export function makeChatTemplate(files: CompanionFiles): ChatTemplate | undefined {
  const config = parse(files, 'tokenizer_config.json') ?? {};
  const source = files.get('chat_template.jinja') ?? own(parse(files, 'chat_template.json') ?? {}, 'chat_template') ?? own(config, 'chat_template');
  const text = Array.isArray(source) ? defaultTemplate(source) : source;
  if (text === undefined) return undefined;
  if (typeof text !== 'string') return fail('ERR_CHECKPOINT', 'chatTemplate', 'Expected chat_template to be a string or a list with a default but received something else. Correct tokenizer_config.json.');
  if (text.length > MAX_TEMPLATE) return fail('ERR_CHECKPOINT', 'chatTemplate', `Expected a chat template of at most ${MAX_TEMPLATE} characters but received ${text.length}. Correct the checkpoint's chat template.`);
  const { Template } = require('@huggingface/jinja') as { Template: typeof HubTemplate };
  try {
    within(PARSE_MS, { op: 'chatTemplate', what: 'a chat template that can be parsed', remedy: "Correct the checkpoint's chat template." }, () => new Template(text));
  } catch (error) {
    if (error instanceof LibError) throw error;
    return fail('ERR_CHECKPOINT', 'chatTemplate', `Expected a chat template in Jinja but received: ${(error as Error).message.slice(0, 200)}. Correct the checkpoint's chat template.`, { cause: error });
  }
  const tokens = namedTokens(config);
  return (messages, addGenerationPrompt, addVisionId = false, signal) =>
    renderTemplate(text, { ...tokens, messages, add_generation_prompt: addGenerationPrompt, add_vision_id: addVisionId }, undefined, signal);
}

function defaultTemplate(list: readonly unknown[]): unknown {
  return list.find((entry): entry is JsonObject => isObject(entry) && entry['name'] === 'default')?.['template'];
}

/** bos_token, eos_token, ... by name; older files wrap them in an object. */
function namedTokens(config: JsonObject): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const name of ['bos_token', 'eos_token', 'pad_token', 'unk_token']) {
    const value = own(config, name);
    const content = isObject(value) ? value['content'] : value;
    if (typeof content === 'string') tokens[name] = content;
  }
  return tokens;
}
