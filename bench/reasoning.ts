/** What looking back and going deeper cost: saliency and routing beside a plain forward pass, cached latents beside recomputed ones. */
import type { Picture } from '../lib/model/image';
import { appendPrompt, finishPass, newCursor, picturesToReplay, replayedImages, sendRows, startPass } from '../lib/model/passes';
import { makePreset, type PresetChanges } from '../lib/model/preset';
import { openReasoning } from '../lib/model/reasoning';
import { LatentModel } from '../lib/latentModel';
import type { NativePassResult, NativeSession } from '../lib/native';
import { timing, type BenchRow, type Timing } from './harness';

/** Four layers of Qwen2-VL-2B; vocabulary and vision tower are token ones, they do not take part. */
const BODY = {
  text: { hidden: 1536, layers: 4, heads: 12, kvHeads: 2, intermediate: 8960, vocab: 4096, mropeSection: [16, 24, 24], tied: true },
  vision: { depth: 1, width: 64, heads: 4, mlpWidth: 64 },
  tokens: { image: 4090, video: 4091, visionStart: 4092, visionEnd: 4093, eos: 4094, pad: 4095 },
};
const PASS_ROWS = 1024;
const GRID = [30, 32] as const;  // 960 image tokens
const REPEATS = 7;

function pictureOf(rows: number, columns: number): Picture {
  const [height, width] = [28 * rows, 28 * columns];
  return { pixels: Uint8Array.from({ length: 3 * height * width }, (_, i) => (i * 2654435761) >>> 24), frames: 1, height, width };
}

function promptOf(rows: number, columns: number, length: number): { promptIds: number[]; pictures: Picture[] } {
  const image = new Array<number>(rows * columns).fill(BODY.tokens.image);
  return { promptIds: [BODY.tokens.visionStart, ...image, BODY.tokens.visionEnd, ...Array.from({ length: length - image.length - 2 }, (_, i) => 7 + i)], pictures: [pictureOf(rows, columns)] };
}

/** Runs a prompt of PASS_ROWS rows in one pass on a sequence of its own; times the pass alone. */
async function forward(model: LatentModel, session: NativeSession, wantsSaliency: boolean, trace = false): Promise<{ seconds: number; result: NativePassResult }> {
  await session.reset();
  const prompt = promptOf(...GRID, PASS_ROWS);
  const visual = await session.encode(prompt.pictures[0]!.pixels, Int32Array.of(1, prompt.pictures[0]!.height, prompt.pictures[0]!.width));
  const cursor = newCursor(session.add());
  appendPrompt(cursor, prompt, model.geometry, 'mrope', visual);
  await session.setPictures(cursor.id, picturesToReplay(replayedImages(prompt, model.geometry, true), cursor, { crop: 'pil', grid: null }, false));
  const pass = startPass();
  sendRows(pass, cursor, 'cached', wantsSaliency);
  const native = { ...finishPass(pass), traceRouting: trace };
  const start = performance.now();
  const result = await session.extend(native);
  return { seconds: (performance.now() - start) / 1e3, result };
}

/** Two ways of the same pass in turn, so that the machine's drift meets both; the ratios pair by pair. */
async function paired(a: () => Promise<number>, b: () => Promise<number>): Promise<{ a: Timing; ratio: Timing }> {
  await a();
  await b();
  const [as, ratios]: [number[], number[]] = [[], []];
  for (let i = 0; i < REPEATS; i++) {
    const first = await a();
    as.push(first);
    ratios.push((await b()) / first);
  }
  return { a: timing(as), ratio: timing(ratios) };
}

/** Sets every routed layer's threshold so that this share of the prompt's rows is above it. */
async function routeShare(model: LatentModel, changes: PresetChanges, share: number): Promise<void> {
  for (const layer of makePreset(changes, BODY.text.layers).routedLayers) {
    const session = open(model, changes);
    const { result } = await forward(model, session, false, true);
    session.dispose();
    const scores = result.routing!.find((trace) => trace.layer === layer)!.scores.slice().sort();
    await model.native.writeParameter(`router.${layer}.threshold`, 'value', Float32Array.of(scores[Math.round((1 - share) * (scores.length - 1))]!));
  }
}

function open(model: LatentModel, changes: PresetChanges): NativeSession {
  return openReasoning('bench', model, makePreset(changes, BODY.text.layers), { training: false, recompute: false, visionGradient: false });
}

const overhead = ({ median, p10, p90 }: Timing): string => `${(100 * (median - 1)).toFixed(2)} % (p10 ${(100 * (p10 - 1)).toFixed(2)}, p90 ${(100 * (p90 - 1)).toFixed(2)})`;

/** Extra time of saliency, and of routing some of the rows on every other layer, in a pass of 1024 rows. */
export async function extraCostRows(): Promise<BenchRow[]> {
  const model = await LatentModel.create(BODY, { preset: {} });
  const rows: BenchRow[] = [];
  try {
    const replayOnly: PresetChanges = { routedLayers: [] };
    const plain = open(model, replayOnly);
    const saliency = await paired(async () => (await forward(model, plain, false)).seconds, async () => (await forward(model, plain, true)).seconds);
    const what = `${PASS_ROWS} rows, 4 layers, 1536 wide, f32`;
    rows.push({ name: 'forward pass', what, value: PASS_ROWS / saliency.a.median, unit: 'rows/s', seconds: saliency.a });
    rows.push({ name: '  with saliency', what: `of ${GRID[0] * GRID[1]} image tokens, all layers`, value: 100 * (saliency.ratio.median - 1), unit: '% more', note: `${overhead(saliency.ratio)}; at most 3 % wanted` });
    for (const share of [0, 0.1, 0.5]) {
      await routeShare(model, {}, share);
      const routed = open(model, {});
      const cost = await paired(async () => (await forward(model, plain, false)).seconds, async () => (await forward(model, routed, false)).seconds);
      const { scored, routed: passed } = await routed.routingFigures();
      routed.dispose();
      rows.push({
        name: '  with routing', what: `${(100 * passed / scored).toFixed(1)} % of the rows on 2 of 4 layers`, value: 100 * (cost.ratio.median - 1), unit: '% more',
        note: `${overhead(cost.ratio)}; at most ${(100 * passed / scored + 5).toFixed(0)} % wanted`,
      });
    }
    plain.dispose();
  } finally {
    model.dispose();
  }
  return rows;
}

/** A prompt of 220 rows (14 x 14 image tokens), 3 latents with 32 replayed tokens each. */
const REQUEST = { grid: [14, 14] as const, prompt: 220, latents: 3 };

/** Cached latent decoding against the official algorithm, which runs the whole prefix again at every step. */
export async function latentRows(): Promise<BenchRow[]> {
  const model = await LatentModel.create(BODY, { preset: { routedLayers: [] } });
  const rows: BenchRow[] = [];
  try {
    const request = promptOf(...REQUEST.grid, REQUEST.prompt);
    const run = async (words: number, recompute: boolean): Promise<{ seconds: number; forwards: number }> => {
      const start = performance.now();
      const { tokenForwards } = await model.generate(request, { latentSteps: REQUEST.latents, maxNewTokens: words, stopIds: [], recompute });
      return { seconds: (performance.now() - start) / 1e3, forwards: tokenForwards };
    };
    for (const [words, note] of [[1, 'as the released Qwen2-VL code: latents only are recomputed'], [7, 'as the released Qwen2.5-VL code: every word is recomputed too']] as const) {
      const cached = await run(words, false);
      const again = await run(words, true);
      const measured = await paired(async () => (await run(words, false)).seconds, async () => (await run(words, true)).seconds);
      rows.push({
        name: 'latent decoding, cached', what: `prompt ${REQUEST.prompt}, ${REQUEST.latents} latents of 33 rows, ${words} word(s): ${cached.forwards} rows`,
        value: measured.ratio.median, unit: 'times as fast', seconds: measured.a, note: `recomputed ${again.forwards} rows = ${(again.forwards / cached.forwards).toFixed(2)} times as many; ${note}`,
      });
    }
  } finally {
    model.dispose();
  }
  return rows;
}
