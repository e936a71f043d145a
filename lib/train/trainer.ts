/** The training loop: curriculum stages, accumulation, clipping, AdamW; stops at any moment and resumes with the same bits. */
import { createHash } from 'node:crypto';
import { abortable } from '../abort';
import * as check from '../check';
import { fail } from '../errors';
import { adaptsVision, type Adapter } from '../model/adapter';
import { requireTrainingMemory } from '../model/memory';
import { makePreset, presetJson, routes, type Preset } from '../model/preset';
import { openReasoning, type ModelView } from '../model/reasoning';
import { memoryOf } from '../model/weights';
import type { NativeModel, StorageDType } from '../native';
import { checkpointName, latestCheckpoint, prepareFolder, pruneCheckpoints, readTrainerState, writeCheckpoint, zeroMoments, type SavableModel } from './checkpoint';
import { planStages, type PlannedStage } from './curriculum';
import { linesWriter, type LinesWriter } from './metrics';
import type { ProfileStep } from './profileFormat';
import { makeProfiler, type Profiler, type StepProfile } from './profiler';
import { learningRate } from './schedule';
import { NO_FIGURES, prepareStep, runMicroBatch, type MicroBatchFigures, type PreparedStep, type Run } from './step';
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
  requireNoTraining('train', native);
  inTraining.add(native);
  try {
    yield* trainAlone(model, full);
  } finally {
    inTraining.delete(native);
  }
}

/** Two trainings of one model at once would add their gradients together. */
const inTraining = new WeakSet<NativeModel>();

/** For what would change weights below a training. @throws {LibError} `ERR_ARGUMENT` when one holds the model. */
export function requireNoTraining(op: string, model: NativeModel): void {
  if (inTraining.has(model)) fail('ERR_ARGUMENT', op, 'Expected a model that no training holds but received one that is being trained; end that training first, or leave its loop');
}

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
  if (model.adapter !== undefined && full.trainVision) fail('ERR_ARGUMENT', 'train', 'Expected trainVision: false for a model with an adapter, which is trained instead of the weights, but received true; give the adapter vision: true to train the tower too');
  if (model.adapter !== undefined && (await abortable(undefined, () => model.native.mergedAdapters())) > 0) {
    fail('ERR_ARGUMENT', 'train', 'Expected an adapter that is not merged into the weights, because it is trained, but received one that is; call unmergeAdapter first, or load the model again');
  }
  const preset = presetOf(model, full);
  const stages = planStages(full.stages, full.batchSize * full.accumulation, full.data.size);
  const total = stages.reduce((sum, { steps }) => sum + steps, 0);
  const settings = { dtype: storageOf(model.native), ...settingsOf(full, stages, preset, model.adapter, model.adapter === undefined ? undefined : await baseDigest(model.native)) };
  const session = openReasoning('train', model, preset, { training: true, recompute: full.recompute, visionGradient: full.trainVision || adaptsVision(model.adapter), profile: full.profileFile !== undefined });
  try {
    if (full.checkpointFolder !== undefined) await prepareFolder(full.checkpointFolder);
    const resumedFrom = startingPoint(full);
    chooseTrainable(model.native, { trainVision: full.trainVision, preset, adapted: model.adapter !== undefined });
    requireTrainingMemory('train', model.native, full.maxMemoryBytes ?? memoryOf(model.device ?? 'cpu'));
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
  let metrics: LinesWriter;
  let profiler: Profiler | undefined;
  try {
    metrics = linesWriter('metricsFile', full.metricsFile, done);
    profiler = makeProfiler(model, full, done);
    // Both are checked before either is written.
    metrics.begin();
    profiler?.begin();
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
      const [ran, following]: [PromiseSettledResult<RanStep>, PromiseSettledResult<PreparedStep | undefined>] = await Promise.allSettled([
        runStep(run, next, profiler?.start(done)), done + 1 < total ? prepareStep(run, done + 1) : undefined,
      ]);
      if (ran.status === 'rejected') throw ran.reason;
      done++;
      metrics.write(ran.value.metrics);
      if (ran.value.profile !== undefined) profiler?.write(ran.value.profile);
      yield { type: 'step', metrics: ran.value.metrics };
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
    try {
      metrics.close();
    } finally {
      profiler?.close();
    }
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
function settingsOf(options: FullOptions, stages: readonly PlannedStage[], preset: Preset, adapter: Adapter | undefined, base: string | undefined): Record<string, unknown> {
  const { batchSize, accumulation, seed, beta1, beta2, epsilon, weightDecay, maxNorm, trainVision, data } = options;
  return {
    ...(adapter === undefined ? {} : { adapter: { dropout: adapter.dropout, base } }),
    batchSize, accumulation, seed, beta1, beta2, epsilon, weightDecay, maxNorm, trainVision, preset: presetJson(preset), dataSize: data.size ?? null, stages,
  };
}

/** Of the matrices: masters of bf16 weights have bits that f32 weights of the same values lack. */
function storageOf(native: NativeModel): StorageDType {
  return native.parameters().some(({ dtype }) => dtype === 'bf16') ? 'bf16' : 'f32';
}

/** The model's preset with the option's changes. */
function presetOf(model: ModelView, { latentGradient, preset }: FullOptions): Preset {
  return makePreset({ ...(typeof preset === 'string' ? { name: preset } : preset), ...(latentGradient === undefined ? {} : { latentGradient }) }, model.geometry.layers, model.preset);
}

/** Tells the weights below an adapter from others: a hash of a few of them. */
async function baseDigest(native: NativeModel): Promise<string> {
  const names = native.parameters().map(({ name }) => name).filter((name) => /^model\.(norm\.weight|layers\.\d+\.(input_layernorm\.weight|self_attn\.[qv]_proj\.bias))$|^model\.layers\.0\.self_attn\.[qkvo]_proj\.weight$/.test(name));
  const hash = createHash('sha256');
  for (const name of names) hash.update(name).update(new Uint8Array((await abortable(undefined, () => native.readParameter(name, 'value'))).buffer));
  return hash.digest('hex').slice(0, 16);
}

interface RanStep {
  metrics: StepMetrics;
  profile: ProfileStep | undefined;
}

async function runStep(run: Run, prepared: PreparedStep, profile: StepProfile | undefined): Promise<RanStep> {
  const { model, options, preset, session, stages } = run;
  const { stage, stageStep, step } = prepared;
  const started = performance.now();
  const rate = learningRate({ peak: stage.learningRate, warmupSteps: stage.warmupSteps, steps: stage.steps, finalRate: stage.finalRate }, stageStep);
  const sum: MicroBatchFigures = { ...NO_FIGURES };
  let rowsBefore = 0;
  try {
    await profile?.before(run, prepared);
    rowsBefore = session.tokenForwards();
    for (const [number, batch] of prepared.batches.entries()) {
      const figures = await runMicroBatch(run, batch, prepared, { number, ...(profile === undefined ? {} : { observe: profile.observe }) });
      for (const key of Object.keys(sum) as (keyof MicroBatchFigures)[]) sum[key] += figures[key];
    }
    await profile?.complete(run);
  } catch (error) {
    await session.reset().catch(() => {});
    await model.native.zeroGradients().catch(() => {});
    throw error;
  }
  // Not cancellable: an update that stops half-way would leave weights of no step at all.
  const { beta1, beta2, epsilon, weightDecay, maxNorm } = options;
  const updated = abortable(undefined, () => model.native.optimizerStep({
    learningRate: rate, beta1, beta2, epsilon, weightDecay, maxNorm, step: step - lastReset(stages, step) + 1,
  }));
  const line = profile?.line(prepared);   // while the native thread updates
  const gradientNorm = await updated;
  const moved = preset.rule === 'threshold' && routes(preset) && Number.isFinite(gradientNorm)
    ? await abortable(undefined, () => model.native.updateThresholds(preset.thresholdRate, preset.targetFraction)) : undefined;
  await abortable(undefined, () => model.native.zeroGradients());
  if (!Number.isFinite(gradientNorm)) {
    fail('ERR_RANGE', 'train', `Expected a finite gradient in step ${step + 1} (stage "${stage.name}") but received norm ${gradientNorm}; lower the learning rate or clip with maxNorm`);
  }
  const metrics: StepMetrics = {
    step: step + 1, stage: stage.name, stageStep: stageStep + 1, loss: sum.loss / prepared.targets, targets: prepared.targets,
    ...(prepared.superResolved > 0 ? { srLoss: sum.srLoss } : {}),
    ...(sum.scored > 0 ? { routedFraction: sum.routed / sum.scored, scoreSquare: sum.squares / sum.scores } : {}),
    ...(moved ? { thresholds: Object.fromEntries(Array.from(moved.layers, (layer, n) => [layer, moved.thresholds[n]!])) } : {}),
    accuracy: sum.right / prepared.targets, learningRate: rate, gradientNorm, samples: prepared.batches.reduce((sum, batch) => sum + batch.length, 0),
    rows: session.tokenForwards() - rowsBefore, milliseconds: performance.now() - started,
  };
  return { metrics, profile: line };
}

/** First step of the latest stage that reset the optimiser, at or before `step`. */
function lastReset(stages: readonly PlannedStage[], step: number): number {
  return stages.reduce((first, stage) => (stage.resetOptimizer && stage.firstStep <= step ? stage.firstStep : first), 0);
}
