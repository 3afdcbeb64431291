import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
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

function requeue(url: string, args: Record<string, unknown> = {}): Promise<Record<string, unknown>[]> {
  return call(db.sql, 'requeue_file', { file_url: url, ...args })
}

/** A claim with three checkpoints: 10, 20 and 30 items, with a record persisted at each. Answers its token. */
async function claimWithHistory(url: string): Promise<string> {
  const { claim_token } = await claim(db.sql, url)
  for (const items of [10, 20, 30]) {
    await call(db.sql, 'persist_records', {
      file_url: url,
      claim_token,
      target: 'target',
      records: [{ id: items }],
      cursor: { next: items },
      items_processed: items,
      accumulated_results: { sum: items },
    })
  }
  return claim_token
}

/** The states a file may be requeued from without force. */
const ends: Record<string, (token: string) => Promise<unknown>> = {
  failed: (token) => fail(db.sql, 'a', token),
  dead_letter: (token) => fail(db.sql, 'a', token, { retryable: false }),
  completed: (token) => complete(db.sql, 'a', token, { records_total: 30, records_filtered: 1 }),
  skipped: async (token) => {
    await call(db.sql, 'release_file', { file_url: 'a', claim_token: token })
    await call(db.sql, 'skip_file', { file_url: 'a' })
  },
}

describe('requeue_file', () => {
  test.each(Object.entries(ends))(
    'puts a %s file back at its last checkpoint, with a full budget',
    async (status, end) => {
      await end(await claimWithHistory('a'))
      expect(await fileRow(db.sql, 'a')).toMatchObject({ status })
      expect(await requeue('a')).toEqual([{ status: 'pending', checkpoint_seq: '3' }])
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        status: 'pending',
        generation: '1',
        attempts: 0,
        cursor: { next: 30 },
        items_processed: '30',
        accumulated_results: { sum: 30 },
        checkpoint_seq: '3',
        history_length: '3',
        records_total: '0',
        records_filtered: '0',
        records_persisted: '3',
        processing_time_ms: null,
        error_message: null,
        error: null,
        completed_at: null,
      })
      expect(only(await claimNext(db.sql))).toMatchObject({
        file_url: 'a',
        claim_token: '2',
        attempts: 1,
        cursor: { next: 30 },
        checkpoint_seq: '3',
      })
    },
  )

  test.each(Object.entries(ends))('puts a %s file back at the start', async (_, end) => {
    await end(await claimWithHistory('a'))
    expect(await requeue('a', { from: 'start' })).toEqual([{ status: 'pending', checkpoint_seq: '0' }])
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'pending',
      generation: '1',
      attempts: 0,
      cursor: null,
      items_processed: '0',
      accumulated_results: null,
      checkpoint_seq: '0',
      checkpointed_at: null,
      history_length: '0',
      records_persisted: '0',
      error_message: null,
      completed_at: null,
    })
    expect(await historyOf(db.sql, 'a')).toEqual([])
    const again = await claim(db.sql, 'a')
    expect(again).toMatchObject({ cursor: null, items_processed: '0', checkpoint_seq: '0' })
    expect(await checkpoint(db.sql, 'a', again.claim_token, 1)).toMatchObject({ checkpoint_seq: '1' })
  })

  test.each(Object.entries(ends))(
    'puts a %s file back at an earlier checkpoint, without the results of the later ones',
    async (_, end) => {
      await end(await claimWithHistory('a'))
      expect(await requeue('a', { from: 'checkpoint:2' })).toEqual([
        { status: 'pending', checkpoint_seq: '2' },
      ])
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        cursor: { next: 20 },
        items_processed: '20',
        accumulated_results: null,
        checkpoint_seq: '2',
        history_length: '2',
        records_persisted: '2',
      })
      expect(await historyOf(db.sql, 'a')).toEqual([1, 2])
      const again = await claim(db.sql, 'a')
      expect(again).toMatchObject({ cursor: { next: 20 }, items_processed: '20', checkpoint_seq: '2' })
      expect(await checkpoint(db.sql, 'a', again.claim_token, 25)).toMatchObject({ checkpoint_seq: '3' })
      expect(await historyOf(db.sql, 'a')).toEqual([1, 2, 3])
    },
  )

  test('takes the number of the last checkpoint too, and keeps its results', async () => {
    await fail(db.sql, 'a', await claimWithHistory('a'))
    expect(await requeue('a', { from: 'checkpoint:3' })).toEqual([{ status: 'pending', checkpoint_seq: '3' }])
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      cursor: { next: 30 },
      accumulated_results: { sum: 30 },
    })
  })

  test('makes a waiting retry due at once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await fail(db.sql, 'a', claim_token, { retry_after_seconds: 3600 })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'waiting' })
    expect(await requeue('a')).toEqual([{ status: 'pending', checkpoint_seq: '0' }])
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'claimed', attempts: 1 })
  })

  test('gives a dead letter exactly max_attempts claims again', async () => {
    await fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token, { retryable: false })
    await requeue('a')
    const outcomes = []
    for (let round = 0; round < 4; round += 1) {
      outcomes.push((await tryClaim(db.sql, 'a')).outcome)
      await expireLease(db.sql)
    }
    expect(outcomes).toEqual(['claimed', 'claimed', 'claimed', 'dead_letter'])
  })

  test('says in the audit who did it, why, from where, and what was there', async () => {
    const token = await claimWithHistory('a')
    await fail(db.sql, 'a', token, { retryable: false, error_message: 'no such column' })
    await requeue('a', { from: 'checkpoint:1', reason: 'column added', actor: 'ann' })
    expect((await events(db.sql, 'a')).at(-1)).toEqual({
      file_url: 'a',
      event: 'requeued',
      actor: 'ann',
      reason: 'column added',
      detail: {
        from: 'checkpoint:1',
        checkpoint_seq: 1,
        force: false,
        old_status: 'dead_letter',
        old_checkpoint_seq: 3,
        old_claim_token: 1,
        old_processed_by: 'w1',
        old_error_message: 'no such column',
      },
    })
  })

  test('says in the audit which role did it, when no actor is given', async () => {
    await claim(db.sql, 'a')
    await requeue('a', { force: true })
    expect(await events(db.sql, 'a')).toMatchObject([
      {
        event: 'requeued',
        actor: caller,
        reason: null,
        detail: { force: true, old_status: 'processing' },
      },
    ])
  })

  test('refuses a file that is being processed, without force, and changes nothing', async () => {
    await claimWithHistory('a')
    // Not even when its lease is over: the holder may still be at work.
    await expireLease(db.sql)
    const before = await contents(db.sql)
    for (const from of ['checkpoint', 'start', 'checkpoint:2']) {
      expect(await refusal(requeue('a', { from }))).toEqual({
        code: 'PT422',
        message: 'file "a" is being processed by w1',
      })
    }
    expect(await refusal(requeue('a', { force: false }))).toMatchObject({ code: 'PT422' })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('rule 6.1: takes a file from its holder by force, whose token is dead at once', async () => {
    const token = await claimWithHistory('a')
    expect(await requeue('a', { from: 'checkpoint:2', force: true })).toEqual([
      { status: 'pending', checkpoint_seq: '2' },
    ])
    const before = await contents(db.sql)
    expect(await refusal(checkpoint(db.sql, 'a', token, 40))).toMatchObject({ code: 'PT409' })
    expect(await refusal(complete(db.sql, 'a', token))).toMatchObject({ code: 'PT409' })
    expect(await contents(db.sql)).toEqual(before)
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'pending',
      lease_expires_at: null,
      claim_ended: 'lost',
    })
    expect(only(await claimNext(db.sql, 1, { worker_id: 'w2' }))).toMatchObject({
      claim_token: '2',
      cursor: { next: 20 },
      attempts: 1,
    })
  })

  test('frees the slot of a holder it takes a file from', async () => {
    await configure(db.sql, { max_concurrency: 1 })
    await claim(db.sql, 'a')
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'busy' })
    await requeue('a', { force: true })
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'claimed' })
  })

  test.each(['checkpoint:4', 'checkpoint:99'])(
    'refuses %s, which is not in the history, and says what is',
    async (from) => {
      await fail(db.sql, 'a', await claimWithHistory('a'))
      const before = await contents(db.sql)
      expect(await refusal(requeue('a', { from }))).toEqual({
        code: 'PT400',
        message: `p_from must be a checkpoint of the file's history (1 to 3), not "${from}"`,
      })
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test('refuses a checkpoint of a file that has no history', async () => {
    await register(db.sql, { file_url: 'a' })
    expect(await refusal(requeue('a', { from: 'checkpoint:1' }))).toMatchObject({
      code: 'PT400',
      message: /p_from/,
    })
  })

  test('refuses a checkpoint of the generation before', async () => {
    await complete(db.sql, 'a', await claimWithHistory('a'))
    await register(db.sql, { file_url: 'a', etag: '1' })
    await register(db.sql, { file_url: 'a', etag: '2' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ generation: '2' })
    expect(await refusal(requeue('a', { from: 'checkpoint:1' }))).toMatchObject({
      code: 'PT400',
      message: /p_from/,
    })
  })

  test('refuses a file that nobody knows', async () => {
    expect(await refusal(requeue('a'))).toEqual({
      code: 'PT404',
      message: 'file "a" is unknown in pipeline "default"',
    })
    expect(await refusal(requeue('a', { pipeline: 'never used' }))).toMatchObject({ code: 'PT404' })
    expect(await contents(db.sql)).toEqual([])
  })

  test('leaves a file alone that is in the queue already, at that place and with a full budget', async () => {
    await register(db.sql, { file_url: 'a' })
    const before = await contents(db.sql)
    expect(await requeue('a')).toEqual([{ status: 'pending', checkpoint_seq: '0' }])
    expect(await contents(db.sql)).toEqual(before)
  })

  test('refills the budget of a pending file that was given back', async () => {
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    await call(db.sql, 'filemark.reclaim_stale_claims')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', attempts: 1 })
    await requeue('a')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', attempts: 0 })
    expect(await eventNames(db.sql, 'a')).toEqual(['lease_expired', 'requeued'])
  })

  test('rule 6.6: is the one way items_processed falls within a generation', async () => {
    const token = await claimWithHistory('a')
    expect(await refusal(checkpoint(db.sql, 'a', token, 29))).toMatchObject({ code: 'PT412' })
    await fail(db.sql, 'a', token, { retry_after_seconds: 0 })
    expect(await claim(db.sql, 'a')).toMatchObject({ items_processed: '30' })
    await expireLease(db.sql)
    expect(await claim(db.sql, 'a')).toMatchObject({ items_processed: '30' })
    await requeue('a', { from: 'checkpoint:1', force: true })
    expect(await claim(db.sql, 'a')).toMatchObject({ items_processed: '10' })
  })
})

describe('a requeue is undone by nothing that still arrives of the time before:', () => {
  const request_id = randomUUID()
  /** How the first claim may have ended before the file was requeued from the start. */
  const befores: Record<string, (token: string) => Promise<unknown>> = {
    ...ends,
    pending: (token) => call(db.sql, 'release_file', { file_url: 'a', claim_token: token }),
    'taken by force': async () => {},
  }
  const echoes: Record<string, (token: string) => Promise<unknown>> = {
    'a repeat of complete_file': (token) =>
      complete(db.sql, 'a', token, { records_total: 30, records_filtered: 1 }),
    'complete_file of other content': (token) => complete(db.sql, 'a', token, { etag: 'e9' }),
    'a repeat of fail_file': (token) => fail(db.sql, 'a', token),
    'a repeat of fail_file for good': (token) => fail(db.sql, 'a', token, { retryable: false }),
    'a repeat of release_file': (token) =>
      call(db.sql, 'release_file', { file_url: 'a', claim_token: token }),
    'a repeat of the last checkpoint': (token) => checkpoint(db.sql, 'a', token, 30, { checkpoint_seq: 3 }),
    'a repeat of the first checkpoint': (token) => checkpoint(db.sql, 'a', token, 10, { checkpoint_seq: 1 }),
    'a new checkpoint': (token) => checkpoint(db.sql, 'a', token, 40),
    'a heartbeat': (token) => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
    'a batch of records': (token) =>
      call(db.sql, 'persist_records', {
        file_url: 'a',
        claim_token: token,
        target: 'target',
        records: [{ id: 1 }],
        cursor: 1,
        items_processed: 40,
      }),
    "the holder's own transaction": (token) =>
      call(db.sql, 'filemark.assert_claim', { file_url: 'a', claim_token: token }),
    'a completion in complete_and_claim_next': (token) =>
      call(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [{ file_url: 'a', claim_token: Number(token) }],
        file_type: 'none',
      }),
    'a repeat of claim_file with its request id': () => tryClaim(db.sql, 'a', { request_id, etag: 'e1' }),
    reclaim_stale_claims: () => call(db.sql, 'filemark.reclaim_stale_claims'),
    'register_files with the same content': () => register(db.sql, { file_url: 'a', etag: 'e1' }),
    'register_files without an etag': () => register(db.sql, { file_url: 'a' }),
    'a repeat of the requeue': () => requeue('a', { from: 'start', force: true }),
  }

  test.each(Object.keys(befores).flatMap((before) => Object.keys(echoes).map((echo) => ({ before, echo }))))(
    '$echo (it was $before)',
    async ({ before, echo }) => {
      const { claim_token } = await claim(db.sql, 'a', { request_id, etag: 'e1' })
      for (const items of [10, 20, 30]) await checkpoint(db.sql, 'a', claim_token, items)
      await pick(befores, before)(claim_token)
      await requeue('a', { from: 'start', force: true, reason: 'wrong column', actor: 'ann' })
      const requeued = await contents(db.sql)
      await refusal(pick(echoes, echo)(claim_token))
      expect(await contents(db.sql)).toEqual(requeued)
      expect(await claim(db.sql, 'a', { worker_id: 'w2' })).toMatchObject({
        claim_token: '2',
        attempts: 1,
        cursor: null,
        items_processed: '0',
        checkpoint_seq: '0',
      })
    },
  )

  test('a repeat of claim_next_files with its request id', async () => {
    await register(db.sql, { file_url: 'a' })
    const { claim_token } = only(await claimNext(db.sql, 1, { request_id }))
    await complete(db.sql, 'a', claim_token)
    await requeue('a', { from: 'start' })
    const requeued = await contents(db.sql)
    expect(await claimNext(db.sql, 1, { request_id })).toEqual([])
    expect(await contents(db.sql)).toEqual(requeued)
  })

  test('a repeat of the requeue does not touch the one who has the file now', async () => {
    await fail(db.sql, 'a', await claimWithHistory('a'))
    await requeue('a', { from: 'start' })
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'w2' })
    await checkpoint(db.sql, 'a', claim_token, 5)
    const held = await contents(db.sql)
    expect(await refusal(requeue('a', { from: 'start' }))).toMatchObject({ code: 'PT422' })
    expect(await contents(db.sql)).toEqual(held)
  })
})
