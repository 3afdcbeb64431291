import { randomUUID } from 'node:crypto'
import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { call, claim, claimNext, complete, configure, only, register, tryClaim } from './calls.ts'
import { empty, expireLease, fireTimer } from './tables.ts'

// What a claim costs is what it looks at: rows of the table, and entries of its indexes. Postgres counts them, also in a
// transaction that is still open. test/cost measures plans and buffers with a million files; here 1,000 of a kind are
// enough to see that a claim passes them by, in every lane.

let db: TestDatabase
let one: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
})
beforeEach(async () => {
  await empty(db.sql)
  await register(db.sql, ...Array.from({ length: 30 }, (_, index) => ({ file_url: `due ${index + 1}` })))
  await complete(db.sql, 'due 30', (await claim(db.sql, 'due 30')).claim_token)
  await claim(db.sql, 'due 29')
})
afterEach(() => one.sql.unsafe('rollback'))
afterAll(() => db.drop())

/** How many rows and index entries of the files `work` looks at, after `arrange`. What they do is rolled back. */
async function cost(work: () => Promise<unknown>, arrange?: () => Promise<unknown>): Promise<number> {
  async function count(): Promise<number> {
    const rows = await one.sql<{ looks: number }[]>`
      select sum(pg_stat_get_xact_tuples_returned(oid) + pg_stat_get_xact_tuples_fetched(oid))::int as looks
        from pg_class
       where oid = 'filemark.file_checkpoints'::regclass
          or oid in (select indexrelid from pg_index where indrelid = 'filemark.file_checkpoints'::regclass)`
    return only(rows).looks
  }
  await one.sql`begin`
  await arrange?.()
  const before = await count()
  await work()
  const after = await count()
  await one.sql`rollback`
  return after - before
}

/** Adds 1,000 files of a status, in three priorities from -1 to 1; those that wait are due in a year. */
async function add(sql: Sql, status: string): Promise<void> {
  await sql`
    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, available_at, status, priority, claim_token, claim_ended, attempts,
      processed_by, started_at, lease_expires_at, lease_check_at, error_message, completed_at)
    select 'default', ${status}::text || ' ' || i, 'csv', '2026-01-01',
           now() + case ${status}::text when 'failed' then interval '1 year' else interval '1 hour' * -i end,
           ${status}, i % 3 - 1, state.token, state.ended, state.token, state.worker, state.begun, state.lease,
           state.lease, state.error, state.completed
      from (values
        ('completed',  1, 'completed', 'w', now(), null,                      null,      now()),
        ('dead_letter', 1, 'failed',   'w', now(), null,                      'not now', null),
        ('failed',     1, 'failed',    'w', now(), null,                      'not now', null),
        ('pending',    0, null,        null, null, null,                      null,      null),
        ('processing', 1, null,        'w', now(), now() + interval '1 hour', null,      null)
      ) as state (status, token, ended, worker, begun, lease, error, completed)
     cross join generate_series(1, 1000) i
     where state.status = ${status}`
}

const request_id = randomUUID()

const calls: Record<string, { arrange?: () => Promise<unknown>; run: () => Promise<unknown> }> = {
  'claim_next_files, one file': { run: async () => expect(await claimNext(one.sql, 1)).toHaveLength(1) },
  'claim_next_files, 10 files': { run: async () => expect(await claimNext(one.sql, 10)).toHaveLength(10) },
  'claim_next_files, 10 files of a type': {
    run: async () => expect(await claimNext(one.sql, 10, { file_type: 'csv' })).toHaveLength(10),
  },
  'claim_next_files of a type that is not there': {
    run: async () => expect(await claimNext(one.sql, 10, { file_type: 'parquet' })).toEqual([]),
  },
  'claim_next_files when a lease is over': {
    arrange: () => expireLease(one.sql, 'due 29'),
    run: () => claimNext(one.sql, 10),
  },
  'claim_next_files when a lease was renewed': {
    arrange: () => fireTimer(one.sql, 'due 29'),
    run: () => claimNext(one.sql, 10),
  },
  'a repeat of claim_next_files': {
    arrange: () => claimNext(one.sql, 10, { request_id }),
    run: async () => expect(await claimNext(one.sql, 10, { request_id })).toHaveLength(10),
  },
  complete_and_claim_next: {
    run: () =>
      call(one.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [{ file_url: 'due 29', claim_token: 1 }],
      }),
  },
  claim_file: { run: () => claim(one.sql, 'due 1') },
  'claim_file of an unknown file': { run: () => claim(one.sql, 'never seen') },
  'claim_file of a file whose lease is over': {
    arrange: () => expireLease(one.sql, 'due 29'),
    run: () => claim(one.sql, 'due 29'),
  },
  'claim_file of a file that is held': {
    run: async () => expect(await tryClaim(one.sql, 'due 29')).toMatchObject({ outcome: 'held' }),
  },
  'claim_file of a completed file': {
    run: async () => expect(await tryClaim(one.sql, 'due 30')).toMatchObject({ outcome: 'completed' }),
  },
}

describe('rule 6.8: a claim does not look at more when there are 1,000 more files', () => {
  test.each(['pending', 'failed', 'processing', 'completed', 'dead_letter'])(
    'that are %s',
    async (status) => {
      const measure = async () => {
        const costs: number[] = []
        for (const { run, arrange } of Object.values(calls)) costs.push(await cost(run, arrange))
        return costs
      }
      const alone = await measure()
      await add(db.sql, status)
      const among = await measure()
      const measured = Object.keys(calls).map((name, index) => ({
        name,
        alone: alone[index] ?? 0,
        among: among[index] ?? 0,
      }))
      // A look or two for each priority in which nothing is due.
      expect(measured.filter(({ alone, among }) => among > alone + 20)).toEqual([])
    },
  )

  test('of a pipeline with max_concurrency, but for the claims in progress up to the limit', async () => {
    await configure(db.sql, { max_concurrency: 5 })
    const alone = await cost(() => claimNext(one.sql, 1))
    await add(db.sql, 'completed')
    await add(db.sql, 'failed')
    expect(await cost(() => claimNext(one.sql, 1))).toBeLessThanOrEqual(alone + 20)
    await add(db.sql, 'processing')
    expect(await cost(async () => expect(await claimNext(one.sql, 1)).toEqual([]))).toBeLessThanOrEqual(
      alone + 40,
    )
  })

  test('and the measurement notices a statement that does', async () => {
    await add(db.sql, 'completed')
    expect(await cost(() => one.sql`select sum(attempts) from filemark.file_checkpoints`)).toBeGreaterThan(
      1000,
    )
    expect(
      await cost(
        () => one.sql`
          select count(attempts) from filemark.file_checkpoints where pipeline = 'default' and file_url like 'completed%'`,
      ),
    ).toBeGreaterThan(1000)
  })
})
