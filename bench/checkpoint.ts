/** Loading a checkpoint of Qwen2-VL-2B's size against a plain read of its file, and decoding with it against the reading of its weights. */
import { mkdtempSync, openSync, readSync, closeSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../lib/latentModel';
import { configJson, newConfig } from '../lib/model/config';
import { writeJson } from '../lib/model/files';
import { availableMemory } from '../lib/model/memory';
import { parameterShapes, sizeOf } from '../lib/model/parameterShapes';
import { writeSafetensors, type TensorSource } from '../lib/model/safetensors';
import { timing, type BenchRow } from './harness';
import type { Roofs } from './operations';

const CONFIG = newConfig({
  text: { hidden: 1536, layers: 28, heads: 12, kvHeads: 2, intermediate: 8960, vocab: 151936, mropeSection: [16, 24, 24], tied: true },
  vision: { depth: 32, width: 1280, heads: 16, mlpWidth: 5120 },
  tokens: { image: 151655, video: 151656, visionStart: 151652, visionEnd: 151653, eos: 151645, pad: 151643 },
});
const LOADS = 3;
const DECODED = 40;
const PIECE = 16 * 2 ** 20;
/** The kernel zeroes new pages before it fills them, which is most of the time of reading into them. */
const FRESH = 2 ** 30;
/** More memory than this is a defect: weights take 4.4 GB. */
const MAX_BYTES = 24 * 2 ** 30;

/** Random bf16 of about the spread of real weights: sign and mantissa of a generator's bits, exponents 2^-8 to 2^-5. Norms are 1. */
function randomTensor(name: string, shape: readonly number[], role: string, seed: number): TensorSource {
  return {
    name, shape, dtype: 'BF16',
    read() {
      const bits = new Uint16Array(sizeOf(shape));
      if (role === 'scale') return bits.fill(0x3f80);
      let state = seed;
      for (let i = 0; i < bits.length; i++) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        bits[i] = ((state >>> 16) & 0x81ff) | 0x3c00;
      }
      return bits;
    },
  };
}

async function writeModel(folder: string, shapes: ReturnType<typeof parameterShapes>): Promise<void> {
  await writeJson(join(folder, 'config.json'), configJson(CONFIG, 'bf16'));
  await writeSafetensors(join(folder, 'model.safetensors'), shapes.map(({ name, shape, role }, i) => randomTensor(name, shape, role, i + 1)));
}

/** Seconds of reading the start of the file, into one small buffer or into memory that nothing has touched. */
function plainRead(path: string, bytes: number, isFresh: boolean): number {
  const file = openSync(path, 'r');
  const started = performance.now();
  const buffer = Buffer.allocUnsafeSlow(isFresh ? bytes : PIECE);
  for (let at = 0; at < bytes; ) at += readSync(file, buffer, isFresh ? at : 0, Math.min(PIECE, bytes - at), at);
  closeSync(file);
  return (performance.now() - started) / 1e3;
}

/** Tokens of one request one by one; seconds of each after the first few. */
async function decode(model: LatentModel): Promise<number[]> {
  const seconds: number[] = [];
  let last: number | undefined;
  for await (const event of model.stream({ promptIds: Array.from({ length: 128 }, (_, i) => 1000 + i) }, { maxNewTokens: DECODED, stopIds: [] })) {
    if (event.type !== 'token') continue;
    const now = performance.now();
    if (last !== undefined) seconds.push((now - last) / 1e3);
    last = now;
  }
  return seconds.slice(4);
}

/** @throws when disk or memory is short. */
export async function checkpointRows({ gigabytesPerSecond }: Roofs): Promise<BenchRow[]> {
  const shapes = parameterShapes(CONFIG);
  const bytes = shapes.reduce((sum, { shape }) => sum + 2 * sizeOf(shape), 0);
  const folder = mkdtempSync(join(tmpdir(), 'plumbline-bench-checkpoint-'));
  let model: LatentModel | undefined;
  try {
    const disk = statfsSync(folder), free = disk.bavail * disk.bsize;
    const { generation: { totalBytes } } = await LatentModel.estimate(CONFIG, { dtype: 'bf16', contextTokens: 256, patches: 0 });
    if (free < 1.1 * bytes) throw new Error(`Expected ${(1.1 * bytes / 1e9).toFixed(1)} GB of free disk in ${tmpdir()} but found ${(free / 1e9).toFixed(1)} GB; set TMPDIR to another folder`);
    // The file stays in the page cache beside the weights, or it would be the disk that is measured.
    if (availableMemory() < totalBytes + bytes) throw new Error(`Expected ${((totalBytes + bytes) / 1e9).toFixed(1)} GB of free memory but found ${(availableMemory() / 1e9).toFixed(1)} GB; close other programs`);
    await writeModel(folder, shapes);
    const path = join(folder, 'model.safetensors');
    plainRead(path, bytes, false);
    const [plain, fresh, loads] = [[] as number[], [] as number[], [] as number[]];
    for (let round = 0; round < LOADS; round++) {
      model?.dispose();
      plain.push(plainRead(path, bytes, false));
      fresh.push(plainRead(path, FRESH, true));
      const started = performance.now();
      model = await LatentModel.load(folder);
      loads.push((performance.now() - started) / 1e3);
    }
    const tokens = timing(await decode(model!));
    const { text } = CONFIG;
    const perToken = 2 * shapes.filter(({ name, role }) => role === 'matrix' && !name.startsWith('visual.')).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    const peak = process.resourceUsage().maxRSS * 1024;
    const rate = (seconds: readonly number[], size: number): number => size / timing(seconds).median / 1e9;
    return [
      { name: 'plain read, one buffer', what: `${(bytes / 1e9).toFixed(2)} GB in page cache, 16 MiB at a time`, value: rate(plain, bytes), unit: 'GB/s', seconds: timing(plain) },
      { name: 'plain read, new memory', what: '1 GiB of it on one thread into memory that nothing has touched', value: rate(fresh, FRESH), unit: 'GB/s', seconds: timing(fresh) },
      { name: 'loading a checkpoint', what: `${(bytes / 2e9).toFixed(2)} billion bf16 weights, checked`, value: rate(loads, bytes), unit: 'GB/s', roof: rate(plain, bytes), ownRoof: true, seconds: timing(loads) },
      { name: 'decoding, that checkpoint', what: `${text.layers} layers, ${text.hidden} wide, bf16: ${(perToken / 1e9).toFixed(2)} GB of weights a token`, value: 1 / tokens.median, unit: 'tokens/s', roof: (gigabytesPerSecond * 1e9) / perToken, seconds: tokens },
      { name: 'peak memory', what: 'resident, this whole process', value: peak / 2 ** 30, unit: 'GiB', note: peak < MAX_BYTES ? 'below 24 GiB' : 'NOT below 24 GiB' },
    ];
  } finally {
    model?.dispose();
    rmSync(folder, { recursive: true, force: true });
  }
}
