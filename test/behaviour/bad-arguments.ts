import type { Sql } from 'postgres'
import { checkpoint, claim, complete, configure, fail, register } from './calls.ts'

/** SQL for a bad value of a parameter, and what the message must name: the parameter, if not said otherwise. */
export interface Bad {
  value: string
  /** PT400 if not said otherwise. A code of Postgres' own is raised by what our functions hand the value to. */
  code?: string
  names?: string
}

export interface Call {
  /** SQL for each parameter of a call that works. */
  good: Record<string, string>
  /** What each parameter may not be. `'any'`: all its values are fine. */
  bad: Record<string, (string | Bad)[] | 'any'>
  /** What the good values are refused with, where something else is missing. */
  unavailable?: string
}

// Shared by many functions.
const text = (bytes: number): string[] => [
  'null',
  `''`,
  `repeat('x', ${bytes + 1})`,
  `repeat('ä', ${bytes / 2 + 1})`,
  // As many characters as it may have bytes, and one byte too many.
  `repeat('😀', ${bytes})`,
  `repeat('😀', ${bytes / 4}) || ' '`,
]
const optionalText = (bytes: number): string[] => text(bytes).slice(1)
const tooLarge = (value: string): Bad => ({ value, code: 'PT413' })
const from = (...values: string[]): string[] => ['null', ...values]

const pipeline = text(100)
const file_url = text(2048)
const claim_token = from('0', '-1', '(-9223372036854775808)')
const worker_id = text(200)
const limit = from('0', '-1', '101', '2147483647', '(-2147483648)')
const position = from('-1', '(-9223372036854775808)')
const count = from('-1', '(-9223372036854775808)')
/** A number as JSON can write it, and JavaScript cannot. */
const number = (digits: string) => ({ toJSON: () => `#${digits}#` })
const json = (value: unknown): string =>
  `'${JSON.stringify(value).replaceAll(/"#([-.e\d]+)#"/g, '$1')}'::jsonb`
/** Arrays in arrays, deeper than any limit on bytes here. More than some thousand overflow the stack of PGlite. */
const deep = `(repeat('[', 1100) || repeat(']', 1100))::jsonb`
// The pipeline takes 2,000 bytes of results and 1,000 of a cursor.
const cursor = [
  'null',
  tooLarge(`to_jsonb(repeat('x', 1000))`),
  tooLarge(`to_jsonb(array_fill(1, array[1000]))`),
  tooLarge(deep),
]
const results = [tooLarge(`to_jsonb(repeat('x', 2000))`), tooLarge(deep)]

const file = { file_url: 'new', file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z' }
const badTimes = [
  'soon',
  '2026-13-01',
  '2026-02-30',
  '2026-01-01T24:00:01Z',
  '2026-01-01T00:00:00 Mars/Olympus',
  '300000-01-01',
  '1767225600',
  'infinity',
  '-infinity',
]
/** A second file with something wrong with it, behind a good one. */
function badFile(key: string, value: unknown): Bad {
  return { value: json([file, { ...file, file_url: 'second', [key]: value }]), names: `p_files[1].${key}` }
}

const badWholeNumbers = [
  -1,
  1.5,
  '',
  'x',
  '1 2',
  'NaN',
  // Digits, but not of a number as Postgres reads it.
  '１',
  {},
  [1],
  true,
  1e20,
  number('9223372036854775808'),
  number('1e400'),
]
const completion = { file_url: 'held', claim_token: 1 }
function badCompletion(key: string, value: unknown): Bad {
  return { value: json([{ ...completion, [key]: value }]), names: 'p_completions[' }
}

const badSettings = {
  max_attempts: [0, -1, 1001, 1.5, '3', 'NaN', null, true, [3], { max: 3 }, number('1e400')],
  lease_seconds: [0, 604801, '300', 0.1, null],
  backoff_base_seconds: [-1, 604801, 1.5, '30', null],
  backoff_max_seconds: [-1, 31536001, 1.5, '30', null],
  backoff_jitter: [-0.1, 1.1, '0.5', 'NaN', 'Infinity', true, number('1e400'), number('-1e400'), null],
  max_concurrency: [0, -1, 100001, 1.5, '4', false, []],
  paused: ['true', 1, 0, '', null],
  on_overwrite: ['replace', '', 'Ignore', ' ignore', 1, true, ['ignore'], null],
  history_limit: [0, -1, 1000001, 1.5, '10', null],
  keep_checkpoints_days: [-1, 36501, 1.5, '7', null],
  keep_files_days: [-1, 36501, 0.5, '7', false],
  results_limit_bytes: [0, 268435457, number('9223372036854775808'), 1.5, '1', null],
  cursor_limit_bytes: [0, 268435457, number('9223372036854775808'), 1.5, '1', null],
  stale_after_seconds: [0, 31536001, 1.5, '600', null],
  max_history: [0, 1000000001, 1.5, '100', null],
  max_results_bytes: [0, 268435457, 1.5, '1', null],
  min_checkpoints_per_minute: [-1, 1000001, '1', number('1e400'), null],
  max_backlog_age_seconds: [0, 31536001, 1.5, '1'],
  max_failure_ratio: [-0.1, 1.1, '0.5', null],
  expect_file_every_seconds: [0, 31536001, 1.5, '1'],
  max_rejected: [-1, 0.5, 1000000001, '1'],
  max_rejected_ratio: [-0.1, 1.1, '0.5', true],
}

const maintenanceTask: Call = {
  good: { p_limit: '1000000', p_dry_run: 'false', p_pipeline: `'default'` },
  bad: {
    p_limit: from('0', '-1', '1000001', '(-2147483648)'),
    p_dry_run: ['null'],
    p_pipeline: optionalText(100),
  },
}

export const calls: Record<string, Call> = {
  'public.register_files': {
    good: { p_files: json([file]), p_pipeline: `'default'` },
    bad: {
      p_files: [
        'null',
        json(null),
        json({}),
        json('x'),
        json([1]),
        json(7),
        json(true),
        json([null]),
        json([[]]),
        json([[file]]),
        json(['x']),
        json([file, null]),
        deep,
        tooLarge(`(select jsonb_agg('{}'::jsonb) from generate_series(1, 10001))`),
        tooLarge(
          `(select jsonb_agg(jsonb_build_object('file_url', 'f' || n, 'file_type', 'csv', 'file_timestamp', now()))
              from generate_series(1, 10001) n)`,
        ),
        badFile('etga', 'e1'),
        badFile('', 'e1'),
        badFile('File_url', 'a'),
        ...[undefined, null, '', 7, true, {}, ['a'], 'x'.repeat(2049), '😀'.repeat(513)].map((value) =>
          badFile('file_url', value),
        ),
        ...[undefined, null, '', 7, false, ['csv'], 'x'.repeat(101), '😀'.repeat(26)].map((value) =>
          badFile('file_type', value),
        ),
        ...[undefined, null, '', ' ', 7, true, {}, ...badTimes].map((value) =>
          badFile('file_timestamp', value),
        ),
        ...['', 7, true, [], {}, 'x'.repeat(1025), '😀'.repeat(257)].map((value) => badFile('etag', value)),
        ...[-1, 1.5, '5', '', 'NaN', true, [], 1e30, number('9223372036854775808'), number('1e400')].map(
          (value) => badFile('size_bytes', value),
        ),
        ...[1.5, '5', 'NaN', false, 2147483648, -2147483649, [], number('1e400')].map((value) =>
          badFile('priority', value),
        ),
        ...['', ' ', 7, true, [], ...badTimes].map((value) => badFile('available_at', value)),
        ...['x', 7, [], true, '{}'].map((value) => badFile('metadata', value)),
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
      p_checkpoint_seq: ['0', '-1', '(-9223372036854775808)'],
      p_items_total: ['-1', '(-9223372036854775808)'],
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
      p_processing_time_ms: ['-1', '(-9223372036854775808)'],
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
      p_error: [
        tooLarge(`to_jsonb(repeat('x', 1048576))`),
        tooLarge(`jsonb_build_array(repeat('x', 1048575))`),
      ],
      p_retry_after_seconds: ['-1', '31536001', '2147483647', '(-2147483648)'],
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
        json(7),
        json([1]),
        json(['x']),
        json([null]),
        json([[completion]]),
        json([completion, null]),
        json([completion, completion]),
        deep,
        tooLarge(
          `(select jsonb_agg(jsonb_build_object('file_url', 'f' || n, 'claim_token', 1)) from generate_series(1, 101) n)`,
        ),
        badCompletion('records', 1),
        ...[undefined, null, '', 7, true, ['held'], 'x'.repeat(2049), '😀'.repeat(513)].map((value) =>
          badCompletion('file_url', value),
        ),
        ...[undefined, null, 0, ...badWholeNumbers].map((value) => badCompletion('claim_token', value)),
        ...['records_total', 'records_filtered', 'records_persisted', 'processing_time_ms'].flatMap((key) =>
          badWholeNumbers.map((value) => badCompletion(key, value)),
        ),
        ...['', 7, true, {}, 'x'.repeat(1025), '😀'.repeat(257)].map((value) => badCompletion('etag', value)),
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
        `' '`,
        `E'\n'`,
        `'.'`,
        `'target_pkey'`,
        `'filemark.claim'`,
        // A view that takes no records.
        `'public.counted'`,
        // A key that is checked at the end of the transaction: records that meet it cannot be passed over.
        `'public.deferred'`,
        `'a.b.c'`,
        `'public.'`,
        `'.target'`,
        `'"target'`,
        `'"Target"'`,
        `'public..target'`,
        `'target; select 1'`,
        `'target(id)'`,
        `'target as t'`,
        `repeat('x', 100000)`,
      ),
      p_records: [
        'null',
        json(null),
        json({ id: 1 }),
        json('x'),
        json(7),
        json([1]),
        json(['x']),
        json([null]),
        json([[{ id: 1 }]]),
        json([{ id: 1 }, null]),
        json([{ id: 1 }, [2]]),
        json([{ id: 1 }, { id: 2, colour: 'red' }]),
        json([{ xmin: 1 }]),
        json([{ '': 1 }]),
        json([{ ID: 1 }]),
        json([{ 'id"': 1 }]),
        deep,
        // What the column does not take is refused by the column.
        ...[
          ['x', '22P02'],
          ['', '22P02'],
          [1.5, '22P02'],
          [true, '22P02'],
          [{}, '22P02'],
          [2147483648, '22003'],
          [-2147483649, '22003'],
        ].map(([id, code]) => ({
          value: json([{ id: 1 }, { id }]),
          code: `${code}`,
          names: typeof id === 'object' ? '{}' : `"${id}"`,
        })),
        { value: json([{ id: 1 }, { id: null }]), code: '23502', names: '"id"' },
        tooLarge(`(select jsonb_agg(jsonb_build_object('id', n)) from generate_series(1, 10001) n)`),
      ],
      p_cursor: cursor,
      p_items_processed: position,
      p_accumulated_results: results,
      p_checkpoint_seq: ['0', '-1', '(-9223372036854775808)'],
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
      p_status: [`''`, `'done'`, `'PENDING'`, `'pending '`, `E'pending\n'`],
      p_limit: from('0', '-1', '1001', '2147483647', '(-2147483648)'),
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
        `array['a', '']`,
        `array[repeat('x', 2049)]`,
        `array[repeat('😀', 513)]`,
        `array[array['a'], array['b']]`,
        `array[array['a', null]]`,
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
        `'checkpoint:999999999999999999'`,
        `'checkpoint:01'`,
        `'checkpoint:1 '`,
        `'checkpoint: 1'`,
        `E'checkpoint:1\n'`,
        // Digits, but not of a number as Postgres reads it.
        `'checkpoint:１'`,
        `'checkpoint:1１'`,
        `'start '`,
        `E'start\n'`,
        `repeat('x', 100000)`,
      ),
      // Null forces nothing.
      p_force: 'any',
      p_reason: [`repeat('x', 10001)`, `repeat('😀', 2501)`],
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
      p_pipeline: pipeline,
    },
  },
  'public.skip_file': {
    good: { p_file_url: `'pending'`, p_reason: `'wrong'`, p_actor: `'ann'`, p_pipeline: `'default'` },
    bad: {
      p_file_url: file_url,
      p_reason: [`repeat('x', 10001)`, `repeat('😀', 2501)`],
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
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
        json([{ max_attempts: 5 }]),
        json('x'),
        json(7),
        deep,
        json({ max_attempt: 3 }),
        json({ Max_attempts: 3 }),
        json({ '': 3 }),
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
  'filemark.reclaim_stale_claims': maintenanceTask,
  'filemark.truncate_checkpoint_history': maintenanceTask,
  'filemark.clear_completed_checkpoints': maintenanceTask,
  'filemark.purge_files': maintenanceTask,
  'filemark.run_maintenance': {
    good: { p_limit: '1000000' },
    bad: { p_limit: from('0', '-1', '1000001', '(-2147483648)') },
  },
  'filemark.dead_letter_file': {
    good: { p_file_url: `'pending'`, p_reason: `'wrong'`, p_actor: `'ann'`, p_pipeline: `'default'` },
    bad: {
      p_file_url: file_url,
      p_reason: [`repeat('x', 10001)`, `repeat('😀', 2501)`],
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
      p_pipeline: pipeline,
    },
  },
  'filemark.resolve_dead_letter': {
    good: {
      p_file_url: `'dead'`,
      p_resolution: `'manually_resolved'`,
      p_notes: `'loaded by hand'`,
      p_actor: `'ann'`,
      p_pipeline: `'default'`,
    },
    bad: {
      p_file_url: file_url,
      p_resolution: from(`''`, `'pending'`, `'Requeued'`, `'done'`),
      p_notes: [`repeat('x', 10001)`, `repeat('😀', 2501)`],
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
      p_pipeline: pipeline,
    },
  },
  'filemark.requeue_dead_letters': {
    good: {
      p_pipeline: `'default'`,
      p_error_like: `'%'`,
      p_limit: '10000',
      p_dry_run: 'false',
      p_reason: `'mended'`,
      p_actor: `'ann'`,
    },
    bad: {
      p_pipeline: pipeline,
      p_error_like: ['null', `'x\\'`],
      p_limit: from('0', '-1', '10001', '(-2147483648)'),
      p_dry_run: ['null'],
      p_reason: [`repeat('x', 10001)`, `repeat('😀', 2501)`],
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
    },
  },
  'filemark.schedule_maintenance': {
    // Without pg_cron it takes no value; test/operating/schedule.test.ts has the good ones.
    good: { p_every: 'null' },
    bad: {
      p_every: [
        `''`,
        `'0 seconds'`,
        `'60 seconds'`,
        `'5 minutes'`,
        `'soon'`,
        `'* * * *'`,
        `'* * * * * *'`,
        `repeat('* ', 51)`,
      ],
    },
    unavailable: 'PT422',
  },
  'filemark.unschedule_maintenance': { good: {}, bad: {} },
  'filemark.alert_count': { good: {}, bad: {} },
  'filemark.alert_limits': { good: {}, bad: {} },
  'filemark.current_alerts': { good: {}, bad: {} },
  'filemark.held_snapshots': { good: {}, bad: {} },
  'filemark.check_alerts': {
    good: { p_resolve_after_seconds: '0' },
    bad: { p_resolve_after_seconds: from('-1', '86401', '(-2147483648)') },
  },
  'filemark.estimate_storage': {
    good: { p_active_files: '1', p_history_entries: '1', p_results_bytes: '1', p_checkpoint_bytes: '1' },
    bad: {
      p_active_files: [...count, '1000000000001'],
      p_history_entries: [...count, '1000000000001'],
      p_results_bytes: [...count, '1000000000001'],
      p_checkpoint_bytes: [...count, '1000000000001'],
    },
  },
  'filemark.set_alert_webhook': {
    good: {
      p_url: `'https://example.com/hook'`,
      p_headers: json({ authorization: 'Bearer x' }),
      p_pipeline: `'default'`,
      p_actor: `'ann'`,
    },
    bad: {
      p_url: [`''`, `'ftp://a'`, `'https://'`, `'https://' || repeat('a', 2048)`],
      p_headers: ['null', json(null), json([]), json('x'), json({ a: 1 }), json({ a: { vault: 1 } })],
      p_pipeline: text(100).slice(1),
      p_actor: [`repeat('x', 201)`, `repeat('😀', 51)`],
    },
  },
  'public.filemark_metrics': { good: {}, bad: {} },
}

/** The files that the good values are about. */
export async function arrange(sql: Sql): Promise<void> {
  await sql`create table target (id int primary key, note text)`
  await sql`create table deferred (id int unique deferrable)`
  await sql`create view counted as select count(*)::int as id, max(note) as note from target`
  await configure(sql, { results_limit_bytes: 2000, cursor_limit_bytes: 1000 })
  const held = await claim(sql, 'held', { etag: 'e1' })
  await checkpoint(sql, 'held', held.claim_token, 10)
  const done = await claim(sql, 'completed')
  await checkpoint(sql, 'completed', done.claim_token, 10)
  await complete(sql, 'completed', done.claim_token)
  const dead = await claim(sql, 'dead')
  await fail(sql, 'dead', dead.claim_token, { retryable: false })
  await claim(sql, 'lost')
  await sql`
    update filemark.file_checkpoints set lease_expires_at = started_at, lease_check_at = started_at
     where file_url = 'lost'`
  await register(sql, { file_url: 'pending' })
}

/** SQL of a call with its arguments given as SQL. */
export function statement(name: string, args: Record<string, string>): string {
  const list = Object.entries(args).map(([parameter, value]) => `${parameter} => ${value}`)
  return `select * from ${name}(${list.join(', ')})`
}

/** The types of all parameters, by function and parameter. */
export async function parameterTypes(sql: Sql): Promise<Record<string, Record<string, string>>> {
  const rows = await sql<{ name: string; types: Record<string, string> }[]>`
    select n.nspname || '.' || p.proname as name, jsonb_object_agg(a.name, format_type(a.type, null)) as types
      from pg_proc p
      join pg_namespace n on n.oid = p.pronamespace
     cross join lateral unnest(p.proargnames[:p.pronargs], p.proargtypes::oid[]) a (name, type)
     where n.nspname || '.' || p.proname = any (${Object.keys(calls)})
     group by 1`
  return Object.fromEntries(rows.map(({ name, types }) => [name, types]))
}

/** Values that the server itself cannot read, so that no function of ours sees them. */
export interface Unreadable {
  /** As JSON, for a call over HTTP. */
  json: string
  /** As SQL for a parameter of that type; left out when SQL has no such value. */
  sql: Record<string, string>
  /** The codes of the server's refusal. */
  codes: string[]
}

export const unreadable: Record<string, Unreadable> = {
  'a NUL': {
    json: '"a\\u0000b"',
    sql: { text: `E'a\\x00b'`, jsonb: `'"a\\u0000b"'::jsonb`, 'text[]': `array[E'a\\x00b']` },
    codes: ['22021', '22P05'],
  },
  'a NUL in a key': {
    json: '{"a\\u0000b": 1}',
    sql: { jsonb: `'{"a\\u0000b": 1}'::jsonb` },
    codes: ['22P05'],
  },
  'half of a surrogate pair': {
    json: '"a\\ud83db"',
    sql: { text: `U&'a\\D83Db'`, jsonb: `'"a\\ud83db"'::jsonb`, 'text[]': `array[U&'a\\D83Db']` },
    codes: ['42601', '22P02'],
  },
  'the other half of a surrogate pair': {
    json: '"a\\ude00b"',
    sql: { text: `U&'a\\DE00b'`, jsonb: `'"a\\ude00b"'::jsonb`, 'text[]': `array[U&'a\\DE00b']` },
    codes: ['42601', '22P02'],
  },
  'a number beyond all numbers': {
    json: '[1e999999]',
    sql: { jsonb: `'[1e999999]'::jsonb` },
    codes: ['22003'],
  },
}

/** Texts that are fine, and that something on the way might change. */
export const oddTexts: Record<string, string> = {
  'a blank': ' ',
  'white space': ' \t\u00a0\u2003\u3000',
  'a line break': 'a\nb',
  'line breaks around it': '\r\na\r\n',
  'blanks around it': ' a ',
  'control characters': 'a\u0001\u001b[31m\u007f\u0085b',
  'a byte order mark': '\ufeffa',
  'a zero-width space': 'a\u200bb',
  'no character': 'a\ufffe\uffffb',
  'right to left': '\u202egpj.\u202cملف',
  'an e with an accent': 'caf\u00e9',
  'an e and a combining accent': 'cafe\u0301',
  'accents without end': `a${'\u0301'.repeat(40)}`,
  'an emoji of several': '👩‍👩‍👧‍👦',
  'the last of all characters': '\u{10ffff}',
  'characters of 4 bytes to the limit of a worker or a type': '😀'.repeat(25),
  'quotes and a comment': `'";-- $$ /*`,
  backslashes: '\\\\server\\share\\0',
  'an array': '{a,"b",NULL}',
  'a JSON text': '{"a": [1, null]}',
  'the word null': 'NULL',
  'escapes of others': '%00%2F&amp;\\u0000',
  'patterns of LIKE': '%_%',
  'a path upwards': '../../etc/passwd',
}

/** Calls a function with named arguments, given without their `p_`; answers its rows. */
export type Rpc = (name: string, args: Record<string, unknown>) => Promise<Record<string, unknown>[]>

/** Gives `text` wherever a text can be given, and answers wherever it comes back, with what is around it. */
export async function sendAround(rpc: Rpc, text: string): Promise<unknown[]> {
  const at = { file_url: text, pipeline: text }
  const file = { file_url: text, file_type: text, file_timestamp: '2026-01-01', etag: text }
  await rpc('register_files', { files: [{ ...file, metadata: { [text]: text } }], pipeline: text })
  const pending = await rpc('pending_files', { file_urls: [text], pipeline: text })
  const [claim] = await rpc('claim_next_files', { worker_id: text, file_type: text, pipeline: text })
  const held = { ...at, claim_token: claim?.claim_token }
  await rpc('persist_records', {
    ...held,
    target: 'target',
    records: [{ id: 1, note: text }],
    cursor: { [text]: [text] },
    items_processed: 1,
    accumulated_results: { [text]: text },
  })
  await rpc('fail_file', { ...held, error_message: text, error: { [text]: text } })
  const [failed] = await rpc('get_file_checkpoint', at)
  await rpc('skip_file', { ...at, reason: text, actor: text })
  await rpc('requeue_file', { ...at, reason: text, actor: text })
  const named = { ...at, file_type: text, file_timestamp: '2026-01-01', worker_id: text, etag: text }
  const [again] = await rpc('claim_file', named)
  await rpc('complete_and_claim_next', {
    worker_id: text,
    completions: [{ file_url: text, claim_token: Number(again?.claim_token), etag: text }],
    pipeline: text,
  })
  const [completed] = await rpc('list_file_checkpoints', { pipeline: text })
  const [stats] = await rpc('pipeline_stats', { pipeline: text })
  return [
    [pending[0]?.file_url, claim?.pipeline, claim?.file_url, claim?.file_type, claim?.etag, claim?.metadata],
    [failed?.processed_by, failed?.cursor, failed?.accumulated_results, failed?.error_message, failed?.error],
    [again?.outcome, again?.generation, again?.cursor],
    [completed?.status, completed?.pipeline, completed?.file_url],
    [stats?.pipeline, stats?.completed],
  ].map((row) => row.map((value) => (typeof value === 'number' ? String(value) : value)))
}

/** What `sendAround` answers when nothing was changed on the way. */
export function arrived(text: string): unknown[] {
  return [
    [text, text, text, text, text, { [text]: text }],
    [text, { [text]: [text] }, { [text]: text }, text, { [text]: text }],
    ['claimed', '1', { [text]: [text] }],
    ['completed', text, text],
    [text, '1'],
  ]
}
