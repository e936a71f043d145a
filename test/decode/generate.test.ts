import { generate, stream, type GenerateEvent, type GenerateRequest } from '../../lib/decode';
import { END, fakeModel, GEOMETRY, hashedLogits, picture } from './fakeModel';

const IMAGE = GEOMETRY.imageToken;
const VIDEO = GEOMETRY.videoToken;
const REQUESTS: GenerateRequest<string>[] = [
  { promptIds: [1, 2, 3], latentSteps: 0 },
  { promptIds: [4, IMAGE, IMAGE, 5], pictures: [picture(1, 2)], latentSteps: 3, maxNewTokens: 4 },
  { promptIds: [6], latentSteps: 1, maxNewTokens: 9 },
  { promptIds: [IMAGE, 7, IMAGE], pictures: [picture(1, 1), picture(1, 1)], seed: 5 },
  { messages: '8 9 10' },
];
const SAMPLED = { temperature: 1, topP: 0.95, repetitionPenalty: 1.2, maxNewTokens: 7, seed: 3 };

/** Logits that spell out a fixed script of tokens after the prompt, whatever was fed. */
function scripted(script: number[]): (rows: readonly string[]) => Float32Array {
  return (rows) => {
    const logits = new Float32Array(GEOMETRY.vocab);
    logits[script[rows.length - 1] as number] = 1;
    return logits;
  };
}

async function caught(call: () => Promise<unknown>): Promise<{ code?: string; message: string }> {
  try {
    await call();
  } catch (error) {
    return error as { code?: string; message: string };
  }
  throw new Error('nothing was thrown');
}

async function collect(events: AsyncIterable<GenerateEvent>): Promise<GenerateEvent[]> {
  const all: GenerateEvent[] = [];
  for await (const event of events) all.push(event);
  return all;
}

describe('rows', () => {
  test('prompt, latents, then one word per pass; n latents add n rows', async () => {
    const model = fakeModel({ logitsOf: scripted([0, 0, 0, 0, 11, 12, END]) });
    const [result] = await generate(model, [{ promptIds: [1, 2, 3] }], { latentSteps: 2 });
    expect(result).toEqual({ ids: [11, 12, END], text: ' w11 w12', finishReason: 'end', latentSteps: 2, arSteps: 5, tokenForwards: 7 });
    expect(model.passes.map(({ kind }) => [...kind])).toEqual([[0, 0, 0], [2], [2], [0], [0]]);
    expect(model.passes.map(({ index }) => [...index])).toEqual([[1, 2, 3], [0], [0], [11], [12]]);
    expect(model.passes.map(({ positions }) => [...positions])).toEqual([[0, 1, 2, 0, 1, 2, 0, 1, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5], [6, 6, 6]]);
    expect(model.passes.map(({ logitRows }) => logitRows && [...logitRows])).toEqual([undefined, undefined, [0], [0], [0]]);
    expect(model.tokenForwards).toBe(7);
  });
  test('the first token is checked for the end too', async () => {
    const model = fakeModel({ logitsOf: scripted([END]) });
    expect(await generate(model, [{ promptIds: [1] }])).toEqual([{ ids: [END], text: '', finishReason: 'end', latentSteps: 0, arSteps: 1, tokenForwards: 1 }]);
  });
  test('positions go on after a picture from the largest + 1', async () => {
    const model = fakeModel({ logitsOf: scripted([0, 0, 0, 0, 0, 0, 0, 7, END]) });
    await generate(model, [{ promptIds: [1, ...new Array<number>(6).fill(IMAGE), 2], pictures: [picture(2, 3)] }]);
    expect([...model.passes[1]!.positions]).toEqual([5, 5, 5]);   // 0, picture 1..3, 4, then 5
  });
  test('the frames of a video are as far apart as its seconds say, where the model counts them', async () => {
    const base = fakeModel({ logitsOf: scripted([0, 0, 0, 0, 7, END]) });
    const model = { ...base, geometry: { ...GEOMETRY, tokensPerSecond: 2 } };
    const video = { ...picture(1, 1), frames: 5, pixels: new Uint8Array(5 * 28 * 28 * 3) };   // 3 temporal patches
    for (const [secondsPerGrid, times] of [[1.25, [1, 3, 6]], [undefined, [1, 3, 5]]] as const) {
      base.passes.length = 0;
      await generate(model, [{ promptIds: [1, VIDEO, VIDEO, VIDEO, 2], pictures: [{ ...video, ...(secondsPerGrid === undefined ? {} : { secondsPerGrid }) }] }]);
      const next = times[2] + 1;
      expect([...base.passes[0]!.positions]).toEqual([0, ...times, next, 0, 1, 1, 1, next, 0, 1, 1, 1, next]);
      expect([...base.passes[1]!.positions]).toEqual([next + 1, next + 1, next + 1]);
    }
  });
  test('finished sequences leave the batch and are freed', async () => {
    const model = fakeModel();
    await generate(model, [{ promptIds: [1], maxNewTokens: 1 }, { promptIds: [2], maxNewTokens: 3 }]);
    expect(model.passes.map(({ sequences }) => [...sequences])).toEqual([[0, 1], [1], [1]]);
    expect(model.freed).toEqual([0, 1]);
    expect(model.openSessions).toBe(0);
  });
});

describe('batch-mates', () => {
  test.each([1, 2, 3, 5, 32])('results in batches of %i are those of each request alone', async (batchSize) => {
    const alone = [];
    for (const request of REQUESTS) alone.push((await generate(fakeModel(), [request], SAMPLED))[0]);
    expect(await generate(fakeModel(), REQUESTS, { ...SAMPLED, batchSize })).toEqual(alone);
  });
  test('the seed decides', async () => {
    const run = (seed: number) => generate(fakeModel(), [REQUESTS[0]!], { ...SAMPLED, seed });
    expect(await run(3)).toEqual(await run(3));
    expect(await run(4)).not.toEqual(await run(3));
  });
  test('no requests, no results', async () => expect(await generate(fakeModel(), [])).toEqual([]));
  test('every row is counted', async () => {
    const model = fakeModel();
    const results = await generate(model, REQUESTS, SAMPLED);
    expect(results.reduce((sum, { tokenForwards }) => sum + tokenForwards, 0)).toBe(model.tokenForwards);
  });
});

describe('ends', () => {
  const script = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  test('maxNewTokens', async () => {
    const [result] = await generate(fakeModel({ logitsOf: scripted(script) }), [{ promptIds: [1] }], { maxNewTokens: 2 });
    expect(result).toMatchObject({ ids: [0, 1], finishReason: 'length', arSteps: 2, tokenForwards: 2 });
  });
  test('stop ids replace the end ids', async () => {
    const [result] = await generate(fakeModel({ logitsOf: scripted([END, 3, 4]) }), [{ promptIds: [1] }], { stopIds: [3] });
    expect(result).toMatchObject({ ids: [END, 3], finishReason: 'end', text: ` w${END}` });
  });
  test.each([
    [['w3'], ' w0 w1 w2 ', [0, 1, 2, 3]],
    [['1 w2 w'], ' w0 w', [0, 1, 2, 3]],           // across tokens
    [['nowhere', 'w2', 'w1 w2'], ' w0 ', [0, 1, 2]], // the first in the text wins
  ])('stop strings %j', async (stop, text, ids) => {
    const model = (): ReturnType<typeof fakeModel> => fakeModel({ logitsOf: scripted(script) });
    const [result] = await generate(model(), [{ promptIds: [1] }], { stop });
    expect(result).toMatchObject({ text, ids, finishReason: 'stop' });
    const events = await collect(stream(model(), { promptIds: [1] }, { stop }));
    expect(events.map((event) => (event.type === 'latent' ? '' : event.text)).join('')).toBe(text);
  });
  test('text that only began like a stop string comes out at the end', async () => {
    const [result] = await generate(fakeModel({ logitsOf: scripted([1, 2, END]) }), [{ promptIds: [1] }], { stop: [' w2 w9'] });
    expect(result).toMatchObject({ text: ' w1 w2', finishReason: 'end' });
  });
});

describe('stream', () => {
  test('yields latents, tokens with text, the end; the pieces are the text', async () => {
    const model = fakeModel({ logitsOf: scripted([0, 0, 5, 6, END]) });
    expect(await collect(stream(model, { promptIds: [1] }, { latentSteps: 2 }))).toEqual([
      { type: 'latent', step: 1 }, { type: 'latent', step: 2 },
      { type: 'token', id: 5, text: ' w5' }, { type: 'token', id: 6, text: ' w6' }, { type: 'token', id: END, text: '' },
      { type: 'end', text: '', result: { ids: [5, 6, END], text: ' w5 w6', finishReason: 'end', latentSteps: 2, arSteps: 5, tokenForwards: 5 } },
    ]);
  });
  test('characters of several tokens come out when they are complete', async () => {
    const bytes = Buffer.from('aé€b');
    const model = fakeModel({ logitsOf: scripted([0, 1, 2, 3, 4, 5, 6, END]) });
    model.decodeText = (ids) => Buffer.from(ids.map((id) => bytes[id]!)).toString('utf8');
    const pieces = (await collect(stream(model, { promptIds: [1] }))).flatMap((event) => (event.type === 'token' ? [event.text] : []));
    expect(pieces).toEqual(['a', '', 'é', '', '', '€', 'b', '']);
  });
  test('a stop string before a character that never completes still stops', async () => {
    const bytes = Buffer.from('ab€');   // one token "b" + the first byte of the euro sign, as byte-level vocabularies have
    const tokens = [bytes.subarray(0, 1), bytes.subarray(1, 3)];
    const model = fakeModel({ logitsOf: scripted([0, 1, END]) });
    model.decodeText = (ids) => Buffer.concat(ids.map((id) => tokens[id]!)).toString('utf8');
    for (const maxNewTokens of [2, 9]) {
      const events = await collect(stream(model, { promptIds: [1] }, { stop: ['b'], maxNewTokens }));
      expect(events.at(-1)).toMatchObject({ text: '', result: { text: 'a', finishReason: 'stop' } });
    }
  });
  test('is the same as generate', async () => {
    const events = await collect(stream(fakeModel(), REQUESTS[1]!, SAMPLED));
    const [result] = await generate(fakeModel(), [REQUESTS[1]!], SAMPLED);
    expect(events.at(-1)).toMatchObject({ type: 'end', result });
  });
  test('leaving the loop frees the session', async () => {
    const model = fakeModel();
    for await (const event of stream(model, { promptIds: [1] })) if (event.type === 'token') break;
    expect(model.openSessions).toBe(0);
    expect(model.passes.length).toBe(1);
  });
  test('a failure frees the session', async () => {
    const model = fakeModel({ logitsOf: () => new Float32Array(GEOMETRY.vocab).fill(NaN) });
    expect(await caught(() => collect(stream(model, { promptIds: [1] })))).toMatchObject({ code: 'ERR_RANGE' });
    expect(model.openSessions).toBe(0);
  });
  test('the signal goes to the encoding of messages', async () => {
    const { signal } = new AbortController();
    const seen: unknown[] = [];
    const model = { ...fakeModel(), encodeMessages: async (_: string, options?: object) => { seen.push(options); return { promptIds: [1], pictures: [] }; } };
    await generate(model, [{ messages: 'a' }], { signal, maxNewTokens: 1 });
    await generate(model, [{ messages: 'a' }], { maxNewTokens: 1 });
    expect(seen).toEqual([{ signal }, {}]);
  });
  test('an aborted signal rejects with its reason before any work', async () => {
    const model = fakeModel();
    const reason = new Error('enough');
    await expect(generate(model, [{ promptIds: [1] }], { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(model.passes.length + model.openSessions).toBe(0);
  });
});

describe('misuse', () => {
  test.each<[unknown[], object, string, string]>([
    [[{ promptIds: [] }], {}, 'ERR_ARGUMENT', '[generate] Expected the prompt of request 0 to have at least one token but received none'],
    [[{ promptIds: [1] }, { promptIds: [99] }], {}, 'ERR_RANGE', '[generate] Expected prompt token of request 1, 0 to be an integer from 0 to 31 but received 99'],
    [[{ promptIds: [1.5] }], {}, 'ERR_RANGE', '[generate] Expected prompt token of request 0, 0 to be an integer from 0 to 31 but received 1.5'],
    [[{}], {}, 'ERR_ARGUMENT', '[generate] Expected exactly one of messages and promptIds in request 0 but received neither'],
    [[{ promptIds: [1], messages: '1' }], {}, 'ERR_ARGUMENT', '[generate] Expected exactly one of messages and promptIds in request 0 but received both'],
    [[{ promptIds: [IMAGE] }], {}, 'ERR_SHAPE', '[generate] Expected the prompt of request 0 to have 0 picture tokens, one per merged patch of its 0 picture(s), but received 1'],
    [[{ promptIds: [1], latentStep: 1 }], {}, 'ERR_ARGUMENT', "[generate] Expected options among promptIds, pictures, messages, latentSteps, maxNewTokens, seed but received 'latentStep'; did you mean 'latentSteps'?"],
    [[{ promptIds: [1] }], { maxNewTokens: 0 }, 'ERR_RANGE', '[generate] Expected maxNewTokens to be an integer of at least 1 but received 0'],
    [[{ promptIds: [1], maxNewTokens: -1 }], {}, 'ERR_RANGE', '[generate] Expected maxNewTokens of request 0 to be an integer of at least 1 but received -1'],
    [[{ promptIds: [1] }], { latentSteps: -1 }, 'ERR_RANGE', '[generate] Expected latentSteps to be an integer from 0 to 65536 but received -1'],
    [[{ promptIds: [1] }], { stop: 'x' }, 'ERR_ARGUMENT', '[generate] Expected stop to be an array of strings but received "x"'],
    [[{ promptIds: [1] }], { stop: [''] }, 'ERR_ARGUMENT', '[generate] Expected stop strings not to be empty but received ""'],
    [[{ promptIds: [1] }], { stopIds: [32] }, 'ERR_RANGE', '[generate] Expected stop id to be an integer from 0 to 31 but received 32'],
    [[undefined], {}, 'ERR_ARGUMENT', '[generate] Expected request 0 to be an object but received undefined'],
    [[{ promptIds: [1], pictures: 5 }], {}, 'ERR_ARGUMENT', '[generate] Expected pictures of request 0 to be an array but received 5'],
    [[{ promptIds: [1], pictures: [null] }], {}, 'ERR_ARGUMENT', '[generate] Expected picture 0 of request 0 to be an object but received null'],
    [[{ promptIds: [1], latentSteps: 65537 }], {}, 'ERR_RANGE', '[generate] Expected latentSteps of request 0 to be an integer from 0 to 65536 but received 65537'],
    [[{ promptIds: [1] }], { stopIds: 5 }, 'ERR_ARGUMENT', '[generate] Expected stopIds to be an array but received 5'],
    [[{ promptIds: [1] }], { signal: 3 }, 'ERR_ARGUMENT', '[generate] Expected signal to be an AbortSignal but received 3'],
  ])('%j %j', async (requests, options, code, message) => {
    expect(await caught(() => generate(fakeModel(), requests as never, options))).toMatchObject({ code, message });
  });
  test.each([null, 5])('%j is no model', async (model) => {
    expect(await caught(() => generate(model as never, []))).toMatchObject({ code: 'ERR_ARGUMENT', message: `[generate] Expected model to be an object but received ${model}` });
  });
  test('an unknown option names the near match', async () => {
    const error = await caught(() => generate(fakeModel(), [], { maxNewToken: 3 } as never));
    expect(error.code).toBe('ERR_ARGUMENT');
    expect(error.message).toContain("received 'maxNewToken'; did you mean 'maxNewTokens'?");
  });
  test('what needs a tokenizer says so', async () => {
    const { decodeText: _, encodeMessages: __, ...rest } = fakeModel();
    expect(await caught(() => generate(rest, [{ promptIds: [1] }], { stop: ['x'] }))).toMatchObject({
      code: 'ERR_UNSUPPORTED', message: '[generate] Expected a model with a tokenizer for stop strings but received one without; use stopIds',
    });
    expect(await caught(() => generate(rest, [{ messages: '1' }]))).toMatchObject({
      code: 'ERR_UNSUPPORTED', message: '[generate] Expected a model with a processor for the messages of request 0 but received one without; give promptIds',
    });
  });
  test('results without a tokenizer have ids only', async () => {
    const model = fakeModel({ logitsOf: hashedLogits });
    const [result] = await generate({ ...model, decodeText: undefined } as never, [{ promptIds: [1] }], { maxNewTokens: 3 });
    expect(result).not.toHaveProperty('text');
    expect(result!.ids).toHaveLength(3);
  });
});
