import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { call, only, refusal } from '../behaviour/calls.ts'
import { createDatabase, type TestDatabase } from '../database.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
})
afterAll(() => db.drop())

async function estimate(args: Record<string, unknown>): Promise<number> {
  const row = only(await call<{ estimate_storage: string }>(db.sql, 'filemark.estimate_storage', args))
  return Number(row.estimate_storage)
}

describe('estimate_storage', () => {
  test('is files × (checkpoint + entries × 100 + results)', async () => {
    const files = { active_files: 10_000, history_entries: 50, results_bytes: 5000 }
    expect(await estimate({ ...files, checkpoint_bytes: 5000 })).toBe(150_000_000)
    expect(await estimate(files)).toBe(10_000 * (5120 + 50 * 100 + 5000))
    expect(await estimate({ active_files: 0, history_entries: 0, results_bytes: 0 })).toBe(0)
    expect(await estimate({ active_files: 1e12, history_entries: 1e12, results_bytes: 0 })).toBe(2 ** 63)
  })

  test.each(['active_files', 'history_entries', 'results_bytes', 'checkpoint_bytes'])(
    'refuses a bad %s',
    async (name) => {
      for (const value of [-1, null, 1_000_000_000_001]) {
        const refused = await refusal(
          estimate({ active_files: 1, history_entries: 1, results_bytes: 1, [name]: value }),
        )
        expect(refused).toMatchObject({ code: 'PT400', message: expect.stringContaining(`p_${name} `) })
      }
    },
  )

  test('comes within a factor of two of what 10,000 such files take', async () => {
    // 50 entries with a cursor of a few dozen bytes; rows of 5 kB with their metadata; results of 5 kB that compress little.
    await db.sql.unsafe(`
      insert into filemark.pipelines (pipeline) values ('default');
      with pool as (
        select string_agg(md5(k::text), '') as text from generate_series(1, 500) k
      ), texts as (
        select i, substr(pool.text, i, 5000) as text from pool, generate_series(1, 10000) i
      )
      insert into filemark.file_checkpoints (
        pipeline, file_url, file_type, file_timestamp, metadata, status, available_at, claim_token, processed_by, started_at,
        lease_expires_at, lease_check_at, attempts, cursor, items_processed, accumulated_results, results_bytes,
        checkpoint_seq, checkpointed_at, history_length)
      select 'default', 's3://bucket/incoming/2026/' || lpad(i::text, 9, '0') || '.csv', 'csv', now(),
             jsonb_build_object('schema', t.text), 'processing', now(), 1, 'worker', now(), now(), now(), 1,
             jsonb_build_object('offset', i * 4096, 'line', i * 10), 50000, jsonb_build_object('seen', t.text), 5003, 50,
             now(), 50
        from texts t;
      insert into filemark.checkpoint_history
      select f.pipeline, f.file_url, s, jsonb_build_object('offset', s * 4096, 'line', s * 10), s * 1000, 0, 1, now()
        from filemark.file_checkpoints f, generate_series(1, 50) s;
    `)
    const [sizes] = await db.sql<{ row: number; results: number }[]>`
      select avg(octet_length(f::text))::int - avg(octet_length(f.accumulated_results::text))::int as row,
             avg(octet_length(f.accumulated_results::text))::int as results
        from filemark.file_checkpoints f`
    expect(sizes).toMatchObject({ row: expect.closeTo(5120, -3), results: expect.closeTo(5000, -2) })

    await db.sql`vacuum analyze filemark.file_checkpoints`
    await db.sql`vacuum analyze filemark.checkpoint_history`
    const report = await db.sql<{ table_name: string; total_bytes: string }[]>`
      select * from filemark.storage_report where table_name in ('file_checkpoints', 'checkpoint_history')`
    const real = report.reduce((sum, row) => sum + Number(row.total_bytes), 0)
    const estimated = await estimate({ active_files: 10_000, history_entries: 50, results_bytes: 5000 })
    // Measured: 1.7, because an entry of the history takes 270 bytes, with its key and its index.
    expect(real / estimated).toBeGreaterThan(1)
    expect(real / estimated).toBeLessThan(2)
  })
})
