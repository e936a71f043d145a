import { endsWithAnswer, evaluate, wilson, type EvaluationItem } from '../../lib/evaluate';
import { END, fakeModel, GEOMETRY } from './fakeModel';

describe('wilson', () => {
  // Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
  test.each([[81, 263, 0.2553, 0.3662], [15, 148, 0.0624, 0.1605], [0, 20, 0, 0.1611], [1, 29, 0.0061, 0.1718]])('%i of %i', (right, count, low, high) => {
    const share = wilson(right, count);
    expect([share.low.toFixed(4), share.high.toFixed(4)]).toEqual([low.toFixed(4), high.toFixed(4)]);
    expect(share).toMatchObject({ right, count, share: right / count });
  });
  test('nothing counted says nothing', () => expect(wilson(0, 0)).toEqual({ count: 0, right: 0, share: NaN, low: 0, high: 1 }));
});

test.each([
  [[1, 2, 3], [2, 3], true], [[2, 3], [2, 3], true], [[1, 2], [2, 3], false], [[3], [2, 3], false], [[1], [], false],
])('%j ends with %j: %p', (ids, answer, right) => expect(endsWithAnswer(ids, answer)).toBe(right));

test('counts answers, kinds, steps and rows; reads in batches', async () => {
  // The answer repeats the prompt's first token, after as many 1s as the prompt has tokens.
  const model = fakeModel({
    logitsOf: (rows) => {
      const words = rows.filter((row) => row === '0:1').length;
      const first = Number(rows[0]!.slice(2));
      const logits = new Float32Array(GEOMETRY.vocab);
      logits[rows.at(-1) === `0:${first}` && words > 0 ? END : words === 2 ? first : 1] = 1;
      return logits;
    },
  });
  const item = (first: number, answer: number): EvaluationItem => ({
    promptIds: [first, 5], pictures: [], kind: first > 9 ? 'big' : 'small', isRight: ({ ids }) => endsWithAnswer(ids, [answer, END]),
  });
  const done: number[] = [];
  const result = await evaluate(model, [item(7, 7), item(12, 12), item(8, 7)], { batchSize: 2, latentSteps: 3, onProgress: (n) => done.push(n) });
  expect(result.overall).toMatchObject({ right: 2, count: 3 });
  expect(result.kinds).toMatchObject({ big: { right: 1, count: 1 }, small: { right: 1, count: 2 } });
  // 1 1 first END: 4 tokens, of which 3 are fed back after 2 prompt rows and 3 latents.
  expect(result).toMatchObject({ arStepsPerAnswer: 7, rowsPerAnswer: 8, cutOff: 0, batchSize: 2 });
  expect(result.answers.map(({ right }) => right)).toEqual([true, true, false]);
  expect(done).toEqual([2, 3]);
  expect(model.tokenForwards).toBe(24);
});

test.each<[unknown, object | null, string]>([
  [null, {}, 'items to be an array but received null'], [[undefined], {}, 'item 0 to be an object but received undefined'],
  [[{ kind: 5 }], {}, 'kind of item 0 to be a string but received 5'],
  [[{ kind: 'a', isRight: true }], {}, 'isRight of item 0 to be a function but received true'],
  [[], null, 'options to be an object but received null'], [[], { onProgress: 1 }, 'onProgress to be a function but received 1'],
])('refuses %j with %j', async (items, options, message) => {
  await expect(evaluate(fakeModel(), items as never, options as never)).rejects.toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[evaluate] Expected ${message}` });
});
