export * from './accuracy';
export * from './interval';
export * from './recordItems';
