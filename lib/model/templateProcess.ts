/**
 * Chat templates are programs of whoever wrote the checkpoint: they can loop for ever, or ask for all memory. They are rendered in a process
 * of its own that can be killed. Not in a worker thread: where one runs out of memory inside a built-in function of V8, the whole
 * process ends (seen with Node 20, `resourceLimits` set, in `replace` of a string of 16 MB).
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { LibError } from '../errors';

/** The chat templates of Qwen2-VL take under a millisecond. */
const RENDER_MS = 5000;
/** Beside what Node itself needs; messages and text are a small part of it. */
const HEAP_MB = 128;
/** Characters that a template may produce, some four million tokens. */
export const MAX_RENDERED = 1 << 24;

/**
 * The program of the process: answers each `{ source, context, limit }` with `{ text }`, `{ refused }` by the template, or `{ broken }`.
 * It watches the time itself too, so that it also ends when nobody is left to kill it.
 */
const PROGRAM = `
const { Script, createContext } = require('node:vm');
const { Template } = require(process.argv[1]);
const templates = new Map();
const box = createContext({});
const script = new Script('work()');
process.on('SIGINT', () => {});  // of the terminal, meant for the program that waits for the answer
process.on('message', ({ source, context, limit, longest }) => {
  box.work = () => {
    if (!templates.has(source)) templates.set(source, new Template(source));
    return templates.get(source).render(context);
  };
  let answer;
  try {
    const text = script.runInContext(box, { timeout: limit });
    answer = text.length > longest ? { broken: 'produced ' + text.length + ' characters, of at most ' + longest } : { text };
  } catch (error) {
    const said = String(error && error.message).slice(0, 200);
    // A RangeError is V8's: a string, an array or a stack beyond its limits.
    answer = error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT' ? { broken: 'took longer than ' + limit + ' ms' } : error && error.name === 'RangeError' ? { broken: 'failed with: ' + said } : { refused: said };
  }
  process.send(answer);
});
`;

interface Answer { text?: string; refused?: string; broken?: string }

let child: ChildProcess | undefined;
/** One text at a time: the renderings that wait do not use up their own time. */
let queue: Promise<unknown> = Promise.resolve();

/**
 * Renders a chat template. The first call starts the process, which ends with this one and keeps it alive only while it renders.
 *
 * @throws {LibError} `ERR_ARGUMENT` when the template refuses the messages; `ERR_CHECKPOINT` when it takes too long or too much memory;
 *   `signal.reason` when aborted, which ends the process.
 */
export function renderTemplate(source: string, context: Readonly<Record<string, unknown>>, limitMs: number = RENDER_MS, signal?: AbortSignal): Promise<string> {
  const rendered = queue.then(async () => {
    signal?.throwIfAborted();
    const answer = await ask({ source, context, limit: limitMs, longest: MAX_RENDERED }, limitMs, signal);
    if (answer.text !== undefined) return answer.text;
    if (answer.refused !== undefined) throw new LibError('ERR_ARGUMENT', `[chatTemplate] Expected messages that the checkpoint's chat template accepts but received: ${answer.refused}`);
    throw new LibError('ERR_CHECKPOINT', `[chatTemplate] Expected a chat template that renders messages in bounded time and memory but received one that ${answer.broken}. Take the chat template of the model's own repository.`);
  });
  queue = rendered.catch(() => undefined);
  return signal === undefined ? rendered : unlessAborted(rendered, signal);
}

/** Does not wait for the renderings before it either. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(signal.reason as Error);
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    void work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

function start(): ChildProcess {
  const started = spawn(process.execPath, [`--max-old-space-size=${HEAP_MB}`, '-e', PROGRAM, require.resolve('@huggingface/jinja')], {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'], env: { ...process.env, NODE_OPTIONS: '' },
  });
  started.on('exit', () => {
    if (child === started) child = undefined;
  });
  started.unref();
  started.channel?.unref();
  return started;
}

function ask(request: object, limitMs: number, signal: AbortSignal | undefined): Promise<Answer> {
  const asked = child ??= start();
  return new Promise((resolve) => {
    const settle = (answer: Answer): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', stop);
      asked.off('message', settle).off('exit', gone).off('error', failed);
      asked.unref();
      asked.channel?.unref();
      resolve(answer);
    };
    const gone = (): void => settle({ broken: `ended the process that renders it, which has ${HEAP_MB} MB of memory` });
    const failed = (error: Error): void => {
      child = undefined;
      settle({ broken: `could not be given to a process of its own: ${error.message}` });
    };
    const kill = (why: string): void => {
      asked.kill('SIGKILL');
      settle({ broken: why });
      if (child === asked) child = undefined;
    };
    const stop = (): void => kill('was stopped');
    signal?.addEventListener('abort', stop, { once: true });
    // Twice, and time to start: the process watches the limit itself.
    const timer = setTimeout(() => kill(`took longer than ${limitMs} ms`), 2 * limitMs + 10_000);
    asked.ref();
    asked.channel?.ref();
    asked.on('message', settle).on('exit', gone).on('error', failed);
    asked.send(request, (error) => {
      if (error !== null) failed(error);
    });
  });
}
