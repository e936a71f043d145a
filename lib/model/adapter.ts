/** Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of a model: which layers, of what rank, and how they start. */
import * as check from '../check';
import { fail } from '../errors';
import type { NativeAdapterSpec, NativeExtraSpec } from '../native';
import type { ModelConfig } from './config';
import type { JsonObject } from './jsonReader';
import { parameterShapes } from './parameterShapes';

export interface AdapterOptions {
  /** Width of the detour that each layer gets (default 16). */
  rank?: number;
  /** Its output is scaled by alpha / rank (default: twice the rank). */
  alpha?: number;
  /** Share of the adapter's inputs that training drops (default 0). */
  dropout?: number;
  /**
   * Layers by the end of their names: `q_proj`, `mlp.down_proj`, `layers.3.self_attn.o_proj` (default: all linear layers of the decoder,
   * and of the vision tower where `vision` is set; never the head).
   */
  targets?: readonly string[];
  /** Look for targets in the vision tower too (default false). */
  vision?: boolean;
}

/** One adapted layer. */
export interface AdaptedLayer {
  /** Name of the layer: that of its matrix without `.weight`. */
  readonly target: string;
  readonly rank: number;
  /** alpha / rank. */
  readonly scale: number;
  /** Of the layer's matrix [out, in]. */
  readonly out: number;
  readonly in: number;
}

/** The adapter of a model. */
export interface Adapter {
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly layers: readonly AdaptedLayer[];
  /** Directory of the weights that it stands on. */
  readonly base: string | undefined;
  /** adapter_config.json as it was read; empty for a new adapter. */
  readonly source: JsonObject;
  /** Tensors are named as transformers since 4.52 nests its modules (`model.language_model.*`), or as those before do. */
  readonly isNested: boolean;
}

const OP = 'adapter';
const FIELDS = ['rank', 'alpha', 'dropout', 'targets', 'vision'];
const PREFIX = 'lora.';
/** More is a mistake: the detour would be wider than the layers of any model. */
export const MAX_RANK = 65536;
/** At 1 nothing would be left. */
export const MAX_DROPOUT = 0.999;

/** Linear layers that can have an adapter, by name, with the shape [out, in] of their matrices. */
export type AdaptableLayers = ReadonlyMap<string, { readonly out: number; readonly in: number }>;

/** Those of a model, in order. */
export function adaptableLayers(config: ModelConfig): AdaptableLayers {
  const layers = new Map<string, { out: number; in: number }>();
  for (const { name, shape, role } of parameterShapes(config)) {
    const [out, fanIn] = shape;
    if (role !== 'matrix' || shape.length !== 2 || out === undefined || fanIn === undefined || !/^(model\.layers|visual)\./.test(name)) continue;
    layers.set(name.slice(0, -'.weight'.length), { out, in: fanIn });
  }
  return layers;
}

/**
 * An adapter for a model.
 *
 * @param base directory of the model's weights, which the adapter's files name.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` naming the option, the value and what the model has.
 */
export function makeAdapter(config: ModelConfig, options: AdapterOptions, base: string | undefined): Adapter {
  check.options(OP, options, FIELDS);
  const rank = check.integer(OP, 'rank', options.rank ?? 16, 1, MAX_RANK);
  const alpha = check.number(OP, 'alpha', options.alpha ?? 2 * rank, Number.MIN_VALUE, 1e6);
  const dropout = check.number(OP, 'dropout', options.dropout ?? 0, 0, MAX_DROPOUT);
  const vision = check.boolean(OP, 'vision', options.vision ?? false);
  const all = [...adaptableLayers(config)];
  const candidates = all.filter(([name]) => vision || !name.startsWith('visual.'));
  const names = chosen(candidates.map(([name]) => name), options.targets, all.map(([name]) => name));
  const layers = candidates.filter(([name]) => names.has(name)).map(([target, size]) => Object.freeze({ target, rank, scale: alpha / rank, ...size }));
  return Object.freeze({ rank, alpha, dropout, layers: Object.freeze(layers), base, source: Object.freeze({}), isNested: true });
}

/** @param all those of the vision tower too, for what to do about a target that is only there. */
function chosen(names: readonly string[], targets: readonly string[] | undefined, all: readonly string[]): ReadonlySet<string> {
  const isNamed = (target: string) => (name: string): boolean => name === target || name.endsWith(`.${target}`);
  if (targets === undefined) return new Set(names);
  if (check.array(OP, 'targets', targets).length === 0) fail('ERR_ARGUMENT', OP, 'Expected at least one name in targets but received none. Leave targets out for all linear layers.');
  const found = new Set<string>();
  for (const target of targets) {
    check.string(OP, 'a name in targets', target);
    const matches = names.filter(isNamed(target));
    if (matches.length === 0) {
      const ends = [...new Set(names.map((name) => name.split('.').at(-1)!))];
      const near = check.nearest(target, ends);
      const hint = all.some(isNamed(target)) ? '; set vision: true, because it is in the vision tower' : near === undefined ? '' : `; did you mean '${near}'?`;
      fail('ERR_ARGUMENT', OP, `Expected targets to be ends of the names of linear layers, as ${ends.map((end) => `'${end}'`).join(', ')}, but received ${check.show(target)}${hint}`);
    }
    for (const name of matches) found.add(name);
  }
  return found;
}

/** Names of a layer's two matrices in the addon. */
export function adapterNames(target: string): { a: string; b: string } {
  return { a: `${PREFIX}${target}.A`, b: `${PREFIX}${target}.B` };
}

/** Whether a parameter belongs to an adapter. */
export function isAdapter(name: string): boolean {
  return name.startsWith(PREFIX);
}

/** Whether an adapter has layers in the vision tower. */
export function adaptsVision(adapter: Adapter | undefined): boolean {
  return adapter?.layers.some(({ target }) => target.startsWith('visual.')) ?? false;
}

export function adapterSpecs(adapter: Adapter | undefined): NativeAdapterSpec[] {
  return (adapter?.layers ?? []).map(({ target, rank, scale }) => ({ target, rank, scale, dropout: adapter!.dropout }));
}

/** Its parameters: A [rank, in] and B [out, rank] of each layer. */
export function adapterShapes(adapter: Adapter | undefined): (NativeExtraSpec & { readonly part: 'A' | 'B' })[] {
  return (adapter?.layers ?? []).flatMap(({ target, rank, out, in: fanIn }) => {
    const { a, b } = adapterNames(target);
    return [{ name: a, shape: [rank, fanIn], part: 'A' as const }, { name: b, shape: [out, rank], part: 'B' as const }];
  });
}
