import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { call, checkpoint, claim, claimNext, complete, fail, register, release } from '../behaviour/calls.ts'
import { createDatabase } from '../database.ts'
import { debianBinDir, startPostgres } from '../servers/postgres.ts'

// Debian's server compiles statements whose plans cost much (jit). Plans with forbidden nodes (sql/97_plans.sql) seem to
// cost 10,000,000,000, and to compile one takes a quarter of a second.
test('no call of ours is compiled', async () => {
  await using server = await startPostgres({
    binDir: debianBinDir(),
    settings: {
      session_preload_libraries: 'auto_explain',
      'auto_explain.log_min_duration': 0,
      'auto_explain.log_analyze': true,
      'auto_explain.log_nested_statements': true,
    },
  })
  await using database = await createDatabase({ on: server.url() })
  const { sql } = database
  expect(await sql`select pg_jit_available() as available`).toEqual([{ available: true }])
  const compiled = (): string[] =>
    readFileSync(server.logFile, 'utf8')
      .split(/\n(?=\d{4}-\d\d-\d\d )/)
      .filter((entry) => /^\s*JIT:/m.test(entry))

  const urls = Array.from({ length: 200 }, (_, index) => `f${index}`)
  await register(sql, ...urls.map((url) => ({ file_url: url, etag: '1' })))
  await register(sql, ...urls.map((url) => ({ file_url: url, etag: '2' })))
  await claimNext(sql, 100)
  await claimNext(sql, 1, { request_id: crypto.randomUUID() })
  for (const url of ['a', 'b', 'c', 'd', 'e']) await claim(sql, url, { etag: '1' })
  await checkpoint(sql, 'a', '1', 1, { accumulated_results: [1] })
  await sql`create table public.target (n int)`
  const records = { target: 'target', records: [{ n: 1 }], cursor: 2, items_processed: 2 }
  await call(sql, 'persist_records', { file_url: 'a', claim_token: '1', ...records })
  await call(sql, 'extend_claim', { file_url: 'a', claim_token: '1' })
  await complete(sql, 'a', '1')
  const completions = ['b', 'c'].map((url) => ({ file_url: url, claim_token: 1 }))
  await call(sql, 'complete_and_claim_next', { worker_id: 'w', completions, limit: 5 })
  await fail(sql, 'd', '1', { retryable: false })
  await release(sql, 'e', '1')
  await call(sql, 'get_file_checkpoint', { file_url: 'a' })
  await call(sql, 'list_file_checkpoints')
  await call(sql, 'pending_files', { file_urls: urls })
  await call(sql, 'skip_file', { file_url: 'e' })
  await call(sql, 'requeue_file', { file_url: 'a' })
  await call(sql, 'filemark.requeue_dead_letters', { pipeline: 'default', dry_run: false })
  for (const name of [
    'pipeline_stats',
    'filemark_metrics',
    'filemark.run_maintenance',
    'filemark.check_alerts',
  ]) {
    await call(sql, name)
  }
  const views = await sql<{ name: string }[]>`
    select viewname as name from pg_views where schemaname = 'filemark'`
  for (const { name } of views) await sql.unsafe(`select * from filemark.${name}`)
  expect(compiled()).toEqual([])

  // What would be seen.
  await sql.begin(async (tx) => {
    await tx`set local jit_above_cost = 0`
    await tx`select count(*) from filemark.file_checkpoints`
  })
  expect(compiled()).toHaveLength(1)
})
