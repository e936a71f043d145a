/**
 * The one place that builds native passes, for training, decoding and the parity script.
 *
 * A sequence is [prompt | B1 | z1 | B2 | z2 | ... | words] (algorithms, section 2). Its rows are appended to a cursor; `sendRows` puts
 * those that the model has not seen into a pass, or, in the form 'recompute', all of them.
 */
import * as check from '../check';
import { fail } from '../errors';
import { ROW_KIND, type NativePass, type NativePictures } from '../native';
import type { ModelGeometry } from './config';
import type { Picture } from './image';
import { mropePositions, type Positions } from './positions';
import type { Preset } from './preset';
import type { RowClass } from './rowClass';

/** Token ids with one picture token per merged patch, and the pictures in the order of their tokens. */
export interface PromptInput {
  promptIds: ArrayLike<number>;
  pictures: readonly Picture[];
}

/**
 * 'cached': a pass holds new rows only, against the keys and values of those before. 'recompute': every pass holds the whole sequence,
 * which is the official algorithm, and the only form of a preset that looks ahead.
 */
export type ReasoningForm = 'cached' | 'recompute';

/** A sequence on its way: its rows, how many of them the model has seen, and what the next one's position id is. */
export interface SequenceCursor {
  id: number;
  kind: number[];
  index: number[];
  positions: [number[], number[], number[]];
  classes: RowClass[];
  /** Inputs of the rows of kind `embedding`, [D] each, by their index. */
  given: Float32Array[];
  /** Rows that were sent. */
  sent: number;
  /** Rows that went through the decoder, recomputed ones counted again. */
  forwards: number;
  /** Position id minus row number, for the rows after the prompt. */
  delta: number;
}

export function newCursor(id: number): SequenceCursor {
  return { id, kind: [], index: [], positions: [[], [], []], classes: [], given: [], sent: 0, forwards: 0, delta: 0 };
}

/** A pass being collected; `finishPass` makes typed arrays of it. */
export interface PassRows extends Pick<SequenceCursor, 'kind' | 'index' | 'positions' | 'given'> {
  sequences: number[];
  cuSeqlens: number[];
  logitRows: number[];
  saliency: number[];
}

export function startPass(): PassRows {
  return { sequences: [], cuSeqlens: [0], kind: [], index: [], positions: [[], [], []], given: [], logitRows: [], saliency: [] };
}

/** Rows after the prompt advance the three position ids alike: row number + delta. */
function appendRow(cursor: SequenceCursor, kind: number, index: number, rowClass: RowClass): void {
  const position = cursor.kind.length + cursor.delta;
  cursor.kind.push(kind);
  cursor.index.push(index);
  cursor.classes.push(rowClass);
  for (const row of cursor.positions) row.push(position);
}

/** A row whose input is the final hidden state of the last row sent. */
export function appendLatent(cursor: SequenceCursor): void {
  appendRow(cursor, ROW_KIND.latent, 0, 'latent');
}

/** Rows of the session's store: replayed tokens, kept latents. */
export function appendStored(cursor: SequenceCursor, first: number, count: number, rowClass: 'replay' | 'latent'): void {
  for (let i = 0; i < count; i++) appendRow(cursor, ROW_KIND.stored, first + i, rowClass);
}

/** Rows whose inputs are these vectors, [D] each. */
export function appendGiven(cursor: SequenceCursor, vectors: readonly Float32Array[], rowClass: 'replay' | 'latent'): void {
  for (const vector of vectors) appendRow(cursor, ROW_KIND.embedding, cursor.given.push(vector) - 1, rowClass);
}

/** @param classes of the words; those it has none for are of the answer. */
export function appendWords(cursor: SequenceCursor, words: ArrayLike<number>, classes: readonly RowClass[] = []): void {
  for (let i = 0; i < words.length; i++) appendRow(cursor, ROW_KIND.token, words[i] as number, classes[i] ?? 'answer-text');
}

/**
 * Appends a checked prompt and returns the number of visual rows that it used, which start at `firstVisualRow`.
 */
export function appendPrompt(cursor: SequenceCursor, prompt: PromptInput, geometry: ModelGeometry, positionIds: Preset['positions'], firstVisualRow: number): number {
  const { promptIds } = prompt;
  const isPictureToken = (id: number): boolean => id === geometry.imageToken || id === geometry.videoToken;
  const { positions, delta } = promptPositions(prompt, geometry);
  const isSequential = positionIds === 'sequential';
  let visual = firstVisualRow;
  for (let i = 0; i < promptIds.length; i++) {
    const id = promptIds[i] as number;
    cursor.kind.push(isPictureToken(id) ? ROW_KIND.visual : ROW_KIND.token);
    cursor.index.push(isPictureToken(id) ? visual++ : id);
    cursor.classes.push(isPictureToken(id) ? 'image' : 'prompt-text');
    cursor.positions.forEach((row, axis) => row.push(isSequential ? i : positions[axis * promptIds.length + i] as number));
  }
  cursor.delta = isSequential ? 0 : delta;
  return visual - firstVisualRow;
}

/** Moves the rows of a sequence that the next pass computes into it. Returns the packed row of the sequence's row 0 (below 0 where that was sent before). */
export function sendRows(pass: PassRows, cursor: SequenceCursor, form: ReasoningForm, wantsSaliency = false): number {
  const from = form === 'recompute' ? 0 : cursor.sent;
  const first = pass.kind.length - from;
  for (let row = from; row < cursor.kind.length; row++) {
    const [kind, index] = [cursor.kind[row]!, cursor.index[row]!];
    pass.kind.push(kind);
    pass.index.push(kind === ROW_KIND.embedding ? pass.given.push(cursor.given[index]!) - 1 : index);
    cursor.positions.forEach((ids, axis) => pass.positions[axis]!.push(ids[row]!));
  }
  pass.sequences.push(cursor.id);
  pass.cuSeqlens.push(pass.kind.length);
  pass.saliency.push(wantsSaliency ? 1 : 0);
  cursor.forwards += cursor.kind.length - from;
  cursor.sent = cursor.kind.length;
  return first;
}

/** Asks for the logits after the last row sent so far. */
export function wantLogits(pass: PassRows): void {
  pass.logitRows.push(pass.kind.length - 1);
}

export function finishPass(pass: PassRows): NativePass {
  return {
    sequences: Int32Array.from(pass.sequences),
    cuSeqlens: Int32Array.from(pass.cuSeqlens),
    kind: Uint8Array.from(pass.kind),
    index: Int32Array.from(pass.index),
    positions: Int32Array.from(pass.positions.flat()),
    ...(pass.given.length > 0 ? { embeddings: concatenate(pass.given) } : {}),
    ...(pass.logitRows.length > 0 ? { logitRows: Int32Array.from(pass.logitRows) } : {}),
    ...(pass.saliency.includes(1) ? { saliency: Uint8Array.from(pass.saliency) } : {}),
  };
}

function concatenate(vectors: readonly Float32Array[]): Float32Array {
  const width = vectors[0]!.length;
  const all = new Float32Array(vectors.length * width);
  vectors.forEach((vector, n) => all.set(vector, n * width));
  return all;
}

/** Patches of a picture before the merge, as [time, height, width]. */
function gridOf(picture: Picture, geometry: ModelGeometry): [number, number, number] {
  return [Math.ceil(picture.frames / geometry.temporal), picture.height / geometry.patch, picture.width / geometry.patch];
}

/** M-RoPE ids of a prompt. */
export function promptPositions({ promptIds, pictures }: PromptInput, geometry: ModelGeometry): Positions {
  return mropePositions(promptIds, pictures.map((picture) => gridOf(picture, geometry)), geometry, pictures.map(({ secondsPerGrid }) => secondsPerGrid));
}

/** Visual rows that the tower makes of a picture. */
export function visualRowsOf(picture: Picture, geometry: ModelGeometry): number {
  const [time, height, width] = gridOf(picture, geometry);
  return (time * height * width) / geometry.merge ** 2;
}

/** An image of a prompt: where its tokens are, and its merged grid. */
export interface PromptImage {
  picture: Picture;
  /** Place among the prompt's pictures. */
  number: number;
  columns: number[];
  rows: number;
  width: number;
}

/** Images that replay chooses from: all of a prompt, or the last one (official). Videos are not replayed. */
export function replayedImages(prompt: PromptInput, geometry: ModelGeometry, allImages: boolean): PromptImage[] {
  const columns: number[] = [];
  for (let i = 0; i < prompt.promptIds.length; i++) {
    if (prompt.promptIds[i] === geometry.imageToken || prompt.promptIds[i] === geometry.videoToken) columns.push(i);
  }
  let start = 0;
  const images: PromptImage[] = [];
  for (const [number, picture] of prompt.pictures.entries()) {
    const own = columns.slice(start, start + visualRowsOf(picture, geometry));
    start += own.length;
    const unit = geometry.patch * geometry.merge;
    if (prompt.promptIds[own[0] ?? -1] === geometry.imageToken) images.push({ picture, number, columns: own, rows: picture.height / unit, width: picture.width / unit });
  }
  return allImages ? images : images.slice(-1);
}

/**
 * What a sequence looks at, for `setPictures`. The crops of the official code are cut from the resized picture, ours from the original.
 *
 * @throws {LibError} `ERR_SHAPE` for a picture of another size than the preset's fixed grid.
 * @param withPixels also give the pixels, which targets are cut from.
 */
export function picturesToReplay(images: readonly PromptImage[], cursor: SequenceCursor, { crop, grid }: Pick<Preset, 'crop' | 'grid'>, withPixels: boolean): NativePictures {
  for (const { number, rows, width, picture } of images) {
    if (grid === null || (rows === grid && width === grid)) continue;
    fail('ERR_SHAPE', 'replay', `Expected picture ${number} to have the preset's grid of ${grid} x ${grid} image tokens but received ${picture.width}x${picture.height} = ${width} x ${rows} tokens; resize it, or set grid: null`);
  }
  const sources = images.map(({ picture }) => (crop === 'official' ? picture : picture.original ?? picture));
  const columns = images.flatMap((image) => image.columns);
  const originals = new Uint8Array(withPixels ? sources.reduce((sum, { height, width }) => sum + 3 * height * width, 0) : 0);
  let offset = 0;
  for (const { pixels, height, width } of withPixels ? sources : []) {
    originals.set(pixels.subarray(0, 3 * height * width), offset);
    offset += 3 * height * width;
  }
  return {
    columns: Int32Array.from(columns), visualRows: Int32Array.from(columns, (column) => cursor.index[column]!),
    grids: Int32Array.from(images.flatMap(({ rows, width }) => [rows, width])), sizes: Int32Array.from(images.flatMap(({ picture }) => [picture.height, picture.width])),
    originalSizes: Int32Array.from(sources.flatMap(({ height, width }) => [height, width])), ...(withPixels ? { originals } : {}),
  };
}

export function checkIds(op: string, what: string, ids: ArrayLike<number>, vocab: number): void {
  for (let i = 0; i < ids.length; i++) check.integer(op, `${what} ${i}`, ids[i], 0, vocab - 1);
}

function checkPicture(op: string, what: string, picture: Picture, geometry: ModelGeometry): void {
  check.object(op, what, picture);
  const unit = geometry.patch * geometry.merge;
  const { frames, height, width, original } = picture;
  check.integer(op, `frames of ${what}`, frames, 1);
  if (picture.secondsPerGrid !== undefined) check.number(op, `secondsPerGrid of ${what}`, picture.secondsPerGrid, 0);
  for (const [name, side] of [['height', height], ['width', width]] as const) {
    check.integer(op, `${name} of ${what}`, side, 1);
    if (side % unit !== 0) fail('ERR_SHAPE', op, `Expected ${name} of ${what} to be a multiple of ${unit} but received ${side}; resize it with the processor`);
  }
  check.typedArray(op, `pixels of ${what}`, picture.pixels, 'Uint8Array', frames * height * width * 3, 'frames*height*width*3');
  if (original === undefined) return;
  check.object(op, `original of ${what}`, original);
  for (const side of ['height', 'width'] as const) check.integer(op, `${side} of the original of ${what}`, original[side], 1, 2 ** 20);
  check.typedArray(op, `pixels of the original of ${what}`, original.pixels, 'Uint8Array', original.height * original.width * 3, 'height*width*3');
}

/** Checks a prompt against its pictures. `what` names it in errors, e.g. "request 3". */
export function checkPrompt(op: string, what: string, prompt: PromptInput, geometry: ModelGeometry): void {
  const { promptIds, pictures } = prompt;
  if (!(promptIds?.length > 0)) fail('ERR_ARGUMENT', op, `Expected the prompt of ${what} to have at least one token but received none`);
  checkIds(op, `prompt token of ${what},`, promptIds, geometry.vocab);
  check.array(op, `pictures of ${what}`, pictures);
  Array.from(pictures).forEach((picture, n) => checkPicture(op, `picture ${n} of ${what}`, picture, geometry));
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
  pictures.forEach(({ pixels, frames: count, height, width }, n) => {
    if (pixels.length !== 3 * count * height * width) fail('ERR_SHAPE', 'encode', `Expected pixels of picture ${n} of the batch to have frames*height*width*3 = ${3 * count * height * width} elements but received ${pixels.length}; they were transferred away while the batch waited`);
  });
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
