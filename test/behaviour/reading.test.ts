import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import {
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  fail,
  only,
  register,
  release,
  tryClaim,
} from './calls.ts'
import { contents, empty, fileRow } from './tables.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
})
beforeEach(() => empty(db.sql))
afterAll(() => db.drop())

async function completeWith(url: string, counts: Record<string, unknown>): Promise<void> {
  await complete(db.sql, url, (await claim(db.sql, url)).claim_token, counts)
}

/** One file of each state. */
async function arrangeAll(): Promise<void> {
  await register(db.sql, { file_url: 'pending', available_at: '2026-01-01T00:00:00Z' })
  await claim(db.sql, 'processing')
  await completeWith('completed', { records_total: 100, records_filtered: 20, records_persisted: 80 })
  await fail(db.sql, 'failed', (await claim(db.sql, 'failed')).claim_token)
  await fail(db.sql, 'dead', (await claim(db.sql, 'dead')).claim_token, { retryable: false })
  await register(db.sql, { file_url: 'skipped' })
  await call(db.sql, 'skip_file', { file_url: 'skipped' })
}

describe('pipeline_stats', () => {
  test('counts the files of each state, and what was loaded', async () => {
    await arrangeAll()
    const row = only(await call(db.sql, 'pipeline_stats'))
    expect(row).toEqual({
      pipeline: 'default',
      pending: '1',
      processing: '1',
      completed: '1',
      failed: '1',
      dead_letter: '1',
      skipped: '1',
      total: '6',
      oldest_pending_age_seconds: expect.any(Number),
      records_total: '100',
      records_filtered: '20',
      records_persisted: '80',
      records_rejected: '0',
      failure_ratio: 2 / 3,
      last_completed_at: (await fileRow(db.sql, 'completed')).completed_at,
    })
    expect(row.oldest_pending_age_seconds).toBeGreaterThan(86_400)
  })

  test('answers for one pipeline, or for all by name, and nothing for one never used', async () => {
    for (const pipeline of ['b', 'a']) await tryClaim(db.sql, 'f', { pipeline })
    expect((await call(db.sql, 'pipeline_stats')).map((row) => row.pipeline)).toEqual(['a', 'b'])
    expect(await call(db.sql, 'pipeline_stats', { pipeline: 'b' })).toMatchObject([{ processing: '1' }])
    expect(await call(db.sql, 'pipeline_stats', { pipeline: 'never used' })).toEqual([])
  })

  test('has no age and no ratio where there is nothing to tell', async () => {
    await register(db.sql, { file_url: 'later', available_at: '2999-01-01T00:00:00Z' })
    await claim(db.sql, 'held')
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([
      { oldest_pending_age_seconds: null, failure_ratio: null, last_completed_at: null, pending: '1' },
    ])
  })

  test('adds up what is beyond 2^31', async () => {
    for (const url of ['a', 'b']) {
      await completeWith(url, { records_total: 3_000_000_000, records_filtered: 2_200_000_000 })
    }
    expect(await call(db.sql, 'pipeline_stats')).toMatchObject([
      { records_total: '6000000000', records_filtered: '4400000000' },
    ])
  })

  test('still answers, for all pipelines, when one claims to have loaded more than there are numbers', async () => {
    const most = '9223372036854775807'
    await db.sql`select from claim_file('a', 'csv', '2026-01-01', 'w1')`
    await db.sql`select from claim_file('b', 'csv', '2026-01-01', 'w1')`
    for (const url of ['a', 'b']) {
      await db.sql`select from complete_file(${url}, 1, ${most}, ${most}, ${most})`
    }
    await tryClaim(db.sql, 'f', { pipeline: 'other' })
    const rows = await db.sql`
      select pipeline, completed::int, records_total, records_filtered, records_persisted from pipeline_stats()`
    expect(rows).toEqual([
      {
        pipeline: 'default',
        completed: 2,
        records_total: most,
        records_filtered: most,
        records_persisted: most,
      },
      { pipeline: 'other', completed: 0, records_total: '0', records_filtered: '0', records_persisted: '0' },
    ])
  })
})

describe('list_file_checkpoints', () => {
  test('gives the rows of get_file_checkpoint by url, page by page', async () => {
    await arrangeAll()
    const all = await call(db.sql, 'list_file_checkpoints')
    const urls = ['completed', 'dead', 'failed', 'pending', 'processing', 'skipped']
    expect(all.map((row) => row.file_url)).toEqual(urls)
    for (const row of all) expect(row).toEqual(await fileRow(db.sql, String(row.file_url)))

    const pages = []
    for (const after of [null, 'dead', 'pending', 'skipped']) {
      const page = await call(db.sql, 'list_file_checkpoints', { limit: 2, after })
      pages.push(page.map((row) => row.file_url))
    }
    expect(pages).toEqual([['completed', 'dead'], ['failed', 'pending'], ['processing', 'skipped'], []])
  })

  test.each(['pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped'])(
    'gives those that are %s, and no others',
    async (status) => {
      await arrangeAll()
      const rows = await call(db.sql, 'list_file_checkpoints', { status })
      expect(rows.map((row) => [row.file_url, row.status])).toEqual([
        [status === 'dead_letter' ? 'dead' : status, status],
      ])
    },
  )

  test('gives nothing of another pipeline, nor of one never used', async () => {
    await arrangeAll()
    expect(await call(db.sql, 'list_file_checkpoints', { pipeline: 'other' })).toEqual([])
  })

  test('goes on behind a url that is no more', async () => {
    await register(db.sql, { file_url: 'a' }, { file_url: 'c' })
    const rows = await call(db.sql, 'list_file_checkpoints', { after: 'b' })
    expect(rows.map((row) => row.file_url)).toEqual(['c'])
  })
})

describe('get_file_checkpoint', () => {
  test('has every column of the file but the request id, and nothing for a file nobody knows', async () => {
    await register(db.sql, { file_url: 'a' })
    const columns = await db.sql<{ name: string }[]>`
      select attname as name from pg_attribute
       where attrelid = 'filemark.file_checkpoints'::regclass and attnum > 0 and attname <> 'request_id'`
    const row = only(await call(db.sql, 'get_file_checkpoint', { file_url: 'a' }))
    expect(Object.keys(row).sort()).toEqual(columns.map(({ name }) => name).sort())
    expect(await call(db.sql, 'get_file_checkpoint', { file_url: 'b' })).toEqual([])
    expect(await call(db.sql, 'get_file_checkpoint', { file_url: 'a', pipeline: 'other' })).toEqual([])
  })

  test('and all the others that read write nothing', async () => {
    await arrangeAll()
    await checkpoint(db.sql, 'processing', '1', 5)
    const before = await contents(db.sql)
    await fileRow(db.sql, 'processing')
    await call(db.sql, 'list_file_checkpoints')
    await call(db.sql, 'pending_files', { file_urls: ['pending', 'processing', 'unknown'] })
    await call(db.sql, 'pipeline_stats')
    expect(await contents(db.sql)).toEqual(before)
  })

  test('shows who had the file last, when nobody has it now', async () => {
    await register(db.sql, { file_url: 'a' })
    expect(await fileRow(db.sql, 'a')).toMatchObject({
      processed_by: null,
      started_at: null,
      claim_ended: null,
    })
    const { claim_token } = only(await claimNext(db.sql, 1, { worker_id: 'w7' }))
    await release(db.sql, 'a', claim_token)
    expect(await fileRow(db.sql, 'a')).toMatchObject({ processed_by: 'w7', claim_ended: 'released' })
  })
})
