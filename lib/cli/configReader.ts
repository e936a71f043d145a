/** Reads checked values out of a file of settings; every complaint names the file and the path of the key, as `stages[1].epochs`. */
import * as check from '../check';
import { fail } from '../errors';

const OP = 'train';

export class ConfigReader {
  readonly #values: Readonly<Record<string, unknown>>;

  /**
   * @param prefix path of this object in the file, '' for the whole.
   * @param keys all that it may hold.
   */
  constructor(readonly file: string, value: unknown, private readonly prefix: string, keys: readonly string[]) {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) fail('ERR_ARGUMENT', OP, `Expected ${this.place} to hold keys and values but received ${check.show(value)}; write lines of the form "key: value"`);
    this.#values = value as Readonly<Record<string, unknown>>;
    const unknown = Object.keys(value).find((key) => !keys.includes(key));
    if (unknown === undefined) return;
    const hint = check.nearest(unknown, keys);
    fail('ERR_ARGUMENT', OP, `Expected keys of ${this.place} among ${keys.join(', ')} but received ${check.show(unknown)}${hint === undefined ? '' : `; did you mean '${hint}'?`}`);
  }

  /** How this object is called in messages. */
  get place(): string {
    return this.prefix === '' ? this.file : `${this.prefix} in ${this.file}`;
  }

  /** How a key of this object is called in messages. */
  name(key: string): string {
    return `${this.#path(key)} in ${this.file}`;
  }

  /** The value as it is; an empty one (YAML's null) counts as absent. */
  raw(key: string): unknown {
    return Object.hasOwn(this.#values, key) ? this.#values[key] ?? undefined : undefined;
  }

  has(key: string): boolean {
    return this.raw(key) !== undefined;
  }

  /** `{ [key]: read() }` where the key is there. */
  given<K extends string, T>(key: K, read: () => T): { [P in K]?: T } {
    return this.has(key) ? { [key]: read() } as { [P in K]?: T } : {};
  }

  /** Without a `fallback` the key must be there. `max` is what a mistake would exceed, and nothing that is meant. */
  integer(key: string, fallback: number | undefined, min: number, max: number): number {
    return check.integer(OP, this.name(key), this.raw(key) ?? fallback, min, max);
  }

  number(key: string, fallback: number | undefined, min: number, max?: number): number {
    return check.number(OP, this.name(key), this.raw(key) ?? fallback, min, max);
  }

  boolean(key: string, fallback: boolean): boolean {
    return check.boolean(OP, this.name(key), this.raw(key) ?? fallback);
  }

  string(key: string, fallback?: string): string {
    return check.string(OP, this.name(key), this.raw(key) ?? fallback);
  }

  path(key: string): string {
    return check.path(OP, this.name(key), this.raw(key));
  }

  oneOf<T extends string>(key: string, fallback: T | undefined, choices: readonly T[]): T {
    return check.oneOf(OP, this.name(key), this.raw(key) ?? fallback, choices);
  }

  strings(key: string): string[] {
    return check.array(OP, this.name(key), this.raw(key)).map((item, n) => check.string(OP, this.name(`${key}[${n}]`), item));
  }

  object(key: string): object {
    return new ConfigReader(this.file, this.raw(key), this.#path(key), Object.keys(this.raw(key) ?? {})).#values;
  }

  /** An object below this one; an empty one when absent. */
  child(key: string, keys: readonly string[]): ConfigReader {
    return new ConfigReader(this.file, this.raw(key) ?? {}, this.#path(key), keys);
  }

  /** The objects of a list. */
  children(key: string, keys: readonly string[]): ConfigReader[] {
    return check.array(OP, this.name(key), this.raw(key)).map((item, n) => new ConfigReader(this.file, item, this.#path(`${key}[${n}]`), keys));
  }

  #path(key: string): string {
    return this.prefix === '' ? key : `${this.prefix}.${key}`;
  }
}
