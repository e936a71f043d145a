/** Files that appear complete or not at all, and JSON files. */
import { randomUUID } from 'node:crypto';
import { lstat, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fail } from '../errors';

/**
 * Bytes that a text file may have: of a text of tiny values `JSON.parse` makes some fifty times as much memory. The largest in use:
 * config.json 20 KB, tokenizer.json 11 MB, vocab.json 3 MB, an index 0.1 MB, trainer.json little more.
 */
const MAX_BYTES = 1 << 20;
const LARGER: Readonly<Record<string, number>> = {
  'tokenizer.json': 64 << 20, 'vocab.json': 32 << 20, 'merges.txt': 32 << 20, 'model.safetensors.index.json': 16 << 20,
  'tokenizer_config.json': 16 << 20, 'added_tokens.json': 16 << 20,  // some list thousands of unused tokens
};
const POINTER = 'version https://git-lfs';
/** One write call; Linux takes at most 2 GiB at once. */
const CHUNK_BYTES = 64 * 1024 * 1024;

/** Writes beside the target, syncs, then renames over it. A failure leaves the target as it was and no other file. */
export async function writeAtomically(path: string, produce: (write: (data: Uint8Array) => Promise<void>) => Promise<void>): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  const file = await open(temporary, 'wx');
  try {
    try {
      await produce(async (data) => {
        for (let at = 0; at < data.byteLength; ) {
          at += (await file.write(data, at, Math.min(CHUNK_BYTES, data.byteLength - at))).bytesWritten;
        }
      });
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** Makes a rename survive a power cut. Folders cannot be opened on Windows, where the rename is already ordered. */
async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Work that writes files: what the operating system refuses comes out as a `LibError` that names the place. */
export async function writing<T>(op: string, place: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (typeof (error as { syscall?: unknown } | undefined)?.syscall !== 'string') throw error;
    return fail('ERR_CHECKPOINT', op, `Expected ${place} to be a folder that can be written but received ${(error as Error).message}. Free space, correct its permissions, or choose another.`, { cause: error });
  }
}

export async function writeJson(path: string, value: unknown): Promise<void> {
  await writeAtomically(path, (write) => write(Buffer.from(`${JSON.stringify(value, null, 2)}\n`)));
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then((found) => found.isFile(), () => false);
}

/** Text of a file of a checkpoint, without a byte order mark; undefined when there is no such file. */
export async function readText(path: string): Promise<string | undefined> {
  const kind = await kindOf(path);
  if (kind === 'missing') return undefined;
  if (kind !== 'file') return fail('ERR_CHECKPOINT', 'load', `Expected a readable file at ${path} but received ${kind}. Remove it, or put the file in its place.`);
  const { size } = await stat(path);
  const most = LARGER[basename(path)] ?? MAX_BYTES;
  if (size > most) return fail('ERR_CHECKPOINT', 'load', `Expected ${path} to have at most ${most} bytes but received ${size}. Is it the right file?`);
  const text = await readFile(path, 'utf8').catch((error: Error) =>
    fail('ERR_CHECKPOINT', 'load', `Expected a readable file at ${path} but received ${error.message}. Correct its permissions, or copy it again.`, { cause: error }));
  checkPointer(path, text);
  return text.replace(/^\uFEFF/, '');
}

/** What lies at a path, in words for a message. */
export async function kindOf(path: string): Promise<'file' | 'missing' | 'a directory' | 'a link to nothing' | 'something else'> {
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined) return found.isFile() ? 'file' : found.isDirectory() ? 'a directory' : 'something else';
  return lstat(path).then((link) => (link.isSymbolicLink() ? 'a link to nothing' : 'missing'), () => 'missing');
}

/** @throws {LibError} `ERR_CHECKPOINT` for what Git leaves in place of a large file that was not downloaded. */
export function checkPointer(path: string, start: string): void {
  if (start.startsWith(POINTER)) fail('ERR_CHECKPOINT', 'load', `Expected the content of ${path} but received a pointer of Git LFS, which stands for it. Download the file itself: run git lfs pull in its directory.`);
}

/** A parsed JSON file, or undefined when there is no such file. */
export async function readJson(path: string): Promise<unknown> {
  return parseJson(await readText(path), path);
}

/** The value of a JSON text; undefined stays undefined. @param path of the file, for the message. */
export function parseJson(text: string | undefined, path: string): unknown {
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    return fail('ERR_CHECKPOINT', 'load', `Expected JSON in ${path} but received ${(error as Error).message.slice(0, 120)}. The file is damaged: download or save it again.`, { cause: error });
  }
}
