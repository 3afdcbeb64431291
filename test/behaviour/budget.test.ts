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
  only,
  pick,
  register,
  release,
  tryClaim,
} from './calls.ts'
import { empty, eventNames, events, expireLease, fileRow, makeDue } from './tables.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

/** Ways to come by file a when its last holder has died; each answers the claim or nothing. */
const ways: Record<string, () => Promise<ClaimRow | undefined>> = {
  claim_file: async () => {
    const row = await tryClaim(db.sql, 'a')
    if (row.outcome !== 'claimed') expect(row).toMatchObject({ outcome: 'dead_letter', claim_token: null })
    return row.outcome === 'claimed' ? row : undefined
  },
  claim_next_files: async () => (await claimNext(db.sql))[0],
  complete_and_claim_next: async () =>
    (await call<ClaimRow>(db.sql, 'complete_and_claim_next', { worker_id: 'w1', completions: [] }))[0],
  'reclaim_stale_claims and claim_file': async () => {
    await call(db.sql, 'filemark.reclaim_stale_claims')
    return pick(ways, 'claim_file')()
  },
  'reclaim_stale_claims and claim_next_files': async () => {
    await call(db.sql, 'filemark.reclaim_stale_claims')
    return pick(ways, 'claim_next_files')()
  },
}

/** Claims file a and lets the lease run out, until it cannot be claimed any more; answers how often it could. */
async function dieUntilRefused(
  way: string,
  before: (row: ClaimRow, round: number) => Promise<unknown>,
): Promise<number> {
  for (let round = 1; round <= 20; round += 1) {
    const row = await pick(ways, way)()
    if (!row) return round - 1
    expect(row).toMatchObject({ outcome: 'claimed', claim_token: `${round}` })
    await before(row, round)
    await expireLease(db.sql, 'a')
  }
  return 20
}

function times(count: number, event: string): string[] {
  return Array.from({ length: count }, () => event)
}

describe('rule 6.4: a file that kills its worker', () => {
  const cases = [1, 3, 5].flatMap((max_attempts) => Object.keys(ways).map((way) => ({ max_attempts, way })))

  test.each(cases)(
    'is a dead letter after exactly $max_attempts claims by $way',
    async ({ max_attempts, way }) => {
      await configure(db.sql, { max_attempts })
      await register(db.sql, { file_url: 'a' })
      const claims = await dieUntilRefused(way, async (row, round) => {
        expect(row).toMatchObject({ attempts: round, max_attempts })
      })
      expect(claims).toBe(max_attempts)
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        status: 'dead_letter',
        attempts: max_attempts,
        claim_ended: 'lost',
        lease_expires_at: null,
        error_message: `attempt ${max_attempts} ended with its lease, without progress; the holder was w1`,
      })
      expect(await eventNames(db.sql, 'a')).toEqual([
        ...times(max_attempts, 'lease_expired'),
        'dead_lettered',
      ])
      expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
      expect(await claimNext(db.sql, 10)).toEqual([])
      expect(await call(db.sql, 'filemark.reclaim_stale_claims')).toEqual([])
    },
  )

  test.each(cases)(
    'at a place it reached at first dies $max_attempts times there (by $way)',
    async ({ max_attempts, way }) => {
      await configure(db.sql, { max_attempts })
      await register(db.sql, { file_url: 'a' })
      const claims = await dieUntilRefused(way, async (row, round) => {
        if (round === 1) await checkpoint(db.sql, 'a', row.claim_token ?? '', 10)
        else expect(row).toMatchObject({ items_processed: '10', cursor: { next: 10 } })
      })
      expect(claims).toBe(max_attempts)
      expect(await fileRow(db.sql, 'a')).toMatchObject({
        status: 'dead_letter',
        items_processed: '10',
        checkpoint_seq: '1',
      })
    },
  )

  test.each(Object.keys(ways))('is not saved by checkpoints that do not advance (by %s)', async (way) => {
    await register(db.sql, { file_url: 'a' })
    const claims = await dieUntilRefused(way, (row, round) =>
      checkpoint(db.sql, 'a', row.claim_token ?? '', 10, { cursor: { round } }),
    )
    expect(claims).toBe(3)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'dead_letter', checkpoint_seq: '3' })
  })

  test.each(Object.keys(ways))('but advances each time is never a dead letter (by %s)', async (way) => {
    await configure(db.sql, { max_attempts: 2 })
    await register(db.sql, { file_url: 'a' })
    const claims = await dieUntilRefused(way, async (row, round) => {
      expect(row).toMatchObject({ attempts: Math.min(round, 2), items_processed: `${round - 1}` })
      await checkpoint(db.sql, 'a', row.claim_token ?? '', round)
      expect(await fileRow(db.sql, 'a')).toMatchObject({ attempts: 1 })
    })
    expect(claims).toBe(20)
    expect(new Set(await eventNames(db.sql, 'a'))).toEqual(new Set(['lease_expired']))
  })

  test('and advances, but has max_attempts 1, is not tried again: its one attempt is spent', async () => {
    await configure(db.sql, { max_attempts: 1 })
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 10)
    await expireLease(db.sql)
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'dead_letter', items_processed: '10' })
  })

  test('gets more attempts when the pipeline is given more', async () => {
    await configure(db.sql, { max_attempts: 1 })
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    await configure(db.sql, { max_attempts: 2 })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'claimed', attempts: 2 })
  })

  test('does not keep the files beside it from being claimed', async () => {
    await configure(db.sql, { max_attempts: 1 })
    await register(db.sql, { file_url: 'a', priority: 9 }, { file_url: 'b' }, { file_url: 'c' })
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    expect((await claimNext(db.sql, 10)).map((row) => row.file_url)).toEqual(['b', 'c'])
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'dead_letter' })
  })

  test('is on record each time: who held it, how far it was, who found it', async () => {
    await configure(db.sql, { max_attempts: 2 })
    const first = await claim(db.sql, 'a', { worker_id: 'dead 1' })
    await checkpoint(db.sql, 'a', first.claim_token, 4)
    await expireLease(db.sql)
    await claim(db.sql, 'a', { worker_id: 'dead 2' })
    await expireLease(db.sql)
    expect(await claimNext(db.sql, 1, { worker_id: 'alive' })).toEqual([])
    const lost = { lease_expired_at: expect.any(String), items_processed: 4 }
    expect(await events(db.sql, 'a')).toEqual([
      {
        file_url: 'a',
        event: 'lease_expired',
        actor: 'dead 2',
        reason: null,
        detail: { ...lost, claim_token: 1, processed_by: 'dead 1', attempts: 1 },
      },
      {
        file_url: 'a',
        event: 'lease_expired',
        actor: 'alive',
        reason: null,
        detail: { ...lost, claim_token: 2, processed_by: 'dead 2', attempts: 2 },
      },
      {
        file_url: 'a',
        event: 'dead_lettered',
        actor: 'alive',
        reason: 'lease_expired',
        detail: {
          attempts: 2,
          error_message: 'attempt 2 ended with its lease, without progress; the holder was dead 2',
        },
      },
    ])
  })
})

describe('rule 6.4: a file that fails', () => {
  test.each([1, 3, 5])('is a dead letter after exactly %i attempts', async (max_attempts) => {
    await configure(db.sql, { max_attempts })
    for (let attempt = 1; attempt < max_attempts; attempt += 1) {
      const { claim_token } = await claim(db.sql, 'a')
      expect(await fail(db.sql, 'a', claim_token)).toMatchObject({ status: 'failed', attempts: attempt })
      await makeDue(db.sql, 'a')
    }
    const { claim_token } = await claim(db.sql, 'a')
    const last = await fail(db.sql, 'a', claim_token, { error_message: 'the last', error: { code: 7 } })
    expect(last).toEqual({ status: 'dead_letter', attempts: max_attempts, available_at: null })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'dead_letter',
      error_message: 'the last',
      error: { code: 7 },
      lease_expires_at: null,
    })
    expect(await eventNames(db.sql, 'a')).toEqual([...times(max_attempts, 'failed'), 'dead_lettered'])
    expect((await events(db.sql, 'a')).at(-1)).toMatchObject({
      actor: 'w1',
      reason: 'max_attempts_exceeded',
      detail: { attempts: max_attempts, error_message: 'the last' },
    })
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
    await makeDue(db.sql, 'a')
    expect(await claimNext(db.sql, 10)).toEqual([])
  })

  test('shares one budget with the times it killed its worker', async () => {
    const first = await claim(db.sql, 'a')
    await fail(db.sql, 'a', first.claim_token, { retry_after_seconds: 0 })
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    const third = await claim(db.sql, 'a')
    expect(third.attempts).toBe(3)
    expect(await fail(db.sql, 'a', third.claim_token)).toMatchObject({ status: 'dead_letter', attempts: 3 })
    expect(await eventNames(db.sql, 'a')).toEqual(['failed', 'lease_expired', 'failed', 'dead_lettered'])
  })

  test('but advances each time is never a dead letter', async () => {
    await configure(db.sql, { max_attempts: 2 })
    for (let round = 1; round <= 20; round += 1) {
      const { claim_token } = await claim(db.sql, 'a')
      await checkpoint(db.sql, 'a', claim_token, round)
      const answer = await fail(db.sql, 'a', claim_token, { retry_after_seconds: 0 })
      expect(answer).toMatchObject({ status: 'failed', attempts: 1 })
    }
  })

  test('with an error that is not retryable is a dead letter at once', async () => {
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'w7' })
    await checkpoint(db.sql, 'a', claim_token, 3)
    const answer = await fail(db.sql, 'a', claim_token, {
      error_message: 'not a CSV file',
      retryable: false,
      error: { line: 3 },
      // Without a retry this says nothing.
      retry_after_seconds: 0,
    })
    expect(answer).toEqual({ status: 'dead_letter', attempts: 1, available_at: null })
    expect(await events(db.sql, 'a')).toEqual([
      {
        file_url: 'a',
        event: 'failed',
        actor: 'w7',
        reason: null,
        detail: {
          claim_token: 1,
          attempts: 1,
          error_message: 'not a CSV file',
          error: { line: 3 },
          items_processed: 3,
        },
      },
      {
        file_url: 'a',
        event: 'dead_lettered',
        actor: 'w7',
        reason: 'not_retryable',
        detail: { attempts: 1, error_message: 'not a CSV file' },
      },
    ])
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
  })

  test('and succeeds at last keeps no error, and the story is in the events', async () => {
    const first = await claim(db.sql, 'a')
    await fail(db.sql, 'a', first.claim_token, { retry_after_seconds: 0, error: { line: 1 } })
    const second = await claim(db.sql, 'a')
    await complete(db.sql, 'a', second.claim_token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'completed',
      error_message: null,
      error: null,
    })
    expect(await eventNames(db.sql, 'a')).toEqual(['failed'])
  })
})

describe('rule 6.4: release_file', () => {
  test('refunds the attempt, as often as one likes', async () => {
    await configure(db.sql, { max_attempts: 1 })
    for (let round = 1; round <= 10; round += 1) {
      const { claim_token, attempts } = await claim(db.sql, 'a')
      expect(attempts).toBe(1)
      await release(db.sql, 'a', claim_token)
      expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', attempts: 0 })
    }
    expect(await eventNames(db.sql, 'a')).toEqual(times(10, 'released'))
  })

  test('refunds its own attempt only', async () => {
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    const third = await claim(db.sql, 'a')
    expect(third.attempts).toBe(3)
    await release(db.sql, 'a', third.claim_token)
    expect(await claim(db.sql, 'a')).toMatchObject({ attempts: 3 })
    await expireLease(db.sql)
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'dead_letter' })
  })

  test('keeps the checkpoint, and gives the file back at once, in its place', async () => {
    await register(db.sql, { file_url: 'a' }, { file_url: 'b' })
    const { claim_token } = await claim(db.sql, 'a', { worker_id: 'w7' })
    await checkpoint(db.sql, 'a', claim_token, 5, { accumulated_results: { n: 5 } })
    await release(db.sql, 'a', claim_token)
    expect(await events(db.sql, 'a')).toEqual([
      {
        file_url: 'a',
        event: 'released',
        actor: 'w7',
        reason: null,
        detail: { claim_token: 1, items_processed: 5 },
      },
    ])
    expect(only(await claimNext(db.sql))).toMatchObject({
      file_url: 'a',
      attempts: 1,
      cursor: { next: 5 },
      items_processed: '5',
      accumulated_results: { n: 5 },
      checkpoint_seq: '1',
    })
  })

  test('of a retry that failed before keeps the attempts that were spent', async () => {
    const first = await claim(db.sql, 'a')
    await fail(db.sql, 'a', first.claim_token, { retry_after_seconds: 0 })
    const second = await claim(db.sql, 'a')
    await release(db.sql, 'a', second.claim_token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', attempts: 1 })
  })
})

describe('rule 6.5: the backoff', () => {
  const files = 100

  /** Claims all files, fails them, and answers after how many seconds each is due (rounded down by a moment). */
  async function failAll(args = ''): Promise<number[]> {
    await db.sql`truncate filemark.file_events`
    await db.sql`update filemark.file_checkpoints set available_at = '2026-01-01' where status = 'failed'`
    expect(await claimNext(db.sql, files)).toHaveLength(files)
    await db.sql.unsafe(`
      select fail_file(file_url, claim_token, 'it broke' ${args})
        from filemark.file_checkpoints where status = 'processing'`)
    const rows = await db.sql<{ seconds: number }[]>`
      select extract(epoch from f.available_at - e.occurred_at)::float8 as seconds
        from filemark.file_checkpoints f join filemark.file_events e using (file_url)
       where f.status = 'failed' and e.event = 'failed'`
    expect(rows).toHaveLength(files)
    return rows.map(({ seconds }) => seconds)
  }

  beforeEach(() =>
    register(db.sql, ...Array.from({ length: files }, (_, index) => ({ file_url: `file ${index}` }))),
  )

  test('is base x 2^(attempts - 1), give or take the jitter', async () => {
    await configure(db.sql, { max_attempts: 20, backoff_base_seconds: 100, backoff_max_seconds: 1000000 })
    for (let attempt = 1; attempt <= 6; attempt += 1) {
      const nominal = 100 * 2 ** (attempt - 1)
      const seconds = await failAll()
      expect(Math.min(...seconds)).toBeGreaterThan(nominal * 0.8 - 1)
      expect(Math.max(...seconds)).toBeLessThanOrEqual(nominal * 1.2)
      // Spread over the whole range, so that retries do not come in waves.
      expect(Math.min(...seconds)).toBeLessThan(nominal * 0.9)
      expect(Math.max(...seconds)).toBeGreaterThan(nominal * 1.1)
    }
  })

  test('is exact without jitter', async () => {
    await configure(db.sql, { max_attempts: 20, backoff_base_seconds: 10, backoff_jitter: 0 })
    for (let attempt = 1; attempt <= 4; attempt += 1) {
      const nominal = 10 * 2 ** (attempt - 1)
      for (const seconds of await failAll()) {
        expect(seconds).toBeGreaterThan(nominal - 1)
        expect(seconds).toBeLessThanOrEqual(nominal)
      }
    }
  })

  test('never exceeds the cap, with jitter or after a thousand attempts', async () => {
    await configure(db.sql, { max_attempts: 1000, backoff_base_seconds: 3000, backoff_jitter: 1 })
    for (const attempts of [0, 1, 2, 50, 990]) {
      await db.sql`update filemark.file_checkpoints set attempts = ${attempts}`
      const seconds = await failAll()
      expect(Math.max(...seconds)).toBeLessThanOrEqual(3600)
      expect(Math.min(...seconds)).toBeGreaterThan(-1)
      expect(Math.max(...seconds)).toBeGreaterThan(2000)
    }
  })

  test('begins again after progress', async () => {
    await configure(db.sql, { max_attempts: 20, backoff_base_seconds: 100, backoff_jitter: 0 })
    await failAll()
    await failAll()
    await makeDue(db.sql, 'file 1')
    const { claim_token, attempts } = await claim(db.sql, 'file 1')
    expect(attempts).toBe(3)
    await checkpoint(db.sql, 'file 1', claim_token, 1)
    await db.sql`truncate filemark.file_events`
    await fail(db.sql, 'file 1', claim_token)
    const [due] = await db.sql<{ right: boolean }[]>`
      select available_at - occurred_at between interval '99 seconds' and interval '100 seconds' as right
        from filemark.file_checkpoints join filemark.file_events using (file_url)`
    expect(due).toEqual({ right: true })
  })

  test.each([0, 5, 7200, 31_536_000])('is overridden by p_retry_after_seconds (%i)', async (retryAfter) => {
    for (const seconds of await failAll(`, p_retry_after_seconds => ${retryAfter}`)) {
      expect(seconds).toBeGreaterThan(retryAfter - 1)
      expect(seconds).toBeLessThanOrEqual(retryAfter)
    }
  })

  test('is what fail_file answers', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    const { available_at } = await fail(db.sql, 'a', claim_token)
    expect(available_at).toEqual((await fileRow(db.sql, 'a')).available_at)
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'waiting' })
  })

  test('is not for a takeover after a lost lease', async () => {
    await configure(db.sql, { max_attempts: 20, backoff_base_seconds: 3600 })
    await db.sql`truncate filemark.file_checkpoints`
    const first = await claim(db.sql, 'a')
    await fail(db.sql, 'a', first.claim_token)
    await makeDue(db.sql, 'a')
    await claim(db.sql, 'a')
    for (const [index, way] of Object.keys(ways).entries()) {
      await expireLease(db.sql)
      expect(await pick(ways, way)(), way).toMatchObject({ outcome: 'claimed', attempts: index + 3 })
    }
  })
})
