/**
 * Safetensors files: 8 bytes of header length (little-endian), a JSON header `{name: {dtype, shape, data_offsets}, "__metadata__"}`,
 * then the raw little-endian bytes of the tensors one after another without gaps.
 *
 * The reader believes nothing: files come from strangers. Format: huggingface.co/docs/safetensors.
 */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import * as check from '../check';
import { fail } from '../errors';
import { checkPointer, kindOf, writeAtomically } from './files';
import { isObject } from './jsonReader';
import { duplicateKey } from './jsonDuplicates';

export const DTYPE_BYTES = Object.freeze({
  BOOL: 1, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1, U16: 2, I16: 2, F16: 2, BF16: 2, U32: 4, I32: 4, F32: 4, U64: 8, I64: 8, F64: 8,
});
export type FileDType = keyof typeof DTYPE_BYTES;

export interface TensorEntry {
  readonly name: string;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  /** Absolute position in the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface SafetensorsHeader {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** A hundred times that of a shard of the largest models. The reference implementation takes 100 MB, which can stand for several GB of objects. */
const MAX_HEADER_BYTES = 16 << 20;
const MAX_RANK = 32;
const REMEDY = 'The file is damaged or incomplete: download or save it again.';

function damaged(path: string, expected: string, received: string): never {
  return fail('ERR_CHECKPOINT', 'safetensors', `Expected ${expected} in ${path} but received ${received}. ${REMEDY}`);
}

/**
 * Reads and checks the header of a file; no tensor is read.
 *
 * @throws {LibError} `ERR_CHECKPOINT` naming the file, and the tensor where there is one.
 */
export async function readHeader(path: string): Promise<SafetensorsHeader> {
  check.string('safetensors', 'path', path);
  const file = await openFile(path);
  try {
    const { size } = await file.stat();
    if (size < 8) damaged(path, 'at least 8 bytes', `${size}`);
    const start = await readExactly(file, path, 0, Math.min(size, 32));
    checkPointer(path, start.toString('latin1'));
    const length = Number(start.readBigUInt64LE());
    if (length > MAX_HEADER_BYTES) damaged(path, `a header of at most ${MAX_HEADER_BYTES} bytes`, `${length}`);
    if (8 + length > size) damaged(path, `${8 + length} bytes of header`, `a file of ${size} bytes`);
    return parseHeader(path, await readExactly(file, path, 8, length), size);
  } finally {
    await file.close();
  }
}

async function openFile(path: string): Promise<FileHandle> {
  let file: FileHandle;
  try {
    // Without O_NONBLOCK, opening a named pipe waits for a writer for ever. Windows has neither.
    file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    return fail('ERR_CHECKPOINT', 'safetensors', `Expected a readable file at ${path} but received ${await notFile(path) ?? (error as Error).message}`, { cause: error });
  }
  if ((await file.stat()).isFile()) return file;
  await file.close();
  return fail('ERR_CHECKPOINT', 'safetensors', `Expected a readable file at ${path} but received ${await notFile(path)}`);
}

async function notFile(path: string): Promise<string | undefined> {
  const kind = await kindOf(path);
  return kind === 'file' ? undefined : kind === 'missing' ? 'no such file' : kind;
}

async function readExactly(file: FileHandle, path: string, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(buffer, done, Math.min(length - done, 1 << 30), position + done);
    if (bytesRead === 0) damaged(path, `${length} bytes at ${position}`, `${done}`);
    done += bytesRead;
  }
  return buffer;
}

function parseHeader(path: string, bytes: Uint8Array, fileSize: number): SafetensorsHeader {
  let text: string;
  let raw: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    raw = JSON.parse(text);
  } catch (error) {
    return damaged(path, 'a header of UTF-8 JSON', (error as Error).message.slice(0, 120));
  }
  if (!isObject(raw)) return damaged(path, 'a header object', 'other JSON');
  const start = 8 + bytes.length;
  const tensors = new Map<string, TensorEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, entry] of Object.entries(raw)) {
    if (name === '__metadata__') metadata = checkMetadata(path, entry);
    else tensors.set(name, checkEntry(path, name, entry, start));
  }
  // After the entries: of millions of objects it would take seconds.
  const twice = duplicateKey(text);
  if (twice !== undefined) damaged(path, 'each name once in the header', `'${twice.slice(0, 200)}' twice`);
  checkLayout(path, [...tensors.values()], start, fileSize);
  return { path, tensors, metadata };
}

function checkMetadata(path: string, entry: unknown): Record<string, string> {
  if (!isObject(entry) || !Object.values(entry).every((v) => typeof v === 'string')) return damaged(path, '__metadata__ to hold strings', 'something else');
  return { ...(entry as Record<string, string>) };
}

function checkEntry(path: string, name: string, entry: unknown, start: number): TensorEntry {
  const wrong = (expected: string, received: unknown): never => damaged(path, `tensor '${name.slice(0, 200)}' to have ${expected}`, check.brief(received, 120));
  if (!isObject(entry)) return wrong('an object with dtype, shape and data_offsets', entry);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) return wrong(`a dtype among ${Object.keys(DTYPE_BYTES).join(', ')}`, dtype);
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isCount)) return wrong(`a shape of at most ${MAX_RANK} whole numbers`, shape);
  const [begin, end, ...more] = Array.isArray(offsets) ? (offsets as unknown[]) : [];
  if (!isCount(begin) || !isCount(end) || more.length > 0 || begin > end) return wrong('two rising data_offsets', offsets);
  let bytes = DTYPE_BYTES[dtype as FileDType];
  for (const n of shape as number[]) {
    bytes *= n;
    if (!Number.isSafeInteger(bytes)) return wrong('a size that fits a file', shape);
  }
  if (end - begin !== bytes) return wrong(`${bytes} bytes, as its shape [${shape.join(', ')}] of ${dtype} says,`, end - begin);
  return { name, dtype: dtype as FileDType, shape: Object.freeze([...(shape as number[])]), offset: start + begin, bytes };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** No gaps, no overlaps, and the file ends where the last tensor does. */
function checkLayout(path: string, tensors: TensorEntry[], start: number, fileSize: number): void {
  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = start;
  for (const tensor of tensors) {
    if (tensor.offset !== end) damaged(path, `tensor '${tensor.name.slice(0, 200)}' to start at ${end - start}, where the one before it ends,`, `${tensor.offset - start}`);
    end += tensor.bytes;
  }
  if (end !== fileSize) damaged(path, `${end} bytes`, `a file of ${fileSize} bytes`);
}

/** Raw bytes of one tensor. */
export async function readTensor(header: SafetensorsHeader, name: string): Promise<Buffer> {
  const entry = header.tensors.get(name);
  if (entry === undefined) return damaged(header.path, `tensor '${name}'`, 'none of that name');
  const file = await openFile(header.path);
  try {
    return await readExactly(file, header.path, entry.offset, entry.bytes);
  } finally {
    await file.close();
  }
}

export interface TensorSource {
  readonly name: string;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  /** Called once, in order; only one tensor is held at a time. */
  read(): Promise<ArrayBufferView> | ArrayBufferView;
}

export interface WriteOptions {
  metadata?: Readonly<Record<string, string>>;
  signal?: AbortSignal;
  /** Called after each tensor. */
  onProgress?: (progress: { tensor: string; doneBytes: number; totalBytes: number }) => void;
}

/**
 * Writes a file as a stream: header first, then each tensor as it is read. The file appears under its name only when all of it is
 * on the disk; after a failure or an abort nothing is left behind.
 */
export async function writeSafetensors(path: string, tensors: readonly TensorSource[], options: WriteOptions = {}): Promise<void> {
  check.path('safetensors', 'path', path);
  check.array('safetensors', 'tensors', tensors);
  const { header, totalBytes } = makeHeader(tensors, options.metadata);
  await writeAtomically(path, async (write) => {
    await write(header);
    let doneBytes = 0;
    for (const tensor of tensors) {
      options.signal?.throwIfAborted();
      const data = await tensor.read();
      const expected = byteLength(tensor);
      if (data.byteLength !== expected) fail('ERR_SHAPE', 'safetensors', `Expected ${expected} bytes for tensor '${tensor.name}' but received ${data.byteLength}`);
      await write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      doneBytes += expected;
      options.onProgress?.({ tensor: tensor.name, doneBytes, totalBytes });
    }
  });
}

function byteLength(tensor: TensorSource): number {
  return tensor.shape.reduce((product, n) => product * n, DTYPE_BYTES[tensor.dtype]);
}

function makeHeader(tensors: readonly TensorSource[], metadata: Readonly<Record<string, string>> | undefined): { header: Buffer; totalBytes: number } {
  const entries = new Map<string, unknown>();
  if (metadata !== undefined) entries.set('__metadata__', metadata);
  let end = 0;
  for (const tensor of tensors) {
    if (entries.has(tensor.name)) fail('ERR_ARGUMENT', 'safetensors', `Expected each tensor once but received '${tensor.name}' twice`);
    const start = end;
    end += byteLength(tensor);
    entries.set(tensor.name, { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [start, end] });
  }
  const text = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const padded = Math.ceil(text.length / 8) * 8;  // so that the data starts aligned
  const header = Buffer.alloc(8 + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded));
  text.copy(header, 8);
  return { header, totalBytes: end };
}
