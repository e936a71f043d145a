/** The findings of a gradient profile in sentences, with their numbers. */
import * as check from '../check';
import { FEWEST } from './blockBootstrap';
import type { ImageAgainstText, ProfileSummary, Ratio } from './profileSummary';

/** Three digits. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return '-';
  const [digits, exponent] = value.toPrecision(3).split('e');
  return exponent === undefined ? digits! : Number(value.toPrecision(3)).toExponential().replace('e+', 'e');
}

export function levelName(level: number | 'layers', layers: number): string {
  return level === 'layers' ? 'all layers' : level === layers ? 'final' : `layer ${level}`;
}

/** "0.43 (0.41 to 0.45)". */
export function ratioText({ ratio, low, high }: Ratio): string {
  return low === undefined || high === undefined ? figure(ratio) : `${figure(ratio)} (${figure(low)} to ${figure(high)})`;
}

function confidence({ low, high, steps }: Ratio): string {
  return low === undefined || high === undefined ? `${steps} step(s) are too few for an interval` : `95 % interval ${figure(low)} to ${figure(high)} over ${steps} steps`;
}

/** @throws {LibError} for what `summarizeProfile` would not have returned. */
function checkSummary(summary: ProfileSummary): void {
  const op = 'profileFindings';
  check.object(op, 'summary', summary);
  check.integer(op, 'summary.layers', summary.layers, 1);
  for (const name of ['notFinite', 'imageZeroSteps'] as const) check.integer(op, `summary.${name}`, summary[name], 0);
  for (const name of ['classes', 'imageAgainstText', 'volatility', 'hardAgainstEasy'] as const) {
    Array.from<unknown>(check.array(op, `summary.${name}`, summary[name])).forEach((entry, n) => check.object(op, `summary.${name}[${n}]`, entry));
  }
  summary.volatility.forEach(({ mean, steps }, n) => {
    check.number(op, `mean of summary.volatility[${n}]`, mean, 0);
    check.integer(op, `steps of summary.volatility[${n}]`, steps, 1);
  });
}

/**
 * One sentence a finding; the first says whether image rows receive more or less gradient than words.
 *
 * @param summary of `summarizeProfile`.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`.
 */
export function profileFindings(summary: ProfileSummary): string[] {
  checkSummary(summary);
  const { imageAgainstText, volatility, hardAgainstEasy, notFinite } = summary;
  return [
    ...imageFinding(imageAgainstText, summary), ...volatilityFinding(volatility),
    ...hardAgainstEasy.filter((row) => row.class === 'image' || row.class === 'answer-text').map((row) =>
      `Of hard samples, ${row.class} rows receive ${figure(row.ratio)} times as much as those of easy ones (${confidence(row)}): ${row.verdict === 'unclear' ? 'no clear difference' : row.verdict}.`),
    ...(notFinite > 0 ? [`${notFinite} norm(s) were NaN or infinite and are in no other figure.`] : []),
  ];
}

function imageFinding(against: readonly ImageAgainstText[], { layers, classes, imageZeroSteps }: ProfileSummary): string[] {
  const whole = against.find((row) => row.against === 'text' && row.level === 'layers');
  const prompt = against.find((row) => row.against === 'prompt-text' && row.level === 'layers');
  if (whole === undefined) {
    const image = classes.filter((row) => row.class === 'image' && row.level < layers);
    if (image.length === 0) return ['There are no image rows to compare with words.'];
    return [image.every((row) => row.max === 0) ? 'Image rows receive no gradient: their norms are exactly 0, and no ratio to words can be given.'
      : 'There are image rows, but no step and layer at which both they and words have a finite mean norm above 0: no ratio can be given.'];
  }
  const own = against.filter((row) => row.against === 'text' && row.level !== 'layers');
  const count = (verdict: Ratio['verdict']): string => `${verdict} in ${own.filter((row) => row.verdict === verdict).length}`;
  const verdict = whole.verdict === 'unclear' ? 'not clearly larger or smaller than' : `${whole.verdict} than`;
  return [`Gradient norms of image rows are ${verdict} those of words: ${figure(whole.ratio)} times on average over the layers (${confidence(whole)}); by layer ${count('larger')}, ${count('smaller')}, ${count('unclear')} of ${layers}.${prompt === undefined ? '' : ` Against words of the prompt alone ${figure(prompt.ratio)} times (${confidence(prompt)}): ${prompt.verdict}.`}${imageZeroSteps === 0 ? '' : ` In ${imageZeroSteps} step(s) the mean norm of image rows is exactly 0 at some layer, which is in no ratio.`}`];
}

/** Both are noise of rounding: norms have nine digits. */
const NO_VARIATION = 1e-8;

function volatilityFinding(volatility: ProfileSummary['volatility']): string[] {
  const [image, text] = ['image', 'text'].map((name) => volatility.find((row) => row.class === name));
  if (image === undefined || text === undefined) return [];
  const figures = `coefficient of variation ${figure(image.mean)} against ${figure(text.mean)}`;
  const steps = Math.min(image.steps, text.steps);
  if (steps < FEWEST) return [`Whether the mean norm of image rows is more or less volatile than that of words cannot be told from ${steps} step(s), fewer than ${FEWEST}.`];
  if (image.mean.toPrecision(2) === text.mean.toPrecision(2) || Math.max(image.mean, text.mean) < NO_VARIATION) return [`From step to step the mean norms of image rows and of words are equally volatile: ${figures}.`];
  const verdict = image.mean > text.mean ? 'more' : 'less';
  return [`From step to step the mean norm of image rows is ${verdict} volatile than that of words: ${figures}.`];
}
