import { patchRows } from '../../lib/kernels';
import { expectClose, refuses } from './support';

const MEAN = [0.48145466, 0.4578275, 0.40821073];
const STD = [0.26862954, 0.26130258, 0.27577711];

/** Row order: time, merge blocks row-major, patches of a block row-major; column order: channel, frame, y, x. */
function reference(pixels: Uint8Array, frames: number, height: number, width: number, patch: number, merge: number, temporal: number): number[] {
  const out: number[] = [];
  const block = patch * merge;
  for (let time = 0; time < Math.ceil(frames / temporal); time++)
    for (let top = 0; top < height; top += block) for (let left = 0; left < width; left += block)
      for (let a = 0; a < merge; a++) for (let b = 0; b < merge; b++)
        for (let channel = 0; channel < 3; channel++) for (let frame = 0; frame < temporal; frame++)
          for (let y = 0; y < patch; y++) for (let x = 0; x < patch; x++) {
            const from = Math.min(time * temporal + frame, frames - 1);
            const at = ((from * height + top + a * patch + y) * width + left + b * patch + x) * 3 + channel;
            out.push((pixels[at]! / 255 - MEAN[channel]!) / STD[channel]!);
          }
  return out;
}

test.each([[1, 28, 28, 14, 2, 2], [1, 56, 84, 14, 2, 2], [3, 28, 56, 14, 2, 2], [2, 12, 6, 3, 2, 1], [5, 8, 8, 4, 1, 3]])('%i frames of %i x %i, patch %i, merge %i, temporal %i', async (frames, height, width, patch, merge, temporal) => {
  const pixels = Uint8Array.from({ length: frames * height * width * 3 }, (_, i) => (i * 7919 + (i >> 3)) % 256);
  const rows = await patchRows(pixels, { frames, height, width, patch, merge, temporal });
  expectClose(rows, reference(pixels, frames, height, width, patch, merge, temporal));
});

test('misuse', async () => {
  const pixels = new Uint8Array(28 * 28 * 3);
  const good = { frames: 1, height: 28, width: 28 };
  await refuses(patchRows(pixels, { ...good, height: 42 }), 'ERR_SHAPE', '[patchRows] Expected height to be a multiple of patch*merge = 28 but received 42');
  await refuses(patchRows(pixels, { ...good, width: 56 }), 'ERR_SHAPE', '[patchRows] Expected pixels to have frames*height*width*3 = 4704 elements but received 2352');
  await refuses(patchRows(pixels, { ...good, std: [1, 0, 1] }), 'ERR_RANGE', '[patchRows] Expected std to be above 0 but received 1, 0, 1');
  await refuses(patchRows(pixels, { ...good, mean: [1, 2] }), 'ERR_ARGUMENT', '[patchRows] Expected mean to be an array of 3 numbers but received Array(2)');
  await refuses(patchRows(pixels, { ...good, frames: 0 }), 'ERR_RANGE', '[patchRows] Expected frames to be an integer from 1 to 65536 but received 0');
});
