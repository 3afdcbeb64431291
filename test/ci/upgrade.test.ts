import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { Migration } from '../../scripts/migrations.ts'
import { installMigrations } from '../../sdk/cli/init.ts'
import { call, checkpoint, claim, complete, only } from '../behaviour/calls.ts'
import { fileRow } from '../behaviour/tables.ts'
import { readCatalog } from '../catalog.ts'
import { createDatabase } from '../database.ts'
import { runSql } from '../servers/install.ts'
import { until, untilLocked } from '../wait.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** A copy of this project whose sql/ the tests change, everything in it released as version 9.0.0. */
let project: string
let released: string[]
beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), 'filemark-upgrade-'))
  for (const part of ['package.json', 'scripts', 'sql', 'supabase', 'test/servers', 'test/wait.ts']) {
    await cp(root + part, join(project, part), { recursive: true })
  }
  await symlink(`${root}node_modules`, join(project, 'node_modules'))
  await npmRun('release:migration')
  released = await migrationNames()
  await edit('package.json', /"version": "[^"]+"/, '"version": "9.0.0"')
})
afterAll(() => rm(project, { recursive: true, force: true }))

async function npmRun(script: string): Promise<string> {
  const tools = process.env.FILEMARK_CI_TOOLS ?? `${root}.cache/ci-tools`
  const { stdout } = await promisify(execFile)('npm', ['run', '--silent', script], {
    cwd: project,
    env: { ...process.env, FILEMARK_CI_TOOLS: tools },
  })
  return stdout
}

async function edit(file: string, text: string | RegExp, replacement: string): Promise<void> {
  const path = join(project, file)
  const before = await readFile(path, 'utf8')
  const after = before.replace(text, () => replacement)
  expect(after).not.toBe(before)
  await writeFile(path, after)
}

async function migrationNames(): Promise<string[]> {
  return (await readdir(join(project, 'supabase/migrations'))).sort()
}

async function migrations(names: string[]): Promise<Migration[]> {
  return await Promise.all(
    names.map(async (name) => ({
      name,
      text: await readFile(join(project, 'supabase/migrations', name), 'utf8'),
    })),
  )
}

test('there is nothing to write while sql/ is what was released', async () => {
  expect(await npmRun('build:migration')).toMatch(/is what the released migrations make/)
  expect(await migrationNames()).toEqual(released)
})

describe('a change of tables, functions, rights and comments in sql/', () => {
  let name: string
  beforeAll(async () => {
    // A column with its data, a function that answers more, one with another parameter, one that is new, one that is gone.
    // The new column stands last: there it is in an upgraded table too.
    await edit(
      'sql/20_tables.sql',
      '  constraint pipeline_has_a_name',
      '  team text,\n  constraint pipeline_has_a_name',
    )
    await edit(
      'sql/20_tables.sql',
      'create table filemark.checkpoint_history (',
      'create table filemark.notes (pipeline text primary key);\nalter table filemark.notes enable row level security;\n' +
        'create table filemark.checkpoint_history (',
    )
    await edit(
      'sql/40_pipelines.sql',
      '  created_at timestamptz\n)',
      '  created_at timestamptz,\n  team text\n)',
    )
    await edit(
      'sql/70_checkpoints.sql',
      /create function public\.extend_claim\([\s\S]*?\)\nreturns/,
      `create function public.extend_claim(
  p_file_url text, p_claim_token bigint, p_pipeline text = 'default', p_note text = null)\nreturns`,
    )
    for (const file of ['70_checkpoints.sql', '97_plans.sql', '99_grants.sql']) {
      await edit(`sql/${file}`, 'extend_claim(text, bigint, text)', 'extend_claim(text, bigint, text, text)')
    }
    await edit('sql/99_grants.sql', "'requeue_file', ", "'requeue_file', 'note_file', ")
    await writeFile(
      join(project, 'sql/96_notes.sql'),
      `create function public.note_file(p_file_url text) returns text language sql
        set search_path = '' as $$ select p_file_url $$;
       comment on function public.note_file(text) is 'Notes a file.';`,
    )
    await mkdir(join(project, 'sql/upgrade'), { recursive: true })
    await writeFile(
      join(project, 'sql/upgrade/9.0.0.sql'),
      `update filemark.pipelines set team = 'all' where true;`,
    )
    await npmRun('build:migration')
    const added = (await migrationNames()).filter((migration) => !released.includes(migration))
    name = only(added)
  }, 300_000)

  test('is one new migration, named for its time and its version', () => {
    expect(name).toMatch(/^\d{14}_filemark_9_0_0\.sql$/)
    expect(name > (released.at(-1) ?? '')).toBe(true)
  })

  test('is written again to the same file, the same text', async () => {
    const before = await migrations([name])
    await npmRun('build:migration')
    expect(await migrationNames()).toEqual([...released, name])
    expect(await migrations([name])).toEqual(before)
  })

  test.each(['plain', 'old', 'new'] as const)('makes the database that sql/ makes (%s)', async (kind) => {
    const supabase = kind === 'plain' ? (false as const) : kind
    await using upgraded = await createDatabase({ filemark: false, supabase })
    await runSql(upgraded.url, await migrations([...released, name]))
    await using built = await createDatabase({ filemark: false, supabase })
    const chapters = (await readdir(join(project, 'sql'))).filter((file) => file.endsWith('.sql')).sort()
    await runSql(
      built.url,
      await Promise.all(
        chapters.map(async (file) => ({
          name: file,
          text: await readFile(join(project, 'sql', file), 'utf8'),
        })),
      ),
    )
    expect(await readCatalog(upgraded.sql)).toEqual(await readCatalog(built.sql))
  })

  test('waits for a worker in the middle of its work, who loses nothing, and lets the others wait', async () => {
    await using database = await createDatabase({ filemark: false })
    await runSql(database.url, await migrations(released))
    const [one, two] = [await database.connect(), await database.connect()]
    const first = await claim(one.sql, 'first')
    const second = await claim(two.sql, 'second')
    await one.sql.unsafe('begin')
    await checkpoint(one.sql, 'first', first.claim_token, 10)

    // In one transaction, as supabase db push and dbmate apply a file.
    const upgrading = runSql(database.url, await migrations([name]))
    await until(
      async () => {
        const blocked = await database.sql`
          select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
        return blocked.length === 1
      },
      { what: 'the migration at the lock of the worker' },
    )
    const saving = checkpoint(two.sql, 'second', second.claim_token, 5)
    await untilLocked(database.sql, two.pid)
    await checkpoint(one.sql, 'first', first.claim_token, 20)
    await one.sql.unsafe('commit')
    await upgrading
    await saving

    expect(await fileRow(database.sql, 'first')).toMatchObject({ items_processed: '20', checkpoint_seq: '2' })
    expect(await fileRow(database.sql, 'second')).toMatchObject({ items_processed: '5' })
    expect(await complete(one.sql, 'first', first.claim_token)).toBe('completed')
    expect(await complete(two.sql, 'second', second.claim_token)).toBe('completed')
    expect(only(await database.sql`select team from filemark.pipelines`)).toEqual({ team: 'all' })
    expect(only(await call(one.sql, 'note_file', { file_url: 'x' }))).toEqual({ note_file: 'x' })
  })

  test('stops where somebody else has a function of a new name', async () => {
    await using database = await createDatabase({ filemark: false })
    await runSql(database.url, await migrations(released))
    await database.sql`create function public.note_file(p_file_url text) returns int language sql return 1`
    const before = await readCatalog(database.sql)
    const refused = await runSql(database.url, await migrations([name])).catch((error: Error) => error.cause)
    expect(refused).toMatchObject({ code: '42723', message: expect.stringContaining('note_file(text)') })
    expect(await readCatalog(database.sql)).toEqual(before)
  })

  test('is the only one that init adds to a project that has the others', async () => {
    const target = await mkdtemp(join(tmpdir(), 'filemark-init-'))
    const source = join(project, 'supabase/migrations')
    const earlier = await mkdtemp(join(tmpdir(), 'filemark-earlier-'))
    for (const migration of released) await cp(join(source, migration), join(earlier, migration))
    const now = new Date('2026-12-01T00:00:00Z')
    const first = await installMigrations(target, { source: earlier, now })
    expect(first.written).toHaveLength(released.length)
    const { written, present } = await installMigrations(target, { source, now })
    expect(present).toEqual(first.written)
    expect(written).toEqual([expect.stringMatching(new RegExp(`^\\d{14}_${name}$`))])
    expect(only(written) > (first.written.at(-1) ?? '')).toBe(true)
    await Promise.all([target, earlier].map((directory) => rm(directory, { recursive: true })))
  })
})

describe('a released migration', () => {
  beforeEach(async () => {
    await cp(`${root}supabase/migrations`, join(project, 'supabase/migrations'), { recursive: true })
  })

  test('that was changed is not released again', async () => {
    await edit(`supabase/migrations/${released[0]}`, 'notify pgrst', '-- changed\nnotify pgrst')
    await expect(npmRun('release:migration')).rejects.toThrow(
      /has been released: it may neither change nor go/,
    )
  })

  test('that is gone is missed', async () => {
    await rm(join(project, 'supabase/migrations', released[0] ?? ''))
    await expect(npmRun('release:migration')).rejects.toThrow(/has been released/)
  })
})
