import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { until, untilLocked } from '../wait.ts'
import {
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
  started,
  tryClaim,
} from './calls.ts'
import { contents, empty, expireLease, fileRow, fireTimer, makeDue } from './tables.ts'

let db: TestDatabase
let one: TestConnection
let two: TestConnection
let three: TestConnection

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
  three = await db.connect()
  // The racers are procedures, so that nothing but the database is between one claim and the next. Each
  // transaction is one claim and what it answered. Advisory lock 1 is the starting gun.
  await db.sql.unsafe(`
    create table answers (file_url text, worker text, outcome text, claim_token bigint);
    create table counted (processing bigint);

    create procedure race_by_name(p_worker text, p_files int) language plpgsql as $$
    begin
      perform pg_advisory_xact_lock_shared(1);
      for i in 1 .. p_files loop
        insert into answers
        select c.file_url, p_worker, c.outcome, c.claim_token
          from claim_file('file ' || i, 'csv', now(), p_worker) c;
        commit;
      end loop;
    end $$;

    create procedure race_for_next(p_worker text, p_limit int) language plpgsql as $$
    begin
      perform pg_advisory_xact_lock_shared(1);
      loop
        insert into answers
        select c.file_url, p_worker, c.outcome, c.claim_token from claim_next_files(p_worker, p_limit) c;
        exit when not found;
        commit;
      end loop;
    end $$;

    create procedure work_by_name(p_worker text) language plpgsql as $$
    declare
      v_url text;
      v_token bigint;
    begin
      perform pg_advisory_xact_lock_shared(1);
      loop
        select file_url into v_url from filemark.file_checkpoints
         where status = 'pending' order by random() limit 1;
        exit when not found;
        select c.claim_token into v_token from claim_file(v_url, 'csv', now(), p_worker) c;
        commit;
        if v_token is not null then
          insert into counted select count(*) from filemark.file_checkpoints where status = 'processing';
          commit;
          perform complete_file(v_url, v_token);
          commit;
        end if;
      end loop;
    end $$;

    create procedure work_on_next(p_worker text) language plpgsql as $$
    declare
      v_claim record;
    begin
      perform pg_advisory_xact_lock_shared(1);
      while exists (select from filemark.file_checkpoints where status = 'pending') loop
        for v_claim in select * from claim_next_files(p_worker, 2) loop
          commit;
          insert into counted select count(*) from filemark.file_checkpoints where status = 'processing';
          commit;
          perform complete_file(v_claim.file_url, v_claim.claim_token);
          commit;
        end loop;
        commit;
      end loop;
    end $$;`)
})
beforeEach(() => empty(db.sql))
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
})
afterAll(() => db.drop())

function urls(rows: readonly ClaimRow[]): string[] {
  return rows.map((row) => row.file_url)
}

async function registerMany(count: number): Promise<void> {
  await register(db.sql, ...Array.from({ length: count }, (_, index) => ({ file_url: `file ${index + 1}` })))
}

/** Runs `statement` on that many connections, all set off at the same moment, and waits for the last. */
async function race(connections: number, statement: (worker: string) => string): Promise<void> {
  const racers = await Promise.all(Array.from({ length: connections }, () => db.connect()))
  await one.sql`select pg_advisory_lock(1)`
  const finished = Promise.all(racers.map(({ sql }, index) => sql.unsafe(statement(`w${index + 1}`))))
  await until(
    async () => {
      const waiting = await db.sql`
        select from pg_locks
         where locktype = 'advisory' and not granted
           and database = (select oid from pg_database where datname = current_database())`
      return waiting.length === connections
    },
    { what: `${connections} racers at the start` },
  )
  await one.sql`select pg_advisory_unlock(1)`
  await finished
  await Promise.all(racers.map(({ sql }) => sql.end()))
}

/** Checks that each of the files was won once, with this token, by the worker that its row names. */
async function expectOneWinnerEach(files: number, token: number): Promise<void> {
  const wins = await db.sql<{ file_url: string; worker: string }[]>`
    select file_url, worker from answers where outcome = 'claimed'`
  expect(wins.length).toBe(files)
  expect(new Set(wins.map((win) => win.file_url)).size).toBe(files)
  expect(new Set(wins.map((win) => win.worker)).size).toBeGreaterThan(1)
  const agreeing = await db.sql`
    select from answers a
      join filemark.file_checkpoints f
        on f.file_url = a.file_url and f.processed_by = a.worker and f.claim_token = a.claim_token
     where a.outcome = 'claimed' and f.status = 'processing' and f.claim_token = ${token}`
  expect(agreeing.length).toBe(files)
}

describe('32 connections that start together', { tags: 'sessions' }, () => {
  test('claim 2,000 files by claim_file: one winner per file, none left over', async () => {
    await registerMany(2000)
    await race(32, (worker) => `call race_by_name('${worker}', 2000)`)
    await expectOneWinnerEach(2000, 1)
    const [asked] = await db.sql<{ asked: number; held: number }[]>`
      select count(*)::int as asked, count(*) filter (where outcome = 'held')::int as held from answers`
    expect(asked).toEqual({ asked: 64_000, held: 62_000 })
  })

  test('claim 500 files that nobody registered by claim_file: one winner per file', async () => {
    await race(32, (worker) => `call race_by_name('${worker}', 500)`)
    await expectOneWinnerEach(500, 1)
  })

  test.each([1, 7, 100])(
    'claim 2,000 files by claim_next_files, %i at a time: one winner per file, none left over',
    async (limit) => {
      await registerMany(2000)
      await race(32, (worker) => `call race_for_next('${worker}', ${limit})`)
      await expectOneWinnerEach(2000, 1)
    },
  )

  test('rule 6.2: take over 500 files by claim_file: one winner per file', async () => {
    await race(1, () => `call race_by_name('dead', 500)`)
    await db.sql`truncate answers`
    await expireLease(db.sql)
    await race(32, (worker) => `call race_by_name('${worker}', 500)`)
    await expectOneWinnerEach(500, 2)
  })

  test('rule 6.2: take over 500 files by claim_next_files: one winner per file, none left over', async () => {
    await race(1, () => `call race_by_name('dead', 500)`)
    await db.sql`truncate answers`
    await expireLease(db.sql)
    await race(32, (worker) => `call race_for_next('${worker}', 3)`)
    await expectOneWinnerEach(500, 2)
  })
})

describe('claim_next_files', () => {
  test('gives the highest priority first, then the longest available', async () => {
    await register(
      db.sql,
      { file_url: 'a', available_at: '2026-01-03T00:00:00Z' },
      { file_url: 'b', available_at: '2026-01-02T00:00:00Z' },
      { file_url: 'c', available_at: '2026-01-04T00:00:00Z', priority: 5 },
      { file_url: 'd', available_at: '2026-01-01T00:00:00Z', priority: -5 },
      { file_url: 'e', available_at: '2026-01-05T00:00:00Z', priority: 2147483647 },
      { file_url: 'f', available_at: '2026-01-01T00:00:00Z', priority: -2147483648 },
      { file_url: 'g', available_at: '2026-01-01T00:00:00Z', priority: 5 },
    )
    const oneByOne: string[] = []
    for (let round = 0; round < 3; round += 1) oneByOne.push(...urls(await claimNext(db.sql)))
    expect(oneByOne).toEqual(['e', 'g', 'c'])
    expect(urls(await claimNext(db.sql, 100))).toEqual(['b', 'a', 'd', 'f'])
    expect(await claimNext(db.sql, 100)).toEqual([])
  })

  test('gives only files of the type asked for', async () => {
    await register(
      db.sql,
      { file_url: 'a', file_type: 'json' },
      { file_url: 'b', priority: 9 },
      { file_url: 'c', file_type: 'json', priority: 5 },
    )
    expect(urls(await claimNext(db.sql, 10, { file_type: 'json' }))).toEqual(['c', 'a'])
    expect(await claimNext(db.sql, 10, { file_type: 'json' })).toEqual([])
    await expireLease(db.sql)
    expect(await claimNext(db.sql, 10, { file_type: 'xml' })).toEqual([])
    expect(urls(await claimNext(db.sql, 1, { file_type: 'csv' }))).toEqual(['b'])
    expect(urls(await claimNext(db.sql, 10, { file_type: 'json' }))).toEqual(['c', 'a'])
  })

  test('passes over what is not due, however high its priority', async () => {
    await register(
      db.sql,
      { file_url: 'later', priority: 9, available_at: '2999-01-01T00:00:00Z' },
      { file_url: 'retry', priority: 8 },
      { file_url: 'now' },
    )
    const { claim_token } = only(await claimNext(db.sql))
    await fail(db.sql, 'retry', claim_token, { retry_after_seconds: 3600 })
    expect(urls(await claimNext(db.sql, 10))).toEqual(['now'])
  })

  test('gives a retry that is due in its place by priority', async () => {
    await register(db.sql, { file_url: 'a', priority: 1 }, { file_url: 'b', priority: 2 }, { file_url: 'c' })
    const { claim_token } = await claim(db.sql, 'a')
    await fail(db.sql, 'a', claim_token, { retry_after_seconds: 3600 })
    await makeDue(db.sql, 'a')
    const rows = await claimNext(db.sql, 10)
    expect(urls(rows)).toEqual(['b', 'a', 'c'])
    expect(rows[1]).toMatchObject({ attempts: 2, claim_token: '2' })
  })

  test('gives a retry with p_retry_after_seconds 0 at once', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await fail(db.sql, 'a', claim_token, { retry_after_seconds: 0 })
    expect(urls(await claimNext(db.sql))).toEqual(['a'])
  })

  test('lets expired claims and pending files compete by priority', async () => {
    await register(
      db.sql,
      { file_url: 'lost 3', priority: 3 },
      { file_url: 'lost 1', priority: 1 },
      { file_url: 'held', priority: 9 },
    )
    await claimNext(db.sql, 3)
    await expireLease(db.sql, 'lost 3')
    await expireLease(db.sql, 'lost 1')
    await register(
      db.sql,
      { file_url: 'pending 4', priority: 4 },
      { file_url: 'pending 2', priority: 2 },
      { file_url: 'pending 0', priority: 0 },
    )
    expect(urls(await claimNext(db.sql, 1))).toEqual(['pending 4'])
    expect(urls(await claimNext(db.sql, 3))).toEqual(['lost 3', 'pending 2', 'lost 1'])
    expect(urls(await claimNext(db.sql, 3))).toEqual(['pending 0'])
  })

  test('leaves a lost file that gives way to others as it was', async () => {
    await claim(db.sql, 'lost')
    await expireLease(db.sql)
    await register(db.sql, { file_url: 'urgent', priority: 1 })
    const before = await fileRow(db.sql, 'lost')
    expect(urls(await claimNext(db.sql))).toEqual(['urgent'])
    expect(await fileRow(db.sql, 'lost')).toEqual(before)
  })

  test('touches no file of another pipeline', async () => {
    await register(db.sql, { file_url: 'a' })
    await claim(db.sql, 'b')
    await expireLease(db.sql, 'b')
    await configure(db.sql, {}, 'other')
    const before = await contents(db.sql)
    expect(await claimNext(db.sql, 10, { pipeline: 'other' })).toEqual([])
    expect(await claimNext(db.sql, 10, { pipeline: 'never used' })).toEqual([])
    expect(await contents(db.sql)).toEqual(before)
    expect(await tryClaim(db.sql, 'a', { pipeline: 'other' })).toMatchObject({ claim_token: '1' })
  })
})

describe('a takeover', () => {
  const takeovers = {
    claim_file: (url: string) => claim(db.sql, url, { worker_id: 'w2' }),
    claim_next_files: async () => only(await claimNext(db.sql, 1, { worker_id: 'w2' })),
  }

  test.each(Object.entries(takeovers))(
    'by %s keeps the checkpoint and counts an attempt',
    async (_, takeOver) => {
      await register(db.sql, { file_url: 'a', etag: 'e1', size_bytes: 9, metadata: { from: 'us' } })
      const first = await claim(db.sql, 'a')
      await checkpoint(db.sql, 'a', first.claim_token, 7, {
        cursor: { page: 3 },
        accumulated_results: { sum: 0.5 },
        items_total: 100,
      })
      await expireLease(db.sql)
      const second = await takeOver('a')
      expect(second).toEqual({
        outcome: 'claimed',
        pipeline: 'default',
        file_url: 'a',
        file_type: 'csv',
        file_timestamp: new Date('2026-01-01T00:00:00Z'),
        etag: 'e1',
        size_bytes: '9',
        metadata: { from: 'us' },
        generation: '1',
        claim_token: '2',
        attempts: 2,
        max_attempts: 3,
        lease_seconds: 300,
        lease_expires_at: expect.any(Date),
        cursor: { page: 3 },
        items_processed: '7',
        items_total: '100',
        accumulated_results: { sum: 0.5 },
        checkpoint_seq: '1',
      })
      expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'w2', status: 'processing' })
      expect(await checkpoint(db.sql, 'a', second.claim_token, 8)).toMatchObject({ checkpoint_seq: '2' })
    },
  )

  test.each(Object.entries(takeovers))('by %s does not happen while the lease lasts', async (_, takeOver) => {
    await claim(db.sql, 'a')
    await expect(takeOver('a')).rejects.toThrow(/was not claimed: held|expected one row, got 0/)
  })

  test('rule 6.2: leaves a lease alone that was renewed, though its timer fired', async () => {
    const renewals = {
      checkpoint_file: (url: string, token: string) => checkpoint(db.sql, url, token, 1),
      extend_claim: (url: string, token: string) =>
        call(db.sql, 'extend_claim', { file_url: url, claim_token: token }),
    }
    for (const [url, renew] of Object.entries(renewals)) {
      const { claim_token } = await claim(db.sql, url)
      await expireLease(db.sql, url)
      await renew(url, claim_token)
      expect(await tryClaim(db.sql, url, { worker_id: 'w2' })).toMatchObject({ outcome: 'held' })
    }
    expect(await claimNext(db.sql, 10, { worker_id: 'w2' })).toEqual([])
    for (const url of Object.keys(renewals)) {
      const row = await fileRow(db.sql, url)
      expect(row).toMatchObject({ processed_by: 'w1', claim_token: '1', status: 'processing' })
      // The timer is set again, for the lease as it is now.
      expect(row.lease_check_at).toEqual(row.lease_expires_at)
    }
  })

  test('rule 6.2: leaves a renewed lease alone in reclaim_stale_claims too', async () => {
    await claim(db.sql, 'a')
    await fireTimer(db.sql, 'a')
    expect(await call(db.sql, 'filemark.reclaim_stale_claims')).toEqual([])
    const row = await fileRow(db.sql, 'a')
    expect(row).toMatchObject({ processed_by: 'w1', status: 'processing' })
    expect(row.lease_check_at).toEqual(row.lease_expires_at)
  })

  test('needs no free slot: the file has its own', async () => {
    await configure(db.sql, { max_concurrency: 2 })
    await claim(db.sql, 'a')
    await claim(db.sql, 'b')
    await register(db.sql, { file_url: 'c', priority: 1 })
    await expireLease(db.sql)
    expect(await tryClaim(db.sql, 'c')).toMatchObject({ outcome: 'busy' })
    expect(await tryClaim(db.sql, 'b', { worker_id: 'w2' })).toMatchObject({ outcome: 'claimed' })
    expect(urls(await claimNext(db.sql, 10, { worker_id: 'w2' }))).toEqual(['a'])
  })
})

describe('max_concurrency', () => {
  const atOnce = {
    claim_file: (worker: string) => `call race_by_name('${worker}', 20)`,
    claim_next_files: (worker: string) => `call race_for_next('${worker}', 3)`,
  }
  test.each(Object.entries(atOnce))(
    'gives 16 racing claimers by %s exactly as many claims as it allows',
    { tags: 'sessions' },
    async (_, statement) => {
      await configure(db.sql, { max_concurrency: 5 })
      await registerMany(20)
      await race(16, statement)
      const outcomes = await db.sql`select from answers where outcome = 'claimed'`
      expect(outcomes.length).toBe(5)
      expect((await db.sql`select from filemark.file_checkpoints where status = 'processing'`).length).toBe(5)
    },
  )

  test.each(['work_by_name', 'work_on_next'])(
    'is never exceeded by 16 workers that claim and complete (%s)',
    { tags: 'sessions' },
    async (procedure) => {
      await configure(db.sql, { max_concurrency: 5 })
      await registerMany(400)
      await race(16, (worker) => `call ${procedure}('${worker}')`)
      expect((await db.sql`select from filemark.file_checkpoints where status = 'completed'`).length).toBe(
        400,
      )
      const [seen] = await db.sql<{ most: number; often: number }[]>`
      select max(processing)::int as most, count(*)::int as often from counted`
      expect(seen?.often).toBe(400)
      expect(seen?.most).toBeLessThanOrEqual(5)
      expect(seen?.most).toBeGreaterThan(1)
    },
  )

  test('gives a batch no more than the slots that are free', async () => {
    await configure(db.sql, { max_concurrency: 3 })
    await registerMany(10)
    await claim(db.sql, 'file 1')
    expect((await claimNext(db.sql, 10)).length).toBe(2)
    expect(await claimNext(db.sql, 10)).toEqual([])
  })

  test('gives complete_and_claim_next the slots that its own completions free', async () => {
    await configure(db.sql, { max_concurrency: 2 })
    await registerMany(4)
    const held = await claimNext(db.sql, 2)
    const completions = held.map(({ file_url, claim_token }) => ({
      file_url,
      claim_token: Number(claim_token),
    }))
    const next = await call<ClaimRow>(db.sql, 'complete_and_claim_next', {
      worker_id: 'w1',
      completions,
      limit: 10,
    })
    expect(urls(next)).toEqual(['file 3', 'file 4'])
  })
})

describe('a paused pipeline', () => {
  test('gives no claims, and lets those that run go on and finish', async () => {
    const request_id = '00000000-0000-4000-8000-000000000001'
    await register(db.sql, { file_url: 'waiting' })
    const held = await claim(db.sql, 'held', { request_id })
    await claim(db.sql, 'lost')
    await expireLease(db.sql, 'lost')
    await configure(db.sql, { paused: true })

    expect(await tryClaim(db.sql, 'waiting')).toMatchObject({ outcome: 'paused' })
    expect(await tryClaim(db.sql, 'unknown')).toMatchObject({ outcome: 'paused' })
    expect(await tryClaim(db.sql, 'lost')).toMatchObject({ outcome: 'paused' })
    expect(await claimNext(db.sql, 10)).toEqual([])
    expect(await tryClaim(db.sql, 'held', { request_id })).toEqual(held)
    await checkpoint(db.sql, 'held', held.claim_token, 1)
    expect(await complete(db.sql, 'held', held.claim_token)).toBe('completed')

    await configure(db.sql, { paused: false })
    expect(urls(await claimNext(db.sql, 10))).toEqual(['waiting', 'lost'])
  })
})

describe('a refused claim_file', () => {
  const refusals: Record<string, () => Promise<unknown>> = {
    held: () => claim(db.sql, 'a', { worker_id: 'other' }),
    completed: async () => complete(db.sql, 'a', (await claim(db.sql, 'a')).claim_token),
    waiting: async () => fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token),
    dead_letter: async () => fail(db.sql, 'a', (await claim(db.sql, 'a')).claim_token, { retryable: false }),
    skipped: async () => {
      await register(db.sql, { file_url: 'a' })
      await call(db.sql, 'skip_file', { file_url: 'a' })
    },
    paused: async () => {
      await register(db.sql, { file_url: 'a' })
      await configure(db.sql, { paused: true })
    },
    busy: async () => {
      await register(db.sql, { file_url: 'a' })
      await claim(db.sql, 'b')
      await configure(db.sql, { max_concurrency: 1 })
    },
  }

  test.each(Object.entries(refusals))(
    'answers %s, and every column of a claim is null',
    async (outcome, arrange) => {
      await arrange()
      const row = await tryClaim(db.sql, 'a')
      const { outcome: answered, pipeline, file_url, ...columns } = row
      expect({ answered, pipeline, file_url }).toEqual({
        answered: outcome,
        pipeline: 'default',
        file_url: 'a',
      })
      expect(Object.keys(columns).length).toBe(16)
      expect(Object.values(columns).every((value) => value === null)).toBe(true)
    },
  )

  test.each(Object.entries(refusals))(
    'rule 6.8: writes nothing and takes no lock (%s)',
    async (outcome, arrange) => {
      await arrange()
      const before = await contents(db.sql)
      await one.sql`begin`
      expect(await tryClaim(one.sql, 'a')).toMatchObject({ outcome })
      // A transaction gets its id with its first write or row lock.
      expect(await one.sql`select pg_current_xact_id_if_assigned() is null as "wroteNothing"`).toEqual([
        { wroteNothing: true },
      ])
      await one.sql`commit`
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test('says waiting of a file whose time has not come', async () => {
    await register(db.sql, { file_url: 'a', available_at: '2999-01-01T00:00:00Z' })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'waiting', claim_token: null })
  })
})

describe('claim_file', () => {
  test('makes a file known that nobody registered', async () => {
    const row = await claim(db.sql, 'new', { file_type: 'json', etag: 'e1', worker_id: 'w7' })
    expect(row).toMatchObject({
      outcome: 'claimed',
      file_url: 'new',
      file_type: 'json',
      etag: 'e1',
      generation: '1',
      claim_token: '1',
      attempts: 1,
      cursor: null,
      items_processed: '0',
      checkpoint_seq: '0',
    })
    expect(await fileRow(db.sql, 'new')).toMatchObject({
      status: 'processing',
      processed_by: 'w7',
      etag: 'e1',
    })
  })

  test('never gives a token twice, however a claim ended', async () => {
    const tokens = []
    for (const end of [complete, fail, release]) {
      const { claim_token } = await claim(db.sql, 'a')
      tokens.push(claim_token)
      await end(db.sql, 'a', claim_token)
      await call(db.sql, 'requeue_file', { file_url: 'a' })
    }
    await claim(db.sql, 'a').then((row) => tokens.push(row.claim_token))
    await expireLease(db.sql)
    await claim(db.sql, 'a').then((row) => tokens.push(row.claim_token))
    expect(tokens).toEqual(['1', '2', '3', '4', '5'])
  })

  test('sees the lease as long as the pipeline says', async () => {
    await configure(db.sql, { lease_seconds: 77 })
    await claim(db.sql, 'a')
    const rows = await db.sql`
      select lease_seconds, lease_expires_at = started_at + interval '77 seconds' as exact
        from filemark.file_checkpoints join filemark.pipelines using (pipeline)`
    expect(rows).toEqual([{ lease_seconds: 77, exact: true }])
  })
})

describe('two sessions that meet on one file', { tags: 'sessions' }, () => {
  const starts: Record<string, () => Promise<unknown>> = {
    'a pending': () => register(db.sql, { file_url: 'a' }),
    // The pipeline is there, so that they meet on the file and not on the pipeline's first use.
    'an unknown': () => configure(db.sql, {}),
    'a lost': async () => {
      await claim(db.sql, 'a', { worker_id: 'dead' })
      await expireLease(db.sql)
    },
  }
  const claimOnFirst: Record<string, () => Promise<ClaimRow>> = {
    claim_file: () => claim(one.sql, 'a', { worker_id: 'first' }),
    claim_next_files: async () => only(await claimNext(one.sql, 1, { worker_id: 'first' })),
  }
  const meetings = Object.keys(starts).flatMap((start) =>
    Object.keys(claimOnFirst)
      .filter((name) => !(start === 'an unknown' && name === 'claim_next_files'))
      .map((name) => ({ start, name })),
  )

  test.each(meetings)(
    'claim_file waits for $name on $start file, and is refused when that commits',
    async ({ start, name }) => {
      await pick(starts, start)()
      await one.sql`begin`
      const first = await pick(claimOnFirst, name)()
      const second = started(tryClaim(two.sql, 'a', { worker_id: 'second' }))
      await untilLocked(db.sql, two.pid)
      await one.sql`commit`
      expect(await second).toMatchObject({ outcome: 'held', claim_token: null })
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        processed_by: 'first',
        claim_token: first.claim_token,
      })
    },
  )

  test.each(meetings)(
    'claim_file waits for $name on $start file, and gets it when that is rolled back',
    async ({ start, name }) => {
      await pick(starts, start)()
      await one.sql`begin`
      const first = await pick(claimOnFirst, name)()
      const second = started(tryClaim(two.sql, 'a', { worker_id: 'second' }))
      await untilLocked(db.sql, two.pid)
      await one.sql`rollback`
      expect(await second).toMatchObject({ outcome: 'claimed', claim_token: first.claim_token })
      expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'second' })
    },
  )

  test.each(meetings)(
    'claim_next_files does not wait for $name on $start file: it takes the next',
    async ({ start, name }) => {
      await pick(starts, start)()
      await one.sql`begin`
      await pick(claimOnFirst, name)()
      expect(await claimNext(two.sql, 10, { worker_id: 'second' })).toEqual([])
      await register(db.sql, { file_url: 'b', priority: -1 })
      expect(urls(await claimNext(two.sql, 10, { worker_id: 'second' }))).toEqual(['b'])
      await one.sql`commit`
      expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'first' })
    },
  )

  test('rule 6.10: a claim waits for the slot that another session is taking, and finds it taken', async () => {
    await configure(db.sql, { max_concurrency: 1 })
    await register(db.sql, { file_url: 'a', priority: 1 }, { file_url: 'b' })
    await one.sql`begin`
    await claim(one.sql, 'a')
    const second = started(tryClaim(two.sql, 'b'))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await second).toMatchObject({ outcome: 'busy' })
    await release(db.sql, 'a', '1')

    await one.sql`begin`
    await claimNext(one.sql)
    const next = started(claimNext(two.sql, 10))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await next).toEqual([])
  })

  test('a file and its pipeline, both seen for the first time by two sessions, get one holder', async () => {
    await one.sql`begin`
    await claim(one.sql, 'a', { worker_id: 'first' })
    const second = started(tryClaim(two.sql, 'a', { worker_id: 'second' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await second).toMatchObject({ outcome: 'held' })
  })

  test('rule 6.10: a completed batch and a registered one lock their files in the same order', async () => {
    await register(db.sql, { file_url: 'a', etag: '1' }, { file_url: 'b', etag: '1' })
    const [a, b] = await claimNext(db.sql, 2)
    await register(db.sql, { file_url: 'a', etag: '2' })
    // Both wait for b: the completion came first. It must not hold b while it waits for a.
    await one.sql`begin`
    await call(one.sql, 'filemark.assert_claim', { file_url: 'b', claim_token: b?.claim_token })
    const completions = [a, b].map((row) => ({
      file_url: row?.file_url,
      claim_token: Number(row?.claim_token),
    }))
    const completed = refusal(
      call(two.sql, 'complete_and_claim_next', { worker_id: 'w1', completions, file_type: 'none' }),
    )
    await untilLocked(db.sql, two.pid)
    const registered = refusal(
      register(three.sql, { file_url: 'a', etag: '3' }, { file_url: 'b', etag: '3' }),
    )
    await untilLocked(db.sql, three.pid)
    await one.sql`commit`
    expect({ completed: await completed, registered: await registered }).toEqual({})
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', etag: '3' })
    expect(await fileRow(db.sql, 'b')).toMatchObject({ status: 'pending', etag: '3' })
  })
})
