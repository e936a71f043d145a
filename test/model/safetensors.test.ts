import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { duplicateKey } from '../../lib/model/jsonDuplicates';
import { readHeader, readTensor, writeSafetensors, type TensorSource } from '../../lib/model/safetensors';

let folder: string;
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-safetensors-')); });
afterAll(() => rmSync(folder, { recursive: true }));

const entry = (shape: number[], offsets: number[], dtype = 'F32'): object => ({ dtype, shape, data_offsets: offsets });

/** Writes a file of this header (text or object) and this many data bytes; returns its path. */
function file(header: unknown, dataBytes: number, length?: bigint): string {
  const text = Buffer.isBuffer(header) ? header : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(length ?? BigInt(text.length));
  const path = join(folder, 'hostile.safetensors');
  writeFileSync(path, Buffer.concat([size, text, Buffer.alloc(dataBytes)]));
  return path;
}

test('what is written is read, in order and aligned', async () => {
  const path = join(folder, 'good.safetensors');
  const tensors: TensorSource[] = [
    { name: 'b', dtype: 'F32', shape: [2, 3], read: async () => Float32Array.of(1, 2, 3, 4, 5, 6) },
    { name: 'empty', dtype: 'I64', shape: [0, 5], read: () => new Uint8Array(0) },
    { name: 'a', dtype: 'BF16', shape: [], read: () => Uint16Array.of(0x3f80) },
    { name: '__proto__', dtype: 'U8', shape: [3], read: () => new Uint8Array([9, 7, 8, 6]).subarray(1) },
  ];
  const seen: unknown[] = [];
  await writeSafetensors(path, tensors, { metadata: { format: 'pt' }, onProgress: (progress) => seen.push(progress) });
  const header = await readHeader(path);
  expect([...header.tensors.values()].map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes }))).toEqual([
    { name: 'b', dtype: 'F32', shape: [2, 3], bytes: 24 }, { name: 'empty', dtype: 'I64', shape: [0, 5], bytes: 0 },
    { name: 'a', dtype: 'BF16', shape: [], bytes: 2 }, { name: '__proto__', dtype: 'U8', shape: [3], bytes: 3 },
  ]);
  expect(header.metadata).toEqual({ format: 'pt' });
  expect(header.tensors.get('b')!.offset % 8).toBe(0);
  expect([...(await readTensor(header, 'b'))]).toEqual([...new Uint8Array(Float32Array.of(1, 2, 3, 4, 5, 6).buffer)]);
  expect([...(await readTensor(header, '__proto__'))]).toEqual([7, 8, 6]);
  expect(seen.at(-1)).toEqual({ tensor: '__proto__', doneBytes: 29, totalBytes: 29 });
  expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
});

test.each<[string, () => string, string]>([
  ['an empty file', () => file('', 0), 'a header of UTF-8 JSON'],
  ['a header beyond the file', () => file('{}', 0, 1000n), '1008 bytes of header'],
  ['a huge header', () => file('{}', 0, 2n ** 63n), 'a header of at most 16777216 bytes'],
  ['no JSON', () => file('{"a":', 0), 'a header of UTF-8 JSON'],
  ['no UTF-8', () => file(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]), 0), 'a header of UTF-8 JSON'],
  ['a byte order mark', () => file('\uFEFF{}', 0), 'a header of UTF-8 JSON'],
  ['a list', () => file('[]', 0), 'a header object'],
  ['a name twice', () => file(`{"a":${JSON.stringify(entry([1], [0, 4]))},"\\u0061":${JSON.stringify(entry([1], [0, 4]))}}`, 4), "each name once in the header in"],
  ['an entry that is null', () => file({ a: null }, 0), "tensor 'a' to have an object"],
  ['an unknown dtype', () => file({ a: entry([1], [0, 4], 'toString') }, 4), "tensor 'a' to have a dtype among"],
  ['a negative size', () => file({ a: entry([-1], [0, 4]) }, 4), "tensor 'a' to have a shape"],
  ['a fraction', () => file({ a: entry([1.5], [0, 6]) }, 6), "tensor 'a' to have a shape"],
  ['a rank of 40', () => file({ a: entry(new Array<number>(40).fill(1), [0, 4]) }, 4), "tensor 'a' to have a shape"],
  ['an absurd shape', () => file({ a: entry([2 ** 40, 2 ** 40, 0], [0, 0]) }, 0), 'a size that fits a file'],
  ['falling offsets', () => file({ a: entry([1], [4, 0]) }, 4), 'two rising data_offsets'],
  ['three offsets', () => file({ a: entry([1], [0, 4, 8]) }, 8), 'two rising data_offsets'],
  ['negative offsets', () => file({ a: entry([1], [-4, 0]) }, 4), 'two rising data_offsets'],
  ['offsets of text', () => file({ a: { dtype: 'F32', shape: [1], data_offsets: '04' } }, 4), 'two rising data_offsets'],
  ['wrong bytes for the shape', () => file({ a: entry([2], [0, 4]) }, 4), '8 bytes, as its shape [2] of F32 says'],
  ['overlap', () => file({ a: entry([2], [0, 8]), b: entry([1], [4, 8]) }, 8), "tensor 'b' to start at 8"],
  ['a gap', () => file({ a: entry([1], [0, 4]), b: entry([1], [8, 12]) }, 12), "tensor 'b' to start at 4"],
  ['a file cut short', () => file({ a: entry([4], [0, 16]) }, 10), 'bytes'],
  ['bytes left over', () => file({ a: entry([1], [0, 4]) }, 5), 'bytes'],
  ['metadata of numbers', () => file({ __metadata__: { a: 1 } }, 0), '__metadata__ to hold strings'],
  ['a folder', () => folder, ''], ['nothing there', () => join(folder, 'none.safetensors'), 'a readable file'],
])('%s is ERR_CHECKPOINT', async (_, make, expected) => {
  const path = make();
  const found = await readHeader(path).then(() => undefined, (error: unknown) => error);
  expect(found).toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringContaining(expected) as string });
  expect((found as Error).message).toContain(path);
});

(process.platform === 'win32' ? test.skip : test)('a named pipe is refused, not waited for', async () => {
  const path = join(folder, 'pipe.safetensors');
  execFileSync('mkfifo', [path]);
  await expect(readHeader(path)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: `[safetensors] Expected a readable file at ${path} but received something else` });
});

test('a file of 7 bytes is ERR_CHECKPOINT', async () => {
  const path = join(folder, 'short.safetensors');
  writeFileSync(path, Buffer.alloc(7));
  await expect(readHeader(path)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT', message: expect.stringContaining('at least 8 bytes') as string });
});

test('a header of one string of 20 MB is refused, not a crash', async () => {
  await expect(readHeader(file(`{"a":"${'x\\\\'.repeat(7_000_000)}"}`, 0))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT' });
});

test('a good file with one byte changed is read or refused, never anything else', async () => {
  const path = join(folder, 'fuzzed.safetensors');
  await writeSafetensors(path, ['x', 'y'].map((name) => ({ name, dtype: 'F32' as const, shape: [2], read: () => new Float32Array(2) })));
  const good = readFileSync(path);
  await fc.assert(fc.asyncProperty(fc.nat(good.length - 1), fc.integer({ min: 0, max: 255 }), async (at, value) => {
    const bad = Buffer.from(good);
    bad[at] = value;
    writeFileSync(path, bad);
    const code = await readHeader(path).then(() => 'read', (error: { code?: string }) => error.code);
    expect(['read', 'ERR_CHECKPOINT']).toContain(code);
  }), { numRuns: 300, seed: 1 });
});

test('duplicate keys are found at any depth, and only there', () => {
  expect(duplicateKey('{"a":{"b":1,"c":[{"b":2},{"b":3}]},"b":"a"}')).toBeUndefined();
  expect(duplicateKey('{"a":{"b":1,"c":{},"b" : 2}}')).toBe('b');
  expect(duplicateKey('{"a\\"":1,"a\\\\":2,"x":"a\\":","a":"}{"}')).toBeUndefined();
  fc.assert(fc.property(fc.json(), (text) => duplicateKey(text) === undefined), { numRuns: 300, seed: 1 });
});

describe('writing', () => {
  const path = (): string => join(folder, 'target.safetensors');
  const fine: TensorSource = { name: 'a', dtype: 'F32', shape: [1], read: () => new Float32Array(1) };

  test.each<[string, TensorSource[], object]>([
    ['a reader that fails', [fine, { ...fine, name: 'b', read: () => Promise.reject(new Error('gone')) }], { message: 'gone' }],
    ['too few bytes', [{ ...fine, shape: [2] }], { code: 'ERR_SHAPE', message: "[safetensors] Expected 8 bytes for tensor 'a' but received 4" }],
    ['a name twice', [fine, fine], { code: 'ERR_ARGUMENT', message: "[safetensors] Expected each tensor once but received 'a' twice" }],
  ])('%s leaves the old file and nothing else', async (_, tensors, error) => {
    writeFileSync(path(), 'old');
    await expect(writeSafetensors(path(), tensors)).rejects.toMatchObject(error);
    expect(readFileSync(path(), 'utf8')).toBe('old');
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  test('an abort between tensors leaves the old file and rejects with the reason', async () => {
    writeFileSync(path(), 'old');
    const controller = new AbortController();
    const reason = new Error('enough');
    const second = jest.fn(() => new Float32Array(1));
    const tensors = [{ ...fine, read: () => { controller.abort(reason); return new Float32Array(1); } }, { ...fine, name: 'b', read: second }];
    await expect(writeSafetensors(path(), tensors, { signal: controller.signal })).rejects.toBe(reason);
    expect(second).not.toHaveBeenCalled();
    expect(readFileSync(path(), 'utf8')).toBe('old');
  });
});
