import type { Sql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readChecksums, readMigrations } from '../../scripts/migrations.ts'
import {
  call,
  checkpoint,
  claim,
  complete,
  configure,
  fail,
  only,
  register,
  release,
} from '../behaviour/calls.ts'
import { expireLease, fileRow, historyOf } from '../behaviour/tables.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { runSql } from '../servers/install.ts'
import { pgCronSql } from '../servers/pg-cron-fixture.ts'

// What maintenance, dead letters and numbers go by was not written down by version 0.1. Two databases are given the same
// work, one of them in version 0.1 and then upgraded; they have to agree on all that can be known.

const migrations = readMigrations()
const checksums = readChecksums()
const version01 = migrations.filter(({ name }) => name in checksums && name.endsWith('_filemark.sql'))
const later = migrations.filter((migration) => !version01.includes(migration))

let upgraded: TestDatabase
let native: TestDatabase

beforeAll(async () => {
  upgraded = await createDatabase({ filemark: false })
  await runSql(upgraded.url, version01)
  await work(upgraded.sql)
  await runSql(upgraded.url, later)
  native = await createDatabase()
  await work(native.sql)
})
afterAll(async () => {
  await upgraded?.drop()
  await native?.drop()
})

/** Something of everything, with functions that both versions have. */
async function work(sql: Sql): Promise<void> {
  await configure(sql, { history_limit: 3 }, 'other')
  await register(sql, ...['bare', 'waiting', 'unseen'].map((file_url) => ({ file_url })))
  const bare = await claim(sql, 'bare')
  await complete(sql, 'bare', bare.claim_token)

  for (const url of ['kept', 'reopened', 'old']) {
    const { claim_token } = await claim(sql, url, { etag: 'e1' })
    for (let items = 1; items <= 12; items += 1) {
      await checkpoint(sql, url, claim_token, items, { accumulated_results: { sum: items } })
    }
    await complete(sql, url, claim_token, { records_total: 12, records_filtered: 2, records_persisted: 10 })
  }
  await call(sql, 'requeue_file', { file_url: 'reopened' })
  await sql`
    update filemark.file_checkpoints
       set completed_at = completed_at - interval '8 days'
     where file_url = 'old'`
  const results = await claim(sql, 'results')
  await complete(sql, 'results', results.claim_token, { accumulated_results: { rows: 3 }, records_total: 3 })

  const running = await claim(sql, 'running', { pipeline: 'other' })
  for (let items = 1; items <= 5; items += 1) {
    await checkpoint(sql, 'running', running.claim_token, items, { pipeline: 'other' })
  }

  const waiting = await claim(sql, 'waiting')
  await fail(sql, 'waiting', waiting.claim_token, { retry_after_seconds: 3600 })
  const released = await claim(sql, 'released')
  await release(sql, 'released', released.claim_token)
  await register(sql, { file_url: 'overwritten', etag: 'e1' })
  await register(sql, { file_url: 'overwritten', etag: 'e2' })

  for (let attempt = 1; attempt <= 3; attempt += 1) {
    const { claim_token } = await claim(sql, 'spent', { worker_id: `w${attempt}` })
    await fail(sql, 'spent', claim_token, { error_message: `no ${attempt}`, retry_after_seconds: 0 })
  }
  const hopeless = await claim(sql, 'hopeless')
  await checkpoint(sql, 'hopeless', hopeless.claim_token, 7, {
    accumulated_results: { long: 'x'.repeat(2 ** 20) },
  })
  await fail(sql, 'hopeless', hopeless.claim_token, { retryable: false, error: { line: 8 } })
  for (let attempt = 1; attempt <= 3; attempt += 1) {
    await claim(sql, 'deadly')
    await expireLease(sql, 'deadly')
  }
  await call(sql, 'filemark.reclaim_stale_claims')
  // A dead letter that is none any more.
  const mended = await claim(sql, 'mended')
  await fail(sql, 'mended', mended.claim_token, { retryable: false })
  await call(sql, 'requeue_file', { file_url: 'mended' })
}

/** What `query` answers in the upgraded database and in the other one. */
async function both(query: string): Promise<[unknown[], unknown[]]> {
  const [one, two] = await Promise.all([upgraded, native].map(({ sql }) => sql.unsafe(query)))
  return [[...(one ?? [])], [...(two ?? [])]]
}

test('an upgrade schedules maintenance where pg_cron is, as an installation does', async () => {
  await using db = await createDatabase({ filemark: false })
  await runSql(db.url, [{ name: 'pg-cron-fixture.ts', text: pgCronSql({ seconds: true }) }, ...migrations])
  const jobs = await db.sql`select jobname, schedule from cron.job order by 1`
  expect([...jobs]).toEqual([
    { jobname: 'filemark:alerts', schedule: '* * * * *' },
    { jobname: 'filemark:cron-log', schedule: '17 * * * *' },
    { jobname: 'filemark:maintenance', schedule: '30 seconds' },
  ])
})

describe('a database of version 0.1 that is upgraded', () => {
  test('has the dead letters that it would have, for whoever looks into them', async () => {
    const [entries, expected] = await both(`
      select d.pipeline, d.file_url, d.reason, d.attempts, d.error_message, d.resolution, d.resolved_at,
             (select jsonb_agg(e.error - array['occurred_at', 'lease_expired_at'] order by e.position)
                from jsonb_array_elements(d.errors) with ordinality e (error, position)) as errors,
             d.file - array['created_at', 'available_at', 'started_at', 'checkpointed_at', 'file_timestamp'] as file
        from filemark.dead_letter_entries d where d.file_url <> 'mended' order by d.file_url`)
    expect(entries).toHaveLength(3)
    expect(entries).toEqual(expected)
    const [letters, worst] = await both(
      'select file_url, reason, last_error, requeue from filemark.dead_letters',
    )
    expect(letters).toEqual(worst)
    const opened = await upgraded.sql`
      select d.file_url from filemark.dead_letter_entries d
        join filemark.file_events e on e.file_url = d.file_url and e.event = 'dead_lettered' and e.occurred_at = d.opened_at`
    expect(opened).toHaveLength(3)
  })

  test('counts what is completed, known, failed and lost as it would', async () => {
    const [stats, expected] = await both(`
      select pipeline, pending, processing, completed, failed, dead_letter, skipped, total, records_total,
             records_filtered, records_persisted, records_rejected, failure_ratio
        from public.pipeline_stats() order by pipeline`)
    expect(stats).toEqual(expected)
    expect(stats).toMatchObject([
      { pipeline: 'default', completed: '4', records_total: '27' },
      { pipeline: 'other' },
    ])
    const [totals, all] = await both(`
      select p.pipeline, t.what, t.files, t.last_at > now() - interval '1 hour' as recent
        from filemark.pipelines p, filemark.totals(p.pipeline) t
       where t.what in ('registered', 'overwritten', 'failed', 'released', 'lost') order by 1, 2`)
    expect(totals).toEqual(all)
    expect(totals).toHaveLength(6)
  })

  test('has the hours of the last 90 days, which add up to all of it', async () => {
    const sums = await upgraded.sql`
      select a.what, sum(a.files) filter (where a.hour = 'epoch') as total,
             sum(a.files) filter (where a.hour > 'epoch') as hours
        from filemark.activity a where a.pipeline = 'default' group by 1 order by 1`
    for (const { total, hours } of sums) expect(hours).toBe(total)
    const old = await upgraded.sql`
      select a.files::int from filemark.activity a
       where a.what = 'completed' and a.hour > 'epoch' and a.hour < now() - interval '7 days'`
    expect([...old]).toEqual([{ files: 1 }])
  })

  test('lists the histories that are too long, and knows since when checkpoints are kept', async () => {
    const [listed, expected] = await both(
      'select pipeline, file_url from filemark.long_histories order by 1, 2',
    )
    expect(listed).toEqual(expected)
    expect(listed).toHaveLength(4)
    const kept = await upgraded.sql`
      select file_url from filemark.file_checkpoints where kept_since = completed_at order by 1`
    expect(kept.map(({ file_url }) => file_url)).toEqual(['kept', 'old', 'results'])
    const [since, is] = await both(
      'select file_url, kept_since is null as gone from filemark.file_checkpoints order by 1',
    )
    expect(since).toEqual(is)
  })

  test('finds at its first maintenance what was left undone', async () => {
    expect(await call(upgraded.sql, 'filemark.truncate_checkpoint_history')).toHaveLength(4)
    expect(await historyOf(upgraded.sql, 'running')).toEqual([3, 4, 5])
    expect(await historyOf(upgraded.sql, 'kept')).toHaveLength(10)
    expect(await call(upgraded.sql, 'filemark.clear_completed_checkpoints')).toEqual([
      { pipeline: 'default', file_url: 'old', action: 'cleared' },
    ])
    await call(upgraded.sql, 'filemark.resolve_dead_letter', { file_url: 'spent', resolution: 'requeued' })
    expect(await fileRow(upgraded.sql, 'spent')).toMatchObject({ status: 'pending', attempts: 0 })
    await configure(upgraded.sql, { keep_files_days: 7 })
    expect(await call(upgraded.sql, 'filemark.purge_files')).toMatchObject([{ file_url: 'old' }])
    await call(upgraded.sql, 'filemark.run_maintenance')
    expect(only(await call(upgraded.sql, 'pipeline_stats', { pipeline: 'default' }))).toMatchObject({
      completed: '4',
    })
  })
})
