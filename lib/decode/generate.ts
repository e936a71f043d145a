/** Generation: prompts in, words out, with or without latent steps before the words. Ragged batches throughout. */
import { abortable } from '../abort';
import * as check from '../check';
import { fail, guarded } from '../errors';
import type { ModelGeometry } from '../model/config';
import { MAX_LATENTS } from '../model/record';
import type { NativeSession } from '../native';
import {
  appendLatent, appendPrompt, appendWords, checkPrompt, closeSequence, finishPass, packPictures, startPass, wantLogits,
  type ModelView, type PromptInput, type SequenceCursor,
} from '../train/batch';
import { mix, uniform } from '../random';
import { checkSampling, DEFAULT_SAMPLING, sampleToken, type SamplingOptions } from './sampling';
import { textStream, type TextStream } from './text';

/** A model that can generate. Without `decodeText`, results have ids only; without `encodeMessages`, requests give `promptIds`. */
export interface GenerativeModel<Messages = unknown> extends ModelView {
  /** Ids that end a sequence. */
  readonly endIds: readonly number[];
  decodeText?(ids: readonly number[]): string;
  encodeMessages?(messages: Messages): Promise<PromptInput>;
}

/** One request: either token ids with their pictures, or messages for the model's processor. */
export interface GenerateRequest<Messages = unknown> extends Partial<PromptInput> {
  messages?: Messages;
  /** Instead of the options' values, for this request only. */
  latentSteps?: number;
  maxNewTokens?: number;
  seed?: number;
}

export interface GenerateOptions extends SamplingOptions {
  /** Latent steps before the first word; 0 = explicit words only. */
  latentSteps: number;
  /** Words at most, the end token included. */
  maxNewTokens: number;
  /** Of the sampled tokens. Requests of the same seed draw the same numbers, whatever they are batched with. */
  seed: number;
  /** Generation ends before the first of these strings (needs a tokenizer). */
  stop: readonly string[];
  /** Token ids that end generation, instead of the model's end ids. */
  stopIds?: readonly number[];
  /** Requests that share a batch at most; further requests wait. */
  batchSize: number;
  signal?: AbortSignal;
}

export const DEFAULT_GENERATION: GenerateOptions = Object.freeze({
  ...DEFAULT_SAMPLING, latentSteps: 0, maxNewTokens: 256, seed: 0, stop: Object.freeze([]), batchSize: 32,
});

/** 'end': an end token was generated; 'stop': a stop string; 'length': `maxNewTokens` was reached. */
export type FinishReason = 'end' | 'stop' | 'length';

export interface GenerateResult {
  /** Generated token ids, the end token included. */
  ids: number[];
  /** Their text without the end token and the stop string; undefined without a tokenizer. */
  text?: string;
  finishReason: FinishReason;
  latentSteps: number;
  /** Autoregressive steps: latent steps + generated tokens, the end token included. */
  arSteps: number;
  /** Rows that went through the decoder for this request: prompt, latents, words that were fed back. */
  tokenForwards: number;
}

export type GenerateEvent =
  | { type: 'latent'; step: number }
  | { type: 'token'; id: number; text: string }
  | { type: 'end'; text: string; result: GenerateResult };

const REQUEST_FIELDS: readonly (keyof GenerateRequest)[] = ['promptIds', 'pictures', 'messages', 'latentSteps', 'maxNewTokens', 'seed'];
const OPTION_FIELDS = [...Object.keys(DEFAULT_GENERATION), 'stopIds', 'signal'];

/**
 * Generates for several requests in ragged batches.
 *
 * @param requests at least one is not required: no requests, no results.
 * @returns one result per request, in order. A request's result does not depend on its batch-mates beyond the rounding of sums.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_SHAPE`, `ERR_DTYPE` naming the request; `signal.reason` when aborted.
 */
export async function generate<M>(model: GenerativeModel<M>, requests: readonly GenerateRequest<M>[], options: Partial<GenerateOptions> = {}): Promise<GenerateResult[]> {
  const checked = checkedOptions('generate', model, options);
  const prepared = await prepareAll('generate', model, requests, checked);
  const results = new Array<GenerateResult>(prepared.length);
  for (let first = 0; first < prepared.length; first += checked.batchSize) {
    for await (const { request, event } of decodeBatch(model, prepared.slice(first, first + checked.batchSize), checked)) {
      if (event.type === 'end') results[first + request] = event.result;
    }
  }
  return results;
}

/**
 * Generates for one request and yields what happens as it happens: latent steps, tokens with the text that they complete, the end.
 * Leaving the loop ends the work and frees its memory.
 *
 * @throws as `generate`.
 */
export async function* stream<M>(model: GenerativeModel<M>, request: GenerateRequest<M>, options: Partial<GenerateOptions> = {}): AsyncGenerator<GenerateEvent, void, void> {
  const checked = checkedOptions('stream', model, options);
  const prepared = await prepareAll('stream', model, [request], checked);
  for await (const { event } of decodeBatch(model, prepared, checked)) yield event;
}

interface CheckedOptions extends GenerateOptions {
  endIds: ReadonlySet<number>;
}

/** A request on its way. */
interface Active {
  /** Place in the batch. */
  request: number;
  prompt: PromptInput;
  cursor: SequenceCursor;
  latentSteps: number;
  latentsDone: number;
  maxNewTokens: number;
  seed: number;
  ids: number[];
  /** For the repetition penalty. */
  seen: Set<number>;
  text: TextStream | undefined;
}

function checkedOptions(op: string, model: GenerativeModel<never>, options: Partial<GenerateOptions>): CheckedOptions {
  check.object(op, 'model', model);
  check.options(op, options, OPTION_FIELDS);
  const full = { ...DEFAULT_GENERATION, ...options };
  checkSampling(op, full);
  check.integer(op, 'latentSteps', full.latentSteps, 0, MAX_LATENTS);
  check.integer(op, 'maxNewTokens', full.maxNewTokens, 1);
  check.integer(op, 'seed', full.seed, 0);
  check.integer(op, 'batchSize', full.batchSize, 1);
  check.signal(op, full.signal);
  if (!Array.isArray(full.stop)) fail('ERR_ARGUMENT', op, `Expected stop to be an array of strings but received ${check.show(full.stop)}`);
  for (const stop of full.stop) {
    if (check.string(op, 'stop string', stop) === '') fail('ERR_ARGUMENT', op, 'Expected stop strings not to be empty but received ""');
  }
  if (full.stop.length > 0 && model.decodeText === undefined) {
    fail('ERR_UNSUPPORTED', op, 'Expected a model with a tokenizer for stop strings but received one without; use stopIds');
  }
  const endIds = full.stopIds ?? model.endIds;
  check.array(op, 'stopIds', endIds);
  for (const id of endIds) check.integer(op, 'stop id', id, 0, model.geometry.vocab - 1);
  return { ...full, endIds: new Set(endIds) };
}

async function prepareAll<M>(op: string, model: GenerativeModel<M>, requests: readonly GenerateRequest<M>[], options: CheckedOptions): Promise<Active[]> {
  check.array(op, 'requests', requests);
  const prepared: Active[] = [];
  for (const [number, request] of requests.entries()) {
    options.signal?.throwIfAborted();
    prepared.push(await prepare(op, model, request, number, options));
  }
  return prepared;
}

async function prepare<M>(op: string, model: GenerativeModel<M>, request: GenerateRequest<M>, number: number, options: CheckedOptions): Promise<Active> {
  const what = `request ${number}`;
  check.object(op, what, request);
  check.options(op, request, REQUEST_FIELDS);
  const latentSteps = check.integer(op, `latentSteps of ${what}`, request.latentSteps ?? options.latentSteps, 0, MAX_LATENTS);
  const maxNewTokens = check.integer(op, `maxNewTokens of ${what}`, request.maxNewTokens ?? options.maxNewTokens, 1);
  const seed = check.integer(op, `seed of ${what}`, request.seed ?? options.seed, 0);
  const prompt = await promptOf(op, model, request, what);
  checkPrompt(op, what, prompt, model.geometry);
  return {
    request: number % options.batchSize, prompt, cursor: { id: -1, length: 0, delta: 0 }, latentSteps, latentsDone: 0, maxNewTokens, seed,
    ids: [], seen: options.repetitionPenalty === 1 ? new Set() : new Set(Array.from(prompt.promptIds)),
    text: model.decodeText === undefined ? undefined : textStream((ids) => model.decodeText?.(ids) ?? '', options.stop),
  };
}

async function promptOf<M>(op: string, model: GenerativeModel<M>, request: GenerateRequest<M>, what: string): Promise<PromptInput> {
  if ((request.messages === undefined) === (request.promptIds === undefined)) {
    fail('ERR_ARGUMENT', op, `Expected exactly one of messages and promptIds in ${what} but received ${request.messages === undefined ? 'neither' : 'both'}`);
  }
  if (request.promptIds !== undefined) return { promptIds: request.promptIds, pictures: request.pictures ?? [] };
  if (model.encodeMessages === undefined) {
    fail('ERR_UNSUPPORTED', op, `Expected a model with a processor for the messages of ${what} but received one without; give promptIds`);
  }
  return model.encodeMessages(request.messages as M);
}

/** The rows of one request in the next pass: its prompt, then latent steps, then the word generated last. */
function appendNext(pass: ReturnType<typeof startPass>, active: Active, geometry: ModelGeometry, visual: number): number {
  let used = 0;
  if (active.cursor.length === 0) {
    used = appendPrompt(pass, active.cursor, active.prompt, geometry, visual);
  } else if (active.latentsDone < active.latentSteps) {
    appendLatent(pass, active.cursor);
    active.latentsDone++;
  } else {
    appendWords(pass, active.cursor, active.ids.slice(-1));
  }
  if (active.latentsDone === active.latentSteps) wantLogits(pass);
  closeSequence(pass, active.cursor);
  return used;
}

async function* decodeBatch(model: GenerativeModel<never>, batch: readonly Active[], options: CheckedOptions): AsyncGenerator<{ request: number; event: GenerateEvent }, void, void> {
  if (batch.length === 0) return;
  const { signal } = options;
  signal?.throwIfAborted();
  const session = model.openSession({ training: false, recompute: false, detachLatents: false, visionGradient: false });
  try {
    let visual = await encodePictures(session, batch, signal);
    for (const active of batch) active.cursor.id = guarded(() => session.add());
    for (let rest = [...batch]; rest.length > 0; ) {
      const pass = startPass();
      const latentsBefore = rest.map((active) => active.latentsDone);
      for (const active of rest) visual += appendNext(pass, active, model.geometry, visual);
      const { logits } = await abortable(signal, (token) => session.extend(finishPass(pass), token));
      const left: Active[] = [];
      let row = 0;
      for (const [n, active] of rest.entries()) {
        const { request } = active;
        if (active.latentsDone > (latentsBefore[n] as number)) yield { request, event: { type: 'latent', step: active.latentsDone } };
        if (active.latentsDone < active.latentSteps) {
          left.push(active);
          continue;
        }
        const { vocab } = model.geometry;
        const { token, end } = step(active, logits.subarray(row * vocab, (row + 1) * vocab), options);
        row++;
        yield { request, event: token };
        if (end === undefined) {
          left.push(active);
          continue;
        }
        await abortable(undefined, () => session.free(active.cursor.id));
        yield { request, event: end };
      }
      rest = left;
    }
  } finally {
    session.dispose();
  }
}

async function encodePictures(session: NativeSession, batch: readonly Active[], signal: AbortSignal | undefined): Promise<number> {
  const { frames, sizes } = packPictures(batch.map(({ prompt }) => prompt));
  return sizes.length > 0 ? abortable(signal, (token) => session.encode(frames, sizes, token)) : 0;
}

/** Chooses the next word of a request and tells whether it was the last. */
function step(active: Active, logits: Float32Array, options: CheckedOptions): { token: GenerateEvent; end?: GenerateEvent } {
  const { ids, seen } = active;
  const id = sampleToken(logits, options, seen, uniform(mix(active.seed, 3), ids.length));
  ids.push(id);
  if (options.repetitionPenalty !== 1) seen.add(id);
  const ended = options.endIds.has(id);
  const piece = ended ? undefined : active.text?.push(id);
  const token: GenerateEvent = { type: 'token', id, text: piece?.text ?? '' };
  const found: FinishReason | undefined = ended ? 'end' : piece?.stopped ? 'stop' : ids.length >= active.maxNewTokens ? 'length' : undefined;
  if (found === undefined) return { token };
  const rest = found === 'stop' ? undefined : active.text?.flush();
  const reason = rest?.stopped ? 'stop' : found;
  return {
    token,
    end: {
      type: 'end', text: rest?.text ?? '',
      result: {
        ids, ...(active.text ? { text: active.text.text() } : {}), finishReason: reason, latentSteps: active.latentSteps,
        arSteps: active.latentSteps + ids.length, tokenForwards: active.cursor.length,
      },
    },
  };
}
