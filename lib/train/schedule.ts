/** Learning rate over the steps of a stage: linear warm-up, then half a cosine. Pure. */

export interface Schedule {
  /** Highest rate. */
  peak: number;
  /** Steps of linear warm-up; step 0 gets peak / warmupSteps, step warmupSteps - 1 gets peak. */
  warmupSteps: number;
  /** Steps in all. */
  steps: number;
  /** Rate of the last step, as a share of the peak. */
  finalRate: number;
}

/** Learning rate of `step`, from 0. Steps past the end keep the last rate. */
export function learningRate(schedule: Schedule, step: number): number {
  const { peak, warmupSteps, steps, finalRate } = schedule;
  if (step < warmupSteps) return (peak * (step + 1)) / warmupSteps;
  const span = steps - 1 - warmupSteps;
  const progress = span <= 0 ? 0 : Math.min(1, (step - warmupSteps) / span);
  return peak * (finalRate + (1 - finalRate) * 0.5 * (1 + Math.cos(Math.PI * progress)));
}
