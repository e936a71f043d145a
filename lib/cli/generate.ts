/** `plumbline generate`: one question to a checkpoint. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Evidence, GenerateOptions, GenerateResult } from '../decode';
import { fail } from '../errors';
import { LatentModel } from '../latentModel';
import { writeAtomically, writeJson } from '../model/files';
import type { Picture, RgbImage } from '../model/image';
import type { Message } from '../model/processor';
import { gazePicture } from '../report';
import { interruptSignal } from './interrupt';

export interface GenerateArguments {
  image: string[];
  latents?: number;
  temperature: number;
  seed: number;
  maxTokens: number;
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

/** Options of `generate` that the arguments stand for. */
export function generateOptions(args: Omit<GenerateArguments, 'image' | 'json'>): Partial<GenerateOptions> {
  const { temperature, seed, maxTokens, latents, replay, routing, recompute } = args;
  return {
    temperature, seed, maxNewTokens: maxTokens, recompute, evidence: args.evidence !== undefined || args.gaze !== undefined,
    ...(latents === undefined ? {} : { latentSteps: latents }),
    ...(replay && routing ? {} : { preset: { ...(replay ? {} : { replay: false }), ...(routing ? {} : { routedLayers: [] }) } }),
  };
}

/**
 * Refuses arguments that cannot work, before the model is loaded.
 *
 * @throws {LibError} `ERR_ARGUMENT` naming the option.
 */
export function checkArguments({ image, latents, evidence, gaze, replay }: Pick<GenerateArguments, 'image' | 'latents' | 'evidence' | 'gaze' | 'replay'>): void {
  if (gaze !== undefined) {
    if (!replay) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze without --no-replay, because it shows the replay, but received both; leave one of them out');
    if (image.length === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze together with --image but received no picture');
    if (latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze with at least one latent step but received --latents 0');
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

/** A checkpoint that looks at nothing again gives no picture. */
function checkModel({ latentSteps, preset }: LatentModel, { gaze, latents = latentSteps }: GenerateArguments): void {
  if (gaze === undefined) return;
  if (!preset.replay) fail('ERR_UNSUPPORTED', 'generate', 'Expected a checkpoint with visual replay for --gaze but received one without; take --evidence, or another checkpoint');
  if (latents === 0) fail('ERR_ARGUMENT', 'generate', 'Expected --gaze with at least one latent step but received a checkpoint that takes none; add --latents');
}

export async function answer(folder: string, question: string, args: GenerateArguments): Promise<void> {
  checkArguments(args);
  const signal = interruptSignal();
  const model = await LatentModel.load(folder, { signal });
  try {
    checkModel(model, args);
    const content: Exclude<Message['content'], string> = [...args.image.map((image) => ({ type: 'image' as const, image })), { type: 'text', text: question }];
    const { promptIds, pictures } = await model.encodeMessages([{ role: 'user', content }]);
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
