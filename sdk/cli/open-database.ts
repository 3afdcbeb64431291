import type { DatabaseClient } from '../index.ts'
import { UsageError } from './usage-error.ts'

/** The database a run works with. */
export interface RunDatabase {
  /** For the SDK. */
  client: DatabaseClient
  query: (text: string, parameters?: (string | number)[]) => Promise<Record<string, unknown>[]>
  /** Runs SQL of several statements in one transaction, and no two of them at once. */
  setUp: (text: string) => Promise<void>
  close: () => Promise<void>
}

/** Where the database is: a server, or a directory of this machine. */
export type DatabaseLocation = { url: string } | { dataDir: string }

/** Opens a server's database, or the embedded one of a directory. Throws UsageError when it is not what a run needs. */
export async function openDatabase(
  location: DatabaseLocation,
  { workerId, connections }: { workerId: string; connections: number },
): Promise<RunDatabase> {
  if ('dataDir' in location) return openEmbeddedDatabase(location.dataDir)
  const database = await openServerDatabase(location.url, workerId, connections)
  try {
    const [row] = await database.query(
      `select exists (
         select from pg_catalog.pg_proc p
           join pg_catalog.pg_namespace n on n.oid = p.pronamespace
          where n.nspname = 'public' and p.proname = 'register_files') as installed`,
    )
    if (row?.installed === true) return database
    throw new UsageError(
      'filemark is not installed in this database. Put its migration among yours with `npx filemark init`, ' +
        'then apply it with `supabase db push` or `dbmate --migrations-dir supabase/migrations up`',
    )
  } catch (error) {
    await database.close()
    throw error
  }
}

async function openServerDatabase(url: string, workerId: string, connections: number): Promise<RunDatabase> {
  const { default: postgres } = await importPeer(() => import('postgres'), 'postgres')
  const sql = postgres(url, {
    max: connections,
    connection: { application_name: workerId },
    // A pooler in transaction mode knows no named statements; and the functions plan once a session as it is.
    prepare: false,
    onnotice: () => {},
  })
  return {
    client: sql,
    query: (text, parameters = []) => sql.unsafe(text, parameters),
    setUp: async (text) => {
      await sql.begin(async (tx) => {
        // `create table if not exists` fails when two sessions do it at once.
        await tx`select pg_advisory_xact_lock(hashtextextended('filemark setup', 0))`
        await tx.unsafe(text).simple()
      })
    },
    close: () => sql.end({ timeout: 5 }),
  }
}

async function openEmbeddedDatabase(dataDir: string): Promise<RunDatabase> {
  const { openEmbedded } = await importPeer(() => import('../embedded.ts'), '@electric-sql/pglite')
  const db = await openEmbedded({ dataDir })
  return {
    client: db,
    query: async (text, parameters = []) => (await db.query<Record<string, unknown>>(text, parameters)).rows,
    setUp: async (text) => {
      await db.transaction(async (tx) => {
        await tx.exec(text)
      })
    },
    close: () => db.close(),
  }
}

async function importPeer<T>(load: () => Promise<T>, name: string): Promise<T> {
  try {
    return await load()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error
    throw new UsageError(`the package ${name} is not installed: run \`npm install ${name}\``, {
      cause: error,
    })
  }
}
