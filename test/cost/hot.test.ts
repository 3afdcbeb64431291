import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'

// A row that is being worked on is updated thousands of times. Only HOT updates (no index touched, old versions pruned
// from the page at the next visit) keep that cheap. No vacuum may help here, so the server is one without.

const timestamp = '2026-01-01T00:00:00Z'

let server: PostgresServer
let database: TestDatabase

beforeAll(async () => {
  server = await startPostgres({ settings: { autovacuum: false } })
  database = await createDatabase({ on: server.url() })
})

afterAll(async () => {
  await database?.drop()
  await server?.[Symbol.asyncDispose]()
})

interface Updates {
  updates: number
  hot: number
  bytes: number
}

/** What the table of files has gone through so far, with the work of `connection` that is still unreported. */
async function readUpdates({ sql }: TestConnection): Promise<Updates> {
  await sql`select pg_stat_force_next_flush()`
  const [row] = await sql<Updates[]>`
    select n_tup_upd::int as updates, n_tup_hot_upd::int as hot, pg_total_relation_size(relid)::int as bytes
      from pg_stat_user_tables where relid = 'filemark.file_checkpoints'::regclass`
  if (!row) throw new Error('no statistics of filemark.file_checkpoints')
  return row
}

async function claim({ sql }: TestConnection, url: string): Promise<string> {
  const [row] = await sql<{ claim_token: string }[]>`
    select claim_token from claim_file(${url}, 'csv', ${timestamp}, 'worker')`
  if (!row?.claim_token) throw new Error(`${url} was not claimed`)
  return row.claim_token
}

/** Runs `call(1) … call(times)` in that order, each a transaction of its own, without waiting for each answer. */
async function inOrder(times: number, call: (step: number) => Promise<unknown>): Promise<void> {
  for (let start = 1; start <= times; start += 1000) {
    const steps = Array.from({ length: Math.min(1000, times - start + 1) }, (_, index) => start + index)
    await Promise.all(steps.map(call))
  }
}

describe('rule 6.9: progress on a file', () => {
  test('10,000 checkpoints are all HOT and the table does not grow', async () => {
    const connection = await database.connect()
    const { sql } = connection
    const token = await claim(connection, 'one.csv')
    const before = await readUpdates(connection)
    await inOrder(
      10_000,
      (step) => sql`
        select from checkpoint_file('one.csv', ${token}, ${sql.json({ offset: step * 4096, line: step })}, ${step * 10},
                                    ${sql.json({ sum: step * 1.5, seen: ['a', 'b'] })})`,
    )
    const after = await readUpdates(connection)
    expect(after.updates - before.updates).toBe(10_000)
    expect(after.hot - before.hot).toBe(10_000)
    expect(after.bytes - before.bytes).toBeLessThan(128 * 1024)

    const [file] = await sql`select items_processed, history_length from get_file_checkpoint('one.csv')`
    expect(file).toEqual({ items_processed: '100000', history_length: '10000' })
  })

  test('heartbeats between checkpoints are HOT too', async () => {
    const connection = await database.connect()
    const { sql } = connection
    const token = await claim(connection, 'beating.csv')
    const before = await readUpdates(connection)
    await inOrder(2000, (step) =>
      step % 4 === 0
        ? sql`select from checkpoint_file('beating.csv', ${token}, ${step}::text::jsonb, ${step})`
        : sql`select extend_claim('beating.csv', ${token})`,
    )
    const after = await readUpdates(connection)
    expect(after.updates - before.updates).toBe(2000)
    expect(after.hot - before.hot).toBe(2000)
    expect(after.bytes - before.bytes).toBeLessThan(128 * 1024)
  })

  test('batches of persist_records are HOT too', async () => {
    const connection = await database.connect()
    const { sql } = connection
    await sql`create table public.events (n int)`
    const token = await claim(connection, 'persisted.csv')
    const before = await readUpdates(connection)
    await inOrder(
      1000,
      (step) => sql`
        select from persist_records('persisted.csv', ${token}, 'events', ${sql.json([{ n: step }])}, ${step}::text::jsonb,
                                    ${step})`,
    )
    const after = await readUpdates(connection)
    expect(after.updates - before.updates).toBe(1000)
    expect(after.hot - before.hot).toBe(1000)
  })

  test('100 files worked on at the same time leave each other room in their pages', async () => {
    const connection = await database.connect()
    const { sql } = connection
    await sql`
      select from register_files((
        select jsonb_agg(jsonb_build_object(
          'file_url', 'many/' || i, 'file_type', 'csv', 'file_timestamp', ${timestamp}::text))
          from generate_series(1, 1000) i))`
    const claims = await sql<{ file_url: string; claim_token: string }[]>`
      select file_url, claim_token from claim_next_files('worker', 100)`
    expect(claims).toHaveLength(100)
    const before = await readUpdates(connection)
    await inOrder(10_000, (step) => {
      const claimed = claims[step % claims.length]
      return sql`
        select from checkpoint_file(${claimed?.file_url ?? ''}, ${claimed?.claim_token ?? 0},
                                    ${sql.json({ offset: step * 4096 })}, ${step})`
    })
    const after = await readUpdates(connection)
    expect(after.updates - before.updates).toBe(10_000)
    expect(after.hot - before.hot).toBeGreaterThanOrEqual(9_900)
    expect(after.bytes - before.bytes).toBeLessThan(128 * 1024)
  })

  test('the measurement notices an index on the lease', async () => {
    await using indexed = await createDatabase({ on: server.url() })
    await indexed.sql`create index on filemark.file_checkpoints (lease_expires_at)`
    const connection = await indexed.connect()
    const token = await claim(connection, 'one.csv')
    const before = await readUpdates(connection)
    await inOrder(500, () => connection.sql`select extend_claim('one.csv', ${token})`)
    const after = await readUpdates(connection)
    expect(after.updates - before.updates).toBe(500)
    expect(after.hot - before.hot).toBe(0)
  })
})
