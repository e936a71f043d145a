import { createReadStream } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { path as checkPath, show } from '../check';
import { fail } from '../errors';
import type { DataRecord } from './record';

const OP = 'readRecords';
const KNOWN = ['id', 'images', 'question', 'choices', 'steps', 'rationale', 'answer', 'answerText', 'meta'];

/** Longest line that is accepted, in characters: a record is text and paths; more is a file of another kind. */
const LONGEST_LINE = 1 << 22;

/**
 * Reads records from a JSON Lines file, one by one: `{id, images, question, choices?, steps | rationale, answer, answerText?, meta?}`.
 * Empty lines are skipped. Relative paths in `images` are taken from the file's own folder. A `rationale` gives one step per line of its
 * text. `images` and `steps` may be left out; `id` is the line number where it is left out.
 *
 * @throws ERR_ARGUMENT that names the file and the line: not JSON, a field missing or of the wrong type, an unknown field, an id twice;
 *   or a file that cannot be read.
 */
export async function* readRecords(path: string): AsyncGenerator<DataRecord, void, undefined> {
  checkPath(OP, 'path', path);
  const seen = new Map<string, number>();
  let number = 0;
  for await (const line of linesOf(path)) {
    number += 1;
    const text = number === 1 ? line.replace(/^\uFEFF/, '') : line;
    if (text.trim() === '') continue;
    const record = parseLine(text, path, number);
    const before = seen.get(record.id);
    if (before !== undefined) problem(path, number, 'an id of its own', `${show(record.id)}, the id of line ${before}`);
    seen.set(record.id, number);
    yield record;
  }
}

/** The lines of a text file. Not `readline`: on some versions of Node it loses the stream's errors. */
async function* linesOf(path: string): AsyncGenerator<string, void, undefined> {
  let rest = '';
  let number = 1;
  const chunks = createReadStream(path, 'utf8')[Symbol.asyncIterator]() as AsyncIterableIterator<string>;
  try {
    for (;;) {
      const chunk = await chunks.next().catch((cause: Error) =>
        fail('ERR_ARGUMENT', OP, `Expected a readable file but received ${show(path)}: ${cause.message}`, { cause }));
      if (chunk.done) break;
      const lines = (rest + chunk.value).split('\n');
      rest = lines.pop()!;
      number += lines.length;
      if (rest.length > LONGEST_LINE) problem(path, number, `at most ${LONGEST_LINE} characters`, 'more');
      yield* lines;
    }
    if (rest !== '') yield rest;
  } finally {
    await chunks.return?.();
  }
}

/** Writes records to a JSON Lines file, one a line; the folder is made if missing and an existing file is replaced. */
export async function writeRecords(path: string, records: Iterable<DataRecord> | AsyncIterable<DataRecord>): Promise<number> {
  checkPath('writeRecords', 'path', path);
  if (typeof records !== 'object' || records === null || !(Symbol.iterator in records || Symbol.asyncIterator in records)) {
    fail('ERR_ARGUMENT', 'writeRecords', `Expected records to be an iterable of records but received ${show(records)}`);
  }
  await mkdir(dirname(path), { recursive: true });
  const file = await open(path, 'w');
  let count = 0;
  try {
    for await (const { id, images, question, choices, steps, answer, answerText, meta } of records) {
      // Undefined fields vanish in JSON; other properties (a sample's picture) are not part of the record.
      await file.write(`${JSON.stringify({ id, images, question, choices, steps, answer, answerText, meta })}\n`);
      count += 1;
    }
  } finally {
    await file.close();
  }
  return count;
}

function problem(path: string, line: number, expected: string, received: string): never {
  return fail('ERR_ARGUMENT', OP, `Expected line ${line} of ${path} to have ${expected} but received ${received}`);
}

function parseLine(text: string, path: string, line: number): DataRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    fail('ERR_ARGUMENT', OP, `Expected line ${line} of ${path} to be JSON but received ${show(text)}: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) problem(path, line, 'an object', show(value));
  return recordOf(value as Record<string, unknown>, path, line);
}

function recordOf(fields: Record<string, unknown>, path: string, line: number): DataRecord {
  const unknown = Object.keys(fields).find((key) => !KNOWN.includes(key));
  if (unknown !== undefined) problem(path, line, `fields among ${KNOWN.join(', ')} (others belong into meta)`, show(unknown));
  const text = (key: string): string => {
    const field = fields[key];
    return typeof field === 'string' && field !== '' ? field : problem(path, line, `a non-empty string as ${key}`, show(field));
  };
  const texts = (key: string): string[] => {
    const field = fields[key];
    if (!Array.isArray(field)) return problem(path, line, `an array of strings as ${key}`, show(field));
    const wrong = field.findIndex((item) => typeof item !== 'string');
    return wrong < 0 ? (field as string[]) : problem(path, line, `only strings in ${key}`, show(field[wrong]));
  };
  if (fields.steps !== undefined && fields.rationale !== undefined) problem(path, line, 'either steps or rationale', 'both');
  const { meta = {} } = fields;
  if (typeof meta !== 'object' || meta === null || Array.isArray(meta)) problem(path, line, 'an object as meta', show(meta));
  const images = fields.images === undefined ? [] : texts('images');
  const rationale = fields.rationale === undefined ? [] : text('rationale').split('\n').map((step) => step.trim());
  return {
    id: fields.id === undefined ? `${line}` : text('id'),
    images: images.map((image) => resolve(dirname(path), image)),
    question: text('question'),
    ...(fields.choices === undefined ? {} : { choices: texts('choices') }),
    steps: fields.steps === undefined ? rationale.filter((step) => step !== '') : texts('steps'),
    answer: text('answer'),
    ...(fields.answerText === undefined ? {} : { answerText: text('answerText') }),
    meta: meta as Record<string, unknown>,
  };
}
