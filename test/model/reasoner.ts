/** Small models whose routers, step vectors and super-resolution do something, and sequences for them. */
import type { LatentModel } from '../../lib/latentModel';
import type { Picture } from '../../lib/model/image';
import type { PresetChanges, PresetName } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import type { NativeRoutingTrace, NativeSession } from '../../lib/native';
import { mix } from '../../lib/random';
import { runBatch, type SequenceInput } from '../../lib/train/batch';
import { IMAGE, noise, tinyModel, VIDEO, type TinyOptions } from '../train/tinyModel';

/**
 * Four layers, weights large enough that results differ by more than rounding, and nothing beside the backbone at zero. Router scores
 * stay below about 1: raw gates multiply a row by its score, which grows with the row, so that larger ones overflow at depth 4.
 */
export async function reasoner(preset: PresetName | PresetChanges, options: TinyOptions = {}): Promise<LatentModel> {
  const model = await tinyModel({ layers: 4, initializerRange: 0.15, ...options, preset });
  for (const [n, { name }] of model.native.parameters().entries()) {
    if (/^(token_sr|step|router)\./.test(name) && !name.endsWith('.threshold')) await model.native.initialize(name, 'normal', /^router.\d+.(weight|bias)/.test(name) ? 0.03 : 0.1, 100 + n);
  }
  return model;
}

export function picture(seed: number, rows: number, columns: number, original?: readonly [height: number, width: number]): Picture {
  const [height, width] = [28 * rows, 28 * columns];
  const made = { pixels: noise(seed, height * width * 3), frames: 1, height, width };
  return original === undefined ? made : { ...made, original: { pixels: noise(seed + 1, original[0] * original[1] * 3), height: original[0], width: original[1] } };
}

export function words(seed: number, count: number): number[] {
  return Array.from({ length: count }, (_, n) => mix(seed, n) % 40);
}

/** A prompt of `text` words around pictures of merged [rows, columns]; a third number makes it a video of so many frames. */
export function prompt(seed: number, grids: readonly (readonly [number, number, number?])[], text = 4): Pick<SequenceInput, 'promptIds' | 'pictures'> {
  const pictures = grids.map(([rows, columns, frames = 1], n): Picture => {
    if (frames > 1) return { pixels: noise(mix(seed, n), frames * rows * columns * 784 * 3), frames, height: 28 * rows, width: 28 * columns };
    return picture(mix(seed, n) % 1000, rows, columns, [20 * rows + 7, 31 * columns + 5]);
  });
  const places = grids.flatMap(([rows, columns, frames = 1]) => [42, ...new Array<number>(rows * columns * Math.ceil(frames / 2)).fill(frames > 1 ? VIDEO : IMAGE), 43]);
  return { promptIds: [...words(seed, text), ...places, ...words(seed + 1, 2)], pictures };
}

/** Different pictures, latents, words; without pictures, without latents, without words. */
export const RAGGED: readonly SequenceInput[] = [
  { ...prompt(1, [[2, 3]]), latents: 2, words: words(11, 3) },
  { ...prompt(2, []), latents: 1, words: words(12, 2) },
  { ...prompt(3, [[1, 2], [2, 2]], 7), latents: 3, words: words(13, 4) },
  { ...prompt(4, [[2, 1]], 1), latents: 0, words: words(14, 2) },
  { ...prompt(5, [[1, 1]]), latents: 2, words: [] },
];

/** What every extra pass scored and routed of a batch. */
export async function traces(model: LatentModel, sequences: readonly SequenceInput[]): Promise<NativeRoutingTrace[]> {
  const session = openReasoning('test', model, model.preset, { training: false, recompute: false, visionGradient: false });
  try {
    const { results } = await runBatch(session, sequences, model.geometry, { preset: model.preset, feedLastWord: true, adjust: (pass) => ({ ...pass, traceRouting: true }) });
    return results.flatMap(({ routing }) => routing ?? []);
  } finally {
    session.dispose();
  }
}

/**
 * Sets each layer's threshold so that about half its scores are above it and none is close, in any pass: rounding routes no row
 * elsewhere. Layer after layer, as each one's scores depend on what was routed before.
 *
 * @param scored what the model scores and routes now.
 */
export async function settleThresholds(model: LatentModel, scored: () => Promise<readonly NativeRoutingTrace[]>, margin = 1e-4): Promise<void> {
  for (const layer of model.preset.rule === 'threshold' ? model.preset.routedLayers : []) {
    const scores = async (): Promise<number[]> => (await scored()).filter((trace) => trace.layer === layer).flatMap((trace) => [...trace.scores]).sort((a, b) => a - b);
    const own = await scores();
    const middle = Math.floor(own.length / 2);
    const gaps = own.slice(1).map((high, i) => ({ at: (high + own[i]!) / 2, width: high - own[i]!, distance: Math.abs(i - middle) }))
      .filter(({ width }) => width > 2 * margin).sort((a, b) => a.distance - b.distance);
    let settled = false;
    for (const { at } of gaps) {
      await model.native.writeParameter(`router.${layer}.threshold`, 'value', Float32Array.of(at));
      settled = (await scores()).every((score) => Math.abs(score - at) > margin);
      if (settled) break;
    }
    if (!settled) throw new Error(`no threshold of layer ${layer} is ${margin} away from all scores`);
  }
}

export function worstGap(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let worst = 0;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Number.isNaN(a[i]! - b[i]!) ? Infinity : Math.abs(a[i]! - b[i]!));
  return worst;
}

/** A generator of integers below `end`. */
export function dice(seed: number): (end: number) => number {
  let draw = 0;
  return (end) => mix(seed, draw++) % end;
}

export async function disposing<T>(session: NativeSession, use: (session: NativeSession) => Promise<T>): Promise<T> {
  try {
    return await use(session);
  } finally {
    session.dispose();
  }
}
