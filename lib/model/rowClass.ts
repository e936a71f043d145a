/** What a row of a sequence is, for statistics by class. */
export const ROW_CLASSES = Object.freeze(['prompt-text', 'image', 'replay', 'latent', 'step-text', 'answer-text'] as const);

/** Tokens of videos are of class 'image' too. */
export type RowClass = (typeof ROW_CLASSES)[number];
