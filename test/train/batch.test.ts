import { packBatch, packPictures, runBatch, type SequenceInput } from '../../lib/train/batch';
import { END, fakeModel, GEOMETRY, picture } from '../decode/fakeModel';

const IMAGE = GEOMETRY.imageToken;
// 0 latents with a picture; 2 latents without; 1 latent, two pictures, no words.
const sequences: SequenceInput[] = [
  { promptIds: [1, IMAGE, IMAGE, 2], pictures: [picture(1, 2)], latents: 0, words: [5, 6, END] },
  { promptIds: [3], pictures: [], latents: 2, words: [7, END] },
  { promptIds: [4, IMAGE, 4, IMAGE, IMAGE], pictures: [picture(1, 1), picture(2, 1)], latents: 1, words: [] },
];
const options = { feedLastWord: true, firstVisualRow: 10 };

function plain(values: ArrayLike<number> | undefined): number[] {
  return Array.from(values ?? []);
}

describe('packBatch', () => {
  const { passes, targets } = packBatch(sequences, [50, 51, 52], GEOMETRY, options);
  test('pass 0 holds prompts, and the words of sequences without latents', () => {
    const [pass] = passes;
    expect(plain(pass!.sequences)).toEqual([50, 51, 52]);
    expect(plain(pass!.cuSeqlens)).toEqual([0, 7, 8, 13]);
    expect(plain(pass!.kind)).toEqual([0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1]);
    expect(plain(pass!.index)).toEqual([1, 10, 11, 2, 5, 6, END, 3, 4, 12, 4, 13, 14]);
    expect(plain(pass!.positions)).toEqual([
      0, 1, 1, 3, 4, 5, 6, 0, 0, 1, 2, 3, 3,
      0, 1, 1, 3, 4, 5, 6, 0, 0, 1, 2, 3, 4,
      0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 3, 3,
    ]);
  });
  test('pass t holds the t-th latents, and the words of sequences whose last it is', () => {
    expect(passes.length).toBe(3);
    expect(plain(passes[1]!.sequences)).toEqual([51, 52]);
    expect(plain(passes[1]!.kind)).toEqual([2, 2]);
    expect(plain(passes[1]!.positions)).toEqual([1, 5, 1, 5, 1, 5]);
    expect(plain(passes[2]!.sequences)).toEqual([51]);
    expect(plain(passes[2]!.kind)).toEqual([2, 0, 0]);
    expect(plain(passes[2]!.index)).toEqual([0, 7, END]);
    expect(plain(passes[2]!.positions)).toEqual([2, 3, 4, 2, 3, 4, 2, 3, 4]);
  });
  test('each word is predicted by the row before it', () => {
    expect(plain(targets.pass)).toEqual([0, 0, 0, 2, 2]);
    expect(plain(targets.row)).toEqual([3, 4, 5, 0, 1]);
    expect(plain(targets.target)).toEqual([5, 6, END, 7, END]);
    expect(plain(targets.sequence)).toEqual([0, 0, 0, 1, 1]);
  });
  test('the last word may be left out: the same targets, one row less per sequence with words', () => {
    const short = packBatch(sequences, [50, 51, 52], GEOMETRY, { ...options, feedLastWord: false });
    expect(short.targets).toEqual(targets);
    expect(short.passes.map(({ kind }) => kind.length)).toEqual([12, 2, 2]);
  });
  test('n latents add exactly n rows', () => {
    const rows = (latents: number): number => packBatch([{ ...sequences[0]!, latents }], [0], GEOMETRY, options).passes
      .reduce((sum, { kind }) => sum + kind.length, 0);
    for (const n of [0, 1, 5, 33]) expect(rows(n)).toBe(rows(0) + n);
  });
  test('pictures of all sequences are encoded in one call, in order', () => {
    expect(plain(packPictures(sequences).sizes)).toEqual([1, 28, 56, 1, 28, 28, 1, 56, 28]);
    expect(packPictures(sequences).frames.length).toBe(5 * 28 * 28 * 3);
  });
  test.each<[string, SequenceInput[], string, string]>([
    ['no sequences', [], 'ERR_ARGUMENT', '[packBatch] Expected at least one sequence but received none'],
    ['an empty prompt', [{ ...sequences[1]!, promptIds: [] }], 'ERR_ARGUMENT', '[packBatch] Expected the prompt of sequence 0 to have at least one token but received none'],
    ['an id out of range', [{ ...sequences[1]!, promptIds: [1, 32] }], 'ERR_RANGE', '[packBatch] Expected prompt token of sequence 0, 1 to be an integer from 0 to 31 but received 32'],
    ['a negative word', [{ ...sequences[1]!, words: [-1] }], 'ERR_RANGE', '[packBatch] Expected word of sequence 0, 0 to be an integer from 0 to 31 but received -1'],
    ['a missing picture', [{ ...sequences[0]!, pictures: [] }], 'ERR_SHAPE', '[packBatch] Expected the prompt of sequence 0 to have 0 picture tokens, one per merged patch of its 0 picture(s), but received 2'],
    ['a picture of another size', [{ ...sequences[0]!, pictures: [picture(3, 1)] }], 'ERR_SHAPE', '[packBatch] Expected the prompt of sequence 0 to have 3 picture tokens, one per merged patch of its 1 picture(s), but received 2'],
    ['a side that is no multiple', [{ ...sequences[0]!, pictures: [{ ...picture(1, 2), height: 27 }] }], 'ERR_SHAPE', '[packBatch] Expected height of picture 0 of sequence 0 to be a multiple of 28 but received 27; resize it with the processor'],
    ['too few pixels', [{ ...sequences[0]!, pictures: [{ ...picture(1, 2), pixels: new Uint8Array(3) }] }], 'ERR_SHAPE', '[packBatch] Expected pixels of picture 0 of sequence 0 to have frames*height*width*3 = 4704 elements but received 3'],
    ['a picture that is none', [{ ...sequences[0]!, pictures: [null as never] }], 'ERR_ARGUMENT', '[packBatch] Expected picture 0 of sequence 0 to be an object but received null'],
    ['more latents than memory', [{ ...sequences[1]!, latents: 1e9 }], 'ERR_RANGE', '[packBatch] Expected latents of sequence 0 to be an integer from 0 to 65536 but received 1000000000'],
    ['negative latents', [{ ...sequences[0]!, latents: -1 }], 'ERR_RANGE', '[packBatch] Expected latents of sequence 0 to be an integer from 0 to 65536 but received -1'],
  ])('refuses %s', (_, bad, code, message) => {
    expect.assertions(1);
    try {
      packBatch(bad, [0], GEOMETRY, options);
    } catch (error) {
      expect(error).toMatchObject({ code, message });
    }
  });
});

test('runBatch encodes, runs every pass and gives targets the numbers of the session', async () => {
  const model = fakeModel();
  model.passes.push(...new Array(4));   // the session's next pass is number 4
  const { results, targets } = await runBatch(model.openSession({ training: true, recompute: false, detachLatents: false, visionGradient: true }), sequences, GEOMETRY);
  expect(results.map(({ pass }) => pass)).toEqual([4, 5, 6]);
  expect(plain(targets.pass)).toEqual([4, 4, 4, 6, 6]);
  expect(model.encoded.map(plain)).toEqual([[1, 28, 56, 1, 28, 28, 1, 56, 28]]);
});
