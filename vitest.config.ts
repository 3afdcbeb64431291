import { defineConfig } from 'vitest/config'

// FILEMARK_TEST_REPORT names a file for a JSON report beside what is printed: `.ci/run` counts with it.
const report = process.env.FILEMARK_TEST_REPORT

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/ci/**'],
    globalSetup: 'test/global-setup.ts',
    reporters: report ? ['default', ['json', { outputFile: report }]] : ['default'],
    // Most of a test's time is spent in the database server, which needs a core too.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
})
