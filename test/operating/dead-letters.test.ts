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
import { contents, empty, eventNames, expireLease, fileRow, makeDue } from '../behaviour/tables.ts'
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

interface Entry {
  entry_id: string
  file_url: string
  reason: string
  opened_at: Date
  attempts: number
  error_message: string | null
  errors: {
    event: string
    attempts: number
    claim_token: number
    processed_by: string
    error_message?: string
  }[]
  file: Record<string, unknown>
  resolution: string
  notes: string | null
  resolved_by: string | null
  resolved_at: Date | null
}

async function entries(url: string): Promise<Entry[]> {
  return [
    ...(await db.sql<
      Entry[]
    >`select * from filemark.dead_letter_entries where file_url = ${url} order by entry_id`),
  ]
}

/** What became of each dead letter of a file. */
async function resolutions(url: string): Promise<string[]> {
  return (await entries(url)).map(({ resolution }) => resolution)
}

interface Letter {
  pipeline: string
  file_url: string
  reason: string
  last_error: string | null
  requeue: string
}

async function letters(sql: Sql = db.sql): Promise<Letter[]> {
  return [...(await sql<Letter[]>`select * from filemark.dead_letters`)]
}

/** Ways to make file `url` a dead letter, by the reason its entry gives. */
const ways: Record<string, (url: string) => Promise<unknown>> = {
  max_attempts_exceeded: async (url) => {
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      const { claim_token } = await claim(db.sql, url, { worker_id: `w${attempt}` })
      await fail(db.sql, url, claim_token, { error_message: `no ${attempt}`, retry_after_seconds: 0 })
    }
  },
  not_retryable: async (url) => {
    const { claim_token } = await claim(db.sql, url)
    await fail(db.sql, url, claim_token, { retryable: false, error: { line: 7 } })
  },
  lease_expired: async (url) => {
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      await claim(db.sql, url, { worker_id: `w${attempt}` })
      await expireLease(db.sql, url)
    }
    expect(await tryClaim(db.sql, url)).toMatchObject({ outcome: 'dead_letter' })
  },
  manual: async (url) => {
    if ((await call(db.sql, 'get_file_checkpoint', { file_url: url })).length === 0) {
      await register(db.sql, { file_url: url })
    }
    await call(db.sql, 'filemark.dead_letter_file', { file_url: url, reason: 'looks wrong', actor: 'ann' })
  },
}

const reasons = Object.keys(ways)

function bury(reason: string, url = 'a'): Promise<unknown> {
  return pick(ways, reason)(url)
}

function resolve(url: string, resolution: string, args: Record<string, unknown> = {}): Promise<unknown> {
  return call(db.sql, 'filemark.resolve_dead_letter', { file_url: url, resolution, ...args })
}

describe('a file that becomes a dead letter opens an entry', () => {
  test('with every error when its attempts are spent', async () => {
    await bury('max_attempts_exceeded')
    expect(await entries('a')).toMatchObject([
      {
        reason: 'max_attempts_exceeded',
        attempts: 3,
        error_message: 'no 3',
        errors: [1, 2, 3].map((attempt) => ({
          event: 'failed',
          attempts: attempt,
          claim_token: attempt,
          processed_by: `w${attempt}`,
          error_message: `no ${attempt}`,
        })),
        resolution: 'pending',
        resolved_by: null,
        resolved_at: null,
      },
    ])
  })

  test('with the error that more attempts would not help against', async () => {
    await bury('not_retryable')
    expect(await entries('a')).toMatchObject([
      {
        reason: 'not_retryable',
        attempts: 1,
        error_message: 'it broke',
        errors: [{ event: 'failed', error_message: 'it broke', error: { line: 7 } }],
      },
    ])
  })

  test.each(['a claim', 'claim_next_files', 'reclaim_stale_claims'])(
    'with the workers it cost, found by %s',
    async (by) => {
      await bury('lease_expired', 'other')
      await configure(db.sql, { max_attempts: 2 })
      await register(db.sql, { file_url: 'a' })
      await claim(db.sql, 'a', { worker_id: 'w1' })
      await expireLease(db.sql, 'a')
      const second = await claim(db.sql, 'a', { worker_id: 'w2' })
      await checkpoint(db.sql, 'a', second.claim_token, 0)
      await expireLease(db.sql, 'a')
      if (by === 'a claim') await tryClaim(db.sql, 'a')
      else if (by === 'claim_next_files') await claimNext(db.sql)
      else await call(db.sql, 'filemark.reclaim_stale_claims')
      expect(await entries('a')).toMatchObject([
        {
          reason: 'lease_expired',
          attempts: 2,
          error_message: 'attempt 2 ended with its lease, without progress; the holder was w2',
          errors: [
            { event: 'lease_expired', attempts: 1, processed_by: 'w1' },
            { event: 'lease_expired', attempts: 2, processed_by: 'w2' },
          ],
          file: { checkpoint_seq: 1, cursor: { next: 0 } },
        },
      ])
    },
  )

  test('by hand, without an error', async () => {
    await bury('manual')
    expect(await entries('a')).toMatchObject([
      { reason: 'manual', attempts: 0, error_message: 'looks wrong', errors: [] },
    ])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'dead_letter', error_message: 'looks wrong' })
    expect(await eventNames(db.sql, 'a')).toEqual(['dead_lettered'])
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
  })

  test("with the file's row as it was then, whatever happens to it later", async () => {
    const { claim_token } = await claim(db.sql, 'a', { etag: 'e1' })
    await checkpoint(db.sql, 'a', claim_token, 10, { accumulated_results: { sum: 3 }, items_total: 99 })
    await fail(db.sql, 'a', claim_token, { retryable: false })
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'start' })
    const again = await claim(db.sql, 'a')
    await complete(db.sql, 'a', again.claim_token)
    expect(only(await entries('a')).file).toMatchObject({
      file_url: 'a',
      etag: 'e1',
      status: 'dead_letter',
      claim_token: 1,
      processed_by: 'w1',
      cursor: { next: 10 },
      items_processed: 10,
      items_total: 99,
      accumulated_results: { sum: 3 },
      error_message: 'it broke',
    })
  })

  test('that has the errors of its attempts at the last position only', async () => {
    const first = await claim(db.sql, 'a')
    await fail(db.sql, 'a', first.claim_token, { error_message: 'early', retry_after_seconds: 0 })
    const second = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', second.claim_token, 10)
    await fail(db.sql, 'a', second.claim_token, { error_message: 'late 1', retry_after_seconds: 0 })
    const third = await claim(db.sql, 'a')
    await release(db.sql, 'a', third.claim_token)
    const fourth = await claim(db.sql, 'a')
    await fail(db.sql, 'a', fourth.claim_token, { error_message: 'late 2', retryable: false })
    const entry = only(await entries('a'))
    expect(entry.attempts).toBe(2)
    expect(entry.errors.map(({ error_message }) => error_message)).toEqual(['late 1', 'late 2'])
  })

  test('with the last 100 errors of very many', async () => {
    await configure(db.sql, { max_attempts: 105 })
    for (let attempt = 1; attempt <= 105; attempt += 1) {
      const { claim_token } = await claim(db.sql, 'a')
      await fail(db.sql, 'a', claim_token, { error_message: `${attempt}`, retry_after_seconds: 0 })
    }
    const { attempts, errors } = only(await entries('a'))
    expect(attempts).toBe(105)
    expect(errors.map(({ error_message }) => error_message)).toEqual(
      Array.from({ length: 100 }, (_, index) => `${index + 6}`),
    )
  })

  test('without results of more than a MiB, which are kept with the file', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 1, { accumulated_results: { long: 'x'.repeat(2 ** 20) } })
    await fail(db.sql, 'a', claim_token, { retryable: false })
    expect(only(await entries('a')).file).toMatchObject({ accumulated_results: null, items_processed: 1 })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ accumulated_results: { long: expect.any(String) } })
  })
})

describe('the entry of a dead letter', () => {
  const endings: [
    string,
    () => Promise<unknown>,
    { resolution: string; notes: string | null; by: string; status: string },
  ][] = [
    [
      'requeue_file',
      () => call(db.sql, 'requeue_file', { file_url: 'a', reason: 'mended', actor: 'ann' }),
      { resolution: 'requeued', notes: 'mended', by: 'ann', status: 'pending' },
    ],
    [
      'requeue_file with force',
      () => call(db.sql, 'requeue_file', { file_url: 'a', force: true, from: 'start' }),
      { resolution: 'requeued', notes: null, by: 'postgres', status: 'pending' },
    ],
    [
      'requeue_dead_letters',
      () =>
        call(db.sql, 'filemark.requeue_dead_letters', {
          pipeline: 'default',
          dry_run: false,
          reason: 'mended',
          actor: 'ann',
        }),
      { resolution: 'requeued', notes: 'mended', by: 'ann', status: 'pending' },
    ],
    [
      'resolve_dead_letter as requeued',
      () => resolve('a', 'requeued', { notes: 'mended', actor: 'ann' }),
      { resolution: 'requeued', notes: 'mended', by: 'ann', status: 'pending' },
    ],
    [
      'skip_file',
      () => call(db.sql, 'skip_file', { file_url: 'a', reason: 'not ours' }),
      { resolution: 'skipped', notes: 'not ours', by: 'postgres', status: 'skipped' },
    ],
    [
      'resolve_dead_letter as skipped',
      () => resolve('a', 'skipped', { notes: 'not ours' }),
      { resolution: 'skipped', notes: 'not ours', by: 'postgres', status: 'skipped' },
    ],
    [
      'new content in a list',
      () => register(db.sql, { file_url: 'a', etag: 'e2' }),
      { resolution: 'requeued', notes: 'new content: etag e2', by: 'postgres', status: 'pending' },
    ],
    [
      'new content in a claim',
      () => claim(db.sql, 'a', { etag: 'e2', worker_id: 'w9' }),
      { resolution: 'requeued', notes: 'new content: etag e2', by: 'w9', status: 'processing' },
    ],
    [
      'resolve_dead_letter as manually_resolved',
      () => resolve('a', 'manually_resolved', { notes: 'loaded by hand', actor: 'ann' }),
      { resolution: 'manually_resolved', notes: 'loaded by hand', by: 'ann', status: 'dead_letter' },
    ],
    [
      'resolve_dead_letter as permanently_failed',
      () => resolve('a', 'permanently_failed'),
      { resolution: 'permanently_failed', notes: null, by: 'postgres', status: 'dead_letter' },
    ],
  ]
  const cases = endings.flatMap(([how, end, result]) =>
    reasons.map((reason) => ({ how, reason, end, result })),
  )

  test.each(cases)('($reason) is resolved by $how', async ({ reason, end, result }) => {
    await register(db.sql, { file_url: 'a', etag: 'e1' })
    await bury(reason)
    await end()
    expect(await letters()).toEqual([])
    expect(await entries('a')).toMatchObject([
      {
        reason,
        resolution: result.resolution,
        notes: result.notes,
        resolved_by: result.by,
        resolved_at: expect.any(Date),
      },
    ])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: result.status })
  })

  test('stays when the file becomes a dead letter again, which opens another one', async () => {
    for (let round = 1; round <= 3; round += 1) {
      await bury('not_retryable')
      expect(await letters()).toHaveLength(1)
      await call(db.sql, 'requeue_file', { file_url: 'a' })
    }
    await bury('manual')
    expect(await resolutions('a')).toEqual(['requeued', 'requeued', 'requeued', 'pending'])
  })

  test('that is pending is the only one of its file', async () => {
    await bury('manual')
    const again = db.sql`
      insert into filemark.dead_letter_entries (pipeline, file_url, reason, opened_at, attempts, errors, file)
      select pipeline, file_url, reason, opened_at, attempts, errors, file from filemark.dead_letter_entries`
    expect(await refusal(again)).toMatchObject({ code: '23505' })
  })

  test('is resolved and stays when the file is done, and goes when the file is purged', async () => {
    await bury('not_retryable')
    await call(db.sql, 'requeue_file', { file_url: 'a' })
    const { claim_token } = await claim(db.sql, 'a')
    await complete(db.sql, 'a', claim_token)
    expect(await resolutions('a')).toEqual(['requeued'])
    await configure(db.sql, { keep_files_days: 0 })
    await call(db.sql, 'filemark.run_maintenance')
    expect(await entries('a')).toEqual([])
  })

  test('of a file whose dead letter was resolved without it is not opened again by a skip or a requeue', async () => {
    await bury('manual')
    await resolve('a', 'permanently_failed', { notes: 'gone for ever' })
    await call(db.sql, 'skip_file', { file_url: 'a' })
    await call(db.sql, 'requeue_file', { file_url: 'a' })
    expect(await entries('a')).toMatchObject([{ resolution: 'permanently_failed', notes: 'gone for ever' }])
  })
})

describe('resolve_dead_letter', () => {
  test.each(['requeued', 'skipped', 'manually_resolved', 'permanently_failed'])(
    'as %s changes nothing when it is repeated',
    async (resolution) => {
      await bury('not_retryable')
      await resolve('a', resolution, { notes: 'first' })
      const before = await contents(db.sql)
      await resolve('a', resolution, { notes: 'second' })
      expect(await contents(db.sql)).toEqual(before)
      const other = resolution === 'skipped' ? 'requeued' : 'skipped'
      expect(await refusal(resolve('a', other))).toMatchObject({ code: 'PT422' })
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test.each(['pending', 'processing', 'failed', 'completed', 'skipped'])(
    'is refused for a %s file, which it names',
    async (status) => {
      await register(db.sql, { file_url: 'a' })
      if (status === 'skipped') await call(db.sql, 'skip_file', { file_url: 'a' })
      else if (status !== 'pending') {
        const { claim_token } = await claim(db.sql, 'a')
        if (status === 'failed') await fail(db.sql, 'a', claim_token)
        if (status === 'completed') await complete(db.sql, 'a', claim_token)
      }
      expect(await refusal(resolve('a', 'requeued'))).toMatchObject({
        code: 'PT422',
        message: 'file "a" has no pending dead letter',
      })
      expect(await fileRow(db.sql, 'a')).toMatchObject({ status })
    },
  )

  test('and a requeue that waits for it leave the file as the first says', async () => {
    await bury('not_retryable')
    await one.sql.unsafe('begin')
    await call(one.sql, 'skip_file', { file_url: 'a' })
    const met = started(
      refusal(call(two.sql, 'filemark.resolve_dead_letter', { file_url: 'a', resolution: 'requeued' })),
    )
    await untilLocked(db.sql, two.pid)
    await one.sql.unsafe('commit')
    expect(await met).toMatchObject({ code: 'PT422' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'skipped' })
    expect(await resolutions('a')).toEqual(['skipped'])
  })
})

describe('dead_letter_file', () => {
  test.each(['pending', 'waiting', 'failed'])(
    'takes a %s file from the queue, with its checkpoint',
    async (state) => {
      const { claim_token } = await claim(db.sql, 'a')
      await checkpoint(db.sql, 'a', claim_token, 5)
      if (state === 'failed') await fail(db.sql, 'a', claim_token, { error: { line: 3 } })
      else await release(db.sql, 'a', claim_token)
      await call(db.sql, 'filemark.dead_letter_file', { file_url: 'a' })
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        status: 'dead_letter',
        cursor: { next: 5 },
        error_message: state === 'failed' ? 'it broke' : null,
        error: state === 'failed' ? { line: 3 } : null,
      })
      await makeDue(db.sql, 'a')
      expect(await claimNext(db.sql)).toEqual([])
      await call(db.sql, 'requeue_file', { file_url: 'a' })
      expect(await claim(db.sql, 'a')).toMatchObject({ cursor: { next: 5 }, attempts: 1 })
      // The holder's own end of its claim is answered as before.
      expect(await refusal(checkpoint(db.sql, 'a', claim_token, 6))).toMatchObject({ code: 'PT409' })
    },
  )

  test('changes nothing when it is repeated', async () => {
    await bury('manual')
    const before = await contents(db.sql)
    await bury('manual')
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(['processing', 'completed', 'skipped'])('is refused for a %s file', async (status) => {
    const { claim_token } = await claim(db.sql, 'a')
    if (status === 'completed') await complete(db.sql, 'a', claim_token)
    if (status === 'skipped') {
      await release(db.sql, 'a', claim_token)
      await call(db.sql, 'skip_file', { file_url: 'a' })
    }
    expect(await refusal(call(db.sql, 'filemark.dead_letter_file', { file_url: 'a' }))).toMatchObject({
      code: 'PT422',
      message: `file "a" is ${status}`,
    })
  })
})

describe('requeue_dead_letters', () => {
  function requeue(
    args: Record<string, unknown> = {},
    sql: Sql = db.sql,
  ): Promise<Record<string, unknown>[]> {
    return call(sql, 'filemark.requeue_dead_letters', { pipeline: 'default', ...args })
  }

  async function buryWith(errors: Record<string, string>): Promise<void> {
    for (const [url, error_message] of Object.entries(errors)) {
      const { claim_token } = await claim(db.sql, url)
      await checkpoint(db.sql, url, claim_token, 5)
      await fail(db.sql, url, claim_token, { error_message, retryable: false })
    }
  }

  const letter = (file_url: string, error_message: string) => ({
    pipeline: 'default',
    file_url,
    error_message,
  })

  test('only says what it would requeue unless it is told to', async () => {
    await buryWith({ a: 'timeout', b: 'bad header' })
    const before = await contents(db.sql)
    expect(await requeue()).toEqual([
      { ...letter('a', 'timeout'), action: 'would_requeue' },
      { ...letter('b', 'bad header'), action: 'would_requeue' },
    ])
    expect(await contents(db.sql)).toEqual(before)
  })

  test('requeues those whose last error is like the pattern, from their last checkpoint', async () => {
    await buryWith({ a: 'timeout after 30 s', b: 'bad header', c: 'timeout after 60 s', d: '100% timeout' })
    await configure(db.sql, { paused: false }, 'other')
    await claim(db.sql, 'a', { pipeline: 'other' })
    expect(await requeue({ error_like: 'timeout%', dry_run: false, reason: 'network is back' })).toEqual([
      { ...letter('a', 'timeout after 30 s'), action: 'requeued' },
      { ...letter('c', 'timeout after 60 s'), action: 'requeued' },
    ])
    expect(await requeue({ error_like: '%\\%%' })).toEqual([
      { ...letter('d', '100% timeout'), action: 'would_requeue' },
    ])
    expect((await letters()).map(({ file_url }) => file_url)).toEqual(['b', 'd'])
    expect(await claimNext(db.sql, 10)).toMatchObject([
      { file_url: 'a', cursor: { next: 5 }, attempts: 1 },
      { file_url: 'c', cursor: { next: 5 }, attempts: 1 },
    ])
    expect(await entries('a')).toMatchObject([{ resolution: 'requeued', notes: 'network is back' }])
    expect(await eventNames(db.sql, 'a')).toEqual(['failed', 'dead_lettered', 'requeued'])
    expect(await requeue({ error_like: 'timeout%', dry_run: false })).toEqual([])
  })

  test('takes the oldest first, p_limit of them', async () => {
    await buryWith({ c: 'x', a: 'x', b: 'x' })
    expect((await requeue({ limit: 2 })).map(({ file_url }) => file_url)).toEqual(['a', 'c'])
    expect((await requeue({ limit: 2, dry_run: false })).map(({ file_url }) => file_url)).toEqual(['a', 'c'])
    expect((await letters()).map(({ file_url }) => file_url)).toEqual(['b'])
  })

  test('takes files without an error for every pattern that an empty text is like', async () => {
    await register(db.sql, { file_url: 'a' })
    await call(db.sql, 'filemark.dead_letter_file', { file_url: 'a' })
    expect(await requeue({ error_like: '_%' })).toEqual([])
    expect(await requeue({ dry_run: false })).toMatchObject([{ file_url: 'a', error_message: null }])
  })

  test('leaves what nobody needs to look at any more', async () => {
    await buryWith({ a: 'x', b: 'x' })
    await resolve('a', 'permanently_failed')
    await resolve('b', 'manually_resolved')
    expect(await requeue({ dry_run: false })).toEqual([])
  })

  test('passes over a file that somebody else is dealing with', async () => {
    await buryWith({ a: 'x', b: 'x' })
    await one.sql.unsafe('begin')
    await call(one.sql, 'skip_file', { file_url: 'a' })
    expect(await requeue({ dry_run: false })).toMatchObject([{ file_url: 'b' }])
    await one.sql.unsafe('commit')
    expect(await requeue({ dry_run: false })).toEqual([])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'skipped' })
  })

  test.each([
    ['was requeued, claimed and completed', 'completed'],
    ['was said to have failed for good', 'dead_letter'],
    ['was requeued and is a dead letter again', 'dead_letter'],
  ])('leaves a file that %s while it was at the one before', async (what, status) => {
    await buryWith({ a: 'x', b: 'x' })
    // It stands still at the first file, after it has read its list.
    await db.sql.unsafe(`
      create or replace function public.stand_still() returns trigger language plpgsql as $$
      begin
        perform pg_advisory_xact_lock(4711);
        return new;
      end $$;
      create trigger stand_still after update on filemark.dead_letter_entries
        for each row when (new.file_url = 'a') execute function public.stand_still()`)
    await one.sql.unsafe('begin')
    await one.sql`select pg_advisory_xact_lock(4711)`
    const met = started(requeue({ dry_run: false }, two.sql))
    await untilLocked(db.sql, two.pid)
    if (what.includes('for good')) await resolve('b', 'permanently_failed')
    else {
      await call(db.sql, 'requeue_file', { file_url: 'b' })
      const { claim_token } = await claim(db.sql, 'b')
      if (status === 'completed') await complete(db.sql, 'b', claim_token)
      else await fail(db.sql, 'b', claim_token, { error_message: 'y', retryable: false })
    }
    await one.sql.unsafe('commit')
    expect(await met).toMatchObject([{ file_url: 'a' }])
    await db.sql`drop trigger stand_still on filemark.dead_letter_entries`
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status })
  })

  test.each([
    ['an unknown pipeline', { pipeline: 'nobody' }, 'PT404', 'pipeline "nobody" is unknown'],
    ['a pattern that ends with a backslash', { error_like: 'x\\' }, 'PT400', 'p_error_like'],
    ['a pattern that ends with three', { error_like: 'x\\\\\\' }, 'PT400', 'p_error_like'],
    ['no pattern', { error_like: null }, 'PT400', 'p_error_like'],
    ['no word on dry_run', { dry_run: null }, 'PT400', 'p_dry_run'],
    ['a limit of 0', { limit: 0 }, 'PT400', 'p_limit'],
  ])('refuses %s', async (_what, args, code, message) => {
    await buryWith({ a: 'x' })
    const before = await contents(db.sql)
    expect(await refusal(requeue({ dry_run: false, ...args }))).toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test('takes a pattern that ends with an escaped backslash', async () => {
    await buryWith({ a: 'C:\\' })
    expect(await requeue({ error_like: 'C:\\\\' })).toHaveLength(1)
  })
})

describe('filemark.dead_letters', () => {
  test('shows the pending ones, the worst first', async () => {
    await register(db.sql, { file_url: 'urgent', priority: 5 }, { file_url: 'idle', priority: -1 })
    await bury('not_retryable', 'idle')
    await bury('manual', 'm')
    await bury('not_retryable', 'n1')
    await bury('not_retryable', 'n2')
    await bury('max_attempts_exceeded', 'x')
    await bury('lease_expired', 'l')
    await bury('manual', 'urgent')
    await bury('not_retryable', 'mended')
    await call(db.sql, 'requeue_file', { file_url: 'mended' })
    expect((await letters()).map(({ file_url }) => file_url)).toEqual([
      'urgent',
      'l',
      'x',
      'n1',
      'n2',
      'm',
      'idle',
    ])
  })

  test('shows what one needs to know of each', async () => {
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'loader-7' })
    await checkpoint(db.sql, 'a', claim_token, 40, { items_total: 90 })
    await fail(db.sql, 'a', claim_token, { error_message: 'row 41: no date', retryable: false })
    expect(await letters()).toEqual([
      {
        pipeline: 'default',
        file_url: 'a',
        file_type: 'csv',
        priority: 0,
        reason: 'not_retryable',
        opened_at: only(await entries('a')).opened_at,
        attempts: 1,
        last_error: 'row 41: no date',
        errors: only(await entries('a')).errors,
        items_processed: '40',
        items_total: '90',
        processed_by: 'loader-7',
        requeue: "select * from public.requeue_file('a', p_pipeline => 'default');",
      },
    ])
  })

  test.each([
    ['a plain name', 'drop/a.csv', 'default'],
    ['quotes and backslashes', `it's "q" \\ %L $1 \n;`, "o'pipe"],
    ['something that would like to be SQL', `'); drop schema filemark cascade; --`, 'p;'],
  ])('has the statement that requeues the file, with %s', async (_what, file_url, pipeline) => {
    const { claim_token } = await claim(db.sql, file_url, { pipeline })
    await fail(db.sql, file_url, claim_token, { pipeline, retryable: false })
    const { requeue } = only(await letters())
    expect([...(await db.sql.unsafe(requeue))]).toEqual([{ status: 'pending', checkpoint_seq: '0' }])
    expect(await letters()).toEqual([])
    expect(await claim(db.sql, file_url, { pipeline })).toMatchObject({ claim_token: '2' })
  })

  test('is read by filemark_monitor and filemark_operator, and by nobody below them', async () => {
    await bury('manual')
    for (const role of ['filemark_monitor', 'filemark_operator', 'filemark_worker']) {
      await one.sql.unsafe(`begin; set local role ${role}`)
      const read = letters(one.sql)
      if (role === 'filemark_worker') expect(await refusal(read)).toMatchObject({ code: '42501' })
      else expect(await read).toMatchObject([{ file_url: 'a' }])
      await one.sql.unsafe('rollback')
    }
  })
})
