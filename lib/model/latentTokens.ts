/**
 * Gives a plain checkpoint the three tokens of latent reasoning: in its tokenizer files, in its record, and as rows of its tables.
 *
 * Ids follow the last one in use, in the order start, end, latent, as the official code appends them (151657 on for Qwen2-VL, 151665 on
 * for Qwen2.5-VL). Hub tables are padded and have room; a table without it grows, by rows for other added tokens too where those lack them.
 */
import { fail } from '../errors';
import type { NativeFileTensor } from '../native';
import type { Checkpoint, CompanionFiles } from './checkpoint';
import { withVocab, type ModelConfig } from './config';
import { parseJson } from './files';
import { isObject, own, type JsonObject } from './jsonReader';
import { EMBEDDING } from './parameterShapes';
import type { LatentRecord } from './record';

type IdKey = 'startLatentToken' | 'endLatentToken' | 'latentToken';

/** In the order in which ids are given. `like`: the token whose row a new one starts from; both are read and never answered, so that the new ones take no probability from words. */
const TOKENS = [
  { content: '<|start-latent|>', key: 'startLatentToken', like: 'visionStart' },
  { content: '<|end-latent|>', key: 'endLatentToken', like: 'visionEnd' },
  { content: '<|latent|>', key: 'latentToken', like: 'visionStart' },
] as const satisfies { content: string; key: IdKey; like: keyof ModelConfig['tokens'] }[];

const TOKENIZER = 'tokenizer.json';
const TABLES: readonly string[] = [EMBEDDING, 'lm_head.weight'];

interface NewToken {
  content: string;
  id: number;
}

/**
 * The checkpoint with the three tokens; those that its tokenizer has stay as they are. Nothing is written: saving the model does that.
 *
 * @throws {LibError} `ERR_UNSUPPORTED` without a tokenizer; `ERR_CHECKPOINT` when tokenizer, record and table do not agree.
 */
export function withLatentTokens(checkpoint: Checkpoint): Checkpoint {
  const { config, companions, baseCompanions } = checkpoint;
  const { ids, words } = usedIds(companions);
  const rows = config.text.vocab;
  if (words >= rows) fail('ERR_CHECKPOINT', 'load', `Expected the vocabulary of ${TOKENIZER} to be below the ${rows} rows of the embedding table but received id ${words}. The files belong to different models: take all of them from one.`);
  const last = [...ids.values()].reduce((most, id) => Math.max(most, id), -1);
  if (new Set(ids.values()).size !== last + 1) fail('ERR_CHECKPOINT', 'load', `Expected ids of tokens in ${TOKENIZER} to follow one another but received gaps below ${last}. Python's tokenizers number the tokens after a gap anew: save the tokenizer again there.`);
  // Rows are those of the base, whatever tokenizer lies beside an adapter.
  const held = baseCompanions === undefined ? ids : baseCompanions.has(TOKENIZER) ? usedIds(baseCompanions).ids : new Map<string, number>();
  const added: NewToken[] = [];
  const fresh = new Map<number, number>();
  const record: LatentRecord & Record<IdKey, number> = { ...checkpoint.record, startLatentToken: 0, endLatentToken: 0, latentToken: 0 };
  for (const { content, key, like } of TOKENS) {
    const known = ids.get(content);
    const id = known ?? last + 1 + added.length;
    const recorded = checkpoint.record[key];
    if (recorded !== undefined && recorded !== id) fail('ERR_CHECKPOINT', 'load', `Expected ${content} to be token ${recorded}, as plumbline.json says, but received ${id} in ${TOKENIZER}. The files belong to different models: take both from one.`);
    Reflect.set(record, key, id);
    if (known === undefined) added.push({ content, id });
    if (id >= rows || held.get(content) !== id) fresh.set(id, config.tokens[like]);
  }
  for (const id of ids.values()) if (id >= rows && !fresh.has(id)) fresh.set(id, config.tokens.visionStart);
  const wrong = [...fresh.values()].find((like) => like >= rows);
  if (wrong !== undefined) fail('ERR_CHECKPOINT', 'load', `Expected the vision tokens of config.json to be below the ${rows} rows of the embedding table but received id ${wrong}. Correct the file: new tokens start from their rows.`);
  return Object.freeze({ ...checkpoint, ...grown(checkpoint, fresh), record: Object.freeze(record), companions: withTokens(companions, added) });
}

/** Ids of a tokenizer by token: of its vocabulary, whose last is `words`, and of what is added to it in either file. */
function usedIds(files: CompanionFiles): { ids: Map<string, number>; words: number } {
  const tokenizer = json(files, TOKENIZER);
  if (tokenizer === undefined) return fail('ERR_UNSUPPORTED', 'load', `Expected a checkpoint with ${TOKENIZER} for latent tokens but received one without. Add the file, or load without latentTokens.`);
  const ids = new Map<string, number>();
  const model = own(tokenizer, 'model');
  const vocab = isObject(model) ? own(model, 'vocab') : undefined;
  const listed = own(tokenizer, 'added_tokens');
  const decoder = own(json(files, 'tokenizer_config.json') ?? {}, 'added_tokens_decoder');
  const words = isObject(vocab) ? Object.entries(vocab) : [];
  const pairs: [unknown, unknown][] = [
    ...words,
    ...(Array.isArray(listed) ? (listed as unknown[]).map((token): [unknown, unknown] => (isObject(token) ? [token['content'], token['id']] : [undefined, undefined])) : []),
    ...Object.entries(isObject(decoder) ? decoder : {}).map(([id, token]): [unknown, unknown] => [isObject(token) ? token['content'] : undefined, Number(id)]),
  ];
  for (const [content, id] of pairs) {
    if (typeof content !== 'string' || !Number.isSafeInteger(id) || (id as number) < 0) return fail('ERR_CHECKPOINT', 'load', `Expected ids of tokens in ${TOKENIZER} and tokenizer_config.json to be whole numbers but received others. Download both again.`);
    ids.set(content, id as number);
  }
  return { ids, words: words.reduce((most, [, id]) => Math.max(most, id as number), -1) };
}

/** @param fresh tokens without a row of their own, each with the token whose row it starts from. */
function grown({ config, files }: Checkpoint, fresh: ReadonlyMap<number, number>): Pick<Checkpoint, 'config' | 'files'> {
  const rows = config.text.vocab;
  const needed = [...fresh.keys()].reduce((most, id) => Math.max(most, id + 1), rows);
  const { hidden } = config.text;
  return {
    config: withVocab(config, needed),
    files: files.map(({ path, tensors }) => ({
      path,
      // New rows come last: those of a padded table are overwritten.
      tensors: [
        ...tensors.map((tensor) => (needed > rows && TABLES.includes(tensor.name) ? { ...tensor, first: 0 } : tensor)),
        ...tensors.filter(({ name }) => TABLES.includes(name)).flatMap((table) => [...fresh].map(([id, like]): NativeFileTensor => {
          const bytes = table.bytes / rows;
          return { ...table, offset: table.offset + like * bytes, bytes, first: id * hidden };
        })),
      ],
    })),
  };
}

/** The tokenizer's files with more tokens; files that are absent stay so. */
function withTokens(files: CompanionFiles, added: readonly NewToken[]): CompanionFiles {
  if (added.length === 0) return files;
  const out = new Map(files);
  const change = (name: string, work: (file: JsonObject) => JsonObject): void => {
    const file = json(files, name);
    if (file !== undefined) out.set(name, `${JSON.stringify(work(file), null, 2)}\n`);
  };
  const entry = ({ content }: NewToken): JsonObject => ({ content, lstrip: false, normalized: false, rstrip: false, single_word: false, special: true });
  const byId = Object.fromEntries(added.map((token) => [token.id, entry(token)]));
  change(TOKENIZER, (file) => ({ ...file, added_tokens: [...list(file, 'added_tokens'), ...added.map((token) => ({ id: token.id, ...entry(token) }))] }));
  change('tokenizer_config.json', (file) => ({ ...withSpecial(file, added), added_tokens_decoder: { ...(own(file, 'added_tokens_decoder') as JsonObject | undefined), ...byId } }));
  change('special_tokens_map.json', (file) => withSpecial(file, added));
  change('added_tokens.json', (file) => ({ ...file, ...Object.fromEntries(added.map(({ content, id }) => [content, id])) }));
  return out;
}

function withSpecial(file: JsonObject, added: readonly NewToken[]): JsonObject {
  const key = 'additional_special_tokens';
  return Array.isArray(own(file, key)) ? { ...file, [key]: [...list(file, key), ...added.map(({ content }) => content)] } : file;
}

function list(file: JsonObject, key: string): readonly unknown[] {
  const value = own(file, key);
  return Array.isArray(value) ? (value as unknown[]) : [];
}

function json(files: CompanionFiles, name: string): JsonObject | undefined {
  const value = parseJson(files.get(name), name);
  if (value === undefined || isObject(value)) return value;
  return fail('ERR_CHECKPOINT', 'load', `Expected ${name} to hold an object. Download it again.`);
}
