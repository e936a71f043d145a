/** Pure parts of the demo: trainings as data, figures of a training, several seeds. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DemoOptions, DemoResult } from '../../lib/cli/demo';
import { figuresOf } from '../../lib/cli/demoFigures';
import { demoPhases, stepsOf } from '../../lib/cli/demoPhases';
import { runSeeds, summaryOf } from '../../lib/cli/demoSeeds';
import { DEMO_SIZES, scaledTo } from '../../lib/cli/demoSizes';
import { summaryTable } from '../../lib/cli/demoTable';
import { wilson } from '../../lib/evaluate';
import { makePreset, PLAIN, PRESETS } from '../../lib/model/preset';
import type { StepMetrics } from '../../lib/train';
import { planStages } from '../../lib/train';

const SIZES = [...Object.values(DEMO_SIZES), scaledTo(DEMO_SIZES.small, 1)];

describe('phases', () => {
  test.each(SIZES)('the copies have the same steps, rates and schedule (size %#)', (size) => {
    const { copies } = demoPhases(size);
    expect(copies.map(({ mode }) => mode)).toEqual(['no reasoning', 'latents', 'latents + replay', 'latents + routing', 'latents + both']);
    const budgets = copies.map(({ stages }) => planStages(stages, size.batchSize).flatMap(({ steps, learningRate }) => new Array<number>(steps).fill(learningRate)));
    for (const budget of budgets) expect(budget).toEqual(budgets[0]);
    expect(new Set(copies.map(stepsOf))).toEqual(new Set([size.stageSteps * size.maxSteps + size.lastStageSteps]));
    for (const { stages } of copies) expect([stages[0]!.warmupSteps, stages.at(-1)!.finalRate, stages.at(-1)!.steps]).toEqual([50, 0.05, size.lastStageSteps]);
    const thinking = copies.slice(1);
    for (const { stages, latentSteps } of thinking) expect([stages, latentSteps]).toEqual([thinking[0]!.stages, size.maxSteps * size.latentsPerStep]);
    expect(new Set([...copies, demoPhases(size).explicit].map(({ folder }) => folder)).size).toBe(6);
  });
  test('they differ in replay and routing, and in nothing else', () => {
    const size = DEMO_SIZES.small;
    const { explicit, copies } = demoPhases(size);
    const presets = [explicit, ...copies].map(({ preset }) => makePreset(preset, 4));
    const rest = { patches: size.patches, window: size.window };
    expect(presets.slice(0, 3)).toEqual(new Array(3).fill({ ...PLAIN, ...rest }));
    expect(presets.slice(3)).toEqual([
      { ...PLAIN, ...rest, replay: true }, { ...PLAIN, ...rest, routedLayers: [1, 3] }, { ...PRESETS.default, ...rest, routedLayers: [1, 3] },
    ]);
  });
  test.each(SIZES)('the smallest picture has something to replay for each latent but the last (size %#)', ({ task, patches, maxSteps, latentsPerStep }) => {
    const side = (of: number | readonly [number, number]): number => (typeof of === 'number' ? of : of[0]);
    expect(patches * (maxSteps * latentsPerStep - 2)).toBeLessThan(side(task.rows) * side(task.columns));
  });
});

describe('figures of a training', () => {
  const step = (n: number, more: Partial<StepMetrics> = {}): StepMetrics => ({
    step: n, stage: 's', stageStep: n, loss: n, targets: 1, accuracy: 0, learningRate: 1, gradientNorm: 1, samples: 1, rows: 1, milliseconds: 10 * n, ...more,
  });
  const routed = makePreset({ replay: false }, 4);
  test('means over all, over the last quarter, over what follows the first', () => {
    const shares = [0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.12, 0.08];
    const steps = shares.map((routedFraction, n) => step(n + 1, { routedFraction, ...(n % 2 === 0 ? { srLoss: n } : {}) }));
    expect(figuresOf(steps, routed)).toEqual({
      steps: 8, seconds: 0.36, millisecondsPerStep: 45, loss: 7.5, isFinite: true, srLoss: 3, srLossLastQuarter: 6,
      routing: { target: 0.1, lastQuarter: expect.closeTo(0.1, 12), afterFirstQuarter: expect.closeTo(0.1, 12), isNearTarget: true },
    });
    expect(figuresOf(steps, PLAIN).routing).toBeUndefined();
  });
  test.each([[0.079, false], [0.081, true], [0.119, true], [0.121, false]])('a share of %f: near the target is %s', (routedFraction, isNearTarget) => {
    const steps = Array.from({ length: 4 }, (_, n) => step(n + 1, { routedFraction: n === 0 ? 0.9 : routedFraction }));
    expect(figuresOf(steps, routed).routing?.isNearTarget).toBe(isNearTarget);
  });
  test.each([[{ loss: NaN }], [{ loss: null as unknown as number }], [{ srLoss: null as unknown as number }]])('%j is not finite', (more) => {
    expect(figuresOf([step(1), step(2, more)], PLAIN).isFinite).toBe(false);
  });
  test('of no steps nothing is claimed', () => expect(figuresOf([], PLAIN)).toMatchObject({ steps: 0, isFinite: false }));
});

describe('several seeds', () => {
  function resultOf(seed: number, right: number): DemoResult {
    const row = (name: string, share: number): object => ({ name, evaluation: { overall: wilson(share, 10), arStepsPerAnswer: 6 + seed, millisecondsPerAnswer: 2 * seed }, alone: { count: 1, millisecondsPerAnswer: 5 } });
    return { seed, rows: [row('explicit words', right), row('latents', 5)] } as unknown as DemoResult;
  }
  test('mean and sample standard deviation', () => {
    const summary = summaryOf([resultOf(1, 7), resultOf(2, 9), resultOf(3, 8)]);
    expect(summary).toEqual({
      version: 1, seeds: [1, 2, 3], rows: [
        {
          name: 'explicit words', mean: expect.closeTo(0.8, 12), sd: expect.closeTo(0.1, 12), values: [0.7, 0.9, 0.8],
          arSteps: { mean: 8, sd: 1, values: [7, 8, 9] }, milliseconds: { mean: 4, sd: 2, values: [2, 4, 6] }, millisecondsAlone: { mean: 5, sd: 0, values: [5, 5, 5] },
        },
        expect.objectContaining({ name: 'latents', mean: 0.5, sd: 0, values: [0.5, 0.5, 0.5] }),
      ],
    });
    expect(summaryTable(summary)).toContain('80.0 ± 10.0 %  70.0 %, 90.0 %, 80.0 %        8.0 ± 1.0  4.00 ± 2.00        5.00 ± 0.00\n');
  });
  test('one seed has no deviation; a row that a seed lacks is an error', () => {
    const code = (call: () => unknown): unknown => {
      try {
        return call();
      } catch (error) {
        return [(error as { code: string }).code, (error as Error).message];
      }
    };
    expect(code(() => summaryOf([resultOf(1, 1)]))).toEqual(['ERR_ARGUMENT', '[demo] Expected results of at least two seeds but received 1']);
    expect(code(() => summaryOf([resultOf(1, 1), { ...resultOf(2, 1), rows: [] }]))).toEqual(['ERR_ARGUMENT', "[demo] Expected a row 'explicit words' of every seed but received none of seed 2"]);
  });
  test('each seed runs in a folder of its own', async () => {
    const out = mkdtempSync(join(tmpdir(), 'plumbline-seeds-'));
    const runs: DemoOptions[] = [];
    const phases: string[] = [];
    const reporter = { phase: (text: string) => phases.push(text), progress: () => {} };
    try {
      const summary = await runSeeds({ size: 'small', out, seed: 4, resume: true }, 3, reporter as never, async (options, { phase }) => {
        runs.push(options);
        phase('Training');
        return resultOf(options.seed, options.seed);
      });
      expect(runs.map((options) => [options.seed, options.out, options.resume])).toEqual([4, 5, 6].map((seed) => [seed, join(out, `seed-${seed}`), true]));
      expect(phases).toEqual(['Seed 4 (1 of 3): Training', 'Seed 5 (2 of 3): Training', 'Seed 6 (3 of 3): Training']);
      expect(JSON.parse(readFileSync(join(out, 'summary.json'), 'utf8'))).toEqual(summary);
    } finally {
      rmSync(out, { recursive: true });
    }
  });
});
