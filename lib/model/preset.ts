/**
 * Presets: every switch of latent reasoning, visual replay and depth routing as plain frozen data. The three named ones differ in
 * data only; nothing anywhere asks for a preset's name.
 *
 * Sources: arXiv 2604.10500 (*paper*), its authors' released code (*official*), and the choices made here (*default*).
 */
import * as check from '../check';
import { LibError, fail } from '../errors';
import type { NativeReplaySpec, NativeRoutingSpec } from '../native';
import { isObject, type JsonObject } from './jsonReader';

export type PresetName = 'default' | 'paper' | 'official';

/** A full set of switches, checked against a model's number of layers. */
export interface Preset {
  /** The named preset that this one started from; a label, decides nothing. */
  readonly name: PresetName;

  /** Position ids. 'mrope': M-RoPE in the prompt, then one by one; 'sequential': row numbers, pictures too (official). */
  readonly positions: 'mrope' | 'sequential';
  /** 'through': the loss trains the states that latents were copied from; 'detached': it does not (official). */
  readonly latentGradient: 'through' | 'detached';
  /** 'through': the replay weights carry gradient into the attention that they come from; 'detached': they do not. */
  readonly saliencyGradient: 'through' | 'detached';

  /** Replay image tokens before each latent (SCF-VR, paper section 3.2). */
  readonly replay: boolean;
  /** K, tokens replayed per latent step. Paper: 32. */
  readonly patches: number;
  /** W, side of the window of spatial coherence, in merged patches. Paper: 3; official: 4. */
  readonly window: number;
  /** Side of a fixed square grid, in merged patches (official: 10); null: each picture's own grid. */
  readonly grid: number | null;
  /** Weights of the K tokens. 'softmax' of the raw probabilities, which sums to 1 (paper); 'mean-preserving': sums to K, so that tokens keep their norm. */
  readonly weights: 'mean-preserving' | 'softmax';
  /** 'patches': K weighted tokens, one row each; 'soft-mix': their weighted sum in one row. */
  readonly mode: 'patches' | 'soft-mix';
  /** Rows of a block. 'score': best first; 'cuda-topk': by index, the K-th best last, as PyTorch's CUDA topk leaves them (official). */
  readonly blockOrder: 'score' | 'cuda-topk';
  /** Tokens that were replayed before stay in the running with weight 0, and K is at most N - 1 (official). */
  readonly reselectUsed: boolean;
  /** All pictures of a sequence compete for the K places; false: only the last picture is looked at (official). */
  readonly allImages: boolean;

  /** Token super-resolution: the loss |F(b) - u|^2 / D against the encoded crop u exists (paper section 3.2). */
  readonly tokenSr: boolean;
  /** b is the mean of the 'weighted' tokens (paper) or of the 'unweighted' ones (official). */
  readonly srInput: 'weighted' | 'unweighted';
  /** Latent steps that have the loss: 'all' (paper) or the 'last' (official). */
  readonly srSteps: 'all' | 'last';
  /** F(b) is added to the replayed tokens, in inference too (default only). */
  readonly srAdded: boolean;
  /** Gradient flows into the target u, that is into the vision tower (official). */
  readonly targetGradient: boolean;
  /** How the window is cut out. 'pil': 8-bit bilinear of the original picture; 'official': f32 of the resized one, truncated. */
  readonly crop: 'pil' | 'official';
  /** lambda, weight of the super-resolution loss beside the cross entropy. */
  readonly srWeight: number;

  /** Layers with routing (RDS, paper section 3.3), ascending from 0. Given as 'odd': 1, 3, 5, ... */
  readonly routedLayers: readonly number[];
  /**
   * Which tokens take another pass. 'threshold': score above the layer's threshold; 'prefix-topk': among the alpha best so far;
   * 'topk': the alpha best of the whole sequence, which looks ahead (paper, official).
   */
  readonly rule: 'threshold' | 'prefix-topk' | 'topk';
  /** Score of a token: 'linear' D -> 1, or 'mlp' D -> D/4 -> 1 with ReLU (paper). */
  readonly router: 'linear' | 'mlp';
  /** Tokens per sequence, layer and pass under the two top-k rules. Official: 32. */
  readonly alpha: number;
  /** Passes through a routed layer, the ordinary one included: 1 (no routing) to 4. Paper: 2. */
  readonly maxDepth: number;
  /** g of score s: 'sigmoid', 'raw' s (paper), or 'softmax-sequence' over the whole sequence, which looks ahead (official). */
  readonly gate: 'sigmoid' | 'raw' | 'softmax-sequence';
  /** 'interpolate': h + g (Block(h + e) - h); 'scaled': h + g Block(h) (1 + e) (paper); 'plain': h + g Block(h) (official). */
  readonly fusion: 'interpolate' | 'scaled' | 'plain';
  /** Outputs are written back in score order although they were computed in position order: a bug of the official code. */
  readonly misordered: boolean;
  /** Share of tokens that the rule 'threshold' aims at: thresholds follow the (1 - share) quantile of the scores. 0 to 1. */
  readonly targetFraction: number;
  /** beta: how far a threshold moves towards that quantile in one optimiser step. 0 to 1. */
  readonly thresholdRate: number;
  /** mu, weight of the mean squared router score in the loss, which keeps scores bounded; with accumulation the mean over the batches' means. Paper, official: 0. */
  readonly routerPenalty: number;
}

/** Switches as they are given: the routed layers may be 'odd', whatever the number of layers. */
export type PresetSwitches = Omit<Preset, 'routedLayers'> & { readonly routedLayers: 'odd' | readonly number[] };
/** Some switches; the rest comes from the preset `name`, or from what they are applied to. */
export type PresetChanges = Partial<PresetSwitches>;

const DEFAULT: PresetSwitches = Object.freeze({
  name: 'default', positions: 'mrope', latentGradient: 'through', saliencyGradient: 'through',
  replay: true, patches: 32, window: 3, grid: null, weights: 'mean-preserving', mode: 'patches', blockOrder: 'score', reselectUsed: false, allImages: true,
  tokenSr: true, srInput: 'weighted', srSteps: 'all', srAdded: true, targetGradient: false, crop: 'pil', srWeight: 1,
  routedLayers: 'odd', rule: 'threshold', router: 'linear', alpha: 32, maxDepth: 2, gate: 'sigmoid', fusion: 'interpolate', misordered: false,
  targetFraction: 0.1, thresholdRate: 0.1, routerPenalty: 1e-4,
});

/** The named presets. `makePreset` resolves them for a model. */
export const PRESETS: Readonly<Record<PresetName, PresetSwitches>> = Object.freeze({
  default: DEFAULT,
  paper: Object.freeze({
    ...DEFAULT, name: 'paper', weights: 'softmax', srAdded: false, rule: 'topk', router: 'mlp', gate: 'raw', fusion: 'scaled', routerPenalty: 0,
  }),
  official: Object.freeze({
    ...DEFAULT, name: 'official', positions: 'sequential', latentGradient: 'detached', window: 4, grid: 10, weights: 'softmax', blockOrder: 'cuda-topk',
    reselectUsed: true, allImages: false, srInput: 'unweighted', srSteps: 'last', srAdded: false, targetGradient: true, crop: 'official',
    rule: 'topk', gate: 'softmax-sequence', fusion: 'plain', misordered: true, routerPenalty: 0,
  }),
});

/** Neither replay nor routing: a checkpoint that records no switches. */
export const PLAIN: Preset = Object.freeze({ ...DEFAULT, replay: false, routedLayers: Object.freeze([]) });

/** More is a mistake: rows of one block, side of a window. */
const MAX_SIDE = 65536;
const CHOICES = {
  positions: ['mrope', 'sequential'], latentGradient: ['through', 'detached'], saliencyGradient: ['through', 'detached'],
  weights: ['mean-preserving', 'softmax'], mode: ['patches', 'soft-mix'], blockOrder: ['score', 'cuda-topk'],
  srInput: ['weighted', 'unweighted'], srSteps: ['all', 'last'], crop: ['pil', 'official'],
  rule: ['threshold', 'prefix-topk', 'topk'], router: ['linear', 'mlp'], gate: ['sigmoid', 'raw', 'softmax-sequence'], fusion: ['interpolate', 'scaled', 'plain'],
} as const satisfies { [K in keyof Preset]?: readonly Preset[K][] };
const FLAGS = ['replay', 'reselectUsed', 'allImages', 'tokenSr', 'srAdded', 'targetGradient', 'misordered'] as const satisfies (keyof Preset)[];
/** Of the addon, which keeps the alpha best scores of every sequence, and counts a table of a fixed grid's sides. */
const [MAX_ALPHA, MAX_GRID, MAX_PENALTY] = [2 ** 20, 4096, 1e6];
const COUNTS = { patches: [1, MAX_SIDE], window: [1, MAX_SIDE], alpha: [1, MAX_ALPHA], maxDepth: [1, 4] } as const satisfies { [K in keyof Preset]?: readonly [number, number] };
const NUMBERS = { srWeight: [0, MAX_PENALTY], targetFraction: [0, 1], thresholdRate: [0, 1], routerPenalty: [0, MAX_PENALTY] } as const satisfies { [K in keyof Preset]?: readonly [number, number] };
const SWITCHES = Object.keys(DEFAULT);

/**
 * Resolves a preset for a model.
 *
 * @param wanted the name of a preset, or switches that differ from those of `name`, or of `base` when there is no name.
 * @param layers decoder layers of the model, which `routedLayers` is checked against.
 * @param base what changes without a name are applied to (default: the preset 'default').
 * @returns frozen data; `routedLayers` is a list.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` naming the switch, what it should be and what it is.
 * @example makePreset({ name: 'paper', patches: 16 }, 28).routedLayers  // [1, 3, ..., 27]
 */
export function makePreset(wanted: PresetName | PresetChanges, layers: number, base: PresetSwitches = DEFAULT): Preset {
  check.integer('preset', 'layers', layers, 1, 4096);
  const changes: PresetChanges = typeof wanted === 'string' ? { name: wanted } : wanted;
  if (!isObject(changes)) fail('ERR_ARGUMENT', 'preset', `Expected a preset to be a name or an object of switches but received ${check.show(wanted)}`);
  const unknown = Object.keys(changes).find((key) => !SWITCHES.includes(key));
  if (unknown !== undefined) {
    const hint = check.nearest(unknown, SWITCHES);
    fail('ERR_ARGUMENT', 'preset', `Expected the switches of a preset, ${SWITCHES.join(', ')}, but received ${check.show(unknown)}${hint === undefined ? '' : `; did you mean '${hint}'?`}`);
  }
  const from = Object.hasOwn(changes, 'name') ? PRESETS[presetName('preset', 'name', changes.name)] : base;
  return resolve('preset', (key) => key, { ...from, ...changes }, layers);
}

function presetName(op: string, what: string, value: unknown): PresetName {
  return check.oneOf(op, what, value, Object.keys(PRESETS) as PresetName[]);
}

/** Checks every switch. `what` says how a switch is called in messages. */
function resolve(op: string, what: (key: string) => string, given: PresetSwitches, layers: number): Preset {
  for (const [key, choices] of Object.entries(CHOICES)) check.oneOf(op, what(key), given[key as keyof Preset], choices);
  for (const key of FLAGS) check.boolean(op, what(key), given[key]);
  for (const [key, [min, max]] of Object.entries(COUNTS)) check.integer(op, what(key), given[key as keyof Preset], min, max);
  for (const [key, [min, max]] of Object.entries(NUMBERS)) check.number(op, what(key), given[key as keyof Preset], min, max);
  if (given.grid !== null) check.integer(op, what('grid'), given.grid, 1, MAX_GRID);
  // The bug pairs the rows of a score-ordered selection, which only 'topk' makes, with outputs that are added.
  if (given.misordered && (given.rule !== 'topk' || given.fusion === 'interpolate')) {
    fail('ERR_ARGUMENT', op, `Expected ${what('misordered')} to be false unless rule is 'topk' and fusion 'plain' or 'scaled' but received true with '${given.rule}' and '${given.fusion}'`);
  }
  return Object.freeze({ ...given, routedLayers: resolveLayers(op, what('routedLayers'), given.routedLayers, layers) });
}

function resolveLayers(op: string, what: string, given: unknown, layers: number): readonly number[] {
  if (given === 'odd') return Object.freeze(Array.from({ length: Math.floor(layers / 2) }, (_, i) => 2 * i + 1));
  if (!Array.isArray(given)) return fail('ERR_ARGUMENT', op, `Expected ${what} to be 'odd' or an array of layers but received ${check.show(given)}`);
  const list = Array.from(given, (layer: unknown, i) => check.integer(op, `layer ${i} of ${what}`, layer, 0, layers - 1));
  list.forEach((layer, i) => {
    if (i > 0 && layer <= list[i - 1]!) fail('ERR_ARGUMENT', op, `Expected ${what} to rise, each layer once, but received ${layer} after ${list[i - 1]}`);
  });
  return Object.freeze(list);
}

/** A preset that came from `makePreset` (or `PLAIN`), not one of `PRESETS`, whose layers are not known yet. */
function resolved(preset: Preset): Preset {
  const layers: unknown = isObject(preset) ? preset['routedLayers'] : undefined;
  if (!Array.isArray(layers)) fail('ERR_ARGUMENT', 'preset', `Expected a preset of makePreset but received ${isObject(preset) ? `one with routedLayers ${check.show(layers)}` : check.show(preset)}`);
  return preset;
}

/** Whether tokens are chosen by later ones too: such a preset is run by recomputing the whole sequence at every step. */
export function looksAhead(preset: Preset): boolean {
  return routes(preset) && (preset.rule === 'topk' || preset.gate === 'softmax-sequence');
}

/** Whether any layer makes an extra pass. */
export function routes(preset: Preset): boolean {
  const { routedLayers, maxDepth } = resolved(preset);
  return routedLayers.length > 0 && maxDepth >= 2;
}

/** Replay for `openSession`; undefined when it is off. */
export function replaySpec(preset: Preset): NativeReplaySpec | undefined {
  if (!resolved(preset).replay) return undefined;
  const { patches, window, grid, weights, mode, blockOrder, reselectUsed, saliencyGradient, tokenSr, srInput, srAdded, targetGradient, crop } = preset;
  return {
    patches, window, grid: grid ?? 0, weights, mix: mode === 'soft-mix', reselectUsed, topkOrder: blockOrder === 'cuda-topk',
    saliencyGradient: saliencyGradient === 'through', tokenSr, srInput, srAdded, targetGradient, officialCrop: crop === 'official',
  };
}

/** Routing for `openSession`; undefined when no layer makes an extra pass. */
export function routingSpec(preset: Preset): NativeRoutingSpec | undefined {
  if (!routes(preset)) return undefined;
  const { routedLayers: layers, rule, router, alpha, maxDepth, gate, fusion, misordered } = preset;
  return { layers, rule, router, alpha, maxDepth, gate, fusion, misordered };
}

/** The switches for plumbline.json, without the name. */
export function presetJson(preset: Preset): Record<string, unknown> {
  const { name: _, routedLayers, ...rest } = preset;
  return { ...rest, routedLayers: [...routedLayers] };
}

/**
 * Reads `preset` and `switches` of plumbline.json.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming the key; `ERR_UNSUPPORTED` for a switch that this version does not know.
 */
export function parsePreset(name: unknown, switches: unknown, layers: number): Preset {
  const file = 'plumbline.json';
  if (!isObject(switches)) return fail('ERR_CHECKPOINT', 'load', `Expected switches in ${file} to be an object but received ${check.show(switches)}. ${REMEDY}`);
  const unknown = Object.keys(switches).find((key) => key === 'name' || !SWITCHES.includes(key));
  if (unknown !== undefined) fail('ERR_UNSUPPORTED', 'load', `Expected switches in ${file} that this version knows but received ${check.show(unknown)}. Update plumbline.`);
  try {
    const given = { name: presetName('load', `preset in ${file}`, name), ...ownSwitches(switches) };
    return resolve('load', (key) => `switches.${key} in ${file}`, given, layers);
  } catch (error) {
    if (!(error instanceof LibError)) throw error;
    throw new LibError('ERR_CHECKPOINT', `${error.message}. ${REMEDY}`, { cause: error });
  }
}

const REMEDY = 'Correct the file, or save the checkpoint again.';

/** Exactly the switches: one that is missing is undefined, and refused like any other wrong value. */
function ownSwitches(switches: JsonObject): Omit<PresetSwitches, 'name'> {
  return Object.fromEntries(SWITCHES.filter((key) => key !== 'name').map((key) => [key, Object.hasOwn(switches, key) ? switches[key] : undefined])) as unknown as Omit<PresetSwitches, 'name'>;
}
