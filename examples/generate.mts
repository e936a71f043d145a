import { LatentModel, type Message } from 'plumbline';

const model = await LatentModel.load('runs/demo-small-0/latent-both/checkpoint-1800', { onProgress: ({ doneBytes, totalBytes }) => console.error(doneBytes / totalBytes) });
const messages: Message[] = [{ role: 'user', content: [{ type: 'image', image: 'grid.png' }, { type: 'text', text: 'sum of row 2' }] }];

const answer = await model.generate({ messages });                              // latent steps as the checkpoint says
console.log(answer.text, answer.arSteps);

const words = await model.generate({ messages }, { latentSteps: 0 });           // the same model, words only
console.log(words.text, words.arSteps);

const both = await model.generateBatch([{ messages }, { messages, seed: 7 }], { temperature: 0.8 });   // one ragged batch
console.log(both.map(({ text }) => text));

const seen = await model.generate({ messages }, { evidence: true });            // what it looked at, what went deeper
console.log(seen.evidence?.steps[0]?.replayed);

const stop = AbortSignal.timeout(10_000);
for await (const event of model.stream({ messages }, { signal: stop })) {
  if (event.type === 'token') process.stdout.write(event.text);
}
model.dispose();
