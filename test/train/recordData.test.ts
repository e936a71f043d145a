/** Records as training samples, and as questions with answers. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readRecords, type DataRecord } from '../../lib/data';
import { answeredLetter, answeredText, evaluate, recordItems } from '../../lib/evaluate';
import { LatentModel } from '../../lib/latentModel';
import { recordAnswer, recordData, type RecordModel, type SampleContext, type TrainingSample } from '../../lib/train';
import { writeCheckpoint, writeRecordFiles } from '../cli/trainFixture';

const CONTEXT = {} as SampleContext;
let folder: string;
let model: LatentModel;
let records: DataRecord[];
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'plumbline-records-'));
  writeCheckpoint(join(folder, 'model'));
  await writeRecordFiles(join(folder, 'data'));
  model = await LatentModel.load(join(folder, 'model'));
  records = [];
  for await (const record of readRecords(join(folder, 'data/train.jsonl'))) records.push(record);
});
afterAll(() => {
  model.dispose();
  rmSync(folder, { recursive: true });
});

const sampleOf = (n: number, options = {}): Promise<TrainingSample> => Promise.resolve(recordData(model, records, options).at(n, CONTEXT));
const ids = (text: string): number[] => model.processor.tokenizer!.encode(text);
const chat = (text: string): string => `<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n`;
const image = (rows: number): string => `<|vision_start|>${'<|image_pad|>'.repeat(rows)}<|vision_end|>`;

describe('samples', () => {
  test('with choices: the question as the released code puts it, and the letter', async () => {
    const { promptIds, pictures, steps, answer } = await sampleOf(0);
    expect([...promptIds as Int32Array]).toEqual(ids(chat(`${image(6)}[Question]:{what is the largest?}\n[Options]:\n(A).{a cat}\n(B).{a row}\nAnswer:\n`)));
    expect(pictures.map(({ height, width, original }) => [height, width, original!.height, original!.width])).toEqual([[56, 84, 60, 84]]);
    expect(steps).toEqual([ids('the cats\n'), ids('the row\n')]);
    expect(answer).toEqual([...ids('Therefore, the answer is B'), 300]);
  });
  test('without choices: the question alone; a rationale has a step a line; the answer of a choice becomes its letter', async () => {
    const { promptIds, pictures, steps, answer } = await sampleOf(1);
    expect([...promptIds as Int32Array]).toEqual(ids(chat(`${image(6)}${image(6)}what is it?`)));
    expect([pictures.length, steps, answer]).toEqual([2, [ids('it is a cat\n'), ids('we count\n')], [...ids('Therefore, the answer is a cat'), 300]]);
    expect((await sampleOf(3)).answer).toEqual([...ids('Therefore, the answer is B'), 300]);
    expect((await sampleOf(2)).pictures).toEqual([]);
  });
  test('steps are merged, pictures are bounded', async () => {
    expect((await sampleOf(2, { maxSteps: 2 })).steps).toEqual([[...ids('one\n'), ...ids('two\n')], ids('three\n')]);
    expect((await sampleOf(0, { minPixels: 784, maxPixels: 1600 })).pictures.map(({ height, width }) => [height, width])).toEqual([[28, 28]]);
    expect((await sampleOf(1, { resizedHeight: 28, resizedWidth: 84 })).pictures.map(({ height, width }) => [height, width])).toEqual([[28, 84], [28, 84]]);
  });
  test('the same index gives the same sample, from the cache where there is room', async () => {
    const data = recordData(model, records);
    expect(data.size).toBe(4);
    const first = await data.at(0, CONTEXT);
    expect(await data.at(0, CONTEXT)).toBe(first);
    const none = recordData(model, records, { cacheBytes: 0 });
    expect(await none.at(0, CONTEXT)).not.toBe(await none.at(0, CONTEXT));
    expect(await none.at(0, CONTEXT)).toEqual(first);
    // Room for one sample with a picture (30 KB) and the one without.
    const small = recordData(model, records, { cacheBytes: 40_000 });
    const [picture, text] = [await small.at(0, CONTEXT), await small.at(2, CONTEXT)];
    expect([await small.at(0, CONTEXT), await small.at(2, CONTEXT)]).toEqual([picture, text]);
    expect(await small.at(0, CONTEXT)).toBe(picture);
    await small.at(3, CONTEXT);   // another picture: the sample used longest ago goes, then the next
    expect(await small.at(2, CONTEXT)).not.toBe(text);
    expect(await small.at(0, CONTEXT)).not.toBe(picture);
  });
});

describe('misuse', () => {
  const base: DataRecord = { id: 'x', images: [], question: 'q', steps: [], answer: 'B', meta: {} };
  const with_ = (change: Partial<RecordModel>): RecordModel => ({ processor: model.processor, endIds: model.endIds, ...change });
  test.each<[string, () => unknown, string, string]>([
    ['no records', () => recordData(model, []), 'ERR_ARGUMENT', 'Expected at least one record but received none'],
    ['an option', () => recordData(model, records, { maxStep: 2 } as never), 'ERR_ARGUMENT', "Expected options among minPixels, maxPixels, resizedHeight, resizedWidth, maxInputPixels, maxSteps, cacheBytes but received 'maxStep'; did you mean 'maxSteps'?"],
    ['no steps', () => recordData(model, records, { maxSteps: 0 }), 'ERR_RANGE', 'Expected maxSteps to be an integer of at least 1 but received 0'],
    ['a cache', () => recordData(model, records, { cacheBytes: -1 }), 'ERR_RANGE', 'Expected cacheBytes to be an integer of at least 0 but received -1'],
    ['no model', () => recordData(null as never, records), 'ERR_ARGUMENT', 'Expected model to be an object but received null'],
    ['no tokenizer', () => recordData(with_({ processor: { ...model.processor, tokenizer: undefined } }), records), 'ERR_UNSUPPORTED', 'Expected a checkpoint with tokenizer.json for records but received one without. Add the file, or make samples of ids.'],
    ['no end', () => recordData(with_({ endIds: [] }), records), 'ERR_UNSUPPORTED', 'Expected a checkpoint with an end token for records but received one without. Set eos_token_id in generation_config.json.'],
    ['one choice', () => recordAnswer({ ...base, choices: ['a'] }), 'ERR_ARGUMENT', 'Expected record "x" to have 2 to 26 choices but received 1'],
    ['another letter', () => recordAnswer({ ...base, choices: ['a', 'b'], answer: 'C' }), 'ERR_ARGUMENT', 'Expected the answer of record "x" to be a letter from A to B or one of its choices but received "C"'],
  ])('%s', (_, call, code, message) => {
    expect(call).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[recordData] ${message}` }));
  });
  test('what is wrong with a record shows when it is asked for, and names it', async () => {
    const data = recordData(model, [{ ...base, choices: ['a', 'b'], answer: 'c' }, { ...base, images: ['/none.png'] }, { ...base, question: '<|image_pad|>' }]);
    await expect(data.at(0, CONTEXT)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('answer of record "x"') as string });
    await expect(data.at(1, CONTEXT)).rejects.toMatchObject({ code: 'ERR_IMAGE', message: '[image] Expected an image file at "/none.png" but received no such file. Correct the path, or give the bytes. (part 0 of message 0) (record "x")' });
    await expect(data.at(2, CONTEXT)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringMatching(/per image\. \(record "x"\)$/) as string });
    await expect(data.at(3, CONTEXT)).rejects.toMatchObject({ code: 'ERR_RANGE', message: '[recordData] Expected index to be an integer from 0 to 2 but received 3' });
  });
});

describe('questions', () => {
  test.each([
    ['Therefore, the answer is B', 'B'], ['the answer is (C).', 'C'], ['Answer: {D}', 'D'], ['The answer is A\nno, the answer is B', 'B'], ['the answer is Bananas', undefined], ['B', undefined], ['**B**', undefined],
    ['the answer is: B', 'B'], ['The answer is **B**.', 'B'], ['**Answer:** (C)', 'C'], ['Answer: A. So the answer is B.', 'B'], ['the answer isB', undefined], ['', undefined],
  ])('letter of %j', (text, letter) => expect(answeredLetter(text)).toBe(letter));
  test.each([
    ['Therefore, the answer is a  Cat.', 'a cat'], ['so\nthe answer is: 6\nmore', '6'], ['6', undefined],
    ['The answer is 3. So the answer is 4.', '4'], ['Answer: 4', '4'], ['**Answer:** 4', '4'], ['The answer is **4**.', '4'], ['**The answer is 4.**', '4'], ['the answer island', undefined], ['the answer is', ''],
  ])('text of %j', (text, answer) => expect(answeredText(text)).toBe(answer));

  test('are judged by the text that follows the prompt alone, and made when their turn comes', async () => {
    const items = recordItems(model, records);
    const made = await Promise.all(items.map((item) => item()));
    expect(made.map(({ kind }) => kind)).toEqual(['multiple choice', 'open', 'open', 'multiple choice']);
    const judge = (n: number, text: string): boolean => made[n]!.isRight({ text } as never);
    expect([judge(0, 'the answer is B'), judge(0, 'the answer is A'), judge(1, 'the answer is A Cat'), judge(2, 'the answer is 66'), judge(3, 'Answer: B'), judge(3, '')]).toEqual([true, false, true, false, true, false]);
    let open = 0;
    let most = 0;
    const counted = items.map((item) => async () => {
      most = Math.max(most, ++open);
      return item();
    });
    const result = await evaluate(model, counted, { batchSize: 2, maxNewTokens: 2, onProgress: () => { open = 0; } });
    expect([most, result.overall.count, Object.keys(result.kinds)]).toEqual([2, 4, ['multiple choice', 'open']]);
    const eager = await evaluate(model, made, { batchSize: 2, maxNewTokens: 2 });
    expect(eager.answers.map(({ result: { ids: all } }) => all)).toEqual(result.answers.map(({ result: { ids: all } }) => all));
    await expect(evaluate(model, [async () => null as never])).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: '[evaluate] Expected item 0 to be an object but received null' });
  });
});
