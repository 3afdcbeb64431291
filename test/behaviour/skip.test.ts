import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
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
  tryClaim,
} from './calls.ts'
import { caller } from './lane.ts'
import { contents, empty, eventNames, events, expireLease, fileRow, historyOf } from './tables.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
  await db.sql`create table target (id int primary key)`
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

function skip(url: string, args: Record<string, unknown> = {}): Promise<unknown> {
  return call(db.sql, 'skip_file', { file_url: url, ...args })
}

/** w1 claims file a with etag e1 and saves a checkpoint of 10 items. */
async function claimWithProgress(args: Record<string, unknown> = {}): Promise<Claim> {
  const row = await claim(db.sql, 'a', { etag: 'e1', ...args })
  await checkpoint(db.sql, 'a', row.claim_token, 10, { accumulated_results: { sum: 10 } })
  return row
}

/** The states a file may be skipped from, with the call that left it there. */
const rests: Record<string, (claimed: Claim) => Promise<unknown>> = {
  pending: ({ claim_token }) => release(db.sql, 'a', claim_token),
  failed: ({ claim_token }) => fail(db.sql, 'a', claim_token),
  dead_letter: ({ claim_token }) => fail(db.sql, 'a', claim_token, { retryable: false }),
  completed: ({ claim_token }) => complete(db.sql, 'a', claim_token, { records_total: 10 }),
}

const claimers: Record<string, () => Promise<ClaimRow[]>> = {
  claim_file: async () => [await tryClaim(db.sql, 'a', { worker_id: 'w2' })],
  claim_next_files: () => claimNext(db.sql, 10, { worker_id: 'w2' }),
  complete_and_claim_next: () =>
    call<ClaimRow>(db.sql, 'complete_and_claim_next', { worker_id: 'w2', completions: [], limit: 10 }),
}

describe('skip_file', () => {
  test.each(Object.entries(rests))(
    'takes a %s file out of the queue, and keeps its checkpoint',
    async (status, rest) => {
      await rest(await claimWithProgress())
      const before = await fileRow(db.sql, 'a')
      expect(before).toMatchObject({ status })
      await skip('a')
      expect(await fileRow(db.sql, 'a')).toEqual({
        ...before,
        status: 'skipped',
        completed_at: null,
        kept_since: null,
      })
      expect(await historyOf(db.sql, 'a')).toEqual([1])
      for (const [name, request] of Object.entries(claimers)) {
        const rows = await request()
        expect(
          rows.map(({ outcome }) => outcome),
          name,
        ).toEqual(name === 'claim_file' ? ['skipped'] : [])
      }
      expect(await call(db.sql, 'pending_files', { file_urls: ['a'] })).toEqual([])
    },
  )

  test('takes a file that nobody ever claimed, or that is not due, out of the queue', async () => {
    await register(
      db.sql,
      { file_url: 'new' },
      { file_url: 'later', available_at: '2999-01-01T00:00:00Z' },
      { file_url: 'other' },
    )
    await skip('new')
    await skip('later')
    expect(await fileRow(db.sql, 'new')).toMatchObject({ status: 'skipped', claim_token: '0', attempts: 0 })
    expect(await tryClaim(db.sql, 'later')).toMatchObject({ outcome: 'skipped' })
    expect((await claimNext(db.sql, 10)).map((row) => row.file_url)).toEqual(['other'])
  })

  test.each(Object.entries(rests))(
    'says in the audit who did it and why, and what was there (%s)',
    async (status, rest) => {
      await rest(await claimWithProgress())
      const { completed_at, error_message } = await fileRow(db.sql, 'a')
      await skip('a', { reason: 'a test upload', actor: 'ann' })
      const { detail, ...event } = (await events(db.sql, 'a')).at(-1) ?? { detail: {} }
      expect(event).toEqual({ file_url: 'a', event: 'skipped', actor: 'ann', reason: 'a test upload' })
      expect(detail).toMatchObject({
        old_status: status,
        old_error_message: error_message,
        checkpoint_seq: 1,
        old_completed_at: completed_at === null ? null : expect.any(String),
      })
    },
  )

  test('says in the audit which role did it, when no actor is given', async () => {
    await register(db.sql, { file_url: 'a' })
    await skip('a')
    expect(await events(db.sql, 'a')).toMatchObject([{ event: 'skipped', actor: caller, reason: null }])
  })

  test('rule 6.3: changes nothing when it is repeated, even with another reason', async () => {
    await register(db.sql, { file_url: 'a' })
    const first = await skip('a', { reason: 'one', actor: 'ann' })
    const before = await contents(db.sql)
    expect(await skip('a', { reason: 'one', actor: 'ann' })).toEqual(first)
    expect(await skip('a', { reason: 'two', actor: 'bob' })).toEqual(first)
    expect(await contents(db.sql)).toEqual(before)
    expect(await eventNames(db.sql, 'a')).toEqual(['skipped'])
  })

  test('refuses a file that is being processed, and changes nothing', async () => {
    await claimWithProgress()
    // Not even when its lease is over: the holder may still be at work.
    for (const arrange of [() => Promise.resolve(), () => expireLease(db.sql)]) {
      await arrange()
      const before = await contents(db.sql)
      expect(await refusal(skip('a'))).toEqual({
        code: 'PT422',
        message: 'file "a" is being processed by w1',
      })
      expect(await contents(db.sql)).toEqual(before)
    }
  })

  test('skips a file being processed that was taken from its holder by force', async () => {
    const { claim_token } = await claimWithProgress()
    await call(db.sql, 'requeue_file', { file_url: 'a', force: true })
    await skip('a')
    const before = await contents(db.sql)
    expect(await refusal(complete(db.sql, 'a', claim_token))).toMatchObject({ code: 'PT409' })
    expect(await contents(db.sql)).toEqual(before)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'skipped', items_processed: '10' })
  })

  test('refuses a file that nobody knows', async () => {
    expect(await refusal(skip('a'))).toEqual({
      code: 'PT404',
      message: 'file "a" is unknown in pipeline "default"',
    })
    await register(db.sql, { file_url: 'a' })
    expect(await refusal(skip('a', { pipeline: 'other' }))).toMatchObject({ code: 'PT404' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending' })
    expect(await eventNames(db.sql, 'a')).toEqual([])
  })

  test('touches no file of that name in another pipeline', async () => {
    const files = [{ file_url: 'a', file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z' }]
    await call(db.sql, 'register_files', { files, pipeline: 'other' })
    await register(db.sql, { file_url: 'a' })
    await skip('a', { pipeline: 'other' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending' })
    expect(await tryClaim(db.sql, 'a', { pipeline: 'other' })).toMatchObject({ outcome: 'skipped' })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'claimed' })
  })

  test('is counted and listed as what it is', async () => {
    await register(db.sql, { file_url: 'b' }, { file_url: 'c' })
    await fail(db.sql, 'a', (await claimWithProgress()).claim_token, { retryable: false })
    await skip('a')
    await skip('b')
    expect(only(await call(db.sql, 'pipeline_stats', { pipeline: 'default' }))).toMatchObject({
      pending: '1',
      processing: '0',
      completed: '0',
      failed: '0',
      dead_letter: '0',
      skipped: '2',
      total: '3',
      failure_ratio: null,
    })
    const listed = await call(db.sql, 'list_file_checkpoints', { status: 'skipped' })
    expect(listed.map((row) => row.file_url)).toEqual(['a', 'b'])
  })

  test('leaves no slot taken, and no lease to be reclaimed', async () => {
    await configure(db.sql, { max_concurrency: 1 })
    await fail(db.sql, 'a', (await claimWithProgress()).claim_token)
    await skip('a')
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'claimed' })
    expect(await call(db.sql, 'filemark.reclaim_stale_claims')).toEqual([])
  })

  test('works while the pipeline is paused', async () => {
    await register(db.sql, { file_url: 'a' })
    await configure(db.sql, { paused: true })
    await skip('a')
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'skipped' })
  })
})

describe('a skipped file', () => {
  test.each(Object.entries(rests))(
    'comes back by requeue_file, from its checkpoint, with a full budget (it was %s)',
    async (_, rest) => {
      await rest(await claimWithProgress())
      await skip('a')
      expect(await call(db.sql, 'requeue_file', { file_url: 'a' })).toEqual([
        { status: 'pending', checkpoint_seq: '1' },
      ])
      expect(only(await claimNext(db.sql))).toMatchObject({
        file_url: 'a',
        claim_token: '2',
        generation: '1',
        attempts: 1,
        cursor: { next: 10 },
        items_processed: '10',
        accumulated_results: { sum: 10 },
      })
    },
  )

  test('comes back from the start, too', async () => {
    await release(db.sql, 'a', (await claimWithProgress()).claim_token)
    await skip('a')
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'start', reason: 'after all', actor: 'bob' })
    expect(await claim(db.sql, 'a')).toMatchObject({ cursor: null, items_processed: '0' })
    expect((await events(db.sql, 'a')).at(-1)).toMatchObject({
      event: 'requeued',
      actor: 'bob',
      reason: 'after all',
      detail: { old_status: 'skipped' },
    })
  })

  test('may be skipped again after a requeue', async () => {
    await register(db.sql, { file_url: 'a' })
    await skip('a')
    await call(db.sql, 'requeue_file', { file_url: 'a' })
    await skip('a')
    expect(await eventNames(db.sql, 'a')).toEqual(['skipped', 'requeued', 'skipped'])
  })

  const sightings: Record<string, () => Promise<unknown>> = {
    register_files: () => register(db.sql, { file_url: 'a', etag: 'e2' }),
    claim_file: () => tryClaim(db.sql, 'a', { etag: 'e2' }),
  }
  test.each(Object.keys(sightings).flatMap((by) => Object.keys(rests).map((was) => ({ by, was }))))(
    'rule 6.11: is a new generation when new content is seen by $by (it was $was)',
    async ({ by, was }) => {
      await pick(rests, was)(await claimWithProgress())
      await skip('a')
      await pick(sightings, by)()
      if (by === 'register_files') await claim(db.sql, 'a')
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        status: 'processing',
        generation: '2',
        etag: 'e2',
        cursor: null,
        items_processed: '0',
        attempts: 1,
      })
      expect((await events(db.sql, 'a')).at(-1)).toMatchObject({
        event: 'overwritten',
        detail: { old_status: 'skipped' },
      })
    },
  )

  test('rule 6.11: stays skipped when new content is seen where overwrites are ignored', async () => {
    await configure(db.sql, { on_overwrite: 'ignore' })
    await release(db.sql, 'a', (await claimWithProgress()).claim_token)
    await skip('a')
    const before = await contents(db.sql)
    for (const see of Object.values(sightings)) await see()
    expect(await contents(db.sql)).toEqual(before)
  })

  test('rule 6.11: stays skipped when it gets its first etag', async () => {
    await register(db.sql, { file_url: 'a' })
    await skip('a')
    await register(db.sql, { file_url: 'a', etag: 'e1' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'skipped', etag: 'e1', generation: '1' })
  })
})

describe('a skip is undone by nothing:', () => {
  const request_id = randomUUID()
  /** What may still arrive of the time before; none of it writes a single row. */
  const echoes: Record<string, (token: string) => Promise<unknown>> = {
    'a repeat of complete_file': (token) => complete(db.sql, 'a', token, { records_total: 10 }),
    'a repeat of complete_file with other content': (token) => complete(db.sql, 'a', token, { etag: 'e9' }),
    'a repeat of fail_file': (token) => fail(db.sql, 'a', token),
    'a repeat of release_file': (token) => release(db.sql, 'a', token),
    'a repeat of checkpoint_file': (token) => checkpoint(db.sql, 'a', token, 10, { checkpoint_seq: 1 }),
    'a new checkpoint': (token) => checkpoint(db.sql, 'a', token, 20),
    'a heartbeat': (token) => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
    'a batch of records': (token) =>
      call(db.sql, 'persist_records', {
        file_url: 'a',
        claim_token: token,
        target: 'target',
        records: [{ id: 1 }],
        cursor: 1,
        items_processed: 20,
      }),
    'a repeat of complete_and_claim_next': (token) =>
      call(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [{ file_url: 'a', claim_token: Number(token) }],
        request_id,
      }),
    'a repeat of claim_file with its request id': () => tryClaim(db.sql, 'a', { request_id, etag: 'e1' }),
    'a repeat of claim_next_files with its request id': () => claimNext(db.sql, 5, { request_id }),
    'another claim_file': () => tryClaim(db.sql, 'a', { worker_id: 'w2', etag: 'e1' }),
    'another claim_next_files': () => claimNext(db.sql, 5, { worker_id: 'w2' }),
    reclaim_stale_claims: () => call(db.sql, 'filemark.reclaim_stale_claims'),
    'register_files with the same content': () =>
      register(db.sql, { file_url: 'a', etag: 'e1', priority: 9 }),
    'register_files without an etag': () => register(db.sql, { file_url: 'a' }),
    'a repeat of skip_file': () => skip('a'),
  }

  test.each(Object.keys(rests).flatMap((was) => Object.keys(echoes).map((echo) => ({ was, echo }))))(
    '$echo (it was $was)',
    async ({ was, echo }) => {
      const { claim_token } = await claimWithProgress({ request_id })
      await pick(rests, was)({ claim_token } as Claim)
      await skip('a')
      const before = await contents(db.sql)
      await refusal(pick(echoes, echo)(claim_token))
      expect(await contents(db.sql)).toEqual(before)
    },
  )
})
