/** `plumbline train`: the settings, a whole run, stopping and going on, adapters, plain checkpoints. */
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { program } from '../../lib/cli';
import { runTraining, type TrainResult } from '../../lib/cli/train';
import { readTrainConfig, TRAIN_KEYS } from '../../lib/cli/trainConfig';
import { resultText } from '../../lib/cli/trainCommand';
import { LatentModel } from '../../lib/latentModel';
import { PLAIN } from '../../lib/model/preset';
import { native } from '../../lib/native';
import { planStages, type StepMetrics } from '../../lib/train';
import { writeCheckpoint, writeRecordFiles, writeSettings } from './trainFixture';

const EXAMPLE = join(__dirname, '../../examples/train.yaml');
const QUIET = { phase: () => undefined, progress: () => undefined };
let folder: string;
beforeAll(async () => {
  native().setThreads(1);
  folder = mkdtempSync(join(tmpdir(), 'plumbline-train-'));
  writeCheckpoint(join(folder, 'model'));
  await writeRecordFiles(join(folder, 'data'));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function run(file: string, options = { resume: false }): Promise<TrainResult> {
  return runTraining(readTrainConfig(file), options, QUIET);
}

const metricsOf = (out: string): Omit<StepMetrics, 'milliseconds'>[] => readFileSync(join(folder, out, 'metrics.jsonl'), 'utf8').trimEnd().split('\n')
  .map((line) => JSON.parse(line) as StepMetrics).map(({ milliseconds: _, ...rest }) => rest);

/** Weights and optimiser state, as the files have them. */
const filesOf = (out: string, step: number): Buffer[] => ['model.safetensors', 'plumbline.safetensors', 'trainer.safetensors'].map((name) => readFileSync(join(folder, out, `checkpoint-${step}`, name)));

test('a training from its file: stages, checkpoints, metrics, answers', async () => {
  const said: string[] = [];
  const file = writeSettings(folder, { evaluation: { data: 'data/test.jsonl', maxNewTokens: 4, batchSize: 3, limit: 3 }, checkpoints: { every: 3, keep: 0 }, profile: { every: 2, matricesEvery: 0 } });
  const result = await runTraining(readTrainConfig(file), { resume: false }, { phase: (text) => said.push(text), progress: () => undefined });
  expect(result).toMatchObject({ checkpoint: join(folder, 'run/checkpoint-7'), steps: 7, evaluation: { overall: { count: 3 }, batchSize: 3, kinds: { 'multiple choice': { count: 1 }, open: { count: 2 } } } });
  expect(metricsOf('run').map(({ step, stage }) => [step, stage])).toEqual([[1, 'words'], [2, 'words'], [3, 'words'], [4, 'latents 1'], [5, 'latents 1'], [6, 'answers'], [7, 'answers']]);
  expect(readdirSync(join(folder, 'run')).sort()).toEqual(['answers.jsonl', 'checkpoint-3', 'checkpoint-6', 'checkpoint-7', 'metrics.jsonl', 'profile.jsonl', 'result.json', 'settings.json']);
  expect(JSON.parse(readFileSync(join(folder, 'run/result.json'), 'utf8'))).toEqual(result);
  expect(JSON.parse(readFileSync(join(folder, 'run/settings.json'), 'utf8'))).toMatchObject({ data: createHash('sha256').update(readFileSync(join(folder, 'data/train.jsonl'))).digest('hex') });
  expect(readFileSync(join(folder, 'run/answers.jsonl'), 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line) as { id: string; answer: string }).map(({ id, answer }) => [id, answer])).toEqual([['a', 'B'], ['b', 'a cat'], ['c', '6']]);
  expect(said.map((text) => text.replace(/[\d.]+ [MG]B/g, 'N'))).toEqual([
    `Loading ${join(folder, 'model')}`, expect.stringMatching(/^Memory: weights N, gradients and optimiser state of 0\.\d{3} million parameters N, activations beside; N are free$/),
    'Training on 4 records: 7 steps', ...[3, 6, 7].map((step) => `Written ${join(folder, `run/checkpoint-${step}`)}`), 'Answering 3 questions',
  ]);
  // A checkpoint decodes with the latents of the stage that it was trained to.
  for (const [step, latentSteps] of [[3, 0], [6, 2], [7, 2]]) {
    using model = await LatentModel.load(join(folder, `run/checkpoint-${step}`));
    expect([model.latentSteps, model.preset.patches]).toEqual([latentSteps, 2]);
  }
  const text = resultText(result);
  expect(text.split('\n').slice(0, 2)).toEqual([expect.stringMatching(/^7 steps: loss [\d.]+, [\d.]+ % of the words right in the last step$/), `Checkpoint: ${join(folder, 'run/checkpoint-7')}`]);
  expect(text).toMatch(/\nall +\d\/3 +[\d.]+ % +[\d.]+ % to [\d.]+ %\n/);
});

test.each([1, 4])('stopped after step %i and resumed: the same bits as without a stop', async (stop) => {
  await run(writeSettings(folder, { out: `straight-${stop}` }));
  const file = writeSettings(folder, { out: `stopped-${stop}` });
  const controller = new AbortController();
  const reason = new Error('enough');
  const stopped = runTraining(readTrainConfig(file), { resume: false, signal: controller.signal }, { phase: () => undefined, progress: (done) => { if (done === stop) controller.abort(reason); } });
  await expect(stopped).rejects.toBe(reason);
  expect((await run(file, { resume: true })).steps).toBe(7);
  expect(metricsOf(`stopped-${stop}`)).toEqual(metricsOf(`straight-${stop}`));
  for (const [n, bytes] of filesOf(`straight-${stop}`, 7).entries()) expect(Buffer.compare(bytes, filesOf(`stopped-${stop}`, 7)[n]!)).toBe(0);
  expect(await run(file, { resume: true })).toMatchObject({ steps: 7, checkpoint: join(folder, `stopped-${stop}/checkpoint-7`) });   // nothing left to do
});

test('an adapter is trained and saved, and goes on', async () => {
  const file = writeSettings(folder, { out: 'adapter', adapter: { rank: 2, alpha: 4, targets: ['q_proj', 'down_proj'] } });
  await run(file);
  expect(readdirSync(join(folder, 'adapter/checkpoint-7'))).toEqual(expect.arrayContaining(['adapter_config.json', 'adapter_model.safetensors', 'plumbline.json', 'trainer.json']));
  using trained = await LatentModel.load(join(folder, 'adapter/checkpoint-7'));
  expect([trained.adapter!.rank, trained.latentSteps]).toEqual([2, 2]);
  expect((await run(writeSettings(folder, { out: 'further', adapter: 'adapter/checkpoint-7' }))).steps).toBe(7);
});

test.each([
  ['paper', {}], ['official', { resizedHeight: 280, resizedWidth: 280, maxPixels: 78_400 }],
])('the preset %s, which looks ahead', async (name, images) => {
  const file = writeSettings(folder, { out: name, images, preset: { name, patches: 2, alpha: 2 }, evaluation: { data: 'data/test.jsonl', maxNewTokens: 2 } });
  expect((await run(file)).evaluation!.overall.count).toBe(4);
  using model = await LatentModel.load(join(folder, name, 'checkpoint-7'));
  expect([model.preset.name, model.preset.rule]).toEqual([name, 'topk']);
});

test('a checkpoint without tokens for latents gets them', async () => {
  const plain = join(folder, 'plain');
  writeCheckpoint(plain);
  const isOther = (token: object): boolean => !/latent/.test((token as { content: string }).content);
  const tokenizer = JSON.parse(readFileSync(join(plain, 'tokenizer.json'), 'utf8')) as { added_tokens: { id: number; content: string }[] };
  const config = JSON.parse(readFileSync(join(plain, 'tokenizer_config.json'), 'utf8')) as { added_tokens_decoder: Record<string, { content: string }> };
  writeFileSync(join(plain, 'tokenizer.json'), JSON.stringify({ ...tokenizer, added_tokens: tokenizer.added_tokens.filter(isOther).map((token) => ({ ...token, id: Math.min(token.id, 306) })) }));
  const decoder = Object.entries(config.added_tokens_decoder).filter(([, token]) => isOther(token)).map(([id, token]) => [Math.min(Number(id), 306), token]);
  writeFileSync(join(plain, 'tokenizer_config.json'), JSON.stringify({ ...config, added_tokens_decoder: Object.fromEntries(decoder) }));
  rmSync(join(plain, 'plumbline.json'));
  rmSync(join(plain, 'plumbline.safetensors'));
  await run(writeSettings(folder, { model: 'plain', out: 'from-plain' }));
  using model = await LatentModel.load(join(folder, 'from-plain/checkpoint-7'));
  expect(model.record).toMatchObject({ startLatentToken: 307, endLatentToken: 308, latentToken: 309 });
  expect(model.processor.tokenizer!.encode('<|latent|>')).toEqual([309]);
});

test('the example runs as it is, on a model as small as this one', async () => {
  const home = join(folder, 'example');
  mkdirSync(join(home, 'checkpoints'), { recursive: true });
  writeCheckpoint(join(home, 'checkpoints/Qwen2-VL-2B-Instruct'));
  cpSync(join(folder, 'data'), join(home, 'data'), { recursive: true });
  const text = readFileSync(EXAMPLE, 'utf8');
  for (const key of TRAIN_KEYS) expect([key, new RegExp(`\\b${key}:`).test(text)]).toEqual([key, true]);
  expect(text).toContain('rank: 16 ');
  writeFileSync(join(home, 'train.yaml'), text.replace('rank: 16 ', 'rank: 4 '));
  const config = readTrainConfig(join(home, 'train.yaml'));
  const result = await runTraining(config, { resume: false }, QUIET);
  expect(result.steps).toBe(planStages(config.stages, 8, 4).reduce((sum, { steps }) => sum + steps, 0));
  expect(result.evaluation!.overall.count).toBe(4);
});

describe('the command', () => {
  const SIGNALS = ['SIGINT', 'SIGTERM'] as const;
  async function command(...args: string[]): Promise<{ out: string; err: string; code: typeof process.exitCode }> {
    const printed = { out: '', err: '' };
    const before = SIGNALS.map((name) => process.listeners(name));
    const writes = ([['out', process.stdout], ['err', process.stderr]] as const).map(([key, stream]) => jest.spyOn(stream, 'write').mockImplementation((text) => {
      printed[key] += String(text);
      return true;
    }));
    const { exitCode } = process;
    try {
      await program().parseAsync(['node', 'plumbline', 'train', ...args]);
      return { ...printed, code: process.exitCode };
    } finally {
      process.exitCode = exitCode;
      for (const write of writes) write.mockRestore();
      SIGNALS.forEach((name, n) => {
        for (const listener of process.listeners(name)) if (!before[n]!.includes(listener)) process.removeListener(name, listener);
      });
    }
  }

  test('prints the result, or its JSON', async () => {
    const file = writeSettings(folder);
    const { out } = await command('--config', file, '--out', join(folder, 'printed'));
    expect(out).toMatch(/^7 steps: loss .*\nCheckpoint: .*checkpoint-7\nWritten to .*printed\n$/);
    const json = JSON.parse((await command('--config', file, '--out', join(folder, 'printed'), '--resume', '--json')).out) as TrainResult;
    expect(json).toMatchObject({ steps: 7, checkpoint: join(folder, 'printed/checkpoint-7') });
    expect(json).not.toHaveProperty('loss');
  });

  test('a folder that has been trained in is refused without --resume', async () => {
    const out = join(folder, 'twice');
    await command('--config', writeSettings(folder), '--out', out);
    await expect(command('--config', writeSettings(folder), '--out', out)).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: `[train] Expected a run folder without checkpoints but received ${out} with ${join(out, 'checkpoint-7')}; add --resume, or name another with --out`,
    });
  });

  test('an interrupt writes a checkpoint and says how to go on', async () => {
    const file = writeSettings(folder, { curriculum: { latentStages: 0, wordSteps: 100_000, lastSteps: 0, learningRate: 1e-3 } }, 'long one.yaml');
    const out = join(folder, "what's interrupted");
    const running = command('--config', file, '--out', out);
    const metrics = join(out, 'metrics.jsonl');
    const stop = setInterval(() => {
      // The file appears when the first step is about to be made.
      if (existsSync(metrics)) process.emit('SIGINT');
    }, 300);
    const { err, code } = await running.finally(() => clearInterval(stop));
    expect(code).toBe(130);
    expect(err).toContain(`stopped by SIGINT; go on with: plumbline train --config '${file}' --out '${out.replace("'", "'\\''")}' --resume\n`);
    expect(readdirSync(out).some((name) => /^checkpoint-\d+$/.test(name))).toBe(true);
  });
});

describe('misuse', () => {
  const cases: [string, object, string, string][] = [
    ['an unknown key', { batchsize: 3 }, 'ERR_ARGUMENT', "Expected keys of FILE among model, data, evaluation, out, preset, adapter, dtype, device, seed, stages, curriculum, maxSteps, images, batchSize, accumulation, optimizer, trainVision, recompute, checkpoints, profile, cacheBytes, maxMemoryBytes but received \"batchsize\"; did you mean 'batchSize'?"],
    ['an unknown inner key', { optimizer: { beta: 1 } }, 'ERR_ARGUMENT', "Expected keys of optimizer in FILE among beta1, beta2, epsilon, weightDecay, maxNorm but received \"beta\"; did you mean 'beta1'?"],
    ['no model', { model: null }, 'ERR_ARGUMENT', 'Expected model in FILE to be a string but received undefined'],
    ['a number as text', { batchSize: 'two' }, 'ERR_ARGUMENT', 'Expected batchSize in FILE to be an integer from 1 to 65536 but received "two"'],
    ['a batch of none', { batchSize: 0 }, 'ERR_RANGE', 'Expected batchSize in FILE to be an integer from 1 to 65536 but received 0'],
    ['yes', { trainVision: 'yes' }, 'ERR_ARGUMENT', 'Expected trainVision in FILE to be a boolean but received "yes"'],
    ['a device', { device: 'gpu' }, 'ERR_ARGUMENT', "Expected device in FILE to be one of 'auto', 'cpu', 'cuda' but received \"gpu\"; did you mean 'cpu'?"],
    ['a preset', { preset: 'papr' }, 'ERR_ARGUMENT', "Expected preset in FILE to be one of 'default', 'paper', 'official' but received \"papr\"; did you mean 'paper'?"],
    ['a list as preset', { preset: ['paper'] }, 'ERR_ARGUMENT', 'Expected preset in FILE to hold keys and values but received Array(1); write lines of the form "key: value"'],
    ['a rank', { adapter: { rank: 0 } }, 'ERR_RANGE', 'Expected adapter.rank in FILE to be an integer from 1 to 65536 but received 0'],
    ['more stages than anyone means', { curriculum: { latentStages: 1_000_000_000, wordSteps: 1, steps: 1, lastSteps: 1, learningRate: 1 } }, 'ERR_RANGE', 'Expected curriculum.latentStages in FILE to be an integer from 0 to 1000 but received 1000000000'],
    ['more steps', { curriculum: null, stages: [{ steps: 2 ** 31 + 1, learningRate: 1 }] }, 'ERR_RANGE', 'Expected stages[0].steps in FILE to be an integer from 1 to 2147483648 but received 2147483649'],
    ['more epochs', { curriculum: null, stages: [{ epochs: 1e300, learningRate: 1 }] }, 'ERR_RANGE', 'Expected stages[0].epochs in FILE to be a number from 0.001 to 1000000 but received 1e+300'],
    ['more latents', { curriculum: { latentStages: 1, latentsPerStep: 1e9, wordSteps: 1, steps: 1, lastSteps: 1, learningRate: 1 } }, 'ERR_RANGE', 'Expected curriculum.latentsPerStep in FILE to be an integer from 0 to 65536 but received 1000000000'],
    ['a side', { images: { resizedHeight: 1e6 } }, 'ERR_RANGE', 'Expected images.resizedHeight in FILE to be an integer from 1 to 32768 but received 1000000'],
    ['a switch', { preset: { name: 'paper', patchs: 3 } }, 'ERR_ARGUMENT', "[preset] Expected the switches of a preset, SWITCHES, but received \"patchs\"; did you mean 'patches'? (preset in FILE)"],
    ['a switch of another kind', { preset: { patches: 'all' } }, 'ERR_ARGUMENT', '[preset] Expected patches to be an integer from 1 to 65536 but received "all" (preset in FILE)'],
    ['switches that exclude each other', { preset: { misordered: true, fusion: 'interpolate' } }, 'ERR_ARGUMENT', "[preset] Expected misordered to be false unless rule is 'topk' and fusion 'plain' or 'scaled' but received true with 'topk' and 'interpolate' (preset in FILE)"],
    ['a dropout that leaves nothing', { adapter: { dropout: 1 } }, 'ERR_RANGE', 'Expected adapter.dropout in FILE to be a number from 0 to 0.999 but received 1'],
    ['one side of a size', { images: { resizedHeight: 280 } }, 'ERR_ARGUMENT', 'Expected resizedHeight and resizedWidth of images in FILE together but received only resizedHeight; add the other'],
    ['the other side', { images: { resizedWidth: 280 } }, 'ERR_ARGUMENT', 'Expected resizedHeight and resizedWidth of images in FILE together but received only resizedWidth; add the other'],
    ['a size and a bound', { images: { resizedHeight: 280, resizedWidth: 280, minPixels: 1 } }, 'ERR_ARGUMENT', 'Expected either resizedHeight and resizedWidth or minPixels of images in FILE but received both; leave one of them out'],
    ['bounds the wrong way round', { images: { minPixels: 3000, maxPixels: 2000 } }, 'ERR_RANGE', 'Expected minPixels of images in FILE to be at most maxPixels = 2000 but received 3000; lower it, or raise maxPixels'],
    ['a lower bound above the cap', { images: { minPixels: 1_003_521 } }, 'ERR_RANGE', 'Expected minPixels of images in FILE to be at most maxPixels = 1003520 but received 1003521; lower it, or raise maxPixels'],
    ['targets', { adapter: { targets: ['q_proj', 3] } }, 'ERR_ARGUMENT', 'Expected adapter.targets[1] in FILE to be a string but received 3'],
    ['both kinds of stages', { stages: [] }, 'ERR_ARGUMENT', 'Expected exactly one of stages and curriculum in FILE but received both; leave one of them out'],
    ['no stages', { curriculum: null }, 'ERR_ARGUMENT', 'Expected exactly one of stages and curriculum in FILE but received neither; add one of them, as examples/train.yaml shows'],
    ['an empty list of stages', { curriculum: null, stages: [] }, 'ERR_ARGUMENT', 'Expected stages in FILE to have at least one stage but received none; add one, as { steps: 100, learningRate: 1.0e-4 }'],
    ['epochs as text', { curriculum: null, stages: [{ steps: 1, learningRate: 1 }, { epochs: 'two', learningRate: 1 }] }, 'ERR_ARGUMENT', 'Expected stages[1].epochs in FILE to be a number from 0.001 to 1000000 but received "two"'],
    ['steps and epochs', { curriculum: null, stages: [{ steps: 1, epochs: 1, learningRate: 1 }] }, 'ERR_ARGUMENT', 'Expected exactly one of steps and epochs in stages[0] in FILE but received both; leave one of them out'],
    ['no length', { curriculum: { latentStages: 0, wordSteps: 1, learningRate: 1 } }, 'ERR_ARGUMENT', 'Expected exactly one of lastSteps and lastEpochs in curriculum in FILE but received neither; add one of them'],
    ['nothing to do', { curriculum: { latentStages: 0, wordSteps: 0, lastEpochs: 0, learningRate: 1 } }, 'ERR_ARGUMENT', 'Expected curriculum in FILE to have at least one stage but received only stages of length 0; give one of its parts a length above 0'],
    ['no rate', { curriculum: { latentStages: 0, wordSteps: 1, lastSteps: 0 } }, 'ERR_ARGUMENT', 'Expected curriculum.learningRate in FILE to be a number of at least 0 but received undefined'],
    ['a stage that is none', { curriculum: null, stages: ['words'] }, 'ERR_ARGUMENT', 'Expected stages[0] in FILE to hold keys and values but received "words"; write lines of the form "key: value"'],
  ];
  test.each(cases)('%s', (_, changes, code, message) => {
    const file = writeSettings(folder, changes, 'wrong.yaml');
    expect(() => readTrainConfig(file)).toThrow(expect.objectContaining({ name: 'LibError', code, message: message.replace(/^(?!\[)/, '[train] ').replace('FILE', file).replace('SWITCHES', Object.keys(PLAIN).join(', ')) }));
  });

  test('switches of a recorded preset may be changed one by one', () => {
    const preset = { misordered: true };
    expect(readTrainConfig(writeSettings(folder, { preset }, 'switch.yaml')).load.preset).toEqual(preset);
  });

  test.each<[string, string, string]>([
    ['no mapping', '- 1', 'Expected FILE to hold keys and values but received Array(1); write lines of the form "key: value"'],
    ['no YAML', 'a: [1\nb: 2', 'Expected FILE to be YAML or JSON but received: Flow sequence in block collection must be sufficiently indented and end with a ] at line 2, column 1'],
    ['a key twice', 'a: 1\na: 2', 'Expected FILE to be YAML or JSON but received: Map keys must be unique at line 2, column 1'],
    ['aliases', 'a: &x 1\nb: *x', 'Expected FILE to be YAML or JSON but received: Alias resolution is disabled'],
    ['tags', 'a: !!js/function x', 'Expected FILE to be YAML or JSON but received: Unresolved tag: tag:yaml.org,2002:js/function at line 1, column 4'],
    ['a large file', 'x'.repeat((1 << 20) + 1), 'Expected FILE to have at most 1048576 characters but received 1048577; it is no file of settings'],
  ])('%s', (_, text, message) => {
    const file = join(folder, 'broken.yaml');
    writeFileSync(file, text);
    expect(() => readTrainConfig(file)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[train] ${message.replace('FILE', file)}` }));
  });

  test('a file that is not there', () => {
    expect(() => readTrainConfig(join(folder, 'none.yaml'))).toThrow(expect.objectContaining({
      code: 'ERR_ARGUMENT', message: `[train] Expected --config to name a file that can be read but received ${JSON.stringify(join(folder, 'none.yaml'))}: ENOENT: no such file or directory, open '${join(folder, 'none.yaml')}'`,
    }));
  });

  test('JSON serves too, and defaults are those that the example names', () => {
    const file = join(folder, 'small.json');
    writeFileSync(file, JSON.stringify({ model: 'm', data: '/d.jsonl', adapter: 'none', stages: [{ epochs: 1, learningRate: 1 }, { stage: 2, lastStage: true, steps: 1, learningRate: 1 }] }));
    expect(readTrainConfig(file)).toEqual({
      file, model: join(folder, 'm'), data: '/d.jsonl', out: join(folder, 'runs/small'), load: { seed: 0, dtype: 'auto' }, records: {},
      stages: [
        { name: 'words', shape: { stage: 0, stepsPerLatent: 1, latentsPerStep: 1, padLatents: false, lastStage: false }, epochs: 1, learningRate: 1, warmupSteps: 0, finalRate: 0, resetOptimizer: false, earlierProbability: 0 },
        { name: 'answers', shape: { stage: 2, stepsPerLatent: 1, latentsPerStep: 1, padLatents: false, lastStage: true }, steps: 1, learningRate: 1, warmupSteps: 0, finalRate: 0, resetOptimizer: false, earlierProbability: 0 },
      ],
      training: { seed: 0, batchSize: 1, accumulation: 1, trainVision: false, recompute: false, checkpointEvery: 0, keepCheckpoints: 2 },
    });
  });

  test.each<[string, object, () => void, string]>([
    ['no records', { data: 'data/empty.jsonl' }, () => writeFileSync(join(folder, 'data/empty.jsonl'), '\n'), 'Expected data to have at least one record but received none in DATA/empty.jsonl'],
    ['a picture that is not there', { evaluation: { data: 'data/lost.jsonl' } }, () => writeFileSync(join(folder, 'data/lost.jsonl'), '{"id": "x", "images": ["none.png"], "question": "q", "answer": "a"}'),
      'Expected the pictures of record "x" in DATA/lost.jsonl to be files but received none at DATA/none.png. Paths are taken from the folder of the records.'],
    ...(['data', 'evaluation'] as const).map((key): [string, object, () => void, string] => [
      `an answer that is no choice in ${key}`, key === 'data' ? { data: 'data/odd.jsonl' } : { evaluation: { data: 'data/odd.jsonl', limit: 1 } },
      () => writeFileSync(join(folder, 'data/odd.jsonl'), '{"id": "x", "question": "q", "answer": "6"}\n{"id": "y", "question": "q", "choices": ["a", "b"], "answer": "c"}\n'),
      '[recordData] Expected the answer of record "y" to be a letter from A to B or one of its choices but received "c"',
    ]),
    ['no model', { model: 'nowhere' }, () => undefined, 'Expected model to be the directory of a checkpoint but received none at DATA/../nowhere; correct the path, which is taken from the folder of the settings, or download one first: huggingface-cli download NAME --local-dir DATA/../nowhere'],
  ])('%s, before anything is loaded', async (_, changes, make, message) => {
    make();
    const before = native().liveObjects();
    await expect(run(writeSettings(folder, { out: 'never', ...changes }))).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_ARGUMENT', message: message.replace(/^(?!\[)/, '[train] ').replaceAll('DATA/../nowhere', join(folder, 'nowhere')).replaceAll('DATA', join(folder, 'data')),
    });
    expect(native().liveObjects()).toEqual(before);
  });

  test('a run goes on with what it began with', async () => {
    await run(writeSettings(folder, { out: 'same' }));
    const refused = async (changes: object, message: string): Promise<void> => {
      await expect(run(writeSettings(folder, { out: 'same', ...changes }), { resume: true })).rejects.toMatchObject({
        code: 'ERR_CHECKPOINT', message: `[train] Expected ${message.replace('FILE', join(folder, 'same/settings.json'))}; resume with the same settings, or start anew with another --out`,
      });
    };
    await refused({ maxSteps: 3 }, 'maxSteps as in FILE, 2, but received 3');
    await refused({ images: { maxPixels: 3136 } }, 'images as in FILE, {}, but received {"maxPixels":3136}');
    await refused({ adapter: { rank: 2 } }, 'adapter as in FILE, "none", but received {"rank":2}');
    writeFileSync(join(folder, 'data/other.jsonl'), readFileSync(join(folder, 'data/train.jsonl'), 'utf8').replace('"6"', '"7"'));
    await expect(run(writeSettings(folder, { out: 'same', data: 'data/other.jsonl' }), { resume: true })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT', message: expect.stringMatching(/^\[train\] Expected data with the content as in .*settings\.json, "[0-9a-f]{64}", but received "[0-9a-f]{64}"; resume/) as string,
    });
  });

  test('a checkpoint without a tokenizer is refused, and freed', async () => {
    writeCheckpoint(join(folder, 'mute'));
    rmSync(join(folder, 'mute/tokenizer.json'));
    const before = native().liveObjects();
    await expect(run(writeSettings(folder, { model: 'mute', out: 'never' }))).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
    expect(native().liveObjects()).toEqual(before);
  });
});
