import fc from 'fast-check';
import { chanceLevel, encodeDigitGrid, recordAt, sampleAt, type DigitGridOptions } from '../../lib/data';

type Options = Partial<DigitGridOptions>;

test.each<[unknown, unknown, string, string]>([
  [{ row: 4 }, 0, 'ERR_ARGUMENT', "[digitGrid] Expected options among seed, split, rows, columns, kinds, readingKinds, readingShare, ink but received 'row'; did you mean 'rows'?"],
  [{ rows: 1 }, 0, 'ERR_RANGE', '[digitGrid] Expected rows to be an integer from 2 to 10 but received 1'],
  [{ columns: 11 }, 0, 'ERR_RANGE', '[digitGrid] Expected columns to be an integer from 2 to 10 but received 11'],
  [{ columns: '4' }, 0, 'ERR_ARGUMENT', '[digitGrid] Expected columns to be an integer from 2 to 10 but received "4"'],
  [{ rows: [4, 3] }, 0, 'ERR_RANGE', '[digitGrid] Expected rows[1] to be an integer from 4 to 10 but received 3'],
  [{ rows: [4] }, 0, 'ERR_ARGUMENT', '[digitGrid] Expected rows to be a number or a pair [from, to] but received Array(1)'],
  [{ seed: -1 }, 0, 'ERR_RANGE', '[digitGrid] Expected seed to be an integer of at least 0 but received -1'],
  [{}, 0.5, 'ERR_RANGE', '[digitGrid] Expected index to be an integer of at least 0 but received 0.5'],
  [{ split: 'dev' }, 0, 'ERR_ARGUMENT', "[digitGrid] Expected split to be one of 'train', 'test' but received \"dev\""],
  [{ ink: 'red' }, 0, 'ERR_ARGUMENT', "[digitGrid] Expected ink to be one of 'white', 'black' but received \"red\""],
  [{ readingShare: NaN }, 0, 'ERR_RANGE', '[digitGrid] Expected readingShare to be a number from 0 to 1 but received NaN'],
  [{ kinds: { sums: 1 } }, 0, 'ERR_ARGUMENT', "[digitGrid] Expected each key of kinds to be one of 'sum', 'largest', 'countLine', 'countGrid', 'path', 'follow', 'difference', 'alternating' but received \"sums\"; did you mean 'sum'?"],
  [{ kinds: { sum: -1 } }, 0, 'ERR_RANGE', '[digitGrid] Expected kinds.sum to be a number of at least 0 but received -1'],
  [{ kinds: { sum: 0 } }, 0, 'ERR_RANGE', '[digitGrid] Expected kinds to have a weight above 0 but received none'],
  [{ kinds: null }, 0, 'ERR_ARGUMENT', '[digitGrid] Expected kinds to be weights by kind but received null'],
  [{ readingShare: 1, readingKinds: {} }, 0, 'ERR_RANGE', '[digitGrid] Expected readingKinds to have a weight above 0 but received none'],
])('%j at %j', (options, index, code, message) => {
  expect(() => sampleAt(options as Options, index as number)).toThrow(expect.objectContaining({ name: 'LibError', code, message }));
});

test('any options object gives a record or a LibError', () => {
  fc.assert(fc.property(fc.record({ seed: fc.anything(), rows: fc.anything(), kinds: fc.anything() }, { requiredKeys: [] }), fc.anything(), (options, index) => {
    try {
      const { steps, answer } = recordAt(options as Options, index as number);
      expect([Array.isArray(steps), typeof answer]).toEqual([true, 'string']);
    } catch (error) {
      expect((error as Error).name).toBe('LibError');
    }
  }), { numRuns: 300 });
});

test.each([null, {}, { meta: { rows: 1e9, columns: 1e9 } }, { meta: { rows: 2, columns: 2 }, question: 'sum' }])('%j is no record of the task', (record) => {
  expect(() => encodeDigitGrid(record as never)).toThrow(expect.objectContaining({ name: 'LibError' }));
});

test('chance levels of more records than anyone waits for are refused', () => {
  expect(() => chanceLevel({}, 2 ** 53)).toThrow(expect.objectContaining({ code: 'ERR_RANGE' }));
});
