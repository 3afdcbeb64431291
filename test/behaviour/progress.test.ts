import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import {
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  fail,
  only,
  refusal,
  register,
  release,
  tryClaim,
} from './calls.ts'
import { contents, empty, expireLease, fileRow, makeDue } from './tables.ts'

let db: TestDatabase
let one: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  await db.sql`create table target (id int)`
})
beforeEach(() => empty(db.sql))
afterEach(() => one.sql.unsafe('rollback'))
afterAll(() => db.drop())

/** Claims file a and saves 10 items, then 20. Answers the token. */
async function claimAndProgress(): Promise<string> {
  const { claim_token } = await claim(db.sql, 'a', { etag: 'e1' })
  await checkpoint(db.sql, 'a', claim_token, 10)
  await checkpoint(db.sql, 'a', claim_token, 20)
  return claim_token
}

function persist(sql: Sql, token: string, items: number, args: Record<string, unknown> = {}) {
  return call(sql, 'persist_records', {
    file_url: 'a',
    claim_token: token,
    target: 'target',
    records: [{ id: items }],
    cursor: { next: items },
    items_processed: items,
    ...args,
  })
}

describe('rule 6.6: items_processed', () => {
  const saves: Record<string, (token: string, items: number) => Promise<unknown>> = {
    checkpoint_file: (token, items) => checkpoint(db.sql, 'a', token, items),
    'checkpoint_file with its number': (token, items) =>
      checkpoint(db.sql, 'a', token, items, { checkpoint_seq: 3 }),
    persist_records: (token, items) => persist(db.sql, token, items),
    'persist_records with its number': (token, items) => persist(db.sql, token, items, { checkpoint_seq: 3 }),
  }

  test.each(Object.entries(saves))('cannot be lowered by %s, which saves nothing then', async (_, save) => {
    const token = await claimAndProgress()
    const before = await contents(db.sql)
    for (const items of [19, 10, 0]) {
      expect(await refusal(save(token, items))).toEqual({
        code: 'PT412',
        message: `p_items_processed ${items} of file "a" steps back: 20 are saved already`,
      })
    }
    expect(await contents(db.sql)).toEqual(before)
    await save(token, 21)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ items_processed: '21', cursor: { next: 21 } })
  })

  test.each(Object.entries(saves))('cannot be lowered by %s of the next holder either', async (_, save) => {
    await claimAndProgress()
    await expireLease(db.sql)
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'w2' })
    expect(await refusal(save(claim_token, 19))).toMatchObject({ code: 'PT412' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ items_processed: '20' })
  })

  const reclaim = () => call(db.sql, 'filemark.reclaim_stale_claims')
  const requeue = (args: Record<string, unknown> = {}) =>
    call(db.sql, 'requeue_file', { file_url: 'a', ...args })
  const ends: Record<string, (token: string) => Promise<unknown>> = {
    'a completion': (token) => complete(db.sql, 'a', token),
    'a completion, and a requeue': async (token) => {
      await complete(db.sql, 'a', token)
      await requeue()
    },
    'a completion in a batch': (token) =>
      call(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: [{ file_url: 'a', claim_token: Number(token) }],
      }),
    'a failure': (token) => fail(db.sql, 'a', token),
    'a failure, and the retry': async (token) => {
      await fail(db.sql, 'a', token)
      await makeDue(db.sql, 'a')
      await claim(db.sql, 'a')
    },
    'a failure for good, and a requeue': async (token) => {
      await fail(db.sql, 'a', token, { retryable: false })
      await requeue()
    },
    'a release': (token) => release(db.sql, 'a', token),
    'a takeover by name': async () => {
      await expireLease(db.sql)
      await claim(db.sql, 'a', { worker_id: 'w2' })
    },
    'a takeover out of the queue': async () => {
      await expireLease(db.sql)
      only(await claimNext(db.sql, 1, { worker_id: 'w2' }))
    },
    'the last attempt': async () => {
      await db.sql`update filemark.file_checkpoints set attempts = 3`
      await expireLease(db.sql)
      expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
    },
    reclaim_stale_claims: async () => {
      await expireLease(db.sql)
      await reclaim()
    },
    'a requeue by force': () => requeue({ force: true }),
    'a registration of the same content': () => register(db.sql, { file_url: 'a', etag: 'e1', priority: 9 }),
    'a registration without an etag': () =>
      register(db.sql, { file_url: 'a', file_timestamp: '2026-06-01T00:00:00Z' }),
  }

  test.each(Object.entries(ends))('is kept by %s, with its cursor', async (_, end) => {
    const token = await claimAndProgress()
    await end(token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ items_processed: '20', cursor: { next: 20 } })
  })

  const falls: Record<string, { items: string; call: (token: string) => Promise<unknown> }> = {
    'a requeue from the start': { items: '0', call: () => requeue({ from: 'start', force: true }) },
    'a requeue from an earlier checkpoint': {
      items: '10',
      call: () => requeue({ from: 'checkpoint:1', force: true }),
    },
    'a new etag that is registered': {
      items: '0',
      call: async (token) => {
        await release(db.sql, 'a', token)
        await register(db.sql, { file_url: 'a', etag: 'e2' })
      },
    },
    'a completion of other content': {
      items: '0',
      call: (token) => complete(db.sql, 'a', token, { etag: 'e2' }),
    },
  }

  test.each(Object.entries(falls))('falls by %s', async (_, { items, call: fall }) => {
    await fall(await claimAndProgress())
    expect(await fileRow(db.sql, 'a')).toMatchObject({ items_processed: items })
    // And from there it does not fall again.
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 15)
    expect(await refusal(checkpoint(db.sql, 'a', claim_token, 14))).toMatchObject({ code: 'PT412' })
  })
})

describe('rule 6.9: an update is HOT', () => {
  /** The updates of file rows that `work` makes in the open transaction, and how many of them were HOT. */
  async function updates(work: () => Promise<unknown>): Promise<{ all: number; hot: number }> {
    async function count() {
      const rows = await one.sql<{ all: number; hot: number }[]>`
        select pg_stat_get_xact_tuples_updated(oid)::int as all, pg_stat_get_xact_tuples_hot_updated(oid)::int as hot
          from pg_class where oid = 'filemark.file_checkpoints'::regclass`
      return only(rows)
    }
    const before = await count()
    await work()
    const after = await count()
    return { all: after.all - before.all, hot: after.hot - before.hot }
  }

  const ten = Array.from({ length: 10 }, (_, index) => index + 1)
  const progress: Record<string, (token: string, step: number) => Promise<unknown>> = {
    checkpoint_file: (token, step) =>
      checkpoint(one.sql, 'a', token, step, { accumulated_results: { step }, items_total: 100 + step }),
    'checkpoint_file without progress': (token, step) =>
      checkpoint(one.sql, 'a', token, 0, { cursor: { step } }),
    extend_claim: (token) => call(one.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
    persist_records: (token, step) => persist(one.sql, token, step),
  }

  // Ten fit into the page. What happens after thousands, test/cost measures on a server without a vacuum.
  test.each(Object.entries(progress))('when it comes from %s', async (_, save) => {
    const { claim_token } = await claim(db.sql, 'a')
    await one.sql`begin`
    expect(
      await updates(async () => {
        for (const step of ten) await save(claim_token, step)
      }),
    ).toEqual({ all: 10, hot: 10 })
  })

  test('is not said of a claim, which moves the file in the index of the queue', async () => {
    await register(db.sql, { file_url: 'a' })
    await one.sql`begin`
    expect(await updates(() => claim(one.sql, 'a'))).toEqual({ all: 1, hot: 0 })
  })
})
