import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'

// Workers that poll for files somebody else has, or that are done, must cost the database nothing: no row lock that the
// holder's checkpoints would have to wait for, and not one byte of WAL. On a server of its own, where nothing else writes.

const timestamp = '2026-01-01T00:00:00Z'
const requestId = '6f1c8d0e-2a52-4a35-9f0c-0d6a3c0c9b01'

let server: PostgresServer
let database: TestDatabase
let session: TestConnection

beforeAll(async () => {
  // Nothing that writes WAL by itself: no vacuum, no checkpoints, no notes for standbys.
  server = await startPostgres({
    settings: { autovacuum: false, wal_level: 'minimal', max_wal_senders: 0, checkpoint_timeout: '1d' },
  })
  database = await createDatabase({ on: server.url() })
  session = await database.connect()
  const { sql } = session

  await sql`
    select from register_files(${sql.json([
      { file_url: 'pending.csv', file_type: 'csv', file_timestamp: timestamp },
      { file_url: 'tomorrow.csv', file_type: 'csv', file_timestamp: timestamp, available_at: '2999-01-01' },
      { file_url: 'unwanted.csv', file_type: 'csv', file_timestamp: timestamp },
    ])})`
  await claim('held.csv', {})
  await claim('noted.csv', { etag: 'v1' })
  expect(await outcomeOf('noted.csv', { etag: 'v2' })).toBe('held')
  const completed = await claim('completed.csv', { etag: 'v1', request: requestId })
  await sql`select from complete_file('completed.csv', ${completed})`
  await sql`select from fail_file('retried.csv', ${await claim('retried.csv', {})}, 'not now', true, null, 3600)`
  await sql`select from fail_file('dead.csv', ${await claim('dead.csv', {})}, 'broken', false)`
  // skip_file comes with a later part.
  await sql`update filemark.file_checkpoints set status = 'skipped' where file_url = 'unwanted.csv'`

  for (const pipeline of ['paused', 'busy']) {
    await sql`select from claim_file('held.csv', 'csv', ${timestamp}, 'holder', ${pipeline})`
    await sql`
      select from register_files(
        ${sql.json([{ file_url: 'pending.csv', file_type: 'csv', file_timestamp: timestamp }])}, ${pipeline})`
  }
  await sql`select from filemark.configure_pipeline('paused', '{"paused": true}')`
  await sql`select from filemark.configure_pipeline('busy', '{"max_concurrency": 1}')`
  await sql`select from filemark.configure_pipeline('ignoring', '{"on_overwrite": "ignore"}')`
  await sql`
    select from complete_file('completed.csv', (
      select claim_token from claim_file('completed.csv', 'csv', ${timestamp}, 'holder', 'ignoring', 'v1')),
      p_pipeline => 'ignoring')`
  // Hint bits and dead rows are settled now, not by the first who reads.
  await sql`vacuum analyze`
})

afterAll(async () => {
  await database?.drop()
  await server?.[Symbol.asyncDispose]()
})

interface Details {
  pipeline?: string
  etag?: string
  request?: string
}

function claimFile({ sql }: TestConnection, url: string, { pipeline = 'default', etag, request }: Details) {
  return sql<{ outcome: string; claim_token: string | null }[]>`
    select outcome, claim_token
      from claim_file(${url}, 'csv', ${timestamp}, 'worker', ${pipeline}, ${etag ?? null}, ${request ?? null})`
}

async function outcomeOf(url: string, details: Details, connection = session): Promise<string | undefined> {
  const [row] = await claimFile(connection, url, details)
  return row?.outcome
}

async function claim(url: string, details: Details): Promise<string> {
  const [row] = await claimFile(session, url, details)
  if (!row?.claim_token) throw new Error(`${url}: ${row?.outcome}`)
  return row.claim_token
}

async function walPosition(): Promise<string | undefined> {
  const [row] = await session.sql<{ lsn: string }[]>`select pg_current_wal_insert_lsn()::text as lsn`
  return row?.lsn
}

const refusals: [situation: string, outcome: string, url: string, details: Details][] = [
  ['that another worker holds', 'held', 'held.csv', {}],
  ['that another worker holds, with its new etag once more', 'held', 'noted.csv', { etag: 'v2' }],
  ['that is completed', 'completed', 'completed.csv', {}],
  ['that is completed, with the etag it has', 'completed', 'completed.csv', { etag: 'v1' }],
  [
    'that is completed, as a repeat of the claim that was',
    'completed',
    'completed.csv',
    { request: requestId },
  ],
  ['that waits for its retry', 'waiting', 'retried.csv', {}],
  ['that becomes available later', 'waiting', 'tomorrow.csv', {}],
  ['in the dead letter', 'dead_letter', 'dead.csv', {}],
  ['that is skipped', 'skipped', 'unwanted.csv', {}],
  ['of a paused pipeline', 'paused', 'pending.csv', { pipeline: 'paused' }],
  ['of a paused pipeline, never seen before', 'paused', 'unknown.csv', { pipeline: 'paused' }],
  ['of a paused pipeline that another worker holds', 'held', 'held.csv', { pipeline: 'paused' }],
  ['of a pipeline at its max_concurrency', 'busy', 'pending.csv', { pipeline: 'busy' }],
  ['of a pipeline at its max_concurrency, never seen before', 'busy', 'unknown.csv', { pipeline: 'busy' }],
  [
    'that is completed, with a new etag that its pipeline ignores',
    'completed',
    'completed.csv',
    { pipeline: 'ignoring', etag: 'v2' },
  ],
]

describe.each(refusals)('rule 6.8: a claim of a file %s (%s)', (_situation, outcome, url, details) => {
  test('writes no WAL', async () => {
    // The first time a session does something it may look things up, and mark what it saw.
    await outcomeOf(url, details)
    const before = await walPosition()
    expect(await outcomeOf(url, details)).toBe(outcome)
    expect(await walPosition()).toBe(before)
  })

  test('locks no row', async () => {
    await session.sql`begin`
    try {
      expect(await outcomeOf(url, details)).toBe(outcome)
      // Who locks a row signs with a transaction id; who has none locked nothing and wrote nothing.
      const [row] = await session.sql`select pg_current_xact_id_if_assigned() as id`
      expect(row?.id).toBeNull()
    } finally {
      await session.sql`rollback`
    }
  })

  test('does not wait for one who has the row locked', async () => {
    const holder = await database.connect()
    await holder.sql`begin`
    await holder.sql`
      select from filemark.file_checkpoints
       where pipeline = ${details.pipeline ?? 'default'} and file_url = ${url} for update`
    await session.sql`set lock_timeout = '2s'`
    try {
      expect(await outcomeOf(url, details)).toBe(outcome)
    } finally {
      await session.sql`reset lock_timeout`
      await holder.sql`rollback`
    }
  })
})

describe('the measurement', () => {
  test('notices the row lock of assert_claim', async () => {
    const token = await claim('asserted.csv', {})
    await session.sql`select filemark.assert_claim('asserted.csv', ${token})`
    const before = await walPosition()
    await session.sql`select filemark.assert_claim('asserted.csv', ${token})`
    expect(await walPosition()).not.toBe(before)

    await session.sql`begin`
    await session.sql`select filemark.assert_claim('asserted.csv', ${token})`
    const [row] = await session.sql`select pg_current_xact_id_if_assigned() as id`
    await session.sql`rollback`
    expect(row?.id).not.toBeNull()
  })
})
