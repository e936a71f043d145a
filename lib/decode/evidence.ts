/**
 * What a model looked at while it reasoned (algorithms, section 8): per latent step the attention to each picture, the tokens that
 * were replayed, the window, the words nearest to the latent; per routed layer the rows that went deeper. Plain JSON.
 */
import { fail } from '../errors';
import type { PromptImage } from '../model/passes';
import { routes, type Preset } from '../model/preset';
import type { NativeReplayResult, NativeRoutingTrace } from '../native';

/** Pixels of the picture as it was given (of the resized one where crops are cut from that): x1, y1, x2, y2, the ends outside. */
export type Box = readonly [x1: number, y1: number, x2: number, y2: number];

export interface EvidenceImage {
  /** Place among the request's pictures. */
  picture: number;
  /** Merged grid: one image token each. */
  rows: number;
  columns: number;
  /** Of the picture that boxes refer to. */
  height: number;
  width: number;
}

export interface ReplayedPatch {
  /** Place in `Evidence.images`. */
  image: number;
  row: number;
  column: number;
  /** What the token was multiplied with. */
  weight: number;
  box: Box;
}

export interface EvidenceWindow {
  image: number;
  row: number;
  column: number;
  /** In merged patches. */
  height: number;
  width: number;
  /** Replayed patches inside. */
  patches: number;
  box: Box;
}

export interface NearWord {
  id: number;
  text?: string;
  /** Of the softmax over the whole vocabulary. */
  probability: number;
}

export interface LatentEvidence {
  /** From 1. */
  step: number;
  /** Per image, row-major on its grid: the last row's attention, averaged over layers and heads (SCF-VR, arXiv 2604.10500). Empty without replay. */
  saliency: number[][];
  /** In the order of the block. */
  replayed: ReplayedPatch[];
  /** Absent when nothing was replayed. */
  window?: EvidenceWindow;
  /** What the latent would say: its likeliest words through the language-model head, best first. */
  words: NearWord[];
}

export interface LayerEvidence {
  layer: number;
  /** Number of the pass, from 2. */
  depth: number;
  /** Rows of the sequence (prompt, replay, latents, words) that took it, ascending. */
  rows: number[];
}

/** Version 1. */
export interface Evidence {
  version: 1;
  /** Images that replay chose from. */
  images: EvidenceImage[];
  steps: LatentEvidence[];
  /** Every layer with routing and every extra pass that it may make, in order: none may have taken it. */
  routing: LayerEvidence[];
}

export const NEAR_WORDS = 5;

export function startEvidence(images: readonly PromptImage[], preset: Preset): Evidence {
  const isCropOfResized = preset.crop === 'official';
  const depths = Array.from({ length: preset.maxDepth - 1 }, (_, n) => n + 2);
  return {
    version: 1, steps: [],
    routing: routes(preset) ? preset.routedLayers.flatMap((layer) => depths.map((depth) => ({ layer, depth, rows: [] }))) : [],
    images: images.map(({ picture, number, rows, width: columns }) => {
      const { height, width } = isCropOfResized ? picture : picture.original ?? picture;
      return { picture: number, rows, columns, height, width };
    }),
  };
}

/** Pixels of some patches: edges floor(c * width / columns), as crops are cut; at least one pixel. */
function boxOf({ rows, columns, height, width }: EvidenceImage, row: number, column: number): Box {
  const x1 = Math.floor((column * width) / columns);
  const y1 = Math.floor((row * height) / rows);
  return [x1, y1, Math.max(Math.floor(((column + 1) * width) / columns), x1 + 1), Math.max(Math.floor(((row + 1) * height) / rows), y1 + 1)];
}

/** Image and place on its grid of an index among a sequence's image tokens. */
function patchOf(images: readonly EvidenceImage[], index: number): Omit<ReplayedPatch, 'weight'> {
  let rest = index;
  for (const [image, of] of images.entries()) {
    const tokens = of.rows * of.columns;
    if (rest < tokens) {
      const row = Math.floor(rest / of.columns);
      const column = rest % of.columns;
      return { image, row, column, box: boxOf(of, row, column) };
    }
    rest -= tokens;
  }
  return fail('ERR_INTERNAL', 'evidence', `Expected an image token of the sequence but received ${index}`);
}

/** One latent step; `place` is the sequence's place in the replay, undefined when it had none. */
export function latentEvidence(evidence: Evidence, step: number, words: NearWord[], replay: { result: NativeReplayResult; place: number; saliencyStart: number } | undefined): LatentEvidence {
  const { images } = evidence;
  if (replay === undefined) return { step, saliency: [], replayed: [], words };
  const { result: { cuSelected, selected, weights, windows, boxes, saliency }, place, saliencyStart } = replay;
  let start = saliencyStart;
  const grids = images.map(({ rows, columns }) => Array.from(saliency?.subarray(start, (start += rows * columns)) ?? []));
  const replayed = Array.from(selected.subarray(cuSelected[place]!, cuSelected[place + 1]!), (index, n): ReplayedPatch => {
    const { image, row, column, box } = patchOf(images, index);
    return { image, row, column, weight: weights[cuSelected[place]! + n]!, box };
  });
  if (replayed.length === 0) return { step, saliency: grids, replayed, words };
  const [image, row, column, height, width, patches] = windows.subarray(6 * place, 6 * place + 6) as unknown as [number, number, number, number, number, number];
  return { step, saliency: grids, replayed, words, window: { image, row, column, height, width, patches, box: [...boxes.subarray(4 * place, 4 * place + 4)] as unknown as Box } };
}

/** The likeliest words after a row. */
export function nearWords(logits: Float32Array, decode: ((ids: readonly number[]) => string) | undefined): NearWord[] {
  const best: number[] = [];
  let top = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    top = Math.max(top, logits[id]!);
    if (best.length === NEAR_WORDS && !(logits[id]! > logits[best.at(-1)!]!)) continue;
    const at = best.findIndex((other) => logits[id]! > logits[other]!);
    best.splice(at < 0 ? best.length : at, 0, id);
    best.length = Math.min(best.length, NEAR_WORDS);
  }
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - top);
  return best.map((id) => ({ id, ...(decode === undefined ? {} : { text: decode([id]) }), probability: Math.exp(logits[id]! - top) / sum }));
}

/**
 * Adds what one pass routed of one sequence, whose packed rows are `start` .. `end` and whose row 0 is packed row `first`.
 *
 * @param replaces the pass held the whole sequence again: what earlier passes routed counts no more.
 */
export function addRouting(evidence: Evidence, traces: readonly NativeRoutingTrace[], { start, end, first, replaces }: { start: number; end: number; first: number; replaces: boolean }): void {
  if (replaces) for (const entry of evidence.routing) entry.rows = [];
  for (const { layer, depth, routed } of traces) {
    const { rows } = evidence.routing.find((entry) => entry.layer === layer && entry.depth === depth)!;
    for (const row of routed) if (row >= start && row < end) rows.push(row - first);
  }
}
