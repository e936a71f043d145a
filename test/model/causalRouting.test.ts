/** Rules and gates that look at earlier rows only: however rows are cut into passes, whatever is batched with them, the results are those of one prefill. */
import type { LatentModel } from '../../lib/latentModel';
import { appendPrompt, newCursor, packPictures } from '../../lib/model/passes';
import { makePreset, type Preset, type PresetChanges } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import { ROW_KIND, type NativePass, type NativeRoutingTrace, type NativeSession } from '../../lib/native';
import { dice, disposing, prompt, reasoner, settleThresholds, words, worstGap } from './reasoner';

type Source = ReturnType<typeof prompt>;
interface Row { kind: number; index: number; position: readonly number[]; }
/** Rows of one sequence, and the hidden states that its latents copied. */
interface Sequence { rows: Row[]; fed: number[][]; }

const SOURCES: readonly [Source, latents: number, said: number][] = [[prompt(1, [[2, 3]]), 3, 5], [prompt(2, [], 9), 0, 6], [prompt(3, [[1, 2], [2, 1]], 6), 2, 0]];

function open(model: LatentModel, preset: Preset = model.preset): NativeSession {
  return openReasoning('test', model, preset, { training: false, recompute: false, visionGradient: false });
}

/** Prompt, latents, words; visual rows count from `visual`. */
function layout(model: LatentModel, [source, latents, said]: (typeof SOURCES)[number], visual: number): Sequence {
  const cursor = newCursor(0);
  appendPrompt(cursor, source, model.geometry, model.preset.positions, visual);
  const rows = cursor.kind.map((kind, i): Row => ({ kind, index: cursor.index[i]!, position: cursor.positions.map((axis) => axis[i]!) }));
  const add = (kind: number, index: number): void => { rows.push({ kind, index, position: new Array<number>(3).fill(rows.length + cursor.delta) }); };
  for (let n = 0; n < latents; n++) add(ROW_KIND.latent, 0);
  for (const word of words(said + 7, said)) add(ROW_KIND.token, word);
  return { rows, fed: [] };
}

function pass(parts: readonly { id: number; rows: readonly Row[] }[]): NativePass {
  const rows = parts.flatMap((part) => part.rows);
  return {
    sequences: Int32Array.from(parts, ({ id }) => id), cuSeqlens: Int32Array.from([0, ...parts.map((_, n) => parts.slice(0, n + 1).reduce((sum, part) => sum + part.rows.length, 0))]),
    kind: Uint8Array.from(rows, ({ kind }) => kind), index: Int32Array.from(rows, ({ index }) => index),
    positions: Int32Array.from([0, 1, 2].flatMap((axis) => rows.map(({ position }) => position[axis]!))), logitRows: Int32Array.from(rows.keys()),
  };
}

/** All rows in one pass, the latents given as the hidden states that they copy. Runs as often as there are latents to find those. */
async function prefill(model: LatentModel, source: (typeof SOURCES)[number], preset = model.preset): Promise<{ logits: Float32Array; routing: NativeRoutingTrace[] }> {
  const { rows, fed } = layout(model, source, 0);
  for (;;) {
    const next = rows.findIndex((row) => row.kind === ROW_KIND.latent);
    const some = next < 0 ? rows : rows.slice(0, next);
    const result = await disposing(open(model, preset), async (session) => {
      if (source[0].pictures.length > 0) await session.encode(...Object.values(packPictures([source[0]])) as [Uint8Array, Int32Array]);
      return session.extend({ ...pass([{ id: session.add(), rows: some }]), embeddings: Float32Array.from(fed.flat()), hiddenRows: Int32Array.of(some.length - 1), traceRouting: true });
    });
    if (next < 0) return { logits: result.logits, routing: result.routing! };
    rows[next] = { ...rows[next]!, kind: ROW_KIND.embedding, index: fed.length };
    fed.push([...result.hidden]);
  }
}

/** All sequences in one session in random pieces: 0 rows or more of each in a pass, latents from their own last row, now and then a fork that goes on. */
async function inPieces(model: LatentModel, draw: (end: number) => number): Promise<{ logits: number[]; source: number }[]> {
  return disposing(open(model), async (session) => {
    await session.encode(...Object.values(packPictures(SOURCES.map(([source]) => source))) as [Uint8Array, Int32Array]);
    let visual = 0;
    const going = SOURCES.map((source, n) => {
      const { rows } = layout(model, source, visual);
      visual += rows.filter(({ kind }) => kind === ROW_KIND.visual).length;
      return { id: session.add(), rows, sent: 0, logits: [] as number[], source: n };
    });
    while (going.some(({ rows, sent }) => sent < rows.length)) {
      const parts = going.filter(() => draw(4) > 0).map((one) => {
        const rest = one.rows.slice(one.sent);
        const latent = rest.findIndex(({ kind }, n) => n > 0 && kind === ROW_KIND.latent);   // it copies the row before it, which must have run
        return { one, id: one.id, rows: rest.slice(0, Math.min(draw(2) ? draw(3) : draw(rest.length + 1), latent < 0 ? Infinity : latent)) };
      }).sort(() => draw(2) - 0.5);
      if (parts.every(({ rows }) => rows.length === 0)) continue;
      const { logits } = await session.extend(pass(parts));
      let at = 0;
      for (const { one, rows } of parts) {
        one.logits.push(...logits.subarray(at, at += rows.length * model.geometry.vocab));
        one.sent += rows.length;
      }
      const forked = going[draw(going.length)]!;
      if (going.length < 5 && draw(6) === 0) going.push({ ...forked, id: await session.fork(forked.id), logits: [...forked.logits] });
    }
    return going.map(({ logits, source }) => ({ logits, source }));
  });
}

const RULES: readonly PresetChanges[] = [{ rule: 'threshold' }, { rule: 'prefix-topk', alpha: 4 }];
const CONFIGURATIONS = RULES.flatMap((rule) => [2, 3, 4].flatMap((maxDepth) => (['linear', 'mlp'] as const).flatMap((router) => (['sigmoid', 'raw'] as const).flatMap((gate) =>
  (['interpolate', 'scaled', 'plain'] as const).map((fusion): PresetChanges => ({ ...rule, maxDepth, router, gate, fusion, replay: false }))))));
let chunkings = 0;

test.each(CONFIGURATIONS)('%j', async (changes) => {
  const model = await reasoner(changes);
  try {
    const whole = async (): Promise<NativeRoutingTrace[]> => (await Promise.all(SOURCES.map((source) => prefill(model, source)))).flatMap(({ routing }) => routing);
    await settleThresholds(model, whole);
    const expected = await Promise.all(SOURCES.map((source) => prefill(model, source)));
    // Rows went deeper, not all of them, up to the last pass.
    for (const depth of Array.from({ length: changes.maxDepth! - 1 }, (_, n) => n + 2)) {
      const passes = expected.flatMap(({ routing }) => routing).filter((trace) => trace.depth === depth);
      expect(passes.reduce((sum, { routed }) => sum + routed.length, 0)).toBeGreaterThan(0);
      if (depth === 2) expect(passes.some(({ routed, candidates }) => routed.length < candidates.length)).toBe(true);
    }
    const unrouted = await prefill(model, SOURCES[0]!, makePreset({ routedLayers: [] }, 4, model.preset));
    expect(worstGap(unrouted.logits, expected[0]!.logits)).toBeGreaterThan(1e-3);   // routing shows far above the tolerance
    for (let n = 0; n < 3; n++, chunkings++) {
      for (const { logits, source } of await inPieces(model, dice(chunkings))) expect(worstGap(logits, expected[source]!.logits)).toBeLessThan(1e-5);
    }
  } finally {
    model.dispose();
  }
});

test('these were at least 200 chunkings', () => expect(chunkings).toBeGreaterThanOrEqual(200));
