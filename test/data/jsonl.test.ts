import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readRecords, recordAt, sampleAt, writeRecords, type DataRecord } from '../../lib/data';

let dir: string;
beforeAll(() => { dir = mkdtempSync(join(tmpdir(), 'plumbline-records-')); });
afterAll(() => rmSync(dir, { recursive: true }));

async function readAll(path: string): Promise<DataRecord[]> {
  const records: DataRecord[] = [];
  for await (const record of readRecords(path)) records.push(record);
  return records;
}

function file(content: string | Buffer): string {
  const path = join(dir, 'records.jsonl');
  writeFileSync(path, content);
  return path;
}

test('records survive writing and reading; image paths become absolute', async () => {
  const path = join(dir, 'new', 'folder', 'records.jsonl');
  const samples = Array.from({ length: 50 }, (_, index) => sampleAt({ rows: 2, columns: 2, readingShare: 0.3 }, index));
  expect(await writeRecords(path, samples)).toBe(50);
  const expected = samples.map(({ picture, sources, questionKind, ...record }) =>
    ({ ...record, images: record.images.map((image) => join(dir, 'new', 'folder', image)) }));
  expect(await readAll(path)).toEqual(expected);
  expect(readFileSync(path, 'utf8')).not.toContain('picture');
});

test('defaults, optional fields, rationale, empty lines, byte order mark and Windows line ends', async () => {
  const path = file([
    '\uFEFF{"question":"q","answer":"a"}',
    '',
    '{"id":"x","images":["a.png","/b.png"],"question":"q","choices":["1","2"],"rationale":"one\\n\\n two ","answer":"A","answerText":"1","meta":{"k":[1]}}',
    '   ',
  ].join('\r\n'));
  expect(await readAll(path)).toEqual([
    { id: '1', images: [], question: 'q', steps: [], answer: 'a', meta: {} },
    {
      id: 'x', images: [join(dir, 'a.png'), '/b.png'], question: 'q', choices: ['1', '2'], steps: ['one', 'two'], answer: 'A', answerText: '1', meta: { k: [1] },
    },
  ]);
});

test('leaving the loop early is fine, and an empty file has no records', async () => {
  const path = join(dir, 'many.jsonl');
  await writeRecords(path, Array.from({ length: 5000 }, (_, index) => recordAt({}, index)));
  for await (const record of readRecords(path)) {
    expect(record.id).toBe('train-0-0');
    break;
  }
  expect(await readAll(file(''))).toEqual([]);
});

const GOOD = '{"id":"1st","question":"q","answer":"a"}\n';

test.each<[string, string]>([
  ['{"id":"2nd","question":"q"}', 'to have a non-empty string as answer but received undefined'],
  ['{"id":"2nd","question":"","answer":"a"}', 'to have a non-empty string as question but received ""'],
  ['{"id":7,"question":"q","answer":"a"}', 'to have a non-empty string as id but received 7'],
  ['{"id":"1st","question":"q","answer":"a"}', 'to have an id of its own but received "1st", the id of line 1'],
  ['{"question":"q","answer":"a","steps":"s"}', 'to have an array of strings as steps but received "s"'],
  ['{"question":"q","answer":"a","images":["a",null]}', 'to have only strings in images but received null'],
  ['{"question":"q","answer":"a","steps":[],"rationale":"r"}', 'to have either steps or rationale but received both'],
  ['{"question":"q","answer":"a","meta":[]}', 'to have an object as meta but received Array(0)'],
  ['{"question":"q","answer":"a","image":"a.png"}',
    'to have fields among id, images, question, choices, steps, rationale, answer, answerText, meta (others belong into meta) but received "image"'],
  ['[1]', 'to have an object but received Array(1)'],
  ['null', 'to have an object but received null'],
])('line %s is refused by its number', async (line, message) => {
  const path = file(GOOD + line);
  await expect(readAll(path)).rejects.toMatchObject({ name: 'LibError', code: 'ERR_ARGUMENT', message: `[readRecords] Expected line 2 of ${path} ${message}` });
});

test('text that is no JSON, and bytes that are no text', async () => {
  const path = file(`${GOOD}\n{"id":`);
  await expect(readAll(path)).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: expect.stringContaining(`[readRecords] Expected line 3 of ${path} to be JSON but received "{\\"id\\":": `) as string,
  });
  await expect(readAll(file(Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 0xff, 0xfe])))).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
});

test.each([null, 5, ''])('%j is no path, and no records are none', async (path) => {
  const refused = { name: 'LibError', code: 'ERR_ARGUMENT' };
  await expect(readRecords(path as never).next()).rejects.toMatchObject(refused);
  await expect(writeRecords(path as never, [])).rejects.toMatchObject(refused);
  const kept = join(dir, 'kept.jsonl');
  writeFileSync(kept, 'x');
  await expect(writeRecords(kept, path as never)).rejects.toMatchObject(refused);
  expect(readFileSync(kept, 'utf8')).toBe('x');
});

test('a line without end is refused before it fills the memory', async () => {
  const path = file(Buffer.concat([Buffer.from(GOOD), Buffer.alloc(5 << 20, 'x')]));
  await expect(readAll(path)).rejects.toMatchObject({
    code: 'ERR_ARGUMENT', message: `[readRecords] Expected line 2 of ${path} to have at most 4194304 characters but received more`,
  });
});

test('multi-byte characters across read chunks stay whole', async () => {
  const path = join(dir, 'long.jsonl');
  const question = 'x' + '漢é😀'.repeat(30_000);
  await writeRecords(path, [{ id: 'a', images: [], question, steps: [], answer: 'b', meta: {} }]);
  expect((await readAll(path))[0]!.question === question).toBe(true);
});

test.each(['missing.jsonl', '.'])('path %s cannot be read', async (name) => {
  const path = join(dir, name);
  await expect(readAll(path)).rejects.toMatchObject({
    name: 'LibError', code: 'ERR_ARGUMENT',
    message: expect.stringContaining(`[readRecords] Expected a readable file but received ${JSON.stringify(path)}: E`) as string,
  });
});
