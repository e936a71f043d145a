/**
 * The file of gradient dynamics, JSON Lines: a head, then one line per profiled optimiser step, their numbers rising.
 *
 * Norms and spectra are those of the gradient of the step's loss times its number of target tokens, so that they do not depend on the
 * number of a sample's batch-mates (the super-resolution loss is a mean over sequences, and is scaled alike). Nothing in the file
 * depends on the machine's clock: a resumed training writes the same bytes.
 */
import { readFile } from 'node:fs/promises';
import * as check from '../check';
import { fail } from '../errors';
import { isObject } from '../model/jsonReader';
import { ROW_CLASSES } from '../model/rowClass';
import { PROFILE_COLUMNS, type StatisticsRow } from './profileStatistics';

export const PROFILE_FORMAT = 'plumbline gradient profile';
const VERSION = 1;

/** Whose rows or gradients: all samples of the step, and both halves by running loss. */
export const PROFILE_GROUPS = Object.freeze(['all', 'easy', 'hard'] as const);
export type ProfileGroup = (typeof PROFILE_GROUPS)[number];

/** Figures of a matrix's gradient: sum and largest of its singular values, (sum s)^2 / sum s^2, sum / largest. */
export const SPECTRUM_COLUMNS = Object.freeze(['nuclear', 'spectral', 'effectiveRank', 'ratio'] as const);

export interface ProfileHead {
  format: typeof PROFILE_FORMAT;
  version: number;
  /** Levels are the input of each layer, and last the final hidden state before its norm: layers + 1. */
  layers: number;
  classes: string[];
  columns: string[];
  /** Parameters whose gradients' spectra are recorded; those that are too large for it. */
  matrices: string[];
  tooLarge: string[];
}

export interface ProfileSamples {
  /** Of the data set. */
  index: number[];
  /** Mean cross entropy of the sample's target tokens; null where it has none. */
  loss: (number | null)[];
  /** Exponential mean of the sample's losses over its profiled visits, this one included. */
  running: (number | null)[];
  group: ('easy' | 'hard' | null)[];
}

/** One profiled optimiser step. */
export interface ProfileStep {
  /** From 1, over all stages. */
  step: number;
  stage: string;
  /** Target tokens of the step. */
  targets: number;
  /** By [level][class]. */
  norms: Record<ProfileGroup, StatisticsRow[][]>;
  samples: ProfileSamples;
  /** By [matrix][SPECTRUM_COLUMNS]; absent on steps without. The halves' are absent where a step has fewer than two samples. */
  matrices?: Partial<Record<ProfileGroup, (number | null)[][]>>;
}

export interface GradientProfile {
  head: ProfileHead;
  steps: ProfileStep[];
  /** The last line has no end: it is being written, or was cut off by a crash. It is left out. */
  isCut: boolean;
}

export function profileHead(layers: number, matrices: string[], tooLarge: string[]): ProfileHead {
  return { format: PROFILE_FORMAT, version: VERSION, layers, classes: [...ROW_CLASSES], columns: [...PROFILE_COLUMNS], matrices, tooLarge };
}

/**
 * Reads a file that a training wrote with option `profileFile`.
 *
 * @throws {LibError} `ERR_ARGUMENT` when it cannot be read; `ERR_CHECKPOINT` naming the line when it is damaged or of another version.
 * @example
 * const summary = summarizeProfile(await readProfile('runs/demo-small-0/latent-both/profile.jsonl'));
 */
export async function readProfile(path: string): Promise<GradientProfile> {
  check.path('readProfile', 'path', path);
  const text = await readFile(path, 'utf8').catch((cause: Error) =>
    fail('ERR_ARGUMENT', 'readProfile', `Expected a readable file but received ${check.show(path)}: ${cause.message}; train with profileFile, or the demo with --profile`, { cause }));
  return parseProfile(text, path);
}

/**
 * Reads the text of such a file.
 *
 * @param path named in errors.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_CHECKPOINT` as `readProfile`.
 */
export function parseProfile(text: string, path: string): GradientProfile {
  check.string('parseProfile', 'text', text);
  check.path('parseProfile', 'path', path);
  const lines = text.split('\n');
  const isCut = lines.pop() !== '';
  if (lines.length === 0) fail('ERR_CHECKPOINT', 'readProfile', `Expected the head of a gradient profile in ${path} but received no whole line; train with profileFile again`);
  const head = parseHead(lines[0]!, path);
  const place = (n: number): Place => lineOf(path, n + 2);
  const steps = lines.slice(1).map((line, n) => checkStep(place(n).object(line), head, place(n)));
  requireRising(steps, place);
  return { head, steps, isCut };
}

/** @throws {LibError} `ERR_ARGUMENT` for what `parseProfile` would not have returned. */
export function checkProfile(op: string, profile: unknown): void {
  const { head, steps } = check.object(op, 'profile', profile) as Partial<GradientProfile>;
  const place = (where: string): Place => new Place(`profile.${where}`, (message, options) => fail('ERR_ARGUMENT', op, `${message}; give what readProfile or parseProfile returned`, options));
  const checked = checkHead(check.object(op, 'profile.head', head) as Record<string, unknown>, place('head'));
  // Array.from: holes are undefined, not skipped.
  const all = Array.from(check.array(op, 'profile.steps', steps), (step, n) => checkStep(step, checked, place(`steps[${n}]`)));
  requireRising(all, (n) => place(`steps[${n}]`));
}

function requireRising(steps: readonly ProfileStep[], place: (n: number) => Place): void {
  const fallen = steps.findIndex(({ step }, n) => n > 0 && step <= steps[n - 1]!.step);
  if (fallen > 0) place(fallen).fail(`a step above ${steps[fallen - 1]!.step}`, steps[fallen]!.step);
}

function lineOf(path: string, line: number): Place {
  return new Place(`line ${line} of ${path}`, (message, options) => fail('ERR_CHECKPOINT', 'readProfile', `${message}. The file is damaged: resume the training from an earlier checkpoint, or delete the line.`, options));
}

/** A line in a file or a part of a profile, for messages. */
class Place {
  constructor(private readonly where: string, private readonly refuse: (message: string, options: { cause?: unknown }) => never) {}

  fail(expected: string, received: unknown, cause?: unknown): never {
    return this.refuse(`Expected ${this.where} to have ${expected} but received ${check.show(received)}`, { cause });
  }

  object(line: string): Record<string, unknown> {
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (cause) {
      return this.fail('JSON', line, cause);
    }
    return isObject(value) ? value : this.fail('an object', value);
  }

  list(value: unknown, what: string, length?: number): unknown[] {
    if (!Array.isArray(value) || (length !== undefined && value.length !== length)) this.fail(length === undefined ? `a list as ${what}` : `a list of ${length} as ${what}`, value);
    return value as unknown[];
  }
}

function parseHead(line: string, path: string): ProfileHead {
  const place = lineOf(path, 1);
  const head = place.object(line);
  if (head.format === PROFILE_FORMAT && head.version !== VERSION) {
    fail('ERR_CHECKPOINT', 'readProfile', `Expected a gradient profile of version ${VERSION} in ${path} but received version ${check.show(head.version)}; read it with the version of plumbline that wrote it, or train again`);
  }
  return checkHead(head, place);
}

function checkHead(head: Record<string, unknown>, place: Place): ProfileHead {
  if (head.format !== PROFILE_FORMAT) place.fail(`format ${JSON.stringify(PROFILE_FORMAT)}`, head.format);
  if (head.version !== VERSION) place.fail(`version ${VERSION}`, head.version);
  const isList = (value: unknown, names: readonly string[]): boolean => Array.isArray(value) && value.length === names.length && names.every((name, n) => value[n] === name);
  if (!Number.isSafeInteger(head.layers) || (head.layers as number) < 1) place.fail('a number of layers', head.layers);
  if (!isList(head.classes, ROW_CLASSES)) place.fail(`classes ${ROW_CLASSES.join(', ')}`, head.classes);
  if (!isList(head.columns, PROFILE_COLUMNS)) place.fail(`columns ${PROFILE_COLUMNS.join(', ')}`, head.columns);
  for (const key of ['matrices', 'tooLarge']) if (!Array.from(place.list(head[key], key)).every((name) => typeof name === 'string')) place.fail(`names as ${key}`, head[key]);
  return head as unknown as ProfileHead;
}

function checkStep(value: unknown, head: ProfileHead, place: Place): ProfileStep {
  if (!isObject(value)) return place.fail('an object', value);
  const { step, stage, targets, norms, samples, matrices } = value;
  if (!Number.isSafeInteger(step) || (step as number) < 1) place.fail('a step of at least 1', step);
  if (typeof stage !== 'string') place.fail('the name of a stage', stage);
  if (!Number.isSafeInteger(targets) || (targets as number) < 1) place.fail('a number of targets', targets);
  if (!isObject(norms) || !isObject(samples)) return place.fail('norms and samples', norms);
  for (const group of PROFILE_GROUPS) {
    for (const row of place.list(norms[group], `norms.${group}`, head.layers + 1).flatMap((level) => place.list(level, `a level of norms.${group}`, ROW_CLASSES.length))) {
      if (row === null) continue;
      checkRow(place.list(row, `a row of norms.${group}`, PROFILE_COLUMNS.length), `norms.${group}`, place);
    }
  }
  const indices = place.list(samples.index, 'samples.index');
  for (const index of Array.from(indices)) if (!Number.isSafeInteger(index) || (index as number) < 0) place.fail('whole numbers in samples.index', index);
  const count = indices.length;
  for (const key of ['loss', 'running']) checkNumbers(place.list(samples[key], `samples.${key}`, count), `samples.${key}`, place);
  if (!place.list(samples.group, 'samples.group', count).every((group) => group === null || group === 'easy' || group === 'hard')) place.fail("'easy', 'hard' or null as samples.group", samples.group);
  if (matrices !== undefined) {
    if (!isObject(matrices)) return place.fail('matrices by group', matrices);
    for (const group of PROFILE_GROUPS) {
      if (matrices[group] === undefined) continue;
      for (const row of place.list(matrices[group], `matrices.${group}`, head.matrices.length)) checkNumbers(place.list(row, `a row of matrices.${group}`, SPECTRUM_COLUMNS.length), `matrices.${group}`, place, 0);
    }
  }
  return value as unknown as ProfileStep;
}

/** Of `PROFILE_COLUMNS`. A variance or quantile may have overflowed to null. */
function checkRow(row: readonly unknown[], what: string, place: Place): void {
  checkNumbers(row, what, place, 0);
  const [count, notFinite, ...figures] = row;
  for (const counted of [count, notFinite]) if (!Number.isSafeInteger(counted)) place.fail(`whole counts in ${what}`, counted);
  const [mean, , min, max] = figures;
  if ((count as number) > 0 && [mean, min, max].includes(null)) place.fail(`mean, min and max of ${String(count)} norms in ${what}`, null);
}

/** Finite ones of at least `least`, or null. */
function checkNumbers(values: readonly unknown[], what: string, place: Place, least = -Infinity): void {
  for (const value of Array.from(values)) {
    if (value === null || (Number.isFinite(value) && (value as number) >= least)) continue;
    place.fail(`${least === 0 ? 'finite numbers of at least 0' : 'finite numbers'} in ${what}`, value);
  }
}
