import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import sharp from 'sharp';
import { decodeImage, resizeImage, smartResize, type ImageSource } from '../../lib/model/image';

const BOUNDS = { factor: 28, minPixels: 3136, maxPixels: 1003520 };
let folder: string;
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-image-')); });
afterAll(() => rmSync(folder, { recursive: true }));

// Left red, right green, 3 wide and 2 high.
const ROW = [255, 0, 0, 9, 9, 9, 0, 255, 0];
const PIXELS = [...ROW, ...ROW];
const png = (): Promise<Buffer> => sharp(Uint8Array.from(PIXELS), { raw: { width: 3, height: 2, channels: 3 } }).png().toBuffer();
const rgb = { pixels: Uint8Array.from(PIXELS), height: 2, width: 3 };

// Values from the oracle's smart_resize; half-way cases round to even (42/28 = 1.5 -> 2, 70/28 = 2.5 -> 2).
test.each<[number, number, number, number]>([
  [42, 70, 56, 56], [97, 131, 84, 140], [14, 28, 56, 84], [641, 1023, 644, 1036], [4000, 3000, 1148, 840], [1, 200, 28, 812], [126, 154, 112, 168],
])('smartResize of %i x %i', (height, width, toHeight, toWidth) => {
  expect(smartResize(height, width, BOUNDS)).toEqual({ height: toHeight, width: toWidth });
});

test('smartResize refuses aspect ratios above 200 and sizes that are none', () => {
  expect(() => smartResize(1, 201, BOUNDS)).toThrow(expect.objectContaining({
    code: 'ERR_IMAGE', message: '[smartResize] Expected an image whose sides differ by a factor of at most 200 but received 201x1. Crop or pad it first.',
  }));
  expect(() => smartResize(0, 5, BOUNDS)).toThrow(expect.objectContaining({ code: 'ERR_RANGE' }));
});

test('every kind of source gives the same pixels', async () => {
  const bytes = await png();
  const path = join(folder, 'a b.png');
  writeFileSync(path, bytes);
  const sources: ImageSource[] = [
    path, pathToFileURL(path), pathToFileURL(path).href, bytes, new Uint8Array(bytes), `data:image/png;base64,${bytes.toString('base64')}`,
    `data:image/png,${[...bytes].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('')}`,
    { data: Uint8Array.from(PIXELS), width: 3, height: 2, channels: 3 },
  ];
  for (const source of sources) expect(await decodeImage(source)).toEqual(rgb);
});

test('the pixels are a copy', async () => {
  const data = Uint8Array.from(PIXELS);
  const image = await decodeImage({ data, width: 3, height: 2, channels: 3 });
  data.fill(1);
  expect(image).toEqual(rgb);
});

test('transparency lies over white, in files and in raw pixels', async () => {
  const data = Uint8Array.of(10, 20, 30, 0, 10, 20, 30, 255, 0, 100, 200, 128);
  const want = [255, 255, 255, 10, 20, 30, 127, 177, 227];
  expect([...(await decodeImage({ data, width: 3, height: 1, channels: 4 })).pixels]).toEqual(want);
  const file = await sharp(data, { raw: { width: 3, height: 1, channels: 4 } }).png().toBuffer();
  expect([...(await decodeImage(file)).pixels]).toEqual(want);
  expect([...(await decodeImage({ data: Uint8ClampedArray.of(7, 0, 8, 255), width: 2, height: 1, channels: 2 })).pixels]).toEqual([255, 255, 255, 8, 8, 8]);
});

test('grey, 16-bit and palette files become 8-bit RGB', async () => {
  const grey = Uint8Array.of(0, 100, 255, 7);
  const raw = { raw: { width: 2, height: 2, channels: 1 as const } };
  const want = [0, 0, 0, 100, 100, 100, 255, 255, 255, 7, 7, 7];
  expect([...(await decodeImage({ data: grey, width: 2, height: 2, channels: 1 })).pixels]).toEqual(want);
  expect([...(await decodeImage(await sharp(grey, raw).toColourspace('b-w').png().toBuffer())).pixels]).toEqual(want);
  expect([...(await decodeImage(await sharp(grey, raw).png({ palette: true }).toBuffer())).pixels]).toEqual(want);
  const deep = await sharp(Uint16Array.of(0, 25700, 65535, 1799), raw).toColourspace('grey16').png().toBuffer();
  expect((await sharp(deep).metadata()).depth).toBe('ushort');
  expect([...(await decodeImage(deep)).pixels]).toEqual(want);
});

test('EXIF orientation is applied: 6 turns a quarter to the right', async () => {
  const turned = await sharp(await png()).withMetadata({ orientation: 6 }).png().toBuffer();
  const image = await decodeImage(turned);
  expect([image.height, image.width]).toEqual([3, 2]);
  expect([...image.pixels.subarray(0, 3)]).toEqual([255, 0, 0]);
  expect([...image.pixels.subarray(-3)]).toEqual([0, 255, 0]);
});

test('a picture above the cap is refused by size, cap and option, before it is decoded', async () => {
  const bytes = await png();
  const message = 'to have at most maxInputPixels = 5 pixels but received 3x2 = 6. Make it smaller, or raise the option maxInputPixels.';
  await expect(decodeImage(bytes, { maxInputPixels: 5 })).rejects.toMatchObject({ code: 'ERR_IMAGE', message: `[image] Expected an image of ${bytes.length} bytes ${message}` });
  await expect(decodeImage({ data: Uint8Array.from(PIXELS), width: 3, height: 2, channels: 3 }, { maxInputPixels: 5 })).rejects.toMatchObject({ code: 'ERR_IMAGE' });
  // A header that claims 50,000 x 50,000 pixels.
  const bomb = Buffer.from(bytes);
  bomb.writeUInt32BE(50_000, 16);
  bomb.writeUInt32BE(50_000, 20);
  await expect(decodeImage(bomb)).rejects.toMatchObject({ code: 'ERR_IMAGE' });
});

test.each<[string, unknown, string]>([
  ['text', Buffer.from('this is no image'), 'ERR_IMAGE'], ['no bytes', new Uint8Array(0), 'ERR_IMAGE'], ['no such file', '/nowhere/none.png', 'ERR_IMAGE'],
  ['a folder', tmpdir(), 'ERR_IMAGE'], ['a web address', 'https://example.org/a.png', 'ERR_IMAGE'], ['an empty data URL', 'data:image/png;base64,', 'ERR_IMAGE'],
  ['a broken data URL', 'data:image/png,%zz', 'ERR_IMAGE'], ['a broken file URL', 'file://host/%00', 'ERR_IMAGE'], ['an empty path', '', 'ERR_ARGUMENT'],
  ['a number', 3, 'ERR_ARGUMENT'], ['null', null, 'ERR_ARGUMENT'], ['an object', {}, 'ERR_ARGUMENT'],
  ['a drawing', Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), 'ERR_IMAGE'], ['a device', '/dev/zero', 'ERR_IMAGE'],
  ['too few pixels', { data: new Uint8Array(5), width: 3, height: 2, channels: 3 }, 'ERR_SHAPE'],
  ['five channels', { data: new Uint8Array(5), width: 1, height: 1, channels: 5 }, 'ERR_RANGE'],
  ['a width of 0', { data: new Uint8Array(0), width: 0, height: 1, channels: 3 }, 'ERR_RANGE'],
  ['float pixels', { data: new Float32Array(3), width: 1, height: 1, channels: 3 }, 'ERR_DTYPE'],
])('%s is a typed error', async (_, source, code) => {
  await expect(decodeImage(source as ImageSource)).rejects.toMatchObject({ name: 'LibError', code });
});

test.each([null, {}, { maxInputPixels: NaN }, { maxInputPixels: 0 }, { maxInputPixels: 9, maxPixels: 9 }])('limits %p are refused', async (limits) => {
  await expect(decodeImage({ data: new Uint8Array(3), width: 1, height: 1, channels: 3 }, limits as never)).rejects.toMatchObject({ name: 'LibError' });
});

test.each([null, {}, { ...BOUNDS, factor: 0 }, { ...BOUNDS, minPixels: 2e6 }])('smartResize refuses bounds %p', (bounds) => {
  expect(() => smartResize(10, 10, bounds as never)).toThrow(expect.objectContaining({ name: 'LibError' }));
});

describe('a large picture with alpha', () => {
  const side = 2048;
  const raw = { data: Uint8Array.from({ length: 4 * side * side }, (_, i) => (i % 4 === 3 ? (i >> 10) & 255 : (i >> 2) & 255)), width: side, height: side, channels: 4 as const };

  test('is laid over white in slices, between which other work goes on', async () => {
    const copy = { ...raw, data: raw.data.slice() };
    let turns = 0, isDone = false;
    const turn = (): void => {
      turns++;
      copy.data.fill(9);   // what the caller does meanwhile does not matter
      if (!isDone) setImmediate(turn);
    };
    const decoding = decodeImage(copy);
    setImmediate(turn);
    const { pixels } = await decoding;
    isDone = true;
    expect(turns).toBeGreaterThan(10);   // 16 slices of 2^18 pixels
    const wrong = pixels.findIndex((value, at) => {
      const from = 4 * Math.floor(at / 3), alpha = raw.data[from + 3]!;
      return value !== Math.round((raw.data[from + (at % 3)]! * alpha + 255 * (255 - alpha)) / 255);
    });
    expect([pixels.length, wrong]).toEqual([3 * side * side, -1]);
  });

  test('stops at an abort with its reason', async () => {
    const controller = new AbortController(), reason = new Error('enough');
    setImmediate(() => controller.abort(reason));
    await expect(decodeImage(raw, { maxInputPixels: side * side, signal: controller.signal })).rejects.toBe(reason);
  });
});

test('a file cut short is ERR_IMAGE', async () => {
  const noise = Uint8Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) % 256);
  for (const format of ['png', 'jpeg', 'webp'] as const) {
    const bytes = await sharp(noise, { raw: { width: 64, height: 64, channels: 3 } })[format]().toBuffer();
    await expect(decodeImage(bytes.subarray(0, bytes.length >> 1))).rejects.toMatchObject({ code: 'ERR_IMAGE' });
  }
});

test('an aborted signal stops decoding and resizing with its reason', async () => {
  const reason = new Error('enough');
  const signal = AbortSignal.abort(reason);
  await expect(decodeImage(await png(), { maxInputPixels: 100, signal })).rejects.toBe(reason);
  await expect(resizeImage(rgb, { height: 28, width: 28 }, signal)).rejects.toBe(reason);
});

test('resizing to the same size gives the picture itself', async () => {
  expect(await resizeImage(rgb, { height: 2, width: 3 })).toBe(rgb);
});
