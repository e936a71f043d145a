/**
 * `node launches.js`: kernels that a latent step of a whole batch starts on the CUDA device. Prints JSON
 * { saliencyToGather, routeToScatter, single: { the same of one sequence } }.
 *
 * saliencyToGather: a pass that collects saliency, less the same pass of a session without replay, and `replay()`, which selects, weighs
 * and gathers. Without super-resolution, which is a network of its own.
 *
 * routeToScatter: a pass whose one routed layer routes all rows, less the same pass of a session without routing, less what the second pass
 * through the layer would start anyway: the layer's own kernels, that is what a model with one layer more starts in addition, without the
 * norm in front of it, which the gather computes. What is left: score, route with compaction, gather with norm and rotary, scatter.
 */
import type { LatentModel } from '../../lib/latentModel';
import type { Preset, PresetChanges } from '../../lib/model/preset';
import { openReasoning } from '../../lib/model/reasoning';
import { native, type NativeSession } from '../../lib/native';
import { runBatch, type SequenceInput } from '../../lib/train/batch';
import { prompt, reasoner, words } from '../model/reasoner';

const SEQUENCES: readonly SequenceInput[] = [[1, 2, 3], [2, 1, 1], [3, 4, 4], [4, 2, 5]].map(([seed, rows, columns]) => ({ ...prompt(seed!, [[rows!, columns!]]), latents: 1, words: words(seed! + 10, 3) }));
const REPLAY: PresetChanges = { name: 'default', patches: 3, window: 2, tokenSr: false, srAdded: false, routedLayers: [] };
const ROUTED: PresetChanges = { name: 'default', replay: false, routedLayers: [1], maxDepth: 2, rule: 'threshold' };

interface Started {
  /** Of each call. */
  extend: number[];
  replay: number[];
}

/** The session with its passes and replays counted. */
function counted(session: NativeSession, started: Started): NativeSession {
  const count = async <T>(list: number[], run: () => Promise<T>): Promise<T> => {
    const before = native().cudaDevice().launches;
    const result = await run();
    list.push(native().cudaDevice().launches - before);
    return result;
  };
  const own: Partial<NativeSession> = {
    extend: (...given) => count(started.extend, () => session.extend(...given)),
    replay: (...given) => count(started.replay, () => session.replay(...given)),
  };
  return new Proxy(session, {
    get: (_, name: keyof NativeSession) => own[name] ?? (session[name] as () => unknown).bind(session),
  });
}

async function run(model: LatentModel, preset: Preset, sequences: readonly SequenceInput[]): Promise<Started> {
  const started: Started = { extend: [], replay: [] };
  const session = openReasoning('test', model, preset, { training: false, recompute: false, visionGradient: false });
  try {
    await runBatch(counted(session, started), sequences, model.geometry, { preset });
  } finally {
    session.dispose();
  }
  return started;
}

async function withModel<T>(preset: PresetChanges, layers: number, use: (model: LatentModel) => Promise<T>): Promise<T> {
  const model = await reasoner(preset, { layers, device: 'cuda' });
  try {
    return await use(model);
  } finally {
    model.dispose();
  }
}

async function countSteps(sequences: readonly SequenceInput[]): Promise<{ saliencyToGather: number; routeToScatter: number }> {
  const saliencyToGather = await withModel(REPLAY, 4, async (model) => {
    const replayed = await run(model, model.preset, sequences);
    const plain = await run(model, { ...model.preset, replay: false }, sequences);
    return replayed.extend[0]! - plain.extend[0]! + replayed.replay[0]!;
  });
  const shorter = await withModel(ROUTED, 3, async (model) => (await run(model, { ...model.preset, routedLayers: [] }, sequences)).extend[0]!);
  const routeToScatter = await withModel(ROUTED, 4, async (model) => {
    const plain = (await run(model, { ...model.preset, routedLayers: [] }, sequences)).extend[0]!;
    const passes = async (threshold: number): Promise<number> => {
      await model.native.writeParameter('router.1.threshold', 'value', Float32Array.of(threshold));
      return (await run(model, model.preset, sequences)).extend[0]!;
    };
    const [none, all] = [await passes(1e30), await passes(-1e30)];
    const layer = plain - shorter;
    if (none >= all || layer < 2) throw new Error(`expected more launches where rows are routed and several in a layer, but counted ${none}, ${all} and ${layer}`);
    return all - plain - (layer - 1);
  });
  return { saliencyToGather, routeToScatter };
}

async function main(): Promise<void> {
  const single = await countSteps(SEQUENCES.slice(0, 1));
  process.stdout.write(`${JSON.stringify({ ...await countSteps(SEQUENCES), single })}\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 1;
});
