/** `plumbline inspect`: what a directory holds, what of it is supported, and what using it takes. */
import { inspectDirectory, type Inspection } from './inspection';
import { table } from './table';

const gigabytes = (bytes: number): string => (bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);
const millions = (count: number): string => (count < 1e5 ? String(count) : `${(count / 1e6).toFixed(1)} M`);

/** One line under a heading, or nothing. */
function line(heading: string, text: string | undefined): string[] {
  return text === undefined ? [] : [`${heading.padEnd(14)}${text}`];
}

function memoryTable({ memory = [], devices, contextTokens, adapter }: Inspection): string[] {
  if (memory.length === 0) return [];
  const fits = (bytes: number): string => `${gigabytes(bytes)} (${devices.map(({ name, freeBytes }) => `${name} ${bytes <= freeBytes ? 'fits' : 'too large'}`).join(', ')})`;
  return ['', table([
    ['memory', 'load', `generate, ${contextTokens} tokens`, `train ${adapter === undefined ? 'the decoder' : 'the adapter'}, ${contextTokens} tokens`, ...(adapter === undefined ? ['train LoRA of rank 16'] : [])],
    ...memory.map(({ dtype, loadBytes, generationBytes, trainingBytes, loraBytes }) => [dtype, fits(loadBytes), fits(generationBytes), fits(trainingBytes), ...(loraBytes === undefined ? [] : [fits(loraBytes)])]),
  ]), `free: ${devices.map(({ name, freeBytes }) => `${name} ${gigabytes(freeBytes)}`).join(', ')}`];
}

export function inspectionText(found: Inspection): string {
  const { architecture: a, files, parameters, reasoning: r, adapter, tokenizer } = found;
  return [
    ...line('directory', found.directory),
    ...line('loads', found.loadable ? `yes${found.dtype === undefined ? '' : `, as ${found.dtype} unless asked otherwise`}` : 'no'),
    ...line('model', a && `${a.kind}: ${a.layers} layers, ${a.hidden} wide, ${a.heads} heads on ${a.kvHeads} of ${a.headDim}, MLP ${a.intermediate}, vocabulary ${a.vocab}, head ${a.tied ? 'tied' : 'of its own'}`),
    ...line('vision tower', a && `${a.vision.depth} blocks, ${a.vision.width} wide, ${a.vision.heads} heads, patches of ${a.vision.patch}, ${a.vision.merge}x${a.vision.merge} merged`),
    ...line('adapter', adapter && `LoRA of rank ${adapter.rank ?? 'unknown'} on ${JSON.stringify(adapter.targets)}, base ${adapter.base}${adapter.parameters === undefined ? '' : `, ${millions(adapter.parameters)} parameters`}`),
    ...line('parameters', parameters && Object.entries(parameters).map(([part, count]) => `${part} ${millions(count)}`).join(', ')),
    ...(files ?? []).flatMap(({ name, bytes, tensors }) => line('file', `${name}: ${gigabytes(bytes)}, tensors ${Object.entries(tensors).map(([dtype, count]) => `${count} ${dtype}`).join(', ')}`)),
    ...line('text', tokenizer && `tokenizer.json ${tokenizer.tokens}, chat template ${tokenizer.template}`),
    ...line('reasoning', r && `preset ${r.preset}, ${r.latentSteps} latent steps, replay ${r.replay ? 'yes' : 'no'}, routed layers ${r.routedLayers.length === 0 ? 'none' : r.routedLayers.join(' ')}`),
    ...found.notes.flatMap((note) => line('note', note)),
    ...found.problems.flatMap((problem) => line('PROBLEM', problem)),
    ...memoryTable(found),
  ].join('\n');
}

/** Exit code 1 when it cannot be loaded. */
export async function inspect(directory: string, { json, context }: { json: boolean; context: number }): Promise<void> {
  const found = await inspectDirectory(directory, context);
  process.stdout.write(json ? `${JSON.stringify(found, null, 2)}\n` : `${inspectionText(found)}\n`);
  if (!found.loadable) process.exitCode = 1;
}
