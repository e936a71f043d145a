/** Imports go down only: a file may import its own floor and those below it. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

const LIB = join(__dirname, '..', '..', 'lib');
/** From the ground up; what is not listed (errors, check, native, abort, random) is the ground. */
const FLOORS: readonly (readonly string[])[] = [
  ['ops'], ['model'], ['data'], ['train', 'decode'], ['evaluate', 'report'], ['latentModel.ts'], ['cli', 'index.ts', 'kernels.ts'],
];

function floorOf(path: string): number {
  const place = path.split('/')[0] as string;
  return FLOORS.findIndex((floor) => floor.includes(place) || floor.includes(`${place}.ts`));
}

const files = readdirSync(LIB, { recursive: true, encoding: 'utf8' }).map((path) => path.replaceAll('\\', '/')).filter((path) => path.endsWith('.ts'));
const imports = files.flatMap((file) =>
  [...readFileSync(join(LIB, file), 'utf8').matchAll(/from '(\.[^']*)'/g)].map((match): [string, string] =>
    [file, relative(LIB, join(LIB, dirname(file), match[1] as string)).replaceAll('\\', '/')]));

test('imports go down only', () => {
  expect(imports.length).toBeGreaterThan(200);
  for (const floor of FLOORS.flat()) expect(files.some((file) => file.startsWith(floor))).toBe(true);
  expect(imports.filter(([from, to]) => floorOf(to) > floorOf(from)).map(([from, to]) => `${from} -> ${to}`)).toEqual([]);
});
