/** `plumbline profile`: what the gradient profiles of a run say, in words, tables and one page of pictures. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fail } from '../errors';
import { writeAtomically, writing } from '../model/files';
import { ROW_CLASSES } from '../model/rowClass';
import { profileFindings, profileHtml, summarizeProfile, type NamedProfile, type ProfileSummary, type SummaryOptions } from '../report';
import { figure, levelName, ratioText } from '../report/profileWords';
import { readProfile, SPECTRUM_COLUMNS } from '../train';
import { percent, table } from './table';

/** Beside the checkpoints of a training. */
export const PROFILE_NAME = 'profile.jsonl';

interface ProfileArguments extends SummaryOptions {
  json: boolean;
  html?: string;
}

interface FoundProfile extends NamedProfile {
  file: string;
}

/** The profile of a folder, those of the folders in it (the trainings of a demo), or the file itself. @throws {LibError} `ERR_ARGUMENT` when there is none. */
export async function findProfiles(place: string): Promise<FoundProfile[]> {
  const files = profileFiles(place);
  if (files.length === 0) {
    fail('ERR_ARGUMENT', 'profile', `Expected ${PROFILE_NAME} in ${place}, or in folders of it, but received none; train with profileFile, or run the demo with --profile`);
  }
  return Promise.all(files.map(async ({ name, file }) => ({ name, file, profile: await readProfile(file) })));
}

function profileFiles(place: string): { name: string; file: string }[] {
  try {
    const found = statSync(place, { throwIfNoEntry: false });
    if (found === undefined) return [];
    if (!found.isDirectory()) return [{ name: place, file: place }];
    const own = join(place, PROFILE_NAME);
    if (existsSync(own)) return [{ name: place, file: own }];
    return readdirSync(place, { withFileTypes: true }).filter((entry) => entry.isDirectory())
      .map(({ name }) => ({ name, file: join(place, name, PROFILE_NAME) })).filter(({ file }) => existsSync(file)).sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (cause) {
    return fail('ERR_ARGUMENT', 'profile', `Expected a folder or file that can be read but received ${place}: ${(cause as Error).message}; check the path and its permissions`, { cause });
  }
}

/** Trainings without a step in the range are told on standard error and left out. @throws {LibError} `ERR_RANGE` when none is left. */
function withSteps(found: readonly FoundProfile[], { from = 1, to = Infinity }: SummaryOptions): FoundProfile[] {
  const has = ({ profile: { steps } }: FoundProfile): boolean => steps.some(({ step }) => step >= from && step <= to);
  const steps = ({ file, profile: { steps: own } }: FoundProfile): string => `${file} has ${own.length === 0 ? 'none' : `${own[0]!.step} to ${own.at(-1)!.step}`}`;
  const range = `from ${from}${to === Infinity ? '' : ` to ${to}`}`;
  const used = found.filter(has);
  if (used.length === 0) fail('ERR_RANGE', 'profile', `Expected profiled steps ${range} but received none: ${found.map(steps).join(', ')}; widen the range, or train on`);
  for (const left of found.filter((entry) => !has(entry))) process.stderr.write(`${left.name} is left out: no profiled steps ${range}, ${steps(left)}\n`);
  return used;
}

/** @throws {LibError} see `findProfiles`, `readProfile`, `summarizeProfile`. */
export async function profile(folder: string, { json, html, ...range }: ProfileArguments): Promise<void> {
  const found = withSteps(await findProfiles(folder), range).map(({ name, profile: own }) => ({ name, profile: own }));
  const summaries = found.map(({ name, profile: own }) => ({ name, isCut: own.isCut, summary: summarizeProfile(own, range) }));
  if (html !== undefined) await writing('profile', dirname(html), () => writeAtomically(html, (write) => write(Buffer.from(profileHtml(found, { ...range, title: `Gradient dynamics of ${folder}` })))));
  if (json) process.stdout.write(`${JSON.stringify(summaries.map(({ name, summary }) => ({ name, ...summary })), null, 2)}\n`);
  else process.stdout.write(`${summaries.map(({ name, isCut, summary }) => profileText(name, isCut, summary)).join('\n\n')}\n${html === undefined ? '' : `\nDrawn in ${html}\n`}`);
}

/** Findings, then the tables behind them. */
export function profileText(name: string, isCut: boolean, summary: ProfileSummary): string {
  const { steps, firstStep, lastStep, hardAgainstEasy, tooLarge } = summary;
  return [
    `${name}: ${steps} profiled steps, ${firstStep} to ${lastStep}${isCut ? ' (the last line of the file is incomplete and left out)' : ''}`,
    '', ...profileFindings(summary),
    '', 'Mean gradient norm times target tokens (volatility) by class of row', classTable(summary),
    ...(hardAgainstEasy.length === 0 ? [] : ['', 'Hard against easy samples', table([['class', 'ratio', 'steps above 1'], ...hardAgainstEasy.map((row) => [row.class, ratioText(row), percent(row.shareAbove)])])]),
    ...(summary.matrices.length === 0 ? [] : ['', 'Spectra of weight gradients, means over layers and steps', matrixTable(summary)]),
    ...(tooLarge.length === 0 ? [] : ['', `${tooLarge.length} matrices were too large for spectra (profileMatrixSide).`]),
  ].join('\n');
}

function classTable({ layers, classes, imageAgainstText }: ProfileSummary): string {
  const names = ROW_CLASSES.filter((name) => classes.some((row) => row.class === name));
  const rows = Array.from({ length: layers + 1 }, (_, level) => {
    const cells = names.map((name) => {
      const own = classes.find((row) => row.level === level && row.class === name);
      return own === undefined ? '-' : `${figure(own.mean)} (${figure(own.volatility)})`;
    });
    const ratio = imageAgainstText.find((row) => row.against === 'text' && row.level === level);
    return [levelName(level, layers), ...cells, ratio === undefined ? '-' : ratioText(ratio)];
  });
  return table([['', ...names, 'image / words'], ...rows]);
}

function matrixTable({ matrices }: ProfileSummary): string {
  const rows = ['q', 'k', 'v', 'o'].flatMap((kind) => ['all', 'easy', 'hard'].flatMap((group): string[][] => {
    const own = matrices.filter((row) => row.group === group && row.matrix.includes(`.${kind}_proj.`));
    if (own.length === 0) return [];
    return [[`${kind}, ${group === 'all' ? 'all samples' : group}`, ...SPECTRUM_COLUMNS.map((column) => figure(own.reduce((sum, row) => sum + row[column], 0) / own.length))]];
  }));
  return table([['', 'nuclear', 'spectral', 'effective rank', 'nuclear / spectral'], ...rows]);
}
