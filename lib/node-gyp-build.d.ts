declare module 'node-gyp-build' {
  /** Loads `build/Release/*.node` of a package root, or its prebuild for this platform. */
  function loadAddon(root: string): unknown;
  export = loadAddon;
}
