/** One training step's loss, its parts and its gradients, as the trainer computes them. */
import type { LatentModel } from '../../lib/latentModel';
import { routes, type Preset } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import type { NativeRoutingTrace } from '../../lib/native';
import { countSuperResolved, replayLosses, runBatch, type BatchOptions, type SequenceInput } from '../../lib/train/batch';
import { disposing } from './reasoner';

export interface StepOutcome {
  crossEntropy: number;
  superResolution: number;
  /** Mean squared router score. */
  squares: number;
  /** Cross entropy + srWeight * super-resolution + routerPenalty * squares. */
  total: number;
  gradients: Map<string, Float32Array>;
  /** What was replayed, in which windows, and routed: what must not flip when a parameter moves a little. */
  choices: string;
}

export interface StepSettings {
  recompute?: boolean;
  visionGradient?: boolean;
  /** Forward only: no gradients. */
  lossOnly?: boolean;
  /** Of the adapter; absent: none is dropped. */
  dropoutSeed?: number;
  /** Of each sequence, see `BatchOptions`. */
  forcedRoutes?: NonNullable<BatchOptions['forcedRoutes']>;
}

export async function trainingStep(model: LatentModel, preset: Preset, sequences: readonly SequenceInput[], settings: StepSettings = {}): Promise<StepOutcome> {
  const { recompute = false, visionGradient = true, lossOnly = false, dropoutSeed, forcedRoutes } = settings;
  await model.native.enableTraining();
  await model.native.zeroGradients();
  return disposing(openReasoning('test', model, preset, { training: true, recompute, visionGradient }), async (session) => {
    await session.reset(dropoutSeed);
    const segments: Int32Array[] = [];
    const run = await runBatch(session, sequences, model.geometry, {
      preset, targets: preset.replay && preset.tokenSr, ...(forcedRoutes === undefined ? {} : { forcedRoutes }), adjust: (pass) => { segments.push(pass.cuSeqlens); return { ...pass, traceRouting: routes(preset) }; },
    });
    const { pass, row, target } = run.targets;
    const replayed = replayLosses(run, sequences, model.geometry, preset, countSuperResolved(sequences, model.geometry, preset));
    const { losses } = await session.loss({
      pass, row, target, scale: 1 / target.length, replay: replayed.replay, index: replayed.index, weight: replayed.share.map((share) => share * preset.srWeight),
    });
    const crossEntropy = losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    const superResolution = replayed.losses.reduce((sum, loss, n) => sum + loss * replayed.share[n]!, 0);
    const { meanSquare } = await session.routingFigures();
    if (!lossOnly) await session.backward(preset.routerPenalty);
    const gradients = new Map<string, Float32Array>();
    for (const { name } of lossOnly ? [] : model.native.parameters().filter(({ trainable }) => trainable)) gradients.set(name, await model.native.readParameter(name, 'gradient'));
    return {
      crossEntropy, superResolution, squares: meanSquare, gradients, total: crossEntropy + preset.srWeight * superResolution + preset.routerPenalty * meanSquare,
      choices: JSON.stringify([
        run.replays.map(({ result: { selected, windows } }) => [[...selected], [...windows]]),
        run.results.map(({ routing }, n) => (routing ?? []).map((trace) => [trace.layer, trace.depth, preset.misordered ? byScore(trace, segments[n]!) : [...trace.routed]])),
      ]),
    };
  });
}

/** Routed rows of each sequence, best first: under `misordered` an output goes where its rank says. */
function byScore({ candidates, scores, routed }: NativeRoutingTrace, cuSeqlens: Int32Array): number[][] {
  const of = new Map(Array.from(candidates, (row, i) => [row, scores[i]!]));
  return Array.from(cuSeqlens.subarray(1), (end, b) => [...routed].filter((row) => row >= cuSeqlens[b]! && row < end).sort((x, y) => of.get(y)! - of.get(x)!));
}

export function bytesOf(values: Float32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}
