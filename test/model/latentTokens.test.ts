/** A plain checkpoint gets the three tokens of latent reasoning: tokenizer files, record, tables, and all of it saved. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { openCheckpoint } from '../../lib/model/checkpoint';
import { newConfig, type NewModelConfig } from '../../lib/model/config';
import { withLatentTokens } from '../../lib/model/latentTokens';

const FIXTURES = join(__dirname, '../fixtures');
const LATENT = ['<|start-latent|>', '<|end-latent|>', '<|latent|>'];
type Json = Record<string, unknown>;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-tokens-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

const read = (path: string): Json => JSON.parse(readFileSync(path, 'utf8')) as Json;

/** Tokenizer files of the fixture without the latent tokens; `im_start` is the last one, 306. */
function plainTokenizer(to: string): void {
  cpSync(join(FIXTURES, 'tokenizer'), to, { recursive: true });
  const tokenizer = read(join(to, 'tokenizer.json'));
  const isLatent = (token: unknown): boolean => LATENT.includes((token as { content: string }).content);
  const isStart = (token: unknown): boolean => (token as { content: string }).content === '<|im_start|>';
  const added = (tokenizer['added_tokens'] as object[]).filter((token) => !isLatent(token)).map((token) => (isStart(token) ? { ...token, id: 306 } : token));
  writeFileSync(join(to, 'tokenizer.json'), JSON.stringify({ ...tokenizer, added_tokens: added }));
  const config = read(join(to, 'tokenizer_config.json'));
  const decoder = Object.fromEntries(Object.entries(config['added_tokens_decoder'] as Json).filter(([, token]) => !isLatent(token)).map(([id, token]) => [isStart(token) ? 306 : id, token]));
  writeFileSync(join(to, 'tokenizer_config.json'), JSON.stringify({ ...config, added_tokens_decoder: decoder, additional_special_tokens: ['<|im_start|>'] }));
  writeFileSync(join(to, 'special_tokens_map.json'), '{"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}');
  writeFileSync(join(to, 'added_tokens.json'), '{"<|im_end|>": 300}');
}

/** A plain checkpoint whose tables have `rows` rows. */
async function plain(name: string, rows: number, tied: boolean, dtype: 'f32' | 'bf16' = 'f32'): Promise<string> {
  const to = join(folder, name);
  const config: NewModelConfig = {
    text: { hidden: 32, layers: 1, heads: 4, kvHeads: 2, intermediate: 48, vocab: rows, mropeSection: [2, 1, 1], tied },
    vision: { depth: 1, width: 16, heads: 2, mlpWidth: 24 }, tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
  };
  plainTokenizer(join(folder, 'tokenizer'));
  using model = await LatentModel.create(newConfig(config), { seed: 3, dtype, processor: join(folder, 'tokenizer') });
  await model.save(to);
  return to;
}

const row = async (model: LatentModel, table: string, id: number): Promise<number[]> => [...(await model.native.readParameter(table, 'value')).subarray(32 * id, 32 * id + 32)];

describe.each<['f32' | 'bf16', boolean, number, number]>([['f32', true, 320, 320], ['bf16', false, 320, 320], ['f32', false, 307, 310], ['bf16', true, 308, 310]])('%s, tied %p, a table of %i rows', (dtype, tied, rows, want) => {
  test('ids follow the last one, rows start from known ones, and saving keeps it all', async () => {
    const source = await plain(`${dtype}-${tied}-${rows}`, rows, tied, dtype);
    using before = await LatentModel.load(source);
    using model = await LatentModel.load(source, { latentTokens: true });
    expect(model.config.text.vocab).toBe(want);
    expect(model.record).toMatchObject({ startLatentToken: 307, endLatentToken: 308, latentToken: 309 });
    expect(LATENT.map((token) => model.processor.tokenizer!.idOf(token))).toEqual([307, 308, 309]);
    expect(model.processor.tokenizer!.encode('a<|latent|>b')).toEqual([64, 309, 65]);
    expect(model.processor.decode([64, 307, 309, 308, 65])).toBe('ab');
    for (const table of tied ? ['model.embed_tokens.weight'] : ['model.embed_tokens.weight', 'lm_head.weight']) {
      const [start, end] = [await row(before, table, 301), await row(before, table, 302)];
      expect(await Promise.all([307, 308, 309].map((id) => row(model, table, id)))).toEqual([start, end, start]);
      for (const id of [0, 306, ...(want === rows ? [310, 319] : [])]) expect(await row(model, table, id)).toEqual(await row(before, table, id));
    }
    expect(await model.native.readParameter('model.layers.0.mlp.down_proj.weight', 'value')).toEqual(await before.native.readParameter('model.layers.0.mlp.down_proj.weight', 'value'));

    const saved = join(folder, 'saved');
    await model.save(saved);
    expect(read(join(saved, 'plumbline.json'))).toMatchObject({ startLatentTokenId: 307, endLatentTokenId: 308, latentTokenId: 309 });
    expect(read(join(saved, 'config.json'))).toMatchObject({ vocab_size: want });
    expect(read(join(saved, 'special_tokens_map.json'))).toEqual({ additional_special_tokens: ['<|im_start|>', ...LATENT], eos_token: '<|im_end|>' });
    expect(read(join(saved, 'added_tokens.json'))).toEqual({ '<|im_end|>': 300, '<|start-latent|>': 307, '<|end-latent|>': 308, '<|latent|>': 309 });
    const tokenizerConfig = read(join(saved, 'tokenizer_config.json'));
    expect(tokenizerConfig['additional_special_tokens']).toEqual(['<|im_start|>', ...LATENT]);
    expect((tokenizerConfig['added_tokens_decoder'] as Json)['309']).toEqual({ content: '<|latent|>', lstrip: false, normalized: false, rstrip: false, single_word: false, special: true });
    for (const latentTokens of [false, true]) {   // a second time there is nothing to do
      using again = await LatentModel.load(saved, { latentTokens });
      expect(again.record).toMatchObject({ startLatentToken: 307, endLatentToken: 308, latentToken: 309 });
      for (const { name } of model.native.parameters()) expect([name, await again.native.readParameter(name, 'value')]).toEqual([name, await model.native.readParameter(name, 'value')]);
      expect(again.processor.tokenizer!.idOf('<|latent|>')).toBe(309);
    }
  });
});

test('tokens that are there stay; those that lack follow', async () => {
  const source = await plain('some', 320, true);
  const path = join(source, 'tokenizer.json');
  const tokenizer = read(path);
  writeFileSync(path, JSON.stringify({ ...tokenizer, added_tokens: [...tokenizer['added_tokens'] as unknown[], { id: 307, content: '<|end-latent|>', special: true }] }));
  const { record } = withLatentTokens(await openCheckpoint(source));
  expect(record).toMatchObject({ startLatentToken: 308, endLatentToken: 307, latentToken: 309 });
});

test('a table that lacks rows of added tokens gets those too', async () => {
  const source = await plain('shrunken', 304, false);
  using model = await LatentModel.load(source, { latentTokens: true });
  expect([model.config.text.vocab, model.record.latentToken]).toEqual([310, 309]);
  for (const table of ['model.embed_tokens.weight', 'lm_head.weight']) {
    for (const [id, like] of [[304, 301], [305, 301], [306, 301], [307, 301], [308, 302], [309, 301]] as const) expect([table, id, await row(model, table, id)]).toEqual([table, id, await row(model, table, like)]);
  }
  await model.save(join(folder, 'regrown'));
  using again = await LatentModel.load(join(folder, 'regrown'));
  expect(await again.native.readParameter('lm_head.weight', 'value')).toEqual(await model.native.readParameter('lm_head.weight', 'value'));
});

test.each<[string, (source: string) => void, string, string]>([
  ['no tokenizer', (source) => rmSync(join(source, 'tokenizer.json')), 'ERR_UNSUPPORTED', 'Expected a checkpoint with tokenizer.json for latent tokens but received one without. Add the file, or load without latentTokens.'],
  ['ids that are none', (source) => writeFileSync(join(source, 'tokenizer.json'), '{"model": {"vocab": {"a": "b"}}}'), 'ERR_CHECKPOINT',
    'Expected ids of tokens in tokenizer.json and tokenizer_config.json to be whole numbers but received others. Download both again.'],
  ['a list', (source) => writeFileSync(join(source, 'tokenizer.json'), '[]'), 'ERR_CHECKPOINT', 'Expected tokenizer.json to hold an object. Download it again.'],
  ['gaps', (source) => {
    const tokenizer = read(join(source, 'tokenizer.json'));
    writeFileSync(join(source, 'tokenizer.json'), JSON.stringify({ ...tokenizer, added_tokens: [...tokenizer['added_tokens'] as object[], { id: 308, content: 'far' }] }));
  }, 'ERR_CHECKPOINT', "Expected ids of tokens in tokenizer.json to follow one another but received gaps below 308. Python's tokenizers number the tokens after a gap anew: save the tokenizer again there."],
  ['more tokens than rows', (source) => writeFileSync(join(source, 'tokenizer.json'), '{"model": {"vocab": {"a": 320}}}'), 'ERR_CHECKPOINT',
    'Expected the vocabulary of tokenizer.json to be below the 320 rows of the embedding table but received id 320. The files belong to different models: take all of them from one.'],
  ['another id in the record', (source) => writeFileSync(join(source, 'plumbline.json'), '{"format": 1, "latentTokenId": 310}'), 'ERR_CHECKPOINT',
    'Expected <|latent|> to be token 310, as plumbline.json says, but received 309 in tokenizer.json. The files belong to different models: take both from one.'],
  ['vision tokens beyond the table', (source) => writeFileSync(join(source, 'config.json'), JSON.stringify({ ...read(join(source, 'config.json')), vision_end_token_id: 400 })), 'ERR_CHECKPOINT',
    'Expected the vision tokens of config.json to be below the 320 rows of the embedding table but received id 400. Correct the file: new tokens start from their rows.'],
])('%s', async (name, spoil, code, message) => {
  const source = await plain(`bad ${name}`, 320, true);
  spoil(source);
  await expect(LatentModel.load(source, { latentTokens: true })).rejects.toMatchObject({ name: 'LibError', code, message: `[load] ${message}` });
});

test('an option that is no boolean', async () => {
  await expect(LatentModel.load(folder, { latentTokens: 1 as never })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[load] Expected latentTokens to be a boolean but received 1' });
});

test.each([307, 320])('an adapter that was trained with the tokens has them again on its base of %i rows, with the tokenizer beside it or without', async (rows) => {
  const source = await plain(`base-${rows}`, rows, false);
  using model = await LatentModel.load(source, { latentTokens: true, adapter: { rank: 2 } });
  const to = join(folder, `adapter-${rows}`);
  await model.saveAdapter(to);
  await model.save(join(folder, `whole-${rows}`));
  const same = async (): Promise<void> => {
    using again = await LatentModel.load(to);
    expect(again.record).toMatchObject({ startLatentToken: 307, endLatentToken: 308, latentToken: 309 });
    expect(again.processor.tokenizer!.idOf('<|latent|>')).toBe(309);
    for (const { name } of model.native.parameters()) expect([name, await again.native.readParameter(name, 'value')]).toEqual([name, await model.native.readParameter(name, 'value')]);
  };
  await same();
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json']) cpSync(join(folder, `whole-${rows}`, name), join(to, name));
  await same();
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) rmSync(join(source, name));   // the base has none at all
  await same();
});
