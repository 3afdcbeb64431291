import { mergeConfig } from 'vitest/config'
import base from './vitest.config.ts'

// What needs tools that `npm ci` does not bring. Only `.ci/run` runs these.
const config = mergeConfig(base, { test: { testTimeout: 300_000 } })
config.test.include = ['test/ci/**/*.test.ts']
config.test.exclude = []
export default config
