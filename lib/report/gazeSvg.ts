/** Layout and overlay of a gaze picture. */
import type { Box, NearWord } from '../decode';
import type { RgbImage } from '../model/image';
import { xmlText } from '../xml';
import type { GazeInput, GazeTexts, Look } from './gazeInput';

/** Longest side of a panel: of few cells, and at most. */
const PANEL = 252;
const LARGEST_PANEL = 504;
/** Smaller cells would be too small for outlines. */
const CELL = 20;
const MARGIN = 20;
const TITLE = 26;
const LINE = 21;
/** Words below a panel. */
const WORDS = 3;
/** Panels go on in a new line from here. */
const WIDEST = 1400;
/** Narrower panels would leave no room for their words. */
const CELL_WIDTH = 170;
/** Room for the legend. */
const MIN_WIDTH = 900;
const QUESTION_LINES = 3;
/** Mean width of a character as a share of the font size, with a little to spare. */
const CHARACTER = 0.58;

const INK = '#1d2433';
const FAINT = '#667085';
const HEAT = '#ff6a00';
/** Of the hottest cell: writing stays visible below it. */
const HEAT_OPACITY = 0.72;
const PATCH = '#00c2ff';
const WINDOW = '#39e600';
/** Smaller patches have no room for their rank. */
const BADGE_FROM = 32;
const RIGHT = '#128a3a';
const WRONG = '#c62828';

interface Place { left: number; top: number; }

export interface Layout {
  scale: number;
  /** Size of each panel: the picture's, enlarged. */
  panel: { width: number; height: number };
  /** The picture alone, then one panel per step. */
  places: Place[];
  /** Lines of the question, as many as it needs. */
  question: string[];
  /** Top of the texts below the panels. */
  below: number;
  width: number;
  height: number;
}

export function layoutOf(image: RgbImage, { rows, columns: across, looks }: GazeInput, { question = '' }: GazeTexts): Layout {
  const scale = Math.min(LARGEST_PANEL, Math.max(PANEL, CELL * Math.max(rows, across))) / Math.max(image.width, image.height);
  const panel = { width: Math.max(1, Math.round(image.width * scale)), height: Math.max(1, Math.round(image.height * scale)) };
  const count = looks.length + 1;
  const cell = { width: Math.max(panel.width, CELL_WIDTH) + MARGIN, height: TITLE + panel.height + WORDS * LINE + MARGIN };
  const columns = Math.min(count, Math.max(1, Math.floor(WIDEST / cell.width)));
  const places = Array.from({ length: count }, (_, n) => ({ left: MARGIN + (n % columns) * cell.width, top: MARGIN + TITLE + Math.floor(n / columns) * cell.height }));
  const width = Math.max(MIN_WIDTH, MARGIN + columns * cell.width);
  const below = MARGIN + Math.ceil(count / columns) * cell.height;
  const lines = wrapped(question, charactersIn(width - 2 * MARGIN, 18), QUESTION_LINES);
  return { scale, panel, places, question: lines, below, width, height: below + (lines.length + 2) * 28 + MARGIN };
}

export function drawGaze(gaze: GazeInput, layout: Layout, texts: GazeTexts): string {
  const { width, height, places, panel } = layout;
  const panels = places.map((place, n) => {
    const look = gaze.looks[n - 1];
    const title = look === undefined ? text(place.left, place.top - 8, 15, 'the picture', 'font-weight="bold"') : titleOf(place, look);
    const content = look === undefined ? '' : heat(gaze, look, layout) + outlines(look, layout);
    // Clipped: outlines at the border would reach into the words.
    return `${title}<svg x="${place.left}" y="${place.top}" width="${panel.width}" height="${panel.height}">${content}</svg>${look === undefined ? '' : words(place, look.words, layout)}`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" fill="${INK}">${panels.join('')}${footer(layout, texts)}</svg>`;
}

function text(x: number, y: number, size: number, content: string, attributes = ''): string {
  return `<text x="${x}" y="${y}" font-size="${size}" ${attributes}>${xmlText(content)}</text>`;
}

function titleOf({ left, top }: Place, { step, saliency }: Look): string {
  const sum = saliency.reduce((total, value) => total + value, 0);
  const share = saliency.length === 0 ? '' : `<tspan dx="10" font-weight="normal" font-size="12" fill="${FAINT}">${Math.round(100 * sum)} % of its attention</tspan>`;
  return `<text x="${left}" y="${top - 8}" font-size="15" font-weight="bold">latent ${step}${share}</text>`;
}

/** One rectangle per cell: edges floor(c * width / columns), as patches are cut. */
function heat({ rows, columns }: GazeInput, { saliency }: Look, { panel }: Layout): string {
  const low = saliency.reduce((least, value) => Math.min(least, value), Infinity);
  const high = saliency.reduce((most, value) => Math.max(most, value), -Infinity);
  if (!(high > low)) return '';
  const edge = (index: number, cells: number, side: number): number => Math.floor((index * side) / cells);
  const cells = saliency.map((value, cell) => {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const [x, y] = [edge(column, columns, panel.width), edge(row, rows, panel.height)];
    const size = `width="${edge(column + 1, columns, panel.width) - x}" height="${edge(row + 1, rows, panel.height) - y}"`;
    return `<rect x="${x}" y="${y}" ${size} fill-opacity="${((HEAT_OPACITY * (value - low)) / (high - low)).toFixed(3)}"/>`;
  });
  return `<g fill="${HEAT}" shape-rendering="crispEdges">${cells.join('')}</g>`;
}

/** The window at its very border, patches inside theirs, so that both can be seen where they meet. */
function outlines({ patches, window }: Look, { scale }: Layout): string {
  const drawn = patches.map(({ rank, box }) => {
    const side = scale * Math.min(box[2] - box[0], box[3] - box[1]);
    const [stroke, inset] = [Math.min(3, side / 8), Math.min(7.5, side / 5)];
    const [x, y] = [scale * box[0] + inset, scale * box[1] + inset];
    const badge = side < BADGE_FROM ? '' : `<rect x="${x}" y="${y}" width="18" height="18" fill="${PATCH}"/>${text(x + 9, y + 14, 14, String(rank), `font-weight="bold" text-anchor="middle" fill="#00202b"`)}`;
    return frame(box, scale, inset, stroke, PATCH) + badge;
  });
  return drawn.join('') + (window === undefined ? '' : frame(window, scale, 0, 4, WINDOW));
}

/** @param inset from the box to the outer edge of the line. */
function frame([x1, y1, x2, y2]: Box, scale: number, inset: number, stroke: number, colour: string): string {
  const away = inset + stroke / 2;
  const side = (from: number, to: number): number => Math.max(0, scale * (to - from) - 2 * away);
  return `<rect x="${scale * x1 + away}" y="${scale * y1 + away}" width="${side(x1, x2)}" height="${side(y1, y2)}" fill="none" stroke="${colour}" stroke-width="${stroke}"/>`;
}

/** What the latent is nearest to, the likeliest first, with a bar that needs no fonts. */
function words({ left, top }: Place, near: readonly NearWord[], { panel }: Layout): string {
  const width = Math.max(panel.width, CELL_WIDTH);
  return near.slice(0, WORDS).map(({ id, text: word, probability }, n) => {
    const y = top + panel.height + (n + 1) * LINE;
    const style = n === 0 ? 'font-weight="bold"' : `fill="${FAINT}"`;
    const shown = shortened(word === undefined ? `token ${id}` : quoted(word), charactersIn(width - 50, 14));
    return `<rect x="${left}" y="${y - LINE + 6}" width="${(width * probability).toFixed(1)}" height="${LINE - 2}" fill="#e4e9f2"/>${text(left + 5, y, 14, shown, style)}`
      + text(left + width - 5, y, 14, `${Math.round(100 * probability)} %`, `${style} text-anchor="end"`);
  }).join('');
}

/** Question, answer with its mark, legend. */
function footer({ question, below, width }: Layout, { answer, expected, isRight }: GazeTexts): string {
  const asked = question.map((line, n) => text(MARGIN, below + 20 + n * 28, 18, line, 'font-weight="bold"')).join('');
  const y = below + question.length * 28;
  const colour = isRight === undefined ? INK : isRight ? RIGHT : WRONG;
  const verdict = isRight === undefined ? '' : isRight ? 'right' : `wrong${expected === undefined ? '' : `, it is ${quoted(expected)}`}`;
  const mark = isRight === undefined ? '' : `<g transform="translate(${MARGIN} ${y + 4})" fill="none" stroke="${colour}" stroke-width="4"><path d="${isRight ? 'M2 10 L8 16 L18 2' : 'M2 2 L17 17 M17 2 L2 17'}"/></g>`;
  const left = MARGIN + (isRight === undefined ? 0 : 28);
  const said = answer === undefined ? verdict : `answer: ${quoted(answer)}${verdict === '' ? '' : ` \u2013 ${verdict}`}`;
  return asked + mark + text(left, y + 20, 18, shortened(said, charactersIn(width - left - MARGIN, 18)), `fill="${colour}" font-weight="bold"`) + legend(y + 52);
}

function legend(y: number): string {
  const items: [sample: string, meaning: string, room: number][] = [
    [`<rect x="0" y="0" width="16" height="16" fill="${HEAT}" fill-opacity="${HEAT_OPACITY}"/>`, 'attention, least to most in the step', 0],
    [`<rect x="1.5" y="1.5" width="13" height="13" fill="none" stroke="${PATCH}" stroke-width="3"/>`, 'replayed, best first, each once', 265],
    [`<rect x="2" y="2" width="12" height="12" fill="none" stroke="${WINDOW}" stroke-width="4"/>`, 'window with most of them', 490],
    ['<rect x="0" y="0" width="16" height="16" fill="#e4e9f2"/>', 'words nearest to the latent', 690],
  ];
  return items.map(([sample, meaning, x]) => `<g transform="translate(${MARGIN + x} ${y - 13})">${sample}${text(22, 13, 12, meaning, `fill="${FAINT}"`)}</g>`).join('');
}

function charactersIn(width: number, size: number): number {
  return Math.floor(width / (size * CHARACTER));
}

function shortened(line: string, characters: number): string {
  const all = [...line];
  return all.length <= characters ? line : `${all.slice(0, characters - 1).join('')}…`;
}

/** Shows what is no letter, such as a newline. */
function quoted(word: string): string {
  return JSON.stringify(word.trim() === '' ? word : word.trim()).slice(1, -1);
}

/** Broken at spaces; the last line is cut. */
function wrapped(paragraph: string, characters: number, most: number): string[] {
  const lines: string[] = [];
  let rest = paragraph.replace(/\s+/g, ' ').trim();
  while (rest !== '' && lines.length < most - 1) {
    const at = rest.length <= characters ? rest.length : rest.lastIndexOf(' ', characters);
    const end = at > 0 ? at : characters;
    lines.push(rest.slice(0, end));
    rest = rest.slice(end).trim();
  }
  return rest === '' ? lines : [...lines, shortened(rest, characters)];
}
