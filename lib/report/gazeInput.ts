/** Checks of what a gaze picture is drawn from: evidence may come from a file. */
import * as check from '../check';
import type { Box, Evidence, EvidenceImage, LatentEvidence, NearWord } from '../decode';
import { fail } from '../errors';
import type { RgbImage } from '../model/image';

const OP = 'gazePicture';
/** More panels are no picture that a person reads. */
const MAX_STEPS = 64;
/** Cells of a grid, each a rectangle per step. */
const MAX_CELLS = 16384;
/** Cells of all panels: the renderer takes a million elements. */
const MAX_DRAWN = 2 ** 18;
/** Characters of a text; what does not fit the picture is cut anyway. */
const MAX_TEXT = 65536;
const MAX_WORDS = 64;

export interface GazeTexts {
  question?: string;
  answer?: string;
  /** The right answer, shown beside a wrong one. */
  expected?: string;
  /** Marks the answer; without it there is no mark. */
  isRight?: boolean;
  /** Place in `evidence.images` of the picture that is given (default 0). */
  image?: number;
}

/** What one latent step looked at in one image. */
export interface Look {
  step: number;
  /** Row-major; empty when nothing was recorded. */
  saliency: readonly number[];
  /** Boxes of the replayed patches with their rank in the block, from 1. */
  patches: readonly { rank: number; box: Box }[];
  window: Box | undefined;
  words: readonly NearWord[];
}

export interface GazeInput {
  rows: number;
  columns: number;
  looks: Look[];
}

/** @param place of the image in `evidence.images`. */
export function checkedGaze(image: RgbImage, evidence: Evidence, place: number): GazeInput {
  checkImage(image);
  check.object(OP, 'evidence', evidence);
  if (evidence.version !== 1) fail('ERR_ARGUMENT', OP, `Expected evidence of version 1 but received ${check.show(evidence.version)}`);
  const images = check.array(OP, 'evidence.images', evidence.images) as readonly EvidenceImage[];
  const steps = check.array(OP, 'evidence.steps', evidence.steps) as readonly LatentEvidence[];
  if (images.length === 0 || steps.length === 0) {
    fail('ERR_ARGUMENT', OP, `Expected evidence with an image and a latent step but received ${images.length} image(s) and ${steps.length} step(s); generate with a picture, latent steps, a preset with replay, and evidence: true`);
  }
  if (steps.length > MAX_STEPS) fail('ERR_RANGE', OP, `Expected evidence of at most ${MAX_STEPS} latent steps but received ${steps.length}; give some of evidence.steps`);
  check.integer(OP, 'image', place, 0, images.length - 1);
  const of = checkedGrid(images[place], `evidence.images[${place}]`);
  if (of.height !== image.height || of.width !== image.width) {
    fail('ERR_SHAPE', OP, `Expected the picture that evidence.images[${place}] is about, ${of.width}x${of.height}, but received one of ${image.width}x${image.height}`);
  }
  check.integer(OP, 'the number of steps*rows*columns', steps.length * of.rows * of.columns, 1, MAX_DRAWN);
  return { rows: of.rows, columns: of.columns, looks: Array.from(steps, (step, n) => checkedLook(step, `evidence.steps[${n}]`, of, place, images.length)) };
}

function shortText(what: string, value: unknown): void {
  const { length } = check.string(OP, what, value);
  if (length > MAX_TEXT) fail('ERR_RANGE', OP, `Expected ${what} to have at most ${MAX_TEXT} characters but received ${length}`);
}

export function checkedTexts(texts: GazeTexts): void {
  check.options(OP, texts, ['question', 'answer', 'expected', 'isRight', 'image']);
  for (const key of ['question', 'answer', 'expected'] as const) if (texts[key] !== undefined) shortText(key, texts[key]);
  if (texts.isRight !== undefined) check.boolean(OP, 'isRight', texts.isRight);
}

function checkImage(image: RgbImage): void {
  check.object(OP, 'image', image);
  for (const side of ['width', 'height'] as const) check.integer(OP, `${side} of the picture`, image[side], 1, 65535);
  check.typedArray(OP, 'pixels of the picture', image.pixels, 'Uint8Array', image.width * image.height * 3, 'width*height*3');
}

function checkedGrid(image: unknown, what: string): EvidenceImage {
  const of = check.object(OP, what, image) as EvidenceImage;
  for (const side of ['height', 'width', 'rows', 'columns'] as const) check.integer(OP, `${what}.${side}`, of[side], 1, 65535);
  check.integer(OP, `${what}.rows*columns`, of.rows * of.columns, 1, MAX_CELLS);
  return of;
}

function checkedLook(given: unknown, what: string, of: EvidenceImage, place: number, images: number): Look {
  const { step, saliency, replayed, window, words } = check.object(OP, what, given) as LatentEvidence;
  check.integer(OP, `${what}.step`, step, 1);
  const grids = check.array(OP, `${what}.saliency`, saliency);
  const own = grids.length === 0 ? [] : (check.array(OP, `${what}.saliency[${place}]`, grids[place]) as readonly number[]);
  if (own.length !== 0 && own.length !== of.rows * of.columns) {
    fail('ERR_SHAPE', OP, `Expected ${what}.saliency[${place}] to have rows*columns = ${of.rows * of.columns} elements but received ${own.length}`);
  }
  Array.from(own).forEach((value, cell) => check.number(OP, `${what}.saliency[${place}][${cell}]`, value, 0));
  check.integer(OP, `${what}.replayed.length`, check.array(OP, `${what}.replayed`, replayed).length, 0, MAX_CELLS);
  const patches = Array.from(replayed, (patch, n) => ({ rank: n + 1, box: placed(patch, `${what}.replayed[${n}]`, of, place, images) }));
  check.integer(OP, `${what}.words.length`, check.array(OP, `${what}.words`, words).length, 0, MAX_WORDS);
  Array.from(words).forEach((word, n) => {
    check.object(OP, `${what}.words[${n}]`, word);
    check.integer(OP, `${what}.words[${n}].id`, word.id, 0);
    if (word.text !== undefined) shortText(`${what}.words[${n}].text`, word.text);
    check.number(OP, `${what}.words[${n}].probability`, word.probability, 0, 1);
  });
  return {
    step, words, saliency: own, patches: patches.filter((patch): patch is { rank: number; box: Box } => patch.box !== undefined),
    window: window === undefined ? undefined : placed(window, `${what}.window`, of, place, images),
  };
}

/** The box of a patch or window of this image; undefined when it is of another one. */
function placed(given: unknown, what: string, of: EvidenceImage, place: number, images: number): Box | undefined {
  const { image, box } = check.object(OP, what, given) as { image: number; box: Box };
  if (check.integer(OP, `${what}.image`, image, 0, images - 1) !== place) return undefined;
  if (check.array(OP, `${what}.box`, box).length !== 4) fail('ERR_SHAPE', OP, `Expected ${what}.box to have 4 elements but received ${box.length}`);
  const [x1, y1, x2, y2] = box;
  check.integer(OP, `${what}.box[0]`, x1, 0, of.width - 1);
  check.integer(OP, `${what}.box[1]`, y1, 0, of.height - 1);
  check.integer(OP, `${what}.box[2]`, x2, x1 + 1, of.width);
  check.integer(OP, `${what}.box[3]`, y2, y1 + 1, of.height);
  return box;
}
