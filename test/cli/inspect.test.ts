/** `plumbline inspect`: good, broken, unsupported and adapter directories. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { program } from '../../lib/cli';
import { inspectDirectory, type Inspection } from '../../lib/cli/inspection';
import { inspectionText } from '../../lib/cli/inspect';
import { writeSafetensors } from '../../lib/model/safetensors';

const FIXTURES = join(__dirname, '../fixtures');
let root: string;
let folder: string;
beforeAll(() => { root = mkdtempSync(join(tmpdir(), 'plumbline-inspect-')); });
afterAll(() => rmSync(root, { recursive: true }));
beforeEach(() => {
  folder = mkdtempSync(join(root, 'c-'));
  cpSync(join(FIXTURES, 'tiny-qwen2/checkpoint'), folder, { recursive: true });
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) cpSync(join(FIXTURES, 'tokenizer', name), join(folder, name));
});
afterEach(() => { process.exitCode = undefined; });

const look = (): Promise<Inspection> => inspectDirectory(folder, 200);
function change(name: string, keys: object): void {
  writeFileSync(join(folder, name), JSON.stringify({ ...JSON.parse(readFileSync(join(folder, name), 'utf8')) as object, ...keys }));
}
async function printed(...args: string[]): Promise<string> {
  let text = '';
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((more) => {
    text += String(more);
    return true;
  });
  try {
    await program().parseAsync(['node', 'plumbline', 'inspect', ...args]);
  } finally {
    write.mockRestore();
  }
  return text;
}

test('a good directory', async () => {
  const found = await look();
  expect(found).toMatchObject({
    loadable: true, problems: [], dtype: 'f32', contextTokens: 200,
    architecture: { kind: 'qwen2_vl', layers: 2, hidden: 40, heads: 5, kvHeads: 1, headDim: 8, vocab: 320, tied: false, vision: { depth: 2, width: 16 } },
    files: [{ name: 'model.safetensors', tensors: { F32: 58 } }], tokenizer: { tokens: 'yes', template: 'yes' }, reasoning: { latentSteps: 3, replay: false },
  });
  expect(Object.keys(found.parameters!)).toEqual(['embedding', 'decoder', 'head', 'vision tower', 'merger', 'replay and routing']);
  expect(found.memory!.map(({ dtype }) => dtype)).toEqual(['f32', 'bf16']);
  for (const { loadBytes, generationBytes, trainingBytes } of found.memory!) expect([loadBytes < generationBytes, generationBytes < trainingBytes]).toEqual([true, true]);
  expect(found.devices[0]!.name).toBe('cpu');
});

test('prints a page or JSON; exit code 1 when it cannot be loaded', async () => {
  const page = await printed(folder, '--context', '200');
  expect(page).toBe(`${inspectionText(JSON.parse(await printed(folder, '--context', '200', '--json')) as Inspection).replace(/^free:.*$/m, /^free:.*$/m.exec(page)![0])}\n`);
  expect(page).toContain('loads         yes, as f32 unless asked otherwise\nmodel         qwen2_vl: 2 layers, 40 wide, 5 heads on 1 of 8, MLP 56, vocabulary 320, head of its own\n');
  expect(process.exitCode).toBeUndefined();
  rmSync(join(folder, 'config.json'));
  expect(await printed(folder)).toContain('loads         no\n');
  expect(process.exitCode).toBe(1);
});

test('a context that cannot be estimated is no fault of the directory; the command refuses it', async () => {
  expect(await inspectDirectory(folder, 2 ** 30 + 1)).toMatchObject({
    loadable: true, problems: [], memory: [], notes: expect.arrayContaining(['the memory cannot be said: [estimate] Expected contextTokens to be an integer from 1 to 1073741824 but received 1073741825']) as string[],
  });
  const exit = jest.spyOn(process, 'exit').mockImplementation((code) => { throw new Error(`exit ${code}`); });
  const write = jest.spyOn(process.stderr, 'write').mockReturnValue(true);
  try {
    for (const context of ['99999999999', '0', 'all', '1.5']) {
      await expect(printed(folder, '--context', context)).rejects.toThrow('exit 1');
      expect(write).toHaveBeenLastCalledWith(`error: option '--context <tokens>' argument '${context}' is invalid. Expected a whole number from 1 to 1073741824.\n`);
    }
  } finally {
    exit.mockRestore();
    write.mockRestore();
  }
});

test('several faults are all named, and what can be read is said', async () => {
  truncateSync(join(folder, 'model.safetensors'), 5000);
  writeFileSync(join(folder, 'tokenizer.json'), '{');
  change('generation_config.json', { repetition_penalty: -1, num_beams: 4, no_repeat_ngram_size: 0, bad_words_ids: [] });
  const { loadable, problems, notes, architecture, memory } = await look();
  expect(loadable).toBe(false);
  expect(problems.map((problem) => problem.slice(0, 60))).toEqual([
    expect.stringMatching(/^\[safetensors\] Expected/) as string, expect.stringMatching(/^\[tokenizer\] Expected JSON in tokenizer\.json/) as string,
  ]);
  expect(notes).toContain('generation_config.json asks for what is not supported and not done: num_beams');
  expect([architecture?.layers, memory?.length]).toEqual([2, 2]);
});

test.each<[string, object, RegExp]>([
  ['another kind of model', { model_type: 'llama' }, /^\[config\] Expected model_type in config\.json to be something supported but received "llama"/],
  ['quantised', { quantization_config: { bits: 4 } }, /^\[config\] Expected quantization_config in config\.json to be something supported/],
  ['a lying size', { hidden_size: 48 }, /^\[config\] Expected/],
])('%s', async (_, keys, message) => {
  change('config.json', keys);
  const { loadable, problems, files } = await look();
  expect([loadable, problems.length, files?.length]).toEqual([false, 1, 1]);
  expect(problems[0]).toMatch(message);
});

test('wild numbers in every place of config.json are problems, not exceptions', async () => {
  for (const key of ['hidden_size', 'num_hidden_layers', 'vocab_size', 'num_attention_heads', 'intermediate_size']) {
    for (const value of [-1, 0, 1e308, 2 ** 53, 0.5, '7', [], {}]) {
      cpSync(join(FIXTURES, 'tiny-qwen2/checkpoint/config.json'), join(folder, 'config.json'));
      change('config.json', { [key]: value });
      const { loadable, problems } = await look();
      expect([loadable, problems.length > 0]).toEqual([false, true]);
    }
  }
});

test('an adapter is inspected with its base', async () => {
  const found = await inspectDirectory(join(FIXTURES, 'tiny-qwen2-adapter'), 200);
  expect(found).toMatchObject({
    loadable: true, problems: [], dtype: 'f32', architecture: { kind: 'qwen2_vl', layers: 2 }, adapter: { base: '../tiny-qwen2/checkpoint', rank: 4 }, files: [{ name: 'model.safetensors' }],
  });
  expect(found.adapter?.parameters).toBeGreaterThan(1000);
  expect(found.memory?.[0]?.trainingBytes).toBeLessThan((await inspectDirectory(join(FIXTURES, 'tiny-qwen2/checkpoint'), 200)).memory![0]!.trainingBytes);
  expect(inspectionText(found)).toMatch(/^adapter {7}LoRA of rank 4 on \[.*"q_proj".*\], base \.\.\/tiny-qwen2\/checkpoint, \d+ parameters$/m);
  expect(inspectionText(found)).toContain('train the adapter, 200 tokens');
});

test('an adapter without its base, or of another kind', async () => {
  const adapter = join(folder, 'adapter');
  mkdirSync(adapter);
  const write = (keys: object): void => writeFileSync(join(adapter, 'adapter_config.json'), JSON.stringify({ peft_type: 'LORA', base_model_name_or_path: join(FIXTURES, 'tiny-qwen2/checkpoint'), r: 8, target_modules: ['q_proj'], ...keys }));
  write({});
  expect(await inspectDirectory(adapter, 200)).toMatchObject({ loadable: false, problems: [expect.stringContaining('adapter_model.safetensors') as string, expect.stringContaining('adapter_model.safetensors') as string] });
  await writeSafetensors(join(adapter, 'adapter_model.safetensors'), [{ name: 'a', dtype: 'F32', shape: [3, 4], read: () => new Float32Array(12) }]);
  write({ base_model_name_or_path: 'nowhere' });
  expect(await inspectDirectory(adapter, 200)).toMatchObject({ loadable: false, adapter: { base: 'nowhere', rank: 8, parameters: 12 }, problems: [expect.stringContaining('to be a directory with config.json but received "nowhere"') as string] });
  write({ peft_type: 'IA3' });
  expect(await inspectDirectory(adapter, 200)).toMatchObject({ loadable: false, problems: [expect.stringContaining("only 'LORA' is implemented") as string] });
});
