import { describe, expect, test } from 'vitest'
import { checksum, readChecksums, readMigrations } from '../scripts/migrations.ts'
import { call, checkpoint, claim, claimNext, complete, fail, only, register } from './behaviour/calls.ts'
import { events, fileRow, historyOf, makeDue } from './behaviour/tables.ts'
import { readCatalog } from './catalog.ts'
import { createDatabase } from './database.ts'
import { runSql } from './servers/install.ts'
import { startPostgres } from './servers/postgres.ts'

const files = readMigrations()
const released = readChecksums()

describe('the migrations', () => {
  test.each(Object.entries(released))('%s is as it was released', (name, sum) => {
    expect(checksum(files.find((file) => file.name === name)?.text ?? '')).toBe(sum)
  })

  test('are released in their order, all but at most one', () => {
    const names = files.map(({ name }) => name)
    expect(names.slice(0, Object.keys(released).length)).toEqual(Object.keys(released))
    expect(names.length).toBeLessThanOrEqual(Object.keys(released).length + 1)
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
})

describe.each(files.slice(1).map((_, index) => index + 1))(
  'a database with the first %i of them',
  (count) => {
    const later = files.slice(count)

    test('goes through the others with claims, retries and checkpoints, and loses nothing', async () => {
      await using database = await createDatabase({ filemark: false })
      await runSql(database.url, files.slice(0, count))
      const { sql } = database
      // A worker that is connected all the time, with what its session remembers of the functions.
      const worker = await database.connect()
      await register(
        sql,
        ...['held', 'kept', 'retry', 'dead', 'done', 'new'].map((file_url) => ({ file_url })),
      )
      const held = await claim(worker.sql, 'held')
      await checkpoint(worker.sql, 'held', held.claim_token, 10, { accumulated_results: { sum: 5 } })
      const kept = await claim(worker.sql, 'kept')
      await checkpoint(worker.sql, 'kept', kept.claim_token, 7)
      await call(worker.sql, 'release_file', { file_url: 'kept', claim_token: kept.claim_token })
      const retry = await claim(worker.sql, 'retry')
      const waiting = await fail(worker.sql, 'retry', retry.claim_token, { retry_after_seconds: 3600 })
      const dead = await claim(worker.sql, 'dead')
      await fail(worker.sql, 'dead', dead.claim_token, { retryable: false })
      const done = await claim(worker.sql, 'done')
      await complete(worker.sql, 'done', done.claim_token, { records_total: 3 })
      const before = await sql`select * from filemark.file_checkpoints order by file_url`
      const audit = await events(sql, 'retry')

      await runSql(database.url, later)

      const after = await sql`select * from filemark.file_checkpoints order by file_url`
      expect(after.map((row, index) => ({ ...row, ...before[index] }))).toEqual([...after])
      expect(await historyOf(sql, 'held')).toEqual([1])
      expect(await events(sql, 'retry')).toEqual(audit)
      // The holder goes on with its token, the others from where they were.
      await checkpoint(worker.sql, 'held', held.claim_token, 20)
      expect(await fileRow(sql, 'held')).toMatchObject({
        checkpoint_seq: '2',
        accumulated_results: { sum: 5 },
      })
      expect(await complete(worker.sql, 'held', held.claim_token)).toBe('completed')
      expect(await complete(worker.sql, 'done', done.claim_token)).toBe('already_completed')
      expect(await claimNext(worker.sql, 2)).toMatchObject([
        { file_url: 'kept', cursor: { next: 7 }, attempts: 1, claim_token: '2' },
        { file_url: 'new', cursor: null, attempts: 1, claim_token: '1' },
      ])
      expect((await fileRow(sql, 'retry')).available_at).toEqual(waiting.available_at)
      await makeDue(sql, 'retry')
      expect(await claim(worker.sql, 'retry')).toMatchObject({ attempts: 2, claim_token: '2' })
      await call(sql, 'requeue_file', { file_url: 'dead', reason: 'mended' })
      expect(await claim(worker.sql, 'dead')).toMatchObject({ attempts: 1, claim_token: '2' })
    })

    test('is left as it is where a foreign function has one of our names', async () => {
      await using database = await createDatabase({ filemark: false })
      await runSql(database.url, files.slice(0, count))
      await database.sql`create function public.claim_file(p_name int) returns int language sql return 1`
      const before = await readCatalog(database.sql)
      const [next] = later
      const refused = await runSql(database.url, [only([next].filter((file) => file !== undefined))]).catch(
        (error: Error) => error.cause,
      )
      expect(refused).toMatchObject({
        code: '42723',
        message: expect.stringMatching(/schema public already has (public\.)?claim_file\(integer\)/),
        hint: expect.stringContaining('set schema legacy'),
      })
      expect(await readCatalog(database.sql)).toEqual(before)
      await database.sql`drop function public.claim_file(int)`
      await runSql(database.url, later)
    })
  },
)

test('a later migration says what is missing on a database without the first', async () => {
  await using database = await createDatabase({ filemark: false })
  for (const file of files.slice(1)) {
    const refused = await runSql(database.url, [file]).catch((error: Error) => error.cause)
    expect(refused).toMatchObject({ code: '42P01', hint: expect.stringContaining('Apply 2026') })
  }
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
