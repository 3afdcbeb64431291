import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { call, checkpoint, claim, claimNext, configure, refusal, register, tryClaim } from './calls.ts'
import { contents, empty, eventNames, events, expireLease, fileRow, fireTimer } from './tables.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

function reclaim(args: Record<string, unknown> = {}): Promise<Record<string, unknown>[]> {
  return call(db.sql, 'filemark.reclaim_stale_claims', args)
}

/** File a is lost with budget left, b at its last attempt, c at its last attempt with newer content; d is held. */
async function loseFiles(): Promise<void> {
  await configure(db.sql, { max_attempts: 2 })
  for (const url of ['a', 'b', 'c', 'd']) {
    const { claim_token } = await claim(db.sql, url, { etag: '1' })
    await checkpoint(db.sql, url, claim_token, 10, { accumulated_results: { sum: 1 } })
  }
  await register(db.sql, { file_url: 'c', etag: '2' })
  await db.sql`update filemark.file_checkpoints set attempts = 2 where file_url in ('b', 'c')`
  for (const url of ['a', 'b', 'c']) await expireLease(db.sql, url)
  await fireTimer(db.sql, 'd')
}

describe('reclaim_stale_claims', () => {
  test('gives lost files back with their checkpoint, and buries those that have no attempt left', async () => {
    await loseFiles()
    const actions = await reclaim()
    expect(Object.fromEntries(actions.map((row) => [row.file_url, row.action]))).toEqual({
      a: 'reclaimed',
      b: 'dead_lettered',
      c: 'reclaimed',
    })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'pending',
      claim_ended: 'lost',
      attempts: 1,
      cursor: { next: 10 },
      items_processed: '10',
      accumulated_results: { sum: 1 },
      lease_expires_at: null,
      lease_check_at: null,
    })
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'dead_letter', items_processed: '10' })
    expect(await fileRow(db.sql, 'c')).toMatchObject({ status: 'pending', generation: '2', attempts: 0 })
    const held = await fileRow(db.sql, 'd')
    expect(held).toMatchObject({ status: 'processing', processed_by: 'w1' })
    expect(held.lease_check_at).toEqual(held.lease_expires_at)
    expect(await events(db.sql, 'a')).toMatchObject([
      { event: 'lease_expired', actor: 'reclaim_stale_claims', detail: { processed_by: 'w1', attempts: 1 } },
    ])
    expect(await eventNames(db.sql, 'd')).toEqual([])
  })

  test('says with p_dry_run what it would do, and changes nothing', async () => {
    await loseFiles()
    const before = await contents(db.sql)
    const foretold = await reclaim({ dry_run: true })
    expect(await contents(db.sql)).toEqual(before)
    const done = await reclaim()
    const names: Record<string, string> = {
      would_reclaim: 'reclaimed',
      would_dead_letter: 'dead_lettered',
    }
    expect(foretold.map((row) => ({ ...row, action: names[String(row.action)] }))).toEqual(done)
  })

  test('does p_limit at a time, those that were lost first, and the rest the next time', async () => {
    const urls = ['a', 'b', 'c', 'd', 'e']
    for (const url of urls) await claim(db.sql, url)
    for (const url of urls.toReversed()) await expireLease(db.sql, url)
    const inOrder = []
    for (const limit of [2, 2, 2, 2]) {
      const rows = await reclaim({ limit })
      inOrder.push(rows.map((row) => row.file_url))
    }
    expect(inOrder).toEqual([['e', 'd'], ['c', 'b'], ['a'], []])
  })

  test('goes on behind leases that were renewed, however many there are', async () => {
    for (const url of ['a', 'b', 'c', 'lost']) await claim(db.sql, url)
    for (const url of ['a', 'b', 'c']) await fireTimer(db.sql, url)
    await expireLease(db.sql, 'lost')
    await db.sql`
      update filemark.file_checkpoints set lease_check_at = lease_check_at - interval '1 hour'
       where file_url <> 'lost'`
    const found = []
    for (let round = 0; round < 4; round += 1) found.push(...(await reclaim({ limit: 1 })))
    expect(found).toEqual([{ pipeline: 'default', file_url: 'lost', action: 'reclaimed' }])
  })

  test('works on one pipeline when it is told which, and on all when it is not', async () => {
    for (const pipeline of ['b', 'a', 'c']) await tryClaim(db.sql, 'f', { pipeline })
    await expireLease(db.sql)
    expect(await reclaim({ pipeline: 'b' })).toEqual([{ pipeline: 'b', file_url: 'f', action: 'reclaimed' }])
    expect((await reclaim()).map((row) => row.pipeline)).toEqual(['a', 'c'])
    expect(await reclaim()).toEqual([])
  })

  test('refuses a pipeline that nobody knows', async () => {
    expect(await refusal(reclaim({ pipeline: 'never used' }))).toEqual({
      code: 'PT404',
      message: 'pipeline "never used" is unknown',
    })
  })

  test('finds nothing to do where nothing is lost', async () => {
    await claim(db.sql, 'held')
    await register(db.sql, { file_url: 'pending' })
    const before = await contents(db.sql)
    expect(await reclaim()).toEqual([])
    expect(await contents(db.sql)).toEqual(before)
    expect(await claimNext(db.sql)).toMatchObject([{ file_url: 'pending' }])
  })
})
