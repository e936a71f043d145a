/** What evidence says is what was computed: compared with an independent reading of the saliency, the grids and the passes. */
import { generate, type Evidence, type GenerateRequest, type GenerateResult } from '../../lib/decode';
import type { LatentModel } from '../../lib/latentModel';
import type { PresetChanges } from '../../lib/model/preset';
import { prompt, RAGGED, reasoner, settleThresholds, traces } from '../model/reasoner';
import { recording, type Recording } from './recording';

const [PATCHES, WINDOW, STEPS] = [4, 2, 3];
let model: LatentModel;
beforeAll(async () => {
  model = await reasoner({ patches: PATCHES, window: WINDOW, maxDepth: 3 });
  await settleThresholds(model, () => traces(model, RAGGED));
});
afterAll(() => model.dispose());

async function told(request: GenerateRequest, preset: PresetChanges = {}, recompute = false): Promise<{ result: GenerateResult; evidence: Evidence; recorded: Recording }> {
  const recorded = recording(model);
  const [result] = await generate(recorded, [{ latentSteps: STEPS, maxNewTokens: 4, ...request }], { stopIds: [], evidence: true, preset, recompute });
  expect(JSON.parse(JSON.stringify(result!.evidence))).toEqual(result!.evidence);   // plain JSON
  return { result: result!, evidence: result!.evidence!, recorded };
}

/** The best window of marks on a grid: every place is counted, the first maximum wins. */
function windowOf(marks: readonly { row: number; column: number }[], rows: number, columns: number): { row: number; column: number; height: number; width: number; patches: number } {
  const [height, width] = [Math.min(WINDOW, rows), Math.min(WINDOW, columns)];
  let best = { row: 0, column: 0, height, width, patches: -1 };
  for (let row = 0; row + height <= rows; row++) {
    for (let column = 0; column + width <= columns; column++) {
      const patches = marks.filter((mark) => mark.row >= row && mark.row < row + height && mark.column >= column && mark.column < column + width).length;
      if (patches > best.patches) best = { row, column, height, width, patches };
    }
  }
  return best;
}

/** Checks every step of an evidence against its own saliency. */
function expectSteps(evidence: Evidence, sumOfWeights: (count: number) => number): void {
  const used = new Set<string>();
  const tokens = evidence.images.reduce((sum, { rows, columns }) => sum + rows * columns, 0);
  evidence.steps.forEach(({ step, saliency, replayed, window }, n) => {
    expect(step).toBe(n + 1);
    expect(saliency.map(({ length }) => length)).toEqual(evidence.images.map(({ rows, columns }) => rows * columns));
    const free = saliency.flatMap((grid, image) => grid.map((score, i) => ({ score, image, row: Math.floor(i / evidence.images[image]!.columns), column: i % evidence.images[image]!.columns })))
      .filter(({ image, row, column }) => !used.has(`${image} ${row} ${column}`));
    for (const { score } of free) expect(score > 0 && score < 1).toBe(true);
    // Best first, the lower place on a tie (sort is stable).
    const best = free.sort((a, b) => b.score - a.score).slice(0, PATCHES);
    expect(replayed.map(({ image, row, column }) => [image, row, column])).toEqual(best.map(({ image, row, column }) => [image, row, column]));
    expect(replayed.length).toBe(Math.min(PATCHES, Math.max(0, tokens - PATCHES * n)));
    for (const { image, row, column } of replayed) used.add(`${image} ${row} ${column}`);
    if (replayed.length === 0) {
      expect(window).toBeUndefined();
      return;
    }
    expect(Math.abs(replayed.reduce((sum, { weight }) => sum + weight, 0) - sumOfWeights(replayed.length))).toBeLessThan(1e-5);
    const windows = evidence.images.map(({ rows, columns }, image) => ({ image, ...windowOf(replayed.filter((one) => one.image === image), rows, columns) }));
    const { box, ...rest } = window!;
    expect(rest).toEqual(windows.reduce((most, next) => (next.patches > most.patches ? next : most)));
    const { rows, columns, height, width } = evidence.images[rest.image]!;
    const edges = ([row, column, tall, wide]: readonly number[]): number[] => [
      Math.floor((column! * width) / columns), Math.floor((row! * height) / rows), Math.floor(((column! + wide!) * width) / columns), Math.floor(((row! + tall!) * height) / rows),
    ];
    expect(box).toEqual(edges([rest.row, rest.column, rest.height, rest.width]));
    for (const { row, column, box: own, image } of replayed) if (image === rest.image) expect(own).toEqual(edges([row, column, 1, 1]));
  });
}

describe('replay', () => {
  test.each<[string, PresetChanges, (count: number) => number]>([
    ['mean-preserving', {}, (count) => count], ['softmax', { weights: 'softmax' }, () => 1], ['soft-mix', { mode: 'soft-mix' }, () => 1],
  ])('one image, %s', async (_, preset, sum) => {
    const { evidence } = await told(prompt(1, [[2, 5]]), preset);
    expect(evidence).toMatchObject({ version: 1, images: [{ picture: 0, rows: 2, columns: 5, height: 47, width: 160 }] });
    expect(evidence.steps).toHaveLength(STEPS);
    expectSteps(evidence, sum);
  });
  test('two images compete for the places', async () => {
    const { evidence } = await told(prompt(6, [[2, 2], [3, 2]]));
    expect(evidence.images.map(({ picture, rows, columns }) => [picture, rows, columns])).toEqual([[0, 2, 2], [1, 3, 2]]);
    expectSteps(evidence, (count) => count);
    expect(new Set(evidence.steps.flatMap(({ replayed }) => replayed.map(({ image }) => image)))).toEqual(new Set([0, 1]));
  });
  test('the last image only, where the preset says so', async () => {
    const { evidence } = await told(prompt(6, [[2, 2], [3, 2]]), { allImages: false });
    expect(evidence.images.map(({ picture }) => picture)).toEqual([1]);
    expectSteps(evidence, (count) => count);
  });
  test('a video is not replayed, an image after it is: its tokens and no others', async () => {
    const source = prompt(7, [[2, 2, 4], [2, 3]]);
    const { evidence, recorded } = await told(source);
    expect(evidence.images.map(({ picture, rows, columns }) => [picture, rows, columns])).toEqual([[1, 2, 3]]);
    expectSteps(evidence, (count) => count);
    const own = new Set(recorded.replays.flatMap(({ result }) => [...result.selected]));
    expect(own).toEqual(new Set([0, 1, 2, 3, 4, 5]));
    const { evidence: none, result } = await told(prompt(7, [[2, 2, 4]]));
    expect(none.images).toEqual([]);
    expect(none.steps.map(({ replayed, saliency }) => [replayed, saliency])).toEqual(new Array(STEPS).fill([[], []]));
    expect(result.tokenForwards).toBe(prompt(7, [[2, 2, 4]]).promptIds.length + STEPS + 3);
  });
  test('official crops: boxes of the picture as the tower saw it', async () => {
    const { evidence } = await told(prompt(1, [[2, 5]]), { crop: 'official' });
    expect(evidence.images).toEqual([{ picture: 0, rows: 2, columns: 5, height: 56, width: 140 }]);
    for (const { window, replayed } of evidence.steps.filter((step) => step.window)) {
      expect(window!.box).toEqual([28 * window!.column, 28 * window!.row, 28 * (window!.column + window!.width), 28 * (window!.row + window!.height)]);
      for (const { row, column, box } of replayed) expect(box).toEqual([28 * column, 28 * row, 28 * (column + 1), 28 * (row + 1)]);
    }
  });
  test('a picture smaller than its grid still has boxes of a pixel', async () => {
    const [base] = prompt(1, [[2, 5]]).pictures;
    const tiny = { ...base!, original: { pixels: new Uint8Array(3 * 2), height: 1, width: 2 } };
    const { evidence } = await told({ ...prompt(1, [[2, 5]]), pictures: [tiny] });
    for (const [x1, y1, x2, y2] of evidence.steps.flatMap(({ replayed, window }) => [...replayed, ...(window ? [window] : [])].map(({ box }) => box))) {
      expect(x2 > x1 && y2 > y1).toBe(true);
    }
  });
  test('without latents there are no steps and no images; without replay no saliency', async () => {
    expect((await told({ ...prompt(1, [[2, 3]]), latentSteps: 0 })).evidence).toMatchObject({ images: [], steps: [] });
    const { evidence } = await told(prompt(1, [[2, 3]]), { replay: false });
    expect(evidence.images).toEqual([]);
    expect(evidence.steps.map(({ step, saliency, replayed }) => [step, saliency, replayed])).toEqual([[1, [], []], [2, [], []], [3, [], []]]);
  });
});

describe('words', () => {
  test('the likeliest after the state that a latent copies, best first; probabilities of the whole vocabulary', async () => {
    const { evidence, recorded } = await told(prompt(1, [[2, 3]]));
    evidence.steps.forEach(({ words }, n) => {
      const logits = [...recorded.passes[n]!.result.logits];
      const top = Math.max(...logits);
      const sum = logits.reduce((all, value) => all + Math.exp(value - top), 0);
      const best = logits.map((value, id) => ({ id, probability: Math.exp(value - top) / sum })).sort((a, b) => b.probability - a.probability).slice(0, 5);
      expect(words).toEqual(best);
    });
  });
  test('with a tokenizer they are words', async () => {
    const [result] = await generate({ ...recording(model), decodeText: (ids) => `<${ids.join()}>` }, [{ ...prompt(1, [[2, 3]]), latentSteps: 1 }], { evidence: true, maxNewTokens: 1 });
    for (const { id, text } of result!.evidence!.steps[0]!.words) expect(text).toBe(`<${id}>`);
  });
});

describe('routing', () => {
  test('rows are those of the whole sequence: a trace of all of it at once agrees', async () => {
    const request = prompt(6, [[2, 2], [3, 2]]);
    const [cached, again] = [await told(request), await told(request, {}, true)];
    const whole = again.recorded.passes.at(-1)!;
    expect(whole.pass.kind.length).toBe(cached.result.tokenForwards);
    expect(cached.evidence.routing.map(({ layer, depth }) => [layer, depth])).toEqual([[1, 2], [1, 3], [3, 2], [3, 3]]);
    for (const { layer, depth, rows } of cached.evidence.routing) {
      expect(rows).toEqual([...(whole.result.routing!.find((trace) => trace.layer === layer && trace.depth === depth)?.routed ?? [])]);
    }
    expect(cached.evidence.routing.some(({ rows }) => rows.length > 0)).toBe(true);
    expect(cached.evidence.routing).toEqual(again.evidence.routing);
    // Deeper passes take some of the rows of the one before.
    for (const layer of [1, 3]) {
      const [second, third] = [2, 3].map((depth) => cached.evidence.routing.find((entry) => entry.layer === layer && entry.depth === depth)!.rows);
      for (const row of third!) expect(second).toContain(row);
    }
    expect(cached.evidence.routing.flatMap(({ rows }) => rows).every((row) => row < cached.result.tokenForwards)).toBe(true);
  });
  test('no routing, no entries', async () => expect((await told(prompt(1, [[1, 1]]), { routedLayers: [] })).evidence.routing).toEqual([]));
});
