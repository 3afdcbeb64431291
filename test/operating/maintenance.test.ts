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
  pick,
  refusal,
  register,
  release,
  started,
  tryClaim,
} from '../behaviour/calls.ts'
import { contents, empty, expireLease, fileRow, historyOf } from '../behaviour/tables.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { until, untilLocked } from '../wait.ts'

let db: TestDatabase
let one: TestConnection
let two: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
})
beforeEach(() => empty(db.sql))
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
})
afterAll(() => db.drop())

type TaskRow = { pipeline: string; file_url: string; action: string }

function run(task: string, args: Record<string, unknown> = {}, sql: Sql = db.sql): Promise<TaskRow[]> {
  return call<TaskRow>(sql, `filemark.${task}`, args)
}

/** What one run did: per pipeline and task, leaving out where there was nothing to do. */
async function maintain(
  sql: Sql = db.sql,
  args: Record<string, unknown> = {},
): Promise<Record<string, number>> {
  const rows = await call<{ task: string; pipeline: string; affected: string }>(
    sql,
    'filemark.run_maintenance',
    args,
  )
  return Object.fromEntries(
    rows
      .filter(({ affected }) => affected !== '0')
      .map(({ task, pipeline, affected }) => [`${pipeline} ${task}`, Number(affected)]),
  )
}

async function checkpoints(url: string, token: string, from: number, to: number, args = {}): Promise<void> {
  for (let items = from; items <= to; items += 1) await checkpoint(db.sql, url, token, items, args)
}

/** Claims, saves checkpoints up to `count` and completes. */
async function load(
  url: string,
  count: number,
  args: { pipeline?: string } = {},
  etag?: string,
): Promise<void> {
  const { claim_token } = await claim(db.sql, url, { ...args, ...(etag && { etag }) })
  await checkpoints(url, claim_token, 1, count, args)
  await complete(db.sql, url, claim_token, {
    ...args,
    records_total: count,
    accumulated_results: { sum: count },
  })
}

/** As if a file had been completed so many days ago. */
async function age(url: string, days: number): Promise<void> {
  await db.sql`
    update filemark.file_checkpoints
       set completed_at = completed_at - make_interval(days => ${days}),
           kept_since = kept_since - make_interval(days => ${days})
     where file_url = ${url}`
}

/** The rows of all tables but those that say when things happened. */
async function state(): Promise<string[]> {
  const rows = await contents(db.sql)
  return rows.filter((row) => !/^filemark\.(tallies|activity|maintenance_runs) /.test(row))
}

/** One file for each task, of each of the pipelines; `url` begins their names. */
async function giveWork(pipelines: string[]): Promise<void> {
  for (const pipeline of pipelines) {
    await configure(db.sql, { keep_files_days: 30, history_limit: 3 }, pipeline)
    await load(`${pipeline}/clear`, 2, { pipeline })
    await age(`${pipeline}/clear`, 8)
    await load(`${pipeline}/purge`, 2, { pipeline })
    await age(`${pipeline}/purge`, 31)
    await claim(db.sql, `${pipeline}/lost`, { pipeline })
    await expireLease(db.sql, `${pipeline}/lost`)
    const { claim_token } = await claim(db.sql, `${pipeline}/truncate`, { pipeline })
    await checkpoints(`${pipeline}/truncate`, claim_token, 1, 9, { pipeline })
  }
}

const tasks = [
  'truncate_checkpoint_history',
  'clear_completed_checkpoints',
  'purge_files',
  'reclaim_stale_claims',
]

describe('truncate_checkpoint_history', () => {
  test('keeps the last history_limit checkpoints of a file in progress, which goes on as before', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoints('a', claim_token, 1, 25)
    expect(await run('truncate_checkpoint_history')).toEqual([
      { pipeline: 'default', file_url: 'a', action: 'truncated' },
    ])
    expect(await historyOf(db.sql, 'a')).toEqual([16, 17, 18, 19, 20, 21, 22, 23, 24, 25])
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      history_length: '10',
      checkpoint_seq: '25',
      status: 'processing',
    })
    expect(await run('truncate_checkpoint_history')).toEqual([])

    expect(await checkpoint(db.sql, 'a', claim_token, 26)).toMatchObject({
      checkpoint_seq: '26',
      history_length: '11',
    })
    expect(await run('truncate_checkpoint_history')).toHaveLength(1)
    expect((await historyOf(db.sql, 'a')).at(0)).toBe(17)
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'checkpoint:20', force: true })
    expect(await claim(db.sql, 'a')).toMatchObject({ cursor: { next: 20 }, checkpoint_seq: '20' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ history_length: '4' })
  })

  test('leaves a history of history_limit checkpoints as it is', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoints('a', claim_token, 1, 10)
    expect(await run('truncate_checkpoint_history')).toEqual([])
    expect(await historyOf(db.sql, 'a')).toHaveLength(10)
  })

  test('cuts what is too long since history_limit was lowered, whatever state the file is in', async () => {
    for (const url of ['done', 'waiting', 'running']) {
      const { claim_token } = await claim(db.sql, url)
      await checkpoints(url, claim_token, 1, 8)
      if (url === 'done') await complete(db.sql, url, claim_token)
      if (url === 'waiting') await release(db.sql, url, claim_token)
    }
    await load('short', 4)
    await configure(db.sql, { history_limit: 4 })
    expect(await run('truncate_checkpoint_history')).toHaveLength(3)
    for (const url of ['done', 'waiting', 'running', 'short']) {
      expect([url, await historyOf(db.sql, url)]).toEqual([
        url,
        url === 'short' ? [1, 2, 3, 4] : [5, 6, 7, 8],
      ])
      expect(await fileRow(db.sql, url)).toMatchObject({ history_length: '4' })
    }
  })

  test('cuts 10,000 entries in two calls that each cut a bounded number', async () => {
    await claim(db.sql, 'a')
    await db.sql`
      insert into filemark.checkpoint_history
        (pipeline, file_url, checkpoint_seq, cursor, items_processed, records_persisted, claim_token, saved_at)
      select 'default', 'a', n, to_jsonb(n), n, 0, 1, clock_timestamp() from generate_series(1, 12000) n`
    await db.sql`
      update filemark.file_checkpoints
         set checkpoint_seq = 12000, history_length = 12000, cursor = '12000', items_processed = 12000,
             checkpointed_at = clock_timestamp()`
    const token = only(await call(db.sql, 'get_file_checkpoint', { file_url: 'a' })).claim_token as string
    await checkpoint(db.sql, 'a', token, 12001)

    expect(await run('truncate_checkpoint_history', { limit: 10 })).toHaveLength(1)
    expect(await historyOf(db.sql, 'a')).toHaveLength(2001)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ history_length: '2001' })
    expect(await run('truncate_checkpoint_history', { limit: 10 })).toHaveLength(1)
    expect(await historyOf(db.sql, 'a')).toEqual(Array.from({ length: 10 }, (_, index) => 11992 + index))
    expect(await run('truncate_checkpoint_history', { limit: 10 })).toEqual([])
  })

  test('shuts no file out, however often the ones before it need it again', async () => {
    const urls = ['a', 'b', 'c', 'd', 'e']
    const tokens = new Map<string, string>()
    await configure(db.sql, { history_limit: 1 })
    for (const url of urls) {
      tokens.set(url, (await claim(db.sql, url)).claim_token)
      await checkpoints(url, tokens.get(url) ?? '', 1, 2)
    }
    const cut: string[] = []
    for (let items = 3; items < 7; items += 1) {
      cut.push(...(await run('truncate_checkpoint_history', { limit: 2 })).map(({ file_url }) => file_url))
      for (const url of urls) await checkpoint(db.sql, url, tokens.get(url) ?? '', items)
    }
    expect(cut).toEqual([...urls, 'a', 'b', 'c'])
  })

  test('forgets a file that was listed and is not too long any more', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoints('a', claim_token, 1, 15)
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'start', force: true })
    expect(await run('truncate_checkpoint_history', { dry_run: true })).toEqual([])
    expect(await run('truncate_checkpoint_history')).toEqual([])
    expect([...(await db.sql`select from filemark.long_histories`)]).toEqual([])
  })
})

describe('clear_completed_checkpoints', () => {
  test('clears cursor, results and history of files completed more than keep_checkpoints_days ago', async () => {
    for (const url of ['old', 'young']) await load(url, 12)
    await age('old', 8)
    const before = await fileRow(db.sql, 'old')
    expect(await run('clear_completed_checkpoints')).toEqual([
      { pipeline: 'default', file_url: 'old', action: 'cleared' },
    ])
    expect(await run('clear_completed_checkpoints')).toEqual([])
    expect(await historyOf(db.sql, 'old')).toEqual([])
    expect(await fileRow(db.sql, 'old')).toEqual({
      ...before,
      cursor: null,
      accumulated_results: null,
      results_bytes: '0',
      history_length: '0',
      kept_since: null,
    })
    expect(await fileRow(db.sql, 'young')).toMatchObject({
      accumulated_results: { sum: 12 },
      history_length: '12',
    })
    expect(await run('truncate_checkpoint_history')).toMatchObject([{ file_url: 'young' }])
  })

  test('looks at no file that has nothing to clear', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await complete(db.sql, 'a', claim_token)
    await configure(db.sql, { keep_checkpoints_days: 0 })
    expect(await run('clear_completed_checkpoints')).toEqual([])
  })

  test.each(['pending', 'skipped', 'dead_letter', 'a new generation'])(
    'leaves what was completed long ago and is %s now',
    async (now) => {
      await load('a', 2, {}, 'e1')
      await age('a', 8)
      if (now === 'a new generation') await register(db.sql, { file_url: 'a', etag: 'e2' })
      else if (now === 'skipped') await call(db.sql, 'skip_file', { file_url: 'a' })
      else await call(db.sql, 'requeue_file', { file_url: 'a' })
      if (now === 'dead_letter') await call(db.sql, 'filemark.dead_letter_file', { file_url: 'a' })
      const before = await contents(db.sql)
      expect(await run('clear_completed_checkpoints')).toEqual([])
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test('leaves files that can be requeued from the start only, and skipped', async () => {
    for (const url of ['a', 'b']) await load(url, 2)
    await configure(db.sql, { keep_checkpoints_days: 0 })
    expect(await run('clear_completed_checkpoints')).toHaveLength(2)
    await call(db.sql, 'skip_file', { file_url: 'b' })
    for (const url of ['a', 'b']) {
      expect(
        await refusal(call(db.sql, 'requeue_file', { file_url: url, from: 'checkpoint:2' })),
      ).toMatchObject({
        code: 'PT400',
      })
      expect(await call(db.sql, 'requeue_file', { file_url: url })).toEqual([
        { status: 'pending', checkpoint_seq: '0' },
      ])
      expect(await claim(db.sql, url)).toMatchObject({
        cursor: null,
        items_processed: '0',
        checkpoint_seq: '0',
      })
    }
  })

  test('that waits for nothing and a requeue that waits for it leave a file to start anew', async () => {
    await load('a', 2)
    await configure(db.sql, { keep_checkpoints_days: 0 })
    await one.sql.unsafe('begin')
    expect(await run('clear_completed_checkpoints', {}, one.sql)).toHaveLength(1)
    const requeued = started(call(two.sql, 'requeue_file', { file_url: 'a' }))
    await untilLocked(db.sql, two.pid)
    await one.sql.unsafe('commit')
    expect(await requeued).toEqual([{ status: 'pending', checkpoint_seq: '0' }])
    expect(await claim(db.sql, 'a')).toMatchObject({ cursor: null, items_processed: '0' })
  })

  test('passes over a file that is being requeued, which keeps its checkpoint', async () => {
    await load('a', 2)
    await configure(db.sql, { keep_checkpoints_days: 0 })
    await one.sql.unsafe('begin')
    await call(one.sql, 'requeue_file', { file_url: 'a' })
    expect(await run('clear_completed_checkpoints')).toEqual([])
    await one.sql.unsafe('commit')
    expect(await run('clear_completed_checkpoints')).toEqual([])
    expect(await claim(db.sql, 'a')).toMatchObject({ cursor: { next: 2 }, items_processed: '2' })
  })
})

describe('run_maintenance', () => {
  test('does every task for every pipeline and records each run', async () => {
    await giveWork(['p1', 'p2'])
    expect(await maintain()).toEqual(
      Object.fromEntries(
        ['p1', 'p2'].flatMap((pipeline) => [
          [`${pipeline} clear_completed_checkpoints`, 2],
          [`${pipeline} purge_files`, 1],
          // registered 4, completed 2, purged, lost; the checkpoint of what is then purged is cleared first
          [`${pipeline} add_up_tallies`, 7],
          [`${pipeline} reclaim_stale_claims`, 1],
          [`${pipeline} truncate_checkpoint_history`, 1],
        ]),
      ),
    )
    const runs = await db.sql`select * from filemark.maintenance_runs order by run_id`
    expect(runs.map(({ pipeline, affected }) => [pipeline, affected.purge_files])).toEqual([
      ['p1', 1],
      ['p2', 1],
    ])
    for (const { started_at, finished_at } of runs) expect(finished_at >= started_at).toBe(true)
    // What the tasks themselves tallied after the adding up.
    expect(await maintain()).toEqual({ 'p1 add_up_tallies': 1, 'p2 add_up_tallies': 1 })
    expect(await maintain()).toEqual({})
  })

  test('leaves no work that a task by itself would find', async () => {
    await giveWork(['p1'])
    await maintain()
    for (const task of tasks) expect([task, await run(task)]).toEqual([task, []])
  })

  test('takes p_limit files per task and pipeline, and a hundred times as many tallies', async () => {
    await configure(db.sql, { keep_files_days: 0, keep_checkpoints_days: 0 }, 'p1')
    await configure(db.sql, { keep_files_days: 0, keep_checkpoints_days: 0 }, 'p2')
    for (const pipeline of ['p1', 'p2']) {
      for (const url of ['a', 'b', 'c']) await load(url, 1, { pipeline })
      await db.sql`
        insert into filemark.tallies (pipeline, occurred_at, what, files)
        select ${pipeline}, clock_timestamp(), 'failed', 1 from generate_series(1, 300)`
    }
    expect(await maintain(db.sql, { limit: 2 })).toEqual({
      'p1 clear_completed_checkpoints': 2,
      'p1 purge_files': 2,
      'p1 add_up_tallies': 200,
      'p2 clear_completed_checkpoints': 2,
      'p2 purge_files': 2,
      'p2 add_up_tallies': 200,
    })
  })

  test('whose time is over leaves the other pipelines to the next run, which begins with them', async () => {
    await giveWork(['p1', 'p2', 'p3'])
    const order: string[] = []
    for (let round = 0; round < 4; round += 1) {
      const rows = await call<{ pipeline: string }>(db.sql, 'filemark.maintain', { limit: 1000, seconds: 0 })
      order.push([...new Set(rows.map(({ pipeline }) => pipeline))].join())
    }
    expect(order).toEqual(['p1', 'p2', 'p3', 'p1'])
  })

  test('forgets its runs after a day', async () => {
    await register(db.sql, { file_url: 'a' })
    for (let round = 0; round < 3; round += 1) await maintain()
    await db.sql`
      update filemark.maintenance_runs set finished_at = finished_at - interval '25 hours'
       where run_id < (select max(run_id) from filemark.maintenance_runs)`
    await maintain()
    expect(await db.sql`select from filemark.maintenance_runs`).toHaveLength(2)
  })

  test('is what operators run', async () => {
    await giveWork(['p1'])
    await db.sql`create role night_shift login`
    await db.sql`grant filemark_operator to night_shift`
    const { sql } = await db.connect('night_shift')
    expect(await maintain(sql)).toMatchObject({ 'p1 purge_files': 1, 'p1 truncate_checkpoint_history': 1 })
    await sql.end()
    await db.sql`drop role night_shift`
  })
})

describe('tallies that are added up', () => {
  test('say the same as before, and the hours are kept for 90 days', async () => {
    for (const url of ['a', 'b', 'c']) await load(url, 5)
    await call(db.sql, 'requeue_file', { file_url: 'c' })
    const totals = () => db.sql`select * from filemark.totals('default') order by what`
    const before = await totals()
    await maintain()
    expect([...(await db.sql`select from filemark.tallies`)]).toEqual([])
    expect([...(await totals())]).toEqual([...before])
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([{ completed: '2', records_total: '10' }])

    await db.sql`
      update filemark.activity set hour = hour - interval '91 days' where hour > 'epoch'`
    await load('d', 1)
    await maintain()
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([{ completed: '3', records_total: '11' }])
    expect([
      ...(await db.sql`
        select count(*)::int as hours, min(hour) > clock_timestamp() - interval '1 day' as recent
          from filemark.activity where hour > 'epoch' and what = 'completed'`),
    ]).toEqual([{ hours: 1, recent: true }])
  })

  test('may be as large as numbers get, without stopping a completion, a run or pipeline_stats', async () => {
    const most = '9223372036854775807'
    const urls = ['a', 'b', 'c']
    const claims = await Promise.all(urls.map((url) => claim(db.sql, url)))
    for (const { file_url, claim_token } of claims) {
      expect(await complete(db.sql, file_url, claim_token, { records_total: most })).toBe('completed')
    }
    const batch = Array.from({ length: 10 }, (_, index) => `batch/${index}`)
    for (const url of batch) await claim(db.sql, url)
    const large = batch.map(
      (url) => `{"file_url": "${url}", "claim_token": 1, "records_total": 999999999999999999}`,
    )
    await db.sql.unsafe(`select from complete_and_claim_next('w1', '[${large.join()}]')`)
    for (let round = 0; round < 3; round += 1) {
      expect(await call(db.sql, 'pipeline_stats')).toMatchObject([{ completed: '13', records_total: most }])
      await maintain()
    }
  })
})

/** What workers do to a file in a transaction that they leave open; the file is work for maintenance too. */
const workers: Record<string, (sql: Sql, token: string) => Promise<unknown>> = {
  'saves a checkpoint': (sql, token) => checkpoint(sql, 'a', token, 100),
  'renews its lease': (sql, token) => call(sql, 'extend_claim', { file_url: 'a', claim_token: token }),
  'asserts its claim': (sql, token) =>
    call(sql, 'filemark.assert_claim', { file_url: 'a', claim_token: token }),
  completes: (sql, token) => complete(sql, 'a', token),
  fails: (sql, token) => fail(sql, 'a', token),
  'fails for good': (sql, token) => fail(sql, 'a', token, { retryable: false }),
  releases: (sql, token) => release(sql, 'a', token),
}

describe('a worker with an open transaction that', () => {
  test.each(Object.keys(workers))('%s is not waited for, and does not wait', async (name) => {
    await configure(db.sql, { history_limit: 1, keep_files_days: 0, keep_checkpoints_days: 0 })
    await load('other', 3)
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoints('a', claim_token, 1, 5)
    await expireLease(db.sql, 'a')
    // A lock that the other one holds is an error, not a wait without end.
    for (const { sql } of [one, two]) await sql.unsafe("set lock_timeout = '1s'")

    await one.sql.unsafe('begin')
    await pick(workers, name)(one.sql, claim_token)
    await two.sql.unsafe('begin')
    expect(await maintain(two.sql)).toMatchObject({ 'default purge_files': 1 })
    for (const task of tasks) expect([task, await run(task, {}, two.sql)]).toEqual([task, []])
    // The run is not over yet, and the worker goes on.
    if (name.includes(' its ') || name.includes(' a ')) {
      await checkpoint(one.sql, 'a', claim_token, 101)
      expect(await complete(one.sql, 'a', claim_token)).toBe('completed')
    }
    await register(one.sql, { file_url: 'new' }, { file_url: 'a' })
    expect(await claimNext(one.sql, 10)).toMatchObject(
      name === 'releases' ? [{ file_url: 'a' }, { file_url: 'new' }] : [{ file_url: 'new' }],
    )
    await one.sql.unsafe('commit')
    await two.sql.unsafe('commit')
    for (const { sql } of [one, two]) await sql.unsafe('reset lock_timeout')
    expect(await fileRow(db.sql, 'other')).toMatchObject({ status: 'completed' })
  })

  test('claims a batch is not waited for, and gets its files', async () => {
    await register(db.sql, ...['a', 'b', 'c'].map((file_url) => ({ file_url })))
    for (const { sql } of [one, two]) await sql.unsafe("set lock_timeout = '1s'")
    await configure(db.sql, { max_concurrency: 10 })
    await one.sql.unsafe('begin')
    expect(await claimNext(one.sql, 2, { request_id: crypto.randomUUID() })).toHaveLength(2)
    await maintain(two.sql)
    await one.sql.unsafe('commit')
    for (const { sql } of [one, two]) await sql.unsafe('reset lock_timeout')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'processing' })
  })
})

describe('a dry run of', () => {
  const found: Record<string, string[]> = {
    truncate_checkpoint_history: ['p1/truncate would_truncate'],
    clear_completed_checkpoints: ['p1/purge would_clear', 'p1/clear would_clear'],
    purge_files: ['p1/purge would_purge'],
    reclaim_stale_claims: ['p1/lost would_reclaim'],
  }

  test.each(tasks)('%s says what a run would do, writes nothing and holds nobody up', async (task) => {
    await giveWork(['p1'])
    const before = await contents(db.sql)
    await one.sql.unsafe('begin')
    const rows = await run(task, { dry_run: true }, one.sql)
    expect(rows.map(({ file_url, action }) => `${file_url} ${action}`)).toEqual(found[task])
    expect(await contents(db.sql)).toEqual(before)
    await two.sql.unsafe("set lock_timeout = '1s'")
    const done = await run(task, {}, two.sql)
    await two.sql.unsafe('reset lock_timeout')
    expect(done.map(({ file_url }) => file_url)).toEqual(rows.map(({ file_url }) => file_url))
    await one.sql.unsafe('rollback')
    expect(await run(task, { dry_run: true })).toEqual([])
  })

  test.each(tasks)('%s is as long as p_limit', async (task) => {
    await giveWork(['p1', 'p2'])
    expect(await run(task, { dry_run: true, limit: 1 })).toHaveLength(2)
    expect(await run(task, { dry_run: true, limit: 1, pipeline: 'p2' })).toMatchObject([{ pipeline: 'p2' }])
    expect(await run(task, { limit: 1, pipeline: 'p2' })).toMatchObject([{ pipeline: 'p2' }])
  })

  test.each(tasks)('%s refuses a pipeline that is not known', async (task) => {
    expect(await refusal(run(task, { dry_run: true, pipeline: 'p9' }))).toMatchObject({ code: 'PT404' })
  })
})

describe('two runs at once', () => {
  test('do everything once, and neither waits for the other', async () => {
    await giveWork(['p1', 'p2'])
    await one.sql.unsafe('begin')
    const first = await maintain(one.sql)
    // All of it is locked by the first run. New work comes while that is still under way.
    await load('p2/more', 2, { pipeline: 'p2' })
    await age('p2/more', 31)
    await two.sql.unsafe("set lock_timeout = '1s'")
    const second = await maintain(two.sql)
    await two.sql.unsafe('reset lock_timeout')
    await one.sql.unsafe('commit')

    expect(first).toMatchObject({
      'p1 purge_files': 1,
      'p2 purge_files': 1,
      'p2 clear_completed_checkpoints': 2,
    })
    expect(second).toEqual({ 'p2 clear_completed_checkpoints': 1, 'p2 purge_files': 1 })
    expect(only(await db.sql`select count(*)::int as purged from filemark.purged_files`)).toEqual({
      purged: 3,
    })
    expect(await historyOf(db.sql, 'p1/truncate')).toHaveLength(3)
    const third = await maintain()
    expect(Object.keys(third)).toEqual(['p1 add_up_tallies', 'p2 add_up_tallies'])
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([
      { pipeline: 'p1', completed: '2', records_total: '4' },
      { pipeline: 'p2', completed: '3', records_total: '6' },
    ])
  })

  test.each(tasks)('of %s alone do everything once', async (task) => {
    await giveWork(['p1', 'p2'])
    await one.sql.unsafe('begin')
    const first = await run(task, { limit: 1 }, one.sql)
    await two.sql.unsafe("set lock_timeout = '1s'")
    const second = await run(task, {}, two.sql)
    await two.sql.unsafe('reset lock_timeout')
    await one.sql.unsafe('commit')
    expect(first).toHaveLength(2)
    // Clearing has two files of each pipeline, the others one.
    expect(second).toHaveLength(task === 'clear_completed_checkpoints' ? 2 : 0)
    expect(await run(task)).toEqual([])
  })
})

describe('a run that is killed in the middle', () => {
  // Where it is to stand still: a trigger of the test waits there for a lock that the test holds.
  const places: [task: string, table: string, event: string][] = [
    ['clearing', 'checkpoint_history', 'delete'],
    ['purging', 'purged_files', 'insert'],
    ['adding up', 'activity', 'insert'],
    ['reclaiming', 'file_events', 'insert'],
    ['truncating', 'long_histories', 'delete'],
    ['recording', 'maintenance_runs', 'insert'],
  ]

  test.each(places)('(%s) has done nothing, and the next one does it all', async (_task, table, event) => {
    await giveWork(['p1', 'p2'])
    await db.sql.unsafe(`
      create or replace function public.stand_still() returns trigger language plpgsql as $$
      begin
        perform pg_advisory_xact_lock(4711);
        return coalesce(new, old);
      end $$;
      create trigger stand_still after ${event} on filemark.${table}
        for each row when (pg_trigger_depth() = 0) execute function public.stand_still()`)
    const before = await contents(db.sql)
    const victim = await db.connect()
    await one.sql.unsafe('begin')
    await one.sql`select pg_advisory_xact_lock(4711)`
    const killed = started(maintain(victim.sql))
    await untilLocked(db.sql, victim.pid)
    await db.sql`select pg_terminate_backend(${victim.pid})`
    await expect(killed).rejects.toThrow(/terminat|closed/i)
    await until(
      async () => (await db.sql`select from pg_stat_activity where pid = ${victim.pid}`).length === 0,
    )
    await one.sql.unsafe('rollback')
    await db.sql.unsafe(`drop trigger stand_still on filemark.${table}`)

    expect(await contents(db.sql)).toEqual(before)
    expect(await maintain()).toMatchObject({
      'p1 clear_completed_checkpoints': 2,
      'p1 purge_files': 1,
      'p2 purge_files': 1,
      'p2 reclaim_stale_claims': 1,
      'p2 truncate_checkpoint_history': 1,
    })
  })
})

test('requests of batch claims are forgotten after a day, and never while somebody is at them', async () => {
  await register(db.sql, ...['a', 'b', 'c'].map((file_url) => ({ file_url })))
  for (let round = 0; round < 3; round += 1) await claimNext(db.sql, 1, { request_id: crypto.randomUUID() })
  await db.sql`
    update filemark.claim_requests set claimed_at = claimed_at - interval '25 hours' where file_urls <> '{c}'`
  await one.sql.unsafe('begin')
  await one.sql`select from filemark.claim_requests where file_urls = '{a}' for update`
  await run('reclaim_stale_claims')
  expect([...(await db.sql`select file_urls from filemark.claim_requests order by 1`)]).toEqual([
    { file_urls: ['a'] },
    { file_urls: ['c'] },
  ])
  await one.sql.unsafe('rollback')
  await run('reclaim_stale_claims')
  expect(await db.sql`select from filemark.claim_requests`).toHaveLength(1)
})

test('a repeat of maintenance leaves every row as it is', async () => {
  await giveWork(['p1'])
  await maintain()
  await maintain()
  const before = await state()
  await maintain()
  expect(await state()).toEqual(before)
  expect(await tryClaim(db.sql, 'p1/purge', { pipeline: 'p1' })).toMatchObject({ outcome: 'completed' })
})
