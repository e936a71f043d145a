#!/usr/bin/env node
/** The command line. Everything that this package prints is printed here. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { join } from 'node:path';
import { codeOf } from '../errors';
import { LatentModel } from '../latentModel';
import { runDemo, type DemoReporter } from './demo';
import { DEMO_SIZES, type SizeName } from './demoSizes';
import { demoTable } from './demoTable';
import { progressOn, type Progress } from './progress';

interface DemoArguments {
  size: SizeName;
  out?: string;
  seed: number;
  minutes?: number;
  resume: boolean;
  json: boolean;
}

function whole(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError('Expected a whole number of at least 0.');
  return value;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && Number.isFinite(value))) throw new InvalidArgumentError('Expected a number above 0.');
  return value;
}

/** Progress goes to standard error, so that `--json` leaves standard output to the result. */
function reporterOn(terminal: NodeJS.WriteStream): DemoReporter & { end(): void } {
  let current: Progress | undefined;
  const end = (): void => {
    current?.end();
    current = undefined;
  };
  return {
    phase(text) {
      end();
      terminal.write(`${text}\n`);
    },
    progress(done, total, note) {
      current ??= progressOn(terminal, '');
      current.update(done, total, note);
    },
    end,
  };
}

/** Code of the reason that an interrupt gives, so that it is not taken for a defect. */
const STOPPED = 'STOPPED';

/** The first interrupt stops after writing a checkpoint; a second one ends the process as usual. */
function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => controller.abort(Object.assign(new Error(`stopped by ${name}`), { code: STOPPED })));
  return controller.signal;
}

async function demo(args: DemoArguments): Promise<void> {
  const { size, seed, resume, minutes } = args;
  const out = args.out ?? join('runs', `demo-${size}-${seed}`);
  const signal = interruptSignal();
  const reporter = reporterOn(process.stderr);
  try {
    const result = await runDemo({ size, out, seed, resume, signal, ...(minutes === undefined ? {} : { minutes }) }, reporter);
    reporter.end();
    process.stdout.write(args.json ? `${JSON.stringify(result, null, 2)}\n` : `\n${demoTable(result)}\nWritten to ${out}\n`);
  } catch (error) {
    reporter.end();
    if (!signal.aborted || error !== signal.reason) throw error;
    process.stderr.write(`${(error as Error).message}; go on with: plumbline demo --size ${size} --seed ${seed}${minutes === undefined ? '' : ` --minutes ${minutes}`} --out ${out} --resume\n`);
    process.exitCode = 130;
  }
}

interface GenerateArguments {
  image: string[];
  latents?: number;
  temperature: number;
  seed: number;
  maxTokens: number;
  json: boolean;
}

async function answer(folder: string, question: string, args: GenerateArguments): Promise<void> {
  const signal = interruptSignal();
  const model = await LatentModel.load(folder, { signal });
  try {
    const content = [...args.image.map((image) => ({ type: 'image' as const, image })), { type: 'text' as const, text: question }];
    const options = {
      temperature: args.temperature, seed: args.seed, maxNewTokens: args.maxTokens, signal,
      ...(args.latents === undefined ? {} : { latentSteps: args.latents }),
    };
    for await (const event of model.stream({ messages: [{ role: 'user', content }] }, options)) {
      if (args.json && event.type === 'end') process.stdout.write(`${JSON.stringify(event.result)}\n`);
      if (!args.json && event.type !== 'latent') process.stdout.write(event.type === 'end' ? `${event.text}\n` : event.text);
    }
  } finally {
    model.dispose();
  }
}

export function program(): Command {
  const command = new Command('plumbline').description('Train and run vision-language models that reason in latents instead of words.');
  command.command('demo')
    .description('train a small model from scratch on pictures of handwritten digits and compare words, no reasoning and latents')
    .addOption(new Option('--size <name>', 'how much to train').choices(Object.keys(DEMO_SIZES)).default('small'))
    .option('--out <folder>', 'run folder (default: runs/demo-<size>-<seed>)')
    .option('--seed <number>', 'of weights, data and order', whole, 0)
    .option('--minutes <number>', 'stretch or shrink the step counts to about this long on two cores', positive)
    .option('--resume', 'go on with a run folder', false)
    .option('--json', 'print the result as JSON', false)
    .action(demo);
  command.command('generate')
    .description('ask a checkpoint folder a question')
    .argument('<folder>', 'Hugging Face directory of a Qwen2-VL model, or one that training wrote')
    .argument('<question>', 'text of the question')
    .option('--image <file...>', 'pictures that come before the question', [])
    .option('--latents <number>', 'latent steps before the words (default: as the checkpoint says)', whole)
    .option('--temperature <number>', '0 takes the likeliest word', Number, 0)
    .option('--seed <number>', 'of sampled words', whole, 0)
    .option('--max-tokens <number>', 'words at most', whole, 256)
    .option('--json', 'print ids, text and steps as JSON', false)
    .action(answer);
  return command;
}

if (require.main === module) {
  // A reader that has enough, as `head`, is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  program().parseAsync().catch((error: unknown) => {
    // Errors of the library say what to do; others are defects, for which the stack matters.
    const text = codeOf(error) === undefined && error instanceof Error ? error.stack : (error as Error).message;
    process.stderr.write(`${text}\n`);
    process.exitCode = codeOf(error) === STOPPED ? 130 : 1;
  });
}
