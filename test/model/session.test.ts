/** The native session as training and decoding use it: caches, latents, gradients, recomputation. Values are checked by test/parity. */
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { native, ROW_KIND, type NativePass, type NativeSession, type NativeSessionOptions } from '../../lib/native';
import { runBatch, type SequenceInput } from '../../lib/train/batch';

const CHECKPOINT = join(__dirname, '..', 'fixtures', 'tiny-qwen2', 'checkpoint');
const IMAGE = 303;
const VISION_START = 301;
const VISION_END = 302;

let model: LatentModel;
beforeAll(async () => {
  model = await LatentModel.load(CHECKPOINT, { dtype: 'f32' });
  await model.native.enableTraining();
});
afterAll(() => model.dispose());

function open(options: Partial<NativeSessionOptions> = {}): NativeSession {
  return model.openSession({ training: false, recompute: false, detachLatents: false, visionGradient: true, ...options });
}

function randomIds(count: number, seed: number): number[] {
  return Array.from({ length: count }, (_, i) => (Math.imul(seed + 7 * i + 13, 2654435761) >>> 8) % 300);
}

/** A sequence with pictures of `sides` merged cells, `latents` latents and `words` words. */
function sequence(seed: number, sides: readonly number[], latents: number, words: number, text = 5): SequenceInput {
  const pictures = sides.map((side, n) => ({
    frames: 1, height: 28 * side, width: 28, pixels: Uint8Array.from({ length: 28 * side * 28 * 3 }, (_, i) => (i * (seed + n + 3) * 31) % 251),
  }));
  const promptIds = [...randomIds(text, seed), ...sides.flatMap((side) => [VISION_START, ...Array<number>(side).fill(IMAGE), VISION_END]), ...randomIds(2, seed + 1)];
  return { promptIds, pictures, latents, words: randomIds(words, seed + 2) };
}

const RAGGED: readonly SequenceInput[] = [
  sequence(1, [2, 3], 3, 4), sequence(2, [], 1, 2), sequence(3, [1], 0, 5, 70), sequence(4, [], 0, 1, 1), sequence(5, [4], 2, 3, 130),
];

/** Logits of every row of every sequence, in row order, from one batch. */
async function logitsOfEach(sequences: readonly SequenceInput[]): Promise<number[][]> {
  const session = open();
  try {
    const passes: NativePass[] = [];
    const { results } = await runBatch(session, sequences, model.geometry, {
      feedLastWord: true, adjust: (pass) => { passes.push({ ...pass, logitRows: Int32Array.from(pass.kind.keys()) }); return passes.at(-1)!; },
    });
    const { vocab } = model.geometry;
    return sequences.map((_, n) => passes.flatMap((pass, p) => {
      const b = pass.sequences.indexOf(n);
      return b < 0 ? [] : [...results[p]!.logits.subarray(pass.cuSeqlens[b]! * vocab, pass.cuSeqlens[b + 1]! * vocab)];
    }));
  } finally {
    session.dispose();
  }
}

function worstGap(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  expect(a.length).toBeGreaterThan(0);
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i]!)), 0);
}

/** Loss and all gradients of one training step. */
async function gradients(sequences: readonly SequenceInput[], options: Partial<NativeSessionOptions> = {}): Promise<{ loss: number; all: Map<string, Float32Array> }> {
  await model.native.zeroGradients();
  const session = open({ training: true, ...options });
  try {
    const { targets } = await runBatch(session, sequences, model.geometry);
    const { losses } = await session.loss({ pass: targets.pass, row: targets.row, target: targets.target, scale: 1 / targets.row.length });
    await session.backward(0);
    const all = new Map<string, Float32Array>();
    for (const { name } of model.native.parameters()) all.set(name, await model.native.readParameter(name, 'gradient'));
    return { loss: losses.reduce((sum, loss) => sum + loss, 0) / losses.length, all };
  } finally {
    session.dispose();
  }
}

test('a ragged batch of many gives each sequence what it gets alone', async () => {
  const together = await logitsOfEach(RAGGED);
  for (const [n, one] of RAGGED.entries()) expect(worstGap(together[n]!, (await logitsOfEach([one]))[0]!)).toBeLessThan(1e-5);
});

test('rows fed in any chunks give the logits of one prefill', async () => {
  const prompt = sequence(9, [], 0, 1, 150).promptIds as number[];
  const whole = (await logitsOfEach([{ promptIds: prompt, pictures: [], latents: 0, words: [] }]))[0]!;
  for (const chunk of [1, 3, 63, 64, 65, 149]) {
    const session = open();
    const id = session.add();
    const got: number[] = [];
    for (let start = 0; start < prompt.length; start += chunk) {
      const ids = prompt.slice(start, start + chunk);
      const positions = ids.map((_, i) => start + i);
      const { logits } = await session.extend({
        sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, ids.length), kind: new Uint8Array(ids.length).fill(ROW_KIND.token), index: Int32Array.from(ids),
        positions: Int32Array.from([...positions, ...positions, ...positions]), logitRows: Int32Array.from(ids.keys()),
      });
      got.push(...logits);
    }
    session.dispose();
    expect(worstGap(got, whole)).toBeLessThan(1e-5);
  }
});

test('cached latents equal the recomputed prefix with the hidden states fed back as embeddings', async () => {
  const one = sequence(6, [3], 3, 0, 80);
  const cached = (await logitsOfEach([one]))[0]!;
  const width = model.config.text.hidden;
  const fed: number[] = [];
  let last: number[] = [];
  for (let latents = 0; latents <= one.latents; latents++) {
    const session = open(); // everything again from nothing
    const { frames, sizes } = { frames: one.pictures[0]!.pixels, sizes: Int32Array.of(1, one.pictures[0]!.height, one.pictures[0]!.width) };
    await session.encode(frames, sizes);
    let adjusted: NativePass | undefined;
    const rows = one.promptIds.length + latents;
    const probe = open();
    await runBatch(probe, [{ ...one, latents: 0 }], model.geometry, { adjust: (pass) => { adjusted = pass; return pass; } });
    probe.dispose();
    const delta = adjusted!.positions[one.promptIds.length - 1]! + 1 - one.promptIds.length;
    const positions = [0, 1, 2].flatMap((axis) => [
      ...adjusted!.positions.subarray(axis * one.promptIds.length, (axis + 1) * one.promptIds.length), ...Array.from({ length: latents }, (_, i) => one.promptIds.length + i + delta),
    ]);
    const { hidden, logits } = await session.extend({
      sequences: Int32Array.of(session.add()), cuSeqlens: Int32Array.of(0, rows),
      kind: Uint8Array.from([...adjusted!.kind, ...Array<number>(latents).fill(ROW_KIND.embedding)]), index: Int32Array.from([...adjusted!.index, ...Array.from({ length: latents }, (_, i) => i)]),
      positions: Int32Array.from(positions), embeddings: Float32Array.from(fed), hiddenRows: Int32Array.of(rows - 1), logitRows: Int32Array.from({ length: rows }, (_, i) => i),
    });
    session.dispose();
    expect(hidden.length).toBe(width);
    fed.push(...hidden);
    last = [...logits];
  }
  expect(worstGap(last, cached)).toBeLessThan(1e-5);
});

test('n latents add exactly n rows, whatever the prefix', async () => {
  for (const text of [5, 200]) {
    const counts: number[] = [];
    for (const latents of [0, 1, 4]) {
      const session = open();
      await runBatch(session, [sequence(7, [2], latents, 0, text)], model.geometry);
      counts.push(session.tokenForwards());
      session.dispose();
    }
    expect(counts[1]! - counts[0]!).toBe(1);
    expect(counts[2]! - counts[0]!).toBe(4);
  }
});

test('a fork shares the past and then goes its own way', async () => {
  const session = open();
  const step = async (id: number, token: number, position: number): Promise<number[]> => [...(await session.extend({
    sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, 1), kind: Uint8Array.of(ROW_KIND.token), index: Int32Array.of(token), positions: new Int32Array(3).fill(position), logitRows: Int32Array.of(0),
  })).logits];
  const id = session.add();
  for (let i = 0; i < 70; i++) await step(id, i, i);
  const twin = await session.fork(id);
  const other = await step(twin, 5, 70);
  const original = await step(id, 9, 70);
  expect(worstGap(await step(twin, 9, 71), await step(id, 9, 71))).toBeGreaterThan(1e-3);
  await session.free(id);
  const fresh = await session.fork(twin);
  expect(worstGap(await step(fresh, 1, 72), await step(twin, 1, 72))).toBe(0);
  expect(worstGap(other, original)).toBeGreaterThan(1e-3);
  session.dispose();
});

test('a fork taken after a failed pass owns its rows', async () => {
  const session = open();
  const rows = (id: number, start: number, count: number, position = 0): Promise<{ logits: Float32Array }> => session.extend({
    sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, count), kind: new Uint8Array(count).fill(ROW_KIND.token), index: Int32Array.from({ length: count }, (_, i) => (start + 7 * i) % 300),
    positions: Int32Array.from({ length: 3 * count }, (_, i) => position + (i % count)), logitRows: Int32Array.of(count - 1),
  });
  const a = session.add();
  await rows(a, 1, 10);
  const { CancelToken } = native();
  const token = new CancelToken();
  const cancelled = session.extend({
    sequences: Int32Array.of(a), cuSeqlens: Int32Array.of(0, 8000), kind: new Uint8Array(8000), index: new Int32Array(8000), positions: new Int32Array(24000),
  }, token); // long enough to be running when the token is set: its pages are reserved
  setTimeout(() => token.cancel(), 5);
  await expect(cancelled).rejects.toMatchObject({ code: 'ABORTED' });
  const b = await session.fork(a);
  await rows(a, 3, 200, 10);
  await rows(b, 5, 200, 10);
  const after = (await rows(a, 2, 1, 210)).logits;
  const alone = session.add();
  await rows(alone, 1, 10);
  await rows(alone, 3, 200, 10);
  expect(worstGap([...after], [...(await rows(alone, 2, 1, 210)).logits])).toBeLessThan(1e-5);
  session.dispose();
});

test('memory of a session stays flat over decoding steps and over ragged training steps', async () => {
  const session = open();
  const id = session.add();
  const decode = async (from: number, to: number): Promise<void> => {
    for (let i = from; i < to; i++) {
      await session.extend({ sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, 1), kind: Uint8Array.of(ROW_KIND.token), index: Int32Array.of(i % 300), positions: new Int32Array(3).fill(i), logitRows: Int32Array.of(0) });
    }
  };
  await decode(0, 20);
  const before = session.bytes();
  await decode(20, 60); // inside the first page of 64 rows
  expect(session.bytes()).toBe(before);
  session.dispose();

  const training = open({ training: true });
  const sizes: number[] = [];
  for (let step = 0; step < 60; step++) {
    const { targets } = await runBatch(training, [sequence(step, [1 + (step % 3)], step % 3, 2 + (step % 5), 5 + (step % 17))], model.geometry);
    await training.loss({ pass: targets.pass, row: targets.row, target: targets.target, scale: 1 });
    await training.backward(0);
    await training.reset();
    sizes.push(training.bytes());
  }
  training.dispose();
  expect(Math.max(...sizes.slice(30))).toBeLessThanOrEqual(2 * Math.max(...sizes.slice(0, 30)));
});

test('after a backward pass the gradient of visual rows is read with its own count, and old visual rows are gone', async () => {
  const session = open({ training: true });
  const one = sequence(3, [2], 0, 2);
  const { targets } = await runBatch(session, [one], model.geometry);
  await session.loss({ pass: targets.pass, row: targets.row, target: targets.target, scale: 1 });
  await session.backward(0);
  const { data, width } = await session.read('visual_grad', 0, 0);
  expect(data.length).toBe(2 * width);
  expect(Math.max(...data.map(Math.abs))).toBeGreaterThan(0);
  const stale = session.extend({ sequences: Int32Array.of(session.add()), cuSeqlens: Int32Array.of(0, 1), kind: Uint8Array.of(ROW_KIND.visual), index: Int32Array.of(0), positions: new Int32Array(3) });
  await expect(stale).rejects.toMatchObject({ code: 'ERR_RANGE', message: '[extend] Expected visual rows in 0..-1 but received 0 at row 0' });
  const { pixels } = one.pictures[0]!;
  await session.encode(Buffer.concat([pixels, pixels, pixels]), Int32Array.of(1, 56, 28, 1, 56, 28, 1, 56, 28));
  expect((await session.read('visual_grad', 0, 0)).data.length).toBe(2 * width);
  session.dispose();
});

test('a loss that is cancelled half-way spends the tape', async () => {
  const session = open({ training: true });
  const { targets } = await runBatch(session, RAGGED, model.geometry);
  const token = new (native().CancelToken)();
  token.cancel();
  const asked = { pass: targets.pass, row: targets.row, target: targets.target, scale: 1 };
  await expect(session.loss(asked, token)).rejects.toMatchObject({ code: 'ABORTED' });
  session.dispose();
});

test('a new model starts from zeros, not from memory that was freed', async () => {
  const spec = { ...model.config.text };
  for (let round = 0; round < 2; round++) {
    const fresh = await LatentModel.create(model.config, { seed: round });
    fresh.dispose();
  }
  const bare = new (native().Model)({ text: spec, vision: { ...model.config.vision, imageMean: [0, 0, 0], imageStd: [1, 1, 1] }, dtype: 'f32' });
  for (const { name } of bare.parameters()) expect((await bare.readParameter(name, 'value')).every((value) => value === 0)).toBe(true);
  bare.dispose();
});

test('recomputed activations give the same bits', async () => {
  const kept = await gradients(RAGGED);
  const recomputed = await gradients(RAGGED, { recompute: true });
  expect(recomputed.loss).toBe(kept.loss);
  for (const [name, values] of kept.all) expect(Buffer.compare(Buffer.from(values.buffer), Buffer.from(recomputed.all.get(name)!.buffer))).toBe(0);
});

test('repeated runs give the same bits', async () => {
  const [a, b] = [await gradients(RAGGED), await gradients(RAGGED)];
  for (const [name, values] of a.all) expect(Buffer.compare(Buffer.from(values.buffer), Buffer.from(b.all.get(name)!.buffer))).toBe(0);
});

test('gradients of two halves of a batch add up to those of the whole', async () => {
  const whole = await gradients(RAGGED);
  const words = (some: readonly SequenceInput[]): number => some.reduce((sum, { words: { length } }) => sum + length, 0);
  const [first, second] = [RAGGED.slice(0, 2), RAGGED.slice(2)];
  const [a, b] = [await gradients(first), await gradients(second)];
  for (const [name, values] of whole.all) {
    const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const sum = a.all.get(name)!.map((value, i) => (value * words(first) + b.all.get(name)![i]! * words(second)) / words(RAGGED));
    expect(worstGap([...sum], [...values])).toBeLessThanOrEqual(2e-5 * scale + 1e-8);
  }
});

test('detached latents change gradients, and only those', async () => {
  const through = await gradients(RAGGED);
  const detached = await gradients(RAGGED, { detachLatents: true });
  expect(detached.loss).toBe(through.loss);
  const name = 'model.layers.0.mlp.down_proj.weight';
  expect(worstGap([...through.all.get(name)!], [...detached.all.get(name)!])).toBeGreaterThan(1e-6);
});

test('a frozen vision tower gets no gradient, and the decoder the same', async () => {
  const full = await gradients(RAGGED);
  const frozen = await gradients(RAGGED, { visionGradient: false });
  expect(Math.max(...frozen.all.get('visual.patch_embed.proj.weight')!.map(Math.abs))).toBe(0);
  expect(Math.max(...full.all.get('visual.patch_embed.proj.weight')!.map(Math.abs))).toBeGreaterThan(0);
  const name = 'model.layers.1.self_attn.k_proj.weight';
  expect(worstGap([...full.all.get(name)!], [...frozen.all.get(name)!])).toBe(0);
});

test.each(['model.embed_tokens.weight', 'model.layers.0.self_attn.v_proj.weight', 'model.layers.1.self_attn.q_proj.bias', 'model.layers.1.mlp.gate_proj.weight', 'lm_head.weight',
  'model.norm.weight', 'visual.blocks.0.attn.qkv.weight', 'visual.patch_embed.proj.weight', 'visual.merger.mlp.0.bias'])('finite differences agree along the gradient of %s', async (name) => {
  const { all } = await gradients(RAGGED);
  const gradient = all.get(name)!;
  const norm = Math.hypot(...gradient);
  const value = await model.native.readParameter(name, 'value');
  const lossAt = async (step: number): Promise<number> => {
    await model.native.writeParameter(name, 'value', value.map((v, i) => v + (step * gradient[i]!) / norm));
    return (await gradients(RAGGED)).loss;
  };
  // Central difference along the unit gradient: the slope is the gradient's norm. The loss, about 6, carries 1e-6 of rounding, so a
  // step that moves it by 2e-3 leaves 0.1 % of error; 2 % also covers the third-order term.
  const step = Math.min(0.05, 1e-3 / norm);
  const slope = (await lossAt(step) - await lossAt(-step)) / (2 * step);
  await model.native.writeParameter(name, 'value', value);
  expect(Math.abs(slope - norm) / norm).toBeLessThan(0.02);
});
