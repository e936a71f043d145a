/** Accuracy of generated answers on questions with known answers, with what the answers cost. */
import * as check from '../check';
import { generate, type GenerateOptions, type GenerateResult, type GenerativeModel } from '../decode/generate';
import type { PromptInput } from '../model/passes';
import { wilson, type Share } from './interval';

/** A question and how its answer is judged. */
export interface EvaluationItem extends PromptInput {
  /** Group of questions that is also counted apart. */
  kind: string;
  isRight(result: GenerateResult): boolean;
}

/** Makes an item when its turn comes, so that the pictures of all need not be held at once. */
export type LazyItem = () => Promise<EvaluationItem>;

export interface Evaluation {
  overall: Share;
  kinds: Record<string, Share>;
  /** Mean over the answers: latent steps + generated tokens, the end token included. */
  arStepsPerAnswer: number;
  /** Mean rows through the decoder: prompt, latents, words. */
  rowsPerAnswer: number;
  /** Wall time of the batched generation / answers, at this batch size. */
  millisecondsPerAnswer: number;
  batchSize: number;
  /** Answers that were cut off at `maxNewTokens`. */
  cutOff: number;
  /** Per question, in order. */
  answers: { right: boolean; result: GenerateResult }[];
}

export interface EvaluationOptions extends Partial<GenerateOptions> {
  /** After each batch. */
  onProgress?: (done: number, total: number) => void;
}

/**
 * Answers all items greedily (unless the options say otherwise) and counts.
 *
 * @param items read in order, `batchSize` (default 64) at a time; functions make theirs then.
 * @throws as `generate`.
 */
export async function evaluate(model: GenerativeModel<never>, items: readonly (EvaluationItem | LazyItem)[], options: EvaluationOptions = {}): Promise<Evaluation> {
  check.array('evaluate', 'items', items);
  items.forEach((item, n) => {
    if (typeof item !== 'function') checkItem(item, n);
  });
  check.object('evaluate', 'options', options);
  const { onProgress, ...generation } = options;
  if (onProgress !== undefined) check.callback('evaluate', 'onProgress', onProgress);
  const batchSize = check.integer('evaluate', 'batchSize', generation.batchSize ?? 64, 1);
  const answers: Evaluation['answers'] = [];
  const kinds: string[] = [];
  let milliseconds = 0;
  for (let first = 0; first < items.length; first += batchSize) {
    const batch = await Promise.all(items.slice(first, first + batchSize).map(async (item, n) => (typeof item === 'function' ? checkItem(await item(), first + n) : item)));
    const started = performance.now();
    const results = await generate(model, batch.map(({ promptIds, pictures }) => ({ promptIds, pictures })), { ...generation, batchSize });
    milliseconds += performance.now() - started;
    batch.forEach((item, n) => {
      const result = results[n] as GenerateResult;
      kinds.push(item.kind);
      answers.push({ right: item.isRight(result), result });
    });
    onProgress?.(answers.length, items.length);
  }
  const mean = (value: (result: GenerateResult) => number): number => answers.reduce((sum, { result }) => sum + value(result), 0) / answers.length;
  return {
    overall: count(answers.map(({ right }) => right)),
    kinds: Object.fromEntries([...new Set(kinds)].sort().map((kind) =>
      [kind, count(answers.filter((_, n) => kinds[n] === kind).map(({ right }) => right))])),
    arStepsPerAnswer: mean(({ arSteps }) => arSteps),
    rowsPerAnswer: mean(({ tokenForwards }) => tokenForwards),
    millisecondsPerAnswer: milliseconds / answers.length,
    batchSize,
    cutOff: answers.filter(({ result }) => result.finishReason === 'length').length,
    answers,
  };
}

function checkItem(item: EvaluationItem, n: number): EvaluationItem {
  check.object('evaluate', `item ${n}`, item);
  check.string('evaluate', `kind of item ${n}`, item.kind);
  check.callback('evaluate', `isRight of item ${n}`, item.isRight);
  return item;
}

function count(right: readonly boolean[]): Share {
  return wilson(right.filter(Boolean).length, right.length);
}

/** Whether generated ids end with the answer's ids, or equal them where no steps were asked for: exact match of the whole answer. */
export function endsWithAnswer(ids: readonly number[], answer: readonly number[]): boolean {
  return answer.length > 0 && ids.length >= answer.length && answer.every((id, n) => id === ids[ids.length - answer.length + n]);
}
