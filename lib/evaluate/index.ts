export * from './accuracy';
export * from './interval';
export * from './nearestWords';
export * from './recordItems';
export * from './replaceLatents';
