import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { until } from '../wait.ts'
import {
  type Claim,
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
  tryClaim,
} from './calls.ts'
import { contents, empty, eventNames, expireLease, fileRow, makeDue } from './tables.ts'

// The 14 defects of the pattern that filemark grew out of (a table file_checkpoints with claim_file, complete_file and
// fail_file), and the faults that its peers were reported for: what holds here instead. Most of it is shown by tests of
// other files; `shownIn` names them, and fails when they are gone. The rest is shown here.
//
// Not here yet, because the functions come later: truncating a long history, and purging files without forgetting them.

/** A test for each title that is to be found in the source of another file; a rule's number may stand before it. */
function shownIn(file: string, ...titles: string[]): void {
  test.each(titles)(`is shown in ${file}: %s`, (title) => {
    const source = readFileSync(new URL(`../${file}`, import.meta.url), 'utf8')
    const spellings = [`${title.replaceAll("'", "\\'")}'`, `${title}"`, `${title}\``]
    expect(spellings.filter((spelling) => source.includes(spelling))).not.toEqual([])
  })
}

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
  await db.sql.unsafe(`
    create table loaded (file_url text, n int);
    create table target (id int primary key);`)
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

describe('defect 1: the file of a worker that crashed is claimed again', () => {
  shownIn(
    'crash/crash.test.ts',
    'no record is lost or repeated by SIGKILL of workers and crashes of the server',
  )
  shownIn('behaviour/claims.test.ts', 'by %s keeps the checkpoint and counts an attempt')
  shownIn(
    'behaviour/reclaim.test.ts',
    'gives lost files back with their checkpoint, and buries those that have no attempt left',
  )
})

describe('defect 2: registered files can be claimed, by name and out of the queue', () => {
  shownIn(
    'behaviour/claims.test.ts',
    'claim 2,000 files by claim_file: one winner per file, none left over',
    'claim 2,000 files by claim_next_files, %i at a time: one winner per file, none left over',
  )
})

describe('defect 3: every function that a worker calls is there, and answers over the API', () => {
  shownIn('security/postgrest.test.ts', 'goes from the registration to the completion')
  shownIn('security/grants.test.ts', 'all functions of public are tried')
  shownIn('sdk/lost-answers.test.ts', 'a function that is not there says so')
})

describe('defect 4: a claim is ended by its holder only, and once', () => {
  shownIn(
    'behaviour/zombies.test.ts',
    'can do nothing with any function (the other is worker %s)',
    'rule 6.1: a token that was never given is no claim (%s)',
  )
  shownIn('behaviour/repeats.test.ts', 'complete_file, which says so')

  /** How a claim may end, and how it may be tried to end or to go on afterwards, by the same token. */
  const ends: Record<string, (token: string) => Promise<unknown>> = {
    complete_file: (token) => complete(db.sql, 'a', token),
    fail_file: (token) => fail(db.sql, 'a', token),
    'fail_file for good': (token) => fail(db.sql, 'a', token, { retryable: false }),
    release_file: (token) => release(db.sql, 'a', token),
  }
  const laters: Record<string, (token: string) => Promise<unknown>> = {
    ...ends,
    checkpoint_file: (token) => checkpoint(db.sql, 'a', token, 20),
    extend_claim: (token) => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
    assert_claim: (token) => call(db.sql, 'filemark.assert_claim', { file_url: 'a', claim_token: token }),
    persist_records: (token) =>
      call(db.sql, 'persist_records', {
        file_url: 'a',
        claim_token: token,
        target: 'target',
        records: [{ id: 1 }],
        cursor: 1,
        items_processed: 20,
      }),
  }
  const kind = (name: string) => name.replace(' for good', '')
  const cases = Object.keys(ends).flatMap((end) =>
    Object.keys(laters)
      .filter((later) => kind(later) !== kind(end))
      .map((later) => ({ end, later })),
  )

  test.each(cases)('$later after $end finds the claim lost, and changes nothing', async ({ end, later }) => {
    const { claim_token } = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', claim_token, 10)
    await pick(ends, end)(claim_token)
    const before = await contents(db.sql)
    expect(await refusal(pick(laters, later)(claim_token))).toEqual({
      code: 'PT409',
      message: 'claim 1 on file "a" is lost',
    })
    expect(await contents(db.sql)).toEqual(before)
  })

  test.each(Object.keys(ends))(
    'complete_and_claim_next after %s says so, and changes nothing',
    async (end) => {
      const { claim_token } = await claim(db.sql, 'a')
      await pick(ends, end)(claim_token)
      const before = await contents(db.sql)
      const completions = [{ file_url: 'a', claim_token: Number(claim_token) }]
      const rows = await call(db.sql, 'complete_and_claim_next', {
        worker_id: 'w1',
        completions,
        file_type: 'none',
      })
      expect(rows.map((row) => row.outcome)).toEqual(end === 'complete_file' ? [] : ['claim_lost'])
      expect(await contents(db.sql)).toEqual(before)
    },
  )
})

describe('defect 5: without the database there is an error, never a private memory', () => {
  shownIn(
    'sdk/lost-answers.test.ts',
    'a server that is not there is unavailable, over each driver',
    'after the last try the call is unavailable, with the reason',
    'a server that is shutting down is waited for',
  )
  shownIn(
    'sdk/embedded.test.ts',
    'a directory that another process has open is refused; when that was killed, its file is resumed at once',
  )
})

describe('defect 6: attempts mean the same everywhere: claims at one position, the first included', () => {
  shownIn(
    'behaviour/budget.test.ts',
    'is a dead letter after exactly $max_attempts claims by $way',
    'is a dead letter after exactly %i attempts',
    'shares one budget with the times it killed its worker',
  )
  shownIn('sdk/process-file.test.ts', 'that throws fails the attempt, until the budget is spent')
})

describe('defect 7: retries wait longer and longer, and hopeless errors are not retried', () => {
  shownIn(
    'behaviour/budget.test.ts',
    'is base x 2^(attempts - 1), give or take the jitter',
    'never exceeds the cap, with jitter or after a thousand attempts',
    'with an error that is not retryable is a dead letter at once',
  )
  shownIn('sdk/checkpoints.test.ts', 'PermanentError is for good, RetryAfterError says when')
})

describe('defect 8: a worker asks for work without knowing a name, and waits for nobody', () => {
  shownIn(
    'behaviour/claims.test.ts',
    'gives the highest priority first, then the longest available',
    'claim_next_files does not wait for $name on $start file: it takes the next',
  )
})

describe('defect 9: a file is resumed inside, from its cursor', () => {
  shownIn('behaviour/claims.test.ts', 'by %s keeps the checkpoint and counts an attempt')

  test.each([0, 1, 2, 3, 4])(
    'the cursor is the next position: a crash after %i batches repeats no item and leaves none out',
    async (batches) => {
      const total = 10
      /** Loads batches of three from where the claim stands; a batch and its checkpoint are one transaction. */
      async function load(claimed: Claim, most: number): Promise<void> {
        let next = (claimed.cursor as { next: number } | null)?.next ?? 0
        for (let batch = 0; batch < most && next < total; batch += 1) {
          const records = [0, 1, 2].map((n) => ({ file_url: 'a', n: next + n })).filter(({ n }) => n < total)
          next += records.length
          await call(db.sql, 'persist_records', {
            file_url: 'a',
            claim_token: claimed.claim_token,
            target: 'loaded',
            records,
            cursor: { next },
            items_processed: next,
          })
        }
      }
      await load(await claim(db.sql, 'a', { worker_id: 'w1' }), batches)
      await expireLease(db.sql)
      const second = await claim(db.sql, 'a', { worker_id: 'w2' })
      expect(second.items_processed).toBe(String(Math.min(batches * 3, total)))
      await load(second, 100)
      await complete(db.sql, 'a', second.claim_token, { records_total: total })
      const rows = await db.sql<{ n: number }[]>`select n from loaded order by n`
      expect(rows.map(({ n }) => n)).toEqual(Array.from({ length: total }, (_, n) => n))
      expect(await fileRow(db.sql, 'a')).toMatchObject({ records_persisted: '10', items_processed: '10' })
    },
  )

  test('records passed over before a crash are not met again after it, and stay counted', async () => {
    const first = await claim(db.sql, 'a')
    // Record 3 was bad, and passed over; 5 is next.
    await checkpoint(db.sql, 'a', first.claim_token, 5, {
      cursor: { next: 5 },
      accumulated_results: { passed_over: [3] },
    })
    await expireLease(db.sql)
    const second = await claim(db.sql, 'a', { worker_id: 'w2' })
    expect(second).toMatchObject({ cursor: { next: 5 }, accumulated_results: { passed_over: [3] } })
    await complete(db.sql, 'a', second.claim_token, { records_total: 10, records_filtered: 1 })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      records_filtered: '1',
      accumulated_results: { passed_over: [3] },
    })
  })

  test('a cursor of a megabyte that cannot be compressed is kept as it is', async () => {
    const cursor = { listing: randomBytes(700_000).toString('base64') }
    const first = await claim(db.sql, 'a')
    await checkpoint(db.sql, 'a', first.claim_token, 1, { cursor })
    await checkpoint(db.sql, 'a', first.claim_token, 2, { cursor })
    await expireLease(db.sql)
    const second = only(await claimNext(db.sql, 1, { worker_id: 'w2' }))
    expect(second.cursor).toEqual(cursor)
    await checkpoint(db.sql, 'a', second.claim_token, 3)
    await call(db.sql, 'requeue_file', { file_url: 'a', from: 'checkpoint:1', force: true })
    expect((await claim(db.sql, 'a')).cursor).toEqual(cursor)
  })

  test('a checkpoint that cannot be saved does not cost the claim: the file can still be failed', async () => {
    await configure(db.sql, { cursor_limit_bytes: 100 })
    const { claim_token } = await claim(db.sql, 'a')
    const tooLarge = checkpoint(db.sql, 'a', claim_token, 1, { cursor: 'x'.repeat(200).split('') })
    expect(await refusal(tooLarge)).toMatchObject({ code: 'PT413' })
    expect(await fail(db.sql, 'a', claim_token, { error_message: 'cursor too large' })).toMatchObject({
      status: 'failed',
    })
  })
})

describe('defect 10: a file is known by its name, its content by the etag, and its time is only told', () => {
  shownIn(
    'behaviour/overwrites.test.ts',
    'starts a new generation when it is registered (%s)',
    'is noted, and the holder goes on (%s)',
    'changes nothing when it comes again (%s)',
  )

  const times: Record<string, string> = {
    older: '2020-01-01T00:00:00Z',
    'of the same second': '2026-01-01T00:00:00Z',
    'before all time': '1970-01-01T00:00:00Z',
    'of a clock far ahead': '9999-12-31T23:59:59Z',
  }
  test.each(Object.entries(times))(
    'a file that comes late is not left out for its time: %s',
    async (_, file_timestamp) => {
      await register(db.sql, { file_url: 'a' }, { file_url: 'b' })
      for (const { file_url, claim_token } of await claimNext(db.sql, 2)) {
        await complete(db.sql, file_url, claim_token)
      }
      expect(await register(db.sql, { file_url: 'late', file_timestamp })).toMatchObject({ registered: '1' })
      const late = only(await claimNext(db.sql))
      expect(late).toMatchObject({ file_url: 'late', file_timestamp: new Date(file_timestamp) })
      expect(await complete(db.sql, 'late', late.claim_token)).toBe('completed')
    },
  )

  test('files of the same second are all claimed, each once, in the order they became available', async () => {
    const urls = Array.from({ length: 20 }, (_, index) => `file ${String(index).padStart(2, '0')}`)
    await register(db.sql, ...urls.map((file_url) => ({ file_url })))
    const claimed = []
    for (let round = 0; round < 5; round += 1) claimed.push(...(await claimNext(db.sql, 4)))
    expect(claimed.map(({ file_url }) => file_url)).toEqual(urls)
    expect(await claimNext(db.sql, 4)).toEqual([])
  })

  test('a file that is finished before an earlier one leaves the earlier one to be done', async () => {
    await register(db.sql, { file_url: 'a' }, { file_url: 'b' }, { file_url: 'c' })
    const [a, b, c] = await claimNext(db.sql, 3)
    await complete(db.sql, 'c', c?.claim_token ?? '')
    await fail(db.sql, 'a', a?.claim_token ?? '', { retry_after_seconds: 0 })
    await expireLease(db.sql, 'b')
    expect(b?.file_url).toBe('b')
    expect((await claimNext(db.sql, 3)).map((row) => row.file_url).sort()).toEqual(['a', 'b'])
  })

  test('the same content under two names is two files; a unique key of the target keeps it once', async () => {
    const records = [{ id: 1 }, { id: 2 }]
    await register(db.sql, { file_url: 'june.csv', etag: 'e1' }, { file_url: 'june (2).csv', etag: 'e1' })
    const persisted = []
    for (const { file_url, claim_token } of await claimNext(db.sql, 2)) {
      const batch = { file_url, claim_token, target: 'target', records, cursor: 2, items_processed: 2 }
      const answer = only(await call(db.sql, 'persist_records', batch))
      persisted.push(answer.records_persisted)
      await complete(db.sql, file_url, claim_token, { records_total: 2 })
    }
    expect(persisted).toEqual(['2', '0'])
    expect(await db.sql`select id from target order by id`).toEqual(records)
  })

  test('an empty file is completed without a checkpoint, and not done again', async () => {
    await register(db.sql, { file_url: 'a', size_bytes: 0 })
    const { claim_token } = only(await claimNext(db.sql))
    expect(await complete(db.sql, 'a', claim_token)).toBe('completed')
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      status: 'completed',
      size_bytes: '0',
      cursor: null,
      checkpoint_seq: '0',
      items_processed: '0',
      records_total: '0',
    })
    await register(db.sql, { file_url: 'a', size_bytes: 0 })
    expect(await claimNext(db.sql)).toEqual([])
    expect(await tryClaim(db.sql, 'a')).toMatchObject({ outcome: 'completed' })
  })

  test('a file that was deleted between discovery and claim ends as a dead letter, alone, until it is back', async () => {
    await register(db.sql, { file_url: 'gone', etag: '1', priority: 1 }, { file_url: 'there' })
    const { claim_token } = only(await claimNext(db.sql))
    await fail(db.sql, 'gone', claim_token, { error_message: '404 Not Found', retryable: false })
    expect(await claimNext(db.sql, 10)).toMatchObject([{ file_url: 'there' }])
    await register(db.sql, { file_url: 'gone', etag: '2' })
    expect(await claimNext(db.sql, 10)).toMatchObject([{ file_url: 'gone', generation: '2', attempts: 1 }])
  })

  test('content that comes back while the file is processed is what the next generation is made of', async () => {
    const { claim_token } = await claim(db.sql, 'a', { etag: '1' })
    await register(db.sql, { file_url: 'a', etag: '2' })
    await register(db.sql, { file_url: 'a', etag: '1' })
    expect(await complete(db.sql, 'a', claim_token)).toBe('superseded')
    expect(await fileRow(db.sql, 'a')).toMatchObject({ status: 'pending', generation: '2', etag: '1' })
  })
})

describe('defect 11: a dead letter is a state of its own', () => {
  shownIn('behaviour/requeue.test.ts', 'puts a %s file back at its last checkpoint, with a full budget')

  test('which is counted, listed and answered apart from a file that waits for its retry', async () => {
    await fail(db.sql, 'waits', (await claim(db.sql, 'waits')).claim_token)
    await fail(db.sql, 'dead', (await claim(db.sql, 'dead')).claim_token, { retryable: false })
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([
      { failed: '1', dead_letter: '1', total: '2' },
    ])
    for (const [status, url, outcome] of [
      ['failed', 'waits', 'waiting'],
      ['dead_letter', 'dead', 'dead_letter'],
    ] as const) {
      expect(await call(db.sql, 'list_file_checkpoints', { status })).toMatchObject([{ file_url: url }])
      expect(await tryClaim(db.sql, url)).toMatchObject({ outcome })
    }
    await makeDue(db.sql, 'waits')
    await makeDue(db.sql, 'dead')
    expect(await claimNext(db.sql, 10)).toMatchObject([{ file_url: 'waits' }])
  })
})

describe('defect 12: counters do not overflow', () => {
  shownIn('security/postgrest.test.ts', 'gets bigints as JSON numbers, with every digit')
  shownIn('behaviour/reading.test.ts', 'adds up what is beyond 2^31')

  test('beyond 2^31 records, bytes and items, and beyond 24.8 days', async () => {
    const many = 5_000_000_000
    await register(db.sql, { file_url: 'a', size_bytes: many })
    const { claim_token } = only(await claimNext(db.sql))
    await checkpoint(db.sql, 'a', claim_token, many, { items_total: many })
    await complete(db.sql, 'a', claim_token, {
      records_total: many,
      records_filtered: many,
      records_persisted: many,
      processing_time_ms: many,
    })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      size_bytes: `${many}`,
      items_processed: `${many}`,
      items_total: `${many}`,
      records_total: `${many}`,
      records_filtered: `${many}`,
      records_persisted: `${many}`,
      processing_time_ms: `${many}`,
    })
  })

  test('of a claim that took 40 days', async () => {
    const { claim_token } = await claim(db.sql, 'a')
    await db.sql`update filemark.file_checkpoints set started_at = started_at - interval '40 days'`
    await complete(db.sql, 'a', claim_token)
    expect(Number((await fileRow(db.sql, 'a')).processing_time_ms)).toBeGreaterThanOrEqual(40 * 86_400_000)
  })
})

describe('defect 13: nobody but the roles it is for can call or read anything', () => {
  shownIn(
    'security/grants.test.ts',
    'each function can be called by those whom it is for and by nobody else',
    'is answered or refused as it should be by %s',
    'pins its search_path, to nothing when it has the rights of the installer',
    'only monitors, operators and service_role read tables, and nobody writes them',
  )
  shownIn('sdk/lost-answers.test.ts', 'a role that may not call the functions is told so at once')
})

describe('defect 14: operators have calls for what they do, and what they did is on record', () => {
  shownIn(
    'behaviour/requeue.test.ts',
    'puts a %s file back at the start',
    'takes a file from its holder by force, whose token is dead at once',
    'says in the audit who did it, why, from where, and what was there',
    '$echo (it was $before)',
  )
  shownIn(
    'behaviour/skip.test.ts',
    'takes a %s file out of the queue, and keeps its checkpoint',
    'says in the audit who did it and why, and what was there (%s)',
    '$echo (it was $was)',
  )
  shownIn('behaviour/limits.test.ts', 'lets a running claim go on with %s')
})

describe('what its peers were reported for:', () => {
  describe('a kill between the rows and the completion', () => {
    shownIn(
      'crash/crash.test.ts',
      'no record is lost or repeated by SIGKILL of workers and crashes of the server',
    )

    const batch = [{ n: 1 }, { n: 2 }]
    /** A session of a worker that claims file a, loads its rows and saves its checkpoint. */
    async function beginLoading(): Promise<{ pid: number; commit: () => Promise<unknown> }> {
      await claim(db.sql, 'a')
      const { sql, pid } = await db.connect()
      await sql`begin`
      await call(sql, 'filemark.assert_claim', { file_url: 'a', claim_token: 1 })
      for (const { n } of batch) await sql`insert into loaded values ('a', ${n})`
      await checkpoint(sql, 'a', '1', 2)
      return { pid, commit: () => sql`commit` }
    }
    async function kill(pid: number): Promise<void> {
      await db.sql`select pg_terminate_backend(${pid})`
      await until(async () => (await db.sql`select from pg_stat_activity where pid = ${pid}`).length === 0, {
        what: 'the session to be gone',
      })
      await expireLease(db.sql)
    }
    async function loadRest(): Promise<Claim> {
      const taken = await claim(db.sql, 'a', { worker_id: 'w2' })
      const from = (taken.cursor as { next: number } | null)?.next ?? 0
      for (const { n } of batch.slice(from)) await db.sql`insert into loaded values ('a', ${n})`
      await complete(db.sql, 'a', taken.claim_token)
      return taken
    }

    test('before the commit leaves neither rows nor checkpoint', { tags: 'sessions' }, async () => {
      const { pid } = await beginLoading()
      await kill(pid)
      expect(await db.sql`select from loaded`).toHaveLength(0)
      expect(await loadRest()).toMatchObject({ cursor: null, items_processed: '0' })
      expect(await db.sql`select n from loaded order by n`).toEqual(batch)
    })

    test('after the commit leaves both, and the next worker loads nothing again', {
      tags: 'sessions',
    }, async () => {
      const { pid, commit } = await beginLoading()
      await commit()
      await kill(pid)
      expect(await loadRest()).toMatchObject({ cursor: { next: 2 }, items_processed: '2', attempts: 2 })
      expect(await db.sql`select n from loaded order by n`).toEqual(batch)
    })
  })

  describe('a heartbeat of the holder before, under the same worker name', () => {
    shownIn('behaviour/zombies.test.ts', 'can do nothing with any function (the other is worker %s)')
  })

  describe('a single file that takes longer than a lease', () => {
    shownIn('sdk/process-file.test.ts', 'is renewed while the handler runs')
    shownIn('behaviour/zombies.test.ts', 'has its lease renewed by a checkpoint, and completes')
    shownIn(
      'behaviour/claims.test.ts',
      'rule 6.2: leaves a lease alone that was renewed, though its timer fired',
    )

    test("stays its holder's through any number of leases, and costs no attempt", async () => {
      const { claim_token } = await claim(db.sql, 'a')
      for (let lease = 1; lease <= 10; lease += 1) {
        await expireLease(db.sql)
        if (lease % 2 === 0) await checkpoint(db.sql, 'a', claim_token, lease)
        else await call(db.sql, 'extend_claim', { file_url: 'a', claim_token })
        expect(await tryClaim(db.sql, 'a', { worker_id: 'w2' })).toMatchObject({ outcome: 'held' })
        expect(await claimNext(db.sql, 1, { worker_id: 'w2' })).toEqual([])
        expect(await call(db.sql, 'filemark.reclaim_stale_claims')).toEqual([])
      }
      expect(await complete(db.sql, 'a', claim_token)).toBe('completed')
      expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_token, attempts: 1 })
      expect(await eventNames(db.sql, 'a')).toEqual([])
    })
  })

  describe('a reclaim at the last attempt, or of a claim that ended a moment before', () => {
    shownIn('behaviour/budget.test.ts', 'is a dead letter after exactly $max_attempts claims by $way')
    shownIn('behaviour/overwrites.test.ts', 'starts the new generation after $end (claimed by $by)')
    shownIn(
      'behaviour/collisions.test.ts',
      '$holder, then $taker; the holder: $end',
      '$taker, then $holder; the takeover: $end',
    )
  })

  describe('the same key with new content while the old one is processed', () => {
    shownIn('behaviour/overwrites.test.ts', 'starts the new generation after $end (claimed by $by)')
  })

  describe('a pause while claims are out', () => {
    shownIn('behaviour/claims.test.ts', 'gives no claims, and lets those that run go on and finish')
    shownIn('behaviour/limits.test.ts', 'completes in complete_and_claim_next, and gives nothing')
  })

  describe('a history of 10,000 checkpoints', () => {
    shownIn('cost/hot.test.ts', '10,000 checkpoints are all HOT and the table does not grow')

    test('is dropped by one requeue, and a checkpoint after it is the first again', async () => {
      const { claim_token } = await claim(db.sql, 'a')
      await checkpoint(db.sql, 'a', claim_token, 1)
      await db.sql`
        insert into filemark.checkpoint_history
        select h.pipeline, h.file_url, n, h.cursor, h.items_processed, 0, h.claim_token, h.saved_at
          from filemark.checkpoint_history h, generate_series(2, 10000) n`
      await db.sql`update filemark.file_checkpoints set checkpoint_seq = 10000, history_length = 10000`
      expect(await checkpoint(db.sql, 'a', claim_token, 2)).toMatchObject({
        checkpoint_seq: '10001',
        history_length: '10001',
      })
      await call(db.sql, 'requeue_file', { file_url: 'a', from: 'start', force: true })
      expect(await db.sql`select from filemark.checkpoint_history`).toHaveLength(0)
      const again = await claim(db.sql, 'a')
      expect(await checkpoint(db.sql, 'a', again.claim_token, 1)).toMatchObject({ history_length: '1' })
    })
  })

  describe('clocks that disagree', () => {
    shownIn('sdk/connection.test.ts', 'an odd time zone and date style of the session change nothing')
    shownIn(
      'behaviour/collisions.test.ts',
      'rule 6.7: a lease begins when the claim is made, not when it was asked for:',
    )

    /** Every call that reads the clock, in a transaction that began long before. */
    const writes: Record<string, { column: string; run: (token: string) => string }> = {
      claim_file: { column: 'started_at', run: () => `select claim_file('b', 'csv', now(), 'w1')` },
      claim_next_files: { column: 'started_at', run: () => `select claim_next_files('w1')` },
      checkpoint_file: {
        column: 'checkpointed_at',
        run: (token) => `select checkpoint_file('a', ${token}, '1', 1)`,
      },
      extend_claim: {
        column: `lease_expires_at - interval '300 seconds'`,
        run: (token) => `select extend_claim('a', ${token})`,
      },
      complete_file: { column: 'completed_at', run: (token) => `select complete_file('a', ${token})` },
      fail_file: {
        column: 'available_at',
        run: (token) => `select fail_file('a', ${token}, 'x', p_retry_after_seconds => 0)`,
      },
      requeue_file: { column: 'available_at', run: () => `select requeue_file('a', p_force => true)` },
    }
    test.each(Object.entries(writes))(
      'rule 6.7: %s goes by the clock, not by the start of its transaction',
      async (_, { column, run }) => {
        const { claim_token } = await claim(db.sql, 'a')
        await register(db.sql, { file_url: 'b', available_at: '2026-01-01T00:00:00Z' })
        await db.sql.begin(async (tx) => {
          await tx`select now()`
          await until(async () => {
            const [row] = await tx<{ late: boolean }[]>`
              select clock_timestamp() > now() + interval '20 milliseconds' as late`
            return row?.late
          })
          await tx.unsafe(run(claim_token))
          const rows = await tx.unsafe<{ late: boolean }[]>(
            `select max(${column}) > now() + interval '20 milliseconds' as late from filemark.file_checkpoints`,
          )
          expect(only([...rows])).toEqual({ late: true })
        })
      },
    )

    /** What a holder may do when the database's clock was set back by an hour since its claim. */
    const holders: Record<string, (token: string) => Promise<unknown>> = {
      checkpoint_file: (token) => checkpoint(db.sql, 'a', token, 20),
      extend_claim: (token) => call(db.sql, 'extend_claim', { file_url: 'a', claim_token: token }),
      complete_file: (token) => complete(db.sql, 'a', token),
      complete_and_claim_next: (token) =>
        call(db.sql, 'complete_and_claim_next', {
          worker_id: 'w1',
          completions: [{ file_url: 'a', claim_token: Number(token) }],
        }),
      fail_file: (token) => fail(db.sql, 'a', token),
      release_file: (token) => release(db.sql, 'a', token),
    }
    test.each(Object.entries(holders))(
      'a database clock that was set back since the claim keeps no holder from %s',
      async (_, run) => {
        const { claim_token } = await claim(db.sql, 'a')
        await checkpoint(db.sql, 'a', claim_token, 10)
        await db.sql`
          update filemark.file_checkpoints
             set started_at = started_at + interval '1 hour', lease_expires_at = lease_expires_at + interval '1 hour',
                 lease_check_at = lease_check_at + interval '1 hour', created_at = created_at + interval '1 hour',
                 checkpointed_at = checkpointed_at + interval '1 hour'`
        const before = await fileRow(db.sql, 'a')
        expect(await refusal(run(claim_token))).toBeUndefined()
        const after = await fileRow(db.sql, 'a')
        if (after.status === 'processing') expect(after.lease_expires_at).toEqual(before.lease_expires_at)
        if (after.status === 'completed') expect(after.processing_time_ms).toBe('0')
      },
    )
  })
})
