import type { Sql } from 'postgres'
import {
  call,
  checkpoint,
  claim,
  claimNext,
  complete,
  configure,
  fail,
  register,
} from '../behaviour/calls.ts'
import { expireLease } from '../behaviour/tables.ts'
import type { TestConnection } from '../database.ts'
import { until } from '../wait.ts'

/** Something that goes wrong, made with the functions that workers call, and what puts it right. */
export interface Situation {
  severity: 'warning' | 'critical'
  /** The file that the alert is about; undefined when it is about the pipeline. */
  file?: string
  /** Every text that the message must have in it. */
  names: string[]
  /** `other` is a session that may keep a transaction open. */
  arise(sql: Sql, other: TestConnection): Promise<void>
  resolve(sql: Sql, other: TestConnection): Promise<void>
}

/** Per alert, one that has no other alert with it. */
export const situations: Record<string, Situation> = {
  stale_checkpoint: {
    severity: 'warning',
    file: 'stale.csv',
    names: ['stale.csv', 'frozen-worker', '7 seconds', 'attempt 1 of 3'],
    async arise(sql) {
      await configure(sql, { stale_after_seconds: 5 })
      await claim(sql, 'stale.csv', { worker_id: 'frozen-worker' })
      await age(sql, 'stale.csv', 7)
    },
    async resolve(sql) {
      await checkpoint(sql, 'stale.csv', '1', 1)
    },
  },
  large_history: {
    severity: 'warning',
    file: 'long.csv',
    names: ['long.csv', '13 checkpoints', 'more than 12', 'keeps 10'],
    async arise(sql) {
      await configure(sql, { max_history: 12 })
      await claim(sql, 'long.csv')
      for (let items = 1; items <= 13; items++) await checkpoint(sql, 'long.csv', '1', items)
    },
    async resolve(sql) {
      await call(sql, 'filemark.truncate_checkpoint_history')
    },
  },
  large_results: {
    severity: 'warning',
    file: 'large.csv',
    names: ['large.csv', '2002 bytes', 'more than 1000 bytes'],
    async arise(sql) {
      await configure(sql, { max_results_bytes: 1000 })
      await claim(sql, 'large.csv')
      await checkpoint(sql, 'large.csv', '1', 1, { accumulated_results: 'x'.repeat(2000) })
    },
    async resolve(sql) {
      await checkpoint(sql, 'large.csv', '1', 2, { accumulated_results: {} })
    },
  },
  infrequent_checkpoints: {
    severity: 'warning',
    file: 'seldom.csv',
    names: ['seldom.csv', 'w1', '0.33 times a minute', 'less than 1'],
    async arise(sql) {
      await claim(sql, 'seldom.csv')
      await checkpoint(sql, 'seldom.csv', '1', 1)
      await checkpoint(sql, 'seldom.csv', '1', 2)
      await age(sql, 'seldom.csv', 360)
    },
    async resolve(sql) {
      for (let items = 3; items <= 7; items++) await checkpoint(sql, 'seldom.csv', '1', items)
    },
  },
  dead_letters: {
    severity: 'warning',
    names: ['1 dead letter', 'bad.csv', 'line 7 has 3 columns'],
    async arise(sql) {
      await claim(sql, 'bad.csv')
      await fail(sql, 'bad.csv', '1', { error_message: 'line 7 has 3 columns', retryable: false })
    },
    async resolve(sql) {
      await call(sql, 'requeue_file', { file_url: 'bad.csv' })
    },
  },
  expired_claims: {
    severity: 'critical',
    names: ['1 claim', 'lost.csv', 'dead-worker'],
    async arise(sql) {
      await claim(sql, 'lost.csv', { worker_id: 'dead-worker' })
      await expireLease(sql)
    },
    async resolve(sql) {
      await call(sql, 'filemark.reclaim_stale_claims')
    },
  },
  backlog_age: {
    severity: 'critical',
    names: ['waiting for 90 seconds', 'longer than 60'],
    async arise(sql) {
      await configure(sql, { max_backlog_age_seconds: 60 })
      await register(
        sql,
        { file_url: 'old.csv', available_at: ago(90) },
        { file_url: 'older.csv', available_at: ago(80) },
        { file_url: 'new.csv' },
      )
    },
    async resolve(sql) {
      await claimNext(sql, 2)
    },
  },
  failure_ratio: {
    severity: 'critical',
    names: ['6 of 10 attempts', 'more than 50 %'],
    async arise(sql) {
      await configure(sql, { max_attempts: 100, backoff_base_seconds: 0 })
      for (let token = 1; token <= 6; token++) {
        await claim(sql, 'failing.csv')
        await fail(sql, 'failing.csv', String(token))
      }
      await completeSome(sql, 'good', 4)
    },
    async resolve(sql) {
      await completeSome(sql, 'better', 2)
    },
  },
  maintenance_overdue: {
    severity: 'warning',
    names: ['waiting for maintenance since 20', 'did not run in the last day'],
    async arise(sql) {
      await register(sql, { file_url: 'any.csv' })
      await sql`update filemark.tallies set occurred_at = occurred_at - interval '61 minutes'`
    },
    async resolve(sql) {
      await call(sql, 'filemark.run_maintenance')
    },
  },
  missing_files: {
    severity: 'critical',
    names: ['no new file since 20', 'expected every 60 seconds'],
    async arise(sql) {
      await configure(sql, { expect_file_every_seconds: 60 })
      await register(sql, { file_url: 'last.csv' })
      await sql`update filemark.pipelines set created_at = created_at - interval '1 day'`
      await sql`update filemark.tallies set occurred_at = occurred_at - interval '61 seconds'`
    },
    async resolve(sql) {
      await register(sql, { file_url: 'next.csv' })
    },
  },
  held_snapshot: {
    severity: 'warning',
    names: ['session', 'postgres, forgotten', 'idle in transaction', 'dead rows of file_checkpoints'],
    async arise(sql, other) {
      await limits(sql, { held_snapshot_seconds: 0, held_dead_rows: 3 })
      await register(sql, { file_url: 'a.csv' }, { file_url: 'b.csv' }, { file_url: 'c.csv' })
      await other.sql`set application_name = 'forgotten'`
      await other.sql`begin isolation level repeatable read`
      await other.sql`select from filemark.pipelines`
      await claimNext(sql, 3)
      await until(
        async () => {
          // Each connection of the pool tells what it did when it is asked for something next, also that it emptied the
          // table before: then there are dead rows again here.
          await sql`update filemark.file_checkpoints set priority = priority`
          await Promise.all(Array.from({ length: 20 }, () => sql`select pg_stat_force_next_flush()`))
          return (
            await sql`
              select from pg_stat_all_tables
               where relid = 'filemark.file_checkpoints'::regclass and n_dead_tup >= 3`
          ).length
        },
        { what: 'the dead rows to be counted' },
      )
    },
    async resolve(sql, other) {
      await other.sql`rollback`
      await limits(sql, defaultLimits)
    },
  },
}

/** As if the claim on a file had begun, and its checkpoints had been saved, so long ago; its lease stays. */
export async function age(sql: Sql, url: string, seconds: number): Promise<void> {
  await sql`
    update filemark.file_checkpoints
       set started_at = started_at - ${seconds} * interval '1 second',
           checkpointed_at = checkpointed_at - ${seconds} * interval '1 second'
     where file_url = ${url}`
  await sql`
    update filemark.checkpoint_history set saved_at = saved_at - ${seconds} * interval '1 second'
     where file_url = ${url}`
}

/** So many seconds ago, by the clock of this process, which is the server's. */
export function ago(seconds: number): string {
  return new Date(Date.now() - seconds * 1000).toISOString()
}

/** Those of filemark.alert_limits that `limits` is asked to change. */
export const defaultLimits = { held_snapshot_seconds: 900, held_dead_rows: 10_000 }

/** Changes limits of alerts that nobody can wait for. */
export async function limits(sql: Sql, changed: Record<string, number>): Promise<void> {
  const [row] = await sql<Record<string, number>[]>`select * from filemark.alert_limits()`
  const values = Object.entries({ ...row, ...changed })
  await sql.unsafe(`
    create or replace function filemark.alert_limits()
    returns table (
      infrequent_after_seconds int, failure_minimum int, reclaim_within_seconds int, maintenance_overdue_seconds int,
      held_snapshot_seconds int, held_dead_rows bigint)
    language plpgsql immutable set search_path = '' as $$
    begin
      return query select ${values.map(([name, value]) => `${value}::${name === 'held_dead_rows' ? 'bigint' : 'int'}`)};
    end $$`)
}

/** Claims and completes so many new files. */
export async function completeSome(sql: Sql, prefix: string, count: number): Promise<void> {
  for (let number = 1; number <= count; number++) {
    const url = `${prefix}-${number}.csv`
    await claim(sql, url)
    await complete(sql, url, '1', { records_total: 10, records_persisted: 9, records_filtered: 1 })
  }
}
