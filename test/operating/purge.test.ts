import postgres, { type Sql } from 'postgres'
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
import { contents, empty, eventNames, expireLease, fileRow } from '../behaviour/tables.ts'
import { seededRandom, shuffled, wholeNumber } from '../crash/random.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'

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

/** Claims and completes a file; answers the token. */
async function load(url: string, args: Record<string, unknown> = {}): Promise<string> {
  const { claim_token } = await claim(db.sql, url, args)
  await checkpoint(db.sql, url, claim_token, 10)
  await complete(db.sql, url, claim_token, { records_total: 10, records_persisted: 10 })
  return claim_token
}

/** Purges every completed file. */
async function purge(sql: Sql = db.sql): Promise<string[]> {
  await configure(db.sql, { keep_files_days: 0 })
  const rows = await call<{ file_url: string; action: string }>(sql, 'filemark.purge_files')
  expect(rows.every(({ action }) => action === 'purged')).toBe(true)
  return rows.map(({ file_url }) => file_url)
}

async function loadAndPurge(url: string, args: Record<string, unknown> = {}): Promise<string> {
  const token = await load(url, args)
  expect(await purge()).toEqual([url])
  return token
}

async function isPurged(url: string): Promise<boolean> {
  const rows = await db.sql`select from filemark.purged_files where file_hash = filemark.short_hash(${url})`
  const files = await db.sql`select from filemark.file_checkpoints where file_url = ${url}`
  expect(rows.length + files.length).toBeLessThanOrEqual(1)
  return rows.length > 0
}

async function stats(): Promise<Record<string, unknown>> {
  return only(await call(db.sql, 'pipeline_stats', { pipeline: 'default' }))
}

describe('purge_files', () => {
  test('removes files completed more than keep_files_days ago, and nothing else', async () => {
    for (const url of ['old', 'young', 'again']) await load(url)
    const failed = await claim(db.sql, 'failed')
    await fail(db.sql, 'failed', failed.claim_token)
    const dead = await claim(db.sql, 'dead')
    await fail(db.sql, 'dead', dead.claim_token, { retryable: false })
    await claim(db.sql, 'running')
    await register(db.sql, { file_url: 'waiting' })
    await load('skipped')
    await db.sql`
      update filemark.file_checkpoints set completed_at = completed_at - interval '8 days' where file_url <> 'young' and status = 'completed'`
    await call(db.sql, 'requeue_file', { file_url: 'again' })
    await call(db.sql, 'skip_file', { file_url: 'skipped' })

    expect(await call(db.sql, 'filemark.purge_files')).toEqual([])
    await configure(db.sql, { keep_files_days: 7 })
    expect(await call(db.sql, 'filemark.purge_files')).toEqual([
      { pipeline: 'default', file_url: 'old', action: 'purged' },
    ])
    expect(await call(db.sql, 'filemark.purge_files')).toEqual([])
    const left = await db.sql`select file_url from filemark.file_checkpoints order by 1`
    expect(left.map(({ file_url }) => file_url)).toEqual([
      'again',
      'dead',
      'failed',
      'running',
      'skipped',
      'waiting',
      'young',
    ])
  })

  test('leaves of a file with history, audit and dead letters one row, and no trace of its name', async () => {
    await configure(db.sql, { history_limit: 1 })
    const first = await claim(db.sql, 'secret-name.csv', { etag: 'e1' })
    await fail(db.sql, 'secret-name.csv', first.claim_token, { retryable: false })
    await call(db.sql, 'requeue_file', { file_url: 'secret-name.csv' })
    const second = await claim(db.sql, 'secret-name.csv')
    for (const items of [1, 2, 3]) await checkpoint(db.sql, 'secret-name.csv', second.claim_token, items)
    await complete(db.sql, 'secret-name.csv', second.claim_token)
    expect((await contents(db.sql)).filter((row) => row.includes('secret-name')).length).toBeGreaterThan(7)

    expect(await purge()).toEqual(['secret-name.csv'])
    const rows = await contents(db.sql)
    expect(rows.filter((row) => row.includes('secret-name'))).toEqual([])
    expect(rows.filter((row) => row.startsWith('filemark.purged_files'))).toHaveLength(1)
  })

  test('keeps less than 120 bytes of a file, however long its name and its etag', async () => {
    const long = { file_type: 'csv', etag: 'e'.repeat(1024) }
    await register(
      db.sql,
      ...Array.from({ length: 200 }, (_, i) => ({ ...long, file_url: `${i}-`.padEnd(2000, 'x') })),
    )
    for (const { file_url, claim_token } of [
      ...(await claimNext(db.sql, 100)),
      ...(await claimNext(db.sql, 100)),
    ]) {
      await complete(db.sql, file_url, claim_token)
    }
    expect(await purge()).toHaveLength(200)
    const size = only(
      await db.sql`
      select max(pg_column_size(g.*)) as widest, count(*)::int from filemark.purged_files g`,
    )
    expect(size).toEqual({ widest: expect.any(Number), count: 200 })
    expect(size.widest).toBeLessThan(120)
  })

  test('has a row of what is left for a file that was purged, came back and is purged again', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    expect(await load('a', { etag: 'e2' })).toBe('2')
    expect(await purge()).toEqual(['a'])
    expect(await tryClaim(db.sql, 'a', { etag: 'e2' })).toMatchObject({ outcome: 'completed' })
    expect(await load('a', { etag: 'e3' })).toBe('3')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ generation: '3' })
  })
})

/** What a claimer and a lister may say of a file whose content is what was loaded, by the etag it was loaded with. */
const sameContent: [string, { loaded?: string; seen?: string }][] = [
  ['loaded and seen without an etag', {}],
  ['loaded with an etag and seen without', { loaded: 'e1' }],
  ['seen with the etag it was loaded with', { loaded: 'e1', seen: 'e1' }],
]

describe('a purged file', () => {
  describe.each(sameContent)('%s', (_what, { loaded, seen }) => {
    beforeEach(async () => {
      await loadAndPurge('a', loaded ? { etag: loaded } : {})
    })

    test('is answered completed to a claim by name, which writes nothing and waits for nobody', async () => {
      await configure(db.sql, { max_concurrency: 1 })
      const before = await contents(db.sql)
      // Whoever claims in this pipeline holds its row meanwhile.
      await one.sql.unsafe('begin')
      await one.sql`select from filemark.pipelines for update`
      expect(await tryClaim(db.sql, 'a', seen ? { etag: seen } : {})).toMatchObject({
        outcome: 'completed',
        file_url: 'a',
        claim_token: null,
      })
      await one.sql.unsafe('rollback')
      expect(await contents(db.sql)).toEqual(before)
    })

    test('is not registered again', async () => {
      const before = await contents(db.sql)
      expect(await register(db.sql, { file_url: 'a', ...(seen && { etag: seen }) })).toEqual({
        registered: '0',
        new_generations: '0',
        unchanged: '1',
      })
      expect(await contents(db.sql)).toEqual(before)
      expect(await claimNext(db.sql, 10)).toEqual([])
    })
  })

  test('takes the first etag it is given, and another one after that is new content', async () => {
    await loadAndPurge('a')
    await loadAndPurge('b')
    expect(await register(db.sql, { file_url: 'a', etag: 'e1' })).toMatchObject({ unchanged: '1' })
    expect(await tryClaim(db.sql, 'b', { etag: 'e1' })).toMatchObject({ outcome: 'completed' })
    for (const url of ['a', 'b']) {
      expect(await isPurged(url)).toBe(true)
      expect(await tryClaim(db.sql, url, { etag: 'e1' })).toMatchObject({ outcome: 'completed' })
      expect(await register(db.sql, { file_url: url, etag: 'e1' })).toMatchObject({ unchanged: '1' })
    }
    expect(await register(db.sql, { file_url: 'a', etag: 'e2' })).toMatchObject({ new_generations: '1' })
    expect(await tryClaim(db.sql, 'b', { etag: 'e2' })).toMatchObject({ outcome: 'claimed', generation: '2' })
  })

  test('seen with another etag is a new generation, pending, with what it is registered with', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    const now = { file_type: 'json', etag: 'e2', size_bytes: 7, priority: 3, metadata: { shift: 'late' } }
    expect(await register(db.sql, { file_url: 'a', ...now })).toEqual({
      registered: '0',
      new_generations: '1',
      unchanged: '0',
    })
    expect(await isPurged('a')).toBe(false)
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      ...now,
      size_bytes: '7',
      status: 'pending',
      generation: '2',
      claim_token: '1',
      cursor: null,
    })
    expect(await eventNames(db.sql, 'a')).toEqual(['overwritten'])
    expect(await claimNext(db.sql)).toMatchObject([{ file_url: 'a', claim_token: '2', attempts: 1 }])
  })

  test('seen with another etag by a claim is claimed as a new generation', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    expect(await tryClaim(db.sql, 'a', { etag: 'e2' })).toMatchObject({
      outcome: 'claimed',
      etag: 'e2',
      generation: '2',
      claim_token: '2',
      cursor: null,
      checkpoint_seq: '0',
    })
  })

  test('of a paused pipeline, seen with another etag by a claim, is loaded once when it goes on', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    await configure(db.sql, { paused: true })
    expect(await tryClaim(db.sql, 'a', { etag: 'e2' })).toMatchObject({ outcome: 'paused' })
    expect(await tryClaim(db.sql, 'a', { etag: 'e1' })).toMatchObject({ outcome: 'completed' })
    await configure(db.sql, { paused: false })
    expect(await tryClaim(db.sql, 'a', { etag: 'e2' })).toMatchObject({ outcome: 'claimed', generation: '2' })
  })

  test('stays purged whatever etag comes, where new content is ignored', async () => {
    await configure(db.sql, { on_overwrite: 'ignore' })
    await loadAndPurge('a', { etag: 'e1' })
    expect(await register(db.sql, { file_url: 'a', etag: 'e2' })).toMatchObject({ unchanged: '1' })
    expect(await tryClaim(db.sql, 'a', { etag: 'e2' })).toMatchObject({ outcome: 'completed' })
    expect(await isPurged('a')).toBe(true)
    await configure(db.sql, { on_overwrite: 'reprocess' })
    expect(await register(db.sql, { file_url: 'a', etag: 'e2' })).toMatchObject({ new_generations: '1' })
  })

  test('counts by its last entry in a list that names it twice', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    expect(
      await register(db.sql, { file_url: 'a', etag: 'e2' }, { file_url: 'b' }, { file_url: 'a', etag: 'e1' }),
    ).toEqual({ registered: '1', new_generations: '0', unchanged: '2' })
    expect(await isPurged('a')).toBe(true)
  })

  test('is not among pending_files, nor listed, and get_file_checkpoint knows that it is completed', async () => {
    await loadAndPurge('a')
    expect(await call(db.sql, 'pending_files', { file_urls: ['a', 'b'] })).toEqual([{ file_url: 'b' }])
    expect(await call(db.sql, 'list_file_checkpoints')).toEqual([])
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      file_url: 'a',
      status: 'completed',
      file_type: 'csv',
      file_timestamp: new Date('2026-01-01T00:00:00Z'),
      generation: '1',
      claim_token: '1',
    })
  })

  test('is requeued with a token that grows, in its generation, and takes the etag it is then seen with', async () => {
    await loadAndPurge('a', { etag: 'e1' })
    expect(await call(db.sql, 'requeue_file', { file_url: 'a', reason: 'bad data' })).toEqual([
      { status: 'pending', checkpoint_seq: '0' },
    ])
    expect(await isPurged('a')).toBe(false)
    expect(await eventNames(db.sql, 'a')).toEqual(['requeued'])
    expect(await register(db.sql, { file_url: 'a', etag: 'e2' })).toMatchObject({ unchanged: '1' })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({
      outcome: 'claimed',
      claim_token: '2',
      generation: '1',
      etag: 'e2',
      attempts: 1,
    })
  })

  test('can be skipped, and is then no longer answered completed', async () => {
    await loadAndPurge('a')
    await call(db.sql, 'skip_file', { file_url: 'a', reason: 'withdrawn' })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'skipped' })
    expect(await stats()).toMatchObject({ completed: '0', skipped: '1', total: '1' })
  })

  test.each([
    ['requeue_file from a checkpoint of its history', 'requeue_file', { from: 'checkpoint:1' }, 'PT400'],
    ['dead_letter_file', 'filemark.dead_letter_file', {}, 'PT422'],
    ['resolve_dead_letter', 'filemark.resolve_dead_letter', { resolution: 'requeued' }, 'PT422'],
  ])('stays purged when %s is refused', async (_what, name, args, code) => {
    await loadAndPurge('a')
    const before = await contents(db.sql)
    expect(await refusal(call(db.sql, name, { file_url: 'a', ...args }))).toMatchObject({ code })
    expect(await contents(db.sql)).toEqual(before)
  })

  describe('answers a repeat of its last claim as before:', () => {
    const writes: Record<string, (sql: Sql, token: string) => Promise<unknown>> = {
      checkpoint_file: (sql, token) => checkpoint(sql, 'a', token, 20),
      extend_claim: (sql, claim_token) => call(sql, 'extend_claim', { file_url: 'a', claim_token }),
      fail_file: (sql, token) => fail(sql, 'a', token),
      release_file: (sql, token) => release(sql, 'a', token),
      assert_claim: (sql, claim_token) => call(sql, 'filemark.assert_claim', { file_url: 'a', claim_token }),
    }

    test('complete_file says already_completed', async () => {
      const token = await loadAndPurge('a')
      expect(await complete(db.sql, 'a', token)).toBe('already_completed')
      const finished = { worker_id: 'w1', completions: [{ file_url: 'a', claim_token: Number(token) }] }
      expect(await call(db.sql, 'complete_and_claim_next', finished)).toEqual([])
    })

    test('complete_file by a claim before the last one is told that it is lost', async () => {
      const { claim_token } = await claim(db.sql, 'a')
      await expireLease(db.sql)
      expect(await loadAndPurge('a')).toBe('2')
      expect(await refusal(complete(db.sql, 'a', claim_token))).toMatchObject({ code: 'PT409' })
    })

    test.each(Object.keys(writes))(
      '%s says that the claim ended, not that the file is unknown',
      async (name) => {
        const token = await loadAndPurge('a')
        expect(await refusal(pick(writes, name)(db.sql, token))).toMatchObject({ code: 'PT409' })
        expect(await isPurged('a')).toBe(true)
      },
    )

    test('claim_file and claim_next_files with the same p_request_id claim nothing', async () => {
      const request_id = crypto.randomUUID()
      const { claim_token } = await claim(db.sql, 'a', { request_id })
      await complete(db.sql, 'a', claim_token)
      await register(db.sql, { file_url: 'b' })
      const batch = crypto.randomUUID()
      const [next] = await claimNext(db.sql, 1, { request_id: batch })
      await complete(db.sql, 'b', next?.claim_token ?? '')
      expect(await purge()).toEqual(['a', 'b'])
      expect(await tryClaim(db.sql, 'a', { request_id })).toMatchObject({ outcome: 'completed' })
      expect(await claimNext(db.sql, 1, { request_id: batch })).toEqual([])
    })
  })
})

describe('while a purge of the file is under way in another session,', () => {
  beforeEach(async () => {
    await load('a', { etag: 'e1' })
    await register(db.sql, { file_url: '0' }, { file_url: 'z' })
    await configure(db.sql, { keep_files_days: 0 })
    await one.sql.unsafe('begin')
    expect(await call(one.sql, 'filemark.purge_files')).toMatchObject([{ file_url: 'a' }])
  })

  /** Calls that wait for the purge, and what is to be when it has committed. */
  const meetings: [string, () => Promise<unknown>, unknown, Record<string, unknown>][] = [
    [
      'a list without etags finds it completed',
      () => register(two.sql, { file_url: 'a' }, { file_url: 'b' }),
      { registered: '1', new_generations: '0', unchanged: '1' },
      { status: 'completed', generation: '1', claim_token: '1' },
    ],
    [
      'a list with its etag finds it completed',
      () => register(two.sql, { file_url: 'a', etag: 'e1' }),
      { registered: '0', new_generations: '0', unchanged: '1' },
      { status: 'completed', generation: '1', claim_token: '1' },
    ],
    [
      'a list with another etag starts a generation',
      () => register(two.sql, { file_url: 'a', etag: 'e2' }, { file_url: 'b' }),
      { registered: '1', new_generations: '1', unchanged: '0' },
      { status: 'pending', etag: 'e2', generation: '2', claim_token: '1' },
    ],
    [
      'a claim with another etag gets the next generation',
      () => tryClaim(two.sql, 'a', { etag: 'e2' }),
      { outcome: 'claimed', claim_token: '2' },
      { status: 'processing', etag: 'e2', generation: '2', claim_token: '2' },
    ],
    [
      'requeue_file puts it back',
      async () => only(await call(two.sql, 'requeue_file', { file_url: 'a' })),
      { status: 'pending', checkpoint_seq: '0' },
      { status: 'pending', generation: '1', claim_token: '1' },
    ],
    [
      'skip_file takes it out',
      async () => only(await call(two.sql, 'skip_file', { file_url: 'a' })),
      {},
      { status: 'skipped', generation: '1', claim_token: '1' },
    ],
    [
      'a late repeat of complete_file is told that it is completed',
      () => complete(two.sql, 'a', '1'),
      'already_completed',
      { status: 'completed', claim_token: '1' },
    ],
  ]

  test.each(meetings)('%s', async (_what, meet, answer, row) => {
    const met = started(meet())
    await untilLocked(db.sql, two.pid)
    await one.sql.unsafe('commit')
    const met_with = await met
    if (typeof answer === 'string') expect(met_with).toBe(answer)
    else expect(met_with).toMatchObject(answer as object)
    expect(await fileRow(db.sql, 'a')).toMatchObject(row)
    expect(await isPurged('a')).toBe(row.status === 'completed')
    expect(await stats()).toMatchObject({ completed: row.status === 'completed' ? '1' : '0' })
  })

  test.each(meetings.filter(([what]) => !what.includes('list with its etag')))(
    '%s, when the purge is rolled back too',
    async (_what, meet, answer, { generation = '1', claim_token, status }) => {
      const met = started(meet())
      await untilLocked(db.sql, two.pid)
      await one.sql.unsafe('rollback')
      const met_with = await met
      if (typeof answer === 'string') expect(met_with).toBe(answer)
      else
        expect(Object.keys(met_with as object)).toEqual(expect.arrayContaining(Object.keys(answer as object)))
      expect(await fileRow(db.sql, 'a')).toMatchObject({ generation, claim_token, status })
      expect(await isPurged('a')).toBe(false)
    },
  )

  test('a claim without an etag is answered completed at once', async () => {
    expect(await tryClaim(two.sql, 'a')).toMatchObject({ outcome: 'completed' })
  })

  test('a second purge passes over it', async () => {
    await load('b')
    expect(await call(two.sql, 'filemark.purge_files')).toMatchObject([{ file_url: 'b' }])
    await one.sql.unsafe('commit')
    expect(await call(two.sql, 'filemark.purge_files')).toEqual([])
    expect(await stats()).toMatchObject({ completed: '2', total: '4' })
  })
})

describe('a purged file that two sessions see at once', () => {
  const pairs: [string, (sql: Sql) => Promise<unknown>, (sql: Sql) => Promise<unknown>, unknown, object][] = [
    [
      'by requeue_file is requeued once',
      (sql) => call(sql, 'requeue_file', { file_url: 'a' }),
      (sql) => call(sql, 'requeue_file', { file_url: 'a' }),
      [{ status: 'pending', checkpoint_seq: '0' }],
      { status: 'pending', claim_token: '1', generation: '1' },
    ],
    [
      'with the same new etag has one new generation',
      (sql) => register(sql, { file_url: 'a', etag: 'e2' }),
      (sql) => register(sql, { file_url: 'a', etag: 'e2' }),
      { registered: '0', new_generations: '0', unchanged: '1' },
      { status: 'pending', generation: '2' },
    ],
    [
      'with two new etags has two new generations',
      (sql) => register(sql, { file_url: 'a', etag: 'e2' }),
      (sql) => register(sql, { file_url: 'a', etag: 'e3' }),
      { registered: '0', new_generations: '1', unchanged: '0' },
      { status: 'pending', generation: '3', etag: 'e3' },
    ],
    [
      'by claims with a new etag is claimed once',
      (sql) => tryClaim(sql, 'a', { etag: 'e2' }),
      async (sql) => (await tryClaim(sql, 'a', { etag: 'e2' })).outcome,
      'held',
      { status: 'processing', generation: '2', claim_token: '2' },
    ],
    [
      'by a claim with a new etag and a requeue is held',
      (sql) => tryClaim(sql, 'a', { etag: 'e2' }),
      (sql) => refusal(call(sql, 'requeue_file', { file_url: 'a' })),
      { code: 'PT422', message: 'file "a" is being processed by w1' },
      { status: 'processing', generation: '2', claim_token: '2' },
    ],
  ]

  test.each(pairs)('%s', async (_what, first, second, answer, row) => {
    await loadAndPurge('a', { etag: 'e1' })
    await one.sql.unsafe('begin')
    await first(one.sql)
    const met = started(second(two.sql))
    await untilLocked(db.sql, two.pid)
    await one.sql.unsafe('commit')
    expect(await met).toEqual(answer)
    expect(await fileRow(db.sql, 'a')).toMatchObject(row)
    expect(await isPurged('a')).toBe(false)
  })

  test('each with a first etag, has new content for the second', async () => {
    await loadAndPurge('a')
    await one.sql.unsafe('begin')
    expect(await register(one.sql, { file_url: 'a', etag: 'e1' })).toMatchObject({ unchanged: '1' })
    const met = started(register(two.sql, { file_url: 'a', etag: 'e2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql.unsafe('commit')
    expect(await met).toMatchObject({ new_generations: '1' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', etag: 'e2', generation: '2' })
  })
})

test('a registration that a purge overtakes in a repeatable read transaction does not stop later purges', async () => {
  await load('a')
  await one.sql.unsafe('begin isolation level repeatable read')
  await one.sql`select from filemark.file_checkpoints`
  expect(await purge()).toEqual(['a'])
  // It cannot see that, and takes the file for a new one.
  expect(await register(one.sql, { file_url: 'a' })).toMatchObject({ registered: '1' })
  await one.sql.unsafe('commit')
  await load('a')
  expect(await purge()).toEqual(['a'])
  expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'completed' })
})

test('what pipeline_stats counts as completed is what is completed, whatever is done in whatever order', async () => {
  const urls = ['a', 'b', 'c', 'd']
  const random = seededRandom(20261120)
  const steps: Record<string, (url: string) => Promise<unknown>> = {
    load: (url) => load(url),
    requeue: (url) => call(db.sql, 'requeue_file', { file_url: url, force: true }),
    skip: (url) => call(db.sql, 'skip_file', { file_url: url }),
    overwrite: (url) => register(db.sql, { file_url: url, etag: `e${wholeNumber(random, 1, 1000)}` }),
    purge: () => purge(),
    maintain: () => call(db.sql, 'filemark.run_maintenance'),
    list: () => register(db.sql, ...urls.map((file_url) => ({ file_url }))),
  }
  const names = Object.keys(steps)
  await configure(db.sql, { keep_files_days: 0 })
  for (let round = 0; round < 300; round += 1) {
    const [name = ''] = shuffled(random, names)
    const [url = ''] = shuffled(random, urls)
    const step = pick(steps, name)
    await step(url).catch((error: Error) => {
      // Not every step is allowed in every state.
      if (!/is unknown|is being processed|was not claimed/.test(error.message)) throw error
    })
    const now = only(
      await db.sql`
        select files.completed + purged.files as completed, files.total + purged.files as total,
               purged.files as purged,
               (select coalesce(sum(t.files), 0)::bigint from filemark.totals('default') t
                 where t.what = 'purged') as tallied
          from (select count(*) filter (where status = 'completed') as completed, count(*) as total
                  from filemark.file_checkpoints) files
         cross join (select count(*) as files from filemark.purged_files) purged`,
    )
    const { completed, total } = now
    expect([round, name, await stats()]).toMatchObject([round, name, { completed, total }])
    expect([round, name, now.tallied]).toEqual([round, name, now.purged])
  }
  expect(Number((await stats()).completed)).toBeGreaterThan(0)
})

test('a register call of 3 MB with 10,000 purged files reads a few rows per file', async () => {
  const files = Array.from({ length: 10_000 }, (_, index) => ({
    file_url: `https://example.com/drop/${'x'.repeat(120)}/part-${index}.csv`,
    file_type: 'csv',
    file_timestamp: '2026-01-01T00:00:00Z',
    etag: 'e1',
    metadata: { source: 'drop', note: 'y'.repeat(80) },
  }))
  expect(JSON.stringify(files).length).toBeGreaterThan(3_000_000)
  await call(db.sql, 'register_files', { files })
  await db.sql`
    update filemark.file_checkpoints
       set status = 'completed', claim_token = 1, claim_ended = 'completed', completed_at = clock_timestamp()`
  await configure(db.sql, { keep_files_days: 0 })
  expect(await call(db.sql, 'filemark.purge_files', { limit: 10_000 })).toHaveLength(10_000)

  const plans: { Plan: PlanNode }[] = []
  const onnotice = ({ message = '' }: { message?: string }) => {
    if (message.includes('plan:')) plans.push(JSON.parse(message.slice(message.indexOf('{'))))
  }
  const explained = postgres(db.url, { max: 1, onnotice })
  await explained.unsafe(`
    load 'auto_explain';
    set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on;
    set auto_explain.log_timing = off;
    set auto_explain.log_format = 'json';
    set auto_explain.log_level = 'notice';
    set auto_explain.log_min_duration = 0`)
  expect(await call(explained, 'register_files', { files })).toEqual([
    { registered: '0', new_generations: '0', unchanged: '10000' },
  ])
  await explained.end()
  const most = Math.max(...plans.map(({ Plan }) => rowsRead(Plan)))
  expect(most).toBeGreaterThan(9_999)
  expect(most).toBeLessThan(10 * 10_000)
})

interface PlanNode {
  'Actual Rows': number
  'Actual Loops': number
  'Rows Removed by Filter'?: number
  'Rows Removed by Join Filter'?: number
  Plans?: PlanNode[]
}

function rowsRead(node: PlanNode): number {
  const removed = (node['Rows Removed by Filter'] ?? 0) + (node['Rows Removed by Join Filter'] ?? 0)
  const own = (node['Actual Rows'] + removed) * node['Actual Loops']
  return own + (node.Plans ?? []).reduce((sum, child) => sum + rowsRead(child), 0)
}
