import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  configure,
  fail,
  only,
  register,
  release,
} from '../behaviour/calls.ts'
import { empty, expireLease } from '../behaviour/tables.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { startPostgres } from '../servers/postgres.ts'
import { age, ago, completeSome, defaultLimits, limits, situations } from './situations.ts'

let db: TestDatabase
let other: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  other = await db.connect()
})
beforeEach(async () => {
  await empty(db.sql)
  await limits(db.sql, defaultLimits)
})
afterEach(() => other.sql.unsafe('rollback'))
afterAll(() => db.drop())

interface Alert {
  alert: string
  severity: string
  pipeline: string
  file_url: string | null
  value: number
  threshold: number
  since: Date
  message: string
  hint: string
}

async function alerts(): Promise<Alert[]> {
  const rows = await db.sql<Alert[]>`select * from filemark.alerts order by alert, pipeline, file_url`
  expect(only(await db.sql`select filemark.alert_count()::int as count`).count).toBe(rows.length)
  return [...rows]
}

async function names(): Promise<string[]> {
  return (await alerts()).map(({ alert }) => alert)
}

describe.each(Object.entries(situations))('%s', (name, situation) => {
  test('is the one alert while that is wrong, says what it is about, and goes when it is put right', async () => {
    expect(await alerts()).toEqual([])
    await situation.arise(db.sql, other)
    const alert = only(await alerts())
    expect(alert).toMatchObject({
      alert: name,
      severity: situation.severity,
      pipeline: name === 'held_snapshot' ? '' : 'default',
      file_url: situation.file ?? null,
    })
    for (const part of situation.names) expect(alert.message).toContain(part)
    expect(alert.since.getTime()).toBeLessThanOrEqual(Date.now())
    expect(typeof alert.value).toBe('number')
    expect(typeof alert.threshold).toBe('number')
    await situation.resolve(db.sql, other)
    expect(await alerts()).toEqual([])
  })

  test('has a hint whose statements run as they are', async () => {
    await situation.arise(db.sql, other)
    const { hint } = only(await alerts())
    const statements = hint.match(/\bselect [^;]+;/g) ?? []
    expect(statements.length).toBeGreaterThan(0)
    for (const statement of statements) {
      // What ends another's session takes more rights than an operator has.
      const session = await db.connect(statement.includes('pg_terminate_backend') ? 'postgres' : undefined)
      if (!statement.includes('pg_terminate_backend')) await session.sql`set role filemark_operator`
      await session.sql.unsafe(statement)
      await session.sql.end()
    }
    if (name === 'held_snapshot') other = await db.connect()
  })
})

describe('nothing is wrong', () => {
  test('when nothing was ever done, and when a pipeline was only configured', async () => {
    expect(await alerts()).toEqual([])
    await configure(db.sql, { expect_file_every_seconds: 3600, max_backlog_age_seconds: 3600 })
    expect(await alerts()).toEqual([])
  })

  test('while files are registered, claimed, saved, failed, released, retried, completed and skipped', async () => {
    await register(db.sql, ...['a', 'b', 'c', 'd', 'e'].map((url) => ({ file_url: url })))
    await claimNext(db.sql, 5)
    for (const url of ['a', 'b', 'c']) await checkpoint(db.sql, url, '1', 10, { accumulated_results: [1] })
    await complete(db.sql, 'a', '1')
    await fail(db.sql, 'b', '1')
    await release(db.sql, 'c', '1')
    await call(db.sql, 'skip_file', { file_url: 'c' })
    expect(await alerts()).toEqual([])
    await call(db.sql, 'filemark.run_maintenance')
    expect(await alerts()).toEqual([])
  })

  test('with a claim that runs for four minutes and has saved nothing yet', async () => {
    await claim(db.sql, 'a')
    await age(db.sql, 'a', 240)
    expect(await alerts()).toEqual([])
  })

  test('with a claim that saves often, however few checkpoints its pipeline keeps', async () => {
    await configure(db.sql, { history_limit: 1 })
    await claim(db.sql, 'a')
    for (let items = 1; items <= 20; items++) await checkpoint(db.sql, 'a', '1', items)
    await age(db.sql, 'a', 500)
    await call(db.sql, 'filemark.truncate_checkpoint_history')
    expect(await names()).toEqual(['infrequent_checkpoints'])
    await checkpoint(db.sql, 'a', '1', 21)
    await call(db.sql, 'filemark.truncate_checkpoint_history')
    expect(await alerts()).toEqual([])
  })

  test('with three files that all failed: a ratio of few says nothing', async () => {
    for (const url of ['a', 'b', 'c']) {
      await claim(db.sql, url)
      await fail(db.sql, url, '1')
    }
    expect(await alerts()).toEqual([])
  })

  test('with failures of three hours ago', async () => {
    await situations.failure_ratio?.arise(db.sql, other)
    await call(db.sql, 'filemark.run_maintenance')
    expect(await names()).toEqual(['failure_ratio'])
    await db.sql`update filemark.activity set hour = hour - interval '3 hours' where hour > 'epoch'`
    expect(await alerts()).toEqual([])
  })

  test('with files that wait in a paused pipeline, or for a time to come', async () => {
    await configure(db.sql, { max_backlog_age_seconds: 60, paused: true })
    await register(db.sql, { file_url: 'old', available_at: ago(90) })
    expect(await alerts()).toEqual([])
    await configure(db.sql, { paused: false })
    expect(await names()).toEqual(['backlog_age'])
    await db.sql`update filemark.file_checkpoints set available_at = now() + interval '1 hour'`
    expect(await alerts()).toEqual([])
  })

  test('with a claim that was lost just now where maintenance runs: it will be taken back', async () => {
    await claim(db.sql, 'a')
    await call(db.sql, 'filemark.run_maintenance')
    await expireLease(db.sql)
    expect(await alerts()).toEqual([])
    await db.sql`update filemark.maintenance_runs set finished_at = now() - interval '3 minutes'`
    expect(await names()).toEqual(['expired_claims'])
    // Maintenance runs, but does not do it.
    await db.sql`update filemark.maintenance_runs set finished_at = now()`
    await db.sql`
      update filemark.file_checkpoints
         set lease_expires_at = now() - interval '3 minutes', lease_check_at = now() - interval '3 minutes'`
    expect(await names()).toEqual(['expired_claims'])
  })

  test('with a transaction that is open for long and keeps nothing of ours from being removed', async () => {
    await limits(db.sql, { held_snapshot_seconds: 0 })
    await other.sql`begin isolation level repeatable read`
    await other.sql`select from filemark.pipelines`
    expect(await alerts()).toEqual([])
  })

  test('when dead letters were looked into, though they are dead letters still', async () => {
    await situations.dead_letters?.arise(db.sql, other)
    await call(db.sql, 'filemark.resolve_dead_letter', {
      file_url: 'bad.csv',
      resolution: 'permanently_failed',
    })
    expect(await alerts()).toEqual([])
  })
})

describe('maintenance is overdue', () => {
  const hour = "interval '61 minutes'"
  test.each([
    [
      'a history that is too long',
      async () => {
        await claim(db.sql, 'a')
        for (let items = 1; items <= 11; items++) await checkpoint(db.sql, 'a', '1', items)
      },
      `update filemark.long_histories set listed_at = listed_at - ${hour}`,
    ],
    [
      'a checkpoint that is to be cleared',
      async () => {
        await claim(db.sql, 'a')
        await checkpoint(db.sql, 'a', '1', 1)
        await complete(db.sql, 'a', '1')
      },
      `update filemark.file_checkpoints set kept_since = kept_since - interval '7 days' - ${hour}`,
    ],
    [
      'a file that is to be purged',
      async () => {
        await configure(db.sql, { keep_files_days: 30 })
        await completeSome(db.sql, 'a', 1)
      },
      `update filemark.file_checkpoints set completed_at = completed_at - interval '30 days' - ${hour}`,
    ],
  ])('when %s waits for an hour', async (_what, work, wait) => {
    await work()
    await call(db.sql, 'filemark.add_up_tallies', { pipeline: 'default', limit: 1000 })
    expect(await alerts()).toEqual([])
    await db.sql.unsafe(wait)
    const alert = only(await alerts())
    expect(alert).toMatchObject({ alert: 'maintenance_overdue', threshold: 3600 })
    expect(alert.value).toBeGreaterThan(3600)
    await call(db.sql, 'filemark.run_maintenance')
    expect(await alerts()).toEqual([])
  })
})

describe('who keeps dead rows from being removed', () => {
  const held = (sql: Sql) => sql`select kind, name, held_by, since from filemark.held_snapshots()`

  test('is a prepared transaction that was forgotten, too', async () => {
    await using server = await startPostgres({ settings: { max_prepared_transactions: 2 } })
    await using database = await createDatabase({ on: server.url() })
    const { sql } = database
    await limits(sql, { held_snapshot_seconds: 0, held_dead_rows: 0 })
    const session = await database.connect()
    await session.sql`begin`
    await register(session.sql, { file_url: 'a' })
    await session.sql`prepare transaction 'it''s forgotten'`
    expect(await held(sql)).toMatchObject([
      { kind: 'prepared transaction', name: `it's forgotten`, held_by: 'postgres' },
    ])
    const { hint } = only(await sql<Alert[]>`select * from filemark.alerts`)
    await sql.unsafe(hint)
    expect(await held(sql)).toEqual([])
  })

  test('is not known to an installer who may not see the sessions of others, and that is no error', async () => {
    await using server = await startPostgres()
    await using database = await createDatabase({ on: server.url() })
    const { sql } = database
    const session = await database.connect()
    await session.sql`begin isolation level repeatable read`
    await session.sql`select from filemark.pipelines`
    expect(await held(sql)).toMatchObject([{ kind: 'session', name: String(session.pid) }])
    await sql.unsafe(`
      create role poor_installer;
      grant usage, create on schema filemark to poor_installer;
      alter function filemark.held_snapshots() owner to poor_installer;
    `)
    expect(await held(sql)).toEqual([])
    expect(await sql`select filemark.alert_count()`).toEqual([{ alert_count: '0' }])
  })

  test('is nobody who has a transaction open in another database', async () => {
    await using database = await createDatabase()
    const session = await database.connect()
    await session.sql`begin isolation level repeatable read`
    await session.sql`select from filemark.pipelines`
    expect(await held(database.sql)).toHaveLength(1)
    expect(await held(db.sql)).toEqual([])
  })
})

test('the oldest file is found however many priorities there are', async () => {
  await configure(db.sql, { max_backlog_age_seconds: 60 })
  const files = Array.from({ length: 150 }, (_, index) => ({ file_url: `f${index}`, priority: index }))
  await register(
    db.sql,
    ...files.map((file) => ({ ...file, available_at: ago(file.priority === 0 ? 90 : 30) })),
  )
  expect(await names()).toEqual(['backlog_age'])
  await claim(db.sql, 'f0')
  expect(await names()).toEqual([])
})

test('each pipeline has alerts of its own, by its own settings', async () => {
  for (const pipeline of ['one', 'two']) {
    await configure(db.sql, { max_backlog_age_seconds: pipeline === 'one' ? 60 : 600 }, pipeline)
    await call(db.sql, 'register_files', {
      files: [{ file_url: 'a', file_type: 'csv', file_timestamp: ago(0), available_at: ago(90) }],
      pipeline,
    })
  }
  expect(await alerts()).toMatchObject([{ alert: 'backlog_age', pipeline: 'one', threshold: 60 }])
})

test('of one kind, 20 files of a pipeline are shown, and the rest when these are put right', async () => {
  await configure(db.sql, { stale_after_seconds: 5 })
  await register(
    db.sql,
    ...Array.from({ length: 25 }, (_, index) => ({ file_url: `f${String(index).padStart(2, '0')}` })),
  )
  await claimNext(db.sql, 25)
  await db.sql`update filemark.file_checkpoints set started_at = started_at - interval '6 seconds'`
  const shown = (await alerts()).map(({ file_url }) => file_url)
  expect(shown).toHaveLength(20)
  for (const url of shown) await checkpoint(db.sql, url ?? '', '1', 1)
  expect((await alerts()).map(({ file_url }) => file_url)).toEqual(['f20', 'f21', 'f22', 'f23', 'f24'])
})

test('names with quotes are quoted in the hint', async () => {
  const url = `it's "a" %s file\\.csv`
  await configure(db.sql, { stale_after_seconds: 5 })
  await claim(db.sql, url)
  await age(db.sql, url, 7)
  const { hint } = only(await alerts())
  const [look = ''] = hint.match(/select [^;]+;/) ?? []
  expect(await db.sql.unsafe(look)).toMatchObject([{ file_url: url }])
})
