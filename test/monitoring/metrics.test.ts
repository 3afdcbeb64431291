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
import { createPglite } from '../pglite.ts'
import { installFilemark } from '../servers/install.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'
import { type Metric, parseExposition, sampleOf } from './exposition.ts'
import { age, ago, completeSome, situations } from './situations.ts'

let db: TestDatabase
let other: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  other = await db.connect()
})
beforeEach(() => empty(db.sql))
afterEach(() => other.sql.unsafe('rollback'))
afterAll(() => db.drop())

async function scrape(): Promise<Map<string, Metric>> {
  return parseExposition(
    only(await db.sql<{ text: string }[]>`select public.filemark_metrics() as text`).text,
  )
}

/** Of each family, what its series say of the pipeline 'default', by their other labels. */
async function values(...names: string[]): Promise<Record<string, number>> {
  const metrics = await scrape()
  const found: Record<string, number> = {}
  for (const name of names) {
    for (const { labels, value } of metrics.get(name)?.samples ?? []) {
      const { pipeline, ...rest } = labels
      if (pipeline === 'default')
        found[[name.replace('filemark_', ''), ...Object.values(rest)].join(' ')] = value
    }
  }
  return found
}

describe('filemark_metrics', () => {
  test('has every metric, with its help and type, also of an empty pipeline', async () => {
    await configure(db.sql, {})
    const families = await db.sql<{ metric: string; type: string }[]>`
      select metric, type from filemark.metric_families()`
    const metrics = await scrape()
    const unseen = ['filemark_last_maintenance_timestamp_seconds']
    expect([...metrics.keys()]).toEqual(
      families.map(({ metric }) => metric).filter((metric) => !unseen.includes(metric)),
    )
    for (const { metric, type } of families) {
      if (!unseen.includes(metric))
        expect(metrics.get(metric)).toMatchObject({ type, help: expect.stringMatching(/\.$/) })
    }
  })

  test('says nothing of pipelines where there is none, and is well formed', async () => {
    expect([...(await scrape()).keys()]).toEqual([
      'filemark_alerts',
      'filemark_oldest_snapshot_age_seconds',
      'filemark_dead_rows',
      'filemark_table_bytes',
    ])
  })

  test('counts files by status, and the time that the oldest one waits', async () => {
    await register(
      db.sql,
      { file_url: 'oldest', available_at: ago(50) },
      { file_url: 'later', available_at: ago(-50) },
      { file_url: 'skipped' },
    )
    await call(db.sql, 'skip_file', { file_url: 'skipped' })
    await completeSome(db.sql, 'done', 3)
    await claim(db.sql, 'failed')
    await fail(db.sql, 'failed', '1')
    await claim(db.sql, 'dead')
    await fail(db.sql, 'dead', '1', { retryable: false })
    await claim(db.sql, 'busy')
    expect(await values('filemark_files')).toEqual({
      'files pending': 2,
      'files processing': 1,
      'files completed': 3,
      'files failed': 1,
      'files dead_letter': 1,
      'files skipped': 1,
    })
    const { oldest_pending_age_seconds } = await values('filemark_oldest_pending_age_seconds')
    expect(oldest_pending_age_seconds).toBeGreaterThanOrEqual(50)
    expect(oldest_pending_age_seconds).toBeLessThan(100)
  })

  test('has of the files in progress the oldest checkpoint, the longest history, and the results', async () => {
    const names = [
      'checkpoint_age_seconds',
      'checkpoint_history_size',
      'results_bytes',
      'largest_results_bytes',
    ].map((name) => `filemark_${name}`)
    await claim(db.sql, 'a')
    await claim(db.sql, 'b')
    await checkpoint(db.sql, 'a', '1', 1, { accumulated_results: [1, 2] })
    for (let items = 1; items <= 12; items++) {
      await checkpoint(db.sql, 'b', '1', items, { accumulated_results: 'x'.repeat(98) })
    }
    await age(db.sql, 'a', 700)
    await age(db.sql, 'b', 300)
    const before = await values(...names)
    expect(before).toMatchObject({
      checkpoint_history_size: 12,
      results_bytes: 106,
      largest_results_bytes: 100,
    })
    expect(before.checkpoint_age_seconds).toBeGreaterThanOrEqual(700)
    expect(before.checkpoint_age_seconds).toBeLessThan(800)
    // A file that is done and waits for maintenance has a history still.
    await complete(db.sql, 'a', '1')
    await complete(db.sql, 'b', '1')
    expect(await values(...names)).toEqual({
      checkpoint_age_seconds: 0,
      checkpoint_history_size: 12,
      results_bytes: 0,
      largest_results_bytes: 0,
    })
    await call(db.sql, 'filemark.run_maintenance')
    expect(await values('filemark_checkpoint_history_size')).toEqual({ checkpoint_history_size: 0 })
  })

  test('counts dead letters by reason, until they are dealt with', async () => {
    await configure(db.sql, { max_attempts: 1 })
    for (const url of ['refused', 'spent', 'lost']) await claim(db.sql, url)
    await register(db.sql, { file_url: 'by hand' })
    await fail(db.sql, 'refused', '1', { retryable: false })
    await fail(db.sql, 'spent', '1')
    await expireLease(db.sql)
    expect(await values('filemark_expired_claims')).toEqual({ expired_claims: 1 })
    await call(db.sql, 'filemark.reclaim_stale_claims')
    await call(db.sql, 'filemark.dead_letter_file', { file_url: 'by hand' })
    const letters = {
      'dead_letters lease_expired': 1,
      'dead_letters manual': 1,
      'dead_letters max_attempts_exceeded': 1,
      'dead_letters not_retryable': 1,
    }
    expect(await values('filemark_dead_letters', 'filemark_expired_claims')).toEqual({
      ...letters,
      expired_claims: 0,
    })
    await call(db.sql, 'requeue_file', { file_url: 'spent' })
    expect(await values('filemark_dead_letters')).toEqual({
      ...letters,
      'dead_letters max_attempts_exceeded': 0,
    })
  })

  test.each(Object.entries(situations))('shows the alert %s with its severity', async (name, situation) => {
    const labels = {
      alert: name,
      severity: situation.severity,
      pipeline: name === 'held_snapshot' ? '' : 'default',
    }
    await configure(db.sql, {})
    expect(sampleOf(await scrape(), 'filemark_alerts', labels)).toBe(0)
    await situation.arise(db.sql, other)
    const metrics = await scrape()
    expect(sampleOf(metrics, 'filemark_alerts', labels)).toBe(1)
    expect(metrics.get('filemark_alerts')?.samples.reduce((sum, { value }) => sum + value, 0)).toBe(1)
    await situation.resolve(db.sql, other)
    expect(sampleOf(await scrape(), 'filemark_alerts', labels)).toBe(0)
  })

  test('knows every alert that there is', async () => {
    await configure(db.sql, {})
    const alerts = (await scrape()).get('filemark_alerts')?.samples.map(({ labels }) => labels.alert)
    expect(alerts?.sort()).toEqual(Object.keys(situations).sort())
  })

  test('says when maintenance was last done, and how large the tables are', async () => {
    await configure(db.sql, { paused: true })
    const before = Date.now() / 1000
    await call(db.sql, 'filemark.run_maintenance')
    const metrics = await scrape()
    const at = sampleOf(metrics, 'filemark_last_maintenance_timestamp_seconds')
    expect(at).toBeGreaterThanOrEqual(before - 1)
    expect(at).toBeLessThanOrEqual(Date.now() / 1000 + 1)
    expect(sampleOf(metrics, 'filemark_table_bytes', { table: 'file_checkpoints' })).toBeGreaterThan(0)
    expect(sampleOf(metrics, 'filemark_pipeline_paused')).toBe(1)
  })

  test('says for how long a transaction has kept dead rows', async () => {
    await other.sql`begin isolation level repeatable read`
    await other.sql`select from filemark.pipelines`
    expect(sampleOf(await scrape(), 'filemark_oldest_snapshot_age_seconds')).toBeGreaterThan(0)
    await other.sql`rollback`
    expect(sampleOf(await scrape(), 'filemark_oldest_snapshot_age_seconds')).toBe(0)
  })

  test('escapes what a name may hold', async () => {
    const names = ['quote "', 'back\\slash', 'new\nline', 'both \\"\n\\n', 'ünïcode {},=']
    for (const name of names) await configure(db.sql, {}, name)
    const seen = (await scrape())
      .get('filemark_pipeline_paused')
      ?.samples.map(({ labels }) => labels.pipeline)
    expect(seen?.sort()).toEqual(names.sort())
  })

  test('has as many series for many files as for one', async () => {
    await claim(db.sql, 'a')
    const count = async () => [...(await scrape()).values()].flatMap(({ samples }) => samples).length
    const one = await count()
    await register(db.sql, ...Array.from({ length: 50 }, (_, index) => ({ file_url: `f${index}` })))
    await claimNext(db.sql, 20)
    expect(await count()).toBe(one)
  })

  test('runs in the embedded database too', async () => {
    const embedded = await createPglite()
    await embedded.query(`select claim_file('a', 'csv', now(), 'w1')`)
    const { rows } = await embedded.query<{ text: string; alerts: number }>(
      'select filemark_metrics() as text, filemark.alert_count()::int as alerts',
    )
    const { text, alerts } = only(rows)
    expect(sampleOf(parseExposition(text), 'filemark_files', { status: 'processing' })).toBe(1)
    expect(alerts).toBe(0)
    await embedded.close()
  })
})

describe('counters', () => {
  /** The counters, all of them. */
  async function counters(): Promise<Record<string, number>> {
    const metrics = await scrape()
    return values(...[...metrics].filter(([, { type }]) => type === 'counter').map(([name]) => name))
  }

  // Each step with what it adds. Any counter that is not named stays.
  const steps: [step: string, run: () => Promise<unknown>, added: Record<string, number>][] = [
    [
      'register',
      () => register(db.sql, { file_url: 'a', etag: '1' }, { file_url: 'b' }),
      { registrations_total: 2 },
    ],
    ['claim', () => claim(db.sql, 'a'), { claims_total: 1 }],
    ['save', () => checkpoint(db.sql, 'a', '1', 1), {}],
    [
      'complete',
      () => complete(db.sql, 'a', '1', { records_total: 10, records_filtered: 3, records_persisted: 7 }),
      { completions_total: 1, records_total: 10, records_filtered_total: 3, records_persisted_total: 7 },
    ],
    ['complete again', () => complete(db.sql, 'a', '1'), {}],
    ['roll up', () => call(db.sql, 'filemark.run_maintenance'), {}],
    ['requeue a completed file', () => call(db.sql, 'requeue_file', { file_url: 'a', from: 'start' }), {}],
    ['claim it', () => claim(db.sql, 'a'), { claims_total: 1 }],
    ['fail', () => fail(db.sql, 'a', '2'), { failures_total: 1 }],
    ['overwrite', () => register(db.sql, { file_url: 'a', etag: '2' }), { overwrites_total: 1 }],
    ['claim the new content', () => claim(db.sql, 'a'), { claims_total: 1 }],
    ['release', () => release(db.sql, 'a', '3'), { releases_total: 1 }],
    ['claim to lose', () => claim(db.sql, 'a'), { claims_total: 1 }],
    [
      'lose the lease to another',
      async () => {
        await expireLease(db.sql)
        await claim(db.sql, 'a', { worker_id: 'w2' })
      },
      { claims_total: 1, lost_leases_total: 1 },
    ],
    ['see newer content meanwhile', () => register(db.sql, { file_url: 'a', etag: '3' }), {}],
    ['be superseded', () => complete(db.sql, 'a', '5'), { overwrites_total: 1 }],
    ['roll up again', () => call(db.sql, 'filemark.run_maintenance'), {}],
    ['claim to be robbed', () => claim(db.sql, 'a'), { claims_total: 1 }],
    ['take by force', () => call(db.sql, 'requeue_file', { file_url: 'a', force: true }), {}],
    ['skip', () => call(db.sql, 'skip_file', { file_url: 'b' }), {}],
    [
      'complete one more',
      () => completeSome(db.sql, 'c', 1),
      {
        registrations_total: 1,
        claims_total: 1,
        completions_total: 1,
        records_total: 10,
        records_filtered_total: 1,
        records_persisted_total: 9,
      },
    ],
    [
      'purge it',
      async () => {
        await configure(db.sql, { keep_files_days: 0 })
        await call(db.sql, 'filemark.purge_files')
      },
      {},
    ],
    ['roll up a third time', () => call(db.sql, 'filemark.run_maintenance'), {}],
    ['requeue what was purged', () => call(db.sql, 'requeue_file', { file_url: 'c-1.csv' }), {}],
    ['bury', () => call(db.sql, 'filemark.dead_letter_file', { file_url: 'c-1.csv' }), {}],
    [
      'forget the hours of long ago',
      async () => {
        await db.sql`update filemark.activity set hour = hour - interval '91 days' where hour > 'epoch'`
        await call(db.sql, 'filemark.run_maintenance')
      },
      {},
    ],
  ]

  test('add what happened and never fall, whatever becomes of the files', async () => {
    await configure(db.sql, {})
    let before = await counters()
    expect(Object.keys(before)).toHaveLength(11)
    expect(new Set(Object.values(before))).toEqual(new Set([0]))
    for (const [step, run, added] of steps) {
      await run()
      const after = await counters()
      const difference = Object.fromEntries(
        Object.entries(after)
          .map(([name, value]) => [name, value - (before[name] ?? Number.NaN)] as const)
          .filter(([, more]) => more !== 0),
      )
      expect([step, difference]).toEqual([step, added])
      before = after
    }
    expect(before).toMatchObject({ completions_total: 2, claims_total: 7, registrations_total: 3 })
  })
})

describe('over the API', () => {
  let server: PostgresServer
  let project: TestDatabase
  let rest: PostgrestServer

  beforeAll(async () => {
    server = await startPostgres()
    project = await createDatabase({ on: server.url(), supabase: 'new' })
    await project.sql`grant filemark_monitor, filemark_worker to authenticator`
    rest = await startPostgrest({ databaseUrl: project.url })
    await claim(project.sql, 'a')
  })
  afterAll(async () => {
    await rest?.stop()
    await project?.drop()
    await server?.[Symbol.asyncDispose]()
  })

  const get = (accept: string, headers: Record<string, string>, url = rest.directUrl) =>
    fetch(`${url}/rpc/filemark_metrics`, { headers: { accept, ...headers } })
  const as = (role: string) => ({ authorization: `Bearer ${rest.token(role)}` })

  // What Prometheus 2.42 and 3 say they accept.
  const accepted = [
    'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,' +
      'text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
    'application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,' +
      'application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,' +
      'text/plain;version=0.0.4;q=0.2,*/*;q=0.1',
    'text/plain',
  ]

  test.each(accepted)('GET answers a monitor with text/plain, as it is: Accept: %s', async (accept) => {
    const answer = await get(accept, as('filemark_monitor'))
    expect(answer.status).toBe(200)
    expect(answer.headers.get('content-type')).toMatch(/^text\/plain(; charset=utf-8)?$/)
    const metrics = parseExposition(await answer.text())
    expect(sampleOf(metrics, 'filemark_files', { pipeline: 'default', status: 'processing' })).toBe(1)
  })

  test('answers the same behind the gateway of a project, to a secret key in the header apikey', async () => {
    const answer = await get('text/plain', { apikey: rest.secretKey }, `${rest.url}/rest/v1`)
    expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'text/plain; charset=utf-8'])
    parseExposition(await answer.text())
  })

  test.each(['anon', 'authenticated', 'filemark_worker'])('refuses %s', async (role) => {
    const answer = await get('text/plain', role === 'anon' ? {} : as(role))
    expect([401, 403]).toContain(answer.status)
    expect(await answer.text()).not.toContain('filemark_files{')
  })
})

test('a type "text/plain" that is there already, of whatever kind and owner, is none of ours', async () => {
  await using database = await createDatabase({ filemark: false })
  const somebody = `owner_${database.name}`
  await database.sql.unsafe(`
    create role ${somebody};
    create domain public."text/plain" as bytea;
    alter domain public."text/plain" owner to ${somebody};
  `)
  try {
    await installFilemark(database.url)
    const [row] = await database.sql<{ text: string }[]>`select filemark_metrics() as text`
    parseExposition(row?.text ?? '')
  } finally {
    await database.sql.unsafe(`drop domain public."text/plain"; drop role ${somebody}`)
  }
})
