import { createClient } from '@supabase/supabase-js'
import pg from 'pg'
import postgres from 'postgres'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { CheckpointManager, type DatabaseClient, InvalidArgumentError } from '../../sdk/index.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { startPostgrest } from '../servers/postgrest.ts'
import { file, newManager } from './clients.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await createDatabase()
})
afterAll(async () => {
  await database.drop()
})

/** A file's whole life with values of every kind. */
async function useAllTypes(client: DatabaseClient): Promise<void> {
  const checkpoints = newManager(client)
  const value = { at: '2026-11-20', list: [null, 0, ''], snake_case: 1.5 }
  await checkpoints.registerFiles([{ ...file('a'), metadata: value, sizeBytes: 2 ** 40 }])
  expect(await checkpoints.pendingFiles(['a', 'b'])).toEqual(['a', 'b'])
  const [claim] = await checkpoints.claimNextFiles()
  expect(claim).toMatchObject({ metadata: value, sizeBytes: 2 ** 40, fileTimestamp: file('a').timestamp })
  await claim?.saveCheckpoint({ cursor: value, itemsProcessed: 2 ** 40, accumulatedResults: [] })
  await claim?.refresh()
  expect(claim).toMatchObject({ cursor: value, itemsProcessed: 2 ** 40, accumulatedResults: [] })
  expect(await claim?.extend()).toBeInstanceOf(Date)
  await claim?.complete()
  expect(await checkpoints.stats()).toMatchObject({
    completed: 1,
    failureRatio: 0,
    lastCompletedAt: expect.any(Date),
  })
}

const upside = (text: string) => `parsed ${text}`

test('postgres.js may spell columns and parse values as it likes', async () => {
  const types = {
    bigint: postgres.BigInt,
    json: { to: 3802, from: [114, 3802], serialize: upside, parse: upside },
    date: { to: 1184, from: [1114, 1184], serialize: upside, parse: upside },
    text: { to: 1009, from: [1009], serialize: upside, parse: upside },
  }
  for (const transform of [postgres.camel, postgres.pascal, postgres.kebab]) {
    const sql = postgres(database.url, { max: 2, types, transform })
    await useAllTypes(sql)
    await sql.end()
  }
})

test('postgres.js prepares statements, but not when it is told not to', async () => {
  for (const prepare of [true, false]) {
    const sql = postgres(database.url, { max: 1, prepare })
    await useAllTypes(sql)
    const named =
      await sql`select from pg_prepared_statements where statement like ${'%public.claim_next_files%'}`
    expect(named).toHaveLength(prepare ? 1 : 0)
    await sql.end()
  }
})

test('node-postgres may parse values as it likes', async () => {
  const types = {
    getTypeParser: (oid: number) => (oid === 25 ? String : upside),
  } as unknown as pg.CustomTypesConfig
  const pool = new pg.Pool({ connectionString: database.url, types })
  await useAllTypes(pool)
  await pool.end()
  const client = new pg.Client({ connectionString: database.url })
  await client.connect()
  await useAllTypes(client)
  await client.end()
})

test('an odd time zone and date style of the session change nothing', async () => {
  const options =
    '-c TimeZone=Asia/Kathmandu -c DateStyle=SQL,DMY -c IntervalStyle=iso_8601 -c extra_float_digits=0'
  const pool = new pg.Pool({ connectionString: database.url, options })
  await useAllTypes(pool)
  await pool.end()
})

test('a session that may not write says so, and is not tried for ever', async () => {
  const pool = new pg.Pool({ connectionString: database.url, options: '-c default_transaction_read_only=on' })
  await expect(newManager(pool).registerFiles([file('a')])).rejects.toMatchObject({ code: '25006' })
  await pool.end()
})

test('a supabase-js client that throws its errors is understood as well', async () => {
  await using other = await createDatabase({ supabase: 'new' })
  await using api = await startPostgrest({ databaseUrl: other.url })
  const client = createClient(api.url, api.secretKey)
  await useAllTypes(client)
  const throwing = {
    rpc: (name: string, args?: Record<string, unknown>) => client.rpc(name, args).throwOnError(),
  }
  await useAllTypes(throwing)
  await expect(newManager(throwing).requeueFile('unknown')).rejects.toMatchObject({ code: 'PT404' })
})

test('anything that is no database client is refused at once', () => {
  for (const client of [undefined, null, 'postgres://localhost', {}, 7]) {
    expect(() => new CheckpointManager(client as unknown as DatabaseClient)).toThrow(InvalidArgumentError)
  }
  for (const options of [{ retries: -1 }, { retries: 0.5 }, { timeoutMs: 0 }, { timeoutMs: Number.NaN }]) {
    expect(() => new CheckpointManager(database.sql, options)).toThrow(InvalidArgumentError)
  }
})
