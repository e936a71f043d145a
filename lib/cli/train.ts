/** `plumbline train`: a checkpoint, records and a file of settings; a run folder with checkpoints, metrics and the result. */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import * as check from '../check';
import { readRecords, type DataRecord } from '../data';
import { fail } from '../errors';
import { evaluate, recordItems, type Evaluation } from '../evaluate';
import { LatentModel } from '../latentModel';
import { gigabytes, trainingMemory } from '../model/memory';
import { readJson, writeAtomically, writeJson, writing } from '../model/files';
import { isObject } from '../model/jsonReader';
import { looksAhead } from '../model/preset';
import { memoryOf } from '../model/weights';
import { chooseTrainable, latestCheckpoint, planStages, recordAnswer, recordData, train, type PlannedStage, type StepMetrics, type TrainArguments } from '../train';
import { stageOf } from '../train/curriculum';
import { PROFILE_NAME } from './profile';
import { stepNote, type Reporter } from './reporter';
import type { TrainConfig } from './trainConfig';

export interface TrainRunOptions {
  /** Go on with the run folder. */
  resume: boolean;
  signal?: AbortSignal;
}

export interface TrainResult {
  /** The last checkpoint. */
  checkpoint: string;
  /** Optimiser steps done, those before a resume too. */
  steps: number;
  /** Of the last step; absent when a resumed run had nothing left to do. */
  loss?: number;
  wordsRight?: number;
  /** Of the records in `evaluation`. */
  evaluation?: Omit<Evaluation, 'answers'>;
  /** Wall time of this process. */
  seconds: number;
}

const METRICS_NAME = 'metrics.jsonl';
const RESULT_NAME = 'result.json';
const ANSWERS_NAME = 'answers.jsonl';
const SETTINGS_NAME = 'settings.json';

/**
 * Runs a training and writes `metrics.jsonl`, checkpoints, `result.json` and, with an evaluation, `answers.jsonl` to the run folder. Tokens
 * for latents are added to a checkpoint that lacks them.
 *
 * @throws {LibError} `ERR_ARGUMENT` for files and records, before the model is loaded; then as `LatentModel.load`, `train` and `evaluate`.
 */
export async function runTraining(config: TrainConfig, { resume, signal }: TrainRunOptions, reporter: Reporter): Promise<TrainResult> {
  const started = performance.now();
  const records = await readAll('data', config.data);
  const questions = config.evaluation === undefined ? [] : (await readAll('evaluation.data', config.evaluation.data)).slice(0, config.evaluation.limit);
  const { batchSize, accumulation = 1 } = config.training;
  const stages = planStages(config.stages, batchSize * accumulation, records.length);
  await prepareRun(config, resume);
  reporter.phase(`Loading ${config.model}`);
  const model = await LatentModel.load(config.model, { ...config.load, latentTokens: true, ...(signal === undefined ? {} : { signal }) });
  try {
    const trained = await trainModel(model, config, { records, stages, resume, signal }, reporter);
    const evaluation = questions.length === 0 ? undefined : await evaluated(model, config, questions, stages, signal, reporter);
    const result: TrainResult = { ...trained, ...(evaluation === undefined ? {} : { evaluation }), seconds: (performance.now() - started) / 1000 };
    await writeJson(join(config.out, RESULT_NAME), result);
    return result;
  } finally {
    model.dispose();
  }
}

/** All records of a file, whose answers must be among their choices and whose pictures must be there: better told now than in the middle of the night. */
async function readAll(key: string, file: string): Promise<DataRecord[]> {
  const records: DataRecord[] = [];
  for await (const record of readRecords(file)) records.push(record);
  if (records.length === 0) fail('ERR_ARGUMENT', 'train', `Expected ${key} to have at least one record but received none in ${file}`);
  for (const record of records) {
    recordAnswer(record);
    const missing = record.images.find((image) => statSync(image, { throwIfNoEntry: false })?.isFile() !== true);
    if (missing !== undefined) fail('ERR_ARGUMENT', 'train', `Expected the pictures of record ${check.show(record.id)} in ${file} to be files but received none at ${missing}. Paths are taken from the folder of the records.`);
  }
  return records;
}

/** The run folder: new, or one of the same data. What the trainer's own checkpoint knows, it compares itself. */
async function prepareRun(config: TrainConfig, resume: boolean): Promise<void> {
  const { out, model } = config;
  if (!existsSync(model)) fail('ERR_ARGUMENT', 'train', `Expected model to be the directory of a checkpoint but received none at ${model}; correct the path, which is taken from the folder of the settings, or download one first: huggingface-cli download NAME --local-dir ${model}`);
  await writing('train', out, async () => mkdirSync(out, { recursive: true }));
  const latest = latestCheckpoint(out);
  if (latest !== undefined && !resume) fail('ERR_ARGUMENT', 'train', `Expected a run folder without checkpoints but received ${out} with ${latest}; add --resume, or name another with --out`);
  const { cacheBytes: _, maxSteps = null, ...images } = config.records;
  const settings: Record<string, unknown> = { model, data: await digestOf(config.data), adapter: config.load.adapter ?? 'none', maxSteps, images };
  const file = join(out, SETTINGS_NAME);
  const before = latest === undefined ? undefined : await readJson(file);
  const differs = isObject(before) ? Object.keys(settings).find((key) => !isDeepStrictEqual(before[key], settings[key])) : undefined;
  if (differs !== undefined) {
    fail('ERR_CHECKPOINT', 'train', `Expected ${differs === 'data' ? 'data with the content' : differs} as in ${file}, ${JSON.stringify((before as Record<string, unknown>)[differs])}, but received ${JSON.stringify(settings[differs])}; resume with the same settings, or start anew with another --out`);
  }
  if (before === undefined) await writeJson(file, settings);
}

/** Piece by piece: no buffer holds more than 2 GiB. */
async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(file)) hash.update(piece as Buffer);
  return hash.digest('hex');
}

interface Work {
  records: readonly DataRecord[];
  stages: readonly PlannedStage[];
  resume: boolean;
  signal: AbortSignal | undefined;
}

async function trainModel(model: LatentModel, config: TrainConfig, { records, stages, resume, signal }: Work, reporter: Reporter): Promise<Omit<TrainResult, 'evaluation' | 'seconds'>> {
  const { out, training, stages: wanted } = config;
  let [done, total] = [0, 0];
  let last: StepMetrics | undefined;
  // A checkpoint decodes with the latents of the stage that it was trained to.
  const latents = (): { latentSteps: number } => ({ latentSteps: latentsOf(stages, done) });
  const trainee = {
    native: model.native, geometry: model.geometry, preset: model.preset, device: model.device, openSession: model.openSession.bind(model),
    adapter: model.adapter, save: (folder: string) => model.save(folder, latents()), saveAdapter: (folder: string) => model.saveAdapter(folder, latents()),
  };
  const args: TrainArguments = {
    ...training, stages: wanted, data: recordData(model, records, config.records), checkpointFolder: out, metricsFile: join(out, METRICS_NAME),
    ...(training.profileEvery === undefined ? {} : { profileFile: join(out, PROFILE_NAME) }), ...(resume ? { resume: 'latest' } : {}), ...(signal === undefined ? {} : { signal }),
  };
  reporter.phase(memoryText(model, training.trainVision ?? false));
  for await (const event of train(trainee, args)) {
    if (event.type === 'start') {
      [done, total] = [event.step, event.steps];
      reporter.phase(`Training on ${records.length} records: ${total} steps${done > 0 ? `, from step ${done}` : ''}`);
    }
    if (event.type === 'checkpoint') reporter.phase(`Written ${event.folder}`);
    if (event.type !== 'step') continue;
    last = event.metrics;
    done = last.step;
    reporter.progress(done, total, stepNote(last));
  }
  return { checkpoint: latestCheckpoint(out)!, steps: done, ...(last === undefined ? {} : { loss: last.loss, wordsRight: last.accuracy }) };
}

/** Said before it is taken; `train` refuses what is not there. */
function memoryText(model: LatentModel, trainVision: boolean): string {
  chooseTrainable(model.native, { trainVision, preset: model.preset, adapted: model.adapter !== undefined });
  const { trainable, weightBytes, stateBytes } = trainingMemory(model.native);
  return `Memory: weights ${gigabytes(weightBytes)}, gradients and optimiser state of ${(trainable / 1e6).toFixed(3)} million parameters ${gigabytes(stateBytes)}, activations beside; `
    + `${gigabytes(memoryOf(model.device))} are free`;
}

/** Latents of the stage of the last step done. */
function latentsOf(stages: readonly PlannedStage[], done: number): number {
  const shape = stageOf(stages, Math.max(0, done - 1))?.shape;
  return shape === undefined ? 0 : shape.stage * shape.latentsPerStep;
}

async function evaluated(model: LatentModel, config: TrainConfig, questions: readonly DataRecord[], stages: readonly PlannedStage[], signal: AbortSignal | undefined, reporter: Reporter): Promise<TrainResult['evaluation']> {
  const { batchSize, maxNewTokens } = config.evaluation!;
  reporter.phase(`Answering ${questions.length} questions`);
  const { maxSteps: _, cacheBytes: __, ...pictures } = config.records;
  const { answers, ...figures } = await evaluate(model, recordItems(model, questions, pictures), {
    batchSize, maxNewTokens, recompute: looksAhead(model.preset), latentSteps: latentsOf(stages, stages.reduce((sum, { steps }) => sum + steps, 0)), ...(signal === undefined ? {} : { signal }),
    onProgress: (done, total) => reporter.progress(done, total, ''),
  });
  const lines = answers.map(({ right, result: { text, ids, arSteps, finishReason } }, n) => `${JSON.stringify({ id: questions[n]!.id, answer: questions[n]!.answer, right, text, ids, arSteps, finishReason })}\n`);
  await writeAtomically(join(config.out, ANSWERS_NAME), (write) => write(Buffer.from(lines.join(''))));
  return figures;
}
