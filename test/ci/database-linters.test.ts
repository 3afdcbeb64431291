import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { sqlDirectory, sqlFiles } from '../servers/install.ts'
import { debianBinDir, type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { runTool } from './tool.ts'

// Debian's server: plpgsql_check is a package there (postgresql-15-plpgsql-check).
let server: PostgresServer
beforeAll(async () => {
  server = await startPostgres({ binDir: debianBinDir() })
})
afterAll(() => server[Symbol.asyncDispose]())

const unusedVariable = `
create function filemark.added() returns int language plpgsql set search_path = '' as $$
declare
  v_unused int;
begin
  return 1;
end
$$;`

describe('supabase db lint', () => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await createCheckedDatabase()
  })
  afterAll(() => database.drop())

  const lint = () =>
    runTool('supabase', [
      ...['db', 'lint', '-s', 'public,filemark', '--level', 'warning', '--fail-on', 'warning'],
      `--remote=${database.url}`,
    ])

  test('finds nothing in our functions', async () => {
    expect(await lint()).toContain('No schema errors found')
  })

  test('finds a function with a warning', async () => {
    await database.sql.unsafe(unusedVariable)
    await expect(lint()).rejects.toThrow('unused variable \\"v_unused\\"')
  })
})

describe.each(['old', 'new'] as const)('supabase db advisors with the %s default grants', (supabase) => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await createDatabase({ on: server.url(), supabase })
    // What the advisors ask a Supabase project for.
    await database.sql.unsafe(`
      create schema auth;
      create schema storage;
      alter database ${database.name} set pgrst.db_schemas = 'public';
    `)
  })
  afterAll(() => database.drop())

  /** What they advise, as `name: detail`. */
  async function advise(): Promise<string[]> {
    const output = await runTool('supabase', [
      ...['db', 'advisors', '--level', 'info', '--output-format', 'json'],
      `--remote=${database.url}`,
    ])
    const { results } = JSON.parse(output.slice(output.indexOf('{'), output.lastIndexOf('}') + 1)) as {
      results: { name: string; detail: string }[]
    }
    return results.map(({ name, detail }) => `${name}: ${detail}`)
  }

  test('advise nothing but to use the indexes of the empty tables', async () => {
    const advice = await advise()
    expect(advice.filter((line) => !line.startsWith('unused_index: '))).toEqual([])
    expect(advice).not.toEqual([])
  })

  test('find a table without row level security and a function that leaves its search_path open', async () => {
    await database.sql.unsafe(`
      create table public.bare (id int primary key);
      grant select on public.bare to anon;
      create function filemark.loose() returns int language sql return 1;
    `)
    expect(await advise()).toEqual(
      expect.arrayContaining([
        expect.stringMatching(/^rls_disabled_in_public: .*public\.bare/),
        expect.stringMatching(/^function_search_path_mutable: .*filemark\.loose/),
      ]),
    )
  })
})

// In the bodies of functions that return a table it finds syntax errors only (0.25.5 asks plpgsql_check for a function
// with the returned columns among its arguments); those bodies are `supabase db lint`'s.
describe('postgres-language-server', () => {
  let database: TestDatabase
  let directory: string
  beforeAll(async () => {
    database = await createCheckedDatabase()
    directory = await mkdtemp(join(tmpdir(), 'filemark-sql-'))
  })
  afterAll(async () => {
    await database.drop()
    await rm(directory, { recursive: true })
  })

  /** How many files were checked, and what was found in them. */
  async function check(path: string): Promise<{ files: number; found: string[] }> {
    const output = await runTool(
      'postgres-language-server',
      [
        ...['check', path, `--config-path=${join(import.meta.dirname, '../..')}`],
        ...['--reporter=json', '--max-diagnostics=none'],
      ],
      { DATABASE_URL: database.url },
    ).catch((error: Error) => error.message)
    const [json = ''] = /^\{"summary".*$/m.exec(output) ?? []
    if (json === '') throw new Error(output)
    const { summary, diagnostics } = JSON.parse(json) as {
      summary: { changed: number; unchanged: number }
      diagnostics: { category: string; message: string }[]
    }
    return {
      files: summary.changed + summary.unchanged,
      found: diagnostics.map(({ category, message }) => `${category}: ${message}`),
    }
  }

  test('finds nothing in sql/, in no category and at no level', async () => {
    const { files, found } = await check(sqlDirectory())
    expect(found).toEqual([])
    expect(files).toBeGreaterThanOrEqual(sqlFiles().length)
  })

  test.each([
    ['an error of syntax', 'selct 1;', /^syntax: /],
    [
      'an error of syntax in a function',
      `create function filemark.added() returns table (n int) language plpgsql as $$
       begin
         if true the return; end if;
       end
       $$;`,
      /^syntax: /,
    ],
    ['an unknown column', 'select p.no_such from filemark.pipelines p;', /^typecheck: .*no_such/],
    [
      'an unknown column in a function',
      `create function filemark.added() returns int language plpgsql set search_path = '' as $$
       begin
         return (select p.no_such from filemark.pipelines p);
       end
       $$;`,
      /^plpgsql_check: .*no_such/,
    ],
    ['a variable that nobody uses', unusedVariable, /^plpgsql_check: .*v_unused/],
    ['a column type that is better avoided', 'create table filemark.t (c timestamp);', /preferTimestamptz/],
    ['a delete of everything', 'delete from filemark.file_events;', /banDeleteWithoutWhere/],
  ])('finds %s', async (_what, text, expected) => {
    const file = join(directory, 'added.sql')
    await writeFile(file, text)
    expect((await check(file)).found).toContainEqual(expect.stringMatching(expected))
  })
})

/** filemark, and the extension that reads plpgsql. */
async function createCheckedDatabase(): Promise<TestDatabase> {
  const database = await createDatabase({ on: server.url() })
  await database.sql`create extension plpgsql_check`
  return database
}
