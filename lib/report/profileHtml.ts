/** A gradient profile as one page: SVG and tables, no scripts, nothing from elsewhere. */
import * as check from '../check';
import { fail } from '../errors';
import { ROW_CLASSES, type RowClass } from '../model/rowClass';
import { SPECTRUM_COLUMNS, type GradientProfile, type ProfileGroup } from '../train';
import { xmlText } from '../xml';
import { barChart, heatMap, legend, lineChart, STYLES, type Line, type Style } from './chart';
import { matrixSeries, normSeries, thinned } from './profileSeries';
import { selectSteps, summarizeProfile, type ProfileSummary, type SummaryOptions } from './profileSummary';
import { figure, levelName, profileFindings, ratioText } from './profileWords';

export interface NamedProfile {
  name: string;
  profile: GradientProfile;
}

export interface ProfileHtmlOptions extends SummaryOptions {
  /** Default: "Gradient dynamics". */
  title?: string;
}

/** More points than a curve's width shows. */
const POINTS = 160;
/** Layers that get curves of their own. */
const PANELS = 4;
const WIDE = { width: 760, height: 300 };
const SMALL = { width: 372, height: 210 };
const KINDS = ['q', 'k', 'v', 'o'] as const;

/**
 * Draws profiles, each as a section: findings in words, mean norms by class over the steps with their quartiles, layer by class, volatility,
 * easy against hard samples, spectra of the weight gradients; the figures as tables below.
 *
 * @param profiles of `readProfile`, at least one.
 * @returns an HTML document.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE` as `summarizeProfile`.
 * @example
 * await writeFile('dynamics.html', profileHtml([{ name: 'latents', profile: await readProfile('runs/demo-small-0/latent/profile.jsonl') }]));
 */
export function profileHtml(profiles: readonly NamedProfile[], options: ProfileHtmlOptions = {}): string {
  const op = 'profileHtml';
  if (check.array(op, 'profiles', profiles).length === 0) fail('ERR_ARGUMENT', op, 'Expected at least one profile but received none');
  check.options(op, options, ['title', 'from', 'to']);
  const { title = 'Gradient dynamics', ...range } = options;
  check.string(op, 'title', title);
  // Array.from: holes are undefined, not skipped.
  Array.from(profiles).forEach((entry, n) => {
    check.object(op, `profiles[${n}]`, entry);
    check.options(op, entry, ['name', 'profile']);
    check.string(op, `name of profiles[${n}]`, entry.name);
  });
  const sections = profiles.map(({ name, profile }) => section(name, selectSteps(profile, range)));
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>${xmlText(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${xmlText(title)}</h1>
<p>L2 norms of the gradient of the loss with respect to the hidden state that enters each layer, times the number of target tokens of the step, by class of row. Ratios have 95 % intervals by a block bootstrap over the steps.</p>
${sections.join('\n')}
</body>
</html>
`;
}

const STYLE = 'body{font:15px/1.5 system-ui,sans-serif;color:#1d2433;background:#fff;max-width:800px;margin:2rem auto;padding:0 1rem}'
  + 'h2{margin-top:2.5rem;border-bottom:1px solid #c9d0db}figure{margin:1.5rem 0}figcaption{font-weight:600;margin-bottom:.3rem}svg{max-width:100%;height:auto}'
  + '.panels{display:flex;flex-wrap:wrap;gap:12px}.panels p{margin:0}.legend span{display:inline-block;margin-right:1rem}'
  + '.table{overflow-x:auto}table{border-collapse:collapse;font-size:13px}th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e1e5ec}th:first-child{text-align:left}';

function styleOf(name: RowClass): Style {
  return STYLES[ROW_CLASSES.indexOf(name)]!;
}

function present(summary: ProfileSummary): RowClass[] {
  return ROW_CLASSES.filter((name) => summary.classes.some((row) => row.class === name));
}

function section(name: string, profile: GradientProfile): string {
  const summary = summarizeProfile(profile);
  const { steps, firstStep, lastStep, stages } = summary;
  return `<section>
<h2>${xmlText(name)}</h2>
<p>${steps} profiled steps, ${firstStep} to ${lastStep}; stages: ${xmlText(stages.join(', '))}.${profile.isCut ? ' The last line of the file is incomplete and left out.' : ''}</p>
<ul>${profileFindings(summary).map((finding) => `<li>${xmlText(finding)}</li>`).join('')}</ul>
${[classCurves(profile, summary), layerMap(summary), volatilityBars(summary), difficultyCurves(profile, summary), spectraCurves(profile), tables(summary)].join('\n')}
</section>`;
}

function drawn(caption: string, content: string): string {
  return `<figure><figcaption>${xmlText(caption)}</figcaption>${content}</figure>`;
}

function panel(title: string, content: string): string {
  return `<div><p>${xmlText(title)}</p>${content}</div>`;
}

function classLines(profile: GradientProfile, names: readonly RowClass[], level: number | 'layers'): Line[] {
  return names.map((name) => ({ name, style: styleOf(name), points: thinned(normSeries(profile, 'all', level, name), POINTS) }));
}

/** Means over the layers, and some layers by themselves. */
function classCurves(profile: GradientProfile, summary: ProfileSummary): string {
  const names = present(summary);
  const { layers } = summary;
  const chosen = [...new Set(Array.from({ length: PANELS }, (_, n) => Math.round((n * (layers - 1)) / (PANELS - 1))))];
  const chart = (level: number | 'layers', size: { width: number; height: number }): string =>
    lineChart(classLines(profile, names, level), { ...size, isLogarithmic: true, label: `Mean gradient norm by class over the steps, ${levelName(level, layers)}` });
  return drawn('Mean gradient norm by class, average over the inputs of all layers; bands: quartiles of the rows', legend(names.map((name) => ({ name, style: styleOf(name) }))) + chart('layers', WIDE)
    + `<div class="panels">${chosen.map((level) => panel(`input of layer ${level}`, chart(level, SMALL))).join('')}</div>`);
}

function layerMap(summary: ProfileSummary): string {
  const names = present(summary);
  const levels = Array.from({ length: summary.layers + 1 }, (_, level) => level);
  const map = (key: 'mean' | 'volatility', label: string): string => heatMap({
    label, columns: names, rows: levels.map((level) => levelName(level, summary.layers)), show: figure,
    values: levels.map((level) => names.map((name) => {
      const value = summary.classes.find((row) => row.level === level && row.class === name)?.[key];
      return value === undefined || Number.isNaN(value) ? undefined : value;
    })),
  });
  return drawn('Mean gradient norm by layer and class; darker is larger', map('mean', 'Mean gradient norm by layer and class'))
    + drawn('Volatility by layer and class: coefficient of variation of the class mean across the steps', map('volatility', 'Volatility by layer and class'));
}

function volatilityBars({ volatility }: ProfileSummary): string {
  const bars = volatility.map(({ class: name, mean, min, max }) => ({ name: name === 'text' ? 'all words' : name, value: mean, low: min, high: max, colour: name === 'text' ? '#5b6577' : styleOf(name).colour }));
  return drawn('Volatility by class, average over the layers; whiskers: least and most volatile layer', barChart('Volatility by class', bars, WIDE.width));
}

/** Halves differ by dashes and shade. */
const HALVES: readonly { group: ProfileGroup; style: Style }[] = [{ group: 'easy', style: { colour: '#0072b2', dash: '' } }, { group: 'hard', style: { colour: '#d55e00', dash: '9 4' } }];

function difficultyCurves(profile: GradientProfile, summary: ProfileSummary): string {
  const panels = present(summary).map((name) => panel(name, lineChart(HALVES.map(({ group, style }) => ({ name: group, style, points: thinned(normSeries(profile, group, 'layers', name), POINTS) })),
    { ...SMALL, isLogarithmic: true, label: `Mean gradient norm of ${name} rows of easy and of hard samples` })));
  return drawn('Easy and hard samples: halves of each step by running loss, average over the layers', legend(HALVES.map(({ group, style }) => ({ name: group, style }))) + `<div class="panels">${panels.join('')}</div>`);
}

/** q, k, v and o of all layers, on average. */
function spectraCurves(profile: GradientProfile): string {
  const { matrices, tooLarge } = profile.head;
  const note = tooLarge.length === 0 ? '' : `<p>${tooLarge.length} matrices were too large to be decomposed: ${xmlText(tooLarge[0]!)} …</p>`;
  if (matrices.length === 0 || profile.steps.every((step) => step.matrices === undefined)) return drawn('Spectra of weight gradients', `<p>None were recorded.</p>${note}`);
  const places = (kind: string): number[] => matrices.flatMap((name, place) => (name.includes(`.${kind}_proj.`) ? [place] : []));
  const byKind = (column: number): Line[] => KINDS.map((kind, n) => ({ name: kind, style: STYLES[n]!, points: thinned(matrixSeries(profile, 'all', places(kind), column), POINTS) }));
  const byHalf = (column: number): Line[] => HALVES.map(({ group, style }) => ({ name: group, style, points: thinned(matrixSeries(profile, group, [...matrices.keys()], column), POINTS) }));
  const [nuclear, , rank, ratio] = SPECTRUM_COLUMNS.keys() as unknown as [number, number, number, number];
  const chart = (title: string, lines: Line[], isLogarithmic: boolean): string => panel(title, lineChart(lines, { ...SMALL, isLogarithmic, label: title }));
  return drawn('Spectra of the gradients of q, k, v and o, average over the layers', note + legend(KINDS.map((name, n) => ({ name, style: STYLES[n]! })))
    + `<div class="panels">${chart('nuclear norm', byKind(nuclear), true)}${chart('effective rank', byKind(rank), false)}${chart('nuclear norm / spectral norm', byKind(ratio), false)}</div>`)
    + drawn('The same of easy and of hard samples, average over all matrices', legend(HALVES.map(({ group, style }) => ({ name: group, style })))
      + `<div class="panels">${chart('nuclear norm, halves', byHalf(nuclear), true)}${chart('effective rank, halves', byHalf(rank), false)}</div>`);
}

function table(caption: string, rows: readonly (readonly string[])[]): string {
  const [head, ...rest] = rows.map((row) => row.map(xmlText));
  return `<figure><figcaption>${xmlText(caption)}</figcaption><div class="table"><table><thead><tr>${head!.map((cell) => `<th scope="col">${cell}</th>`).join('')}</tr></thead>`
    + `<tbody>${rest.map(([name, ...cells]) => `<tr><th scope="row">${name}</th>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`).join('')}</tbody></table></div></figure>`;
}

function tables(summary: ProfileSummary): string {
  const { layers } = summary;
  return table('Image rows against rows of words: how many times as large', [
    ['', ...new Set(summary.imageAgainstText.map(({ against }) => (against === 'text' ? 'all words' : against)))],
    ...[...new Set(summary.imageAgainstText.map(({ level }) => level))].map((level) => [levelName(level, layers), ...summary.imageAgainstText.filter((row) => row.level === level).map(ratioText)]),
  ]) + table('Hard against easy samples: how many times as large', [
    ['class', 'ratio', 'steps', 'above 1'], ...summary.hardAgainstEasy.map((row) => [row.class, ratioText(row), String(row.steps), `${Math.round(100 * row.shareAbove)} %`]),
  ]) + table('By layer and class', [
    ['', 'class', 'rows', 'mean', 'min', 'max', 'volatility'],
    ...summary.classes.map((row) => [levelName(row.level, layers), row.class, String(row.rows), figure(row.mean), figure(row.min), figure(row.max), figure(row.volatility)]),
  ]) + (summary.matrices.length === 0 ? '' : table('By matrix, means over the steps', [
    ['', 'samples', 'nuclear', 'spectral', 'effective rank', 'ratio'],
    ...summary.matrices.map((row) => [row.matrix, row.group, figure(row.nuclear), figure(row.spectral), figure(row.effectiveRank), figure(row.ratio)]),
  ]));
}
