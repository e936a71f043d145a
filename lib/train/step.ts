/** What an optimiser step is made of: its samples, and one batch of them forward and back. */
import { abortable } from '../abort';
import * as check from '../check';
import { fail } from '../errors';
import { checkPrompt } from '../model/passes';
import { mix } from '../random';
import type { Preset } from '../model/preset';
import type { ModelView } from '../model/reasoning';
import type { RowClass } from '../model/rowClass';
import type { NativeGradientNorms, NativeSession } from '../native';
import { countSuperResolved, replayLosses, runBatch, type SequenceInput } from './batch';
import type { SavableModel } from './checkpoint';
import { drawShape, stageOf, stageSequence, type PlannedStage } from './curriculum';
import { sampleIndex } from './dataOrder';
import type { FullOptions } from './trainOptions';

/** What sets these draws apart from others of the same seed. */
const DROPOUT = 7;

export interface Run {
  model: ModelView & Pick<SavableModel, 'adapter'>;
  options: FullOptions;
  preset: Preset;
  stages: readonly PlannedStage[];
  session: NativeSession;
}

/** A sequence with the place of its sample in the data set. */
export interface StepSequence extends SequenceInput {
  sample: number;
}

export interface PreparedStep {
  step: number;
  stage: PlannedStage;
  stageStep: number;
  batches: StepSequence[][];
  targets: number;
  /** Sequences with a super-resolution loss. */
  superResolved: number;
}

/** Samples of an optimiser step, at the curriculum stage that each is drawn at. */
export async function prepareStep({ model, options, preset, stages }: Run, step: number): Promise<PreparedStep> {
  const { data, batchSize, accumulation, seed } = options;
  const stage = stageOf(stages, step) as PlannedStage;
  const stageStep = step - stage.firstStep;
  const batches = await Promise.all(Array.from({ length: accumulation }, (_, batch) => Promise.all(Array.from({ length: batchSize }, async (__, n): Promise<StepSequence> => {
    const position = (step * accumulation + batch) * batchSize + n;
    const index = sampleIndex(seed, position, data.size);
    const sample = await data.at(index, { stage, stageStep });
    check.object('train', 'what data.at resolves to', sample);
    checkPrompt('train', `sample ${position}`, sample, model.geometry);
    const staged = stageSequence(sample, drawShape(stage, seed, position));
    return { promptIds: sample.promptIds, pictures: sample.pictures, ...staged, sample: index };
  }))));
  const targets = batches.flat().reduce((sum, { words }) => sum + words.length, 0);
  if (targets === 0) fail('ERR_ARGUMENT', 'train', `Expected samples with words to learn but received none in step ${step + 1}`);
  return { step, stage, stageStep, batches, targets, superResolved: countSuperResolved(batches.flat(), model.geometry, preset) };
}

/** Sums over the sequences of a batch. */
export interface MicroBatchFigures {
  loss: number;
  right: number;
  /** Already the batch's part of the step's mean. */
  srLoss: number;
  scored: number;
  routed: number;
  scores: number;
  squares: number;
}

export const NO_FIGURES: MicroBatchFigures = Object.freeze({ loss: 0, right: 0, srLoss: 0, scored: 0, routed: 0, scores: 0, squares: 0 });

/** What a profile takes from a batch, whose gradients have just been added. */
export interface BatchObservation {
  batch: readonly StepSequence[];
  /** Mean cross entropy of each sequence; NaN of one without targets. */
  losses: number[];
  /** Of the rows of each sequence. */
  classes: readonly RowClass[][];
  /** Undefined where the batch had nothing to learn. */
  norms: NativeGradientNorms | undefined;
}

/** Adds the gradients of one batch to the model's. @param number of the batch in the step. @param observe hears of the batch; the session must have been opened with `profile`. */
export async function runMicroBatch(run: Run, batch: readonly StepSequence[], prepared: PreparedStep, { number = 0, observe }: { number?: number; observe?: (seen: BatchObservation) => void } = {}): Promise<MicroBatchFigures> {
  const { model, options, preset, session } = run;
  const { step, stage, targets: all, superResolved } = prepared;
  return abortable(options.signal, async (token) => {
    // Dropout depends on seed, step and batch alone: a resumed run drops the same elements.
    await session.reset((model.adapter?.dropout ?? 0) > 0 ? mix(options.seed, step, number, DROPOUT) : undefined);
    const { geometry } = model;
    const ran = await runBatch(session, batch, geometry, { preset, targets: preset.replay && preset.tokenSr, token });
    const { pass, row, target, sequence } = ran.targets;
    const replayed = replayLosses(ran, batch, geometry, preset, superResolved);
    if (target.length === 0 && replayed.replay.length === 0) {
      observe?.({ batch, losses: batch.map(() => NaN), classes: ran.classes, norms: undefined });
      return NO_FIGURES;
    }
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
    observe?.({ batch, losses: sequenceLosses(losses, sequence, batch.length), classes: ran.classes, norms: await session.gradientNorms() });
    return { loss, srLoss, right: argmax.filter((id, n) => id === target[n]).length, scored, routed, scores, squares: meanSquare * scores };
  });
}

/** Mean cross entropy of each sequence of a batch; NaN of one without targets. Adds to gradients what the loss does: zero them. */
export async function forwardLosses({ model, options, preset, session }: Run, batch: readonly StepSequence[]): Promise<number[]> {
  return abortable(options.signal, async (token) => {
    await session.reset();
    const { targets: { pass, row, target, sequence } } = await runBatch(session, batch, model.geometry, { preset, token });
    const { losses } = await session.loss({ pass, row, target, scale: 1 }, token);
    return sequenceLosses(losses, sequence, batch.length);
  });
}

/** Means of the losses of each of `count` sequences. */
function sequenceLosses(losses: Float32Array, sequence: Int32Array, count: number): number[] {
  const sums = new Float64Array(count);
  const counts = new Int32Array(count);
  losses.forEach((loss, n) => {
    sums[sequence[n]!]! += loss;
    counts[sequence[n]!]! += 1;
  });
  return Array.from(sums, (sum, n) => sum / counts[n]!);
}
