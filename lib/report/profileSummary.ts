/** What a gradient profile says: by class and layer, image against text, easy against hard, by matrix. */
import * as check from '../check';
import { fail } from '../errors';
import { ROW_CLASSES, type RowClass } from '../model/rowClass';
import { PROFILE_GROUPS, SPECTRUM_COLUMNS, type GradientProfile, type ProfileGroup } from '../train';
import { checkProfile } from '../train/profileFormat';
import { coefficientOfVariation } from '../train/profileStatistics';
import { meanInterval } from './blockBootstrap';
import { cellAt, matrixSeries, normSeries, type ProfileClass } from './profileSeries';

const OP = 'summarizeProfile';

/** One class of rows at one level. Norms are times the number of the step's target tokens. */
export interface ClassFigures {
  /** Input of this layer; `layers`: the final hidden state before its norm. */
  level: number;
  class: RowClass;
  /** Profiled steps with such rows, and how many rows in all. */
  steps: number;
  rows: number;
  /** Norms that were NaN or infinite, which are in no other figure. */
  notFinite: number;
  /** Mean over the steps of the class mean. */
  mean: number;
  min: number;
  max: number;
  /** Coefficient of variation of the class mean across the steps. */
  volatility: number;
}

/** How many times as large one mean is as another: geometric mean over the steps. */
export interface Ratio {
  /** Steps that have both. */
  steps: number;
  ratio: number;
  /** 95 % interval by a block bootstrap over the steps; absent for fewer than 8. */
  low?: number;
  high?: number;
  /** Share of the steps in which it is above 1. */
  shareAbove: number;
  /** Whether the interval leaves 1 out. */
  verdict: 'larger' | 'smaller' | 'unclear';
}

/** Image rows against rows of words. */
export interface ImageAgainstText extends Ratio {
  against: ProfileClass;
  /** Input of this layer, or all of them (geometric mean). */
  level: number | 'layers';
}

/** Rows of the harder half of a step's samples against those of the easier half, at the inputs of all layers. */
export interface HardAgainstEasy extends Ratio {
  class: RowClass;
}

/** Means over the steps of the figures of a matrix's gradient; nuclear and spectral norm are times the number of target tokens. */
export interface MatrixSummary {
  matrix: string;
  group: ProfileGroup;
  steps: number;
  nuclear: number;
  spectral: number;
  effectiveRank: number;
  ratio: number;
}

export interface ProfileSummary {
  version: 1;
  layers: number;
  /** Profiled steps, the first and the last of them. */
  steps: number;
  firstStep: number;
  lastStep: number;
  stages: string[];
  notFinite: number;
  classes: ClassFigures[];
  imageAgainstText: ImageAgainstText[];
  /** Steps in which the mean norm of image rows is exactly 0 at the input of some layer, which has no ratio. */
  imageZeroSteps: number;
  /** Volatility at the inputs of the layers, on average; steps with such rows, at the layer with the fewest. */
  volatility: { class: ProfileClass; steps: number; mean: number; min: number; max: number }[];
  hardAgainstEasy: HardAgainstEasy[];
  matrices: MatrixSummary[];
  /** Left out because of their size. */
  tooLarge: string[];
}

export interface SummaryOptions {
  /** Steps from here on, and up to here (default: all). */
  from?: number;
  to?: number;
}

/**
 * Answers, for the steps of a profile: which class of rows receives how much gradient at which layer and how steadily; whether image
 * rows receive more or less than words, with a confidence interval; what is different for hard samples.
 *
 * @param profile of `readProfile`; kept as it is.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` for options; `ERR_RANGE` when no step is left.
 */
export function summarizeProfile(profile: GradientProfile, options: SummaryOptions = {}): ProfileSummary {
  const own = selectSteps(profile, options);
  const { head, steps } = own;
  const classes = classFigures(own);
  const present = ROW_CLASSES.filter((name) => classes.some((figures) => figures.class === name));
  const texts: ProfileClass[] = ['text', ...present.filter((name) => name.endsWith('-text'))];
  const layers = Array.from({ length: head.layers }, (_, layer) => layer);
  return {
    version: 1, layers: head.layers, steps: steps.length, firstStep: steps[0]!.step, lastStep: steps.at(-1)!.step, stages: [...new Set(steps.map(({ stage }) => stage))],
    notFinite: classes.reduce((sum, { notFinite }) => sum + notFinite, 0), classes,
    imageAgainstText: texts.flatMap((against) => (['layers', ...layers] as const).flatMap((level) => {
      const ratio = ratioOf(steps.flatMap((step) => logRatio(level === 'layers' ? layers : [level], (n) => cellAt(own, step, 'all', n, 'image')?.mean, (n) => cellAt(own, step, 'all', n, against)?.mean)));
      return ratio === undefined ? [] : [{ against, level, ...ratio }];
    })),
    imageZeroSteps: steps.filter((step) => layers.some((level) => cellAt(own, step, 'all', level, 'image')?.mean === 0)).length,
    volatility: [...present, 'text' as const].flatMap((name) => volatilityOf(own, name)),
    hardAgainstEasy: present.flatMap((name) => {
      const ratio = ratioOf(steps.flatMap((step) => logRatio(layers, (n) => cellAt(own, step, 'hard', n, name)?.mean, (n) => cellAt(own, step, 'easy', n, name)?.mean)));
      return ratio === undefined ? [] : [{ class: name, ...ratio }];
    }),
    matrices: head.matrices.flatMap((matrix, place) => PROFILE_GROUPS.flatMap((group) => matrixSummary(own, matrix, place, group))),
    tooLarge: head.tooLarge,
  };
}

/** @throws {LibError} see `summarizeProfile`. */
export function selectSteps(profile: GradientProfile, options: SummaryOptions): GradientProfile {
  checkProfile(OP, profile);
  check.options(OP, options, ['from', 'to']);
  const from = options.from === undefined ? 1 : check.integer(OP, 'from', options.from, 1);
  const to = options.to === undefined ? Infinity : check.integer(OP, 'to', options.to, from);
  const steps = profile.steps.filter(({ step }) => step >= from && step <= to);
  if (steps.length > 0) return { ...profile, steps };
  const [first, last] = [profile.steps[0], profile.steps.at(-1)];
  return fail('ERR_RANGE', OP, first === undefined || last === undefined
    ? 'Expected a profile with at least one step but received one with none; train for at least one step'
    : `Expected steps from ${from} to ${to} to be among those of the profile, ${first.step} to ${last.step}, but received none; widen the range`);
}

function classFigures(profile: GradientProfile): ClassFigures[] {
  return Array.from({ length: profile.head.layers + 1 }, (_, level) => ROW_CLASSES.flatMap((name): ClassFigures[] => {
    const cells = profile.steps.flatMap((step) => cellAt(profile, step, 'all', level, name) ?? []);
    if (cells.length === 0) return [];
    const finite = cells.filter(({ count }) => count > 0);
    const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
    const means = finite.map(({ mean }) => mean);
    return [{
      level, class: name, steps: finite.length, rows: sum(cells.map(({ count }) => count)), notFinite: sum(cells.map(({ notFinite }) => notFinite)),
      mean: sum(means) / means.length, min: finite.reduce((least, { min }) => Math.min(least, min), Infinity), max: finite.reduce((most, { max }) => Math.max(most, max), -Infinity),
      volatility: coefficientOfVariation(means),
    }];
  })).flat();
}

/** Mean over the levels that have both of ln(a / b). */
function logRatio(levels: readonly number[], a: (level: number) => number | undefined, b: (level: number) => number | undefined): number[] {
  const logs = levels.map((level) => Math.log(a(level)! / b(level)!)).filter(Number.isFinite);
  return logs.length === 0 ? [] : [logs.reduce((sum, value) => sum + value, 0) / logs.length];
}

function ratioOf(logs: readonly number[]): Ratio | undefined {
  if (logs.length === 0) return undefined;
  const interval = meanInterval(logs);
  return {
    steps: logs.length, ratio: Math.exp(logs.reduce((sum, value) => sum + value, 0) / logs.length),
    ...(interval === undefined ? {} : { low: Math.exp(interval.low), high: Math.exp(interval.high) }),
    shareAbove: logs.filter((value) => value > 0).length / logs.length,
    verdict: interval === undefined || (interval.low <= 0 && interval.high >= 0) ? 'unclear' : interval.low > 0 ? 'larger' : 'smaller',
  };
}

function volatilityOf(profile: GradientProfile, name: ProfileClass): ProfileSummary['volatility'] {
  const series = Array.from({ length: profile.head.layers }, (_, layer) => normSeries(profile, 'all', layer, name).map(({ value }) => value)).filter(({ length }) => length > 0);
  const values = series.map(coefficientOfVariation).filter(Number.isFinite);
  if (values.length === 0) return [];
  return [{ class: name, steps: Math.min(...series.map(({ length }) => length)), mean: values.reduce((sum, value) => sum + value, 0) / values.length, min: Math.min(...values), max: Math.max(...values) }];
}

function matrixSummary(profile: GradientProfile, matrix: string, place: number, group: ProfileGroup): MatrixSummary[] {
  const means = SPECTRUM_COLUMNS.map((_, column) => {
    const values = matrixSeries(profile, group, [place], column).map(({ value }) => value);
    return { steps: values.length, mean: values.reduce((sum, value) => sum + value, 0) / values.length };
  });
  const [nuclear, spectral, effectiveRank, ratio] = means.map(({ mean }) => mean) as [number, number, number, number];
  return means[0]!.steps === 0 ? [] : [{ matrix, group, steps: means[0]!.steps, nuclear, spectral, effectiveRank, ratio }];
}
