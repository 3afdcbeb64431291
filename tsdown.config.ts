import { defineConfig } from 'tsdown'

// dist/index.js, dist/embedded.js and dist/cli/main.js, the first two with types. They share chunks, so that an error
// class is one and the same wherever it comes from.
export default defineConfig({
  entry: { index: 'sdk/index.ts', embedded: 'sdk/embedded.ts', 'cli/main': 'sdk/cli/main.ts' },
  platform: 'node',
  target: 'node22',
  fixedExtension: false,
  dts: { entry: ['sdk/index.ts', 'sdk/embedded.ts'], generator: 'tsgo' },
})
