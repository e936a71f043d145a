export { gazePicture } from './gaze';
export type { GazeTexts } from './gazeInput';
