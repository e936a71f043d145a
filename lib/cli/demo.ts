/** The demo: a small model learns to read and to reason in words; copies of it learn to answer at once, or in latents with and without replay and routing; all are compared. */
import { mkdirSync, readdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { join, relative } from 'node:path';
import { chanceLevel, writeContactSheet, writeDigitGridTokenizer, type ChanceLevel } from '../data';
import { fail } from '../errors';
import { evaluate, type Evaluation } from '../evaluate';
import { newConfig } from '../model/config';
import { writeJson, writing } from '../model/files';
import type { Preset } from '../model/preset';
import { LatentModel } from '../latentModel';
import { native, type NativeBuildInfo } from '../native';
import { latestCheckpoint } from '../train/checkpoint';
import { train } from '../train/trainer';
import type { TrainArguments } from '../train/trainOptions';
import { demoTrainingData, heldOut, heldOutOptions, type HeldOut } from './demoData';
import { trainingFigures, type TrainingFigures } from './demoFigures';
import { writeGazes, type DemoGaze } from './demoGaze';
import { demoPhases, stepsOf, WORDS, type DemoMode, type Phase } from './demoPhases';
import { PROFILE_NAME } from './profile';
import { stepNote, type Reporter } from './reporter';
import { demoConfig, scaledTo, DEMO_SIZES, type DemoSize, type SizeName } from './demoSizes';

export interface DemoOptions {
  size: SizeName;
  /** Run folder: models, metrics, samples.png, gaze-<n>.png, demo.json. */
  out: string;
  seed: number;
  /** Step counts are stretched or shrunk to this; undefined: the size's own. */
  minutes?: number;
  /** Go on with a run folder that is there. */
  resume: boolean;
  /** Gradient dynamics every so many steps, in `<training>/profile.jsonl`. */
  profileEvery?: number;
  signal?: AbortSignal;
}

/** One row of the table. */
export interface DemoRow {
  name: DemoMode;
  /** Below the run folder: what was evaluated. */
  checkpoint: string;
  latentSteps: number;
  /** Optimiser steps, those of the model that a copy started from included. */
  trainingSteps: number;
  preset: Preset;
  /** Of this row's own steps. */
  training: TrainingFigures;
  evaluation: Omit<Evaluation, 'answers'>;
  /** One question at a time: what a single user waits. */
  alone: { count: number; millisecondsPerAnswer: number };
}

export interface DemoResult {
  size: SizeName;
  seed: number;
  minutesPlanned: number;
  parameters: number;
  rows: DemoRow[];
  /** The model after its training in words, on plain reading questions. */
  reading: Omit<Evaluation, 'answers'>;
  chance: ChanceLevel;
  /** Pictures of what the last copy looked at. */
  gazes: DemoGaze[];
  /** Wall time by phase, of this process. */
  seconds: Record<string, number>;
  totalSeconds: number;
  machine: { cpu: string; cores: number; node: string; addon: NativeBuildInfo };
}

/** A few questions one at a time: 50 take seconds and their mean time is steady to a few per cent. */
const ALONE = 50;

/** What runs of one seed and of several leave in their folders: neither goes on with the other. */
const ONE_SEED = /^(start|explicit|demo\.json)$/;
const SEVERAL_SEEDS = /^seed-\d+$/;

/**
 * Makes the run folder, or checks one that is there.
 *
 * @throws {LibError} `ERR_ARGUMENT` when it is not empty and `resume` is off, or when a run with another number of seeds is in it.
 */
export async function prepareRunFolder({ out, resume }: Pick<DemoOptions, 'out' | 'resume'>, layout: 'one seed' | 'several seeds'): Promise<void> {
  await writing('demo', out, async () => mkdirSync(out, { recursive: true }));
  const found = readdirSync(out);
  if (!resume && found.length > 0) fail('ERR_ARGUMENT', 'demo', `Expected an empty run folder but received ${out} with files in it; add --resume, or name another with --out`);
  const other = found.find((name) => (layout === 'one seed' ? SEVERAL_SEEDS : ONE_SEED).test(name));
  if (other !== undefined) fail('ERR_ARGUMENT', 'demo', `Expected a run folder of ${layout} but received ${out} with ${other} in it; give the same --seeds as before, or name another folder with --out`);
}

/**
 * Runs the demo and writes its result to `out/demo.json`.
 *
 * @throws {LibError} `ERR_ARGUMENT` when the run folder is not empty and `resume` is off.
 */
export async function runDemo(options: DemoOptions, reporter: Reporter): Promise<DemoResult> {
  const base = DEMO_SIZES[options.size];
  return runDemoOf(options.minutes === undefined ? base : scaledTo(base, options.minutes), options, reporter);
}

/** `runDemo` of any size; `options.size` is its name. */
export async function runDemoOf(size: DemoSize, options: DemoOptions, reporter: Reporter): Promise<DemoResult> {
  const { out, seed, signal, profileEvery } = options;
  const started = performance.now();
  await prepareRunFolder(options, 'one seed');
  const questions = heldOut(size, seed, size.questions, 0);
  await writeContactSheet(questions.samples.slice(0, 16), join(out, 'samples.png'));
  const context: Context = { out, seed, size, reporter, seconds: {}, signal, profileEvery, questions };
  const phases = demoPhases(size);
  const first = await explicitRow(context, phases.explicit);
  const rows = [first.row];
  let gazes: DemoGaze[] = [];
  for (const phase of phases.copies) {
    const copy = await trained(context, phase, () => LatentModel.load(first.folder, { preset: phase.preset, seed }));
    try {
      rows.push(await measured(context, copy, phase, stepsOf(phases.explicit)));
      if (phase.isDrawn) gazes = await writeGazes(copy.model, questions, phase, out, signal);
    } finally {
      copy.model.dispose();
    }
  }
  const result: DemoResult = {
    size: options.size, seed, minutesPlanned: size.minutes, parameters: first.parameters, rows, reading: first.reading,
    chance: chanceLevel(heldOutOptions(size, seed, 0)), gazes, seconds: context.seconds, totalSeconds: (performance.now() - started) / 1000,
    machine: { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length, node: process.version, addon: native().buildInfo() },
  };
  await writeJson(join(out, 'demo.json'), result);
  return result;
}

interface Context {
  out: string;
  seed: number;
  size: DemoSize;
  reporter: Reporter;
  seconds: Record<string, number>;
  signal: AbortSignal | undefined;
  profileEvery: number | undefined;
  questions: HeldOut;
}

interface Trained {
  model: LatentModel;
  /** Its last checkpoint. */
  folder: string;
}

/** The model that learns words from nothing, and how it reads. */
async function explicitRow(context: Context, phase: Phase): Promise<{ row: DemoRow; folder: string; reading: DemoResult['reading']; parameters: number }> {
  const { out, seed, size, signal } = context;
  const start = join(out, 'start');
  const explicit = await trained(context, phase, async () => {
    writeDigitGridTokenizer(start);
    return LatentModel.create(newConfig(demoConfig(size)), { seed, processor: start, preset: phase.preset });
  });
  try {
    const row = await measured(context, explicit, phase, 0);
    const reading = withoutAnswers(await evaluate(explicit.model, heldOut(size, seed, Math.min(500, size.questions), 1).items, { maxNewTokens: WORDS, ...(signal ? { signal } : {}) }));
    const parameters = explicit.model.native.parameters().reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
    return { row, folder: explicit.folder, reading, parameters };
  } finally {
    explicit.model.dispose();
  }
}

function metricsFile({ out }: Context, phase: Phase): string {
  return join(out, `${phase.folder}.jsonl`);
}

/** Trains a phase, or goes on with it, or loads it when it is complete. */
async function trained(context: Context, phase: Phase, start: () => Promise<LatentModel>): Promise<Trained> {
  const { out, seed, size, reporter, seconds, signal, profileEvery } = context;
  const checkpointFolder = join(out, phase.folder);
  const model = await start();
  const started = performance.now();
  const args: TrainArguments = {
    data: demoTrainingData(size, seed), stages: phase.stages, batchSize: size.batchSize, beta2: size.beta2, trainVision: true, seed, checkpointFolder,
    checkpointEvery: 500, keepCheckpoints: 1, metricsFile: metricsFile(context, phase), resume: 'latest', ...(signal ? { signal } : {}),
    ...(profileEvery === undefined ? {} : { profileFile: join(checkpointFolder, PROFILE_NAME), profileEvery, profileMatricesEvery: 10 * profileEvery }),
  };
  const trainee = {
    native: model.native, geometry: model.geometry, preset: model.preset, openSession: model.openSession.bind(model),
    save: (folder: string) => model.save(folder, { latentSteps: phase.latentSteps }),
  };
  try {
    for await (const event of train(trainee, args)) {
      if (event.type === 'start') {
        const from = event.step > 0 ? `, from step ${event.step}` : '';
        reporter.phase(`Training ${phase.mode}: ${event.steps} steps of ${size.batchSize} samples${from}`);
      }
      if (event.type === 'step') reporter.progress(event.metrics.step, stepsOf(phase), stepNote(event.metrics));
    }
  } catch (error) {
    model.dispose();
    throw error;
  }
  seconds[phase.folder] = (performance.now() - started) / 1000;
  return { model, folder: latestCheckpoint(checkpointFolder) as string };
}

async function measured(context: Context, { model, folder }: Trained, phase: Phase, stepsBefore: number): Promise<DemoRow> {
  const { out, reporter, seconds, signal, questions: { items } } = context;
  const { mode, latentSteps, maxNewTokens } = phase;
  reporter.phase(`Answering ${items.length} held-out questions: ${mode}`);
  const started = performance.now();
  const generation = { latentSteps, maxNewTokens, ...(signal ? { signal } : {}) };
  const all = await evaluate(model, items, { ...generation, onProgress: (done, total) => reporter.progress(done, total, '') });
  const alone = await evaluate(model, items.slice(0, ALONE), { ...generation, batchSize: 1 });
  seconds[`evaluate ${mode}`] = (performance.now() - started) / 1000;
  return {
    name: mode, checkpoint: relative(out, folder), latentSteps, trainingSteps: stepsBefore + stepsOf(phase), preset: model.preset,
    training: trainingFigures(metricsFile(context, phase), model.preset), evaluation: withoutAnswers(all),
    alone: { count: alone.answers.length, millisecondsPerAnswer: alone.millisecondsPerAnswer },
  };
}

function withoutAnswers({ answers: _, ...rest }: Evaluation): Omit<Evaluation, 'answers'> {
  return rest;
}
