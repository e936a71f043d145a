/**
 * Ragged batches of training sequences.
 *
 * Pass 0 holds every prompt; pass t the replay block B_t and the latent z_t of every sequence that has at least t latents; a
 * sequence's words join the pass of its last latent (pass 0 without latents). A batch takes max(latents) + 1 passes. In the form
 * 'recompute' each pass holds the whole sequences again.
 */
import * as check from '../check';
import { fail } from '../errors';
import type { ModelGeometry } from '../model/config';
import {
  appendPrompt, appendWords, checkIds, checkPrompt, finishPass, newCursor, packPictures, picturesToReplay, replayedImages, sendRows, startPass,
  type PromptInput, type ReasoningForm,
} from '../model/passes';
import { PLAIN, type Preset } from '../model/preset';
import { formOf, latentStep, replayedRows, restartSent, type GivenStep, type Reasoner } from '../model/reasoning';
import { MAX_LATENTS } from '../model/record';
import type { RowClass } from '../model/rowClass';
import type { NativeCancelToken, NativePass, NativePassResult, NativeReplayResult, NativeSession } from '../native';
import type { WordClass } from './curriculum';
import { checkForcedRoutes, checkProbe, givenSteps, joinSteps, packForcedRoutes, readSteps, type ReasoningSteps, type SentRows, type SequenceProbe, type SequenceRoute } from './probes';

/** One sequence of a batch. */
export interface SequenceInput extends PromptInput {
  latents: number;
  words: ArrayLike<number>;
  /** Of the words, for profiles. Default: all of the answer. */
  classes?: readonly WordClass[];
  /** Other latents and replay blocks than the model's own. */
  probe?: SequenceProbe;
}

/** Which packed row of which pass predicts which token; `sequence` is the place in the batch. */
export interface BatchTargets {
  pass: Int32Array;
  row: Int32Array;
  target: Int32Array;
  sequence: Int32Array;
}

/** One replay of some sequences, which are named by their places in the batch. */
export interface BatchReplay {
  result: NativeReplayResult;
  /** Latent step, from 0. */
  step: number;
  sequences: number[];
}

/** What ran: the pass results, the targets with the session's own pass numbers, and the replays. */
export interface BatchRun {
  results: NativePassResult[];
  targets: BatchTargets;
  replays: BatchReplay[];
  /** Of the rows of each sequence. */
  classes: RowClass[][];
  /** Of each sequence, with `keepSteps`. */
  steps?: ReasoningSteps[];
}

export interface BatchOptions {
  /** Default: neither replay nor routing. The session must have been opened for the same preset. */
  preset?: Preset;
  /** Also feed the last word of each sequence, which predicts nothing. Training leaves it out (default). */
  feedLastWord?: boolean;
  /** Compute super-resolution losses (default false). */
  targets?: boolean;
  /** Also return the saliency of every replay (default false). */
  saliency?: boolean;
  /** Return what each sequence reasoned with (default false). The session then keeps the layer inputs of the latents' passes. */
  keepSteps?: boolean;
  /** Of each sequence: rows that take extra passes in place of those that the preset's rule picks; others take none. */
  forcedRoutes?: readonly (readonly SequenceRoute[])[];
  token?: NativeCancelToken | undefined;
  /** May change a pass before it runs (the parity script asks for more rows). */
  adjust?: (pass: NativePass, number: number) => NativePass;
}

interface Running extends Reasoner {
  place: number;
  input: SequenceInput;
  /** Of its latent steps; empty: all is its own. */
  probe: readonly GivenStep[];
}

/**
 * Adds the sequences to a session, encodes their pictures and runs all passes and replays.
 *
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_SHAPE`, `ERR_DTYPE` naming the sequence.
 */
export async function runBatch(session: NativeSession, sequences: readonly SequenceInput[], geometry: ModelGeometry, options: BatchOptions = {}): Promise<BatchRun> {
  check.options('runBatch', options, ['preset', 'feedLastWord', 'targets', 'saliency', 'keepSteps', 'forcedRoutes', 'token', 'adjust']);
  const { preset = PLAIN, token, targets: withTargets = false, saliency = false, keepSteps = false } = options;
  checkBatch(sequences, geometry);
  const forced = options.forcedRoutes && checkForcedRoutes(options.forcedRoutes, sequences.length, preset);
  const form = formOf(preset);
  const running = await startBatch(session, sequences, geometry, preset, withTargets, token);
  const results: NativePassResult[] = [];
  const replays: BatchReplay[] = [];
  const predicted: (Predicted & { pass: number })[] = [];
  const steps: ReasoningSteps[][] = sequences.map(() => []);
  const last = sequences.reduce((most, { latents }) => Math.max(most, latents), 0);
  for (let number = 0; number <= last; number++) {
    const active = running.filter(({ input }) => input.latents >= number);
    if (number > 0) {
      const thinking = active.map((one) => ({ ...one, given: one.probe[number - 1] }));
      const replay = await latentStep(session, thinking, { form, preset, targets: withTargets, saliency, token });
      if (replay) replays.push({ result: replay.result, step: number - 1, sequences: replay.reasoners.map(({ place }) => place) });
    }
    await restartSent(session, active.map(({ cursor }) => cursor), form);
    const packed = packPass(active, number, form, preset, options.feedLastWord ?? false);
    const kept = keepSteps && number > 0 ? packed.sent.filter(({ isLast }) => form === 'cached' || isLast) : [];
    const pass: NativePass = {
      ...packed.pass, ...(kept.length > 0 ? { keepLayerInputs: true } : {}), ...(forced === undefined ? {} : { forcedRoutes: packForcedRoutes(packed.sent, forced, preset) }),
    };
    const result = await session.extend(options.adjust ? options.adjust(pass, number) : pass, token);
    results.push(result);
    predicted.push(...packed.predicted.map((one) => ({ ...one, pass: result.pass })));
    if (kept.length === 0) continue;
    const { data } = await session.read('embeds', result.pass, 0);
    for (const sent of kept) steps[sent.place]!.push(readSteps(sent, running[sent.place]!.cursor.classes, data, geometry.hidden));
  }
  const column = (name: keyof BatchTargets): Int32Array => Int32Array.from(predicted, (one) => one[name]);
  return {
    results, replays, classes: running.map(({ cursor }) => cursor.classes), ...(keepSteps ? { steps: steps.map(joinSteps) } : {}),
    targets: { pass: column('pass'), row: column('row'), target: column('target'), sequence: column('sequence') },
  };
}

/** Pictures encoded, sequences added with their prompts appended, and told what to look at. */
async function startBatch(session: NativeSession, sequences: readonly SequenceInput[], geometry: ModelGeometry, preset: Preset, withPixels: boolean, token: NativeCancelToken | undefined): Promise<Running[]> {
  const { frames, sizes } = packPictures(sequences);
  const probes = sequences.map(({ probe, latents }) => (probe === undefined ? [] : givenSteps(probe, latents, geometry.hidden)));   // copied before anything waits
  let visual = sizes.length > 0 ? await session.encode(frames, sizes, token) : 0;
  const running: Running[] = [];
  for (const [place, input] of sequences.entries()) {
    const cursor = newCursor(session.add());
    visual += appendPrompt(cursor, input, geometry, preset.positions, visual);
    const images = preset.replay && input.latents > 0 && input.probe?.blocks === undefined ? replayedImages(input, geometry, preset.allImages) : [];
    if (images.length > 0) await session.setPictures(cursor.id, picturesToReplay(images, cursor, preset, withPixels));
    running.push({ place, input, cursor, images, probe: probes[place]! });
  }
  return running;
}

interface Predicted { row: number; target: number; sequence: number; }

interface PackedPass { pass: NativePass; predicted: Predicted[]; sent: SentRows[]; }

/** Pass `number`: new rows of the sequences that are still reasoning, and the words of those whose last latent it is. */
function packPass(active: readonly Running[], number: number, form: ReasoningForm, preset: Preset, feedLastWord: boolean): PackedPass {
  const pass = startPass();
  const predicted: Predicted[] = [];
  const sent: SentRows[] = [];
  for (const { place, input, cursor, images } of active) {
    const before = cursor.kind.length;
    const from = form === 'recompute' ? 0 : cursor.sent;
    const { words } = input;
    const isLast = input.latents === number;
    if (isLast) appendWords(cursor, feedLastWord ? words : Array.from(words).slice(0, -1), input.classes);
    const first = sendRows(pass, cursor, form, preset.replay && images.length > 0 && !isLast);
    for (let j = 0; isLast && j < words.length; j++) predicted.push({ row: first + before - 1 + j, target: words[j]!, sequence: place });
    sent.push({ place, from, to: cursor.kind.length, first, isLast });
  }
  return { pass: finishPass(pass), predicted, sent };
}

function checkBatch(sequences: readonly SequenceInput[], geometry: ModelGeometry): void {
  check.array('runBatch', 'sequences', sequences);
  if (sequences.length === 0) fail('ERR_ARGUMENT', 'runBatch', 'Expected at least one sequence but received none');
  sequences.forEach((sequence, n) => {
    const what = `sequence ${n}`;
    check.object('runBatch', what, sequence);
    checkPrompt('runBatch', what, sequence, geometry);
    check.object('runBatch', `words of ${what}`, sequence.words);
    checkIds('runBatch', `word of ${what},`, sequence.words, geometry.vocab);
    check.integer('runBatch', `latents of ${what}`, sequence.latents, 0, MAX_LATENTS);
    if (sequence.probe !== undefined) checkProbe(what, sequence.probe, sequence.latents, geometry.hidden);
  });
}

/** Latent steps of a sequence whose replay has a super-resolution loss, from 0: all that have a block of their own, or the last one if it has. */
function lossSteps(sequence: SequenceInput, geometry: ModelGeometry, preset: Preset): number[] {
  if (!preset.replay || !preset.tokenSr || sequence.latents === 0 || sequence.probe?.blocks !== undefined) return [];
  const tokens = replayedImages(sequence, geometry, preset.allImages).reduce((sum, { columns }) => sum + columns.length, 0);
  const steps = Array.from({ length: sequence.latents }, (_, step) => step);
  return (preset.srSteps === 'last' ? steps.slice(-1) : steps).filter((step) => replayedRows(preset, tokens, step) > 0);
}

/** Sequences that have a super-resolution loss: what its mean is taken over. */
export function countSuperResolved(sequences: readonly SequenceInput[], geometry: ModelGeometry, preset: Preset): number {
  return sequences.filter((sequence) => lossSteps(sequence, geometry, preset).length > 0).length;
}

/** Which super-resolution losses count, and how much each: the mean over a sequence's steps, then over `sequences` of them. */
export interface ReplayLosses {
  replay: Int32Array;
  index: Int32Array;
  /** Sums to 1 over the whole optimiser step. */
  share: Float32Array;
  losses: Float32Array;
}

/**
 * @param count sequences with such a loss in the whole optimiser step, see `countSuperResolved`.
 */
export function replayLosses(run: BatchRun, sequences: readonly SequenceInput[], geometry: ModelGeometry, preset: Preset, count: number): ReplayLosses {
  const steps = sequences.map((sequence) => lossSteps(sequence, geometry, preset));
  const rows = run.replays.flatMap(({ result, step, sequences: places }) => places.flatMap((place, index) => {
    const own = steps[place]!;
    return own.includes(step) ? [{ replay: result.replay, index, share: 1 / (own.length * count), loss: result.srLosses[index]! }] : [];
  }));
  return {
    replay: Int32Array.from(rows, ({ replay }) => replay), index: Int32Array.from(rows, ({ index }) => index),
    share: Float32Array.from(rows, ({ share }) => share), losses: Float32Array.from(rows, ({ loss }) => loss),
  };
}
