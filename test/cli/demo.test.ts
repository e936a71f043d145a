/** The whole demo with a model of a few thousand parameters and two steps per training. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { prepareRunFolder, runDemo, runDemoOf, type DemoResult } from '../../lib/cli/demo';
import type { DemoSize } from '../../lib/cli/demoSizes';
import { DEMO_SIZES } from '../../lib/cli/demoSizes';
import { demoTable } from '../../lib/cli/demoTable';
import { native } from '../../lib/native';
import { PRESETS } from '../../lib/model/preset';

const TINY: DemoSize = {
  ...DEMO_SIZES.small,
  text: { hidden: 32, layers: 4, heads: 4, kvHeads: 2, intermediate: 48, mropeSection: [2, 1, 1], ropeTheta: 10 },
  vision: { depth: 1, width: 16, heads: 2, mlpWidth: 24 },
  batchSize: 2, digitSteps: 1, warmupSteps: 1, explicitSteps: 2, stageSteps: 1, lastStageSteps: 2, questions: 8, minutes: 0.01,
};
const MODES = ['explicit words', 'no reasoning', 'latents', 'latents + replay', 'latents + routing', 'latents + both'];
const FOLDERS = ['explicit', 'direct', 'latent', 'latent-replay', 'latent-routing', 'latent-both'];

let folder: string;
beforeAll(() => {
  native().setThreads(1);
  folder = mkdtempSync(join(tmpdir(), 'plumbline-demo-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function options(name: string, more: { resume?: boolean; signal?: AbortSignal } = {}): Parameters<typeof runDemo>[0] {
  return { size: 'small', out: join(folder, name), seed: 3, resume: false, ...more };
}

const silent = { phase: () => {}, progress: () => {} };
const counts = ({ rows }: DemoResult): unknown => rows.map(({ name, evaluation, trainingSteps, preset }) => [name, evaluation.overall, evaluation.arStepsPerAnswer, trainingSteps, preset]);

describe('a run', () => {
  let result: DemoResult;
  const heard: string[] = [];
  const notes: string[] = [];
  beforeAll(async () => {
    result = await runDemoOf(TINY, options('whole'), { phase: (text) => heard.push(text), progress: (_, __, note) => notes.push(note) });
  });

  test('has the six modes in order, trained for the same steps', () => {
    expect(result.rows.map(({ name }) => name)).toEqual(MODES);
    expect(result.rows.map(({ trainingSteps, training }) => [trainingSteps, training.steps])).toEqual([[4, 4], ...new Array(5).fill([9, 5])]);
    expect(result.rows.map(({ latentSteps }) => latentSteps)).toEqual([0, 0, 3, 3, 3, 3]);
    expect(heard.filter((text) => text.startsWith('Training'))).toHaveLength(6);
    expect(result.totalSeconds).toBeGreaterThan(0);
  });
  test('each with its switches, in demo.json and in its checkpoint', () => {
    expect(result.rows.map(({ preset }) => [preset.replay, preset.routedLayers])).toEqual([
      [false, []], [false, []], [false, []], [true, []], [false, [1, 3]], [true, [1, 3]],
    ]);
    result.rows.forEach(({ checkpoint, preset, latentSteps }, n) => {
      const record = JSON.parse(readFileSync(join(folder, 'whole', checkpoint, 'plumbline.json'), 'utf8')) as { switches: object; latentSteps: number };
      expect(checkpoint.startsWith(`${FOLDERS[n]}/`)).toBe(true);
      expect({ name: 'default', ...record.switches }).toEqual({ ...preset });
      expect(record.latentSteps).toBe(latentSteps);
      expect({ ...preset, replay: true, routedLayers: 'odd' }).toEqual({ ...PRESETS.default, patches: 2, window: 2 });
    });
  });
  test('figures of replay and routing where there are any', () => {
    expect(result.rows.map(({ training }) => [training.isFinite, training.srLoss !== undefined, training.routing !== undefined])).toEqual([
      [true, false, false], [true, false, false], [true, false, false], [true, true, false], [true, false, true], [true, true, true],
    ]);
    expect(result.rows[5]!.training.routing!.target).toBe(0.1);
    expect(notes.some((note) => /SR loss \d.*routed \d+ %/.test(note))).toBe(true);
    const table = demoTable(result);
    for (const mode of MODES) expect(table.split('\n').filter((line) => line.startsWith(mode))).not.toHaveLength(0);
  });
  test('pictures of what was looked at', async () => {
    expect(result.gazes.map(({ file }) => file)).toEqual(['gaze-1.png', 'gaze-2.png', 'gaze-3.png', 'gaze-4.png'].slice(0, result.gazes.length));
    expect(result.gazes.length).toBeGreaterThanOrEqual(3);
    for (const { file } of result.gazes) expect((await sharp(join(folder, 'whole', file)).metadata()).width).toBe(1108);
  });
  test('is what demo.json holds', () => {
    expect(JSON.parse(readFileSync(join(folder, 'whole', 'demo.json'), 'utf8'))).toEqual(JSON.parse(JSON.stringify(result)));
  });
  test('stopped and resumed it gives the same', async () => {
    const stop = new AbortController();
    const reporter = { phase: () => {}, progress: (done: number, _: number, note: string) => { if (/SR loss.*routed/.test(note) && done === 3) stop.abort(); } };
    await expect(runDemoOf(TINY, options('stopped', { signal: stop.signal }), reporter)).rejects.toMatchObject({ name: 'AbortError' });
    expect(existsSync(join(folder, 'stopped', 'demo.json'))).toBe(false);
    expect(counts(await runDemoOf(TINY, options('stopped', { resume: true }), silent))).toEqual(counts(result));
  });
});

describe('run folders', () => {
  test('one with files is taken up on purpose only', async () => {
    await expect(runDemo(options('whole'), silent)).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: `[demo] Expected an empty run folder but received ${join(folder, 'whole')} with files in it; add --resume, or name another with --out`,
    });
  });
  test.each([['one seed', 'seed-3'], ['several seeds', 'explicit']] as const)('a run of %s does not go on with another', async (layout, found) => {
    const out = join(folder, layout);
    mkdirSync(join(out, found), { recursive: true });
    await expect(prepareRunFolder({ out, resume: true }, layout)).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: `[demo] Expected a run folder of ${layout} but received ${out} with ${found} in it; give the same --seeds as before, or name another folder with --out`,
    });
  });
});
