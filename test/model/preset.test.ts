import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { extraShapes, UNSET_THRESHOLD } from '../../lib/model/extras';
import {
  looksAhead, makePreset, parsePreset, PLAIN, PRESETS, presetJson, replaySpec, routingSpec,
  type PresetChanges, type PresetName,
} from '../../lib/model/preset';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
const NAMES = Object.keys(PRESETS) as PresetName[];
const refusal = (code: string, message: string): unknown => expect.objectContaining({ name: 'LibError', code, message });

describe('the named presets', () => {
  test.each(NAMES)('%s has the switches of the oracle', (name) => {
    const { presets } = JSON.parse(readFileSync(join(TINY, 'plumbline.json'), 'utf8')) as { presets: Record<string, Record<string, unknown>> };
    const oracle = Object.fromEntries(Object.entries(presets[name]!).map(([key, value]) => [key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()), value]));
    const { name: _, ...own } = oracle;
    // The fixture's sizes are those of a tiny model.
    const { patches, window, grid, srWeight, alpha, routedLayers, ...switches } = presetJson(makePreset(name, 2));
    const { targetFraction, thresholdRate, routerPenalty, ...known } = switches;
    expect({ ...known, patches: own['patches'], window: own['window'], grid: own['grid'], srWeight: own['srWeight'], alpha: own['alpha'], routedLayers: own['routedLayers'] }).toEqual(own);
    expect([targetFraction, thresholdRate, routerPenalty]).toEqual([0.1, 0.1, name === 'default' ? 1e-4 : 0]);
    expect([patches, srWeight, alpha, routedLayers]).toEqual([32, 1, 32, [1]]);
    expect([window, grid]).toEqual(name === 'official' ? [4, 10] : [3, null]);
  });

  test('all are frozen, layers too, and the odd layers depend on the model', () => {
    for (const name of NAMES) {
      expect(Object.isFrozen(PRESETS[name])).toBe(true);
      const preset = makePreset(name, 5);
      expect([Object.isFrozen(preset), Object.isFrozen(preset.routedLayers)]).toEqual([true, true]);
      expect(preset).toEqual({ ...PRESETS[name], routedLayers: [1, 3] });
    }
    expect(Object.isFrozen(PLAIN) && Object.isFrozen(PLAIN.routedLayers)).toBe(true);
    expect(PLAIN).toEqual({ ...PRESETS.default, replay: false, routedLayers: [] });
    expect([1, 2, 3, 28].map((layers) => makePreset('default', layers).routedLayers.length)).toEqual([0, 1, 1, 14]);
  });

  test('which look ahead', () => {
    const ahead = (changes: PresetChanges): boolean => looksAhead(makePreset(changes, 4));
    expect(NAMES.map((name) => [name, looksAhead(makePreset(name, 4))])).toEqual([['default', false], ['paper', true], ['official', true]]);
    expect(looksAhead(PLAIN)).toBe(false);
    expect(ahead({ rule: 'prefix-topk' })).toBe(false);
    expect(ahead({ rule: 'topk' })).toBe(true);
    expect(ahead({ gate: 'softmax-sequence' })).toBe(true);
    expect(ahead({ name: 'paper', maxDepth: 1 })).toBe(false);
    expect(ahead({ name: 'official', routedLayers: [] })).toBe(false);
  });
});

describe('changes', () => {
  test('are applied to the named preset, to the base, or to the default', () => {
    const base = makePreset({ name: 'paper', alpha: 6, routedLayers: [2] }, 4);
    expect(makePreset({ patches: 4 }, 4, base)).toEqual({ ...base, patches: 4 });
    expect(makePreset({ name: 'official', patches: 4 }, 4, base)).toEqual({ ...makePreset('official', 4), patches: 4 });
    expect(makePreset({ patches: 4, routedLayers: [] }, 4)).toEqual({ ...PRESETS.default, patches: 4, routedLayers: [] });
    expect(makePreset(base, 4)).toEqual(base);
    expect(makePreset({ routedLayers: 'odd' }, 4, base).routedLayers).toEqual([1, 3]);
  });

  test('lists are copied', () => {
    const given = [3];
    const preset = makePreset({ routedLayers: given }, 4);
    given[0] = 9;
    expect(preset.routedLayers).toEqual([3]);
  });

  test.each<[unknown, string, string]>([
    ['papr', 'ERR_ARGUMENT', `Expected name to be one of 'default', 'paper', 'official' but received "papr"; did you mean 'paper'?`],
    [5, 'ERR_ARGUMENT', 'Expected a preset to be a name or an object of switches but received 5'],
    [[], 'ERR_ARGUMENT', 'Expected a preset to be a name or an object of switches but received Array(0)'],
    [{ name: undefined }, 'ERR_ARGUMENT', "Expected name to be one of 'default', 'paper', 'official' but received undefined"],
    [{ windw: 3 }, 'ERR_ARGUMENT', `Expected the switches of a preset, ${Object.keys(PRESETS.default).join(', ')}, but received "windw"; did you mean 'window'?`],
    [{ latent_gradient: 'through' }, 'ERR_ARGUMENT', `Expected the switches of a preset, ${Object.keys(PRESETS.default).join(', ')}, but received "latent_gradient"; did you mean 'latentGradient'?`],
    [{ rule: 'top-k' }, 'ERR_ARGUMENT', "Expected rule to be one of 'threshold', 'prefix-topk', 'topk' but received \"top-k\"; did you mean 'topk'?"],
    [{ replay: 1 }, 'ERR_ARGUMENT', 'Expected replay to be a boolean but received 1'],
    [{ patches: 0 }, 'ERR_RANGE', 'Expected patches to be an integer from 1 to 65536 but received 0'],
    [{ patches: undefined }, 'ERR_ARGUMENT', 'Expected patches to be an integer from 1 to 65536 but received undefined'],
    [{ window: 2.5 }, 'ERR_RANGE', 'Expected window to be an integer from 1 to 65536 but received 2.5'],
    [{ grid: 0 }, 'ERR_RANGE', 'Expected grid to be an integer from 1 to 4096 but received 0'],
    [{ alpha: 2 ** 20 + 1 }, 'ERR_RANGE', 'Expected alpha to be an integer from 1 to 1048576 but received 1048577'],
    [{ maxDepth: 5 }, 'ERR_RANGE', 'Expected maxDepth to be an integer from 1 to 4 but received 5'],
    [{ maxDepth: 0 }, 'ERR_RANGE', 'Expected maxDepth to be an integer from 1 to 4 but received 0'],
    [{ srWeight: -1 }, 'ERR_RANGE', 'Expected srWeight to be a number from 0 to 1000000 but received -1'],
    [{ targetFraction: 1.1 }, 'ERR_RANGE', 'Expected targetFraction to be a number from 0 to 1 but received 1.1'],
    [{ thresholdRate: NaN }, 'ERR_RANGE', 'Expected thresholdRate to be a number from 0 to 1 but received NaN'],
    [{ routerPenalty: Infinity }, 'ERR_RANGE', 'Expected routerPenalty to be a number from 0 to 1000000 but received Infinity'],
    [{ routedLayers: 'even' }, 'ERR_ARGUMENT', "Expected routedLayers to be 'odd' or an array of layers but received \"even\""],
    [{ routedLayers: [1, 4] }, 'ERR_RANGE', 'Expected layer 1 of routedLayers to be an integer from 0 to 3 but received 4'],
    [{ routedLayers: new Array<number>(1) }, 'ERR_ARGUMENT', 'Expected layer 0 of routedLayers to be an integer from 0 to 3 but received undefined'],
    [{ routedLayers: [3, 1] }, 'ERR_ARGUMENT', 'Expected routedLayers to rise, each layer once, but received 1 after 3'],
    [{ routedLayers: [1, 1] }, 'ERR_ARGUMENT', 'Expected routedLayers to rise, each layer once, but received 1 after 1'],
    [{ misordered: true }, 'ERR_ARGUMENT', "Expected misordered to be false unless rule is 'topk' and fusion 'plain' or 'scaled' but received true with 'threshold' and 'interpolate'"],
    [{ name: 'official', fusion: 'interpolate' }, 'ERR_ARGUMENT', "Expected misordered to be false unless rule is 'topk' and fusion 'plain' or 'scaled' but received true with 'topk' and 'interpolate'"],
  ])('%j is refused', (changes, code, message) => {
    expect(() => makePreset(changes as never, 4)).toThrow(refusal(code, `[preset] ${message}`) as Error);
  });

  test('every switch is checked', () => {
    for (const key of Object.keys(PRESETS.default)) {
      expect(() => makePreset({ [key]: Symbol('wrong') } as never, 4)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_ARGUMENT', message: expect.stringContaining(key) as string }) as unknown as Error);
    }
    expect(() => makePreset('default', 0)).toThrow(refusal('ERR_RANGE', '[preset] Expected layers to be an integer from 1 to 4096 but received 0') as Error);
  });

  test.each<[string, () => unknown]>([
    ['looksAhead', () => looksAhead(PRESETS.paper as never)], ['replaySpec', () => replaySpec(PRESETS.paper as never)],
    ['routingSpec', () => routingSpec(PRESETS.paper as never)], ['extraShapes', () => extraShapes(PRESETS.paper as never, 8)],
  ])('%s wants layers that are resolved', (_, call) => {
    expect(call).toThrow(refusal('ERR_ARGUMENT', '[preset] Expected a preset of makePreset but received one with routedLayers "odd"') as Error);
    expect(() => looksAhead(null as never)).toThrow(refusal('ERR_ARGUMENT', '[preset] Expected a preset of makePreset but received null') as Error);
  });
});

describe('what sessions are opened with', () => {
  test('replay', () => {
    expect(replaySpec(PLAIN)).toBeUndefined();
    expect(replaySpec(makePreset('default', 2))).toEqual({
      patches: 32, window: 3, grid: 0, weights: 'mean-preserving', mix: false, reselectUsed: false, topkOrder: false, saliencyGradient: true,
      tokenSr: true, srInput: 'weighted', srAdded: true, targetGradient: false, officialCrop: false,
    });
    expect(replaySpec(makePreset({ name: 'official', mode: 'soft-mix', saliencyGradient: 'detached' }, 2))).toEqual({
      patches: 32, window: 4, grid: 10, weights: 'softmax', mix: true, reselectUsed: true, topkOrder: true, saliencyGradient: false,
      tokenSr: true, srInput: 'unweighted', srAdded: false, targetGradient: true, officialCrop: true,
    });
  });

  test('routing', () => {
    expect(routingSpec(PLAIN)).toBeUndefined();
    expect(routingSpec(makePreset({ maxDepth: 1 }, 4))).toBeUndefined();
    expect(routingSpec(makePreset({ name: 'official', maxDepth: 3 }, 4))).toEqual({
      layers: [1, 3], rule: 'topk', router: 'linear', alpha: 32, maxDepth: 3, gate: 'softmax-sequence', fusion: 'plain', misordered: true,
    });
  });
});

describe('in plumbline.json', () => {
  const json = (name: PresetName, changes: object = {}): unknown => JSON.parse(JSON.stringify({ ...presetJson(makePreset(name, 4)), ...changes }));

  test.each(NAMES)('%s comes back as it went', (name) => {
    const preset = makePreset({ name, patches: 5, routedLayers: [0, 2] }, 4);
    const back = parsePreset(name, JSON.parse(JSON.stringify(presetJson(preset))), 4);
    expect(back).toEqual(preset);
    expect(Object.isFrozen(back) && Object.isFrozen(back.routedLayers)).toBe(true);
    expect(presetJson(preset)).not.toHaveProperty('name');
  });

  test.each<[unknown, unknown, string, string]>([
    ['default', 5, 'ERR_CHECKPOINT', 'Expected switches in plumbline.json to be an object but received 5. '],
    ['mine', json('default'), 'ERR_CHECKPOINT', "Expected preset in plumbline.json to be one of 'default', 'paper', 'official' but received \"mine\". "],
    ['default', json('default', { window: 0 }), 'ERR_CHECKPOINT', 'Expected switches.window in plumbline.json to be an integer from 1 to 65536 but received 0. '],
    ['default', json('default', { window: null }), 'ERR_CHECKPOINT', 'Expected switches.window in plumbline.json to be an integer from 1 to 65536 but received null. '],
    ['default', json('default', { window: undefined }), 'ERR_CHECKPOINT', 'Expected switches.window in plumbline.json to be an integer from 1 to 65536 but received undefined. '],
    ['default', json('default', { grid: undefined }), 'ERR_CHECKPOINT', 'Expected switches.grid in plumbline.json to be an integer from 1 to 4096 but received undefined. '],
    ['default', json('default', { gate: 'tanh' }), 'ERR_CHECKPOINT', "Expected switches.gate in plumbline.json to be one of 'sigmoid', 'raw', 'softmax-sequence' but received \"tanh\". "],
    ['default', json('default', { routedLayers: [1, 4] }), 'ERR_CHECKPOINT', 'Expected layer 1 of switches.routedLayers in plumbline.json to be an integer from 0 to 3 but received 4. '],
    ['default', json('default', { misordered: true }), 'ERR_CHECKPOINT',
      "Expected switches.misordered in plumbline.json to be false unless rule is 'topk' and fusion 'plain' or 'scaled' but received true with 'threshold' and 'interpolate'. "],
    ['default', json('default', { newest: 1 }), 'ERR_UNSUPPORTED', 'Expected switches in plumbline.json that this version knows but received "newest". Update plumbline.'],
    ['default', json('default', { name: 'paper' }), 'ERR_UNSUPPORTED', 'Expected switches in plumbline.json that this version knows but received "name". Update plumbline.'],
    ['default', JSON.parse('{"__proto__": {}}'), 'ERR_UNSUPPORTED', 'Expected switches in plumbline.json that this version knows but received "__proto__". Update plumbline.'],
  ])('%j %j is refused', (name, switches, code, message) => {
    const remedy = code === 'ERR_CHECKPOINT' ? 'Correct the file, or save the checkpoint again.' : '';
    expect(() => parsePreset(name, switches, 4)).toThrow(refusal(code, `[load] ${message}${remedy}`) as Error);
  });
});

describe('the parameters that a preset needs', () => {
  const shapes = (changes: PresetChanges | PresetName, hidden = 8): string[] => extraShapes(makePreset(changes, 4), hidden).map(({ name, shape, start }) => `${name} [${shape.join(',')}] ${start}`);
  const SR = ['token_sr.0.weight [8,8] normal', 'token_sr.0.bias [8] 0', 'token_sr.2.weight [8,8] 0', 'token_sr.2.bias [8] 0'];

  test('default, paper, official', () => {
    expect(shapes({ routedLayers: [3] })).toEqual(['router.3.weight [1,8] normal', 'router.3.bias [1] 0', `router.3.threshold [1] ${UNSET_THRESHOLD}`, 'step.2 [8] 0', ...SR]);
    expect(shapes({ name: 'paper', maxDepth: 4 })).toEqual([
      ...[1, 3].flatMap((layer) => [`router.${layer}.0.weight [2,8] normal`, `router.${layer}.0.bias [2] 0`, `router.${layer}.2.weight [1,2] normal`, `router.${layer}.2.bias [1] 0`]),
      'step.2 [8] 0', 'step.3 [8] 0', 'step.4 [8] 0', ...SR,
    ]);
    expect(shapes('official')).toEqual([...[1, 3].flatMap((layer) => [`router.${layer}.weight [1,8] normal`, `router.${layer}.bias [1] 0`]), ...SR]);
  });

  test('none without routing and replay; token super-resolution where it is a loss or is added', () => {
    expect(extraShapes(PLAIN, 8)).toEqual([]);
    expect(shapes({ replay: false, maxDepth: 1 })).toEqual([]);
    expect(shapes({ maxDepth: 1 })).toEqual(SR);
    expect(shapes({ maxDepth: 1, tokenSr: false })).toEqual(SR);
    expect(shapes({ maxDepth: 1, srAdded: false })).toEqual(SR);
    expect(shapes({ maxDepth: 1, srAdded: false, tokenSr: false })).toEqual([]);
    expect(shapes({ name: 'paper', replay: false, routedLayers: [0] }, 3)[0]).toBe('router.0.0.weight [1,3] normal');
    expect(() => extraShapes(PLAIN, 0)).toThrow(refusal('ERR_RANGE', '[extras] Expected hidden to be an integer of at least 1 but received 0') as Error);
  });

  test('the unset threshold is the largest f32', () => {
    expect(UNSET_THRESHOLD).toBe(Math.fround(UNSET_THRESHOLD));
    expect(Math.fround(UNSET_THRESHOLD * (1 + 2 ** -23))).toBe(Infinity);
  });
});
