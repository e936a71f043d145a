/** The demo's result as text. */
import type { DemoResult } from './demo';
import type { Share } from '../evaluate';
import { percent, table } from './table';

function counted({ right, count }: Share): string {
  return `${right}/${count}`;
}

function interval({ low, high }: Share): string {
  return `${percent(low)} .. ${percent(high)}`;
}

export function demoTable({ rows, reading, chance }: DemoResult): string {
  const batch = rows[0]?.evaluation.batchSize ?? 0;
  const main = table([
    ['', 'training steps', 'right', 'of', '95 % interval', 'AR steps/answer', `ms/answer (${batch} at once)`, 'ms/answer (alone)'],
    ...rows.map(({ mode, trainingSteps, evaluation, alone }) => [
      mode, String(trainingSteps), percent(evaluation.overall.share), counted(evaluation.overall), interval(evaluation.overall),
      `${evaluation.arStepsPerAnswer.toFixed(1)} (n=${evaluation.overall.count})`,
      `${evaluation.millisecondsPerAnswer.toFixed(2)} (n=${evaluation.overall.count})`, `${alone.millisecondsPerAnswer.toFixed(2)} (n=${alone.count})`,
    ]),
    ['chance (commonest answer of each kind)', '', percent(chance.overall)],
  ]);
  const kinds = Object.keys(rows[0]?.evaluation.kinds ?? {});
  const byKind = table([
    ['by kind of question', ...rows.map(({ mode }) => mode), 'chance', 'of'],
    ...kinds.map((kind) => [
      kind, ...rows.map(({ evaluation }) => percent(evaluation.kinds[kind]?.share ?? NaN)),
      percent(chance.kinds[kind as keyof typeof chance.kinds]?.chance ?? NaN), String(rows[0]?.evaluation.kinds[kind]?.count ?? 0),
    ]),
  ]);
  const read = `Plain reading questions, after training in words: ${percent(reading.overall.share)} (${counted(reading.overall)}, ${interval(reading.overall)})`;
  return `${main}\n\n${byKind}\n\n${read}\n`;
}
