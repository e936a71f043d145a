import * as check from '../check';
import { fail } from '../errors';
import type { NativeRouteInput } from '../native';
import { run, type KernelOptions } from './call';
import { floats, type Floats } from './floats';

export type RouteRule = 'threshold' | 'prefix-topk' | 'topk';

/** What rule 'prefix-topk' remembers of earlier chunks. Plain data: copy it, store it, give it to the next chunk. */
export interface PrefixState {
  version: 1;
  alpha: number;
  /** (B+1) best scores of sequence b are cuBest[b] .. cuBest[b+1]: alpha of them, or as many as there were. */
  cuBest: Int32Array;
  /** Best first, NaN last. */
  best: Float32Array;
}

export interface RouteTokensOptions extends KernelOptions {
  rule: RouteRule;
  /** Scores of sequence b are cuSeqlens[b] .. cuSeqlens[b+1]. Copied. */
  cuSeqlens: Int32Array;
  /** Rule 'threshold', which needs it, only. Taken as float32. */
  threshold?: number;
  /** The other rules, which need it, only: tokens per sequence. */
  alpha?: number;
  /** Rule 'prefix-topk' only: `state` of the chunk before. Default: this is the first chunk. Copied. */
  state?: PrefixState;
}

export interface RouteTokensResult {
  /** Routed rows among all rows of the batch, ascending. */
  rows: Int32Array;
  /** (B+1) routed rows of sequence b are cuRouted[b] .. cuRouted[b+1] of `rows`. */
  cuRouted: Int32Array;
  /** Rule 'topk' only: the same rows, those of each sequence best first. */
  order?: Int32Array;
  /** Rule 'prefix-topk' only: for the next chunk. */
  state?: PrefixState;
}

const FIELDS = ['rule', 'cuSeqlens', 'threshold', 'alpha', 'state', 'signal', 'device'];
const RULES: readonly RouteRule[] = ['threshold', 'prefix-topk', 'topk'];

/**
 * Decides which tokens take another pass and packs their row numbers in position order. 'threshold': score > threshold.
 * 'prefix-topk': among the alpha best of its sequence up to itself, an equal earlier score comes first; causal, and in chunks the same
 * as at once. 'topk': among the alpha best of its whole sequence, ties to the earlier. NaN counts as the lowest score.
 *
 * @param scores (T) of all sequences, f32. Array: copied before this returns; tensor: shared.
 * @returns see {@link RouteTokensResult}. Exact and the same on every run.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`.
 * @example
 * await routeTokens(Float32Array.of(1, 5, 3, 9), { rule: 'threshold', cuSeqlens: Int32Array.of(0, 2, 4), threshold: 2 });
 * // { rows: [1, 2, 3], cuRouted: [0, 1, 3] }
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), RDS
 */
export async function routeTokens(scores: Floats, options: RouteTokensOptions): Promise<RouteTokensResult> {
  const op = 'routeTokens';
  check.options(op, options, FIELDS);
  const rule = check.oneOf(op, 'rule', options?.rule, RULES);
  const cuSeqlens = check.typedArray(op, 'cuSeqlens', options.cuSeqlens, 'Int32Array');
  check.offsets(op, 'cuSeqlens', cuSeqlens, cuSeqlens.at(-1) ?? 0);
  const given = floats(op, 'scores', scores, cuSeqlens.at(-1)!, 'the end of cuSeqlens').native;
  const input = checkRule(op, rule, cuSeqlens, options);
  const { rows, cuRouted, order, cuBest, best } = await run(op, options, (ops, token) => ops.routeTokens(given, input, token));
  if (cuBest !== undefined && best !== undefined) return { rows, cuRouted, state: { version: 1, alpha: input.alpha!, cuBest, best } };
  return order === undefined ? { rows, cuRouted } : { rows, cuRouted, order };
}

function checkRule(op: string, rule: RouteRule, cuSeqlens: Int32Array, options: RouteTokensOptions): NativeRouteInput {
  const refuse = (name: 'threshold' | 'alpha' | 'state'): void => {
    if (options[name] !== undefined) fail('ERR_ARGUMENT', op, `Expected no ${name} with rule '${rule}' but received ${check.show(options[name])}`);
  };
  if (rule !== 'prefix-topk') refuse('state');
  if (rule === 'threshold') {
    refuse('alpha');
    return { rule, cuSeqlens, threshold: check.number(op, 'threshold', options.threshold) };
  }
  refuse('threshold');
  const alpha = check.integer(op, 'alpha', options.alpha, 1, 2 ** 31 - 1);
  if (rule === 'topk') return { rule, cuSeqlens, alpha };
  return { rule, cuSeqlens, alpha, ...checkState(op, options.state, alpha, cuSeqlens.length) };
}

function checkState(op: string, state: PrefixState | undefined, alpha: number, offsets: number): { cuBest: Int32Array; best: Float32Array } {
  if (state === undefined) return { cuBest: new Int32Array(offsets), best: new Float32Array(0) };
  check.object(op, 'state', state);
  if (state.version !== 1) fail('ERR_ARGUMENT', op, `Expected state to have version 1 but received ${check.show(state.version)}`);
  if (state.alpha !== alpha) fail('ERR_RANGE', op, `Expected state to be of alpha = ${alpha} but received ${check.show(state.alpha)}`);
  const cuBest = check.typedArray(op, 'state.cuBest', state.cuBest, 'Int32Array', offsets, 'as many as cuSeqlens');
  const best = check.typedArray(op, 'state.best', state.best, 'Float32Array');
  check.offsets(op, 'state.cuBest', cuBest, best.length);
  for (let b = 0; b + 1 < offsets; b++) {
    const [start, end] = [cuBest[b]!, cuBest[b + 1]!];
    if (end - start > alpha) fail('ERR_RANGE', op, `Expected state to hold at most alpha = ${alpha} scores of sequence ${b} but received ${end - start}`);
    for (let i = start + 1; i < end; i++) {
      const [before, after] = [best[i - 1]!, best[i]!];
      if (after > before || (Number.isNaN(before) && !Number.isNaN(after))) fail('ERR_RANGE', op, `Expected state.best to be best first but received ${before} then ${after} at ${i}`);
    }
  }
  return { cuBest, best };
}
