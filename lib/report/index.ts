export { gazePicture } from './gaze';
export type { GazeTexts } from './gazeInput';
export { profileHtml, type NamedProfile, type ProfileHtmlOptions } from './profileHtml';
export type { ProfileClass } from './profileSeries';
export {
  summarizeProfile,
  type ClassFigures, type HardAgainstEasy, type ImageAgainstText, type MatrixSummary, type ProfileSummary, type Ratio, type SummaryOptions,
} from './profileSummary';
export { profileFindings } from './profileWords';
