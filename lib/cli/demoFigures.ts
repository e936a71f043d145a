/** What a training was like, read from its metrics file: complete after a resumed run too. */
import { existsSync, readFileSync } from 'node:fs';
import { routes, type Preset } from '../model/preset';
import type { StepMetrics } from '../train/trainer';

/** How far the routed share may be from its target, as a share of the target. */
const ROUTED_TOLERANCE = 0.2;

export interface RoutingFigures {
  /** Share of the rows that the preset aims at. */
  target: number;
  /** Mean share of the rows that took another pass, in the last quarter of the steps. */
  lastQuarter: number;
  /** The same after the first quarter. */
  afterFirstQuarter: number;
  /** `afterFirstQuarter` is within 20 % of the target. */
  isNearTarget: boolean;
}

export interface TrainingFigures {
  steps: number;
  seconds: number;
  millisecondsPerStep: number;
  /** Mean cross entropy of the last quarter of the steps. */
  loss: number;
  /** No loss of any step was NaN or infinite. */
  isFinite: boolean;
  /** Mean super-resolution loss over the steps that have one, with replay. */
  srLoss?: number;
  /** The same in the last quarter. */
  srLossLastQuarter?: number;
  routing?: RoutingFigures;
}

/** @param metricsFile JSON Lines of a complete training. */
export function trainingFigures(metricsFile: string, preset: Preset): TrainingFigures {
  const text = existsSync(metricsFile) ? readFileSync(metricsFile, 'utf8') : '';
  return figuresOf(text.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as StepMetrics), preset);
}

export function figuresOf(steps: readonly StepMetrics[], preset: Preset): TrainingFigures {
  const lastQuarter = steps.slice(-Math.max(1, Math.floor(steps.length / 4)));
  const milliseconds = steps.reduce((sum, { milliseconds: each }) => sum + each, 0);
  const srLosses = present(steps, 'srLoss');
  return {
    steps: steps.length, seconds: milliseconds / 1000, millisecondsPerStep: milliseconds / steps.length,
    loss: mean(present(lastQuarter, 'loss')),
    // A number that is not finite is null in JSON.
    isFinite: steps.length > 0 && steps.every(({ loss, srLoss }) => Number.isFinite(loss) && (srLoss === undefined || Number.isFinite(srLoss))),
    ...(srLosses.length > 0 ? { srLoss: mean(srLosses), srLossLastQuarter: mean(present(lastQuarter, 'srLoss')) } : {}),
    ...(routes(preset) ? { routing: routingFigures(steps, lastQuarter, preset) } : {}),
  };
}

function routingFigures(steps: readonly StepMetrics[], last: readonly StepMetrics[], { targetFraction: target }: Preset): RoutingFigures {
  const afterFirstQuarter = mean(present(steps.slice(Math.floor(steps.length / 4)), 'routedFraction'));
  return {
    target, lastQuarter: mean(present(last, 'routedFraction')), afterFirstQuarter,
    isNearTarget: Math.abs(afterFirstQuarter - target) <= ROUTED_TOLERANCE * target,
  };
}

function present(steps: readonly StepMetrics[], key: 'loss' | 'srLoss' | 'routedFraction'): number[] {
  return steps.flatMap((step) => step[key] ?? []);
}

/** NaN of none. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
