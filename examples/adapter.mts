import { LatentModel, readRecords, recordData, train, type DataRecord } from 'plumbline';

const tuned = await LatentModel.load('Qwen2-VL-2B-Instruct', { adapter: { rank: 16, dropout: 0.05 } });   // or adapter: 'folder of one'
const records: DataRecord[] = [];
for await (const record of readRecords('train.jsonl')) records.push(record);
const stages = [{ name: 'words', shape: {}, epochs: 1, learningRate: 1e-4 }];
for await (const event of train(tuned, { data: recordData(tuned, records), stages, batchSize: 4 })) {
  if (event.type === 'step') console.log(event.metrics.loss);                   // the adapter alone is trained
}
await tuned.saveAdapter('my-adapter');
await tuned.mergeAdapter();                                                     // as fast as without; unmergeAdapter() brings back the same bits
await tuned.save('my-model');                                                   // a whole checkpoint, the adapter folded in
tuned.dispose();
