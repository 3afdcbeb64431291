import { randomBytes } from 'node:crypto'
import postgres, { type Sql } from 'postgres'
import { lane } from './behaviour/lane.ts'
import { installFilemark, runSql } from './servers/install.ts'
import { type SupabaseGrants, supabaseRolesSql } from './servers/supabase-roles.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The test server's maintenance database. */
    postgresUrl: string
    /** Begins the names of this run's template databases. */
    templatePrefix: string
    /** The database of the test server that pg_cron works in; empty where there is none. */
    cronDatabase: string
    /** In the PGlite lane, the file of a database with filemark in it. */
    pgliteTemplate: string
  }
}

export interface DatabaseOptions {
  /** Install `sql/*.sql`. Default true. */
  filemark?: boolean
  /** Make it look like a Supabase project with the old or the new default grants. Default false; old in the PostgREST lane. */
  supabase?: SupabaseGrants | false
  /** URL of the server to make it on. Default: the server that all test files share. */
  on?: string
  /**
   * Not a new database but the one that pg_cron works in, emptied, with the extension. One test file has it at a time;
   * the others wait in `createDatabase` until it is dropped. Only in the lane with pg_cron: tag the tests `pg_cron`.
   */
  cron?: boolean
}

export interface TestDatabase extends AsyncDisposable {
  readonly name: string
  /** As `postgres`, the superuser. */
  readonly url: string
  /** The same database, another role. */
  urlAs(role: string): string
  /** A pool of at most 10 connections. In the PostgREST lane `call(db.sql, …)` goes over HTTP instead. */
  readonly sql: Sql
  /** One more connection of its own, to hold a transaction open on; `role` as in `urlAs`. Closed by `drop`. */
  connect(role?: string): Promise<TestConnection>
  /** Closes all connections and drops the database. */
  drop(): Promise<void>
}

export interface TestConnection {
  /** A postgres.js instance with exactly one connection. */
  readonly sql: Sql
  /** The process id of its backend, for `untilLocked` and pg_terminate_backend. */
  readonly pid: number
}

/**
 * Makes a private database for a test file, in a few dozen milliseconds: a copy of a template that the run made once.
 * On a server of the test's own (`on`) everything is installed afresh.
 */
export async function createDatabase(options: DatabaseOptions = {}): Promise<TestDatabase> {
  const { filemark = true, supabase = lane === 'postgrest' && 'old' } = options
  const name = `filemark_${randomBytes(6).toString('hex')}`
  if (options.on) {
    await administer(options.on, `create database ${name}`)
    await furnish(urlOf(options.on, name), { filemark, supabase })
    return openDatabase(options.on, name)
  }
  const { inject } = await import('vitest')
  if (lane === 'pglite') return createPgliteDatabase(inject('pgliteTemplate'), { filemark, supabase })
  const server = inject('postgresUrl')
  if (options.cron) return takeCronDatabase(server, inject('cronDatabase'), { filemark, supabase })
  const template = inject('templatePrefix') + templateSuffix({ filemark, supabase })
  await administer(server, `create database ${name} template ${template}`)
  const database = openDatabase(server, name)
  return lane === 'postgrest' && filemark ? serveOverHttp(database) : database
}

/** A database in this process, behind a socket. All its connections share one session, one transaction at a time. */
async function createPgliteDatabase(template: string, furnishing: Furnishing): Promise<TestDatabase> {
  const { startPglite } = await import('./pglite.ts')
  const isTemplate = furnishing.filemark && !furnishing.supabase
  const server = await startPglite(isTemplate ? template : undefined)
  if (!isTemplate) await furnish(server.url, furnishing)
  return openConnections(server.url, 1, () => server.stop())
}

async function takeCronDatabase(server: string, name: string, furnishing: Furnishing): Promise<TestDatabase> {
  if (!name) throw new Error('this run has no pg_cron: tag the test pg_cron')
  const url = urlOf(server, name)
  const holder = postgres(server, { max: 1, onnotice: () => {} })
  try {
    await holder`select pg_advisory_lock(hashtext(${name}))`
    await runSql(url, [{ name: 'emptying the cron database', text: emptyCronDatabaseSql }])
    await furnish(url, furnishing)
  } catch (error) {
    await holder.end()
    throw error
  }
  return openConnections(url, 10, () =>
    administer(url, 'select cron.unschedule(jobid) from cron.job').finally(() => holder.end()),
  )
}

// The database itself has to stay: pg_cron's launcher is connected to it, and does not come back once it has ended.
const emptyCronDatabaseSql = `
select cron.unschedule(jobid) from cron.job;
select pg_terminate_backend(pid) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and backend_type <> 'pg_cron launcher';
truncate cron.job_run_details;
drop schema if exists filemark cascade;
drop schema public cascade;
create schema public authorization pg_database_owner;
grant usage on schema public to public;
`

/** Puts PostgREST in front of a database, for `call(db.sql, …)`. */
async function serveOverHttp(database: TestDatabase): Promise<TestDatabase> {
  const [{ startPostgrest }, { useRpc }] = await Promise.all([
    import('./servers/postgrest.ts'),
    import('./behaviour/rpc.ts'),
  ])
  const api = await startPostgrest({ databaseUrl: database.url })
  useRpc(database.sql, api.client('service_role'))
  async function drop(): Promise<void> {
    await api.stop()
    await database.drop()
  }
  return { ...database, drop, [Symbol.asyncDispose]: drop }
}

/** What a template or a fresh database is made of. */
interface Furnishing {
  filemark: boolean
  supabase: SupabaseGrants | false
}

const furnishings: Furnishing[] = [false, true].flatMap((filemark) =>
  ([false, 'old', 'new'] as const).map((supabase) => ({ filemark, supabase })),
)

function templateSuffix({ filemark, supabase }: Furnishing): string {
  return `${filemark ? 'filemark' : 'empty'}_${supabase || 'plain'}`
}

async function furnish(url: string, { filemark, supabase }: Furnishing): Promise<void> {
  if (supabase) await runSql(url, [{ name: 'supabase-roles.ts', text: supabaseRolesSql(supabase) }])
  if (filemark) await installFilemark(url)
}

/** Makes every template that `createDatabase` copies. For vitest's global setup. */
export async function createTemplates(server: string, prefix: string): Promise<void> {
  // Those without Supabase's roles come first: on plain Postgres the SQL must install without them.
  for (const furnishing of furnishings.toSorted((a, b) => Number(!!a.supabase) - Number(!!b.supabase))) {
    const name = prefix + templateSuffix(furnishing)
    await administer(server, `create database ${name}`)
    await furnish(urlOf(server, name), furnishing)
    // Nobody connects to it any more, not even autovacuum: a template in use cannot be copied.
    await administer(server, `alter database ${name} allow_connections false`)
  }
}

/** Drops what `createTemplates` made. */
export async function dropTemplates(server: string, prefix: string): Promise<void> {
  for (const furnishing of furnishings) {
    await administer(server, `drop database if exists ${prefix}${templateSuffix(furnishing)} with (force)`)
  }
}

function openDatabase(server: string, name: string): TestDatabase {
  return openConnections(urlOf(server, name), 10, () =>
    administer(server, `drop database if exists ${name} with (force)`),
  )
}

function openConnections(url: string, poolSize: number, remove: () => Promise<void>): TestDatabase {
  const opened: Sql[] = []
  function open(to: string, max: number): Sql {
    const sql = postgres(to, { max, onnotice: () => {} })
    opened.push(sql)
    return sql
  }
  function urlAs(role: string): string {
    const as = new URL(url)
    as.username = role
    return as.href
  }
  async function drop(): Promise<void> {
    await Promise.all(opened.map((sql) => sql.end({ timeout: 0 })))
    await remove()
  }
  return {
    name: new URL(url).pathname.slice(1),
    url,
    urlAs,
    sql: open(url, poolSize),
    async connect(role = 'postgres') {
      const sql = open(role === 'postgres' ? url : urlAs(role), 1)
      const [backend] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
      if (!backend) throw new Error('pg_backend_pid() gave no row')
      return { sql, pid: backend.pid }
    },
    drop,
    [Symbol.asyncDispose]: drop,
  }
}

function urlOf(server: string, database: string): string {
  const url = new URL(server)
  url.pathname = `/${database}`
  return url.href
}

async function administer(server: string, statement: string): Promise<void> {
  const sql = postgres(server, { max: 1, onnotice: () => {} })
  try {
    await sql.unsafe(statement)
  } finally {
    await sql.end()
  }
}
