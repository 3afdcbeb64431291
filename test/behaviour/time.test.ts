import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { until } from '../wait.ts'
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
import { empty, expireLease, fileRow } from './tables.ts'

// now() is the moment a transaction began. In one that has been open for a while it tells a call what is long past, so
// everything here happens in one transaction, in which the clock is seen to move on while now() does not.

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

/** Waits in the open transaction until the clock is past a time of file a. */
async function untilPast(column: 'lease_expires_at' | 'available_at'): Promise<void> {
  await until(
    async () => {
      const [row] = await one.sql.unsafe<{ past: boolean; frozen: boolean }[]>(
        `select clock_timestamp() > ${column} as past, now() < ${column} as frozen
           from filemark.file_checkpoints where file_url = 'a'`,
      )
      // By now() it is still to come, and stays so.
      expect(row?.frozen).toBe(true)
      return row?.past
    },
    { what: `the clock to pass ${column}` },
  )
}

/** Who may come by file a, in the open transaction. */
const claimers: Record<string, () => Promise<ClaimRow | undefined>> = {
  claim_file: () => tryClaim(one.sql, 'a', { worker_id: 'w2' }),
  claim_next_files: async () => (await claimNext(one.sql, 1, { worker_id: 'w2' }))[0],
  complete_and_claim_next: async () =>
    (await call<ClaimRow>(one.sql, 'complete_and_claim_next', { worker_id: 'w2', completions: [] }))[0],
}

describe('rule 6.7: in a transaction that stays open', () => {
  test.each(Object.keys(claimers))('a lease ends by the clock, and %s takes the file over', async (by) => {
    await configure(db.sql, { lease_seconds: 1 })
    await one.sql`begin`
    await claim(one.sql, 'a')
    await untilPast('lease_expires_at')
    expect(await pick(claimers, by)()).toMatchObject({ outcome: 'claimed', claim_token: '2', attempts: 2 })
  })

  test('a lease ends by the clock, and reclaim_stale_claims gives the file back', async () => {
    await configure(db.sql, { lease_seconds: 1 })
    await one.sql`begin`
    await claim(one.sql, 'a')
    await untilPast('lease_expires_at')
    expect(await call(one.sql, 'filemark.reclaim_stale_claims')).toMatchObject([{ action: 'reclaimed' }])
  })

  test.each(Object.keys(claimers))('a retry becomes due by the clock, and %s gets it', async (by) => {
    await one.sql`begin`
    const { claim_token } = await claim(one.sql, 'a')
    await fail(one.sql, 'a', claim_token, { retry_after_seconds: 1 })
    await untilPast('available_at')
    expect(await call(one.sql, 'pending_files', { file_urls: ['a'] })).toEqual([{ file_url: 'a' }])
    expect(await pick(claimers, by)()).toMatchObject({ outcome: 'claimed', attempts: 2 })
  })

  const held = (token: string) => ({ file_url: 'a', claim_token: token })
  /** What each call that sets a time sets it to, in seconds after the call. */
  const stamps: Record<string, { call: (token: string) => Promise<unknown>; sets: Record<string, number> }> =
    {
      checkpoint_file: {
        call: (token) => checkpoint(one.sql, 'a', token, 1),
        sets: { checkpointed_at: 0, lease_expires_at: 300 },
      },
      persist_records: {
        call: (token) =>
          call(one.sql, 'persist_records', {
            ...held(token),
            target: 'target',
            records: [{ id: 1 }],
            cursor: 1,
            items_processed: 1,
          }),
        sets: { checkpointed_at: 0, lease_expires_at: 300 },
      },
      extend_claim: {
        call: (token) => call(one.sql, 'extend_claim', held(token)),
        sets: { lease_expires_at: 300 },
      },
      complete_file: { call: (token) => complete(one.sql, 'a', token), sets: { completed_at: 0 } },
      'complete_file of other content': {
        call: (token) => complete(one.sql, 'a', token, { etag: 'e2' }),
        sets: { available_at: 0 },
      },
      complete_and_claim_next: {
        call: (token) =>
          call(one.sql, 'complete_and_claim_next', {
            worker_id: 'w1',
            completions: [{ ...held(token), claim_token: Number(token) }],
          }),
        sets: { completed_at: 0 },
      },
      fail_file: {
        call: (token) => fail(one.sql, 'a', token, { retry_after_seconds: 60 }),
        sets: { available_at: 60 },
      },
      'release_file and claim_file': {
        call: async (token) => {
          await release(one.sql, 'a', token)
          await claim(one.sql, 'a')
        },
        sets: { started_at: 0, lease_expires_at: 300, lease_check_at: 300 },
      },
      'release_file and claim_next_files': {
        call: async (token) => {
          await release(one.sql, 'a', token)
          await claimNext(one.sql)
        },
        sets: { started_at: 0, lease_expires_at: 300, lease_check_at: 300 },
      },
      'requeue_file by force': {
        call: () => call(one.sql, 'requeue_file', { file_url: 'a', force: true }),
        sets: { available_at: 0 },
      },
      'register_files of other content': {
        call: async (token) => {
          await release(one.sql, 'a', token)
          await register(one.sql, { file_url: 'a', etag: 'e2' })
        },
        sets: { available_at: 0 },
      },
    }

  test.each(Object.entries(stamps))('the times that %s sets are those of the clock', async (_, entry) => {
    await one.sql`begin`
    const { claim_token } = await claim(one.sql, 'a', { etag: 'e1' })
    const clock = await until(async () => {
      const [read] = await one.sql<{ at: Date; late: boolean }[]>`
        select clock_timestamp() as at, clock_timestamp() > now() + interval '200 ms' as late`
      return read?.late ? read.at : undefined
    })
    await entry.call(claim_token)
    const row: Record<string, unknown> = { ...(await fileRow(one.sql, 'a')) }
    for (const [column, seconds] of Object.entries(entry.sets)) {
      const time = row[column]
      if (!(time instanceof Date)) throw new Error(`${column} is ${time}`)
      expect(time.getTime(), column).toBeGreaterThanOrEqual(clock.getTime() + seconds * 1000)
    }
  })

  test('how long a file took is measured by the clock', async () => {
    await one.sql`begin`
    const { claim_token } = await claim(one.sql, 'a')
    await until(async () => {
      const [read] = await one.sql`
        select clock_timestamp() > started_at + interval '200 ms' as late from filemark.file_checkpoints`
      return read?.late
    })
    await complete(one.sql, 'a', claim_token)
    expect(Number((await fileRow(one.sql, 'a')).processing_time_ms)).toBeGreaterThanOrEqual(200)
  })
})

describe('rule 6.7: one call reads the clock once:', () => {
  const many = ['a', 'b', 'c', 'd'].map((file_url) => ({ file_url }))

  test('all files that register_files makes known are known since the same moment', async () => {
    await register(db.sql, ...many)
    expect(
      await db.sql`select count(*)::int as files from filemark.file_checkpoints group by available_at, created_at`,
    ).toEqual([{ files: 4 }])
  })

  test('all files of claim_next_files are claimed at the same moment, lost ones too', async () => {
    await register(db.sql, ...many)
    await claim(db.sql, 'b')
    await expireLease(db.sql)
    expect(await claimNext(db.sql, 4, { worker_id: 'w2' })).toHaveLength(4)
    expect(
      await db.sql`
        select count(*)::int as files, lease_expires_at = started_at + interval '300 seconds' as lease,
               lease_check_at = lease_expires_at as timer
          from filemark.file_checkpoints group by started_at, lease_expires_at, lease_check_at`,
    ).toEqual([{ files: 4, lease: true, timer: true }])
  })

  test('a checkpoint, its entry in the history and the lease it renews are of the same moment', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 1)
    expect(
      await db.sql`
        select checkpointed_at = saved_at as history, lease_expires_at = saved_at + interval '300 seconds' as lease
          from filemark.file_checkpoints join filemark.checkpoint_history using (pipeline, file_url)`,
    ).toEqual([{ history: true, lease: true }])
  })

  test('all files of a batch of completions are completed at the same moment, and measured by it', async () => {
    await register(db.sql, ...many)
    const completions = (await claimNext(db.sql, 4)).map(({ file_url, claim_token }) => ({
      file_url,
      claim_token: Number(claim_token),
    }))
    await call(db.sql, 'complete_and_claim_next', { worker_id: 'w1', completions })
    expect(
      await db.sql`
        select count(*)::int as files,
               processing_time_ms = (extract(epoch from completed_at - started_at) * 1000)::bigint as measured
          from filemark.file_checkpoints group by completed_at, 2`,
    ).toEqual([{ files: 4, measured: true }])
  })
})
