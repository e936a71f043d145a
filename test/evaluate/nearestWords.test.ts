import { nearestWords } from '../../lib/evaluate/nearestWords';
import { mix } from '../../lib/random';

const f32 = (...values: number[]): Float32Array => Float32Array.from(values);

test('best first, the lower id of equal ones first', () => {
  expect([...nearestWords(f32(0, 3, 2, 5, 5, 1), 3, 2)]).toEqual([1, 2, 0, 1]);
  expect([...nearestWords(f32(-Infinity, 1, Infinity, 1), 4, 4)]).toEqual([2, 1, 3, 0]);
  expect(nearestWords(f32(), 4, 2)).toHaveLength(0);
});

test('as a stable sort has it', () => {
  const [vocab, count] = [257, 6];
  const logits = Float32Array.from({ length: 9 * vocab }, (_, i) => mix(1, i) % 40);   // with many ties
  const expected = Array.from({ length: 9 }, (_, row) => Array.from({ length: vocab }, (_x, id) => id).sort((a, b) => logits[row * vocab + b]! - logits[row * vocab + a]!).slice(0, count));
  expect([...nearestWords(logits, vocab, count)]).toEqual(expected.flat());
});

test.each<[unknown, number, number, string, string]>([
  [[1, 2], 2, 1, 'ERR_DTYPE', 'Expected logits to be a Float32Array but received Array(2)'],
  [f32(1, 2), 0, 1, 'ERR_RANGE', 'Expected vocab to be an integer of at least 1 but received 0'],
  [f32(1, 2), 2, 3, 'ERR_RANGE', 'Expected count to be an integer from 1 to 2 but received 3'],
  [f32(1, 2, 3), 2, 1, 'ERR_SHAPE', 'Expected logits to be rows of vocab = 2 but received 3 elements'],
  [f32(1, 2, 3, NaN), 2, 1, 'ERR_RANGE', 'Expected logits without NaN but received one at token 1 of row 1'],
])('refuses %p, %p, %p', (logits, vocab, count, code, message) => {
  expect(() => nearestWords(logits as Float32Array, vocab, count)).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[nearestWords] ${message}` }));
});
