/** Curves over the steps of a gradient profile. */
import type { RowClass } from '../model/rowClass';
import { PROFILE_COLUMNS, type GradientProfile, type ProfileGroup, type ProfileStep, type StatisticsRow } from '../train';

/** A class, or all words together: prompt, reasoning steps and answer. */
export type ProfileClass = RowClass | 'text';

export const TEXT_CLASSES: readonly RowClass[] = Object.freeze(['prompt-text', 'step-text', 'answer-text']);

const [COUNT, NOT_FINITE, MEAN, , MIN, MAX] = PROFILE_COLUMNS.keys();
const [LOW, HIGH] = [PROFILE_COLUMNS.indexOf('q25'), PROFILE_COLUMNS.indexOf('q75')];

export interface Cell {
  count: number;
  notFinite: number;
  mean: number;
  min: number;
  max: number;
  /** Quartiles; NaN of several classes together. */
  low: number;
  high: number;
}

function cellOf(row: StatisticsRow): Cell | undefined {
  if (row === null) return undefined;
  const at = (column: number): number => row[column] ?? NaN;
  return { count: at(COUNT!), notFinite: at(NOT_FINITE!), mean: at(MEAN!), min: at(MIN!), max: at(MAX!), low: at(LOW), high: at(HIGH) };
}

/** Statistics of one step, level and class; undefined where there are no rows. */
export function cellAt({ head }: GradientProfile, { norms }: ProfileStep, group: ProfileGroup, level: number, rowClass: ProfileClass): Cell | undefined {
  const own = rowClass === 'text' ? TEXT_CLASSES : [rowClass];
  const cells = own.flatMap((name) => cellOf(norms[group][level]![head.classes.indexOf(name)]!) ?? []);
  if (cells.length <= 1) return cells[0];
  const sum = (value: (cell: Cell) => number): number => cells.reduce((total, cell) => total + value(cell), 0);
  const finite = cells.filter(({ count }) => count > 0);
  const count = sum((cell) => cell.count);
  return {
    count, notFinite: sum((cell) => cell.notFinite), mean: finite.reduce((total, cell) => total + cell.count * cell.mean, 0) / count,
    min: Math.min(...finite.map(({ min }) => min)), max: Math.max(...finite.map(({ max }) => max)), low: NaN, high: NaN,
  };
}

export interface Point {
  step: number;
  value: number;
  /** Of the band; absent without one. */
  low?: number;
  high?: number;
}

/** Mean norm of a class by step, at one level or, on average, at the inputs of all layers. Steps without such rows are left out. */
export function normSeries(profile: GradientProfile, group: ProfileGroup, level: number | 'layers', rowClass: ProfileClass): Point[] {
  const levels = level === 'layers' ? Array.from({ length: profile.head.layers }, (_, n) => n) : [level];
  return profile.steps.flatMap((step) => {
    const cells = levels.flatMap((n) => cellAt(profile, step, group, n, rowClass) ?? []).filter(({ count }) => count > 0);
    if (cells.length === 0) return [];
    const mean = (of: (cell: Cell) => number): number => cells.reduce((sum, cell) => sum + of(cell), 0) / cells.length;
    const [low, high] = [mean((cell) => cell.low), mean((cell) => cell.high)];
    return [{ step: step.step, value: mean((cell) => cell.mean), ...(Number.isFinite(low + high) ? { low, high } : {}) }];
  });
}

/** A figure of the gradients of some matrices by step, on average over them; steps that have none are left out. */
export function matrixSeries({ steps }: GradientProfile, group: ProfileGroup, matrices: readonly number[], column: number): Point[] {
  return steps.flatMap(({ step, matrices: figures }) => {
    const values = matrices.flatMap((matrix) => figures?.[group]?.[matrix]?.[column] ?? []);
    return values.length === 0 ? [] : [{ step, value: values.reduce((sum, value) => sum + value, 0) / values.length }];
  });
}

/** At most `most` points: means of runs of neighbours. */
export function thinned(points: readonly Point[], most: number): Point[] {
  const size = Math.ceil(points.length / most);
  if (size <= 1) return [...points];
  return Array.from({ length: Math.ceil(points.length / size) }, (_, n) => {
    const own = points.slice(n * size, (n + 1) * size);
    const mean = (of: (point: Point) => number): number => own.reduce((sum, point) => sum + of(point), 0) / own.length;
    const hasBand = own.every(({ low, high }) => low !== undefined && high !== undefined);
    return { step: mean(({ step }) => step), value: mean(({ value }) => value), ...(hasBand ? { low: mean(({ low }) => low!), high: mean(({ high }) => high!) } : {}) };
  });
}
