import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { migrationFile } from '../scripts/build-migration.ts'
import { readCatalog } from './catalog.ts'
import { createDatabase } from './database.ts'
import { runSql } from './servers/install.ts'
import { startPostgres } from './servers/postgres.ts'

const migrations = fileURLToPath(new URL('../supabase/migrations/', import.meta.url))
const files = readdirSync(migrations)
  .sort()
  .map((name) => ({ name, text: readFileSync(migrations + name, 'utf8') }))

describe('the migrations', () => {
  test('are what sql/ says', () => {
    const script = fileURLToPath(new URL('../scripts/build-migration.ts', import.meta.url))
    execFileSync(process.execPath, [script, '--check'])
  })

  test.each(['plain', 'old', 'new'] as const)('make the same database as sql/ (%s)', async (kind) => {
    // A server of its own: what is granted depends on which roles exist in the cluster.
    await using server = await startPostgres()
    const place = { on: server.url(), supabase: kind === 'plain' ? (false as const) : kind }
    await using fromMigrations = await createDatabase({ ...place, filemark: false })
    const empty = await readCatalog(fromMigrations.sql)
    await runSql(fromMigrations.url, files)
    const catalog = await readCatalog(fromMigrations.sql)
    await using fromSql = await createDatabase(place)
    expect(catalog).toEqual(await readCatalog(fromSql.sql))
    expect(Object.keys(catalog).length).toBeGreaterThan(Object.keys(empty).length + 50)
  })

  test.each(files)('$name has the form that supabase db push and dbmate both accept', ({ name, text }) => {
    expect(name).toMatch(/^\d{14}_\w+\.sql$/)
    const lines = text.split('\n')
    const up = lines.indexOf('-- migrate:up')
    expect(lines.slice(0, up).every((line) => line === '' || line.startsWith('-- '))).toBe(true)
    expect(lines.slice(-4)).toEqual(["notify pgrst, 'reload schema';", '', '-- migrate:down', ''])
    expect(lines.filter((line) => line.startsWith('-- migrate:'))).toHaveLength(2)
    expect(text).not.toMatch(/^\s*(begin|commit|rollback)\s*;|\bindex concurrently\b|^\\/im)
  })

  test('that the script writes is one of them', () => {
    expect(files.map(({ name }) => migrations + name)).toContain(migrationFile)
  })
})

describe('the catalog comparison', () => {
  test.each([
    ['a column default', 'alter table filemark.pipelines alter column paused set default true'],
    ['a grant', 'grant select on filemark.pipelines to pg_monitor'],
    ['a function body', `create function filemark.added() returns int language sql return 1`],
    ['an index', 'create index on filemark.pipelines (paused)'],
    ['a comment', `comment on table filemark.pipelines is 'changed'`],
    ['a storage parameter', 'alter table filemark.file_checkpoints set (fillfactor = 11)'],
    ['row level security', 'alter table filemark.pipelines disable row level security'],
  ])('notices %s', async (_what, change) => {
    await using database = await createDatabase()
    const before = await readCatalog(database.sql)
    await database.sql.unsafe(change)
    expect(await readCatalog(database.sql)).not.toEqual(before)
  })
})
