import { randomBytes } from 'node:crypto'
import postgres, { type Sql } from 'postgres'
import { installFilemark, runSql } from './servers/install.ts'
import { type SupabaseGrants, supabaseRolesSql } from './servers/supabase-roles.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The test server's maintenance database. */
    postgresUrl: string
    /** Begins the names of this run's template databases. */
    templatePrefix: string
  }
}

export interface DatabaseOptions {
  /** Install `sql/*.sql`. Default true. */
  filemark?: boolean
  /** Make it look like a Supabase project with the old or the new default grants. Default false. */
  supabase?: SupabaseGrants | false
  /** URL of the server to make it on. Default: the server that all test files share. */
  on?: string
}

export interface TestDatabase extends AsyncDisposable {
  readonly name: string
  /** As `postgres`, the superuser. */
  readonly url: string
  /** The same database, another role. */
  urlAs(role: string): string
  /** A pool of at most 10 connections. */
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
  const { filemark = true, supabase = false } = options
  const name = `filemark_${randomBytes(6).toString('hex')}`
  if (options.on) {
    await administer(options.on, `create database ${name}`)
    await furnish(urlOf(options.on, name), { filemark, supabase })
    return openDatabase(options.on, name)
  }
  const { inject } = await import('vitest')
  const server = inject('postgresUrl')
  const template = inject('templatePrefix') + templateSuffix({ filemark, supabase })
  await administer(server, `create database ${name} template ${template}`)
  return openDatabase(server, name)
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
  const url = urlOf(server, name)
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
    await administer(server, `drop database if exists ${name} with (force)`)
  }
  return {
    name,
    url,
    urlAs,
    sql: open(url, 10),
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
