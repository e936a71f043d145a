/** What a model looked at, as a picture: pixels where they should be, with and without fonts, whatever the texts. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import type { Box, Evidence, LatentEvidence } from '../../lib/decode';
import type { RgbImage } from '../../lib/model/image';
import { gazePicture, type GazeTexts } from '../../lib/report';

const CELL = 28;
/** 3 x 3 cells of 28 pixels become 252 pixels: cell 84. The first panel is the picture. */
const IMAGE = black(84, 84);
const PANEL = { top: 46, width: 272, left: 20, side: 252, cell: 84 };
const HEAT = [255, 106, 0];
const PATCH = [0, 194, 255];
const WINDOW = [57, 230, 0];
const BLACK = [0, 0, 0];

function black(height: number, width: number): RgbImage {
  return { pixels: new Uint8Array(height * width * 3), height, width };
}

function box(row: number, column: number, height = 1, width = height): Box {
  return [CELL * column, CELL * row, CELL * (column + width), CELL * (row + height)];
}

function step(number: number, changes: Partial<LatentEvidence> = {}): LatentEvidence {
  return {
    step: number, saliency: [[0, 0, 0, 0, 0, 0.4, 0, 0, 0.2]],
    replayed: [{ image: 0, row: 1, column: 2, weight: 1.2, box: box(1, 2) }, { image: 0, row: 2, column: 2, weight: 0.8, box: box(2, 2) }],
    window: { image: 0, row: 1, column: 1, height: 2, width: 2, patches: 2, box: box(1, 1, 2) },
    words: [{ id: 7, text: ' 7', probability: 0.75 }, { id: 8, probability: 0.2 }], ...changes,
  };
}

function evidenceOf(steps: LatentEvidence[], changes: Partial<Evidence> = {}): Evidence {
  return { version: 1, images: [{ picture: 0, rows: 3, columns: 3, height: 84, width: 84 }], steps, routing: [], ...changes };
}

interface Drawn {
  width: number;
  height: number;
  at(x: number, y: number): number[];
  /** Of panel `n` (0: the picture alone). */
  panel(n: number, x: number, y: number): number[];
}

async function decoded(png: Buffer): Promise<Drawn> {
  const { data, info } = await sharp(png).removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const at = (x: number, y: number): number[] => [...data.subarray((y * info.width + x) * 3, (y * info.width + x) * 3 + 3)];
  return { width: info.width, height: info.height, at, panel: (n, x, y) => at(PANEL.left + n * PANEL.width + x, PANEL.top + y) };
}

async function drawn(evidence: Evidence, texts: GazeTexts = {}, image = IMAGE): Promise<Drawn> {
  return decoded(await gazePicture(image, evidence, texts));
}

/** Colours within what anti-aliasing and rounding change. */
function near(colour: number[], wanted: readonly number[]): boolean {
  return colour.every((channel, n) => Math.abs(channel - wanted[n]!) <= 3);
}

/** Heat of a cell over black, at its share of the step's range. */
const heated = (share: number): number[] => HEAT.map((channel) => channel * 0.72 * share);

describe('pixels', () => {
  test('the window is outlined at its border, patches within theirs, heat by the step', async () => {
    const { panel } = await drawn(evidenceOf([step(1)]));
    const { cell, side } = PANEL;
    for (const along of [10, 84, 150]) {
      expect(near(panel(1, cell + 2, cell + along), WINDOW)).toBe(true);
      expect(near(panel(1, side - 2, cell + along), WINDOW)).toBe(true);
      expect(near(panel(1, cell + along, cell + 1), WINDOW)).toBe(true);
      expect(near(panel(1, cell + along, side - 2), WINDOW)).toBe(true);
    }
    expect(near(panel(1, cell - 3, 2 * cell), BLACK)).toBe(true);
    for (const row of [1, 2]) expect(near(panel(1, side - 9, row * cell + 40), PATCH)).toBe(true);
    expect(near(panel(1, cell - 9, 40), BLACK)).toBe(true);
    expect(near(panel(1, 2 * cell + 50, cell + 50), heated(1))).toBe(true);
    expect(near(panel(1, 2 * cell + 50, 2 * cell + 50), heated(0.5))).toBe(true);
    expect(near(panel(1, 40, 40), BLACK)).toBe(true);
  });
  test('the first panel is the picture itself, the others are grey', async () => {
    const red = black(84, 84);
    for (let i = 0; i < red.pixels.length; i += 3) red.pixels[i] = 200;
    const { panel } = await drawn(evidenceOf([step(1), step(2)]), {}, red);
    expect(panel(0, 100, 100)).toEqual([200, 0, 0]);
    for (const n of [1, 2]) expect(panel(n, 40, 40)).toEqual([60, 60, 60]);
  });
  test('one panel per step, in lines', async () => {
    const sizes = await Promise.all([1, 4, 5].map(async (count) => drawn(evidenceOf(Array.from({ length: count }, (_, n) => step(n + 1))))));
    expect(sizes.map(({ width }) => width)).toEqual([900, 1380, 1380]);
    expect(sizes[2]!.height - sizes[1]!.height).toBe(26 + 252 + 3 * 21 + 20);
    expect(near(sizes[2]!.at(20 + PANEL.cell + 2, 46 + 361 + 100), WINDOW)).toBe(true);
  });
  test('even attention is no heat; a step without replay is the picture', async () => {
    const { panel } = await drawn(evidenceOf([step(1, { saliency: [new Array<number>(9).fill(0.1)], replayed: [] }), step(2, { saliency: [], replayed: [] })].map(({ window: _, ...rest }) => rest)));
    for (const n of [1, 2]) for (const place of [1, 40, 84, 130, 250]) expect(panel(n, place, place)).toEqual(BLACK);
  });
  test('right and wrong have marks that need no fonts', async () => {
    const mark = ({ at, height }: Drawn): number[][] => Array.from({ length: 20 * 20 }, (_, n) => at(20 + (n % 20), height - 20 - 2 * 28 + 4 + Math.floor(n / 20)));
    const count = (pixels: number[][], wanted: number[]): number => pixels.filter((pixel) => near(pixel, wanted)).length;
    const [right, wrong, none] = await Promise.all([{ isRight: true }, { isRight: false, expected: '3' }, {}].map(async (texts) => mark(await drawn(evidenceOf([step(1)]), { answer: '7', ...texts }))));
    expect(count(right!, [18, 138, 58])).toBeGreaterThan(30);
    expect(count(wrong!, [198, 40, 40])).toBeGreaterThan(30);
    expect(count(none!, [18, 138, 58]) + count(none!, [198, 40, 40])).toBe(0);
  });
});

describe('several pictures', () => {
  const images = [{ picture: 0, rows: 3, columns: 3, height: 84, width: 84 }, { picture: 2, rows: 1, columns: 2, height: 30, width: 61 }];
  const both = step(1, {
    saliency: [new Array<number>(9).fill(0.1), [0.05, 0.1]], replayed: [{ image: 1, row: 0, column: 1, weight: 1, box: [30, 0, 61, 30] }, { image: 0, row: 0, column: 0, weight: 1, box: box(0, 0) }],
    window: { image: 1, row: 0, column: 0, height: 1, width: 2, patches: 1, box: [0, 0, 61, 30] },
  });
  test('each shows its own heat, patches and window', async () => {
    const first = await drawn(evidenceOf([both], { images }));
    expect(near(first.panel(1, 75, 40), PATCH)).toBe(true);
    expect(near(first.panel(1, 2, 150), BLACK)).toBe(true);
    const second = await drawn(evidenceOf([both], { images }), { image: 1 }, black(30, 61));
    expect(near(second.panel(1, 2, 60), WINDOW)).toBe(true);
    expect(near(second.panel(1, 200, 60), heated(1))).toBe(true);
    expect(near(second.panel(1, 60, 60), BLACK)).toBe(true);
  });
  test('of another size than the evidence says: an error', async () => {
    await expect(gazePicture(IMAGE, evidenceOf([both], { images }), { image: 1 })).rejects.toMatchObject({
      code: 'ERR_SHAPE', message: '[gazePicture] Expected the picture that evidence.images[1] is about, 61x30, but received one of 84x84',
    });
  });
});

describe('texts', () => {
  const HOSTILE: [what: string, text: string][] = [
    ['markup', '</text><rect width="9999" height="9999" fill="red"/>'], ['entities', '&amp;&#0;<!--'], ['what XML cannot hold', '\u0000\u0008\uD800 half'],
    ['ends and quotes', ']]>"\''], ['length', 'x'.repeat(5000)], ['newlines', '\n\n'], ['right to left, and a face', '\u202E\u{1F600}'],
  ];
  test.each(HOSTILE)('%s: text and nothing else', async (_, text) => {
    const plain = await drawn(evidenceOf([step(1)]));
    const drawing = await drawn(evidenceOf([step(1, { words: [{ id: 1, text, probability: 1 }] })]), { question: text, answer: text, expected: text, isRight: false });
    for (const [x, y] of [[40, 40], [86, 150], [200, 200]] as const) expect(drawing.panel(1, x, y)).toEqual(plain.panel(1, x, y));
    expect(drawing.at(drawing.width - 1, drawing.height - 1)).toEqual([255, 255, 255]);
  });
  test('a machine without fonts draws heat and outlines all the same', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'plumbline-gaze-'));
    try {
      writeFileSync(join(folder, 'fonts.conf'), '<?xml version="1.0"?><fontconfig></fontconfig>');
      writeFileSync(join(folder, 'input.json'), JSON.stringify(evidenceOf([step(1)])));
      const script = `
        const { transpileModule } = require(${JSON.stringify(require.resolve('typescript'))});
        require.extensions['.ts'] = (module, file) => module._compile(transpileModule(require('fs').readFileSync(file, 'utf8'), { compilerOptions: { module: 1, target: 9, esModuleInterop: true } }).outputText, file);
        const { gazePicture } = require(${JSON.stringify(join(__dirname, '../../lib/report/index.ts'))});
        const evidence = JSON.parse(require('fs').readFileSync('input.json', 'utf8'));
        gazePicture({ pixels: new Uint8Array(84 * 84 * 3), height: 84, width: 84 }, evidence, { question: 'sum of row 2', answer: '7', isRight: true })
          .then((png) => require('fs').writeFileSync('gaze.png', png));`;
      const { status, stderr } = spawnSync(process.execPath, ['-e', script], { cwd: folder, encoding: 'utf8', env: { ...process.env, FONTCONFIG_FILE: join(folder, 'fonts.conf'), FONTCONFIG_PATH: folder } });
      expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
      const { panel } = await decoded(readFileSync(join(folder, 'gaze.png')));
      expect(near(panel(1, PANEL.cell + 2, 150), WINDOW)).toBe(true);
      expect(near(panel(1, PANEL.side - 9, PANEL.cell + 40), PATCH)).toBe(true);
      expect(near(panel(1, 218, 134), heated(1))).toBe(true);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('misuse', () => {
  const good = evidenceOf([step(1)]);
  const patch = (changes: object): Evidence => evidenceOf([step(1, { replayed: [{ image: 0, row: 0, column: 0, weight: 1, box: box(0, 0), ...changes }] })]);
  const cases: [what: string, image: unknown, evidence: unknown, texts: unknown, code: string, message: string][] = [
    ['no picture', null, good, {}, 'ERR_ARGUMENT', 'Expected image to be an object but received null'],
    ['a picture without area', { pixels: new Uint8Array(0), width: 0, height: 1 }, good, {}, 'ERR_RANGE', 'Expected width of the picture to be an integer from 1 to 65535 but received 0'],
    ['too few pixels', { pixels: new Uint8Array(5), width: 1, height: 2 }, good, {}, 'ERR_SHAPE', 'Expected pixels of the picture to have width*height*3 = 6 elements but received 5'],
    ['pixels of another kind', { pixels: new Float32Array(3), width: 1, height: 1 }, good, {}, 'ERR_DTYPE', 'Expected pixels of the picture to be a Uint8Array but received Float32Array(3)'],
    ['no evidence', IMAGE, undefined, {}, 'ERR_ARGUMENT', 'Expected evidence to be an object but received undefined'],
    ['evidence of another version', IMAGE, { ...good, version: 2 }, {}, 'ERR_ARGUMENT', 'Expected evidence of version 1 but received 2'],
    ['no image', IMAGE, { ...good, images: [] }, {}, 'ERR_ARGUMENT', 'Expected evidence with an image and a latent step but received 0 image(s) and 1 step(s); generate with a picture, latent steps, a preset with replay, and evidence: true'],
    ['no step', IMAGE, evidenceOf([]), {}, 'ERR_ARGUMENT', 'Expected evidence with an image and a latent step but received 1 image(s) and 0 step(s); generate with a picture, latent steps, a preset with replay, and evidence: true'],
    ['too many steps', IMAGE, evidenceOf(Array.from({ length: 65 }, (_, n) => step(n + 1))), {}, 'ERR_RANGE', 'Expected evidence of at most 64 latent steps but received 65; give some of evidence.steps'],
    ['an image that is not there', IMAGE, good, { image: 1 }, 'ERR_RANGE', 'Expected image to be an integer from 0 to 0 but received 1'],
    ['a grid of too many cells', IMAGE, { ...good, images: [{ picture: 0, rows: 200, columns: 200, height: 84, width: 84 }] }, {}, 'ERR_RANGE', 'Expected evidence.images[0].rows*columns to be an integer from 1 to 16384 but received 40000'],
    ['attention of another grid', IMAGE, evidenceOf([step(1, { saliency: [[1, 2]] })]), {}, 'ERR_SHAPE', 'Expected evidence.steps[0].saliency[0] to have rows*columns = 9 elements but received 2'],
    ['attention that is no number', IMAGE, evidenceOf([step(1, { saliency: [new Array<number>(9).fill(NaN)] })]), {}, 'ERR_RANGE', 'Expected evidence.steps[0].saliency[0][0] to be a number of at least 0 but received NaN'],
    ['a box outside', IMAGE, patch({ box: [0, 0, 85, 28] }), {}, 'ERR_RANGE', 'Expected evidence.steps[0].replayed[0].box[2] to be an integer from 1 to 84 but received 85'],
    ['a box of three', IMAGE, patch({ box: [0, 0, 1] }), {}, 'ERR_SHAPE', 'Expected evidence.steps[0].replayed[0].box to have 4 elements but received 3'],
    ['a patch of no image', IMAGE, patch({ image: 3 }), {}, 'ERR_RANGE', 'Expected evidence.steps[0].replayed[0].image to be an integer from 0 to 0 but received 3'],
    ['a word without probability', IMAGE, evidenceOf([step(1, { words: [{ id: 1 } as never] })]), {}, 'ERR_ARGUMENT', 'Expected evidence.steps[0].words[0].probability to be a number from 0 to 1 but received undefined'],
    ['more patches than tokens', IMAGE, evidenceOf([step(1, { replayed: new Array(16385).fill({ image: 0, row: 0, column: 0, weight: 1, box: box(0, 0) }) as never })]), {}, 'ERR_RANGE', 'Expected evidence.steps[0].replayed.length to be an integer from 0 to 16384 but received 16385'],
    ['more than a renderer draws', { pixels: new Uint8Array(3 * 128 * 128), width: 128, height: 128 }, { ...evidenceOf(Array.from({ length: 17 }, (_, n) => step(n + 1))), images: [{ picture: 0, rows: 128, columns: 128, height: 128, width: 128 }] }, {}, 'ERR_RANGE', 'Expected the number of steps*rows*columns to be an integer from 1 to 262144 but received 278528'],
    ['steps with holes', IMAGE, { ...good, steps: new Array(2) }, {}, 'ERR_ARGUMENT', 'Expected evidence.steps[0] to be an object but received undefined'],
    ['a text without end', IMAGE, good, { question: 'x'.repeat(65537) }, 'ERR_RANGE', 'Expected question to have at most 65536 characters but received 65537'],
    ['a question that is no string', IMAGE, good, { question: 7 }, 'ERR_ARGUMENT', 'Expected question to be a string but received 7'],
    ['an unknown text', IMAGE, good, { anser: '7' }, 'ERR_ARGUMENT', "Expected options among question, answer, expected, isRight, image but received 'anser'; did you mean 'answer'?"],
  ];
  test.each(cases)('%s', async (_, image, evidence, texts, code, message) => {
    await expect(gazePicture(image as never, evidence as never, texts as never)).rejects.toMatchObject({ code, message: `[gazePicture] ${message}` });
  });
});
