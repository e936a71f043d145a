#!/usr/bin/env node
/** The command line. Everything that this package prints is printed here. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { join } from 'node:path';
import { codeOf } from '../errors';
import { MAX_PIXELS } from '../model/pictures';
import { MAX_PENALTY, MIN_PENALTY } from '../model/record';
import { MAX_CONTEXT } from '../model/useMemory';
import { runDemo, type DemoOptions } from './demo';
import { runSeeds } from './demoSeeds';
import { doctor } from './doctor';
import { DEMO_SIZES, type SizeName } from './demoSizes';
import { demoTable, summaryTable } from './demoTable';
import { answer } from './generate';
import { inspect } from './inspect';
import { goOnText, interruptSignal, STOPPED } from './interrupt';
import { profile } from './profile';
import { reporterOn } from './reporter';
import { trainFrom } from './trainCommand';

interface DemoArguments {
  size: SizeName;
  out?: string;
  seed: number;
  seeds: number;
  minutes?: number;
  resume: boolean;
  profile?: number | true;
  json: boolean;
}

/** Steps between two profiled ones: enough for curves of thousands of steps, and files of a few MB. */
const PROFILE_EVERY = 10;

function whole(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError('Expected a whole number of at least 0.');
  return value;
}

function count(text: string): number {
  if (whole(text) === 0) throw new InvalidArgumentError('Expected a whole number of at least 1.');
  return Number(text);
}

/** A whole number from 1 to `most`. */
function countUpTo(most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < 1 || value > most) throw new InvalidArgumentError(`Expected a whole number from 1 to ${most}.`);
    return value;
  };
}

function penalty(text: string): number {
  const value = Number(text);
  if (!(value >= MIN_PENALTY && value <= MAX_PENALTY)) throw new InvalidArgumentError(`Expected a number from ${MIN_PENALTY} to ${MAX_PENALTY}.`);
  return value;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && Number.isFinite(value))) throw new InvalidArgumentError('Expected a number above 0.');
  return value;
}

function notNegative(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= 0 && Number.isFinite(value))) throw new InvalidArgumentError('Expected a number of at least 0.');
  return value;
}

async function demo(args: DemoArguments): Promise<void> {
  const { size, seed, seeds, resume, minutes, json } = args;
  const profileEvery = args.profile === true ? PROFILE_EVERY : args.profile;
  const out = args.out ?? join('runs', `demo-${size}-${seed}${seeds === 1 ? '' : `-to-${seed + seeds - 1}`}`);
  const signal = interruptSignal();
  const reporter = reporterOn(process.stderr);
  const options: DemoOptions = { size, out, seed, resume, signal, ...(minutes === undefined ? {} : { minutes }), ...(profileEvery === undefined ? {} : { profileEvery }) };
  try {
    const [result, text] = seeds === 1 ? shown(await runDemo(options, reporter), demoTable) : shown(await runSeeds(options, seeds, reporter), summaryTable);
    reporter.end();
    process.stdout.write(json ? `${JSON.stringify(result, null, 2)}\n` : `\n${text}\nWritten to ${out}\n`);
  } catch (error) {
    reporter.end();
    if (!signal.aborted || error !== signal.reason) throw error;
    const given = Object.entries({ seeds: seeds === 1 ? undefined : seeds, minutes, profile: profileEvery }).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, String(value)]));
    process.stderr.write(goOnText(error, ['demo', '--size', size, '--seed', String(seed), ...given, '--out', out]));
    process.exitCode = 130;
  }
}

function shown<T>(result: T, table: (result: T) => string): [T, string] {
  return [result, table(result)];
}

export function program(): Command {
  const command = new Command('plumbline').description('Train and run vision-language models that reason in latents instead of words.');
  command.command('demo')
    .description('train a small model from scratch on pictures of handwritten digits and compare words, no reasoning, and latents with and without replay and routing')
    .addOption(new Option('--size <name>', 'how much to train').choices(Object.keys(DEMO_SIZES)).default('small'))
    .option('--out <folder>', 'run folder (default: runs/demo-<size>-<seed>)')
    .option('--seed <number>', 'of weights, data and order', whole, 0)
    .option('--seeds <number>', 'runs with so many seeds, from --seed on, and their mean and standard deviation', count, 1)
    .option('--minutes <number>', 'stretch or shrink the step counts to about this long on two cores', positive)
    .option('--resume', 'go on with a run folder', false)
    .option('--profile [steps]', `record gradient dynamics every so many steps (default: ${PROFILE_EVERY}), for \`plumbline profile\``, count)
    .option('--json', 'print the result as JSON', false)
    .action(demo);
  command.command('profile')
    .description('say, and draw, how the gradient of a training is shared between image rows and words, by layer, and between easy and hard samples')
    .argument('<folder>', 'folder with a profile.jsonl, or a run folder of the demo')
    .option('--from <step>', 'first step that counts', count)
    .option('--to <step>', 'last step that counts', count)
    .option('--html <file>', 'draw it as one HTML page')
    .option('--json', 'print all figures as JSON', false)
    .action(profile);
  command.command('generate')
    .description('ask a checkpoint a question')
    .argument('<question>', 'text of the question')
    .requiredOption('--model <folder>', 'Hugging Face directory of a model, or one that training wrote')
    .option('--image <file>', 'picture that comes before the question; give it again for more', (file: string, files: string[]) => [...files, file], [])
    .option('--min-pixels <number>', 'least that a picture is brought to (default: as the checkpoint says)', countUpTo(MAX_PIXELS))
    .option('--max-pixels <number>', 'most that a picture is brought to: 784 pixels are one token (default: as the checkpoint says, at most 1003520)', countUpTo(MAX_PIXELS))
    .option('--system <text>', 'system message')
    .addOption(new Option('--reasoning <kind>', 'latent, or explicit: words alone (default: as the checkpoint says)').choices(['latent', 'explicit']))
    .option('--latents <number>', 'latent steps before the words (default: as the checkpoint says)', whole)
    .option('--temperature <number>', '0 takes the likeliest word (default, as those below: as generation_config.json says)', notNegative)
    .option('--top-p <number>', 'share of the probability that is drawn from', positive)
    .option('--top-k <number>', 'likeliest words that are drawn from; 0: all', whole)
    .option('--repetition-penalty <number>', 'divides the score of words that were there; 1: off', penalty)
    .option('--max-tokens <number>', 'words at most (without one in generation_config.json: 256)', count)
    .option('--seed <number>', 'of sampled words', whole, 0)
    .addOption(new Option('--device <name>', 'where the work is done (default: auto)').choices(['auto', 'cpu', 'cuda']))
    .addOption(new Option('--dtype <type>', 'storage of the weights (default: auto, bf16 where the files are)').choices(['auto', 'f32', 'bf16']))
    .option('--evidence <file>', 'write what was looked at and which rows went deeper, as JSON')
    .option('--gaze <file>', 'draw what was looked at in the first picture, as PNG')
    .option('--no-replay', 'do not look again at the picture, whatever the checkpoint says')
    .option('--no-routing', 'no second pass through any layer, whatever the checkpoint says')
    .option('--recompute', 'run the whole sequence again at every step: slow, and the only way for a preset that looks ahead', false)
    .option('--json', 'print ids, text and steps as JSON', false)
    .action(answer);
  command.command('train')
    .description('train a checkpoint on records: words first, then latents, as a file of settings says')
    .requiredOption('--config <file>', 'YAML or JSON; examples/train.yaml explains every key')
    .option('--out <folder>', 'run folder instead of that of the file')
    .option('--resume', 'go on with the latest checkpoint of the run folder', false)
    .option('--json', 'print the result as JSON', false)
    .action(trainFrom);
  command.command('inspect')
    .description('say what a directory holds, what of it is supported, and the memory that it takes; exit code 1 when it cannot be loaded')
    .argument('<folder>', 'Hugging Face directory of a model, or of an adapter')
    .option('--context <tokens>', 'length that the memory is said for', countUpTo(MAX_CONTEXT), 4096)
    .option('--json', 'print it as JSON', false)
    .action(inspect);
  command.command('doctor')
    .description('say what this machine has, which device is used, what is missing, and what to do')
    .option('--json', 'print it as JSON', false)
    .action(doctor);
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
