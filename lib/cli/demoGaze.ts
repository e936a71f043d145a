/** Pictures of what a model looked at when it answered held-out questions. */
import { join } from 'node:path';
import { digitGridAnswer } from '../data';
import { generate } from '../decode';
import type { LatentModel } from '../latentModel';
import { writeAtomically, writing } from '../model/files';
import { gazePicture } from '../report';
import type { HeldOut } from './demoData';
import type { Phase } from './demoPhases';

/** Pictures per run: the first question of each kind, up to so many. */
export const GAZES = 4;

export interface DemoGaze {
  /** Below the run folder. */
  file: string;
  question: string;
  /** What the model said, without the word "answer"; null where it did not say it. */
  answer: string | null;
  expected: string;
  isRight: boolean;
}

/** Writes `gaze-1.png`, `gaze-2.png`, ... */
export async function writeGazes(model: LatentModel, { items, samples }: HeldOut, { latentSteps, maxNewTokens }: Phase, out: string, signal?: AbortSignal): Promise<DemoGaze[]> {
  const kinds = [...new Set(items.map(({ kind }) => kind))];
  const chosen = kinds.map((kind) => items.findIndex((item) => item.kind === kind)).slice(0, GAZES);
  const requests = chosen.map((place) => ({ promptIds: items[place]!.promptIds, pictures: items[place]!.pictures }));
  const results = await generate(model, requests, { latentSteps, maxNewTokens, evidence: true, ...(signal ? { signal } : {}) });
  return Promise.all(results.map(async (result, n): Promise<DemoGaze> => {
    const place = chosen[n]!;
    const { question, answer: expected, picture } = samples[place]!;
    const answer = digitGridAnswer(result.text ?? '');
    const isRight = items[place]!.isRight(result);
    const file = `gaze-${n + 1}.png`;
    const png = await gazePicture(picture, result.evidence!, { question, answer: answer ?? result.text ?? '', expected, isRight });
    await writing('demo', out, () => writeAtomically(join(out, file), (write) => write(png)));
    return { file, question, answer, expected, isRight };
  }));
}
