/** Generation: prompts in, words out, with or without latent steps before the words. Ragged batches throughout. */
import { abortable } from '../abort';
import { guarded } from '../errors';
import { appendPrompt, appendWords, finishPass, packPictures, picturesToReplay, sendRows, startPass, wantLogits } from '../model/passes';
import { routes } from '../model/preset';
import { latentStep, openReasoning, restartSent, type ModelView, type StepReplay } from '../model/reasoning';
import type { NativePassResult, NativeSession } from '../native';
import { mix, uniform } from '../random';
import { addRouting, latentEvidence, nearWords, type Evidence, type LatentEvidence } from './evidence';
import { checkedOptions, prepareAll, type Active, type CheckedOptions, type GenerateOptions, type GenerateRequest, type GenerativeModel } from './requests';
import { sampleToken } from './sampling';

export { DEFAULT_GENERATION, type GenerateOptions, type GenerateRequest, type GenerativeModel } from './requests';

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
  /** Rows that went through the decoder for this request: prompt, replayed tokens, latents, words that were fed back; recomputed ones again. */
  tokenForwards: number;
  /** With the option `evidence`. */
  evidence?: Evidence;
}

export type GenerateEvent =
  | { type: 'latent'; step: number; evidence?: LatentEvidence }
  | { type: 'token'; id: number; text: string }
  | { type: 'end'; text: string; result: GenerateResult };

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
    for await (const { request, event } of decodeBatch('generate', model, prepared.slice(first, first + checked.batchSize), checked)) {
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
  for await (const { event } of decodeBatch('stream', model, prepared, checked)) yield event;
}

/** Pictures encoded, sequences added with their prompts appended, and told what to look at. */
async function startBatch(session: NativeSession, batch: readonly Active[], model: ModelView, { preset, signal }: CheckedOptions): Promise<void> {
  let visual = await encodePictures(session, batch, signal);
  for (const active of batch) {
    const { cursor, prompt, images } = active;
    cursor.id = guarded(() => session.add());
    visual += appendPrompt(cursor, prompt, model.geometry, preset.positions, visual);
    if (images.length > 0) await abortable(undefined, () => session.setPictures(cursor.id, picturesToReplay(images, cursor, preset, false)));
  }
}

/** Appends what each request computes next: a replay block and a latent, or the word generated last. Returns what the latents looked at. */
async function appendNext(session: NativeSession, rest: readonly Active[], { preset, form, evidence, signal }: CheckedOptions): Promise<Map<Active, LatentEvidence | undefined>> {
  const begun = rest.filter(({ cursor }) => cursor.sent > 0);
  const thinking = begun.filter(({ latentsDone, latentSteps }) => latentsDone < latentSteps);
  const replay = thinking.length === 0 ? undefined
    : await abortable(signal, (token) => latentStep(session, thinking, { form, preset, targets: false, saliency: evidence, token }));
  const seen = new Map(thinking.map((active) => [active, active.evidence && recordStep(active, active.evidence, replay)]));
  for (const active of begun) {
    if (seen.has(active)) active.latentsDone++;
    else appendWords(active.cursor, active.ids.slice(-1));
  }
  return seen;
}

function recordStep(active: Active, evidence: Evidence, replay: StepReplay<Active> | undefined): LatentEvidence {
  const place = replay?.reasoners.indexOf(active) ?? -1;
  const before = replay?.reasoners.slice(0, Math.max(place, 0)) ?? [];
  const saliencyStart = before.reduce((sum, { images }) => sum + images.reduce((tokens, { columns }) => tokens + columns.length, 0), 0);
  const step = latentEvidence(evidence, active.latentsDone + 1, active.words, replay === undefined || place < 0 ? undefined : { result: replay.result, place, saliencyStart });
  evidence.steps.push(step);
  return step;
}

/** Runs what was appended. Logits come for requests that choose a word next, and for the evidence of latents. */
async function runPass(session: NativeSession, rest: readonly Active[], { preset, form, evidence, signal }: CheckedOptions, vocab: number): Promise<Map<Active, Float32Array>> {
  await abortable(undefined, () => restartSent(session, rest.map(({ cursor }) => cursor), form));
  const pass = startPass();
  const places: { active: Active; start: number; end: number; first: number }[] = [];
  const answering: Active[] = [];
  for (const active of rest) {
    const isThinking = active.latentsDone < active.latentSteps;
    const start = pass.kind.length;
    const first = sendRows(pass, active.cursor, form, isThinking && active.images.length > 0);
    places.push({ active, start, end: pass.kind.length, first });
    if (isThinking && !evidence) continue;
    wantLogits(pass);
    answering.push(active);
  }
  const result: NativePassResult = await abortable(signal, (token) => session.extend({ ...finishPass(pass), ...(evidence && routes(preset) ? { traceRouting: true } : {}) }, token));
  for (const { active, ...rows } of places) if (active.evidence) addRouting(active.evidence, result.routing ?? [], { ...rows, replaces: form === 'recompute' });
  return new Map(answering.map((active, n) => [active, result.logits.subarray(n * vocab, (n + 1) * vocab)]));
}

async function* decodeBatch(op: string, model: GenerativeModel<never>, batch: readonly Active[], options: CheckedOptions): AsyncGenerator<{ request: number; event: GenerateEvent }, void, void> {
  if (batch.length === 0) return;
  options.signal?.throwIfAborted();
  const session = openReasoning(op, model, options.preset, { training: false, recompute: false, visionGradient: false });
  try {
    await startBatch(session, batch, model, options);
    for (let rest = [...batch]; rest.length > 0; ) {
      const thought = await appendNext(session, rest, options);
      const logits = await runPass(session, rest, options, model.geometry.vocab);
      const left: Active[] = [];
      for (const active of rest) {
        const { request } = active;
        if (thought.has(active)) {
          const evidence = thought.get(active);
          yield { request, event: { type: 'latent', step: active.latentsDone, ...(evidence ? { evidence } : {}) } };
        }
        const scores = logits.get(active);
        if (active.latentsDone < active.latentSteps) {
          if (scores !== undefined) active.words = nearWords(scores, model.decodeText);
          left.push(active);
          continue;
        }
        const { token, end } = step(active, scores!, options);
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
        arSteps: active.latentSteps + ids.length, tokenForwards: active.cursor.forwards,
        ...(active.evidence ? { evidence: active.evidence } : {}),
      },
    },
  };
}
