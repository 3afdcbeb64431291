// The tests in this directory run in every lane, from the same files. FILEMARK_TEST_LANE chooses the lane:
//   (unset)     a direct connection to the run's Postgres server: 15 with pg_cron, 17 or 18 in CI
//   pglite      createDatabase gives one PGlite session; further connections wait while another has a transaction open
//   postgrest   call(db.sql, …) of a public function is an HTTP request to PostgREST as service_role; everything else
//               (functions of schema filemark, your own statements, calls on connections of db.connect()) is direct
// Write a test as for a direct connection: createDatabase(), call(), refusal(). Who calls is `caller`, not 'postgres'.
// A test that cannot run in a lane gets the tag that says why, on the single test where that will do:
//   test('…', { tags: 'sessions' }, async () => …)        test.each(cases)('…', { tags: 'sessions' }, async (…) => …)
// It is then reported as skipped with the tag's reason, and CI prints it. A new reason is a new entry of `exclusions`.
// Nothing else may be missing from a lane: scripts/lane-table.ts compares the lanes' reports test by test, and fails.
import type { TestTagDefinition } from 'vitest/config'

export type Lane = 'direct' | 'pglite' | 'postgrest'

declare module 'vitest' {
  interface TestTags {
    exclusions: keyof typeof exclusions
  }
  interface TaskMeta {
    /** Why this test does not run in this lane. */
    excluded?: string
  }
}

/** The lane that this process runs tests in. */
export const lane = readLane(process.env.FILEMARK_TEST_LANE)

/** The role that `call(db.sql, …)` runs as. */
export const caller = lane === 'postgrest' ? 'service_role' : 'postgres'

/** Does the run's server load pg_cron (FILEMARK_TEST_PRELOAD=pg_cron), for `createDatabase({ cron: true })`? */
export const hasPgCron = lane === 'direct' && process.env.FILEMARK_TEST_PRELOAD === 'pg_cron'

/** Where tests with a tag do not run, and why. */
const exclusions = {
  sessions: { excluded: lane === 'pglite', reason: 'needs two sessions at once; PGlite has one' },
  jit: {
    excluded: process.env.FILEMARK_TEST_POSTGRES !== 'debian',
    reason: 'needs a Postgres with JIT compilation; npm has none',
  },
  pg_cron: { excluded: !hasPgCron, reason: 'needs pg_cron, which only the Postgres 15 lane has' },
} as const

/** The tags as vitest takes them. */
export const tags: TestTagDefinition[] = Object.entries(exclusions).map(([name, { excluded, reason }]) => ({
  name: name as keyof typeof exclusions,
  description: reason,
  skip: excluded,
  meta: excluded ? { excluded: reason } : {},
}))

function readLane(name = ''): Lane {
  if (name === '') return 'direct'
  if (name === 'pglite' || name === 'postgrest') return name
  throw new Error(`FILEMARK_TEST_LANE is '${name}', not 'pglite' or 'postgrest'`)
}
