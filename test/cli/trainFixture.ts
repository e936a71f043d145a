/** A folder with a tiny checkpoint, a few records with pictures, and a file of settings. */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { writePicturePng } from '../../lib/data';
import { noise } from '../train/tinyModel';

const FIXTURES = join(__dirname, '../fixtures');

/** Hidden 40, two layers, tokens for latents in its tokenizer. */
export function writeCheckpoint(to: string): void {
  cpSync(join(FIXTURES, 'tiny-qwen2/checkpoint'), to, { recursive: true });
  cpSync(join(FIXTURES, 'tokenizer'), to, { recursive: true });
}

export async function writeRecordFiles(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  for (const n of [0, 1]) await writePicturePng({ pixels: noise(n + 1, 3 * 60 * 84), height: 60, width: 84 }, join(folder, `${n}.png`));
  const records = [
    { id: 'a', images: ['0.png'], question: 'what is the largest?', choices: ['a cat', 'a row'], steps: ['the cats', 'the row'], answer: 'B' },
    { id: 'b', images: ['0.png', '1.png'], question: 'what is it?', rationale: 'it is a cat\nwe count', answer: 'a cat' },
    { id: 'c', question: 'the sum?', steps: ['one', 'two', 'three'], answer: '6' },
    { id: 'd', images: ['1.png'], question: 'which?', choices: ['the column', 'the digit', 'the answer'], steps: [], answer: 'the digit' },
  ];
  for (const name of ['train', 'test']) writeFileSync(join(folder, `${name}.jsonl`), records.map((record) => `${JSON.stringify(record)}\n`).join(''));
}

/** Settings of a training of seven steps. */
export const SETTINGS = Object.freeze({
  model: 'model', data: 'data/train.jsonl', out: 'run', seed: 3, batchSize: 2, maxSteps: 2, preset: { name: 'default', patches: 2, window: 2 },
  curriculum: { latentStages: 1, latentsPerStep: 2, wordSteps: 3, steps: 2, lastSteps: 2, learningRate: 1e-3 },
});

export function writeSettings(folder: string, changes: object = {}, name = 'train.yaml'): string {
  const file = join(folder, name);
  writeFileSync(file, stringify({ ...SETTINGS, ...changes }));
  return file;
}
