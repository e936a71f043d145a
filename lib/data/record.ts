/** One question about pictures, with its reasoning in words. */
export interface DataRecord {
  id: string;
  /** Paths of the pictures, in the order in which the question means them. */
  images: readonly string[];
  question: string;
  /** Answers to choose from, for multiple choice. */
  choices?: readonly string[];
  /** Reasoning in words, one step each; may be empty. */
  steps: readonly string[];
  answer: string;
  /** The answer in full, where `answer` is a letter. */
  answerText?: string;
  /** Anything else about the record; kept, never interpreted. */
  meta: Readonly<Record<string, unknown>>;
}
