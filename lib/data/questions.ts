import type { Random } from './random';

/** Kinds of question that need several looks and several steps. */
export const REASONING_KINDS = [
  'sum', 'largest', 'countLine', 'countGrid', 'path', 'follow', 'difference', 'alternating',
] as const;
/**
 * Plain reading questions, answered without steps: the warm-up in which a model learns to see. `readSame` needs no place: every cell
 * shows the same digit, so that features of digits come before attention finds its way. `readGrid` asks for all cells in order.
 */
export const READING_KINDS = ['readSame', 'readGrid', 'readCell', 'readLine'] as const;

export type ReasoningKind = (typeof REASONING_KINDS)[number];
export type ReadingKind = (typeof READING_KINDS)[number];
export type QuestionKind = ReasoningKind | ReadingKind;

/** Digits of a picture: `labels` is [rows, columns], row by row. Makers of questions may rewrite the labels. */
export interface Grid {
  rows: number;
  columns: number;
  labels: Uint8Array;
}

export interface Question {
  question: string;
  steps: string[];
  answer: string;
}

/** A record has at most so many steps; longer lines put two or more cells into one step. */
const MAX_STEPS = 5;

interface Line {
  name: string;
  /** Indices into `labels`. */
  cells: number[];
}

function anyLine(grid: Grid, random: Random): Line {
  const number = random.below(grid.rows + grid.columns);
  if (number < grid.rows) {
    const cells = Array.from({ length: grid.columns }, (_, column) => number * grid.columns + column);
    return { name: `row ${number + 1}`, cells };
  }
  const column = number - grid.rows;
  const cells = Array.from({ length: grid.rows }, (_, row) => row * grid.columns + column);
  return { name: `column ${column + 1}`, cells };
}

function placeName(grid: Grid, cell: number): string {
  return `row ${Math.floor(cell / grid.columns) + 1} column ${(cell % grid.columns) + 1}`;
}

/** The numbers 0 .. count - 1 in random order. */
function shuffled(count: number, random: Random): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const kept = order[i]!;
    order[i] = order[j]!;
    order[j] = kept;
  }
  return order;
}

function valuesOf(grid: Grid, cells: readonly number[]): number[] {
  return cells.map((cell) => grid.labels[cell]!);
}

/**
 * Steps of a left fold: "3", "3 plus 5 is 8", "8 plus 2 is 10". `word(i)` stands before value `i`.
 * Above MAX_STEPS values, steps take near-equal groups: "3 plus 5 is 8", "8 plus 2 plus 1 is 11".
 */
function fold(values: readonly number[], word: (i: number) => string, join: (total: number, value: number, i: number) => number): Question {
  const count = Math.min(values.length, MAX_STEPS);
  const steps: string[] = [];
  let total = 0;
  let next = 0;
  for (let step = 0; step < count; step++) {
    const end = Math.floor(((step + 1) * values.length) / count);
    let text = step === 0 ? '' : `${total}`;
    const terms = end - next + (step === 0 ? 0 : 1);
    for (; next < end; next++) {
      const value = values[next]!;
      text += next === 0 ? `${value}` : ` ${word(next)} ${value}`;
      total = next === 0 ? value : join(total, value, next);
    }
    steps.push(terms > 1 ? `${text} is ${total}` : text);
  }
  return { question: '', steps, answer: `${total}` };
}

function sum(grid: Grid, random: Random): Question {
  const line = anyLine(grid, random);
  const folded = fold(valuesOf(grid, line.cells), () => 'plus', (total, value) => total + value);
  return { ...folded, question: `sum of ${line.name}` };
}

function largest(grid: Grid, random: Random): Question {
  const line = anyLine(grid, random);
  // The answer is drawn first: the largest of four uniform digits would be 9 in 34 % of the cases.
  const top = random.below(10);
  for (const cell of line.cells) grid.labels[cell] = random.below(top + 1);
  grid.labels[line.cells[random.below(line.cells.length)]!] = top;
  const folded = fold(valuesOf(grid, line.cells), () => 'max', (total, value) => Math.max(total, value));
  return { ...folded, question: `largest in ${line.name}` };
}

/** Rewrites `cells` so that exactly `count` of them, at random places, show `digit`. */
function plant(grid: Grid, cells: readonly number[], digit: number, count: number, random: Random): void {
  for (const cell of cells) grid.labels[cell] = (digit + 1 + random.below(9)) % 10;
  const order = shuffled(cells.length, random);
  for (let i = 0; i < count; i++) grid.labels[cells[order[i]!]!] = digit;
}

function countLine(grid: Grid, random: Random): Question {
  const line = anyLine(grid, random);
  const digit = random.below(10);
  plant(grid, line.cells, digit, random.below(line.cells.length + 1), random);
  const found = valuesOf(grid, line.cells).map((label) => (label === digit ? 1 : 0));
  const folded = fold(found, () => 'plus', (total, value) => total + value);
  return { ...folded, question: `count of ${digit} in ${line.name}` };
}

function countGrid(grid: Grid, random: Random): Question {
  const digit = random.below(10);
  const all = Array.from({ length: grid.labels.length }, (_, cell) => cell);
  const most = Math.min(9, Math.ceil(all.length / 2));
  plant(grid, all, digit, random.below(most + 1), random);
  const found = Array.from({ length: grid.rows }, (_, row) =>
    grid.labels.subarray(row * grid.columns, (row + 1) * grid.columns).reduce((n, label) => n + (label === digit ? 1 : 0), 0));
  const folded = fold(found, () => 'plus', (total, value) => total + value);
  return { ...folded, question: `count of ${digit} in grid` };
}

/** Moves in an order in which the reverse of move m is (m + 2) % 4. */
const MOVES = [
  { word: 'right', row: 0, column: 1 },
  { word: 'down', row: 1, column: 0 },
  { word: 'left', row: 0, column: -1 },
  { word: 'up', row: -1, column: 0 },
] as const;

function path(grid: Grid, random: Random): Question {
  let row = random.below(grid.rows);
  let column = random.below(grid.columns);
  let question = `row ${row + 1} column ${column + 1}`;
  const steps: string[] = [];
  let last = -1;
  for (let left = 2 + random.below(3); left > 0; left--) {
    const legal = [0, 1, 2, 3].filter((move) => {
      const to = MOVES[move]!;
      const inside = row + to.row >= 0 && row + to.row < grid.rows && column + to.column >= 0 && column + to.column < grid.columns;
      return inside && (last < 0 || move !== (last + 2) % 4);
    });
    last = legal[random.below(legal.length)]!;
    const move = MOVES[last]!;
    row += move.row;
    column += move.column;
    question += ` ${move.word}`;
    steps.push(`row ${row + 1} column ${column + 1}`);
  }
  return { question, steps, answer: `${grid.labels[row * grid.columns + column]!}` };
}

/** From row 1, each digit names the column to look at in the next row (0 names column 10). */
function follow(grid: Grid, random: Random): Question {
  const count = 2 + random.below(Math.min(grid.rows, MAX_STEPS) - 1);
  let column = random.below(grid.columns);
  const question = `follow ${count} rows from column ${column + 1}`;
  const steps: string[] = [];
  let digit = 0;
  for (let row = 0; row < count; row++) {
    const cell = row * grid.columns + column;
    if (row < count - 1) grid.labels[cell] = (random.below(grid.columns) + 1) % 10;
    digit = grid.labels[cell]!;
    steps.push(`row ${row + 1} column ${column + 1} is ${digit}`);
    column = (digit + 9) % 10;
  }
  return { question, steps, answer: `${digit}` };
}

function difference(grid: Grid, random: Random): Question {
  const [first, second] = shuffled(grid.labels.length, random) as [number, number];
  // The answer is drawn first: of two uniform digits, 18 % differ by 1 and 2 % by 9.
  const answer = random.below(10);
  const low = random.below(10 - answer);
  const swap = random.below(2);
  grid.labels[first] = swap ? low : low + answer;
  grid.labels[second] = swap ? low + answer : low;
  const question = `difference ${placeName(grid, first)} ${placeName(grid, second)}`;
  const steps = [`${grid.labels[first]!}`, `${grid.labels[second]!}`, `${low + answer} minus ${low} is ${answer}`];
  return { question, steps, answer: `${answer}` };
}

function alternating(grid: Grid, random: Random): Question {
  const line = anyLine(grid, random);
  // Digits that are taken away are drawn so that the total never falls below zero: there are no words for negative numbers.
  let total = 0;
  line.cells.forEach((cell, i) => {
    const adds = i % 2 === 0;
    const digit = random.below(adds ? 10 : Math.min(9, total) + 1);
    grid.labels[cell] = digit;
    total += adds ? digit : -digit;
  });
  const folded = fold(valuesOf(grid, line.cells), (i) => (i % 2 === 0 ? 'plus' : 'minus'),
    (sum, value, i) => (i % 2 === 0 ? sum + value : sum - value));
  return { ...folded, question: `alternating sum of ${line.name}` };
}

function readSame(grid: Grid, random: Random): Question {
  const digit = random.below(10);
  grid.labels.fill(digit);
  return { question: 'digit of grid', steps: [], answer: `${digit}` };
}

function readGrid(grid: Grid): Question {
  return { question: 'digits of grid', steps: [], answer: Array.from(grid.labels).join(' ') };
}

function readCell(grid: Grid, random: Random): Question {
  const cell = random.below(grid.labels.length);
  return { question: `digit at ${placeName(grid, cell)}`, steps: [], answer: `${grid.labels[cell]!}` };
}

function readLine(grid: Grid, random: Random): Question {
  const line = anyLine(grid, random);
  return { question: `digits of ${line.name}`, steps: [], answer: valuesOf(grid, line.cells).join(' ') };
}

/** Makes a question of each kind, rewriting labels where that evens out the answers. */
export const ASK: Readonly<Record<QuestionKind, (grid: Grid, random: Random) => Question>> = Object.freeze({
  sum, largest, countLine, countGrid, path, follow, difference, alternating, readSame, readGrid, readCell, readLine,
});
