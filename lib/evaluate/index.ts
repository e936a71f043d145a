export * from './accuracy';
export * from './interval';
