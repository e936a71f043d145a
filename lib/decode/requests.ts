/** What generation takes: models, requests, options, and their checks. */
import * as check from '../check';
import { fail } from '../errors';
import {
  checkPrompt, newCursor, replayedImages, type PromptImage, type PromptInput, type ReasoningForm, type SequenceCursor,
} from '../model/passes';
import { looksAhead, makePreset, type Preset, type PresetChanges, type PresetName } from '../model/preset';
import type { ModelView } from '../model/reasoning';
import { MAX_LATENTS } from '../model/record';
import { startEvidence, type Evidence, type NearWord } from './evidence';
import { checkSampling, DEFAULT_SAMPLING, type SamplingOptions } from './sampling';
import { textStream, type TextStream } from './text';

/** A model that can generate. Without `decodeText`, results have ids only; without `encodeMessages`, requests give `promptIds`. */
export interface GenerativeModel<Messages = unknown> extends ModelView {
  /** Ids that end a sequence. */
  readonly endIds: readonly number[];
  decodeText?(ids: readonly number[]): string;
  encodeMessages?(messages: Messages, options?: { signal?: AbortSignal }): Promise<PromptInput>;
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
  /** Switches that differ from the model's own: ablations, such as `{ replay: false }` or `{ routedLayers: [] }`. */
  preset?: PresetName | PresetChanges;
  /**
   * Run the whole sequence again at every step, which is the official algorithm, instead of caching keys and values. The only way for a
   * preset that looks ahead (rule 'topk', gate 'softmax-sequence'), and slow.
   */
  recompute: boolean;
  /** Record what was looked at and which rows went deeper; costs the head once per latent step. */
  evidence: boolean;
  signal?: AbortSignal;
}

export const DEFAULT_GENERATION: GenerateOptions = Object.freeze({
  ...DEFAULT_SAMPLING, latentSteps: 0, maxNewTokens: 256, seed: 0, stop: Object.freeze([]), batchSize: 32, recompute: false, evidence: false,
});

const REQUEST_FIELDS: readonly (keyof GenerateRequest)[] = ['promptIds', 'pictures', 'messages', 'latentSteps', 'maxNewTokens', 'seed'];
const OPTION_FIELDS = [...Object.keys(DEFAULT_GENERATION), 'stopIds', 'signal', 'preset'];

export interface CheckedOptions extends Omit<GenerateOptions, 'preset'> {
  endIds: ReadonlySet<number>;
  preset: Preset;
  form: ReasoningForm;
}

/** A request on its way. */
export interface Active {
  /** Place in the batch. */
  request: number;
  prompt: PromptInput;
  cursor: SequenceCursor;
  /** What replay chooses from. */
  images: readonly PromptImage[];
  latentSteps: number;
  latentsDone: number;
  maxNewTokens: number;
  seed: number;
  ids: number[];
  /** For the repetition penalty. */
  seen: Set<number>;
  text: TextStream | undefined;
  evidence: Evidence | undefined;
  /** Of the state that the next latent copies. */
  words: NearWord[];
}

export function checkedOptions(op: string, model: GenerativeModel<never>, options: Partial<GenerateOptions>): CheckedOptions {
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
  check.array(op, 'stopIds', full.stopIds ?? model.endIds);
  // A table that was cut down may lack an end token of the files; nothing generates it then.
  const endIds = full.stopIds ?? model.endIds.filter((id) => id < model.geometry.vocab);
  for (const id of endIds) check.integer(op, 'stop id', id, 0, model.geometry.vocab - 1);
  const preset = presetOf(op, model, full);
  return { ...full, endIds: new Set(endIds), preset, form: full.recompute ? 'recompute' : 'cached' };
}

/** The model's switches with the call's changes; what cannot be cached must be recomputed on purpose. */
function presetOf(op: string, model: GenerativeModel<never>, { preset: changes, recompute, evidence }: GenerateOptions): Preset {
  check.boolean(op, 'recompute', recompute);
  check.boolean(op, 'evidence', evidence);
  check.object(op, 'model.preset', model.preset);
  const preset = changes === undefined ? model.preset : makePreset(changes, model.geometry.layers, model.preset);
  if (looksAhead(preset) && !recompute) {
    fail('ERR_UNSUPPORTED', op, `Expected a preset that can be cached but received rule '${preset.rule}' with gate '${preset.gate}', which looks ahead to later tokens. `
      + `Set recompute: true to run the whole sequence again at every step, or take rule 'threshold' or 'prefix-topk' with gate 'sigmoid' or 'raw', or routedLayers: []`);
  }
  return preset;
}

export async function prepareAll<M>(op: string, model: GenerativeModel<M>, requests: readonly GenerateRequest<M>[], options: CheckedOptions): Promise<Active[]> {
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
  const prompt = await promptOf(op, model, request, what, options);
  checkPrompt(op, what, prompt, model.geometry);
  const { replay, allImages } = options.preset;
  const images = replay && latentSteps > 0 ? replayedImages(prompt, model.geometry, allImages) : [];
  return {
    request: number % options.batchSize, prompt: copied(prompt), cursor: newCursor(-1), images, latentSteps, latentsDone: 0, maxNewTokens, seed,
    ids: [], seen: options.repetitionPenalty === 1 ? new Set() : new Set(Array.from(prompt.promptIds)),
    text: model.decodeText === undefined ? undefined : textStream((ids) => model.decodeText?.(ids) ?? '', options.stop),
    evidence: options.evidence ? startEvidence(images, options.preset) : undefined, words: [],
  };
}

/** Later batches run later: what the caller changes meanwhile must not matter. The pixels are not copied. */
function copied({ promptIds, pictures }: PromptInput): PromptInput {
  return {
    promptIds: Array.from(promptIds),
    pictures: pictures.map(({ pixels, frames, height, width, secondsPerGrid, original }) => ({
      pixels, frames, height, width, ...(secondsPerGrid === undefined ? {} : { secondsPerGrid }), ...(original === undefined ? {} : { original: { ...original } }),
    })),
  };
}

async function promptOf<M>(op: string, model: GenerativeModel<M>, request: GenerateRequest<M>, what: string, { signal }: CheckedOptions): Promise<PromptInput> {
  if ((request.messages === undefined) === (request.promptIds === undefined)) {
    fail('ERR_ARGUMENT', op, `Expected exactly one of messages and promptIds in ${what} but received ${request.messages === undefined ? 'neither' : 'both'}`);
  }
  if (request.promptIds !== undefined) return { promptIds: request.promptIds, pictures: request.pictures ?? [] };
  if (model.encodeMessages === undefined) {
    fail('ERR_UNSUPPORTED', op, `Expected a model with a processor for the messages of ${what} but received one without; give promptIds`);
  }
  return model.encodeMessages(request.messages as M, signal === undefined ? {} : { signal });
}
