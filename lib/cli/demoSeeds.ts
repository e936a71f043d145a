/** The demo with several seeds, one folder each, and what they have in common. */
import { join } from 'node:path';
import { fail } from '../errors';
import { writeJson } from '../model/files';
import { prepareRunFolder, runDemo, type DemoOptions, type DemoResult } from './demo';
import { mean } from './demoFigures';
import type { DemoMode } from './demoPhases';
import type { Reporter } from './reporter';

/** Values of the seeds, in their order. */
export interface Spread {
  mean: number;
  /** Sample standard deviation (n - 1). */
  sd: number;
  values: number[];
}

/** Accuracy, as a share; the rest beside it. */
export interface SummaryRow extends Spread {
  name: DemoMode;
  arSteps: Spread;
  /** Per answer, in batches and one question at a time. */
  milliseconds: Spread;
  millisecondsAlone: Spread;
}

export interface DemoSummary {
  version: 1;
  seeds: number[];
  rows: SummaryRow[];
}

/**
 * Runs the seeds `options.seed` .. `options.seed + count - 1` in `out/seed-<k>` and writes `out/summary.json`.
 *
 * @param run another `runDemo`, for tests.
 */
export async function runSeeds(options: DemoOptions, count: number, reporter: Reporter, run: typeof runDemo = runDemo): Promise<DemoSummary> {
  await prepareRunFolder(options, 'several seeds');
  const results: DemoResult[] = [];
  for (let n = 0; n < count; n++) {
    const seed = options.seed + n;
    const named: Reporter = { ...reporter, phase: (text) => reporter.phase(`Seed ${seed} (${n + 1} of ${count}): ${text}`) };
    results.push(await run({ ...options, seed, out: join(options.out, `seed-${seed}`) }, named));
  }
  const summary = summaryOf(results);
  await writeJson(join(options.out, 'summary.json'), summary);
  return summary;
}

/** @param results of the same size, at least two. */
export function summaryOf(results: readonly DemoResult[]): DemoSummary {
  if (results.length < 2) fail('ERR_ARGUMENT', 'demo', `Expected results of at least two seeds but received ${results.length}`);
  const rows = results[0]!.rows.map(({ name }): SummaryRow => {
    const own = results.map((result) => result.rows.find((row) => row.name === name) ?? fail('ERR_ARGUMENT', 'demo', `Expected a row '${name}' of every seed but received none of seed ${result.seed}`));
    return {
      name, ...spreadOf(own.map(({ evaluation }) => evaluation.overall.share)), arSteps: spreadOf(own.map(({ evaluation }) => evaluation.arStepsPerAnswer)),
      milliseconds: spreadOf(own.map(({ evaluation }) => evaluation.millisecondsPerAnswer)), millisecondsAlone: spreadOf(own.map(({ alone }) => alone.millisecondsPerAnswer)),
    };
  });
  return { version: 1, seeds: results.map(({ seed }) => seed), rows };
}

function spreadOf(values: number[]): Spread {
  const centre = mean(values);
  return { mean: centre, sd: Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1)), values };
}
