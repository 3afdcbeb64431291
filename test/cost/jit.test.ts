import postgres from 'postgres'
import { expect, test } from 'vitest'
import { createDatabase } from '../database.ts'
import { startPostgres } from '../servers/postgres.ts'

// A kind of plan that is forbidden (enable_sort = off) and taken all the same, because there is no other, has a cost of
// 10^10 up to Postgres 17. That is far above jit_above_cost, so that the call would be compiled, each time: half a second
// for register_files, where it takes milliseconds.

test('every function that forbids a kind of plan forbids JIT compilation too', async () => {
  await using database = await createDatabase()
  const rows = await database.sql<{ name: string; settings: string[] }[]>`
    select p.oid::regprocedure::text as name, p.proconfig as settings
      from pg_proc p
     where p.pronamespace in ('public'::regnamespace, 'filemark'::regnamespace)
       and 'enable_sort=off' = any (p.proconfig)`
  expect(rows.length).toBeGreaterThan(10)
  expect(rows.filter(({ settings }) => !settings.includes('jit=off')).map(({ name }) => name)).toEqual([])
})

test('nothing is compiled in the life of a file', { tags: 'jit' }, async () => {
  await using server = await startPostgres({
    settings: {
      shared_preload_libraries: 'auto_explain',
      'auto_explain.log_nested_statements': true,
      'auto_explain.log_analyze': true,
      'auto_explain.log_level': 'notice',
      'auto_explain.log_min_duration': 0,
    },
  })
  await using database = await createDatabase({ on: server.url() })
  const plans: string[] = []
  const sql = postgres(database.url, { max: 1, onnotice: ({ message }) => plans.push(message ?? '') })

  await sql`set jit_above_cost = 0`
  await sql`select sum(n) from generate_series(1, 10) n`
  expect(plans.filter((plan) => plan.includes('JIT:')).length, 'what is seen to be compiled').toBe(1)
  await sql`reset jit_above_cost`

  const files = `(
    select jsonb_agg(jsonb_build_object('file_url', 'file ' || i, 'file_type', 'csv', 'file_timestamp', now(),
                                        'etag', gen_random_uuid()::text)) from generate_series(1, 30) i)`
  const held = `(select jsonb_agg(jsonb_build_object('file_url', file_url, 'claim_token', claim_token))
                   from filemark.file_checkpoints where status = 'processing')`
  const expire = `update filemark.file_checkpoints set lease_expires_at = started_at, lease_check_at = started_at
                   where status = 'processing'`
  const statements = [
    `select register_files(${files})`,
    `select register_files(${files})`,
    `select claim_file('file 1', 'csv', now(), 'w')`,
    `select claim_file('file 1', 'csv', now(), 'w')`,
    `select checkpoint_file('file 1', 1, '1', 1)`,
    `select extend_claim('file 1', 1)`,
    `select fail_file('file 1', 1, 'it broke')`,
    `select requeue_file('file 1', 'start')`,
    `select claim_next_files('w', 3, p_file_type => 'csv', p_request_id => '00000000-0000-4000-8000-000000000001')`,
    `select claim_next_files('w', 3, p_file_type => 'csv', p_request_id => '00000000-0000-4000-8000-000000000001')`,
    expire,
    `select claim_next_files('w', 5)`,
    `select complete_and_claim_next('w', ${held}, 5)`,
    `select release_file(file_url, claim_token) from filemark.file_checkpoints where status = 'processing' limit 1`,
    expire,
    `select filemark.reclaim_stale_claims()`,
    `select pending_files(array['file 1', 'unknown'])`,
    `select list_file_checkpoints()`,
    `select get_file_checkpoint('file 1')`,
  ]
  const compiled: string[] = []
  for (const statement of statements) {
    plans.length = 0
    await sql.unsafe(statement)
    if (plans.some((plan) => plan.includes('JIT:'))) compiled.push(statement)
  }
  await sql.end()
  expect(compiled).toEqual([])
})
