/** Decoding against the floor of reading the weights once per token, and training of the demo's model. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { demoPhases } from '../lib/cli/demoPhases';
import { demoTrainingData } from '../lib/cli/demoData';
import { demoConfig, DEMO_SIZES } from '../lib/cli/demoSizes';
import { writeDigitGridTokenizer } from '../lib/data';
import { newConfig } from '../lib/model/config';
import { LatentModel } from '../lib/latentModel';
import { native } from '../lib/native';
import { runBatch, type SequenceInput } from '../lib/train/batch';
import { planStages } from '../lib/train/curriculum';
import { timing, type BenchRow } from './harness';
import type { Roofs } from './operations';

/** Four layers of Qwen2-VL-2B with its whole vocabulary; the vision tower is a token one, it does not take part. */
const DECODER = {
  text: { hidden: 1536, layers: 4, heads: 12, kvHeads: 2, intermediate: 8960, vocab: 151936, mropeSection: [16, 24, 24], tied: true },
  vision: { depth: 1, width: 64, heads: 4, mlpWidth: 64 },
  tokens: { image: 151655, video: 151656, visionStart: 151652, visionEnd: 151653, eos: 151645, pad: 151643 },
};
const DECODED = 48;

export async function decodeRow({ gigabytesPerSecond }: Roofs): Promise<BenchRow> {
  const { hidden, layers, heads, kvHeads, intermediate, vocab } = DECODER.text;
  const d = hidden / heads;
  const weights = layers * (hidden * d * (heads + 2 * kvHeads) + hidden * heads * d + 3 * hidden * intermediate) + vocab * hidden;
  const model = await LatentModel.create(DECODER, { dtype: 'bf16' });
  const seconds: number[] = [];
  try {
    let last: number | undefined;
    const prompt = Array.from({ length: 128 }, (_, i) => 1000 + i);
    for await (const event of model.stream({ promptIds: prompt }, { maxNewTokens: DECODED, stopIds: [] })) {
      if (event.type !== 'token') continue;
      const now = performance.now();
      if (last !== undefined) seconds.push((now - last) / 1e3);
      last = now;
    }
  } finally {
    model.dispose();
  }
  const measured = timing(seconds.slice(4)); // the first few fill caches and buffers
  const floor = (2 * weights) / (gigabytesPerSecond * 1e9);
  return { name: 'decoding, one request', what: `4 layers, 1536 wide, bf16: ${(2 * weights / 1e9).toFixed(2)} GB of weights a token`, value: 1 / measured.median, unit: 'tokens/s', roof: 1 / floor, seconds: measured };
}

const BATCHES = 4;
const STEPS = 24;

function demoBatches(): SequenceInput[][] {
  const size = DEMO_SIZES.small;
  const data = demoTrainingData(size, 0);
  const stage = planStages(demoPhases(size).explicit.stages, size.batchSize).at(-1)!; // words
  return Array.from({ length: BATCHES }, (_, b) => Array.from({ length: size.batchSize }, (_, i) => {
    const { promptIds, pictures, steps, answer } = data.at(b * size.batchSize + i, { stage, stageStep: 0 });
    return { promptIds, pictures, latents: 0, words: [...steps.flat(), ...answer] };
  }));
}

/** One optimiser step of the demo's model in words; the same batches go to bench/peers/train_step.py when `peerFolder` is given. */
export async function trainingRows(peerFolder: string | undefined): Promise<BenchRow[]> {
  const tokenizer = join(tmpdir(), `plumbline-bench-${process.pid}`);
  writeDigitGridTokenizer(tokenizer);
  const model = await LatentModel.create(newConfig(demoConfig(DEMO_SIZES.small)), { seed: 0, processor: tokenizer });
  try {
    const batches = demoBatches();
    if (peerFolder !== undefined) await writePeer(peerFolder, model, batches);
    await model.native.enableTraining();
    const session = model.openSession({ training: true, recompute: false, detachLatents: false, visionGradient: true });
    const seconds: number[] = [];
    let rows = 0;
    let firstLoss = 0;
    let gemm = 0;
    for (let step = -BATCHES; step < STEPS; step++) { // the first round warms up
      const batch = batches[(step + BATCHES) % BATCHES] as SequenceInput[];
      const gemmBefore = (await native().bench('gemm_time', [], 1))[0] as number;
      const rowsBefore = session.tokenForwards();
      const start = performance.now();
      await model.native.zeroGradients();
      const { targets } = await runBatch(session, batch, model.geometry);
      const { losses } = await session.loss({ pass: targets.pass, row: targets.row, target: targets.target, scale: 1 / targets.row.length });
      await session.backward(0);
      await session.reset();
      await model.native.optimizerStep({ learningRate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, maxNorm: 1, step: step + BATCHES + 1 });
      if (step === -BATCHES) firstLoss = losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
      if (step < 0) continue;
      seconds.push((performance.now() - start) / 1e3);
      rows += session.tokenForwards() - rowsBefore;
      gemm += (await native().bench('gemm_time', [], 1))[0] as number - gemmBefore;
    }
    session.dispose();
    const total = seconds.reduce((sum, value) => sum + value, 0);
    const measured = timing(seconds);
    return [
      { name: 'training step, demo model', what: `${batches[0]?.length} samples of one picture, ${(rows / STEPS).toFixed(0)} rows`, value: rows / total, unit: 'rows/s', seconds: measured, note: `first loss ${firstLoss.toFixed(5)}` },
      { name: '  of it in GEMM', what: 'wall time inside matrix products', value: (100 * gemm) / total, unit: '%', note: `mean ${(1e3 * gemm / STEPS).toPrecision(3)} ms a step` },
    ];
  } finally {
    model.dispose();
  }
}

async function writePeer(folder: string, model: LatentModel, batches: readonly SequenceInput[][]): Promise<void> {
  mkdirSync(folder, { recursive: true });
  await model.save(join(folder, 'model'));
  writeFileSync(join(folder, 'batches.json'), JSON.stringify(batches.map((batch) => batch.map(({ promptIds, words, pictures }) => ({
    prompt: Array.from(promptIds), words: Array.from(words), pictures: pictures.map(({ height, width, pixels }) => ({ height, width, pixels: Buffer.from(pixels).toString('base64') })),
  })))));
}
