import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Sharp } from 'sharp';
import { array, integer, object, typedArray } from '../check';
import { fail } from '../errors';
import { loadSharp, type RgbImage } from '../model/image';
import { xmlText } from '../xml';
import type { DigitGridSample } from './digitGrid';

/** Writes a picture as a PNG file; its folder is made if missing. */
export async function writePicturePng(picture: RgbImage, path: string): Promise<void> {
  const image = rgb(picture);
  await mkdir(dirname(path), { recursive: true });
  await image.png().toFile(path);
}

/** A picture as the bytes of a PNG file. */
export async function picturePng(picture: RgbImage): Promise<Buffer> {
  return rgb(picture).png().toBuffer();
}

const MARGIN = 12;
const LINE_HEIGHT = 16;
/** Width of a bold character of the captions, with a little to spare. */
const CHARACTER_WIDTH = 8;

/**
 * Writes one PNG with many samples, each under its picture with question, steps and answer.
 *
 * @param columns samples beside each other, at least 1.
 */
export async function writeContactSheet(samples: readonly DigitGridSample[], path: string, columns = 4): Promise<void> {
  array('writeContactSheet', 'samples', samples);
  integer('writeContactSheet', 'columns', columns, 1, 100);
  if (samples.length === 0) fail('ERR_ARGUMENT', 'writeContactSheet', 'Expected at least one sample but received none');
  const captions = samples.map((sample) => [sample.question, ...sample.steps.map((step) => `· ${step}`), `answer ${sample.answer}`]);
  const cellWidth = Math.max(...samples.map(({ picture }) => picture.width), ...captions.flat().map((line) => line.length * CHARACTER_WIDTH)) + MARGIN;
  const pictureHeight = Math.max(...samples.map(({ picture }) => picture.height));
  const cellHeight = pictureHeight + Math.max(...captions.map((lines) => lines.length)) * LINE_HEIGHT + 2 * MARGIN;
  const width = Math.min(columns, samples.length) * cellWidth + MARGIN;
  const height = Math.ceil(samples.length / columns) * cellHeight + MARGIN;
  const places = samples.map((_, i) => ({ left: MARGIN + (i % columns) * cellWidth, top: MARGIN + Math.floor(i / columns) * cellHeight }));

  const texts = captions.flatMap((lines, i) => lines.map((line, row) => {
    const y = places[i]!.top + pictureHeight + (row + 1) * LINE_HEIGHT;
    const weight = row === 0 || row === lines.length - 1 ? 'bold' : 'normal';
    return `<text x="${places[i]!.left}" y="${y}" font-weight="${weight}">${xmlText(line)}</text>`;
  }));
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12">${texts.join('')}</svg>`;
  const pictures = samples.map(({ picture }, i) => ({
    input: Buffer.from(picture.pixels), raw: { width: picture.width, height: picture.height, channels: 3 as const }, ...places[i]!,
  }));
  await mkdir(dirname(path), { recursive: true });
  await loadSharp()({ create: { width, height, channels: 3, background: '#f4f4f0' } })
    .composite([...pictures, { input: Buffer.from(svg), left: 0, top: 0 }]).png().toFile(path);
}

function rgb(picture: RgbImage): Sharp {
  object('png', 'picture', picture);
  const { pixels, width, height } = picture;
  for (const side of ['width', 'height'] as const) integer('png', side, picture[side], 1, 65535);
  typedArray('png', 'pixels', pixels, 'Uint8Array', width * height * 3, 'width*height*3');
  return loadSharp()(pixels, { raw: { width, height, channels: 3 } });
}
