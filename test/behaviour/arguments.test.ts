import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { checkpoint, claim, complete, configure, refusal, register } from './calls.ts'
import { contents } from './tables.ts'

let db: TestDatabase

/** SQL for a bad value of a parameter, and what the message must name: the parameter, if not said otherwise. */
interface Bad {
  value: string
  code?: 'PT400' | 'PT413'
  names?: string
}

interface Call {
  /** SQL for each parameter of a call that works. */
  good: Record<string, string>
  /** What each parameter may not be. `'any'`: all its values are fine. */
  bad: Record<string, (string | Bad)[] | 'any'>
}

// Shared by many functions.
const text = (bytes: number): string[] => [
  'null',
  `''`,
  `repeat('x', ${bytes + 1})`,
  `repeat('ä', ${bytes / 2 + 1})`,
]
const optionalText = (bytes: number): string[] => text(bytes).slice(1)
const tooLarge = (value: string): Bad => ({ value, code: 'PT413' })
const from = (...values: string[]): string[] => ['null', ...values]

const pipeline = text(100)
const file_url = text(2048)
const claim_token = from('0', '-1')
const worker_id = text(200)
const limit = from('0', '-1', '101')
const position = from('-1')
const count = from('-1')
const json = (value: unknown): string => `'${JSON.stringify(value)}'::jsonb`
// The pipeline takes 2,000 bytes of results and 1,000 of a cursor.
const cursor = [
  'null',
  tooLarge(`to_jsonb(repeat('x', 1000))`),
  tooLarge(`to_jsonb(array_fill(1, array[1000]))`),
]
const results = [tooLarge(`to_jsonb(repeat('x', 2000))`)]

const file = { file_url: 'new', file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z' }
/** A second file with something wrong with it, behind a good one. */
function badFile(key: string, value: unknown): Bad {
  return { value: json([file, { ...file, file_url: 'second', [key]: value }]), names: `p_files[1].${key}` }
}

const completion = { file_url: 'held', claim_token: 1 }
function badCompletion(key: string, value: unknown): Bad {
  return { value: json([{ ...completion, [key]: value }]), names: 'p_completions[' }
}

const badSettings = {
  max_attempts: [0, -1, 1001, 1.5, '3', null, true],
  lease_seconds: [0, 604801, null],
  backoff_base_seconds: [-1, 604801, null],
  backoff_max_seconds: [-1, 31536001, null],
  backoff_jitter: [-0.1, 1.1, '0.5', null],
  max_concurrency: [0, -1, 100001, 1.5, '4'],
  paused: ['true', 1, null],
  on_overwrite: ['replace', '', 1, null],
  history_limit: [0, null],
  keep_checkpoints_days: [-1, null],
  keep_files_days: [-1, 0.5],
  results_limit_bytes: [0, 268435457, null],
  cursor_limit_bytes: [0, 268435457, null],
  stale_after_seconds: [0, null],
  max_history: [0, null],
  max_results_bytes: [0, null],
  min_checkpoints_per_minute: [-1, null],
  max_backlog_age_seconds: [0],
  max_failure_ratio: [-0.1, 1.1, null],
  expect_file_every_seconds: [0],
  max_rejected: [-1, 0.5],
  max_rejected_ratio: [-0.1, 1.1],
}

const calls: Record<string, Call> = {
  'public.register_files': {
    good: { p_files: json([file]), p_pipeline: `'default'` },
    bad: {
      p_files: [
        'null',
        json(null),
        json({}),
        json('x'),
        json([1]),
        json([null]),
        json([[]]),
        tooLarge(`(select jsonb_agg('{}'::jsonb) from generate_series(1, 10001))`),
        tooLarge(
          `(select jsonb_agg(jsonb_build_object('file_url', 'f' || n, 'file_type', 'csv', 'file_timestamp', now()))
              from generate_series(1, 10001) n)`,
        ),
        badFile('etga', 'e1'),
        ...[undefined, null, '', 7, {}, 'x'.repeat(2049)].map((value) => badFile('file_url', value)),
        ...[undefined, null, '', 7, 'x'.repeat(101)].map((value) => badFile('file_type', value)),
        ...[undefined, null, '', 7, 'soon', '2026-13-01', 'infinity', '-infinity'].map((value) =>
          badFile('file_timestamp', value),
        ),
        ...['', 7, [], 'x'.repeat(1025)].map((value) => badFile('etag', value)),
        ...[-1, 1.5, '5', 1e30, true].map((value) => badFile('size_bytes', value)),
        ...[1.5, '5', 2147483648, -2147483649, []].map((value) => badFile('priority', value)),
        ...['', 7, 'soon', 'infinity'].map((value) => badFile('available_at', value)),
        ...['x', 7, [], true].map((value) => badFile('metadata', value)),
      ],
      p_pipeline: pipeline,
    },
  },
  'public.claim_file': {
    good: {
      p_file_url: `'pending'`,
      p_file_type: `'csv'`,
      p_file_timestamp: 'now()',
      p_worker_id: `'w2'`,
      p_pipeline: `'default'`,
      p_etag: `'e1'`,
      p_request_id: 'gen_random_uuid()',
    },
    bad: {
      p_file_url: file_url,
      p_file_type: text(100),
      p_file_timestamp: from(`'infinity'`, `'-infinity'`),
      p_worker_id: worker_id,
      p_pipeline: pipeline,
      p_etag: optionalText(1024),
      p_request_id: 'any',
    },
  },
  'public.claim_next_files': {
    good: {
      p_worker_id: `'w2'`,
      p_limit: '100',
      p_pipeline: `'default'`,
      p_file_type: `'csv'`,
      p_request_id: 'gen_random_uuid()',
    },
    bad: {
      p_worker_id: worker_id,
      p_limit: limit,
      p_pipeline: pipeline,
      p_file_type: optionalText(100),
      p_request_id: 'any',
    },
  },
  'public.checkpoint_file': {
    good: {
      p_file_url: `'held'`,
      p_claim_token: '1',
      p_cursor: `'{"next": 20}'`,
      p_items_processed: '20',
      p_accumulated_results: `'{"sum": 1}'`,
      p_checkpoint_seq: '2',
      p_items_total: '100',
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_claim_token: claim_token,
      p_cursor: cursor,
      p_items_processed: position,
      p_accumulated_results: results,
      p_checkpoint_seq: ['0', '-1'],
      p_items_total: ['-1'],
      p_pipeline: pipeline,
    },
  },
  'public.extend_claim': {
    good: { p_file_url: `'held'`, p_claim_token: '1', p_pipeline: `'default'` },
    bad: { p_file_url: file_url, p_claim_token: claim_token, p_pipeline: pipeline },
  },
  'public.complete_file': {
    good: {
      p_file_url: `'held'`,
      p_claim_token: '1',
      p_records_total: '3',
      p_records_filtered: '2',
      p_records_persisted: '1',
      p_processing_time_ms: '0',
      p_accumulated_results: `'{"sum": 1}'`,
      p_etag: `'e1'`,
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_claim_token: claim_token,
      p_records_total: count,
      p_records_filtered: count,
      p_records_persisted: count,
      p_processing_time_ms: ['-1'],
      p_accumulated_results: results,
      p_etag: optionalText(1024),
      p_pipeline: pipeline,
    },
  },
  'public.fail_file': {
    good: {
      p_file_url: `'held'`,
      p_claim_token: '1',
      p_error_message: `'it broke'`,
      p_retryable: 'true',
      p_error: `'{"line": 1}'`,
      p_retry_after_seconds: '31536000',
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_claim_token: claim_token,
      p_error_message: text(65536),
      p_retryable: ['null'],
      p_error: [tooLarge(`to_jsonb(repeat('x', 1048576))`)],
      p_retry_after_seconds: ['-1', '31536001'],
      p_pipeline: pipeline,
    },
  },
  'public.release_file': {
    good: { p_file_url: `'held'`, p_claim_token: '1', p_pipeline: `'default'` },
    bad: { p_file_url: file_url, p_claim_token: claim_token, p_pipeline: pipeline },
  },
  'public.complete_and_claim_next': {
    good: {
      p_worker_id: `'w1'`,
      p_completions: json([completion]),
      p_limit: '100',
      p_pipeline: `'default'`,
      p_file_type: `'csv'`,
      p_request_id: 'gen_random_uuid()',
    },
    bad: {
      p_worker_id: worker_id,
      p_completions: [
        'null',
        json(null),
        json(completion),
        json('x'),
        json([1]),
        json([null]),
        json([completion, completion]),
        tooLarge(
          `(select jsonb_agg(jsonb_build_object('file_url', 'f' || n, 'claim_token', 1)) from generate_series(1, 101) n)`,
        ),
        badCompletion('records', 1),
        ...[undefined, null, '', 7, 'x'.repeat(2049)].map((value) => badCompletion('file_url', value)),
        ...[undefined, null, 0, -1, 1.5, '', 'x', '1 2', {}, 1e20].map((value) =>
          badCompletion('claim_token', value),
        ),
        ...['records_total', 'records_filtered', 'records_persisted', 'processing_time_ms'].flatMap((key) =>
          [-1, 1.5, 'x', '1 2', {}, true, 1e20].map((value) => badCompletion(key, value)),
        ),
        ...['', 7, {}, 'x'.repeat(1025)].map((value) => badCompletion('etag', value)),
        { ...badCompletion('accumulated_results', 'x'.repeat(2000)), code: 'PT413' },
      ],
      p_limit: limit,
      p_pipeline: pipeline,
      p_file_type: optionalText(100),
      p_request_id: 'any',
    },
  },
  'public.persist_records': {
    good: {
      p_file_url: `'held'`,
      p_claim_token: '1',
      p_target: `'public.target'`,
      p_records: json([{ id: 1 }]),
      p_cursor: `'{"next": 20}'`,
      p_items_processed: '20',
      p_accumulated_results: `'{"sum": 1}'`,
      p_checkpoint_seq: '2',
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_claim_token: claim_token,
      p_target: from(
        `''`,
        `'no such'`,
        `'nosuch'`,
        `'target_pkey'`,
        `'a.b.c'`,
        `'public.'`,
        `'target; select 1'`,
      ),
      p_records: [
        'null',
        json(null),
        json({ id: 1 }),
        json('x'),
        json([1]),
        json([{ id: 1 }, null]),
        json([{ id: 1 }, [2]]),
        json([{ id: 1 }, { id: 2, colour: 'red' }]),
        json([{ xmin: 1 }]),
        json([{ 'id"': 1 }]),
        tooLarge(`(select jsonb_agg(jsonb_build_object('id', n)) from generate_series(1, 10001) n)`),
      ],
      p_cursor: cursor,
      p_items_processed: position,
      p_accumulated_results: results,
      p_checkpoint_seq: ['0', '-1'],
      p_pipeline: pipeline,
    },
  },
  'public.get_file_checkpoint': {
    good: { p_file_url: `'held'`, p_pipeline: `'default'` },
    bad: { p_file_url: file_url, p_pipeline: pipeline },
  },
  'public.list_file_checkpoints': {
    good: { p_status: `'pending'`, p_limit: '1000', p_after: `'a'`, p_pipeline: `'default'` },
    bad: {
      p_status: [`''`, `'done'`, `'PENDING'`],
      p_limit: from('0', '-1', '1001'),
      p_after: 'any',
      p_pipeline: pipeline,
    },
  },
  'public.pending_files': {
    good: { p_file_urls: `array['held', 'pending', 'unknown']`, p_pipeline: `'default'` },
    bad: {
      p_file_urls: [
        'null',
        `array['a', null]`,
        `array['']`,
        `array[repeat('x', 2049)]`,
        `array[array['a'], array['b']]`,
        tooLarge(`(select array_agg('f' || n) from generate_series(1, 1001) n)`),
      ],
      p_pipeline: pipeline,
    },
  },
  'public.pipeline_stats': {
    good: { p_pipeline: `'default'` },
    // A filter: a name that no pipeline has finds none.
    bad: { p_pipeline: 'any' },
  },
  'public.requeue_file': {
    good: {
      p_file_url: `'completed'`,
      p_from: `'checkpoint:1'`,
      p_force: 'true',
      p_reason: `'wrong'`,
      p_actor: `'ann'`,
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_from: from(
        `''`,
        `'end'`,
        `'Start'`,
        `'checkpoint:'`,
        `'checkpoint:0'`,
        `'checkpoint:-1'`,
        `'checkpoint:1.5'`,
        `'checkpoint:2'`,
        `'checkpoint:9999999999999999999'`,
        `'start '`,
      ),
      // Null forces nothing.
      p_force: 'any',
      p_reason: [`repeat('x', 10001)`],
      p_actor: [`repeat('x', 201)`],
      p_pipeline: pipeline,
    },
  },
  'filemark.configure_pipeline': {
    good: { p_pipeline: `'default'`, p_settings: json({ max_attempts: 9 }), p_actor: `'ann'` },
    bad: {
      p_pipeline: pipeline,
      p_settings: [
        'null',
        json(null),
        json([]),
        json('x'),
        json({ max_attempt: 3 }),
        json({ pipeline: 'other' }),
        json({ max_attempts: 5, created_at: '2026-01-01' }),
        ...Object.entries(badSettings).flatMap(([name, values]) =>
          values.map((value) => ({
            value: json({ paused: true, [name]: value }),
            names: `p_settings.${name}`,
          })),
        ),
      ],
      p_actor: [`repeat('x', 201)`],
    },
  },
  'filemark.assert_claim': {
    good: { p_file_url: `'held'`, p_claim_token: '1', p_pipeline: `'default'` },
    bad: { p_file_url: file_url, p_claim_token: claim_token, p_pipeline: pipeline },
  },
  'filemark.reclaim_stale_claims': {
    good: { p_limit: '1000000', p_dry_run: 'false', p_pipeline: `'default'` },
    bad: {
      p_limit: from('0', '-1', '1000001'),
      p_dry_run: ['null'],
      // A filter; that there is no such pipeline is PT404.
      p_pipeline: 'any',
    },
  },
}

beforeAll(async () => {
  db = await createDatabase()
  await db.sql`create table target (id int primary key)`
  await configure(db.sql, { results_limit_bytes: 2000, cursor_limit_bytes: 1000 })
  const held = await claim(db.sql, 'held', { etag: 'e1' })
  await checkpoint(db.sql, 'held', held.claim_token, 10)
  const done = await claim(db.sql, 'completed')
  await checkpoint(db.sql, 'completed', done.claim_token, 10)
  await complete(db.sql, 'completed', done.claim_token)
  await claim(db.sql, 'lost')
  await db.sql`
    update filemark.file_checkpoints set lease_expires_at = started_at, lease_check_at = started_at
     where file_url = 'lost'`
  await register(db.sql, { file_url: 'pending' })
})
afterAll(() => db.drop())

function statement(name: string, args: Record<string, string>): string {
  const list = Object.entries(args).map(([parameter, value]) => `${parameter} => ${value}`)
  return `select * from ${name}(${list.join(', ')})`
}

test('the table has every parameter of every function that is granted', async () => {
  const rows = await db.sql<{ name: string; parameters: string[] }[]>`
    select n.nspname || '.' || p.proname as name, (p.proargnames::text[])[:p.pronargs] as parameters
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname in ('public', 'filemark') and has_function_privilege('filemark_operator', p.oid, 'execute')
       -- What persist_records is made of is called by it alone.
       and p.proname not in ('begin_persist', 'save_checkpoint', 'target_table', 'insert_records', 'refuse_argument',
                             'refuse_size')
     order by 1`
  const granted = Object.fromEntries(rows.map(({ name, parameters }) => [name, parameters]))
  const sorted = Object.entries(calls).toSorted(([a], [b]) => (a < b ? -1 : 1))
  expect(Object.fromEntries(sorted.map(([name, { good }]) => [name, Object.keys(good)]))).toEqual(granted)
  expect(Object.fromEntries(sorted.map(([name, { bad }]) => [name, Object.keys(bad)]))).toEqual(granted)
})

describe.each(Object.entries(calls))('%s', (name, { good, bad }) => {
  test('takes the good values', async () => {
    const undo = new Error('rolled back')
    const calling = db.sql.begin(async (tx) => {
      await tx.unsafe(statement(name, good))
      throw undo
    })
    await expect(calling).rejects.toBe(undo)
  })

  const refused = Object.entries(bad).filter(
    (entry): entry is [string, (string | Bad)[]] => entry[1] !== 'any',
  )
  test.each(refused)(
    'rule 6.12: refuses a bad %s, names it and changes nothing',
    async (parameter, values) => {
      const before = await contents(db.sql)
      const surprises = []
      for (const entry of values) {
        const {
          value,
          code = 'PT400',
          names = parameter,
        } = typeof entry === 'string' ? { value: entry } : entry
        const answer = await refusal(db.sql.unsafe(statement(name, { ...good, [parameter]: value })))
        if (answer?.code !== code || !answer.message.includes(names)) {
          surprises.push({ value: value.slice(0, 200), expected: `${code} ${names}`, answer })
        }
      }
      expect(surprises).toEqual([])
      expect(await contents(db.sql)).toEqual(before)
    },
  )
})

describe('rule 6.12: persist_records without p_checkpoint_seq', () => {
  const { good } = calls['public.persist_records'] ?? { good: {} }
  const bad: Record<string, string[]> = { p_items_processed: ['null', '-1'], p_cursor: ['null'] }
  test.each(Object.entries(bad))('refuses a bad %s as it does with one', async (parameter, values) => {
    const before = await contents(db.sql)
    for (const value of values) {
      const args = { ...good, p_checkpoint_seq: 'null', [parameter]: value }
      expect(await refusal(db.sql.unsafe(statement('persist_records', args))), value).toMatchObject({
        code: 'PT400',
        message: expect.stringContaining(parameter),
      })
    }
    expect(await contents(db.sql)).toEqual(before)
  })
})

describe('rule 6.12: what is allowed is allowed to its limit:', () => {
  const limits: Record<string, string> = {
    'a pipeline of 100 bytes': `select claim_file('a', 'csv', now(), 'w', p_pipeline => repeat('x', 100))`,
    'a url of 2,048 bytes': `select claim_file(repeat('x', 2048), 'csv', now(), 'w')`,
    'a type of 100 bytes': `select claim_file('a', repeat('x', 100), now(), 'w')`,
    'a worker of 200 bytes': `select claim_file('a', 'csv', now(), repeat('x', 200))`,
    'an etag of 1,024 bytes': `select claim_file('a', 'csv', now(), 'w', p_etag => repeat('x', 1024))`,
    'a cursor of its limit': `select checkpoint_file('held', 1, to_jsonb(repeat('x', 998)), 11)`,
    'results of their limit': `select checkpoint_file('held', 1, '1', 11, to_jsonb(repeat('x', 1998)))`,
    'a cursor that is false': `select checkpoint_file('held', 1, 'false', 11)`,
    'an error of 65,536 bytes': `select fail_file('held', 1, repeat('x', 65536))`,
    'a claim of 100 files': `select claim_next_files('w', 100)`,
    'a list of 1,000 files': `select list_file_checkpoints(p_limit => 1000)`,
    '1,000 urls': `select pending_files((select array_agg('f' || n) from generate_series(1, 1000) n))`,
    'no urls': `select pending_files('{}')`,
    'no files': `select register_files('[]')`,
    'no completions': `select complete_and_claim_next('w', '[]')`,
    'no records': `select persist_records('held', 1, 'target', '[]', '1', 11)`,
    'no settings': `select filemark.configure_pipeline('default', '{}')`,
    '10,000 files': `select register_files((select jsonb_agg(jsonb_build_object(
        'file_url', 'f' || n, 'file_type', 'csv', 'file_timestamp', now())) from generate_series(1, 10000) n))`,
    '100 completions': `select complete_and_claim_next('w', (select jsonb_agg(jsonb_build_object(
        'file_url', 'f' || n, 'claim_token', 1)) from generate_series(1, 100) n))`,
    '10,000 records': `select persist_records('held', 1, 'target', (select jsonb_agg(jsonb_build_object(
        'id', n)) from generate_series(1, 10000) n), '1', 11)`,
    'a file with nulls for what it has not': `select register_files('[{"file_url": "n", "file_type": "csv",
        "file_timestamp": "2026-01-01", "etag": null, "size_bytes": null, "priority": null, "available_at": null,
        "metadata": null}]')`,
    'whole numbers written as 5.0, as some languages do': `select register_files('[{"file_url": "n",
        "file_type": "csv", "file_timestamp": "2026-01-01", "size_bytes": 5.0, "priority": 1.0}]')`,
    'a setting written as 5.0': `select filemark.configure_pipeline('default', '{"max_attempts": 5.0}')`,
  }
  test.each(Object.entries(limits))('%s', async (_, query) => {
    const undo = new Error('rolled back')
    const calling = db.sql.begin(async (tx) => {
      await tx.unsafe(query)
      throw undo
    })
    await expect(calling).rejects.toBe(undo)
  })
})
