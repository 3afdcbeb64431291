import { randomUUID } from 'node:crypto'
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
  fail,
  refusal,
  register,
  release,
  started,
  tryClaim,
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow, historyOf } from './tables.ts'

// Calls that do not wait for each other's answers, as workers make them: through a pool of connections, or over HTTP.

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

const ten = Array.from({ length: 10 }, (_, index) => index)

function atOnce<T>(work: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(ten.map(work))
}

describe('ten calls at once', () => {
  beforeEach(() =>
    register(db.sql, ...Array.from({ length: 30 }, (_, index) => ({ file_url: `file ${index}` }))),
  )

  test('to claim_next_files get ten files', async () => {
    const claims = (await atOnce((index) => claimNext(db.sql, 2, { worker_id: `w${index}` }))).flat()
    expect(new Set(claims.map(({ file_url }) => file_url)).size).toBe(20)
  })

  test('to claim_file for one file give it to one', async () => {
    const rows = await atOnce((index) => tryClaim(db.sql, 'file 1', { worker_id: `w${index}` }))
    expect(rows.map(({ outcome }) => outcome).toSorted()).toEqual([
      'claimed',
      ...ten.slice(1).map(() => 'held'),
    ])
  })

  const twins: Record<string, (request_id: string) => Promise<ClaimRow[]>> = {
    claim_file: async (request_id) => [await tryClaim(db.sql, 'new', { request_id })],
    claim_next_files: (request_id) => claimNext(db.sql, 3, { request_id }),
    complete_and_claim_next: (request_id) =>
      call(db.sql, 'complete_and_claim_next', { worker_id: 'w1', completions: [], limit: 3, request_id }),
  }
  test.each(Object.entries(twins))(
    'rule 6.3: to %s with one request id get the same claims',
    async (_, request) => {
      const request_id = randomUUID()
      const [first, ...others] = await atOnce(() => request(request_id))
      expect(first?.[0]).toMatchObject({ outcome: 'claimed', claim_token: '1' })
      for (const other of others) expect(other).toEqual(first)
    },
  )

  test('rule 6.3: to checkpoint_file with one number save it once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const [first, ...others] = await atOnce(() =>
      checkpoint(db.sql, 'a', claim_token, 5, { checkpoint_seq: 1 }),
    )
    for (const other of others) expect(other).toEqual(first)
    expect(await historyOf(db.sql, 'a')).toEqual([1])
  })

  test('rule 6.3: to persist_records with one number insert the records once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const batch = { target: 'target', records: [{ id: 1 }, { id: 2 }], cursor: 2, items_processed: 2 }
    const answers = await atOnce(() =>
      call(db.sql, 'persist_records', { file_url: 'a', claim_token, checkpoint_seq: 1, ...batch }),
    )
    expect(new Set(answers.map(([row]) => row?.records_persisted))).toEqual(new Set(['2']))
    expect(await db.sql`select from target`).toHaveLength(2)
  })

  test('rule 6.3: to complete_file complete it once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const outcomes = await atOnce(() => complete(db.sql, 'a', claim_token))
    expect(outcomes.toSorted()).toEqual([...ten.slice(1).map(() => 'already_completed'), 'completed'])
  })

  test('rule 6.3: to fail_file fail it once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const [first, ...others] = await atOnce(() => fail(db.sql, 'a', claim_token))
    for (const other of others) expect(other).toEqual(first)
    expect(await eventNames(db.sql, 'a')).toEqual(['failed'])
  })
})

describe('a call meets a session that has the file locked:', { tags: 'sessions' }, () => {
  const writes: Record<string, (token: string) => Promise<unknown>> = {
    checkpoint_file: (token) => checkpoint(db.sql, 'a', token, 20),
    persist_records: (token) =>
      call(db.sql, 'persist_records', {
        file_url: 'a',
        claim_token: token,
        target: 'target',
        records: [{ id: 1 }],
        cursor: 20,
        items_processed: 20,
      }),
    extend_claim: (token) => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
    complete_file: (token) => complete(db.sql, 'a', token),
    fail_file: (token) => fail(db.sql, 'a', token),
    release_file: (token) => release(db.sql, 'a', token),
  }

  /** Waits until a call waits for the lock that `one` holds. */
  async function untilCallWaits(): Promise<void> {
    await until(
      async () =>
        (
          await db.sql`
            select from pg_stat_activity where ${one.pid} = any (pg_blocking_pids(pid)) and wait_event_type = 'Lock'`
        )[0],
      { what: 'a call to wait for the lock' },
    )
  }

  test.each(Object.entries(writes))('%s waits, and gets on when the session commits', async (_, write) => {
    const { claim_token } = await claim(db.sql, 'a')
    await one.sql`begin`
    await call(one.sql, 'filemark.assert_claim', { file_url: 'a', claim_token })
    const answer = refusal(write(claim_token))
    await untilCallWaits()
    await one.sql`commit`
    expect(await answer).toBeUndefined()
  })

  test.each(Object.entries(writes))(
    'rule 6.1: %s waits, and finds its claim lost when the session took the file',
    async (_, write) => {
      const { claim_token } = await claim(db.sql, 'a')
      await one.sql`begin`
      await call(one.sql, 'requeue_file', { file_url: 'a', force: true })
      await claim(one.sql, 'a', { worker_id: 'w2' })
      const answer = refusal(write(claim_token))
      await untilCallWaits()
      const before = await contents(one.sql)
      await one.sql`commit`
      expect(await answer).toEqual({ code: 'PT409', message: 'claim 1 on file "a" is lost' })
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test('rule 6.2: claim_file waits for a takeover, and is refused when that commits', async () => {
    await claim(db.sql, 'a', { worker_id: 'dead' })
    await expireLease(db.sql)
    await one.sql`begin`
    await claim(one.sql, 'a', { worker_id: 'w1' })
    const answer = started(tryClaim(db.sql, 'a', { worker_id: 'w2' }))
    await untilCallWaits()
    await one.sql`commit`
    expect(await answer).toMatchObject({ outcome: 'held' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'w1', claim_token: '2' })
  })

  test('claim_next_files does not wait', async () => {
    await register(db.sql, { file_url: 'a', priority: 1 }, { file_url: 'b' })
    await one.sql`begin`
    await claim(one.sql, 'a', { worker_id: 'w1' })
    expect(await claimNext(db.sql, 10, { worker_id: 'w2' })).toMatchObject([{ file_url: 'b' }])
  })
})
