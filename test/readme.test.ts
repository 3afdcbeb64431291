import { mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from './database.ts'
import { readme, readmeSnippets, takeSnippet } from './readme-snippets.ts'
import { type PostgrestServer, startPostgrest } from './servers/postgrest.ts'
import { createUserProject, type UserProject } from './user-project.ts'

const unused = readmeSnippets()
const snippet = (language: string, part: string) => takeSnippet(unused, language, part)

describe('README.md', () => {
  let database: TestDatabase
  let postgrest: PostgrestServer
  let project: UserProject
  let env: Record<string, string>
  let loadProgram: string

  beforeAll(async () => {
    database = await createDatabase({ filemark: false, supabase: 'new' })
    project = await createUserProject()
    postgrest = await startPostgrest({ databaseUrl: database.url })
    env = {
      SUPABASE_URL: postgrest.url,
      SUPABASE_SECRET_KEY: postgrest.secretKey,
      DATABASE_URL: database.url,
    }
  })
  afterAll(async () => {
    await postgrest?.stop()
    await database?.drop()
    await project?.[Symbol.asyncDispose]()
  })

  test('has at most 150 lines and names the two commands, which CI runs as they stand', () => {
    expect(readme.split('\n').length - 1).toBeLessThanOrEqual(150)
    expect(snippet('sh', 'npm run demo')).toBe('npm ci && npm run demo\nnpm ci && npm test\n')
    expect(snippet('text', 'dead_letter')).toContain('takes it over at its cursor')
  })

  test('installs with one migration', async () => {
    const [install, init, push] = snippet('sh', 'filemark init').split('\n')
    expect(install).toBe('npm install filemark')
    expect(push).toContain('supabase db push')
    await project.sh(String(init))
    // The push itself is run for real in test/ci/package.test.ts, where the Supabase CLI is there.
    const migrations = join(project.dir, 'supabase/migrations')
    for (const name of await readdir(migrations)) {
      await database.sql.unsafe(await readFile(join(migrations, name), 'utf8')).simple()
    }
    await postgrest.reloadSchema()
    await database.sql.unsafe(snippet('sql', 'create table public.events')).simple()
  })

  test('its smallest program loads each record once, however often it is started', async () => {
    loadProgram = snippet('ts', '// load.ts')
    await project.write('load.ts', loadProgram)
    await project.write(
      'tsconfig.json',
      JSON.stringify({
        compilerOptions: {
          strict: true,
          module: 'nodenext',
          target: 'es2023',
          types: ['node'],
          noEmit: true,
          // supabase-js's own declarations do not agree with TypeScript 7's DOM.
          skipLibCheck: true,
        },
        files: ['load.ts'],
      }),
    )
    await project.sh('tsc')
    const records = Array.from({ length: 2500 }, (_, index) => ({
      id: 10_000 + index,
      kind: 'login',
      happened_at: '2026-11-20T05:00:00Z',
    }))
    await project.write('events.json', JSON.stringify(records))
    expect(await project.sh('node load.ts', env)).toContain('drop/events.json completed')
    expect(await project.sh('node load.ts', env)).toContain('drop/events.json completed')
    const [count] =
      await database.sql`select count(*)::int, count(distinct id)::int as ids from public.events`
    expect(count).toEqual({ count: 2500, ids: 2500 })
    const [file] = await database.sql`select * from public.get_file_checkpoint('drop/events.json', 'events')`
    expect(file).toMatchObject({ status: 'completed', checkpoint_seq: '3', claim_token: '1', cursor: 2500 })
  })

  test("its transaction commits the user's own writes with the cursor", async () => {
    const [, before, after] = /^(.*) {4}await claim\.persistRecords\([^\n]*\n(.*)$/s.exec(loadProgram) ?? []
    const inTransaction = before + snippet('ts', '// inside of the loop above') + after
    await project.write(
      'tx.ts',
      inTransaction
        .replace("import { createClient } from '@supabase/supabase-js'", "import postgres from 'postgres'")
        .replace(/^const supabase = .*$/m, 'const sql = postgres(process.env.DATABASE_URL!)')
        .replace('CheckpointManager(supabase', 'CheckpointManager(sql')
        .replace('drop/events.json', 'drop/own.json')
        .concat('await sql.end()\n'),
    )
    expect(await project.sh('node tx.ts', env)).toContain('drop/own.json completed')
    const [count] =
      await database.sql`select count(*)::int, count(distinct id)::int as ids from public.events`
    expect(count).toEqual({ count: 5000, ids: 2500 })
  })

  test('its handler loads files with filemark run', async () => {
    await project.write('handler.ts', snippet('ts', '// handler.ts'))
    await mkdir(join(project.dir, 'drop'))
    await project.write(
      'drop/a.csv',
      'id,kind,happened_at\n301,login,2026-11-20T05:00:00Z\n302,heartbeat,2026-11-20T05:00:01Z\n',
    )
    await project.write('drop/b.csv', 'id,kind,happened_at\n303,logout,2026-11-20T05:00:02Z\n')
    await project.sh(snippet('sh', 'filemark run'), env)
    const loaded =
      await database.sql`select id::int, kind from public.events where id between 300 and 399 order by id`
    expect([...loaded]).toEqual([
      { id: 301, kind: 'login' },
      { id: 303, kind: 'logout' },
    ])
  })

  test('its handler leaves out what it filters, and that is counted', async () => {
    const counts = await database.sql`
      select records_total::int, records_filtered::int, records_persisted::int
        from public.list_file_checkpoints() where file_url like '%/drop/a.csv'`
    expect([...counts]).toEqual([{ records_total: 2, records_filtered: 1, records_persisted: 1 }])
  })

  test('its RPC calls load a batch', async () => {
    await project.write('rpc.ts', snippet('ts', '// rpc.ts'))
    expect(await project.sh('node rpc.ts', env)).toContain('completed')
    const loaded =
      await database.sql`select id::int, kind from public.events where id between 100 and 199 order by id`
    expect([...loaded]).toEqual([
      { id: 101, kind: 'login' },
      { id: 102, kind: 'logout' },
    ])
  })

  test('its SQL claims a file, loads it and completes it', async () => {
    const { sql } = await database.connect()
    const results = await sql.unsafe(snippet('sql', 'assert_claim')).simple()
    expect(results.flat()).toContainEqual({ outcome: 'completed' })
    expect(await database.sql`select from public.events where id = 201`).toHaveLength(1)
  })

  test('has no other snippet', () => {
    expect(unused).toEqual([])
  })
})
