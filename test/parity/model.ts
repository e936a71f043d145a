/** Goldens of one checkpoint that are not batches: vision tower, preprocessing, positions, generation, the optimiser. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { generate, type GenerativeModel } from '../../lib/decode/generate';
import { smartResize } from '../../lib/model/image';
import { mropePositions, type Grid } from '../../lib/model/positions';
import type { NativeAddon, NativeModelSpec } from '../../lib/native';
import { looksAhead, type Preset } from '../../lib/model/preset';
import { openReasoning, type ModelView } from '../../lib/model/reasoning';
import { runBatch, type SequenceInput } from '../../lib/train/batch';
import { pictureOf, presetOf } from './cases';
import { readTensors, type Golden, type Report, type Values } from './goldens';

const MEAN = Float32Array.of(0.48145466, 0.4578275, 0.40821073);
const STD = Float32Array.of(0.26862954, 0.26130258, 0.27577711);
const FACTOR = 28;

/** in.<prefix>0.…, in.<prefix>1.… */
function count(golden: Golden, prefix: string, tensor: string): number {
  let n = 0;
  while (golden.has(`in.${prefix}${n}.${tensor}`)) n++;
  return n;
}

export async function runPreprocess(report: Report, native: NativeAddon): Promise<void> {
  const { golden } = report;
  for (let j = 0; j < count(golden, 'image', 'original'); j++) {
    const [height, width] = golden.shape(`in.image${j}.original`) as [number, number];
    const [high, wide] = golden.shape(`out.image${j}.resized`) as [number, number];
    const resized = await native.ops.resize(golden.u8(`in.image${j}.original`), height, width, high, wide, 'bicubic');
    report.compare(`image${j}.resized`, resized);
    report.compare(`image${j}.rows`, await native.ops.patchRows(resized, 1, high, wide, 14, 2, 2, MEAN, STD));
    report.compare(`image${j}.grid`, [1, high / 14, wide / 14]);
  }
  const sizes = golden.i32('in.sizes');
  const got: number[] = [];
  for (let i = 0; i < sizes.length; i += 4) {
    const [height, width, minPixels, maxPixels] = sizes.subarray(i, i + 4) as unknown as [number, number, number, number];
    const target = smartResize(height, width, { factor: FACTOR, minPixels, maxPixels });
    got.push(target.height, target.width);
  }
  report.compare('sizes', got);
}

export async function runVision(report: Report, native: NativeAddon, model: ModelView): Promise<void> {
  const { golden } = report;
  const pictures = Array.from({ length: count(golden, 'image', 'frames') }, (_, j) => pictureOf(golden, `in.image${j}.frames`));
  const { patch, merge, temporal } = model.geometry;
  await model.native.enableTraining();
  const session = model.openSession({ training: true, recompute: false, detachLatents: false, visionGradient: true });
  try {
    for (const [j, { pixels, frames, height, width }] of pictures.entries()) {
      await session.reset();
      await session.encode(pixels, Int32Array.of(frames, height, width));
      if (golden.has(`out.image${j}.rows`)) report.compare(`image${j}.rows`, await native.ops.patchRows(pixels, frames, height, width, patch, merge, temporal, MEAN, STD));
      report.compare(`image${j}.grid`, [Math.ceil(frames / temporal), height / patch, width / patch]);
      report.compare(`image${j}.tokens`, (await session.read('visual', 0, 0)).data);
      for (let k = 0; golden.has(`out.image${j}.state${k}`); k++) report.compare(`image${j}.state${k}`, (await session.read('visual_state', 0, k)).data);
    }
    await session.reset();
    await session.encode(Uint8Array.from(pictures.flatMap(({ pixels }) => [...pixels])), Int32Array.from(pictures.flatMap(({ frames, height, width }) => [frames, height, width])));
    report.compare('all.tokens', (await session.read('visual', 0, 0)).data);
  } finally {
    session.dispose();
  }
}

/** Grids, and the seconds of videos, in the order of their tokens. */
function picturesInOrder(golden: Golden, name: string, ids: Int32Array, { imageToken, videoToken, merge }: ModelView['geometry']): { grids: Grid[]; seconds: (number | undefined)[] } {
  const queue = (tensor: string): Grid[] => {
    const flat = golden.i32(`in.${name}.${tensor}`);
    return Array.from({ length: flat.length / 3 }, (_, i) => [flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]] as unknown as Grid);
  };
  const images = queue('image_grids');
  const videos = queue('video_grids');
  const videoSeconds = [...golden.f32(`in.${name}.seconds`)];
  const grids: Grid[] = [];
  const seconds: (number | undefined)[] = [];
  for (let i = 0; i < ids.length; ) {
    const isVideo = ids[i] === videoToken;
    const grid = isVideo ? videos.shift() : ids[i] === imageToken ? images.shift() : undefined;
    if (grid === undefined) { i++; continue; }
    grids.push(grid);
    seconds.push(isVideo ? videoSeconds.shift() : undefined);
    i += (grid[0] * grid[1] * grid[2]) / merge ** 2;
  }
  return { grids, seconds };
}

export function runPositions(report: Report, model: ModelView): void {
  const { golden } = report;
  for (const key of golden.names('in.').filter((name) => name.endsWith('.ids'))) {
    const name = key.slice(3, -4);
    const ids = golden.i32(key);
    const { grids, seconds } = picturesInOrder(golden, name, ids, model.geometry);
    const { positions, delta } = mropePositions(ids, grids, model.geometry, seconds);
    report.compare(`${name}.positions`, positions);
    report.compare(`${name}.delta`, [delta]);
  }
}

export async function runGenerate(report: Report, model: GenerativeModel): Promise<void> {
  const { golden } = report;
  for (const key of golden.names('in.').filter((name) => name.endsWith('.prompt'))) {
    const mode = key.slice(3, -'.prompt'.length);
    const { preset: switches, latents } = golden.entry[mode] as { preset: Record<string, unknown>; latents: number };
    const preset = presetOf(switches, model.geometry.layers);
    const request = { promptIds: golden.i32(key), pictures: [pictureOf(golden, `in.${mode}.image.resized`, `in.${mode}.image.original`)] };
    const [result] = await generate(model, [request], {
      latentSteps: latents, maxNewTokens: golden.shape(`out.${mode}.ids`)[0] as number, stopIds: [], preset, recompute: looksAhead(preset),
    });
    report.compare(`${mode}.ids`, result?.ids ?? []);
    // A preset that looks ahead computes earlier rows anew with every word: each word's logits come from a run of its own.
    const words = golden.i32(`out.${mode}.ids`);
    const logits: number[] = [];
    for (const fed of looksAhead(preset) ? Array.from(words, (_, n) => n) : [words.length - 1]) logits.push(...await lastLogits(model, preset, { ...request, latents, words: words.subarray(0, fed + 1) }, looksAhead(preset) ? 1 : words.length));
    report.compare(`${mode}.logits`, logits);
  }
}

/** Logits of the last `count` rows of a sequence, whose last word is not fed. */
async function lastLogits(model: GenerativeModel, preset: Preset, sequence: SequenceInput, count: number): Promise<Float32Array> {
  const session = openReasoning('parity', model, preset, { training: false, recompute: false, visionGradient: false });
  try {
    const run = await runBatch(session, [sequence], model.geometry, {
      preset, adjust: (pass, number) => (number === sequence.latents ? { ...pass, logitRows: Int32Array.from({ length: count }, (_, n) => pass.kind.length - count + n) } : pass),
    });
    return run.results.at(-1)!.logits;
  } finally {
    session.dispose();
  }
}

function checkpointTensors(directory: string): Map<string, Values> {
  const files = readdirSync(directory).filter((name) => /^model.*\.safetensors$/.test(name) || name === 'plumbline.safetensors');
  return new Map(files.flatMap((file) => [...readTensors(join(directory, file))]));
}

/** One clipped AdamW step from given gradients and moments, the parameters beside the backbone included. */
export async function runAdamW(report: Report, native: NativeAddon, spec: NativeModelSpec, checkpoint: string, gradients: Golden): Promise<void> {
  const { golden } = report;
  const names = golden.names('in.first.').map((key) => key.slice('in.first.'.length));
  const extras = names.filter((name) => !name.startsWith('model.') && !name.startsWith('lm_head.'));
  const model = new native.Model({ ...spec, dtype: 'f32', extras: extras.map((name) => ({ name, shape: golden.shape(`in.first.${name}`) })) });
  try {
    const values = checkpointTensors(checkpoint);
    await model.enableTraining();
    for (const { name } of model.parameters()) if (!names.includes(name)) model.setTrainable(name, false);
    for (const name of names) {
      await model.writeParameter(name, 'value', values.get(name) as Float32Array);
      await model.writeParameter(name, 'gradient', gradients.f32(`out.grad.${name}`));
      await model.writeParameter(name, 'first', golden.f32(`in.first.${name}`));
      await model.writeParameter(name, 'second', golden.f32(`in.second.${name}`));
    }
    const options = golden.entry['options'] as { learning_rate: number; beta1: number; beta2: number; epsilon: number; weight_decay: number; max_norm: number };
    const norm = await model.optimizerStep({
      learningRate: options.learning_rate, beta1: options.beta1, beta2: options.beta2, epsilon: options.epsilon, weightDecay: options.weight_decay,
      maxNorm: options.max_norm, step: golden.entry['step'] as number,
    });
    report.compare('norm', [norm]);
    for (const name of names) {
      report.compare(`param.${name}`, await model.readParameter(name, 'value'));
      report.compare(`first.${name}`, await model.readParameter(name, 'first'));
      report.compare(`second.${name}`, await model.readParameter(name, 'second'));
    }
  } finally {
    model.dispose();
  }
}

export function hasCheckpoint(directory: string): boolean { return existsSync(join(directory, 'config.json')); }
