/** Files of a checkpoint that are too large, no files, or stand for others: refused with what is there, before anything is parsed. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { decodeImage } from '../../lib/model/image';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');
const INDEX = 'model.safetensors.index.json';
const POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n';
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-files-'));
  cpSync(TINY, folder, { recursive: true });
});
afterEach(() => rmSync(folder, { recursive: true }));

async function refused(message: string, directory = folder): Promise<void> {
  await expect(LatentModel.load(directory)).rejects.toMatchObject({ name: 'LibError', code: 'ERR_CHECKPOINT', message });
}

test.each<[string, number]>([
  ['config.json', 1 << 20], ['generation_config.json', 1 << 20], ['preprocessor_config.json', 1 << 20], ['processor_config.json', 1 << 20], ['plumbline.json', 1 << 20],
  ['adapter_config.json', 1 << 20], ['chat_template.json', 1 << 20], ['chat_template.jinja', 1 << 20], ['video_preprocessor_config.json', 1 << 20],
  ['tokenizer_config.json', 16 << 20], ['tokenizer.json', 64 << 20], ['vocab.json', 32 << 20], ['merges.txt', 32 << 20], [INDEX, 16 << 20],
])('%s of more than %i bytes', async (name, most) => {
  if (name === INDEX) rmSync(join(folder, 'model.safetensors'));
  if (name === 'processor_config.json') rmSync(join(folder, 'preprocessor_config.json'), { force: true });
  const file = join(folder, name);
  writeFileSync(file, '');
  truncateSync(file, most + 1);
  await refused(`[load] Expected ${file} to have at most ${most} bytes but received ${most + 1}. Is it the right file?`);
});

test('an index of more files than any model has', async () => {
  rmSync(join(folder, 'model.safetensors'));
  writeFileSync(join(folder, INDEX), JSON.stringify({ weight_map: Object.fromEntries(Array.from({ length: 10_001 }, (_, i) => [`t${i}`, `s${i}.safetensors`])) }));
  await refused(`[load] Expected at most 10000 files in weight_map of ${INDEX} but received 10001. Download the file again.`);
});

test.each(['model.safetensors', 'config.json', 'tokenizer.json', 'plumbline.safetensors'])('%s that Git LFS did not download', async (name) => {
  const file = join(folder, name);
  writeFileSync(file, POINTER);
  await refused(`[load] Expected the content of ${file} but received a pointer of Git LFS, which stands for it. Download the file itself: run git lfs pull in its directory.`);
});

describe('what is there instead of a file', () => {
  test.each<[string, string]>([
    ['config.json', '[load] Expected a readable file at FILE but received KIND. Remove it, or put the file in its place.'],
    ['tokenizer.json', '[load] Expected a readable file at FILE but received KIND. Remove it, or put the file in its place.'],
    ['model.safetensors', '[safetensors] Expected a readable file at FILE but received KIND'],
    ['plumbline.safetensors', '[safetensors] Expected a readable file at FILE but received KIND'],
  ])('a directory, and a link to nothing, as %s', async (name, message) => {
    const file = join(folder, name);
    rmSync(file, { force: true });
    mkdirSync(file);
    await refused(message.replace('FILE', file).replace('KIND', 'a directory'));
    rmSync(file, { recursive: true });
    symlinkSync(join(folder, 'gone'), file);
    await refused(message.replace('FILE', file).replace('KIND', 'a link to nothing'));
  });

  test('a shard that the index names', async () => {
    rmSync(join(folder, 'model.safetensors'));
    writeFileSync(join(folder, INDEX), JSON.stringify({ weight_map: { a: 's.safetensors' } }));
    await refused(`[safetensors] Expected a readable file at ${join(folder, 's.safetensors')} but received no such file`);
  });

  test('the directory itself', async () => {
    const give = 'Give the directory of a Hugging Face checkpoint.';
    const none = join(folder, 'none'), file = join(folder, 'config.json'), link = join(folder, 'link'), empty = join(folder, 'empty');
    mkdirSync(empty);
    symlinkSync(none, link);
    await refused(`[load] Expected the directory of a Hugging Face checkpoint but received ${JSON.stringify(none)}, which is not there. Correct the path.`, none);
    await refused(`[load] Expected config.json in ${file} but received a file of that name. ${give}`, file);
    await refused(`[load] Expected config.json in ${link} but received a link to nothing. ${give}`, link);
    await refused(`[load] Expected config.json in ${empty} but received no such file. ${give}`, empty);
    await expect(LatentModel.load('')).rejects.toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message: '[load] Expected directory to be a path but received ""' });
  });

  test('a picture', async () => {
    const link = join(folder, 'link');
    symlinkSync(join(folder, 'none'), link);
    const remedy = 'Correct the path, or give the bytes.';
    for (const [path, kind] of [[folder, 'a directory'], [link, 'a link to nothing'], [join(folder, 'none'), 'no such file']] as const) {
      await expect(decodeImage(path)).rejects.toMatchObject({ name: 'LibError', code: 'ERR_IMAGE', message: `[image] Expected an image file at ${JSON.stringify(path.length > 60 ? `${path.slice(0, 60)}…` : path)} but received ${kind}. ${remedy}` });
    }
  });
});

test('a byte order mark before JSON is no part of it', async () => {
  for (const name of ['config.json', 'generation_config.json', 'plumbline.json']) writeFileSync(join(folder, name), `\uFEFF${readFileSync(join(folder, name), 'utf8')}`);
  (await LatentModel.load(folder)).dispose();
});
