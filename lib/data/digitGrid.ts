import type { RgbImage } from '../model/image';
import { integer } from '../check';
import { CELL, loadDigits, splitRange, type Split } from './digits';
import { checkedOptions } from './digitGridOptions';
import { ASK, type Grid, type QuestionKind } from './questions';
import { randomAt, type Random } from './random';
import type { DataRecord } from './record';
import type { DigitGridOptions } from './digitGridOptions';

export { DIGIT_GRID_DEFAULTS, readingShareAt, type DigitGridOptions } from './digitGridOptions';
export { READING_KINDS, REASONING_KINDS, type QuestionKind, type ReadingKind, type ReasoningKind } from './questions';
export { CELL } from './digits';

/** What `meta` of a digit-grid record holds. */
export interface DigitGridMeta extends Readonly<Record<string, unknown>> {
  task: 'digit-grid';
  kind: QuestionKind;
  rows: number;
  columns: number;
  /** [rows][columns] the digits in the picture. */
  labels: number[][];
}

export interface DigitGridRecord extends DataRecord {
  questionKind: QuestionKind;
  meta: DigitGridMeta;
}

export interface DigitGridSample extends DigitGridRecord {
  /** [rows*28, columns*28, 3]. */
  picture: RgbImage;
  /** [rows][columns] which of its digit's handwritten pictures stands in each cell. */
  sources: number[][];
}

/** Streams of one seed, so that train and test questions differ although their seeds may be the same. */
const STREAM: Readonly<Record<Split, number>> = { train: 1, test: 2 };

/**
 * Sample `index` of a digit-grid data set, computed directly: a trainer resumes with nothing but the next index.
 *
 * @param options see `DigitGridOptions`; the same options, seed included, give the same bytes.
 * @param index non-negative safe integer.
 * @returns the record, its picture [rows*28, columns*28, 3] and its kind. `images` names `<id>.png`, which is not written.
 * @throws ERR_ARGUMENT or ERR_RANGE for a wrong option or index.
 * @example
 * const sample = sampleAt({ seed: 1, rows: 4, columns: 4 }, 0);
 * sample.question; // for example 'sum of row 2'
 */
export function sampleAt(options: Partial<DigitGridOptions>, index: number): DigitGridSample {
  const checked = checkedOptions(options, index);
  const random = randomAt(checked.seed, STREAM[checked.split], index);
  const record = ask(checked, index, random);
  return { ...record, ...draw(record.meta.labels, checked, random) };
}

/** `sampleAt` without the picture: the question, steps and labels are the same. */
export function recordAt(options: Partial<DigitGridOptions>, index: number): DigitGridRecord {
  const checked = checkedOptions(options, index);
  return ask(checked, index, randomAt(checked.seed, STREAM[checked.split], index));
}

export interface ChanceLevel {
  /** Accuracy of always giving the commonest answer of the question's kind, over all samples. */
  overall: number;
  /** Per kind: the same, the commonest answer, and the number of samples it was counted on. */
  kinds: Partial<Record<QuestionKind, { chance: number; answer: string; count: number }>>;
}

/**
 * What guessing achieves: the majority answer of each kind, counted on records that are not drawn.
 *
 * @param options as for `sampleAt`; `readingShare` included.
 * @param count number of records, from index 0.
 */
export function chanceLevel(options: Partial<DigitGridOptions>, count = 20_000): ChanceLevel {
  integer('chanceLevel', 'count', count, 0, 10_000_000);
  const answers = new Map<QuestionKind, Map<string, number>>();
  for (let index = 0; index < count; index++) {
    const { questionKind, answer } = recordAt(options, index);
    const tally = answers.get(questionKind) ?? new Map<string, number>();
    tally.set(answer, (tally.get(answer) ?? 0) + 1);
    answers.set(questionKind, tally);
  }
  const kinds: ChanceLevel['kinds'] = {};
  let right = 0;
  for (const [kind, tally] of answers) {
    const [answer, best] = [...tally].reduce((top, entry) => (entry[1] > top[1] ? entry : top));
    const asked = [...tally.values()].reduce((total, n) => total + n, 0);
    kinds[kind] = { chance: best / asked, answer, count: asked };
    right += best;
  }
  return { overall: count > 0 ? right / count : 0, kinds };
}

function ask(options: DigitGridOptions, index: number, random: Random): DigitGridRecord {
  const weights = random.unit() < options.readingShare ? options.readingKinds : options.kinds;
  const kind = weighted(weights, random);
  const rows = sizeOf(options.rows, random);
  const columns = sizeOf(options.columns, random);
  const grid: Grid = { rows, columns, labels: new Uint8Array(rows * columns) };
  for (let cell = 0; cell < grid.labels.length; cell++) grid.labels[cell] = random.below(10);
  const { question, steps, answer } = ASK[kind](grid, random);
  const id = `${options.split}-${options.seed}-${index}`;
  const labels = Array.from({ length: rows }, (_, row) => [...grid.labels.subarray(row * columns, (row + 1) * columns)]);
  return { id, images: [`${id}.png`], question, steps, answer, questionKind: kind, meta: { task: 'digit-grid', kind, rows, columns, labels } };
}

function sizeOf(size: DigitGridOptions['rows'], random: Random): number {
  return typeof size === 'number' ? size : size[0] + random.below(size[1] - size[0] + 1);
}

function weighted(weights: Readonly<Partial<Record<QuestionKind, number>>>, random: Random): QuestionKind {
  const entries = Object.entries(weights) as [QuestionKind, number][];
  let left = random.unit() * entries.reduce((total, [, weight]) => total + weight, 0);
  for (const [kind, weight] of entries) {
    left -= weight;
    if (left < 0) return kind;
  }
  // Rounding can leave `left` at zero after the last weight.
  return entries.filter(([, weight]) => weight > 0).at(-1)![0];
}

function draw(labels: readonly (readonly number[])[], options: DigitGridOptions, random: Random): Pick<DigitGridSample, 'picture' | 'sources'> {
  const { pixels, counts } = loadDigits();
  const height = labels.length * CELL;
  const width = labels[0]!.length * CELL;
  const rgb = new Uint8Array(height * width * 3);
  const sources = labels.map((line, row) => line.map((digit, column) => {
    const [first, end] = splitRange(counts[digit]!, options.split);
    const source = first + random.below(end - first);
    drawCell(rgb, width, row, column, pixels[digit]!, source, options.ink === 'white' ? 0 : 255);
    return source;
  }));
  return { picture: { pixels: rgb, height, width }, sources };
}

/** Copies one grey digit into a cell of the RGB picture. */
function drawCell(data: Uint8Array, width: number, row: number, column: number, digits: Uint8Array, source: number, paper: number): void {
  const side = CELL; // a local: reading the imported constant for each pixel made this ten times slower
  let read = source * side * side;
  for (let y = 0; y < side; y++) {
    let write = ((row * side + y) * width + column * side) * 3;
    for (let x = 0; x < side; x++) {
      const grey = digits[read]! ^ paper; // paper 255: 255 - ink
      data[write] = grey;
      data[write + 1] = grey;
      data[write + 2] = grey;
      read += 1;
      write += 3;
    }
  }
}
