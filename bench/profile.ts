/** What gradient dynamics cost a training step of the demo's model: with and without, in turn. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { demoTrainingData } from '../lib/cli/demoData';
import { demoPhases } from '../lib/cli/demoPhases';
import { demoConfig, DEMO_SIZES } from '../lib/cli/demoSizes';
import { writeDigitGridTokenizer } from '../lib/data';
import { LatentModel } from '../lib/latentModel';
import { newConfig } from '../lib/model/config';
import { train, type TrainArguments } from '../lib/train';
import { timing, type BenchRow } from './harness';

const STEPS = 30;

/** Seconds of each step. */
async function* stepsOf(model: LatentModel, more: Partial<TrainArguments>): AsyncGenerator<number> {
  const size = DEMO_SIZES.small;
  const stage = demoPhases(size).copies.at(-1)!.stages[0]!;
  const args = { data: demoTrainingData(size, 0), stages: [{ ...stage, steps: STEPS + 2 }], batchSize: size.batchSize, trainVision: true, ...more };
  for await (const event of train(model, args)) if (event.type === 'step') yield event.metrics.milliseconds / 1e3;
}

/** Norms of every step, and the spectra of one, against a step without. */
export async function profileRows(): Promise<BenchRow[]> {
  const folder = mkdtempSync(join(tmpdir(), 'plumbline-bench-'));
  writeDigitGridTokenizer(folder);
  const { preset } = demoPhases(DEMO_SIZES.small).copies.at(-1)!;
  const models = await Promise.all([0, 1, 2].map(() => LatentModel.create(newConfig(demoConfig(DEMO_SIZES.small)), { seed: 0, processor: folder, preset })));
  try {
    const norms = { profileFile: join(folder, 'norms.jsonl'), profileMatricesEvery: 0 };
    const spectra = { profileFile: join(folder, 'spectra.jsonl'), profileMatricesEvery: 1 };
    const running = [{}, norms, spectra].map((more, n) => stepsOf(models[n]!, more));
    const seconds: number[][] = [[], [], []];
    for (let step = 0; step < STEPS + 2; step++) {
      for (const [n, steps] of running.entries()) {
        const { value } = await steps.next();
        if (step >= 2) seconds[n]!.push(value as number);
      }
    }
    for (const steps of running) await steps.return(undefined);
    const [plain, withNorms, withSpectra] = seconds as [number[], number[], number[]];
    const more = (other: number[]): ReturnType<typeof timing> => timing(other.map((value, n) => 100 * (value / plain[n]! - 1)));
    const [cost, dear] = [more(withNorms), more(withSpectra)];
    const range = ({ p10, p90 }: ReturnType<typeof timing>): string => `p10 ${p10.toFixed(1)}, p90 ${p90.toFixed(1)}, ${STEPS} steps in turn`;
    return [
      { name: 'training step, latents + both', what: `demo model, ${DEMO_SIZES.small.batchSize} samples`, value: 1 / timing(plain).median, unit: 'steps/s', seconds: timing(plain) },
      { name: '  with gradient norms', what: 'of every row and layer, statistics and line', value: cost.median, unit: '% more', note: `${range(cost)}; at most 5 % wanted` },
      { name: '  with spectra too', what: 'q, k, v, o; all, easy, hard', value: dear.median, unit: '% more', note: `${range(dear)}; every 50 steps by default, then a fiftieth of it` },
    ];
  } finally {
    for (const model of models) model.dispose();
    rmSync(folder, { recursive: true });
  }
}
