/** Given latents, blocks and routes in a real session: what a run was given back changes nothing, and other things do what they say. */
import type { LatentModel } from '../../lib/latentModel';
import { makePreset, PRESETS, type Preset, type PresetChanges } from '../../lib/model/preset';
import { formOf, openReasoning } from '../../lib/model/reasoning';
import type { NativePass, NativePassResult } from '../../lib/native';
import { runBatch, type BatchOptions, type BatchRun, type SequenceInput } from '../../lib/train/batch';
import type { ReasoningSteps, SequenceRoute } from '../../lib/train/probes';
import { disposing, RAGGED, reasoner, settleThresholds, traces, worstGap } from './reasoner';
import { bytesOf, trainingStep } from './reasoningLoss';

const models: LatentModel[] = [];
afterAll(() => { for (const model of models) model.dispose(); });

async function made(changes: PresetChanges): Promise<LatentModel> {
  const model = await reasoner({ patches: 3, window: 2, alpha: 3, maxDepth: 3, ...changes });
  models.push(model);
  await settleThresholds(model, () => traces(model, RAGGED), 1e-3);
  return model;
}

interface Ran extends BatchRun { passes: NativePass[] }
async function run(model: LatentModel, preset: Preset, sequences: readonly SequenceInput[] = RAGGED, options: BatchOptions = {}): Promise<Ran> {
  const passes: NativePass[] = [];
  return disposing(openReasoning('test', model, preset, { training: false, recompute: false, visionGradient: false }), async (session) => ({
    ...await runBatch(session, sequences, model.geometry, {
      preset, feedLastWord: true, keepSteps: true, ...options,
      adjust: (pass) => {
        passes.push({ ...pass, logitRows: Int32Array.from(pass.kind.keys()), hiddenRows: Int32Array.from(pass.kind.keys()), traceRouting: true });
        return passes.at(-1)!;
      },
    }),
    passes,
  }));
}
const logits = ({ results }: BatchRun): Buffer[] => results.map((result) => bytesOf(result.logits));

/** Rows that a run routed, in the sequences' own numbers. */
function routesOf({ passes, results }: Ran, preset: Preset): SequenceRoute[][] {
  return RAGGED.map((_, id) => {
    const routes = new Map<string, SequenceRoute & { rows: number[] }>();
    let before = 0;
    passes.forEach(({ sequences, cuSeqlens }, n) => {
      const b = sequences.indexOf(id);
      if (b < 0) return;
      const [start, end] = [cuSeqlens[b]!, cuSeqlens[b + 1]!];
      for (const { layer, depth, routed } of results[n]!.routing!) {
        const key = `${layer} ${depth}`;
        const route = routes.get(key) ?? { layer, depth, rows: [] };
        if (formOf(preset) === 'recompute') route.rows = [];   // the last pass has them all
        route.rows.push(...Array.from(routed).filter((row) => row >= start && row < end).map((row) => row - start + before));
        routes.set(key, route);
      }
      before += formOf(preset) === 'cached' ? end - start : 0;
    });
    return [...routes.values()];
  });
}

const KINDS: [string, PresetChanges][] = [
  ['default', {}], ['prefix-topk, mlp, raw, scaled', { rule: 'prefix-topk', router: 'mlp', gate: 'raw', fusion: 'scaled' }],
  ["form 'recompute', misordered", { ...PRESETS.official, grid: null, maxDepth: 3, patches: 3, alpha: 4, routedLayers: [1, 3] }],
];
describe.each(KINDS)('%s', (_, changes) => {
  let model: LatentModel;
  let preset: Preset;
  let plain: Ran;
  let steps: ReasoningSteps[];
  beforeAll(async () => {
    model = await made(changes);
    ({ preset } = model);
    plain = await run(model, preset);
    steps = plain.steps!;
  });
  const probed = (probe: (id: number) => SequenceInput['probe']): SequenceInput[] => RAGGED.map((sequence, id) => ({ ...sequence, probe: probe(id)! }));

  test('a latent is the final hidden state of the row before its block', () => {
    const D = model.geometry.hidden;
    expect(steps.map(({ latents, blocks }) => [latents.length / D, blocks.length])).toEqual(RAGGED.map(({ latents }) => [latents, latents]));
    expect(steps.some(({ blocks }) => blocks.some((block) => block.length === 3 * D))).toBe(true);
    expect(steps[1]!.blocks).toEqual([new Float32Array(0)]);   // of a sequence without pictures
    const hidden = (pass: number, id: number): Float32Array => {
      const { sequences, cuSeqlens } = plain.passes[pass]!;
      const row = cuSeqlens[sequences.indexOf(id) + 1]! - 1;
      return (plain.results[pass] as NativePassResult).hidden.subarray(row * D, (row + 1) * D);
    };
    steps.forEach(({ latents }, id) => {
      for (let step = 0; step * D < latents.length; step++) expect(latents.subarray(step * D, (step + 1) * D)).toEqual(hidden(step, id));
    });
  });
  test('its own latents and blocks given back: the same bits; each alone too', async () => {
    for (const probe of [(id: number) => steps[id]!, (id: number) => ({ latents: steps[id]!.latents }), (id: number) => ({ blocks: steps[id]!.blocks })]) {
      const again = await run(model, preset, probed(probe));
      expect(logits(again)).toEqual(logits(plain));
      expect(again.steps).toEqual(steps);
    }
  });
  test('other latents change the words, with kept blocks and, otherwise, with new ones', async () => {
    const zeros = (id: number): Float32Array => new Float32Array(steps[id]!.latents.length);
    const kept = await run(model, preset, probed((id) => ({ latents: zeros(id), blocks: steps[id]!.blocks })));
    const again = await run(model, preset, probed((id) => ({ latents: zeros(id) })));
    expect(kept.steps).toEqual(steps.map(({ blocks }, id) => ({ latents: zeros(id), blocks })));
    expect(again.steps!.map(({ latents }) => latents)).toEqual(steps.map((_, id) => zeros(id)));
    for (const ran of [kept, again]) expect(worstGap(ran.results.at(-1)!.logits, plain.results.at(-1)!.logits)).toBeGreaterThan(1e-3);
    expect(again.steps!.map(({ blocks }) => blocks)).not.toEqual(steps.map(({ blocks }) => blocks));
  });
  test('dropped blocks are a preset without replay', async () => {
    const dropped = await run(model, preset, probed(() => ({ blocks: 'dropped' })));
    expect(logits(dropped)).toEqual(logits(await run(model, makePreset({ replay: false }, 4, preset))));
    expect(dropped.steps!.flatMap(({ blocks }) => blocks).every(({ length }) => length === 0)).toBe(true);
  });
  test('no forced rows are a preset without routing', async () => {
    const none = await run(model, preset, RAGGED, { forcedRoutes: RAGGED.map(() => []) });
    const off = await run(model, makePreset({ routedLayers: [] }, 4, preset), RAGGED);
    if (formOf(preset) === 'cached') expect(logits(none)).toEqual(logits(off));
    // Without routing nothing looks ahead: it runs cached, and sums in another order.
    else expect(worstGap(none.results.at(-1)!.logits.slice(-model.geometry.vocab), off.results.at(-1)!.logits.slice(-model.geometry.vocab))).toBeLessThan(1e-5);
    expect(none.results.flatMap(({ routing }) => routing!.flatMap(({ routed }) => [...routed]))).toEqual([]);
  });
  test('forced rows that were not routed before, as far as they are candidates', async () => {
    const forcedRoutes = RAGGED.map(() => preset.routedLayers.flatMap((layer) => [{ layer, depth: 2, rows: [0, 2, 3] }, { layer, depth: 3, rows: [1, 2] }]));
    const forced = await run(model, preset, RAGGED, { forcedRoutes });
    for (const id of RAGGED.keys()) {
      expect(routesOf(forced, preset)[id]!.map(({ layer, depth, rows }) => [layer, depth, rows])).toEqual(preset.routedLayers.flatMap((layer) => [[layer, 2, [0, 2, 3]], [layer, 3, [2]]]));
    }
    expect(worstGap(forced.results.at(-1)!.logits, plain.results.at(-1)!.logits)).toBeGreaterThan(1e-4);
  });
  test('forced routes train, and activations that are computed again give the same bits', async () => {
    const forcedRoutes = RAGGED.map(() => preset.routedLayers.flatMap((layer) => [{ layer, depth: 2, rows: [0, 2, 3] }, { layer, depth: 3, rows: [2] }]));
    const kept = await trainingStep(model, preset, RAGGED, { forcedRoutes });
    const again = await trainingStep(model, preset, RAGGED, { forcedRoutes, recompute: true });
    const free = await trainingStep(model, preset, RAGGED);
    const router = preset.router === 'mlp' ? 'router.1.2.weight' : 'router.1.weight';
    expect(again.total).toBe(kept.total);
    for (const [name, gradient] of kept.gradients) expect([name, Buffer.compare(bytesOf(gradient), bytesOf(again.gradients.get(name)!))]).toEqual([name, 0]);
    expect(kept.gradients.get(router)!.some((value) => value !== 0)).toBe(true);
    expect(kept.gradients.get(router)).not.toEqual(free.gradients.get(router));
  });
});

test.each(KINDS.slice(0, 2))('%s: the rows of the rule, forced: the same bits', async (_, changes) => {
  const model = await made(changes);
  const plain = await run(model, model.preset);
  const forcedRoutes = routesOf(plain, model.preset);
  expect(forcedRoutes.flat().filter(({ depth, rows }) => depth === 3 && rows.length > 0).length).toBeGreaterThan(0);
  expect(logits(await run(model, model.preset, RAGGED, { forcedRoutes }))).toEqual(logits(plain));
});

test('a rule that remembers goes on after a forced pass as if it had chosen itself', async () => {
  const model = await made({ rule: 'prefix-topk', alpha: 2, replay: false });
  const routedLater = async (isForced: boolean): Promise<number[][]> => disposing(openReasoning('test', model, model.preset, { training: false, recompute: false, visionGradient: false }), async (session) => {
    const { results } = await runBatch(session, RAGGED, model.geometry, {
      preset: model.preset, adjust: (pass, number) => ({
        ...pass, traceRouting: true,
        ...(isForced && number === 0 ? { forcedRoutes: [{ layer: 3, depth: 2, rows: Int32Array.of(pass.kind.length - 1) }] } : {}),
      }),
    });
    return results.map(({ routing }) => routing!.filter(({ layer, depth }) => layer === 3 && depth === 2).flatMap(({ routed }) => [...routed]));
  });
  const [free, forced] = [await routedLater(false), await routedLater(true)];
  expect(forced[0]).toHaveLength(1);
  expect(free[0]!.length).toBeGreaterThan(2);
  // The best of pass 0 fill both places of each sequence, whether they were routed or not: a later row must beat them.
  expect(forced.slice(1).map((rows) => rows.length)).toEqual(free.slice(1).map((rows) => rows.length));
});
