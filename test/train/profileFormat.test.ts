/** What is refused as a gradient profile, and with which words. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseProfile, readProfile } from '../../lib/train';
import { headLine, stepLine } from '../report/madeProfile';

const REMEDY = 'The file is damaged: resume the training from an earlier checkpoint, or delete the line.';

function parsed(...lines: string[]): ReturnType<typeof parseProfile> {
  return parseProfile(lines.map((line) => `${line}\n`).join(''), 'p.jsonl');
}

function refusal(call: () => unknown): { code: string; message: string } {
  try {
    call();
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error('nothing was thrown');
}

test('a whole file, and one whose last line has no end', () => {
  expect(parsed(headLine(), stepLine(1), stepLine(2))).toMatchObject({ isCut: false, steps: [{ step: 1 }, { step: 2 }] });
  expect(parseProfile(`${headLine()}\n${stepLine(1)}\n{"step":`, 'p.jsonl')).toMatchObject({ isCut: true, steps: [{ step: 1 }] });
});

test.each<[string, string[], string]>([
  ['no head', [], 'Expected the head of a gradient profile in p.jsonl but received no whole line; train with profileFile again'],
  ['other text', ['hello'], `Expected line 1 of p.jsonl to have JSON but received "hello". ${REMEDY}`],
  ['a list', ['[]'], `Expected line 1 of p.jsonl to have an object but received Array(0). ${REMEDY}`],
  ['metrics', ['{"step":1}'], `Expected line 1 of p.jsonl to have format "plumbline gradient profile" but received undefined. ${REMEDY}`],
  ['a later version', [headLine({ version: 2 })], 'Expected a gradient profile of version 1 in p.jsonl but received version 2; read it with the version of plumbline that wrote it, or train again'],
  ['no layers', [headLine({ layers: 0 })], `Expected line 1 of p.jsonl to have a number of layers but received 0. ${REMEDY}`],
  ['other classes', [headLine({ classes: ['image'] })], `Expected line 1 of p.jsonl to have classes prompt-text, image, replay, latent, step-text, answer-text but received Array(1). ${REMEDY}`],
  ['other columns', [headLine({ columns: [] })], `Expected line 1 of p.jsonl to have columns count, notFinite, mean, variance, min, max, q05, q25, q50, q75, q95 but received Array(0). ${REMEDY}`],
  ['classes in one text', [headLine({ classes: 'prompt-text,image,replay,latent,step-text,answer-text' })], `Expected line 1 of p.jsonl to have classes prompt-text, image, replay, latent, step-text, answer-text but received "prompt-text,image,replay,latent,step-text,answer-text". ${REMEDY}`],
  ['classes in a list of lists', [headLine({ classes: [['prompt-text', 'image'], 'replay', 'latent', 'step-text', 'answer-text'] })], `Expected line 1 of p.jsonl to have classes prompt-text, image, replay, latent, step-text, answer-text but received Array(5). ${REMEDY}`],
  ['matrices that are no names', [headLine({ matrices: [1] })], `Expected line 1 of p.jsonl to have names as matrices but received Array(1). ${REMEDY}`],
  ['no tooLarge', [headLine({ tooLarge: undefined })], `Expected line 1 of p.jsonl to have a list as tooLarge but received undefined. ${REMEDY}`],
  ['a cut line within', [headLine(), '{"step":', stepLine(2)], `Expected line 2 of p.jsonl to have JSON but received "{\\"step\\":". ${REMEDY}`],
  ['step 0', [headLine(), stepLine(0)], `Expected line 2 of p.jsonl to have a step of at least 1 but received 0. ${REMEDY}`],
  ['a step twice', [headLine(), stepLine(4), stepLine(4)], `Expected line 3 of p.jsonl to have a step above 4 but received 4. ${REMEDY}`],
  ['no stage', [headLine(), stepLine(1, { stage: 3 })], `Expected line 2 of p.jsonl to have the name of a stage but received 3. ${REMEDY}`],
  ['no targets', [headLine(), stepLine(1, { targets: 0 })], `Expected line 2 of p.jsonl to have a number of targets but received 0. ${REMEDY}`],
  ['no norms', [headLine(), stepLine(1, { norms: null })], `Expected line 2 of p.jsonl to have norms and samples but received null. ${REMEDY}`],
  ['too few levels', [headLine({ layers: 5 }), stepLine(1)], `Expected line 2 of p.jsonl to have a list of 6 as norms.all but received Array(3). ${REMEDY}`],
  ['a text among samples', [headLine(), stepLine(1, { samples: { index: [1], loss: ['x'], running: [1], group: [null] } })], `Expected line 2 of p.jsonl to have finite numbers in samples.loss but received "x". ${REMEDY}`],
  ['another group', [headLine(), stepLine(1, { samples: { index: [1], loss: [1], running: [1], group: ['odd'] } })], `Expected line 2 of p.jsonl to have 'easy', 'hard' or null as samples.group but received Array(1). ${REMEDY}`],
  ['matrices that are none', [headLine(), stepLine(1, { matrices: 3 })], `Expected line 2 of p.jsonl to have matrices by group but received 3. ${REMEDY}`],
  ['too few matrices', [headLine(), stepLine(1, { matrices: { all: [] } })], `Expected line 2 of p.jsonl to have a list of 2 as matrices.all but received Array(0). ${REMEDY}`],
])('%s', (_, lines, message) => {
  expect(refusal(() => parsed(...lines))).toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[readProfile] ${message}` });
});

test('counts must be whole', () => {
  const norms = (JSON.parse(stepLine(1)) as { norms: Record<string, unknown[][][]> }).norms;
  norms.all![0]![1]![0] = null;
  expect(refusal(() => parsed(headLine(), stepLine(1, { norms })))).toMatchObject({ code: 'ERR_CHECKPOINT', message: `[readProfile] Expected line 2 of p.jsonl to have whole counts in norms.all but received null. ${REMEDY}` });
});

test.each<[string, number, number | null, string]>([
  ['half a row', 0, 1.5, 'whole counts in norms.all but received 1.5'],
  ['fewer than no rows', 1, -1, 'finite numbers of at least 0 in norms.all but received -1'],
  ['a norm below 0', 4, -0.5, 'finite numbers of at least 0 in norms.all but received -0.5'],
  ['no mean', 2, null, 'mean, min and max of 10 norms in norms.all but received null'],
  ['no least', 4, null, 'mean, min and max of 10 norms in norms.all but received null'],
  ['no largest', 5, null, 'mean, min and max of 10 norms in norms.all but received null'],
])('%s', (_, column, value, expected) => {
  const norms = (JSON.parse(stepLine(1)) as { norms: Record<string, unknown[][][]> }).norms;
  norms.all![0]![1]![column] = value;
  expect(refusal(() => parsed(headLine(), stepLine(1, { norms })))).toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[readProfile] Expected line 2 of p.jsonl to have ${expected}. ${REMEDY}` });
});

test('numbers beyond float64, and samples without one', () => {
  const line = stepLine(1).replace('"loss":[1,', '"loss":[1e999,');
  expect(refusal(() => parsed(headLine(), line))).toMatchObject({ code: 'ERR_CHECKPOINT', message: `[readProfile] Expected line 2 of p.jsonl to have finite numbers in samples.loss but received Infinity. ${REMEDY}` });
  const samples = { index: [-1], loss: [1], running: [1], group: [null] };
  expect(refusal(() => parsed(headLine(), stepLine(1, { samples })))).toMatchObject({ code: 'ERR_CHECKPOINT', message: `[readProfile] Expected line 2 of p.jsonl to have whole numbers in samples.index but received -1. ${REMEDY}` });
});

test.each<[unknown, unknown, string]>([
  [undefined, 'p', 'text to be a string but received undefined'],
  [Buffer.from('abc'), 'p', 'text to be a string but received Uint8Array(3)'],
  [`${headLine()}\n`, undefined, 'path to be a string but received undefined'],
])('arguments %#', (text, path, message) => {
  expect(refusal(() => parseProfile(text as string, path as string))).toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[parseProfile] Expected ${message}` });
});

test('a file that is not there', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'plumbline-format-'));
  await expect(readProfile(join(folder, 'x'))).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_ARGUMENT', message: expect.stringMatching(/^\[readProfile\] Expected a readable file but received ".*": ENOENT.*; train with profileFile, or the demo with --profile$/) as string,
  });
  await expect(readProfile(3 as unknown as string)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[readProfile] Expected path to be a string but received 3' });
  writeFileSync(join(folder, 'p'), `${headLine()}\n`);
  expect((await readProfile(join(folder, 'p'))).steps).toEqual([]);
  rmSync(folder, { recursive: true });
});
