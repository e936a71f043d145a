import { integer, number, oneOf, options as checkKeys, show } from '../check';
import { fail } from '../errors';
import type { Split } from './digits';
import { READING_KINDS, REASONING_KINDS, type ReadingKind, type ReasoningKind } from './questions';

export interface DigitGridOptions {
  /** Non-negative safe integer; with the index of a sample it decides everything about it. */
  seed: number;
  /** Which handwritten digits are used; train and test never share one, nor a random stream. */
  split: Split;
  /** Cells from top to bottom, 2..10; a pair is a range with both ends, drawn for each sample. */
  rows: number | readonly [number, number];
  /** Cells from left to right, likewise. */
  columns: number | readonly [number, number];
  /** Relative weights of the kinds that need reasoning; a kind left out is not asked. */
  kinds: Readonly<Partial<Record<ReasoningKind, number>>>;
  /** Relative weights of the reading kinds, within `readingShare`. */
  readingKinds: Readonly<Partial<Record<ReadingKind, number>>>;
  /** Share of reading questions, 0..1; the trainer lowers it as sight comes (`readingShareAt`). */
  readingShare: number;
  /** Colour of the writing; the paper has the other. */
  ink: 'white' | 'black';
}

export const DIGIT_GRID_DEFAULTS: Readonly<DigitGridOptions> = Object.freeze({
  seed: 0,
  split: 'train',
  rows: 4,
  columns: 4,
  kinds: Object.freeze(Object.fromEntries(REASONING_KINDS.map((kind) => [kind, 1]))),
  readingKinds: Object.freeze(Object.fromEntries(READING_KINDS.map((kind) => [kind, 1]))),
  readingShare: 0,
  ink: 'white',
});

const OP = 'digitGrid';
const SMALLEST = 2;
const LARGEST = 10;

/**
 * Share of reading questions at a point of the training: falls in a straight line and then stays.
 *
 * @param progress share of the fall that is over, at least 0; from 1 on the share is `last`.
 */
export function readingShareAt(progress: number, first = 1, last = 0.15): number {
  return first + (last - first) * Math.min(1, number('readingShareAt', 'progress', progress, 0));
}

/** The options with their defaults. Throws ERR_ARGUMENT or ERR_RANGE; an unknown option names its near match. */
export function checkedOptions(options: Partial<DigitGridOptions>, index: number): DigitGridOptions {
  checkKeys(OP, options, Object.keys(DIGIT_GRID_DEFAULTS));
  const all = { ...DIGIT_GRID_DEFAULTS, ...options };
  integer(OP, 'index', index, 0);
  integer(OP, 'seed', all.seed, 0);
  oneOf(OP, 'split', all.split, ['train', 'test']);
  oneOf(OP, 'ink', all.ink, ['white', 'black']);
  number(OP, 'readingShare', all.readingShare, 0, 1);
  checkSize('rows', all.rows);
  checkSize('columns', all.columns);
  if (all.readingShare < 1) checkWeights('kinds', all.kinds, REASONING_KINDS);
  if (all.readingShare > 0) checkWeights('readingKinds', all.readingKinds, READING_KINDS);
  return all;
}

function checkSize(name: string, size: number | readonly [number, number]): void {
  if (!Array.isArray(size)) {
    integer(OP, name, size, SMALLEST, LARGEST);
    return;
  }
  if (size.length !== 2) fail('ERR_ARGUMENT', OP, `Expected ${name} to be a number or a pair [from, to] but received ${show(size)}`);
  const from = integer(OP, `${name}[0]`, size[0], SMALLEST, LARGEST);
  integer(OP, `${name}[1]`, size[1], from, LARGEST);
}

function checkWeights(name: string, weights: Readonly<Record<string, number>>, kinds: readonly string[]): void {
  if (typeof weights !== 'object' || weights === null) fail('ERR_ARGUMENT', OP, `Expected ${name} to be weights by kind but received ${show(weights)}`);
  let total = 0;
  for (const [kind, weight] of Object.entries(weights)) {
    oneOf(OP, `each key of ${name}`, kind, kinds);
    total += number(OP, `${name}.${kind}`, weight, 0);
  }
  if (total <= 0) fail('ERR_RANGE', OP, `Expected ${name} to have a weight above 0 but received none`);
}
