/**
 * Argument checks of the public functions. Each takes the name of the operation and of the argument, returns the checked value,
 * and throws `[op] Expected X but received Y` with a stable code.
 */
import { fail, type ErrorCode } from './errors';

/** How a received value is shown in a message: short, and telling its type. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (typeof value !== 'object' || value === null) return String(value);
  const name = Object.prototype.toString.call(value).slice(8, -1);
  if (ArrayBuffer.isView(value) || Array.isArray(value)) return `${name}(${(value as unknown as { length: number }).length})`;
  return name === 'Object' ? 'an object' : name;
}

/** A value of a parsed file for a message: the start of its JSON, or its kind where it is too deep to be written again. */
export function brief(value: unknown, length: number): string {
  try {
    return String(JSON.stringify(value)).slice(0, length);
  } catch {
    return show(value);
  }
}

function expect(condition: boolean, code: ErrorCode, op: string, what: string, value: unknown): void {
  if (!condition) fail(code, op, `Expected ${what} but received ${show(value)}`);
}

/** An integer in [min, max]. */
export function integer(op: string, name: string, value: unknown, min: number, max: number = Number.MAX_SAFE_INTEGER): number {
  // The text of the message is made for a refusal only: ids are checked one by one.
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return value as number;
  const range = max === Number.MAX_SAFE_INTEGER ? `an integer of at least ${min}` : `an integer from ${min} to ${max}`;
  return fail(typeof value === 'number' ? 'ERR_RANGE' : 'ERR_ARGUMENT', op, `Expected ${name} to be ${range} but received ${show(value)}`);
}

/** A finite number in [min, max]. */
export function number(op: string, name: string, value: unknown, min: number = -Infinity, max: number = Infinity): number {
  const range = min === -Infinity && max === Infinity ? 'a finite number'
    : max === Infinity ? `a number of at least ${min}`
    : min === -Infinity ? `a number of at most ${max}` : `a number from ${min} to ${max}`;
  expect(typeof value === 'number', 'ERR_ARGUMENT', op, `${name} to be ${range}`, value);
  const checked = value as number;
  expect(Number.isFinite(checked) && checked >= min && checked <= max, 'ERR_RANGE', op, `${name} to be ${range}`, value);
  return checked;
}

export function boolean(op: string, name: string, value: unknown): boolean {
  expect(typeof value === 'boolean', 'ERR_ARGUMENT', op, `${name} to be a boolean`, value);
  return value as boolean;
}

export function string(op: string, name: string, value: unknown): string {
  expect(typeof value === 'string', 'ERR_ARGUMENT', op, `${name} to be a string`, value);
  return value as string;
}

export function array(op: string, name: string, value: unknown): readonly unknown[] {
  expect(Array.isArray(value), 'ERR_ARGUMENT', op, `${name} to be an array`, value);
  return value as readonly unknown[];
}

/** Anything with properties: not null, no plain value, no function. */
export function object(op: string, name: string, value: unknown): object {
  expect(typeof value === 'object' && value !== null, 'ERR_ARGUMENT', op, `${name} to be an object`, value);
  return value as object;
}

export function callback(op: string, name: string, value: unknown): void {
  expect(typeof value === 'function', 'ERR_ARGUMENT', op, `${name} to be a function`, value);
}

/** A path or a name: no empty string. */
export function path(op: string, name: string, value: unknown): string {
  expect(string(op, name, value) !== '', 'ERR_ARGUMENT', op, `${name} to be a path`, value);
  return value as string;
}

/** One of a list of words; the message names the nearest one. */
export function oneOf<T extends string>(op: string, name: string, value: unknown, choices: readonly T[]): T {
  if (typeof value === 'string' && (choices as readonly string[]).includes(value)) return value as T;
  const hint = typeof value === 'string' ? nearest(value, choices) : undefined;
  const list = choices.map((choice) => `'${choice}'`).join(', ');
  return fail('ERR_ARGUMENT', op, `Expected ${name} to be one of ${list} but received ${show(value)}${hint === undefined ? '' : `; did you mean '${hint}'?`}`);
}

interface TypedArrays {
  Float32Array: Float32Array; Float64Array: Float64Array; Int32Array: Int32Array; Uint8Array: Uint8Array; Uint16Array: Uint16Array;
}

/** A typed array of exactly this kind (also from another realm), and of exactly `length` elements when given. */
export function typedArray<K extends keyof TypedArrays>(op: string, name: string, value: unknown, kind: K, length?: number, meaning?: string): TypedArrays[K] {
  const tag = ArrayBuffer.isView(value) ? (value as unknown as Record<symbol, unknown>)[Symbol.toStringTag] : undefined;
  expect(tag === kind, 'ERR_DTYPE', op, `${name} to be a ${kind}`, value);
  const array = value as TypedArrays[K];
  if (length !== undefined && array.length !== length) {
    const size = meaning === undefined ? String(length) : `${meaning} = ${length}`;
    fail('ERR_SHAPE', op, `Expected ${name} to have ${size} elements but received ${array.length}`);
  }
  return array;
}

/** int32 offsets of `rows` packed rows: starts at 0, never falls, ends at `rows`. Returns the number of segments. */
export function offsets(op: string, name: string, value: Int32Array, rows: number): number {
  if (value.length === 0) fail('ERR_SHAPE', op, `Expected ${name} to have at least 1 element but received 0`);
  if (value[0] !== 0) fail('ERR_RANGE', op, `Expected ${name} to start at 0 but received ${value[0]}`);
  for (let i = 1; i < value.length; i += 1) {
    if (value[i]! < value[i - 1]!) fail('ERR_RANGE', op, `Expected ${name} never to fall but received ${value[i - 1]} then ${value[i]} at ${i}`);
  }
  if (value.at(-1) !== rows) fail('ERR_RANGE', op, `Expected ${name} to end at ${rows} but received ${value.at(-1)}`);
  return value.length - 1;
}

/** A plain object of options with no key outside `known`; undefined counts as an empty one. `name` is what messages call it. */
export function options(op: string, value: unknown, known: readonly string[], name = 'options'): Record<string, unknown> {
  if (value === undefined) return {};
  expect(typeof value === 'object' && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value), 'ERR_ARGUMENT', op, `${name} to be an object`, value);
  for (const key of Object.keys(value as object)) {
    if (known.includes(key)) continue;
    const hint = nearest(key, known);
    fail('ERR_ARGUMENT', op, `Expected ${name} among ${known.join(', ')} but received '${key}'${hint === undefined ? '' : `; did you mean '${hint}'?`}`);
  }
  return value as Record<string, unknown>;
}

/** An `AbortSignal` or undefined. */
export function signal(op: string, value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  const shaped = typeof value === 'object' && value !== null && typeof (value as AbortSignal).aborted === 'boolean'
    && typeof (value as AbortSignal).addEventListener === 'function';
  expect(shaped, 'ERR_ARGUMENT', op, 'signal to be an AbortSignal', value);
  return value as AbortSignal;
}

/** The choice with the smallest edit distance, when it is at most a third of the word (and 1 at least). */
export function nearest(word: string, choices: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const choice of choices) {
    const distance = editDistance(word.toLowerCase(), choice.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [choice, distance];
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      row.push(Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    previous = row;
  }
  return previous[b.length]!;
}
