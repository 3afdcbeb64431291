import { randomUUID } from 'node:crypto'
import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'
import {
  type Claim,
  type ClaimRow,
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
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow, historyOf, makeDue } from './tables.ts'

let db: TestDatabase
let one: TestConnection
let two: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
  await db.sql`create table target (id int primary key, note text default 'none')`
})
beforeEach(() => empty(db.sql))
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
})
afterAll(() => db.drop())

/** Calls twice: the second answer must be the first one's, and no row of any table may have been written again. */
async function expectSafeToRepeat<T>(
  write: () => Promise<T>,
  answer = (first: T): unknown => first,
): Promise<T> {
  const before = await contents(db.sql)
  const first = await write()
  const after = await contents(db.sql)
  // A call without an effect would prove nothing.
  expect(after).not.toEqual(before)
  expect(await write()).toEqual(answer(first))
  expect(await contents(db.sql)).toEqual(after)
  return first
}

function completionsOf(claims: readonly Claim[]): Record<string, unknown>[] {
  return claims.map(({ file_url, claim_token }) => ({ file_url, claim_token: Number(claim_token) }))
}

function persist(sql: Sql, token: string, args: Record<string, unknown> = {}): Promise<unknown> {
  return call(sql, 'persist_records', {
    file_url: 'a',
    claim_token: token,
    target: 'public.target',
    records: [{ id: 1 }, { id: 2, note: 'x' }],
    cursor: { next: 2 },
    items_processed: 2,
    ...args,
  })
}

describe('rule 6.3: a repeat changes nothing, and answers as before:', () => {
  test('register_files, which finds everything unchanged', async () => {
    const files = [
      { file_url: 'a', etag: '1' },
      { file_url: 'b', metadata: { n: 1 }, priority: 3 },
    ]
    const registered = (counts: number[]): unknown => ({
      registered: `${counts[0]}`,
      new_generations: `${counts[1]}`,
      unchanged: `${counts[2]}`,
    })
    const first = await expectSafeToRepeat(
      () => register(db.sql, ...files),
      () => registered([0, 0, 2]),
    )
    expect(first).toEqual(registered([2, 0, 0]))
    const again = await expectSafeToRepeat(
      () => register(db.sql, { file_url: 'a', etag: '2' }, { file_url: 'b' }, { file_url: 'c' }),
      () => registered([0, 0, 3]),
    )
    expect(again).toEqual(registered([1, 1, 1]))
  })

  test('register_files with news on a file that is being processed', async () => {
    await claim(db.sql, 'a', { etag: '1' })
    const first = await expectSafeToRepeat(
      () => register(db.sql, { file_url: 'a', etag: '2' }),
      () => ({ registered: '0', new_generations: '0', unchanged: '1' }),
    )
    expect(first).toMatchObject({ new_generations: '1' })
  })

  test('claim_file with its request id', async () => {
    const request_id = randomUUID()
    await expectSafeToRepeat(() => claim(db.sql, 'new', { request_id, etag: '1' }))
    await register(db.sql, { file_url: 'known' })
    await expectSafeToRepeat(() => claim(db.sql, 'known', { request_id }))
  })

  test('claim_file with its request id, that took a file over', async () => {
    await claim(db.sql, 'a', { worker_id: 'dead', request_id: randomUUID() })
    await expireLease(db.sql)
    const request_id = randomUUID()
    const taken = await expectSafeToRepeat(() => claim(db.sql, 'a', { request_id }))
    expect(taken).toMatchObject({ claim_token: '2', attempts: 2 })
  })

  test('claim_file with its request id, with the progress that was saved meanwhile', async () => {
    const request_id = randomUUID()
    const { claim_token } = await claim(db.sql, 'a', { request_id })
    await checkpoint(db.sql, 'a', claim_token, 5)
    expect(await claim(db.sql, 'a', { request_id })).toMatchObject({ claim_token, items_processed: '5' })
  })

  test('claim_file with its request id, when its lease is over and nobody overtook it', async () => {
    const request_id = randomUUID()
    const { claim_token } = await claim(db.sql, 'a', { request_id })
    await expireLease(db.sql)
    const before = await contents(db.sql)
    expect(await claim(db.sql, 'a', { request_id })).toMatchObject({ claim_token, attempts: 1 })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('claim_next_files with its request id', async () => {
    await register(
      db.sql,
      ...['a', 'b', 'c', 'd'].map((file_url) => ({ file_url, priority: file_url === 'c' ? 1 : 0 })),
    )
    const request_id = randomUUID()
    const got = await expectSafeToRepeat(() => claimNext(db.sql, 3, { request_id }))
    expect(got.map((row) => row.file_url)).toEqual(['c', 'a', 'b'])
  })

  test('claim_next_files with its request id, that took files over', async () => {
    await claim(db.sql, 'a', { worker_id: 'dead' })
    await expireLease(db.sql)
    await register(db.sql, { file_url: 'b' })
    const request_id = randomUUID()
    const got = await expectSafeToRepeat(() => claimNext(db.sql, 5, { request_id }))
    expect(got.map((row) => row.file_url).sort()).toEqual(['a', 'b'])
  })

  test('checkpoint_file with its number', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const args = { checkpoint_seq: 1, accumulated_results: { sum: 1 }, items_total: 10 }
    const first = await expectSafeToRepeat(() => checkpoint(db.sql, 'a', claim_token, 5, args))
    expect(first).toMatchObject({ checkpoint_seq: '1', history_length: '1' })
    await expectSafeToRepeat(() => checkpoint(db.sql, 'a', claim_token, 5, { checkpoint_seq: 2 }))
    expect(await historyOf(db.sql, 'a')).toEqual([1, 2])
  })

  test('persist_records with its number', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const first = await expectSafeToRepeat(() => persist(db.sql, claim_token, { checkpoint_seq: 1 }))
    expect(first).toMatchObject([{ records_persisted: '2', checkpoint_seq: '1' }])
    expect(await db.sql`select id, note from target order by id`).toEqual([
      { id: 1, note: 'none' },
      { id: 2, note: 'x' },
    ])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ records_persisted: '2' })
  })

  test('persist_records without its number, known by its position', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await expectSafeToRepeat(() => persist(db.sql, claim_token))
    const second = await expectSafeToRepeat(() =>
      persist(db.sql, claim_token, { records: [{ id: 3 }], cursor: { next: 3 }, items_processed: 3 }),
    )
    expect(second).toMatchObject([{ records_persisted: '1', checkpoint_seq: '2' }])
  })

  test('persist_records into a table without any key, where a second effect would show', async () => {
    await db.sql`create table keyless (id int)`
    const { claim_token } = await claim(db.sql, 'a')
    const batch = { target: 'keyless', records: [{ id: 1 }, { id: 1 }] }
    await expectSafeToRepeat(() => persist(db.sql, claim_token, batch))
    await expectSafeToRepeat(() =>
      persist(db.sql, claim_token, { ...batch, checkpoint_seq: 2, items_processed: 4 }),
    )
    expect(await db.sql`select from keyless`).toHaveLength(4)
    await db.sql`drop table keyless`
  })

  test('extend_claim, which moves nothing but the lease', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    async function extend(): Promise<Date> {
      const answer = await call<{ extend_claim: Date }>(db.sql, 'extend_claim', {
        file_url: 'a',
        claim_token,
      })
      return only(answer).extend_claim
    }
    const before = await fileRow(db.sql, 'a')
    const first = await extend()
    const second = await extend()
    expect(second.getTime()).toBeGreaterThanOrEqual(first.getTime())
    expect(await fileRow(db.sql, 'a')).toEqual({ ...before, lease_expires_at: second })
  })

  test('complete_file, which says so', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const first = await expectSafeToRepeat(
      () => complete(db.sql, 'a', claim_token, { records_total: 5, accumulated_results: { n: 1 } }),
      () => 'already_completed',
    )
    expect(first).toBe('completed')
    // Not even with other numbers.
    const before = await contents(db.sql)
    expect(await complete(db.sql, 'a', claim_token, { records_total: 6, etag: 'e9' })).toBe(
      'already_completed',
    )
    expect(await contents(db.sql)).toEqual(before)
  })

  test('complete_file of content that was superseded', async () => {
    const { claim_token } = await claim(db.sql, 'a', { etag: '1' })
    const first = await expectSafeToRepeat(() => complete(db.sql, 'a', claim_token, { etag: '2' }))
    expect(first).toBe('superseded')
    const noted = await claim(db.sql, 'a')
    await register(db.sql, { file_url: 'a', etag: '3' })
    await expectSafeToRepeat(() => complete(db.sql, 'a', noted.claim_token))
    expect(await fileRow(db.sql, 'a')).toMatchObject({ generation: '3', etag: '3', status: 'pending' })
  })

  test('fail_file', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const first = await expectSafeToRepeat(() => fail(db.sql, 'a', claim_token, { error: { line: 7 } }))
    expect(first).toMatchObject({ status: 'failed', attempts: 1, available_at: expect.any(Date) })
    expect(await eventNames(db.sql, 'a')).toEqual(['failed'])
  })

  test.each([
    { retryable: false, max_attempts: 3 },
    { retryable: true, max_attempts: 1 },
  ])(
    'fail_file that ends in the dead letter ($retryable, $max_attempts)',
    async ({ retryable, max_attempts }) => {
      await configure(db.sql, { max_attempts })
      const { claim_token } = await claim(db.sql, 'a')
      const first = await expectSafeToRepeat(() => fail(db.sql, 'a', claim_token, { retryable }))
      expect(first).toEqual({ status: 'dead_letter', attempts: 1, available_at: null })
      // A repeat that says otherwise comes too late.
      expect(await fail(db.sql, 'a', claim_token, { retryable: !retryable })).toEqual(first)
      expect(await eventNames(db.sql, 'a')).toEqual(['failed', 'dead_lettered'])
    },
  )

  test('fail_file with newer content waiting', async () => {
    const { claim_token } = await claim(db.sql, 'a', { etag: '1' })
    await register(db.sql, { file_url: 'a', etag: '2' })
    const first = await expectSafeToRepeat(() => fail(db.sql, 'a', claim_token))
    expect(first).toMatchObject({ status: 'pending', attempts: 0 })
  })

  test('release_file', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await expectSafeToRepeat(() => release(db.sql, 'a', claim_token))
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', attempts: 0 })
    expect(await eventNames(db.sql, 'a')).toEqual(['released'])
  })

  test('complete_and_claim_next with its request id', async () => {
    await register(db.sql, ...['a', 'b', 'c', 'd', 'e'].map((file_url) => ({ file_url })))
    const completions = completionsOf(await claimNext(db.sql, 2))
    const args = { worker_id: 'w1', completions, limit: 2, request_id: randomUUID() }
    const got = await expectSafeToRepeat(() => call<ClaimRow>(db.sql, 'complete_and_claim_next', args))
    expect(got.map((row) => row.file_url)).toEqual(['c', 'd'])
  })

  test('complete_and_claim_next with its request id and a claim that was lost', async () => {
    await register(db.sql, ...['a', 'b', 'c', 'd'].map((file_url) => ({ file_url })))
    const completions = completionsOf(await claimNext(db.sql, 2))
    await expireLease(db.sql, 'b')
    await claim(db.sql, 'b', { worker_id: 'w2' })
    const args = { worker_id: 'w1', completions, request_id: randomUUID() }
    const got = await expectSafeToRepeat(() => call<ClaimRow>(db.sql, 'complete_and_claim_next', args))
    expect(got.map((row) => [row.outcome, row.file_url])).toEqual([
      ['claim_lost', 'b'],
      ['claimed', 'c'],
    ])
  })

  test('requeue_file', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 5)
    await fail(db.sql, 'a', claim_token)
    const first = await expectSafeToRepeat(() =>
      call(db.sql, 'requeue_file', { file_url: 'a', reason: 'fixed' }),
    )
    expect(first).toEqual([{ status: 'pending', checkpoint_seq: '1' }])
    await expectSafeToRepeat(() => call(db.sql, 'requeue_file', { file_url: 'a', from: 'start' }))
    expect(await eventNames(db.sql, 'a')).toEqual(['failed', 'requeued', 'requeued'])
  })

  test('requeue_file by force', async () => {
    await claim(db.sql, 'a')
    await expectSafeToRepeat(() => call(db.sql, 'requeue_file', { file_url: 'a', force: true }))
    expect(await eventNames(db.sql, 'a')).toEqual(['requeued'])
  })

  test('configure_pipeline', async () => {
    const args = { pipeline: 'default', settings: { max_attempts: 7, max_concurrency: 4, paused: true } }
    const first = await expectSafeToRepeat(() => call(db.sql, 'filemark.configure_pipeline', args))
    expect(first).toMatchObject([{ max_attempts: 7, max_concurrency: 4, paused: true, lease_seconds: 300 }])
    const back = { pipeline: 'default', settings: { max_concurrency: null } }
    await expectSafeToRepeat(() => call(db.sql, 'filemark.configure_pipeline', back))
    expect(await db.sql`select event, detail from filemark.file_events order by event_id`).toEqual([
      {
        event: 'settings_changed',
        detail: { max_attempts: [3, 7], max_concurrency: [null, 4], paused: [false, true] },
      },
      { event: 'settings_changed', detail: { max_concurrency: [4, null] } },
    ])
  })

  test('reclaim_stale_claims, which finds nothing more to do', async () => {
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    const first = await expectSafeToRepeat(
      () => call(db.sql, 'filemark.reclaim_stale_claims'),
      () => [],
    )
    expect(first).toEqual([{ pipeline: 'default', file_url: 'a', action: 'reclaimed' }])
  })
})

describe('rule 6.3: a request whose claims have ended meanwhile claims nothing more:', () => {
  const ends: Record<string, (claimed: Claim) => Promise<unknown>> = {
    completed: ({ file_url, claim_token }) => complete(db.sql, file_url, claim_token),
    'failed, and due again': async ({ file_url, claim_token }) => {
      await fail(db.sql, file_url, claim_token)
      await makeDue(db.sql, file_url)
    },
    'failed for good': ({ file_url, claim_token }) =>
      fail(db.sql, file_url, claim_token, { retryable: false }),
    released: ({ file_url, claim_token }) => release(db.sql, file_url, claim_token),
    'taken over': async ({ file_url }) => {
      await expireLease(db.sql, file_url)
      await claim(db.sql, file_url, { worker_id: 'w2' })
    },
    'taken over by another request': async ({ file_url }) => {
      await expireLease(db.sql, file_url)
      await claim(db.sql, file_url, { worker_id: 'w1', request_id: randomUUID() })
    },
    reclaimed: async ({ file_url }) => {
      await expireLease(db.sql, file_url)
      await call(db.sql, 'filemark.reclaim_stale_claims')
    },
    'requeued by force': ({ file_url }) => call(db.sql, 'requeue_file', { file_url, force: true }),
    superseded: async ({ file_url, claim_token }) => {
      await register(db.sql, { file_url, etag: '1' })
      await complete(db.sql, file_url, claim_token, { etag: '2' })
    },
    'released and claimed by another': async ({ file_url, claim_token }) => {
      await release(db.sql, file_url, claim_token)
      await claim(db.sql, file_url, { worker_id: 'w2' })
    },
  }
  const claimers: Record<string, (request_id: string) => Promise<ClaimRow[]>> = {
    claim_next_files: (request_id) => claimNext(db.sql, 3, { request_id }),
    complete_and_claim_next: (request_id) =>
      call<ClaimRow>(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [],
        limit: 3,
        request_id,
      }),
  }
  const cases = Object.keys(ends).flatMap((end) => Object.keys(claimers).map((by) => ({ end, by })))

  test.each(cases)('$by, one file $end', async ({ end, by }) => {
    await register(db.sql, ...['a', 'b', 'c', 'd', 'e', 'f'].map((file_url) => ({ file_url })))
    const request = randomUUID()
    const got = (await pick(claimers, by)(request)) as Claim[]
    const [a, b, c] = got
    if (!a || !b || !c) throw new Error('three files were to be claimed')
    await pick(ends, end)(b)
    const before = await contents(db.sql)
    expect(await pick(claimers, by)(request)).toEqual([a, c])
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(cases)('$by, every file $end', async ({ end, by }) => {
    await register(db.sql, ...['a', 'b', 'c', 'd', 'e', 'f'].map((file_url) => ({ file_url })))
    const request = randomUUID()
    for (const got of (await pick(claimers, by)(request)) as Claim[]) await pick(ends, end)(got)
    const before = await contents(db.sql)
    expect(await pick(claimers, by)(request)).toEqual([])
    expect(await contents(db.sql)).toEqual(before)
    // Another request does get files.
    expect(await pick(claimers, by)(randomUUID())).not.toEqual([])
  })

  test.each(Object.keys(ends))('claim_file, the file %s', async (end) => {
    const request_id = randomUUID()
    await pick(ends, end)(await claim(db.sql, 'a', { request_id }))
    const before = await contents(db.sql)
    const repeated = await tryClaim(db.sql, 'a', { request_id })
    expect(repeated.outcome).not.toBe('claimed')
    expect(repeated.claim_token).toBeNull()
    expect(await contents(db.sql)).toEqual(before)
  })

  test('a request id is one for each pipeline', async () => {
    const request_id = randomUUID()
    await register(db.sql, { file_url: 'a' })
    await call(db.sql, 'register_files', {
      files: [{ file_url: 'a', file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z' }],
      pipeline: 'other',
    })
    expect(await claimNext(db.sql, 1, { request_id })).toMatchObject([{ pipeline: 'default' }])
    expect(await claimNext(db.sql, 1, { request_id, pipeline: 'other' })).toMatchObject([
      { pipeline: 'other' },
    ])
  })

  test('requests are remembered for a day, and then forgotten by reclaim_stale_claims', async () => {
    await register(db.sql, { file_url: 'a' }, { file_url: 'b' })
    const [old, young] = [randomUUID(), randomUUID()]
    await claimNext(db.sql, 1, { request_id: old })
    await claimNext(db.sql, 1, { request_id: young })
    await db.sql`
      update filemark.claim_requests set claimed_at = clock_timestamp() - interval '25 hours'
       where request_id = ${old}`
    await call(db.sql, 'filemark.reclaim_stale_claims')
    expect(await db.sql`select request_id from filemark.claim_requests`).toEqual([{ request_id: young }])
  })
})

describe('rule 6.3: twin requests in flight at the same time', { tags: 'sessions' }, () => {
  const request_id = randomUUID()
  const twins: Record<string, (sql: Sql) => Promise<ClaimRow[]>> = {
    'claim_file of a known file': async (sql) => [await tryClaim(sql, 'a', { request_id })],
    'claim_file of an unknown file': async (sql) => [await tryClaim(sql, 'new', { request_id })],
    'claim_file of a lost file': async (sql) => [await tryClaim(sql, 'lost', { request_id })],
    'claim_next_files, one file': (sql) => claimNext(sql, 1, { request_id }),
    'claim_next_files, a batch': (sql) => claimNext(sql, 3, { request_id }),
    complete_and_claim_next: (sql) =>
      call<ClaimRow>(sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [{ file_url: 'done', claim_token: 1 }],
        limit: 2,
        request_id,
      }),
  }
  beforeEach(async () => {
    await register(db.sql, ...['a', 'b', 'c', 'd', 'e', 'f'].map((file_url) => ({ file_url })))
    await claim(db.sql, 'done')
    await claim(db.sql, 'lost', { worker_id: 'dead' })
    await expireLease(db.sql, 'lost')
  })

  test.each(Object.entries(twins))('get the same claims (%s)', async (_, request) => {
    await one.sql`begin`
    const first = await request(one.sql)
    expect(first[0]).toMatchObject({ outcome: 'claimed' })
    const second = started(request(two.sql))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    const after = await contents(db.sql)
    expect(await second).toEqual(first)
    expect(await contents(db.sql)).toEqual(after)
  })

  test.each(Object.entries(twins))('claim once when the first is rolled back (%s)', async (_, request) => {
    await one.sql`begin`
    const first = await request(one.sql)
    const second = started(request(two.sql))
    await untilLocked(db.sql, two.pid)
    await one.sql`rollback`
    const key = ({ outcome, file_url, claim_token, attempts }: ClaimRow): unknown[] => [
      outcome,
      file_url,
      claim_token,
      attempts,
    ]
    expect((await second).map(key)).toEqual(first.map(key))
    const before = await contents(db.sql)
    expect(await request(db.sql)).toEqual(await second)
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(Object.entries(twins))(
    'get the same claims where max_concurrency locks the pipeline (%s)',
    async (_, request) => {
      await configure(db.sql, { max_concurrency: 5 })
      await one.sql`begin`
      const first = await request(one.sql)
      expect(first[0]).toMatchObject({ outcome: 'claimed' })
      const second = started(request(two.sql))
      await untilLocked(db.sql, two.pid)
      await one.sql`commit`
      expect(await second).toEqual(first)
    },
  )

  const finishing: Record<string, (sql: Sql) => Promise<unknown>> = {
    complete_file: (sql) => complete(sql, 'done', '1').then(() => 'completed'),
    fail_file: (sql) => fail(sql, 'done', '1'),
    release_file: (sql) => release(sql, 'done', '1'),
    checkpoint_file: (sql) => checkpoint(sql, 'done', '1', 5, { checkpoint_seq: 1 }),
    persist_records: (sql) => persist(sql, '1', { file_url: 'done', checkpoint_seq: 1 }),
    'persist_records without its number': (sql) => persist(sql, '1', { file_url: 'done' }),
    requeue_file: (sql) => call(sql, 'requeue_file', { file_url: 'done', force: true }),
    register_files: (sql) => register(sql, { file_url: 'done', etag: '1' }).then(() => 'registered'),
  }
  test.each(Object.entries(finishing))('of %s have one effect and one answer', async (_, write) => {
    await one.sql`begin`
    const first = await write(one.sql)
    const second = started(write(two.sql))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    const after = await contents(db.sql)
    expect(await second).toEqual(first)
    expect(await contents(db.sql)).toEqual(after)
  })
})

describe('rule 6.3: a checkpoint is refused with PT412 and changes nothing', () => {
  // The file is at checkpoint 2, 10 items, saved by token 1; the calls come from the holder.
  const conflicts: Record<string, { args: Record<string, unknown>; message: RegExp }> = {
    'other cursor under the same number': {
      args: { checkpoint_seq: 2, items_processed: 10, cursor: { next: 11 } },
      message: /p_checkpoint_seq 2 .*saved before/,
    },
    'other items under the same number': {
      args: { checkpoint_seq: 2, items_processed: 11, cursor: { next: 10 } },
      message: /p_checkpoint_seq 2 .*saved before/,
    },
    'an earlier number, as it was saved': {
      args: { checkpoint_seq: 1, items_processed: 5, cursor: { next: 5 } },
      message: /p_checkpoint_seq 1 /,
    },
    'a gap': {
      args: { checkpoint_seq: 4, items_processed: 20, cursor: { next: 20 } },
      message: /p_checkpoint_seq 4 .*gap/,
    },
    'the next number, with fewer items': {
      args: { checkpoint_seq: 3, items_processed: 9, cursor: { next: 9 } },
      message: /p_items_processed 9 .*steps back/,
    },
    'no number, with fewer items': {
      args: { items_processed: 9, cursor: { next: 9 } },
      message: /p_items_processed 9 .*steps back/,
    },
  }
  const calls: Record<string, (token: string, args: Record<string, unknown>) => Promise<unknown>> = {
    checkpoint_file: (token, args) =>
      call(db.sql, 'checkpoint_file', { file_url: 'a', claim_token: token, ...args }),
    persist_records: (token, args) => persist(db.sql, token, args),
  }
  const cases = Object.entries(conflicts).flatMap(([conflict, { args, message }]) =>
    Object.keys(calls).map((name) => ({ name, conflict, args, message })),
  )

  async function saveTwice(): Promise<string> {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 5)
    await checkpoint(db.sql, 'a', claim_token, 10)
    return claim_token
  }

  test.each(cases)('$name: $conflict', async ({ name, args, message }) => {
    const token = await saveTwice()
    const before = await contents(db.sql)
    expect(await refusal(pick(calls, name)(token, args))).toMatchObject({
      code: 'PT412',
      message,
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(Object.keys(calls))('%s: a number that the holder before used', async (name) => {
    await saveTwice()
    await expireLease(db.sql)
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'w2' })
    const before = await contents(db.sql)
    const args = { checkpoint_seq: 2, items_processed: 10, cursor: { next: 10 } }
    expect(await refusal(pick(calls, name)(claim_token, args))).toMatchObject({
      code: 'PT412',
      message: /p_checkpoint_seq 2 .*another claim/,
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('persist_records: no number, and no more items than before', async () => {
    const token = await saveTwice()
    const before = await contents(db.sql)
    const args = { items_processed: 10, cursor: { next: 11 } }
    expect(await refusal(persist(db.sql, token, args))).toMatchObject({
      code: 'PT412',
      message: /p_items_processed 10 .*does not advance/,
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('but checkpoint_file without a number may save another cursor at the same items', async () => {
    const token = await saveTwice()
    expect(await checkpoint(db.sql, 'a', token, 10, { cursor: { next: 'x' } })).toMatchObject({
      checkpoint_seq: '3',
    })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ cursor: { next: 'x' }, items_processed: '10' })
  })

  test('two checkpoints of one holder under the same number: one is saved, the other refused', {
    tags: 'sessions',
  }, async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await one.sql`begin`
    await checkpoint(one.sql, 'a', claim_token, 5, { checkpoint_seq: 1 })
    const second = refusal(checkpoint(two.sql, 'a', claim_token, 6, { checkpoint_seq: 1 }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await second).toMatchObject({ code: 'PT412' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ items_processed: '5', checkpoint_seq: '1' })
    expect(await historyOf(db.sql, 'a')).toEqual([1])
  })
})
