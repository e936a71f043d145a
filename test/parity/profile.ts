/** Goldens of gradient dynamics: norms of every row at every layer, their statistics by class, spectra of weight gradients. */
import { ROW_CLASSES } from '../../lib/model/rowClass';
import { openReasoning, type ModelView } from '../../lib/model/reasoning';
import type { NativeAddon } from '../../lib/native';
import { countSuperResolved, replayLosses, runBatch } from '../../lib/train/batch';
import { PROFILE_COLUMNS, classStatistics, coefficientOfVariation, type StatisticsRow } from '../../lib/train/profileStatistics';
import { presetOf, sequencesOf } from './cases';
import type { Golden, Report } from './goldens';

/** mean, variance, min, max, count [L, C] and quantile [L, C, 5] under a prefix. */
function compareStatistics(report: Report, prefix: string, rows: readonly StatisticsRow[][]): void {
  const column = (name: (typeof PROFILE_COLUMNS)[number], none: number): number[] => rows.flat().map((row) => row?.[PROFILE_COLUMNS.indexOf(name)] ?? none);
  report.compare(`${prefix}count`, column('count', 0));
  for (const name of ['mean', 'variance', 'min', 'max'] as const) report.compare(`${prefix}${name}`, column(name, NaN));
  const quantiles = (['q05', 'q25', 'q50', 'q75', 'q95'] as const).map((name) => column(name, NaN));
  report.compare(`${prefix}quantile`, quantiles[0]!.flatMap((_, cell) => quantiles.map((values) => values[cell]!)));
}

/** @param inputs the case `default_a`, whose pictures and preset the profile shares. */
export async function runProfile(report: Report, model: ModelView, inputs: Golden, recompute: boolean): Promise<void> {
  const { layers } = model.geometry;
  const preset = presetOf(inputs.entry.preset as Record<string, unknown>, layers);
  const sequences = sequencesOf(inputs).map((sequence, n) => {
    if (String(sequence.promptIds) !== String(report.golden.i32(`in.s${n}.prompt`))) throw new Error(`profile: s${n} is not that of default_a`);
    return { ...sequence, classes: Array.from(sequence.wordClasses, (place) => ROW_CLASSES[place] as 'step-text' | 'answer-text') };
  });
  await model.native.enableTraining();
  await model.native.zeroGradients();
  const session = openReasoning('parity', model, preset, { training: true, recompute, visionGradient: true, profile: true });
  try {
    const run = await runBatch(session, sequences, model.geometry, { preset, targets: true, feedLastWord: true });
    const replayed = replayLosses(run, sequences, model.geometry, preset, countSuperResolved(sequences, model.geometry, preset));
    await session.loss({
      pass: run.targets.pass, row: run.targets.row, target: run.targets.target, scale: 1 / run.targets.row.length,
      replay: replayed.replay, index: replayed.index, weight: replayed.share.map((share) => share * preset.srWeight),
    });
    await session.backward(0);
    const { rows, norms, levels } = await session.gradientNorms();
    const total = norms.length / levels;
    const classes = run.classes.map((names) => Uint8Array.from(names, (name) => ROW_CLASSES.indexOf(name)));
    const samples = classes.map((own, n) => {
      const first = rows.subarray(0, n).reduce((sum, count) => sum + count, 0);
      return { classes: own, norms: Array.from({ length: layers }, (_, level) => norms.subarray(level * total + first, level * total + first + rows[n]!)) };
    });
    samples.forEach((sample, n) => {
      report.compare(`s${n}.norms`, sample.norms.flatMap((level) => Array.from(level)));
      report.compare(`s${n}.classes`, sample.classes);
    });
    compareStatistics(report, 'statistics.', classStatistics(samples, layers, 1));
    const names = report.golden.names('out.spectrum.').map((key) => key.slice('out.spectrum.'.length));
    const spectra = await model.native.gradientSpectra(names);
    names.forEach((name, n) => report.compare(`spectrum.${name}`, spectra.subarray(4 * n, 4 * n + 4)));
  } finally {
    session.dispose();
  }
}

/** Spectra of given matrices, which become the gradients of parameters of their shapes. */
export async function runSpectra(report: Report, native: NativeAddon): Promise<void> {
  const { golden } = report;
  const names = golden.names('in.').map((key) => key.slice(3));
  const text = { hidden: 8, layers: 1, heads: 1, kvHeads: 1, headDim: 8, intermediate: 8, vocab: 8, eps: 1e-6, ropeTheta: 1e4, mropeSection: [1, 1, 2], tied: true };
  const vision = { depth: 1, width: 8, heads: 1, mlpWidth: 8, outWidth: 8, activation: 'quick_gelu' as const, channels: 3, patch: 2, merge: 2, temporal: 2, imageMean: [0, 0, 0], imageStd: [1, 1, 1] };
  const model = new native.Model({ text, vision, dtype: 'f32', extras: names.map((name) => ({ name, shape: golden.shape(`in.${name}`) })) });
  try {
    await model.enableTraining();
    for (const name of names) await model.writeParameter(name, 'gradient', golden.f32(`in.${name}`));
    const spectra = await model.gradientSpectra(names);
    names.forEach((name, n) => ['nuclear', 'spectral', 'effective_rank', 'ratio'].forEach((figure, i) => report.compare(`${name}.${figure}`, spectra.subarray(4 * n + i, 4 * n + i + 1))));
  } finally {
    model.dispose();
  }
}

/** Statistics and volatility; the norms are formed here in f64, those of the backends are compared in test/native. */
export function runNormStatistics(report: Report): void {
  const { golden } = report;
  const [levels, rows, width] = golden.shape('in.grad') as [number, number, number];
  const grad = golden.f32('in.grad');
  const norms = Array.from({ length: levels }, (_, level) => Float32Array.from({ length: rows }, (__, row) => Math.hypot(...grad.subarray((level * rows + row) * width, (level * rows + row + 1) * width))));
  report.compare('norms', norms.flatMap((level) => Array.from(level)));
  compareStatistics(report, '', classStatistics([{ classes: Uint8Array.from(golden.i32('in.class')), norms }], levels, 1));
  report.compare('volatility', [coefficientOfVariation(golden.f32('in.class_means'))]);
}
