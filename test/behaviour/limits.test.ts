import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import {
  type ClaimRow,
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  configure,
  fail,
  pick,
  register,
  release,
  tryClaim,
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow, makeDue } from './tables.ts'

// Pauses and max_concurrency, and pending_files, which foretells both.

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

/** What may be the matter with file a. */
const states: Record<string, () => Promise<unknown>> = {
  unknown: async () => {},
  pending: () => register(db.sql, { file_url: 'a' }),
  'pending, and not due': () => register(db.sql, { file_url: 'a', available_at: '2999-01-01T00:00:00Z' }),
  held: () => claim(db.sql, 'a'),
  lost: async () => {
    await claim(db.sql, 'a')
    await expireLease(db.sql, 'a')
  },
  'lost at the last attempt': async () => {
    await claim(db.sql, 'a')
    await db.sql`update filemark.file_checkpoints set attempts = 3 where file_url = 'a'`
    await expireLease(db.sql, 'a')
  },
  'lost at the last attempt, with newer content': async () => {
    await register(db.sql, { file_url: 'a', etag: '1' })
    await claim(db.sql, 'a')
    await register(db.sql, { file_url: 'a', etag: '2' })
    await db.sql`update filemark.file_checkpoints set attempts = 3 where file_url = 'a'`
    await expireLease(db.sql, 'a')
  },
  'failed, and waiting': async () => fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token),
  'failed, and due': async () => {
    await fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token)
    await makeDue(db.sql, 'a')
  },
  completed: async () => complete(db.sql, 'a', (await claim(db.sql, 'a')).claim_token),
  dead_letter: async () => fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token, { retryable: false }),
  skipped: async () => {
    await register(db.sql, { file_url: 'a' })
    await call(db.sql, 'skip_file', { file_url: 'a' })
  },
}

const pipelines: Record<string, () => Promise<unknown>> = {
  open: async () => {},
  paused: () => configure(db.sql, { paused: true }),
  full: async () => {
    await claim(db.sql, 'other')
    const [row] = await db.sql<{ busy: number }[]>`
      select count(*)::int as busy from filemark.file_checkpoints where status = 'processing'`
    await configure(db.sql, { max_concurrency: row?.busy })
  },
  'full but for one': async () => {
    await pick(pipelines, 'full')()
    const [row] = await db.sql<{ limit: number }[]>`select max_concurrency as limit from filemark.pipelines`
    await configure(db.sql, { max_concurrency: (row?.limit ?? 0) + 1 })
  },
}

describe('pending_files names a file exactly when claim_file would get it:', () => {
  const cases = Object.keys(pipelines).flatMap((pipeline) =>
    Object.keys(states).map((state) => ({ pipeline, state })),
  )

  test.each(cases)('$state, in a pipeline that is $pipeline', async ({ pipeline, state }) => {
    await pick(states, state)()
    await pick(pipelines, pipeline)()
    const before = await contents(db.sql)
    const named = await call(db.sql, 'pending_files', { file_urls: ['a', 'a'] })
    expect(await contents(db.sql)).toEqual(before)
    const { outcome } = await tryClaim(db.sql, 'a', { worker_id: 'w2' })
    expect(named).toEqual(outcome === 'claimed' ? [{ file_url: 'a' }] : [])
  })

  test('each once, in the order given', async () => {
    for (const file_url of ['b', 'held', 'a', 'c']) await register(db.sql, { file_url })
    await claim(db.sql, 'held')
    const file_urls = ['unknown', 'c', 'held', 'a', 'c', 'b', 'a']
    expect(await call(db.sql, 'pending_files', { file_urls })).toEqual(
      ['unknown', 'c', 'a', 'b'].map((file_url) => ({ file_url })),
    )
    expect(await call(db.sql, 'pending_files', { file_urls: [] })).toEqual([])
  })
})

describe('max_concurrency', () => {
  const completion = [{ file_url: 'a', claim_token: 1 }]
  const ends: Record<string, () => Promise<unknown>> = {
    complete_file: () => complete(db.sql, 'a', '1'),
    'complete_file of other content': () => complete(db.sql, 'a', '1', { etag: '2' }),
    complete_and_claim_next: () =>
      call(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions: completion,
        file_type: 'none',
      }),
    fail_file: () => fail(db.sql, 'a', '1'),
    'fail_file for good': () => fail(db.sql, 'a', '1', { retryable: false }),
    release_file: () => release(db.sql, 'a', '1'),
    'requeue_file by force': () => call(db.sql, 'requeue_file', { file_url: 'a', force: true }),
    reclaim_stale_claims: async () => {
      await expireLease(db.sql, 'a')
      await call(db.sql, 'filemark.reclaim_stale_claims')
    },
    'a claim that buries it': async () => {
      await db.sql`update filemark.file_checkpoints set attempts = 3`
      await expireLease(db.sql, 'a')
      expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
    },
  }

  test.each(Object.entries(ends))('has a slot free again after %s', async (_, end) => {
    await configure(db.sql, { max_concurrency: 1 })
    await claim(db.sql, 'a', { etag: '1' })
    await register(db.sql, { file_url: 'b', priority: 9 })
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'busy' })
    expect(await claimNext(db.sql)).toEqual([])
    await end()
    expect((await claimNext(db.sql, 10)).map((row) => row.file_url)).toEqual(['b'])
    expect(await claimNext(db.sql, 10)).toEqual([])
  })

  test('has the slot of a file that a claim_next_files buries for its own claim', async () => {
    await configure(db.sql, { max_concurrency: 1, max_attempts: 1 })
    await claim(db.sql, 'a')
    await register(db.sql, { file_url: 'b' })
    await expireLease(db.sql, 'a')
    expect((await claimNext(db.sql, 10)).map((row) => row.file_url)).toEqual(['b'])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'dead_letter' })
  })

  test.each(['a lease that is over', 'a checkpoint'])('keeps the slot of a claim with %s', async (what) => {
    await configure(db.sql, { max_concurrency: 1 })
    await claim(db.sql, 'a')
    if (what === 'a checkpoint') await checkpoint(db.sql, 'a', '1', 1)
    else await expireLease(db.sql, 'a')
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'busy' })
  })

  test('is of one pipeline', async () => {
    await configure(db.sql, { max_concurrency: 1 })
    await claim(db.sql, 'a')
    expect(await tryClaim(db.sql, 'b', { pipeline: 'other' })).toMatchObject({ outcome: 'claimed' })
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'busy' })
  })

  test('takes no claim back when it is lowered', async () => {
    for (const url of ['a', 'b', 'c']) await claim(db.sql, url)
    await configure(db.sql, { max_concurrency: 1 })
    await checkpoint(db.sql, 'c', '1', 1)
    for (const url of ['a', 'b']) {
      expect(await complete(db.sql, url, '1')).toBe('completed')
      expect(await tryClaim(db.sql, 'd')).toMatchObject({ outcome: 'busy' })
    }
    await complete(db.sql, 'c', '1')
    expect(await tryClaim(db.sql, 'd')).toMatchObject({ outcome: 'claimed' })
  })

  test('rule 6.11: lets a new etag be noted though nothing is free', async () => {
    await complete(db.sql, 'a', (await claim(db.sql, 'a', { etag: '1' })).claim_token)
    await claim(db.sql, 'b')
    await configure(db.sql, { max_concurrency: 1 })
    expect(await tryClaim(db.sql, 'a', { etag: '2' })).toMatchObject({ outcome: 'busy' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', generation: '2', etag: '2' })
  })
})

describe('a paused pipeline', () => {
  test('completes in complete_and_claim_next, and gives nothing', async () => {
    await register(db.sql, { file_url: 'a' }, { file_url: 'b' })
    await claimNext(db.sql)
    await configure(db.sql, { paused: true })
    const rows = await call<ClaimRow>(db.sql, 'complete_and_claim_next', {
      worker_id: 'w1',
      completions: [{ file_url: 'a', claim_token: 1, records_total: 5 }],
      limit: 10,
    })
    expect(rows).toEqual([])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed', records_total: '5' })
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'pending' })
  })

  const ends: Record<string, () => Promise<unknown>> = {
    complete_file: () => complete(db.sql, 'a', '1'),
    fail_file: () => fail(db.sql, 'a', '1'),
    release_file: () => release(db.sql, 'a', '1'),
    extend_claim: () => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: 1 }),
    checkpoint_file: () => checkpoint(db.sql, 'a', '1', 5),
  }
  test.each(Object.entries(ends))('lets a running claim go on with %s', async (_, end) => {
    await claim(db.sql, 'a')
    await configure(db.sql, { paused: true })
    await end()
    expect(await tryClaim(db.sql, 'b')).toMatchObject({ outcome: 'paused' })
  })

  test('takes files, and what is seen of them, and gives them when it goes on', async () => {
    await configure(db.sql, { paused: true })
    await register(db.sql, { file_url: 'a', etag: '1' })
    await register(db.sql, { file_url: 'a', etag: '2' })
    expect(await claimNext(db.sql)).toEqual([])
    await configure(db.sql, { paused: false })
    expect(await claimNext(db.sql)).toMatchObject([{ file_url: 'a', generation: '2', etag: '2' }])
  })

  test('is cleaned up after all the same', async () => {
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    await configure(db.sql, { paused: true })
    expect(await call(db.sql, 'filemark.reclaim_stale_claims')).toMatchObject([{ action: 'reclaimed' }])
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'paused' })
    expect(await eventNames(db.sql, 'a')).toEqual(['lease_expired'])
  })
})
