/** An adapter's weights between the addon and PEFT's files. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { abortable } from '../abort';
import { fail } from '../errors';
import type { NativeModel } from '../native';
import { adapterShapes, type Adapter } from './adapter';
import { ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapterJson, adapterTensorName } from './adapterFiles';
import { exists, writeJson, writing } from './files';
import { recordJson, type LatentRecord } from './record';
import { writeSafetensors } from './safetensors';
import { writeExtras, type WeightOptions } from './weights';

/**
 * Writes an adapter as PEFT does, and beside it the parameters that plumbline adds to the backbone. The base is named, not copied. Each
 * file appears complete or not at all.
 */
export function saveAdapter(directory: string, model: NativeModel, adapter: Adapter, record: LatentRecord, { signal, onProgress }: Pick<WeightOptions, 'signal' | 'onProgress'> = {}): Promise<void> {
  return writing('saveAdapter', directory, async () => {
    if (await exists(join(directory, 'config.json'))) fail('ERR_ARGUMENT', 'saveAdapter', `Expected a folder without config.json, because an adapter beside weights is put on top of them, but received ${directory}. Choose another folder.`);
    await mkdir(directory, { recursive: true });
    await writeJson(join(directory, 'plumbline.json'), recordJson(record));
    await writeExtras(directory, model, signal);
    await writeJson(join(directory, ADAPTER_CONFIG), adapterJson(adapter));
    const targets = adapter.layers.flatMap(({ target }) => [target, target]);
    const tensors = adapterShapes(adapter).map(({ name, shape, part }, n) => ({
      name: adapterTensorName(targets[n]!, part, adapter.isNested), shape, dtype: 'F32' as const, read: () => abortable(undefined, () => model.readParameter(name, 'value')),
    }));
    await writeSafetensors(join(directory, ADAPTER_WEIGHTS), tensors, { metadata: { format: 'pt' }, ...(signal === undefined ? {} : { signal }), ...(onProgress === undefined ? {} : { onProgress }) });
  });
}
