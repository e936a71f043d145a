/** Weight files, their index and config.json as a stranger may write them: read, or a typed error; bounded time and memory; no crash. */
import fc from 'fast-check';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { openCheckpoint } from '../../lib/model/checkpoint';
import { parseConfig } from '../../lib/model/config';
import { readHeader } from '../../lib/model/safetensors';
import { native } from '../../lib/native';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
let folder: string;
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-hostile-')); });
beforeEach(() => cpSync(TINY, folder, { recursive: true }));
afterAll(() => rmSync(folder, { recursive: true }));

const weights = (): string => join(folder, 'model.safetensors');
const good = readFileSync(join(TINY, 'model.safetensors'));
const goodHeader = good.subarray(8, 8 + Number(good.readBigUInt64LE())).toString();
const goodConfig = JSON.parse(readFileSync(join(TINY, 'config.json'), 'utf8')) as Record<string, unknown>;

function fileOf(header: string | Buffer, data: Buffer | number, length?: bigint): Buffer {
  const text = Buffer.from(header as string), prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([prefix, text, typeof data === 'number' ? Buffer.alloc(data) : data]);
}

/** 'read', or the code of the typed error. */
async function outcome(work: () => unknown): Promise<string> {
  try {
    await work();
    return 'read';
  } catch (error) {
    expect(error).toMatchObject({ name: 'LibError' });
    return (error as { code: string }).code;
  }
}

describe('headers', () => {
  const read = (bytes: Buffer): Promise<string> => outcome(() => {
    const path = join(folder, 'fuzzed.safetensors');
    writeFileSync(path, bytes);
    return readHeader(path);
  });
  const number = fc.oneof(fc.constantFrom(0, -1, 1, 4, 8, 0.5, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63, 1e308, -0), fc.integer(), fc.nat(64));
  const entry = fc.record({
    dtype: fc.oneof(fc.constantFrom('F32', 'BF16', 'F16', 'F64', 'I64', 'BOOL', 'f32', ''), fc.jsonValue()),
    shape: fc.oneof(fc.array(number, { maxLength: 6 }), fc.jsonValue()), data_offsets: fc.oneof(fc.array(number, { maxLength: 3 }), fc.jsonValue()),
  }, { requiredKeys: [] });

  test('made-up tensors: wild shapes, offsets that overlap or lie outside', async () => {
    await fc.assert(fc.asyncProperty(fc.dictionary(fc.string({ maxLength: 8 }), fc.oneof(entry, fc.jsonValue()), { maxKeys: 4 }), fc.nat(64), async (tensors, size) => {
      expect(['read', 'ERR_CHECKPOINT']).toContain(await read(fileOf(JSON.stringify(tensors), size)));
    }), { numRuns: 500, seed: 1, interruptAfterTimeLimit: 10_000 });
  });

  test('lengths that lie', async () => {
    await fc.assert(fc.asyncProperty(fc.oneof(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.bigInt({ min: 0n, max: 200n })), async (length) => {
      const found = await read(fileOf('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, length));
      expect(found).toBe(length === 54n ? 'read' : 'ERR_CHECKPOINT');
    }), { numRuns: 200, seed: 1, interruptAfterTimeLimit: 10_000 });
  });

  test('bytes that are no UTF-8, and any other bytes', async () => {
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
      expect(await read(fileOf(Buffer.from(bytes), 8))).toBe('ERR_CHECKPOINT');
      expect(await read(Buffer.from(bytes))).toBe('ERR_CHECKPOINT');
    }), { numRuns: 200, seed: 1, interruptAfterTimeLimit: 10_000 });
  });

  test.each<[string, () => string]>([
    ['a name twice', () => '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'],
    ['two tensors on the same bytes', () => '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'],
    ['a size that overflows', () => '{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'],
    ['a size that overflows to the right one', () => `{"a":{"dtype":"F32","shape":[${2 ** 31},${2 ** 31},4,0],"data_offsets":[0,4]}}`],
    ['brackets a million deep', () => `{"a":${'['.repeat(1_000_000)}${']'.repeat(1_000_000)}}`],
    ['objects a million deep', () => `${'{"a":'.repeat(1_000_000)}1${'}'.repeat(1_000_000)}`],
    ['a prototype', () => '{"__proto__":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}'],
    ['a million numbers for a shape', () => `{"a":{"dtype":"F32","shape":[${'1,'.repeat(1_000_000)}1],"data_offsets":[0,4]}}`],
  ])('%s', async (_, header) => {
    const before = performance.now();
    expect(await read(fileOf(header(), 4))).toBe('ERR_CHECKPOINT');
    expect(performance.now() - before).toBeLessThan(10_000);
  });
});

test('a real file with its header changed loads or is refused, whatever was changed', async () => {
  const before = native().liveObjects();
  await fc.assert(fc.asyncProperty(fc.nat(goodHeader.length - 1), fc.constantFrom(...'0123456789,:[]{}"-eF'), async (at, letter) => {
    writeFileSync(weights(), fileOf(`${goodHeader.slice(0, at)}${letter}${goodHeader.slice(at + 1)}`, good.subarray(8 + goodHeader.length)));
    const found = await outcome(async () => (await LatentModel.load(folder)).dispose());
    expect(['read', 'ERR_CHECKPOINT']).toContain(found);
  }), { numRuns: 120, seed: 1, interruptAfterTimeLimit: 15_000 });
  expect(native().liveObjects()).toEqual(before);
}, 60_000);

test('a shard cut anywhere is refused', async () => {
  await fc.assert(fc.asyncProperty(fc.nat(good.length - 1), async (length) => {
    writeFileSync(weights(), good.subarray(0, length));
    expect(await outcome(() => LatentModel.load(folder))).toBe('ERR_CHECKPOINT');
  }), { numRuns: 60, seed: 1, interruptAfterTimeLimit: 10_000 });
});

test('an index that points anywhere', async () => {
  rmSync(weights());
  const name = fc.oneof(fc.constantFrom('../model.safetensors', '/etc/passwd', '..', '.', '', 'a/b.safetensors', '..\\b.safetensors', 'config.json', '\u0000.safetensors', 'none.safetensors', `${'x'.repeat(5000)}.safetensors`), fc.jsonValue());
  await fc.assert(fc.asyncProperty(fc.oneof(fc.jsonValue(), fc.record({ weight_map: fc.oneof(fc.dictionary(fc.string(), name, { maxKeys: 4 }), fc.jsonValue()) })), async (index) => {
    writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify(index));
    expect(await outcome(() => openCheckpoint(folder))).toBe('ERR_CHECKPOINT');
  }), { numRuns: 200, seed: 1, interruptAfterTimeLimit: 10_000 });
  rmSync(join(folder, 'model.safetensors.index.json'));
});

test('config.json with anything anywhere is a config within bounds, or refused', () => {
  const wild = fc.oneof(fc.constantFrom<unknown>(0, -1, 1, 0.5, 1e308, -1e308, 2 ** 31, 2 ** 53, 4096, 1 << 20, 1 << 24, '1', null, true, [], {}), fc.jsonValue({ maxDepth: 2 }), fc.integer());
  const vision = goodConfig['vision_config'] as Record<string, unknown>;
  const key = fc.oneof(fc.constantFrom(...Object.keys(goodConfig)).map((name) => [name]), fc.constantFrom(...Object.keys(vision)).map((name) => ['vision_config', name]), fc.constantFrom(...Object.keys(goodConfig)).map((name) => ['text_config', name]));
  fc.assert(fc.property(fc.array(fc.tuple(key, wild), { minLength: 1, maxLength: 3 }), (changes) => {
    const raw: Record<string, unknown> = { ...goodConfig, vision_config: { ...vision } };
    for (const [[first, second], value] of changes) {
      if (second === undefined) raw[first!] = value;
      else raw[first!] = { ...raw[first!] as object, [second]: value };
    }
    try {
      const { text } = parseConfig(JSON.parse(JSON.stringify(raw)));
      expect([text.hidden, text.layers, text.vocab].every((n) => Number.isSafeInteger(n) && n > 0 && n <= 1 << 24)).toBe(true);
    } catch (error) {
      expect(['ERR_CHECKPOINT', 'ERR_UNSUPPORTED']).toContain((error as { code?: string }).code);
    }
  }), { numRuns: 1500, seed: 1, interruptAfterTimeLimit: 15_000 });
}, 30_000);

test('brackets a hundred thousand deep in any place are refused', async () => {
  const deep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`;
  for (const [name, key] of [['config.json', 'hidden_size'], ['config.json', 'model_type'], ['config.json', 'rope_scaling'], ['generation_config.json', 'eos_token_id'], ['preprocessor_config.json', 'image_mean'], ['plumbline.json', 'format']] as const) {
    cpSync(TINY, folder, { recursive: true });
    const text = readFileSync(join(folder, name), 'utf8');
    writeFileSync(join(folder, name), text.replace(/^\{/, `{"${key}_":0,`).replace(new RegExp(`"${key}":[^,}]*`), '"gone":0').replace(/^\{/, `{"${key}":${deep},`));
    expect(['ERR_CHECKPOINT', 'ERR_UNSUPPORTED']).toContain(await outcome(() => openCheckpoint(folder)));
  }
});

test('the largest model that config.json can name is refused for want of memory, not tried', async () => {
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...goodConfig, num_hidden_layers: 4096 }));
  expect(await outcome(() => LatentModel.load(folder))).toBe('ERR_CHECKPOINT');
  const huge = parseConfig({ ...goodConfig, hidden_size: 1 << 16, head_dim: 8, num_hidden_layers: 4096, intermediate_size: 1 << 20, vision_config: { ...goodConfig['vision_config'] as object, hidden_size: 1 << 16 } });
  const started = performance.now();
  await expect(LatentModel.create(huge)).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY', message: expect.stringMatching(/^\[create\] Expected \d+\.\d\d GB of memory for the weights of the new model/) as string });
  expect(performance.now() - started).toBeLessThan(5000);
});

test.each(['generation_config.json', 'preprocessor_config.json', 'plumbline.json'])('%s of any JSON is read or refused', async (name) => {
  await fc.assert(fc.asyncProperty(fc.oneof(fc.jsonValue(), fc.dictionary(fc.constantFrom('eos_token_id', 'temperature', 'do_sample', 'top_k', 'min_pixels', 'image_mean', 'size', 'format', 'switches', 'latentSteps', 'preset'), fc.jsonValue({ maxDepth: 2 }))), async (value) => {
    writeFileSync(join(folder, name), JSON.stringify(value));
    expect(['read', 'ERR_CHECKPOINT', 'ERR_UNSUPPORTED', 'ERR_RANGE', 'ERR_ARGUMENT']).toContain(await outcome(() => openCheckpoint(folder)));
  }), { numRuns: 120, seed: 1, interruptAfterTimeLimit: 10_000 });
});
