import {
  chanceLevel, loadDigits, READING_KINDS, REASONING_KINDS, readingShareAt, recordAt, sampleAt, splitRange,
  type DigitGridOptions, type DigitGridRecord, type DigitGridSample,
} from '../../lib/data';

type Options = Partial<DigitGridOptions>;
const EVERY_SIZE: Options = { rows: [2, 10], columns: [2, 10], readingShare: 0.2 };

/** Answers a question from its words and the labels alone; shares no code with the generator. */
function bruteForce(question: string, labels: readonly (readonly number[])[]): string {
  const words = question.split(' ');
  const line = (axis: string, number: string): number[] =>
    axis === 'row' ? [...labels[Number(number) - 1]!] : labels.map((row) => row[Number(number) - 1]!);
  const at = (row: string, column: string): number => labels[Number(row) - 1]![Number(column) - 1]!;
  let match: RegExpExecArray | null;
  if ((match = /^sum of (row|column) (\d+)$/.exec(question))) return String(line(match[1]!, match[2]!).reduce((a, b) => a + b));
  if ((match = /^alternating sum of (row|column) (\d+)$/.exec(question))) {
    return String(line(match[1]!, match[2]!).reduce((total, digit, i) => total + digit * (-1) ** i, 0));
  }
  if ((match = /^largest in (row|column) (\d+)$/.exec(question))) return String(Math.max(...line(match[1]!, match[2]!)));
  if ((match = /^count of (\d) in (row|column) (\d+)$/.exec(question))) {
    return String(line(match[2]!, match[3]!).filter((digit) => String(digit) === match![1]).length);
  }
  if ((match = /^count of (\d) in grid$/.exec(question))) return String(labels.flat().filter((digit) => String(digit) === match![1]).length);
  if ((match = /^difference row (\d+) column (\d+) row (\d+) column (\d+)$/.exec(question))) {
    return String(Math.abs(at(match[1]!, match[2]!) - at(match[3]!, match[4]!)));
  }
  if ((match = /^follow (\d+) rows from column (\d+)$/.exec(question))) {
    let column = Number(match[2]);
    for (let row = 1; row < Number(match[1]); row++) column = at(String(row), String(column)) || 10;
    return String(at(match[1]!, String(column)));
  }
  if ((match = /^digit at row (\d+) column (\d+)$/.exec(question))) return String(at(match[1]!, match[2]!));
  if (question === 'digits of grid') return labels.flat().join(' ');
  if (question === 'digit of grid') {
    expect(new Set(labels.flat()).size).toBe(1);
    return String(labels[0]![0]);
  }
  if ((match = /^digits of (row|column) (\d+)$/.exec(question))) return line(match[1]!, match[2]!).join(' ');
  expect(question).toMatch(/^row \d+ column \d+( (right|left|up|down)){2,4}$/);
  const moves = words.slice(4);
  const count = (word: string): number => moves.filter((move) => move === word).length;
  return String(at(String(Number(words[1]) + count('down') - count('up')), String(Number(words[3]) + count('right') - count('left'))));
}

/** The values that a fold's steps must read, in order; undefined for kinds whose steps are no fold. */
function foldedValues({ question, questionKind, meta }: DigitGridRecord): number[] | undefined {
  const inLine = /(row|column) (\d+)$/.exec(question);
  const line = inLine && (inLine[1] === 'row' ? meta.labels[Number(inLine[2]) - 1]! : meta.labels.map((row) => row[Number(inLine[2]) - 1]!));
  const digit = Number(/^count of (\d)/.exec(question)?.[1]);
  switch (questionKind) {
    case 'sum': case 'largest': case 'alternating': return [...line!];
    case 'countLine': return line!.map((label) => Number(label === digit));
    case 'countGrid': return meta.labels.map((row) => row.filter((label) => label === digit).length);
    default: return undefined;
  }
}

/** Replays "3", "3 plus 5 is 8", ...: arithmetic right, running total carried over, every value read once and in order. */
function checkFold(record: DigitGridRecord, values: readonly number[]): void {
  const read: number[] = [];
  let carried: number | undefined;
  for (const step of record.steps) {
    const [left, right] = step.split(' is ') as [string, string | undefined];
    const words = left.split(' ');
    let total = Number(words[0]);
    if (carried === undefined) read.push(total);
    else expect(total).toBe(carried);
    for (let i = 1; i < words.length; i += 2) {
      const value = Number(words[i + 1]);
      read.push(value);
      total = words[i] === 'plus' ? total + value : words[i] === 'minus' ? total - value : words[i] === 'max' ? Math.max(total, value) : NaN;
    }
    expect(right).toBe(words.length === 1 ? undefined : String(total));
    expect(total).toBeGreaterThanOrEqual(0);
    carried = total;
  }
  expect(read).toEqual(values);
  expect(record.answer).toBe(String(carried));
}

function checkPath({ question, steps, answer, meta }: DigitGridRecord): void {
  const words = question.split(' ');
  let [row, column] = [Number(words[1]), Number(words[3])];
  const places = words.slice(4).map((move) => {
    row += { down: 1, up: -1 }[move] ?? 0;
    column += { right: 1, left: -1 }[move] ?? 0;
    expect(meta.labels[row - 1]?.[column - 1]).toBeDefined();
    return `row ${row} column ${column}`;
  });
  expect(steps).toEqual(places);
  expect(answer).toBe(String(meta.labels[row - 1]![column - 1]));
}

function checkFollow({ question, steps, meta }: DigitGridRecord): void {
  let column = Number(question.split(' ').at(-1));
  steps.forEach((step, row) => {
    const digit = meta.labels[row]![column - 1]!;
    expect(step).toBe(`row ${row + 1} column ${column} is ${digit}`);
    column = digit || 10;
  });
  expect(steps).toHaveLength(Number(question.split(' ')[1]));
}

function checkDifference({ question, steps, meta, answer }: DigitGridRecord): void {
  const [r1, c1, r2, c2] = [...question.matchAll(/\d+/g)].map(Number) as [number, number, number, number];
  expect([r1, c1]).not.toEqual([r2, c2]);
  const pair = [meta.labels[r1 - 1]![c1 - 1]!, meta.labels[r2 - 1]![c2 - 1]!];
  expect(steps).toEqual([...pair.map(String), `${Math.max(...pair)} minus ${Math.min(...pair)} is ${answer}`]);
}

function check(record: DigitGridRecord): void {
  expect(record.answer).toBe(bruteForce(record.question, record.meta.labels));
  const isReading = (READING_KINDS as readonly string[]).includes(record.questionKind);
  if (isReading) {
    expect(record.steps).toEqual([]);
    return;
  }
  expect(record.steps.length).toBeGreaterThanOrEqual(2);
  expect(record.steps.length).toBeLessThanOrEqual(5);
  const values = foldedValues(record);
  if (values) checkFold(record, values);
  else if (record.questionKind === 'path') checkPath(record);
  else if (record.questionKind === 'follow') checkFollow(record);
  else checkDifference(record);
}

describe('questions', () => {
  test.each([...REASONING_KINDS, ...READING_KINDS])('%s: answers and steps equal a brute force over all sizes', (kind) => {
    const isReading = (READING_KINDS as readonly string[]).includes(kind);
    const options: Options = isReading
      ? { ...EVERY_SIZE, readingShare: 1, readingKinds: { [kind]: 1 } } : { ...EVERY_SIZE, readingShare: 0, kinds: { [kind]: 1 } };
    const sizes = new Set<string>();
    for (let index = 0; index < 800; index++) {
      const record = recordAt(options, index);
      expect(record.questionKind).toBe(kind);
      check(record);
      sizes.add(`${record.meta.rows}x${record.meta.columns}`);
    }
    expect(sizes.size).toBe(81);
  });

  test('every grid size from 2x2 to 10x10 draws a picture of one 28x28 cell per digit', () => {
    for (let rows = 2; rows <= 10; rows++) {
      for (let columns = 2; columns <= 10; columns++) {
        const { picture, meta, sources } = sampleAt({ rows, columns, readingShare: 0.5 }, rows * 100 + columns);
        expect([picture.height, picture.width, picture.pixels.length]).toEqual([rows * 28, columns * 28, rows * columns * 784 * 3]);
        expect([meta.rows, meta.columns, meta.labels.length, meta.labels[0]!.length, sources.length]).toEqual([rows, columns, rows, columns, rows]);
      }
    }
  });

  test('the share of reading questions and the weights are respected', () => {
    const kinds = Array.from({ length: 4000 }, (_, index) =>
      recordAt({ readingShare: 0.25, readingKinds: { readCell: 1 }, kinds: { sum: 3, path: 1, largest: 0 } }, index).questionKind);
    const share = (kind: string): number => kinds.filter((other) => other === kind).length / kinds.length;
    // Four standard deviations of a share p of 4,000: 4 sqrt(p (1 - p) / 4000).
    expect(Math.abs(share('readCell') - 0.25)).toBeLessThan(0.028);
    expect(Math.abs(share('sum') - 0.5625)).toBeLessThan(0.032);
    expect(Math.abs(share('path') - 0.1875)).toBeLessThan(0.025);
    expect(share('largest')).toBe(0);
    expect(new Set(kinds).size).toBe(3);
  });

  test('readingShareAt falls in a straight line and stays', () => {
    expect([0, 0.5, 1, 7].map((progress) => readingShareAt(progress, 1, 0.2))).toEqual([1, 0.6, expect.closeTo(0.2, 12), expect.closeTo(0.2, 12)]);
    expect(() => readingShareAt(-1)).toThrow(expect.objectContaining({
      code: 'ERR_RANGE', message: '[readingShareAt] Expected progress to be a number of at least 0 but received -1',
    }));
  });
});

describe('determinism', () => {
  test('the same options and index give the same bytes, in any order of calls', () => {
    const options: Options = { ...EVERY_SIZE, seed: 7 };
    // Pictures as base64: jest compares typed arrays element by element, which takes seconds.
    const at = (index: number): object => {
      const { picture, ...rest } = sampleAt({ ...options }, index);
      return { ...rest, height: picture.height, width: picture.width, data: Buffer.from(picture.pixels).toString('base64') };
    };
    const forward = Array.from({ length: 40 }, (_, index) => at(index));
    for (let index = 39; index >= 0; index--) expect(at(index)).toEqual(forward[index]);
  });

  test('seed, index and split change the sample; huge seeds and indices are told apart', () => {
    const key = (options: Options, index: number): string => JSON.stringify({ ...recordAt({ rows: 10, columns: 10, ...options }, index), id: 0, images: 0 });
    const keys = [
      key({}, 0), key({}, 1), key({ seed: 1 }, 0), key({ split: 'test' }, 0), key({ seed: 2 ** 32 }, 0), key({}, 2 ** 32),
      key({ seed: Number.MAX_SAFE_INTEGER }, Number.MAX_SAFE_INTEGER), key({ seed: Number.MAX_SAFE_INTEGER }, Number.MAX_SAFE_INTEGER - 1),
    ];
    expect(new Set(keys).size).toBe(keys.length);
  });

  test('no two of 20,000 samples are alike', () => {
    const keys = new Set(Array.from({ length: 20_000 }, (_, index) => JSON.stringify(recordAt({}, index).meta.labels)));
    expect(keys.size).toBe(20_000);
  });

  test('recordAt is sampleAt without the picture', () => {
    const { picture, sources, ...record } = sampleAt(EVERY_SIZE, 5);
    expect(picture.pixels.length).toBeGreaterThan(0);
    expect(sources).toHaveLength(record.meta.rows);
    expect(recordAt(EVERY_SIZE, 5)).toEqual(record);
  });

  test('first sample of seed 0 stays what it was when this test was written', () => {
    const { question, steps, answer, meta } = recordAt({}, 0);
    expect({ question, steps, answer }).toEqual({
      question: 'sum of column 2', steps: ['3', '3 plus 7 is 10', '10 plus 4 is 14', '14 plus 2 is 16'], answer: '16',
    });
    expect(meta.labels).toEqual([[1, 3, 2, 0], [9, 7, 6, 1], [6, 4, 2, 9], [2, 2, 6, 5]]);
  });
});

describe('pictures', () => {
  const options: Options = { rows: 10, columns: 10 };
  const samples = (split: 'train' | 'test', count: number): DigitGridSample[] =>
    Array.from({ length: count }, (_, index) => sampleAt({ ...options, split }, index));

  test('10,000 digits, each split within its own part', () => {
    const { counts, pixels } = loadDigits();
    expect(counts.reduce((a, b) => a + b)).toBe(10_000);
    expect(pixels.map((packed) => packed.length)).toEqual(counts.map((count) => count * 784));
    counts.forEach((count) => {
      const [trainFirst, trainEnd] = splitRange(count, 'train');
      expect([trainFirst, splitRange(count, 'test')[1]]).toEqual([0, count]);
      expect(splitRange(count, 'test')[0]).toBe(trainEnd);
      expect((count - trainEnd) / count).toBeCloseTo(0.15, 2);
    });
  });

  test('train and test never draw the same handwritten digit, and use nearly all of theirs', () => {
    const used = (split: 'train' | 'test', count: number): Set<string> =>
      new Set(samples(split, count).flatMap(({ meta, sources }) => meta.labels.flat().map((digit, i) => `${digit}:${sources.flat()[i]}`)));
    const [train, test] = [used('train', 300), used('test', 100)];
    expect([...train].filter((source) => test.has(source))).toEqual([]);
    expect(train.size).toBeGreaterThan(8000);
    expect(test.size).toBeGreaterThan(1400);
  });

  test('no picture of one split occurs in the other, byte for byte', () => {
    const { counts, pixels } = loadDigits();
    const parts = (split: 'train' | 'test'): Set<string> => new Set(counts.flatMap((count, digit) => {
      const [first, end] = splitRange(count, split);
      return Array.from({ length: end - first }, (_, i) => Buffer.from(pixels[digit]!.subarray((first + i) * 784, (first + i + 1) * 784)).toString('latin1'));
    }));
    const train = parts('train');
    expect([...parts('test')].filter((picture) => train.has(picture))).toEqual([]);
  });

  test.each(['white', 'black'] as const)('each cell shows its digit in %s ink, grey in all three channels', (ink) => {
    const { picture, meta, sources } = sampleAt({ rows: 3, columns: 5, ink, split: 'test' }, 4);
    const { pixels } = loadDigits();
    const expected = Buffer.alloc(picture.pixels.length);
    for (let i = 0; i < expected.length; i++) {
      const [y, x] = [Math.floor(i / 3 / picture.width), Math.floor(i / 3) % picture.width];
      const [row, column] = [Math.floor(y / 28), Math.floor(x / 28)];
      const grey = pixels[meta.labels[row]![column]!]![sources[row]![column]! * 784 + (y % 28) * 28 + (x % 28)]!;
      expected[i] = ink === 'white' ? grey : 255 - grey;
    }
    expect(expected.equals(picture.pixels)).toBe(true);
  });
});

describe('chanceLevel', () => {
  test('counts the majority answer of each kind', () => {
    const options: Options = { seed: 3, readingShare: 0.2 };
    const { overall, kinds } = chanceLevel(options, 3000);
    const answers: Record<string, string[]> = {};
    for (let index = 0; index < 3000; index++) {
      const { questionKind, answer } = recordAt(options, index);
      (answers[questionKind] ??= []).push(answer);
    }
    let right = 0;
    expect(Object.keys(kinds).sort()).toEqual(Object.keys(answers).sort());
    for (const [kind, list] of Object.entries(answers)) {
      const best = Math.max(...list.map((answer) => list.filter((other) => other === answer).length));
      expect(kinds[kind as 'sum']).toMatchObject({ chance: best / list.length, count: list.length });
      right += best;
    }
    expect(overall).toBeCloseTo(right / 3000, 12);
  });

  test('no kind is easily guessed on the 4x4 grid', () => {
    const { overall, kinds } = chanceLevel({}, 20_000);
    expect(overall).toBeLessThan(0.15);
    for (const kind of REASONING_KINDS) expect(kinds[kind]!.chance).toBeLessThan(kind === 'countLine' ? 0.22 : 0.19);
  });
});
