import type { Sql } from 'postgres'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type Random, seededRandom, shuffled, wholeNumber } from '../crash/random.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'
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
  refusal,
  register,
  release,
  started,
  tryClaim,
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow } from './tables.ts'

// Two sessions are made to meet on one file. The first has called and holds the row in its open transaction; the second is
// seen to wait for the lock, or to pass over the row; then the first commits or rolls back. Every pair of calls that may
// meet is in a table here, in both orders, with both ends.

let db: TestDatabase
let one: TestConnection
let two: TestConnection
let three: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
  three = await db.connect()
  await db.sql.unsafe(`
    create table target (id int primary key);

    -- A caller's own transaction: it makes sure of its claim, has its effects, saves its checkpoint.
    create function own_load(p_file_url text, p_claim_token bigint) returns void language plpgsql as $$
    begin
      perform filemark.assert_claim(p_file_url, p_claim_token);
      insert into target values (1), (2);
      perform checkpoint_file(p_file_url, p_claim_token, '{"next": 50}', 50);
    end $$;`)
})
beforeEach(() => empty(db.sql))
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
  await three.sql.unsafe('rollback')
})
afterAll(() => db.drop())

type End = 'commit' | 'rollback'
const ends: End[] = ['commit', 'rollback']

/** What a call on file a came to: an outcome or a status, or the code it was refused with. */
type Result = string

interface Party {
  /** Calls as this party does. */
  run: (sql: Sql) => Promise<Result>
  /** Passes over a row that another has locked, and never waits for it. */
  passes?: true
}

/** The outcome of the row for file a, or `nothing`. */
function outcomeOf(rows: readonly ClaimRow[]): Result {
  return rows.find((row) => row.file_url === 'a')?.outcome ?? 'nothing'
}

async function resultOf(answer: Promise<unknown>): Promise<Result> {
  const rows = await answer
  if (typeof rows === 'string') return rows
  const [row] = Array.isArray(rows) ? (rows as Record<string, unknown>[]) : [rows as Record<string, unknown>]
  return String(row?.outcome ?? row?.status ?? row?.action ?? 'done')
}

/** Has `result`, or the code it was refused with. */
async function settled(result: Promise<Result>): Promise<Result> {
  const refused = await refusal(result)
  return refused ? refused.code : await result
}

const w2 = { worker_id: 'w2' }

/** Those who claim, when file a is free or its lease is over. */
const claimers: Record<string, Party> = {
  claim_file: { run: async (sql) => (await tryClaim(sql, 'a', w2)).outcome },
  claim_next_files: { run: async (sql) => outcomeOf(await claimNext(sql, 5, w2)), passes: true },
  complete_and_claim_next: {
    run: async (sql) =>
      outcomeOf(await call<ClaimRow>(sql, 'complete_and_claim_next', { ...w2, completions: [], limit: 5 })),
    passes: true,
  },
}

/** Those who take a file from a holder whose lease is over. */
const takers: Record<string, Party> = {
  ...claimers,
  reclaim_stale_claims: {
    run: async (sql) => {
      const rows = await call(sql, 'filemark.reclaim_stale_claims')
      return rows.length > 0 ? resultOf(Promise.resolve(rows)) : 'nothing'
    },
    passes: true,
  },
  'requeue_file by force': {
    run: (sql) => resultOf(call(sql, 'requeue_file', { file_url: 'a', force: true })),
  },
}

interface Holder extends Party {
  /** Under the first claim of file a. */
  run: (sql: Sql) => Promise<Result>
  /** What it answers when its claim stands. */
  gets: Result
  /** What it answers when its claim is lost. */
  loses: Result
  /** In which state the file is then, and at which position. */
  leaves: { status: string; items_processed: string }
  /** How many rows it puts into the target. */
  rows?: number
}

const named = { file_url: 'a', claim_token: 1 }
const batch = { target: 'target', records: [{ id: 1 }, { id: 2 }], cursor: { next: 50 }, items_processed: 50 }

/** What the holder of the first claim of file a may be doing. It has 10 items saved; its checkpoints make it 50. */
const holders: Record<string, Holder> = {
  complete_file: {
    run: (sql) => complete(sql, 'a', '1'),
    gets: 'completed',
    loses: 'PT409',
    leaves: { status: 'completed', items_processed: '10' },
  },
  'complete_and_claim_next of it': {
    run: async (sql) => {
      const completions = [named].map(({ file_url, claim_token }) => ({ file_url, claim_token }))
      const args = { worker_id: 'w1', completions, file_type: 'none' }
      return outcomeOf(await call<ClaimRow>(sql, 'complete_and_claim_next', args))
    },
    gets: 'nothing',
    loses: 'claim_lost',
    leaves: { status: 'completed', items_processed: '10' },
  },
  checkpoint_file: {
    run: (sql) => resultOf(checkpoint(sql, 'a', '1', 50)),
    gets: 'done',
    loses: 'PT409',
    leaves: { status: 'processing', items_processed: '50' },
  },
  extend_claim: {
    run: (sql) => resultOf(call(sql, 'extend_claim', named)),
    gets: 'done',
    loses: 'PT409',
    leaves: { status: 'processing', items_processed: '10' },
  },
  release_file: {
    run: (sql) => release(sql, 'a', '1').then(() => 'done'),
    gets: 'done',
    loses: 'PT409',
    leaves: { status: 'pending', items_processed: '10' },
  },
  fail_file: {
    run: (sql) => resultOf(fail(sql, 'a', '1')),
    gets: 'failed',
    loses: 'PT409',
    leaves: { status: 'failed', items_processed: '10' },
  },
  persist_records: {
    run: (sql) => resultOf(call(sql, 'persist_records', { ...named, ...batch })),
    gets: 'done',
    loses: 'PT409',
    leaves: { status: 'processing', items_processed: '50' },
    rows: 2,
  },
  'assert_claim in its own transaction': {
    run: (sql) => resultOf(call(sql, 'public.own_load', named)),
    gets: 'done',
    loses: 'PT409',
    leaves: { status: 'processing', items_processed: '50' },
    rows: 2,
  },
}

/** w1 holds file a, has 10 items saved and a lease that is over. */
async function holdA(): Promise<void> {
  await claim(db.sql, 'a', { etag: 'e1' })
  await checkpoint(db.sql, 'a', '1', 10)
  await expireLease(db.sql)
}

/** `first` calls and keeps its transaction open, `second` calls and waits or passes over; then the first ends. */
async function meet(
  first: Party,
  second: Party,
  end: End,
): Promise<{ first: Result; second: Result; between: string[] }> {
  await one.sql`begin`
  const firstResult = await first.run(one.sql)
  let secondResult: Result | undefined
  let waiting: Promise<Result> | undefined
  if (second.passes) {
    secondResult = await second.run(two.sql)
  } else {
    waiting = settled(second.run(two.sql))
    await untilLocked(db.sql, two.pid)
  }
  const between = await contents(end === 'commit' ? one.sql : db.sql)
  await one.sql.unsafe(end)
  return { first: firstResult, second: secondResult ?? (await started(waiting ?? Promise.reject())), between }
}

async function targetRows(): Promise<number> {
  return (await db.sql`select from target`).length
}

const takeovers = Object.keys(takers).flatMap((taker) =>
  Object.keys(holders).flatMap((holder) => ends.map((end) => ({ taker, holder, end }))),
)

describe('rule 6.2: the holder comes first,', { tags: 'sessions' }, () => {
  /** What a claim finds when the holder's call has been made. */
  const found: Record<string, Result> = {
    complete_file: 'completed',
    'complete_and_claim_next of it': 'completed',
    checkpoint_file: 'held',
    extend_claim: 'held',
    release_file: 'claimed',
    fail_file: 'waiting',
    persist_records: 'held',
    'assert_claim in its own transaction': 'held',
  }

  test.each(takeovers)('$holder, then $taker; the holder: $end', async ({ taker, holder, end }) => {
    await holdA()
    const { gets, leaves, rows = 0 } = pick(holders, holder)
    const took = pick(takers, taker)
    const { first, second } = await meet(pick(holders, holder), took, end)
    expect(first).toBe(gets)
    expect(await targetRows()).toBe(end === 'commit' ? rows : 0)
    if (took.passes) {
      expect(second).toBe('nothing')
      expect(await fileRow(db.sql, 'a')).toMatchObject(
        end === 'commit' ? leaves : { status: 'processing', items_processed: '10' },
      )
    }

    const last = took.passes ? await took.run(db.sql) : second
    const row = await fileRow(db.sql, 'a')
    if (end === 'rollback') {
      // As if the holder had never called: it is taken over, and its token is dead.
      expect(last).toBe(pick(taken, taker).result)
      expect(row).toMatchObject({ ...pick(taken, taker).leaves, items_processed: '10' })
      expect(await settled(pick(holders, holder).run(db.sql))).toBe(pick(holders, holder).loses)
    } else if (taker === 'requeue_file by force') {
      expect(last).toBe('pending')
      expect(row).toMatchObject({
        status: 'pending',
        claim_token: '1',
        items_processed: leaves.items_processed,
      })
    } else {
      const now = pick(found, holder)
      const answer = taker === 'claim_file' || now === 'claimed' ? now : 'nothing'
      expect(last).toBe(taker === 'reclaim_stale_claims' ? 'nothing' : answer)
      if (now === 'claimed' && taker !== 'reclaim_stale_claims') {
        // It was given back: the next claim is no takeover, and has the attempt that was refunded.
        expect(row).toMatchObject({ status: 'processing', claim_token: '2', attempts: 1 })
      } else {
        expect(row).toMatchObject({ ...leaves, claim_token: '1' })
      }
      expect(await eventNames(db.sql, 'a')).not.toContain('lease_expired')
    }
  })
})

/** What each taker answers, and how it leaves the file. */
const taken: Record<string, { result: Result; leaves: Record<string, unknown> }> = {
  claim_file: { result: 'claimed', leaves: { status: 'processing', claim_token: '2', attempts: 2 } },
  claim_next_files: { result: 'claimed', leaves: { status: 'processing', claim_token: '2', attempts: 2 } },
  complete_and_claim_next: {
    result: 'claimed',
    leaves: { status: 'processing', claim_token: '2', attempts: 2 },
  },
  reclaim_stale_claims: {
    result: 'reclaimed',
    leaves: { status: 'pending', claim_token: '1', attempts: 1, claim_ended: 'lost' },
  },
  'requeue_file by force': {
    result: 'pending',
    leaves: { status: 'pending', claim_token: '1', attempts: 0, claim_ended: 'lost' },
  },
}

describe('rule 6.1: the takeover comes first,', { tags: 'sessions' }, () => {
  test.each(takeovers)('$taker, then $holder; the takeover: $end', async ({ taker, holder, end }) => {
    await holdA()
    const { gets, loses, leaves, rows = 0 } = pick(holders, holder)
    const { first, second, between } = await meet(pick(takers, taker), pick(holders, holder), end)
    expect(first).toBe(pick(taken, taker).result)
    if (end === 'commit') {
      expect(second).toBe(loses)
      expect(await contents(db.sql)).toEqual(between)
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        ...pick(taken, taker).leaves,
        items_processed: '10',
      })
    } else {
      expect(second).toBe(gets)
      expect(await fileRow(db.sql, 'a')).toMatchObject({ ...leaves, claim_token: '1' })
      expect(await targetRows()).toBe(rows)
      expect(await eventNames(db.sql, 'a')).not.toContain('lease_expired')
    }
  })
})

/** File a has been given back by reclaim_stale_claims: pending, one attempt spent, 10 items saved. */
async function giveBackA(): Promise<void> {
  await holdA()
  await call(db.sql, 'filemark.reclaim_stale_claims')
}

describe('two claims meet:', { tags: 'sessions' }, () => {
  const starts: Record<string, { arrange: () => Promise<void>; attempts: number }> = {
    pending: { arrange: giveBackA, attempts: 2 },
    lost: { arrange: holdA, attempts: 2 },
  }
  const meetings = Object.keys(starts).flatMap((start) =>
    Object.keys(claimers).flatMap((first) =>
      Object.keys(claimers).flatMap((second) => ends.map((end) => ({ start, first, second, end }))),
    ),
  )

  test.each(meetings)('$first, then $second, of a $start file; the first: $end', async (meeting) => {
    const { arrange, attempts } = pick(starts, meeting.start)
    await arrange()
    const later = pick(claimers, meeting.second)
    const { first, second } = await meet(pick(claimers, meeting.first), later, meeting.end)
    expect(first).toBe('claimed')
    if (later.passes) expect(second).toBe('nothing')
    const last = later.passes ? await later.run(db.sql) : second
    const refused = later.passes ? 'nothing' : 'held'
    expect(last).toBe(meeting.end === 'commit' ? refused : 'claimed')
    // One of them has it, and the attempt was counted once.
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'processing', claim_token: '2', attempts })
  })
})

/** What operators and discovery may do to a file that nobody is processing. */
const operators: Record<
  string,
  Party & {
    gets: Result
    leaves: Record<string, unknown>
    /** What a claim gets after it, and the file that a claim finds. */
    claims: Result
    /** What it answers behind a claim, and how the file is then. */
    behind: { result: Result; leaves: Record<string, unknown> }
  }
> = {
  'register_files with a new etag': {
    run: async (sql) => {
      const { new_generations } = await register(sql, { file_url: 'a', etag: 'e2' })
      return `${new_generations} new`
    },
    gets: '1 new',
    leaves: { status: 'pending', generation: '2', attempts: 0, items_processed: '0', etag: 'e2' },
    claims: 'claimed',
    behind: {
      result: '1 new',
      leaves: { status: 'processing', generation: '1', claim_token: '2', superseded_by: expect.anything() },
    },
  },
  requeue_file: {
    run: (sql) => resultOf(call(sql, 'requeue_file', { file_url: 'a' })),
    gets: 'pending',
    leaves: { status: 'pending', attempts: 0, items_processed: '10' },
    claims: 'claimed',
    behind: { result: 'PT422', leaves: { status: 'processing', claim_token: '2', attempts: 2 } },
  },
  'requeue_file from the start': {
    run: (sql) => resultOf(call(sql, 'requeue_file', { file_url: 'a', from: 'start' })),
    gets: 'pending',
    leaves: { status: 'pending', attempts: 0, items_processed: '0', checkpoint_seq: '0' },
    claims: 'claimed',
    behind: { result: 'PT422', leaves: { status: 'processing', claim_token: '2', items_processed: '10' } },
  },
  'requeue_file by force': {
    run: (sql) => resultOf(call(sql, 'requeue_file', { file_url: 'a', force: true })),
    gets: 'pending',
    leaves: { status: 'pending', attempts: 0, items_processed: '10' },
    claims: 'claimed',
    behind: {
      result: 'pending',
      leaves: { status: 'pending', claim_token: '2', attempts: 0, claim_ended: 'lost' },
    },
  },
  skip_file: {
    run: (sql) => resultOf(call(sql, 'skip_file', { file_url: 'a' })),
    gets: 'done',
    leaves: { status: 'skipped', items_processed: '10' },
    claims: 'skipped',
    behind: { result: 'PT422', leaves: { status: 'processing', claim_token: '2', attempts: 2 } },
  },
}

describe('a claim meets an operator:', { tags: 'sessions' }, () => {
  const meetings = Object.keys(operators).flatMap((operator) =>
    Object.keys(claimers).flatMap((claimer) => ends.map((end) => ({ operator, claimer, end }))),
  )

  test.each(meetings)('$operator, then $claimer; the operator: $end', async ({ operator, claimer, end }) => {
    await giveBackA()
    const { gets, leaves, claims } = pick(operators, operator)
    const later = pick(claimers, claimer)
    const { first, second } = await meet(pick(operators, operator), later, end)
    expect(first).toBe(gets)
    if (later.passes) {
      expect(second).toBe('nothing')
      if (end === 'commit') expect(await fileRow(db.sql, 'a')).toMatchObject(leaves)
    }
    const last = later.passes ? await later.run(db.sql) : second
    const expected = end === 'rollback' ? 'claimed' : claims
    expect(last).toBe(later.passes && expected !== 'claimed' ? 'nothing' : expected)
    const claimed = { status: 'processing', claim_token: '2' }
    expect(await fileRow(db.sql, 'a')).toMatchObject(
      end === 'rollback'
        ? { ...claimed, generation: '1', attempts: 2, items_processed: '10' }
        : { ...leaves, ...(claims === 'claimed' ? { ...claimed, attempts: 1 } : {}) },
    )
  })

  test.each(meetings)('$claimer, then $operator; the claim: $end', async ({ operator, claimer, end }) => {
    await giveBackA()
    const { gets, leaves, behind } = pick(operators, operator)
    const { first, second } = await meet(pick(claimers, claimer), pick(operators, operator), end)
    expect(first).toBe('claimed')
    expect(second).toBe(end === 'commit' ? behind.result : gets)
    expect(await fileRow(db.sql, 'a')).toMatchObject(end === 'commit' ? behind.leaves : leaves)
  })
})

describe('a holder meets an operator without force:', { tags: 'sessions' }, () => {
  /** What the operator comes to when the holder's call has been made. */
  const quiet = ['complete_file', 'complete_and_claim_next of it', 'release_file', 'fail_file']
  const meetings = ['requeue_file', 'skip_file'].flatMap((operator) =>
    Object.keys(holders).flatMap((holder) => ends.map((end) => ({ operator, holder, end }))),
  )

  test.each(meetings)('$holder, then $operator; the holder: $end', async ({ operator, holder, end }) => {
    await holdA()
    const { gets, leaves } = pick(holders, holder)
    const { first, second } = await meet(pick(holders, holder), pick(operators, operator), end)
    expect(first).toBe(gets)
    const free = end === 'commit' && quiet.includes(holder)
    expect(second).toBe(free ? pick(operators, operator).gets : 'PT422')
    expect(await fileRow(db.sql, 'a')).toMatchObject(
      free
        ? {
            status: operator === 'skip_file' ? 'skipped' : 'pending',
            items_processed: '10',
            completed_at: null,
          }
        : end === 'commit'
          ? leaves
          : { status: 'processing', items_processed: '10' },
    )
  })
})

describe('two who clean up or operate meet:', { tags: 'sessions' }, () => {
  const operator = (name: string): Party => pick({ ...operators, ...takers }, name)
  interface Pair {
    arrange: () => Promise<void>
    first: string
    /** What each answers, when the first commits, and when it rolls back. */
    gets: Result
    second: string
    committed: Result
    rolledBack: Result
    /** How the file is in the end, after the one and after the other. */
    leaves: [committed: Record<string, unknown>, rolledBack: Record<string, unknown>]
    /** The audit of file a, after the one and after the other. */
    events: [committed: string[], rolledBack: string[]]
  }
  const reclaimed = { status: 'pending', attempts: 1, claim_ended: 'lost', items_processed: '10' }
  const requeued = { status: 'pending', attempts: 0, claim_ended: 'lost', items_processed: '10' }
  const restarted = { status: 'pending', attempts: 0, items_processed: '0' }
  const held = { status: 'processing', claim_token: '1', attempts: 1, items_processed: '10' }
  const skipped = { status: 'skipped', items_processed: '10' }
  const overwritten = { status: 'pending', generation: '2', items_processed: '0', attempts: 0 }
  const pairs: Pair[] = [
    {
      arrange: holdA,
      first: 'reclaim_stale_claims',
      gets: 'reclaimed',
      second: 'reclaim_stale_claims',
      committed: 'nothing',
      rolledBack: 'reclaimed',
      leaves: [reclaimed, reclaimed],
      events: [['lease_expired'], ['lease_expired']],
    },
    {
      arrange: holdA,
      first: 'reclaim_stale_claims',
      gets: 'reclaimed',
      second: 'requeue_file',
      committed: 'pending',
      rolledBack: 'PT422',
      leaves: [requeued, held],
      events: [['lease_expired', 'requeued'], []],
    },
    {
      arrange: holdA,
      first: 'reclaim_stale_claims',
      gets: 'reclaimed',
      second: 'requeue_file by force',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [requeued, requeued],
      events: [['lease_expired', 'requeued'], ['requeued']],
    },
    {
      arrange: holdA,
      first: 'requeue_file by force',
      gets: 'pending',
      second: 'reclaim_stale_claims',
      committed: 'nothing',
      rolledBack: 'reclaimed',
      leaves: [requeued, reclaimed],
      events: [['requeued'], ['lease_expired']],
    },
    {
      arrange: holdA,
      first: 'reclaim_stale_claims',
      gets: 'reclaimed',
      second: 'skip_file',
      committed: 'done',
      rolledBack: 'PT422',
      leaves: [skipped, held],
      events: [['lease_expired', 'skipped'], []],
    },
    {
      arrange: holdA,
      first: 'reclaim_stale_claims',
      gets: 'reclaimed',
      second: 'register_files with a new etag',
      committed: '1 new',
      rolledBack: '1 new',
      leaves: [overwritten, { ...held, superseded_by: expect.anything() }],
      events: [['lease_expired', 'overwritten'], []],
    },
    {
      arrange: holdA,
      first: 'register_files with a new etag',
      gets: '1 new',
      second: 'reclaim_stale_claims',
      committed: 'reclaimed',
      rolledBack: 'reclaimed',
      leaves: [overwritten, reclaimed],
      events: [['lease_expired', 'overwritten'], ['lease_expired']],
    },
    {
      arrange: holdA,
      first: 'requeue_file by force',
      gets: 'pending',
      second: 'requeue_file by force',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [requeued, requeued],
      events: [['requeued'], ['requeued']],
    },
    {
      arrange: giveBackA,
      first: 'requeue_file',
      gets: 'pending',
      second: 'requeue_file from the start',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [restarted, restarted],
      events: [
        ['lease_expired', 'requeued', 'requeued'],
        ['lease_expired', 'requeued'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'requeue_file from the start',
      gets: 'pending',
      second: 'requeue_file',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [restarted, requeued],
      events: [
        ['lease_expired', 'requeued'],
        ['lease_expired', 'requeued'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'skip_file',
      gets: 'done',
      second: 'skip_file',
      committed: 'done',
      rolledBack: 'done',
      leaves: [skipped, skipped],
      events: [
        ['lease_expired', 'skipped'],
        ['lease_expired', 'skipped'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'skip_file',
      gets: 'done',
      second: 'requeue_file',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [requeued, requeued],
      events: [
        ['lease_expired', 'skipped', 'requeued'],
        ['lease_expired', 'requeued'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'requeue_file',
      gets: 'pending',
      second: 'skip_file',
      committed: 'done',
      rolledBack: 'done',
      leaves: [skipped, skipped],
      events: [
        ['lease_expired', 'requeued', 'skipped'],
        ['lease_expired', 'skipped'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'skip_file',
      gets: 'done',
      second: 'register_files with a new etag',
      committed: '1 new',
      rolledBack: '1 new',
      leaves: [overwritten, overwritten],
      events: [
        ['lease_expired', 'skipped', 'overwritten'],
        ['lease_expired', 'overwritten'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'register_files with a new etag',
      gets: '1 new',
      second: 'skip_file',
      committed: 'done',
      rolledBack: 'done',
      leaves: [{ status: 'skipped', generation: '2', items_processed: '0' }, skipped],
      events: [
        ['lease_expired', 'overwritten', 'skipped'],
        ['lease_expired', 'skipped'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'register_files with a new etag',
      gets: '1 new',
      second: 'requeue_file',
      committed: 'pending',
      rolledBack: 'pending',
      leaves: [overwritten, requeued],
      events: [
        ['lease_expired', 'overwritten'],
        ['lease_expired', 'requeued'],
      ],
    },
    {
      arrange: giveBackA,
      first: 'requeue_file',
      gets: 'pending',
      second: 'register_files with a new etag',
      committed: '1 new',
      rolledBack: '1 new',
      leaves: [overwritten, overwritten],
      events: [
        ['lease_expired', 'requeued', 'overwritten'],
        ['lease_expired', 'overwritten'],
      ],
    },
  ]

  test.each(pairs.flatMap((pair) => ends.map((end) => ({ ...pair, end }))))(
    '$first, then $second; the first: $end',
    async ({ arrange, first, gets, second, committed, rolledBack, leaves, events, end }) => {
      await arrange()
      const later = operator(second)
      const results = await meet(operator(first), later, end)
      expect(results.first).toBe(gets)
      if (later.passes) expect(results.second).toBe('nothing')
      const last = later.passes ? await later.run(db.sql) : results.second
      expect(last).toBe(end === 'commit' ? committed : rolledBack)
      const which = end === 'commit' ? 0 : 1
      expect(await fileRow(db.sql, 'a')).toMatchObject(leaves[which])
      expect(await eventNames(db.sql, 'a')).toEqual(events[which])
    },
  )
})

describe('a claim meets configure_pipeline:', { tags: 'sessions' }, () => {
  const claimB: Record<string, (sql: Sql) => Promise<Result>> = {
    claim_file: async (sql) => (await tryClaim(sql, 'b', w2)).outcome,
    claim_next_files: async (sql) => (await claimNext(sql, 1, w2))[0]?.outcome ?? 'nothing',
    complete_and_claim_next: async (sql) =>
      (await call<ClaimRow>(sql, 'complete_and_claim_next', { ...w2, completions: [] }))[0]?.outcome ??
      'nothing',
  }
  const claimCalls = Object.keys(claimB)

  /** One of two files is claimed. */
  async function claimOneOfTwo(): Promise<void> {
    await claim(db.sql, 'a')
    await register(db.sql, { file_url: 'b' })
  }

  const changes: { before: object; change: object; committed: Result; rolledBack: Result }[] = [
    {
      before: { max_concurrency: 1 },
      change: { max_concurrency: 2 },
      committed: 'claimed',
      rolledBack: 'busy',
    },
    {
      before: { max_concurrency: 2 },
      change: { max_concurrency: 1 },
      committed: 'busy',
      rolledBack: 'claimed',
    },
    {
      before: { max_concurrency: 1 },
      change: { max_concurrency: null },
      committed: 'claimed',
      rolledBack: 'busy',
    },
    { before: { max_concurrency: 2 }, change: { paused: true }, committed: 'paused', rolledBack: 'claimed' },
  ]
  const meetings = changes.flatMap((entry) =>
    claimCalls.flatMap((by) =>
      ends.map((end) => ({
        ...entry,
        before: JSON.stringify(entry.before),
        change: JSON.stringify(entry.change),
        by,
        end,
      })),
    ),
  )

  test.each(meetings)(
    '$change of $before, then $by, which goes by what is decided: $end',
    async ({ before, change, by, end, committed, rolledBack }) => {
      await claimOneOfTwo()
      await configure(db.sql, JSON.parse(before) as Record<string, unknown>)
      await one.sql`begin`
      await configure(one.sql, JSON.parse(change) as Record<string, unknown>)
      const expected = end === 'commit' ? committed : rolledBack
      let claimed: Result | Promise<Result> = settled(pick(claimB, by)(two.sql))
      if (by === 'claim_file' && rolledBack === 'busy') {
        // Refused without a lock, by what is decided now.
        expect(await claimed).toBe('busy')
        await one.sql.unsafe(end)
        claimed = (await tryClaim(db.sql, 'b', w2)).outcome
      } else {
        await untilLocked(db.sql, two.pid)
        await one.sql.unsafe(end)
      }
      expect(await claimed).toBe(by === 'claim_file' || expected === 'claimed' ? expected : 'nothing')
      expect(await fileRow(db.sql, 'b')).toMatchObject({
        status: expected === 'claimed' ? 'processing' : 'pending',
      })
    },
  )

  test.each(claimCalls.flatMap((by) => ends.map((end) => ({ by, end }))))(
    '$by under a limit, then a change, which waits until the claim is decided: $end',
    async ({ by, end }) => {
      await claimOneOfTwo()
      await configure(db.sql, { max_concurrency: 2 })
      await one.sql`begin`
      expect(await pick(claimB, by)(one.sql)).toBe('claimed')
      const changed = started(configure(two.sql, { max_concurrency: 1, paused: true }))
      await untilLocked(db.sql, two.pid)
      await one.sql.unsafe(end)
      await changed
      expect(await fileRow(db.sql, 'b')).toMatchObject({
        status: end === 'commit' ? 'processing' : 'pending',
      })
      expect(await tryClaim(db.sql, 'c')).toMatchObject({ outcome: 'paused' })
    },
  )

  test.each(claimCalls)('%s in an unlimited pipeline keeps nobody from changing it', async (by) => {
    await claimOneOfTwo()
    await one.sql`begin`
    expect(await pick(claimB, by)(one.sql)).toBe('claimed')
    await configure(two.sql, { max_concurrency: 1 })
    await one.sql`commit`
    // What was given stands; there is nothing more until the pipeline is below its limit.
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'processing' })
    expect(await tryClaim(db.sql, 'c')).toMatchObject({ outcome: 'busy' })
    await complete(db.sql, 'a', '1')
    expect(await tryClaim(db.sql, 'c')).toMatchObject({ outcome: 'busy' })
    await complete(db.sql, 'b', '1')
    expect(await tryClaim(db.sql, 'c')).toMatchObject({ outcome: 'claimed' })
  })

  test('rule 6.10: a limit that is set while a completion is under way makes no deadlock', async () => {
    await register(db.sql, { file_url: 'a', etag: 'e1' }, { file_url: 'b', etag: 'e1' })
    await claimNext(db.sql, 2)
    // The completion has a, and waits for b; it began without a limit.
    await one.sql`begin`
    await call(one.sql, 'filemark.assert_claim', { file_url: 'b', claim_token: 1 })
    const completions = ['a', 'b'].map((file_url) => ({ file_url, claim_token: 1 }))
    const completed = refusal(call(two.sql, 'complete_and_claim_next', { worker_id: 'w1', completions }))
    await untilLocked(db.sql, two.pid)
    // Now there is one: this claim has the pipeline, and waits for a.
    await configure(db.sql, { max_concurrency: 5 })
    const claimed = refusal(tryClaim(three.sql, 'a', { ...w2, etag: 'e2' }))
    await untilLocked(db.sql, three.pid)
    await one.sql`commit`
    expect({ completed: await completed, claimed: await claimed }).toEqual({})
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'completed' })
  })
})

describe('rule 6.7: a lease begins when the claim is made, not when it was asked for:', {
  tags: 'sessions',
}, () => {
  const waits: Record<string, { lock: string; run: (sql: Sql) => Promise<unknown> }> = {
    'claim_file behind the pipeline': {
      lock: 'filemark.pipelines',
      run: (sql) => tryClaim(sql, 'a'),
    },
    'claim_file behind the file': {
      lock: 'filemark.file_checkpoints',
      run: (sql) => tryClaim(sql, 'a'),
    },
    'claim_next_files behind the pipeline': {
      lock: 'filemark.pipelines',
      run: (sql) => claimNext(sql),
    },
    'complete_and_claim_next behind the pipeline': {
      lock: 'filemark.pipelines',
      run: (sql) => call(sql, 'complete_and_claim_next', { worker_id: 'w1', completions: [] }),
    },
  }

  test.each(Object.entries(waits))('%s', async (_, { lock, run }) => {
    await configure(db.sql, { max_concurrency: 1 })
    await register(db.sql, { file_url: 'a' })
    await one.sql`begin`
    await one.sql.unsafe(`select from ${lock} for no key update`)
    const claimed = started(run(two.sql))
    await untilLocked(db.sql, two.pid)
    const [letGo] = await one.sql<{ at: string }[]>`select clock_timestamp()::text as at`
    await one.sql`commit`
    await claimed
    const at = letGo?.at ?? ''
    expect(
      await db.sql`
        select started_at >= ${at}::timestamptz as "startsThen",
               lease_expires_at >= ${at}::timestamptz + interval '300 seconds' as "lasts"
          from filemark.file_checkpoints`,
    ).toEqual([{ startsThen: true, lasts: true }])
  })
})

describe('rule 6.10: no deadlock, ever:', { tags: 'sessions' }, () => {
  const files = Array.from({ length: 12 }, (_, index) => `file ${index}`)
  const seed = Number(process.env.FILEMARK_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31))

  /** One session of a hunt: what it holds, and its own dice. */
  interface Hunter {
    sql: Sql
    id: string
    random: Random
    held: Map<string, string>
  }

  const some = ({ random }: Hunter, most: number): string[] =>
    shuffled(random, files).slice(0, wholeNumber(random, 1, most))

  function take({ held }: Hunter, rows: readonly ClaimRow[]): void {
    for (const row of rows) if (row.claim_token !== null) held.set(row.file_url, row.claim_token)
  }

  /** Calls that take several rows, or a pipeline's row and a file's. */
  const batches: Record<string, (hunter: Hunter) => Promise<void>> = {
    async complete_and_claim_next(hunter) {
      const { sql, id: worker_id, random, held } = hunter
      const mine = shuffled(random, [...held]).slice(0, 6)
      // Some of others too: their tokens are small numbers.
      const guesses = some(hunter, 4).filter((url) => !held.has(url))
      const completions = shuffled(random, [
        ...mine.map(([file_url, token]) => ({ file_url, claim_token: Number(token) })),
        ...guesses.map((file_url) => ({ file_url, claim_token: wholeNumber(random, 1, 5) })),
      ])
      for (const [url] of mine) held.delete(url)
      const rows = await call<ClaimRow>(sql, 'complete_and_claim_next', { worker_id, completions, limit: 4 })
      take(hunter, rows)
    },
    async register_files({ sql, random }) {
      const etag = `e${wholeNumber(random, 1, 3)}`
      await register(sql, ...shuffled(random, files).map((file_url) => ({ file_url, etag })))
    },
    async 'register_files, backwards'({ sql, random }) {
      const etag = `e${wholeNumber(random, 1, 3)}`
      await register(sql, ...files.toReversed().map((file_url) => ({ file_url, etag })))
    },
    async claim_next_files(hunter) {
      take(hunter, await claimNext(hunter.sql, 4, { worker_id: hunter.id }))
    },
    async reclaim_stale_claims({ sql, random }) {
      await call(sql, 'filemark.reclaim_stale_claims', { limit: wholeNumber(random, 1, 20) })
    },
  }
  /** Calls on one file each. */
  const singles: Record<string, (hunter: Hunter) => Promise<void>> = {
    async claim_file(hunter) {
      const [url = ''] = some(hunter, 1)
      const etag = `e${wholeNumber(hunter.random, 1, 3)}`
      take(hunter, [await tryClaim(hunter.sql, url, { worker_id: hunter.id, etag })])
    },
    async 'a holder'(hunter) {
      const [[url, token] = []] = shuffled(hunter.random, [...hunter.held])
      if (url === undefined || token === undefined) return
      const { sql, random } = hunter
      const calls = [
        () => checkpoint(sql, url, token, 2 ** 40),
        () => call(sql, 'extend_claim', { file_url: url, claim_token: token }),
        () => release(sql, url, token),
        () => fail(sql, url, token, { retry_after_seconds: 0 }),
        () => complete(sql, url, token),
      ]
      await calls[wholeNumber(random, 0, calls.length - 1)]?.()
    },
    async 'an operator'(hunter) {
      const [url = ''] = some(hunter, 1)
      if (hunter.random() < 0.5) await call(hunter.sql, 'requeue_file', { file_url: url, force: true })
      else await call(hunter.sql, 'skip_file', { file_url: url })
    },
    async 'the passing of time'(hunter) {
      const [url = ''] = some(hunter, 1)
      await expireLease(hunter.sql, url)
    },
  }

  /** Lets sessions call at each other, and answers every error that is not a refusal of ours. */
  async function hunt(
    calls: Record<string, (hunter: Hunter) => Promise<void>>,
    { sessions, rounds }: { sessions: number; rounds: number },
  ): Promise<{ made: number; errors: string[] }> {
    await register(db.sql, ...files.map((file_url) => ({ file_url, etag: 'e1' })))
    const errors: string[] = []
    let made = 0
    const connections = await Promise.all(Array.from({ length: sessions }, () => db.connect()))
    await Promise.all(
      connections.map(async ({ sql }, index) => {
        const hunter = { sql, id: `w${index}`, random: seededRandom(seed + index), held: new Map() }
        for (let round = 0; round < rounds; round += 1) {
          const [[name, run] = []] = shuffled(hunter.random, Object.entries(calls))
          if (!run) return
          made += 1
          const refused = await refusal(run(hunter))
          if (refused && !refused.code.startsWith('PT')) {
            errors.push(`${name}: ${refused.code} ${refused.message} (FILEMARK_TEST_SEED=${seed})`)
          }
        }
        await sql.end()
      }),
    )
    return { made, errors }
  }

  const names = Object.keys(batches)
  const pairs = names.flatMap((first, index) => names.slice(index).map((second) => [first, second] as const))

  test.each(pairs)('%s at %s, with max_concurrency', async (first, second) => {
    await configure(db.sql, { max_concurrency: 8, max_attempts: 1000, backoff_base_seconds: 0 })
    const calls = {
      [first]: pick(batches, first),
      [second]: pick(batches, second),
      'the passing of time': pick(singles, 'the passing of time'),
      claim_next_files: pick(batches, 'claim_next_files'),
    }
    expect(await hunt(calls, { sessions: 6, rounds: 40 })).toEqual({ made: 240, errors: [] })
  })

  test.each([
    { limit: 'max_concurrency', settings: { max_concurrency: 5 } },
    { limit: 'no limit', settings: {} },
  ])('everything at everything, with $limit', async ({ settings }) => {
    await configure(db.sql, { ...settings, max_attempts: 1000, backoff_base_seconds: 0 })
    const answer = await hunt({ ...batches, ...singles }, { sessions: 8, rounds: 150 })
    expect(answer).toEqual({ made: 1200, errors: [] })
  })

  test('everything at everything, with a limit that is set and lifted meanwhile', async () => {
    await configure(db.sql, { max_attempts: 1000, backoff_base_seconds: 0 })
    const calls = {
      ...batches,
      ...singles,
      async configure_pipeline({ sql, random }: Hunter) {
        await configure(sql, { max_concurrency: random() < 0.5 ? null : wholeNumber(random, 1, 8) })
      },
    }
    expect(await hunt(calls, { sessions: 8, rounds: 150 })).toEqual({ made: 1200, errors: [] })
  })

  test('two reclaims that forget the same old requests, in different portions', async () => {
    await configure(db.sql, {})
    await db.sql`
      insert into filemark.claim_requests (pipeline, request_id, file_urls, claimed_at)
      select 'default', gen_random_uuid(), '{}', clock_timestamp() - interval '2 days' from generate_series(1, 20000)`
    const forget = (sql: Sql, limit: number) => refusal(call(sql, 'filemark.reclaim_stale_claims', { limit }))
    const connections = await Promise.all(Array.from({ length: 6 }, () => db.connect()))
    const errors: unknown[] = []
    await Promise.all(
      connections.map(async ({ sql }, index) => {
        for (let round = 0; round < 8; round += 1) {
          const refused = await forget(sql, [50, 700, 3000, 123, 1500, 20000][(index + round) % 6] ?? 1)
          if (refused) errors.push(refused)
        }
        await sql.end()
      }),
    )
    expect(errors).toEqual([])
    expect(await db.sql`select from filemark.claim_requests`).toHaveLength(0)
  })
})
