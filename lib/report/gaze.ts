/** A picture of what a model looked at while it reasoned. */
import type { Evidence } from '../decode';
import { loadSharp, type RgbImage } from '../model/image';
import { checkedGaze, checkedTexts, type GazeTexts } from './gazeInput';
import { drawGaze, layoutOf } from './gazeSvg';

/** From this enlargement on pixels stay squares: smoothing would hide how little there is to see. */
const SQUARES_FROM = 2;

/**
 * Draws the picture, and beside it one panel per latent step: attention as heat (from the step's least to its greatest), the replayed
 * patches outlined and numbered best first, the window of spatial coherence outlined, the words nearest to the latent below. Machines
 * without fonts leave out the texts alone.
 *
 * @param image the picture as it was given (as it was resized, where `crop` of the preset is 'official'), RGB [height, width, 3]; copied.
 * @param evidence of `generate` with `evidence: true`; at most 64 latent steps.
 * @param texts what stands below; `image` chooses among several pictures.
 * @returns the bytes of a PNG file.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_SHAPE`, `ERR_DTYPE` naming what is wrong; `ERR_UNSUPPORTED` without the package sharp.
 * @example
 * const { evidence, text } = await model.generate({ messages }, { evidence: true });
 * await writeFile('gaze.png', await gazePicture(await decodeImage('grid.png'), evidence, { answer: text }));
 */
export async function gazePicture(image: RgbImage, evidence: Evidence, texts: GazeTexts = {}): Promise<Buffer> {
  checkedTexts(texts);
  const gaze = checkedGaze(image, evidence, texts.image ?? 0);
  const layout = layoutOf(image, gaze, texts);
  const { scale, panel, places, width, height } = layout;
  const sharp = loadSharp();
  const source = sharp(Buffer.from(image.pixels), { raw: { width: image.width, height: image.height, channels: 3 } });
  const enlarged = await source.resize(panel.width, panel.height, { fit: 'fill', kernel: scale >= SQUARES_FROM ? 'nearest' : 'lanczos3' }).raw().toBuffer();
  const grey = greyOf(enlarged);
  const raw = { ...panel, channels: 3 as const };
  return sharp({ create: { width, height, channels: 3, background: '#ffffff' } }).composite([
    ...places.map((place, n) => ({ input: n === 0 ? enlarged : grey, raw, ...place })),
    { input: Buffer.from(drawGaze(gaze, layout, texts)), left: 0, top: 0 },
  ]).png().toBuffer();
}

/** Without colours of its own a picture shows those of heat and outlines. */
function greyOf(rgb: Buffer): Buffer {
  const grey = Buffer.alloc(rgb.length);
  for (let i = 0; i < rgb.length; i += 3) grey.fill(Math.round(0.299 * rgb[i]! + 0.587 * rgb[i + 1]! + 0.114 * rgb[i + 2]!), i, i + 3);
  return grey;
}
