/** The file of `plumbline train`: YAML or JSON, every key checked before anything is loaded. examples/train.yaml explains the keys. */
import { readFileSync } from 'node:fs';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { parseDocument } from 'yaml';
import * as check from '../check';
import { LibError, fail } from '../errors';
import { MAX_DROPOUT, MAX_RANK } from '../model/adapter';
import type { LoadOptions } from '../model/modelOptions';
import { DEFAULT_MAX_PIXELS, MAX_PICTURE_SIDE, MAX_PIXELS } from '../model/pictures';
import { makePreset, PRESETS, type PresetChanges, type PresetName } from '../model/preset';
import type { RecordOptions, TrainArguments, TrainingStage } from '../train';
import { ConfigReader } from './configReader';
import { curriculumStages, MAX_STEPS, readStages } from './trainStages';

export interface TrainConfig {
  /** The file. */
  file: string;
  /** Directory of the checkpoint to start from. */
  model: string;
  /** JSON Lines of records. */
  data: string;
  evaluation?: EvaluationConfig;
  /** Run folder. */
  out: string;
  load: Pick<LoadOptions, 'dtype' | 'device' | 'preset' | 'adapter' | 'seed'>;
  records: RecordOptions;
  stages: TrainingStage[];
  training: Pick<TrainArguments, 'batchSize'> & Partial<Omit<TrainArguments, 'data' | 'stages' | 'batchSize'>>;
}

export interface EvaluationConfig {
  data: string;
  /** Words at most. */
  maxNewTokens: number;
  batchSize: number;
  /** Records at most, from the first; undefined: all. */
  limit?: number;
}

export const TRAIN_KEYS = [
  'model', 'data', 'evaluation', 'out', 'preset', 'adapter', 'dtype', 'device', 'seed', 'stages', 'curriculum', 'maxSteps', 'images', 'batchSize', 'accumulation',
  'optimizer', 'trainVision', 'recompute', 'checkpoints', 'profile', 'cacheBytes', 'maxMemoryBytes',
];
/** Bytes of a file of settings: more is a file of another kind. */
const MAX_BYTES = 1 << 20;
/** Sequences that are worked on at once. */
const MAX_BATCH = 65536;
/** Seeds, and counts that only memory bounds. */
const ANY = Number.MAX_SAFE_INTEGER;
/** Of any model. */
const MAX_LAYERS = 4096;

/**
 * Reads and checks the file; relative paths in it are taken from its own folder.
 *
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` naming the key by its path, as in `stages[1].epochs`.
 */
export function readTrainConfig(file: string): TrainConfig {
  const top = new ConfigReader(file, parse(file), '', TRAIN_KEYS);
  const folder = dirname(resolve(file));
  const path = (reader: ConfigReader, key: string): string => resolve(folder, reader.path(key));
  const name = basename(file, extname(file));
  const seed = top.integer('seed', 0, 0, ANY);
  const evaluation = evaluationOf(top, path);
  return {
    file, model: path(top, 'model'), data: path(top, 'data'), ...(evaluation === undefined ? {} : { evaluation }),
    out: top.has('out') ? path(top, 'out') : join(folder, 'runs', name),
    load: { seed, ...loading(top, folder) },
    records: withSizes(top, records(top)),
    stages: stagesOf(top),
    training: { seed, ...training(top) },
  };
}

function parse(file: string): unknown {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    return fail('ERR_ARGUMENT', 'train', `Expected --config to name a file that can be read but received ${check.show(file)}: ${(cause as Error).message}`, { cause });
  }
  if (text.length > MAX_BYTES) fail('ERR_ARGUMENT', 'train', `Expected ${file} to have at most ${MAX_BYTES} characters but received ${text.length}; it is no file of settings`);
  try {
    // No aliases: with them a few lines can stand for gigabytes.
    const document = parseDocument(text, { prettyErrors: true });
    const [wrong] = [...document.errors, ...document.warnings];
    if (wrong !== undefined) throw wrong;
    return document.toJS({ maxAliasCount: 0 }) as unknown;
  } catch (cause) {
    return fail('ERR_ARGUMENT', 'train', `Expected ${file} to be YAML or JSON but received: ${(cause as Error).message.split('\n')[0]!.replace(/:$/, '')}`, { cause });
  }
}

function loading(top: ConfigReader, folder: string): Omit<TrainConfig['load'], 'seed'> {
  return {
    dtype: top.oneOf('dtype', 'auto', ['auto', 'f32', 'bf16']),
    ...(top.has('device') ? { device: top.oneOf('device', 'auto', ['auto', 'cpu', 'cuda']) } : {}),
    ...(top.has('preset') ? { preset: presetOf(top) } : {}),
    ...adapterOf(top, folder),
  };
}

/** A name, or switches; which layers there are to route and what they are changes of, only the model says. */
function presetOf(top: ConfigReader): PresetName | PresetChanges {
  if (typeof top.raw('preset') === 'string') return top.oneOf<PresetName>('preset', undefined, ['default', 'paper', 'official']);
  const changes: PresetChanges = { ...top.object('preset') };
  try {
    // Where the preset that they change decides, the one that allows most.
    makePreset(changes, MAX_LAYERS, changes.misordered === true ? PRESETS.official : PRESETS.default);
  } catch (error) {
    if (!(error instanceof LibError)) throw error;
    throw new LibError(error.code, `${error.message} (${top.name('preset')})`, { cause: error });
  }
  return changes;
}

function adapterOf(top: ConfigReader, folder: string): Pick<TrainConfig['load'], 'adapter'> {
  const value = top.raw('adapter');
  if (value === undefined || value === 'none') return {};
  if (typeof value === 'string') return { adapter: resolve(folder, top.path('adapter')) };
  const adapter = top.child('adapter', ['rank', 'alpha', 'dropout', 'targets', 'vision']);
  return {
    adapter: {
      ...adapter.given('rank', () => adapter.integer('rank', undefined, 1, MAX_RANK)), ...adapter.given('alpha', () => adapter.number('alpha', undefined, Number.MIN_VALUE)),
      ...adapter.given('dropout', () => adapter.number('dropout', undefined, 0, MAX_DROPOUT)), ...adapter.given('targets', () => adapter.strings('targets')),
      ...adapter.given('vision', () => adapter.boolean('vision', false)),
    },
  };
}

function records(top: ConfigReader): RecordOptions {
  const images = top.child('images', ['minPixels', 'maxPixels', 'resizedHeight', 'resizedWidth', 'maxInputPixels']);
  return {
    ...images.given('minPixels', () => images.integer('minPixels', undefined, 1, MAX_PIXELS)), ...images.given('maxPixels', () => images.integer('maxPixels', undefined, 1, MAX_PIXELS)),
    ...images.given('resizedHeight', () => images.integer('resizedHeight', undefined, 1, MAX_PICTURE_SIDE)), ...images.given('resizedWidth', () => images.integer('resizedWidth', undefined, 1, MAX_PICTURE_SIDE)),
    ...images.given('maxInputPixels', () => images.integer('maxInputPixels', undefined, 1, ANY)),
    ...top.given('maxSteps', () => top.integer('maxSteps', undefined, 1, MAX_STEPS)), ...top.given('cacheBytes', () => top.integer('cacheBytes', undefined, 0, ANY)),
  };
}

/** Sizes that no picture could have: the exact one is given whole and alone. */
function withSizes(top: ConfigReader, options: RecordOptions): RecordOptions {
  const { minPixels, maxPixels = DEFAULT_MAX_PIXELS, resizedHeight, resizedWidth } = options;
  const place = top.name('images');
  if ((resizedHeight === undefined) !== (resizedWidth === undefined)) {
    fail('ERR_ARGUMENT', 'train', `Expected resizedHeight and resizedWidth of ${place} together but received only ${resizedHeight === undefined ? 'resizedWidth' : 'resizedHeight'}; add the other`);
  }
  if (minPixels === undefined) return options;
  if (resizedHeight !== undefined) fail('ERR_ARGUMENT', 'train', `Expected either resizedHeight and resizedWidth or minPixels of ${place} but received both; leave one of them out`);
  if (minPixels > maxPixels) fail('ERR_RANGE', 'train', `Expected minPixels of ${place} to be at most maxPixels = ${maxPixels} but received ${minPixels}; lower it, or raise maxPixels`);
  return options;
}

function stagesOf(top: ConfigReader): TrainingStage[] {
  if (top.has('stages') === top.has('curriculum')) {
    fail('ERR_ARGUMENT', 'train', `Expected exactly one of stages and curriculum in ${top.file} but received ${top.has('stages') ? 'both; leave one of them out' : 'neither; add one of them, as examples/train.yaml shows'}`);
  }
  return top.has('stages') ? readStages(top) : curriculumStages(top);
}

function training(top: ConfigReader): Omit<TrainConfig['training'], 'seed'> {
  const optimizer = top.child('optimizer', ['beta1', 'beta2', 'epsilon', 'weightDecay', 'maxNorm']);
  const checkpoints = top.child('checkpoints', ['every', 'keep']);
  const most = 1 - 1e-9;
  return {
    batchSize: top.integer('batchSize', 1, 1, MAX_BATCH), accumulation: top.integer('accumulation', 1, 1, MAX_BATCH),
    trainVision: top.boolean('trainVision', false), recompute: top.boolean('recompute', false),
    ...optimizer.given('beta1', () => optimizer.number('beta1', undefined, 0, most)), ...optimizer.given('beta2', () => optimizer.number('beta2', undefined, 0, most)),
    ...optimizer.given('epsilon', () => optimizer.number('epsilon', undefined, Number.MIN_VALUE)), ...optimizer.given('weightDecay', () => optimizer.number('weightDecay', undefined, 0)),
    ...optimizer.given('maxNorm', () => optimizer.number('maxNorm', undefined, 0)),
    checkpointEvery: checkpoints.integer('every', 0, 0, MAX_STEPS), keepCheckpoints: checkpoints.integer('keep', 2, 0, MAX_STEPS),
    ...top.given('maxMemoryBytes', () => top.number('maxMemoryBytes', undefined, 0)), ...profileOf(top),
  };
}

function profileOf(top: ConfigReader): Pick<TrainConfig['training'], 'profileEvery' | 'profileMatricesEvery' | 'profileMatrixSide'> {
  if (!top.has('profile')) return {};
  const profile = top.child('profile', ['every', 'matricesEvery', 'matrixSide']);
  return {
    profileEvery: profile.integer('every', 10, 1, MAX_STEPS), profileMatricesEvery: profile.integer('matricesEvery', 100, 0, MAX_STEPS), profileMatrixSide: profile.integer('matrixSide', 128, 1, 1 << 20),
  };
}

function evaluationOf(top: ConfigReader, path: (reader: ConfigReader, key: string) => string): EvaluationConfig | undefined {
  if (!top.has('evaluation')) return undefined;
  const evaluation = top.child('evaluation', ['data', 'maxNewTokens', 'batchSize', 'limit']);
  return {
    data: path(evaluation, 'data'), maxNewTokens: evaluation.integer('maxNewTokens', 256, 1, 2 ** 31 - 1), batchSize: evaluation.integer('batchSize', 8, 1, MAX_BATCH),
    ...evaluation.given('limit', () => evaluation.integer('limit', undefined, 1, ANY)),
  };
}
