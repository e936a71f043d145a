/** `plumbline generate`: one question to a checkpoint. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Evidence, GenerateOptions, GenerateResult } from '../decode';
import type { DeviceChoice } from '../device';
import { fail } from '../errors';
import { LatentModel } from '../latentModel';
import { writeAtomically, writeJson } from '../model/files';
import type { Picture, RgbImage } from '../model/image';
import type { Message } from '../model/messages';
import type { StorageDType } from '../native';
import { gazePicture } from '../report';
import { interruptSignal } from './interrupt';
import { progressOn } from './progress';

export interface GenerateArguments {
  /** Directory of the checkpoint. */
  model: string;
  image: string[];
  /** Bounds of each picture's pixels after resizing. Absent: as the checkpoint says. */
  minPixels?: number;
  maxPixels?: number;
  system?: string;
  /** 'latent': think in latents; 'explicit': in words alone. Absent: as the checkpoint says. */
  reasoning?: 'latent' | 'explicit';
  latents?: number;
  /** Absent: as generation_config.json says. */
  temperature?: number;
  topP?: number;
  topK?: number;
  repetitionPenalty?: number;
  maxTokens?: number;
  seed: number;
  device?: DeviceChoice;
  dtype?: StorageDType | 'auto';
  /** File for the evidence. */
  evidence?: string;
  /** File for the picture of what was looked at. */
  gaze?: string;
  /** False: without visual replay, without depth routing, whatever the checkpoint says. */
  replay: boolean;
  routing: boolean;
  recompute: boolean;
  json: boolean;
}

/** Options of `generate` that the arguments stand for: what was not given is not there. */
export function generateOptions(args: Omit<GenerateArguments, 'model' | 'image' | 'minPixels' | 'maxPixels' | 'json'>): Partial<GenerateOptions> {
  const { temperature, topP, topK, repetitionPenalty, maxTokens: maxNewTokens, seed, replay, routing, recompute } = args;
  const latentSteps = args.reasoning === 'explicit' ? 0 : args.latents;
  const given = Object.entries({ temperature, topP, topK, repetitionPenalty, maxNewTokens, latentSteps }).filter(([, value]) => value !== undefined);
  return {
    ...Object.fromEntries(given), seed, recompute, evidence: args.evidence !== undefined || args.gaze !== undefined,
    ...(replay && routing ? {} : { preset: { ...(replay ? {} : { replay: false }), ...(routing ? {} : { routedLayers: [] }) } }),
  };
}

/**
 * Refuses arguments that cannot work, before the model is loaded.
 *
 * @throws {LibError} `ERR_ARGUMENT` naming the option.
 */
export function checkArguments({ image, minPixels, maxPixels, reasoning, latents, evidence, gaze, replay }: Pick<GenerateArguments, 'image' | 'minPixels' | 'maxPixels' | 'reasoning' | 'latents' | 'evidence' | 'gaze' | 'replay'>): void {
  const size = minPixels === undefined ? '--max-pixels' : '--min-pixels';
  if (image.length === 0 && (minPixels ?? maxPixels) !== undefined) fail('ERR_ARGUMENT', 'generate', `Expected ${size} together with --image but received no picture; add one, or leave it out`);
  if (minPixels !== undefined && maxPixels !== undefined && minPixels > maxPixels) fail('ERR_RANGE', 'generate', `Expected --min-pixels to be at most --max-pixels, ${maxPixels}, but received ${minPixels}; lower the one or raise the other`);
  if (reasoning === 'explicit' && latents !== undefined && latents > 0) fail('ERR_ARGUMENT', 'generate', `Expected --reasoning explicit without latent steps but received --latents ${latents}; leave one of them out`);
  if (reasoning === 'latent' && latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --reasoning latent with at least one latent step but received --latents 0; leave one of them out');
  if (gaze !== undefined) {
    if (!replay) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze without --no-replay, because it shows the replay, but received both; leave one of them out');
    if (image.length === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze together with --image but received no picture');
    if (latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze with at least one latent step but received --latents 0');
    if (reasoning === 'explicit') fail('ERR_ARGUMENT', 'generate', 'Expected --gaze with at least one latent step but received --reasoning explicit');
    if (evidence !== undefined && resolve(evidence) === resolve(gaze)) fail('ERR_ARGUMENT', 'generate', `Expected two files for --evidence and --gaze but received ${gaze} for both`);
  }
  if (evidence !== undefined) checkFile('--evidence', evidence);
  if (gaze !== undefined) checkFile('--gaze', gaze);
}

/** Before the work, not after it. */
function checkFile(option: string, path: string): void {
  if (path === '') fail('ERR_ARGUMENT', 'generate', `Expected ${option} to name a file but received ""`);
  const wanted = `Expected ${option} to name a file that can be written`;
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) fail('ERR_ARGUMENT', 'generate', `${wanted} but received the folder ${path}; add a file name`);
  try {
    accessSync(dirname(resolve(path)), constants.W_OK);
  } catch (error) {
    fail('ERR_ARGUMENT', 'generate', `${wanted} but received ${path}: ${(error as Error).message}; make its folder, or choose another`, { cause: error });
  }
}

/** What the checkpoint cannot do: latents that nobody counted, a picture of what it does not look at. */
function checkModel({ latentSteps, preset }: LatentModel, { gaze, reasoning, latents = latentSteps }: GenerateArguments): void {
  if (reasoning === 'latent' && latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --reasoning latent with a number of latent steps but received a checkpoint that takes none; add --latents, or train it');
  if (gaze === undefined) return;
  if (!preset.replay) fail('ERR_UNSUPPORTED', 'generate', 'Expected a checkpoint with visual replay for --gaze but received one without; take --evidence, or another checkpoint');
  if (latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze with at least one latent step but received a checkpoint that takes none; add --latents');
}

/** On standard error, when that is a terminal: what takes long before the first word. */
function say(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`${text}\n`);
}

/** Loads a checkpoint, with its progress on standard error when that is a terminal. */
async function load({ model, device, dtype }: GenerateArguments, signal: AbortSignal): Promise<LatentModel> {
  const progress = process.stderr.isTTY ? progressOn(process.stderr, 'loading') : undefined;
  const megabytes = (bytes: number): number => Math.ceil(bytes / 1e6);
  try {
    return await LatentModel.load(model, {
      signal, ...(device === undefined ? {} : { device }), ...(dtype === undefined ? {} : { dtype }),
      ...(progress === undefined ? {} : { onProgress: ({ doneBytes, totalBytes }) => progress.update(megabytes(doneBytes), megabytes(totalBytes), 'MB') }),
    });
  } finally {
    progress?.end();
  }
}

export async function answer(question: string, args: GenerateArguments): Promise<void> {
  checkArguments(args);
  const signal = interruptSignal();
  const model = await load(args, signal);
  try {
    checkModel(model, args);
    const content: Exclude<Message['content'], string> = [...args.image.map((image) => ({ type: 'image' as const, image })), { type: 'text', text: question }];
    const messages: Message[] = [...(args.system === undefined ? [] : [{ role: 'system' as const, content: args.system }]), { role: 'user', content }];
    const { image: { length }, minPixels, maxPixels } = args;
    if (length > 0) say(`Preparing ${length} ${length === 1 ? 'picture' : 'pictures'}`);
    const { promptIds, pictures } = await model.encodeMessages(messages, { ...(minPixels === undefined ? {} : { minPixels }), ...(maxPixels === undefined ? {} : { maxPixels }), signal });
    say(`Reading ${promptIds.length} tokens`);
    for await (const event of model.stream({ promptIds, pictures }, { ...generateOptions(args), signal })) {
      if (event.type === 'latent') continue;
      if (!args.json) process.stdout.write(event.type === 'end' ? `${event.text}\n` : event.text);
      if (event.type === 'end') await finish(args, question, pictures, event.result);
    }
  } finally {
    model.dispose();
  }
}

async function finish(args: GenerateArguments, question: string, pictures: readonly Picture[], { evidence, ...result }: GenerateResult): Promise<void> {
  if (args.json) process.stdout.write(`${JSON.stringify(result)}\n`);
  if (evidence === undefined) return;
  if (args.evidence !== undefined) await writeJson(args.evidence, evidence);
  if (args.gaze === undefined) return;
  const png = await gazePicture(lookedAt(pictures, evidence), evidence, { question, ...(result.text === undefined ? {} : { answer: result.text }) });
  await writeAtomically(args.gaze, (write) => write(png));
}

/** The first picture as evidence speaks of it: as it was given, or as it was resized. */
function lookedAt(pictures: readonly Picture[], { images }: Evidence): RgbImage {
  const of = images[0] ?? fail('ERR_ARGUMENT', 'generate', 'Expected a picture that replay looks at for --gaze but received none');
  const picture = pictures[of.picture]!;
  const { original } = picture;
  return original !== undefined && original.height === of.height && original.width === of.width ? original : picture;
}
