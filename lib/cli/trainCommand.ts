/** `plumbline train`: arguments, and what is printed. */
import { resolve } from 'node:path';
import { goOnText, interruptSignal } from './interrupt';
import { reporterOn } from './reporter';
import { percent, table } from './table';
import { runTraining, type TrainResult } from './train';
import { readTrainConfig } from './trainConfig';

export interface TrainCommandArguments {
  config: string;
  out?: string;
  resume: boolean;
  json: boolean;
}

/** @throws {LibError} as `readTrainConfig` and `runTraining`. */
export async function trainFrom({ config: file, out, resume, json }: TrainCommandArguments): Promise<void> {
  const read = readTrainConfig(file);
  const config = out === undefined ? read : { ...read, out: resolve(out) };
  const signal = interruptSignal();
  const reporter = reporterOn(process.stderr);
  try {
    const result = await runTraining(config, { resume, signal }, reporter);
    reporter.end();
    process.stdout.write(json ? `${JSON.stringify(result, null, 2)}\n` : `${resultText(result)}\nWritten to ${config.out}\n`);
  } catch (error) {
    reporter.end();
    if (!signal.aborted || error !== signal.reason) throw error;
    process.stderr.write(goOnText(error, ['train', '--config', file, ...(out === undefined ? [] : ['--out', out])]));
    process.exitCode = 130;
  }
}

/** The last step, and accuracy by kind of question. */
export function resultText({ checkpoint, steps, loss, wordsRight, evaluation }: TrainResult): string {
  const trained = loss === undefined || wordsRight === undefined ? 'nothing was left to do' : `loss ${loss.toFixed(4)}, ${percent(wordsRight)} of the words right in the last step`;
  const lines = [`${steps} steps: ${trained}`, `Checkpoint: ${checkpoint}`];
  if (evaluation === undefined) return lines.join('\n');
  const { overall, kinds, arStepsPerAnswer, millisecondsPerAnswer } = evaluation;
  const rows = [...Object.entries(kinds), ['all', overall] as const].map(([kind, { count, right, share, low, high }]) => [kind, `${right}/${count}`, percent(share), `${percent(low)} to ${percent(high)}`]);
  return [...lines, '', table([['questions', 'right', 'accuracy', '95 % interval'], ...rows]), `${arStepsPerAnswer.toFixed(1)} steps and ${millisecondsPerAnswer.toFixed(0)} ms an answer`].join('\n');
}
