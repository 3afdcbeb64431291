import { defineConfig } from 'vitest/config'
import { lane, tags } from './test/behaviour/lane.ts'

// FILEMARK_TEST_REPORT names a file for a JSON report beside what is printed: `.ci/run` counts with it.
const report = process.env.FILEMARK_TEST_REPORT

export default defineConfig({
  test: {
    include: [lane === 'direct' ? 'test/**/*.test.ts' : 'test/behaviour/**/*.test.ts'],
    exclude: ['test/ci/**'],
    globalSetup: 'test/global-setup.ts',
    tags,
    // By its place in the file CI knows which tests are cases of one test.each.
    includeTaskLocation: report !== undefined,
    reporters: report ? ['default', ['json', { outputFile: report }]] : ['default'],
    // Most of a test's time is spent in the database server, which needs a core too.
    maxWorkers: 2,
    // Embedded, what waits for a second session waits for ever.
    testTimeout: lane === 'pglite' ? 30_000 : 60_000,
    hookTimeout: 120_000,
  },
})
