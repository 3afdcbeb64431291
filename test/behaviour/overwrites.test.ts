import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'
import {
  type Claim,
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
import { caller } from './lane.ts'
import {
  contents,
  empty,
  eventNames,
  events,
  expireLease,
  type FileRow,
  fileRow,
  historyOf,
} from './tables.ts'

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

const counts = {
  registered: { registered: '1', new_generations: '0', unchanged: '0' },
  newGeneration: { registered: '0', new_generations: '1', unchanged: '0' },
  unchanged: { registered: '0', new_generations: '0', unchanged: '1' },
}

/** A file as the next generation finds it: nothing is left of the content before. */
const fresh: Partial<FileRow> = {
  status: 'pending',
  superseded_by: null,
  attempts: 0,
  cursor: null,
  items_processed: '0',
  items_total: null,
  accumulated_results: null,
  checkpoint_seq: '0',
  checkpointed_at: null,
  history_length: '0',
  records_total: '0',
  records_filtered: '0',
  records_persisted: '0',
  records_rejected: '0',
  processing_time_ms: null,
  error_message: null,
  error: null,
  completed_at: null,
  lease_expires_at: null,
  lease_check_at: null,
}

/** Claims file a with etag 1 and saves progress. */
async function claimAndProgress(): Promise<Claim> {
  const row = await claim(db.sql, 'a', { etag: '1' })
  await checkpoint(db.sql, 'a', row.claim_token, 10, { accumulated_results: { sum: 1 }, items_total: 100 })
  return row
}

/** How a file may come to stand still with progress of etag 1. */
const rests: Record<string, () => Promise<unknown>> = {
  pending: async () => release(db.sql, 'a', (await claimAndProgress()).claim_token),
  completed: async () =>
    complete(db.sql, 'a', (await claimAndProgress()).claim_token, { records_total: 9, records_persisted: 8 }),
  failed: async () => fail(db.sql, 'a', (await claimAndProgress()).claim_token, { error: { line: 1 } }),
  dead_letter: async () => fail(db.sql, 'a', (await claimAndProgress()).claim_token, { retryable: false }),
  skipped: async () => {
    await release(db.sql, 'a', (await claimAndProgress()).claim_token)
    await call(db.sql, 'skip_file', { file_url: 'a' })
  },
}

/** How the claim on a file whose news were noted may end, and what comes of it. */
const ends: Record<string, (claim_token: string) => Promise<unknown>> = {
  complete_file: (claim_token) => complete(db.sql, 'a', claim_token),
  complete_and_claim_next: (claim_token) =>
    call(db.sql, 'complete_and_claim_next', {
      worker_id: 'w1',
      completions: [{ file_url: 'a', claim_token: Number(claim_token) }],
      file_type: 'none',
    }),
  fail_file: (claim_token) => fail(db.sql, 'a', claim_token),
  'fail_file for good': (claim_token) => fail(db.sql, 'a', claim_token, { retryable: false }),
  release_file: (claim_token) => release(db.sql, 'a', claim_token),
  'a crash, and reclaim_stale_claims': async () => {
    await expireLease(db.sql)
    await call(db.sql, 'filemark.reclaim_stale_claims')
  },
  'a crash at the last attempt, and reclaim_stale_claims': async () => {
    await db.sql`update filemark.file_checkpoints set attempts = 3`
    await expireLease(db.sql)
    await call(db.sql, 'filemark.reclaim_stale_claims')
  },
  'a crash': () => expireLease(db.sql),
  'a crash at the last attempt': async () => {
    await db.sql`update filemark.file_checkpoints set attempts = 3`
    await expireLease(db.sql)
  },
  'requeue_file by force': () => call(db.sql, 'requeue_file', { file_url: 'a', force: true }),
  'requeue_file by force from the start': () =>
    call(db.sql, 'requeue_file', { file_url: 'a', force: true, from: 'start' }),
  'requeue_file by force from a checkpoint': () =>
    call(db.sql, 'requeue_file', { file_url: 'a', force: true, from: 'checkpoint:1' }),
}

const claimers: Record<string, () => Promise<ClaimRow | undefined>> = {
  claim_file: () => tryClaim(db.sql, 'a', { worker_id: 'w2' }),
  claim_next_files: async () => (await claimNext(db.sql, 1, { worker_id: 'w2' }))[0],
  complete_and_claim_next: async () =>
    (await call<ClaimRow>(db.sql, 'complete_and_claim_next', { worker_id: 'w2', completions: [] }))[0],
}

describe('rule 6.11: a new etag on a file that is not being processed', () => {
  test.each(Object.entries(rests))(
    'starts a new generation when it is registered (%s)',
    async (status, arrange) => {
      await arrange()
      expect(await fileRow(db.sql, 'a')).toMatchObject({ status, generation: '1', items_processed: '10' })
      expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.newGeneration)
      expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
      expect(await historyOf(db.sql, 'a')).toEqual([])
      expect((await events(db.sql, 'a')).at(-1)).toEqual({
        file_url: 'a',
        event: 'overwritten',
        actor: caller,
        reason: null,
        detail: { old_etag: '1', new_etag: '2', generation: 2, old_status: status, old_items_processed: 10 },
      })
      expect(only(await claimNext(db.sql))).toMatchObject({
        etag: '2',
        generation: '2',
        claim_token: '2',
        attempts: 1,
        cursor: null,
        items_processed: '0',
        accumulated_results: null,
        checkpoint_seq: '0',
      })
    },
  )

  test.each(Object.entries(rests))(
    'starts a new generation when it is claimed (%s)',
    async (status, arrange) => {
      await arrange()
      expect(await claim(db.sql, 'a', { etag: '2', worker_id: 'w2' })).toMatchObject({
        etag: '2',
        generation: '2',
        claim_token: '2',
        attempts: 1,
        cursor: null,
        items_processed: '0',
        accumulated_results: null,
        checkpoint_seq: '0',
      })
      expect((await events(db.sql, 'a')).at(-1)).toMatchObject({
        event: 'overwritten',
        actor: 'w2',
        detail: { old_status: status, generation: 2 },
      })
    },
  )

  test('starts a new generation of a file nobody ever claimed', async () => {
    expect(await register(db.sql, { file_url: 'a', etag: '1' })).toEqual(counts.registered)
    expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.newGeneration)
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      ...fresh,
      generation: '2',
      etag: '2',
      claim_token: '0',
    })
  })

  test('brings what is known of the new content, and keeps what is not said', async () => {
    await register(db.sql, { file_url: 'a', etag: '1', size_bytes: 5, priority: 3, metadata: { from: 'us' } })
    await register(db.sql, { file_url: 'a', etag: '2', file_type: 'json' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      file_type: 'json',
      size_bytes: null,
      priority: 3,
      metadata: { from: 'us' },
    })
    await register(db.sql, { file_url: 'a', etag: '3', size_bytes: 0, priority: 0, metadata: {} })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      size_bytes: '0',
      priority: 0,
      metadata: {},
      generation: '3',
    })
  })

  test('counts only the last of several entries for one file', async () => {
    const files = ['1', '2', '3'].map((etag) => ({ file_url: 'a', etag }))
    expect(await register(db.sql, ...files)).toEqual({
      registered: '1',
      new_generations: '0',
      unchanged: '2',
    })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '3', generation: '1' })
  })

  test('is noted although the pipeline is paused or full', async () => {
    await pick(rests, 'completed')()
    await configure(db.sql, { paused: true })
    expect(await tryClaim(db.sql, 'a', { etag: '2' })).toMatchObject({ outcome: 'paused' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
  })
})

describe('rule 6.11: the etag a file has', () => {
  test.each(Object.entries(rests))('changes nothing when it comes again (%s)', async (_, arrange) => {
    await arrange()
    const before = await contents(db.sql)
    expect(await register(db.sql, { file_url: 'a', etag: '1', priority: 9 })).toEqual(counts.unchanged)
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(Object.entries(rests))(
    'is not touched by a file without one: the url is the identity (%s)',
    async (_, arrange) => {
      await arrange()
      const before = await contents(db.sql)
      const news = { file_url: 'a', file_timestamp: '2026-06-01T00:00:00Z', size_bytes: 1 }
      expect(await register(db.sql, news)).toEqual(counts.unchanged)
      expect(await contents(db.sql)).toEqual(before)
    },
  )

  test('is the first one it is given, by register_files, without a new generation', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    expect(await register(db.sql, { file_url: 'a', etag: '1' })).toEqual(counts.unchanged)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '1', superseded_by: null, status: 'processing' })
    expect(await complete(db.sql, 'a', claim_token, { etag: '1' })).toBe('completed')
  })

  test('is the first one it is given, on a completed file too', async () => {
    await complete(db.sql, 'a', (await claim(db.sql, 'a')).claim_token)
    expect(await register(db.sql, { file_url: 'a', etag: '1' })).toEqual(counts.unchanged)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '1', status: 'completed', generation: '1' })
    expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.newGeneration)
  })

  test('is the first one it is given, by claim_file', async () => {
    await register(db.sql, { file_url: 'a' })
    expect(await claim(db.sql, 'a', { etag: '1' })).toMatchObject({ etag: '1', generation: '1' })
    expect(await eventNames(db.sql, 'a')).toEqual([])
  })

  test('is the first one it is given, by a claim_file that is refused', async () => {
    await complete(db.sql, 'a', (await claim(db.sql, 'a')).claim_token)
    expect(await tryClaim(db.sql, 'a', { etag: '1' })).toMatchObject({ outcome: 'completed' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '1', status: 'completed', generation: '1' })
  })

  test('is the first one it is given, by complete_file', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    expect(await complete(db.sql, 'a', claim_token, { etag: '1' })).toBe('completed')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '1', status: 'completed', generation: '1' })
  })
})

describe('rule 6.11: a new etag on a file that is being processed', () => {
  const sightings: Record<string, () => Promise<unknown>> = {
    register_files: async () =>
      expect(await register(db.sql, { file_url: 'a', etag: '2', size_bytes: 7, priority: 4 })).toEqual(
        counts.newGeneration,
      ),
    claim_file: async () =>
      expect(await tryClaim(db.sql, 'a', { etag: '2', worker_id: 'w2' })).toMatchObject({ outcome: 'held' }),
  }

  test.each(Object.entries(sightings))('is noted, and the holder goes on (%s)', async (_, see) => {
    const { claim_token } = await claimAndProgress()
    const before = await fileRow(db.sql, 'a')
    await see()
    expect(await fileRow(db.sql, 'a')).toEqual({
      ...before,
      superseded_by: expect.objectContaining({ etag: '2' }),
    })
    expect(await checkpoint(db.sql, 'a', claim_token, 20)).toMatchObject({ checkpoint_seq: '2' })
    expect(await complete(db.sql, 'a', claim_token, { records_total: 20 })).toBe('superseded')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
    expect(await historyOf(db.sql, 'a')).toEqual([])
    expect(await events(db.sql, 'a')).toMatchObject([
      {
        event: 'overwritten',
        actor: 'w1',
        detail: {
          old_etag: '1',
          new_etag: '2',
          generation: 2,
          old_status: 'processing',
          old_items_processed: 20,
        },
      },
    ])
  })

  test('keeps what was registered of it for the next generation', async () => {
    const { claim_token } = await claimAndProgress()
    await pick(sightings, 'register_files')()
    await complete(db.sql, 'a', claim_token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ size_bytes: '7', priority: 4, etag: '2' })
  })

  test('is noted once, and the newest counts', async () => {
    const { claim_token } = await claimAndProgress()
    expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.newGeneration)
    const noted = await contents(db.sql)
    expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.unchanged)
    expect(await contents(db.sql)).toEqual(noted)
    expect(await register(db.sql, { file_url: 'a', etag: '3' })).toEqual(counts.newGeneration)
    await complete(db.sql, 'a', claim_token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '3', generation: '2' })
  })

  test('supersedes even when the holder read the new content: nobody can say from when on', async () => {
    const { claim_token } = await claimAndProgress()
    await register(db.sql, { file_url: 'a', etag: '2' })
    expect(await complete(db.sql, 'a', claim_token, { etag: '2' })).toBe('superseded')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, etag: '2', generation: '2' })
  })

  test('may be found by the holder: p_etag is not the claimed one', async () => {
    const { claim_token } = await claimAndProgress()
    expect(await complete(db.sql, 'a', claim_token, { etag: '2' })).toBe('superseded')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, etag: '2', generation: '2' })
    expect(await claim(db.sql, 'a')).toMatchObject({ etag: '2', cursor: null, attempts: 1 })
  })

  test('is none when p_etag is the claimed one', async () => {
    const { claim_token } = await claimAndProgress()
    expect(await complete(db.sql, 'a', claim_token, { etag: '1' })).toBe('completed')
  })

  const takings = Object.keys(ends).flatMap((end) => Object.keys(claimers).map((by) => ({ end, by })))
  test.each(takings)('starts the new generation after $end (claimed by $by)', async ({ end, by }) => {
    const { claim_token } = await claimAndProgress()
    await register(db.sql, { file_url: 'a', etag: '2' })
    await pick(ends, end)(claim_token)
    expect(await pick(claimers, by)()).toMatchObject({
      outcome: 'claimed',
      etag: '2',
      generation: '2',
      claim_token: '2',
      attempts: 1,
      cursor: null,
      items_processed: '0',
      items_total: null,
      accumulated_results: null,
      checkpoint_seq: '0',
    })
    expect(await historyOf(db.sql, 'a')).toEqual([])
    expect((await eventNames(db.sql, 'a')).filter((name) => name === 'overwritten')).toHaveLength(1)
    expect(await eventNames(db.sql, 'a')).not.toContain('dead_lettered')
    // The generation's own checkpoints are numbered from 1.
    expect(await checkpoint(db.sql, 'a', '2', 3, { checkpoint_seq: 1 })).toMatchObject({
      checkpoint_seq: '1',
    })
  })

  test.each(Object.keys(ends))('leaves a zombie of the old content nothing to do after %s', async (end) => {
    const { claim_token } = await claimAndProgress()
    await register(db.sql, { file_url: 'a', etag: '2' })
    await pick(ends, end)(claim_token)
    await claim(db.sql, 'a', { worker_id: 'w2' })
    const before = await contents(db.sql)
    const named = { file_url: 'a', claim_token }
    const calls: Record<string, () => Promise<unknown>> = {
      checkpoint_file: () => checkpoint(db.sql, 'a', claim_token, 50),
      extend_claim: () => call(db.sql, 'extend_claim', named),
      complete_file: () => complete(db.sql, 'a', claim_token),
      fail_file: () => fail(db.sql, 'a', claim_token),
      release_file: () => release(db.sql, 'a', claim_token),
      assert_claim: () => call(db.sql, 'filemark.assert_claim', named),
    }
    for (const [name, write] of Object.entries(calls)) {
      expect(await refusal(write()), name).toMatchObject({ code: 'PT409' })
    }
    expect(await contents(db.sql)).toEqual(before)
  })

  // Requeue says now; everything else leaves the new content its time.
  const scheduled = Object.keys(ends)
    .filter((end) => !end.startsWith('requeue'))
    .flatMap((end) => Object.keys(claimers).map((by) => ({ end, by })))
  test.each(scheduled)('is not claimed before its time after $end (by $by)', async ({ end, by }) => {
    const { claim_token } = await claimAndProgress()
    await register(db.sql, { file_url: 'a', etag: '2', available_at: '2999-01-01T00:00:00Z' })
    await pick(ends, end)(claim_token)
    const row = await pick(claimers, by)()
    expect(row?.outcome ?? 'waiting').toBe('waiting')
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'waiting' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
  })

  test('is not given to a worker of the old type, nor in the old place, after a crash', async () => {
    await claimAndProgress()
    await register(
      db.sql,
      { file_url: 'a', etag: '2', file_type: 'json', priority: -1 },
      { file_url: 'b', file_type: 'json' },
    )
    await expireLease(db.sql)
    expect(await claimNext(db.sql, 10, { worker_id: 'csv', file_type: 'csv' })).toEqual([])
    const rows = await claimNext(db.sql, 10, { worker_id: 'json', file_type: 'json' })
    expect(rows.map((row) => row.file_url)).toEqual(['b', 'a'])
  })
})

describe('rule 6.11: where overwrites are ignored, another etag', () => {
  beforeEach(() => configure(db.sql, { on_overwrite: 'ignore' }))

  test.each(Object.entries(rests))(
    'changes nothing on a file that is not being processed (%s)',
    async (status, arrange) => {
      await arrange()
      const before = await contents(db.sql)
      expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.unchanged)
      expect(await contents(db.sql)).toEqual(before)
      const row = await tryClaim(db.sql, 'a', { etag: '2' })
      if (status === 'pending')
        expect(row).toMatchObject({ outcome: 'claimed', etag: '1', items_processed: '10' })
      else expect(row).toMatchObject({ outcome: status === 'failed' ? 'waiting' : status })
      expect(await fileRow(db.sql, 'a')).toMatchObject({ generation: '1', etag: '1' })
    },
  )

  test('changes nothing on a file that is being processed, which completes', async () => {
    const { claim_token } = await claimAndProgress()
    const before = await contents(db.sql)
    expect(await register(db.sql, { file_url: 'a', etag: '2' })).toEqual(counts.unchanged)
    expect(await tryClaim(db.sql, 'a', { etag: '2' })).toMatchObject({ outcome: 'held' })
    expect(await contents(db.sql)).toEqual(before)
    expect(await complete(db.sql, 'a', claim_token, { etag: '2' })).toBe('completed')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed', etag: '1', generation: '1' })
  })

  test('lets a takeover resume where the holder before was', async () => {
    await claimAndProgress()
    await expireLease(db.sql)
    expect(await claim(db.sql, 'a', { etag: '2', worker_id: 'w2' })).toMatchObject({
      generation: '1',
      items_processed: '10',
      cursor: { next: 10 },
      attempts: 2,
    })
  })

  test('is taken when it is the first', async () => {
    await complete(db.sql, 'a', (await claim(db.sql, 'a')).claim_token)
    await register(db.sql, { file_url: 'a', etag: '1' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'completed', etag: '1', generation: '1' })
  })
})

describe('rule 6.11: news and the end of a claim meet under the lock:', { tags: 'sessions' }, () => {
  test('news first: the completion is superseded', async () => {
    const { claim_token } = await claimAndProgress()
    await one.sql`begin`
    await register(one.sql, { file_url: 'a', etag: '2' })
    const completed = started(complete(two.sql, 'a', claim_token))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await completed).toBe('superseded')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
  })

  test('the completion first: the news start a generation', async () => {
    const { claim_token } = await claimAndProgress()
    await one.sql`begin`
    expect(await complete(one.sql, 'a', claim_token)).toBe('completed')
    const registered = started(register(two.sql, { file_url: 'a', etag: '2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await registered).toEqual(counts.newGeneration)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ ...fresh, generation: '2', etag: '2' })
  })

  test('news first: the claim gets the new generation', async () => {
    await register(db.sql, { file_url: 'a', etag: '1' })
    await one.sql`begin`
    await register(one.sql, { file_url: 'a', etag: '2' })
    const claimed = started(tryClaim(two.sql, 'a'))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await claimed).toMatchObject({ outcome: 'claimed', generation: '2', etag: '2' })
  })

  test('the claim first: the news are noted', async () => {
    await register(db.sql, { file_url: 'a', etag: '1' })
    await one.sql`begin`
    await claim(one.sql, 'a')
    const registered = started(register(two.sql, { file_url: 'a', etag: '2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await registered).toEqual(counts.newGeneration)
    expect(await complete(db.sql, 'a', '1')).toBe('superseded')
  })

  test('the takeover first: the news are noted for the new holder', async () => {
    await claimAndProgress()
    await expireLease(db.sql)
    await one.sql`begin`
    expect(await claim(one.sql, 'a', { worker_id: 'w2' })).toMatchObject({
      generation: '1',
      items_processed: '10',
    })
    const registered = started(register(two.sql, { file_url: 'a', etag: '2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    await registered
    expect(await complete(db.sql, 'a', '2')).toBe('superseded')
  })

  test('the news first: the takeover starts the new generation', async () => {
    await claimAndProgress()
    await expireLease(db.sql)
    await one.sql`begin`
    await register(one.sql, { file_url: 'a', etag: '2' })
    const claimed = started(tryClaim(two.sql, 'a', { worker_id: 'w2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await claimed).toMatchObject({
      outcome: 'claimed',
      generation: '2',
      items_processed: '0',
      attempts: 1,
    })
  })

  test('the same news from two sessions start one generation', async () => {
    await complete(db.sql, 'a', (await claimAndProgress()).claim_token)
    await one.sql`begin`
    expect(await register(one.sql, { file_url: 'a', etag: '2' })).toEqual(counts.newGeneration)
    const second = started(register(two.sql, { file_url: 'a', etag: '2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await second).toEqual(counts.unchanged)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ generation: '2' })
  })

  test('one new file from two sessions is registered once', async () => {
    await configure(db.sql, {})
    await one.sql`begin`
    expect(await register(one.sql, { file_url: 'a', etag: '1' })).toEqual(counts.registered)
    const second = started(register(two.sql, { file_url: 'a', etag: '2' }))
    await untilLocked(db.sql, two.pid)
    await one.sql`commit`
    expect(await second).toEqual(counts.newGeneration)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ etag: '2', generation: '2' })
  })
})
