/** `plumbline profile`: what it prints and draws, and what is refused. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { program } from '../../lib/cli';
import type { ProfileSummary } from '../../lib/report';
import { headLine, stepLine } from '../report/madeProfile';

const LONG = 'x'.repeat(300);
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-cli-profile-'));
  for (const name of ['one', 'run/explicit', 'run/latent', 'mixed/a', 'mixed/b', 'bare', 'empty', 'broken']) mkdirSync(join(folder, name), { recursive: true });
  const lines = [headLine(), ...Array.from({ length: 20 }, (_, n) => stepLine(n + 1))].map((line) => `${line}\n`).join('');
  for (const name of ['one', 'run/explicit', 'run/latent', 'mixed/b']) writeFileSync(join(folder, name, 'profile.jsonl'), lines);
  for (const name of ['mixed/a', 'bare']) writeFileSync(join(folder, name, 'profile.jsonl'), `${headLine()}\n`);
  writeFileSync(join(folder, 'broken', 'profile.jsonl'), `${headLine({ version: 9 })}\n`);
});
afterAll(() => rmSync(folder, { recursive: true }));

async function run(...args: string[]): Promise<string> {
  let printed = '';
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += String(text);
    return true;
  });
  try {
    await program().parseAsync(['node', 'plumbline', 'profile', ...args]);
  } finally {
    write.mockRestore();
  }
  return printed;
}

test('findings in words, then tables', async () => {
  const printed = await run(join(folder, 'one'));
  expect(printed).toContain(`${join(folder, 'one')}: 20 profiled steps, 1 to 20\n\nGradient norms of image rows are smaller than those of words: 0.`);
  expect(printed).toMatch(/\n +prompt-text +image +latent +step-text +answer-text +image \/ words\n/);
  expect(printed).toMatch(/\nlayer 1 +2\.00 \(0\.00\)/);
  expect(printed).toContain('\nHard against easy samples\n');
  expect(printed).toMatch(/\nq, hard +4\.00 +1\.50 +4\.00 +2\.75\n/);
});
test('every training of a run, as JSON, of some steps', async () => {
  const found = JSON.parse(await run(join(folder, 'run'), '--json', '--from', '5', '--to', '14')) as (ProfileSummary & { name: string })[];
  expect(found.map(({ name, steps, firstStep, lastStep }) => [name, steps, firstStep, lastStep])).toEqual([['explicit', 10, 5, 14], ['latent', 10, 5, 14]]);
});
test('a training without steps is left out, and said to be', async () => {
  const said = jest.spyOn(process.stderr, 'write').mockImplementation(() => true);
  try {
    const found = JSON.parse(await run(join(folder, 'mixed'), '--json', '--html', join(folder, 'mixed.html'))) as { name: string }[];
    expect(found.map(({ name }) => name)).toEqual(['b']);
    expect(said.mock.calls).toEqual([[`a is left out: no profiled steps from 1, ${join(folder, 'mixed', 'a', 'profile.jsonl')} has none\n`]]);
  } finally {
    said.mockRestore();
  }
});
test('a file itself', async () => {
  const file = join(folder, 'one', 'profile.jsonl');
  expect(await run(file)).toContain(`${file}: 20 profiled steps, 1 to 20\n`);
});
test('draws them on one page', async () => {
  const html = join(folder, 'page.html');
  expect(await run(join(folder, 'run'), '--html', html)).toContain(`\nDrawn in ${html}\n`);
  const page = readFileSync(html, 'utf8');
  expect(page.match(/<h2>/g)).toHaveLength(2);
  expect(page).toContain(`<title>Gradient dynamics of ${join(folder, 'run')}</title>`);
});
test.each<[string, string[], string, (place: string) => string]>([
  ['empty', [], 'ERR_ARGUMENT', (place) => `[profile] Expected profile.jsonl in ${place}, or in folders of it, but received none; train with profileFile, or run the demo with --profile`],
  ['nowhere', [], 'ERR_ARGUMENT', (place) => `[profile] Expected profile.jsonl in ${place}, or in folders of it, but received none; train with profileFile, or run the demo with --profile`],
  ['broken', [], 'ERR_CHECKPOINT', (place) => `[readProfile] Expected a gradient profile of version 1 in ${join(place, 'profile.jsonl')} but received version 9; read it with the version of plumbline that wrote it, or train again`],
  ['one', ['--from', '30'], 'ERR_RANGE', (place) => `[profile] Expected profiled steps from 30 but received none: ${join(place, 'profile.jsonl')} has 1 to 20; widen the range, or train on`],
  ['bare', ['--from', '2', '--to', '3'], 'ERR_RANGE', (place) => `[profile] Expected profiled steps from 2 to 3 but received none: ${join(place, 'profile.jsonl')} has none; widen the range, or train on`],
  ['one/profile.jsonl/x', [], 'ERR_ARGUMENT', (place) => `[profile] Expected a folder or file that can be read but received ${place}: ENOTDIR: not a directory, stat '${place}'; check the path and its permissions`],
  [LONG, [], 'ERR_ARGUMENT', (place) => `[profile] Expected a folder or file that can be read but received ${place}: ENAMETOOLONG: name too long, stat '${place}'; check the path and its permissions`],
])('%s %j is refused', async (name, args, code, message) => {
  const place = join(folder, name);
  await expect(run(place, ...args)).rejects.toMatchObject({ name: 'LibError', code, message: message(place) });
});
test('a page that cannot be written', async () => {
  await expect(run(join(folder, 'one'), '--html', join(folder, 'none', 'x.html'))).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringContaining(`[profile] Expected ${join(folder, 'none')} to be a folder that can be written`) as string });
});
