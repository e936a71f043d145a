/** Records as training samples: the question as a chat, the reasoning and the answer as token ids. */
import * as check from '../check';
import type { DataRecord } from '../data/record';
import { LibError, fail } from '../errors';
import type { Picture } from '../model/image';
import { SIZE_OPTIONS, type Message, type PictureSize } from '../model/messages';
import type { EncodedPrompt, Processor } from '../model/processor';
import { mergeSteps } from './curriculum';
import type { TrainingData, TrainingSample } from './trainOptions';

/** What records need of a model; `LatentModel` has it. */
export interface RecordModel {
  readonly processor: Processor;
  readonly endIds: readonly number[];
}

/** Sizes are of each picture; default: the processor's. */
export interface RecordOptions extends PictureSize {
  /** A picture of more pixels is refused before it is decoded. */
  maxInputPixels?: number;
  /** Steps are merged to at most so many near-equal groups (default: as they are). */
  maxSteps?: number;
  /** Bytes of samples that are kept for the next time that they are asked for, pictures and all (default 256 MiB; 0 = none). */
  cacheBytes?: number;
}

const OPTIONS = [...SIZE_OPTIONS, 'maxInputPixels', 'maxSteps', 'cacheBytes'];
const CACHE_BYTES = 256 * 1024 * 1024;
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ';
/** What stands before the answer in every target, and is looked for in what is generated. */
export const ANSWER_PREFIX = 'Therefore, the answer is ';

/**
 * Samples of records, made when they are asked for: texts are tokenised and pictures decoded then, and kept while there is room.
 *
 * A sample is the prompt of `recordPrompt`; each step with a newline; `Therefore, the answer is X` and the end token.
 *
 * @param records read once; `images` are paths. Kept, not copied.
 * @throws {LibError} `ERR_ARGUMENT` for records or options; `ERR_UNSUPPORTED` when the model has no tokenizer, template or end token. A
 *   record that cannot be made into a sample is an error when it is asked for, and names the record.
 * @example
 * const records = await Array.fromAsync(readRecords('train.jsonl'));
 * await trainAll(model, { data: recordData(model, records, { maxSteps: 4 }), stages, batchSize: 8 });
 */
export function recordData(model: RecordModel, records: readonly DataRecord[], options: RecordOptions = {}): TrainingData {
  const { maxSteps, cacheBytes, prompt } = checked(model, records, options);
  const tokenizer = model.processor.tokenizer!;
  const [end] = model.endIds;
  const cache = new Map<number, TrainingSample>();
  let held = 0;
  const make = async (record: DataRecord): Promise<TrainingSample> => {
    const answer = recordAnswer(record);
    const { promptIds, pictures } = await prompt(record);
    const steps = record.steps.map((step) => tokenizer.encode(`${step}\n`));
    return { promptIds, pictures, steps: maxSteps === undefined ? steps : mergeSteps(steps, maxSteps), answer: [...tokenizer.encode(`${ANSWER_PREFIX}${answer}`), end!] };
  };
  return {
    size: records.length,
    async at(index) {
      const record = records[check.integer('recordData', 'index', index, 0, records.length - 1)]!;
      const kept = cache.get(index);
      const sample = kept ?? await make(record);
      // The one used last stands at the end.
      if (cache.delete(index)) held -= bytesOf(sample);
      cache.set(index, sample);
      held += bytesOf(sample);
      for (const [oldest, old] of cache) {
        if (held <= cacheBytes) break;
        cache.delete(oldest);
        held -= bytesOf(old);
      }
      return sample;
    },
  };
}

/**
 * Makes prompts of records: their pictures, then the question, and with choices
 * `[Question]:{question}\n[Options]:\n(A).{choice}\n(B).{choice}\nAnswer:\n`, braces and all, in the checkpoint's chat template.
 *
 * @see the released code of arXiv 2604.10500
 */
export function recordPrompts(model: RecordModel, records: readonly DataRecord[], options: RecordOptions = {}): (record: DataRecord) => Promise<EncodedPrompt> {
  return checked(model, records, options).prompt;
}

function checked(model: RecordModel, records: readonly DataRecord[], options: RecordOptions): { maxSteps: number | undefined; cacheBytes: number; prompt: (record: DataRecord) => Promise<EncodedPrompt> } {
  check.object('recordData', 'model', model);
  check.object('recordData', 'model.processor', model.processor);
  if (check.array('recordData', 'records', records).length === 0) fail('ERR_ARGUMENT', 'recordData', 'Expected at least one record but received none');
  check.options('recordData', options, OPTIONS);
  const { maxSteps, cacheBytes = CACHE_BYTES, maxInputPixels, ...size } = options;
  if (maxSteps !== undefined) check.integer('recordData', 'maxSteps', maxSteps, 1);
  check.integer('recordData', 'cacheBytes', cacheBytes, 0);
  if (model.processor.tokenizer === undefined) fail('ERR_UNSUPPORTED', 'recordData', 'Expected a checkpoint with tokenizer.json for records but received one without. Add the file, or make samples of ids.');
  if (model.endIds.length === 0) fail('ERR_UNSUPPORTED', 'recordData', 'Expected a checkpoint with an end token for records but received one without. Set eos_token_id in generation_config.json.');
  return {
    maxSteps, cacheBytes,
    prompt: (record) => model.processor.encode([recordMessage(record, size)], maxInputPixels === undefined ? {} : { maxInputPixels }).catch((error: unknown) => {
      if (!(error instanceof LibError)) throw error;
      throw new LibError(error.code, `${error.message} (record ${check.show(record.id)})`, { cause: error });
    }),
  };
}

function recordMessage({ images, question, choices }: DataRecord, size: PictureSize): Message {
  const text = choices === undefined ? question
    : `[Question]:{${question}}\n[Options]:\n${choices.map((choice, n) => `(${LETTERS[n]}).{${choice}}\n`).join('')}Answer:\n`;
  return { role: 'user', content: [...images.map((image) => ({ type: 'image' as const, image, ...size })), { type: 'text', text }] };
}

/**
 * What a record's answer is called in the target: the letter of a choice, or the answer as it is.
 *
 * @throws {LibError} `ERR_ARGUMENT` naming the record.
 */
export function recordAnswer({ id, choices, answer }: DataRecord): string {
  if (choices === undefined) return answer;
  const letters = LETTERS.slice(0, choices.length);
  if (choices.length < 2 || choices.length > LETTERS.length) fail('ERR_ARGUMENT', 'recordData', `Expected record ${check.show(id)} to have 2 to ${LETTERS.length} choices but received ${choices.length}`);
  if (answer.length === 1 && letters.includes(answer)) return answer;
  const place = choices.indexOf(answer);
  if (place < 0) fail('ERR_ARGUMENT', 'recordData', `Expected the answer of record ${check.show(id)} to be a letter from A to ${letters.at(-1)} or one of its choices but received ${check.show(answer)}`);
  return LETTERS[place]!;
}

function bytesOf({ promptIds, pictures, steps, answer }: TrainingSample): number {
  const pixels = (picture: Picture): number => picture.pixels.length + (picture.original === undefined || picture.original.pixels === picture.pixels ? 0 : picture.original.pixels.length);
  return 8 * (promptIds.length + answer.length + steps.reduce((sum, step) => sum + step.length, 0)) + pictures.reduce((sum, picture) => sum + pixels(picture), 0);
}
