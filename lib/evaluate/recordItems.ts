/** Records as questions with known answers. */
import type { DataRecord } from '../data/record';
import { recordAnswer, recordPrompts, type RecordModel, type RecordOptions } from '../train/recordData';
import type { LazyItem } from './accuracy';

/** Kinds that records are counted by. */
const [CHOICES, OPEN] = ['multiple choice', 'open'];

/**
 * Questions for `evaluate`, made when their turn comes. A record with choices is answered right when `answeredLetter` of the generated text
 * is the letter of its answer; one without when `answeredText` is its answer (case, spaces, bold marks and a full stop at the end do not
 * count).
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

/** The letter after the last `answer is` or `Answer:` that one follows, in brackets or bold or plain; undefined where there is none. */
export function answeredLetter(text: string): string | undefined {
  return [...text.matchAll(/[Aa]nswer(?: is\b:?|:)[\s*({[]*([A-Z])(?![A-Za-z])/g)].at(-1)?.[1];
}

/** What follows the last `answer is` or `Answer:` to the end of its line; undefined where there is neither. */
export function answeredText(text: string): string | undefined {
  const said = [...text.matchAll(/answer(?: is\b:?|:)/gi)].at(-1);
  return said === undefined ? undefined : plain(text.slice(said.index + said[0].length).split('\n', 1)[0]!);
}

function plain(text: string): string {
  return text.trim().replace(/^\*\*|\.?\*\*\.?$|\.$/g, '').trim().replace(/\s+/g, ' ').toLowerCase();
}
