/** Records as questions with known answers. */
import type { DataRecord } from '../data/record';
import { recordAnswer, recordPrompts, type RecordModel, type RecordOptions } from '../train/recordData';
import type { LazyItem } from './accuracy';

/** Kinds that records are counted by. */
const [CHOICES, OPEN] = ['multiple choice', 'open'];

/**
 * Questions for `evaluate`, made when their turn comes. An answer is right when the last `answer is` of the generated text is followed by
 * the letter of the choice, or by the answer's own text (case, spaces and a full stop at the end do not count).
 *
 * @param options `maxSteps` and `cacheBytes` mean nothing here.
 * @throws as `recordData`.
 */
export function recordItems(model: RecordModel, records: readonly DataRecord[], options: RecordOptions = {}): LazyItem[] {
  const prompt = recordPrompts(model, records, options);
  return records.map((record) => async () => {
    const answer = recordAnswer(record);
    const { promptIds, pictures } = await prompt(record);
    const isChoice = record.choices !== undefined;
    return { promptIds, pictures, kind: isChoice ? CHOICES : OPEN, isRight: ({ text = '' }) => (isChoice ? answeredLetter(text) === answer : answeredText(text) === plain(answer)) };
  });
}

/** The letter after the last `answer is` or `Answer:`; undefined where there is none. */
export function answeredLetter(text: string): string | undefined {
  return [...text.matchAll(/[Aa]nswer(?: is|:)\s*[({[]?([A-Z])(?![A-Za-z])/g)].at(-1)?.[1];
}

/** What follows the last `answer is` to the end of its line; undefined where there is none. */
export function answeredText(text: string): string | undefined {
  const said = [...text.matchAll(/answer is[: ]([^\n]*)/gi)].at(-1)?.[1];
  return said === undefined ? undefined : plain(said);
}

function plain(text: string): string {
  return text.trim().replace(/\.$/, '').trim().replace(/\s+/g, ' ').toLowerCase();
}
