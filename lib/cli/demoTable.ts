/** The demo's result as text. */
import type { DemoResult, DemoRow } from './demo';
import type { DemoSummary, Spread } from './demoSeeds';
import type { Share } from '../evaluate';
import { duration } from './progress';
import { percent, table } from './table';

function counted({ right, count }: Share): string {
  return `${right}/${count}`;
}

function interval({ low, high }: Share): string {
  return `${percent(low)} .. ${percent(high)}`;
}

export function demoTable({ rows, reading, chance, totalSeconds, gazes }: DemoResult): string {
  const batch = rows[0]?.evaluation.batchSize ?? 0;
  const main = table([
    ['', 'training steps', 'right', 'of', '95 % interval', 'AR steps/answer', `ms/answer (${batch} at once)`, 'ms/answer (alone)'],
    ...rows.map(({ name, trainingSteps, evaluation, alone }) => [
      name, String(trainingSteps), percent(evaluation.overall.share), counted(evaluation.overall), interval(evaluation.overall),
      `${evaluation.arStepsPerAnswer.toFixed(1)} (n=${evaluation.overall.count})`,
      `${evaluation.millisecondsPerAnswer.toFixed(2)} (n=${evaluation.overall.count})`, `${alone.millisecondsPerAnswer.toFixed(2)} (n=${alone.count})`,
    ]),
    ['chance (commonest answer of each kind)', '', percent(chance.overall)],
  ]);
  const kinds = Object.keys(rows[0]?.evaluation.kinds ?? {});
  const byKind = table([
    ['by kind of question', ...rows.map(({ name }) => name), 'chance', 'of'],
    ...kinds.map((kind) => [
      kind, ...rows.map(({ evaluation }) => percent(evaluation.kinds[kind]?.share ?? NaN)),
      percent(chance.kinds[kind as keyof typeof chance.kinds]?.chance ?? NaN), String(rows[0]?.evaluation.kinds[kind]?.count ?? 0),
    ]),
  ]);
  const read = `Plain reading questions, after training in words: ${percent(reading.overall.share)} (${counted(reading.overall)}, ${interval(reading.overall)})`;
  const looked = gazes.length === 0 ? '' : `What '${rows.at(-1)?.name}' looked at: ${gazes.map(({ file }) => file).join(', ')}\n`;
  return `${main}\n\n${byKind}\n\n${trainingTable(rows)}\n\n${read}\n${looked}In all ${duration(totalSeconds)}\n`;
}

/** What each training was like; the last quarter of its steps where a figure changes while it learns. */
function trainingTable(rows: readonly DemoRow[]): string {
  return table([
    ['training', 'own steps', 'time', 'ms/step', 'loss', 'SR loss', 'routed', 'aimed at'],
    ...rows.map(({ name, training: { steps, seconds, millisecondsPerStep, loss, srLossLastQuarter, routing } }) => [
      name, String(steps), duration(seconds), millisecondsPerStep.toFixed(1), loss.toFixed(3), srLossLastQuarter?.toFixed(3) ?? '',
      routing === undefined ? '' : percent(routing.lastQuarter), routing === undefined ? '' : percent(routing.target),
    ]),
  ]);
}

export function summaryTable({ seeds, rows }: DemoSummary): string {
  const shown = ({ mean, sd }: Spread, digits: number): string => `${mean.toFixed(digits)} ± ${sd.toFixed(digits)}`;
  return `${table([
    [`seeds ${seeds.join(', ')}: mean ± sd`, 'right', 'of each seed', 'AR steps/answer', 'ms/answer', 'ms/answer (alone)'],
    ...rows.map(({ name, mean, sd, values, arSteps, milliseconds, millisecondsAlone }) => [
      name, `${(100 * mean).toFixed(1)} ± ${(100 * sd).toFixed(1)} %`, values.map((value) => percent(value)).join(', '), shown(arSteps, 1), shown(milliseconds, 2), shown(millisecondsAlone, 2),
    ]),
  ])}\n`;
}
