import type { PGlite } from '@electric-sql/pglite'
import pg from 'pg'
import type { CheckpointManagerOptions, DatabaseClient, Transaction } from '../../sdk/index.ts'
import { CheckpointManager } from '../../sdk/index.ts'
import { createDatabase } from '../database.ts'
import { createPglite } from '../pglite.ts'
import { startPostgrest } from '../servers/postgrest.ts'

/** One of the clients the SDK works over, with a database behind it. */
export interface TestClient extends AsyncDisposable {
  client: DatabaseClient
  /** Asks the database as its owner. */
  query(text: string, values?: unknown[]): Promise<Record<string, unknown>[]>
  /** Runs the work in a transaction of the client; undefined where it has none. */
  transaction?: <T>(work: (tx: TestTransaction) => Promise<T>) => Promise<T>
}

export interface TestTransaction {
  tx: Transaction
  query(text: string, values?: unknown[]): Promise<Record<string, unknown>[]>
}

export async function openSupabase(): Promise<TestClient> {
  const database = await createDatabase({ supabase: 'new' })
  const api = await startPostgrest({ databaseUrl: database.url })
  return {
    client: api.client('service_role'),
    query: (text, values = []) => database.sql.unsafe(text, values as string[]),
    async [Symbol.asyncDispose]() {
      await api.stop()
      await database.drop()
    },
  }
}

export async function openPostgresJs(): Promise<TestClient> {
  const database = await createDatabase()
  return {
    client: database.sql,
    query: (text, values = []) => database.sql.unsafe(text, values as string[]),
    transaction: async (work) =>
      (await database.sql.begin((tx) =>
        work({ tx, query: (text, values = []) => tx.unsafe(text, values as string[]) }),
      )) as Awaited<ReturnType<typeof work>>,
    [Symbol.asyncDispose]: () => database.drop(),
  }
}

export async function openNodePostgres(): Promise<TestClient> {
  const database = await createDatabase()
  const pool = new pg.Pool({ connectionString: database.url, max: 4 })
  pool.on('error', () => {})
  return {
    client: pool,
    query: async (text, values = []) => (await pool.query(text, values)).rows,
    async transaction(work) {
      const client = await pool.connect()
      try {
        await client.query('begin')
        const result = await work({
          tx: client,
          query: async (text, values = []) => (await client.query(text, values)).rows,
        })
        await client.query('commit')
        return result
      } catch (error) {
        await client.query('rollback')
        throw error
      } finally {
        client.release()
      }
    },
    async [Symbol.asyncDispose]() {
      await pool.end()
      await database.drop()
    },
  }
}

export async function openPglite(): Promise<TestClient> {
  const database: PGlite = await createPglite()
  return {
    client: database,
    query: async (text, values = []) => (await database.query<Record<string, unknown>>(text, values)).rows,
    transaction: (work) =>
      database.transaction((tx) =>
        work({
          tx,
          query: async (text, values = []) => (await tx.query<Record<string, unknown>>(text, values)).rows,
        }),
      ),
    [Symbol.asyncDispose]: () => database.close(),
  }
}

/** All four, by name. */
export const clients = {
  'supabase-js': openSupabase,
  'postgres.js': openPostgresJs,
  'node-postgres': openNodePostgres,
  PGlite: openPglite,
}

let pipelines = 0

/** A manager of a pipeline of its own. */
export function newManager(
  client: DatabaseClient,
  options: CheckpointManagerOptions = {},
): CheckpointManager {
  pipelines += 1
  return new CheckpointManager(client, { pipeline: `pipeline ${pipelines}`, ...options })
}

/** A file to claim. */
export function file(url: string) {
  return { url, type: 'csv', timestamp: new Date('2026-11-20T10:00:00.123Z') }
}
