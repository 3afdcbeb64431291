import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readCatalog } from '../catalog.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { runTool } from './tool.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

const push = (url: string) =>
  runTool('supabase', ['db', 'push', `--remote=${url}`, '--yes', '--workdir', root])

const dbmateUp = (url: string) =>
  runTool('dbmate', [
    '--url',
    `${url}?sslmode=disable`,
    '-d',
    `${root}supabase/migrations`,
    '--no-dump-schema',
    'up',
  ])

const tools = [
  {
    tool: 'supabase db push',
    install: push,
    applied: /Applying migration \d{14}_filemark\.sql/,
    nothing: /up to date/,
  },
  { tool: 'dbmate up', install: dbmateUp, applied: /Applied: \d{14}_filemark\.sql/, nothing: /^\s*$/ },
]

// A server of its own: on the one that all tests share, filemark's roles exist already.
let server: PostgresServer
beforeAll(async () => {
  server = await startPostgres()
})
afterAll(() => server[Symbol.asyncDispose]())

describe.each(tools)('$tool', ({ install, applied, nothing }) => {
  test('installs on an empty plain database, and has nothing to do the second time', async () => {
    await using database = await createDatabase({ on: server.url(), filemark: false })
    expect(await install(database.url)).toMatch(applied)
    const installed = await readCatalog(database.sql)
    expect(await install(database.url)).toMatch(nothing)
    expect(await readCatalog(database.sql)).toEqual(installed)

    await using expected = await createDatabase({ on: server.url() })
    expect(installed).toEqual(await readCatalog(expected.sql))
  })

  test.each(['old', 'new'] as const)(
    'installs on a project with the %s default grants, as a role that is no superuser',
    async (supabase) => {
      await using project = await createProject(supabase)
      const url = project.urlAs('project_owner')
      expect(await install(url)).toMatch(applied)
      expect(await install(url)).toMatch(nothing)
      const [granted] = await project.sql`
        select count(*)::int as functions,
          count(*) filter (where has_function_privilege('service_role', oid, 'execute'))::int as service_role,
          count(*) filter (where has_function_privilege('anon', oid, 'execute'))::int as anon
        from pg_proc where pronamespace = 'public'::regnamespace`
      expect(granted?.functions).toBeGreaterThan(0)
      expect(granted).toMatchObject({ service_role: granted?.functions, anon: 0 })
    },
  )
})

/** A database with Supabase's roles that belongs to what `postgres` is there: a role that may much, but not all. */
async function createProject(supabase: 'old' | 'new'): Promise<TestDatabase> {
  const project = await createDatabase({ on: server.url(), filemark: false, supabase })
  await project.sql.unsafe(`
    do $$
    begin
      if to_regrole('project_owner') is null then
        create role project_owner login nosuperuser createrole createdb bypassrls replication;
        grant anon, authenticated, service_role, authenticator to project_owner with admin option;
      end if;
    end $$;
    alter database ${project.name} owner to project_owner;
  `)
  if (supabase === 'old') {
    for (const kind of ['tables', 'functions', 'sequences']) {
      await project.sql.unsafe(`alter default privileges for role project_owner in schema public
        grant all on ${kind} to anon, authenticated, service_role`)
    }
  }
  return project
}
