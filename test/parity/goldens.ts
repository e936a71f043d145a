/** Reading of golden directories made by test/oracle/make_goldens.py, and comparison by the oracle's own tolerances. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface TensorEntry {
  shape: number[];
  dtype: string;
  /** Largest magnitude of the expected values, and the largest error of the same code in float32. */
  max?: number;
  err32?: number;
  /** Integers: allowed difference (default 0). */
  tolerance?: number;
}

export interface FileEntry {
  about: string;
  file: string;
  tensors: Record<string, TensorEntry>;
  preset?: Record<string, unknown>;
  form?: string;
  [note: string]: unknown;
}

export interface Manifest {
  seed: number;
  variants: Record<string, { checkpoint?: string; files: Record<string, FileEntry> }>;
}

export type Values = Float32Array | Int32Array | Uint8Array;

/** All tensors of a safetensors file; bf16 is widened to f32. */
export function readTensors(path: string): Map<string, Values> {
  const bytes = readFileSync(path);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<string, { dtype: string; data_offsets: [number, number] }>;
  const tensors = new Map<string, Values>();
  delete header['__metadata__'];
  for (const [name, { dtype, data_offsets: [start, stop] }] of Object.entries(header)) {
    const own = new Uint8Array(bytes.subarray(8 + headerLength + start, 8 + headerLength + stop));
    if (dtype === 'F32') tensors.set(name, new Float32Array(own.buffer));
    else if (dtype === 'I32') tensors.set(name, new Int32Array(own.buffer));
    else if (dtype === 'U8') tensors.set(name, own);
    else if (dtype === 'BF16') tensors.set(name, new Float32Array(Uint32Array.from(new Uint16Array(own.buffer), (bits) => bits << 16).buffer));
    else throw new Error(`${path}: tensor ${name} has dtype ${dtype}`);
  }
  return tensors;
}

export class Golden {
  private readonly tensors: Map<string, Values>;

  constructor(readonly entry: FileEntry, path: string) {
    this.tensors = readTensors(path);
  }

  has(name: string): boolean { return this.tensors.has(name); }
  names(prefix: string): string[] { return [...this.tensors.keys()].filter((name) => name.startsWith(prefix)); }

  private get(name: string): Values {
    const values = this.tensors.get(name);
    if (values === undefined) throw new Error(`golden tensor ${name} is missing`);
    return values;
  }
  f32(name: string): Float32Array { return this.get(name) as Float32Array; }
  i32(name: string): Int32Array { return this.get(name) as Int32Array; }
  u8(name: string): Uint8Array { return this.get(name) as Uint8Array; }
  one(name: string): number { return this.get(name)[0] as number; }
  shape(name: string): number[] {
    const entry = this.entry.tensors[name];
    if (entry === undefined) throw new Error(`golden tensor ${name} is not in the manifest`);
    return entry.shape;
  }
}

export interface Comparison {
  name: string;
  /** Worst error as a share of the tolerance; above 1 fails. Infinity: wrong count, NaN or a wrong integer. */
  share: number;
}

/** Collects the comparisons of one file. */
export class Report {
  readonly compared: Comparison[] = [];

  constructor(readonly golden: Golden) {}

  /** Compares with `out.<name>`: floats within 8 err32 + 2e-6 max + 1e-8, integers exactly. */
  compare(name: string, got: ArrayLike<number>): void {
    const key = `out.${name}`;
    const entry = this.golden.entry.tensors[key];
    if (entry === undefined) throw new Error(`golden tensor ${key} is not in the manifest`);
    const want: ArrayLike<number> = entry.dtype === 'float32' ? this.golden.f32(key) : entry.dtype === 'uint8' ? this.golden.u8(key) : this.golden.i32(key);
    this.compared.push({ name, share: worstShare(got, want, entry) });
  }

  /** Takes what was compared elsewhere: worst error as a share of its tolerance. */
  add(name: string, share: number): void { this.compared.push({ name, share: Number.isNaN(share) ? Infinity : share }); }

  /** Names expected tensors that nothing compared. A golden that is silently ignored would count as covered. */
  leftOver(): string[] {
    const seen = new Set(this.compared.map(({ name }) => name));
    return this.golden.names('out.').map((key) => key.slice(4)).filter((name) => !seen.has(name));
  }
}

export function worstShare(got: ArrayLike<number>, want: ArrayLike<number>, entry: TensorEntry): number {
  if (got.length !== want.length) return Infinity;
  const isFloat = entry.dtype === 'float32';
  const tolerance = isFloat ? 8 * (entry.err32 ?? 0) + 2e-6 * (entry.max ?? 0) + 1e-8 : entry.tolerance ?? 0;
  let worst = 0;
  for (let i = 0; i < got.length; i++) {
    const a = got[i] as number;
    const b = want[i] as number;
    if (Number.isNaN(a) && Number.isNaN(b)) continue;
    const gap = Math.abs(a - b);
    if (Number.isNaN(gap)) return Infinity;
    if (gap > worst) worst = gap;
  }
  if (worst === 0) return 0;
  return tolerance === 0 ? Infinity : worst / tolerance;
}

export function readManifest(directory: string): Manifest {
  const text = readFileSync(join(directory, 'manifest.json'), 'utf8');
  // Python writes an unbounded margin as Infinity, which JSON does not know
  return JSON.parse(text.replace(/([:[,]\s*)(?:-?Infinity|NaN)\b/g, '$1null')) as Manifest;
}
