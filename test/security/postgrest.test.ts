import type { SupabaseClient } from '@supabase/supabase-js'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'

// The functions as supabase.rpc sees them: real supabase-js, real PostgREST, service_role, a project with new grants.

const timestamp = '2026-01-01T00:00:00+00:00'

let database: TestDatabase
let rest: PostgrestServer
let supabase: SupabaseClient

beforeAll(async () => {
  database = await createDatabase({ supabase: 'new' })
  await database.sql`create table public.events (file_url text, n bigint, payload jsonb, at timestamptz default now())`
  await database.sql`grant insert on public.events to service_role`
  rest = await startPostgrest({ databaseUrl: database.url })
  supabase = rest.client('service_role')
})

afterEach(() => {
  rest.intercept = undefined
})

afterAll(async () => {
  await rest?.stop()
  await database?.drop()
})

/** A name that no other test has used. */
function newUrl(): string {
  return `https://files.example/${crypto.randomUUID()}.csv`
}

/** Claims a new file of the test's own. */
async function claim(url = newUrl()): Promise<{ p_file_url: string; p_claim_token: number }> {
  const { data } = await supabase
    .rpc('claim_file', {
      p_file_url: url,
      p_file_type: 'csv',
      p_file_timestamp: timestamp,
      p_worker_id: 'worker',
    })
    .throwOnError()
  return { p_file_url: url, p_claim_token: data[0].claim_token }
}

/** Makes a pipeline of the test's own with files that are due. */
async function pipelineOf(...urls: string[]): Promise<string> {
  const pipeline = crypto.randomUUID()
  const files = urls.map((file_url) => ({ file_url, file_type: 'csv', file_timestamp: timestamp }))
  await supabase.rpc('register_files', { p_files: files, p_pipeline: pipeline }).throwOnError()
  return pipeline
}

async function fileOf(url: string, pipeline = 'default'): Promise<Record<string, unknown>> {
  const { data } = await supabase
    .rpc('get_file_checkpoint', { p_file_url: url, p_pipeline: pipeline })
    .throwOnError()
  return data[0]
}

async function countEvents(url: string): Promise<number | undefined> {
  const [row] = await database.sql<{ events: number }[]>`
    select count(*)::int as events from public.events where file_url = ${url}`
  return row?.events
}

describe('a load by supabase.rpc', () => {
  test('goes from the registration to the completion', async () => {
    const url = newUrl()
    const pipeline = crypto.randomUUID()
    const registered = await supabase.rpc('register_files', {
      p_files: [
        { file_url: url, file_type: 'csv', file_timestamp: timestamp, metadata: { source: 'a "b" ✓' } },
      ],
      p_pipeline: pipeline,
    })
    expect(registered).toMatchObject({
      status: 200,
      error: null,
      data: [{ registered: 1, new_generations: 0, unchanged: 0 }],
    })

    const claimed = await supabase.rpc('claim_next_files', { p_worker_id: 'worker', p_pipeline: pipeline })
    expect(claimed.data).toEqual([
      {
        outcome: 'claimed',
        pipeline,
        file_url: url,
        file_type: 'csv',
        file_timestamp: timestamp,
        etag: null,
        size_bytes: null,
        metadata: { source: 'a "b" ✓' },
        generation: 1,
        claim_token: 1,
        attempts: 1,
        max_attempts: 3,
        lease_seconds: 300,
        lease_expires_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/),
        cursor: null,
        items_processed: 0,
        items_total: null,
        accumulated_results: null,
        checkpoint_seq: 0,
      },
    ])

    const held = { p_file_url: url, p_claim_token: 1, p_pipeline: pipeline }
    const persisted = await supabase.rpc('persist_records', {
      ...held,
      p_target: 'events',
      p_records: [
        { file_url: url, n: 1, payload: { ok: true } },
        { file_url: url, n: 2, payload: null },
      ],
      p_cursor: { offset: 2 },
      p_items_processed: 2,
    })
    expect(persisted).toMatchObject({ status: 200, data: [{ records_persisted: 2, checkpoint_seq: 1 }] })
    const saved = await supabase.rpc('checkpoint_file', {
      ...held,
      p_cursor: 'page 3',
      p_items_processed: 3,
      p_accumulated_results: { sum: 0, none: null, empty: '' },
      p_items_total: 3,
    })
    expect(saved).toMatchObject({ status: 200, data: [{ checkpoint_seq: 2, history_length: 2 }] })
    const completed = await supabase.rpc('complete_file', {
      ...held,
      p_records_total: 3,
      p_records_filtered: 1,
    })
    expect(completed).toMatchObject({ status: 200, data: [{ outcome: 'completed' }] })

    expect(await fileOf(url, pipeline)).toMatchObject({
      status: 'completed',
      cursor: 'page 3',
      items_processed: 3,
      accumulated_results: { sum: 0, none: null, empty: '' },
      records_total: 3,
      records_filtered: 1,
      records_persisted: 2,
    })
    expect(await countEvents(url)).toBe(2)
    expect((await supabase.rpc('pipeline_stats', { p_pipeline: pipeline })).data).toMatchObject([
      { pipeline, completed: 1, pending: 0, total: 1, failure_ratio: 0 },
    ])
  })

  test('has scalars and nothing as bare answers', async () => {
    const held = await claim()
    const extended = await supabase.rpc('extend_claim', held)
    expect(extended).toMatchObject({ status: 200, data: expect.stringMatching(/^\d{4}-.*\+00:00$/) })
    expect(await supabase.rpc('release_file', held)).toMatchObject({ status: 204, data: null, error: null })
  })

  test('gets bigints as JSON numbers, with every digit', async () => {
    const held = await claim()
    const most = '9223372036854775807'
    await database.sql`
      select from checkpoint_file(${held.p_file_url}, ${held.p_claim_token}, '1', ${most}, p_items_total => ${most})`
    const response = await fetch(
      `${rest.url}/rest/v1/rpc/get_file_checkpoint?p_file_url=${held.p_file_url}`,
      {
        headers: { apikey: rest.secretKey },
      },
    )
    expect(await response.text()).toContain(`"items_processed":${most},"items_total":${most},`)
  })

  test('takes cursors of every JSON type and gives them back as they were', async () => {
    const held = await claim()
    const cursors = [0, '', 'page-2', false, { byte: 17, parts: [1, 'two', null] }, [1, [2]], 1.5]
    for (const [index, cursor] of cursors.entries()) {
      await supabase
        .rpc('checkpoint_file', { ...held, p_cursor: cursor, p_items_processed: index })
        .throwOnError()
      expect((await fileOf(held.p_file_url)).cursor).toEqual(cursor)
    }
  })
})

describe('an error', () => {
  interface Case {
    call: () => Promise<[name: string, args: Record<string, unknown>]>
    message: string
    details?: string
    hint?: string
  }

  const cases: [code: string, Case][] = [
    [
      'PT400',
      {
        call: async () => ['claim_next_files', { p_worker_id: 'worker', p_limit: 0 }],
        message: 'p_limit must be a number from 1 to 100, not "0"',
      },
    ],
    [
      'PT404',
      {
        call: async () => ['extend_claim', { p_file_url: 'never seen', p_claim_token: 1 }],
        message: 'file "never seen" is unknown in pipeline "default"',
        hint: 'Claim it with claim_file',
      },
    ],
    [
      'PT409',
      {
        call: async () => {
          const held = await claim()
          await supabase.rpc('release_file', held).throwOnError()
          return ['complete_file', held]
        },
        message: 'claim 1 on file',
        details: 'The claim ended (released); the file is now pending.',
        hint: 'Stop working on the file',
      },
    ],
    [
      'PT412',
      {
        call: async () => {
          const held = await claim()
          await supabase
            .rpc('checkpoint_file', { ...held, p_cursor: 1, p_items_processed: 10 })
            .throwOnError()
          return ['checkpoint_file', { ...held, p_cursor: 2, p_items_processed: 9 }]
        },
        message: 'p_items_processed 9 of file',
        hint: 'It is the total done in the file so far',
      },
    ],
    [
      'PT413',
      {
        call: async () => [
          'checkpoint_file',
          { ...(await claim()), p_cursor: 'x'.repeat(1_048_576), p_items_processed: 1 },
        ],
        message: 'p_cursor has 1048578 bytes, the limit is 1048576',
      },
    ],
    [
      'PT422',
      {
        call: async () => ['requeue_file', { p_file_url: (await claim()).p_file_url }],
        message: 'is being processed by worker',
        details: 'Its lease ends at',
        hint: 'p_force => true',
      },
    ],
  ]

  test.each(cases)(
    '%s arrives with its status, message, detail and hint',
    async (code, { call, message, details, hint }) => {
      const [name, args] = await call()
      const { status, error, data } = await supabase.rpc(name, args)
      expect([status, error?.code, data]).toEqual([Number(code.slice(2)), code, null])
      expect(error?.message).toContain(message)
      if (details) expect(error?.details).toContain(details)
      else expect(error?.details).toBeNull()
      if (hint) expect(error?.hint).toContain(hint)
      else expect(error?.hint).toBeNull()
    },
  )

  test('of an argument that does not exist says so before anything happens', async () => {
    const { status, error } = await supabase.rpc('claim_next_files', { p_worker_id: 'worker', p_count: 1 })
    expect([status, error?.code]).toEqual([404, 'PGRST202'])
  })
})

describe('GET', () => {
  test('works on what only reads', async () => {
    const { p_file_url } = await claim()
    const file = await supabase.rpc('get_file_checkpoint', { p_file_url }, { get: true })
    expect(file).toMatchObject({ status: 200, data: [{ file_url: p_file_url, status: 'processing' }] })
    const listed = await supabase.rpc('list_file_checkpoints', { p_limit: 1 }, { get: true })
    expect(listed).toMatchObject({ status: 200, data: [{ pipeline: 'default' }] })
    const fresh = newUrl()
    const pending = await supabase.rpc('pending_files', { p_file_urls: [p_file_url, fresh] }, { get: true })
    expect(pending).toMatchObject({ status: 200, data: [{ file_url: fresh }] })
    const stats = await supabase.rpc('pipeline_stats', {}, { get: true })
    expect(stats).toMatchObject({ status: 200, error: null })
    expect(stats.data).toContainEqual(expect.objectContaining({ pipeline: 'default' }))
  })

  // By GET a jsonb argument arrives as a text, which is no array of ours: those calls end sooner.
  const writing: [code: string, name: string, args: () => Promise<Record<string, unknown>>][] = [
    [
      'PT400',
      'register_files',
      async () => ({
        p_files: JSON.stringify([{ file_url: newUrl(), file_type: 'csv', file_timestamp: timestamp }]),
      }),
    ],
    [
      '25006',
      'claim_file',
      async () => ({
        p_file_url: newUrl(),
        p_file_type: 'csv',
        p_file_timestamp: timestamp,
        p_worker_id: 'worker',
      }),
    ],
    [
      '25006',
      'claim_next_files',
      async () => ({ p_worker_id: 'worker', p_pipeline: await pipelineOf(newUrl()) }),
    ],
    [
      'PT400',
      'complete_and_claim_next',
      async () => ({ p_worker_id: 'worker', p_completions: '[]', p_pipeline: await pipelineOf(newUrl()) }),
    ],
    ['25006', 'checkpoint_file', async () => ({ ...(await claim()), p_cursor: 1, p_items_processed: 1 })],
    ['25006', 'extend_claim', () => claim()],
    ['25006', 'complete_file', () => claim()],
    ['25006', 'fail_file', async () => ({ ...(await claim()), p_error_message: 'broken' })],
    ['25006', 'release_file', () => claim()],
    [
      'PT400',
      'persist_records',
      async () => ({
        ...(await claim()),
        p_target: 'events',
        p_records: '[{"n": 1}]',
        p_cursor: 1,
        p_items_processed: 1,
      }),
    ],
    ['25006', 'requeue_file', async () => ({ p_file_url: (await claim()).p_file_url, p_force: true })],
  ]

  test.each(writing)('is answered with %s by %s, and changes nothing', async (code, name, args) => {
    const given = await args()
    const before = await snapshot()
    const { status, error } = await supabase.rpc(name, given, { get: true })
    expect([status, error?.code]).toEqual([code === '25006' ? 405 : 400, code])
    expect(await snapshot()).toEqual(before)
  })

  async function snapshot(): Promise<unknown> {
    const rows = await database.sql`
      select (select count(*) from public.events) as events, (select count(*) from filemark.file_events) as audit,
             (select jsonb_object_agg(pipeline || file_url, to_jsonb(f)) from filemark.file_checkpoints f) as files`
    return rows[0]
  }
})

describe('rule 6.3: an answer that got lost', () => {
  /** Calls once without getting the answer, and again. */
  async function again(name: string, args: Record<string, unknown>) {
    rest.intercept = ({ path }) => (path === `/rpc/${name}` ? 'drop-answer' : undefined)
    const lost = await supabase.rpc(name, args)
    expect([lost.status, lost.data]).toEqual([0, null])
    rest.intercept = undefined
    return supabase.rpc(name, args)
  }

  test('of claim_file is given again: the same claim', async () => {
    const { status, data } = await again('claim_file', {
      p_file_url: newUrl(),
      p_file_type: 'csv',
      p_file_timestamp: timestamp,
      p_worker_id: 'worker',
      p_request_id: crypto.randomUUID(),
    })
    expect([status, data[0].outcome, data[0].claim_token, data[0].attempts]).toEqual([200, 'claimed', 1, 1])
  })

  test('of claim_next_files is given again, and nothing more is claimed', async () => {
    const urls = ['1.csv', '2.csv', '3.csv', '4.csv']
    const pipeline = await pipelineOf(...urls)
    const call = {
      p_worker_id: 'worker',
      p_limit: 2,
      p_pipeline: pipeline,
      p_request_id: crypto.randomUUID(),
    }
    const { data } = await again('claim_next_files', call)
    expect(data.map(({ file_url }: { file_url: string }) => file_url)).toEqual(['1.csv', '2.csv'])
    expect((await supabase.rpc('pipeline_stats', { p_pipeline: pipeline })).data).toMatchObject([
      { processing: 2, pending: 2 },
    ])
  })

  test('of persist_records is given again, and no record goes in twice', async () => {
    const held = await claim()
    const batch = (n: number) => ({
      ...held,
      p_target: 'public.events',
      p_records: [{ file_url: held.p_file_url, n }],
      p_cursor: n,
      p_items_processed: n,
    })
    const unnumbered = await again('persist_records', batch(1))
    expect(unnumbered).toMatchObject({ status: 200, data: [{ records_persisted: 1, checkpoint_seq: 1 }] })
    const numbered = await again('persist_records', { ...batch(2), p_checkpoint_seq: 2 })
    expect(numbered).toMatchObject({ status: 200, data: [{ records_persisted: 1, checkpoint_seq: 2 }] })
    expect(await countEvents(held.p_file_url)).toBe(2)
    expect(await fileOf(held.p_file_url)).toMatchObject({ records_persisted: 2, history_length: 2 })
  })

  test('of checkpoint_file is given again, and one checkpoint is in the history', async () => {
    const held = await claim()
    const { data } = await again('checkpoint_file', {
      ...held,
      p_cursor: { line: 7 },
      p_items_processed: 7,
      p_checkpoint_seq: 1,
    })
    expect(data).toMatchObject([{ checkpoint_seq: 1, history_length: 1 }])
  })

  test('of complete_file: it is completed already', async () => {
    const held = await claim()
    const { data } = await again('complete_file', { ...held, p_records_total: 5 })
    expect(data).toEqual([{ outcome: 'already_completed' }])
    expect(await fileOf(held.p_file_url)).toMatchObject({ status: 'completed', records_total: 5 })
  })

  test('of fail_file is given again, with one failure in the audit', async () => {
    const held = await claim()
    const { data } = await again('fail_file', {
      ...held,
      p_error_message: 'broken',
      p_retry_after_seconds: 60,
    })
    expect(data).toMatchObject([{ status: 'failed', attempts: 1 }])
    const events = await database.sql`
      select event from filemark.file_events where file_url = ${held.p_file_url}`
    expect(events).toEqual([{ event: 'failed' }])
  })

  test('of release_file is given again, and the attempt is refunded once', async () => {
    const held = await claim()
    expect(await again('release_file', held)).toMatchObject({ status: 204, error: null })
    expect(await fileOf(held.p_file_url)).toMatchObject({ status: 'pending', attempts: 0 })
  })

  test('of complete_and_claim_next is given again, and nothing more is claimed', async () => {
    const pipeline = await pipelineOf('1.csv', '2.csv', '3.csv')
    const first = await supabase
      .rpc('claim_next_files', { p_worker_id: 'worker', p_pipeline: pipeline })
      .throwOnError()
    const { data } = await again('complete_and_claim_next', {
      p_worker_id: 'worker',
      p_completions: [{ file_url: '1.csv', claim_token: first.data[0].claim_token, records_total: 1 }],
      p_pipeline: pipeline,
      p_request_id: crypto.randomUUID(),
    })
    expect(data).toMatchObject([{ outcome: 'claimed', file_url: '2.csv', claim_token: 1 }])
    expect((await supabase.rpc('pipeline_stats', { p_pipeline: pipeline })).data).toMatchObject([
      { completed: 1, processing: 1, pending: 1 },
    ])
  })

  test('of requeue_file is given again, with one line in the audit', async () => {
    const held = await claim()
    await supabase.rpc('complete_file', held).throwOnError()
    const { data } = await again('requeue_file', { p_file_url: held.p_file_url, p_from: 'start' })
    expect(data).toEqual([{ status: 'pending', checkpoint_seq: 0 }])
    const events = await database.sql`
      select event from filemark.file_events where file_url = ${held.p_file_url}`
    expect(events).toEqual([{ event: 'requeued' }])
  })

  test('of register_files: the files are known already', async () => {
    const { data } = await again('register_files', {
      p_files: [{ file_url: newUrl(), file_type: 'csv', file_timestamp: timestamp }],
    })
    expect(data).toEqual([{ registered: 0, new_generations: 0, unchanged: 1 }])
  })
})

describe('the limits of the API', () => {
  test('pending_files answers all of 1,000 urls and refuses more', async () => {
    const urls = Array.from({ length: 1000 }, (_, index) => `${newUrl()}?part=${index}`)
    const { data } = await supabase.rpc('pending_files', { p_file_urls: urls }).throwOnError()
    expect(data.map(({ file_url }: { file_url: string }) => file_url)).toEqual(urls)
    const { status, error } = await supabase.rpc('pending_files', { p_file_urls: [...urls, newUrl()] })
    expect([status, error?.code]).toEqual([413, 'PT413'])
  })

  test('list_file_checkpoints answers pages of 1,000 and refuses larger ones', async () => {
    const urls = Array.from({ length: 1100 }, (_, index) => String(index).padStart(4, '0'))
    const pipeline = await pipelineOf(...urls)
    const call = { p_limit: 1000, p_pipeline: pipeline }
    const first = await supabase.rpc('list_file_checkpoints', call).throwOnError()
    const last = await supabase.rpc('list_file_checkpoints', { ...call, p_after: '0999' }).throwOnError()
    const listed = [...first.data, ...last.data].map(({ file_url }: { file_url: string }) => file_url)
    expect(listed).toEqual(urls)
    const { status, error } = await supabase.rpc('list_file_checkpoints', { ...call, p_limit: 1001 })
    expect([status, error?.code]).toEqual([400, 'PT400'])
  })

  test('the largest calls are not cut off by the statement timeout of 8 seconds', async () => {
    const urls = Array.from({ length: 10_000 }, () => newUrl())
    const pipeline = crypto.randomUUID()
    const files = urls.map((file_url) => ({
      file_url,
      file_type: 'csv',
      file_timestamp: timestamp,
      etag: 'v1',
    }))
    const overwritten = files.slice(0, 1000).map((file) => ({ ...file, etag: 'v2' }))
    const held = await claim()
    const records = urls.map((file_url, n) => ({ file_url, n, payload: { n } }))
    const largest: [name: string, args: Record<string, unknown>][] = [
      ['register_files', { p_files: files, p_pipeline: pipeline }],
      ['register_files', { p_files: files, p_pipeline: pipeline }],
      ['register_files', { p_files: overwritten, p_pipeline: pipeline }],
      ['claim_next_files', { p_worker_id: 'worker', p_limit: 100, p_pipeline: pipeline }],
      ['pending_files', { p_file_urls: urls.slice(0, 1000), p_pipeline: pipeline }],
      ['list_file_checkpoints', { p_limit: 1000, p_pipeline: pipeline }],
      ['pipeline_stats', {}],
      [
        'persist_records',
        { ...held, p_target: 'events', p_records: records, p_cursor: 1, p_items_processed: records.length },
      ],
    ]
    for (const [name, args] of largest) {
      const { error } = await supabase.rpc(name, args)
      expect([name, error]).toEqual([name, null])
    }
  })
})
