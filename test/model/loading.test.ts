/** How the bytes of a file become weights: straight into place or converted, in pieces, with whatever can go wrong half-way. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { openCheckpoint } from '../../lib/model/checkpoint';
import { newConfig } from '../../lib/model/config';
import { readHeader, readTensor, writeSafetensors, type FileDType, type TensorSource } from '../../lib/model/safetensors';
import { loadWeights } from '../../lib/model/weights';
import { native } from '../../lib/native';

const EMBEDDING = 'model.embed_tokens.weight';
/** A table of 9.6 million values: several pieces of a file, and several of a conversion. */
const CONFIG = newConfig({
  text: { hidden: 64, layers: 1, heads: 4, kvHeads: 2, intermediate: 96, vocab: 150_000, mropeSection: [2, 3, 3] },
  vision: { depth: 1, width: 32, heads: 2, mlpWidth: 64 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
});
let folder: string;
let good: Buffer;
const file = (): string => join(folder, 'model.safetensors');
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-loading-'));
  using model = await LatentModel.create(CONFIG, { dtype: 'bf16', seed: 3 });
  await model.save(folder);
  good = readFileSync(file());
});
beforeEach(() => writeFileSync(file(), good));
afterAll(() => rmSync(folder, { recursive: true }));

const live = () => native().liveObjects();
const widened = (bits: number): number => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;

async function table(): Promise<Uint16Array> {
  const bytes = new Uint8Array(await readTensor(await readHeader(file()), EMBEDDING));
  return new Uint16Array(bytes.buffer);
}

/** Writes the file again with another table. */
async function withTable(dtype: FileDType, data: ArrayBufferView): Promise<void> {
  const header = await readHeader(file());
  const tensors: TensorSource[] = [];
  for (const entry of header.tensors.values()) {
    const bytes = entry.name === EMBEDDING ? data : await readTensor(header, entry.name);
    tensors.push({ name: entry.name, shape: entry.shape, dtype: entry.name === EMBEDDING ? dtype : entry.dtype, read: () => bytes });
  }
  await writeSafetensors(file(), tensors);
}

test('bf16 to bf16 is bit for bit what the file says, to the last value; f32 gets the same numbers', async () => {
  const bits = await table();
  using narrow = await LatentModel.load(folder);
  expect(Buffer.compare(Buffer.from((await narrow.native.readParameterBf16(EMBEDDING)).buffer), Buffer.from(bits.buffer))).toBe(0);
  using wide = await LatentModel.load(folder, { dtype: 'f32' });
  const values = await wide.native.readParameter(EMBEDDING, 'value');
  for (const at of [0, 1, 4_194_303, 4_194_304, 9_599_999]) expect(values[at]).toBe(widened(bits[at]!));
  const again = await narrow.native.readParameter(EMBEDDING, 'value');
  expect(again.every((value, i) => value === values[i])).toBe(true);
});

test('f32 to bf16 rounds to nearest, ties to even', async () => {
  const values = new Float32Array(Uint32Array.from(await table()).map((bits) => bits << 16).buffer);
  values.set([1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, -3.38e38], 9_000_000);
  await withTable('F32', values);
  using model = await LatentModel.load(folder, { dtype: 'bf16' });
  expect([...(await model.native.readParameterBf16(EMBEDDING)).subarray(9_000_000, 9_000_004)]).toEqual([0x3f80, 0x3f82, 0x3f81, 0xff7e]);
});

test('loading into a model that trains keeps its f32 masters true', async () => {
  using model = await LatentModel.create(CONFIG, { dtype: 'bf16', seed: 4, maxMemoryBytes: Infinity });
  await model.native.enableTraining();
  await model.loadWeights(folder);
  const bits = await table(), master = await model.native.readParameter(EMBEDDING, 'master');
  expect([master[0], master[9_599_999]]).toEqual([widened(bits[0]!), widened(bits[9_599_999]!)]);
});

test.each([
  ['NaN in place', 'bf16', 'BF16', 0x7fc0, `Expected the values of '${EMBEDDING}' to be finite but element 9599000 is NaN or infinite; the checkpoint is damaged or its training diverged`],
  ['infinity that is widened', 'f32', 'BF16', 0xff80, `Expected the values of '${EMBEDDING}' to be finite but element 9599000 is NaN or infinite; the checkpoint is damaged or its training diverged`],
  ['infinity of f16', 'bf16', 'F16', 0x7c00, `Expected the values of '${EMBEDDING}' to be finite but element 9599000 is NaN or infinite; the checkpoint is damaged or its training diverged`],
] as const)('%s', async (_, dtype, kind, bad, message) => {
  const bits = kind === 'F16' ? new Uint16Array(9_600_000) : await table();
  bits[9_599_000] = bad;
  await withTable(kind, bits);
  const before = live();
  await expect(LatentModel.load(folder, { dtype })).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[Model.load] ${message}` });
  expect(live()).toEqual(before);
});

test('an f32 value that bf16 cannot hold', async () => {
  const values = new Float32Array(9_600_000);
  values[5_000_000] = 3.4e38;
  await withTable('F32', values);
  await expect(LatentModel.load(folder, { dtype: 'bf16' })).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT', message: `[Model.load] Expected the values of '${EMBEDDING}' to be below 2^128 in bf16 but element 5000000 is not; load with dtype 'f32'`,
  });
  (await LatentModel.load(folder, { dtype: 'f32' })).dispose();
});

describe('the file changes after its header was read', () => {
  async function refused(change: () => void, message: RegExp): Promise<void> {
    const checkpoint = await openCheckpoint(folder);
    change();
    const before = live();
    await expect(loadWeights(checkpoint, 'bf16', 0, {})).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message: expect.stringMatching(message) as string });
    expect(live()).toEqual(before);
  }
  const gone = /^\[loadFile\] Expected a readable file but received .*model\.safetensors$/;
  test('cut short', () => refused(() => truncateSync(file(), 1000), /^\[loadFile\] Expected '.*' at bytes \d+ to \d+ but received a file of 1000 bytes: .*model\.safetensors is truncated, fetch it again$/));
  test('gone', () => refused(() => rmSync(file()), gone));
  test('a named pipe', () => refused(() => { rmSync(file()); execFileSync('mkfifo', [file()]); }, gone));
  afterEach(() => rmSync(file(), { force: true }));
});

test('a file that is cut short while it is read is an error, not the end of the process', async () => {
  const checkpoint = await openCheckpoint(folder);
  using model = await LatentModel.create(CONFIG, { dtype: 'bf16' });
  const { tensors } = checkpoint.files[0]!;
  const outcomes = new Set<string>();
  for (let round = 0; round < 20; round++) {
    writeFileSync(file(), good);
    const loading = model.native.loadFile(file(), tensors).then(() => 'read', (error: { code?: string }) => error.code ?? 'no code');
    truncateSync(file(), 10_000 + round * 900_000);
    outcomes.add(await loading);
  }
  expect([...outcomes].filter((outcome) => outcome !== 'read' && outcome !== 'ERR_CHECKPOINT')).toEqual([]);
});

describe('a signal', () => {
  test('within a tensor: rejects with its reason, nothing stays', async () => {
    const before = live();
    const controller = new AbortController();
    const reason = new Error('enough');
    const loading = LatentModel.load(folder, { signal: controller.signal, dtype: 'f32', onProgress: () => undefined });
    const ended = expect(loading).rejects.toBe(reason);
    while (live().models === before.models) await new Promise((resolve) => setTimeout(resolve, 1));
    controller.abort(reason);
    await ended;
    expect(live()).toEqual(before);
  });

  test('while new weights are drawn', async () => {
    const before = live();
    const reason = new Error('enough');
    const controller = new AbortController();
    const ended = expect(LatentModel.create(CONFIG, { signal: controller.signal })).rejects.toBe(reason);
    while (live().models === before.models) await new Promise((resolve) => setTimeout(resolve, 1));
    controller.abort(reason);
    await ended;
    expect(live()).toEqual(before);
  });
});

test('progress counts bytes of the files and ends at their sum', async () => {
  const seen: number[] = [];
  let total = 0;
  (await LatentModel.load(folder, { onProgress: ({ doneBytes, totalBytes }) => { seen.push(doneBytes); total = totalBytes; } })).dispose();
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  expect(seen.at(-1)).toBe(total);
  expect(total).toBeGreaterThan(2 * 9_600_000);
});
