// What watching costs: the metrics, the statistics, the alerts and every view of monitoring that is not a listing, with
// millions of files: `npm run bench:monitoring`
//
//   --completed 10000000
//   --pending 100000      a tenth of them wait for a retry
//   --processing 1000
//   --pipelines 10        among which the files are divided
//   --runs 20             warm runs, after three that do not count
//   --limit 100           milliseconds; the exit code is 1 when a median is over it
//
// The rows are made by SQL, as ninety days of work would have left them, then vacuumed. As filemark_monitor, on one
// connection.

import os from 'node:os'
import { parseArgs } from 'node:util'
import postgres, { type Sql } from 'postgres'
import { installFilemark } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'

const { values: options } = parseArgs({
  options: {
    completed: { type: 'string', default: '10000000' },
    pending: { type: 'string', default: '100000' },
    processing: { type: 'string', default: '1000' },
    pipelines: { type: 'string', default: '10' },
    runs: { type: 'string', default: '20' },
    limit: { type: 'string', default: '100' },
  },
})
const pipelines = Number(options.pipelines)
const perPipeline = {
  completed: Math.ceil(Number(options.completed) / pipelines),
  pending: Math.ceil(Number(options.pending) / pipelines),
  processing: Math.ceil(Number(options.processing) / pipelines),
}
const runs = Number(options.runs)
const limit = Number(options.limit)

/** Views that show a row per file, which nobody reads whole. How they are asked stands in `questions`. */
const listings = ['files']

const questions = {
  'files: those in progress': `select * from filemark.files where status = 'processing'`,
  'files: one': `select * from filemark.files
                  where pipeline = 'pipeline-01' and file_url = 's3://bucket/pipeline-01/waiting/000000010.csv'`,
}

interface Cost {
  name: string
  rows: number
  /** Milliseconds, in the order of the runs. */
  times: number[]
}

async function main(): Promise<void> {
  await using server = await startPostgres({
    settings: {
      shared_buffers: '512MB',
      maintenance_work_mem: '512MB',
      max_wal_size: '8GB',
      wal_level: 'minimal',
      max_wal_senders: 0,
      autovacuum: false,
    },
  })
  await installFilemark(server.url())
  const admin = postgres(server.url(), { max: 1, onnotice: () => {} })
  const began = performance.now()
  await admin`set jit = off`
  const names = Array.from(
    { length: pipelines },
    (_, index) => `pipeline-${String(index + 1).padStart(2, '0')}`,
  )
  for (const name of names) await fillDone(admin, name)
  for (const name of names) await fillRest(admin, name)
  await admin.unsafe('vacuum (freeze, analyze)')
  await admin.unsafe('checkpoint')
  const [size] = await admin<{ size: string; files: string }[]>`
    select pg_size_pretty(pg_database_size(current_database())) as size,
           (select sum(total) from pipeline_stats())::text as files`
  const views = await admin<{ name: string }[]>`
    select viewname as name from pg_views where schemaname = 'filemark' and viewname <> all (${listings}) order by 1`
  await admin.end()

  const monitor = postgres(server.url(), { max: 1, onnotice: () => {} })
  await monitor`set role filemark_monitor`
  const costs: Cost[] = []
  for (const [name, query] of [
    ['filemark_metrics()', 'select filemark_metrics()'],
    ['pipeline_stats()', 'select * from pipeline_stats()'],
    ['filemark.alert_count()', 'select filemark.alert_count()'],
    ...views.map(({ name }) => [`filemark.${name}`, `select * from filemark.${name}`]),
    ...Object.entries(questions),
  ] as [string, string][]) {
    costs.push(await measure(monitor, name, query))
  }
  await monitor.end()

  const cpus = os.cpus()
  console.log(
    `Postgres ${server.version}, shared_buffers 512MB; ${cpus.length} × ${cpus[0]?.model}, ` +
      `${Math.round(os.totalmem() / 2 ** 30)} GiB, ${os.type()} ${os.release()}, load ${os.loadavg()[0]?.toFixed(1)}`,
  )
  console.log(
    `${Number(size?.files).toLocaleString('en-US')} files in ${pipelines} pipelines, ${size?.size}; filled and vacuumed in ` +
      `${Math.round((performance.now() - began) / 1000)} s. Milliseconds of ${runs} warm runs.\n`,
  )
  console.log('| | rows | median | slowest |')
  console.log('| --- | ---: | ---: | ---: |')
  for (const { name, rows, times } of costs) {
    const slow = median(times) > limit ? ' **too slow**' : ''
    console.log(
      `| \`${name}\` | ${rows} | ${median(times).toFixed(1)}${slow} | ${Math.max(...times).toFixed(1)} |`,
    )
  }
  if (costs.some(({ times }) => median(times) > limit)) process.exitCode = 1
}

async function measure(sql: Sql, name: string, query: string): Promise<Cost> {
  const times: number[] = []
  let rows = 0
  for (let run = -3; run < runs; run++) {
    const began = performance.now()
    rows = (await sql.unsafe(query)).length
    if (run >= 0) times.push(performance.now() - began)
  }
  return { name, rows, times }
}

/** The url of the i-th file. */
const urlOf = (pipeline: string, prefix: string): string =>
  `'s3://bucket/${pipeline}/${prefix}/' || lpad(i::text, 9, '0') || '.csv'`

/** What ninety days of one pipeline completed. */
async function fillDone(sql: Sql, pipeline: string): Promise<void> {
  const { completed } = perPipeline
  // The server's own clock throughout: n of the last 90 days, the last of them a moment ago.
  const back = (count: number): string => `now() - interval '90 days' * (1 - i::double precision / ${count})`
  await sql.unsafe(`
    select filemark.configure_pipeline('${pipeline}',
      '{"max_backlog_age_seconds": 3600, "keep_files_days": 120, "expect_file_every_seconds": 3600}');

    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, size_bytes, etag, status, available_at, claim_token, claim_ended,
      processed_by, started_at, attempts, items_processed, cursor, checkpoint_seq, checkpointed_at, history_length,
      records_total, records_persisted, processing_time_ms, completed_at, created_at, kept_since)
    select '${pipeline}', ${urlOf(pipeline, 'done')}, 'csv', t.at - interval '1 hour', 1048576, md5(i::text), 'completed', t.at, 1,
           'completed', 'worker-' || i % 100, t.at - interval '1 minute', 1, 1000,
           case when t.kept then '{"offset": 1048576, "line": 1000}'::jsonb end, 1, t.at, t.kept::int, 1000, 1000, 60000,
           t.at, t.at - interval '1 hour', case when t.kept then t.at end
      from generate_series(1, ${completed}) i
     cross join lateral (select ${back(completed)} as at, ${back(completed)} > now() - interval '7 days' as kept) t;
  `)
}

/** Its other files, what it has tallied, and everything else that grows with it. */
async function fillRest(sql: Sql, pipeline: string): Promise<void> {
  const { completed, pending, processing } = perPipeline
  const parked = Math.ceil(pending / 100)
  await sql.unsafe(`
    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, size_bytes, etag, status, available_at, claim_token, claim_ended,
      processed_by, started_at, attempts, error_message)
    select '${pipeline}', ${urlOf(pipeline, 'waiting')}, case i % 2 when 0 then 'csv' else 'json' end, now(), 1048576, md5(i::text),
           case when i % 10 = 0 then 'failed' else 'pending' end,
           now() + interval '1 second' * (case when i % 20 = 0 then i % 3600 else -(i % 5400) end),
           (i % 10 = 0)::int, case when i % 10 = 0 then 'failed' end, case when i % 10 = 0 then 'worker' end,
           case when i % 10 = 0 then now() end, (i % 10 = 0)::int, case when i % 10 = 0 then 'connection reset' end
      from generate_series(1, ${pending}) i;

    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, status, available_at, claim_token, processed_by, started_at,
      lease_expires_at, lease_check_at, attempts, cursor, items_processed, items_total, accumulated_results,
      results_bytes, checkpoint_seq, checkpointed_at, history_length)
    select '${pipeline}', ${urlOf(pipeline, 'busy')}, 'csv', now(), 'processing', now() - interval '2 hours', 1, 'worker-' || i,
           now() - interval '1 hour',
           now() + case when i % 20 = 0 then interval '1 second' else interval '1 hour' end, now() - interval '55 minutes', 1,
           jsonb_build_object('offset', i * 1000), 20000, 100000, t.results, octet_length(t.results::text), 60,
           t.saved_at, 20
      from generate_series(1, ${processing}) i
     cross join lateral (
       select now() - interval '1 second' * (i * 7 % 700) as saved_at,
              (select jsonb_object_agg('key-' || k, md5((i * k)::text)) from generate_series(1, 100) k) as results) t;
    insert into filemark.checkpoint_history
    select f.pipeline, f.file_url, s, jsonb_build_object('offset', s * 1000), s * 300, 0, 1,
           f.checkpointed_at - interval '30 seconds' * (60 - s)
      from filemark.file_checkpoints f, generate_series(41, 60) s
     where f.pipeline = '${pipeline}' and f.status = 'processing';
    insert into filemark.long_histories (pipeline, file_url)
    select f.pipeline, f.file_url from filemark.file_checkpoints f
     where f.pipeline = '${pipeline}' and f.status = 'processing' and right(f.file_url, 5) = '0.csv';

    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, status, available_at, claim_token, claim_ended, processed_by,
      started_at, attempts, error_message)
    select '${pipeline}', ${urlOf(pipeline, 'parked')}, 'csv', now(), case i % 2 when 0 then 'skipped' else 'dead_letter' end, now(), 3,
           'failed', 'worker', now(), 3, 'no such column'
      from generate_series(1, ${parked}) i;
    insert into filemark.dead_letter_entries (
      pipeline, file_url, reason, opened_at, attempts, error_message, errors, file)
    select f.pipeline, f.file_url, 'max_attempts_exceeded', now(), 3, f.error_message, '[]', to_jsonb(f)
      from filemark.file_checkpoints f
     where f.pipeline = '${pipeline}' and f.status = 'dead_letter';
    insert into filemark.file_events (pipeline, file_url, event, occurred_at, actor)
    select f.pipeline, f.file_url, e.event, now() - interval '1 minute', 'worker'
      from filemark.file_checkpoints f, unnest(array['failed', 'failed', 'failed', 'dead_lettered']) e (event)
     where f.pipeline = '${pipeline}' and f.status = 'dead_letter';

    -- What was registered, completed, failed and lost in each hour, the whole of it, and the last minute.
    insert into filemark.activity
    select '${pipeline}', h.hour, w.what, w.files, w.files * 1000, 0, w.files * 1000, 0, h.hour + interval '59 minutes'
      from generate_series(date_trunc('hour', now() - interval '90 days'), date_trunc('hour', now()), interval '1 hour') h (hour)
     cross join (values ('registered', ${Math.ceil(completed / 2160)}), ('completed', ${Math.ceil(completed / 2160)}),
                        ('failed', 10), ('lost', 2), ('released', 3), ('overwritten', 1)) w (what, files);
    insert into filemark.activity
    select a.pipeline, 'epoch', a.what, sum(a.files), sum(a.records_total), 0, sum(a.records_persisted), 0, max(a.last_at)
      from filemark.activity a
     where a.pipeline = '${pipeline}'
     group by a.pipeline, a.what;
    insert into filemark.tallies (pipeline, occurred_at, what, files, records_total, records_persisted)
    select '${pipeline}', now() - interval '6 milliseconds' * i * ${pipelines}, case i % 2 when 0 then 'registered' else 'completed' end,
           1, 1000, 1000
      from generate_series(1, ${Math.ceil(10_000 / pipelines)}) i;
    insert into filemark.maintenance_runs (pipeline, started_at, finished_at, affected)
    select '${pipeline}', now() - interval '1 minute' * i, now() - interval '1 minute' * i, '{"purge_files": 0}'
      from generate_series(1440, 0, -1) i;
    insert into filemark.alert_log (
      pipeline, alert, severity, message, hint, opened_at, last_seen, resolved_at)
    select '${pipeline}', 'dead_letters', 'warning', 'dead letters', 'look', now(), now(), now() from generate_series(1, 1000);
  `)
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return ((sorted[Math.ceil(middle) - 1] ?? Number.NaN) + (sorted[Math.floor(middle)] ?? Number.NaN)) / 2
}

await main()
