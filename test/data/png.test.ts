import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { picturePng, sampleAt, writeContactSheet, writePicturePng } from '../../lib/data';

let dir: string;
beforeAll(() => { dir = mkdtempSync(join(tmpdir(), 'plumbline-png-')); });
afterAll(() => rmSync(dir, { recursive: true }));

test('a picture comes back from its PNG file byte for byte', async () => {
  const { picture } = sampleAt({ rows: 3, columns: 5 }, 1);
  const path = join(dir, 'new', 'sample.png');
  await writePicturePng(picture, path);
  for (const source of [path, await picturePng(picture)]) {
    const { data, info } = await sharp(source).raw().toBuffer({ resolveWithObject: true });
    expect([info.height, info.width, info.channels]).toEqual([84, 140, 3]);
    expect(data.equals(picture.pixels)).toBe(true);
  }
});

test('a contact sheet holds every picture and a caption below each', async () => {
  const samples = Array.from({ length: 5 }, (_, index) => sampleAt({ rows: [2, 4], columns: [2, 4] }, index));
  const path = join(dir, 'sheet.png');
  await writeContactSheet(samples, path, 3);
  const { data, info } = await sharp(path).removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const cellWidth = (info.width - 12) / 3;
  const cellHeight = (info.height - 12) / 2;
  expect([cellWidth % 1, cellHeight % 1]).toEqual([0, 0]);
  const tallest = Math.max(...samples.map(({ picture }) => picture.height));
  samples.forEach(({ picture }, i) => {
    const left = 12 + (i % 3) * cellWidth;
    const top = 12 + Math.floor(i / 3) * cellHeight;
    for (let y = 0; y < picture.height; y++) {
      const from = ((top + y) * info.width + left) * 3;
      const line = data.subarray(from, from + picture.width * 3);
      expect(line.equals(picture.pixels.subarray(y * picture.width * 3, (y + 1) * picture.width * 3))).toBe(true);
    }
    const first = data.subarray((top + tallest + 2) * info.width * 3, (top + tallest + 18) * info.width * 3);
    let dark = 0;
    for (let y = 0; y < 16; y++) for (let x = left; x < left + 60; x++) dark += Number(first[(y * info.width + x) * 3]! < 100);
    expect(dark).toBeGreaterThan(30);
  });
});

test('a contact sheet of nothing is an error', async () => {
  await expect(writeContactSheet([], join(dir, 'none.png'))).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: '[writeContactSheet] Expected at least one sample but received none',
  });
  await expect(writeContactSheet([sampleAt({}, 0)], join(dir, 'none.png'), 0)).rejects.toMatchObject({
    code: 'ERR_RANGE', message: '[writeContactSheet] Expected columns to be an integer from 1 to 100 but received 0',
  });
});

test.each([null, {}, { pixels: new Uint8Array(3), width: 1, height: 2 }, { pixels: new Uint8Array(0), width: 0, height: 1 }])('%p is no picture', async (picture) => {
  await expect(picturePng(picture as never)).rejects.toMatchObject({ name: 'LibError' });
});
