/** Charts as inline SVG: legible without scripts, fonts of the page, or colour (each line has its own dashes, each cell its number). */
import { xmlText } from '../xml';
import type { Point } from './profileSeries';

const INK = '#1d2433';
const FAINT = '#5b6577';
const GRID = '#e1e5ec';
const MARGIN = { left: 62, right: 12, top: 12, bottom: 34 };

/** Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008); dashes tell the lines apart in grey. */
export const STYLES = Object.freeze([
  { colour: '#0072b2', dash: '' }, { colour: '#d55e00', dash: '9 4' }, { colour: '#b07d00', dash: '2 3' },
  { colour: '#007a5a', dash: '9 3 2 3' }, { colour: '#2f8fc4', dash: '5 3' }, { colour: '#a8487f', dash: '12 3 2 3 2 3' },
] as const);
export type Style = { colour: string; dash: string };

export interface Line {
  name: string;
  style: Style;
  points: readonly Point[];
}

export interface ChartOptions {
  /** What a screen reader says. */
  label: string;
  width: number;
  height: number;
  isLogarithmic: boolean;
}

function shown(value: number): string {
  return value !== 0 && (Math.abs(value) >= 1e4 || Math.abs(value) < 1e-2) ? value.toExponential(0).replace('e+', 'e') : String(Number(value.toPrecision(3)));
}

function at(value: number): string {
  return value.toFixed(1);
}

export function svg(label: string, width: number, height: number, content: string): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="${xmlText(label)}" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-size="12" fill="${INK}">${content}</svg>`;
}

function text(x: number, y: number, content: string, attributes = ''): string {
  return `<text x="${at(x)}" y="${at(y)}" ${attributes}>${xmlText(content)}</text>`;
}

/** Values of an axis: 1, 2 or 5 times a power of ten, or powers of ten. */
export function ticks(low: number, high: number, isLogarithmic: boolean): number[] {
  if (isLogarithmic) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const every = Math.max(1, Math.ceil((last - first) / 6));
    const tens = Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, n) => 10 ** (first + n * every));
    return (last - first <= 2 ? tens.flatMap((ten) => [ten, 2 * ten, 5 * ten]) : tens).filter((tick) => tick >= low && tick <= high);
  }
  const span = high - low;
  if (!(span > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const step = power * ([1, 2, 5].find((factor) => span / (factor * power) <= 6) ?? 10);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, n) => (Math.ceil(low / step) + n) * step);
}

/** Curves over the steps, each with its band. A logarithmic chart leaves out what is not above 0. */
export function lineChart(lines: readonly Line[], { label, width, height, isLogarithmic }: ChartOptions): string {
  const drawn = lines.map(({ points, ...rest }) => ({ ...rest, points: points.filter(({ value }) => Number.isFinite(value) && (!isLogarithmic || value > 0)) })).filter(({ points }) => points.length > 0);
  if (drawn.length === 0) return svg(`${label}: nothing was recorded`, width, 40, text(10, 24, 'nothing was recorded'));
  const all = drawn.flatMap(({ points }) => points);
  const values = all.flatMap(({ value, low, high }) => [value, ...[low, high].filter((edge): edge is number => edge !== undefined && (!isLogarithmic || edge > 0))]);
  const least = (list: readonly number[]): number => list.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (list: readonly number[]): number => list.reduce((a, b) => Math.max(a, b), -Infinity);
  const scale = (value: number): number => (isLogarithmic ? Math.log10(value) : value);
  let [low, high] = [isLogarithmic ? least(values) : Math.min(0, least(values)), most(values)];
  if (!(high > low)) [low, high] = isLogarithmic ? [low / 2, high * 2] : [low - 1, high + 1];
  const [first, last] = [least(all.map(({ step }) => step)), most(all.map(({ step }) => step))];
  const x = (step: number): number => MARGIN.left + (last === first ? 0.5 : (step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
  const y = (value: number): number => height - MARGIN.bottom - ((scale(Math.max(value, isLogarithmic ? low : value)) - scale(low)) / (scale(high) - scale(low))) * (height - MARGIN.top - MARGIN.bottom);
  const grid = ticks(low, high, isLogarithmic).map((tick) => `<path d="M${MARGIN.left} ${at(y(tick))}H${width - MARGIN.right}" stroke="${GRID}"/>${text(MARGIN.left - 6, y(tick) + 4, shown(tick), `text-anchor="end" fill="${FAINT}"`)}`);
  const steps = [...new Set(ticks(first, last, false).map(Math.round))].filter((step) => step >= first && step <= last).map((step) => text(x(step), height - MARGIN.bottom + 16, String(step), `text-anchor="middle" fill="${FAINT}"`));
  const curves = drawn.map(({ name, style, points }) => {
    const band = points.filter((point): point is Required<Point> => point.low !== undefined && point.high !== undefined);
    const edge = band.length < 2 ? '' : `<path d="M${[...band.map((point) => `${at(x(point.step))} ${at(y(point.high))}`), ...band.map((point) => `${at(x(point.step))} ${at(y(point.low))}`).reverse()].join('L')}Z" fill="${style.colour}" fill-opacity="0.13"/>`;
    const path = points.map(({ step, value }) => `${at(x(step))} ${at(y(value))}`).join('L');
    const mark = points.length > 1 ? '' : `<circle cx="${at(x(points[0]!.step))}" cy="${at(y(points[0]!.value))}" r="3" fill="${style.colour}"/>`;
    return `<g><title>${xmlText(name)}</title>${edge}<path d="M${path}" fill="none" stroke="${style.colour}" stroke-width="2" stroke-linejoin="round"${style.dash === '' ? '' : ` stroke-dasharray="${style.dash}"`}/>${mark}</g>`;
  });
  return svg(label, width, height, [...grid, ...steps, text((width + MARGIN.left) / 2, height - 4, 'optimiser step', `text-anchor="middle" fill="${FAINT}"`), ...curves].join(''));
}

/** Samples of lines with their names, side by side. */
export function legend(lines: readonly Pick<Line, 'name' | 'style'>[]): string {
  const entries = lines.map(({ name, style }) =>
    `<span><svg xmlns="http://www.w3.org/2000/svg" aria-hidden="true" width="40" height="10"><path d="M0 5H40" stroke="${style.colour}" stroke-width="3"${style.dash === '' ? '' : ` stroke-dasharray="${style.dash}"`}/></svg> ${xmlText(name)}</span>`);
  return `<p class="legend">${entries.join(' ')}</p>`;
}

export interface HeatMap {
  label: string;
  rows: readonly string[];
  columns: readonly string[];
  /** By [row][column]; undefined where there is none. */
  values: readonly (readonly (number | undefined)[])[];
  show: (value: number) => string;
}

const CELL = { width: 96, height: 26, name: 84 };

/** One hue from light to dark, by the logarithm; every cell has its number. */
export function heatMap({ label, rows, columns, values, show }: HeatMap): string {
  const logs = values.flat().filter((value): value is number => value !== undefined && value > 0).map(Math.log);
  const [low, high] = [logs.reduce((a, b) => Math.min(a, b), Infinity), logs.reduce((a, b) => Math.max(a, b), -Infinity)];
  const share = (value: number): number => (value > 0 && high > low ? (Math.log(value) - low) / (high - low) : 0);
  const cells = values.flatMap((row, r) => row.map((value, c) => {
    const [x, y] = [CELL.name + c * CELL.width, 22 + r * CELL.height];
    if (value === undefined) return text(x + CELL.width / 2, y + 17, '-', `text-anchor="middle" fill="${FAINT}"`);
    const dark = share(value);
    const channel = (light: number, deep: number): number => Math.round(light + (deep - light) * dark);
    return `<rect x="${x}" y="${y}" width="${CELL.width - 2}" height="${CELL.height - 2}" fill="rgb(${channel(237, 8)},${channel(244, 64)},${channel(252, 129)})"/>`
      + text(x + CELL.width / 2 - 1, y + 17, show(value), `text-anchor="middle" fill="${dark > 0.5 ? '#ffffff' : INK}"`);
  }));
  const heads = columns.map((name, c) => text(CELL.name + (c + 0.5) * CELL.width, 14, name, 'text-anchor="middle" font-weight="bold"'));
  const names = rows.map((name, r) => text(CELL.name - 8, 22 + r * CELL.height + 17, name, 'text-anchor="end"'));
  return svg(label, CELL.name + columns.length * CELL.width, 26 + rows.length * CELL.height, [...heads, ...names, ...cells].join(''));
}

export interface Bar {
  name: string;
  value: number;
  /** Ends of the whisker. */
  low: number;
  high: number;
  colour: string;
}

/** Horizontal bars from 0, with whiskers and their values. */
export function barChart(label: string, bars: readonly Bar[], width: number): string {
  const most = bars.reduce((high, bar) => Math.max(high, bar.value, bar.high), 0) || 1;
  const x = (value: number): number => 100 + (value / most) * (width - 170);
  const drawn = bars.map(({ name, value, low, high, colour }, n) => {
    const y = 8 + n * 28;
    return `${text(92, y + 15, name, 'text-anchor="end"')}<rect x="100" y="${y}" width="${at(x(value) - 100)}" height="20" fill="${colour}"/>`
      + `<path d="M${at(x(low))} ${y + 10}H${at(x(high))}M${at(x(low))} ${y + 5}v10M${at(x(high))} ${y + 5}v10" stroke="${INK}" stroke-width="1.5" fill="none"/>${text(x(Math.max(value, high)) + 8, y + 15, shown(Number(value.toPrecision(3))))}`;
  });
  return svg(label, width, 16 + bars.length * 28, drawn.join(''));
}
