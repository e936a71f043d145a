/**
 * The one place that builds native passes, for training, decoding and the parity script.
 *
 * A sequence is [prompt | z1 | z2 | ... | words]. Pass 0 holds every prompt; pass t the latent z_t of every sequence that has at
 * least t latents; a sequence's words join the pass of its last latent (pass 0 without latents). So n latents add exactly n rows,
 * and a batch takes max(latents) + 1 passes.
 */
import { ROW_KIND, type NativeCancelToken, type NativePass, type NativePassResult, type NativeModel, type NativeSession, type NativeSessionOptions } from '../native';
import type { ModelGeometry } from '../model/config';
import { MAX_LATENTS } from '../model/record';
import type { Picture } from '../model/image';
import { mropePositions } from '../model/positions';
import * as check from '../check';
import { fail } from '../errors';

/** Token ids with one picture token per merged patch, and the pictures in the order of their tokens. */
export interface PromptInput {
  promptIds: ArrayLike<number>;
  pictures: readonly Picture[];
}

/** One sequence of a batch. */
export interface SequenceInput extends PromptInput {
  latents: number;
  words: ArrayLike<number>;
}

/** What training and decoding need of a model; `LatentModel` has it. */
export interface ModelView {
  readonly native: NativeModel;
  readonly geometry: ModelGeometry;
  openSession(options: NativeSessionOptions): NativeSession;
}

/** How far a sequence has come: rows so far, and position id minus row index for the rows that follow. */
export interface SequenceCursor {
  id: number;
  length: number;
  delta: number;
}

/** A pass being collected; `finishPass` makes typed arrays of it. */
export interface PassRows {
  sequences: number[];
  cuSeqlens: number[];
  kind: number[];
  index: number[];
  positions: [number[], number[], number[]];
  logitRows: number[];
}

export function startPass(): PassRows {
  return { sequences: [], cuSeqlens: [0], kind: [], index: [], positions: [[], [], []], logitRows: [] };
}

/** Ends the rows of `cursor` in this pass. Call after appending them. */
export function closeSequence(pass: PassRows, cursor: SequenceCursor): void {
  pass.sequences.push(cursor.id);
  pass.cuSeqlens.push(pass.kind.length);
}

/** Rows after the prompt advance the three position ids alike: row index + delta. */
function appendRow(pass: PassRows, cursor: SequenceCursor, kind: number, index: number): void {
  const position = cursor.length + cursor.delta;
  pass.kind.push(kind);
  pass.index.push(index);
  for (const row of pass.positions) row.push(position);
  cursor.length++;
}

export function appendLatent(pass: PassRows, cursor: SequenceCursor): void {
  appendRow(pass, cursor, ROW_KIND.latent, 0);
}

export function appendWords(pass: PassRows, cursor: SequenceCursor, words: ArrayLike<number>): void {
  for (let i = 0; i < words.length; i++) appendRow(pass, cursor, ROW_KIND.token, words[i] as number);
}

/** Asks for the logits after the last row appended so far. */
export function wantLogits(pass: PassRows): void {
  pass.logitRows.push(pass.kind.length - 1);
}

/**
 * Appends a checked prompt and returns the number of visual rows that it used, which start at `firstVisualRow`.
 */
export function appendPrompt(pass: PassRows, cursor: SequenceCursor, prompt: PromptInput, geometry: ModelGeometry, firstVisualRow: number): number {
  const { promptIds } = prompt;
  const grids = prompt.pictures.map((picture) => gridOf(picture, geometry));
  const isPictureToken = (id: number): boolean => id === geometry.imageToken || id === geometry.videoToken;
  const { positions, delta } = mropePositions(promptIds, grids, geometry);
  let visual = firstVisualRow;
  for (let i = 0; i < promptIds.length; i++) {
    const id = promptIds[i] as number;
    pass.kind.push(isPictureToken(id) ? ROW_KIND.visual : ROW_KIND.token);
    pass.index.push(isPictureToken(id) ? visual++ : id);
    pass.positions.forEach((row, axis) => row.push(positions[axis * promptIds.length + i] as number));
  }
  cursor.length = promptIds.length;
  cursor.delta = delta;
  return visual - firstVisualRow;
}

export function finishPass(pass: PassRows): NativePass {
  return {
    sequences: Int32Array.from(pass.sequences),
    cuSeqlens: Int32Array.from(pass.cuSeqlens),
    kind: Uint8Array.from(pass.kind),
    index: Int32Array.from(pass.index),
    positions: Int32Array.from(pass.positions.flat()),
    ...(pass.logitRows.length > 0 ? { logitRows: Int32Array.from(pass.logitRows) } : {}),
  };
}

/** Patches of a picture before the merge, as [time, height, width]. */
function gridOf(picture: Picture, geometry: ModelGeometry): [number, number, number] {
  return [Math.ceil(picture.frames / geometry.temporal), picture.height / geometry.patch, picture.width / geometry.patch];
}

/** Visual rows that the tower makes of a picture. */
function visualRowsOf(picture: Picture, geometry: ModelGeometry): number {
  const [time, height, width] = gridOf(picture, geometry);
  return (time * height * width) / geometry.merge ** 2;
}

function checkIds(op: string, what: string, ids: ArrayLike<number>, vocab: number): void {
  for (let i = 0; i < ids.length; i++) check.integer(op, `${what} ${i}`, ids[i], 0, vocab - 1);
}

function checkPicture(op: string, what: string, picture: Picture, geometry: ModelGeometry): void {
  check.object(op, what, picture);
  const unit = geometry.patch * geometry.merge;
  const { frames, height, width } = picture;
  check.integer(op, `frames of ${what}`, frames, 1);
  for (const [name, side] of [['height', height], ['width', width]] as const) {
    check.integer(op, `${name} of ${what}`, side, 1);
    if (side % unit !== 0) fail('ERR_SHAPE', op, `Expected ${name} of ${what} to be a multiple of ${unit} but received ${side}; resize it with the processor`);
  }
  check.typedArray(op, `pixels of ${what}`, picture.pixels, 'Uint8Array', frames * height * width * 3, 'frames*height*width*3');
}

/** Checks a prompt against its pictures. `what` names it in errors, e.g. "request 3". */
export function checkPrompt(op: string, what: string, prompt: PromptInput, geometry: ModelGeometry): void {
  const { promptIds, pictures } = prompt;
  if (!(promptIds?.length > 0)) fail('ERR_ARGUMENT', op, `Expected the prompt of ${what} to have at least one token but received none`);
  checkIds(op, `prompt token of ${what},`, promptIds, geometry.vocab);
  check.array(op, `pictures of ${what}`, pictures);
  pictures.forEach((picture, n) => checkPicture(op, `picture ${n} of ${what}`, picture, geometry));
  let tokens = 0;
  for (let i = 0; i < promptIds.length; i++) {
    if (promptIds[i] === geometry.imageToken || promptIds[i] === geometry.videoToken) tokens++;
  }
  const rows = pictures.reduce((sum, picture) => sum + visualRowsOf(picture, geometry), 0);
  if (tokens !== rows) {
    fail('ERR_SHAPE', op, `Expected the prompt of ${what} to have ${rows} picture tokens, one per merged patch of its ${pictures.length} picture(s), but received ${tokens}`);
  }
}

/** Pictures of all prompts as the arguments of `session.encode`. */
export function packPictures(prompts: readonly PromptInput[]): { frames: Uint8Array; sizes: Int32Array } {
  const pictures = prompts.flatMap((prompt) => prompt.pictures);
  const frames = new Uint8Array(pictures.reduce((sum, picture) => sum + picture.pixels.length, 0));
  const sizes = new Int32Array(pictures.length * 3);
  let offset = 0;
  pictures.forEach((picture, n) => {
    frames.set(picture.pixels, offset);
    offset += picture.pixels.length;
    sizes.set([picture.frames, picture.height, picture.width], n * 3);
  });
  return { frames, sizes };
}

/** Which packed row of which pass predicts which token; `sequence` is the place in the batch. */
export interface BatchTargets {
  pass: Int32Array;
  row: Int32Array;
  target: Int32Array;
  sequence: Int32Array;
}

export interface PackedBatch {
  passes: NativePass[];
  targets: BatchTargets;
}

export interface PackOptions {
  /** Also feed the last word of each sequence, which predicts nothing. Training leaves it out. */
  feedLastWord: boolean;
  /** First visual row of the batch's pictures, as `session.encode` returned it. */
  firstVisualRow: number;
}

/**
 * Packs sequences of any prompt lengths, picture counts, latent counts and word counts into passes.
 *
 * @param ids native sequence ids, one per sequence.
 * @returns passes in order, and the targets with pass numbers that count from 0.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_SHAPE`, `ERR_DTYPE` naming the sequence.
 */
export function packBatch(sequences: readonly SequenceInput[], ids: readonly number[], geometry: ModelGeometry, options: PackOptions): PackedBatch {
  checkBatch(sequences, geometry);
  return pack(sequences, ids, geometry, options);
}

function pack(sequences: readonly SequenceInput[], ids: readonly number[], geometry: ModelGeometry, options: PackOptions): PackedBatch {
  const passes: NativePass[] = [];
  const targets = { pass: [] as number[], row: [] as number[], target: [] as number[], sequence: [] as number[] };
  const cursors = sequences.map((_, n): SequenceCursor => ({ id: ids[n] as number, length: 0, delta: 0 }));
  const last = sequences.reduce((most, { latents }) => Math.max(most, latents), 0);
  let visual = options.firstVisualRow;
  for (let number = 0; number <= last; number++) {
    const pass = startPass();
    sequences.forEach((sequence, n) => {
      if (sequence.latents < number) return;
      const cursor = cursors[n] as SequenceCursor;
      if (number === 0) visual += appendPrompt(pass, cursor, sequence, geometry, visual);
      else appendLatent(pass, cursor);
      if (sequence.latents === number) {
        const { words } = sequence;
        for (let j = 0; j < words.length; j++) {
          targets.pass.push(number);
          targets.row.push(pass.kind.length - 1 + j);
          targets.target.push(words[j] as number);
          targets.sequence.push(n);
        }
        appendWords(pass, cursor, options.feedLastWord ? words : Array.from(words).slice(0, -1));
      }
      closeSequence(pass, cursor);
    });
    passes.push(finishPass(pass));
  }
  return {
    passes,
    targets: {
      pass: Int32Array.from(targets.pass), row: Int32Array.from(targets.row),
      target: Int32Array.from(targets.target), sequence: Int32Array.from(targets.sequence),
    },
  };
}

function checkBatch(sequences: readonly SequenceInput[], geometry: ModelGeometry): void {
  check.array('packBatch', 'sequences', sequences);
  if (sequences.length === 0) fail('ERR_ARGUMENT', 'packBatch', 'Expected at least one sequence but received none');
  sequences.forEach((sequence, n) => {
    const what = `sequence ${n}`;
    check.object('packBatch', what, sequence);
    checkPrompt('packBatch', what, sequence, geometry);
    checkIds('packBatch', `word of ${what},`, sequence.words, geometry.vocab);
    check.integer('packBatch', `latents of ${what}`, sequence.latents, 0, MAX_LATENTS);
  });
}

/** What ran: the pass results, and the targets with the session's own pass numbers. */
export interface BatchRun {
  results: NativePassResult[];
  targets: BatchTargets;
}

/**
 * Adds the sequences to a session, encodes their pictures and runs all passes.
 *
 * @param adjust may change a pass before it runs (the parity script asks for more rows).
 */
export async function runBatch(
  session: NativeSession, sequences: readonly SequenceInput[], geometry: ModelGeometry,
  options: { feedLastWord?: boolean; token?: NativeCancelToken | undefined; adjust?: (pass: NativePass, number: number) => NativePass } = {},
): Promise<BatchRun> {
  const { token } = options;
  checkBatch(sequences, geometry);
  const { frames, sizes } = packPictures(sequences);
  const firstVisualRow = sizes.length > 0 ? await session.encode(frames, sizes, token) : 0;
  const ids = sequences.map(() => session.add());
  const { passes, targets } = pack(sequences, ids, geometry, { feedLastWord: options.feedLastWord ?? false, firstVisualRow });
  const results: NativePassResult[] = [];
  for (const [number, pass] of passes.entries()) {
    results.push(await session.extend(options.adjust ? options.adjust(pass, number) : pass, token));
  }
  return { results, targets: { ...targets, pass: targets.pass.map((number) => (results[number] as NativePassResult).pass) } };
}
