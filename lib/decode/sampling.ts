/** Choosing the next token from logits: greedy, or sampled by temperature, top-k, top-p and min-p. Pure and seeded. */
import * as check from '../check';
import { fail } from '../errors';
import { MAX_PENALTY, MIN_PENALTY } from '../model/record';

export interface SamplingOptions {
  /** 0 = greedy (ties to the lowest id). */
  temperature: number;
  /** Keep the k best; 0 = all. */
  topK: number;
  /** Keep the smallest set of best tokens with this share of the probability; 1 = all. */
  topP: number;
  /** Drop tokens less likely than this share of the most likely one; 0 = none. */
  minP: number;
  /** Logits of tokens that were seen (all of the prompt included, image tokens too) are divided by this (0.001 to 1000) when positive, multiplied when negative; 1 = off. */
  repetitionPenalty: number;
}

export const DEFAULT_SAMPLING: SamplingOptions = Object.freeze({
  temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1,
});

/** @throws {LibError} `ERR_RANGE` naming the option. */
export function checkSampling(op: string, options: SamplingOptions): void {
  check.number(op, 'temperature', options.temperature, 0);
  check.integer(op, 'topK', options.topK, 0);
  check.number(op, 'topP', options.topP, Number.MIN_VALUE, 1);
  check.number(op, 'minP', options.minP, 0, 1);
  check.number(op, 'repetitionPenalty', options.repetitionPenalty, MIN_PENALTY, MAX_PENALTY);
}

/**
 * The next token.
 *
 * @param logits [V], not changed.
 * @param seen tokens that the repetition penalty applies to.
 * @param u uniform number in [0, 1); not used by greedy.
 * @throws {LibError} `ERR_RANGE` when a logit is NaN or none is finite.
 */
export function sampleToken(logits: Float32Array, options: SamplingOptions, seen: Iterable<number>, u: number): number {
  const scores = options.repetitionPenalty === 1 ? logits : penalised(logits, seen, options.repetitionPenalty);
  const best = argmax(scores);
  if (options.temperature === 0) return best;
  const weights = new Float64Array(scores.length);
  const top = scores[best] as number;
  for (let id = 0; id < weights.length; id++) weights[id] = Math.exp(((scores[id] as number) - top) / options.temperature);
  return draw(weights, candidates(weights, options), u);
}

function penalised(logits: Float32Array, seen: Iterable<number>, penalty: number): Float32Array {
  const scores = logits.slice();
  for (const id of new Set(seen)) {
    const score = scores[id];
    if (score !== undefined) scores[id] = score > 0 ? score / penalty : score * penalty;
  }
  return scores;
}

function argmax(scores: Float32Array): number {
  let best = -1;
  let top = -Infinity;
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] as number;
    if (score > top) [best, top] = [id, score];
    else if (Number.isNaN(score)) fail('ERR_RANGE', 'sampleToken', `Expected logits without NaN but received NaN for token ${id}`);
  }
  if (best < 0 || top === Infinity) fail('ERR_RANGE', 'sampleToken', `Expected finite logits but received ${best < 0 ? 'none above -Infinity' : 'Infinity'}`);
  return best;
}

/** Ids that may be drawn: all of them in id order, or the kept ones, best first. Weights are relative to the best, which has 1. */
function candidates(weights: Float64Array, { topK, topP, minP }: SamplingOptions): number[] | undefined {
  const limit = topK > 0 ? Math.min(topK, weights.length) : weights.length;
  if (limit === weights.length && topP === 1) return minP === 0 ? undefined : idsAbove(weights, minP);
  let mass = 0;
  if (limit === weights.length) for (const weight of weights) mass += weight;
  // Sorting a vocabulary of 150,000 for each token is slow: sort only what lies above a cut-off that is lowered until it suffices.
  for (let exponent = -4; ; exponent *= 2) {
    const cut = exponent < -600 ? 0 : Math.exp(exponent);
    const ranked = idsAbove(weights, cut).sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
    const kept = keep(weights, ranked, limit, topP, mass);
    if (kept !== undefined) return minP === 0 ? kept : kept.filter((id) => (weights[id] as number) >= minP);
  }
}

/** The first of `ranked` that top-k and top-p leave; undefined when `ranked` is too short to tell. */
function keep(weights: Float64Array, ranked: number[], limit: number, topP: number, mass: number): number[] | undefined {
  const complete = ranked.length >= limit;
  let total = mass;
  if (limit < weights.length) {
    if (!complete) return undefined;
    ranked.length = limit;
    total = ranked.reduce((sum, id) => sum + (weights[id] as number), 0);
  }
  let sum = 0;
  for (const [place, id] of ranked.entries()) {
    sum += weights[id] as number;
    if (sum >= topP * total) return ranked.slice(0, place + 1);
  }
  return complete ? ranked : undefined;
}

function idsAbove(weights: Float64Array, cut: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < weights.length; id++) if ((weights[id] as number) >= cut) ids.push(id);
  return ids;
}

function draw(weights: Float64Array, ids: number[] | undefined, u: number): number {
  let total = 0;
  const count = ids?.length ?? weights.length;
  for (let n = 0; n < count; n++) total += weights[ids?.[n] ?? n] as number;
  let left = u * total;
  let chosen = 0;
  for (let n = 0; n < count; n++) {
    const id = ids?.[n] ?? n;
    const weight = weights[id] as number;
    if (weight > 0) chosen = id;   // rounding may leave `left` at 0 after the last one
    left -= weight;
    if (left < 0) return id;
  }
  return chosen;
}
