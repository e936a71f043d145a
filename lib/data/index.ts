export * from './digitGrid';
export {
  DIGIT_GRID_TOKENS, DIGIT_GRID_VOCABULARY, digitGridAnswer, digitGridReply, encodeDigitGrid, writeDigitGridTokenizer, type EncodedDigitGrid,
} from './digitGridTokenizer';
export { loadDigits, splitRange, type Digits, type Split } from './digits';
export { readRecords, writeRecords } from './jsonl';
export { picturePng, writeContactSheet, writePicturePng } from './png';
export type { DataRecord } from './record';
