/** generation_config.json is honoured as transformers does: test/fixtures/make_generation.py says what it generates. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PromptInput } from '../../lib/model/passes';
import { LatentModel } from '../../lib/latentModel';

const FIXTURES = join(__dirname, '../fixtures');
const { promptIds, height, width, pixels, cases } = JSON.parse(readFileSync(join(FIXTURES, 'generation.json'), 'utf8')) as {
  promptIds: number[]; height: number; width: number; pixels: string; cases: { name: string; generationConfig: Record<string, unknown>; ids: number[] }[];
};
const prompt: PromptInput = { promptIds, pictures: [{ pixels: new Uint8Array(Buffer.from(pixels, 'base64')), frames: 1, height, width }] };
const STEPS = 24;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-generation-'));
  cpSync(join(FIXTURES, 'tiny-qwen2/checkpoint'), folder, { recursive: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

async function generated(config: Record<string, unknown>, options: Parameters<LatentModel['generate']>[1]): Promise<number[]> {
  writeFileSync(join(folder, 'generation_config.json'), JSON.stringify(config));
  using model = await LatentModel.load(folder);
  return (await model.generate(prompt, { latentSteps: 0, ...options })).ids;
}
const named = (name: string): (typeof cases)[number] => cases.find((one) => one.name === name)!;

test('the fixture tells the cases apart', () => {
  expect(new Set(cases.map(({ ids }) => ids.join())).size).toBe(3);   // Qwen2-VL's own settings are greedy in effect
  expect(named('as Qwen2-VL').ids).toEqual(named('plain').ids);
});

test.each(cases)('$name: the same ids as transformers', async ({ generationConfig, ids }) => {
  expect(await generated(generationConfig, { maxNewTokens: STEPS })).toEqual(ids);
});

test('a call that says otherwise wins; temperature 0 leaves the penalty', async () => {
  const { generationConfig } = named('greedy with a penalty');
  expect(await generated(generationConfig, { maxNewTokens: STEPS, repetitionPenalty: 1 })).toEqual(named('plain').ids);
  const sampled = { ...generationConfig, do_sample: true, temperature: 2, max_new_tokens: 5 };
  expect(await generated(sampled, { maxNewTokens: STEPS, temperature: 0 })).toEqual(named('greedy with a penalty').ids);
  expect((await generated(sampled, { stopIds: [] })).length).toBe(5);
});

test('an end token beyond the table ends nothing and disturbs nothing', async () => {
  expect(await generated({ eos_token_id: [300, 151645] }, { maxNewTokens: STEPS })).toEqual(named('plain').ids);
});
