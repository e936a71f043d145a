/** Gradient dynamics in training: what is written, that it changes no weight, and that a resumed run writes the same bytes. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LatentModel } from '../../lib/latentModel';
import { readProfile, train, trainAll, type GradientProfile, type TrainArguments, type TrainingStage } from '../../lib/train';
import { contents, endless, sample, tinyModel } from './tinyModel';

let folder: string;
let models: LatentModel[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-profile-'));
  models = [];
});
afterEach(() => {
  for (const model of models) model.dispose();
  rmSync(folder, { recursive: true });
});

async function fresh(options?: Parameters<typeof tinyModel>[0]): Promise<LatentModel> {
  models.push(await tinyModel({ preset: { patches: 2, window: 2 }, ...options }));
  return models.at(-1)!;
}

const STAGES: TrainingStage[] = [
  { name: 'words', shape: {}, steps: 3, learningRate: 3e-3, finalRate: 1 },
  { name: 'latents', shape: { stage: 2, padLatents: true }, steps: 4, learningRate: 1e-3 },
];
const BASE: TrainArguments = { data: endless, stages: STAGES, batchSize: 3, accumulation: 2, seed: 9, trainVision: true };

function file(name = 'profile.jsonl'): string {
  return join(folder, name);
}

async function profiled(options: Partial<TrainArguments>, model?: LatentModel): Promise<GradientProfile> {
  await trainAll(model ?? await fresh(), { ...BASE, profileFile: file(), ...options });
  return readProfile(file());
}

function sameBits(a: Map<string, Float32Array>, b: Map<string, Float32Array>): boolean {
  return [...a].every(([name, values]) => Buffer.compare(Buffer.from(values.buffer), Buffer.from(b.get(name)!.buffer)) === 0);
}

test('changes no weight, with matrices at every other step', async () => {
  const [plain, watched] = [await fresh(), await fresh()];
  await trainAll(plain, BASE);
  await profiled({ profileMatricesEvery: 2 }, watched);
  expect(sameBits(await contents(plain), await contents(watched))).toBe(true);
});

test('has a line for each step, with rows of every class that the stage has', async () => {
  const { head, steps, isCut } = await profiled({ profileMatricesEvery: 0 });
  expect([head.layers, head.matrices.length, head.tooLarge.length, isCut]).toEqual([2, 8, 0, false]);
  expect(steps.map(({ step, stage }) => [step, stage])).toEqual([...[1, 2, 3].map((step) => [step, 'words']), ...[4, 5, 6, 7].map((step) => [step, 'latents'])]);
  const counts = (place: number): number[] => steps[place]!.norms.all[0]!.map((row) => row?.[0] ?? 0);
  const samples = [0, 1, 2, 3, 4, 5].map(sample);
  expect(steps[0]!.samples.index).toEqual([0, 1, 2, 3, 4, 5]);
  expect(counts(0)[1]).toBe(samples.reduce((sum, { promptIds }) => sum + Array.from(promptIds).filter((id) => id === 40).length, 0));
  expect(counts(0)[4]).toBe(samples.reduce((sum, { steps: own }) => sum + own.flat().length, 0));
  expect(counts(0)[5]).toBe(6);   // the answer but its last word, which is not fed
  expect([counts(0)[2], counts(0)[3]]).toEqual([0, 0]);
  expect(counts(3)[3]).toBe(12);
  expect(counts(3)[2]).toBeGreaterThan(0);
  for (const { norms, samples: own, targets } of steps) {
    expect(own.group.filter((group) => group === 'easy')).toHaveLength(3);
    const [all, easy, hard] = (['all', 'easy', 'hard'] as const).map((group) => norms[group].flat().reduce((sum, row) => sum + (row?.[0] ?? 0), 0));
    expect(easy! + hard!).toBe(all);
    expect(targets).toBeGreaterThan(0);
  }
});

test('norms are those of the sum over targets: the same whatever the batch-mates', async () => {
  const stages: TrainingStage[] = [{ name: 'half', shape: { stage: 1 }, steps: 1, learningRate: 0 }];
  const preset = { tokenSr: false, srAdded: false };
  const whole = await profiled({ stages, batchSize: 6, accumulation: 1, preset, profileMatricesEvery: 0 });
  const split = await profiled({ stages, batchSize: 2, accumulation: 3, preset, profileMatricesEvery: 0 });
  const alone = await profiled({ stages, batchSize: 1, accumulation: 1, preset, profileMatricesEvery: 0 });
  const numbers = ({ steps }: GradientProfile): number[] => steps[0]!.norms.all.flat().flatMap((row) => row ?? []).map(Number);
  numbers(whole).forEach((value, n) => expect(Math.abs(value - numbers(split)[n]!)).toBeLessThan(1e-4 * Math.abs(value) + 1e-5));
  expect(alone.steps[0]!.targets).toBeLessThan(whole.steps[0]!.targets);
  expect(alone.steps[0]!.samples.loss[0]).toBeCloseTo(whole.steps[0]!.samples.loss[0]!, 4);
  // The sample's own largest norm is at most the largest of its batch, which would not hold of a mean over targets.
  expect(alone.steps[0]!.norms.all[0]![0]![5]).toBeLessThanOrEqual(whole.steps[0]!.norms.all[0]![0]![5]! * 1.0001);
});

test('a preset that looks ahead sums the gradients of a row over its passes', async () => {
  const stages: TrainingStage[] = [{ name: 'latents', shape: { stage: 2, padLatents: true }, steps: 1, learningRate: 0 }];
  const numbers = async (rule: 'topk' | 'prefix-topk'): Promise<number[]> => {
    // So many that all rows are routed by either rule.
    const { steps } = await profiled({ stages, profileMatricesEvery: 0 }, await fresh({ preset: { rule, alpha: 1000, patches: 2, window: 2, tokenSr: false, srAdded: false } }));
    return steps[0]!.norms.all.flat().flatMap((row) => row ?? []).map(Number);
  };
  const [cached, again] = [await numbers('prefix-topk'), await numbers('topk')];
  expect(again).toHaveLength(cached.length);
  cached.forEach((value, n) => expect(Math.abs(value - again[n]!)).toBeLessThan(1e-3 * Math.abs(value) + 1e-4));
});

test('every so many steps, and matrices every so many others', async () => {
  const { steps } = await profiled({ profileEvery: 3, profileMatricesEvery: 2 });
  expect(steps.map(({ step, matrices }) => [step, matrices !== undefined])).toEqual([[1, true], [3, true], [4, false], [5, true], [7, true]]);
  const [first] = steps;
  for (const group of ['all', 'easy', 'hard'] as const) {
    expect(first!.matrices![group]).toHaveLength(8);
    for (const [nuclear, spectral, rank, ratio] of first!.matrices![group] as number[][]) {
      expect(nuclear).toBeGreaterThanOrEqual(spectral!);
      expect(ratio).toBeCloseTo(nuclear! / spectral!, 6);
      expect(rank).toBeGreaterThanOrEqual(1 - 1e-9);
      expect(rank).toBeLessThanOrEqual(32);
    }
  }
});

test('matrices that are too large are named', async () => {
  const { head } = await profiled({ profileMatrixSide: 16, stages: STAGES.slice(0, 1) });
  expect(head.matrices.map((name) => name.replace(/.*\.(\w)_proj.*/, '$1'))).toEqual(['k', 'v', 'k', 'v']);
  expect(head.tooLarge).toContain('model.layers.0.self_attn.q_proj.weight');
});

test.each([1, 4, 6])('stopped after step %i and resumed it is the same file to the byte', async (stop) => {
  // A data set of 8: samples come again, and their running losses must be taken up.
  const data = { size: 8, at: sample };
  await profiled({ data, profileFile: file('straight.jsonl'), profileMatricesEvery: 3 }).catch(() => {});
  const options = { ...BASE, data, profileFile: file('run.jsonl'), profileMatricesEvery: 3, checkpointFolder: join(folder, 'run'), resume: 'latest' };
  const controller = new AbortController();
  const reason = new Error('enough');
  await expect((async () => {
    for await (const event of train(await fresh(), { ...options, signal: controller.signal })) if (event.type === 'step' && event.metrics.step === stop) controller.abort(reason);
  })()).rejects.toBe(reason);
  writeFileSync(file('run.jsonl'), `${readFileSync(file('run.jsonl'), 'utf8')}{"step": 7, "cut`);
  await trainAll(await fresh({ seed: 77 }), options);
  expect(readFileSync(file('run.jsonl'), 'utf8')).toBe(readFileSync(file('straight.jsonl'), 'utf8'));
  const { steps } = await readProfile(file('run.jsonl'));
  expect(steps.some(({ samples }) => samples.loss.some((loss, n) => loss !== samples.running[n]))).toBe(true);
});

describe('misuse', () => {
  test.each<[object, string, string]>([
    [{ profileEvery: 0 }, 'ERR_RANGE', '[train] Expected profileEvery to be an integer of at least 1 but received 0'],
    [{ profileMatricesEvery: -1 }, 'ERR_RANGE', '[train] Expected profileMatricesEvery to be an integer of at least 0 but received -1'],
    [{ profileMatrixSide: 1.5 }, 'ERR_RANGE', '[train] Expected profileMatrixSide to be an integer of at least 1 but received 1.5'],
    [{ profileEvery: 2 }, 'ERR_ARGUMENT', '[train] Expected profileFile together with profileEvery but received none'],
    [{ profileMatricesEvery: 2 }, 'ERR_ARGUMENT', '[train] Expected profileFile together with profileMatricesEvery but received none'],
    [{ profileMatrixSide: 64 }, 'ERR_ARGUMENT', '[train] Expected profileFile together with profileMatrixSide but received none'],
    [{ profileFile: 'a/p', metricsFile: './a/../a/p' }, 'ERR_ARGUMENT', '[train] Expected profileFile and metricsFile to be two files but received a/p and ./a/../a/p; name another for one of them'],
    [{ profileFile: 5 }, 'ERR_ARGUMENT', '[train] Expected profileFile to be a string but received 5'],
    [{ profileFile: '' }, 'ERR_ARGUMENT', '[train] Expected profileFile to be a path but received ""'],
  ])('%j', async (change, code, message) => {
    await expect(trainAll(await fresh(), { ...BASE, ...change } as TrainArguments)).rejects.toMatchObject({ name: 'LibError', code, message });
  });
  test.each(['profileFile', 'metricsFile'] as const)('%s is a file of somebody else', async (option) => {
    writeFileSync(file('notes'), 'my notes\n');
    writeFileSync(file('metrics'), '{"step":1}\n');
    const others = option === 'profileFile' ? { metricsFile: file('metrics') } : { profileFile: file() };
    await expect(trainAll(await fresh(), { ...BASE, ...others, [option]: file('notes') })).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_ARGUMENT',
      message: `[train] Expected ${option} to be a new or empty file or ${option === 'profileFile' ? 'a gradient profile' : 'metrics of a training'} but received ${file('notes')}, which begins with "my notes"; name another file, or move this one away`,
    });
    expect([readFileSync(file('notes'), 'utf8'), readFileSync(file('metrics'), 'utf8'), existsSync(file())]).toEqual(['my notes\n', '{"step":1}\n', false]);
  });
  test('resumed with another profileMatrixSide', async () => {
    const stages = STAGES.slice(0, 1);
    const options = { ...BASE, stages, profileFile: file(), metricsFile: file('metrics'), checkpointFolder: join(folder, 'run'), resume: 'latest' };
    await trainAll(await fresh(), options);
    writeFileSync(file('metrics'), `${readFileSync(file('metrics'), 'utf8')}{"step":4}\n`);
    const before = [file(), file('metrics')].map((name) => readFileSync(name, 'utf8'));
    await expect(trainAll(await fresh(), { ...options, profileMatrixSide: 16 })).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_ARGUMENT',
      message: `[train] Expected profileMatrixSide to choose the 8 matrices of the steps before, in ${file()}, but received 4 others; resume with the same profileMatrixSide, device and trained parameters, or name another profileFile`,
    });
    expect([file(), file('metrics')].map((name) => readFileSync(name, 'utf8'))).toEqual(before);
    const [head, ...rest] = before[0]!.split('\n');
    const deep = [JSON.stringify({ ...JSON.parse(head!) as object, layers: 3 }), ...rest.map((line) => (line === '' ? '' : JSON.stringify(JSON.parse(line, (key, value: unknown) => (['all', 'easy', 'hard'].includes(key) && Array.isArray(value) && value.length === 3 ? [...value as unknown[], value[2]] : value)))))].join('\n');
    writeFileSync(file(), deep);
    await expect(trainAll(await fresh(), options)).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_ARGUMENT', message: `[train] Expected profileFile to be a profile of 2 layers, as the model has, but received 3 layers in ${file()}; resume with the same model, or name another file`,
    });
    expect(readFileSync(file(), 'utf8')).toBe(deep);
  });
  test('a place that cannot be written', async () => {
    await expect(trainAll(await fresh(), { ...BASE, profileFile: folder })).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_ARGUMENT', message: expect.stringContaining(`[train] Expected profileFile to be a file that can be written but received ${folder}: EISDIR`) as string,
    });
  });
});
