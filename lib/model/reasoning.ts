/** Latent reasoning on a session: what a preset asks of it, and the step that every sequence takes before each latent. */
import type { DeviceName } from '../device';
import { fail, guarded } from '../errors';
import type { NativeCancelToken, NativeModel, NativeReplayResult, NativeSession, NativeSessionOptions } from '../native';
import type { ModelGeometry } from './config';
import { extraShapes } from './extras';
import { appendGiven, appendLatent, appendStored, type PromptImage, type ReasoningForm, type SequenceCursor } from './passes';
import { looksAhead, replaySpec, routingSpec, type Preset } from './preset';

/** What training and decoding need of a model; `LatentModel` has it. */
export interface ModelView {
  readonly native: NativeModel;
  readonly geometry: ModelGeometry;
  /** Where its work is done; absent: the CPU. */
  readonly device?: DeviceName;
  /** Switches of replay and routing that the model was made or trained with. */
  readonly preset: Preset;
  openSession(options: NativeSessionOptions): NativeSession;
}

export type SessionKind = Pick<NativeSessionOptions, 'training' | 'recompute' | 'visionGradient' | 'profile'>;

/**
 * Opens a session that reasons as a preset says.
 *
 * @throws {LibError} `ERR_UNSUPPORTED` when the model lacks a router or another parameter that the preset needs.
 */
export function openReasoning(op: string, model: ModelView, preset: Preset, kind: SessionKind): NativeSession {
  const replay = replaySpec(preset);
  const routing = routingSpec(preset);
  const needed = extraShapes(preset, model.geometry.hidden);
  if (needed.length > 0) {
    const shapes = new Map(guarded(() => model.native.parameters()).map(({ name, shape }) => [name, shape]));
    const missing = needed.find(({ name }) => !shapes.has(name));
    if (missing !== undefined) {
      fail('ERR_UNSUPPORTED', op, `Expected a model with parameter '${missing.name}', which the preset's switches need, but received one without; load or create it with this preset and train it, or switch off replay, tokenSr and srAdded, or routedLayers`);
    }
    const differs = needed.find(({ name, shape }) => String(shapes.get(name)) !== String(shape));
    if (differs !== undefined) {
      fail('ERR_SHAPE', op, `Expected parameter '${differs.name}' to have shape [${differs.shape.join(', ')}], as the preset's switches need, but received [${shapes.get(differs.name)!.join(', ')}]; the checkpoint belongs to another model`);
    }
  }
  return model.openSession({
    ...kind, detachLatents: preset.latentGradient === 'detached',
    ...(replay === undefined ? {} : { replay }), ...(routing === undefined ? {} : { routing }),
  });
}

/** How a preset must be run. */
export function formOf(preset: Preset): ReasoningForm {
  return looksAhead(preset) ? 'recompute' : 'cached';
}

/** Rows that one replay step adds to a sequence with `tokens` candidates after `steps` steps before it. */
export function replayedRows(preset: Preset, tokens: number, steps: number): number {
  const { patches, reselectUsed, mode } = preset;
  const selected = reselectUsed ? (patches < tokens ? patches : Math.max(tokens - 1, 0)) : Math.min(patches, Math.max(tokens - steps * patches, 0));
  return mode === 'soft-mix' ? Math.min(selected, 1) : selected;
}

/** A sequence that takes a latent: its images are what replay chooses from (none: no replay block). */
export interface Reasoner {
  cursor: SequenceCursor;
  images: readonly PromptImage[];
  /** Vectors of this step in place of the model's own. */
  given?: GivenStep | undefined;
}

/** [D] each. What is absent is the model's own; a block is given to a reasoner without images. */
export interface GivenStep {
  latent?: Float32Array;
  block?: readonly Float32Array[];
}

/** A replay of some sequences of a step. */
export interface StepReplay<R extends Reasoner> {
  result: NativeReplayResult;
  /** Its sequences, in the order of the result. */
  reasoners: R[];
}

export interface StepOptions {
  form: ReasoningForm;
  preset: Preset;
  /** Compute super-resolution losses. */
  targets: boolean;
  /** Also return the saliency of all image tokens. */
  saliency: boolean;
  token?: NativeCancelToken | undefined;
}

/**
 * One latent step: appends the replay block and the latent to each sequence. They are computed by the pass that follows.
 *
 * The sequences' last pass must have collected saliency where there are images (see `sendRows`).
 */
export async function latentStep<R extends Reasoner>(session: NativeSession, reasoners: readonly R[], options: StepOptions): Promise<StepReplay<R> | undefined> {
  const { form, preset, targets, saliency, token } = options;
  const looking = preset.replay ? reasoners.filter(({ images }) => images.length > 0) : [];
  let replay: StepReplay<R> | undefined;
  if (looking.length > 0) {
    const result = await session.replay(Int32Array.from(looking, ({ cursor }) => cursor.id), { targets, saliency }, token);
    looking.forEach(({ cursor }, n) => appendStored(cursor, result.firstRow[n]!, result.rows[n]!, 'replay'));
    replay = { result, reasoners: looking };
  }
  for (const { cursor, given } of reasoners) if (given?.block) appendGiven(cursor, given.block, 'replay');
  for (const { cursor, given } of reasoners) if (given?.latent) appendGiven(cursor, [given.latent], 'latent');
  const own = reasoners.filter(({ given }) => given?.latent === undefined);
  if (form === 'cached') {
    for (const { cursor } of own) appendLatent(cursor);
  } else if (own.length > 0) {
    const first = await session.keepLatents(Int32Array.from(own, ({ cursor }) => cursor.id));
    own.forEach(({ cursor }, n) => appendStored(cursor, first + n, 1, 'latent'));
  }
  return replay;
}

/** Before a pass of the form 'recompute': the sequences that it runs again forget their rows. */
export async function restartSent(session: NativeSession, cursors: readonly SequenceCursor[], form: ReasoningForm): Promise<void> {
  const again = form === 'recompute' ? cursors.filter(({ sent }) => sent > 0) : [];
  if (again.length > 0) await session.restart(Int32Array.from(again, ({ id }) => id));
}
