import { existsSync, readFileSync } from 'node:fs'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { createDatabase, type TestDatabase } from './database.ts'
import { createPglite } from './pglite.ts'
import { type PostgresServer, startPostgres } from './servers/postgres.ts'
import { type PostgrestServer, startPostgrest } from './servers/postgrest.ts'
import { until, untilLocked } from './wait.ts'

describe('a private Postgres server', () => {
  let server: PostgresServer
  beforeAll(async () => {
    server = await startPostgres({ settings: { shared_preload_libraries: 'auto_explain' } })
  })
  afterAll(() => server[Symbol.asyncDispose]())

  test('a crash keeps what was committed and loses what was not', async () => {
    const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
    await sql`create table effects (name text)`
    await sql`insert into effects values ('committed')`
    const open = postgres(server.url(), { max: 1, onnotice: () => {} })
    await open`begin`
    await open`insert into effects values ('not committed')`
    await server.stop('immediate')
    expect(server.pid).toBeUndefined()

    await server.start()
    const after = postgres(server.url(), { max: 1, onnotice: () => {} })
    expect(await after`select name from effects`).toEqual([{ name: 'committed' }])
    expect(readFileSync(server.logFile, 'utf8')).toContain('automatic recovery in progress')
    await Promise.all([sql.end({ timeout: 0 }), open.end({ timeout: 0 }), after.end()])
  })

  test('it logs the plans of statements inside functions', async () => {
    const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
    await sql`set auto_explain.log_min_duration = 0`
    await sql`set auto_explain.log_nested_statements = on`
    await sql`do $$ begin perform relname from pg_class where relname = 'a name to look for'; end $$`
    await until(() =>
      /Filter:.*'a name to look for'|Index Cond:.*'a name to look for'/.test(
        readFileSync(server.logFile, 'utf8'),
      ),
    )
    await sql.end()
  })

  test('its processes and its data are gone at the end', async () => {
    const another = await startPostgres()
    const { pid, dataDir } = another
    await another[Symbol.asyncDispose]()
    expect(() => process.kill(Number(pid), 0)).toThrow('ESRCH')
    expect(existsSync(dataDir)).toBe(false)
  })
})

describe('a test database', () => {
  test('is private', async () => {
    await using one = await createDatabase({ filemark: false })
    await using two = await createDatabase({ filemark: false })
    await one.sql`create table here (a int)`
    expect(await two.sql`select to_regclass('public.here') as found`).toEqual([{ found: null }])
  })

  test('has filemark in it, also on a server of its own and in PGlite', async () => {
    const question = `select count(*)::int as functions from pg_proc where pronamespace = to_regnamespace('filemark')`
    await using copied = await createDatabase()
    await using fresh = await createDatabase({ on: inject('postgresUrl') })
    const embedded = await createPglite()
    const [expected] = await copied.sql.unsafe(question)
    expect(expected?.functions).toBeGreaterThan(0)
    expect(await fresh.sql.unsafe(question)).toEqual([expected])
    expect((await embedded.query(question)).rows).toEqual([expected])
    await embedded.close()
  })

  test('shows when a session waits for another one', async () => {
    await using database = await createDatabase({ filemark: false })
    await database.sql`create table rows as select 1 as a`
    const holder = await database.connect()
    const waiter = await database.connect()
    await holder.sql`begin`
    await holder.sql`update rows set a = 2`
    const waiting = waiter.sql`update rows set a = a + 1 returning a`.execute()
    await untilLocked(database.sql, waiter.pid)
    await holder.sql`commit`
    expect(await waiting).toEqual([{ a: 3 }])
  })
})

describe.each(['old', 'new'] as const)('a database with the %s default grants of Supabase', (grants) => {
  test.each(['anon', 'authenticated', 'service_role'])('gives %s what a project gives it', async (role) => {
    await using database = await createDatabase({ filemark: false, supabase: grants })
    await database.sql`create table made_later (a int)`
    const [row] = await database.sql`select has_table_privilege(${role}, 'made_later', 'select') as granted`
    expect(row?.granted).toBe(grants === 'old')
  })
})

describe('PostgREST as on Supabase', () => {
  let database: TestDatabase
  let rest: PostgrestServer
  beforeAll(async () => {
    database = await createDatabase({ filemark: false, supabase: 'old' })
    await database.sql.unsafe(`
      create table calls (id int generated always as identity, caller text);
      create function who() returns text language sql stable as $$ select current_user::text $$;
      create function add_call() returns bigint language plpgsql as $$
      begin
        insert into calls (caller) values (current_user);
        return (select count(*) from calls);
      end $$;
      create function many() returns setof int language sql stable as $$ select generate_series(1, 1500) $$;
      create function conflict() returns void language plpgsql as $$
      begin
        raise exception 'no' using errcode = 'PT409', detail = 'why', hint = 'what next';
      end $$;
    `)
    rest = await startPostgrest({ databaseUrl: database.url })
  })
  afterAll(async () => {
    await rest?.stop()
    await database?.drop()
  })

  test.each(['anon', 'authenticated', 'service_role'])(
    'runs a call with the key of %s as that role',
    async (role) => {
      expect(await rest.client(role).rpc('who')).toMatchObject({ error: null, data: role })
    },
  )

  test('accepts the opaque keys of new projects, alone in the apikey header too', async () => {
    const ask = async (headers: Record<string, string>) => {
      const response = await fetch(`${rest.url}/rest/v1/rpc/who`, { headers })
      return response.json()
    }
    expect(await ask({ apikey: rest.secretKey })).toBe('service_role')
    expect(await ask({ apikey: rest.publishableKey, authorization: `Bearer ${rest.publishableKey}` })).toBe(
      'anon',
    )
    expect(await ask({})).toBe('anon')
    expect(await ask({ apikey: 'sb_secret_wrong' })).toMatchObject({ code: 'PGRST301' })
  })

  test('the API roles have the timeouts of authenticator', async () => {
    const [row] = await database.sql`select setconfig::text[] as config from pg_db_role_setting
      where setrole = 'authenticator'::regrole`
    expect(row?.config.sort()).toEqual(['lock_timeout=8s', 'statement_timeout=8s'])
  })

  test('cuts results at 1,000 rows without a word', async () => {
    const { data, error } = await rest.client('service_role').rpc('many')
    expect([data.length, error]).toEqual([1000, null])
  })

  test('an error has its status, code, detail and hint', async () => {
    expect(await rest.client('service_role').rpc('conflict')).toMatchObject({
      status: 409,
      error: { code: 'PT409', message: 'no', details: 'why', hint: 'what next' },
    })
  })

  test('knows a function that was made later after reloadSchema', async () => {
    await database.sql`create function made_later() returns int language sql stable as 'select 42'`
    await rest.reloadSchema()
    expect(await rest.client('anon').rpc('made_later')).toMatchObject({ data: 42 })
  })

  const countCalls = async () => Number((await database.sql`select count(*) from calls`)[0]?.count)

  test.each([
    ['drop-answer', 1, 0],
    ['drop-request', 0, 0],
    [{ status: 503 }, 0, 503],
    [{ status: 504, when: 'after' }, 1, 504],
  ] as const)('with the fault %j a call takes effect %i times', async (fault, effects, status) => {
    const before = await countCalls()
    rest.intercept = ({ method, path }) => (`${method} ${path}` === 'POST /rpc/add_call' ? fault : undefined)
    const answer = await rest.client('service_role').rpc('add_call')
    rest.intercept = undefined
    expect(answer.error).not.toBeNull()
    expect(answer.status).toBe(status)
    expect(await countCalls()).toBe(before + effects)
  })
})
