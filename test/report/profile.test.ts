/** What a gradient profile is said to say, on made-up ones; and its page. */
import { profileFindings, profileHtml, summarizeProfile } from '../../lib/report';
import { meanInterval } from '../../lib/report/blockBootstrap';
import { ticks } from '../../lib/report/chart';
import { matrixSeries, normSeries, thinned } from '../../lib/report/profileSeries';
import { figure, levelName } from '../../lib/report/profileWords';
import { uniform } from '../../lib/random';
import { madeProfile } from './madeProfile';

function refusal(call: () => unknown): { code: string; message: string } {
  try {
    call();
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error('nothing was thrown');
}

describe('summary', () => {
  const summary = summarizeProfile(madeProfile(30));

  test('image rows against words, by layer and in all', () => {
    const rows = summary.imageAgainstText.filter(({ against }) => against === 'text');
    expect(rows.map(({ level, verdict, steps }) => [level, verdict, steps])).toEqual([['layers', 'smaller', 30], [0, 'smaller', 30], [1, 'smaller', 30]]);
    for (const { ratio, low, high, shareAbove } of rows) {
      // Words: 10 rows of the prompt, 10 of steps and 10 of the answer, all of the same mean.
      expect(ratio).toBeCloseTo(0.5, 2);
      expect([low! < ratio, ratio < high!, shareAbove]).toEqual([true, true, 0]);
    }
    expect(summary.imageAgainstText.map(({ against }) => against)).toEqual(expect.arrayContaining(['prompt-text', 'step-text', 'answer-text']));
  });
  test('the sign is measured', () => {
    const verdict = (image: number, wobble: number): unknown => summarizeProfile(madeProfile(30, { image, wobble })).imageAgainstText.find(({ level }) => level === 'layers')!.verdict;
    expect([verdict(3, 0.05), verdict(1, 0.05), verdict(0.9, 0.05)]).toEqual(['larger', 'unclear', 'smaller']);
  });
  test('classes, volatility, halves, matrices', () => {
    expect(summary).toMatchObject({ version: 1, layers: 2, steps: 30, firstStep: 1, lastStep: 30, stages: ['words', 'latents'], notFinite: 0 });
    expect(summary.classes.find((row) => row.level === 1 && row.class === 'latent')).toEqual({ level: 1, class: 'latent', steps: 30, rows: 300, notFinite: 0, mean: expect.closeTo(0.1), min: expect.closeTo(0.08), max: expect.closeTo(0.12), volatility: expect.closeTo(0) });
    expect(summary.classes.some((row) => row.class === 'replay')).toBe(false);
    const [image, text] = ['image', 'text'].map((name) => summary.volatility.find((row) => row.class === name)!.mean);
    expect(image).toBeGreaterThan(0.03);
    expect(text).toBeCloseTo(0, 9);
    for (const { ratio, verdict } of summary.hardAgainstEasy) expect([ratio.toFixed(6), verdict]).toEqual(['2.000000', 'larger']);
    expect(summary.matrices.find((row) => row.group === 'hard' && row.matrix.includes('.1.'))).toEqual({ matrix: 'model.layers.1.self_attn.q_proj.weight', group: 'hard', steps: 6, nuclear: 5, spectral: 2, effectiveRank: 5, ratio: 2.5 });
  });
  test('of some steps', () => {
    expect(summarizeProfile(madeProfile(30), { from: 10, to: 12 })).toMatchObject({ steps: 3, firstStep: 10, lastStep: 12, stages: ['latents'] });
    const few = summarizeProfile(madeProfile(30), { to: 7 }).imageAgainstText[0]!;
    expect([few.verdict, 'low' in few]).toEqual(['unclear', false]);
  });
  test('in words', () => {
    const [first, second, ...rest] = profileFindings(summary);
    expect(first).toMatch(/^Gradient norms of image rows are smaller than those of words: 0\.\d+ times on average over the layers \(95 % interval 0\.\d+ to 0\.\d+ over 30 steps\); by layer larger in 0, smaller in 2, unclear in 0 of 2\. Against words of the prompt alone 0\.\d+ times/);
    expect(second).toMatch(/^From step to step the mean norm of image rows is more volatile than that of words: coefficient of variation 0\.0\d+ against /);
    expect(rest).toHaveLength(2);
    expect(rest[0]).toContain('Of hard samples, image rows receive 2.00 times as much');
  });
  test('volatility is told from eight steps on, and a tie is one', () => {
    const second = (steps: number, made: object): string => profileFindings(summarizeProfile(madeProfile(steps, made)))[1]!;
    expect(second(7, {})).toBe('Whether the mean norm of image rows is more or less volatile than that of words cannot be told from 7 step(s), fewer than 8.');
    expect(second(8, {})).toMatch(/^From step to step the mean norm of image rows is more volatile than that of words: /);
    expect(second(20, { wobble: 0 })).toMatch(/^From step to step the mean norms of image rows and of words are equally volatile: coefficient of variation /);
    const tie = { ...summary, volatility: [{ class: 'image' as const, steps: 30, mean: 0.1512, min: 0, max: 1 }, { class: 'text' as const, steps: 30, mean: 0.1508, min: 0, max: 1 }] };
    expect(profileFindings(tie)[1]).toBe('From step to step the mean norms of image rows and of words are equally volatile: coefficient of variation 0.151 against 0.151.');
  });
  test('image rows of norm 0 are not absent', () => {
    expect(profileFindings(summarizeProfile(madeProfile(10, { image: 0 })))[0]).toBe('Image rows receive no gradient: their norms are exactly 0, and no ratio to words can be given.');
    const [some, none] = [madeProfile(30), madeProfile(30, { image: 0 })];
    const mixed = summarizeProfile({ ...some, steps: some.steps.map((step, n) => (n < 3 ? none.steps[n]! : step)) });
    expect(mixed).toMatchObject({ imageZeroSteps: 3, imageAgainstText: expect.arrayContaining([expect.objectContaining({ level: 'layers', against: 'text', steps: 27 })]) as unknown });
    expect(profileFindings(mixed)[0]).toMatch(/ In 3 step\(s\) the mean norm of image rows is exactly 0 at some layer, which is in no ratio\.$/);
    const absent = { ...some, steps: some.steps.map((step) => ({ ...step, norms: { ...step.norms, all: step.norms.all.map((level) => level.map((row, n) => (n === 1 ? null : row))) } })) };
    expect(profileFindings(summarizeProfile(absent))[0]).toBe('There are no image rows to compare with words.');
  });
  test.each<[object, string, string]>([
    [{ from: 0 }, 'ERR_RANGE', '[summarizeProfile] Expected from to be an integer of at least 1 but received 0'],
    [{ from: 5, to: 4 }, 'ERR_RANGE', '[summarizeProfile] Expected to to be an integer of at least 5 but received 4'],
    [{ from: 31 }, 'ERR_RANGE', '[summarizeProfile] Expected steps from 31 to Infinity to be among those of the profile, 1 to 30, but received none; widen the range'],
    [{ upto: 3 }, 'ERR_ARGUMENT', "[summarizeProfile] Expected options among from, to but received 'upto'"],
  ])('refuses %j', (options, code, message) => expect(refusal(() => summarizeProfile(madeProfile(30), options))).toMatchObject({ name: 'LibError', code, message }));
  test.each<[unknown, string]>([
    [{ head: { layers: 1 }, steps: [{ step: 1 }] }, 'profile.head to have format "plumbline gradient profile" but received undefined; give what readProfile or parseProfile returned'],
    [{ ...madeProfile(1), steps: [{ step: 1 }] }, 'profile.steps[0] to have the name of a stage but received undefined; give what readProfile or parseProfile returned'],
    [{ ...madeProfile(1), steps: new Array(1) }, 'profile.steps[0] to have an object but received undefined; give what readProfile or parseProfile returned'],
    [{ ...madeProfile(1), head: { ...madeProfile(1).head, version: 2 } }, 'profile.head to have version 1 but received 2; give what readProfile or parseProfile returned'],
    [{ ...madeProfile(1), head: 3 }, 'profile.head to be an object but received 3'],
    [{ ...madeProfile(1), steps: {} }, 'profile.steps to be an array but received an object'],
  ])('refuses a profile that was not read %#', (profile, message) => expect(refusal(() => summarizeProfile(profile as never))).toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[summarizeProfile] Expected ${message}` }));
  test.each<[unknown, string, string]>([
    [undefined, 'ERR_ARGUMENT', 'summary to be an object but received undefined'],
    [{}, 'ERR_ARGUMENT', 'summary.layers to be an integer of at least 1 but received undefined'],
    [{ ...summary, notFinite: -1 }, 'ERR_RANGE', 'summary.notFinite to be an integer of at least 0 but received -1'],
    [{ ...summary, classes: undefined }, 'ERR_ARGUMENT', 'summary.classes to be an array but received undefined'],
    [{ ...summary, volatility: new Array(1) }, 'ERR_ARGUMENT', 'summary.volatility[0] to be an object but received undefined'],
    [{ ...summary, volatility: [{ class: 'image', steps: 9 }] }, 'ERR_ARGUMENT', 'mean of summary.volatility[0] to be a number of at least 0 but received undefined'],
    [{ ...summary, volatility: [{ class: 'image', steps: 0, mean: 1 }] }, 'ERR_RANGE', 'steps of summary.volatility[0] to be an integer of at least 1 but received 0'],
  ])('no findings of what is no summary %#', (given, code, message) => expect(refusal(() => profileFindings(given as never))).toMatchObject({ name: 'LibError', code, message: `[profileFindings] Expected ${message}` }));
  test('refuses a profile without steps, and what is none', () => {
    expect(refusal(() => summarizeProfile(madeProfile(0)))).toMatchObject({ code: 'ERR_RANGE', message: '[summarizeProfile] Expected a profile with at least one step but received one with none; train for at least one step' });
    expect(refusal(() => summarizeProfile(null as never))).toMatchObject({ code: 'ERR_ARGUMENT', message: '[summarizeProfile] Expected profile to be an object but received null' });
  });
});

describe('parts', () => {
  test('the interval of a mean holds it, narrows with more values, and repeats', () => {
    const series = (n: number): number[] => Array.from({ length: n }, (_, i) => 3 + Math.sin(12.9 * i));
    const [few, many] = [meanInterval(series(16))!, meanInterval(series(400))!];
    expect([few.low < 3.2, few.high > 2.8, many.high - many.low < few.high - few.low]).toEqual([true, true, true]);
    expect(meanInterval(series(16))).toEqual(few);
    expect(meanInterval(series(7))).toBeUndefined();
    expect(meanInterval(new Array<number>(9).fill(2))).toEqual({ low: 2, high: 2 });
  });
  test('the interval holds the true mean in 90 % of short series at least', () => {
    const TRIALS = 120;
    const normal = (trial: number, i: number): number => Math.sqrt(-2 * Math.log(1 - uniform(trial, 2 * i))) * Math.cos(2 * Math.PI * uniform(trial, 2 * i + 1));
    const held = (n: number): number => Array.from({ length: TRIALS }, (_, trial) => meanInterval(Array.from({ length: n }, (__, i) => normal(trial, i)))!).filter(({ low, high }) => low <= 0 && high >= 0).length;
    for (const n of [8, 20, 50]) expect(held(n) / TRIALS).toBeGreaterThanOrEqual(0.9);
  });
  test('blocks: values that go together say less than as many of their own', () => {
    const slow = Array.from({ length: 400 }, (_, i) => Math.sin(i / 60));
    const mixed = slow.map((_, i) => slow[(i * 149) % 400]!);
    const width = ({ low, high }: { low: number; high: number }): number => high - low;
    expect(width(meanInterval(slow)!)).toBeGreaterThan(2 * width(meanInterval(mixed)!));
  });
  test.each<[number, number, boolean, number[]]>([
    [0, 10, false, [0, 2, 4, 6, 8, 10]], [3, 3, false, [3]], [1, 1000, true, [1, 10, 100, 1000]], [2, 30, true, [2, 5, 10, 20]], [0, 1, false, [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]],
  ])('ticks from %d to %d, logarithmic %s', (low, high, isLogarithmic, expected) => expect(ticks(low, high, isLogarithmic)).toEqual(expected));
  test('curves are thinned to means of neighbours', () => {
    const points = normSeries(madeProfile(31), 'all', 0, 'image');
    expect(points).toHaveLength(31);
    expect(points[0]).toMatchObject({ step: 1, value: expect.closeTo(0.5 * (1 + 0.05 * Math.sin(2.4)), 6) });
    const few = thinned(points, 10);
    expect(few).toHaveLength(8);
    expect(few[0]!.step).toBe(2.5);
    expect(few[0]!.value).toBeCloseTo(points.slice(0, 4).reduce((sum, { value }) => sum + value, 0) / 4, 12);
    expect(thinned(points, 31)).toEqual(points);
    expect(matrixSeries(madeProfile(11), 'all', [0, 1], 0)).toEqual([1, 6, 11].map((step) => ({ step, value: 6 })));
  });
  test.each<[number, string]>([[0.4321, '0.432'], [12345, '1.23e4'], [NaN, '-'], [2, '2.00'], [1e-9, '1e-9']])('%d is shown as %s', (value, text) => expect(figure(value)).toBe(text));
  test('names of levels', () => expect([levelName('layers', 2), levelName(0, 2), levelName(2, 2)]).toEqual(['all layers', 'layer 0', 'final']));
});

/** Every element is closed in order; attributes have quotes; only the five entities. */
function expectWellFormed(html: string): void {
  const open: string[] = [];
  const body = html.replace('<!DOCTYPE html>', '').replace(/<style>.*?<\/style>/s, '');
  const tags = /<(\/?)([a-z][a-z0-9]*)((?:\s+[a-zA-Z:-]+="[^"<]*")*)\s*(\/?)>/gi;
  for (const [, end, name, , single] of body.matchAll(tags)) {
    if (end === '/') expect(open.pop()).toBe(name);
    else if (single !== '/') open.push(name!);
  }
  expect(open).toEqual([]);
  const rest = body.replace(tags, '');
  expect(rest).not.toMatch(/[<>]/);
  expect(rest.replace(/&(amp|lt|gt|quot|apos);/g, '')).not.toContain('&');
}

describe('page', () => {
  const page = profileHtml([{ name: 'a <b> & "c"', profile: madeProfile(30) }, { name: 'two', profile: { ...madeProfile(12), isCut: true } }], { title: 'T & <x>' });

  test('is well-formed, whole and without scripts or anything from elsewhere', () => {
    expectWellFormed(page);
    expect(page).not.toMatch(/<script|<link|<img|https?:\/\/(?!www\.w3\.org\/2000\/svg)|url\(|\son[a-z]+=/i);
    expect(page.match(/<h2>/g)).toHaveLength(2);
    expect(page).toContain('<h2>a &lt;b&gt; &amp; &quot;c&quot;</h2>');
    expect(page).toContain('The last line of the file is incomplete and left out.');
    expect(page).not.toMatch(/NaN|undefined|Infinity/);
  });
  test('every picture has a label, every line its own dashes, every cell its number', () => {
    const pictures = page.match(/<svg [^>]*>/g)!;
    expect(pictures.length).toBeGreaterThan(20);
    for (const picture of pictures) expect(picture).toMatch(/aria-label="[^"]+"|aria-hidden="true"/);
    expect(new Set([...page.matchAll(/<path d="M0 5H40"[^>]*?(stroke-dasharray="[^"]*")?\/>/g)].map(([, dash]) => dash ?? '')).size).toBeGreaterThanOrEqual(5);
    expect(page).toContain('effective rank');
  });
  test('one step, no image, no matrices: still a page', () => {
    const profile = madeProfile(1);
    const bare = profileHtml([{ name: 'x', profile: { ...profile, steps: profile.steps.map(({ matrices: _, ...step }) => step) } }]);
    expectWellFormed(bare);
    expect(bare).toContain('None were recorded.');
    expect(bare).toContain('<title>Gradient dynamics</title>');
    expect(bare).not.toMatch(/NaN|undefined|Infinity/);
  });
  test.each<[unknown, unknown, string]>([
    [[], {}, '[profileHtml] Expected at least one profile but received none'],
    [3, {}, '[profileHtml] Expected profiles to be an array but received 3'],
    [[null], {}, '[profileHtml] Expected profiles[0] to be an object but received null'],
    [new Array(1), {}, '[profileHtml] Expected profiles[0] to be an object but received undefined'],
    [[{ name: 'x', profile: madeProfile(1), colour: 'red' }], {}, "[profileHtml] Expected options among name, profile but received 'colour'"],
    [[{ name: 3, profile: madeProfile(1) }], {}, '[profileHtml] Expected name of profiles[0] to be a string but received 3'],
    [[{ name: 'x', profile: madeProfile(1) }], { titel: 'x' }, "[profileHtml] Expected options among title, from, to but received 'titel'"],
    [[{ name: 'x', profile: madeProfile(1) }], { title: 3 }, '[profileHtml] Expected title to be a string but received 3'],
  ])('refuses %#', (profiles, options, message) => expect(refusal(() => profileHtml(profiles as never, options as never))).toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message }));
});
