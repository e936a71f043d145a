/** The training loop: curriculum stages, accumulation, clipping, AdamW; stops at any moment and resumes with the same bits. */
import { abortable } from '../abort';
import * as check from '../check';
import { fail } from '../errors';
import { requireTrainingMemory } from '../model/memory';
import { checkPrompt } from '../model/passes';
import { makePreset, presetJson, routes, type Preset } from '../model/preset';
import { openReasoning, type ModelView } from '../model/reasoning';
import type { NativeModel, NativeSession } from '../native';
import { countSuperResolved, replayLosses, runBatch, type SequenceInput } from './batch';
import { checkpointName, latestCheckpoint, prepareFolder, pruneCheckpoints, readTrainerState, writeCheckpoint, zeroMoments, type SavableModel } from './checkpoint';
import { drawShape, planStages, stageOf, stageSequence, type PlannedStage } from './curriculum';
import { sampleIndex } from './dataOrder';
import { metricsWriter, type MetricsWriter } from './metrics';
import { learningRate } from './schedule';
import { chooseTrainable } from './trainable';
import { checkedOptions, type FullOptions, type TrainArguments } from './trainOptions';

/** Figures of one optimiser step. */
export interface StepMetrics {
  /** Optimiser steps done, from 1, over all stages. */
  step: number;
  stage: string;
  /** Of the stage, from 1. */
  stageStep: number;
  /** Mean cross entropy over the step's target tokens. */
  loss: number;
  /** Mean super-resolution loss of the replays; absent where none was replayed. */
  srLoss?: number;
  /** Routing: share of the rows that took an extra pass of a routed layer, the mean squared score, and the thresholds after the step by layer. */
  routedFraction?: number;
  scoreSquare?: number;
  thresholds?: Record<number, number>;
  targets: number;
  /** Share of the targets that the model ranked first. */
  accuracy: number;
  learningRate: number;
  /** Global norm of the gradient before clipping. */
  gradientNorm: number;
  samples: number;
  /** Decoder rows of the forward pass. */
  rows: number;
  milliseconds: number;
}

export type TrainEvent =
  | { type: 'start'; step: number; steps: number; resumedFrom?: string }
  | { type: 'stage'; stage: PlannedStage }
  | { type: 'step'; metrics: StepMetrics }
  | { type: 'checkpoint'; folder: string; step: number };

/**
 * Trains a model in place, one event per step. Leaving the loop or aborting the signal stops it; what was written resumes with the
 * same bits as an uninterrupted run.
 *
 * @param model its trainable parameters are changed; optimiser state starts at zero unless resumed.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` for options; `ERR_OUT_OF_MEMORY` before anything is taken; `ERR_CHECKPOINT` when `resume` does not fit; `ERR_RANGE` naming the step
 *   when the loss or the gradient is not finite (the weights are those of the step before); `signal.reason` when aborted.
 */
export async function* train(model: ModelView & SavableModel, options: TrainArguments): AsyncGenerator<TrainEvent, void, void> {
  check.object('train', 'model', model);
  const { native } = model;
  check.object('train', 'model.native', native);
  check.object('train', 'model.preset', model.preset);
  const full = checkedOptions(options);
  if (inTraining.has(native)) fail('ERR_ARGUMENT', 'train', 'Expected a model that no training holds but received one that is being trained; end that training first, or leave its loop');
  inTraining.add(native);
  try {
    yield* trainAlone(model, full);
  } finally {
    inTraining.delete(native);
  }
}

/** Two trainings of one model at once would add their gradients together. */
const inTraining = new WeakSet<NativeModel>();

/** A training that has not taken its first step. */
interface Started {
  run: Run;
  settings: Record<string, unknown>;
  total: number;
  done: number;
  resumedFrom: string | undefined;
}

/** Everything is checked, and the session opened, before the model or a file is changed. */
async function startTraining(model: ModelView & SavableModel, full: FullOptions): Promise<Started> {
  const preset = presetOf(model, full);
  const stages = planStages(full.stages, full.batchSize * full.accumulation, full.data.size);
  const total = stages.reduce((sum, { steps }) => sum + steps, 0);
  const settings = settingsOf(full, stages, preset);
  const session = openReasoning('train', model, preset, { training: true, recompute: full.recompute, visionGradient: full.trainVision });
  try {
    if (full.checkpointFolder !== undefined) await prepareFolder(full.checkpointFolder);
    const resumedFrom = startingPoint(full);
    chooseTrainable(model.native, { trainVision: full.trainVision, preset });
    requireTrainingMemory('train', model.native, full.maxMemoryBytes);
    await abortable(undefined, () => model.native.enableTraining());
    let done = 0;
    if (resumedFrom === undefined) await zeroMoments(model);
    else done = await readTrainerState(model, resumedFrom, settings);
    if (done > total) fail('ERR_CHECKPOINT', 'train', `Expected a checkpoint of at most ${total} steps, as the stages have, but received ${done} in ${resumedFrom}; resume with the same stages, or from another checkpoint`);
    return { run: { model, options: full, preset, stages, session }, settings, total, done, resumedFrom };
  } catch (error) {
    session.dispose();
    throw error;
  }
}

async function* trainAlone(model: ModelView & SavableModel, full: FullOptions): AsyncGenerator<TrainEvent, void, void> {
  const { run, settings, total, resumedFrom, done: before } = await startTraining(model, full);
  let done = before;
  let metrics: MetricsWriter;
  try {
    metrics = metricsWriter(full.metricsFile, done);
  } catch (error) {
    run.session.dispose();
    throw error;
  }
  let saved = resumedFrom === undefined ? -1 : done;
  const save = async (): Promise<TrainEvent | undefined> => {
    if (full.checkpointFolder === undefined || saved === done) return undefined;
    const folder = await writeCheckpoint(model, full.checkpointFolder, checkpointName(done), { step: done, settings });
    pruneCheckpoints(full.checkpointFolder, done, full.keepCheckpoints);
    saved = done;
    return { type: 'checkpoint', folder, step: done };
  };
  try {
    yield { type: 'start', step: done, steps: total, ...(resumedFrom === undefined ? {} : { resumedFrom }) };
    let next = done < total ? await prepareStep(run, done) : undefined;
    while (next !== undefined) {
      const { stage, stageStep } = next;
      if (stageStep === 0) {
        if (stage.resetOptimizer && done > 0) await zeroMoments(model);
        yield { type: 'stage', stage };
      }
      // The next step's samples are made while the native thread works on this one.
      const [ran, following]: [PromiseSettledResult<StepMetrics>, PromiseSettledResult<PreparedStep | undefined>] = await Promise.allSettled([
        runStep(run, next), done + 1 < total ? prepareStep(run, done + 1) : undefined,
      ]);
      if (ran.status === 'rejected') throw ran.reason;
      done++;
      metrics.write(ran.value);
      yield { type: 'step', metrics: ran.value };
      if (full.checkpointEvery > 0 && done % full.checkpointEvery === 0 && done < total) {
        const event = await save();
        if (event) yield event;
      }
      if (following.status === 'rejected') throw following.reason;
      next = following.value;
    }
    const event = await save();
    if (event) yield event;
  } catch (error) {
    if (full.signal?.aborted === true && error === full.signal.reason) await save();
    throw error;
  } finally {
    run.session.dispose();
    metrics.close();
  }
}

/** Runs the whole training and returns the figures of its last step; events go to `onEvent`. */
export async function trainAll(model: ModelView & SavableModel, options: TrainArguments, onEvent: (event: TrainEvent) => void = () => {}): Promise<StepMetrics | undefined> {
  let last: StepMetrics | undefined;
  for await (const event of train(model, options)) {
    if (event.type === 'step') last = event.metrics;
    onEvent(event);
  }
  return last;
}

/** The checkpoint to go on from; undefined for a new training. */
function startingPoint({ resume, checkpointFolder }: FullOptions): string | undefined {
  const latest = checkpointFolder === undefined ? undefined : latestCheckpoint(checkpointFolder);
  if (resume !== undefined) return resume === 'latest' ? latest : resume;
  if (latest !== undefined) fail('ERR_ARGUMENT', 'train', `Expected a checkpointFolder without checkpoints but received one with ${latest}; set resume: 'latest', or name another folder`);
  return undefined;
}

/** What a resumed run must have in common with the run that wrote the checkpoint. */
function settingsOf(options: FullOptions, stages: readonly PlannedStage[], preset: Preset): Record<string, unknown> {
  const { batchSize, accumulation, seed, beta1, beta2, epsilon, weightDecay, maxNorm, trainVision, data } = options;
  return { batchSize, accumulation, seed, beta1, beta2, epsilon, weightDecay, maxNorm, trainVision, preset: presetJson(preset), dataSize: data.size ?? null, stages };
}

/** The model's preset with the option's changes. */
function presetOf(model: ModelView, { latentGradient, preset }: FullOptions): Preset {
  return makePreset({ ...(typeof preset === 'string' ? { name: preset } : preset), ...(latentGradient === undefined ? {} : { latentGradient }) }, model.geometry.layers, model.preset);
}

interface Run {
  model: ModelView;
  options: FullOptions;
  preset: Preset;
  stages: readonly PlannedStage[];
  session: NativeSession;
}

interface PreparedStep {
  step: number;
  stage: PlannedStage;
  stageStep: number;
  batches: SequenceInput[][];
  targets: number;
  /** Sequences with a super-resolution loss. */
  superResolved: number;
}

/** Samples of an optimiser step, at the curriculum stage that each is drawn at. */
async function prepareStep({ model, options, preset, stages }: Run, step: number): Promise<PreparedStep> {
  const { data, batchSize, accumulation, seed } = options;
  const stage = stageOf(stages, step) as PlannedStage;
  const stageStep = step - stage.firstStep;
  const batches = await Promise.all(Array.from({ length: accumulation }, (_, batch) => Promise.all(Array.from({ length: batchSize }, async (__, n): Promise<SequenceInput> => {
    const position = (step * accumulation + batch) * batchSize + n;
    const sample = await data.at(sampleIndex(seed, position, data.size), { stage, stageStep });
    check.object('train', 'what data.at resolves to', sample);
    checkPrompt('train', `sample ${position}`, sample, model.geometry);
    const { latents, words } = stageSequence(sample, drawShape(stage, seed, position));
    return { promptIds: sample.promptIds, pictures: sample.pictures, latents, words };
  }))));
  const targets = batches.flat().reduce((sum, { words }) => sum + words.length, 0);
  if (targets === 0) fail('ERR_ARGUMENT', 'train', `Expected samples with words to learn but received none in step ${step + 1}`);
  return { step, stage, stageStep, batches, targets, superResolved: countSuperResolved(batches.flat(), model.geometry, preset) };
}

async function runStep(run: Run, prepared: PreparedStep): Promise<StepMetrics> {
  const { model, options, preset, session, stages } = run;
  const { stage, stageStep, step } = prepared;
  const started = performance.now();
  const rowsBefore = session.tokenForwards();
  const rate = learningRate({ peak: stage.learningRate, warmupSteps: stage.warmupSteps, steps: stage.steps, finalRate: stage.finalRate }, stageStep);
  const sum: MicroBatchFigures = { loss: 0, right: 0, srLoss: 0, scored: 0, routed: 0, scores: 0, squares: 0 };
  try {
    for (const batch of prepared.batches) {
      const figures = await runMicroBatch(run, batch, prepared);
      for (const key of Object.keys(sum) as (keyof MicroBatchFigures)[]) sum[key] += figures[key];
    }
  } catch (error) {
    await session.reset().catch(() => {});
    await model.native.zeroGradients().catch(() => {});
    throw error;
  }
  // Not cancellable: an update that stops half-way would leave weights of no step at all.
  const { beta1, beta2, epsilon, weightDecay, maxNorm } = options;
  const gradientNorm = await abortable(undefined, () => model.native.optimizerStep({
    learningRate: rate, beta1, beta2, epsilon, weightDecay, maxNorm, step: step - lastReset(stages, step) + 1,
  }));
  const moved = preset.rule === 'threshold' && routes(preset) && Number.isFinite(gradientNorm)
    ? await abortable(undefined, () => model.native.updateThresholds(preset.thresholdRate, preset.targetFraction)) : undefined;
  await abortable(undefined, () => model.native.zeroGradients());
  if (!Number.isFinite(gradientNorm)) {
    fail('ERR_RANGE', 'train', `Expected a finite gradient in step ${step + 1} (stage "${stage.name}") but received norm ${gradientNorm}; lower the learning rate or clip with maxNorm`);
  }
  return {
    step: step + 1, stage: stage.name, stageStep: stageStep + 1, loss: sum.loss / prepared.targets, targets: prepared.targets,
    ...(prepared.superResolved > 0 ? { srLoss: sum.srLoss } : {}),
    ...(sum.scored > 0 ? { routedFraction: sum.routed / sum.scored, scoreSquare: sum.squares / sum.scores } : {}),
    ...(moved ? { thresholds: Object.fromEntries(Array.from(moved.layers, (layer, n) => [layer, moved.thresholds[n]!])) } : {}),
    accuracy: sum.right / prepared.targets, learningRate: rate, gradientNorm, samples: prepared.batches.reduce((sum, batch) => sum + batch.length, 0),
    rows: session.tokenForwards() - rowsBefore, milliseconds: performance.now() - started,
  };
}

/** Sums over the sequences of a batch. */
interface MicroBatchFigures {
  loss: number;
  right: number;
  /** Already the batch's part of the step's mean. */
  srLoss: number;
  scored: number;
  routed: number;
  scores: number;
  squares: number;
}

async function runMicroBatch({ model, options, preset, session }: Run, batch: readonly SequenceInput[], { step, stage, targets: all, superResolved }: PreparedStep): Promise<MicroBatchFigures> {
  return abortable(options.signal, async (token) => {
    await session.reset();
    const { geometry } = model;
    const run = await runBatch(session, batch, geometry, { preset, targets: preset.replay && preset.tokenSr, token });
    const { pass, row, target } = run.targets;
    const replayed = replayLosses(run, batch, geometry, preset, superResolved);
    if (target.length === 0 && replayed.replay.length === 0) return { loss: 0, right: 0, srLoss: 0, scored: 0, routed: 0, scores: 0, squares: 0 };
    const { losses, argmax } = await session.loss({
      pass, row, target, scale: 1 / all, replay: replayed.replay, index: replayed.index, weight: replayed.share.map((share) => share * preset.srWeight),
    }, token);
    const loss = losses.reduce((sum, one) => sum + one, 0);
    const srLoss = replayed.losses.reduce((sum, one, n) => sum + one * replayed.share[n]!, 0);
    if (!Number.isFinite(loss) || !Number.isFinite(srLoss)) {
      fail('ERR_RANGE', 'train', `Expected a finite loss in step ${step + 1} (stage "${stage.name}") but received ${Number.isFinite(loss) ? `super-resolution loss ${srLoss}` : loss}; lower the learning rate or check the weights`);
    }
    const { scored, routed, scores, meanSquare } = await session.routingFigures();
    await session.backward(preset.routerPenalty / options.accumulation, token);
    return { loss, srLoss, right: argmax.filter((id, n) => id === target[n]).length, scored, routed, scores, squares: meanSquare * scores };
  });
}

/** First step of the latest stage that reset the optimiser, at or before `step`. */
function lastReset(stages: readonly PlannedStage[], step: number): number {
  return stages.reduce((first, stage) => (stage.resetOptimizer && stage.firstStep <= step ? stage.firstStep : first), 0);
}
