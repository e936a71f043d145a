/** `plumbline generate`: what its options mean, and what is refused. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { program } from '../../lib/cli';
import { demoConfig, DEMO_SIZES } from '../../lib/cli/demoSizes';
import { checkArguments, generateOptions } from '../../lib/cli/generate';
import { sampleAt, writeDigitGridTokenizer, writePicturePng } from '../../lib/data';
import type { Evidence } from '../../lib/decode';
import { LatentModel } from '../../lib/latentModel';
import { newConfig } from '../../lib/model/config';
import type { PresetChanges } from '../../lib/model/preset';

const PLAIN = { seed: 0, replay: true, routing: true, recompute: false };

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

let folder: string;
let image: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-generate-'));
  image = join(folder, 'grid.png');
  await writePicturePng(sampleAt({ seed: 1, rows: 3, columns: 3 }, 0).picture, image);
  writeDigitGridTokenizer(join(folder, 'tokenizer'));
  const save = async (name: string, preset: PresetChanges, latentSteps?: number): Promise<void> => {
    const config = demoConfig(DEMO_SIZES.small);
    using model = await LatentModel.create(newConfig(config), { processor: join(folder, 'tokenizer'), latentSteps: 2, preset });
    await model.save(join(folder, name), latentSteps === undefined ? {} : { latentSteps });
  };
  await save('both', { name: 'default', patches: 2, window: 2 });
  await save('plain', { name: 'default', replay: false, routedLayers: [] });
  await save('none', { name: 'default', replay: false, routedLayers: [] }, 0);
  await save('topk', { name: 'default', patches: 2, window: 2, rule: 'topk' });
});
afterAll(() => rmSync(folder, { recursive: true }));

async function run(...args: string[]): Promise<string> {
  let printed = '';
  const before = SIGNALS.map((name) => process.listeners(name));
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += String(text);
    return true;
  });
  try {
    await program().parseAsync(['node', 'plumbline', 'generate', ...args]);
    return printed;
  } finally {
    write.mockRestore();
    SIGNALS.forEach((name, n) => {
      for (const listener of process.listeners(name)) if (!before[n]!.includes(listener)) process.removeListener(name, listener);
    });
  }
}

describe('options', () => {
  test.each([
    ['none', {}, { recompute: false, evidence: false }],
    ['--evidence', { evidence: 'e.json' }, { recompute: false, evidence: true }],
    ['--gaze', { gaze: 'g.png' }, { recompute: false, evidence: true }],
    ['--no-replay', { replay: false }, { recompute: false, evidence: false, preset: { replay: false } }],
    ['--no-routing', { routing: false }, { recompute: false, evidence: false, preset: { routedLayers: [] } }],
    ['both', { replay: false, routing: false }, { recompute: false, evidence: false, preset: { replay: false, routedLayers: [] } }],
    ['--recompute', { recompute: true }, { recompute: true, evidence: false }],
    ['--reasoning explicit', { reasoning: 'explicit' as const }, { recompute: false, evidence: false, latentSteps: 0 }],
    ['sampling', { temperature: 0, topP: 0.5, topK: 3, repetitionPenalty: 1.1, maxTokens: 9 }, { recompute: false, evidence: false, temperature: 0, topP: 0.5, topK: 3, repetitionPenalty: 1.1, maxNewTokens: 9 }],
    ['--latents', { latents: 0 }, { recompute: false, evidence: false, latentSteps: 0 }],
  ])('%s', (_, args, options) => expect(generateOptions({ ...PLAIN, ...args })).toEqual({ seed: 0, ...options }));

  test('evidence and picture are written, and are not in the printed result', async () => {
    const [evidenceFile, gazeFile] = [join(folder, 'evidence.json'), join(folder, 'gaze.png')];
    const printed = JSON.parse(await run('--model', join(folder, 'both'), 'sum of row 2', '--image', image, '--image', image, '--max-tokens', '3', '--evidence', evidenceFile, '--gaze', gazeFile, '--json')) as object;
    expect(Object.keys(printed).sort()).toEqual(['arSteps', 'finishReason', 'ids', 'latentSteps', 'text', 'tokenForwards']);
    const evidence = JSON.parse(readFileSync(evidenceFile, 'utf8')) as Evidence;
    expect([evidence.version, evidence.images.length, evidence.steps.length, evidence.steps[0]?.replayed.length]).toEqual([1, 2, 2, 2]);
    expect(evidence.routing.map(({ layer }) => layer)).toEqual(expect.arrayContaining([1, 3]));
    expect(await sharp(gazeFile).metadata()).toMatchObject({ format: 'png', width: 900 });
  });
  test('words stream to the terminal; the system message, the picture and the file\'s own sampling count', async () => {
    const args = ['--model', join(folder, 'plain'), '--image', image, 'sum of row 2', '--max-tokens', '4', '--dtype', 'f32', '--device', 'cpu'];
    const result = JSON.parse(await run(...args, '--json', '--reasoning', 'latent')) as { ids: number[]; text: string; latentSteps: number; tokenForwards: number };
    expect([result.latentSteps, result.ids.length]).toEqual([2, 4]);
    expect(await run(...args, '--reasoning', 'latent')).toBe(`${result.text}\n`);
    expect(JSON.parse(await run(...args, '--json', '--reasoning', 'explicit'))).toMatchObject({ latentSteps: 0 });
    const system = JSON.parse(await run(...args, '--json', '--system', 'row')) as typeof result;
    expect(system.tokenForwards).toBeGreaterThan(result.tokenForwards);
    writeFileSync(join(folder, 'plain', 'generation_config.json'), JSON.stringify({ ...JSON.parse(readFileSync(join(folder, 'plain', 'generation_config.json'), 'utf8')) as object, max_new_tokens: 2 }));
    expect((JSON.parse(await run(...args.slice(0, 5), '--json')) as typeof result).ids.length).toBeLessThanOrEqual(2);
  });
  test('--min-pixels and --max-pixels are those of each picture; a terminal hears of what takes long', async () => {
    const { isTTY } = process.stderr;
    const said: string[] = [];
    const write = jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
      said.push(String(text));
      return true;
    });
    const args = ['--model', join(folder, 'none'), 'sum of row 2', '--image', image, '--max-tokens', '1', '--json'];
    const rows = async (...size: string[]): Promise<number> => (JSON.parse(await run(...args, ...size)) as { tokenForwards: number }).tokenForwards;
    try {
      const [least, most] = [await rows('--max-pixels', '784'), await rows('--min-pixels', '50176', '--max-pixels', '50176')];
      expect([said, most - least]).toEqual([[], 63]);   // 1 row and 64
      process.stderr.isTTY = true;
      await rows();
      expect(said.filter((text) => !text.includes('loading'))).toEqual(['\n', 'Preparing 1 picture\n', expect.stringMatching(/^Reading \d+ tokens\n$/)]);
    } finally {
      process.stderr.isTTY = isTTY;
      write.mockRestore();
    }
  });
  test('switches off what the checkpoint has', async () => {
    const [both, without] = [join(folder, 'with.json'), join(folder, 'without.json')];
    await run('--model', join(folder, 'both'), 'sum of row 2', '--image', image, '--max-tokens', '2', '--evidence', both);
    await run('--model', join(folder, 'both'), 'sum of row 2', '--image', image, '--max-tokens', '2', '--evidence', without, '--no-replay', '--no-routing');
    const [rich, bare] = [both, without].map((file) => JSON.parse(readFileSync(file, 'utf8')) as Evidence);
    expect([rich!.images.length, bare!.images.length, bare!.routing, bare!.steps.map(({ replayed }) => replayed)]).toEqual([1, 0, [], [[], []]]);
  });
  test('a preset that looks ahead runs with --recompute alone', async () => {
    const args = ['--model', join(folder, 'topk'), 'sum of row 2', '--image', image, '--max-tokens', '2', '--json'];
    await expect(run(...args)).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED', message: expect.stringContaining('Set recompute: true') as string });
    expect(JSON.parse(await run(...args, '--recompute'))).toMatchObject({ latentSteps: 2 });
  });
});

test('an interrupt stops a chat template that does not end', async () => {
  const endless = join(folder, 'endless');
  cpSync(join(folder, 'plain'), endless, { recursive: true });
  writeFileSync(join(endless, 'chat_template.jinja'), '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}');
  const running = run('--model', endless, 'sum of row 2');
  const interrupted = setTimeout(() => process.emit('SIGINT'), 1500);
  await expect(running).rejects.toMatchObject({ code: 'STOPPED', message: 'stopped by SIGINT' });
  clearTimeout(interrupted);
});

describe('misuse', () => {
  const fine = { image: ['a.png'], replay: true, gaze: 'g.png' };
  const cases: [string, { [K in keyof Parameters<typeof checkArguments>[0]]?: Parameters<typeof checkArguments>[0][K] | undefined }, string][] = [
    ['words with latents', { gaze: undefined, reasoning: 'explicit', latents: 2 }, 'Expected --reasoning explicit without latent steps but received --latents 2; leave one of them out'],
    ['latents without any', { gaze: undefined, reasoning: 'latent', latents: 0 }, 'Expected --reasoning latent with at least one latent step but received --latents 0; leave one of them out'],
    ['a gaze in words', { reasoning: 'explicit' }, 'Expected --gaze with at least one latent step but received --reasoning explicit'],
    ['a gaze without replay', { replay: false }, 'Expected --gaze without --no-replay, because it shows the replay, but received both; leave one of them out'],
    ['a gaze at nothing', { image: [] }, 'Expected --gaze together with --image but received no picture'],
    ['a gaze without latents', { latents: 0 }, 'Expected --gaze with at least one latent step but received --latents 0'],
    ['one file for two', { evidence: './g.png' }, 'Expected two files for --evidence and --gaze but received g.png for both'],
    ['no name', { evidence: '' }, 'Expected --evidence to name a file but received ""'],
    ['a folder', { gaze: tmpdir() }, `Expected --gaze to name a file that can be written but received the folder ${tmpdir()}; add a file name`],
    ['a size without a picture', { image: [], gaze: undefined, maxPixels: 784 }, 'Expected --max-pixels together with --image but received no picture; add one, or leave it out'],
    ['a folder that is not there', { evidence: '/no/such/e.json' }, "Expected --evidence to name a file that can be written but received /no/such/e.json: ENOENT: no such file or directory, access '/no/such'; make its folder, or choose another"],
  ];
  test.each(cases)('%s', (_, args, message) => {
    let error: unknown;
    try {
      checkArguments({ ...fine, ...args } as Parameters<typeof checkArguments>[0]);
    } catch (caught) {
      error = caught;
    }
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: `[generate] ${message}` });
  });
  test('sizes that contradict, a penalty out of range', async () => {
    expect(() => checkArguments({ ...fine, gaze: '', minPixels: 785, maxPixels: 784 })).toThrow(expect.objectContaining({
      code: 'ERR_RANGE', message: '[generate] Expected --min-pixels to be at most --max-pixels, 784, but received 785; lower the one or raise the other',
    }));
    const exit = jest.spyOn(process, 'exit').mockImplementation((code) => { throw new Error(`exit ${code}`); });
    const write = jest.spyOn(process.stderr, 'write').mockReturnValue(true);
    try {
      await expect(run('--model', join(folder, 'plain'), 'sum of row 2', '--repetition-penalty', '5e-324')).rejects.toThrow('exit 1');
      expect(write).toHaveBeenLastCalledWith("error: option '--repetition-penalty <number>' argument '5e-324' is invalid. Expected a number from 0.001 to 1000.\n");
    } finally {
      exit.mockRestore();
      write.mockRestore();
    }
  });
  test('a checkpoint that replays nothing', async () => {
    const file = join(folder, 'none.png');
    await expect(run('--model', join(folder, 'plain'), 'sum of row 2', '--image', image, '--gaze', file)).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED', message: '[generate] Expected a checkpoint with visual replay for --gaze but received one without; take --evidence, or another checkpoint',
    });
    expect(existsSync(file)).toBe(false);
  });
  test('latents of a checkpoint that takes none', async () => {
    await expect(run('--model', join(folder, 'none'), 'sum of row 2', '--reasoning', 'latent')).rejects.toMatchObject({
      code: 'ERR_ARGUMENT', message: '[generate] Expected --reasoning latent with a number of latent steps but received a checkpoint that takes none; add --latents, or train it',
    });
  });
});
