/** The demo: a small model learns to read, to reason in words, then in latents; a copy learns to answer at once; all are compared. */
import { mkdirSync, readdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { chanceLevel, writeContactSheet, writeDigitGridTokenizer, type ChanceLevel } from '../data';
import { fail } from '../errors';
import { evaluate, type Evaluation, type EvaluationItem } from '../evaluate';
import { newConfig } from '../model/config';
import { writeJson, writing } from '../model/files';
import { LatentModel } from '../latentModel';
import { native, type NativeBuildInfo } from '../native';
import { latestCheckpoint } from '../train/checkpoint';
import type { TrainingStage } from '../train/curriculum';
import { train } from '../train/trainer';
import type { TrainArguments } from '../train/trainOptions';
import { demoTrainingData, heldOut, heldOutOptions, DIGITS, WARMUP } from './demoData';
import { demoConfig, scaledTo, DEMO_SIZES, type DemoSize, type SizeName } from './demoSizes';

export interface DemoOptions {
  size: SizeName;
  /** Run folder: models, metrics, samples.png, demo.json. */
  out: string;
  seed: number;
  /** Step counts are stretched or shrunk to this; undefined: the size's own. */
  minutes?: number;
  /** Go on with a run folder that is there. */
  resume: boolean;
  signal?: AbortSignal;
}

/** Hears what the demo does; the library itself prints nothing. */
export interface DemoReporter {
  phase(text: string): void;
  progress(done: number, total: number, note: string): void;
}

/** One row of the table. */
export interface DemoRow {
  mode: 'explicit words' | 'no reasoning' | 'latents';
  latentSteps: number;
  trainingSteps: number;
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
  seconds: Record<string, number>;
  machine: { cpu: string; cores: number; node: string; addon: NativeBuildInfo };
}

/** A few questions one at a time: 50 take seconds and their mean time is steady to a few per cent. */
const ALONE = 50;
/** Longest reply in words: 5 steps of at most 9 words, and the answer. */
const WORDS = 64;
const ANSWER_WORDS = 12;

interface Phase {
  name: 'explicit' | 'latent' | 'direct';
  stages: TrainingStage[];
  /** Recorded in the checkpoints, as the number to decode with. */
  latentSteps: number;
}

/** Stages of the three trainings. The two copies of the explicit model get the same number of steps, batches and learning rate. */
export function demoPhases(size: DemoSize): { explicit: Phase; latent: Phase; direct: Phase } {
  const { learningRate, latentRate, latentsPerStep, maxSteps } = size;
  const latentStages = Array.from({ length: maxSteps }, (_, i): TrainingStage => ({
    name: `latent ${i + 1}`, learningRate: latentRate, finalRate: 1, warmupSteps: i === 0 ? 50 : 0, steps: size.stageSteps,
    shape: { stage: i + 1, latentsPerStep, padLatents: true }, earlierProbability: 0.1,
  }));
  const last: TrainingStage = {
    name: 'latents only', learningRate: latentRate, finalRate: 0.05, steps: size.lastStageSteps,
    shape: { stage: maxSteps, latentsPerStep, padLatents: true, lastStage: true },
  };
  const sameSteps = size.stageSteps * maxSteps;
  const direct = { learningRate: latentRate, shape: { stage: 0, lastStage: true } };
  return {
    explicit: {
      name: 'explicit', latentSteps: 0,
      stages: [
        { name: DIGITS, learningRate, warmupSteps: 50, finalRate: 1, steps: size.digitSteps, shape: {} },
        { name: WARMUP, learningRate, finalRate: 1, steps: size.warmupSteps, shape: {} },
        { name: 'words', learningRate, finalRate: 0.05, steps: size.explicitSteps, shape: {} },
      ],
    },
    latent: { name: 'latent', latentSteps: maxSteps * latentsPerStep, stages: [...latentStages, last] },
    direct: {
      name: 'direct', latentSteps: 0,
      stages: [
        { ...direct, name: 'answer at once', warmupSteps: 50, finalRate: 1, steps: sameSteps },
        { ...direct, name: 'answer at once, end', finalRate: 0.05, steps: size.lastStageSteps },
      ],
    },
  };
}

/**
 * Runs the demo and writes its result to `out/demo.json`.
 *
 * @throws {LibError} `ERR_ARGUMENT` when the run folder is not empty and `resume` is off.
 */
export async function runDemo(options: DemoOptions, reporter: DemoReporter): Promise<DemoResult> {
  const { out, seed, signal } = options;
  const base = DEMO_SIZES[options.size];
  const size = options.minutes === undefined ? base : scaledTo(base, options.minutes);
  await writing('demo', out, async () => mkdirSync(out, { recursive: true }));
  if (!options.resume && readdirSync(out).length > 0) {
    fail('ERR_ARGUMENT', 'demo', `Expected an empty run folder but received ${out} with files in it; add --resume, or name another with --out`);
  }
  const questions = heldOut(size, seed, size.questions, 0);
  await writeContactSheet(questions.samples.slice(0, 16), join(out, 'samples.png'));
  const context: Context = { options, size, reporter, seconds: {}, signal };
  const phases = demoPhases(size);
  const rows: DemoRow[] = [];

  const start = join(out, 'start');
  const explicit = await trained(context, phases.explicit, async () => {
    writeDigitGridTokenizer(start);
    return LatentModel.create(newConfig(demoConfig(size)), { seed, processor: start });
  });
  let reading: DemoResult['reading'];
  let parameters: number;
  try {
    rows.push(await measured(context, explicit.model, questions.items, { mode: 'explicit words', latentSteps: 0, trainingSteps: stepsOf(phases.explicit) }));
    reading = withoutAnswers(await evaluate(explicit.model, heldOut(size, seed, Math.min(500, size.questions), 1).items, { maxNewTokens: WORDS, ...(signal ? { signal } : {}) }));
    parameters = explicit.model.native.parameters().reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
  } finally {
    explicit.model.dispose();
  }
  for (const [phase, mode] of [[phases.direct, 'no reasoning'], [phases.latent, 'latents']] as const) {
    const { model } = await trained(context, phase, () => LatentModel.load(explicit.folder));
    try {
      rows.push(await measured(context, model, questions.items, { mode, latentSteps: phase.latentSteps, trainingSteps: stepsOf(phases.explicit) + stepsOf(phase) }));
    } finally {
      model.dispose();
    }
  }
  const result: DemoResult = {
    size: options.size, seed, minutesPlanned: size.minutes, parameters, rows, reading,
    chance: chanceLevel(heldOutOptions(size, seed, 0)), seconds: context.seconds,
    machine: { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length, node: process.version, addon: native().buildInfo() },
  };
  await writeJson(join(out, 'demo.json'), result);
  return result;
}

interface Context {
  options: DemoOptions;
  size: DemoSize;
  reporter: DemoReporter;
  /** Wall time by phase, of this process. */
  seconds: Record<string, number>;
  signal: AbortSignal | undefined;
}

function stepsOf(phase: Phase): number {
  return phase.stages.reduce((sum, { steps }) => sum + (steps ?? 0), 0);
}

/** Trains a phase, or goes on with it, or loads it when it is complete. */
async function trained({ options, size, reporter, seconds, signal }: Context, phase: Phase, start: () => Promise<LatentModel>): Promise<{ model: LatentModel; folder: string }> {
  const checkpointFolder = join(options.out, phase.name);
  const model = await start();
  const started = performance.now();
  const args: TrainArguments = {
    data: demoTrainingData(size, options.seed), stages: phase.stages, batchSize: size.batchSize, beta2: size.beta2, trainVision: true, seed: options.seed, checkpointFolder,
    checkpointEvery: 500, keepCheckpoints: 1, metricsFile: join(options.out, `${phase.name}.jsonl`), resume: 'latest', ...(signal ? { signal } : {}),
  };
  const trainee = {
    native: model.native, geometry: model.geometry, openSession: model.openSession.bind(model),
    save: (folder: string) => model.save(folder, { latentSteps: phase.latentSteps }),
  };
  try {
    for await (const event of train(trainee, args)) {
      if (event.type === 'start') {
        const from = event.step > 0 ? `, from step ${event.step}` : '';
        reporter.phase(`Training ${phase.name}: ${event.steps} steps of ${size.batchSize} samples${from}`);
      }
      if (event.type === 'step') {
        const { step, stage, loss, accuracy } = event.metrics;
        reporter.progress(step, stepsOf(phase), `${stage}  loss ${loss.toFixed(3)}  words right ${(100 * accuracy).toFixed(0)} %`);
      }
    }
  } catch (error) {
    model.dispose();
    throw error;
  }
  seconds[phase.name] = (performance.now() - started) / 1000;
  return { model, folder: latestCheckpoint(checkpointFolder) as string };
}

async function measured({ reporter, seconds, signal }: Context, model: LatentModel, items: readonly EvaluationItem[], row: Pick<DemoRow, 'mode' | 'latentSteps' | 'trainingSteps'>): Promise<DemoRow> {
  reporter.phase(`Answering ${items.length} held-out questions: ${row.mode}`);
  const started = performance.now();
  const generation = { latentSteps: row.latentSteps, maxNewTokens: row.mode === 'explicit words' ? WORDS : ANSWER_WORDS, ...(signal ? { signal } : {}) };
  const all = await evaluate(model, items, { ...generation, onProgress: (done, total) => reporter.progress(done, total, '') });
  const alone = await evaluate(model, items.slice(0, ALONE), { ...generation, batchSize: 1 });
  seconds[`evaluate ${row.mode}`] = (performance.now() - started) / 1000;
  return { ...row, evaluation: withoutAnswers(all), alone: { count: alone.answers.length, millisecondsPerAnswer: alone.millisecondsPerAnswer } };
}

function withoutAnswers({ answers: _, ...rest }: Evaluation): Omit<Evaluation, 'answers'> {
  return rest;
}
