import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'
import {
  type ClaimRow,
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  fail,
  only,
  pick,
  refusal,
  register,
  release,
  started,
  tryClaim,
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow } from './tables.ts'

let db: TestDatabase
let one: TestConnection
let two: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
  await db.sql`create table target (id int primary key)`
})
beforeEach(() => empty(db.sql))
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
})
afterAll(() => db.drop())

/** Every function that presents a token, called so that the holder of the token would get on. */
const writes: Record<string, (sql: Sql, url: string, token: string) => Promise<unknown>> = {
  checkpoint_file: (sql, url, token) => checkpoint(sql, url, token, 50),
  'checkpoint_file with its number': (sql, url, token) =>
    checkpoint(sql, url, token, 50, { checkpoint_seq: 2 }),
  extend_claim: (sql, url, token) => call(sql, 'extend_claim', { file_url: url, claim_token: token }),
  complete_file: (sql, url, token) => complete(sql, url, token, { records_total: 50 }),
  'complete_file with other content': (sql, url, token) => complete(sql, url, token, { etag: 'e2' }),
  fail_file: (sql, url, token) => fail(sql, url, token),
  'fail_file for good': (sql, url, token) => fail(sql, url, token, { retryable: false }),
  release_file: (sql, url, token) => release(sql, url, token),
  persist_records: (sql, url, token) => persist(sql, url, token),
  'persist_records with its number': (sql, url, token) => persist(sql, url, token, { checkpoint_seq: 2 }),
  assert_claim: (sql, url, token) =>
    call(sql, 'filemark.assert_claim', { file_url: url, claim_token: token }),
}

function persist(sql: Sql, url: string, token: string, args: Record<string, unknown> = {}): Promise<unknown> {
  return call(sql, 'persist_records', {
    file_url: url,
    claim_token: token,
    target: 'target',
    records: [{ id: 1 }, { id: 2 }],
    cursor: { next: 50 },
    items_processed: 50,
    ...args,
  })
}

/** w1 claims the file, saves a checkpoint, and lets its lease run out. Answers its token. */
async function claimAndFallAsleep(url: string): Promise<string> {
  const { claim_token } = await claim(db.sql, url, { etag: 'e1' })
  await checkpoint(db.sql, url, claim_token, 10)
  await expireLease(db.sql, url)
  return claim_token
}

/** What may have become of a file since w1 lost it; each takes it over as `worker` first, or takes it away. */
const fates: Record<string, (url: string, worker: string) => Promise<unknown>> = {
  'is being processed by another': (url, worker_id) => claim(db.sql, url, { worker_id }),
  'was taken over out of the queue': (_, worker_id) => claimNext(db.sql, 1, { worker_id }),
  'was completed by another': async (url, worker_id) =>
    complete(db.sql, url, (await claim(db.sql, url, { worker_id })).claim_token),
  'was failed by another': async (url, worker_id) =>
    fail(db.sql, url, (await claim(db.sql, url, { worker_id })).claim_token),
  'was released by another': async (url, worker_id) =>
    release(db.sql, url, (await claim(db.sql, url, { worker_id })).claim_token),
  'went on under another, which saved the same number': async (url, worker_id) =>
    checkpoint(db.sql, url, (await claim(db.sql, url, { worker_id })).claim_token, 50, { checkpoint_seq: 2 }),
  'was given back by reclaim_stale_claims': () => call(db.sql, 'filemark.reclaim_stale_claims'),
  'is a dead letter': async (url, worker_id) => {
    for (const expected of ['claimed', 'claimed', 'dead_letter']) {
      expect(await tryClaim(db.sql, url, { worker_id })).toMatchObject({ outcome: expected })
      await expireLease(db.sql, url)
    }
  },
  'was taken by force': (url) => call(db.sql, 'requeue_file', { file_url: url, force: true }),
  'was taken by force, and claimed again': async (url, worker_id) => {
    await call(db.sql, 'requeue_file', { file_url: url, force: true })
    await claim(db.sql, url, { worker_id })
  },
  'has a new generation': (url, worker_id) => claim(db.sql, url, { worker_id, etag: 'e2' }),
}

describe.each(Object.keys(fates))('rule 6.1: a zombie whose file %s', (fate) => {
  test.each(['w2', 'w1'])('can do nothing with any function (the other is worker %s)', async (worker) => {
    const zombie = await claimAndFallAsleep('a')
    await pick(fates, fate)('a', worker)
    const before = await contents(db.sql)
    for (const [name, write] of Object.entries(writes)) {
      expect(await refusal(write(db.sql, 'a', zombie)), name).toEqual({
        code: 'PT409',
        message: 'claim 1 on file "a" is lost',
      })
      expect(await contents(db.sql), name).toEqual(before)
    }
    const answer = await call<ClaimRow>(db.sql, 'complete_and_claim_next', {
      worker_id: 'w1',
      completions: [{ file_url: 'a', claim_token: Number(zombie), records_total: 50 }],
      file_type: 'none',
    })
    const { outcome, pipeline, file_url, ...columns } = only(answer)
    expect({ outcome, pipeline, file_url }).toEqual({
      outcome: 'claim_lost',
      pipeline: 'default',
      file_url: 'a',
    })
    expect(Object.values(columns).every((value) => value === null)).toBe(true)
    expect(await contents(db.sql)).toEqual(before)
  })
})

describe('a zombie', () => {
  test('rule 6.1: undoes nothing else in complete_and_claim_next: other files are completed and claimed', async () => {
    const zombie = await claimAndFallAsleep('b')
    await claim(db.sql, 'b', { worker_id: 'w2' })
    await register(db.sql, { file_url: 'next' })
    const a = await claim(db.sql, 'a')
    const c = await claim(db.sql, 'c')
    const before = await fileRow(db.sql, 'b')
    const rows = await call<ClaimRow>(db.sql, 'complete_and_claim_next', {
      worker_id: 'w1',
      completions: [
        { file_url: 'c', claim_token: Number(c.claim_token), records_total: 3 },
        { file_url: 'b', claim_token: Number(zombie), records_total: 2 },
        { file_url: 'a', claim_token: Number(a.claim_token), records_total: 1 },
      ],
      limit: 10,
    })
    expect(rows.map(({ outcome, file_url }) => [outcome, file_url])).toEqual([
      ['claim_lost', 'b'],
      ['claimed', 'next'],
    ])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed', records_total: '1' })
    expect(await fileRow(db.sql, 'c')).toMatchObject({ status: 'completed', records_total: '3' })
    expect(await fileRow(db.sql, 'b')).toEqual(before)
  })

  test('rule 6.1: loses its own transaction with its claim', { tags: 'sessions' }, async () => {
    const zombie = await claimAndFallAsleep('a')
    await one.sql`begin`
    await one.sql`insert into target values (1)`
    await claim(db.sql, 'a', { worker_id: 'w2' })
    expect(await refusal(pick(writes, 'assert_claim')(one.sql, 'a', zombie))).toMatchObject({
      code: 'PT409',
    })
    await one.sql`commit`
    expect(await db.sql`select from target`).toHaveLength(0)
  })

  test('rule 6.1: may read, which gives it nothing', async () => {
    const zombie = await claimAndFallAsleep('a')
    const now = await claim(db.sql, 'a', { worker_id: 'w2' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_token: now.claim_token, processed_by: 'w2' })
    expect(now.claim_token).not.toBe(zombie)
  })

  test.each(Object.entries(writes))(
    'rule 6.1: a token that was never given is no claim (%s)',
    async (_, write) => {
      const { claim_token } = await claim(db.sql, 'a', { etag: 'e1' })
      await checkpoint(db.sql, 'a', claim_token, 10)
      const before = await contents(db.sql)
      expect(await refusal(write(db.sql, 'a', '2'))).toMatchObject({ code: 'PT409' })
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test.each(Object.entries(writes))('a token says nothing about an unknown file (%s)', async (_, write) => {
    await claim(db.sql, 'a')
    const before = await contents(db.sql)
    expect(await refusal(write(db.sql, 'b', '1'))).toEqual({
      code: 'PT404',
      message: 'file "b" is unknown in pipeline "default"',
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(Object.entries(writes))(
    'a file that nobody ever claimed takes no token, not even 0 (%s)',
    async (_, write) => {
      await register(db.sql, { file_url: 'a' })
      const before = await contents(db.sql)
      expect(await refusal(write(db.sql, 'a', '0'))).toMatchObject({ code: 'PT400', message: /claim_token/ })
      expect(await refusal(write(db.sql, 'a', '1'))).toMatchObject({ code: 'PT409' })
      expect(await contents(db.sql)).toEqual(before)
    },
  )
})

describe('rule 6.1: a holder whose lease is over, and whom nobody overtook,', () => {
  test.each(Object.entries(writes))('still gets on with %s', async (_, write) => {
    const token = await claimAndFallAsleep('a')
    expect(await refusal(write(db.sql, 'a', token))).toBeUndefined()
  })

  test('has its lease renewed by a checkpoint, and completes', async () => {
    const token = await claimAndFallAsleep('a')
    await checkpoint(db.sql, 'a', token, 20)
    expect(await tryClaim(db.sql, 'a', { worker_id: 'w2' })).toMatchObject({ outcome: 'held' })
    await expireLease(db.sql)
    expect(await complete(db.sql, 'a', token)).toBe('completed')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed', claim_token: token, attempts: 1 })
    expect(await eventNames(db.sql, 'a')).toEqual([])
  })

  test('completes among others in complete_and_claim_next', async () => {
    const token = await claimAndFallAsleep('a')
    const completions = [{ file_url: 'a', claim_token: Number(token) }]
    expect(await call(db.sql, 'complete_and_claim_next', { worker_id: 'w1', completions })).toEqual([])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed' })
  })
})

describe('a takeover and the old holder meet under the lock:', { tags: 'sessions' }, () => {
  /** What each call of the old holder leaves for a takeover that comes a moment later. */
  const left: Record<string, string> = {
    checkpoint_file: 'held',
    'checkpoint_file with its number': 'held',
    extend_claim: 'held',
    complete_file: 'completed',
    'complete_file with other content': 'claimed',
    fail_file: 'waiting',
    'fail_file for good': 'dead_letter',
    release_file: 'claimed',
    persist_records: 'held',
    'persist_records with its number': 'held',
    assert_claim: 'claimed',
  }
  const takeovers: Record<string, (sql: Sql) => Promise<ClaimRow>> = {
    claim_file: (sql) => tryClaim(sql, 'a', { worker_id: 'w2' }),
    claim_next_files: async (sql) => only(await claimNext(sql, 1, { worker_id: 'w2' })),
  }
  const meetings = Object.keys(writes).map((name) => ({ name, outcome: left[name] }))
  const reversed = Object.keys(writes).flatMap((name) => Object.keys(takeovers).map((by) => ({ name, by })))

  test.each(meetings)(
    'rule 6.2: $name first: the takeover looks again, and answers $outcome',
    async ({ name, outcome }) => {
      const token = await claimAndFallAsleep('a')
      await one.sql`begin`
      await pick(writes, name)(one.sql, 'a', token)
      const taker = started(tryClaim(two.sql, 'a', { worker_id: 'w2' }))
      await untilLocked(db.sql, two.pid)
      await one.sql`commit`
      const after = await taker
      expect(after).toMatchObject({ outcome })
      // The new holder of a file that was given back is no takeover: nothing was lost.
      expect(await eventNames(db.sql, 'a')).toHaveLength(
        { waiting: 1, dead_letter: 2, claimed: 1 }[outcome ?? ''] ?? 0,
      )
      expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_token: outcome === 'claimed' ? '2' : '1' })
    },
  )

  test.each(meetings)('rule 6.2: $name first, but rolled back: the takeover succeeds', async ({ name }) => {
    const token = await claimAndFallAsleep('a')
    await one.sql`begin`
    await pick(writes, name)(one.sql, 'a', token)
    const taker = started(tryClaim(two.sql, 'a', { worker_id: 'w2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`rollback`
    expect(await taker).toMatchObject({
      outcome: 'claimed',
      claim_token: '2',
      items_processed: '10',
      attempts: 2,
    })
    expect(await refusal(pick(writes, name)(db.sql, 'a', token))).toMatchObject({ code: 'PT409' })
  })

  test.each(meetings)(
    'rule 6.2: $name first: claim_next_files does not wait, and takes nothing over',
    async ({ name }) => {
      const token = await claimAndFallAsleep('a')
      await one.sql`begin`
      await pick(writes, name)(one.sql, 'a', token)
      expect(await claimNext(two.sql, 10, { worker_id: 'w2' })).toEqual([])
      await one.sql`commit`
      expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_token: '1', processed_by: 'w1' })
    },
  )

  test.each(reversed)(
    'rule 6.1: takeover by $by first: $name finds the claim lost, and changes nothing',
    async ({ name, by }) => {
      const token = await claimAndFallAsleep('a')
      await one.sql`begin`
      expect(await pick(takeovers, by)(one.sql)).toMatchObject({ claim_token: '2' })
      const holder = refusal(pick(writes, name)(two.sql, 'a', token))
      await untilLocked(db.sql, two.pid)
      const before = await contents(one.sql)
      await one.sql`commit`
      expect(await holder).toMatchObject({ code: 'PT409' })
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test.each(reversed)(
    'rule 6.1: takeover by $by first, but rolled back: $name succeeds',
    async ({ name, by }) => {
      const token = await claimAndFallAsleep('a')
      await one.sql`begin`
      expect(await pick(takeovers, by)(one.sql)).toMatchObject({ claim_token: '2' })
      const holder = refusal(pick(writes, name)(two.sql, 'a', token))
      await untilLocked(db.sql, two.pid)
      await one.sql`rollback`
      expect(await holder).toBeUndefined()
      expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_token: '1', processed_by: 'w1' })
    },
  )

  test('rule 6.1: takeover first: complete_and_claim_next answers claim_lost and goes on', async () => {
    const token = await claimAndFallAsleep('a')
    const b = await claim(db.sql, 'b')
    await register(db.sql, { file_url: 'c' })
    await one.sql`begin`
    await claim(one.sql, 'a', { worker_id: 'w2' })
    const holder = started(
      call<ClaimRow>(two.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [
          { file_url: 'a', claim_token: Number(token) },
          { file_url: 'b', claim_token: Number(b.claim_token) },
        ],
      }),
    )
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect((await holder).map(({ outcome, file_url }) => [outcome, file_url])).toEqual([
      ['claim_lost', 'a'],
      ['claimed', 'c'],
    ])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'w2', status: 'processing' })
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'completed' })
  })

  test.each(Object.keys(writes))(
    'rule 6.2: reclaim_stale_claims passes over a file whose holder is at work (%s)',
    async (name) => {
      const token = await claimAndFallAsleep('a')
      await one.sql`begin`
      await pick(writes, name)(one.sql, 'a', token)
      expect(await call(two.sql, 'filemark.reclaim_stale_claims')).toEqual([])
      await one.sql`commit`
      expect(await eventNames(db.sql, 'a')).not.toContain('lease_expired')
    },
  )

  test.each(Object.keys(writes))('rule 6.1: forced requeue first: %s finds the claim lost', async (name) => {
    const { claim_token } = await claim(db.sql, 'a', { etag: 'e1' })
    await checkpoint(db.sql, 'a', claim_token, 10)
    await one.sql`begin`
    await call(one.sql, 'requeue_file', { file_url: 'a', force: true })
    const holder = refusal(pick(writes, name)(two.sql, 'a', claim_token))
    await untilLocked(db.sql, two.pid)
    const before = await contents(one.sql)
    await one.sql`commit`
    expect(await holder).toMatchObject({ code: 'PT409' })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('requeue without force, behind a claim, leaves the new holder alone', async () => {
    await register(db.sql, { file_url: 'a' })
    await one.sql`begin`
    await claim(one.sql, 'a')
    const requeued = refusal(call(two.sql, 'requeue_file', { file_url: 'a', from: 'start' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await requeued).toMatchObject({ code: 'PT422' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'processing', processed_by: 'w1' })
  })
})

describe('a lease', { tags: 'sessions' }, () => {
  test('is never shortened by an extension that waited while a checkpoint renewed it', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await one.sql`begin`
    await call(one.sql, 'filemark.assert_claim', { file_url: 'a', claim_token })
    const extended = started(
      call<{ extend_claim: Date }>(two.sql, 'extend_claim', { file_url: 'a', claim_token }),
    )
    await untilLocked(db.sql, two.pid)
    await checkpoint(one.sql, 'a', claim_token, 1)
    const [saved] = await one.sql<{ lease: string }[]>`
      select lease_expires_at::text as lease from filemark.file_checkpoints`
    await one.sql`commit`
    await extended
    const [kept] = await db.sql<{ shorter: boolean }[]>`
      select lease_expires_at < ${saved?.lease ?? ''}::timestamptz as shorter from filemark.file_checkpoints`
    expect(kept).toEqual({ shorter: false })
  })

  test('is never shortened by a checkpoint that waited while an extension renewed it', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await one.sql`begin`
    await call(one.sql, 'filemark.assert_claim', { file_url: 'a', claim_token })
    const saved = started(checkpoint(two.sql, 'a', claim_token, 1))
    await untilLocked(db.sql, two.pid)
    await call(one.sql, 'extend_claim', { file_url: 'a', claim_token })
    const [extended] = await one.sql<{ lease: string }[]>`
      select lease_expires_at::text as lease from filemark.file_checkpoints`
    await one.sql`commit`
    await saved
    const [kept] = await db.sql<{ shorter: boolean }[]>`
      select lease_expires_at < ${extended?.lease ?? ''}::timestamptz as shorter from filemark.file_checkpoints`
    expect(kept).toEqual({ shorter: false })
  })

  test('of a claim that had to wait begins when the claim is made, not when it was asked for', async () => {
    await register(db.sql, { file_url: 'a' })
    await one.sql`begin`
    await one.sql`select from filemark.file_checkpoints for no key update`
    const claimed = started(claim(two.sql, 'a'))
    await untilLocked(db.sql, two.pid)
    const [letGo] = await one.sql<{ at: string }[]>`select clock_timestamp()::text as at`
    await one.sql`commit`
    await claimed
    const [row] = await db.sql<{ late: boolean }[]>`
      select started_at >= ${letGo?.at ?? ''}::timestamptz
             and lease_expires_at >= ${letGo?.at ?? ''}::timestamptz + interval '300 seconds' as late
        from filemark.file_checkpoints`
    expect(row).toEqual({ late: true })
  })
})
