import { drawShape, mergeSteps, planStages, stageOf, stageSequence } from '../../lib/train/curriculum';

const steps = [[1, 2], [3], [4, 5, 6], [7], [8]];
const answer = [20, 21];

function caught(call: () => unknown): { code?: string; message: string } {
  try {
    call();
  } catch (error) {
    return error as { code?: string; message: string };
  }
  throw new Error('nothing was thrown');
}

describe('mergeSteps', () => {
  test.each([
    [1, [[1, 2, 3, 4, 5, 6, 7, 8]]],
    [2, [[1, 2, 3, 4, 5, 6], [7, 8]]],
    [3, [[1, 2, 3], [4, 5, 6, 7], [8]]],
    [5, [[1, 2], [3], [4, 5, 6], [7], [8]]],
    [9, [[1, 2], [3], [4, 5, 6], [7], [8]]],
  ])('at most %i groups, the longer ones first', (most, merged) => {
    expect(mergeSteps(steps, most)).toEqual(merged);
  });
  test('no steps stay none', () => expect(mergeSteps([], 3)).toEqual([]));
  test('refuses less than one group', () => {
    expect(caught(() => mergeSteps(steps, 0))).toMatchObject({ code: 'ERR_RANGE', message: '[mergeSteps] Expected maxSteps to be an integer of at least 1 but received 0' });
  });
});

describe('stageSequence', () => {
  test.each([
    // stage, stepsPerLatent, latentsPerStep, padLatents, lastStage -> latents, words
    [0, 1, 1, false, false, 0, [1, 2, 3, 4, 5, 6, 7, 8, 20, 21]],
    [2, 1, 1, false, false, 2, [4, 5, 6, 7, 8, 20, 21]],
    [2, 1, 3, false, false, 6, [4, 5, 6, 7, 8, 20, 21]],
    [2, 2, 1, false, false, 2, [8, 20, 21]],
    [3, 2, 2, false, false, 6, [20, 21]],          // the broken last unit counts
    [7, 2, 2, false, false, 6, [20, 21]],          // a shorter sample uses what it has
    [7, 2, 2, true, false, 14, [20, 21]],
    [2, 1, 1, false, true, 2, [20, 21]],
    [0, 1, 1, false, true, 0, [20, 21]],
    [3, 1, 0, false, false, 0, [7, 8, 20, 21]],
  ])('stage %i, %i steps per latent, %i latents per step, pad %p, last %p', (stage, stepsPerLatent, latentsPerStep, padLatents, lastStage, latents, words) => {
    const staged = stageSequence({ steps, answer }, { stage, stepsPerLatent, latentsPerStep, padLatents, lastStage });
    expect(staged.latents).toBe(latents);
    expect(staged.words).toEqual(words);
    expect(staged.classes).toEqual(words.map((word) => (word >= 20 ? 'answer-text' : 'step-text')));
  });
  test('an unknown option names the near match', () => {
    const error = caught(() => stageSequence({ steps, answer }, { latentPerStep: 2 } as never));
    expect(error.code).toBe('ERR_ARGUMENT');
    expect(error.message).toContain("received 'latentPerStep'; did you mean 'latentsPerStep'?");
  });
});

test.each<[unknown, string]>([
  [null, 'rationale to be an object but received null'], [{ answer: [1] }, 'steps to be an array but received undefined'],
  [{ steps: [5], answer: [1] }, 'step 0 to be an array but received 5'], [{ steps: [], answer: null }, 'answer to be an array but received null'],
])('stageSequence refuses %j', (rationale, message) => {
  expect(caught(() => stageSequence(rationale as never))).toMatchObject({ code: 'ERR_ARGUMENT', message: `[stageSequence] Expected ${message}` });
});

describe('planStages', () => {
  const stage = { name: 'words', shape: {}, learningRate: 1e-3 };
  test('lays stages one after another and counts epochs up', () => {
    const planned = planStages([{ ...stage, steps: 10 }, { ...stage, name: 'one', shape: { stage: 1 }, epochs: 1.5 }], 8, 100);
    expect(planned.map(({ firstStep, steps: count }) => [firstStep, count])).toEqual([[0, 10], [10, 19]]);
    expect(stageOf(planned, 9)?.name).toBe('words');
    expect(stageOf(planned, 10)?.name).toBe('one');
    expect(stageOf(planned, 29)).toBeUndefined();
  });
  test.each([
    [{}, 'ERR_ARGUMENT', '[train] Expected exactly one of steps and epochs of stage "words" but received neither'],
    [{ steps: 1, epochs: 1 }, 'ERR_ARGUMENT', '[train] Expected exactly one of steps and epochs of stage "words" but received both'],
    [{ steps: 0 }, 'ERR_RANGE', '[train] Expected steps of stage "words" to be an integer of at least 1 but received 0'],
    [{ epochs: 1 }, 'ERR_ARGUMENT', '[train] Expected data with a size, because epochs of stage "words" are counted, but received an endless source'],
    [{ steps: 1, learningRate: NaN }, 'ERR_RANGE', '[train] Expected learningRate of stage "words" to be a number of at least 0 but received NaN'],
    [{ steps: 1, earlierProbability: 2 }, 'ERR_RANGE', '[train] Expected earlierProbability of stage "words" to be a number from 0 to 1 but received 2'],
    [{ steps: 1, name: 5 }, 'ERR_ARGUMENT', '[train] Expected name of stage 0 to be a string but received 5'],
    [{ steps: 1, shape: null }, 'ERR_ARGUMENT', '[train] Expected options to be an object but received null'],
    [{ steps: 1, resetOptimizer: 'no' }, 'ERR_ARGUMENT', '[train] Expected resetOptimizer of stage "words" to be a boolean but received "no"'],
    [{ steps: 1, shape: { stage: 1e6, padLatents: true } }, 'ERR_RANGE', '[stageSequence] Expected latents to be an integer from 0 to 65536 but received 1000000'],
  ])('refuses %j', (change, code, message) => {
    expect(caught(() => planStages([{ ...stage, ...change } as never], 8))).toMatchObject({ code, message });
  });
  test('refuses no stages', () => {
    expect(caught(() => planStages([], 8)).message).toBe('[train] Expected at least one stage but received none');
  });
});

describe('drawShape', () => {
  const [planned] = planStages([{ name: 's', shape: { stage: 3, lastStage: true }, steps: 1, learningRate: 1, earlierProbability: 0.3 }], 1);
  test('draws earlier stages with the given probability, evenly, and depends on seed and position alone', () => {
    const drawn = Array.from({ length: 20_000 }, (_, position) => drawShape(planned!, 5, position).stage);
    const share = (stage: number): number => drawn.filter((s) => s === stage).length / drawn.length;
    // Four standard deviations of a share of 0.7 and 0.1 in 20,000 draws: 0.013 and 0.0085.
    expect(Math.abs(share(3) - 0.7)).toBeLessThan(0.013);
    for (const stage of [0, 1, 2]) expect(Math.abs(share(stage) - 0.1)).toBeLessThan(0.0085);
    expect(drawShape(planned!, 5, 17)).toEqual(drawShape(planned!, 5, 17));
    expect(drawn).not.toEqual(Array.from({ length: 20_000 }, (_, position) => drawShape(planned!, 6, position).stage));
  });
  test('an earlier stage keeps its words', () => {
    const shapes = Array.from({ length: 100 }, (_, position) => drawShape(planned!, 5, position));
    expect(shapes.every(({ stage, lastStage }) => lastStage === (stage === 3))).toBe(true);
  });
});
