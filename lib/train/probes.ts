/**
 * Causal probes of a batch (algorithms, section 10): other vectors in the latent slots, replay blocks of another run or none, extra
 * passes of given rows. And what a run reasoned with, which the next one is given in part.
 */
import * as check from '../check';
import { fail } from '../errors';
import { routes, type Preset } from '../model/preset';
import type { GivenStep } from '../model/reasoning';
import type { RowClass } from '../model/rowClass';
import type { NativeForcedRoute } from '../native';

/** What a sequence reasons with instead of what the model makes. */
export interface SequenceProbe {
  /** [latents, D] inputs of the latent slots. Absent: the model's own hidden states. */
  latents?: Float32Array;
  /**
   * [K, D] replay block of each latent step, of 0 rows where there is none; 'dropped': none at all, and later rows move up. Absent: the
   * model's own replay, chosen by the attention of whatever is in the latent slots.
   */
  blocks?: 'dropped' | readonly Float32Array[];
}

/**
 * Rows of a sequence, rising from 0 at its first prompt token, that take the extra pass `depth` (from 2) of a layer. Only a row that took
 * the pass before can take the next: of depth 3 and 4, rows that are not in the route of the depth before are left out without an error.
 */
export interface SequenceRoute {
  layer: number;
  depth: number;
  rows: ArrayLike<number>;
}

/** What a sequence reasoned with: a `SequenceProbe` of the same run again. */
export interface ReasoningSteps {
  latents: Float32Array;
  blocks: Float32Array[];
}

const PROBE_FIELDS = ['latents', 'blocks'];

function checkVectors(what: string, value: unknown, width: number, rows?: number): void {
  const vectors = check.typedArray('runBatch', what, value, 'Float32Array', rows === undefined ? undefined : rows * width, 'latents*hidden');
  if (vectors.length % width !== 0) fail('ERR_SHAPE', 'runBatch', `Expected ${what} to be rows of hidden = ${width} but received ${vectors.length} elements`);
  const wrong = vectors.findIndex((x) => !Number.isFinite(x));
  if (wrong >= 0) fail('ERR_RANGE', 'runBatch', `Expected ${what} to be finite but received ${vectors[wrong]} at ${wrong}`);
}

/** @param what names the sequence. */
export function checkProbe(what: string, probe: SequenceProbe, latents: number, width: number): void {
  check.options('runBatch', probe, PROBE_FIELDS, `options of the probe of ${what}`);
  if (probe.latents !== undefined) checkVectors(`probe latents of ${what}`, probe.latents, width, latents);
  const { blocks } = probe;
  if (blocks === undefined || blocks === 'dropped') return;
  if (!Array.isArray(blocks)) fail('ERR_ARGUMENT', 'runBatch', `Expected blocks of the probe of ${what} to be 'dropped' or an array but received ${check.show(blocks)}`);
  if (blocks.length !== latents) fail('ERR_SHAPE', 'runBatch', `Expected a block for each of the ${latents} latents of ${what} but received ${blocks.length}; a step without one has a block of 0 rows`);
  blocks.forEach((block, step) => checkVectors(`block ${step} of ${what}`, block, width));
}

function rowsOf(vectors: Float32Array, width: number): Float32Array[] {
  return Array.from({ length: vectors.length / width }, (_, row) => vectors.slice(row * width, (row + 1) * width));
}

/** A checked probe, copied, latent step by latent step. */
export function givenSteps(probe: SequenceProbe, latents: number, width: number): GivenStep[] {
  const { blocks } = probe;
  const rows = probe.latents && rowsOf(probe.latents, width);
  return Array.from({ length: latents }, (_, step): GivenStep => ({
    ...(rows === undefined ? {} : { latent: rows[step]! }), ...(Array.isArray(blocks) ? { block: rowsOf(blocks[step] as Float32Array, width) } : {}),
  }));
}

/** @returns a copy of the routes of each of `count` sequences. */
export function checkForcedRoutes(forced: readonly (readonly SequenceRoute[])[], count: number, preset: Preset): SequenceRoute[][] {
  check.array('runBatch', 'forcedRoutes', forced);
  if (forced.length !== count) fail('ERR_SHAPE', 'runBatch', `Expected forcedRoutes for each of ${count} sequences but received ${forced.length}`);
  return Array.from(forced, (own, n) => {
    check.array('runBatch', `forcedRoutes of sequence ${n}`, own);
    const seen = new Set<string>();
    return Array.from(own, (route, i) => {
      const checked = checkRoute(`forced route ${i} of sequence ${n}`, route, preset);
      const place = `layer ${checked.layer} at depth ${checked.depth}`;
      if (seen.has(place)) fail('ERR_ARGUMENT', 'runBatch', `Expected each layer and depth once in forcedRoutes of sequence ${n} but received ${place} twice`);
      seen.add(place);
      return checked;
    });
  });
}

function checkRoute(what: string, route: SequenceRoute, preset: Preset): SequenceRoute {
  check.object('runBatch', what, route);
  const { layer, depth, rows } = route;
  const layers = routes(preset) ? preset.routedLayers : [];
  if (!layers.includes(layer)) fail('ERR_ARGUMENT', 'runBatch', `Expected layer of ${what} to be a layer that the preset routes, ${layers.join(', ') || 'of which there is none'}, but received ${check.show(layer)}`);
  check.integer('runBatch', `depth of ${what}`, depth, 2, preset.maxDepth);
  check.object('runBatch', `rows of ${what}`, rows);
  for (let k = 0; k < rows.length; k++) check.integer('runBatch', `row ${k} of ${what}`, rows[k], k === 0 ? 0 : rows[k - 1]! + 1);
  return { layer, depth, rows: Array.from(rows) };
}

/** Rows `from` .. `to` of a sequence in a pass; `first` is the packed row of its row 0 (below 0 where that was sent before). */
export interface SentRows {
  place: number;
  from: number;
  to: number;
  first: number;
  /** No rows follow in later passes. */
  isLast: boolean;
}

/**
 * The forced rows that are in a pass, for every layer and depth that the preset routes.
 *
 * @throws {LibError} `ERR_RANGE` for a row that a sequence does not have.
 */
export function packForcedRoutes(sent: readonly SentRows[], forced: readonly (readonly SequenceRoute[])[], preset: Preset): NativeForcedRoute[] {
  for (const { place, to, isLast } of sent) {
    const beyond = forced[place]!.flatMap(({ rows }) => Array.from(rows)).find((row) => row >= to);
    if (isLast && beyond !== undefined) fail('ERR_RANGE', 'runBatch', `Expected forced rows of sequence ${place} to be among its ${to} rows but received ${beyond}`);
  }
  const rowsAt = (layer: number, depth: number): number[] => sent.flatMap(({ place, from, to, first }) => {
    const own = forced[place]!.find((route) => route.layer === layer && route.depth === depth);
    return Array.from(own?.rows ?? []).filter((row) => row >= from && row < to).map((row) => row + first);
  });
  const depths = Array.from({ length: preset.maxDepth - 1 }, (_, n) => n + 2);
  return preset.routedLayers.flatMap((layer) => depths.map((depth) => ({ layer, depth, rows: Int32Array.from(rowsAt(layer, depth)) })));
}

/**
 * The latents and their blocks among the rows that were sent.
 *
 * @param classes of all rows of the sequence.
 * @param inputs [T, D] of the packed rows of the pass.
 */
export function readSteps({ from, to, first }: SentRows, classes: readonly RowClass[], inputs: Float32Array, width: number): ReasoningSteps {
  const steps: ReasoningSteps[] = [];
  let start = from;
  for (let row = from; row < to; row++) {
    if (classes[row] === 'latent') steps.push({ latents: inputs.slice((first + row) * width, (first + row + 1) * width), blocks: [inputs.slice((first + start) * width, (first + row) * width)] });
    if (classes[row] !== 'replay') start = row + 1;
  }
  return joinSteps(steps);
}

/** Steps of one sequence after one another. */
export function joinSteps(parts: readonly ReasoningSteps[]): ReasoningSteps {
  const latents = new Float32Array(parts.reduce((sum, part) => sum + part.latents.length, 0));
  parts.reduce((at, part) => { latents.set(part.latents, at); return at + part.latents.length; }, 0);
  return { latents, blocks: parts.flatMap(({ blocks }) => blocks) };
}
