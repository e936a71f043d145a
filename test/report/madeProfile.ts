/** Made-up gradient profiles: two layers, image rows at a given ratio to words, hard samples at another to easy ones. */
import { ROW_CLASSES } from '../../lib/model/rowClass';
import { parseProfile, PROFILE_COLUMNS, type GradientProfile } from '../../lib/train';

export const MATRICES = ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight'];

export function headLine(changes: object = {}): string {
  return JSON.stringify({ format: 'plumbline gradient profile', version: 1, layers: 2, classes: ROW_CLASSES, columns: PROFILE_COLUMNS, matrices: MATRICES, tooLarge: [], ...changes });
}

/** Statistics of ten rows around a mean. */
function row(mean: number): number[] {
  return [10, 0, mean, mean * mean / 100, 0.8 * mean, 1.2 * mean, 0.82 * mean, 0.9 * mean, mean, 1.1 * mean, 1.18 * mean];
}

export interface Made { image?: number; hard?: number; wobble?: number; }

export function stepLine(step: number, changes: object = {}, { image = 0.5, hard = 2, wobble = 0.05 }: Made = {}): string {
  const drift = 1 + wobble * Math.sin(2.4 * step);
  const group = (factor: number): (number[] | null)[][] => [0, 1, 2].map((level) => [
    row(factor * (level + 1)), level === 2 ? row(0) : row(factor * (level + 1) * image * drift), null, row(0.1 * factor), row(factor * (level + 1)), row(factor * (level + 1)),
  ]);
  return JSON.stringify({
    step, stage: step < 10 ? 'words' : 'latents', targets: 20, norms: { all: group(1), easy: group(1), hard: group(hard) },
    samples: { index: [0, 1], loss: [1, 2], running: [1, 2], group: ['easy', 'hard'] },
    ...(step % 5 === 1 ? { matrices: { all: [[4, 2, 3, 2], [8, 4, 5, 2]], easy: [[2, 1, 3, 2], [4, 2, 5, 2]], hard: [[3, 1, 3, 3], [5, 2, 5, 2.5]] } } : {}), ...changes,
  });
}

export function madeProfile(steps: number, made: Made = {}): GradientProfile {
  return parseProfile([headLine(), ...Array.from({ length: steps }, (_, n) => stepLine(n + 1, {}, made)), ''].join('\n'), 'made');
}
