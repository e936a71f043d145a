/** The file of `plumbline train`: YAML or JSON, every key checked before anything is loaded. examples/train.yaml explains the keys. */
import { readFileSync } from 'node:fs';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { parseDocument } from 'yaml';
import * as check from '../check';
import { fail } from '../errors';
import type { LoadOptions } from '../model/modelOptions';
import type { PresetChanges, PresetName } from '../model/preset';
import type { RecordOptions, TrainArguments, TrainingStage } from '../train';
import { ConfigReader } from './configReader';
import { curriculumStages, readStages } from './trainStages';

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
  const seed = top.integer('seed', 0, 0);
  const evaluation = evaluationOf(top, path);
  return {
    file, model: path(top, 'model'), data: path(top, 'data'), ...(evaluation === undefined ? {} : { evaluation }),
    out: top.has('out') ? path(top, 'out') : join(folder, 'runs', name),
    load: { seed, ...loading(top, folder) },
    records: records(top),
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

/** A name, or switches, which are checked once the number of layers is known: `makePreset` names the wrong one. */
function presetOf(top: ConfigReader): PresetName | PresetChanges {
  const value = top.raw('preset');
  return typeof value === 'string' ? top.oneOf<PresetName>('preset', undefined, ['default', 'paper', 'official']) : { ...top.object('preset') } as PresetChanges;
}

function adapterOf(top: ConfigReader, folder: string): Pick<TrainConfig['load'], 'adapter'> {
  const value = top.raw('adapter');
  if (value === undefined || value === 'none') return {};
  if (typeof value === 'string') return { adapter: resolve(folder, top.path('adapter')) };
  const adapter = top.child('adapter', ['rank', 'alpha', 'dropout', 'targets', 'vision']);
  return {
    adapter: {
      ...adapter.given('rank', () => adapter.integer('rank', undefined, 1)), ...adapter.given('alpha', () => adapter.number('alpha', undefined, Number.MIN_VALUE)),
      ...adapter.given('dropout', () => adapter.number('dropout', undefined, 0, 1)), ...adapter.given('targets', () => adapter.strings('targets')),
      ...adapter.given('vision', () => adapter.boolean('vision', false)),
    },
  };
}

function records(top: ConfigReader): RecordOptions {
  const images = top.child('images', ['minPixels', 'maxPixels', 'resizedHeight', 'resizedWidth', 'maxInputPixels']);
  return {
    ...images.given('minPixels', () => images.integer('minPixels', undefined, 1)), ...images.given('maxPixels', () => images.integer('maxPixels', undefined, 1)),
    ...images.given('resizedHeight', () => images.integer('resizedHeight', undefined, 1)), ...images.given('resizedWidth', () => images.integer('resizedWidth', undefined, 1)),
    ...images.given('maxInputPixels', () => images.integer('maxInputPixels', undefined, 1)),
    ...top.given('maxSteps', () => top.integer('maxSteps', undefined, 1)), ...top.given('cacheBytes', () => top.integer('cacheBytes', undefined, 0)),
  };
}

function stagesOf(top: ConfigReader): TrainingStage[] {
  if (top.has('stages') === top.has('curriculum')) {
    fail('ERR_ARGUMENT', 'train', `Expected exactly one of stages and curriculum in ${top.file} but received ${top.has('stages') ? 'both' : 'neither'}`);
  }
  return top.has('stages') ? readStages(top) : curriculumStages(top);
}

function training(top: ConfigReader): Omit<TrainConfig['training'], 'seed'> {
  const optimizer = top.child('optimizer', ['beta1', 'beta2', 'epsilon', 'weightDecay', 'maxNorm']);
  const checkpoints = top.child('checkpoints', ['every', 'keep']);
  const most = 1 - 1e-9;
  return {
    batchSize: top.integer('batchSize', 1, 1), accumulation: top.integer('accumulation', 1, 1),
    trainVision: top.boolean('trainVision', false), recompute: top.boolean('recompute', false),
    ...optimizer.given('beta1', () => optimizer.number('beta1', undefined, 0, most)), ...optimizer.given('beta2', () => optimizer.number('beta2', undefined, 0, most)),
    ...optimizer.given('epsilon', () => optimizer.number('epsilon', undefined, Number.MIN_VALUE)), ...optimizer.given('weightDecay', () => optimizer.number('weightDecay', undefined, 0)),
    ...optimizer.given('maxNorm', () => optimizer.number('maxNorm', undefined, 0)),
    checkpointEvery: checkpoints.integer('every', 0, 0), keepCheckpoints: checkpoints.integer('keep', 2, 0),
    ...top.given('maxMemoryBytes', () => top.number('maxMemoryBytes', undefined, 0)), ...profileOf(top),
  };
}

function profileOf(top: ConfigReader): Pick<TrainConfig['training'], 'profileEvery' | 'profileMatricesEvery' | 'profileMatrixSide'> {
  if (!top.has('profile')) return {};
  const profile = top.child('profile', ['every', 'matricesEvery', 'matrixSide']);
  return {
    profileEvery: profile.integer('every', 10, 1), profileMatricesEvery: profile.integer('matricesEvery', 100, 0), profileMatrixSide: profile.integer('matrixSide', 128, 1),
  };
}

function evaluationOf(top: ConfigReader, path: (reader: ConfigReader, key: string) => string): EvaluationConfig | undefined {
  if (!top.has('evaluation')) return undefined;
  const evaluation = top.child('evaluation', ['data', 'maxNewTokens', 'batchSize', 'limit']);
  return {
    data: path(evaluation, 'data'), maxNewTokens: evaluation.integer('maxNewTokens', 256, 1), batchSize: evaluation.integer('batchSize', 8, 1),
    ...evaluation.given('limit', () => evaluation.integer('limit', undefined, 1)),
  };
}
