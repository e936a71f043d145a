/** Generation on the real engine, with a tiny random model. */
import { generate, stream } from '../../lib/decode';
import type { LatentModel } from '../../lib/latentModel';
import { native } from '../../lib/native';
import { sample, tinyModel } from '../train/tinyModel';

let model: LatentModel;
// Weights large enough that logits differ by more than rounding.
beforeAll(async () => { model = await tinyModel({ initializerRange: 0.3 }); });
afterAll(() => model.dispose());

// Prompts of several lengths with 0, 1 and 2 pictures, 0 to 4 latents, differing word counts.
const REQUESTS = Array.from({ length: 9 }, (_, i) => {
  const { promptIds, pictures } = sample(i);
  return { promptIds, pictures, latentSteps: i % 5, maxNewTokens: 3 + (i % 4) };
});

test.each([{}, { temperature: 1, topP: 0.9, seed: 4 }])('a batch gives what each request gives alone: %j', async (options) => {
  expect(new Set(REQUESTS.map(({ pictures }) => pictures.length))).toEqual(new Set([0, 1, 2]));
  const alone = [];
  for (const request of REQUESTS) alone.push((await generate(model, [request], options))[0]);
  expect(await generate(model, REQUESTS, { ...options, batchSize: 9 })).toEqual(alone);
  expect(await generate(model, REQUESTS, { ...options, batchSize: 4 })).toEqual(alone);
});

test('n latents add exactly n rows', async () => {
  const rows = async (latentSteps: number): Promise<number> => (await generate(model, [{ ...REQUESTS[0]!, latentSteps, maxNewTokens: 1 }]))[0]!.tokenForwards;
  for (const n of [1, 2, 17]) expect(await rows(n)).toBe((await rows(0)) + n);
});

test('latents change what is said', async () => {
  const ids = async (latentSteps: number): Promise<number[]> => (await generate(model, [{ ...REQUESTS[1]!, latentSteps, maxNewTokens: 12 }]))[0]!.ids;
  expect(await ids(3)).not.toEqual(await ids(0));
});

test('aborting in the middle rejects with the reason and frees the session', async () => {
  const before = native().liveObjects().sessions;
  const controller = new AbortController();
  const reason = new Error('enough');
  let tokens = 0;
  await expect((async () => {
    for await (const event of stream(model, { promptIds: [1, 2] }, { maxNewTokens: 1000, stopIds: [], signal: controller.signal })) {
      if (event.type === 'token' && ++tokens === 3) controller.abort(reason);
    }
  })()).rejects.toBe(reason);
  expect(tokens).toBe(3);
  expect(native().liveObjects().sessions).toBe(before);
});

test('leaving a stream frees the session', async () => {
  const before = native().liveObjects().sessions;
  for await (const event of stream(model, REQUESTS[1]!)) if (event.type === 'token') break;
  expect(native().liveObjects().sessions).toBe(before);
});
