import type { Sql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { reachedFrom } from '../call-graph.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { sqlFiles } from '../servers/install.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'

// Who may call and read what: every function and every table of the catalog, with every role, on plain Postgres and
// under both kinds of default grants that Supabase projects have. A function that is missing here fails the test.

const audiences = {
  /** Works on files. */
  worker: ['filemark_worker', 'filemark_operator', 'service_role'],
  /** Reads what a worker reads too. */
  reader: ['filemark_worker', 'filemark_monitor', 'filemark_operator', 'service_role'],
  /** Watches. */
  monitor: ['filemark_monitor', 'filemark_operator', 'service_role'],
  operator: ['filemark_operator', 'service_role'],
  /** Called by other functions only. */
  nobody: [],
} satisfies Record<string, string[]>

interface Expected {
  for: keyof typeof audiences
  /** Writes nothing, so it is STABLE or IMMUTABLE. Default: false. */
  readOnly?: true
  /** With the rights of the installer. Functions for nobody run inside such a one. */
  definer?: true
}

const functions: Record<string, Expected> = {
  'public.register_files': { for: 'worker', definer: true },
  'public.claim_file': { for: 'worker', definer: true },
  'public.claim_next_files': { for: 'worker', definer: true },
  'public.checkpoint_file': { for: 'worker', definer: true },
  'public.extend_claim': { for: 'worker', definer: true },
  'public.complete_file': { for: 'worker', definer: true },
  'public.fail_file': { for: 'worker', definer: true },
  'public.release_file': { for: 'worker', definer: true },
  'public.complete_and_claim_next': { for: 'worker', definer: true },
  // As its caller: whose INSERT grant on the target decides.
  'public.persist_records': { for: 'worker' },
  'public.get_file_checkpoint': { for: 'worker', readOnly: true, definer: true },
  'public.list_file_checkpoints': { for: 'worker', readOnly: true, definer: true },
  'public.pending_files': { for: 'worker', readOnly: true, definer: true },
  'public.pipeline_stats': { for: 'reader', readOnly: true, definer: true },
  'public.requeue_file': { for: 'operator', definer: true },
  'public.skip_file': { for: 'operator', definer: true },
  'filemark.assert_claim': { for: 'worker', definer: true },
  'filemark.configure_pipeline': { for: 'operator', definer: true },
  'filemark.reclaim_stale_claims': { for: 'operator', definer: true },
  'filemark.dead_letter_file': { for: 'operator', definer: true },
  'filemark.resolve_dead_letter': { for: 'operator', definer: true },
  'filemark.requeue_dead_letters': { for: 'operator', definer: true },
  'filemark.truncate_checkpoint_history': { for: 'operator', definer: true },
  'filemark.clear_completed_checkpoints': { for: 'operator', definer: true },
  'filemark.purge_files': { for: 'operator', definer: true },
  'filemark.run_maintenance': { for: 'operator', definer: true },
  'filemark.schedule_maintenance': { for: 'operator', definer: true },
  'filemark.unschedule_maintenance': { for: 'operator', definer: true },
  'public.filemark_metrics': { for: 'monitor', readOnly: true, definer: true },
  'filemark.alert_count': { for: 'monitor', readOnly: true, definer: true },
  'filemark.current_alerts': { for: 'monitor', readOnly: true, definer: true },
  'filemark.alert_limits': { for: 'monitor', readOnly: true },
  'filemark.held_snapshots': { for: 'monitor', readOnly: true, definer: true },
  'filemark.estimate_storage': { for: 'monitor', readOnly: true, definer: true },
  'filemark.check_alerts': { for: 'operator', definer: true },
  'filemark.set_alert_webhook': { for: 'operator', definer: true },
  // What persist_records is made of.
  'filemark.begin_persist': { for: 'worker', definer: true },
  'filemark.save_checkpoint': { for: 'worker', definer: true },
  'filemark.target_table': { for: 'worker', readOnly: true },
  'filemark.insert_records': { for: 'worker' },
  'filemark.on_one_line': { for: 'worker', readOnly: true },
  'filemark.refuse_argument': { for: 'worker' },
  'filemark.refuse_size': { for: 'worker' },
}

/** Holds addresses and keys of webhooks. */
const secretTable = 'filemark.alert_webhooks'

const kinds = ['plain', 'old', 'new'] as const
const packageRoles = ['filemark_worker', 'filemark_monitor', 'filemark_operator']
const apiRoles = ['anon', 'authenticated', 'service_role']
/** Has nothing but what PUBLIC has. */
const ordinary = 'ordinary'

interface CatalogFunction {
  name: string
  signature: string
  source: string
  owner: string
  definer: boolean
  volatility: 'i' | 's' | 'v'
  settings: string[] | null
}

describe.each(kinds)('on a database with grants of the kind: %s', (kind) => {
  const roles = [...packageRoles, ...(kind === 'plain' ? [] : apiRoles), ordinary]
  let server: PostgresServer
  let database: TestDatabase
  let installed: CatalogFunction[]

  beforeAll(async () => {
    // A server of its own: roles belong to the cluster, and plain Postgres has none of Supabase's.
    server = await startPostgres()
    database = await createDatabase({ on: server.url(), supabase: kind === 'plain' ? false : kind })
    await database.sql.unsafe(`create role ${ordinary} login`)
    installed = await readFunctions(database.sql)
  })

  afterAll(async () => {
    await database?.drop()
    await server?.[Symbol.asyncDispose]()
  })

  test('the roles are those this test knows', async () => {
    const rows = await database.sql<{ rolname: string }[]>`
      select rolname from pg_roles where not rolsuper and rolname not like 'pg\\_%' order by 1`
    const login = kind === 'plain' ? [] : ['authenticator']
    expect(rows.map(({ rolname }) => rolname)).toEqual([...roles, ...login].sort())
  })

  test('each function can be called by those whom it is for and by nobody else', async () => {
    const granted = await database.sql<{ name: string; role: string; granted: boolean }[]>`
      select distinct p.pronamespace::regnamespace || '.' || p.proname as name, role,
             has_function_privilege(role, p.oid, 'execute') as granted
        from pg_proc p, unnest(${roles}::text[]) role
       where p.pronamespace in ('filemark'::regnamespace, 'public'::regnamespace)`
    const callable = (name: string) =>
      granted
        .filter((row) => row.name === name && row.granted)
        .map(({ role }) => role)
        .sort()
    const actual = Object.fromEntries(installed.map(({ name }) => [name, callable(name)]))
    const expected = Object.fromEntries(
      installed.map(({ name }) => [
        name,
        audiences[functions[name]?.for ?? 'nobody'].filter((role) => roles.includes(role)).sort(),
      ]),
    )
    expect(actual).toEqual(expected)
    // None of those that have an audience is missing, and what is in public has one.
    expect(Object.keys(functions).filter((name) => !(name in actual))).toEqual([])
    expect(Object.keys(actual).filter((name) => name.startsWith('public.') && !(name in functions))).toEqual(
      [],
    )
  })

  test('only monitors, operators and service_role read tables, and nobody writes them', async () => {
    const rows = await database.sql<{ role: string; name: string; privileges: string[] }[]>`
      select role, c.oid::regclass::text as name, array_agg(privilege order by privilege) as privileges
        from unnest(${roles}::text[]) role,
             unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) privilege,
             pg_class c
       where c.relnamespace = 'filemark'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
         and has_table_privilege(role, c.oid, privilege)
       group by 1, 2`
    const readers = ['filemark_monitor', 'filemark_operator', 'service_role'].filter((role) =>
      roles.includes(role),
    )
    const tables = await relationNames(database.sql, ['r', 'p', 'v'])
    expect(tables.length).toBeGreaterThanOrEqual(20)
    expect(rows.map(({ role, name, privileges }) => `${role} ${name} ${privileges}`).sort()).toEqual(
      readers
        .flatMap((role) => tables.map((name) => `${role} ${name} select`))
        .filter((grant) => grant !== `filemark_monitor ${secretTable} select`)
        .sort(),
    )
    const sequences = await database.sql`
      select role, c.relname from pg_class c, unnest(${roles}::text[]) role
       where c.relkind = 'S' and c.relnamespace = 'filemark'::regnamespace
         and (has_sequence_privilege(role, c.oid, 'usage') or has_sequence_privilege(role, c.oid, 'update'))`
    expect(sequences).toHaveLength(0)
  })

  test('only those who can do something there may enter the schema filemark', async () => {
    const rows = await database.sql<{ role: string; may: string }[]>`
      select role, concat_ws(' ', case when has_schema_privilege(role, 'filemark', 'usage') then 'usage' end,
                                  case when has_schema_privilege(role, 'filemark', 'create') then 'create' end) as may
        from unnest(${roles}::text[]) role`
    expect(Object.fromEntries(rows.map(({ role, may }) => [role, may]))).toEqual(
      Object.fromEntries(roles.map((role) => [role, audiences.reader.includes(role) ? 'usage' : ''])),
    )
  })

  test('each table has row level security with one policy: the monitor selects, secrets the operator', async () => {
    const rows = await database.sql<{ name: string; policies: string }[]>`
      select c.oid::regclass::text as name,
             c.relrowsecurity || ' ' || string_agg(p.polcmd::text || ' ' || p.polroles::regrole[]::text, '; ') as policies
        from pg_class c left join pg_policy p on p.polrelid = c.oid
       where c.relnamespace = 'filemark'::regnamespace and c.relkind in ('r', 'p') group by c.oid`
    expect(Object.fromEntries(rows.map(({ name, policies }) => [name, policies]))).toEqual(
      Object.fromEntries(
        (await relationNames(database.sql, ['r', 'p'])).map((name) => [
          name,
          `true r {${name === secretTable ? 'filemark_operator' : 'filemark_monitor'}}`,
        ]),
      ),
    )
  })

  test('those who may read see rows, the others are refused', async () => {
    await database.sql`select from claim_file('seen.csv', 'csv', '2026-01-01', 'worker')`
    for (const role of roles) {
      const { sql } = await database.connect()
      await sql.unsafe(`set role ${role}`)
      const reading = sql<{ files: number }[]>`select count(*)::int as files from filemark.file_checkpoints`
      if (['filemark_monitor', 'filemark_operator', 'service_role'].includes(role)) {
        expect((await reading)[0]?.files, role).toBeGreaterThan(0)
      } else {
        await expect(reading, role).rejects.toMatchObject({ code: '42501' })
      }
      await expect(sql`delete from filemark.file_checkpoints where true`, role).rejects.toMatchObject({
        code: '42501',
      })
    }
  })
})

describe('each function', () => {
  let database: TestDatabase
  let installed: CatalogFunction[]

  beforeAll(async () => {
    database = await createDatabase()
    installed = await readFunctions(database.sql)
  })
  afterAll(() => database?.drop())

  test('has a name of its own in public, so that the API never answers 300', () => {
    const names = installed.map(({ name }) => name).filter((name) => name.startsWith('public.'))
    expect(names).toEqual([...new Set(names)])
  })

  test('pins its search_path, to nothing when it has the rights of the installer', () => {
    const loose = installed.filter(({ settings, definer }) => {
      const path = settings?.find((setting) => setting.startsWith('search_path='))
      return definer ? path !== 'search_path=""' : !path
    })
    expect(loose.map(({ name }) => name)).toEqual([])
  })

  test('has the rights of the installer only where that is meant', () => {
    expect(installed.filter(({ definer }) => definer).map(({ name }) => name)).toEqual(
      Object.keys(functions)
        .filter((name) => functions[name]?.definer)
        .sort(),
    )
  })

  test('of those that are called is STABLE exactly when it writes nothing', () => {
    expect(
      installed
        .filter(({ name, volatility }) => name in functions && volatility !== 'v')
        .map(({ name }) => name),
    ).toEqual(
      Object.keys(functions)
        .filter((name) => functions[name]?.readOnly)
        .sort(),
    )
  })

  test('that is not VOLATILE neither writes nor locks, nor does any that it calls', () => {
    const sources = new Map(installed.map(({ name, source }) => [name, source]))
    const writes =
      /\b(insert\s+into|update\s+filemark|delete\s+from|for\s+(no\s+key\s+)?update|pg_advisory|nextval)\b/i
    const calls = installed
      .filter(({ volatility }) => volatility !== 'v')
      .flatMap(({ name }) => [...reachedFrom(name, sources)].map((callee) => ({ name, callee })))
    expect(calls.length).toBeGreaterThan(10)
    expect(calls.filter(({ callee }) => writes.test(sources.get(callee) ?? ''))).toEqual([])
    // The pattern knows a writer when it sees one.
    expect(writes.test(sources.get('public.extend_claim') ?? '')).toBe(true)
  })

  test('updates and deletes with a WHERE: the API refuses others (safeupdate)', () => {
    const statements = installed.flatMap(({ name, source }) =>
      source
        .split(';')
        .filter((statement) => /\b(update|delete\s+from)\s+filemark\./i.test(statement))
        .map((statement) => ({ name, statement: statement.trim() })),
    )
    expect(statements.length).toBeGreaterThan(10)
    expect(statements.filter(({ statement }) => !/\bwhere\b/i.test(statement))).toEqual([])
  })

  test('never raises 40001: PostgREST would repeat the call for ever', () => {
    expect(installed.filter(({ source }) => /40001|serialization_failure/.test(source))).toEqual([])
  })

  test('belongs to whoever installed it, who need not be a superuser', async () => {
    await using server = await startPostgres()
    await using fresh = await createDatabase({ on: server.url(), filemark: false, supabase: 'new' })
    await fresh.sql.unsafe(`
      create role installer login createrole;
      alter database ${fresh.name} owner to installer;
      alter schema public owner to installer;
    `)
    const { sql } = await fresh.connect('installer')
    for (const { text } of sqlFiles()) await sql.unsafe(text).simple()

    const owners = new Set((await readFunctions(fresh.sql)).map(({ owner }) => owner))
    expect([...owners]).toEqual(['installer'])
    const { sql: api } = await fresh.connect()
    await api`set role service_role`
    const [claim] = await api<{ outcome: string; claim_token: string }[]>`
      select outcome, claim_token from claim_file('one.csv', 'csv', '2026-01-01', 'worker')`
    expect(claim?.outcome).toBe('claimed')
    expect(await api`select * from complete_file('one.csv', ${claim?.claim_token ?? 0})`).toEqual([
      { outcome: 'completed' },
    ])
  })

  test('is not misled by a temporary table of the caller with a name of ours', async () => {
    const { sql } = await database.connect()
    await database.sql.unsafe(`grant temporary on database ${database.name} to filemark_worker`)
    await sql`set role filemark_worker`
    for (const table of [
      'pipelines',
      'file_checkpoints',
      'checkpoint_history',
      'claim_requests',
      'file_events',
    ]) {
      await sql.unsafe(`create temporary table ${table} (pipeline text, file_url text)`)
    }
    await sql`create temporary table events (n int)`
    await database.sql`create table public.events (n int)`
    await database.sql`grant insert on public.events to filemark_worker`
    const [claim] = await sql<{ claim_token: string }[]>`
      select claim_token from claim_file('one.csv', 'csv', '2026-01-01', 'worker')`
    const token = claim?.claim_token ?? 0
    await sql`select from persist_records('one.csv', ${token}, 'events', '[{"n": 1}]', '1', 1)`
    await sql`select from complete_file('one.csv', ${token})`
    const [file] = await database.sql`
      select status, records_persisted::int, (select count(*)::int from public.events) as events
        from get_file_checkpoint('one.csv')`
    expect(file).toEqual({ status: 'completed', records_persisted: 1, events: 1 })
  })
})

/** Arguments with which a call gets as far as an answer of ours, whatever happened before. */
const calls: Record<string, Record<string, unknown>> = {
  register_files: { p_files: [] },
  claim_file: {
    p_file_url: 'one.csv',
    p_file_type: 'csv',
    p_file_timestamp: '2026-01-01',
    p_worker_id: 'worker',
  },
  claim_next_files: { p_worker_id: 'worker' },
  checkpoint_file: { p_file_url: 'none.csv', p_claim_token: 1, p_cursor: 1, p_items_processed: 1 },
  extend_claim: { p_file_url: 'none.csv', p_claim_token: 1 },
  complete_file: { p_file_url: 'none.csv', p_claim_token: 1 },
  fail_file: { p_file_url: 'none.csv', p_claim_token: 1, p_error_message: 'broken' },
  release_file: { p_file_url: 'none.csv', p_claim_token: 1 },
  complete_and_claim_next: { p_worker_id: 'worker', p_completions: [] },
  persist_records: {
    p_file_url: 'none.csv',
    p_claim_token: 1,
    p_target: 'events',
    p_records: [],
    p_cursor: 1,
    p_items_processed: 1,
  },
  get_file_checkpoint: { p_file_url: 'one.csv' },
  list_file_checkpoints: {},
  pending_files: { p_file_urls: ['one.csv'] },
  pipeline_stats: {},
  requeue_file: { p_file_url: 'none.csv' },
  skip_file: { p_file_url: 'none.csv' },
  filemark_metrics: {},
}

describe.each(['old', 'new'] as const)('over the API of a project with the %s default grants', (kind) => {
  const roles = [...apiRoles, ...packageRoles, ordinary]
  let server: PostgresServer
  let database: TestDatabase
  let rest: PostgrestServer

  beforeAll(async () => {
    server = await startPostgres()
    database = await createDatabase({ on: server.url(), supabase: kind })
    await database.sql.unsafe(`
      create role ${ordinary};
      grant ${packageRoles}, ${ordinary} to authenticator;
      create table public.events (n int);
      create table public.guarded (n int);
      alter table public.guarded enable row level security;
      create policy small on public.guarded for insert to filemark_worker with check (n < 10);
      grant insert on public.guarded to filemark_worker;
    `)
    rest = await startPostgrest({ databaseUrl: database.url })
  })

  afterAll(async () => {
    await rest?.stop()
    await database?.drop()
    await server?.[Symbol.asyncDispose]()
  })

  test('all functions of public are tried', () => {
    expect(Object.keys(calls).map((name) => `public.${name}`)).toEqual(
      Object.keys(functions).filter((name) => name.startsWith('public.')),
    )
  })

  describe.each(roles)('%s', (role) => {
    test.each(Object.keys(calls))('is answered or refused as it should be by %s', async (name) => {
      const { status, error } = await rest.client(role).rpc(name, calls[name])
      const expected = functions[`public.${name}`]
      if (expected && audiences[expected.for].some((allowed) => allowed === role)) {
        expect(error?.code ?? 'PT').toMatch(/^PT/)
        expect([200, 204, 404]).toContain(status)
      } else {
        expect(error?.code).toBe('42501')
        expect(error?.message).toContain(`function ${name}`)
        expect(status).toBe(role === 'anon' ? 401 : 403)
      }
    })

    test('does not reach the schema filemark', async () => {
      const { status, error } = await rest
        .client(role)
        .schema('filemark')
        .rpc('configure_pipeline', { p_pipeline: 'default', p_settings: {} })
      expect([status, error?.code]).toEqual([406, 'PGRST106'])
    })
  })

  test('a caller without a key is anon', async () => {
    const response = await fetch(`${rest.url}/rest/v1/rpc/pipeline_stats`)
    expect(response.status).toBe(401)
  })

  /** Claims a new file, persists one record as `role`, and answers what became of it. */
  async function persistAs(role: string, target: string, record: object) {
    const url = crypto.randomUUID()
    const client = rest.client(role)
    const claimed = await client.rpc('claim_file', { ...calls.claim_file, p_file_url: url }).throwOnError()
    const { error } = await client.rpc('persist_records', {
      p_file_url: url,
      p_claim_token: claimed.data[0].claim_token,
      p_target: target,
      p_records: [record],
      p_cursor: 1,
      p_items_processed: 1,
    })
    const [file] = await database.sql<{ items_processed: number; records_persisted: number }[]>`
      select items_processed::int, records_persisted::int from get_file_checkpoint(${url})`
    return { code: error?.code, ...file }
  }
  const nothing = { items_processed: 0, records_persisted: 0 }
  const one = { items_processed: 1, records_persisted: 1 }

  async function countEvents(): Promise<number | undefined> {
    const [row] = await database.sql<{ events: number }[]>`select count(*)::int as events from public.events`
    return row?.events
  }

  test('persist_records as a worker without a grant on the target saves nothing, and with one everything', async () => {
    expect(await persistAs('filemark_worker', 'public.events', { n: 1 })).toEqual({
      code: '42501',
      ...nothing,
    })
    expect(await countEvents()).toBe(0)
    await database.sql`grant insert on public.events to filemark_worker`
    expect(await persistAs('filemark_worker', 'public.events', { n: 1 })).toEqual({ code: undefined, ...one })
    expect(await countEvents()).toBe(1)
  })

  test('persist_records as service_role has the grants of the project', async () => {
    const before = await countEvents()
    if (kind === 'new') {
      expect(await persistAs('service_role', 'events', { n: 2 })).toEqual({ code: '42501', ...nothing })
      expect(await countEvents()).toBe(before)
      await database.sql`grant insert on public.events to service_role`
    }
    expect(await persistAs('service_role', 'events', { n: 2 })).toEqual({ code: undefined, ...one })
    expect(await countEvents()).toBe((before ?? 0) + 1)
  })

  test('persist_records obeys the row level security of the target', async () => {
    expect(await persistAs('filemark_worker', 'guarded', { n: 10 })).toEqual({ code: '42501', ...nothing })
    expect(await persistAs('filemark_worker', 'guarded', { n: 9 })).toEqual({ code: undefined, ...one })
    expect(await database.sql`select n from public.guarded`).toEqual([{ n: 9 }])
  })

  test.each(['filemark_worker', 'filemark_operator', 'service_role'])(
    'persist_records gives %s no way into our own tables',
    async (role) => {
      const before = await database.sql`select count(*) from filemark.pipelines`
      expect(await persistAs(role, 'filemark.pipelines', { pipeline: 'forged' })).toEqual({
        code: '42501',
        ...nothing,
      })
      expect(await database.sql`select count(*) from filemark.pipelines`).toEqual(before)
    },
  )
})

async function readFunctions(sql: Sql): Promise<CatalogFunction[]> {
  return sql<CatalogFunction[]>`
    select p.pronamespace::regnamespace || '.' || p.proname as name, p.oid::regprocedure::text as signature,
           p.prosrc as source, p.proowner::regrole::text as owner, p.prosecdef as definer,
           p.provolatile as volatility, p.proconfig as settings
      from pg_proc p
     where p.pronamespace in ('filemark'::regnamespace, 'public'::regnamespace)
     order by (p.pronamespace::regnamespace || '.' || p.proname) collate "C"`
}

async function relationNames(sql: Sql, kinds: string[]): Promise<string[]> {
  const rows = await sql<{ name: string }[]>`
    select oid::regclass::text as name from pg_class
     where relnamespace = 'filemark'::regnamespace and relkind = any (${kinds}::"char"[])`
  return rows.map(({ name }) => name)
}
