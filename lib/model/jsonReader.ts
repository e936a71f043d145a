/** Reads checked values out of a parsed JSON file; every complaint names the file and the key. */
import { fail } from '../errors';
import { brief, show } from '../check';

export type JsonObject = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Own value of a key; JSON's null counts as absent, as it does in Python's readers. */
export function own(object: JsonObject, key: string): unknown {
  if (!Object.hasOwn(object, key)) return undefined;
  const value = object[key];
  return value === null ? undefined : value;
}

export class JsonReader {
  /** @param file name for messages, `prefix` the path of this object inside the file ('vision_config.'). */
  constructor(private readonly op: string, private readonly file: string, readonly object: JsonObject, private readonly prefix = '') {}

  has(key: string): boolean {
    return own(this.object, key) !== undefined;
  }

  raw(key: string): unknown {
    return own(this.object, key);
  }

  /** Throws ERR_CHECKPOINT: which key, what is expected, what is there, what to do. */
  wrong(key: string, expected: string, remedy: string): never {
    const value = own(this.object, key);
    const received = value === undefined ? 'nothing' : Array.isArray(value) ? brief(value, 80) : show(value);
    return fail('ERR_CHECKPOINT', this.op, `Expected ${this.prefix}${key} in ${this.file} to be ${expected} but received ${received}. ${remedy}`);
  }

  unsupported(key: string, why: string): never {
    return fail('ERR_UNSUPPORTED', this.op, `Expected ${this.prefix}${key} in ${this.file} to be something supported but received ${brief(own(this.object, key), 80)}: ${why}`);
  }

  integer(key: string, fallback: number | undefined, min: number, max: number): number {
    const value = own(this.object, key) ?? fallback;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      this.wrong(key, `a whole number from ${min} to ${max}`, `Correct the file or take it from the model's own repository.`);
    }
    return value;
  }

  /** A finite number > 0, at most `max`. */
  positive(key: string, fallback: number | undefined, max = Number.MAX_VALUE): number {
    const value = own(this.object, key) ?? fallback;
    if (typeof value !== 'number' || !(value > 0 && value <= max)) {
      this.wrong(key, max === Number.MAX_VALUE ? 'a finite number above 0' : `a number above 0, at most ${max}`, `Correct the file or take it from the model's own repository.`);
    }
    return value;
  }

  /** A number in [min, max]. */
  between(key: string, fallback: number | undefined, min: number, max: number): number {
    const value = own(this.object, key) ?? fallback;
    if (typeof value !== 'number' || !(value >= min && value <= max)) {
      this.wrong(key, `a number from ${min} to ${max}`, `Correct the file or take it from the model's own repository.`);
    }
    return value;
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = own(this.object, key) ?? fallback;
    if (typeof value !== 'boolean') this.wrong(key, 'true or false', 'Correct the file.');
    return value;
  }

  text(key: string, fallback: string): string {
    const value = own(this.object, key) ?? fallback;
    if (typeof value !== 'string') this.wrong(key, 'a string', 'Correct the file.');
    return value;
  }

  numbers(key: string, fallback: readonly number[], length: number): readonly number[] {
    const value = own(this.object, key) ?? fallback;
    if (!Array.isArray(value) || value.length !== length || !value.every((v) => typeof v === 'number' && Number.isFinite(v))) {
      this.wrong(key, `${length} numbers`, 'Correct the file.');
    }
    return Object.freeze([...(value as number[])]);
  }

  /** A list of whole numbers in [0, max]. */
  indexes(key: string, fallback: readonly number[], max: number): readonly number[] {
    const value = own(this.object, key) ?? fallback;
    if (!Array.isArray(value) || !value.every((v) => Number.isInteger(v) && v >= 0 && v <= max)) {
      this.wrong(key, `a list of whole numbers from 0 to ${max}`, `Correct the file or take it from the model's own repository.`);
    }
    return Object.freeze([...(value as number[])]);
  }

  /** A JSON object below this one; an empty one when absent. */
  child(key: string): JsonReader {
    const value = own(this.object, key) ?? {};
    if (!isObject(value)) this.wrong(key, 'an object', 'Correct the file.');
    return new JsonReader(this.op, this.file, value as JsonObject, `${this.prefix}${key}.`);
  }
}
