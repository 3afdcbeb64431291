import type { Sql } from 'postgres'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  configure,
  fail,
  only,
  refusal,
  register,
  release,
} from '../behaviour/calls.ts'
import { empty, expireLease } from '../behaviour/tables.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { age, ago, completeSome } from './situations.ts'

let db: TestDatabase
/** Reads as a monitor. */
let monitor: Sql

beforeAll(async () => {
  db = await createDatabase({ supabase: 'old' })
  monitor = (await db.connect()).sql
  await monitor`set role filemark_monitor`
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

type Row = Record<string, unknown>

async function view(name: string, where = 'true'): Promise<Row[]> {
  return [...(await monitor.unsafe<Row[]>(`select * from filemark.${name} where ${where}`))]
}

async function file(url: string): Promise<Row> {
  return only(await view('files', `pipeline = 'default' and file_url = '${url}'`))
}

/** Moves the end of a lease to so many seconds from now. */
async function leaseLeft(url: string, seconds: number): Promise<void> {
  await db.sql`
    update filemark.file_checkpoints set lease_expires_at = clock_timestamp() + ${seconds} * interval '1 second'
     where file_url = ${url}`
}

const about = (value: number, spread = 2) => ({
  asymmetricMatch: (actual: unknown) => typeof actual === 'number' && Math.abs(actual - value) <= spread,
  toString: () => `about ${value}`,
})

describe('files', () => {
  test('says of each status for how long it lasts', async () => {
    await register(
      db.sql,
      { file_url: 'due', available_at: ago(40) },
      { file_url: 'later', available_at: ago(-40) },
      { file_url: 'dropped' },
    )
    await call(db.sql, 'skip_file', { file_url: 'dropped' })
    await claim(db.sql, 'busy')
    await age(db.sql, 'busy', 30)
    await completeSome(db.sql, 'done', 1)
    await claim(db.sql, 'retried')
    await fail(db.sql, 'retried', '1', { retry_after_seconds: 500 })
    await claim(db.sql, 'dead')
    await fail(db.sql, 'dead', '1', { retryable: false, error_message: 'no such column' })
    await db.sql`update filemark.file_events set occurred_at = occurred_at - interval '20 seconds'`
    await db.sql`
      update filemark.file_checkpoints set completed_at = completed_at - interval '10 seconds'
       where completed_at is not null`

    expect(await view('files')).toHaveLength(7)
    expect(await file('due')).toMatchObject({
      status: 'pending',
      age_seconds: about(40),
      due_in_seconds: null,
    })
    expect(await file('later')).toMatchObject({
      status: 'pending',
      age_seconds: about(0),
      due_in_seconds: about(40),
    })
    expect(await file('busy')).toMatchObject({ status: 'processing', age_seconds: about(30), holder: 'w1' })
    expect(await file('done-1.csv')).toMatchObject({
      status: 'completed',
      age_seconds: about(10),
      holder: null,
    })
    expect(await file('retried')).toMatchObject({
      status: 'failed',
      due_in_seconds: about(500),
      last_error: 'it broke',
      attempts: 1,
      max_attempts: 3,
    })
    expect(await file('dead')).toMatchObject({
      status: 'dead_letter',
      age_seconds: about(20),
      last_error: 'no such column',
    })
    expect(await file('dropped')).toMatchObject({ status: 'skipped', age_seconds: about(20) })
    for (const status of ['pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped']) {
      const found = (await view('files', `status = '${status}'`)).map((row) => row.status)
      expect(new Set(found)).toEqual(new Set([status]))
    }
  })

  test('calls a lease healthy, from 80 % of it on a warning, and expired when it is over', async () => {
    await configure(db.sql, { lease_seconds: 100 })
    await claim(db.sql, 'a')
    expect(await file('a')).toMatchObject({ lease_state: 'healthy', lease_left_seconds: about(100) })
    await leaseLeft('a', 22)
    expect(await file('a')).toMatchObject({ lease_state: 'healthy' })
    await leaseLeft('a', 20)
    expect(await file('a')).toMatchObject({ lease_state: 'warning', lease_left_seconds: about(20) })
    await expireLease(db.sql, 'a')
    expect(await file('a')).toMatchObject({ lease_state: 'expired', lease_left_seconds: about(-1) })
    await release(db.sql, 'a', '1')
    expect(await file('a')).toMatchObject({ lease_state: null, lease_left_seconds: null, holder: null })
  })

  // Of each test: what is so many seconds apart is exactly that, however slow the machine.
  let beginning: number
  beforeEach(() => {
    beginning = Date.now()
  })
  const justBefore = (seconds: number) => new Date(beginning - seconds * 1000).toISOString()

  /** Saves so many items, as if at so many seconds before the test began. */
  async function save(items: number, token: string, secondsAgo: number): Promise<void> {
    await checkpoint(db.sql, 'a', token, items, { items_total: 1000 })
    const at = justBefore(secondsAgo)
    await db.sql`update filemark.file_checkpoints set checkpointed_at = ${at}`
    await db.sql`
      update filemark.checkpoint_history set saved_at = ${at}
       where checkpoint_seq = (select checkpoint_seq from filemark.file_checkpoints)`
  }

  async function startedAt(secondsAgo: number): Promise<void> {
    await db.sql`update filemark.file_checkpoints set started_at = ${justBefore(secondsAgo)}`
  }

  test('measures the pace from the beginning of the file, and from it the time that is left', async () => {
    await claim(db.sql, 'a')
    expect(await file('a')).toMatchObject({ items_per_second: null, estimated_seconds_left: null })
    await startedAt(50)
    await save(100, '1', 40)
    await save(400, '1', 10)
    expect(await file('a')).toMatchObject({
      items_processed: '400',
      items_total: '1000',
      progress_ratio: 0.4,
      items_per_second: about(10, 0.01),
      estimated_seconds_left: about(60, 0.1),
      checkpoint_age_seconds: about(10),
    })
  })

  test('measures the pace of the running claim, not of those before it', async () => {
    await claim(db.sql, 'a')
    await startedAt(500)
    await save(900, '1', 400)
    await expireLease(db.sql)
    await claim(db.sql, 'a', { worker_id: 'w2' })
    await startedAt(100)
    expect(await file('a')).toMatchObject({ holder: 'w2', items_per_second: null })
    await save(920, '2', 80)
    expect(await file('a')).toMatchObject({
      items_per_second: about(1, 0.01),
      estimated_seconds_left: about(80, 1),
    })
  })

  test('measures the pace over the last ten checkpoints, also when the history was cut', async () => {
    await claim(db.sql, 'a')
    await startedAt(1000)
    await save(1, '1', 900)
    for (let back = 11; back >= 0; back--) await save(1000 - back * 50, '1', back * 10)
    expect(await file('a')).toMatchObject({ items_per_second: about(5, 0.01) })
    await call(db.sql, 'filemark.truncate_checkpoint_history')
    expect(await file('a')).toMatchObject({ history_length: '10', items_per_second: about(5, 0.01) })
  })

  test('reads nothing but files in progress when asked for those', async () => {
    const plan = await monitor.unsafe(
      `explain (format json) select * from filemark.files where status = 'processing'`,
    )
    const text = JSON.stringify(plan)
    expect(text).toContain('processing')
    for (const other of ['pending', 'completed', 'failed']) expect(text).not.toContain(`'${other}'`)
  })
})

describe('stale_checkpoints', () => {
  test('has who holds files that saved nothing for too long, the longest first', async () => {
    for (const url of ['old', 'older', 'new', 'saved']) await claim(db.sql, url, { worker_id: `w-${url}` })
    await age(db.sql, 'old', 700)
    await age(db.sql, 'older', 900)
    await age(db.sql, 'saved', 900)
    await checkpoint(db.sql, 'saved', '1', 1)
    expect(await view('stale_checkpoints')).toMatchObject([
      { file_url: 'older', holder: 'w-older', checkpoint_age_seconds: about(900), stale_after_seconds: 600 },
      { file_url: 'old', holder: 'w-old', checkpoint_age_seconds: about(700) },
    ])
  })
})

describe('large_histories', () => {
  async function longHistory(url: string, length: number): Promise<void> {
    await claim(db.sql, url)
    for (let items = 1; items <= length; items++) await checkpoint(db.sql, url, '1', items)
  }

  test('has the files with more than 50 checkpoints, the longest first, in progress or waiting for maintenance', async () => {
    await longHistory('fifty', 50)
    await longHistory('more', 51)
    await longHistory('most', 60)
    await complete(db.sql, 'most', '1')
    expect(await view('large_histories')).toMatchObject([
      { file_url: 'most', status: 'completed', history_length: '60', history_limit: 10, max_history: '100' },
      { file_url: 'more', status: 'processing', history_length: '51' },
    ])
    await call(db.sql, 'filemark.truncate_checkpoint_history')
    expect(await view('large_histories')).toEqual([])
  })

  test('has no more than 20', async () => {
    for (let number = 1; number <= 25; number++) await claim(db.sql, `f${String(number).padStart(2, '0')}`)
    await db.sql`
      update filemark.file_checkpoints
         set history_length = 50 + substr(file_url, 2)::int, checkpoint_seq = 100, checkpointed_at = now(), cursor = '1'`
    const rows = await view('large_histories')
    expect(rows.map(({ file_url }) => file_url)).toEqual(
      Array.from({ length: 20 }, (_, index) => `f${String(25 - index).padStart(2, '0')}`),
    )
  })
})

describe('large_results', () => {
  test('has results of more than 100,000 bytes of JSON text, however well they compress, and a readable size', async () => {
    const results = {
      at: 'x'.repeat(100_000 - 2),
      over: 'x'.repeat(100_001 - 2),
      numbers: Array.from({ length: 40_000 }, (_, index) => index),
    }
    for (const [url, value] of Object.entries(results)) {
      await claim(db.sql, url)
      await checkpoint(db.sql, url, '1', 1, { accumulated_results: value })
    }
    expect(await view('large_results')).toMatchObject([
      { file_url: 'numbers', results_bytes: '268890', results_size: '263 kB', max_results_bytes: '1048576' },
      { file_url: 'over', results_bytes: '100001', results_size: '98 kB', holder: 'w1' },
    ])
    await checkpoint(db.sql, 'numbers', '1', 2, { accumulated_results: {} })
    expect((await view('large_results')).map(({ file_url }) => file_url)).toEqual(['over'])
  })

  test('follows the size through everything that changes the results', async () => {
    const bytes = async () => (await file('a')).results_bytes
    await claim(db.sql, 'a', { etag: 'e1' })
    await checkpoint(db.sql, 'a', '1', 1, { accumulated_results: [1, 2] })
    await checkpoint(db.sql, 'a', '1', 2, { accumulated_results: null })
    expect(await bytes()).toBe('6')
    await complete(db.sql, 'a', '1', { accumulated_results: { sum: 3 } })
    expect(await bytes()).toBe('10')
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'checkpoint' })
    expect(await bytes()).toBe('10')
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'checkpoint:1' })
    expect(await bytes()).toBe('0')
    await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', '2', 5, { accumulated_results: [1] })
    await complete(db.sql, 'a', '2')
    expect(await bytes()).toBe('3')
    await db.sql`update filemark.file_checkpoints set kept_since = kept_since - interval '8 days'`
    await call(db.sql, 'filemark.clear_completed_checkpoints')
    expect(await bytes()).toBe('0')
    await claim(db.sql, 'a', { etag: 'e2' })
    await checkpoint(db.sql, 'a', '3', 5, { accumulated_results: [1] })
    await release(db.sql, 'a', '3')
    await claim(db.sql, 'a', { etag: 'e3' })
    expect(await bytes()).toBe('0')
    const rows = await db.sql`
      select results_bytes = coalesce(octet_length(accumulated_results::text), 0) as agrees
        from filemark.file_checkpoints`
    expect(rows).toEqual([{ agrees: true }])
  })
})

describe('infrequent_checkpoints', () => {
  test('has claims of five minutes or more that save less often than they should, the worst first', async () => {
    for (const [url, saves] of Object.entries({ never: 0, seldom: 3, often: 6 })) {
      await claim(db.sql, url)
      for (let items = 1; items <= saves; items++) await checkpoint(db.sql, url, '1', items)
      await age(db.sql, url, 359)
    }
    await claim(db.sql, 'young')
    await age(db.sql, 'young', 290)
    expect(await view('infrequent_checkpoints')).toMatchObject([
      {
        file_url: 'never',
        checkpoints_per_minute: 0,
        claim_age_seconds: about(359),
        min_checkpoints_per_minute: 1,
      },
      { file_url: 'seldom', checkpoints_per_minute: about(0.5, 0.01), items_processed: '3' },
    ])
    await configure(db.sql, { min_checkpoints_per_minute: 0.4 })
    expect((await view('infrequent_checkpoints')).map(({ file_url }) => file_url)).toEqual(['never'])
    await configure(db.sql, { min_checkpoints_per_minute: 0 })
    expect(await view('infrequent_checkpoints')).toEqual([])
  })

  test('goes by the last ten checkpoints: a claim that saved often at first is found', async () => {
    await claim(db.sql, 'a')
    for (let items = 1; items <= 30; items++) await checkpoint(db.sql, 'a', '1', items)
    await age(db.sql, 'a', 1200)
    expect(await view('infrequent_checkpoints')).toMatchObject([{ checkpoints_per_minute: about(0.5, 0.01) }])
  })

  test('does not count what an earlier claim saved, and leaves out claims that are lost', async () => {
    await claim(db.sql, 'a')
    for (let items = 1; items <= 9; items++) await checkpoint(db.sql, 'a', '1', items)
    await age(db.sql, 'a', 360)
    expect(await view('infrequent_checkpoints')).toEqual([])
    await release(db.sql, 'a', '1')
    await claim(db.sql, 'a')
    await age(db.sql, 'a', 360)
    expect(await view('infrequent_checkpoints')).toMatchObject([{ checkpoints_per_minute: 0 }])
    await expireLease(db.sql)
    expect(await view('infrequent_checkpoints')).toEqual([])
  })
})

describe('pipeline_activity', () => {
  test('counts per hour what happened, before and after maintenance has added it up', async () => {
    await completeSome(db.sql, 'good', 2)
    await claim(db.sql, 'bad')
    await fail(db.sql, 'bad', '1')
    await claim(db.sql, 'back', { etag: 'e1' })
    await release(db.sql, 'back', '1')
    await claim(db.sql, 'back', { etag: 'e2' })
    await expireLease(db.sql)
    await call(db.sql, 'filemark.reclaim_stale_claims')
    const now = {
      pipeline: 'default',
      files_registered: '4',
      files_overwritten: '1',
      files_completed: '2',
      records_total: '20',
      records_filtered: '2',
      records_persisted: '18',
      records_rejected: '0',
      failures: '1',
      lost_leases: '1',
      releases: '1',
    }
    await db.sql`update filemark.tallies set occurred_at = date_trunc('hour', now()) + interval '1 second'`
    expect(await view('pipeline_activity')).toMatchObject([now])
    await call(db.sql, 'filemark.run_maintenance')
    expect(await view('pipeline_activity')).toMatchObject([now])
    await completeSome(db.sql, 'more', 1)
    await db.sql`update filemark.tallies set occurred_at = date_trunc('hour', now()) - interval '1 second'`
    expect(await view('pipeline_activity')).toMatchObject([now, { files_completed: '1', failures: '0' }])
    await call(db.sql, 'filemark.run_maintenance')
    const hours = await view('pipeline_activity')
    expect(hours).toMatchObject([now, { files_completed: '1', failures: '0' }])
    const [later = Number.NaN, earlier = Number.NaN] = hours.map(({ hour }) => Number(hour))
    expect(later - earlier).toBe(3_600_000)
    await db.sql`update filemark.activity set hour = hour - interval '7 days' where hour > 'epoch'`
    expect(await view('pipeline_activity')).toEqual([])
  })
})

describe('backlog', () => {
  test('says what is due, what waits, for how long, and how long it will take', async () => {
    await configure(db.sql, { max_concurrency: 5, max_backlog_age_seconds: 600 })
    await configure(db.sql, { paused: true }, 'other')
    await register(
      db.sql,
      { file_url: 'due', available_at: ago(100) },
      { file_url: 'due too', available_at: ago(50) },
      { file_url: 'later', available_at: ago(-100) },
    )
    await claim(db.sql, 'busy')
    await claim(db.sql, 'retried')
    await fail(db.sql, 'retried', '1', { retry_after_seconds: 0 })
    await completeSome(db.sql, 'done', 4)
    const [clock] = await db.sql<{ hours: number }[]>`
      select 1 + extract(epoch from now() - date_trunc('hour', now()))::float8 / 3600 as hours`
    expect(await view('backlog')).toMatchObject([
      {
        pipeline: 'default',
        paused: false,
        due: '3',
        due_retries: '1',
        waiting: '1',
        oldest_due_age_seconds: about(100),
        max_backlog_age_seconds: 600,
        in_progress: '1',
        max_concurrency: 5,
        completed_per_hour: about(4 / (clock?.hours ?? 0), 0.01),
        estimated_seconds_left: about((3 / 4) * (clock?.hours ?? 0) * 3600, 10),
      },
      { pipeline: 'other', paused: true, due: '0', oldest_due_at: null, estimated_seconds_left: null },
    ])
  })
})

describe('storage_report', () => {
  test('has each table with what it takes, and who keeps dead rows from being removed', async () => {
    await register(db.sql, { file_url: 'a' })
    await claimNext(db.sql)
    await checkpoint(db.sql, 'a', '1', 1, {
      accumulated_results: Array.from({ length: 2000 }, (_, i) => i * 7919),
    })
    const tables = await db.sql`select tablename from pg_tables where schemaname = 'filemark'`
    const report = await view('storage_report')
    expect(report.map(({ table_name }) => table_name).sort()).toEqual(
      tables.map((row) => row.tablename).sort(),
    )
    for (const row of report) {
      expect(Number(row.total_bytes)).toBeGreaterThanOrEqual(
        Number(row.rows_bytes) + Number(row.toast_bytes) + Number(row.indexes_bytes),
      )
      expect(row).toMatchObject({ oldest_snapshot: null, oldest_snapshot_age_seconds: null })
    }
    expect(
      Number(report.find(({ table_name }) => table_name === 'file_checkpoints')?.toast_bytes),
    ).toBeGreaterThan(8192)

    const holder = await db.connect()
    await holder.sql`set application_name = 'nightly report'`
    await holder.sql`begin isolation level repeatable read`
    await holder.sql`select from filemark.pipelines`
    expect((await view('storage_report'))[0]).toMatchObject({
      oldest_snapshot: `session ${holder.pid} (postgres, nightly report, 127.0.0.1, idle in transaction)`,
      oldest_snapshot_age_seconds: about(0),
    })
    await holder.sql`rollback`
  })
})

describe('every view', () => {
  test.each([
    ['filemark_monitor', true],
    ['filemark_operator', true],
    ['service_role', true],
    ['filemark_worker', false],
    ['anon', false],
    ['authenticated', false],
  ])('%s: may read it: %s', async (role, may) => {
    const views = await db.sql<{ name: string }[]>`
      select 'filemark.' || viewname as name from pg_views where schemaname = 'filemark' order by 1`
    expect(views.map(({ name }) => name)).toEqual(
      expect.arrayContaining(
        [
          'files',
          'stale_checkpoints',
          'large_histories',
          'large_results',
          'infrequent_checkpoints',
          'backlog',
        ]
          .concat('pipeline_activity', 'storage_report', 'alerts')
          .map((name) => `filemark.${name}`),
      ),
    )
    const { sql } = await db.connect()
    await sql.unsafe(`set role ${role}`)
    for (const { name } of views) {
      const refused = await refusal(sql.unsafe(`select * from ${name}`))
      expect([name, refused?.code]).toEqual([name, may ? undefined : '42501'])
    }
    for (const call of [
      'filemark.alert_count()',
      'public.filemark_metrics()',
      'filemark.estimate_storage(1, 1, 1)',
    ]) {
      const refused = await refusal(sql.unsafe(`select ${call}`))
      expect([call, refused?.code]).toEqual([call, may ? undefined : '42501'])
    }
  })

  test('runs with the rights of whoever reads it', async () => {
    const rows = await db.sql`
      select c.relname from pg_class c
       where c.relnamespace = 'filemark'::regnamespace and c.relkind = 'v'
         and not coalesce(c.reloptions @> array['security_invoker=true'], false)`
    expect(rows).toEqual([])
  })
})
